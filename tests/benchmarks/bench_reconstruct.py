"""Events a second that the reconstructor takes on one core, from records in memory to frames; CPU time, best of three.

Run: python -m tests.benchmarks.bench_reconstruct [MILLIONS]
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np

from intxtrace.reconstruct import Reconstructor, compile
from tests.benchmarks import naive
from tests.generate import MIX, pieces_of

BATCH = 1_000_000


def best(action: Callable[[], int], runs: int = 3) -> tuple[float, int]:
    """Return the least CPU time of some runs, in seconds, and what the last one returned."""
    seconds, result = [], 0
    for _ in range(runs):
        begin = time.process_time()
        result = action()
        seconds.append(time.process_time() - begin)
    return min(seconds), result


def reconstruct(events: np.ndarray[Any, Any], tables: Any) -> int:
    """Feed in batches, and return the number of interrupts."""
    reconstructor = Reconstructor(tables, compile_from=0)
    interrupts = 0
    for begin in range(0, len(events), BATCH):
        interrupts += len(reconstructor.feed(events[begin : begin + BATCH]).interrupts)
    return interrupts + len(reconstructor.finish().interrupts)


def main(millions: float) -> None:
    """Generate, reconstruct, and print figures."""
    kept = compile.is_kept()
    begin = time.process_time()
    compile.prepare()
    print(f"{'load' if kept else 'compile'}: {time.process_time() - begin:.2f} s of CPU")
    tables, pieces = pieces_of(MIX, int(millions * 1e6 / 170))
    events = np.concatenate(list(pieces))
    seconds, interrupts = best(lambda: reconstruct(events, tables))
    ours = len(events) / seconds / 1e6
    print(f"reconstruct: {len(events):,} events to {interrupts:,} interrupts in {seconds:.2f} s: {ours:.1f} M events/s")
    seconds, rows = best(lambda: len(naive.interrupts(events)))
    peer = len(events) / seconds / 1e6
    print(f"naive pandas: {rows:,} handler calls joined in {seconds:.2f} s: {peer:.1f} M events/s")
    print(f"ratio: {ours / peer:.1f} times the events per second of naive pandas, which does a part of the work")


if __name__ == "__main__":
    main(float(sys.argv[1]) if len(sys.argv) > 1 else 10)
