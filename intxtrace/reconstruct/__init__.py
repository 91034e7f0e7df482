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

if TYPE_CHECKING:
    import pandas as pd

    from intxtrace.trace.tables import Tables

LOAD_FROM = 100_000
"""Events from which on loading the compiled machine is worth its half second."""

COMPILE_FROM = 3_000_000
"""Events from which on compiling it is, the first time on a machine: it takes some 15 s."""

_Event = namedtuple("_Event", RECORD.names or ())  # type: ignore[misc]


_Parts = list[dict[str, np.ndarray[Any, Any]]]


class Result(NamedTuple):
    """Rows that were closed: frames with the columns of `intxtrace.frames`."""

    interrupts: pd.DataFrame
    """`frames.INTERRUPTS`, in order of closing."""
    states: pd.DataFrame
    """`frames.DEVICE_STATES`, in order of ending."""
    counters: pd.DataFrame
    """`frames.COUNTERS`, window by window."""


class Reconstructor:
    """Feeds events to the state machine and collects the rows that it closes.

    Args:
        tables: the tables that the events name; they may grow between calls. A probe counts as attached if its row says
            so when `feed` first sees the row, until a `PROBE` event says otherwise; with an empty probe table every
            kind of event is taken to be recorded, BAR accesses one by one.
        clock_orders_only: timestamps order the events and tell nothing else: all durations are null.
        compile_from: number of events from which on the compiled machine is used; the default is `LOAD_FROM`, or
            `COMPILE_FROM` where nothing compiled is kept yet (`compile.prepare` compiles ahead of time).
    """

    def __init__(self, tables: Tables, *, clock_orders_only: bool = False, compile_from: int | None = None) -> None:
        self._tables = tables
        self._clock_orders_only = clock_orders_only
        self._compile_from = compile_from
        self._fed = 0
        self._probes_seen = 0
        self._state = state.new_state()
        self._block: np.ndarray[Any, Any] | None = None
        self._finished = False

    def feed(self, events: np.ndarray[Any, Any]) -> Result:
        """Take a batch of records (`intxtrace.events.RECORD`) and return the rows that it closed.

        Events are taken in the order of their timestamps, equal ones in the order of the array. Batches follow each
        other in time; only LOST, PROBE, DEVICE and VM may be older than what was fed before.
        """
        if self._finished:
            raise ValueError("finish() was called: make a new Reconstructor")
        self._fed += len(events)
        if self._block is None and self._worth_compiling():
            self._block = state.to_block(self._state)
            self._state = state.views(self._block)
        self._see_probes()
        batch = np.ascontiguousarray(_sorted(events)).view(state.EVENT)
        vm_pids = [vm.pid for vm in self._tables.vms]
        device_pids = [device.vm_pid or 0 for device in self._tables.devices]
        if self._block is None:
            return self._frames(self._interpret(batch, vm_pids, device_pids))
        pids = np.array(vm_pids, np.int64), np.array(device_pids, np.int64)
        return self._frames(self._compute(self._block, batch, pids))

    def _worth_compiling(self) -> bool:
        if self._compile_from is not None:
            return self._fed >= self._compile_from
        if self._fed < LOAD_FROM:
            return False
        from intxtrace.reconstruct.compile import is_kept

        return self._fed >= COMPILE_FROM or is_kept()

    def _interpret(self, batch: np.ndarray[Any, Any], vm_pids: list[int], device_pids: list[int]) -> _Parts:
        """Run the machine as plain Python."""
        events = list(map(_Event._make, batch.tolist()))
        parts: _Parts = []
        at = 0
        while True:
            self._state = state.grown(self._state)
            at = machine.run(self._state, events, at, vm_pids, device_pids)
            parts.append(state.emptied(self._state))
            if at >= len(events):
                return parts

    def _compute(self, block: np.ndarray[Any, Any], batch: np.ndarray[Any, Any], pids: tuple[Any, Any]) -> _Parts:
        """Run the machine as compiled code."""
        from intxtrace.reconstruct.compile import compiled_machine

        run = compiled_machine()
        parts: _Parts = []
        at = 0
        while True:
            before = at
            at = run(block[0], batch, at, *pids)
            parts.append(state.emptied(self._state))
            if at >= len(batch):
                return parts
            if at == before:
                block = self._block = state.to_block(self._state)
                self._state = state.views(block)

    def finish(self) -> Result:
        """Close what is in flight, as the trace ends here, and return the last rows."""
        if self._finished:
            raise ValueError("finish() was called already")
        self._finished = True
        self._state = state.grown(self._state if self._block is None else state.to_lists(self._state))
        machine.finish(self._state)
        return self._frames([state.emptied(self._state)])

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
        if new and self._block is None:
            self._state = state.with_probes(self._state, new)
        elif new:
            self._block = state.to_block(state.with_probes(state.to_lists(self._state), new))
            self._state = state.views(self._block)

    def _frames(self, parts: list[dict[str, np.ndarray[Any, Any]]]) -> Result:
        rows = {table: np.concatenate([part[table] for part in parts]) for table in state.OUTPUTS}
        return Result(
            interrupts_frame(rows["interrupt_rows"], self._tables, self._clock_orders_only),
            states_frame(rows["state_rows"], self._tables),
            counters_frame(rows["counter_rows"], self._tables),
        )


def _sorted(events: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    ts = events["ts"]
    if len(ts) < 2 or bool((ts[1:] >= ts[:-1]).all()):
        return events
    return events[np.argsort(ts, kind="stable")]
