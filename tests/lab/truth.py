"""What is true about one guest run, and how it is read: every figure is the kernels', QEMU's or a card's own.

The kernel counts a shared line as one, so what belongs to which card is read at the cards: vfio-pci masks and
unmasks an interrupt with one write of the card's command register each (pci_check_and_set_intx_mask,
drivers/pci/pci.c), and L0's QEMU logs these writes.

The counters of `/proc/interrupts` live and die with the irq descriptor, which `guest.claim` keeps alive. 6.12 does
not show a line nobody holds, so they are read from /sys/kernel/irq, and checked against `/proc/interrupts` where that
shows the line.
"""

from __future__ import annotations

import json
import re
import time
from dataclasses import asdict, dataclass
from pathlib import Path

from tests.lab.packages import LabError

COMMAND = 0x4  # offset of a card's command register,
DISINTX = 0x400  # and its bit
# A guest's workload lies between L1's reads of these two bytes of the card; they mean nothing to it.
BEGIN_MARK, END_MARK = 0xF0, 0xF4
MARK_READS = 3
QUIET_SECONDS = 1.0  # the count of the line must stay the same this long

QEMU_EVENTS = (
    "vfio_intx_interrupt",
    "vfio_intx_eoi",
    "vfio_intx_enable",
    "vfio_intx_disable",
    "vfio_intx_enable_kvm",
    "vfio_intx_disable_kvm",
    "vfio_intx_update",
    "vfio_region_mmaps_set_enabled",
    "kvm_resample_fd_notify",
)


@dataclass(frozen=True)
class Card:
    """What is true about one passed-through card of a guest run. None: could not be read."""

    bdf: str
    masked: int | None  # changes of its DisINTx bit to set, as L0's QEMU logged them: interrupts of its own
    unmasked: int | None  # and to clear
    qemu_events: dict[str, int]  # lines of QEMU's own log that name it, by event
    pings_sent: int
    pings_received: int


@dataclass(frozen=True)
class Truth:
    """What is true about one guest run; counts are of the whole run. None: could not be read."""

    name: str  # of the run, and its folder
    path: str  # as configured
    vm: str
    vm_pid: int
    cards: list[Card]
    kernel: str  # of L1 and L2
    qemu_version: str
    host_irq: int  # Linux irq number in L1
    host_gsi: int | None  # IOAPIC pin in L1
    host_before: int  # interrupts on host_irq (all handlers) before QEMU started,
    host_quiet: int  # with the guest up and silent,
    host_after: int  # and after QEMU ended
    host_interrupts: int  # host_after - host_before
    host_line: str  # L1's /proc/interrupts, with the guest up and silent
    host_unhandled: int | None  # of the line, as the kernel counts spurious interrupts
    guest_irq: int
    guest_gsi: int | None
    guest_interrupts: int
    qemu_events: dict[str, int]  # lines of QEMU's own log, by event
    irq_moves: list[str]  # vfio_intx_update, in order: "22 -> 11"
    qemu_stderr: str
    begun_at: int  # L1's CLOCK_MONOTONIC, ns, before QEMU was started
    ended_at: int  # and after it ended
    up_seconds: float  # start to interface up
    seconds: float

    @property
    def bdfs(self) -> list[str]:
        return [card.bdf for card in self.cards]

    def write(self, path: Path) -> None:
        path.write_text(json.dumps(asdict(self), indent=1) + "\n")

    def summary(self) -> str:
        events = ", ".join(f"{name} {count}" for name, count in self.qemu_events.items() if count)
        cards = "; ".join(
            f"{card.bdf} masked {card.masked}, unmasked {card.unmasked}, pings {card.pings_received}/{card.pings_sent}"
            for card in self.cards
        )
        return (
            f"{self.name}: {self.seconds:.1f} s (up after {self.up_seconds:.1f} s); host irq "
            f"{self.host_irq}: {self.host_interrupts}; guest irq {self.guest_irq}: {self.guest_interrupts}; "
            f"{cards}; QEMU log: {events}"
        )

    @classmethod
    def read(cls, path: Path) -> Truth:
        fields = json.loads(path.read_text())
        return cls(**{**fields, "cards": [Card(**card) for card in fields["cards"]]})


def mark(bdf: str, offset: int) -> None:
    """Leave a mark in L0's log of the cards: one byte of the configuration space, read MARK_READS times in a row.

    Whoever reads the whole space (lspci, `intxtrace devices`) reads each byte once.
    """
    with (Path("/sys/bus/pci/devices") / bdf / "config").open("rb", buffering=0) as config:
        for _ in range(MARK_READS):
            config.seek(offset)
            config.read(1)


def read_card_log(text: str, bdf: str) -> tuple[int, int] | None:
    """How often a card's DisINTx bit was set and cleared between its last two marks, by L0's QEMU's log.

    None: there are no such marks.
    """
    address = re.escape(bdf.removeprefix("0000:"))
    lines = re.findall(rf"\bpci_cfg_(read|write) .*\b{address} @0x([0-9a-f]+) (?:<-|->) 0x([0-9a-f]+)", text)
    disabled = masked = unmasked = 0
    found = None
    last, times = "", 0
    for kind, offset, value in lines:
        times = times + 1 if offset == last else 1
        last = offset
        if kind == "read":
            if times == MARK_READS and int(offset, 16) == BEGIN_MARK:
                masked = unmasked = 0
            elif times == MARK_READS and int(offset, 16) == END_MARK:
                found = masked, unmasked
        elif int(offset, 16) == COMMAND:
            before, disabled = disabled, int(value, 16) & DISINTX
            masked += disabled > before
            unmasked += disabled < before
    return found


def host_count(irq: int) -> int:
    """Interrupts on an irq number since its descriptor was made, all CPUs."""
    return sum(int(count) for count in read_text(Path(f"/sys/kernel/irq/{irq}/per_cpu_count")).split(","))


def host_line(bdf: str) -> str:
    """The line of /proc/interrupts that vfio holds for a device; "" when it holds none."""
    lines = Path("/proc/interrupts").read_text().splitlines()
    return next((line.strip() for line in lines if f"vfio-intx({bdf})" in line), "")


def line_count(line: str) -> int:
    """The count, over all CPUs, of a line of /proc/interrupts."""
    match = re.match(r"\s*\d+:((?:\s+\d+)+)\s", line)
    if not match:
        raise LabError(f"Not a line of /proc/interrupts: {line!r}")
    return sum(map(int, match[1].split()))


def ioapic_gsi(chip: str, hwirq: str) -> int | None:
    """An IOAPIC's pin, which is the GSI on a machine with one IOAPIC (as the lab's are)."""
    return int(hwirq) if chip.endswith("IO-APIC") else None


def read_qemu_log(text: str, bdf: str = "") -> tuple[dict[str, int], list[str]]:
    """Lines per event of QEMU's own trace log, and the moves of `vfio_intx_update`; with `bdf`, of lines that name it.

    QEMU 10.1 renamed vfio_intx_eoi to vfio_pci_intx_eoi; both count as the former.
    """
    text = "\n".join(line for line in text.splitlines() if not bdf or f"({bdf})" in line)
    events = dict.fromkeys(QEMU_EVENTS, 0)
    for event in re.findall(r"\b(vfio_(?:pci_)?intx_\w+|vfio_region_mmaps_set_enabled|kvm_resample_fd_notify) ", text):
        event = event.replace("vfio_pci_intx_", "vfio_intx_")
        events[event] = events.get(event, 0) + 1
    return events, re.findall(r"IRQ moved (-?\d+ -> -?\d+)", text)


def quiet_count(irq: int) -> int:
    """The line's count once it has stopped changing for QUIET_SECONDS."""
    count, since = host_count(irq), time.monotonic()
    deadline = since + 30
    while time.monotonic() - since < QUIET_SECONDS:
        time.sleep(0.1)
        now = host_count(irq)
        if now != count:
            count, since = now, time.monotonic()
        if time.monotonic() > deadline:
            raise LabError(f"Interrupt {irq} of L1 does not fall silent: {count} and rising.")
    return count


def read_text(path: Path) -> str:
    return path.read_text(errors="replace").strip()
