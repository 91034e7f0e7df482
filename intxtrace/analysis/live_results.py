"""What the live view shows at one instant: frozen dataclasses, the one source of its screen, text and JSON.

Durations are in ns; what is not known is null.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from intxtrace.analysis.results import Counts, Distribution, Interrupt, LogBins

Key = tuple[int | None, str | None]
"""Row of the device table, and name of the VM."""


@dataclass(frozen=True)
class LivePath:
    """The interrupts of the window that took one path."""

    path: str
    """Or `all`."""
    interrupts: int
    complete: int
    masked_ns: Distribution
    """Of the complete ones."""


@dataclass(frozen=True)
class LiveFloods:
    """Surplus work. Null: no probe could count it."""

    resignals: int
    unclaimed: int | None
    reentries: int | None
    bar_accesses: int | None
    """Trapped ones."""
    bursts: int
    """That reached into the window, of the last 1,000."""


@dataclass(frozen=True)
class LiveDevice:
    """One device in one VM."""

    device: int | None
    """Row of the device table."""
    bdf: str | None
    vm: str | None
    vm_pid: int | None
    host_irq: int | None
    gsi: int | None
    state: str | None
    """How interrupts would be delivered now; null if nothing has shown it."""
    bars_mapped: bool | None
    state_at: int | None
    """When it began, or the first event."""
    reason: str | None
    rate: float | None
    """Interrupts per second in the window."""
    path: str | None
    """That most interrupts of the window took; null if there was none."""
    latency: tuple[LivePath, ...]
    """Of the window: one per path, most interrupts first; with more than one path, `all` comes last."""
    masked_ns: Distribution
    """Of the complete interrupts of the window, on whatever path."""
    floods: LiveFloods
    """Of the window; what comes counted by the second, of all seconds that have a part in it."""
    lost: int
    """Events of this device that were dropped since the view began."""
    total: Counts
    """All interrupts since the view began."""

    @property
    def key(self) -> Key:
        """What tells it from the others."""
        return self.device, self.vm


@dataclass(frozen=True)
class Detail:
    """One device, looked at closely."""

    device: LiveDevice
    bins: LogBins
    """Masked times of the window."""
    last: tuple[Interrupt, ...]
    """Its last interrupts, whenever they were; latest first."""


@dataclass(frozen=True)
class LiveView:
    """What is to be seen at one instant: as JSON the data of schema `intxtrace.live`."""

    begin_at: int | None
    """The window begins here (ns of the trace's clock) …"""
    end_at: int | None
    """… and ends here. Null before the first event."""
    events: int
    """Since the view began, as everything below that is not in a window."""
    interrupts: int
    lost: int
    """Events that were dropped, those of no known device included."""
    vms: tuple[str, ...]
    """Names of the VMs that have been met and have not gone."""
    devices: tuple[LiveDevice, ...]
    """Most interrupts in the window first."""
    more_devices: int
    """Devices left out, because there are more than 500."""
    details: Mapping[Key, Callable[[], Detail]] = field(default_factory=dict, metadata={"json": False}, repr=False)
    """Make the detail of a device, as of this instant."""
