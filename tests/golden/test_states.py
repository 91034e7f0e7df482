"""Golden traces of device states and counters."""

from __future__ import annotations

import pandas as pd
import pytest

from intxtrace import frames
from intxtrace.events import Kind
from tests.dsl import ALL_KINDS, COUNT_KINDS, TRIGGER_EVENTFD, DeviceHandle, Trace

T = 5_000_000_000


def one_device() -> tuple[Trace, DeviceHandle]:
    trace = Trace()
    return trace, trace.device(trace.vm())


def states(trace: Trace) -> list[tuple[str, str]]:
    frame = trace.reconstruct().states
    assert list(frame) == list(frames.DEVICE_STATES)
    # They follow each other without a gap, and the last one lasts.
    assert frame["end_at"].iloc[:-1].tolist() == frame["begin_at"].iloc[1:].tolist()
    assert frame["end_at"].isna().tolist() == [False] * (len(frame) - 1) + [True]
    return list(zip(frame["state"], frame["reason"], strict=True))


def test_enable_bypass_and_disable() -> None:
    t, d = one_device()
    t.enable(d)
    t.enable_kvm(d)
    t.disable_kvm(d)
    t.disable(d)
    assert states(t) == [
        ("unknown", "no event has shown it yet"),
        ("userspace", "INTx was enabled; QEMU has set up no irqfd"),
        ("kernel", "KVM_IRQFD with a resamplefd"),
        ("userspace", "the irqfd was removed"),
        ("off", "INTx was disabled"),
    ]


def test_split_irqchip() -> None:
    t, d = one_device()
    t.enable(d)
    t.enable_kvm(d, resample=False)
    assert states(t)[-1] == ("hybrid", "KVM_IRQFD without a resamplefd")


def test_failed_bypass_says_why() -> None:
    t, d = one_device()
    t.enable(d)
    t.enable_kvm(d, returned=-22)
    assert states(t)[-1] == ("userspace", "KVM_IRQFD failed: Invalid argument")


@pytest.mark.parametrize(("index", "reason"), [(1, "MSI was enabled"), (2, "MSI-X was enabled")])
def test_msi_takes_over(index: int, reason: str) -> None:
    t, d = one_device()
    t.enable(d)
    t.disable(d)
    t.set_irqs(d, TRIGGER_EVENTFD, index=index)
    assert states(t)[-1] == ("off", reason)


def test_an_interrupt_shows_what_no_set_up_of_this_trace_did() -> None:
    t, d = one_device()
    t.kernel_interrupt(d)
    assert states(t) == [("kernel", "an interrupt took this path")]


def test_the_vm_and_the_device_go() -> None:
    t, d = one_device()
    t.enable(d)
    t.emit(Kind.VM, vm=d.vm.kvm, aux=d.vm.id, value=0)
    assert states(t)[-1] == ("off", "the VM went")
    t, d = one_device()
    t.enable(d)
    t.emit(Kind.DEVICE, device=d.vdev, aux=d.id, value=0)
    assert states(t)[-1] == ("off", "the device went")


def test_bars_are_mapped_when_all_regions_are() -> None:
    t, d = one_device()
    t.enable(d)
    t.userspace_interrupt(d)
    t.mmaps(d, False)
    t.mmaps(d, True)
    frame = t.reconstruct().states
    mapped = [None if pd.isna(value) else bool(value) for value in frame["bars_mapped"]]
    assert mapped == [None, None, False, True]
    assert frame["begin_at"].iloc[3] - frame["begin_at"].iloc[2] == 3 * Trace.STEP
    assert frame["reason"].tolist()[2:] == [
        "the BARs were unmapped from the guest",
        "the BARs were mapped into the guest",
    ]


def test_counters_by_window_and_offset() -> None:
    t, d = one_device()
    t.userspace_interrupt(d, at=T, accesses=3)
    t.userspace_interrupt(d, at=T + 1_000_000_000)
    frame = t.reconstruct().counters
    assert list(frame) == list(frames.COUNTERS)
    # What one window of trapped accesses looks like: a total and the offsets.
    first = frame[frame["begin_at"] == T]
    found = {
        (row["counter"], None if pd.isna(row["offset"]) else row["offset"]): row["count"]
        for row in first.to_dict("records")
    }
    assert found == {
        ("handler_calls", None): 1,
        ("bar_reads", None): 1,
        ("bar_writes", None): 2,
        ("bar_reads", 0xC0): 1,
        ("bar_writes", 0xD8): 2,
    }
    assert set(frame["begin_at"]) == {T, T + 1_000_000_000}


def test_counted_accesses_belong_to_the_interrupt_before() -> None:
    t = Trace((*ALL_KINDS, *COUNT_KINDS))
    d = t.device(t.vm())
    t.handler(d)
    t.qemu_takes(d)
    t.qemu_eoi(d)
    t.emit(Kind.QEMU_REGION_COUNT, device=d.qemu, arg0=30, arg1=12, tgid=d.vm.pid, tid=d.vm.main)
    t.emit(Kind.QEMU_REGION_OFFSETS, device=d.qemu, arg0=0xC0, arg1=30, tgid=d.vm.pid, tid=d.vm.main)
    t.guest_eoi(d, resample=False)
    t.userspace_interrupt(d)
    assert t.reconstruct().interrupts["bar_accesses"].tolist() == [42, 0]


def test_an_offset_is_counted_from_nothing_in_each_window() -> None:
    """`on_bar_offset`, `roll_window`: by device, region, direction and offset."""
    t = Trace()
    vm = t.vm()
    a, b = t.device(vm), t.device(vm, bdf="0000:02:00.0")
    for d in (a, b):
        t.enable(d)
    for at in (T, T + 1_000_000_000):
        t.now = at
        t.bar_access(a)
        t.bar_access(b, region=1)
        t.bar_access(b, region=1, write=True)
    frame = t.reconstruct().counters
    offsets = frame[frame["offset"].notna()]
    rows = [tuple(row) for row in offsets[["device", "counter", "region", "count"]].itertuples(index=False)]
    assert rows == [(0, "bar_reads", 0, 1), (1, "bar_reads", 1, 1), (1, "bar_writes", 1, 1)] * 2


def test_what_is_lost_is_counted_by_device() -> None:
    """`on_lost`: a LOST of no device is nobody's."""
    t, d = one_device()
    t.handler(d)
    t.now = T
    t.lost(3, device=d.vdev)
    t.lost(4)
    t.now = T + 1_000_000_000
    t.lost(5, device=d.vdev)
    t.lost(6)
    frame = t.reconstruct().counters
    frame = frame[frame["counter"] == "lost"]
    assert frame["count"].tolist() == [3, 4, 5, 6]
    assert frame["bdf"].isna().tolist() == frame["vm"].isna().tolist() == [False, True] * 2
    assert frame["region"].isna().all()


def test_each_counter_begins_anew_in_each_window() -> None:
    """`roll_window`."""
    t, d = one_device()
    t.enable(d)
    for at in (T, T + 1_000_000_000):
        t.now = at
        t.handler(d, claimed=False)
        t.ioctl_unmask(d, proof=False)
        t.qemu_takes(d, found=False)
        t.bar_access(d)
        t.bar_access(d, write=True)
        t.handler(d)
        t.qemu_takes(d)
        t.guest_eoi(d, resample=False)
        t.qemu_eoi(d)
        t.guest_eoi(d, resample=False)
    frame = t.reconstruct().counters
    frame = frame[frame["offset"].isna()]
    counts = [dict(zip(one["counter"], one["count"], strict=True)) for _, one in frame.groupby("begin_at")]
    once = ("unclaimed", "spurious_wakeups", "noop_unmasks", "reentries", "bar_reads", "bar_writes")
    assert counts == [{"handler_calls": 2, **dict.fromkeys(once, 1)}] * 2
    assert frame["vm"].tolist() == ["vm0"] * len(frame)


def test_another_path_is_another_state_even_without_a_set_up_call() -> None:
    """`observe_path`: an irqfd that takes a signal exists; QEMU's read may be of a signal that came before it."""
    t, d = one_device()
    t.enable(d)
    t.kernel_interrupt(d)
    assert states(t)[-1] == ("kernel", "an interrupt took this path")
    t.handler(d)
    t.qemu_takes(d)
    assert states(t)[-1] == ("kernel", "an interrupt took this path")


def test_states_name_their_device_and_vm() -> None:
    """`end_state`."""
    t = Trace()
    t.device(t.vm())
    d = t.device(t.vm(), bdf="0000:02:00.0")
    t.enable(d)
    frame = t.reconstruct().states
    frame = frame[frame["device"] == d.id]
    assert frame["bdf"].tolist() == [d.bdf, d.bdf]
    assert frame["vm"].tolist() == ["vm1", "vm1"]


def test_mapping_bars_is_no_failure() -> None:
    """`on_qemu_mmaps`: the error of the state before says nothing of the BARs."""
    t, d = one_device()
    t.enable(d)
    t.enable_kvm(d, returned=-22)
    t.mmaps(d, False)
    assert states(t)[-1] == ("userspace", "the BARs were unmapped from the guest")


def test_regions_that_no_device_has() -> None:
    """`on_qemu_mmaps`: a forged number has no bit."""
    t, d = one_device()
    t.enable(d)
    t.mmaps(d, True, regions=(32, 99))
    assert t.reconstruct().states["bars_mapped"].isna().all()
