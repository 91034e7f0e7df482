"""What a QEMU command line says of interrupts: irqchip, machine, and the properties of each passed-through device.

QEMU's option syntax: `-device vfio-pci,host=01:00.0,x-no-mmap=on` (a comma in a value is doubled), since 6.0 also JSON
(`-device {"driver":"vfio-pci",…}`, which libvirt writes); properties also come from `-global DRIVER.PROPERTY=VALUE` and
`-set device.ID.PROPERTY=VALUE`. A command line belongs to whoever started the VM: nothing here trusts it.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from intxtrace.events import format_address, parse_address

_TRUE = frozenset({"on", "yes", "true", "y"})  # qapi_bool_parse, qapi/qapi-util.c
_VFIO = ("vfio-pci", "vfio-pci-nohotplug")
_SPLIT_MACHINES = ("pc-q35-4.0", "microvm")
"""Machines whose irqchip is split unless told otherwise: pc_q35_4_0_machine_options, microvm_class_init."""


def options(command_line: Sequence[str]) -> Iterator[tuple[str, str]]:
    """Give each option without its dashes, with the word behind it, or nothing if that is an option too."""
    for word, following in itertools.zip_longest(command_line, command_line[1:], fillvalue=""):
        if word.startswith("-"):
            yield word.lstrip("-"), "" if following.startswith("-") else following


def properties(value: str) -> dict[str, str]:
    """Read `first,name=value,…`, or JSON, into names and values; `first` gets the name ''."""
    if value.startswith("{"):
        try:
            read = json.loads(value)
        except (ValueError, RecursionError):
            return {}
        if not isinstance(read, dict):
            return {}
        found = {str(name): _word(item) for name, item in read.items() if isinstance(item, str | bool | int)}
        return {"": found.pop("driver", ""), **found}
    found = {}
    for place, part in enumerate(value.replace(",,", "\0").split(",")):
        name, equals, text = part.replace("\0", ",").partition("=")
        if equals:
            found[name] = text
        elif place == 0:
            found[""] = name
        else:
            found[name] = "on"
    return found


def _word(item: str | bool | int) -> str:
    if isinstance(item, bool):
        return "on" if item else "off"
    return str(item)


@dataclass(frozen=True)
class QemuOptions:
    """What a command line says; what it does not say is empty, and has QEMU's default."""

    machine: str = ""
    irqchip: str = ""
    """`on`, `split` or `off`; empty: QEMU's default, which is `on` for all but a few old machines."""
    devices: tuple[dict[str, str], ...] = ()
    """Properties of each vfio-pci device, those of `-global` and `-set` included."""
    known: bool = field(default=False)
    """There was a command line to read."""

    def device(self, bdf: str) -> dict[str, str]:
        """Give the properties of the device with this host address; empty if none is known."""
        return next((found for found in self.devices if _address(found) == bdf), {})


def is_on(found: dict[str, str], name: str) -> bool:
    """Whether a boolean property is on."""
    return found.get(name, "") in _TRUE


def _address(found: dict[str, str]) -> str | None:
    text = found.get("host") or found.get("sysfsdev", "").rstrip("/").rpartition("/")[2]
    try:
        return format_address(parse_address(text))
    except ValueError:
        return None


def read(command_line: Sequence[str]) -> QemuOptions:
    """Read the command line of a QEMU process."""
    machine = irqchip = ""
    devices: list[dict[str, str]] = []
    everywhere: dict[str, str] = {}
    later: list[tuple[str, str, str]] = []
    for option, value in options(command_line):
        if option in ("M", "machine", "accel"):
            found = properties(value)
            if option != "accel":
                machine = found.get("type") or found.get("") or machine
            irqchip = found.get("kernel-irqchip") or found.get("kernel_irqchip") or irqchip
        elif option == "device":
            found = properties(value)
            if found.get("") in _VFIO:
                devices.append(found)
        elif option == "global":
            name, _, text = value.partition("=")
            driver, _, name = name.partition(".")
            if driver in _VFIO:
                everywhere[name] = text
        elif option == "set":
            name, _, text = value.partition("=")
            group, _, rest = name.partition(".")
            identity, _, name = rest.partition(".")
            if group == "device":
                later.append((identity, name, text))
    for identity, name, text in later:
        for found in devices:
            if identity and found.get("id") == identity:
                found[name] = text
    if irqchip not in ("", "split"):
        irqchip = "on" if irqchip in _TRUE else "off"
    if not irqchip and machine in _SPLIT_MACHINES:
        irqchip = "split"
    return QemuOptions(machine, irqchip, tuple({**everywhere, **found} for found in devices), bool(command_line))


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
