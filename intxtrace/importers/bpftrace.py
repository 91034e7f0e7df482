"""bpftrace's output as the lines of ftrace's text, so that one importer reads both.

What a script prints is its author's choice. Two forms are read:

- NDJSON, an object a line: `{"ts": 36868371592, "cpu": 1, "tid": 177, "tgid": 175, "comm": "CPU 0/KVM", "event":
  "handler", "irq": 20, "dev": "0xff110000063e1000"}`, with `ts` of `nsecs`, and the arguments of `ftrace_dialect`;
  alone, or as what `bpftrace -f json` makes of a printf, with its own remarks on lost events between.
- Text: `36868371592 cpu=1 pid=175 tid=177 comm=CPU 0/KVM handler irq=20 dev=0xff110000063e1000`.

`pid` is bpftrace's word for the process. bpftrace tells nothing of hard interrupts: see `ftrace_scan`.
"""

from __future__ import annotations

import json
import re
from bisect import bisect_right
from functools import lru_cache
from operator import itemgetter
from typing import Any

from intxtrace.importers.blocks import Readable

_TEXT = re.compile(
    rb"(?P<ts>\d{1,19}) cpu=(?P<cpu>\d{1,5}) pid=(?P<tgid>\d{1,10}) tid=(?P<tid>\d{1,10}) comm=(?P<comm>.{0,15}?) "
    rb"(?P<event>[A-Za-z_]\w{0,63})(?: (?P<rest>\w+=.*))?$"
)
_WORD = re.compile(r"\w{1,64}")
_HEAD = ("ts", "cpu", "tid", "tgid", "pid", "comm", "event")
_RENAMED = {b"eventfd_signal": b"efd_signal", b"eventfd_signal_mask": b"efd_signal", b"ack": b"acked_irq"}
"""Functions' own names, as scripts print them."""
_OPENS = b"{"


HELD_NS = 1_000_000_000
"""bpftrace prints what it finds in the buffer of one CPU, then of the next: lines of up to 70 ms were seen swapped."""

HELD_LINES = 1 << 15
"""Lines that are held back for those before them, at the most, and half of those that are in memory."""

Timed = tuple[int, bytes]
"""A line of ftrace's text and its time in ns, 0 for one without."""


def looks_like_bpftrace(text: bytes) -> bool:
    """Whether some line of a text is one that is read here."""
    return any(_translated(line) for line in text.split(b"\n")[:1000])


class AsFtrace:
    """A stream of bpftrace's lines, read as a stream of ftrace's, in the order of time."""

    def __init__(self, stream: Readable) -> None:
        self._stream = stream
        self._rest = b""
        self._held: list[Timed] = []
        self._newest = 0
        self._handed_out = 0

    def read(self, size: int = -1) -> bytes:
        """Return some whole lines, whatever `size` is; nothing at the end."""
        while data := self._stream.read(1 << 16):
            *lines, self._rest = (self._rest + data).split(b"\n")
            if len(self._rest) > 1 << 20:
                self._rest = b""  # No line of a tracer is so long.
            for line in lines:
                self._hold(line)
            much = self._newest - self._handed_out > 2 * HELD_NS or len(self._held) > 2 * HELD_LINES
            if much and (ready := self._in_order(self._newest - HELD_NS)):
                return ready
        if self._rest:
            self._hold(self._rest)
            self._rest = b""
        return self._in_order(self._newest)

    def _hold(self, line: bytes) -> None:
        for ts, text in _translated(line) or [(0, b"\n")]:
            self._newest = max(self._newest, ts)
            self._held.append((ts or self._newest, text))

    def _in_order(self, until: int) -> bytes:
        """Take out the lines up to an instant, and more if too many are held."""
        self._held.sort(key=itemgetter(0))
        cut = max(bisect_right(self._held, until, key=itemgetter(0)), len(self._held) - HELD_LINES)
        ready = b"".join([text for _, text in self._held[:cut]])
        del self._held[:cut]
        self._handed_out = until
        return ready


def _translated(line: bytes) -> list[Timed]:
    """Return the lines of ftrace's text that say what this line does, none if it says nothing that is read."""
    if line.startswith(_OPENS):
        return _from_json(line)
    match = _TEXT.match(line)
    if match is None:
        return []
    parts = match.groupdict()
    event = _RENAMED.get(parts["event"], parts["event"])
    return _line(int(parts["ts"]), int(parts["cpu"]), int(parts["tid"]), int(parts["tgid"]), parts["comm"], event,
                 parts["rest"] or b"")  # fmt: skip


def _from_json(line: bytes) -> list[Timed]:
    values = _loaded(line)
    if "type" in values and "data" in values:
        if values["type"] == "lost_events" and isinstance(values["data"], dict):
            return [(0, b"CPU:0 [LOST %d EVENTS]\n" % _number(values["data"].get("events")))]
        if not isinstance(values["data"], str):
            return []
        return [one for inner in _bytes(values["data"]).split(b"\n") if inner for one in _translated(inner)]
    event = values.get("event")
    ts = _number(values.get("ts"))
    if not isinstance(event, str) or not event.isascii() or not _WORD.fullmatch(event) or not ts:
        return []
    arguments = []
    for key, value in values.items():
        if _is_key(key) and _is_argument(value):
            text = value if isinstance(value, str) or value < 1 << 32 else hex(value)
            arguments.append(f"{key}={text}")
    name = _RENAMED.get(event.encode(), event.encode())
    tgid = values.get("tgid", values.get("pid"))
    comm = _bytes(str(values.get("comm", "")))[:15]
    return _line(ts, _number(values.get("cpu")), _number(values.get("tid")), _number(tgid), comm, name,
                 " ".join(arguments).encode())  # fmt: skip


def _loaded(line: bytes) -> dict[str, Any]:
    try:
        values = json.loads(line)
    except (ValueError, RecursionError):
        return {}
    return values if isinstance(values, dict) else {}


def _bytes(text: str) -> bytes:
    """Return a string of JSON, which may hold half of a surrogate pair, as UTF-8."""
    return text.encode("utf-8", "replace")


def _number(value: object) -> int:
    """Return a number that fits, 0 for everything else."""
    return value if isinstance(value, int) and 0 <= value < 1 << 63 else 0


@lru_cache(maxsize=256)
def _is_key(key: str) -> bool:
    return key not in _HEAD and key.isascii() and _WORD.fullmatch(key) is not None


def _is_argument(value: object) -> bool:
    if isinstance(value, str):
        return len(value) < 200 and value.isascii() and value.isprintable() and " " not in value and "=" not in value
    return isinstance(value, int) and not isinstance(value, bool) and -(1 << 63) <= value < 1 << 64


def _line(ts: int, cpu: int, tid: int, tgid: int, comm: bytes, event: bytes, rest: bytes) -> list[Timed]:
    if ts > 9_000_000_000_000_000_000 or cpu > 99_999 or tid > 9_999_999_999 or tgid > 9_999_999_999:
        return []
    seconds, ns = divmod(ts, 1_000_000_000)
    text = b"%16b-%-7d (%d) [%03d] %d.%09d: %b: %b\n" % (
        comm.replace(b"\n", b" "), tid, tgid, cpu, seconds, ns, event, rest.replace(b"\n", b" ")
    )  # fmt: skip
    return [(ts, text)]
