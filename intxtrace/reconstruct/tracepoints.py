"""What the kernel's own tracepoints tell where no kprobe does: work items, and KVM without its pointer.

A work item's pointer (`%p`, hashed in ftrace's text) joins with nothing but itself: what it belongs to is learned from
the call that first queued it.
"""

from __future__ import annotations

from typing import Any

from intxtrace.reconstruct.delivering import begin_injection, end_injection, eoi_of_device, gsi_of_pin, judge_fresh
from intxtrace.reconstruct.ending import hand_out_settled
from intxtrace.reconstruct.identity import find, known_device, put, task_of
from intxtrace.reconstruct.masking import claim, raise_interrupt, refuse
from intxtrace.reconstruct.signalling import unwoken
from intxtrace.reconstruct.state import HANDED_OUT, NULL, TAG_WORK, State
from intxtrace.reconstruct.states import observe_path
from intxtrace.reconstruct.vocabulary import (
    HYBRID,
    IN_HANDLER,
    IN_VIRQFD_INJECT,
    IRQFD_INJECT,
    IRQFD_WAKEUP,
    NO_ORIGIN,
    NO_PATH,
    STATE_HYBRID,
    UNMASK_EXIT,
    WORK_IRQFD_INJECT,
    WORK_VIRQFD_INJECT,
)


def on_work_queued(s: State, e: Any) -> None:
    """schedule_work, by irqfd_wakeup for irqfd_inject, or by virqfd_wakeup after an unmask returned 1."""
    if e.value == WORK_IRQFD_INJECT and s.kinds[IRQFD_WAKEUP] == 0:
        on_irqfd_queued(s, e)
    elif e.value == WORK_VIRQFD_INJECT and s.kinds[UNMASK_EXIT] == 0:
        on_virqfd_queued(s, e)


def on_irqfd_queued(s: State, e: Any) -> None:
    """irqfd_wakeup, inside the signal, queued irqfd_inject: an irqfd took the signal; which path, kvm_set_irq tells."""
    d = known_device(s, e)
    if d < 0:
        d = device_of_work(s, e)
    if d < 0:
        return
    put(s, TAG_WORK, e.link, e.value, d)
    i = s.devices[d].handler_interrupt if e.flags & IN_HANDLER else unwoken(s, d)
    if i == HANDED_OUT:
        return
    if i < 0:
        if e.flags & IN_HANDLER:
            i = claim(s, d)
        elif e.flags & IN_VIRQFD_INJECT:
            i = refuse(s, d, NULL, e.ts)
        else:
            i = raise_interrupt(s, d, NO_ORIGIN, NULL)  # The ioctl, or somebody wrote the eventfd.
    x = s.interrupts[i]
    x.woken_at = e.ts
    if x.sent_at == NULL:
        x.sent_at = e.ts
    hand_out_settled(s, d)


def on_msi_of_handler(s: State, e: Any) -> None:
    """kvm_set_msi inside vfio_intx_handler: an irqfd took its signal, and a split irqchip's route injects at once.

    Nothing else in the handler raises an interrupt of a guest (kvm_arch_set_irq_inatomic, called by irqfd_wakeup).
    """
    d = known_device(s, e)
    if d < 0 or not e.flags & IN_HANDLER:
        return
    i = s.devices[d].handler_interrupt
    if i == HANDED_OUT:
        return
    if i < 0:
        i = claim(s, d)
    x = s.interrupts[i]
    if x.injected_at != NULL:
        return
    x.woken_at = e.ts
    x.injected_at = e.ts
    x.path = HYBRID
    x.msi = 1
    observe_path(s, d, STATE_HYBRID, True)
    hand_out_settled(s, d)


def on_virqfd_queued(s: State, e: Any) -> None:
    """virqfd_wakeup queued virqfd_inject: vfio_pci_intx_unmask_handler returned 1, in the task of the guest's EOI."""
    t = task_of(s, e)
    d = device_of_work(s, e)
    if d < 0:
        d = s.tasks[t].acked
    if d < 0:
        return
    put(s, TAG_WORK, e.link, e.value, d)
    refuse(s, d, t, e.ts)


def device_of_work(s: State, e: Any) -> int:
    """Return the device that a work item belongs to, -1 if nothing has told."""
    return find(s, TAG_WORK, e.link, e.value) if e.link != 0 else -1


def on_work_started(s: State, e: Any) -> None:
    """A worker begins irqfd_inject (process_one_work)."""
    if e.value != WORK_IRQFD_INJECT or s.kinds[IRQFD_INJECT] > 0:
        return
    task = s.tasks[task_of(s, e)]
    before = end_injection(s, task, NULL)
    d = device_of_work(s, e)
    if before >= 0 and before != d:
        hand_out_settled(s, before)
    if d >= 0:
        begin_injection(s, task, d, NO_PATH, e)


def on_ack_of_unnamed_vm(s: State, e: Any) -> None:
    """kvm_ack_irq names no VM. Two VMs may use one GSI, so it counts only where no more than one delivery can be meant.

    It can if one alone is in service on that GSI, with what merged into it: merging proves one interrupt controller
    (ioapic_service). Else if earlier such acknowledgements of this process (or thread, where the process is not known)
    were all for one of them.
    """
    gsi = gsi_of_pin(e)
    if gsi == NULL:
        return
    task = s.tasks[task_of(s, e)]
    task.resampler_ack = 0
    task.acked = -1
    who = e.tgid if e.tgid != 0 else e.tid
    for d in range(s.machine[0].n_devices):
        if holds(s, d, gsi):
            judge_fresh(s, d)
    deliveries = 0
    for d in range(s.machine[0].n_devices):
        deliveries += outstanding(s, d, gsi)
    n = 0
    for d in range(s.machine[0].n_devices):
        if holds(s, d, gsi) and (deliveries <= 1 or s.devices[d].acker == who):
            s.devices[d].acker = who
            eoi_of_device(s, d, e.ts)
            n += 1
            task.acked = d if n == 1 else -1
            hand_out_settled(s, d)
    if n == 0 and deliveries > 1:
        doubt(s, gsi, deliveries)


def doubt(s: State, gsi: int, deliveries: int) -> None:
    """An EOI was for one of several deliveries. After as many EOIs as there are deliveries, each has had its own."""
    fewest = deliveries
    for d in range(s.machine[0].n_devices):
        i = s.devices[d].head
        while i >= 0:
            x = s.interrupts[i]
            if in_service_on(x, gsi):
                x.doubtful += 1
                fewest = min(fewest, x.doubtful)
            i = x.next
    if fewest < deliveries:
        return
    for d in range(s.machine[0].n_devices):
        i = s.devices[d].head
        while i >= 0:
            if in_service_on(s.interrupts[i], gsi):
                s.interrupts[i].unshown = 1
            i = s.interrupts[i].next
        hand_out_settled(s, d)


def in_service_on(x: Any, gsi: int) -> bool:
    """Whether an interrupt was injected into this GSI and is not known to have had its EOI."""
    injected: bool = x.injected_at != NULL and x.gsi == gsi
    return injected and x.eoi_at == NULL and not x.doomed and not x.unshown


def holds(s: State, d: int, gsi: int) -> bool:
    """Whether a device has an interrupt in service on this GSI."""
    i = s.devices[d].head
    while i >= 0:
        if in_service_on(s.interrupts[i], gsi):
            return True
        i = s.interrupts[i].next
    return False


def outstanding(s: State, d: int, gsi: int) -> int:
    """Return how many deliveries of a device are in service on this GSI, without what merged into another."""
    deliveries = 0
    i = s.devices[d].head
    while i >= 0:
        x = s.interrupts[i]
        if in_service_on(x, gsi) and x.coalesced != 1:
            deliveries += 1
        i = x.next
    return deliveries
