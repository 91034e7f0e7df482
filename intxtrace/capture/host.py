"""The VMs of this host and their passed-through devices, from /proc and sysfs."""

from __future__ import annotations

import contextlib
import itertools
import os
import re
from dataclasses import dataclass
from pathlib import Path

from intxtrace import qemu_options
from intxtrace.capture import pci
from intxtrace.trace.tables import Device, Vm

PROC = Path("/proc")
SYS = Path("/sys")

_BDF = re.compile(r"^[0-9a-f]{4,8}:[0-9a-f]{2}:[0-9a-f]{2}\.[0-7]$")
_MAX_TEXT = 4096


@dataclass(frozen=True)
class Process:
    """A process that runs a virtual machine."""

    pid: int
    started: int
    """Clock ticks since boot: with the pid, the identity of the process."""
    name: str
    exe: Path
    """Its binary, through /proc, so that it is found in any mount namespace."""
    command_line: tuple[str, ...]
    devices: tuple[str, ...]
    """BDFs of the vfio devices that it holds."""


def _text(path: Path) -> str:
    with contextlib.suppress(OSError):
        return path.read_text(errors="replace")[:_MAX_TEXT].strip()
    return ""


def _number(path: Path) -> int | None:
    with contextlib.suppress(ValueError):
        return int(_text(path), 0)
    return None


_FIRST_PID_NAMESPACE = 0xEFFFFFFC
"""PROC_PID_INIT_INO (include/linux/proc_ns.h)."""


def sees_every_process(proc: Path = PROC) -> bool:
    """Tell whether /proc numbers processes as the kernel does in its events, and not as a PID namespace does.

    Where that cannot be seen, it is taken for granted.
    """
    with contextlib.suppress(OSError):
        return (proc / "1/ns/pid").stat().st_ino == _FIRST_PID_NAMESPACE
    return True


def start_time(pid: int, proc: Path = PROC) -> int | None:
    """Return the start of a process in clock ticks since boot (field 22 of proc(5) stat), None if it is gone."""
    fields = _text(proc / str(pid) / "stat").rpartition(")")[2].split()
    return int(fields[19]) if len(fields) > 19 else None


def guest_name(command_line: tuple[str, ...]) -> str:
    """Return the name that `-name NAME` or `-name guest=NAME,…` gives the VM, or an empty string.

    In QEMU's option syntax a comma in a value is doubled.
    """
    for option, value in itertools.pairwise(command_line):
        if option in ("-name", "--name"):
            parts = [part.replace("\0", ",") for part in value.replace(",,", "\0").split(",")]
            for part in parts:
                if part.startswith("guest="):
                    return part.removeprefix("guest=")
            if "=" not in parts[0]:
                return parts[0]
    return ""


def _vfio_devices(folder: Path, links: list[tuple[str, str]], sys: Path) -> tuple[str, ...]:
    found: set[str] = set()
    for number, target in links:
        if match := re.fullmatch(r"/dev/vfio/(\d+)", target):
            with contextlib.suppress(OSError):
                found.update(p.name for p in (sys / "kernel/iommu_groups" / match[1] / "devices").iterdir())
        elif match := re.fullmatch(r"/dev/vfio/devices/(vfio\d+)", target):
            with contextlib.suppress(OSError):
                found.add((sys / "class/vfio-dev" / match[1] / "device").resolve(strict=True).name)
        elif target == "anon_inode:[vfio-device]":
            # Linux 6.18 names the device here.
            info = _text(folder / "fdinfo" / number)
            if match := re.search(r"^vfio-device-syspath:\s*\S*/([0-9a-f:.]+)$", info, re.MULTILINE):
                found.add(match[1])
    drivers = {bdf: os.path.realpath(sys / "bus/pci/devices" / bdf / "driver").rpartition("/")[2] for bdf in found}
    return tuple(sorted(bdf for bdf in found if _BDF.match(bdf) and "vfio" in drivers[bdf]))


def process(pid: int, proc: Path = PROC, sys: Path = SYS) -> Process | None:
    """Describe one process as a VM, or None if it is gone."""
    folder = proc / str(pid)
    started = start_time(pid, proc)
    if started is None:
        return None
    with contextlib.suppress(OSError):
        raw = (folder / "cmdline").read_bytes()[: 1 << 20]
        command_line = tuple(word.decode(errors="replace") for word in raw.rstrip(b"\0").split(b"\0"))
        links = []
        for entry in (folder / "fd").iterdir():
            with contextlib.suppress(OSError):
                links.append((entry.name, str(entry.readlink())))
        name = guest_name(command_line) or f"{_text(folder / 'comm')}-{pid}"
        return Process(pid, started, name, folder / "exe", command_line, _vfio_devices(folder, links, sys))
    return None


def _runs_vm(folder: Path) -> bool:
    try:
        for entry in (folder / "fd").iterdir():
            with contextlib.suppress(OSError):
                if str(entry.readlink()) == "anon_inode:kvm-vm":
                    return True
    except OSError:
        pass
    return False


def processes(proc: Path = PROC, sys: Path = SYS) -> list[Process]:
    """List the processes that hold a KVM virtual machine, by pid."""
    pids = sorted(int(folder.name) for folder in proc.iterdir() if folder.name.isdigit() and _runs_vm(folder))
    return [one for pid in pids if (one := process(pid, proc, sys))]


INSTALLED_QEMU = (
    "/usr/bin/qemu-system-x86_64",
    "/usr/bin/qemu-kvm",
    "/usr/bin/kvm",
    "/usr/libexec/qemu-kvm",
    "/usr/local/bin/qemu-system-x86_64",
    "/usr/bin/qemu-system-aarch64",
)


def installed_qemu() -> list[Path]:
    """List the QEMU binaries of the distribution, so that a VM that starts later is traced from its first moment."""
    found: dict[Path, None] = {}
    for name in INSTALLED_QEMU:
        with contextlib.suppress(OSError):
            path = Path(name).resolve(strict=True)
            with path.open("rb") as file:
                if file.read(4) == b"\x7fELF":  # some distributions put a shell script in its place
                    found[path] = None
    return list(found)


_KEPT_OPTIONS = {"name", "M", "machine", "accel", "enable-kvm", "no-kvm"}
_KEPT_DEVICES = ("vfio-pci", "intel-iommu", "amd-iommu", "virtio-iommu")
_KEPT_VALUES = {"global": ("vfio-pci", "q35", "pc"), "set": ("device.",)}


def telling_options(command_line: tuple[str, ...]) -> list[str]:
    """Return what a QEMU command line says of interrupts: machine, accelerator, passed-through devices.

    The rest is nobody's business: a trace is shown to others, and command lines hold passwords and paths.
    """
    kept: list[str] = []
    words = [word[:_MAX_TEXT] for word in command_line[:4096]]
    for option, value in qemu_options.options(words):
        named = option == "device" and qemu_options.properties(value).get("", "").startswith(_KEPT_DEVICES)
        if option in _KEPT_OPTIONS or named or value.startswith(_KEPT_VALUES.get(option, "\0")):
            kept += [f"-{option}", value] if value else [f"-{option}"]
    return kept


def vm_row(row_id: int, one: Process | None, pid: int) -> Vm:
    """Make the table row of a VM; of one that is gone already, the pid is all there is."""
    if one is None:
        return Vm(row_id, pid=pid, name=f"pid-{pid}")
    exe = ""
    with contextlib.suppress(OSError):
        exe = str(one.exe.readlink())
    return Vm(
        row_id,
        pid=pid,
        name=one.name[:_MAX_TEXT],
        qemu_path=exe,
        command_line=telling_options(one.command_line),
        devices=list(one.devices),
    )


def device_row(row_id: int, bdf: str, sys: Path = SYS) -> Device:
    """Make the table row of a PCI device, as sysfs and /proc/interrupts (both beside each other) show it now."""
    folder = sys / "bus/pci/devices" / bdf
    root = sys.parent
    raw = b""
    with contextlib.suppress(OSError):
        raw = (folder / "config").read_bytes()
    config = pci.read_config(raw)
    irqs = pci.interrupts(root)
    mode, mine = pci.mode(bdf, irqs, config)
    host_irq = mine[0].number if mode == "INTx" else (_number(folder / "irq") or None)
    ids = (_number(folder / "vendor") or 0, _number(folder / "device") or 0)
    own = f"vfio-intx({bdf})"
    line = irqs.get(host_irq) if host_irq is not None and mode not in ("MSI", "MSI-X") else None
    return Device(
        row_id,
        bdf=bdf,
        vendor_id=ids[0],
        device_id=ids[1],
        class_id=_number(folder / "class") or 0,
        name=pci.names([ids], root).get(ids, "")[:_MAX_TEXT],
        host_irq=host_irq,
        pin=config.pin,
        msi=None if config.msi is None else config.msi.present,
        msix=None if config.msix is None else config.msix.present,
        driver=_link(folder / "driver"),
        mode=mode or "",
        group=_link(folder / "iommu_group"),
        sharers=None if line is None else [action for action in line.actions if action != own],
        intx_disabled=config.intx_disabled,
        broken_intx_masking=_flag(folder / "broken_intx_masking"),
        nointxmask=_flag(sys / "module/vfio_pci/parameters/nointxmask"),
    )


def _link(path: Path) -> str:
    with contextlib.suppress(OSError):
        return path.readlink().name
    return ""


def _flag(path: Path) -> bool | None:
    return {"Y": True, "1": True, "N": False, "0": False}.get(_text(path))
