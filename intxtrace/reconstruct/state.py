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

HANDED_OUT = -2
"""Of `handler_interrupt`: the interrupt that the handler signalled has ended before the handler returned."""

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
        "n_probes",
        "n_bars",
        "n_interrupts",  # rows ever taken from the pool
        "n_live",
        "free",  # chain of free rows of the pool
        "next_id",
        "now",
        "window",  # begin of the counting window, NULL before the first event
        "lost",  # events lost in this window, of no known device
        "woken",  # the device whose irqfd was woken last, and on which CPU
        "woken_cpu",
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
        "claims",  # how often its handler claimed the line
        "unmasks_open",  # calls of its unmask that have been entered and have not returned
        "unmasks_since",  # number of the first of them; those before are forgotten
        "proof_at",  # when one of them was seen to open the line, NULL
        "virq_disabled",  # the guest set DisINTx (or PM suspended it): unmasks are no-ops
        "shared_mode",  # pci_check_and_unmask_intx was seen: vdev->pci_2_3
        "handler_at",  # entry of the handler that runs now, NULL
        "handler_interrupt",  # what it signalled, -1; HANDED_OUT once that has ended
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
        "unmasking",  # the device that it is unmasking, -1
        "unmasking_since",  # `unmasks_since` of that device when it entered
        "claims",  # `claims` of that device when it entered, or when the line was seen to open
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
        "assumed",  # injected inside the wake-up, unless an irqfd_inject follows
        "msi",  # injected as an MSI: a split irqchip
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

DTYPES = {table: np.dtype([(name, "<i8") for name in names]) for table, names in FIELDS.items()}

OUTPUTS = {"interrupt_rows": "out_interrupts", "state_rows": "out_states", "counter_rows": "out_counters"}
"""Tables of rows that are ready, and the fields of `machine` that say how many there are."""

ROOM = 8
"""Rows that one event may need in a table, at most."""

_CAPACITY = {
    "machine": 1,
    "devices": 64,
    "vms": 64,
    "lines": 64,
    "tasks": 1024,
    "interrupts": 1024,
    "probes": 1024,
    "bars": 1024,
    "slots": 4096,
    "interrupt_rows": 16384,
    "state_rows": 1024,
    "counter_rows": 4096,
}
"""Rows of the tables in the compiled shape; all but `machine` times the same power of four where that is too small."""


class State(NamedTuple):
    """All tables. `kinds[k]`: how many attached probes can make events of kind k."""

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
    state = State(**{table: _blank(table, 1) for table in FIELDS}, kinds=[0] * N_KINDS)
    machine = state.machine[0]
    machine.free = -1
    machine.next_id = 1
    machine.woken = -1
    machine.now = machine.window = NULL
    return grown(state)


def _blank(table: str, rows: int) -> list[Any]:
    return [_ROWS[table]() for _ in range(rows)]


def grown(state: State) -> State:
    """Return the state, in the interpreted shape, with every table that is nearly full made larger.

    The machine stops before an event for which a table could be too small (`machine.has_room`).
    """
    tables = state._asdict()
    for table, count in _used(state).items():
        if len(tables[table]) < count + 2 * ROOM:
            tables[table] = tables[table] + _blank(table, count + 2 * ROOM)
    if len(state.slots) < 2 * (state.machine[0].n_slots + 2 * ROOM):
        entries = [(slot.tag, slot.a, slot.b, slot.value) for slot in state.slots]
        tables["slots"] = _hashed(entries, max(64, 2 * len(entries)))
    return State(**tables)


def _used(state: State) -> dict[str, int]:
    """Return how many rows of each table are in use, or may be once all that is in flight is handed out."""
    m = state.machine[0]
    used = {name: int(m[name] if isinstance(m, np.void) else getattr(m, name)) for name in FIELDS["machine"]}
    return {
        "devices": used["n_devices"],
        "vms": used["n_vms"],
        "lines": used["n_lines"],
        "tasks": used["n_tasks"],
        "interrupts": used["n_interrupts"],
        "probes": used["n_probes"],
        "bars": used["n_bars"],
        "interrupt_rows": used["n_live"],
        "state_rows": 4 * used["n_devices"],
        "counter_rows": 9 * used["n_devices"] + used["n_bars"],
    }


def _hashed(entries: list[tuple[int, int, int, int]], size: int) -> list[Any]:
    """Make the rows of a hash map of `size` slots, a power of two."""
    from intxtrace.reconstruct.identity import slot_of

    slots = _blank("slots", size)
    for tag, a, b, value in entries:
        if tag:
            slot = slots[slot_of(slots, tag, a, b)]
            slot.tag, slot.a, slot.b, slot.value = tag, a, b, value
    return slots


def to_block(state: State) -> np.ndarray[Any, Any]:
    """Turn either shape into the compiled one with room in every table: one record that holds all tables.

    One record, because numba passes a record as one pointer; it would pass a dozen arrays to every function, counting
    references. Its capacities are part of its type, so growing one means compiling anew.
    """
    used = _used(state)
    scale = 1
    while any(count + 2 * ROOM > _CAPACITY[table] * scale for table, count in used.items()):
        scale *= 4
    slots = len(state.slots)
    while 2 * (int(rows_of(state, "machine", 1)["n_slots"][0]) + 2 * ROOM) > _CAPACITY["slots"] * scale:
        scale *= 4
    capacity = {table: rows if table == "machine" else rows * scale for table, rows in _CAPACITY.items()}
    dtype = [(table, DTYPES[table], (rows,)) for table, rows in capacity.items()]
    block = np.zeros(1, np.dtype([*dtype, ("kinds", "<i8", (N_KINDS,))]))
    for table, rows in capacity.items():
        if table == "slots":
            entries = rows_of(state, "slots", slots).tolist()
            filled = rows_of(state._replace(slots=_hashed(entries, rows)), "slots", rows)
        else:
            filled = rows_of(state, table, min(len(getattr(state, table)), rows))
        block[table][0][: len(filled)] = filled
    block["kinds"][0] = state.kinds
    return block


def views(block: np.ndarray[Any, Any]) -> State:
    """Return the tables of the compiled shape, as arrays that share its memory."""
    return State(**{name: block[name][0] for name in State._fields})


def to_lists(state: State) -> State:
    """Turn the compiled shape, as `views`, into the interpreted one."""
    tables = {
        table: [] if table in OUTPUTS else [_ROWS[table](row) for row in getattr(state, table).tolist()]
        for table in FIELDS
    }
    return State(**tables, kinds=state.kinds.tolist())


def with_probes(state: State, new: list[tuple[int, int, int]]) -> State:
    """Return the state, in the interpreted shape, with more probes: (row of the probe table, kind, attached)."""
    m = state.machine[0]
    probes = state.probes[: m.n_probes] + [_ROWS["probes"](row) for row in new]
    m.n_probes = len(probes)
    for _, kind, on in new:
        state.kinds[kind] += on
    return grown(state._replace(probes=probes))


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
        if isinstance(state.machine, np.ndarray):
            rows[table] = rows_of(state, table, int(state.machine[fill][0]))
            state.machine[fill][0] = 0
        else:
            rows[table] = rows_of(state, table, getattr(state.machine[0], fill))
            setattr(state.machine[0], fill, 0)
    return rows
