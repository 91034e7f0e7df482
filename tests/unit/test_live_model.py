"""The model of the live view: its counts are those of a summary, its window is the last seconds and nothing else."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import intxtrace
from intxtrace.analysis import Analysis
from intxtrace.analysis.live import LAST, LiveModel
from intxtrace.analysis.live_results import LiveView
from intxtrace.cli.filters import Filters
from intxtrace.events import RECORD, Kind
from intxtrace.frames import PATHS
from intxtrace.reconstruct import Reconstructor
from intxtrace.render import json
from intxtrace.trace.metadata import Metadata
from tests.dsl import Trace
from tests.generate import MIX, pieces_of

RECORDED = sorted((Path(__file__).parents[1] / "traces").glob("*.intx"))
MS = 1_000_000
INTERPRETED, COMPILED = 1 << 60, 0


def events_of(path: Path) -> np.ndarray:
    return np.concatenate(list(intxtrace.open_trace(path).iter_events()))


def totals(view: LiveView) -> dict[object, object]:
    return {one.key: (one.total, one.lost) for one in view.devices}


@pytest.mark.parametrize("path", RECORDED, ids=lambda path: path.stem)
@pytest.mark.parametrize("wanted", [None, Filters(paths=("userspace", "kernel"), min_ns=50_000)], ids=["all", "some"])
def test_the_counts_are_those_of_the_summary(path: Path, wanted: Filters | None) -> None:
    trace = intxtrace.open_trace(path)
    analysis = Analysis(trace.metadata, trace.tables)
    keep = wanted or Filters()
    for result in trace.iter_results():
        analysis.add(keep.apply(result.interrupts), keep.apply(result.states), keep.apply(result.counters))
    summary = analysis.finish()
    model = LiveModel(trace.tables, wanted=wanted, window_ns=10**18)
    for piece in np.array_split(events_of(path), 7):
        model.feed(piece)
        model.view()
    model.finish()
    view = model.view()
    assert totals(view) == {(one.device, one.vm): (one.counts, one.lost) for one in summary.devices}
    assert view.lost == summary.quality.lost
    assert view.interrupts == summary.quality.interrupts
    for one in summary.devices:
        (live,) = (live for live in view.devices if live.key == (one.device, one.vm))
        assert (live.bdf, live.vm_pid, live.host_irq, live.gsi) == (one.bdf, one.vm_pid, one.host_irq, one.gsi)
        # All is in the window, so what the summary says of the latency and the floods holds here too.
        assert {p.path: (p.interrupts, p.complete, p.masked_ns) for p in live.latency} == {
            p.path: (p.interrupts, p.complete, p.masked_ns) for p in one.latency
        }
        floods = one.floods
        assert (live.floods.resignals, live.floods.unclaimed, live.floods.reentries, live.floods.bursts) == (
            *(floods.resignals, floods.unclaimed, floods.reentries),
            floods.bursts or 0,
        )
        accesses = [n for n in (floods.bar_reads, floods.bar_writes) if n is not None]
        assert live.floods.bar_accesses == (sum(accesses) if accesses else None)
        assert live.rate is not None
        (lasting,) = (interval for interval in one.states.intervals if interval.end_at is None)
        assert (live.state, live.bars_mapped, live.state_at, live.reason) == (
            *(lasting.state, lasting.bars_mapped, lasting.begin_at),
            lasting.reason,
        )


@pytest.mark.parametrize("compile_from", [INTERPRETED, COMPILED])
@pytest.mark.parametrize("share", [0.1, 0.5, 0.9])
def test_the_present_is_what_the_end_would_hand_out(compile_from: int, share: float) -> None:
    tables, pieces = pieces_of(replace(MIX, losses=1), 30)
    events = np.concatenate(list(pieces))
    events["ts"] *= np.uint64(1000)
    reconstructor = Reconstructor(tables, compile_from=compile_from)
    reconstructor.feed(events[: int(len(events) * share)])
    present = reconstructor.present()
    again = reconstructor.present()
    rest = reconstructor.finish()
    assert present.states.equals(again.states)
    assert present.counters.equals(again.counters)
    assert present.states.equals(rest.states)
    ended = rest.counters[rest.counters["offset"].isna()]
    names = ["device", "bdf", "vm", "begin_at", "counter", "region", "offset", "count"]
    found = present.counters.sort_values(["device", "counter"], ignore_index=True)[names]
    assert len(found)
    assert found.equals(ended.sort_values(["device", "counter"], ignore_index=True)[names])


def flood(seconds: float, every: int = 10 * MS) -> tuple[Trace, np.ndarray]:
    trace = Trace()
    device = trace.device(trace.vm("win10"))
    for at in range(MS, int(seconds * 1e9), every):
        trace.kernel_interrupt(device, at=at)
    return trace, trace.records()


def test_only_the_last_seconds_are_in_the_window() -> None:
    trace, events = flood(3)
    model = LiveModel(trace.tables, window_ns=1_000 * MS)
    for piece in np.array_split(events, 50):
        model.feed(piece)
        model.view()
    view = model.view()
    assert view.begin_at is not None
    assert view.end_at is not None
    assert 1_000 * MS <= view.end_at - view.begin_at <= 1_100 * MS
    (device,) = view.devices
    assert device.rate == pytest.approx(100, abs=2)
    assert device.path == "kernel"
    assert [one.path for one in device.latency] == ["kernel"]
    assert device.latency[0].interrupts == device.masked_ns.count < 112
    assert device.total.total == 300
    later = model.view(view.end_at + 5_000 * MS).devices[0]
    assert (later.rate, later.path, later.latency) == (0.0, None, ())
    assert (later.masked_ns.count, later.masked_ns.p50) == (0, None)
    assert (later.total.total, later.state) == (300, "kernel")


def test_paths_are_shown_apart_and_together() -> None:
    trace = Trace()
    device = trace.device(trace.vm("win10"))
    for at in range(1, 6):
        trace.userspace_interrupt(device, at=at * MS)
    for at in range(6, 9):
        trace.kernel_interrupt(device, at=at * MS)
    model = LiveModel(trace.tables)
    model.feed(trace.records())
    model.finish()
    (live,) = model.view().devices
    assert live.path == "userspace"
    assert [(one.path, one.interrupts) for one in live.latency] == [("userspace", 5), ("kernel", 3), ("all", 8)]
    assert live.latency[-1].masked_ns == live.masked_ns
    assert live.total.path == dict.fromkeys(PATHS, 0) | {"userspace": 5, "kernel": 3}


def test_bursts_are_marked_while_they_are_in_the_window() -> None:
    trace = Trace()
    device = trace.device(trace.vm("win10"))
    for at in range(400):
        trace.kernel_interrupt(device, at=MS + at * 50_000)  # 20,000/s for 20 ms
    trace.kernel_interrupt(device, at=3_000 * MS)
    model = LiveModel(trace.tables, window_ns=1_000 * MS)
    events = trace.records()
    model.feed(events[events["ts"] < 2_000 * MS])
    assert model.view().devices[0].floods.bursts == 1
    model.feed(events[events["ts"] >= 2_000 * MS])
    assert model.view().devices[0].floods.bursts == 0


def test_a_detail_stays_as_it_was() -> None:
    trace, events = flood(1)
    half = len(events) // 2
    model = LiveModel(trace.tables)
    model.feed(events[:half])
    view = model.view()
    (make,) = view.details.values()
    before = make()
    assert before.device is view.devices[0]
    assert sum(before.bins.counts) == view.devices[0].masked_ns.count
    assert len(before.last) == LAST
    assert [row.id for row in before.last] == sorted((row.id for row in before.last), reverse=True)
    model.feed(events[half:])
    assert make() == before
    (after,) = (make() for make in model.view().details.values())
    assert after.last[0].id > before.last[0].id


def test_vms_come_and_go() -> None:
    trace = Trace()
    vm = trace.vm("win10")
    trace.device(vm)
    model = LiveModel(trace.tables)
    model.feed(trace.records())
    assert model.view().vms == ("win10",)
    gone = np.zeros(1, RECORD)
    gone["kind"], gone["ts"], gone["aux"], gone["vm"] = Kind.VM, 10**9, vm.id, vm.kvm
    model.feed(gone)
    assert model.view().vms == ()


def test_nothing_seen_is_null_and_not_zero() -> None:
    model = LiveModel(Trace().tables)
    view = model.view()
    assert (view.begin_at, view.end_at, view.devices, view.vms, view.events) == (None, None, (), (), 0)
    model.finish()
    model.finish()
    assert model.view().devices == ()
    trace = Trace(probes=(Kind.HANDLER_ENTRY,))
    trace.device(trace.vm("win10"))
    model = LiveModel(trace.tables)
    model.feed(trace.records())
    (device,) = model.view().devices
    assert (device.path, device.state, device.masked_ns.p99) == (None, "unknown", None)
    assert (device.floods.unclaimed, device.floods.reentries, device.floods.bar_accesses) == (None, None, None)


def test_the_json_holds_no_functions() -> None:
    trace, events = flood(0.1)
    model = LiveModel(trace.tables)
    model.feed(events)
    found = json.to_json(model.view())
    assert "details" not in found
    assert found["devices"][0]["vm"] == "win10"


def test_counts_of_a_long_mixed_trace() -> None:
    tables, pieces = pieces_of(MIX, 400)
    events = np.concatenate(list(pieces))
    random = np.random.default_rng(1)
    model = LiveModel(tables, window_ns=5 * MS, compile_from=COMPILED)
    for piece in np.split(events, np.sort(random.integers(0, len(events), 40))):
        model.feed(piece)
        model.view()
    model.finish()
    reconstructor = Reconstructor(tables)
    whole = reconstructor.feed(events), reconstructor.finish()
    analysis = Analysis(Metadata(), tables)
    for result in whole:
        analysis.add(*result)
    summary = analysis.finish()
    view = model.view()
    assert totals(view) == {(one.device, one.vm): (one.counts, one.lost) for one in summary.devices}
    assert view.lost == summary.quality.lost > 0
    assert Counter(one.path for one in view.devices).total() == MIX.devices
