"""What a trace file holds, counted from its events, with nothing reconstructed."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from intxtrace.events import Kind

if TYPE_CHECKING:
    from intxtrace.api import Trace


@dataclass(frozen=True)
class Info:
    """What a trace file holds: the data of JSON schema `intxtrace.info`."""

    path: str
    size: int
    """Bytes."""
    metadata: dict[str, Any]
    """The fields of `trace.metadata.Metadata`, and those of newer versions."""
    events: int
    lost: int
    """Events that were dropped while recording."""
    begin_at: int | None
    """Least `ts`, ns of the trace's clock; null without events or clock."""
    end_at: int | None
    duration_ns: int | None
    kinds: dict[str, int]
    """Events by kind, most first; a kind of a newer version is `kind 99`."""
    probes: list[dict[str, Any]]
    vms: list[dict[str, Any]]
    devices: list[dict[str, Any]]
    truncated: bool
    """It has no end mark, or something at its end could not be read."""
    lost_bytes: int
    """Bytes after the last whole batch that could not be read."""
    problem: str
    """What is wrong with its end, in words."""


def inventory(trace: Trace, batches: Iterable[npt.NDArray[np.void]]) -> Info:
    """Count the events of a whole trace; `batches` are all of its events (dtype RECORD)."""
    counts: Counter[int] = Counter()
    lost = 0
    for events in batches:
        kinds, numbers = np.unique(events["kind"], return_counts=True)
        counts.update(dict(zip(kinds.tolist(), numbers.tolist(), strict=True)))
        lost += sum(events["arg1"][events["kind"] == Kind.LOST].tolist())
    first, last = (None, None) if trace.metadata.clock == "none" else (trace.first_at, trace.last_at)
    names = {int(kind): kind.name for kind in Kind}
    return Info(
        path=str(trace.path),
        size=trace.size,
        metadata=trace.metadata.to_values(),
        events=counts.total(),
        lost=lost,
        begin_at=first,
        end_at=last,
        duration_ns=None if first is None or last is None else last - first,
        kinds={names.get(kind, f"kind {kind}"): number for kind, number in counts.most_common()},
        probes=[row.to_json() for row in trace.tables.probes],
        vms=[row.to_json() for row in trace.tables.vms],
        devices=[row.to_json() for row in trace.tables.devices],
        truncated=trace.truncated,
        lost_bytes=trace.lost_bytes,
        problem=trace.problem,
    )
