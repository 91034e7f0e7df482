"""`doctor`: each missing thing is named with its remedy, and its exit status is what `record` would do."""

from __future__ import annotations

import gzip
import io
import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from intxtrace import files
from intxtrace.__main__ import main
from intxtrace.capture import doctor, host, remedies, session
from intxtrace.errors import IntxtraceError
from intxtrace.host_results import Binary, Check, Diagnosis, FoundFunction, ProbeRow
from intxtrace.render.host import print_diagnosis
from intxtrace.trace.tables import Probe, Tables, Vm
from tests.unit.sessions import FakeSession

RELEASE = os.uname().release
CONFIG = "".join(f"{name}=y\n" for name in doctor._OPTIONS) + "# CONFIG_DEBUG_INFO is not set\n"
DEBIAN = 'PRETTY_NAME="Debian GNU/Linux 12 (bookworm)"\nID=debian\n'
ALL = (1 << 41) - 1


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A host that lacks nothing that stands in files, but BTF."""
    for folder in ("proc/self", "sys/kernel/security", "sys/kernel/tracing/events", "etc", "boot"):
        (tmp_path / folder).mkdir(parents=True)
    headers = tmp_path / f"lib/modules/{RELEASE}/build/include/linux"
    headers.mkdir(parents=True)
    (headers / "kconfig.h").touch()
    (tmp_path / "proc/self/status").write_text(f"Name:\tx\nCapEff:\t{ALL:016x}\n")
    (tmp_path / "sys/kernel/security/lockdown").write_text("none [integrity] confidentiality\n")
    (tmp_path / f"boot/config-{RELEASE}").write_text(CONFIG)
    (tmp_path / "etc/os-release").write_text(DEBIAN)
    (tmp_path / "proc/kallsyms").write_text(
        "ffffffff81000000 T register_kprobe\n"
        "ffffffffc0000000 t vfio_intx_handler\t[vfio_pci_core]\n"
        "ffffffffc0100000 t irqfd_wakeup\t[kvm]\n"
    )
    return tmp_path


def checked(root: Path, **options: bool) -> dict[str, Check]:
    found = list(doctor.checks(root, remedies.distribution(root), **options))
    assert len({check.name for check in found}) == len(found)
    return {check.name: check for check in found}


@pytest.mark.usefixtures("one_vm")
def test_a_host_that_lacks_nothing(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("BCC_KERNEL_SOURCE", raising=False)
    found = checked(root)
    assert {name: check.state for name, check in found.items() if check.state != "ok"} == {"BTF": "missing"}
    assert found["BTF"].remedy == "boot a kernel that was built with CONFIG_DEBUG_INFO_BTF=y"
    assert found["vfio"].found == "vfio_intx_handler in vfio_pci_core"
    assert "win10 (pid 4711)" in found["VMs"].found


# ---- each missing thing


@pytest.mark.usefixtures("no_bcc")
def test_no_bcc(root: Path) -> None:
    found = checked(root)["bcc"]
    assert (found.state, found.found, found.remedy) == ("missing", "bcc is not installed", "apt install python3-bpfcc")


def test_no_headers(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("BCC_KERNEL_SOURCE", raising=False)
    (root / f"lib/modules/{RELEASE}/build/include/linux/kconfig.h").unlink()
    assert checked(root)["kernel headers"].state == "missing"  # folders that a package left behind
    shutil.rmtree(root / f"lib/modules/{RELEASE}/build")
    (root / f"lib/modules/{RELEASE}/build").symlink_to("/nowhere")  # as Debian leaves it without the headers
    found = checked(root)["kernel headers"]
    assert (found.state, found.remedy) == ("missing", f"apt install linux-headers-{RELEASE}")
    (root / "sys/kernel/kheaders.tar.xz").touch()
    assert checked(root)["kernel headers"].state == "ok"
    monkeypatch.setenv("BCC_KERNEL_SOURCE", "/nowhere")
    assert checked(root)["kernel headers"].state == "missing"


def test_no_kprobes(root: Path) -> None:
    (root / "proc/kallsyms").write_text("0000000000000000 t irqfd_wakeup\n")
    found = checked(root)
    assert found["kprobes"].state == "worse"
    assert (found["vfio"].state, found["vfio"].remedy) == ("missing", "modprobe vfio-pci")
    assert found["kvm"].found == "irqfd_wakeup in the kernel itself"


def test_kprobes_that_are_switched_off(root: Path) -> None:
    (root / "sys/kernel/debug/kprobes").mkdir(parents=True)
    (root / "sys/kernel/debug/kprobes/enabled").write_text("0\n")
    assert checked(root)["kprobes"].remedy == "echo 1 > /sys/kernel/debug/kprobes/enabled"


def test_no_root(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    found = checked(root)["privileges"]
    assert (found.state, found.found, found.remedy) == ("missing", "user id 1000", "run this with sudo")


@pytest.mark.parametrize(
    ("lacking", "state"),
    [((), "ok"), ((38, 39), "ok"), ((21,), "missing"), ((21, 38, 39), "missing")],
)
def test_root_without_capabilities(
    root: Path, monkeypatch: pytest.MonkeyPatch, lacking: tuple[int, ...], state: str
) -> None:
    """CAP_SYS_ADMIN stands for CAP_BPF and CAP_PERFMON."""
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    held = ALL & ~sum(1 << bit for bit in lacking)
    (root / "proc/self/status").write_text(f"CapEff:\t{held:016x}\n")
    found = checked(root)["privileges"]
    assert found.state == state
    assert ("--privileged" in found.remedy) == (state == "missing")


def test_root_of_a_user_namespace(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    (root / "proc/self/uid_map").write_text("         0       1000          1\n")
    found = checked(root)["privileges"]
    assert (found.state, found.remedy) == ("missing", "run this as root of the host itself")
    (root / "proc/self/uid_map").write_text("         0          0 4294967295\n")
    assert checked(root)["privileges"].state == "ok"


@pytest.mark.usefixtures("no_vm")
def test_no_qemu_and_no_vm(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(host, "INSTALLED_QEMU", ())
    found = checked(root)
    assert found["QEMU"].state == "worse"
    assert (found["VMs"].state, found["VMs"].remedy) == ("missing", "start one, or give record --wait")
    assert checked(root, wait=True)["VMs"].state == "ok"
    assert list(doctor.binaries()) == []


@pytest.mark.parametrize(
    ("text", "state"),
    [("[none] integrity confidentiality", "ok"), ("none integrity [confidentiality]", "missing"), (None, "ok")],
)
def test_lockdown(root: Path, text: str | None, state: str) -> None:
    (root / "sys/kernel/security/lockdown").unlink()
    if text is not None:
        (root / "sys/kernel/security/lockdown").write_text(text + "\n")
    found = checked(root)["lockdown"]
    assert found.state == state
    assert ("lockdown=integrity" in found.remedy) == (state == "missing")


def test_options_that_are_not_set(root: Path) -> None:
    text = CONFIG.replace("CONFIG_KPROBES=y", "# CONFIG_KPROBES is not set").replace("CONFIG_BPF_EVENTS=y", "")
    (root / f"boot/config-{RELEASE}").write_text(text)
    found = checked(root)
    assert (found["CONFIG_KPROBES"].state, found["CONFIG_BPF_EVENTS"].state) == ("worse", "missing")
    assert "kernel configuration" not in found
    with gzip.open(root / "proc/config.gz", "wt") as file:
        file.write(CONFIG)
    assert checked(root)["kernel configuration"].state == "ok"


def test_a_configuration_that_is_nowhere_is_unknown(root: Path) -> None:
    (root / f"boot/config-{RELEASE}").unlink()
    assert checked(root)["kernel configuration"].state == "unknown"
    (root / "proc/config.gz").write_bytes(b"no gzip")
    assert checked(root)["kernel configuration"].state == "unknown"


@pytest.mark.parametrize(
    ("release", "state"),
    [("5.7.0", "missing"), ("4.19.0-27-amd64", "missing"), ("5.8.1", "ok"), ("6.1.0", "ok"), ("x", "missing")],
)
def test_old_kernels(root: Path, release: str, state: str) -> None:
    (found,) = (c for c in doctor.checks(root, remedies.distribution(root, release)) if c.name == "kernel")
    assert (found.state, found.found) == (state, release)


def test_tracefs(root: Path) -> None:
    (root / "sys/kernel/tracing/events").rmdir()
    assert "mount -t tracefs" in checked(root)["tracefs"].remedy


def test_a_host_that_has_nothing_at_all(tmp_path: Path) -> None:
    states = {check.name: check.state for check in doctor.checks(tmp_path, remedies.distribution(tmp_path))}
    assert {states[name] for name in ("vfio", "kvm", "kprobes", "kernel configuration")} == {"unknown"}
    assert states["BTF"] == "missing"


# ---- remedies


@pytest.mark.parametrize(
    ("os_release", "release", "bcc", "headers"),
    [
        ("ID=debian", "6.1.0-28-amd64", "apt install python3-bpfcc", "apt install linux-headers-"),
        ("ID=ubuntu\nID_LIKE=debian", "6.8.0-1-generic", "apt install python3-bpfcc", "apt install linux-headers-"),
        ("ID=foo\nID_LIKE='ubuntu debian'", "6.8.0", "apt install python3-bpfcc", "apt install linux-headers-"),
        ("ID=debian", "6.8.4-2-pve", "apt install python3-bpfcc", "apt install proxmox-headers-"),
        ("ID=debian", "6.2.16-3-pve", "apt install python3-bpfcc", "apt install pve-headers-"),
        ("ID=fedora", "6.11.4-301.fc41.x86_64", "dnf install python3-bcc", "dnf install kernel-devel-"),
        (
            'ID="rocky"\nID_LIKE="rhel fedora"',
            "5.14.0-427.el9.x86_64",
            "dnf install python3-bcc",
            "dnf install kernel-devel-",
        ),
    ],
)
def test_the_exact_package(tmp_path: Path, os_release: str, release: str, bcc: str, headers: str) -> None:
    (tmp_path / "etc").mkdir()
    (tmp_path / "etc/os-release").write_text(os_release + "\n")
    found = remedies.distribution(tmp_path, release)
    assert (found.bcc, found.headers) == (bcc, headers + release)


@pytest.mark.parametrize(
    ("release", "package"),
    [
        ("6.12.3-arch1-1", "linux-headers"),
        ("6.6.63-1-lts", "linux-lts-headers"),
        ("6.12.1-zen1-1-zen", "linux-zen-headers"),
        ("6.6.52-rt43-1-rt-lts", "linux-rt-lts-headers"),
    ],
)
def test_the_exact_package_on_arch(tmp_path: Path, release: str, package: str) -> None:
    (tmp_path / "etc").mkdir()
    (tmp_path / "etc/os-release").write_text("ID=arch\n")
    found = remedies.distribution(tmp_path, release)
    assert (found.bcc, found.headers) == ("pacman -S python-bcc", f"pacman -S {package}")


def test_an_unknown_distribution_has_all_remedies(tmp_path: Path) -> None:
    found = remedies.distribution(tmp_path, "6.1.0")
    assert found.family == ""
    for manager in ("apt", "dnf", "pacman"):
        assert manager in found.bcc
        assert manager in found.headers


# ---- the answer is record's own


TABLES = Tables(
    probes=[
        Probe(
            0,
            "vfio_intx_handler",
            ["HANDLER_ENTRY"],
            "attached",
            "fentry",
            "vfio_pci_core:vfio_intx_handler",
            attach_ns=57,
        ),
        Probe(1, "irqfd_wakeup", ["IRQFD_WAKEUP"], "fallback", "raw_tracepoint", "workqueue_queue_work"),
        Probe(2, "enable_irq", ["ENABLE_IRQ"], "missing", reason="inlined"),
    ],
    vms=[Vm(0, pid=7, name="guest")],
)
"""Of a host where everything works."""


class FakeRunTimes:
    """Programs that ran in the moment that they were attached."""

    def __init__(self, row: Probe) -> None:
        self._row = row

    def begin(self) -> None:
        self._row.runs = 0

    def finish(self) -> None:
        self._row.runs, self._row.run_ns = 12, 340


class MeasuredSession(FakeSession):
    """One whose probes' cost was measured."""

    calibration_ns = 46_000_000

    def __init__(self) -> None:
        super().__init__(tables=TABLES)
        self.run_times = FakeRunTimes(TABLES.probes[0])


def statuses(capsys: pytest.CaptureFixture[str], *options: str) -> tuple[int, int, dict[str, Any], str]:
    """Exit status of doctor and of `record --dry-run`, what doctor found, and what record said."""
    doctors = main(["doctor", "--json", *options])
    found = json.loads(capsys.readouterr().out)
    assert (found["schema"], found["version"]) == ("intxtrace.doctor", 1)
    records = main(["record", "--dry-run", *options])
    return doctors, records, found["data"], capsys.readouterr().err


def test_ready(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    for room in (session, doctor):
        monkeypatch.setattr(room, "Session", lambda *_, **__: MeasuredSession())
    doctors, records, found, said = statuses(capsys)
    assert (doctors, records, found["ready"], found["reason"]) == (0, 0, True, None)
    assert [probe["state"] for probe in found["probes"]] == ["attached", "fallback", "missing"]
    costs = [(probe["attach_ns"], probe["run_ns"], probe["runs"]) for probe in found["probes"]]
    assert costs == [(57, 340, 12), (None, None, None), (None, None, None)]
    assert (found["tried"], found["calibration_ns"]) == (True, 46_000_000)
    assert "not traced: enable_irq: inlined" in said
    assert "1 probes attached, 1 by a fallback, 1 missing; guest (pid 7); nothing was recorded" in said


def agree(capsys: pytest.CaptureFixture[str], *options: str) -> dict[str, Any]:
    doctors, records, found, said = statuses(capsys, *options)
    assert (doctors, records, found["ready"]) == (1, 1, False)
    assert said == f"intxtrace: {found['reason']}\n"
    return found


@pytest.mark.usefixtures("no_vm")
def test_without_a_vm(capsys: pytest.CaptureFixture[str]) -> None:
    assert "start one, or give --wait" in agree(capsys)["reason"]


@pytest.mark.usefixtures("one_vm", "no_bcc")
def test_without_bcc(capsys: pytest.CaptureFixture[str]) -> None:
    found = agree(capsys)
    assert found["reason"].startswith("bcc is not installed: install it from your distribution (")
    assert not found["tried"]
    assert "attached" not in {probe["state"] for probe in found["probes"]}


@pytest.mark.usefixtures("one_vm")
def test_without_headers(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BCC_KERNEL_SOURCE", "/nowhere")
    assert agree(capsys)["reason"].startswith(f"bcc finds no headers of kernel {RELEASE}: install them (")


@pytest.mark.usefixtures("one_vm")
def test_without_root(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    found = agree(capsys)
    assert "needs root: run this with sudo" in found["reason"]
    assert "planned" in {probe["state"] for probe in found["probes"]}


@pytest.mark.root
@pytest.mark.usefixtures("one_vm")
def test_without_the_types_of_modules(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """bpf_btf_get_next_id takes CAP_SYS_ADMIN, whatever else CAP_BPF allows."""

    def refuse(_: object) -> dict[str, int]:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr("intxtrace.capture.kernel.module_btf_fds", refuse)
    assert agree(capsys)["reason"].startswith(
        "the kernel does not tell this process the types of its modules (Operation"
    )


def test_an_error_that_nobody_foresaw(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> None:
        raise OSError(24, "Too many open files")

    monkeypatch.setattr(os, "geteuid", lambda: 0)
    monkeypatch.setattr("intxtrace.capture.session.Probes", fail)
    assert doctor._try(True) == (files.sentence(OSError(24, "Too many open files")), None)


@pytest.mark.root
@pytest.mark.usefixtures("no_vm")
def test_on_this_machine_doctor_says_what_record_does(capsys: pytest.CaptureFixture[str]) -> None:
    doctors, records, found, said = statuses(capsys, "--wait")
    assert doctors == records
    assert found["tried"]
    assert (found["reason"] is None) or said.endswith(f"{found['reason']}\n")
    attached = {probe["name"] for probe in found["probes"] if probe["state"] in ("attached", "fallback")}
    assert "kvm:kvm_eoi" in attached or found["reason"]
    costly = {probe["name"] for probe in found["probes"] if probe["attach_ns"] is not None}
    assert costly == attached
    assert found["calibration_ns"] > 0


def test_every_function_of_the_installed_qemu_has_its_offset() -> None:
    (binary, *_) = doctor.binaries()
    assert binary.problem is None
    assert {"vfio_intx_interrupt", "vfio_intx_eoi", "vfio_region_read"} <= {f.name for f in binary.functions}
    for function in binary.functions:
        assert int(function.offset, 16) > 0
        assert function.offset.startswith("0x")
        assert function.method in ("usdt", "dynsym", "symtab", "gnu_debugdata", "trace-variable")


def test_a_binary_that_cannot_be_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bad = tmp_path / "qemu"
    bad.write_bytes(b"\x7fELF nonsense")
    monkeypatch.setattr(host, "INSTALLED_QEMU", (str(bad),))
    monkeypatch.setattr(host, "processes", lambda: [])
    (found,) = doctor.binaries()
    assert (found.path, found.functions, found.pids) == (str(bad), (), ())
    assert found.problem


def test_probes_without_types_are_none(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse() -> None:
        raise IntxtraceError("no BTF")

    monkeypatch.setattr(doctor, "Btf", refuse)
    assert doctor._planned() == []


def test_the_text_says_it_all() -> None:
    function = FoundFunction("vfio_intx_eoi", "vfio_intx_eoi.part.0", "0x7271b0", "trace-variable", "VFIODevice")
    blind = FoundFunction("vfio_intx_update", "vfio_intx_update", "0x10", "dynsym", None)
    binaries = (
        Binary("/usr/bin/q[bold]", (7, 8), "7.2.22", "d954", (function, blind), {"vfio_intx_enable": "inlined"}, None),
        Binary("/opt/bad", (), None, None, (), {}, "it is no ELF file"),
    )
    fallback = ("irqfd_wakeup", "fallback", "raw_tracepoint", "workqueue_queue_work", "kallsyms", "no kprobes")
    probes = (
        ProbeRow(*fallback, attach_ns=68, run_ns=412, runs=1024),
        ProbeRow("enable_irq", "attached", "fentry", "enable_irq", "btf", "", attach_ns=57, runs=0),
    )
    checks = (Check("bcc", "missing", "bcc is not installed", "apt install python3-bpfcc"),)
    found = Diagnosis(
        False, "bcc is not installed", "6.1.0", "x86_64", "Debian", checks, True, probes, (), binaries, 46_000_000
    )
    screen = Console(width=80, file=io.StringIO(), force_terminal=False, color_system=None)
    print_diagnosis(found, screen)
    assert isinstance(screen.file, io.StringIO)
    lines = screen.file.getvalue().splitlines()
    assert max(len(line) for line in lines) <= 80
    text = " ".join(" ".join(lines).split())
    for wanted in (
        "missing bcc: bcc is not installed do: apt install python3-bpfcc",
        "fallback irqfd_wakeup: raw_tracepoint workqueue_queue_work (found by kallsyms), costs a call 68 ns + 412 ns "
        "(median, 1,024 runs): no kprobes",
        "attached enable_irq: fentry enable_irq (found by btf), costs a call 57 ns and its run time",
        "what being watched costs was measured in 46.0 ms",
        "/usr/bin/q[bold] 7.2.22, run by 2 VMs",
        "ok vfio_intx_eoi: vfio_intx_eoi.part.0 at 0x7271b0, by trace-variable",
        "missing vfio_intx_update: vfio_intx_update at 0x10, by dynsym; its code does not prove its first argument",
        "missing vfio_intx_enable: inlined",
        "missing it is no ELF file",
        "record would not work: bcc is not installed",
    ):
        assert wanted in text
