"""What no row has told yet: each device's state as it is now, and the counters of the window that is not over."""

from __future__ import annotations

import numpy as np

from intxtrace.reconstruct import state
from intxtrace.reconstruct.state import NULL, TAG_PID, Columns, State
from intxtrace.reconstruct.vocabulary import (
    BAR_READS,
    BAR_WRITES,
    EVENTS_LOST,
    HANDLER_CALLS,
    NOOP_UNMASKS,
    REENTRIES,
    SPURIOUS_WAKEUPS,
    UNCLAIMED,
)

_COUNTERS = {
    "handler_calls": HANDLER_CALLS,
    "unclaimed": UNCLAIMED,
    "spurious_wakeups": SPURIOUS_WAKEUPS,
    "noop_unmasks": NOOP_UNMASKS,
    "reentries": REENTRIES,
    "bar_reads": BAR_READS,
    "bar_writes": BAR_WRITES,
    "events_lost": EVENTS_LOST,
}
"""The counters of a device, by field of `state.FIELDS["devices"]`."""


def lasting_states(s: State) -> Columns:
    """Make the rows (`state_rows`) that `states.end_state` would hand out if the trace ended now."""
    devices = state.rows_of(s, "devices", _count(s, "n_devices"))
    columns = {
        **_places(s, devices),
        "state": devices["state"],
        "bars_mapped": np.where(
            devices["bars_known"] == 0, NULL, devices["bars_mapped"] == devices["bars_known"]
        ).astype(np.int64),
        "begin_at": devices["state_at"],
        "end_at": np.full(len(devices), NULL),
        "reason": devices["state_reason"],
        "errno": devices["state_errno"],
    }
    return {name: np.ascontiguousarray(columns[name]) for name in state.FIELDS["state_rows"]}


def open_counters(s: State) -> Columns:
    """Make the rows (`counter_rows`) that `counting.roll_window` would hand out now, BAR offsets left out."""
    machine = state.rows_of(s, "machine", 1)[0]
    devices = state.rows_of(s, "devices", int(machine["n_devices"]))
    places = _places(s, devices)
    parts = [
        {**places, "counter": np.full(len(devices), counter), "count": devices[name]}
        for name, counter in _COUNTERS.items()
    ]
    nobody = np.full(1, -1)
    lost = {"counter": np.array([EVENTS_LOST]), "count": np.array([machine["lost"]])}
    parts.append({"device": nobody, "bdf": nobody, "vm": nobody, **lost})
    columns = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
    counted = columns["count"] != 0
    found = {name: column[counted] for name, column in columns.items()}
    rows = int(counted.sum())
    found["begin_at"] = np.full(rows, machine["window"])
    found["region"] = found["offset"] = np.full(rows, NULL)
    return {name: found[name] for name in state.FIELDS["counter_rows"]}


def _count(s: State, name: str) -> int:
    return int(state.rows_of(s, "machine", 1)[0][name])


def _places(s: State, devices: np.ndarray[tuple[int], np.dtype[np.void]]) -> Columns:
    """Return device, address and VM of each device; the VM is found as `ending.vm_row` finds it."""
    machine = state.rows_of(s, "machine", 1)[0]
    vms = state.rows_of(s, "vms", int(machine["n_vms"]))
    slots = state.rows_of(s, "slots", int(machine["slot_rows"]))
    of_pid = slots[slots["tag"] == TAG_PID]
    by_pid = dict(zip(of_pid["a"].tolist(), of_pid["value"].tolist(), strict=True))
    rows = []
    for vm, owner in zip(devices["vm"].tolist(), devices["owner"].tolist(), strict=True):
        v = by_pid.get(owner, -1) if vm < 0 and owner else vm
        rows.append(int(vms["id"][v]) if v >= 0 else -1)
    return {"device": devices["id"], "bdf": devices["bdf"], "vm": np.array(rows, np.int64)}
