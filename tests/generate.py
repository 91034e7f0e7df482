"""Makes long realistic traces quickly: the life cycles of DESIGN, repeated and interleaved over devices.

Each cycle is a template of events for one device; numpy repeats it for every device and period, and sorts the lot. A
trace of any length comes piece by piece, each of the same size in memory.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from intxtrace.events import RECORD, Kind
from intxtrace.trace.metadata import Metadata
from intxtrace.trace.tables import Tables
from intxtrace.trace.writer import TraceWriter
from tests.dsl import Trace

PERIOD = 100_000
"""ns between two interrupts of one device: two of any cycle, and what they leave behind, fit in."""

CYCLES = ("kernel", "kernel_resignal", "hybrid", "userspace", "userspace_resignal")

_PIECE = 1 << 13
"""Periods of one piece."""

_FLOOD = 256
"""Periods of one flood."""


@dataclass(frozen=True)
class Mix:
    """What a trace is made of. Without `jitter` and the rest every period is like the one before."""

    devices: int = 8
    cycles: tuple[str, ...] = CYCLES
    """Device n lives the cycle n modulo their number."""
    jitter: int = 0
    """Each step of a cycle comes up to so many ns late (at most `Trace.STEP`, so that the order stays)."""
    floods: float = 0.0
    """Share of the time in which every device interrupts twice a period, for 25 ms at a stretch."""
    losses: int = 0
    """One `LOST` event, and the events of one cycle missing, every so many periods; 0: none."""
    seed: int = 0


MIX = Mix(jitter=900, floods=0.1, losses=500)
"""What the benchmarks take: all paths, some floods, some losses."""


def template(cycle: str) -> tuple[np.ndarray[Any, Any], int]:
    """Return the records of one cycle of device 0 of VM 0, from ts 0 on, and how many interrupts it is."""
    trace = Trace()
    vm = trace.vm()
    device = trace.device(vm)
    trace.forget()
    getattr(trace, f"{cycle}_interrupt")(device, at=0)
    return trace.records(), 2 if cycle.endswith("resignal") else 1


def generate(
    interrupts: int, *, devices: int = 8, cycles: tuple[str, ...] = CYCLES
) -> tuple[np.ndarray[Any, Any], Tables]:
    """Make a trace of about this many interrupts."""
    mix = Mix(devices=devices, cycles=cycles)
    per_period = sum(template(cycle)[1] for cycle in _kinds(mix))
    tables, pieces = pieces_of(mix, max(1, interrupts // per_period))
    return np.concatenate(list(pieces)), tables


def write(path: Path, events: int, mix: Mix) -> int:
    """Write a trace file of about this many events, in bounded memory, and return how many there are."""
    per_period = sum(len(template(cycle)[0]) for cycle in _kinds(mix))
    tables, pieces = pieces_of(mix, max(1, events // per_period))
    with TraceWriter(path, Metadata(hostname="generated")) as writer:
        for piece in pieces:
            writer.write(piece, tables)
        return writer.events


def events_for(interrupts: int, mix: Mix = MIX) -> int:
    """Return how many events make at least so many interrupts, floods and losses apart."""
    cycles = [template(cycle) for cycle in _kinds(mix)]
    return -(-interrupts * sum(len(events) for events, _ in cycles) // sum(number for _, number in cycles))


def _kinds(mix: Mix) -> list[str]:
    return [mix.cycles[d % len(mix.cycles)] for d in range(mix.devices)]


def pieces_of(mix: Mix, periods: int) -> tuple[Tables, Iterator[np.ndarray[Any, Any]]]:
    """Return the tables, and the records of so many periods, piece by piece, in order of their timestamps."""
    setup = Trace()
    for d in range(mix.devices):
        setup.device(setup.vm(), bdf=f"0000:{d + 1:02x}:00.0")
    ones = [template_for(template(cycle)[0], d) for d, cycle in enumerate(_kinds(mix))]

    def pieces() -> Iterator[np.ndarray[Any, Any]]:
        random = np.random.default_rng(mix.seed)
        yield setup.records()
        for begin in range(0, periods, _PIECE):
            yield _piece(mix, ones, np.arange(begin, min(begin + _PIECE, periods), dtype=np.uint64), random)

    return setup.tables, pieces()


def _piece(
    mix: Mix, ones: list[np.ndarray[Any, Any]], periods: np.ndarray[Any, Any], random: np.random.Generator
) -> np.ndarray[Any, Any]:
    """Return the records of these periods."""
    starts = (periods + 2 * (periods // np.uint64(_PIECE))) * np.uint64(PERIOD)  # No piece reaches into the next.
    flooded = np.repeat(random.random(len(periods) // _FLOOD + 1) < mix.floods, _FLOOD)[: len(periods)]
    parts = []
    for d, one in enumerate(ones):
        begin = np.uint64(2_000_000 + d * PERIOD // len(ones))
        lost = np.zeros(len(periods), np.bool_)
        if mix.losses:
            lost = periods % np.uint64(mix.losses * len(ones)) == mix.losses * d
        for chosen, offset in ((~lost, 0), (flooded, int(one["ts"].max()) + Trace.STEP)):
            start = starts[chosen] + begin + np.uint64(offset)
            part = np.tile(one, len(start))
            part["ts"] += np.repeat(start, len(one))
            if mix.jitter:
                part["ts"] += random.integers(0, mix.jitter, len(part), dtype=np.uint64)
            parts.append(part)
        note = np.zeros(int(lost.sum()), RECORD)
        note["kind"], note["arg1"] = Kind.LOST, len(one)
        note["ts"] = note["arg0"] = starts[lost] + begin
        parts.append(note)
    events = np.concatenate(parts)
    return events[np.argsort(events["ts"], kind="stable")]


def template_for(one: np.ndarray[Any, Any], d: int) -> np.ndarray[Any, Any]:
    """Move a template to device d of VM d: other objects, other threads."""
    moved = one.copy()
    for field in ("device", "link", "link2", "vm"):
        moved[field] = np.where(one[field] != 0, one[field] + np.uint64(d * Trace.STRIDE), 0)
    has_ctx = np.isin(one["kind"], [Kind.IRQFD_WAKEUP, Kind.IRQFD_INJECT])
    moved["arg1"] = np.where(has_ctx, one["arg1"] + np.uint64(d * Trace.STRIDE), one["arg1"])
    for field in ("tgid", "tid"):
        moved[field] = np.where(one[field] != 0, one[field] + d * Trace.THREADS, 0)
    return moved
