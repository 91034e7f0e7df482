"""A stream as blocks of whole lines, in bounded memory."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

from intxtrace.errors import IntxtraceError
from intxtrace.importers.scan import NEWLINE, PAD

BLOCK = 1 << 20
"""Bytes read at once: their columns stay in a CPU's cache."""


class Readable(Protocol):
    """What can be read: at most so many bytes, none at the end."""

    def read(self, size: int, /) -> bytes:
        """Read."""


class Block(NamedTuple):
    """Some whole lines."""

    text: bytes
    """The lines, and `scan.PAD` more newlines."""
    stops: npt.NDArray[np.int64]
    """Where the newline of each line is."""


class Blocks:
    """Reads whole lines."""

    def __init__(self, stream: Readable) -> None:
        self._stream = stream

    def __iter__(self) -> Iterator[Block]:
        """Hand out all lines, the last of them with a newline.

        Raises:
            IntxtraceError: a line is longer than any that is read here.
        """
        rest: list[bytes | memoryview] = []
        while part := self._stream.read(BLOCK):
            end = part.rfind(b"\n") + 1
            if end:
                yield _block([*rest, memoryview(part)[:end]])
                rest = [part[end:]]
            else:
                rest.append(part)
                if sum(map(len, rest)) > 2 * BLOCK:
                    raise IntxtraceError("a line is longer than any that a tracer prints; this is no text")
        if any(rest):
            yield _block([*rest, b"\n"])


def _block(parts: list[bytes | memoryview]) -> Block:
    text = b"".join([*parts, b"\n" * PAD])
    return Block(text, np.flatnonzero(np.frombuffer(text, np.uint8)[:-PAD] == NEWLINE))
