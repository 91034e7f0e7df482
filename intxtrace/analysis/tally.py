"""What is counted of one device in one VM while the frames go by, and what that makes in the end."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from intxtrace.analysis import results
from intxtrace.analysis.bins import SparseCounts
from intxtrace.analysis.bursts import BurstFinder
from intxtrace.analysis.histogram import Histogram
from intxtrace.analysis.results import MEASURES, STAGE_MEASURES, Options
from intxtrace.analysis.rows import NULL, first_known, interrupt_rows, ints, plain
from intxtrace.analysis.traits import Traits
from intxtrace.frames import ORIGINS, OUTCOMES, PATHS

if TYPE_CHECKING:
    from collections.abc import Mapping

    import pandas as pd

    from intxtrace.analysis.rows import Ints

_SECOND = 1_000_000_000

DENSITY_PER_DECADE = 10
DISTRIBUTION_PER_DECADE = 20
_HEIGHTS = 128
_NO_HEIGHT = _HEIGHTS - 1
"""The bin of those interrupts whose masked time is not in the statistics."""
_CELLS = len(PATHS) * _HEIGHTS

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


class PathTally:
    """The interrupts of one device on one path."""

    def __init__(self) -> None:
        self.measures = {measure: Histogram() for measure in MEASURES}
        self.parts = dict.fromkeys(STAGE_MEASURES, 0)
        self.interrupts, self.complete = 0, 0

    def add(self, durations: Mapping[str, Ints], complete: npt.NDArray[np.bool_]) -> None:
        """Take the durations of some interrupts, by measure, and which of them are complete."""
        self.interrupts += len(complete)
        self.complete += int(complete.sum())
        masked = durations["masked_ns"]
        for measure, values in durations.items():
            counted = complete & (values >= 0)
            self.measures[measure].add(values[counted])
            if measure in self.parts:
                self.parts[measure] += int(values[counted & (masked >= 0)].sum())

    def merge(self, other: PathTally) -> None:
        """Take everything that another tally took."""
        self.interrupts += other.interrupts
        self.complete += other.complete
        for measure, histogram in self.measures.items():
            histogram.merge(other.measures[measure])
        for measure in self.parts:
            self.parts[measure] += other.parts[measure]

    def latency(self, path: str) -> results.PathLatency:
        """Make the statistics."""
        masked = self.measures["masked_ns"]
        parts = None
        if masked.count:
            means = {measure: round(total / masked.count, 1) for measure, total in self.parts.items()}
            unsplit = round((masked.sum - sum(self.parts.values())) / masked.count, 1)
            parts = results.StageShare(**means, unsplit_ns=unsplit)
        return results.PathLatency(
            path=path,
            interrupts=self.interrupts,
            complete=self.complete,
            unmeasured=self.complete - masked.count,
            mean_parts=parts,
            **{measure: histogram.distribution() for measure, histogram in self.measures.items()},
        )


class DeviceTally:
    """One device in one VM."""

    def __init__(self, options: Options) -> None:
        self._options = options
        self.traits = Traits()
        self.bdf: str | None = None
        self.vm_pid: int | None = None
        self.host_irq: int | None = None
        self.gsi: int | None = None
        self.rows: Counter[tuple[int, int, int]] = Counter()
        self._paths: dict[int, PathTally] = {}
        self._coalesced: int | None = None
        self._bar_accesses = Histogram()
        self._slowest: list[results.Interrupt] = []
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

    def add_interrupts(
        self,
        frame: pd.DataFrame,
        rows: npt.NDArray[np.intp],
        path: Ints,
        origin: Ints,
        outcome: Ints,
        coalesced: Ints,
        accesses: Ints,
        durations: Mapping[str, Ints],
    ) -> None:
        """Take these rows of a frame of interrupts.

        The arrays hold columns of the rows, words as places in their lists: to take whole rows out of a frame is what
        costs most here.
        """
        for name in ("bdf", "vm_pid", "host_irq", "gsi"):
            if getattr(self, name) is None:
                setattr(self, name, first_known(frame[name].iloc[rows]))
        cells = np.bincount((path * len(ORIGINS) + origin) * len(OUTCOMES) + outcome)
        for cell in np.flatnonzero(cells).tolist():
            rest, outcome_code = divmod(cell, len(OUTCOMES))
            self.rows[(*divmod(rest, len(ORIGINS)), outcome_code)] += int(cells[cell])
        if (coalesced != NULL).any():
            self._coalesced = (self._coalesced or 0) + int((coalesced == 1).sum())
        self._bar_accesses.add(accesses[accesses >= 0])
        complete = outcome == OUTCOMES.index("complete")
        for number in np.unique(path).tolist():
            here = path == number
            tally = self._paths.setdefault(number, PathTally())
            tally.add({measure: values[here] for measure, values in durations.items()}, complete[here])
        self.traits.add_interrupts(frame, rows, path, origin, outcome)
        self._keep_slowest(frame, rows, np.where(complete, durations["masked_ns"], NULL))

    def _keep_slowest(self, frame: pd.DataFrame, rows: npt.NDArray[np.intp], masked: Ints) -> None:
        wanted = self._options.slowest
        full = len(self._slowest) == wanted
        candidates = np.flatnonzero(masked >= (self._slowest[-1].masked_ns or 0 if full and wanted else 0))
        if not wanted or not len(candidates):
            return
        if len(candidates) > wanted:
            # All that tie with the last one stay, so that ids decide and not the batches.
            least = np.partition(masked[candidates], len(candidates) - wanted)[len(candidates) - wanted]
            candidates = candidates[masked[candidates] >= least]
            order = np.lexsort((ints(frame["id"])[rows[candidates]], -masked[candidates]))
            candidates = candidates[order[:wanted]]
        slowest = [*self._slowest, *interrupt_rows(frame.iloc[rows[candidates]])]
        self._slowest = sorted(slowest, key=lambda row: (-(row.masked_ns or 0), row.id))[:wanted]

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

    def counts(self) -> results.Counts:
        """Make the counts."""
        rows = sorted(self.rows.items())

        def by(place: int, words: tuple[str, ...]) -> dict[str, int]:
            return {word: sum(n for key, n in rows if key[place] == code) for code, word in enumerate(words)}

        return results.Counts(
            total=self.rows.total(),
            path=by(0, PATHS),
            origin=by(1, ORIGINS),
            outcome=by(2, OUTCOMES),
            rows=tuple(results.CountRow(PATHS[p], ORIGINS[o], OUTCOMES[e], n) for (p, o, e), n in rows),
            coalesced=self._coalesced,
        )

    def latency(self) -> tuple[results.PathLatency, ...]:
        """Make the statistics of each path, most interrupts first, and of all if there is more than one."""
        latency = [tally.latency(PATHS[number]) for number, tally in self._ordered_paths()]
        if len(latency) > 1:
            whole = PathTally()
            for tally in self._paths.values():
                whole.merge(tally)
            latency.append(whole.latency("all"))
        return tuple(latency)

    def _ordered_paths(self) -> list[tuple[int, PathTally]]:
        return sorted(self._paths.items(), key=lambda item: (-item[1].interrupts, item[0]))

    def rate(self, duration: int | None) -> results.Rate:
        """Make the rate over a recording of so many ns, null without a clock."""
        if not duration:
            return results.Rate(None, None, None)
        mean = self.rows.total() / (duration / _SECOND)
        if not len(self._seconds.keys):
            return results.Rate(mean, 0 if not self.rows else None, None)
        peak = int(np.argmax(self._seconds.counts))
        return results.Rate(round(mean, 3), int(self._seconds.counts[peak]), int(self._seconds.keys[peak]) * _SECOND)

    def floods(self, recorded: set[str]) -> results.Floods:
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
            resignals=sum(n for key, n in self.rows.items() if ORIGINS[key[1]] == "resignal"),
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

    def slowest(self) -> tuple[results.Interrupt, ...]:
        """Give the complete interrupts with the longest masked time, longest first."""
        return tuple(self._slowest)

    def figures(self, axis: results.TimeAxis | None) -> tuple[results.PathFigures, ...]:
        """Make what the figures draw, path by path in the order of `latency`."""
        keys, counts = self._timeline.keys, self._timeline.counts
        bins, path, height = keys // _CELLS, keys // _HEIGHTS % len(PATHS), keys % _HEIGHTS
        figures = []
        for number, tally in self._ordered_paths():
            rate: npt.NDArray[np.int64] = np.zeros(axis.bins if axis else 0, np.int64)
            density: tuple[tuple[int, int, int], ...] = ()
            if axis:
                here = path == number
                places = bins[here] - axis.begin_at // axis.width_ns
                np.add.at(rate, places, counts[here])
                drawn = height[here] != _NO_HEIGHT
                cells = (places[drawn], height[here][drawn], counts[here][drawn])
                density = tuple(zip(*(column.tolist() for column in cells), strict=True))
            figures.append(
                results.PathFigures(
                    path=PATHS[number],
                    rate=tuple(rate.tolist()),
                    distributions={
                        measure: histogram.log_bins(DISTRIBUTION_PER_DECADE)
                        for measure, histogram in tally.measures.items()
                    },
                    density=density,
                )
            )
        return tuple(figures)


def _longest(intervals: list[results.StateInterval]) -> list[results.StateInterval]:
    if len(intervals) <= INTERVALS_KEPT:
        return intervals
    ranked = sorted(intervals, key=lambda i: (i.begin_at - (i.end_at or i.begin_at), i.begin_at, i.state))
    return ranked[:INTERVALS_KEPT]
