"""`intxtrace interrupts`: one row per interrupt, slowest first."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Annotated

import typer

from intxtrace.cli.completion import among
from intxtrace.cli.filters import Choice, first_instant, with_filters
from intxtrace.cli.options import TraceFile
from intxtrace.errors import IntxtraceError
from intxtrace.frames import INTERRUPTS, empty

if TYPE_CHECKING:
    import pandas as pd

ORDERS = ("masked", "time", "id")


def first_rows(frames: Iterable[pd.DataFrame], by: str, limit: int) -> tuple[pd.DataFrame, int]:
    """Return the first `limit` interrupts (0: all) in the order `by`, and how many there were.

    `masked`: longest masked time first, unknown last; `time`: by the first known stage; `id`: by number. Only the
    wanted rows are kept in memory.
    """
    import pandas as pd

    kept, total = empty(INTERRUPTS), 0
    waiting: list[pd.DataFrame] = []

    def settle() -> pd.DataFrame:
        parts = [part for part in (kept, *waiting) if len(part)]
        if not parts:
            return kept
        rows = pd.concat(parts, ignore_index=True)
        if by == "masked":
            key = -rows["masked_ns"]
        elif by == "time":
            key = first_instant(rows)
        else:
            key = rows["id"]
        order = pd.DataFrame({"key": key, "id": rows["id"]}).sort_values(["key", "id"], na_position="last").index
        return rows.loc[order[:limit] if limit else order]

    for frame in frames:
        total += len(frame)
        waiting.append(frame)
        if limit and sum(map(len, waiting)) > 4 * limit + 10_000:
            kept = settle()
            waiting = []
    return settle().reset_index(drop=True), total


@with_filters
def interrupts(
    trace: TraceFile,
    choice: Choice,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON (schema intxtrace.interrupts).")] = False,
    limit: Annotated[int, typer.Option(metavar="N", help="At most so many rows; 0: all.")] = 20,
    by: Annotated[
        str, typer.Option(metavar="ORDER", help="masked (longest first), time or id.", autocompletion=among(*ORDERS))
    ] = "masked",
) -> None:
    """List interrupts one by one, the slowest first.

    Of each: when its stages were reached, and how long each took.
    """
    from rich.console import Console

    from intxtrace.analysis import interrupt_rows
    from intxtrace.api import open_trace
    from intxtrace.cli import output
    from intxtrace.render import json, text

    if by not in ORDERS:
        raise IntxtraceError(f"--by {by} is not known; choose from {', '.join(ORDERS)}")
    if limit < 0:
        raise IntxtraceError(f"--limit {limit} is less than nothing; write how many rows you want, or 0 for all")
    opened = open_trace(trace)
    filters = choice.resolve(opened.metadata, opened.tables, lambda: opened.begin_at)
    output.note_compile(opened)
    frames = (filters.apply(frame) for frame in output.watched(opened, opened.iter_interrupts()))
    rows, total = first_rows(frames, by, limit)
    if as_json:
        print(json.interrupts(interrupt_rows(rows)), end="")
    else:
        console = Console()
        text.print_interrupts(interrupt_rows(rows), console, opened.begin_at)
        if len(rows) < total:
            console.print(f"{len(rows):,} of {total:,} interrupts; --limit 0 lists all")
    output.note_end(opened)
