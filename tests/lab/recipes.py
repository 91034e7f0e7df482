"""Recordings by recipes beside one of intxtrace itself, of the same run: the same interrupts, at the same instants.

Each probe of a recipe is at a function that intxtrace probes too, so its instant cannot be the same; but both come
before the function calls the next one. So two recordings agree where every stage of an interrupt is, in both, before
the next stage in either: that has no tolerance. How far they lie apart is printed.
"""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
import sys
from bisect import bisect_left
from collections import Counter
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

import intxtrace
from intxtrace.__main__ import main as intxtrace_main
from intxtrace.events import Kind
from tests.lab.compare import Row
from tests.lab.guest import PATHS
from tests.lab.packages import LabError, qemu_command
from tests.lab.recipe import TEXT
from tests.lab.scenario import Recorder, Scenario, recorder_of_this_checkout
from tests.lab.truth import Truth

GUESTS = list(PATHS)
# Which recipes run at once, beside intxtrace itself and QEMU's log. With all four and 300 pings a guest the emulated
# machine lost three guests of ten, once with L1 itself, on L0's QEMU 7.2 and 11.1 alike; with these, one of eighteen.
PLAYS = (("tracefs", "bpftrace"), ("trace-cmd", "perf"))
TOOLS = tuple(tool for play in PLAYS for tool in play)
STAGES = ("raised_at", "signalled_at", "injected_at", "acknowledged_at", "unmasked_at", "eoi_at")
MICROSECONDS = 1000
"""What ftrace's text is exact to, where the tool cannot print more."""


def scenario(guests: list[str], tools: tuple[str, ...], qemu: str = "7.2") -> Scenario:
    """Guests that intxtrace, some recipes' recordings and QEMU's log (as its recipe says) all see."""
    binary = shutil.which(qemu_command(qemu)[0])
    if binary is None:
        raise LabError(f"QEMU {qemu} is not on this machine.")
    beside = {
        tool: Recorder([sys.executable, "-m", "tests.lab.recipe", tool, binary, "{out}"], "recording into", each=False)
        for tool in tools
    }
    recorder = recorder_of_this_checkout("--bar", "all", each=False)
    return Scenario(guests, recorder=recorder, beside=beside, options=qemu_log_options(binary), qemu=qemu)


def skipped_kprobes(folder: Path, tools: tuple[str, ...]) -> list[str]:
    """What recipes say that the kernel skipped; bpftrace's cannot tell.

    The kernel skips a kprobe that an interrupt finds running, and counts that (kprobe_ftrace_handler,
    arch/x86/kernel/kprobes/ftrace.c).
    """
    said = [line for tool in tools for line in (folder / tool / "stderr").read_text().splitlines()]
    return [line for line in said if line.startswith("missed")]


def qemu_log_options(binary: str) -> list[str]:
    """What the qemu-log recipe says to start QEMU with, for the log that the lab reads."""
    recipe = subprocess.run(
        [sys.executable, "-m", "intxtrace", "recipe", "qemu-log", "--qemu", binary], stdout=subprocess.PIPE, check=True
    ).stdout
    said = subprocess.run(
        ["bash", "-s", "options", "qemu.log"], input=recipe, stdout=subprocess.PIPE, check=True
    ).stdout.decode()
    return shlex.split(said)


def imported(recording: Path) -> intxtrace.Trace:
    """Import a recording of another tool."""
    out = recording.with_suffix(".intx")
    if intxtrace_main(["import", "-q", str(recording), "-o", str(out)]) != 0:
        raise LabError(f"{recording} cannot be imported.")
    return intxtrace.open_trace(out)


def of_guest(trace: intxtrace.Trace, truth: Truth) -> pd.DataFrame:
    """A guest's interrupts in a recording that has the same clock, in the order in which they were signalled."""
    rows = trace.interrupts
    at = rows["raised_at"].fillna(rows["signalled_at"]).fillna(rows["injected_at"])
    rows = rows.assign(at=at)[rows["bdf"].isin(truth.bdfs) & at.between(truth.begun_at, truth.ended_at)]
    return rows.sort_values("at", kind="stable").reset_index(drop=True)


def unseen(events: pd.DataFrame, own: pd.DataFrame, text: str) -> list[bool]:
    """Which of intxtrace's own interrupts came in a hard interrupt from which bpftrace has no line at all.

    The kernel runs no program of bpftrace's kind on a CPU where another runs already, and counts it nowhere before 6.7
    (trace_call_bpf, kernel/trace/bpf_trace.c): of a hard interrupt that comes meanwhile every probe is skipped, from
    irq_handler_entry to irq_handler_exit. intxtrace's programs are of other kinds.

    Args:
        events: intxtrace's own, whose handler calls say when and where the interrupts came.
        text: what bpftrace wrote.
    """
    lines = sorted((int(cpu), int(ts)) for ts, cpu in re.findall(r'\\"ts\\":(\d+),\\"cpu\\":(\d+),', text))
    calls = events[events["kind"].isin((Kind.HANDLER_ENTRY, Kind.HANDLER_EXIT))].sort_values(["cpu", "ts"])
    ends = dict(zip(calls["ts"], zip(calls["cpu"], calls["ts"].shift(-1, fill_value=0), strict=True), strict=True))
    nothing = []
    for raised_at in own["raised_at"]:
        cpu, end = ends.get(raised_at, (0, 0))  # a resignal is raised by no handler
        first = bisect_left(lines, (cpu, raised_at)) if end else 0
        nothing.append(bool(end) and not (first < len(lines) and lines[first] <= (cpu, end)))
    return nothing


def without(gone: list[bool], own: pd.DataFrame, other: pd.DataFrame) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Leave out interrupts of intxtrace's own, and what the other recording has of them from their beginning to end."""
    rows = own[gone]
    begins, ends = rows["at"], rows[list(STAGES)].max(axis="columns")
    part = [any(begin <= at <= end for begin, end in zip(begins, ends, strict=True)) for at in other["at"]]
    return own[~np.array(gone, bool)].reset_index(drop=True), other[~np.array(part, bool)].reset_index(drop=True)


def compare_recipe(tool: str, truth: Truth, own: pd.DataFrame, other: pd.DataFrame) -> tuple[list[Row], list[str]]:
    """Hold a recipe's interrupts of a guest against intxtrace's own, and say how far apart their instants are."""
    rows = [
        Row(f"{tool}: interrupts", len(own), len(other)),
        Row("  by path, origin, outcome", _kinds(own), _kinds(other)),
        Row("  stages seen", _seen(own), _seen(other)),
    ]
    if len(own) != len(other):
        return rows, []
    exact = MICROSECONDS if tool == "tracefs" else 1
    rows.append(Row("  stages before the next in either", 0, out_of_order(own, other, exact)))
    apart = []
    for stage in STAGES:
        ns = (other[stage] - own[stage]).dropna().astype("int64")
        if len(ns):
            apart.append(f"{stage.removesuffix('_at')} {ns.median() / 1e3:+.1f} ({ns.abs().max() / 1e3:.1f})")
    return rows, [f"  {tool}, µs from intxtrace's own, median (farthest): {', '.join(apart)}"]


def out_of_order(own: pd.DataFrame, other: pd.DataFrame, exact: int) -> int:
    """How many stages are, in one of two recordings, not before the next stage in the other."""
    wrong = 0
    for mine, theirs in zip(own[list(STAGES)].to_numpy(object), other[list(STAGES)].to_numpy(object), strict=True):
        both: list[tuple[int, int]] = sorted(
            (a // exact, b // exact) for a, b in zip(mine, theirs, strict=True) if a is not pd.NA and b is not pd.NA
        )
        wrong += sum(max(earlier) > min(later) for earlier, later in pairwise(both) if earlier[0] < later[0])
    return wrong


def _kinds(rows: pd.DataFrame) -> dict[str, int]:
    found = Counter(map("/".join, rows[["path", "origin", "outcome"]].astype(str).to_numpy()))
    return dict(sorted(found.items()))


def _seen(rows: pd.DataFrame) -> dict[str, int]:
    return {stage.removesuffix("_at"): int(rows[stage].notna().sum()) for stage in STAGES}


def compare_log(log: Path, truth: Truth, own: pd.DataFrame, realtime: Any) -> tuple[list[Row], list[str]]:
    """Hold QEMU's own log against intxtrace's recording: what went through QEMU, and when."""
    other = imported(log).interrupts
    through = own[own["path"] == "userspace"].reset_index(drop=True)
    rows = [Row("qemu-log: interrupts through QEMU", len(through), len(other))]
    if len(through) != len(other) or not len(other):
        return rows, []
    distance = (other["acknowledged_at"] - through["acknowledged_at"].map(realtime)).astype("int64")
    # The log is written inside the function, and cut to microseconds; the clocks are aligned to one more.
    rows.append(Row("  acknowledged after intxtrace's probe", len(other), int((distance > -2 * MICROSECONDS).sum())))
    said = f"  qemu-log, µs from intxtrace's own, median (farthest): acknowledged {distance.median() / 1e3:+.1f}"
    return rows, [f"{said} ({distance.abs().max() / 1e3:.1f})"]


def compare_all(folder: Path, truths: list[Truth], folders: list[Path], tools: tuple[str, ...]) -> Any:
    """Rows and remarks of each guest."""
    own = intxtrace.open_trace(folder / "recording" / "trace.intx")
    others = {tool: imported(folder / tool / TEXT) for tool in tools}
    for truth, of_it in zip(truths, folders, strict=True):
        mine = of_guest(own, truth)
        rows, remarks = [Row("kprobes that the kernel skipped", [], skipped_kprobes(folder, tools))], []
        for tool, other in others.items():
            seen, theirs = mine, of_guest(other, truth)
            if tool == "bpftrace":
                skipped = unseen(own.events, mine, (folder / tool / TEXT).read_text())
                whole = int(theirs["outcome"].eq("complete").sum())
                seen, theirs = without(skipped, mine, theirs)
                rows.append(Row("bpftrace saw nine in ten hard interrupts", True, 10 * sum(skipped) <= len(mine)))
                rows.append(
                    Row("  whole interrupts, all among those", whole, int(theirs["outcome"].eq("complete").sum()))
                )
                remarks.append(f"  bpftrace: hard interrupts that it saw nothing of: {sum(skipped)}")
            more, said = compare_recipe(tool, truth, seen, theirs)
            rows += more
            remarks += said
        more, said = compare_log(of_it / "qemu.log", truth, mine, own.metadata.realtime)
        yield truth, rows + more, remarks + said
