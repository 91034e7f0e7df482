"""What probes cost is measured for real on the running kernel: no time is asserted, but what must be true of one."""

from __future__ import annotations

import ctypes as ct
import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from intxtrace.capture import attach, kernel, overhead
from intxtrace.capture.attach import Attached
from intxtrace.capture.btf import Btf, Function
from intxtrace.capture.host import installed_qemu
from intxtrace.capture.overhead import RETURN_0, Calibration, counting_runs, setitimer
from intxtrace.capture.program import Probes, _patch_slot, _Program, _takes_fentry
from intxtrace.capture.qemu_functions import find_functions
from intxtrace.capture.ring import own_event
from intxtrace.capture.run_times import ENOUGH_INTERRUPTS, RunTimes
from intxtrace.events import Kind
from intxtrace.trace.tables import Probe
from tests.native.getppid import KIND, Getppid

pytestmark = pytest.mark.root

STATS_ENABLED = Path("/proc/sys/kernel/bpf_stats_enabled")
BODIES = [code for _, code in overhead._CODE]


@pytest.fixture(autouse=True)
def _nothing_stays() -> Iterator[None]:
    before = (STATS_ENABLED.read_text(), sorted(os.listdir("/proc/self/fd")))  # noqa: PTH208
    yield
    assert (STATS_ENABLED.read_text(), sorted(os.listdir("/proc/self/fd"))) == before  # noqa: PTH208


@pytest.fixture(name="function")
def _function() -> Function | None:
    btf = Btf()
    try:
        return btf.function(setitimer())
    finally:
        btf.close()


def watched(*methods: str, target: str = "a function") -> list[Attached]:
    return [Attached(-1, method, target) for method in methods]


@pytest.mark.parametrize("begin", ["4156", "55", "f30f1efa", "4883ec28"])
def test_a_uprobe_costs_something(begin: str) -> None:
    with Calibration(None) as calibration:
        cost = calibration.cost(watched("uprobe", target=begin))
        assert cost is not None
        assert cost > 0
        assert calibration.spent_ns > 0


def test_two_tracepoints_cost_twice_one() -> None:
    with Calibration(None) as calibration:
        one = calibration.cost(watched("raw_tracepoint"))
        assert one is not None
        assert one > 0
        assert calibration.cost(watched("raw_tracepoint") + watched("raw_tracepoint", target="another")) == 2 * one


@pytest.mark.parametrize("methods", [("kprobe",), ("kretprobe",), ("kprobe", "kretprobe")])
def test_a_kprobe_costs_something_where_there_are_any(methods: tuple[str, ...]) -> None:
    with Calibration(None) as calibration:
        cost = calibration.cost(watched(*methods))
    assert (cost is not None) == ("register_kprobe" in kernel.kernel_symbols({"register_kprobe"}))
    assert cost is None or cost > 0


@pytest.mark.parametrize("methods", [("fentry",), ("fexit",), ("fentry", "fexit")])
def test_fentry_costs_something_where_the_kernel_takes_it(methods: tuple[str, ...], function: Function | None) -> None:
    btf = Btf()
    try:
        takes = _takes_fentry(btf)
    finally:
        btf.close()
    with Calibration(function) as calibration:
        cost = calibration.cost(watched(*methods))
    assert (cost is not None) == (takes and function is not None)
    assert cost is None or cost > 0


def test_what_cannot_be_measured_is_not_known(monkeypatch: pytest.MonkeyPatch) -> None:
    with Calibration(None) as calibration:
        assert calibration.cost(watched("fentry")) is None  # no type of setitimer
        assert calibration.cost(watched("fentry") + watched("raw_tracepoint", target="another")) is None
        assert calibration.cost([]) is None

    def refuse() -> int:
        raise PermissionError

    monkeypatch.setattr(kernel, "enable_statistics", refuse)
    with Calibration(None) as calibration:
        assert calibration.cost(watched("raw_tracepoint")) is None


def test_a_program_that_never_runs_has_no_cost(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(overhead, "_TRACEPOINT", "kvm_msi_set_irq")
    with Calibration(None) as calibration:
        assert calibration.cost(watched("raw_tracepoint")) is None


def test_somebodys_timer_is_not_touched(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("signal.getitimer", lambda _: (3.0, 0.0))
    monkeypatch.setattr("signal.setitimer", None)
    with Calibration(None) as calibration:
        assert calibration.cost(watched("raw_tracepoint")) is None


def test_the_kernel_counts_every_run_and_only_while_it_is_asked_to() -> None:
    own, setting = overhead._OwnCode(), STATS_ENABLED.read_text()
    try:
        for body in BODIES:
            probed, plain, held = own.probe(body)
            counted = []
            for calls in (7, 23):
                with counting_runs():
                    assert STATS_ENABLED.read_text() == setting
                    for _ in range(calls):
                        probed()
                        plain()
                probed()
                counted.append(kernel.program_info(held.program).runs)
            assert counted == [7, 30]
    finally:
        own.close()


def test_every_attached_probe_has_a_cost_and_no_other() -> None:
    with Probes(ring_bytes=1 << 16) as probes:
        (qemu, *_) = installed_qemu()
        probes.attach_qemu(find_functions(qemu))
        probes.calibrate()
        known = {row.name for row in probes.table if row.attach_ns is not None}
        assert known == {row.name for row in probes.table if row.state != "missing"}
        assert {"kvm:kvm_eoi", "vfio_intx_eoi"} <= known
        spent = probes.calibration.spent_ns
        probes.calibrate()
        assert probes.calibration.spent_ns == spent
        assert {row.run_ns for row in probes.table} == {row.runs for row in probes.table} == {None}


class Timed:
    """A real program on a real ring, as the only probe."""

    def __init__(self, probe: Getppid) -> None:
        self.probe = probe
        self.probes = object.__new__(Probes)
        self.probes.bpf = probe.bpf
        self.probes.table = [Probe(0, "getppid"), Probe(1, "missing")]
        self.probes._attached = {0: [_Program(Attached(-1, "raw_tracepoint", "sys_enter"), int(KIND), 0)]}

    def call(self, calls: int) -> None:
        self.probe.start(calls)
        self.probe.finish()


def test_run_times_are_taken_from_the_first_event_until_there_was_enough(monkeypatch: pytest.MonkeyPatch) -> None:
    hit, note = own_event(KIND, 1), own_event(Kind.PROBE, 1)
    with Getppid(1 << 16) as probe:
        timed = Timed(probe)
        row, missing = timed.probes.table
        run_times = RunTimes(timed.probes)
        for events in (note[:0], note):
            timed.call(5)
            run_times.watch(events, 0)  # no probe was hit yet
        run_times.watch(hit, 1)
        timed.call(1_003)
        run_times.watch(hit, ENOUGH_INTERRUPTS - 1)
        timed.call(4)
        assert timed.probes.table[0].runs is None
        run_times.watch(note[:0], ENOUGH_INTERRUPTS)
        timed.call(5)
        run_times.watch(np.concatenate([hit, hit]), ENOUGH_INTERRUPTS + 2)
        run_times.finish()
        # Every system call of every process ran the program meanwhile: those are not in it, and lost events are.
        assert (row.runs, probe.emitted) == (1_007, 1_022)
        assert probe.lost > 0
        assert row.run_ns is not None
        assert row.run_ns > 0
        assert (missing.runs, missing.run_ns) == (None, None)

        monkeypatch.setattr("intxtrace.capture.run_times.ENOUGH_NS", 0)
        bounded = RunTimes(timed.probes)
        bounded.watch(hit, 1)
        timed.call(7)
        bounded.watch(note[:0], 1)
        timed.call(5)
        bounded.finish()
        assert row.runs == 1_014


def test_nothing_is_timed_before_it_is_asked_for() -> None:
    with Getppid(1 << 16) as probe:
        timed = Timed(probe)
        timed.call(9)
        assert timed.probes.timed(0) == [(0, [])]
        RunTimes(timed.probes).finish()
        assert timed.probes.table[0].runs is None


def test_each_binary_has_run_times_of_its_own() -> None:
    own = overhead._OwnCode()
    with Probes(ring_bytes=1 << 16) as probes:
        called, _, _ = own.probe(BODIES[0])
        rows = {slot: Probe(900 + slot, kinds=["QEMU_INTERRUPT"]) for slot in (0, 3)}
        for slot, row in rows.items():
            code = _patch_slot(probes._code("q_vfio_intx_interrupt"), slot)
            held = attach.to_uprobe(code, f"slot{slot}", own.path, 0, os.getpid())
            probes._keep(row, held, probes._plan.numbers["q_vfio_intx_interrupt"] + probes._plan.qemu_programs * slot)
        probes.time_runs(True)
        for _ in range(5):
            called()
        probes._detach_row(900)
        for _ in range(2):
            called()
        ((runs, samples),) = probes.timed(903)
        assert (runs, len(samples)) == (7, 7)
        assert min(samples) > 0
        numbers = [probes._plan.numbers["q_vfio_intx_interrupt"] + probes._plan.qemu_programs * n for n in range(8)]
        by_slot = [sum(cost.runs for cost in probes.bpf[b"costs"][ct.c_int(number)]) for number in numbers]
        assert {slot: runs for slot, runs in enumerate(by_slot) if runs} == {0: 5, 3: 7}
    own.close()


def test_of_very_many_binaries_the_first_few_are_timed() -> None:
    with Probes(ring_bytes=1 << 16) as probes:
        last = len(probes.bpf[b"costs"]) - 1
        assert last == max(probes._plan.numbers.values()) + 7 * probes._plan.qemu_programs
        probes._keep(Probe(900, kinds=["QEMU_EOI"]), attach.to_tracepoint(RETURN_0, "last", "kvm_msi_set_irq"), last)
        probes._keep(
            Probe(901, kinds=["QEMU_EOI"]), attach.to_tracepoint(RETURN_0, "none", "kvm_msi_set_irq"), last + 1
        )
        assert probes.timed(900) == probes.timed(901) == [(0, [])]
