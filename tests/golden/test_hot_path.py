"""The table of probes between raised and unmasked is what real interrupts hit, no more and no less."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import pytest

import intxtrace
from intxtrace.analysis.overhead import HOT_PATH
from intxtrace.capture.catalogue import CATALOGUE, QEMU_CATALOGUE
from intxtrace.events import STREAM_KINDS, Kind

TRACES = Path(__file__).parents[1] / "traces"

# Events that the recorder makes of its counters, when it looks at them.
COUNTERS = {Kind.QEMU_REGION_COUNT, Kind.QEMU_REGION_OFFSETS}
FIRST = {spec.kinds[0] for spec in CATALOGUE} | {spec.kinds[0] for spec in QEMU_CATALOGUE}


def hits(path: Path, name: str) -> list[Counter[Kind]]:
    """Count the events of each probe's first kind while each interrupt was masked.

    Only complete ones of the path that the hardware raised, without surplus work. The trace has one device, so all
    events between raised and unmasked are of the interrupt.
    """
    trace = intxtrace.open_trace(path)
    assert len(trace.tables.devices) == 1
    rows = trace.interrupts
    usual = (rows["path"] == name) & (rows["origin"] == "hardware") & (rows["outcome"] == "complete")
    rows = rows[usual & rows["masked_ns"].notna() & (rows["reentries"].fillna(0) == 0)]
    events = np.concatenate(list(trace.iter_events()))
    found = []
    for begin, end in zip(rows["raised_at"], rows["unmasked_at"], strict=True):
        within = events["kind"][(events["ts"] >= begin) & (events["ts"] <= end)].tolist()
        found.append(Counter(Kind(kind) for kind in within if Kind(kind) in FIRST - STREAM_KINDS - COUNTERS))
    return found


@pytest.mark.parametrize("name", HOT_PATH)
@pytest.mark.parametrize("kernel", ["6.1", "6.12"])
def test_the_table_lists_what_interrupts_hit(name: str, kernel: str) -> None:
    times: Counter[tuple[Kind, ...]] = Counter()
    for hit in HOT_PATH[name]:
        times[hit.kinds] += hit.times
    found = hits(TRACES / f"{name}-{kernel}.intx", name)
    assert len(found) >= 10
    for one in found:
        assert {kinds: sum(one[kind] for kind in kinds) for kinds in times} == times
        assert set(one) <= {kind for kinds in times for kind in kinds}
