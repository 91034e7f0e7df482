"""Rows of the state machine -> the frames that everything else shares."""

from __future__ import annotations

import os
from functools import cache
from typing import TYPE_CHECKING, Any

import numpy as np

from intxtrace import frames
from intxtrace.events import format_address
from intxtrace.reconstruct import state, vocabulary

if TYPE_CHECKING:
    import pandas as pd

    from intxtrace.trace.tables import Tables

DURATIONS = {
    "signal_ns": ("raised_at", "signalled_at"),
    "inject_ns": ("signalled_at", "injected_at"),
    "guest_ns": ("injected_at", "acknowledged_at"),
    "unmask_ns": ("acknowledged_at", "unmasked_at"),
    "masked_ns": ("raised_at", "unmasked_at"),
}
"""Each duration is from one instant to another; null if either is, or if they came in the other order."""


def interrupts_frame(rows: state.Columns, tables: Tables, clock_orders_only: bool) -> pd.DataFrame:
    """Make the frame of `frames.INTERRUPTS`."""
    if not len(rows["id"]):
        return _empty("INTERRUPTS")
    columns: dict[str, Any] = {name: _integers(rows[name]) for name in rows if name in frames.INTERRUPTS}
    columns |= _places(rows, tables)
    columns["vm_pid"] = _integers(rows["vm_pid"], rows["vm_pid"] == 0)
    columns["host_irq"] = _integers(rows["host_irq"], rows["host_irq"] == 0)
    columns["path"] = _words(rows["path"], frames.PATHS)
    columns["origin"] = _words(rows["origin"], frames.ORIGINS)
    columns["outcome"] = _words(rows["outcome"], frames.OUTCOMES)
    columns["unmask_proof"] = _words(rows["unmask_proof"], frames.PROOFS)
    columns["coalesced"] = _booleans(rows["coalesced"])
    for name, (begin, end) in DURATIONS.items():
        missing = (rows[begin] == state.NULL) | (rows[end] == state.NULL) | (rows[end] < rows[begin])
        columns[name] = _integers(rows[end] - rows[begin], missing | clock_orders_only)
    return _frame(columns, frames.INTERRUPTS)


def states_frame(rows: state.Columns, tables: Tables) -> pd.DataFrame:
    """Make the frame of `frames.DEVICE_STATES`."""
    import pandas as pd

    if not len(rows["device"]):
        return _empty("DEVICE_STATES")
    columns = _places(rows, tables)
    columns["state"] = _words(rows["state"], frames.STATES)
    columns["bars_mapped"] = _booleans(rows["bars_mapped"])
    columns["begin_at"] = _integers(rows["begin_at"])
    columns["end_at"] = _integers(rows["end_at"])
    reasons = [
        vocabulary.REASONS[reason] + (f": {os.strerror(errno)}" if errno else "")
        for reason, errno in zip(rows["reason"].tolist(), rows["errno"].tolist(), strict=True)
    ]
    columns["reason"] = pd.array(reasons, dtype="string")
    return _frame(columns, frames.DEVICE_STATES)


def counters_frame(rows: state.Columns, tables: Tables) -> pd.DataFrame:
    """Make the frame of `frames.COUNTERS`."""
    if not len(rows["device"]):
        return _empty("COUNTERS")
    columns = _places(rows, tables)
    columns["counter"] = _words(rows["counter"], frames.COUNTER_NAMES)
    for name in ("begin_at", "region", "offset", "count"):
        columns[name] = _integers(rows[name])
    return _frame(columns, frames.COUNTERS)


@cache
def _prototype(contract: str) -> pd.DataFrame:
    return frames.empty(getattr(frames, contract))


def _empty(contract: str) -> pd.DataFrame:
    """Make a frame without rows: most results have no state and no counter, and a copy costs a tenth of a new one."""
    return _prototype(contract).copy()


def _frame(columns: dict[str, Any], contract: dict[str, tuple[str, str]]) -> pd.DataFrame:
    import pandas as pd

    return pd.DataFrame({name: columns[name] for name in contract}, copy=False)


def _places(rows: state.Columns, tables: Tables) -> dict[str, Any]:
    """Return device, its address and its VM."""
    import pandas as pd

    packed = pd.unique(rows["bdf"]).tolist()
    addresses = {number: format_address(number) if number >= 0 else None for number in packed}
    names: dict[int, str | None] = {vm.id: vm.name for vm in tables.vms}
    return {
        "device": _integers(rows["device"], rows["device"] < 0),
        "bdf": _strings(rows["bdf"], addresses),
        "vm": _strings(rows["vm"], names),
    }


def _integers(values: np.ndarray[Any, Any], missing: Any = None) -> Any:
    import pandas as pd

    return pd.arrays.IntegerArray(values, values == state.NULL if missing is None else missing)


def _booleans(values: np.ndarray[Any, Any]) -> Any:
    import pandas as pd

    return pd.arrays.BooleanArray(values == 1, values == state.NULL)


def _words(codes: np.ndarray[Any, Any], words: tuple[str, ...]) -> Any:
    """Turn codes into strings; NULL gives null."""
    import pandas as pd

    return pd.array([*words, None], dtype="string").take(np.maximum(codes, -1))


def _strings(codes: np.ndarray[Any, Any], words: dict[int, str | None]) -> Any:
    """Turn numbers into strings; those without a word give null."""
    import pandas as pd

    inverse, unique = pd.factorize(codes)
    return pd.array([words.get(code) for code in unique.tolist()], dtype="string").take(inverse)
