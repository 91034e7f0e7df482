"""Diagnosis: which path a device's interrupts take, and why it is not the kernel's; why no MSI."""

from __future__ import annotations

import os
from collections.abc import Iterator

from intxtrace.analysis.results import Evidence, Finding
from intxtrace.analysis.subject import Subject
from intxtrace.events import SetIrqs
from intxtrace.qemu_options import QemuOptions, is_on

FALLEN_BACK_NS = 1_000_000_000
"""A bypass that failed counts if it was missed for so long: QEMU tries again when the guest changes its routing."""


def _took(subject: Subject, path: str) -> Evidence:
    counts = subject.summary.counts
    return Evidence(f"interrupts on the {path} path", counts.path[path], counts.total)


def slow_path(s: Subject) -> Iterator[Finding]:
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


def split(s: Subject) -> Iterator[Finding]:
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


def refused(s: Subject) -> Iterator[Finding]:
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


def msi_unused(s: Subject) -> Iterator[Finding]:
    """A device that can do better than INTx, and is not let."""
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
