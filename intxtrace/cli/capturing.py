"""What the commands share that watch this host: how their options are read, and what they refuse."""

from __future__ import annotations

import re
import sys
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Annotated

import typer

from intxtrace.cli.completion import among, pids
from intxtrace.cli.options import Devices, Vms, shared
from intxtrace.errors import IntxtraceError

if TYPE_CHECKING:
    from collections.abc import Callable

    from intxtrace.capture.session import Session

_SIZES = {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30}
BAR_MODES = ("count", "all", "none")


@dataclass(frozen=True)
class Capture:
    """The options of a capture as they were written on the command line."""

    vm: list[str]
    pid: list[int]
    device: list[str]
    bar: str
    ring_size: str
    wait: bool

    @property
    def chosen(self) -> bool:
        """Whether something was chosen, and not everything is watched."""
        return bool(self.vm or self.pid or self.device)

    def session_maker(self, *, wait: bool) -> Callable[..., Session]:
        """Check the options, and that this is root; return what makes the session (it takes `say`).

        Args:
            wait: what is to be watched need not run yet.

        Raises:
            IntxtraceError: an option cannot be understood, or this is not root.
        """
        ring_bytes = _ring_bytes(self.ring_size)
        addresses = _addresses(self.device)
        if self.bar not in BAR_MODES:
            raise IntxtraceError(f"--bar takes {', '.join(BAR_MODES[:-1])} or {BAR_MODES[-1]}, not {self.bar!r}")

        from intxtrace.capture.session import Selection, Session, require_root

        require_root()
        selection = Selection(addresses, *self._vms(wait))
        return partial(Session, selection, bar=self.bar, ring_bytes=ring_bytes, wait=wait)

    def _vms(self, wait: bool) -> tuple[frozenset[str], frozenset[int]]:
        """Tell names from pids: digits are a pid, but for the name of a VM that runs, or may yet come."""
        from intxtrace.capture import host

        running = host.processes() if any(map(str.isdecimal, self.vm)) else []
        named, known = {one.name for one in running}, {str(one.pid) for one in running}
        digits = {text for text in self.vm if text.isdecimal() and text not in named}
        pids = digits & known if wait else digits
        return frozenset({*self.vm} - pids), frozenset({*self.pid, *map(int, pids)})


def _options(
    vm: Vms = [],  # noqa: B006
    pid: Annotated[
        list[int],
        typer.Option(
            "--pid",
            metavar="PID",
            help="Only the VM of this process (may be repeated).",
            show_default=False,
            autocompletion=pids,
        ),
    ] = [],  # noqa: B006
    device: Devices = [],  # noqa: B006
    bar: Annotated[
        str,
        typer.Option(
            metavar="HOW",
            help="Trapped BAR accesses: count them in the kernel, record all of them, or none.",
            autocompletion=among(*BAR_MODES),
        ),
    ] = BAR_MODES[0],
    ring_size: Annotated[
        str,
        typer.Option(
            metavar="SIZE", help="Size of the ring between kernel and recorder, a power of two from 64K to 1G."
        ),
    ] = "16M",
    wait: Annotated[bool, typer.Option("--wait", help="Also when no such VM runs yet: wait for it.")] = False,
) -> None:
    """Declare the options, for `with_capture`."""


with_capture = shared(_options, Capture, "capture")
"""Gives a command the options of what is watched: its parameter `capture` becomes the options of `Capture`."""


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
