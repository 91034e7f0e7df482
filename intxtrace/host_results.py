"""What `devices` and `doctor` find: frozen dataclasses, the one source of their terminal text and JSON."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Self

if TYPE_CHECKING:
    from intxtrace.trace.tables import Device

_PINS = "ABCD"


@dataclass(frozen=True)
class DeviceState:
    """One passed-through device. What cannot be seen is null."""

    bdf: str
    name: str | None
    vendor_id: int | None
    device_id: int | None
    class_id: int | None
    driver: str | None
    group: str | None
    """IOMMU group."""
    mode: str | None
    """How it interrupts now: `INTx`, `MSI`, `MSI-X`, `none`."""
    vectors: int | None
    """Host interrupts in use; of MSI and MSI-X."""
    can: tuple[str, ...] | None
    """What it could do: `INTx`, `MSI`, `MSI-X`."""
    host_irq: int | None
    """Of INTx."""
    chip: str | None
    """Host interrupt controller and its pin."""
    count: int | None
    """Interrupts on that line since boot, whoever raised them."""
    sharers: tuple[str, ...] | None
    """Names of the other handlers on the line."""
    pin: str | None
    """`A` to `D`, `none`."""
    intx_disabled: bool | None
    """DisINTx: set by the guest's driver, or by vfio while the line is masked."""
    intx_asserted: bool | None
    nointxmask: bool | None
    broken_intx_masking: bool | None
    gsi: int | None
    """The guest's; only a trace knows it."""
    path: str | None
    """Of INTx: `kernel`, `hybrid`, `userspace`."""
    path_is: str | None
    """`expected` from QEMU's command line, or `seen` in the trace."""
    why: str | None
    """What makes it this path."""

    @classmethod
    def of(
        cls,
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
    ) -> Self:
        """Make the state of a device of its row in the tables, and of what else is known of it."""
        able = (("INTx", None if row.pin is None else row.pin > 0), ("MSI", row.msi), ("MSI-X", row.msix))
        pin = (
            None
            if row.pin is None
            else "none"
            if row.pin == 0
            else _PINS[row.pin - 1]
            if row.pin <= 4
            else str(row.pin)
        )
        return cls(
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


@dataclass(frozen=True)
class VmState:
    """One virtual machine."""

    name: str
    pid: int
    namespaced: bool | None
    """It runs in another mount or user namespace than this host's init: a container."""
    qemu_path: str | None
    machine: str | None
    irqchip: str | None
    """`on`, `split`, `off`, as its command line says; null: QEMU's default, which is on for all but a few machines."""
    devices: tuple[DeviceState, ...]


@dataclass(frozen=True)
class Devices:
    """The data of JSON schema `intxtrace.devices`."""

    vms: tuple[VmState, ...]
    notes: tuple[str, ...]
    """What could not be seen, and why."""


@dataclass(frozen=True)
class Check:
    """One thing that record needs, or is better with."""

    name: str
    state: str
    """`ok`; `missing`: record cannot do without; `worse`: it can, but tells less or costs more; `unknown`."""
    found: str
    remedy: str
    """What to do, where something is to be done."""


@dataclass(frozen=True)
class FoundFunction:
    """A function of QEMU that is probed."""

    name: str
    symbol: str
    """What it is called in this binary."""
    offset: str
    """In the file, hexadecimal: where its probe goes."""
    method: str
    """How it was found: `usdt`, `dynsym`, `symtab`, `gnu_debugdata`, `trace-variable`."""
    argument: str | None
    """What its first argument proved to be; null: its probe could not tell the device."""


@dataclass(frozen=True)
class Binary:
    """One QEMU binary: installed, or of a VM that runs."""

    path: str
    pids: tuple[int, ...]
    """VMs that run it."""
    version: str | None
    build_id: str | None
    functions: tuple[FoundFunction, ...]
    missing: dict[str, str]
    """Functions that were not found, and why."""
    problem: str | None
    """Why it could not be read at all."""


@dataclass(frozen=True)
class ProbeRow:
    """One probe: attached, or what would be tried."""

    name: str
    state: str
    """`attached`, `fallback`, `missing`, `absent` (this kernel has no need of it); `planned` where it was not tried."""
    method: str
    target: str
    resolved: str
    reason: str
    attach_ns: int | None = None
    """What being watched costs a call of the target on this host, without the probe's programs; null: not measured."""
    run_ns: int | None = None
    """Median time of its programs for a call that concerned a traced device, in the moment that it was attached; null
    if there was none."""
    runs: int | None = None
    """How many there were; null: nobody counted."""


@dataclass(frozen=True)
class Diagnosis:
    """The data of JSON schema `intxtrace.doctor`."""

    ready: bool
    """`record` would work, now."""
    reason: str | None
    """What record would say, if not."""
    kernel: str
    machine: str
    distribution: str
    checks: tuple[Check, ...]
    tried: bool
    """The probes below were attached, and detached again; else they are what is planned, or none."""
    probes: tuple[ProbeRow, ...]
    vms: tuple[str, ...]
    binaries: tuple[Binary, ...]
    calibration_ns: int | None = None
    """How long it took to measure what being watched costs, as `record` does at its start; null if it was not tried."""
