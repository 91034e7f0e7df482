"""Diagnosis: surplus work, and a line whose interrupts nobody claims."""

from __future__ import annotations

from collections.abc import Iterator

from intxtrace.analysis.results import Evidence, Finding
from intxtrace.analysis.subject import Subject, sampled
from intxtrace.qemu_options import is_on
from intxtrace.units import duration, plural, share

RESIGNAL_SHARE = 0.10
"""On the kernel and hybrid path, resignals up to this share are new events of a busy device."""
UNCLAIMED_CALLS, UNCLAIMED_SHARE = 1_000, 0.9
"""So many calls of a line, and so much of them, that nobody claimed: the kernel gives up at 99.9 % of 100,000."""
TRAPPED_SHARE, TRAPPED_NS = 0.9, 5_000_000_000
"""BARs that are unmapped for so much of the time, and so long in all, count as always trapped."""
UNMAPS = 2
"""BARs that were unmapped so often are toggled."""


def resignals(s: Subject) -> Iterator[Finding]:
    """Interrupts that repeat because the line was still asserted when another ended."""
    total = s.summary.counts.total
    for path, sample in sorted(s.traits.resignals.items()):
        part = share(sample.count, total)
        evidence = sampled(f"resignals on the {path} path", sample, total)
        if path == "userspace":
            # vfio_intx_eoi runs at each BAR access and takes the first for the end (hw/vfio/pci.c, region.c).
            yield s.finding(
                "premature-eoi",
                "warning" if sample.count > RESIGNAL_SHARE * total else "note",
                f"{part} of the interrupts are repeats: QEMU ended others at an access that did not serve the device",
                "On the userspace path the guest's first BAR access ends the interrupt, whatever it is for; vfio finds "
                "the line still asserted and signals again.",
                "get the device off the userspace path, or let it use MSI",
                evidence,
            )
        elif sample.count > RESIGNAL_SHARE * total:
            yield s.finding(
                "asserted-at-eoi",
                "note",
                f"{part} of the interrupts are repeats: the line was asserted, again or still, when others ended",
                "The guest ends its interrupt before the device is served, or the device has the next event by then.",
                "if the guest's handler ends early, fix it there; a device that is simply busy gains from MSI",
                evidence,
            )


def reentry(s: Subject) -> Iterator[Finding]:
    """A guest that serves and ends an interrupt before QEMU has unmapped the BARs."""
    sample = s.traits.reentered
    if sample.count:
        # vfio_intx_interrupt asserts the line before it unmaps the BARs (hw/vfio/pci.c).
        yield s.finding(
            "guest-reentry",
            "warning",
            f"the guest ended {plural(sample.count, 'interrupt')} {plural(s.traits.reentries, 'time')} before QEMU saw "
            "an access to the BARs",
            "QEMU asserts the line before it unmaps the BARs. A guest that is quicker serves the device unseen, and is "
            "interrupted again and again until an access traps.",
            "get the device off the userspace path, or let it use MSI; a larger x-intx-mmap-timeout-ms makes it rarer",
            sampled("interrupts that the guest ended more than once", sample, s.summary.counts.total),
            Evidence("ends at most, of one interrupt", sample.worst),
        )


def trapped(s: Subject) -> Iterator[Finding]:
    """BARs that are always trapped, or taken away and given back again and again."""
    floods = s.summary.floods
    accesses = (floods.bar_reads or 0) + (floods.bar_writes or 0)
    counted = Evidence("trapped BAR accesses", accesses)
    away = "A trapped access costs an exit to QEMU: microseconds in place of nanoseconds."
    trapped, mapped = s.traits.trapped_ns, s.traits.mapped_ns
    time = Evidence(f"BARs unmapped for {duration(trapped)} of {duration(trapped + mapped)}")
    if is_on(s.properties, "x-no-mmap"):
        if accesses:
            yield s.finding(
                "bars-always-trapped",
                "warning",
                "every access of the guest to the device's BARs traps: x-no-mmap=on",
                away,
                "remove x-no-mmap=on from the device's options",
                counted,
            )
    elif s.properties.get("x-intx-mmap-timeout-ms") == "0" and trapped:
        # vfio_intx_interrupt starts no timer then, so nothing maps the BARs again.
        yield s.finding(
            "bars-always-trapped",
            "warning",
            "every access to the BARs traps from the first interrupt on: x-intx-mmap-timeout-ms=0",
            away,
            "remove x-intx-mmap-timeout-ms=0 from the device's options",
            counted,
            time,
        )
    elif trapped >= TRAPPED_NS and trapped >= TRAPPED_SHARE * (trapped + mapped):
        yield s.finding(
            "bars-always-trapped",
            "warning",
            f"every access of the guest to the BARs traps, {share(trapped, trapped + mapped)} of the time",
            f"On the userspace path each interrupt unmaps them for x-intx-mmap-timeout-ms (default 1100). {away}",
            "get the device off the userspace path, or let it use MSI",
            counted,
            time,
        )
    elif s.traits.unmaps >= UNMAPS:
        begins = [at for at, on in s.traits.maps if not on]
        yield s.finding(
            "mmap-toggling",
            "note",
            f"QEMU took the BARs away from the guest and gave them back {plural(s.traits.unmaps, 'time')}",
            "On the userspace path an interrupt unmaps the BARs; without another one they are mapped again after "
            "x-intx-mmap-timeout-ms. Each change halts the vCPUs for a moment.",
            "get the device off the userspace path, or let it use MSI; a larger x-intx-mmap-timeout-ms makes it rarer",
            Evidence("unmapped", s.traits.unmaps, None, begins[0], begins[-1]),
            time,
        )


def unclaimed_lines(subjects: list[Subject]) -> Iterator[Finding]:
    """note_interrupt (kernel/irq/spurious.c) disables a line of whose last 100,000 interrupts 99,900 were unclaimed."""
    lines: dict[int, list[Subject]] = {}
    for s in subjects:
        if s.summary.host_irq is not None and s.summary.floods.handler_calls and s.summary.floods.unclaimed is not None:
            lines.setdefault(s.summary.host_irq, []).append(s)
    for irq, sharers in sorted(lines.items()):
        # The kernel calls every handler of the line at each interrupt.
        calls = max(s.summary.floods.handler_calls or 0 for s in sharers)
        claims = sum((s.summary.floods.handler_calls or 0) - (s.summary.floods.unclaimed or 0) for s in sharers)
        unclaimed = calls - claims
        if unclaimed < UNCLAIMED_CALLS or unclaimed < UNCLAIMED_SHARE * calls:
            continue
        busiest = max(sharers, key=lambda s: s.summary.floods.handler_calls or 0)
        yield busiest.finding(
            "unclaimed-line",
            "problem",
            f"no passed-through device claimed {share(unclaimed, calls)} of the interrupts on host IRQ {irq}",
            "Another device on the line raised them, or this one asserts it though it is masked (a broken DisINTx). If "
            "nobody claims them, the kernel says `nobody cared` after 99,900 of 100,000 and disables the line for all.",
            "see in /proc/interrupts who else has the line: move the device or unbind the other driver; if it has the "
            "line for itself, load vfio-pci with nointxmask=1",
            Evidence(
                f"interrupts on IRQ {irq} that none of {plural(len(sharers), 'device')} claimed", unclaimed, calls
            ),
        )
