"""The verdict on a device: one sentence that says what its interrupts did, from what was counted and nothing else."""

from __future__ import annotations

from typing import TYPE_CHECKING

from intxtrace.analysis.results import Verdict
from intxtrace.units import count, duration, plural, share

if TYPE_CHECKING:
    from intxtrace.analysis.results import Counts, Floods, PathLatency

RESIGNAL_SHARE = 0.10
"""Above this share of resignals they are a flood."""
STRAY_SHARE = 0.01
"""Above this share of interrupts on another path than kernel, the device is not on the fast path."""


_WENT = {
    "kernel": "took the kernel path",
    "hybrid": "took the hybrid path",
    "userspace": "took the userspace path",
    "held": "were held",
    "unknown": "took a path that is not known",
}


def judge(
    vm: str | None, bdf: str | None, counts: Counts, latency: tuple[PathLatency, ...], floods: Floods, lost: int
) -> Verdict:
    """Judge a device in a VM.

    `good`: at least 99 % of its interrupts took the kernel path, without floods or loss. `bad`: a flood (bursts, or
    more than 10 % resignals). `unknown`: there were none, or the path of most is not known. `note`: all between.
    """
    who = f"{f'VM {vm}' if vm else 'No known VM'}, {bdf or 'unknown device'}"
    if not counts.total:
        calls = (
            f", though its handler was called {plural(floods.handler_calls, 'time')}" if floods.handler_calls else ""
        )
        return Verdict("unknown", f"{who}: no INTx interrupt was seen{calls}{_loss(lost)}.")
    path = max(counts.path, key=lambda name: counts.path[name])
    clauses = [_path(path, counts)]
    taken = {found.path: found for found in latency}
    clauses[0] += _latency(taken[path])
    clauses += [
        f"{share(other.interrupts, counts.total)} {_WENT[other.path]}{_latency(other, short=True)}"
        for other in latency
        if other.path not in (path, "all") and other.interrupts >= STRAY_SHARE * counts.total
    ]
    flooded = floods.resignals > RESIGNAL_SHARE * counts.total
    if flooded:
        clauses.append(
            f"{share(floods.resignals, counts.total)} were resignals: the line was still asserted at the unmask"
        )
    if floods.bursts:
        clauses.append(f"{plural(floods.bursts, 'burst')} held {plural(floods.burst_interrupts or 0, 'interrupt')}")
    if path == "unknown":
        level = "unknown"
    elif flooded or floods.bursts:
        level = "bad"
    elif counts.total - counts.path["kernel"] <= STRAY_SHARE * counts.total and not lost:
        level = "good"
    else:
        level = "note"
    return Verdict(level, f"{who}: {'; '.join(clauses)}{_loss(lost)}.")


def _path(path: str, counts: Counts) -> str:
    if counts.total == 1:
        part = "the only interrupt"
    elif counts.path[path] == counts.total:
        part = f"all {count(counts.total)} interrupts"
    else:
        part = f"{share(counts.path[path], counts.total)} of {count(counts.total)} interrupts"
    if path == "unknown":
        return f"the path of {part} is not known"
    if path == "held":
        return f"{part} {'was' if counts.total == 1 else 'were'} held: claimed, but signalled to nobody"
    return f"{part} took the {path} path"


def _latency(taken: PathLatency, short: bool = False) -> str:
    masked = taken.masked_ns
    if masked.p50 is None:
        return ", no masked time could be measured"
    if short:
        return f" (p99 {duration(masked.p99)})"
    return (
        f", masked {duration(masked.p50)} in the median, {duration(masked.p99)} at p99, {duration(masked.max)} at most"
    )


def _loss(lost: int) -> str:
    return (
        f"; {plural(lost, 'event')} of it {'was' if lost == 1 else 'were'} lost, so the counts are lower bounds"
        if lost
        else ""
    )
