"""What the analysis finds: frozen dataclasses, the one source of the terminal text, the JSON and the page.

Instants end in `_at` and are in ns of the trace's clock; durations end in `_ns`. What is not known is null, never 0.
"""

from __future__ import annotations

from dataclasses import dataclass, field

MEASURES = ("masked_ns", "signal_ns", "inject_ns", "guest_ns", "unmask_ns")
"""What is measured of an interrupt: the whole, then its stages in order."""

STAGE_MEASURES = MEASURES[1:]


@dataclass(frozen=True)
class Options:
    """What a reader may choose."""

    burst_rate: float = 10_000.0
    """Interrupts per second above which a burst is one …"""
    burst_ns: int = 10_000_000
    """… if it lasts so long."""
    slowest: int = 20
    """How many of the slowest interrupts of each device are listed."""
    time_bins: int = 200
    """Bins of time that the figures have at most."""
    windows: int = 1
    """Windows of time, at most, of which a reader can select a run; 1: none. The page offers some."""

    def __post_init__(self) -> None:
        if not 1 <= self.burst_rate * self.burst_ns / 1e9 <= 1e7:
            raise ValueError("a burst must be between 1 and 10,000,000 interrupts long")
        if self.slowest < 0 or self.time_bins < 1 or self.windows < 1:
            raise ValueError("slowest must be 0 or more, time_bins and windows 1 or more")


@dataclass(frozen=True)
class Distribution:
    """Statistics of whole numbers: ns where the field that holds it ends in `_ns`, else a count.

    Minimum, maximum, mean and count are exact; a percentile is at most 1 % off the value of its rank, and p99.99
    is null below 10,000 samples. Of nothing, all but the count are null.
    """

    count: int
    min: int | None
    max: int | None
    mean: float | None
    p50: int | None
    p90: int | None
    p99: int | None
    p99_9: int | None
    p99_99: int | None


@dataclass(frozen=True)
class StageShare:
    """How a path's mean masked time is made up: the parts add up to the mean of `masked_ns`."""

    signal_ns: float
    inject_ns: float
    guest_ns: float
    unmask_ns: float
    unsplit_ns: float
    """Masked time between stages that were not seen."""


@dataclass(frozen=True)
class PathLatency:
    """The latencies of the interrupts of one device on one path. Only complete ones are in them."""

    path: str
    """Or `all`."""
    interrupts: int
    """All of them, of any outcome."""
    complete: int
    unmeasured: int
    """Complete, but their masked time is not known: raised at an unknown instant (pending), or no clock."""
    masked_ns: Distribution
    signal_ns: Distribution
    inject_ns: Distribution
    guest_ns: Distribution
    unmask_ns: Distribution
    mean_parts: StageShare | None
    """Null if no masked time is known."""


@dataclass(frozen=True)
class CountRow:
    """How many interrupts had this path, origin and outcome; rows of 0 are left out."""

    path: str
    origin: str
    outcome: str
    count: int


@dataclass(frozen=True)
class Counts:
    """How many interrupts."""

    total: int
    path: dict[str, int]
    origin: dict[str, int]
    outcome: dict[str, int]
    rows: tuple[CountRow, ...]
    coalesced: int | None
    """Merged into a delivery that the guest had not acknowledged; null if that is known of no interrupt."""


@dataclass(frozen=True)
class Rate:
    """Interrupts per second. Null without a clock."""

    mean: float | None
    """Over the whole recording."""
    peak: int | None
    """Most in one second, of the seconds of the trace's clock."""
    peak_at: int | None
    """Begin of that second."""


@dataclass(frozen=True)
class Burst:
    """A stretch with more interrupts than `Options.burst_rate` for `Options.burst_ns` or longer."""

    begin_at: int
    end_at: int
    interrupts: int


@dataclass(frozen=True)
class OffsetCount:
    """Trapped accesses at one offset of one region."""

    region: int | None
    offset: int
    reads: int
    writes: int


@dataclass(frozen=True)
class Floods:
    """Surplus work, each kind by itself. Null: no probe of this recording could count it."""

    handler_calls: int | None
    """Calls of vfio_intx_handler, claimed or not: what /proc/interrupts counts for the line."""
    unclaimed: int | None
    spurious_wakeups: int | None
    noop_unmasks: int | None
    resignals: int
    reentries: int | None
    bar_reads: int | None
    bar_writes: int | None
    bar_accesses: Distribution
    """Trapped accesses per interrupt, of the interrupts of which it is known."""
    top_offsets: tuple[OffsetCount, ...]
    """The most accessed, most first."""
    other_offsets: int | None
    """Accesses at offsets that are not listed; null if no offset was recorded."""
    bursts: int | None
    burst_interrupts: int | None
    burst_ns: int | None
    largest_bursts: tuple[Burst, ...]
    late: int
    """Interrupts out of order of time, which the search for bursts left out."""


@dataclass(frozen=True)
class StateInterval:
    """One device state and when it was in force."""

    state: str
    bars_mapped: bool | None
    begin_at: int
    end_at: int | None
    reason: str | None


@dataclass(frozen=True)
class States:
    """The states of a device."""

    time_ns: dict[str, int]
    """Time in each state, exact. Empty without a clock."""
    changes: int
    """How many intervals there were."""
    intervals: tuple[StateInterval, ...]
    """In order of time; if there were very many, the longest."""


@dataclass(frozen=True)
class Interrupt:
    """One interrupt: a row of the interrupts frame, the columns of `intxtrace.frames.INTERRUPTS`."""

    id: int
    parent_id: int | None
    device: int | None
    bdf: str | None
    vm: str | None
    vm_pid: int | None
    host_irq: int | None
    gsi: int | None
    path: str
    origin: str
    outcome: str
    coalesced: bool | None
    raised_at: int | None
    signalled_at: int | None
    injected_at: int | None
    acknowledged_at: int | None
    unmasked_at: int | None
    eoi_at: int | None
    unmask_proof: str | None
    signal_ns: int | None
    inject_ns: int | None
    guest_ns: int | None
    unmask_ns: int | None
    masked_ns: int | None
    bar_accesses: int | None
    reentries: int | None


@dataclass(frozen=True)
class Verdict:
    """What to make of a device, in one sentence."""

    level: str
    """`good`, `note`, `bad`, or `unknown` where the evidence does not say."""
    text: str


@dataclass(frozen=True)
class LogBins:
    """Counts in bins of a log axis: bin i covers 10^((first + i) / per_decade) up to the next."""

    per_decade: int
    first: int
    counts: tuple[int, ...]
    sum: int = 0
    """Of everything counted, exact."""


@dataclass(frozen=True)
class PathFigures:
    """What the figures of one path draw. `rate` has one count per bin of the time axis."""

    path: str
    rate: tuple[int, ...]
    distributions: dict[str, LogBins]
    """By measure."""
    density: tuple[tuple[int, int, int], ...]
    """Cells of masked time over time that are not 0: bin of time, bin of a log axis (10 to the decade), count."""


@dataclass(frozen=True)
class Slowdown:
    """A stretch of time, of whole bins of the figures, in each of which at least a tenth of the interrupts was slow.

    At least two were.
    """

    begin_at: int
    end_at: int
    interrupts: int
    """With a known masked time, complete ones only …"""
    slow: int
    """… and how many of them were masked for the threshold or longer."""


@dataclass(frozen=True)
class Slowdowns:
    """When a device was slow by its own measure."""

    threshold_ns: int | None
    """At least three times the median masked time of the device. Null if that is not known."""
    count: int
    largest: tuple[Slowdown, ...]
    """Most slow interrupts first."""


@dataclass(frozen=True)
class Span:
    """A run of neighbouring windows of time: what its interrupts were."""

    first: int
    """Number of its first window, from 0 …"""
    last: int
    """… and of its last one."""
    counts: Counts
    mean_rate: float | None
    latency: tuple[PathLatency, ...]


@dataclass(frozen=True)
class WindowFigures:
    """What the figures draw of one window of time. Bins of windows add up to those of their span."""

    distributions: dict[str, dict[str, LogBins]]
    """By path, then by measure."""
    slowest: tuple[Interrupt, ...]


@dataclass(frozen=True)
class DeviceSummary:
    """One device in one VM."""

    device: int | None
    """Row of the device table."""
    bdf: str | None
    name: str | None
    """Of the device, where the host knows one."""
    vendor_id: int | None
    device_id: int | None
    host_irq: int | None
    gsi: int | None
    vm: str | None
    vm_pid: int | None
    verdict: Verdict
    counts: Counts
    rate: Rate
    latency: tuple[PathLatency, ...]
    """One per path that has interrupts, most first; with more than one path, `all` comes last."""
    floods: Floods
    states: States
    slowest: tuple[Interrupt, ...]
    """By masked time, complete ones only."""
    slowdowns: Slowdowns
    lost: int
    """Events of this device that were dropped."""
    figures: tuple[PathFigures, ...] = field(default=(), metadata={"json": False})
    spans: tuple[Span, ...] = field(default=(), metadata={"json": False})
    """One per run of windows but the one of all; empty without `Options.windows`."""
    windows: tuple[WindowFigures, ...] = field(default=(), metadata={"json": False})
    """One per window; empty without `Options.windows`."""


@dataclass(frozen=True)
class Evidence:
    """What shows a finding. Null: not known, or it has none."""

    text: str
    count: int | None = None
    total: int | None = None
    """Of so many."""
    begin_at: int | None = None
    """When it began, or was first seen …"""
    end_at: int | None = None
    """… and ended, or was last seen."""
    interrupts: tuple[int, ...] = ()
    """Ids of the first of the interrupts in question, at most ten."""


@dataclass(frozen=True)
class Finding:
    """Something that is wrong with a device, what shows it, and what to do. See `intxtrace.analysis.findings`."""

    name: str
    """Stable: programs may look for it."""
    severity: str
    """`problem`: interrupts stop, or will; `warning`: they cost far more than they need; `note`: worth knowing."""
    device: int | None
    """Row of the device table."""
    bdf: str | None
    vm: str | None
    vm_pid: int | None
    title: str
    """What is so, in a sentence."""
    evidence: tuple[Evidence, ...]
    explanation: str
    advice: str


@dataclass(frozen=True)
class TimeAxis:
    """The bins of time that the figures share: bin i begins at `begin_at + i * width_ns`."""

    begin_at: int
    width_ns: int
    bins: int
    windows: tuple[int, ...]
    """Edges of the windows of time that can be selected, the trace's first and last instant included."""
    window_ns: int | None
    """A window is `joined` times so wide (the first and the last end with the recording); null: there is only one."""
    joined: int


@dataclass(frozen=True)
class Recording:
    """Where, when and with what the trace was made."""

    tool_version: str
    format_version: str
    clock: str
    hostname: str
    kernel: str
    machine: str
    command_line: tuple[str, ...]
    started_at: int | None
    """Wall clock, ns since 1970 UTC."""
    begin_at: int | None
    """First instant of the trace."""
    end_at: int | None
    duration_ns: int | None
    """Null without a clock."""


@dataclass(frozen=True)
class ProbeState:
    """One probe: what it was to watch, and how it was attached, or why not."""

    name: str
    state: str
    """`attached`, `fallback`, `missing`, or `absent`: missing, because this kernel has no need of it."""
    method: str
    target: str
    resolved: str
    reason: str
    attach_ns: int | None = None
    """What being watched cost a call of its target, without its programs: measured on the host; null: not measured."""
    run_ns: int | None = None
    """Median time of its programs for a call that concerned somebody traced, at the beginning of the recording; null:
    not measured, or there was none."""
    runs: int | None = None
    """Of so many calls."""


@dataclass(frozen=True)
class PathOverhead:
    """What the probes cost an interrupt of one path, about. See `intxtrace.analysis.overhead`."""

    path: str
    probes_ns: int | None
    """All that run between raised and unmasked; null: the cost of one of them was not measured."""
    masked_ns: int | None
    """Median masked time of the complete interrupts of this path; null: of none is it known."""
    share: float | None
    """`probes_ns` of `masked_ns`, which contains it: 0.1 is a tenth. Null: one of them is not known."""


@dataclass(frozen=True)
class Quality:
    """How far the figures can be trusted."""

    interrupts: int
    complete: int
    open: int
    headless: int
    lossy: int
    cancelled: int
    unknown_path: int
    unmeasured: int
    lost: int
    """Events that were dropped, those of no known device included."""
    probes_attached: int
    probes_fallback: int
    probes_missing: int


@dataclass(frozen=True)
class Missing:
    """Something that an imported recording cannot tell."""

    what: str
    how: str
    """What to record, so that it can."""


@dataclass(frozen=True)
class Summary:
    """The answer. As JSON: the data of schema `intxtrace.summary`, without the figures."""

    recording: Recording
    options: Options
    quality: Quality
    probes: tuple[ProbeState, ...]
    devices: tuple[DeviceSummary, ...]
    """Most interrupts first."""
    missing: tuple[Missing, ...] = ()
    """Recordings of other tools: what they cannot tell."""
    overhead: tuple[PathOverhead, ...] = ()
    """The probes' own share of masked time, by path; none for recordings of other tools."""
    findings: tuple[Finding, ...] = ()
    """What is wrong, worst first; none if nothing is."""
    axis: TimeAxis | None = field(default=None, metadata={"json": False})
    """Null without a clock or without an interrupt."""
