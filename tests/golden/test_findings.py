"""Diagnosis: one golden per finding, and what the recordings are known to show. Nothing else may be named."""

from __future__ import annotations

import io
from pathlib import Path

import pytest

import intxtrace
from intxtrace.analysis import Analysis, Summary
from intxtrace.analysis.results import Finding
from intxtrace.events import Kind, SetIrqs
from intxtrace.importers.ftrace import FtraceText
from intxtrace.reconstruct import Reconstructor
from intxtrace.trace.metadata import Metadata
from tests.dsl import DeviceHandle, Trace, VmHandle
from tests.frames_sample import MS, S
from tests.kernel_texts import texts

QEMU = ("qemu-system-x86_64", "-M", "q35,kernel-irqchip=on", "-device", "vfio-pci,host=0000:01:00.0")


def summarise(t: Trace) -> Summary:
    result = t.reconstruct()
    analysis = Analysis(Metadata(), t.tables)
    records = t.records()
    analysis.witness.take(records)
    analysis.add(*result)
    return analysis.finish(int(records["ts"].min()), int(records["ts"].max()))


def findings(t: Trace) -> tuple[Finding, ...]:
    return summarise(t).findings


def names(t: Trace) -> list[str]:
    return [finding.name for finding in findings(t)]


def only(t: Trace, name: str) -> Finding:
    found = findings(t)
    assert [finding.name for finding in found] == [name]
    return found[0]


def guest(*words: str) -> tuple[Trace, VmHandle, DeviceHandle]:
    t = Trace()
    vm = t.vm()
    t.tables.vms[0].command_line = list(words or QEMU)
    return t, vm, t.device(vm)


def ids(t: Trace, **wanted: object) -> list[int]:
    rows = t.reconstruct().interrupts
    for column, value in wanted.items():
        rows = rows[rows[column] == value]
    return [int(i) for i in rows["id"]]


def device_word(*properties: str, host: str = "0000:01:00.0") -> tuple[str, ...]:
    return (*QEMU[:-1], ",".join((f"vfio-pci,host={host}", *properties)))


def test_nothing_is_wrong_with_the_kernel_path() -> None:
    t, _, d = guest()
    t.enable(d)
    t.enable_kvm(d)
    for _ in range(30):
        t.kernel_interrupt(d)
        t.wait(MS)
    assert names(t) == []


def test_nothing_is_wrong_while_the_guest_boots() -> None:
    """Interrupts before the bypass, and a bypass that failed and was set up again at once."""
    t, _, d = guest()
    t.enable(d)
    t.userspace_interrupt(d)
    t.enable_kvm(d, returned=-22)
    t.wait(10 * MS)
    t.disable_kvm(d)
    t.enable_kvm(d)
    for _ in range(5):
        t.kernel_interrupt(d)
    assert names(t) == []


def test_a_quiet_device_whose_only_interrupt_came_before_the_bypass() -> None:
    t, _, d = guest()
    t.enable(d)
    t.userspace_interrupt(d)
    t.enable_kvm(d)
    t.wait(S)
    t.bar_access(d)
    assert names(t) == []


# ---- which path


@pytest.mark.parametrize(
    "words",
    [
        device_word("x-no-kvm-intx=on"),
        device_word("x-no-kvm-intx=true", host="01:00.0"),
        (*QEMU, "-global", "vfio-pci.x-no-kvm-intx=on"),
        (*device_word("id=hostdev0"), "-set", "device.hostdev0.x-no-kvm-intx=on"),
        ("qemu", "-device", '{"driver":"vfio-pci","host":"0000:01:00.0","x-no-kvm-intx":true}'),
    ],
)
def test_bypass_off_by_option(words: tuple[str, ...]) -> None:
    t, _, d = guest(*words)
    t.enable(d)
    for _ in range(3):
        t.userspace_interrupt(d)
    found = only(t, "bypass-off-by-option")
    assert (found.severity, found.bdf, found.vm) == ("warning", "0000:01:00.0", "vm0")
    assert (found.evidence[0].count, found.evidence[0].total) == (3, 3)
    assert "remove x-no-kvm-intx=on" in found.advice


def test_the_option_of_another_device_is_not_to_blame() -> None:
    t, _, d = guest(*device_word("x-no-kvm-intx=on", host="0000:02:00.0"))
    t.enable(d)
    t.userspace_interrupt(d)
    assert only(t, "no-bypass").severity == "warning"


def test_qemus_log_alone_does_not_show_what_kvm_delivers() -> None:
    t = Trace(probes=(Kind.QEMU_INTERRUPT, Kind.QEMU_EOI))
    d = t.device(t.vm())
    t.userspace_interrupt(d)
    assert names(t) == []


@pytest.mark.parametrize("attempt", [True, False])
def test_no_irqchip_in_kvm(attempt: bool) -> None:
    t, _, d = guest("qemu", "-M", "q35,kernel-irqchip=off")
    t.enable(d)
    if attempt:  # QEMU before 8.2
        t.enable_kvm(d, returned=-22)
    t.userspace_interrupt(d)
    found = only(t, "no-kernel-irqchip")
    assert len(found.evidence) == 1 + attempt
    assert "kernel-irqchip=on" in found.advice


@pytest.mark.parametrize(
    ("errno", "words", "why"),
    [
        (22, QEMU, "wholly its own"),
        (22, ("qemu", "-M", "pc-q35-4.0"), "this QEMU does not do without"),
        (16, QEMU, "has an irqfd already"),
        (12, QEMU, "kvm_irqfd"),
    ],
)
def test_a_failed_bypass_says_why(errno: int, words: tuple[str, ...], why: str) -> None:
    t, _, d = guest(*words)
    t.enable(d)
    t.enable_kvm(d, returned=-errno)
    t.userspace_interrupt(d)
    found = only(t, "bypass-failed")
    assert why in found.explanation
    assert found.evidence[1].text.startswith("KVM_IRQFD failed: ")
    assert found.evidence[1].begin_at is not None


def test_a_failed_bypass_without_interrupts() -> None:
    t, _, d = guest()
    t.enable(d)
    t.enable_kvm(d, returned=-22)
    t.wait(2 * S)
    t.bar_access(d)
    found = only(t, "bypass-failed")
    assert [evidence.count for evidence in found.evidence] == [None]


@pytest.mark.parametrize(
    ("words", "name"),
    [
        (("qemu", "-machine", "q35,kernel_irqchip=split"), "split-irqchip"),
        (("qemu", "-accel", "kvm,kernel-irqchip=split"), "split-irqchip"),
        (("qemu", "-M", "pc-q35-4.0"), "split-irqchip"),
        (("cloud-hypervisor",), "hybrid-path"),
    ],
)
def test_split_irqchip(words: tuple[str, ...], name: str) -> None:
    t, _, d = guest(*words)
    t.enable(d)
    t.enable_kvm(d, resample=False)
    for _ in range(4):
        t.hybrid_interrupt(d)
    found = only(t, name)
    assert (found.evidence[0].count, found.evidence[0].total) == (4, 4)
    assert "kernel-irqchip=on" in found.advice


def test_msi_unused() -> None:
    t, _, d = guest()
    t.tables.devices[0].msi, t.tables.devices[0].msix = True, False
    t.enable(d)
    t.enable_kvm(d)
    t.kernel_interrupt(d)
    assert "can use MSI, and the guest drives it with INTx" in only(t, "msi-unused").title


def test_a_device_that_went_on_to_msi_uses_it() -> None:
    t, _, d = guest()
    t.tables.devices[0].msix = True
    t.enable(d)
    t.enable_kvm(d)
    t.kernel_interrupt(d)
    t.disable(d)
    t.set_irqs(d, SetIrqs.ACTION_TRIGGER | SetIrqs.DATA_EVENTFD, index=2)
    assert names(t) == []


@pytest.mark.parametrize(("errno", "advice"), [(16, "another slot"), (107, "firmware"), (22, "dmesg")])
def test_intx_that_the_host_refuses(errno: int, advice: str) -> None:
    t, _, d = guest()
    flags = SetIrqs.ACTION_TRIGGER | SetIrqs.DATA_EVENTFD
    t.set_irqs_entry(d, flags)
    t.set_irqs_exit(d, flags, value=-errno)
    found = only(t, "intx-refused")
    assert found.severity == "problem"
    assert advice in found.advice
    assert found.evidence[0].count == 1


# ---- lines that stay masked


def starved(gsi: int = 21, *, same_vm: bool = True) -> Trace:
    """One of two devices under a split irqchip is never unmasked, the other goes on."""
    t, vm, first = guest("qemu", "-M", "q35,kernel-irqchip=split")
    second = t.device(vm if same_vm else t.vm(), bdf="0000:02:00.0", gsi=gsi, host_irq=22)
    for d in (first, second):
        t.enable(d)
        t.enable_kvm(d, resample=False)
    t.handler(first, irqfd="msi")
    for _ in range(5):
        t.wait(S)
        t.hybrid_interrupt(second)
    return t


def test_split_with_two_devices_on_one_gsi() -> None:
    t = starved()
    problem, *split = findings(t)
    assert (problem.name, problem.severity, problem.bdf) == ("split-shared-gsi", "problem", "0000:01:00.0")
    assert "0000:02:00.0" in problem.title
    stuck, other = problem.evidence
    assert stuck.interrupts == tuple(ids(t, outcome="open"))
    assert stuck.begin_at is not None
    assert stuck.end_at is not None
    assert 5 * S < stuck.end_at - stuck.begin_at < 6 * S
    assert other.count == 5
    assert [(found.name, found.bdf) for found in split] == [
        ("split-irqchip", "0000:02:00.0"),
        ("split-irqchip", "0000:01:00.0"),
    ]


@pytest.mark.parametrize("t", [starved(gsi=20), starved(same_vm=False)], ids=["other GSI", "other VM"])
def test_another_gsi_or_vm_is_not_to_blame(t: Trace) -> None:
    assert [name for name in names(t) if name not in ("split-irqchip", "hybrid-path")] == ["never-unmasked"]


def stuck_at(stage: str) -> Trace:
    t, _, d = guest()
    t.enable(d)
    t.enable_kvm(d)
    t.handler(d, irqfd="resample")
    if stage != "claimed":
        t.inject(d)
    if stage == "acknowledged":
        t.guest_eoi(d)
    t.wait(2 * S)
    t.emit(Kind.KVM_EOI, value=-1)
    return t


@pytest.mark.parametrize(
    ("stage", "said"),
    [
        ("claimed", "was claimed, and was not injected"),
        ("injected", "the guest did not end it"),
        ("acknowledged", "the unmask did not follow"),
    ],
)
def test_a_line_that_is_never_unmasked(stage: str, said: str) -> None:
    found = only(stuck_at(stage), "never-unmasked")
    assert found.severity == "problem"
    assert said in found.title
    assert "masked for 2.00 s, to the end" in found.evidence[0].text


def test_an_interrupt_that_the_end_of_the_trace_cut_off_is_not_stuck() -> None:
    t, _, d = guest()
    t.enable(d)
    t.enable_kvm(d)
    t.kernel_interrupt(d)
    t.handler(d, irqfd="resample")
    t.inject(d)
    assert names(t) == []


@pytest.mark.parametrize(
    ("entry", "name"),
    [
        (64, "guest-pin-edge"),
        (64 | 1 << 16, "guest-masks-pin"),
        (64 | 1 << 15 | 1 << 16, "guest-masks-pin"),
        (64 | 1 << 15, "never-unmasked"),
    ],
)
def test_the_guests_pin(entry: int, name: str) -> None:
    t, vm, d = guest()
    t.enable(d)
    t.enable_kvm(d)
    t.handler(d, irqfd="resample")
    t.inject(d)
    t.emit(Kind.IOAPIC_SET_IRQ, vm=vm.kvm, arg0=d.gsi, arg1=entry)
    t.wait(2 * S)
    t.emit(Kind.KVM_EOI, value=-1)
    assert only(t, name).severity == "problem"


def test_a_pin_that_was_edge_at_another_time_proves_nothing() -> None:
    t, vm, d = guest()
    t.emit(Kind.IOAPIC_SET_IRQ, vm=vm.kvm, arg0=d.gsi, arg1=64)
    t.enable(d)
    t.enable_kvm(d)
    t.handler(d, irqfd="resample")
    t.inject(d)
    t.wait(2 * S)
    t.emit(Kind.KVM_EOI, value=-1)
    assert names(t) == ["never-unmasked"]


def shared(calls: int, others: int) -> Trace:
    t, _, d = guest()
    t.enable(d)
    t.enable_kvm(d)
    for _ in range(calls):
        t.kernel_interrupt(d)
    for _ in range(others):
        t.handler(d, claimed=False)
    return t


def test_unclaimed_line() -> None:
    found = only(shared(5, 1_000), "unclaimed-line")
    assert (found.evidence[0].count, found.evidence[0].total) == (1_000, 1_005)
    assert "IRQ 20" in found.title


def test_a_shared_line_is_no_alarm_where_somebody_claims_or_little_comes() -> None:
    assert names(shared(1, 900)) == []
    assert names(shared(200, 1_000)) == []
    t, vm, d = guest()
    other = t.device(vm, bdf="0000:02:00.0", gsi=22)
    for each in (d, other):
        t.enable(each)
        t.enable_kvm(each)
    for _ in range(1_100):
        t.handler(other, claimed=False)
        t.kernel_interrupt(d)
    assert names(t) == []


# ---- floods


def test_premature_eoi() -> None:
    t, _, d = guest(*device_word("x-no-kvm-intx=on"))
    t.enable(d)
    t.userspace_resignal_interrupt(d)
    t.userspace_interrupt(d)
    off, found = findings(t)
    assert (off.name, found.name, found.severity) == ("bypass-off-by-option", "premature-eoi", "warning")
    assert (found.evidence[0].count, found.evidence[0].total) == (1, 3)
    assert list(found.evidence[0].interrupts) == ids(t, origin="resignal")


def test_resignals_on_the_kernel_path_are_a_note_where_there_are_many() -> None:
    t, _, d = guest()
    t.enable(d)
    t.enable_kvm(d)
    t.kernel_resignal_interrupt(d)
    for _ in range(8):
        t.kernel_interrupt(d)
    assert names(t) == []  # 1 of 10
    t.kernel_resignal_interrupt(d)
    assert only(t, "asserted-at-eoi").severity == "note"


def test_guest_reentry() -> None:
    t, _, d = guest(*device_word("x-no-kvm-intx=on"))
    t.enable(d)
    t.handler(d)
    t.qemu_takes(d)
    for _ in range(3):
        t.guest_eoi(d, resample=False)
    t.bar_access(d)
    t.qemu_eoi(d)
    t.guest_eoi(d, resample=False)
    t.userspace_interrupt(d)
    _, found = findings(t)
    assert (found.name, found.evidence[0].count, found.evidence[1].count) == ("guest-reentry", 1, 3)
    assert "1 interrupt 3 times" in found.title


@pytest.mark.parametrize("accesses", [0, 7])
def test_x_no_mmap(accesses: int) -> None:
    t, _, d = guest(*device_word("x-no-mmap=on"))
    t.enable(d)
    t.enable_kvm(d)
    t.kernel_interrupt(d)
    for _ in range(accesses):
        t.bar_access(d)
    assert [(f.name, f.evidence[0].count) for f in findings(t)] == (
        [("bars-always-trapped", accesses)] if accesses else []
    )


def toggled(timeout: str, unmaps: int, mapped_ns: int, trapped_ns: int) -> Trace:
    t, _, d = guest(*device_word("x-no-kvm-intx=on", *([f"x-intx-mmap-timeout-ms={timeout}"] if timeout else [])))
    t.enable(d)
    t.mmaps(d, True)
    for _ in range(unmaps):
        t.wait(mapped_ns)
        t.mmaps(d, False)
        t.userspace_interrupt(d)
        t.wait(trapped_ns)
        if timeout != "0":
            t.mmaps(d, True)
    t.disable(d)
    return t


@pytest.mark.parametrize(
    ("timeout", "unmaps", "mapped_ns", "trapped_ns", "name"),
    [
        ("0", 1, S, S, "bars-always-trapped"),
        ("", 1, S // 10, 6 * S, "bars-always-trapped"),
        ("", 1, S, S, ""),
        ("", 2, S, S, "mmap-toggling"),
        ("", 3, S // 10, S, "mmap-toggling"),
    ],
)
def test_bars_that_trap(timeout: str, unmaps: int, mapped_ns: int, trapped_ns: int, name: str) -> None:
    off, *found = names(toggled(timeout, unmaps, mapped_ns, trapped_ns))
    assert off == "bypass-off-by-option"
    assert found == ([name] if name else [])


# ---- delays


def delayed(stage: str, slow: int, quick: int = 30) -> Trace:
    t, _, d = guest(*device_word(*(["x-no-kvm-intx=on"] if stage == "qemu-loop-delay" else [])))
    t.enable(d)
    if stage != "qemu-loop-delay":
        t.enable_kvm(d)
    for late in [True] * slow + [False] * quick:
        pause = 20 * MS if late else 0
        if stage == "qemu-loop-delay":
            t.handler(d)
            t.wait(pause)
            t.qemu_takes(d)
            t.bar_access(d)
            t.qemu_eoi(d)
            t.guest_eoi(d, resample=False)
            continue
        t.handler(d, irqfd="resample")
        t.wait(pause if stage == "kworker-delay" else 0)
        t.inject(d)
        t.wait(pause if stage == "slow-guest-eoi" else 0)
        t.guest_eoi(d)
        t.resample_unmask(d)
    return t


@pytest.mark.parametrize("stage", ["kworker-delay", "slow-guest-eoi", "qemu-loop-delay"])
def test_delays(stage: str) -> None:
    (found,) = [f for f in findings(delayed(stage, 10)) if f.name != "bypass-off-by-option"]
    assert (found.name, found.severity) == (stage, "warning")
    assert (found.evidence[0].count, found.evidence[0].total) == (10, 40)
    assert len(found.evidence[0].interrupts) == 10
    assert "at most" in found.title
    assert stage not in names(delayed(stage, 9))
    (rare,) = [f for f in findings(delayed(stage, 10, 1_000)) if f.name == stage]
    assert rare.severity == "note"


def test_a_slow_guest_with_a_split_irqchip() -> None:
    t, _, d = guest("qemu", "-M", "q35,kernel-irqchip=split")
    t.enable(d)
    t.enable_kvm(d, resample=False)
    for _ in range(10):
        t.handler(d, irqfd="msi")
        t.wait(20 * MS)
        t.split_eoi(d)
        t.split_unmask(d)
    assert names(t) == ["split-irqchip", "slow-guest-eoi"]


# ---- recordings

TRACES = Path(__file__).parents[1] / "traces"

RECORDED = {
    "kernel-6.1": set(),
    "kernel-6.12": set(),
    "pair-kernel-6.1": set(),
    "hybrid-6.1": {("split-irqchip", "06")},
    "hybrid-6.12": {("split-irqchip", "06")},
    "pair-hybrid-6.1": {("split-shared-gsi", "06"), ("split-irqchip", "06"), ("split-irqchip", "0a")},
    "userspace-6.1": {
        (name, "06") for name in ("bypass-off-by-option", "premature-eoi", "guest-reentry", "mmap-toggling")
    },
    "userspace-6.12": {
        (name, "06")
        for name in ("bypass-off-by-option", "premature-eoi", "guest-reentry", "mmap-toggling", "qemu-loop-delay")
    },
    "pair-userspace-6.1": {("guest-reentry", "06")}
    | {(name, bdf) for name in ("bypass-off-by-option", "premature-eoi", "mmap-toggling") for bdf in ("06", "0a")},
}


@pytest.mark.parametrize("path", sorted(TRACES.glob("*.intx")), ids=lambda path: path.stem)
def test_each_recording_names_exactly_what_is_so(path: Path) -> None:
    trace = intxtrace.open_trace(path)
    analysis = Analysis(trace.metadata, trace.tables)
    for result in trace.iter_results(analysis.witness.take):
        analysis.add(*result)
    found = analysis.finish(trace.first_at, trace.last_at).findings
    assert {(f.name, (f.bdf or "")[8:10]) for f in found} == RECORDED[path.stem]
    assert len(found) == len(RECORDED[path.stem])
    severities = ["problem", "warning", "note"]
    assert [f.severity for f in found] == sorted((f.severity for f in found), key=severities.index)


USERSPACE = {"excl_mask", "excl_user", "tponly_user", "user", "user_mask", "user_refire"}
NAMED = {
    **{key: {"no-bypass"} for key in USERSPACE},
    "user_refire": {"no-bypass", "premature-eoi"},
    "split": {"hybrid-path"},
    "noresample": {"hybrid-path"},
    **{key: {"asserted-at-eoi"} for key in ("refire", "refire3", "twice", "tponly_refire", "wq_refire")},
}
"""What the scenarios of `tests/kernel_texts.py` play, by name; the others play nothing that is wrong."""

MAY_BE_NAMED = {"ioapicmask": {"asserted-at-eoi"}, "excl_refire": {"asserted-at-eoi"}}
"""Depends on the kernel: since 6.4 an IOAPIC pin that is unmasked resamples (kvm_notify_irqfd_resampler)."""


@pytest.mark.parametrize("name", sorted(texts()))
def test_each_kernel_text_names_what_it_plays(name: str) -> None:
    recording = FtraceText(io.BytesIO(texts()[name]), "text")
    parts = list(recording)
    reconstructor = Reconstructor(recording.tables)
    analysis = Analysis(Metadata(), recording.tables)
    for events in parts:
        analysis.witness.take(events)
        analysis.add(*reconstructor.feed(events))
    analysis.add(*reconstructor.finish())
    ends = [int(at) for events in parts for at in (events["ts"].min(), events["ts"].max())]
    found = {finding.name for finding in analysis.finish(min(ends), max(ends)).findings}
    scenario = name.partition("/")[2]
    assert found - MAY_BE_NAMED.get(scenario, set()) == NAMED.get(scenario, set())
