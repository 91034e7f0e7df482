"""What the state machine remembers: small tables of integers, and one hash map from identities to their rows.

Every table exists in two shapes with the same fields: a numpy structured array for the compiled machine, and a list
of objects with slots for the interpreted one. Both are read and written as `table[row].field`, so that
`machine.py` is one text for both. All numbers are signed: mixing in unsigned ones would make numba count in floating
point. Kernel pointers are identities here, so their sign does not matter.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from intxtrace.errors import IntxtraceError
from intxtrace.events import RECORD, Kind
from intxtrace.reconstruct.slots import slot_of

HANDED_OUT = -2
"""Of `handler_interrupt`: the interrupt that the handler signalled has ended before the handler returned."""

NULL = -(1 << 63)
"""A missing instant or number."""

MAX_IN_FLIGHT = 64
"""Interrupts of one device that may be in flight at once, resignals and those that wait for their EOI included."""

MAX_OFFSETS = 1 << 16
"""BAR offsets that are counted one by one in a window; a guest may touch any number of them."""

SIGNED = {name: RECORD[name].str.replace("u", "i") for name in RECORD.names or ()}
"""The fields of `RECORD`, as signed numbers of the same width."""

EVENT = np.dtype(list(SIGNED.items()))
"""`RECORD` with all fields signed."""

Events = np.ndarray[Any, Any] | Mapping[str, np.ndarray[Any, Any]]
"""Events as records (`RECORD`), or column by column: arrays of the dtypes of `RECORD`'s fields, of one length."""

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
TAG_WORK = 11  # (struct work_struct, events.Work) -> row of devices

FIELDS: dict[str, tuple[str, ...]] = {
    # The machine itself: fill levels, and what belongs to no table. One row.
    "machine": (
        "n_devices",
        "n_vms",
        "n_lines",
        "n_tasks",
        "n_slots",
        "slot_rows",  # rows of the hash map in use, a power of two
        "n_probes",
        "n_bars",
        "n_interrupts",  # rows ever taken from the pool
        "n_live",
        "free",  # chain of free rows of the pool
        "next_id",
        "now",
        "window",  # begin of the counting window, NULL before the first event
        "lost",  # events lost in this window, of no known device
        "injections",  # calls that raised a line: equal instants do not tell which came first
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
        "trigger",  # eventfd_ctx that vfio signals, 0 not known or none
        "no_trigger",  # 1: none is set
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
        "acker",  # process or thread whose EOIs of an unnamed VM were its own, 0
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
        "qemu_kind",  # the QEMU call that waits for its kernel call, 0
        "qemu",  # its VFIODevice, 0 if nothing is to be learned of it
        "qemu_at",
        "deassert_at",  # kvm_set_irq level 0, source 0
        "resampler_ack",  # 1: the guest's EOI that it handles reached irqfd_resampler_ack
        "ack_at",  # irqfd_resampler_ack
        "ack_vm",
        "ack_gsi",
        "acked",  # the one device that an EOI of an unnamed VM was for, -1
        "notify_at",  # kvm_resample_fd_notify
        "exit_at",  # KVM_EXIT_IOAPIC_EOI
        "vcpu",  # 1: it runs a guest
        "write_at",  # eventfd_write
        "write_ctx",
        "set_irqs_device",  # its last VFIO_DEVICE_SET_IRQS for INTx
        "set_irqs_flags",  # of the call that is open
        "set_irqs_last",
        "proof",  # inside an unmask: the line was really unmasked
        "unmasking",  # the device that it is unmasking, -1
        "unmasking_since",  # `unmasks_since` of that device when it entered
        "claims",  # `claims` of that device when it entered, or when the line was seen to open
        "seen_at",  # its last event
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
        "fresh",  # number of its injection while kvm_set_irq has not returned, else 0
        "doomed",  # its delivery was torn down before the guest acknowledged it
        "unshown",  # the guest acknowledged it, and no probe could show when
        "final",  # evidence that comes later is not to be trusted
        "doubtful",  # EOIs of an unnamed VM that may have been for it
        "signaller",  # thread whose unmask ioctl is to signal it before it returns, 0
        "missed",  # its signal may have been missed: by a kprobe, before the trace, or with what was lost
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

CAPACITY = {
    "machine": 1,
    "devices": 1 << 14,
    "vms": 1 << 18,
    "lines": 1 << 18,
    "tasks": 1 << 16,
    "interrupts": 1 << 18,
    "probes": 1 << 16,
    "bars": MAX_OFFSETS + ROOM,
    "slots": 1 << 21,
    "interrupt_rows": (1 << 18) + (1 << 15),
    "state_rows": 1 << 17,
    "counter_rows": 1 << 18,
}
"""Rows that the tables may have, at most: far more than a host ever has, so that only a damaged trace gets there.

Of threads those not seen for longest are forgotten; beyond the others a trace is refused. The compiled shape has all
rows from the start, but the operating system gives memory only to those that are used.
"""

BLOCK = np.dtype([*((table, DTYPES[table], (rows,)) for table, rows in CAPACITY.items()), ("kinds", "<i8", (N_KINDS,))])
"""The compiled shape."""

_FIRST_ROWS = 32
"""Rows of a table of the interpreted shape at first: a Reconstructor of a small trace should cost little."""

_FIRST_SLOTS = 256
"""Rows of either shape's hash map at first, a power of two."""


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
    return with_room(state)


def _blank(table: str, rows: int) -> list[Any]:
    return [_ROWS[table]() for _ in range(rows)]


def with_room(state: State) -> State:
    """Return the state, in its shape, with room in every table for what one event may add (`machine.has_room`).

    Raises:
        IntxtraceError: a table would be larger than `CAPACITY`.
    """
    used = _used(state)
    if used["tasks"] + ROOM > CAPACITY["tasks"]:
        _forget_tasks(state)
        used = _used(state)
    for table, count in used.items():
        if count + ROOM > CAPACITY[table]:
            raise IntxtraceError(
                f"the trace names more {table.replace('_', ' ')} than any host has, so it is damaged or forged; "
                "record again, or read a part of it"
            )
    tables = state._asdict()
    if isinstance(state.machine, list):
        for table, count in used.items():
            missing = min(max(2 * (count + ROOM), _FIRST_ROWS), CAPACITY[table]) - len(tables[table])
            if count + ROOM > len(tables[table]):
                tables[table] = tables[table] + _blank(table, missing)
    return _with_slots(State(**tables))


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


def _forget_tasks(state: State) -> None:
    """Keep the half of the threads that were seen last, under new numbers."""
    tasks = rows_of(state, "tasks", _get(state, "n_tasks"))
    kept = np.sort(np.argsort(tasks["seen_at"], kind="stable")[len(tasks) // 2 :])
    number = np.full(len(tasks), -1)
    number[kept] = np.arange(len(kept))
    _fill(state, "tasks", tasks[kept])
    blank = np.zeros(len(tasks) - len(kept), DTYPES["tasks"])
    _fill(state, "tasks", blank, len(kept))
    slots = rows_of(state, "slots", _get(state, "slot_rows"))
    of_task = slots["tag"] == TAG_TASK
    slots["value"][of_task] = number[slots["value"][of_task]]
    slots["tag"][of_task & (slots["value"] < 0)] = 0
    _set(state, "n_tasks", len(kept))
    _set(state, "n_slots", int((slots["tag"] != 0).sum()))
    _fill(state, "slots", _hashed(slots, len(slots)))


def _with_slots(state: State) -> State:
    """Make the hash map larger if it is half full."""
    needed, rows = 2 * (_get(state, "n_slots") + ROOM), _get(state, "slot_rows")
    if needed <= rows:
        return state
    entries = rows_of(state, "slots", rows)
    rows = max(rows, _FIRST_SLOTS)
    while rows < 2 * needed:
        rows *= 2
    if rows > CAPACITY["slots"]:
        raise IntxtraceError("the trace names more objects than any host has, so it is damaged or forged; record again")
    if isinstance(state.slots, list):
        state = state._replace(slots=_blank("slots", rows))
    _fill(state, "slots", _hashed(entries, rows))
    _set(state, "slot_rows", rows)
    return state


def _hashed(entries: np.ndarray[Any, Any], rows: int) -> np.ndarray[Any, Any]:
    """Make the rows of a hash map, a power of two."""
    slots = _blank("slots", rows)
    for tag, a, b, value in entries[entries["tag"] != 0].tolist():
        slot = slots[slot_of(slots, rows, tag, a, b)]
        slot.tag, slot.a, slot.b, slot.value = tag, a, b, value
    return _rows("slots", slots)


def _get(state: State, field: str) -> int:
    m = state.machine[0]
    return int(m[field] if isinstance(m, np.void) else getattr(m, field))


def used_rows(state: State, field: str) -> int:
    """Return one of the fill levels in `machine`."""
    return _get(state, field)


def _set(state: State, field: str, value: int) -> None:
    if isinstance(state.machine, list):
        setattr(state.machine[0], field, value)
    else:
        state.machine[field][0] = value


def _fill(state: State, table: str, rows: np.ndarray[Any, Any], begin: int = 0) -> None:
    """Put rows into a table, from `begin` on."""
    filled = map(_ROWS[table], rows.tolist()) if isinstance(state.machine, list) else rows
    getattr(state, table)[begin : begin + len(rows)] = filled


def to_block(state: State) -> np.ndarray[Any, Any]:
    """Turn the interpreted shape into the compiled one: one record that holds all tables.

    One record, because numba passes a record as one pointer; it would pass a dozen arrays to every function, counting
    references.
    """
    block = np.zeros(1, BLOCK)
    for table in FIELDS:
        rows = rows_of(state, table, len(getattr(state, table)))
        block[table][0][: len(rows)] = rows
    block["kinds"][0] = state.kinds
    return block


def views(block: np.ndarray[Any, Any]) -> State:
    """Return the tables of the compiled shape, as arrays that share its memory."""
    return State(**{name: block[name][0] for name in State._fields})


def to_lists(state: State) -> State:
    """Turn the compiled shape, as `views`, into the interpreted one."""
    used = {"machine": 1, "slots": _get(state, "slot_rows")} | _used(state)
    tables = {
        table: [] if table in OUTPUTS else [_ROWS[table](row) for row in getattr(state, table)[: used[table]].tolist()]
        for table in FIELDS
    }
    return with_room(State(**tables, kinds=state.kinds.tolist()))


def with_probes(state: State, new: list[tuple[int, int, int]]) -> State:
    """Return the state, in its shape, with more probes: (row of the probe table, kind, attached)."""
    for probe in new:
        state = with_room(state)
        count = _get(state, "n_probes")
        _fill(state, "probes", np.array([probe], DTYPES["probes"]), count)
        _set(state, "n_probes", count + 1)
        state.kinds[probe[1]] += probe[2]
    return state


def rows_of(state: State, table: str, count: int) -> np.ndarray[Any, Any]:
    """Copy the first rows of a table into a structured array."""
    rows = getattr(state, table)[:count]
    return rows.copy() if isinstance(rows, np.ndarray) else _rows(table, rows)


def _rows(table: str, rows: list[Any]) -> np.ndarray[Any, Any]:
    values = [tuple(getattr(row, name) for name in FIELDS[table]) for row in rows]
    try:
        return np.array(values, DTYPES[table])
    except OverflowError:  # counts of a damaged trace: they wrap, as they do in the compiled shape
        return np.array([tuple((n + (1 << 63)) % (1 << 64) - (1 << 63) for n in row) for row in values], DTYPES[table])


Columns = dict[str, np.ndarray[Any, Any]]
"""A table column by column: int64, shape (rows,)."""


def emptied(state: State) -> dict[str, Columns]:
    """Take the rows that are ready to be handed out, by table."""
    taken = {}
    for table, fill in OUTPUTS.items():
        rows = getattr(state, table)[: _get(state, fill)]
        taken[table] = _columns(rows if isinstance(rows, np.ndarray) else _rows(table, rows))
        _set(state, fill, 0)
    return taken


def _columns(rows: np.ndarray[Any, Any]) -> Columns:
    names = rows.dtype.names or ()
    matrix = rows.view(np.int64).reshape(len(rows), len(names))
    columns = np.empty((len(names), len(rows)), np.int64)
    for begin in range(0, len(rows), _TRANSPOSED):
        columns[:, begin : begin + _TRANSPOSED] = matrix[begin : begin + _TRANSPOSED].T
    return dict(zip(names, columns, strict=True))


_TRANSPOSED = 1024
"""Rows turned into columns at a time: they stay in the CPU's cache."""
