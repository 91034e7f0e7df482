"""When to stop a recording that waits for something rare: `masked>5ms`."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

from intxtrace.errors import IntxtraceError
from intxtrace.units import duration

if TYPE_CHECKING:
    from intxtrace.reconstruct.state import Events
    from intxtrace.trace.tables import Tables

STAGES = ("masked", "signal", "inject", "guest", "unmask")
"""What can be waited for: the whole, or a stage."""

_EVERY_NS = 100_000_000
_UNITS = {"ns": 1, "us": 10**3, "µs": 10**3, "ms": 10**6, "s": 10**9}


@dataclass(frozen=True)
class Condition:
    """An interrupt that takes longer than so many ns in a stage, or as a whole (`masked`)."""

    stage: str
    ns: int

    def __str__(self) -> str:
        return f"{self.stage}>{duration(self.ns)}"


def parse(text: str) -> Condition:
    """Read a condition such as `masked>5ms`.

    Raises:
        IntxtraceError: it is none.
    """
    match = re.fullmatch(r"\s*([a-z]+)\s*>\s*([0-9]{1,12})\s*(ns|us|µs|ms|s)\s*", text)
    if not match or match[1] not in STAGES:
        stages = ", ".join(STAGES)
        raise IntxtraceError(
            f"--stop-when takes a stage ({stages}) and a time (ns, us, ms, s), such as masked>5ms, not {text!r}"
        )
    return Condition(match[1], int(match[2]) * _UNITS[match[3]])


class Trigger:
    """Reconstructs the interrupts while they come, and tells when one meets the condition.

    A device that is masked for longer counts too though its interrupt has not ended: what never ends is the worst.

    Args:
        condition: what to wait for.
        tables: the tables that the events name; they may grow.
        compile_from: see `Reconstructor`; 0 where it is prepared.
    """

    def __init__(self, condition: Condition, tables: Tables, *, compile_from: int | None = 0) -> None:
        from intxtrace.reconstruct import Reconstructor

        self._condition = condition
        self._reconstructor = Reconstructor(tables, compile_from=compile_from)
        self._looked_at = 0

    def see(self, events: Events, now: int) -> str:
        """Take events, and the instant (ns of their clock) before which there are no others; say what met the
        condition, or nothing.
        """
        if len(events["ts"]):
            self._reconstructor.take(events)
        if now - self._looked_at < _EVERY_NS:
            return ""
        self._looked_at = now
        longest = self._closed()
        if self._condition.stage == "masked":
            lengths = [(now if end is None else end) - begin for begin, end in self._reconstructor.masking()]
            longest = max([longest, *lengths])
        if longest <= self._condition.ns:
            return ""
        return f"{self._condition} was met: {duration(longest)}"

    def _closed(self) -> int:
        frame = self._reconstructor.closed().interrupts
        return int(frame[f"{self._condition.stage}_ns"].fillna(0).max()) if len(frame) else 0
