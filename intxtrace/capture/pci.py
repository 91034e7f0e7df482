"""PCI devices as the host sees them: configuration space, host IRQ, names.

Every reader takes the root that /proc, /sys and /usr are under, and gives null for what it cannot see.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

# include/uapi/linux/pci_regs.h
_COMMAND, _STATUS, _CAPABILITY_LIST, _INTERRUPT_PIN = 0x04, 0x06, 0x34, 0x3D
_COMMAND_INTX_DISABLE, _STATUS_INTERRUPT, _STATUS_CAP_LIST = 0x400, 0x08, 0x10
_CAP_MSI, _CAP_MSIX = 0x05, 0x11
_MAX_TEXT = 4096

PCI_IDS = ("usr/share/misc/pci.ids", "usr/share/hwdata/pci.ids", "usr/share/pci.ids", "var/lib/pciutils/pci.ids")
"""Where distributions keep the names: Debian, Fedora and Arch, others, its own updates."""


@dataclass(frozen=True)
class Capability:
    """MSI or MSI-X of a device."""

    present: bool
    enabled: bool = False
    vectors: int = 0
    """How many it could have."""


@dataclass(frozen=True)
class Config:
    """What configuration space says of interrupts. Without CAP_SYS_ADMIN only its first 64 bytes can be read."""

    pin: int | None = None
    """1 to 4 for A to D, 0 for none."""
    intx_disabled: bool | None = None
    """DisINTx of the command register."""
    intx_asserted: bool | None = None
    """Interrupt status of the status register: the device asserts its line, or would."""
    msi: Capability | None = None
    msix: Capability | None = None


def read_config(config: bytes) -> Config:
    """Read configuration space as sysfs gives it; what is beyond its end, or unreadable (all ones), is null."""
    if len(config) < 64 or config[:4] == b"\xff\xff\xff\xff":
        return Config()
    word = int.from_bytes(config[_COMMAND : _COMMAND + 2], "little")
    found = _capabilities(config)
    return Config(
        pin=config[_INTERRUPT_PIN],
        intx_disabled=bool(word & _COMMAND_INTX_DISABLE),
        intx_asserted=bool(config[_STATUS] & _STATUS_INTERRUPT),
        msi=None if found is None else _msi(config, found.get(_CAP_MSI)),
        msix=None if found is None else _msix(config, found.get(_CAP_MSIX)),
    )


def _capabilities(config: bytes) -> dict[int, int] | None:
    """Walk the capability list: offset of the first of each kind; None if it goes beyond what could be read."""
    if not config[_STATUS] & _STATUS_CAP_LIST:
        return {}
    found: dict[int, int] = {}
    at = config[_CAPABILITY_LIST] & ~3
    for _ in range(48):
        if at < 0x40:
            break
        if at + 4 > len(config):
            return None
        found.setdefault(config[at], at)
        at = config[at + 1] & ~3
    return found


def _msi(config: bytes, at: int | None) -> Capability:
    if at is None:
        return Capability(False)
    control = int.from_bytes(config[at + 2 : at + 4], "little")
    return Capability(True, bool(control & 0x1), 1 << (control >> 1 & 0x7))


def _msix(config: bytes, at: int | None) -> Capability:
    if at is None:
        return Capability(False)
    control = int.from_bytes(config[at + 2 : at + 4], "little")
    return Capability(True, bool(control & 0x8000), (control & 0x7FF) + 1)


@dataclass(frozen=True)
class Irq:
    """A host interrupt: its controller and who handles it."""

    number: int
    actions: tuple[str, ...]
    """Names of the handlers, in order."""
    chip: str = ""
    """Such as `IO-APIC 22-fasteoi`."""
    count: int | None = None
    """Since boot, on all CPUs."""


_ACTION = re.compile(r"vfio-(intx|msi|msix)(?:\[\d+\])?\((.+)\)")


def interrupts(root: Path = Path("/")) -> dict[int, Irq]:
    """Read /proc/interrupts: all numbered lines, by number."""
    found = {}
    with contextlib.suppress(OSError):
        lines = (root / "proc/interrupts").read_text(errors="replace").splitlines()
        cpus = len(lines[0].split()) if lines else 0
        for line in lines[1:]:
            number, _, rest = line.partition(":")
            if not number.strip().isdecimal():
                continue
            words = rest.split(None, cpus)
            counts, tail = words[:cpus], (words[cpus] if len(words) > cpus else "")
            # `IO-APIC  22-fasteoi   ehci_hcd:usb1, vfio-intx(0000:01:00.0)`; a name may hold spaces.
            chip, hwirq, names = (*tail.split(None, 2), "", "", "")[:3]
            actions = tuple(name.strip()[:_MAX_TEXT] for name in names.split(",") if name.strip())
            numbers = [int(word) for word in counts if word.isdecimal()]
            total = sum(numbers) if len(numbers) == len(counts) else None
            found[int(number)] = Irq(int(number), actions, f"{chip} {hwirq}".strip(), total)
    return found


def mode(bdf: str, irqs: dict[int, Irq], config: Config) -> tuple[str | None, tuple[Irq, ...]]:
    """Tell how a device interrupts now, and on which host interrupts.

    `INTx`, `MSI`, `MSI-X` or `none`, by the handlers that vfio requested (vfio_intx_enable, vfio_msi_set_vector_signal,
    vfio_pci_intrs.c), else by what configuration space has enabled; None if neither can be seen.
    """
    words = {"intx": "INTx", "msi": "MSI", "msix": "MSI-X"}
    for kind, word in words.items():
        mine = tuple(
            irq
            for irq in irqs.values()
            if any((match := _ACTION.fullmatch(a)) and match[1] == kind and match[2] == bdf for a in irq.actions)
        )
        if mine:
            return word, mine
    for capability, word in ((config.msi, "MSI"), (config.msix, "MSI-X")):
        if capability is not None and capability.enabled:
            return word, ()
    return ("none", ()) if irqs else (None, ())


def names(wanted: Iterable[tuple[int, int]], root: Path = Path("/")) -> dict[tuple[int, int], str]:
    """Look vendors and devices up in pci.ids: `Intel Corporation 82574L Gigabit Network Connection`.

    A device that is not there has its vendor's name; without the file, or the vendor, it has none.
    """
    ids = set(wanted)
    vendors = {vendor for vendor, _ in ids}
    found: dict[tuple[int, int], str] = {}
    path = next((root / name for name in PCI_IDS if (root / name).is_file()), None)
    if path is None or not ids:
        return found
    vendor, vendor_name = -1, ""
    with contextlib.suppress(OSError), path.open(errors="replace") as lines:
        for line in lines:
            if line.startswith("C "):
                break  # the classes follow the vendors
            if match := re.match(r"([0-9a-f]{4})  (.+)", line):
                vendor, vendor_name = int(match[1], 16), match[2].strip()
                if vendor in vendors:
                    found.update({one: vendor_name for one in ids if one[0] == vendor})
            elif vendor in vendors and (match := re.match(r"\t([0-9a-f]{4})  (.+)", line)):
                key = (vendor, int(match[1], 16))
                if key in ids:
                    found[key] = f"{vendor_name} {match[2].strip()}"
    return found
