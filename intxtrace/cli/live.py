"""`intxtrace live`: what the interrupts of this host do right now, in a full screen or once for a script."""

from __future__ import annotations

import os
import sys
import time
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from intxtrace.cli.capturing import Capture, with_capture
from intxtrace.cli.completion import traces
from intxtrace.cli.filters import Choice, with_filters
from intxtrace.errors import IntxtraceError

if TYPE_CHECKING:
    from intxtrace.analysis.live_results import LiveView
    from intxtrace.capture.recording import Stop
    from intxtrace.cli.filters import Filters
    from intxtrace.live import Host, Replay, Source, Watch

_SECOND = 1_000_000_000


@with_filters
@with_capture
def live(
    choice: Choice,
    capture: Capture,
    window: Annotated[
        str, typer.Option(metavar="DURATION", help="How much time a row tells of, from 1s to 1h.")
    ] = "10s",
    once: Annotated[bool, typer.Option("--once", help="Watch for one window, print what was seen, and end.")] = False,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print JSON at the end (schema intxtrace.live), not text.")
    ] = False,
    output: Annotated[
        Path | None,
        typer.Option("-o", "--output", metavar="FILE", help="At the end, save what was seen to this trace file."),
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Overwrite FILE.")] = False,
    keep: Annotated[
        str, typer.Option(metavar="SIZE", help="Memory for what may be saved, from 1M; the oldest events go first.")
    ] = "256M",
    replay: Annotated[
        Path | None,
        typer.Option(
            metavar="TRACE", help="Play a recorded trace instead of watching this host.", autocompletion=traces
        ),
    ] = None,
    speed: Annotated[float, typer.Option(metavar="X", help="Play it so many times as fast.")] = 1.0,
) -> None:
    """Watch the INTx interrupts of this host's VMs as they come. Needs root and bcc, but for --replay.

    One row per device: rate, path, masked time, floods, state, loss. In the full screen ? explains everything, Enter
    looks closely at a device, q ends it. At the end what was seen is printed.
    """
    from intxtrace.capture.recording import Stop
    from intxtrace.cli.capturing import parse_size
    from intxtrace.cli.filters import parse_duration

    window_ns = parse_duration(window, "--window")
    if not _SECOND <= window_ns <= 3600 * _SECOND:
        raise IntxtraceError(f"--window takes a time from 1s to 1h, not {window}")
    keep_bytes = parse_size(keep)
    if keep_bytes is None or keep_bytes < 1 << 20:
        raise IntxtraceError(f"--keep takes a size from 1M, such as 256M or 2G, not {keep}")
    if output is not None and not force and os.path.lexists(output):
        raise IntxtraceError(f"{output} exists: give another -o, or --force to overwrite it")
    if not once and not (sys.stdin.isatty() and sys.stderr.isatty()):
        raise IntxtraceError("the full screen needs a terminal: run this in one, or give --once")
    stop = Stop()
    with ExitStack() as stack:
        stack.enter_context(stop.listening())
        notes = _Notes()
        source: Source
        if replay is not None:
            source, filters, compile_from = _recorded(replay, speed, choice, capture.pid)
        else:
            source, filters = _host(stack, choice, capture, notes, speed)
            compile_from = 0
        view = _watch(source, filters, compile_from, window_ns, keep_bytes, once, stop, notes, output, force)
    _print(view, as_json, window_ns)


def _recorded(path: Path, speed: float, choice: Choice, pid: list[int]) -> tuple[Replay, Filters, int | None]:
    from intxtrace.api import open_trace
    from intxtrace.live import Replay
    from intxtrace.reconstruct import LOAD_FROM

    if not 0 < speed < float("inf"):
        raise IntxtraceError(f"--speed takes a number above 0, not {speed:g}")
    trace = open_trace(path)
    choice = replace(choice, vm=[*choice.vm, *map(str, pid)])
    filters = choice.resolve(trace.metadata, trace.tables, lambda: trace.begin_at)
    compile_from = 0 if trace.event_count >= LOAD_FROM else None
    if compile_from == 0:
        _prepare()
    return Replay(path, speed), filters, compile_from


def _host(stack: ExitStack, choice: Choice, capture: Capture, notes: _Notes, speed: float) -> tuple[Host, Filters]:
    from intxtrace.capture.recording import prefer
    from intxtrace.live import Host
    from intxtrace.trace.metadata import Metadata
    from intxtrace.trace.tables import Tables

    if choice.from_ is not None or choice.to is not None:
        raise IntxtraceError(
            "--from and --to choose a part of a recorded trace; give --replay TRACE, or leave them out"
        )
    if speed != 1.0:
        raise IntxtraceError("--speed is that of a recorded trace; give --replay TRACE, or leave it out")
    # Devices and VMs are chosen in the kernel, as `record` does; the rest when an interrupt is closed.
    filters = replace(choice, device=[], vm=[]).resolve(Metadata(), Tables(), lambda: None)
    make_session = capture.session_maker(wait=capture.wait or not capture.chosen)
    _prepare()
    session = stack.enter_context(make_session(say=notes))
    for row in session.tables.probes:
        if row.standing == "missing" and row.reason:
            notes(f"not traced: {row.name}: {row.reason}")
    prefer()
    return Host(session, Metadata.of_this_host(["intxtrace", *sys.argv[1:]])), filters


class _Notes:
    """Sentences about what is going on: on standard error, or in the full screen while that is there."""

    def __init__(self) -> None:
        from intxtrace.cli.output import note

        self.say = self._note = note

    def __call__(self, sentence: str) -> None:
        self.say(sentence)

    def to_stderr(self) -> None:
        self.say = self._note


def _prepare() -> None:
    from intxtrace.cli.capturing import prepare

    prepare()


def _watch(
    source: Source,
    filters: Filters,
    compile_from: int | None,
    window_ns: int,
    keep_bytes: int,
    once: bool,
    stop: Stop,
    notes: _Notes,
    output: Path | None,
    force: bool,
) -> LiveView:
    """Watch until the end, save what was seen, and return the last view."""
    from intxtrace.analysis.live import LiveModel
    from intxtrace.live import Watch

    model = LiveModel(source.tables, window_ns=window_ns, wanted=filters, compile_from=compile_from)
    watch = Watch(source, model, keep_bytes)
    view = _one_window(watch, window_ns, stop) if once else _full_screen(watch, window_ns, stop, notes)
    if source.problem:
        notes(f"{source.problem}; what is shown is everything before")
    if output is not None:
        saved = watch.save(output, force)
        older = f"; {saved.dropped:,} older ones were not kept (--keep)" if saved.dropped else ""
        notes(f"wrote {saved.events:,} events to {saved.path} ({saved.size:,} bytes){older}")
    return view


def _one_window(watch: Watch, window_ns: int, stop: Stop) -> LiveView:
    begin = watch.source.now()

    def over() -> bool:
        now = watch.source.now()
        return bool(stop) or watch.source.ended or begin is None or now is None or now - begin >= window_ns

    return watch.run(over, time.sleep)


def _full_screen(watch: Watch, window_ns: int, stop: Stop, notes: _Notes) -> LiveView:
    from intxtrace.cli.live_app import LiveApp

    def stopped() -> bool:
        if not stop and not sys.stdin.isatty():  # a full screen has nobody left to show to
            stop.hang_up()
        return bool(stop)

    app = LiveApp(watch, window_ns, name=watch.source.metadata.hostname, stopped=stopped)
    notes.say = app.say
    try:
        app.run()
    finally:
        notes.to_stderr()
        app.join()
    if app.error is not None:
        raise app.error
    if app.last is None:
        raise typer.Exit(app.return_code or 0)
    return app.last


def _print(view: LiveView, as_json: bool, window_ns: int) -> None:
    from rich.console import Console

    from intxtrace.render import json
    from intxtrace.render import live as render

    if as_json:
        print(json.document("live", view), end="")
    else:
        render.print_live(view, Console(), window_ns)
