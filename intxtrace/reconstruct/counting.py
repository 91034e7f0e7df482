"""What is counted in windows of one second, and BAR accesses."""

from __future__ import annotations

from typing import Any

from intxtrace.reconstruct.ending import vm_row
from intxtrace.reconstruct.identity import device_of_qemu, find, put
from intxtrace.reconstruct.state import MAX_OFFSETS, NULL, TAG_BAR, State
from intxtrace.reconstruct.vocabulary import (
    BAR_READS,
    BAR_WRITES,
    EVENTS_LOST,
    HANDLER_CALLS,
    NOOP_UNMASKS,
    REENTRIES,
    SPURIOUS_WAKEUPS,
    UNCLAIMED,
    WINDOW,
)


def on_bar_total(s: State, e: Any, reads: int, writes: int) -> None:
    """Count trapped accesses of a device, for the interrupt that QEMU took last."""
    d = device_of_qemu(s, e)
    if d < 0:
        return
    device = s.devices[d]
    device.bar_reads += reads
    device.bar_writes += writes
    i = device.trapped
    if i >= 0 and s.interrupts[i].bar_accesses != NULL:
        s.interrupts[i].bar_accesses += reads + writes


def on_bar_offset(s: State, e: Any, write: int, count: int) -> None:
    """Count trapped accesses at one offset."""
    d = device_of_qemu(s, e)
    if d < 0:
        return
    a = d << 32 | e.aux << 1 | write
    b = find(s, TAG_BAR, a, e.arg0)
    if b < 0:
        m = s.machine[0]
        b = m.n_bars
        if b >= MAX_OFFSETS:
            return
        m.n_bars += 1
        bar = s.bars[b]
        bar.device = d
        bar.write = write
        bar.region = e.aux
        bar.offset = e.arg0
        put(s, TAG_BAR, a, e.arg0, b)
    s.bars[b].count += count


def roll_window(s: State, ts: int) -> None:
    """Hand out the counters of the window that is over, and begin the one of `ts`."""
    m = s.machine[0]
    if m.window != NULL:
        for d in range(m.n_devices):
            device = s.devices[d]
            count(s, d, HANDLER_CALLS, device.handler_calls)
            count(s, d, UNCLAIMED, device.unclaimed)
            count(s, d, SPURIOUS_WAKEUPS, device.spurious_wakeups)
            count(s, d, NOOP_UNMASKS, device.noop_unmasks)
            count(s, d, REENTRIES, device.reentries)
            count(s, d, BAR_READS, device.bar_reads)
            count(s, d, BAR_WRITES, device.bar_writes)
            count(s, d, EVENTS_LOST, device.events_lost)
            device.handler_calls = 0
            device.unclaimed = 0
            device.spurious_wakeups = 0
            device.noop_unmasks = 0
            device.reentries = 0
            device.bar_reads = 0
            device.bar_writes = 0
            device.events_lost = 0
        for b in range(m.n_bars):
            bar = s.bars[b]
            if bar.count:
                count(s, bar.device, BAR_WRITES if bar.write else BAR_READS, bar.count)
                row = s.counter_rows[m.out_counters - 1]
                row.region = bar.region
                row.offset = bar.offset
                bar.count = 0
        count(s, -1, EVENTS_LOST, m.lost)
        m.lost = 0
    m.window = ts - ts % WINDOW


def count(s: State, d: int, counter: int, number: int) -> None:
    """Hand out one counter of the window, if it counted anything."""
    if number == 0:
        return
    m = s.machine[0]
    row = s.counter_rows[m.out_counters]
    m.out_counters += 1
    row.device = s.devices[d].id if d >= 0 else -1
    row.bdf = s.devices[d].bdf if d >= 0 else -1
    row.vm = vm_row(s, d) if d >= 0 else -1
    row.begin_at = m.window
    row.counter = counter
    row.region = NULL
    row.offset = NULL
    row.count = number
