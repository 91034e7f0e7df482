"""What findings need of a device beyond its summary: which interrupts, and when. Bounded, fed frame by frame."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from intxtrace.analysis.results import StateInterval
from intxtrace.analysis.rows import NULL, ints
from intxtrace.frames import ORIGINS, OUTCOMES, PATHS, STAGES

if TYPE_CHECKING:
    import pandas as pd

    from intxtrace.analysis.rows import Ints

IDS_KEPT = 10
UNENDED_KEPT = 1_000
STATES_KEPT = 10_000

SLOW_NS = {
    ("kernel", "inject_ns"): 5_000_000,
    ("kernel", "guest_ns"): 10_000_000,
    ("hybrid", "guest_ns"): 10_000_000,
    ("userspace", "signal_ns"): 10_000_000,
}
"""By path and stage: from so long on, an interrupt counts as delayed in this stage."""


@dataclass
class Sample:
    """Interrupts that have something in common: how many, the first of them by id, and when."""

    count: int = 0
    ids: list[int] = field(default_factory=list)
    first_at: int | None = None
    last_at: int | None = None
    worst: int | None = None
    """The largest value, where they have one in common."""

    def add(self, ids: Ints, instants: Ints, values: Ints | None = None) -> None:
        """Take these interrupts; instants may be NULL."""
        if not len(ids):
            return
        self.count += len(ids)
        self.ids = sorted([*self.ids, *ids[:IDS_KEPT].tolist()])[:IDS_KEPT]
        known = instants[instants != NULL]
        if len(known):
            first, last = int(known.min()), int(known.max())
            self.first_at = first if self.first_at is None else min(first, self.first_at)
            self.last_at = last if self.last_at is None else max(last, self.last_at)
        if values is not None:
            self.worst = max(int(values.max()), self.worst or 0)


@dataclass(frozen=True)
class Unended:
    """An interrupt that masked its device and was not unmasked before the trace, or the device's set-up, ended."""

    id: int
    path: str
    gsi: int | None
    masked_at: int
    injected_at: int | None
    acknowledged_at: int | None


@dataclass
class Traits:
    """Of one device in one VM."""

    resignals: dict[str, Sample] = field(default_factory=dict)
    """By path."""
    reentered: Sample = field(default_factory=Sample)
    reentries: int = 0
    slow: dict[tuple[str, str], Sample] = field(default_factory=dict)
    """By the keys of `SLOW_NS`."""
    measured: dict[tuple[str, str], int] = field(default_factory=dict)
    """How many interrupts have that stage."""
    unended: list[Unended] = field(default_factory=list)
    """The last `UNENDED_KEPT`."""
    unmasked: dict[int, tuple[int, int, int]] = field(default_factory=dict)
    """By GSI, on the hybrid path: interrupts that were unmasked, and the first and last instant of that."""
    failed: list[StateInterval] = field(default_factory=list)
    """States that a failed KVM_IRQFD began."""
    modes: list[tuple[int, str]] = field(default_factory=list)
    """When the state became which, mapping of BARs aside."""
    maps: list[tuple[int, bool]] = field(default_factory=list)
    """When the BARs were mapped or unmapped, while INTx was enabled."""
    unmaps: int = 0
    trapped_ns: int = 0
    """Time in a state with INTx enabled and the BARs unmapped …"""
    mapped_ns: int = 0
    """… and mapped."""
    msi_enabled_at: int | None = None

    def add_interrupts(
        self,
        frame: pd.DataFrame,
        rows: npt.NDArray[np.intp],
        path: Ints,
        origin: Ints,
        outcome: Ints,
        durations: Mapping[str, Ints],
    ) -> None:
        """Take these rows of a frame of interrupts.

        The arrays hold columns of the rows, words as places in their lists; other columns are looked at only where
        something is amiss.
        """

        def column(name: str, places: npt.NDArray[np.intp]) -> Ints:
            return ints(frame[name].iloc[rows[places]])

        def sample(into: Sample, mask: npt.NDArray[np.bool_], values: Ints | None = None) -> None:
            places = np.flatnonzero(mask)
            stages = np.stack([column(stage, places) for stage in STAGES])
            instants = stages[np.argmax(stages != NULL, axis=0), np.arange(len(places))]
            into.add(column("id", places), instants, None if values is None else values[places])

        again = origin == ORIGINS.index("resignal")
        for number in np.unique(path[again]).tolist():
            sample(self.resignals.setdefault(PATHS[number], Sample()), again & (path == number))
        reentries = ints(frame["reentries"])[rows]
        if (reentries > 0).any():
            self.reentries += int(reentries[reentries > 0].sum())
            sample(self.reentered, reentries > 0, reentries)
        complete = outcome == OUTCOMES.index("complete")
        for key, least in SLOW_NS.items():
            values = durations[key[1]]
            measured = complete & (path == PATHS.index(key[0])) & (values != NULL)
            self.measured[key] = self.measured.get(key, 0) + int(measured.sum())
            late = measured & (values >= least)
            if late.any():
                sample(self.slow.setdefault(key, Sample()), late, values)
        self._note_unmasked(column, np.flatnonzero(path == PATHS.index("hybrid")))
        ended = (outcome == OUTCOMES.index("open")) | (outcome == OUTCOMES.index("cancelled"))
        self._note_unended(column, np.flatnonzero(ended), path)

    def _note_unmasked(self, column: Callable[[str, npt.NDArray[np.intp]], Ints], places: npt.NDArray[np.intp]) -> None:
        gsis, unmasked = column("gsi", places), column("unmasked_at", places)
        known = (gsis != NULL) & (unmasked != NULL)
        for gsi in np.unique(gsis[known]).tolist():
            here = unmasked[known & (gsis == gsi)]
            number, first, last = self.unmasked.get(gsi, (0, int(here[0]), int(here[0])))
            self.unmasked[gsi] = (number + len(here), min(first, int(here.min())), max(last, int(here.max())))

    def _note_unended(
        self, column: Callable[[str, npt.NDArray[np.intp]], Ints], places: npt.NDArray[np.intp], path: Ints
    ) -> None:
        names = ("id", "gsi", "raised_at", "injected_at", "acknowledged_at", "unmasked_at")
        columns = [column(name, places).tolist() for name in names]
        for place, *values in zip(places.tolist(), *columns, strict=True):
            number, gsi, raised, injected, acknowledged, unmasked = (None if v == NULL else v for v in values)
            if unmasked is None and raised is not None and number is not None:
                one = Unended(number, PATHS[int(path[place])], gsi, raised, injected, acknowledged)
                self.unended.append(one)
        self.unended = self.unended[-UNENDED_KEPT:]

    def add_states(self, intervals: Iterable[StateInterval]) -> None:
        """Take states, in order of time."""
        for interval in intervals:
            reason = interval.reason or ""
            if reason.startswith("KVM_IRQFD failed") and len(self.failed) < IDS_KEPT:
                self.failed.append(interval)
            if reason.startswith("MSI"):
                self.msi_enabled_at = interval.begin_at
            if (not self.modes or self.modes[-1][1] != interval.state) and len(self.modes) < STATES_KEPT:
                self.modes.append((interval.begin_at, interval.state))
            if interval.state not in ("off", "unknown") and interval.bars_mapped is not None:
                self._add_mapping(interval, interval.bars_mapped)

    def _add_mapping(self, interval: StateInterval, mapped: bool) -> None:
        if self.maps and self.maps[-1][1] and not mapped:
            self.unmaps += 1
        if (not self.maps or self.maps[-1][1] != mapped) and len(self.maps) < STATES_KEPT:
            self.maps.append((interval.begin_at, mapped))
        length = 0 if interval.end_at is None else interval.end_at - interval.begin_at
        if mapped:
            self.mapped_ns += length
        else:
            self.trapped_ns += length

    def fold(self, other: Traits) -> None:
        """Take over the states of another one of the same device, from before its VM was known."""
        self.failed = sorted(self.failed + other.failed, key=lambda i: i.begin_at)[:IDS_KEPT]
        self.modes = sorted(self.modes + other.modes)
        self.maps = sorted(self.maps + other.maps)
        self.unmaps += other.unmaps
        self.trapped_ns += other.trapped_ns
        self.mapped_ns += other.mapped_ns
        known = [at for at in (self.msi_enabled_at, other.msi_enabled_at) if at is not None]
        self.msi_enabled_at = max(known, default=None)

    def last_mode(self) -> str | None:
        """The last state that was seen."""
        return self.modes[-1][1] if self.modes else None

    def next_mode_at(self, at: int) -> int | None:
        """When the state changed for the first time after an instant."""
        return next((begin for begin, _ in self.modes if begin > at), None)
