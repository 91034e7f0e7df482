"""When an interrupt is over, and the row that it becomes."""

from __future__ import annotations

from typing import Any

from intxtrace.reconstruct.identity import find
from intxtrace.reconstruct.state import HANDED_OUT, MAX_IN_FLIGHT, NULL, TAG_PID, State
from intxtrace.reconstruct.vocabulary import (
    CANCELLED,
    COMPLETE,
    EVENTFD_READ,
    EVENTFD_SIGNAL,
    EVENTFD_WRITE,
    HEADLESS,
    HELD,
    IRQFD_INJECT,
    IRQFD_WAKEUP,
    KERNEL,
    KVM_ACK,
    KVM_SET_IRQ,
    KVM_SET_IRQ_EXIT,
    LOSSY,
    NO_PATH,
    OPEN,
    PENDING,
    QEMU_EOI,
    QEMU_INTERRUPT,
    QEMU_RESAMPLE_NOTIFY,
    RESAMPLER_ACK,
    RESIGNAL,
    SETTLED,
    TORN_DOWN,
    UNMASK_ENTRY,
    UNMASK_EXIT,
    USERSPACE,
    VIRQFD_WAKEUP,
    WORK_QUEUED,
)


def shows_acknowledgement(s: State, i: int) -> bool:
    """Whether the acknowledgement of this interrupt, if it happens, makes an event."""
    x = s.interrupts[i]
    if x.path == KERNEL:
        shown: bool = s.kinds[RESAMPLER_ACK] > 0 or s.kinds[KVM_ACK] > 0
        return shown
    if x.path == USERSPACE:
        # With its irqchip in userspace QEMU asserts no line in KVM, and lowers none.
        shown = s.kinds[QEMU_EOI] > 0 or (s.kinds[KVM_SET_IRQ] > 0 and x.injected_at != NULL)
        return shown
    # hybrid: the guest's EOI leaves a split irqchip to QEMU, which writes the resamplefd (kvm_resample_fd_notify);
    # without one the unmask, which comes from userspace, is itself the last word. held, unknown: nobody acknowledges.
    written = s.kinds[QEMU_RESAMPLE_NOTIFY] > 0 or s.kinds[EVENTFD_WRITE] > 0
    shown = x.msi != 0 and written and s.kinds[VIRQFD_WAKEUP] > 0
    return shown


def settled(s: State, i: int) -> bool:
    """Whether every end stage that the probes can show was seen."""
    x = s.interrupts[i]
    masked = s.devices[x.device].masked_by == i
    if masked and s.kinds[UNMASK_EXIT] > 0:
        return False
    # Another task may unmask inside the signal: that is the last word only where no irqfd_wakeup is recorded.
    unmasked = (x.unmasked_at != NULL or x.refused_at != NULL) and s.kinds[IRQFD_WAKEUP] == 0
    if x.path == NO_PATH and x.sent_at != NULL and not unmasked:
        return False  # Signalled, and nobody has taken it yet.
    unsent = (x.origin == RESIGNAL or x.origin == PENDING) and x.sent_at == NULL and x.path != HELD
    if unsent and not x.lossy and s.kinds[EVENTFD_SIGNAL] > 0:
        return False  # Its caller, or the worker that signals it (virqfd_inject), has not come to that yet.
    if x.path == USERSPACE and x.taken_at == NULL and (s.kinds[EVENTFD_READ] > 0 or s.kinds[QEMU_INTERRUPT] > 0):
        return False  # No irqfd took the signal, and QEMU has not yet (vfio_intx_interrupt).
    if x.acknowledged_at != NULL or x.doomed or x.unshown:
        return True
    if x.fresh and s.kinds[KVM_SET_IRQ_EXIT] > 0:
        return False  # kvm_set_irq has not returned: when it was injected, and whether it coalesced, is not all told.
    if x.woken_at != NULL and x.injected_at == NULL and s.kinds[IRQFD_INJECT] > 0:
        return False  # irqfd_wakeup has scheduled its injection.
    # Where no probe shows any end, it has ended when a later interrupt took its place.
    return not masked and not shows_acknowledgement(s, i)


def awaited(s: State, i: int) -> bool:
    """Whether a settled interrupt may still be named by later evidence."""
    x = s.interrupts[i]
    if x.path == KERNEL and s.kinds[UNMASK_EXIT] == 0 and s.kinds[UNMASK_ENTRY] == 0 and s.kinds[WORK_QUEUED] > 0:
        # No probe shows the unmask, but what it makes virqfd_wakeup queue if it returned 1 is shown.
        return bool(s.devices[x.device].masked_by == i)
    if x.path != USERSPACE or x.doomed or x.final:
        return False
    # On the userspace path the guest's EOI follows the unmask (vfio_intx_eoi runs at the first BAR access). It reaches
    # kvm_notify_acked_irq only if KVM's own irqchip has the line.
    if x.eoi_at == NULL and x.injected_at != NULL and s.kinds[KVM_ACK] > 0:
        return True
    # Its BAR accesses go on until QEMU takes the next interrupt.
    accesses_go_on: bool = x.bar_open != 0
    return accesses_go_on


def hand_out_settled(s: State, d: int) -> None:
    """Hand out, oldest first, what is settled and awaits nothing.

    Oldest first, so that a resignal's parent has its id when the resignal needs it.
    """
    device = s.devices[d]
    i = device.head
    while i >= 0:
        over = settled(s, i)
        if not over or awaited(s, i):
            if device.in_flight <= MAX_IN_FLIGHT:
                return
            if not over:
                s.interrupts[i].lossy = 1  # So many came after it, and its end was not seen.
        hand_out(s, d, SETTLED)
        i = device.head


def outcome_of(s: State, i: int, why: int) -> int:
    """Return how an interrupt came out."""
    x = s.interrupts[i]
    if x.lossy:
        return LOSSY
    if x.headless:
        return HEADLESS
    if settled(s, i):
        if x.doomed and x.acknowledged_at == NULL:
            return CANCELLED
        # What an unmask found asserted its caller signals (vfio_send_intx_eventfd): a signal not seen was missed.
        unseen = x.path == NO_PATH and x.sent_at == NULL and s.kinds[EVENTFD_SIGNAL] > 0
        return LOSSY if unseen else COMPLETE
    return CANCELLED if why == TORN_DOWN else OPEN


def signalled_at(s: State, x: Any) -> int:
    """Return when an interrupt was signalled: on the userspace path, when QEMU took it up, where a probe shows that."""
    if x.path == USERSPACE and (s.kinds[EVENTFD_READ] > 0 or s.kinds[QEMU_INTERRUPT] > 0):
        at: int = x.taken_at
    else:
        at = x.sent_at
    return at


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
        # The vCPU on another CPU may be quicker than the handler, which returns after eventfd_signal injected it.
        device.handler_interrupt = HANDED_OUT
    if device.trapped == i:
        device.trapped = -1
    x.next = m.free
    m.free = i
    m.n_live -= 1


def vm_row(s: State, d: int) -> int:
    """Return the row of the VM table that a device belongs to, -1."""
    device = s.devices[d]
    v: int = device.vm
    if v < 0 and device.owner != 0:
        v = find(s, TAG_PID, device.owner, 0)
    if v < 0:
        return -1
    row: int = s.vms[v].id
    return row
