"""What the machine code of a QEMU binary says of its functions: who traces an event, calls whom, reads what."""

from __future__ import annotations

import re
import struct
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from intxtrace.capture.elf import ElfImage, Symbol

Method = Literal["usdt", "dynsym", "symtab", "gnu_debugdata", "trace-variable"]

_CALL, _JUMP, _JCC = 0xE8, 0xE9, 0x0F
REGISTERS = (b"rax", b"rcx", b"rdx", b"rbx", b"rsp", b"rbp", b"rsi", b"rdi", *(b"r%d" % n for n in range(8, 16)))
_RDI = REGISTERS.index(b"rdi")
_PROLOGUE = 96  # bytes in which compilers save argument 0; the longest seen needs 64
_MOST_HOMES = 64


@dataclass(frozen=True, slots=True)
class Site:
    """A place of a USDT probe; `load`: register number and displacement of its first argument, if in memory."""

    event: str
    address: int
    load: tuple[int, int] | None


@dataclass(frozen=True, slots=True)
class Trace:
    """The functions that trace an event by one method, and the addresses of such code that lie in none."""

    event: str
    method: Method
    homes: list[range]
    strays: list[int]


class Code:
    """The facts of x86-64 machine code that the search rests on; elsewhere it knows functions but no facts.

    Byte patterns instead of a disassembler: each fact names a 32-bit address or must be met twice, so that a
    match in the middle of an instruction does not matter.
    """

    def __init__(
        self,
        elf: ElfImage,
        symbols: dict[str, list[tuple[Symbol, Method]]],
        variables: dict[int, str],
        sites: list[Site],
        names: dict[str, str],
    ) -> None:
        """Read the code.

        Args:
            elf: the binary.
            symbols: by wanted function, where symbol tables say it is.
            variables: by address, the event of an exported trace variable.
            sites: the places of USDT probes.
            names: by event, the wanted function that traces it.
        """
        self.elf = elf
        self.x86 = elf.machine == "EM_X86_64"
        self._sites = sites
        # Wanted name → who traces its events, USDT probes first.
        self.traces: dict[str, list[Trace]] = {}
        for trace in (*self._probed(), *(self._tested(variables) if self.x86 else ())):
            self.traces.setdefault(names[trace.event], []).append(trace)
        starts = {symbol.address for found in symbols.values() for symbol, _ in found}
        starts |= {home.start for traces in self.traces.values() for trace in traces for home in trace.homes}
        if self.x86:
            # An EOI that only its entry's symbol leads to, see _prove_eoi.
            entries = self.distinct(symbol.address for symbol, _ in symbols.get("vfio_intx_eoi", []))
            starts |= {part.start for entry in entries for part in self.jump_targets(entry)}
        self._source, self._target, self._kind = self._branches(starts)

    def distinct(self, addresses: Iterable[int]) -> list[range]:
        """The functions that hold some addresses; an address outside of all gives none."""
        functions = {f.start: f for a in addresses if (f := self.elf.function(a)) is not None}
        return [functions[start] for start in sorted(functions)]

    def _probed(self) -> list[Trace]:
        """The functions that hold an event's USDT probe."""
        places: dict[str, list[int]] = {}
        for site in self._sites:
            places.setdefault(site.event, []).append(site.address)
        return [
            Trace(event, "usdt", self.distinct(found), [a for a in found if self.elf.function(a) is None])
            for event, found in places.items()
        ]

    def _tested(self, variables: dict[int, str]) -> list[Trace]:
        """The functions with `cmpw $0,disp32(%rip)` (66 83 3d disp32 00) on an event's trace variable."""
        wanted = np.array(sorted(variables), np.int64)
        hits: list[tuple[NDArray[np.int64], NDArray[np.int64]]] = []
        for address, code in self.elf.code_chunks(overlap=7) if variables else ():
            at = np.flatnonzero((code[:-7] == 0x66) & (code[1:-6] == 0x83) & (code[2:-5] == 0x3D) & (code[7:] == 0))
            target, known = _targets(code, at + 3, at + 8 + address, wanted)
            hits.append((at[known] + address, target))
        tested: dict[str, list[range]] = {}
        for variable, event in variables.items():
            owners = {int(o) for at, target in hits for o in np.unique(self.elf.owners(at[target == variable]))}
            # A function of which the unwind table knows nothing is owner -1: no evidence.
            functions = self.distinct(sorted(owners)[:_MOST_HOMES])
            tested.setdefault(event, []).extend(functions)
        return [Trace(event, "trace-variable", homes, []) for event, homes in tested.items() if homes]

    def _branches(self, starts: set[int]) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
        """Source, target and opcode of direct branches with 32-bit displacement to some addresses."""
        wanted = np.array(sorted(starts), np.int64)
        parts: list[NDArray[np.int64]] = [np.zeros((3, 0), np.int64)]
        for address, code in self.elf.code_chunks(overlap=5) if starts and self.x86 else ():
            body = code[:-5]
            for kind, at, size in (
                (_CALL, np.flatnonzero(body == _CALL), 5),
                (_JUMP, np.flatnonzero(body == _JUMP), 5),
                (_JCC, np.flatnonzero((body == 0x0F) & ((code[1:-4] & 0xF0) == 0x80)), 6),
            ):
                target, known = _targets(code, at + size - 4, at + size + address, wanted)
                parts.append(np.stack((at[known] + address, target, np.full(len(target), kind))))
        table: NDArray[np.int64] = np.concatenate(parts, axis=1)
        return table[0], table[1], table[2]

    def called(self, where: range) -> bool:
        """Whether a direct call or tail jump leads to a function's start, from outside of its own code."""
        outside = (self._source < where.start) | (self._source >= where.stop)
        return bool(np.any((self._target == where.start) & outside & (self._kind != _JCC)))

    def leads(self, source: range, target: range) -> bool:
        """Whether one function branches to another's start."""
        inside = (self._source >= source.start) & (self._source < source.stop)
        return bool(np.any(inside & (self._target == target.start)))

    def jumpers(self, where: range) -> list[range]:
        """The functions that jump to another's start, of which it may be a split part."""
        owners = np.unique(self.elf.owners(self._source[(self._target == where.start) & (self._kind != _CALL)]))
        return [f for f in self.distinct(owners.tolist()[:_MOST_HOMES]) if f.start != where.start]

    def jump_targets(self, where: range) -> list[range]:
        """The functions that a function jumps to, which may be its split part."""
        code = self.elf.code(where)
        ends = [m.end() for m in re.finditer(rb"(?:\xe9|\x0f[\x80-\x8f])(?=(?s:....))", code)]
        targets = [where.start + end + 4 + int(struct.unpack_from("<i", code, end)[0]) for end in ends]
        return [f for f in self.distinct(targets[:_MOST_HOMES]) if f.start in targets and f.start != where.start]

    def operands(self, where: range, opcode: bytes, field: int | None, wide: bool, tail: bytes = b"") -> set[int]:
        """Displacements d of `opcode d(base)`, where base is argument 0: %rdi or a copy made of it.

        `field`: the opcode's digit, None for any register. `wide`: 64-bit operation. `tail`: the immediate.
        """
        code = self.elf.code(where)
        found: set[int] = set()
        for base in _copies_of_rdi(code):
            high, low = base >> 3, base & 7
            if wide:
                prefix = b"[%b%b]" % (re.escape(bytes([0x48 | high])), re.escape(bytes([0x4C | high])))
            else:
                prefix = b"\x41" if high else b""
            sib = b"\x24" if low == 4 else b""  # %rsp and %r12 as a base need one
            fields = range(8) if field is None else (field,)
            for mod, size, layout in ((0x40, 1, "<b"), (0x80, 4, "<i")):
                modrm = b"[%b]" % b"".join(re.escape(bytes([mod | f << 3 | low])) for f in fields)
                pattern = b"(?s)%b%b%b%b(?=(.{%d})%b)" % (
                    prefix,
                    re.escape(opcode),
                    modrm,
                    re.escape(sib),
                    size,
                    re.escape(tail),
                )
                found |= {int(struct.unpack(layout, m.group(1))[0]) for m in re.finditer(pattern, code)}
        return found

    def subtracted(self, where: range) -> set[int]:
        """v of `lea -v(argument 0)`, `sub $v,` and `add $-v,`, as container_of compiles."""
        code = self.elf.code(where)
        found = {-d for d in self.operands(where, b"\x8d", None, wide=True) if d < 0}
        for base in _copies_of_rdi(code):
            rex, low = bytes([0x48 | base >> 3]), base & 7
            for modrm, sign in ((0xE8, 1), (0xC0, -1)):
                pattern = b"(?s)%b\x81%b(.{4})" % (re.escape(rex), re.escape(bytes([modrm | low])))
                found |= {sign * int(struct.unpack("<i", m.group(1))[0]) for m in re.finditer(pattern, code)}
        return {v for v in found if v > 0}

    def stores(self, where: range, value: int) -> set[int]:
        """d of `movb $value,d(argument 0)`."""
        return self.operands(where, b"\xc6", 0, wide=False, tail=bytes([value]))

    def tests(self, where: range) -> set[int]:
        """d of `cmpb $0,d(argument 0)` and `movzbl d(argument 0),`."""
        return self.operands(where, b"\x80", 7, wide=False, tail=b"\0") | self.operands(
            where, b"\x0f\xb6", None, wide=False
        )

    def loads(self, where: range) -> set[int]:
        """d of `mov d(argument 0),` into a 64-bit register, or of a USDT probe's first argument there.

        sys/sdt.h lets the compiler name a place in memory for the tracer to read, so that no code reads it.
        """
        copies = _copies_of_rdi(self.elf.code(where))
        noted = {s.load[1] for s in self._sites if s.load and s.address in where and s.load[0] in copies}
        return noted | self.operands(where, b"\x8b", None, wide=True)


def _targets(
    code: NDArray[np.uint8], operands: NDArray[np.int64], ends: NDArray[np.int64], wanted: NDArray[np.int64]
) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
    """The targets of 32-bit relative operands that are wanted (sorted), and which operands those are."""
    # A view of the 32-bit number at every position: a fraction of the cost of gathering bytes.
    numbers: NDArray[np.int32] = np.ndarray((max(len(code) - 3, 0),), "<i4", code, 0, (1,))
    target = numbers[operands] + ends
    known = np.zeros(len(target), np.bool_)
    near = np.flatnonzero((target >= wanted[0]) & (target <= wanted[-1]))
    known[near] = np.isin(target[near], wanted)
    return target[known], known


def _copies_of_rdi(code: bytes) -> set[int]:
    """Numbers of the registers that hold argument 0: %rdi, and what the function's beginning copies it to."""
    copies = {_RDI}
    for match in re.finditer(rb"([\x48\x49])\x89([\xf8-\xff])", code[:_PROLOGUE]):
        copies.add((match.group(1)[0] & 1) << 3 | match.group(2)[0] & 7)
    return copies
