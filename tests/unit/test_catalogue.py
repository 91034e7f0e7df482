"""The probe catalogue against the C source, and the choice of how each probe is attached."""

from __future__ import annotations

import re
from importlib import resources
from itertools import chain
from typing import cast

import pytest

from intxtrace.capture import catalogue
from intxtrace.capture.btf import Btf, Function
from intxtrace.capture.catalogue import CATALOGUE, OFFSETS, QEMU_CATALOGUE, RETURN
from intxtrace.capture.kernel import Symbol
from intxtrace.capture.plan import Planner, qemu_specs
from intxtrace.capture.program import _patch_slot
from intxtrace.events import Flag, Kind, c_header

SOURCE = (resources.files("intxtrace") / "bpf" / "intxtrace.c").read_text()
CALLS = [hook.call for spec in CATALOGUE for hook in chain(spec.hooks, spec.fallback)] + [
    spec.call for spec in QEMU_CATALOGUE
]

# Made otherwise: by the recorder itself, by a probe that is attached for another kind, or by importers alone.
NOT_OF_A_PROBE = {Kind.LOST, Kind.PROBE, Kind.VM, Kind.WORK_QUEUED, Kind.WORK_STARTED}


class FakeBtf:
    """A kernel that has the functions and members that a test names."""

    def __init__(self, functions: set[str], without: set[str] = frozenset()) -> None:  # type: ignore[assignment]
        self._functions = functions
        self._without = without

    def offset(self, structure: str, member: str) -> int | None:
        return None if f"{structure}.{member}" in self._without else 8

    def function(self, name: str) -> Function | None:
        return Function(name, "vmlinux", 1, 4) if name in self._functions else None


def symbols(*names: str) -> dict[str, Symbol]:
    return {name: Symbol(name, 0xFFFF0000, "") for name in names}


FUNCTIONS = {hook.target for spec in CATALOGUE for hook in spec.hooks if hook.where != "tracepoint"}
TRACEPOINTS = {
    f"__traceiter_{hook.target}"
    for spec in CATALOGUE
    for hook in chain(spec.hooks, spec.fallback)
    if hook.where == "tracepoint"
}
EVERYTHING = symbols(*FUNCTIONS, *TRACEPOINTS, *catalogue.ADDRESSES, "register_kprobe")


def planner(btf: FakeBtf, known: dict[str, Symbol], demoted: frozenset[str] = frozenset()) -> Planner:
    return Planner(cast(Btf, btf), known, demoted)


def rows(btf: FakeBtf, known: dict[str, Symbol], demoted: frozenset[str] = frozenset()) -> dict[str, tuple[str, str]]:
    plan = planner(btf, known, demoted).plan("count", 1 << 20)
    return {row.name: (row.state, row.method) for row in plan.probes}


@pytest.mark.parametrize("call", CALLS, ids=lambda call: call.function)
def test_every_call_is_a_function_of_the_source_with_that_many_arguments(call: catalogue.Call) -> None:
    match = re.search(rf"\b{call.function}\(([^)]*)\) {{", SOURCE)
    assert match
    declared = [] if match[1] in ("", "void") else match[1].split(",")
    assert len(declared) == len(call.arguments) + len(call.constants)


def test_every_kind_has_a_probe() -> None:
    made = {kind for spec in CATALOGUE for kind in spec.kinds} | {k for spec in QEMU_CATALOGUE for k in spec.kinds}
    assert set(Kind) - NOT_OF_A_PROBE == made


def test_the_source_uses_only_kinds_flags_and_offsets_that_exist() -> None:
    assert set(re.findall(r"\bKIND_(\w+)", SOURCE)) <= {kind.name for kind in Kind}
    assert set(re.findall(r"\bFLAG_(\w+)", SOURCE)) - {"IN_"} <= {flag.name for flag in Flag if flag.name}
    assert set(re.findall(r"\bOFF_(\w+)", SOURCE)) - {"*"} == set(OFFSETS)


def test_needs_name_offsets() -> None:
    needs = {need.replace(".", "_") for spec in CATALOGUE for need in spec.needs}
    assert needs <= set(OFFSETS)


def test_fentry_where_the_kernel_has_type_information() -> None:
    found = rows(FakeBtf(FUNCTIONS), EVERYTHING)
    assert found["vfio_intx_handler"] == ("attached", "fentry")
    assert found["pci_check_and_unmask_intx"] == ("attached", "fexit")
    assert found["kvm:kvm_eoi"] == ("attached", "raw_tracepoint")


def test_kprobe_where_it_has_none_or_refused_fentry() -> None:
    assert rows(FakeBtf(set()), EVERYTHING)["vfio_intx_handler"] == ("attached", "kprobe")
    refused = rows(FakeBtf(FUNCTIONS), EVERYTHING, frozenset({"irqfd_wakeup"}))
    assert refused["irqfd_wakeup"] == ("attached", "kprobe")
    assert refused["irqfd_inject"] == ("attached", "fentry")


@pytest.mark.parametrize(
    "name",
    ["vfio_intx_handler", "irqfd_wakeup", "irqfd_inject", "virqfd_inject", "kvm_set_irq", "kvm_notify_acked_irq"],
)
def test_a_tracepoint_stands_in_for_a_function_that_is_not_there(name: str) -> None:
    known = {key: symbol for key, symbol in EVERYTHING.items() if key != name or key in catalogue.ADDRESSES}
    if name in catalogue.ADDRESSES:  # the tracepoint needs its address, so it can only be refused
        found = rows(FakeBtf(set()), {k: v for k, v in EVERYTHING.items() if k != "register_kprobe"})
    else:
        found = rows(FakeBtf(FUNCTIONS - {name}), known)
    assert found[name] == ("fallback", "raw_tracepoint")


@pytest.mark.parametrize("spec", [spec for spec in CATALOGUE if not spec.fallback], ids=lambda spec: spec.name)
def test_a_probe_without_a_stand_in_is_reported_missing_by_name(spec: catalogue.Spec) -> None:
    gone = {hook.target for hook in spec.hooks} | {f"__traceiter_{hook.target}" for hook in spec.hooks}
    if spec.unless == "!eventfd_signal":
        gone = set()
        known = {k: v for k, v in EVERYTHING.items() if k != "register_kprobe"}
        plan = planner(FakeBtf(FUNCTIONS - {"eventfd_signal"}), known).plan("count", 1 << 20)
    else:
        known = {k: v for k, v in EVERYTHING.items() if k not in gone}
        if spec.unless:
            known.pop(spec.unless)
        plan = planner(FakeBtf(FUNCTIONS - gone), known).plan("count", 1 << 20)
    row = next(row for row in plan.probes if row.name == spec.name)
    assert row.state == "missing"
    assert row.reason
    assert row.optional == bool(spec.optional)


def test_only_one_of_the_two_eventfd_functions_is_watched() -> None:
    assert "eventfd_signal_mask" not in rows(FakeBtf(FUNCTIONS), EVERYTHING)
    since_6_8 = {k: v for k, v in EVERYTHING.items() if k != "eventfd_signal"}
    found = rows(FakeBtf(FUNCTIONS), since_6_8)
    assert "eventfd_signal" not in found
    assert found["eventfd_signal_mask"] == ("attached", "fentry")


def test_the_handlers_argument_is_chosen_by_a_member_of_the_irq_context() -> None:
    new = planner(FakeBtf(FUNCTIONS), EVERYTHING).plan("count", 1 << 20).source
    old = planner(FakeBtf(FUNCTIONS, {"vfio_pci_irq_ctx.vdev"}), EVERYTHING).plan("count", 1 << 20).source
    assert "#define HANDLER_GETS_IRQ_CTX 1" in new
    assert "#define HANDLER_GETS_IRQ_CTX 0" in old


def test_a_probe_whose_structures_are_unknown_is_missing() -> None:
    plan = planner(FakeBtf(FUNCTIONS, {"virqfd.opaque"}), EVERYTHING).plan("count", 1 << 20)
    row = next(row for row in plan.probes if row.name == "virqfd_wakeup")
    assert (row.state, row.reason) == ("missing", "this kernel's type information lacks virqfd.opaque")


def test_single_bar_accesses_are_not_counted_besides() -> None:
    kinds = {kind for spec in qemu_specs("all") for kind in spec.kinds}
    assert {Kind.QEMU_REGION_READ, Kind.QEMU_REGION_WRITE} <= kinds
    assert not {Kind.QEMU_REGION_COUNT, Kind.QEMU_REGION_OFFSETS} & kinds


def test_bar_accesses_are_not_watched_unless_wanted() -> None:
    assert {spec.name for spec in qemu_specs("count")} - {spec.name for spec in qemu_specs("none")} == {
        "vfio_region_read",
        "vfio_region_write",
    }


def test_the_binarys_number_is_patched_into_both_forms_of_the_instruction() -> None:
    mark = (0x1BADCAFE).to_bytes(4, "little")
    for opcode in (0xB7, 0x18):
        code = bytes(8) + bytes([opcode, 1, 0, 0]) + mark + bytes(8)
        assert _patch_slot(code, 7)[12:16] == (7).to_bytes(4, "little")
    other = bytes([0x07, 1, 0, 0]) + mark
    assert _patch_slot(other, 7) == other


def test_each_program_has_a_place_of_its_own_for_its_run_time() -> None:
    plan = planner(FakeBtf(FUNCTIONS), EVERYTHING).plan("count", 1 << 20)
    programs = [planned.symbol for each in plan.programs.values() for planned in each]
    qemu = [f"q_{spec.name}" for spec in qemu_specs("count")]
    assert list(plan.numbers) == [*programs, *qemu]
    assert sorted(plan.numbers.values()) == list(range(len(programs) + len(qemu)))
    assert [plan.numbers[symbol] - len(programs) for symbol in qemu] == list(range(plan.qemu_programs))
    assert plan.source.count("began = run_begin();") == len(programs) + len(qemu)


def test_the_return_value_is_only_asked_for_where_there_is_one() -> None:
    for spec in CATALOGUE:
        for hook in spec.hooks:
            assert (RETURN in hook.call.arguments) <= (hook.where == "exit")


def test_the_header_declares_the_record_in_80_bytes() -> None:
    sizes = {"unsigned long long": 8, "unsigned int": 4, "int": 4, "unsigned short": 2}
    members = re.findall(r"^  ([a-z ]+) \w+;$", c_header(), re.MULTILINE)
    assert sum(sizes[member] for member in members) == 80
