"""The filters that every command shares which reads a trace: options, meaning, application."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal
from typing import TYPE_CHECKING, Annotated, Any

import typer

from intxtrace.cli.completion import among
from intxtrace.cli.options import Devices, Vms, shared
from intxtrace.errors import IntxtraceError
from intxtrace.frames import ORIGINS, OUTCOMES, PATHS, STAGES

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt
    import pandas as pd

    from intxtrace.trace.metadata import Metadata
    from intxtrace.trace.tables import Tables

_UNITS = {"ns": 1, "us": 10**3, "µs": 10**3, "μs": 10**3, "ms": 10**6, "s": 10**9, "min": 60 * 10**9, "h": 3600 * 10**9}
_DURATION = re.compile(r"(\d{1,19}(?:\.\d{1,19})?) ?(ns|us|µs|μs|ms|s|min|h)?", re.ASCII)
_WINDOW_NS = 10**9  # of frames.COUNTERS


@dataclass(frozen=True)
class Filters:
    """Which rows are wanted. Empty or None: all of them."""

    devices: tuple[str, ...] = ()
    """PCI addresses."""
    vms: tuple[str, ...] | None = None
    """Names of VMs, those of `pids` left out."""
    pids: tuple[int, ...] = ()
    """Processes of VMs …"""
    pid_names: tuple[str, ...] = ()
    """… and their names, for frames that have no `vm_pid`."""
    paths: tuple[str, ...] = ()
    origins: tuple[str, ...] = ()
    outcomes: tuple[str, ...] = ()
    begin_at: int | None = None
    """Instants of the trace's clock: rows from this one on …"""
    end_at: int | None = None
    """… to before this one."""
    min_ns: int | None = None
    """Least masked time."""

    def apply(self, frame: pd.DataFrame) -> pd.DataFrame:
        """Keep the rows of an interrupts, states or counters frame that are wanted.

        A filter on a column that the frame does not have leaves it as it is. An interrupt's instant is the first of
        its stages that is known; a state and a counter window stay if any part of them is in the wanted time.
        """
        keep = []
        for column, wanted in (
            ("bdf", self.devices),
            ("path", self.paths),
            ("origin", self.origins),
            ("outcome", self.outcomes),
        ):
            if wanted and column in frame:
                keep.append(frame[column].isin(wanted))
        if self.vms is not None or self.pids:
            names = frame["vm"].isin(self.vms or ())
            pids = frame["vm_pid"].isin(self.pids) if "vm_pid" in frame else frame["vm"].isin(self.pid_names)
            keep.append(names | pids)
        if self.begin_at is not None or self.end_at is not None:
            first, last = _span(frame)
            if self.begin_at is not None:
                keep.append(last.ge(self.begin_at).fillna(False))
            if self.end_at is not None:
                keep.append(first.lt(self.end_at).fillna(False))
        if self.min_ns is not None and "masked_ns" in frame:
            keep.append(frame["masked_ns"].ge(self.min_ns).fillna(False))
        for mask in keep:
            frame = frame[mask.reindex(frame.index).astype(bool)]
        return frame

    def cut(self, events: npt.NDArray[np.void]) -> npt.NDArray[np.void]:
        """Keep the events (dtype `events.RECORD`) of the wanted time; nothing else can be told of a single event."""
        if self.begin_at is not None:
            events = events[events["ts"] >= max(self.begin_at, 0)]
        if self.end_at is not None:
            events = events[events["ts"] < max(self.end_at, 0)]
        return events

    def clip(self, first: int | None, last: int | None) -> tuple[int | None, int | None]:
        """Narrow a trace's first and last instant to the wanted time."""
        if first is None or last is None:
            return None, None
        begin = first if self.begin_at is None else min(max(first, self.begin_at), last)
        return begin, last if self.end_at is None else max(min(last, self.end_at), begin)

    def select(self, tables: Tables) -> Tables:
        """Keep the devices and VMs of the tables that are wanted; probes stay."""
        from intxtrace.trace.tables import Tables

        by_vm = self.vms is not None or bool(self.pids)
        vms = [vm for vm in tables.vms if not by_vm or vm.name in (self.vms or ()) or vm.pid in self.pids]
        devices = [
            device
            for device in tables.devices
            if (not self.devices or device.bdf in self.devices)
            and (not by_vm or any(device.vm_pid == vm.pid or device.bdf in vm.devices for vm in vms))
        ]
        return Tables(tables.probes, vms, devices)


def _span(frame: pd.DataFrame) -> tuple[pd.Series[Any], pd.Series[Any]]:
    """The first and last instant of each row."""
    if "end_at" in frame:
        # A state that ends where the wanted time begins has no part in it; one that lasts has no end.
        return frame["begin_at"], (frame["end_at"] - 1).fillna((1 << 63) - 1)
    if "begin_at" in frame:
        return frame["begin_at"], frame["begin_at"] + (_WINDOW_NS - 1)
    instant = first_instant(frame)
    return instant, instant


def first_instant(interrupts: pd.DataFrame) -> pd.Series[Any]:
    """The first of its stages that is known of each interrupt."""
    instant = interrupts[STAGES[0]]
    for stage in STAGES[1:]:
        instant = instant.fillna(interrupts[stage])
    return instant


def parse_duration(text: str, option: str) -> int:
    """Read a duration such as `2ms`, `1.5s` or `250us` in ns; a number alone is seconds.

    Raises:
        IntxtraceError: it is none.
    """
    match = _DURATION.fullmatch(text.strip())
    ns = int(Decimal(match[1]) * _UNITS[match[2] or "s"]) if match else -1
    if not 0 <= ns < 1 << 63:
        raise IntxtraceError(f"{option} {text} is not a duration; write it as 2ms, 250us or 1.5s")
    return ns


def parse_instant(text: str, option: str, metadata: Metadata, trace_begin_at: int | None) -> int:
    """Read an instant in ns of the trace's clock: seconds (or a duration) since the trace's begin, or an ISO time.

    An ISO time without an offset is this machine's local time.

    Raises:
        IntxtraceError: it is none, or the trace's clock cannot tell.
    """
    if metadata.clock == "none":
        raise IntxtraceError(f"the trace has no clock, so {option} cannot be told; leave it out")
    if _DURATION.fullmatch(text.strip()):
        return (trace_begin_at or 0) + parse_duration(text, option)
    try:
        moment = datetime.fromisoformat(text.strip()).astimezone()
    except (ValueError, OverflowError, OSError):
        raise IntxtraceError(
            f"{option} {text} is not an instant; write seconds since the trace's begin, such as 1.5, or an ISO time"
        ) from None
    anchor = metadata.realtime(0)
    if anchor is None:
        raise IntxtraceError(
            f"the trace does not say what time it was, so {option} takes only seconds since its begin; write them"
        )
    since_1970 = moment - datetime.fromisoformat("1970-01-01T00:00:00+00:00")
    return (since_1970.days * 86_400 + since_1970.seconds) * 10**9 + since_1970.microseconds * 1000 - anchor


def _parse_device(text: str, tables: Tables) -> str:
    from intxtrace.events import format_address, parse_address

    try:
        bdf = format_address(parse_address(text))
    except ValueError:
        raise IntxtraceError(f"--device {text} is not a PCI address; write it as 0000:01:00.0") from None
    known = [device.bdf for device in tables.devices]
    if bdf not in known:
        raise IntxtraceError(f"there is no device {bdf} in this trace; {_choice(known, 'devices')}")
    return bdf


def _choice(known: list[str], what: str) -> str:
    if not known:
        return f"it names no {what}, so leave the filter out"
    return f"choose from {', '.join(known[:8])}{', …' if len(known) > 8 else ''}"


def _words(chosen: list[str], option: str, known: tuple[str, ...]) -> tuple[str, ...]:
    for word in chosen:
        if word not in known:
            raise IntxtraceError(f"{option} {word} is not known; {_choice(list(known), option[2:])}")
    return tuple(chosen)


@dataclass(frozen=True)
class Choice:
    """The filter options as they were written on the command line."""

    device: list[str]
    vm: list[str]
    path: list[str]
    origin: list[str]
    outcome: list[str]
    from_: str | None
    to: str | None
    min: str | None

    def resolve(self, metadata: Metadata, tables: Tables, begin_at: Callable[[], int | None]) -> Filters:
        """Turn words into rows, addresses and instants of this trace. `begin_at` gives its first instant.

        Raises:
            IntxtraceError: an option cannot be understood, or names what this trace does not have.
        """
        names, pids = [], []
        for text in self.vm:
            if any(vm.name == text for vm in tables.vms):
                names.append(text)
            elif text.isascii() and text.isdigit() and any(str(vm.pid) == text for vm in tables.vms):
                pids.append(int(text))
            else:
                known = [f"{vm.name} ({vm.pid})" if vm.name else str(vm.pid) for vm in tables.vms]
                raise IntxtraceError(f"there is no VM {text} in this trace; {_choice(known, 'VMs')}")
        if self.min is not None and metadata.clock == "none":
            raise IntxtraceError("the trace has no clock, so --min cannot be told; leave it out")
        first = begin_at() if self.from_ is not None or self.to is not None else None
        return Filters(
            devices=tuple(_parse_device(text, tables) for text in self.device),
            vms=tuple(names) if names else None,
            pids=tuple(pids),
            pid_names=tuple(vm.name for vm in tables.vms if vm.pid in pids),
            paths=_words(self.path, "--path", PATHS),
            origins=_words(self.origin, "--origin", ORIGINS),
            outcomes=_words(self.outcome, "--outcome", OUTCOMES),
            begin_at=None if self.from_ is None else parse_instant(self.from_, "--from", metadata, first),
            end_at=None if self.to is None else parse_instant(self.to, "--to", metadata, first),
            min_ns=None if self.min is None else parse_duration(self.min, "--min"),
        )

    def resolve_times(self, metadata: Metadata, tables: Tables, begin_at: Callable[[], int | None]) -> Filters:
        """Do as `resolve`, for single events.

        Raises:
            IntxtraceError: also a filter that cannot be told of a single event.
        """
        for option in ("device", "vm", "path", "origin", "outcome", "min"):
            if getattr(self, option):
                raise IntxtraceError(f"--{option} cannot be told of single events; leave it out, or export interrupts")
        return self.resolve(metadata, tables, begin_at)


def _one_of(what: str, known: tuple[str, ...]) -> Any:
    return typer.Option(
        f"--{what}",
        metavar=what.upper(),
        help=f"Only this {what}: {', '.join(known)}.",
        show_default=False,
        autocompletion=among(*known),
    )


def _options(
    device: Devices = [],  # noqa: B006
    vm: Vms = [],  # noqa: B006
    path: Annotated[list[str], _one_of("path", PATHS)] = [],  # noqa: B006
    origin: Annotated[list[str], _one_of("origin", ORIGINS)] = [],  # noqa: B006
    outcome: Annotated[list[str], _one_of("outcome", OUTCOMES)] = [],  # noqa: B006
    from_: Annotated[
        str | None,
        typer.Option(
            "--from", metavar="TIME", help="Only from then on: seconds since the trace's begin, or an ISO time."
        ),
    ] = None,
    to: Annotated[str | None, typer.Option("--to", metavar="TIME", help="Only before then, likewise.")] = None,
    min: Annotated[
        str | None,
        typer.Option("--min", metavar="DURATION", help="Only masked at least so long, such as 2ms or 250us."),
    ] = None,
) -> None:
    """Declare the options, for `with_filters`."""


with_filters = shared(_options, Choice, "choice")
"""Gives a command the filter options: its parameter `choice` becomes the options of `Choice`."""
