"""Which events of an ftrace text are ours, and how their text becomes the fields of a record.

Kprobes: the names of kernel-path recordings (`p:intx/handler vfio_intx_handler irq=%di dev=%si ...`). Their arguments
are read by name, in any order, and others are skipped. Tracepoints: the kernel's own formats
(include/trace/events/irq.h, kvm.h, workqueue.h and arch/x86/kvm/trace.h, 4.15 to 7.3).
"""

from __future__ import annotations

import enum
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from intxtrace.errors import IntxtraceError
from intxtrace.events import INTX_INDEX, Flag, Kind, Work
from intxtrace.importers.ftrace_scan import (
    AS_BYTE,
    AS_CONSTANT,
    AS_FUNCTION,
    AS_HEX,
    AS_KNOWN_WORD,
    AS_NAME,
    AS_NUMBER,
    AS_VFIO_NAME,
    AS_WORD,
    CALLS,
    ENTERS,
    HARD,
    LEAVES,
    R_AT,
    R_BITS,
    R_CPU,
    R_ID,
    R_SEEN,
    R_TGID,
    R_TID,
    R_TS,
    RETURNS,
    SOFT,
)
from intxtrace.importers.scan import hash_of

EXIT_IOAPIC_EOI = 26
"""KVM_EXIT_IOAPIC_EOI of include/uapi/linux/kvm.h."""


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


class Arg(NamedTuple):
    """One argument of an event's text."""

    field: str
    """Where its value goes: one of `FIELDS`."""
    key: str
    """The word before it, with what stands between: `gsi=` or `gsi `."""
    how: int = AS_NUMBER
    constant: int = 0


def _named(**keys: str) -> tuple[Arg, ...]:
    """Return arguments as kprobes print them: `irq=20`."""
    return tuple(Arg(field, f"{key}=") for field, key in keys.items())


def _told(how: int = AS_NUMBER, **keys: str) -> tuple[Arg, ...]:
    """Return arguments as tracepoints print them, `irq 20`, and as `trace-cmd report -R` does, `irq=20`."""
    return tuple(arg for field, key in keys.items() for arg in (Arg(field, f"{key} ", how), Arg(field, f"{key}=", how)))


@dataclass(frozen=True)
class Source:
    """One event of ftrace's text: its name, what it becomes, and its arguments."""

    name: str
    kind: Kind | None
    """None: it only helps to read the others."""
    call: Call = Call.NESTED
    args: tuple[Arg, ...] = ()
    optional: tuple[str, ...] = ()
    """Fields that need not be read: 0 says that they are not known."""
    fallback: bool = False
    target: str = ""
    role: int = 0
    """See `ftrace_scan.N_HARD`."""

    @property
    def required(self) -> tuple[str, ...]:
        """Fields without which the event cannot be used."""
        return tuple(dict.fromkeys(arg.field for arg in self.args if arg.field not in self.optional))


_IRQFD = _named(vm="kvm", arg0="gsi", link2="resamplefd", arg1="eventfd", resampler="resampler")
_QEMU = (Arg("bdf", "name=", AS_NAME),)
_REGION = (*_QEMU, *_named(arg0="addr", value="size", aux="nr"))
_TP = True

SOURCES = (
    Source(
        "handler",
        Kind.HANDLER_ENTRY,
        Call.HANDLER,
        _named(arg0="irq", device="dev", w0="w0", w8="w8"),
        optional=("w0", "w8"),
        target="vfio_intx_handler",
        role=CALLS,
    ),
    Source("handler_ret", Kind.HANDLER_EXIT, Call.ENDS, _named(value="ret"), target="vfio_intx_handler", role=RETURNS),
    Source(
        "efd_signal",
        Kind.EVENTFD_SIGNAL,
        args=_named(link="ctx", aux="id"),
        optional=("aux",),
        target="eventfd_signal",
    ),
    Source("efd_write", Kind.EVENTFD_WRITE, Call.EVENTFD_WRITE, target="eventfd_write"),
    Source(
        "irqfd_wakeup",
        Kind.IRQFD_WAKEUP,
        args=(*_IRQFD, *_named(link="wait", value="key")),
        optional=("resampler",),
        target="irqfd_wakeup",
    ),
    Source("irqfd_inject", Kind.IRQFD_INJECT, Call.ENDS, _IRQFD, optional=("resampler",), target="irqfd_inject"),
    Source(
        "set_irq",
        Kind.KVM_SET_IRQ,
        Call.KVM_SET_IRQ,
        _named(vm="kvm", arg1="src", arg0="gsi", value="level"),
        target="kvm_set_irq",
    ),
    Source(
        "acked_irq",
        Kind.KVM_ACK,
        Call.ENDS,
        _named(vm="kvm", arg1="irqchip", arg0="pin"),
        target="kvm_notify_acked_irq",
    ),
    Source(
        "resampler_ack",
        Kind.RESAMPLER_ACK,
        Call.RESAMPLER_ACK,
        _named(vm="kvm", arg0="gsi", link="kian"),
        target="irqfd_resampler_ack",
    ),
    Source(
        "notify_resampler",
        Kind.RESAMPLER_NOTIFY,
        Call.RESAMPLER_ACK,  # As there, only resamplefds are signalled inside (irqfd_resampler_notify).
        _named(vm="kvm", arg1="irqchip", arg0="pin"),
        target="kvm_notify_irqfd_resampler",
    ),
    Source(
        "virqfd_wakeup",
        Kind.VIRQFD_WAKEUP,
        args=_named(device="vdev", link="eventfd", value="key"),
        target="virqfd_wakeup",
    ),
    Source(
        "virqfd_inject",
        Kind.VIRQFD_INJECT,
        Call.VIRQFD_INJECT,
        _named(device="vdev", link="eventfd"),
        target="virqfd_inject",
    ),
    Source("unmask", Kind.UNMASK_ENTRY, args=_named(device="vdev"), target="vfio_pci_intx_unmask_handler"),
    Source("unmask_ret", Kind.UNMASK_EXIT, args=_named(value="ret"), target="vfio_pci_intx_unmask_handler"),
    Source("chk_unmask_ret", Kind.CHECKED_UNMASK, args=_named(value="ret"), target="pci_check_and_unmask_intx"),
    Source("mask", Kind.MASK, args=_named(device="vdev"), target="vfio_pci_intx_mask"),
    Source("mask_locked", Kind.MASK, args=_named(device="vdev"), target="__vfio_pci_intx_mask"),
    Source("unmask_fn", Kind.CONFIG_UNMASK, Call.CONFIG_UNMASK, _named(device="vdev"), target="vfio_pci_intx_unmask"),
    Source(
        "set_irqs",
        Kind.SET_IRQS_ENTRY,
        Call.SET_IRQS,
        _named(device="vdev", arg0="flags", arg1="index", w0="start", w8="count"),
        optional=("w0", "w8"),
        target="vfio_pci_set_irqs_ioctl",
    ),
    Source(
        "kvm_irqfd",
        Kind.KVM_IRQFD_ENTRY,
        Call.KVM_IRQFD,
        _named(vm="kvm", aux="fd", arg0="gsi", arg1="flags"),
        optional=("aux",),
        target="kvm_irqfd",
    ),
    Source("irq_line", None, Call.ENDS),
    Source(
        "irq_handler_entry",
        Kind.HANDLER_ENTRY,
        args=(Arg("arg0", "irq="), Arg("bdf", "name=", AS_VFIO_NAME)),
        fallback=_TP,
        target="irq:irq_handler_entry",
        role=ENTERS,
    ),
    Source(
        "irq_handler_exit",
        Kind.HANDLER_EXIT,
        args=(Arg("arg0", "irq="), Arg("value", "ret=", AS_WORD)),
        fallback=_TP,
        target="irq:irq_handler_exit",
        role=LEAVES,
    ),
    Source(
        "kvm_set_irq",
        Kind.KVM_SET_IRQ,
        Call.KVM_SET_IRQ,
        (*_told(arg0="gsi", value="level", arg1="source"), Arg("arg1", "irq_source_id="), Arg("arg1", "src=")),
        fallback=_TP,
        target="kvm:kvm_set_irq",
    ),
    Source(
        "kvm_ack_irq",
        Kind.KVM_ACK,
        Call.ENDS,
        # `irqchip IOAPIC pin 16`, `irqchip PIC slave pin 12`; other machines print the irqchip's number.
        (*_told(AS_KNOWN_WORD, arg1="irqchip"), Arg("arg1", "slave ", AS_CONSTANT, 1), *_told(arg0="pin")),
        fallback=_TP,
        target="kvm:kvm_ack_irq",
    ),
    Source("kvm_eoi", Kind.KVM_EOI, Call.ENDS, _told(value="vector"), target="kvm:kvm_eoi"),
    *(
        Source(
            name,
            Kind.APIC_ACCEPT,
            args=(Arg("aux", "apicid ", AS_HEX), Arg("aux", "apicid="), *_told(value="vec")),
            target=f"kvm:{name}",
        )
        for name in ("kvm_apic_accept_irq", "kvm_apicv_accept_irq")
    ),
    Source(
        "kvm_msi_set_irq",
        Kind.MSI_SET_IRQ,
        args=(Arg("value", "vec "), Arg("value", "data=", AS_BYTE)),  # The low byte of an MSI's data is its vector.
        target="kvm:kvm_msi_set_irq",
    ),
    Source(
        "kvm_userspace_exit",
        Kind.USERSPACE_EXIT,
        Call.ENDS,
        _told(AS_WORD, value="reason"),
        target="kvm:kvm_userspace_exit",
    ),
    Source("kvm_inj_virq", None, Call.ENDS),
    *(
        Source(
            name,
            kind,
            # The pointer is hashed by `%p`, so it joins with nothing but itself; early in a boot it is not even that.
            args=(*_told(AS_HEX, link="struct"), Arg("link", "work=", AS_HEX), *_told(AS_FUNCTION, value="function")),
            optional=("link",),
            fallback=_TP,
            target=f"workqueue:{name}",
        )
        for name, kind in (
            ("workqueue_queue_work", Kind.WORK_QUEUED),
            ("workqueue_execute_start", Kind.WORK_STARTED),
        )
    ),
    # QEMU's functions, as uprobes whose `name` is the VFIODevice's: its PCI address.
    Source("qemu_interrupt", Kind.QEMU_INTERRUPT, Call.ENDS, _QEMU, target="vfio_intx_interrupt"),
    # vfio_intx_eoi runs at every trapped BAR access; `pending` (where it is recorded) 0: it was no EOI.
    Source(
        "qemu_eoi",
        Kind.QEMU_EOI,
        Call.ENDS,
        (*_QEMU, *_named(w0="pending")),
        optional=("w0",),
        target="vfio_intx_eoi",
    ),
    Source("qemu_region_read", Kind.QEMU_REGION_READ, Call.ENDS, _REGION, optional=("aux",), target="vfio_region_read"),
    Source(
        "qemu_region_write",
        Kind.QEMU_REGION_WRITE,
        Call.ENDS,
        (*_REGION, *_named(arg1="data")),
        optional=("aux", "arg1"),
        target="vfio_region_write",
    ),
    Source(
        "qemu_mmaps",
        Kind.QEMU_MMAPS,
        Call.ENDS,
        (*_QEMU, *_named(value="en", aux="nr")),
        optional=("aux",),
        target="vfio_region_mmaps_set_enabled",
    ),
    Source(
        "qemu_resample_notify",
        Kind.QEMU_RESAMPLE_NOTIFY,
        Call.ENDS,
        _named(arg0="gsi"),
        target="kvm_resample_fd_notify",
    ),
)
"""Event id -> source. Events of other names (send_intx, kvm_ioapic_set_irq, tracing_mark_write, ...) are not read."""

ID = {source.name: number for number, source in enumerate(SOURCES)}
KIND = np.array([source.kind or 0 for source in SOURCES], np.uint16)
FALLBACK = np.array([Flag.FALLBACK if source.fallback else 0 for source in SOURCES], np.uint32)
CALL = np.array([source.call for source in SOURCES], np.int8)
KPROBE = {"kvm_set_irq": "set_irq", "kvm_ack_irq": "acked_irq"}
"""Tracepoint -> the kprobe that tells more."""
OF_QEMU = np.array([source.args[:1] == _QEMU for source in SOURCES])
"""Events that name their device."""

FIELDS = ("device", "link", "link2", "vm", "arg0", "arg1", "value", "aux", "w0", "w8", "resampler", "bdf")
"""What arguments become. `w0`, `w8`: of the handler's dev_id; `bdf`: -1 where it is not vfio's."""

_WORDS = {
    b"handled": 1,
    b"IOAPIC": 2,
    b"PIC": 0,
    b"KVM_EXIT_IOAPIC_EOI": EXIT_IOAPIC_EOI,
    b"irqfd_inject": Work.IRQFD_INJECT,
    b"virqfd_inject": Work.VIRQFD_INJECT,
}
WORDS = np.array([[hash_of(word), number] for word, number in _WORDS.items()], np.int64).T.copy()
"""Arguments that are words, as `ftrace_scan` takes them."""


@dataclass(frozen=True)
class Dialect:
    """The tables by which `ftrace_scan.scan` reads."""

    names: npt.NDArray[np.int64]
    keys: npt.NDArray[np.int64]


def dialect(mapped: dict[str, str] | None = None, without: frozenset[int] = frozenset()) -> Dialect:
    """Make the tables.

    Args:
        mapped: event's name in the text -> name of a kind of events, or of one of `SOURCES`, or `ignore`.
        without: events that are not read.

    Raises:
        IntxtraceError: there is no such kind.
    """
    return _tables(tuple((mapped or {}).items()), without)


@lru_cache(maxsize=16)
def _tables(mapped: tuple[tuple[str, str], ...], without: frozenset[int]) -> Dialect:
    chosen = {source.name: number for number, source in enumerate(SOURCES) if number not in without}
    for name, kind in mapped:
        chosen.pop(name, None)
        if kind != IGNORE:
            chosen[name] = _source_of(kind)
    names: list[tuple[int, ...]] = []
    keys: list[tuple[int, ...]] = []
    for name, number in chosen.items():
        source = SOURCES[number]
        required = sum(1 << FIELDS.index(field) for field in source.required)
        columns = (hash_of(name.encode()), number, len(keys), len(keys) + len(source.args), required, source.role)
        names.append(columns)
        keys += [(hash_of(arg.key.encode()), FIELDS.index(arg.field), arg.how, arg.constant) for arg in source.args]
    return Dialect(np.array(sorted(names), np.int64).T.copy(), np.array(keys, np.int64).T.copy())


IGNORE = "ignore"


def _source_of(kind: str) -> int:
    sought = kind.lower()
    for number, source in enumerate(SOURCES):
        if source.name == sought or (source.kind and source.kind.name.lower() == sought):
            return number
    known = sorted({source.kind.name.lower() for source in SOURCES if source.kind})
    raise IntxtraceError(f"there is no kind of event {kind!r}; choose {IGNORE} or one of {', '.join(known)}")


Columns = dict[str, npt.NDArray[Any]]
"""Events as columns: the fields of a record; those of `FIELDS` that a record has not; and

- `call`: `Call`; `id`: of the source, in `ID`; `hard`: in a hard interrupt;
- `key`: task, or per CPU: idle task, soft and hard interrupts;
- `at`: where the line begins; `carried`: of an earlier block: evidence, handed out already.
"""


def columns_of(rows: npt.NDArray[np.int64], fields: npt.NDArray[np.int64]) -> Columns:
    """Turn what `ftrace_scan` read into columns; some share memory with `fields`."""
    ids = rows[R_ID]
    bits = rows[R_BITS]
    cpu, tid = rows[R_CPU], rows[R_TID]
    hard = (bits & HARD) != 0
    on_cpu = np.where(hard, 3, np.where((bits & SOFT) != 0, 2, 1))
    unsigned = fields.view(np.uint64)
    c: Columns = {name: unsigned[place] for place, name in enumerate(FIELDS)}
    c["value"] = fields[FIELDS.index("value")].astype(np.int32)
    c["aux"] = fields[FIELDS.index("aux")].astype(np.uint32)
    c["bdf"] = np.where((ids == ID["irq_handler_entry"]) | OF_QEMU[ids], fields[FIELDS.index("bdf")], -1)
    c["ts"] = rows[R_TS].view(np.uint64)
    c["cpu"] = cpu.astype(np.uint16)
    c["tid"], c["tgid"] = tid.astype(np.uint32), rows[R_TGID].astype(np.uint32)
    c["kind"], c["flags"], c["call"] = KIND[ids], FALLBACK[ids], CALL[ids]
    c["id"] = ids.astype(np.int8)
    c["key"] = np.where((on_cpu > 1) | (tid == 0), -(cpu * 4 + on_cpu), tid)
    c["hard"] = hard
    c["at"] = rows[R_AT]
    c["carried"] = np.zeros(len(ids), np.bool_)
    plain = ((rows[R_SEEN] >> FIELDS.index("resampler")) & 1 != 0) & (c.pop("resampler") == 0)
    _finish(c, plain)
    told = (rows[R_SEEN] >> FIELDS.index("w0")) & 1 != 0
    c["kind"][(ids == ID["qemu_eoi"]) & told & (c["w0"] == 0)] = 0
    return c


def _finish(c: Columns, plain: npt.NDArray[np.bool_]) -> None:
    """Work out the fields that are not an argument as it stands; `plain`: an irqfd that has no resampler."""
    ids, kind = c["id"], c["kind"]
    c["aux"][ids == ID["mask_locked"]] = 1
    woken = ids == ID["irqfd_wakeup"]
    c["link"][woken] -= np.uint64(8)  # wait is the second member of struct kvm_kernel_irqfd, 4.15 to 7.3.
    rows = ids == ID["resampler_ack"]
    c["link"][rows] -= np.uint64(24)  # notifier of struct kvm_kernel_irqfd_resampler: kian - 24 is its kvm.
    c["link2"][(woken | (ids == ID["irqfd_inject"])) & plain] = 0
    rows = np.flatnonzero(ids == ID["set_irqs"])
    both = (c["w0"][rows] & np.uint64(0xFFFF)) << np.uint64(16) | c["w8"][rows] << np.uint64(32)
    c["arg1"][rows] = c["arg1"][rows] & np.uint64(0xFFFF) | both
    kind[((kind == Kind.WORK_QUEUED) | (kind == Kind.WORK_STARTED)) & (c["value"] == 0)] = 0  # somebody else's work
    # set_irq: level 0 of source 1 is irqfd_resampler_ack's (or the shutdown's, in a worker); level 0 of source 0 ends.
    lowers = (kind == Kind.KVM_SET_IRQ) & (c["value"] == 0)
    c["call"][lowers] = np.where(c["arg1"][lowers] == 1, Call.NESTED, Call.ENDS)


assert INTX_INDEX == 0
