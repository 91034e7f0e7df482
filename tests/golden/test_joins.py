"""Golden traces of how a VFIODevice of QEMU and a vdev of the kernel are found to be the same device."""

from __future__ import annotations

import pytest

from intxtrace.events import Flag, Kind
from tests.dsl import ALL_KINDS, MASK_NONE, TRIGGER_EVENTFD, UNMASK_NONE, DeviceHandle, Trace


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


# ---- identities: `intxtrace/reconstruct/identity.py`


def test_however_many_threads_there_are() -> None:
    """`put`: the hash map grows before it is full."""
    t, d = one_device()
    for tid in range(1, 1000):
        t.emit(Kind.QEMU_RESAMPLE_NOTIFY, tid=tid)
    t.kernel_interrupt(d)
    assert t.reconstruct().interrupts["outcome"].tolist() == ["complete"]


def test_a_device_of_a_log_and_of_a_capture() -> None:
    """`new_device`: the row of the device table is what both name."""
    t = Trace()
    d = t.device(t.vm())
    announced = t._rows.pop()
    t.emit(Kind.HANDLER_ENTRY, device=d.id, flags=Flag.SYNTHETIC)
    t.emit(Kind.HANDLER_EXIT, device=d.id, value=1, flags=Flag.SYNTHETIC)
    t._rows.append({**announced, "ts": t.now})
    t.wait(1)
    t.unmask(d, tid=7)
    frame = t.reconstruct().interrupts
    assert (frame["device"].tolist(), frame["outcome"].tolist()) == ([0], ["complete"])


def test_a_vm_of_a_log() -> None:
    """`new_vm`: a source without pointers names its row of the VM table."""
    t = Trace()
    t.vm("other")
    d = t.device(t.vm())
    t.forget()
    log = {"flags": Flag.SYNTHETIC, "tgid": 7, "tid": 7}
    t.emit(Kind.QEMU_INTERRUPT, device=d.id, **log)
    t.emit(Kind.EVENTFD_READ, link=d.trigger, value=8, **log)
    t.emit(Kind.SET_IRQS_ENTRY, device=d.id, link=d.trigger, arg0=TRIGGER_EVENTFD, arg1=1 << 32, **log)
    t.emit(Kind.SET_IRQS_EXIT, device=d.id, link=d.trigger, arg0=TRIGGER_EVENTFD, arg1=1 << 32, **log)
    t.emit(Kind.EVENTFD_READ, link=d.trigger, value=8, **log)
    t.emit(Kind.KVM_SET_IRQ, vm=1, value=1, arg0=d.gsi, **log)
    assert t.reconstruct().interrupts["vm"].tolist() == ["vm1"]


def test_a_device_may_move_to_the_same_gsi_of_another_vm() -> None:
    """`learn_line`: a line is a GSI of one VM."""
    t = Trace()
    one, other = t.vm(), t.vm()
    d = t.device(other)
    t.kernel_interrupt(d)
    d.vm = one
    t.kernel_interrupt(d)
    assert t.reconstruct().interrupts["vm"].tolist() == ["vm1", "vm0"]


def unnamed_irqfd(t: Trace, d: DeviceHandle) -> None:
    """KVM_IRQFD right after the device's mask ioctl, in one thread (vfio_intx_enable_kvm); no eventfd is named."""
    t.set_irqs(d, MASK_NONE)
    t.emit(Kind.KVM_IRQFD_EXIT, vm=d.vm.kvm, arg0=d.gsi, tgid=d.vm.pid, tid=d.vm.main)


@pytest.mark.parametrize("doubt", ["", "two devices", "another trigger", "another gsi"])
def test_the_gsi_of_an_irqfd_names_its_device(doubt: str) -> None:
    """`device_of_irqfd`: if one alone was bound to it, and has signalled nothing yet."""
    t = Trace()
    vm = t.vm()
    a, b = t.device(vm), t.device(vm, bdf="0000:02:00.0")
    unnamed_irqfd(t, a)
    if doubt == "two devices":
        unnamed_irqfd(t, b)
    elif doubt == "another trigger":
        t.set_irqs(a, TRIGGER_EVENTFD, link=0x999)
    a.gsi += doubt == "another gsi"
    t.wakeup(a, "edge", tid=7)
    assert t.reconstruct().interrupts["device"].tolist() == ([] if doubt else [a.id])


def test_an_irqfd_tells_the_trigger_and_the_resamplefd() -> None:
    """`device_of_irqfd`: woken inside the handler; then by its resamplefd, then by a write of the trigger."""
    t = Trace(tuple(kind for kind in ALL_KINDS if kind != Kind.EVENTFD_SIGNAL))
    d = t.device(t.vm())
    t.handler(d, irqfd="resample")
    t.emit(Kind.IRQFD_WAKEUP, link=1, link2=d.resample, value=1, arg0=9, tid=7)
    t.emit(Kind.EVENTFD_WRITE, link=d.trigger, tid=7)
    assert t.reconstruct().interrupts["device"].tolist() == [d.id] * 3
    t, d = one_device()
    t.handler(d, signal=False)
    t.ioctl_unmask(d)
    inside = {"flags": Flag.IN_HANDLER, "device": d.vdev}
    t.emit(Kind.HANDLER_ENTRY, device=d.vdev)
    t.wakeup(d, "resample", **inside)
    t.emit(Kind.EVENTFD_WRITE, link=d.trigger, tid=7)
    assert t.reconstruct().interrupts["origin"].tolist() == ["hardware", "hardware", "software"]


def test_three_devices_on_a_gsi() -> None:
    """`leave_line`: the first to come goes; the others stay together."""
    t = Trace()
    vm = t.vm()
    devices = [t.device(vm, bdf=f"0000:0{n}:00.0") for n in range(1, 4)]
    for d in devices:
        t.kernel_interrupt(d)
    t.disable(devices[0])
    for d in devices[1:]:
        t.handler(d, irqfd="resample")
        t.inject(d)
    t.guest_eoi(*devices[1:])
    frame = t.reconstruct().interrupts
    assert frame["acknowledged_at"].notna().tolist() == [True] * 5
