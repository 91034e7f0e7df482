"""`intxtrace import`: a recording of another tool to a trace file."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, BinaryIO

import typer

if TYPE_CHECKING:
    from intxtrace.importers.ftrace import FtraceText


def import_(
    recording: Annotated[Path, typer.Argument(metavar="TEXT", help="What ftrace printed; - reads standard input.")],
    output: Annotated[
        Path | None, typer.Option("-o", "--output", help="Trace file. Default: TEXT's name with .intx, here.")
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Overwrite the trace file.")] = False,
    quiet: Annotated[bool, typer.Option("-q", "--quiet", help="Print nothing but errors.")] = False,
) -> None:
    """Turn ftrace's text (trace, trace_pipe) of kernel-path probes into a trace file.

    Which probes there were, and which kernel it was, is found in the text itself. Markers in it are not read.
    """
    from intxtrace import files
    from intxtrace.cli.output import note
    from intxtrace.errors import IntxtraceError
    from intxtrace.importers.ftrace import FtraceText

    standard_input = str(recording) == "-"
    if output is None:
        if standard_input:
            raise IntxtraceError("what comes from standard input has no name; name the trace file with -o")
        output = Path(recording.name).with_suffix(".intx")
    if not standard_input and output.exists() and recording.exists() and output.samefile(recording):
        raise IntxtraceError(f"{output} is the recording itself; name another trace file with -o")
    if not force and os.path.lexists(output):
        raise IntxtraceError(f"{output} exists; choose another name, or overwrite it with --force")
    try:
        stream: BinaryIO = sys.stdin.buffer if standard_input else recording.open("rb")
        with stream:
            text = FtraceText(stream, str(recording), ["intxtrace", *sys.argv[1:]])
            events, size = _write(text, output, force)
    except OSError as error:
        raise IntxtraceError(files.sentence(error, recording)) from None
    if quiet:
        return
    note(f"read {text.lines:,} lines, wrote {events:,} events to {output} ({size:,} bytes)")
    for name, count in text.unreadable.items():
        note(f"{count:,} {name} events were left out: an argument is missing that intxtrace needs")
    if not events:
        note("none of them is of an INTx interrupt: record with the probes of the kernel path")


def _write(text: FtraceText, output: Path, force: bool) -> tuple[int, int]:
    """Write the trace file; return its events and bytes. A file that could not be finished is whole up to there."""
    from intxtrace.trace.writer import TraceWriter

    with TraceWriter(output, text.metadata, force) as writer:
        for events in text:
            writer.write(events, text.tables)
        return writer.events, writer.size
