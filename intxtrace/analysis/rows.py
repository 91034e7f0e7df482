"""Columns of the shared frames as numpy arrays, and rows as dataclasses."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from intxtrace.analysis.results import Interrupt
from intxtrace.frames import INTERRUPTS

if TYPE_CHECKING:
    Ints = npt.NDArray[np.int64]

NULL = int(np.iinfo(np.int64).min)
"""Stands for null in the arrays of this package; no instant, duration or count is so low."""


def ints(column: pd.Series[Any]) -> Ints:
    """Give an Int64 (or boolean) column as int64, with `NULL` for null."""
    return column.to_numpy(dtype=np.int64, na_value=NULL)


def codes(column: pd.Series[Any], words: tuple[str, ...]) -> Ints:
    """Give a column of these words as their places in the list.

    Raises ValueError where it holds anything else: whoever made the frame broke its contract.
    """
    found, uniques = pd.factorize(column)
    places = {word: place for place, word in enumerate(words)}
    unexpected = [word for word in uniques if word not in places]
    if unexpected or (len(found) and found.min() < 0):
        raise ValueError(f"column {column.name}: {unexpected or 'null'} is none of {', '.join(words)}")
    return np.array([places[word] for word in uniques], np.int64)[found] if len(found) else np.empty(0, np.int64)


def by_device(frame: pd.DataFrame) -> Iterator[tuple[tuple[int | None, str | None], npt.NDArray[np.intp]]]:
    """Split a frame by device and VM: the key (row of the device table, name of the VM), and its rows in order."""
    devices, device_codes = np.unique(ints(frame["device"]), return_inverse=True)
    vm_codes, vms = pd.factorize(frame["vm"])
    joined = device_codes * (len(vms) + 1) + vm_codes + 1
    order = np.argsort(joined, kind="stable")
    edges = np.flatnonzero(np.diff(joined[order])) + 1
    for rows in np.split(order, edges):
        if len(rows):
            device = int(devices[device_codes[rows[0]]])
            vm = int(vm_codes[rows[0]])
            yield (None if device == NULL else device, None if vm < 0 else str(vms[vm])), rows


def first_known(column: pd.Series[Any]) -> Any:
    """Give the first value that is not null as a Python value, or None."""
    known = column.first_valid_index()
    return None if known is None else plain(column.loc[known])


def plain(value: Any) -> Any:
    """Give a cell as a Python value, None for null."""
    if value is pd.NA or value is None or value is pd.NaT or (isinstance(value, float) and np.isnan(value)):
        return None
    return value.item() if isinstance(value, np.generic) else value


def interrupt_rows(frame: pd.DataFrame) -> tuple[Interrupt, ...]:
    """Give the rows of an interrupts frame as dataclasses, in their order."""
    columns = [[plain(value) for value in frame[name].tolist()] for name in INTERRUPTS]
    return tuple(Interrupt(*row) for row in zip(*columns, strict=True))
