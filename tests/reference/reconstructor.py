"""The slow, obvious reconstructor: what the fast one must equal.

It is written from the definitions (the life of an interrupt, its path, origin and outcome), in plain objects and
dicts; it takes the whole trace at once, keeps everything it ever saw, and after every event looks at every interrupt
anew. Nothing here is clever, nothing is shared with `intxtrace.reconstruct`.
"""

from __future__ import annotations

import os
from collections import defaultdict
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from intxtrace.events import EPOLLIN, KVM_IRQFD_DEASSIGN, KVM_IRQFD_RESAMPLE, Flag, Kind, SetIrqs, format_address
from intxtrace.trace.tables import Tables

SECOND = 1_000_000_000
MAX_IN_FLIGHT = 64
UNMASK_IOCTL = SetIrqs.ACTION_UNMASK | SetIrqs.DATA_NONE
MASK_IOCTL = SetIrqs.ACTION_MASK | SetIrqs.DATA_NONE
SET_TRIGGER = SetIrqs.ACTION_TRIGGER | SetIrqs.DATA_EVENTFD
SET_RESAMPLE = SetIrqs.ACTION_UNMASK | SetIrqs.DATA_EVENTFD
TRIGGER_NOW = SetIrqs.ACTION_TRIGGER | SetIrqs.DATA_NONE
BY_UNMASK = Flag.IN_SET_IRQS | Flag.IN_UNMASK | Flag.IN_VIRQFD_INJECT
NOWHERE = (None, None)

Row = dict[str, Any]


@dataclass(eq=False)
class Vm:
    id: int | None = None
    pid: int = 0


@dataclass(eq=False)
class Interrupt:
    device: Device
    origin: str
    raised: int | None
    gsi: int | None
    path: str = "unknown"
    sent: int | None = None
    woken: int | None = None
    taken: int | None = None
    injected: int | None = None
    acknowledged: int | None = None
    unmasked: int | None = None
    refused: int | None = None
    eoi: int | None = None
    proof: str | None = None
    coalesced: bool | None = None
    parent: Interrupt | None = None
    bar_accesses: int | None = None
    reentries: int | None = None
    being_raised: bool = False
    """kvm_set_irq(level 1) is running for it."""
    raised_as: int = 0
    """Which call that raised a line it was, counted."""
    injected_assumed: bool = False
    """Inside the wake-up, unless an irqfd_inject follows."""
    by_ioctl_of: int | None = None
    """The thread whose unmask ioctl found the line asserted, and signals before it returns if it does."""
    split: bool = False
    """It was injected as an MSI: the irqchip is split, and QEMU writes the resamplefd when the guest ends it."""
    torn: bool = False
    """What would have acknowledged it is gone."""
    acknowledged_unseen: bool = False
    signal_missed: bool = False
    """Perhaps: its handler began before the trace, or events were lost."""
    counting_bars: bool = False
    nothing_more: bool = False
    headless: bool = False
    lossy: bool = False
    row: Row | None = None


@dataclass(eq=False)
class Unmask:
    """A call of vfio_pci_intx_unmask_handler that has not returned."""

    opened: int | None = None
    """When it was seen to open the line, until somebody claimed it."""
    claimed_within: bool = False
    """The line was claimed since it opened it."""


@dataclass(eq=False)
class Handler:
    """A call of vfio_intx_handler that has not returned."""

    entered: int | None
    interrupt: Interrupt | None = None


@dataclass(eq=False)
class Task:
    raising: Device | None = None
    asserted: bool = False
    taking: Device | None = None
    qemu_call: tuple[str, int, int] | None = None
    """The QEMU function that waits for its kernel call, its VFIODevice (0: joined already) and when."""
    lowered: int | None = None
    ack: tuple[int, Vm | None, int] | None = None
    resampling: bool = False
    notified: int | None = None
    exited: int | None = None
    runs_guest: bool = False
    wrote: tuple[int, int] | None = None
    irqs_device: Device | None = None
    irqs_flags: int = 0
    irqs_last: int = 0
    proof: bool = False
    """The unmask that runs was seen to open the line."""


@dataclass(eq=False)
class Device:
    pointer: int
    state_at: int
    id: int | None = None
    bdf: str | None = None
    host_irq: int = 0
    owner: int = 0
    vm: Vm | None = None
    trigger: int = 0
    no_trigger: bool = False
    """None is set; otherwise `trigger` 0 is one that is not known."""
    resample: int = 0
    line: tuple[Vm, int] | None = None
    flight: list[Interrupt] = field(default_factory=list)
    masked_by: Interrupt | None = None
    mask_known: bool = False
    unmasks: dict[Any, Unmask] = field(default_factory=dict)
    virq_disabled: bool = False
    shared_mode: bool = False
    handler: Handler | None = None
    trapped: Interrupt | None = None
    lost: bool = False
    state: str = "unknown"
    reason: str = "no event has shown it yet"
    bars: dict[int, bool] = field(default_factory=dict)


class Reference:
    """Reconstructs one trace. `interrupts`, `states` and `counters` hold rows as dicts, without the durations."""

    def __init__(self, records: np.ndarray[Any, Any], tables: Tables) -> None:
        self.tables = tables
        self.probes = {p.id: (p.state in ("attached", "fallback"), set(p.kinds)) for p in tables.probes}
        self.interrupts: list[Row] = []
        self.states: list[Row] = []
        self.counters: list[Row] = []
        self.counts: dict[tuple[Device | None, str, int | None, int | None], int] = defaultdict(int)
        self.window: int | None = None
        self.devices: list[Device] = []
        self.by_pointer: dict[tuple[int, bool], Device] = {}
        self.by_row: dict[int, Device] = {}
        self.triggers: dict[int, Device] = {}
        self.resamples: dict[int, Device] = {}
        self.qemu: dict[tuple[int, int], Device] = {}
        self.vms: dict[tuple[int, bool], Vm] = {}
        self.vm_of_pid: dict[int, Vm] = {}
        self.tasks: dict[tuple[int, int], Task] = defaultdict(Task)
        self.woken: tuple[Device, int] | None = None
        self.raises = 0
        order = np.argsort(records["ts"], kind="stable")
        names = records.dtype.names or ()
        for values in records[order].tolist():
            self.event(Event(names, values))
        for d in self.devices:
            while d.flight:
                self.hand_out(d, "open")
            self.end_state(d, None)
        self.end_window()

    # ---- what the recording can show

    def shows(self, *kinds: Kind) -> bool:
        if not self.probes:
            return Kind.QEMU_REGION_COUNT not in kinds or len(kinds) > 1
        return any(on and kind.name in names for on, names in self.probes.values() for kind in kinds)

    # ---- identities

    def known(self, e: Event) -> Device | None:
        synthetic = bool(e.flags & Flag.SYNTHETIC)
        if e.device == 0 and not synthetic:
            return None
        return self.by_pointer.get((e.device, synthetic))

    def device(self, e: Event) -> Device:
        d = self.known(e)
        if d is None:
            d = self.new_device(e)
        return d

    def new_device(self, e: Event) -> Device:
        synthetic = bool(e.flags & Flag.SYNTHETIC)
        d = Device(e.device, e.ts, id=e.device if synthetic else None)
        self.devices.append(d)
        self.by_pointer[e.device, synthetic] = d
        if synthetic:
            self.by_row[e.device] = d
        return d

    def task(self, e: Event) -> Task:
        return self.tasks[self.task_key(e)]

    def task_key(self, e: Event) -> tuple[int, int]:
        return (e.tid, e.cpu if e.tid == 0 else -1)

    def vm(self, e: Event) -> Vm | None:
        synthetic = bool(e.flags & Flag.SYNTHETIC)
        if e.vm == 0 and not synthetic:
            return None
        if (e.vm, synthetic) not in self.vms:
            self.vms[e.vm, synthetic] = Vm(e.vm if synthetic else None)
        return self.vms[e.vm, synthetic]

    def of_trigger(self, ctx: int) -> Device | None:
        d = self.triggers.get(ctx)
        return d if d and ctx and d.trigger == ctx else None

    def of_resample(self, ctx: int) -> Device | None:
        d = self.resamples.get(ctx)
        return d if d and ctx and d.resample == ctx else None

    def learn(self, d: Device, *, trigger: int = 0, resample: int = 0) -> None:
        if trigger and d.trigger != trigger:
            d.trigger = trigger
            d.no_trigger = False
            self.triggers[trigger] = d
        if resample and d.resample != resample:
            d.resample = resample
            self.resamples[resample] = d

    def learn_line(self, d: Device, vm: Vm | None, gsi: int) -> None:
        if vm is not None and d.line != (vm, gsi):
            d.vm = vm
            d.line = (vm, gsi)

    def on_line(self, vm: Vm | None, gsi: int) -> list[Device]:
        return [d for d in self.devices if vm is not None and d.line == (vm, gsi)]

    def of_irqfd(self, e: Event) -> Device | None:
        """The call it is nested in tells, or its eventfds, or that one device alone was bound to its GSI unnamed."""
        d = self.known(e) or self.of_trigger(e.arg1) or self.of_resample(e.link2)
        if d is None:
            bound = self.on_line(self.vm(e), e.arg0)
            d = bound[0] if len(bound) == 1 and bound[0].trigger == 0 else None
        if d is not None:
            self.learn(d, trigger=e.arg1, resample=e.link2)
            self.learn_line(d, self.vm(e), e.arg0)
        return d

    def of_qemu(self, e: Event) -> Device | None:
        if e.flags & Flag.SYNTHETIC:
            return self.device(e)
        return self.qemu.get((e.device, e.tgid))

    def join(self, vfio_device: int, tgid: int, d: Device) -> None:
        if vfio_device:
            self.qemu[vfio_device, tgid] = d
            d.owner = tgid

    # ---- the life of an interrupt

    def open(self, d: Device, origin: str, raised: int | None) -> Interrupt:
        x = Interrupt(d, origin, raised, d.line[1] if d.line else None)
        d.flight.append(x)
        return x

    def open_masked(self, d: Device, origin: str, raised: int | None) -> Interrupt:
        x = self.open(d, origin, raised)
        d.masked_by = x
        d.mask_known = True
        return x

    def open_without_beginning(self, d: Device, path: str) -> Interrupt:
        """It began before the trace; or its beginning was missed, if the device was already known."""
        x = self.open(d, "unknown", None)
        x.path = path
        x.lossy = d.lost or d.mask_known
        x.headless = not x.lossy
        return x

    def over(self, x: Interrupt) -> bool:
        """Every end stage that this recording's probes can show was seen."""
        masked = x.device.masked_by is x
        if masked and self.shows(Kind.UNMASK_EXIT):
            return False
        ended = (x.unmasked is not None or x.refused is not None) and not self.shows(Kind.IRQFD_WAKEUP)
        if x.path == "unknown" and x.sent is not None and not ended:
            return False
        unsent = x.origin in ("resignal", "pending") and x.sent is None and x.path != "held" and not x.lossy
        if unsent and self.shows(Kind.EVENTFD_SIGNAL):
            return False
        if x.path == "userspace" and x.taken is None and self.shows(Kind.EVENTFD_READ, Kind.QEMU_INTERRUPT):
            return False
        if x.acknowledged is not None or x.torn or x.acknowledged_unseen:
            return True
        if x.being_raised and self.shows(Kind.KVM_SET_IRQ_EXIT):
            return False
        if x.woken is not None and x.injected is None and self.shows(Kind.IRQFD_INJECT):
            return False
        if x.path == "kernel":
            shown = self.shows(Kind.RESAMPLER_ACK, Kind.KVM_ACK)
        elif x.path == "userspace":
            shown = self.shows(Kind.QEMU_EOI) or (self.shows(Kind.KVM_SET_IRQ) and x.injected is not None)
        else:
            written = self.shows(Kind.QEMU_RESAMPLE_NOTIFY, Kind.EVENTFD_WRITE)
            shown = x.split and written and self.shows(Kind.VIRQFD_WAKEUP)
        return not masked and not shown

    def awaited(self, x: Interrupt) -> bool:
        """On the userspace path the guest's EOI and more BAR accesses follow the unmask.

        On the kernel path, the work that an unmask which returned 1 queues, where nothing else of the unmask is shown.
        """
        unmask_is_shown = self.shows(Kind.UNMASK_ENTRY, Kind.UNMASK_EXIT)
        if x.path == "kernel" and not unmask_is_shown and self.shows(Kind.WORK_QUEUED):
            return x.device.masked_by is x
        if x.path != "userspace" or x.torn or x.nothing_more:
            return False
        return (x.eoi is None and x.injected is not None and self.shows(Kind.KVM_ACK)) or x.counting_bars

    def close_what_is_over(self) -> None:
        for d in self.devices:
            while d.flight and self.over(d.flight[0]) and not self.awaited(d.flight[0]):
                self.hand_out(d, "open")
            while len(d.flight) > MAX_IN_FLIGHT:
                if not self.over(d.flight[0]):
                    d.flight[0].lossy = True
                self.hand_out(d, "open")

    def hand_out(self, d: Device, otherwise: str) -> None:
        x = d.flight.pop(0)
        if x.lossy:
            outcome = "lossy"
        elif x.headless:
            outcome = "headless"
        elif not self.over(x):
            outcome = otherwise
        else:
            outcome = "cancelled" if x.torn and x.acknowledged is None else "complete"
        by_qemu = x.path == "userspace" and self.shows(Kind.EVENTFD_READ, Kind.QEMU_INTERRUPT)
        x.row = {
            "id": len(self.interrupts),
            "parent": x.parent.row["id"] if x.parent and x.parent.row else None,
            **self.place(d),
            "vm_pid": d.owner or (d.vm.pid if d.vm else 0) or None,
            "host_irq": d.host_irq or None,
            "gsi": x.gsi,
            "path": x.path,
            "origin": x.origin,
            "outcome": outcome,
            "coalesced": x.coalesced,
            "raised_at": x.raised,
            "signalled_at": x.taken if by_qemu else x.sent,
            "injected_at": x.injected,
            "acknowledged_at": x.acknowledged,
            "unmasked_at": x.unmasked,
            "eoi_at": x.eoi,
            "unmask_proof": x.proof,
            "bar_accesses": x.bar_accesses,
            "reentries": x.reentries,
        }
        self.interrupts.append(x.row)
        if d.masked_by is x:
            d.masked_by = None
        if d.trapped is x:
            d.trapped = None

    def place(self, d: Device | None) -> Row:
        if d is None:
            return {"device": None, "bdf": None, "vm": None}
        vm = d.vm or (self.vm_of_pid.get(d.owner) if d.owner else None)
        names = {row.id: row.name for row in self.tables.vms}
        return {"device": d.id, "bdf": d.bdf, "vm": names.get(vm.id) if vm and vm.id is not None else None}

    # ---- states and counters

    def count(self, d: Device | None, counter: str, n: int = 1, where: tuple[int | None, int | None] = NOWHERE) -> None:
        self.counts[d, counter, *where] += n

    def end_window(self) -> None:
        for (d, counter, region, offset), n in self.counts.items():
            if n:
                where = {"region": region, "offset": offset, "count": n}
                self.counters.append({**self.place(d), "begin_at": self.window, "counter": counter, **where})
        self.counts.clear()

    def mapped(self, d: Device) -> bool | None:
        return all(d.bars.values()) if d.bars else None

    def end_state(self, d: Device, ts: int | None) -> None:
        if ts != d.state_at:
            times = {"begin_at": d.state_at, "end_at": ts, "reason": d.reason}
            self.states.append({**self.place(d), "state": d.state, "bars_mapped": self.mapped(d), **times})

    def set_state(self, d: Device, state: str, reason: str, ts: int) -> None:
        if (d.state, d.reason) != (state, reason):
            self.end_state(d, ts)
            d.state, d.state_at, d.reason = state, ts, reason

    def observe(self, d: Device, state: str, certain: bool, ts: int) -> None:
        """An interrupt shows its device's state, where no set-up call of this trace did."""
        if d.state == "unknown":
            d.state, d.reason = state, "an interrupt took this path"
        elif certain and d.state != state:
            self.set_state(d, state, "an interrupt took this path", ts)

    # ---- events

    def event(self, e: Event) -> None:
        if self.window is None or e.ts >= self.window + SECOND:
            if self.window is not None:
                self.end_window()
            self.window = e.ts - e.ts % SECOND
        rule = getattr(self, "on_" + Kind(e.kind).name.lower(), None)
        if rule:
            rule(e)
        self.close_what_is_over()

    def on_handler_entry(self, e: Event) -> None:
        d = self.device(e)
        self.count(d, "handler_calls")
        d.handler = Handler(e.ts)
        d.host_irq = d.host_irq or e.arg0

    def on_handler_exit(self, e: Event) -> None:
        d = self.device(e)
        if d.handler is None or d.handler.entered is None:
            self.count(d, "handler_calls")
        if e.value == 0:
            self.count(d, "unclaimed")
        elif d.handler is None or d.handler.interrupt is None:
            begun = (d.handler and d.handler.entered is not None) or not self.shows(Kind.HANDLER_ENTRY)
            x = self.claim(d)
            if not begun:
                x.signal_missed = True
            elif self.shows(Kind.EVENTFD_SIGNAL):
                x.path = "held"
        else:
            self.left_to_qemu(d.handler.interrupt, e.ts)
        d.handler = None

    def claim(self, d: Device) -> Interrupt:
        """The handler masked the line, so the line was open before."""
        d.handler = d.handler or Handler(None)
        before, d.masked_by = d.masked_by, None
        if d.unmasks:
            # The unmask that is running opened it.
            proofs = [call.opened for call in d.unmasks.values() if call.opened is not None]
            for call in d.unmasks.values():
                call.claimed_within = True
                call.opened = None
            opened = max(proofs) if proofs else d.handler.entered
            if before and opened is not None:
                before.unmasked = opened
                before.proof = "checked" if proofs else "assumed"
        elif before and self.shows(Kind.UNMASK_EXIT):
            before.lossy = before.torn = True
        elif before and not self.shows(Kind.UNMASK_ENTRY) and before.path == "kernel" and d.line is None:
            before.acknowledged_unseen = True
        known = d.lost or d.mask_known
        x = self.open_masked(d, "hardware", d.handler.entered)
        if x.raised is None and self.shows(Kind.HANDLER_ENTRY):
            x.lossy, x.headless = known, not known
        d.lost = False
        d.handler.interrupt = x
        return x

    def left_to_qemu(self, x: Interrupt, ts: int) -> None:
        if x.path == "unknown" and x.woken is None and self.shows(Kind.IRQFD_WAKEUP) and x.row is None:
            x.path = "userspace"
            self.observe(x.device, "userspace", False, ts)

    def on_eventfd_signal(self, e: Event) -> None:
        if e.flags & Flag.IN_RESAMPLER_ACK or self.of_resample(e.link):
            return
        d = self.known(e) or self.of_trigger(e.link)
        if d is None:
            return
        self.learn(d, trigger=e.link)
        if e.flags & Flag.IN_HANDLER:
            x = self.claim(d)
        else:
            flags = self.task(e).irqs_flags
            fires = flags & SetIrqs.ACTION_TRIGGER and flags & (SetIrqs.DATA_NONE | SetIrqs.DATA_BOOL)
            loopback = e.flags & Flag.IN_SET_IRQS and fires
            unsent = [x for x in d.flight if x.sent is None and x.path != "held"]
            raised_by_unmask = [x for x in unsent if x.origin in ("resignal", "pending")]
            if loopback:
                x = self.open(d, "software", e.ts)
            elif raised_by_unmask:
                x = raised_by_unmask[0]
            elif e.flags & BY_UNMASK:
                x = self.refuse(d, None, e.ts)
            else:
                x = self.open(d, "unknown", None)
        x.sent = e.ts

    def on_eventfd_write(self, e: Event) -> None:
        self.task(e).wrote = (e.ts, e.link)
        d = self.of_trigger(e.link)
        if d:
            self.open(d, "software", e.ts).sent = e.ts

    def on_irqfd_wakeup(self, e: Event) -> None:
        d = self.of_irqfd(e) if e.value & EPOLLIN else None
        if d is None:
            return
        self.woken = (d, e.cpu)
        signal_is_needed = self.shows(Kind.EVENTFD_SIGNAL)
        candidates = [
            x
            for x in d.flight
            if (x.sent is not None or x.signal_missed or not signal_is_needed)
            and x.woken is None
            and x.taken is None
            and not x.torn
            and x.path != "held"
        ]
        wrote = self.task(e).wrote
        if candidates:
            x = candidates[-1]
        elif e.flags & Flag.IN_HANDLER:
            x = self.claim(d)
        elif e.flags & BY_UNMASK:
            x = self.refuse(d, None, e.ts)
        elif e.flags & Flag.IN_EVENTFD_WRITE:
            x = self.open(d, "software", wrote[0] if wrote else e.ts)
        elif signal_is_needed and not self.shows(Kind.EVENTFD_WRITE):
            x = self.open(d, "software", e.ts)
        else:
            x = self.open_without_beginning(d, "unknown")
        x.woken = e.ts
        x.sent = e.ts if x.sent is None else x.sent
        x.gsi = e.arg0
        x.path = "kernel" if e.link2 else "hybrid"
        if not e.link2 and not self.shows(Kind.MSI_SET_IRQ):
            x.injected = e.ts
            x.injected_assumed = True
        self.observe(d, x.path, True, e.ts)

    def on_msi_set_irq(self, e: Event) -> None:
        d = self.known(e)
        if not self.shows(Kind.IRQFD_WAKEUP):
            if d and e.flags & Flag.IN_HANDLER:
                self.msi_of_handler(d, e)
            return
        if d is None and e.flags & Flag.IN_IRQFD_WAKEUP and self.woken and self.woken[1] == e.cpu:
            d = self.woken[0]
        if d and d.flight and d.flight[-1].path == "hybrid" and d.flight[-1].injected is None:
            d.flight[-1].injected = e.ts
            d.flight[-1].split = True

    def msi_of_handler(self, d: Device, e: Event) -> None:
        """No probe shows the wake-up, in which alone the handler raises an interrupt of a guest."""
        x = d.handler.interrupt if d.handler else None
        if x is None:
            x = self.claim(d)
        if x.row is not None or x.injected is not None:
            return
        x.woken = x.injected = e.ts
        x.path = "hybrid"
        x.split = True
        self.observe(d, "hybrid", True, e.ts)

    # ---- delivering

    def raise_line(self, x: Interrupt, with_another: bool, ts: int) -> None:
        x.injected = ts
        x.being_raised = True
        self.raises += 1
        x.raised_as = self.raises
        x.injected_assumed = False
        if with_another:
            x.coalesced = True
        if x.path == "userspace" and self.shows(Kind.KVM_ACK):
            x.reentries = 0

    def on_irqfd_inject(self, e: Event) -> None:
        task = self.task(e)
        self.end_raising(task, None)
        d = self.of_irqfd(e)
        if d is None:
            return
        self.raised_line(d, None)
        path = "kernel" if e.link2 else "hybrid"
        queued = [x for x in d.flight if x.injected_assumed or (x.woken is not None and x.injected is None)]
        if not queued:
            waiting = self.waiting(d)
            if waiting:
                x = waiting[0]
            else:
                x = self.open_without_beginning(d, path)
                if d.masked_by is None and not d.mask_known:
                    d.masked_by, d.mask_known = x, True
            x.path = path
            x.woken = e.ts
            x.gsi = e.arg0
            queued = [x]
        for x in queued:
            self.raise_line(x, x is not queued[0], e.ts)
        self.observe(d, path, True, e.ts)
        task.raising, task.asserted = d, False

    def on_kvm_set_irq(self, e: Event) -> None:
        task = self.task(e)
        if e.value == 0:
            if e.arg1 == 0 and task.raising is None:
                task.lowered = e.ts
                if not self.shows(Kind.SET_IRQS_ENTRY, Kind.QEMU_EOI):
                    self.lowered_by_qemu(e)
            return
        if task.raising and not task.asserted:
            task.asserted = True
            for x in task.raising.flight:
                if x.being_raised:
                    x.injected = e.ts
                    self.raises += 1
                    x.raised_as = self.raises
            return
        self.end_raising(task, None)
        if e.arg1 != 0:
            return
        d, task.taking = task.taking, None
        if d is None:
            if self.shows(Kind.EVENTFD_READ, Kind.QEMU_INTERRUPT) or task.runs_guest:
                return
            d = self.only_waiting(e.tgid)
            if d is None or (d.line and d.line[1] != e.arg0):
                return
            self.take(d, task, e.ts, e.ts, probed=False)
            task.taking = None
        self.learn_line(d, self.vm(e), e.arg0)
        mine = [x for x in d.flight if x.taken is not None and x.injected is None and not x.torn]
        for x in mine:
            x.gsi = e.arg0
            self.raise_line(x, x is not mine[0], e.ts)
        task.raising, task.asserted = d, True

    def lowered_by_qemu(self, e: Event) -> None:
        """By vfio_intx_eoi, if what QEMU took for one device alone is in service on that GSI."""
        mine = [x for d in self.devices for x in d.flight if x.taken is not None and x.gsi == e.arg0]
        served = [x.device for x in mine if x.injected is not None and x.acknowledged is None]
        if served and all(d is served[0] for d in served):
            self.acknowledge(served[0], e.ts)

    def on_kvm_set_irq_exit(self, e: Event) -> None:
        if e.aux:
            self.end_raising(self.task(e), e.value)

    def end_raising(self, task: Task, returned: int | None) -> None:
        d, task.raising = task.raising, None
        if d:
            self.raised_line(d, returned)

    def raised_line(self, d: Device, returned: int | None) -> None:
        for x in d.flight:
            if x.being_raised:
                if x.coalesced is None:
                    if returned is not None and returned > 0:
                        x.coalesced = False
                    elif self.in_service(x):
                        x.coalesced = True
                x.being_raised = False

    def in_service(self, x: Interrupt) -> bool:
        """An earlier delivery on the same GSI has not had its EOI."""
        if x.device.line:
            candidates = [y for d in self.on_line(*x.device.line) for y in d.flight]
        else:
            # The VM is not known: the GSI has to do.
            others = [y for d in self.devices if d.line is None for y in d.flight]
            candidates = [y for y in others if x.gsi in (None, y.gsi)]
        return any(
            y is not x
            and y.injected is not None
            and y.eoi is None
            and not (y.path != "userspace" and y.acknowledged is not None)
            and (not y.being_raised or y.coalesced is False)
            for y in candidates
        )

    def on_apic_accept(self, e: Event) -> None:
        if e.flags & Flag.IN_IRQFD_WAKEUP:
            accepted = [
                d.flight[-1] for d in self.on_line(self.vm(e), e.arg0) if d.flight and d.flight[-1].path == "hybrid"
            ]
        else:
            d = self.task(e).raising
            accepted = [x for x in d.flight if x.being_raised] if d else []
        for x in accepted:
            if x.coalesced is None:
                x.coalesced = False

    def on_kvm_ack(self, e: Event) -> None:
        master, ioapic = 0, 2
        if e.arg0 == 2 and e.arg1 == master:
            return
        gsi = 0 if e.arg0 == 2 and e.arg1 == ioapic else e.arg0
        task = self.task(e)
        task.ack = (e.ts, self.vm(e), gsi)
        task.resampling = False
        line = self.on_line(self.vm(e), gsi)
        raised = [x for d in line for x in d.flight if x.being_raised and x.coalesced is None and x.eoi is None]
        for x in sorted(raised, key=lambda x: x.raised_as):
            # The guest was quicker than the return of kvm_set_irq; was there another delivery that it ended?
            if not self.in_service(x):
                x.coalesced = False
            elif not self.shows(Kind.KVM_SET_IRQ_EXIT) and self.shows(Kind.APIC_ACCEPT):
                x.coalesced = True
        for d in line:
            self.guest_eoi(d, e.ts)

    def guest_eoi(self, d: Device, ts: int) -> None:
        reached = [x for x in d.flight if x.injected is not None and x.eoi is None and not x.torn]
        in_isr = [x for x in reached if x.path == "userspace" and x.acknowledged is None]
        served = [x for x in reached if x.path == "userspace" and x.acknowledged is not None]
        for x in served:
            x.eoi = ts
        for x in reached:
            if x.path != "userspace":
                x.eoi = ts
                by_resampler = x.path == "kernel" and self.shows(Kind.RESAMPLER_ACK)
                if x.acknowledged is None and not by_resampler:
                    x.acknowledged = ts
        if in_isr and not served:
            # The guest left its ISR and QEMU saw no BAR access: the line is still high.
            in_isr[-1].reentries = (in_isr[-1].reentries or 0) + 1
            self.count(d, "reentries")

    def on_resampler_ack(self, e: Event) -> None:
        task = self.task(e)
        task.ack = (e.ts, self.vm(e), e.arg0)
        task.resampling = True
        shows_injection = self.shows(Kind.IRQFD_INJECT, Kind.KVM_SET_IRQ)
        for d in self.on_line(self.vm(e), e.arg0):
            for x in d.flight:
                if x.path == "kernel" and x.acknowledged is None and (x.injected is not None or not shows_injection):
                    x.acknowledged = e.ts
                    x.eoi = e.ts if x.eoi is None else x.eoi

    def on_virqfd_wakeup(self, e: Event) -> None:
        d = self.known(e) if e.value & EPOLLIN else None
        if d is None:
            return
        self.learn(d, resample=e.link)
        task = self.task(e)
        if task.resampling and task.ack:
            self.learn_line(d, task.ack[1], task.ack[2])
        wrote = task.wrote
        if wrote and not (e.flags & Flag.IN_EVENTFD_WRITE or wrote[1] == e.link):
            wrote = None
        for x in d.flight:
            if x.path == "hybrid" and x.injected is not None and x.acknowledged is None:
                if task.notified is not None and task.notified >= x.injected:
                    x.acknowledged = task.notified
                elif wrote and wrote[0] >= x.injected:
                    x.acknowledged = wrote[0]
                if x.eoi is None and task.exited is not None and task.exited >= x.injected:
                    x.eoi = task.exited

    # ---- masking

    def on_unmask_entry(self, e: Event) -> None:
        self.task(e).proof = False
        calls = self.device(e).unmasks
        before = calls.get(self.task_key(e))  # Its return was not recorded: what it opened is still open.
        calls[self.task_key(e)] = Unmask(before.opened if before else None)

    def on_checked_unmask(self, e: Event) -> None:
        d = self.known(e)
        if d:
            d.shared_mode = True
        if e.value:
            self.on_enable_irq(e)

    def on_enable_irq(self, e: Event) -> None:
        self.task(e).proof = True
        d = self.known(e)
        if d and self.task_key(e) in d.unmasks:
            # Whoever claimed the line before this, it is open for now.
            d.unmasks[self.task_key(e)] = Unmask(opened=e.ts)

    def on_unmask_exit(self, e: Event) -> None:
        d = self.device(e)
        task = self.task(e)
        call = d.unmasks.pop(self.task_key(e), Unmask())
        proof, task.proof = task.proof, False
        if e.value > 0:
            refused = self.refuse(d, task, e.ts)
            if task.irqs_flags & SetIrqs.ACTION_UNMASK:
                refused.by_ioctl_of = e.tid
        elif call.claimed_within:
            pass
        elif self.really_unmasked(d, proof):
            x = d.masked_by or self.end_without_beginning(d, task, proof)
            d.mask_known = True
            d.masked_by = None
            if x:
                x.unmasked = e.ts
                x.proof = "checked" if proof else "assumed"
            else:
                self.count(d, "noop_unmasks")
        else:
            self.count(d, "noop_unmasks")
        task.ack = None
        task.resampling = False

    def really_unmasked(self, d: Device, proof: bool) -> bool:
        if proof:
            return True
        would_be_seen = self.shows(Kind.CHECKED_UNMASK) and (self.shows(Kind.ENABLE_IRQ) or d.shared_mode)
        return not d.virq_disabled and not would_be_seen and (d.masked_by is not None or not d.mask_known)

    def end_without_beginning(self, d: Device, task: Task, proof: bool) -> Interrupt | None:
        if d.mask_known or not (proof or task.resampling):
            return None
        x = self.open_without_beginning(d, "kernel" if task.resampling else "unknown")
        if task.resampling and task.ack:
            x.acknowledged = x.eoi = task.ack[0]
            x.gsi = task.ack[2]
        return x

    def refuse(self, d: Device, task: Task | None, ts: int) -> Interrupt:
        parent = d.masked_by
        if parent is None and task is not None:
            parent = self.end_without_beginning(d, task, False)
        if parent and (parent.sent is not None or parent.headless):
            child = self.open_masked(d, "resignal", ts if task is not None else None)
            child.parent = parent
        else:
            child = self.open_masked(d, "pending", None)
        if d.no_trigger and self.shows(Kind.EVENTFD_SIGNAL):
            child.path = "held"
        if parent:
            parent.refused = ts
        return child

    def on_mask(self, e: Event) -> None:
        d = self.device(e)
        d.mask_known = True
        if not e.flags & Flag.IN_SET_IRQS and e.aux == 0:
            d.virq_disabled = True

    def on_config_unmask(self, e: Event) -> None:
        if not e.flags & Flag.IN_SET_IRQS:
            self.device(e).virq_disabled = False

    # ---- QEMU

    def on_qemu_interrupt(self, e: Event) -> None:
        task = self.task(e)
        if self.shows(Kind.EVENTFD_READ):
            task.qemu_call = ("interrupt", e.device, e.ts)
            return
        task.qemu_call = None
        d = self.of_qemu(e)
        if d is None:
            d = self.only_waiting(e.tgid)
            if d:
                self.join(e.device, e.tgid, d)
        if d:
            self.take(d, task, e.ts, e.ts, probed=True)

    def on_eventfd_read(self, e: Event) -> None:
        task = self.task(e)
        d = self.of_trigger(e.link)
        if not task.qemu_call or task.qemu_call[0] != "interrupt":
            if d and e.value > 0:
                self.take(d, task, e.ts, e.ts, probed=False)
            return
        _, vfio_device, called = task.qemu_call
        task.qemu_call = None
        if d is None and vfio_device:
            d = self.qemu.get((vfio_device, e.tgid))
            if d:
                self.learn(d, trigger=e.link)
        if d:
            self.join(vfio_device, e.tgid, d)
            if e.value > 0:
                self.take(d, task, called, e.ts, probed=True)
            else:
                self.count(d, "spurious_wakeups")

    def waiting(self, d: Device) -> list[Interrupt]:
        """Signalled (or raised, where no probe shows signals), and neither QEMU nor an irqfd took it."""
        return [
            x
            for x in d.flight
            if (x.sent is not None or x.signal_missed or (not self.shows(Kind.EVENTFD_SIGNAL) and x.path != "held"))
            and x.woken is None
            and x.taken is None
            and not x.torn
            and not x.headless
        ]

    def only_waiting(self, tgid: int) -> Device | None:
        waiting = [d for d in self.devices if d.owner == tgid and self.waiting(d)]
        return waiting[0] if len(waiting) == 1 else None

    def take(self, d: Device, task: Task, at: int, now: int, *, probed: bool) -> None:
        """QEMU takes up all that is signalled: the eventfd is one counter."""
        if d.trapped:
            d.trapped.counting_bars = False
            d.trapped = None
        taken = self.waiting(d)
        for x in taken[1:]:
            x.coalesced = True
        if not taken:
            x = self.open_without_beginning(d, "userspace")
            resignal = d.mask_known and not self.shows(Kind.UNMASK_EXIT)
            if not self.shows(Kind.EVENTFD_SIGNAL) and (resignal or not self.shows(Kind.HANDLER_ENTRY)):
                x.headless, x.lossy = False, d.lost
            if d.masked_by is None:
                d.masked_by, d.mask_known = x, True
            taken = [x]
        for x in taken:
            x.taken = at
            x.path = "userspace"
        if probed and self.shows(Kind.QEMU_REGION_READ, Kind.QEMU_REGION_COUNT):
            taken[-1].bar_accesses = 0
            taken[-1].counting_bars = True
            d.trapped = taken[-1]
        self.observe(d, "userspace", False, now)
        task.taking = d

    def on_qemu_eoi(self, e: Event) -> None:
        d = self.of_qemu(e)
        self.task(e).qemu_call = ("eoi", 0 if d else e.device, e.ts)
        if d:
            self.acknowledge(d, e.ts)

    def acknowledge(self, d: Device, ts: int | None) -> None:
        for x in d.flight:
            if x.taken is not None and x.acknowledged is None and not x.torn:
                x.acknowledged = ts
                x.acknowledged_unseen = ts is None

    def on_qemu_enable(self, e: Event) -> None:
        self.task(e).qemu_call = ("enable", e.device, e.ts)

    def on_qemu_resample_notify(self, e: Event) -> None:
        self.task(e).notified = e.ts

    def on_kvm_eoi(self, e: Event) -> None:
        self.task(e).runs_guest = True

    def on_userspace_exit(self, e: Event) -> None:
        self.task(e).runs_guest = True
        if e.value == 26:
            self.task(e).exited = e.ts

    def on_qemu_region_read(self, e: Event) -> None:
        if not self.shows(Kind.QEMU_REGION_COUNT):
            self.accesses(e, 1, 0)
            self.accesses_at(e, "bar_reads", 1)

    def on_qemu_region_write(self, e: Event) -> None:
        if not self.shows(Kind.QEMU_REGION_COUNT):
            self.accesses(e, 0, 1)
            self.accesses_at(e, "bar_writes", 1)

    def on_qemu_region_count(self, e: Event) -> None:
        self.accesses(e, e.arg0, e.arg1)

    def on_qemu_region_offsets(self, e: Event) -> None:
        self.accesses_at(e, "bar_writes" if e.value else "bar_reads", e.arg1)

    def accesses(self, e: Event, reads: int, writes: int) -> None:
        d = self.of_qemu(e)
        if d:
            self.count(d, "bar_reads", reads)
            self.count(d, "bar_writes", writes)
            if d.trapped and d.trapped.bar_accesses is not None:
                d.trapped.bar_accesses += reads + writes

    def accesses_at(self, e: Event, counter: str, n: int) -> None:
        d = self.of_qemu(e)
        if d:
            self.count(d, counter, n, (e.aux, e.arg0))

    def on_qemu_mmaps(self, e: Event) -> None:
        d = self.of_qemu(e)
        if d is None or e.aux >= 32:
            return
        after = {**d.bars, e.aux: bool(e.value)}
        if all(after.values()) is not self.mapped(d):
            self.end_state(d, e.ts)
            d.state_at = e.ts
            d.reason = f"the BARs were {'mapped into' if all(after.values()) else 'unmapped from'} the guest"
        d.bars = after

    # ---- set-up

    def on_set_irqs_entry(self, e: Event) -> None:
        d = self.device(e)
        if d.owner not in (0, e.tgid):
            d.virq_disabled = False
        d.owner = e.tgid
        task = self.task(e)
        if e.arg1 & 0xFFFF:
            return
        task.irqs_device, task.irqs_flags, task.irqs_last = d, e.arg0, e.arg0
        caller, vfio_device, called = task.qemu_call or ("", 0, 0)
        if caller == "eoi" and e.arg0 == UNMASK_IOCTL:
            if vfio_device:
                self.join(vfio_device, e.tgid, d)
                self.acknowledge(d, called)
            task.qemu_call = None
        elif caller == "enable" and e.arg0 == SET_TRIGGER:
            self.join(vfio_device, e.tgid, d)
            task.qemu_call = None
        elif e.arg0 == UNMASK_IOCTL:
            self.acknowledge(d, task.lowered)
        task.lowered = None
        if not self.shows(Kind.SET_IRQS_EXIT):
            self.set_up(d, e)

    def on_set_irqs_exit(self, e: Event) -> None:
        d = self.device(e)
        if d.flight and d.flight[-1].sent is not None:
            self.left_to_qemu(d.flight[-1], e.ts)
        if self.task(e).irqs_flags & SetIrqs.ACTION_UNMASK and self.shows(Kind.EVENTFD_SIGNAL):
            for x in d.flight:
                if x.by_ioctl_of == e.tid and x.sent is None and not x.signal_missed and x.path == "unknown":
                    x.path = "held"
        self.task(e).irqs_flags = 0
        if e.value >= 0:
            self.set_up(d, e)

    def set_up(self, d: Device, e: Event) -> None:
        index, count = e.arg1 & 0xFFFF, e.arg1 >> 32 & 0xFFFF
        if index == 0 and e.arg0 == SET_TRIGGER:
            if e.aux in (-1, 0xFFFFFFFF):
                d.trigger = 0
                d.no_trigger = True
                return
            moved = 0 not in (e.link, d.trigger) and d.trigger != e.link
            self.learn(d, trigger=e.link)
            d.mask_known = True
            if d.state in ("off", "unknown") or moved:
                self.set_state(d, "userspace", "INTx was enabled; QEMU has set up no irqfd", e.ts)
        elif index == 0 and e.arg0 == SET_RESAMPLE:
            self.learn(d, resample=e.link)
        elif index == 0 and e.arg0 == TRIGGER_NOW and count == 0:
            self.shut_down(d, "INTx was disabled", e.ts)
            d.mask_known = True
        elif index in (1, 2) and e.arg0 & SetIrqs.ACTION_TRIGGER and count > 0:
            reason = "MSI was enabled" if index == 1 else "MSI-X was enabled"
            if d.state != "off" or d.flight:
                self.shut_down(d, reason, e.ts)
            else:
                self.set_state(d, "off", reason, e.ts)

    def on_kvm_irqfd_entry(self, e: Event) -> None:
        if not self.shows(Kind.KVM_IRQFD_EXIT):
            self.bypass(e)

    def on_kvm_irqfd_exit(self, e: Event) -> None:
        self.bypass(e)

    def bypass(self, e: Event) -> None:
        d = self.of_trigger(e.link)
        task = self.task(e)
        if d is None and task.irqs_last == MASK_IOCTL:
            d = task.irqs_device
        if d is None:
            return
        if e.arg1 & KVM_IRQFD_DEASSIGN:
            if d.state in ("kernel", "hybrid", "unknown"):
                self.set_state(d, "userspace", "the irqfd was removed", e.ts)
            torn = [x for x in d.flight if x.woken is not None]
        elif e.value < 0:
            self.set_state(d, "userspace", f"KVM_IRQFD failed: {os.strerror(-e.value)}", e.ts)
            torn = [x for x in d.flight if x.taken is not None]
        else:
            self.learn(d, trigger=e.link, resample=e.link2)
            self.learn_line(d, self.vm(e), e.arg0)
            if e.arg1 & KVM_IRQFD_RESAMPLE:
                self.set_state(d, "kernel", "KVM_IRQFD with a resamplefd", e.ts)
            else:
                self.set_state(d, "hybrid", "KVM_IRQFD without a resamplefd", e.ts)
            torn = [x for x in d.flight if x.taken is not None]
        for x in torn:
            if x.acknowledged is None:
                x.torn = True

    def shut_down(self, d: Device, reason: str, ts: int) -> None:
        while d.flight:
            self.hand_out(d, "cancelled")
        d.masked_by = d.handler = d.line = None
        d.trigger = d.resample = 0
        d.unmasks.clear()
        self.set_state(d, "off", reason, ts)

    # ---- what the recording says of itself

    def on_lost(self, e: Event) -> None:
        d = self.known(e)
        self.count(d, "lost", e.arg1)
        for each in [d] if d else self.devices:
            each.lost = True
            each.mask_known = False
            each.unmasks.clear()
            each.trapped = None
            if each.handler:
                each.handler.entered = None
            for x in each.flight:
                if not self.over(x):
                    x.lossy = True
                    if x.sent is None:
                        x.signal_missed = True
                        x.path = "unknown" if x.path == "held" else x.path
                elif x.eoi is None or x.counting_bars:
                    x.bar_accesses = x.reentries = None
                    x.nothing_more = True

    def on_probe(self, e: Event) -> None:
        if e.aux in self.probes:
            self.probes[e.aux] = (bool(e.value), self.probes[e.aux][1])

    def on_device(self, e: Event) -> None:
        d = self.known(e)
        if e.value == 0:
            if d:
                self.shut_down(d, "the device went", e.ts)
                d.virq_disabled = False
            return
        if d and d.id is not None and d.id != e.aux:
            self.shut_down(d, "the device went", e.ts)
            d = None
        if d is None:
            d = self.by_row.get(e.aux) or self.new_device(e)
            self.by_pointer[e.device, bool(e.flags & Flag.SYNTHETIC)] = d
        d.id = e.aux
        self.by_row[e.aux] = d
        d.bdf = format_address(e.arg0)
        d.host_irq = e.arg1 or d.host_irq
        if d.owner == 0 and e.aux < len(self.tables.devices):
            d.owner = self.tables.devices[e.aux].vm_pid or 0

    def on_vm(self, e: Event) -> None:
        vm = self.vm(e)
        key = (e.vm, bool(e.flags & Flag.SYNTHETIC))
        if vm is None:
            return
        if e.value == 0:
            self.vm_went(vm, e.ts)
            del self.vms[key]
            return
        if vm.id is not None and vm.id != e.aux:
            self.vm_went(vm, e.ts)
            vm = self.vms[key] = Vm()
        vm.id = e.aux
        if e.aux < len(self.tables.vms):
            vm.pid = self.tables.vms[e.aux].pid
            self.vm_of_pid[vm.pid] = vm

    def vm_went(self, vm: Vm, ts: int) -> None:
        for d in self.devices:
            if d.vm is vm or (vm.pid and d.owner == vm.pid):
                if d.state != "off":
                    self.shut_down(d, "the VM went", ts)
                d.vm = None
                d.owner = 0
                d.virq_disabled = False


class Event:
    """One record, its fields as attributes."""

    ts: int
    kind: int
    cpu: int
    flags: int
    tgid: int
    tid: int
    value: int
    aux: int
    device: int
    link: int
    link2: int
    vm: int
    arg0: int
    arg1: int

    def __init__(self, names: tuple[str, ...], values: tuple[int, ...]) -> None:
        self.__dict__.update(zip(names, values, strict=True))
