"""QEMU command lines, as people and libvirt write them."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from intxtrace.qemu_options import QemuOptions, properties, read


@pytest.mark.parametrize(
    ("words", "machine", "irqchip"),
    [
        (("qemu",), "", ""),
        (("qemu", "-M", "q35"), "q35", ""),
        (("qemu", "-M", "q35,kernel-irqchip=on"), "q35", "on"),
        (("qemu", "-machine", "pc-q35-6.2,usb=off,kernel_irqchip=split"), "pc-q35-6.2", "split"),
        (("qemu", "-machine", "type=pc,kernel-irqchip=off"), "pc", "off"),
        (("qemu", "-M", "q35", "-accel", "kvm,kernel-irqchip=split"), "q35", "split"),
        (("qemu", "-M", "pc-q35-4.0"), "pc-q35-4.0", "split"),
        (("qemu", "-M", "pc-q35-4.0.1"), "pc-q35-4.0.1", ""),
        (("qemu", "-M", "pc-q35-4.0,kernel-irqchip=on"), "pc-q35-4.0", "on"),
        (("qemu", "--machine", "microvm"), "microvm", "split"),
    ],
)
def test_irqchip(words: tuple[str, ...], machine: str, irqchip: str) -> None:
    found = read(words)
    assert (found.machine, found.irqchip) == (machine, irqchip)


def test_devices_with_their_properties() -> None:
    found = read(
        (
            *("qemu", "-device", "vfio-pci,host=01:00.0,x-no-mmap=on,id=a", "-device", "e1000,netdev=n"),
            *("-device", '{"driver":"vfio-pci","host":"0000:02:00.1","id":"b","x-no-mmap":false,"addr":5}'),
            *("-device", "vfio-pci,sysfsdev=/sys/bus/pci/devices/0000:03:00.0"),
            *("-global", "vfio-pci.x-intx-mmap-timeout-ms=0", "-set", "device.b.x-no-kvm-intx=on"),
        )
    )
    assert found.device("0000:01:00.0")["x-no-mmap"] == "on"
    second = found.device("0000:02:00.1")
    assert (second["x-no-mmap"], second["addr"], second["x-no-kvm-intx"]) == ("off", "5", "on")
    assert found.device("0000:03:00.0")["x-intx-mmap-timeout-ms"] == "0"
    assert found.device("0000:04:00.0") == {}
    assert len(found.devices) == 3


@pytest.mark.parametrize("value", ["{", "{}", "[1]", '{"driver": 7', "{" * 5_000, '{"driver":["x"]}'])
def test_what_is_no_json_names_no_device(value: str) -> None:
    assert read(("qemu", "-device", value)).devices == ()


def test_a_doubled_comma_is_one() -> None:
    assert properties("a,,b,path=x,,y,flag") == {"": "a,b", "path": "x,y", "flag": "on"}


@given(st.lists(st.text()))
def test_any_words_are_read(words: list[str]) -> None:
    assert isinstance(read(["qemu", "-device", *words]), QemuOptions)
