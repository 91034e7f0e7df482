"""The vocabulary of `intxtrace.events` and `intxtrace.frames` as plain integers, which are all that numba folds."""

from __future__ import annotations

from intxtrace import events, frames
from intxtrace.events import Flag, Kind

HANDLER_ENTRY = int(Kind.HANDLER_ENTRY)
HANDLER_EXIT = int(Kind.HANDLER_EXIT)
EVENTFD_SIGNAL = int(Kind.EVENTFD_SIGNAL)
EVENTFD_WRITE = int(Kind.EVENTFD_WRITE)
EVENTFD_READ = int(Kind.EVENTFD_READ)
IRQFD_WAKEUP = int(Kind.IRQFD_WAKEUP)
IRQFD_INJECT = int(Kind.IRQFD_INJECT)
KVM_SET_IRQ = int(Kind.KVM_SET_IRQ)
KVM_SET_IRQ_EXIT = int(Kind.KVM_SET_IRQ_EXIT)
KVM_ACK = int(Kind.KVM_ACK)
RESAMPLER_ACK = int(Kind.RESAMPLER_ACK)
VIRQFD_WAKEUP = int(Kind.VIRQFD_WAKEUP)
UNMASK_ENTRY = int(Kind.UNMASK_ENTRY)
UNMASK_EXIT = int(Kind.UNMASK_EXIT)
CHECKED_UNMASK = int(Kind.CHECKED_UNMASK)
ENABLE_IRQ = int(Kind.ENABLE_IRQ)
MASK = int(Kind.MASK)
CONFIG_UNMASK = int(Kind.CONFIG_UNMASK)
SET_IRQS_ENTRY = int(Kind.SET_IRQS_ENTRY)
SET_IRQS_EXIT = int(Kind.SET_IRQS_EXIT)
KVM_IRQFD_ENTRY = int(Kind.KVM_IRQFD_ENTRY)
KVM_IRQFD_EXIT = int(Kind.KVM_IRQFD_EXIT)
APIC_ACCEPT = int(Kind.APIC_ACCEPT)
MSI_SET_IRQ = int(Kind.MSI_SET_IRQ)
USERSPACE_EXIT = int(Kind.USERSPACE_EXIT)
KVM_EOI = int(Kind.KVM_EOI)
WORK_QUEUED = int(Kind.WORK_QUEUED)
WORK_STARTED = int(Kind.WORK_STARTED)
QEMU_INTERRUPT = int(Kind.QEMU_INTERRUPT)
QEMU_EOI = int(Kind.QEMU_EOI)
QEMU_ENABLE = int(Kind.QEMU_ENABLE)
QEMU_REGION_READ = int(Kind.QEMU_REGION_READ)
QEMU_REGION_WRITE = int(Kind.QEMU_REGION_WRITE)
QEMU_REGION_COUNT = int(Kind.QEMU_REGION_COUNT)
QEMU_REGION_OFFSETS = int(Kind.QEMU_REGION_OFFSETS)
QEMU_MMAPS = int(Kind.QEMU_MMAPS)
QEMU_RESAMPLE_NOTIFY = int(Kind.QEMU_RESAMPLE_NOTIFY)
LOST = int(Kind.LOST)
PROBE = int(Kind.PROBE)
DEVICE = int(Kind.DEVICE)
VM = int(Kind.VM)

FALLBACK = int(Flag.FALLBACK)
SYNTHETIC = int(Flag.SYNTHETIC)
IN_HANDLER = int(Flag.IN_HANDLER)
IN_UNMASK = int(Flag.IN_UNMASK)
IN_SET_IRQS = int(Flag.IN_SET_IRQS)
IN_VIRQFD_INJECT = int(Flag.IN_VIRQFD_INJECT)
IN_RESAMPLER_ACK = int(Flag.IN_RESAMPLER_ACK)
IN_EVENTFD_WRITE = int(Flag.IN_EVENTFD_WRITE)
IN_IRQFD_WAKEUP = int(Flag.IN_IRQFD_WAKEUP)

DATA_NONE = int(events.SetIrqs.DATA_NONE)
DATA_BOOL = int(events.SetIrqs.DATA_BOOL)
ACTION_MASK = int(events.SetIrqs.ACTION_MASK)
DATA_EVENTFD = int(events.SetIrqs.DATA_EVENTFD)
ACTION_UNMASK = int(events.SetIrqs.ACTION_UNMASK)
ACTION_TRIGGER = int(events.SetIrqs.ACTION_TRIGGER)
INTX_INDEX = events.INTX_INDEX
MSI_INDEX = 1
MSIX_INDEX = 2
NO_FD = -1
DEASSIGN = events.KVM_IRQFD_DEASSIGN
RESAMPLE = events.KVM_IRQFD_RESAMPLE
SOURCE_USERSPACE = events.SOURCE_USERSPACE
SOURCE_RESAMPLE = events.SOURCE_RESAMPLE
EPOLLIN = events.EPOLLIN
EXIT_IOAPIC_EOI = 26
WORK_IRQFD_INJECT = int(events.Work.IRQFD_INJECT)
WORK_VIRQFD_INJECT = int(events.Work.VIRQFD_INJECT)
PIC_MASTER = 0
IOAPIC = 2

KERNEL, HYBRID, USERSPACE, HELD, NO_PATH = range(len(frames.PATHS))
HARDWARE, RESIGNAL, PENDING, SOFTWARE, NO_ORIGIN = range(len(frames.ORIGINS))
COMPLETE, OPEN, HEADLESS, LOSSY, CANCELLED = range(len(frames.OUTCOMES))
CHECKED, ASSUMED = range(len(frames.PROOFS))
OFF, STATE_USERSPACE, STATE_KERNEL, STATE_HYBRID, NO_STATE = range(len(frames.STATES))
(
    HANDLER_CALLS,
    UNCLAIMED,
    SPURIOUS_WAKEUPS,
    NOOP_UNMASKS,
    REENTRIES,
    BAR_READS,
    BAR_WRITES,
    EVENTS_LOST,
) = range(len(frames.COUNTER_NAMES))

REASONS = (
    "no event has shown it yet",
    "INTx was enabled; QEMU has set up no irqfd",
    "KVM_IRQFD with a resamplefd",
    "KVM_IRQFD without a resamplefd",
    "KVM_IRQFD failed",
    "the irqfd was removed",
    "INTx was disabled",
    "MSI was enabled",
    "MSI-X was enabled",
    "the VM went",
    "the device went",
    "an interrupt took this path",
    "the BARs were mapped into the guest",
    "the BARs were unmapped from the guest",
)
(
    NOTHING_SEEN,
    ENABLED,
    IRQFD_RESAMPLE,
    IRQFD_PLAIN,
    IRQFD_FAILED,
    IRQFD_REMOVED,
    DISABLED,
    MSI_ENABLED,
    MSIX_ENABLED,
    VM_WENT,
    DEVICE_WENT,
    INTERRUPT_SEEN,
    BARS_MAPPED,
    BARS_UNMAPPED,
) = range(len(REASONS))
"""Why a device is in its state: `REASONS[code]`."""

TRACE_ENDED, TORN_DOWN, SETTLED = range(3)
"""Why an interrupt is handed out."""

WINDOW = 1_000_000_000
