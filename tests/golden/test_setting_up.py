"""Goldens of set-up and teardown: `intxtrace/reconstruct/setting_up.py`, rule by rule.

VFIO_DEVICE_SET_IRQS is vfio_pci_set_irqs_ioctl (drivers/vfio/pci/vfio_pci_intrs.c), KVM_IRQFD kvm_irqfd
(virt/kvm/eventfd.c); QEMU calls both in hw/vfio/pci.c.
"""

from __future__ import annotations

import pytest

from intxtrace.events import EPOLLIN, Flag, Kind, parse_address
from tests.dsl import MASK_NONE, TRIGGER_EVENTFD, TRIGGER_NONE, UNMASK_EVENTFD, DeviceHandle, Trace
from tests.golden.test_interrupts import one_device, rows, story, without
from tests.golden.test_joins import bars_are_known
from tests.golden.test_states import states


def woken_by_resamplefd(t: Trace, d: DeviceHandle) -> None:
    """An irqfd is woken of which only the resamplefd is known."""
    t.emit(Kind.IRQFD_WAKEUP, link=1, link2=d.resample, vm=0x77, value=EPOLLIN, arg0=9, tid=7)


def test_a_line_that_was_lowered_once_acknowledges_once() -> None:
    """`on_set_irqs_entry`: with its irqchip in userspace QEMU lowers no line in KVM, and its EOI is not probed."""
    t, d = one_device(without(Kind.QEMU_EOI))
    t.enable(d)
    t.handler(d)
    t.qemu_takes(d)
    t.deassert(d, tid=d.vm.vcpu)
    t.ioctl_unmask(d)
    t.guest_eoi(d, resample=False)
    t.handler(d)
    t.qemu_takes(d, asserts=False)
    t.ioctl_unmask(d)
    assert [row["acknowledged_at"] is None for row in rows(t)] == [False, True]


def test_vfio_intx_enable_sets_one_trigger() -> None:
    """`on_set_irqs_entry`: what the thread does to another device later says nothing of this VFIODevice."""
    t = Trace()
    vm = t.vm()
    a, b = t.device(vm), t.device(vm, bdf="0000:02:00.0")
    t.enable(a)
    t.set_irqs(b, TRIGGER_EVENTFD, link=b.trigger, aux=30)
    b.qemu = a.qemu
    assert bars_are_known(t, a)
    assert not bars_are_known(t, b)


def test_vfio_intx_eoi_unmasks_once() -> None:
    """`on_set_irqs_entry`: the next unmask in this thread is another one's."""
    t = Trace(without(Kind.QEMU_INTERRUPT, Kind.QEMU_ENABLE))
    vm = t.vm()
    a, b = t.device(vm), t.device(vm, bdf="0000:02:00.0")
    t.userspace_interrupt(a)
    t.ioctl_unmask(b)
    b.qemu = a.qemu
    assert bars_are_known(t, a)
    assert not bars_are_known(t, b)


@pytest.mark.parametrize("known", [True, False])
def test_the_resamplefd_is_set_by_the_ioctl(known: bool) -> None:
    """`set_irqs`: vfio_pci_set_intx_unmask_trigger."""
    t, d = one_device()
    if known:
        t.set_irqs(d, UNMASK_EVENTFD, link=d.resample)
    woken_by_resamplefd(t, d)
    assert len(rows(t)) == known


def test_the_resamplefd_is_named_by_kvm_irqfd() -> None:
    """`on_kvm_irqfd`: struct kvm_irqfd has both."""
    t, d = one_device()
    t.enable(d)
    t._kvm_irqfd(d, 2, 0)
    woken_by_resamplefd(t, d)
    assert len(rows(t)) == 1


def test_the_resamplefd_is_named_by_its_wakeup() -> None:
    """`on_virqfd_wakeup`: the opaque pointer of a virqfd that unmasks is the device."""
    t, d = one_device()
    t.emit(Kind.VIRQFD_WAKEUP, device=d.vdev, link=d.resample, value=EPOLLIN, tid=7)
    t.handler(d, claimed=False)
    woken_by_resamplefd(t, d)
    assert t.reconstruct().interrupts["device"].tolist() == [d.id]


def test_the_resamplefd_goes_with_intx() -> None:
    """`shut_down`: vfio_intx_disable frees the virqfd."""
    t, d = one_device()
    t.set_irqs(d, UNMASK_EVENTFD, link=d.resample)
    t.disable(d)
    woken_by_resamplefd(t, d)
    assert rows(t) == []


def test_the_resampler_tells_the_gsi() -> None:
    """`on_virqfd_wakeup`: irqfd_resampler_ack signals the resamplefds of its GSI, in the same thread."""
    t, d = one_device()
    t.guest_eoi(d)
    t.resample_unmask(d)
    t.handler(d, signal=False)
    assert [row["gsi"] for row in rows(t)] == [21, 21]


@pytest.mark.parametrize("step", ["enable", "disable"])
def test_after_the_set_up_was_seen_a_beginning_was_missed(step: str) -> None:
    """`set_irqs`: what QEMU takes has not begun before the trace."""
    t, d = one_device()
    t.set_irqs(d, TRIGGER_EVENTFD, link=d.trigger)
    if step == "disable":
        t.qemu_takes(d, found=False)
        t._rows = [row for row in t._rows if row["kind"] in (Kind.VM, Kind.DEVICE, Kind.QEMU_INTERRUPT)]
        t.disable(d)
    t.emit(Kind.QEMU_INTERRUPT, device=d.qemu, tgid=d.vm.pid, tid=d.vm.main)
    t.emit(Kind.EVENTFD_READ, link=d.trigger, value=8, tgid=d.vm.pid, tid=d.vm.main)
    assert story(t) == ([] if step == "disable" else [("userspace", "unknown", "lossy")])


def test_intx_that_was_off_masks_nothing() -> None:
    """`set_irqs`: after vfio_intx_disable nothing is masked that an unmask could have ended."""
    t, d = one_device()
    t.disable(d)
    t.unmask(d, tid=7)
    assert rows(t) == []


def test_an_unmask_that_ran_when_intx_went_opens_nothing() -> None:
    """`shut_down`: vfio_pci_intx_unmask_handler finds no INTx any more."""
    t, d = one_device()
    t.enable(d)
    t.handler(d)
    t.emit(Kind.UNMASK_ENTRY, device=d.vdev, tid=7)
    t.disable(d)
    t.enable(d)
    t.handler(d)
    t.handler(d)
    assert [(row["outcome"], row["unmasked_at"]) for row in rows(t)] == [
        ("cancelled", None),
        ("lossy", None),
        ("open", None),
    ]


@pytest.mark.parametrize(
    ("opened_anew", "unmasked"), [("", False), ("by another QEMU", True), ("vm", True), ("device", True)]
)
def test_disintx_outlives_intx_but_not_the_open_device(opened_anew: str, unmasked: bool) -> None:
    """vfio_intx_enable begins with ctx->masked = vdev->virq_disabled; vfio_pci_core_disable clears it."""
    t, d = one_device(without(Kind.CHECKED_UNMASK, Kind.ENABLE_IRQ))
    t.enable(d)
    t.emit(Kind.MASK, device=d.vdev, tgid=d.vm.pid, tid=d.vm.vcpu)
    t.disable(d)
    if opened_anew == "by another QEMU":
        d.vm = t.vm()
    elif opened_anew == "vm":
        t.emit(Kind.VM, vm=d.vm.kvm, aux=d.vm.id, value=0)
    elif opened_anew == "device":
        t.emit(Kind.DEVICE, device=d.vdev, aux=d.id, value=0)
    t.enable(d)
    t.handler(d)
    t.unmask(d, tgid=d.vm.pid, tid=d.vm.vcpu)
    assert [row["unmasked_at"] is not None for row in rows(t)] == [unmasked]


def test_a_device_may_come_back_at_another_address() -> None:
    """`on_device`: it is known by its row in the device table."""
    t, d = one_device()
    t.enable(d)
    t.handler(d)
    d.vdev += 0x100
    t.emit(Kind.DEVICE, device=d.vdev, aux=d.id, value=1, arg0=parse_address(d.bdf))
    t.unmask(d, tid=7)
    t.handler(d, claimed=False)
    frame = t.reconstruct().interrupts
    assert frame["device"].tolist() == [d.id]
    assert frame["unmasked_at"].notna().all()


def test_a_device_without_a_row_gets_one() -> None:
    """`on_device`: seen before it was announced, and again at another address after."""
    t = Trace()
    d = t.device(t.vm())
    announced = t._rows.pop()
    t.handler(d)
    t._rows.append({**announced, "ts": t.now})
    t.emit(Kind.DEVICE, device=d.vdev + 0x100, aux=d.id, value=1, arg0=parse_address(d.bdf))
    d.vdev += 0x100
    t.unmask(d, tid=7)
    assert [(row["device"], row["unmasked_at"] is None) for row in rows(t)] == [(0, False)]


def test_an_address_may_be_of_another_device() -> None:
    """`on_device`: the one before is gone, though nothing said so."""
    t = Trace()
    vm = t.vm()
    a = t.device(vm)
    t.enable(a)
    t.handler(a)
    b = t.device(vm, bdf="0000:02:00.0")
    t._rows[-1]["device"] = b.vdev = a.vdev
    t.handler(b)
    assert [(row["device"], row["outcome"]) for row in rows(t)] == [(0, "cancelled"), (1, "open")]
    frame = t.reconstruct().states
    assert frame[frame["device"] == 0]["reason"].tolist()[-1] == "the device went"


def test_a_device_of_a_log_is_known_by_its_row_alone() -> None:
    """`on_device`: the source has no pointers, and a pointer may be any number."""
    t = Trace()
    log = {"flags": Flag.SYNTHETIC, "aux": 5, "value": 1, "arg0": parse_address("0000:05:00.0")}
    t.emit(Kind.DEVICE, device=5, **log)
    t.emit(Kind.DEVICE, device=6, **log)
    t.emit(Kind.HANDLER_ENTRY, device=6)
    t.emit(Kind.HANDLER_EXIT, device=6, value=1)
    assert t.reconstruct().interrupts["device"].isna().tolist() == [True]


def test_what_a_vm_was_called_goes_with_it() -> None:
    """`on_vm`: another one may get its address before anything has named it."""
    t, d = one_device()
    t.emit(Kind.VM, vm=d.vm.kvm, aux=d.vm.id, value=0)
    t.handler(d, irqfd="resample")
    assert [row["vm"] for row in rows(t)] == [None]


def test_a_vm_of_a_log_is_known_by_its_row_alone() -> None:
    """`on_vm`: a VM of a log went, not the one whose pointer is the same number."""
    t, d = one_device()
    t.emit(Kind.VM, vm=d.vm.kvm, aux=1, value=1, flags=Flag.SYNTHETIC)
    t.emit(Kind.VM, vm=d.vm.kvm, aux=1, value=0, flags=Flag.SYNTHETIC)
    t.handler(d, irqfd="resample")
    assert [row["vm"] for row in rows(t)] == ["vm0"]


def test_the_name_of_a_process_outlives_the_address_of_its_vm() -> None:
    """`on_vm`: its pointer is another one's now; the process is the same still."""
    t, d = one_device()
    again = t.vm()
    t._rows[-1]["vm"] = d.vm.kvm
    t.enable(d)
    t.handler(d)
    assert again.id == 1
    assert [row["vm"] for row in rows(t)] == ["vm0"]


def test_states_of_a_trigger_that_moves() -> None:
    """`set_irqs`: another eventfd without a teardown between is a new set-up."""
    t, d = one_device()
    t.enable(d)
    t.enable_kvm(d)
    d.trigger += 8
    t.enable(d)
    assert [state for state, _ in states(t)] == ["unknown", "userspace", "kernel", "userspace"]


# ---- what the recording says of itself


def test_a_handler_that_ran_when_events_were_lost_has_no_known_beginning() -> None:
    """`lose`: another entry of it may be among them."""
    t, d = one_device()
    t.emit(Kind.HANDLER_ENTRY, device=d.vdev)
    t.lost()
    t.emit(Kind.HANDLER_EXIT, device=d.vdev, value=1)
    assert [(row["outcome"], row["raised_at"]) for row in rows(t)] == [("lossy", None)]


def test_what_is_settled_learns_nothing_more_after_a_loss() -> None:
    """`lose`: neither its EOI nor its BAR accesses can be told from those of what was lost."""
    t, d = one_device()
    t.handler(d)
    t.qemu_takes(d)
    t.bar_access(d)
    t.qemu_eoi(d)
    t.lost()
    t.bar_access(d)
    t.guest_eoi(d, resample=False)
    (row,) = rows(t)
    assert (row["outcome"], row["eoi_at"], row["bar_accesses"], row["reentries"]) == ("complete", None, None, None)


def test_bar_accesses_after_a_loss_are_nobodys() -> None:
    """`lose`: QEMU may have taken another interrupt since."""
    t, d = one_device()
    t.handler(d)
    t.qemu_takes(d)
    t.bar_access(d)
    t.lost()
    t.bar_access(d)
    assert [(row["outcome"], row["bar_accesses"]) for row in rows(t)] == [("lossy", 1)]


def test_a_probe_goes_once() -> None:
    """`on_probe`: said twice, it still comes back at once."""
    t, d = one_device()
    row = next(probe.id for probe in t.tables.probes if probe.kinds == ["UNMASK_EXIT"])
    for value in (0, 0, 1):
        t.emit(Kind.PROBE, aux=row, value=value)
    t.handler(d, irqfd="resample")
    t.inject(d)
    t.guest_eoi(d)
    assert [row["outcome"] for row in rows(t)] == ["open"]


@pytest.mark.parametrize(("announced", "host_irq"), [(33, 33), (0, 20)])
def test_a_device_that_is_announced_again_may_have_another_irq(announced: int, host_irq: int) -> None:
    """`on_device`: 0 is not known."""
    t, d = one_device()
    t.emit(Kind.DEVICE, device=d.vdev, aux=d.id, value=1, arg0=parse_address(d.bdf), arg1=announced)
    t.handler(d)
    assert [row["host_irq"] for row in rows(t)] == [host_irq]


def test_a_device_whose_vm_went_is_nobodys() -> None:
    """`vm_went`."""
    t, d = one_device()
    t.kernel_interrupt(d)
    t.emit(Kind.VM, vm=d.vm.kvm, aux=d.vm.id, value=0)
    t.handler(d, signal=False)
    assert [(row["vm"], row["vm_pid"], row["gsi"]) for row in rows(t)] == [("vm0", 1000, 21), (None, None, None)]


def test_the_process_that_set_it_up_is_the_devices() -> None:
    """`on_set_irqs_entry`."""
    t, d = one_device()
    t.tables.devices[0].vm_pid = None
    t.enable(d)
    t.handler(d)
    assert [(row["vm"], row["vm_pid"]) for row in rows(t)] == [("vm0", 1000)]


@pytest.mark.parametrize(("index", "reason"), [(1, "MSI was enabled"), (2, "MSI-X was enabled")])
def test_msi_cancels_what_is_in_flight(index: int, reason: str) -> None:
    """`set_irqs`: INTx may still be on (vfio_pci_set_msi_trigger); off already, it is another reason to be."""
    for on in (True, False):
        t, d = one_device()
        t.enable(d)
        t.handler(d)
        if not on:
            t.disable(d)
        t.set_irqs(d, TRIGGER_EVENTFD, index=index)
        assert [row["outcome"] for row in rows(t)] == ["cancelled"]
        assert states(t)[-1] == ("off", reason)


def test_intx_that_is_off_leaves_its_eventfd_and_its_gsi() -> None:
    """`shut_down`."""
    t, d = one_device()
    t.kernel_interrupt(d)
    t.disable(d)
    t.emit(Kind.EVENTFD_WRITE, link=d.trigger, tid=7)
    t.handler(d, signal=False)
    assert [(row["origin"], row["gsi"]) for row in rows(t)] == [("hardware", 21), ("hardware", None)]


def test_kvm_irqfd_names_the_trigger() -> None:
    """`on_kvm_irqfd`: the mask ioctl before it names the device, nothing the eventfd."""
    t, d = one_device()
    t.set_irqs(d, MASK_NONE)
    t._kvm_irqfd(d, 0, 0)
    t.emit(Kind.EVENTFD_WRITE, link=d.trigger, tid=7)
    assert [row["origin"] for row in rows(t)] == ["software"]


def test_a_loopback_that_no_irqfd_took_is_left_to_qemu() -> None:
    """`on_set_irqs_exit`: after its return the thread signals nothing by itself."""
    t, d = one_device()
    t.enable(d)
    inside = {"flags": Flag.IN_SET_IRQS, "device": d.vdev, "tgid": d.vm.pid, "tid": d.vm.main}
    t.set_irqs_entry(d, TRIGGER_NONE)
    t.emit(Kind.EVENTFD_SIGNAL, link=d.trigger, **inside)
    t.set_irqs_exit(d, TRIGGER_NONE)
    assert story(t) == [("userspace", "software", "open")]
    t.emit(Kind.EVENTFD_SIGNAL, link=d.trigger, **inside)
    assert [row["origin"] for row in rows(t)] == ["software", "pending"]
