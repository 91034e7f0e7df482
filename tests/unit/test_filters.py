"""The filters that the commands share."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pandas as pd
import pytest

from intxtrace import frames
from intxtrace.cli.filters import Choice, Filters, parse_duration, parse_instant
from intxtrace.errors import IntxtraceError
from intxtrace.trace.tables import Device, Tables, Vm
from tests.unit.traces import METADATA, some_tables


def frame(columns: dict[str, tuple[str, str]], *rows: dict[str, Any]) -> pd.DataFrame:
    return pd.DataFrame(
        {name: pd.Series([row.get(name) for row in rows], dtype=dtype) for name, (dtype, _) in columns.items()}
    )


INTERRUPTS = frame(
    frames.INTERRUPTS,
    {"id": 1, "bdf": "a", "vm": "v", "vm_pid": 1, "path": "kernel", "origin": "hardware", "outcome": "complete"}
    | {"raised_at": 100, "masked_ns": 50},
    {"id": 2, "bdf": "b", "vm": "v", "vm_pid": 2, "path": "userspace", "origin": "resignal", "outcome": "open"}
    | {"raised_at": 200},
    {"id": 3, "bdf": None, "vm": None, "path": "unknown", "origin": "pending", "outcome": "complete"}
    | {"signalled_at": 300, "masked_ns": 70},
    {"id": 4, "bdf": "b", "vm": "w", "vm_pid": 3, "path": "kernel", "origin": "unknown", "outcome": "headless"},
)


@pytest.mark.parametrize(
    ("filters", "ids"),
    [
        (Filters(), [1, 2, 3, 4]),
        (Filters(devices=("b",)), [2, 4]),
        (Filters(devices=("a", "b")), [1, 2, 4]),
        (Filters(vms=("v",)), [1, 2]),
        (Filters(pids=(2,), pid_names=("v",)), [2]),
        (Filters(vms=("w",), pids=(1,), pid_names=("v",)), [1, 4]),
        (Filters(paths=("kernel",)), [1, 4]),
        (Filters(origins=("pending", "resignal")), [2, 3]),
        (Filters(outcomes=("complete",)), [1, 3]),
        (Filters(begin_at=200), [2, 3]),
        (Filters(end_at=200), [1]),
        (Filters(begin_at=100, end_at=301), [1, 2, 3]),
        (Filters(min_ns=50), [1, 3]),
        (Filters(min_ns=51), [3]),
        (Filters(paths=("kernel",), min_ns=0), [1]),
        (Filters(devices=("none",)), []),
    ],
)
def test_interrupts(filters: Filters, ids: list[int]) -> None:
    before = INTERRUPTS.copy()
    kept = filters.apply(INTERRUPTS)
    assert kept["id"].tolist() == ids
    assert list(kept.columns) == list(frames.INTERRUPTS)
    pd.testing.assert_frame_equal(INTERRUPTS, before)


def test_states_stay_if_any_part_of_them_is_wanted() -> None:
    states = frame(
        frames.DEVICE_STATES,
        {"vm": "v", "state": "off", "begin_at": 0, "end_at": 100},
        {"vm": "v", "state": "kernel", "begin_at": 100, "end_at": 200},
        {"vm": "w", "state": "userspace", "begin_at": 200},
    )

    def kept(**wanted: Any) -> list[str]:
        return Filters(**wanted).apply(states)["state"].tolist()

    assert kept(begin_at=100) == ["kernel", "userspace"]
    assert kept(end_at=100) == ["off"]
    assert kept(begin_at=150, end_at=160) == ["kernel"]
    assert kept(begin_at=10**12) == ["userspace"]
    assert kept(paths=("kernel",), min_ns=5) == ["off", "kernel", "userspace"]
    assert kept(pids=(7,), pid_names=("w",)) == ["userspace"]


def test_counter_windows_stay_if_any_part_of_them_is_wanted() -> None:
    counters = frame(
        frames.COUNTERS,
        {"begin_at": 0, "count": 1},
        {"begin_at": 10**9, "count": 2},
        {"begin_at": 2 * 10**9, "count": 3},
    )
    kept = Filters(begin_at=10**9 + 5, end_at=2 * 10**9).apply(counters)
    assert kept["count"].tolist() == [2]


def test_empty_frames_stay_empty() -> None:
    everything = Filters(("a",), ("v",), (1,), ("v",), ("kernel",), ("hardware",), ("open",), 1, 2, 3)
    for columns in (frames.INTERRUPTS, frames.DEVICE_STATES, frames.COUNTERS):
        assert len(everything.apply(frames.empty(columns))) == 0


@pytest.mark.parametrize(
    ("filters", "span"),
    [
        (Filters(), (10, 20)),
        (Filters(begin_at=5, end_at=25), (10, 20)),
        (Filters(begin_at=12, end_at=18), (12, 18)),
        (Filters(begin_at=30), (20, 20)),
        (Filters(end_at=3), (10, 10)),
    ],
)
def test_the_span_is_clipped_to_the_wanted_time(filters: Filters, span: tuple[int, int]) -> None:
    assert filters.clip(10, 20) == span
    assert filters.clip(None, None) == (None, None)


def test_tables_are_narrowed_to_what_is_wanted() -> None:
    tables = Tables(
        vms=[Vm(0, pid=1, name="v", devices=["b"]), Vm(1, pid=2, name="w")],
        devices=[Device(0, bdf="a", vm_pid=2), Device(1, bdf="b"), Device(2, bdf="c")],
    )
    assert Filters().select(tables) == tables
    assert [row.bdf for row in Filters(devices=("c",)).select(tables).devices] == ["c"]
    assert [row.bdf for row in Filters(vms=("v",)).select(tables).devices] == ["b"]
    narrowed = Filters(pids=(2,), pid_names=("w",)).select(tables)
    assert ([row.bdf for row in narrowed.devices], [row.name for row in narrowed.vms]) == (["a"], ["w"])


@pytest.mark.parametrize(
    ("text", "ns"),
    [
        ("2ms", 2_000_000),
        ("1.5s", 1_500_000_000),
        ("250us", 250_000),
        ("250 µs", 250_000),
        ("7ns", 7),
        ("3", 3_000_000_000),
        ("0.000000001", 1),
        ("2min", 120_000_000_000),
        ("1h", 3_600_000_000_000),
        ("0", 0),
    ],
)
def test_durations(text: str, ns: int) -> None:
    assert parse_duration(text, "--min") == ns


@pytest.mark.parametrize("text", ["", "ms", "-1s", "1e3", "2 m", "nan", "inf", "1.s", "9" * 19 + "h", "9" * 500, "٣s"])
def test_what_is_no_duration(text: str) -> None:
    with pytest.raises(IntxtraceError, match="is not a duration; write it as"):
        parse_duration(text, "--min")


def test_instants() -> None:
    anchor = METADATA.realtime_anchor_ns
    assert anchor is not None

    def at(text: str, **changes: Any) -> int:
        return parse_instant(text, "--from", replace(METADATA, **changes), 5_000)

    assert at("1.5") == 1_500_005_000
    assert at("2ms") == 2_005_000
    assert at("2023-11-14T22:13:20.000001+00:00") == 1_700_000_000_000_001_000 - anchor
    assert at("2023-11-14T23:13:20+01:00", clock="realtime") == 1_700_000_000_000_000_000
    wrong: list[tuple[str, dict[str, Any], str]] = [
        ("yesterday", {}, "is not an instant"),
        ("9999-12-31T23:59:59-23:59", {}, "is not an instant"),
        ("2023-11-14T22:13:20+00:00", {"realtime_anchor_ns": None}, "does not say what time it was"),
        ("1", {"clock": "none"}, "has no clock"),
    ]
    for text, changes, says in wrong:
        with pytest.raises(IntxtraceError, match=says):
            at(text, **changes)


def choose(**options: Any) -> Filters:
    empty: dict[str, Any] = {name: [] for name in ("device", "vm", "path", "origin", "outcome")}
    empty |= {"from_": None, "to": None, "min": None}
    metadata = options.pop("metadata", METADATA)
    return Choice(**{**empty, **options}).resolve(metadata, some_tables(), lambda: 1_000)


def test_options_are_resolved_against_the_trace() -> None:
    assert choose() == Filters()
    assert choose(device=["01:00.0"]).devices == ("0000:01:00.0",)
    assert choose(vm=["guest1"]).vms == ("guest1",)
    by_pid = choose(vm=["1200"])
    assert (by_pid.vms, by_pid.pids, by_pid.pid_names) == (None, (1200,), ("guest1",))
    timed = choose(from_="1us", to="2us", min="3us")
    assert (timed.begin_at, timed.end_at, timed.min_ns) == (2_000, 3_000, 3_000)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"device": ["eth0"]}, "--device eth0 is not a PCI address"),
        ({"device": ["zz:00.0"]}, "is not a PCI address"),
        ({"device": ["03:00.0"]}, "no device 0000:03:00.0 in this trace; choose from 0000:01:00.0, 0000:02:00.0"),
        ({"vm": ["guest2"]}, r"no VM guest2 in this trace; choose from guest1 \(1200\)"),
        ({"vm": ["99"]}, "no VM 99"),
        ({"path": ["fast"]}, "--path fast is not known; choose from kernel, hybrid"),
        ({"origin": ["x"]}, "--origin x is not known"),
        ({"outcome": ["x"]}, "--outcome x is not known"),
        ({"min": "1s", "metadata": replace(METADATA, clock="none")}, "--min cannot be told"),
    ],
)
def test_options_that_cannot_be_met(options: dict[str, Any], says: str) -> None:
    with pytest.raises(IntxtraceError, match=says):
        choose(**options)
