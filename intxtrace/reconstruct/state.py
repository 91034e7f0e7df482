"""What the state machine remembers: small tables of integers, and one hash map from identities to their rows.

Every table exists in two shapes with the same fields: a numpy structured array for the compiled machine, and a list
of objects with slots for the interpreted one (`Shape`). Both are read and written as `table[row].field`, so that
`machine.py` is one text for both. All numbers are signed: mixing in unsigned ones would make numba count in floating
point. Kernel pointers are identities here, so their sign does not matter.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from intxtrace.events import RECORD, Kind

NULL = -(1 << 63)
"""A missing instant or number."""

MAX_IN_FLIGHT = 64
"""Interrupts of one device that may be in flight at once, resignals and those that wait for their EOI included."""

MAX_OFFSETS = 1 << 16
"""BAR offsets that are counted one by one in a window; a guest may touch any number of them."""

EVENT = np.dtype([(name, RECORD[name].str.replace("u", "i")) for name in RECORD.names or ()])
"""`RECORD` with all fields signed."""

N_KINDS = max(Kind) + 1

# Tags of the hash map: what the two numbers of a key are, and what the value is.
TAG_DEVICE = 1  # (vdev or device-table id, 1 if synthetic) -> row of devices
TAG_ROW = 2  # (device-table id, 0) -> row of devices
TAG_TRIGGER = 3  # (eventfd_ctx, 0) -> row of devices
TAG_RESAMPLE = 4  # (eventfd_ctx, 0) -> row of devices
TAG_VM = 5  # (kvm, 1 if synthetic) -> row of vms
TAG_PID = 6  # (tgid, 0) -> row of vms
TAG_LINE = 7  # (row of vms, gsi) -> row of lines
TAG_QEMU = 8  # (VFIODevice, tgid) -> row of devices
TAG_TASK = 9  # (tid, cpu if tid is 0) -> row of tasks
TAG_BAR = 10  # (row of devices << 32 | region << 1 | write, offset) -> row of bars

FIELDS: dict[str, tuple[str, ...]] = {
    # The machine itself: fill levels, and what belongs to no table. One row.
    "machine": (
        "n_devices",
        "n_vms",
        "n_lines",
        "n_tasks",
        "n_slots",
        "n_bars",
        "n_interrupts",  # rows ever taken from the pool
        "n_live",
        "free",  # chain of free rows of the pool
        "next_id",
        "now",
        "window",  # begin of the counting window, NULL before the first event
        "lost",  # events lost in this window, of no known device
        "out_interrupts",
        "out_states",
        "out_counters",
    ),
    # One vfio device.
    "devices": (
        "id",  # row of the device table, -1 not known
        "bdf",  # packed address, -1 not known
        "host_irq",
        "owner",  # tgid of the process that set its interrupts up
        "vm",  # row of vms, -1
        "trigger",  # eventfd_ctx that vfio signals
        "resample",  # eventfd_ctx that unmasks
        "line",  # row of lines, -1: where its interrupts go in the guest
        "next_on_line",
        "head",  # its interrupts in flight, oldest first
        "tail",
        "in_flight",
        "masked_by",  # the interrupt that masked the line, -1
        "mask_known",  # 0 until an event shows whether vfio has the line masked
        "virq_disabled",  # the guest set DisINTx (or PM suspended it): unmasks are no-ops
        "shared_mode",  # pci_check_and_unmask_intx was seen: vdev->pci_2_3
        "handler_at",  # entry of the handler that runs now, NULL
        "handler_interrupt",  # what it signalled, -1
        "trapped",  # the interrupt that trapped BAR accesses belong to, -1
        "lost",  # events may have been dropped since the last certain raise
        "state",
        "state_at",
        "state_reason",
        "state_errno",
        "bars_known",  # bit per region
        "bars_mapped",
        "handler_calls",  # counters of this window
        "unclaimed",
        "spurious_wakeups",
        "noop_unmasks",
        "reentries",
        "bar_reads",
        "bar_writes",
        "events_lost",
    ),
    # One virtual machine.
    "vms": ("id", "pid"),
    # One GSI of one virtual machine, and the chain of devices that use it.
    "lines": ("vm", "gsi", "first"),
    # One thread: what it did last, to join with what it does next.
    "tasks": (
        "injecting",  # device whose line it raises now, -1
        "asserted",  # 1: kvm_set_irq has been called for that
        "taking",  # device whose eventfd QEMU has just read, -1
        "qemu",  # VFIODevice of a QEMU call that waits for its kernel call, 0
        "qemu_kind",
        "qemu_at",
        "deassert_at",  # kvm_set_irq level 0, source 0
        "ack_at",  # guest EOI
        "ack_vm",
        "ack_gsi",
        "resampler_ack",  # 1: that EOI reached irqfd_resampler_ack
        "notify_at",  # kvm_resample_fd_notify
        "exit_at",  # KVM_EXIT_IOAPIC_EOI
        "write_at",  # eventfd_write
        "write_ctx",
        "set_irqs_device",  # its last VFIO_DEVICE_SET_IRQS for INTx
        "set_irqs_flags",  # of the call that is open
        "set_irqs_last",
        "proof",  # inside an unmask: the line was really unmasked
    ),
    # One interrupt in flight.
    "interrupts": (
        "device",
        "next",
        "origin",
        "path",
        "raised_at",
        "sent_at",  # eventfd_signal
        "woken_at",  # irqfd_wakeup, or irqfd_inject without one
        "taken_at",  # QEMU read the eventfd
        "injected_at",
        "acknowledged_at",
        "unmasked_at",
        "refused_at",  # the unmask that found the line still asserted
        "eoi_at",
        "proof",
        "coalesced",
        "fresh",  # injected, and kvm_set_irq has not returned yet
        "doomed",  # its delivery was torn down before the guest acknowledged it
        "unshown",  # the guest acknowledged it, and no probe could show when
        "final",  # evidence that comes later is not to be trusted
        "headless",
        "lossy",
        "gsi",
        "parent_id",
        "child",
        "bar_accesses",
        "bar_open",
        "reentries",
    ),
    # One kind of event that one attached probe makes.
    "probes": ("row", "kind", "on"),
    # BAR accesses by offset in this window.
    "bars": ("device", "write", "region", "offset", "count"),
    # The hash map.
    "slots": ("tag", "a", "b", "value"),
    # Rows that are ready to be handed out.
    "interrupt_rows": (
        "id",
        "parent_id",
        "device",
        "bdf",
        "vm",
        "vm_pid",
        "host_irq",
        "gsi",
        "path",
        "origin",
        "outcome",
        "coalesced",
        "raised_at",
        "signalled_at",
        "injected_at",
        "acknowledged_at",
        "unmasked_at",
        "eoi_at",
        "unmask_proof",
        "bar_accesses",
        "reentries",
    ),
    "state_rows": ("device", "bdf", "vm", "state", "bars_mapped", "begin_at", "end_at", "reason", "errno"),
    "counter_rows": ("device", "bdf", "vm", "begin_at", "counter", "region", "offset", "count"),
}

_CAPACITY = {"machine": 1, "probes": 0, "slots": 256, "interrupt_rows": 16384, "state_rows": 1024, "counter_rows": 1024}

DTYPES = {table: np.dtype([(name, "<i8") for name in names]) for table, names in FIELDS.items()}


class State(NamedTuple):
    """All tables, in one of the two shapes. `kinds[k]`: how many attached probes can make events of kind k."""

    machine: Any
    devices: Any
    vms: Any
    lines: Any
    tasks: Any
    interrupts: Any
    probes: Any
    bars: Any
    slots: Any
    interrupt_rows: Any
    state_rows: Any
    counter_rows: Any
    kinds: Any


class _Slotted:
    """A row of the interpreted shape."""

    __slots__: tuple[str, ...] = ()

    def __init__(self, values: tuple[int, ...] | None = None) -> None:
        for name, value in zip(self.__slots__, values or (0,) * len(self.__slots__), strict=True):
            setattr(self, name, value)


_ROWS = {table: type(table, (_Slotted,), {"__slots__": names}) for table, names in FIELDS.items()}


def new_state() -> State:
    """Make empty tables, in the interpreted shape."""
    tables = {table: _blank(table, _CAPACITY.get(table, 16)) for table in FIELDS}
    state = State(**tables, kinds=[0] * N_KINDS)
    machine = state.machine[0]
    machine.free = -1
    machine.next_id = 1
    machine.now = machine.window = NULL
    return state


def _blank(table: str, rows: int) -> list[Any]:
    return [_ROWS[table]() for _ in range(rows)]


def to_arrays(state: State) -> State:
    """Turn the interpreted shape into the compiled one."""
    tables = {table: rows_of(state, table, len(getattr(state, table))) for table in FIELDS}
    return State(**tables, kinds=np.array(state.kinds, np.int64))


def to_lists(state: State) -> State:
    """Turn the compiled shape into the interpreted one."""
    tables = {table: [_ROWS[table](row) for row in getattr(state, table).tolist()] for table in FIELDS}
    return State(**tables, kinds=state.kinds.tolist())


def rows_of(state: State, table: str, count: int) -> np.ndarray[Any, Any]:
    """Copy the first rows of a table into a structured array."""
    rows = getattr(state, table)
    if isinstance(rows, np.ndarray):
        return rows[:count].copy()
    names = FIELDS[table]
    return np.array([tuple(getattr(row, name) for name in names) for row in rows[:count]], DTYPES[table])


def emptied(state: State) -> dict[str, np.ndarray[Any, Any]]:
    """Take the rows that are ready to be handed out, by table."""
    rows = {}
    for table, fill in OUTPUTS.items():
        rows[table] = rows_of(state, table, _fill(state, fill))
        if isinstance(state.machine, np.ndarray):
            state.machine[0][fill] = 0
        else:
            setattr(state.machine[0], fill, 0)
    return rows


OUTPUTS = {"interrupt_rows": "out_interrupts", "state_rows": "out_states", "counter_rows": "out_counters"}
"""Tables of rows that are ready, and the fields of `machine` that say how many there are."""


def _fill(state: State, field: str) -> int:
    machine = state.machine[0]
    return int(machine[field]) if isinstance(state.machine, np.ndarray) else int(getattr(machine, field))


def with_probes(state: State, new: list[tuple[int, int, int]]) -> State:
    """Return the state with more rows in the table of probes: (row of the probe table, kind, attached)."""
    return state._replace(probes=_joined(state.probes, [_ROWS["probes"](row) for row in new], "probes"))


def grown(state: State) -> State:
    """Return the state with every table that is nearly full made larger.

    The machine stops before an event for which a table could be too small (`machine.has_room`).
    """
    devices, bars, live = (_fill(state, name) for name in ("n_devices", "n_bars", "n_live"))
    used = {
        "devices": devices,
        "vms": _fill(state, "n_vms"),
        "lines": _fill(state, "n_lines"),
        "tasks": _fill(state, "n_tasks"),
        "interrupts": _fill(state, "n_interrupts"),
        "bars": bars,
        "interrupt_rows": live,
        "state_rows": 4 * devices,
        "counter_rows": 9 * devices + bars,
    }
    tables = state._asdict()
    for table, count in used.items():
        while len(tables[table]) < count + 2 * ROOM:
            tables[table] = _joined(tables[table], _blank(table, len(tables[table])), table)
    if len(state.slots) < 2 * (_fill(state, "n_slots") + 2 * ROOM):
        tables["slots"] = _rehashed(state.slots)
    return State(**tables)


ROOM = 8
"""Rows that one event may need in a table, at most."""


def _joined(rows: Any, more: list[Any], table: str) -> Any:
    if not isinstance(rows, np.ndarray):
        return rows + more
    names = FIELDS[table]
    return np.concatenate([rows, np.array([tuple(getattr(r, n) for n in names) for r in more], DTYPES[table])])


def _rehashed(slots: Any) -> Any:
    """Return the hash map in twice the room."""
    from intxtrace.reconstruct.identity import slot_of

    compiled = isinstance(slots, np.ndarray)
    entries = slots.tolist() if compiled else [(s.tag, s.a, s.b, s.value) for s in slots]
    larger = _blank("slots", 2 * len(entries))
    for tag, a, b, value in entries:
        if tag:
            slot = larger[slot_of(larger, tag, a, b)]
            slot.tag, slot.a, slot.b, slot.value = tag, a, b, value
    return _joined(np.zeros(0, DTYPES["slots"]), larger, "slots") if compiled else larger
