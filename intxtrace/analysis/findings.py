"""Diagnosis: what is wrong, what shows it, why it is so and what to do. Named findings, only what the trace proves.

`diagnose` takes what the analysis counted and gives findings, worst first; nothing for a healthy device. Each rule is
one function in `path_findings`, `masked_findings` or `flood_findings`, with the QEMU or kernel source that makes it so.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import TYPE_CHECKING

from intxtrace.analysis import flood_findings, masked_findings, path_findings
from intxtrace.analysis.results import Finding
from intxtrace.analysis.subject import Subject
from intxtrace.analysis.traits import Traits
from intxtrace.qemu_options import QemuOptions, read
from intxtrace.trace.tables import Device

if TYPE_CHECKING:
    from intxtrace.analysis.results import DeviceSummary
    from intxtrace.analysis.witness import Witness
    from intxtrace.trace.tables import Tables

SEVERITIES = ("problem", "warning", "note")
"""`problem`: interrupts stop, or will; `warning`: they cost far more than they need; `note`: worth knowing."""

_RULES: tuple[Callable[[Subject], Iterator[Finding]], ...] = (
    path_findings.slow_path,
    path_findings.split,
    path_findings.refused,
    masked_findings.stays_masked,
    path_findings.msi_unused,
    flood_findings.resignals,
    flood_findings.reentry,
    flood_findings.trapped,
    masked_findings.delays,
)


def diagnose(
    devices: tuple[DeviceSummary, ...],
    traits: dict[tuple[int | None, str | None], Traits],
    tables: Tables,
    witness: Witness,
    end_at: int | None,
) -> tuple[Finding, ...]:
    """Name what is wrong with these devices, worst first, then in their order.

    `traits` are by row of the device table and name of the VM; `end_at` is the trace's last instant, None without a
    clock.
    """
    subjects: list[Subject] = []
    rows = {row.id: row for row in tables.devices}
    for summary in devices:
        vm = next(
            (vm for vm in tables.vms if vm.name == summary.vm and summary.vm_pid in (None, vm.pid)),
            None,
        )
        key = (summary.device, summary.vm)
        subjects.append(
            Subject(
                summary,
                traits.get(key) or Traits(),
                rows.get(-1 if summary.device is None else summary.device, Device(-1)),
                vm.id if vm else None,
                read(vm.command_line) if vm else QemuOptions(),
                end_at,
                witness,
                lambda: subjects,
            )
        )
    found = [finding for subject in subjects for rule in _RULES for finding in rule(subject)]
    found += flood_findings.unclaimed_lines(subjects)
    return tuple(sorted(found, key=lambda finding: SEVERITIES.index(finding.severity)))


def without_times(finding: Finding) -> Finding:
    """Give the finding without instants: they mean nothing where the clock only orders."""
    evidence = tuple(replace(one, begin_at=None, end_at=None) for one in finding.evidence)
    return replace(finding, evidence=evidence)
