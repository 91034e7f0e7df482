"""Golden traces of two interrupts in one row of the pool: what marked the first says nothing of the second.

A row is taken again as soon as its interrupt is handed out (`masking.raise_interrupt`).
"""

from __future__ import annotations

import pytest

from intxtrace.events import Flag, Kind
from intxtrace.reconstruct import Reconstructor, state
from tests.dsl import DeviceHandle, Trace
from tests.golden.test_interrupts import one_device, rows, story, without
from tests.golden.test_tracepoints import Points


def kick(t: Trace, d: DeviceHandle, irqfd: str = "resample") -> None:
    """Somebody writes the trigger: an interrupt for which the line is not masked."""
    task = {"tgid": d.vm.pid, "tid": d.vm.main}
    t.emit(Kind.EVENTFD_WRITE, link=d.trigger, **task)
    t.wakeup(d, irqfd, flags=Flag.IN_EVENTFD_WRITE, **task)


def missed_handler(t: Trace, d: DeviceHandle) -> None:
    """A handler that the kprobe missed: only the tracepoint shows it."""
    for kind in (Kind.HANDLER_ENTRY, Kind.HANDLER_EXIT):
        t.emit(kind, device=d.vdev, value=1, arg0=d.host_irq, flags=Flag.FALLBACK)


def test_a_row_is_taken_again() -> None:
    """However long the trace is, what is remembered is what is in flight."""
    t, d = one_device()
    for _ in range(20):
        t.kernel_interrupt(d)
    reconstructor = Reconstructor(t.tables)
    reconstructor.take(t.records())
    machine = reconstructor._state.machine[0]
    assert (machine.n_interrupts, machine.n_live) == (1, 0)


def test_of_threads_those_seen_last_are_kept() -> None:
    """QEMU's main loop is in its handler while more threads pass by than are remembered."""
    t, d = one_device()
    t.enable(d)
    t.handler(d)
    called = t.now
    t.emit(Kind.QEMU_INTERRUPT, device=d.qemu, tgid=d.vm.pid, tid=d.vm.main)
    for tid in range(5000, 5200):
        t.emit(Kind.USERSPACE_EXIT, value=26, tid=tid)
        t.emit(Kind.USERSPACE_EXIT, value=26, tid=d.vm.main)
    t.emit(Kind.EVENTFD_READ, link=d.trigger, value=8, tgid=d.vm.pid, tid=d.vm.main)
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(state.CAPACITY, "tasks", 64)
        assert [row["signalled_at"] for row in rows(t)] == [called]


def test_that_the_handler_has_not_returned() -> None:
    """The guest ended it before; now another device's, signalled and not yet taken by its irqfd, is in the row."""
    t = Trace()
    vm = t.vm()
    a, b = t.device(vm), t.device(vm, bdf="0000:02:00.0", gsi=22)
    t.kernel_interrupt(a)
    returned = next(row for row in t._rows if row["kind"] == Kind.HANDLER_EXIT)
    t._rows.remove(returned)
    begin = len(t._rows)
    t.handler(b, irqfd="resample")
    entry, signal, wakeup, exit_ = t._rows[begin:]
    t._rows[begin:] = [entry, signal, {**returned, "ts": signal["ts"]}, wakeup, exit_]
    states = t.reconstruct().states
    assert states[states["device"] == b.id]["state"].tolist() == ["kernel"]


def test_refused() -> None:
    t, d = one_device(without(Kind.IRQFD_WAKEUP, Kind.IRQFD_INJECT))
    t.enable(d)
    t.handler(d)
    t.ioctl_unmask(d, returned=1)
    t.ioctl_unmask(d)
    kick(t, d, irqfd="")
    assert [row["outcome"] for row in rows(t)] == ["complete", "complete", "open"]


def test_unmasked_and_proved() -> None:
    t, d = one_device()
    t.kernel_interrupt(d)
    kick(t, d)
    second = rows(t)[1]
    assert (second["unmasked_at"], second["unmask_proof"]) == (None, None)


def test_assumed_to_be_injected_inside_the_wakeup() -> None:
    """The worker of a kick injects while the handler, on another CPU, is between its signal and irqfd_wakeup."""
    t, d = one_device(without(Kind.MSI_SET_IRQ))
    t.handler(d, irqfd="msi")
    kick(t, d, irqfd="msi")
    t.split_eoi(d)
    t.split_unmask(d)
    t.enable_kvm(d)
    kick(t, d)
    begin = len(t._rows)
    t.handler(d, irqfd="resample")
    handler = t._rows[begin:]
    del t._rows[begin:]
    t._rows += handler[:2]  # entry, signal
    t.inject(d)
    t._rows += [{**row, "ts": t.now + n} for n, row in enumerate(handler[2:])]
    t.wait(10)
    injected = t.now + Trace.STEP
    t.inject(d)
    assert [row["injected_at"] == injected for row in rows(t)] == [False, False, False, True]


def test_injected_as_an_msi() -> None:
    """An irqfd without resampler is unmasked by the ioctl: where no EOI was seen, that is its last word."""
    t, d = one_device()
    t.hybrid_interrupt(d)
    t.handler(d, irqfd="edge")
    t.inject(d, irqfd="edge")
    t.ioctl_unmask(d)
    assert story(t) == [("hybrid", "hardware", "complete")] * 2


def test_being_injected() -> None:
    t, d = one_device()
    t.enable(d)
    t.handler(d, irqfd="resample")
    t.inject(d)
    t._rows.pop()  # kvm_set_irq has not returned
    t.disable(d)
    t.enable(d)
    t.handler(d, signal=False)
    t.ioctl_unmask(d)
    assert story(t) == [("kernel", "hardware", "cancelled"), ("held", "hardware", "complete")]


def test_torn_down() -> None:
    t, d = one_device()
    t.enable(d)
    t.handler(d)
    t.qemu_takes(d)
    t.enable_kvm(d)
    t.kernel_interrupt(d)
    assert [row["acknowledged_at"] is None for row in rows(t)] == [True, False]


def test_acknowledged_when_no_probe_could_show() -> None:
    """QEMU with its irqchip in userspace lowers no line in KVM, and its functions are not probed."""
    t, d = one_device(without(Kind.QEMU_EOI))
    t.enable(d)
    t.handler(d)
    t.qemu_takes(d, asserts=False)
    t.ioctl_unmask(d)
    t.qemu_takes(d, found=False)
    t.lost()
    kick(t, d)
    t.inject(d)
    first, second = rows(t)
    assert (first["outcome"], first["acknowledged_at"]) == ("complete", None)
    assert (second["path"], second["outcome"]) == ("kernel", "open")


def test_settled_when_events_were_lost() -> None:
    t, d = one_device()
    t.userspace_interrupt(d)
    t.lost()
    t.userspace_interrupt(d)
    assert [(row["eoi_at"] is None, row["bar_accesses"]) for row in rows(t)] == [(False, None), (False, 2)]


def test_missed_by_the_kprobe() -> None:
    """What is held was not signalled, so QEMU's read takes something else."""
    t, d = one_device()
    t.kernel_interrupt(d)
    missed_handler(t, d)
    t.inject(d)
    t.guest_eoi(d)
    t.resample_unmask(d)
    t.handler(d, signal=False)
    t.qemu_takes(d)
    assert [(row["path"], row["origin"]) for row in rows(t)[2:]] == [("held", "hardware"), ("userspace", "unknown")]


def test_to_be_signalled_by_an_ioctl() -> None:
    """The return of an unmask ioctl says nothing of what the worker is to signal."""
    t, d = one_device()
    t.enable(d)
    t.enable_kvm(d)
    t.ioctl_unmask(d, returned=1, irqfd="resample")
    t.inject(d)
    t.guest_eoi(d)
    t.ioctl_unmask(d)
    t.resample_unmask(d, returned=1)
    t.ioctl_unmask(d, proof=False)
    t.worker_signals(d, "resample")
    assert [row["path"] for row in rows(t)] == ["kernel", "kernel"]


def test_doubtful() -> None:
    """After one EOI that may be of either VM, one of them is still in service."""
    t = Points()
    devices = t.pair()
    for turn in range(3):
        for d in devices:
            t.point_handler(d)
            t.point_inject(d)
        t.point_ack(devices[0], thread=100)
        if turn < 2:
            t.point_ack(devices[1], thread=200)
    assert [row["outcome"] for row in t.rows()] == ["complete"] * 4 + ["open"] * 2


def test_gsi() -> None:
    t = Trace()
    a, b = t.device(t.vm()), t.device(t.vm(), bdf="0000:02:00.0")
    t.kernel_interrupt(a)
    t.handler(b, signal=False)
    assert [row["gsi"] for row in rows(t)] == [21, None]


def test_trapping_bar_accesses() -> None:
    """Another QEMU, whose functions are not probed: no access of its guest is awaited."""
    t, d = one_device()
    t.enable(d)
    t.handler(d)
    t.qemu_takes(d)
    t.disable(d)
    t.enable(d)
    t.handler(d)
    task = {"tgid": d.vm.pid, "tid": d.vm.main}
    t.emit(Kind.EVENTFD_READ, link=d.trigger, value=8, **task)
    t.emit(Kind.KVM_SET_IRQ, vm=d.vm.kvm, value=1, arg0=d.gsi, **task)
    t.emit(Kind.KVM_SET_IRQ_EXIT, vm=d.vm.kvm, value=1, arg0=d.gsi, aux=1, **task)
    t.deassert(d, tid=d.vm.vcpu)
    t.ioctl_unmask(d)
    t.guest_eoi(d, resample=False)
    t.lost()
    assert [(row["outcome"], row["reentries"]) for row in rows(t)] == [("cancelled", 0), ("complete", 0)]
