"""A small language for traces: a few readable lines make the events of an interrupt, from real interleavings.

```
t = Trace()
nic = t.device(t.vm())
t.kernel_interrupt(nic, at=1000)
rows = t.reconstruct().interrupts
```

Every step takes a microsecond (`Trace.STEP`), so instants in tests are easy to say. What no method says is said with
`emit`. The orders are those of the recordings in the reference: handler, signal and irqfd_wakeup nested on one CPU; the
injection in a kworker; acknowledgement, resamplefd and unmask in the vCPU's thread.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from intxtrace.events import EPOLLIN, RECORD, STREAM_KINDS, Flag, Kind, SetIrqs, parse_address
from intxtrace.reconstruct import Reconstructor, Result
from intxtrace.trace import tables

COUNT_KINDS = (Kind.QEMU_REGION_COUNT, Kind.QEMU_REGION_OFFSETS)
"""What takes the place of one event per trapped access, where those are counted in the kernel."""

ALL_KINDS = tuple(kind for kind in Kind if kind not in STREAM_KINDS and kind not in COUNT_KINDS)

TRIGGER_EVENTFD = SetIrqs.ACTION_TRIGGER | SetIrqs.DATA_EVENTFD  # 0x24
UNMASK_EVENTFD = SetIrqs.ACTION_UNMASK | SetIrqs.DATA_EVENTFD  # 0x14
MASK_NONE = SetIrqs.ACTION_MASK | SetIrqs.DATA_NONE  # 0x09
UNMASK_NONE = SetIrqs.ACTION_UNMASK | SetIrqs.DATA_NONE  # 0x11
TRIGGER_NONE = SetIrqs.ACTION_TRIGGER | SetIrqs.DATA_NONE  # 0x21


@dataclass(frozen=True)
class VmHandle:
    """A virtual machine of the trace."""

    id: int
    kvm: int
    pid: int
    main: int
    vcpu: int


@dataclass
class DeviceHandle:
    """A device of the trace, with the objects that belong to it."""

    id: int
    vm: VmHandle
    vdev: int
    trigger: int
    resample: int
    irqfd: int
    qemu: int
    gsi: int
    host_irq: int
    bdf: str


class Trace:
    """Collects events. `probes`: the kinds that this recording's probes can make (all of them)."""

    STEP = 1000
    STRIDE = 0x10000
    THREADS = 100

    def __init__(self, probes: tuple[Kind, ...] = ALL_KINDS) -> None:
        self.now = 1_000_000
        self.tables = tables.Tables(
            probes=[
                tables.Probe(row, name=kind.name.lower(), kinds=[kind.name], state="attached")
                for row, kind in enumerate(probes)
            ]
        )
        self._missing = set(ALL_KINDS) - set(probes)
        self._rows: list[dict[str, int]] = []

    # ---- objects

    def vm(self, name: str | None = None) -> VmHandle:
        """Start a VM."""
        row = len(self.tables.vms)
        pid = 1000 + row * self.THREADS
        vm = VmHandle(row, 0xFFFFC90000420000 + row * self.STRIDE, pid, pid, pid + 5)
        self.tables.vms.append(tables.Vm(row, pid=pid, name=name or f"vm{row}"))
        self.emit(Kind.VM, vm=vm.kvm, aux=row, value=1)
        return vm

    def device(self, vm: VmHandle, bdf: str = "0000:01:00.0", gsi: int = 21, host_irq: int = 20) -> DeviceHandle:
        """Announce a device of a VM."""
        row = len(self.tables.devices)
        at = row * self.STRIDE
        device = DeviceHandle(
            id=row,
            vm=vm,
            vdev=0xFFFF888101E80000 + at,
            trigger=0xFFFF888101E81000 + at,
            resample=0xFFFF888101E82000 + at,
            irqfd=0xFFFF888101E83000 + at,
            qemu=0x55A9E5600000 + at,
            gsi=gsi,
            host_irq=host_irq,
            bdf=bdf,
        )
        self.tables.devices.append(tables.Device(row, bdf=bdf, host_irq=host_irq, vm_pid=vm.pid))
        self.emit(
            Kind.DEVICE, device=device.vdev, aux=row, value=1, arg0=parse_address(bdf), arg1=host_irq, tgid=0, tid=0
        )
        return device

    # ---- events

    def emit(self, kind: Kind, **fields: int) -> None:
        """Add one event at the present instant, and step on; nothing if its probe is missing."""
        if kind not in self._missing:
            self._rows.append({"ts": self.now, "kind": int(kind), **{name: int(v) for name, v in fields.items()}})
        self.now += self.STEP

    def wait(self, ns: int) -> None:
        """Let time pass."""
        self.now += ns

    def _at(self, at: int | None) -> None:
        if at is not None:
            self.now = at

    def forget(self) -> None:
        """Drop what was emitted so far: the trace begins here."""
        self._rows.clear()

    def drop(self, kind: Kind) -> None:
        """Drop the last event of a kind."""
        del self._rows[max(i for i, row in enumerate(self._rows) if row["kind"] == kind)]

    def records(self) -> np.ndarray[Any, Any]:
        """Return the events as records."""
        records = np.zeros(len(self._rows), RECORD)
        for name in RECORD.names or ():
            records[name] = [row.get(name, 0) for row in self._rows]
        return records

    # ---- steps: the kernel

    def handler(
        self, d: DeviceHandle, *, at: int | None = None, claimed: bool = True, signal: bool = True, irqfd: str = ""
    ) -> None:
        """vfio_intx_handler runs; `irqfd` ("resample" or "msi" or "edge") takes the signal inside it."""
        self._at(at)
        inside = {"flags": Flag.IN_HANDLER, "device": d.vdev, "cpu": 1}
        self.emit(Kind.HANDLER_ENTRY, device=d.vdev, arg0=d.host_irq, cpu=1)
        if claimed and signal:
            self.emit(Kind.EVENTFD_SIGNAL, link=d.trigger, **inside)
            self.wakeup(d, irqfd, **inside)
        self.emit(Kind.HANDLER_EXIT, device=d.vdev, value=int(claimed), arg0=d.host_irq, cpu=1)

    def wakeup(self, d: DeviceHandle, irqfd: str, **inside: int) -> None:
        """irqfd_wakeup inside a signal."""
        if irqfd:
            self.emit(
                Kind.IRQFD_WAKEUP,
                link=d.irqfd,
                link2=d.resample if irqfd == "resample" else 0,
                vm=d.vm.kvm,
                value=EPOLLIN,
                arg0=d.gsi,
                arg1=d.trigger,
                **inside,
            )
        if irqfd == "msi":
            nested = {**inside, "flags": inside.get("flags", 0) | Flag.IN_IRQFD_WAKEUP}
            self.emit(Kind.MSI_SET_IRQ, vm=d.vm.kvm, value=64, **nested)
            self.emit(Kind.APIC_ACCEPT, vm=d.vm.kvm, value=64, arg0=d.gsi, **{**nested, "device": 0})

    def inject(self, d: DeviceHandle, *, returned: int = 1, irqfd: str = "resample") -> None:
        """The kworker runs irqfd_inject."""
        source = 1 if irqfd == "resample" else 0
        task = {"tgid": 2, "tid": d.vm.pid + 50}
        irq = {"vm": d.vm.kvm, "arg0": d.gsi, "arg1": source}
        self.emit(
            Kind.IRQFD_INJECT,
            link=d.irqfd,
            link2=d.resample if irqfd == "resample" else 0,
            vm=d.vm.kvm,
            arg0=d.gsi,
            arg1=d.trigger,
            **task,
        )
        self.emit(Kind.KVM_SET_IRQ, value=1, **irq, **task)
        self.emit(Kind.KVM_SET_IRQ_EXIT, value=returned, aux=1, **irq, **task)
        if irqfd == "edge":
            self.emit(Kind.KVM_SET_IRQ, value=0, **irq, **task)
            self.emit(Kind.KVM_SET_IRQ_EXIT, value=1, **irq, **task)

    def guest_eoi(self, d: DeviceHandle, *others: DeviceHandle, resample: bool = True) -> None:
        """The guest ends the interrupt; the resampler of the GSI signals the resamplefds of all these devices."""
        task = {"tgid": d.vm.pid, "tid": d.vm.vcpu}
        self.emit(Kind.KVM_ACK, vm=d.vm.kvm, arg0=d.gsi, arg1=2, **task)
        if resample:
            self.emit(Kind.RESAMPLER_ACK, vm=d.vm.kvm, link=d.irqfd, arg0=d.gsi, **task)
            self.emit(Kind.KVM_SET_IRQ, vm=d.vm.kvm, value=0, arg0=d.gsi, arg1=1, **task)
            self.emit(Kind.KVM_SET_IRQ_EXIT, vm=d.vm.kvm, value=1, arg0=d.gsi, arg1=1, **task)

    def resample_unmask(self, d: DeviceHandle, *, returned: int = 0, proof: bool = True) -> None:
        """The resampler signals the resamplefd, and vfio unmasks inside the signal."""
        task = {"tgid": d.vm.pid, "tid": d.vm.vcpu}
        self.emit(Kind.EVENTFD_SIGNAL, link=d.resample, flags=Flag.IN_RESAMPLER_ACK, **task)
        self.emit(Kind.VIRQFD_WAKEUP, device=d.vdev, link=d.resample, value=EPOLLIN, **task)
        self.unmask(d, returned=returned, proof=proof, **task)

    def unmask(self, d: DeviceHandle, *, returned: int = 0, proof: bool = True, **task: int) -> None:
        """vfio_pci_intx_unmask_handler; `proof`: it reached pci_check_and_unmask_intx."""
        self.emit(Kind.UNMASK_ENTRY, device=d.vdev, **task)
        if proof:
            self.emit(Kind.CHECKED_UNMASK, device=d.vdev, value=1 - returned, **task)
        self.emit(Kind.UNMASK_EXIT, device=d.vdev, value=returned, **task)

    def worker_signals(self, d: DeviceHandle, irqfd: str) -> None:
        """virqfd_inject: the worker that signals again after a resamplefd's unmask returned 1."""
        inside = {"flags": Flag.IN_VIRQFD_INJECT, "device": d.vdev, "tgid": 2, "tid": d.vm.pid + 51}
        self.emit(Kind.VIRQFD_INJECT, device=d.vdev, link=d.resample, tgid=2, tid=d.vm.pid + 51)
        self.emit(Kind.EVENTFD_SIGNAL, link=d.trigger, **inside)
        self.wakeup(d, irqfd, **inside)

    def set_irqs(
        self, d: DeviceHandle, flags: int, *, count: int = 1, index: int = 0, link: int = 0, aux: int = 0, tid: int = 0
    ) -> None:
        """VFIO_DEVICE_SET_IRQS without anything inside."""
        self.set_irqs_entry(d, flags, count=count, index=index, link=link, aux=aux, tid=tid)
        self.set_irqs_exit(d, flags, count=count, index=index, link=link, aux=aux, tid=tid)

    def set_irqs_entry(self, d: DeviceHandle, flags: int, **fields: int) -> None:
        self._set_irqs(Kind.SET_IRQS_ENTRY, d, flags, **fields)

    def set_irqs_exit(self, d: DeviceHandle, flags: int, **fields: int) -> None:
        self._set_irqs(Kind.SET_IRQS_EXIT, d, flags, **fields)

    def _set_irqs(self, kind: Kind, d: DeviceHandle, flags: int, **fields: int) -> None:
        count, index = fields.pop("count", 1), fields.pop("index", 0)
        fields["tid"] = fields.get("tid", 0) or d.vm.main
        self.emit(kind, device=d.vdev, tgid=d.vm.pid, arg0=flags, arg1=index | count << 32, **fields)

    def ioctl_unmask(
        self, d: DeviceHandle, *, returned: int = 0, proof: bool = True, tid: int = 0, irqfd: str = ""
    ) -> None:
        """VFIO_DEVICE_SET_IRQS UNMASK; if the line is still asserted it signals again, in the same task."""
        tid = tid or d.vm.vcpu
        self.set_irqs_entry(d, UNMASK_NONE, tid=tid)
        self.unmask(d, returned=returned, proof=proof, tgid=d.vm.pid, tid=tid)
        if returned:
            inside = {"flags": Flag.IN_SET_IRQS, "device": d.vdev, "tgid": d.vm.pid, "tid": tid}
            self.emit(Kind.EVENTFD_SIGNAL, link=d.trigger, **inside)
            self.wakeup(d, irqfd, **inside)
        self.set_irqs_exit(d, UNMASK_NONE, tid=tid)

    # ---- steps: set-up

    def enable(self, d: DeviceHandle) -> None:
        """vfio_intx_enable: the trigger is set."""
        self.emit(Kind.QEMU_ENABLE, device=d.qemu, tgid=d.vm.pid, tid=d.vm.main)
        self.set_irqs(d, TRIGGER_EVENTFD, link=d.trigger, aux=30)

    def enable_kvm(self, d: DeviceHandle, *, resample: bool = True, returned: int = 0) -> None:
        """vfio_intx_enable_kvm: mask, irqfd, resamplefd, unmask."""
        task = {"tgid": d.vm.pid, "tid": d.vm.main}
        self.emit(Kind.QEMU_ENABLE_KVM, device=d.qemu, **task)
        self.set_irqs_entry(d, MASK_NONE)
        self.emit(Kind.MASK, device=d.vdev, aux=1, flags=Flag.IN_SET_IRQS, **task)
        self.set_irqs_exit(d, MASK_NONE)
        self.deassert(d, tid=d.vm.main)
        self._kvm_irqfd(d, 2 if resample else 0, returned)
        if returned == 0:
            self.set_irqs(d, UNMASK_EVENTFD, link=d.resample, aux=31)
        self.ioctl_unmask(d, tid=d.vm.main)

    def disable_kvm(self, d: DeviceHandle, *, returned: int = 0) -> None:
        """vfio_intx_disable_kvm: mask, irqfd away, unmask: "let it re-fire through QEMU"."""
        task = {"tgid": d.vm.pid, "tid": d.vm.main}
        self.emit(Kind.QEMU_DISABLE_KVM, device=d.qemu, **task)
        self.set_irqs_entry(d, MASK_NONE)
        self.emit(Kind.MASK, device=d.vdev, aux=1, flags=Flag.IN_SET_IRQS, **task)
        self.set_irqs_exit(d, MASK_NONE)
        self.deassert(d, tid=d.vm.main)
        self._kvm_irqfd(d, 1, 0)
        self.ioctl_unmask(d, tid=d.vm.main, returned=returned)

    def _kvm_irqfd(self, d: DeviceHandle, flags: int, returned: int) -> None:
        fields = {
            "vm": d.vm.kvm,
            "link": d.trigger,
            "link2": d.resample if flags == 2 else 0,
            "arg0": d.gsi,
            "arg1": flags,
            "aux": 30,
            "tgid": d.vm.pid,
            "tid": d.vm.main,
        }
        self.emit(Kind.KVM_IRQFD_ENTRY, **fields)
        self.emit(Kind.KVM_IRQFD_EXIT, value=returned, **fields)

    def disable(self, d: DeviceHandle) -> None:
        """vfio_intx_disable: the interrupt is shut down."""
        self.emit(Kind.QEMU_DISABLE, device=d.qemu, tgid=d.vm.pid, tid=d.vm.main)
        self.set_irqs(d, TRIGGER_NONE, count=0)

    # ---- steps: QEMU

    def qemu_takes(self, d: DeviceHandle, *, found: bool = True, returned: int = 1, asserts: bool = True) -> None:
        """vfio_intx_interrupt in the main loop: it reads the eventfd and raises the line."""
        task = {"tgid": d.vm.pid, "tid": d.vm.main}
        self.emit(Kind.QEMU_INTERRUPT, device=d.qemu, **task)
        self.emit(Kind.EVENTFD_READ, link=d.trigger, value=8 if found else -11, **task)
        if found and asserts:
            irq = {"vm": d.vm.kvm, "arg0": d.gsi, "arg1": 0}
            self.emit(Kind.KVM_SET_IRQ, value=1, **irq, **task)
            self.emit(Kind.KVM_SET_IRQ_EXIT, value=returned, aux=1, **irq, **task)

    def bar_access(self, d: DeviceHandle, *, write: bool = False, offset: int = 0xC0, region: int = 0) -> None:
        """A trapped BAR access in a vCPU's thread."""
        kind = Kind.QEMU_REGION_WRITE if write else Kind.QEMU_REGION_READ
        self.emit(
            kind, device=d.qemu, link=d.qemu + 0x100, aux=region, value=4, arg0=offset, tgid=d.vm.pid, tid=d.vm.vcpu
        )

    def qemu_eoi(self, d: DeviceHandle, *, returned: int = 0, proof: bool = True) -> None:
        """The real vfio_intx_eoi: lower the line, unmask."""
        self.emit(Kind.QEMU_EOI, device=d.qemu, tgid=d.vm.pid, tid=d.vm.vcpu)
        self.deassert(d, tid=d.vm.vcpu)
        self.ioctl_unmask(d, returned=returned, proof=proof)

    def deassert(self, d: DeviceHandle, *, tid: int) -> None:
        """KVM_IRQ_LINE lowers the line."""
        task = {"tgid": d.vm.pid, "tid": tid}
        self.emit(Kind.KVM_SET_IRQ, vm=d.vm.kvm, value=0, arg0=d.gsi, arg1=0, **task)
        self.emit(Kind.KVM_SET_IRQ_EXIT, vm=d.vm.kvm, value=1, arg0=d.gsi, arg1=0, **task)

    def mmaps(self, d: DeviceHandle, on: bool, *, regions: tuple[int, ...] = (0, 1)) -> None:
        """vfio_mmap_set_enabled."""
        for region in regions:
            self.emit(Kind.QEMU_MMAPS, device=d.qemu, aux=region, value=int(on), tgid=d.vm.pid, tid=d.vm.main)

    def split_eoi(self, d: DeviceHandle) -> None:
        """The EOI of a split irqchip's guest: an exit to QEMU, which writes the resamplefd."""
        task = {"tgid": d.vm.pid, "tid": d.vm.vcpu}
        self.emit(Kind.USERSPACE_EXIT, value=26, **task)
        self.emit(Kind.QEMU_RESAMPLE_NOTIFY, arg0=d.gsi, **task)
        self.emit(Kind.EVENTFD_WRITE, link=d.resample, **task)

    def split_unmask(self, d: DeviceHandle, *, returned: int = 0) -> None:
        """vfio unmasks inside the write of the resamplefd."""
        task = {"tgid": d.vm.pid, "tid": d.vm.vcpu}
        self.emit(
            Kind.VIRQFD_WAKEUP, device=d.vdev, link=d.resample, value=EPOLLIN, flags=Flag.IN_EVENTFD_WRITE, **task
        )
        self.unmask(d, returned=returned, tgid=d.vm.pid, tid=d.vm.vcpu)

    def lost(self, count: int = 1, device: int = 0) -> None:
        """Events were dropped."""
        self.emit(Kind.LOST, arg0=self.now - self.STEP, arg1=count, device=device)

    # ---- whole interrupts

    def kernel_interrupt(self, d: DeviceHandle, *, at: int | None = None) -> None:
        """One interrupt on the kernel path, 18 events."""
        self.handler(d, at=at, irqfd="resample")
        self.inject(d)
        self.guest_eoi(d)
        self.resample_unmask(d)

    def kernel_resignal_interrupt(self, d: DeviceHandle, *, at: int | None = None) -> None:
        """One interrupt on the kernel path that finds the line still asserted at its unmask, and the resignal."""
        self.handler(d, at=at, irqfd="resample")
        self.inject(d)
        self.guest_eoi(d)
        self.resample_unmask(d, returned=1)
        self.worker_signals(d, "resample")
        self.inject(d)
        self.guest_eoi(d)
        self.resample_unmask(d)

    def hybrid_interrupt(self, d: DeviceHandle, *, at: int | None = None) -> None:
        """One interrupt with a split irqchip."""
        self.handler(d, at=at, irqfd="msi")
        self.split_eoi(d)
        self.split_unmask(d)

    def userspace_interrupt(self, d: DeviceHandle, *, at: int | None = None, accesses: int = 2) -> None:
        """One interrupt through QEMU; the guest's EOI follows the unmask."""
        self.handler(d, at=at)
        self.qemu_takes(d)
        self.bar_access(d)
        self.qemu_eoi(d)
        for _ in range(accesses - 1):
            self.bar_access(d, write=True, offset=0xD8)
        self.guest_eoi(d, resample=False)

    def userspace_resignal_interrupt(self, d: DeviceHandle, *, at: int | None = None) -> None:
        """One interrupt through QEMU whose first BAR access does not serve the device, and the resignal."""
        self.handler(d, at=at)
        self.qemu_takes(d)
        self.bar_access(d, write=True, offset=0x3818)
        self.qemu_eoi(d, returned=1)
        self.qemu_takes(d, returned=-1)
        self.bar_access(d)
        self.qemu_eoi(d)
        self.guest_eoi(d, resample=False)

    # ---- results

    def reconstruct(self, **options: Any) -> Result:
        """Reconstruct the whole trace."""
        return reconstruct(self.records(), self.tables, **options)


def reconstruct(
    records: np.ndarray[Any, Any], its_tables: tables.Tables, cuts: tuple[int, ...] = (), **options: Any
) -> Result:
    """Feed records, cut before these indices, and return all rows."""
    reconstructor = Reconstructor(its_tables, **options)
    if not cuts:
        reconstructor.take(records)
        return reconstructor.finish()
    results = [reconstructor.feed(part) for part in np.split(records, sorted(cuts))]
    results.append(reconstructor.finish())
    return Result(*(pd.concat(parts, ignore_index=True) for parts in zip(*results, strict=True)))
