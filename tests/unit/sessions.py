"""A session for tests of what runs on one."""

from __future__ import annotations

from collections.abc import Callable
from typing import Self

import numpy as np

from intxtrace.capture.ring import Events
from intxtrace.capture.session import Counts
from intxtrace.events import RECORD, Kind
from intxtrace.trace.tables import Tables, Vm


class FakeSession:
    """A session whose host makes ten events at each look."""

    def __init__(self, on_take: Callable[[int], None] = lambda _: None, tables: Tables | None = None) -> None:
        self.tables = tables or Tables(vms=[Vm(0, pid=1, name="guest")])
        self.counts = Counts()
        self.on_take = on_take
        self.looks = 0
        self.stopped = False

    @property
    def safe_at(self) -> int:
        return self.counts.events

    def take(self) -> Events:
        self.looks += 1
        self.on_take(self.looks)
        return self._events(10)

    def stop(self) -> Events:
        self.stopped = True
        return self._events(3)

    def _events(self, number: int) -> Events:
        events = np.zeros(number, RECORD)
        events["kind"] = Kind.HANDLER_ENTRY
        events["ts"] = np.arange(self.counts.events, self.counts.events + number)
        self.counts.events += number
        self.counts.interrupts += number
        return events

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        pass
