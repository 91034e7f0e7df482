"""Lines a second that the ftrace importer takes, beside a loop over the lines with one regular expression each.

Run: python -m tests.benchmarks.bench_import [MILLIONS of lines]
"""

from __future__ import annotations

import io
import re
import resource
import sys
import time

from intxtrace.importers.ftrace import FtraceText
from tests.kernel_texts import texts

_LINE = re.compile(rb"^ *(.+)-(\d+) +\[(\d+)\] (\S+) +([\d.]+): (\w+): (.*)$")
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


def naive(text: bytes) -> int:
    """Read every line by itself into a tuple and a dictionary: the peer."""
    found = 0
    for line in text.split(b"\n"):
        if match := _LINE.match(line):
            head = (match[1], int(match[2]), int(match[3]), match[4], round(float(match[5]) * 1e6) * 1000, match[6])
            found += len(head) > 0 and len({key: int(value, 0) for key, value in _PAIR.findall(match[7])}) >= 0
    return found


def main(millions: float) -> None:
    """Import, and print figures."""
    text = b"".join(
        line + b"\n" for line in texts()["deb-6.12/storm"].split(b"\n") if line and not line.startswith(b"#")
    )
    per_text = text.count(b"\n")
    times = max(1, round(millions * 1e6 / per_text))
    begin, cpu = time.perf_counter(), time.process_time()
    recording = FtraceText(Repeated(text, times), "text")
    events = sum(map(len, recording))
    seconds, cpu = time.perf_counter() - begin, time.process_time() - cpu
    resident = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
    print(f"import: {recording.lines:,} lines ({len(text) * times / 1e6:,.0f} MB) -> {events:,} events")
    print(f"  {recording.lines / seconds / 1e6:.2f} M lines/s, {recording.lines / cpu / 1e6:.2f} M a second of CPU")
    print(f"  at most {resident} MB resident")
    some = text * 20
    naive_cpu = time.process_time()
    own = naive(some) / (time.process_time() - naive_cpu)
    print(f"peer, a regular expression a line: {own / 1e6:.2f} M lines a second of CPU")
    print(f"  ratio of CPU: {recording.lines / cpu / own:.1f}")


if __name__ == "__main__":
    main(float(sys.argv[1]) if len(sys.argv) > 1 else 3)
