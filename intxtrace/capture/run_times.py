"""How long the probes' programs run (`Probe.run_ns`), over a bounded part of a recording.

The programs measure it themselves (bpf/intxtrace.c: run_begin, run_end), each run that concerns somebody who is
traced, from the first event until `ENOUGH_INTERRUPTS` have been seen or `ENOUGH_NS` are over: to read the clock twice
costs some tens of ns a run. It is the median of the latest runs on each CPU, for some are interrupted. The kernel has
such a measure (BPF_ENABLE_STATS), but it would time every BPF program of the host, and its mean is of all runs: those
of other eventfds and VMs, which return at once, are most of them, and would hide what an interrupt pays.
"""

from __future__ import annotations

import statistics
import time
from typing import TYPE_CHECKING

import numpy as np

from intxtrace.events import STREAM_KINDS

if TYPE_CHECKING:
    from intxtrace.capture.program import Probes
    from intxtrace.capture.ring import Events
    from intxtrace.trace.tables import Probe

ENOUGH_INTERRUPTS = 1_000
ENOUGH_NS = 60_000_000_000


class RunTimes:
    """How long the probes' programs run, over a bounded part of a recording."""

    def __init__(self, probes: Probes) -> None:
        """Measure nothing yet."""
        self._probes = probes
        self._began_ns: int | None = None
        self._over = False

    def watch(self, events: Events, interrupts: int) -> None:
        """Begin at the first event that a probe made, end when there was enough; call it after each look at the ring.

        Args:
            events: those that have come since the last call.
            interrupts: how many there have been in all.
        """
        if self._over:
            return
        if self._began_ns is None:
            if not np.all(np.isin(events["kind"], list(STREAM_KINDS))):
                self.begin()
        elif interrupts >= ENOUGH_INTERRUPTS or time.monotonic_ns() - self._began_ns >= ENOUGH_NS:
            self.finish()

    def begin(self) -> None:
        """Let the programs time themselves."""
        self._began_ns = time.monotonic_ns()
        self._probes.time_runs(True)

    def finish(self) -> None:
        """End it, if it has begun, and write what was found into the probe table. A second call does nothing."""
        if self._began_ns is not None and not self._over:
            self._probes.time_runs(False)
            for row in self._probes.table:
                take_runs(row, self._probes.timed(row.id))
        self._over = True


def take_runs(row: Probe, found: list[tuple[int, list[int]]]) -> None:
    """Write into a probe's row what was measured of its programs: of one call, its entry and return.

    Args:
        row: the probe.
        found: of each program, how many runs were timed, and the ns of some.
    """
    if not found:
        return
    row.runs = min(runs for runs, _ in found)
    row.run_ns = round(sum(statistics.median(samples) for _, samples in found)) if row.runs else None
