"""Recordings are known by their content: formats, compression, other programs; and the words for events in text."""

from __future__ import annotations

import gc
import gzip
import io
import json
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from intxtrace.__main__ import main
from intxtrace.errors import IntxtraceError
from intxtrace.events import RECORD, Flag, Kind
from intxtrace.importers import ftrace_devices, ftrace_nest, opening, qemu_events
from intxtrace.importers.ftrace import FtraceText
from intxtrace.importers.opening import Recording, open_recording

VDEV = 0xFF110000063E1000
FTRACE = b"           vtest-141     [000] .....     6.366471: unmask: (f+0x0/0xc0) vdev=0xff110000063e1000\n"
QEMU = b"124@1795373963.335010:vfio_intx_interrupt  (0000:00:05.0) Pin A\n"
FOLDER = Path(__file__).parents[1] / "traces" / "foreign"


def read(data: bytes, mapped: dict[str, str] | None = None) -> tuple[Recording, Any]:
    recording = open_recording(io.BytesIO(data), "recording", None, mapped)
    return recording, np.concatenate([np.zeros(0, RECORD), *recording])


def kinds(data: bytes, mapped: dict[str, str] | None = None) -> list[int]:
    return [kind for kind in read(data, mapped)[1]["kind"].tolist() if kind != Kind.DEVICE]


def zstd(data: bytes) -> bytes:
    sink = pa.BufferOutputStream()
    with pa.CompressedOutputStream(sink, "zstd") as stream:
        stream.write(data)
    return bytes(sink.getvalue())


@pytest.mark.parametrize("pack", [bytes, gzip.compress, zstd, lambda data: gzip.compress(zstd(data))])
@pytest.mark.parametrize(
    ("data", "source", "kind"),
    [(FTRACE, "ftrace text", Kind.UNMASK_ENTRY), (QEMU, "QEMU log", Kind.QEMU_INTERRUPT)],
)
def test_compressed_or_not(pack: Any, data: bytes, source: str, kind: Kind) -> None:
    recording, events = read(pack(data))
    assert recording.metadata.extra["imported_from"] == source
    assert events["kind"].tolist() == [Kind.DEVICE, kind]


@pytest.mark.parametrize("pack", [gzip.compress, zstd])
def test_a_cut_archive_is_a_sentence(pack: Any) -> None:
    rows = b"".join(b"124@1795373963.%06d:%b" % (n * 7919 % 10**6, QEMU[22:]) for n in range(5000))
    with pytest.raises(IntxtraceError, match="cannot be decompressed"):
        read(pack(rows)[:-10])


@pytest.mark.parametrize("data", [b"", b"\n", b"no trace\n", b"\0" * 100, b"{}\n", b"[1]\n", gzip.compress(b"")])
def test_anything_else_is_a_sentence(data: bytes) -> None:
    with pytest.raises(IntxtraceError, match="no recording that intxtrace knows"):
        read(data)


@pytest.mark.parametrize(
    ("magic", "program", "what"),
    [(b"\x17\x08\x44tracing6", "trace-cmd", "trace.dat"), (b"PERFILE2", "perf", "perf.data")],
)
def test_a_program_that_is_not_installed(
    magic: bytes, program: str, what: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(IntxtraceError, match=f"is a {what}, which {program} reads, and that is not installed"):
        read(magic + b"\0" * 100)


def test_a_program_that_fails(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "perf.data"
    path.write_bytes(b"PERFILE2" + b"\0" * 100)
    assert main(["import", str(path), "-o", str(tmp_path / "out.intx")]) == 1
    assert "perf cannot read" in capsys.readouterr().err


def stand_in(folder: Path, monkeypatch: pytest.MonkeyPatch, does: str) -> Path:
    """Put a program on the path that does this when it is to read a trace.dat; return that."""
    program = folder / "trace-cmd"
    program.write_text(f"#!/bin/sh\n{does}\n")
    program.chmod(0o700)
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")
    data = folder / "trace.dat"
    data.write_bytes(b"\x17\x08\x44tracing6" + b"\0" * 100)
    return data


@pytest.mark.parametrize("prints", [b"", FTRACE])
def test_a_program_that_hangs_is_ended(prints: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(opening, "SILENCE", 0.5)
    pid = tmp_path / "pid"
    data = stand_in(tmp_path, monkeypatch, f"printf '{prints.decode().strip()}\n'; echo $$ > {pid}; exec sleep 1000")
    with (
        pytest.raises(IntxtraceError, match=r"trace-cmd has printed nothing of .*trace.dat for 0.5 s"),
        data.open("rb") as stream,
    ):
        list(open_recording(stream, str(data)))
    assert not Path(f"/proc/{pid.read_text().strip()}").exists()


def test_a_program_ends_with_who_reads_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A line without an end is refused while the program still prints."""
    pid = tmp_path / "pid"
    data = stand_in(tmp_path, monkeypatch, f"echo $$ > {pid}; exec cat /dev/zero")
    with pytest.raises(IntxtraceError, match="a line is longer than any"), data.open("rb") as stream:
        list(open_recording(stream, str(data)))
    gc.collect()
    assert not Path(f"/proc/{pid.read_text().strip()}").exists()


def test_a_program_gets_no_more_memory_than_it_needs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(opening, "HEAP", 1 << 28)
    data = stand_in(tmp_path, monkeypatch, "sleep 0.3; exec tail -n 1 /dev/zero")
    with pytest.raises(IntxtraceError, match="trace-cmd cannot read"), data.open("rb") as stream:
        list(open_recording(stream, str(data)))


def test_a_program_reads_files_only(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "which", lambda name: f"/usr/bin/{name}")
    with pytest.raises(IntxtraceError, match="cannot come from standard input"):
        open_recording(io.BytesIO(b"PERFILE2" + b"\0" * 100), "-")


# ---- words for the same

KVM_SET_IRQ, KVM_ACK = Kind.KVM_SET_IRQ, Kind.KVM_ACK
EXIT = b"kvm_userspace_exit: reason"


@pytest.mark.parametrize(
    "line",
    [
        b"           vtest-141     [000]     6.366471: unmask:            (ffffffffc0467bd0) vdev=0xff110000063e1000",
        b"           vtest-141     [000]     6.366471000: unmask:  __probe_ip=ffffffffc0467bd0 vdev=0xff110000063e1000",
        b"           vtest   141 [000]     6.366471:        intx:unmask: (ffffffffc0467bd0) vdev=0xff110000063e1000",
        b"           vtest   140/141   [000]     6.366471000: intx:unmask: (ffffffffc0467bd0) vdev=0xff110000063e1000",
        b"6366471000 cpu=0 pid=140 tid=141 comm=vtest unmask vdev=0xff110000063e1000",
        b'{"ts": 6366471000, "cpu": 0, "pid": 140, "tid": 141, "event": "unmask", "vdev": "0xff110000063e1000"}',
        b'{"ts": 6366471000, "cpu": 0, "tgid": 140, "tid": 141, "event": "unmask", "vdev": 18379471554380435456}',
        b'{"type": "printf", "data": "{\\"ts\\": 6366471000, \\"tid\\": 141, \\"event\\": \\"unmask\\", '
        b'\\"vdev\\": \\"0xff110000063e1000\\"}\\n"}',
    ],
)
def test_dialects(line: bytes) -> None:
    _, (_, event) = read(line + b"\n")
    assert (event["kind"], event["ts"], event["cpu"], event["tid"]) == (Kind.UNMASK_ENTRY, 6_366_471_000, 0, 141)
    assert event["device"] == VDEV
    assert event["tgid"] == (140 if b"140" in line else 0)


@pytest.mark.parametrize(
    ("text", "raw", "kind", "fields"),
    [
        (
            b"kvm_set_irq: gsi 16 level 1 source 1",
            b"kvm_set_irq: gsi=16 level=1 irq_source_id=1",
            KVM_SET_IRQ,
            (16, 1, 1),
        ),
        (b"kvm_ack_irq: irqchip IOAPIC pin 16", b"kvm_ack_irq: irqchip=2 pin=16", KVM_ACK, (16, 2, 0)),
        (b"kvm_ack_irq: irqchip PIC slave pin 3", b"kvm_ack_irq: irqchip=1 pin=3", KVM_ACK, (3, 1, 0)),
        (b"kvm_ack_irq: irqchip PIC master pin 3", b"kvm_ack_irq: irqchip=0 pin=3", KVM_ACK, (3, 0, 0)),
        (b"kvm_eoi: apicid 0 vector 64", b"kvm_eoi: apicid=0 vector=64", Kind.KVM_EOI, (0, 0, 64)),
        (EXIT + b" KVM_EXIT_IOAPIC_EOI (26)", EXIT + b"=26 errno=0", Kind.USERSPACE_EXIT, (0, 0, 26)),
        (EXIT + b" KVM_EXIT_INTR (10)", EXIT + b" KVM_EXIT_MMIO (6)", Kind.USERSPACE_EXIT, (0, 0, 0)),
    ],
)
def test_tracepoints_as_text_and_raw(text: bytes, raw: bytes, kind: Kind, fields: tuple[int, int, int]) -> None:
    for words in (text, raw):
        _, events = read(b"           vtest-141     [000]     6.366471: " + words + b"\n")
        (event,) = events
        assert (event["kind"], (event["arg0"], event["arg1"], event["value"])) == (kind, fields)


@pytest.mark.parametrize("raw", [False, True])
def test_tracepoints_of_a_handler_without_flags(raw: bool) -> None:
    """trace-cmd and perf print no flags: what is between entry and exit on a CPU is in the hard interrupt."""
    head = b"           vtest-141     [001]     6.36647%d: "
    ret = b"1" if raw else b"handled"
    lines = (
        b"irq_handler_entry: irq=20 name=vfio-intx(0000:00:10.0)",
        b"workqueue_queue_work: work struct=0xff11 function=irqfd_inject workqueue=kvm req_cpu=1 cpu=1",
        b"irq_handler_exit: irq=20 ret=" + ret,
        b"workqueue_queue_work: work struct=0xff12 function=irqfd_inject workqueue=kvm req_cpu=1 cpu=1",
    )
    _, events = read(b"".join(head % place + line + b"\n" for place, line in enumerate(lines)))
    found = [(Kind(int(e["kind"])).name, bool(e["flags"] & Flag.IN_HANDLER)) for e in events]
    assert found == [
        ("DEVICE", False),
        ("HANDLER_ENTRY", False),
        ("WORK_QUEUED", True),
        ("HANDLER_EXIT", False),
        ("WORK_QUEUED", False),
    ]
    assert events["value"][3] == 1


@pytest.mark.parametrize(
    ("remark", "cpu", "count"),
    [
        (b"CPU:1 [LOST 243 EVENTS]", 1, 243),
        (b"CPU:1 [LOST EVENTS]", 1, 0),
        (b"CPU:3 [12 EVENTS DROPPED]", 3, 12),
        (b"CPU:3 [EVENTS DROPPED]", 3, 0),
        (b"         swapper     0 [002]     6.366471: PERF_RECORD_LOST lost 7", 2, 7),
        (b'{"type": "lost_events", "data": {"events": 9}}', 0, 9),
    ],
)
def test_what_was_lost(remark: bytes, cpu: int, count: int) -> None:
    event = FTRACE
    if remark.startswith(b"{"):
        event = b'{"ts": 6366471000, "tid": 141, "event": "unmask", "vdev": "0xff110000063e1000"}\n'
    _, events = read(event + remark + b"\n" + event)
    (lost,) = events[events["kind"] == Kind.LOST]
    assert (lost["cpu"], lost["arg1"]) == (cpu, count)


# ---- names of the recorder's choosing


def test_map() -> None:
    text = FTRACE.replace(b" unmask:", b" my_probe:")
    assert kinds(text + FTRACE, {"my_probe": "unmask_entry"}) == [Kind.UNMASK_ENTRY] * 2
    assert kinds(text + FTRACE, {"my_probe": "UNMASK_ENTRY", "unmask": "ignore"}) == [Kind.UNMASK_ENTRY]
    uprobe = b'  qemu-141     [000] .....     6.366471: irq: (0x55e875141450) name="0000:00:05.0" pin=0\n'
    recording, events = read(uprobe, {"irq": "qemu_interrupt"})
    assert [(e["kind"], e["flags"]) for e in events] == [
        (Kind.DEVICE, Flag.SYNTHETIC),
        (Kind.QEMU_INTERRUPT, Flag.SYNTHETIC),
    ]
    assert recording.tables.devices[0].bdf == "0000:00:05.0"
    assert kinds(uprobe.replace(b"0000:00:05.0", b"hostdev0"), {"irq": "qemu_interrupt"}) == []


@pytest.mark.parametrize(
    ("option", "sentence"),
    [
        ("nothing", "is not NAME=KIND"),
        ("=unmask", "is not NAME=KIND"),
        ("a=b", "there is no kind of event 'b'; choose ignore"),
    ],
)
def test_map_says_what_is_wrong(option: str, sentence: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "t.txt"
    path.write_bytes(FTRACE)
    assert main(["import", str(path), "--map", option, "-o", str(tmp_path / "o.intx")]) == 1
    assert sentence in capsys.readouterr().err


def test_what_was_left_out_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = FOLDER / "refire.trace-cmd-report.txt"
    assert main(["import", str(path), "-o", str(tmp_path / "o.intx")]) == 0
    said = capsys.readouterr().err
    assert "an argument is missing that intxtrace needs: irqfd_wakeup 4, irqfd_inject 4" in said


@pytest.mark.parametrize(
    "value", [None, 1.5, True, [], {}, "a b", "a=b", "x" * 300, -(1 << 70), 1 << 70, "\n", "ÿ"], ids=repr
)
def test_odd_values_of_json(value: object) -> None:
    good = {"ts": 6366471000, "tid": 141, "event": "unmask", "vdev": "0xff110000063e1000"}
    for key in good:
        odd = json.dumps({**good, key: value}).encode()
        assert set(kinds(json.dumps(good).encode() + b"\n" + odd + b"\n")) == {Kind.UNMASK_ENTRY}


def test_half_a_surrogate_pair_in_json() -> None:
    good = {"ts": 6366471000, "tid": 141, "event": "unmask", "vdev": "0xff110000063e1000"}
    inner = json.dumps({**good, "comm": "\ud800"})
    for odd in (inner, json.dumps({"type": "printf", "data": inner}), json.dumps({"type": "printf", "data": "\ud800"})):
        assert set(kinds(json.dumps(good).encode() + b"\n" + odd.encode() + b"\n")) == {Kind.UNMASK_ENTRY}


def test_an_eoi_with_nothing_pending_is_none() -> None:
    line = b'  CPU 0/KVM-141     [000] .....     6.366471: qemu_eoi: (0x55e875141450) name="0000:00:05.0"%b\n'
    assert kinds(line % b" pending=0" + line % b" pending=1" + line % b"") == [Kind.QEMU_EOI] * 2


def test_without_irq_handler_exit_the_handlers_return_ends_the_hard_interrupt() -> None:
    """What `intxtrace recipe perf` records has no irq_handler_exit, and perf prints no flags."""
    head = b"       CPU 0/KVM   141 [001]     6.36647%d: intx:"
    vdev = b"vdev=0xff110000063e1000"
    lines = (
        b"set_irqs: (f) " + vdev + b" flags=0x11 index=0 start=0 count=1",
        b"irq_handler_entry: irq=20 name=vfio-intx(0000:00:10.0)",
        b"handler: (f) irq=20 dev=0xff110000063e1000",
        b"handler_ret: (f <- g) ret=0",
        b"handler: (f) irq=20 dev=0xff110000063e2000",
        b"handler_ret: (f <- g) ret=1",
        b"unmask: (f) " + vdev,
    )
    _, events = read(b"".join(head % place + line + b"\n" for place, line in enumerate(lines)))
    (unmask,) = events[events["kind"] == Kind.UNMASK_ENTRY]
    assert unmask["flags"] == Flag.IN_SET_IRQS
    exits = events[events["kind"] == Kind.HANDLER_EXIT]
    assert exits["device"].tolist() == [VDEV, VDEV + 0x1000]


def test_what_is_remembered_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """Other pointers and names without end: a sentence, or they are not remembered."""
    for module in (ftrace_devices, ftrace_nest, qemu_events):
        monkeypatch.setattr(module, "MAX_ROWS", 8)
    head = b"       CPU 0/KVM-141     [000] d.h1.     6.366471: "
    address = head + b"irq_handler_entry: irq=20 name=vfio-intx(0000:00:10.0)\n"
    handler = address + head + b"handler: (f) irq=20 dev=0xff11000006%06x\n"
    one_device = b"".join(handler % n for n in range(20))
    names = b"".join(b"1@1.000000:vfio_intx_eoi  (%c%c) EOI\n" % (0x80 + n, 0x80) for n in range(20))
    for text, sentence in ((one_device, "more than 8 devices"), (names, "more than 8 devices")):
        with pytest.raises(IntxtraceError, match=sentence):
            read(text)
    signal = handler % 1 + head + b"efd_signal: (f) ctx=0xff11000007%06x\n" + head + b"handler_ret: (f <- g) ret=1\n"
    recording, events = read(b"".join(signal % n for n in range(20)))
    assert (events["kind"] == Kind.EVENTFD_SIGNAL).sum() == 20
    assert isinstance(recording, FtraceText)
    assert len(recording._nesting._contexts) == 8
