"""What the commands share that watch this host: how their options are read, and what they refuse."""

from __future__ import annotations

import re
import sys
from functools import partial
from typing import TYPE_CHECKING

from intxtrace.errors import IntxtraceError

if TYPE_CHECKING:
    from collections.abc import Callable

    from intxtrace.capture.session import Session

_SIZES = {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30}
BAR_MODES = ("count", "all", "none")


def session_maker(
    vms: list[str], pids: list[int], devices: list[str], bar: str, ring_size: str
) -> Callable[..., Session]:
    """Check the options, and that this is root; return what makes the session (it takes `wait` and `say`).

    Raises:
        IntxtraceError: an option cannot be understood, or this is not root.
    """
    ring_bytes = _ring_bytes(ring_size)
    addresses = _addresses(devices)
    if bar not in BAR_MODES:
        raise IntxtraceError(f"--bar takes count, all or none, not {bar!r}")

    from intxtrace.capture.session import Selection, Session, require_root

    require_root()
    selection = Selection(addresses, frozenset(vms), frozenset(pids))
    return partial(Session, selection, bar=bar, ring_bytes=ring_bytes)


def prepare() -> None:
    """Load the compiled reconstructor, or compile it, before the first event comes.

    Interpreted, an event takes a hundred times as long: 100,000 a second would take more than half of a core. And to
    load it later, in the middle of the events, would make the ring wait.
    """
    from intxtrace.cli.output import note
    from intxtrace.reconstruct import compile

    if sys.stderr.isatty() and not compile.is_kept():
        note("compiling the reconstructor, once for this version: some 10 s")
    compile.prepare()


def parse_size(text: str) -> int | None:
    """Read a number of bytes such as `64K`, `16M` or `1G`; None if it is none."""
    match = re.fullmatch(r"(\d{1,15})([KMG]?)", text.strip(), re.ASCII)
    return int(match[1]) * _SIZES[match[2]] if match else None


def _ring_bytes(text: str) -> int:
    size = parse_size(text) or 0
    if not (1 << 16 <= size <= 1 << 30) or size & (size - 1):
        raise IntxtraceError(f"--ring-size takes a power of two from 64K to 1G, not {text!r}")
    return size


def _addresses(devices: list[str]) -> frozenset[str]:
    from intxtrace.events import format_address, parse_address

    try:
        return frozenset(format_address(parse_address(bdf)) for bdf in devices)
    except ValueError as error:
        raise IntxtraceError(f"--device: {error}") from error
