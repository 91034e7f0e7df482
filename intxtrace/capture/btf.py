"""Structure offsets and function identities from the running kernel's own type information (BTF).

The reader is libbpf, through ctypes: bcc itself links it, so it is wherever bcc is; it knows split BTF (a module's
types on top of the kernel's), and asking it for a handful of structures takes milliseconds, where dumping a whole
BTF as JSON (bpftool) takes seconds.
"""

from __future__ import annotations

import ctypes as ct
import os
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from intxtrace.errors import IntxtraceError

BTF_ROOT = Path("/sys/kernel/btf")
MODULES = ("kvm", "vfio", "vfio_virqfd", "vfio_pci_core", "vfio_pci")
"""Modules whose functions and structures are wanted; which one owns what moved between versions (5.15, 6.2)."""

_KIND_STRUCT = 4
_KIND_UNION = 5
_KIND_FUNC = 12
_TRANSPARENT = {8, 9, 10, 11, 18}  # typedef, volatile, const, restrict, type tag


@dataclass(frozen=True)
class Function:
    """A kernel function that BTF knows: what a fentry program needs to attach to it."""

    name: str
    module: str
    """The module that owns it, or `vmlinux`."""
    id: int
    """Its type id in the BTF of `module`."""
    arguments: int


class _Type(ct.Structure):
    _fields_ = (("name_off", ct.c_uint32), ("info", ct.c_uint32), ("size_or_type", ct.c_uint32))


class _Member(ct.Structure):
    _fields_ = (("name_off", ct.c_uint32), ("type", ct.c_uint32), ("offset", ct.c_uint32))


@cache
def libbpf() -> ct.CDLL:
    """Load libbpf.

    Raises:
        IntxtraceError: it is not installed.
    """
    for name in ("libbpf.so.1", "libbpf.so.0"):
        try:
            lib = ct.CDLL(name, use_errno=True)
            break
        except OSError:
            continue
    else:
        raise IntxtraceError(
            "libbpf is not installed: install bcc with its libraries (Debian: apt install python3-bpfcc)"
        )
    pointer = ct.c_void_p
    signatures: dict[str, tuple[object, list[object]]] = {
        "btf__parse_split": (pointer, [ct.c_char_p, pointer]),
        "btf__parse": (pointer, [ct.c_char_p, pointer]),
        "btf__free": (None, [pointer]),
        "btf__find_by_name_kind": (ct.c_int32, [pointer, ct.c_char_p, ct.c_uint32]),
        "btf__type_by_id": (ct.POINTER(_Type), [pointer, ct.c_uint32]),
        "btf__name_by_offset": (ct.c_char_p, [pointer, ct.c_uint32]),
    }
    for symbol, (result, arguments) in signatures.items():
        function = getattr(lib, symbol)
        function.restype = result
        function.argtypes = arguments
    return lib


class Btf:
    """The types of the kernel and of those of `MODULES` that are loaded."""

    def __init__(self, root: Path = BTF_ROOT) -> None:
        """Read the BTF.

        Raises:
            IntxtraceError: the kernel has no BTF.
        """
        lib = libbpf()
        vmlinux = root / "vmlinux"
        base = lib.btf__parse(os.fsencode(vmlinux), None) if vmlinux.exists() else None
        if not base:
            raise IntxtraceError(
                f"this kernel has no type information ({vmlinux}): boot one that was built with CONFIG_DEBUG_INFO_BTF=y"
            )
        self._handles: dict[str, int] = {}
        for module in MODULES:
            path = root / module
            if path.exists():
                handle = lib.btf__parse_split(os.fsencode(path), base)
                if handle:
                    self._handles[module] = handle
        self._handles["vmlinux"] = base

    def close(self) -> None:
        """Free the memory; the object is of no use afterwards."""
        while self._handles:  # modules first: they refer to the kernel's
            _, handle = next(iter(self._handles.items()))
            self._handles.pop(next(iter(self._handles)))
            libbpf().btf__free(handle)

    @property
    def modules(self) -> tuple[str, ...]:
        """The modules whose BTF was found, `vmlinux` last."""
        return tuple(self._handles)

    def offset(self, structure: str, member: str) -> int | None:
        """Return the offset in bytes of a member (also of anonymous parts) of a structure, or None."""
        for handle in self._handles.values():
            type_id = libbpf().btf__find_by_name_kind(handle, structure.encode(), _KIND_STRUCT)
            if type_id > 0:
                found = self._member(handle, type_id, member.encode(), depth=0)
                if found is not None:
                    return found
        return None

    def _member(self, handle: int, type_id: int, member: bytes, depth: int) -> int | None:
        lib = libbpf()
        pointer = lib.btf__type_by_id(handle, type_id)
        info = pointer.contents.info
        kind = info >> 24 & 0x1F
        if kind in _TRANSPARENT and depth < 8:
            return self._member(handle, pointer.contents.size_or_type, member, depth + 1)
        if kind not in (_KIND_STRUCT, _KIND_UNION):
            return None
        bitfields = info >> 31
        members = ct.cast(ct.addressof(pointer.contents) + ct.sizeof(_Type), ct.POINTER(_Member))
        for index in range(info & 0xFFFF):
            entry = members[index]
            offset = (entry.offset & 0xFFFFFF if bitfields else entry.offset) // 8
            name = lib.btf__name_by_offset(handle, entry.name_off)
            if name == member:
                return int(offset)
            if not name and depth < 8:
                inner = self._member(handle, entry.type, member, depth + 1)
                if inner is not None:
                    return int(offset) + inner
        return None

    def function(self, name: str) -> Function | None:
        """Return the function of this name, or None where BTF has none or more modules than one have it."""
        lib = libbpf()
        for module, handle in self._handles.items():
            type_id = lib.btf__find_by_name_kind(handle, name.encode(), _KIND_FUNC)
            if type_id <= 0:
                continue
            in_base = module != "vmlinux" and type_id == lib.btf__find_by_name_kind(
                self._handles["vmlinux"], name.encode(), _KIND_FUNC
            )
            prototype = lib.btf__type_by_id(handle, lib.btf__type_by_id(handle, type_id).contents.size_or_type)
            return Function(name, "vmlinux" if in_base else module, type_id, prototype.contents.info & 0xFFFF)
        return None
