"""Writes small ELF files that look like a QEMU to the function finder.

Functions lie 0x200 apart and variables 2 apart, so that a body can name any of them before the file exists.
"""

from __future__ import annotations

import lzma
import struct
from dataclasses import dataclass, field

CODE_OFFSET, CODE = 0x1000, 0x401000  # file offset and address differ, as they may in a real binary
DATA_SHIFT = 0x200000
STRIDE = 0x200
VARIABLES = 0x700000
EM_X86_64, EM_AARCH64 = 62, 183


class Body:
    """Machine code of one function at a known address."""

    def __init__(self, address: int) -> None:
        self.address = address
        self.bytes = b""

    def raw(self, text: str) -> Body:
        self.bytes += bytes.fromhex(text)
        return self

    @property
    def end(self) -> int:
        """Address of what is put next."""
        return self.address + len(self.bytes)

    def _relative(self, opcode: str, target: int, rest: str = "") -> Body:
        code, tail = bytes.fromhex(opcode), bytes.fromhex(rest)
        end = self.end + len(code) + 4 + len(tail)
        self.bytes += code + struct.pack("<i", target - end) + tail
        return self

    def call(self, target: int) -> Body:
        return self._relative("e8", target)

    def jump(self, target: int) -> Body:
        return self._relative("e9", target)

    def jump_not_equal(self, target: int) -> Body:
        return self._relative("0f85", target)

    def test_variable(self, variable: int) -> Body:
        """cmpw $0,variable(%rip)."""
        return self._relative("66833d", variable, "00")


@dataclass
class Elf:
    """What to put in; functions and variables are declared first, bodies may then refer to them."""

    machine: int = EM_X86_64
    functions: list[str] = field(default_factory=list)
    variables: list[str] = field(default_factory=list)
    bodies: dict[str, bytes] = field(default_factory=dict)
    dynsym: list[str] = field(default_factory=list)
    symtab: list[str] = field(default_factory=list)
    debugdata: list[str] = field(default_factory=list)
    notes: list[bytes] = field(default_factory=list)
    base_section: int | None = None
    build_id: bytes | None = None
    version: str | None = None

    def at(self, name: str) -> int:
        """Address of a function or variable, declared by asking for it."""
        if name.startswith("_TRACE_"):
            if name not in self.variables:
                self.variables.append(name)
            return VARIABLES + 2 * self.variables.index(name)
        if name not in self.functions:
            self.functions.append(name)
        return CODE + STRIDE * self.functions.index(name)

    def body(self, name: str) -> Body:
        return Body(self.at(name))

    def put(self, name: str, body: Body) -> None:
        assert len(body.bytes) <= STRIDE - 16
        assert body.address == self.at(name)
        self.bodies[name] = body.bytes + b"\xc3"

    def usdt(self, probe: str, address: int, arguments: str, *, base: int = 0, provider: str = "qemu") -> None:
        """A note as sys/sdt.h writes it, for a probe without a semaphore."""
        text = b"".join(s.encode() + b"\0" for s in (provider, probe, arguments))
        self.notes.append(_note(3, b"stapsdt\0", struct.pack("<QQQ", address, base, 0) + text))

    def _table(self, names: list[str]) -> tuple[bytes, bytes]:
        strings, rows = b"\0", struct.pack("<IBBHQQ", 0, 0, 0, 0, 0, 0)
        for name in names:
            kind = 1 if name.startswith("_TRACE_") else 2
            size = 2 if kind == 1 else len(self.bodies.get(name, b"\xc3"))
            rows += struct.pack("<IBBHQQ", len(strings), 0x10 | kind, 0, 1, self.at(name), size)
            strings += name.encode() + b"\0"
        return rows, strings

    def write(self) -> bytes:
        code = bytearray(b"\xcc" * (STRIDE * len(self.functions) + 64))
        for name in self.functions:
            start = self.at(name) - CODE
            body = self.bodies.get(name, b"\xc3")
            code[start : start + len(body)] = body

        data = bytearray()
        at = CODE_OFFSET + len(code) + (-len(code) % 16)
        sections: list[tuple[str, int, int, int, int, int]] = []  # name, type, address, offset, size, link

        def place(name: str, kind: int, content: bytes, *, link: int = 0, address: int | None = None) -> int:
            data.extend(b"\0" * (-len(data) % 16))
            offset = at + len(data)
            data.extend(content)
            where = DATA_SHIFT + offset if address is None else address
            sections.append((name, kind, where, offset, len(content), link))
            return where

        frames = place(".eh_frame", 1, b"\0" * 16 * (len(self.functions) + 1))
        frames_offset = sections[-1][3]
        header_at = frames + 16 * (len(self.functions) + 2)
        entries = bytearray()
        table = b""
        for index, name in enumerate(self.functions):
            entry, start = frames + 16 * index, self.at(name)
            entries += struct.pack("<IIiI", 12, 0, start - entry - 8, len(self.bodies.get(name, b"\xc3")))
            table += struct.pack("<ii", start - header_at, entry - header_at)
        data[frames_offset - at : frames_offset - at + len(entries)] = entries
        data.extend(b"\0" * 16)
        header = b"\x01\x1b\x03\x3b" + struct.pack("<iI", 0, len(self.functions)) + table
        assert place(".eh_frame_hdr", 1, header) == header_at
        header_offset = sections[-1][3]

        for name, kind, names in ((".dynsym", 11, self.dynsym), (".symtab", 2, self.symtab)):
            rows, strings = self._table(names)
            place(name, kind, rows, link=len(sections) + 2)  # the string table that follows; 0 is the null section
            place(name + "str", 3, strings)
        if self.debugdata:
            packed = Elf(functions=self.functions, variables=self.variables, bodies=self.bodies)
            packed.symtab = self.debugdata
            place(".gnu_debugdata", 1, lzma.compress(packed.write(), format=lzma.FORMAT_XZ))
        if self.notes:
            place(".note.stapsdt", 7, b"".join(self.notes))
        if self.base_section is not None:
            place(".stapsdt.base", 1, b"\0", address=self.base_section)
        if self.build_id is not None:
            place(".note.gnu.build-id", 7, _note(3, b"GNU\0", self.build_id))
        if self.version is not None:
            place(".rodata", 1, f"\0QEMU emulator version {self.version}\nCopyright\0".encode())
        names_at = b"\0" + b"".join(s[0].encode() + b"\0" for s in sections) + b".shstrtab\0"
        place(".shstrtab", 3, names_at)
        data.extend(b"\0" * (-len(data) % 16))

        section_at = at + len(data)
        rows = b"\0" * 64
        for name, kind, address, offset, size, link in sections:
            rows += struct.pack(
                "<IIQQQQIIQQ",
                names_at.index(name.encode() + b"\0"),
                kind,
                2,
                address,
                offset,
                size,
                link,
                0,
                1,
                0,
            )
        programs = struct.pack("<IIQQQQQQ", 1, 5, CODE_OFFSET, CODE, CODE, len(code), len(code), 4096)
        programs += struct.pack("<IIQQQQQQ", 1, 6, at, DATA_SHIFT + at, 0, len(data), len(data), 4096) + struct.pack(
            "<IIQQQQQQ", 0x6474E550, 4, header_offset, header_at, 0, len(header), len(header), 4
        )
        head = b"\x7fELF\x02\x01\x01" + b"\0" * 9
        count = len(sections) + 1
        head += struct.pack("<HHIQQQIHHHHHH", 3, self.machine, 1, 0, 64, section_at, 0, 64, 56, 3, 64, count, count - 1)
        return (head + programs).ljust(CODE_OFFSET, b"\0") + bytes(code).ljust(at - CODE_OFFSET, b"\0") + data + rows


def _note(kind: int, owner: bytes, content: bytes) -> bytes:
    note = struct.pack("<III", len(owner), len(content), kind) + owner + b"\0" * (-len(owner) % 4)
    return note + content + b"\0" * (-len(content) % 4)
