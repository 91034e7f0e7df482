"""The lab's own readers of foreign text, on lines as the programs write them."""

from __future__ import annotations

import os
import subprocess
import time
from pathlib import Path

import pandas as pd
import pytest

from intxtrace.events import Kind
from tests.lab import packages
from tests.lab.findings import EXPECTED, lspci_blocks, monitor_pins, named, read_lspci, summarise
from tests.lab.guest import FAULTS, GUESTS, setup_of
from tests.lab.host import SILENT_SECONDS, EmulatorError, HostError, _wait_status, clock_set_back
from tests.lab.packages import LabError, emulator
from tests.lab.recipes import STAGES, unseen, without
from tests.lab.scenario import Scenario, run_scenario
from tests.lab.truth import QEMU_EVENTS, Truth, line_count, read_card_log, read_qemu_log

QEMU_7_2 = """\
132@1795443937.102004:vfio_intx_enable  (0000:00:06.0)
135@1795443937.505083:vfio_intx_update  (0000:00:06.0) IRQ moved 21 -> 10
135@1795443941.509839:vfio_intx_update  (0000:00:06.0) IRQ moved 10 -> -1
132@1795443943.845178:vfio_intx_interrupt  (0000:00:06.0) Pin A
135@1795443943.852743:vfio_intx_eoi  (0000:00:06.0) EOI
132@1795443943.856605:vfio_intx_interrupt  (0000:00:06.0) Pin A
135@1795443943.856915:kvm_resample_fd_notify gsi 21
"""


def test_qemu_log_counts_lines_per_event() -> None:
    events, moves = read_qemu_log(QEMU_7_2)
    seen = {name: count for name, count in events.items() if count}
    assert seen == {
        "vfio_intx_enable": 1,
        "vfio_intx_update": 2,
        "vfio_intx_interrupt": 2,
        "vfio_intx_eoi": 1,
        "kvm_resample_fd_notify": 1,
    }
    assert set(events) == set(QEMU_EVENTS)
    assert moves == ["21 -> 10", "10 -> -1"]


def test_qemu_log_with_another_prefix_and_the_name_of_10_1() -> None:
    events, _ = read_qemu_log("2026-11-23T14:25:37.192201Z vfio_pci_intx_eoi  (0000:00:06.0) EOI\n")
    assert events["vfio_intx_eoi"] == 1


def test_qemu_log_of_one_card_counts_its_lines_alone() -> None:
    events, _ = read_qemu_log(QEMU_7_2 + QEMU_7_2.replace("00:06.0", "00:0a.0"), "0000:00:0a.0")
    assert (events["vfio_intx_interrupt"], events["vfio_intx_eoi"], events["kvm_resample_fd_notify"]) == (2, 1, 0)


# An interrupt before the marks, two between them, the second not unmasked; another card's; a read of all bytes that
# touches both marks; an unmask after them.
CARD_LOG = """\
pci_cfg_write e1000 00:06.0 @0x4 <- 0x507
pci_cfg_write e1000 00:06.0 @0x4 <- 0x107
pci_cfg_read e1000 00:06.0 @0xf0 -> 0x0
pci_cfg_read e1000 00:06.0 @0xf0 -> 0x0
pci_cfg_read e1000 00:06.0 @0xf0 -> 0x0
pci_cfg_read e1000 00:06.0 @0x4 -> 0x80107
pci_cfg_write e1000 00:06.0 @0x4 <- 0x507
pci_cfg_write e1000 00:06.0 @0xc <- 0x400
pci_cfg_write e1000 00:06.0 @0x4 <- 0x503
pci_cfg_write e1000 00:0a.0 @0x4 <- 0x507
pci_cfg_write e1000 00:06.0 @0x4 <- 0x107
pci_cfg_write e1000 00:06.0 @0x4 <- 0x507
pci_cfg_read e1000 00:06.0 @0xf0 -> 0x0
pci_cfg_read e1000 00:06.0 @0xf4 -> 0x0
pci_cfg_read e1000 00:06.0 @0xf4 -> 0x0
pci_cfg_read e1000 00:06.0 @0xf4 -> 0x0
pci_cfg_write e1000 00:06.0 @0x4 <- 0x107
"""


def test_card_log_counts_masks_and_unmasks_between_the_marks() -> None:
    assert read_card_log(CARD_LOG, "0000:00:06.0") == (2, 1)
    assert read_card_log(CARD_LOG * 2, "0000:00:06.0") == (2, 1)
    assert read_card_log(CARD_LOG, "0000:00:0a.0") is None


def test_line_count_adds_all_cpus() -> None:
    assert line_count("22:          3         65   IO-APIC  22-fasteoi   vfio-intx(0000:00:06.0)") == 68
    with pytest.raises(LabError):
        line_count("NMI:   0   Non-maskable interrupts")


# A host that died while its vCPU was still in its guest's world; a probe's own panic would look like the second.
SET_BACK = """\
[    1.808583] DMAR: VT-d Scalable Mode not enabled, no PASID allocation
lab host ready
[   60.232875] kvm [142]: vcpu0, guest rIP: 0xffffffff8127e744 Unhandled WRMSR(0xc0010007) = 0xffff
[   23.925098] BUG: TASK stack guard page was hit at 000000000f2355f6 (stack is 0000000032e916c9..000000003ce18e0a)
[   81.264470] Kernel panic - not syncing: corrupted stack end detected inside scheduler
"""
IN_ORDER = """\
[   60.232875] kvm [142]: vcpu0, guest rIP: 0xffffffff8127e744 Unhandled WRMSR(0xc0010007) = 0xffff
[   60.232870] a line of the other CPU
[   81.264470] Kernel panic - not syncing: corrupted stack end detected inside scheduler
"""


def test_a_clock_set_back_tells_the_emulators_fault_from_any_other_panic() -> None:
    assert clock_set_back(SET_BACK) == pytest.approx(36.307777)
    assert clock_set_back(IN_ORDER) == 0.0
    assert clock_set_back("") == 0.0


def fake_host(monkeypatch: pytest.MonkeyPatch, outcomes: list[Exception]) -> list[Path]:
    calls: list[Path] = []

    def run_host(script: str, share: Path, *rest: object, **named: object) -> None:
        calls.append(share)
        assert [path.name for path in share.iterdir() if path.name != "emulator-fault"] == ["scenario.json"]
        (share / "1-kernel").mkdir()
        raise outcomes[len(calls) - 1]

    monkeypatch.setattr("tests.lab.scenario.run_host", run_host)
    return calls


def test_a_scenario_is_played_once_more_after_an_emulators_fault_and_after_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    runs: dict[str, list[Exception]] = {
        "twice": [EmulatorError("first"), EmulatorError("second")],
        "then": [EmulatorError("first"), HostError("second")],
        "panic": [HostError("first")],
    }
    for name, outcomes in runs.items():
        calls = fake_host(monkeypatch, outcomes)
        with pytest.raises(HostError, match=str(outcomes[-1])):
            run_scenario(Scenario(["kernel"]), tmp_path / name)
        assert len(calls) == len(outcomes)
        assert (tmp_path / name / "emulator-fault" / "1-kernel").exists() == (len(outcomes) == 2)


def test_a_used_result_folder_and_an_unknown_path_are_refused(tmp_path: Path) -> None:
    (tmp_path / "old").touch()
    with pytest.raises(LabError, match="not empty"):
        run_scenario(Scenario(["kernel"]), tmp_path)
    with pytest.raises(LabError, match="No guest magic"):
        run_scenario(Scenario(["magic"]), tmp_path / "new")


LSPCI = """\
0000:00:00.0 Host bridge: Intel Corporation 82G33/G31/P35/P31 Express DRAM Controller
\tControl: I/O+ Mem+ BusMaster+ SpecCycle- MemWINV- VGASnoop- ParErr- Stepping- SERR+ FastB2B- DisINTx-

0000:00:06.0 Ethernet controller: Intel Corporation 82540EM Gigabit Ethernet Controller (rev 03)
\tSubsystem: Red Hat, Inc. QEMU Virtual Machine
\tControl: I/O+ Mem+ BusMaster+ SpecCycle- MemWINV- VGASnoop- ParErr- Stepping- SERR+ FastB2B- DisINTx-
\tStatus: Cap- 66MHz- UDF- FastB2B- ParErr- DEVSEL=fast >TAbort- <TAbort- <MAbort- >SERR- <PERR- INTx-
\tInterrupt: pin A routed to IRQ 22
\tIOMMU group: 4
\tKernel driver in use: vfio-pci

0000:00:0b.0 Ethernet controller: Intel Corporation 82574L Gigabit Network Connection
\tControl: I/O+ Mem+ BusMaster+ SpecCycle- MemWINV- VGASnoop- ParErr- Stepping- SERR+ FastB2B- DisINTx+
\tInterrupt: pin A routed to IRQ 23
\tCapabilities: [d0] MSI: Enable- Count=1/1 Maskable- 64bit+
\tCapabilities: [a0] MSI-X: Enable+ Count=5 Masked-
"""


def test_lspci_in_the_words_of_devices() -> None:
    blocks = lspci_blocks(LSPCI)
    assert list(blocks) == ["0000:00:00.0", "0000:00:06.0", "0000:00:0b.0"]
    assert read_lspci(blocks["0000:00:06.0"]) == {
        "pin": "A",
        "can": ["INTx"],
        "enabled": [],
        "irq": 22,
        "intx_disabled": False,
        "group": "4",
        "driver": "vfio-pci",
        "name": "Intel Corporation 82540EM Gigabit Ethernet Controller",
    }
    able = read_lspci(blocks["0000:00:0b.0"])
    assert (able["can"], able["enabled"], able["intx_disabled"]) == (["INTx", "MSI", "MSI-X"], ["MSI-X"], True)
    assert read_lspci(blocks["0000:00:00.0"])["pin"] == "none"


def test_pins_of_the_monitor() -> None:
    said = (
        "(qemu) info pci\r\n  Bus  0, device   0, function 0:\r\n    Host bridge: PCI device 8086:29c0\r\n"
        "  Bus  0, device   5, function 0:\r\n    Ethernet controller: PCI device 8086:100e\r\n"
        '      IRQ 11, pin A\r\n      BAR0: 32 bit memory at 0xfebc0000 [0xfebdffff].\r\n      id ""\r\n'
        "  Bus  0, device  31, function 3:\r\n      IRQ 10, pin B\r\n(qemu) "
    )
    assert monitor_pins(said) == {5: "A"}


def test_every_guest_that_has_something_wrong_can_be_played() -> None:
    assert set(EXPECTED) <= {*GUESTS, *FAULTS}
    assert set(FAULTS) <= set(EXPECTED)
    assert setup_of("pair-hybrid").machine == "kernel-irqchip=split"
    assert (setup_of("nomsi").path, setup_of("irqchip-off").path) == ("kernel", "userspace")


@pytest.mark.parametrize("stem", ["kernel-6.1", "hybrid-6.12", "userspace-6.12", "pair-kernel-6.1", "pair-hybrid-6.1"])
def test_the_recordings_are_named_as_the_lab_expects(stem: str) -> None:
    recording = Path(__file__).parents[1] / "traces" / f"{stem}.intx"
    truth, found = Truth.read(recording.with_suffix(".truth.json")), summarise(recording)
    guest = stem.rpartition("-")[0]
    assert [row for row in named(guest, found, truth) if not row.holds] == []
    wrong = "userspace" if guest != "userspace" else "kernel"
    assert any(not row.holds for row in named(wrong, found, truth))


@pytest.mark.parametrize("silent", [10, 10_000])
def test_a_host_in_which_nothing_runs_any_more_hangs(silent: int, tmp_path: Path) -> None:
    alive = tmp_path / ".lab" / "alive"
    alive.parent.mkdir()
    alive.touch()
    (tmp_path / "qemu.stderr").touch()
    os.utime(alive, (time.time() - silent,) * 2)
    with subprocess.Popen(["sleep", "60"]) as process:
        try:
            with pytest.raises(HostError) as raised:
                _wait_status(process, tmp_path, 0.3, None)
        finally:
            process.kill()
    assert str(raised.value).startswith("L1 hangs") == (silent > SILENT_SECONDS)
    assert not isinstance(raised.value, EmulatorError)  # which would be played once more


@pytest.mark.parametrize(
    ("said", "installed"),
    [
        ("QEMU emulator version 7.2.22 (Debian 1:7.2+dfsg-7+deb12u18)", False),
        ("QEMU emulator version 8.0.5", False),
        ("QEMU emulator version 8.1.0", True),
        ("QEMU emulator version 10.0.2 (Debian 1:10.0.2+ds-2+deb13u1)", True),
    ],
)
def test_l1_is_emulated_by_a_qemu_that_locks_what_it_translates(
    said: str, installed: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(packages, "_run", lambda argv: said)
    monkeypatch.setattr(packages, "ensure_qemu", lambda suite: Path("/cache") / suite)
    expected = "qemu-system-x86_64" if installed else "/cache/bookworm-backports/usr/bin/qemu-system-x86_64"
    assert emulator()[0] == expected


def test_what_bpftrace_saw_nothing_of_is_a_hard_interrupt_without_a_line_of_its_cpu() -> None:
    handlers = [(100, 1), (200, 1), (300, 0), (400, 0)]
    kinds = [Kind.HANDLER_ENTRY, Kind.HANDLER_EXIT] * 2
    events = pd.DataFrame(handlers, columns=["ts", "cpu"]).assign(kind=kinds)
    instants = [{"raised_at": 100, "unmasked_at": 250}, {"raised_at": 300, "unmasked_at": 450}, {"raised_at": 460}]
    own = pd.DataFrame(instants, columns=list(STAGES), dtype="Int64").assign(at=[100, 300, 460])
    inside = r'{"type": "printf", "data": "{\"comm\":\"a\",\"ts\":%d,\"cpu\":%d,\"pid\":1}"}'
    assert unseen(events, own, inside % (150, 1) + "\n" + inside % (400, 0)) == [False, False, False]
    assert unseen(events, own, inside % (150, 0) + "\n" + inside % (300, 0)) == [True, False, False]
    assert unseen(events, own, inside % (99, 1) + "\n" + inside % (201, 1)) == [True, True, False]

    other = pd.DataFrame({"at": [230, 290, 470]})  # what is left of the first; the others
    mine, theirs = without([True, False, False], own, other)
    assert mine["at"].tolist() == [300, 460]
    assert theirs["at"].tolist() == [290, 470]
