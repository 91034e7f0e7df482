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
from functools import lru_cache
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


def looks_like_bpftrace(text: bytes) -> bool:
    """Whether some line of a text is one that is read here."""
    return any(_translated(line) for line in text.split(b"\n")[:1000])


class AsFtrace:
    """A stream of bpftrace's lines, read as a stream of ftrace's."""

    def __init__(self, stream: Readable) -> None:
        self._stream = stream
        self._rest = b""

    def read(self, size: int = -1) -> bytes:
        """Return some whole lines, whatever `size` is; nothing at the end."""
        while data := self._stream.read(1 << 16):
            *lines, self._rest = (self._rest + data).split(b"\n")
            if len(self._rest) > 1 << 20:
                self._rest = b""  # No line of a tracer is so long.
            if lines:
                return b"".join([_translated(line) or b"\n" for line in lines])
        last, self._rest = self._rest, b""
        return _translated(last)


def _translated(line: bytes) -> bytes:
    """Return the line of ftrace's text that says what this line does, nothing if it says nothing that is read."""
    if line.startswith(_OPENS):
        return _from_json(line)
    match = _TEXT.match(line)
    if match is None:
        return b""
    parts = match.groupdict()
    event = _RENAMED.get(parts["event"], parts["event"])
    return _line(int(parts["ts"]), int(parts["cpu"]), int(parts["tid"]), int(parts["tgid"]), parts["comm"], event,
                 parts["rest"] or b"")  # fmt: skip


def _from_json(line: bytes) -> bytes:
    values = _loaded(line)
    if "type" in values and "data" in values:
        if values["type"] == "lost_events" and isinstance(values["data"], dict):
            return b"CPU:0 [LOST %d EVENTS]\n" % _number(values["data"].get("events"))
        if not isinstance(values["data"], str):
            return b""
        return b"".join(_translated(inner) for inner in _bytes(values["data"]).split(b"\n") if inner)
    event = values.get("event")
    ts = _number(values.get("ts"))
    if not isinstance(event, str) or not event.isascii() or not _WORD.fullmatch(event) or not ts:
        return b""
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


def _line(ts: int, cpu: int, tid: int, tgid: int, comm: bytes, event: bytes, rest: bytes) -> bytes:
    if ts > 9_000_000_000_000_000_000 or cpu > 99_999 or tid > 9_999_999_999 or tgid > 9_999_999_999:
        return b""
    seconds, ns = divmod(ts, 1_000_000_000)
    return b"%16b-%-7d (%d) [%03d] %d.%09d: %b: %b\n" % (
        comm.replace(b"\n", b" "), tid, tgid, cpu, seconds, ns, event, rest.replace(b"\n", b" ")
    )  # fmt: skip
