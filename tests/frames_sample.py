"""Made-up but plausible frames: every path, origin and outcome, resignals, bursts, losses, hostile names."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from intxtrace.frames import COUNTERS, DEVICE_STATES, INTERRUPTS, STAGES
from intxtrace.trace.metadata import Metadata
from intxtrace.trace.tables import Device, Probe, Tables, Vm

MS, S = 1_000_000, 1_000_000_000
BEGIN = 86_412 * S + 345_678_901
HOSTILE = "</script><img src=x onerror=alert(1)>"
MARKUP = "[bold]x"

Ints = npt.NDArray[np.int64]


def sample_metadata(**changes: Any) -> Metadata:
    """What a recording says of itself."""
    whole = Metadata(
        realtime_anchor_ns=1_772_000_000 * S,
        hostname="vmhost7",
        kernel="6.1.0-28-amd64",
        machine="x86_64",
        command_line=["intxtrace", "record", "-o", "slow-nic.intx", "--vm", "win10"],
        started_at=1_772_086_412 * S,
    )
    return replace(whole, **changes)


def tables(hostile: bool = False) -> Tables:
    """Three devices in two VMs; one of them never interrupts. Names are hostile on demand."""
    first, second = (HOSTILE, MARKUP) if hostile else ("win10", "build-runner")
    core, qemu = "[vfio_pci_core]", "/usr/bin/qemu-system-x86_64"
    bars = ["QEMU_REGION_READ", "QEMU_REGION_WRITE", "QEMU_REGION_COUNT", "QEMU_REGION_OFFSETS"]
    probes = [
        ("vfio_intx_handler", ["HANDLER_ENTRY", "HANDLER_EXIT"], "attached", "fentry", core, "btf", ""),
        ("vfio_pci_intx_unmask_handler", ["UNMASK_ENTRY", "UNMASK_EXIT"], "attached", "fexit", core, "btf", ""),
        ("pci_check_and_unmask_intx", ["CHECKED_UNMASK"], "fallback", "kretprobe", "", "kallsyms", "fexit was refused"),
        ("kvm_set_irq", ["KVM_SET_IRQ"], "attached", "raw_tracepoint", "kvm:kvm_set_irq", "btf", ""),
        ("qemu_vfio_intx_interrupt", ["QEMU_INTERRUPT"], "attached", "uprobe", qemu, "trace-variable", ""),
        ("qemu_vfio_region_read", bars, "attached", "uprobe", qemu, "trace-variable", ""),
        ("kvm_apic_accept_irq", ["APIC_ACCEPT"], "missing", "", "", "", "this kernel has no such tracepoint"),
    ]
    devices = [
        ("0000:01:00.0", 0x8086, 0x10D3, "82574L Gigabit Network", 16, 4242),
        ("0000:05:00.0", 0x1B36, 0x000D, "QEMU XHCI Host Controller", 17, 5151),
        ("0000:06:00.0", 0x1000, 0x0030, "53c1030 SCSI", 19, 5151),
    ]
    return Tables(
        probes=[
            Probe(i, name, kinds, state, method, target, 0, resolved, reason)
            for i, (name, kinds, state, method, target, resolved, reason) in enumerate(probes, 1)
        ],
        vms=[
            Vm(1, pid=4242, name=first, qemu_path=qemu, qemu_version="7.2.15"),
            Vm(2, pid=5151, name=second, qemu_path=qemu, qemu_version="7.2.15"),
        ],
        devices=[
            Device(i, bdf=bdf, vendor_id=vendor, device_id=device, name=name, host_irq=irq, vm_pid=pid)
            for i, (bdf, vendor, device, name, irq, pid) in enumerate(devices, 1)
        ],
    )


# Median stage latencies in µs: signal, inject, guest, unmask.
_MEDIANS = {
    "kernel": (0.9, 6.0, 14.0, 5.0),
    "hybrid": (0.9, 1.5, 22.0, 17.0),
    "userspace": (38.0, 9.0, 30.0, 11.0),
    "held": (0.9, 6.0, 14.0, 90.0),
    "unknown": (0.9, 6.0, 14.0, 5.0),
}

Phase = tuple[str, float, bool | None, str]
"""State, share of the recording's time, whether the BARs are mapped, reason."""

FLAPPING: tuple[Phase, ...] = (
    ("off", 0.01, None, "the trace began"),
    ("userspace", 0.02, False, "vfio_intx_enable"),
    ("kernel", 0.40, True, "KVM_IRQFD with a resamplefd returned 0"),
    ("userspace", 0.22, False, "KVM_IRQFD was taken back"),
    ("hybrid", 0.05, True, "KVM_IRQFD without a resamplefd returned 0"),
    ("kernel", 0.30, True, "KVM_IRQFD with a resamplefd returned 0"),
)
STEADY: tuple[Phase, ...] = (
    ("off", 0.01, None, "the trace began"),
    ("kernel", 0.99, True, "KVM_IRQFD with a resamplefd returned 0"),
)


def interrupts(
    number: int,
    *,
    phases: tuple[Phase, ...] = FLAPPING,
    device: int = 1,
    bdf: str = "0000:01:00.0",
    vm: str | None = "win10",
    vm_pid: int = 4242,
    host_irq: int = 16,
    seed: int = 1,
    seconds: float = 60.0,
    resignals: float = 0.5,
    clock: bool = True,
    strays: float = 0.006,
) -> pd.DataFrame:
    """Make interrupts of one device, busy and idle by turns, with two bursts. `resignals` is their share on the
    userspace path, `strays` that of held ones and of unknown paths.
    """
    rng = np.random.default_rng(seed)
    weight = 1 + 0.8 * np.sin(np.linspace(0, 9, 600)) + rng.random(600)
    weight[[140, 141, 410]] *= 25
    if phases[0][0] == "off":
        weight[: int(600 * phases[0][1])] = 0
    cumulative = np.r_[0, np.cumsum(weight)] / weight.sum()
    wanted = np.sort(np.interp(rng.random(number), cumulative, np.linspace(0, seconds, 601)))
    edges = np.cumsum([share for _, share, _, _ in phases]) * seconds
    states = np.array([state for state, _, _, _ in phases], object)
    paths = states[np.minimum(np.searchsorted(edges, wanted, "right"), len(states) - 1)]
    stray = rng.random(number) < strays
    paths[stray] = rng.choice(np.array(["held", "unknown"], object), stray.sum())

    stages = np.empty((4, number))
    for path, medians in _MEDIANS.items():
        here = paths == path
        for row, median in enumerate(medians):
            stages[row, here] = rng.lognormal(np.log(median * 1000), 0.35, here.sum())
    slow = rng.random(number) < 0.004
    stages[0, slow] *= rng.lognormal(3.0, 0.9, slow.sum())
    signal, inject, guest, unmask = (stage.astype(np.int64) for stage in stages)
    # A line is raised only after it was unmasked.
    before = np.r_[0, np.cumsum(signal + inject + guest + unmask)[:-1]]
    raised = np.maximum.accumulate((wanted * 1e9).astype(np.int64) - before) + before + BEGIN

    userspace = paths == "userspace"
    origin = np.full(number, "hardware", object)
    origin[rng.random(number) < 0.004] = "pending"
    origin[rng.random(number) < 0.001] = "software"
    origin[rng.random(number) < 0.001] = "unknown"
    origin[(paths == "userspace") & (rng.random(number) < resignals)] = "resignal"
    outcome = np.full(number, "complete", object)
    for word, chance in (("headless", 0.0005), ("lossy", 0.002), ("cancelled", 0.0005)):
        outcome[rng.random(number) < chance] = word
    if number >= 100:  # every outcome occurs
        outcome[[number // 5, number // 3, number // 2]] = ["headless", "lossy", "cancelled"]
    outcome[-1] = "open"

    at = np.cumsum(np.vstack([raised, signal, inject, guest, unmask]), axis=0)
    eoi = np.where(userspace, at[4] + rng.integers(2000, 9000, number), at[3])
    columns: dict[str, Ints] = dict(zip(STAGES, [*at, eoi], strict=True))
    missing = {name: np.zeros(number, bool) for name in STAGES}
    missing["raised_at"] |= (origin == "pending") | (outcome == "headless")
    missing["acknowledged_at"] |= (outcome == "open") | (outcome == "cancelled")
    missing["unmasked_at"] |= (outcome == "open") | (outcome == "cancelled") | (outcome == "lossy")
    for name in ("signalled_at", "injected_at", "acknowledged_at", "eoi_at"):
        missing[name] |= paths == "held"
    missing["injected_at"] |= paths == "unknown"
    missing["eoi_at"] |= (outcome == "open") | (paths == "hybrid")

    def masked(values: Ints, *gone: str) -> pd.Series[int]:
        null = np.logical_or.reduce([missing[name] for name in gone])
        return pd.Series(pd.arrays.IntegerArray(values.astype(np.int64), null))

    def duration(begin_name: str, end_name: str) -> pd.Series[int]:
        values = masked(columns[end_name] - columns[begin_name], begin_name, end_name)
        return values if clock else pd.Series([pd.NA] * number, dtype="Int64")

    ids = np.arange(1, number + 1)
    parent = pd.Series(ids - 1, dtype="Int64").where(pd.Series(origin == "resignal") & (ids > 1))
    accesses = pd.Series(np.where(userspace, rng.poisson(11, number), 0), dtype="Int64")
    frame = {
        "id": ids,
        "parent_id": parent,
        "device": device,
        "bdf": bdf,
        "vm": vm,
        "vm_pid": vm_pid,
        "host_irq": host_irq,
        "gsi": host_irq,
        "path": paths,
        "origin": origin,
        "outcome": outcome,
        "coalesced": rng.random(number) < 0.003,
        **{name: masked(columns[name], name) for name in STAGES},
        "unmask_proof": pd.Series(np.where(rng.random(number) < 0.9, "checked", "assumed")).where(
            ~missing["unmasked_at"]
        ),
        "signal_ns": duration("raised_at", "signalled_at"),
        "inject_ns": duration("signalled_at", "injected_at"),
        "guest_ns": duration("injected_at", "acknowledged_at"),
        "unmask_ns": duration("acknowledged_at", "unmasked_at"),
        "masked_ns": duration("raised_at", "unmasked_at"),
        "bar_accesses": accesses,
        "reentries": pd.Series(np.where(userspace, rng.poisson(0.2, number), 0), dtype="Int64"),
    }
    return pd.DataFrame(frame, index=range(number)).astype({name: dtype for name, (dtype, _) in INTERRUPTS.items()})[
        list(INTERRUPTS)
    ]


def states(
    *,
    phases: tuple[Phase, ...] = FLAPPING,
    device: int = 1,
    bdf: str = "0000:01:00.0",
    vm: str | None = "win10",
    seconds: float = 60.0,
) -> pd.DataFrame:
    """Make the states of one device; the last has no end."""
    edges = [BEGIN, *(BEGIN + int(edge * seconds * S) for edge in np.cumsum([share for _, share, _, _ in phases]))]
    rows = [
        (device, bdf, vm, state, mapped, edges[i], None if i == len(phases) - 1 else edges[i + 1], reason)
        for i, (state, _, mapped, reason) in enumerate(phases)
    ]
    frame = pd.DataFrame(rows, columns=list(DEVICE_STATES))
    return frame.astype({name: dtype for name, (dtype, _) in DEVICE_STATES.items()})


def counters(
    *, device: int = 1, bdf: str = "0000:01:00.0", vm: str | None = "win10", seconds: int = 60, seed: int = 3
) -> pd.DataFrame:
    """Every counter in each second of the recording; BAR accesses both as a total and by offset; some events lost."""
    rng = np.random.default_rng(seed)
    rows: list[tuple[object, ...]] = []
    for second in range(seconds):
        begin = (BEGIN // S + second) * S
        for counter, most in (
            ("handler_calls", 900),
            ("unclaimed", 40),
            ("spurious_wakeups", 3),
            ("noop_unmasks", 5),
            ("reentries", 9),
        ):
            rows.append((device, bdf, vm, begin, counter, None, None, int(rng.integers(1, most))))
        total = {"bar_reads": 0, "bar_writes": 0}
        for offset, reads, writes in ((0xC0, 300, 0), (0x3818, 1, 120), (0xD0, 0, 95), (0x2818, 2, 60), (0x8, 12, 0)):
            for counter, most in (("bar_reads", reads), ("bar_writes", writes)):
                if most:
                    number = int(rng.integers(1, most + 1))
                    total[counter] += number
                    rows.append((device, bdf, vm, begin, counter, 0, offset, number))
        rows += [(device, bdf, vm, begin, counter, None, None, number) for counter, number in total.items()]
    rows.append((device, bdf, vm, BEGIN // S * S, "lost", None, None, 7))
    rows.append((None, None, None, BEGIN // S * S, "lost", None, None, 5))
    frame = pd.DataFrame(rows, columns=list(COUNTERS))
    return frame.astype({name: dtype for name, (dtype, _) in COUNTERS.items()})


Batch = tuple[pd.DataFrame, pd.DataFrame, pd.DataFrame]


def sample(number: int = 20_000, *, hostile: bool = False) -> list[Batch]:
    """A recording of two VMs: a network card whose bypass came and went, and a USB controller on the kernel path."""
    first, second = (HOSTILE, MARKUP) if hostile else ("win10", "build-runner")
    busy = number * 4 // 5
    network = interrupts(busy, vm=first)
    usb = interrupts(
        number - busy,
        phases=STEADY,
        device=2,
        bdf="0000:05:00.0",
        vm=second,
        vm_pid=5151,
        host_irq=17,
        seed=2,
        strays=0,
    )
    usb["id"] += busy
    usb_states = states(phases=STEADY, device=2, bdf="0000:05:00.0", vm=second)
    usb_counters = counters(device=2, bdf="0000:05:00.0", vm=second, seed=4)
    usb_counters = usb_counters[~usb_counters["counter"].isin(["lost", "bar_reads", "bar_writes"])]
    return [(network, states(vm=first), counters(vm=first)), (usb, usb_states, usb_counters)]
