"""The state machine: one pass over the events, one rule in one place.

`run` is plain Python that numba can compile as it stands (`compile.py` does); it works on the tables of `state.py`.
Names of kernel functions are those of drivers/vfio/pci/vfio_pci_intrs.c, drivers/vfio/virqfd.c, virt/kvm/eventfd.c,
virt/kvm/irqchip.c, arch/x86/kvm/ioapic.c (4.15 to 7.x) and fs/eventfd.c; of QEMU functions those of hw/vfio/pci.c
(4.0 to 11.1) and accel/kvm.

The life of one interrupt, as the rules below move it:

    handler claimed it ........ raised (origin hardware)       unmask returned 1 ... refused, and a child is raised
    eventfd signalled ......... sent                           unmask returned 0 ... unmasked
    irqfd took the signal ..... woken (path kernel or hybrid)  guest EOI ........... acknowledged (kernel), eoi
    QEMU read the eventfd ..... taken (path userspace)         QEMU's EOI .......... acknowledged (userspace)
    kvm_set_irq level 1 ....... injected                       resamplefd written .. acknowledged (hybrid)

An interrupt leaves through `hand_out`, oldest first per device, when it is `settled` and nothing that may still name
it is awaited.
"""

from __future__ import annotations

from typing import Any

from intxtrace import events, frames
from intxtrace.events import Flag, Kind
from intxtrace.reconstruct.state import (
    MAX_IN_FLIGHT,
    MAX_OFFSETS,
    NULL,
    ROOM,
    TAG_BAR,
    TAG_DEVICE,
    TAG_LINE,
    TAG_PID,
    TAG_QEMU,
    TAG_RESAMPLE,
    TAG_ROW,
    TAG_TASK,
    TAG_TRIGGER,
    TAG_VM,
    State,
)

# numba folds plain integers only, so the vocabulary is repeated here as such.
HANDLER_ENTRY = int(Kind.HANDLER_ENTRY)
HANDLER_EXIT = int(Kind.HANDLER_EXIT)
EVENTFD_SIGNAL = int(Kind.EVENTFD_SIGNAL)
EVENTFD_WRITE = int(Kind.EVENTFD_WRITE)
EVENTFD_READ = int(Kind.EVENTFD_READ)
IRQFD_WAKEUP = int(Kind.IRQFD_WAKEUP)
IRQFD_INJECT = int(Kind.IRQFD_INJECT)
KVM_SET_IRQ = int(Kind.KVM_SET_IRQ)
KVM_SET_IRQ_EXIT = int(Kind.KVM_SET_IRQ_EXIT)
KVM_ACK = int(Kind.KVM_ACK)
RESAMPLER_ACK = int(Kind.RESAMPLER_ACK)
VIRQFD_WAKEUP = int(Kind.VIRQFD_WAKEUP)
UNMASK_ENTRY = int(Kind.UNMASK_ENTRY)
UNMASK_EXIT = int(Kind.UNMASK_EXIT)
CHECKED_UNMASK = int(Kind.CHECKED_UNMASK)
ENABLE_IRQ = int(Kind.ENABLE_IRQ)
MASK = int(Kind.MASK)
CONFIG_UNMASK = int(Kind.CONFIG_UNMASK)
SET_IRQS_ENTRY = int(Kind.SET_IRQS_ENTRY)
SET_IRQS_EXIT = int(Kind.SET_IRQS_EXIT)
KVM_IRQFD_ENTRY = int(Kind.KVM_IRQFD_ENTRY)
KVM_IRQFD_EXIT = int(Kind.KVM_IRQFD_EXIT)
APIC_ACCEPT = int(Kind.APIC_ACCEPT)
MSI_SET_IRQ = int(Kind.MSI_SET_IRQ)
USERSPACE_EXIT = int(Kind.USERSPACE_EXIT)
QEMU_INTERRUPT = int(Kind.QEMU_INTERRUPT)
QEMU_EOI = int(Kind.QEMU_EOI)
QEMU_ENABLE = int(Kind.QEMU_ENABLE)
QEMU_REGION_READ = int(Kind.QEMU_REGION_READ)
QEMU_REGION_WRITE = int(Kind.QEMU_REGION_WRITE)
QEMU_REGION_COUNT = int(Kind.QEMU_REGION_COUNT)
QEMU_REGION_OFFSETS = int(Kind.QEMU_REGION_OFFSETS)
QEMU_MMAPS = int(Kind.QEMU_MMAPS)
QEMU_RESAMPLE_NOTIFY = int(Kind.QEMU_RESAMPLE_NOTIFY)
LOST = int(Kind.LOST)
PROBE = int(Kind.PROBE)
DEVICE = int(Kind.DEVICE)
VM = int(Kind.VM)

SYNTHETIC = int(Flag.SYNTHETIC)
IN_HANDLER = int(Flag.IN_HANDLER)
IN_UNMASK = int(Flag.IN_UNMASK)
IN_SET_IRQS = int(Flag.IN_SET_IRQS)
IN_VIRQFD_INJECT = int(Flag.IN_VIRQFD_INJECT)
IN_RESAMPLER_ACK = int(Flag.IN_RESAMPLER_ACK)
IN_EVENTFD_WRITE = int(Flag.IN_EVENTFD_WRITE)
IN_IRQFD_WAKEUP = int(Flag.IN_IRQFD_WAKEUP)

DATA_NONE = int(events.SetIrqs.DATA_NONE)
DATA_BOOL = int(events.SetIrqs.DATA_BOOL)
ACTION_MASK = int(events.SetIrqs.ACTION_MASK)
DATA_EVENTFD = int(events.SetIrqs.DATA_EVENTFD)
ACTION_UNMASK = int(events.SetIrqs.ACTION_UNMASK)
ACTION_TRIGGER = int(events.SetIrqs.ACTION_TRIGGER)
INTX_INDEX = events.INTX_INDEX
MSI_INDEX = 1
MSIX_INDEX = 2
NO_FD = -1
DEASSIGN = events.KVM_IRQFD_DEASSIGN
RESAMPLE = events.KVM_IRQFD_RESAMPLE
SOURCE_USERSPACE = events.SOURCE_USERSPACE
EPOLLIN = events.EPOLLIN
EXIT_IOAPIC_EOI = 26
PIC_MASTER = 0
IOAPIC = 2

KERNEL, HYBRID, USERSPACE, HELD, NO_PATH = range(len(frames.PATHS))
HARDWARE, RESIGNAL, PENDING, SOFTWARE, NO_ORIGIN = range(len(frames.ORIGINS))
COMPLETE, OPEN, HEADLESS, LOSSY, CANCELLED = range(len(frames.OUTCOMES))
CHECKED, ASSUMED = range(len(frames.PROOFS))
OFF, STATE_USERSPACE, STATE_KERNEL, STATE_HYBRID, NO_STATE = range(len(frames.STATES))
(
    HANDLER_CALLS,
    UNCLAIMED,
    SPURIOUS_WAKEUPS,
    NOOP_UNMASKS,
    REENTRIES,
    BAR_READS,
    BAR_WRITES,
    EVENTS_LOST,
) = range(len(frames.COUNTER_NAMES))

REASONS = (
    "no event has shown it yet",
    "INTx was enabled; QEMU has set up no irqfd",
    "KVM_IRQFD with a resamplefd",
    "KVM_IRQFD without a resamplefd",
    "KVM_IRQFD failed",
    "the irqfd was removed",
    "INTx was disabled",
    "MSI was enabled",
    "MSI-X was enabled",
    "the VM went",
    "the device went",
    "an interrupt took this path",
    "the BARs were mapped into the guest",
    "the BARs were unmapped from the guest",
)
(
    NOTHING_SEEN,
    ENABLED,
    IRQFD_RESAMPLE,
    IRQFD_PLAIN,
    IRQFD_FAILED,
    IRQFD_REMOVED,
    DISABLED,
    MSI_ENABLED,
    MSIX_ENABLED,
    VM_WENT,
    DEVICE_WENT,
    INTERRUPT_SEEN,
    BARS_MAPPED,
    BARS_UNMAPPED,
) = range(len(REASONS))
"""Why a device is in its state: `REASONS[code]`."""

TRACE_ENDED, TORN_DOWN, SETTLED = range(3)
"""Why an interrupt is handed out."""

WINDOW = 1_000_000_000


# ---- identities -----------------------------------------------------------------------------------------------------


def slot_of(slots: Any, tag: int, a: int, b: int) -> int:
    """Return where a key is in the hash map, or where it would go (open addressing, linear probing)."""
    mask = len(slots) - 1
    # Bits 32 and up of the product are the same in wrapping and in unbounded integers.
    at = ((a ^ (b * 0x9E3779B1) ^ (tag << 56)) * 0x1E3779B97F4A7C15 >> 32) & mask
    while slots[at].tag != 0 and (slots[at].a != a or slots[at].b != b or slots[at].tag != tag):
        at = (at + 1) & mask
    return at


def find(s: State, tag: int, a: int, b: int) -> int:
    """Return the value of a key, -1 if there is none."""
    slot = s.slots[slot_of(s.slots, tag, a, b)]
    if slot.tag == 0:
        return -1
    return slot.value


def put(s: State, tag: int, a: int, b: int, value: int) -> None:
    """Set the value of a key."""
    slot = s.slots[slot_of(s.slots, tag, a, b)]
    if slot.tag == 0:
        s.machine[0].n_slots += 1
        slot.tag = tag
        slot.a = a
        slot.b = b
    slot.value = value


def new_device(s: State, e: Any) -> int:
    """Make a device that nothing is known of but its pointer."""
    m = s.machine[0]
    d = m.n_devices
    m.n_devices += 1
    device = s.devices[d]
    device.id = -1
    device.bdf = -1
    device.vm = -1
    device.line = -1
    device.next_on_line = -1
    device.head = -1
    device.tail = -1
    device.masked_by = -1
    device.handler_at = NULL
    device.handler_interrupt = -1
    device.trapped = -1
    device.state = NO_STATE
    device.state_at = e.ts
    device.state_reason = NOTHING_SEEN
    synthetic = 1 if e.flags & SYNTHETIC else 0
    put(s, TAG_DEVICE, e.device, synthetic, d)
    if synthetic:
        device.id = e.device
        put(s, TAG_ROW, e.device, 0, d)
    return d


def known_device(s: State, e: Any) -> int:
    """Return the device that an event names, -1 if it names none that is known.

    A virqfd's opaque pointer may be a vfio ioeventfd rather than a device (vfio_pci_ioeventfd_handler).
    """
    if e.device == 0 and not e.flags & SYNTHETIC:
        return -1
    return find(s, TAG_DEVICE, e.device, 1 if e.flags & SYNTHETIC else 0)


def device_of(s: State, e: Any) -> int:
    """Return the device of an event whose function takes nothing but a vfio device."""
    d = known_device(s, e)
    if d < 0:
        d = new_device(s, e)
    return d


def device_of_trigger(s: State, ctx: int) -> int:
    """Return the device that signals this eventfd now; a closed eventfd's address is used again."""
    if ctx == 0:
        return -1
    d = find(s, TAG_TRIGGER, ctx, 0)
    if d >= 0 and s.devices[d].trigger != ctx:
        return -1
    return d


def device_of_resample(s: State, ctx: int) -> int:
    """Return the device that this eventfd unmasks now."""
    if ctx == 0:
        return -1
    d = find(s, TAG_RESAMPLE, ctx, 0)
    if d >= 0 and s.devices[d].resample != ctx:
        return -1
    return d


def learn_trigger(s: State, d: int, ctx: int) -> None:
    """Remember which eventfd a device signals: vfio_intx_set_signal's trigger."""
    device = s.devices[d]
    if ctx != 0 and device.trigger != ctx:
        device.trigger = ctx
        put(s, TAG_TRIGGER, ctx, 0, d)


def learn_resample(s: State, d: int, ctx: int) -> None:
    """Remember which eventfd unmasks a device: the virqfd of vfio_pci_set_intx_unmask."""
    device = s.devices[d]
    if ctx != 0 and device.resample != ctx:
        device.resample = ctx
        put(s, TAG_RESAMPLE, ctx, 0, d)


def vm_of(s: State, e: Any) -> int:
    """Return the row of an event's virtual machine, -1 if it names none."""
    synthetic = 1 if e.flags & SYNTHETIC else 0
    if e.vm == 0 and not synthetic:
        return -1
    v = find(s, TAG_VM, e.vm, synthetic)
    if v < 0:
        v = new_vm(s, e)
    return v


def new_vm(s: State, e: Any) -> int:
    """Make a virtual machine that nothing is known of but its pointer."""
    synthetic = 1 if e.flags & SYNTHETIC else 0
    m = s.machine[0]
    v = m.n_vms
    m.n_vms += 1
    s.vms[v].id = e.vm if synthetic else -1
    put(s, TAG_VM, e.vm, synthetic, v)
    return v


def line_of(s: State, v: int, gsi: int) -> int:
    """Return the row of a virtual machine's GSI, -1 if no device is known to use it."""
    return find(s, TAG_LINE, v, gsi)


def learn_line(s: State, d: int, v: int, gsi: int) -> None:
    """Remember which GSI of which virtual machine a device's interrupts go to."""
    if v < 0:
        return
    device = s.devices[d]
    if device.line >= 0 and s.lines[device.line].vm == v and s.lines[device.line].gsi == gsi:
        return
    if device.line >= 0:
        leave_line(s, d)
    device.vm = v
    line = line_of(s, v, gsi)
    if line < 0:
        m = s.machine[0]
        line = m.n_lines
        m.n_lines += 1
        s.lines[line].vm = v
        s.lines[line].gsi = gsi
        s.lines[line].first = -1
        put(s, TAG_LINE, v, gsi, line)
    device.line = line
    device.next_on_line = s.lines[line].first
    s.lines[line].first = d


def leave_line(s: State, d: int) -> None:
    """Take a device out of the chain of its GSI."""
    line = s.lines[s.devices[d].line]
    if line.first == d:
        line.first = s.devices[d].next_on_line
    else:
        other = line.first
        while s.devices[other].next_on_line != d:
            other = s.devices[other].next_on_line
        s.devices[other].next_on_line = s.devices[d].next_on_line
    s.devices[d].line = -1
    s.devices[d].next_on_line = -1


def device_of_irqfd(s: State, e: Any) -> int:
    """Return the device whose trigger an irqfd listens to, -1; and learn what the irqfd binds it to.

    The call that it is nested in tells, or its eventfds, or that one device alone was bound to its GSI (KVM_IRQFD) and
    has signalled nothing yet.
    """
    d = known_device(s, e)
    if d < 0:
        d = device_of_trigger(s, e.arg1)
    if d < 0:
        d = device_of_resample(s, e.link2)
    if d < 0:
        line = line_of(s, vm_of(s, e), e.arg0)
        d = s.lines[line].first if line >= 0 else -1
        if d >= 0 and (s.devices[d].next_on_line >= 0 or s.devices[d].trigger != 0):
            d = -1
    if d >= 0:
        learn_trigger(s, d, e.arg1)
        learn_resample(s, d, e.link2)
        learn_line(s, d, vm_of(s, e), e.arg0)
    return d


def task_of(s: State, e: Any) -> int:
    """Return the row of the thread that an event ran in; the idle tasks of all CPUs share tid 0."""
    b = e.cpu if e.tid == 0 else -1
    t = find(s, TAG_TASK, e.tid, b)
    if t < 0:
        m = s.machine[0]
        t = m.n_tasks
        m.n_tasks += 1
        task = s.tasks[t]
        task.injecting = -1
        task.taking = -1
        task.deassert_at = NULL
        task.ack_at = NULL
        task.notify_at = NULL
        task.exit_at = NULL
        task.write_at = NULL
        task.set_irqs_device = -1
        put(s, TAG_TASK, e.tid, b, t)
    return t


def device_of_qemu(s: State, e: Any) -> int:
    """Return the device of a VFIODevice, -1 if nothing has joined it with a vdev yet."""
    if e.flags & SYNTHETIC:
        return device_of(s, e)
    return find(s, TAG_QEMU, e.device, e.tgid)


def join_qemu(s: State, task: Any, e: Any, d: int) -> None:
    """Learn that the VFIODevice that this thread called into is a vdev, because the kernel call in it was."""
    if task.qemu != 0:
        put(s, TAG_QEMU, task.qemu, e.tgid, d)
        s.devices[d].owner = e.tgid
        task.qemu = 0


# ---- what this recording's probes can show ---------------------------------------------------------------------------


def shows_acknowledgement(s: State, i: int) -> bool:
    """Whether the acknowledgement of this interrupt, if it happens, makes an event."""
    x = s.interrupts[i]
    if x.path == KERNEL:
        return s.kinds[RESAMPLER_ACK] > 0 or s.kinds[KVM_ACK] > 0
    if x.path == USERSPACE:
        # With its irqchip in userspace QEMU asserts no line in KVM, and lowers none.
        return s.kinds[QEMU_EOI] > 0 or (s.kinds[KVM_SET_IRQ] > 0 and x.injected_at != NULL)
    # hybrid: the unmask comes from userspace, so it is itself the last word. held, unknown: nobody acknowledges.
    return False


def settled(s: State, i: int) -> bool:
    """Whether every end stage that the probes can show was seen."""
    x = s.interrupts[i]
    masked = s.devices[x.device].masked_by == i
    if masked and s.kinds[UNMASK_EXIT] > 0:
        return False
    if x.path == NO_PATH and x.sent_at != NULL and x.unmasked_at == NULL and x.refused_at == NULL:
        return False  # Signalled, and nobody has taken it yet.
    if x.acknowledged_at != NULL or x.doomed or x.unshown:
        return True
    # Where no probe shows any end, it has ended when a later interrupt took its place.
    return not masked and not shows_acknowledgement(s, i)


def awaited(s: State, i: int) -> bool:
    """Whether a settled interrupt may still be named by later evidence."""
    x = s.interrupts[i]
    if x.path != USERSPACE or x.doomed or x.final:
        return False
    # On the userspace path the guest's EOI follows the unmask (vfio_intx_eoi runs at the first BAR access). It reaches
    # kvm_notify_acked_irq only if KVM's own irqchip has the line.
    if x.eoi_at == NULL and x.injected_at != NULL and s.kinds[KVM_ACK] > 0:
        return True
    # Its BAR accesses go on until QEMU takes the next interrupt.
    return x.bar_open != 0


# ---- an interrupt begins --------------------------------------------------------------------------------------------


def raise_interrupt(s: State, d: int, origin: int, raised_at: int) -> int:
    """Open an interrupt of a device."""
    m = s.machine[0]
    device = s.devices[d]
    if m.free >= 0:
        i = m.free
        m.free = s.interrupts[i].next
    else:
        i = m.n_interrupts
        m.n_interrupts += 1
    m.n_live += 1
    x = s.interrupts[i]
    x.device = d
    x.next = -1
    x.origin = origin
    x.path = NO_PATH
    x.raised_at = raised_at
    x.sent_at = NULL
    x.woken_at = NULL
    x.taken_at = NULL
    x.injected_at = NULL
    x.acknowledged_at = NULL
    x.unmasked_at = NULL
    x.refused_at = NULL
    x.eoi_at = NULL
    x.proof = NULL
    x.coalesced = NULL
    x.fresh = 0
    x.doomed = 0
    x.unshown = 0
    x.final = 0
    x.headless = 0
    x.lossy = 0
    x.gsi = s.lines[device.line].gsi if device.line >= 0 else NULL
    x.parent_id = NULL
    x.child = -1
    x.bar_accesses = NULL
    x.bar_open = 0
    x.reentries = NULL
    if device.tail >= 0:
        s.interrupts[device.tail].next = i
    else:
        device.head = i
    device.tail = i
    device.in_flight += 1
    return i


def raise_masked(s: State, d: int, origin: int, raised_at: int) -> int:
    """Open an interrupt for which vfio has the line masked."""
    i = raise_interrupt(s, d, origin, raised_at)
    s.devices[d].masked_by = i
    s.devices[d].mask_known = 1
    return i


def raise_headless(s: State, d: int, path: int) -> int:
    """Open an interrupt whose beginning is not in the trace: before it, or, once the device is known, missed."""
    i = raise_interrupt(s, d, NO_ORIGIN, NULL)
    x = s.interrupts[i]
    x.path = path
    if s.devices[d].lost or s.devices[d].mask_known:
        x.lossy = 1
    else:
        x.headless = 1
    return i


def on_handler_entry(s: State, e: Any) -> None:
    """vfio_intx_handler runs: one hard interrupt on the line, of this device or of one that shares it."""
    d = device_of(s, e)
    device = s.devices[d]
    device.handler_calls += 1
    device.handler_at = e.ts
    device.handler_interrupt = -1
    if device.host_irq == 0:
        device.host_irq = e.arg0


def on_handler_exit(s: State, e: Any) -> None:
    """vfio_intx_handler returned: IRQ_HANDLED if it masked the line, IRQ_NONE if the interrupt is not its own."""
    d = device_of(s, e)
    device = s.devices[d]
    if device.handler_at == NULL:
        device.handler_calls += 1
    if e.value == 0:
        device.unclaimed += 1
    else:
        i = device.handler_interrupt
        if i < 0:
            # Claimed and not signalled: no trigger is set, or virq_disabled was set in between.
            i = claim(s, d)
            if s.kinds[EVENTFD_SIGNAL] > 0:
                s.interrupts[i].path = HELD
        else:
            no_irqfd_took_it(s, i)
    device.handler_at = NULL
    device.handler_interrupt = -1


def claim(s: State, d: int) -> int:
    """The handler claimed the line and masked it (pci_check_and_mask_intx, or disable_irq_nosync)."""
    device = s.devices[d]
    before = device.masked_by
    if before >= 0:
        # It can only claim an unmasked line, so an unmask was missed.
        if s.kinds[UNMASK_EXIT] > 0:
            s.interrupts[before].lossy = 1
            s.interrupts[before].doomed = 1
        device.masked_by = -1
    i = raise_masked(s, d, HARDWARE, device.handler_at)
    device.lost = 0
    device.handler_interrupt = i
    hand_out_settled(s, d)
    return i


def no_irqfd_took_it(s: State, i: int) -> None:
    """An irqfd takes a signal inside eventfd_signal (irqfd_wakeup); what it does not take waits for QEMU's poll."""
    x = s.interrupts[i]
    if x.path == NO_PATH and x.woken_at == NULL and s.kinds[IRQFD_WAKEUP] > 0:
        x.path = USERSPACE
        observe_path(s, x.device, STATE_USERSPACE, False)


# ---- the eventfd ----------------------------------------------------------------------------------------------------


def on_eventfd_signal(s: State, e: Any) -> None:
    """The kernel signalled an eventfd: a device's trigger, or the resamplefd in irqfd_resampler_ack."""
    if e.flags & IN_RESAMPLER_ACK or device_of_resample(s, e.link) >= 0:
        return
    d = known_device(s, e)
    if d < 0:
        d = device_of_trigger(s, e.link)
    if d < 0:
        return
    learn_trigger(s, d, e.link)
    device = s.devices[d]
    if e.flags & IN_HANDLER:
        i = claim(s, d)
    else:
        i = device.masked_by
        # The unmask that found the line asserted has raised it; its caller signals.
        raised = i >= 0 and (s.interrupts[i].origin == RESIGNAL or s.interrupts[i].origin == PENDING)
        if not raised or s.interrupts[i].sent_at != NULL:
            t = task_of(s, e)
            flags = s.tasks[t].set_irqs_flags
            if e.flags & IN_SET_IRQS and flags & ACTION_TRIGGER and flags & (DATA_NONE | DATA_BOOL):
                # vfio_pci_set_intx_trigger's loopback.
                i = raise_interrupt(s, d, SOFTWARE, e.ts)
            elif e.flags & (IN_SET_IRQS | IN_UNMASK | IN_VIRQFD_INJECT):
                # Only an unmask that returned 1 makes these signal, and it was not seen.
                i = refuse(s, d, NULL, e.ts)
            else:
                i = raise_interrupt(s, d, NO_ORIGIN, NULL)
    s.interrupts[i].sent_at = e.ts
    hand_out_settled(s, d)


def on_eventfd_write(s: State, e: Any) -> None:
    """A process wrote an eventfd: eventfd_write wakes its readers without eventfd_signal."""
    t = task_of(s, e)
    s.tasks[t].write_at = e.ts
    s.tasks[t].write_ctx = e.link
    d = device_of_trigger(s, e.link)
    if d >= 0:
        i = raise_interrupt(s, d, SOFTWARE, e.ts)
        s.interrupts[i].sent_at = e.ts
        hand_out_settled(s, d)


def on_eventfd_read(s: State, e: Any) -> None:
    """QEMU read the eventfd (event_notifier_test_and_clear in vfio_intx_interrupt), or found it empty."""
    t = task_of(s, e)
    task = s.tasks[t]
    if task.qemu_kind != QEMU_INTERRUPT:
        d = device_of_trigger(s, e.link)
        if d >= 0 and e.value > 0:
            take(s, d, t, e.ts, False)
        return
    d = device_of_trigger(s, e.link)
    if d < 0 and task.qemu != 0:
        d = find(s, TAG_QEMU, task.qemu, e.tgid)
        if d >= 0:
            learn_trigger(s, d, e.link)
    if d >= 0:
        join_qemu(s, task, e, d)
        if e.value > 0:
            take(s, d, t, task.qemu_at, True)
        else:
            # Nothing was signalled: vfio_intx_interrupt returns and asserts nothing.
            s.devices[d].spurious_wakeups += 1
    task.qemu = 0
    task.qemu_kind = 0


def on_qemu_interrupt(s: State, e: Any) -> None:
    """vfio_intx_interrupt runs in QEMU's main loop. Whether it finds an interrupt shows in its read of the eventfd."""
    t = task_of(s, e)
    task = s.tasks[t]
    task.qemu = e.device
    task.qemu_kind = QEMU_INTERRUPT
    task.qemu_at = e.ts
    if s.kinds[EVENTFD_READ] > 0:
        return
    d = device_of_qemu(s, e)
    if d < 0:
        d = only_untaken(s, e.tgid)
        if d >= 0:
            join_qemu(s, task, e, d)
    task.qemu = 0
    task.qemu_kind = 0
    if d >= 0:
        take(s, d, t, e.ts, True)


def only_untaken(s: State, tgid: int) -> int:
    """Return the one device of a process that has signalled what nobody took, -1 if there is none or several."""
    found = -1
    for d in range(s.machine[0].n_devices):
        if s.devices[d].owner == tgid and first_untaken(s, d) >= 0:
            if found >= 0:
                return -1
            found = d
    return found


def first_untaken(s: State, d: int) -> int:
    """Return the oldest interrupt of a device that was signalled and that neither an irqfd nor QEMU took, or -1."""
    i = s.devices[d].head
    while i >= 0:
        x = s.interrupts[i]
        if x.sent_at != NULL and x.woken_at == NULL and x.taken_at == NULL and not x.doomed:
            return i
        i = x.next
    return -1


def take(s: State, d: int, t: int, ts: int, probed: bool) -> None:
    """QEMU takes up what is signalled: all of it at once, for an eventfd is a counter that the read empties.

    `probed`: this QEMU's functions are probed, so its BAR accesses are too.
    """
    device = s.devices[d]
    if device.trapped >= 0:
        s.interrupts[device.trapped].bar_open = 0
        device.trapped = -1
    taken = -1
    i = first_untaken(s, d)
    while i >= 0:
        x = s.interrupts[i]
        x.taken_at = ts
        x.path = USERSPACE
        if taken >= 0:
            x.coalesced = 1
        taken = i
        i = first_untaken(s, d)
    if taken < 0:
        taken = raise_headless(s, d, USERSPACE)
        x = s.interrupts[taken]
        x.taken_at = ts
        if s.kinds[EVENTFD_SIGNAL] == 0 and s.kinds[HANDLER_ENTRY] == 0:
            x.headless = 0  # No probe could have shown the beginning.
        if device.masked_by < 0:
            device.masked_by = taken
            device.mask_known = 1
    x = s.interrupts[taken]
    if probed and (s.kinds[QEMU_REGION_READ] > 0 or s.kinds[QEMU_REGION_COUNT] > 0):
        x.bar_accesses = 0
        x.bar_open = 1
        device.trapped = taken
    observe_path(s, d, STATE_USERSPACE, False)
    s.tasks[t].taking = d
    hand_out_settled(s, d)


# ---- the guest's interrupt controller -------------------------------------------------------------------------------


def on_irqfd_wakeup(s: State, e: Any) -> None:
    """An irqfd took the signal (irqfd_wakeup, called inside the signal)."""
    if e.value & EPOLLIN == 0:
        return  # EPOLLHUP: the eventfd is being closed.
    d = device_of_irqfd(s, e)
    if d < 0:
        return
    i = unwoken(s, d)
    if i < 0:
        if e.flags & IN_HANDLER:
            i = claim(s, d)  # The signal itself is not recorded.
        elif e.flags & (IN_SET_IRQS | IN_UNMASK | IN_VIRQFD_INJECT):
            i = refuse(s, d, NULL, e.ts)
        elif e.flags & IN_EVENTFD_WRITE:
            written_at = s.tasks[task_of(s, e)].write_at
            i = raise_interrupt(s, d, SOFTWARE, written_at if written_at != NULL else e.ts)
        elif s.kinds[EVENTFD_SIGNAL] > 0 and s.kinds[EVENTFD_WRITE] == 0:
            # No eventfd_signal around it: a process wrote the eventfd.
            i = raise_interrupt(s, d, SOFTWARE, e.ts)
        else:
            i = raise_headless(s, d, NO_PATH)
    x = s.interrupts[i]
    x.woken_at = e.ts
    if x.sent_at == NULL:
        x.sent_at = e.ts
    x.gsi = e.arg0
    x.path = KERNEL if e.link2 != 0 else HYBRID
    if e.link2 == 0 and s.kinds[MSI_SET_IRQ] == 0:
        # Without a resampler the route may be an MSI (split irqchip), delivered inside the wake-up
        # (kvm_arch_set_irq_inatomic); an irqfd_inject that follows says otherwise and replaces the instant.
        x.injected_at = e.ts
    observe_path(s, d, STATE_KERNEL if e.link2 != 0 else STATE_HYBRID, True)
    hand_out_settled(s, d)


def unwoken(s: State, d: int) -> int:
    """Return the newest interrupt of a device whose signal an irqfd may be taking, or -1."""
    i = s.devices[d].head
    found = -1
    while i >= 0:
        x = s.interrupts[i]
        if x.woken_at == NULL and x.taken_at == NULL and not x.doomed and x.path != HELD:
            if x.sent_at != NULL or s.kinds[EVENTFD_SIGNAL] == 0:
                found = i
        i = x.next
    return found


def on_msi_set_irq(s: State, e: Any) -> None:
    """kvm_set_msi inside the wake-up: a split irqchip's route injects at once."""
    d = known_device(s, e)
    if d < 0:
        return
    i = s.devices[d].tail
    if i >= 0 and s.interrupts[i].path == HYBRID and s.interrupts[i].injected_at == NULL:
        s.interrupts[i].injected_at = e.ts


def on_irqfd_inject(s: State, e: Any) -> None:
    """The worker that irqfd_wakeup scheduled (or kvm_irqfd, for an eventfd that was signalled before) injects."""
    t = task_of(s, e)
    task = s.tasks[t]
    end_injection(s, task, NULL)
    d = device_of_irqfd(s, e)
    if d < 0:
        return
    end_fresh(s, d, NULL)
    path = KERNEL if e.link2 != 0 else HYBRID
    # schedule_work on pending work does nothing, so one run injects every wake-up before it.
    injected = -1
    i = s.devices[d].head
    while i >= 0:
        x = s.interrupts[i]
        edge = x.path == HYBRID and x.injected_at == x.woken_at and x.woken_at != NULL
        if (x.woken_at != NULL and x.injected_at == NULL) or edge:
            inject(s, i, injected, e.ts)
            injected = i
        i = x.next
    if injected < 0:
        i = first_untaken(s, d)
        if i < 0:
            i = raise_headless(s, d, path)
            if s.devices[d].masked_by < 0 and s.devices[d].mask_known == 0:
                s.devices[d].masked_by = i
                s.devices[d].mask_known = 1
        x = s.interrupts[i]
        x.path = path
        x.woken_at = e.ts
        x.gsi = e.arg0
        inject(s, i, -1, e.ts)
    observe_path(s, d, STATE_KERNEL if e.link2 != 0 else STATE_HYBRID, True)
    task.injecting = d
    task.asserted = 0


def inject(s: State, i: int, before: int, ts: int) -> None:
    """The line is raised for an interrupt; `before` is another one that the same call raises it for, or -1."""
    x = s.interrupts[i]
    x.injected_at = ts
    x.fresh = 1
    if before >= 0:
        x.coalesced = 1
    if x.path == USERSPACE and s.kinds[KVM_ACK] > 0:
        x.reentries = 0


def on_kvm_set_irq(s: State, e: Any) -> None:
    """kvm_set_irq: source 1 is a resampling irqfd, 0 is KVM_IRQ_LINE (QEMU) or an irqfd without resampler."""
    t = task_of(s, e)
    task = s.tasks[t]
    if e.value == 0:
        if e.arg1 == SOURCE_USERSPACE and task.injecting < 0:
            task.deassert_at = e.ts
        return
    if task.injecting >= 0 and task.asserted == 0:
        # Called by irqfd_inject.
        task.asserted = 1
        i = s.devices[task.injecting].head
        while i >= 0:
            if s.interrupts[i].fresh:
                s.interrupts[i].injected_at = e.ts
            i = s.interrupts[i].next
        return
    end_injection(s, task, NULL)
    if e.arg1 != SOURCE_USERSPACE:
        return
    d = task.taking
    task.taking = -1
    if d < 0:
        if s.kinds[EVENTFD_READ] > 0 or s.kinds[QEMU_INTERRUPT] > 0:
            return  # An emulated device's line.
        # No probe shows that QEMU took the signal but this.
        d = only_untaken(s, e.tgid)
        if d < 0 or (s.devices[d].line >= 0 and s.lines[s.devices[d].line].gsi != e.arg0):
            return
        take(s, d, t, e.ts, False)
        task.taking = -1
    learn_line(s, d, vm_of(s, e), e.arg0)
    first = -1
    i = s.devices[d].head
    while i >= 0:
        x = s.interrupts[i]
        if x.taken_at != NULL and x.injected_at == NULL and not x.doomed:
            x.gsi = e.arg0
            inject(s, i, first, e.ts)
            first = i
        i = x.next
    task.injecting = d
    task.asserted = 1


def on_kvm_set_irq_exit(s: State, e: Any) -> None:
    """kvm_set_irq returned: whether the controller took the level as a new delivery."""
    if e.aux != 0:
        end_injection(s, s.tasks[task_of(s, e)], e.value)


def end_injection(s: State, task: Any, returned: int) -> None:
    """The call that raised the line is over, with what it returned (NULL: not known).

    ioapic_service returns -1 where the pin is masked or its remote IRR is set, pic_set_irq1 0 where the request bit was.
    """
    d = task.injecting
    task.injecting = -1
    if d >= 0:
        end_fresh(s, d, returned)


def end_fresh(s: State, d: int, returned: int) -> None:
    """What was being raised on a device's line was delivered, or merged into what is in service."""
    i = s.devices[d].head
    while i >= 0:
        x = s.interrupts[i]
        if x.fresh:
            if x.coalesced == NULL:
                if returned != NULL and returned > 0:
                    x.coalesced = 0
                elif in_service(s, i):
                    x.coalesced = 1
            x.fresh = 0
        i = x.next


def on_apic_accept(s: State, e: Any) -> None:
    """kvm_apic_accept_irq inside a delivery: the guest's local APIC took it as a new one."""
    if e.flags & IN_IRQFD_WAKEUP:
        line = line_of(s, vm_of(s, e), e.arg0)
        d = s.lines[line].first if line >= 0 else -1
        while d >= 0:
            i = s.devices[d].tail
            if i >= 0 and s.interrupts[i].path == HYBRID and s.interrupts[i].coalesced == NULL:
                s.interrupts[i].coalesced = 0
            d = s.devices[d].next_on_line
        return
    task = s.tasks[task_of(s, e)]
    d = task.injecting
    if d < 0:
        return
    i = s.devices[d].head
    while i >= 0:
        if s.interrupts[i].fresh and s.interrupts[i].coalesced == NULL:
            s.interrupts[i].coalesced = 0
        i = s.interrupts[i].next


def in_service(s: State, i: int) -> bool:
    """Whether an earlier delivery on the same GSI has not had its EOI yet."""
    line = s.devices[s.interrupts[i].device].line
    if line < 0:
        return False
    d = s.lines[line].first
    while d >= 0:
        j = s.devices[d].head
        while j >= 0:
            y = s.interrupts[j]
            ended = y.eoi_at != NULL or (y.path != USERSPACE and y.acknowledged_at != NULL)
            if j != i and y.injected_at != NULL and not ended and not y.fresh:
                return True
            j = y.next
        d = s.devices[d].next_on_line
    return False


# ---- the guest acknowledges -----------------------------------------------------------------------------------------


def on_kvm_ack(s: State, e: Any) -> None:
    """kvm_notify_acked_irq: the guest's EOI of a level interrupt at the IOAPIC, or the PIC.

    Pins are GSIs but for IOAPIC pin 2, which is GSI 0 (kvm_setup_default_irq_routing); PIC master pin 2 is the cascade.
    """
    gsi = e.arg0
    if gsi == 2:
        if e.arg1 == PIC_MASTER:
            return
        if e.arg1 == IOAPIC:
            gsi = 0
    t = task_of(s, e)
    task = s.tasks[t]
    task.ack_at = e.ts
    task.ack_vm = vm_of(s, e)
    task.ack_gsi = gsi
    task.resampler_ack = 0
    line = line_of(s, task.ack_vm, gsi)
    if line < 0:
        return
    d = s.lines[line].first
    while d >= 0:
        following = s.devices[d].next_on_line
        eoi_of_device(s, d, e.ts)
        hand_out_settled(s, d)
        d = following


def eoi_of_device(s: State, d: int, ts: int) -> None:
    """The guest's EOI reaches every interrupt of a device that was injected and has had none."""
    ends = False
    early = -1
    i = s.devices[d].head
    while i >= 0:
        x = s.interrupts[i]
        if x.injected_at != NULL and x.eoi_at == NULL and not x.doomed:
            if x.path != USERSPACE:
                x.eoi_at = ts
                if x.acknowledged_at == NULL and not (x.path == KERNEL and s.kinds[RESAMPLER_ACK] > 0):
                    x.acknowledged_at = ts
            elif x.acknowledged_at != NULL:
                x.eoi_at = ts
                ends = True
            else:
                early = i
        i = x.next
    if early >= 0 and not ends:
        # The guest ended its ISR and QEMU saw no BAR access: the line is still high, so the guest enters again
        # (vfio_intx_interrupt asserts before it unmaps the BARs).
        x = s.interrupts[early]
        x.reentries = 1 if x.reentries == NULL else x.reentries + 1
        s.devices[d].reentries += 1


def on_resampler_ack(s: State, e: Any) -> None:
    """irqfd_resampler_ack: the EOI reached the resampling irqfds of this GSI; it signals all their resamplefds."""
    t = task_of(s, e)
    task = s.tasks[t]
    task.ack_at = e.ts
    task.ack_vm = vm_of(s, e)
    task.ack_gsi = e.arg0
    task.resampler_ack = 1
    line = line_of(s, task.ack_vm, e.arg0)
    if line < 0:
        return
    shows_injection = s.kinds[IRQFD_INJECT] > 0 or s.kinds[KVM_SET_IRQ] > 0
    d = s.lines[line].first
    while d >= 0:
        following = s.devices[d].next_on_line
        i = s.devices[d].head
        while i >= 0:
            x = s.interrupts[i]
            if x.path == KERNEL and x.acknowledged_at == NULL and (x.injected_at != NULL or not shows_injection):
                x.acknowledged_at = e.ts
                if x.eoi_at == NULL:
                    x.eoi_at = e.ts
            i = x.next
        hand_out_settled(s, d)
        d = following


def on_qemu_eoi(s: State, e: Any) -> None:
    """vfio_intx_eoi with an interrupt pending: the first trapped BAR access. It lowers the line, then unmasks."""
    t = task_of(s, e)
    task = s.tasks[t]
    task.qemu = e.device
    task.qemu_kind = QEMU_EOI
    task.qemu_at = e.ts
    d = device_of_qemu(s, e)
    if d >= 0:
        task.qemu = 0
        acknowledge_taken(s, d, e.ts)


def acknowledge_taken(s: State, d: int, ts: int) -> None:
    """QEMU's EOI is for all that it took: vdev->intx.pending is one flag. `ts` NULL: when, no probe could show."""
    i = s.devices[d].head
    while i >= 0:
        x = s.interrupts[i]
        if x.taken_at != NULL and x.acknowledged_at == NULL and not x.doomed:
            x.acknowledged_at = ts
            x.unshown = 1 if ts == NULL else 0
        i = x.next
    hand_out_settled(s, d)


def on_virqfd_wakeup(s: State, e: Any) -> None:
    """The resamplefd was signalled: by irqfd_resampler_ack, or written by QEMU (split irqchip)."""
    if e.value & EPOLLIN == 0:
        return
    d = known_device(s, e)
    if d < 0:
        return
    learn_resample(s, d, e.link)
    t = task_of(s, e)
    task = s.tasks[t]
    if task.resampler_ack:
        learn_line(s, d, task.ack_vm, task.ack_gsi)
    written = task.write_at != NULL and (e.flags & IN_EVENTFD_WRITE != 0 or task.write_ctx == e.link)
    i = s.devices[d].head
    while i >= 0:
        x = s.interrupts[i]
        if x.path == HYBRID and x.injected_at != NULL and x.acknowledged_at == NULL:
            # ioapic_eoi_broadcast -> kvm_resample_fd_notify -> write.
            if task.notify_at != NULL and task.notify_at >= x.injected_at:
                x.acknowledged_at = task.notify_at
            elif written and task.write_at >= x.injected_at:
                x.acknowledged_at = task.write_at
            if x.eoi_at == NULL and task.exit_at != NULL and task.exit_at >= x.injected_at:
                x.eoi_at = task.exit_at
        i = x.next


# ---- the line is unmasked -------------------------------------------------------------------------------------------


def on_unmask_exit(s: State, e: Any) -> None:
    """vfio_pci_intx_unmask_handler returned: 1 still asserted and masked, 0 unmasked or nothing to do."""
    t = task_of(s, e)
    task = s.tasks[t]
    d = device_of(s, e)
    proof = task.proof
    task.proof = 0
    if e.value > 0:
        refuse(s, d, t, e.ts)
    elif unmask_was_real(s, d, proof):
        unmask(s, d, t, proof, e.ts)
    else:
        s.devices[d].noop_unmasks += 1
    task.ack_at = NULL
    task.resampler_ack = 0


def unmask_was_real(s: State, d: int, proof: int) -> bool:
    """Whether an unmask that returned 0 did unmask: it also returns 0 while virq_disabled, or if nothing was masked."""
    device = s.devices[d]
    if proof:
        return True
    if device.virq_disabled:
        return False
    # With the probes that would have shown it, silence says no. Shared mode calls pci_check_and_unmask_intx, exclusive
    # mode (pci_2_3 = 0) enable_irq: one probe is enough where the mode is known.
    if s.kinds[CHECKED_UNMASK] > 0 and (s.kinds[ENABLE_IRQ] > 0 or device.shared_mode):
        return False
    # Nothing contradicts it, if there is something to unmask.
    return device.masked_by >= 0 or device.mask_known == 0


def unmask(s: State, d: int, t: int, proof: int, ts: int) -> None:
    """The line is open again."""
    device = s.devices[d]
    i = device.masked_by
    if i < 0:
        i = headless_end(s, d, t, proof)
    device.mask_known = 1
    device.masked_by = -1
    if i < 0:
        device.noop_unmasks += 1
        return
    x = s.interrupts[i]
    x.unmasked_at = ts
    x.proof = CHECKED if proof else ASSUMED
    hand_out_settled(s, d)


def headless_end(s: State, d: int, t: int, proof: int) -> int:
    """Open the interrupt that was in flight when the trace began, if this unmask proves that there was one.

    The line was masked (the unmask was checked), or the guest has just acknowledged in the same call chain; and no
    event before this one shows who masked it, so it was not a mask ioctl of this trace.
    """
    device = s.devices[d]
    task = s.tasks[t]
    acknowledged = task.resampler_ack != 0
    if device.mask_known != 0 or not (proof or acknowledged):
        return -1
    i = raise_headless(s, d, KERNEL if acknowledged else NO_PATH)
    if acknowledged:
        s.interrupts[i].acknowledged_at = task.ack_at
        s.interrupts[i].eoi_at = task.ack_at
        s.interrupts[i].gsi = task.ack_gsi
    return i


def refuse(s: State, d: int, t: int, ts: int) -> int:
    """The line is still asserted, so it stays masked and vfio signals again: nothing in hardware happens.

    virqfd_wakeup schedules virqfd_inject for that; the ioctl and config space signal in the same task. If the interrupt
    before was signalled, this is its resignal. If none was, the line rose while it was masked. `t` is NULL where the
    unmask itself was not seen.
    """
    device = s.devices[d]
    parent = device.masked_by
    if parent < 0 and t != NULL:
        parent = headless_end(s, d, t, 0)
    resignal = parent >= 0 and (s.interrupts[parent].sent_at != NULL or s.interrupts[parent].headless != 0)
    device.masked_by = -1
    child = raise_masked(s, d, RESIGNAL if resignal else PENDING, ts if resignal and t != NULL else NULL)
    if parent >= 0:
        s.interrupts[parent].refused_at = ts
        if resignal:
            s.interrupts[parent].child = child
        hand_out_settled(s, d)
    return child


# ---- set-up, teardown and device states -----------------------------------------------------------------------------


def on_set_irqs_entry(s: State, e: Any) -> None:
    """VFIO_DEVICE_SET_IRQS begins: what QEMU was doing tells which VFIODevice this vdev is."""
    d = device_of(s, e)
    device = s.devices[d]
    device.owner = e.tgid
    t = task_of(s, e)
    task = s.tasks[t]
    if e.arg1 & 0xFFFF != INTX_INDEX:
        return
    task.set_irqs_device = d
    task.set_irqs_flags = e.arg0
    task.set_irqs_last = e.arg0
    unmasks = e.arg0 == DATA_NONE | ACTION_UNMASK
    if task.qemu_kind == QEMU_EOI and unmasks:
        if task.qemu != 0:
            join_qemu(s, task, e, d)
            acknowledge_taken(s, d, task.qemu_at)
        task.qemu_kind = 0
    elif task.qemu_kind == QEMU_ENABLE and e.arg0 == DATA_EVENTFD | ACTION_TRIGGER:
        join_qemu(s, task, e, d)
        task.qemu_kind = 0
    elif unmasks:
        # This QEMU's own EOI is not probed; it lowers the line just before it unmasks.
        acknowledge_taken(s, d, task.deassert_at)
    task.deassert_at = NULL
    if s.kinds[SET_IRQS_EXIT] == 0:
        set_irqs(s, e, d)


def on_set_irqs_exit(s: State, e: Any) -> None:
    """VFIO_DEVICE_SET_IRQS returned: 0 it was done."""
    t = task_of(s, e)
    d = device_of(s, e)
    i = s.devices[d].tail
    if i >= 0 and s.interrupts[i].sent_at != NULL:
        no_irqfd_took_it(s, i)
    s.tasks[t].set_irqs_flags = 0
    if e.value >= 0:
        set_irqs(s, e, d)


def set_irqs(s: State, e: Any, d: int) -> None:
    """INTx, MSI or MSI-X was set up or shut down (vfio_pci_set_irqs_ioctl)."""
    device = s.devices[d]
    index = e.arg1 & 0xFFFF
    count = e.arg1 >> 32 & 0xFFFF
    if index == INTX_INDEX:
        if e.arg0 == DATA_EVENTFD | ACTION_TRIGGER:
            if e.aux == NO_FD:
                device.trigger = 0  # No eventfd: what comes is held.
                return
            moved = e.link != 0 and device.trigger != 0 and device.trigger != e.link
            learn_trigger(s, d, e.link)
            device.mask_known = 1
            if device.state == OFF or device.state == NO_STATE or moved:
                device.virq_disabled = 0
                set_state(s, d, STATE_USERSPACE, ENABLED, 0, e.ts)
        elif e.arg0 == DATA_EVENTFD | ACTION_UNMASK:
            learn_resample(s, d, e.link)
        elif e.arg0 == DATA_NONE | ACTION_TRIGGER and count == 0:
            # vfio_intx_disable frees the line's handler.
            shut_down(s, d, DISABLED, e.ts)
            device.mask_known = 1
    elif (index == MSI_INDEX or index == MSIX_INDEX) and e.arg0 & ACTION_TRIGGER and count > 0:
        if device.state != OFF or device.head >= 0:
            shut_down(s, d, MSI_ENABLED if index == MSI_INDEX else MSIX_ENABLED, e.ts)
        else:
            set_state(s, d, OFF, MSI_ENABLED if index == MSI_INDEX else MSIX_ENABLED, 0, e.ts)


def on_kvm_irqfd(s: State, e: Any) -> None:
    """KVM_IRQFD returned: the bypass exists, failed or is gone.

    vfio_intx_enable_kvm and vfio_intx_disable_kvm lower the line and forget what is pending, so a delivery under way is
    not acknowledged any more.
    """
    d = device_of_trigger(s, e.link)
    if d < 0:
        # Both call it right after VFIO_DEVICE_SET_IRQS MASK of the same device, in one thread.
        task = s.tasks[task_of(s, e)]
        if task.set_irqs_last == DATA_NONE | ACTION_MASK:
            d = task.set_irqs_device
    if d < 0:
        return
    if e.arg1 & DEASSIGN:
        if s.devices[d].state == STATE_KERNEL or s.devices[d].state == STATE_HYBRID or s.devices[d].state == NO_STATE:
            set_state(s, d, STATE_USERSPACE, IRQFD_REMOVED, 0, e.ts)
        doom(s, d, False)
        return
    if e.value < 0:
        set_state(s, d, STATE_USERSPACE, IRQFD_FAILED, -e.value, e.ts)
        doom(s, d, True)
        return
    learn_trigger(s, d, e.link)
    learn_resample(s, d, e.link2)
    learn_line(s, d, vm_of(s, e), e.arg0)
    if e.arg1 & RESAMPLE:
        set_state(s, d, STATE_KERNEL, IRQFD_RESAMPLE, 0, e.ts)
    else:
        set_state(s, d, STATE_HYBRID, IRQFD_PLAIN, 0, e.ts)
    doom(s, d, True)


def doom(s: State, d: int, userspace: bool) -> None:
    """The path of a device changed: what QEMU, or the irqfd, had taken will not be acknowledged any more."""
    i = s.devices[d].head
    while i >= 0:
        x = s.interrupts[i]
        if x.acknowledged_at == NULL and (x.taken_at if userspace else x.woken_at) != NULL:
            x.doomed = 1
        i = x.next
    hand_out_settled(s, d)


def shut_down(s: State, d: int, reason: int, ts: int) -> None:
    """Interrupts of a device end here; what is in flight is cancelled."""
    while s.devices[d].head >= 0:
        hand_out(s, d, TORN_DOWN)
    device = s.devices[d]
    device.masked_by = -1
    device.handler_at = NULL
    device.handler_interrupt = -1
    device.trigger = 0
    device.resample = 0
    device.virq_disabled = 0
    if device.line >= 0:
        leave_line(s, d)
    set_state(s, d, OFF, reason, 0, ts)


def observe_path(s: State, d: int, state: int, certain: bool) -> None:
    """An interrupt shows the state of its device, where no set-up call of this trace did."""
    device = s.devices[d]
    if device.state == state:
        return
    if device.state == NO_STATE:
        # No call changed it since the trace began, so it was so from the beginning.
        device.state = state
        device.state_reason = INTERRUPT_SEEN
    elif certain:
        set_state(s, d, state, INTERRUPT_SEEN, 0, s.machine[0].now)


def bars_mapped(device: Any) -> int:
    """Return 1 if every known region is mapped into the guest, 0 if one traps, NULL if none is known."""
    if device.bars_known == 0:
        return NULL
    return 1 if device.bars_mapped == device.bars_known else 0


def set_state(s: State, d: int, state: int, reason: int, errno: int, ts: int) -> None:
    """End the device's state and begin another."""
    device = s.devices[d]
    if device.state == state and device.state_reason == reason:
        return
    end_state(s, d, ts)
    device.state = state
    device.state_at = ts
    device.state_reason = reason
    device.state_errno = errno


def end_state(s: State, d: int, ts: int) -> None:
    """Hand out the device's state; one that lasted no time is left out. `ts` NULL: it lasts."""
    device = s.devices[d]
    if ts == device.state_at:
        return
    m = s.machine[0]
    row = s.state_rows[m.out_states]
    m.out_states += 1
    row.device = device.id
    row.bdf = device.bdf
    row.vm = vm_row(s, d)
    row.state = device.state
    row.bars_mapped = bars_mapped(device)
    row.begin_at = device.state_at
    row.end_at = ts
    row.reason = device.state_reason
    row.errno = device.state_errno


def on_qemu_mmaps(s: State, e: Any) -> None:
    """vfio_region_mmaps_set_enabled: a BAR is mapped into the guest, or traps."""
    d = device_of_qemu(s, e)
    if d < 0 or e.aux >= 32:
        return
    device = s.devices[d]
    before = bars_mapped(device)
    bit = 1 << e.aux
    known = device.bars_known | bit
    mapped = device.bars_mapped | bit if e.value else device.bars_mapped & ~bit
    after = 1 if mapped == known else 0
    if after != before:
        end_state(s, d, e.ts)
        device.state_at = e.ts
        device.state_reason = BARS_MAPPED if after else BARS_UNMAPPED
        device.state_errno = 0
    device.bars_known = known
    device.bars_mapped = mapped


# ---- BAR accesses ---------------------------------------------------------------------------------------------------


def on_bar_total(s: State, e: Any, reads: int, writes: int) -> None:
    """Count trapped accesses of a device, for the interrupt that QEMU took last."""
    d = device_of_qemu(s, e)
    if d < 0:
        return
    device = s.devices[d]
    device.bar_reads += reads
    device.bar_writes += writes
    i = device.trapped
    if i >= 0 and s.interrupts[i].bar_accesses != NULL:
        s.interrupts[i].bar_accesses += reads + writes


def on_bar_offset(s: State, e: Any, write: int, count: int) -> None:
    """Count trapped accesses at one offset."""
    d = device_of_qemu(s, e)
    if d < 0:
        return
    a = d << 32 | e.aux << 1 | write
    b = find(s, TAG_BAR, a, e.arg0)
    if b < 0:
        m = s.machine[0]
        b = m.n_bars
        if b >= MAX_OFFSETS:
            return
        m.n_bars += 1
        bar = s.bars[b]
        bar.device = d
        bar.write = write
        bar.region = e.aux
        bar.offset = e.arg0
        bar.count = 0
        put(s, TAG_BAR, a, e.arg0, b)
    s.bars[b].count += count


# ---- what the recording says of itself ------------------------------------------------------------------------------


def on_lost(s: State, e: Any) -> None:
    """Events were dropped: nothing in flight can be trusted to be whole, and nothing settled will learn more."""
    d = known_device(s, e)
    if d >= 0:
        s.devices[d].events_lost += e.arg1
        lose(s, d)
        return
    s.machine[0].lost += e.arg1
    for each in range(s.machine[0].n_devices):
        lose(s, each)


def lose(s: State, d: int) -> None:
    """Events of a device may have been dropped."""
    device = s.devices[d]
    device.lost = 1
    device.mask_known = 0
    device.handler_at = NULL
    device.trapped = -1
    i = device.head
    while i >= 0:
        x = s.interrupts[i]
        if not settled(s, i):
            x.lossy = 1
        elif x.eoi_at == NULL or x.bar_open:
            x.bar_accesses = NULL
            x.reentries = NULL
            x.final = 1
        i = x.next
    hand_out_settled(s, d)


def on_probe(s: State, e: Any) -> None:
    """A probe was attached, or went."""
    on = 1 if e.value else 0
    for p in range(len(s.probes)):
        probe = s.probes[p]
        if probe.row == e.aux and probe.on != on:
            probe.on = on
            s.kinds[probe.kind] += 1 if on else -1


def on_device(s: State, e: Any, device_pids: Any) -> None:
    """The capture names a vfio device, or says that it is gone."""
    d = known_device(s, e)
    if e.value == 0:
        if d >= 0:
            shut_down(s, d, DEVICE_WENT, e.ts)
        return
    if d >= 0 and s.devices[d].id >= 0 and s.devices[d].id != e.aux:
        shut_down(s, d, DEVICE_WENT, e.ts)  # The address belongs to another device now.
        d = -1
    if d < 0:
        d = find(s, TAG_ROW, e.aux, 0)
        if d < 0:
            d = new_device(s, e)
        else:
            put(s, TAG_DEVICE, e.device, 1 if e.flags & SYNTHETIC else 0, d)
    device = s.devices[d]
    device.id = e.aux
    put(s, TAG_ROW, e.aux, 0, d)
    device.bdf = e.arg0
    if e.arg1 != 0:
        device.host_irq = e.arg1
    if device.owner == 0 and e.aux < len(device_pids):
        device.owner = device_pids[e.aux]


def on_vm(s: State, e: Any, vm_pids: Any) -> None:
    """The capture names a virtual machine, or says that it is gone."""
    v = vm_of(s, e)
    if v < 0:
        return
    if e.value == 0:
        vm_went(s, v, e.ts)
        put(s, TAG_VM, e.vm, 1 if e.flags & SYNTHETIC else 0, -1)
        return
    if s.vms[v].id >= 0 and s.vms[v].id != e.aux:
        vm_went(s, v, e.ts)  # The address belongs to another virtual machine now.
        v = new_vm(s, e)
    s.vms[v].id = e.aux
    if e.aux < len(vm_pids):
        s.vms[v].pid = vm_pids[e.aux]
        put(s, TAG_PID, s.vms[v].pid, 0, v)


def vm_went(s: State, v: int, ts: int) -> None:
    """A virtual machine is gone, and with it the set-up of its devices."""
    pid = s.vms[v].pid
    for d in range(s.machine[0].n_devices):
        device = s.devices[d]
        if device.vm == v or (pid != 0 and device.owner == pid):
            if device.state != OFF:
                shut_down(s, d, VM_WENT, ts)
            device.vm = -1
            device.owner = 0


# ---- an interrupt ends ----------------------------------------------------------------------------------------------


def hand_out_settled(s: State, d: int) -> None:
    """Hand out, oldest first, what is settled and awaits nothing.

    Oldest first, so that a resignal's parent has its id when the resignal needs it.
    """
    i = s.devices[d].head
    while i >= 0 and settled(s, i) and not awaited(s, i):
        hand_out(s, d, SETTLED)
        i = s.devices[d].head
    while s.devices[d].in_flight > MAX_IN_FLIGHT:
        # So many came after it, and its end was not seen.
        i = s.devices[d].head
        s.interrupts[i].lossy = 0 if settled(s, i) else 1
        hand_out(s, d, SETTLED)


def outcome_of(s: State, i: int, why: int) -> int:
    """Return how an interrupt came out."""
    x = s.interrupts[i]
    if x.lossy:
        return LOSSY
    if x.headless:
        return HEADLESS
    if settled(s, i):
        return CANCELLED if x.doomed and x.acknowledged_at == NULL else COMPLETE
    return CANCELLED if why == TORN_DOWN else OPEN


def signalled_at(s: State, x: Any) -> int:
    """Return when an interrupt was signalled: on the userspace path, when QEMU took it up, where a probe shows that."""
    if x.path == USERSPACE and (s.kinds[EVENTFD_READ] > 0 or s.kinds[QEMU_INTERRUPT] > 0):
        return x.taken_at
    return x.sent_at


def hand_out(s: State, d: int, why: int) -> None:
    """Turn the oldest interrupt of a device into a row."""
    m = s.machine[0]
    device = s.devices[d]
    i = device.head
    x = s.interrupts[i]
    row = s.interrupt_rows[m.out_interrupts]
    m.out_interrupts += 1
    row.id = m.next_id
    m.next_id += 1
    row.parent_id = x.parent_id
    row.device = device.id
    row.bdf = device.bdf
    row.vm = vm_row(s, d)
    row.vm_pid = device.owner if device.owner != 0 or device.vm < 0 else s.vms[device.vm].pid
    row.host_irq = device.host_irq
    row.gsi = x.gsi
    row.path = x.path
    row.origin = x.origin
    row.outcome = outcome_of(s, i, why)
    row.coalesced = x.coalesced
    row.raised_at = x.raised_at
    row.signalled_at = signalled_at(s, x)
    row.injected_at = x.injected_at
    row.acknowledged_at = x.acknowledged_at
    row.unmasked_at = x.unmasked_at
    row.eoi_at = x.eoi_at
    row.unmask_proof = x.proof
    row.bar_accesses = x.bar_accesses
    row.reentries = x.reentries
    if x.child >= 0:
        s.interrupts[x.child].parent_id = row.id
    device.head = x.next
    if device.head < 0:
        device.tail = -1
    device.in_flight -= 1
    if device.masked_by == i:
        device.masked_by = -1
    if device.handler_interrupt == i:
        device.handler_interrupt = -1
    if device.trapped == i:
        device.trapped = -1
    x.next = m.free
    m.free = i
    m.n_live -= 1


def vm_row(s: State, d: int) -> int:
    """Return the row of the VM table that a device belongs to, -1."""
    device = s.devices[d]
    v = device.vm
    if v < 0 and device.owner != 0:
        v = find(s, TAG_PID, device.owner, 0)
    if v < 0:
        return -1
    return s.vms[v].id


# ---- counters -------------------------------------------------------------------------------------------------------


def roll_window(s: State, ts: int) -> None:
    """Hand out the counters of the window that is over, and begin the one of `ts`."""
    m = s.machine[0]
    if m.window != NULL:
        for d in range(m.n_devices):
            device = s.devices[d]
            count(s, d, HANDLER_CALLS, device.handler_calls)
            count(s, d, UNCLAIMED, device.unclaimed)
            count(s, d, SPURIOUS_WAKEUPS, device.spurious_wakeups)
            count(s, d, NOOP_UNMASKS, device.noop_unmasks)
            count(s, d, REENTRIES, device.reentries)
            count(s, d, BAR_READS, device.bar_reads)
            count(s, d, BAR_WRITES, device.bar_writes)
            count(s, d, EVENTS_LOST, device.events_lost)
            device.handler_calls = 0
            device.unclaimed = 0
            device.spurious_wakeups = 0
            device.noop_unmasks = 0
            device.reentries = 0
            device.bar_reads = 0
            device.bar_writes = 0
            device.events_lost = 0
        for b in range(m.n_bars):
            bar = s.bars[b]
            if bar.count:
                count(s, bar.device, BAR_WRITES if bar.write else BAR_READS, bar.count)
                row = s.counter_rows[m.out_counters - 1]
                row.region = bar.region
                row.offset = bar.offset
                bar.count = 0
        count(s, -1, EVENTS_LOST, m.lost)
        m.lost = 0
    m.window = ts - ts % WINDOW


def count(s: State, d: int, counter: int, number: int) -> None:
    """Hand out one counter of the window, if it counted anything."""
    if number == 0:
        return
    m = s.machine[0]
    row = s.counter_rows[m.out_counters]
    m.out_counters += 1
    row.device = s.devices[d].id if d >= 0 else -1
    row.bdf = s.devices[d].bdf if d >= 0 else -1
    row.vm = vm_row(s, d) if d >= 0 else -1
    row.begin_at = m.window
    row.counter = counter
    row.region = NULL
    row.offset = NULL
    row.count = number


# ---- the pass -------------------------------------------------------------------------------------------------------


def has_room(s: State) -> bool:
    """Whether every table can take what one event may add; `state.grown` makes room."""
    m = s.machine[0]
    return (
        m.n_devices + ROOM <= len(s.devices)
        and m.n_vms + ROOM <= len(s.vms)
        and m.n_lines + ROOM <= len(s.lines)
        and m.n_tasks + ROOM <= len(s.tasks)
        and m.n_interrupts + ROOM <= len(s.interrupts)
        and m.n_bars + ROOM <= len(s.bars)
        and 2 * (m.n_slots + ROOM) <= len(s.slots)
        and m.out_interrupts + m.n_live + ROOM <= len(s.interrupt_rows)
        and m.out_states + 4 * m.n_devices + ROOM <= len(s.state_rows)
        and m.out_counters + 9 * m.n_devices + m.n_bars + ROOM <= len(s.counter_rows)
    )


def run(s: State, batch: Any, start: int, vm_pids: Any, device_pids: Any) -> int:
    """Feed a batch from `start` on; return how far it came before a table had to grow.

    `vm_pids[row]` and `device_pids[row]` are the processes that the tables of the trace name, 0 for none.
    """
    m = s.machine[0]
    for at in range(start, len(batch)):
        if not has_room(s):
            return at
        e = batch[at]
        kind = e.kind
        if m.window == NULL or e.ts >= m.window + WINDOW:
            roll_window(s, e.ts)
        m.now = e.ts
        if kind == HANDLER_ENTRY:
            on_handler_entry(s, e)
        elif kind == HANDLER_EXIT:
            on_handler_exit(s, e)
        elif kind == EVENTFD_SIGNAL:
            on_eventfd_signal(s, e)
        elif kind == EVENTFD_WRITE:
            on_eventfd_write(s, e)
        elif kind == EVENTFD_READ:
            on_eventfd_read(s, e)
        elif kind == IRQFD_WAKEUP:
            on_irqfd_wakeup(s, e)
        elif kind == IRQFD_INJECT:
            on_irqfd_inject(s, e)
        elif kind == KVM_SET_IRQ:
            on_kvm_set_irq(s, e)
        elif kind == KVM_SET_IRQ_EXIT:
            on_kvm_set_irq_exit(s, e)
        elif kind == APIC_ACCEPT:
            on_apic_accept(s, e)
        elif kind == KVM_ACK:
            on_kvm_ack(s, e)
        elif kind == RESAMPLER_ACK:
            on_resampler_ack(s, e)
        elif kind == VIRQFD_WAKEUP:
            on_virqfd_wakeup(s, e)
        elif kind == UNMASK_ENTRY:
            s.tasks[task_of(s, e)].proof = 0
        elif kind == UNMASK_EXIT:
            on_unmask_exit(s, e)
        elif kind == CHECKED_UNMASK:
            if e.value:
                s.tasks[task_of(s, e)].proof = 1
            d = known_device(s, e)
            if d >= 0:
                s.devices[d].shared_mode = 1
        elif kind == ENABLE_IRQ:
            s.tasks[task_of(s, e)].proof = 1
        elif kind == MASK:
            d = device_of(s, e)
            s.devices[d].mask_known = 1
            if not e.flags & IN_SET_IRQS and e.aux == 0:
                s.devices[d].virq_disabled = 1  # vfio_basic_config_write: the guest set DisINTx.
        elif kind == CONFIG_UNMASK:
            if not e.flags & IN_SET_IRQS:
                s.devices[device_of(s, e)].virq_disabled = 0
        elif kind == SET_IRQS_ENTRY:
            on_set_irqs_entry(s, e)
        elif kind == SET_IRQS_EXIT:
            on_set_irqs_exit(s, e)
        elif kind == KVM_IRQFD_ENTRY:
            if s.kinds[KVM_IRQFD_EXIT] == 0:
                on_kvm_irqfd(s, e)
        elif kind == KVM_IRQFD_EXIT:
            on_kvm_irqfd(s, e)
        elif kind == MSI_SET_IRQ:
            on_msi_set_irq(s, e)
        elif kind == USERSPACE_EXIT:
            if e.value == EXIT_IOAPIC_EOI:
                s.tasks[task_of(s, e)].exit_at = e.ts
        elif kind == QEMU_INTERRUPT:
            on_qemu_interrupt(s, e)
        elif kind == QEMU_EOI:
            on_qemu_eoi(s, e)
        elif kind == QEMU_ENABLE:
            task = s.tasks[task_of(s, e)]
            task.qemu = e.device
            task.qemu_kind = QEMU_ENABLE
            task.qemu_at = e.ts
        elif kind == QEMU_REGION_READ or kind == QEMU_REGION_WRITE:
            if s.kinds[QEMU_REGION_COUNT] == 0:  # Otherwise only the first access after an interrupt is sent.
                write = 1 if kind == QEMU_REGION_WRITE else 0
                on_bar_total(s, e, 1 - write, write)
                on_bar_offset(s, e, write, 1)
        elif kind == QEMU_REGION_COUNT:
            on_bar_total(s, e, e.arg0, e.arg1)
        elif kind == QEMU_REGION_OFFSETS:
            on_bar_offset(s, e, 1 if e.value else 0, e.arg1)
        elif kind == QEMU_MMAPS:
            on_qemu_mmaps(s, e)
        elif kind == QEMU_RESAMPLE_NOTIFY:
            s.tasks[task_of(s, e)].notify_at = e.ts
        elif kind == LOST:
            on_lost(s, e)
        elif kind == PROBE:
            on_probe(s, e)
        elif kind == DEVICE:
            on_device(s, e, device_pids)
        elif kind == VM:
            on_vm(s, e, vm_pids)
    return len(batch)


def finish(s: State) -> None:
    """The trace is over: hand out everything that is left. The tables must have room (`has_room`)."""
    for d in range(s.machine[0].n_devices):
        while s.devices[d].head >= 0:
            hand_out(s, d, TRACE_ENDED)
        end_state(s, d, NULL)
    roll_window(s, 0)
    s.machine[0].window = NULL
