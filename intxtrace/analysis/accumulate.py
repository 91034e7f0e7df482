"""The analysis itself: frames go in batch by batch, a `Summary` comes out.

Feeding one batch or a thousand gives the same summary. Memory is bounded by devices × paths × bins, and by 16 bytes
per second and device in which there were interrupts, for the peak rate.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

import numpy as np

from intxtrace.analysis import results
from intxtrace.analysis.bins import time_step
from intxtrace.analysis.findings import diagnose, without_times
from intxtrace.analysis.missing import missing
from intxtrace.analysis.overhead import overhead
from intxtrace.analysis.part import PartTally
from intxtrace.analysis.results import MEASURES, Options, Summary
from intxtrace.analysis.rows import NULL, by_device, codes, ints
from intxtrace.analysis.tally import DeviceTally
from intxtrace.analysis.verdict import judge
from intxtrace.analysis.witness import Witness
from intxtrace.frames import COUNTER_NAMES, ORIGINS, OUTCOMES, PATHS, STAGES, STATES
from intxtrace.trace.metadata import Metadata
from intxtrace.trace.tables import Device

if TYPE_CHECKING:
    import pandas as pd

    from intxtrace.analysis.rows import Ints
    from intxtrace.trace.metadata import Metadata
from intxtrace.trace.tables import Tables

FINER = 6
"""Windows of time are counted so much finer than they are offered, for their width grows with the trace by leaps."""


class Analysis:
    """Takes interrupts, states and counters, batch by batch, and makes the summary."""

    def __init__(self, metadata: Metadata, tables: Tables, options: Options | None = None) -> None:
        self._metadata = metadata
        self._tables = tables
        self._options = options or Options()
        self.witness = Witness()
        """Wants to see the events too (`Witness.take`): some findings rest on them."""
        self._timed = metadata.clock != "none"
        self._devices: dict[tuple[int | None, str | None], DeviceTally] = {}
        self._lost = 0
        self._first: int | None = None
        self._last: int | None = None
        self._step = time_step(0, 0, 1)
        self._window = time_step(0, 0, 1)

    def add(
        self,
        interrupts: pd.DataFrame,
        states: pd.DataFrame | None = None,
        counters: pd.DataFrame | None = None,
    ) -> None:
        """Take frames with the columns of `frames.INTERRUPTS`, `frames.DEVICE_STATES` and `frames.COUNTERS`.

        Raises ValueError if a frame holds a path, origin, outcome, state or counter that `frames` does not know.
        """
        if len(interrupts):
            self._add_interrupts(interrupts)
        if states is not None and len(states):
            self._add_states(states)
        if counters is not None and len(counters):
            self._add_counters(counters)

    def _device(self, key: tuple[int | None, str | None]) -> DeviceTally:
        if key not in self._devices:
            self._devices[key] = DeviceTally(self._options)
        return self._devices[key]

    def _see(self, instants: Ints) -> None:
        """Widen the span of the trace, and the bins of time with it."""
        known = instants[instants != NULL]
        if not self._timed or not len(known):
            return
        low, high = int(known.min()), int(known.max())
        self._first = low if self._first is None else min(self._first, low)
        self._last = high if self._last is None else max(self._last, high)
        step = time_step(self._first, self._last, self._options.time_bins)
        if step != self._step:
            for device in self._devices.values():
                device.widen(step // self._step)
            self._step = step
        if self._options.windows > 1:
            window = time_step(self._first, self._last, FINER * self._options.windows)
            if window != self._window:
                for device in self._devices.values():
                    device.join_windows(window // self._window)
                self._window = window

    def _add_interrupts(self, frame: pd.DataFrame) -> None:
        stages = np.stack([ints(frame[stage]) for stage in STAGES])
        self._see(stages.ravel())
        # The instant of an interrupt is its first stage that is known.
        instants = stages[np.argmax(stages != NULL, axis=0), np.arange(len(frame))]
        windowed = self._timed and self._options.windows > 1
        windows = np.where(instants == NULL, NULL, instants // self._window if windowed else 0)
        path, origin = codes(frame["path"], PATHS), codes(frame["origin"], ORIGINS)
        outcome = codes(frame["outcome"], OUTCOMES)
        durations = {measure: ints(frame[measure]) for measure in MEASURES}
        coalesced, accesses = ints(frame["coalesced"]), ints(frame["bar_accesses"])
        masked = np.where(outcome == OUTCOMES.index("complete"), durations["masked_ns"], NULL)
        for key, rows in by_device(frame):
            device = self._device(key)
            device.add_interrupts(
                frame,
                rows,
                windows[rows],
                path[rows],
                origin[rows],
                outcome[rows],
                coalesced[rows],
                accesses[rows],
                {measure: values[rows] for measure, values in durations.items()},
            )
            if self._timed:
                device.place(instants[rows], path[rows], masked[rows], self._step)

    def _add_states(self, frame: pd.DataFrame) -> None:
        codes(frame["state"], STATES)
        self._see(np.concatenate([ints(frame["begin_at"]), ints(frame["end_at"])]))
        for key, rows in by_device(frame):
            self._device(key).add_states(frame.iloc[rows])

    def _add_counters(self, frame: pd.DataFrame) -> None:
        codes(frame["counter"], COUNTER_NAMES)
        nobody = frame["device"].isna()
        self._lost += int(frame["count"][nobody & (frame["counter"] == "lost")].sum())
        frame = frame[~(nobody & (frame["counter"] == "lost"))]
        for key, rows in by_device(frame):
            self._device(key).add_counters(frame.iloc[rows])

    def finish(self, begin_at: int | None = None, end_at: int | None = None) -> Summary:
        """Make the summary. `begin_at` and `end_at` are the trace's first and last event, where they are known;
        else the first and last instant of the frames count.
        """
        self._see(np.array([NULL if at is None else at for at in (begin_at, end_at)], np.int64))
        recording = self._recording()
        axis = self._axis()
        self._fold_nameless()
        self._add_silent()
        recorded = {kind for probe in self._tables.probes if probe.state != "missing" for kind in probe.kinds}
        wholes = {key: device.whole() for key, device in self._devices.items()}
        devices = sorted(
            (self._summarise(key, whole, recording, axis, recorded) for key, whole in wholes.items()),
            key=lambda d: (-d.counts.total, d.vm or "", d.bdf or "", -1 if d.device is None else d.device),
        )
        together = PartTally.joined(wholes.values(), 0).latency()
        return Summary(
            recording=recording,
            options=self._options,
            quality=self._quality(devices),
            probes=tuple(
                results.ProbeState(
                    p.name, p.standing, p.method, p.target, p.resolved, p.reason, p.attach_ns, p.run_ns, p.runs
                )
                for p in self._tables.probes
            ),
            devices=tuple(devices),
            missing=missing(self._metadata, recorded, devices),
            overhead=overhead(together, self._tables.probes, self._metadata),
            findings=self._findings(tuple(devices), recording.end_at),
            axis=axis,
        )

    def _findings(self, devices: tuple[results.DeviceSummary, ...], end_at: int | None) -> tuple[results.Finding, ...]:
        traits = {key: device.traits for key, device in self._devices.items()}
        found = diagnose(devices, traits, self._tables, self.witness, end_at)
        return found if self._timed else tuple(without_times(finding) for finding in found)

    def _recording(self) -> results.Recording:
        metadata, first, last = self._metadata, self._first, self._last
        return results.Recording(
            tool_version=metadata.tool_version,
            format_version=str(metadata.format_version),
            clock=metadata.clock,
            hostname=metadata.hostname,
            kernel=metadata.kernel,
            machine=metadata.machine,
            command_line=tuple(metadata.command_line),
            started_at=metadata.started_at,
            begin_at=first,
            end_at=last,
            duration_ns=None if first is None or last is None else last - first,
        )

    def _axis(self) -> results.TimeAxis | None:
        if self._first is None or self._last is None:
            return None
        first, last = self._first // self._step, self._last // self._step
        windows, joined = [self._first, self._last], 1
        if self._options.windows > 1:
            low, high = self._first // self._window, self._last // self._window
            joined = -(-(high - low + 1) // self._options.windows)
            windows[1:1] = [key * self._window for key in range(low + joined, high + 1, joined)]
        return results.TimeAxis(
            begin_at=first * self._step,
            width_ns=self._step,
            bins=last - first + 1,
            windows=tuple(windows),
            window_ns=self._window if len(windows) > 2 else None,
            joined=joined,
        )

    def _fold_nameless(self) -> None:
        """States and counters from before a device's VM was known belong to its only VM, if there is only one."""
        for key in [key for key in self._devices if key[1] is None and key[0] is not None]:
            named = [other for other in self._devices if other[0] == key[0] and other[1] is not None]
            if len(named) == 1 and self._devices[key].silent:
                self._devices[named[0]].fold(self._devices.pop(key))

    def _add_silent(self) -> None:
        """Devices of the table that no frame names are listed too, with nothing counted."""
        listed = {device for device, _ in self._devices}
        for row in self._tables.devices:
            if row.id not in listed:
                self._device((row.id, next((vm.name for vm in self._tables.vms if vm.pid == row.vm_pid), None)))

    def _summarise(
        self,
        key: tuple[int | None, str | None],
        whole: PartTally,
        recording: results.Recording,
        axis: results.TimeAxis | None,
        recorded: set[str],
    ) -> results.DeviceSummary:
        device = self._devices[key]
        row = next((row for row in self._tables.devices if row.id == key[0]), Device(0))
        vm = next((vm for vm in self._tables.vms if vm.name == key[1]), None)
        bdf = device.bdf or row.bdf or None
        counts, latency = whole.counts(), whole.latency()
        floods = device.floods(counts, recorded)
        lost = device.counted("lost")
        return results.DeviceSummary(
            device=key[0],
            bdf=bdf,
            name=row.name or None,
            vendor_id=row.vendor_id or None,
            device_id=row.device_id or None,
            host_irq=row.host_irq if device.host_irq is None else device.host_irq,
            gsi=device.gsi,
            vm=key[1],
            vm_pid=vm.pid if vm and device.vm_pid is None else device.vm_pid,
            verdict=judge(key[1], bdf, counts, latency, floods, lost),
            counts=counts,
            rate=device.rate(counts.total, recording.duration_ns),
            latency=latency,
            floods=floods,
            states=device.states(recording.end_at),
            slowest=tuple(whole.slowest),
            slowdowns=device.slowdowns(axis, latency[-1].masked_ns.p50 if latency else None),
            lost=lost,
            figures=device.figures(whole, axis),
            spans=device.spans(axis),
            windows=device.windows(axis),
        )

    def _quality(self, devices: list[results.DeviceSummary]) -> results.Quality:
        outcomes = {name: sum(device.counts.outcome[name] for device in devices) for name in OUTCOMES}
        states = [probe.standing for probe in self._tables.probes]
        return results.Quality(
            interrupts=sum(device.counts.total for device in devices),
            unknown_path=sum(device.counts.path["unknown"] for device in devices),
            unmeasured=sum(path.unmeasured for device in devices for path in device.latency if path.path != "all"),
            lost=self._lost + sum(device.lost for device in devices),
            probes_attached=states.count("attached"),
            probes_fallback=states.count("fallback"),
            probes_missing=states.count("missing"),
            **outcomes,
        )


def analyse(
    frames: Iterable[tuple[pd.DataFrame, pd.DataFrame, pd.DataFrame]],
    metadata: Metadata,
    tables: Tables,
    options: Options | None = None,
) -> Summary:
    """Make the summary of (interrupts, states, counters), batch by batch; `tables` may fill while they come."""
    analysis = Analysis(metadata, tables, options)
    for batch in frames:
        analysis.add(*batch)
    return analysis.finish()
