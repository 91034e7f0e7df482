"""What commands share: notes and progress on standard error, and the analysis of what was asked for."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    from intxtrace.analysis import Options, Summary
    from intxtrace.api import Trace
    from intxtrace.cli.filters import Filters

T = TypeVar("T")


def note(text: str) -> None:
    """Say something on standard error, in one line."""
    from intxtrace.units import printable

    print(f"intxtrace: {printable(text, 4000)}", file=sys.stderr)


def note_end(trace: Trace) -> None:
    """Say so if the trace's end could not be read."""
    if trace.problem:
        note(f"{trace.path}: {trace.problem}; what is shown is everything before")


def note_compile(trace: Trace) -> None:
    """Say on a terminal why nothing moves at first, if a trace is so long that the reconstructor is compiled for it."""
    from intxtrace.reconstruct import must_compile

    if sys.stderr.isatty() and must_compile(trace.event_count):
        note("compiling the reconstructor, once for this version: some 10 s")


def watched(trace: Trace, items: Iterable[T]) -> Iterator[T]:
    """Show on a terminal how much of the trace was read, once that takes more than a second."""
    return progress(items, lambda: trace.position, trace.size)


def progress(items: Iterable[T], position: Callable[[], int], size: int) -> Iterator[T]:
    """Show on a terminal how many bytes of how many were read, once that takes more than a second."""
    begin, bar, task = time.monotonic(), None, None
    try:
        for item in items:
            if bar is None and time.monotonic() - begin > 1 and sys.stderr.isatty():
                bar, task = _bar(size)
            if bar is not None:
                bar.update(task, completed=position(), refresh=True)
            yield item
    finally:
        if bar is not None:
            bar.stop()


def summarised(trace: Trace, filters: Filters, options: Options | None = None) -> Summary:
    """Analyse the wanted part of a trace, with progress."""
    from intxtrace.analysis import Analysis

    note_compile(trace)
    analysis = Analysis(trace.metadata, filters.select(trace.tables), options)
    for result in watched(trace, trace.iter_results(analysis.witness.take)):
        analysis.add(filters.apply(result.interrupts), filters.apply(result.states), filters.apply(result.counters))
    return analysis.finish(*filters.clip(trace.first_at, trace.last_at))


def _bar(size: int) -> tuple[Any, Any]:
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TimeRemainingColumn

    bar = Progress(
        BarColumn(),
        DownloadColumn(),
        TimeRemainingColumn(),
        console=Console(stderr=True),
        transient=True,
        auto_refresh=False,
    )
    bar.start()
    return bar, bar.add_task("", total=size)
