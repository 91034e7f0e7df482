"""Reading numbers and words out of text, byte by byte: the parts of the importers that see every byte.

These functions run as they are on `bytes`, and compiled by numba (`reconstruct.compile`) on arrays of bytes, where they
take nanoseconds. Compiled code does not check bounds. Three rules keep it inside the text, whatever the text is:

- A text ends in a newline, with `PAD` more behind it (`blocks.Block`).
- A loop moves on only over a byte that it has looked at and that is no newline.
- Nothing is read further ahead than `PAD`.

All numbers are signed 64-bit: what is larger wraps around as two's complement, in plain Python too.
"""

from __future__ import annotations

from typing import Any

PAD = 64
"""Newlines behind a text."""

NEWLINE = 10
SPACE = 32
MINUS = 45
DOT = 46
COLON = 58
EQUALS = 61

HASHED = (1 << 61) - 1
PRIME = 0x100000001B3


def hash_of(word: bytes) -> int:
    """Return the number that stands for a word: 61 bits of an FNV hash, as the scanners compute it."""
    value = 0
    for char in word:
        value = mixed(value, char)
    return value


def mixed(value: int, char: int) -> int:
    """Return the hash of a word that is one character longer."""
    return (value * PRIME ^ char) & HASHED


def skip_spaces(text: Any, at: int) -> int:
    """Return where the run of spaces ends."""
    while text[at] == SPACE:
        at += 1
    return at


def is_word(char: int) -> bool:
    """Whether a character is of `[A-Za-z0-9_]`."""
    letter = 97 <= (char | 32) <= 122
    return letter or 48 <= char <= 57 or char == 95


def digit_of(char: int) -> int:
    """Return the value of a hexadecimal digit, 99 of anything else."""
    if 48 <= char <= 57:
        return char - 48
    low = char | 32
    if 97 <= low <= 102:
        return low - 87
    return 99


def decimal(text: Any, at: int) -> tuple[int, int]:
    """Read up to 18 digits: their value, and where they end; it ends where it began if there are none, or more."""
    begin = at
    value = 0
    while 48 <= text[at] <= 57:
        if at - begin == 18:
            return 0, begin
        value = value * 10 + (text[at] - 48)
        at += 1
    return value, at


def signed_decimal(text: Any, at: int) -> tuple[int, int]:
    """Read `12` or `-3`."""
    if text[at] == MINUS:
        value, end = decimal(text, at + 1)
        return -value, end if end > at + 1 else at
    return decimal(text, at)


def hexadecimal(text: Any, at: int) -> tuple[int, int]:
    """Read up to 16 hexadecimal digits without `0x`, as `decimal` does."""
    begin = at
    value = 0
    while True:
        digit = digit_of(text[at])
        if digit > 15:
            return value, at
        if at - begin == 16:
            return 0, begin
        if at - begin == 15:  # The last of them would not fit: its upper half is the sign.
            high = value >> 56
            if high >= 8:
                high -= 16
            value = high * (1 << 60) + ((value & ((1 << 56) - 1)) << 4) + digit
        else:
            value = (value << 4) + digit
        at += 1


def number(text: Any, at: int) -> tuple[int, int]:
    """Read `0x1f`, `31` or `-31`."""
    if text[at] == 48 and text[at + 1] == 120:
        value, end = hexadecimal(text, at + 2)
        return value, end if end > at + 2 else at
    return signed_decimal(text, at)


def address(text: Any, at: int) -> tuple[int, int]:
    """Read a PCI address such as `0000:01:00.0`, packed as by `events.parse_address`; the end is `at` if it is none."""
    domain, bus_at = hexadecimal(text, at)
    if bus_at == at or bus_at - at > 8 or text[bus_at] != COLON:
        return -1, at
    bus, slot_at = hexadecimal(text, bus_at + 1)
    if slot_at != bus_at + 3 or text[slot_at] != COLON:
        return -1, at
    slot, function_at = hexadecimal(text, slot_at + 1)
    if function_at != slot_at + 3 or slot > 31 or text[function_at] != DOT:
        return -1, at
    function = text[function_at + 1] - 48
    if function < 0 or function > 7:
        return -1, at
    return domain << 16 | bus << 8 | slot << 3 | function, function_at + 2
