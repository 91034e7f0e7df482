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

from intxtrace.capture.qemu_functions import QemuBinary, find_functions
from intxtrace.errors import IntxtraceError
from tests.elf_builder import CODE, CODE_OFFSET, DATA_SHIFT, EM_AARCH64, Elf
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


def qemu(*, split: bool = True, exported: tuple[str, ...] = EXPORTED, eoi: str = "vfio_intx_eoi") -> Elf:
    """A QEMU as Debian builds it: the static functions have no symbol, the trace variables are exported."""
    elf = Elf()
    elf.put(
        "vfio_intx_interrupt",
        elf.body("vfio_intx_interrupt")
        .raw("4889fd")  # mov %rdi,%rbp
        .raw("c685" + i32(VBASEDEV + PENDING) + "01")  # movb $1,intx.pending(%rbp)
        .test_variable(elf.at(variable("vfio_intx_interrupt")))
        .raw("488b85" + i32(VBASEDEV + NAME)),  # mov name(%rbp),%rax
    )
    part = f"{eoi}.part.0" if split else eoi
    body = elf.body(part).raw("4889fb")  # mov %rdi,%rbx
    if not split:
        body.raw("80bb" + i32(PENDING) + "00")  # cmpb $0,pending(%rbx)
    body.test_variable(elf.at(variable(eoi)))
    body.raw(f"488b73{NAME:02x}")  # mov name(%rbx),%rsi
    body.raw(f"c643{PENDING:02x}00")  # movb $0,pending(%rbx)
    body.raw("488dbb" + i32(-VBASEDEV))  # lea -vbasedev(%rbx),%rdi
    elf.put(part, body.jump(elf.at(UNMASK)))
    if split:
        elf.put(eoi, elf.body(eoi).raw(f"807f{PENDING:02x}00").jump_not_equal(elf.at(part)))
    for name in PCI:
        body = elf.body(name).raw("4989fc")  # mov %rdi,%r12
        body.test_variable(elf.at(variable(name)))
        elf.put(name, body.raw("498b8424" + i32(VBASEDEV + NAME)))  # mov name(%r12),%rax
    for name in (*REGION, "kvm_resample_fd_notify"):
        elf.put(name, elf.body(name).test_variable(elf.at(variable(name))))
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
    assert eoi.direct_calls == 0  # only a conditional jump leads there
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
    assert {f.direct_calls for f in binary.functions.values()} == {None}


# --- USDT ---


def test_usdt_notes_come_first(tmp_path: Path) -> None:
    elf = qemu()
    inside = elf.at("vfio_intx_interrupt") + 3
    elf.usdt("vfio_intx_interrupt", inside, "8@%rax -1@$65", semaphore=elf.data_at())
    elf.usdt("vfio_pci_intx_eoi", elf.at("vfio_intx_eoi.part.0") + 3, "8@32(%rbx)")
    elf.usdt("vfio_pci_intx_eoi", elf.at("caller"), "8@%rsi")
    elf.usdt("kvm_resample_fd_notify", elf.at("kvm_resample_fd_notify"), "-4@%edi")
    elf.usdt("vfio_region_read", elf.at("vfio_region_read"), "8@%rdi", provider="other")
    binary = found_in(elf, tmp_path)
    interrupt = binary.functions["vfio_intx_interrupt"]
    assert (interrupt.method, interrupt.argument, interrupt.direct_calls) == ("usdt", "name", None)
    assert (interrupt.address, interrupt.offset) == (inside, inside - CODE + CODE_OFFSET)
    assert [(s.semaphore, s.arguments) for s in interrupt.sites] == [(elf.data_at() - DATA_SHIFT, "8@%rax -1@$65")]
    eoi = binary.functions["vfio_intx_eoi"]
    assert (eoi.symbol, eoi.filter_offset) == ("vfio_pci_intx_eoi", None)
    assert [(s.address, s.semaphore) for s in eoi.sites] == [
        (elf.at("vfio_intx_eoi.part.0") + 3, None),
        (elf.at("caller"), None),
    ]
    assert binary.functions["kvm_resample_fd_notify"].argument == "gsi"
    assert binary.functions["vfio_region_read"].method == "dynsym"


def test_usdt_places_prove_layouts_without_trace_variables(tmp_path: Path) -> None:
    elf = qemu()
    elf.dynsym = [*EXPORTED]
    elf.usdt("vfio_intx_interrupt", elf.at("vfio_intx_interrupt") + 3, "8@%rax -1@$65")
    elf.usdt("vfio_intx_eoi", elf.at("vfio_intx_eoi.part.0") + 3, "8@32(%rbx)")
    binary = found_in(elf, tmp_path)
    assert (binary.name_offset, binary.name_evidence, binary.vbasedev_offset) == (NAME, "code", VBASEDEV)
    assert binary.functions["vfio_irq_unmask"].argument == "VFIODevice"


def test_usdt_addresses_follow_the_base_section(tmp_path: Path) -> None:
    elf = qemu()
    elf.base_section = 0x601000
    target = elf.at("vfio_region_read")
    elf.usdt("vfio_region_read", target - 0x1000, "8@%rdi", base=0x600000)
    assert found_in(elf, tmp_path).functions["vfio_region_read"].address == target


def test_usdt_notes_that_lead_nowhere_are_ignored(tmp_path: Path) -> None:
    elf = qemu()
    elf.usdt("vfio_region_read", 0, "8@%rdi")
    elf.usdt("vfio_region_read", 2**64 - 1, "8@%rdi")
    elf.usdt("vfio_region_read", elf.at("vfio_region_read"), "8@%rdi", semaphore=2**63)
    elf.usdt("vfio_region_read", elf.at("vfio_region_read"), "8@%rdi\x1b[2J")
    assert found_in(elf, tmp_path).functions["vfio_region_read"].method == "dynsym"


def test_usdt_sites_read_as_readelf_reads_them(tmp_path: Path) -> None:
    elf = qemu()
    elf.usdt("vfio_intx_enable", elf.at("vfio_intx_enable") + 4, "8@-24(%rbp)", semaphore=elf.data_at())
    elf.usdt("vfio_intx_enable", elf.at("caller"), "8@%rsi", semaphore=elf.data_at())
    elf.usdt("vfio_intx_update", elf.at("vfio_intx_update"), "8@%rbp -4@%eax -4@16(%rsp)")
    binary = found_in(elf, tmp_path)
    listing = subprocess.run(["readelf", "-nW", binary.path], capture_output=True, text=True, check=True).stdout
    expected = re.findall(
        r"Provider: qemu\n\s*Name: (\S+)\n\s*Location: 0x0*(\w+), Base: \w+, Semaphore: 0x0*(\w+)\n"
        r"\s*Arguments: (.*)",
        listing,
    )
    sites = [s for name in ("vfio_intx_enable", "vfio_intx_update") for s in binary.functions[name].sites]
    read = [
        (
            site.event,
            f"{site.address:x}",
            "0" if site.semaphore is None else f"{site.semaphore + DATA_SHIFT:x}",
            site.arguments,
        )
        for site in sites
    ]
    assert read == expected
    assert len(read) == 3


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
