"""ftrace's text (`trace`, `trace_pipe`) of a kernel-path recording -> events, tables and metadata.

```
recording = FtraceText(open("trace.txt", "rb"), "trace.txt")
for events in recording:                    # arrays of intxtrace.events.RECORD
    writer.write(events, recording.tables)
```

Read block by block, so memory is bounded by `BLOCK`; what the text does not say is 0 or null, never guessed:

- Which probes recorded it shows only in what they hit: a probe is attached from the block on that has its first event.
- The process (tgid) of a thread is known only with the option `record-tgid`, and the name and pid of a VM never.
- A tracepoint speaks only where the kprobe that tells more does not (`Flag.FALLBACK`): always, in a recording without
  kprobes; or for a hit that the kprobe missed, because it came while another kprobe was served (kprobes do not nest).
- Handlers' dev_id is the device up to 6.9 and its irq context since 6.10 (071e7310e612): whichever of the pointer and
  its first word the other events call a device.

`tracing_mark_write` is not read: what a recorder wrote into its own trace is no evidence.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

from intxtrace.errors import IntxtraceError
from intxtrace.events import RECORD, Flag, Kind
from intxtrace.importers import ftrace_scan
from intxtrace.importers.blocks import Blocks, Readable
from intxtrace.importers.compile import Scanner
from intxtrace.importers.ftrace_devices import MAX_ROWS, Additions, Devices, add, distinct, inserted
from intxtrace.importers.ftrace_dialect import (
    FIELDS,
    ID,
    KPROBE,
    OF_QEMU,
    SOURCES,
    WORDS,
    Call,
    Columns,
    columns_of,
    dialect,
)
from intxtrace.importers.ftrace_nest import Nesting
from intxtrace.importers.ftrace_scan import (
    C_HEADS,
    C_LINES,
    C_REMARKS,
    C_ROWS,
    C_TICKS,
    COUNTS,
    H_AT,
    H_TS,
    MAX_CPUS,
    R_BITS,
    R_ID,
    READ,
    ROW_COLUMNS,
    THREADED,
)
from intxtrace.importers.scan import NEWLINE, PAD
from intxtrace.trace.metadata import Metadata
from intxtrace.trace.tables import Probe, Tables

ROWS = 1 << 14
"""Lines whose columns are worked on at once: they stay in a CPU's cache."""

REMARKS = 1 << 10
"""Remarks among them."""

MAX_CARRIED = 64
"""Events of one task that are kept for the next block, because a call is open in it."""

MAX_TASKS = 4096
"""Tasks with an open call that are kept for the next block."""

_VDEV_KINDS = np.zeros(len(SOURCES), np.bool_)
"""Events whose `device` is a device whatever the kernel's version. A virqfd may be an ioeventfd's, but not with this
probe's nested unmask; a wrong one would only have to equal a handler's pointer to do harm."""
for _name in ("set_irqs", "unmask", "virqfd_wakeup", "virqfd_inject", "mask", "mask_locked", "unmask_fn"):
    _VDEV_KINDS[ID[_name]] = True

_LOST = (
    re.compile(rb"CPU:(?P<cpu>\d{1,5}) \[LOST(?: (?P<count>\d{1,18}))? EVENTS\]"),  # trace_pipe, trace
    re.compile(rb"CPU:(?P<cpu>\d{1,5}) \[(?:(?P<count>\d{1,18}) )?EVENTS DROPPED\]"),  # trace-cmd report
    re.compile(rb"##### CPU (?P<cpu>\d{1,5}) buffer started ####"),
    re.compile(rb".* \[(?P<cpu>\d{3,5})\] +[\d.]+: +PERF_RECORD_LOST lost (?P<count>\d{1,18})"),  # perf script
)
_WRITTEN = re.compile(rb"# entries-in-buffer/entries-written: (\d{1,18})/(\d{1,18})\s")


MAX_LOOKED_AT = 5000
"""Lines that are looked at to find out whether a text is of ftrace."""


def looks_like_ftrace(text: bytes) -> bool:
    """Whether one of the first lines of a text is an event of ftrace, whichever."""
    data = text + b"\n" * PAD
    stops = np.flatnonzero(np.frombuffer(data, np.uint8)[: len(text)] == NEWLINE)[:MAX_LOOKED_AT].tolist()
    begins = [0, *(stop + 1 for stop in stops)]
    return any(ftrace_scan.head(data, begin, stop)[0] >= 0 for begin, stop in zip(begins, stops, strict=False))


class FtraceText:
    """A recording as ftrace's text, or what resembles it.

    Args:
        stream: the text.
        name: what to call it in errors.
        command_line: the command that imports it, for the metadata.
        mapped: event's name in the text -> kind of events that it is, see `ftrace_dialect.dialect`.
        what: what the recording was, for the metadata.

    Raises:
        IntxtraceError: it is no such text; there is no such kind.
    """

    def __init__(
        self,
        stream: Readable,
        name: str,
        command_line: list[str] | None = None,
        mapped: dict[str, str] | None = None,
        what: str = "ftrace text",
    ) -> None:
        self.tables = Tables()
        self.lines = 0
        """Lines read."""
        self.unreadable: dict[str, int] = {}
        """Events whose text lacks what their name promises, by name; they are left out."""
        self.late = 0
        """Events whose time had to be changed: none."""
        self._blocks = Blocks(stream)
        self._mapped = mapped
        self._seen: set[int] = set()
        self._irq_context: bool | None = None
        self._vdevs = np.zeros(0, np.uint64)
        self._devices = Devices(self.tables)
        self._nesting = Nesting(self._devices)
        self._carried: Columns = {}
        self._last_ts: dict[int, int] = {}
        self._found = False
        self._ticks = 0
        self._scanner = Scanner(ftrace_scan.scan)
        self._dialect = dialect(mapped)
        self._doubles: frozenset[int] = frozenset()
        """Tracepoints that are not read any more, because a kprobe tells more."""
        self._cpus = np.zeros((2, MAX_CPUS), np.int64)
        self._heads = np.empty((2, ROWS), np.int64)
        self._rows = np.empty((ROW_COLUMNS, ROWS), np.int64)
        self._fields = np.empty((len(FIELDS), ROWS), np.int64)
        self._remarks = np.empty(REMARKS, np.int64)
        self._parts = self._read()
        self._first: list[npt.NDArray[np.void]] = []
        for part in self._parts:
            self._first += [part] if len(part) else []
            if self._found:
                break
        if not self._found:
            raise IntxtraceError(
                f"{name} is no ftrace text of a kernel-path recording: no line is one of its events; "
                "import what /sys/kernel/tracing/trace or trace_pipe printed"
            )
        self.metadata: Metadata = Metadata(
            clock="none" if self._ticks else "monotonic",
            command_line=command_line or [],
            extra={
                "imported_from": what,
                "clock_note": "a trace_clock that counts events or cycles: it only orders"
                if self._ticks
                else "the text does not name its trace_clock: timestamps are taken as ns of one clock",
            },
        )

    def __iter__(self) -> Iterator[npt.NDArray[np.void]]:
        """Hand out the events, block by block, with `tables` grown to what they name."""
        yield from self._first
        self._first.clear()
        yield from self._parts

    def _read(self) -> Iterator[npt.NDArray[np.void]]:
        """Read block by block."""
        for block in self._blocks:
            for found in self._scanner.scanned(block, self._arrays, COUNTS):
                self.lines += found[C_LINES]
                self._ticks += found[C_TICKS]
                self._found |= found[C_HEADS] > 0
                remarks = self._remarks[: found[C_REMARKS]].tolist()
                yield self._events(block.text, found[C_HEADS], found[C_ROWS], remarks)

    def _arrays(self) -> tuple[npt.NDArray[np.int64], ...]:
        tables = (self._dialect.names, self._dialect.keys, WORDS, self._cpus)
        return (*tables, self._heads, self._rows, self._fields, self._remarks)

    def _events(self, text: bytes, n_heads: int, n_rows: int, remarks: list[int]) -> npt.NDArray[np.void]:
        """Turn what was scanned into records."""
        rows, fields = self._usable(self._rows[:, :n_rows], self._fields[:, :n_rows])
        columns = columns_of(rows, fields)
        ids = columns["id"]
        is_handler, is_work = ids == ID["handler"], ids == ID["workqueue_queue_work"]
        # Forced threading (threadirqs, PREEMPT_RT): irq_forced_thread_fn calls the handler in a thread of its own.
        self._nesting.threaded |= bool((((rows[R_BITS] & THREADED) != 0) & (is_handler | is_work)).any())
        self._see_probes(ids)
        self._name_devices(columns)
        if self._carried:
            columns = {name: np.concatenate([self._carried[name], values]) for name, values in columns.items()}
        self._learn_devices(columns)
        order = np.argsort(columns["key"], kind="stable")
        wanted, held = self._nesting.nest(columns, order)
        self._carry(columns, order, held)
        chosen = np.flatnonzero(wanted & ~columns["carried"] & (columns["kind"] != 0))
        records = np.empty(len(chosen), RECORD)
        for name in RECORD.names or ():
            records[name] = columns[name][chosen]
        added = self._devices.announce(records)
        if remarks:
            self._add_losses(added, records, columns["at"][chosen], text, remarks, self._heads[:, :n_heads])
        self._note_times(records)
        return inserted(records, added)

    def _usable(
        self, rows: npt.NDArray[np.int64], fields: npt.NDArray[np.int64]
    ) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
        """Leave out the events that lack an argument, and tracepoints where a kprobe tells more."""
        keep = (rows[R_BITS] & READ) != 0
        if not keep.all():
            for number, count in zip(*np.unique(rows[R_ID][~keep], return_counts=True), strict=True):
                name = SOURCES[number].name
                self.unreadable[name] = self.unreadable.get(name, 0) + int(count)
        doubles = frozenset(
            ID[tracepoint] for tracepoint, kprobe in KPROBE.items() if (keep & (rows[R_ID] == ID[kprobe])).any()
        )
        if not doubles <= self._doubles:
            self._doubles |= doubles
            self._dialect = dialect(self._mapped, self._doubles)
            keep &= ~np.isin(rows[R_ID], list(doubles))
        return (rows, fields) if keep.all() else (rows[:, keep], fields[:, keep])

    # ---- what recorded it

    def _see_probes(self, ids: npt.NDArray[np.int8]) -> None:
        for number in np.flatnonzero(np.bincount(ids, minlength=len(SOURCES))).tolist():
            source = SOURCES[number]
            if number in self._seen:
                continue
            if number == ID["irq_handler_entry"] and not (ids == ID["irq_handler_exit"]).any():
                continue  # Alone it does not tell whose interrupt it was, and is not handed out.
            self._seen.add(number)
            if source.kind is not None:
                self.tables.probes.append(
                    Probe(
                        len(self.tables.probes),
                        name=source.name,
                        kinds=[source.kind.name],
                        state="fallback" if source.fallback else "attached",
                        method="import",
                        target=source.target,
                        resolved="events",
                        reason="a tracepoint tells less than the kprobe" if source.fallback else "",
                    )
                )

    # ---- who is who

    def _name_devices(self, c: Columns) -> None:
        """QEMU's events name their device; one that is no PCI address stays unknown, and its event is left out."""
        rows = np.flatnonzero(OF_QEMU[c["id"]])
        if len(rows):
            c["kind"][rows[c["bdf"][rows] < 0]] = 0
            rows = rows[c["bdf"][rows] >= 0]
            for address in np.unique(c["bdf"][rows]).tolist():
                c["device"][rows[c["bdf"][rows] == address]] = self._devices.row(0, address, 0)
            c["flags"][rows] |= np.uint32(Flag.SYNTHETIC)

    def _learn_devices(self, c: Columns) -> None:
        """Find out whether the handler gets the device or its irq context, and put the device into the records."""
        ids = c["id"]
        known = distinct(c["device"][_VDEV_KINDS[ids]])
        if len(known):
            self._vdevs = np.unique(np.concatenate([self._vdevs, known]))[:MAX_ROWS]
        handlers = np.flatnonzero((ids == ID["handler"]) & ~c["carried"])
        if not len(handlers):
            return
        dev, first_word = c["device"][handlers], c["w0"][handlers]
        if self._irq_context is None:
            if np.isin(dev, self._vdevs).any():
                self._irq_context = False
            elif np.isin(first_word, self._vdevs).any():
                self._irq_context = True
            else:
                # The second word of struct vfio_pci_irq_ctx (6.10) is the trigger, which the handler signals.
                signals = c["link"][ids == ID["efd_signal"]]
                if len(signals):
                    self._irq_context = bool(np.isin(c["w8"][handlers], signals).any())
        if self._irq_context:
            c["device"][handlers] = first_word

    def _carry(self, c: Columns, order: npt.NDArray[np.int64], held: npt.NDArray[np.bool_]) -> None:
        """Keep, for the next block, what each task did since the call that is open in it began."""
        keys, call = c["key"][order], c["call"]
        ends = np.flatnonzero(np.append(keys[1:] != keys[:-1], True)) if len(keys) else np.zeros(0, np.int64)
        rows: list[int] = []
        for key_end in ends[-MAX_TASKS:].tolist():
            mine: list[int] = []
            at = key_end
            while at >= 0 and keys[at] == keys[key_end] and len(mine) < MAX_CARRIED:
                row = int(order[at])
                if call[row] == Call.ENDS:
                    break
                mine.append(row)
                if call[row] != Call.NESTED or held[row]:
                    break
                at -= 1
            if mine and (call[mine[-1]] != Call.NESTED or held[mine[-1]]):
                rows += mine
        chosen = np.array(sorted(rows), np.int64)
        self._carried = {name: values[chosen] for name, values in c.items()}
        self._carried["carried"] = ~held[chosen]
        self._carried["at"] = np.full(len(chosen), -1, np.int64)

    # ---- what the recording says of itself

    def _add_losses(
        self,
        added: Additions,
        records: npt.NDArray[np.void],
        at: npt.NDArray[np.int64],
        text: bytes,
        remarks: list[int],
        heads: npt.NDArray[np.int64],
    ) -> None:
        """Add LOST where the text says that events are missing: `at` is where the records' lines begin."""
        for begin in remarks:
            cpu, count = _missing(text[begin : text.index(b"\n", begin)])
            if cpu is None:
                continue
            place = int(np.searchsorted(at, begin))
            line = int(np.searchsorted(heads[H_AT], begin))
            times = heads[H_TS]
            now = int(times[min(line, len(times) - 1)]) if len(times) else 0
            mine = records["cpu"][:place] == cpu if cpu >= 0 else np.zeros(place, np.bool_)
            before = int(records["ts"][:place][mine][-1]) if mine.any() else self._last_ts.get(cpu, 0)
            add(added, records, place, Kind.LOST, ts=now, cpu=max(cpu, 0), arg0=min(before, now), arg1=count)

    def _note_times(self, records: npt.NDArray[np.void]) -> None:
        cpus, last = np.unique(records["cpu"][::-1], return_index=True)
        self._last_ts.update(zip(cpus.tolist(), records["ts"][::-1][last].tolist(), strict=True))


def _missing(line: bytes) -> tuple[int | None, int]:
    """Return the CPU (-1: any) and the number (0: not known) of events that a remark says are missing before it."""
    for pattern in _LOST:
        if match := pattern.match(line):
            return int(match["cpu"]) & 0xFFFF, int(match.groupdict().get("count") or 0)
    if (match := _WRITTEN.match(line + b"\n")) and int(match[2]) > int(match[1]):
        return -1, int(match[2]) - int(match[1])
    return None, 0
