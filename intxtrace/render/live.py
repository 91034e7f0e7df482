"""The live view as text within 80 columns. Names come from guests: they are shown as text, never as markup."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from rich.text import Text

from intxtrace.analysis.results import MEASURES, STAGE_MEASURES
from intxtrace.analysis.verdict import RESIGNAL_SHARE
from intxtrace.render.words import STAGES
from intxtrace.units import UNKNOWN, count, duration, plural, printable, rate, share, short_count

if TYPE_CHECKING:
    from rich.console import Console

    from intxtrace.analysis.live_results import Detail, LiveDevice, LivePath, LiveView
    from intxtrace.analysis.results import LogBins

FLOODS = "R resignals, U unclaimed handler calls, E re-entries, B bursts"
_VM_WIDTH = 9
_VM_WIDEST = 40
_PATH_STYLES = {"kernel": "green", "hybrid": "yellow", "userspace": "red"}


@dataclass(frozen=True)
class Column:
    """A column of the table of devices."""

    title: str
    width: int
    """Characters, without the one between columns; 0: what is left."""
    right: bool
    order: Callable[[LiveDevice], Any]
    """What it is sorted by; None comes last."""
    cell: Callable[[LiveDevice], Text]
    descending: bool = False
    """The first order that is wanted."""


def _short(ns: int | None) -> str:
    return duration(ns).replace(" ", "")


def _path(device: LiveDevice) -> Text:
    if device.path is None:
        return Text(UNKNOWN, style="dim")
    others = "+" if len(device.latency) > 1 else ""
    return Text(f"{device.path}{others}", style=_PATH_STYLES.get(device.path, ""))


def _marks(device: LiveDevice) -> str:
    floods = device.floods
    marks = (("R", floods.resignals), ("U", floods.unclaimed), ("E", floods.reentries), ("B", floods.bursts))
    return "".join(mark for mark, number in marks if number)


def _window_count(device: LiveDevice) -> int:
    return sum(one.interrupts for one in device.latency if one.path != "all")


def _flood(device: LiveDevice) -> Text:
    bad = device.floods.bursts or device.floods.resignals > RESIGNAL_SHARE * _window_count(device)
    return Text(_marks(device), style="bold red" if bad else "yellow")


def _masked(name: str) -> Column:
    def value(device: LiveDevice) -> int | None:
        found: int | None = getattr(device.masked_ns, name)
        return found

    return Column(name, 6, True, value, lambda device: Text(_short(value(device))), descending=True)


COLUMNS = (
    Column("device", 7, False, lambda d: d.bdf, lambda d: Text(_bdf(d))),
    Column("VM", 0, False, lambda d: d.vm, lambda d: Text(printable(d.vm or UNKNOWN, _VM_WIDEST))),
    Column("state", 9, False, lambda d: d.state, lambda d: Text(d.state or UNKNOWN)),
    Column("path", 10, False, lambda d: d.path, _path),
    Column("int/s", 7, True, lambda d: d.rate, lambda d: Text(_per_second(d.rate)), descending=True),
    _masked("p50"),
    _masked("p99"),
    _masked("max"),
    Column("flood", 5, False, lambda d: (d.floods.bursts, d.floods.resignals, len(_marks(d))), _flood, descending=True),
    Column("lost", 6, True, lambda d: d.lost, lambda d: Text(_lost(d), style="bold red"), descending=True),
)
RATE = 4
"""The column that the table is sorted by at first."""


def _bdf(device: LiveDevice) -> str:
    return printable(device.bdf or UNKNOWN, 16).removeprefix("0000:")


def _per_second(value: float | None) -> str:
    return rate(value).removesuffix("/s")


def _lost(device: LiveDevice) -> str:
    return short_count(device.lost).replace(" ", "") if device.lost else ""


def widths(total: int, devices: tuple[LiveDevice, ...] = ()) -> list[int]:
    """Give the width of each column, with the one character between columns, in so many columns of a terminal."""
    fixed = sum(column.width + 1 for column in COLUMNS)
    longest = max([len(_bdf(device)) for device in devices], default=0)
    wider = max(longest - COLUMNS[0].width, 0)  # a host with more than one PCI domain
    vm = min(max(total - fixed - wider - 1, _VM_WIDTH), _VM_WIDEST) + 1
    return [
        column.width + 1 + (wider if index == 0 else 0) if column.width else vm for index, column in enumerate(COLUMNS)
    ]


def cells(device: LiveDevice, wide: list[int]) -> list[Text]:
    """Give the cells of a device's row, filled to these widths."""
    row = []
    for column, width in zip(COLUMNS, wide, strict=True):
        text = column.cell(device)
        text.truncate(width - 1, overflow="ellipsis")
        text.align("right" if column.right else "left", width - 1)
        row.append(text)
    return row


def titles(wide: list[int], by: int | None = None, descending: bool = False) -> list[Text]:
    """Give the titles of the columns, with an arrow at the one that the rows are sorted by."""
    made = []
    for index, (column, width) in enumerate(zip(COLUMNS, wide, strict=True)):
        arrow = ("▼" if descending else "▲") if index == by else ""
        text = Text(column.title + arrow, style="bold" if arrow else "")
        text.align("right" if column.right else "left", width - 1)
        made.append(text)
    return made


def sort(devices: tuple[LiveDevice, ...], by: int, descending: bool) -> list[LiveDevice]:
    """Sort devices by a column; those without a value come last in either direction."""
    order = COLUMNS[by].order
    known = [device for device in devices if order(device) is not None]
    known.sort(key=lambda device: (device.bdf or "", device.vm or ""))
    known.sort(key=order, reverse=descending)
    return known + [device for device in devices if order(device) is None]


def matches(device: LiveDevice, words: str) -> bool:
    """Whether a device's address, VM, state or path holds each of these words."""
    text = " ".join(filter(None, (device.bdf, device.vm, device.state, device.path))).casefold()
    return all(word in text for word in words.casefold().split())


def nothing(view: LiveView) -> str:
    """Say why there is no device to show."""
    if not view.vms:
        return "no VM with a passed-through device runs: waiting"
    names = ", ".join(printable(name, 40) for name in view.vms[:5]) + (", …" if len(view.vms) > 5 else "")
    return f"no INTx interrupt was seen yet from {plural(len(view.vms), 'VM')}: {names}"


def totals(view: LiveView, window_ns: int) -> Text:
    """Give the counts since the view began, in a line."""
    line = Text(f"last {duration(window_ns)} · {plural(view.interrupts, 'interrupt')} · ")
    line.append(f"{count(view.lost)} lost", style="bold red" if view.lost else "")
    if view.more_devices:
        line.append(f" · {plural(view.more_devices, 'device')} not shown", style="yellow")
    line.append(f" · {short_count(view.events)} events")
    return line


def print_live(view: LiveView, console: Console, window_ns: int) -> None:
    """Print a view: a row for each device, and the counts."""
    if view.devices:
        wide = widths(console.width, view.devices)
        console.print(Text(" ").join(titles(wide)), style="dim", no_wrap=True, crop=True)
        for device in sort(view.devices, RATE, descending=True):
            console.print(Text(" ").join(cells(device, wide)), no_wrap=True, crop=True)
    else:
        console.print(Text(nothing(view)))
    console.print(totals(view, window_ns))
    for device in view.devices:
        console.print(Text(f"{_bdf(device)} {printable(device.vm or UNKNOWN, 40)}: {since(device)}"))


def since(device: LiveDevice) -> str:
    """Say what was counted of a device since the view began."""
    total = device.total
    paths = ", ".join(
        f"{share(number, total.total)} {path}"
        for path, number in sorted(total.path.items(), key=lambda item: -item[1])
        if number
    )
    unfinished = ", ".join(f"{count(n)} {word}" for word, n in total.outcome.items() if n and word != "complete")
    return (
        plural(total.total, "interrupt") + (f": {paths}" if paths else "") + (f"; {unfinished}" if unfinished else "")
    )


# ---- one device


def detail(found: Detail, width: int, now: int | None) -> Text:
    """Draw one device: what it is, its paths, its floods, the histogram of its masked times, its last interrupts."""
    # One text, and no table of rich: textual would lay that out three times a picture.
    device = found.device
    lines = [Text(line) for line in _facts(device, width, now)]
    lines.append(Text())
    if device.latency:
        lines.append(Text(_columns(_LATENCY, ("masked", "count", *_PERCENTILES)), style="dim"))
        lines += [Text(_columns(_LATENCY, _percentiles(one))) for one in device.latency]
    lines.append(Text(f"masked time of the window ({plural(device.masked_ns.count, 'interrupt')})", style="bold"))
    lines += histogram(found.bins, width) or [Text("no complete interrupt in the window", style="dim")]
    lines.append(Text(f"last {plural(len(found.last), 'interrupt')}, latest first", style="bold"))
    if found.last:
        titles = ("id", "path", "origin", "outcome", "masked", *(STAGES[measure] for measure in STAGE_MEASURES))
        lines.append(Text(_columns(_INTERRUPT, titles), style="dim"))
    for row in found.last:
        cells = (str(row.id), row.path, row.origin, row.outcome, *(_short(getattr(row, m)) for m in MEASURES))
        lines.append(Text(_columns(_INTERRUPT, cells)))
    return Text("\n").join(lines)


_PERCENTILES = ("p50", "p90", "p99", "p99.9", "p99.99", "max")
_LATENCY = (-9, 7, 8, 8, 8, 8, 8, 8)
"""Widths of the columns; negative ones hold words."""
_INTERRUPT = (-9, -9, -8, -9, 6, 6, 6, 6, 6)


def _columns(wide: tuple[int, ...], cells: tuple[str, ...]) -> str:
    return " ".join(f"{cell:<{-n}}" if n < 0 else f"{cell:>{n}}" for n, cell in zip(wide, cells, strict=True))


def _facts(device: LiveDevice, width: int, now: int | None) -> list[str]:
    facts = [
        printable(device.bdf or UNKNOWN, 16),
        f"host IRQ {device.host_irq}" if device.host_irq is not None else "",
        f"GSI {device.gsi}" if device.gsi is not None else "",
        f"process {device.vm_pid}" if device.vm_pid is not None else "",
        f"VM {printable(device.vm or UNKNOWN)}",
    ]
    lines = [" · ".join(filter(None, facts))[:width]]
    if device.state is not None:
        lasted = "" if now is None or device.state_at is None else f" for {duration(max(now - device.state_at, 0))}"
        mapped = {True: "; BARs mapped", False: "; BARs trapped", None: ""}[device.bars_mapped]
        lines.append(f"state {device.state}{lasted}: {printable(device.reason or UNKNOWN, 100)}{mapped}")
    floods = device.floods
    lines.append(
        f"in the window: {count(floods.resignals)} resignals, {count(floods.unclaimed)} unclaimed calls, "
        f"{count(floods.reentries)} re-entries,"
    )
    lines.append(f"  {count(floods.bar_accesses)} trapped BAR accesses, {plural(floods.bursts, 'burst')}")
    lines.append(f"since the begin: {since(device)}; {plural(device.lost, 'event')} lost")
    return lines


def _percentiles(one: LivePath) -> tuple[str, ...]:
    masked = one.masked_ns
    values = (masked.p50, masked.p90, masked.p99, masked.p99_9, masked.p99_99, masked.max)
    return one.path, short_count(one.interrupts), *(duration(value) for value in values)


def histogram(bins: LogBins, width: int) -> list[Text]:
    """Draw a histogram, a bin a line: from when on, a bar, and how many."""
    if not bins.counts:
        return []
    most = max(bins.counts)
    room = max(width - 8 - 2 - 12, 10)
    lines = []
    for index, number in enumerate(bins.counts):
        begin = 10 ** ((bins.first + index) / bins.per_decade)
        eighths = -(-number * room * 8 // most)  # whatever is not 0 shows
        bar = "█" * (eighths // 8) + " ▏▎▍▌▋▊▉"[eighths % 8].strip()
        lines.append(Text(f"{duration(begin):>8} │{bar} {count(number) if number else ''}", no_wrap=True))
    return lines


HELP = f"""\
Each row is one device in one VM, over the last seconds (--window).

state  how its interrupts would be delivered now
path   the one that most interrupts took; + some took another
int/s  interrupts per second
p50 p99 max  masked time: from raised to unmasked
flood  {FLOODS}
lost   events that were dropped since the view began

↑ ↓  choose a row          Enter  look closely, Escape back
< >  sort by another column    r  reverse (or click a title)
/    show only rows with these words; empty shows all
p    hold the picture; what comes is still counted and kept
s    save what was seen as a trace file
q    quit (Ctrl-C too)
"""
