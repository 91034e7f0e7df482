"""`intxtrace export`: a trace in the format of another tool."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, BinaryIO

import typer

from intxtrace.cli.completion import among
from intxtrace.cli.filters import Choice, Filters, with_filters
from intxtrace.cli.options import TraceFile
from intxtrace.errors import IntxtraceError

if TYPE_CHECKING:
    from intxtrace.api import Trace

SUFFIXES = {
    "parquet": ".parquet",
    "csv": ".csv",
    "jsonl": ".jsonl",
    "perfetto": ".perfetto.json",
    "openmetrics": ".prom",
}
TABLES = ("interrupts", "states", "events")


@with_filters
def export(
    trace: TraceFile,
    choice: Choice,
    form: Annotated[
        str, typer.Option("--format", metavar="FORMAT", help=f"{', '.join(SUFFIXES)}.", autocompletion=among(*SUFFIXES))
    ],
    out: Annotated[
        Path | None,
        typer.Option(
            "-o",
            "--output",
            metavar="OUT",
            help="Where to write it; - is standard output. Default: TRACE's name with the format's, here.",
        ),
    ] = None,
    table: Annotated[
        str | None,
        typer.Option(
            "--table",
            metavar="TABLE",
            help=f"Of parquet, csv, jsonl: {', '.join(TABLES)}.",
            show_default="interrupts",
            autocompletion=among(*TABLES),
        ),
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Overwrite OUT.")] = False,
) -> None:
    """Write a trace as a table, for Perfetto, or for Prometheus.

    OUT has its name only once it is whole. Perfetto (ui.perfetto.dev) and chrome://tracing open the perfetto format;
    openmetrics is for the node exporter's textfile collector.
    """
    from intxtrace import files
    from intxtrace.api import open_trace
    from intxtrace.cli import output
    from intxtrace.units import printable

    if form not in SUFFIXES:
        raise IntxtraceError(f"--format {form} is not known; choose from {', '.join(SUFFIXES)}")
    tabular = form in ("parquet", "csv", "jsonl")
    if table is not None and not tabular:
        raise IntxtraceError(f"--table has no meaning with --format {form}, which is one whole; leave it out")
    if table is not None and table not in TABLES:
        raise IntxtraceError(f"--table {table} is not known; choose from {', '.join(TABLES)}")
    table = table or "interrupts"
    to_terminal = str(out) == "-"
    if to_terminal and form == "parquet":
        raise IntxtraceError("Parquet is no text for standard output; name a file with -o")
    target = out or Path(trace.stem + (f".{table}" if tabular and table != "interrupts" else "") + SUFFIXES[form])
    opened = open_trace(trace)
    if not to_terminal:
        if target.exists() and target.samefile(trace):
            raise IntxtraceError(f"{target} is the trace itself; write to another file")
        files.check_free(target, force=force)
    resolve = choice.resolve_times if table == "events" and tabular else choice.resolve
    filters = resolve(opened.metadata, opened.tables, lambda: opened.begin_at)
    write = _writer(form, table, opened, filters)
    with _standard_output() if to_terminal else files.whole(target, force=force) as stream:
        note = write(stream)
    if not to_terminal:
        print(f"wrote {printable(str(target))} ({target.stat().st_size:,} bytes)")
    if note:
        output.note(note)
    output.note_end(opened)


@contextlib.contextmanager
def _standard_output() -> Iterator[BinaryIO]:
    sys.stdout.flush()
    yield sys.stdout.buffer
    sys.stdout.buffer.flush()


def _writer(form: str, table: str, trace: Trace, filters: Filters) -> Callable[[BinaryIO], str]:
    """Choose what writes the format to a stream; it returns what there is to say about it, or nothing."""
    if form == "openmetrics":
        return lambda stream: _write_metrics(stream, trace, filters)
    if form == "perfetto":
        if trace.metadata.clock == "none":
            raise IntxtraceError("the trace has no clock, so there is nothing to draw over time; export a table")
        return lambda stream: _write_perfetto(stream, trace, filters)
    return lambda stream: _write_table(stream, form, table, trace, filters)


def _write_table(stream: BinaryIO, form: str, table: str, trace: Trace, filters: Filters) -> str:
    from intxtrace.cli import output
    from intxtrace.render import tables

    columns = tables.schema(table, trace.metadata)
    writer = tables.writer(form, stream, columns)
    if table == "events":
        for events in output.watched(trace, trace.iter_events()):
            writer.write(tables.from_events(filters.cut(events), columns))
    else:
        output.note_compile(trace)
        for result in output.watched(trace, trace.iter_results()):
            frame = filters.apply(result.states if table == "states" else result.interrupts)
            writer.write(tables.from_frame(frame, columns))
    writer.close()
    return ""


def _write_perfetto(stream: BinaryIO, trace: Trace, filters: Filters) -> str:
    from intxtrace.cli import output
    from intxtrace.render.perfetto import ChromeTrace

    output.note_compile(trace)
    # Counters begin with the whole second.
    drawing = ChromeTrace(stream.write, (trace.begin_at or 0) // 10**9 * 10**9)
    for result in output.watched(trace, trace.iter_results()):
        interrupts, states, counters = map(filters.apply, (result.interrupts, result.states, result.counters))
        drawing.add(interrupts, states, counters, trace.last_at)
    drawing.finish()
    if drawing.left_out:
        return f"{drawing.left_out:,} interrupts were left out: no instant is known, or too many overlap"
    return ""


def _write_metrics(stream: BinaryIO, trace: Trace, filters: Filters) -> str:
    from intxtrace.cli import output
    from intxtrace.render.openmetrics import openmetrics

    stream.write(openmetrics(output.summarised(trace, filters)).encode())
    return ""
