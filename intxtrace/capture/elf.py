"""The few parts of an ELF file that finding functions needs, read with a bound on everything.

A QEMU binary may lie inside somebody's container, so nothing in it is trusted: counts, sizes and offsets are
checked before use, text is searched by linear patterns, and what is malformed raises IntxtraceError or is
simply not there. pyelftools reads the headers; symbol tables and notes are read here, because its own
iterators take a second for QEMU's 20,000 symbols and can be kept busy for minutes by a hostile note.
"""

from __future__ import annotations

import lzma
import re
import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from io import BytesIO
from typing import BinaryIO

import numpy as np
from elftools.common.exceptions import ELFError
from elftools.common.utils import struct_parse
from elftools.elf.elffile import ELFFile
from numpy.typing import NDArray

from intxtrace.errors import IntxtraceError

# Far above any QEMU (11.1: 14 segments, 31 sections, 7 MB of code; a debug build's .strtab: a few MB).
_MAX_SEGMENTS = 128
_MAX_SECTIONS = 4096
_MAX_PIECE = 64 << 20
_MAX_CODE = 32 << 20
_MAX_STRINGS = 32 << 20
_MAX_NOTES = 4 << 20
_MAX_MATCHES = 4096
_MAX_DEBUGDATA = 128 << 20
_MAX_ADDRESS = 1 << 47  # end of the x86-64 and arm64 user address space

_SYMBOL = np.dtype(
    [("name", "<u4"), ("info", "u1"), ("other", "u1"), ("shndx", "<u2"), ("value", "<u8"), ("size", "<u8")]
)


@dataclass(frozen=True, slots=True)
class Segment:
    """A program header: file offset and virtual address of `file_size` bytes."""

    kind: str
    offset: int
    address: int
    file_size: int
    executable: bool


@dataclass(frozen=True, slots=True)
class Section:
    """A section header; `link` is the index of the section that it refers to."""

    kind: str
    offset: int
    address: int
    size: int
    link: int


@dataclass(frozen=True, slots=True)
class Symbol:
    """A defined function or variable; `address` is virtual, `is_function` as opposed to a variable."""

    name: str
    address: int
    size: int
    is_function: bool


class ElfImage:
    """A 64-bit little-endian ELF file behind a seekable binary stream, which must stay open.

    Raises IntxtraceError where the headers cannot be read.
    """

    def __init__(self, stream: BinaryIO, name: str) -> None:
        self._stream = stream
        self.name = name
        self.machine, self.segments, self._sections = self._headers()
        names: dict[str, Section] = {}
        for label, section in self._sections:
            names.setdefault(label, section)
        self.sections = names
        self._starts: NDArray[np.int64] | None = None
        self._entries: NDArray[np.int64] | None = None

    def _headers(self) -> tuple[str, tuple[Segment, ...], list[tuple[str, Section]]]:
        try:
            elf = ELFFile(self._stream)
            wide = elf.elfclass == 64 and elf.little_endian
            header = elf.header
        except OSError as error:
            raise IntxtraceError(f"{self.name} cannot be read: {error.strerror}.") from error
        except ELFError as error:
            raise IntxtraceError(f"{self.name} is not an ELF file; give the QEMU binary itself.") from error
        if not wide:
            raise IntxtraceError(
                f"{self.name} is not a 64-bit little-endian program; intxtrace traces x86-64 and arm64 hosts."
            )
        if header["e_phnum"] > _MAX_SEGMENTS or header["e_shnum"] > _MAX_SECTIONS:
            raise self.malformed("too many segments or sections")
        try:
            segments = [
                struct_parse(elf.structs.Elf_Phdr, self._stream, header["e_phoff"] + i * header["e_phentsize"])
                for i in range(header["e_phnum"])
            ]
            headers = [
                struct_parse(elf.structs.Elf_Shdr, self._stream, header["e_shoff"] + i * header["e_shentsize"])
                for i in range(header["e_shnum"])
            ]
        except (ELFError, ValueError, OverflowError, OSError) as error:  # Or seek does not take such an offset.
            raise self.malformed("its headers lie outside of the file") from error
        table = tuple(
            Segment(str(p["p_type"]), p["p_offset"], p["p_vaddr"], p["p_filesz"], bool(p["p_flags"] & 1))
            for p in segments
        )
        if any(s.address + s.file_size > _MAX_ADDRESS or s.offset > _MAX_ADDRESS for s in table):
            raise self.malformed("a segment lies outside of the address space")
        if sum(s.file_size for s in table if s.executable) > _MAX_CODE:
            raise self.malformed("more code than any QEMU has")
        sections = [
            Section(str(s["sh_type"]), s["sh_offset"], s["sh_addr"], s["sh_size"], s["sh_link"]) for s in headers
        ]
        strings = b""
        if header["e_shstrndx"] < len(sections):
            index = sections[header["e_shstrndx"]]
            strings = self.read(index.offset, min(index.size, 1 << 20))
        labels = [strings[h["sh_name"] : h["sh_name"] + 64].split(b"\0")[0].decode("latin-1") for h in headers]
        return str(header["e_machine"]), table, list(zip(labels, sections, strict=True))

    def malformed(self, what: str) -> IntxtraceError:
        """The error for a file whose structure is broken."""
        return IntxtraceError(f"{self.name} is malformed: {what}; reinstall QEMU or give another binary.")

    def read(self, offset: int, size: int) -> bytes:
        """`size` bytes at a file offset; raises IntxtraceError when they are not all there or too many."""
        if size > _MAX_PIECE or offset > _MAX_ADDRESS:
            raise self.malformed(f"a part of {size} bytes at {offset:#x} is not plausible")
        try:
            self._stream.seek(offset)
            data = self._stream.read(size)
        except OSError as error:
            raise IntxtraceError(f"{self.name} cannot be read: {error.strerror}.") from error
        if len(data) != size:
            raise self.malformed(f"it ends before offset {offset + size:#x}")
        return data

    def file_offset(self, address: int, size: int = 1) -> int | None:
        """File offset (as a uprobe needs) of `size` bytes at a virtual address; None when not in the file."""
        for segment in self.segments:
            if segment.kind == "PT_LOAD" and segment.address <= address <= segment.address + segment.file_size - size:
                return address - segment.address + segment.offset
        return None

    def is_code(self, address: int) -> bool:
        """Whether a virtual address lies in an executable segment's bytes of the file."""
        return any(s.address <= address < s.address + s.file_size for s in self.code_segments())

    def code_segments(self) -> list[Segment]:
        """The executable segments."""
        return [s for s in self.segments if s.kind == "PT_LOAD" and s.executable]

    def section(self, name: str, limit: int = _MAX_PIECE) -> bytes | None:
        """A section's bytes; None when it is missing, empty in the file or larger than `limit`."""
        section = self.sections.get(name)
        if section is None or section.kind == "SHT_NOBITS" or not 0 < section.size <= limit:
            return None
        return self.read(section.offset, section.size)

    def symbols(self, table: str, stems: Sequence[str], rest: re.Pattern[bytes]) -> list[Symbol]:
        """Functions and variables of `.dynsym` or `.symtab` whose whole name is a stem and then `rest`."""
        section = self.sections.get(table)
        if section is None or section.link >= len(self._sections) or section.kind == "SHT_NOBITS":
            return []
        names = self._sections[section.link][1]
        if names.kind == "SHT_NOBITS" or names.size > _MAX_STRINGS:
            return []
        strings = self.read(names.offset, names.size)
        wanted = {at: name for stem in stems for at, name in _occurrences(strings, stem.encode(), rest)}
        rows = np.frombuffer(self.read(section.offset, section.size - section.size % _SYMBOL.itemsize), dtype=_SYMBOL)
        kind = rows["info"] & 0xF
        rows = rows[
            np.isin(rows["name"], list(wanted))
            & (rows["shndx"] != 0)
            & ((kind == 1) | (kind == 2))
            & (rows["value"] < _MAX_ADDRESS)
        ]
        return [
            Symbol(wanted[int(r["name"])], int(r["value"]), int(r["size"]), int(r["info"]) & 0xF == 2)
            for r in rows[:_MAX_MATCHES]
        ]

    def notes(self, name: str) -> Iterator[tuple[int, bytes, bytes]]:
        """(type, owner, description) of a note section; ends at the first note that does not fit."""
        data = self.section(name, _MAX_NOTES) or b""
        at = 0
        while at + 12 <= len(data):
            owner_size, size, kind = struct.unpack_from("<III", data, at)
            owner_at = at + 12
            at = owner_at + (owner_size + 3 & ~3)
            if at + size > len(data):
                return
            yield kind, data[owner_at : owner_at + owner_size].rstrip(b"\0"), data[at : at + size]
            at += size + 3 & ~3

    def debugdata(self) -> ElfImage | None:
        """The image packed into `.gnu_debugdata` (Fedora's minidebuginfo); None when absent or broken."""
        packed = self.section(".gnu_debugdata")
        if packed is None:
            return None
        unpacker = lzma.LZMADecompressor(format=lzma.FORMAT_XZ, memlimit=_MAX_DEBUGDATA)
        try:
            data = unpacker.decompress(packed, max_length=_MAX_DEBUGDATA)
            return ElfImage(BytesIO(data), f"{self.name} (.gnu_debugdata)") if unpacker.eof else None
        except (lzma.LZMAError, IntxtraceError):
            return None

    def _unwind_table(self) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Function starts, sorted, and their unwind entries' addresses; empty when there is no usable table.

        `.eh_frame_hdr` as every GNU and LLVM linker writes it: version 1, u32 count, a table of signed 32-bit
        pairs relative to the header (Linux Standard Base 5.0, 10.6.2).
        """
        if self._starts is None or self._entries is None:
            empty = np.zeros(0, np.int64)
            self._starts, self._entries = empty, empty
            for segment in self.segments:
                if segment.kind != "PT_GNU_EH_FRAME" or not 12 <= segment.file_size <= _MAX_PIECE:
                    continue
                data = self.read(segment.offset, segment.file_size)
                count = struct.unpack_from("<I", data, 8)[0]
                if data[0] != 1 or data[2:4] != b"\x03\x3b" or 12 + 8 * count > len(data):
                    continue
                pairs = np.frombuffer(data, "<i4", 2 * count, 12).reshape(-1, 2) + np.int64(segment.address)
                if np.all(pairs[1:, 0] >= pairs[:-1, 0]):
                    self._starts, self._entries = pairs[:, 0].copy(), pairs[:, 1].copy()
                    break
        return self._starts, self._entries

    def owners(self, addresses: NDArray[np.int64]) -> NDArray[np.int64]:
        """The nearest function start at or below each code address, -1 where there is none."""
        starts, _ = self._unwind_table()
        padded = np.concatenate((np.array([-1], np.int64), starts))
        return padded[np.searchsorted(starts, addresses, "right")]

    def function(self, address: int) -> range | None:
        """The function that holds a code address, by its unwind entry; None when there is none.

        A function that GCC split has an entry for each part. An entry is believed when its own first address,
        decoded as the compilers encode it (relative, 32 bits), is the one the sorted table gives.
        """
        starts, entries = self._unwind_table()
        index = int(np.searchsorted(starts, address, "right")) - 1
        if index < 0:
            return None
        entry = int(entries[index])
        offset = self.file_offset(entry, 16)
        if offset is None:
            return None
        first, size = struct.unpack("<iI", self.read(offset + 8, 8))
        start = entry + 8 + first
        if start != int(starts[index]) or not start <= address < start + size:
            return None
        return range(start, start + size)

    def code(self, where: range, limit: int = 1 << 14) -> bytes:
        """At most `limit` bytes of a function's code; empty when it is not in an executable segment."""
        size = min(len(where), limit)
        offset = self.file_offset(where.start, size)
        return self.read(offset, size) if offset is not None and self.is_code(where.start) else b""

    def code_chunks(self, overlap: int) -> Iterator[tuple[int, NDArray[np.uint8]]]:
        """(virtual address, bytes) of all code, a megabyte at a time, each with the next `overlap` bytes.

        Chunks bound the memory that a search of hostile bytes can take.
        """
        step = 1 << 20
        for segment in self.code_segments():
            data = np.frombuffer(self.read(segment.offset, segment.file_size), np.uint8)
            for at in range(0, len(data), step):
                yield segment.address + at, data[at : at + step + overlap]


def _occurrences(strings: bytes, stem: bytes, rest: re.Pattern[bytes]) -> Iterator[tuple[int, str]]:
    """(offset, name) of names in a string table; one may be the tail of a longer one, linkers merge them."""
    at = -1
    for _ in range(_MAX_MATCHES):
        at = strings.find(stem, at + 1)
        if at < 0:
            return
        match = rest.match(strings, at + len(stem))
        if match is not None and strings[match.end() : match.end() + 1] == b"\0":
            yield at, strings[at : match.end()].decode("ascii")
