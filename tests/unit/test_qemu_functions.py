"""The function finder: on the installed QEMU, and on small ELF files for what no installed binary has."""

from __future__ import annotations

import os
import re
import struct
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from intxtrace.capture.program import unreadable
from intxtrace.capture.qemu_functions import QemuBinary, find_functions
from intxtrace.errors import IntxtraceError
from tests.elf_builder import CODE, CODE_OFFSET, EM_AARCH64, Body, Elf
from tests.qemu_binaries import KNOWN, check_against_objdump, layout_of

INSTALLED = Path("/usr/bin/qemu-system-x86_64")
PCI = (
    "vfio_intx_enable",
    "vfio_intx_disable",
    "vfio_intx_enable_kvm",
    "vfio_intx_disable_kvm",
    "vfio_intx_update",
)
REGION = ("vfio_region_read", "vfio_region_write", "vfio_region_mmaps_set_enabled")
UNMASK = "vfio_unmask_single_irqindex"
EXPORTED = (*REGION, "kvm_resample_fd_notify", UNMASK)
NAME, VBASEDEV, PENDING = 0x20, 0xA30, 0x70


def variable(event: str) -> str:
    return f"_TRACE_{event.upper()}_DSTATE"


def i32(value: int) -> str:
    return struct.pack("<i", value).hex()


def traces(elf: Elf, body: Body, event: str, base: str, load: str, offset: int, *, dtrace: bool) -> None:
    """What tracing an event with a name leaves in code: `load` is `mov offset(%base)`, up to the offset."""
    if dtrace:  # the name stays in memory, for the tracer to read
        elf.usdt(event, body.end, f"8@{offset}(%{base}) -1@$65")
        body.raw("90")
    else:
        body.test_variable(elf.at(variable(event))).raw(load)
        body.raw(f"{offset:02x}" if offset < 0x80 else i32(offset))


def qemu(
    *, split: bool = True, exported: tuple[str, ...] = EXPORTED, eoi: str = "vfio_intx_eoi", dtrace: bool = False
) -> Elf:
    """A QEMU as Debian builds it: the static functions have no symbol, the trace variables are exported.

    `dtrace`: as Red Hat builds it, with USDT probes instead of tests of the trace variables.
    """
    elf = Elf()
    body = elf.body("vfio_intx_interrupt")
    body.raw("4889fd")  # mov %rdi,%rbp
    body.raw("c685" + i32(VBASEDEV + PENDING) + "01")  # movb $1,intx.pending(%rbp)
    traces(elf, body, "vfio_intx_interrupt", "rbp", "488b85", VBASEDEV + NAME, dtrace=dtrace)
    elf.put("vfio_intx_interrupt", body)
    part = f"{eoi}.part.0" if split else eoi
    body = elf.body(part).raw("4889fb")  # mov %rdi,%rbx
    if not split:
        body.raw("80bb" + i32(PENDING) + "00")  # cmpb $0,pending(%rbx)
    traces(elf, body, eoi, "rbx", "488b73", NAME, dtrace=dtrace)
    body.raw(f"c643{PENDING:02x}00")  # movb $0,pending(%rbx)
    body.raw("488dbb" + i32(-VBASEDEV))  # lea -vbasedev(%rbx),%rdi
    elf.put(part, body.jump(elf.at(UNMASK)))
    if split:
        elf.put(eoi, elf.body(eoi).raw(f"807f{PENDING:02x}00").jump_not_equal(elf.at(part)))
    for name in PCI:
        body = elf.body(name).raw("4989fc")  # mov %rdi,%r12
        traces(elf, body, name, "r12", "498b8424", VBASEDEV + NAME, dtrace=dtrace)
        elf.put(name, body)
    for name in (*REGION, "kvm_resample_fd_notify"):
        body = elf.body(name)
        if dtrace:
            elf.usdt(name, body.end, "8@%rax")
            body.raw("90")
        else:
            body.test_variable(elf.at(variable(name)))
        elf.put(name, body)
    elf.put(UNMASK, elf.body(UNMASK).raw("f30f1efa"))
    body = elf.body("caller")
    for name in (*PCI, "vfio_region_mmaps_set_enabled", "kvm_resample_fd_notify"):
        body.call(elf.at(name))
    elf.put("caller", body)
    elf.dynsym = [*exported, *elf.variables]
    return elf


def found_in(elf: Elf | bytes, folder: Path) -> QemuBinary:
    path = folder / "qemu"
    path.write_bytes(elf if isinstance(elf, bytes) else elf.write())
    return find_functions(path)


# --- the installed binary ---


def test_installed_qemu_has_every_function_where_its_disassembly_says() -> None:
    binary = find_functions(INSTALLED)
    assert binary.missing == {}
    check_against_objdump(binary)
    if binary.build_id in KNOWN:  # another build of the package has the disassembly alone
        assert layout_of(binary) == KNOWN[binary.build_id]


def test_installed_qemu_has_the_build_id_and_version_it_reports_itself() -> None:
    binary = find_functions(INSTALLED)
    notes = subprocess.run(["readelf", "-n", INSTALLED], capture_output=True, text=True, check=True).stdout
    assert f"Build ID: {binary.build_id}\n" in notes
    reported = subprocess.run([INSTALLED, "--version"], capture_output=True, text=True, check=True).stdout
    assert reported.startswith(f"QEMU emulator version {binary.version}\n")


# --- a stripped binary ---


def test_a_split_eoi_gives_the_part_behind_the_test(tmp_path: Path) -> None:
    elf = qemu()
    binary = found_in(elf, tmp_path)
    assert binary.missing == {}
    eoi = binary.functions["vfio_intx_eoi"]
    assert (eoi.symbol, eoi.method, eoi.filter_offset) == ("vfio_intx_eoi.part.0", "trace-variable", None)
    assert eoi.address == elf.at("vfio_intx_eoi.part.0")
    assert eoi.offset == eoi.address - CODE + CODE_OFFSET
    assert eoi.argument == "VFIODevice"
    assert (binary.name_offset, binary.name_evidence, binary.vbasedev_offset) == (NAME, "code", VBASEDEV)
    for name in ("vfio_intx_interrupt", *PCI):
        function = binary.functions[name]
        assert (function.address, function.argument) == (elf.at(name), "VFIOPCIDevice")


def test_a_whole_eoi_gives_the_offset_of_pending(tmp_path: Path) -> None:
    elf = qemu(split=False, eoi="vfio_pci_intx_eoi", exported=(*EXPORTED, "vfio_pci_intx_eoi"))
    eoi = found_in(elf, tmp_path).functions["vfio_intx_eoi"]
    assert (eoi.symbol, eoi.method, eoi.filter_offset) == ("vfio_pci_intx_eoi", "dynsym", PENDING)
    assert eoi.address == elf.at("vfio_pci_intx_eoi")


def test_an_exported_entry_leads_to_its_split_eoi(tmp_path: Path) -> None:
    for trace in (True, False):
        elf = qemu(exported=(*EXPORTED, "vfio_intx_eoi"))
        if not trace:
            elf.dynsym.remove(variable("vfio_intx_eoi"))
        eoi = found_in(elf, tmp_path).functions["vfio_intx_eoi"]
        assert (eoi.symbol, eoi.address) == ("vfio_intx_eoi.part.0", elf.at("vfio_intx_eoi.part.0"))
        assert eoi.filter_offset is None


def test_an_eoi_that_shows_no_test_is_not_given(tmp_path: Path) -> None:
    elf = qemu()
    elf.put("vfio_intx_eoi", elf.body("vfio_intx_eoi").jump(elf.at("vfio_intx_eoi.part.0")))
    binary = found_in(elf, tmp_path)
    assert "does not show" in binary.missing["vfio_intx_eoi"]
    assert (binary.name_offset, binary.vbasedev_offset) == (None, None)
    assert {binary.functions[name].argument for name in PCI} == {None}


def test_layouts_on_which_the_functions_disagree_are_unknown(tmp_path: Path) -> None:
    elf = qemu()
    elf.put(
        "vfio_intx_interrupt",
        elf.body("vfio_intx_interrupt")
        .raw("c687" + i32(VBASEDEV + PENDING + 8) + "01")
        .test_variable(elf.at(variable("vfio_intx_interrupt"))),
    )
    binary = found_in(elf, tmp_path)
    assert (binary.name_offset, binary.name_evidence, binary.vbasedev_offset) == (None, None, None)
    assert binary.functions["vfio_intx_interrupt"].argument is None


@pytest.mark.parametrize(
    ("version", "offset"),
    [
        ("4.0.0", 0x20),
        ("8.1.5 (Debian 1:8.1.5)", 0x20),
        ("8.2.0", 0x48),
        ("11.1.3", 0x48),
        ("3.1.0", None),
        ("12.0.0", None),
        ("v9", None),
    ],
)
def test_the_version_is_the_second_evidence_for_the_name(tmp_path: Path, version: str, offset: int | None) -> None:
    binary = found_in(Elf(functions=["main"], version=version), tmp_path)
    assert binary.version == version
    assert (binary.name_offset, binary.name_evidence) == (offset, None if offset is None else "version")


def test_code_outweighs_the_version(tmp_path: Path) -> None:
    binary = found_in(replace(qemu(), version="10.0.0"), tmp_path)
    assert (binary.name_offset, binary.name_evidence) == (NAME, "code")


# --- inlined and contradictory ---


@pytest.mark.parametrize("name", ["vfio_region_mmaps_set_enabled", "kvm_resample_fd_notify", *PCI])
def test_a_function_that_nothing_calls_is_missing(tmp_path: Path, name: str) -> None:
    elf = qemu()
    elf.put("caller", elf.body("caller"))
    binary = found_in(elf, tmp_path)
    assert binary.missing[name] == "nothing calls it: it is inlined"
    assert name not in binary.functions


def test_an_unmask_that_the_eoi_does_not_call_is_missing(tmp_path: Path) -> None:
    elf = qemu()
    body = elf.body("vfio_intx_eoi.part.0").raw(elf.bodies["vfio_intx_eoi.part.0"][:-6].hex())
    elf.put("vfio_intx_eoi.part.0", body)
    elf.put("caller", elf.body("caller").call(elf.at(UNMASK)))
    binary = found_in(elf, tmp_path)
    assert binary.missing["vfio_irq_unmask"] == "the EOI does not call it: it is inlined there"


def test_an_event_inside_another_events_function_is_missing(tmp_path: Path) -> None:
    elf = qemu()
    host = elf.body("vfio_intx_update").raw(elf.bodies["vfio_intx_update"][:-1].hex())
    elf.put("vfio_intx_update", host.test_variable(elf.at(variable("vfio_intx_disable_kvm"))))
    del elf.bodies["vfio_intx_disable_kvm"]
    binary = found_in(elf, tmp_path)
    assert "inlined" in binary.missing["vfio_intx_disable_kvm"]


def test_a_second_function_with_the_event_must_call_the_first(tmp_path: Path) -> None:
    for calls in (False, True):
        elf = qemu()
        host = elf.body("vfio_intx_enable").raw(elf.bodies["vfio_intx_enable"][:-1].hex())
        if calls:
            host.call(elf.at("vfio_intx_enable_kvm"))
        elf.put("vfio_intx_enable", host.test_variable(elf.at(variable("vfio_intx_enable_kvm"))))
        binary = found_in(elf, tmp_path)
        if calls:
            assert binary.functions["vfio_intx_enable_kvm"].address == elf.at("vfio_intx_enable_kvm")
        else:
            assert binary.missing["vfio_intx_enable_kvm"] == "it is partly inlined into other functions"


def test_symbol_and_trace_variable_must_agree(tmp_path: Path) -> None:
    elf = qemu()
    elf.put("elsewhere", elf.body("elsewhere").test_variable(elf.at(variable("vfio_region_read"))))
    elf.put("vfio_region_read", elf.body("vfio_region_read"))
    assert "different functions" in found_in(elf, tmp_path).missing["vfio_region_read"]
    # Unless the one is a part of the other.
    elf.put("vfio_region_read", elf.body("vfio_region_read").jump_not_equal(elf.at("elsewhere")))
    function = found_in(elf, tmp_path).functions["vfio_region_read"]
    assert (function.method, function.address) == ("dynsym", elf.at("vfio_region_read"))


# --- symbol tables ---


def test_symbol_tables_come_in_order(tmp_path: Path) -> None:
    for method in ("dynsym", "symtab", "gnu_debugdata"):
        elf = qemu()
        elf.dynsym = []
        names = [*elf.functions]
        setattr(elf, "debugdata" if method == "gnu_debugdata" else method, names)
        binary = found_in(elf, tmp_path)
        assert binary.missing == {}
        assert {f.method for f in binary.functions.values()} == {method}
        assert {f.address for f in binary.functions.values()} <= {elf.at(n) for n in names}
        assert binary.functions["vfio_intx_eoi"].symbol == "vfio_intx_eoi.part.0"
        assert binary.functions["vfio_intx_update"].argument == "VFIOPCIDevice"
        assert (binary.name_offset, binary.vbasedev_offset) == (NAME, VBASEDEV)


def test_a_clone_has_no_proven_argument_and_two_are_refused(tmp_path: Path) -> None:
    elf = Elf()
    elf.put("caller", elf.body("caller").call(elf.at(f"{UNMASK}.isra.0")))
    elf.symtab = [f"{UNMASK}.isra.0"]
    function = found_in(elf, tmp_path).functions["vfio_irq_unmask"]
    assert (function.symbol, function.argument) == (f"{UNMASK}.isra.0", None)
    elf.at(f"{UNMASK}.constprop.0")
    elf.symtab.append(f"{UNMASK}.constprop.0")
    assert "several copies" in found_in(elf, tmp_path).missing["vfio_irq_unmask"]


def test_another_machine_is_served_by_symbols_alone(tmp_path: Path) -> None:
    elf = replace(qemu(), machine=EM_AARCH64)
    binary = found_in(elf, tmp_path)
    assert set(binary.functions) == {*REGION, "kvm_resample_fd_notify", "vfio_irq_unmask"}


# --- USDT ---


def test_usdt_probes_lead_to_the_functions_that_hold_them(tmp_path: Path) -> None:
    elf = qemu(dtrace=True, eoi="vfio_pci_intx_eoi")
    binary = found_in(elf, tmp_path)
    assert binary.missing == {}
    methods = {name: function.method for name, function in binary.functions.items()}
    assert methods.pop("vfio_irq_unmask") == "dynsym"  # it traces nothing
    assert set(methods.values()) == {"usdt"}
    for name in ("vfio_intx_interrupt", *PCI):
        function = binary.functions[name]
        assert (function.symbol, function.address, function.argument) == (name, elf.at(name), "VFIOPCIDevice")
        assert function.offset == elf.at(name) - CODE + CODE_OFFSET
    for name in REGION:
        function = binary.functions[name]
        assert (function.symbol, function.address, function.argument) == (name, elf.at(name), "VFIORegion")
    assert binary.functions["kvm_resample_fd_notify"].argument == "gsi"
    eoi = binary.functions["vfio_intx_eoi"]
    assert (eoi.symbol, eoi.address) == ("vfio_pci_intx_eoi.part.0", elf.at("vfio_pci_intx_eoi.part.0"))
    assert (eoi.argument, eoi.filter_offset) == ("VFIODevice", None)


def test_a_whole_eoi_with_a_usdt_probe_gives_the_offset_of_pending(tmp_path: Path) -> None:
    eoi = found_in(qemu(dtrace=True, split=False), tmp_path).functions["vfio_intx_eoi"]
    assert (eoi.symbol, eoi.method, eoi.filter_offset) == ("vfio_intx_eoi", "usdt", PENDING)


def test_usdt_probes_name_the_place_of_the_name(tmp_path: Path) -> None:
    binary = found_in(qemu(dtrace=True), tmp_path)
    assert (binary.name_offset, binary.name_evidence, binary.vbasedev_offset) == (NAME, "code", VBASEDEV)


@pytest.mark.parametrize(
    "arguments",
    [
        "8@%rax",  # loaded somewhere, but by nothing in this function
        f"8@{NAME}(%rcx)",  # from what is not argument 0
        f"4@{NAME}(%rbx)",  # not a pointer
        f"8@%rax 8@{NAME}(%rbx)",  # not the first argument
        f"8@{NAME + 8}(%rbx)",  # not where the interrupt handler has it
        "",
        "8@\x1b[2J(%rbx)",
        f"8@{'9' * 500}(%rbx)",
    ],
)
def test_a_usdt_probe_that_does_not_show_the_name_leaves_it_unknown(tmp_path: Path, arguments: str) -> None:
    elf = qemu(dtrace=True)
    site = elf.at("vfio_intx_eoi.part.0") + 3
    elf.notes = [note for note in elf.notes if b"\0vfio_intx_eoi\0" not in note]
    elf.usdt("vfio_intx_eoi", site, arguments)
    binary = found_in(elf, tmp_path)
    assert binary.functions["vfio_intx_eoi"].address == elf.at("vfio_intx_eoi.part.0")
    assert (binary.name_offset, binary.name_evidence, binary.vbasedev_offset) == (None, None, VBASEDEV)
    assert {binary.functions[name].argument for name in PCI} == {None}


def test_a_usdt_probe_proves_only_its_own_functions_argument(tmp_path: Path) -> None:
    elf = qemu(dtrace=True)
    elf.notes = [note for note in elf.notes if b"vfio_intx_update" not in note]
    elf.usdt("vfio_intx_update", elf.at("vfio_intx_update") + 3, "8@%rax")
    functions = found_in(elf, tmp_path).functions
    assert {name: functions[name].argument for name in PCI} == {
        name: None if name == "vfio_intx_update" else "VFIOPCIDevice" for name in PCI
    }


def test_usdt_probes_come_before_symbols_and_trace_variables(tmp_path: Path) -> None:
    elf = qemu()
    for name in ("vfio_region_read", "vfio_intx_enable"):
        elf.usdt(name, elf.at(name) + 4, "8@%rax")
    elf.usdt("vfio_region_write", elf.at("vfio_region_write"), "8@%rdi", provider="other")
    binary = found_in(elf, tmp_path)
    assert binary.missing == {}
    methods = {name: binary.functions[name].method for name in (*REGION[:2], *PCI[:2])}
    assert methods == {
        "vfio_region_read": "usdt",
        "vfio_region_write": "dynsym",
        "vfio_intx_enable": "usdt",
        "vfio_intx_disable": "trace-variable",
    }


def test_usdt_probe_and_trace_variable_must_agree(tmp_path: Path) -> None:
    elf = qemu()
    elf.usdt("vfio_intx_interrupt", elf.at("caller"), "8@%rax")
    reason = "its USDT probe and its trace variable lie in different functions"
    assert found_in(elf, tmp_path).missing["vfio_intx_interrupt"] == reason


def test_usdt_probe_and_symbol_must_agree(tmp_path: Path) -> None:
    elf = qemu(dtrace=True)
    elf.notes = [note for note in elf.notes if b"vfio_region_read" not in note]
    elf.at("elsewhere")
    elf.usdt("vfio_region_read", elf.at("elsewhere"), "8@%rax")
    assert "different functions" in found_in(elf, tmp_path).missing["vfio_region_read"]
    # Unless the one is a part of the other.
    elf.put("vfio_region_read", elf.body("vfio_region_read").jump_not_equal(elf.at("elsewhere")))
    function = found_in(elf, tmp_path).functions["vfio_region_read"]
    assert (function.method, function.address) == ("dynsym", elf.at("vfio_region_read"))


def test_a_symbol_of_the_eoi_entry_agrees_with_the_probe_in_its_part(tmp_path: Path) -> None:
    elf = qemu(dtrace=True, exported=(*EXPORTED, "vfio_intx_eoi"))
    eoi = found_in(elf, tmp_path).functions["vfio_intx_eoi"]
    assert (eoi.symbol, eoi.method) == ("vfio_intx_eoi.part.0", "usdt")
    assert (eoi.address, eoi.filter_offset) == (elf.at("vfio_intx_eoi.part.0"), None)


def test_two_usdt_sites_in_one_function_are_one_function(tmp_path: Path) -> None:
    elf = qemu(dtrace=True)
    for name in ("vfio_intx_disable", "vfio_region_read"):
        elf.usdt(name, elf.at(name), "8@%rsi")
    binary = found_in(elf, tmp_path)
    assert binary.missing == {}
    assert binary.functions["vfio_intx_disable"].address == elf.at("vfio_intx_disable")


def test_a_usdt_site_in_no_known_function_is_missing(tmp_path: Path) -> None:
    for name in ("vfio_intx_disable", "vfio_region_read"):  # without a symbol, and with one
        elf = qemu(dtrace=True)
        elf.usdt(name, elf.at(name) + 0x100, "8@%rsi")  # behind its last instruction
        assert found_in(elf, tmp_path).missing == {name: "its USDT probe lies outside of every known function"}


def test_without_unwind_entries_a_symbol_knows_its_usdt_site(tmp_path: Path) -> None:
    elf = qemu(dtrace=True)
    data = bytearray(elf.write())
    struct.pack_into("<I", data, 64 + 2 * 56, 0)  # the third program header is no longer PT_GNU_EH_FRAME
    binary = found_in(bytes(data), tmp_path)
    assert binary.functions["kvm_resample_fd_notify"].method == "usdt"
    assert binary.functions["kvm_resample_fd_notify"].address == elf.at("kvm_resample_fd_notify")
    assert binary.missing["vfio_intx_disable"] == "its USDT probe lies outside of every known function"


def test_a_usdt_probe_inlined_into_two_functions_is_missing(tmp_path: Path) -> None:
    elf = qemu(dtrace=True)
    elf.notes = [note for note in elf.notes if b"vfio_intx_disable_kvm" not in note]
    for host in ("vfio_intx_update", "vfio_intx_disable"):  # these have probes of their own
        elf.usdt("vfio_intx_disable_kvm", elf.at(host) + 3, "8@%rsi")
    elf.usdt("vfio_intx_interrupt", elf.at("caller"), "8@%rsi")  # this has none
    elf.usdt("vfio_intx_enable_kvm", elf.at("vfio_intx_enable") + 3, "8@%rsi")
    missing = found_in(elf, tmp_path).missing
    assert missing == {
        "vfio_intx_disable_kvm": "it is inlined into other functions",
        "vfio_intx_interrupt": "it is inlined into other functions",
        "vfio_intx_enable_kvm": "it is partly inlined into other functions",
    }


def test_usdt_addresses_follow_the_base_section(tmp_path: Path) -> None:
    elf = qemu()
    elf.base_section = 0x601000
    elf.usdt("vfio_region_read", elf.at("vfio_region_read") + 4 - 0x1000, "8@%rdi", base=0x600000)
    function = found_in(elf, tmp_path).functions["vfio_region_read"]
    assert (function.method, function.address) == ("usdt", elf.at("vfio_region_read"))


def test_usdt_notes_that_lead_nowhere_are_ignored(tmp_path: Path) -> None:
    elf = qemu()
    elf.usdt("vfio_region_read", 0, "8@%rdi")
    elf.usdt("vfio_region_read", 2**64 - 1, "8@%rdi")
    assert found_in(elf, tmp_path).functions["vfio_region_read"].method == "dynsym"


def test_usdt_probes_lie_where_readelf_says(tmp_path: Path) -> None:
    elf = qemu(dtrace=True)
    binary = found_in(elf, tmp_path)
    listing = subprocess.run(["readelf", "-nW", binary.path], capture_output=True, text=True, check=True).stdout
    places = re.findall(r"Provider: qemu\n\s*Name: (\S+)\n\s*Location: 0x0*(\w+), ", listing)
    assert {name for name, _ in places} == {n for n, f in binary.functions.items() if f.method == "usdt"}
    for name, place in places:
        assert 0 <= int(place, 16) - binary.functions[name].address < 0x20


# --- what the probes can use ---


def test_a_function_whose_device_is_not_proved_is_not_probed(tmp_path: Path) -> None:
    binary = found_in(qemu(dtrace=True), tmp_path)
    assert {unreadable(function, binary) for function in binary.functions.values()} == {""}
    region, enable = binary.functions["vfio_region_read"], binary.functions["vfio_intx_enable"]
    assert "first argument" in unreadable(replace(region, argument=None), binary)
    assert "VFIODevice" in unreadable(enable, replace(binary, vbasedev_offset=None))
    assert unreadable(region, replace(binary, vbasedev_offset=None)) == ""


# --- what is no sound QEMU ---


def test_what_is_no_elf_file_is_said_in_a_sentence(tmp_path: Path) -> None:
    with pytest.raises(IntxtraceError, match="not an ELF file"):
        found_in(b"#!/bin/sh\nexec qemu\n", tmp_path)
    with pytest.raises(IntxtraceError, match="not an ELF file"):
        found_in(b"", tmp_path)
    narrow = bytearray(qemu().write())
    narrow[4] = 1
    with pytest.raises(IntxtraceError, match="64-bit little-endian"):
        found_in(bytes(narrow), tmp_path)
    with pytest.raises(IntxtraceError, match="No such file"):
        find_functions(tmp_path / "absent")
    with pytest.raises(IntxtraceError, match="not a regular file"):
        find_functions(tmp_path)
    with pytest.raises(IntxtraceError, match="embedded null"):
        find_functions(Path("a\0b"))


def test_a_fifo_does_not_stop_the_finder(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "qemu")
    with pytest.raises(IntxtraceError, match="not a regular file"):
        find_functions(tmp_path / "qemu")


def test_another_program_has_nothing_and_says_why() -> None:
    binary = find_functions(Path("/bin/sh"))
    assert binary.functions == {}
    assert len(binary.missing) == 12
    assert binary.version is None


def sound_or_refused(data: bytes, folder: Path) -> None:
    try:
        binary = found_in(data, folder)
    except IntxtraceError:
        return
    assert len(binary.functions) + len(binary.missing) == 12
    assert all(0 <= f.offset < len(data) for f in binary.functions.values())


def full() -> bytes:
    elf = replace(qemu(), version="7.2.0", build_id=b"\1" * 20, base_section=0x601000)
    elf.symtab, elf.debugdata = list(elf.functions), list(elf.functions)
    elf.usdt("vfio_intx_interrupt", elf.at("vfio_intx_interrupt") + 3, "8@%rax", base=0x601000)
    return elf.write()


def test_every_truncation_is_refused_or_sound(tmp_path: Path) -> None:
    data = full()
    for size in range(0, len(data), 61):
        sound_or_refused(data[:size], tmp_path)


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    changes=st.lists(
        st.tuples(
            st.integers(0, 2**32),
            st.sampled_from([1, 2, 4, 8]),
            st.integers(0, 2**64 - 1) | st.just(2**64 - 1),
        ),
        min_size=1,
        max_size=8,
    ),
    headers=st.booleans(),
)
def test_corruption_is_refused_or_sound(tmp_path: Path, changes: list[tuple[int, int, int]], headers: bool) -> None:
    data = bytearray(full())
    section_table = struct.unpack_from("<Q", data, 40)[0]
    for at, size, value in changes:
        if headers:  # where a wrong number does most harm
            span = 232 + len(data) - section_table
            at = at % span
            at = at if at < 232 else at - 232 + section_table
        else:
            at = CODE_OFFSET + at % (len(data) - CODE_OFFSET)
        data[at : at + size] = value.to_bytes(8, "little")[:size]
    sound_or_refused(bytes(data), tmp_path)
