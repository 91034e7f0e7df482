"""The one seam between the commands and the analysis and render rooms."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from intxtrace.cli.output import watched

if TYPE_CHECKING:
    import pandas as pd

    from intxtrace.api import Trace
    from intxtrace.cli.filters import Filters


def document(schema: str, data: dict[str, Any]) -> str:
    """Write a versioned JSON document."""
    return (
        json.dumps({"schema": f"intxtrace.{schema}", "version": 1, "data": data}, indent=2, ensure_ascii=False) + "\n"
    )


def analyse(trace: Trace, filters: Filters) -> Any:
    """Make the `analysis.Summary` of the wanted part of a trace."""
    from intxtrace.analysis import Analysis  # type: ignore[attr-defined]

    analysis = Analysis(trace.metadata, filters.select(trace.tables))
    for result in watched(trace, trace.iter_results()):
        analysis.add(filters.apply(result.interrupts), filters.apply(result.states), filters.apply(result.counters))
    return analysis.finish(*filters.clip(trace.first_at, trace.last_at))


def summary_json(found: Any) -> str:
    """Write a summary as schema `intxtrace.summary`."""
    from intxtrace.render import json as render_json  # type: ignore[attr-defined]

    text: str = render_json.summary(found)
    return text


def interrupts_json(rows: pd.DataFrame) -> str:
    """Write rows of an interrupts frame as schema `intxtrace.interrupts`."""
    from intxtrace.analysis import interrupt_rows  # type: ignore[attr-defined]
    from intxtrace.render import json as render_json  # type: ignore[attr-defined]

    text: str = render_json.interrupts(interrupt_rows(rows))
    return text


def report_html(found: Any) -> str:
    """Make the page of a summary."""
    from intxtrace.render import html  # type: ignore[attr-defined]

    text: str = html.write_report(found)
    return text


def print_summary(found: Any) -> None:
    """Print a summary on the terminal."""
    from rich.console import Console

    from intxtrace.render import text  # type: ignore[attr-defined]

    text.print_summary(found, Console())


def print_interrupts(rows: pd.DataFrame, total: int, begin_at: int | None) -> None:
    """Print rows of an interrupts frame on the terminal, their instants since `begin_at`, and how many there were."""
    from rich.console import Console

    from intxtrace.analysis import interrupt_rows  # type: ignore[attr-defined]
    from intxtrace.render import text  # type: ignore[attr-defined]

    console = Console()
    text.print_interrupts(interrupt_rows(rows), console, begin_at)
    if len(rows) < total:
        console.print(f"{len(rows):,} of {total:,} interrupts; --limit 0 lists all")
