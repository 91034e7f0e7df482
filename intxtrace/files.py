"""Creating files as root in folders that are not ours alone: never through a link, never over a file unasked."""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from intxtrace.errors import IntxtraceError


def sentence(error: OSError, path: Path | str | None = None) -> str:
    """Say what an operating-system error means for the user, and what to do."""
    name = path if path is not None else error.filename
    where = f" {name}" if name is not None else ""
    match error.errno:
        case errno.ENOENT:
            return f"no such file or folder:{where}; check the name"
        case errno.EACCES | errno.EPERM:
            return f"no permission for{where}; run as its owner or as root"
        case errno.EISDIR:
            return f"{name} is a folder; name a file"
        case errno.ENOTDIR:
            return f"a part of{where} is not a folder; check the name"
        case errno.ENOSPC | errno.EDQUOT:
            return f"no space left to write{where}; free some space, or write to another disk"
        case errno.EROFS:
            return f"cannot write{where}: the file system is read-only; write to another folder"
        case errno.ENAMETOOLONG:
            return "the file name is too long; choose a shorter one"
        case _:
            reason = error.strerror or str(error) or type(error).__name__
            return f"cannot use{where or ' a file'}: {reason}; check the file and its disk"


def create(path: Path | str, *, force: bool = False) -> int:
    """Create a new regular file for writing, readable by its owner only, and return its descriptor.

    With `force` a regular file or a link of that name is removed first; what the link points to is not touched, and
    the removed file stays whole for whoever has it open.

    Raises:
        IntxtraceError: it exists (without `force`), is no regular file, or cannot be created.
    """
    path = Path(path)
    try:
        if force:
            try:
                mode = path.lstat().st_mode
            except FileNotFoundError:
                pass
            else:
                if not (stat.S_ISREG(mode) or stat.S_ISLNK(mode)):
                    raise IntxtraceError(f"{path} is not a regular file; write to another name")
                path.unlink()
        return os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    except FileExistsError:
        raise IntxtraceError(f"{path} exists; choose another name, or overwrite it with --force") from None
    except FileNotFoundError:
        raise IntxtraceError(f"the folder {path.parent} does not exist; create it, or write elsewhere") from None
    except OSError as error:
        raise IntxtraceError(sentence(error, path)) from None


@contextlib.contextmanager
def whole(path: Path | str, *, force: bool = False) -> Iterator[BinaryIO]:
    """Write a file (mode 0600) that has its name only once it is whole: what reads the name never sees half of it.

    With `force` a regular file or a link of that name is replaced; what the link points to is not touched. After an
    error or Ctrl-C nothing has changed.

    Raises:
        IntxtraceError: it exists (without `force`), is no regular file, or cannot be written.
    """
    path = Path(path)
    check_free(path, force=force)
    # In the same folder, since a file is renamed within one file system only; hidden, since others look for names.
    waiting = path.with_name(f".{path.name[:200]}.{secrets.token_hex(8)}")
    try:
        fd = create(waiting)
    except IntxtraceError as error:
        raise IntxtraceError(str(error).replace(str(waiting), str(path))) from None
    try:
        with os.fdopen(fd, "wb") as stream:
            yield stream
        if force:
            check_free(path, force=True)
            waiting.rename(path)
        else:
            _rename_new(waiting, path)
    except OSError as error:
        waiting.unlink(missing_ok=True)
        raise IntxtraceError(sentence(error, path)) from None
    except BaseException:
        waiting.unlink(missing_ok=True)
        raise


def check_free(path: Path, *, force: bool) -> None:
    """Say so before any work is done if a file cannot get this name.

    Raises:
        IntxtraceError: it exists (without `force`), or is no regular file.
    """
    try:
        mode = path.lstat().st_mode
    except FileNotFoundError:
        return
    except OSError as error:
        raise IntxtraceError(sentence(error, path)) from None
    if not force:
        raise IntxtraceError(f"{path} exists; choose another name, or overwrite it with --force")
    if not (stat.S_ISREG(mode) or stat.S_ISLNK(mode)):
        raise IntxtraceError(f"{path} is not a regular file; write to another name")


def _rename_new(waiting: Path, path: Path) -> None:
    """Rename a file, but never over another one."""
    try:
        os.link(waiting, path)
    except FileExistsError:
        raise IntxtraceError(f"{path} exists; choose another name, or overwrite it with --force") from None
    except OSError:  # a file system without hard links
        check_free(path, force=False)
        waiting.rename(path)
    else:
        waiting.unlink()


def write_whole(path: Path | str, data: bytes, *, force: bool = False) -> None:
    """Write a file (mode 0600) whole, or not at all.

    Raises:
        IntxtraceError: as `create`; or the disk is full.
    """
    fd = create(path, force=force)
    try:
        try:
            write_all(fd, data)
        finally:
            os.close(fd)
    except BaseException as error:  # an interruption too leaves no half file
        Path(path).unlink(missing_ok=True)
        if isinstance(error, OSError):
            raise IntxtraceError(sentence(error, path)) from None
        raise


def write_all(fd: int, data: bytes | memoryview) -> None:
    """Write every byte, however many calls that takes.

    Raises:
        OSError: the disk is full, or failed.
    """
    view = memoryview(data)
    while view:
        view = view[os.write(fd, view) :]
