"""The drain: the BPF ring buffer read as one numpy view, and the order of what comes out.

Layout of the ring (kernel/bpf/ringbuf.c): page 0 is the consumer position (ours to write), page 1 the producer
position, then the data, mapped twice in a row so that no record is ever cut. A record has a header of 8 bytes: its
length with bit 31 while it is being written (BUSY) and bit 30 if it was given up. All our records are of one size, so
the data between two positions are an array with a stride of 88 bytes.
"""

from __future__ import annotations

import ctypes as ct
import mmap
import os
import time
from collections.abc import Callable
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from intxtrace.events import RECORD, Kind

Events = npt.NDArray[np.void]

_BUSY = np.uint32(1 << 31)
_SLOT = np.dtype([("length", "<u4"), ("page", "<u4"), ("record", RECORD)])


class Source(Protocol):
    """Where records come from."""

    def take(self) -> tuple[Events, int]:
        """Return what is there, in ring order, and a time: no record that comes later is older (ns, monotonic)."""

    def close(self) -> None:
        """Let go of the ring."""


def mappable() -> bool:
    """Whether the mapped ring may be used: x86-64 alone orders plain loads and stores as the ring needs it."""
    return os.uname().machine == "x86_64"


class MappedRing:
    """The ring, mapped into memory."""

    def __init__(self, fd: int, size: int) -> None:
        """Map the ring `fd` with `size` bytes of data.

        Raises:
            OSError: the kernel refuses the mapping.
        """
        self._size = size
        self._control = mmap.mmap(fd, mmap.PAGESIZE, mmap.MAP_SHARED, mmap.PROT_READ | mmap.PROT_WRITE, offset=0)
        try:
            self._mapped = mmap.mmap(
                fd, mmap.PAGESIZE + 2 * size, mmap.MAP_SHARED, mmap.PROT_READ, offset=mmap.PAGESIZE
            )
        except OSError:
            self._control.close()
            raise
        self._consumer: npt.NDArray[np.uint64] | None = np.frombuffer(self._control, "<u8", 1)
        self._producer: npt.NDArray[np.uint64] | None = np.frombuffer(self._mapped, "<u8", 1)
        self._safe_at = 0
        self._looks: list[tuple[int, int]] = []

    def take(self) -> tuple[Events, int]:
        """See `Source.take`."""
        assert self._consumer is not None
        assert self._producer is not None
        now = time.monotonic_ns()
        end = int(self._producer[0])
        begin = int(self._consumer[0])
        # A record takes its time after it was given its place: whatever lies behind `end` is not older than `now`.
        self._looks.append((end, now))
        count = (end - begin) // _SLOT.itemsize
        events = np.empty(0, RECORD)
        if count:
            view = np.frombuffer(self._mapped, _SLOT, count, offset=mmap.PAGESIZE + begin % self._size)
            busy = np.flatnonzero(view["length"] & _BUSY)
            if len(busy):
                count = int(busy[0])
            events = view["record"][:count].copy()
            del view
            begin += count * _SLOT.itemsize
            self._consumer[0] = begin
        while self._looks and self._looks[0][0] <= begin:
            self._safe_at = self._looks.pop(0)[1]
        del self._looks[1:-1]  # the oldest one not reached decides; the newest replaces it
        return events, self._safe_at

    def close(self) -> None:
        """See `Source.close`."""
        self._consumer = self._producer = None
        self._mapped.close()
        self._control.close()


class CallbackRing:
    """The ring through bcc's own callback: for machines where it cannot be mapped."""

    _HOLD_NS = 100_000_000
    """bcc does not tell where it stopped, so a record may be this late."""

    _LIMIT = 1 << 16
    """Records a call: bcc goes on for as long as more come."""

    def __init__(self, bpf: Any) -> None:
        """Open the ring `events` of a bcc.BPF object."""
        self._bpf = bpf
        self._parts: list[bytes] = []
        self._safe_at = 0
        size = RECORD.itemsize

        def receive(_context: int, data: int, _size: int) -> int:
            self._parts.append(ct.string_at(data, size))
            return 0 if len(self._parts) < self._LIMIT else -1

        bpf[b"events"].open_ring_buffer(receive)

    def take(self) -> tuple[Events, int]:
        """See `Source.take`."""
        now = time.monotonic_ns()
        self._bpf.ring_buffer_consume()
        events = np.frombuffer(b"".join(self._parts), RECORD).copy()
        reached = now if len(self._parts) < self._LIMIT else int(events["ts"].max())
        self._safe_at = max(self._safe_at, reached - self._HOLD_NS)
        self._parts.clear()
        return events, self._safe_at

    def close(self) -> None:
        """See `Source.close`."""
        self._parts.clear()


def open_ring(bpf: Any, size: int) -> Source:
    """Open the ring `events` of a bcc.BPF object: mapped where that is allowed, else through the callback."""
    if mappable():
        try:
            return MappedRing(bpf[b"events"].map_fd, size)
        except OSError:
            pass
    return CallbackRing(bpf)


def own_event(kind: Kind, ts: int, **values: int) -> Events:
    """Make an event of the recorder's own."""
    event = np.zeros(1, RECORD)
    event["kind"] = int(kind)
    event["ts"] = ts
    for name, value in values.items():
        event[name] = value
    return event


class Drain:
    """Puts the events of a source in order of time, and hands out those that nothing older can follow."""

    def __init__(self, source: Source) -> None:
        """Drain `source`."""
        self._source = source
        self._held = np.empty(0, RECORD)
        self.safe_at = 0
        """All events before this instant have been handed out."""

    def take(self, extra: Callable[[], list[Events]] | None = None, *, everything: bool = False) -> Events:
        """Return events by time, never one that is older than what was returned before.

        Args:
            extra: called after the look at the source; returns events from elsewhere that belong between them.
            everything: the producers have stopped; hold nothing back.
        """
        events, safe_at = self._source.take()
        self.safe_at = safe_at
        parts = [part for part in (self._held, events, *(extra() if extra else ())) if len(part)]
        if not parts:
            return np.empty(0, RECORD)
        both = np.concatenate(parts) if len(parts) > 1 else parts[0]
        times = both["ts"]
        if np.any(times[1:] < times[:-1]):
            both = both[np.argsort(times, kind="stable")]
        ready = len(both) if everything else int(np.searchsorted(both["ts"], safe_at, side="left"))
        self._held = both[ready:]
        return both[:ready]

    def close(self) -> None:
        """Let go of the source."""
        self._source.close()
