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

import os
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt

from intxtrace.errors import IntxtraceError
from intxtrace.events import RECORD, Flag, Kind, SetIrqs, format_address
from intxtrace.importers.ftrace_dialect import FLAG_OF_CALL, HELPERS, ID, KPROBE, SOURCES, Call, Events, decode
from intxtrace.importers.ftrace_lines import Gap, Lines, read
from intxtrace.importers.scan import Mask, Text
from intxtrace.trace.metadata import Metadata
from intxtrace.trace.tables import Device, Probe, Tables, Vm

BLOCK = 2 << 20
"""Bytes read at once: some 15,000 lines, whose columns stay in a CPU's cache."""

WORKERS = min(os.cpu_count() or 1, 4)
"""Threads that read columns."""

MAX_CARRIED = 64
"""Events of one task that are kept for the next block, because a call is open in it."""

MAX_TASKS = 4096
"""Tasks with an open call that are kept for the next block."""

MAX_ROWS = 1 << 16
"""Devices, and VMs, that a recording may name; more are garbage."""

_WORKING = np.dtype(
    [
        *[(name, HELPERS[name]) for name in HELPERS.names or ()],
        ("id", "i1"),
        ("key", "<i8"),  # task; per CPU: idle task, soft and hard interrupts
        ("hard", "?"),
        ("at", "<i8"),
        ("carried", "?"),  # of an earlier block: evidence, handed out already
    ]
)

_VDEV_KINDS = tuple(
    ID[name] for name in ("set_irqs", "unmask", "virqfd_wakeup", "virqfd_inject", "mask", "mask_locked", "unmask_fn")
)
"""Events whose `device` is a device whatever the kernel's version. A virqfd may be an ioeventfd's, but not with this
probe's nested unmask; a wrong one would only have to equal a handler's pointer to do harm."""


@dataclass(frozen=True)
class _Block:
    """What one block says by itself."""

    count: int
    """Lines."""
    lines: Lines
    gaps: list[Gap]
    ticks_in_ns: bool
    events: Events


def _read(block: bytes) -> _Block:
    text = Text(block)
    lines, gaps, ticks = read(text)
    return _Block(block.count(b"\n"), lines, gaps, ticks, decode(text, lines))


class FtraceText:
    """A recording as ftrace's text.

    Args:
        stream: the text.
        name: what to call it in errors.
        command_line: the command that imports it, for the metadata.

    Raises:
        IntxtraceError: it is no such text.
    """

    def __init__(self, stream: BinaryIO, name: str, command_line: list[str] | None = None) -> None:
        self.tables = Tables()
        self.lines = 0
        """Lines read."""
        self.unreadable = 0
        """Events whose text is not as their name promises; left out."""
        self._stream = stream
        self._rest = b""
        self._seen: set[int] = set()
        self._irq_context: bool | None = None
        self._threaded = False
        self._vdevs = np.zeros(0, np.uint64)
        self._contexts: dict[int, int] = {}
        self._row_of_vdev: dict[int, int] = {}
        self._row_of_bdf: dict[int, int] = {}
        self._row_of_vm: dict[int, int] = {}
        self._announced: dict[int, tuple[int, int, str, int | None]] = {}
        self._carried = np.zeros(0, RECORD), np.zeros(0, _WORKING)
        self._last_ts: dict[int, int] = {}
        self._found = False
        self._ticks_in_ns = True
        first = self._block()
        self._first: npt.NDArray[np.void] | None = self._events(_read(first)) if first else None
        if not self._found:
            raise IntxtraceError(
                f"{name} is no ftrace text of a kernel-path recording: no line is one of its events; "
                "import what /sys/kernel/tracing/trace or trace_pipe printed"
            )
        self.metadata = Metadata(
            clock="monotonic" if self._ticks_in_ns else "none",
            command_line=command_line or [],
            extra={
                "imported_from": "ftrace text",
                "clock_note": "the text does not name its trace_clock: timestamps are taken as ns of one clock"
                if self._ticks_in_ns
                else "a trace_clock that counts events or cycles: it only orders",
            },
        )

    def __iter__(self) -> Iterator[npt.NDArray[np.void]]:
        """Hand out the events, block by block, with `tables` grown to what they name."""
        if self._first is not None:
            yield self._first
            self._first = None
        # Reading the columns takes most of the time, needs nothing but the block, and numpy leaves the others run.
        with ThreadPoolExecutor(WORKERS) as pool:
            reading: deque[Future[_Block]] = deque()
            more = True
            while more or reading:
                while more and len(reading) <= WORKERS:
                    block = self._block()
                    more = bool(block)
                    if more:
                        reading.append(pool.submit(_read, block))
                if reading:
                    yield self._events(reading.popleft().result())

    def _block(self) -> bytes:
        """Read the next whole lines."""
        parts = [self._rest]
        while True:
            part = self._stream.read(BLOCK)
            if not part:
                self._rest = b""
                whole = b"".join(parts)
                return whole if not whole or whole.endswith(b"\n") else whole + b"\n"
            head, newline, tail = part.rpartition(b"\n")
            if newline:
                self._rest = tail
                return b"".join([*parts, head, newline])
            if sum(map(len, parts)) > BLOCK:
                raise IntxtraceError("a line is longer than any that ftrace prints; this is no text")
            parts.append(part)

    def _events(self, block: _Block) -> npt.NDArray[np.void]:
        """Turn a block into records; blocks come in order."""
        lines, events = block.lines, block.events
        self._ticks_in_ns &= block.ticks_in_ns
        self.lines += block.count
        self._found |= bool(len(lines.at))
        self.unreadable += events.unreadable
        records, work = events.records, np.zeros(len(events.id), _WORKING)
        for name in HELPERS.names or ():
            work[name] = events.helpers[name]
        work["id"], work["hard"], work["at"] = events.id, events.lines.hard, events.lines.at
        cpu, tid = events.lines.cpu, events.lines.tid
        on_cpu = np.where(events.lines.hard, 3, np.where(events.lines.soft, 2, 1))
        work["key"] = np.where((on_cpu > 1) | (tid == 0), -(cpu * 4 + on_cpu), tid)
        is_handler = events.id == ID["handler"]
        is_work = events.id == ID["workqueue_queue_work"]
        # Forced threading (threadirqs, PREEMPT_RT): irq_forced_thread_fn calls the handler in a thread of its own.
        self._threaded |= bool((events.lines.threaded & (is_handler | is_work)).any())
        self._see_probes(events.id)
        # Doubles, where the kprobe is one of an earlier block. (`decode` leaves out those of its own block.)
        for tracepoint, kprobe in KPROBE.items():
            if ID[kprobe] in self._seen:
                doubles = events.id == ID[tracepoint]
                records["kind"][doubles], work["call"][doubles] = 0, Call.NESTED
        records = np.concatenate([self._carried[0], records])
        work = np.concatenate([self._carried[1], work])
        self._learn_devices(records, work)
        order = np.argsort(work["key"], kind="stable")
        wanted, held = self._nest(records, work, order)
        self._carry(records, work, order, held)
        wanted &= ~work["carried"]
        rows = np.flatnonzero(wanted & (records["kind"] != 0))
        return self._with_stream_events(records[rows], work[rows], block.gaps, lines.at, lines.ts)

    # ---- what recorded it

    def _see_probes(self, ids: npt.NDArray[np.int8]) -> None:
        for number in np.unique(ids).tolist():
            source = SOURCES[number]
            if number in self._seen:
                continue
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

    def _learn_devices(self, records: npt.NDArray[np.void], work: npt.NDArray[np.void]) -> None:
        """Find out whether the handler gets the device or its irq context, and put the device into the records."""
        known = np.isin(work["id"], _VDEV_KINDS)
        self._vdevs = np.unique(np.concatenate([self._vdevs, records["device"][known]]))[:MAX_ROWS]
        handlers = np.flatnonzero((work["id"] == ID["handler"]) & ~work["carried"])
        if not len(handlers):
            return
        dev, first_word = records["device"][handlers], work["w0"][handlers]
        if self._irq_context is None:
            if np.isin(dev, self._vdevs).any():
                self._irq_context = False
            elif np.isin(first_word, self._vdevs).any():
                self._irq_context = True
            else:
                # The second word of struct vfio_pci_irq_ctx (6.10) is the trigger, which the handler signals.
                signals = records["link"][work["id"] == ID["efd_signal"]]
                if len(signals):
                    self._irq_context = bool(np.isin(work["w8"][handlers], signals).any())
        if self._irq_context:
            records["device"][handlers] = first_word

    # ---- which calls are open

    def _nest(
        self, records: npt.NDArray[np.void], work: npt.NDArray[np.void], order: npt.NDArray[np.int64]
    ) -> tuple[Mask, Mask]:
        """Give every event the call that it is nested in; return which events count, and which wait for more.

        `order` sorts by task. Calls whose return is not probed end with what cannot be inside them (`Call.ENDS`).
        """
        size = len(order)
        wanted = np.ones(size, np.bool_)
        held = np.zeros(size, np.bool_)
        if not size:
            return wanted, held
        r, w = records[order], work[order]
        place = np.arange(size)
        begins = np.ones(size, np.bool_)
        begins[1:] = w["key"][1:] != w["key"][:-1]
        kept = np.ones(size, np.bool_)
        waits = np.zeros(size, np.bool_)
        before = np.where(begins, place, place - 1)  # the event before it in its task, or itself

        def last(these: Mask) -> npt.NDArray[np.int64]:
            """Return, for each event, the last of these up to it in its task, or the task's first event."""
            latest: npt.NDArray[np.int64] = np.maximum.accumulate(np.where(these | begins, place, 0))
            return latest

        ids, call = w["id"].copy(), w["call"].copy()  # contiguous, for speed
        waits |= self._fall_back(r, w, ids, call, kept, last, before)

        # vfio_pci_intx_unmask: inside the ioctl its bracket serves, else it is the guest's, or power management's.
        asked = ids == ID["unmask_fn"]
        if asked.any():
            call[asked] = Call.NESTED
            around = call[last(call != Call.NESTED)[before]]
            call[asked & (around != Call.SET_IRQS)] = Call.CONFIG_UNMASK
        opener = last(call != Call.NESTED)[before]
        outer = np.where(begins, Call.NESTED, call[opener])
        outer[outer == Call.ENDS] = Call.NESTED
        real = (call == Call.NESTED) | (outer == Call.HANDLER)  # Another call begins: only a bracketed one is open.
        real &= (r["kind"] != Kind.KVM_SET_IRQ) | (outer != Call.KVM_SET_IRQ)
        outer[~real] = Call.NESTED
        flags = FLAG_OF_CALL[outer]
        device = np.where(outer != Call.NESTED, r["device"][opener], 0)
        flags |= np.where(outer != Call.NESTED, r["flags"][opener] & np.uint32(Flag.SYNTHETIC), np.uint32(0))

        self._orphans(r, w, ids, outer, flags, device, begins)
        kind = r["kind"].copy()
        takes = np.isin(kind, (Kind.EVENTFD_SIGNAL, Kind.IRQFD_WAKEUP, Kind.WORK_QUEUED, Kind.MSI_SET_IRQ))
        r["device"][takes] = device[takes]
        own = (kind == Kind.HANDLER_ENTRY) | (kind == Kind.HANDLER_EXIT)
        r["flags"][~own] |= np.where(takes, flags, flags & ~np.uint32(Flag.SYNTHETIC))[~own]

        # The returns: of the handler, and of the unmask.
        returned = ids == ID["handler_ret"]
        r["device"][returned] = device[returned]
        r["arg0"][returned] = np.where(outer == Call.HANDLER, r["arg0"][opener], 0)[returned]
        kept &= ~(returned & (r["device"] == 0))
        unmask = last((ids == ID["unmask"]) | (ids == ID["unmask_ret"]))[before]
        open_unmask = (ids[unmask] == ID["unmask"]) & ~begins
        inside = (ids == ID["unmask_ret"]) | (ids == ID["chk_unmask_ret"])
        r["device"][inside] = r["device"][unmask][inside]
        kept &= ~inside | open_unmask
        r["flags"][ids == ID["chk_unmask_ret"]] = Flag.IN_UNMASK

        # eventfd_signal runs for every eventfd of the host.
        signal = ids == ID["efd_signal"]
        loopback = np.uint64(SetIrqs.DATA_NONE | SetIrqs.DATA_BOOL)
        fires = (ids == ID["set_irqs"]) & ((r["arg0"] & np.uint64(SetIrqs.ACTION_TRIGGER)) != 0)
        fires &= (r["arg0"] & loopback) != 0
        fires |= (ids == ID["unmask_ret"]) & (r["value"] > 0)
        stray = signal & (outer == Call.SET_IRQS) & ~fires[before]
        stray |= signal & np.isin(outer, (Call.NESTED, Call.KVM_IRQFD, Call.KVM_SET_IRQ, Call.EVENTFD_WRITE))
        r["flags"][stray], r["device"][stray] = 0, 0
        kept &= ~stray | self._known_contexts(r, signal & ~stray, stray)

        self._deliveries(r, ids, outer, opener, before, last, kept)
        work["call"][order] = call
        records[order] = r
        wanted[order], held[order] = kept & ~waits, waits
        return wanted, held

    def _fall_back(self, r: Any, w: Any, ids: Any, call: Any, kept: Mask, last: Any, before: Any) -> Mask:
        """Take irq_handler_entry and _exit for a handler that no kprobe saw; return the entries that wait for more."""
        entry, leave = ids == ID["irq_handler_entry"], ids == ID["irq_handler_exit"]
        waits = np.zeros(len(ids), np.bool_)
        if not entry.any():
            kept &= ~leave
            return waits
        around = last(entry | leave)
        inner = np.flatnonzero((ids == ID["handler"]) & entry[around])
        seen = np.zeros(len(ids), np.bool_)
        seen[around[inner]] = True
        self._learn_addresses(r, w, inner, around[inner], entry)
        exits = np.flatnonzero(leave)
        exits = exits[entry[around[before[exits]]]]
        pair = around[before[exits]]
        vfio = (w["bdf"][pair] >= 0) & (r["arg0"][pair] == r["arg0"][exits])
        # With forced threading irq_default_primary_handler says "handled" for every sharer.
        take = vfio & ~seen[pair] & w["hard"][pair] & (not self._threaded)
        exits, pair = exits[take], pair[take]
        tail = np.flatnonzero(entry & (w["bdf"] >= 0) & ~seen & w["hard"] & ~self._is_left(around, leave, entry))
        waits[tail] = True
        kept &= ~(entry | leave)
        kept[exits] = True
        kept[pair] = True
        call[pair], call[exits] = Call.HANDLER, Call.ENDS
        for rows in (pair, exits):
            bdf = w["bdf"][pair]
            device, flags = self._devices_at(bdf, r["arg0"][pair])
            r["device"][rows], r["flags"][rows] = device, flags | np.uint32(Flag.FALLBACK)
        return waits

    @staticmethod
    def _is_left(around: Any, leave: Mask, entry: Mask) -> Mask:
        """Return which entries have something of their kind after them in their task: they are over."""
        over = np.zeros(len(around), np.bool_)
        next_one = np.flatnonzero(entry | leave)
        over[around[np.maximum(next_one - 1, 0)]] = True
        return over

    def _learn_addresses(self, r: Any, w: Any, inner: Any, around: Any, entry: Mask) -> None:
        """Learn the PCI address of a device: from the tracepoint around its handler, or where only one has the irq."""
        pairs = {(int(v), int(b), int(i)) for v, b, i in zip(
            r["device"][inner], w["bdf"][around], r["arg0"][inner], strict=True) if b >= 0}  # fmt: skip
        if self._threaded:
            handler = w["id"] == ID["handler"]
            for irq in np.unique(r["arg0"][entry & (w["bdf"] >= 0)]).tolist():
                bdfs = np.unique(w["bdf"][entry & (w["bdf"] >= 0) & (r["arg0"] == irq)]).tolist()
                vdevs = np.unique(r["device"][handler & (r["arg0"] == irq)]).tolist()
                if len(bdfs) == len(vdevs) == 1:
                    pairs.add((vdevs[0], bdfs[0], irq))
        for vdev, bdf, irq in sorted(pairs):
            self._device_row(vdev, bdf, irq)

    def _device_row(self, vdev: int, bdf: int, irq: int) -> int:
        """Return the row of a device, made or completed; `vdev` 0 or `bdf` -1: not known."""
        row = self._row_of_vdev.get(vdev, -1) if vdev else -1
        if row >= 0 and bdf >= 0 and self.tables.devices[row].bdf not in ("", format_address(bdf)):
            row = -1  # The address in memory belongs to another device now.
        if row < 0 and bdf >= 0:
            row = self._row_of_bdf.get(bdf, -1)
        if row < 0:
            row = len(self.tables.devices)
            if row >= MAX_ROWS:
                raise IntxtraceError(f"more than {MAX_ROWS} devices: this is no recording of a VM host")
            self.tables.devices.append(Device(row))
        device = self.tables.devices[row]
        if bdf >= 0:
            device.bdf = format_address(bdf)
            self._row_of_bdf[bdf] = row
        if irq:
            device.host_irq = irq
        if vdev:
            self._row_of_vdev[vdev] = row
        return row

    def _devices_at(self, bdf: Any, irq: Any) -> tuple[Any, Any]:
        """Return the devices at these addresses: pointers where known, else rows of the device table."""
        devices, flags = np.zeros(len(bdf), np.uint64), np.zeros(len(bdf), np.uint32)
        for address in np.unique(bdf).tolist():
            rows = bdf == address
            row = self._device_row(0, address, int(irq[rows][0]))
            vdev = next((v for v, of in self._row_of_vdev.items() if of == row), 0)
            devices[rows], flags[rows] = vdev or row, 0 if vdev else Flag.SYNTHETIC
        return devices, flags

    def _orphans(self, r: Any, w: Any, ids: Any, outer: Any, flags: Any, device: Any, begins: Mask) -> None:
        """A handler's return whose entry is not in the text: what came before it on the CPU was inside.

        The device is the one whose eventfd was signalled there.
        """
        orphans = np.flatnonzero((ids == ID["handler_ret"]) & (outer != Call.HANDLER) & ~w["carried"]).tolist()
        triggers = self._triggers(r, ids, outer, device) if orphans else {}
        for at in orphans:
            first = at
            while not begins[first] and ids[first - 1] in (ID["efd_signal"], ID["irqfd_wakeup"]) and at - first < 8:
                first -= 1
            contexts = [int(r["link"][i]) for i in range(first, at) if ids[i] == ID["efd_signal"]]
            contexts += [int(r["arg1"][i]) for i in range(first, at) if ids[i] == ID["irqfd_wakeup"]]
            found = next((triggers[ctx] for ctx in contexts if ctx in triggers), 0)
            if found:
                outer[first : at + 1] = Call.HANDLER
                flags[first : at + 1] = Flag.IN_HANDLER
                device[first : at + 1] = found

    def _triggers(self, r: Any, ids: Any, outer: Any, device: Any) -> dict[int, int]:
        """Return which eventfds are known to be the trigger of which device."""
        nested = np.flatnonzero((ids == ID["efd_signal"]) & np.isin(outer, (Call.HANDLER, Call.VIRQFD_INJECT)))
        return self._contexts | dict(zip(r["link"][nested].tolist(), device[nested].tolist(), strict=True))

    def _known_contexts(self, r: Any, signals: Mask, stray: Mask) -> Mask:
        """Return which signals are of an eventfd that belongs to a device."""
        kind = r["kind"]
        irqfd = (kind == Kind.IRQFD_WAKEUP) | (kind == Kind.IRQFD_INJECT)
        found = [r["link"][signals], r["arg1"][irqfd], r["link2"][irqfd], r["link"][kind == Kind.VIRQFD_WAKEUP]]
        nested = np.flatnonzero(signals & (r["device"] != 0) & ((r["flags"] & np.uint32(Flag.SYNTHETIC)) == 0))
        for ctx in np.unique(np.concatenate(found)).tolist():
            if ctx and len(self._contexts) < MAX_ROWS:
                self._contexts.setdefault(ctx, 0)
        self._contexts.update(zip(r["link"][nested].tolist(), r["device"][nested].tolist(), strict=True))
        known = np.fromiter(self._contexts, np.uint64, len(self._contexts))
        ours: Mask = stray & np.isin(r["link"], known)
        return ours

    def _deliveries(self, r: Any, ids: Any, outer: Any, opener: Any, before: Any, last: Any, kept: Mask) -> None:
        """Keep what KVM's tracepoints say inside of a delivery: a kvm_set_irq, or the wake-up of an MSI route."""
        accept = r["kind"] == Kind.APIC_ACCEPT
        msi = r["kind"] == Kind.MSI_SET_IRQ
        if not (accept.any() or msi.any()):
            return
        root = last(~(accept | msi))[before]
        woken = (accept | msi) & (ids[root] == ID["irqfd_wakeup"]) & (r["link2"][root] == 0)
        set_irq = accept & ~woken & (outer == Call.KVM_SET_IRQ)
        for rows, source in ((np.flatnonzero(woken), root), (np.flatnonzero(set_irq), opener)):
            r["vm"][rows] = r["vm"][source[rows]]
            r["arg0"][rows] = np.where(accept[rows], r["arg0"][source[rows]], 0)
        r["flags"][woken] |= np.uint32(Flag.IN_IRQFD_WAKEUP)
        kept &= ~(accept | msi) | woken | set_irq

    def _carry(
        self, records: npt.NDArray[np.void], work: npt.NDArray[np.void], order: npt.NDArray[np.int64], held: Mask
    ) -> None:
        """Keep, for the next block, what each task did since the call that is open in it began."""
        keys = work["key"][order]
        ends = np.flatnonzero(np.append(keys[1:] != keys[:-1], True)) if len(keys) else np.zeros(0, np.int64)
        rows: list[int] = []
        for key_end in ends[-MAX_TASKS:].tolist():
            mine: list[int] = []
            at = key_end
            while at >= 0 and keys[at] == keys[key_end] and len(mine) < MAX_CARRIED:
                row = int(order[at])
                if work["call"][row] == Call.ENDS:
                    break
                mine.append(row)
                if work["call"][row] != Call.NESTED or held[row]:
                    break
                at -= 1
            if mine and (work["call"][mine[-1]] != Call.NESTED or held[mine[-1]]):
                rows += mine
        chosen = np.array(sorted(rows), np.int64)
        self._carried = records[chosen], work[chosen]
        self._carried[1]["carried"] = ~held[chosen]

    # ---- what the recording says of itself

    def _with_stream_events(
        self, records: npt.NDArray[np.void], work: npt.NDArray[np.void], gaps: list[Gap], at: Any, ts: Any
    ) -> npt.NDArray[np.void]:
        """Add DEVICE and VM where each is named first, and LOST where the text says that events are missing."""
        added: list[tuple[int, npt.NDArray[np.void]]] = []

        def add(place: int, kind: Kind, **fields: int) -> None:
            event = np.zeros(1, RECORD)
            event["kind"] = kind
            event["ts"] = records["ts"][place] if place < len(records) else (records["ts"][-1] if place else 0)
            for name, value in fields.items():
                event[name] = value
            added.append((place, event))

        synthetic = (records["flags"] & np.uint32(Flag.SYNTHETIC)) != 0
        for vdev, place in _first_places(np.where(synthetic, 0, records["device"])):
            row = self._device_row(vdev, -1, 0)
            self._announce(add, place, row, vdev, 0)
        for number, place in _first_places(np.where(synthetic, records["device"] + np.uint64(1), 0)):
            self._announce(add, place, number - 1, number - 1, Flag.SYNTHETIC)
        for kvm, place in _first_places(records["vm"]):
            if kvm not in self._row_of_vm and len(self.tables.vms) < MAX_ROWS:
                row = self._row_of_vm[kvm] = len(self.tables.vms)
                self.tables.vms.append(Vm(row, name=f"kvm-{kvm:x}"))
                add(place, Kind.VM, vm=kvm, aux=row, value=1)
        for gap in gaps:
            place = int(np.searchsorted(work["at"], gap.at))
            line = int(np.searchsorted(at, gap.at))
            now = int(ts[min(line, len(ts) - 1)]) if len(ts) else 0
            mine = records["cpu"][:place] == gap.cpu if gap.cpu >= 0 else np.zeros(place, np.bool_)
            before = int(records["ts"][:place][mine][-1]) if mine.any() else self._last_ts.get(gap.cpu, 0)
            add(place, Kind.LOST, ts=now, cpu=max(gap.cpu, 0), arg0=min(before, now), arg1=gap.count)
        self._last_ts.update(zip(records["cpu"].tolist(), records["ts"].tolist(), strict=True))
        if not added:
            return records
        added.sort(key=lambda one: one[0])
        places = np.array([place for place, _ in added])
        return np.insert(records, places, np.concatenate([event for _, event in added]))

    def _announce(self, add: Any, place: int, row: int, pointer: int, flags: int) -> None:
        device = self.tables.devices[row]
        known = (pointer, flags, device.bdf, device.host_irq)
        if self._announced.get(row) != known:
            self._announced[row] = known
            bdf = next((bdf for bdf, of in self._row_of_bdf.items() if of == row), -1)
            add(
                place,
                Kind.DEVICE,
                device=pointer,
                flags=flags,
                aux=row,
                value=1,
                arg0=bdf & (1 << 64) - 1,
                arg1=device.host_irq or 0,
            )


def _first_places(values: npt.NDArray[Any]) -> list[tuple[int, int]]:
    """Return each number but 0, and where it stands first, in order of place."""
    numbers, places = np.unique(values, return_index=True)
    return sorted(((int(n), int(p)) for n, p in zip(numbers, places, strict=True) if n), key=lambda pair: pair[1])
