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
from intxtrace.render.words import DEFINITIONS, LEVELS, OUTCOMES, REASONS, STAGES, wall_clock

if TYPE_CHECKING:
    from intxtrace.analysis.results import DeviceSummary, Interrupt, Summary

DETAILED = 12
LISTED = 500
DATA_LIMIT = 700_000


def write_report(found: Summary) -> str:
    """Make the page of a summary, as text to be written in UTF-8."""
    from plotly.offline import get_plotlyjs

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
    }
    environment.globals |= {"share": units.share, "plural": units.plural}
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
    latency = {path.path: path for path in device.latency}
    paths = []
    for figures in device.figures:
        statistics = latency[figures.path]
        parts = statistics.mean_parts
        paths.append(
            {
                "path": figures.path,
                "rate": figures.rate,
                "bins": {name: (b.per_decade, b.first, b.counts) for name, b in figures.distributions.items()},
                "marks": {name: (getattr(statistics, name).p50, getattr(statistics, name).p99) for name in MEASURES},
                "density": [number for cell in figures.density for number in cell],
                "mean": parts and [getattr(parts, name) for name in (*STAGE_MEASURES, "unsplit_ns")],
                "median": [getattr(statistics, name).p50 for name in STAGE_MEASURES],
            }
        )
    states = []
    if start is not None and end is not None:
        states = [
            (i.state, i.begin_at - start, (end if i.end_at is None else i.end_at) - start, i.bars_mapped)
            for i in device.states.intervals
        ]
    return {"paths": paths, "states": states}


def _shares(device: DeviceSummary) -> list[tuple[str, int, float]]:
    """Paths with their counts and widths in percent, for the bar of path shares."""
    total = device.counts.total
    return [(path, number, round(100 * number / total, 3)) for path, number in device.counts.path.items() if number]


def _stage_parts(row: Interrupt) -> list[tuple[str, int | None, float]]:
    """Stages of one interrupt with their width in percent of its masked time."""
    if not row.masked_ns:
        return []
    parts = [(name, getattr(row, name)) for name in STAGE_MEASURES]
    parts.append(("unsplit_ns", row.masked_ns - sum(value or 0 for _, value in parts)))
    return [(name, value, round(100 * value / row.masked_ns, 3)) for name, value in parts if value]
