"""Counts in bins of time, whose width grows with the trace so that their number does not."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

_MS, _S = 1_000_000, 1_000_000_000

TIME_STEPS: tuple[int, ...] = tuple(
    [step * _MS for step in (1, 5, 10, 50, 100, 500)]
    + [step * _S for step in (1, 5, 10, 60, 300, 600, 3_600, 21_600, 86_400)]
    + [86_400 * _S * 10**power for power in range(1, 6)]
)
"""Widths of a time bin in ns. Each is a multiple of the one before, so that bins can be joined exactly."""


def time_step(first: int, last: int, bins: int) -> int:
    """Give the least of `TIME_STEPS` with which at most `bins` bins (multiples of it) cover both instants."""
    for step in TIME_STEPS:
        if last // step - first // step < bins:
            return step
    return TIME_STEPS[-1]


class SparseCounts:
    """Counts by a whole number, in memory by the number of different ones."""

    def __init__(self) -> None:
        self.keys = np.empty(0, np.int64)
        """Sorted, each once."""
        self.counts = np.empty(0, np.int64)

    def add(self, keys: npt.NDArray[np.int64], counts: npt.NDArray[np.int64] | None = None) -> None:
        """Count each key of int64, shape (n,), once or so often as `counts` says."""
        if len(keys):
            self._merge(*(np.unique(keys, return_counts=True) if counts is None else (keys, counts)))

    def map_keys(self, keys: npt.NDArray[np.int64]) -> None:
        """Give the keys new numbers; those that become equal are added up."""
        counts, self.counts, self.keys = self.counts, np.empty(0, np.int64), np.empty(0, np.int64)
        self._merge(keys, counts)

    def _merge(self, keys: npt.NDArray[np.int64], counts: npt.NDArray[np.int64]) -> None:
        joined, places = np.unique(np.concatenate([self.keys, keys]), return_inverse=True)
        totals = np.zeros(len(joined), np.int64)
        np.add.at(totals, places, np.concatenate([self.counts, counts]))
        self.keys, self.counts = joined, totals
