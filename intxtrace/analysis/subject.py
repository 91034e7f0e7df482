"""What a rule of the diagnosis looks at: one device in one VM, and all that is known of it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from intxtrace.analysis.results import Evidence, Finding
from intxtrace.analysis.traits import Sample, Traits, Unended
from intxtrace.qemu_options import QemuOptions
from intxtrace.trace.tables import Device

if TYPE_CHECKING:
    from intxtrace.analysis.results import DeviceSummary
    from intxtrace.analysis.witness import Witness

STUCK_NS = 1_000_000_000
"""A line that stays masked for so long, to the end, is never unmasked."""
SETTLED_NS, SETTLED_SHARE = 1_000_000_000, 0.1
"""A device that had so long to settle, and was on a path for less of that time, was only passing through."""


@dataclass(frozen=True)
class Subject:
    """One device in one VM, and all that is known of it."""

    summary: DeviceSummary
    traits: Traits
    row: Device
    vm_row: int | None
    options: QemuOptions
    end_at: int | None
    witness: Witness
    all: Callable[[], list[Subject]]

    @property
    def properties(self) -> dict[str, str]:
        """What QEMU's command line says of this device."""
        return self.options.device(self.summary.bdf or "")

    def mostly(self, path: str) -> bool:
        """Whether at least half of its interrupts took this path, and it was set up so for some of the time.

        The interrupts before QEMU sets the bypass up take the userspace path; a quiet device may have no others.
        """
        counts, times = self.summary.counts, self.summary.states.time_ns
        lived = sum(times.get(state, 0) for state in ("kernel", "hybrid", "userspace"))
        often = counts.total > 0 and 2 * counts.path[path] >= counts.total
        return often and (lived < SETTLED_NS or times.get(path, 0) >= SETTLED_SHARE * lived)

    def stuck(self) -> tuple[Unended, int] | None:
        """The interrupt that masked the line for longest, to the end, and for how long; None if there is none.

        A device that virtually masks itself (path held) is not stuck: it waits for its guest.
        """
        found = []
        for one in self.traits.unended:
            until = self.traits.next_mode_at(one.masked_at) or self.end_at
            if one.path != "held" and until is not None and until - one.masked_at >= STUCK_NS:
                found.append((one, until - one.masked_at))
        return max(found, key=lambda item: item[1], default=None)

    def finding(
        self, name: str, severity: str, title: str, why: str, advice: str, *evidence: Evidence | None
    ) -> Finding:
        """Make a finding about this device."""
        device = self.summary
        kept = tuple(one for one in evidence if one is not None)
        return Finding(name, severity, device.device, device.bdf, device.vm, device.vm_pid, title, kept, why, advice)


def sampled(what: str, sample: Sample, total: int | None) -> Evidence:
    """Make evidence of a sample, of so many in all."""
    return Evidence(what, sample.count, total, sample.first_at, sample.last_at, tuple(sample.ids))
