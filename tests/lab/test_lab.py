"""The lab: a real guest on each path, recorded in one go, and every figure held against the truth."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import pytest

import intxtrace
from intxtrace.events import STREAM_KINDS
from tests.lab.compare import compare, show
from tests.lab.guest import PATHS
from tests.lab.scenario import (
    Scenario,
    ScenarioResult,
    recorder_of_this_checkout,
    run_scenario,
    watcher_of_this_checkout,
)

pytestmark = [pytest.mark.lab, pytest.mark.timeout(1500)]


# The guests with two cards now and then die under nested emulation: `make lab-matrix` plays them.
GUESTS = list(PATHS)
CHOSEN = "lab-userspace"


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> ScenarioResult:
    scenario = Scenario(
        GUESTS,
        recorder=recorder_of_this_checkout(each=False),
        beside={
            "chosen": recorder_of_this_checkout("--vm", CHOSEN, "--bar", "all", each=False),
            "live": watcher_of_this_checkout(),
        },
    )
    return run_scenario(scenario, tmp_path_factory.mktemp("lab"), "6.1", timeout=1200)


def recording_of(lab: ScenarioResult) -> Path:
    folder = lab.recordings[0]
    assert folder is not None
    return folder / "trace.intx"


@pytest.mark.parametrize("number", range(len(GUESTS)), ids=GUESTS)
def test_every_figure_equals_the_truth(lab: ScenarioResult, number: int, capsys: pytest.CaptureFixture[str]) -> None:
    truth = lab.truths[number]
    rows = compare(recording_of(lab), truth)
    with capsys.disabled():
        print("\n" + show(f"{truth.name} on Linux {truth.kernel}, {truth.qemu_version}", rows))
    assert truth.host_interrupts > 0
    assert all(card.masked and card.pings_received for card in truth.cards)
    assert [row for row in rows if not row.holds] == []


def test_every_probe_is_attached_or_known_to_be_absent(lab: ScenarioResult) -> None:
    probes = intxtrace.open_trace(recording_of(lab)).tables.probes
    assert [row.name for row in probes if row.standing not in ("attached", "absent")] == []


def test_vms_that_come_and_go_are_told_apart(lab: ScenarioResult) -> None:
    trace = intxtrace.open_trace(recording_of(lab))
    pids = {truth.vm_pid for truth in lab.truths}
    vms = [vm for vm in trace.tables.vms if vm.pid in pids]  # a guest that failed to boot was a VM too
    assert [(vm.name, vm.pid) for vm in vms] == [(truth.vm, truth.vm_pid) for truth in lab.truths]
    assert {device.bdf for device in trace.tables.devices} == {bdf for truth in lab.truths for bdf in truth.bdfs}
    assert all(vm.qemu_version for vm in trace.tables.vms)


def test_the_states_tell_the_path(lab: ScenarioResult) -> None:
    states = intxtrace.open_trace(recording_of(lab)).states
    for truth in lab.truths:
        mine = states[states["vm"] == truth.vm]
        longest = (mine["end_at"] - mine["begin_at"]).groupby(mine["state"]).sum().drop("off", errors="ignore")
        assert longest.idxmax() == truth.path


def test_a_recorder_of_one_vm_sees_that_vm_alone_and_all_of_it(
    lab: ScenarioResult, capsys: pytest.CaptureFixture[str]
) -> None:
    trace = intxtrace.open_trace(lab.folders[0].parent / "chosen" / "trace.intx")
    (truth,) = (truth for truth in lab.truths if truth.vm == CHOSEN)
    rows = compare(trace.path, truth)
    with capsys.disabled():
        print("\n" + show(f"{truth.name}, recorded with --vm {CHOSEN} --bar all", rows))
    assert [row for row in rows if not row.holds] == []
    assert set(trace.interrupts["vm"]) == {CHOSEN}
    assert {vm.name for vm in trace.tables.vms} == {CHOSEN}
    of_the_probes = trace.events[~trace.events["kind"].isin(STREAM_KINDS)]
    failed_boots = [vm.pid for vm in trace.tables.vms if vm.pid != truth.vm_pid]
    of_the_probes = of_the_probes[~of_the_probes["tgid"].isin(failed_boots)]
    outside = of_the_probes[~of_the_probes["ts"].between(truth.begun_at, truth.ended_at)]
    assert outside["kind_name"].tolist() == []


def test_live_showed_what_it_saved_and_what_record_saw(lab: ScenarioResult) -> None:
    folder = lab.folders[0].parent / "live"
    shown = json.loads((folder / "shown.json").read_text())["data"]
    saved = intxtrace.open_trace(folder / "live.intx").interrupts
    recorded = intxtrace.open_trace(recording_of(lab)).interrupts
    assert shown["lost"] == 0
    assert shown["interrupts"] == len(saved) == len(recorded)
    told: Counter[tuple[str, str, str, str]] = Counter()
    for device in shown["devices"]:
        for row in device["total"]["rows"]:
            told[device["vm"], row["path"], row["origin"], row["outcome"]] += row["count"]
    for frame in (saved, recorded):
        assert told == Counter(zip(frame["vm"], frame["path"], frame["origin"], frame["outcome"], strict=True))
