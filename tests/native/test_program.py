"""The probes compile, and those that this kernel can take load, attach and go without a trace."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from intxtrace.capture import kernel
from intxtrace.capture.bcc_import import import_bcc
from intxtrace.capture.btf import Btf
from intxtrace.capture.host import installed_qemu
from intxtrace.capture.plan import BAR_MODES, Planner
from intxtrace.capture.program import Probes, compile_source
from intxtrace.capture.qemu_functions import find_functions
from intxtrace.errors import IntxtraceError
from tests.unit.test_catalogue import EVERYTHING, FUNCTIONS, FakeBtf, planner

pytestmark = pytest.mark.root


@pytest.mark.parametrize("bar", BAR_MODES)
@pytest.mark.parametrize(
    ("has_functions", "without", "symbols_without"),
    [
        (True, set(), set()),
        (True, {"vfio_pci_irq_ctx.vdev"}, {"eventfd_signal"}),
        (False, set(), set()),
        (False, {"pci_sysdata.domain", "irqaction.name", "work_struct.func"}, {"register_kprobe"}),
    ],
    ids=["since-6.10", "before-6.10", "kprobes", "tracepoints"],
)
def test_every_shape_of_the_source_compiles(
    bar: str, has_functions: bool, without: set[str], symbols_without: set[str]
) -> None:
    btf = FakeBtf(FUNCTIONS if has_functions else set(), without)
    known = {name: symbol for name, symbol in EVERYTHING.items() if name not in symbols_without}
    plan = planner(btf, known).plan(bar, 1 << 16)
    bpf = compile_source(plan.source)
    try:
        wanted = {planned.symbol for programs in plan.programs.values() for planned in programs}
        lib = import_bcc().lib
        made = {lib.bpf_function_name(bpf.module, index).decode() for index in range(lib.bpf_num_functions(bpf.module))}
        assert wanted <= made
    finally:
        bpf.cleanup()


def test_source_that_does_not_compile_is_a_sentence() -> None:
    with pytest.raises(IntxtraceError, match=r"bcc cannot compile the probes on kernel .*undeclared"):
        compile_source("int f(void *ctx) { return nothing_like_it; }")


def test_no_headers_is_a_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BCC_KERNEL_SOURCE", "/nowhere")
    with pytest.raises(IntxtraceError, match=r"bcc finds no headers of kernel .*apt install linux-headers-"):
        compile_source("int f(void *ctx) { return 0; }")


def test_an_attachment_without_effect_is_made_in_another_way(monkeypatch: pytest.MonkeyPatch) -> None:
    btf = FakeBtf(FUNCTIONS, set())
    plan = planner(btf, EVERYTHING).plan("count", 1 << 16)
    hooks = [p for programs in plan.programs.values() for p in programs if p.method in ("fentry", "fexit")]
    traced = {(p.hook.target, p.module) for p in hooks}
    probes = object.__new__(Probes)
    probes._attached = {row.id: [] for row in plan.probes if row.state == "attached"}
    monkeypatch.setattr(kernel, "traced_functions", lambda: None)
    assert probes._unhooked(plan) == set()
    monkeypatch.setattr(kernel, "traced_functions", lambda: traced)
    assert probes._unhooked(plan) == set()
    monkeypatch.setattr(kernel, "traced_functions", lambda: {one for one in traced if one[0] != "irqfd_wakeup"})
    assert probes._unhooked(plan) == {"irqfd_wakeup"}
    (row,) = (row for row in plan.probes if row.name == "irqfd_wakeup")
    assert (row.state, row.id in probes._attached) == ("missing", False)
    again = planner(btf, EVERYTHING, frozenset({"irqfd_wakeup"})).plan("count", 1 << 16)
    assert [p.method for p in again.programs["irqfd_wakeup"]] == ["kprobe"]


def test_attach_and_leave_nothing_behind() -> None:
    before = len(os.listdir("/proc/self/fd"))  # noqa: PTH208
    with Probes(ring_bytes=1 << 16) as probes:
        attached = [row.name for row in probes.table if row.state != "missing"]
        assert "kvm:kvm_eoi" in attached
        (qemu, *_) = installed_qemu()
        rows = probes.attach_qemu(find_functions(qemu))
        assert {row.name: row.reason for row in rows if row.state != "attached"} == {}
        assert len({row.id for row in probes.table}) == len(probes.table)
        assert probes.misses() == []
    assert len(os.listdir("/proc/self/fd")) == before  # noqa: PTH208


def test_offsets_of_this_kernel_come_from_its_btf() -> None:
    btf = Btf()
    try:
        assert btf.offset("list_head", "prev") == 8
        assert btf.offset("eventfd_ctx", "wqh") == 8
        assert btf.offset("list_head", "nothing") is None
        assert btf.offset("no_such_structure", "x") is None
        found = btf.function("eventfd_write")
        assert found is not None
        assert (found.module, found.arguments) == ("vmlinux", 4)
        assert btf.function("no_such_function") is None
        assert Planner(btf, {}).plan("count", 1 << 16).probes
    finally:
        btf.close()


def test_a_kernel_without_btf_is_a_sentence(tmp_path: Path) -> None:
    with pytest.raises(IntxtraceError, match="CONFIG_DEBUG_INFO_BTF"):
        Btf(tmp_path)


def test_symbols(tmp_path: Path) -> None:
    file = tmp_path / "kallsyms"
    file.write_text(
        "ffffffff81000000 T kvm_set_irq\t[kvm]\n"
        "ffffffff81000010 t irqfd_inject\n"
        "ffffffff81000020 t twice\n"
        "ffffffff81000030 t twice\t[other]\n"
        "ffffffff81000040 d data_of_that_name\n"
        "ffffffff81000050 t irqfd_inject.cold\n"
    )
    found = kernel.kernel_symbols(["kvm_set_irq", "irqfd_inject", "twice", "data_of_that_name", "absent"], file)
    assert {name: (symbol.address, symbol.module) for name, symbol in found.items()} == {
        "kvm_set_irq": (0xFFFFFFFF81000000, "kvm"),
        "irqfd_inject": (0xFFFFFFFF81000010, ""),
    }


def test_traced_functions(tmp_path: Path) -> None:
    file = tmp_path / "enabled_functions"
    file.write_text(
        "enable_irq (1) R   D   M \ttramp: ftrace_regs_caller+0x0/0x65 (call_direct_funcs+0x0/0x20)\n"
        "\tdirect-->bpf_trampoline_6442472499+0x0/0xa4\n"
        "irqfd_inject [kvm] (2) R         \ttramp: 0xffffffffc07a1000 (kprobe_ftrace_handler+0x0/0x1d0)\n"
    )
    assert kernel.traced_functions(file) == {("enable_irq", "vmlinux"), ("irqfd_inject", "kvm")}
    assert kernel.traced_functions(tmp_path / "absent") is None


def test_a_program_that_the_verifier_refuses_says_why() -> None:
    with pytest.raises(OSError, match="R0"):
        kernel.load_program(bytes([0x95, 0, 0, 0, 0, 0, 0, 0]), "exit", kernel.PROG_RAW_TRACEPOINT)
