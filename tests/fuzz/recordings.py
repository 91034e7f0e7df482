"""Short recordings of other tools, one or more for each importer of text, to be damaged."""

from __future__ import annotations

import functools
import gzip
import io
import json
import struct
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa

from intxtrace.events import RECORD
from intxtrace.importers import blocks, ftrace, opening, qemu_log
from intxtrace.importers.merge import Merged
from intxtrace.importers.opening import Recording, open_recording
from tests.kernel_texts import texts

FOLDER = Path(__file__).parents[1] / "traces" / "foreign"
SIZE = 1500
"""Bytes of a recording that are damaged."""

SMALL: tuple[tuple[Any, str, int], ...] = (
    (blocks, "BLOCK", 1000),
    (ftrace, "ROWS", 32),
    (ftrace, "REMARKS", 2),
    (qemu_log, "ROWS", 16),
    (opening, "SILENCE", 20),
)
"""Buffers that make several blocks of a short text, and get full; and no patience with programs."""


def _called(number: int, ts: int, *numbers: int) -> bytes:
    payload = struct.pack("<I", 12) + b"0000:00:05.0" + b"".join(struct.pack("<Q", n) for n in numbers)
    return struct.pack("<QQQII", 1, number, ts, 24 + len(payload), 7) + payload


def simple(interrupts: int) -> Iterator[bytes]:
    """Make a simple trace, record by record."""
    names = (b"vfio_intx_interrupt", b"vfio_intx_eoi", b"vfio_region_read", b"vfio_region_mmaps_set_enabled")
    yield struct.pack("<QQQ", 0xFFFFFFFFFFFFFFFF, 0xF2B177CB0AA429B4, 4)
    yield from (struct.pack("<QQI", 0, n, len(name)) + name for n, name in enumerate(names))
    for t in range(0, 3 * interrupts, 3):
        yield _called(0, t, 65) + _called(2, t + 1, 0, 192, 4, 16) + _called(1, t + 2)


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


def text_of(name: str) -> bytes:
    """Return a recording of another tool, uncompressed."""
    data = (FOLDER / name).read_bytes()
    return gzip.decompress(data) if name.endswith(".gz") else data


def _of(name: str, word: bytes) -> bytes:
    return _some(text_of(name), word)


def _with(name: str, words: tuple[bytes, ...], lines: int) -> bytes:
    """Return the first lines of a recording that have one of these words."""
    found = [line for line in text_of(name).splitlines(keepends=True) if any(word in line for word in words)]
    return b"".join(found[:lines])


VARIANTS = ("tracepoints", "losses", "trace-cmd", "trace-cmd-raw", "qemu-no-timestamps", "zstd")
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
    "qemu-simple": lambda: b"".join(simple(20)),
    "gzip": lambda: gzip.compress(_of("qemu-11.1.log", b"vfio_intx_interrupt")),
    "zstd": lambda: pa.compress(_of("qemu-11.1.log", b"vfio_intx_interrupt"), "zstd", asbytes=True),
}

BINARY = {"trace.dat": "irq.trace.dat.gz", "perf.data": "refire.perf.data.gz"}
"""What trace-cmd and perf recorded, and read; of the former, symbols and the formats of other events are cut out."""

MERGED: tuple[Callable[[], bytes], ...] = (
    lambda: _with("ftrace-userspace.txt.gz", (b" kvm_set_irq:", b" name=vfio-intx"), 32),
    lambda: _with("qemu-7.2-userspace.log.gz", (b"vfio_intx_interrupt", b"vfio_intx_eoi"), 24),
)
"""Two recordings of one run."""

whole = functools.cache(lambda name: RECORDINGS[name]())
binary = functools.cache(lambda name: text_of(BINARY[name]))
both = functools.cache(lambda: [make() for make in MERGED])


def read(data: bytes) -> int:
    """Import; return the number of events."""
    return _events(open_recording(io.BytesIO(data), "recording"))


def read_file(data: bytes) -> int:
    """Import what a program reads, which takes a file."""
    with tempfile.NamedTemporaryFile() as file:
        file.write(data)
        file.flush()
        file.seek(0)
        return _events(open_recording(file, file.name))


def merge(datas: list[bytes]) -> int:
    """Import as one; return the number of events."""

    def opener(data: bytes) -> Callable[[], Recording]:
        return lambda: open_recording(io.BytesIO(data), "recording")

    return _events(Merged([f"recording {number}" for number in range(len(datas))], [opener(data) for data in datas]))


def _events(recording: Recording) -> int:
    total = 0
    for events in recording:
        assert events.dtype == RECORD
        total += len(events)
    return total
