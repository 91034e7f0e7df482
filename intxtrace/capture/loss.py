"""What the kernel side could not deliver, as LOST events that stand before whatever came after the loss."""

from __future__ import annotations

import ctypes as ct
from collections.abc import Callable
from typing import Any

from intxtrace.capture.ring import Events, own_event
from intxtrace.events import Kind


class LossCounter:
    """Reads the probes' counters of failed reserves (bpf/intxtrace.c: losses) and of runs that the kernel skipped."""

    def __init__(self, bpf: Any, misses: Callable[[], list[tuple[int, int]]], now: int) -> None:
        """Count from `now` (ns, monotonic) on.

        Args:
            bpf: the bcc.BPF object with the maps.
            misses: returns (kind, count) of skipped runs since its last call; it takes one system call a program.
            now: when the probes were attached.
        """
        self._bpf = bpf
        self._misses = misses
        self._total = 0
        self._by_kind: dict[int, int] = {}
        self._looked_at = now
        self._looked_at_misses = now

    def reserves(self, now: int) -> list[Events]:
        """Return LOST events for the reserves that failed since the last call; call it after each look at the ring.

        They are stamped with the last call's time: all that was handed out is older, all that was lost is younger.
        """
        since, self._looked_at = self._looked_at, now
        total = int(self._bpf[b"lost_total"][ct.c_int(0)].value)
        if total == self._total:
            return []
        self._total = total
        lost = []
        for key, cpus in self._bpf[b"losses"].items():
            count = sum(cpus)
            new = count - self._by_kind.get(key.value, 0)
            if new:
                self._by_kind[key.value] = count
                lost.append(own_event(Kind.LOST, since, aux=key.value, arg0=since, arg1=new))
        return lost

    def skipped(self, now: int) -> list[Events]:
        """Return LOST events for the runs that were skipped since the last call of this."""
        since, self._looked_at_misses = self._looked_at_misses, now
        return [own_event(Kind.LOST, now, aux=kind, arg0=since, arg1=count) for kind, count in self._misses()]
