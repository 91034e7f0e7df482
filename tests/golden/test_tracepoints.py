"""Golden traces of what tracepoints tell where no kprobe does."""

from __future__ import annotations

from typing import Any

import pandas as pd
import pytest

from intxtrace.events import Flag, Kind, Work
from tests.dsl import ALL_KINDS, DeviceHandle, Trace

TRACEPOINTS = (
    Kind.HANDLER_ENTRY,
    Kind.HANDLER_EXIT,
    Kind.WORK_QUEUED,
    Kind.WORK_STARTED,
    Kind.KVM_SET_IRQ,
    Kind.KVM_ACK,
    Kind.APIC_ACCEPT,
)
T = 1_000_000_000


class Points(Trace):
    """A trace of tracepoints only: no VM, and work items instead of functions."""

    def __init__(self, probes: tuple[Kind, ...] = TRACEPOINTS) -> None:
        super().__init__(probes)

    def pair(self, *, gsi: int = 16, other_gsi: int = 16) -> tuple[DeviceHandle, DeviceHandle]:
        """Two devices; of whose VMs nothing is known."""
        vm = self.vm()
        both = self.device(vm, gsi=gsi), self.device(vm, bdf="0000:02:00.0", gsi=other_gsi)
        for device in self.tables.devices:
            device.vm_pid = None
        return both

    def work(self, kind: Kind, d: DeviceHandle, function: Work, **fields: int) -> None:
        """A work item is queued or begun; it is known by nothing but its own hashed pointer."""
        self.emit(kind, link=d.irqfd + function, value=function, flags=fields.pop("flags", 0) | Flag.FALLBACK, **fields)

    def point_handler(self, d: DeviceHandle, *, queues: bool = True, handled: bool = True) -> None:
        """irq_handler_entry and _exit, with the queueing of irqfd_inject between them."""
        self.emit(Kind.HANDLER_ENTRY, device=d.vdev, arg0=d.host_irq, flags=Flag.FALLBACK, cpu=1)
        if queues:
            self.work(Kind.WORK_QUEUED, d, Work.IRQFD_INJECT, device=d.vdev, flags=Flag.IN_HANDLER, cpu=1)
        self.emit(Kind.HANDLER_EXIT, device=d.vdev, value=int(handled), flags=Flag.FALLBACK, cpu=1)

    def point_inject(self, d: DeviceHandle, *, accepted: bool = True, source: int = 1) -> None:
        """The worker injects; KVM's tracepoints name no VM."""
        self.work(Kind.WORK_STARTED, d, Work.IRQFD_INJECT, tid=50)
        self.raises(d, source=source, tid=50, accepted=accepted)

    def msi_handler(self, d: DeviceHandle) -> int:
        """irq_handler_entry and _exit, with a split irqchip's injection between them; when that is."""
        self.emit(Kind.HANDLER_ENTRY, device=d.vdev, arg0=d.host_irq, flags=Flag.FALLBACK, cpu=1)
        injected = self.now
        self.emit(Kind.MSI_SET_IRQ, device=d.vdev, value=64, flags=Flag.IN_HANDLER, cpu=1)
        self.emit(Kind.HANDLER_EXIT, device=d.vdev, value=1, flags=Flag.FALLBACK, cpu=1)
        return injected

    def raises(self, d: DeviceHandle, *, source: int, tid: int, level: int = 1, accepted: bool = True) -> None:
        self.emit(Kind.KVM_SET_IRQ, value=level, arg0=d.gsi, arg1=source, flags=Flag.FALLBACK, tid=tid)
        if accepted and level:
            self.emit(Kind.APIC_ACCEPT, value=64, arg0=d.gsi, tid=tid)

    def point_ack(self, d: DeviceHandle, thread: int = 100, tgid: int = 0) -> None:
        self.emit(Kind.KVM_ACK, arg0=d.gsi, arg1=2, flags=Flag.FALLBACK, tid=thread, tgid=tgid)
        self.emit(Kind.KVM_SET_IRQ, value=0, arg0=d.gsi, arg1=1, flags=Flag.FALLBACK, tid=thread, tgid=tgid)

    def point_refused(self, d: DeviceHandle, thread: int = 100) -> None:
        """The unmask returned 1: virqfd_inject is queued in the EOI's thread, and its worker signals again."""
        self.work(Kind.WORK_QUEUED, d, Work.VIRQFD_INJECT, tid=thread)
        self.work(Kind.WORK_STARTED, d, Work.VIRQFD_INJECT, tid=51)
        self.work(Kind.WORK_QUEUED, d, Work.IRQFD_INJECT, flags=Flag.IN_VIRQFD_INJECT, tid=51)

    def rows(self) -> list[dict[str, Any]]:
        frame = self.reconstruct().interrupts
        return [{str(k): None if pd.isna(v) else v for k, v in row.items()} for row in frame.to_dict("records")]

    def states(self, d: DeviceHandle) -> list[str]:
        frame = self.reconstruct().states
        return [str(state) for state in frame[frame["device"] == d.id]["state"]]

    def ended(self) -> dict[str, list[bool]]:
        """Of each device's interrupts: whether its EOI is known."""
        found: dict[str, list[bool]] = {}
        for row in sorted(self.rows(), key=lambda row: row["raised_at"]):
            found.setdefault(row["bdf"], []).append(row["eoi_at"] is not None)
        return found


def test_kernel_path() -> None:
    t = Points()
    d, _ = t.pair()
    t.now = T
    t.point_handler(d)
    t.point_inject(d)
    t.point_ack(d)
    (row,) = t.rows()
    assert (row["path"], row["origin"], row["outcome"], row["coalesced"]) == ("kernel", "hardware", "complete", False)
    stages = [row[s] and (row[s] - T) // Trace.STEP for s in ("raised_at", "signalled_at", "injected_at", "eoi_at")]
    assert stages == [0, 1, 4, 6]
    assert row["gsi"] == 16
    assert t.states(d) == ["kernel"]
    # The tracepoints show no unmask that returns 0.
    assert row["unmasked_at"] is None


def test_an_irqfd_without_resampler_is_the_hybrid_path() -> None:
    t = Points()
    d, _ = t.pair()
    t.point_handler(d)
    t.point_inject(d, source=0)
    assert [row["path"] for row in t.rows()] == ["hybrid"]
    assert t.states(d) == ["hybrid"]


def test_an_msi_inside_the_handler_is_the_hybrid_path() -> None:
    """`on_msi_of_handler`: a split irqchip's route injects in irqfd_wakeup, which no tracepoint shows."""
    t = Points((*TRACEPOINTS, Kind.MSI_SET_IRQ))
    d, _ = t.pair()
    injected = t.msi_handler(d)
    t.raises(d, source=0, tid=1)  # The line of an emulated device.
    (row,) = t.rows()
    assert (row["path"], row["signalled_at"], row["injected_at"]) == ("hybrid", None, injected)
    assert t.states(d) == ["hybrid"]


def test_what_qemu_acknowledges_is_open_until_it_does() -> None:
    """`on_msi_of_handler`: the irqchip is split, so the guest's EOI goes to QEMU, which writes the resamplefd."""
    t = Points((*TRACEPOINTS, Kind.MSI_SET_IRQ, Kind.EVENTFD_WRITE, Kind.VIRQFD_WAKEUP))
    d, _ = t.pair()
    for _ in range(2):
        t.msi_handler(d)
    # The first one was unmasked, as the second one proves; but its acknowledgement would have been seen.
    assert [(row["path"], row["outcome"]) for row in t.rows()] == [("hybrid", "open")] * 2


def test_an_msi_elsewhere_or_after_another_is_not_the_handlers() -> None:
    t = Points((*TRACEPOINTS, Kind.MSI_SET_IRQ))
    d, other = t.pair()
    t.point_handler(d, queues=False)
    t.emit(Kind.MSI_SET_IRQ, device=d.vdev, value=64)
    t.emit(Kind.MSI_SET_IRQ, device=other.vdev + 8, value=64, flags=Flag.IN_HANDLER, cpu=1)
    t.emit(Kind.HANDLER_ENTRY, device=other.vdev, arg0=other.host_irq, flags=Flag.FALLBACK, cpu=1)
    injected = t.now
    for _ in range(2):
        t.emit(Kind.MSI_SET_IRQ, device=other.vdev, value=64, flags=Flag.IN_HANDLER, cpu=1)
    t.emit(Kind.HANDLER_EXIT, device=other.vdev, value=1, flags=Flag.FALLBACK, cpu=1)
    assert [(row["bdf"], row["path"], row["injected_at"]) for row in t.rows()] == [
        (d.bdf, "unknown", None),
        (other.bdf, "hybrid", injected),
    ]


@pytest.mark.parametrize(("kind", "value"), [(Kind.KVM_EOI, 64), (Kind.USERSPACE_EXIT, 26), (Kind.USERSPACE_EXIT, 6)])
def test_what_a_vcpu_raises_is_an_emulated_device(kind: Kind, value: int) -> None:
    """`on_kvm_set_irq`: vfio_intx_interrupt runs in QEMU's main loop, never in a thread that runs a guest."""
    t = Points((*TRACEPOINTS, kind))
    d, _ = t.pair()
    t.emit(kind, value=value, tid=100)
    t.point_handler(d, queues=False)
    t.emit(Kind.KVM_SET_IRQ, value=1, arg0=4, tid=100)
    assert [(row["path"], row["injected_at"]) for row in t.rows()] == [("unknown", None)]
    t.raises(d, source=0, tid=1)
    assert [(row["path"], row["gsi"]) for row in t.rows()] == [("userspace", 16)]


def test_resignal_is_the_queueing_of_virqfd_inject() -> None:
    t = Points()
    d, _ = t.pair()
    for _ in range(2):
        t.point_handler(d)
        t.point_inject(d)
        t.point_ack(d)
        refused = t.now
        t.point_refused(d)
        t.point_inject(d)
        t.point_ack(d)
    rows = t.rows()
    assert [row["origin"] for row in rows] == ["hardware", "resignal"] * 2
    assert [row["outcome"] for row in rows] == ["complete"] * 4
    assert [row["parent_id"] for row in rows] == [None, 1, None, 3]
    assert rows[3]["raised_at"] == refused
    assert rows[3]["signalled_at"] == refused + 2 * Trace.STEP


def test_a_signal_outside_of_any_call_has_no_known_origin() -> None:
    t = Points()
    d, _ = t.pair()
    t.point_handler(d)
    t.point_inject(d)
    t.point_ack(d)
    t.work(Kind.WORK_QUEUED, d, Work.IRQFD_INJECT, tid=7)
    t.point_inject(d)
    t.point_ack(d)
    assert [(row["origin"], row["path"]) for row in t.rows()] == [("hardware", "kernel"), ("unknown", "kernel")]
    assert [(row["signalled_at"] is None, row["outcome"]) for row in t.rows()] == [(False, "complete")] * 2


def test_work_of_nobody_known_is_left_alone() -> None:
    t = Points()
    d, other = t.pair()
    t.point_handler(d)
    t.work(Kind.WORK_QUEUED, other, Work.IRQFD_INJECT, tid=7)
    t.point_inject(other)
    assert [row["bdf"] for row in t.rows()] == [d.bdf]
    assert t.rows()[0]["injected_at"] is None


def test_a_resignal_whose_refused_unmask_was_missed() -> None:
    """`on_irqfd_queued`: the worker of virqfd_inject signals only what an unmask refused."""
    t = Points()
    d, _ = t.pair()
    t.point_handler(d)
    t.point_inject(d)
    t.point_ack(d)
    t.point_refused(d)
    t.drop(Kind.WORK_STARTED)
    del t._rows[-2]
    t.point_inject(d)
    t.point_ack(d)
    assert [(row["origin"], row["raised_at"] is None) for row in t.rows()] == [("hardware", False), ("resignal", True)]


def test_known_work_needs_no_known_thread() -> None:
    """`on_virqfd_queued`: the work item of a device's virqfd stays its own."""
    t = Points()
    d, _ = t.pair()
    for thread in (100, 77):
        t.point_handler(d)
        t.point_inject(d)
        t.point_ack(d)
        t.point_refused(d, thread=thread)
    assert [row["origin"] for row in t.rows()] == ["hardware", "resignal"] * 2
    assert all(row["raised_at"] for row in t.rows())


def test_a_thread_that_ended_something_else_since_has_ended_nothing_of_ours() -> None:
    """`on_ack_of_unnamed_vm`."""
    t = Points()
    d, _ = t.pair()
    t.point_handler(d)
    t.point_inject(d)
    t.point_ack(d)
    t.emit(Kind.KVM_ACK, arg0=9, arg1=2, flags=Flag.FALLBACK, tid=100)
    t.work(Kind.WORK_QUEUED, d, Work.VIRQFD_INJECT, tid=100)
    assert [row["origin"] for row in t.rows()] == ["hardware"]


def test_an_eoi_of_an_unnamed_vm_that_no_resampler_takes_is_another_one() -> None:
    """`on_ack_of_unnamed_vm`: the one before it reached irqfd_resampler_ack."""
    t = Points(ALL_KINDS)
    d, _ = t.pair()
    task = {"tgid": 7, "tid": 7}
    t.emit(Kind.RESAMPLER_ACK, vm=d.vm.kvm, arg0=5, **task)
    t.emit(Kind.KVM_ACK, arg0=9, arg1=2, **task)
    t.unmask(d, tgid=7, tid=7)
    assert [row["path"] for row in t.rows()] == ["unknown"]


def test_work_of_a_thread_that_ended_nothing_is_left_alone() -> None:
    """`on_virqfd_queued`: virqfd_wakeup queues it in the thread of the guest's EOI."""
    t = Points()
    d, _ = t.pair()
    t.point_handler(d)
    t.point_inject(d)
    t.work(Kind.WORK_QUEUED, d, Work.VIRQFD_INJECT, tid=77)
    assert [row["origin"] for row in t.rows()] == ["hardware"]


def test_what_an_irqfd_took_qemu_does_not_take() -> None:
    """`on_irqfd_queued`: QEMU raises the line of an emulated device before the worker begins."""
    t = Points()
    d, _ = t.pair()
    t.point_handler(d)
    t.emit(Kind.KVM_SET_IRQ, value=1, arg0=4, tid=9)
    t.point_inject(d)
    assert [row["path"] for row in t.rows()] == ["kernel"]


def test_kprobes_are_believed_before_work_items() -> None:
    t = Points(ALL_KINDS)
    d, _ = t.pair()
    t.kernel_resignal_interrupt(d)
    before = len(t.rows())
    t.work(Kind.WORK_QUEUED, d, Work.IRQFD_INJECT, device=d.vdev, flags=Flag.IN_HANDLER)
    t.work(Kind.WORK_QUEUED, d, Work.VIRQFD_INJECT)
    t.work(Kind.WORK_STARTED, d, Work.IRQFD_INJECT)
    assert len(t.rows()) == before == 2


def test_userspace_path() -> None:
    t = Points()
    d, _ = t.pair()
    for _ in range(2):
        t.point_handler(d, queues=False)
        t.raises(d, source=0, tid=1)
        lowered = t.now
        t.raises(d, source=0, tid=100, level=0)
        t.point_ack(d)
    first, second = t.rows()
    assert (first["path"], first["outcome"], second["path"], second["gsi"]) == (
        "userspace",
        "complete",
        "userspace",
        16,
    )
    assert second["acknowledged_at"] == lowered
    assert second["eoi_at"] > lowered


def test_a_resignal_that_no_probe_can_show_is_of_unknown_origin_and_complete() -> None:
    """`take`: on the userspace path it is signalled inside the unmask ioctl, without a handler."""
    t = Points((*TRACEPOINTS, Kind.QEMU_INTERRUPT))
    d, _ = t.pair()
    by_row = {"device": d.id, "flags": Flag.SYNTHETIC | Flag.FALLBACK}
    for claimed in (False, True, False, False):  # The first one was claimed before the trace.
        if claimed:
            t.emit(Kind.HANDLER_ENTRY, arg0=d.host_irq, cpu=1, **by_row)
            t.emit(Kind.HANDLER_EXIT, value=1, cpu=1, **by_row)
        t.emit(Kind.QEMU_INTERRUPT, tid=1, **by_row)
        t.raises(d, source=0, tid=1)
        t.raises(d, source=0, tid=100, level=0)
        t.point_ack(d)
    assert [(row["origin"], row["outcome"]) for row in t.rows()] == [
        ("unknown", "headless"),
        ("hardware", "complete"),
        ("unknown", "complete"),
        ("unknown", "complete"),
    ]


def test_a_lowered_line_of_two_that_qemu_raised_is_nobodys() -> None:
    t = Points()
    a, b = t.pair()
    for d in (a, b):
        t.point_handler(d, queues=False)
        t.raises(d, source=0, tid=1)
    t.raises(a, source=0, tid=100, level=0)
    assert [row["acknowledged_at"] for row in t.rows()] == [None, None]


def test_two_devices_of_one_vm_merge_and_end_together() -> None:
    t = Points()
    a, b = t.pair()
    t.point_handler(a)
    t.point_handler(b)
    t.point_inject(a)
    t.point_inject(b, accepted=False)
    t.point_ack(a)
    rows = t.rows()
    assert sorted(row["coalesced"] for row in rows) == [False, True]
    assert len({row["eoi_at"] for row in rows}) == 1
    assert rows[0]["eoi_at"] is not None


def test_an_eoi_that_may_be_of_either_vm_is_given_to_none() -> None:
    t = Points()
    a, b = t.pair()
    for d in (a, b):
        t.point_handler(d)
        t.point_inject(d)
    t.point_ack(a, thread=100)
    t.point_ack(b, thread=200)  # Both have had theirs now, but which was whose?
    for d, thread in ((a, 100), (b, 200)):
        t.point_handler(d)
        t.point_inject(d)
        t.point_ack(d, thread=thread)
    assert t.ended() == {a.bdf: [False, True], b.bdf: [False, True]}
    assert {row["outcome"] for row in t.rows()} == {"complete"}


@pytest.mark.parametrize("tgids", [(0, 0), (1000, 2000)])
def test_threads_that_ended_one_devices_interrupts_before_tell_them_apart(tgids: tuple[int, int]) -> None:
    t = Points()
    a, b = t.pair()
    for d, thread, tgid in ((a, 100, tgids[0]), (b, 200, tgids[1])):
        t.point_handler(d)
        t.point_inject(d)
        t.point_ack(d, thread=thread, tgid=tgid)
    for d in (a, b):
        t.point_handler(d)
        t.point_inject(d)
    at = t.now
    # Where the process is known, another vCPU of it does as well.
    t.point_ack(b, thread=201 if tgids[1] else 200, tgid=tgids[1])
    by_device = {row["bdf"]: row["eoi_at"] for row in t.rows() if row["id"] > 2}
    assert by_device == {a.bdf: None, b.bdf: at}


def test_other_gsis_are_other_lines() -> None:
    t = Points()
    a, b = t.pair(other_gsi=17)
    for d in (a, b):
        t.point_handler(d)
        t.point_inject(d)
    t.point_ack(b)
    assert t.ended() == {a.bdf: [False], b.bdf: [True]}


def test_the_cascade_ends_nothing() -> None:
    t = Points()
    d, _ = t.pair(gsi=2)
    t.point_handler(d)
    t.point_inject(d)
    t.emit(Kind.KVM_ACK, arg0=2, arg1=0, flags=Flag.FALLBACK, tid=100)
    assert t.ended() == {d.bdf: [False]}


def test_a_new_claim_proves_the_eoi_that_could_not_be_told() -> None:
    t = Points()
    a, b = t.pair()
    for d in (a, b):
        t.point_handler(d)
        t.point_inject(d)
    t.point_ack(a)
    t.point_handler(a)
    first = next(row for row in t.rows() if row["bdf"] == a.bdf)
    assert (first["outcome"], first["eoi_at"]) == ("complete", None)


# ---- a handler that the kprobe missed


def test_a_missed_handler_is_not_held() -> None:
    t = Points(ALL_KINDS)
    d, _ = t.pair()
    t.kernel_interrupt(d)
    t.emit(Kind.HANDLER_ENTRY, device=d.vdev, arg0=d.host_irq, flags=Flag.FALLBACK)
    t.emit(Kind.HANDLER_EXIT, device=d.vdev, value=1, arg0=d.host_irq, flags=Flag.FALLBACK)
    t.inject(d)
    t.guest_eoi(d)
    t.resample_unmask(d)
    _, missed = t.rows()
    assert (missed["path"], missed["origin"], missed["outcome"]) == ("kernel", "hardware", "complete")
    assert missed["signalled_at"] is None


def test_a_missed_handler_may_have_signalled_qemu() -> None:
    t = Points(ALL_KINDS)
    d, _ = t.pair()
    t.userspace_interrupt(d)
    t.emit(Kind.HANDLER_ENTRY, device=d.vdev, arg0=d.host_irq, flags=Flag.FALLBACK)
    t.emit(Kind.HANDLER_EXIT, device=d.vdev, value=1, arg0=d.host_irq, flags=Flag.FALLBACK)
    t.qemu_takes(d)
    t.qemu_eoi(d)
    t.guest_eoi(d, resample=False)
    assert [(row["path"], row["outcome"]) for row in t.rows()] == [("userspace", "complete")] * 2


def test_a_claim_whose_entry_is_before_the_trace_is_headless() -> None:
    t = Points(ALL_KINDS)
    d, _ = t.pair()
    t.handler(d, irqfd="resample")
    t._rows = [row for row in t._rows if row["kind"] != Kind.HANDLER_ENTRY]
    t.inject(d)
    t.guest_eoi(d)
    t.resample_unmask(d)
    (row,) = t.rows()
    assert (row["origin"], row["outcome"], row["raised_at"]) == ("hardware", "headless", None)


# ---- merging, where the return of kvm_set_irq is not recorded


def test_what_no_local_apic_accepted_has_merged() -> None:
    t = Points(tuple(kind for kind in ALL_KINDS if kind != Kind.KVM_SET_IRQ_EXIT))
    d, _ = t.pair()
    for accepted in (True, False):
        t.handler(d, irqfd="resample")
        t.inject(d)
        if accepted:
            t.emit(Kind.APIC_ACCEPT, value=64, vm=d.vm.kvm, arg0=d.gsi, tgid=2, tid=d.vm.pid + 50)
            t.ioctl_unmask(d)
    t.guest_eoi(d)
    t.resample_unmask(d)
    assert [row["coalesced"] for row in t.rows()] == [False, True]
