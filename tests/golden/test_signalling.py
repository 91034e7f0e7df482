"""Goldens of the eventfd, who signals and who takes it: `intxtrace/reconstruct/signalling.py`, rule by rule.

vfio signals in vfio_send_intx_eventfd (drivers/vfio/pci/vfio_pci_intrs.c); irqfd_wakeup (virt/kvm/eventfd.c) or
vfio_intx_interrupt (QEMU's hw/vfio/pci.c) takes it.
"""

from __future__ import annotations

from intxtrace.events import EPOLLIN, Flag, Kind
from tests.golden.test_interrupts import one_device, rows, story, without
from tests.golden.test_joins import bars_are_known


def test_a_signal_outside_of_any_call_has_no_known_origin() -> None:
    """`on_eventfd_signal`: the trigger tells the device; who signalled it, nothing."""
    t, d = one_device()
    t.enable(d)
    t.emit(Kind.EVENTFD_SIGNAL, link=d.trigger, tid=7)
    t.qemu_takes(d)
    assert story(t) == [("userspace", "unknown", "open")]
    assert rows(t)[0]["raised_at"] is None


def test_so_many_writes_that_nobody_took() -> None:
    """`on_eventfd_write`: 64 may be in flight."""
    t, d = one_device()
    t.enable(d)
    for _ in range(70):
        t.emit(Kind.EVENTFD_WRITE, link=d.trigger, tid=7)
    outcomes = [row["outcome"] for row in rows(t)]
    assert outcomes == ["lossy"] * 6 + ["open"] * 64


def test_a_written_resamplefd_acknowledges() -> None:
    """`on_eventfd_write`: kvm_resample_fd_notify (QEMU's accel/kvm) writes it, and nothing else does in this thread."""
    for link_of_write, acknowledged in (("resample", True), ("trigger", False)):
        t, d = one_device(without(Kind.QEMU_RESAMPLE_NOTIFY))
        t.handler(d, irqfd="msi")
        at = t.now
        t.emit(Kind.EVENTFD_WRITE, link=getattr(d, link_of_write) + (0 if acknowledged else 8), tid=d.vm.vcpu)
        t.emit(Kind.VIRQFD_WAKEUP, device=d.vdev, link=d.resample, value=EPOLLIN, tid=d.vm.vcpu)
        assert rows(t)[0]["acknowledged_at"] == (at if acknowledged else None)


def test_what_qemu_reads_in_its_handler_is_the_trigger() -> None:
    """`on_eventfd_read`: vfio_intx_interrupt reads vdev->intx.interrupt and nothing else."""
    t, d = one_device()
    t.userspace_interrupt(d)
    d.trigger += 0x100  # Setting it was not recorded.
    t.qemu_takes(d)
    t.emit(Kind.EVENTFD_WRITE, link=d.trigger, tid=7)
    assert [row["origin"] for row in rows(t)] == ["hardware", "unknown", "software"]


def test_the_read_of_an_eventfd_that_nobody_knows_is_nothing() -> None:
    """`on_eventfd_read`: other threads, and QEMU's handler of a device that nothing has joined yet."""
    t, d = one_device()
    task = {"tgid": d.vm.pid, "tid": d.vm.main}
    t.emit(Kind.EVENTFD_READ, link=0x1234, value=8, **task)
    t.emit(Kind.QEMU_INTERRUPT, device=d.qemu, **task)
    t.emit(Kind.EVENTFD_READ, link=0x1234, value=8, **task)
    assert story(t) == []


def test_a_read_without_the_call_of_qemu_takes() -> None:
    """`on_eventfd_read`: this QEMU is not probed; what it did not find, it did not take."""
    t, d = one_device()
    t.enable(d)
    t.handler(d)
    task = {"tgid": d.vm.pid, "tid": d.vm.main}
    t.emit(Kind.EVENTFD_READ, link=d.trigger, value=-11, **task)
    at = t.now
    t.emit(Kind.EVENTFD_READ, link=d.trigger, value=8, **task)
    (row,) = rows(t)
    assert (row["path"], row["signalled_at"], row["bar_accesses"]) == ("userspace", at, None)


def test_bar_accesses_belong_to_what_a_probed_qemu_took() -> None:
    """`take`: after another read, by a thread whose calls are not probed, they belong to nobody."""
    t, d = one_device()
    t.userspace_interrupt(d)
    t._rows = [row for row in t._rows if row["kind"] != Kind.KVM_ACK]
    t.handler(d)
    t.emit(Kind.EVENTFD_READ, link=d.trigger, value=8, tgid=d.vm.pid, tid=77)
    t.bar_access(d)
    assert [row["bar_accesses"] for row in rows(t)] == [2, None]


def test_a_write_that_has_no_probe_is_the_wakeup_outside_of_any_signal() -> None:
    """`on_irqfd_wakeup`: eventfd_write wakes the irqfd without eventfd_signal (fs/eventfd.c)."""
    t, d = one_device(without(Kind.EVENTFD_WRITE))
    t.kernel_interrupt(d)
    at = t.now
    t.wakeup(d, "resample", tid=7)
    t.inject(d)
    t.guest_eoi(d)
    assert [(row["origin"], row["raised_at"]) for row in rows(t)[1:]] == [("software", at)]


def test_a_signal_that_only_a_refused_unmask_makes() -> None:
    """`on_eventfd_signal`: the unmask was missed, so when the line was found asserted is not known."""
    t, d = one_device()
    t.handler(d, irqfd="resample")
    t.inject(d)
    t.emit(Kind.EVENTFD_SIGNAL, link=d.trigger, device=d.vdev, flags=Flag.IN_SET_IRQS, tid=7)
    assert [(row["origin"], row["raised_at"] is None) for row in rows(t)] == [("hardware", False), ("resignal", True)]


def test_each_call_of_qemu_reads_once() -> None:
    """`on_eventfd_read`: another read in that thread is no vfio_intx_interrupt."""
    t, d = one_device()
    t.userspace_interrupt(d)
    t.handler(d)
    at = t.now
    t.emit(Kind.EVENTFD_READ, link=d.trigger, value=8, tgid=d.vm.pid, tid=d.vm.main)
    second = rows(t)[1]
    assert (second["signalled_at"], second["bar_accesses"]) == (at, None)


def test_qemu_takes_what_alone_is_signalled() -> None:
    """`on_qemu_interrupt`, `only_untaken`: where no probe shows reads, that joins the VFIODevice with the vdev."""
    t, d = one_device(without(Kind.EVENTFD_READ))
    t.handler(d)
    t.qemu_takes(d)
    assert story(t) == [("userspace", "hardware", "open")]
    assert bars_are_known(t, d)


def test_what_qemu_takes_shows_the_state() -> None:
    """`take`: a log of QEMU alone."""
    t, d = one_device((Kind.QEMU_INTERRUPT,))
    t.emit(Kind.QEMU_INTERRUPT, flags=Flag.SYNTHETIC, device=d.id, tid=7)
    assert t.reconstruct().states["state"].tolist()[-1:] == ["userspace"]


def test_bar_accesses_are_over_when_qemu_takes_the_next() -> None:
    """`take`: what is lost later is not among them."""
    t, d = one_device()
    t.userspace_interrupt(d)
    t.userspace_interrupt(d)
    t.lost()
    assert [row["bar_accesses"] for row in rows(t)] == [2, None]
