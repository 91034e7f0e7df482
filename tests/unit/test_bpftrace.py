"""bpftrace prints the buffer of one CPU after that of another: its lines are read in the order of time."""

from __future__ import annotations

import io
import json
from pathlib import Path

import numpy as np
import pytest

from intxtrace.events import RECORD
from intxtrace.importers import bpftrace
from intxtrace.importers.bpftrace import AsFtrace
from intxtrace.importers.opening import open_recording

REFIRE = Path(__file__).parents[1] / "traces" / "foreign" / "refire.bpftrace.txt"


def line(ts: int, cpu: int = 0) -> bytes:
    event = {"ts": ts, "cpu": cpu, "pid": 7, "tid": 8, "comm": "x", "event": "unmask", "vdev": 4096}
    return json.dumps({"type": "printf", "data": json.dumps(event) + "\n"}).encode() + b"\n"


def times(data: bytes) -> list[int]:
    """The instants of the lines that come out, in ns, and -1 for a loss."""
    stream, found = AsFtrace(io.BytesIO(data)), []
    while part := stream.read():
        for text in part.splitlines():
            if b"LOST" in text:
                found.append(-1)
            elif text:
                found.append(int(text.split(b"] ")[1].split(b":")[0].replace(b".", b"")))
    return found


def test_an_interrupt_whose_lines_two_cpus_print_is_whole() -> None:
    """The vCPU moves to another CPU in the middle of an EOI; bpftrace prints that CPU's buffer first."""
    lines = REFIRE.read_bytes().splitlines(keepends=True)
    events = [one for one in lines if b" cpu=" in one]
    moved = [one.replace(b"cpu=1", b"cpu=0") if b"KVM" in one else one for one in events]
    swapped = sorted(moved, key=lambda one: b"cpu=1" in one)
    assert swapped != moved

    def read(some: list[bytes]) -> np.ndarray:
        found = [*open_recording(io.BytesIO(b"".join(some)), "recording")]
        return np.concatenate([np.zeros(0, RECORD), *found])

    assert read(moved)["device"].any()
    assert (read(swapped) == read(moved)).all()


@pytest.mark.parametrize("seconds", [1, 30])
def test_lines_are_in_order_though_buffers_of_two_cpus_are_printed_in_turn(seconds: int) -> None:
    step, turn = 10_000_000, 70_000_000
    at = [1 + n * step for n in range(seconds * 100)]
    printed = sorted(at, key=lambda ts: (ts // turn, ts // step % 2, ts))
    assert printed != at
    assert times(b"".join(line(ts, cpu=ts // step % 2) for ts in printed)) == at


def test_a_loss_stays_where_it_was_said() -> None:
    lost = b'{"type": "lost_events", "data": {"events": 7}}\n'
    assert times(line(10) + line(30) + lost + line(20) + line(40)) == [10, 20, 30, -1, 40]


def test_what_is_held_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bpftrace, "HELD_LINES", 100)
    stream = AsFtrace(io.BytesIO(b"".join(line(ts) for ts in range(1, 20_000))))
    most, total = 0, 0
    while part := stream.read():
        most = max(most, len(part.splitlines()))
        total += len(part.splitlines())
        assert len(stream._held) <= 100
    assert total == 19_999
    assert most < 2000


def test_a_damaged_instant_loses_no_line() -> None:
    at = [5, 6, 8_000_000_000_000_000_000, 7, 8]
    assert sorted(times(b"".join(map(line, at)))) == sorted(at)
