"""VMs and devices, and what `doctor` found, in a terminal. Names come from guests and users: text, never markup."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from intxtrace.render.words import probe_cost
from intxtrace.units import UNKNOWN, count, duration, plural, printable

if TYPE_CHECKING:
    from rich.console import Console

    from intxtrace.host_results import Binary, Devices, DeviceState, Diagnosis


_STATES = {
    "ok": "green",
    "attached": "green",
    "planned": "green",
    "fallback": "yellow",
    "worse": "yellow",
    "unknown": "yellow",
    "missing": "red",
    "absent": "bright_black",
}


def print_diagnosis(found: Diagnosis, console: Console) -> None:
    """Print what record needs, what there is of it and what to do, then the probes, QEMU's functions and the answer."""
    where = ", ".join(filter(None, (f"Linux {found.kernel}", found.machine, found.distribution)))
    console.print(Text(printable(where, 200), style="dim"))
    console.print()
    for check in found.checks:
        _print_row(check.state, f"{check.name}: {check.found}", check.remedy, console)
    if found.probes:
        console.print()
        console.print(
            Text("probes, attached for a moment" if found.tried else "probes, as planned; not tried", style="bold")
        )
        for probe in found.probes:
            how = " ".join(filter(None, (probe.method, probe.target)))
            by = f" (found by {probe.resolved})" if probe.resolved and probe.state != "missing" else ""
            reason = f": {probe.reason}" if probe.reason else ""
            cost = probe_cost(probe.attach_ns, probe.run_ns, probe.runs)
            known = f"{how}{by}{f', {cost}' if cost else ''}"
            _print_row(probe.state, f"{probe.name}: {known}{reason}" if how else f"{probe.name}{reason}", "", console)
        if found.calibration_ns is not None:
            console.print(Text(f"  what being watched costs was measured in {duration(found.calibration_ns)}"))
    for binary in found.binaries:
        console.print()
        _print_binary(binary, console)
    console.print()
    if found.ready:
        console.print(Text("record would work", style="bold green"))
    else:
        console.print(Text.assemble(("record would not work: ", "bold red"), printable(found.reason or "", 1_000)))


def _print_row(state: str, text: str, remedy: str, console: Console) -> None:
    grid = Table.grid(padding=(0, 1))
    grid.add_column(width=10)
    grid.add_column(overflow="fold")
    shown = Text(printable(text, 400))
    if remedy:
        shown.append("\ndo: ", "bold").append(printable(remedy, 400))
    grid.add_row(Text(f"  {state}", style=_STATES.get(state, "")), shown)
    console.print(grid)


def _print_binary(binary: Binary, console: Console) -> None:
    runs = f", run by {plural(len(binary.pids), 'VM')}" if binary.pids else ""
    version = f" {binary.version}" if binary.version else ""
    console.print(Text(printable(f"{binary.path}{version}{runs}", 300), style="bold"))
    if binary.problem:
        _print_row("missing", binary.problem, "", console)
    for function in binary.functions:
        state, why = ("ok", "") if function.argument else ("missing", "; its code does not prove its first argument")
        _print_row(
            state, f"{function.name}: {function.symbol} at {function.offset}, by {function.method}{why}", "", console
        )
    for name, reason in binary.missing.items():
        _print_row("missing", f"{name}: {reason}", "", console)


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
