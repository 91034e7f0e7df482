"""The line is masked and unmasked: hard interrupts, resignals, and what was in flight when the trace began."""

from __future__ import annotations

from typing import Any

from intxtrace.reconstruct.ending import hand_out_settled
from intxtrace.reconstruct.identity import device_of, known_device, task_of
from intxtrace.reconstruct.state import HANDED_OUT, NULL, State
from intxtrace.reconstruct.states import observe_path
from intxtrace.reconstruct.vocabulary import (
    ACTION_UNMASK,
    ASSUMED,
    CHECKED,
    CHECKED_UNMASK,
    ENABLE_IRQ,
    EVENTFD_SIGNAL,
    FALLBACK,
    HANDLER_ENTRY,
    HARDWARE,
    HELD,
    IRQFD_WAKEUP,
    KERNEL,
    NO_ORIGIN,
    NO_PATH,
    PENDING,
    RESIGNAL,
    STATE_USERSPACE,
    UNMASK_ENTRY,
    UNMASK_EXIT,
    USERSPACE,
)


def raise_interrupt(s: State, d: int, origin: int, raised_at: int) -> int:
    """Open an interrupt of a device."""
    m = s.machine[0]
    device = s.devices[d]
    if m.free >= 0:
        i: int = m.free
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
    x.assumed = 0
    x.msi = 0
    x.fresh = 0
    x.doomed = 0
    x.unshown = 0
    x.final = 0
    x.headless = 0
    x.missed = 0
    x.signaller = 0
    x.doubtful = 0
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
    s.interrupts[i].path = path
    begin_is_missing(s, i, s.devices[d].lost != 0 or s.devices[d].mask_known != 0)
    return i


def begin_is_missing(s: State, i: int, known: bool) -> None:
    """The beginning of an interrupt is before the trace, or was lost if its device was known before."""
    if known:
        s.interrupts[i].lossy = 1
    else:
        s.interrupts[i].headless = 1


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
    i = device.handler_interrupt
    if e.value == 0:
        device.unclaimed += 1
    elif i != HANDED_OUT:
        if i < 0:
            # Claimed and not signalled: no trigger is set, or virq_disabled was set in between.
            begun = device.handler_at != NULL or s.kinds[HANDLER_ENTRY] == 0
            i = claim(s, d)
            if e.flags & FALLBACK or not begun:
                # The kprobe missed the handler, and so the ones nested in it: a kprobe's hit inside of another one's is
                # dropped (kprobe_int3_handler, reenter_kprobe). Or it began before the trace, or before events were
                # lost: the signal may have come then.
                s.interrupts[i].missed = 1
            elif s.kinds[EVENTFD_SIGNAL] > 0:
                s.interrupts[i].path = HELD
        elif not e.flags & FALLBACK:
            no_irqfd_took_it(s, i)
    device.handler_at = NULL
    device.handler_interrupt = -1
    hand_out_settled(s, d)


def claim(s: State, d: int) -> int:
    """The handler claimed the line and masked it (pci_check_and_mask_intx, or disable_irq_nosync).

    The interrupt before may be settled by that; the caller hands it out.
    """
    device = s.devices[d]
    before = device.masked_by
    device.claims += 1
    if device.unmasks_open:
        # The line is open from enable_irq or pci_check_and_unmask_intx on, before the unmask has returned: the hardware
        # fires again inside it (exclusive mode), or on another CPU.
        if before >= 0:
            opened_at = device.proof_at if device.proof_at != NULL else device.handler_at
            if opened_at != NULL:
                s.interrupts[before].unmasked_at = opened_at
                s.interrupts[before].proof = CHECKED if device.proof_at != NULL else ASSUMED
        device.proof_at = NULL
    elif before >= 0:
        # It can only claim an unmasked line, so an unmask was missed.
        if s.kinds[UNMASK_EXIT] > 0:
            s.interrupts[before].lossy = 1
            s.interrupts[before].doomed = 1
        elif s.kinds[UNMASK_ENTRY] == 0 and s.interrupts[before].path == KERNEL and device.line < 0:
            # irqfd_resampler_ack has unmasked it, after an EOI that could not be told from another VM's.
            s.interrupts[before].unshown = 1
    known = device.lost != 0 or device.mask_known != 0
    i = raise_masked(s, d, HARDWARE, device.handler_at)
    if device.handler_at == NULL and s.kinds[HANDLER_ENTRY] > 0:
        begin_is_missing(s, i, known)
    device.lost = 0
    device.handler_interrupt = i
    return i


def no_irqfd_took_it(s: State, i: int) -> None:
    """An irqfd takes a signal inside eventfd_signal (irqfd_wakeup); what it does not take waits for QEMU's poll."""
    x = s.interrupts[i]
    if x.path == NO_PATH and x.woken_at == NULL and s.kinds[IRQFD_WAKEUP] > 0:
        x.path = USERSPACE
        observe_path(s, x.device, STATE_USERSPACE, False)


def ioctl_did_not_signal(s: State, d: int, tid: int) -> None:
    """An unmask by ioctl that found the line asserted returns: vfio_send_intx_eventfd came before, or never will.

    Where events are known to be lost the path stays unknown (`setting_up.lose`). An event that was lost without a
    LOST (no producer of ours does that) would be read as held: nothing tells the two apart.
    """
    i = s.devices[d].head
    while i >= 0:
        x = s.interrupts[i]
        unsent = x.sent_at == NULL and not x.missed and s.kinds[EVENTFD_SIGNAL] > 0
        if x.signaller == tid and unsent and x.path == NO_PATH:
            x.path = HELD
        i = x.next


def on_unmask_exit(s: State, e: Any) -> None:
    """vfio_pci_intx_unmask_handler returned: 1 still asserted and masked, 0 unmasked or nothing to do."""
    t = task_of(s, e)
    task = s.tasks[t]
    d = device_of(s, e)
    proof = task.proof
    task.proof = 0
    claimed_within = False
    if unmasking(s, d, t):
        task.unmasking = -1
        claimed_within = task.claims != s.devices[d].claims
        s.devices[d].unmasks_open -= 1
    if claimed_within and e.value == 0:
        pass  # It opened the line for the interrupt that was claimed since.
    elif e.value > 0:
        i = refuse(s, d, t, e.ts)
        if task.set_irqs_flags & ACTION_UNMASK:
            s.interrupts[i].signaller = e.tid
    elif unmask_was_real(s, d, proof):
        unmask(s, d, t, proof, e.ts)
    else:
        s.devices[d].noop_unmasks += 1
    task.resampler_ack = 0


def on_unmask_entry(s: State, e: Any) -> None:
    """vfio_pci_intx_unmask_handler runs."""
    t = task_of(s, e)
    d = device_of(s, e)
    task = s.tasks[t]
    device = s.devices[d]
    if device.unmasks_open == 0:
        device.proof_at = NULL
    if not unmasking(s, d, t):
        device.unmasks_open += 1
    task.proof = 0
    task.unmasking = d
    task.unmasking_since = device.unmasks_since
    task.claims = device.claims


def unmasking(s: State, d: int, t: int) -> bool:
    """Whether a thread is inside an unmask of a device: the lock is taken inside, so several threads may be."""
    task = s.tasks[t]
    same: bool = task.unmasking == d and task.unmasking_since == s.devices[d].unmasks_since
    return same


def forget_unmasks(s: State, d: int) -> None:
    """The unmasks of a device that are open will not be seen to return, or are no use any more."""
    device = s.devices[d]
    device.unmasks_open = 0
    device.unmasks_since += 1


def on_unmask_proof(s: State, e: Any, shared: int) -> None:
    """The line was really unmasked: pci_check_and_unmask_intx returned 1 (shared mode), or enable_irq (exclusive)."""
    d = known_device(s, e)
    if d >= 0 and shared:
        s.devices[d].shared_mode = 1
    if shared and e.value == 0:
        return
    t = task_of(s, e)
    task = s.tasks[t]
    task.proof = 1
    if d >= 0 and unmasking(s, d, t):
        s.devices[d].proof_at = e.ts
        task.claims = s.devices[d].claims  # What was claimed before is what this opens the line for.


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
    something: bool = device.masked_by >= 0 or device.mask_known == 0
    return something


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
    child = raise_masked(s, d, RESIGNAL if resignal else PENDING, ts if resignal and t != NULL else NULL)
    if device.no_trigger and s.kinds[EVENTFD_SIGNAL] > 0:
        s.interrupts[child].path = HELD  # vfio_send_intx_eventfd has no eventfd to signal.
    if parent >= 0:
        s.interrupts[parent].refused_at = ts
        if resignal:
            s.interrupts[parent].child = child
        hand_out_settled(s, d)
    return child
