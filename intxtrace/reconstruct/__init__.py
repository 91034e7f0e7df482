"""From events to interrupts, device states and counters: pure, incremental, the same rows for any cut into batches.

```
reconstructor = Reconstructor(tables)
for batch in batches:                       # arrays of intxtrace.events.RECORD
    interrupts, states, counters = reconstructor.feed(batch)
interrupts, states, counters = reconstructor.finish()
```

The pass over the events is in `machine.py`, what it remembers in `state.py`. A row is handed out when it is closed:
interrupts of one device oldest first, a device state when the next one begins, counters when their window is over.
"""

from __future__ import annotations

from collections import namedtuple
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from intxtrace.events import RECORD, Kind
from intxtrace.reconstruct import machine, state
from intxtrace.reconstruct.result import counters_frame, interrupts_frame, states_frame
from intxtrace.reconstruct.vocabulary import HELD

if TYPE_CHECKING:
    import pandas as pd

    from intxtrace.trace.tables import Tables

LOAD_FROM = 100_000
"""Events from which on loading the compiled machine is worth its half second."""

COMPILE_FROM = 1_500_000
"""Events from which on compiling it is, the first time on a machine: it takes some 10 s."""

_BLOCK = 1 << 13
"""Events assembled at a time for the compiled machine: they stay in the CPU's cache."""

_Event = namedtuple("_Event", RECORD.names or ())  # type: ignore[misc]

_Parts = list[dict[str, state.Columns]]


class Result(NamedTuple):
    """Rows that were closed: frames with the columns of `intxtrace.frames`."""

    interrupts: pd.DataFrame
    """`frames.INTERRUPTS`, in order of closing."""
    states: pd.DataFrame
    """`frames.DEVICE_STATES`, in order of ending."""
    counters: pd.DataFrame
    """`frames.COUNTERS`, window by window."""


class Present(NamedTuple):
    """What holds now and is not closed: frames with the columns of `intxtrace.frames`."""

    states: pd.DataFrame
    """`frames.DEVICE_STATES`: the state that each device is in; `end_at` is null."""
    counters: pd.DataFrame
    """`frames.COUNTERS` of the window that is not over, BAR accesses by offset left out: only their totals."""


class Reconstructor:
    """Feeds events to the state machine and collects the rows that it closes.

    Args:
        tables: the tables that the events name; they may grow between calls. A probe counts as attached if its row says
            so when `feed` first sees the row, until a `PROBE` event says otherwise; with an empty probe table every
            kind of event is taken to be recorded, BAR accesses one by one.
        clock_orders_only: timestamps order the events and tell nothing else: all durations are null.
        compile_from: number of events from which on the compiled machine is used; the default is `LOAD_FROM`, or
            `COMPILE_FROM` where nothing compiled is kept yet (`compile.prepare` compiles ahead of time).
        expected: number of events that will come, as far as it is known.
    """

    def __init__(
        self,
        tables: Tables,
        *,
        clock_orders_only: bool = False,
        compile_from: int | None = None,
        expected: int = 0,
    ) -> None:
        self._tables = tables
        self._clock_orders_only = clock_orders_only
        self._compile_from = compile_from
        self._expected = expected
        self._fed = 0
        self._probes_seen = 0
        self._state = state.new_state()
        self._block: np.ndarray[Any, Any] | None = None
        self._parts: _Parts = []
        self._finished = False

    def feed(self, events: state.Events) -> Result:
        """Take a batch of events, and return the rows that it closed: `take` and `closed` in one."""
        self.take(events)
        return self.closed()

    def take(self, events: state.Events) -> None:
        """Take a batch of events, as records (`intxtrace.events.RECORD`) or as columns.

        Events are taken in the order of their timestamps, equal ones in the order of the array. Batches follow each
        other in time; only LOST, PROBE, DEVICE and VM may be older than what was fed before.

        Raises:
            IntxtraceError: the trace names more devices, VMs or other objects than any host has.
        """
        if self._finished:
            raise ValueError("finish() was called: make a new Reconstructor")
        self._fed += len(events["ts"])
        if self._block is None and self._worth_compiling():
            self._block = state.to_block(self._state)
            self._state = state.views(self._block)
        self._see_probes()
        ordered = _sorted(events)
        vm_pids = [vm.pid for vm in self._tables.vms]
        device_pids = [device.vm_pid or 0 for device in self._tables.devices]
        if self._block is None:
            self._interpret(ordered, vm_pids, device_pids)
        else:
            self._compute(self._block, ordered, np.array(vm_pids, np.int64), np.array(device_pids, np.int64))

    def closed(self) -> Result:
        """Return the rows that were closed since the last call. A frame has its price: do not ask for a few rows."""
        self._empty()
        rows = {table: _joined([part[table] for part in self._parts]) for table in state.OUTPUTS}
        self._parts.clear()
        return Result(
            interrupts_frame(rows["interrupt_rows"], self._tables, self._clock_orders_only),
            states_frame(rows["state_rows"], self._tables),
            counters_frame(rows["counter_rows"], self._tables),
        )

    def present(self) -> Present:
        """Return what `closed` cannot give yet, as it is now, and change nothing."""
        from intxtrace.reconstruct.present import lasting_states, open_counters

        return Present(
            states_frame(lasting_states(self._state), self._tables),
            counters_frame(open_counters(self._state), self._tables),
        )

    def masking(self) -> list[tuple[int, int | None]]:
        """Give the interrupts in flight that masked their device: when raised, and when unmasked, None if not yet.

        Those that are held are left out: their guest has DisINTx set. So is what was raised at an unknown instant.
        """
        devices = state.rows_of(self._state, "devices", state.used_rows(self._state, "n_devices"))
        pool = state.rows_of(self._state, "interrupts", state.used_rows(self._state, "n_interrupts"))
        found = []
        for row in devices["head"].tolist():
            while row >= 0:
                one = pool[row]
                if one["raised_at"] != state.NULL and one["path"] != HELD:
                    ends = [int(at) for at in (one["unmasked_at"], one["refused_at"]) if at != state.NULL]
                    found.append((int(one["raised_at"]), min(ends, default=None)))
                row = int(one["next"])
        return found

    def _empty(self) -> None:
        """Take the rows that are ready out of the machine."""
        self._parts.append(state.emptied(self._state))

    def _worth_compiling(self) -> bool:
        events = max(self._fed, self._expected)
        if self._compile_from is not None:
            return events >= self._compile_from
        return events >= COMPILE_FROM or (events >= LOAD_FROM and _is_kept())

    def _interpret(self, events: state.Events, vm_pids: list[int], device_pids: list[int]) -> None:
        """Run the machine as plain Python."""
        columns = [events[name].view(signed).tolist() for name, signed in state.SIGNED.items()]
        batch = list(map(_Event._make, zip(*columns, strict=True)))
        at = 0
        while at < len(batch):
            at = machine.run(self._state, batch, at, vm_pids, device_pids)
            self._empty()
            self._state = state.with_room(self._state)

    def _compute(self, block: np.ndarray[Any, Any], events: state.Events, *pids: np.ndarray[Any, Any]) -> None:
        """Run the machine as compiled code."""
        from intxtrace.reconstruct.compile import compiled_machine, records

        run = compiled_machine()
        scratch = np.empty(_BLOCK, state.EVENT)
        for begin in range(0, len(events["ts"]), _BLOCK):
            batch = records(events, begin, scratch)
            at = run(block[0], batch, 0, *pids)
            while at < len(batch):
                self._empty()
                state.with_room(self._state)
                at = run(block[0], batch, at, *pids)

    def finish(self) -> Result:
        """Close what is in flight, as the trace ends here, and return the rows since `closed` was called last."""
        if self._finished:
            raise ValueError("finish() was called already")
        self._finished = True
        self._empty()
        self._state = state.with_room(self._state if self._block is None else state.to_lists(self._state))
        machine.finish(self._state)
        return self.closed()

    def _see_probes(self) -> None:
        """Note the rows of the probe table that are new, and what they can show."""
        kinds = self._state.kinds
        if not self._tables.probes:
            kinds[:] = [1] * len(kinds)
            kinds[Kind.QEMU_REGION_COUNT] = 0  # It would say that accesses come counted, not one by one.
            return
        if self._probes_seen == 0:
            kinds[:] = [0] * len(kinds)  # An empty table has become one that tells.
        new = [
            (probe.id, int(Kind[name]), int(probe.state in ("attached", "fallback")))
            for probe in self._tables.probes[self._probes_seen :]
            for name in probe.kinds
            if name in Kind.__members__
        ]
        self._probes_seen = len(self._tables.probes)
        self._state = state.with_probes(self._state, new)


def must_compile(events: int) -> bool:
    """Whether a `Reconstructor` that expects so many events would have to compile, as nothing compiled is kept."""
    return events >= COMPILE_FROM and not _is_kept()


def _is_kept() -> bool:
    from intxtrace.reconstruct.compile import is_kept

    return is_kept()


def _joined(parts: list[state.Columns]) -> state.Columns:
    if len(parts) == 1:
        return parts[0]
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def _sorted(events: state.Events) -> state.Events:
    ts = np.ascontiguousarray(events["ts"])
    if len(ts) < 2 or bool((ts[1:] >= ts[:-1]).all()):
        return np.ascontiguousarray(events) if isinstance(events, np.ndarray) else events
    order = np.argsort(ts, kind="stable")
    return events[order] if isinstance(events, np.ndarray) else {name: events[name][order] for name in state.SIGNED}
