"""Can this host be traced? Each thing that `record` needs, whether it is there, and what to do if it is not.

Whether `record` would work is not concluded from these facts: it is tried, with record's own code (`Session`), which
loads and attaches every probe and leaves. The facts say why not, and what else would be better.
"""

from __future__ import annotations

import contextlib
import gzip
import os
import platform
import re
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from intxtrace import files
from intxtrace.capture import host, kernel, remedies
from intxtrace.capture.bcc_import import import_bcc
from intxtrace.capture.btf import Btf
from intxtrace.capture.plan import DEFAULT_RING_BYTES, MACHINES, Planner, wanted_symbols
from intxtrace.capture.program import Probes, headers_found
from intxtrace.capture.qemu_functions import find_functions
from intxtrace.capture.run_times import RunTimes
from intxtrace.capture.session import Selection, Session, require_root
from intxtrace.errors import IntxtraceError
from intxtrace.host_results import Binary, Check, Diagnosis, FoundFunction, ProbeRow
from intxtrace.trace.tables import Probe

RING_BUFFER = (5, 8)
"""The Linux that brought the BPF ring buffer (457f44363a88)."""

MOMENT_SECONDS = 0.25
"""So long the kernel times the programs of the probes."""

_OPTIONS = {
    # Option: (what for, whether record cannot do without)
    "CONFIG_BPF_SYSCALL": ("BPF programs", True),
    "CONFIG_BPF_EVENTS": ("BPF programs at tracepoints and probes", True),
    "CONFIG_DEBUG_INFO_BTF": ("structure offsets", True),
    "CONFIG_KVM": ("virtual machines", True),
    "CONFIG_UPROBE_EVENTS": ("probes in QEMU", False),
    "CONFIG_BPF_JIT": ("fast probes", False),
    "CONFIG_DYNAMIC_FTRACE_WITH_DIRECT_CALLS": ("fentry; kprobes serve in its place", False),
    "CONFIG_KPROBES": ("functions that fentry cannot take; tracepoints serve for some", False),
    "CONFIG_KPROBE_EVENTS": ("kprobes", False),
}
_CAP_SYS_ADMIN = 21
"""include/uapi/linux/capability.h. It stands for CAP_BPF and CAP_PERFMON too; those two alone cannot list the BTF of
modules (bpf_btf_get_next_id, kernel/bpf/syscall.c)."""


def diagnose(*, wait: bool = False, root: Path = Path("/")) -> Diagnosis:
    """Look at everything, and try to record.

    Args:
        wait: judge `record --wait`, which needs no VM yet.
        root: where /proc, /sys, /etc, /boot and /lib are; what is tried is tried on the running kernel all the same.
    """
    reason, attached = _try(wait)
    attached = attached or _attach()
    tried = attached is not None
    rows, calibration_ns = attached or _Tried(_planned(), None)
    distribution = remedies.distribution(root)
    return Diagnosis(
        ready=reason is None,
        reason=reason,
        kernel=os.uname().release,
        machine=os.uname().machine,
        distribution=distribution.name,
        checks=tuple(checks(root, distribution, wait=wait)),
        tried=tried,
        probes=tuple(_row(row, tried) for row in rows),
        calibration_ns=calibration_ns,
        vms=tuple(f"{one.name} (pid {one.pid})" for one in host.processes()),
        binaries=tuple(binaries()),
    )


class _Tried(NamedTuple):
    """The probe table, and how long it took to measure what being watched costs."""

    probes: list[Probe]
    calibration_ns: int | None


def _try(wait: bool) -> tuple[str | None, _Tried | None]:
    """Do what `record` does before its first event; return what it would say, and what was attached."""
    try:
        require_root()
        with Session(Selection(), wait=wait) as session:
            _let_run(session.run_times)
        return None, _Tried(session.tables.probes, session.calibration_ns)
    except IntxtraceError as error:
        return str(error), None
    except OSError as error:  # as the entry point says it of record
        return files.sentence(error), None


def _attach() -> _Tried | None:
    """Attach what can be attached where record as a whole would not work; None if nothing can be tried."""
    try:
        require_root()
        with Probes() as probes:
            for path in host.installed_qemu():
                with contextlib.suppress(IntxtraceError):
                    probes.attach_qemu(find_functions(path))
            probes.calibrate()
            _let_run(RunTimes(probes))
        return _Tried(probes.table, probes.calibration.spent_ns)
    except (IntxtraceError, OSError):
        return None


def _let_run(run_times: RunTimes) -> None:
    """Let the probes be hit by whatever this host does in a moment: nothing is run on them for the measure's sake."""
    run_times.begin()
    time.sleep(MOMENT_SECONDS)
    run_times.finish()


def _row(row: Probe, tried: bool) -> ProbeRow:
    state = "planned" if row.standing == "attached" and not tried else row.standing
    return ProbeRow(
        row.name, state, row.method, row.target, row.resolved, row.reason, row.attach_ns, row.run_ns, row.runs
    )


def _planned() -> list[Probe]:
    """Plan the probes without loading anything; none if this kernel's types cannot be read."""
    try:
        btf = Btf()
    except IntxtraceError:
        return []
    try:
        symbols = kernel.kernel_symbols(wanted_symbols())
        return Planner(btf, symbols).plan("count", DEFAULT_RING_BYTES).probes
    except OSError:
        return []
    finally:
        btf.close()


def binaries() -> Iterator[Binary]:
    """Look into each QEMU binary: those of VMs that run, and those of the distribution."""
    seen: dict[tuple[int, int], tuple[Path, list[int]]] = {}
    running = [(one.exe, one.pid) for one in host.processes()]
    for path, pid in [*running, *((path, 0) for path in host.installed_qemu())]:
        with contextlib.suppress(OSError):
            status = path.stat()
            pids = seen.setdefault((status.st_dev, status.st_ino), (path, []))[1]
            if pid:
                pids.append(pid)
    for path, pids in seen.values():
        shown = str(path)
        with contextlib.suppress(OSError):
            shown = str(path.readlink()) if pids else shown
        try:
            found = find_functions(path)
        except IntxtraceError as error:
            yield Binary(shown, tuple(pids), None, None, (), {}, str(error))
            continue
        functions = tuple(
            FoundFunction(f.name, f.symbol, hex(f.offset), f.method, f.argument) for f in found.functions.values()
        )
        yield Binary(shown, tuple(pids), found.version, found.build_id, functions, dict(found.missing), None)


def checks(root: Path, distribution: remedies.Distribution, *, wait: bool = False) -> Iterator[Check]:
    """Check each thing by itself; one that is missing hides no other."""
    yield _machine()
    yield _kernel(distribution.release)
    yield _privileges(root)
    yield _lockdown(root)
    yield from _config(root, distribution.release)
    yield _types(root)
    yield _symbols(root, "vfio", "vfio_intx_handler", "modprobe vfio-pci")
    yield _symbols(root, "kvm", "irqfd_wakeup", "modprobe kvm-intel, or kvm-amd")
    yield _kprobes(root)
    yield _tracefs(root)
    yield _bcc(distribution)
    yield _headers(root, distribution)
    yield _qemu()
    yield _vms(wait)


def _text(path: Path) -> str | None:
    with contextlib.suppress(OSError):
        return path.read_text(errors="replace")
    return None


def _machine() -> Check:
    machine = platform.machine()
    known = machine in MACHINES
    return Check(
        "machine",
        "ok" if known else "missing",
        machine,
        "" if known else f"run this on one of {', '.join(MACHINES)}; what was recorded there can be read here",
    )


def _kernel(release: str) -> Check:
    match = re.match(r"(\d+)\.(\d+)", release)
    old = match is None or (int(match[1]), int(match[2])) < RING_BUFFER
    return Check(
        "kernel",
        "missing" if old else "ok",
        release,
        "boot Linux 5.8 or newer (the BPF ring buffer), or record with ftrace: see `intxtrace import --help`"
        if old
        else "",
    )


def _privileges(root: Path) -> Check:
    name = "privileges"
    sudo = "run this with sudo"
    if os.geteuid() != 0:
        return Check(name, "missing", f"user id {os.geteuid()}", sudo)
    if (_text(root / "proc/self/uid_map") or "0 0 4294967295").split() != ["0", "0", "4294967295"]:
        return Check(name, "missing", "root of a user namespace", "run this as root of the host itself")
    if not host.sees_every_process(root / "proc"):
        return Check(
            name, "missing", "root of a PID namespace", "run this on the host itself, or give the container --pid=host"
        )
    match = re.search(r"^CapEff:\s*([0-9a-f]+)$", _text(root / "proc/self/status") or "", re.M)
    if match is None:
        return Check(name, "unknown", "root; its capabilities cannot be read", "")
    if int(match[1], 16) >> _CAP_SYS_ADMIN & 1:
        return Check(name, "ok", "root", "")
    return Check(
        name,
        "missing",
        "root without CAP_SYS_ADMIN",
        "run this on the host itself, or give the container --privileged and --pid=host",
    )


def _lockdown(root: Path) -> Check:
    text = _text(root / "sys/kernel/security/lockdown")
    if text is None:
        return Check("lockdown", "ok", "this kernel has none, or securityfs is not mounted", "")
    match = re.search(r"\[(\w+)\]", text)
    level = match[1] if match else "unknown"
    # LOCKDOWN_BPF_READ_KERNEL, LOCKDOWN_KPROBES and LOCKDOWN_TRACEFS belong to it (include/linux/security.h).
    shut = level == "confidentiality"
    return Check(
        "lockdown",
        "missing" if shut else "ok",
        level,
        "boot with lockdown=integrity or without it: confidentiality lets no probe read the kernel" if shut else "",
    )


def read_config(root: Path, release: str) -> dict[str, str] | None:
    """Read the kernel's configuration: /proc/config.gz, or what its package left; None if there is neither."""
    with contextlib.suppress(OSError, EOFError), gzip.open(root / "proc/config.gz", "rt", errors="replace") as file:
        return _options(file.read(1 << 22))
    for name in (f"boot/config-{release}", f"lib/modules/{release}/config", f"usr/lib/modules/{release}/config"):
        text = _text(root / name)
        if text is not None:
            return _options(text)
    return None


def _options(text: str) -> dict[str, str]:
    return dict(re.findall(r"^(CONFIG_\w+)=(\S+)", text, re.M))


def _config(root: Path, release: str) -> Iterator[Check]:
    config = read_config(root, release)
    if config is None:
        yield Check("kernel configuration", "unknown", f"neither /proc/config.gz nor /boot/config-{release}", "")
        return
    lacking = [(option, *why) for option, why in _OPTIONS.items() if config.get(option) not in ("y", "m")]
    if not lacking:
        yield Check("kernel configuration", "ok", f"{len(_OPTIONS)} options that matter are set", "")
    for option, purpose, needed in lacking:
        yield Check(
            option,
            "missing" if needed else "worse",
            f"not set: {purpose}",
            "boot a kernel that has it: your distribution's own" if needed else "",
        )


def _types(root: Path) -> Check:
    path = root / "sys/kernel/btf/vmlinux"
    if not path.exists():
        return Check("BTF", "missing", f"no {path}", "boot a kernel that was built with CONFIG_DEBUG_INFO_BTF=y")
    try:
        btf = Btf(root / "sys/kernel/btf")
    except IntxtraceError as error:
        found, _, remedy = str(error).partition(": ")
        return Check("BTF", "missing", found, remedy)
    modules = [name for name in btf.modules if name != "vmlinux"]
    btf.close()
    return Check("BTF", "ok", ", ".join(["vmlinux", *modules]), "")


def _symbols(root: Path, name: str, symbol: str, remedy: str) -> Check:
    try:
        known = kernel.kernel_symbols({symbol}, root / "proc/kallsyms").get(symbol)
    except OSError as error:
        return Check(name, "unknown", f"/proc/kallsyms: {error.strerror}", "")
    if known is None:
        return Check(name, "missing", f"the kernel has no {symbol}: its module is not loaded", remedy)
    return Check(name, "ok", f"{symbol} in {known.module or 'the kernel itself'}", "")


def _kprobes(root: Path) -> Check:
    try:
        there = "register_kprobe" in kernel.kernel_symbols({"register_kprobe"}, root / "proc/kallsyms")
    except OSError:
        return Check("kprobes", "unknown", "/proc/kallsyms cannot be read", "")
    switch = _text(root / "sys/kernel/debug/kprobes/enabled")
    if there and switch is not None and switch.strip() == "0":
        return Check("kprobes", "worse", "switched off", "echo 1 > /sys/kernel/debug/kprobes/enabled")
    return Check(
        "kprobes",
        "ok" if there else "worse",
        "in this kernel" if there else "not in this kernel: fentry or tracepoints serve where they can",
        "",
    )


def _tracefs(root: Path) -> Check:
    there = (root / "sys/kernel/tracing/events").is_dir() or (root / "sys/kernel/tracing/enabled_functions").exists()
    return Check(
        "tracefs",
        "ok" if there else "worse",
        "/sys/kernel/tracing" if there else "not mounted: an fentry attachment without effect goes unnoticed",
        "" if there else "mount -t tracefs tracefs /sys/kernel/tracing",
    )


def _bcc(distribution: remedies.Distribution) -> Check:
    try:
        module = import_bcc()
    except IntxtraceError as error:
        return Check("bcc", "missing", str(error).partition(": ")[0], distribution.bcc)
    folder = Path(module.__file__ or "").parent
    return Check("bcc", "ok", f"{getattr(module, '__version__', 'of unknown version')} in {folder}", "")


def _headers(root: Path, distribution: remedies.Distribution) -> Check:
    named, folder = os.environ.get("BCC_KERNEL_SOURCE"), headers_found(root)
    inside = named is None and (root / "sys/kernel/kheaders.tar.xz").exists()
    if named is not None:
        found = f"BCC_KERNEL_SOURCE={named}" + ("" if folder else ", which holds none")
    elif folder is not None:
        found = str(folder)
    else:
        found = "in the kernel itself (kheaders)" if inside else f"none of kernel {distribution.release}"
    there = folder is not None or inside
    return Check("kernel headers", "ok" if there else "missing", found, "" if there else distribution.headers)


def _qemu() -> Check:
    paths = [*(str(one.exe) for one in host.processes()), *map(str, host.installed_qemu())]
    if paths:
        return Check("QEMU", "ok", ", ".join(dict.fromkeys(paths)), "")
    return Check(
        "QEMU",
        "worse",
        "none installed in the usual places, and none runs",
        "a VM's own binary is found when it starts; other VMMs are traced in the kernel alone",
    )


def _vms(wait: bool) -> Check:
    running = host.processes()
    if running:
        return Check("VMs", "ok", ", ".join(f"{one.name} (pid {one.pid})" for one in running), "")
    if wait:
        return Check("VMs", "ok", "none runs; record --wait waits for one", "")
    return Check("VMs", "missing", "none runs", "start one, or give record --wait")
