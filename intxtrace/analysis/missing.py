"""What an imported recording leaves unknown, and how to record it: from the kinds of events that it has, no guessing.

Kprobe definitions are in the words of `importers.ftrace_dialect`, for x86-64.
"""

from __future__ import annotations

from collections.abc import Collection

from intxtrace.analysis.results import DeviceSummary, Missing
from intxtrace.trace.metadata import Metadata
from intxtrace.units import plural

_HANDLER = (
    "p:intx/handler vfio_intx_handler irq=%di:s32 dev=%si:x64 w0=+0(%si):x64 w8=+8(%si):x64 and "
    "r:intx/handler_ret vfio_intx_handler ret=$retval:s32, or the tracepoints irq:irq_handler_entry and _exit"
)
_UNMASK = (
    "p:intx/unmask vfio_pci_intx_unmask_handler vdev=%di:x64 and "
    "r:intx/unmask_ret vfio_pci_intx_unmask_handler ret=$retval:s32"
)
_IRQFD = "kprobes irqfd_wakeup and irqfd_inject with gsi, resamplefd and eventfd, or the tracepoint kvm:kvm_set_irq"
_QEMU = "QEMU's -trace 'vfio_*intx*', or its functions as uprobes"
_REGIONS = "QEMU's -trace 'vfio_region_*'"
_ACK = (
    "the tracepoint kvm:kvm_ack_irq, or p:intx/acked_irq kvm_notify_acked_irq kvm=%di:x64 irqchip=%si:u32 pin=%dx:u32"
)


def missing(metadata: Metadata, recorded: Collection[str], devices: Collection[DeviceSummary]) -> tuple[Missing, ...]:
    """Say what cannot be told of these devices.

    Args:
        metadata: of the recording; one of our own has its probe table to say this.
        recorded: names of the kinds of events that it can have.
        devices: what was found.
    """
    source = metadata.extra.get("imported_from")
    if not isinstance(source, str):
        return ()
    total = sum(device.counts.total for device in devices)
    on_path = {path: sum(device.counts.path[path] for device in devices) for path in ("kernel", "userspace", "unknown")}
    no_origin = sum(device.counts.origin["unknown"] for device in devices)
    found = []
    if metadata.clock == "none":
        how = "QEMU's -msg timestamp=on" if source.startswith("QEMU") else "echo mono > /sys/kernel/tracing/trace_clock"
        found.append(Missing("every duration: the recording has no times", how))
    if source.startswith("QEMU"):
        found.append(Missing("interrupts that KVM delivers, for they never reach QEMU", _HANDLER))
    if no_origin and "HANDLER_EXIT" not in recorded:
        found.append(Missing(f"how {plural(no_origin, 'interrupt')} came about", _HANDLER))
    if total and "UNMASK_EXIT" not in recorded:
        found.append(Missing("when the device was unmasked, and which unmask found it asserted still", _UNMASK))
    if on_path["unknown"] and not {"IRQFD_WAKEUP", "KVM_SET_IRQ"} & set(recorded):
        found.append(Missing(f"the path of {plural(on_path['unknown'], 'interrupt')}", _IRQFD))
    if on_path["kernel"] and not {"KVM_ACK", "RESAMPLER_ACK"} & set(recorded):
        found.append(Missing("when the guest ended its interrupts", _ACK))
    if on_path["userspace"] and "QEMU_EOI" not in recorded:
        found.append(Missing("when QEMU took and acknowledged interrupts", _QEMU))
    if on_path["userspace"] and not {"QEMU_REGION_READ", "QEMU_REGION_WRITE", "QEMU_REGION_COUNT"} & set(recorded):
        found.append(Missing("the BAR accesses that QEMU trapped", _REGIONS))
    return tuple(found)
