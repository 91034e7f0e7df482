"""What being watched costs on this host (`Probe.attach_ns`), by each mechanism, measured at the start.

It is what a call of a function takes longer because a program that does nothing is attached to it. The function is one
that nobody else calls: setitimer(2), with a timer that is not in use, for the kernel's mechanisms, and for uprobes a
few bytes of code that only this process has. Calls are timed in batches; the quickest batch with the program is held
against the quickest without, as whatever disturbs a batch can only lengthen it, and in CPU time, so that other
processes do not count. The caller's own cost is in both and cancels. A program that did not run when the kernel
counted its runs has no cost: what cannot be measured is None, never 0.

A uprobe costs what the first instruction of its function makes it cost: the kernel emulates a push
(push_setup_xol_ops, arch/x86/kernel/uprobes.c), and single-steps others with two more exceptions, at many times the
price. So the code that is timed begins as the probed function does.
"""

from __future__ import annotations

import contextlib
import ctypes as ct
import errno
import itertools
import mmap
import os
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from intxtrace.capture import attach, kernel
from intxtrace.capture.attach import Attached

if TYPE_CHECKING:
    from intxtrace.capture.btf import Function

_Call = Callable[[], None]

RETURN_0 = bytes([0xB7, 0, 0, 0, 0, 0, 0, 0, 0x95, 0, 0, 0, 0, 0, 0, 0])
"""A BPF program: r0 = 0; exit."""


_TRACEPOINT = "itimer_state"
"""timer:itimer_state, hit by every setitimer(2) (kernel/time/itimer.c)."""

_SLOT = 64
"""Bytes for each body of code: they share no cache line."""

_CALLS = 100
"""A batch, at most …"""
_BATCH_NS = 200_000
"""… and about so long, or a single call: of many short batches some are left alone, however busy the host."""
_LEAST, _ENOUGH = 3, 100
"""Batches without, with and again without the probe …"""
_PHASE_NS, _LONG_PHASE_NS = 5_000_000, 25_000_000
"""… for so long; for longer while there are not enough: emulated machines are slow."""

_PUSHES = (*(f"{byte:02x}" for byte in range(0x50, 0x58)), *(f"41{byte:02x}" for byte in range(0x50, 0x58)))
_CODE = (
    # What a function begins with (x86-64, hexadecimal): code that begins so, or costs the same, and does nothing.
    (_PUSHES, bytes.fromhex("53 5b c3")),  # push %rbx; pop %rbx; ret
    (("f30f1efa",), bytes.fromhex("f3 0f 1e fa c3")),  # endbr64; ret
    (("",), bytes.fromhex("89 f8 c3")),  # anything else: mov %edi,%eax; ret
)


def setitimer() -> str:
    """Name the kernel's function behind setitimer(2) (SYSCALL_DEFINE3, arch/*/include/asm/syscall_wrapper.h)."""
    return f"__{'arm64' if os.uname().machine == 'aarch64' else 'x64'}_sys_setitimer"


class Calibration:
    """Measures what mechanisms cost, each once. Use as a context manager, or call `close`."""

    def __init__(self, function: Function | None) -> None:
        """Measure nothing yet; `function` is the kernel's type of `setitimer()`, None where it has none."""
        self._function = function
        self.spent_ns = 0
        """Wall time of all measurements."""
        self._known: dict[tuple[str, ...], int | None] = {}
        self._own: _OwnCode | None = None

    def __enter__(self) -> Calibration:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Let go of what is still attached, to code of this process alone.

        The kernel takes a tenth of a second to take a uprobe out, which is why it is done here, after the recording.
        """
        if self._own is not None:
            self._own.close()
            self._own = None

    def cost(self, programs: list[Attached]) -> int | None:
        """Return what these programs of a probe cost a call of what they watch, in ns, or None if that is not known."""
        at: dict[str, list[str]] = {}
        for one in programs:
            at.setdefault(one.target, []).append(one.method)
        costs = []
        for target, methods in at.items():
            # Entry and return of one function share a trampoline, so they are measured together.
            costs.append(self._measured((*methods, *([_body(target).hex()] if methods[0] == "uprobe" else []))))
        known = [cost for cost in costs if cost is not None]
        return sum(known) if known and len(known) == len(costs) else None

    def _measured(self, key: tuple[str, ...]) -> int | None:
        if key not in self._known:
            begun = time.monotonic_ns()
            with contextlib.suppress(OSError):
                if key[0] == "uprobe":
                    self._known[key] = self._of_uprobe(bytes.fromhex(key[1]))
                else:  # a second time where the host was too busy to tell
                    self._known[key] = _of_kernel(key, self._function) or _of_kernel(key, self._function)
            self._known.setdefault(key, None)
            self.spent_ns += time.monotonic_ns() - begun
        return self._known[key]

    def _of_uprobe(self, body: bytes) -> int | None:
        if os.uname().machine != "x86_64":
            return None
        if self._own is None:
            self._own = _OwnCode()
        probed, plain, held = self._own.probe(body)
        if not _ran(probed, [held]):
            return None
        calls = _batch_size(probed)
        before = _batches(plain, calls)
        return _difference(_batches(probed, calls), before + _batches(plain, calls), calls)


def _body(begin: str) -> bytes:
    """Choose the code to time for a function that begins with these bytes."""
    return next(code for begins, code in _CODE if begin.startswith(begins))


class _OwnCode:
    """A page of code that is in no file and in no other process, and the uprobes in it."""

    def __init__(self) -> None:
        """Map the page.

        Raises:
            OSError: this host lets no process do so.
        """
        self._held: list[Attached] = []
        code = b"".join(body.ljust(_SLOT, b"\x90") * 2 for _, body in _CODE)
        self._fd = os.memfd_create("intxtrace-calibration")
        self.path = Path(f"/proc/self/fd/{self._fd}")
        try:
            os.write(self._fd, code.ljust(mmap.PAGESIZE, b"\x90"))
            # Uprobes are put into private mappings alone (valid_vma, kernel/events/uprobes.c).
            self._page = mmap.mmap(self._fd, mmap.PAGESIZE, mmap.MAP_PRIVATE, mmap.PROT_READ | mmap.PROT_EXEC)
        except OSError:
            os.close(self._fd)
            raise

    def probe(self, body: bytes) -> tuple[_Call, _Call, Attached]:
        """Attach an empty program to a body; return calls of it and of its twin without probe, and what was attached.

        Raises:
            OSError: the kernel takes no uprobe here.
        """
        offset = 2 * _SLOT * [code for _, code in _CODE].index(body)
        held = attach.to_uprobe(RETURN_0, f"calibration{offset}", self.path, offset, os.getpid())
        self._held.append(held)
        address = int(np.frombuffer(self._page, np.uint8).ctypes.data) + offset
        function = ct.CFUNCTYPE(None)
        return function(address), function(address + _SLOT), held

    def close(self) -> None:
        while self._held:
            self._held.pop().detach()
        self._page.close()
        os.close(self._fd)


def _of_kernel(methods: tuple[str, ...], function: Function | None) -> int | None:
    """Measure a function of the kernel with empty programs attached by all of these methods, and without.

    Raises:
        OSError: the kernel takes no such program.
    """
    if signal.getitimer(signal.ITIMER_VIRTUAL) != (0.0, 0.0):
        return None  # somebody's timer: it must not be touched
    calls = _batch_size(_set_no_timer)
    plain = _batches(_set_no_timer, calls)
    with contextlib.ExitStack() as until_measured:
        held = []
        for method in methods:
            one = _attach(method, function)
            until_measured.callback(one.detach)
            held.append(one)
        probed = _batches(_set_no_timer, calls)
        ran = _ran(_set_no_timer, held)
    return _difference(probed, plain + _batches(_set_no_timer, calls), calls) if ran else None


def _attach(method: str, function: Function | None) -> Attached:
    if method == "raw_tracepoint":
        return attach.to_tracepoint(RETURN_0, "calibration", _TRACEPOINT)
    if method in ("kprobe", "kretprobe"):
        return attach.to_kprobe(RETURN_0, f"calibration_{method}", setitimer(), method)
    if function is None:
        raise OSError(errno.ENOENT, f"the kernel has no type information of {setitimer()}")
    return attach.to_function(RETURN_0, "calibration", function.name, method, function.id)


def _set_no_timer() -> None:
    signal.setitimer(signal.ITIMER_VIRTUAL, 0.0)


def _batch(call: _Call, calls: int) -> int:
    """Time so many calls, in ns of this thread's CPU time."""
    begun = time.thread_time_ns()
    for _ in itertools.repeat(None, calls):
        call()
    return time.thread_time_ns() - begun


def _batch_size(call: _Call) -> int:
    return min(max(_BATCH_NS // max(min(_batch(call, 1) for _ in range(_LEAST)), 1), 1), _CALLS)


def _batches(call: _Call, calls: int) -> list[int]:
    times: list[int] = []
    begun = now = time.monotonic_ns()
    while len(times) < _LEAST or now - begun < (_PHASE_NS if len(times) >= _ENOUGH else _LONG_PHASE_NS):
        times.append(_batch(call, calls))
        now = time.monotonic_ns()
    return times


def _difference(probed: list[int], plain: list[int], calls: int) -> int | None:
    """Return what the probe adds to a call, in ns; None if it is nothing: too little for the clock of this host."""
    cost = round((min(probed) - min(plain)) / calls)
    return cost if cost > 0 else None


def _ran(call: _Call, held: list[Attached]) -> bool:
    """Whether each program runs when the call is made: Debian's 6.12 attaches some that never do."""
    with counting_runs():
        before = [kernel.program_info(one.program).runs for one in held]
        for _ in range(_CALLS):
            call()
        return all(
            kernel.program_info(one.program).runs - count >= _CALLS for one, count in zip(held, before, strict=True)
        )


@contextlib.contextmanager
def counting_runs() -> Iterator[None]:
    """Let the kernel count the runs of every BPF program for as long as the block runs.

    Raises:
        OSError: it does not.
    """
    fd = kernel.enable_statistics()
    try:
        yield
    finally:
        os.close(fd)
