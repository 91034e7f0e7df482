"""The probes in the kernel: compile the plan's source with bcc, load, attach, detach."""

from __future__ import annotations

import contextlib
import ctypes as ct
import os
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from intxtrace.capture import attach, kernel, remedies
from intxtrace.capture.attach import Attached
from intxtrace.capture.bcc_import import import_bcc
from intxtrace.capture.btf import Btf
from intxtrace.capture.catalogue import CATALOGUE, QemuSpec
from intxtrace.capture.overhead import RETURN_0, Calibration, setitimer
from intxtrace.capture.plan import DEFAULT_RING_BYTES, Plan, Planned, Planner, qemu_specs, wanted_symbols
from intxtrace.capture.qemu_functions import QemuBinary, QemuFunction
from intxtrace.errors import IntxtraceError
from intxtrace.events import Kind
from intxtrace.trace.tables import Probe

# bcc runs all of LLVM's passes over what clang makes: clang's own would do the same work before it.
_CFLAGS = ["-w", "-g0", "-Xclang", "-disable-llvm-passes"]

_SLOT_MARK = 0x1BADCAFE
_MOV_IMMEDIATE = 0xB7  # BPF_ALU64 | BPF_MOV | BPF_K
_LD_IMMEDIATE_64 = 0x18


@dataclass
class _Program:
    """An attached program of a probe."""

    held: Attached
    kind: int
    """The event kind that a missed run of it would have made."""
    number: int
    """Its place in the map `costs`."""
    missed: int = 0
    """Runs that the kernel skipped, up to the last look."""


@contextlib.contextmanager
def _output_to(file: Any) -> Iterator[None]:
    """Send file descriptors 1 and 2 elsewhere for a while: clang and bcc write there."""
    libc = ct.CDLL(None)
    sys.stdout.flush()
    sys.stderr.flush()
    saved = [(number, os.dup(number)) for number in (1, 2)]
    try:
        for number, _ in saved:
            os.dup2(file.fileno(), number)
        yield
    finally:
        libc.fflush(None)
        for number, copy in saved:
            os.dup2(copy, number)
            os.close(copy)


def compile_source(source: str) -> Any:
    """Compile with bcc and make the maps; return the bcc.BPF object.

    Raises:
        IntxtraceError: no bcc, no kernel headers, or the source does not compile here.
    """
    bcc = import_bcc()
    with tempfile.TemporaryFile() as log:
        try:
            with _output_to(log):
                return bcc.BPF(text=source.encode(), cflags=_CFLAGS)
        except Exception as error:  # bcc raises bare Exception for every reason
            log.seek(0)
            words = log.read().decode(errors="replace")
            release = os.uname().release
            if "kernel headers" in words or not headers_found():
                raise IntxtraceError(
                    f"bcc finds no headers of kernel {release}: install them ({remedies.distribution().headers}), or "
                    "set BCC_KERNEL_SOURCE to a kernel header folder"
                ) from error
            if os.geteuid() != 0:
                raise IntxtraceError("loading probes needs root: run this with sudo") from error
            if "Operation not permitted" in words:
                raise IntxtraceError(
                    "the kernel lets this process load no BPF: run this as root of the host itself, not of a container "
                    "or a user namespace"
                ) from error
            last = [line for line in words.splitlines() if "error" in line][-3:] or words.splitlines()[-3:]
            raise IntxtraceError(
                f"bcc cannot compile the probes on kernel {release}: {' | '.join(last) or error}"
            ) from error


def headers_found(root: Path = Path("/")) -> Path | None:
    """Return the folder where bcc finds the running kernel's headers; None if there is none.

    bcc includes linux/kconfig.h before all else (src/cc/frontends/clang/kbuild_helper.cc); of a folder without it, such
    as a package that is half removed leaves, it can make nothing. Debian keeps it in `source`.
    """
    named = os.environ.get("BCC_KERNEL_SOURCE")
    modules = root / "lib/modules" / os.uname().release
    folders = (modules / "build", modules / "source") if named is None else (Path(named),)
    return next((folder for folder in folders if (folder / "include/linux/kconfig.h").is_file()), None)


class Probes:
    """The probes in the kernel.

    `table` holds the row of every probe, the missing ones too. Use as a context manager: leaving it detaches all.
    """

    def __init__(self, *, bar: str = "count", ring_bytes: int = DEFAULT_RING_BYTES) -> None:
        """Compile, load and attach all kernel probes that this kernel has.

        Raises:
            IntxtraceError: the host cannot be traced; says what to install or load.
        """
        self._bar = bar
        self._attached: dict[int, list[_Program]] = {}
        self._slots: dict[str, int] = {}
        self._missed: list[tuple[int, int]] = []
        self._bcc = import_bcc()
        btf = Btf()
        self.calibration = Calibration(btf.function(setitimer()))
        try:
            symbols = kernel.kernel_symbols(wanted_symbols())
            demoted = frozenset() if _takes_fentry(btf) else frozenset(spec.name for spec in CATALOGUE)
            while True:
                self._plan = plan = Planner(btf, symbols, demoted).plan(bar, ring_bytes)
                self.bpf = compile_source(plan.source)
                self.table = plan.probes
                failed = self._attach_kernel(plan, btf)
                if not failed or failed <= demoted:
                    break
                demoted |= failed
                self.close()
        except BaseException:
            with contextlib.suppress(AttributeError):
                self.close()
            raise
        finally:
            btf.close()

    def __enter__(self) -> Probes:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _attach_kernel(self, plan: Plan, btf: Btf) -> frozenset[str]:
        """Attach; return the probes that must be tried in another way."""
        modules = {p.module for programs in plan.programs.values() for p in programs if p.method in ("fentry", "fexit")}
        try:
            fds = kernel.module_btf_fds(modules - {"vmlinux"})
        except OSError as error:
            raise IntxtraceError(
                f"the kernel does not tell this process the types of its modules ({error.strerror}): run this as root "
                "of the host itself, with all capabilities"
            ) from error
        failed = set()
        try:
            for row in plan.probes:
                for planned in plan.programs.get(row.name, ()):
                    try:
                        self._attach_one(row, planned, fds)
                    except OSError as error:
                        self._detach_row(row.id)
                        if planned.method in ("fentry", "fexit"):
                            failed.add(row.name)
                        elif row.state == "fallback":
                            failed.add(row.name + "/fallback")
                        row.state = "missing"
                        row.reason = f"{planned.method} {planned.hook.target}: {error.strerror or error}"
                        break
        finally:
            for fd in fds.values():
                os.close(fd)
        return frozenset(failed | self._unhooked(plan))

    def _unhooked(self, plan: Plan) -> set[str]:
        """Detach the fentry programs whose attachment succeeded but did not take place; return their probes.

        Debian's 6.12 says so of KVM's irqfd_wakeup, makes the trampoline and never patches the function.
        """
        traced = kernel.traced_functions()
        found = set()
        for row in plan.probes if traced is not None else ():
            hooks = [p for p in plan.programs.get(row.name, ()) if p.method in ("fentry", "fexit")]
            untraced = [p for p in hooks if (p.hook.target, p.module) not in (traced or ())]
            if row.id in self._attached and untraced:
                self._detach_row(row.id)
                row.state = "missing"
                row.reason = f"the kernel attached {untraced[0].method} to {untraced[0].hook.target} without effect"
                found.add(row.name)
        return found

    def _code(self, symbol: str) -> bytes:
        lib, module = self._bcc.lib, self.bpf.module
        start, size = (
            getattr(lib, name)(module, symbol.encode()) for name in ("bpf_function_start", "bpf_function_size")
        )
        if not start:
            raise OSError(0, f"bcc made no program {symbol}")
        return ct.string_at(start, size)

    def _attach_one(self, row: Probe, planned: Planned, fds: dict[str, int]) -> None:
        code, name, target = self._code(planned.symbol), planned.symbol, planned.hook.target
        if planned.method in ("fentry", "fexit"):
            held = attach.to_function(code, name, target, planned.method, planned.btf_id, fds.get(planned.module, 0))
        elif planned.method == "raw_tracepoint":
            held = attach.to_tracepoint(code, name, target)
        else:
            held = attach.to_kprobe(code, name, target, planned.method, planned.module)
        self._keep(row, held, self._plan.numbers[name])

    def _keep(self, row: Probe, held: Attached, number: int) -> None:
        self._attached.setdefault(row.id, []).append(_Program(held, int(Kind[row.kinds[0]]), number))

    def attach_qemu(self, binary: QemuBinary) -> list[Probe]:
        """Attach the QEMU probes to one more binary; return its rows, which are also in `table`."""
        key = str(binary.path)
        slot = self._slots.setdefault(key, len(self._slots))
        eoi = binary.functions.get("vfio_intx_eoi")
        leaf = self.bpf[b"binaries"].Leaf(binary.vbasedev_offset or 0, (eoi.filter_offset or 0) if eoi else 0)
        self.bpf[b"binaries"][ct.c_int(slot)] = leaf
        rows = []
        for spec in qemu_specs(self._bar):
            row = Probe(len(self.table), name=spec.name, kinds=[kind.name for kind in spec.kinds])
            row.target = f"{binary.path}:{spec.name}"
            self.table.append(row)
            rows.append(row)
            function = binary.functions.get(spec.name)
            if function is None:
                row.reason = binary.missing.get(spec.name, "not found in this binary")
                continue
            row.method, row.offset, row.resolved = "uprobe", function.offset, function.method
            row.target = f"{binary.path}:{function.symbol}"
            row.reason = unreadable(function, binary)
            if row.reason:
                continue
            try:
                self._attach_uprobe(row, spec, function, binary, slot)
                row.state = "attached"
            except OSError as error:
                self._detach_row(row.id)
                row.reason = f"uprobe: {error.strerror or error}"
        return rows

    def _attach_uprobe(self, row: Probe, spec: QemuSpec, function: QemuFunction, binary: QemuBinary, slot: int) -> None:
        code = _patch_slot(self._code(f"q_{spec.name}"), slot)
        held = attach.to_uprobe(code, f"q_{spec.name}_{slot}", binary.path, function.offset)
        self._keep(row, held, self._plan.numbers[f"q_{spec.name}"] + self._plan.qemu_programs * slot)

    def misses(self) -> list[tuple[int, int]]:
        """Return (kind, count) of the runs that the kernel skipped since the last call."""
        for one in (one for programs in self._attached.values() for one in programs):
            total = kernel.program_info(one.held.program).recursion_misses
            if total > one.missed:
                self._missed.append((one.kind, total - one.missed))
                one.missed = total
        found, self._missed = self._missed, []
        return found

    def _detach_row(self, row: int) -> None:
        for one in self._attached.pop(row, ()):
            one.held.detach()

    def programs(self, row: int) -> list[Attached]:
        """Return the programs of a probe that are attached now."""
        return [one.held for one in self._attached.get(row, ())]

    def calibrate(self) -> None:
        """Measure what being watched costs on this host, by each method that the attached probes use."""
        for row in self.table:
            if row.attach_ns is None:
                row.attach_ns = self.calibration.cost(self.programs(row.id))

    def time_runs(self, on: bool) -> None:
        """Let the programs time their own runs, or no longer."""
        self.bpf[b"timing"][ct.c_int(0)] = ct.c_uint32(on)

    def timed(self, row: int) -> list[tuple[int, list[int]]]:
        """Return of each program of a probe how many of its runs were timed, and the ns of the latest on each CPU.

        Only runs that concerned somebody traced are, and none in a QEMU binary after the first few.
        """
        found = []
        costs = self.bpf[b"costs"]
        for one in self._attached.get(row, ()):
            by_cpu = costs[ct.c_int(one.number)] if one.number < len(costs) else ()
            samples = [ns for cost in by_cpu for ns in cost.ns[: cost.runs]]
            found.append((sum(cost.runs for cost in by_cpu), samples))
        return found

    def stop(self) -> None:
        """Detach every probe; the maps and the count of missed runs stay readable."""
        self._missed = self.misses()
        for row in list(self._attached):
            self._detach_row(row)

    def close(self) -> None:
        """Detach every probe and free the maps."""
        self.stop()
        self.calibration.close()
        self._slots.clear()
        self.bpf.cleanup()


def unreadable(function: QemuFunction, binary: QemuBinary) -> str:
    """Return why a probe could not tell whose device a QEMU function is called for; empty where it can."""
    if function.argument is None:
        return "the code does not prove what its first argument is"
    if function.argument == "VFIOPCIDevice" and binary.vbasedev_offset is None:
        return "the code does not prove where VFIOPCIDevice holds the VFIODevice"
    return ""


def _takes_fentry(btf: Btf) -> bool:
    """Try whether this kernel, as it is configured and locked down, takes fentry programs at all."""
    function = btf.function("enable_irq")
    if function is None:
        return False
    try:
        os.close(kernel.load_program(RETURN_0, "try", kernel.PROG_TRACING, kernel.ATTACH_FENTRY, function.id))
    except OSError:
        return False
    return True


def _patch_slot(code: bytes, slot: int) -> bytes:
    """Put the binary's number where bpf/intxtrace.c's this_binary() has its mark."""
    patched = bytearray(code)
    mark = _SLOT_MARK.to_bytes(4, "little")
    for at in range(0, len(patched), 8):
        if patched[at] in (_MOV_IMMEDIATE, _LD_IMMEDIATE_64) and patched[at + 4 : at + 8] == mark:
            patched[at + 4 : at + 8] = slot.to_bytes(4, "little")
    return bytes(patched)
