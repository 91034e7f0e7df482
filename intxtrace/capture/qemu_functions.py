"""Finds the functions of a QEMU binary that handle INTx, even in a stripped one, and how to read their
argument.

The order: USDT notes (builds with `--enable-trace-backends=dtrace`), then `.dynsym`, `.symtab`,
`.gnu_debugdata`, then the exported trace variables. A USDT note and a trace variable say where a function
traces its event: the note holds that place (systemtap's sys/sdt.h), and QEMU built with modules exports every
`_TRACE_*_DSTATE`, which the code tests there (`cmpw $0,disp32(%rip)`). The place lies in the function that the
event is named after, whose start comes from the unwind table. What speaks of a function must agree.

Layouts are read from the code and count only when two functions say the same; see `QemuBinary`. Sources of
outside rules: QEMU 4.0 to 11.1, hw/vfio/pci.c, hw/vfio/{common,helpers,region,device}.c, trace-events.
"""

from __future__ import annotations

import os
import re
import stat
import struct
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from intxtrace.capture.elf import ElfImage, Symbol
from intxtrace.capture.qemu_code import REGISTERS, Code, Method, Site
from intxtrace.errors import IntxtraceError

Argument = Literal["VFIODevice", "VFIOPCIDevice", "VFIORegion", "gsi"]


@dataclass(frozen=True, slots=True)
class QemuFunction:
    """A function at whose first instruction to put one probe.

    `name`: the same for every QEMU version. `symbol`: what it is called in this binary; without a symbol the
    name of its event, which is that of the function in the source, with `.part.0` where the code proved to be
    the split part. `offset`: file offset for a uprobe. `address`: virtual address (before relocation, if the
    program is PIE). `method`: the first in the order above of what gives this address. `argument`: what the
    first argument is; None when the code does not prove it. `filter_offset`: only for vfio_intx_eoi, and only
    where the function runs on every BAR access: the byte at this offset from the argument (intx.pending) is 0
    when the call is no EOI.
    """

    name: str
    symbol: str
    offset: int
    address: int
    method: Method
    argument: Argument | None
    filter_offset: int | None


@dataclass(frozen=True, slots=True)
class QemuBinary:
    """What one QEMU binary offers.

    `version`: as the binary prints it, e.g. `7.2.22 (Debian 1:7.2+dfsg-7+deb12u18+b3)` (untrusted; printable
    ASCII). `functions` and `missing` (name → reason) together hold every wanted name. `name_offset`: of `char
    *name` in VFIODevice, with `name_evidence` `code` (vfio_intx_eoi and vfio_intx_interrupt load it from the
    same place) or `version` (the rule below). `vbasedev_offset`: of the VFIODevice in VFIOPCIDevice, from the
    code of the same two functions; None when they do not prove it.
    """

    path: Path
    build_id: str | None
    version: str | None
    functions: dict[str, QemuFunction]
    name_offset: int | None
    name_evidence: Literal["code", "version"] | None
    vbasedev_offset: int | None
    missing: dict[str, str]


@dataclass(frozen=True, slots=True)
class _Wanted:
    """`symbols`, `events`: its names over the versions. `direct`: only direct calls reach it."""

    argument: Argument
    symbols: tuple[str, ...]
    events: tuple[str, ...]
    direct: bool = True


# Functions behind pointers (`direct` False): vfio_intx_interrupt (fd handler), the EOI (VFIODeviceOps) and
# the region accessors (MemoryRegionOps). vfio_pci_intx_eoi since 10.1, vfio_device_irq_unmask since 10.1.
# vfio_intx_update took a PCIDevice* in 4.0: the same address, VFIOPCIDevice begins with it.
_WANTED = {
    "vfio_intx_interrupt": _Wanted("VFIOPCIDevice", ("vfio_intx_interrupt",), ("vfio_intx_interrupt",), direct=False),
    "vfio_intx_eoi": _Wanted(
        "VFIODevice",
        ("vfio_intx_eoi", "vfio_pci_intx_eoi"),
        ("vfio_intx_eoi", "vfio_pci_intx_eoi"),
        direct=False,
    ),
    **{
        name: _Wanted("VFIOPCIDevice", (name,), (name,))
        for name in (
            "vfio_intx_enable",
            "vfio_intx_disable",
            "vfio_intx_enable_kvm",
            "vfio_intx_disable_kvm",
            "vfio_intx_update",
        )
    },
    "vfio_region_read": _Wanted("VFIORegion", ("vfio_region_read",), ("vfio_region_read",), direct=False),
    "vfio_region_write": _Wanted("VFIORegion", ("vfio_region_write",), ("vfio_region_write",), direct=False),
    "vfio_region_mmaps_set_enabled": _Wanted(
        "VFIORegion", ("vfio_region_mmaps_set_enabled",), ("vfio_region_mmaps_set_enabled",)
    ),
    "kvm_resample_fd_notify": _Wanted("gsi", ("kvm_resample_fd_notify",), ("kvm_resample_fd_notify",)),
    "vfio_irq_unmask": _Wanted("VFIODevice", ("vfio_unmask_single_irqindex", "vfio_device_irq_unmask"), ()),
}
_EVENTS = {event: name for name, wanted in _WANTED.items() for event in wanted.events}
_VARIABLES = {f"_TRACE_{event.upper()}_DSTATE": event for event in _EVENTS}
_STEMS = (*(symbol for wanted in _WANTED.values() for symbol in wanted.symbols), *_VARIABLES)
# What compilers append to the name of a function that they changed.
_SUFFIXES = re.compile(rb"(?:\.(?:part|isra|constprop|lto_priv)\.[0-9]{1,9}){0,4}")
_VERSION = re.compile(rb"QEMU emulator version ([ -~]{1,120})\n")
# Offset of VFIODevice.name: changed by 3d779abafe (8.2); checked from 4.0 to 11.1.
_NAME_OFFSETS = (((4, 0), (8, 1), 0x20), ((8, 2), (11, 1), 0x48))
# A note's first argument where it is 64 bits in memory, as gas writes it: `8@72(%rbx) -1@$65`.
_MEMORY = re.compile(rb"8@(-?[0-9]{1,9})\(%(" + b"|".join(REGISTERS) + rb")\)(?: |\Z)")
_MOST_USDT_SITES = 256


def find_functions(path: Path) -> QemuBinary:
    """Finds every wanted function of a QEMU binary, or says why not.

    `path` may lead into another mount namespace (/proc/PID/exe); links are followed, only a regular file is
    read. Raises IntxtraceError when the file cannot be read or is not a sound 64-bit little-endian ELF file.
    """
    try:
        # Non-blocking, so that a FIFO of this name cannot stop the tool.
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)
    except (OSError, ValueError) as error:  # ValueError: a NUL in the path
        reason = error.strerror if isinstance(error, OSError) else str(error)
        raise IntxtraceError(f"{path} cannot be read: {reason}; check the path and run as root.") from error
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise IntxtraceError(f"{path} is not a regular file; give the QEMU binary itself.")
    with os.fdopen(descriptor, "rb") as stream:
        return _search(ElfImage(stream, str(path)), path)


class _MissingError(Exception):
    """Why one function cannot be given."""


@dataclass(frozen=True, slots=True)
class _Found:
    """A function's place; `abi`: it has its source's name, so the compiler did not change its parameters."""

    symbol: str
    where: range
    method: Method
    abi: bool


@dataclass(frozen=True, slots=True)
class _Eoi:
    """Code proved to be the EOI: it clears the byte `pending` of argument 0 after a test of that byte.

    `tests`: the test is inside, so that the code runs on every BAR access; else only what follows the test is
    here.
    """

    where: range
    pending: int
    tests: bool


def _search(elf: ElfImage, path: Path) -> QemuBinary:
    symbols, variables = _symbols(elf)
    code = Code(elf, symbols, variables, _usdt_sites(elf), _EVENTS)
    functions: dict[str, QemuFunction] = {}
    missing: dict[str, str] = {}
    found: dict[str, _Found] = {}
    for name in _WANTED:
        try:
            found[name] = _locate(name, symbols.get(name, []), code)
        except _MissingError as reason:
            missing[name] = str(reason)

    eoi = _prove_eoi(found["vfio_intx_eoi"].where, code) if "vfio_intx_eoi" in found else None
    interrupt = found["vfio_intx_interrupt"].where if "vfio_intx_interrupt" in found else None
    vbasedev, name_offset = _layout(eoi, interrupt, code)
    version = _version(elf)
    by_version = _name_offset_by_version(version)
    for name, place in found.items():
        try:
            functions[name] = _finish(name, place, eoi, vbasedev, name_offset, code)
        except _MissingError as reason:
            missing[name] = str(reason)
    return QemuBinary(
        path=path,
        build_id=_build_id(elf),
        version=version,
        functions=functions,
        name_offset=by_version if name_offset is None else name_offset,
        name_evidence="code" if name_offset is not None else None if by_version is None else "version",
        vbasedev_offset=vbasedev,
        missing={name: missing[name] for name in _WANTED if name in missing},
    )


# --- what the file says about itself ---------------------------------------------------------------------


def _build_id(elf: ElfImage) -> str | None:
    for kind, owner, data in elf.notes(".note.gnu.build-id"):
        if kind == 3 and owner == b"GNU" and 0 < len(data) <= 64:  # NT_GNU_BUILD_ID
            return data.hex()
    return None


def _version(elf: ElfImage) -> str | None:
    """The text of `qemu --version` (softmmu/vl.c, system/vl.c: version())."""
    match = _VERSION.search(elf.section(".rodata") or b"")
    return match.group(1).decode("ascii") if match is not None else None


def _name_offset_by_version(version: str | None) -> int | None:
    match = re.match(r"(\d{1,3})\.(\d{1,3})\b", version or "")
    if match is None:
        return None
    release = (int(match.group(1)), int(match.group(2)))
    return next((offset for first, last, offset in _NAME_OFFSETS if first <= release <= last), None)


def _usdt_sites(elf: ElfImage) -> list[Site]:
    """The places of the wanted events' probes, from `.note.stapsdt` (systemtap's sys/sdt.h, note type 3).

    A note's semaphore does not matter: nothing is attached to the probe itself.
    """
    base_now = elf.sections.get(".stapsdt.base")
    sites: list[Site] = []
    for kind, owner, data in elf.notes(".note.stapsdt"):
        parts = data[24:].split(b"\0")
        if kind != 3 or owner != b"stapsdt" or len(data) < 24 or len(parts) < 3 or parts[0] != b"qemu":
            continue
        event = parts[1].decode("latin-1")
        if event not in _EVENTS:
            continue
        address, base = struct.unpack_from("<QQ", data)
        # Prelink may have moved the code after the note was written; the base section moved along.
        address += base_now.address - base if base_now is not None and base else 0
        if elf.is_code(address) and len(sites) < _MOST_USDT_SITES:
            load = _MEMORY.match(parts[2])
            register = (REGISTERS.index(load[2]), int(load[1])) if load is not None else None
            sites.append(Site(event, address, register))
    return sites


def _symbols(elf: ElfImage) -> tuple[dict[str, list[tuple[Symbol, Method]]], dict[int, str]]:
    """Wanted name → its symbols, of the first table with any; trace variable's address → event."""
    names = {symbol: name for name, wanted in _WANTED.items() for symbol in wanted.symbols}
    found: dict[str, list[tuple[Symbol, Method]]] = {}
    variables: dict[int, str] = {}
    tables: list[tuple[ElfImage | None, str, Method]] = [
        (elf, ".dynsym", "dynsym"),
        (elf, ".symtab", "symtab"),
        (elf.debugdata(), ".symtab", "gnu_debugdata"),
    ]
    for image, table, method in tables:
        fresh: dict[str, list[tuple[Symbol, Method]]] = {}
        for symbol in image.symbols(table, _STEMS, _SUFFIXES) if image is not None else ():
            if not symbol.is_function:
                variables.setdefault(symbol.address, _VARIABLES.get(symbol.name, ""))
            elif elf.is_code(symbol.address):
                fresh.setdefault(names.get(symbol.name.split(".")[0], ""), []).append((symbol, method))
        found = fresh | found
    return found, {address: event for address, event in variables.items() if event}


# --- the decisions ---------------------------------------------------------------------------------------


def _locate(name: str, symbols: list[tuple[Symbol, Method]], code: Code) -> _Found:
    """Where a function is, by its symbol and by where it traces its event; raises _MissingError."""
    chosen = _pick(name, symbols, code)
    traces = code.traces.get(name, [])
    if not traces:
        if chosen is None:
            raise _MissingError("the binary has no symbol, USDT probe or exported trace variable of this name")
        return chosen
    trace, *others = traces
    homes = trace.homes
    if trace.strays:
        # Without unwind entries a symbol may still know its own code.
        if chosen is None or not all(stray in chosen.where for stray in trace.strays):
            raise _MissingError("its USDT probe lies outside of every known function")
        homes = [*homes, chosen.where]
    place = next((h for h in homes if chosen is not None and h.start == chosen.where.start), None)
    if place is None:
        # A function that traces another event too is that event's, with this one inlined.
        owned = {t.homes[0].start for n, ts in code.traces.items() if n != name for t in ts if len(t.homes) == 1}
        own = [h for h in homes if h.start not in owned]
        if len(own) != 1:
            raise _MissingError("it is inlined into other functions")
        place = own[0]
    # Another function that traces the event may hold an inlined copy, whose runs a probe would miss; but one
    # that calls this function traces alike for itself (vfio_cpr_intx_enable_kvm in 11.1). What QEMU calls
    # through a pointer is never inlined there, and those calls are the ones that count.
    if _WANTED[name].direct and not all(code.leads(home, place) for home in homes if home != place):
        raise _MissingError("it is partly inlined into other functions")
    if not all(place in other.homes for other in others):
        raise _MissingError("its USDT probe and its trace variable lie in different functions")
    if chosen is None:
        return _Found(trace.event, place, trace.method, abi=False)
    if place.start == chosen.where.start:
        return replace(chosen, method="usdt") if trace.method == "usdt" else chosen
    if not code.leads(chosen.where, place):
        raise _MissingError("its symbol and the code that traces its event lie in different functions")
    # Split by the compiler: of the EOI the second part is the real one, of others the entry runs for every
    # call.
    if name == "vfio_intx_eoi":
        return _Found(f"{chosen.symbol}.part.0", place, trace.method, abi=False)
    return chosen


def _pick(name: str, symbols: list[tuple[Symbol, Method]], code: Code) -> _Found | None:
    """The symbol to probe: the whole function, or for the EOI the part after the test."""
    whole = {s.address: (s, m) for s, m in symbols if s.name in _WANTED[name].symbols}
    parts = {s.address: (s, m) for s, m in symbols if ".part." in s.name}
    clones = {s.address: (s, m) for s, m in symbols if s.address not in whole and s.address not in parts}
    options = parts if name == "vfio_intx_eoi" and parts else whole or clones
    if not options:
        return None
    if len(options) > 1 or (options is whole and clones and _WANTED[name].direct):
        raise _MissingError("the compiler made several copies of it")
    symbol, method = next(iter(options.values()))
    where = code.elf.function(symbol.address)
    if where is None or where.start != symbol.address:
        where = range(symbol.address, symbol.address + max(symbol.size, 1))
    return _Found(symbol.name, where, method, abi=options is whole)


def _prove_eoi(where: range, code: Code) -> _Eoi | None:
    """The EOI by its deeds: `if (!pending) return; …; pending = false` in one function or split into two."""
    if not code.x86:
        return None
    stores, tests = code.stores(where, 0), code.tests(where)
    whole = {(where.start, d) for d in stores & tests}
    behind = {(where.start, d) for entry in code.jumpers(where) for d in stores & code.tests(entry)}
    ahead = {(p.start, d) for p in code.jump_targets(where) for d in code.stores(p, 0) & tests}
    proofs = whole or behind or ahead
    if len(proofs) != 1:
        return None
    start, pending = next(iter(proofs))
    place = where if start == where.start else code.elf.function(start)
    return None if place is None else _Eoi(place, pending, tests=bool(whole))


def _layout(eoi: _Eoi | None, interrupt: range | None, code: Code) -> tuple[int | None, int | None]:
    """Offsets of vbasedev in VFIOPCIDevice and of name in VFIODevice, each where both functions agree on one
    value.

    The EOI gets a VFIODevice, computes the VFIOPCIDevice (`container_of`) and clears `intx.pending`; the
    interrupt handler gets the VFIOPCIDevice and sets it. Both load the name for their trace event.
    """
    if eoi is None or interrupt is None:
        return None, None
    asserts = code.stores(interrupt, 1)
    vbasedevs = {v for v in code.subtracted(eoi.where) if v + eoi.pending in asserts}
    if len(vbasedevs) != 1:
        return None, None
    vbasedev = vbasedevs.pop()
    loads = code.loads(interrupt)
    names = {d for d in code.loads(eoi.where) if d > 0 and vbasedev + d in loads}
    return vbasedev, names.pop() if len(names) == 1 else None


def _finish(
    name: str, place: _Found, eoi: _Eoi | None, vbasedev: int | None, name_offset: int | None, code: Code
) -> QemuFunction:
    """The probe at a place, with what is proved of its argument; raises _MissingError."""
    wanted = _WANTED[name]
    symbol, where, filter_offset = place.symbol, place.where, None
    argument: Argument | None = wanted.argument if place.abi else None
    if name == "vfio_intx_eoi":
        if eoi is not None:
            argument, where = "VFIODevice", eoi.where
            filter_offset = eoi.pending if eoi.tests else None
            if not eoi.tests and ".part." not in symbol:
                symbol += ".part.0"
        elif ".part." not in symbol:
            raise _MissingError("its code does not show how to tell an EOI from any other BAR access")
    elif name == "vfio_intx_interrupt" and eoi is not None and vbasedev is not None:
        argument = wanted.argument  # _layout rests on it
    elif argument is None and wanted.argument == "VFIOPCIDevice" and vbasedev is not None and name_offset is not None:
        argument = wanted.argument if vbasedev + name_offset in code.loads(where) else None
    offset = code.elf.file_offset(where.start)
    if offset is None:
        raise _MissingError("its code is not in the file")
    if wanted.direct and code.x86 and not code.called(where):
        raise _MissingError("nothing calls it: it is inlined")
    if name == "vfio_irq_unmask" and eoi is not None and not code.leads(eoi.where, where):
        raise _MissingError("the EOI does not call it: it is inlined there")
    return QemuFunction(
        name=name,
        symbol=symbol,
        offset=offset,
        address=where.start,
        method=place.method,
        argument=argument,
        filter_offset=filter_offset,
    )
