"""The guest's interrupt controller: injection, and the guest's acknowledgement."""

from __future__ import annotations

from typing import Any

from intxtrace.reconstruct.ending import hand_out_settled
from intxtrace.reconstruct.identity import (
    device_of_irqfd,
    device_of_qemu,
    known_device,
    learn_line,
    learn_resample,
    line_of,
    task_of,
    vm_of,
)
from intxtrace.reconstruct.masking import raise_headless
from intxtrace.reconstruct.signalling import first_untaken, only_untaken, take
from intxtrace.reconstruct.state import NULL, State
from intxtrace.reconstruct.states import observe_path
from intxtrace.reconstruct.vocabulary import (
    APIC_ACCEPT,
    EPOLLIN,
    EVENTFD_READ,
    HYBRID,
    IN_EVENTFD_WRITE,
    IN_IRQFD_WAKEUP,
    IOAPIC,
    IRQFD_INJECT,
    KERNEL,
    KVM_ACK,
    KVM_SET_IRQ,
    KVM_SET_IRQ_EXIT,
    NO_PATH,
    PIC_MASTER,
    QEMU_EOI,
    QEMU_INTERRUPT,
    RESAMPLER_ACK,
    SET_IRQS_ENTRY,
    SOURCE_RESAMPLE,
    SOURCE_USERSPACE,
    STATE_HYBRID,
    STATE_KERNEL,
    USERSPACE,
)


def on_irqfd_inject(s: State, e: Any) -> None:
    """The worker that irqfd_wakeup scheduled (or kvm_irqfd, for an eventfd that was signalled before) injects."""
    t = task_of(s, e)
    task = s.tasks[t]
    before = end_injection(s, task, NULL)
    d = device_of_irqfd(s, e)
    if before >= 0 and before != d:
        hand_out_settled(s, before)
    if d < 0:
        return
    begin_injection(s, task, d, KERNEL if e.link2 != 0 else HYBRID, e)
    observe_path(s, d, STATE_KERNEL if e.link2 != 0 else STATE_HYBRID, True)


def begin_injection(s: State, task: Any, d: int, path: int, e: Any) -> None:
    """A worker injects for a device. `path` is NO_PATH where only kvm_set_irq's source will tell it."""
    end_fresh(s, d, NULL)
    # schedule_work on pending work does nothing, so one run injects every wake-up before it.
    injected = -1
    i = s.devices[d].head
    while i >= 0:
        x = s.interrupts[i]
        if x.assumed or (x.woken_at != NULL and x.injected_at == NULL):
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
        if path != NO_PATH:
            x.gsi = e.arg0
        inject(s, i, -1, e.ts)
    task.injecting = d
    task.asserted = 0
    hand_out_settled(s, d)


def inject(s: State, i: int, before: int, ts: int) -> None:
    """The line is raised for an interrupt; `before` is another one that the same call raises it for, or -1."""
    x = s.interrupts[i]
    x.injected_at = ts
    x.assumed = 0
    x.fresh = next_injection(s)
    if before >= 0:
        x.coalesced = 1
    if x.path == USERSPACE and s.kinds[KVM_ACK] > 0:
        x.reentries = 0


def next_injection(s: State) -> int:
    """Number an injection."""
    m = s.machine[0]
    m.injections += 1
    number: int = m.injections
    return number


def on_kvm_set_irq(s: State, e: Any) -> None:
    """kvm_set_irq: source 1 is a resampling irqfd, 0 is KVM_IRQ_LINE (QEMU) or an irqfd without resampler."""
    t = task_of(s, e)
    task = s.tasks[t]
    if e.value == 0:
        if e.arg1 == SOURCE_USERSPACE and task.injecting < 0:
            task.deassert_at = e.ts
            if s.kinds[SET_IRQS_ENTRY] == 0 and s.kinds[QEMU_EOI] == 0:
                lowered_by_qemu(s, e)
        return
    if task.injecting >= 0 and task.asserted == 0:
        # Called by irqfd_inject.
        task.asserted = 1
        i = s.devices[task.injecting].head
        while i >= 0:
            x = s.interrupts[i]
            if x.fresh:
                x.injected_at = e.ts
                x.fresh = next_injection(s)
                if x.path == NO_PATH:
                    # irqfd_inject: an irqfd with a resampler uses KVM_IRQFD_RESAMPLE_IRQ_SOURCE_ID.
                    x.path = KERNEL if e.arg1 == SOURCE_RESAMPLE else HYBRID
                    x.gsi = e.arg0
                    observe_path(s, task.injecting, STATE_KERNEL if x.path == KERNEL else STATE_HYBRID, True)
            i = x.next
        return
    before = end_injection(s, task, NULL)
    if before >= 0:
        hand_out_settled(s, before)
    if e.arg1 != SOURCE_USERSPACE:
        return
    d = task.taking
    task.taking = -1
    if d < 0:
        if s.kinds[EVENTFD_READ] > 0 or s.kinds[QEMU_INTERRUPT] > 0:
            return  # An emulated device's line.
        if task.vcpu:
            return  # A device that the guest just accessed; vfio_intx_interrupt runs in QEMU's main loop.
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


def lowered_by_qemu(s: State, e: Any) -> None:
    """The line was lowered, by vfio_intx_eoi if one interrupt alone that QEMU took is in service on that GSI."""
    found = -1
    for d in range(s.machine[0].n_devices):
        i = s.devices[d].head
        while i >= 0:
            x = s.interrupts[i]
            if x.taken_at != NULL and x.injected_at != NULL and x.acknowledged_at == NULL and x.gsi == e.arg0:
                if found >= 0 and found != d:
                    return
                found = d
            i = x.next
    if found >= 0:
        acknowledge_taken(s, found, e.ts)


def on_kvm_set_irq_exit(s: State, e: Any) -> None:
    """kvm_set_irq returned: whether the controller took the level as a new delivery."""
    if e.aux != 0:
        d = end_injection(s, s.tasks[task_of(s, e)], e.value)
        if d >= 0:
            hand_out_settled(s, d)


def end_injection(s: State, task: Any, returned: int) -> int:
    """The call that raised the line is over, with what it returned (NULL: not known). Returns its device, or -1.

    ioapic_service returns -1 where the pin is masked or its remote IRR is set, pic_set_irq1 0 where the request bit is.
    """
    d: int = task.injecting
    task.injecting = -1
    if d >= 0:
        end_fresh(s, d, returned)
    return d


def end_fresh(s: State, d: int, returned: int) -> None:
    """What was being raised on a device's line was delivered, or merged into what is in service."""
    i = s.devices[d].head
    while i >= 0:
        x = s.interrupts[i]
        if x.fresh:
            if x.coalesced == NULL:
                if returned != NULL and returned > 0:
                    x.coalesced = 0
                elif in_service(s, i, False):
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


def in_service(s: State, i: int, racing: bool) -> bool:
    """Whether an earlier delivery on the same GSI has not had its EOI yet.

    `racing`: one counts too whose kvm_set_irq was called before and is not known to have returned.
    """
    line = s.devices[s.interrupts[i].device].line
    if line < 0:
        # The VM is not known (KVM's tracepoints name none). What no local APIC accepted merged into what is in service
        # on that GSI; two VMs with one GSI would each have had theirs accepted.
        for d in range(s.machine[0].n_devices):
            if s.devices[d].line < 0 and serves(s, d, i, s.interrupts[i].gsi, racing):
                return True
        return False
    d = s.lines[line].first
    while d >= 0:
        if serves(s, d, i, NULL, racing):
            return True
        d = s.devices[d].next_on_line
    return False


def serves(s: State, d: int, i: int, gsi: int, racing: bool) -> bool:
    """Whether a device has a delivery other than `i` in service; `gsi` NULL: on whatever GSI."""
    j = s.devices[d].head
    while j >= 0:
        y = s.interrupts[j]
        ended = y.eoi_at != NULL or (y.path != USERSPACE and y.acknowledged_at != NULL)
        earlier = y.coalesced == NULL and y.fresh < s.interrupts[i].fresh
        delivered = not y.fresh or y.coalesced == 0 or (racing and earlier)
        if j != i and y.injected_at != NULL and not ended and delivered and gsi in (NULL, y.gsi):
            return True
        j = y.next
    return False


def on_kvm_ack(s: State, e: Any) -> None:
    """kvm_notify_acked_irq: the guest's EOI of a level interrupt at the IOAPIC, or the PIC."""
    gsi = gsi_of_pin(e)
    if gsi == NULL:
        return
    s.tasks[task_of(s, e)].resampler_ack = 0
    line = line_of(s, vm_of(s, e), gsi)
    if line < 0:
        return
    d = s.lines[line].first
    while d >= 0:
        judge_fresh(s, d)
        d = s.devices[d].next_on_line
    d = s.lines[line].first
    while d >= 0:
        following = s.devices[d].next_on_line
        eoi_of_device(s, d, e.ts)
        hand_out_settled(s, d)
        d = following


def gsi_of_pin(e: Any) -> int:
    """Return the GSI that an irqchip's pin is of; NULL for the PIC's cascade.

    Pins are GSIs but for IOAPIC pin 2, which is GSI 0 (kvm_setup_default_irq_routing); PIC master pin 2 is the cascade.
    """
    pin: int = e.arg0
    if pin == 2 and e.arg1 == PIC_MASTER:
        return NULL
    if pin == 2 and e.arg1 == IOAPIC:
        return 0
    return pin


def judge_fresh(s: State, d: int) -> None:
    """An EOI comes before kvm_set_irq is known to have returned: say what of it can be said.

    The guest had nothing else to end, so what was raised first was delivered. Or something else was in service, and no
    return is recorded, but what the local APIC accepts is: what it did not accept has merged (ioapic_service).
    """
    i = s.devices[d].head
    while i >= 0:
        x = s.interrupts[i]
        if x.fresh and x.coalesced == NULL and x.injected_at != NULL and x.eoi_at == NULL:
            if not in_service(s, i, True):
                x.coalesced = 0
            elif s.kinds[KVM_SET_IRQ_EXIT] == 0 and s.kinds[APIC_ACCEPT] > 0:
                x.coalesced = 1
        i = x.next


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
    hand_out_settled(s, d)
