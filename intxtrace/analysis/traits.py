"""What findings need of a device beyond its summary: which interrupts, and when. Bounded, fed frame by frame."""

from __future__ import annotations

from collections.abc import Iterable
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
    """By GSI: interrupts that were unmasked, and the first and last instant of that."""
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
    off_at_end: bool = False

    def add_interrupts(
        self, frame: pd.DataFrame, rows: npt.NDArray[np.intp], path: Ints, origin: Ints, outcome: Ints
    ) -> None:
        """Take these rows of a frame of interrupts; the arrays hold columns of the rows as places in their lists."""

        def column(name: str) -> Ints:
            return ints(frame[name])[rows]

        ids, raised, unmasked = column("id"), column("raised_at"), column("unmasked_at")
        stages = np.stack([column(stage) for stage in STAGES])
        instants = stages[np.argmax(stages != NULL, axis=0), np.arange(len(rows))]
        again = origin == ORIGINS.index("resignal")
        for number in np.unique(path[again]).tolist():
            here = again & (path == number)
            self.resignals.setdefault(PATHS[number], Sample()).add(ids[here], instants[here])
        reentries = column("reentries")
        entered = reentries > 0
        if entered.any():
            self.reentries += int(reentries[entered].sum())
            self.reentered.add(ids[entered], instants[entered], reentries[entered])
        complete = outcome == OUTCOMES.index("complete")
        for (slow_path, stage), least in SLOW_NS.items():
            values = column(stage)
            measured = complete & (path == PATHS.index(slow_path)) & (values != NULL)
            key = (slow_path, stage)
            self.measured[key] = self.measured.get(key, 0) + int(measured.sum())
            late = measured & (values >= least)
            if late.any():
                self.slow.setdefault(key, Sample()).add(ids[late], instants[late], values[late])
        gsis = column("gsi")
        for gsi in np.unique(gsis[(unmasked != NULL) & (gsis != NULL)]).tolist():
            here = unmasked[(gsis == gsi) & (unmasked != NULL)]
            number, first, last = self.unmasked.get(gsi, (0, int(here[0]), int(here[0])))
            bounds = (min(first, int(here.min())), max(last, int(here.max())))
            self.unmasked[gsi] = (number + len(here), *bounds)
        ended = [OUTCOMES.index("open"), OUTCOMES.index("cancelled")]
        stuck = np.isin(outcome, ended) & (unmasked == NULL) & (raised != NULL)
        if stuck.any():
            injected, acknowledged = column("injected_at"), column("acknowledged_at")
            for i in np.flatnonzero(stuck).tolist():
                instant = [None if v == NULL else int(v) for v in (gsis[i], injected[i], acknowledged[i])]
                self.unended.append(Unended(int(ids[i]), PATHS[int(path[i])], instant[0], int(raised[i]), *instant[1:]))
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
            self.off_at_end = interval.state == "off"
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
