"""Bursts: stretches in which a device interrupts faster than a rate for at least a time."""

from __future__ import annotations

from collections import deque
from dataclasses import replace

import numpy as np
import numpy.typing as npt

from intxtrace.analysis.results import Burst

RECENT = 1_000
"""So many of the latest bursts are kept."""

KEPT = 20
"""So many of the largest bursts are kept; all are counted."""


class BurstFinder:
    """Finds the bursts of one device in its instants, fed in order, in as many pieces as one likes.

    More than `rate` interrupts a second for `window` ns means: more than `rate * window` interrupts within `window`.
    A burst is the union of such stretches that share an interrupt. An instant before one that was seen already
    cannot be placed and is left out; `late` counts them.
    """

    def __init__(self, rate: float, window: int) -> None:
        self._reach = int(rate * window / 1e9)  # so many interrupts later must be more than the window away
        self._window = window
        self._tail = np.empty(0, np.int64)
        self._seen = 0
        self._open: tuple[int, int, int, int] | None = None  # first and last interrupt by number, and their instants
        self._kept: list[Burst] = []
        self._recent: deque[Burst] = deque(maxlen=RECENT)
        self.late = 0
        self._closed, self._interrupts, self._time = 0, 0, 0

    def add(self, instants: npt.NDArray[np.int64]) -> None:
        """Look at further instants, in ns, int64, shape (n,)."""
        if not len(instants):
            return
        floor = self._tail[-1] if len(self._tail) else instants[0]
        in_order = instants >= np.maximum(np.maximum.accumulate(instants), floor)
        self.late += int((~in_order).sum())
        instants = np.concatenate([self._tail, instants[in_order]])
        first = self._seen - len(self._tail)
        self._seen = first + len(instants)
        reach = self._reach
        hot = np.flatnonzero(instants[reach:] - instants[: max(len(instants) - reach, 0)] <= self._window)
        if len(hot):
            breaks = np.flatnonzero(np.diff(hot) > reach)
            for begin, end in zip(
                hot[np.r_[0, breaks + 1]].tolist(), (hot[np.r_[breaks, len(hot) - 1]] + reach).tolist(), strict=True
            ):
                self._extend(first + begin, first + end, int(instants[begin]), int(instants[end]))
        self._tail = instants[max(len(instants) - max(reach, 1), 0) :]

    def _extend(self, begin: int, end: int, begin_at: int, end_at: int) -> None:
        if self._open is not None and begin <= self._open[1]:
            self._open = (self._open[0], end, self._open[2], end_at)
            return
        self._close()
        self._open = (begin, end, begin_at, end_at)

    def _close(self) -> None:
        if self._open is None:
            return
        begin, end, begin_at, end_at = self._open
        self._open = None
        burst = Burst(begin_at, end_at, end - begin + 1)
        self._closed += 1
        self._interrupts += burst.interrupts
        self._time += end_at - begin_at
        self._recent.append(burst)
        self._kept = sorted([*self._kept, burst], key=lambda b: (-b.interrupts, b.begin_at))[:KEPT]

    def since(self, at: int) -> int:
        """Give the number of bursts so far that reached to this instant or beyond, of the last `RECENT` and one."""
        recent = sum(burst.end_at >= at for burst in self._recent)
        return recent + (self._open is not None and self._open[3] >= at)

    def finish(self) -> tuple[int, int, int, tuple[Burst, ...]]:
        """Give the number of bursts, the interrupts and the ns in them, and the largest, largest first."""
        self._close()
        return self._closed, self._interrupts, self._time, tuple(replace(b) for b in self._kept)
