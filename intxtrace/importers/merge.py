"""Several recordings of one run as one: devices joined by their PCI address, clocks by an anchor or by what both show.

QEMU's log has the realtime clock and the kernel's recordings a monotonic one. Where no recording says how they lie to
each other (`Metadata.realtime_anchor_ns`), cause and effect do: vfio_intx_handler claims an interrupt before
vfio_intx_interrupt takes it, and vfio_intx_eoi precedes the kvm_set_irq that lowers the line and the unmask ioctl. Each
pair bounds the offset from one side. Where both sides are known, the middle is taken, and half of what is between them
is the residual; where one is, the quickest effect counts as instant, and how far the others lie apart is the residual.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt

from intxtrace.errors import IntxtraceError
from intxtrace.events import SOURCE_USERSPACE, Flag, Kind, SetIrqs
from intxtrace.importers.opening import Recording
from intxtrace.trace.reader import TraceReader
from intxtrace.trace.tables import Tables
from intxtrace.units import duration

Instants = npt.NDArray[np.int64]

MAX_MARKS = 20_000
"""Instants of each kind that are compared."""

_PAIRED = 200
"""Of these, how many are compared with all others to find where the clocks meet."""

_WIDTHS = (100_000, 1_000_000)
"""ns by which the lags between causes and effects differ mostly: where possible by the first, else by the second, and
recordings in which they differ by more are of different runs."""

_APART = 20_000_000
"""ns by which what bounds the offset from one side may contradict what bounds it from the other."""

_SHARE = 4
"""One in so many of the causes has its effect at that distance at least: the others were when only one recorded."""

_CLEAR = 0.75
"""No other distance may have more than this of its matches: between interrupts of a strict beat many have as many."""

_MIN_MATCHES = 3

_OF_QEMU = (Kind.QEMU_INTERRUPT, Kind.QEMU_EOI, Kind.QEMU_REGION_READ, Kind.QEMU_REGION_WRITE)


@dataclass
class _Marks:
    """Instants of one recording that another one may show too, by what they are."""

    claimed: list[Instants] = field(default_factory=list)
    taken: list[Instants] = field(default_factory=list)
    acknowledged: list[Instants] = field(default_factory=list)
    lowered: list[Instants] = field(default_factory=list)

    def see(self, events: npt.NDArray[np.void]) -> None:
        """Note the instants of a block."""
        kind, value, ts = events["kind"], events["value"], events["ts"].astype(np.int64)
        unmasks = int(SetIrqs.DATA_NONE | SetIrqs.ACTION_UNMASK)
        lowered = (kind == Kind.KVM_SET_IRQ) & (value == 0) & (events["arg1"] == SOURCE_USERSPACE)
        for marks, chosen in (
            (self.claimed, (kind == Kind.HANDLER_EXIT) & (value == 1)),
            (self.taken, kind == Kind.QEMU_INTERRUPT),
            (self.acknowledged, kind == Kind.QEMU_EOI),
            (self.lowered, lowered | ((kind == Kind.SET_IRQS_ENTRY) & (events["arg0"] == unmasks))),
        ):
            if chosen.any() and (room := MAX_MARKS - sum(map(len, marks))) > 0:
                marks.append(ts[chosen][:room])


def _all(marks: list[Instants]) -> Instants:
    return np.sort(np.concatenate([np.zeros(0, np.int64), *marks]))


@dataclass
class _Part:
    """One of the recordings, after it was read once."""

    name: str
    recording: Recording
    marks: _Marks
    of_device: set[tuple[int, int]]
    """(kind, row) of QEMU's events; row -1: a device whose row only the reconstruction finds out."""
    offset: int = 0
    """ns to add to its instants."""
    rows: npt.NDArray[np.uint64] = field(default_factory=lambda: np.zeros(0, np.uint64))
    """Its rows of the device table -> ours."""
    first_vm: int = 0
    first_probe: int = 0


class OwnTrace:
    """A trace file of intxtrace as a recording to merge with others: it has the realtime anchor that they lack."""

    def __init__(self, path: Path) -> None:
        """Open it.

        Raises:
            IntxtraceError: it cannot be read.
        """
        with TraceReader(path) as reader:
            self.lines = reader.scan()
            self.tables = reader.tables
            extra = {"imported_from": "intxtrace trace", **reader.metadata.extra}
            self.metadata = replace(reader.metadata, extra=extra)
        self.unreadable: dict[str, int] = {}
        self.late = 0
        self._path = path

    def __iter__(self) -> Iterator[npt.NDArray[np.void]]:
        """Hand out the events."""
        with TraceReader(self._path) as reader:
            for events, _ in reader.iter_batches():
                yield events


class Merged:
    """Several recordings of one run.

    Args:
        names: what to call them in errors.
        openers: open one anew; each is read twice.
        command_line: the command that imports them, for the metadata.

    Raises:
        IntxtraceError: one has no clock, two show the same events of a device, or their clocks cannot be aligned.
    """

    def __init__(
        self, names: list[str], openers: list[Callable[[], Recording]], command_line: list[str] | None = None
    ) -> None:
        self._openers = openers
        self._parts = [_read(name, opener()) for name, opener in zip(names, openers, strict=True)]
        self.lines = sum(part.recording.lines for part in self._parts)
        self.late = sum(part.recording.late for part in self._parts)
        self.unreadable: dict[str, int] = {}
        for part in self._parts:
            for name, number in part.recording.unreadable.items():
                self.unreadable[name] = self.unreadable.get(name, 0) + number
        self.alignments: list[str] = []
        """How the clock of each but the reference was aligned, in words."""
        self.tables = Tables()
        self._join()
        self._check_doubles()
        reference = min(self._parts, key=lambda part: part.recording.metadata.clock != "monotonic")
        anchor = reference.recording.metadata.realtime_anchor_ns
        for part in self._parts:
            if part is not reference:
                self.alignments.append(_align(part, reference))
                if part.recording.metadata.clock == "realtime" and anchor is None:
                    anchor = -part.offset
        what = " + ".join(str(part.recording.metadata.extra["imported_from"]) for part in self._parts)
        base = reference.recording.metadata
        self.metadata = replace(
            base,
            command_line=command_line or [],
            realtime_anchor_ns=anchor if base.clock == "monotonic" else None,
            extra={**base.extra, "imported_from": what, "alignment": self.alignments},
        )

    def __iter__(self) -> Iterator[npt.NDArray[np.void]]:
        """Hand out the events of all, in the order of time."""
        streams = [self._stream(part, opener) for part, opener in zip(self._parts, self._openers, strict=True)]
        waiting = [next(stream, None) for stream in streams]
        while any(events is not None for events in waiting):
            # What is older than the last event of every block that is here, nothing that is still to come can precede.
            until = min(int(events["ts"][-1]) for events in waiting if events is not None)
            ready = []
            for place, events in enumerate(waiting):
                if events is not None:
                    cut = int(np.searchsorted(events["ts"], until, side="right"))
                    ready.append(events[:cut])
                    waiting[place] = events[cut:] if cut < len(events) else next(streams[place], None)
            together = np.concatenate(ready)
            yield together[np.argsort(together["ts"], kind="stable")]

    def _stream(self, part: _Part, opener: Callable[[], Recording]) -> Iterator[npt.NDArray[np.void]]:
        """Hand out the events of one recording with the instants and rows of all."""
        for events in opener():
            if not len(events):
                continue
            moved = events.copy()
            moved["ts"] = _shifted(moved["ts"], part.offset)
            moved["arg0"] = np.where(moved["kind"] == Kind.LOST, _shifted(moved["arg0"], part.offset), moved["arg0"])
            named = (moved["flags"] & np.uint32(Flag.SYNTHETIC)) != 0
            moved["device"][named] = part.rows[moved["device"][named].astype(np.int64)]
            is_device, is_vm = moved["kind"] == Kind.DEVICE, moved["kind"] == Kind.VM
            moved["aux"][is_device] = part.rows[moved["aux"][is_device]].astype(np.uint32)
            moved["aux"][is_vm] += np.uint32(part.first_vm)
            moved["aux"][moved["kind"] == Kind.PROBE] += np.uint32(part.first_probe)
            yield moved[np.argsort(moved["ts"], kind="stable")]

    def _join(self) -> None:
        """Make the tables: devices with one PCI address are one."""
        row_of: dict[str, int] = {}
        for part in self._parts:
            tables = part.recording.tables
            rows = []
            for device in tables.devices:
                row = row_of.get(device.bdf, -1) if device.bdf else -1
                if row < 0:
                    row = len(self.tables.devices)
                    self.tables.devices.append(replace(device, id=row))
                    if device.bdf:
                        row_of[device.bdf] = row
                else:
                    ours = self.tables.devices[row]
                    ours.host_irq = ours.host_irq or device.host_irq
                    ours.vm_pid = ours.vm_pid or device.vm_pid
                rows.append(row)
            part.rows = np.array(rows, np.uint64)
            part.first_vm = len(self.tables.vms)
            self.tables.vms += [replace(vm, id=part.first_vm + vm.id) for vm in tables.vms]
            part.first_probe = len(self.tables.probes)
            self.tables.probes += [replace(probe, id=part.first_probe + probe.id) for probe in tables.probes]

    def _check_doubles(self) -> None:
        """An event of QEMU that two recordings have would count twice."""
        seen: dict[tuple[int, int], _Part] = {}
        for part in self._parts:
            for kind, row in part.of_device:
                key = kind, int(part.rows[row]) if row >= 0 else -1
                same = [
                    earlier.name
                    for (other, at), earlier in seen.items()
                    if other == kind and earlier is not part and (at == key[1] or -1 in (at, key[1]))
                ]
                if same:
                    raise IntxtraceError(
                        f"{same[0]} and {part.name} both have {Kind(kind).name}, which would count twice; leave one of "
                        "them out, or its events with --map NAME=ignore"
                    )
                seen[key] = part


def _read(name: str, recording: Recording) -> _Part:
    """Read a recording once, for its tables and marks."""
    if recording.metadata.clock == "none":
        raise IntxtraceError(f"{name} has no times, so it cannot be merged; import it alone, or record it with times")
    marks, of_device = _Marks(), set()
    for events in recording:
        marks.see(events)
        for kind in _OF_QEMU:
            these = events[events["kind"] == kind]
            has_row = (these["flags"] & np.uint32(Flag.SYNTHETIC)) != 0
            rows = np.unique(these["device"][has_row]).tolist() + ([] if has_row.all() else [-1])
            of_device |= {(int(kind), row) for row in rows}
    return _Part(name, recording, marks, of_device)


def _shifted(ts: npt.NDArray[np.uint64], offset: int) -> npt.NDArray[np.uint64]:
    """Move instants; those that would lie before 0 are 0."""
    moved: npt.NDArray[np.uint64] = np.maximum(ts.astype(np.int64) + offset, 0).astype(np.uint64)
    return moved


def _align(part: _Part, reference: _Part) -> str:
    """Set a recording's offset to the reference's clock, and say how."""
    own, theirs = part.recording.metadata, reference.recording.metadata
    begin, end = own.realtime(0), theirs.realtime(0)
    if begin is not None and end is not None:
        part.offset = begin - end
        return f"{part.name}: by the realtime clock"
    found = _matched(part.marks, reference.marks)
    if found is None:
        other = _matched(reference.marks, part.marks)
        found = None if other is None else (-other[0], other[1], other[2])
    if found is not None:
        part.offset, error, matches = found
        return f"{part.name}: by {matches} matching events, residual {duration(error)}"
    if own.clock == theirs.clock:
        return f"{part.name}: taken to have the clock of {reference.name}, as no events match"
    raise IntxtraceError(
        f"the clocks of {reference.name} and {part.name} cannot be aligned: too few interrupts are "
        "in both, or they come in too strict a beat; merge recordings of one run, or import each alone"
    )


def _matched(qemu: _Marks, kernel: _Marks) -> tuple[int, int, int] | None:
    """Return what to add to QEMU's instants for the kernel's, the error, and the number of matches; None without."""
    after = _differences(_all(qemu.acknowledged), _all(kernel.lowered))
    before = _differences(_all(qemu.taken), _all(kernel.claimed))
    if after is None and before is None:
        return None
    found = [one for one in (after, before) if one is not None]
    if after is None or before is None:
        # Effects come late, but the quickest of them hardly at all.
        (some,) = found
        return int(some.min() if before is None else some.max()), int(some.max() - some.min()), len(some)
    latest, earliest = int(after.min()), int(before.max())
    if abs(latest - earliest) > _APART:
        return None  # The two kinds of pairs contradict each other.
    return (earliest + latest) // 2, abs(latest - earliest) // 2, min(len(after), len(before))


def _differences(ours: Instants, theirs: Instants) -> Instants | None:
    """Return what is between instants of theirs and ours that belong together; None if too few do.

    Where the clocks meet, most of ours have one of theirs at about the same distance; elsewhere only some do.
    """
    if min(len(ours), len(theirs)) < _MIN_MATCHES:
        return None
    lags = (theirs[:, None] - ours[None, :_PAIRED]).ravel()
    expected = min(len(ours[:_PAIRED]), len(theirs))
    for width in _WIDTHS:
        bins, counts = np.unique(lags // width, return_counts=True)
        follows = np.append(bins[1:] == bins[:-1] + 1, False)
        both = counts + np.where(follows, np.append(counts[1:], 0), 0)
        best = int(np.argmax(both))
        elsewhere = both[np.abs(bins - bins[best]) > 1]
        clear = not len(elsewhere) or elsewhere.max() <= _CLEAR * both[best]
        if clear and both[best] >= max(_MIN_MATCHES, expected // _SHARE):
            found: Instants = lags[(lags // width >= bins[best]) & (lags // width <= bins[best] + 1)]
            return found
    return None
