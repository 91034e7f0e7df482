"""What probes cost is measured for real on the running kernel: no time is asserted, but what must be true of one."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import cast

import numpy as np
import pytest

from intxtrace.capture import attach, kernel, overhead
from intxtrace.capture.attach import Attached
from intxtrace.capture.btf import Btf, Function
from intxtrace.capture.host import installed_qemu
from intxtrace.capture.overhead import RETURN_0, Calibration, RunTimes, setitimer, statistics
from intxtrace.capture.program import Probes, _takes_fentry
from intxtrace.capture.qemu_functions import find_functions
from intxtrace.capture.ring import own_event
from intxtrace.events import Kind
from intxtrace.trace.tables import Probe

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
                with statistics():
                    assert STATS_ENABLED.read_text() == setting
                    for _ in range(calls):
                        probed()
                        plain()
                probed()
                counted.append(kernel.program_info(held.program))
            assert [info.runs for info in counted] == [7, 30]
            assert counted[0].run_time_ns < counted[1].run_time_ns
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


class Watched:
    """As much of `Probes` as the run times need: a probe on code of this process, and one on what never happens."""

    def __init__(self) -> None:
        self.own = overhead._OwnCode()
        self.call, _, called = self.own.probe(BODIES[0])
        self.silent = attach.to_tracepoint(RETURN_0, "silent", "kvm_msi_set_irq")
        self.table = [Probe(0, "called"), Probe(1, "silent"), Probe(2, "missing")]
        self._programs = {0: [called], 1: [self.silent]}

    def programs(self, row: int) -> list[Attached]:
        return self._programs.get(row, [])

    def close(self) -> None:
        self.silent.detach()
        self.own.close()


def test_run_times_are_taken_from_the_first_event_to_the_last_that_is_needed(monkeypatch: pytest.MonkeyPatch) -> None:
    probes = Watched()
    run_times = RunTimes(cast(Probes, probes))
    hit, note = own_event(Kind.KVM_EOI, 1), own_event(Kind.PROBE, 1)
    try:
        for events, interrupts in ((note[:0], 0), (note, 0), (hit, 0), (hit, overhead.ENOUGH_INTERRUPTS - 1)):
            probes.call()  # counted once the first event was seen: at the last of these four
            run_times.watch(events, interrupts)
        for _ in range(9):
            probes.call()
        assert probes.table[0].runs is None
        run_times.watch(note[:0], overhead.ENOUGH_INTERRUPTS)
        probes.call()
        run_times.watch(np.concatenate([hit, hit]), overhead.ENOUGH_INTERRUPTS + 2)
        called, silent, missing = probes.table
        assert called.runs == 10
        assert called.run_ns is not None
        assert called.run_ns > 0
        assert (silent.runs, silent.run_ns) == (0, None)
        assert (missing.runs, missing.run_ns) == (None, None)

        monkeypatch.setattr(overhead, "ENOUGH_NS", 0)
        bounded = RunTimes(cast(Probes, probes))
        bounded.watch(hit, 1)
        probes.call()
        bounded.watch(note[:0], 1)
        probes.call()
        bounded.finish()
        assert probes.table[0].runs == 11
    finally:
        probes.close()
