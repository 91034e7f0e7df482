"""Properties that every trace has, and the reconstructor's own behaviour."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from intxtrace import frames, open_trace
from intxtrace.errors import IntxtraceError
from intxtrace.events import RECORD, Kind
from intxtrace.reconstruct import Reconstructor, Result, compile, state
from intxtrace.trace.tables import Tables
from tests.dsl import DeviceHandle, Trace, reconstruct
from tests.generate import generate
from tests.unit.traces import some_events, write_trace

FEW = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])

ACTIONS: dict[str, Callable[[Trace, DeviceHandle], None]] = {
    "kernel": Trace.kernel_interrupt,
    "kernel resignal": Trace.kernel_resignal_interrupt,
    "hybrid": Trace.hybrid_interrupt,
    "userspace": Trace.userspace_interrupt,
    "userspace resignal": Trace.userspace_resignal_interrupt,
    "unclaimed": lambda t, d: t.handler(d, claimed=False),
    "held": lambda t, d: t.handler(d, signal=False),
    "raise only": lambda t, d: t.handler(d, irqfd="resample"),
    "signal only": lambda t, d: t.handler(d),
    "inject": lambda t, d: t.inject(d),
    "guest eoi": lambda t, d: t.guest_eoi(d),
    "resample": lambda t, d: t.resample_unmask(d),
    "refused": lambda t, d: t.ioctl_unmask(d, returned=1),
    "qemu takes": lambda t, d: t.qemu_takes(d),
    "qemu eoi": lambda t, d: t.qemu_eoi(d),
    "spurious": lambda t, d: t.qemu_takes(d, found=False),
    "enable": lambda t, d: t.enable(d),
    "enable kvm": lambda t, d: t.enable_kvm(d),
    "bypass fails": lambda t, d: t.enable_kvm(d, returned=-22),
    "disable kvm": lambda t, d: t.disable_kvm(d),
    "disable": lambda t, d: t.disable(d),
    "bars": lambda t, d: t.mmaps(d, False),
    "wait": lambda t, d: t.wait(600_000_000),
}

stories = st.lists(st.lists(st.sampled_from(sorted(ACTIONS)), max_size=12), min_size=1, max_size=3)


def tell(story: list[list[str]], only: int | None = None) -> Trace:
    """Write a trace of one VM and device per list of actions; event by event the devices take turns."""
    trace = Trace()
    devices = [trace.device(trace.vm(), bdf=f"0000:{n + 1:02x}:00.0") for n in range(len(story))]
    start, trace.STEP = trace.now, Trace.STEP * len(story)
    for n, (device, actions) in enumerate(zip(devices, story, strict=True)):
        trace.now = start + n * Trace.STEP
        for action in actions if only in (None, n) else ():
            ACTIONS[action](trace, device)
    trace._rows.sort(key=lambda row: row["ts"])
    return trace


def same(one: Result, other: Result) -> None:
    for a, b in zip(one, other, strict=True):
        pd.testing.assert_frame_equal(a, b)


@FEW
@given(stories, st.lists(st.integers(0, 400), max_size=6))
def test_any_cut_gives_the_same_rows(story: list[list[str]], cuts: list[int]) -> None:
    trace = tell(story)
    records = trace.records()
    kept = tuple(cut for cut in cuts if cut <= len(records))
    same(trace.reconstruct(), reconstruct(records, trace.tables, kept))


@FEW
@given(stories, st.integers(0, 400))
def test_any_prefix_ends_open(story: list[list[str]], length: int) -> None:
    trace = tell(story)
    whole = trace.reconstruct().interrupts
    part = reconstruct(trace.records()[:length], trace.tables).interrupts
    check(part)
    # What was closed before the end is as it was; the rest is open, cancelled or already settled.
    closed = part[part["id"] <= len(part) - (part["outcome"] == "open").sum()]
    assert len(part) <= len(whole) + (part["outcome"] == "open").sum()
    assert set(closed["outcome"]) <= {"complete", "open", "cancelled", "lossy", "headless"}


@FEW
@example([[], ["bars", "bypass fails", "refused", "bypass fails"]], 0, 23)
@given(stories, st.integers(0, 400), st.integers(0, 400))
@example([[], ["bars", "bypass fails", "refused", "bypass fails"]], 0, 23)
def test_any_part_and_any_dropped_event_is_taken(story: list[list[str]], begin: int, dropped: int) -> None:
    trace = tell(story)
    records = trace.records()
    check(reconstruct(records[begin:], trace.tables).interrupts)
    check(reconstruct(np.delete(records, slice(dropped, dropped + 1)), trace.tables).interrupts)


@FEW
@given(stories)
def test_independent_devices_give_the_union(story: list[list[str]]) -> None:
    together = tell(story).reconstruct()
    for n in range(len(story)):
        alone = tell(story, only=n).reconstruct()
        for name in ("interrupts", "states"):
            mine, its = (getattr(result, name) for result in (together, alone))
            mine, its = (frame[frame["device"] == n].reset_index(drop=True) for frame in (mine, its))
            if name == "interrupts":
                # Ids count all devices' interrupts; what they say is who is whose parent.
                mine, its = (
                    frame.assign(parent_id=frame["parent_id"].map(dict(zip(frame["id"], frame.index, strict=True))))
                    .drop(columns="id")
                    .astype({"parent_id": "Int64"})
                    for frame in (mine, its)
                )
            pd.testing.assert_frame_equal(mine, its)


def check(frame: pd.DataFrame) -> None:
    """Check what holds for every table of interrupts."""
    assert frame["id"].tolist() == list(range(1, len(frame) + 1))
    parents = frame.dropna(subset=["parent_id"])
    assert (parents["parent_id"] < parents["id"]).all()
    assert (parents["origin"] == "resignal").all()
    complete = frame[frame["outcome"] == "complete"]
    assert (complete["signalled_at"].notna() | (complete["path"] == "held")).all()
    durations = [name for name in frames.INTERRUPTS if name.endswith("_ns")]
    assert not (frame[durations] < 0).any(axis=None)


@FEW
@given(stories)
def test_hardware_interrupts_are_claimed_handler_calls(story: list[list[str]]) -> None:
    trace = tell(story)
    records = trace.records()
    result = trace.reconstruct()
    claimed = ((records["kind"] == Kind.HANDLER_EXIT) & (records["value"] == 1)).sum()
    refused = ((records["kind"] == Kind.UNMASK_EXIT) & (records["value"] == 1)).sum()
    assert (result.interrupts["origin"] == "hardware").sum() == claimed
    assert result.interrupts["origin"].isin(["resignal", "pending"]).sum() == refused
    counted = result.counters.groupby("counter")["count"].sum().to_dict()
    assert counted.get("handler_calls", 0) == (records["kind"] == Kind.HANDLER_ENTRY).sum()


def test_compiled_and_interpreted_machines_agree() -> None:
    """One trace through both, switching in the middle, with tables that must grow."""
    records, tables = generate(3000, devices=70)
    reference = reconstruct(records, tables, compile_from=len(records) + 1)
    assert len(reference.interrupts) == pytest.approx(3000, rel=0.05)
    same(reference, reconstruct(records, tables, compile_from=0))
    same(reference, reconstruct(records, tables, (1000, len(records) // 2), compile_from=len(records) // 3))


@FEW
@given(stories)
def test_compiled_and_interpreted_machines_agree_on_odd_traces(story: list[list[str]]) -> None:
    trace = tell(story)
    same(trace.reconstruct(), trace.reconstruct(compile_from=0))


@pytest.mark.parametrize("compile_from", [0, 1 << 30])
def test_columns_and_records_give_the_same_rows(compile_from: int) -> None:
    records, tables = generate(500)
    rng = np.random.default_rng(0)
    for events in (records, records[rng.permutation(len(records))]):
        columns = {name: np.ascontiguousarray(events[name]) for name in RECORD.names or ()}
        reconstructor = Reconstructor(tables, compile_from=compile_from)
        reconstructor.take(columns)
        parts = [reconstructor.closed(), reconstructor.finish()]
        joined = Result(*(pd.concat(frames, ignore_index=True) for frames in zip(*parts, strict=True)))
        same(reconstruct(events, tables, compile_from=compile_from), joined)


def test_events_that_may_not_be_written_need_no_other_machine() -> None:
    """The ring hands out views of memory that is the kernel's."""
    records, tables = generate(100)
    reference = reconstruct(records, tables, compile_from=0)
    records.flags.writeable = False
    same(reference, reconstruct(records, tables, compile_from=0))
    assert len(compile.compiled_machine().signatures) == 1


def passers_by(count: int, begin_at: int, end_at: int) -> np.ndarray[Any, Any]:
    """Events of ever other threads, which concern no device."""
    events = np.zeros(count, RECORD)
    events["kind"], events["value"] = Kind.USERSPACE_EXIT, 26
    events["ts"] = np.linspace(begin_at, end_at, count).astype(np.uint64)
    events["tid"] = 1_000_000 + np.arange(count)
    return events


def test_threads_not_seen_for_longest_are_forgotten() -> None:
    """More threads than are remembered pass by in the middle of interrupts: nothing is lost, and nothing compiled."""
    records, tables = generate(300)
    others = passers_by(state.CAPACITY["tasks"] * 5 // 4, int(records["ts"][50]), int(records["ts"][-50]))
    events = np.concatenate([records, others])
    events = events[np.argsort(events["ts"], kind="stable")]
    reference = reconstruct(records, tables)
    for compile_from in (0, 1 << 30):
        reconstructor = Reconstructor(tables, compile_from=compile_from)
        half = len(events) // 2
        parts = [reconstructor.feed(events[:half]), reconstructor.feed(events[half:]), reconstructor.finish()]
        same(reference, Result(*(pd.concat(frames, ignore_index=True) for frames in zip(*parts, strict=True))))
        assert reconstructor._state.machine[0].n_tasks < state.CAPACITY["tasks"]
    assert len(compile.compiled_machine().signatures) == 1


@pytest.mark.parametrize("compile_from", [0, 1 << 30])
def test_more_devices_than_any_host_has_are_refused(compile_from: int) -> None:
    events = np.zeros(state.CAPACITY["devices"] + 1, RECORD)
    events["kind"], events["device"] = Kind.HANDLER_ENTRY, 1 + np.arange(len(events))
    events["ts"] = np.arange(len(events))
    with pytest.raises(IntxtraceError, match="more devices than any host has"):
        reconstruct(events, Trace().tables, compile_from=compile_from)


def test_generated_traces_are_all_complete() -> None:
    records, tables = generate(2000)
    frame = reconstruct(records, tables).interrupts
    assert set(frame["outcome"]) == {"complete"}
    assert set(frame["path"]) == {"kernel", "hybrid", "userspace"}


def test_events_are_taken_in_the_order_of_their_timestamps() -> None:
    trace = Trace()
    device = trace.device(trace.vm())
    trace.userspace_interrupt(device)
    records = trace.records()
    same(trace.reconstruct(), reconstruct(records[::-1].copy(), trace.tables))


def test_nothing_after_the_end() -> None:
    trace = Trace()
    reconstructor = Reconstructor(trace.tables)
    reconstructor.finish()
    with pytest.raises(ValueError, match="finish"):
        reconstructor.feed(trace.records())
    with pytest.raises(ValueError, match="finish"):
        reconstructor.finish()


def test_a_probe_that_comes_and_goes() -> None:
    """While the unmask is not recorded it is not waited for."""
    trace = Trace()
    device = trace.device(trace.vm())
    row = next(probe.id for probe in trace.tables.probes if probe.kinds == ["UNMASK_EXIT"])
    trace.kernel_interrupt(device)
    trace.emit(Kind.PROBE, aux=row, value=0)
    for _ in range(2):
        trace.kernel_interrupt(device)
        trace.drop(Kind.UNMASK_EXIT)
    frame = trace.reconstruct().interrupts
    assert frame["outcome"].tolist() == ["complete"] * 3
    assert frame["unmasked_at"].isna().tolist() == [False, True, True]


# ---- where compiled code is kept


def test_compiled_code_is_kept_where_only_we_can_write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tmp_path.chmod(0o700)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    folder = compile.cache_folder()
    assert folder is not None
    assert folder.is_relative_to(tmp_path)
    assert folder.stat().st_mode & 0o777 == 0o700


def test_a_folder_that_others_can_write_to_is_not_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "cache"
    folder.mkdir(mode=0o700)
    assert compile.is_ours_alone(folder)
    folder.chmod(0o770)
    assert not compile.is_ours_alone(folder)
    folder.chmod(0o700)
    link = tmp_path / "link"
    link.symlink_to(folder)
    assert not compile.is_ours_alone(link)
    (tmp_path / "open").mkdir()
    (tmp_path / "open").chmod(0o777)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "open"))
    used = compile.cache_folder()
    assert used is None or not used.is_relative_to(tmp_path / "open")


@pytest.mark.skipif(os.geteuid() != 0, reason="giving a folder away takes root")
def test_a_folder_of_somebody_else_is_not_used(tmp_path: Path) -> None:
    folder = tmp_path / "cache"
    folder.mkdir(mode=0o700)
    os.chown(folder, 65534, 65534)
    assert not compile.is_ours_alone(folder)


def test_row_ids_that_no_table_can_have(tmp_path: Path) -> None:
    """A damaged or hostile file: `aux` is u32 in the file, and signed here."""
    events = np.zeros(3, RECORD)
    events["kind"] = [Kind.VM, Kind.DEVICE, Kind.QEMU_MMAPS]
    events["ts"], events["aux"], events["value"] = [1, 2, 3], 2**32 - 9, 1
    events["vm"], events["device"] = 5, 6
    trace = open_trace(write_trace(tmp_path / "a.intx", events))
    assert len(trace.interrupts) == 0


@pytest.mark.parametrize("seed", [4, 8, 9])
def test_events_of_any_value_give_the_same_rows_interpreted_and_compiled(seed: int) -> None:
    """Counts that no field holds wrap in both."""
    events = some_events(300, seed=seed)
    plain, fast = (Reconstructor(Tables(), compile_from=at) for at in (1 << 40, 0))
    for mine, theirs in zip((plain.feed(events), plain.finish()), (fast.feed(events), fast.finish()), strict=True):
        for one, other in zip(mine, theirs, strict=True):
            pd.testing.assert_frame_equal(one, other)
