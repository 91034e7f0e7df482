"""Writing a trace file: batch by batch, each whole on disk before the next begins."""

from __future__ import annotations

import copy
import io
import json
import os
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from intxtrace import files
from intxtrace.errors import IntxtraceError
from intxtrace.events import RECORD, arrow_schema
from intxtrace.trace.messages import END_MARK
from intxtrace.trace.metadata import KEY, Metadata
from intxtrace.trace.tables import Row, Tables

BATCH_ROWS = 1 << 16
"""Longer arrays are cut into batches of this many rows (5 MB as records: what stays in a CPU's cache reads fastest)."""

TABLES_KEY = b"intxtrace.tables"
"""The key of the table rows, as JSON, in the metadata of a batch."""

ZSTD_LEVEL = 3
"""Measured on an event stream: level 3 is smaller, and writes and reads faster, than level 1; level 6 writes at a third
of the speed for 5 % less; lz4 reads twice as fast and is 2.3 times as big."""


class TraceWriter:
    """Writes a trace file (`*.intx`).

    After every call the kernel holds all whole batches, so a crash of this process loses nothing that was written.
    """

    def __init__(self, path: Path | str, metadata: Metadata, force: bool = False) -> None:
        """Create the file, readable by its owner only.

        Raises:
            IntxtraceError: it exists (without `force`) or cannot be created.
        """
        self.path = Path(path)
        self.events = 0
        """Events written."""
        self.size = 0
        """Bytes written: all of them whole batches."""
        self._schema = arrow_schema({KEY: metadata.to_json()})
        self._written: dict[tuple[str, int], Row] = {}
        self._buffer = io.BytesIO()
        codec = pa.Codec("zstd", compression_level=ZSTD_LEVEL)
        options = pa.ipc.IpcWriteOptions(compression=codec)
        self._stream = pa.ipc.new_stream(self._buffer, self._schema, options=options)
        self._fd: int | None = files.create(path, force=force)
        try:
            # pyarrow writes the schema with the first batch: an empty one makes the file a trace at once.
            self._write_batch(np.empty(0, RECORD), None)
        except BaseException:
            self._abandon()
            raise

    def write(self, events: npt.NDArray[np.void], tables: Tables | None = None) -> None:
        """Append events (dtype RECORD, any number) and the rows of `tables` that are new or changed since then.

        Raises:
            IntxtraceError: the disk is full or failed. The file then ends with the last whole batch; only `close` may
                follow.
            ValueError: `events` is not of dtype RECORD, or the file is closed.
        """
        if events.dtype != RECORD:
            raise ValueError(f"events must be of dtype RECORD, not {events.dtype}")
        rows = self._changes(tables) if tables is not None else {}
        if not len(events) and not rows:
            return
        custom = {TABLES_KEY: json.dumps({name: [r.to_json() for r in new] for name, new in rows.items()}).encode()}
        for begin in range(0, max(len(events), 1), BATCH_ROWS):
            self._write_batch(events[begin : begin + BATCH_ROWS], custom if rows and begin == 0 else None)
        for name, new in rows.items():
            self._written.update({(name, row.id): copy.deepcopy(row) for row in new})

    def close(self) -> None:
        """Write the end mark and close the file. A second call does nothing."""
        if self._fd is None:
            return
        try:
            files.write_all(self._fd, END_MARK)
        except OSError:
            os.ftruncate(self._fd, self.size)  # without the mark the file is still read whole
        finally:
            self._abandon()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _changes(self, tables: Tables) -> dict[str, list[Row]]:
        every: dict[str, list[Any]] = vars(tables)
        changed = {name: [r for r in rows if self._written.get((name, r.id)) != r] for name, rows in every.items()}
        return {name: rows for name, rows in changed.items() if rows}

    def _write_batch(self, events: npt.NDArray[np.void], custom: dict[bytes, bytes] | None) -> None:
        if self._fd is None:
            raise ValueError(f"{self.path} is closed")
        # Arrow wants each column contiguous; from there on nothing is copied before zstd.
        columns = [
            pa.Array.from_buffers(
                field.type, len(events), [None, pa.py_buffer(np.ascontiguousarray(events[field.name]))]
            )
            for field in self._schema
        ]
        self._buffer.seek(0)
        self._buffer.truncate()
        self._stream.write_batch(pa.RecordBatch.from_arrays(columns, schema=self._schema), custom_metadata=custom)
        try:
            with self._buffer.getbuffer() as data:
                files.write_all(self._fd, data)
                size = len(data)
        except BaseException as error:  # a signal's exception must not leave half a batch behind either
            os.ftruncate(self._fd, self.size)
            os.lseek(self._fd, self.size, os.SEEK_SET)
            if isinstance(error, OSError):
                reason = f"{files.sentence(error, self.path)}; its first {self.events} events are kept"
                raise IntxtraceError(reason) from None
            raise
        self.size += size
        self.events += len(events)

    def _abandon(self) -> None:
        if self._fd is not None:
            os.close(self._fd)
            self._fd = None
