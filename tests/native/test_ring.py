"""The two ways to read a real ring give the same records, and what does not fit is counted."""

from __future__ import annotations

import time
from collections.abc import Callable

import numpy as np
import pytest

from intxtrace.capture.loss import LossCounter
from intxtrace.capture.ring import CallbackRing, Drain, Events, MappedRing, Source, mappable, open_ring
from intxtrace.events import RECORD, Flag, Kind
from tests.native.getppid import KIND, Getppid

pytestmark = pytest.mark.root

READERS: dict[str, Callable[[Getppid], Source]] = {
    "mapped": lambda probe: MappedRing(probe.bpf[b"events"].map_fd, probe.ring_bytes),
    "callback": lambda probe: CallbackRing(probe.bpf),
}
CALLS = 150_023


def drained(reader: str) -> Events:
    with Getppid(1 << 24) as probe:
        drain = Drain(READERS[reader](probe))
        parts = []
        for calls in (1, 23, CALLS - 24):
            probe.start(calls)
            probe.finish()
            parts.append(drain.take())
        while len(rest := drain.take(everything=True)):
            parts.append(rest)
        assert (probe.emitted, probe.lost) == (CALLS, 0)
        drain.close()
    return np.concatenate(parts)


def test_mapping_and_callback_give_equal_records() -> None:
    mapped, called = drained("mapped"), drained("callback")
    assert mapped["arg0"].tolist() == list(range(1, CALLS + 1))
    for events in (mapped, called):
        assert np.all(events["ts"][1:] >= events["ts"][:-1])
        assert np.all(events["tgid"] == events["tid"])
        assert len(np.unique(events["tgid"])) == 1
    for field in set(RECORD.names or ()) - {"ts", "cpu", "tgid", "tid"}:
        assert np.array_equal(mapped[field], called[field]), field
    first = mapped[0]
    assert (first["kind"], first["flags"], first["value"], first["aux"]) == (KIND, Flag.IN_UNMASK, -7, 8)
    assert [int(first[name]) for name in ("device", "link", "link2", "vm", "arg1")] == [1, 2, 3, 4, 6]


@pytest.mark.parametrize("reader", READERS)
def test_what_does_not_fit_is_counted(reader: str) -> None:
    with Getppid(1 << 16) as probe:
        drain = Drain(READERS[reader](probe))
        probe.start(5_000)
        probe.finish()
        events = drain.take(everything=True)
        assert probe.emitted == 5_000
        assert len(events) + probe.lost == 5_000
        assert probe.lost > 0
        assert events["arg0"].tolist() == list(range(1, len(events) + 1))
        drain.close()


def test_lost_events_stand_before_what_came_after_them() -> None:
    with Getppid(1 << 16) as probe:
        drain = Drain(READERS["mapped"](probe))
        losses = LossCounter(probe.bpf, list, time.monotonic_ns())
        parts = []
        for calls in (100, 5_000, 100):
            probe.start(calls)
            probe.finish()
            parts.append(drain.take(lambda: losses.reserves(time.monotonic_ns()), everything=True))
        lost = [part[part["kind"] == Kind.LOST] for part in parts]
        assert [len(each) for each in lost] == [0, 1, 0]
        (loss,) = lost[1]
        assert (loss["aux"], loss["arg1"]) == (KIND, probe.lost)
        assert parts[0]["ts"].max() <= loss["ts"] < parts[1]["ts"][1]
        assert parts[1]["kind"][0] == Kind.LOST
        drain.close()


def test_a_refused_mapping_falls_back_to_the_callback(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr("intxtrace.capture.ring.mmap.mmap", refuse)
    with Getppid(1 << 20) as probe:
        source = open_ring(probe.bpf, probe.ring_bytes)
        assert isinstance(source, CallbackRing)
        probe.start(10)
        probe.finish()
        assert len(source.take()[0]) == 10


def test_only_x86_64_maps_the_ring(monkeypatch: pytest.MonkeyPatch) -> None:
    assert mappable()

    class Uname:
        machine = "aarch64"

    monkeypatch.setattr("os.uname", Uname)
    assert not mappable()
