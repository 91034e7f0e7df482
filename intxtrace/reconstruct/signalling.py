"""The eventfd: who signals it, and who takes the signal, QEMU or an irqfd."""

from __future__ import annotations

from typing import Any

from intxtrace.reconstruct.ending import hand_out_settled
from intxtrace.reconstruct.identity import (
    device_of_irqfd,
    device_of_qemu,
    device_of_resample,
    device_of_trigger,
    find,
    join_qemu,
    known_device,
    learn_trigger,
    task_of,
)
from intxtrace.reconstruct.masking import claim, raise_headless, raise_interrupt, refuse
from intxtrace.reconstruct.state import NULL, TAG_QEMU, State
from intxtrace.reconstruct.states import observe_path
from intxtrace.reconstruct.vocabulary import (
    ACTION_TRIGGER,
    DATA_BOOL,
    DATA_NONE,
    EPOLLIN,
    EVENTFD_READ,
    EVENTFD_SIGNAL,
    EVENTFD_WRITE,
    HANDLER_ENTRY,
    HELD,
    HYBRID,
    IN_EVENTFD_WRITE,
    IN_HANDLER,
    IN_IRQFD_WAKEUP,
    IN_RESAMPLER_ACK,
    IN_SET_IRQS,
    IN_UNMASK,
    IN_VIRQFD_INJECT,
    KERNEL,
    MSI_SET_IRQ,
    NO_ORIGIN,
    NO_PATH,
    PENDING,
    QEMU_INTERRUPT,
    QEMU_REGION_COUNT,
    QEMU_REGION_READ,
    RESIGNAL,
    SOFTWARE,
    STATE_HYBRID,
    STATE_KERNEL,
    STATE_USERSPACE,
    UNMASK_EXIT,
    USERSPACE,
)


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
    if e.flags & IN_HANDLER:
        i = claim(s, d)
    else:
        t = task_of(s, e)
        flags = s.tasks[t].set_irqs_flags
        if e.flags & IN_SET_IRQS and flags & ACTION_TRIGGER and flags & (DATA_NONE | DATA_BOOL):
            # vfio_pci_set_intx_trigger's loopback.
            i = raise_interrupt(s, d, SOFTWARE, e.ts)
        else:
            i = first_unsent(s, d)
        if i < 0 and e.flags & (IN_SET_IRQS | IN_UNMASK | IN_VIRQFD_INJECT):
            # Only an unmask that returned 1 makes these signal, and it was not seen.
            i = refuse(s, d, NULL, e.ts)
        elif i < 0:
            i = raise_interrupt(s, d, NO_ORIGIN, NULL)
    s.interrupts[i].sent_at = e.ts
    hand_out_settled(s, d)


def first_unsent(s: State, d: int) -> int:
    """Return the oldest interrupt that an unmask which found the line asserted has raised, not signalled yet, or -1.

    The caller of the unmask signals it; where that is virqfd_inject's worker, another unmask may come first.
    """
    i: int = s.devices[d].head
    while i >= 0:
        x = s.interrupts[i]
        if (x.origin == RESIGNAL or x.origin == PENDING) and x.sent_at == NULL and x.path != HELD:
            return i
        i = x.next
    return -1


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
    i: int = s.devices[d].head
    while i >= 0:
        x = s.interrupts[i]
        if was_signalled(s, x) and x.woken_at == NULL and x.taken_at == NULL and not x.doomed and not x.headless:
            return i
        i = x.next
    return -1


def was_signalled(s: State, x: Any) -> bool:
    """Whether the eventfd was signalled for an interrupt, or no probe could have shown it."""
    signalled: bool = x.sent_at != NULL or x.missed != 0 or (s.kinds[EVENTFD_SIGNAL] == 0 and x.path != HELD)
    return signalled


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
        resignal = s.kinds[UNMASK_EXIT] == 0 and device.mask_known != 0
        if s.kinds[EVENTFD_SIGNAL] == 0 and (s.kinds[HANDLER_ENTRY] == 0 or resignal):
            x.headless = 0  # No probe could have shown the beginning.
            x.lossy = device.lost
        if device.masked_by < 0:
            device.masked_by = taken
            device.mask_known = 1
    if probed and (s.kinds[QEMU_REGION_READ] > 0 or s.kinds[QEMU_REGION_COUNT] > 0):
        x.bar_accesses = 0
        x.bar_open = 1
        device.trapped = taken
    observe_path(s, d, STATE_USERSPACE, False)
    s.tasks[t].taking = d
    hand_out_settled(s, d)


def on_irqfd_wakeup(s: State, e: Any) -> None:
    """An irqfd took the signal (irqfd_wakeup, called inside the signal)."""
    if e.value & EPOLLIN == 0:
        return  # EPOLLHUP: the eventfd is being closed.
    d = device_of_irqfd(s, e)
    if d < 0:
        return
    s.machine[0].woken = d
    s.machine[0].woken_cpu = e.cpu
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
        x.assumed = 1
    observe_path(s, d, STATE_KERNEL if e.link2 != 0 else STATE_HYBRID, True)
    hand_out_settled(s, d)


def unwoken(s: State, d: int) -> int:
    """Return the newest interrupt of a device whose signal an irqfd may be taking, or -1."""
    i = s.devices[d].head
    found = -1
    while i >= 0:
        x = s.interrupts[i]
        if was_signalled(s, x) and x.woken_at == NULL and x.taken_at == NULL and not x.doomed and x.path != HELD:
            found = i
        i = x.next
    return found


def on_msi_set_irq(s: State, e: Any) -> None:
    """kvm_set_msi inside the wake-up: a split irqchip's route injects at once."""
    d = known_device(s, e)
    if d < 0 and e.flags & IN_IRQFD_WAKEUP and s.machine[0].woken_cpu == e.cpu:
        d = s.machine[0].woken
    if d < 0:
        return
    i = s.devices[d].tail
    if i >= 0 and s.interrupts[i].path == HYBRID and s.interrupts[i].injected_at == NULL:
        s.interrupts[i].injected_at = e.ts
        s.interrupts[i].msi = 1
        hand_out_settled(s, d)
