"""A row is handed out by the event that closes it: `live` shows it then, and nothing that comes later changes it."""

from __future__ import annotations

import numpy as np
import pytest

from intxtrace.events import RECORD, Kind, Work
from intxtrace.reconstruct import Reconstructor
from intxtrace.reconstruct.ending import awaited, settled
from intxtrace.trace.tables import Tables
from tests.dsl import UNMASK_NONE, DeviceHandle, Trace
from tests.golden.test_interrupts import one_device, without
from tests.golden.test_reused_rows import kick
from tests.golden.test_tracepoints import TRACEPOINTS, Points
from tests.random_traces import make

SEEDS = range(60)


def late(records: np.ndarray[tuple[int], np.dtype[np.void]], tables: Tables) -> list[str]:
    """Say after which events the oldest interrupt of a device was over, and still there."""
    found = []
    reconstructor = Reconstructor(tables, compile_from=len(records) + 1)
    for event in records[records["ts"].argsort(kind="stable")]:
        reconstructor.take(np.array([event], RECORD))
        s = reconstructor._state
        for d in range(s.machine[0].n_devices):
            oldest = s.devices[d].head
            if oldest >= 0 and settled(s, oldest) and not awaited(s, oldest):
                found.append(f"{Kind(event['kind']).name} at {event['ts']}")
    return found


@pytest.mark.parametrize("seed", SEEDS)
def test_of_random_traces(seed: int) -> None:
    case = make(seed)
    assert late(case.records, case.tables) == []


def test_of_tracepoints() -> None:
    t = Points()
    a, b = t.pair()
    for d in (a, b, a):
        t.point_handler(d)
        t.point_inject(d)
        t.point_ack(d)
        t.point_refused(d)
        t.point_inject(d)
        t.point_ack(d)
    for d in (a, b):
        t.point_handler(d)
        t.point_inject(d)
    t.point_ack(a, thread=500)
    t.point_ack(b, thread=600)
    assert late(t.records(), t.tables) == []


def test_of_the_hybrid_path_by_tracepoints() -> None:
    """`on_msi_of_handler`: its claim ends what came before."""
    t = Points((*TRACEPOINTS, Kind.MSI_SET_IRQ, Kind.EVENTFD_WRITE, Kind.VIRQFD_WAKEUP, Kind.UNMASK_EXIT))
    d, _ = t.pair()
    for _ in range(3):
        t.msi_handler(d)
    assert late(t.records(), t.tables) == []


UNMASKS = (*TRACEPOINTS, Kind.UNMASK_ENTRY, Kind.CHECKED_UNMASK, Kind.UNMASK_EXIT)
"""Without the unmask, an interrupt on the kernel path waits until the next one is claimed."""


def known_work(t: Points, *, source: int = 1) -> tuple[DeviceHandle, DeviceHandle]:
    """Two devices whose work items are known, and which have nothing in flight."""
    both = t.pair()
    for d in both:
        t.point_handler(d)
        t.point_inject(d, source=source)
        t.point_ack(d)
        t.unmask(d, tid=100)
    return both


def test_of_tracepoints_of_a_kick() -> None:
    """`on_ack_of_unnamed_vm`, `doubt`: the line is not masked, so the guest's EOI is the last word."""
    for devices in (1, 2):
        t = Points(UNMASKS)
        both = known_work(t)
        for d in both[:devices]:
            t.work(Kind.WORK_QUEUED, d, Work.IRQFD_INJECT, tid=7)
            t.point_inject(d)
        for d in both[:devices]:
            t.point_ack(d, thread=500 + d.id)
        assert late(t.records(), t.tables) == []


def test_of_a_worker_that_goes_on_to_another_device() -> None:
    """`on_work_started`: the return of kvm_set_irq was not recorded; no probe shows the end of an edge irqfd."""
    t = Points((*UNMASKS, Kind.KVM_SET_IRQ_EXIT))
    a, b = known_work(t, source=0)
    for d in (a, b):
        t.work(Kind.WORK_QUEUED, d, Work.IRQFD_INJECT, tid=7)
    t.point_inject(a, source=0)
    t.point_inject(b, source=0)
    assert late(t.records(), t.tables) == []


def test_of_an_msi_whose_end_no_probe_shows() -> None:
    """`on_msi_set_irq`: nothing more is to come, for nothing shows that QEMU writes the resamplefd."""
    t, d = one_device(without(Kind.QEMU_RESAMPLE_NOTIFY, Kind.EVENTFD_WRITE))
    t.enable(d)
    t.enable_kvm(d, resample=False)
    kick(t, d, "msi")
    assert late(t.records(), t.tables) == []


def test_of_an_injection_whose_return_was_not_recorded() -> None:
    """`end_injection`: it is over when its worker injects for another device, or raises another line."""
    for other_device in (True, False):
        t = Trace()
        vm = t.vm()
        a, b = t.device(vm), t.device(vm, bdf="0000:02:00.0", gsi=22)
        kick_known(t, a, "edge")
        t.inject(a, irqfd="edge")
        del t._rows[-3:]  # the return, and the line's fall
        if other_device:
            kick_known(t, b, "edge")
            t.inject(b, irqfd="edge")
        else:
            t.emit(Kind.KVM_SET_IRQ, vm=vm.kvm, value=1, arg0=4, tgid=2, tid=vm.pid + 50)
        assert late(t.records(), t.tables) == []


def kick_known(t: Trace, d: DeviceHandle, irqfd: str) -> None:
    """Kick a device whose trigger is known."""
    t.enable(d)
    kick(t, d, irqfd)


def test_of_a_refused_unmask_that_did_not_signal() -> None:
    """`on_set_irqs_exit`: another thread has opened the line before the ioctl returned."""
    t, d = one_device()
    t.enable(d)
    t.set_irqs_entry(d, UNMASK_NONE)
    t.unmask(d, returned=1, tgid=d.vm.pid, tid=d.vm.main)
    t.unmask(d, tid=7)
    t.set_irqs_exit(d, UNMASK_NONE)
    assert late(t.records(), t.tables) == []


def test_of_a_probe_that_goes() -> None:
    """`on_probe`: what it would have shown is not waited for."""
    t, d = one_device()
    t.handler(d, irqfd="resample")
    t.inject(d)
    t.guest_eoi(d)
    row = next(probe.id for probe in t.tables.probes if probe.kinds == ["UNMASK_EXIT"])
    t.emit(Kind.PROBE, aux=row, value=0)
    assert late(t.records(), t.tables) == []


def test_of_more_than_may_be_in_flight() -> None:
    """`hand_out_settled`: what waited behind the one that was given up goes with it, if it is over."""
    t, d = one_device()
    t.handler(d)
    t.qemu_takes(d)
    t.qemu_eoi(d)
    for _ in range(70):
        t.emit(Kind.EVENTFD_WRITE, link=d.trigger, tid=7)
    assert late(t.records(), t.tables) == []
