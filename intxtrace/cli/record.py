"""`intxtrace record`: live capture to a trace file."""

from __future__ import annotations

import contextlib
import os
import re
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from intxtrace.cli.capturing import Capture, with_capture

if TYPE_CHECKING:
    from collections.abc import Callable

    from intxtrace.capture.recording import Limits, Stop
    from intxtrace.capture.ring import Events
    from intxtrace.capture.session import Counts, Session
    from intxtrace.trace.metadata import Metadata
    from intxtrace.trace.tables import Tables
    from intxtrace.trace.writer import TraceWriter

WINDOW_BYTES = 1 << 30
"""Memory of --keep without --max-size; an event takes some ten bytes of it."""

_UNITS = {"ms": 1e-3, "s": 1.0, "m": 60.0, "h": 3600.0, "": 1.0}


@with_capture
def record(
    capture: Capture,
    command: Annotated[
        list[str] | None, typer.Argument(metavar="-- CMD", help="Record while this command runs.")
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option("-o", "--output", metavar="FILE", help="Trace file. Default: intxtrace-DATE-TIME.intx here."),
    ] = None,
    duration: Annotated[
        str | None, typer.Option(metavar="TIME", help="End after this time: 500ms, 30s, 5m, 2h.")
    ] = None,
    max_interrupts: Annotated[
        int | None, typer.Option(min=1, metavar="N", help="End after this many interrupts.")
    ] = None,
    max_size: Annotated[
        str | None,
        typer.Option(metavar="SIZE", help="End when the file is so large (64M, 2G); with --keep, the memory for it."),
    ] = None,
    keep: Annotated[
        str | None,
        typer.Option(metavar="TIME", help="Keep only the last so much time (60s, 5m) in memory; write it at the end."),
    ] = None,
    stop_when: Annotated[
        str | None,
        typer.Option(metavar="STAGE>TIME", help="End a second after an interrupt took longer, such as 'masked>5ms'."),
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Overwrite the trace file.")] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Load and attach everything, say so, and leave; no trace, no command.")
    ] = False,
    quiet: Annotated[bool, typer.Option("-q", "--quiet", help="Print nothing but errors.")] = False,
) -> None:
    """Record the INTx interrupts of this host's VMs to a trace file. Needs root and bcc.

    Finds the VMs and their passed-through devices by itself, and takes VMs that start or stop meanwhile. Ctrl-C ends
    it and keeps everything. For what happens once a day, --keep and --stop-when: the stages are masked (the whole),
    signal, inject, guest and unmask.
    """
    from intxtrace import stalls
    from intxtrace.capture.recording import Limits, Stop
    from intxtrace.cli.capturing import parse_size, prepare
    from intxtrace.errors import IntxtraceError
    from intxtrace.units import printable

    seconds = _duration(duration) if duration else None
    kept_ns = int(_duration(keep, "--keep") * 1e9) if keep else None
    condition = stalls.parse(stop_when) if stop_when else None
    most = None if max_size is None else parse_size(max_size)
    if max_size is not None and (most is None or most < 1 << 20):
        raise IntxtraceError(f"--max-size takes a size from 1M, such as 64M or 2G, not {max_size!r}")
    make_session = capture.session_maker(wait=capture.wait or bool(command))
    if output is None:
        output = Path(time.strftime("intxtrace-%Y%m%d-%H%M%S.intx"))
    if not force and not dry_run and os.path.lexists(output):
        raise IntxtraceError(f"{output} exists: give another -o, or --force to overwrite it")

    def say(sentence: str) -> None:
        if not quiet:
            _tell(f"intxtrace: {printable(sentence, 4000)}\n")

    stop = Stop()
    if dry_run:
        with make_session(say=say) as session:
            _describe(session.tables, say)
        return
    if condition is not None:
        prepare()
    with stop.listening(), make_session(say=say) as session:
        trigger = None if condition is None else stalls.Trigger(condition, session.tables).see
        limits = Limits(seconds, max_interrupts, size=None if kept_ns else most, condition=trigger)
        sink = _sink(output, force, kept_ns, most or WINDOW_BYTES)
        status = _record(session, stop, command or [], limits, sink, _CounterLine(quiet), say)
    raise typer.Exit(status)


class _Window:
    """The latest events in memory: a trace file when the recording is over."""

    def __init__(self, path: Path, metadata: Metadata, force: bool, kept_ns: int, most: int) -> None:
        from intxtrace.trace.kept import Kept

        self.size = 0
        self._kept = Kept(most, kept_ns)
        self._metadata = metadata
        self.path, self._force = path, force

    def write(self, events: Events, tables: Tables) -> None:
        self._kept.add(events, tables)

    def __enter__(self) -> _Window:
        return self

    def __exit__(self, *_: object) -> None:
        self.size = self._kept.save(self.path, self._metadata, self._force).size


def _sink(output: Path, force: bool, kept_ns: int | None, most: int) -> TraceWriter | _Window:
    """Make what takes the events; what cannot be written is refused now, not when the stall has happened."""
    from intxtrace.errors import IntxtraceError
    from intxtrace.trace.metadata import Metadata
    from intxtrace.trace.writer import TraceWriter

    metadata = Metadata.of_this_host(["intxtrace", *sys.argv[1:]])
    if kept_ns is None:
        return TraceWriter(output, metadata, force)
    if not output.parent.is_dir() or not os.access(output.parent, os.W_OK):
        raise IntxtraceError(f"{output.parent} is no folder that can be written: give another -o")
    return _Window(output, metadata, force, kept_ns, most)


def _record(
    session: Session,
    stop: Stop,
    command: list[str],
    limits: Limits,
    sink: TraceWriter | _Window,
    line: _CounterLine,
    say: Callable[[str], None],
) -> int:
    from intxtrace.capture.recording import record
    from intxtrace.errors import IntxtraceError

    _say_missing(session.tables, say)
    child: subprocess.Popen[bytes] | None = None
    counts = session.counts
    with sink as writer:
        events = session.take()
        writer.write(events, session.tables)
        if limits.condition is not None:
            limits.condition(events, session.safe_at)
        say(f"recording to {writer.path}; Ctrl-C ends it")
        if command:
            try:
                child = subprocess.Popen(command)
            except OSError as error:
                raise IntxtraceError(f"cannot run {command[0]}: {error.strerror}") from error
        try:
            reason = record(session, writer, replace(limits, command=child), stop, line.show)
        finally:
            line.end()
    say(
        f"{reason}: {counts.interrupts:,} interrupts in {counts.events:,} events, {counts.lost:,} lost; "
        f"wrote {sink.path} ({sink.size:,} bytes)"
    )
    if not counts.interrupts:
        say("no interrupt was seen: no VM had a device on INTx, or it was quiet")
    if child is not None and child.poll() is None:
        say(f"the command still runs (pid {child.pid})")
    return child.returncode if child is not None and child.returncode is not None and child.returncode > 0 else 0


def _say_missing(tables: Tables, say: Callable[[str], None]) -> None:
    for row in tables.probes:
        if row.standing == "missing" and row.reason:
            say(f"not traced: {row.name}: {row.reason}")


def _describe(tables: Tables, say: Callable[[str], None]) -> None:
    """Say what a recording would have begun with."""
    from collections import Counter

    _say_missing(tables, say)
    standings = Counter(row.standing for row in tables.probes)
    vms = ", ".join(f"{vm.name} (pid {vm.pid})" for vm in tables.vms) or "no VM yet"
    say(
        f"dry run: {standings['attached']} probes attached, {standings['fallback']} by a fallback, "
        f"{standings['missing']} missing; {vms}; nothing was recorded, everything is detached"
    )


class _CounterLine:
    """The live line on a terminal."""

    def __init__(self, quiet: bool) -> None:
        self._on = not quiet and sys.stderr.isatty()
        self._begun = time.monotonic()
        self._last = (self._begun, 0)
        self._shown = False

    def show(self, counts: Counts) -> None:
        if not self._on:
            return
        now = time.monotonic()
        then, before = self._last
        rate = (counts.interrupts - before) / (now - then) if now > then else 0.0
        self._last = (now, counts.interrupts)
        text = (
            f"{now - self._begun:6.0f} s  {counts.interrupts:,} interrupts ({rate:,.0f}/s)  "
            f"{counts.events:,} events  {counts.lost:,} lost"
        )
        _tell(f"\r\033[K{text[:79]}")
        self._shown = True

    def end(self) -> None:
        if self._shown:
            _tell("\n")


def _tell(text: str) -> None:
    """Print on standard error. That a terminal is gone shows here before its SIGHUP is handled, and is no reason."""
    with contextlib.suppress(OSError):
        print(text, end="", file=sys.stderr, flush=True)


def _duration(text: str, option: str = "--duration") -> float:
    from intxtrace.errors import IntxtraceError

    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*(ms|s|m|h|)", text.strip())
    if not match or float(match[1]) == 0:
        raise IntxtraceError(f"{option} takes a time such as 500ms, 30s, 5m or 2h, not {text!r}")
    return float(match[1]) * _UNITS[match[2]]
