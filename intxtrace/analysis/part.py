"""What is counted of one device's interrupts in one window of time; windows can be joined exactly."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from intxtrace.analysis import results
from intxtrace.analysis.histogram import Histogram
from intxtrace.analysis.results import MEASURES, STAGE_MEASURES
from intxtrace.analysis.rows import NULL
from intxtrace.frames import ORIGINS, OUTCOMES, PATHS

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from intxtrace.analysis.rows import Ints

DISTRIBUTION_PER_DECADE = 20


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


def counts_of(cells: Counter[tuple[int, int, int]], coalesced: int | None) -> results.Counts:
    """Make the counts of interrupts counted by path, origin and outcome (their places in the lists of `frames`)."""
    rows = sorted(cells.items())

    def by(place: int, words: tuple[str, ...]) -> dict[str, int]:
        return {word: sum(n for key, n in rows if key[place] == code) for code, word in enumerate(words)}

    return results.Counts(
        total=cells.total(),
        path=by(0, PATHS),
        origin=by(1, ORIGINS),
        outcome=by(2, OUTCOMES),
        rows=tuple(results.CountRow(PATHS[p], ORIGINS[o], OUTCOMES[e], n) for (p, o, e), n in rows),
        coalesced=coalesced,
    )


class PartTally:
    """The interrupts of one device in one window of time."""

    def __init__(self) -> None:
        self.rows: Counter[tuple[int, int, int]] = Counter()
        """By path, origin and outcome, as places in their lists."""
        self.coalesced: int | None = None
        self.slowest: list[results.Interrupt] = []
        """Longest masked first."""
        self._paths: dict[int, PathTally] = {}

    @classmethod
    def joined(cls, parts: Iterable[PartTally], slowest: int) -> PartTally:
        """Give all that these parts took, with so many of the slowest."""
        whole = cls()
        for part in parts:
            whole.merge(part, slowest)
        return whole

    def add(self, path: Ints, origin: Ints, outcome: Ints, coalesced: Ints, durations: Mapping[str, Ints]) -> None:
        """Take interrupts, words as places in their lists."""
        cells = np.bincount((path * len(ORIGINS) + origin) * len(OUTCOMES) + outcome)
        for cell in np.flatnonzero(cells).tolist():
            rest, outcome_code = divmod(cell, len(OUTCOMES))
            self.rows[(*divmod(rest, len(ORIGINS)), outcome_code)] += int(cells[cell])
        if (coalesced != NULL).any():
            self.coalesced = (self.coalesced or 0) + int((coalesced == 1).sum())
        complete = outcome == OUTCOMES.index("complete")
        for number in np.unique(path).tolist():
            here = path == number
            tally = self._paths.setdefault(number, PathTally())
            tally.add({measure: values[here] for measure, values in durations.items()}, complete[here])

    def merge(self, other: PartTally, slowest: int) -> None:
        """Take everything that another part took, and keep so many of the slowest."""
        self.rows.update(other.rows)
        if other.coalesced is not None:
            self.coalesced = (self.coalesced or 0) + other.coalesced
        for number, tally in other._paths.items():
            self._paths.setdefault(number, PathTally()).merge(tally)
        self.keep_slowest(other.slowest, slowest)

    def keep_slowest(self, found: Iterable[results.Interrupt], most: int) -> None:
        """Keep the longest masked of these and of those that are kept; ids decide between equals."""
        self.slowest = sorted([*self.slowest, *found], key=lambda row: (-(row.masked_ns or 0), row.id))[:most]

    def counts(self) -> results.Counts:
        """Make the counts."""
        return counts_of(self.rows, self.coalesced)

    def latency(self) -> tuple[results.PathLatency, ...]:
        """Make the statistics of each path, most interrupts first, and of all if there is more than one."""
        latency = [tally.latency(PATHS[number]) for number, tally in self._ordered()]
        if len(latency) > 1:
            whole = PathTally()
            for tally in self._paths.values():
                whole.merge(tally)
            latency.append(whole.latency("all"))
        return tuple(latency)

    def distributions(self) -> dict[str, dict[str, results.LogBins]]:
        """Make the bins that are drawn, by path in the order of `latency`, then by measure."""
        return {
            PATHS[number]: {name: found.log_bins(DISTRIBUTION_PER_DECADE) for name, found in tally.measures.items()}
            for number, tally in self._ordered()
        }

    def _ordered(self) -> list[tuple[int, PathTally]]:
        return sorted(self._paths.items(), key=lambda item: (-item[1].interrupts, item[0]))
