"""From a session to a trace file: the loop of `record`."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from types import FrameType
from typing import Protocol

import numpy as np

from intxtrace.capture.ring import Events
from intxtrace.capture.session import Counts, Session
from intxtrace.trace.tables import Tables

POLL_SECONDS = 0.01
"""How long the drain sleeps: 10,000 events at a million a second, a sixteenth of the default ring."""

AFTERMATH_SECONDS = 1.0
"""What follows a stall belongs to it."""

_BATCH_SECONDS = 1.0
_BATCH_EVENTS = 1 << 20


@dataclass(frozen=True)
class Limits:
    """When a recording ends by itself."""

    seconds: float | None = None
    interrupts: int | None = None
    command: subprocess.Popen[bytes] | None = None
    """It ends with this process."""
    size: int | None = None
    """Bytes of the trace file."""
    condition: Callable[[Events, int], str] | None = None
    """Sees all events, and the instant (ns) before which there are no others; the recording ends `AFTERMATH_SECONDS`
    after it has said why."""


class Sink(Protocol):
    """What takes the events: a trace file, or memory."""

    size: int

    def write(self, events: Events, tables: Tables) -> None:
        """Take events and the tables as of now."""


class Stop:
    """Becomes true at SIGINT, SIGTERM or SIGHUP; a second SIGINT or SIGTERM is left to its default action."""

    def __init__(self) -> None:
        self.reason = ""
        self._previous: dict[int, object] = {}
        self._terminals: list[int] = []

    def __bool__(self) -> bool:
        return self.reason != ""

    def _set(self, number: int, _frame: FrameType | None) -> None:
        # No threading.Event: whoever waited for it in this thread would hold its lock here.
        self.reason = signal.Signals(number).name
        if self._previous.pop(signal.SIGHUP, None) is not None:
            # A connection that breaks tells of it twice, by the kernel and by the shell. It stays so: this is the end.
            signal.signal(signal.SIGHUP, signal.SIG_IGN)
        self._restore()
        if number == signal.SIGHUP:
            self._leave_terminal()

    def hang_up(self) -> None:
        """End as SIGHUP does, for whom the terminal is gone and nohup keeps the signal away."""
        self._set(signal.SIGHUP, None)

    def _leave_terminal(self) -> None:
        """Let what is still said go nowhere, if the terminal is gone: to write to it is an error."""
        gone = [number for number in self._terminals if not os.isatty(number)]
        if gone:
            null = os.open(os.devnull, os.O_RDWR)
            for number in gone:
                os.dup2(null, number)
            os.close(null)

    def _restore(self) -> None:
        while self._previous:
            number, handler = self._previous.popitem()
            signal.signal(number, handler)  # type: ignore[arg-type]  # as signal.signal itself returned it

    @contextmanager
    def listening(self) -> Iterator[Stop]:
        """Take the signals for as long as the block runs; SIGHUP is not taken from what nohup runs."""
        self._terminals = [number for number in (0, 1, 2) if os.isatty(number)]
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            if number != signal.SIGHUP or signal.getsignal(number) != signal.SIG_IGN:
                self._previous[number] = signal.signal(number, self._set)
        try:
            yield self
        finally:
            self._restore()


def prefer() -> None:
    """Let this process run before others of the same kind: a drain that waits for a CPU loses events."""
    with suppress(OSError):
        os.setpriority(os.PRIO_PROCESS, 0, -10)


def record(session: Session, writer: Sink, limits: Limits, stop: Stop, progress: Callable[[Counts], None]) -> str:
    """Write what the session sees until a limit or a signal ends it; return why it ended.

    Raises:
        IntxtraceError: the file cannot be written any more; what was written stays.
    """
    prefer()
    begun = time.monotonic()
    batch: list[Events] = []
    size = 0
    written_at = begun
    met, met_at = "", 0.0
    while True:
        events = session.take()
        if len(events):
            batch.append(events)
            size += len(events)
        now = time.monotonic()
        if limits.condition is not None and not met:
            met, met_at = limits.condition(events, session.safe_at), now
        if size >= _BATCH_EVENTS or now - written_at >= _BATCH_SECONDS:
            writer.write(_join(batch), session.tables)
            batch.clear()
            size, written_at = 0, now
            progress(session.counts)
        reason = _ended(session, limits, stop, now - begun, writer.size)
        if met and now - met_at >= AFTERMATH_SECONDS:
            reason = reason or met
        if reason:
            break
        time.sleep(POLL_SECONDS)
    batch.append(session.stop())
    writer.write(_join(batch), session.tables)
    progress(session.counts)
    return reason


def _join(batch: list[Events]) -> Events:
    from intxtrace.events import RECORD

    return np.concatenate(batch) if batch else np.empty(0, RECORD)


def _ended(session: Session, limits: Limits, stop: Stop, elapsed: float, size: int) -> str:
    if stop:
        return stop.reason
    if limits.seconds is not None and elapsed >= limits.seconds:
        return f"--duration of {limits.seconds:g} s is over"
    if limits.size is not None and size >= limits.size:
        return f"--max-size of {limits.size:,} bytes is reached"
    if limits.interrupts is not None and session.counts.interrupts >= limits.interrupts:
        return f"{session.counts.interrupts} interrupts were seen"
    if limits.command is not None and limits.command.poll() is not None:
        return "the command ended"
    return ""
