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

from intxtrace.reconstruct.counting import on_bar_offset, on_bar_total, roll_window
from intxtrace.reconstruct.delivering import (
    on_apic_accept,
    on_irqfd_inject,
    on_kvm_ack,
    on_kvm_set_irq,
    on_kvm_set_irq_exit,
    on_qemu_eoi,
    on_resampler_ack,
    on_virqfd_wakeup,
)
from intxtrace.reconstruct.ending import hand_out
from intxtrace.reconstruct.identity import device_of, task_of
from intxtrace.reconstruct.masking import (
    on_handler_entry,
    on_handler_exit,
    on_unmask_entry,
    on_unmask_exit,
    on_unmask_proof,
)
from intxtrace.reconstruct.setting_up import (
    on_device,
    on_kvm_irqfd,
    on_lost,
    on_probe,
    on_set_irqs_entry,
    on_set_irqs_exit,
    on_vm,
)
from intxtrace.reconstruct.signalling import (
    on_eventfd_read,
    on_eventfd_signal,
    on_eventfd_write,
    on_irqfd_wakeup,
    on_msi_set_irq,
    on_qemu_interrupt,
)
from intxtrace.reconstruct.state import NULL, ROOM, State
from intxtrace.reconstruct.states import end_state, on_qemu_mmaps
from intxtrace.reconstruct.tracepoints import (
    on_ack_of_unnamed_vm,
    on_msi_of_handler,
    on_work_queued,
    on_work_started,
)
from intxtrace.reconstruct.vocabulary import (
    APIC_ACCEPT,
    CHECKED_UNMASK,
    CONFIG_UNMASK,
    DEVICE,
    ENABLE_IRQ,
    EVENTFD_READ,
    EVENTFD_SIGNAL,
    EVENTFD_WRITE,
    EXIT_IOAPIC_EOI,
    HANDLER_ENTRY,
    HANDLER_EXIT,
    IN_SET_IRQS,
    IRQFD_INJECT,
    IRQFD_WAKEUP,
    KVM_ACK,
    KVM_EOI,
    KVM_IRQFD_ENTRY,
    KVM_IRQFD_EXIT,
    KVM_SET_IRQ,
    KVM_SET_IRQ_EXIT,
    LOST,
    MASK,
    MSI_SET_IRQ,
    PROBE,
    QEMU_ENABLE,
    QEMU_EOI,
    QEMU_INTERRUPT,
    QEMU_MMAPS,
    QEMU_REGION_COUNT,
    QEMU_REGION_OFFSETS,
    QEMU_REGION_READ,
    QEMU_REGION_WRITE,
    QEMU_RESAMPLE_NOTIFY,
    RESAMPLER_ACK,
    SET_IRQS_ENTRY,
    SET_IRQS_EXIT,
    SYNTHETIC,
    TRACE_ENDED,
    UNMASK_ENTRY,
    UNMASK_EXIT,
    USERSPACE_EXIT,
    VIRQFD_WAKEUP,
    VM,
    WINDOW,
    WORK_QUEUED,
    WORK_STARTED,
)


def has_room(s: State) -> bool:
    """Whether every table can take what one event may add; `state.with_room` makes it."""
    m = s.machine[0]
    room: bool = (
        m.n_devices + ROOM <= len(s.devices)
        and m.n_vms + ROOM <= len(s.vms)
        and m.n_lines + ROOM <= len(s.lines)
        and m.n_tasks + ROOM <= len(s.tasks)
        and m.n_interrupts + ROOM <= len(s.interrupts)
        and m.n_probes + ROOM <= len(s.probes)
        and m.n_bars + ROOM <= len(s.bars)
        and 2 * (m.n_slots + ROOM) <= m.slot_rows
        and m.out_interrupts + m.n_live + ROOM <= len(s.interrupt_rows)
        and m.out_states + 4 * m.n_devices + ROOM <= len(s.state_rows)
        and m.out_counters + 9 * m.n_devices + m.n_bars + ROOM <= len(s.counter_rows)
    )
    return room


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
            if e.vm != 0 or e.flags & SYNTHETIC:
                on_kvm_ack(s, e)
            else:
                on_ack_of_unnamed_vm(s, e)
        elif kind == WORK_QUEUED:
            on_work_queued(s, e)
        elif kind == WORK_STARTED:
            on_work_started(s, e)
        elif kind == RESAMPLER_ACK:
            on_resampler_ack(s, e)
        elif kind == VIRQFD_WAKEUP:
            on_virqfd_wakeup(s, e)
        elif kind == UNMASK_ENTRY:
            on_unmask_entry(s, e)
        elif kind == UNMASK_EXIT:
            on_unmask_exit(s, e)
        elif kind == CHECKED_UNMASK:
            on_unmask_proof(s, e, 1)
        elif kind == ENABLE_IRQ:
            on_unmask_proof(s, e, 0)
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
            if s.kinds[IRQFD_WAKEUP] > 0:
                on_msi_set_irq(s, e)
            else:
                on_msi_of_handler(s, e)
        elif kind == USERSPACE_EXIT:
            task = s.tasks[task_of(s, e)]
            task.vcpu = 1
            if e.value == EXIT_IOAPIC_EOI:
                task.exit_at = e.ts
        elif kind == KVM_EOI:
            s.tasks[task_of(s, e)].vcpu = 1
        elif kind == QEMU_INTERRUPT:
            on_qemu_interrupt(s, e)
        elif kind == QEMU_EOI:
            on_qemu_eoi(s, e)
        elif kind == QEMU_ENABLE:
            task = s.tasks[task_of(s, e)]
            task.qemu = e.device
            task.qemu_kind = QEMU_ENABLE
        elif kind in (QEMU_REGION_READ, QEMU_REGION_WRITE):
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
