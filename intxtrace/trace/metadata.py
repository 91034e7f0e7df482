"""What a trace says about itself: versioned JSON in the metadata of the Arrow schema."""

from __future__ import annotations

import json
import platform
import time
from dataclasses import dataclass, field, fields
from typing import Any, Literal, get_type_hints

import intxtrace
from intxtrace.errors import IntxtraceError
from intxtrace.trace.values import fits, load_json

KEY = b"intxtrace"
"""The key of the JSON in the schema's metadata."""

FORMAT_VERSION = "1.0"
"""A new minor version only adds fields, tables, columns or kinds; a new major version is refused by older readers."""

Clock = Literal["monotonic", "realtime", "none"]


_READINGS = 50
"""Of the clocks: one that nothing interrupts is exact to a fraction of a microsecond."""


@dataclass(frozen=True)
class Metadata:
    """What a trace says about itself. `extra` keeps fields that a newer minor version added."""

    tool_version: str = intxtrace.__version__
    format_version: str = FORMAT_VERSION
    """`major.minor`."""
    clock: Clock = "monotonic"
    """`monotonic` (CLOCK_MONOTONIC), `realtime` (ns since 1970), `none`: `ts` only orders."""
    realtime_anchor_ns: int | None = None
    """Clock `monotonic`: ns to add to a `ts` for ns since 1970, taken at the start; null if not known."""
    hostname: str = ""
    kernel: str = ""
    """Release of the kernel that was traced, as `uname -r` prints it."""
    machine: str = ""
    """Its architecture, as `uname -m` prints it."""
    command_line: list[str] = field(default_factory=list)
    """The command that made the trace."""
    started_at: int | None = None
    """When the recording started, ns since 1970; null if not known."""
    extra: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def of_this_host(cls, command_line: list[str]) -> Metadata:
        """Describe a recording that starts now, on this host, with the monotonic clock."""
        # The realtime clock is read between two readings of the monotonic one: half their distance is the error.
        readings = [(time.monotonic_ns(), time.time_ns(), time.monotonic_ns()) for _ in range(_READINGS)]
        before, now, after = min(readings, key=lambda three: three[2] - three[0])
        uname = platform.uname()
        return cls(
            clock="monotonic",
            realtime_anchor_ns=now - (before + after) // 2,
            hostname=uname.node,
            kernel=uname.release,
            machine=uname.machine,
            command_line=command_line,
            started_at=now,
        )

    def realtime(self, ts: int) -> int | None:
        """Turn an instant of the trace's clock into ns since 1970; None if the trace cannot tell."""
        if self.clock == "realtime":
            return ts
        if self.clock == "monotonic" and self.realtime_anchor_ns is not None:
            return ts + self.realtime_anchor_ns
        return None

    def to_values(self) -> dict[str, Any]:
        """Return the fields as JSON values, unknown ones included."""
        known = {f.name: getattr(self, f.name) for f in fields(self) if f.name != "extra"}
        return {**self.extra, **known}

    def to_json(self) -> bytes:
        """Write the JSON that stands in the schema's metadata."""
        return json.dumps(self.to_values()).encode()

    @classmethod
    def from_json(cls, text: bytes) -> Metadata:
        """Read the JSON of the schema's metadata.

        Raises:
            IntxtraceError: the trace's major version is not ours.
            ValueError: it is not what a trace says about itself.
        """
        values = load_json(text)
        if not isinstance(values, dict):
            raise ValueError("the metadata are no JSON object")
        _check_version(values.get("format_version"))
        hints = get_type_hints(cls)
        known = {f.name for f in fields(cls)} - {"extra"}
        for name in known & values.keys():
            if not fits(values[name], hints[name]):
                raise ValueError(f"the metadata's {name} is not of its type")
        extra = {name: value for name, value in values.items() if name not in known}
        return cls(**{name: values[name] for name in known & values.keys()}, extra=extra)


def _check_version(version: object) -> None:
    major, dot, minor = version.partition(".") if isinstance(version, str) else ("", "", "")
    if not (dot and major.isascii() and major.isdigit() and minor.isascii() and minor.isdigit()) or len(major) > 9:
        raise ValueError("the metadata have no format version")
    ours = int(FORMAT_VERSION.partition(".")[0])
    if int(major) > ours:
        raise IntxtraceError(
            f"the trace has format version {version} and this intxtrace {intxtrace.__version__} reads up to "
            f"{ours}.x; upgrade intxtrace"
        )
    if int(major) < ours:
        raise ValueError(f"there never was a format version {version}")
