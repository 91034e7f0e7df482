"""The truth table: what a recording says of a guest run, against what the kernels and QEMU's own log say of it."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

import intxtrace
from intxtrace.events import Kind
from tests.lab.truth import Card, Truth


@dataclass(frozen=True)
class Row:
    """One figure, from both sides."""

    what: str
    truth: object
    traced: object
    note: str = ""

    @property
    def holds(self) -> bool:
        return self.truth == self.traced


def compare(recording: Path, truth: Truth) -> list[Row]:
    """Compare every figure that both sides know; nothing has a tolerance.

    A recording may hold several guests, one after the other: what counts is what happened while this one lived.

    Two cards on one line: the kernel counts one interrupt and calls both handlers (handle_irq_event_percpu,
    kernel/irq/handle.c), so each handler's calls are the line's count; each call is claimed, and is one interrupt of
    that card, or is not.
    """
    trace = intxtrace.open_trace(recording)
    events = trace.events
    events = events[events["ts"].between(truth.begun_at, truth.ended_at)]
    kinds = Counter(Kind(kind) for kind in events["kind"])
    interrupts = trace.interrupts
    interrupts = interrupts[interrupts["bdf"].isin(truth.bdfs) & (interrupts["vm_pid"] == truth.vm_pid)]
    windows = trace.counters
    windows = windows[windows["begin_at"].between(truth.begun_at - 10**9, truth.ended_at)]
    outcomes = Counter(interrupts["outcome"])
    # What is masked at a card and never unmasked has no end; everything else has.
    endless = sum((card.masked or 0) - (card.unmasked or 0) for card in truth.cards)
    closed = interrupts[~interrupts["outcome"].isin(["cancelled", "open"])]
    rows = []
    for card in truth.cards:
        mine = windows[windows["bdf"] == card.bdf]
        rows += _card_rows(truth, card, interrupts[interrupts["bdf"] == card.bdf], mine)
    log = truth.qemu_events
    rows += [
        Row("guest's own count: /proc/interrupts", truth.guest_interrupts, _guest_interrupts(truth, events)),
        Row("paths, as configured", {truth.path: len(interrupts)}, dict(Counter(interrupts["path"]))),
        Row("VM", {truth.vm: len(interrupts)}, dict(Counter(interrupts["vm"]))),
        Row(
            "complete", len(interrupts) - endless, outcomes["complete"], f"{endless} never unmasked" if endless else ""
        ),
        Row("delivered", len(closed), int(closed["injected_at"].notna().sum())),
        Row("events lost", 0, _count(windows, "lost")),
        Row("QEMU's vfio_intx_eoi lines", log["vfio_intx_eoi"], kinds[Kind.QEMU_EOI]),
        *(
            Row(f"QEMU's {name} lines", log[name], kinds[Kind.QEMU_MMAPS])
            for name in ("vfio_region_mmaps_set_enabled",)
            # The stored recordings' truth lacks it; and a QEMU that is not installed is met when it sets up its first
            # interrupt, some of these lines later.
            if name in log and not any(probe.target.startswith("/proc/") for probe in trace.tables.probes)
        ),
        Row("QEMU's kvm_resample_fd_notify lines", log["kvm_resample_fd_notify"], kinds[Kind.QEMU_RESAMPLE_NOTIFY]),
        Row(
            "resignals: unmasks that returned 1",
            int(((events["kind"] == Kind.UNMASK_EXIT) & (events["value"] == 1)).sum()),
            int((interrupts["origin"] == "resignal").sum()),
        ),
    ]
    return rows


def _card_rows(truth: Truth, card: Card, interrupts: pd.DataFrame, counters: pd.DataFrame) -> list[Row]:
    """What is true of each card by itself."""
    hardware = int((interrupts["origin"] == "hardware").sum())
    in_qemu = int((interrupts["path"] == "userspace").sum())
    unclaimed, spurious = _count(counters, "unclaimed"), _count(counters, "spurious_wakeups")
    name = card.bdf.removeprefix("0000:")
    rows = [
        Row(f"{name}: host's own count of the line", truth.host_interrupts, _count(counters, "handler_calls")),
        Row(
            "  one interrupt each, but for unclaimed calls",
            truth.host_interrupts,
            hardware + unclaimed,
            f"{unclaimed} unclaimed" if unclaimed else "",
        ),
        Row(
            "  QEMU's vfio_intx_interrupt lines",
            card.qemu_events["vfio_intx_interrupt"],
            in_qemu,
            f"{spurious} spurious wake-ups besides" if spurious else "",
        ),
    ]
    if card.masked is not None:
        rows.append(Row("  masked at the card", card.masked, hardware))
    if card.unmasked is not None:
        rows.append(Row("  unmasked at the card", card.unmasked, int(interrupts["unmasked_at"].notna().sum())))
    return rows


def _count(counters: pd.DataFrame, name: str) -> int:
    return int(counters.loc[counters["counter"] == name, "count"].sum())


def _guest_interrupts(truth: Truth, events: pd.DataFrame) -> int:
    """How often the guest took the interrupt: its EOIs, as KVM saw them (split irqchip: as exits to QEMU)."""
    if truth.path == "hybrid":
        return int((events["kind"] == Kind.USERSPACE_EXIT).sum())
    return int(((events["kind"] == Kind.KVM_ACK) & (events["arg0"] == truth.guest_gsi)).sum())


def show(title: str, rows: list[Row]) -> str:
    """Write the table as text."""
    lines = [title, f"  {'':52} {'truth':>18} {'traced':>18}"]
    for row in rows:
        mark = "ok" if row.holds else "WRONG"
        lines.append(f"  {row.what:52} {row.truth!s:>18} {row.traced!s:>18}  {mark}  {row.note}".rstrip())
    return "\n".join(lines)
