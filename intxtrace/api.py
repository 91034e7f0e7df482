"""Traces for programs and notebooks: `intxtrace.open_trace(path)`."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from intxtrace.events import RECORD, Kind
from intxtrace.trace.reader import TraceReader

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt
    import pandas as pd

    from intxtrace.reconstruct import Result
    from intxtrace.reconstruct.state import Events

E = TypeVar("E", bound="Events")

_EVENTS_A_RESULT = 1 << 20
"""So many events make the rows of one result: a frame costs a millisecond, however short."""


class Trace:
    """A trace file, opened. The file is read anew by each property the first time, and by each `iter_` method."""

    def __init__(self, path: Path | str) -> None:
        """Read the metadata and the tables.

        Raises:
            IntxtraceError: there is no such file, it may not be read, it is no trace, or its version is newer.
        """
        self.path = Path(path)
        with TraceReader(path) as reader:
            self.event_count = reader.scan()
            """Events in the file."""
            self.metadata = reader.metadata
            """What the trace says about itself (`trace.metadata.Metadata`)."""
            self.tables = reader.tables
            """The probes, virtual machines and devices (`trace.tables.Tables`), as of the end of the file."""
            self.size = reader.size
            """Bytes of the file."""
            self._take_end(reader)
        self.position = 0
        """Bytes that the `iter_` method used last has read so far."""
        self.first_at: int | None = None
        self.last_at: int | None = None
        """Least and greatest `ts` that the `iter_` method used last has seen so far."""

    def _take_end(self, reader: TraceReader) -> None:
        # Reading the columns may find damage that the first scan did not see.
        self.truncated = reader.truncated
        """The file has no end mark, or something at its end could not be read."""
        self.lost_bytes = reader.lost_bytes
        """Bytes after the last whole batch that could not be read."""
        self.problem = reader.problem
        """What is wrong with its end, in words; empty if nothing is."""

    @cached_property
    def begin_at(self) -> int | None:
        """The first instant of the trace: the least `ts` of its first batch. None without events or clock."""
        if self.metadata.clock == "none":
            return None
        return next((int(events["ts"].min()) for events in self.iter_events()), None)

    @cached_property
    def events(self) -> pd.DataFrame:
        """All events: the columns of `events.RECORD`, and `kind_name` (categorical; null if unknown)."""
        import pandas as pd
        import pyarrow as pa

        with TraceReader(self.path) as reader:
            table = pa.Table.from_batches(reader.iter_record_batches(), reader.schema)
            self._take_end(reader)
        frame: pd.DataFrame = table.select(list(RECORD.names or ())).to_pandas()
        kinds = list(Kind)
        codes = pd.Index([int(kind) for kind in kinds]).get_indexer(pd.Index(frame["kind"]))
        dtype = pd.CategoricalDtype([kind.name for kind in kinds])
        frame.insert(2, "kind_name", pd.Series(pd.Categorical.from_codes(codes, dtype=dtype), index=frame.index))
        return frame

    @cached_property
    def _whole(self) -> Result:
        (result,) = self._results(math.inf)  # One result, for to join frames takes as long as to make them.
        return result

    @property
    def interrupts(self) -> pd.DataFrame:
        """All interrupts, in order of closing: the columns of `frames.INTERRUPTS`."""
        return self._whole.interrupts

    @property
    def states(self) -> pd.DataFrame:
        """All device states: the columns of `frames.DEVICE_STATES`."""
        return self._whole.states

    @property
    def counters(self) -> pd.DataFrame:
        """All counters: the columns of `frames.COUNTERS`."""
        return self._whole.counters

    def iter_events(self) -> Iterator[npt.NDArray[np.void]]:
        """Hand out the events batch by batch, as arrays of dtype `events.RECORD`, in bounded memory."""
        with TraceReader(self.path) as reader:
            yield from self._watched(reader, (events for events, _ in reader.iter_batches()))

    def iter_results(self, watch: Callable[[Events], None] | None = None) -> Iterator[Result]:
        """Hand out interrupts, states and counters as they close, batch by batch, in bounded memory.

        `watch` sees each batch of events, column by column, before the results that it makes.
        """
        return self._results(_EVENTS_A_RESULT, watch)

    def _results(self, events_a_result: float, watch: Callable[[Events], None] | None = None) -> Iterator[Result]:
        from intxtrace.reconstruct import Reconstructor

        with TraceReader(self.path) as reader:
            reconstructor = Reconstructor(
                reader.tables, clock_orders_only=self.metadata.clock == "none", expected=self.event_count
            )
            taken = 0
            for columns in self._watched(reader, reader.iter_columns()):
                if watch is not None:
                    watch(columns)
                reconstructor.take(columns)
                taken += len(columns["ts"])
                if taken >= events_a_result:
                    taken = 0
                    yield reconstructor.closed()
            yield reconstructor.finish()

    def _watched(self, reader: TraceReader, batches: Iterator[E]) -> Iterator[E]:
        """Note how far the reader has come, in bytes and in time."""
        self.first_at = self.last_at = None
        for events in batches:
            first, last = int(events["ts"].min()), int(events["ts"].max())
            self.first_at = first if self.first_at is None else min(first, self.first_at)
            self.last_at = last if self.last_at is None else max(last, self.last_at)
            self.position = reader.position
            yield events
        self._take_end(reader)

    def iter_interrupts(self) -> Iterator[pd.DataFrame]:
        """Hand out the interrupts frame by frame, in bounded memory; empty frames are left out."""
        for result in self.iter_results():
            if len(result.interrupts):
                yield result.interrupts


def open_trace(path: Path | str) -> Trace:
    """Open a trace file.

    Raises:
        IntxtraceError: there is no such file, it may not be read, it is no trace, or its version is newer.
    """
    return Trace(path)
