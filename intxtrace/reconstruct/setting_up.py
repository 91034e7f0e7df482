"""Set-up and teardown of interrupts, and what the recording says of itself."""

from __future__ import annotations

from typing import Any

from intxtrace.reconstruct.delivering import acknowledge_taken
from intxtrace.reconstruct.ending import hand_out, hand_out_settled, settled
from intxtrace.reconstruct.identity import (
    device_of,
    device_of_trigger,
    find,
    join_qemu,
    known_device,
    learn_line,
    learn_resample,
    learn_trigger,
    leave_line,
    new_device,
    new_vm,
    put,
    task_of,
    vm_of,
)
from intxtrace.reconstruct.masking import forget_unmasks, ioctl_did_not_signal, no_irqfd_took_it
from intxtrace.reconstruct.state import NULL, TAG_DEVICE, TAG_PID, TAG_ROW, TAG_VM, State
from intxtrace.reconstruct.states import set_state
from intxtrace.reconstruct.vocabulary import (
    ACTION_MASK,
    ACTION_TRIGGER,
    ACTION_UNMASK,
    DATA_EVENTFD,
    DATA_NONE,
    DEASSIGN,
    DEVICE_WENT,
    DISABLED,
    ENABLED,
    HELD,
    INTX_INDEX,
    IRQFD_FAILED,
    IRQFD_PLAIN,
    IRQFD_REMOVED,
    IRQFD_RESAMPLE,
    MSI_ENABLED,
    MSI_INDEX,
    MSIX_ENABLED,
    MSIX_INDEX,
    NO_FD,
    NO_PATH,
    NO_STATE,
    OFF,
    QEMU_ENABLE,
    QEMU_EOI,
    RESAMPLE,
    SET_IRQS_EXIT,
    STATE_HYBRID,
    STATE_KERNEL,
    STATE_USERSPACE,
    SYNTHETIC,
    TORN_DOWN,
    VM_WENT,
)


def on_set_irqs_entry(s: State, e: Any) -> None:
    """VFIO_DEVICE_SET_IRQS begins: what QEMU was doing tells which VFIODevice this vdev is."""
    d = device_of(s, e)
    device = s.devices[d]
    if device.owner != 0 and device.owner != e.tgid:
        device.virq_disabled = 0  # Opened anew (vfio_pci_core_disable); INTx that is enabled anew keeps it.
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
    if s.tasks[t].set_irqs_flags & ACTION_UNMASK:
        ioctl_did_not_signal(s, d, e.tid)
        hand_out_settled(s, d)
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
                device.no_trigger = 1
                return
            moved = e.link != 0 and device.trigger != 0 and device.trigger != e.link
            learn_trigger(s, d, e.link)
            device.mask_known = 1
            if device.state == OFF or device.state == NO_STATE or moved:
                set_state(s, d, STATE_USERSPACE, ENABLED, 0, e.ts)
        elif e.arg0 == DATA_EVENTFD | ACTION_UNMASK:
            learn_resample(s, d, e.link)
        elif e.arg0 == DATA_NONE | ACTION_TRIGGER and count == 0:
            # vfio_intx_disable frees the line's handler.
            shut_down(s, d, DISABLED, e.ts)
            device.mask_known = 1
    elif index in (MSI_INDEX, MSIX_INDEX) and e.arg0 & ACTION_TRIGGER and count > 0:
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
    device.handler_at = NULL
    device.handler_interrupt = -1
    device.trigger = 0
    device.resample = 0
    forget_unmasks(s, d)
    if device.line >= 0:
        leave_line(s, d)
    set_state(s, d, OFF, reason, 0, ts)


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
    forget_unmasks(s, d)
    device.handler_at = NULL
    device.trapped = -1
    i = device.head
    while i >= 0:
        x = s.interrupts[i]
        if not settled(s, i):
            x.lossy = 1
            if x.sent_at == NULL:
                x.missed = 1  # Its signal may be among what was lost,
                if x.path == HELD:
                    x.path = NO_PATH  # so it may not have been held.
        elif x.eoi_at == NULL or x.bar_open:
            x.bar_accesses = NULL
            x.reentries = NULL
            x.final = 1
        i = x.next
    hand_out_settled(s, d)


def on_probe(s: State, e: Any) -> None:
    """A probe was attached, or went."""
    on = 1 if e.value else 0
    for p in range(s.machine[0].n_probes):
        probe = s.probes[p]
        if probe.row == e.aux and probe.on != on:
            probe.on = on
            s.kinds[probe.kind] += 1 if on else -1
    for d in range(s.machine[0].n_devices):
        hand_out_settled(s, d)  # What no probe can show any more is not waited for.


def on_device(s: State, e: Any, device_pids: Any) -> None:
    """The capture names a vfio device, or says that it is gone."""
    d = known_device(s, e)
    if e.value == 0:
        if d >= 0:
            shut_down(s, d, DEVICE_WENT, e.ts)
            s.devices[d].virq_disabled = 0
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
    if device.owner == 0 and 0 <= e.aux < len(device_pids):
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
    if 0 <= e.aux < len(vm_pids):
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
            device.virq_disabled = 0
