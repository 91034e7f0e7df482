"""What `devices` shows of this host: VMs, their passed-through devices, and how each interrupts."""

from __future__ import annotations

import contextlib
from pathlib import Path

from intxtrace.capture import host, pci
from intxtrace.host_results import Devices, DeviceState, VmState
from intxtrace.qemu_options import QemuOptions, expected_path, read


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
    return DeviceState.of(
        row,
        vectors=len(mine) if mode in ("MSI", "MSI-X") and mine else None,
        chip=line.chip if line else None,
        count=line.count if line else None,
        intx_asserted=config.intx_asserted,
        path=path,
        path_is="expected" if path else None,
        why=why,
    )
