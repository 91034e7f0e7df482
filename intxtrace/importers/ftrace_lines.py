"""The lines of ftrace's text: `COMM-PID [(TGID)] [CPU] FLAGS SECONDS: EVENT: TEXT`, and the remarks between them.

The columns are those of kernel/trace/trace_output.c and trace.c, 4.15 to 7.3 (`trace_print_context`, `lat_fmt`,
`print_lat_fmt`, `test_cpu_buff_start`, `print_event_info`): COMM takes 16 columns, so a command's own dashes, spaces
and brackets do not confuse; FLAGS has 4 letters up to 5.14, 5 since, and none with `noirq-info`.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from intxtrace.importers.scan import Mask, Numbers, Offsets, Text

COMM_WIDTH = 16
MAX_NAME = 24
"""Names of events longer than this are none that we know."""

_NS = {6: 1000, 9: 1}
"""Digits after the point of a timestamp -> ns of one unit."""

_LINE = re.compile(
    rb"^\s*(?P<comm>.+)-(?P<tid>\d{1,10})\s+(?:\(\s*(?P<tgid>\d{1,10}|-+)\)\s+)?\[(?P<cpu>\d{3,5})\]\s+"
    rb"(?:(?P<flags>[^\s\d]\S{2,7})\s+)?(?P<seconds>\d{1,10})(?:\.(?P<fraction>\d{6}|\d{9}))?: (?P<name>\w{1,24}): "
)
_LOST = re.compile(rb"^CPU:(\d{1,5}) \[LOST(?: (\d{1,18}))? EVENTS\]")
_WRITTEN = re.compile(rb"^# entries-in-buffer/entries-written: (\d{1,18})/(\d{1,18})\s")
_STARTED = re.compile(rb"^##### CPU (\d{1,5}) buffer started ####")


@dataclass
class Lines:
    """The events of a block of text, one per element, in the order of the text."""

    at: Offsets
    """Where the line begins."""
    end: Offsets
    ts: Numbers
    """ns of the trace's clock."""
    cpu: npt.NDArray[np.int64]
    tid: npt.NDArray[np.int64]
    tgid: npt.NDArray[np.int64]
    """0: the recording does not say."""
    hard: Mask
    """In a hard interrupt."""
    soft: Mask
    """In a soft interrupt."""
    threaded: Mask
    """The thread of a threaded interrupt handler (`irq/NN-...`)."""
    name: Offsets
    """Where the event's name begins."""
    name_end: Offsets

    def take(self, rows: npt.NDArray[np.int64]) -> Lines:
        """Return some of the lines."""
        return Lines(**{name: values[rows] for name, values in vars(self).items()})


@dataclass(frozen=True)
class Gap:
    """Events are missing before this place of the text."""

    at: int
    """Offset in the text."""
    cpu: int
    """-1: any."""
    count: int
    """How many; 0: not known."""


def read(text: Text) -> tuple[Lines, list[Gap], bool]:
    """Read the lines of a block: its events, what it says is missing, and whether its clock ticks in ns."""
    begin, end = text.lines()
    colons = text.find(b":")
    lines, plain = _columns(text, begin, end, colons)
    odd = np.flatnonzero(~plain)
    others, gaps, ticks = _one_by_one(text, begin[odd], end[odd])
    if len(others.at):
        both = Lines(**{name: np.concatenate([v, getattr(others, name)]) for name, v in vars(lines).items()})
        lines = both.take(np.argsort(both.at, kind="stable"))
    return lines, gaps, ticks


def _columns(text: Text, begin: Offsets, end: Offsets, colons: Offsets) -> tuple[Lines, Mask]:
    """Read the lines that have ftrace's own columns, and say which those are."""
    is_byte = text.bytes
    dash = begin + COMM_WIDTH
    # Anything shorter cannot hold the columns; what passes here is read past its end at most into the padding.
    fits = (end - begin >= 40) & (is_byte[begin] != ord("#"))
    fits[fits] = is_byte[dash[fits]] == ord("-")
    rows = np.flatnonzero(fits)
    begin, end, dash = begin[rows], end[rows], dash[rows]
    tid, at = text.decimal(dash + 1)
    good = at > dash + 1
    at = text.skip(at, b" ")
    tgid = np.zeros(len(at), np.uint64)
    with_tgid = np.flatnonzero(is_byte[at] == ord("("))
    if len(with_tgid):
        inner = text.skip(at[with_tgid] + 1, b" ")
        tgid[with_tgid], after = text.decimal(inner)
        after = text.skip(np.where(is_byte[inner] == ord("-"), text.skip(inner, b"-"), after), b" ")
        tgid[with_tgid] *= (is_byte[inner] != ord("-")).astype(np.uint64)
        good[with_tgid] &= is_byte[after] == ord(")")
        at[with_tgid] = text.skip(after + 1, b" ")
    good &= is_byte[at] == ord("[")
    cpu, after = text.decimal(at + 1)
    good &= (is_byte[after] == ord("]")) & (is_byte[after + 1] == ord(" ")) & (after < end)
    flags = text.skip(after + 1, b" ")
    has_flags = _DIGITS_OR_SPACE[is_byte[flags]] == 0
    third = np.where(has_flags, is_byte[np.minimum(flags + 2, len(is_byte) - 1)], 0)
    which = np.minimum(np.searchsorted(colons, after), len(colons) - 2) if len(colons) > 1 else np.zeros_like(at)
    if len(colons) < 2:
        good[:] = False
        colons = np.zeros(2, np.int64)
    stop = colons[which]
    name = stop + 2
    name_end = colons[which + 1]
    good &= (stop > after) & (name_end < end) & (name_end > name) & (is_byte[stop + 1] == ord(" "))
    good &= is_byte[stop - 7] == ord(".")
    ts = np.zeros(len(at), np.uint64)
    for back, unit in zip(range(6, 0, -1), (100_000, 10_000, 1000, 100, 10, 1), strict=True):
        digit = is_byte[stop - back] - np.uint8(ord("0"))
        good &= digit <= 9
        ts += digit.astype(np.uint64) * np.uint64(unit * 1000)
    begins_seconds = _back_to_space(text, stop - 8, good)
    seconds, dot = text.decimal(begins_seconds)
    good &= dot == stop - 7
    ts += seconds * np.uint64(1_000_000_000)
    kept = np.flatnonzero(good)
    fits[rows[~good]] = False
    lines = Lines(
        begin,
        end,
        ts,
        cpu.astype(np.int64),
        tid.astype(np.int64),
        tgid.astype(np.int64),
        (third == ord("h")) | (third == ord("H")) | (third == ord("z")) | (third == ord("Z")),
        third == ord("s"),
        text.has(np.maximum(dash - 15, 0), b"irq/"),
        name,
        name_end,
    )
    return lines if len(kept) == len(rows) else lines.take(kept), fits


_DIGITS_OR_SPACE = np.zeros(256, np.uint8)
_DIGITS_OR_SPACE[np.frombuffer(b" 0123456789\n", np.uint8)] = 1


def _back_to_space(text: Text, at: Offsets, good: Mask) -> Offsets:
    """Return where the digits that end here begin."""
    at = at.copy()
    rows = np.flatnonzero(good)
    for _ in range(10):
        rows = rows[text.bytes[at[rows] - 1] - np.uint8(ord("0")) <= 9]
        if not len(rows):
            break
        at[rows] -= 1
    return at


def _one_by_one(text: Text, begin: Offsets, end: Offsets) -> tuple[Lines, list[Gap], bool]:
    """Read the lines that differ: remarks, and events whose columns somebody changed."""
    rows: list[tuple[int, ...]] = []
    gaps: list[Gap] = []
    ticks = True
    for first, last in zip(begin.tolist(), end.tolist(), strict=True):
        line = text.data[first:last]
        if match := _LINE.match(line):
            fraction = match["fraction"]
            ticks &= fraction is not None
            ts = int(match["seconds"])
            if fraction is not None:
                ts = ts * 1_000_000_000 + int(fraction) * _NS[len(fraction)]
            tgid = match["tgid"] or b"-"
            third = (match["flags"] or b"...")[2:3]
            rows.append(
                (
                    first,
                    last,
                    ts,
                    int(match["cpu"]),
                    int(match["tid"]),
                    0 if tgid.startswith(b"-") else int(tgid),
                    third in b"hHzZ",
                    third == b"s",
                    match["comm"].startswith(b"irq/"),
                    first + match.start("name"),
                    first + match.end("name"),
                )
            )
        elif match := _LOST.match(line):
            gaps.append(Gap(first, int(match[1]), int(match[2] or 0)))
        elif match := _STARTED.match(line):
            gaps.append(Gap(first, int(match[1]), 0))
        elif (match := _WRITTEN.match(line)) and int(match[2]) > int(match[1]):
            gaps.append(Gap(first, -1, int(match[2]) - int(match[1])))
    columns = list(zip(*rows, strict=True)) if rows else [()] * 11
    types = (np.int64, np.int64, np.uint64, *[np.int64] * 3, *[np.bool_] * 3, np.int64, np.int64)
    return Lines(*(np.array(c, t) for c, t in zip(columns, types, strict=True))), gaps, ticks
