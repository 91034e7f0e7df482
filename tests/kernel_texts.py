"""Recordings of real kernels as ftrace's text, and what they say by themselves.

`tests/traces/kernel-texts.tar.xz` holds 188 recordings, KERNEL/SCENARIO, made on distribution kernels (Debian 5.10,
6.1, 6.12, 7.2; Ubuntu 5.4, 6.8; `-excl`: vfio_pci.nointxmask=1, `-thr`: threadirqs) that ran as VFIO and KVM hosts in
an emulated machine: one PCI `edu` device, or two, passed through to a tiny guest by a small VMM that plays one
scenario.

`Told` counts what a text tells with nothing but one regular expression and simple sums: no identity, no state machine.
"""

from __future__ import annotations

import io
import re
import tarfile
from collections import Counter
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

ARCHIVE = Path(__file__).parent / "traces" / "kernel-texts.tar.xz"

_LINE = re.compile(r"^ *(.+)-(\d+) +\[(\d+)\] (\S+) +([\d.]+): (\w+): (.*)$")
_PAIR = re.compile(r"(\w+)=(0x[0-9a-f]+|-?\d+)")
PATHS = {
    "user": {"userspace"},
    "user_refire": {"userspace"},
    "user_mask": {"userspace"},
    "excl_user": {"userspace"},
    "excl_mask": {"userspace"},
    "tponly_user": {"userspace"},
    "split": {"hybrid"},
    "noresample": {"hybrid"},
    "notrigger": {"held", "kernel"},
}
"""Scenario -> the paths that it plays; all others play the kernel path."""


@cache
def texts() -> dict[str, bytes]:
    """Return all recordings by KERNEL/SCENARIO."""
    with tarfile.open(ARCHIVE) as archive:
        members = [member for member in archive if member.isfile()]
        return {m.name.partition(".ftrace")[0].partition(".trace_pipe")[0]: _read(archive, m) for m in members}


def _read(archive: tarfile.TarFile, member: tarfile.TarInfo) -> bytes:
    file = archive.extractfile(member)
    assert file is not None
    with file:
        return file.read()


@dataclass
class Hit:
    """One line."""

    comm: str
    tid: int
    cpu: int
    hard: bool
    ts: int
    name: str
    text: str

    def __getitem__(self, key: str) -> int:
        return int(dict(_PAIR.findall(self.text))[key], 0)

    @property
    def task(self) -> tuple[int, int]:
        """What it ran in: a thread, or the hard interrupt of a CPU."""
        return (-1, self.cpu) if self.hard else (self.tid, self.cpu if self.tid == 0 else -1)


@dataclass
class Told:
    """What one recording says."""

    kprobes: bool
    gaps: bool
    """Events are missing: it says so, or the guest served more than it shows (tracing was off meanwhile)."""
    begins: bool
    """The set-up of every device's INTx is in it."""
    ends: bool
    """So is every one's end."""
    vms: int
    named: bool = False
    """Every device's PCI address can be told."""
    claimed: Counter[str] = field(default_factory=Counter)
    """Claimed handler calls, by PCI address where the recording has it ("" where not)."""
    refused: int = 0
    missed: int = 0
    """Hard interrupts whose handler no kprobe saw, where it saw others."""
    software: int = 0
    acks: Counter[tuple[int, int]] = field(default_factory=Counter)
    """Acknowledgements with something outstanding, by (kvm, gsi); kvm 0: not told."""
    doubtful_acks: Counter[tuple[int, int]] = field(default_factory=Counter)
    """Those that the trace's beginning or a gap leaves in doubt."""
    merged: int = 0
    """Interrupts whose delivery merged into another."""
    ackers: dict[int, int] = field(default_factory=dict)
    """Instant of an acknowledgement -> its thread."""


def tell(text: bytes) -> Told:
    """Count what a recording says."""
    hits: list[Hit | None] = []  # None: a gap
    vms = set()
    for line in io.TextIOWrapper(io.BytesIO(text), encoding="utf-8"):
        match = _LINE.match(line)
        if match:
            comm, tid, cpu, flags, seconds, name, rest = match.groups()
            ts = round(float(seconds) * 1_000_000) * 1000
            hits.append(Hit(comm.strip(), int(tid), int(cpu), flags[2] in "hH", ts, name, rest))
            if name == "tracing_mark_write" and rest.startswith("setup"):
                vms.add(re.search(r"vm=(\S+)", rest)[1])  # type: ignore[index]
        elif "LOST" in line or "buffer started" in line:
            hits.append(None)
        elif "entries-written" in line:
            kept, written = re.findall(r"(\d+)/(\d+)", line)[0]
            if kept != written:
                hits.append(None)
    seen = [hit for hit in hits if hit]
    names = {hit.name for hit in seen}
    told = Told(
        kprobes=bool(names & {"handler", "unmask", "set_irqs"}),
        gaps=None in hits,
        begins=True,
        ends=True,
        vms=len(vms),
    )
    set_irqs = [hit for hit in seen if hit.name == "set_irqs"]
    vdevs = {hit["vdev"] for hit in seen if hit.name in ("set_irqs", "unmask")}
    told.begins = {h["vdev"] for h in set_irqs if h["flags"] == 0x24} == vdevs
    told.ends = {h["vdev"] for h in set_irqs if h["flags"] == 0x21 and h["count"] == 0} == vdevs
    _claims(seen, told)
    unmasks = [hit for hit in seen if hit.name == "unmask_ret"]
    queued = [hit for hit in seen if hit.name == "workqueue_queue_work" and "function=virqfd_inject" in hit.text]
    told.refused = sum(hit["ret"] == 1 for hit in unmasks) if told.kprobes else len(queued)
    _software(seen, told)
    markers = [hit.text for hit in seen if hit.name == "tracing_mark_write"]
    served = sum(int(number) for marker in markers for number in re.findall(r" acked=(\d+)", marker))
    told.gaps |= len([m for m in markers if m.startswith("BEGIN")]) != len([m for m in markers if m.startswith("END")])
    told.gaps |= served > told.claimed.total() + told.refused + told.software
    _acks(hits, told)
    _merges(seen, told)
    return told


def _claims(hits: list[Hit], told: Told) -> None:
    """A handler call claimed its interrupt if it returned 1, or signalled and its return is not in the text.

    Where no kprobe was hit between irq_handler_entry and irq_handler_exit, the latter tells, unless handlers run in
    threads.
    """
    threaded = any(hit.name == "handler" and hit.comm.startswith("irq/") for hit in hits)
    bdf: dict[tuple[int, int], str] = {}
    addresses = {found[1] for hit in hits if (found := re.search(r"name=vfio-intx\((.*)\)", hit.text))}
    handled = {hit["dev"] for hit in hits if hit.name == "handler"}
    told.named = len(addresses) == 1 or (len(addresses) > 1 and len(addresses) >= len(handled) and not threaded)
    inside: dict[tuple[int, int], dict[str, object]] = {}
    for hit in hits:
        here = hit.task
        call = inside.get(here)
        if hit.name == "irq_handler_entry":
            found = re.search(r"name=vfio-intx\((.*)\)", hit.text)
            bdf[here] = found[1] if found else ""
            inside[here] = {"kprobe": False, "vfio": bool(found)}
        elif hit.name == "handler":
            inside[here] = {"kprobe": True, "open": True, "signalled": False}
        elif hit.name == "efd_signal" and call and call.get("open"):
            call["signalled"] = True
        elif hit.name == "handler_ret":
            told.claimed[bdf.get(here, "") if not threaded else ""] += hit["ret"] == 1
            inside[here] = {"kprobe": True}
        elif hit.name == "irq_handler_exit":
            if call and not call["kprobe"] and call["vfio"] and not threaded:
                told.claimed[bdf[here]] += "ret=handled" in hit.text
                told.missed += told.kprobes and "ret=handled" in hit.text
            inside.pop(here, None)
    told.claimed[""] += sum(bool(call.get("open") and call.get("signalled")) for call in inside.values())


def _software(hits: list[Hit], told: Told) -> None:
    """Loopbacks, and writes of an eventfd that woke an irqfd (the others wrote a resamplefd)."""
    wrote: dict[tuple[int, int], bool] = {}
    for hit in hits:
        if hit.name == "irqfd_wakeup" and wrote.get(hit.task):
            told.software += 1
        wrote[hit.task] = hit.name == "efd_write"
        told.software += hit.name == "set_irqs" and hit["flags"] == 0x21 and hit["count"] == 1


def _acks(hits: list[Hit | None], told: Told) -> None:
    raise_, ack = ("set_irq", "acked_irq") if told.kprobes else ("kvm_set_irq", "kvm_ack_irq")
    in_service: set[tuple[int, int]] = set()
    acked: dict[tuple[int, int], tuple[int, int]] = {}
    is_high: set[tuple[int, int]] = set()
    known: set[tuple[int, int]] = set()
    sure = (told.begins and not told.gaps) or not told.kprobes
    split: dict[tuple[int, int], tuple[int, int]] = {}
    for hit in hits:
        if hit is None:
            known.clear()
            sure = False
        elif hit.name == raise_:
            if told.kprobes:
                line, high = (hit["kvm"], hit["gsi"]), hit["level"] == 1
            else:
                gsi, up, _ = map(int, re.findall(r"\d+", hit.text))
                line, high = (0, gsi), up == 1
            if high:
                in_service.add(line)
                known.add(line)
            (is_high.add if high else is_high.discard)(line)
        elif hit.name == ack:
            if told.kprobes:
                chip, pin, kvm = hit["irqchip"], hit["pin"], hit["kvm"]
            else:
                chip, pin, kvm = (2 if "IOAPIC" in hit.text else 0), int(hit.text.rpartition(" ")[2]), 0
            if chip == 0 and pin == 2:
                continue  # the cascade
            line = (kvm, pin)
            if line in in_service:
                told.acks[line] += 1
                told.ackers[hit.ts] = hit.tid
                in_service.discard(line)
                acked[hit.task] = line
            elif not sure and line not in known:
                told.doubtful_acks[line] += 1
        elif hit.name == "kvm_apic_accept_irq" and acked.get(hit.task) in is_high:
            in_service.add(acked[hit.task])  # The line is still high at its EOI, so it is delivered again.
        elif hit.name == "irqfd_wakeup" and hit["resampler"] == 0:
            split[hit.task] = (hit["kvm"], hit["gsi"])
        elif hit.name == "kvm_msi_set_irq" and hit.task in split:
            in_service.add(split[hit.task])
        elif hit.name == "kvm_userspace_exit" and "IOAPIC_EOI" in hit.text:
            for line in in_service & set(split.values()):
                told.acks[line] += 1
                told.ackers[hit.ts] = hit.tid
                in_service.discard(line)


def _merges(hits: list[Hit], told: Told) -> None:
    """What a line was raised for and no local APIC accepted, the pin being open; and wake-ups that shared a worker."""
    woken: Counter[int] = Counter()
    raised: dict[tuple[int, int], bool] = {}
    raise_ = "set_irq" if told.kprobes else "kvm_set_irq"

    def over(task: tuple[int, int]) -> None:
        told.merged += raised.pop(task, False)

    for hit in hits:
        if hit.name == "irqfd_wakeup" and hit["key"] == 1:
            woken[hit["eventfd"]] += 1
        elif hit.name == "irqfd_inject":
            told.merged += max(woken.pop(hit["eventfd"], 1) - 1, 0)
        if hit.name == raise_:
            over(hit.task)
            if "level=1" in hit.text or "level 1" in hit.text:
                raised[hit.task] = True
        elif hit.name == "kvm_apic_accept_irq":
            raised.pop(hit.task, None)
        elif hit.name == "kvm_ioapic_set_irq":
            if "masked" in hit.text:
                raised.pop(hit.task, None)
            over(hit.task)
    for task in list(raised):
        over(task)
