"""Interrupts as a trace for Perfetto and chrome://tracing: JSON of the Trace Event Format, written as it comes.

A device is a process; in it each path is a track with the interrupts and their stages as slices, `guest` one with the
time until the guest's EOI, to which an arrow leads from the interrupt, `state` one with the device's states; floods are
counters. Slices of a track never overlap, as the format demands: an interrupt that overlaps gets a further track of its
path.

The format is Google's "Trace Event Format" (2016): duration events (B, E), counters (C), flows (s, f), metadata (M).
Begin and end are events of their own, since Perfetto's importer rounds `ts` and `dur` of complete events separately.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

import numpy as np
import pandas as pd

from intxtrace.analysis.bins import SparseCounts
from intxtrace.analysis.rows import NULL, first_known, ints
from intxtrace.units import printable

_SECOND = 1_000_000_000
MAX_LANES = 64
"""Tracks of one path, at most: interrupts that overlap with so many others are left out, and counted."""

_STAGES = ("raised_at", "signalled_at", "injected_at", "acknowledged_at", "unmasked_at")
_CHILDREN = (("signal_ns", "signal"), ("inject_ns", "inject"), ("guest_ns", "guest"), ("unmask_ns", "unmask"))
"""Stage k begins at `_STAGES[k]`."""
_WORDS = ("path", "origin", "outcome", "vm")
_NUMBERS = ("id", "parent_id", "device", "host_irq", "gsi", "eoi_at", "bar_accesses", "reentries", "coalesced")


@dataclass
class _Process:
    """One device."""

    pid: int
    bdf: str = ""
    vms: list[str] = field(default_factory=list)


@dataclass
class _Lane:
    """One track, and where its last slice ends."""

    tid: int
    pid: int
    name: str
    last: int


class ChromeTrace:
    """Writes a trace. Memory is bounded by devices, tracks, and 16 bytes per second and counter."""

    def __init__(self, write: Callable[[bytes], object], zero: int) -> None:
        """Begin a trace that is written through `write`; the instant `zero` (ns of the trace's clock) is its 0."""
        self._write, self._zero = write, zero
        self._processes: dict[int, _Process] = {}
        self._lanes: dict[tuple[int, str], list[_Lane]] = {}
        self._tids = 0
        self._counters: dict[tuple[int, str], SparseCounts] = {}
        self._by_offset: dict[tuple[int, str], SparseCounts] = {}
        """Those of single offsets, which count where there is no total (the totals' windows may be others)."""
        self._fresh = True
        self.left_out = 0
        """Interrupts that overlap with too many others."""
        write(b'{"displayTimeUnit":"ns","traceEvents":[')

    def add(self, interrupts: pd.DataFrame, states: pd.DataFrame, counters: pd.DataFrame, last: int | None) -> None:
        """Write frames of `frames`; `last` is the last instant seen, at which states end that have no end."""
        if len(interrupts):
            self._add_interrupts(interrupts)
        if len(states):
            self._add_states(states, last)
        if len(counters):
            self._add_counters(counters)

    def finish(self) -> None:
        """Write counters and names, and the end."""
        lines: list[str] = []
        for (device, counter), counts in (self._by_offset | self._counters).items():
            pid = self._processes[device].pid
            end = None
            for window, count in zip(counts.keys.tolist(), counts.counts.tolist(), strict=True):
                if end is not None and end < window:
                    lines.append(self._counter(pid, counter, end, 0))
                end = window + 1
                lines.append(self._counter(pid, counter, window, count))
            if end is not None:
                lines.append(self._counter(pid, counter, end, 0))
        for process in self._processes.values():
            name = process.bdf or "no device"
            vms = ", ".join(printable(vm) for vm in process.vms)
            lines.append(_metadata("process_name", process.pid, 0, {"name": f"{name} ({vms})" if vms else name}))
        for lanes in self._lanes.values():
            for number, lane in enumerate(lanes, 1):
                name = lane.name if number == 1 else f"{lane.name}, overlapping {number}"
                lines.append(_metadata("thread_name", lane.pid, lane.tid, {"name": name}))
        self._emit(lines)
        self._write(b"\n]}\n")

    def _emit(self, lines: list[str]) -> None:
        if lines:
            self._write(("\n" if self._fresh else ",\n").encode() + ",\n".join(lines).encode())
            self._fresh = False

    def _ts(self, ns: int) -> str:
        """Write an instant in µs, exact."""
        since = ns - self._zero
        us, rest = divmod(abs(since), 1000)
        return f"{us}.{rest:03}" if since >= 0 else f"-{us}.{rest:03}"

    def _process(self, device: int, bdf: str | None, vm: str | None) -> _Process:
        if device not in self._processes:
            self._processes[device] = _Process(len(self._processes) + 1)
        process = self._processes[device]
        process.bdf = process.bdf or bdf or ""
        if vm and vm not in process.vms and len(process.vms) < 8:
            process.vms.append(vm)
        return process

    def _lane(self, device: int, pid: int, name: str, begin: int, end: int) -> _Lane | None:
        """Find a track on which this stretch overlaps nothing, or make one; None if there are too many."""
        lanes = self._lanes.setdefault((device, name), [])
        for lane in lanes:
            if lane.last <= begin:
                lane.last = end
                return lane
        if len(lanes) >= MAX_LANES:
            return None
        self._tids += 1
        lanes.append(_Lane(self._tids, pid, name, end))
        return lanes[-1]

    def _add_interrupts(self, frame: pd.DataFrame) -> None:
        stages = [ints(frame[name]).tolist() for name in _STAGES]
        durations = [ints(frame[name]).tolist() for name, _ in _CHILDREN]
        words = [frame[name].astype(object).where(frame[name].notna(), None).tolist() for name in (*_WORDS, "bdf")]
        numbers = [ints(frame[name]).tolist() for name in _NUMBERS]
        lines: list[str] = []
        for at, spent, said, counted in zip(
            zip(*stages, strict=True),
            zip(*durations, strict=True),
            zip(*words, strict=True),
            zip(*numbers, strict=True),
            strict=True,
        ):
            self._interrupt(lines, at, spent, said, dict(zip(_NUMBERS, counted, strict=True)))
            if len(lines) > 100_000:
                self._emit(lines)
                lines.clear()
        self._emit(lines)
        raised, devices = ints(frame["raised_at"]), ints(frame["device"].fillna(-1))
        resignals = (frame["origin"] == "resignal").to_numpy(np.bool_, na_value=False) & (raised != NULL)
        for device in np.unique(devices[resignals]).tolist():
            rows = resignals & (devices == device)
            self._counters.setdefault((device, "resignals"), SparseCounts()).add(raised[rows] // _SECOND)

    def _interrupt(
        self, lines: list[str], at: tuple[int, ...], spent: tuple[int, ...], said: tuple[Any, ...], n: dict[str, int]
    ) -> None:
        path, origin, outcome, vm, bdf = said
        device = n["device"]
        known = [ns for ns in at if ns != NULL] or [ns for ns in (n["eoi_at"],) if ns != NULL]
        if not known:
            self.left_out += 1
            return
        begin, end = min(known), max(known)
        pid = self._process(-1 if device == NULL else device, bdf, vm).pid
        lane = self._lane(device, pid, path, begin, end)
        if lane is None:
            self.left_out += 1
            return
        where = f'"pid":{pid},"tid":{lane.tid}'
        args = f'"id":{n["id"]},"outcome":"{outcome}"'
        for key in ("parent_id", "host_irq", "gsi", "bar_accesses", "reentries"):
            if n[key] != NULL:
                args += f',"{key}":{n[key]}'
        if n["coalesced"] != NULL:
            args += ',"coalesced":true' if n["coalesced"] else ',"coalesced":false'
        if vm is not None:
            args += f',"vm":{_quoted(vm)}'
        lines.append(f'{{"ph":"B",{where},"ts":{self._ts(begin)},"cat":"{path}","name":"{origin}","args":{{{args}}}}}')
        guest = self._guest(device, pid, at, n["eoi_at"])
        flow = f'"id":{n["id"]},"cat":"interrupt","name":"to the EOI"'
        if guest is not None:
            lines.append(f'{{"ph":"s",{where},"ts":{self._ts(begin)},{flow}}}')
        for (_, name), first, ns in zip(_CHILDREN, at, spent, strict=False):
            if ns != NULL:
                lines.append(f'{{"ph":"B",{where},"ts":{self._ts(first)},"name":"{name}"}}')
                lines.append(f'{{"ph":"E",{where},"ts":{self._ts(first + ns)}}}')
        lines.append(f'{{"ph":"E",{where},"ts":{self._ts(end)}}}')
        if guest is not None:
            lane, first = guest
            where = f'"pid":{pid},"tid":{lane.tid}'
            lines.append(
                f'{{"ph":"B",{where},"ts":{self._ts(first)},"name":"until the EOI","args":{{"id":{n["id"]}}}}}'
            )
            lines.append(f'{{"ph":"f","bp":"e",{where},"ts":{self._ts(n["eoi_at"])},{flow}}}')
            lines.append(f'{{"ph":"E",{where},"ts":{self._ts(n["eoi_at"])}}}')

    def _guest(self, device: int, pid: int, at: tuple[int, ...], eoi: int) -> tuple[_Lane, int] | None:
        """Find the track for the time from the injection (or the last stage known before) to the EOI."""
        first = next((ns for ns in (at[2], at[1], at[0]) if ns != NULL and ns <= eoi), None)
        if eoi == NULL or first is None:
            return None
        lane = self._lane(device, pid, "guest", first, eoi)
        return None if lane is None else (lane, first)

    def _add_states(self, frame: pd.DataFrame, last: int | None) -> None:
        lines = []
        begins, ends = ints(frame["begin_at"]).tolist(), ints(frame["end_at"]).tolist()
        mapped = ints(frame["bars_mapped"]).tolist()
        names = ("bdf", "vm", "state", "reason")
        columns = [frame[name].astype(object).where(frame[name].notna(), None).tolist() for name in names]
        devices = frame["device"].fillna(-1).tolist()
        for device, begin, end, bars, bdf, vm, state, reason in zip(
            devices, begins, ends, mapped, *columns, strict=True
        ):
            pid = self._process(device, bdf, vm).pid
            end = max(begin, begin if last is None else last) if end == NULL else end
            lane = self._lane(device, pid, "state", begin, end)
            if lane is None:
                continue
            args = {} if bars == NULL else {"bars_mapped": bool(bars)}
            text = json.dumps({**args, "reason": printable(reason or "")})
            where = f'"pid":{pid},"tid":{lane.tid}'
            lines.append(f'{{"ph":"B",{where},"ts":{self._ts(begin)},"name":"{state}","args":{text}}}')
            lines.append(f'{{"ph":"E",{where},"ts":{self._ts(end)}}}')
        self._emit(lines)

    def _add_counters(self, frame: pd.DataFrame) -> None:
        devices = ints(frame["device"].fillna(-1))
        windows, counts = ints(frame["begin_at"]) // _SECOND, ints(frame["count"])
        by_offset = frame["offset"].notna().to_numpy()
        names, words = pd.factorize(frame["counter"])
        for device in np.unique(devices).tolist():
            mine = devices == device
            self._process(device, first_known(frame["bdf"][mine]), None)
            for number, counter in enumerate(words):
                for part, totals in ((by_offset, self._by_offset), (~by_offset, self._counters)):
                    rows = mine & (names == number) & part
                    if rows.any():
                        totals.setdefault((device, str(counter)), SparseCounts()).add(windows[rows], counts[rows])

    def _counter(self, pid: int, name: str, window: int, count: int) -> str:
        """Write a counter; Perfetto calls it by its name and what it counts: `unclaimed a second`."""
        at = self._ts(window * _SECOND)
        return f'{{"ph":"C","pid":{pid},"ts":{at},"name":"{name}","args":{{"a second":{count}}}}}'


@lru_cache(maxsize=1024)
def _quoted(name: str) -> str:
    """Make a JSON string of a name."""
    return json.dumps(printable(name))


def _metadata(name: str, pid: int, tid: int, args: dict[str, str]) -> str:
    return json.dumps({"ph": "M", "pid": pid, "tid": tid, "name": name, "args": args}, separators=(",", ":"))
