"""A scanner as compiled code, where there is enough text for that to pay."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from importlib import import_module
from typing import Any

import numpy as np

from intxtrace.importers import ftrace_scan, qemu_scan, scan
from intxtrace.importers.blocks import Block

LOAD_FROM = 2 << 20
"""Bytes of text from which on loading a compiled scanner is worth its time."""

COMPILE_FROM = 16 << 20
"""Bytes from which on compiling it is, the first time on a machine."""

_SCANNERS = {
    ftrace_scan.scan: (ftrace_scan, (1, 2, 2, 2, 2, 2, 2, 2, 1, 1)),
    qemu_scan.scan: (qemu_scan, (1, 2, 1, 2, 1)),
}
"""A scanner, its module, which runs with the functions of `scan`, and the dimensions of its arrays."""

_compiled: dict[Any, Any] = {}


class Scanner:
    """A scanner that is compiled once it has read much.

    Its arguments are the text, the first line to read, and arrays of int64; it returns the next line.
    """

    def __init__(self, function: Any) -> None:
        self._function = function
        self._read = 0
        self._is_compiled = False

    def scanned(self, block: Block, arrays: Callable[[], tuple[Any, ...]], size: int) -> Iterator[list[int]]:
        """Scan a block's lines; hand out what was counted whenever an output is full, and at the end.

        Args:
            block: whole lines.
            arrays: give the scanner's tables and outputs, each time anew.
            size: how much the scanner counts.
        """
        scan, text = self._ready(block.text)
        line = 0
        while line < len(block.stops):
            counts = np.zeros(size, np.int64)
            line = scan(text, line, block.stops, *arrays(), counts)
            yield counts.tolist()

    def _ready(self, text: bytes) -> tuple[Any, Any]:
        """Return the function that reads this text, and the text as it takes it."""
        self._read += len(text)
        self._is_compiled = self._is_compiled or self._function in _compiled or self._pays()
        if not self._is_compiled:
            return self._function, text
        return compiled_scanner(self._function), np.frombuffer(text, np.uint8)

    def _pays(self) -> bool:
        return self._read >= COMPILE_FROM or (self._read >= LOAD_FROM and _is_kept(self._function))


def prepare() -> None:
    """Compile the scanners, or load them."""
    for function in _SCANNERS:
        compiled_scanner(function)


def compiled_scanner(function: Any) -> Any:
    """Return a scanner as compiled code."""
    if function not in _compiled:
        from intxtrace.reconstruct.compile import array, compiled

        types: Any = import_module("numba.core.types")
        module, dimensions = _SCANNERS[function]
        tables = [array(np.int64, readonly=False, dimensions=number) for number in dimensions]
        signature = types.int64(array(np.uint8), types.int64, *tables)
        _compiled[function] = compiled((scan, module), function, signature)
    return _compiled[function]


def _is_kept(function: Any) -> bool:
    from intxtrace.reconstruct.compile import is_kept

    return is_kept(function)
