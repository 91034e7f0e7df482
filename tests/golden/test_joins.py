"""Golden traces of how a VFIODevice of QEMU and a vdev of the kernel are found to be the same device."""

from __future__ import annotations

from intxtrace.events import Kind
from tests.dsl import ALL_KINDS, UNMASK_NONE, DeviceHandle, Trace


def bars_are_known(trace: Trace, d: DeviceHandle) -> bool:
    """Whether an event that names only the VFIODevice reaches the device."""
    trace.mmaps(d, True)
    frame = trace.reconstruct().states
    return bool(frame[frame["device"] == d.id]["bars_mapped"].notna().any())


def one_device() -> tuple[Trace, DeviceHandle]:
    trace = Trace()
    return trace, trace.device(trace.vm())


def test_nothing_joins_them_at_first() -> None:
    assert not bars_are_known(*one_device())


def test_enabling() -> None:
    t, d = one_device()
    t.enable(d)
    assert bars_are_known(t, d)


def test_reading_the_trigger_in_vfio_intx_interrupt() -> None:
    t, d = one_device()
    t.handler(d)
    t.qemu_takes(d)
    assert bars_are_known(t, d)


def test_a_spurious_wakeup_joins_too() -> None:
    t, d = one_device()
    t.handler(d, irqfd="resample")
    t.qemu_takes(d, found=False)
    assert bars_are_known(t, d)


def test_unmasking_in_the_eoi_joins_and_acknowledges() -> None:
    t = Trace(tuple(kind for kind in ALL_KINDS if kind not in (Kind.QEMU_INTERRUPT, Kind.QEMU_ENABLE)))
    d = t.device(t.vm())
    t.userspace_interrupt(d)
    (acknowledged,) = t.reconstruct().interrupts["acknowledged_at"]
    (eoi,) = t.records()["ts"][t.records()["kind"] == Kind.QEMU_EOI]
    assert acknowledged == eoi
    assert bars_are_known(t, d)


def test_another_thread_proves_nothing() -> None:
    t, d = one_device()
    t.emit(Kind.QEMU_EOI, device=d.qemu, tgid=d.vm.pid, tid=d.vm.vcpu)
    t.set_irqs(d, UNMASK_NONE, tid=d.vm.main)
    assert not bars_are_known(t, d)


def test_two_processes_may_use_one_address() -> None:
    t = Trace()
    a, b = t.device(t.vm()), t.device(t.vm(), bdf="0000:02:00.0")
    b.qemu = a.qemu
    t.enable(a)
    t.enable(b)
    t.mmaps(b, True)
    frame = t.reconstruct().states
    assert frame[frame["bars_mapped"].notna()]["device"].tolist() == [1]


def test_the_gsi_joins_an_irqfd_whose_eventfd_nobody_named() -> None:
    t, d = one_device()
    link, d.trigger = d.trigger, 0
    t.enable(d)
    t.enable_kvm(d)
    d.trigger = link
    task = {"tgid": 1, "tid": 1}
    t.wakeup(d, "resample", **task)
    t.inject(d)
    t.guest_eoi(d)
    assert t.reconstruct().interrupts["device"].tolist() == [0]
