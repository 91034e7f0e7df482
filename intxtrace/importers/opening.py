"""Opens a recording of another tool: finds out from its content what it is."""

from __future__ import annotations

import gzip
import io
import lzma
import resource
import select
import shutil
import subprocess
import weakref
import zlib
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Protocol

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from intxtrace.errors import IntxtraceError
from intxtrace.importers.blocks import Readable
from intxtrace.importers.bpftrace import AsFtrace, looks_like_bpftrace
from intxtrace.importers.ftrace import FtraceText, looks_like_ftrace
from intxtrace.importers.qemu_log import QemuLog, looks_like_qemu_log
from intxtrace.importers.qemu_simple import HEADER, QemuSimple
from intxtrace.trace.metadata import Metadata
from intxtrace.trace.tables import Tables

PEEK = 1 << 18
"""Bytes in which it is looked for what a recording is."""

SILENCE = 300
"""Seconds for which a program that reads a binary recording may print nothing."""

HEAP = 4 << 30
"""Bytes of memory of its own that it may take. The recording itself, which perf maps, does not count."""

_GZIP = b"\x1f\x8b"
_ZSTD = b"\x28\xb5\x2f\xfd"
_TRACE_DAT = b"\x17\x08\x44tracing"
_PERF_DATA = b"PERFILE2"


class Recording(Protocol):
    """A recording of another tool, as what intxtrace's own probes would have recorded."""

    tables: Tables
    metadata: Metadata
    lines: int
    """Lines, or records of a binary file, that were read."""
    unreadable: dict[str, int]
    """Events that lack what their name promises, by name; they are left out."""

    @property
    def late(self) -> int:
        """Events that were older than one before them: they have the time of that."""

    def __iter__(self) -> Iterator[npt.NDArray[np.void]]:
        """Hand out the events as arrays of dtype `events.RECORD`, in the order of time, in bounded memory."""


def open_recording(
    stream: Readable, name: str, command_line: list[str] | None = None, mapped: dict[str, str] | None = None
) -> Recording:
    """Open a recording.

    Args:
        stream: its bytes; gzip and zstd are read through.
        name: its path; `-` for standard input.
        command_line: the command that imports it, for the metadata.
        mapped: names of events -> kinds, for what has names of the recorder's choosing (`ftrace_dialect.dialect`).

    Raises:
        IntxtraceError: it is nothing that is known here, or a program is missing that it takes to read it.
    """
    peeked = _Peeked(stream)
    for _ in range(3):  # A compressed file may hold a compressed one; more of that is a joke.
        unpacked = _unpacked(peeked)
        if unpacked is None:
            break
        peeked = _Peeked(_Checked(unpacked, name))
    head = peeked.head
    if head.startswith(HEADER):
        return QemuSimple(peeked, name, command_line)
    if head.startswith(_TRACE_DAT):
        return _report(["trace-cmd", "report", "-t", "-R", "-i"], name, "trace.dat", command_line, mapped)
    if head.startswith(_PERF_DATA):
        fields = "comm,pid,tid,cpu,time,event,trace"
        command = ["perf", "script", "--ns", "-F", fields, *_perf_guest_option(), "-i"]
        return _report(command, name, "perf.data", command_line, mapped)
    text = head[: head.rfind(b"\n") + 1] or head
    if looks_like_ftrace(text):
        return FtraceText(peeked, name, command_line, mapped)
    if looks_like_bpftrace(text):
        return FtraceText(AsFtrace(peeked), name, command_line, mapped, "bpftrace output")
    if looks_like_qemu_log(text):
        return QemuLog(peeked, name, command_line)
    raise IntxtraceError(
        f"{name} is no recording that intxtrace knows; see `intxtrace import --help` for those it does"
    )


def _unpacked(peeked: _Peeked) -> Readable | None:
    """Return what is in a compressed stream; None if it is not one."""
    if peeked.head.startswith(_GZIP):
        return gzip.GzipFile(fileobj=peeked)
    if peeked.head.startswith(_ZSTD):
        return pa.CompressedInputStream(pa.PythonFile(peeked, mode="r"), "zstd")  # type: ignore[no-any-return]
    return None


class _Peeked(io.RawIOBase):
    """A stream whose first bytes were looked at."""

    def __init__(self, stream: Readable) -> None:
        parts, size = [], 0
        while size < PEEK and (part := stream.read(PEEK - size)):
            parts.append(part)
            size += len(part)
        self.head = b"".join(parts)
        self._at = 0
        self._stream = stream

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
        data = self.read(len(buffer))
        buffer[: len(data)] = data
        return len(data)

    def read(self, size: int = PEEK, /) -> bytes:
        if self._at < len(self.head):
            part = self.head[self._at : self._at + size]
            self._at += len(part)
            return part
        return self._stream.read(size)


class _Checked:
    """What is in a compressed stream; damage is a sentence."""

    def __init__(self, stream: Readable, name: str) -> None:
        self._stream = stream
        self._name = name

    def read(self, size: int, /) -> bytes:
        try:
            return self._stream.read(size)
        except (EOFError, OSError, zlib.error, lzma.LZMAError, pa.ArrowException) as error:
            what = " ".join(str(error).split())[:200]
            raise IntxtraceError(f"{self._name} cannot be decompressed ({what}); record or copy it anew") from None


def _report(
    command: list[str], name: str, what: str, command_line: list[str] | None, mapped: dict[str, str] | None
) -> FtraceText:
    """Read a binary recording as the text that the program prints that made it."""
    program = shutil.which(command[0])
    if program is None:
        raise IntxtraceError(
            f"{name} is a {what}, which {command[0]} reads, and that is not installed: install it, or import the text "
            f"that `{' '.join(command[:2])}` prints where it is"
        )
    if name == "-":
        raise IntxtraceError(
            f"a {what} cannot come from standard input, because {command[0]} reads files: name the file"
        )
    return FtraceText(
        _Printed([program, *command[1:], str(Path(name).absolute())], name), name, command_line, mapped, what
    )


def _perf_guest_option() -> list[str]:
    """Return the option without which perf script leaves out what happens while a vCPU is loaded.

    Such a sample has the cpumode of a guest (perf_misc_flags, arch/x86/events/core.c), though it is the host's, and
    thread__find_map filters those where no option for guests is given (tools/perf/util/event.c, cmd_script).
    """
    option = ["--guestkallsyms", "/dev/null"]
    if shutil.which("perf") is None:
        return option
    said = subprocess.run(["perf", "script", "-h"], stdin=subprocess.DEVNULL, capture_output=True, check=False)
    return option if option[0].encode() in said.stdout + said.stderr else []


class _Printed:
    """What a program prints, which ends with whoever reads it: on a damaged file it may hang, or want all memory."""

    def __init__(self, command: list[str], name: str) -> None:
        self._name = name
        self._command = command
        self._process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, bufsize=0
        )
        self._end = weakref.finalize(self, _end, self._process)
        with suppress(ProcessLookupError):
            resource.prlimit(self._process.pid, resource.RLIMIT_DATA, (HEAP, HEAP))

    def read(self, size: int, /) -> bytes:
        parts = []
        while size and (part := self._part(size)):
            parts.append(part)
            size -= len(part)
        return b"".join(parts)

    def _part(self, size: int) -> bytes:
        """Return what is there to read, or wait for some; nothing at the end."""
        stdout = self._process.stdout
        assert stdout is not None
        program = Path(self._command[0]).name
        look = f"see what `{program} {self._command[1]} -i {self._name}` says"
        if stdout.closed:
            return b""
        if not select.select([stdout], [], [], SILENCE)[0]:
            self._end()
            raise IntxtraceError(
                f"{program} has printed nothing of {self._name} for {SILENCE} s; the file may be damaged: {look}"
            )
        data: bytes = stdout.read(size)
        if not data:
            stdout.close()
            try:
                status = self._process.wait(SILENCE)
            except subprocess.TimeoutExpired:
                self._end()
                status = self._process.returncode
            if status != 0:
                raise IntxtraceError(f"{program} cannot read {self._name} (exit status {status}): {look}")
        return data


def _end(process: subprocess.Popen[bytes]) -> None:
    process.kill()
    if process.stdout is not None:
        process.stdout.close()
    process.wait()
