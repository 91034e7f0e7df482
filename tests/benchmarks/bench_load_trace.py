"""Events a second from a trace file to the interrupts table, and to the summary; CPU and wall time, best of three.

Run: python -m tests.benchmarks.bench_load_trace [MILLIONS]
"""

from __future__ import annotations

import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa

from intxtrace.api import open_trace
from intxtrace.cli.filters import Filters
from intxtrace.cli.output import summarised
from intxtrace.reconstruct import compile
from tests.benchmarks import naive
from tests.generate import MIX, write


def table(path: Path) -> Any:
    """Make the interrupts table of a trace."""
    return open_trace(path).interrupts


def summary(path: Path) -> Any:
    """Do what `intxtrace summary` does, but for printing."""
    return summarised(open_trace(path), Filters())


def _read(path: Path) -> dict[str, Any]:
    with pa.OSFile(str(path)) as file:
        read = pa.ipc.open_stream(file).read_all()
    return {name: read[name].to_numpy() for name in naive.COLUMNS}


def peer_table(path: Path) -> Any:
    """Read with pyarrow, and join with pandas."""
    return naive.interrupts(_read(path))


def peer_summary(path: Path) -> Any:
    """The same, percentiles and counts."""
    return naive.summary(_read(path))


def best(action: Callable[[Path], Any], path: Path) -> tuple[float, float]:
    """Return the least CPU and the least wall time of three runs, in seconds."""
    cpu, wall = [], []
    for _ in range(3):
        began, begun = time.process_time(), time.perf_counter()
        action(path)
        cpu.append(time.process_time() - began)
        wall.append(time.perf_counter() - begun)
    return min(cpu), min(wall)


def main(millions: float) -> None:
    """Write a trace, load it, and print figures."""
    compile.prepare()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "long.intx"
        events = write(path, int(millions * 1e6), MIX)
        print(f"{events:,} events, {path.stat().st_size / events:.1f} bytes each")
        for name, ours, peer in (("interrupts", table, peer_table), ("summary", summary, peer_summary)):
            figures = {}
            for who, action in (("ours", ours), ("naive pandas", peer)):
                cpu, wall = best(action, path)
                figures[who] = cpu
                print(
                    f"{name}, {who}: {cpu:.2f} s of CPU, {wall:.2f} s on the wall: "
                    f"{events / cpu / 1e6:.1f} and {events / wall / 1e6:.1f} M events/s"
                )
            print(f"ratio: {figures['naive pandas'] / figures['ours']:.1f} times the events per second of CPU")


if __name__ == "__main__":
    main(float(sys.argv[1]) if len(sys.argv) > 1 else 5)
