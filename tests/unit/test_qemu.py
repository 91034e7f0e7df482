"""The importers of QEMU's log and of its simple trace: prefixes, names, arguments, order."""

from __future__ import annotations

import io
import struct
from datetime import UTC, datetime
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from intxtrace.errors import IntxtraceError
from intxtrace.events import Flag, Kind
from intxtrace.importers import blocks, compile, qemu_scan
from intxtrace.importers.qemu_log import QemuLog
from intxtrace.importers.qemu_simple import HEADER, QemuSimple

IRQ = b"vfio_intx_interrupt  (0000:00:05.0) Pin A\n"
EOI = b"vfio_intx_eoi  (0000:00:05.0) EOI\n"
ADDRESS = 5 << 3


def read(text: bytes) -> tuple[QemuLog, np.ndarray[Any, Any]]:
    log = QemuLog(io.BytesIO(text), "log")
    return log, np.concatenate(list(log))


def kinds(text: bytes) -> list[int]:
    return [kind for kind in read(text)[1]["kind"].tolist() if kind != Kind.DEVICE]


@pytest.mark.parametrize(
    ("head", "ts", "tid"),
    [
        (b"124@1795373963.335010:", 1795373963335010000, 124),
        (b"2026-11-22T18:46:59.661475Z ", 1795373219661475000, 0),
        (b"2026-11-22T18:46:59Z ", 1795373219000000000, 0),
        (b"some other me124@1795373963.335010:", 1795373963335010000, 124),  # a message without its newline
    ],
)
def test_prefixes(head: bytes, ts: int, tid: int) -> None:
    log, events = read(head + IRQ)
    assert log.metadata.clock == "realtime"
    assert [(e["kind"], e["ts"]) for e in events] == [(Kind.DEVICE, ts), (Kind.QEMU_INTERRUPT, ts)]
    assert events[1]["tid"] == tid


def test_without_timestamps_the_log_only_orders() -> None:
    log, events = read(IRQ + EOI + IRQ)
    assert log.metadata.clock == "none"
    assert events["ts"].tolist() == [1, 1, 2, 3]


@settings(deadline=None)
@given(st.datetimes(datetime(1970, 1, 1), datetime(2199, 12, 31)))
def test_iso_times(time: datetime) -> None:
    text = time.isoformat(timespec="microseconds").encode() + b"Z "
    since = time.replace(tzinfo=UTC) - datetime(1970, 1, 1, tzinfo=UTC)
    whole = (since.days * 86400 + since.seconds) * 1_000_000 + since.microseconds
    assert qemu_scan.iso(text + b"\n" * 64, 0, time.year) == (whole * 1000, len(text) - 1)


def test_arguments() -> None:
    text = (
        b"vfio_region_read  (0000:00:05.0:region0+0xc0, 4) = 0x10\n"
        b"vfio_region_write  (0000:00:05.0:region2+0xd8, 0xffffffffffffffff, 8)\n"
        b"vfio_region_mmaps_set_enabled Region 0000:00:05.0 BAR 3 mmaps enabled: 1\n"
        b"vfio_intx_update  (0000:00:05.0) IRQ moved -1 -> 11\n"
        b"kvm_resample_fd_notify gsi 22\n"
        b"vfio_intx_enable  (0000:00:05.0)\n"
        b"vfio_intx_enable_kvm  (0000:00:05.0) KVM INTx accel enabled\n"
        b"vfio_intx_disable_kvm  (0000:00:05.0) KVM INTx accel disabled\n"
        b"vfio_intx_disable  (0000:00:05.0)\n"
        b"vfio_pci_intx_eoi  (0000:00:05.0) EOI\n"
    )
    log, events = read(text)
    assert log.unreadable == {}
    found = [(Kind(int(e["kind"])), int(e["aux"]), int(e["value"]), int(e["arg0"]), int(e["arg1"])) for e in events]
    assert found == [
        (Kind.DEVICE, 0, 1, ADDRESS, 0),
        (Kind.QEMU_REGION_READ, 0, 4, 0xC0, 0),
        (Kind.QEMU_REGION_WRITE, 2, 8, 0xD8, (1 << 64) - 1),
        (Kind.QEMU_MMAPS, 3, 1, 0, 0),
        (Kind.QEMU_UPDATE, 0, 0, (1 << 64) - 1, 11),
        (Kind.QEMU_RESAMPLE_NOTIFY, 0, 0, 22, 0),
        (Kind.QEMU_ENABLE, 0, 0, 0, 0),
        (Kind.QEMU_ENABLE_KVM, 0, 0, 0, 0),
        (Kind.QEMU_DISABLE_KVM, 0, 0, 0, 0),
        (Kind.QEMU_DISABLE, 0, 0, 0, 0),
        (Kind.QEMU_EOI, 0, 0, 0, 0),
    ]
    assert [row.bdf for row in log.tables.devices] == ["0000:00:05.0"]
    assert (events["flags"][events["kind"] != Kind.QEMU_RESAMPLE_NOTIFY] == Flag.SYNTHETIC).all()


@pytest.mark.parametrize(
    "name",
    ["hostdev0", "VFIO user </var/run/muser/domain/muser0/8/cntrl>", "a) Pin A (b", "x:region0+0x1", "BAR 0 BAR 1"],
)
def test_a_device_may_be_called_anything(name: str) -> None:
    called = name.encode()
    text = b"".join(
        (
            b"vfio_intx_interrupt  (%b) Pin A\n" % called,
            b"vfio_region_write  (%b:region0+0x28, 0x21cc000, 4)\n" % called,
            b"vfio_region_read  (%b:region0+0x28, 4) = 0x0\n" % called,
            b"vfio_region_mmaps_set_enabled Region %b BAR 0 mmaps enabled: 0\n" % called,
            b"vfio_intx_update  (%b) IRQ moved 22 -> 11\n" % called,
            b"vfio_intx_eoi  (%b) EOI\n" % called,
        )
    )
    log, events = read(text)
    assert log.unreadable == {}
    assert [(row.name, row.bdf) for row in log.tables.devices] == [(name, "")]
    assert len(events) == 7
    assert set(events["device"]) == {0}


def test_other_messages_lie_between() -> None:
    text = (
        b"2026-11-22T18:55:04.670972Z qemu-system-x86_64: warning: VFIO dma-buf not supported in kernel\n"
        b"124@1795373963.354476:kvm_set_user_memory Slot#2 flags=0x0 gpa=0xfebc0000 size=0x0 ua=0x7effa68bb000 ret=0\n"
        b"\n"
        b"124@1795373963.335010:" + IRQ + b"qemu: terminating on signal 15\n"
        b"124@1795373963.335020:vfio_intx_interrupt  (0000:00:05.0) Pin\n"
    )  # fmt: skip
    log, events = read(text)
    assert log.lines == 6
    assert [e["kind"] for e in events] == [Kind.DEVICE, Kind.QEMU_INTERRUPT]
    assert log.unreadable == {"QEMU": 1}


@pytest.mark.parametrize(
    "line",
    [
        b"vfio_intx_interrupt  (0000:00:05.0) Pin AB",
        b"vfio_intx_interrupt (0000:00:05.0) Pin A",
        b"vfio_intx_eoi  () EOI",
        b"vfio_region_read  (0000:00:05.0:region0+0xc0, 4 = 0x10",
        b"vfio_region_read  (0000:00:05.0:region+0xc0, 4) = 0x10",
        b"vfio_region_write  (0000:00:05.0:region0+0xc0, 4)",
        b"vfio_region_write  (0000:00:05.0:region0+0xc0,",
        b"vfio_region_mmaps_set_enabled Region 0000:00:05.0 BAR 0 mmaps enabled: 2",
        b"vfio_region_mmaps_set_enabled Region BAR 0 mmaps enabled: 1",
        b"vfio_intx_update  (0000:00:05.0) IRQ moved 1",
        b"kvm_resample_fd_notify gsi x",
    ],
)
def test_what_is_not_as_its_name_promises_is_left_out(line: bytes) -> None:
    log, events = read(IRQ + line + b"\n" + EOI)
    assert log.unreadable == {"QEMU": 1}
    assert len(events) == 3


def test_threads_lines_are_put_in_order() -> None:
    _, events = read(b"1@10.000002:" + EOI + b"2@10.000001:" + IRQ)
    assert [e["kind"] for e in events] == [Kind.DEVICE, Kind.QEMU_INTERRUPT, Kind.QEMU_EOI]


def test_a_clock_that_goes_back_far_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(blocks, "BLOCK", 60)
    monkeypatch.setattr("intxtrace.importers.qemu_events.HELD", 1)
    log, events = read(b"1@10.000000:" + IRQ + b"1@11.000000:" + EOI + b"1@12.000000:" + IRQ + b"1@5.000000:" + EOI)
    assert log.late == 1
    assert (np.diff(events["ts"].astype(np.int64)) >= 0).all()


@pytest.mark.parametrize("size", [50, 97, 1000])
def test_blocks_change_nothing(size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    text = b"".join(b"%d@10.%06d:%b" % (place % 3, place, (IRQ, EOI)[place % 2]) for place in range(200))
    whole = read(text)[1]
    monkeypatch.setattr(blocks, "BLOCK", size)
    assert read(text)[1].tobytes() == whole.tobytes()


def test_compiled_and_interpreted_scanners_agree(monkeypatch: pytest.MonkeyPatch) -> None:
    text = b"".join(b"%d@10.%06d:%b" % (place % 3, place, (IRQ, EOI)[place % 2]) for place in range(200))
    interpreted = read(text)[1]
    monkeypatch.setattr(compile, "LOAD_FROM", 0)
    monkeypatch.setattr(compile, "COMPILE_FROM", 0)
    assert read(text)[1].tobytes() == interpreted.tobytes()


def test_a_log_without_intx_is_a_sentence() -> None:
    with pytest.raises(IntxtraceError, match="has no event of INTx"):
        QemuLog(io.BytesIO(b"kvm_set_user_memory Slot#2\n"), "log")


# ---- the simple backend


def mapping(number: int, name: bytes) -> bytes:
    return struct.pack("<QQI", 0, number, len(name)) + name


def record(number: int, ts: int, payload: bytes, pid: int = 7) -> bytes:
    return struct.pack("<QQQII", 1, number, ts, 24 + len(payload), pid) + payload


def called(name: bytes, *numbers: int) -> bytes:
    return struct.pack("<I", len(name)) + name + b"".join(struct.pack("<Q", number) for number in numbers)


START = HEADER + struct.pack("<Q", 4)


def simple(data: bytes) -> tuple[QemuSimple, np.ndarray[Any, Any]]:
    trace = QemuSimple(io.BytesIO(data), "trace")
    return trace, np.concatenate(list(trace))


def test_simple_trace() -> None:
    data = START
    data += mapping(5, b"vfio_intx_interrupt") + record(5, 100, called(b"0000:00:05.0", ord("A")))
    data += mapping(9, b"kvm_something") + record(9, 110, b"1234567")
    data += mapping(6, b"vfio_region_read") + record(6, 120, called(b"0000:00:05.0", 2, 0xC0, 4, 0x10))
    data += mapping(7, b"vfio_region_write") + record(7, 130, called(b"0000:00:05.0", 2, 0xC0, 0x10, 4))
    data += mapping(8, b"vfio_region_mmaps_set_enabled") + record(8, 140, called(b"0000:00:05.0 BAR 1", 1))
    data += mapping(10, b"kvm_resample_fd_notify") + record(10, 150, struct.pack("<Q", 22))
    data += record(0xFFFFFFFFFFFFFFFE, 160, struct.pack("<Q", 3))
    data += mapping(11, b"vfio_pci_intx_eoi") + record(11, 170, called(b"0000:00:05.0"))
    data += record(11, 180, called(b"0000:00:05.0"))[:-3]  # QEMU was killed.
    trace, events = simple(data)
    names = ("ts", "kind", "tgid", "aux", "value", "arg0", "arg1")
    assert [tuple(int(e[name]) for name in names) for e in events] == [
        (100, Kind.DEVICE, 0, 0, 1, ADDRESS, 0),
        (100, Kind.QEMU_INTERRUPT, 7, 0, 0, 0, 0),
        (120, Kind.QEMU_REGION_READ, 7, 2, 4, 0xC0, 0x10),
        (130, Kind.QEMU_REGION_WRITE, 7, 2, 4, 0xC0, 0x10),
        (140, Kind.QEMU_MMAPS, 7, 1, 1, 0, 0),
        (150, Kind.QEMU_RESAMPLE_NOTIFY, 7, 0, 0, 22, 0),
        (160, Kind.LOST, 0, 0, 0, 160, 3),
        (170, Kind.QEMU_EOI, 7, 0, 0, 0, 0),
    ]
    assert trace.metadata.clock == "monotonic"
    assert [(row.bdf, row.vm_pid) for row in trace.tables.devices] == [("0000:00:05.0", 7)]


@pytest.mark.parametrize(
    ("data", "sentence"),
    [
        (HEADER + struct.pack("<Q", 3), "version 3; only version 4 is read"),
        (START + struct.pack("<Q", 9), "record 1 is no record of a QEMU trace"),
        (START + struct.pack("<QQI", 0, 1, 1 << 30), "record 1 is no record"),
        (START + struct.pack("<QQQII", 1, 5, 100, 1 << 30, 7), "record 1 is no record"),
        (START + struct.pack("<QQQII", 1, 5, 100, 3, 7), "record 1 is no record"),
    ],
)
def test_a_damaged_simple_trace_is_a_sentence(data: bytes, sentence: str) -> None:
    with pytest.raises(IntxtraceError, match=sentence):
        simple(data)


def test_an_event_that_is_cut_short_is_left_out() -> None:
    data = START + mapping(6, b"vfio_region_read") + record(6, 120, called(b"0000:00:05.0", 2))
    data += mapping(5, b"vfio_intx_interrupt") + record(5, 130, called(b"0000:00:05.0", 65))
    trace, events = simple(data)
    assert trace.unreadable == {"QEMU_REGION_READ": 1}
    assert [e["kind"] for e in events] == [Kind.DEVICE, Kind.QEMU_INTERRUPT]
