"""Small traces for the tests of the trace file and of the commands."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt

from intxtrace.events import RECORD, Kind
from intxtrace.trace.metadata import Metadata
from intxtrace.trace.tables import Device, Probe, Tables, Vm
from intxtrace.trace.writer import TraceWriter

METADATA = Metadata(
    realtime_anchor_ns=1_700_000_000_000_000_000,
    hostname="host",
    kernel="6.1.0",
    machine="x86_64",
    command_line=["intxtrace", "record"],
    started_at=1_700_000_001_000_000_000,
)


def some_tables() -> Tables:
    return Tables(
        probes=[
            Probe(
                0, name="vfio_intx_handler", kinds=["HANDLER_ENTRY", "HANDLER_EXIT"], state="attached", method="fentry"
            ),
            Probe(1, name="irqfd_wakeup", kinds=["IRQFD_WAKEUP"], reason="no such function"),
        ],
        vms=[Vm(0, pid=1200, name="guest1", devices=["0000:01:00.0"])],
        devices=[
            Device(0, bdf="0000:01:00.0", vendor_id=0x8086, device_id=0x10D3, host_irq=11, vm_pid=1200),
            Device(1, bdf="0000:02:00.0", host_irq=16),
        ],
    )


def some_events(count: int, first_ts: int = 1_000_000_000, seed: int = 0) -> npt.NDArray[np.void]:
    random = np.random.default_rng(seed)
    events = np.zeros(count, RECORD)
    for name in RECORD.names or ():
        info = np.iinfo(RECORD[name])
        events[name] = random.integers(info.min, info.max, count, dtype=RECORD[name], endpoint=True)
    events["ts"] = first_ts + np.arange(count) * 1000
    events["kind"] = random.choice([int(kind) for kind in Kind], count)
    return events


def write_trace(
    path: Path, *batches: npt.NDArray[np.void], tables: Tables | None = None, metadata: Metadata = METADATA
) -> Path:
    with TraceWriter(path, metadata) as writer:
        for batch in batches:
            writer.write(batch, tables if tables is not None else some_tables())
    return path
