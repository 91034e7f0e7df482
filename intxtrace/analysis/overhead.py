"""The probes' own share of masked time: an estimate of the hot path, from what each probe cost on the host.

`HOT_PATH` says which probes an interrupt hits between raised and unmasked, and how often. It holds for an interrupt
that the hardware raised and that met nothing unusual; a resignal spares the handler. It leaves out what varies:
programs that run and find that they are not concerned (other eventfds, exits to QEMU for other reasons), re-entries,
the PIC that GSIs below 16 pass too, and that a probe on another CPU may cost time without lengthening the masked time.
The first and the last probe take their instant within, so a part of each lies outside. Hence: about.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

from intxtrace.analysis.results import PathLatency, PathOverhead
from intxtrace.events import Kind
from intxtrace.trace.metadata import Metadata
from intxtrace.trace.tables import Probe


class Hit(NamedTuple):
    """A probe of the hot path, by the event that it makes first."""

    kinds: tuple[Kind, ...]
    """One of them: which one, the device decides."""
    times: int
    """Calls per interrupt of what it watches; of a pair of entry and return, pairs."""
    why: str


_BEGIN = (
    Hit((Kind.HANDLER_ENTRY,), 1, "the host's handler claims and masks the line"),
    Hit((Kind.EVENTFD_SIGNAL,), 1, "it signals the trigger"),
)
_LINE = (
    Hit((Kind.KVM_SET_IRQ,), 2, "the line is raised, and lowered before or at the end of interrupt"),
    Hit((Kind.IOAPIC_SET_IRQ,), 2, "each of them reaches the guest's IOAPIC"),
    Hit((Kind.APIC_ACCEPT,), 1, "raised, it becomes a vector of a vCPU"),
)
_RESAMPLE = Hit((Kind.VIRQFD_WAKEUP,), 1, "vfio's end of the resamplefd")
_END = (
    Hit((Kind.UNMASK_ENTRY,), 1, "vfio is to unmask the line"),
    Hit((Kind.CHECKED_UNMASK, Kind.ENABLE_IRQ), 1, "by DisINTx, or at the interrupt controller"),
)

HOT_PATH: dict[str, tuple[Hit, ...]] = {
    "kernel": (
        *_BEGIN,
        Hit((Kind.IRQFD_WAKEUP,), 1, "KVM's end of the trigger queues the injection"),
        Hit((Kind.IRQFD_INJECT,), 1, "a kworker injects"),
        *_LINE,
        Hit((Kind.KVM_EOI,), 1, "the guest ends the interrupt"),
        Hit((Kind.KVM_ACK,), 1, "KVM tells whoever waits for that"),
        Hit((Kind.RESAMPLER_ACK,), 1, "the irqfd's resampler does"),
        Hit((Kind.EVENTFD_SIGNAL,), 1, "it signals the resamplefd"),
        _RESAMPLE,
        *_END,
    ),
    "hybrid": (
        *_BEGIN,
        Hit((Kind.IRQFD_WAKEUP,), 1, "KVM's end of the trigger injects at once"),
        Hit((Kind.MSI_SET_IRQ,), 1, "as an MSI, for the IOAPIC is QEMU's"),
        Hit((Kind.APIC_ACCEPT,), 1, "it becomes a vector of a vCPU"),
        Hit((Kind.KVM_EOI,), 1, "the guest ends the interrupt"),
        Hit((Kind.USERSPACE_EXIT,), 1, "the vCPU goes to QEMU with it"),
        Hit((Kind.QEMU_RESAMPLE_NOTIFY,), 1, "QEMU looks for the resamplefd"),
        Hit((Kind.EVENTFD_WRITE,), 1, "and writes it"),
        _RESAMPLE,
        *_END,
    ),
    "userspace": (
        *_BEGIN,
        Hit((Kind.EVENTFD_READ,), 1, "QEMU's main loop reads the trigger"),
        Hit((Kind.QEMU_INTERRUPT,), 1, "and calls vfio_intx_interrupt"),
        Hit((Kind.QEMU_MMAPS,), 6, "which unmaps the six regions before the ROM (vfio_mmap_set_enabled)"),
        Hit((Kind.KVM_IRQ_LINE,), 2, "QEMU raises the line, and lowers it at the first BAR access"),
        *_LINE,
        Hit((Kind.QEMU_REGION_READ, Kind.QEMU_REGION_WRITE), 1, "the driver's first BAR access traps"),
        Hit((Kind.QEMU_EOI,), 1, "it counts as the end of interrupt"),
        Hit((Kind.SET_IRQS_ENTRY,), 1, "QEMU asks vfio to unmask; the return comes just after"),
        *_END,
    ),
}
"""By path. The tests hold it to what recordings of real interrupts hold."""


def overhead(latency: Iterable[PathLatency], probes: Iterable[Probe], metadata: Metadata) -> tuple[PathOverhead, ...]:
    """Set what the probes cost an interrupt against the masked time of each path.

    Args:
        latency: of all devices together, by path.
        probes: the probe table.
        metadata: of the recording; one of another tool has no costs.
    """
    if "imported_from" in metadata.extra:
        return ()
    rows = [row for row in probes if row.state != "missing" and row.kinds]
    found = []
    for one in latency:
        if one.path in HOT_PATH and one.complete:
            cost, masked = _per_interrupt(HOT_PATH[one.path], rows), one.masked_ns.p50
            share = round(cost / masked, 4) if cost is not None and masked else None
            found.append(PathOverhead(one.path, cost, masked, share))
    return tuple(found)


def _per_interrupt(hits: Iterable[Hit], rows: list[Probe]) -> int | None:
    total = 0.0
    for hit in hits:
        names = {kind.name for kind in hit.kinds}
        cost = _per_call([row for row in rows if row.kinds[0] in names])
        if cost is None:
            return None
        total += hit.times * cost
    return round(total)


def _per_call(rows: list[Probe]) -> float | None:
    """Give what one of these probes cost, in the mean of all timed calls; of none, nothing; None: not known."""
    total, calls = 0, 0
    for row in rows:
        if row.attach_ns is not None and row.run_ns is not None and row.runs is not None and row.runs > 0:
            total += row.runs * (max(row.attach_ns, 0) + max(row.run_ns, 0))
            calls += row.runs
    if calls:
        return total / calls
    return None if rows else 0.0
