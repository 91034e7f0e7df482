"""Guests with one thing wrong each: what intxtrace names of them, and what `devices` says, against what is so."""

from __future__ import annotations

import json
import re
from collections import Counter
from pathlib import Path
from typing import Any

import intxtrace
from intxtrace.analysis import Analysis, Summary
from intxtrace.analysis.devices import in_a_trace
from intxtrace.capture.catalogue import QEMU_CATALOGUE
from tests.lab.compare import Row
from tests.lab.guest import SLOTS, setup_of
from tests.lab.truth import Truth

_SLOW = {"kworker-delay", "slow-guest-eoi", "qemu-loop-delay"}
"""An emulated host may be slow; whether it was is not known beforehand."""

_RACES = {"guest-reentry", "mmap-toggling", "bars-always-trapped"}
"""On the userspace path these hang on who is quicker, and on how long the guest is busy."""

EXPECTED: dict[str, tuple[set[str], set[str]]] = {
    "kernel": (set(), set()),
    "pair-kernel": (set(), set()),
    "hybrid": ({"split-irqchip"}, set()),
    "pair-hybrid": ({"split-irqchip", "split-shared-gsi"}, set()),
    # The guest stirs the card while it pings, so QEMU takes accesses for EOIs that are none.
    "userspace": ({"bypass-off-by-option", "premature-eoi"}, _RACES),
    "irqchip-off": ({"no-kernel-irqchip"}, {"premature-eoi", *_RACES}),
    "no-mmap": ({"bars-always-trapped"}, set()),
    "nomsi": ({"msi-unused"}, set()),
}
"""By guest: what must be named, and what may be; `_SLOW` may be of each."""

GUESTS = list(EXPECTED)


def summarise(recording: Path) -> Summary:
    """Analyse a whole recording."""
    trace = intxtrace.open_trace(recording)
    analysis = Analysis(trace.metadata, trace.tables)
    for result in trace.iter_results(analysis.witness.take):
        analysis.add(*result)
    return analysis.finish(trace.first_at, trace.last_at)


def named(guest: str, found: Summary, truth: Truth) -> list[Row]:
    """Hold the findings about a guest against what is wrong with it; `split-shared-gsi` names the card that starves."""
    must, may = EXPECTED[guest]
    of_it = [finding for finding in found.findings if finding.vm_pid == truth.vm_pid]
    names = {finding.name for finding in of_it}
    rows = [
        Row("named, as provoked", sorted(must), sorted(names - may - _SLOW | names & must)),
        Row("each has evidence and advice", len(of_it), sum(bool(f.evidence and f.advice) for f in of_it)),
    ]
    starving = sorted(card.bdf for card in truth.cards if card.masked != card.unmasked)
    if "split-shared-gsi" in must:
        shared = sorted(finding.bdf or "" for finding in of_it if finding.name == "split-shared-gsi")
        rows.append(Row("the card that is never unmasked", starving, shared))
    return rows


def lspci_blocks(text: str) -> dict[str, str]:
    """The part of `lspci -vvD` about each device, by address."""
    return {block.split()[0]: block for block in text.strip().split("\n\n") if block.strip()}


def read_lspci(block: str) -> dict[str, object]:
    """What one part of `lspci -vvD` says, in the words of `devices --json`."""
    route = re.search(r"Interrupt: pin ([A-D]) routed to IRQ (\d+)", block)
    group = re.search(r"IOMMU group: (\d+)", block)
    driver = re.search(r"Kernel driver in use: (\S+)", block)
    capabilities = dict(re.findall(r"\b(MSI|MSI-X): Enable([+-])", block))
    on = [name for name, sign in capabilities.items() if sign == "+"]
    title = re.search(r"^\S+ [^:]+: (.+?)(?: \(rev .*)?$", block.splitlines()[0])
    return {
        "pin": route[1] if route else "none",
        "can": [*(["INTx"] if route else []), *(name for name in ("MSI", "MSI-X") if name in capabilities)],
        "enabled": on,
        "irq": int(route[2]) if route else None,
        "intx_disabled": "DisINTx+" in block,
        "group": group[1] if group else None,
        "driver": driver[1] if driver else None,
        "name": title[1] if title else None,
    }


def monitor_pins(text: str) -> dict[int, str]:
    """Interrupt pins by slot, as `info pci` of QEMU's monitor says of bus 0."""
    found = {}
    for part in re.split(r"(?=Bus +\d+, device)", text.replace("\r", "")):
        head = re.match(r"Bus +0, device +(\d+), function 0", part)
        pin = re.search(r"IRQ \d+, pin ([A-D])", part)
        if head and pin:
            found[int(head[1])] = pin[1]
    return found


def surveyed(guest: str, folder: Path, truth: Truth, recording: Path, found: Summary) -> list[Row]:
    """Hold `devices` against lspci, /proc/interrupts, QEMU's monitor, and the recording's against the truth."""
    (vm,) = (vm for vm in _json(folder / "devices.json")["vms"] if vm["pid"] == truth.vm_pid)
    blocks = lspci_blocks((folder / "lspci.txt").read_text())
    pins = monitor_pins((folder / "monitor.txt").read_text(errors="replace"))
    devices = {device["bdf"]: device for device in vm["devices"]}
    off = "kernel-irqchip=off" in setup_of(guest).machine
    line_names = truth.host_line.split("fasteoi")[-1].split(",")
    actions = sorted(name.strip() for name in line_names if name.strip())
    rows = [Row("VM", truth.vm, vm["name"]), Row("devices", truth.bdfs, sorted(devices))]
    trace = intxtrace.open_trace(recording)
    remembered = {
        d.bdf: d for one in in_a_trace(trace.tables, found).vms if one.pid == truth.vm_pid for d in one.devices
    }
    for card, slot in zip(truth.cards, SLOTS, strict=False):
        device, told = devices[card.bdf], read_lspci(blocks[card.bdf])
        own = f"vfio-intx({card.bdf})"
        rows += [
            Row(f"{card.bdf}: host IRQ", truth.host_irq, device["host_irq"]),
            Row("  and lspci's", told["irq"], device["host_irq"]),
            Row("  count of /proc/interrupts", truth.host_quiet, device["count"]),
            Row("  who shares it", [name for name in actions if name != own], sorted(device["sharers"])),
            Row(
                "  mode: lspci has none enabled, /proc/interrupts has it",
                ("INTx", []),
                (device["mode"], told["enabled"]),
            ),
            *(Row(f"  {name}, lspci", told[name], device[name]) for name in ("pin", "can", "group", "driver", "name")),
            Row("  DisINTx, lspci", told["intx_disabled"], device["intx_disabled"]),
            Row("  pin in the guest, QEMU's info pci", pins.get(slot), device["pin"]),
            Row("  path expected by the command line", truth.path, device["path"]),
            Row("  path seen", truth.path, remembered[card.bdf].path),
            # Without an irqchip in KVM nothing that is probed knows the GSI.
            Row("  GSI, the guest's own", None if off else truth.guest_gsi, remembered[card.bdf].gsi),
        ]
    return rows


def diagnosed(folder: Path, found: Truth) -> list[Row]:
    """Hold what `doctor` said, while a recording ran, against what is so."""
    told = _json(folder / "doctor.json")
    (binary,) = (one for one in told["binaries"] if found.vm_pid in one["pids"])
    functions = {function["name"] for function in binary["functions"]}
    standing = Counter(probe["state"] for probe in told["probes"])
    return [
        Row("doctor: record would work, and does", True, told["ready"]),
        Row("  what is missing", [], [check["name"] for check in told["checks"] if check["state"] == "missing"]),
        Row(
            "  probes that are neither attached nor absent",
            0,
            len(told["probes"]) - standing["attached"] - standing["absent"],
        ),
        Row("  kernel", found.kernel, told["kernel"]),
        Row("  VMs", [f"{found.vm} (pid {found.vm_pid})"], told["vms"]),
        Row("  QEMU's functions that were not found", set(), {s.name for s in QEMU_CATALOGUE} - functions),
        Row("  QEMU's version", True, (binary["version"] or "-") in found.qemu_version),
    ]


def _json(path: Path) -> Any:
    return json.loads(path.read_text())["data"]
