"""A QEMU `-trace` log -> events, tables and metadata.

```
recording = QemuLog(open("vm.log", "rb"), "vm.log")
for events in recording:                    # arrays of intxtrace.events.RECORD
    writer.write(events, recording.tables)
```

Read block by block, in bounded memory. What such a log cannot tell stays unknown: how an interrupt was raised (its
origin), when the device was masked and unmasked, what a device on the kernel or hybrid path did, the CPU, and of which
process it is. Devices are what QEMU calls them: a PCI address, or a name, which is then the device's only one.

An event belongs to QEMU's trace-events of 4.0 to 11.1: `vfio_intx_eoi` is `vfio_pci_intx_eoi` since 10.1; both are
printed at real EOIs only (the trace stands behind the test of `intx.pending`).
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

from intxtrace.errors import IntxtraceError
from intxtrace.events import RECORD, Flag
from intxtrace.importers import qemu_scan
from intxtrace.importers.blocks import Blocks, Readable
from intxtrace.importers.compile import Scanner
from intxtrace.importers.qemu_events import EVENTS, Sink
from intxtrace.importers.qemu_scan import (
    C_BAD,
    C_LINES,
    C_ROWS,
    COUNTS,
    GSI,
    MMAPS,
    MOVED,
    NAMED,
    Q_ARG0,
    Q_ARG1,
    Q_HASH,
    Q_ID,
    Q_NAME,
    Q_REGION,
    Q_SIZE,
    Q_TID,
    Q_TIMED,
    Q_TS,
    Q_VALUE,
    REGION_READ,
    REGION_WRITE,
    ROW_COLUMNS,
)
from intxtrace.importers.scan import NEWLINE, PAD, hash_of
from intxtrace.trace.metadata import Metadata
from intxtrace.trace.tables import Tables

ROWS = 1 << 14
"""Events that are worked on at once."""

MAX_LOOKED_AT = 5000
"""Lines that are looked at to find out whether a text is such a log."""

_LOOKS = {
    "vfio_intx_interrupt": (NAMED, b") Pin ?"),
    "vfio_intx_eoi": (NAMED, b") EOI"),
    "vfio_pci_intx_eoi": (NAMED, b") EOI"),
    "vfio_intx_enable": (NAMED, b")"),
    "vfio_intx_disable": (NAMED, b")"),
    "vfio_intx_enable_kvm": (NAMED, b") KVM INTx accel enabled"),
    "vfio_intx_disable_kvm": (NAMED, b") KVM INTx accel disabled"),
    "vfio_intx_update": (MOVED, b") IRQ moved "),
    "vfio_region_read": (REGION_READ, b""),
    "vfio_region_write": (REGION_WRITE, b""),
    "vfio_region_mmaps_set_enabled": (MMAPS, b" mmaps enabled: "),
    "kvm_resample_fd_notify": (GSI, b""),
}
"""How the text of an event looks, and what stands behind the device's name."""

_KINDS = np.array([EVENTS[name] for name in _LOOKS], np.uint16)
_TAILS = np.frombuffer(b"".join(tail for _, tail in _LOOKS.values()), np.uint8).astype(np.int64)


def _names() -> npt.NDArray[np.int64]:
    rows: list[tuple[int, ...]] = []
    begin = 0
    for number, (name, (how, tail)) in enumerate(_LOOKS.items()):
        rows.append((hash_of(name.encode()), number, how, len(tail), begin))
        begin += len(tail)
    return np.array(sorted(rows), np.int64).T.copy()


_NAMES = _names()


def looks_like_qemu_log(text: bytes) -> bool:
    """Whether one of the first lines of a text is of an event of QEMU: one that is read here, or of its neighbours."""
    data = text + b"\n" * PAD
    stops = np.flatnonzero(np.frombuffer(data, np.uint8)[: len(text)] == NEWLINE)[:MAX_LOOKED_AT]
    counts = np.zeros(COUNTS, np.int64)
    qemu_scan.scan(data, 0, stops, _NAMES, _TAILS, np.empty((ROW_COLUMNS, 1), np.int64), counts)
    begins = [0, *(stops[:-1] + 1).tolist()] if len(stops) else []
    return counts[C_ROWS] > 0 or any(
        data.startswith((b"vfio_", b"kvm_"), qemu_scan.prefix(data, at)[0]) for at in begins
    )


class QemuLog:
    """A recording as QEMU's log.

    Args:
        stream: the log.
        name: what to call it in errors.
        command_line: the command that imports it, for the metadata.

    Raises:
        IntxtraceError: no line is of one of the events.
    """

    def __init__(self, stream: Readable, name: str, command_line: list[str] | None = None) -> None:
        self.tables = Tables()
        self.lines = 0
        """Lines read."""
        self.unreadable: dict[str, int] = {}
        """Lines that begin as an event and go on otherwise, by what they are; they are left out."""
        self._blocks = Blocks(stream)
        self._scanner = Scanner(qemu_scan.scan)
        self._rows = np.empty((ROW_COLUMNS, ROWS), np.int64)
        self._row_of: dict[int, int] = {}
        self._sink = Sink(self.tables)
        self._timed: bool | None = None
        self._latest = 0
        self._parts = self._read()
        self._first = next(self._parts, None)
        if self._timed is None:
            raise IntxtraceError(
                f"{name} has no event of INTx: run QEMU with -trace 'vfio_*intx*' -trace 'vfio_region_*' -D FILE"
            )
        self.metadata: Metadata = Metadata(
            clock="realtime" if self._timed else "none",
            command_line=command_line or [],
            extra={
                "imported_from": "QEMU log",
                "clock_note": "the realtime clock of the host"
                if self._timed
                else "the log has no timestamps, which -msg timestamp=on would give: it only orders",
            },
        )

    @property
    def late(self) -> int:
        """Events that were older than what was handed out before: they have the time of that."""
        return self._sink.late

    def __iter__(self) -> Iterator[npt.NDArray[np.void]]:
        """Hand out the events, block by block, with `tables` grown to what they name."""
        if self._first is not None:
            yield self._first
            self._first = None
        yield from self._parts

    def _read(self) -> Iterator[npt.NDArray[np.void]]:
        for block in self._blocks:
            for found in self._scanner.scanned(block, lambda: (_NAMES, _TAILS, self._rows), COUNTS):
                self.lines += found[C_LINES]
                if found[C_BAD]:
                    self.unreadable["QEMU"] = self.unreadable.get("QEMU", 0) + found[C_BAD]
                if found[C_ROWS]:
                    yield self._sink.in_order(self._records(block.text, self._rows[:, : found[C_ROWS]]))
        yield self._sink.rest()

    def _records(self, text: bytes, rows: npt.NDArray[np.int64]) -> npt.NDArray[np.void]:
        """Turn what was scanned into records."""
        if self._timed is None:
            self._timed = bool(rows[Q_TIMED, 0])
        records = np.zeros(rows.shape[1], RECORD)
        if self._timed:
            ts = np.where(rows[Q_TIMED] != 0, rows[Q_TS], 0)
            if not rows[Q_TIMED].all():  # A line without its time is no older than the one before.
                ts = np.maximum.accumulate(np.where(rows[Q_TIMED] != 0, ts, self._latest))
        else:
            ts = self._latest + 1 + np.arange(rows.shape[1])
        self._latest = int(ts[-1])
        records["ts"] = ts
        records["kind"] = _KINDS[rows[Q_ID]]
        records["tid"] = rows[Q_TID]
        records["flags"] = Flag.SYNTHETIC
        records["value"] = rows[Q_VALUE].astype(np.int32)
        records["aux"] = rows[Q_REGION].astype(np.uint32)
        records["arg0"], records["arg1"] = rows[Q_ARG0].view(np.uint64), rows[Q_ARG1].view(np.uint64)
        self._name_devices(text, rows, records)
        return records

    def _name_devices(self, text: bytes, rows: npt.NDArray[np.int64], records: npt.NDArray[np.void]) -> None:
        """Put the row of the device into the records; rows are made for names that are new."""
        named = np.flatnonzero(rows[Q_NAME] >= 0)
        hashes, first = np.unique(rows[Q_HASH, named], return_index=True)
        for number, place in sorted(zip(hashes.tolist(), named[first].tolist(), strict=True), key=lambda pair: pair[1]):
            if number not in self._row_of:
                begin, size = rows[Q_NAME, place], rows[Q_SIZE, place]
                self._row_of[number] = self._sink.device(text[begin : begin + size])
        if len(hashes):
            of_hash = np.array([self._row_of[number] for number in hashes.tolist()])
            records["device"][named] = of_hash[np.searchsorted(hashes, rows[Q_HASH, named])]
        records["flags"][rows[Q_NAME] < 0] = 0
