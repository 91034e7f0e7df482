"""Lines a second that the importers of text take, beside what scripts over what trace-cmd, perf or QEMU print do.

That is a loop over the lines with a regular expression each, or json.loads for lines of JSON.

Run: python -m tests.benchmarks.bench_import [MILLIONS of lines]
"""

from __future__ import annotations

import gzip
import io
import json
import re
import resource
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

from intxtrace.importers import compile
from intxtrace.importers.bpftrace import AsFtrace
from intxtrace.importers.ftrace import FtraceText
from intxtrace.importers.qemu_log import QemuLog
from tests.kernel_texts import ARCHIVE, texts

_LINE = re.compile(rb"^ *(.+)-(\d+) +\[(\d+)\] (\S+) +([\d.]+): (\w+): (.*)$")
_QEMU_LINE = re.compile(rb"^(?:(\d+)@([\d.]+):)?(\w+) (.*)$")
_QEMU_NUMBER = re.compile(rb"(0x[0-9a-f]+|(?<= )\d+)")
_PAIR = re.compile(rb"(\w+)=(0x[0-9a-f]+|-?\d+)")


class Repeated(io.RawIOBase):
    """One recording's events again and again, so that no memory is needed for them."""

    def __init__(self, text: bytes, times: int) -> None:
        self._part = text * max(1, (1 << 20) // len(text))
        self._left = len(text) * times
        self._at = 0

    def read(self, size: int = -1) -> bytes:
        size = min(size, len(self._part) - self._at, self._left)
        part = self._part[self._at : self._at + size]
        self._at = (self._at + size) % len(self._part)
        self._left -= size
        return part


def ndjson(lines: int) -> Iterator[bytes]:
    """Make what bpftrace prints of handler calls, an object a line."""
    for number in range(lines // 2):
        head = b'{"ts": %d, "cpu": 1, "tid": 177, "tgid": 175, "comm": "CPU 0/KVM", ' % (36_868_371_592 + number * 4000)
        yield head + b'"event": "handler", "irq": 20, "dev": "0xff110000063e1000"}\n'
        yield head + b'"event": "handler_ret", "ret": 1}\n'


def naive(text: bytes) -> int:
    """Match a regular expression a line, into a tuple and a dictionary."""
    found = 0
    for line in text.split(b"\n"):
        if match := _LINE.match(line):
            head = (match[1], int(match[2]), int(match[3]), match[4], round(float(match[5]) * 1e6) * 1000, match[6])
            found += len(head) > 0 and len({key: int(value, 0) for key, value in _PAIR.findall(match[7])}) >= 0
    return found


def naive_qemu(text: bytes) -> int:
    """Match a regular expression a line, into a tuple and a list."""
    found = 0
    for line in text.split(b"\n"):
        if match := _QEMU_LINE.match(line):
            head = (int(match[1] or 0), round(float(match[2] or 0) * 1e6) * 1000, match[3])
            found += len(head) > 0 and len([int(value, 0) for value in _QEMU_NUMBER.findall(match[4])]) >= 0
    return found


def naive_json(text: bytes) -> int:
    """Load JSON a line, and make a tuple of it."""
    found = 0
    for line in text.split(b"\n"):
        if line:
            values = json.loads(line)
            found += len((values["comm"], values["tid"], values["cpu"], values["ts"], values["event"])) > 0
    return found


PEERS: dict[Callable[[bytes], int], str] = {
    naive: "a regular expression a line",
    naive_qemu: "a regular expression a line",
    naive_json: "json.loads a line",
}


def measure(
    name: str, text: bytes, millions: float, reader: Callable[[Repeated], Any], peer: Callable[[bytes], int]
) -> None:
    """Import a text again and again, and print figures."""
    times = max(1, round(millions * 1e6 / text.count(b"\n")))
    begin, cpu = time.perf_counter(), time.process_time()
    recording = reader(Repeated(text, times))
    events = sum(map(len, recording))
    seconds, cpu = time.perf_counter() - begin, time.process_time() - cpu
    resident = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
    print(f"{name}: {recording.lines:,} lines ({len(text) * times / 1e6:,.0f} MB) -> {events:,} events")
    print(f"  {recording.lines / seconds / 1e6:.2f} M lines/s, {recording.lines / cpu / 1e6:.2f} M a second of CPU")
    print(f"  at most {resident} MB resident")
    some = text * max(1, 20_000 // text.count(b"\n"))
    naive_cpu = time.process_time()
    own = peer(some) / (time.process_time() - naive_cpu)
    print(f"  peer, {PEERS[peer]}: {own / 1e6:.2f} M lines a second of CPU")
    print(f"  ratio of CPU: {recording.lines / cpu / own:.1f}")


def main(millions: float) -> None:
    """Import texts, the scanners compiled before, and print figures."""
    ftrace = b"".join(
        line + b"\n" for line in texts()["deb-6.12/storm"].split(b"\n") if line and not line.startswith(b"#")
    )
    qemu = gzip.decompress((ARCHIVE.parent / "foreign" / "qemu-7.2-userspace.log.gz").read_bytes())
    objects = b"".join(ndjson(1000))
    compile.prepare()
    measure("ftrace", ftrace, millions, lambda stream: FtraceText(stream, "text"), naive)
    measure("QEMU log", qemu, millions, lambda stream: QemuLog(stream, "log"), naive_qemu)
    measure("bpftrace NDJSON", objects, millions, lambda stream: FtraceText(AsFtrace(stream), "text"), naive_json)


if __name__ == "__main__":
    main(float(sys.argv[1]) if len(sys.argv) > 1 else 5)
