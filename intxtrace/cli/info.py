"""`intxtrace info`: what a trace file holds, read from the events themselves, with nothing reconstructed."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from intxtrace.cli.output import printable, watched
from intxtrace.cli.views import document

if TYPE_CHECKING:
    from intxtrace.api import Trace


@dataclass(frozen=True)
class Info:
    """What a trace file holds: the data of JSON schema `intxtrace.info`."""

    path: str
    size: int
    """Bytes."""
    metadata: dict[str, Any]
    """The fields of `trace.metadata.Metadata`, and those of newer versions."""
    events: int
    lost: int
    """Events that were dropped while recording."""
    begin_at: int | None
    """Least `ts`, ns of the trace's clock; null without events or clock."""
    end_at: int | None
    duration_ns: int | None
    kinds: dict[str, int]
    """Events by kind, most first; a kind of a newer version is `kind 99`."""
    probes: list[dict[str, Any]]
    vms: list[dict[str, Any]]
    devices: list[dict[str, Any]]
    truncated: bool
    """It has no end mark, or something at its end could not be read."""
    lost_bytes: int
    """Bytes after the last whole batch that could not be read."""
    problem: str
    """What is wrong with its end, in words."""


def gather(trace: Trace) -> Info:
    """Read a whole trace."""
    import numpy as np

    from intxtrace.events import Kind

    counts: Counter[int] = Counter()
    lost = 0
    for events in watched(trace, trace.iter_events()):
        kinds, numbers = np.unique(events["kind"], return_counts=True)
        counts.update(dict(zip(kinds.tolist(), numbers.tolist(), strict=True)))
        lost += sum(events["arg1"][events["kind"] == Kind.LOST].tolist())
    first, last = (None, None) if trace.metadata.clock == "none" else (trace.first_at, trace.last_at)
    names = {int(kind): kind.name for kind in Kind}
    return Info(
        path=str(trace.path),
        size=trace.size,
        metadata=trace.metadata.to_values(),
        events=counts.total(),
        lost=lost,
        begin_at=first,
        end_at=last,
        duration_ns=None if first is None or last is None else last - first,
        kinds={names.get(kind, f"kind {kind}"): number for kind, number in counts.most_common()},
        probes=[row.to_json() for row in trace.tables.probes],
        vms=[row.to_json() for row in trace.tables.vms],
        devices=[row.to_json() for row in trace.tables.devices],
        truncated=trace.truncated,
        lost_bytes=trace.lost_bytes,
        problem=trace.problem,
    )


def describe(info: Info) -> str:
    """Write it as text."""
    meta = info.metadata
    made = " ".join(meta["command_line"])
    pairs = [
        (
            "file",
            f"{info.path}, {info.size:,} bytes, format {meta['format_version']}, intxtrace {meta['tool_version']}",
        ),
        ("recorded", _moment(meta["started_at"])),
        ("host", " ".join(filter(None, (meta["hostname"], meta["kernel"], meta["machine"]))) or "not known"),
        ("command", made or "not known"),
        ("clock", meta["clock"]),
        ("events", f"{info.events:,}, {info.lost:,} lost"),
        ("duration", "not known" if info.duration_ns is None else f"{info.duration_ns / 1e9:.3f} s"),
        ("end", info.problem or "whole"),
    ]
    states = Counter(probe["state"] for probe in info.probes)
    pairs.append(("probes", ", ".join(f"{count} {state}" for state, count in states.items()) or "none"))
    pairs += [("", f"{p['name']} {p['state']}: {p['reason']}") for p in info.probes if p["state"] != "attached"]
    pairs += [("VM", f"{vm['name'] or 'no name'}, process {vm['pid']}, {vm['qemu_version']}") for vm in info.vms]
    for device in info.devices:
        line = "not known" if device["host_irq"] is None else device["host_irq"]
        pairs.append(("device", f"{device['bdf']} {device['name']}, host IRQ {line}"))
    lines = [f"{name:<9} {printable(text).rstrip(', ')}" for name, text in pairs]
    width = max(map(len, info.kinds), default=0)
    lines += ["", *(f"{kind:<{width}} {count:>14,}" for kind, count in info.kinds.items())] if info.kinds else []
    return "\n".join(lines)


def _moment(ns: int | None) -> str:
    try:
        return "not known" if ns is None else f"{datetime.fromtimestamp(ns / 1e9, UTC):%Y-%m-%d %H:%M:%S} UTC"
    except (ValueError, OverflowError, OSError):
        return "not known"


def info(
    trace: Annotated[Path, typer.Argument(metavar="TRACE", help="A trace file (*.intx).")],
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON (schema intxtrace.info).")] = False,
    repair: Annotated[
        Path | None, typer.Option(metavar="OUT", help="Also write a copy that ends cleanly after its last whole batch.")
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Overwrite OUT.")] = False,
) -> None:
    """Say what a trace file holds: where and how it was made, its events, probes, VMs and devices."""
    from dataclasses import asdict

    from intxtrace.api import open_trace

    opened = open_trace(trace)
    if repair is not None:
        from intxtrace.trace.reader import repair as write_copy

        write_copy(trace, repair, force=force)
    found = gather(opened)
    print(document("info", asdict(found)) if as_json else describe(found) + "\n", end="")
    if repair is not None:
        typer.echo(f"wrote {printable(str(repair))}", err=True)
