"""Diagnosis: a line that stays masked, and what delays the unmask."""

from __future__ import annotations

from collections.abc import Iterator

from intxtrace.analysis.results import Evidence, Finding
from intxtrace.analysis.subject import Subject, sampled
from intxtrace.analysis.traits import SLOW_NS, Unended
from intxtrace.units import count, duration, share

SLOW_INTERRUPTS = 10
"""So many interrupts must be delayed in a stage: one alone may be the host's bad moment."""
SLOW_SHARE = 0.01
"""From this share on, that is a warning."""


def stays_masked(s: Subject) -> Iterator[Finding]:
    """A line that is masked to the end: who does not unmask it?"""
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


_GUEST_EOI = (
    "slow-guest-eoi",
    "for the guest to end them",
    "The guest's vCPU did not run, had interrupts disabled, or its handler is slow; the device stays masked meanwhile.",
    "look for steal time in the guest and for vCPUs that share a CPU; pin vCPUs; look at the guest's driver",
)


def delays(s: Subject) -> Iterator[Finding]:
    """Stages in which many interrupts waited for longer than `traits.SLOW_NS`."""
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
            sampled(f"delayed by {duration(SLOW_NS[key])} or longer", sample, measured),
        )
