"""The probe catalogue: what is watched in the kernel, by which function, and what stands in for it where it is missing.

Each difference between kernels is a line here, chosen by feature (a symbol, a structure member), never by version.
The numbers P1 to P17 are those of the project's notes on the kernel path.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from intxtrace.events import Kind

RETURN = -1
"""In `Call.arguments`: the function's return value."""


@dataclass(frozen=True)
class Call:
    """A call of an on_*() function of bpf/intxtrace.c with some of the probed function's arguments."""

    function: str
    arguments: tuple[int, ...] = ()
    constants: tuple[int, ...] = ()


@dataclass(frozen=True)
class Hook:
    """One place in the kernel and what to call there."""

    target: str
    call: Call
    where: str = "entry"
    """`entry` or `exit` of the function `target`, or `tracepoint` (a raw tracepoint of that name)."""


@dataclass(frozen=True)
class Spec:
    """One probe of the catalogue."""

    name: str
    number: str
    kinds: tuple[Kind, ...]
    hooks: tuple[Hook, ...]
    fallback: tuple[Hook, ...] = ()
    unless: str = ""
    """A function whose presence makes this probe needless (no row in the probe table then)."""
    optional: str = ""
    """Why its absence on some kernels is normal: what is said in place of an alarm."""
    needs: tuple[str, ...] = field(default=())
    """`structure.member` offsets without which it cannot work."""


def _entry(target: str, function: str, *arguments: int, constants: tuple[int, ...] = ()) -> Hook:
    return Hook(target, Call(function, arguments, constants))


def _exit(target: str, function: str, *arguments: int) -> Hook:
    return Hook(target, Call(function, arguments), "exit")


def _tracepoint(target: str, function: str, *arguments: int) -> Hook:
    return Hook(target, Call(function, arguments), "tracepoint")


_DEVICE = ("vfio_pci_core_device.pdev", "pci_dev.bus", "pci_dev.devfn", "pci_bus.number")
_IRQFD = tuple(
    f"kvm_kernel_irqfd.{member}" for member in ("kvm", "wait", "gsi", "inject", "resampler", "resamplefd", "eventfd")
)
_VIRQFD = tuple(f"virqfd.{member}" for member in ("opaque", "eventfd", "wait", "inject", "handler"))
_FD = (
    "task_struct.files",
    "files_struct.fdt",
    "fdtable.fd",
    "fdtable.max_fds",
    "file.private_data",
)

CATALOGUE: tuple[Spec, ...] = (
    Spec(
        "vfio_intx_handler",
        "P1",
        (Kind.HANDLER_ENTRY, Kind.HANDLER_EXIT, Kind.DEVICE),
        (
            _entry("vfio_intx_handler", "on_handler_entry", 0, 1),
            _exit("vfio_intx_handler", "on_handler_exit", RETURN),
        ),
        fallback=(
            _tracepoint("irq_handler_entry", "on_irq_handler_entry", 0, 1),
            # With threadirqs the primary handler's return says nothing of vfio_intx_handler's (kernel/irq/manage.c).
            _tracepoint("irq_handler_exit", "on_irq_handler_exit", 0, 1, 2),
        ),
        needs=_DEVICE,
    ),
    # 6.8 made eventfd_signal a static inline on top of eventfd_signal_mask (include/linux/eventfd.h); before, it
    # tail-called that one, so only one of the two may be watched.
    Spec(
        "eventfd_signal",
        "P2",
        (Kind.EVENTFD_SIGNAL,),
        (_entry("eventfd_signal", "on_eventfd_signal", 0),),
        unless="!eventfd_signal",
        needs=("eventfd_ctx.id",),
    ),
    Spec(
        "eventfd_signal_mask",
        "P2",
        (Kind.EVENTFD_SIGNAL,),
        (_entry("eventfd_signal_mask", "on_eventfd_signal", 0),),
        unless="eventfd_signal",
        needs=("eventfd_ctx.id",),
    ),
    Spec(
        "irqfd_wakeup",
        "P3",
        (Kind.IRQFD_WAKEUP,),
        (_entry("irqfd_wakeup", "on_irqfd_wakeup", 0, 3),),
        fallback=(_tracepoint("workqueue_queue_work", "on_queue_work_irqfd", 2),),
        needs=_IRQFD,
    ),
    Spec(
        "irqfd_inject",
        "P4",
        (Kind.IRQFD_INJECT,),
        (_entry("irqfd_inject", "on_irqfd_inject", 0),),
        fallback=(_tracepoint("workqueue_execute_start", "on_start_work_irqfd", 0),),
        needs=_IRQFD,
    ),
    Spec(
        "kvm_set_irq",
        "P5",
        (Kind.KVM_SET_IRQ, Kind.KVM_SET_IRQ_EXIT),
        (
            _entry("kvm_set_irq", "on_kvm_set_irq_entry", 0, 1, 2, 3),
            _exit("kvm_set_irq", "on_kvm_set_irq_exit", RETURN),
        ),
        fallback=(_tracepoint("kvm_set_irq", "on_tp_kvm_set_irq", 0, 1, 2),),
    ),
    Spec(
        "kvm_notify_acked_irq",
        "P6",
        (Kind.KVM_ACK,),
        (_entry("kvm_notify_acked_irq", "on_kvm_ack", 0, 1, 2),),
        fallback=(_tracepoint("kvm_ack_irq", "on_tp_kvm_ack_irq", 0, 1),),
    ),
    Spec(
        "irqfd_resampler_ack",
        "P7",
        (Kind.RESAMPLER_ACK,),
        (_entry("irqfd_resampler_ack", "on_resampler_ack", 0),),
        needs=(
            "kvm_kernel_irqfd_resampler.notifier",
            "kvm_kernel_irqfd_resampler.kvm",
            "kvm_irq_ack_notifier.gsi",
        ),
    ),
    Spec(
        "virqfd_wakeup",
        "P8",
        (Kind.VIRQFD_WAKEUP,),
        (_entry("virqfd_wakeup", "on_virqfd_wakeup", 0, 3),),
        needs=_VIRQFD,
    ),
    Spec(
        "vfio_pci_intx_unmask_handler",
        "P9",
        (Kind.UNMASK_ENTRY, Kind.UNMASK_EXIT),
        (
            _entry("vfio_pci_intx_unmask_handler", "on_unmask_entry", 0),
            _exit("vfio_pci_intx_unmask_handler", "on_unmask_exit", RETURN),
        ),
        needs=_DEVICE,
    ),
    Spec(
        "virqfd_inject",
        "P10",
        (Kind.VIRQFD_INJECT,),
        (_entry("virqfd_inject", "on_virqfd_inject_entry", 0), _exit("virqfd_inject", "on_virqfd_inject_exit")),
        fallback=(_tracepoint("workqueue_execute_start", "on_start_work_virqfd", 0),),
        needs=_VIRQFD,
    ),
    Spec(
        "pci_check_and_unmask_intx",
        "P11",
        (Kind.CHECKED_UNMASK,),
        (_exit("pci_check_and_unmask_intx", "on_checked_unmask", RETURN),),
    ),
    Spec(
        "vfio_pci_set_irqs_ioctl",
        "P12, P17",
        (Kind.SET_IRQS_ENTRY, Kind.SET_IRQS_EXIT),
        (
            _entry("vfio_pci_set_irqs_ioctl", "on_set_irqs_entry", 0, 1, 2, 3, 4, 5),
            _exit("vfio_pci_set_irqs_ioctl", "on_set_irqs_exit", RETURN),
        ),
        needs=_DEVICE + _FD,
    ),
    Spec(
        "kvm_irqfd",
        "P13, P17",
        (Kind.KVM_IRQFD_ENTRY, Kind.KVM_IRQFD_EXIT),
        (_entry("kvm_irqfd", "on_kvm_irqfd_entry", 0, 1), _exit("kvm_irqfd", "on_kvm_irqfd_exit", RETURN)),
        needs=_FD,
    ),
    Spec(
        "vfio_pci_intx_mask",
        "P14",
        (Kind.MASK,),
        (_entry("vfio_pci_intx_mask", "on_mask", 0, constants=(0,)),),
        needs=_DEVICE,
    ),
    Spec(
        "__vfio_pci_intx_mask",
        "P14",
        (Kind.MASK,),
        (_entry("__vfio_pci_intx_mask", "on_mask", 0, constants=(1,)),),
        optional="kernels before the INTx rework of 2024 have vfio_pci_intx_mask alone",
        needs=_DEVICE,
    ),
    Spec(
        "vfio_pci_intx_unmask",
        "P14",
        (Kind.CONFIG_UNMASK,),
        (
            _entry("vfio_pci_intx_unmask", "on_config_unmask_entry", 0),
            _exit("vfio_pci_intx_unmask", "on_config_unmask_exit"),
        ),
        needs=_DEVICE,
    ),
    Spec(
        "kvm_vm_ioctl_irq_line",
        "P15",
        (Kind.KVM_IRQ_LINE,),
        (_entry("kvm_vm_ioctl_irq_line", "on_kvm_irq_line", 0, 1),),
    ),
    Spec(
        "eventfd_write",
        "P15",
        (Kind.EVENTFD_WRITE,),
        (_entry("eventfd_write", "on_eventfd_write", 0),),
        needs=("file.private_data", "eventfd_ctx.id"),
    ),
    Spec(
        "kvm_notify_irqfd_resampler",
        "P15",
        (Kind.RESAMPLER_NOTIFY,),
        (_entry("kvm_notify_irqfd_resampler", "on_resampler_notify", 0, 1, 2),),
        optional="it came with Linux 6.4 (kvm_notify_irqfd_resampler)",
    ),
    Spec(
        "enable_irq",
        "P16",
        (Kind.ENABLE_IRQ,),
        (_entry("enable_irq", "on_enable_irq", 0),),
    ),
    Spec(
        "eventfd_read",
        "P18",
        (Kind.EVENTFD_READ,),
        (_entry("eventfd_read", "on_eventfd_read_entry", 0), _exit("eventfd_read", "on_eventfd_read_exit", RETURN)),
        needs=("kiocb.ki_filp", "file.private_data", "eventfd_ctx.id"),
    ),
    Spec("kvm:kvm_eoi", "T", (Kind.KVM_EOI,), (_tracepoint("kvm_eoi", "on_tp_kvm_eoi", 1),)),
    Spec(
        "kvm:kvm_apic_accept_irq",
        "T",
        (Kind.APIC_ACCEPT,),
        (_tracepoint("kvm_apic_accept_irq", "on_tp_apic_accept", 0, 3),),
    ),
    Spec(
        "kvm:kvm_ioapic_set_irq",
        "T",
        (Kind.IOAPIC_SET_IRQ,),
        (_tracepoint("kvm_ioapic_set_irq", "on_tp_ioapic_set_irq", 0, 1, 2),),
    ),
    Spec(
        "kvm:kvm_pic_set_irq",
        "T",
        (Kind.PIC_SET_IRQ,),
        (_tracepoint("kvm_pic_set_irq", "on_tp_pic_set_irq", 0, 1, 3, 4),),
    ),
    Spec(
        "kvm:kvm_msi_set_irq",
        "T",
        (Kind.MSI_SET_IRQ,),
        (_tracepoint("kvm_msi_set_irq", "on_tp_msi_set_irq", 0, 1),),
    ),
    Spec(
        "kvm:kvm_userspace_exit",
        "T",
        (Kind.USERSPACE_EXIT,),
        (_tracepoint("kvm_userspace_exit", "on_tp_userspace_exit", 0),),
    ),
)

OFFSETS: dict[str, tuple[tuple[str, str], ...]] = {
    # Name in C: the structure.member to ask BTF for, older names of it behind.
    "vfio_pci_core_device_pdev": (("vfio_pci_core_device", "pdev"), ("vfio_pci_device", "pdev")),
    "pci_dev_bus": (("pci_dev", "bus"),),
    "pci_dev_devfn": (("pci_dev", "devfn"),),
    "pci_bus_number": (("pci_bus", "number"),),
    "pci_bus_sysdata": (("pci_bus", "sysdata"),),
    "pci_bus_domain_nr": (("pci_bus", "domain_nr"),),
    "pci_sysdata_domain": (("pci_sysdata", "domain"),),
    # vfio_intx_handler's dev_id is a vfio_pci_irq_ctx since 6.10 (071e7310e612), which gave it the member vdev.
    "vfio_pci_irq_ctx_vdev": (("vfio_pci_irq_ctx", "vdev"),),
    "kvm_userspace_pid": (("kvm", "userspace_pid"),),
    "kvm_kernel_irqfd_kvm": (("kvm_kernel_irqfd", "kvm"),),
    "kvm_kernel_irqfd_wait": (("kvm_kernel_irqfd", "wait"),),
    "kvm_kernel_irqfd_gsi": (("kvm_kernel_irqfd", "gsi"),),
    "kvm_kernel_irqfd_inject": (("kvm_kernel_irqfd", "inject"),),
    "kvm_kernel_irqfd_resampler": (("kvm_kernel_irqfd", "resampler"),),
    "kvm_kernel_irqfd_resamplefd": (("kvm_kernel_irqfd", "resamplefd"),),
    "kvm_kernel_irqfd_eventfd": (("kvm_kernel_irqfd", "eventfd"),),
    "kvm_kernel_irqfd_resampler_notifier": (("kvm_kernel_irqfd_resampler", "notifier"),),
    "kvm_kernel_irqfd_resampler_kvm": (("kvm_kernel_irqfd_resampler", "kvm"),),
    "kvm_irq_ack_notifier_gsi": (("kvm_irq_ack_notifier", "gsi"),),
    "virqfd_opaque": (("virqfd", "opaque"),),
    "virqfd_eventfd": (("virqfd", "eventfd"),),
    "virqfd_wait": (("virqfd", "wait"),),
    "virqfd_inject": (("virqfd", "inject"),),
    "virqfd_handler": (("virqfd", "handler"),),
    "eventfd_ctx_id": (("eventfd_ctx", "id"),),
    "file_private_data": (("file", "private_data"),),
    "kiocb_ki_filp": (("kiocb", "ki_filp"),),
    "task_struct_files": (("task_struct", "files"),),
    "files_struct_fdt": (("files_struct", "fdt"),),
    "fdtable_fd": (("fdtable", "fd"),),
    "fdtable_max_fds": (("fdtable", "max_fds"),),
    "irqaction_name": (("irqaction", "name"),),
    "irqaction_dev_id": (("irqaction", "dev_id"),),
    "work_struct_func": (("work_struct", "func"),),
}

ADDRESSES = ("vfio_pci_intx_unmask_handler", "irqfd_inject", "virqfd_inject")
"""Functions whose address the probes compare function pointers with."""


@dataclass(frozen=True)
class QemuSpec:
    """One probe at the entry of a QEMU function."""

    name: str
    kinds: tuple[Kind, ...]
    call: Call


def _pci(name: str, kind: Kind) -> QemuSpec:
    return QemuSpec(name, (kind,), Call("qemu_pci_event", (0,), (int(kind),)))


QEMU_CATALOGUE: tuple[QemuSpec, ...] = (
    QemuSpec("vfio_intx_interrupt", (Kind.QEMU_INTERRUPT,), Call("on_qemu_interrupt", (0,))),
    QemuSpec("vfio_intx_eoi", (Kind.QEMU_EOI,), Call("on_qemu_eoi", (0,))),
    _pci("vfio_intx_enable", Kind.QEMU_ENABLE),
    _pci("vfio_intx_disable", Kind.QEMU_DISABLE),
    _pci("vfio_intx_enable_kvm", Kind.QEMU_ENABLE_KVM),
    _pci("vfio_intx_disable_kvm", Kind.QEMU_DISABLE_KVM),
    _pci("vfio_intx_update", Kind.QEMU_UPDATE),
    # vfio_region_read(region, addr, size), vfio_region_write(region, addr, data, size), QEMU 4.0 to 11.1.
    QemuSpec(
        "vfio_region_read",
        (Kind.QEMU_REGION_READ, Kind.QEMU_REGION_COUNT, Kind.QEMU_REGION_OFFSETS),
        Call("on_qemu_region_read", (0, 1, 2)),
    ),
    QemuSpec(
        "vfio_region_write",
        (Kind.QEMU_REGION_WRITE, Kind.QEMU_REGION_COUNT, Kind.QEMU_REGION_OFFSETS),
        Call("on_qemu_region_write", (0, 1, 2, 3)),
    ),
    QemuSpec("vfio_region_mmaps_set_enabled", (Kind.QEMU_MMAPS,), Call("on_qemu_mmaps", (0, 1))),
    QemuSpec("kvm_resample_fd_notify", (Kind.QEMU_RESAMPLE_NOTIFY,), Call("on_qemu_resample_notify", (0,))),
)
