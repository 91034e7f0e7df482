"""The ftrace importer: its columns, its dialects, its blocks; and `intxtrace import`."""

from __future__ import annotations

import io
import re
import stat
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from intxtrace import open_trace
from intxtrace.__main__ import main
from intxtrace.errors import IntxtraceError
from intxtrace.events import RECORD, Flag, Kind, Work, format_address
from intxtrace.importers import blocks, compile, scan
from intxtrace.importers.ftrace import FtraceText
from tests.kernel_texts import texts

VDEV = 0xFF11000006CA4000
UNMASK = b"unmask: (vfio_pci_intx_unmask_handler+0x0/0xc0 [vfio_pci_core]) vdev=0xff11000006ca4000 data=0x0\n"


def line(text: bytes, comm: bytes = b"vtest", tid: int = 141, cpu: int = 0, flags: bytes = b".....") -> bytes:
    return b"%16s-%-7d [%03d] %s     6.366471: %s" % (comm, tid, cpu, flags, text)


def events(text: bytes) -> np.ndarray[Any, Any]:
    return np.concatenate(list(FtraceText(io.BytesIO(text), "text")))


def one(text: bytes, kind: Kind) -> Any:
    (found,) = [event for event in events(text) if event["kind"] == kind]
    return found


# ---- numbers


@settings(deadline=None)
@given(st.integers(-(1 << 63), (1 << 63) - 1))
def test_numbers(number: int) -> None:
    text = b"0x%x " % (number & (1 << 64) - 1)
    assert scan.number(text, 0) == (number, len(text) - 1)
    some = number % 10**18
    assert scan.number(b"%d\n" % -some, 0) == (-some, len(str(-some)))


@pytest.mark.parametrize(
    "text", [b"0x\n", b"0xg\n", b"-\n", b"x\n", b"1234567890123456789\n", b"0x1234567890abcdef0\n"]
)
def test_no_numbers(text: bytes) -> None:
    assert scan.number(text, 0) == (0, 0)


@pytest.mark.parametrize("char", range(256))
def test_hexadecimal_digits_and_nothing_else(char: int) -> None:
    text = b"ff%cf\n" % char
    is_digit = bytes([char]) in (b"%c" % digit for digit in b"0123456789abcdefABCDEF")
    assert scan.hexadecimal(text, 0) == ((int(text, 16), 4) if is_digit else (0xFF, 2))


@pytest.mark.parametrize("text", [b"0000:01:1f.7)", b"10000:ff:00.0 "])
def test_addresses(text: bytes) -> None:
    found, end = scan.address(text, 0)
    assert format_address(found) == text[:-1].decode()
    assert end == len(text) - 1


@pytest.mark.parametrize("text", [b"0000:01:20.0)", b"0000:01:1.0)", b"0000:01:00.8)", b":01:00.0)", b"hostdev0)"])
def test_no_addresses(text: bytes) -> None:
    assert scan.address(text + b"\n", 0) == (-1, 0)


@pytest.mark.parametrize("name", ["deb-6.12/twovm", "deb-6.1-extra/tponly_shared", "deb-5.10-extra/lost_pipe"])
def test_compiled_and_interpreted_scanners_agree(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    interpreted = events(texts()[name])
    monkeypatch.setattr(compile, "LOAD_FROM", 0)
    monkeypatch.setattr(compile, "COMPILE_FROM", 0)
    assert events(texts()[name]).tobytes() == interpreted.tobytes()


# ---- lines


@pytest.mark.parametrize(
    "comm", [b"<idle>", b"CPU 0/KVM", b"kvm-nx-lpage-re", b"a-1 [001] d.h1.", b"irq/20-vfio-int", b"<...>", b"x [000]"]
)
def test_comm_may_hold_anything(comm: bytes) -> None:
    event = one(line(UNMASK, comm, tid=1234567, cpu=12), Kind.UNMASK_ENTRY)
    assert (event["tid"], event["cpu"], event["ts"], event["device"]) == (1234567, 12, 6_366_471_000, VDEV)


@pytest.mark.parametrize(
    "head",
    [
        b"           vtest-141     [000] .....     6.366471: ",
        b"           vtest-141   [000] d.h.     6.366471: ",  # up to 5.14
        b"           vtest-141     [000]     6.366471: ",  # noirq-info
        b"           vtest-141     (    141) [000] .....     6.366471: ",  # record-tgid
        b"           vtest-141     (-------) [000] .....     6.366471: ",
        b"vtest-141 [000] .....     6.366471: ",  # copied without its columns
        b"  vtest-141     [000] .....     6.366471000: ",
    ],
)
def test_columns(head: bytes) -> None:
    event = one(head + UNMASK, Kind.UNMASK_ENTRY)
    assert (event["tid"], event["cpu"], event["ts"], event["device"]) == (141, 0, 6_366_471_000, VDEV)
    assert event["tgid"] == (141 if b"(    141)" in head else 0)


@pytest.mark.parametrize("symbol", [b"f+0x0/0xc0 [vfio_pci_core]", b"f+0x4/0xc0", b"ffffffffc0467bd0"])
def test_probe_addresses(symbol: bytes) -> None:
    assert one(line(b"unmask: (" + symbol + b") vdev=0xff11000006ca4000\n"), Kind.UNMASK_ENTRY)["device"] == VDEV


def test_arguments_in_any_order_and_more_of_them() -> None:
    text = line(b"set_irq: (f) level=1 x=7 gsi=16 src=1 kvm=0xff11000006ca4000\n")
    text += line(b"set_irq: (f) kvm=0xff11000006ca4000 src=0 gsi=17 level=1\n")
    found = [e for e in events(text) if e["kind"] == Kind.KVM_SET_IRQ]
    assert [(e["vm"], e["arg0"], e["arg1"], e["value"]) for e in found] == [(VDEV, 16, 1, 1), (VDEV, 17, 0, 1)]


def test_an_event_whose_text_is_another_is_counted() -> None:
    text = FtraceText(io.BytesIO(line(UNMASK) + line(b"set_irq: (f) level=1\n")), "text")
    assert [e["kind"] for e in next(iter(text))] == [Kind.DEVICE, Kind.UNMASK_ENTRY]
    assert text.unreadable == {"set_irq": 1}


def test_gaps() -> None:
    text = b"# entries-in-buffer/entries-written: 499/1396   #P:2\n" + line(UNMASK)
    text += b"CPU:1 [LOST 243 EVENTS]\n" + line(UNMASK, cpu=1) + b"##### CPU 3 buffer started ####\n" + line(UNMASK)
    text += b"CPU:0 [LOST EVENTS]\n" + line(UNMASK)
    lost = [e for e in events(text) if e["kind"] == Kind.LOST]
    assert [(e["cpu"], e["arg1"]) for e in lost] == [(0, 897), (1, 243), (3, 0), (0, 0)]
    assert (lost[-1]["arg0"], lost[-1]["ts"]) == (6_366_471_000, 6_366_471_000)


def test_a_whole_buffer_has_no_gap() -> None:
    text = b"# entries-in-buffer/entries-written: 106/106   #P:2\n" + line(UNMASK)
    assert Kind.LOST not in events(text)["kind"]


# ---- what is nested in what


def test_nesting_of_a_kernel_interrupt() -> None:
    found = events(texts()["deb-6.12/refire"])
    flags = {
        (Kind(int(e["kind"])).name, int(e["flags"])): int(e["device"])
        for e in found
        if e["kind"] in (Kind.EVENTFD_SIGNAL, Kind.IRQFD_WAKEUP, Kind.UNMASK_ENTRY, Kind.UNMASK_EXIT)
    }
    (vdev,) = {int(e["device"]) for e in found if e["kind"] == Kind.SET_IRQS_ENTRY}
    assert flags == {
        ("EVENTFD_SIGNAL", Flag.IN_HANDLER): vdev,
        ("EVENTFD_SIGNAL", Flag.IN_RESAMPLER_ACK): 0,
        ("EVENTFD_SIGNAL", Flag.IN_VIRQFD_INJECT): vdev,
        ("IRQFD_WAKEUP", Flag.IN_HANDLER): vdev,
        ("IRQFD_WAKEUP", Flag.IN_VIRQFD_INJECT): vdev,
        ("UNMASK_ENTRY", Flag.IN_SET_IRQS): vdev,
        ("UNMASK_ENTRY", Flag.IN_RESAMPLER_ACK): vdev,
        ("UNMASK_EXIT", Flag.IN_SET_IRQS): vdev,
        ("UNMASK_EXIT", Flag.IN_RESAMPLER_ACK): vdev,
    }


def test_a_hard_interrupt_lies_on_top_of_the_task_that_it_interrupts() -> None:
    vdev = b"vdev=0xff11000006ca4000"
    text = (
        line(b"virqfd_inject: (f) work=0x1 " + vdev + b" eventfd=0x9\n")
        + line(b"handler: (f) irq=20 dev=0xff11000006ca5000 w0=0x1 w8=0x2\n", flags=b"d.h1.")
        + line(b"efd_signal: (f) ctx=0xa id=0 count=0\n", flags=b"d.h1.")
        + line(b"handler_ret: (a <- b) ret=1\n", flags=b"d.h1.")
        + line(b"efd_signal: (f) ctx=0xb id=0 count=0\n")
        + line(b"unmask: (f) vdev=0xff11000006ca5000\n", tid=2)
    )
    signals = [e for e in events(text) if e["kind"] == Kind.EVENTFD_SIGNAL]
    assert [(int(e["device"]), int(e["flags"])) for e in signals] == [
        (VDEV + 0x1000, Flag.IN_HANDLER),
        (VDEV, Flag.IN_VIRQFD_INJECT),
    ]


def test_other_eventfds_of_the_host_are_left_out() -> None:
    text = line(UNMASK) + line(b"efd_signal: (f) ctx=0xb id=0 count=0\n", tid=9)
    assert Kind.EVENTFD_SIGNAL not in events(text)["kind"]


def test_the_handlers_argument_is_the_irq_context_since_6_10() -> None:
    for kernel, is_context in (("deb-6.1", False), ("ub-6.8.0-151", False), ("deb-6.12", True), ("deb-7.2.12", True)):
        text = texts()[f"{kernel}/resample"]
        argument = b"w0" if is_context else b"dev"
        (expected,) = set(re.findall(rb" handler: .* " + argument + rb"=0x([0-9a-f]+)", text))
        found = {int(e["device"]) for e in events(text) if e["kind"] == Kind.HANDLER_ENTRY}
        assert found == {int(expected, 16)}


def test_without_set_up_the_signalled_trigger_tells() -> None:
    """Nothing but handlers and signals: the second word of the irq context is the trigger."""
    wanted = re.compile(rb".*\b(handler|handler_ret|efd_signal): .*\n")
    for kernel, argument in (("deb-6.1", b"dev"), ("deb-6.12", b"w0")):
        text = b"".join(m[0] for m in wanted.finditer(texts()[f"{kernel}/resample"]))
        (expected,) = set(re.findall(rb" handler: .* " + argument + rb"=0x([0-9a-f]+)", text))
        assert {int(e["device"]) for e in events(text) if e["kind"] == Kind.HANDLER_ENTRY} == {int(expected, 16)}


def test_tracepoints_become_fallbacks() -> None:
    found = events(texts()["deb-6.1-extra/tponly_refire"])
    assert set(found["kind"]) == {
        Kind.DEVICE, Kind.HANDLER_ENTRY, Kind.HANDLER_EXIT, Kind.WORK_QUEUED, Kind.WORK_STARTED, Kind.KVM_SET_IRQ,
        Kind.KVM_ACK, Kind.KVM_EOI, Kind.APIC_ACCEPT, Kind.USERSPACE_EXIT,
    }  # fmt: skip
    handlers = found[np.isin(found["kind"], (Kind.HANDLER_ENTRY, Kind.HANDLER_EXIT))]
    assert set(handlers["flags"]) == {Flag.FALLBACK | Flag.SYNTHETIC}
    assert not found["vm"].any()
    queued = found[found["kind"] == Kind.WORK_QUEUED]
    assert set(queued["value"]) == {Work.IRQFD_INJECT, Work.VIRQFD_INJECT}
    assert (found["flags"][np.isin(found["kind"], (Kind.KVM_ACK, Kind.KVM_SET_IRQ))] & Flag.FALLBACK).all()


def test_with_forced_threading_the_tracepoint_claims_nothing() -> None:
    found = events(texts()["deb-6.12-thr/thr_shared"])
    exits = found[found["kind"] == Kind.HANDLER_EXIT]
    assert not (exits["flags"] & Flag.FALLBACK).any()
    assert sorted(exits["value"].tolist()) == [0] * 4 + [1] * 4


# ---- blocks


@pytest.mark.parametrize("name", ["deb-6.12/twovm", "deb-6.1-extra/tponly_shared", "ub-6.8.0-151/twovm"])
@pytest.mark.parametrize("size", [997, 5000, 20_000])
def test_blocks_change_nothing(name: str, size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    text = texts()[name]
    whole = events(text)
    monkeypatch.setattr(blocks, "BLOCK", size)
    cut = events(text)
    # What is not known before its first evidence: device rows, and which kprobe tells more than a tracepoint.
    known = Kind.UNMASK_ENTRY, Kind.UNMASK_EXIT, Kind.IRQFD_WAKEUP, Kind.EVENTFD_SIGNAL, Kind.RESAMPLER_ACK
    for kind in known:
        assert whole[whole["kind"] == kind].tobytes() == cut[cut["kind"] == kind].tobytes(), kind


def test_the_last_line_needs_no_newline() -> None:
    assert len(events(line(UNMASK).rstrip())) == 2


def test_an_endless_line_is_refused() -> None:
    with pytest.raises(IntxtraceError, match="a line is longer than any"):
        FtraceText(io.BytesIO(b"x" * (3 * blocks.BLOCK)), "text")


@settings(deadline=None)
@given(st.data())
def test_damaged_text_never_breaks(data: st.DataObject) -> None:
    text = bytearray(texts()["deb-6.12/resample"][:6000])
    for _ in range(data.draw(st.integers(1, 12))):
        at = data.draw(st.integers(0, len(text) - 1))
        text[at : at + data.draw(st.integers(0, 5))] = data.draw(st.binary(max_size=5))
    try:
        found = events(bytes(text))
    except IntxtraceError:
        return
    assert found.dtype == RECORD


def test_a_counting_clock_only_orders() -> None:
    text = line(UNMASK).replace(b"6.366471", b"12345")
    recording = FtraceText(io.BytesIO(text), "text")
    assert recording.metadata.clock == "none"
    assert FtraceText(io.BytesIO(line(UNMASK)), "text").metadata.clock == "monotonic"


# ---- the command


@pytest.fixture
def recording(tmp_path: Path) -> Path:
    path = tmp_path / "run.ftrace.txt"
    path.write_bytes(texts()["deb-6.12/refire"])
    return path


def test_import(recording: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "a.intx"
    assert main(["import", str(recording), "-o", str(out)]) == 0
    assert capsys.readouterr().err.startswith("intxtrace: ftrace text: read 118 lines, wrote 72 events to ")
    assert stat.S_IMODE(out.stat().st_mode) == 0o600
    trace = open_trace(out)
    assert trace.interrupts["origin"].tolist() == ["hardware", "resignal"] * 2
    assert trace.metadata.clock == "monotonic"
    assert trace.metadata.realtime_anchor_ns is None
    assert trace.metadata.extra["imported_from"] == "ftrace text"
    assert [device.bdf for device in trace.tables.devices] == ["0000:00:10.0"]


def test_import_from_standard_input(
    recording: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "a.intx"
    with recording.open() as stream:
        monkeypatch.setattr("sys.stdin", stream)
        assert main(["import", "-", "-q", "-o", str(out)]) == 0
    assert capsys.readouterr().err == ""
    assert len(open_trace(out).interrupts) == 4


def test_import_says_what_is_wrong(
    recording: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["import", str(recording)]) == 0
    assert (tmp_path / "run.ftrace.intx").exists()
    capsys.readouterr()
    other = tmp_path / "other.txt"
    other.write_text("no trace\n")
    for arguments, expected in (
        ([str(recording)], "run.ftrace.intx exists; choose another name, or overwrite it with --force"),
        ([str(other)], "is no recording that intxtrace knows"),
        ([str(tmp_path / "none")], "no such file or folder"),
        ([str(tmp_path), "-o", "x.intx"], "is a folder"),
        (["-"], "name the trace file with -o"),
        ([str(recording), "-o", str(recording), "--force"], "is the recording itself"),
    ):
        assert main(["import", *arguments]) == 1
        error = capsys.readouterr().err
        assert expected in error
        assert error.count("\n") == 1
    assert main(["import", str(recording), "--force"]) == 0
    assert not (tmp_path / "other.intx").exists()


def test_import_help_ends_with_examples(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["import", "--help"]) == 0
    assert "intxtrace import trace.txt -o trace.intx" in capsys.readouterr().out.partition("Examples:")[2]
