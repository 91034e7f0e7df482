"""A trace of QEMU's `simple` backend, version 4 (trace/simple.c, 4.0 to 10.2) -> events, tables and metadata.

Native-endian; only that of little-endian hosts is read. `ts` is CLOCK_MONOTONIC of the host (get_clock), and a record
names the process, not the thread. The arguments are those of trace-events, in its order.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

from intxtrace.errors import IntxtraceError
from intxtrace.events import RECORD, Flag, Kind
from intxtrace.importers.blocks import Readable
from intxtrace.importers.qemu_events import EVENTS, MAX_NAME, Sink
from intxtrace.trace.metadata import Metadata
from intxtrace.trace.tables import Tables

HEADER = struct.pack("<QQ", 0xFFFFFFFFFFFFFFFF, 0xF2B177CB0AA429B4)
"""HEADER_EVENT_ID and HEADER_MAGIC."""

_VERSION = 4
_DROPPED = 0xFFFFFFFFFFFFFFFE
_MAPPING, _EVENT = 0, 1
_MAX_RECORD = 1 << 16
"""TRACE_BUF_LEN is 4096 * 64, but no event of INTx is longer than its strings of 512."""
_MAX_MAPPINGS = 1 << 16
_ROWS = 1 << 14

_FIELDS = {
    Kind.QEMU_UPDATE: ("arg0", "arg1"),
    Kind.QEMU_REGION_WRITE: ("aux", "arg0", "arg1", "value"),
    Kind.QEMU_REGION_READ: ("aux", "arg0", "value", "arg1"),
    Kind.QEMU_MMAPS: ("value",),
    Kind.QEMU_RESAMPLE_NOTIFY: ("arg0",),
}
"""What follows the device's name."""


class QemuSimple:
    """A recording of the `simple` backend.

    Args:
        stream: the file.
        name: what to call it in errors.
        command_line: the command that imports it, for the metadata.

    Raises:
        IntxtraceError: its version is not 4.
    """

    def __init__(self, stream: Readable, name: str, command_line: list[str] | None = None) -> None:
        self.tables = Tables()
        self.lines = 0
        """Records read."""
        self.unreadable: dict[str, int] = {}
        self._sink = Sink(self.tables)
        self._stream = stream
        self._name = name
        self._buffer = b""
        self._at = 0
        self._events: dict[int, Kind | None] = {}
        header = self._take(24)
        version = struct.unpack("<Q", header[16:])[0] if header else 0
        if not header or not header.startswith(HEADER) or version != _VERSION:
            raise IntxtraceError(f"{name} is a QEMU trace of version {version}; only version {_VERSION} is read")
        self.metadata: Metadata = Metadata(
            clock="monotonic",
            command_line=command_line or [],
            extra={"imported_from": "QEMU simple trace", "clock_note": "CLOCK_MONOTONIC of the host"},
        )

    @property
    def late(self) -> int:
        """Events that were older than what was handed out before: they have the time of that."""
        return self._sink.late

    def __iter__(self) -> Iterator[npt.NDArray[np.void]]:
        """Hand out the events, with `tables` grown to what they name."""
        rows: list[npt.NDArray[np.void]] = []
        while (record := self._record()) is not None:
            rows += record
            if len(rows) >= _ROWS:
                yield self._sink.in_order(np.concatenate(rows))
                rows = []
        if rows:
            yield self._sink.in_order(np.concatenate(rows))
        yield self._sink.rest()

    def _take(self, size: int) -> bytes | None:
        """Read so many bytes; None if the file ends before."""
        while len(self._buffer) - self._at < size:
            part = self._stream.read(1 << 18)
            if not part:
                return None
            self._buffer = self._buffer[self._at :] + part
            self._at = 0
        self._at += size
        return self._buffer[self._at - size : self._at]

    def _record(self) -> list[npt.NDArray[np.void]] | None:
        """Read one record; None at the end of the file, a cut record included."""
        kind = self._take(8)
        if kind is None:
            return None
        self.lines += 1
        number = int.from_bytes(kind, "little")
        if number == _MAPPING:
            head = self._take(12)
            if head is None:
                return None
            event, size = struct.unpack("<QI", head)
            name = self._take(size) if size <= MAX_NAME else b""
            if name == b"" or len(self._events) > _MAX_MAPPINGS:
                raise self._damaged()
            if name is None:
                return None
            self._events[event] = EVENTS.get(name.decode("latin-1"))
            return []
        if number != _EVENT:
            raise self._damaged()
        head = self._take(24)
        if head is None:
            return None
        event, ts, size, pid = struct.unpack("<QQII", head)
        if not 24 <= size <= _MAX_RECORD:
            raise self._damaged()
        payload = self._take(size - 24)
        if payload is None:
            return None
        if event == _DROPPED:
            return [self._lost(ts, payload)] if len(payload) == 8 else []
        known = self._events.get(event)
        if known is None:
            return []
        try:
            return [self._converted(known, ts, pid, payload)]
        except (struct.error, OverflowError):
            self.unreadable[known.name] = self.unreadable.get(known.name, 0) + 1
            return []

    def _damaged(self) -> IntxtraceError:
        return IntxtraceError(f"{self._name}: record {self.lines} is no record of a QEMU trace; the file is damaged")

    def _lost(self, ts: int, payload: bytes) -> npt.NDArray[np.void]:
        record = np.zeros(1, RECORD)
        record["ts"], record["kind"] = ts, Kind.LOST
        record["arg0"], record["arg1"] = ts, int.from_bytes(payload, "little")
        return record

    def _converted(self, kind: Kind, ts: int, pid: int, payload: bytes) -> npt.NDArray[np.void]:
        record = np.zeros(1, RECORD)
        record["ts"], record["kind"], record["tgid"] = ts, kind, pid
        at = 0
        if kind != Kind.QEMU_RESAMPLE_NOTIFY:
            (size,) = struct.unpack_from("<I", payload)
            name = payload[4 : 4 + size]
            at = 4 + size
            if len(name) < size or not 0 < size <= MAX_NAME:
                raise struct.error
            if kind == Kind.QEMU_MMAPS:  # "0000:00:05.0 BAR 0"
                name, _, region = name.rpartition(b" BAR ")
                if not name or not region.isdigit() or len(region) > 3:
                    raise struct.error
                record["aux"] = int(region)
            row = self._sink.device(name)
            self.tables.devices[row].vm_pid = pid
            record["device"], record["flags"] = row, Flag.SYNTHETIC
        for field in _FIELDS.get(kind, ()):
            (value,) = struct.unpack_from("<Q", payload, at)
            at += 8
            record[field] = value & ((1 << 64) - 1 if field.startswith("arg") else 0x7FFFFFFF)
        return record
