"""Who is who: devices, eventfds, virtual machines, GSIs and threads, joined by evidence as it comes."""

from __future__ import annotations

from typing import Any

from intxtrace.reconstruct.slots import slot_of
from intxtrace.reconstruct.state import (
    NULL,
    TAG_DEVICE,
    TAG_LINE,
    TAG_QEMU,
    TAG_RESAMPLE,
    TAG_ROW,
    TAG_TASK,
    TAG_TRIGGER,
    TAG_VM,
    State,
)
from intxtrace.reconstruct.vocabulary import NO_STATE, NOTHING_SEEN, SYNTHETIC


def find(s: State, tag: int, a: int, b: int) -> int:
    """Return the value of a key, -1 if there is none."""
    slot = s.slots[slot_of(s.slots, s.machine[0].slot_rows, tag, a, b)]
    if slot.tag == 0:
        return -1
    value: int = slot.value
    return value


def put(s: State, tag: int, a: int, b: int, value: int) -> None:
    """Set the value of a key."""
    slot = s.slots[slot_of(s.slots, s.machine[0].slot_rows, tag, a, b)]
    if slot.tag == 0:
        s.machine[0].n_slots += 1
        slot.tag = tag
        slot.a = a
        slot.b = b
    slot.value = value


def new_device(s: State, e: Any) -> int:
    """Make a device that nothing is known of but its pointer."""
    m = s.machine[0]
    d: int = m.n_devices
    m.n_devices += 1
    device = s.devices[d]
    device.id = -1
    device.bdf = -1
    device.vm = -1
    device.line = -1
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
        device.no_trigger = 0
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
    v: int = m.n_vms
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
        task.unmasking = -1
        task.taking = -1
        task.acked = -1
        task.deassert_at = NULL
        task.notify_at = NULL
        task.exit_at = NULL
        task.write_at = NULL
        put(s, TAG_TASK, e.tid, b, t)
    s.tasks[t].seen_at = e.ts
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
