"""The lines of a QEMU `-trace` log (trace backend `log`): when, in which thread, which event, its arguments.

Runs as it is or compiled, see `scan`. The events are those of hw/vfio/trace-events and accel/kvm/trace-events, 4.0 to
11.1; the prefix is that of trace/control.c and util/log.c:

- `TID@SECONDS.MICROSECONDS:` up to 5.2, and from 6.0 to 10.0 with `-msg timestamp=on` (realtime clock);
- `2026-11-22T18:46:59.661475Z ` since 10.1 with `-msg timestamp=on` (012842c07552), without the thread;
- nothing since 6.0 without that option (418ed14268).

A device's name is whatever somebody called it, blanks, colons and brackets included, so it is what lies between the
first and the last thing that the event's format is sure of.
"""

from __future__ import annotations

from typing import Any

from intxtrace.importers.scan import (
    COLON,
    DOT,
    MINUS,
    SPACE,
    decimal,
    hexadecimal,
    is_word,
    mixed,
    signed_decimal,
)

Q_TS, Q_TID, Q_ID, Q_NAME, Q_SIZE, Q_HASH, Q_REGION, Q_VALUE, Q_ARG0, Q_ARG1, Q_TIMED = 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10
ROW_COLUMNS = 11
"""Q_NAME, Q_SIZE, Q_HASH: where the device's name is, -1 where the event has none. Q_TIMED: the line has its time."""

C_ROWS, C_LINES, C_BAD = 0, 1, 2
COUNTS = 3
"""C_BAD: lines of an event that is read, with another text."""

# What an event's text looks like.
NAMED, REGION_READ, REGION_WRITE, MMAPS, GSI, MOVED = 0, 1, 2, 3, 4, 5

MAX_NAME = 512
MAX_SEARCH = 512
"""Bytes of a line in which the prefix of an event is looked for behind a part of another message."""


def scan(text: Any, line: int, stops: Any, names: Any, tails: Any, rows: Any, counts: Any) -> int:
    """Read lines until there are no more, or an output is full; return which line is the next.

    Args:
        text: whole lines, and `scan.PAD` more newlines.
        line: the first line to read.
        stops: where the newline of each line is.
        names: hash of an event's name, its id, how its text looks, the length of its end in `tails`, and where.
        tails: what follows the device's name, byte by byte.
        rows: output, see `Q_`.
        counts: `C_`, added to.
    """
    while line < len(stops):
        if counts[C_ROWS] == rows.shape[1]:
            return line
        at = stops[line - 1] + 1 if line > 0 else 0
        stop = stops[line]
        line += 1
        counts[C_LINES] += 1
        begin, tid, ts = prefix(text, at)
        known, end = event(text, begin, names)
        if known < 0:
            begin = glued(text, at, stop) if begin == at else -1
            if begin < 0:
                continue
            begin, tid, ts = prefix(text, begin)
            known, end = event(text, begin, names)
            if known < 0:
                continue
        row = counts[C_ROWS]
        for column in range(ROW_COLUMNS):
            rows[column, row] = 0
        rows[Q_NAME, row] = -1
        if arguments(text, end, stop, names, known, tails, rows, row):
            rows[Q_TS, row] = ts
            rows[Q_TIMED, row] = 1 if ts >= 0 else 0
            rows[Q_TID, row] = tid
            rows[Q_ID, row] = names[1, known]
            counts[C_ROWS] += 1
        else:
            counts[C_BAD] += 1
    return line


def prefix(text: Any, at: int) -> tuple[int, int, int]:
    """Read what stands before an event: where the event begins, tid (0: not told), ns since 1970 (-1: not told)."""
    number, end = decimal(text, at)
    if end == at or end - at > 10:
        return at, 0, -1
    if text[end] == 64:  # @
        seconds, dot = decimal(text, end + 1)
        if dot - end < 2 or dot - end > 11 or text[dot] != DOT:
            return at, 0, -1
        micros, stop = decimal(text, dot + 1)
        if stop - dot != 7 or text[stop] != COLON or seconds > 9_000_000_000:
            return at, 0, -1
        return stop + 1, number, seconds * 1_000_000_000 + micros * 1000
    if end - at == 4 and text[end] == MINUS:
        ts, stop = iso(text, at, number)
        if ts >= 0 and text[stop] == SPACE:
            return stop + 1, 0, ts
    return at, 0, -1


def iso(text: Any, at: int, year: int) -> tuple[int, int]:
    """Read `2026-11-22T18:46:59.661475Z`, the fraction left out or not: ns since 1970, -1 if it is no time; its end."""
    month = pair(text, at + 5)
    if month < 1 or month > 12 or text[at + 7] != MINUS or year < 1970 or year > 2200:
        return -1, at
    day = pair(text, at + 8)
    if day < 1 or day > 31 or text[at + 10] != 84:
        return -1, at
    hour = pair(text, at + 11)
    if hour < 0 or text[at + 13] != COLON:
        return -1, at
    minute = pair(text, at + 14)
    if minute < 0 or text[at + 16] != COLON:
        return -1, at
    second = pair(text, at + 17)
    if second < 0:
        return -1, at
    at += 19
    fraction = 0
    if text[at] == DOT:
        fraction, end = decimal(text, at + 1)
        digits = end - at - 1
        if digits < 1 or digits > 9:
            return -1, at
        for _ in range(9 - digits):
            fraction *= 10
        at = end
    if text[at] != 90:  # Z
        return -1, at
    # Days since 1970-01-01 in the Gregorian calendar, years beginning in March.
    years = year - 1 if month <= 2 else year
    of_year = (153 * (month - 3 if month > 2 else month + 9) + 2) // 5 + day - 1
    days = years * 365 + years // 4 - years // 100 + years // 400 + of_year - 719468
    return ((days * 24 + hour) * 60 + minute) * 60_000_000_000 + second * 1_000_000_000 + fraction, at + 1


def pair(text: Any, at: int) -> int:
    """Read two digits; -1 if they are none, and then what follows is not read."""
    if 48 <= text[at] <= 57 and 48 <= text[at + 1] <= 57:
        return (int(text[at]) - 48) * 10 + int(text[at + 1]) - 48
    return -1


def event(text: Any, at: int, names: Any) -> tuple[int, int]:
    """Read an event's name: its column of `names` or -1, and where it ends."""
    value = 0
    while is_word(text[at]):
        value = mixed(value, text[at])
        at += 1
    low = 0
    high = names.shape[1]
    while low < high:
        middle = (low + high) // 2
        if names[0, middle] < value:
            low = middle + 1
        else:
            high = middle
    if low < names.shape[1] and names[0, low] == value:
        return low, at
    return -1, at


def glued(text: Any, begin: int, stop: int) -> int:
    """Return where the prefix of an event begins that stands behind a part of another message, or -1."""
    last = min(stop, begin + MAX_SEARCH)
    at = begin + 1
    while at < last:
        if text[at] == 64 and 48 <= text[at - 1] <= 57:
            first = at - 1
            while first > begin and at - first < 10 and 48 <= text[first - 1] <= 57:
                first -= 1
            if prefix(text, first)[0] > first:
                return first
        at += 1
    return -1


def arguments(text: Any, at: int, stop: int, names: Any, known: int, tails: Any, rows: Any, row: int) -> bool:
    """Read an event's arguments; False if its text is another than that of the event."""
    how = names[2, known]
    if how == GSI:
        if not follows(text, at, 32, 103, 115, 105, 32):  # " gsi "
            return False
        gsi, end = decimal(text, at + 5)
        rows[Q_ARG0, row] = gsi
        return end > at + 5 and end == stop
    if how == MMAPS:
        if not follows(text, at, 32, 82, 101, 103, 105) or stop - at < 10:  # " Regi"on
            return False
        at += 8
        flag = text[stop - 1] - 48
        if flag < 0 or flag > 1 or not ends_with(text, at, stop - 1, tails, names[3, known], names[4, known]):
            return False
        rows[Q_VALUE, row] = flag
        end = stop - 1 - names[3, known]
        digits = end
        while digits > at and 48 <= text[digits - 1] <= 57:
            digits -= 1
        if (
            end - digits < 1
            or end - digits > 3
            or digits - 5 <= at
            or not follows(text, digits - 5, 32, 66, 65, 82, 32)
        ):
            return False
        rows[Q_REGION, row] = decimal(text, digits)[0]
        return device(text, at, digits - 5, rows, row)
    if text[at] != SPACE or text[at + 1] != SPACE or text[at + 2] != 40:
        return False
    at += 3
    if how == NAMED:
        if not ends_with(text, at, stop, tails, names[3, known], names[4, known]):
            return False
        return device(text, at, stop - names[3, known], rows, row)
    if how == MOVED:
        # ") IRQ moved 22 -> 11": the first number is the old one, and each may be negative.
        end = stop
        while end > at and text[end - 1] != 41:
            end -= 1
        if end == at or not starts_with(text, end - 1, stop, tails, names[3, known], names[4, known]):
            return False
        old, after = signed_decimal(text, end - 1 + names[3, known])
        rows[Q_ARG0, row] = old
        if text[after] != SPACE or text[after + 1] != MINUS or text[after + 2] != 62:
            return False
        rows[Q_ARG1, row] = signed_decimal(text, after + 4)[0]
        return device(text, at, end - 1, rows, row)
    return region(text, at, stop, how, rows, row)


def region(text: Any, at: int, stop: int, how: int, rows: Any, row: int) -> bool:
    """Read `NAME:region0+0xc0, 4) = 0x4` (a read) or `NAME:region0+0xd8, 0xffffffff, 4)`."""
    colon = stop - 1
    while colon > at and not (text[colon] == COLON and follows(text, colon + 1, 114, 101, 103, 105, 111)):
        colon -= 1
    if colon <= at:
        return False
    number, end = decimal(text, colon + 7)
    if end == colon + 7 or not follows(text, end, 43, 48, 120, text[end + 3], text[end + 4]):  # "+0x"
        return False
    rows[Q_REGION, row] = number
    offset, end = hexadecimal(text, end + 3)
    if text[end] != 44:
        return False
    rows[Q_ARG0, row] = offset
    end += 2
    if how == REGION_WRITE:
        data, end = hexadecimal(text, end + 2)
        if text[end] != 44:
            return False
        rows[Q_ARG1, row] = data
        end += 2
    size, end = decimal(text, end)
    rows[Q_VALUE, row] = size
    if text[end] != 41 or end >= stop or (how == REGION_WRITE and end + 1 != stop):
        return False
    return device(text, at, colon, rows, row)


def device(text: Any, at: int, end: int, rows: Any, row: int) -> bool:
    """Take a device's name."""
    if end <= at or end - at > MAX_NAME:
        return False
    rows[Q_NAME, row] = at
    rows[Q_SIZE, row] = end - at
    value = 0
    while at < end:
        value = mixed(value, text[at])
        at += 1
    rows[Q_HASH, row] = value
    return True


def follows(text: Any, at: int, a: int, b: int, c: int, d: int, e: int) -> bool:
    """Whether these five characters stand here."""
    found: bool = text[at] == a and text[at + 1] == b and text[at + 2] == c and text[at + 3] == d and text[at + 4] == e
    return found


def ends_with(text: Any, at: int, stop: int, tails: Any, size: int, first: int) -> bool:
    """Whether the text from `at` to `stop` ends with this tail."""
    return stop - size >= at and starts_with(text, stop - size, stop, tails, size, first)


def starts_with(text: Any, at: int, stop: int, tails: Any, size: int, first: int) -> bool:
    """Whether the text from `at` to `stop` begins with this tail; a `?` of it is any one character."""
    if at + size > stop:
        return False
    place = 0
    while place < size and (text[at + place] == tails[first + place] or tails[first + place] == 63):
        place += 1
    return place == size
