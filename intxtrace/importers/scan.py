"""Reading numbers and words out of a block of text, for all lines at once.

Nothing here loops over lines: a position is an array of offsets into the block, one per line, and every step is a numpy
operation on all of them. Eight bytes at any offset are one load (`Text.words`, an unaligned view).
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

Offsets = npt.NDArray[np.int64]
Numbers = npt.NDArray[np.uint64]
Mask = npt.NDArray[np.bool_]

PAD = 64
"""Bytes around the text, so that a load near its edge stays inside."""

_U = np.uint64
_ONES = 0x0101010101010101
_HIGH = _U(0x80 * _ONES)
_DIGIT = np.full(256, 255, np.uint8)
for _value, _char in enumerate(b"0123456789abcdef"):
    _DIGIT[_char] = _value
for _value, _char in enumerate(b"ABCDEF", 10):
    _DIGIT[_char] = _value


def word(text: bytes) -> tuple[np.uint64, np.uint64]:
    """Return up to 8 bytes as one number, and the mask of the bytes that they fill."""
    size = len(text)
    return _U(int.from_bytes(text, "little")), _U((1 << 8 * size) - 1)


class Text:
    """A block of whole lines, as bytes with newlines around them."""

    def __init__(self, data: bytes) -> None:
        edge = b"\n" * PAD
        self.data = b"".join((edge, data, edge))
        self.bytes: npt.NDArray[np.uint8] = np.frombuffer(self.data, np.uint8)
        self.words: Numbers = np.ndarray((len(self.data) - 7,), "<u8", self.data, strides=(1,))

    def find(self, char: bytes) -> Offsets:
        """Return the offsets of all bytes like this one."""
        return np.flatnonzero(self.bytes == char[0])

    def lines(self) -> tuple[Offsets, Offsets]:
        """Return where each line begins and where it ends (at its newline)."""
        ends = self.find(b"\n")[PAD - 1 : 1 - PAD]
        return ends[:-1] + 1, ends[1:]

    def has(self, at: Offsets, text: bytes) -> Mask:
        """Return where this text stands."""
        found = np.ones(len(at), np.bool_)
        for begin in range(0, len(text), 8):
            value, mask = word(text[begin : begin + 8])
            found &= (self.words[at + begin] & mask) == value
        return found

    def decimal(self, at: Offsets) -> tuple[Numbers, Offsets]:
        """Read numbers such as `12` and `-3`: two's complement, and where they end."""
        return self._digits(at, 10, 20)

    def hexadecimal(self, at: Offsets) -> tuple[Numbers, Offsets]:
        """Read numbers such as `ff1100000626e800`, with no `0x` before them, and where they end."""
        high, low = self.words[at], self.words[at + 8]
        whole = (_not_hex(high) | _not_hex(low)) == 0  # Kernel pointers have all 16 digits.
        values = _hex8(high) << _U(32) | _hex8(low)
        ends = at + 16
        rest = np.flatnonzero(~whole)
        if len(rest):
            values[rest], ends[rest] = self._digits(at[rest], 16, 16)
        return values, ends

    def number(self, at: Offsets) -> tuple[Numbers, Offsets]:
        """Read numbers as kprobes print them: `0x1f` or `31` or `-31`."""
        is_hex = self.has(at, b"0x")
        if is_hex.all():
            return self.hexadecimal(at + 2)
        values, ends = np.zeros(len(at), np.uint64), at.copy()
        for rows, read, skip in (
            (np.flatnonzero(is_hex), self.hexadecimal, 2),
            (np.flatnonzero(~is_hex), self.decimal, 0),
        ):
            if len(rows):
                values[rows], ends[rows] = read(at[rows] + skip)
        return values, ends

    def skip(self, at: Offsets, char: bytes) -> Offsets:
        """Return where the run of these characters ends."""
        at = at.copy()
        rows = np.flatnonzero(self.bytes[at] == char[0])
        while len(rows):
            at[rows] += 1
            rows = rows[self.bytes[at[rows]] == char[0]]
        return at

    def _digits(self, at: Offsets, base: int, most: int) -> tuple[Numbers, Offsets]:
        negative = self.bytes[at] == ord("-") if base == 10 else np.zeros(len(at), np.bool_)
        ends = at + negative
        values = np.zeros(len(at), np.uint64)
        rows: Any = slice(None)
        for _ in range(most):
            digit = _DIGIT[self.bytes[ends[rows]]]
            more = digit < base
            if not more.all():
                rows = np.flatnonzero(more) if isinstance(rows, slice) else rows[more]
                digit = digit[more]
                if not len(rows):
                    break
            values[rows] = values[rows] * _U(base) + digit
            ends[rows] += 1
        if negative.any():
            values[negative] = ~values[negative] + _U(1)
        return values, ends


def _not_hex(eight: Numbers) -> Numbers:
    """Return words whose bytes have their high bit set where the character is no hexadecimal digit."""
    lower = eight & ~_HIGH | _U(0x20 * _ONES)
    digit = (lower + _U((0x80 - 0x30) * _ONES)) & ~(lower + _U((0x7F - 0x39) * _ONES))
    letter = (lower + _U((0x80 - 0x61) * _ONES)) & ~(lower + _U((0x7F - 0x66) * _ONES))
    not_hex: Numbers = (~(digit | letter) | eight) & _HIGH
    return not_hex


def _hex8(eight: Numbers) -> Numbers:
    """Turn words of eight hexadecimal digits, the first of them lowest, into numbers."""
    nibbles = ((eight & _U(0x0F * _ONES)) + _U(9) * ((eight >> _U(6)) & _U(_ONES))).byteswap()
    nibbles = (nibbles | nibbles >> _U(4)) & _U(0x00FF00FF00FF00FF)
    nibbles = (nibbles | nibbles >> _U(8)) & _U(0x0000FFFF0000FFFF)
    value: Numbers = (nibbles | nibbles >> _U(16)) & _U(0xFFFFFFFF)
    return value
