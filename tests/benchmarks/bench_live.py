"""What `live` costs at 100,000 events a second: share of one core, on a real pseudo-terminal of 80 × 24.

A trace is played in its own time. Beside it: the same without the view (events are read, and dropped), and the
reconstructor alone, compiled and interpreted, on the same events.

Run: python -m tests.benchmarks.bench_live [SECONDS]
"""

from __future__ import annotations

import os
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from intxtrace.live import POLL_SECONDS, Replay
from intxtrace.reconstruct import Reconstructor, compile
from intxtrace.trace.metadata import Metadata
from intxtrace.trace.writer import TraceWriter
from tests.generate import MIX, pieces_of
from tests.terminal import Terminal

RATE = 100_000
_WARM_UP = 12.0
"""Seconds until the window is full."""


def write(path: Path, seconds: float) -> tuple[int, float]:
    """Write a trace of `RATE` events a second; return how many events there are and how many seconds it is long."""
    tables, pieces = pieces_of(MIX, int(RATE * seconds / 190))
    events = np.concatenate(list(pieces))
    times = events["ts"].astype(np.int64)
    stretch = len(events) / RATE * 1e9 / int(times[-1] - times[0])
    events["ts"] = (times * stretch).astype(np.uint64)
    with TraceWriter(path, Metadata(hostname="generated")) as writer:
        for begin in range(0, len(events), RATE):  # a batch a second, as `record` writes them
            writer.write(events[begin : begin + RATE], tables)
    return len(events), len(events) / RATE


def spent(pid: int) -> float:
    """Return the CPU time of a process, in seconds."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def on_a_terminal(path: Path, seconds: float, *keys: bytes) -> tuple[float, int]:
    """Play a trace in the full screen; return its share of a core and its resident bytes."""
    with Terminal("-m", "intxtrace", "live", "--replay", str(path)) as terminal:
        terminal.shows("interrupts")
        terminal.read(_WARM_UP)
        for key in keys:
            terminal.press(key)
            terminal.read(1)
        before, begun = spent(terminal.process.pid), time.monotonic()
        terminal.read(seconds)
        share = (spent(terminal.process.pid) - before) / (time.monotonic() - begun)
        pages = int(Path(f"/proc/{terminal.process.pid}/statm").read_text().split()[1])
        assert b"the trace ended" not in terminal.drawn, "the trace was too short"
        terminal.press(b"q")
        terminal.end()
        return share, pages * os.sysconf("SC_PAGE_SIZE")


def without(path: Path, seconds: float) -> float:
    """Play a trace into nothing; return the share of a core."""
    replay = Replay(path)
    before, begun = time.process_time(), time.monotonic()
    while (wall := time.monotonic() - begun) < seconds:
        replay.take()
        time.sleep(POLL_SECONDS)
    replay.stop()
    return (time.process_time() - before) / wall


def reconstructing(path: Path, events: int, compile_from: int) -> float:
    """Return the µs of CPU that an event takes the reconstructor, fed a twentieth of a second at a time."""
    replay = Replay(path, speed=1e9)
    reconstructor = Reconstructor(replay.tables, compile_from=compile_from)
    fed, cpu = 0, 0.0
    while fed < events and not replay.ended:
        batch = replay.take()[: events - fed]
        before = time.process_time()
        for begin in range(0, len(batch), RATE // 20):
            reconstructor.take(batch[begin : begin + RATE // 20])
        cpu += time.process_time() - before
        fed += len(batch)
    replay.stop()
    return cpu / fed * 1e6


def main(seconds: float) -> None:
    """Write a trace, play it, and print figures."""
    compile.prepare()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "busy.intx"
        events, length = write(path, _WARM_UP + seconds + 25)
        print(f"{events:,} events in {length:.0f} s, {MIX.devices} devices")
        table, memory = on_a_terminal(path, seconds)
        closely, _ = on_a_terminal(path, seconds, b"\r")
        alone = without(path, seconds)
        print(f"live, the table: {table:.1%} of a core (target 10 %), {memory / 1e6:.0f} MB resident")
        print(f"live, a device looked at closely: {closely:.1%} of a core")
        print(f"the replay alone: {alone:.1%} of a core; ratio: {table / alone:.1f}")
        compiled, interpreted = reconstructing(path, 1_000_000, 0), reconstructing(path, 200_000, 1 << 60)
        print(f"reconstructor: {compiled:.3f} µs an event compiled, {interpreted:.1f} µs interpreted")


if __name__ == "__main__":
    main(float(sys.argv[1]) if len(sys.argv) > 1 else 20)
