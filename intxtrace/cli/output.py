"""What commands share when they talk: notes and progress on standard error, and text that cannot steer a terminal."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    from intxtrace.api import Trace

T = TypeVar("T")


def printable(text: str) -> str:
    """Escape what is not printable: names in a trace, and file names, may hold control characters."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def note(text: str) -> None:
    """Say something on standard error, in one line."""
    print(f"intxtrace: {printable(text)}", file=sys.stderr)


def note_end(trace: Trace) -> None:
    """Say so if the trace's end could not be read."""
    if trace.problem:
        note(f"{trace.path}: {trace.problem}; what is shown is everything before")


def watched(trace: Trace, items: Iterable[T]) -> Iterator[T]:
    """Show on a terminal how much of the trace was read, once that takes more than a second."""
    begin, bar, task = time.monotonic(), None, None
    try:
        for item in items:
            if bar is None and time.monotonic() - begin > 1 and sys.stderr.isatty():
                bar, task = _bar(trace)
            if bar is not None:
                bar.update(task, completed=trace.position)
            yield item
    finally:
        if bar is not None:
            bar.stop()


def _bar(trace: Trace) -> tuple[Any, Any]:
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
    return bar, bar.add_task("", total=trace.size)
