"""What `devices` shows: VMs, their passed-through devices, and how each interrupts, on this host or in a trace."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import TYPE_CHECKING

from intxtrace.capture import host, pci
from intxtrace.host_results import Devices, DeviceState, VmState
from intxtrace.qemu_options import QemuOptions, is_on, read

if TYPE_CHECKING:
    from intxtrace.analysis.results import Summary
    from intxtrace.trace.tables import Device, Tables, Vm

PINS = "ABCD"


def expected_path(options: QemuOptions, bdf: str) -> tuple[str | None, str | None]:
    """Tell which way INTx would take by QEMU's command line, and why; a guard of vfio_intx_enable_kvm may differ.

    hw/vfio/pci.c (vfio_intx_enable_kvm), accel/kvm/kvm-all.c (kvm_irqchip_assign_irqfd), QEMU 4.0 to 11.1.
    """
    if not options.known:
        return None, None
    if is_on(options.device(bdf), "x-no-kvm-intx"):
        return "userspace", "x-no-kvm-intx=on"
    if options.irqchip == "off":
        return "userspace", "kernel-irqchip=off"
    if options.irqchip == "split":
        return "hybrid", "split irqchip (before QEMU 5.1: userspace)"
    return "kernel", "KVM's irqchip, and no option against it"


def on_this_host(root: Path = Path("/")) -> Devices:
    """Look at the VMs and devices of this host."""
    proc, sys = root / "proc", root / "sys"
    vms = []
    irqs = pci.interrupts(root)
    for one in host.processes(proc, sys):
        options = read(one.command_line)
        devices = tuple(_live(bdf, options, irqs, sys) for bdf in one.devices)
        exe = None
        with contextlib.suppress(OSError):
            exe = str(one.exe.readlink())
        vms.append(
            VmState(
                one.name,
                one.pid,
                _namespaced(one.pid, proc),
                exe,
                options.machine or None,
                options.irqchip or None,
                devices,
            )
        )
    return Devices(tuple(vms), _notes(proc))


def _notes(proc: Path) -> tuple[str, ...]:
    hidden = 0
    for folder in proc.iterdir():
        if folder.name.isdigit():
            try:
                next((folder / "fd").iterdir(), None)
            except PermissionError:
                hidden += 1
            except OSError:
                pass
    if hidden:
        return (f"{hidden} processes of other users cannot be looked into, VMs may be among them: run this with sudo",)
    return ()


def _namespaced(pid: int, proc: Path) -> bool | None:
    found = []
    for name in ("mnt", "user"):
        with contextlib.suppress(OSError):
            own, theirs = ((proc / str(one) / "ns" / name).readlink() for one in ("1", pid))
            found.append(own != theirs)
    return any(found) if found else None


def _live(bdf: str, options: QemuOptions, irqs: dict[int, pci.Irq], sys: Path) -> DeviceState:
    row = host.device_row(0, bdf, sys)
    raw = b""
    with contextlib.suppress(OSError):
        raw = (sys / "bus/pci/devices" / bdf / "config").read_bytes()
    config = pci.read_config(raw)
    mode, mine = pci.mode(bdf, irqs, config)
    path, why = expected_path(options, bdf) if mode == "INTx" else (None, None)
    line = irqs.get(row.host_irq) if row.host_irq is not None and mode == "INTx" else None
    return _state(
        row,
        vectors=len(mine) if mode in ("MSI", "MSI-X") and mine else None,
        chip=line.chip if line else None,
        count=line.count if line else None,
        intx_asserted=config.intx_asserted,
        path=path,
        path_is="expected" if path else None,
        why=why,
    )


def _state(
    row: Device,
    *,
    vectors: int | None = None,
    chip: str | None = None,
    count: int | None = None,
    intx_asserted: bool | None = None,
    gsi: int | None = None,
    path: str | None = None,
    path_is: str | None = None,
    why: str | None = None,
) -> DeviceState:
    able = (("INTx", None if row.pin is None else row.pin > 0), ("MSI", row.msi), ("MSI-X", row.msix))
    pin = None if row.pin is None else "none" if row.pin == 0 else PINS[row.pin - 1] if row.pin <= 4 else str(row.pin)
    return DeviceState(
        bdf=row.bdf,
        name=row.name or None,
        vendor_id=row.vendor_id or None,
        device_id=row.device_id or None,
        class_id=row.class_id or None,
        driver=row.driver or None,
        group=row.group or None,
        mode=row.mode or None,
        vectors=vectors,
        can=None if any(has is None for _, has in able) else tuple(name for name, has in able if has),
        host_irq=row.host_irq if row.mode in ("INTx", "") else None,
        chip=chip,
        count=count,
        sharers=None if row.sharers is None or row.mode not in ("INTx", "") else tuple(row.sharers),
        pin=pin,
        intx_disabled=row.intx_disabled,
        intx_asserted=intx_asserted,
        nointxmask=row.nointxmask,
        broken_intx_masking=row.broken_intx_masking,
        gsi=gsi,
        path=path,
        path_is=path_is,
        why=why,
    )


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
    return _state(row, gsi=gsi, path=last.state if last else None, path_is="seen" if last else None, why=why)
