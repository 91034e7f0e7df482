"""Diagnosis: what is wrong, what shows it, why it is so and what to do. Named findings, only what the trace proves.

`diagnose` takes what the analysis counted and gives findings, worst first; nothing for a healthy device. Each rule is
one function below, with the QEMU or kernel source that makes it so.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from intxtrace.analysis.results import Evidence, Finding
from intxtrace.analysis.traits import SLOW_NS, Sample, Traits, Unended
from intxtrace.events import SetIrqs
from intxtrace.qemu_options import QemuOptions, is_on, read
from intxtrace.trace.tables import Device
from intxtrace.units import count, duration, plural, share

if TYPE_CHECKING:
    from intxtrace.analysis.results import DeviceSummary
    from intxtrace.analysis.witness import Witness
    from intxtrace.trace.tables import Tables

SEVERITIES = ("problem", "warning", "note")
"""`problem`: interrupts stop, or will; `warning`: they cost far more than they need; `note`: worth knowing."""

STUCK_NS = 1_000_000_000
"""A line that stays masked for so long, to the end, is never unmasked."""
SETTLED_NS, SETTLED_SHARE = 1_000_000_000, 0.1
"""A device that had so long to settle, and was on a path for less of that time, was only passing through."""
FALLEN_BACK_NS = 1_000_000_000
"""A bypass that failed counts if it was missed for so long: QEMU tries again when the guest changes its routing."""
RESIGNAL_SHARE = 0.10
"""On the kernel and hybrid path, resignals up to this share are new events of a busy device."""
UNCLAIMED_CALLS, UNCLAIMED_SHARE = 1_000, 0.9
"""So many calls of a line, and so much of them, that nobody claimed: the kernel gives up at 99.9 % of 100,000."""
SLOW_INTERRUPTS = 10
"""So many interrupts must be delayed in a stage: one alone may be the host's bad moment."""
SLOW_SHARE = 0.01
"""From this share on, that is a warning."""
TRAPPED_SHARE, TRAPPED_NS = 0.9, 5_000_000_000
"""BARs that are unmapped for so much of the time, and so long in all, count as always trapped."""
UNMAPS = 2
"""BARs that were unmapped so often are toggled."""


@dataclass(frozen=True)
class Subject:
    """One device in one VM, and all that is known of it."""

    summary: DeviceSummary
    traits: Traits
    row: Device
    vm_row: int | None
    options: QemuOptions
    end_at: int | None
    witness: Witness
    all: Callable[[], list[Subject]]

    @property
    def properties(self) -> dict[str, str]:
        """What QEMU's command line says of this device."""
        return self.options.device(self.summary.bdf or "")

    def mostly(self, path: str) -> bool:
        """Whether at least half of its interrupts took this path, and it was set up so for some of the time.

        The interrupts before QEMU sets the bypass up take the userspace path; a quiet device may have no others.
        """
        counts, times = self.summary.counts, self.summary.states.time_ns
        lived = sum(times.get(state, 0) for state in ("kernel", "hybrid", "userspace"))
        often = counts.total > 0 and 2 * counts.path[path] >= counts.total
        return often and (lived < SETTLED_NS or times.get(path, 0) >= SETTLED_SHARE * lived)

    def stuck(self) -> tuple[Unended, int] | None:
        """The interrupt that masked the line for longest, to the end, and for how long; None if there is none.

        A device that virtually masks itself (path held) is not stuck: it waits for its guest.
        """
        found = []
        for one in self.traits.unended:
            until = self.traits.next_mode_at(one.masked_at) or self.end_at
            if one.path != "held" and until is not None and until - one.masked_at >= STUCK_NS:
                found.append((one, until - one.masked_at))
        return max(found, key=lambda item: item[1], default=None)

    def finding(
        self, name: str, severity: str, title: str, why: str, advice: str, *evidence: Evidence | None
    ) -> Finding:
        """Make a finding about this device."""
        device = self.summary
        kept = tuple(one for one in evidence if one is not None)
        return Finding(name, severity, device.device, device.bdf, device.vm, device.vm_pid, title, kept, why, advice)


def diagnose(
    devices: tuple[DeviceSummary, ...],
    traits: dict[tuple[int | None, str | None], Traits],
    tables: Tables,
    witness: Witness,
    end_at: int | None,
) -> tuple[Finding, ...]:
    """Name what is wrong with these devices, worst first, then in their order.

    `traits` are by row of the device table and name of the VM; `end_at` is the trace's last instant, None without a
    clock.
    """
    subjects: list[Subject] = []
    rows = {row.id: row for row in tables.devices}
    for summary in devices:
        vm = next(
            (vm for vm in tables.vms if vm.name == summary.vm and summary.vm_pid in (None, vm.pid)),
            None,
        )
        key = (summary.device, summary.vm)
        subjects.append(
            Subject(
                summary,
                traits.get(key) or Traits(),
                rows.get(-1 if summary.device is None else summary.device, Device(-1)),
                vm.id if vm else None,
                read(vm.command_line) if vm else QemuOptions(),
                end_at,
                witness,
                lambda: subjects,
            )
        )
    found = [finding for subject in subjects for rule in _RULES for finding in rule(subject)]
    found += _unclaimed_lines(subjects)
    return tuple(sorted(found, key=lambda finding: SEVERITIES.index(finding.severity)))


def _took(subject: Subject, path: str) -> Evidence:
    counts = subject.summary.counts
    return Evidence(f"interrupts on the {path} path", counts.path[path], counts.total)


def _sampled(what: str, sample: Sample, total: int | None) -> Evidence:
    return Evidence(what, sample.count, total, sample.first_at, sample.last_at, tuple(sample.ids))


# ---- which path, and why


def _slow_path(s: Subject) -> Iterator[Finding]:
    """Why the userspace path? The guards of vfio_intx_enable_kvm (hw/vfio/pci.c) refuse without a word."""
    failed = [f for f in s.traits.failed if f.end_at is None or f.end_at - f.begin_at >= FALLEN_BACK_NS]
    if not s.mostly("userspace") and not (failed and s.traits.last_mode() != "kernel"):
        return
    took = _took(s, "userspace") if s.summary.counts.total else None
    attempts = [Evidence(f.reason or "KVM_IRQFD failed", None, None, f.begin_at, f.end_at) for f in s.traits.failed[:3]]
    slow = (
        "QEMU's main loop injects each interrupt and takes the guest's first BAR access for its end; meanwhile every "
        "BAR access traps."
    )
    if is_on(s.properties, "x-no-kvm-intx"):
        yield s.finding(
            "bypass-off-by-option",
            "warning",
            "QEMU was told to handle the interrupts itself: x-no-kvm-intx=on",
            f"x-no-kvm-intx is a debugging option that is copied around. {slow}",
            "remove x-no-kvm-intx=on from the device's options, or from the libvirt domain's qemu:commandline",
            took,
        )
    elif s.options.irqchip == "off":
        yield s.finding(
            "no-kernel-irqchip",
            "warning",
            "the VM has no interrupt controller in KVM (kernel-irqchip=off), so KVM cannot inject",
            f"KVM's irqfd needs KVM's irqchip. {slow}",
            "start the VM with kernel-irqchip=on; in libvirt <features><ioapic driver='kvm'/></features>",
            took,
            *attempts,
        )
    elif s.traits.failed:
        reason = s.traits.failed[-1].reason or ""
        yield s.finding(
            "bypass-failed",
            "warning",
            f"QEMU tried to let KVM inject the interrupts and could not: {reason.partition(': ')[2] or reason}",
            f"{_why_irqfd_failed(reason, s.options)} {slow}",
            "look for a warning of QEMU that begins with `failed to setup resample irqfd`, in the VM's log",
            took,
            *attempts,
        )
    elif s.summary.floods.handler_calls is not None or s.summary.floods.noop_unmasks is not None:
        # QEMU's log alone does not show the interrupts that KVM delivers.
        yield s.finding(
            "no-bypass",
            "warning",
            "QEMU handles the interrupts itself, and this trace does not show why",
            "vfio_intx_enable_kvm refuses without a word if x-no-kvm-intx is on, KVM has no irqchip, or the guest has "
            f"not routed the pin. {slow}",
            "look for x-no-kvm-intx, kernel-irqchip and accel on QEMU's command line; record while the VM starts",
            took,
        )


def _why_irqfd_failed(reason: str, options: QemuOptions) -> str:
    if reason.endswith(os.strerror(22)):
        if options.irqchip == "split":
            # 654f1f13ea56 (Linux 5.2) refuses resampling irqfds there; QEMU has emulated them since 5.1 (c82d9d43ed5d).
            return (
                "KVM refuses a resamplefd with a split irqchip, and this QEMU does not do without (5.1 and newer do)."
            )
        return "KVM takes an irqfd with a resamplefd only with an irqchip that is wholly its own."
    if reason.endswith(os.strerror(16)):
        return "KVM refuses an eventfd that has an irqfd already."
    return "kvm_irqfd (virt/kvm/eventfd.c) refused."


def _split(s: Subject) -> Iterator[Finding]:
    """kvm_irqchip_assign_irqfd (accel/kvm/kvm-all.c) keeps the resamplefd to itself with a split irqchip."""
    if not s.mostly("hybrid"):
        return
    took = _took(s, "hybrid")
    if s.options.irqchip == "split":
        q35 = " (its machine type's default)" if s.options.machine == "pc-q35-4.0" else ""
        yield s.finding(
            "split-irqchip",
            "warning",
            f"the VM's IOAPIC is in QEMU: split irqchip{q35}",
            "Each end of interrupt exits to QEMU, which writes the resamplefd; with the IOAPIC in KVM nothing leaves "
            "the kernel.",
            "start the VM with kernel-irqchip=on, in libvirt <features><ioapic driver='kvm'/></features>, if it needs "
            "no interrupt remapping; or let the device use MSI",
            took,
        )
    else:
        yield s.finding(
            "hybrid-path",
            "warning",
            "KVM injects the interrupts, but the VMM ends them itself",
            "The irqfd was set up without a resamplefd, as QEMU does it with a split irqchip.",
            "if this is QEMU, start the VM with kernel-irqchip=on; or let the device use MSI",
            took,
        )


def _refused(s: Subject) -> Iterator[Finding]:
    """vfio_pci_set_irqs_ioctl returned an error: vfio_intx_enable and vfio_intx_set_signal (vfio_pci_intrs.c)."""
    wanted = SetIrqs.ACTION_TRIGGER | SetIrqs.DATA_EVENTFD
    refusals = [one for one in s.witness.refusals(s.summary.device) if one.flags == wanted]
    if not refusals:
        return
    why = {
        16: "The device cannot mask its interrupt by itself (no DisINTx), so it needs a host line of its own.",
        107: "The firmware routed the device's pin nowhere (dmesg: PCI INT A: not connected).",
    }.get(refusals[-1].errno, "vfio_pci_set_irqs_ioctl returned an error.")
    advice = {
        16: "put the device into another slot, or unbind the drivers that share its line (/proc/interrupts)",
        107: "update the firmware, or let the device use MSI",
    }.get(refusals[-1].errno, "look into dmesg and the VM's log")
    last = refusals[-1]
    yield s.finding(
        "intx-refused",
        "problem",
        f"the host's kernel refused to set up INTx: {os.strerror(last.errno)}",
        why,
        advice,
        Evidence("VFIO_DEVICE_SET_IRQS failed", len(refusals), None, refusals[0].at, last.at),
    )


def _msi_unused(s: Subject) -> Iterator[Finding]:
    if not s.summary.counts.total or not (s.row.msi or s.row.msix) or s.traits.msi_enabled_at is not None:
        return
    can = " and ".join(name for name, has in (("MSI", s.row.msi), ("MSI-X", s.row.msix)) if has)
    yield s.finding(
        "msi-unused",
        "warning",
        f"the device can use {can}, and the guest drives it with INTx",
        "A message-signalled interrupt is injected without masking, end of interrupt or BAR traps, and shares no line.",
        "let the guest's driver use MSI: no pci=nomsi; snd-hda-intel enable_msi=1; in Windows the registry value "
        "MSISupported=1 of the device",
        Evidence("INTx interrupts", s.summary.counts.total),
    )


# ---- lines that stay masked


def _stuck(s: Subject) -> Iterator[Finding]:
    stuck = s.stuck()
    if stuck is None:
        return
    one, length = stuck
    masked = Evidence(
        f"masked for {duration(length)}, to the end", None, None, one.masked_at, one.masked_at + length, (one.id,)
    )
    neighbour = _other_on_gsi(s, one)
    pin = None if s.vm_row is None or one.gsi is None else s.witness.pin(s.vm_row, one.gsi)
    injected = one.path == "kernel" and one.injected_at is not None and one.acknowledged_at is None
    proven = injected and pin is not None and one.injected_at is not None and pin.at >= one.injected_at
    if neighbour is not None:
        other, number, first, last = neighbour
        yield s.finding(
            "split-shared-gsi",
            "problem",
            f"the device stays masked: it shares GSI {one.gsi} with {other.summary.bdf}, which alone is unmasked",
            "With a split irqchip QEMU's kvm_resample_fd_notify (5.1 to 11.1) stops at the first device of the GSI; "
            "the others wait until INTx is set up anew.",
            "start the VM with kernel-irqchip=on; or move one of the devices to another slot of the guest; or let them "
            "use MSI",
            masked,
            Evidence(f"interrupts of {other.summary.bdf} unmasked meanwhile", number, None, first, last),
        )
    elif proven and pin is not None and pin.masked:
        yield s.finding(
            "guest-masks-pin",
            "problem",
            f"the guest keeps its IOAPIC pin {one.gsi} masked, so it never sees the interrupt",
            "KVM raised the line, and the guest's redirection entry was masked: its driver is not loaded, or its "
            "kernel gave the interrupt up (`nobody cared`).",
            "look into the guest's dmesg and /proc/interrupts; reload the device's driver there",
            masked,
            Evidence("the pin's entry as the injection found it: masked", None, None, pin.at, pin.at),
        )
    elif proven and pin is not None and not pin.level:
        yield s.finding(
            "guest-pin-edge",
            "problem",
            f"the guest programmed its IOAPIC pin {one.gsi} as edge-triggered, and never ended the interrupt",
            "INTx is level-triggered. KVM need not see the end of an edge-triggered interrupt (AMD's AVIC does not), "
            "and without it the line stays masked.",
            "make the guest program the pin as level-triggered, active low (its ACPI _PRT says so)",
            masked,
            Evidence("the pin's entry as the injection found it: edge", None, None, pin.at, pin.at),
        )
    else:
        what, who = _where_it_stopped(one)
        yield s.finding(
            "never-unmasked",
            "problem",
            f"the device stays masked: {what}",
            "Until the unmask it cannot interrupt again.",
            who,
            masked,
        )


def _other_on_gsi(s: Subject, one: Unended) -> tuple[Subject, int, int, int] | None:
    if one.path != "hybrid" or one.gsi is None:
        return None
    for other in s.all():
        same_vm = other.vm_row == s.vm_row and other.summary.vm == s.summary.vm
        if other is s or not same_vm or one.gsi not in other.traits.unmasked:
            continue
        number, first, last = other.traits.unmasked[one.gsi]
        if last > one.masked_at:
            return other, number, first, last
    return None


def _where_it_stopped(one: Unended) -> tuple[str, str]:
    if one.acknowledged_at is not None:
        return "the interrupt was acknowledged, but the unmask did not follow", "report this, with the trace"
    if one.injected_at is not None:
        access = "touched no BAR of the device" if one.path == "userspace" else "did not end it"
        return (
            f"the interrupt was injected, and the guest {access}",
            "look into the guest: is the device's driver loaded, is a vCPU stopped or the VM paused",
        )
    return (
        "the interrupt was claimed, and was not injected",
        "look into the VM's log: is it paused, or its main loop stuck",
    )


# ---- floods


def _resignals(s: Subject) -> Iterator[Finding]:
    total = s.summary.counts.total
    for path, sample in sorted(s.traits.resignals.items()):
        part = share(sample.count, total)
        evidence = _sampled(f"resignals on the {path} path", sample, total)
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


def _reentry(s: Subject) -> Iterator[Finding]:
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
            _sampled("interrupts that the guest ended more than once", sample, s.summary.counts.total),
            Evidence("ends at most, of one interrupt", sample.worst),
        )


def _trapped(s: Subject) -> Iterator[Finding]:
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


def _unclaimed_lines(subjects: list[Subject]) -> Iterator[Finding]:
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


def _others(sharers: list[str]) -> str:
    return f"on the line besides: {', '.join(sharers[:8])}" if sharers else "nobody else was on the line"


# ---- delays


def _delays(s: Subject) -> Iterator[Finding]:
    names = {
        ("kernel", "inject_ns"): (
            "kworker-delay",
            "between the host's signal and the injection",
            "A kernel thread (kworker) injects the interrupt, and it waited for a CPU.",
            "keep the CPUs of the host's interrupt free for kworkers: no pinned vCPU or real-time task on them; move "
            "the IRQ with /proc/irq/*/smp_affinity",
        ),
        ("kernel", "guest_ns"): _GUEST_EOI,
        ("hybrid", "guest_ns"): _GUEST_EOI,
        ("userspace", "signal_ns"): (
            "qemu-loop-delay",
            "before QEMU's main loop took them up",
            "QEMU's main thread injects the interrupt; it was busy (disk, network or display emulation, the monitor), "
            "or waited for a CPU.",
            "get the device off the userspace path; give block devices their own iothread; keep a CPU free for QEMU",
        ),
    }
    for key in SLOW_NS:
        sample, measured = s.traits.slow.get(key), s.traits.measured.get(key, 0)
        if sample is None or sample.count < SLOW_INTERRUPTS:
            continue
        name, where, why, advice = names[key]
        at_most = f", {duration(sample.worst)} at most"
        yield s.finding(
            name,
            "warning" if sample.count >= SLOW_SHARE * measured else "note",
            f"{share(sample.count, measured)} of {count(measured)} interrupts waited {duration(SLOW_NS[key])} or "
            f"longer {where}{at_most}",
            why,
            advice,
            _sampled(f"delayed by {duration(SLOW_NS[key])} or longer", sample, measured),
        )


_GUEST_EOI = (
    "slow-guest-eoi",
    "for the guest to end them",
    "The guest's vCPU did not run, had interrupts disabled, or its handler is slow; the device stays masked meanwhile.",
    "look for steal time in the guest and for vCPUs that share a CPU; pin vCPUs; look at the guest's driver",
)

_RULES: tuple[Callable[[Subject], Iterator[Finding]], ...] = (
    _slow_path,
    _split,
    _refused,
    _stuck,
    _msi_unused,
    _resignals,
    _reentry,
    _trapped,
    _delays,
)


def without_times(finding: Finding) -> Finding:
    """Give the finding without instants: they mean nothing where the clock only orders."""
    evidence = tuple(replace(one, begin_at=None, end_at=None) for one in finding.evidence)
    return replace(finding, evidence=evidence)
