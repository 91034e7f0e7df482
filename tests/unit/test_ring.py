"""The mapped ring over a file that looks like one, and the order that the drain makes."""

from __future__ import annotations

import mmap
import os
import time
from collections.abc import Iterator

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from intxtrace.capture.ring import _SLOT, Drain, Events, MappedRing, own_event
from intxtrace.events import RECORD, Kind

SIZE = 1 << 16
BUSY = 1 << 31


class FakeRing:
    """A file with the layout of the ring: consumer page, producer page, the data twice (kept equal by hand)."""

    def __init__(self) -> None:
        self.fd = os.memfd_create("ring")
        os.ftruncate(self.fd, 2 * mmap.PAGESIZE + 2 * SIZE)
        self.memory = mmap.mmap(self.fd, 2 * mmap.PAGESIZE + 2 * SIZE)
        self.position = 0

    def put(self, ts: int, *, busy: bool = False) -> int:
        slot = np.zeros(1, _SLOT)
        slot["length"] = RECORD.itemsize | (BUSY if busy else 0)
        slot["record"]["ts"] = ts
        at = self.position
        raw = slot.tobytes()
        for index, byte in enumerate(raw):
            place = (at + index) % SIZE
            for copy in (0, SIZE):
                self.memory[2 * mmap.PAGESIZE + copy + place] = byte
        self.position += len(raw)
        self.memory[mmap.PAGESIZE : mmap.PAGESIZE + 8] = self.position.to_bytes(8, "little")
        return at

    def submit(self, at: int) -> None:
        for copy in (0, SIZE):
            place = 2 * mmap.PAGESIZE + copy + at % SIZE
            self.memory[place + 3] &= 0x7F

    @property
    def consumed(self) -> int:
        return int.from_bytes(self.memory[0:8], "little")


@pytest.fixture
def fake() -> Iterator[FakeRing]:
    ring = FakeRing()
    yield ring
    ring.memory.close()
    os.close(ring.fd)


@pytest.fixture
def ring(fake: FakeRing) -> Iterator[MappedRing]:
    mapped = MappedRing(fake.fd, SIZE)
    yield mapped
    mapped.close()


def test_records_come_whole_also_around_the_end(fake: FakeRing, ring: MappedRing) -> None:
    sent, got = [], []
    for batch in range(40):
        for index in range(60):
            sent.append(batch * 100 + index)
            fake.put(sent[-1])
        got += ring.take()[0]["ts"].tolist()
    assert fake.position > 2 * SIZE
    assert got == sent
    assert fake.consumed == fake.position


def test_nothing_behind_a_record_that_is_being_written(fake: FakeRing, ring: MappedRing) -> None:
    fake.put(1)
    unfinished = fake.put(2, busy=True)
    fake.put(3)
    events, safe_at = ring.take()
    assert events["ts"].tolist() == [1]
    assert safe_at == 0, "a record is outstanding whose time nobody knows"
    assert ring.take()[0].tolist() == []
    fake.submit(unfinished)
    before = time.monotonic_ns()
    events, safe_at = ring.take()
    assert events["ts"].tolist() == [2, 3]
    assert safe_at >= before


def test_the_safe_time_is_that_of_a_look_whose_records_have_all_come(fake: FakeRing, ring: MappedRing) -> None:
    fake.put(1)
    first = ring.take()[1]
    unfinished = fake.put(2, busy=True)
    looked = time.monotonic_ns()
    assert ring.take()[1] == first
    fake.put(3, busy=True)
    assert ring.take()[1] == first
    fake.submit(unfinished)
    safe_at = ring.take()[1]
    assert looked <= safe_at, "the record that was outstanding at that look is here"


class Script:
    """A source that plays batches."""

    def __init__(self, batches: list[tuple[list[int], int]]) -> None:
        self.batches = batches

    def take(self) -> tuple[Events, int]:
        times, safe_at = self.batches.pop(0)
        events = np.zeros(len(times), RECORD)
        events["ts"] = times
        events["arg0"] = range(len(times))
        return events, safe_at

    def close(self) -> None:
        pass


def test_events_wait_until_nothing_older_can_come() -> None:
    drain = Drain(Script([([5, 3, 9], 4), ([7, 4], 8), ([], 100)]))
    assert drain.take()["ts"].tolist() == [3]
    assert drain.take()["ts"].tolist() == [4, 5, 7]
    assert drain.take()["ts"].tolist() == [9]


def test_the_last_take_holds_nothing_back() -> None:
    drain = Drain(Script([([5, 3], 0), ([4], 0)]))
    assert drain.take()["ts"].tolist() == []
    assert drain.take(everything=True)["ts"].tolist() == [3, 4, 5]


def test_events_from_elsewhere_take_their_place() -> None:
    extra = own_event(Kind.LOST, 4, arg1=7)
    taken = Drain(Script([([3, 5], 10)])).take(lambda: [extra])
    assert taken["ts"].tolist() == [3, 4, 5]
    assert (taken["kind"][1], taken["arg1"][1]) == (Kind.LOST, 7)


def test_equal_times_keep_the_order_of_the_ring() -> None:
    events = Drain(Script([([2, 1, 1, 1], 10)])).take()
    assert events["arg0"].tolist() == [1, 2, 3, 0]


@given(st.lists(st.tuples(st.lists(st.integers(0, 20), max_size=5), st.integers(0, 10)), min_size=1, max_size=8))
def test_what_comes_out_is_in_order_and_complete(batches: list[tuple[list[int], int]]) -> None:
    # A source keeps its promise: no record is older than the safe time said before it.
    script, safe_at, sent = [], 0, []
    for times, step in batches:
        kept = [safe_at + ts for ts in times]
        safe_at += step
        script.append((kept, safe_at))
        sent += kept
    script.append(([], safe_at))
    drain = Drain(Script(script))
    got = [ts for _ in batches for ts in drain.take()["ts"].tolist()]
    got += drain.take(everything=True)["ts"].tolist()
    assert got == sorted(sent)
