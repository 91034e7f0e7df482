"""Several recordings of one run, merged."""

from __future__ import annotations

import gzip
import io
import itertools
import random
import re
from pathlib import Path

import numpy as np
import pytest

from intxtrace import open_trace
from intxtrace.__main__ import main
from intxtrace.errors import IntxtraceError
from intxtrace.events import Kind
from intxtrace.importers import blocks, merge, qemu_log
from intxtrace.importers.opening import open_recording
from intxtrace.trace.writer import TraceWriter

FOLDER = Path(__file__).parents[1] / "traces" / "foreign"
FTRACE, LOG = FOLDER / "ftrace-userspace.txt.gz", FOLDER / "qemu-7.2-userspace.log.gz"


def imported(folder: Path, *arguments: str) -> Path:
    out = folder / "out.intx"
    assert main(["import", "--force", *arguments, "-o", str(out)]) == 0
    return out


def test_a_qemu_log_and_the_ftrace_of_its_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    trace = open_trace(imported(tmp_path, str(FTRACE), str(LOG)))
    said = capsys.readouterr().err
    found = re.search(r"clock of .*\.log\.gz: by (\d+) matching events, residual (\d+) µs", said)
    assert found
    assert int(found[1]) >= 10
    rows = trace.interrupts
    assert len(rows) == 21
    assert set(rows["path"]) == {"userspace"}
    assert set(rows["outcome"]) == {"complete"}
    # QEMU says which device, KVM says which GSI and when the line was raised.
    assert set(rows["bdf"]) == {"0000:00:05.0"}
    # Where the raised line seems to precede the log's line, by less than the residual, they cannot be joined.
    joined = rows[rows["injected_at"].notna()]
    assert len(joined) >= 19
    assert set(joined["gsi"]) == {22}
    assert (joined["injected_at"] > joined["signalled_at"]).all()
    assert rows["bar_accesses"].sum() > 2000
    # The uprobes of the same functions, which the merged recordings do not use, say where the clocks truly meet.
    text = gzip.decompress(FTRACE.read_bytes()).decode()
    probed = [float(ts) * 1e9 for ts in re.findall(r"([\d.]+): intx_irq:", text)]
    errors = [at - truth for at, truth in zip(rows["signalled_at"].tolist(), probed, strict=True)]
    assert max(map(abs, errors)) < 1e9 / 1000
    assert trace.metadata.realtime_anchor_ns == pytest.approx(1795374402e9, abs=10e9)


def both_sides(instants: list[int], late: int) -> tuple[bytes, bytes]:
    """Return what a kernel and QEMU print of interrupts (µs), the kernel's without the first of them."""
    kernel, log = b"", b""
    for number, at in enumerate(instants):
        claimed, lowered = (divmod(10**6 + at + us, 10**6) for us in (0, 90 + number % 7))
        taken, eoi = (divmod(1_795_374_412 * 10**6 + at + us, 10**6) for us in (20 + number % 5, 80))
        log += b"124@%d.%06d:vfio_intx_interrupt  (0000:00:05.0) Pin A\n" % taken
        log += b"129@%d.%06d:vfio_intx_eoi  (0000:00:05.0) EOI\n" % eoi
        if number >= late:
            kernel += b"  a-1  [001] d.h1. %d.%06d: irq_handler_entry: irq=21 name=vfio-intx(0000:00:05.0)\n" % claimed
            kernel += b"  a-1  [001] d.h1. %d.%06d: irq_handler_exit: irq=21 ret=handled\n" % claimed
            kernel += b"  b-2  [000] ..... %d.%06d: kvm_set_irq: gsi 22 level 0 source 0\n" % lowered
    return kernel, log


def merged(kernel: bytes, log: bytes) -> merge.Merged:
    openers = [lambda: open_recording(io.BytesIO(kernel), "kernel"), lambda: open_recording(io.BytesIO(log), "log")]
    return merge.Merged(["kernel", "log"], openers)


@pytest.mark.parametrize("rate", [1, 30, 500])
def test_clocks_are_aligned_whatever_the_rate(rate: int) -> None:
    dice = random.Random(rate)
    instants = list(itertools.accumulate(200 + int(dice.expovariate(rate) * 1e6) for _ in range(600)))
    found = merged(*both_sides(instants, late=60))
    events = np.concatenate(list(found))
    (alignment,) = found.alignments
    matches = re.fullmatch(r"log: by (\d+) matching events, residual ([\d.]+) µs", alignment)
    assert matches
    residual = float(matches[2]) * 1000
    assert residual < 100_000
    taken = events["ts"][events["kind"] == Kind.QEMU_INTERRUPT].astype(np.int64)
    truth = np.array(instants) * 1000 + 10**9 + 20_000
    assert np.abs(taken - truth).max() <= residual + 5000


@pytest.mark.parametrize("period", [1_000_000, 100_000, 1000])
def test_a_strict_beat_is_not_aligned_by_guessing(period: int) -> None:
    """Any number of periods apart, the clocks would fit as well."""
    with pytest.raises(IntxtraceError, match="they come in too strict a beat"):
        merged(*both_sides([period * number for number in range(600)], late=60))


@pytest.mark.parametrize("order", [(FTRACE, LOG), (LOG, FTRACE)])
def test_neither_order_nor_blocks_change_the_rows(
    order: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    columns = ["signalled_at", "injected_at", "acknowledged_at", "path", "gsi", "bdf", "bar_accesses"]
    whole = open_trace(imported(tmp_path, str(FTRACE), str(LOG))).interrupts[columns]
    monkeypatch.setattr(blocks, "BLOCK", 1 << 16)
    monkeypatch.setattr(qemu_log, "ROWS", 1 << 9)
    cut = open_trace(imported(tmp_path, *map(str, order))).interrupts[columns]
    assert cut.to_dict("list") == whole.to_dict("list")


def test_a_host_of_two_vms(tmp_path: Path) -> None:
    """Two logs of other devices, in the same clock, need no matching."""
    other = tmp_path / "other.log"
    other.write_bytes(gzip.decompress(LOG.read_bytes()).replace(b"0000:00:05.0", b"0000:00:09.0"))
    rows = open_trace(imported(tmp_path, str(LOG), str(other))).interrupts
    assert rows.groupby("bdf").size().to_dict() == {"0000:00:05.0": 21, "0000:00:09.0": 21}


@pytest.mark.parametrize(
    ("second", "sentence"),
    [
        (str(LOG), "both have QEMU_"),
        (str(FOLDER / "qemu-7.2-no-timestamps.log.gz"), "has no times, so it cannot be merged"),
        ("-", "standard input cannot be merged"),
        ("none.log", "no such file or folder"),
    ],
)
def test_what_cannot_be_merged(second: str, sentence: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["import", str(LOG), second, "-o", str(tmp_path / "out.intx")]) == 1
    error = capsys.readouterr().err
    assert sentence in error
    assert error.count("\n") == 1
    assert not (tmp_path / "out.intx").exists()


def test_a_trace_of_our_own_that_lacks_qemu(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Its realtime anchor aligns QEMU's log; the rows are those of the trace that had probes in QEMU."""
    path = FOLDER.parent / "userspace-6.1.intx"
    whole = open_trace(path)
    in_qemu = [kind for kind in Kind if kind.name.startswith("QEMU_")]
    for probe in whole.tables.probes:
        probe.kinds = [name for name in probe.kinds if Kind[name] not in in_qemu]
    kernel_only = tmp_path / "kernel.intx"
    with TraceWriter(kernel_only, whole.metadata) as writer:
        for events in whole.iter_events():
            writer.write(events[~np.isin(events["kind"], in_qemu)], whole.tables)
    log = path.with_name("userspace-6.1.qemu.log")
    rows = open_trace(imported(tmp_path, str(kernel_only), str(log))).interrupts
    assert "by the realtime clock" in capsys.readouterr().err
    expected = open_trace(path).interrupts
    for column in ("path", "origin", "bdf", "raised_at", "unmasked_at"):
        assert rows[column].tolist() == expected[column].tolist(), column
    assert main(["import", str(path), str(log), "-o", str(tmp_path / "double.intx")]) == 1
    assert "both have QEMU_" in capsys.readouterr().err


def test_other_runs_do_not_match(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out.intx"
    assert main(["import", str(FTRACE), str(FOLDER / "qemu-11.1.log"), "-o", str(out)]) == 1
    assert "cannot be aligned" in capsys.readouterr().err


def test_both_bounds_are_used() -> None:
    """A claim 30 µs before QEMU takes the interrupt, a lowered line 10 µs after its EOI, in clocks 5 s apart."""
    times = np.cumsum(np.random.default_rng(3).integers(10**6, 10**9, 50))
    late = 5 * 10**9
    qemu = merge._Marks(taken=[times], acknowledged=[times + 200_000])
    kernel = merge._Marks(claimed=[times - 30_000 + late], lowered=[times + 210_000 + late])
    offset, residual, matches = merge._matched(qemu, kernel) or (0, 0, 0)
    assert (offset, residual, matches) == (late - 10_000, 20_000, 50)
