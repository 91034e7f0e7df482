"""L1: run one guest with passed-through e1000 cards and collect what is true about their interrupts.

The guest boots, pings the gateway behind each e1000 (QEMU's user network on L0's side of the emulated card),
takes the interfaces down and waits, silent, while L1 reads its counters; then it is told to power off.
Nothing here knows intxtrace: every figure is the kernels' or QEMU's own.

A `pair` guest has two cards that share an interrupt line in L1 and one in the guest: q35 routes the pin of slot
n to IOAPIC pin 20 + n % 4 (ich9_lpc_map_irq, hw/isa/lpc_ich9.c).
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.lab.console import POWEROFF_SECONDS, Console
from tests.lab.host import SHARE, write_initramfs
from tests.lab.packages import REPOSITORY, Kernel, LabError
from tests.lab.truth import (
    BEGIN_MARK,
    END_MARK,
    Card,
    Truth,
    host_count,
    host_line,
    ioapic_gsi,
    line_count,
    mark,
    quiet_count,
    read_card_log,
    read_qemu_log,
    read_text,
)

# path -> machine option, vfio-pci option: the switches of the DESIGN's three paths
PATHS = {
    "kernel": ("kernel-irqchip=on", ""),
    "hybrid": ("kernel-irqchip=split", ""),
    "userspace": ("kernel-irqchip=on", ",x-no-kvm-intx=on"),
}
PAIR = "pair-"
GUESTS = (*PATHS, *(PAIR + path for path in PATHS))
E1000 = "0x8086:0x100e"
E1000E = "0x8086:0x10d3"
SLOTS = (5, 9)  # of the cards in the guest: one pin, one GSI


@dataclass(frozen=True)
class Setup:
    """What distinguishes a guest: QEMU's machine and vfio-pci options, its path, its card, its kernel's options."""

    machine: str
    option: str
    path: str
    card: str = E1000
    module: str = "e1000"
    kernel_options: str = ""
    ports: int = 1  # the BAR with the card's I/O ports
    cpu: str = "host"


# What an operator gets wrong, beside PATHS: `python -m tests.lab findings` plays them.
FAULTS = {
    # KVM has MSR_KVM_ASYNC_PF_INT, which QEMU sets, with a local APIC of its own only.
    "irqchip-off": Setup("kernel-irqchip=off", "", "userspace", cpu="host,kvm-asyncpf-int=off"),
    "no-mmap": Setup("kernel-irqchip=on", ",x-no-mmap=on", "kernel"),
    # The e1000e can do MSI and MSI-X.
    "nomsi": Setup("kernel-irqchip=on", "", "kernel", E1000E, "e1000e", " pci=nomsi", 2),
}


def setup_of(guest: str) -> Setup:
    """What one of GUESTS or FAULTS is."""
    if guest in FAULTS:
        return FAULTS[guest]
    path = guest.removeprefix(PAIR)
    return Setup(*PATHS[path], path)


CARD_LOG = Path(SHARE) / "cards.log"

BOOT_SECONDS = 180.0
MONITOR_SECONDS = 30.0

# "@@" lines are for L1; loglevel=1 keeps the kernel from writing into them.
#
# While it pings, the guest reads the card's I/O ports without end, which does nothing to the card. On the
# userspace path QEMU takes any BAR access for the EOI; some come between its interrupt and the guest's
# handler, so the line is still up when it is unmasked, and vfio signals again. That is how a run gets
# resignals.
# noxsave: the XSAVE of a nested guest under TCG has sizes that Linux 7 stumbles over.
GUEST_COMMAND_LINE = (
    "console=ttyS0 rdinit=/init mitigations=off tsc=reliable no_timer_check noxsave panic=-1 loglevel=1"
)
GUEST_INIT = """#!/bin/busybox sh
/bin/busybox --install -s /bin
mount -t devtmpfs dev /dev
mount -t proc proc /proc
mount -t sysfs sys /sys
stty -F /dev/ttyS0 -echo -onlcr
for module in {modules}; do insmod /modules/$module; done
echo "@@ ready"
read answer
cd /sys/bus/pci/devices
for slot in {slots}; do
    card=$(echo 0000:00:*$slot.0)
    net=$(ls $card/net)
    ifconfig $net 10.0.$slot.15 netmask 255.255.255.0 up
    i=0; while [ "$(cat $card/net/$net/carrier)" != 1 ] && [ $i -lt 100 ]; do sleep 0.1; i=$((i+1)); done
done
echo "@@ up"
stir=
pings=
for slot in {slots}; do
    while true; do dd if=$(echo 0000:00:*$slot.0)/resource{ports} of=/dev/null bs=4 count=16; done 2>/dev/null &
    stir="$stir $!"
    ping -c {pings} -i {interval} 10.0.$slot.2 >/pings-$slot &
    pings="$pings $!"
done
wait $pings
kill $stir; wait $stir
for slot in {slots}; do
    sed -n "s/^\\([0-9]*\\) packets.* \\([0-9]*\\) packets.*/@@ pings-$slot \\1 \\2/p" /pings-$slot
    card=$(echo 0000:00:*$slot.0)
    irq=$(cat $card/irq)
    ifconfig $(ls $card/net) down
    echo "@@ irq-$slot $irq"
done
sleep 0.3
cd /sys/kernel/irq/$irq
echo "@@ irq $irq $(cat chip_name) $(cat hwirq) $(cat per_cpu_count)"
echo "@@ quiet"
read answer
poweroff -f
"""


def find_devices(identity: str) -> list[str]:
    """The addresses of L1's PCI devices "vendor:device", in order."""
    return sorted(
        path.name
        for path in Path("/sys/bus/pci/devices").iterdir()
        if f"{read_text(path / 'vendor')}:{read_text(path / 'device')}" == identity
    )


def claim(bdf: str) -> None:
    """Bind a device to vfio-pci, its interrupt descriptor kept alive; idempotent.

    The descriptor goes, and the line's counters with it, when the device's last user disables it (`mp_unmap_irq`,
    arch/x86/kernel/apic/io_apic.c), that is when QEMU closes the device. So the device is enabled once, before vfio-pci
    takes it, and the counters last across guests.
    """
    device = Path("/sys/bus/pci/devices") / bdf
    if (device / "driver").exists() and (device / "driver").resolve().name == "vfio-pci":
        return
    (device / "enable").write_text("1")
    (device / "driver_override").write_text("vfio-pci")
    Path("/sys/bus/pci/drivers_probe").write_text(bdf)
    if not (device / "driver").exists():
        raise LabError(f"vfio-pci did not take {bdf}; see dmesg in L1.")


def lab_kernel() -> Kernel:
    """The kernel that L1 runs and its guests boot."""
    return Kernel(os.uname().release, Path(os.environ["LAB_KERNEL"]))


class BootError(LabError):
    """The guest did not come up: nothing was measured yet."""


def run_guest(
    guest: str,
    out: Path,
    pings: int = 10,
    interval: float = 0.2,
    qemu: Sequence[str] = ("qemu-system-x86_64",),
    options: Sequence[str] = (),
    survey: bool = False,
) -> Truth:
    """Run one of GUESTS or FAULTS and write `truth.json`, `qemu.log`, `serial.log` and `qemu.stderr` into `out`.

    `qemu` is how to call it, `options` are further arguments. A guest that fails to boot is tried once more. With
    `survey`, `out` also gets what `intxtrace devices --json`, `lspci -vv` and QEMU's monitor say while the guest is up:
    devices.json, lspci.txt, monitor.txt; of the guest `kernel` also what `intxtrace doctor` says, which must succeed.
    Raises LabError when the guest does not get through its workload.
    """
    kernel = lab_kernel()
    cards = 2 if guest.startswith(PAIR) else 1
    setup = setup_of(guest)
    bdfs = find_devices(setup.card)[:cards]
    for bdf in bdfs:
        claim(bdf)
    irqs = {int(read_text(Path("/sys/bus/pci/devices") / bdf / "irq")) for bdf in bdfs}
    if len(bdfs) != cards or len(irqs) != 1:
        raise LabError(f"L1 has the cards {bdfs} on interrupts {irqs}: expected {cards} on one.")
    out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="intxtrace-guest-") as folder:
        work = Path(folder)  # in L1's memory: a log on the share would slow QEMU at every line
        modules = kernel.module_files(setup.module)
        init = GUEST_INIT.format(
            modules=" ".join(file.name.removesuffix(".xz") for file in modules),
            pings=pings,
            interval=interval,
            ports=setup.ports,
            slots=" ".join(str(slot) for slot in SLOTS[:cards]),
        )
        write_initramfs(work / "initramfs", init, modules)
        shutil.copyfile(kernel.image, work / "vmlinuz")  # a QEMU in a container sees no other folder
        argv = _argv(guest, bdfs, qemu, [*(MONITOR if survey else ()), *options])
        irq = irqs.pop()
        try:
            try:
                truth = _run(argv, guest, out.name, bdfs, irq, kernel, work, qemu[0], survey)
            except BootError as error:
                # Nested emulation now and then loses a guest at boot. What happens after its boot is never retried.
                print(f"{out.name} did not boot, once more: {error}")
                truth = _run(argv, guest, out.name, bdfs, irq, kernel, work, qemu[0], survey)
        finally:
            for name in ("qemu.log", "serial.log", "qemu.stderr", *SURVEYED):
                if (work / name).exists():
                    shutil.copy(work / name, out / name)
    truth.write(out / "truth.json")
    return truth


def _argv(guest: str, bdfs: list[str], qemu: Sequence[str], options: Sequence[str]) -> list[str]:
    """QEMU's command line, for the folder of the guest: recordings keep it, so it names no folder of this machine."""
    setup = setup_of(guest)
    devices = [
        f"vfio-pci,host={bdf},addr={slot:#x},rombar=0{setup.option}" for bdf, slot in zip(bdfs, SLOTS, strict=False)
    ]
    return [
        *qemu, "-name", f"guest=lab-{guest},debug-threads=on", "-nodefaults", "-no-user-config", "-no-reboot",
        "-display", "none", "-accel", "kvm", "-cpu", setup.cpu, "-M", f"q35,{setup.machine}",
        "-smp", "1", "-m", "256M",
        "-kernel", "vmlinuz", "-initrd", "initramfs",
        "-append", GUEST_COMMAND_LINE + setup.kernel_options,
        *(word for device in devices for word in ("-device", device)), "-serial", "stdio",
        "-trace", "vfio_*intx*", "-trace", "vfio_region_mmaps_set_enabled", "-trace", "kvm_resample_fd_notify",
        "-msg", "timestamp=on",
        "-D", "qemu.log", *options,
    ]  # fmt: skip


def _run(
    argv: list[str],
    guest: str,
    name: str,
    bdfs: list[str],
    irq: int,
    kernel: Kernel,
    work: Path,
    qemu: str,
    survey: bool,
) -> Truth:
    sysfs = Path(f"/sys/kernel/irq/{irq}")
    before = host_count(irq)
    begun_at = time.monotonic_ns()
    with (work / "qemu.stderr").open("wb") as stderr, (work / "serial.log").open("wb") as serial:
        process = subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=stderr, cwd=work)
        try:
            console = Console(process, serial)
            try:
                console.wait("@@ ready", BOOT_SECONDS)
            except LabError as error:
                raise BootError(str(error)) from error
            for bdf in bdfs:
                mark(bdf, BEGIN_MARK)
            console.write(b"go\n")
            console.wait("@@ up", BOOT_SECONDS)
            up_seconds = (time.monotonic_ns() - begun_at) / 1e9
            console.wait("@@ quiet", BOOT_SECONDS)
            quiet = quiet_count(irq)
            for bdf in bdfs:
                mark(bdf, END_MARK)
            line = host_line(bdfs[0])
            unhandled = re.search(r"unhandled (\d+)", read_text(Path(f"/proc/irq/{irq}/spurious")))
            if survey:
                _survey(work, guest)
            console.write(b"off\n")
            console.wait_end(POWEROFF_SECONDS)
        finally:
            if process.poll() is None:
                process.kill()
            process.wait()
    ended_at = time.monotonic_ns()
    after = host_count(irq)
    if process.returncode != 0:
        raise LabError(f"QEMU ended with status {process.returncode}: {read_text(work / 'qemu.stderr')}")
    if line and line_count(line) != quiet:
        raise LabError(f"L1 counts {quiet} interrupts in /sys/kernel/irq/{irq}, but /proc/interrupts says: {line}")
    guest_irq, guest_chip, guest_pin, guest_counts = console.find(r"irq (\d+) (\S+) (\d+) ([\d,]+)")
    log = read_text(work / "qemu.log")
    cards = []
    for bdf, slot in zip(bdfs, SLOTS, strict=False):
        if console.find(rf"irq-{slot} (\d+)") != (guest_irq,):
            raise LabError(f"The guest's cards are not on one interrupt. Its console:\n{console.text[-2000:]}")
        sent, received = console.find(rf"pings-{slot} (\d+) (\d+)")
        if received == "0":
            raise LabError(f"No ping of the guest came back to {bdf}. Its console:\n{console.text[-2000:]}")
        masks = read_card_log(read_text(CARD_LOG), bdf)
        if masks is None:
            raise LabError(f"{CARD_LOG} has no marks of {bdf}: L0's QEMU did not log what it should.")
        cards.append(Card(bdf, masks[0], masks[1], read_qemu_log(log, bdf)[0], int(sent), int(received)))
    events, moves = read_qemu_log(log)
    return Truth(
        name=name,
        path=setup_of(guest).path,
        vm=f"lab-{guest}",
        vm_pid=process.pid,
        cards=cards,
        kernel=kernel.release,
        qemu_version=subprocess.check_output([qemu, "--version"], text=True).splitlines()[0],
        host_irq=irq,
        host_gsi=ioapic_gsi(read_text(sysfs / "chip_name"), read_text(sysfs / "hwirq")),
        host_before=before,
        host_quiet=quiet,
        host_after=after,
        host_interrupts=after - before,
        host_line=line,
        host_unhandled=int(unhandled[1]) if unhandled else None,
        guest_irq=int(guest_irq),
        guest_gsi=ioapic_gsi(guest_chip, guest_pin),
        guest_interrupts=sum(map(int, guest_counts.split(","))),
        qemu_events=events,
        irq_moves=moves,
        qemu_stderr=read_text(work / "qemu.stderr"),
        begun_at=begun_at,
        ended_at=ended_at,
        up_seconds=round(up_seconds, 2),
        seconds=round((ended_at - begun_at) / 1e9, 2),
    )


MONITOR = ("-monitor", "unix:monitor,server=on,wait=off")
SURVEYED = ("devices.json", "doctor.json", "lspci.txt", "monitor.txt")


def _survey(work: Path, guest: str) -> None:
    """Ask intxtrace, lspci and QEMU's monitor of the devices, while the guest is up and silent."""
    asked = {
        "devices.json": [sys.executable, "-m", "intxtrace", "devices", "--json"],
        "lspci.txt": ["lspci", "-vvD"],
    }
    if guest == "kernel":  # once is enough: it attaches all that a recording does
        asked["doctor.json"] = [sys.executable, "-m", "intxtrace", "doctor", "--json"]
    for name, command in asked.items():
        with (work / name).open("wb") as out:
            subprocess.run(command, stdout=out, cwd=REPOSITORY, check=True)
    with socket.socket(socket.AF_UNIX) as monitor:
        monitor.connect(str(work / "monitor"))
        monitor.settimeout(MONITOR_SECONDS)
        said = _prompted(monitor)
        for question in (b"info pci\n", b"info irq\n"):
            monitor.sendall(question)
            said += _prompted(monitor)
    (work / "monitor.txt").write_bytes(said)


def _prompted(monitor: socket.socket) -> bytes:
    """What the monitor says up to its next prompt."""
    said = b""
    while not said.endswith(b"(qemu) "):
        data = monitor.recv(65536)
        if not data:
            raise LabError(f"QEMU's monitor closed after {said!r}.")
        said += data
    return said


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.lab.guest", description="run one guest, in L1")
    parser.add_argument("guest", choices=(*GUESTS, *FAULTS))
    parser.add_argument("out", type=Path)
    parser.add_argument("--pings", type=int, default=10)
    parser.add_argument("--interval", type=float, default=0.2)
    arguments = parser.parse_args()
    try:
        truth = run_guest(arguments.guest, arguments.out, arguments.pings, arguments.interval)
    except LabError as error:
        print(error, file=sys.stderr)
        return 1
    print(truth.summary())
    return 0


if __name__ == "__main__":
    sys.exit(main())
