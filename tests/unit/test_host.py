"""VMs and devices from a made-up /proc and /sys."""

from __future__ import annotations

from pathlib import Path

import pytest

from intxtrace.capture import host


def make_process(proc: Path, pid: int, command_line: list[str], links: dict[str, str]) -> Path:
    folder = proc / str(pid)
    (folder / "fd").mkdir(parents=True)
    (folder / "fdinfo").mkdir()
    (folder / "cmdline").write_bytes(b"\0".join(word.encode() for word in command_line) + b"\0")
    (folder / "comm").write_text("qemu-system-x86\n")
    (folder / "stat").write_text(f"{pid} (a ) b) S 1 {' '.join(['0'] * 17)} 4711 0 0\n")
    for number, target in links.items():
        (folder / "fd" / number).symlink_to(target)
    return folder


def make_device(sys: Path, bdf: str, driver: str = "vfio-pci", config: bytes = b"") -> None:
    folder = sys / "bus/pci/devices" / bdf
    folder.mkdir(parents=True)
    (folder / "vendor").write_text("0x8086\n")
    (folder / "device").write_text("0x100e\n")
    (folder / "class").write_text("0x020000\n")
    (folder / "irq").write_text("22\n")
    (folder / "config").write_bytes(config)
    target = sys / "bus/pci/drivers" / driver
    target.mkdir(parents=True, exist_ok=True)
    (folder / "driver").symlink_to(target)


@pytest.fixture
def trees(tmp_path: Path) -> tuple[Path, Path]:
    proc, sys = tmp_path / "proc", tmp_path / "sys"
    make_device(sys, "0000:01:00.0")
    make_device(sys, "0000:01:00.1")
    make_device(sys, "0000:00:1c.0", driver="pcieport")
    group = sys / "kernel/iommu_groups/7/devices"
    group.mkdir(parents=True)
    for bdf in ("0000:01:00.0", "0000:01:00.1", "0000:00:1c.0"):
        (group / bdf).symlink_to(sys / "bus/pci/devices" / bdf)
    vm = ["qemu-system-x86_64", "-name", "guest=win10,debug-threads=on"]
    make_process(proc, 200, vm, {"3": "/dev/kvm", "9": "anon_inode:kvm-vm", "12": "/dev/vfio/7"})
    make_process(proc, 100, ["sleep", "1"], {"0": "/dev/null"})
    (proc / "self").mkdir()
    return proc, sys


def test_processes_with_a_vm_are_found_with_their_devices(trees: tuple[Path, Path]) -> None:
    (one,) = host.processes(*trees)
    assert (one.pid, one.name, one.started) == (200, "win10", 4711)
    assert one.devices == ("0000:01:00.0", "0000:01:00.1")  # the bridge of the group is not passed through


def test_a_device_file_names_its_device(trees: tuple[Path, Path]) -> None:
    proc, sys = trees
    folder = make_process(
        proc, 300, ["qemu"], {"4": "anon_inode:kvm-vm", "5": "/dev/vfio/devices/vfio0", "6": "anon_inode:[vfio-device]"}
    )
    (sys / "class/vfio-dev/vfio0").mkdir(parents=True)
    (sys / "class/vfio-dev/vfio0/device").symlink_to(sys / "bus/pci/devices/0000:01:00.0")
    (folder / "fdinfo" / "6").write_text("pos: 0\nvfio-device-syspath: /sys/devices/pci0000:00/0000:01:00.1\n")
    found = host.process(300, proc, sys)
    assert found is not None
    assert found.devices == ("0000:01:00.0", "0000:01:00.1")


def test_a_process_that_went_is_none(trees: tuple[Path, Path]) -> None:
    assert host.process(999, *trees) is None
    assert host.start_time(999, trees[0]) is None


@pytest.mark.parametrize(
    ("words", "name"),
    [
        (["-name", "guest=win10,debug-threads=on"], "win10"),
        (["-name", "debug-threads=on,guest=a b"], "a b"),
        (["-name", "plain"], "plain"),
        (["-name", "plain,process=x"], "plain"),
        (["-name", "guest=a,,b"], "a,b"),
        (["-name", "process=x"], ""),
        (["-m", "1G"], ""),
    ],
)
def test_guest_name(words: list[str], name: str) -> None:
    assert host.guest_name(("qemu", *words)) == name


def config_space(*capabilities: int, status: int = 0x10) -> bytes:
    config = bytearray(256)
    config[0x06] = status
    config[0x3D] = 1
    config[0x34] = 0x40 if capabilities else 0
    for index, capability in enumerate(capabilities):
        at = 0x40 + 8 * index
        config[at] = capability
        config[at + 1] = at + 8 if index + 1 < len(capabilities) else 0
    return bytes(config)


@pytest.mark.parametrize(
    ("config", "msi", "msix"),
    [
        (config_space(), False, False),
        (config_space(0x01, 0x05), True, False),
        (config_space(0x11, 0x10), False, True),
        (config_space(0x05, status=0), False, False),
        (b"", None, None),
    ],
)
def test_capabilities_of_a_device(tmp_path: Path, config: bytes, msi: bool | None, msix: bool | None) -> None:
    make_device(tmp_path, "0000:02:00.0", config=config)
    row = host.device_row(3, "0000:02:00.0", tmp_path)
    assert (row.id, row.vendor_id, row.device_id, row.host_irq, row.driver) == (3, 0x8086, 0x100E, 22, "vfio-pci")
    assert (row.msi, row.msix) == (msi, msix)


def test_a_loop_in_the_capability_list_ends(tmp_path: Path) -> None:
    config = bytearray(config_space(0x05))
    config[0x41] = 0x40
    make_device(tmp_path, "0000:02:00.0", config=bytes(config))
    assert host.device_row(0, "0000:02:00.0", tmp_path).msi is True


def test_a_device_that_is_not_there_is_a_row_of_unknowns(tmp_path: Path) -> None:
    row = host.device_row(0, "0000:09:00.0", tmp_path)
    assert (row.host_irq, row.pin, row.msi, row.driver) == (None, None, None, "")


def test_only_what_tells_of_interrupts_is_kept_of_a_command_line() -> None:
    words = (
        *("qemu-system-x86_64", "-name", "guest=a", "-enable-kvm", "-M", "q35,kernel-irqchip=split"),
        *("-object", "secret,id=s,data=hunter2", "-drive", "file=/home/x/disk.img", "-device", "virtio-net-pci,mac=1"),
        *("-device", "vfio-pci,host=01:00.0,x-no-kvm-intx=on", "-vnc", ":1,password=on", "-machine"),
        *("-device", '{"driver":"vfio-pci","host":"0000:02:00.0","id":"h0"}', "-device", '{"driver":"virtio-blk"}'),
        *("-set", "device.h0.x-no-mmap=on", "-set", "drive.d.file=/home/x", "--accel", "kvm"),
    )
    assert host.telling_options(words) == [
        *("-name", "guest=a", "-enable-kvm", "-M", "q35,kernel-irqchip=split"),
        *("-device", "vfio-pci,host=01:00.0,x-no-kvm-intx=on", "-machine"),
        *("-device", '{"driver":"vfio-pci","host":"0000:02:00.0","id":"h0"}'),
        *("-set", "device.h0.x-no-mmap=on", "-accel", "kvm"),
    ]
