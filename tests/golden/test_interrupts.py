"""One golden trace per rule about interrupts: path, origin, outcome, stages."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import pytest

from intxtrace import frames
from intxtrace.events import Flag, Kind
from tests.dsl import ALL_KINDS, TRIGGER_EVENTFD, TRIGGER_NONE, DeviceHandle, Trace, reconstruct

T = 1_000_000_000


def one_device(probes: tuple[Kind, ...] = ALL_KINDS) -> tuple[Trace, DeviceHandle]:
    trace = Trace(probes)
    return trace, trace.device(trace.vm())


def without(*kinds: Kind) -> tuple[Kind, ...]:
    return tuple(kind for kind in ALL_KINDS if kind not in kinds)


def rows(trace: Trace) -> list[dict[str, Any]]:
    frame = trace.reconstruct().interrupts
    return [{str(k): None if pd.isna(v) else v for k, v in row.items()} for row in frame.to_dict("records")]


def story(trace: Trace) -> list[tuple[str, str, str]]:
    return [(row["path"], row["origin"], row["outcome"]) for row in rows(trace)]


def test_columns_and_types() -> None:
    t, d = one_device()
    t.kernel_interrupt(d)
    result = t.reconstruct()
    assert {c: str(result.interrupts[c].dtype) for c in result.interrupts} == {
        name: dtype for name, (dtype, _) in frames.INTERRUPTS.items()
    }


# ---- paths


def test_kernel_path() -> None:
    t, d = one_device()
    t.kernel_interrupt(d, at=T)
    (row,) = rows(t)
    assert (row["path"], row["origin"], row["outcome"]) == ("kernel", "hardware", "complete")
    assert (row["bdf"], row["vm"], row["vm_pid"], row["host_irq"], row["gsi"]) == ("0000:01:00.0", "vm0", 1000, 20, 21)
    # handler 0, signal 1, wakeup 2, exit 3, inject 4, set_irq 5 6, ack 7, resampler_ack 8, set_irq 9 10, signal 11,
    # virqfd_wakeup 12, unmask 13 14 15
    stages = {name: None if row[name] is None else (row[name] - T) // Trace.STEP for name in frames.STAGES}
    assert stages == {
        "raised_at": 0,
        "signalled_at": 1,
        "injected_at": 5,
        "acknowledged_at": 8,
        "unmasked_at": 15,
        "eoi_at": 7,
    }
    assert row["unmask_proof"] == "checked"
    assert row["coalesced"] is False
    assert (row["signal_ns"], row["inject_ns"], row["guest_ns"]) == (1000, 4000, 3000)
    assert (row["unmask_ns"], row["masked_ns"]) == (7000, 15000)
    assert row["bar_accesses"] is None
    assert row["reentries"] is None


def test_hybrid_path() -> None:
    t, d = one_device()
    t.hybrid_interrupt(d, at=T)
    (row,) = rows(t)
    assert (row["path"], row["outcome"], row["coalesced"]) == ("hybrid", "complete", False)
    # handler 0, signal 1, wakeup 2, msi 3, accept 4, exit 5, userspace exit 6, notify 7, write 8, wakeup 9, unmask ..12
    stages = {name: (row[name] - T) // Trace.STEP for name in frames.STAGES}
    assert stages == {
        "raised_at": 0,
        "signalled_at": 1,
        "injected_at": 3,
        "acknowledged_at": 7,
        "unmasked_at": 12,
        "eoi_at": 6,
    }


@pytest.mark.parametrize("path", ["kernel", "hybrid", "userspace"])
def test_an_interrupt_may_end_before_its_handler_returns(path: str) -> None:
    # The guest on another CPU has acknowledged, and vfio unmasked, while the handler still returns.
    t, d = one_device()
    getattr(t, f"{path}_interrupt")(d, at=T)
    getattr(t, f"{path}_interrupt")(d)
    records = t.records()
    first_exit = int(np.flatnonzero(records["kind"] == Kind.HANDLER_EXIT)[0])
    records["ts"][first_exit] = records["ts"][np.flatnonzero(records["kind"] == Kind.HANDLER_ENTRY)[1]] - 1
    result = reconstruct(np.sort(records, order="ts", kind="stable"), t.tables)
    assert result.interrupts["path"].tolist() == [path, path]
    assert result.interrupts["outcome"].tolist() == ["complete", "complete"]
    assert result.counters.query("counter == 'handler_calls'")["count"].sum() == 2


def test_hybrid_without_its_exit_has_no_eoi() -> None:
    t, d = one_device(without(Kind.USERSPACE_EXIT))
    t.hybrid_interrupt(d)
    assert rows(t)[0]["eoi_at"] is None


def test_hybrid_acknowledged_by_the_write_where_qemu_is_not_probed() -> None:
    t, d = one_device(without(Kind.QEMU_RESAMPLE_NOTIFY))
    t.hybrid_interrupt(d, at=T)
    assert rows(t)[0]["acknowledged_at"] == T + 8 * Trace.STEP


def test_edge_irqfd_injects_in_the_worker_and_is_unmasked_by_ioctl() -> None:
    t, d = one_device()
    t.handler(d, at=T, irqfd="edge")
    t.inject(d, irqfd="edge")
    t.guest_eoi(d, resample=False)
    t.ioctl_unmask(d)
    (row,) = rows(t)
    assert (row["path"], row["outcome"]) == ("hybrid", "complete")
    assert row["injected_at"] == T + 5 * Trace.STEP
    assert row["acknowledged_at"] == row["eoi_at"] == T + 9 * Trace.STEP


def test_userspace_path() -> None:
    t, d = one_device()
    t.userspace_interrupt(d, at=T)
    (row,) = rows(t)
    assert (row["path"], row["origin"], row["outcome"]) == ("userspace", "hardware", "complete")
    # handler 0, signal 1, exit 2, qemu 3, read 4, set_irq 5 6, bar 7, eoi 8, set_irq 9 10, set_irqs 11, unmask 12-14,
    # set_irqs 15, bar 16, guest eoi 17
    stages = {name: (row[name] - T) // Trace.STEP for name in frames.STAGES}
    assert stages == {
        "raised_at": 0,
        "signalled_at": 3,
        "injected_at": 5,
        "acknowledged_at": 8,
        "unmasked_at": 14,
        "eoi_at": 17,
    }
    assert (row["bar_accesses"], row["reentries"], row["gsi"]) == (2, 0, 21)


def test_userspace_signalled_at_falls_back_to_the_read_then_to_the_signal() -> None:
    t, d = one_device(without(Kind.QEMU_INTERRUPT))
    t.userspace_interrupt(d, at=T)
    assert rows(t)[0]["signalled_at"] == T + 4 * Trace.STEP
    t, d = one_device(without(Kind.QEMU_INTERRUPT, Kind.EVENTFD_READ))
    t.enable(d)
    t.userspace_interrupt(d, at=T)
    assert rows(t)[0]["signalled_at"] == T + Trace.STEP


def test_userspace_acknowledged_by_the_lowered_line_where_qemu_is_not_probed() -> None:
    t, d = one_device(without(Kind.QEMU_EOI))
    t.userspace_interrupt(d, at=T)
    (row,) = rows(t)
    assert (row["acknowledged_at"], row["outcome"]) == (T + 9 * Trace.STEP, "complete")


def test_userspace_irqchip_is_complete_without_injection_and_eoi() -> None:
    t, d = one_device()
    t.handler(d)
    t.qemu_takes(d, asserts=False)
    t.emit(Kind.QEMU_EOI, device=d.qemu, tgid=d.vm.pid, tid=d.vm.vcpu)
    t.ioctl_unmask(d)
    (row,) = rows(t)
    assert (row["path"], row["outcome"]) == ("userspace", "complete")
    assert (row["injected_at"], row["eoi_at"], row["reentries"]) == (None, None, None)


def test_other_lines_of_qemu_are_not_ours() -> None:
    t, d = one_device()
    t.handler(d)
    serial = {"vm": d.vm.kvm, "value": 1, "arg0": 4, "tgid": d.vm.pid, "tid": d.vm.main}
    t.emit(Kind.KVM_SET_IRQ, **serial)
    t.qemu_takes(d)
    t.emit(Kind.KVM_SET_IRQ, **serial)
    t.qemu_eoi(d)
    (row,) = rows(t)
    assert row["gsi"] == 21


def test_held_then_released_by_an_unmask() -> None:
    t, d = one_device()
    t.handler(d, signal=False)
    t.ioctl_unmask(d, returned=1, irqfd="resample")
    t.inject(d)
    t.guest_eoi(d)
    t.resample_unmask(d)
    held, released = rows(t)
    assert (held["path"], held["origin"], held["outcome"], held["signalled_at"]) == (
        "held",
        "hardware",
        "complete",
        None,
    )
    assert (released["path"], released["origin"], released["raised_at"]) == ("kernel", "pending", None)


def test_path_is_unknown_where_no_probe_shows_it() -> None:
    t, d = one_device(without(Kind.IRQFD_WAKEUP, Kind.IRQFD_INJECT, Kind.EVENTFD_READ, Kind.QEMU_INTERRUPT))
    t.handler(d)
    t.unmask(d)
    assert story(t) == [("unknown", "hardware", "complete")]


# ---- origins


def test_resignal_by_the_worker() -> None:
    t, d = one_device()
    t.kernel_resignal_interrupt(d, at=T)
    first, second = rows(t)
    assert (first["origin"], second["origin"]) == ("hardware", "resignal")
    assert (first["outcome"], second["outcome"]) == ("complete", "complete")
    assert (first["id"], second["parent_id"], first["parent_id"]) == (1, 1, None)
    # The unmask that found the line asserted ended the one and raised the other; the first was never unmasked.
    assert first["unmasked_at"] is None
    assert second["raised_at"] == T + 15 * Trace.STEP
    assert second["unmasked_at"] is not None


def test_resignal_by_the_ioctl_coalesces_into_the_delivery_in_service() -> None:
    t, d = one_device()
    t.userspace_resignal_interrupt(d, at=T)
    first, second = rows(t)
    assert (second["origin"], second["path"], second["parent_id"]) == ("resignal", "userspace", first["id"])
    assert (first["coalesced"], second["coalesced"]) == (False, True)
    # One guest ISR served both.
    assert first["eoi_at"] == second["eoi_at"] is not None
    assert (first["bar_accesses"], second["bar_accesses"]) == (1, 1)


def test_pending_the_line_rose_while_masked() -> None:
    t, d = one_device()
    t.enable(d)
    t.ioctl_unmask(d, returned=1)
    t.qemu_takes(d)
    t.qemu_eoi(d)
    (row,) = rows(t)
    assert (row["origin"], row["path"], row["outcome"]) == ("pending", "userspace", "complete")
    assert (row["raised_at"], row["masked_ns"], row["parent_id"]) == (None, None, None)


def test_software_written_eventfd() -> None:
    t, d = one_device()
    t.kernel_interrupt(d)
    task = {"tgid": d.vm.pid, "tid": d.vm.main}
    t.now = T
    t.emit(Kind.EVENTFD_WRITE, link=d.trigger, **task)
    t.wakeup(d, "resample", flags=Flag.IN_EVENTFD_WRITE, **task)
    t.inject(d)
    t.guest_eoi(d)
    t.resample_unmask(d, proof=False)
    row = rows(t)[1]
    assert (row["origin"], row["path"], row["outcome"]) == ("software", "kernel", "complete")
    assert (row["raised_at"], row["unmasked_at"]) == (T, None)


def test_software_loopback() -> None:
    t, d = one_device()
    t.enable(d)
    t.set_irqs_entry(d, TRIGGER_NONE)
    inside = {"flags": Flag.IN_SET_IRQS, "device": d.vdev, "tgid": d.vm.pid, "tid": d.vm.main}
    t.emit(Kind.EVENTFD_SIGNAL, link=d.trigger, **inside)
    t.wakeup(d, "resample", **inside)
    t.set_irqs_exit(d, TRIGGER_NONE)
    t.inject(d)
    t.guest_eoi(d)
    assert story(t) == [("kernel", "software", "complete")]


def test_a_qemu_log_alone_cannot_tell_the_origin() -> None:
    t, d = one_device((Kind.QEMU_INTERRUPT, Kind.QEMU_EOI))
    task = {"flags": Flag.SYNTHETIC, "device": d.id, "tgid": d.vm.pid}
    for _ in range(2):
        t.emit(Kind.QEMU_INTERRUPT, tid=d.vm.main, **task)
        t.emit(Kind.QEMU_EOI, tid=d.vm.vcpu, **task)
    assert story(t) == [("userspace", "unknown", "complete")] * 2


# ---- shared lines and GSIs


def test_handler_that_claims_nothing_is_a_count() -> None:
    t, d = one_device()
    t.handler(d, claimed=False)
    result = t.reconstruct()
    assert len(result.interrupts) == 0
    assert dict(zip(result.counters["counter"], result.counters["count"], strict=True)) == {
        "handler_calls": 1,
        "unclaimed": 1,
    }


def test_one_acknowledgement_ends_all_devices_of_a_gsi() -> None:
    t = Trace()
    vm = t.vm()
    a, b = t.device(vm), t.device(vm, bdf="0000:02:00.0")
    t.handler(a, irqfd="resample")
    t.handler(b, irqfd="resample")
    t.inject(a)
    t.inject(b, returned=-1)
    t.guest_eoi(a)
    t.resample_unmask(b)
    t.resample_unmask(a)
    first, second = sorted(rows(t), key=lambda row: row["device"])
    assert (first["outcome"], second["outcome"]) == ("complete", "complete")
    assert first["acknowledged_at"] == second["acknowledged_at"] is not None
    assert (first["coalesced"], second["coalesced"]) == (False, True)


def test_acknowledgement_does_not_reach_what_is_not_injected() -> None:
    t = Trace()
    vm = t.vm()
    a, b = t.device(vm), t.device(vm, bdf="0000:02:00.0")
    t.handler(a, irqfd="resample")
    t.inject(a)
    t.handler(b, irqfd="resample")
    t.guest_eoi(a)
    t.resample_unmask(a)
    assert [(r["device"], r["outcome"], r["acknowledged_at"] is None) for r in rows(t)] == [
        (0, "complete", False),
        (1, "open", True),
    ]


def test_the_same_gsi_of_two_vms_is_two_lines() -> None:
    t = Trace()
    a, b = t.device(t.vm()), t.device(t.vm(), bdf="0000:02:00.0")
    t.handler(a, irqfd="resample")
    t.handler(b, irqfd="resample")
    t.inject(a)
    t.inject(b)
    t.guest_eoi(a)
    t.resample_unmask(a)
    assert [(r["vm"], r["outcome"]) for r in rows(t)] == [("vm0", "complete"), ("vm1", "open")]


def test_pic_pins_and_the_cascade() -> None:
    t = Trace()
    d = t.device(t.vm(), gsi=2)
    t.handler(d, irqfd="resample")
    t.inject(d)
    vcpu = {"vm": d.vm.kvm, "tgid": d.vm.pid, "tid": d.vm.vcpu}
    t.emit(Kind.KVM_ACK, arg0=2, arg1=0, **vcpu)  # The master's pin 2 is the slave's EOI.
    assert rows(t)[0]["eoi_at"] is None
    t.emit(Kind.KVM_ACK, arg0=2, arg1=1, **vcpu)
    assert rows(t)[0]["eoi_at"] is not None


# ---- the order of things


def test_handler_twice_before_one_acknowledgement() -> None:
    t, d = one_device()
    t.handler(d, irqfd="resample")
    t.inject(d)
    t.ioctl_unmask(d, returned=1, irqfd="resample")
    t.inject(d, returned=-1)
    t.ioctl_unmask(d)
    t.handler(d, irqfd="resample")
    t.inject(d, returned=-1)
    t.guest_eoi(d)
    t.resample_unmask(d)
    assert [(r["origin"], r["outcome"], r["coalesced"]) for r in rows(t)] == [
        ("hardware", "complete", False),
        ("resignal", "complete", True),
        ("hardware", "complete", True),
    ]
    assert len({r["acknowledged_at"] for r in rows(t)}) == 1
    # Unmasked before it was acknowledged: there is no such latency.
    assert rows(t)[1]["unmask_ns"] is None


def test_two_wakeups_for_one_injection() -> None:
    t, d = one_device()
    t.handler(d, irqfd="resample")
    t.ioctl_unmask(d, returned=1, irqfd="resample")
    t.inject(d)
    t.guest_eoi(d)
    t.resample_unmask(d)
    first, second = rows(t)
    assert (first["coalesced"], second["coalesced"]) == (False, True)
    assert first["injected_at"] == second["injected_at"]


def test_the_guest_may_be_quicker_than_the_return_of_kvm_set_irq() -> None:
    t, d = one_device()
    t.handler(d, irqfd="resample")
    t.inject(d)
    late = next(row for row in t._rows if row["kind"] == Kind.KVM_SET_IRQ_EXIT)
    t._rows.remove(late)
    t.guest_eoi(d)
    t.resample_unmask(d)
    t._rows.append({**late, "ts": t.now})
    assert rows(t)[0]["coalesced"] is False


def test_msi_inside_the_wakeup_may_not_name_its_device() -> None:
    t, d = one_device()
    t.hybrid_interrupt(d, at=T)
    next(row for row in t._rows if row["kind"] == Kind.MSI_SET_IRQ)["device"] = 0
    assert rows(t)[0]["injected_at"] == T + 3 * Trace.STEP


def test_a_pin_that_the_guest_masked_is_not_called_coalesced() -> None:
    t, d = one_device()
    t.handler(d, irqfd="resample")
    t.inject(d, returned=-1)
    assert rows(t)[0]["coalesced"] is None


def test_reentries_before_qemu_unmaps_the_bars() -> None:
    t, d = one_device()
    t.handler(d)
    t.qemu_takes(d)
    for _ in range(3):
        t.guest_eoi(d, resample=False)
    t.bar_access(d)
    t.qemu_eoi(d)
    t.guest_eoi(d, resample=False)
    result = t.reconstruct()
    assert result.interrupts["reentries"].tolist() == [3]
    counters = dict(zip(result.counters["counter"], result.counters["count"], strict=True))
    assert counters["reentries"] == 3


def test_spurious_wakeup_takes_nothing() -> None:
    t, d = one_device()
    t.userspace_interrupt(d)
    t.qemu_takes(d, found=False)
    result = t.reconstruct()
    assert len(result.interrupts) == 1
    assert "spurious_wakeups" in set(result.counters["counter"])


def test_noop_unmask_is_a_count() -> None:
    t, d = one_device()
    t.enable(d)
    t.ioctl_unmask(d, proof=False)
    result = t.reconstruct()
    assert len(result.interrupts) == 0
    assert set(result.counters["counter"]) == {"noop_unmasks"}


def test_unmask_while_virq_disabled_does_nothing() -> None:
    t, d = one_device(without(Kind.CHECKED_UNMASK, Kind.ENABLE_IRQ))
    t.handler(d, irqfd="resample")
    t.inject(d)
    t.emit(Kind.MASK, device=d.vdev)  # the guest sets DisINTx
    t.guest_eoi(d)
    t.resample_unmask(d)
    t.emit(Kind.CONFIG_UNMASK, device=d.vdev)
    at = t.now + 1 * Trace.STEP
    t.unmask(d)
    (row,) = rows(t)
    assert (row["outcome"], row["unmasked_at"], row["unmask_proof"]) == ("complete", at + Trace.STEP, "assumed")


def test_unmask_without_proof_does_nothing_where_proof_is_recorded() -> None:
    t, d = one_device()
    t.handler(d, irqfd="resample")
    t.inject(d)
    t.guest_eoi(d)
    t.resample_unmask(d, proof=False)
    assert story(t) == [("kernel", "hardware", "open")]


def test_exclusive_mode_is_proved_by_enable_irq() -> None:
    t, d = one_device()
    t.handler(d, irqfd="resample")
    t.inject(d)
    t.guest_eoi(d)
    t.emit(Kind.UNMASK_ENTRY, device=d.vdev, tid=1)
    t.emit(Kind.ENABLE_IRQ, device=d.vdev, arg0=20, tid=1)
    t.emit(Kind.UNMASK_EXIT, device=d.vdev, tid=1)
    (row,) = rows(t)
    assert (row["outcome"], row["unmask_proof"]) == ("complete", "checked")


def test_guest_unmasking_its_ioapic_pin_resamples_without_an_acknowledgement() -> None:
    t, d = one_device()
    t.handler(d, irqfd="resample")
    t.inject(d, returned=-1)
    t.emit(Kind.RESAMPLER_NOTIFY, vm=d.vm.kvm, arg0=d.gsi, arg1=2, tgid=d.vm.pid, tid=d.vm.vcpu)
    t.resample_unmask(d, returned=1)
    t.worker_signals(d, "resample")
    t.inject(d)
    t.guest_eoi(d)
    t.resample_unmask(d)
    first, second = rows(t)
    assert (first["outcome"], second["origin"], second["parent_id"]) == ("complete", "resignal", first["id"])
    assert first["acknowledged_at"] == second["acknowledged_at"]


# ---- set-up, switches, teardown


def test_signalled_in_the_window_and_injected_by_the_new_irqfd() -> None:
    t, d = one_device()
    t.enable(d)
    t.handler(d)
    t.enable_kvm(d)
    t.inject(d)
    t.guest_eoi(d)
    # The enable's own unmask came first here; only the acknowledgement was missing.
    assert story(t) == [("kernel", "hardware", "complete")]


def test_a_switch_to_the_bypass_cancels_what_qemu_had_taken() -> None:
    t, d = one_device()
    t.enable(d)
    t.handler(d)
    t.qemu_takes(d)
    t.enable_kvm(d)
    assert story(t) == [("userspace", "hardware", "cancelled")]


def test_a_switch_from_the_bypass_cancels_what_was_not_acknowledged_and_resignals() -> None:
    t, d = one_device()
    t.enable(d)
    t.enable_kvm(d)
    t.handler(d, irqfd="resample")
    t.inject(d)
    t.disable_kvm(d, returned=1)
    t.qemu_takes(d)
    t.qemu_eoi(d)
    t.guest_eoi(d, resample=False)
    assert story(t) == [("kernel", "hardware", "cancelled"), ("userspace", "resignal", "complete")]


@pytest.mark.parametrize("end", ["disable", "vm", "device"])
def test_teardown_cancels_what_is_in_flight(end: str) -> None:
    t, d = one_device()
    t.enable(d)
    t.enable_kvm(d)
    t.handler(d, irqfd="resample")
    if end == "disable":
        t.disable(d)
    elif end == "vm":
        t.emit(Kind.VM, vm=d.vm.kvm, aux=d.vm.id, value=0)
    else:
        t.emit(Kind.DEVICE, device=d.vdev, aux=d.id, value=0)
    assert story(t) == [("kernel", "hardware", "cancelled")]


def test_teardown_leaves_settled_interrupts_complete() -> None:
    t, d = one_device()
    t.enable(d)
    t.handler(d)
    t.qemu_takes(d)
    t.bar_access(d)
    t.qemu_eoi(d)
    t.disable(d)  # before the guest's EOI
    (row,) = rows(t)
    assert (row["outcome"], row["eoi_at"], row["bar_accesses"]) == ("complete", None, 1)


def test_closing_an_eventfd_is_no_interrupt() -> None:
    t, d = one_device()
    t.kernel_interrupt(d)
    t.emit(Kind.VIRQFD_WAKEUP, device=d.vdev, link=d.resample, value=0x10)
    t.emit(Kind.IRQFD_WAKEUP, link=d.irqfd, link2=d.resample, vm=d.vm.kvm, value=0x10, arg0=d.gsi, arg1=d.trigger)
    assert len(rows(t)) == 1


def test_addresses_are_used_again() -> None:
    t = Trace()
    a, b = t.device(t.vm()), t.device(t.vm(), bdf="0000:02:00.0")
    t.enable(a)
    t.disable(a)
    b.trigger = a.trigger
    t.set_irqs(b, TRIGGER_EVENTFD, link=b.trigger)
    t.handler(b)
    t.qemu_takes(b)
    assert [(r["device"], r["path"]) for r in rows(t)] == [(1, "userspace")]


# ---- the edges of a trace


def test_the_trace_ends_first() -> None:
    t, d = one_device()
    t.handler(d, irqfd="resample")
    assert story(t) == [("kernel", "hardware", "open")]


def test_the_trace_begins_with_an_injection() -> None:
    t, d = one_device()
    t.set_irqs_entry(d, TRIGGER_EVENTFD, link=d.trigger)  # names the eventfd; its exit is not in the trace
    t.kernel_interrupt(d)
    for kind in (Kind.HANDLER_ENTRY, Kind.EVENTFD_SIGNAL, Kind.IRQFD_WAKEUP, Kind.HANDLER_EXIT):
        t._rows = [row for row in t._rows if row["kind"] != kind or row.get("flags") == Flag.IN_RESAMPLER_ACK]
    for row in t._rows:
        if row["kind"] == Kind.IRQFD_INJECT:
            row["device"] = d.vdev
    (row,) = rows(t)
    assert story(t) == [("kernel", "unknown", "headless")]
    assert row["raised_at"] is row["signalled_at"] is None
    assert None not in (row["injected_at"], row["acknowledged_at"], row["unmasked_at"])


def test_the_trace_begins_with_an_acknowledgement() -> None:
    t, d = one_device()
    t.guest_eoi(d)
    t.resample_unmask(d)
    t.kernel_interrupt(d)
    first, second = rows(t)
    assert (first["outcome"], first["path"], first["gsi"]) == ("headless", "kernel", 21)
    assert None not in (first["acknowledged_at"], first["eoi_at"], first["unmasked_at"])
    assert second["outcome"] == "complete"


def test_the_trace_begins_with_an_unmask_that_does_nothing() -> None:
    t, d = one_device()
    t.ioctl_unmask(d, proof=False)
    assert rows(t) == []


def test_lost_events() -> None:
    t, d = one_device()
    t.kernel_interrupt(d)
    t.handler(d, irqfd="resample")
    t.lost(7)
    t.guest_eoi(d)
    t.resample_unmask(d)
    t.kernel_interrupt(d)
    assert [outcome for _, _, outcome in story(t)] == ["complete", "lossy", "complete"]
    counters = t.reconstruct().counters
    assert counters[counters["counter"] == "lost"][["device", "count"]].isna().to_numpy().tolist() == [[True, False]]


def test_lost_events_of_another_device() -> None:
    t = Trace()
    a, b = t.device(t.vm()), t.device(t.vm(), bdf="0000:02:00.0")
    t.handler(a, irqfd="resample")
    t.handler(b, irqfd="resample")
    t.lost(1, device=b.vdev)
    assert [(r["device"], r["outcome"]) for r in rows(t)] == [(0, "open"), (1, "lossy")]


def test_a_claim_proves_that_an_unmask_was_missed() -> None:
    t, d = one_device()
    t.kernel_interrupt(d)
    for kind in (Kind.UNMASK_ENTRY, Kind.CHECKED_UNMASK, Kind.UNMASK_EXIT):
        t.drop(kind)
    t.kernel_interrupt(d)
    assert [outcome for _, _, outcome in story(t)] == ["lossy", "complete"]


def test_the_hardware_may_fire_again_before_the_unmask_has_returned() -> None:
    t, d = one_device()
    t.handler(d, irqfd="resample")
    t.inject(d)
    t.guest_eoi(d)
    opened = t.now + Trace.STEP
    t.emit(Kind.UNMASK_ENTRY, device=d.vdev, tid=1)
    t.emit(Kind.ENABLE_IRQ, device=d.vdev, arg0=20, tid=1)
    t.handler(d, irqfd="resample")
    t.emit(Kind.UNMASK_EXIT, device=d.vdev, tid=1)
    first, second = rows(t)
    assert (first["outcome"], first["unmasked_at"], first["unmask_proof"]) == ("complete", opened, "checked")
    assert (second["outcome"], second["unmasked_at"]) == ("open", None)


@pytest.mark.parametrize(
    ("missing", "kept"),
    [
        ((Kind.UNMASK_EXIT,), "unmasked_at"),
        ((Kind.KVM_ACK,), "eoi_at"),
        ((Kind.RESAMPLER_ACK,), "acknowledged_at"),
        ((Kind.KVM_ACK, Kind.RESAMPLER_ACK), "acknowledged_at"),
        ((Kind.EVENTFD_SIGNAL,), "signalled_at"),
        ((Kind.IRQFD_INJECT, Kind.KVM_SET_IRQ, Kind.KVM_SET_IRQ_EXIT), "injected_at"),
        ((Kind.KVM_SET_IRQ_EXIT,), "coalesced"),
    ],
)
def test_a_missing_probe_leaves_the_outcome_complete(missing: tuple[Kind, ...], kept: str) -> None:
    t, d = one_device(without(*missing))
    for _ in range(3):
        t.kernel_interrupt(d)
    assert [outcome for _, _, outcome in story(t)] == ["complete"] * 3
    substitutes = {(Kind.KVM_ACK,), (Kind.RESAMPLER_ACK,), (Kind.EVENTFD_SIGNAL,), (Kind.KVM_SET_IRQ_EXIT,)}
    assert (rows(t)[0][kept] is not None) == (missing in substitutes)


def test_orders_only_clock_has_no_durations() -> None:
    t, d = one_device()
    t.kernel_interrupt(d)
    frame = t.reconstruct(clock_orders_only=True).interrupts
    durations = [name for name in frames.INTERRUPTS if name.endswith("_ns")]
    assert frame[durations].isna().all(axis=None)
    assert frame["raised_at"].notna().all()
