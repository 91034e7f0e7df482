"""The catalogue's probes in the importer's dialect: names, and where each argument is, for ftrace and for bpftrace."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from intxtrace.capture.catalogue import CATALOGUE, QEMU_CATALOGUE, RETURN, Hook, Spec
from intxtrace.capture.qemu_functions import QemuBinary, QemuFunction
from intxtrace.importers.ftrace_dialect import SOURCES

GROUPS = {"tracefs": "intx", "trace-cmd": "intx_tracecmd", "perf": "intx_perf"}
"""Of whose events the group is that a recipe makes: recordings by several tools may run at once."""

# Registers of arguments 0 to 4, x86-64 System V ABI.
_REGISTERS = ("%di", "%si", "%dx", "%cx", "%r8")
_CASTS = {"s32": "int32", "u32": "uint32", "x32": "uint32", "u8": "uint8", "x64": "uint64", "u64": "uint64"}

Members = dict[str, int]
"""`structure.member` → offset in bytes."""

MEASURED: Members = {
    "eventfd_ctx.id": 44,
    "kvm_irq_ack_notifier.gsi": 16,
    "kvm_kernel_irqfd.kvm": 0,
    "kvm_kernel_irqfd.wait": 8,
    "kvm_kernel_irqfd.gsi": 116,
    "kvm_kernel_irqfd.inject": 120,
    "kvm_kernel_irqfd.resampler": 152,
    "kvm_kernel_irqfd.resamplefd": 160,
    "kvm_kernel_irqfd.eventfd": 184,
    "kvm_kernel_irqfd_resampler.kvm": 0,
    "kvm_kernel_irqfd_resampler.notifier": 24,
    "virqfd.opaque": 0,
    "virqfd.eventfd": 8,
    "virqfd.inject": 40,
    "virqfd.wait": 72,
}
"""What 24 distribution kernels from 4.15 to 6.18 have (x86-64); 7.0 moved most of kvm_kernel_irqfd. Type information of
the kernel itself is better, where there is any."""


@dataclass(frozen=True)
class Arg:
    """One argument of an event: an argument of the function (RETURN: what it returns), or memory that one points to."""

    name: str
    argument: int
    kind: str = "x64"
    """As ftrace's kprobe_events name types."""
    member: str = ""
    """`structure.member` that is read …"""
    pointee: str = ""
    """… where the pointer points to this member of the same structure, not to its beginning."""
    at: int | None = None
    """Or: bytes after the pointer."""

    def offset(self, members: Members) -> int | None:
        """Say where it is in memory after the pointer; None for the argument itself."""
        if self.member:
            return members[self.member] - (members[self.pointee] if self.pointee else 0)
        return self.at

    def for_ftrace(self, members: Members) -> str:
        """Write it as kprobe_events take it (Documentation/trace/kprobetrace.rst)."""
        if self.argument == RETURN:
            return f"{self.name}=$retval:{self.kind}"
        offset, register = self.offset(members), _REGISTERS[self.argument]
        return f"{self.name}={register if offset is None else f'{offset:+d}({register})'}:{self.kind}"

    def for_bpftrace(self, members: Members) -> str:
        """Write it as an expression of bpftrace's language, whose type is that of `kind`."""
        kind, source = _CASTS[self.kind], "retval" if self.argument == RETURN else f"arg{self.argument}"
        offset = None if self.argument == RETURN else self.offset(members)
        return f"({kind}){source}" if offset is None else f"*({kind} *)({source} {offset:+d})"


@dataclass(frozen=True)
class KernelProbe:
    """One probe of the kernel: the event that it makes, and a hook of the catalogue."""

    event: str
    spec: Spec
    hook: Hook
    args: tuple[Arg, ...]

    @property
    def fallback(self) -> tuple[str, ...]:
        """The tracepoints that stand in for it, `group:name`, as far as the importer reads them."""
        if not self.spec.fallback:
            return ()
        place = min(self.spec.hooks.index(self.hook), len(self.spec.fallback) - 1)
        return tuple(t for t in (TRACEPOINTS.get(self.spec.fallback[place].target),) if t)


TRACEPOINTS = {source.name: source.target for source in SOURCES if ":" in source.target}
"""Tracepoints that the importer reads: name → `group:name`."""


def _args(*names: str | tuple[str, str], first: int = 0) -> tuple[Arg, ...]:
    """Name the function's arguments from `first` on."""
    pairs = [(name, "x64") if isinstance(name, str) else name for name in names]
    return tuple(Arg(name, number, kind) for number, (name, kind) in enumerate(pairs, first))


def _irqfd(pointee: str) -> tuple[Arg, ...]:
    kinds = {"gsi": "s32"}
    return tuple(
        Arg(name, 0, kinds.get(name, "x64"), f"kvm_kernel_irqfd.{name}", f"kvm_kernel_irqfd.{pointee}")
        for name in ("kvm", "gsi", "resampler", "resamplefd", "eventfd")
    )


def _virqfd(pointee: str) -> tuple[Arg, ...]:
    return (
        Arg("vdev", 0, "x64", "virqfd.opaque", f"virqfd.{pointee}"),
        Arg("eventfd", 0, "x64", "virqfd.eventfd", f"virqfd.{pointee}"),
    )


def _probe(event: str, function: str, *args: Arg, where: str = "entry") -> KernelProbe:
    for spec in CATALOGUE:
        for hook in spec.hooks:
            if hook.target == function and hook.where == where:
                return KernelProbe(event, spec, hook, args)
    raise LookupError(f"{function} ({where}) is not in the catalogue")


_SIGNAL = (*_args("ctx"), Arg("id", 0, "s32", "eventfd_ctx.id"))
_RESAMPLER = "kvm_kernel_irqfd_resampler"

KERNEL: tuple[KernelProbe, ...] = (
    _probe(
        "handler",
        "vfio_intx_handler",
        *_args(("irq", "s32"), "dev"),
        Arg("w0", 1, "x64", at=0),
        Arg("w8", 1, "x64", at=8),
    ),
    _probe("handler_ret", "vfio_intx_handler", Arg("ret", RETURN, "s32"), where="exit"),
    _probe("efd_signal", "eventfd_signal", *_SIGNAL),
    _probe("efd_signal", "eventfd_signal_mask", *_SIGNAL),
    _probe("irqfd_wakeup", "irqfd_wakeup", Arg("wait", 0), Arg("key", 3), *_irqfd("wait")),
    _probe("irqfd_inject", "irqfd_inject", Arg("work", 0), *_irqfd("inject")),
    _probe("set_irq", "kvm_set_irq", *_args("kvm", ("src", "s32"), ("gsi", "u32"), ("level", "s32"))),
    _probe("acked_irq", "kvm_notify_acked_irq", *_args("kvm", ("irqchip", "u32"), ("pin", "u32"))),
    _probe(
        "resampler_ack",
        "irqfd_resampler_ack",
        Arg("kian", 0),
        Arg("kvm", 0, "x64", f"{_RESAMPLER}.kvm", f"{_RESAMPLER}.notifier"),
        Arg("gsi", 0, "s32", "kvm_irq_ack_notifier.gsi"),
    ),
    _probe("notify_resampler", "kvm_notify_irqfd_resampler", *_args("kvm", ("irqchip", "u32"), ("pin", "u32"))),
    _probe("virqfd_wakeup", "virqfd_wakeup", Arg("wait", 0), Arg("key", 3), *_virqfd("wait")),
    _probe("unmask", "vfio_pci_intx_unmask_handler", Arg("vdev", 0)),
    _probe("unmask_ret", "vfio_pci_intx_unmask_handler", Arg("ret", RETURN, "s32"), where="exit"),
    _probe("chk_unmask_ret", "pci_check_and_unmask_intx", Arg("ret", RETURN, "u8"), where="exit"),
    _probe("virqfd_inject", "virqfd_inject", Arg("work", 0), *_virqfd("inject")),
    _probe("mask", "vfio_pci_intx_mask", Arg("vdev", 0)),
    _probe("mask_locked", "__vfio_pci_intx_mask", Arg("vdev", 0)),
    _probe("unmask_fn", "vfio_pci_intx_unmask", Arg("vdev", 0)),
    _probe(
        "set_irqs",
        "vfio_pci_set_irqs_ioctl",
        *_args("vdev", ("flags", "x32"), ("index", "u32"), ("start", "u32"), ("count", "u32")),
    ),
    # struct kvm_irqfd of include/uapi/linux/kvm.h begins with fd, gsi, flags, resamplefd.
    _probe(
        "kvm_irqfd",
        "kvm_irqfd",
        Arg("kvm", 0),
        Arg("fd", 1, "s32", at=0),
        Arg("gsi", 1, "u32", at=4),
        Arg("flags", 1, "x32", at=8),
        Arg("resamplefd", 1, "s32", at=12),
    ),
    _probe("irq_line", "kvm_vm_ioctl_irq_line", Arg("kvm", 0)),
    _probe("efd_write", "eventfd_write", Arg("file", 0)),
)

_TELLING = (
    "irq_handler_entry",
    "kvm_eoi",
    "kvm_apic_accept_irq",
    "kvm_apicv_accept_irq",
    "kvm_msi_set_irq",
    "kvm_userspace_exit",
)
ALWAYS = tuple(TRACEPOINTS[name] for name in _TELLING)
"""Tracepoints that tell what no probe does: the device's address, EOIs, deliveries."""

FILTERS = {
    "irq:irq_handler_entry": 'name ~ "vfio-intx*"',
    "kvm:kvm_userspace_exit": "reason == 26",  # KVM_EXIT_IOAPIC_EOI
}

QEMU_EVENTS = {
    "qemu_interrupt": "vfio_intx_interrupt",
    "qemu_eoi": "vfio_intx_eoi",
    "qemu_region_read": "vfio_region_read",
    "qemu_region_write": "vfio_region_write",
    "qemu_mmaps": "vfio_region_mmaps_set_enabled",
    "qemu_resample_notify": "kvm_resample_fd_notify",
}
"""Event → function, a name of the catalogue."""

assert {spec.name for spec in QEMU_CATALOGUE} >= set(QEMU_EVENTS.values())

_REGION_NR = 0x30
"""VFIORegion.nr, QEMU 4.0 to 11.1, as in bpf/intxtrace.c."""

_REGION_MEM = 0x10
"""VFIORegion.mem: NULL where the device has no such BAR, and nothing is done."""

_OWN: dict[str, tuple[Arg, ...]] = {
    # vfio_region_read(region, addr, size), vfio_region_write(region, addr, data, size), as in the catalogue.
    "qemu_region_read": (Arg("addr", 1), Arg("size", 2, "u32"), Arg("nr", 0, "u8", at=_REGION_NR)),
    "qemu_region_write": (Arg("addr", 1), Arg("size", 3, "u32"), Arg("nr", 0, "u8", at=_REGION_NR), Arg("data", 2)),
    "qemu_mmaps": (Arg("en", 1, "u8"), Arg("nr", 0, "u8", at=_REGION_NR), Arg("mem", 0, "x64", at=_REGION_MEM)),
    "qemu_resample_notify": (Arg("gsi", 0, "s32"),),
}


@dataclass(frozen=True)
class QemuProbe:
    """One probe at the entry of a function of one QEMU binary."""

    event: str
    function: QemuFunction
    name_path: tuple[int, ...]
    """Offsets to follow from argument 0 to the device's name; empty: the function has no device."""
    args: tuple[Arg, ...]

    @property
    def condition(self) -> Arg | None:
        """An argument that must not be 0, or the call does nothing."""
        if self.function.filter_offset is not None:
            return Arg("pending", 0, "u8", at=self.function.filter_offset)
        return next((arg for arg in self.args if arg.name == "mem"), None)

    def for_ftrace(self) -> str:
        """Write its arguments as uprobe_events take them (Documentation/trace/uprobetracer.rst)."""
        words = []
        if self.name_path:
            place = "%di"
            for offset in self.name_path:
                place = f"{offset:+d}({place})"
            words.append(f"name=+0({place}):string")
        arguments = dict.fromkeys([*self.args, *([self.condition] if self.condition else [])])
        return " ".join([*words, *(arg.for_ftrace({}) for arg in arguments)])

    def name_for_bpftrace(self) -> str:
        """Write the device's name as an expression of bpftrace's language, or nothing."""
        place = "arg0"
        for offset in self.name_path:
            place = f"*(uint64 *)({place} {offset:+d})"
        return f"str({place})" if self.name_path else ""


def qemu_probes(binary: QemuBinary) -> tuple[list[QemuProbe], dict[str, str]]:
    """Choose the probes of a QEMU binary, and say why the others are not possible (event → reason)."""
    probes: list[QemuProbe] = []
    missing: dict[str, str] = {}
    for event, name in QEMU_EVENTS.items():
        function = binary.functions.get(name)
        if function is None:
            missing[event] = binary.missing.get(name, "it was not found")
            continue
        path = _NAME_PATHS[function.argument](binary) if function.argument in _NAME_PATHS else None
        if path is None:
            missing[event] = "where it keeps the device's name is not known"
            continue
        probes.append(QemuProbe(event, function, path, _OWN.get(event, ())))
    return probes, missing


def _of_pci_device(binary: QemuBinary) -> tuple[int, ...] | None:
    if binary.name_offset is None or binary.vbasedev_offset is None:
        return None
    return (binary.vbasedev_offset + binary.name_offset,)


_NAME_PATHS: dict[str | None, Callable[[QemuBinary], tuple[int, ...] | None]] = {
    "VFIOPCIDevice": _of_pci_device,
    "VFIODevice": lambda b: None if b.name_offset is None else (b.name_offset,),
    "VFIORegion": lambda b: None if b.name_offset is None else (0, b.name_offset),
    "gsi": lambda b: (),
}
"""A VFIORegion begins with its VFIODevice *, which is what bpf/intxtrace.c reads too."""
