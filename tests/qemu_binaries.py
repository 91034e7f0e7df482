"""What is known of real QEMU binaries, and what their disassembly must show."""

from __future__ import annotations

import re
import subprocess

from intxtrace.capture.qemu_functions import QemuBinary, QemuFunction

# Build-id → version, vbasedev, name, filter, then file offsets in _ORDER. Recorded from the disassembly of
# Debian's amd64 packages, independently of this finder.
_ORDER = (
    "vfio_intx_interrupt",
    "vfio_intx_eoi",
    "vfio_irq_unmask",
    "vfio_region_read",
    "vfio_region_write",
    "vfio_region_mmaps_set_enabled",
    "kvm_resample_fd_notify",
)
Layout = tuple[str, int | None, int | None, int | None, tuple[int, ...]]
KNOWN: dict[str, Layout] = {
    "e75c4e44f088a4a9c5bb4880bed10e7a81dc2606": (
        "5.2.0",
        0x8F0,
        0x20,
        None,
        (0x6B44D0, 0x6B4280, 0x71F940, 0x71D2D0, 0x71D130, 0x7202B0, 0x709760),
    ),
    "d9541fd67c4ea37f9ca7fca0f5096f32b3b7e7e0": (
        "7.2.22",
        0xA30,
        0x20,
        None,
        (0x727450, 0x7271B0, 0x71B9A0, 0x7187E0, 0x718610, 0x71C3B0, 0x7F2790),
    ),
    "e5588a4ae9dc724ce182d9d2421089e0668fd1bd": (
        "10.0.13",
        0xAB0,
        0x48,
        None,
        (0x8C9110, 0x8C8E40, 0x713B80, 0x713790, 0x7135A0, 0x714770, 0x92ABE0),
    ),
    "19082c1198d23ae45c6960a77fdc889301dfb4de": (
        "11.1.3",
        0xAD0,
        0x48,
        0x128,
        (0x83D340, 0x83D1A0, 0x846C00, 0x84C310, 0x84C170, 0x84D310, 0x9B24E0),
    ),
}


def layout_of(binary: QemuBinary) -> Layout:
    """The same figures as the finder has them."""
    functions = binary.functions
    return (
        (binary.version or "").split(" ")[0],
        binary.vbasedev_offset,
        binary.name_offset,
        functions["vfio_intx_eoi"].filter_offset,
        tuple(functions[name].offset for name in _ORDER),
    )


def disassemble(binary: QemuBinary, function: QemuFunction, size: int) -> list[str]:
    """objdump's instructions of the first `size` bytes."""
    window = (f"--start-address={function.address}", f"--stop-address={function.address + size}")
    listing = subprocess.run(
        ["objdump", "-d", "--no-show-raw-insn", *window, binary.path],
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    return re.findall(r"^\s*[0-9a-f]+:\t(.*?)\s*$", listing, re.MULTILINE)


def check_against_objdump(binary: QemuBinary) -> None:
    """Every function begins like one, tests its own trace variable, and the EOI is the one with the deeds."""
    for name, function in binary.functions.items():
        assert function.argument is not None, name
        code = disassemble(binary, function, 0x600)
        assert re.match(r"endbr64|push|sub |mov |cmp|test|lea", code[0]), (name, code[0])
        if name == "vfio_irq_unmask":
            continue
        event = "vfio_pci_intx_eoi" if "pci" in function.symbol else name
        own = [i for i, line in enumerate(code) if f"<_TRACE_{event.upper()}_DSTATE" in line]
        assert own, name
        others = {m.group(1) for line in code[: own[0]] if (m := re.search(r"<(_TRACE_\w+_DSTATE)", line))}
        if name == "vfio_intx_enable":  # 11.1 inlines vfio_cpr_intx_enable_kvm, which traces alike
            others.discard("_TRACE_VFIO_INTX_ENABLE_KVM_DSTATE")
        assert others <= {f"_TRACE_{event.upper()}_DSTATE"}, name
    eoi = binary.functions["vfio_intx_eoi"]
    text = disassemble(binary, eoi, 0xA0)
    end = next(i for i, line in enumerate(text) if "jmp" in line and "irq" in line and "<vfio_" in line)
    body = "\n".join(text[: end + 1])
    assert re.search(r"call\s+\w+ <pci_set_irq", body)
    clears = re.findall(r"movb\s+\$0x0,0x(\w+)\(%r", body)
    assert len(clears) == 1
    tests = re.findall(r"cmpb\s+\$0x0,0x(\w+)\(%r[a-z]+\)", body)
    if eoi.filter_offset is None:
        assert tests == []
    else:
        assert tests == clears == [f"{eoi.filter_offset:x}"]
    assert binary.vbasedev_offset is not None
    assert f"-{binary.vbasedev_offset:#x}(%r" in body or f"sub    ${binary.vbasedev_offset:#x},%rdi" in body
    assert binary.name_offset is not None
    whole = "\n".join(disassemble(binary, eoi, 0xE0))
    assert re.search(rf"mov\s+{binary.name_offset:#x}\(%r\w+\),%r", whole)
    handler = "\n".join(disassemble(binary, binary.functions["vfio_intx_interrupt"], 0x180))
    pending = binary.vbasedev_offset + int(clears[0], 16)
    assert re.search(rf"movb\s+\$0x1,{pending:#x}\(%r", handler)
    assert re.search(rf"mov\s+{binary.vbasedev_offset + binary.name_offset:#x}\(%r\w+\),%r", handler)
