"""What is counted of one device in one VM while the frames go by, and what that makes in the end."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from intxtrace.analysis import results
from intxtrace.analysis.bins import SparseCounts
from intxtrace.analysis.bursts import BurstFinder
from intxtrace.analysis.histogram import Histogram
from intxtrace.analysis.part import PartTally
from intxtrace.analysis.results import Options
from intxtrace.analysis.rows import NULL, first_known, interrupt_rows, ints, plain
from intxtrace.analysis.traits import Traits
from intxtrace.frames import OUTCOMES, PATHS

if TYPE_CHECKING:
    from collections.abc import Mapping

    import pandas as pd

    from intxtrace.analysis.rows import Ints

_SECOND = 1_000_000_000

DENSITY_PER_DECADE = 10
_HEIGHTS = 128
_NO_HEIGHT = _HEIGHTS - 1
"""The bin of those interrupts whose masked time is not in the statistics."""
_CELLS = len(PATHS) * _HEIGHTS

SLOW_TIMES = 3
"""So many times the median masked time is slow; the threshold is the next edge of a cell of the density."""
SLOW_SHARE = 0.1
"""Where at least this share of the interrupts of a bin of time were slow, the time was …"""
SLOW_LEAST = 2
"""… if there were so many: one slow interrupt is just that."""
SLOWDOWNS_KEPT = 20

INTERVALS_KEPT = 200
OFFSETS_KEPT = 4_096
"""Different offsets counted by themselves. A guest chooses offsets, so their number must have a bound."""
OFFSETS_LISTED = 10

COUNTER_EVIDENCE: dict[str, frozenset[str]] = {
    "handler_calls": frozenset({"HANDLER_ENTRY"}),
    "unclaimed": frozenset({"HANDLER_EXIT"}),
    "spurious_wakeups": frozenset({"QEMU_INTERRUPT"}),
    "noop_unmasks": frozenset({"UNMASK_EXIT", "CHECKED_UNMASK"}),
    "reentries": frozenset({"KVM_ACK", "KVM_EOI"}),
    "bar_reads": frozenset({"QEMU_REGION_READ", "QEMU_REGION_COUNT", "QEMU_REGION_OFFSETS"}),
    "bar_writes": frozenset({"QEMU_REGION_WRITE", "QEMU_REGION_COUNT", "QEMU_REGION_OFFSETS"}),
}
"""A counter without rows is 0 if a probe that makes one of these kinds of events was attached, else not known."""


class DeviceTally:
    """One device in one VM."""

    def __init__(self, options: Options) -> None:
        self._options = options
        self.traits = Traits()
        self.bdf: str | None = None
        self.vm_pid: int | None = None
        self.host_irq: int | None = None
        self.gsi: int | None = None
        self._parts: dict[int, PartTally] = {}
        """By window of time; `NULL` for interrupts at an unknown instant."""
        self._bar_accesses = Histogram()
        self._seconds = SparseCounts()
        self._timeline = SparseCounts()
        self._bursts = BurstFinder(options.burst_rate, options.burst_ns)
        self._totals: Counter[str] = Counter()
        self._offsets: Counter[tuple[int | None, int, str]] = Counter()
        self._other_offsets: Counter[str] = Counter()
        self._intervals: list[results.StateInterval] = []
        self._open_intervals: list[results.StateInterval] = []
        self._changes = 0
        self._closed_ns: Counter[str] = Counter()

    @property
    def silent(self) -> bool:
        """No interrupt was taken."""
        return not self._parts

    def add_interrupts(
        self,
        frame: pd.DataFrame,
        rows: npt.NDArray[np.intp],
        window: Ints,
        path: Ints,
        origin: Ints,
        outcome: Ints,
        coalesced: Ints,
        accesses: Ints,
        durations: Mapping[str, Ints],
    ) -> None:
        """Take these rows of a frame of interrupts.

        The arrays hold columns of the rows, words as places in their lists: to take whole rows out of a frame is what
        costs most here. `window` numbers the window of time that each is in.
        """
        for name in ("bdf", "vm_pid", "host_irq", "gsi"):
            if getattr(self, name) is None:
                setattr(self, name, first_known(frame[name].iloc[rows]))
        self._bar_accesses.add(accesses[accesses >= 0])
        self.traits.add_interrupts(frame, rows, path, origin, outcome, durations)
        masked = np.where(outcome == OUTCOMES.index("complete"), durations["masked_ns"], NULL)
        candidates = []
        for key in np.unique(window).tolist():
            part = self._parts.setdefault(key, PartTally())
            here = np.flatnonzero(window == key)
            part.add(
                path[here],
                origin[here],
                outcome[here],
                coalesced[here],
                {measure: values[here] for measure, values in durations.items()},
            )
            candidates.append((part, here[self._slow(part, frame, rows[here], masked[here])]))
        found = interrupt_rows(frame.iloc[rows[np.concatenate([places for _, places in candidates])]])
        for part, places in candidates:
            part.keep_slowest(found[: len(places)], self._options.slowest)
            found = found[len(places) :]

    def _slow(
        self, part: PartTally, frame: pd.DataFrame, rows: npt.NDArray[np.intp], masked: Ints
    ) -> npt.NDArray[np.intp]:
        """Give the places of those that may be among the slowest of this part."""
        wanted = self._options.slowest
        least = (part.slowest[-1].masked_ns or 0) if wanted and len(part.slowest) == wanted else 0
        candidates = np.flatnonzero(masked >= least)[: None if wanted else 0]
        if len(candidates) > wanted:
            # All that tie with the last one stay, so that ids decide and not the batches.
            least = np.partition(masked[candidates], len(candidates) - wanted)[len(candidates) - wanted]
            candidates = candidates[masked[candidates] >= least]
            order = np.lexsort((ints(frame["id"].iloc[rows[candidates]]), -masked[candidates]))
            candidates = candidates[order[:wanted]]
        return candidates

    def place(self, instants: Ints, path: Ints, masked: Ints, step: int) -> None:
        """Take the instants of interrupts, in bins of `step` ns; masked time is `NULL` where it is not to count."""
        placed = instants != NULL
        instants, path, masked = instants[placed], path[placed], masked[placed]
        self._bursts.add(instants)
        self._seconds.add(instants // _SECOND)
        measured = masked >= 0
        heights = np.full(len(masked), _NO_HEIGHT, np.int64)
        logs = np.log10(np.maximum(masked[measured], 1)) * DENSITY_PER_DECADE
        heights[measured] = np.minimum(logs.astype(np.int64), _NO_HEIGHT - 1)
        self._timeline.add((instants // step * len(PATHS) + path) * _HEIGHTS + heights)

    def widen(self, factor: int) -> None:
        """Join each `factor` bins of time to one."""
        keys = self._timeline.keys
        self._timeline.map_keys(keys // _CELLS // factor * _CELLS + keys % _CELLS)

    def join_windows(self, factor: int) -> None:
        """Join each `factor` windows of time to one."""
        parts, self._parts = self._parts, {}
        for key, part in parts.items():
            joined = self._parts.setdefault(key if key == NULL else key // factor, PartTally())
            joined.merge(part, self._options.slowest)

    def add_states(self, frame: pd.DataFrame) -> None:
        """Take a frame of device states."""
        self.bdf = self.bdf or first_known(frame["bdf"])
        names = ("state", "bars_mapped", "begin_at", "end_at", "reason")
        columns = [[plain(value) for value in frame[name].tolist()] for name in names]
        intervals = [results.StateInterval(*row) for row in zip(*columns, strict=True)]
        self.traits.add_states(intervals)
        for interval in intervals:
            self._changes += 1
            if interval.end_at is None:
                self._open_intervals.append(interval)
            else:
                self._closed_ns[interval.state] += interval.end_at - interval.begin_at
                self._intervals.append(interval)
        self._intervals = _longest(self._intervals)

    def add_counters(self, frame: pd.DataFrame) -> None:
        """Take a frame of counters."""
        self.bdf = self.bdf or first_known(frame["bdf"])
        known = frame["offset"].notna()
        for counter, number in frame[~known].groupby("counter")["count"].sum().items():
            self._totals[str(counter)] += int(number)
        columns = [frame[name][known].tolist() for name in ("region", "offset", "counter", "count")]
        for region, offset, name, number in zip(*columns, strict=True):
            self._offsets[plain(region), int(offset), str(name)] += int(number)
        if len(self._offsets) > OFFSETS_KEPT:
            for key, number in self._offsets.most_common()[OFFSETS_KEPT:]:
                self._other_offsets[key[2]] += number
                del self._offsets[key]

    def fold(self, other: DeviceTally) -> None:
        """Take over the states and counters of another tally."""
        self.traits.fold(other.traits)
        self._totals.update(other._totals)
        self._offsets.update(other._offsets)
        self._other_offsets.update(other._other_offsets)
        self._intervals = _longest(self._intervals + other._intervals)
        self._open_intervals += other._open_intervals
        self._changes += other._changes
        self._closed_ns.update(other._closed_ns)

    def counted(self, counter: str) -> int:
        """Give a counter over the whole trace: of its totals, or where there are none, of its offsets."""
        if self._totals[counter]:
            return self._totals[counter]
        return self._other_offsets[counter] + sum(n for key, n in self._offsets.items() if key[2] == counter)

    def whole(self) -> PartTally:
        """Give what was taken in all windows."""
        return PartTally.joined((part for _, part in sorted(self._parts.items())), self._options.slowest)

    def spans(self, axis: results.TimeAxis | None) -> tuple[results.Span, ...]:
        """Make what is shown for each run of neighbouring windows of the axis but the one of all."""
        if axis is None or len(axis.windows) < 3:
            return ()
        parts = self._windows(axis)
        spans = []
        for first in range(len(parts)):
            part = PartTally()
            for last in range(first, len(parts)):
                part.merge(parts[last], self._options.slowest)
                if last - first + 1 == len(parts):
                    continue
                length = axis.windows[last + 1] - axis.windows[first]
                spans.append(
                    results.Span(
                        first=first,
                        last=last,
                        counts=part.counts(),
                        mean_rate=round(part.rows.total() / (length / _SECOND), 3) if length else None,
                        latency=part.latency(),
                    )
                )
        return tuple(spans)

    def windows(self, axis: results.TimeAxis | None) -> tuple[results.WindowFigures, ...]:
        """Make what the figures draw of each window of the axis, and its slowest interrupts."""
        if axis is None or len(axis.windows) < 3:
            return ()
        return tuple(
            results.WindowFigures(distributions=part.distributions(), slowest=tuple(part.slowest))
            for part in self._windows(axis)
        )

    def _windows(self, axis: results.TimeAxis) -> list[PartTally]:
        """The parts in the windows of the axis."""
        assert axis.window_ns is not None
        first, joined = axis.windows[0] // axis.window_ns, axis.joined
        parts = [PartTally() for _ in axis.windows[1:]]
        for key, part in sorted(self._parts.items()):
            if key != NULL:
                parts[(key - first) // joined].merge(part, self._options.slowest)
        return parts

    def rate(self, total: int, duration: int | None) -> results.Rate:
        """Make the rate of so many interrupts over a recording of so many ns, null without a clock."""
        if not duration:
            return results.Rate(None, None, None)
        mean = total / (duration / _SECOND)
        if not len(self._seconds.keys):
            return results.Rate(mean, 0 if not total else None, None)
        peak = int(np.argmax(self._seconds.counts))
        return results.Rate(round(mean, 3), int(self._seconds.counts[peak]), int(self._seconds.keys[peak]) * _SECOND)

    def floods(self, counts: results.Counts, recorded: set[str]) -> results.Floods:
        """Make the flood counts. `recorded` names the kinds of events that a probe of the recording makes."""
        accesses = self._bar_accesses.distribution()

        def counter(name: str) -> int | None:
            number = self.counted(name)
            known = bool(recorded & COUNTER_EVIDENCE[name]) or (name.startswith("bar_") and accesses.count > 0)
            return number if number or known else None

        offsets: dict[tuple[int | None, int], dict[str, int]] = {}
        for (region, offset, name), number in self._offsets.items():
            offsets.setdefault((region, offset), {})[name] = number
        ranked = sorted(
            (
                results.OffsetCount(region, offset, found.get("bar_reads", 0), found.get("bar_writes", 0))
                for (region, offset), found in offsets.items()
            ),
            key=lambda o: (-(o.reads + o.writes), -1 if o.region is None else o.region, o.offset),
        )
        other = sum(o.reads + o.writes for o in ranked[OFFSETS_LISTED:]) + self._other_offsets.total()
        bursts, interrupts, time, largest = self._bursts.finish()
        timed = bool(len(self._seconds.keys))
        return results.Floods(
            handler_calls=counter("handler_calls"),
            unclaimed=counter("unclaimed"),
            spurious_wakeups=counter("spurious_wakeups"),
            noop_unmasks=counter("noop_unmasks"),
            resignals=counts.origin["resignal"],
            reentries=counter("reentries"),
            bar_reads=counter("bar_reads"),
            bar_writes=counter("bar_writes"),
            bar_accesses=accesses,
            top_offsets=tuple(ranked[:OFFSETS_LISTED]),
            other_offsets=other if ranked else None,
            bursts=bursts if timed else None,
            burst_interrupts=interrupts if timed else None,
            burst_ns=time if timed else None,
            largest_bursts=largest,
            late=self._bursts.late,
        )

    def states(self, end_at: int | None) -> results.States:
        """Make the states of a recording that ended at this instant, null without a clock."""
        time = Counter(self._closed_ns)
        if end_at is not None:
            for interval in self._open_intervals:
                time[interval.state] += max(end_at - interval.begin_at, 0)
        intervals = sorted(
            [*self._intervals, *self._open_intervals],
            key=lambda i: (i.begin_at, i.end_at is None, i.end_at or 0, i.state),
        )
        return results.States(
            time_ns=dict(sorted(time.items(), key=lambda item: (-item[1], item[0]))) if end_at is not None else {},
            changes=self._changes,
            intervals=tuple(intervals),
        )

    def slowdowns(self, axis: results.TimeAxis | None, median: int | None) -> results.Slowdowns:
        """Find the times in which interrupts were masked much longer than their median."""
        if axis is None or median is None:
            return results.Slowdowns(None, 0, ())
        # The edge of a cell of the density, so that what is counted is what is drawn.
        edge = math.ceil(math.log10(max(median, 1) * SLOW_TIMES) * DENSITY_PER_DECADE)
        measured: Counter[int] = Counter()
        slow: Counter[int] = Counter()
        for key, number in zip(self._timeline.keys.tolist(), self._timeline.counts.tolist(), strict=True):
            height = key % _HEIGHTS
            if height != _NO_HEIGHT:
                measured[key // _CELLS] += number
                slow[key // _CELLS] += number if height >= edge else 0
        found: list[results.Slowdown] = []
        last = None
        for place in sorted(place for place, number in slow.items() if number >= SLOW_SHARE * measured[place]):
            one = results.Slowdown(place * axis.width_ns, (place + 1) * axis.width_ns, measured[place], slow[place])
            if last == place - 1:
                before = found.pop()
                one = results.Slowdown(
                    before.begin_at, one.end_at, before.interrupts + one.interrupts, before.slow + one.slow
                )
            found.append(one)
            last = place
        found = [
            replace(one, begin_at=max(one.begin_at, axis.windows[0]), end_at=min(one.end_at, axis.windows[-1]))
            for one in found
            if one.slow >= SLOW_LEAST
        ]
        largest = sorted(found, key=lambda one: (-one.slow, one.begin_at))[:SLOWDOWNS_KEPT]
        return results.Slowdowns(math.ceil(10 ** (edge / DENSITY_PER_DECADE)), len(found), tuple(largest))

    def figures(self, whole: PartTally, axis: results.TimeAxis | None) -> tuple[results.PathFigures, ...]:
        """Make what the figures draw, path by path in the order of `latency`."""
        keys, counts = self._timeline.keys, self._timeline.counts
        bins, path, height = keys // _CELLS, keys // _HEIGHTS % len(PATHS), keys % _HEIGHTS
        figures = []
        for name, distributions in whole.distributions().items():
            rate: npt.NDArray[np.int64] = np.zeros(axis.bins if axis else 0, np.int64)
            density: tuple[tuple[int, int, int], ...] = ()
            if axis:
                here = path == PATHS.index(name)
                places = bins[here] - axis.begin_at // axis.width_ns
                np.add.at(rate, places, counts[here])
                drawn = height[here] != _NO_HEIGHT
                cells = (places[drawn], height[here][drawn], counts[here][drawn])
                density = tuple(zip(*(column.tolist() for column in cells), strict=True))
            figures.append(
                results.PathFigures(path=name, rate=tuple(rate.tolist()), distributions=distributions, density=density)
            )
        return tuple(figures)


def _longest(intervals: list[results.StateInterval]) -> list[results.StateInterval]:
    if len(intervals) <= INTERVALS_KEPT:
        return intervals
    ranked = sorted(intervals, key=lambda i: (i.begin_at - (i.end_at or i.begin_at), i.begin_at, i.state))
    return ranked[:INTERVALS_KEPT]
