"""Random traces of a small world: devices, vfio, KVM, QEMU and guests that do what the real ones do.

Every thread of the world is a generator that stops after each event; which one goes on is drawn, so the events of
different threads interleave as they may. What the world does is what drivers/vfio/pci, virt/kvm and QEMU's hw/vfio do;
it knows nothing of how traces are read. `make` also damages what was recorded: probes that are missing, events that
are lost, clocks that differ, a beginning and an end anywhere.
"""

from __future__ import annotations

import random
from collections.abc import Generator, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from intxtrace.events import EPOLLHUP, EPOLLIN, RECORD, Flag, Kind
from intxtrace.trace.tables import Tables
from tests.dsl import (
    ALL_KINDS,
    COUNT_KINDS,
    MASK_NONE,
    TRIGGER_EVENTFD,
    TRIGGER_NONE,
    UNMASK_EVENTFD,
    UNMASK_NONE,
    DeviceHandle,
    Trace,
    VmHandle,
)

Steps = Iterator[None]
Task = dict[str, int]


@dataclass(eq=False)
class Pin:
    """One pin of a guest's IOAPIC."""

    levels: set[int] = field(default_factory=set)
    """Whose line is high: -1 all resampling irqfds together, else the device."""
    in_service: bool = False
    masked: bool = False
    """By the guest."""


@dataclass(eq=False)
class Guest:
    """A virtual machine: QEMU's main loop, one vCPU, an IOAPIC."""

    handle: VmHandle
    split: bool
    pins: dict[int, Pin] = field(default_factory=dict)
    delivered: list[int] = field(default_factory=list)
    errands: list[Steps] = field(default_factory=list)
    main_runs: bool = False
    vcpu_runs: bool = False
    alive: bool = True


@dataclass(eq=False)
class Device:
    """A device, what vfio knows of it and what QEMU does."""

    handle: DeviceHandle
    guest: Guest
    exclusive: bool
    wants: str
    asserted: bool = False
    enabled: bool = False
    masked: bool = False
    virq_disabled: bool = False
    trigger: bool = False
    irqfd: str = ""
    work_queued: bool = False
    count: int = 0
    """Of the trigger eventfd."""
    pending: bool = False
    """vdev->intx.pending of QEMU."""
    mapped: bool = True
    untaken: list[list[Any]] = field(default_factory=list)
    """The true interrupts that are signalled and that nobody took."""


class World:
    """Runs everything. `truth`: [device, origin, raised_at, path] of every interrupt that came about."""

    def __init__(self, dice: random.Random, trace: Trace) -> None:
        self.dice = dice
        self.trace = trace
        self.actors: list[Steps] = []
        self.devices: list[Device] = []
        self.guests: list[Guest] = []
        self.lines_running: set[int] = set()
        self.truth: list[list[Any]] = []
        self.workers = 9000
        self.threaded = dice.random() < 0.2
        self.serves = dice.choice([0.5, 0.9, 1.0])

    # ---- running

    def emit(self, kind: Kind, task: Task, **fields: int) -> None:
        self.trace.now += self.dice.choice((0, 1, 40, 300, 900))
        now = self.trace.now
        self.trace.emit(kind, **{**task, **fields})
        self.trace.now = now

    def chance(self, p: float) -> bool:
        return self.dice.random() < p

    def go_on(self) -> None:
        """Let one thread do its next step, and the hardware what it must."""
        if self.actors:
            actor = self.dice.choice(self.actors)
            if next(actor, self) is self:
                self.actors.remove(actor)
        for d in self.devices:
            if d.enabled and d.asserted and not d.masked:
                self.fire(d.handle.host_irq)

    def settle(self) -> None:
        """Let the threads come to rest; a guest that never serves its device does not."""
        for _ in range(300):
            if self.actors:
                self.go_on()

    def fire(self, irq: int) -> None:
        if irq not in self.lines_running:
            self.lines_running.add(irq)
            self.actors.append(self.hard_interrupt(irq))

    def worker(self) -> Task:
        self.workers = 9000 + (self.workers + 1) % 50
        return {"tgid": self.workers, "tid": self.workers, "cpu": self.dice.randrange(4)}

    # ---- the kernel

    def hard_interrupt(self, irq: int) -> Steps:
        cpu = self.dice.randrange(4)
        task = {"tid": 700 + irq, "tgid": 700 + irq, "cpu": cpu} if self.threaded else {"cpu": cpu}
        for d in [d for d in self.devices if d.enabled and d.handle.host_irq == irq]:
            if not d.enabled or (d.exclusive and d.masked):
                continue
            self.emit(Kind.HANDLER_ENTRY, task, device=d.handle.vdev, arg0=irq)
            entered = self.trace.now
            yield
            claimed = d.enabled and (d.exclusive or (not d.masked and d.asserted))
            if claimed:
                d.masked = True
                true = [d.handle.id, "hardware", entered, "held"]
                self.truth.append(true)
                if d.trigger and not d.virq_disabled:
                    yield from self.signal(d, true, {**task, "flags": Flag.IN_HANDLER, "device": d.handle.vdev})
            self.emit(Kind.HANDLER_EXIT, task, device=d.handle.vdev, value=int(claimed), arg0=irq)
            yield
        self.lines_running.discard(irq)

    def signal(self, d: Device, true: list[Any], inside: Task) -> Steps:
        true[3] = "userspace"
        self.emit(Kind.EVENTFD_SIGNAL, inside, link=d.handle.trigger)
        yield from self.wake(d, true, inside)

    def wake(self, d: Device, true: list[Any], inside: Task) -> Steps:
        """The wait queue of the trigger: an irqfd, or QEMU's poll."""
        h = d.handle
        d.untaken.append(true)
        if not d.irqfd:
            d.count += 1
            self.poll(d)
            yield
            return
        yield
        self.irqfd(Kind.IRQFD_WAKEUP, d, inside, value=EPOLLIN)
        self.taken(d, "kernel" if d.irqfd == "resample" else "hybrid")
        if d.irqfd == "msi":
            nested = {**inside, "flags": inside.get("flags", 0) | Flag.IN_IRQFD_WAKEUP}
            yield
            self.emit(Kind.MSI_SET_IRQ, nested, vm=h.vm.kvm, value=64)
            if self.deliver(d, -2):
                yield
                self.emit(Kind.APIC_ACCEPT, {**nested, "device": 0}, vm=h.vm.kvm, value=64, arg0=h.gsi)
        elif not d.work_queued:
            d.work_queued = True
            self.actors.append(self.inject(d))
        yield

    def irqfd(self, kind: Kind, d: Device, task: Task, **fields: int) -> None:
        h = d.handle
        resample = h.resample if d.irqfd == "resample" else 0
        self.emit(kind, task, link=h.irqfd, link2=resample, vm=h.vm.kvm, arg0=h.gsi, arg1=h.trigger, **fields)

    def taken(self, d: Device, path: str) -> None:
        for true in d.untaken:
            true[3] = path
        d.untaken.clear()

    def inject(self, d: Device) -> Steps:
        yield
        task = self.worker()
        if not d.irqfd:
            d.work_queued = False
            return
        d.work_queued = False
        mode = d.irqfd
        self.irqfd(Kind.IRQFD_INJECT, d, task)
        self.taken(d, "kernel" if mode == "resample" else "hybrid")
        yield
        yield from self.set_irq(d, 1, 1 if mode == "resample" else 0, task)
        if mode == "edge":
            yield from self.set_irq(d, 0, 0, task)

    def set_irq(self, d: Device, level: int, source: int, task: Task) -> Steps:
        h = d.handle
        irq = {"vm": h.vm.kvm, "arg0": h.gsi, "arg1": source}
        self.emit(Kind.KVM_SET_IRQ, task, value=level, **irq)
        yield
        returned = 1
        who = -1 if source else h.id
        if not level:
            self.pin(d).levels.discard(who)
        elif self.deliver(d, who):
            if self.chance(0.8):
                self.emit(Kind.APIC_ACCEPT, task, vm=h.vm.kvm, value=64, arg0=h.gsi)
                yield
        else:
            returned = self.dice.choice((-1, -1, 0))
        self.emit(Kind.KVM_SET_IRQ_EXIT, task, value=returned, aux=level, **irq)
        yield

    def pin(self, d: Device) -> Pin:
        return d.guest.pins.setdefault(d.handle.gsi, Pin())

    def deliver(self, d: Device, who: int) -> bool:
        """Raise the pin; whether the guest takes it as a new interrupt."""
        pin = self.pin(d)
        if who >= -1:
            pin.levels.add(who)
        if pin.in_service or pin.masked or not d.guest.alive:
            return False
        pin.in_service = True
        d.guest.delivered.append(d.handle.gsi)
        self.run_guest(d.guest)
        return True

    def unmask(self, d: Device, task: Task) -> Generator[None, None, list[Any] | None]:
        """vfio_pci_intx_unmask_handler. Returns the true interrupt, if the line is still asserted."""
        vdev = d.handle.vdev
        self.emit(Kind.UNMASK_ENTRY, task, device=vdev)
        yield
        returned = 0
        if d.enabled and d.masked and not d.virq_disabled:
            if d.exclusive:
                d.masked = False
                self.emit(Kind.ENABLE_IRQ, task, device=vdev, arg0=d.handle.host_irq)
            else:
                returned = int(d.asserted)
                d.masked = bool(returned)
                self.emit(Kind.CHECKED_UNMASK, task, device=vdev, value=1 - returned)
            yield
        self.emit(Kind.UNMASK_EXIT, task, device=vdev, value=returned)
        true = [d.handle.id, "unmask", self.trace.now, "held"] if returned else None
        if true:
            self.truth.append(true)
        yield
        return true

    def unmask_and_signal(self, d: Device, task: Task, flag: int) -> Steps:
        """What the ioctl and config space do: signal in the same task if it is still asserted."""
        true = yield from self.unmask(d, task)
        if true and d.trigger:
            yield from self.signal(d, true, {**task, "flags": flag, "device": d.handle.vdev})

    def resample(self, d: Device, task: Task, flags: int) -> Steps:
        """The resamplefd was signalled or written: virqfd_wakeup."""
        h = d.handle
        self.emit(Kind.VIRQFD_WAKEUP, {**task, "flags": flags}, device=h.vdev, link=h.resample, value=EPOLLIN)
        yield
        true = yield from self.unmask(d, task)
        if true:
            self.actors.append(self.virqfd_inject(d, true))

    def virqfd_inject(self, d: Device, true: list[Any]) -> Steps:
        yield
        if not d.enabled:
            return
        task = self.worker()
        h = d.handle
        self.emit(Kind.VIRQFD_INJECT, task, device=h.vdev, link=h.resample)
        yield
        if d.trigger and d.enabled:
            yield from self.signal(d, true, {**task, "flags": Flag.IN_VIRQFD_INJECT, "device": h.vdev})

    # ---- the guest

    def run_guest(self, guest: Guest) -> None:
        if not guest.vcpu_runs:
            guest.vcpu_runs = True
            self.actors.append(self.vcpu(guest))

    def vcpu(self, guest: Guest) -> Steps:
        task = {"tgid": guest.handle.pid, "tid": guest.handle.vcpu, "cpu": self.dice.randrange(4)}
        yield
        while guest.delivered and guest.alive:
            gsi = guest.delivered.pop(0)
            mine = [d for d in self.devices if d.guest is guest and d.handle.gsi == gsi]
            for d in mine:
                for _ in range(self.dice.randrange(3)):
                    yield from self.bar_access(d, task)
                if self.chance(self.serves):
                    d.asserted = False
                yield
            yield from self.eoi(guest, gsi, mine, task)
        guest.vcpu_runs = False

    def bar_access(self, d: Device, task: Task) -> Steps:
        h = d.handle
        if d.mapped and not d.pending:
            return
        if d.mapped and self.chance(0.5):
            return  # QEMU has not unmapped the BARs yet.
        kind = self.dice.choice((Kind.QEMU_REGION_READ, Kind.QEMU_REGION_WRITE))
        region = self.dice.randrange(2)
        offset = self.dice.choice((0xC0, 0xD8))
        self.emit(kind, task, device=h.qemu, link=h.qemu + 0x100 + region, aux=region, value=4, arg0=offset)
        yield
        if self.chance(0.05):
            return  # The read failed: no EOI.
        if d.pending:
            d.pending = False
            self.emit(Kind.QEMU_EOI, task, device=h.qemu)
            yield
            if not d.guest.split:
                yield from self.set_irq(d, 0, 0, task)
            yield from self.ioctl_unmask(d, task)

    def eoi(self, guest: Guest, gsi: int, mine: list[Device], task: Task) -> Steps:
        pin = guest.pins.setdefault(gsi, Pin())
        if guest.split:
            self.emit(Kind.USERSPACE_EXIT, task, value=26)
            pin.in_service = False
            yield
            self.emit(Kind.QEMU_RESAMPLE_NOTIFY, task, arg0=gsi)
            yield
            for d in mine:
                if d.irqfd == "msi":
                    self.emit(Kind.EVENTFD_WRITE, task, link=d.handle.resample)
                    yield
                    yield from self.resample(d, task, Flag.IN_EVENTFD_WRITE)
                    break  # kvm_resample_fd_notify returns after the first match.
        else:
            pic = gsi < 16 and self.chance(0.3)
            chip = (1 if gsi >= 8 else 0) if pic else 2
            self.emit(Kind.KVM_ACK, task, vm=guest.handle.kvm, arg0=gsi, arg1=chip)
            pin.in_service = False
            yield
            if chip == 1:
                self.emit(Kind.KVM_ACK, task, vm=guest.handle.kvm, arg0=2, arg1=0)
                yield
            resampling = [d for d in mine if d.irqfd == "resample"]
            if resampling:
                h = resampling[0].handle
                self.emit(Kind.RESAMPLER_ACK, task, vm=h.vm.kvm, link=h.irqfd + 8, arg0=gsi)
                yield
                yield from self.set_irq(resampling[0], 0, 1, task)
                for d in reversed(resampling):
                    flags = Flag.IN_RESAMPLER_ACK
                    self.emit(Kind.EVENTFD_SIGNAL, {**task, "flags": flags}, link=d.handle.resample)
                    yield
                    yield from self.resample(d, task, flags)
            for d in mine:
                if d.irqfd == "edge":
                    yield from self.ioctl_unmask(d, task)
        if pin.levels and not pin.in_service and not pin.masked:
            pin.in_service = True
            guest.delivered.append(gsi)

    # ---- QEMU

    def errand(self, guest: Guest, steps: Steps) -> None:
        """Let the main loop do something."""
        guest.errands.append(steps)
        if not guest.main_runs:
            guest.main_runs = True
            self.actors.append(self.main_loop(guest))

    def main_loop(self, guest: Guest) -> Steps:
        while guest.errands:
            yield from guest.errands.pop(0)
            yield
        guest.main_runs = False

    def main(self, d: Device) -> Task:
        vm = d.guest.handle
        return {"tgid": vm.pid, "tid": vm.main, "cpu": self.dice.randrange(4)}

    def poll(self, d: Device) -> None:
        self.errand(d.guest, self.interrupt(d))

    def interrupt(self, d: Device) -> Steps:
        """vfio_intx_interrupt."""
        h, task = d.handle, self.main(d)
        if not d.trigger or d.irqfd or not d.guest.alive:
            return
        self.emit(Kind.QEMU_INTERRUPT, task, device=h.qemu)
        yield
        found, d.count = d.count, 0
        self.emit(Kind.EVENTFD_READ, task, link=h.trigger, value=8 if found else -11)
        if found:
            self.taken(d, "userspace")
        yield
        if not found:
            return
        d.pending = True
        if not d.guest.split:
            yield from self.set_irq(d, 1, 0, task)
        elif self.chance(0.5):
            self.deliver(d, -2)
        yield from self.map_bars(d, False)

    def map_bars(self, d: Device, on: bool) -> Steps:
        d.mapped = on
        for region in range(2):
            self.emit(Kind.QEMU_MMAPS, self.main(d), device=d.handle.qemu, aux=region, value=int(on))
            yield

    def set_irqs(
        self,
        d: Device,
        flags: int,
        task: Task,
        inside: Steps | None = None,
        *,
        count: int = 1,
        index: int = 0,
        link: int = 0,
        aux: int = 30,
        returned: int = 0,
    ) -> Steps:
        call = {"device": d.handle.vdev, "arg0": flags, "arg1": index | count << 32, "link": link, "aux": aux}
        self.emit(Kind.SET_IRQS_ENTRY, task, **call)
        yield
        if inside is not None:
            yield from inside
        self.emit(Kind.SET_IRQS_EXIT, task, value=returned, **call)
        yield

    def ioctl_unmask(self, d: Device, task: Task) -> Steps:
        yield from self.set_irqs(d, UNMASK_NONE, task, self.unmask_and_signal(d, task, Flag.IN_SET_IRQS), aux=0)

    def ioctl_mask(self, d: Device, task: Task) -> Steps:
        def mask() -> Steps:
            d.masked = True
            self.emit(Kind.MASK, {**task, "flags": Flag.IN_SET_IRQS}, device=d.handle.vdev, aux=1)
            yield

        yield from self.set_irqs(d, MASK_NONE, task, mask(), aux=0)

    def enable(self, d: Device) -> Steps:
        if d.enabled:
            return
        task = self.main(d)
        self.emit(Kind.QEMU_ENABLE, task, device=d.handle.qemu)
        yield
        d.enabled = d.trigger = True
        d.masked = d.virq_disabled
        d.pending = False
        d.count = 0
        d.untaken.clear()
        yield from self.set_irqs(d, TRIGGER_EVENTFD, task, link=d.handle.trigger)
        yield from self.enable_kvm(d)

    def enable_kvm(self, d: Device) -> Steps:
        if not d.enabled or d.irqfd or d.wants == "userspace":
            return
        h, task = d.handle, self.main(d)
        self.emit(Kind.QEMU_ENABLE_KVM, task, device=h.qemu)
        yield
        yield from self.ioctl_mask(d, task)
        d.pending = False
        if not d.guest.split:
            yield from self.set_irq(d, 0, 0, task)
        returned = -self.dice.choice((22, 16)) if self.chance(0.15) else 0
        mode = "msi" if d.guest.split else ("edge" if d.wants == "hybrid" else "resample")
        yield from self.kvm_irqfd(d, task, 2 if mode == "resample" else 0, returned, mode)
        if returned == 0:
            yield from self.set_irqs(d, UNMASK_EVENTFD, task, link=h.resample, aux=31)
        yield from self.ioctl_unmask(d, task)

    def kvm_irqfd(self, d: Device, task: Task, flags: int, returned: int, mode: str) -> Steps:
        h = d.handle
        call = {"vm": h.vm.kvm, "link": h.trigger, "link2": h.resample if flags == 2 else 0, "arg0": h.gsi}
        self.emit(Kind.KVM_IRQFD_ENTRY, task, arg1=flags, aux=30, **call)
        yield
        if returned == 0:
            d.irqfd = mode
            if d.irqfd and d.count and d.irqfd != "msi":
                # Signalled before: kvm_irqfd_assign schedules the injection.
                d.count = 0
                d.work_queued = True
                self.actors.append(self.inject(d))
        self.emit(Kind.KVM_IRQFD_EXIT, task, arg1=flags, aux=30, value=returned, **call)
        yield

    def disable_kvm(self, d: Device) -> Steps:
        if not d.irqfd:
            return
        task = self.main(d)
        self.emit(Kind.QEMU_DISABLE_KVM, task, device=d.handle.qemu)
        yield
        yield from self.ioctl_mask(d, task)
        if not d.guest.split:
            yield from self.set_irq(d, 0, 0, task)
            self.pin(d).levels.discard(-1)
        yield from self.kvm_irqfd(d, task, 1, 0, "")
        yield from self.ioctl_unmask(d, task)

    def disable(self, d: Device) -> Steps:
        if not d.enabled:
            return
        yield from self.disable_kvm(d)
        task = self.main(d)
        self.emit(Kind.QEMU_DISABLE, task, device=d.handle.qemu)
        yield
        yield from self.set_irqs(d, TRIGGER_NONE, task, self._off(d), count=0, aux=0)

    def _off(self, d: Device) -> Steps:
        d.enabled = d.trigger = d.masked = d.pending = False
        d.count = 0
        d.untaken.clear()
        self.pin(d).levels.discard(d.handle.id)
        yield

    # ---- what may happen

    def boot(self, d: Device) -> Steps:
        """Every guest boot: cycles of enable and disable, then the IRQ moves."""
        for _ in range(self.dice.randint(1, 3)):
            yield from self.disable(d)
            yield from self.enable(d)
        yield from self.move(d)

    def move(self, d: Device) -> Steps:
        """vfio_intx_update."""
        self.emit(Kind.QEMU_UPDATE, self.main(d), device=d.handle.qemu)
        yield
        yield from self.disable_kvm(d)
        self.pin(d).levels.discard(d.handle.id)
        d.handle.gsi = self.dice.choice((11, 21, 22))
        d.handle.resample += 8
        yield from self.enable_kvm(d)

    def msi(self, d: Device) -> Steps:
        if self.chance(0.7):
            yield from self.disable(d)
        yield from self.set_irqs(d, TRIGGER_EVENTFD, self.main(d), self._off(d), index=self.dice.choice((1, 2)), link=5)
        d.irqfd = ""

    def no_trigger(self, d: Device) -> Steps:
        if d.enabled and not d.irqfd:
            d.trigger = False
            yield from self.set_irqs(d, TRIGGER_EVENTFD, self.main(d), aux=0xFFFFFFFF)
            yield from self.ioctl_unmask(d, self.main(d))
            d.trigger = True
            yield from self.set_irqs(d, TRIGGER_EVENTFD, self.main(d), link=d.handle.trigger)

    def disintx(self, d: Device) -> Steps:
        task = self.main(d)
        if not d.enabled or d.virq_disabled:
            return
        d.virq_disabled = d.masked = True
        self.emit(Kind.MASK, task, device=d.handle.vdev)
        for _ in range(self.dice.randrange(12)):
            yield
        d.virq_disabled = False
        self.emit(Kind.CONFIG_UNMASK, task, device=d.handle.vdev)
        yield
        yield from self.unmask_and_signal(d, task, Flag.IN_CONFIG_UNMASK)

    def write(self, d: Device) -> Steps:
        """Somebody writes the trigger."""
        if not d.trigger:
            return
        task = self.main(d)
        self.emit(Kind.EVENTFD_WRITE, task, link=d.handle.trigger)
        true = [d.handle.id, "software", self.trace.now, "userspace"]
        self.truth.append(true)
        yield from self.wake(d, true, {**task, "flags": Flag.IN_EVENTFD_WRITE})

    def loopback(self, d: Device) -> Steps:
        if not d.enabled or not d.trigger:
            return
        task = self.main(d)
        true = [d.handle.id, "software", None, ""]

        def send() -> Steps:
            inside = {**task, "flags": Flag.IN_SET_IRQS, "device": d.handle.vdev}
            steps = self.signal(d, true, inside)
            next(steps)
            true[2] = self.trace.now
            self.truth.append(true)
            yield
            yield from steps

        yield from self.set_irqs(d, TRIGGER_NONE, task, send(), aux=0)

    def spurious(self, d: Device) -> Steps:
        yield from self.interrupt(d)

    def spurious_eoi(self, d: Device) -> Steps:
        task = {"tgid": d.guest.handle.pid, "tid": d.guest.handle.vcpu, "cpu": 0}
        if not d.guest.vcpu_runs and not d.guest.split:
            d.guest.vcpu_runs = True
            self.pin(d)
            yield from self.eoi(
                d.guest,
                d.handle.gsi,
                [x for x in self.devices if x.guest is d.guest and x.handle.gsi == d.handle.gsi],
                task,
            )
            d.guest.vcpu_runs = False
            if d.guest.delivered:
                self.run_guest(d.guest)

    def mask_pin(self, d: Device) -> Steps:
        """The guest masks its pin, and unmasks it: kvm_notify_irqfd_resampler."""
        pin = self.pin(d)
        pin.masked = True
        for _ in range(self.dice.randrange(10)):
            yield
        pin.masked = False
        if pin.levels and not pin.in_service and not d.guest.vcpu_runs:
            d.guest.vcpu_runs = True
            task = {"tgid": d.guest.handle.pid, "tid": d.guest.handle.vcpu, "cpu": 1}
            self.emit(Kind.RESAMPLER_NOTIFY, task, vm=d.handle.vm.kvm, arg0=d.handle.gsi, arg1=2)
            yield
            if d.irqfd == "resample":
                yield from self.resample(d, task, 0)
            if not pin.in_service:
                pin.in_service = True
                d.guest.delivered.append(d.handle.gsi)
            d.guest.vcpu_runs = False
            self.run_guest(d.guest)

    def other_lines(self, d: Device) -> Steps:
        """An emulated device of QEMU, and an eventfd that is none of ours."""
        irq = {"vm": d.handle.vm.kvm, "arg0": 4}
        self.emit(Kind.KVM_SET_IRQ, self.main(d), value=1, **irq)
        yield
        self.emit(Kind.KVM_SET_IRQ_EXIT, self.main(d), value=1, aux=1, **irq)
        yield
        self.emit(Kind.EVENTFD_WRITE, self.main(d), link=0x1234)
        yield
        self.emit(Kind.VIRQFD_WAKEUP, self.main(d), device=0x777, link=0x1234, value=EPOLLIN)
        yield

    def close_eventfds(self, d: Device) -> Steps:
        task = self.worker()
        self.emit(Kind.VIRQFD_WAKEUP, task, device=d.handle.vdev, link=d.handle.resample, value=EPOLLHUP)
        yield
        if d.irqfd:
            self.irqfd(Kind.IRQFD_WAKEUP, d, task, value=EPOLLHUP)
            yield

    def leave(self, guest: Guest) -> None:
        """QEMU exits, and another one gets its addresses."""
        self.settle()
        if self.actors:
            return
        for d in self.devices:
            if d.guest is guest:
                for _ in self._off(d):
                    pass
                d.irqfd, d.work_queued, d.asserted, d.virq_disabled = "", False, False, False
        old = guest.handle
        self.emit(Kind.VM, {}, vm=old.kvm, aux=old.id, value=0)
        new = self.trace.vm()
        if self.chance(0.5):
            new = VmHandle(new.id, old.kvm, new.pid, new.main, new.vcpu)
            self.trace._rows[-1]["vm"] = old.kvm
        guest.handle = new
        guest.pins.clear()
        guest.delivered.clear()
        for d in self.devices:
            if d.guest is guest:
                d.handle.vm = new
                if self.chance(0.3):
                    self.emit(Kind.DEVICE, {}, device=d.handle.vdev, aux=d.handle.id, value=0)
                    again = self.trace.device(new, d.handle.bdf, d.handle.gsi, d.handle.host_irq)
                    if self.chance(0.5):
                        self.trace._rows[-1]["device"] = again.vdev = d.handle.vdev
                        again.trigger, again.resample, again.qemu = d.handle.trigger, d.handle.resample, d.handle.qemu
                    d.handle = again
                self.errand(guest, self.boot(d))


HAPPENINGS = (
    *("assert_line",) * 14,
    *("foreign",) * 2,
    *("kernel", "hybrid", "userspace"),
    *("boot", "move", "msi", "disable", "enable", "no_trigger", "disintx", "mask_pin", "leave"),
    *("write", "loopback", "spurious", "spurious_eoi", "other_lines", "close_eventfds", "remap", "later"),
)

MAX_EVENTS = 600

QUIET = (*("assert_line",) * 9, "foreign", "write", "loopback", "spurious", "other_lines", "later")
"""What leaves the set-up alone."""

AT_ONCE = ("mask_pin", "close_eventfds", "spurious_eoi")


def simulate(
    dice: random.Random, happenings: int, probes: tuple[Kind, ...], *, quiet: bool = False
) -> tuple[Trace, World]:
    """Let the world run; `quiet`: its set-up stays as it is."""
    trace = Trace(probes)
    world = World(dice, trace)
    calm = dice.random() < 0.5
    for _ in range(dice.choice((1, 1, 2))):
        guest = Guest(trace.vm(), split=dice.random() < 0.25)
        world.guests.append(guest)
        for _ in range(dice.choice((1, 1, 2))):
            n = len(world.devices)
            handle = trace.device(
                guest.handle,
                bdf=f"0000:{n + 1:02x}:00.0",
                gsi=dice.choice((11, 21, 22, 22)),
                host_irq=dice.choice((20, 20, 21)),
            )
            exclusive = dice.random() < 0.2
            if exclusive:
                handle.host_irq = 30 + n
            world.devices.append(
                Device(handle, guest, exclusive, wants=dice.choice(("kernel", "kernel", "hybrid", "userspace")))
            )
    for d in world.devices:
        if quiet or dice.random() < 0.5:
            world.errand(d.guest, world.enable(d))
            if quiet or dice.random() < 0.8:
                world.settle()
        else:
            world.errand(d.guest, world.boot(d))
    for _ in range(happenings):
        if len(trace._rows) > MAX_EVENTS:
            break
        likely = QUIET if quiet else HAPPENINGS[:16] if calm and dice.random() < 0.8 else HAPPENINGS
        happen(world, dice.choice(likely))
        for _ in range(dice.choice((0, 3, 10, 40, 100))):
            world.go_on()
    if dice.random() < 0.7:
        world.settle()
    return trace, world


def happen(world: World, what: str) -> None:
    """Make something happen to some device."""
    d = world.dice.choice(world.devices)
    match what:
        case "assert_line":
            d.asserted = d.enabled
        case "foreign":
            world.fire(d.handle.host_irq)
        case "kernel" | "hybrid" | "userspace":
            d.wants = what
            world.errand(d.guest, world.move(d))
        case "remap":
            world.errand(d.guest, world.map_bars(d, not d.mapped))
        case "leave":
            world.leave(d.guest)
        case "later":
            world.trace.now += world.dice.choice((10_000, 400_000_000, 1_000_000_000))
        case _ if what in AT_ONCE:
            world.actors.append(getattr(world, what)(d))
        case _:
            world.errand(d.guest, getattr(world, what)(d))


@dataclass
class Case:
    """A random trace, and what truly happened."""

    records: np.ndarray[Any, Any]
    tables: Tables
    truth: list[list[Any]]
    clean: bool
    """Nothing is missing, lost, cut or out of order."""


def make(seed: int, *, clean: bool = False) -> Case:
    """Make the random trace of a seed; `clean`: of a world whose set-up stays, and nothing of it is damaged."""
    dice = random.Random(seed)
    kinds = (*ALL_KINDS, *COUNT_KINDS) if dice.random() < 0.15 else ALL_KINDS
    missing: set[Kind] = set()
    if not clean:
        if dice.random() < 0.5:
            missing.add(ALL_KINDS[seed % len(ALL_KINDS)])
        if dice.random() < 0.2:
            missing |= set(dice.sample(ALL_KINDS, dice.randint(1, 12)))
    probes = tuple(kind for kind in kinds if kind not in missing)
    trace, world = simulate(dice, dice.choice((4, 10, 25)), probes, quiet=clean)
    records = trace.records()
    if clean:
        return Case(records, trace.tables, world.truth, True)
    if COUNT_KINDS[0] in kinds:
        records = counted(records, dice)
    if dice.random() < 0.05:
        records = as_log(records, trace)
    if dice.random() < 0.2:
        offsets = np.array([dice.randrange(600) for _ in range(8)], np.uint64)
        records["ts"] += offsets[records["cpu"]]
    if dice.random() < 0.25:
        records = lose(records, dice, world)
    if dice.random() < 0.15:
        records = toggle_probe(records, dice, trace.tables)
    if dice.random() < 0.2:
        records = records[dice.randrange(len(records)) :]
    if dice.random() < 0.2:
        records = records[: dice.randrange(len(records) + 1)]
    if dice.random() < 0.05:
        trace.tables.probes.clear()
    return Case(records, trace.tables, world.truth, False)


def counted(records: np.ndarray[Any, Any], dice: random.Random) -> np.ndarray[Any, Any]:
    """Turn BAR accesses into what a recording that counts in the kernel has."""
    accesses = np.isin(records["kind"], (Kind.QEMU_REGION_READ, Kind.QEMU_REGION_WRITE))
    chosen = accesses & np.array([dice.random() < 0.7 for _ in records], bool)
    out = []
    for record, turn in zip(records, chosen, strict=True):
        out.append(record)
        if turn:
            write = record["kind"] == Kind.QEMU_REGION_WRITE
            total, one = record.copy(), record.copy()
            total["kind"], total["arg0"], total["arg1"] = Kind.QEMU_REGION_COUNT, dice.randrange(4), dice.randrange(3)
            one["kind"], one["value"], one["arg1"] = Kind.QEMU_REGION_OFFSETS, int(write), dice.randint(1, 5)
            out += [total, one]
    return np.array(out, RECORD)


def as_log(records: np.ndarray[Any, Any], trace: Trace) -> np.ndarray[Any, Any]:
    """Keep what a log of QEMU has: no pointers."""
    qemu = records[records["kind"] >= Kind.QEMU_INTERRUPT]
    qemu = qemu[qemu["kind"] < Kind.LOST].copy()
    qemu["device"] = (qemu["device"] - np.uint64(0x55A9E5600000)) // np.uint64(Trace.STRIDE)
    qemu["flags"] |= np.uint32(Flag.SYNTHETIC)
    for probe in trace.tables.probes:
        if not probe.kinds[0].startswith("QEMU"):
            probe.state = "missing"
    return qemu


def lose(records: np.ndarray[Any, Any], dice: random.Random, world: World) -> np.ndarray[Any, Any]:
    """Drop some events and say so."""
    begin = dice.randrange(len(records))
    end = min(len(records), begin + dice.randint(1, 15))
    kept = np.delete(records, slice(begin, end - 1))
    if kept["kind"][begin] in (Kind.VM, Kind.DEVICE):
        return records
    note = np.zeros(1, RECORD)[0]
    note["ts"], note["kind"], note["arg1"] = kept["ts"][begin], Kind.LOST, end - begin
    if dice.random() < 0.3:
        note["device"] = dice.choice(world.devices).handle.vdev
    kept[begin] = note
    return kept


def toggle_probe(records: np.ndarray[Any, Any], dice: random.Random, tables: Tables) -> np.ndarray[Any, Any]:
    """Let a probe go, and perhaps come back."""
    row = dice.choice(tables.probes).id
    for value in (1, 0) if dice.random() < 0.5 else (0,):
        at = dice.randrange(len(records))
        note = np.zeros(1, RECORD)
        note["ts"], note["kind"], note["aux"], note["value"] = records["ts"][at], Kind.PROBE, row, value
        records = np.insert(records, at, note)
    return records
