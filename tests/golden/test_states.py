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
