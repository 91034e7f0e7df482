"""VMs and devices, and what `doctor` found, in a terminal. Names come from guests and users: text, never markup."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich.padding import Padding
from rich.text import Text

from intxtrace.units import UNKNOWN, count, plural, printable

if TYPE_CHECKING:
    from rich.console import Console

    from intxtrace.capture.devices import Devices, DeviceState


def print_devices(found: Devices, console: Console) -> None:
    """Print VMs and their devices, with what there is to know of their interrupts."""
    for vm in found.vms:
        irqchip = f"kernel-irqchip={vm.irqchip}" if vm.irqchip else ""
        facts = [
            f"pid {vm.pid}" if vm.pid else "",
            vm.machine or "",
            irqchip,
            "in a container" if vm.namespaced else "",
        ]
        title = f"VM {vm.name}" if vm.name else "no known VM"
        console.print(
            Text.assemble((printable(title, 100), "bold"), " · ", printable(", ".join(f for f in facts if f), 200))
        )
        for device in vm.devices:
            _print_device(device, console)
        if not vm.devices:
            console.print("  no passed-through PCI device")
        console.print()
    if not found.vms:
        console.print("no virtual machine")
    for note in found.notes:
        console.print(Text(printable(note, 400), style="yellow"))


def _print_device(device: DeviceState, console: Console) -> None:
    ids = "" if device.vendor_id is None else f" [{device.vendor_id:04x}:{device.device_id or 0:04x}]"
    console.print(
        Padding(
            Text.assemble((printable(device.bdf, 16), "bold"), f" {printable(device.name or '', 100)}{ids}"), (0, 2)
        )
    )
    for line in (_now(device), _able(device), _masking(device), _path(device)):
        if line:
            console.print(Padding(Text(printable(line, 400)), (0, 0, 0, 4)))


def _now(device: DeviceState) -> str:
    text = f"{'was' if device.path_is == 'seen' else 'now'} {device.mode or UNKNOWN}"
    if device.vectors is not None:
        text += f" ({plural(device.vectors, 'vector')})"
    if device.host_irq is not None:
        text += f", host IRQ {device.host_irq}"
        text += f" ({device.chip})" if device.chip else ""
        if device.sharers is not None:
            text += f", shared with {', '.join(device.sharers)}" if device.sharers else ", not shared"
        text += f", {count(device.count)} on the line since boot" if device.count is not None else ""
    return text


def _able(device: DeviceState) -> str:
    can = "unknown (run this with sudo)" if device.can is None else ", ".join(device.can) or "nothing"
    where = f"IOMMU group {device.group or UNKNOWN}; driver {device.driver or 'none'}"
    return f"can {can}; pin {device.pin or UNKNOWN}; {where}"


def _masking(device: DeviceState) -> str:
    if device.intx_disabled is None:
        return ""
    text = f"DisINTx {'set' if device.intx_disabled else 'clear'}"
    if device.intx_asserted:
        text += ", the device asserts its line"
    if device.nointxmask or device.broken_intx_masking:
        why = "nointxmask=1" if device.nointxmask else "its DisINTx is known to be broken"
        text += f"; masked at the host's interrupt controller ({why}): it needs the line alone"
    return text


def _path(device: DeviceState) -> str:
    if device.path is None:
        return ""
    text = f"path {device.path}, {device.path_is}: {device.why or UNKNOWN}"
    return text + (f"; GSI {device.gsi}" if device.gsi is not None else "")
