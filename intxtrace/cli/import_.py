"""`intxtrace import`: a recording of another tool to a trace file."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, BinaryIO

import typer

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    import numpy as np
    import numpy.typing as npt

    from intxtrace.importers.opening import Recording


def import_(
    recordings: Annotated[
        list[Path],
        typer.Argument(metavar="RECORDING", help="The recording; - reads standard input. Several: of one run."),
    ],
    output: Annotated[
        Path | None,
        typer.Option("-o", "--output", metavar="FILE", help="Trace file. Default: RECORDING's name with .intx, here."),
    ] = None,
    mapped: Annotated[
        list[str] | None,
        typer.Option(
            "--map",
            metavar="NAME=KIND",
            help="What the event NAME of the text is: a kind such as handler_entry or qemu_eoi, or ignore "
            "(may be repeated).",
        ),
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Overwrite the trace file.")] = False,
    quiet: Annotated[bool, typer.Option("-q", "--quiet", help="Print nothing but errors.")] = False,
) -> None:
    """Turn a recording of another tool into a trace file.

    What it is is found in its content: ftrace's text (trace, trace_pipe) or trace-cmd report, perf script, bpftrace
    (text, or an object a line), a QEMU -trace log with or without timestamps, QEMU's simple trace; trace.dat and
    perf.data where trace-cmd and perf are installed; each as it is, or as gzip or zstd.

    Several recordings of one run become one trace: devices are joined by their PCI address, clocks aligned by the
    realtime clock or by the events that both show; how well is printed. One of them may be a trace of intxtrace.

    Which probes there were, and which kernel it was, is found there too. Markers are not read.
    """
    from intxtrace import files
    from intxtrace.cli.output import note, progress
    from intxtrace.errors import IntxtraceError
    from intxtrace.importers.opening import open_recording

    recording = recordings[0]
    standard_input = str(recording) == "-"
    if output is None:
        if standard_input:
            raise IntxtraceError("what comes from standard input has no name; name the trace file with -o")
        output = Path(recording.name).with_suffix(".intx")
    for each in recordings:
        if str(each) != "-" and output.exists() and each.exists() and output.samefile(each):
            raise IntxtraceError(f"{output} is the recording itself; name another trace file with -o")
    if not force and os.path.lexists(output):
        raise IntxtraceError(f"{output} exists; choose another name, or overwrite it with --force")
    kinds = _kinds(mapped or [])
    try:
        if len(recordings) > 1:
            opened, events, size = _merge(recordings, output, force, kinds)
        else:
            stream: BinaryIO = sys.stdin.buffer if standard_input else recording.open("rb")
            with stream:
                opened = open_recording(stream, str(recording), ["intxtrace", *sys.argv[1:]], kinds)
                pieces: Iterable[npt.NDArray[np.void]] = opened
                if not standard_input and recording.is_file():  # what is not a file has no place and no size
                    pieces = progress(opened, stream.tell, recording.stat().st_size)
                events, size = _write(opened, pieces, output, force)
    except OSError as error:
        raise IntxtraceError(files.sentence(error, recording)) from None
    if quiet:
        return
    what = opened.metadata.extra["imported_from"]
    note(f"{what}: read {opened.lines:,} lines, wrote {events:,} events to {output} ({size:,} bytes)")
    if opened.unreadable:
        names = ", ".join(f"{name} {count:,}" for name, count in opened.unreadable.items())
        note(f"events left out, because an argument is missing that intxtrace needs: {names}")
    for sentence in getattr(opened, "alignments", ()):
        note(f"clock of {sentence}")
    if opened.late:
        note(f"{opened.late:,} events are older than one before them, and were given its time: several runs in a log?")
    if not events:
        note("none of them is of an INTx interrupt: record with the probes of the kernel path")


def _kinds(mapped: list[str]) -> dict[str, str]:
    """Read NAME=KIND."""
    from intxtrace.errors import IntxtraceError

    kinds = {}
    for text in mapped:
        name, equals, kind = text.partition("=")
        if not (name and equals and kind):
            raise IntxtraceError(f"--map {text!r} is not NAME=KIND, such as --map my_probe=handler_entry")
        kinds[name] = kind
    return kinds


def _merge(recordings: list[Path], output: Path, force: bool, kinds: dict[str, str]) -> tuple[Recording, int, int]:
    """Merge recordings, each read twice, into a trace file; return it with its events and bytes."""
    from contextlib import ExitStack

    from intxtrace.errors import IntxtraceError
    from intxtrace.importers.merge import Merged, OwnTrace
    from intxtrace.importers.opening import open_recording

    if any(str(each) == "-" for each in recordings):
        raise IntxtraceError("standard input cannot be merged, as each recording is read twice; save it to a file")
    with ExitStack() as opened:

        def opener(path: Path) -> Callable[[], Recording]:
            if path.suffix == ".intx":
                return lambda: OwnTrace(path)
            return lambda: open_recording(opened.enter_context(path.open("rb")), str(path), None, kinds)

        openers = [opener(path) for path in recordings]
        merged = Merged([str(path) for path in recordings], openers, ["intxtrace", *sys.argv[1:]])
        return merged, *_write(merged, merged, output, force)


def _write(recording: Recording, pieces: Iterable[npt.NDArray[np.void]], output: Path, force: bool) -> tuple[int, int]:
    """Write the trace file; return its events and bytes. A file that could not be finished is whole up to there."""
    from intxtrace.trace.writer import TraceWriter

    with TraceWriter(output, recording.metadata, force) as writer:
        for events in pieces:
            writer.write(events, recording.tables)
        return writer.events, writer.size
