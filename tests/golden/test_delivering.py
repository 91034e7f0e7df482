"""Goldens of injection and the guest's EOI: `intxtrace/reconstruct/delivering.py`, rule by rule.

kvm_set_irq and kvm_notify_acked_irq are in virt/kvm/irqchip.c, ioapic_service in arch/x86/kvm/ioapic.c.
"""

from __future__ import annotations

from intxtrace.events import Flag, Kind
from tests.golden.test_interrupts import one_device, rows, story, without
from tests.golden.test_tracepoints import Points


def test_the_trace_begins_with_an_injection_and_misses_another() -> None:
    """`begin_injection`: one was in flight; irqfd_wakeup, which the second needs, was missed."""
    t, d = one_device()
    for _ in range(2):
        t.emit(Kind.IRQFD_INJECT, device=d.vdev, link=d.irqfd, link2=d.resample, arg0=d.gsi, arg1=d.trigger, tid=50)
    assert [row["outcome"] for row in rows(t)] == ["headless", "lossy"]


def test_another_line_that_qemu_raises_is_not_the_devices() -> None:
    """`on_kvm_set_irq`: that the first call returned was not recorded."""
    t, d = one_device()
    t.handler(d)
    t.qemu_takes(d)
    t._rows.pop()
    injected = t._rows[-1]["ts"]
    t.emit(Kind.KVM_SET_IRQ, vm=d.vm.kvm, value=1, arg0=4, tgid=d.vm.pid, tid=d.vm.main)
    assert [row["injected_at"] for row in rows(t)] == [injected]


def test_a_thread_that_has_raised_the_line_may_lower_it() -> None:
    """`end_injection`: QEMU's own EOI, which is not probed, in the thread that asserted."""
    t, d = one_device(without(Kind.QEMU_EOI))
    t.enable(d)
    t.handler(d)
    t.qemu_takes(d)
    lowered = t.now
    t.deassert(d, tid=d.vm.main)
    t.ioctl_unmask(d, tid=d.vm.main)
    assert [row["acknowledged_at"] for row in rows(t)] == [lowered]


def test_what_the_guest_ends_was_delivered() -> None:
    """`in_service`: of an unnamed VM; kvm_apic_accept_irq was missed, and nothing else was there to end."""
    t = Points()
    d, _ = t.pair()
    t.point_handler(d)
    t.point_inject(d, accepted=False)
    t.point_ack(d)
    assert [row["coalesced"] for row in t.rows()] == [False]


def test_an_eoi_that_no_resampler_takes_is_another_one() -> None:
    """`on_kvm_ack`: the EOI before it reached irqfd_resampler_ack, and unmasked nothing of ours."""
    t, d = one_device()
    task = {"tgid": d.vm.pid, "tid": d.vm.vcpu}
    t.emit(Kind.RESAMPLER_ACK, vm=d.vm.kvm, arg0=5, **task)
    t.emit(Kind.KVM_ACK, vm=d.vm.kvm, arg0=9, arg1=2, **task)
    t.unmask(d, tgid=d.vm.pid, tid=d.vm.vcpu)
    assert story(t) == [("unknown", "unknown", "headless")]


def test_a_clock_may_begin_at_zero() -> None:
    """`task_of`: a thread that did nothing yet has acknowledged nothing, whatever the time is."""
    t, d = one_device()
    t.handler(d, irqfd="msi")
    t.emit(Kind.VIRQFD_WAKEUP, device=d.vdev, link=d.resample, value=1, flags=Flag.IN_EVENTFD_WRITE, tid=77)
    for row in t._rows:
        row["ts"] = 0
    assert [(row["acknowledged_at"], row["eoi_at"]) for row in rows(t)] == [(None, None)]


def test_another_line_that_the_worker_raises_is_not_the_devices() -> None:
    """`on_kvm_set_irq`: irqfd_inject raises one line; that this call returned was not recorded."""
    t, d = one_device()
    t.handler(d, irqfd="resample")
    t.inject(d)
    t._rows.pop()
    injected = t._rows[-1]["ts"]
    t.emit(Kind.KVM_SET_IRQ, vm=d.vm.kvm, value=1, arg0=4, tgid=2, tid=d.vm.pid + 50)
    assert [row["injected_at"] for row in rows(t)] == [injected]
