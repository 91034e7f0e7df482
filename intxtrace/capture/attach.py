"""Programs attached in the kernel, each by its method: what holds them to their place, and how they are let go."""

from __future__ import annotations

import contextlib
import ctypes as ct
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from intxtrace.capture import kernel
from intxtrace.capture.bcc_import import import_bcc


@dataclass
class Attached:
    """A program in the kernel, and what holds it to its place."""

    program: int
    """File descriptor."""
    method: str
    """`fentry`, `fexit`, `kprobe`, `kretprobe`, `raw_tracepoint`, `uprobe`."""
    target: str
    """Function or tracepoint; of a uprobe the first bytes of the function, as hexadecimal digits."""
    link: int = -1
    """File descriptor."""
    event: str = ""
    """Name of the perf event of a kprobe or uprobe."""

    def detach(self) -> None:
        """Detach and unload the program."""
        if self.event:
            _remove(self.link, self.event)
        elif self.link >= 0:
            os.close(self.link)
        os.close(self.program)


def _remove(link: int, event: str) -> None:
    lib = import_bcc().lib
    if link >= 0:
        lib.bpf_close_perf_event_fd(link)
    # Where perf_event_open refuses a probe, bcc makes a named event in tracefs.
    for file, remove in (("kprobe_events", lib.bpf_detach_kprobe), ("uprobe_events", lib.bpf_detach_uprobe)):
        with contextlib.suppress(OSError):
            if event in (Path("/sys/kernel/tracing") / file).read_text():
                remove(event.encode())


def to_tracepoint(code: bytes, name: str, target: str) -> Attached:
    """Attach a program called `name` to a raw tracepoint.

    Raises:
        OSError: the kernel takes no such program, or has no such tracepoint.
    """
    held = Attached(kernel.load_program(code, name, kernel.PROG_RAW_TRACEPOINT), "raw_tracepoint", target)
    with _or_detach(held):
        held.link = kernel.open_raw_tracepoint(held.program, target)
    return held


def to_function(code: bytes, name: str, target: str, method: str, btf_id: int, btf_fd: int = 0) -> Attached:
    """Attach a program to a kernel function by `fentry` or `fexit`.

    Args:
        code: the program.
        name: its name.
        target: the function.
        method: `fentry` or `fexit`.
        btf_id: the function's type.
        btf_fd: the BTF of the function's module; 0: the kernel itself.

    Raises:
        OSError: the kernel takes no such program, or not there.
    """
    kind = kernel.ATTACH_FENTRY if method == "fentry" else kernel.ATTACH_FEXIT
    held = Attached(kernel.load_program(code, name, kernel.PROG_TRACING, kind, btf_id, btf_fd), method, target)
    with _or_detach(held):
        held.link = kernel.open_raw_tracepoint(held.program)
    return held


def to_kprobe(code: bytes, name: str, target: str, method: str, module: str = "") -> Attached:
    """Attach a program to a kernel function by `kprobe` or `kretprobe`.

    Raises:
        OSError: the kernel takes no such program, or no probe there.
    """
    held = Attached(kernel.load_program(code, name, kernel.PROG_KPROBE), method, target)
    held.event = f"intxtrace_{name}_{os.getpid()}"
    with _or_detach(held):
        # Some Ubuntu kernels call a module's symbol ambiguous unless its module is named with it.
        for place in (target, f"{module}:{target}") if module else (target,):
            held.link = int(
                import_bcc().lib.bpf_attach_kprobe(
                    held.program, int(method == "kretprobe"), held.event.encode(), place.encode(), 0, 0
                )
            )
            if held.link >= 0:
                return held
        raise _refused()


def to_uprobe(code: bytes, name: str, path: Path, offset: int, pid: int = -1) -> Attached:
    """Attach a program to the instruction at an offset of a file, in one process or (-1) in all.

    Raises:
        OSError: the kernel takes no such program, or no probe there.
    """
    with path.open("rb") as file:
        file.seek(offset)
        begin = file.read(4).hex()
    held = Attached(kernel.load_program(code, name, kernel.PROG_KPROBE), "uprobe", begin)
    held.event = f"intxtrace_{name}_{os.getpid()}"
    with _or_detach(held):
        held.link = int(
            import_bcc().lib.bpf_attach_uprobe(held.program, 0, held.event.encode(), os.fsencode(path), offset, pid, 0)
        )
        if held.link < 0:
            raise _refused()
    return held


@contextlib.contextmanager
def _or_detach(held: Attached) -> Iterator[None]:
    try:
        yield
    except BaseException:
        held.detach()
        raise


def _refused() -> OSError:
    code = ct.get_errno()
    return OSError(code, os.strerror(code) if code else "cannot be attached")
