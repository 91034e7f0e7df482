"""Which call each event of an ftrace text is nested in, and which events count: what our own probes know by themselves.

Events are columns (`ftrace_dialect.Columns`), sorted by task. Calls whose return is not probed end with what cannot be
inside them (`Call.ENDS`).
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from intxtrace.events import Flag, Kind, SetIrqs
from intxtrace.importers.ftrace_devices import MAX_ROWS, Devices, distinct
from intxtrace.importers.ftrace_dialect import FLAG_OF_CALL, ID, Call, Columns

Mask = npt.NDArray[np.bool_]
Places = npt.NDArray[np.int64]

CHANGED = ("device", "flags", "arg0", "vm", "call")
"""Columns that nesting fills in."""


def _among(numbers: tuple[int, ...], size: int) -> Mask:
    chosen = np.zeros(size, np.bool_)
    chosen[list(numbers)] = True
    return chosen


_TAKES_DEVICE = _among((Kind.EVENTFD_SIGNAL, Kind.IRQFD_WAKEUP, Kind.WORK_QUEUED, Kind.MSI_SET_IRQ), 64)
_STRAY_IN = _among((Call.NESTED, Call.KVM_IRQFD, Call.KVM_SET_IRQ, Call.EVENTFD_WRITE), len(Call))
_SIGNALS_OF_DEVICE = _among((Call.HANDLER, Call.VIRQFD_INJECT), len(Call))
_SYNTHETIC = np.uint32(Flag.SYNTHETIC)


class Tasks:
    """Events in the order of their tasks, and what came before each of them there."""

    def __init__(self, keys: npt.NDArray[np.int64]) -> None:
        place = np.arange(len(keys))
        self.begins = np.ones(len(keys), np.bool_)
        self.begins[1:] = keys[1:] != keys[:-1]
        self.before = np.where(self.begins, place, place - 1)
        """The event before it in its task, or itself."""
        self._place = place

    def last(self, these: Mask) -> Places:
        """Return, for each event, the last of these up to it in its task, or the task's first event."""
        latest: Places = np.maximum.accumulate(np.where(these | self.begins, self._place, 0))
        return latest


class Nesting:
    """Nests block by block; what was learned of eventfds and threads is kept."""

    def __init__(self, devices: Devices) -> None:
        self.threaded = False
        """Handlers run in threads (threadirqs, PREEMPT_RT)."""
        self._devices = devices
        self._contexts: dict[int, int] = {}

    def nest(self, columns: Columns, order: Places) -> tuple[Mask, Mask]:
        """Give every event the call that it is nested in; return which events count, and which wait for more.

        `order` sorts by task.
        """
        size = len(order)
        wanted = np.ones(size, np.bool_)
        held = np.zeros(size, np.bool_)
        if not size:
            return wanted, held
        c = {name: values[order] for name, values in columns.items()}
        tasks = Tasks(c["key"])
        kept = np.ones(size, np.bool_)
        ids, call = c["id"], c["call"]
        waits = self._fall_back(c, tasks, kept)

        # vfio_pci_intx_unmask: inside the ioctl its bracket serves, else it is the guest's, or power management's.
        asked = ids == ID["unmask_fn"]
        if asked.any():
            call[asked] = Call.NESTED
            around = call[tasks.last(call != Call.NESTED)[tasks.before]]
            call[asked & (around != Call.SET_IRQS)] = Call.CONFIG_UNMASK
        opener = tasks.last(call != Call.NESTED)[tasks.before]
        outer = np.where(tasks.begins, Call.NESTED, call[opener])
        outer[outer == Call.ENDS] = Call.NESTED
        real = (call == Call.NESTED) | (outer == Call.HANDLER)  # Another call begins: only a bracketed one is open.
        real &= (c["kind"] != Kind.KVM_SET_IRQ) | (outer != Call.KVM_SET_IRQ)
        outer[~real] = Call.NESTED
        inside = outer != Call.NESTED
        flags = FLAG_OF_CALL[outer]
        device = np.where(inside, c["device"][opener], np.uint64(0))
        flags |= np.where(inside, c["flags"][opener] & _SYNTHETIC, np.uint32(0))

        self._orphans(c, tasks, outer, flags, device)
        kind = c["kind"]
        takes = _TAKES_DEVICE[kind]
        c["device"] = np.where(takes, device, c["device"])
        foreign = (kind != Kind.HANDLER_ENTRY) & (kind != Kind.HANDLER_EXIT)
        c["flags"] |= np.where(foreign, np.where(takes, flags, flags & ~_SYNTHETIC), np.uint32(0))
        self._returns(c, tasks, kept, outer, opener, device)
        self._signals(c, tasks, kept, outer)
        self._deliveries(c, tasks, kept, outer, opener)
        for name in CHANGED:
            columns[name][order] = c[name]
        wanted[order], held[order] = kept & ~waits, waits
        return wanted, held

    def _returns(self, c: Columns, tasks: Tasks, kept: Mask, outer: Any, opener: Places, device: Any) -> None:
        """Name the device in the returns of the handler and of the unmask; leave out those without their entry."""
        ids = c["id"]
        returned = np.flatnonzero(ids == ID["handler_ret"])
        c["device"][returned] = device[returned]
        c["arg0"][returned] = np.where(outer[returned] == Call.HANDLER, c["arg0"][opener[returned]], np.uint64(0))
        kept[returned[c["device"][returned] == 0]] = False
        checked = ids == ID["chk_unmask_ret"]
        inside = np.flatnonzero((ids == ID["unmask_ret"]) | checked)
        unmask = tasks.last((ids == ID["unmask"]) | (ids == ID["unmask_ret"]))[tasks.before[inside]]
        c["device"][inside] = c["device"][unmask]
        kept[inside] &= (ids[unmask] == ID["unmask"]) & ~tasks.begins[inside]
        c["flags"][checked] = Flag.IN_UNMASK

    def _signals(self, c: Columns, tasks: Tasks, kept: Mask, outer: Any) -> None:
        """Leave out the signals of other eventfds than a device's: eventfd_signal runs for every one of the host."""
        ids = c["id"]
        signal = ids == ID["efd_signal"]
        loopback = np.uint64(SetIrqs.DATA_NONE | SetIrqs.DATA_BOOL)
        fires = (ids == ID["set_irqs"]) & ((c["arg0"] & np.uint64(SetIrqs.ACTION_TRIGGER)) != 0)
        fires &= (c["arg0"] & loopback) != 0
        fires |= (ids == ID["unmask_ret"]) & (c["value"] > 0)
        stray = signal & (_STRAY_IN[outer] | ((outer == Call.SET_IRQS) & ~fires[tasks.before]))
        c["flags"][stray], c["device"][stray] = 0, 0
        kept &= ~stray | self._known_contexts(c, signal & ~stray, stray)

    def _fall_back(self, c: Columns, tasks: Tasks, kept: Mask) -> Mask:
        """Take irq_handler_entry and _exit for a handler that no kprobe saw; return the entries that wait for more."""
        ids, call = c["id"], c["call"]
        entry, leave = ids == ID["irq_handler_entry"], ids == ID["irq_handler_exit"]
        waits = np.zeros(len(ids), np.bool_)
        if not entry.any():
            kept &= ~leave
            return waits
        around = tasks.last(entry | leave)
        inner = np.flatnonzero((ids == ID["handler"]) & entry[around])
        seen = np.zeros(len(ids), np.bool_)
        seen[around[inner]] = True
        self._learn_addresses(c, inner, around[inner], entry)
        exits = np.flatnonzero(leave)
        exits = exits[entry[around[tasks.before[exits]]]]
        pair = around[tasks.before[exits]]
        vfio = (c["bdf"][pair] >= 0) & (c["arg0"][pair] == c["arg0"][exits])
        # With forced threading irq_default_primary_handler says "handled" for every sharer.
        take = vfio & ~seen[pair] & c["hard"][pair] & (not self.threaded)
        exits, pair = exits[take], pair[take]
        over = np.zeros(len(ids), np.bool_)  # Something of their kind comes after them in their task.
        over[around[np.maximum(np.flatnonzero(entry | leave) - 1, 0)]] = True
        waits |= entry & (c["bdf"] >= 0) & ~seen & c["hard"] & ~over
        kept &= ~(entry | leave)
        kept[exits] = True
        kept[pair] = True
        call[pair], call[exits] = Call.HANDLER, Call.ENDS
        device, flags = self._devices.at(c["bdf"][pair], c["arg0"][pair])
        for rows in (pair, exits):
            c["device"][rows], c["flags"][rows] = device, flags | np.uint32(Flag.FALLBACK)
        return waits

    def _learn_addresses(self, c: Columns, inner: Places, around: Places, entry: Mask) -> None:
        """Learn the PCI address of a device: from the tracepoint around its handler, or where only one has the irq."""
        vdev, bdf, irq = c["device"][inner], c["bdf"][around], c["arg0"][inner]
        told = bdf >= 0
        vdev, bdf, irq = vdev[told], bdf[told], irq[told]
        if len(vdev):
            same = (vdev[1:] == vdev[:-1]) & (bdf[1:] == bdf[:-1]) & (irq[1:] == irq[:-1])
            some = np.flatnonzero(np.append(True, ~same))
            vdev, bdf, irq = vdev[some], bdf[some], irq[some]
        pairs = set(zip(vdev.tolist(), bdf.tolist(), irq.tolist(), strict=True))
        if self.threaded:
            handler = c["id"] == ID["handler"]
            for line in np.unique(c["arg0"][entry & (c["bdf"] >= 0)]).tolist():
                bdfs = np.unique(c["bdf"][entry & (c["bdf"] >= 0) & (c["arg0"] == line)]).tolist()
                vdevs = np.unique(c["device"][handler & (c["arg0"] == line)]).tolist()
                if len(bdfs) == len(vdevs) == 1:
                    pairs.add((vdevs[0], bdfs[0], line))
        for pointer, address, line in sorted(pairs):
            self._devices.row(pointer, address, line)

    def _orphans(self, c: Columns, tasks: Tasks, outer: Any, flags: Any, device: Any) -> None:
        """A handler's return whose entry is not in the text: what came before it on the CPU was inside.

        The device is the one whose eventfd was signalled there.
        """
        ids = c["id"]
        orphans = np.flatnonzero((ids == ID["handler_ret"]) & (outer != Call.HANDLER) & ~c["carried"]).tolist()
        triggers = self._triggers(c, outer, device) if orphans else {}
        for at in orphans:
            first = at
            while (
                not tasks.begins[first] and ids[first - 1] in (ID["efd_signal"], ID["irqfd_wakeup"]) and at - first < 8
            ):
                first -= 1
            contexts = [int(c["link"][i]) for i in range(first, at) if ids[i] == ID["efd_signal"]]
            contexts += [int(c["arg1"][i]) for i in range(first, at) if ids[i] == ID["irqfd_wakeup"]]
            found = next((triggers[ctx] for ctx in contexts if ctx in triggers), 0)
            if found:
                outer[first : at + 1] = Call.HANDLER
                flags[first : at + 1] = Flag.IN_HANDLER
                device[first : at + 1] = found

    def _triggers(self, c: Columns, outer: Any, device: Any) -> dict[int, int]:
        """Return which eventfds are known to be the trigger of which device."""
        nested = np.flatnonzero((c["id"] == ID["efd_signal"]) & _SIGNALS_OF_DEVICE[outer])
        return self._contexts | dict(zip(c["link"][nested].tolist(), device[nested].tolist(), strict=True))

    def _known_contexts(self, c: Columns, signals: Mask, stray: Mask) -> Mask:
        """Return which signals are of an eventfd that belongs to a device."""
        kind = c["kind"]
        irqfd = np.flatnonzero((kind == Kind.IRQFD_WAKEUP) | (kind == Kind.IRQFD_INJECT))
        found = [c["link"][signals], c["arg1"][irqfd], c["link2"][irqfd], c["link"][kind == Kind.VIRQFD_WAKEUP]]
        for ctx in distinct(np.concatenate([distinct(some) for some in found])).tolist():
            if ctx and len(self._contexts) < MAX_ROWS:
                self._contexts.setdefault(ctx, 0)
        nested = np.flatnonzero(signals & (c["device"] != 0) & ((c["flags"] & _SYNTHETIC) == 0))
        for ctx, device in dict(zip(c["link"][nested].tolist(), c["device"][nested].tolist(), strict=True)).items():
            if ctx in self._contexts:
                self._contexts[ctx] = device
        ours = np.zeros(len(kind), np.bool_)
        rows = np.flatnonzero(stray)
        if len(rows):
            known = np.fromiter(self._contexts, np.uint64, len(self._contexts))
            ours[rows] = np.isin(c["link"][rows], known)
        return ours

    def _deliveries(self, c: Columns, tasks: Tasks, kept: Mask, outer: Any, opener: Places) -> None:
        """Keep what KVM's tracepoints say inside of a delivery: a kvm_set_irq, or the wake-up of an MSI route."""
        accept = c["kind"] == Kind.APIC_ACCEPT
        msi = c["kind"] == Kind.MSI_SET_IRQ
        if not (accept.any() or msi.any()):
            return
        root = tasks.last(~(accept | msi))[tasks.before]
        woken = (accept | msi) & (c["id"][root] == ID["irqfd_wakeup"]) & (c["link2"][root] == 0)
        set_irq = accept & ~woken & (outer == Call.KVM_SET_IRQ)
        # Where no probe shows the wake-up, the handler that it is in does.
        handled = msi & ~woken & (outer == Call.HANDLER)
        for rows, source in ((np.flatnonzero(woken), root), (np.flatnonzero(set_irq), opener)):
            c["vm"][rows] = c["vm"][source[rows]]
            c["arg0"][rows] = np.where(accept[rows], c["arg0"][source[rows]], 0)
        c["flags"][woken] |= np.uint32(Flag.IN_IRQFD_WAKEUP)
        kept &= ~(accept | msi) | woken | set_irq | handled
