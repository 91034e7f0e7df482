"""The vocabulary: event kinds, and the one record layout that the C code, numpy and Arrow share.

An *event* is one hit of one probe. Every event is one record of 80 little-endian bytes (`RECORD`). What each
field of a record holds for each kind of event is the table `KINDS`; the C header that the probes include
(`c_header`), the Arrow schema (`arrow_schema`) and the documentation (`describe`) are made from it.

Pointers in `device`, `link`, `link2` and `vm` are kernel addresses (for `QEMU_*` kinds: addresses in the process
`tgid`). They are identities, never dereferenced. 0 means "not known".
"""

from __future__ import annotations

import enum
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import pyarrow as pa


class Kind(enum.IntEnum):
    """The kinds of events. The numbers are part of the trace file format: add, never reuse."""

    HANDLER_ENTRY = 1
    HANDLER_EXIT = 2
    EVENTFD_SIGNAL = 3
    EVENTFD_WRITE = 4
    EVENTFD_READ = 5
    IRQFD_WAKEUP = 6
    IRQFD_INJECT = 7
    KVM_SET_IRQ = 8
    KVM_SET_IRQ_EXIT = 9
    KVM_ACK = 10
    RESAMPLER_ACK = 11
    RESAMPLER_NOTIFY = 12
    VIRQFD_WAKEUP = 13
    VIRQFD_INJECT = 14
    UNMASK_ENTRY = 15
    UNMASK_EXIT = 16
    CHECKED_UNMASK = 17
    ENABLE_IRQ = 18
    MASK = 19
    CONFIG_UNMASK = 20
    SET_IRQS_ENTRY = 21
    SET_IRQS_EXIT = 22
    KVM_IRQFD_ENTRY = 23
    KVM_IRQFD_EXIT = 24
    KVM_IRQ_LINE = 25
    KVM_EOI = 26
    APIC_ACCEPT = 27
    IOAPIC_SET_IRQ = 28
    PIC_SET_IRQ = 29
    MSI_SET_IRQ = 30
    USERSPACE_EXIT = 31
    WORK_QUEUED = 32
    WORK_STARTED = 33
    QEMU_INTERRUPT = 40
    QEMU_EOI = 41
    QEMU_ENABLE = 42
    QEMU_DISABLE = 43
    QEMU_ENABLE_KVM = 44
    QEMU_DISABLE_KVM = 45
    QEMU_UPDATE = 46
    QEMU_REGION_READ = 47
    QEMU_REGION_WRITE = 48
    QEMU_REGION_COUNT = 49
    QEMU_REGION_OFFSETS = 50
    QEMU_MMAPS = 51
    QEMU_RESAMPLE_NOTIFY = 52
    LOST = 60
    PROBE = 61
    DEVICE = 62
    VM = 63


class Flag(enum.IntFlag):
    """Bits of the field `flags`. The `IN_` bits say which traced call was open, innermost, in the same task."""

    FALLBACK = 1 << 0
    """The event comes from a probe's fallback: fields that the fallback cannot know are 0."""
    SYNTHETIC = 1 << 1
    """The source has no pointers: `device` is an id of the device table, `vm` an id of the VM table."""
    IN_HANDLER = 1 << 4
    IN_UNMASK = 1 << 5
    IN_SET_IRQS = 1 << 6
    IN_VIRQFD_INJECT = 1 << 7
    IN_CONFIG_UNMASK = 1 << 8
    IN_KVM_IRQFD = 1 << 9
    IN_KVM_SET_IRQ = 1 << 10
    IN_EVENTFD_READ = 1 << 11
    IN_RESAMPLER_ACK = 1 << 12
    IN_EVENTFD_WRITE = 1 << 13
    IN_IRQFD_WAKEUP = 1 << 14


class Work(enum.IntEnum):
    """`value` of `WORK_QUEUED` and `WORK_STARTED`: which work function the workqueue tracepoint named."""

    IRQFD_INJECT = 1
    VIRQFD_INJECT = 2


class SetIrqs(enum.IntFlag):
    """`arg0` of `SET_IRQS_*`: VFIO_IRQ_SET_* of include/uapi/linux/vfio.h."""

    DATA_NONE = 1 << 0
    DATA_BOOL = 1 << 1
    DATA_EVENTFD = 1 << 2
    ACTION_MASK = 1 << 3
    ACTION_UNMASK = 1 << 4
    ACTION_TRIGGER = 1 << 5


INTX_INDEX = 0
"""VFIO_PCI_INTX_IRQ_INDEX of include/uapi/linux/vfio.h."""

KVM_IRQFD_DEASSIGN = 1
KVM_IRQFD_RESAMPLE = 2
"""Flags of struct kvm_irqfd, include/uapi/linux/kvm.h."""

SOURCE_USERSPACE = 0
SOURCE_RESAMPLE = 1
"""`arg1` of `KVM_SET_IRQ`: KVM_USERSPACE_IRQ_SOURCE_ID, KVM_IRQFD_RESAMPLE_IRQ_SOURCE_ID (include/linux/kvm_host.h)."""

EPOLLIN = 1
EPOLLHUP = 0x10
"""`value` of the wake-up kinds: EPOLLIN is a signal, EPOLLHUP the closing of the eventfd (no interrupt)."""

RECORD = np.dtype(
    [
        ("ts", "<u8"),
        ("kind", "<u2"),
        ("cpu", "<u2"),
        ("flags", "<u4"),
        ("tgid", "<u4"),
        ("tid", "<u4"),
        ("value", "<i4"),
        ("aux", "<u4"),
        ("device", "<u8"),
        ("link", "<u8"),
        ("link2", "<u8"),
        ("vm", "<u8"),
        ("arg0", "<u8"),
        ("arg1", "<u8"),
    ]
)
"""One event. `ts` is in ns of the trace's clock, taken in the probe; `tid` 0 is the idle task of `cpu`."""

assert RECORD.itemsize == 80


@dataclass(frozen=True)
class KindInfo:
    """What one kind of event is, and what its fields hold.

    Fields that are not named hold 0; `ts`, `cpu`, `tgid` and `tid` are those of the hit.
    """

    kind: Kind
    source: str
    """The function, tracepoint or producer that it comes from."""
    fields: dict[str, str] = field(default_factory=dict)


_VDEV = "struct vfio_pci_core_device *"
_NESTED = "struct vfio_pci_core_device *, if nested in a call on it"
_IRQFD = {
    "device": _NESTED,
    "link": "struct kvm_kernel_irqfd *",
    "link2": "resamplefd eventfd_ctx (0: the irqfd has no resampler)",
    "vm": "struct kvm *",
    "arg0": "gsi",
    "arg1": "trigger eventfd_ctx",
}
_SET_IRQS = {
    "device": _VDEV,
    "link": "eventfd_ctx of the first fd, where the data are eventfds",
    "arg0": "flags (SetIrqs)",
    "arg1": "index | start << 16 | count << 32",
    "aux": "the first fd, where the data are eventfds",
}
_KVM_IRQFD = {
    "vm": "struct kvm *",
    "link": "eventfd_ctx",
    "link2": "resamplefd eventfd_ctx",
    "arg0": "gsi",
    "arg1": "flags (1 deassign, 2 resample)",
    "aux": "fd",
}
_QEMU = {"device": "VFIODevice *"}
_REGION = {"device": "VFIODevice *", "link": "VFIORegion *", "aux": "region number"}

KINDS: dict[Kind, KindInfo] = {
    info.kind: info
    for info in (
        KindInfo(Kind.HANDLER_ENTRY, "vfio_intx_handler", {"device": _VDEV, "arg0": "host irq"}),
        KindInfo(
            Kind.HANDLER_EXIT,
            "vfio_intx_handler returns",
            {"device": _VDEV, "value": "return: 1 claimed and masked, 0 not ours", "arg0": "host irq"},
        ),
        KindInfo(
            Kind.EVENTFD_SIGNAL,
            "eventfd_signal (< 6.8) or eventfd_signal_mask",
            {"device": _NESTED, "link": "eventfd_ctx", "aux": "eventfd id"},
        ),
        KindInfo(
            Kind.EVENTFD_WRITE,
            "eventfd_write: somebody wrote the eventfd with write(2)",
            {"link": "eventfd_ctx", "aux": "eventfd id"},
        ),
        KindInfo(
            Kind.EVENTFD_READ,
            "eventfd_read returns",
            {"link": "eventfd_ctx", "value": "return: 8 read, -11 it was empty", "aux": "eventfd id"},
        ),
        KindInfo(Kind.IRQFD_WAKEUP, "irqfd_wakeup", {**_IRQFD, "value": "key: 1 signal, 0x10 close"}),
        KindInfo(Kind.IRQFD_INJECT, "irqfd_inject", dict(_IRQFD)),
        KindInfo(
            Kind.KVM_SET_IRQ,
            "kvm_set_irq",
            {
                "vm": "struct kvm *",
                "value": "level",
                "arg0": "gsi",
                "arg1": "source: 1 resample irqfd, 0 other",
            },
        ),
        KindInfo(
            Kind.KVM_SET_IRQ_EXIT,
            "kvm_set_irq returns",
            {
                "vm": "struct kvm *",
                "value": "return: > 0 delivered, 0 coalesced, < 0 masked or still in service",
                "arg0": "gsi",
                "arg1": "source",
                "aux": "level",
            },
        ),
        KindInfo(
            Kind.KVM_ACK,
            "kvm_notify_acked_irq: the guest's EOI",
            {"vm": "struct kvm *", "arg0": "pin", "arg1": "irqchip: 0 PIC master, 1 PIC slave, 2 IOAPIC"},
        ),
        KindInfo(
            Kind.RESAMPLER_ACK,
            "irqfd_resampler_ack",
            {"vm": "struct kvm *", "link": "struct kvm_kernel_irqfd_resampler *", "arg0": "gsi"},
        ),
        KindInfo(
            Kind.RESAMPLER_NOTIFY,
            "kvm_notify_irqfd_resampler (>= 6.4): the guest unmasked a pending IOAPIC pin",
            {"vm": "struct kvm *", "arg0": "pin", "arg1": "irqchip"},
        ),
        KindInfo(
            Kind.VIRQFD_WAKEUP,
            "virqfd_wakeup: the resamplefd was signalled",
            {"device": _VDEV, "link": "resamplefd eventfd_ctx", "value": "key: 1 signal, 0x10 close"},
        ),
        KindInfo(
            Kind.VIRQFD_INJECT,
            "virqfd_inject: the worker that signals again after an unmask returned 1",
            {"device": _VDEV, "link": "resamplefd eventfd_ctx"},
        ),
        KindInfo(Kind.UNMASK_ENTRY, "vfio_pci_intx_unmask_handler", {"device": _VDEV}),
        KindInfo(
            Kind.UNMASK_EXIT,
            "vfio_pci_intx_unmask_handler returns",
            {
                "device": _VDEV,
                "value": "return: 1 still asserted and masked, the caller signals again; 0 see proof",
            },
        ),
        KindInfo(
            Kind.CHECKED_UNMASK,
            "pci_check_and_unmask_intx returns, inside an unmask",
            {"device": _NESTED, "value": "return: 1 unmasked, 0 still asserted"},
        ),
        KindInfo(Kind.ENABLE_IRQ, "enable_irq, inside an unmask", {"device": _NESTED, "arg0": "host irq"}),
        KindInfo(
            Kind.MASK,
            "vfio_pci_intx_mask, __vfio_pci_intx_mask",
            {"device": _VDEV, "aux": "0: vfio_pci_intx_mask (config space, PM), 1: __vfio_pci_intx_mask"},
        ),
        KindInfo(
            Kind.CONFIG_UNMASK,
            "vfio_pci_intx_unmask (config space, PM; before the 2024 rework also the ioctl)",
            {"device": _VDEV},
        ),
        KindInfo(Kind.SET_IRQS_ENTRY, "vfio_pci_set_irqs_ioctl", dict(_SET_IRQS)),
        KindInfo(Kind.SET_IRQS_EXIT, "vfio_pci_set_irqs_ioctl returns", {**_SET_IRQS, "value": "return"}),
        KindInfo(Kind.KVM_IRQFD_ENTRY, "kvm_irqfd", dict(_KVM_IRQFD)),
        KindInfo(Kind.KVM_IRQFD_EXIT, "kvm_irqfd returns", {**_KVM_IRQFD, "value": "return"}),
        KindInfo(
            Kind.KVM_IRQ_LINE,
            "kvm_vm_ioctl_irq_line",
            {"vm": "struct kvm *", "value": "level", "arg0": "gsi"},
        ),
        KindInfo(Kind.KVM_EOI, "kvm:kvm_eoi", {"value": "vector, -1: nothing was in service"}),
        KindInfo(
            Kind.APIC_ACCEPT,
            "kvm:kvm_apic_accept_irq, inside a traced delivery",
            {"vm": "struct kvm *", "value": "vector", "aux": "apic id", "arg0": "gsi"},
        ),
        KindInfo(
            Kind.IOAPIC_SET_IRQ,
            "kvm:kvm_ioapic_set_irq, inside a traced delivery",
            {"vm": "struct kvm *", "value": "coalesced", "arg0": "pin", "arg1": "redirection entry"},
        ),
        KindInfo(
            Kind.PIC_SET_IRQ,
            "kvm:kvm_pic_set_irq, inside a traced delivery",
            {"vm": "struct kvm *", "value": "coalesced", "arg0": "pin", "arg1": "chip", "aux": "masked"},
        ),
        KindInfo(
            Kind.MSI_SET_IRQ,
            "kvm:kvm_msi_set_irq, inside a traced delivery",
            {"vm": "struct kvm *", "value": "vector", "arg0": "address", "arg1": "data", "device": _NESTED},
        ),
        KindInfo(
            Kind.USERSPACE_EXIT,
            "kvm:kvm_userspace_exit with KVM_EXIT_IOAPIC_EOI",
            {"value": "reason"},
        ),
        KindInfo(
            Kind.WORK_QUEUED,
            "workqueue:workqueue_queue_work, the fallback for irqfd_wakeup and a resignal",
            {"device": _NESTED, "link": "struct work_struct *", "value": "Work"},
        ),
        KindInfo(
            Kind.WORK_STARTED,
            "workqueue:workqueue_execute_start, the fallback for irqfd_inject and virqfd_inject",
            {"link": "struct work_struct *", "value": "Work"},
        ),
        KindInfo(Kind.QEMU_INTERRUPT, "vfio_intx_interrupt", dict(_QEMU)),
        KindInfo(Kind.QEMU_EOI, "vfio_intx_eoi, the calls that found an interrupt pending", dict(_QEMU)),
        KindInfo(Kind.QEMU_ENABLE, "vfio_intx_enable", dict(_QEMU)),
        KindInfo(Kind.QEMU_DISABLE, "vfio_intx_disable", dict(_QEMU)),
        KindInfo(Kind.QEMU_ENABLE_KVM, "vfio_intx_enable_kvm (its guards may still refuse)", dict(_QEMU)),
        KindInfo(Kind.QEMU_DISABLE_KVM, "vfio_intx_disable_kvm", dict(_QEMU)),
        KindInfo(Kind.QEMU_UPDATE, "vfio_intx_update", dict(_QEMU)),
        KindInfo(
            Kind.QEMU_REGION_READ,
            "vfio_region_read: a trapped BAR read (--bar count: the first access after an interrupt)",
            {**_REGION, "value": "size in bytes", "arg0": "offset"},
        ),
        KindInfo(
            Kind.QEMU_REGION_WRITE,
            "vfio_region_write: a trapped BAR write (--bar count: the first access after an interrupt)",
            {**_REGION, "value": "size in bytes", "arg0": "offset", "arg1": "data"},
        ),
        KindInfo(
            Kind.QEMU_REGION_COUNT,
            "trapped BAR accesses of a device since its previous QEMU_REGION_COUNT or QEMU_INTERRUPT",
            {"device": "VFIODevice *", "arg0": "reads", "arg1": "writes"},
        ),
        KindInfo(
            Kind.QEMU_REGION_OFFSETS,
            "trapped BAR accesses at one offset since its previous QEMU_REGION_OFFSETS",
            {**_REGION, "value": "0 reads, 1 writes", "arg0": "offset", "arg1": "count"},
        ),
        KindInfo(
            Kind.QEMU_MMAPS,
            "vfio_region_mmaps_set_enabled",
            {**_REGION, "value": "1 mapped into the guest, 0 trapped"},
        ),
        KindInfo(Kind.QEMU_RESAMPLE_NOTIFY, "kvm_resample_fd_notify (split irqchip)", {"arg0": "gsi"}),
        KindInfo(
            Kind.LOST,
            "events that a probe could not deliver",
            {"aux": "their Kind, 0 unknown", "arg0": "ts after which they were lost", "arg1": "count"},
        ),
        KindInfo(Kind.PROBE, "a probe was attached or went", {"aux": "row of the probe table", "value": "1, 0"}),
        KindInfo(
            Kind.DEVICE,
            "a vfio device was seen for the first time, or again after its INTx was set up anew",
            {
                "device": _VDEV,
                "aux": "row of the device table",
                "arg0": "PCI address: domain << 16 | bus << 8 | devfn; all ones: not known",
                "arg1": "host irq, 0 not known",
                "value": "1 seen, 0 gone",
            },
        ),
        KindInfo(
            Kind.VM,
            "a virtual machine appeared or went",
            {"vm": "struct kvm *", "aux": "row of the VM table", "value": "1 appeared, 0 gone"},
        ),
    )
}

assert set(KINDS) == set(Kind)

STREAM_KINDS = frozenset({Kind.LOST, Kind.PROBE, Kind.DEVICE, Kind.VM})
"""Kinds that say something about the recording itself rather than about an interrupt."""


def format_address(packed: int) -> str:
    """Write a packed PCI address (domain << 16 | bus << 8 | devfn) as `0000:01:00.0`."""
    return f"{packed >> 16:04x}:{packed >> 8 & 0xFF:02x}:{packed >> 3 & 0x1F:02x}.{packed & 7}"


def parse_address(bdf: str) -> int:
    """Pack a PCI address such as `0000:01:00.0` or `01:00.0`.

    Raises:
        ValueError: it is not a PCI address.
    """
    head, sep, function = bdf.strip().rpartition(".")
    parts = head.split(":")
    if not sep or len(parts) not in (2, 3):
        raise ValueError(f"{bdf!r} is not a PCI address such as 0000:01:00.0")
    domain, bus, slot = (int(part, 16) for part in (["0", *parts] if len(parts) == 2 else parts))
    number = int(function, 16)
    if not (0 <= domain < 1 << 32 and 0 <= bus < 256 and 0 <= slot < 32 and 0 <= number < 8):
        raise ValueError(f"{bdf!r} is not a PCI address such as 0000:01:00.0")
    return domain << 16 | bus << 8 | slot << 3 | number


_C_TYPES = {"<u8": "unsigned long long", "<u4": "unsigned int", "<i4": "int", "<u2": "unsigned short"}


def c_header() -> str:
    """Make the C declarations of the kinds, the flags and the record, for the probes in `bpf/`."""
    lines = [f"#define KIND_{kind.name} {int(kind)}" for kind in Kind]
    lines += [f"#define FLAG_{flag.name} {int(flag)}u" for flag in Flag]
    lines += [f"#define WORK_{work.name} {int(work)}" for work in Work]
    lines.append("struct record {")
    for name in RECORD.names or ():
        lines.append(f"  {_C_TYPES[RECORD[name].str]} {name};")
    lines.append("};")
    return "\n".join(lines) + "\n"


def arrow_schema(metadata: dict[bytes, bytes] | None = None) -> pa.Schema:
    """Make the Arrow schema of the record: one non-null column per field, in the record's order."""
    import pyarrow as pa

    columns = [pa.field(name, pa.from_numpy_dtype(RECORD[name]), nullable=False) for name in RECORD.names or ()]
    return pa.schema(columns, metadata=metadata)


def describe() -> str:
    """Write the table of kinds as text, one kind a paragraph."""
    paragraphs = []
    for info in KINDS.values():
        rows = [f"{info.kind.name} ({int(info.kind)}): {info.source}"]
        rows += [f"    {name}: {text}" for name, text in info.fields.items()]
        paragraphs.append("\n".join(rows))
    return "\n".join(paragraphs) + "\n"
