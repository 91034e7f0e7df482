"""Every scenario of every kernel, imported without options, comes out right: one table, no exception.

The texts and where they are from: `tests/kernel_texts.py`.
"""

from __future__ import annotations

import io
from collections import Counter

import numpy as np
import pandas as pd
import pytest

from intxtrace import frames
from intxtrace.events import Kind
from intxtrace.importers.ftrace import FtraceText
from intxtrace.reconstruct import Reconstructor, Result
from tests.kernel_texts import PATHS, Told, tell, texts


def imported(text: bytes) -> tuple[FtraceText, Result]:
    recording = FtraceText(io.BytesIO(text), "text")
    reconstructor = None
    results = []
    for events in recording:
        reconstructor = reconstructor or Reconstructor(recording.tables)
        results.append(reconstructor.feed(events))
    assert reconstructor is not None
    results.append(reconstructor.finish())
    return recording, Result(*(pd.concat(parts, ignore_index=True) for parts in zip(*results, strict=True)))


@pytest.mark.parametrize("name", sorted(texts()))
def test_recording(name: str) -> None:
    told = tell(texts()[name])
    recording, result = imported(texts()[name])
    rows = result.interrupts
    origins = Counter(rows["origin"])
    assert recording.unreadable == {}

    # hardware = claimed handler calls, per device
    assert origins["hardware"] == told.claimed.total()
    by_device = Counter(rows[rows["origin"] == "hardware"]["bdf"].dropna())
    for bdf, count in told.claimed.items():
        if bdf:
            assert by_device[bdf] >= count
    # resignals + pending = unmasks that returned 1
    assert origins["resignal"] + origins["pending"] == told.refused
    # software = writes of the trigger, and loopbacks
    assert origins["software"] == told.software
    # an origin is unknown only where its event is missing, and then never more than one a device and gap
    whole = (told.begins and not told.gaps) or not told.kprobes
    assert origins["unknown"] <= (0 if whole else len(recording.tables.devices) * 2)

    check_eois(told, rows)
    scenario = name.partition("/")[2]
    assert set(rows["path"]) == PATHS.get(scenario, {"kernel"})
    assert rows["coalesced"].fillna(False).sum() == told.merged
    check_outcomes(told, rows, whole)
    # The tracepoint names the device around its handler; in a thread, only the one that has the line for itself.
    if told.named:
        assert rows["bdf"].notna().all()


def check_eois(told: Told, rows: pd.DataFrame) -> None:
    """Distinct eoi_at per VM and GSI = acknowledgements with something outstanding."""
    ended = rows[rows["eoi_at"].notna()]
    if told.kprobes:
        found = Counter(
            (int(vm.removeprefix("kvm-"), 16), int(gsi))
            for vm, gsi in ended.groupby(["vm", "gsi", "eoi_at"]).size().reset_index()[["vm", "gsi"]].to_numpy()
        )
        for line in found.keys() | told.acks.keys():
            assert told.acks[line] <= found[line] <= told.acks[line] + told.doubtful_acks[line], line
    else:
        found_at = set(ended["eoi_at"])
        assert found_at <= told.ackers.keys()
        assert ended["vm"].isna().all()
        if told.vms == 1:
            assert len(found_at) == told.acks.total()
        # Whose it was: one thread acknowledges for a device, and where there are two VMs, for no other.
        thread_of = ended.assign(thread=ended["eoi_at"].map(told.ackers)).groupby("bdf")["thread"].agg(set)
        assert all(len(threads) == 1 for threads in thread_of)
        assert len(set.union(*thread_of)) == min(told.vms, len(thread_of))
        assert len(ended) > 0


def check_outcomes(told: Told, rows: pd.DataFrame, whole: bool) -> None:
    """Complete, but for what the text's own gaps, beginning and end cut off."""
    outcomes = Counter(rows["outcome"])
    assert set(outcomes) <= set(frames.OUTCOMES)
    devices = max(rows["device"].nunique(), 1)
    if whole:
        assert outcomes["headless"] == outcomes["lossy"] == 0
    if told.ends or not told.kprobes:
        assert outcomes["open"] == 0
    assert outcomes["open"] + outcomes["headless"] <= 2 * devices
    assert outcomes["cancelled"] == 0
    complete = rows[(rows["outcome"] == "complete") & (rows["path"] != "held")]
    if told.kprobes and whole:
        assert complete["injected_at"].notna().all()
        assert complete["signalled_at"].isna().sum() == told.missed


def test_all_recordings_are_here() -> None:
    assert len(texts()) == 188
    assert len({name.partition("/")[0] for name in texts()}) == 22


def test_markers_are_no_evidence() -> None:
    """Without its markers a recording gives the same events."""
    for name in ("deb-6.12/twovm", "deb-5.10-extra/tponly_shared"):
        text = texts()[name]
        without = b"\n".join(line for line in text.split(b"\n") if b"tracing_mark_write" not in line)
        both = [np.concatenate(list(FtraceText(io.BytesIO(each), name))) for each in (text, without)]
        assert both[0].tobytes() == both[1].tobytes()


def test_a_missed_kprobe_is_filled_in_by_the_tracepoint() -> None:
    """On this kernel one hard interrupt came while a kprobe was served."""
    recording, result = imported(texts()["ub-6.8.0-151/twovm"])
    rows = result.interrupts
    (missed,) = rows[rows["signalled_at"].isna()].to_dict("records")
    assert (missed["origin"], missed["path"], missed["outcome"]) == ("hardware", "kernel", "complete")
    fallbacks = [probe.kinds for probe in recording.tables.probes if probe.state == "fallback"]
    assert [Kind.HANDLER_ENTRY.name] in fallbacks
