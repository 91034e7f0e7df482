"""How much the drain takes, and what it costs: the mapped ring against bcc's callback, in one run.

A raw tracepoint emits one record for every getppid(2) of a process that does nothing else. Each reader drains for the
same time; what the kernel emitted, what was delivered and what was lost must add up exactly.

Run as root: python -m tests.benchmarks.bench_drain [SECONDS]
"""

from __future__ import annotations

import ctypes as ct
import resource
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from intxtrace.capture.recording import POLL_SECONDS, prefer
from intxtrace.capture.ring import CallbackRing, Drain, Events, MappedRing, Source
from intxtrace.events import RECORD
from tests.native.getppid import Getppid

RING_BYTES = 16 << 20
PACE = 1.5e6
"""Events a second of the first run, above the rate that must be taken without loss; the others are at full rate."""


class EventCallback:
    """What bcc's documentation shows: a callback that lets the table decode each event."""

    def __init__(self, bpf: Any) -> None:
        self._bpf = bpf
        self._rows: list[tuple[int, ...]] = []
        table = bpf[b"events"]
        names = RECORD.names or ()

        def receive(_context: int, data: int, _size: int) -> int:
            event = ct.cast(data, ct.POINTER(_Record)).contents
            self._rows.append(tuple(getattr(event, name) for name in names))
            return 0 if len(self._rows) < 1 << 16 else -1

        table.open_ring_buffer(receive)

    def take(self) -> tuple[Events, int]:
        self._bpf.ring_buffer_consume()
        events = np.array(self._rows, RECORD)
        self._rows.clear()
        return events, int(events["ts"].max()) if len(events) else 0

    def close(self) -> None:
        pass


class _Record(ct.Structure):
    _fields_ = tuple(
        (name, {"<u8": ct.c_uint64, "<u4": ct.c_uint32, "<i4": ct.c_int32, "<u2": ct.c_uint16}[RECORD[name].str])
        for name in RECORD.names or ()
    )


@dataclass
class Run:
    """What one reader did."""

    seconds: float
    emitted: int
    delivered: int
    """While the producer ran."""
    lost: int
    cpu: float
    in_order: bool


def measure(open_source: Callable[[Any], Source], seconds: float, rate: float | None = None) -> Run:
    """Drain a producer of so many events a second, or at full rate, for so long, then let it stop, and count."""
    with Getppid(RING_BYTES) as probe:
        drain = Drain(open_source(probe.bpf))
        delivered = last = 0
        in_order = True
        before = resource.getrusage(resource.RUSAGE_SELF)
        begun = time.monotonic()
        asked = 0
        if rate is None:
            probe.start()
        while True:
            if rate is not None and (due := int(rate * (time.monotonic() - begun))) > asked:
                probe.start(due - asked)
                asked = due
            events = drain.take()
            if len(events):
                delivered += len(events)
                times = events["ts"]
                in_order = in_order and int(times[0]) >= last and bool(np.all(times[1:] >= times[:-1]))
                last = int(times[-1])
            now = time.monotonic()
            if now >= begun + seconds:
                break
            time.sleep(POLL_SECONDS)
        after = resource.getrusage(resource.RUSAGE_SELF)
        probe.stop()
        at_the_end = delivered
        while len(events := drain.take(everything=True)):
            delivered += len(events)
        emitted, lost = probe.emitted, probe.lost
        drain.close()
    if emitted != delivered + lost:
        raise SystemExit(f"emitted {emitted}, delivered {delivered}, lost {lost}: these must add up")
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return Run(now - begun, emitted, at_the_end, lost, cpu, in_order)


def main() -> int:
    seconds = float(sys.argv[1]) if len(sys.argv) > 1 else 5.0
    readers: dict[str, Callable[[Any], Source]] = {
        "mapped ring": lambda bpf: MappedRing(bpf[b"events"].map_fd, RING_BYTES),
        "our callback": CallbackRing,
        "bcc's callback": EventCallback,
    }
    prefer()
    costs = {}
    runs = [("mapped ring", PACE), *((name, None) for name in readers)]
    for name, rate in runs:
        run = measure(readers[name], seconds, rate)
        costs[name] = run.cpu / max(run.delivered, 1) * 1e6
        print(
            f"{name:14}: {run.delivered / run.seconds / 1e6:5.2f} M events/s for {run.seconds:.1f} s, "
            f"{run.lost:,} of {run.emitted:,} lost, {costs[name]:.3f} us CPU per event, "
            f"order {'kept' if run.in_order else 'BROKEN'}"
        )
    for name in ("our callback", "bcc's callback"):
        print(f"ratio: {name} costs {costs[name] / costs['mapped ring']:.1f} times the CPU of the mapped ring")
    return 0


if __name__ == "__main__":
    sys.exit(main())
