"""Results in a terminal, within 80 columns. Names come from guests: they are shown as text, never as markup."""

from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING, Any

from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from intxtrace.analysis.results import MEASURES, STAGE_MEASURES
from intxtrace.render.words import LEVELS, OUTCOMES, STAGES, path_overhead, probe_cost, wall_clock
from intxtrace.units import UNKNOWN, count, duration, plural, printable, rate, share, short_count

if TYPE_CHECKING:
    from rich.console import Console

    from intxtrace.analysis.inventory import Info
    from intxtrace.analysis.results import (
        DeviceSummary,
        Evidence,
        Finding,
        Interrupt,
        PathLatency,
        Quality,
        Summary,
    )

_COLORS = {"good": "green", "note": "yellow", "bad": "red", "unknown": "bright_black"}
_STATES = {"attached": "green", "fallback": "yellow", "missing": "red"}
_SEVERITIES = {"problem": "red", "warning": "yellow", "note": "cyan"}
_PATHS = {"kernel": "blue", "hybrid": "green", "userspace": "yellow", "held": "magenta", "unknown": "bright_black"}
HISTOGRAM_ROWS = 12
WIDE = 110
"""From so many columns on, interrupts are shown with VM and instant."""


def print_summary(found: Summary, console: Console) -> None:
    """Print the answer in a screen: verdict, latency by path and stage, floods and data quality."""
    recording = found.recording
    parts = [recording.hostname or "unknown host"]
    if recording.kernel:
        parts.append(f"Linux {recording.kernel}")
    if recording.started_at is not None:
        parts.append(wall_clock(recording.started_at))
    if recording.duration_ns is not None:
        parts.append(duration(recording.duration_ns))
    console.print(Text(" · ".join(printable(part, 80) for part in parts), style="dim"))
    if not found.devices:
        console.print("The trace names no device.")
    for device in found.devices:
        _print_device(device, console, recording.begin_at)
    console.print()
    print_findings(found.findings, found.recording.begin_at, console)
    _print_quality(found.quality, console)
    if found.overhead:
        console.print(Text(f"the probes' own share of masked time: {', '.join(map(path_overhead, found.overhead))}"))
    for each in found.missing:
        console.print(Text(f"not recorded: {each.what}; it takes {each.how}", style="yellow"))


def print_findings(findings: tuple[Finding, ...], begin_at: int | None, console: Console) -> None:
    """Print what is wrong, what shows it (instants since `begin_at`) and what to do; nothing if nothing is wrong."""
    for finding in findings:
        where = f"{f'VM {finding.vm}, ' if finding.vm else ''}{finding.bdf or 'unknown device'}"
        console.print(
            Text.assemble(
                (f"{finding.severity}: {finding.name}", f"bold {_SEVERITIES[finding.severity]}"),
                printable(f" · {where}: {finding.title}.", 600),
            )
        )
        for evidence in finding.evidence:
            console.print(Padding(Text(printable(_evidence(evidence, begin_at), 400)), (0, 0, 0, 2)))
        console.print(Padding(Text(finding.explanation, style="dim"), (0, 0, 0, 2)))
        console.print(Padding(Text.assemble(("do: ", "bold"), finding.advice), (0, 0, 0, 2)))
        console.print()


def _evidence(evidence: Evidence, begin_at: int | None) -> str:
    text = evidence.text
    if evidence.count is not None:
        text += f": {count(evidence.count)}"
        text += f" of {count(evidence.total)}" if evidence.total is not None else ""
    if evidence.begin_at is not None and begin_at is not None:
        text += f", from {(evidence.begin_at - begin_at) / 1e9:.3f} s"
        if evidence.end_at is not None and evidence.end_at != evidence.begin_at:
            text += f" to {(evidence.end_at - begin_at) / 1e9:.3f} s"
    if evidence.interrupts:
        more = ", …" if evidence.count is not None and evidence.count > len(evidence.interrupts) else ""
        text += f" (ids {', '.join(map(str, evidence.interrupts))}{more})"
    return text


def _print_device(device: DeviceSummary, console: Console, begin_at: int | None) -> None:
    console.print()
    level = device.verdict.level
    console.print(Text.assemble((f"{LEVELS[level]}: ", f"bold {_COLORS[level]}"), printable(device.verdict.text, 600)))
    if not device.counts.total:
        return
    table = _table("masked", "count", "share", "p50", "p90", "p99", "p99.9", "p99.99", "max")
    for path in device.latency:
        masked = path.masked_ns
        values = (masked.p50, masked.p90, masked.p99, masked.p99_9, masked.p99_99, masked.max)
        table.add_row(
            path.path,
            short_count(path.interrupts),
            share(path.interrupts, device.counts.total),
            *(duration(value) for value in values),
        )
    console.print(table)
    console.print(_stages(device.latency))
    histogram = _histogram(device, console)
    if histogram is not None:
        console.print(histogram)
    facts = [f"rate {rate(device.rate.mean)}, peak {rate(device.rate.peak)}", *_floods(device)]
    slow = device.slowdowns
    if slow.largest:
        one = slow.largest[0]
        begin = "" if begin_at is None else f" from {duration(one.begin_at - begin_at)}"
        facts.append(
            f"slow times {count(slow.count)} (masked ≥ {duration(slow.threshold_ns)}), worst{begin} for "
            f"{duration(one.end_at - one.begin_at)}: {count(one.slow)} of {count(one.interrupts)}"
        )
    states = ", ".join(f"{state} {duration(ns)}" for state, ns in device.states.time_ns.items())
    if states:
        facts.append(f"states: {states}")
    console.print(Text("  " + "\n  ".join(facts)))


def _stages(latency: tuple[PathLatency, ...]) -> Table:
    table = _table("p50/p99", *(STAGES[measure] for measure in STAGE_MEASURES))
    for path in latency:
        found = [getattr(path, measure) for measure in STAGE_MEASURES]
        cells = (UNKNOWN if f.p50 is None else f"{_short(f.p50)}/{_short(f.p99)}" for f in found)
        table.add_row(path.path, *cells)
    return table


def _histogram(device: DeviceSummary, console: Console) -> Table | None:
    """Masked time in bins of a log axis, as wide as there is room for; the bar is of all paths."""
    found = {f.path: f.distributions["masked_ns"] for f in device.figures if f.distributions["masked_ns"].counts}
    if not found:
        return None
    per_decade = next(iter(found.values())).per_decade
    ends = [(bins.first, bins.first + len(bins.counts) - 1) for bins in found.values()]
    low, high = min(first for first, _ in ends), max(last for _, last in ends)
    joined = next(n for n in (1, 2, 4, 10, 20, 40, 80, 1_000) if high // n - low // n < HISTOGRAM_ROWS)
    rows: dict[int, dict[str, int]] = {place: {} for place in range(low // joined, high // joined + 1)}
    for path, bins in found.items():
        for place, number in enumerate(bins.counts, bins.first):
            rows[place // joined][path] = rows[place // joined].get(path, 0) + number
    most = max(sum(row.values()) for row in rows.values())
    names = list(found)
    table = _table("from", "", *names)
    table.columns[1].justify = "left"
    width = max(console.width - 10 - sum(max(len(name), 6) + 1 for name in names), 8)
    for place, row in rows.items():
        bar = Text()
        for path, cells in zip(names, _cells([row.get(name, 0) for name in names], most, width), strict=True):
            bar.append("█" * cells, _PATHS[path])
        table.add_row(
            _short(10 ** (place * joined / per_decade)),
            bar,
            *(short_count(row[name]) if name in row else "" for name in names),
        )
    return table


def _cells(parts: list[int], most: int, width: int) -> list[int]:
    """So many cells of a bar for each part; what is not nothing has one at least, all of them together."""
    total = max(round(sum(parts) / most * width), 1) if any(parts) else 0
    edges = [round(total * sum(parts[:end]) / max(sum(parts), 1)) for end in range(len(parts) + 1)]
    return [end - begin for begin, end in pairwise(edges)]


def _short(ns: float | None) -> str:
    return duration(ns).replace(" ", "")


def _floods(device: DeviceSummary) -> list[str]:
    floods = device.floods
    accesses = floods.bar_accesses
    lines = [f"resignals {count(floods.resignals)} ({share(floods.resignals, device.counts.total)})"]
    if floods.bursts is not None and floods.burst_ns is not None:
        lines[0] += f", bursts {count(floods.bursts)}"
        if floods.bursts:
            lines[0] += f" ({plural(floods.burst_interrupts or 0, 'interrupt')} in {duration(floods.burst_ns)})"
    lines.append(
        f"handler calls {count(floods.handler_calls)}, unclaimed {count(floods.unclaimed)}, "
        f"re-entries {count(floods.reentries)}, coalesced {count(device.counts.coalesced)}"
    )
    trapped = f"trapped BAR reads {short_count(floods.bar_reads)}, writes {short_count(floods.bar_writes)}"
    if accesses.mean is not None:
        trapped += f"; per interrupt {accesses.mean}, at most {count(accesses.max)}"
    lines.append(trapped)
    if floods.top_offsets:
        top = floods.top_offsets[0]
        region = UNKNOWN if top.region is None else top.region
        lines.append(
            f"most accessed: BAR {region} offset {top.offset:#x}, {count(top.reads)} reads, {count(top.writes)} writes"
        )
    lines.append(f"spurious wake-ups {count(floods.spurious_wakeups)}, no-op unmasks {count(floods.noop_unmasks)}")
    return lines


def _print_quality(quality: Quality, console: Console) -> None:
    outcomes = ", ".join(f"{short_count(getattr(quality, name))} {name}" for name in OUTCOMES)
    console.print(Text(f"{plural(quality.interrupts, 'interrupt')}: {outcomes}"))
    console.print(
        Text(f"{count(quality.unmeasured)} complete ones unmeasured, {count(quality.unknown_path)} on an unknown path")
    )
    console.print(Text(f"events lost: {count(quality.lost)}", style="bold red" if quality.lost else ""))
    console.print(
        Text(
            f"probes: {quality.probes_attached} attached, {quality.probes_fallback} by a fallback, "
            f"{quality.probes_missing} missing",
            style="yellow" if quality.probes_missing else "",
        )
    )


def print_interrupts(rows: tuple[Interrupt, ...], console: Console, begin_at: int | None = None) -> None:
    """Print interrupts, one a row, in their order; with VM and instant since `begin_at` where there is room."""
    wide = console.width >= WIDE
    table = _table(
        "id", "device", "path", "origin", "outcome", *("masked", *(STAGES[m] for m in STAGE_MEASURES)), left=5
    )
    if wide:
        table.add_column("at", justify="right", no_wrap=True)
        table.add_column("VM", overflow="ellipsis", no_wrap=True)
    for row in rows:
        cells: list[str | Text] = [
            count(row.id).replace(",", ""),
            Text(printable(row.bdf or UNKNOWN, 16).removeprefix("0000:")),
            row.path,
            row.origin,
            row.outcome,
            *(_short(getattr(row, measure)) for measure in MEASURES),
        ]
        if wide:
            at = None if row.raised_at is None or begin_at is None else row.raised_at - begin_at
            cells += [UNKNOWN if at is None else f"{at / 1e9:.6f} s", Text(printable(row.vm or UNKNOWN, 40))]
        table.add_row(*cells)
    console.print(table)


def print_info(info: Info, console: Console) -> None:
    """Print what a trace file holds: where it is from, VMs, devices, probes, and how many events of each kind."""
    meta = info.metadata
    made_with = f"intxtrace {meta['tool_version']}, format {meta['format_version']}"
    facts: list[tuple[str, Any]] = [
        ("file", f"{info.path}, {count(info.size)} bytes, {made_with}"),
        ("host", " ".join(filter(None, (meta["hostname"], meta["kernel"], meta["machine"]))) or UNKNOWN),
        ("began", wall_clock(meta["started_at"])),
        ("lasted", duration(info.duration_ns)),
        ("clock", meta["clock"]),
        ("command", " ".join(meta["command_line"]) or UNKNOWN),
        ("events", f"{count(info.events)}, {count(info.lost)} lost"),
        ("end", info.problem or "whole"),
    ]
    grid = Table.grid(padding=(0, 2))
    for name, value in facts:
        grid.add_row(name, Text(printable(str(value), 400)))
    console.print(grid)
    if info.vms:
        console.print()
        table = _table("VM", "process", "QEMU", left=3)
        for vm in info.vms:
            table.add_row(
                Text(printable(vm["name"], 40)), str(vm["pid"]), Text(printable(vm["qemu_version"] or UNKNOWN, 30))
            )
        console.print(table)
    if info.devices:
        console.print()
        table = _table("device", "IDs", "host IRQ", "process", "name", left=5)
        for device in info.devices:
            table.add_row(
                Text(printable(device["bdf"] or UNKNOWN, 16)),
                f"{device['vendor_id']:04x}:{device['device_id']:04x}" if device["vendor_id"] else UNKNOWN,
                UNKNOWN if device["host_irq"] is None else str(device["host_irq"]),
                UNKNOWN if device["vm_pid"] is None else str(device["vm_pid"]),
                Text(printable(device["name"] or UNKNOWN, 60)),
            )
        console.print(table)
    if info.kinds:
        console.print()
        table = _table("events", "count")
        for kind, number in info.kinds.items():
            table.add_row(Text(printable(kind, 40)), count(number))
        console.print(table)
    if info.probes:
        console.print()
        table = _table("probe", "state", "how", left=3)
        table.columns[2].overflow = "fold"
        table.columns[2].no_wrap = False
        for probe in info.probes:
            how = f"{probe['method']} {probe['target']}".strip()
            if probe["resolved"]:
                how += f" (found by {probe['resolved']})"
            if cost := probe_cost(probe["attach_ns"], probe["run_ns"], probe["runs"]):
                how += f", {cost}"
            if probe["reason"]:
                how = f"{how}: {probe['reason']}" if how else probe["reason"]
            table.add_row(
                Text(printable(probe["name"], 40)),
                Text(printable(probe["state"], 10), style=_STATES.get(probe["state"], "")),
                Text(printable(how, 300)),
            )
        console.print(table)


def _table(*columns: str, left: int = 1) -> Table:
    """Make a plain table whose first `left` columns are words."""
    table = Table(box=None, pad_edge=False, padding=(0, 1, 0, 0), header_style="dim")
    for place, name in enumerate(columns):
        table.add_column(name, justify="left" if place < left else "right", no_wrap=True, overflow="ellipsis")
    return table
