"""What findings need of single events: entries of the guest's IOAPIC, and set-ups that vfio refused."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from intxtrace.events import INTX_INDEX, Kind

if TYPE_CHECKING:
    from intxtrace.reconstruct.state import Events

_EDGE_OR_LEVEL, _MASKED = 1 << 15, 1 << 16
"""trig_mode and mask of union kvm_ioapic_redirect_entry (arch/x86/kvm/ioapic.h)."""

KEPT = 1024
"""Refusals, pins, devices and VMs that are remembered: whoever forges a trace may name any number."""


@dataclass(frozen=True)
class PinEntry:
    """A redirection entry of the guest's IOAPIC, as an injection found it."""

    at: int
    level: bool
    masked: bool


@dataclass(frozen=True)
class Refusal:
    """VFIO_DEVICE_SET_IRQS for INTx that failed."""

    at: int
    flags: int
    errno: int


class Witness:
    """Looks at events batch by batch; a few comparisons per batch where nothing of this happened."""

    def __init__(self) -> None:
        self._vms: OrderedDict[int, int] = OrderedDict()
        self._devices: OrderedDict[int, int] = OrderedDict()
        self._pins: OrderedDict[tuple[int, int], PinEntry] = OrderedDict()
        self._refusals: dict[int, list[Refusal]] = {}

    def take(self, columns: Events) -> None:
        """Look at a batch: arrays of the dtypes of `events.RECORD`'s fields, by name, or records."""
        kinds = columns["kind"]
        wanted = (kinds == Kind.IOAPIC_SET_IRQ) | (kinds == Kind.VM) | (kinds == Kind.DEVICE)
        wanted |= (kinds == Kind.SET_IRQS_EXIT) & (columns["value"].view("<i4") < 0)
        for row in np.flatnonzero(wanted).tolist():
            self._take_one({name: int(columns[name][row]) for name in _FIELDS})

    def _take_one(self, event: dict[str, int]) -> None:
        if event["kind"] == Kind.VM:
            if event["value"]:
                _keep(self._vms, event["vm"], event["aux"])
        elif event["kind"] == Kind.DEVICE:
            if event["value"]:
                _keep(self._devices, event["device"], event["aux"])
        elif event["kind"] == Kind.IOAPIC_SET_IRQ:
            row = self._vms.get(event["vm"])
            if row is not None:
                entry = event["arg1"]
                seen = PinEntry(event["ts"], bool(entry & _EDGE_OR_LEVEL), bool(entry & _MASKED))
                _keep(self._pins, (row, event["arg0"]), seen)
        elif event["arg1"] & 0xFFFF == INTX_INDEX:
            row = self._devices.get(event["device"])
            kept = self._refusals.setdefault(row, []) if row is not None else []
            if len(kept) < KEPT:
                kept.append(Refusal(event["ts"], event["arg0"], -event["value"]))

    def pin(self, vm_row: int, pin: int) -> PinEntry | None:
        """Give the last entry of a pin of a VM's IOAPIC that an injection showed; None if none did."""
        return self._pins.get((vm_row, pin))

    def refusals(self, device_row: int | None) -> tuple[Refusal, ...]:
        """Give the set-ups of a device's INTx that failed, in order."""
        return tuple(self._refusals.get(-1 if device_row is None else device_row, ()))


_FIELDS = ("ts", "kind", "value", "aux", "device", "vm", "arg0", "arg1")


def _keep(table: OrderedDict[Any, Any], key: Any, value: Any) -> None:
    table[key] = value
    table.move_to_end(key)
    if len(table) > KEPT:
        table.popitem(last=False)
