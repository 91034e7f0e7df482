"""The one histogram that every percentile comes from: mergeable, logarithmic, at most 1 % off.

The buckets and the quantile rule are those of DDSketch (Masson, Rim, Lee: "DDSketch", VLDB 2019) as the `ddsketch`
library implements them; what is done for a whole column or for all buckets is done here, with numpy.
"""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt
from ddsketch.mapping import LogarithmicMapping

from intxtrace.analysis.results import Distribution, LogBins

ACCURACY = 0.005
"""Of the buckets. Percentiles are then rounded to whole ns, which adds at most 0.5 ns where 0.5 % is more than that,
and makes them exact below: at most 1 % in all."""

_MAPPING = LogarithmicMapping(ACCURACY)

P99_99_SAMPLES = 10_000
"""Below so many samples p99.99 would be the maximum under another name, so it is null."""


class Histogram:
    """Counts whole numbers of 0 or more."""

    def __init__(self) -> None:
        self._first = 0  # number of the first bucket
        self._buckets: npt.NDArray[np.int64] = np.empty(0, np.int64)
        self._zeros = 0
        self.count = 0
        self.sum = 0
        self._min: int | None = None
        self._max: int | None = None

    def add(self, values: npt.NDArray[np.int64]) -> None:
        """Count values (int64, shape (n,), none negative)."""
        if not len(values):
            return
        low, high = int(values.min()), int(values.max())
        if low < 0:
            raise ValueError(f"a histogram of durations cannot count {low}")
        self._min = low if self._min is None else min(self._min, low)
        self._max = high if self._max is None else max(self._max, high)
        self.count += len(values)
        self.sum += _exact_sum(values, high)
        positive = values[values > 0] if low == 0 else values
        self._zeros += len(values) - len(positive)
        if len(positive):
            keys = np.ceil(np.log(positive) / math.log(_MAPPING.gamma)).astype(np.int64)
            first = int(keys.min())
            self._join(first, np.bincount(keys - first))

    def merge(self, other: Histogram) -> None:
        """Count everything that another histogram counted."""
        if other.count == 0:
            return
        self._join(other._first, other._buckets)
        self._zeros += other._zeros
        self.count += other.count
        self.sum += other.sum
        assert other._min is not None
        assert other._max is not None
        self._min = other._min if self._min is None else min(self._min, other._min)
        self._max = other._max if self._max is None else max(self._max, other._max)

    def _join(self, first: int, buckets: npt.NDArray[np.int64]) -> None:
        """Add counts of buckets, of which the first has this number."""
        if not len(self._buckets):
            self._first = first
        begin = min(first, self._first)
        end = max(first + len(buckets), self._first + len(self._buckets))
        if (begin, end) != (self._first, self._first + len(self._buckets)):
            before, self._buckets = self._buckets, np.zeros(end - begin, np.int64)
            self._buckets[self._first - begin :][: len(before)] = before
            self._first = begin
        self._buckets[first - begin :][: len(buckets)] += buckets

    def distribution(self) -> Distribution:
        """Give the statistics; of nothing, all but the count are null."""
        if self._min is None or self._max is None:
            return Distribution(0, None, None, None, None, None, None, None, None)
        low, high = self._min, self._max
        below = np.cumsum(self._buckets)

        def quantile(q: float) -> int:
            # As ddsketch.ddsketch.BaseDDSketch.get_quantile_value.
            rank = q * (self.count - 1)
            if rank < self._zeros:
                return 0
            bucket = int(np.searchsorted(below, rank - self._zeros, "right"))
            return min(max(round(_MAPPING.value(bucket + self._first)), low), high)

        return Distribution(
            count=self.count,
            min=low,
            max=high,
            mean=round(self.sum / self.count, 1),
            p50=quantile(0.5),
            p90=quantile(0.9),
            p99=quantile(0.99),
            p99_9=quantile(0.999),
            p99_99=quantile(0.9999) if self.count >= P99_99_SAMPLES else None,
        )

    def log_bins(self, per_decade: int) -> LogBins:
        """Give the counts in bins of equal width on a log axis, for drawing; zeros go into the bin of 1."""
        if not self.count:
            return LogBins(per_decade, 0, ())
        bins: dict[int, int] = {}
        if self._zeros:
            bins[0] = self._zeros
        for index in np.flatnonzero(self._buckets).tolist():
            value = max(_MAPPING.value(index + self._first), 1.0)
            place = math.floor(math.log10(value) * per_decade)
            bins[place] = bins.get(place, 0) + int(self._buckets[index])
        first = min(bins)
        return LogBins(per_decade, first, tuple(bins.get(place, 0) for place in range(first, max(bins) + 1)), self.sum)


def _exact_sum(values: npt.NDArray[np.int64], high: int) -> int:
    """Sum without overflow: int64 holds the sum of n values of `high`, or Python's integers do."""
    if high and len(values) > np.iinfo(np.int64).max // high:
        return sum(values.tolist())
    return int(values.sum())
