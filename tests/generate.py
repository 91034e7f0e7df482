"""Makes long realistic traces quickly: the four life cycles of DESIGN, repeated and interleaved over devices.

Each cycle is a template of events for one device; numpy repeats it for every device and period, and sorts the lot.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from intxtrace.events import Kind
from intxtrace.trace.tables import Tables
from tests.dsl import Trace

PERIOD = 50_000
"""ns between two interrupts of one device."""

CYCLES = ("kernel", "kernel_resignal", "hybrid", "userspace", "userspace_resignal")


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
    """Make a trace of about this many interrupts; device n lives the cycle n modulo the number of cycles."""
    kinds = [cycles[d % len(cycles)] for d in range(devices)]
    templates = {cycle: template(cycle) for cycle in set(kinds)}
    per_period = sum(templates[cycle][1] for cycle in kinds)
    periods = max(1, interrupts // per_period)
    start = np.arange(periods, dtype=np.uint64) * np.uint64(PERIOD)
    parts = []
    for d, cycle in enumerate(kinds):
        one = template_for(templates[cycle][0], d)
        part = np.tile(one, periods)
        part["ts"] += np.repeat(start, len(one)) + np.uint64(1_000_000 + d * PERIOD // devices)
        parts.append(part)
    setup = Trace()
    for d in range(devices):
        setup.device(setup.vm(), bdf=f"0000:{d + 1:02x}:00.0")
    events = np.concatenate([setup.records(), *parts])
    events = events[np.argsort(events["ts"], kind="stable")]
    return events, setup.tables


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
