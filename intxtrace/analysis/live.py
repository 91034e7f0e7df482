"""The model of the live view: events go in batch by batch, what the last seconds showed comes out. No clock, no I/O.

The window is made of ten slices of time. An interrupt belongs to the slice of its first known instant and is counted
once it is closed (see `reconstruct`): one that is still in flight is not in the window yet. What is counted since the
begin is counted as `Analysis` counts it, so that it equals the summary of the same events.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Protocol

import numpy as np

from intxtrace.analysis.bursts import BurstFinder
from intxtrace.analysis.histogram import Histogram
from intxtrace.analysis.live_results import Detail, Key, LiveDevice, LiveFloods, LivePath, LiveView
from intxtrace.analysis.part import counts_of
from intxtrace.analysis.results import Options
from intxtrace.analysis.rows import NULL, by_device, codes, first_known, interrupt_rows, ints, plain
from intxtrace.analysis.tally import COUNTER_EVIDENCE
from intxtrace.frames import ORIGINS, OUTCOMES, PATHS, STAGES
from intxtrace.reconstruct import Reconstructor

if TYPE_CHECKING:
    import pandas as pd

    from intxtrace.analysis.rows import Ints
    from intxtrace.reconstruct import Result
    from intxtrace.reconstruct.state import Events
    from intxtrace.trace.tables import Tables

SLICES = 10
LAST = 20
"""So many of each device's last interrupts are kept."""
DEVICES_SHOWN = 500
"""More devices than any host has: a forged trace may name more."""
BINS_PER_DECADE = 5
_SECOND = 1_000_000_000
"""Counters come in windows of one second."""
_COMPLETE = OUTCOMES.index("complete")
_RESIGNAL = ORIGINS.index("resignal")


class Wanted(Protocol):
    """Which rows of the frames, and of the tables, are wanted."""

    def apply(self, frame: pd.DataFrame) -> pd.DataFrame:
        """Keep the wanted rows of an interrupts, states or counters frame."""

    def select(self, tables: Tables) -> Tables:
        """Keep the wanted devices and VMs."""


@dataclass
class _Slice:
    """One device in one slice of the window."""

    cells: Counter[tuple[int, int, int]] = field(default_factory=Counter)
    masked: dict[int, Histogram] = field(default_factory=dict)
    """By path: of the complete interrupts."""


@dataclass
class _Device:
    """One device in one VM, since the view began."""

    bursts: BurstFinder
    bdf: str | None = None
    vm_pid: int | None = None
    host_irq: int | None = None
    gsi: int | None = None
    cells: Counter[tuple[int, int, int]] = field(default_factory=Counter)
    coalesced: int | None = None
    lost: int = 0
    slices: dict[int, _Slice] = field(default_factory=dict)
    counters: dict[int, Counter[str]] = field(default_factory=dict)
    """By begin of their second."""
    last: deque[pd.DataFrame] = field(default_factory=deque)
    """Frames that hold its last interrupts."""

    def keep_last(self, frame: pd.DataFrame) -> None:
        self.last.append(frame)
        while sum(map(len, self.last)) - len(self.last[0]) >= LAST:
            self.last.popleft()

    def fold(self, other: _Device) -> _Device:
        """Make one that has also the counters of another, which has no interrupts."""
        counters = {begin: Counter(counts) for begin, counts in self.counters.items()}
        for begin, counts in other.counters.items():
            counters.setdefault(begin, Counter()).update(counts)
        return replace(self, counters=counters, lost=self.lost + other.lost, bdf=self.bdf or other.bdf)


class _All:
    def apply(self, frame: pd.DataFrame) -> pd.DataFrame:
        return frame

    def select(self, tables: Tables) -> Tables:
        return tables


class LiveModel:
    """Takes events and gives views.

    Args:
        tables: the tables that the events name; they may grow between calls.
        window_ns: a view shows so much time, and at most a tenth of it more.
        wanted: which rows count; by default all.
        options: what a burst is.
        compile_from: see `Reconstructor`. A view that is to keep up with a busy host wants 0: interpreted, an event
            takes 6 µs, compiled 0.05 µs. Compiling or loading happens at the first event then; `compile.prepare` does
            it before.
    """

    def __init__(
        self,
        tables: Tables,
        *,
        window_ns: int = 10 * _SECOND,
        wanted: Wanted | None = None,
        options: Options | None = None,
        compile_from: int | None = None,
    ) -> None:
        if window_ns < SLICES:
            raise ValueError(f"a window must be at least {SLICES} ns long")
        self._tables = tables
        self._wanted = wanted or _All()
        self._options = options or Options()
        self._reconstructor = Reconstructor(tables, compile_from=compile_from)
        self._window = window_ns
        self._slice = window_ns // SLICES
        self._devices: dict[Key, _Device] = {}
        self._lost_by_nobody = 0
        self._events = 0
        self._first: int | None = None
        self._last: int | None = None
        self._gone: set[int] = set()
        self._finished = False

    @property
    def last_at(self) -> int | None:
        """The latest event."""
        return self._last

    def feed(self, events: Events) -> None:
        """Take a batch of events; see `Reconstructor.take` for what may follow what."""
        if not len(events["ts"]):
            return
        first, last = int(events["ts"].min()), int(events["ts"].max())
        self._first = first if self._first is None else min(first, self._first)
        self._last = last if self._last is None else max(last, self._last)
        self._events += len(events["ts"])
        self._note_vms(events)
        self._reconstructor.take(events)
        self._add(self._reconstructor.closed())

    def finish(self) -> None:
        """Nothing follows: count what is in flight, as a summary of the same events does."""
        if not self._finished:
            self._finished = True
            result = self._reconstructor.finish()
            self._last_states = result.states[result.states["end_at"].isna()]
            self._add(result)

    def _note_vms(self, events: Events) -> None:
        from intxtrace.events import Kind

        of_vm = np.flatnonzero(events["kind"] == Kind.VM)
        for row, here in zip(events["aux"][of_vm].tolist(), events["value"][of_vm].tolist(), strict=True):
            (self._gone.discard if here else self._gone.add)(row)

    def _device(self, key: Key) -> _Device:
        if key not in self._devices:
            self._devices[key] = self._new_device()
        return self._devices[key]

    def _add(self, result: Result) -> None:
        interrupts, counters = self._wanted.apply(result.interrupts), self._wanted.apply(result.counters)
        if len(interrupts):
            self._add_interrupts(interrupts)
        if len(counters):
            self._add_counters(counters)

    def _add_interrupts(self, frame: pd.DataFrame) -> None:
        stages = np.stack([ints(frame[stage]) for stage in STAGES])
        instants = stages[np.argmax(stages != NULL, axis=0), np.arange(len(frame))]
        path, origin = codes(frame["path"], PATHS), codes(frame["origin"], ORIGINS)
        outcome, coalesced = codes(frame["outcome"], OUTCOMES), ints(frame["coalesced"])
        masked = np.where(outcome == _COMPLETE, ints(frame["masked_ns"]), NULL)
        groups = list(by_device(frame))
        lasts = np.concatenate([rows[-LAST:] for _, rows in groups])
        kept, begin = frame.iloc[lasts], 0
        for key, rows in groups:
            device = self._device(key)
            for name in ("bdf", "vm_pid", "host_irq", "gsi"):
                if getattr(device, name) is None:
                    setattr(device, name, first_known(frame[name].iloc[rows]))
            device.keep_last(kept.iloc[begin : begin + len(rows[-LAST:])])
            begin += len(rows[-LAST:])
            device.cells.update(_cells(path[rows], origin[rows], outcome[rows]))
            known = coalesced[rows]
            if (known != NULL).any():
                device.coalesced = (device.coalesced or 0) + int((known == 1).sum())
            rows = rows[instants[rows] != NULL]
            device.bursts.add(instants[rows])
            slices = instants[rows] // self._slice
            for number in np.unique(slices).tolist():
                here = rows[slices == number]
                self._fill(device, number, path[here], origin[here], outcome[here], masked[here])

    def _fill(self, device: _Device, number: int, path: Ints, origin: Ints, outcome: Ints, masked: Ints) -> None:
        if self._last is not None and number < (self._last - self._window) // self._slice:
            return  # Closed so late that no window will show it.
        part = device.slices.setdefault(number, _Slice())
        part.cells.update(_cells(path, origin, outcome))
        for code in np.unique(path).tolist():
            values = masked[path == code]
            part.masked.setdefault(code, Histogram()).add(values[values >= 0])

    def _add_counters(self, frame: pd.DataFrame) -> None:
        for key, begin, counter, offset, number in _counter_rows(frame):
            if key == (None, None) and counter == "lost":
                self._lost_by_nobody += number
                continue
            device = self._device(key)
            device.bdf = device.bdf or first_known(frame["bdf"][frame["device"] == key[0]])
            if counter == "lost":
                device.lost += number
            device.counters.setdefault(begin, Counter())[_name(counter, offset)] += number

    # ---- views

    def view(self, now: int | None = None) -> LiveView:
        """Give what is to be seen at an instant of the trace's clock, by default at the last event.

        Views follow each other in time: what is too old for one is forgotten.
        """
        at = self._last if now is None else now
        begin = None
        if at is not None and self._first is not None:
            at = max(at, self._first)
            oldest = (at - self._window) // self._slice
            begin = max(oldest * self._slice, self._first)
            for device in self._devices.values():
                device.slices = {n: part for n, part in device.slices.items() if n >= oldest}
                device.counters = {b: counts for b, counts in device.counters.items() if b + _SECOND > begin}
        devices, states, nobodys = self._with_present()
        tables = self._wanted.select(self._tables)
        self._add_silent(tables, devices)
        recorded = {kind for probe in self._tables.probes if probe.state != "missing" for kind in probe.kinds}
        made, details = [], {}
        for key, device in devices.items():
            whole = _merged(h for part in device.slices.values() for h in part.masked.values())
            made.append(self._live(key, device, states.get(key), whole, begin, at, recorded))
            details[key] = _Detail(made[-1], whole, tuple(device.last))
        made.sort(key=lambda one: (-(one.rate or 0.0), one.vm or "", one.bdf or "", one.device or -1))
        shown = made[:DEVICES_SHOWN]
        return LiveView(
            begin_at=begin,
            end_at=at,
            events=self._events,
            interrupts=sum(one.total.total for one in made),
            lost=self._lost_by_nobody + nobodys + sum(one.lost for one in made),
            vms=tuple(vm.name for vm in tables.vms if vm.id not in self._gone),
            devices=tuple(shown),
            more_devices=len(made) - len(shown),
            details=details,
        )

    def _with_present(self) -> tuple[dict[Key, _Device], dict[Key, _State], int]:
        """Give the devices with the counters of the second that is not over, their states, and the loss of nobody."""
        devices, nobodys = dict(self._devices), 0
        present = None if self._finished else self._reconstructor.present()
        states = _states(self._wanted.apply(self._last_states if present is None else present.states))
        for key, state in states.items():
            if key not in devices:
                devices[key] = replace(self._new_device(), bdf=state.bdf)
        for key, begin, counter, offset, number in _counter_rows(
            None if present is None else self._wanted.apply(present.counters)
        ):
            if key == (None, None) and counter == "lost":
                nobodys += number
                continue
            device = devices.get(key) or self._new_device()
            counters = {b: Counter(counts) for b, counts in device.counters.items()}
            counters.setdefault(begin, Counter())[_name(counter, offset)] += number
            lost = device.lost + (number if counter == "lost" else 0)
            devices[key] = replace(device, counters=counters, lost=lost)
        # States and counters from before a device's VM was known belong to its only VM, as in `Analysis`.
        for key in [key for key in devices if key[1] is None and key[0] is not None]:
            named = [other for other in devices if other[0] == key[0] and other[1] is not None]
            if len(named) == 1 and not devices[key].cells:
                devices[named[0]] = devices[named[0]].fold(devices.pop(key))
                if key in states:
                    states.setdefault(named[0], states[key])
        return devices, states, nobodys

    def _add_silent(self, tables: Tables, devices: dict[Key, _Device]) -> None:
        """Devices of the table that nothing else names are listed too, with nothing counted, as in `Analysis`."""
        listed = {device for device, _ in devices}
        for row in tables.devices:
            if row.id not in listed:
                vm = next((vm.name for vm in tables.vms if vm.pid == row.vm_pid), None)
                devices[row.id, vm] = self._new_device()

    def _new_device(self) -> _Device:
        return _Device(BurstFinder(self._options.burst_rate, self._options.burst_ns))

    def _live(
        self,
        key: Key,
        device: _Device,
        state: _State | None,
        whole: Histogram,
        begin: int | None,
        end: int | None,
        recorded: set[str],
    ) -> LiveDevice:
        cells: Counter[tuple[int, int, int]] = Counter()
        masked: dict[int, Histogram] = {}
        for part in device.slices.values():
            cells.update(part.cells)
            for code, histogram in part.masked.items():
                masked.setdefault(code, Histogram()).merge(histogram)
        latency = [
            LivePath(
                PATHS[code],
                sum(n for cell, n in cells.items() if cell[0] == code),
                sum(n for cell, n in cells.items() if cell[0] == code and cell[2] == _COMPLETE),
                histogram.distribution(),
            )
            for code, histogram in masked.items()
        ]
        latency.sort(key=lambda one: (-one.interrupts, PATHS.index(one.path)))
        if len(latency) > 1:
            complete = sum(one.complete for one in latency)
            latency.append(LivePath("all", cells.total(), complete, whole.distribution()))
        counters: Counter[str] = sum(device.counters.values(), Counter())
        row = next((row for row in self._tables.devices if row.id == key[0]), None)
        vm = next((vm for vm in self._tables.vms if vm.name == key[1]), None)
        seconds = None if begin is None or end is None or end <= begin else (end - begin) / _SECOND
        return LiveDevice(
            device=key[0],
            bdf=device.bdf or (row.bdf if row else None) or None,
            vm=key[1],
            vm_pid=vm.pid if vm and device.vm_pid is None else device.vm_pid,
            host_irq=row.host_irq if row and device.host_irq is None else device.host_irq,
            gsi=device.gsi,
            state=state.state if state else None,
            bars_mapped=state.bars_mapped if state else None,
            state_at=state.begin_at if state else None,
            reason=state.reason if state else None,
            rate=None if seconds is None else round(cells.total() / seconds, 3),
            path=latency[0].path if latency else None,
            latency=tuple(latency),
            masked_ns=whole.distribution(),
            floods=LiveFloods(
                resignals=sum(n for cell, n in cells.items() if cell[1] == _RESIGNAL),
                unclaimed=_counted(counters, recorded, "unclaimed"),
                reentries=_counted(counters, recorded, "reentries"),
                bar_accesses=_counted(counters, recorded, "bar_reads", "bar_writes"),
                bursts=0 if begin is None else device.bursts.since(begin),
            ),
            lost=device.lost,
            total=counts_of(device.cells, device.coalesced),
        )


@dataclass(frozen=True)
class _State:
    """What state a device is in."""

    bdf: str | None
    state: str
    bars_mapped: bool | None
    begin_at: int
    reason: str | None


def _states(frame: pd.DataFrame) -> dict[Key, _State]:
    """Give the states that last, by device."""
    columns = [frame[n].tolist() for n in ("device", "vm", "bdf", "state", "bars_mapped", "begin_at", "reason")]
    rows = [[plain(value) for value in row] for row in zip(*columns, strict=True)]
    return {(row[0], row[1]): _State(*row[2:]) for row in rows}


class _Detail:
    """Makes a detail when asked, of what nothing changes any more."""

    def __init__(self, device: LiveDevice, masked: Histogram, last: tuple[pd.DataFrame, ...]) -> None:
        self._device, self._masked, self._last = device, masked, last

    def __call__(self) -> Detail:
        rows = [row for frame in self._last for row in interrupt_rows(frame)]
        return Detail(self._device, self._masked.log_bins(BINS_PER_DECADE), tuple(rows[: -LAST - 1 : -1]))


def _merged(histograms: Iterable[Histogram]) -> Histogram:
    whole = Histogram()
    for histogram in histograms:
        whole.merge(histogram)
    return whole


def _cells(path: Ints, origin: Ints, outcome: Ints) -> dict[tuple[int, int, int], int]:
    counts = np.bincount((path * len(ORIGINS) + origin) * len(OUTCOMES) + outcome)
    found = {}
    for cell in np.flatnonzero(counts).tolist():
        rest, outcome_code = divmod(cell, len(OUTCOMES))
        found[(*divmod(rest, len(ORIGINS)), outcome_code)] = int(counts[cell])
    return found


def _counter_rows(frame: pd.DataFrame | None) -> Iterator[tuple[Key, int, str, int | None, int]]:
    if frame is None:
        return
    columns = [frame[name].tolist() for name in ("device", "vm", "begin_at", "counter", "offset", "count")]
    for device, vm, begin, counter, offset, number in zip(*columns, strict=True):
        yield (plain(device), plain(vm)), int(begin), str(counter), plain(offset), int(number)


def _name(counter: str, offset: int | None) -> str:
    """Accesses by offset are counted apart: most recordings have their totals too."""
    return counter if offset is None else f"{counter} by offset"


def _counted(counters: Counter[str], recorded: set[str], *names: str) -> int | None:
    """Add up counters of the window; null if nothing was counted and no probe could."""
    number = sum(counters[name] or counters[f"{name} by offset"] for name in names)
    known = any(recorded & COUNTER_EVIDENCE[name] for name in names)
    return number if number or known else None
