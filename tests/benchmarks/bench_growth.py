"""How time and memory grow with the trace: `summary` and `iter_interrupts`, each in a process of its own.

Run: python -m tests.benchmarks.bench_growth [MILLIONS ...]  (1 and 10; 100 takes some minutes and 700 MB of disk)
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from pathlib import Path

from tests.benchmarks.bench_load_trace import peer_summary, peer_table, summary
from tests.generate import MIX, write

PEER_UP_TO = 10
"""Millions of events that naive pandas, which holds them all, is given at most."""


def iterate(path: Path) -> None:
    """Go through all interrupts, frame by frame."""
    from intxtrace.api import open_trace

    for _ in open_trace(path).iter_interrupts():
        pass


ACTIONS = {
    "summary": summary,
    "iter_interrupts": iterate,
    "naive pandas summary": peer_summary,
    "naive pandas table": peer_table,
}
PEERS = {"summary": "naive pandas summary", "iter_interrupts": "naive pandas table"}


def child(action: str, path: str) -> None:
    """Run in the child: print the CPU seconds and the peak resident size in MB."""
    from intxtrace.reconstruct import compile

    if not action.startswith("naive"):
        compile.prepare()
    begin = time.process_time()
    ACTIONS[action](Path(path))
    # Not getrusage: its maximum begins with the parent's.
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    print(time.process_time() - begin, int(status["VmHWM"].split()[0]) / 1024)


def measure(action: str, path: Path) -> tuple[float, float]:
    command = [sys.executable, "-m", "tests.benchmarks.bench_growth", "--child", action, str(path)]
    seconds, peak = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout.split()
    return float(seconds), float(peak)


def main(sizes: list[float]) -> None:
    """Write a trace of each size, run both, and print figures."""
    for millions in sizes:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "long.intx"
            events = write(path, int(millions * 1e6), MIX)
            print(f"{events:,} events, {path.stat().st_size / 1e6:.0f} MB", flush=True)
            for action, peer in PEERS.items():
                ours = None
                for name in (action, peer) if millions <= PEER_UP_TO else (action,):
                    seconds, peak = measure(name, path)
                    ratio = (
                        ""
                        if ours is None
                        else f": ratio {seconds / ours[0]:.1f} in time, {peak / ours[1]:.1f} in memory"
                    )
                    ours = ours or (seconds, peak)
                    print(
                        f"  {name}: {seconds:.2f} s of CPU, {seconds / events * 1e9:.0f} ns per event, "
                        f"{peak:.0f} MB resident at most{ratio}",
                        flush=True,
                    )


if __name__ == "__main__":
    if sys.argv[1:2] == ["--child"]:
        child(*sys.argv[2:])
    else:
        main([float(size) for size in sys.argv[1:]] or [1, 10])
