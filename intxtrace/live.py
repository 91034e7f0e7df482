"""What the live view runs on: a source of events (this host, or a recorded trace), the model, and what it keeps.

No terminal in here: `intxtrace.cli.live` draws what `Watch` hands out.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import numpy as np
import numpy.typing as npt

from intxtrace.errors import IntxtraceError
from intxtrace.events import RECORD
from intxtrace.trace.kept import Kept, Saved
from intxtrace.trace.reader import TraceReader

if TYPE_CHECKING:
    from intxtrace.analysis.live import LiveModel
    from intxtrace.analysis.live_results import LiveView
    from intxtrace.capture.session import Session
    from intxtrace.trace.metadata import Metadata
    from intxtrace.trace.tables import Tables

Events = npt.NDArray[np.void]

POLL_SECONDS = 0.05
"""How long the drain sleeps: 50,000 events at a million a second, a quarter of the default ring."""
REFRESH_SECONDS = 1.0
_END_OF_TIME = (1 << 63) - 1
_MOST_EVENTS = 1 << 19
"""So many wait for the model at most; a replay hands out no more at a time, however fast it is to be."""


class Source(Protocol):
    """Where events come from."""

    metadata: Metadata
    tables: Tables

    @property
    def ended(self) -> bool:
        """Nothing follows."""

    @property
    def problem(self) -> str:
        """What is wrong with it, in words; empty if nothing is."""

    def take(self) -> Events:
        """Return the events since the last call, in order of time."""

    def now(self) -> int | None:
        """Return the instant of the trace's clock up to which events were taken."""

    def stop(self) -> Events:
        """End it, and return the rest of the events."""


class Host:
    """This host: a running session."""

    ended = False
    problem = ""

    def __init__(self, session: Session, metadata: Metadata) -> None:
        """Watch `session`; `metadata` says what a saved trace is to say of itself."""
        self._session = session
        self.metadata = metadata
        self.tables = session.tables
        self._at = time.monotonic_ns()

    def take(self) -> Events:
        """See `Source.take`."""
        self._at = time.monotonic_ns()
        return self._session.take()

    def now(self) -> int:
        """See `Source.now`: the probes take CLOCK_MONOTONIC."""
        return self._at

    def stop(self) -> Events:
        """See `Source.stop`: detaches the probes."""
        self._at = time.monotonic_ns()
        return self._session.stop()


class Replay:
    """A recorded trace, played in its own time."""

    def __init__(self, path: Path | str, speed: float = 1.0, clock: Callable[[], float] = time.monotonic) -> None:
        """Open a trace, and play it from now on, `speed` seconds of it a second.

        Raises:
            IntxtraceError: it cannot be read, or has no clock.
        """
        self._reader = TraceReader(path)
        self.metadata = self._reader.metadata
        self.tables = self._reader.tables
        self.path = self._reader.path
        self.speed = speed
        self._clock = clock
        if self.metadata.clock == "none":
            self._reader.close()
            raise IntxtraceError(f"{path} has no clock, so it cannot be played in its time; use `intxtrace summary`")
        self._batches = self._reader.iter_batches()
        self._batch = np.empty(0, RECORD)
        self.ended = False
        self._begun = clock()
        self._next()
        self.begin_at: int | None = None if self.ended else int(self._batch["ts"][0])
        """The first event."""
        self._at = self.begin_at

    @property
    def problem(self) -> str:
        """What is wrong with the trace's end, in words; empty if nothing is, or it has not been reached."""
        return self._reader.problem

    def _next(self) -> None:
        """Read the next batch, in order of time."""
        found = next(self._batches, None)
        if found is None:
            self.ended = True
            self._batch = np.empty(0, RECORD)
            return
        events = found[0]
        sorted_already = bool((events["ts"][1:] >= events["ts"][:-1]).all())
        self._batch = events if sorted_already else events[np.argsort(events["ts"], kind="stable")]

    def _due(self) -> int:
        assert self.begin_at is not None
        return min(self.begin_at + int(min((self._clock() - self._begun) * self.speed, 1e10) * 1e9), _END_OF_TIME)

    def take(self) -> Events:
        """See `Source.take`."""
        if self.ended:
            return np.empty(0, RECORD)
        due, parts, count = self._due(), [], 0
        while not self.ended and count < _MOST_EVENTS:
            ready = int(np.searchsorted(self._batch["ts"], np.uint64(due), side="right"))
            parts.append(self._batch[:ready])
            count += ready
            self._batch = self._batch[ready:]
            if len(self._batch):
                break
            self._next()
        events = np.concatenate(parts)
        self._at = due
        if self.ended or count >= _MOST_EVENTS:
            self._at = int(events["ts"][-1]) if len(events) else self._at
        return events

    def now(self) -> int | None:
        """See `Source.now`: once it has ended, the last event."""
        return self._at

    def stop(self) -> Events:
        """See `Source.stop`: what is not due yet is not seen."""
        rest = self.take()
        self._reader.close()
        self.ended = True
        return rest


class Watch:
    """Takes events from a source into the model, and keeps them."""

    def __init__(self, source: Source, model: LiveModel, keep_bytes: int) -> None:
        self.source = source
        self._model = model
        self._kept = Kept(keep_bytes)
        self._waiting: list[Events] = []
        self._count = 0

    def poll(self) -> None:
        """Take what came."""
        events = self.source.take()
        if len(events):
            self._waiting.append(events)
            self._count += len(events)
        if self._count >= _MOST_EVENTS:
            self._absorb()

    def _absorb(self) -> None:
        if not self._waiting:
            return
        events = self._waiting[0] if len(self._waiting) == 1 else np.concatenate(self._waiting)
        self._waiting.clear()
        self._count = 0
        self._kept.add(events, self.source.tables)
        self._model.feed(events)

    def view(self) -> LiveView:
        """Give the view of now."""
        self._absorb()
        return self._model.view(self.source.now())

    def finish(self) -> LiveView:
        """Stop the source, and give the last view: it counts what was in flight, as a summary does."""
        rest = self.source.stop()
        if len(rest):
            self._waiting.append(rest)
        self._absorb()
        self._model.finish()
        return self._model.view(self.source.now())

    def run(
        self,
        ended: Callable[[], bool],
        sleep: Callable[[float], object],
        show: Callable[[LiveView], None] = lambda _: None,
        refresh: float = REFRESH_SECONDS,
    ) -> LiveView:
        """Take events and show a view every `refresh` seconds, until `ended`; return the last view."""
        shown = time.monotonic() - refresh
        while not ended():
            self.poll()
            now = time.monotonic()
            if now - shown >= refresh:
                shown = now
                show(self.view())
            sleep(min(POLL_SECONDS, refresh))
        return self.finish()

    def save(self, path: Path | str, force: bool = False) -> Saved:
        """Write what was seen to a trace file; from any thread.

        Raises:
            IntxtraceError: it exists (without `force`) or cannot be written.
        """
        return self._kept.save(path, self.source.metadata, force)
