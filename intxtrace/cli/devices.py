"""`intxtrace devices`: VMs, their passed-through devices, and how each interrupts."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from intxtrace.cli.completion import traces


def devices(
    trace: Annotated[
        Path | None,
        typer.Argument(
            metavar="TRACE",
            help="A trace file (*.intx): what it remembers. Default: now, here.",
            autocompletion=traces,
        ),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON (schema intxtrace.devices).")] = False,
) -> None:
    """List VMs and passed-through devices, and how each interrupts.

    Of this host, or of a trace. Needs no bcc and attaches nothing; without root it sees only your own VMs. Which path
    INTx takes is expected from QEMU's command line here, and seen in a trace.
    """
    if trace is None:
        from intxtrace.capture.devices import on_this_host

        found = on_this_host()
    else:
        from intxtrace.analysis.devices import in_a_trace
        from intxtrace.api import open_trace
        from intxtrace.cli import output
        from intxtrace.cli.filters import Filters

        opened = open_trace(trace)
        found = in_a_trace(opened.tables, output.summarised(opened, Filters()))
        output.note_end(opened)
    if as_json:
        from intxtrace.render import json

        print(json.document("devices", found), end="")
    else:
        from rich.console import Console

        from intxtrace.render import host

        host.print_devices(found, Console())
