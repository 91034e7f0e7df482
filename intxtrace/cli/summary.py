"""`intxtrace summary`: the answer in a screen."""

from __future__ import annotations

from typing import Annotated

import typer

from intxtrace.cli.filters import Choice, with_filters
from intxtrace.cli.options import TraceFile


@with_filters
def summary(
    trace: TraceFile,
    choice: Choice,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON (schema intxtrace.summary).")] = False,
) -> None:
    """Say which way interrupts took, what it cost, what is wrong.

    For each device: paths, origins, outcomes, the time of each stage, floods, states, and findings with what shows
    them and what to change.
    """
    from rich.console import Console

    from intxtrace.api import open_trace
    from intxtrace.cli import output
    from intxtrace.render import json, text

    opened = open_trace(trace)
    filters = choice.resolve(opened.metadata, opened.tables, lambda: opened.begin_at)
    found = output.summarised(opened, filters)
    if as_json:
        print(json.summary(found), end="")
    else:
        text.print_summary(found, Console())
    output.note_end(opened)
