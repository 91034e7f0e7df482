"""The framing of an Arrow IPC stream, read without trusting it.

pyarrow's own stream reader allocates whatever a message claims and cannot say where the last whole batch ended. So
the frame and the few numbers that decide about memory are read here, checked, and only then given to pyarrow.

Sources: Arrow columnar format 1.5, "Encapsulated message format" and "Compression"; format/Message.fbs (the slots).
"""

from __future__ import annotations

import os
import struct
from dataclasses import dataclass, field

MAX_HEADER = 32 << 20
MAX_ROWS = 1 << 20
MAX_BATCH = 512 << 20
"""Limits of one message: bytes of its header, rows, bytes of its columns when unpacked. Our writer stays far below."""

SCHEMA, BATCH = 1, 3
"""Message types (MessageHeader of Message.fbs)."""

END_MARK = b"\xff\xff\xff\xff\x00\x00\x00\x00"
_CONTINUATION = 0xFFFFFFFF


class CutError(Exception):
    """The file ends within a message."""


class DamageError(Exception):
    """The bytes are no message of an Arrow stream, or exceed the limits."""


@dataclass(frozen=True)
class Header:
    """Where a message is and what it claims to hold."""

    start: int
    body: int
    """Where its body begins."""
    end: int
    type: int
    rows: int = 0
    compressed: bool = False
    buffers: list[tuple[int, int]] = field(default_factory=list)
    """Offset in the body and length of each."""
    custom: dict[str, bytes] = field(default_factory=dict)


def read_header(fd: int, start: int, size: int) -> Header | None:
    """Read the header of the message at `start` of a file of `size` bytes; None at the end mark.

    Raises:
        CutError: the message is not whole, or there is none.
        DamageError: it is no message, or exceeds the limits.
        OSError: the file cannot be read.
    """
    prefix = os.pread(fd, 8, start)
    if prefix == END_MARK:
        return None
    if len(prefix) < 8:
        raise CutError
    mark, length = struct.unpack("<II", prefix)
    if mark != _CONTINUATION or length % 8 or length > MAX_HEADER:
        raise DamageError
    metadata = os.pread(fd, length, start + 8)
    if len(metadata) < length:
        raise CutError
    try:
        return _parse(metadata, start, start + 8 + length, size)
    except (struct.error, UnicodeDecodeError):
        raise DamageError from None


def read_message(fd: int, header: Header) -> bytes:
    """Read a whole message, having checked that its body does not unpack to more than the limit.

    Raises:
        CutError, DamageError, OSError: as `read_header`.
    """
    message = os.pread(fd, header.end - header.start, header.start)
    if len(message) < header.end - header.start:
        raise CutError
    total = 0
    base, length = header.body - header.start, header.end - header.body
    for offset, size in header.buffers:
        if offset < 0 or size < 0 or offset + size > length:
            raise DamageError
        unpacked = size
        if header.compressed and size:
            if size < 8:
                raise DamageError
            (unpacked,) = struct.unpack_from("<q", message, base + offset)
            if unpacked == -1:  # stored as it is
                unpacked = size - 8
            if unpacked < 0:
                raise DamageError
        total += unpacked
    if total > MAX_BATCH:
        raise DamageError
    return message


class _Table:
    """A table of a flatbuffer: its fields by slot. Every read is bounded by the buffer."""

    def __init__(self, data: bytes, position: int) -> None:
        self.data, self.position = data, position
        self.slots = position - self.number("<i", position)
        self.slots_size = self.number("<H", self.slots)

    def number(self, layout: str, position: int) -> int:
        if position < 0:
            raise DamageError
        value: int = struct.unpack_from(layout, self.data, position)[0]
        return value

    def find(self, slot: int) -> int | None:
        entry = 4 + 2 * slot
        if entry + 2 > self.slots_size:
            return None
        offset = self.number("<H", self.slots + entry)
        return self.position + offset if offset else None

    def scalar(self, slot: int, layout: str) -> int:
        position = self.find(slot)
        return 0 if position is None else self.number(layout, position)

    def follow(self, position: int) -> int:
        return position + self.number("<I", position)

    def table(self, slot: int) -> _Table | None:
        position = self.find(slot)
        return None if position is None else _Table(self.data, self.follow(position))

    def _items(self, slot: int, item_size: int) -> tuple[int, int]:
        """Where the items of a vector begin, and how many there are."""
        position = self.find(slot)
        if position is None:
            return 0, 0
        begin = self.follow(position)
        count = self.number("<I", begin)
        if begin + 4 + count * item_size > len(self.data):
            raise DamageError
        return begin + 4, count

    def vector(self, slot: int, item_size: int) -> list[int]:
        """Positions of the items of a vector."""
        begin, count = self._items(slot, item_size)
        return [begin + i * item_size for i in range(count)]

    def string(self, slot: int) -> bytes:
        begin, count = self._items(slot, 1)
        return self.data[begin : begin + count]


def _parse(data: bytes, start: int, body: int, size: int) -> Header:
    root = _Table(data, struct.unpack_from("<I", data)[0])
    kind, length = root.scalar(1, "<B"), root.scalar(3, "<q")
    if length < 0 or length % 8 or length > MAX_BATCH:
        raise DamageError
    end = body + length
    if end > size:
        raise CutError
    if kind != BATCH:
        return Header(start, body, end, kind)
    batch = root.table(2)
    if batch is None:
        raise DamageError
    rows = batch.scalar(0, "<q")
    if not 0 <= rows <= MAX_ROWS:
        raise DamageError
    buffers = [(batch.number("<q", at), batch.number("<q", at + 8)) for at in batch.vector(2, 16)]
    custom = {}
    for at in root.vector(4, 4):
        pair = _Table(data, root.follow(at))
        custom[pair.string(0).decode()] = pair.string(1)
    return Header(start, body, end, kind, rows, batch.table(3) is not None, buffers, custom)
