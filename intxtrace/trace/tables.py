"""The tables of a trace: the probes, virtual machines and devices that its events name by row id."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field, fields
from typing import Any, Self


@dataclass
class Row:
    """A row of a table. `extra` keeps fields that a newer minor version added."""

    id: int
    extra: dict[str, Any] = field(default_factory=dict, kw_only=True)

    def to_json(self) -> dict[str, Any]:
        """Return the row as JSON values, unknown fields included."""
        values = asdict(self)
        return {**values.pop("extra"), **values}

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> Self:
        """Read a row; fields that this version does not know go into `extra`."""
        known = {f.name for f in fields(cls)} - {"extra"}
        return cls(
            **{name: value for name, value in values.items() if name in known},
            extra={name: value for name, value in values.items() if name not in known},
        )


@dataclass
class Probe(Row):
    """One probe: what it was to watch, and how it was attached, or why not."""

    name: str = ""
    """Its name in the probe catalogue, such as `vfio_intx_handler`."""
    kinds: list[str] = field(default_factory=list)
    """Names of the event kinds that it makes."""
    state: str = "missing"
    """`attached`, `fallback` (attached to a substitute that tells less) or `missing`."""
    method: str = ""
    """`fentry`, `fexit`, `kprobe`, `kretprobe`, `raw_tracepoint`, `uprobe`, `import`."""
    target: str = ""
    """Function or tracepoint, with its module or binary."""
    offset: int = 0
    """Uprobes: offset in the file."""
    resolved: str = ""
    """How the target was found: `btf`, `kallsyms`, `usdt`, `dynsym`, `trace-variable`, …"""
    reason: str = ""
    """Where it is missing or a fallback: why."""
    optional: bool = False
    """Kernels without what it watches are normal."""
    attach_ns: int | None = None
    """What being watched costs a call of its target (entry and return, where it watches both), without the programs'
    own time: measured on the host with a program that does nothing. Null: not measured."""
    run_ns: int | None = None
    """Median time of its programs for one call that concerns somebody who is traced, measured at the beginning of the
    recording. Null: not measured, or there was none."""
    runs: int | None = None
    """Of so many calls. Null: not measured."""

    @property
    def standing(self) -> str:
        """Its state, with `absent` for one that is missing because this kernel has no need of it."""
        return "absent" if self.optional and self.state == "missing" else self.state


@dataclass
class Vm(Row):
    """One virtual machine: a process that opened /dev/kvm."""

    pid: int = 0
    name: str = ""
    qemu_path: str = ""
    qemu_version: str = ""
    build_id: str = ""
    command_line: list[str] = field(default_factory=list)
    """What QEMU's command line says of interrupts; the rest of it is not recorded."""
    devices: list[str] = field(default_factory=list)
    """BDFs of its vfio devices."""


@dataclass
class Device(Row):
    """One PCI device that was passed through."""

    bdf: str = ""
    vendor_id: int = 0
    device_id: int = 0
    class_id: int = 0
    name: str = ""
    host_irq: int | None = None
    pin: int | None = None
    msi: bool | None = None
    msix: bool | None = None
    driver: str = ""
    vm_pid: int | None = None
    mode: str = ""
    """How it interrupted when it was seen: `INTx`, `MSI`, `MSI-X`, `none`; empty: not known."""
    group: str = ""
    """IOMMU group."""
    sharers: list[str] | None = None
    """Names of the other handlers on its host IRQ."""
    intx_disabled: bool | None = None
    """DisINTx of its command register."""
    broken_intx_masking: bool | None = None
    """The kernel knows that its DisINTx does not work."""
    nointxmask: bool | None = None
    """vfio-pci was loaded with nointxmask=1: it masks at the host's interrupt controller and needs the line alone."""


@dataclass
class Tables:
    """The tables of a trace, in the order of their ids; rows are added or changed, never removed."""

    probes: list[Probe] = field(default_factory=list)
    vms: list[Vm] = field(default_factory=list)
    devices: list[Device] = field(default_factory=list)
