"""Who is who in a recording that has pointers and PCI addresses: the rows of the device and the VM table."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from intxtrace.errors import IntxtraceError
from intxtrace.events import RECORD, Flag, Kind, format_address
from intxtrace.trace.tables import Device, Tables, Vm

MAX_ROWS = 1 << 16
"""Devices, and VMs, that a recording may name; more are garbage."""

Additions = list[tuple[int, npt.NDArray[np.void]]]
"""Events to put before a place of others: the place, and an array of one record."""


class Devices:
    """The devices and virtual machines that a recording has named so far."""

    def __init__(self, tables: Tables) -> None:
        self._tables = tables
        self._row_of_vdev: dict[int, int] = {}
        self._row_of_bdf: dict[int, int] = {}
        self._row_of_vm: dict[int, int] = {}
        self._announced: dict[tuple[int, int], tuple[int, str, int | None]] = {}

    def row(self, vdev: int, bdf: int, irq: int) -> int:
        """Return the row of a device, made or completed; `vdev` 0 or `bdf` -1: not known.

        Raises:
            IntxtraceError: there are more than any host has.
        """
        devices = self._tables.devices
        row = self._row_of_vdev.get(vdev, -1) if vdev else -1
        if row >= 0 and bdf >= 0 and devices[row].bdf not in ("", format_address(bdf)):
            row = -1  # The address in memory belongs to another device now.
        if row < 0 and bdf >= 0:
            row = self._row_of_bdf.get(bdf, -1)
        new = row < 0 or (vdev and vdev not in self._row_of_vdev)
        if new and max(len(devices), len(self._row_of_vdev)) >= MAX_ROWS:
            raise IntxtraceError(f"more than {MAX_ROWS} devices: this is no recording of a VM host")
        if row < 0:
            row = len(devices)
            devices.append(Device(row))
        device = devices[row]
        if bdf >= 0:
            device.bdf = format_address(bdf)
            self._row_of_bdf[bdf] = row
        if irq:
            device.host_irq = irq
        if vdev:
            self._row_of_vdev[vdev] = row
        return row

    def at(self, bdf: Any, irq: Any) -> tuple[Any, Any]:
        """Return the devices at these addresses, and flags: pointers where known, else rows of the device table."""
        devices, flags = np.zeros(len(bdf), np.uint64), np.zeros(len(bdf), np.uint32)
        for address in np.unique(bdf).tolist():
            rows = bdf == address
            row = self.row(0, address, int(irq[rows][0]))
            vdev = next((v for v, of in self._row_of_vdev.items() if of == row), 0)
            devices[rows], flags[rows] = vdev or row, 0 if vdev else Flag.SYNTHETIC
        return devices, flags

    def announce(self, records: npt.NDArray[np.void]) -> Additions:
        """Return DEVICE and VM events where a device or VM is named first, or where more is known of it."""
        added: Additions = []
        synthetic = (records["flags"] & np.uint32(Flag.SYNTHETIC)) != 0
        device = records["device"]
        some = bool(synthetic.any())
        for vdev, place in first_places(np.where(synthetic, 0, device) if some else device):
            self._announce(added, records, place, self.row(vdev, -1, 0), vdev, 0)
        if some:
            for number, place in first_places(np.where(synthetic, device + np.uint64(1), 0)):
                self._announce(added, records, place, number - 1, number - 1, Flag.SYNTHETIC)
        for kvm, place in first_places(records["vm"]):
            if kvm not in self._row_of_vm and len(self._tables.vms) < MAX_ROWS:
                row = self._row_of_vm[kvm] = len(self._tables.vms)
                self._tables.vms.append(Vm(row, name=f"kvm-{kvm:x}"))
                add(added, records, place, Kind.VM, vm=kvm, aux=row, value=1)
        return added

    def _announce(self, added: Additions, records: Any, place: int, row: int, pointer: int, flags: int) -> None:
        device = self._tables.devices[row]
        known = (pointer, device.bdf, device.host_irq)
        if self._announced.get((row, flags)) != known:
            self._announced[row, flags] = known
            bdf = next((bdf for bdf, of in self._row_of_bdf.items() if of == row), -1)
            irq = device.host_irq or 0
            packed = bdf & (1 << 64) - 1
            add(
                added, records, place, Kind.DEVICE, device=pointer, flags=flags, aux=row, value=1, arg0=packed, arg1=irq
            )


def add(added: Additions, records: npt.NDArray[np.void], place: int, kind: Kind, **fields: int) -> None:
    """Add an event before the one at this place, at its instant if none is given."""
    event = np.zeros(1, RECORD)
    event["kind"] = kind
    event["ts"] = records["ts"][place] if place < len(records) else (records["ts"][-1] if place else 0)
    for name, value in fields.items():
        event[name] = value
    added.append((place, event))


def inserted(records: npt.NDArray[np.void], added: Additions) -> npt.NDArray[np.void]:
    """Return the records with what was added to them."""
    if not added:
        return records
    ordered = sorted(added, key=lambda one: one[0])
    places = np.array([place for place, _ in ordered])
    return np.insert(records, places, np.concatenate([event for _, event in ordered]))


def first_places(values: npt.NDArray[Any]) -> list[tuple[int, int]]:
    """Return each number but 0, and where it stands first, in order of place."""
    places = np.flatnonzero(values)
    some = values[places]
    if len(some):  # Runs of the same number are many, and sorting is what takes time.
        changes = np.flatnonzero(np.append(True, some[1:] != some[:-1]))
        places, some = places[changes], some[changes]
    numbers, first = np.unique(some, return_index=True)
    return sorted(zip(numbers.tolist(), places[first].tolist(), strict=True), key=lambda pair: pair[1])


def distinct(values: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Return each number once, sorted, as `np.unique` does, but quicker where it comes in runs."""
    if len(values) < 2:
        return values
    return np.unique(values[np.flatnonzero(np.append(True, values[1:] != values[:-1]))])
