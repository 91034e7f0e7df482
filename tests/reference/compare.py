"""Where the fast reconstructor and the reference differ.

Interrupts and states are compared device by device, in order; ids count all devices' interrupts, so a parent is
compared as which row of the table it is.
"""

from __future__ import annotations

import os
from collections import defaultdict
from typing import Any

import numpy as np
import pandas as pd

from intxtrace import frames
from intxtrace.events import format_address
from intxtrace.reconstruct import Reconstructor, Result
from intxtrace.reconstruct.state import NULL
from intxtrace.reconstruct.vocabulary import REASONS
from intxtrace.trace.tables import Tables
from tests.reference.reconstructor import Reference

NOTHING = Result(pd.DataFrame(), pd.DataFrame(), pd.DataFrame())

Rows = dict[str, dict[Any, list[dict[str, Any]]]]


def of_reference(records: np.ndarray[Any, Any], tables: Tables) -> Rows:
    """Reconstruct slowly."""
    reference = Reference(records, tables)
    return grouped(reference.interrupts, reference.states, reference.counters)


class Raw(Reconstructor):
    """The fast reconstructor without its frames, which take longer than everything else on a small trace."""

    def __init__(self, tables: Tables, **options: Any) -> None:
        super().__init__(tables, **options)
        self.rows: dict[str, list[dict[str, Any]]] = {"interrupt_rows": [], "state_rows": [], "counter_rows": []}

    def closed(self) -> Result:
        self._empty()
        for part in self._parts:
            for table, rows in self.rows.items():
                for values in zip(*(column.tolist() for column in part[table].values()), strict=True):
                    present = (None if value == NULL else value for value in values)
                    row: dict[str, Any] = dict(zip(part[table], present, strict=True))
                    row["bdf"] = format_address(row["bdf"]) if row["bdf"] >= 0 else None
                    row["device"] = row["device"] if row["device"] >= 0 else None
                    row["vm"] = self._tables.vms[row["vm"]].name if 0 <= row["vm"] < len(self._tables.vms) else None
                    rows.append(row)
        self._parts.clear()
        return NOTHING


def of_fast(records: np.ndarray[Any, Any], tables: Tables, cuts: tuple[int, ...] = (), **options: Any) -> Rows:
    """Reconstruct with the fast one, fed in the parts that these cuts make."""
    fast = Raw(tables, **options)
    for part in np.split(records, sorted(cuts)):
        fast.feed(part)
    fast.finish()
    interrupts, states, counters = fast.rows.values()
    for row in interrupts:
        row["parent"] = None if row["parent_id"] is None else row["parent_id"] - 1
        del row["parent_id"]
        row["id"] -= 1
        row["vm_pid"] = row["vm_pid"] or None
        row["host_irq"] = row["host_irq"] or None
        row["path"] = frames.PATHS[row["path"]]
        row["origin"] = frames.ORIGINS[row["origin"]]
        row["outcome"] = frames.OUTCOMES[row["outcome"]]
        row["unmask_proof"] = None if row["unmask_proof"] is None else frames.PROOFS[row["unmask_proof"]]
        row["coalesced"] = None if row["coalesced"] is None else bool(row["coalesced"])
    for row in states:
        errno = row.pop("errno")
        row["state"] = frames.STATES[row["state"]]
        row["reason"] = REASONS[row["reason"]] + (f": {os.strerror(errno)}" if errno else "")
        row["bars_mapped"] = None if row["bars_mapped"] is None else bool(row["bars_mapped"])
    for row in counters:
        row["counter"] = frames.COUNTER_NAMES[row["counter"]]
    return grouped(interrupts, states, counters)


def grouped(interrupts: list[dict[str, Any]], states: list[dict[str, Any]], counters: list[dict[str, Any]]) -> Rows:
    """Sort rows out by device; name a parent by its device and its place among that device's rows."""
    place: dict[int, tuple[Any, int]] = {}
    by_device: Rows = {"interrupts": defaultdict(list), "states": defaultdict(list), "counters": defaultdict(list)}
    for row in interrupts:
        mine = by_device["interrupts"][row["device"]]
        place[row.pop("id")] = (row["device"], len(mine))
        row["parent"] = place.get(row["parent"])
        mine.append(row)
    if None in by_device["interrupts"]:
        # Several devices may have no id.
        for row in by_device["interrupts"][None]:
            row["parent"] = row["parent"] is not None
        by_device["interrupts"][None].sort(key=lambda row: str(sorted(row.items())))
    for row in states:
        by_device["states"][row["device"]].append(row)
    for row in counters:
        by_device["counters"][row["device"]].append(row)
    by_device["states"][None].sort(key=lambda row: str(sorted(row.items())))
    for rows in by_device["counters"].values():
        rows.sort(key=lambda row: [str(row[name]) for name in sorted(row)])
    return {table: dict(devices) for table, devices in by_device.items()}


def difference(expected: Rows, found: Rows) -> str:
    """Say where two results differ first; nothing if they do not."""
    for table in expected:
        for device in {**expected[table], **found[table]}:
            want, have = expected[table].get(device, []), found[table].get(device, [])
            for n in range(max(len(want), len(have))):
                one = want[n] if n < len(want) else {}
                other = have[n] if n < len(have) else {}
                if one != other:
                    fields = {k: (one.get(k), other.get(k)) for k in {**one, **other} if one.get(k) != other.get(k)}
                    return f"{table} of device {device}, row {n}: (reference, fast) {fields}"
    return ""
