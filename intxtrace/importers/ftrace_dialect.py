"""Which events of an ftrace text are ours, and how their text becomes the fields of a record.

Kprobes: the names of kernel-path recordings (`p:intx/handler vfio_intx_handler irq=%di dev=%si ...`). Their arguments
are read by name, in any order, and others are skipped. Tracepoints: the kernel's own formats
(include/trace/events/irq.h, kvm.h, workqueue.h and arch/x86/kvm/trace.h, 4.15 to 7.3).
"""

from __future__ import annotations

import enum
import re
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from intxtrace.events import INTX_INDEX, RECORD, Flag, Kind, Work
from intxtrace.importers.ftrace_lines import MAX_NAME, Lines
from intxtrace.importers.scan import Mask, Numbers, Offsets, Text


class Call(enum.IntEnum):
    """What an event says about the calls that are open in its task."""

    NESTED = 0
    """Nothing: it may be inside of one."""
    ENDS = 1
    """It cannot be inside any that is bracketed here, so none is open."""
    HANDLER = 2
    SET_IRQS = 3
    VIRQFD_INJECT = 4
    CONFIG_UNMASK = 5
    KVM_IRQFD = 6
    KVM_SET_IRQ = 7
    RESAMPLER_ACK = 8
    EVENTFD_WRITE = 9


FLAG_OF_CALL = np.zeros(len(Call), np.uint32)
for _call, _flag in (
    (Call.HANDLER, Flag.IN_HANDLER),
    (Call.SET_IRQS, Flag.IN_SET_IRQS),
    (Call.VIRQFD_INJECT, Flag.IN_VIRQFD_INJECT),
    (Call.CONFIG_UNMASK, Flag.IN_CONFIG_UNMASK),
    (Call.KVM_IRQFD, Flag.IN_KVM_IRQFD),
    (Call.KVM_SET_IRQ, Flag.IN_KVM_SET_IRQ),
    (Call.RESAMPLER_ACK, Flag.IN_RESAMPLER_ACK),
    (Call.EVENTFD_WRITE, Flag.IN_EVENTFD_WRITE),
):
    FLAG_OF_CALL[_call] = _flag


@dataclass(frozen=True)
class Source:
    """One event of ftrace's text: its name, what it becomes, and its arguments by the record's fields."""

    name: str
    kind: Kind | None
    """None: it only helps to read the others."""
    call: Call = Call.NESTED
    fields: dict[str, str] = field(default_factory=dict)
    """Field (or helper of `Event`) -> argument."""
    fallback: bool = False
    target: str = ""


_IRQFD = {"vm": "kvm", "arg0": "gsi", "link2": "resamplefd", "arg1": "eventfd", "resampler": "resampler"}
_TP = True

SOURCES = (
    Source(
        "handler",
        Kind.HANDLER_ENTRY,
        Call.HANDLER,
        {"arg0": "irq", "device": "dev", "w0": "w0", "w8": "w8"},
        target="vfio_intx_handler",
    ),
    Source("handler_ret", Kind.HANDLER_EXIT, Call.ENDS, {"value": "ret"}, target="vfio_intx_handler"),
    Source("efd_signal", Kind.EVENTFD_SIGNAL, fields={"link": "ctx", "aux": "id"}, target="eventfd_signal"),
    Source("efd_write", Kind.EVENTFD_WRITE, Call.EVENTFD_WRITE, target="eventfd_write"),
    Source("irqfd_wakeup", Kind.IRQFD_WAKEUP, fields={**_IRQFD, "link": "wait", "value": "key"}, target="irqfd_wakeup"),
    Source("irqfd_inject", Kind.IRQFD_INJECT, Call.ENDS, _IRQFD, target="irqfd_inject"),
    Source(
        "set_irq",
        Kind.KVM_SET_IRQ,
        Call.KVM_SET_IRQ,
        {"vm": "kvm", "arg1": "src", "arg0": "gsi", "value": "level"},
        target="kvm_set_irq",
    ),
    Source(
        "acked_irq",
        Kind.KVM_ACK,
        Call.ENDS,
        {"vm": "kvm", "arg1": "irqchip", "arg0": "pin"},
        target="kvm_notify_acked_irq",
    ),
    Source(
        "resampler_ack",
        Kind.RESAMPLER_ACK,
        Call.RESAMPLER_ACK,
        {"vm": "kvm", "arg0": "gsi", "link": "kian"},
        target="irqfd_resampler_ack",
    ),
    Source(
        "notify_resampler",
        Kind.RESAMPLER_NOTIFY,
        Call.RESAMPLER_ACK,  # As there, only resamplefds are signalled inside (irqfd_resampler_notify).
        {"vm": "kvm", "arg1": "irqchip", "arg0": "pin"},
        target="kvm_notify_irqfd_resampler",
    ),
    Source(
        "virqfd_wakeup",
        Kind.VIRQFD_WAKEUP,
        fields={"device": "vdev", "link": "eventfd", "value": "key"},
        target="virqfd_wakeup",
    ),
    Source(
        "virqfd_inject",
        Kind.VIRQFD_INJECT,
        Call.VIRQFD_INJECT,
        {"device": "vdev", "link": "eventfd"},
        target="virqfd_inject",
    ),
    Source("unmask", Kind.UNMASK_ENTRY, fields={"device": "vdev"}, target="vfio_pci_intx_unmask_handler"),
    Source("unmask_ret", Kind.UNMASK_EXIT, fields={"value": "ret"}, target="vfio_pci_intx_unmask_handler"),
    Source("chk_unmask_ret", Kind.CHECKED_UNMASK, fields={"value": "ret"}, target="pci_check_and_unmask_intx"),
    Source("mask", Kind.MASK, fields={"device": "vdev"}, target="vfio_pci_intx_mask"),
    Source("mask_locked", Kind.MASK, fields={"device": "vdev"}, target="__vfio_pci_intx_mask"),
    Source("unmask_fn", Kind.CONFIG_UNMASK, Call.CONFIG_UNMASK, {"device": "vdev"}, target="vfio_pci_intx_unmask"),
    Source(
        "set_irqs",
        Kind.SET_IRQS_ENTRY,
        Call.SET_IRQS,
        {"device": "vdev", "arg0": "flags", "arg1": "index", "w0": "start", "w8": "count"},
        target="vfio_pci_set_irqs_ioctl",
    ),
    Source(
        "kvm_irqfd",
        Kind.KVM_IRQFD_ENTRY,
        Call.KVM_IRQFD,
        {"vm": "kvm", "aux": "fd", "arg0": "gsi", "arg1": "flags"},
        target="kvm_irqfd",
    ),
    Source("irq_line", None, Call.ENDS),
    Source("irq_handler_entry", Kind.HANDLER_ENTRY, fallback=_TP, target="irq:irq_handler_entry"),
    Source("irq_handler_exit", Kind.HANDLER_EXIT, fallback=_TP, target="irq:irq_handler_exit"),
    Source("kvm_set_irq", Kind.KVM_SET_IRQ, Call.KVM_SET_IRQ, fallback=_TP, target="kvm:kvm_set_irq"),
    Source("kvm_ack_irq", Kind.KVM_ACK, Call.ENDS, fallback=_TP, target="kvm:kvm_ack_irq"),
    Source("kvm_eoi", Kind.KVM_EOI, Call.ENDS, target="kvm:kvm_eoi"),
    Source("kvm_apic_accept_irq", Kind.APIC_ACCEPT, target="kvm:kvm_apic_accept_irq"),
    Source("kvm_apicv_accept_irq", Kind.APIC_ACCEPT, target="kvm:kvm_apicv_accept_irq"),
    Source("kvm_msi_set_irq", Kind.MSI_SET_IRQ, target="kvm:kvm_msi_set_irq"),
    Source("kvm_userspace_exit", Kind.USERSPACE_EXIT, Call.ENDS, target="kvm:kvm_userspace_exit"),
    Source("kvm_inj_virq", None, Call.ENDS),
    Source("workqueue_queue_work", Kind.WORK_QUEUED, fallback=_TP, target="workqueue:workqueue_queue_work"),
    Source("workqueue_execute_start", Kind.WORK_STARTED, fallback=_TP, target="workqueue:workqueue_execute_start"),
)
"""Event id -> source. Events of other names (send_intx, kvm_ioapic_set_irq, tracing_mark_write, ...) are not read."""

ID = {source.name: number for number, source in enumerate(SOURCES)}
KIND = np.array([source.kind or 0 for source in SOURCES], np.uint16)
FALLBACK = np.array([Flag.FALLBACK if source.fallback else 0 for source in SOURCES], np.uint32)
CALL = np.array([source.call for source in SOURCES], np.int8)
KPROBE = {"kvm_set_irq": "set_irq", "kvm_ack_irq": "acked_irq"}
"""Tracepoint -> the kprobe that tells more."""

HELPERS = np.dtype([("w0", "<u8"), ("w8", "<u8"), ("resampler", "<u8"), ("bdf", "<i8"), ("call", "i1")])
"""What is read beside the record: see `Events.helpers`."""


@dataclass
class Events:
    """Events of a block, in its order."""

    lines: Lines
    id: npt.NDArray[np.int8]
    records: npt.NDArray[np.void]
    helpers: npt.NDArray[np.void]
    """`w0`, `w8` of the handler's dev_id; `bdf` of irq_handler_entry: -1 where it is not vfio's; `call`: `Call`."""
    unreadable: int
    """Lines whose text is not as their name promises."""


@dataclass(frozen=True)
class Span:
    """Where the texts of some events are: from the end of the name to the end of the line."""

    name_end: Offsets
    end: Offsets


def _name_words(name: bytes) -> tuple[int, int, int]:
    padded = name.ljust(MAX_NAME, b"\0")
    return tuple(int.from_bytes(padded[i : i + 8], "little") for i in (0, 8, 16))  # type: ignore[return-value]


_MIX = (np.uint64(0x9E3779B97F4A7C15), np.uint64(0xC2B2AE3D27D4EB4F), np.uint64(0x165667B19E3779F9))
_WORDS = np.array([_name_words(source.name.encode()) for source in SOURCES], np.uint64)
_HASHES: Numbers = _WORDS[:, 0] * _MIX[0] ^ _WORDS[:, 1] * _MIX[1] ^ _WORDS[:, 2] * _MIX[2]
_ORDER = np.argsort(_HASHES)
_MASKS = np.array([(1 << 8 * size) - 1 for size in range(9)], np.uint64)
assert len(np.unique(_HASHES)) == len(SOURCES)


def identify(text: Text, lines: Lines) -> npt.NDArray[np.int8]:
    """Return the event id of each line, -1 for what we do not know."""
    size = lines.name_end - lines.name
    words = [text.words[lines.name + begin] & _MASKS[np.clip(size - begin, 0, 8)] for begin in range(0, MAX_NAME, 8)]
    hashes = words[0] * _MIX[0] ^ words[1] * _MIX[1] ^ words[2] * _MIX[2]
    ids = _ORDER[np.minimum(np.searchsorted(_HASHES[_ORDER], hashes), len(SOURCES) - 1)]
    same = size <= MAX_NAME
    for number, part in enumerate(words):
        same &= _WORDS[ids, number] == part
    return np.where(same, ids, -1).astype(np.int8)


def decode(text: Text, lines: Lines) -> Events:
    """Read the events that are ours."""
    ids = identify(text, lines)
    present = set(np.unique(ids).tolist())
    for tracepoint, kprobe in KPROBE.items():
        if ID[tracepoint] in present and ID[kprobe] in present:
            ids[ids == ID[tracepoint]] = -1
    known = np.flatnonzero(ids >= 0)
    lines, ids = lines.take(known), ids[known]
    records = np.zeros(len(ids), RECORD)
    helpers = np.zeros(len(ids), HELPERS)
    records["ts"], records["cpu"] = lines.ts, lines.cpu.astype(np.uint16)
    records["tid"], records["tgid"] = lines.tid.astype(np.uint32), lines.tgid.astype(np.uint32)
    records["kind"] = KIND[ids]
    records["flags"] = FALLBACK[ids]
    helpers["call"] = CALL[ids]
    helpers["bdf"] = -1
    equals = text.find(b"=")
    good = np.ones(len(ids), np.bool_)
    for number in np.unique(ids).tolist():
        rows = np.flatnonzero(ids == number)
        source = SOURCES[number]
        spans = Span(lines.name_end[rows], lines.end[rows])
        if source.name in _FORMATS:
            columns, read_well = _FORMATS[source.name](text, spans, equals)
        else:
            columns, read_well = _arguments(text, spans, equals, source.fields)
        if not read_well.all():
            good[rows[~read_well]] = False
        for name, values in columns.items():
            table = records if name in (RECORD.names or ()) else helpers
            table[name][rows] = values.astype(table.dtype[name])
    _finish(ids, records, helpers)
    if good.all():
        return Events(lines, ids, records, helpers, 0)
    wanted = np.flatnonzero(good)
    kept = Events(lines.take(wanted), ids[wanted], records[wanted], helpers[wanted], len(ids) - len(wanted))
    return kept


def _finish(ids: npt.NDArray[np.int8], records: npt.NDArray[np.void], helpers: npt.NDArray[np.void]) -> None:
    """Work out the fields that are not an argument as it stands."""
    records["aux"][ids == ID["mask_locked"]] = 1
    rows = ids == ID["irqfd_wakeup"]
    records["link"][rows] -= np.uint64(8)  # wait is the second member of struct kvm_kernel_irqfd, 4.15 to 7.3.
    rows = ids == ID["resampler_ack"]
    records["link"][rows] -= np.uint64(24)  # notifier of struct kvm_kernel_irqfd_resampler: kian - 24 is its kvm.
    rows = (ids == ID["irqfd_wakeup"]) | (ids == ID["irqfd_inject"])
    records["link2"][rows & (helpers["resampler"] == 0)] = 0
    rows = ids == ID["set_irqs"]
    both = (helpers["w0"][rows] & np.uint64(0xFFFF)) << np.uint64(16) | helpers["w8"][rows] << np.uint64(32)
    records["arg1"][rows] = records["arg1"][rows] & np.uint64(0xFFFF) | both
    foreign = ((records["kind"] == Kind.WORK_QUEUED) | (records["kind"] == Kind.WORK_STARTED)) & (records["value"] == 0)
    records["kind"][foreign] = 0  # somebody else's work
    # set_irq: level 0 of source 1 is irqfd_resampler_ack's (or the shutdown's, in a worker); level 0 of source 0 ends.
    lowers = (records["kind"] == Kind.KVM_SET_IRQ) & (records["value"] == 0)
    helpers["call"][lowers] = np.where(records["arg1"][lowers] == 1, Call.NESTED, Call.ENDS)


_Columns = tuple[dict[str, Numbers], Mask]


def _arguments(text: Text, lines: Span, equals: Offsets, wanted: dict[str, str]) -> _Columns:
    """Read `key=value` arguments: their order is learned from one line and verified on all others."""
    count = len(lines.end)
    columns = {name: np.zeros(count, np.uint64) for name in wanted}
    good = np.zeros(count, np.bool_)
    if not wanted:
        return columns, ~good
    first = np.searchsorted(equals, lines.name_end)
    padded = np.append(equals, np.full(32, len(text.bytes) - 16))
    todo = np.arange(count)
    for _ in range(8):
        if not len(todo):
            break
        example = int(todo[0])
        line = text.data[int(lines.name_end[example]) : int(lines.end[example])]
        order = {key.decode(errors="replace"): place for place, key in enumerate(re.findall(rb"([^\s=]*)=", line)[:24])}
        places = {name: order[key] for name, key in wanted.items() if key in order}
        fits = np.ones(len(todo), np.bool_)
        for name, key in wanted.items():
            if name not in places:
                continue
            at = padded[first[todo] + places[name]]
            tail = f" {key}="[-8:].encode()
            fits &= (at < lines.end[todo]) & text.has(at + 1 - len(tail), tail)
        required = all(name in places for name in wanted if name not in ("aux", "w0", "w8", "resampler"))
        fits[0] = True
        these = todo[fits]
        if required:
            good[these] = True
            for name, place in places.items():
                columns[name][these] = text.number(padded[first[these] + place] + 1)[0]
            if "resampler" in wanted and "resampler" not in places:
                columns["resampler"][these] = 1
        todo = todo[~fits]
    return columns, good


def _scan(text: Text, lines: Span, *parts: bytes) -> tuple[list[Numbers], Mask]:
    """Read literals with decimal numbers between them, from the beginning of the event's text."""
    at = lines.name_end + 2
    good = np.ones(len(at), np.bool_)
    numbers = []
    for part in parts:
        good &= text.has(at, part)
        value, at = text.decimal(np.where(good, at + len(part), 0))
        numbers.append(value)
    return numbers, good


def _irq_handler_entry(text: Text, lines: Span, equals: Offsets) -> _Columns:
    """`irq=20 name=vfio-intx(0000:00:10.0)` (vfio_intx_enable names its irqaction so)."""
    irq, at = text.decimal(lines.name_end + 6)
    good = text.has(lines.name_end + 2, b"irq=") & text.has(at, b" name=")
    at = np.where(good, at + 6, 0)
    vfio = np.flatnonzero(text.has(at, b"vfio-intx("))
    bdf = np.full(len(at), -1, np.int64)
    if len(vfio):
        packed = np.zeros(len(vfio), np.uint64)
        at = at[vfio] + 10
        fine = np.ones(len(vfio), np.bool_)
        for after, bits in ((b":", 8), (b":", 5), (b".", 3), (b")", 0)):
            part, at = text._digits(at, 16, 5)
            fine &= text.bytes[at] == after[0]
            packed = (packed | part) << np.uint64(bits)
            at = at + 1
        bdf[vfio] = np.where(fine, packed.astype(np.int64), -1)
    return {"arg0": irq, "bdf": bdf.view(np.uint64)}, good


def _irq_handler_exit(text: Text, lines: Span, equals: Offsets) -> _Columns:
    """`irq=20 ret=handled`."""
    irq, at = text.decimal(lines.name_end + 6)
    good = text.has(lines.name_end + 2, b"irq=") & text.has(at, b" ret=")
    return {"arg0": irq, "value": text.has(np.where(good, at + 5, 0), b"handled").astype(np.uint64)}, good


def _kvm_set_irq(text: Text, lines: Span, equals: Offsets) -> _Columns:
    (gsi, level, source), good = _scan(text, lines, b"gsi ", b" level ", b" source ")
    return {"arg0": gsi, "value": level, "arg1": source}, good


def _kvm_ack_irq(text: Text, lines: Span, equals: Offsets) -> _Columns:
    """`irqchip IOAPIC pin 16`, `PIC master`, `PIC slave`; other machines print the irqchip's number."""
    at = lines.name_end + 2
    pin = np.zeros(len(at), np.uint64)
    chip = np.zeros(len(at), np.uint64)
    good = np.zeros(len(at), np.bool_)
    for number, name in ((2, b"IOAPIC"), (0, b"PIC master"), (1, b"PIC slave")):
        rows = np.flatnonzero(text.has(at, b"irqchip " + name + b" pin "))
        if len(rows):
            pin[rows] = text.decimal(at[rows] + 13 + len(name))[0]
            chip[rows] = number
            good[rows] = True
    return {"arg0": pin, "arg1": chip}, good


def _kvm_eoi(text: Text, lines: Span, equals: Offsets) -> _Columns:
    (_, vector), good = _scan(text, lines, b"apicid ", b" vector ")
    return {"value": vector}, good


def _kvm_apic_accept_irq(text: Text, lines: Span, equals: Offsets) -> _Columns:
    at = lines.name_end + 2
    good = text.has(at, b"apicid ")
    apic, at = text._digits(np.where(good, at + 7, 0), 16, 8)
    good &= text.has(at, b" vec ")
    return {"aux": apic, "value": text.decimal(np.where(good, at + 5, 0))[0]}, good


def _kvm_msi_set_irq(text: Text, lines: Span, equals: Offsets) -> _Columns:
    at = lines.name_end + 2
    good = text.has(at, b"dst ")
    _, at = text._digits(np.where(good, at + 4, 0), 16, 8)
    good &= text.has(at, b" vec ")
    return {"value": text.decimal(np.where(good, at + 5, 0))[0]}, good


def _kvm_userspace_exit(text: Text, lines: Span, equals: Offsets) -> _Columns:
    """`reason KVM_EXIT_IOAPIC_EOI (26)`."""
    eoi = text.has(lines.name_end + 2, b"reason KVM_EXIT_IOAPIC_EOI ")
    return {"value": np.where(eoi, 26, 0).astype(np.uint64)}, np.ones(len(eoi), np.bool_)


def _work(text: Text, struct: Offsets, function: Offsets, good: Mask) -> _Columns:
    """Which work it is: the pointer (hashed by `%p`, so it joins with nothing but itself), and its function."""
    pointer, _ = text.hexadecimal(struct)
    value = np.zeros(len(struct), np.uint64)
    for work, name in ((Work.IRQFD_INJECT, b"irqfd_inject"), (Work.VIRQFD_INJECT, b"virqfd_inject")):
        after = function + len(name)
        ends = (text.bytes[after] == ord(" ")) | (text.bytes[after] == ord("\n"))
        value[text.has(function, name) & ends & good] = work
    return {"link": pointer, "value": value}, good


def _workqueue_queue_work(text: Text, lines: Span, equals: Offsets) -> _Columns:
    """`work struct=00000000f66307bf function=irqfd_inject [kvm] workqueue=...`."""
    at = lines.name_end + 2
    good = text.has(at, b"work struct=")
    padded = np.append(equals, [len(text.bytes) - 16] * 2)
    function = padded[np.searchsorted(equals, at) + 1] + 1
    good &= (function < lines.end) & text.has(function - 10, b" function=")
    return _work(text, at + 12, function, good)


def _workqueue_execute_start(text: Text, lines: Span, equals: Offsets) -> _Columns:
    """`work struct 00000000f66307bf: function irqfd_inject [kvm]`."""
    at = lines.name_end + 2
    good = text.has(at, b"work struct ")
    colon = np.where(text.bytes[at + 12] == ord("("), at + 12 + len("(____ptrval____)"), at + 12 + 16)
    good &= text.has(colon, b": function ")
    return _work(text, at + 12, np.where(good, colon + 11, 0), good)


_FORMATS = {
    "irq_handler_entry": _irq_handler_entry,
    "irq_handler_exit": _irq_handler_exit,
    "kvm_set_irq": _kvm_set_irq,
    "kvm_ack_irq": _kvm_ack_irq,
    "kvm_eoi": _kvm_eoi,
    "kvm_apic_accept_irq": _kvm_apic_accept_irq,
    "kvm_apicv_accept_irq": _kvm_apic_accept_irq,
    "kvm_msi_set_irq": _kvm_msi_set_irq,
    "kvm_userspace_exit": _kvm_userspace_exit,
    "workqueue_queue_work": _workqueue_queue_work,
    "workqueue_execute_start": _workqueue_execute_start,
}

assert INTX_INDEX == 0
