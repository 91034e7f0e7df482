"""What `devices` shows of a trace: its VMs, and how each of their devices interrupted."""

from __future__ import annotations

from typing import TYPE_CHECKING

from intxtrace.host_results import Devices, DeviceState, VmState
from intxtrace.qemu_options import expected_path, read

if TYPE_CHECKING:
    from intxtrace.analysis.results import Summary
    from intxtrace.trace.tables import Device, Tables, Vm


def in_a_trace(tables: Tables, summary: Summary) -> Devices:
    """Tell what a trace remembers: each device as it was when it was seen, its GSI, its last path and the reason."""
    vms = []
    left = {row.id for row in tables.devices}
    for vm in tables.vms:
        mine = [row for row in tables.devices if row.vm_pid == vm.pid or row.bdf in vm.devices]
        left -= {row.id for row in mine}
        vms.append(_remembered_vm(vm, tuple(_remembered(row, vm, summary) for row in mine)))
    rest = tuple(_remembered(row, None, summary) for row in tables.devices if row.id in left)
    notes = ("the trace does not say whose these devices were: " + ", ".join(one.bdf for one in rest),) if rest else ()
    if rest:
        vms.append(VmState("", 0, None, None, None, None, rest))
    return Devices(tuple(vms), notes)


def _remembered_vm(vm: Vm, devices: tuple[DeviceState, ...]) -> VmState:
    options = read(vm.command_line)
    return VmState(
        vm.name, vm.pid, None, vm.qemu_path or None, options.machine or None, options.irqchip or None, devices
    )


def _remembered(row: Device, vm: Vm | None, summary: Summary) -> DeviceState:
    found = [d for d in summary.devices if d.device == row.id and (vm is None or d.vm in (vm.name, None))]
    intervals = sorted((i for d in found for i in d.states.intervals), key=lambda i: i.begin_at)
    last = next((i for i in reversed(intervals) if i.state in ("kernel", "hybrid", "userspace")), None)
    gsi = next((d.gsi for d in found if d.gsi is not None), None)
    # That its BARs were mapped or unmapped made it no path.
    reasons = [
        i.reason for i in intervals if last and i.state == last.state and not str(i.reason).startswith("the BARs")
    ]
    why = reasons[-1] if reasons else last.reason if last else None
    option = expected_path(read(vm.command_line), row.bdf) if vm else (None, None)
    if last is not None and option[0] == last.state:
        why = f"{why}; {option[1]}"
    return DeviceState.of(row, gsi=gsi, path=last.state if last else None, path_is="seen" if last else None, why=why)
