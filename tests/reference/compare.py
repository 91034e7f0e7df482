"""Where the fast reconstructor and the reference differ.

Interrupts and states are compared device by device, in order; ids count all devices' interrupts, so a parent is
compared as which row of the table it is.
"""

from __future__ import annotations

from collections import defaultdict
from typing import Any

import numpy as np
import pandas as pd

from intxtrace.reconstruct import Result
from intxtrace.trace.tables import Tables
from tests.reference.reconstructor import Reference

Rows = dict[str, dict[Any, list[dict[str, Any]]]]


def of_reference(records: np.ndarray[Any, Any], tables: Tables) -> Rows:
    """Reconstruct slowly."""
    reference = Reference(records, tables)
    return grouped(reference.interrupts, reference.states, reference.counters)


def of_frames(result: Result) -> Rows:
    """Turn frames into the same shape."""
    interrupts, states, counters = (plain(frame) for frame in result)
    for row in interrupts:
        row["parent"] = None if row["parent_id"] is None else row["parent_id"] - 1
        row["id"] -= 1
        for name in [name for name in row if name.endswith("_ns") or name == "parent_id"]:
            del row[name]
    return grouped(interrupts, states, counters)


def plain(frame: pd.DataFrame) -> list[dict[str, Any]]:
    """Return the rows of a frame as dicts of plain values, None where one is missing."""
    columns = {str(name): frame[name].astype(object).where(frame[name].notna(), None).tolist() for name in frame}
    return [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]


def grouped(
    interrupts: list[dict[str, Any]], states: list[dict[str, Any]], counters: list[dict[str, Any]]
) -> Rows:
    """Sort rows out by device; name a parent by its device and its place among that device's rows."""
    place: dict[int, tuple[Any, int]] = {}
    by_device: Rows = {"interrupts": defaultdict(list), "states": defaultdict(list), "counters": defaultdict(list)}
    for row in interrupts:
        mine = by_device["interrupts"][row["device"]]
        place[row.pop("id")] = (row["device"], len(mine))
        row["parent"] = place.get(row["parent"])
        mine.append(row)
    for row in states:
        by_device["states"][row["device"]].append(row)
    for row in counters:
        by_device["counters"][row["device"]].append(row)
    for rows in by_device["counters"].values():
        rows.sort(key=lambda row: [-1 if row[k] is None else row[k] for k in sorted(row) if k not in ("bdf", "vm")])
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
