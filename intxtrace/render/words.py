"""Words for the people who read results: names of stages and outcomes, definitions, times."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING

from intxtrace.units import duration, plural

if TYPE_CHECKING:
    from intxtrace.analysis.results import PathOverhead

STAGES = {
    "masked_ns": "masked time",
    "signal_ns": "signal",
    "inject_ns": "inject",
    "guest_ns": "guest",
    "unmask_ns": "unmask",
    "unsplit_ns": "not split",
}

OUTCOMES = {
    "complete": "every end stage that the probes can show was seen",
    "open": "the trace ended first",
    "headless": "the trace began in the middle of it",
    "lossy": "events were dropped while it was in flight",
    "cancelled": "INTx was disabled, or the VM went, before its end",
}

LEVELS = {"good": "fast path", "note": "worth a look", "bad": "flood", "unknown": "no verdict"}

REASONS = {
    "unmeasured": "complete, but with no masked time of their own: their unmask found the line still asserted (the "
    "resignal that followed carries the time on), or nobody knows when they were raised (the line rose while masked), "
    "or the recording has no clock",
}

DEFINITIONS = (
    ("Interrupt", "one signal of a device's INTx line, from raised to unmasked."),
    (
        "Masked time",
        "raised → unmasked: the device cannot interrupt again. For a hardware interrupt raised is the entry of the "
        "host's handler; for a resignal, the unmask that found the line still asserted.",
    ),
    ("Signal", "raised → signalled: the eventfd was signalled; on the userspace path QEMU took it up."),
    ("Inject", "signalled → injected: the line was raised in the guest's interrupt controller."),
    (
        "Guest",
        "injected → acknowledged: the guest's end of interrupt; on the userspace path its first trapped BAR access.",
    ),
    ("Unmask", "acknowledged → unmasked: the host lets the device interrupt again."),
    ("Not split", "masked time between stages of which one was not seen."),
    ("Kernel path", "the host kernel injects the interrupt and unmasks the line; QEMU is not involved."),
    ("Hybrid path", "injected by the kernel, acknowledged or unmasked by QEMU (split interrupt controller)."),
    ("Userspace path", "QEMU injects and unmasks; each costs a switch to its process, and BAR accesses are trapped."),
    ("Held", "claimed by the handler, but no eventfd was signalled."),
    ("Unknown path", "the evidence for one of the others is missing."),
    ("Resignal", "the line was still asserted at the unmask, so it was signalled again with no new hard interrupt."),
    ("Coalesced", "merged into a delivery that the guest had not yet acknowledged."),
    ("Re-entry", "the guest acknowledged the interrupt, and took it again, before QEMU's end of interrupt."),
    (
        "Burst",
        "a stretch with more interrupts than a rate, for at least a time: 10,000/s for 10 ms, if no other was chosen.",
    ),
    (
        "Slow time",
        "bins of time in each of which at least a tenth of the device's interrupts was masked some three times as long "
        "as its median, or longer (two interrupts at least). It may be another path, or a stall.",
    ),
    (
        "Percentile",
        "p99 = 26 µs: 99 % of the interrupts took at most 26 µs. From a logarithmic histogram, at most 1 % off; "
        "p99.99 is left out below 10,000 interrupts. Only complete interrupts are in it.",
    ),
)


def probe_cost(attach_ns: int | None, run_ns: int | None, runs: int | None) -> str:
    """Say what a probe costs a call of what it watches: being watched, and its programs. Empty: not measured."""
    if attach_ns is None and run_ns is None:
        return ""
    watched = "an unknown time" if attach_ns is None else duration(attach_ns)
    if run_ns is None:
        return f"costs a call {watched} and its run time"
    return f"costs a call {watched} + {duration(run_ns)} (median, {plural(runs or 0, 'run')})"


def path_overhead(found: PathOverhead) -> str:
    """Say what the probes cost an interrupt of a path."""
    if found.probes_ns is None:
        return f"{found.path} not measured"
    text = f"{found.path} about {duration(found.probes_ns)}"
    if found.masked_ns is None or found.share is None:
        return text
    percent = "under 1" if found.share < 0.01 else f"{100 * found.share:,.0f}"
    return f"{text} of {duration(found.masked_ns)} ({percent} %)"


def wall_clock(ns: int | None) -> str:
    """Write an instant of the wall clock in UTC, to the second."""
    if ns is None:
        return "–"
    try:
        return datetime.fromtimestamp(ns // 1_000_000_000, UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
    except (ValueError, OverflowError, OSError):
        return "–"
