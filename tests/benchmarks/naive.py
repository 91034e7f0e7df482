"""The peer of the reconstructor's benchmarks: what an analyst would write in pandas over the same events.

For each claimed handler call it finds the signal and the next unmask of that device, and the next injection and guest
EOI of that device's VM; it counts handler calls by second, and takes percentiles. It knows no path, origin, outcome,
resignal, coalescing, loss, thread or GSI, and it holds the whole trace.
"""

from __future__ import annotations

from typing import Any

import pandas as pd

from intxtrace.events import Kind

COLUMNS = ["ts", "kind", "device", "vm", "value"]


def interrupts(events: Any) -> pd.DataFrame:
    """Return one row per claimed handler call, with the instants of its stages.

    `events`: the columns of `COLUMNS`, in order of `ts`.
    """
    frame = pd.DataFrame({name: events[name] for name in COLUMNS}).astype({"ts": "int64"})

    def of(kind: Kind, value: int | None = None) -> pd.DataFrame:
        here = frame["kind"] == kind
        return frame[here if value is None else here & (frame["value"] == value)]

    vms = of(Kind.IRQFD_WAKEUP).drop_duplicates("device").set_index("device")["vm"]
    rows = of(Kind.HANDLER_EXIT, 1)[["ts", "device"]]
    rows = rows.assign(vm=rows["device"].map(vms).fillna(0).astype("uint64"))
    for name, found, key in (
        ("raised_at", of(Kind.HANDLER_ENTRY), "device"),
        ("signalled_at", of(Kind.EVENTFD_SIGNAL), "device"),
        ("injected_at", of(Kind.KVM_SET_IRQ, 1), "vm"),
        ("eoi_at", of(Kind.KVM_ACK), "vm"),
        ("unmasked_at", of(Kind.UNMASK_EXIT, 0), "device"),
    ):
        before = name in ("raised_at", "signalled_at")
        stage = found[["ts", key]].assign(**{name: found["ts"]})
        rows = pd.merge_asof(rows, stage, on="ts", by=key, direction="backward" if before else "forward")
    for begin, end in (("raised", "signalled"), ("signalled", "injected"), ("injected", "eoi"), ("raised", "unmasked")):
        rows[f"{begin}_to_{end}_ns"] = rows[f"{end}_at"] - rows[f"{begin}_at"]
    return rows


def summary(events: Any) -> tuple[pd.DataFrame, pd.Series[int]]:
    """Return percentiles of each device's latencies, and its handler calls by second."""
    rows = interrupts(events)
    latencies = [name for name in rows if str(name).endswith("_ns")]
    percentiles = pd.concat([rows.groupby("device")[latencies].quantile(q) for q in (0.5, 0.9, 0.99, 0.999)])
    return percentiles, rows.groupby(["device", rows["raised_at"] // 10**9]).size()
