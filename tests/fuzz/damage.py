"""Damage to bytes, and what reading them may take at most."""

from __future__ import annotations

import random
import resource
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

SECONDS = 10.0
"""Of processor time that one input may take: a thousand times what any does."""
MEMORY = 64 << 20
"""Bytes that reading one input may add to what is resident: those of a few kB need a few MB."""
PROGRAMS = 512 << 20
"""Bytes that were resident at most of any program that it started."""
ADDRESSES = 4 << 30
"""Bytes that it may add to the address space: what asks for more gets a MemoryError, before the machine suffers."""


class Beyond(BaseException):
    """An input takes too long, or too much memory; no `except` of an importer's is meant to catch it."""


TOKENS = (
    *(
        b"\n",
        b" ",
        b":",
        b"=",
        b'"',
        b"}",
        b"\0",
        b"\xff",
        b"-1",
        b"0x",
        b"nan",
        b"null",
        b"1e999",
        b"\\ud800",
        b"\\u0000",
    ),
    *(b"4294967296", b"9223372036854775808", b"18446744073709551616", b"99999999999999999999", b"0xffffffffffffffff"),
)
"""What readers of text may trip over."""


def damage(data: bytes, dice: random.Random) -> bytes:
    """Flip, overwrite, cut out, repeat or drop some bytes, or put in others."""
    changed = bytearray(data)
    for _ in range(dice.randint(1, 8)):
        at = dice.randrange(len(changed))
        match dice.randrange(6):
            case 0:
                changed[at] ^= 1 << dice.randrange(8)
            case 1:
                changed[at : at + 8] = dice.choice([b"\xff" * 8, b"\0" * 8, (1 << 40).to_bytes(8, "little")])
            case 2:
                del changed[at : at + dice.randint(1, 64)]
            case 3:
                changed[at:at] = changed[at : at + dice.randint(1, 512)]
            case 4:
                del changed[at:]
            case 5:
                changed[at:at] = dice.choice(TOKENS)
        if not changed:
            return bytes(changed)
    return bytes(changed)


@contextmanager
def bounded() -> Iterator[None]:
    """Bound what is done within.

    Raises:
        Beyond: it takes more than `SECONDS` of processor time, or than `MEMORY` or `PROGRAMS`.
    """

    def ring(*_: object) -> None:
        raise Beyond(f"more than {SECONDS} s of processor time")

    Path("/proc/self/clear_refs").write_text("5")  # The peak begins anew (proc_pid_clear_refs(5)).
    programs_before = _most_of_a_program()
    pages, before = map(int, Path("/proc/self/statm").read_text().split()[:2])
    limits = resource.getrlimit(resource.RLIMIT_AS)
    handler = signal.signal(signal.SIGPROF, ring)
    signal.setitimer(signal.ITIMER_PROF, SECONDS)
    resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + ADDRESSES, limits[1]))
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.signal(signal.SIGPROF, handler)
        resource.setrlimit(resource.RLIMIT_AS, limits)
        peak = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
        most = int(peak.split()[1]) * 1024
        taken = most - before * resource.getpagesize()
        programs = _most_of_a_program()
        # Of a program, what it was before its execve() counts too (exec_mmap, fs/exec.c): this process, about.
        if programs > max(PROGRAMS, programs_before, most + MEMORY):
            raise Beyond(f"{programs >> 20} MB were resident of a program")
        if taken > MEMORY:
            raise Beyond(f"{taken >> 20} MB more than before were resident")  # Whatever else it ended with.


def _most_of_a_program() -> int:
    """Bytes that were resident at most of any program that this process has ever started: a browser, say."""
    return resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024
