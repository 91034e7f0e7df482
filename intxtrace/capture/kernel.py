"""The running kernel's symbols, and the bpf(2) calls that bcc has no function for.

bcc compiles the programs and makes the maps. It is not used to load them, because the bcc that distributions ship
(0.26 and before) cannot attach fentry programs to functions of modules, which is where vfio and KVM live.
"""

from __future__ import annotations

import ctypes as ct
import os
import re
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import NamedTuple

_SYS_BPF = {"x86_64": 321, "aarch64": 280}
_PROG_LOAD = 5
_OBJ_GET_INFO_BY_FD = 15
_RAW_TRACEPOINT_OPEN = 17
_BTF_GET_FD_BY_ID = 19
_BTF_GET_NEXT_ID = 23
_ENABLE_STATS = 32

PROG_KPROBE = 2
PROG_RAW_TRACEPOINT = 17
PROG_TRACING = 26
ATTACH_FENTRY = 24
ATTACH_FEXIT = 25


@cache
def _syscall() -> ct.CDLL:
    return ct.CDLL(None, use_errno=True)


def _bpf(command: int, attributes: bytearray) -> int:
    number = _SYS_BPF[os.uname().machine]
    buffer = (ct.c_char * len(attributes)).from_buffer(attributes)
    result = int(_syscall().syscall(ct.c_long(number), ct.c_long(command), buffer, ct.c_long(len(attributes))))
    if result < 0:
        code = ct.get_errno()
        raise OSError(code, os.strerror(code))
    return result


class _ProgLoad(ct.Structure):
    """`union bpf_attr` of BPF_PROG_LOAD (include/uapi/linux/bpf.h)."""

    _fields_ = (
        ("prog_type", ct.c_uint32),
        ("insn_cnt", ct.c_uint32),
        ("insns", ct.c_uint64),
        ("license", ct.c_uint64),
        ("log_level", ct.c_uint32),
        ("log_size", ct.c_uint32),
        ("log_buf", ct.c_uint64),
        ("kern_version", ct.c_uint32),
        ("prog_flags", ct.c_uint32),
        ("prog_name", ct.c_char * 16),
        ("prog_ifindex", ct.c_uint32),
        ("expected_attach_type", ct.c_uint32),
        ("prog_btf_fd", ct.c_uint32),
        ("func_info_rec_size", ct.c_uint32),
        ("func_info", ct.c_uint64),
        ("func_info_cnt", ct.c_uint32),
        ("line_info_rec_size", ct.c_uint32),
        ("line_info", ct.c_uint64),
        ("line_info_cnt", ct.c_uint32),
        ("attach_btf_id", ct.c_uint32),
        ("attach_btf_obj_fd", ct.c_uint32),
        ("padding", ct.c_uint32),
    )


def load_program(
    code: bytes, name: str, program_type: int, attach_type: int = 0, btf_id: int = 0, btf_fd: int = 0
) -> int:
    """Load a program and return its file descriptor.

    Raises:
        OSError: the kernel refuses it; the verifier's last words are its message.
    """
    code_buffer = ct.create_string_buffer(code, len(code))
    licence = ct.create_string_buffer(b"GPL")
    log = ct.create_string_buffer(1 << 20)

    def attempt(log_level: int) -> int:
        attr = _ProgLoad(
            prog_type=program_type,
            insn_cnt=len(code) // 8,
            insns=ct.addressof(code_buffer),
            license=ct.addressof(licence),
            log_level=log_level,
            log_size=len(log) if log_level else 0,
            log_buf=ct.addressof(log) if log_level else 0,
            prog_name=re.sub(r"\W", "_", name).encode()[:15],
            expected_attach_type=attach_type,
            attach_btf_id=btf_id,
            attach_btf_obj_fd=btf_fd,
        )
        return _bpf(_PROG_LOAD, bytearray(attr))

    try:
        return attempt(0)
    except OSError as refused:
        try:
            return attempt(1)
        except OSError:
            words = log.value.decode(errors="replace").strip().splitlines()
            detail = " | ".join(words[-6:])
            raise OSError(refused.errno, f"{refused.strerror}{': ' + detail if detail else ''}") from refused


def open_raw_tracepoint(program: int, name: str | None = None) -> int:
    """Attach a raw tracepoint program, or (name None) an fentry or fexit program; return the link.

    Raises:
        OSError: it cannot be attached.
    """
    name_buffer = ct.create_string_buffer(name.encode()) if name else None
    address = ct.addressof(name_buffer) if name_buffer else 0
    return _bpf(
        _RAW_TRACEPOINT_OPEN, bytearray(address.to_bytes(8, "little") + program.to_bytes(4, "little") + bytes(4))
    )


def traced_functions(path: Path = Path("/sys/kernel/tracing/enabled_functions")) -> set[tuple[str, str]] | None:
    """Return (name, module) of every function that ftrace has patched; module `vmlinux` for the kernel's own.

    An fentry program is a direct call of ftrace's (register_fentry, kernel/bpf/trampoline.c), so its function is here.
    None: this kernel does not say, or tracefs is not mounted.
    """
    try:
        text = path.read_text()
    except OSError:
        return None
    return {(name, module or "vmlinux") for name, module in re.findall(r"^(\S+) (?:\[(\w+)\] )?\(\d+\)", text, re.M)}


def module_btf_fds(modules: Iterable[str]) -> dict[str, int]:
    """Open the kernel's BTF objects of these modules; the caller closes them.

    Raises:
        OSError: no permission.
    """
    wanted = set(modules)
    found: dict[str, int] = {}
    last = 0
    while wanted - set(found):
        attr = bytearray(last.to_bytes(4, "little") + bytes(8))
        try:
            _bpf(_BTF_GET_NEXT_ID, attr)
        except FileNotFoundError:
            break
        last = int.from_bytes(attr[4:8], "little")
        try:
            fd = _bpf(_BTF_GET_FD_BY_ID, bytearray(last.to_bytes(4, "little") + bytes(8)))
        except FileNotFoundError:
            continue  # it went between the two calls
        name = ct.create_string_buffer(64)
        info = (
            bytearray(8 + 4 + 4) + ct.addressof(name).to_bytes(8, "little") + len(name).to_bytes(4, "little") + bytes(4)
        )
        _object_info(fd, info)
        key = name.value.decode(errors="replace")
        if key in wanted:
            found[key] = fd
        else:
            os.close(fd)
    return found


def _object_info(fd: int, info: bytearray) -> None:
    buffer = (ct.c_char * len(info)).from_buffer(info)
    attr = fd.to_bytes(4, "little") + len(info).to_bytes(4, "little") + ct.addressof(buffer).to_bytes(8, "little")
    _bpf(_OBJ_GET_INFO_BY_FD, bytearray(attr))


class ProgramInfo(NamedTuple):
    """What the kernel counts of a program: of struct bpf_prog_info (include/uapi/linux/bpf.h)."""

    runs: int
    """While statistics were on."""
    recursion_misses: int
    """Runs that were skipped because it ran on that CPU already (Linux 5.12, 9ed9e9ba2337); 0 before."""


def program_info(program: int) -> ProgramInfo:
    """Return the kernel's counts of a program; 0 where it has none."""
    info = bytearray(224)
    try:
        _object_info(program, info)
    except OSError:
        return ProgramInfo(0, 0)
    return ProgramInfo(*(int.from_bytes(info[at : at + 8], "little") for at in (200, 208)))


def enable_statistics() -> int:
    """Let the kernel count the runs of all BPF programs, until the file descriptor that is returned is closed.

    BPF_ENABLE_STATS (Linux 5.8, d46edd671a14); what kernel.bpf_stats_enabled says stays as it is.

    Raises:
        OSError: no permission.
    """
    return _bpf(_ENABLE_STATS, bytearray(4))  # type BPF_STATS_RUN_TIME is 0


@dataclass(frozen=True)
class Symbol:
    """One line of /proc/kallsyms."""

    name: str
    address: int
    module: str


def kernel_symbols(names: Iterable[str], path: Path = Path("/proc/kallsyms")) -> dict[str, Symbol]:
    """Look names up in /proc/kallsyms; `address` is 0 where the reader may not see addresses.

    A name that stands there more than once is left out: no probe could tell which one it hit.
    """
    alternatives = "|".join(sorted(re.escape(name) for name in set(names)))
    pattern = re.compile(rf"^([0-9a-f]+) [tTwW] ({alternatives})(?:\t\[(\w+)\])?$".encode(), re.MULTILINE)
    found: dict[str, Symbol] = {}
    twice: set[str] = set()
    for match in pattern.finditer(path.read_bytes()):
        name = match[2].decode()
        if name in found:
            twice.add(name)
        found[name] = Symbol(name, int(match[1], 16), match[3].decode() if match[3] else "")
    return {name: symbol for name, symbol in found.items() if name not in twice}
