"""Goldens of masking and unmasking: `intxtrace/reconstruct/masking.py`, rule by rule.

vfio masks the line in vfio_intx_handler and opens it in vfio_pci_intx_unmask_handler, both under vdev->irqlock
(drivers/vfio/pci/vfio_pci_intrs.c, 4.15 to 7.x).
"""

from __future__ import annotations

from intxtrace.events import Flag, Kind
from tests.dsl import UNMASK_NONE
from tests.golden.test_interrupts import one_device, rows, story, without


def test_a_handler_whose_return_was_not_recorded_says_nothing_of_the_next() -> None:
    """`on_handler_entry`: what the next one signals is its own."""
    t, d = one_device()
    t.handler(d, irqfd="resample")
    t._rows.pop()
    t.inject(d)
    t.guest_eoi(d)
    t.resample_unmask(d)
    t.handler(d, irqfd="resample")
    t._rows.pop()
    t.handler(d, signal=False)
    assert [row["path"] for row in rows(t)] == ["kernel", "kernel", "held"]


def test_a_line_that_was_seen_to_open_is_claimed_once() -> None:
    """`claim`: pci_check_and_unmask_intx opened it for the first; when it opened for the second was not seen."""
    t, d = one_device()
    t.handler(d, irqfd="resample")
    t.emit(Kind.UNMASK_ENTRY, device=d.vdev, tid=1)
    opened = t.now
    t.emit(Kind.ENABLE_IRQ, device=d.vdev, tid=1)
    t.handler(d, irqfd="resample")
    t.emit(Kind.UNMASK_ENTRY, device=d.vdev, tid=2)
    again = t.now
    t.handler(d, irqfd="resample")
    assert [(row["unmasked_at"], row["unmask_proof"]) for row in rows(t)] == [
        (opened, "checked"),
        (again, "assumed"),
        (None, None),
    ]


def test_an_unmask_begins_without_the_proof_of_the_one_before() -> None:
    """`on_unmask_entry`: the line opened at the latest when the handler ran."""
    t, d = one_device()
    t.kernel_interrupt(d)
    t.handler(d, irqfd="resample")
    t.emit(Kind.UNMASK_ENTRY, device=d.vdev, tid=1)
    again = t.now
    t.handler(d, irqfd="resample")
    second = rows(t)[1]
    assert (second["unmasked_at"], second["unmask_proof"]) == (again, "assumed")


def test_a_thread_begins_an_unmask_without_the_proof_of_the_one_before() -> None:
    """`on_unmask_entry`: the return of the first was not recorded; the second reached no enable_irq."""
    t, d = one_device()
    t.handler(d, irqfd="resample")
    t.emit(Kind.UNMASK_ENTRY, device=d.vdev, tid=1)
    t.emit(Kind.ENABLE_IRQ, device=d.vdev, tid=1)
    t.handler(d, irqfd="resample")
    t.emit(Kind.UNMASK_ENTRY, device=d.vdev, tid=1)
    t.emit(Kind.UNMASK_EXIT, device=d.vdev, tid=1)
    assert [row["unmasked_at"] is None for row in rows(t)] == [False, True]


def test_an_unmask_that_ran_when_events_were_lost_is_not_waited_for() -> None:
    """`forget_unmasks`: its return may be among what was lost, so it explains no later claim."""
    t, d = one_device()
    t.handler(d, irqfd="resample")
    t.emit(Kind.UNMASK_ENTRY, device=d.vdev, tid=1)
    t.lost()
    t.handler(d, irqfd="resample")
    first, _ = rows(t)
    assert (first["outcome"], first["unmasked_at"]) == ("lossy", None)


def test_an_unmask_that_was_forgotten_ends_no_other() -> None:
    """`unmasking`: another thread's is still open, and opens the line."""
    t, d = one_device()
    t.handler(d, irqfd="resample")
    t.emit(Kind.UNMASK_ENTRY, device=d.vdev, tid=1)
    t.lost()
    t.emit(Kind.UNMASK_ENTRY, device=d.vdev, tid=2)
    t.emit(Kind.UNMASK_EXIT, device=d.vdev, tid=1)
    opened = t.now
    t.emit(Kind.ENABLE_IRQ, device=d.vdev, tid=2)
    t.handler(d, irqfd="resample")
    first, _ = rows(t)
    assert (first["unmasked_at"], first["unmask_proof"]) == (opened, "checked")


def test_shared_mode_needs_no_probe_of_enable_irq() -> None:
    """`on_unmask_proof`: a device in shared mode is unmasked by pci_check_and_unmask_intx or not at all."""
    t, d = one_device(without(Kind.ENABLE_IRQ))
    t.kernel_interrupt(d)
    t.handler(d, irqfd="resample")
    t.inject(d)
    t.guest_eoi(d)
    t.resample_unmask(d, proof=False)
    assert [row["unmasked_at"] is None for row in rows(t)] == [False, True]


def test_the_mode_is_not_known_without_pci_check_and_unmask_intx() -> None:
    """`unmask_was_real`: nothing contradicts that enable_irq, which has no probe, opened the line."""
    t, d = one_device(without(Kind.ENABLE_IRQ))
    t.handler(d, irqfd="resample")
    t.inject(d)
    t.guest_eoi(d)
    t.resample_unmask(d, proof=False)
    assert [(row["outcome"], row["unmask_proof"]) for row in rows(t)] == [("complete", "assumed")]


def test_one_interrupt_was_in_flight_when_the_trace_began() -> None:
    """`unmask`: after the first unmask it is known that the line is open."""
    t, d = one_device()
    t.unmask(d, tid=1)
    t.unmask(d, tid=1)
    assert story(t) == [("unknown", "unknown", "headless")]


def test_the_gsi_of_the_acknowledgement_that_the_trace_begins_with() -> None:
    """`headless_end`: irqfd_resampler_ack names it."""
    t, d = one_device(without(Kind.VIRQFD_WAKEUP))
    t.guest_eoi(d)
    t.resample_unmask(d)
    assert [row["gsi"] for row in rows(t)] == [21]


def test_the_trace_begins_with_an_acknowledgement_that_resignals() -> None:
    """`refuse`: the guest's EOI proves an interrupt, whose resignal this is."""
    t, d = one_device()
    t.guest_eoi(d)
    t.resample_unmask(d, returned=1)
    t.worker_signals(d, "resample")
    t.inject(d)
    first, second = rows(t)
    assert (first["path"], first["outcome"]) == ("kernel", "headless")
    assert (second["origin"], second["parent_id"]) == ("resignal", first["id"])


def test_a_refused_unmask_in_a_trace_that_began_before_it_waits_for_the_worker() -> None:
    """`settled`: that the trigger is not known yet is no reason to expect no signal (virqfd_inject)."""
    t, d = one_device()
    t.unmask(d, returned=1, tid=1)
    t.unmask(d, returned=1, tid=2)
    t.worker_signals(d, "")
    t.worker_signals(d, "")
    assert [row["origin"] for row in rows(t)] == ["pending", "pending"]


def test_no_signal_is_awaited_where_no_trigger_is_set() -> None:
    """`refuse`: vfio_send_intx_eventfd does nothing without one; the return of the ioctl is not recorded."""
    t, d = one_device(without(Kind.SET_IRQS_EXIT))
    t.enable(d)
    t.set_irqs_entry(d, 0x24, aux=0xFFFFFFFF)
    t.set_irqs_entry(d, UNMASK_NONE)
    t.unmask(d, returned=1, tgid=d.vm.pid, tid=d.vm.main)
    t.set_irqs_entry(d, UNMASK_NONE)
    t.unmask(d, tgid=d.vm.pid, tid=d.vm.main)
    t.set_irqs_entry(d, 0x24, link=d.trigger, aux=30)
    t.handler(d)
    t.qemu_takes(d)
    t.qemu_eoi(d)
    t.guest_eoi(d, resample=False)
    assert story(t) == [("held", "pending", "complete"), ("userspace", "hardware", "complete")]


def test_what_was_left_to_qemu_is_not_over_before_qemu_took_it() -> None:
    """`settled`: for a kick the line is not masked, and QEMU's own EOI is not probed."""
    t, d = one_device(without(Kind.QEMU_EOI))
    t.enable(d)
    t.handler(d)
    t.qemu_takes(d)
    t.bar_access(d)
    t.deassert(d, tid=d.vm.vcpu)
    t.ioctl_unmask(d)
    t.guest_eoi(d, resample=False)
    t.emit(Kind.EVENTFD_WRITE, link=d.trigger, tgid=d.vm.pid, tid=d.vm.main)
    t.set_irqs(d, UNMASK_NONE)
    t.qemu_takes(d)
    assert [(row["origin"], row["injected_at"] is None) for row in rows(t)] == [
        ("hardware", False),
        ("software", False),
    ]


def test_a_new_claim_proves_the_unmask_only_where_none_is_shown() -> None:
    """`claim`: with UNMASK_EXIT recorded, an unmask that was not seen was missed."""
    probes = (Kind.UNMASK_ENTRY, Kind.UNMASK_EXIT)
    for missing, outcome in ((probes, "open"), (probes[:1], "lossy")):
        t, d = one_device(without(*missing))
        t.handler(d, irqfd="resample")
        t.inject(d)
        t.handler(d, irqfd="resample")
        assert rows(t)[0]["outcome"] == outcome


def test_what_is_lost_may_be_the_signal_of_an_ioctl() -> None:
    """`ioctl_did_not_signal`, `lose`: before or after the return of the ioctl, held is not known any more."""
    for before in (True, False):
        t, d = one_device()
        t.enable(d)
        t.set_irqs_entry(d, UNMASK_NONE)
        t.unmask(d, returned=1, tgid=d.vm.pid, tid=d.vm.main)
        if before:
            t.lost()
        t.set_irqs_exit(d, UNMASK_NONE)
        if not before:
            t.lost()
        assert story(t) == [("unknown", "pending", "lossy")]
        t.qemu_takes(d)
        assert story(t) == [("userspace", "pending", "lossy")]


def test_the_signal_of_a_handler_may_be_before_the_trace() -> None:
    """`on_handler_exit`: the trace, or what was not lost of it, begins inside the handler."""
    t, d = one_device()
    t.emit(Kind.HANDLER_EXIT, device=d.vdev, value=1)
    assert story(t) == [("unknown", "hardware", "headless")]
    t, d = one_device()
    t.enable(d)
    t.emit(Kind.HANDLER_EXIT, device=d.vdev, value=1)
    t.qemu_takes(d)
    assert story(t) == [("userspace", "hardware", "lossy")]
    t, d = one_device()
    t.handler(d, signal=False)
    t.lost()
    assert story(t) == [("unknown", "hardware", "lossy")]


def test_a_claim_tells_that_the_line_is_masked() -> None:
    """`raise_masked`, `raise_headless`: what QEMU takes without a signal was missed, not begun before the trace."""
    t, d = one_device()
    t.handler(d)
    t.qemu_takes(d)
    t.qemu_takes(d)
    assert [row["outcome"] for row in rows(t)] == ["open", "lossy"]


def test_the_host_irq_that_was_announced_stays() -> None:
    """`on_handler_entry`: the first handler tells it where nothing did before."""
    for announced in (20, 0):
        t, d = one_device()
        t._rows[-1]["arg1"] = announced
        d.host_irq = 21
        t.handler(d)
        d.host_irq = 22
        t.handler(d, claimed=False)
        assert rows(t)[0]["host_irq"] == (announced or 21)


def test_a_handler_whose_entry_was_not_recorded_is_another_one() -> None:
    """`on_handler_exit`: it is counted, and claims for itself."""
    t, d = one_device()
    t.kernel_interrupt(d)
    t.emit(Kind.HANDLER_EXIT, device=d.vdev, value=1)
    result = t.reconstruct()
    assert result.interrupts["raised_at"].isna().tolist() == [False, True]
    counters = dict(zip(result.counters["counter"], result.counters["count"], strict=True))
    assert counters["handler_calls"] == 2


def test_what_no_irqfd_took_inside_the_handler_is_left_to_qemu() -> None:
    """`no_irqfd_took_it`: but not where the kprobes missed the handler, and so irqfd_wakeup inside it."""
    for flags, path in ((0, "userspace"), (Flag.FALLBACK, "unknown")):
        t, d = one_device()
        t.handler(d)
        t._rows[-1]["flags"] = flags
        result = t.reconstruct()
        assert result.interrupts["path"].tolist() == [path]
        assert result.states["state"].tolist() == [path]


def test_what_a_missed_unmask_ended_is_not_acknowledged_by_a_later_eoi() -> None:
    """`claim`: its own EOI may have been missed too."""
    t, d = one_device()
    for _ in range(2):
        t.handler(d, irqfd="resample")
        t.inject(d)
    t.guest_eoi(d)
    assert [(row["outcome"], row["acknowledged_at"] is None) for row in rows(t)] == [("lossy", True), ("open", False)]


def test_after_a_claim_what_was_lost_before_is_no_doubt() -> None:
    """`claim`: where no probe shows handlers or signals, what QEMU takes is whole."""
    t, d = one_device(without(Kind.EVENTFD_SIGNAL, Kind.HANDLER_ENTRY))
    t.enable(d)
    t.userspace_interrupt(d)
    t.lost()
    t.handler(d)
    t.qemu_takes(d)
    t.qemu_eoi(d)
    t.guest_eoi(d, resample=False)
    t.qemu_takes(d)
    t.qemu_eoi(d)
    t.guest_eoi(d, resample=False)
    assert [row["outcome"] for row in rows(t)] == ["complete"] * 3


def test_an_unmask_ends_with_its_proof() -> None:
    """`on_unmask_exit`: the next in this thread, whose entry no probe shows, has none."""
    t, d = one_device(without(Kind.UNMASK_ENTRY))
    t.kernel_interrupt(d)
    t.handler(d, irqfd="resample")
    t.inject(d)
    t.guest_eoi(d)
    t.resample_unmask(d, proof=False)
    assert [row["unmasked_at"] is None for row in rows(t)] == [False, True]


def test_an_acknowledgement_unmasks_once() -> None:
    """`on_unmask_exit`: after a loss, another unmask in this thread proves an interrupt, not its path."""
    t, d = one_device()
    t.kernel_interrupt(d)
    t.lost()
    t.unmask(d, tgid=d.vm.pid, tid=d.vm.vcpu)
    assert story(t) == [("kernel", "hardware", "complete"), ("unknown", "unknown", "lossy")]


def test_an_unmask_that_is_over_opens_nothing_more() -> None:
    """`on_unmask_exit`, `on_unmask_entry`: a second claim proves another unmask, which was missed."""
    for before in ("unmask", "return", "loss"):
        t, d = one_device()
        t.enable(d)
        if before == "loss":
            t.lost()
        t.unmask(d, tid=7)
        if before == "return":
            t.emit(Kind.UNMASK_EXIT, device=d.vdev, tid=7)
        t.handler(d, irqfd="resample")
        t.handler(d, irqfd="resample")
        first = next(row for row in rows(t) if row["origin"] == "hardware")
        assert (first["outcome"], first["unmasked_at"]) == ("lossy", None)


def test_an_unmask_that_opened_a_line_which_nothing_had_masked() -> None:
    """`unmask`: a mask ioctl had, or nothing; it is counted."""
    t, d = one_device()
    t.enable(d)
    t.unmask(d, tid=7)
    counters = t.reconstruct().counters
    assert dict(zip(counters["counter"], counters["count"], strict=True)) == {"noop_unmasks": 1}
