"""A summary as OpenMetrics text, for the textfile collector of Prometheus' node exporter.

The text is OpenMetrics 1.0, and readable as Prometheus' older text format (0.0.4), which is what the textfile
collector reads (prometheus/common expfmt/text_parse.go): there `# UNIT` and `# EOF` are comments, counters have no
type, and types that are OpenMetrics' own, such as info, are an error. The figures are those of one recording.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from intxtrace.analysis.results import STAGE_MEASURES
from intxtrace.units import printable

if TYPE_CHECKING:
    from intxtrace.analysis.results import DeviceSummary, LogBins, Summary

PER_DECADE = 5
_FIRST, _LAST = 10, 50  # in fifths of a decade of ns: 100 ns to 10 s
BOUNDS = tuple((place, float(f"{10 ** (place / PER_DECADE - 9):.4g}")) for place in range(_FIRST, _LAST + 1))
"""Upper bounds of the histograms' buckets: place on the log axis of ns, and seconds. The same in every file, so that
files can be added up; a value that lies on a bound may be counted on either side, as the histogram is 1 % exact."""

_FLOODS = {
    "handler_calls": "Calls of vfio_intx_handler, claimed or not: what /proc/interrupts counts for the line.",
    "unclaimed": "Handler calls that claimed nothing: a shared line.",
    "spurious_wakeups": "QEMU woke up and found no interrupt.",
    "noop_unmasks": "Unmasks with no interrupt in flight.",
    "resignals": "Interrupts signalled again because an unmask found the line still asserted.",
    "reentries": "Guest acknowledgements between assertion and QEMU's EOI.",
    "bar_reads": "Trapped BAR reads.",
    "bar_writes": "Trapped BAR writes.",
    "bursts": "Stretches of very many interrupts a second.",
    "burst_interrupts": "Interrupts in bursts.",
}

Labels = dict[str, str]


@dataclass
class _Family:
    """A metric and its samples: what comes after its name, the labels, the value."""

    kind: str
    meaning: str
    unit: str = ""
    samples: list[tuple[str, Labels, float | int]] = field(default_factory=list)


def openmetrics(found: Summary) -> str:
    """Write a summary. What is not known is left out, never 0."""
    families: dict[str, _Family] = {
        "intxtrace_recording_info": _Family("gauge", "Where and with what the interrupts were recorded."),
        "intxtrace_recording_start_time_seconds": _Family("gauge", "When the recording started.", "seconds"),
        "intxtrace_recording_duration_seconds": _Family("gauge", "How long it lasted.", "seconds"),
        "intxtrace_interrupts": _Family("counter", "Interrupts."),
        "intxtrace_masked_seconds": _Family(
            "histogram", "From raised to unmasked, in which the device cannot interrupt; complete ones.", "seconds"
        ),
        "intxtrace_stage_seconds": _Family("histogram", "Time of one stage; complete interrupts.", "seconds"),
        "intxtrace_coalesced": _Family("counter", "Interrupts merged into one that the guest had not acknowledged."),
        **{f"intxtrace_{name}": _Family("counter", meaning) for name, meaning in _FLOODS.items()},
        "intxtrace_burst_seconds": _Family("counter", "Time in bursts.", "seconds"),
        "intxtrace_state_seconds": _Family("counter", "Time in which the device's delivery was so.", "seconds"),
        "intxtrace_lost_events": _Family("counter", "Events dropped while recording; no device: it cannot be told."),
    }
    recording = found.recording
    about = {
        "version": recording.tool_version,
        "hostname": recording.hostname,
        "kernel": recording.kernel,
        "clock": recording.clock,
    }
    families["intxtrace_recording_info"].samples.append(("", about, 1))
    if recording.started_at is not None:
        samples = families["intxtrace_recording_start_time_seconds"].samples
        samples.append(("", {}, recording.started_at / 1e9))
    if recording.duration_ns is not None:
        families["intxtrace_recording_duration_seconds"].samples.append(("", {}, recording.duration_ns / 1e9))
    for device, labels in zip(found.devices, _names(found.devices), strict=True):
        _add_device(families, device, labels)
    nobodys = found.quality.lost - sum(device.lost for device in found.devices)
    families["intxtrace_lost_events"].samples.append(("_total", {"device": "", "vm": ""}, nobodys))
    return "".join(_text(name, family) for name, family in families.items()) + "# EOF\n"


def _names(devices: tuple[DeviceSummary, ...]) -> list[Labels]:
    """Give each device labels of its own; what would be another's gets the table row too."""
    names: list[Labels] = []
    for device in devices:
        row = "unknown" if device.device is None else f"#{device.device}"
        labels = {"device": device.bdf or row, "vm": printable(device.vm or "")}  # Two names may look the same.
        names.append({**labels, "device": f"{labels['device']} {row}"} if labels in names else labels)
    return names


def _add_device(families: dict[str, _Family], device: DeviceSummary, labels: Labels) -> None:
    def count(name: str, value: float | None, **more: str) -> None:
        if value is not None:
            families[f"intxtrace_{name}"].samples.append(("_total", {**labels, **more}, value))

    for row in device.counts.rows:
        count("interrupts", row.count, path=row.path, origin=row.origin, outcome=row.outcome)
    for path in device.figures:
        for measure, bins in path.distributions.items():
            stage = {"stage": measure.removesuffix("_ns")} if measure in STAGE_MEASURES else {}
            name = "intxtrace_stage_seconds" if stage else "intxtrace_masked_seconds"
            _add_histogram(families[name], {**labels, "path": path.path, **stage}, bins)
    count("coalesced", device.counts.coalesced)
    for name in _FLOODS:
        count(name, getattr(device.floods, name))
    if device.floods.burst_ns is not None:
        count("burst_seconds", device.floods.burst_ns / 1e9)
    for state, ns in device.states.time_ns.items():
        count("state_seconds", ns / 1e9, state=state)
    count("lost_events", device.lost)


def _add_histogram(family: _Family, labels: Labels, bins: LogBins) -> None:
    total = sum(bins.counts)
    if not total:
        return
    for place, seconds in BOUNDS:
        below = place * bins.per_decade // PER_DECADE - bins.first
        family.samples.append(("_bucket", {**labels, "le": repr(seconds)}, sum(bins.counts[: max(below, 0)])))
    family.samples.append(("_bucket", {**labels, "le": "+Inf"}, total))
    family.samples.append(("_count", labels, total))
    family.samples.append(("_sum", labels, bins.sum / 1e9))


def _text(name: str, family: _Family) -> str:
    if not family.samples:
        return ""
    lines = [f"# TYPE {name} {family.kind}"]
    if family.unit:
        lines.append(f"# UNIT {name} {family.unit}")
    lines.append(f"# HELP {name} {family.meaning}")
    for suffix, labels, value in family.samples:
        inner = ",".join(f'{key}="{_escaped(text)}"' for key, text in labels.items())
        lines.append(f"{name}{suffix}{{{inner}}} {value!r}" if inner else f"{name}{suffix} {value!r}")
    return "\n".join(lines) + "\n"


def _escaped(text: str) -> str:
    """Make a name from a guest or a host safe in a label: no control character, no lone surrogate, bounded."""
    return printable(text).replace("\\", "\\\\").replace('"', '\\"')
