"""Reading a trace file: batch by batch in bounded memory, up to the last whole batch, trusting nothing in it."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Any, Self, get_type_hints

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from intxtrace import files
from intxtrace.errors import IntxtraceError
from intxtrace.events import RECORD, arrow_schema
from intxtrace.trace import messages
from intxtrace.trace.messages import CutError, DamageError, Header
from intxtrace.trace.metadata import KEY, Metadata
from intxtrace.trace.tables import Device, Probe, Row, Tables, Vm
from intxtrace.trace.values import fits, load_json
from intxtrace.trace.writer import TABLES_KEY

MAX_TABLE_ROWS = 1 << 16

_ROWS: dict[str, type[Row]] = {"probes": Probe, "vms": Vm, "devices": Device}
_HINTS = {row: get_type_hints(row) for row in _ROWS.values()}
_BLOCK = 4096
"""Records assembled at a time: 320 KiB of output and its columns stay in the CPU's cache, which doubles the speed."""


class TraceReader:
    """Reads a trace file once, from its begin to its end.

    A file that was cut off (a crash, a full disk, a recording that still runs) is read up to its last whole batch;
    `truncated`, `lost_bytes` and `problem` say so once the end was reached.
    """

    def __init__(self, path: Path | str) -> None:
        """Open a trace.

        Raises:
            IntxtraceError: there is no such file, it may not be read, it is no trace, or its version is newer.
        """
        self.path = Path(path)
        self.tables = Tables()
        """The tables as of the batch that was handed out last. The object stays the same and grows."""
        self.position = 0
        """Bytes read so far."""
        self.whole = 0
        """Up to here the file consists of whole messages, the end mark left out."""
        self.ended = False
        """The end was reached: what follows is known."""
        self.truncated = False
        """The file has no end mark, or something at its end could not be read."""
        self.problem = ""
        """What is wrong with its end, in words."""
        try:
            # Without O_NONBLOCK, opening a FIFO would wait for a writer.
            self._fd = os.open(self.path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        except OSError as error:
            raise IntxtraceError(files.sentence(error, path)) from None
        try:
            self._open()
        except BaseException:
            os.close(self._fd)
            raise

    def _open(self) -> None:
        status = os.fstat(self._fd)
        if stat.S_ISDIR(status.st_mode):
            raise IntxtraceError(files.sentence(OSError(errno.EISDIR, ""), self.path))
        if not stat.S_ISREG(status.st_mode):
            raise IntxtraceError(f"{self.path} is not a regular file; name a trace file (*.intx)")
        self.size = status.st_size
        """Bytes of the file when it was opened."""
        if self.size == 0:
            raise IntxtraceError(f"{self.path} is empty; record again, or name another trace file")
        not_a_trace = IntxtraceError(
            f"{self.path} is not an intxtrace trace; name a file that `intxtrace record` or `intxtrace import` wrote"
        )
        try:
            header = messages.read_header(self._fd, 0, self.size)
            if header is None or header.type != messages.SCHEMA:
                raise not_a_trace
            message = messages.read_message(self._fd, header)
            self.schema = pa.ipc.read_schema(pa.ipc.read_message(pa.py_buffer(message)))
            """The Arrow schema, unknown columns included."""
            text = (self.schema.metadata or {}).get(KEY)
        except (CutError, DamageError, pa.ArrowException, OSError):
            raise not_a_trace from None
        if text is None:
            raise not_a_trace
        try:
            self.metadata = Metadata.from_json(text)
        except IntxtraceError as error:
            raise IntxtraceError(f"{self.path}: {error}") from None
        except ValueError as error:
            raise IntxtraceError(f"{self.path} is damaged: {error}; record again, or restore a copy") from None
        for column in arrow_schema():
            found = self.schema.get_all_field_indices(column.name)
            if len(found) != 1 or self.schema.field(found[0]).type != column.type:
                raise IntxtraceError(
                    f"{self.path} is damaged: its column {column.name} is missing or not {column.type}; "
                    "record again, or restore a copy"
                )
        self.position = self.whole = header.end

    @property
    def lost_bytes(self) -> int:
        """Bytes after the last whole batch that could not be read; 0 before the end was reached."""
        return self.size - self.position if self.ended and self.truncated else 0

    def iter_record_batches(self) -> Iterator[pa.RecordBatch]:
        """Hand out the batches as Arrow, unknown columns included, and keep `tables` up to date.

        Raises:
            IntxtraceError: the disk failed.
        """
        while (found := self._next(decode=True)) is not None:
            yield found[1]

    def iter_batches(self) -> Iterator[tuple[npt.NDArray[np.void], Tables]]:
        """Hand out the batches as records (dtype RECORD) with the tables as of then; empty batches are left out.

        Kinds that this version does not know are handed out too.

        Raises:
            IntxtraceError: the disk failed.
        """
        for batch in self.iter_record_batches():
            if batch.num_rows:
                yield to_records(batch), self.tables

    def iter_columns(self) -> Iterator[dict[str, npt.NDArray[Any]]]:
        """Hand out the batches column by column (the fields of RECORD), nothing copied; empty ones are left out.

        Raises:
            IntxtraceError: the disk failed.
        """
        for batch in self.iter_record_batches():
            if batch.num_rows:
                yield to_columns(batch)

    def scan(self) -> int:
        """Read the tables of the whole file without unpacking its columns, and return the number of events.

        Damage within the columns goes unnoticed.

        Raises:
            IntxtraceError: the disk failed.
        """
        events = 0
        while (found := self._next(decode=False)) is not None:
            events += found[0].rows
        return events

    def close(self) -> None:
        """Close the file. A second call does nothing."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _next(self, decode: bool) -> tuple[Header, pa.RecordBatch | None] | None:
        """Read the next batch and merge its table rows; None at the end, whatever it is."""
        if self.ended:
            return None
        try:
            header = messages.read_header(self._fd, self.position, self.size)
            if header is None:
                self._end(end_mark=len(messages.END_MARK))
                return None
            if header.type != messages.BATCH:
                raise DamageError
            batch = self._decode(header) if decode else None
            rows = _parse_rows(header.custom.get(TABLES_KEY.decode()))
        except CutError:
            if self.position == self.size:
                self._end("it has no end mark: the recording still runs, or was cut off after a whole batch")
            else:
                self._end(f"it was cut off: its last {self.size - self.position} bytes are no whole batch")
            return None
        except (DamageError, ValueError, pa.ArrowException, MemoryError, OSError) as error:
            if isinstance(error, OSError) and error.errno is not None:  # pyarrow's codec errors have no number
                raise IntxtraceError(files.sentence(error, self.path)) from None
            lost = self.size - self.position
            self._end(f"it is damaged at byte {self.position}: the {lost} bytes from there on cannot be read")
            return None
        _merge(self.tables, rows)
        self.position = self.whole = header.end
        return header, batch

    def _decode(self, header: Header) -> pa.RecordBatch:
        message = messages.read_message(self._fd, header)
        batch = pa.ipc.read_record_batch(pa.ipc.read_message(pa.py_buffer(message)), self.schema)
        batch.validate()  # that each column's memory is as long as its rows
        for name in RECORD.names or ():
            column = batch.column(name)
            if column.null_count or len(column) != header.rows:
                raise DamageError
        return batch

    def _end(self, problem: str = "", end_mark: int = 0) -> None:
        self.position += end_mark
        if not problem and self.position != self.size:
            problem = f"{self.size - self.position} bytes follow its end mark, which are not read"
        self.ended, self.truncated, self.problem = True, bool(problem), problem


def to_columns(batch: pa.RecordBatch) -> dict[str, npt.NDArray[Any]]:
    """Give the columns of a batch (the fields of RECORD) as arrays that share its memory."""
    return {name: batch.column(name).to_numpy() for name in RECORD.names or ()}


def to_records(batch: pa.RecordBatch) -> npt.NDArray[np.void]:
    """Assemble the records (dtype RECORD) of a batch of columns.

    The columns are interleaved block by block, so that what is written and read stays in the CPU's cache.
    """
    columns = to_columns(batch)
    records = np.empty(batch.num_rows, RECORD)
    for begin in range(0, batch.num_rows, _BLOCK):
        block = records[begin : begin + _BLOCK]
        for name, column in columns.items():
            block[name] = column[begin : begin + _BLOCK]
    return records


def repair(path: Path | str, out: Path | str, force: bool = False) -> TraceReader:
    """Write a copy of a trace that ends cleanly after its last whole batch, and return the reader, at its end.

    Batches are copied byte by byte: columns, rows and kinds that this version does not know stay.

    Raises:
        IntxtraceError: the trace cannot be read or the copy not be written.
    """
    out = Path(out)
    with TraceReader(path) as reader:
        if out.exists() and os.path.samestat(out.stat(), os.fstat(reader._fd)):
            raise IntxtraceError(f"{out} is the trace itself; write the repaired copy to another file")
        for _ in reader.iter_record_batches():
            pass
        whole = reader.whole
        fd = files.create(out, force=force)
        try:
            try:
                done = 0
                while done < whole:
                    done += os.sendfile(fd, reader._fd, done, whole - done)
                files.write_all(fd, messages.END_MARK)
            finally:
                os.close(fd)
        except OSError as error:
            out.unlink(missing_ok=True)
            raise IntxtraceError(files.sentence(error, out)) from None
    return reader


def _parse_rows(text: bytes | None) -> dict[str, list[Row]]:
    """Read the table rows of a batch; tables that this version does not know are left out.

    Raises:
        ValueError: they are not what the tables declare.
    """
    if text is None:
        return {}
    values = load_json(text)
    if not isinstance(values, dict):
        raise ValueError("the tables are no JSON object")
    return {name: [_parse_row(row, value) for value in _list(values.get(name, []))] for name, row in _ROWS.items()}


def _list(value: Any) -> list[Any]:
    if not isinstance(value, list):
        raise ValueError("a table is no JSON list")
    return value


def _parse_row(row: type[Row], values: Any) -> Row:
    if not isinstance(values, dict) or "id" not in values:
        raise ValueError("a table row has no id")
    hints = _HINTS[row]
    for name in hints.keys() & values.keys() - {"extra"}:
        if not fits(values[name], hints[name]):
            raise ValueError(f"{name} of a table row is not of its type")
    return row.from_json(values)


def _merge(tables: Tables, rows: dict[str, list[Row]]) -> None:
    for name, new in rows.items():
        table: list[Row] = getattr(tables, name)
        if new:
            merged = {row.id: row for row in [*table, *new]}
            table[:] = [merged[key] for key in sorted(merged)][:MAX_TABLE_ROWS]
