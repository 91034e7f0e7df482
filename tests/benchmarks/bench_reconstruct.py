"""Events a second that the reconstructor takes on one core.

Run: python -m tests.benchmarks.bench_reconstruct [MILLIONS]
"""

from __future__ import annotations

import sys
import time

import numpy as np

from intxtrace.events import RECORD
from intxtrace.reconstruct import Reconstructor, compile
from tests.generate import generate

BATCH = 1_000_000


def main(millions: float) -> None:
    """Generate, reconstruct in batches, and print figures."""
    begin = time.perf_counter()
    compile.prepare()
    print(f"compile or load: {time.perf_counter() - begin:.2f} s")
    begin = time.perf_counter()
    events, tables = generate(int(millions * 1e6 / 15.4))
    print(
        f"generate: {len(events):,} events ({len(events) * RECORD.itemsize / 1e9:.1f} GB) in "
        f"{time.perf_counter() - begin:.1f} s"
    )
    reconstructor = Reconstructor(tables, compile_from=0)
    begin = time.process_time()
    interrupts = 0
    for batch in np.array_split(events, max(1, len(events) // BATCH)):
        interrupts += len(reconstructor.feed(batch).interrupts)
    interrupts += len(reconstructor.finish().interrupts)
    seconds = time.process_time() - begin
    print(
        f"reconstruct: {interrupts:,} interrupts in {seconds:.2f} s of CPU, "
        f"{len(events) / seconds / 1e6:.1f} M events/s"
    )


if __name__ == "__main__":
    main(float(sys.argv[1]) if len(sys.argv) > 1 else 10)
