"""`devices`: a made-up host with every kind of device and VM, and what a trace remembers."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pytest
from rich.console import Console

import intxtrace
from intxtrace.__main__ import main
from intxtrace.analysis import Analysis
from intxtrace.analysis.devices import in_a_trace
from intxtrace.capture import devices, host, pci
from intxtrace.host_results import Devices, DeviceState, VmState
from intxtrace.qemu_options import expected_path, read
from intxtrace.render.host import print_devices
from tests.unit.test_host import make_device, make_process

RECORDINGS = Path(__file__).parents[1] / "traces"

INTERRUPTS = """\
           CPU0       CPU1
  9:          0          0   IO-APIC   9-fasteoi   acpi
 16:       1203          7   IO-APIC  16-fasteoi   vfio-intx(0000:01:00.0), ehci_hcd:usb1, snd hda
 17:          3          4   IO-APIC  17-fasteoi   vfio-intx(0000:04:00.0)
 45:     100000          0   PCI-MSI 1048576-edge      vfio-msi[0](0000:02:00.0)
 46:          5          0   PCI-MSIX-0000:03:00.0   0-edge      vfio-msix[0](0000:03:00.0)
 47:          6          0   PCI-MSIX-0000:03:00.0   1-edge      vfio-msix[1](0000:03:00.0)
NMI:         12         13   Non-maskable interrupts
ERR:          0
"""

PCI_IDS = """\
# comment
8086  Intel Corporation
\t100e  82540EM Gigabit Ethernet Controller
\t\t1af4 1100  QEMU Virtual Machine
\t10d3  82574L Gigabit Network Connection
10de  NVIDIA Corporation
C 00  Unclassified device
\t00  Non-VGA unclassified device
"""


def config(pin: int = 1, command: int = 0, status: int = 0x10, *capabilities: tuple[int, int]) -> bytes:
    """Configuration space with capabilities (id, message control)."""
    space = bytearray(256)
    space[0:4] = b"\x86\x80\x0e\x10"
    space[0x04:0x06] = command.to_bytes(2, "little")
    space[0x06] = status
    space[0x3D] = pin
    space[0x34] = 0x50 if capabilities else 0
    for index, (kind, control) in enumerate(capabilities):
        at = 0x50 + 16 * index
        space[at] = kind
        space[at + 1] = at + 16 if index + 1 < len(capabilities) else 0
        space[at + 2 : at + 4] = control.to_bytes(2, "little")
    return bytes(space)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    proc, sys = tmp_path / "proc", tmp_path / "sys"
    spaces = {
        "0000:01:00.0": config(1, 0x400, 0x18, (0x05, 0x04), (0x11, 4)),
        "0000:02:00.0": config(2, 0x400, 0x10, (0x05, 0x01)),
        "0000:03:00.0": config(1, 0x400, 0x10, (0x11, 0x8000 | 4)),
        "0000:04:00.0": config(0),
        "0000:05:00.0": config(1)[:64],
    }
    for bdf, space in spaces.items():
        make_device(sys, bdf, config=space)
        group = sys / "kernel/iommu_groups" / bdf[6] / "devices"
        group.mkdir(parents=True, exist_ok=True)
        (group / bdf).symlink_to(sys / "bus/pci/devices" / bdf)
        (sys / "bus/pci/devices" / bdf / "iommu_group").symlink_to(sys / "kernel/iommu_groups" / bdf[6])
    for bdf in ("0000:01:00.0", "0000:02:00.0"):
        (sys / "bus/pci/devices" / bdf / "broken_intx_masking").write_text("0\n")
    (sys / "bus/pci/devices/0000:04:00.0/broken_intx_masking").write_text("1\n")
    (sys / "module/vfio_pci/parameters").mkdir(parents=True)
    (sys / "module/vfio_pci/parameters/nointxmask").write_text("N\n")
    (proc).mkdir()
    (proc / "interrupts").write_text(INTERRUPTS)
    (tmp_path / "usr/share/misc").mkdir(parents=True)
    (tmp_path / "usr/share/misc/pci.ids").write_text(PCI_IDS)
    for pid, name, words, groups in (
        (200, "win10", ("-M", "q35", "-device", "vfio-pci,host=01:00.0,x-no-kvm-intx=on"), "12"),
        (300, "a[bold]b\x1b[31m", ("-M", "q35,kernel-irqchip=split"), "345"),
    ):
        links = {"3": "/dev/kvm", "9": "anon_inode:kvm-vm"}
        links |= {str(20 + int(group)): f"/dev/vfio/{group}" for group in groups}
        folder = make_process(proc, pid, ["qemu-system-x86_64", "-name", f"guest={name}", *words], links)
        (folder / "ns").mkdir()
        for kind in ("mnt", "user"):
            (folder / "ns" / kind).symlink_to(f"{kind}:[{pid if pid == 300 else 1}]")
    (proc / "1/ns").mkdir(parents=True)
    for kind in ("mnt", "user"):
        (proc / "1/ns" / kind).symlink_to(f"{kind}:[1]")
    return tmp_path


def by_bdf(found: Devices) -> dict[str, DeviceState]:
    return {device.bdf: device for vm in found.vms for device in vm.devices}


def test_each_mode_is_told(root: Path) -> None:
    found = by_bdf(devices.on_this_host(root))
    told = {bdf[5:7]: (one.mode, one.vectors, one.can, one.host_irq, one.pin) for bdf, one in found.items()}
    assert told == {
        "01": ("INTx", None, ("INTx", "MSI", "MSI-X"), 16, "A"),
        "02": ("MSI", 1, ("INTx", "MSI"), None, "B"),
        "03": ("MSI-X", 2, ("INTx", "MSI-X"), None, "A"),
        "04": ("INTx", None, (), 17, "none"),
        "05": ("none", None, ("INTx",), None, "A"),
    }


def test_who_shares_the_line(root: Path) -> None:
    found = by_bdf(devices.on_this_host(root))
    first, alone = found["0000:01:00.0"], found["0000:04:00.0"]
    assert first.sharers == ("ehci_hcd:usb1", "snd hda")
    assert (first.chip, first.count, first.group) == ("IO-APIC 16-fasteoi", 1_210, "1")
    assert (first.intx_disabled, first.intx_asserted) == (True, True)
    assert (first.nointxmask, first.broken_intx_masking) == (False, False)
    assert first.name == "Intel Corporation 82540EM Gigabit Ethernet Controller"
    assert alone.sharers == ()
    assert alone.broken_intx_masking is True
    assert found["0000:02:00.0"].sharers is None


def test_the_path_is_expected_by_the_command_line(root: Path) -> None:
    found = by_bdf(devices.on_this_host(root))
    first, split, msi = found["0000:01:00.0"], found["0000:04:00.0"], found["0000:02:00.0"]
    assert (first.path, first.path_is, first.why) == ("userspace", "expected", "x-no-kvm-intx=on")
    assert (split.path, split.path_is) == ("hybrid", "expected")
    assert (msi.path, msi.path_is, msi.why) == (None, None, None)
    assert first.gsi is None


def test_vms(root: Path) -> None:
    first, second = devices.on_this_host(root).vms
    assert (first.name, first.pid, first.machine, first.irqchip, first.namespaced) == ("win10", 200, "q35", None, False)
    assert (second.irqchip, second.namespaced) == ("split", True)


def test_what_may_not_be_read_is_null_and_said(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without root: configuration space ends at 64 bytes, and other users' processes hide their files."""
    space = config(1, 0, 0x10, (0x05, 0))[:64]
    assert pci.read_config(space).msi is None
    assert pci.read_config(space).pin == 1
    assert pci.read_config(b"\xff" * 256) == pci.Config()  # asleep, or gone
    assert pci.read_config(b"") == pci.Config()
    iterdir = Path.iterdir

    def refused(self: Path) -> object:
        if self.name == "fd":
            raise PermissionError(13, "Permission denied")
        return iterdir(self)

    monkeypatch.setattr(Path, "iterdir", refused)
    found = devices.on_this_host(root)
    assert found.vms == ()
    assert found.notes == (
        "3 processes of other users cannot be looked into, VMs may be among them: run this with sudo",
    )


@pytest.mark.parametrize(
    ("words", "path"),
    [
        ((), None),
        (("qemu", "-M", "q35"), "kernel"),
        (("qemu", "-M", "q35,kernel-irqchip=off"), "userspace"),
        (("qemu", "-M", "pc-q35-4.0"), "hybrid"),
        (("qemu", "-device", "vfio-pci,host=0000:01:00.0,x-no-kvm-intx=on", "-M", "pc-q35-4.0"), "userspace"),
    ],
)
def test_expected_path(words: tuple[str, ...], path: str | None) -> None:
    assert expected_path(read(words), "0000:01:00.0")[0] == path


def test_a_host_without_anything(tmp_path: Path) -> None:
    (tmp_path / "proc").mkdir()
    assert devices.on_this_host(tmp_path) == Devices((), ())
    row = host.device_row(0, "0000:01:00.0", tmp_path / "sys")
    assert (row.mode, row.sharers, row.group, row.nointxmask) == ("", None, "", None)


@pytest.mark.parametrize("text", ["", "CPU0\n", " 5: 1\n 6: x\n", "   CPU0\n 7:\n 8: 1 IO-APIC\n"])
def test_odd_lines_of_interrupts(tmp_path: Path, text: str) -> None:
    (tmp_path / "proc").mkdir()
    (tmp_path / "proc/interrupts").write_text(text)
    assert all(irq.actions == () for irq in pci.interrupts(tmp_path).values())


def test_names_without_a_file_or_a_device(root: Path, tmp_path: Path) -> None:
    wanted = [(0x8086, 0x10D3), (0x10DE, 0x1234), (0x1234, 1)]
    assert pci.names(wanted, root) == {
        (0x8086, 0x10D3): "Intel Corporation 82574L Gigabit Network Connection",
        (0x10DE, 0x1234): "NVIDIA Corporation",
    }
    assert pci.names(wanted, tmp_path / "nowhere") == {}


def printed(found: Devices, width: int = 200) -> str:
    screen = Console(width=width, file=io.StringIO(), force_terminal=False, color_system=None)
    print_devices(found, screen)
    assert isinstance(screen.file, io.StringIO)
    return screen.file.getvalue()


def test_the_text_says_it_all_and_takes_names_for_names(root: Path) -> None:
    text = printed(devices.on_this_host(root))
    assert "VM win10 · pid 200, q35" in text
    assert "VM a[bold]b\\x1b[31m · pid 300, q35, kernel-irqchip=split, in a container" in text
    assert "0000:01:00.0 Intel Corporation 82540EM Gigabit Ethernet Controller [8086:100e]" in text
    assert "now INTx, host IRQ 16 (IO-APIC 16-fasteoi), shared with ehci_hcd:usb1, snd hda, 1,210 on the line" in text
    assert "DisINTx set, the device asserts its line" in text
    assert "now MSI-X (2 vectors)" in text
    assert "its DisINTx is known to be broken): it needs the line alone" in text
    assert "path userspace, expected: x-no-kvm-intx=on" in text
    assert max(len(line) for line in printed(devices.on_this_host(root), 80).splitlines()) <= 80
    assert printed(Devices((), ())) == "no virtual machine\n"
    assert "no passed-through PCI device" in printed(Devices((VmState("a", 1, None, None, None, None, ()),), ()))


def remembered(stem: str) -> Devices:
    trace = intxtrace.open_trace(RECORDINGS / f"{stem}.intx")
    analysis = Analysis(trace.metadata, trace.tables)
    for result in trace.iter_results():
        analysis.add(*result)
    return in_a_trace(trace.tables, analysis.finish())


@pytest.mark.parametrize(
    ("stem", "path", "why"),
    [
        ("kernel-6.1", "kernel", "KVM_IRQFD with a resamplefd; KVM's irqchip, and no option against it"),
        ("hybrid-6.12", "hybrid", "KVM_IRQFD without a resamplefd; split irqchip (before QEMU 5.1: userspace)"),
        ("userspace-6.1", "userspace", "INTx was enabled; QEMU has set up no irqfd; x-no-kvm-intx=on"),
    ],
)
def test_what_a_trace_remembers(stem: str, path: str, why: str) -> None:
    found = remembered(stem)
    (vm,) = found.vms
    (device,) = vm.devices
    assert (vm.name, vm.machine) == (f"lab-{stem.partition('-')[0]}", "q35")
    assert (device.path, device.path_is, device.gsi, device.why) == (path, "seen", 21, why)
    assert (device.pin, device.can, device.host_irq) == ("A", ("INTx",), 22)


def test_the_command_reads_a_trace(capsys: pytest.CaptureFixture[str]) -> None:
    path = str(RECORDINGS / "pair-kernel-6.1.intx")
    assert main(["devices", path, "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert (document["schema"], document["version"]) == ("intxtrace.devices", 1)
    assert [device["bdf"] for device in document["data"]["vms"][0]["devices"]] == ["0000:00:06.0", "0000:00:0a.0"]
    assert main(["devices", path]) == 0
    assert "VM lab-pair-kernel" in capsys.readouterr().out


def test_the_command_looks_at_this_host(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["devices", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["schema"] == "intxtrace.devices"
