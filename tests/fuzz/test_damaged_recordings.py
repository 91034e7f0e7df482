"""Whatever happens to the bytes of another tool's recording: a result or a sentence, never a traceback or a hang.

`make test` damages a thousand copies of each; `make fuzz` sets INTXTRACE_FUZZ to damage as many as it says.
"""

from __future__ import annotations

import gzip
import io
import json
import os
import random
import struct
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from intxtrace.errors import IntxtraceError
from intxtrace.events import RECORD
from intxtrace.importers import blocks, ftrace, qemu_log
from intxtrace.importers.opening import open_recording
from tests.fuzz.test_damaged_traces import damage
from tests.kernel_texts import texts

CASES = int(os.environ.get("INTXTRACE_FUZZ", "1000"))
FOLDER = Path(__file__).parents[1] / "traces" / "foreign"
SIZE = 1500
"""Bytes of a recording that are damaged."""


def _called(number: int, ts: int, *numbers: int) -> bytes:
    payload = struct.pack("<I", 12) + b"0000:00:05.0" + b"".join(struct.pack("<Q", n) for n in numbers)
    return struct.pack("<QQQII", 1, number, ts, 24 + len(payload), 7) + payload


def _simple() -> bytes:
    names = (b"vfio_intx_interrupt", b"vfio_intx_eoi", b"vfio_region_read", b"vfio_region_mmaps_set_enabled")
    maps = b"".join(struct.pack("<QQI", 0, n, len(name)) + name for n, name in enumerate(names))
    events = b"".join(_called(0, t, 65) + _called(2, t + 1, 0, 192, 4, 16) + _called(1, t + 2) for t in range(0, 60, 3))
    return struct.pack("<QQQ", 0xFFFFFFFFFFFFFFFF, 0xF2B177CB0AA429B4, 4) + maps + events


def _ndjson() -> bytes:
    one = {"ts": 36868371592, "cpu": 1, "tid": 177, "tgid": 175, "comm": "CPU 0/KVM", "event": "handler", "irq": 20}
    lines = [
        {**one, "ts": 36868371592 + n, "dev": 0xFF110000063E1000, "event": e}
        for n in range(4)
        for e in ("handler", "x")
    ]
    lines += [{"type": "printf", "data": json.dumps(one) + "\n"}, {"type": "lost_events", "data": {"events": 7}}]
    return b"".join(json.dumps(line).encode() + b"\n" for line in lines)


def _some(text: bytes, word: bytes) -> bytes:
    """Return whole lines of a text around its first line with this word."""
    begin = max(text.index(word) - SIZE // 2, 0)
    return text[begin : begin + SIZE]


def _of(name: str, word: bytes) -> bytes:
    data = (FOLDER / name).read_bytes()
    return _some(gzip.decompress(data) if name.endswith(".gz") else data, word)


VARIANTS = ("tracepoints", "losses", "trace-cmd", "trace-cmd-raw", "qemu-no-timestamps")
"""Other words for an importer that another recording is for."""

RECORDINGS: dict[str, Callable[[], bytes]] = {
    "ftrace": lambda: _some(texts()["deb-6.12/resample"], b": irqfd_wakeup:"),
    "tracepoints": lambda: _some(texts()["deb-5.10-extra/tponly_refire"], b"vfio-intx"),
    "losses": lambda: _some(texts()["deb-5.10-extra/lost_pipe"], b"LOST"),
    "trace-cmd": lambda: _of("refire.trace-cmd-report.txt", b" handler:"),
    "trace-cmd-raw": lambda: _of("refire.trace-cmd-report-raw-ns.txt", b" handler:"),
    "perf-script": lambda: _of("refire.perf-script-ns-fields.txt", b":handler:"),
    "bpftrace": lambda: _of("refire.bpftrace.txt", b" handler "),
    "ndjson": _ndjson,
    "qemu-7.2": lambda: _of("qemu-7.2-userspace.log.gz", b"vfio_intx_interrupt"),
    "qemu-11.1": lambda: _of("qemu-11.1.log", b"vfio_intx_interrupt"),
    "qemu-no-timestamps": lambda: _of("qemu-7.2-no-timestamps.log.gz", b"vfio_intx_interrupt"),
    "qemu-simple": _simple,
    "gzip": lambda: gzip.compress(_of("qemu-11.1.log", b"vfio_intx_interrupt")),
}


def read(data: bytes) -> int:
    """Import; return the number of events."""
    recording = open_recording(io.BytesIO(data), "recording")
    total = 0
    for events in recording:
        assert events.dtype == RECORD
        total += len(events)
    return total


@pytest.fixture(autouse=True)
def small_buffers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Several blocks in a short text, and outputs that get full."""
    monkeypatch.setattr(blocks, "BLOCK", 1000)
    monkeypatch.setattr(ftrace, "ROWS", 32)
    monkeypatch.setattr(ftrace, "REMARKS", 2)
    monkeypatch.setattr(qemu_log, "ROWS", 16)


@pytest.mark.timeout(24 * 3600)
@pytest.mark.parametrize("name", RECORDINGS)
def test_a_damaged_recording_gives_a_result_or_a_sentence(name: str) -> None:
    whole = RECORDINGS[name]()
    assert read(whole) > 0
    dice = random.Random(name)
    results = 0
    sentences = []
    for _ in range(CASES // 2 if name in VARIANTS else CASES):
        try:
            results += read(damage(whole, dice)) > 0
        except IntxtraceError as error:
            sentences.append(str(error))
    assert results or name == "gzip"  # Its checksum finds everything.
    assert not [sentence for sentence in sentences if "\n" in sentence]


@pytest.mark.parametrize(
    "line", [b"", b"\0", b"[", b"1@", b"{", b"CPU:", b"vfio_intx_eoi  (", b"a-1 [000] 1.000000: x"]
)
def test_a_line_without_an_end_needs_bounded_memory(line: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(blocks, "BLOCK", 1 << 14)
    event = b"1@10.000000:vfio_intx_interrupt  (a) Pin A\n"
    data = event + (line or b" ") * ((1 << 21) // max(len(line), 1))
    tracemalloc.start()
    try:
        with pytest.raises(IntxtraceError, match="a line is longer than any"):
            read(data)
        assert tracemalloc.get_traced_memory()[1] < 6 << 20
    finally:
        tracemalloc.stop()


def test_events_do_not_pile_up() -> None:
    text = RECORDINGS["ftrace"]()
    text = text[text.index(b"\n") + 1 : text.rindex(b"\n") + 1]
    sizes = []
    for times in (10, 40):
        tracemalloc.start()
        read(text * times)
        sizes.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert sizes[1] - sizes[0] < 40 * len(text)
    assert np.diff(sizes)[0] < 1 << 20
