"""Real recordings of other tools, imported with one command each, against what the logs themselves say.

`tests/traces/foreign`: QEMU's logs of runs in the lab (7.2 on the userspace path, with and without timestamps; excerpts
of 11.1's), ftrace's text of the first of these runs with uprobes of the recorder's own names, and one `refire` run of
Debian's 6.1 kernel as `trace-cmd report`, `perf script`, `perf.data` and bpftrace's text, with few arguments each; two
seconds of trace-cmd's recording, by tracepoints alone, of a lab guest with a split irqchip, as the recipe made it.
"""

from __future__ import annotations

import gzip
import json
import re
from collections import Counter
from pathlib import Path

import pandas as pd
import pytest

from intxtrace import open_trace
from intxtrace.__main__ import main

FOLDER = Path(__file__).parents[1] / "traces" / "foreign"
LAB_LOGS = sorted(FOLDER.parent.glob("*.qemu.log"))
QEMU_LOGS = [*sorted(FOLDER.glob("qemu-*")), *LAB_LOGS]
REFIRE = sorted(FOLDER.glob("refire.[pt]*.txt"))
MAPPED = (
    "intx_irq=qemu_interrupt",
    "eoi_part0=qemu_eoi",
    "region_read=qemu_region_read",
    "region_write=qemu_region_write",
    "unmask=ignore",
)


def text_of(path: Path) -> str:
    return gzip.decompress(path.read_bytes()).decode() if path.suffix == ".gz" else path.read_text()


def imported(path: Path, folder: Path, *options: str) -> tuple[pd.DataFrame, pd.DataFrame]:
    out = folder / "out.intx"
    assert main(["import", "-q", str(path), "-o", str(out), *options]) == 0
    trace = open_trace(out)
    return trace.interrupts, trace.events


@pytest.mark.parametrize("path", QEMU_LOGS, ids=lambda path: path.name)
def test_qemus_log(path: Path, tmp_path: Path) -> None:
    told = Counter(
        (event, device)
        for event, device in re.findall(
            r"(?m)^(?:\S+Z |\d+@[\d.]+:)?(vfio_(?:pci_)?(?:intx|region_(?:read|write))\w*)  "
            r"\(([\d:.a-f]+?)(?::region|\))",
            text_of(path),
        )
    )
    rows, events = imported(path, tmp_path)
    taken = Counter(rows["bdf"].astype(str))
    assert taken == Counter(
        {device: number for (event, device), number in told.items() if event == "vfio_intx_interrupt"}
    )
    eois = sum(number for (event, _), number in told.items() if event.endswith("intx_eoi"))
    assert (events["kind_name"] == "QEMU_EOI").sum() == eois
    assert rows["acknowledged_at"].notna().sum() == eois == len(rows)
    for kind, event in (("QEMU_REGION_READ", "vfio_region_read"), ("QEMU_REGION_WRITE", "vfio_region_write")):
        assert (events["kind_name"] == kind).sum() == sum(n for (name, _), n in told.items() if name == event)
    # What such a log cannot tell.
    assert set(rows["path"]) <= {"userspace"}
    assert set(rows["origin"]) <= {"unknown"}
    assert set(rows["outcome"]) <= {"complete"}
    for column in ("raised_at", "unmasked_at", "injected_at", "eoi_at", "masked_ns", "gsi", "host_irq", "vm"):
        assert rows[column].isna().all(), column


def test_qemus_log_and_the_trace_of_the_same_run_agree(tmp_path: Path) -> None:
    """Both were recorded at once: instants of the log are a constant (boot time) behind, and a few µs of the probe."""
    for log in LAB_LOGS:
        rows, _ = imported(log, tmp_path, "--force")
        trace = open_trace(log.with_name(log.name.replace(".qemu.log", ".intx")))
        anchor = trace.metadata.realtime_anchor_ns
        own = trace.events
        taken = own[own["kind_name"] == "QEMU_INTERRUPT"]
        assert anchor is not None
        late = pd.Series(rows["signalled_at"].astype("int64").to_numpy()) - (
            taken["ts"].astype("int64").to_numpy() + anchor
        )
        assert len(rows) == len(taken), log
        assert late.empty or (late.min() > -1_000_000 and late.median() < 20_000_000), (log, late.describe())


def test_uprobes_of_the_recorders_names(tmp_path: Path) -> None:
    text = text_of(FOLDER / "ftrace-userspace.txt.gz")
    options = [option for one in MAPPED for option in ("--map", one)]
    rows, events = imported(FOLDER / "ftrace-userspace.txt.gz", tmp_path, *options)
    assert len(rows) == text.count(": intx_irq: ") == 21
    assert set(rows["path"]) == {"userspace"}
    assert set(rows["bdf"]) == {"0000:00:05.0"}
    assert set(rows["outcome"]) == {"complete"}
    assert (events["kind_name"] == "QEMU_EOI").sum() == text.count(": eoi_part0: ") == 21
    assert (events["kind_name"] == "QEMU_REGION_READ").sum() == text.count(": region_read: ")
    # The guest acknowledged the pin between the interrupt and QEMU's EOI (qemu-path.md 1.2): twice, and eight times.
    assert rows["reentries"].sum() == 10


@pytest.mark.parametrize("path", REFIRE, ids=lambda path: path.name)
def test_reports_of_one_run(path: Path, tmp_path: Path) -> None:
    text = path.read_text()
    rows, events = imported(path, tmp_path)
    assert Counter(rows["origin"]) == {
        "hardware": len(re.findall(r"handler_ret:.* ret=1$", text, re.M)),
        "resignal": len(re.findall(r"unmask_ret:.* ret=1$", text, re.M)),
    }
    assert Counter(rows["origin"]) == {"hardware": 2, "resignal": 2}
    assert set(rows["path"]) == {"kernel"}
    assert rows["bdf"].tolist() == ["0000:00:10.0"] * 4
    assert (events["kind_name"] == "HANDLER_ENTRY").sum() == len(re.findall(r"\bhandler:", text))
    assert (events["kind_name"] == "KVM_ACK").sum() == len(re.findall(r"\backed_irq:", text))
    # irqfd_wakeup, irqfd_inject and resampler_ack have no gsi or no eventfd here, so nothing joins the EOI.
    assert rows["eoi_at"].isna().all()


def test_bpftraces_text(tmp_path: Path) -> None:
    path = FOLDER / "refire.bpftrace.txt"
    text = path.read_text()
    _, events = imported(path, tmp_path)
    for kind, event in (
        ("HANDLER_ENTRY", "handler"),
        ("HANDLER_EXIT", "handler_ret"),
        ("KVM_ACK", "ack"),
        ("KVM_SET_IRQ", "kvm_set_irq"),
    ):
        assert (events["kind_name"] == kind).sum() == len(re.findall(rf"comm=.* {event} ", text)) > 0, event


def test_perf_data(tmp_path: Path) -> None:
    path = tmp_path / "perf.data"
    path.write_bytes(gzip.decompress((FOLDER / "refire.perf.data.gz").read_bytes()))
    rows, _ = imported(path, tmp_path)
    assert Counter(rows["origin"]) == {"hardware": 2, "resignal": 2}


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        (
            "qemu-7.2-no-timestamps.log.gz",
            ["every duration", "interrupts that KVM delivers", "how 19 interrupts", "when the device"],
        ),
        (
            "qemu-11.1.log",
            ["interrupts that KVM delivers", "how 17 interrupts came about", "when the device was unmasked"],
        ),
        ("refire.trace-cmd-report.txt", []),
    ],
)
def test_the_summary_says_what_is_missing(
    name: str, expected: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    imported(FOLDER / name, tmp_path)
    capsys.readouterr()
    assert main(["summary", str(tmp_path / "out.intx")]) == 0
    text = " ".join(capsys.readouterr().out.split())
    found = text.split("not recorded: ")[1:]
    assert len(found) == len(expected)
    for sentence, begin in zip(found, expected, strict=True):
        assert sentence.startswith(begin)
        assert "; it takes " in sentence
    assert main(["summary", str(tmp_path / "out.intx"), "--json"]) == 0
    assert len(json.loads(capsys.readouterr().out)["data"]["missing"]) == len(expected)


def test_the_hybrid_path_by_tracepoints_alone(tmp_path: Path) -> None:
    """Between the card's interrupts the guest writes to its serial port, whose line QEMU raises too (GSI 4)."""
    path = FOLDER / "tracepoints-hybrid.trace-cmd-report-ns.txt.gz"
    text = text_of(path)
    claimed = len(re.findall(r"irq_handler_exit: +irq=22 ret=handled", text))
    assert claimed == text.count("name=vfio-intx(0000:00:06.0)") == 17
    assert text.count("gsi 4 level 1 source 0") == 38
    rows, _ = imported(path, tmp_path)
    told = Counter(zip(rows["path"], rows["origin"], rows["outcome"], strict=True))
    # That one has ended, only the next one tells.
    assert told == {("hybrid", "hardware", "complete"): claimed - 1, ("hybrid", "hardware", "open"): 1}
    other_cpu = r"(?:.* \[000\] .*\n)*"
    inside = re.findall(rf"name=vfio-intx.*\n{other_cpu}.* \[001\] .*? (\d+)\.(\d{{9}}): kvm_msi_set_irq: ", text)
    assert rows["injected_at"].tolist() == [int(seconds + ns) for seconds, ns in inside]
    # What tracepoints cannot tell.
    for column in ("signalled_at", "acknowledged_at", "unmasked_at", "gsi"):
        assert rows[column].isna().all(), column
