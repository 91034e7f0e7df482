"""The frames that everything after the reconstructor shares: their columns, types and meaning.

Instants end in `_at` and are in ns of the trace's clock; durations end in `_ns`. What is not known is null.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import pandas as pd

PATHS = ("kernel", "hybrid", "userspace", "held", "unknown")
ORIGINS = ("hardware", "resignal", "pending", "software", "unknown")
OUTCOMES = ("complete", "open", "headless", "lossy", "cancelled")
PROOFS = ("checked", "assumed")
STATES = ("off", "userspace", "kernel", "hybrid", "unknown")

STAGES = ("raised_at", "signalled_at", "injected_at", "acknowledged_at", "unmasked_at", "eoi_at")

INTERRUPTS: dict[str, tuple[str, str]] = {
    "id": ("Int64", "number of the interrupt in this trace, from 1, in order of closing"),
    "parent_id": ("Int64", "of a resignal: the interrupt whose unmask found the line still asserted"),
    "device": ("Int64", "row of the device table"),
    "bdf": ("string", "PCI address of the device"),
    "vm": ("string", "name of the VM"),
    "vm_pid": ("Int64", "process of the VM"),
    "host_irq": ("Int64", "host interrupt number"),
    "gsi": ("Int64", "the guest's GSI"),
    "path": ("string", "kernel, hybrid, userspace, held, unknown"),
    "origin": ("string", "hardware, resignal, pending, software, unknown"),
    "outcome": ("string", "complete, open, headless, lossy, cancelled"),
    "coalesced": ("boolean", "merged into a delivery that the guest had not acknowledged"),
    "raised_at": ("Int64", "handler entry; resignal: the unmask that found the line asserted; software: the write"),
    "signalled_at": ("Int64", "the eventfd was signalled (userspace path: QEMU took it up)"),
    "injected_at": ("Int64", "the line was raised in the guest's interrupt controller"),
    "acknowledged_at": ("Int64", "guest EOI, or on the userspace path the first trapped BAR access"),
    "unmasked_at": ("Int64", "the first unmask that returned 0 and nothing contradicts"),
    "eoi_at": ("Int64", "guest EOI, where it was seen"),
    "unmask_proof": ("string", "checked: a nested pci_check_and_unmask_intx = 1 or enable_irq was seen; assumed"),
    "signal_ns": ("Int64", "raised to signalled"),
    "inject_ns": ("Int64", "signalled to injected"),
    "guest_ns": ("Int64", "injected to acknowledged"),
    "unmask_ns": ("Int64", "acknowledged to unmasked"),
    "masked_ns": ("Int64", "raised to unmasked: the device cannot interrupt"),
    "bar_accesses": ("Int64", "trapped BAR accesses from this interrupt to the next; null if not recorded"),
    "reentries": ("Int64", "guest acknowledgements between assertion and QEMU's EOI"),
}

DEVICE_STATES: dict[str, tuple[str, str]] = {
    "device": ("Int64", "row of the device table"),
    "bdf": ("string", "PCI address of the device"),
    "vm": ("string", "name of the VM"),
    "state": ("string", "off, userspace, kernel, hybrid, unknown: how interrupts would be delivered"),
    "bars_mapped": ("boolean", "the guest reaches the BARs without a trap; null if not known"),
    "begin_at": ("Int64", "when it began, or the first event of the trace"),
    "end_at": ("Int64", "when it ended; null while it lasts"),
    "reason": ("string", "what made it so"),
}

COUNTERS: dict[str, tuple[str, str]] = {
    "device": ("Int64", "row of the device table; null if it belongs to none"),
    "bdf": ("string", "PCI address of the device"),
    "vm": ("string", "name of the VM"),
    "begin_at": ("Int64", "begin of the window of one second: a multiple of 1e9 ns of the trace's clock"),
    "counter": ("string", "one of COUNTER_NAMES"),
    "region": ("Int64", "BAR accesses: region number"),
    "offset": ("Int64", "BAR accesses: offset in the region; null for a total"),
    "count": ("Int64", "how many in the window; windows and rows of 0 are left out"),
}

COUNTER_NAMES = (
    "handler_calls",  # every call of vfio_intx_handler, claimed or not: what /proc/interrupts counts
    "unclaimed",  # handler calls that returned 0: a shared line
    "spurious_wakeups",  # vfio_intx_interrupt found its eventfd empty
    "noop_unmasks",  # unmasks with no interrupt in flight
    "reentries",  # guest acknowledgements between assertion and QEMU's EOI
    "bar_reads",  # trapped BAR accesses, by region and offset where known
    "bar_writes",
    "lost",  # events that were dropped; device null if it cannot be told
)


def empty(columns: dict[str, tuple[str, str]]) -> pd.DataFrame:
    """Make a frame with these columns and no rows."""
    import pandas as pd

    return pd.DataFrame({name: pd.Series(dtype=dtype) for name, (dtype, _) in columns.items()})
