"""How long the probes take to compile, to be loaded and attached, and their cost to be measured; beside a program that
includes kernel headers.

Run as root: python -m tests.benchmarks.bench_load [RUNS]
"""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Callable
from typing import Any

from intxtrace.capture.bcc_import import import_bcc
from intxtrace.capture.host import installed_qemu
from intxtrace.capture.program import Probes, compile_source
from intxtrace.capture.qemu_functions import find_functions
from tests.unit.test_catalogue import EVERYTHING, FUNCTIONS, FakeBtf, planner

# What a tracer of interrupts would usually include, for the structures that ours takes from BTF.
_PEER = b"""
#include <linux/sched.h>
#include <linux/interrupt.h>
#include <linux/pci.h>
#include <linux/kvm_host.h>
int peer(void *ctx) { return 0; }
"""


def timed(action: Callable[[], Any], runs: int) -> float:
    """Return the median of so many runs, in seconds."""
    seconds = []
    for _ in range(runs):
        begun = time.perf_counter()
        made = action()
        seconds.append(time.perf_counter() - begun)
        made.close() if hasattr(made, "close") else made.cleanup()
    return statistics.median(seconds)


def calibration() -> float:
    """Return the seconds that `record` takes at its start to measure what the probes cost, those in QEMU too."""
    with Probes() as probes:
        for path in installed_qemu():
            probes.attach_qemu(find_functions(path))
        probes.calibrate()
        return probes.calibration.spent_ns / 1e9


def main() -> int:
    runs = int(sys.argv[1]) if len(sys.argv) > 1 else 5
    bcc = import_bcc()
    # Every probe there is, as on a kernel that has all functions.
    source = planner(FakeBtf(FUNCTIONS), EVERYTHING).plan("count", 16 << 20).source
    ours = timed(lambda: compile_source(source), runs)
    peer = timed(lambda: bcc.BPF(text=_PEER, cflags=["-w"]), runs)
    loaded = timed(lambda: Probes(), runs)
    calibrated = statistics.median(calibration() for _ in range(runs))
    print(f"compile, all probes:         {ours:.2f} s")
    print(f"compile, kernel headers:     {peer:.2f} s (an empty program), {peer / ours:.1f} times as long")
    print(f"plan, compile, load, attach: {loaded:.2f} s (those probes that this kernel takes)")
    print(f"measure what they cost:      {calibrated:.3f} s (each method that they use, once)")
    return 0


if __name__ == "__main__":
    sys.exit(main())
