"""Where a key is in the hash map: `identity.py` looks keys up, `state.py` makes the map larger."""

from __future__ import annotations

from typing import Any


def slot_of(slots: Any, rows: int, tag: int, a: int, b: int) -> int:
    """Return where a key is in the first `rows` of the hash map, or where it would go (linear probing)."""
    mask = rows - 1
    # Bits 32 and up of the product are the same in wrapping and in unbounded integers.
    at = ((a ^ (b * 0x9E3779B1) ^ (tag << 56)) * 0x1E3779B97F4A7C15 >> 32) & mask
    while slots[at].tag != 0 and (slots[at].a != a or slots[at].b != b or slots[at].tag != tag):
        at = (at + 1) & mask
    return at
