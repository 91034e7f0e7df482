"""The latency report: one HTML file with everything in it, that fetches nothing.

Its size is bounded: what it draws is binned, and beyond `DETAILED` devices or `DATA_LIMIT` bytes of figures, a device
has a row in the overview but no section of its own.
"""

from __future__ import annotations

import base64
import hashlib
import json
from importlib import resources
from typing import TYPE_CHECKING, Any

import jinja2
from markupsafe import Markup

from intxtrace import units
from intxtrace.analysis.results import MEASURES, STAGE_MEASURES
from intxtrace.render.words import (
    DEFINITIONS,
    LEVELS,
    OUTCOMES,
    REASONS,
    STAGES,
    path_overhead,
    probe_cost,
    wall_clock,
)

if TYPE_CHECKING:
    from intxtrace.analysis.results import Counts, DeviceSummary, Interrupt, LogBins, PathLatency, Span, Summary

DETAILED = 12
LISTED = 200
FINDINGS_LISTED = 40
DATA_LIMIT = 600_000
WINDOWS = 8
"""Of time, of which a run can be selected: `Options.windows` of a summary that a page is made of."""
SLOWEST_OF_A_SPAN = 10
STATISTICS = ("count", "p50", "p90", "p99", "p99_9", "p99_99", "max", "mean", "min")


def write_report(found: Summary) -> str:
    """Make the page of a summary, as text to be written in UTF-8."""
    from plotly.offline import get_plotlyjs

    # The text of plotly.js waits in the page until the words are drawn; the policy lets the script start it.
    detailed, data = _figures(found)
    plotly, script = get_plotlyjs(), _asset("report.js")
    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters |= {
        "duration": units.duration,
        "count": units.count,
        "short": units.short_count,
        "rate": units.rate,
        "clean": units.printable,
        "wall_clock": wall_clock,
        "path_overhead": path_overhead,
    }
    environment.globals |= {"share": units.share, "plural": units.plural, "probe_cost": probe_cost}
    return environment.from_string(_asset("template.html.j2")).render(
        found=found,
        detailed=detailed,
        listed=found.devices[:LISTED],
        style=Markup(_asset("style.css")),
        plotly=Markup(plotly),
        script=Markup(script),
        data=Markup(data),
        policy=_policy(plotly, script),
        measures=MEASURES,
        stage_words=STAGES,
        outcome_words=OUTCOMES,
        levels=LEVELS,
        definitions=DEFINITIONS,
        reasons=REASONS,
        shares=_shares,
        stage_parts=_stage_parts,
        vms=list(dict.fromkeys(device.vm for device in found.devices[:LISTED])),
        edges=[edge - found.axis.windows[0] for edge in found.axis.windows] if found.axis else [],
        singles=_singles,
        percent=_percent,
        findings_listed=FINDINGS_LISTED,
        linked=_linked(detailed),
    )


def _asset(name: str) -> str:
    return (resources.files("intxtrace") / "reports" / name).read_text("utf-8")


def _policy(*scripts: str) -> str:
    """Only these scripts run, nothing is fetched, nothing is sent. plotly.js styles its figures inline."""
    hashes = (base64.b64encode(hashlib.sha256(script.encode()).digest()).decode() for script in scripts)
    allowed = " ".join(f"'sha256-{digest}'" for digest in hashes)
    return (
        f"default-src 'none'; script-src {allowed}; style-src 'unsafe-inline'; img-src data: blob:; "
        "base-uri 'none'; form-action 'none'"
    )


def _figures(found: Summary) -> tuple[tuple[DeviceSummary, ...], str]:
    """Give the devices that get a section, and what their figures draw as JSON that is safe in a script element."""
    axis = found.axis
    start = found.recording.begin_at
    time: dict[str, Any] | None = None
    if axis is not None and start is not None:
        time = {"offset": axis.begin_at - start, "width": axis.width_ns, "bins": axis.bins}
        time["windows"] = [edge - start for edge in axis.windows]
    drawn: list[str] = []
    size = 0
    for device in found.devices[:DETAILED]:
        text = json.dumps(_device(device, start, found.recording.end_at), separators=(",", ":"), allow_nan=False)
        size += len(text)
        if size > DATA_LIMIT:
            break
        drawn.append(text)
    head = json.dumps({"time": time, "duration": found.recording.duration_ns}, separators=(",", ":"))
    data = f'{{"recording":{head},"devices":[{",".join(drawn)}]}}'
    return found.devices[: len(drawn)], data.replace("<", "\\u003c")


def _device(device: DeviceSummary, start: int | None, end: int | None) -> dict[str, Any]:
    states: list[Any] = []
    bursts: list[Any] = []
    slow: list[Any] = []
    if start is not None and end is not None:
        states = [
            (i.state, i.begin_at - start, (end if i.end_at is None else i.end_at) - start, i.bars_mapped)
            for i in device.states.intervals
        ]
        bursts = [(b.begin_at - start, b.end_at - start, b.interrupts) for b in device.floods.largest_bursts]
        slow = [(s.begin_at - start, s.end_at - start, s.interrupts, s.slow) for s in device.slowdowns.largest]
    return {
        "rate": {figures.path: figures.rate for figures in device.figures},
        "density": {figures.path: [n for cell in figures.density for n in cell] for figures in device.figures},
        "states": states,
        "bursts": bursts,
        "slow": slow,
        "whole": [*_counts(device.counts), device.rate.mean, _latency(device.latency)],
        "bins": {figures.path: _bins(figures.distributions) for figures in device.figures},
        "spans": {f"{s.first}-{s.last}": [*_counts(s.counts), s.mean_rate, _latency(s.latency)] for s in device.spans},
        "windows": [{path: _bins(bins) for path, bins in w.distributions.items()} for w in device.windows],
        "slowest_of_all": [_interrupt(row, start) for row in device.slowest],
        "slowest_most": SLOWEST_OF_A_SPAN,
        "slowest": [[_interrupt(row, start) for row in w.slowest[:SLOWEST_OF_A_SPAN]] for w in device.windows],
    }


def _counts(counts: Counts) -> tuple[int, int, list[tuple[str, str, str, int]]]:
    rows = [(row.path, row.origin, row.outcome, row.count) for row in counts.rows]
    return counts.total, counts.origin["resignal"], rows


def _latency(latency: tuple[PathLatency, ...]) -> list[Any]:
    """What the tables and figures need of each path, in the order of `STATISTICS` for each measure."""
    return [
        [
            path.path,
            path.interrupts,
            path.complete,
            path.unmeasured,
            path.mean_parts and [getattr(path.mean_parts, name) for name in (*STAGE_MEASURES, "unsplit_ns")],
            [[getattr(getattr(path, name), statistic) for statistic in STATISTICS] for name in MEASURES],
        ]
        for path in latency
    ]


def _bins(distributions: dict[str, LogBins]) -> list[Any]:
    """Bins of each measure: per decade, first, counts."""
    return [(b.per_decade, b.first, b.counts) for b in (distributions[name] for name in MEASURES)]


def _interrupt(row: Interrupt, start: int | None) -> list[Any]:
    at = None if row.raised_at is None or start is None else row.raised_at - start
    durations = [getattr(row, name) for name in MEASURES]
    return [row.id, row.path, row.origin, at, *durations, row.unmask_proof]


def _shares(device: DeviceSummary) -> list[tuple[str, int, float]]:
    """Paths with their counts and widths in percent, for the bar of path shares."""
    total = device.counts.total
    return [(path, number, _percent(number, total)) for path, number in device.counts.path.items() if number]


def _linked(devices: tuple[DeviceSummary, ...]) -> set[int]:
    """Ids of the interrupts that the page lists, for the whole recording or for a window of it."""
    whole = {row.id for device in devices for row in device.slowest}
    windows = (window for device in devices for window in device.windows)
    return whole.union(row.id for window in windows for row in window.slowest[:SLOWEST_OF_A_SPAN])


def _percent(part: int, whole: int) -> float:
    """A width."""
    return round(100 * part / whole, 3) if whole else 0.0


def _singles(device: DeviceSummary) -> list[Span]:
    """The spans of one window."""
    return [span for span in device.spans if span.first == span.last]


def _stage_parts(row: Interrupt) -> list[tuple[str, int | None, float]]:
    """Stages of one interrupt with their width in percent of its masked time."""
    if not row.masked_ns:
        return []
    parts = [(name, getattr(row, name)) for name in STAGE_MEASURES]
    parts.append(("unsplit_ns", row.masked_ns - sum(value or 0 for _, value in parts)))
    return [(name, value, _percent(value, row.masked_ns)) for name, value in parts if value]
