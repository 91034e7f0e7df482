"""What QEMU's trace events are, whatever prints them, and how their records get in order and find their devices."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from intxtrace.errors import IntxtraceError
from intxtrace.events import RECORD, Flag, Kind, parse_address
from intxtrace.importers.ftrace_devices import MAX_ROWS, Additions, add, first_places, inserted
from intxtrace.trace.tables import Device, Probe, Tables

HELD = 1 << 10
"""Events that wait for others: threads take the time of an event before they take the lock to write it."""

MAX_NAME = 512
"""Bytes of a device's name."""

EVENTS = {
    "vfio_intx_interrupt": Kind.QEMU_INTERRUPT,
    "vfio_intx_eoi": Kind.QEMU_EOI,
    "vfio_pci_intx_eoi": Kind.QEMU_EOI,
    "vfio_intx_enable": Kind.QEMU_ENABLE,
    "vfio_intx_disable": Kind.QEMU_DISABLE,
    "vfio_intx_enable_kvm": Kind.QEMU_ENABLE_KVM,
    "vfio_intx_disable_kvm": Kind.QEMU_DISABLE_KVM,
    "vfio_intx_update": Kind.QEMU_UPDATE,
    "vfio_region_read": Kind.QEMU_REGION_READ,
    "vfio_region_write": Kind.QEMU_REGION_WRITE,
    "vfio_region_mmaps_set_enabled": Kind.QEMU_MMAPS,
    "kvm_resample_fd_notify": Kind.QEMU_RESAMPLE_NOTIFY,
}
"""Events of hw/vfio/trace-events and accel/kvm/trace-events, 4.0 to 11.1. vfio_intx_eoi is called vfio_pci_intx_eoi
since 10.1; the trace stands behind the test of `intx.pending`, so only real EOIs make it."""


class Sink:
    """Puts records of QEMU's events in order, and adds the events that describe what they name."""

    def __init__(self, tables: Tables) -> None:
        self.late = 0
        """Events that were older than what was handed out before: they have the time of that."""
        self._tables = tables
        self._row_of: dict[bytes, int] = {}
        self._announced: set[int] = set()
        self._seen: set[int] = set()
        self._held = np.zeros(0, RECORD)
        self._handed_out = 0

    def device(self, called: bytes) -> int:
        """Return the row of the device that is called so, made if it is new.

        Raises:
            IntxtraceError: there are more than any QEMU has.
        """
        row = self._row_of.get(called)
        if row is not None:
            return row
        devices = self._tables.devices
        if len(devices) >= MAX_ROWS:
            raise IntxtraceError(f"more than {MAX_ROWS} devices: this is no log of a QEMU")
        name = called.decode("utf-8", "replace")
        device = Device(len(devices), name=name)
        try:
            parse_address(name)
            device.bdf, device.name = name, ""
        except ValueError:
            pass
        devices.append(device)
        self._row_of[called] = device.id
        return device.id

    def in_order(self, records: npt.NDArray[np.void]) -> npt.NDArray[np.void]:
        """Return what is older than the last `HELD` events, in the order of time."""
        together = np.concatenate([self._held, records])
        together = together[np.argsort(together["ts"], kind="stable")]
        cut = max(len(together) - HELD, 0)
        self._held = together[cut:]
        return self._described(together[:cut])

    def rest(self) -> npt.NDArray[np.void]:
        """Return what is held back, at the end."""
        records, self._held = self._held, np.zeros(0, RECORD)
        return self._described(records)

    def _not_before(self, records: npt.NDArray[np.void]) -> None:
        """The clock was set back, or logs of several runs stand behind each other: order is what can be kept."""
        if len(records):
            late = records["ts"] < self._handed_out
            self.late += int(late.sum())
            records["ts"][late] = self._handed_out
            self._handed_out = int(records["ts"][-1])

    def _described(self, records: npt.NDArray[np.void]) -> npt.NDArray[np.void]:
        """Add the devices where they are named first, and the probes whose first event this block has."""
        self._not_before(records)
        for number in np.unique(records["kind"]).tolist():
            if number not in self._seen and number in EVENTS.values():
                self._seen.add(number)
                names = [name for name, kind in EVENTS.items() if kind == number]
                self._tables.probes.append(
                    Probe(
                        len(self._tables.probes),
                        name=names[0],
                        kinds=[Kind(number).name],
                        state="attached",
                        method="import",
                        target=names[0],
                        resolved="events",
                    )
                )
        added: Additions = []
        with_device = (records["flags"] & np.uint32(Flag.SYNTHETIC)) != 0
        for number, place in first_places(np.where(with_device, records["device"] + np.uint64(1), 0)):
            row = number - 1
            if row not in self._announced:
                self._announced.add(row)
                bdf = self._tables.devices[row].bdf
                address = parse_address(bdf) if bdf else (1 << 64) - 1
                fields = {"device": row, "aux": row, "value": 1, "arg0": address}
                add(added, records, place, Kind.DEVICE, flags=int(Flag.SYNTHETIC), **fields)
        return inserted(records, added)
