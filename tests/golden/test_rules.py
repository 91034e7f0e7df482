"""Which golden proves which case of the reference, and goldens of the rules that random traces found."""

from __future__ import annotations

import pytest

from intxtrace.events import Flag, Kind
from tests.dsl import ALL_KINDS, TRIGGER_NONE, Trace
from tests.golden import test_interrupts, test_joins, test_states
from tests.golden.test_interrupts import one_device, rows, story, without

T = 1_000_000_000

CASES: dict[str, tuple[str, ...]] = {
    "1 shared line, not ours": ("test_handler_that_claims_nothing_is_a_count",),
    "2 both sharers assert": (
        "test_both_devices_of_a_shared_line_claim",
        "test_one_acknowledgement_ends_all_devices_of_a_gsi",
    ),
    "3 level rises while masked": ("test_pending_the_line_rose_while_masked",),
    "4 re-fire by the worker": ("test_resignal_by_the_worker",),
    "5 exclusive re-fire": ("test_the_hardware_may_fire_again_before_the_unmask_has_returned",),
    "6 DisINTx, then pending": ("test_clearing_disintx_releases_what_rose_meanwhile",),
    "7 EOI while DisINTx": ("test_unmask_while_virq_disabled_does_nothing",),
    "8 claimed, no signal": ("test_held_then_released_by_an_unmask",),
    "9 handler twice before an acknowledgement": ("test_handler_twice_before_one_acknowledgement",),
    "10 signalled again in the ioctl": ("test_resignal_by_the_ioctl_coalesces_into_the_delivery_in_service",),
    "11 coalesced irqfd": ("test_two_wakeups_for_one_injection",),
    "12 trigger written": ("test_software_written_eventfd",),
    "13 loopback": ("test_software_loopback",),
    "14 resamplefd written": ("test_hybrid_path", "test_hybrid_acknowledged_by_the_write_where_qemu_is_not_probed"),
    "15 spurious EOI": ("test_an_eoi_of_nothing_is_nothing",),
    "16 acknowledgement with nothing pending": ("test_an_acknowledgement_of_nothing_unmasks_nothing",),
    "17 several devices on one resampler": ("test_one_acknowledgement_ends_all_devices_of_a_gsi",),
    "18 pin masked by the guest": (
        "test_guest_unmasking_its_ioapic_pin_resamples_without_an_acknowledgement",
        "test_a_pin_that_the_guest_masked_is_not_called_coalesced",
    ),
    "19 APICv": ("test_kernel_path",),
    "20 no EOI of an edge pin": ("test_injected_and_never_acknowledged_is_open",),
    "21 directed EOI": ("test_kernel_path",),
    "22 storm": ("test_so_many_in_flight_that_the_oldest_is_given_up",),
    "23 ioapic_set_irq after the EOI": ("test_the_guest_may_be_quicker_than_the_return_of_kvm_set_irq",),
    "24 begins in the middle": (
        "test_the_trace_begins_with_an_injection",
        "test_the_trace_begins_with_an_acknowledgement",
        "test_the_trace_begins_with_an_unmask_that_does_nothing",
    ),
    "25 ends in the middle": ("test_the_trace_ends_first",),
    "26 lost events": ("test_lost_events", "test_lost_events_of_another_device"),
    "27 teardown": ("test_closing_an_eventfd_is_no_interrupt", "test_teardown_cancels_what_is_in_flight"),
    "28 threaded handler": ("test_the_handler_may_run_in_a_thread",),
    "29 one GSI, two VMs": ("test_the_same_gsi_of_two_vms_is_two_lines",),
    "30 MSI takes over": ("test_msi_takes_over",),
    "31 runtime PM": ("test_unmask_while_virq_disabled_does_nothing",),
    "32 pointers are used again": ("test_addresses_are_used_again", "test_another_vm_at_the_same_address"),
    "33 stale counter": ("test_spurious_wakeup_takes_nothing",),
    "34 injected by the new irqfd": ("test_signalled_in_the_window_and_injected_by_the_new_irqfd",),
    "35 virqfd of an ioeventfd": ("test_the_virqfd_of_an_ioeventfd_is_not_a_device",),
    "path switches in the middle": (
        "test_a_switch_to_the_bypass_cancels_what_qemu_had_taken",
        "test_a_switch_from_the_bypass_cancels_what_was_not_acknowledged_and_resignals",
    ),
    "failed enable_kvm": ("test_failed_bypass_says_why",),
    "split irqchip": ("test_hybrid_path", "test_split_irqchip"),
    "re-entry before the BARs are unmapped": ("test_reentries_before_qemu_unmaps_the_bars",),
    "a BAR read fails": ("test_a_bar_access_that_fails_leaves_the_line_masked",),
    "a probe is missing": ("test_any_one_probe_may_be_missing",),
    "an unmask was missed": ("test_a_claim_proves_that_an_unmask_was_missed",),
    "unmask proof": (
        "test_exclusive_mode_is_proved_by_enable_irq",
        "test_unmask_without_proof_does_nothing_where_proof_is_recorded",
        "test_noop_unmask_is_a_count",
    ),
    "timestamps": ("test_equal_timestamps_keep_the_order_of_arrival",),
    "found by random traces": (
        "test_over_before_the_handler_returned",
        "test_another_unmask_before_the_worker_signals",
        "test_two_unmasks_at_once",
        "test_failing_in_another_way_is_another_state",
        "test_an_unmask_ioctl_that_returns_without_a_signal_has_made_none",
        "test_of_two_that_race_on_a_line_the_first_was_delivered",
        "test_of_two_workers_the_one_that_raised_the_line_first_delivered",
    ),
}
"""The cases of the reference (section 8 of the kernel's path, by number) and of the issue -> their goldens."""


@pytest.mark.parametrize("case", CASES)
def test_every_case_has_its_golden(case: str) -> None:
    defined = {name for module in (test_interrupts, test_joins, test_states) for name in vars(module)} | set(globals())
    assert CASES[case]
    assert set(CASES[case]) <= defined


def test_all_numbered_cases_are_there() -> None:
    assert [case.split()[0] for case in CASES][:35] == [str(n) for n in range(1, 36)]


def test_both_devices_of_a_shared_line_claim() -> None:
    t = Trace()
    vm = t.vm()
    a, b = t.device(vm), t.device(vm, bdf="0000:02:00.0", gsi=22)
    t.handler(a, irqfd="resample")
    t.handler(b, irqfd="resample")
    assert [(r["device"], r["origin"], r["host_irq"], r["gsi"]) for r in rows(t)] == [
        (0, "hardware", 20, 21),
        (1, "hardware", 20, 22),
    ]


def test_clearing_disintx_releases_what_rose_meanwhile() -> None:
    t, d = one_device()
    t.enable(d)
    task = {"tgid": d.vm.pid, "tid": d.vm.vcpu}
    t.emit(Kind.MASK, device=d.vdev, **task)
    t.emit(Kind.CONFIG_UNMASK, device=d.vdev, **task)
    t.unmask(d, returned=1, tgid=d.vm.pid, tid=d.vm.vcpu)
    t.emit(Kind.EVENTFD_SIGNAL, link=d.trigger, device=d.vdev, flags=Flag.IN_CONFIG_UNMASK, **task)
    t.qemu_takes(d)
    t.qemu_eoi(d)
    assert story(t) == [("userspace", "pending", "complete")]


def test_an_eoi_of_nothing_is_nothing() -> None:
    t, d = one_device()
    t.handler(d, irqfd="resample")
    t.inject(d)
    t.emit(Kind.KVM_EOI, value=-1, tgid=d.vm.pid, tid=d.vm.vcpu)
    assert rows(t)[0]["eoi_at"] is None


def test_an_acknowledgement_of_nothing_unmasks_nothing() -> None:
    t, d = one_device()
    t.kernel_interrupt(d)
    t.guest_eoi(d)
    t.resample_unmask(d, proof=False)
    result = t.reconstruct()
    assert len(result.interrupts) == 1
    assert "noop_unmasks" in set(result.counters["counter"])


def test_injected_and_never_acknowledged_is_open() -> None:
    t, d = one_device()
    t.handler(d, irqfd="resample")
    t.inject(d)
    (row,) = rows(t)
    assert (row["outcome"], row["acknowledged_at"]) == ("open", None)


def test_so_many_in_flight_that_the_oldest_is_given_up() -> None:
    t, d = one_device()
    t.enable(d)
    for _ in range(70):
        t.emit(Kind.EVENTFD_WRITE, link=d.trigger, tgid=1, tid=1)
        t.emit(Kind.IRQFD_WAKEUP, link=d.irqfd, link2=d.resample, vm=d.vm.kvm, value=1, arg0=21, arg1=d.trigger, tid=1)
        t.inject(d)
    outcomes = [row["outcome"] for row in rows(t)]
    assert (outcomes.count("lossy"), outcomes.count("open")) == (5 + 1, 64)


def test_the_handler_may_run_in_a_thread() -> None:
    t, d = one_device()
    t.kernel_interrupt(d)
    for event in t._rows[2:6]:
        event.update(tid=155, tgid=155)
    assert story(t) == [("kernel", "hardware", "complete")]


def test_another_vm_at_the_same_address() -> None:
    t, d = one_device()
    t.handler(d, irqfd="resample")
    t.inject(d)
    again = t.vm()
    t._rows[-1]["vm"] = d.vm.kvm
    t.guest_eoi(d)
    assert again.id == 1
    (row,) = rows(t)
    assert (row["outcome"], row["acknowledged_at"]) == ("cancelled", None)


def test_the_virqfd_of_an_ioeventfd_is_not_a_device() -> None:
    t, d = one_device()
    t.emit(Kind.VIRQFD_WAKEUP, device=0x1234, link=d.resample, value=1, tgid=d.vm.pid, tid=d.vm.vcpu)
    result = t.reconstruct()
    assert (len(result.interrupts), len(result.states)) == (0, 1)


def test_a_bar_access_that_fails_leaves_the_line_masked() -> None:
    t, d = one_device()
    t.handler(d)
    t.qemu_takes(d)
    t.bar_access(d)
    (row,) = rows(t)
    assert (row["path"], row["outcome"], row["acknowledged_at"], row["bar_accesses"]) == ("userspace", "open", None, 1)


@pytest.mark.parametrize("missing", ALL_KINDS)
def test_any_one_probe_may_be_missing(missing: Kind) -> None:
    """What is gone is never guessed: a path is right or unknown, and a missing instant is null."""
    for path, whole in (("kernel", Trace.kernel_interrupt), ("hybrid", Trace.hybrid_interrupt)):
        t, d = one_device(without(missing))
        for _ in range(3):
            whole(t, d)
        assert {row["path"] for row in rows(t)} <= {path, "unknown", "held"}, path
        assert len(rows(t)) == 3
    t, d = one_device(without(missing))
    t.enable(d)
    for _ in range(3):
        t.userspace_interrupt(d)
    assert [row["path"] for row in rows(t)] in (["userspace"] * 3, ["unknown"] * 3)


def test_equal_timestamps_keep_the_order_of_arrival() -> None:
    t, d = one_device()
    t.kernel_interrupt(d)
    for event in t._rows:
        event["ts"] = T
    (row,) = rows(t)
    assert (row["outcome"], row["masked_ns"]) == ("complete", 0)


# ---- rules that random traces found


def test_over_before_the_handler_returned() -> None:
    """Other CPUs inject, end and unmask it before the handler's return is stamped: one interrupt, not two."""
    t, d = one_device()
    t.handler(d, irqfd="resample")
    late = t._rows.pop()
    t.inject(d)
    t.guest_eoi(d)
    t.resample_unmask(d)
    t._rows.append({**late, "ts": t.now})
    assert story(t) == [("kernel", "hardware", "complete")]


def test_another_unmask_before_the_worker_signals() -> None:
    """The worker's signal belongs to the interrupt that the refused unmask raised, unmasked meanwhile or not."""
    t, d = one_device()
    t.enable(d)
    t.enable_kvm(d)
    t.handler(d, irqfd="resample")
    t.inject(d)
    t.guest_eoi(d)
    t.resample_unmask(d, returned=1)
    t.ioctl_unmask(d)
    t.worker_signals(d, "resample")
    t.inject(d)
    t.guest_eoi(d)
    assert story(t) == [("kernel", "hardware", "complete"), ("kernel", "resignal", "complete")]


def test_two_unmasks_at_once() -> None:
    """The one that returns without having opened the line says nothing of what the other opened."""
    t, d = one_device()
    t.handler(d, irqfd="resample")
    t.emit(Kind.UNMASK_ENTRY, device=d.vdev, tid=1)
    t.emit(Kind.ENABLE_IRQ, device=d.vdev, tid=1)
    t.emit(Kind.UNMASK_ENTRY, device=d.vdev, tid=2)
    t.handler(d, irqfd="resample")
    opened = t.now
    t.emit(Kind.ENABLE_IRQ, device=d.vdev, tid=2)
    t.emit(Kind.UNMASK_EXIT, device=d.vdev, tid=1)
    t.emit(Kind.UNMASK_EXIT, device=d.vdev, tid=2)
    first, second = rows(t)
    assert (first["unmask_proof"], second["unmasked_at"]) == ("checked", opened + 2 * Trace.STEP)


def test_failing_in_another_way_is_another_state() -> None:
    t, d = one_device()
    t.enable(d)
    t.enable_kvm(d, returned=-22)
    t.enable_kvm(d, returned=-16)
    reasons = t.reconstruct().states["reason"].tolist()
    assert reasons[-2:] == ["KVM_IRQFD failed: Invalid argument", "KVM_IRQFD failed: Device or resource busy"]


def test_a_kick_is_not_over_before_its_injection() -> None:
    t, d = one_device()
    t.enable(d)
    t.set_irqs_entry(d, TRIGGER_NONE)
    inside = {"flags": Flag.IN_SET_IRQS, "device": d.vdev, "tgid": d.vm.pid, "tid": d.vm.main}
    t.emit(Kind.EVENTFD_SIGNAL, link=d.trigger, **inside)
    t.wakeup(d, "edge", **inside)
    t.set_irqs_exit(d, TRIGGER_NONE)
    t.inject(d, irqfd="edge")
    (row,) = rows(t)
    assert (row["path"], row["origin"], row["injected_at"] is None) == ("hybrid", "software", False)


def test_an_unmask_ioctl_that_returns_without_a_signal_has_made_none() -> None:
    """vfio_send_intx_eventfd signals before the ioctl returns, or not at all: no trigger is set."""
    t, d = one_device()
    t.enable(d)
    t.ioctl_unmask(d, returned=1)
    t.drop(Kind.EVENTFD_SIGNAL)
    assert story(t) == [("held", "pending", "open")]
    t.ioctl_unmask(d)
    assert story(t) == [("held", "pending", "complete")]


@pytest.mark.parametrize("at_once", [False, True])
@pytest.mark.parametrize("order", [(0, 1), (1, 0)])
def test_of_two_that_race_on_a_line_the_first_was_delivered(order: tuple[int, int], at_once: bool) -> None:
    """The guest's EOI comes before either kvm_set_irq has returned; equal instants are in the order of the events."""
    t = Trace()
    vm = t.vm()
    devices = [t.device(vm, bdf=f"0000:0{n + 1}:00.0") for n in range(2)]
    for d in devices:
        t.kernel_interrupt(d)
    for d in devices:
        t.handler(d, irqfd="resample")
    for n in order:
        begin = len(t._rows)
        t.inject(devices[n])
        t._rows[begin:] = [{**row, "tid": 9000 + n} for row in t._rows[begin:] if row["kind"] != Kind.KVM_SET_IRQ_EXIT]
    if at_once:
        for row in t._rows[-4:]:
            row["ts"] = t._rows[-1]["ts"]
    t.guest_eoi(*devices)
    for d in devices:
        t.resample_unmask(d)
    racing = {row["bdf"]: row["coalesced"] for row in rows(t)[2:]}
    assert [racing[f"0000:0{n + 1}:00.0"] for n in order] == [False, None]


@pytest.mark.parametrize("first", [0, 1])
def test_of_two_workers_the_one_that_raised_the_line_first_delivered(first: int) -> None:
    """irqfd_inject may begin before another and call kvm_set_irq after it; here in one nanosecond."""
    t = Trace(without(Kind.KVM_SET_IRQ_EXIT))
    vm = t.vm()
    devices = [t.device(vm, bdf=f"0000:0{n + 1}:00.0") for n in range(2)]
    for d in devices:
        t.kernel_interrupt(d)
        t.handler(d, irqfd="resample")
    begun, raised = [], []
    for n, d in enumerate(devices):
        t.inject(d)
        row = {"tid": 9000 + n, "ts": t.now}
        begun.append({**t._rows.pop(-2), **row})
        raised.append({**t._rows.pop(), **row})
    t._rows += [*begun, raised[first], raised[1 - first]]
    for row in t._rows[-4:]:
        row["ts"] = t.now
    t.guest_eoi(*devices)
    t.resample_unmask(devices[0])
    t.resample_unmask(devices[1])
    racing = {row["bdf"]: row["coalesced"] for row in rows(t)[2:]}
    assert [racing[devices[n].bdf] for n in (first, 1 - first)] == [False, True]
