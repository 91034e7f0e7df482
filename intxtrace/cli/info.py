"""`intxtrace info`: what a trace file holds, read from the events themselves, with nothing reconstructed."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from intxtrace.cli.options import TraceFile


def info(
    trace: TraceFile,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON (schema intxtrace.info).")] = False,
    repair: Annotated[
        Path | None,
        typer.Option(metavar="OUT", help="Also write a copy that ends cleanly after its last whole batch."),
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Overwrite OUT.")] = False,
) -> None:
    """Say what a trace file holds, and where and how it was made.

    Its events by kind, probes, VMs and devices, read from the file as they are: nothing is reconstructed.
    """
    from rich.console import Console

    from intxtrace.analysis.inventory import inventory
    from intxtrace.api import open_trace
    from intxtrace.cli.output import watched
    from intxtrace.render import json, text
    from intxtrace.units import printable

    opened = open_trace(trace)
    if repair is not None:
        from intxtrace.trace.reader import repair as write_copy

        write_copy(trace, repair, force=force)
    found = inventory(opened, watched(opened, opened.iter_events()))
    if as_json:
        print(json.document("info", found), end="")
    else:
        text.print_info(found, Console())
    if repair is not None:
        typer.echo(f"wrote {printable(str(repair))}", err=True)
