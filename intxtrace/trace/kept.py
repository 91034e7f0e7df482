"""The latest events in bounded memory, to be written as a trace file once somebody asks for it."""

from __future__ import annotations

import copy
import threading
from collections import deque
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from intxtrace.events import RECORD, STREAM_KINDS, Kind
from intxtrace.trace.metadata import Metadata
from intxtrace.trace.tables import Tables
from intxtrace.trace.writer import TraceWriter

_NOTES_KEPT = 1 << 16
_OBJECTS = 1024
"""Bytes that the objects around a batch take: a quiet host makes many small ones."""
_LEVEL = 1
"""Of zstd: 0.11 µs an event, as records; 9 bytes each of an event stream. lz4 takes 0.10 µs and 18 bytes."""


@dataclass(frozen=True)
class _Batch:
    """Some events, compressed, with the tables as of then."""

    data: pa.Buffer
    count: int
    first_at: int
    notes: npt.NDArray[np.void]
    """Those that say who is who, or what was lost."""
    tables: Tables

    @property
    def size(self) -> int:
        """Bytes of memory that it takes, about."""
        return int(self.data.size) + self.notes.nbytes + _OBJECTS


@dataclass(frozen=True)
class Saved:
    """What was written."""

    path: Path
    events: int
    """Of those that were seen."""
    dropped: int
    """Older ones that were not kept."""
    size: int
    """Bytes."""


class Kept:
    """Keeps events, and drops the oldest once they take more than `most` bytes, or are more than `age_ns` older than
    the latest.

    What says who is who (`DEVICE`, `VM`, `PROBE`) is kept of those too, and where they were stands a `LOST` event, so
    that a trace of the rest does not pretend that nothing was there.
    """

    def __init__(self, most: int, age_ns: int | None = None) -> None:
        self._most = most
        self._age = age_ns
        self._codec = pa.Codec("zstd", compression_level=_LEVEL)
        self._batches: deque[_Batch] = deque()
        self._size = 0
        self._tables = Tables()
        self._notes: dict[tuple[int, int, int, int], npt.NDArray[np.void]] = {}
        self._dropped = 0
        self._dropped_at = 0
        """When the first of those that were dropped was seen."""
        self._lock = threading.Lock()

    def add(self, events: npt.NDArray[np.void], tables: Tables) -> None:
        """Take events (dtype RECORD) and the tables as of now."""
        if not len(events):
            return
        if tables != self._tables:
            self._tables = copy.deepcopy(tables)
        notes = events[np.isin(events["kind"], list(STREAM_KINDS))]
        data = self._codec.compress(np.ascontiguousarray(events).view(np.uint8))
        with self._lock:
            batch = _Batch(data, len(events), int(events["ts"].min()), notes, self._tables)
            self._batches.append(batch)
            self._size += batch.size
            # A batch is too old once all of it is, which is when the one behind it reaches back far enough.
            least = None if self._age is None else int(events["ts"].max()) - self._age
            while len(self._batches) > 1 and (
                self._size > self._most or (least is not None and self._batches[1].first_at <= least)
            ):
                self._drop(self._batches.popleft())

    def _drop(self, batch: _Batch) -> None:
        self._size -= batch.size
        self._dropped_at = self._dropped_at or batch.first_at
        self._dropped += batch.count
        for note in batch.notes:
            if note["kind"] == Kind.LOST:
                self._dropped += int(note["arg1"])
                continue
            key = (int(note["kind"]), int(note["aux"]), int(note["device"]), int(note["vm"]))
            self._notes.pop(key, None)
            self._notes[key] = note.reshape(1)
            self._dropped -= 1
        while len(self._notes) > _NOTES_KEPT:
            del self._notes[next(iter(self._notes))]
            self._dropped += 1

    def save(self, path: Path | str, metadata: Metadata, force: bool = False) -> Saved:
        """Write a trace file (see `TraceWriter`) of everything that is kept; events may be added meanwhile.

        Raises:
            IntxtraceError: it exists (without `force`) or cannot be written.
        """
        with self._lock:
            batches, notes = list(self._batches), list(self._notes.values())
            dropped, dropped_at = self._dropped, self._dropped_at
        with TraceWriter(path, metadata, force) as writer:
            if dropped:
                hole = np.zeros(1, RECORD)
                hole["kind"], hole["ts"], hole["arg0"] = Kind.LOST, batches[0].first_at, dropped_at
                hole["arg1"] = dropped
                writer.write(np.concatenate([*notes, hole]), batches[0].tables)
            for batch in batches:
                data = self._codec.decompress(batch.data, decompressed_size=batch.count * RECORD.itemsize)
                writer.write(np.frombuffer(data, RECORD), batch.tables)
            events = sum(batch.count for batch in batches)
            return Saved(writer.path, events, dropped, writer.size)
