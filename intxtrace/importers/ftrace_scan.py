"""The lines of ftrace's text and of what resembles it: who, where, when, which event, and its arguments.

Runs as it is or compiled, see `scan`. The columns are those of

- kernel/trace/trace_output.c and trace.c, 4.15 to 7.3 (`trace_print_context`, `lat_fmt`):
  `COMM-PID [(TGID)] [CPU] FLAGS SECONDS: EVENT: TEXT`. COMM takes 16 columns, so a command's own dashes, spaces and
  brackets do not confuse; FLAGS has 4 letters up to 5.14, 5 since, and none with `noirq-info`.
- `trace-cmd report`: the same without FLAGS, the event's text behind more spaces; `-R`: all of it as `name=number`.
- `perf script`: `COMM PID[/TID] [CPU] SECONDS: GROUP:EVENT: TEXT`.

Where the text has no FLAGS, a CPU is in a hard interrupt from irq_handler_entry to irq_handler_exit, or from the
handler to its return, as nothing but another hard interrupt comes between on that CPU. (irq_handler_exit may not
have been recorded.)
"""

from __future__ import annotations

from typing import Any

from intxtrace.importers.scan import (
    COLON,
    DOT,
    EQUALS,
    MINUS,
    NEWLINE,
    SPACE,
    address,
    decimal,
    hexadecimal,
    is_word,
    mixed,
    number,
    skip_spaces,
)

COMM_WIDTH = 16
MAX_SEARCH = 512
"""Bytes of a line in which its `[CPU]` is looked for, where it does not stand in its column."""

# Columns of `heads`: one row per line that is an event, whichever.
H_AT, H_TS = 0, 1
# Columns of `rows`: what each known event's line says before its text.
R_AT, R_TS, R_CPU, R_TID, R_TGID, R_ID, R_BITS, R_SEEN = 0, 1, 2, 3, 4, 5, 6, 7
ROW_COLUMNS = 8
HARD, SOFT, THREADED, READ = 1, 2, 4, 8
"""Bits of R_BITS: in a hard or soft interrupt; in a thread that serves interrupts; all arguments that must be are
there. R_SEEN: those that are, as bits."""

# Columns of `counts`: what the scan found.
C_HEADS, C_ROWS, C_REMARKS, C_LINES, C_TICKS = 0, 1, 2, 3, 4
COUNTS = 5

# How an argument is read: columns of `keys`.
K_HASH, K_FIELD, K_HOW, K_CONSTANT = 0, 1, 2, 3
AS_NUMBER, AS_HEX, AS_WORD, AS_KNOWN_WORD, AS_CONSTANT, AS_VFIO_NAME, AS_NAME, AS_BYTE, AS_FUNCTION = (
    0,
    1,
    2,
    3,
    4,
    5,
    6,
    7,
    8,
)

# Columns of `names`.
N_HASH, N_ID, N_FIRST, N_LAST, N_REQUIRED, N_HARD = 0, 1, 2, 3, 4, 5
ENTERS, LEAVES, CALLS, RETURNS = 1, 2, 3, 4
"""N_HARD: irq_handler_entry, irq_handler_exit, the handler, its return."""
RETURNED = 5
"""Of P_BY: the handler has returned, so that only another one, or irq_handler_exit, is in the hard interrupt still."""

# Columns of `cpus`: the hard interrupt that a CPU without FLAGS is in.
P_TID, P_BY = 0, 1
MAX_CPUS = 1 << 16


def scan(
    text: Any, line: int, stops: Any, names: Any, keys: Any, words: Any, cpus: Any, heads: Any, rows: Any, fields: Any,
    remarks: Any, counts: Any,
) -> int:  # fmt: skip
    """Read lines until there are no more, or an output is full; return which line is the next.

    Args:
        text: whole lines, and `scan.PAD` more newlines.
        line: the first line to read.
        stops: where the newline of each line is.
        names: the events that are read, by their hash (`N_`).
        keys: their arguments, those of one event side by side (`K_`).
        words: arguments that are words: hash, number.
        cpus: `P_`, kept from text to text.
        heads, rows, fields, remarks: outputs; `fields[f, row]` is field f of the known event in `rows[:, row]`,
            `remarks` where a line begins that is no event and may be a remark.
        counts: `C_`, added to.
    """
    while line < len(stops):
        if counts[C_HEADS] == heads.shape[1] or counts[C_ROWS] == rows.shape[1] or counts[C_REMARKS] == len(remarks):
            return line
        at = stops[line - 1] + 1 if line > 0 else 0
        stop = stops[line]
        line += 1
        counts[C_LINES] += 1
        name, tid, tgid, cpu, third, ts = head(text, at, stop)
        # "#...", "CPU:...", and perf's PERF_RECORD_LOST
        if text[name] == 80 if name >= 0 else text[at] in (35, 67):
            remarks[counts[C_REMARKS]] = at
            counts[C_REMARKS] += 1
        if name >= 0:
            if ts < 0:
                ts = -1 - ts
                counts[C_TICKS] += 1
            n = counts[C_HEADS]
            counts[C_HEADS] += 1
            heads[H_AT, n] = at
            heads[H_TS, n] = ts
            known, past = event(text, name, names)
            if known >= 0:
                row = counts[C_ROWS]
                counts[C_ROWS] += 1
                threaded = is_irq_thread(text, skip_spaces(text, at))
                bits = hardness(cpus, cpu, tid, third, names[N_HARD, known], threaded)
                if threaded:
                    bits |= THREADED
                seen = arguments(
                    text, past, stop, names[N_FIRST, known], names[N_LAST, known], keys, words, fields, row
                )
                if names[N_REQUIRED, known] & ~seen == 0:
                    bits |= READ
                rows[R_AT, row] = at
                rows[R_TS, row] = ts
                rows[R_CPU, row] = cpu
                rows[R_TID, row] = tid
                rows[R_TGID, row] = tgid
                rows[R_ID, row] = names[N_ID, known]
                rows[R_BITS, row] = bits
                rows[R_SEEN, row] = seen
    return line


def is_irq_thread(text: Any, at: int) -> bool:
    """Whether a command's name begins with `irq/`: the thread of an interrupt's handler."""
    found: bool = text[at] == 105 and text[at + 1] == 114 and text[at + 2] == 113 and text[at + 3] == 47
    return found


def head(text: Any, begin: int, stop: int) -> tuple[int, int, int, int, int, int]:
    """Read a line up to its event: where that is (-1: this is no event), tid, tgid, cpu, third flag, instant in ns.

    The third flag is 0 where there are none. An instant of a clock that counts is given as -1 - count.
    """
    if stop - begin >= COMM_WIDTH + 8:
        at = begin + COMM_WIDTH
        mark = text[at]
        if mark in (MINUS, SPACE):
            at = skip_spaces(text, at + 1)
            tid, tgid, at = task(text, at)
            if at >= 0 and text[at] == 91:
                name, cpu, third, ts = tail(text, at)
                if name >= 0:
                    return name, tid, tgid, cpu, third, ts
    # Somebody changed the columns: the last place where all fits, for a command's name may look like anything.
    found = -1, 0, 0, 0, 0, -1
    last = min(stop, begin + MAX_SEARCH)
    at = begin
    while at < last:
        if text[at] == 91:
            name, cpu, third, ts = tail(text, at)
            if name >= 0:
                tid, tgid = task_before(text, begin, at)
                if tid >= 0:
                    found = name, tid, tgid, cpu, third, ts
        at += 1
    return found


def task(text: Any, at: int) -> tuple[int, int, int]:
    """Read `TID `, `TID (TGID) ` or `PID/TID ` up to the `[`: tid, tgid, and where it ends, -1 if it is none."""
    tid, end = decimal(text, at)
    if end == at or end - at > 10:
        return 0, 0, -1
    tgid = 0
    if text[end] == 47:
        tgid = tid
        tid, at = decimal(text, end + 1)
        if at == end + 1:
            return 0, 0, -1
        end = at
    at = skip_spaces(text, end)
    if text[at] == 40:
        at = skip_spaces(text, at + 1)
        while text[at] == MINUS:
            at += 1
        tgid, at = decimal(text, at)
        at = skip_spaces(text, at)
        if text[at] != 41:
            return 0, 0, -1
        at = skip_spaces(text, at + 1)
    return tid, tgid, at


def task_before(text: Any, begin: int, at: int) -> tuple[int, int]:
    """Read tid and tgid backwards from the `[`; tid -1 if there is none."""
    first = at
    while first > begin and text[first - 1] != NEWLINE and at - first < 64:
        first -= 1
        if (text[first] == MINUS or text[first] == SPACE) and 48 <= text[first + 1] <= 57 and first > begin:
            tid, tgid, end = task(text, first + 1)
            if end == at:
                return tid, tgid
    return -1, 0


def tail(text: Any, at: int) -> tuple[int, int, int, int]:
    """Read `[CPU] FLAGS SECONDS: `: where the event begins (-1: it is not that), cpu, third flag, instant."""
    none = -1, 0, 0, -1
    cpu, end = decimal(text, at + 1)
    if end - at < 4 or end - at > 6 or text[end] != 93 or text[end + 1] != SPACE:
        return none
    at = skip_spaces(text, end + 1)
    third = 0
    if not 48 <= text[at] <= 57:
        flags = at
        while text[at] != SPACE and text[at] != NEWLINE:
            at += 1
        if at - flags < 3 or at - flags > 8:
            return none
        third = int(text[flags + 2])
        at = skip_spaces(text, at)
    seconds, end = decimal(text, at)
    if end == at:
        return none
    if text[end] == DOT:
        fraction, stop = decimal(text, end + 1)
        if seconds > 9_000_000_000:
            return none
        if stop - end == 7:
            ts = seconds * 1_000_000_000 + fraction * 1000
        elif stop - end == 10:
            ts = seconds * 1_000_000_000 + fraction
        else:
            return none
        end = stop
    else:
        ts = -1 - seconds
    if text[end] != COLON or text[end + 1] != SPACE:
        return none
    return skip_spaces(text, end + 1), cpu, third, ts


def event(text: Any, at: int, names: Any) -> tuple[int, int]:
    """Read `EVENT: ` or `GROUP:EVENT: `: the column of `names` that has it, or -1; and where its text begins."""
    value = 0
    char = text[at]
    while True:
        if is_word(char):
            value = mixed(value, char)
        elif char != COLON:
            return -1, at
        elif text[at + 1] == SPACE or text[at + 1] == NEWLINE:
            break
        else:
            value = 0
        at += 1
        char = text[at]
    low = 0
    high = names.shape[1]
    while low < high:
        middle = (low + high) // 2
        if names[N_HASH, middle] < value:
            low = middle + 1
        else:
            high = middle
    if low < names.shape[1] and names[N_HASH, low] == value:
        return low, at + 1
    return -1, at


def hardness(cpus: Any, cpu: int, tid: int, third: int, role: int, threaded: bool) -> int:
    """Return HARD or SOFT or 0: what the third flag says, or where there is none, what came before on the CPU."""
    if third != 0:
        if third == 104 or third == 72 or third == 122 or third == 90:  # h H z Z
            return HARD
        return SOFT if third == 115 else 0
    if cpu >= MAX_CPUS:
        return 0
    if cpus[P_TID, cpu] != tid:
        cpus[P_BY, cpu] = 0
    by = cpus[P_BY, cpu]
    if role == ENTERS or (role == CALLS and not threaded and by != ENTERS):
        by = ENTERS if by == RETURNED else role
        cpus[P_BY, cpu] = by
        cpus[P_TID, cpu] = tid
    elif role == RETURNS and by == ENTERS:
        cpus[P_BY, cpu] = RETURNED
    elif role in (LEAVES, RETURNS):
        cpus[P_BY, cpu] = 0
    elif by == RETURNED:
        by = 0
        cpus[P_BY, cpu] = 0
    return HARD if by != 0 else 0


def arguments(
    text: Any, at: int, stop: int, first: int, last: int, keys: Any, words: Any, fields: Any, row: int
) -> int:
    """Read the arguments of one event into `fields[:, row]`; return which fields were read, as bits.

    An argument is a word and, after `=` or one space, its value. Of several for one field the first one counts, or a
    constant.
    """
    for field in range(fields.shape[0]):
        fields[field, row] = 0
    wanted = 0
    for key in range(first, last):
        wanted |= 1 << keys[K_FIELD, key]
    seen = 0
    value = 0
    at = skip_spaces(text, at)
    if text[at] == 40:  # Where a kprobe is: (symbol+0x4/0x60 [module])
        while at < stop and text[at] != 41:
            at += 1
    while at < stop and wanted != 0:
        char = text[at]
        at += 1
        if char in (EQUALS, SPACE):
            sought = mixed(value, char)
            for key in range(first, last):
                how = keys[K_HOW, key]
                if keys[K_HASH, key] == sought and (how == AS_CONSTANT or wanted >> keys[K_FIELD, key] & 1):
                    read = 0
                    end = at
                    if how == AS_NUMBER:
                        read, end = number(text, at)
                    elif how == AS_HEX:
                        skip = 2 if text[at] == 48 and text[at + 1] == 120 else 0
                        read, end = hexadecimal(text, at + skip)
                    elif how == AS_BYTE:
                        read, end = number(text, at)
                        read &= 0xFF
                    elif how == AS_CONSTANT:
                        read = keys[K_CONSTANT, key]
                        end = at + 1
                    elif how in (AS_VFIO_NAME, AS_NAME):
                        read = vfio_address(text, at, how == AS_NAME)
                        end = at + 1
                    else:
                        read, end = word(text, at, words, how)
                    if end > at:
                        seen |= 1 << keys[K_FIELD, key]
                        wanted &= ~(1 << keys[K_FIELD, key])
                        fields[keys[K_FIELD, key], row] = read
            value = 0
        else:
            value = mixed(value, char)
    return seen


def word(text: Any, at: int, words: Any, how: int) -> tuple[int, int]:
    """Read an argument that is a word, or its number; one that is not known is 0, or as AS_KNOWN_WORD nothing.

    A function's number is its address, which tells nothing here.
    """
    if 48 <= text[at] <= 57:
        return (0, at) if how == AS_FUNCTION else number(text, at)
    begin = at
    value = 0
    while is_word(text[at]):
        value = mixed(value, text[at])
        at += 1
    for known in range(words.shape[1]):
        if words[0, known] == value:
            return words[1, known], at
    return 0, begin if how == AS_KNOWN_WORD else at + 1


def vfio_address(text: Any, at: int, quoted: bool) -> int:
    """Read `vfio-intx(0000:00:10.0)` (vfio_intx_enable names its irqaction so) or `"0000:00:10.0"`; -1: neither."""
    if quoted:
        at += 1 if text[at] == 34 else 0
        found, end = address(text, at)
        return found if text[end] == 34 or text[end] == SPACE or text[end] == NEWLINE else -1
    for char in (118, 102, 105, 111, 45, 105, 110, 116, 120, 40):  # vfio-intx(
        if text[at] != char:
            return -1
        at += 1
    found, end = address(text, at)
    return found if text[end] == 41 else -1
