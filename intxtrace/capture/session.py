"""A recording: probes, ring, tables of VMs and devices, from the first event to the last, into whatever takes it."""

from __future__ import annotations

import contextlib
import ctypes as ct
import os
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import numpy.typing as npt

from intxtrace.capture import host
from intxtrace.capture.loss import LossCounter
from intxtrace.capture.plan import DEFAULT_RING_BYTES
from intxtrace.capture.program import Probes
from intxtrace.capture.qemu_functions import find_functions
from intxtrace.capture.ring import Drain, Events, open_ring, own_event
from intxtrace.capture.run_times import RunTimes
from intxtrace.errors import IntxtraceError
from intxtrace.events import Flag, Kind, format_address, parse_address
from intxtrace.trace.tables import Probe, Tables

_HOUSEKEEPING_NS = 500_000_000
_SIGNAL_FLAGS = Flag.IN_HANDLER | Flag.IN_SET_IRQS | Flag.IN_VIRQFD_INJECT | Flag.IN_CONFIG_UNMASK


@dataclass(frozen=True)
class Selection:
    """What to trace; empty means everything."""

    devices: frozenset[str] = frozenset()
    """BDFs."""
    vms: frozenset[str] = frozenset()
    """Names."""
    pids: frozenset[int] = frozenset()

    @property
    def everything(self) -> bool:
        """Whether nothing is left out."""
        return not (self.devices or self.vms or self.pids)

    def takes_vm(self, pid: int, name: str) -> bool:
        """Whether the VM of this process is wanted."""
        return not (self.vms or self.pids) or pid in self.pids or name in self.vms

    def takes_device(self, bdf: str) -> bool:
        """Whether the device is wanted, whoever has it."""
        return not self.devices or bdf in self.devices


def require_root() -> None:
    """Refuse to go on without root.

    Raises:
        IntxtraceError: this process is not root's.
    """
    if os.geteuid() != 0:
        raise IntxtraceError("recording loads probes into the kernel and needs root: run this with sudo")


@dataclass
class Counts:
    """What has come so far."""

    events: int = 0
    interrupts: int = 0
    """Signals of INTx eventfds: claimed handler calls, resignals, loopbacks."""
    lost: int = 0


@dataclass
class _Refused:
    """What belongs to VMs and devices that are not wanted: the kernel drops it, and this what came before it knew."""

    tgids: set[int] = field(default_factory=set)
    vms: set[int] = field(default_factory=set)
    devices: set[int] = field(default_factory=set)


class Session:
    """A running recording.

    `tables` grows while it runs. Use as a context manager: leaving it detaches every probe.
    """

    def __init__(
        self,
        selection: Selection | None = None,
        *,
        bar: str = "count",
        ring_bytes: int = DEFAULT_RING_BYTES,
        wait: bool = False,
        say: Callable[[str], None] = lambda _: None,
    ) -> None:
        """Attach the probes.

        Args:
            selection: what to trace, by default everything.
            bar: how trapped BAR accesses are recorded: `count`, `all`, `none`.
            ring_bytes: size of the ring, a power of two.
            wait: what is to be traced need not run yet.
            say: takes sentences about what is going on.

        Raises:
            IntxtraceError: the host cannot be traced, or what is to be traced does not exist.
        """
        self._selection = selection or Selection()
        self._bar = bar
        self._say = say
        self.tables = Tables()
        self.counts = Counts()
        self._pending: list[Events] = []
        self._vm_ids: dict[int, int | None] = {}
        """By process: the row of its VM, None for one that is not wanted."""
        self._vm_started: dict[int, int | None] = {}
        self._device_ids: dict[str, int] = {}
        self._binaries: dict[tuple[int, int], tuple[str, str]] = {}
        """By device and inode: version and build-id of the QEMU binaries that were looked at."""
        self._offsets: dict[tuple[int, int, int, int, int], int] = {}
        self._refused = _Refused()
        self._rows_by_vdev: dict[int, int] = {}
        self._next_look = 0

        if not host.sees_every_process():
            raise IntxtraceError(
                "this process sees only those of its PID namespace, and none of the host's VMs: run this on the host "
                "itself, or give the container --pid=host"
            )
        running = host.processes()
        self._check_selection(running, wait)
        self._probes = Probes(bar=bar, ring_bytes=ring_bytes)
        try:
            self.tables.probes = self._probes.table
            self._check_probes()
            self._note_attached(self.tables.probes)
            self._losses = LossCounter(self._probes.bpf, self._probes.misses, time.monotonic_ns())
            self._drain = Drain(open_ring(self._probes.bpf, ring_bytes))
            for one in running:
                self._meet(one.pid, one)
            for path in host.installed_qemu():
                self._attach_binary(path)
            self._probes.calibrate()
            self.run_times = RunTimes(self._probes)
            """What the probes' programs cost: measured while `take` is called, at the beginning."""
        except BaseException:
            self._probes.close()
            raise

    def _check_selection(self, running: list[host.Process], wait: bool) -> None:
        here = ", ".join(f"{one.name} (pid {one.pid})" for one in running) or "none"
        if not running and not wait:
            raise IntxtraceError("no KVM virtual machine is running on this host: start one, or give --wait")
        for name in sorted(self._selection.vms - {one.name for one in running}):
            if not wait:
                raise IntxtraceError(f"no VM named {name} is running (running: {here}): start it, or give --wait")
        for pid in sorted(self._selection.pids - {one.pid for one in running}):
            raise IntxtraceError(f"process {pid} runs no KVM virtual machine (running: {here}): give another --pid")
        for bdf in sorted(self._selection.devices):
            if not (host.SYS / "bus/pci/devices" / bdf).exists():
                raise IntxtraceError(f"this host has no PCI device {bdf}: `lspci -D` lists those that it has")
            driver = host.device_row(0, bdf).driver
            if not driver.startswith("vfio") and not wait:
                raise IntxtraceError(
                    f"{bdf} is bound to {driver or 'no driver'}, not to vfio-pci: pass it through first, or give --wait"
                )

    def _check_probes(self) -> None:
        for name, module in (("vfio_intx_handler", "vfio-pci"), ("irqfd_wakeup", "kvm")):
            row = next(row for row in self.tables.probes if row.name == name)
            if row.state == "missing":
                raise IntxtraceError(f"{row.reason}: if {module} is not loaded yet, `modprobe {module}` and try again")

    def __enter__(self) -> Session:
        return self

    def __exit__(self, *_: object) -> None:
        self.run_times.finish()
        self._drain.close()
        self._probes.close()

    @property
    def calibration_ns(self) -> int:
        """How long it took to measure what being watched costs."""
        return self._probes.calibration.spent_ns

    # ---- events of our own

    def _note(self, events: Iterable[Events]) -> None:
        self._pending.extend(events)

    def _note_attached(self, rows: Iterable[Probe]) -> None:
        now = time.monotonic_ns()
        self._note(own_event(Kind.PROBE, now, aux=row.id, value=1) for row in rows if row.state != "missing")

    # ---- VMs, binaries, devices

    def _attach_binary(self, path: Path) -> None:
        identity = _identity(path)
        if identity is None or identity in self._binaries:
            return
        self._binaries[identity] = ("", "")
        try:
            binary = find_functions(path)
        except IntxtraceError as error:
            self._say(f"QEMU's functions are not traced: {error}")
            self.tables.probes.append(Probe(len(self.tables.probes), name="qemu", target=str(path), reason=str(error)))
            return
        self._note_attached(self._probes.attach_qemu(binary))
        self._probes.calibrate()
        self._binaries[identity] = (binary.version or "", binary.build_id or "")

    def _meet(self, pid: int, one: host.Process | None = None) -> int | None:
        """Learn of a VM; return its row, or None if it is not wanted."""
        started = one.started if one else host.start_time(pid)
        if pid in self._vm_ids and self._vm_started[pid] == started:
            return self._vm_ids[pid]
        one = one or host.process(pid)
        self._vm_started[pid] = started
        if self._selection.vms or self._selection.pids:
            if one is None or not self._selection.takes_vm(pid, one.name):
                self._refuse_process(pid)
                self._vm_ids[pid] = None
                return None
            self._allow(pid)
        row = host.vm_row(len(self.tables.vms), one, pid)
        if one is not None:
            self._attach_binary(one.exe)
            identity = _identity(one.exe)
            if identity is not None:
                row.qemu_version, row.build_id = self._binaries.get(identity, ("", ""))
        self._vm_ids[pid] = row.id
        self.tables.vms.append(row)
        return row.id

    def _allow(self, pid: int) -> None:
        self._refused.tgids.discard(pid)
        with contextlib.suppress(KeyError):
            del self._probes.bpf[b"refused_tgids"][ct.c_uint32(pid)]

    def _refuse_process(self, pid: int) -> None:
        self._refused.tgids.add(pid)
        self._probes.bpf[b"refused_tgids"][ct.c_uint32(pid)] = ct.c_uint32(1)

    def _device(self, bdf: str) -> int:
        if bdf not in self._device_ids:
            row = host.device_row(len(self.tables.devices), bdf)
            self._device_ids[bdf] = row.id
            self.tables.devices.append(row)
        return self._device_ids[bdf]

    def _learn(self, events: Events) -> Events:
        """Give the DEVICE and VM events their rows, and drop what belongs to nobody that is wanted."""
        kinds = events["kind"]
        for index in np.flatnonzero((kinds == Kind.DEVICE) | (kinds == Kind.VM)):
            event = events[index]
            if event["kind"] == Kind.VM:
                if event["value"] != 1:
                    continue
                row = self._meet(int(event["aux"]))
                if row is None:
                    self._refused.vms.add(int(event["vm"]))
                else:
                    events["aux"][index] = row
            else:
                self._learn_device(events, int(index))
        if self._selection.vms or self._selection.pids:
            # A new VM shows itself by its QEMU before KVM or vfio name it.
            for pid in np.unique(events["tgid"][_by_process(events)]).tolist():
                self._meet(pid)
        handled = events[kinds == Kind.HANDLER_ENTRY]
        for index in np.unique(handled["device"], return_index=True)[1]:
            self._host_irq(int(handled["device"][index]), int(handled["arg0"][index]))
        if self._refused.tgids or self._refused.vms or self._refused.devices:
            events = self._without_refused(events)
        return events

    def _learn_device(self, events: Events, index: int) -> None:
        event = events[index]
        bdf = format_address(int(event["arg0"]))
        vdev = int(event["device"])
        candidates = (host.process(pid) for pid in {*self._vm_ids, int(event["tgid"])})
        holders = [one for one in candidates if one and bdf in one.devices]
        wanted = self._selection.takes_device(bdf)
        if not wanted:
            self._probes.bpf[b"refused_addresses"][ct.c_uint32(parse_address(bdf))] = ct.c_uint32(1)
        elif self._selection.vms or self._selection.pids:
            # Another VM may get the device next: the refusal goes with the vdev, which is asked about again at each
            # set-up of its INTx.
            wanted = any(self._selection.takes_vm(one.pid, one.name) for one in holders) or not holders
        if not wanted:
            self._refused.devices.add(vdev)
            table = self._probes.bpf[b"devices"]
            with contextlib.suppress(KeyError):
                leaf = table[ct.c_uint64(vdev)]
                leaf.refused = 1
                table[ct.c_uint64(vdev)] = leaf
            return
        self._refused.devices.discard(vdev)
        for one in holders:
            self._meet(one.pid, one)  # on the userspace path KVM names the VM only once QEMU's functions are traced
        row = self._device(bdf)
        events["aux"][index] = row
        self._rows_by_vdev[vdev] = row
        self.tables.devices[row].vm_pid = holders[0].pid if holders else None

    def _host_irq(self, vdev: int, irq: int) -> None:
        row = self._rows_by_vdev.get(vdev)
        if row is not None and irq:
            self.tables.devices[row].host_irq = irq

    def _without_refused(self, events: Events) -> Events:
        keep = np.ones(len(events), bool)
        for name, values in (("vm", self._refused.vms), ("device", self._refused.devices)):
            if values:
                keep &= ~np.isin(events[name], np.fromiter(values, np.uint64, len(values)))
        if self._refused.tgids:
            tgids = np.fromiter(self._refused.tgids, np.uint32, len(self._refused.tgids))
            keep &= ~(_by_process(events) & np.isin(events["tgid"], tgids))
        return events[keep]

    # ---- the stream

    def take(self, *, last: bool = False) -> Events:
        """Return the events since the last call, in order of time."""
        now = time.monotonic_ns()
        if last or now >= self._next_look:
            self._next_look = now + _HOUSEKEEPING_NS
            self._housekeep(now, last=last)
        events = self._drain.take(self._own_events, everything=last)
        if len(events):
            events = self._learn(events)
        self.counts.events += len(events)
        kinds = events["kind"]
        in_call = events["flags"] & np.uint32(_SIGNAL_FLAGS)
        self.counts.interrupts += int(np.count_nonzero((kinds == Kind.EVENTFD_SIGNAL) & (in_call != 0)))
        self.run_times.watch(events, self.counts.interrupts)
        return events

    @property
    def safe_at(self) -> int:
        """All events before this instant have been taken."""
        return self._drain.safe_at

    def _own_events(self) -> list[Events]:
        lost = self._losses.reserves(time.monotonic_ns())
        self.counts.lost += sum(int(event["arg1"][0]) for event in lost)
        events, self._pending = self._pending + lost, []
        return events

    def stop(self) -> Events:
        """Detach the probes and return the rest of the events."""
        self.run_times.finish()
        self._probes.stop()
        return self.take(last=True)

    def _housekeep(self, now: int, *, last: bool) -> None:
        for event in self._losses.skipped(now):
            self.counts.lost += int(event["arg1"][0])
            self._note([event])
        if self._bar == "count":
            self._take_bar_counts(now, last=last)
        for pid, row in list(self._vm_ids.items()):
            if host.start_time(pid) != self._vm_started[pid]:
                del self._vm_ids[pid]
                for vm in self._vms_of(pid):
                    self._refused.vms.discard(vm)
                    if row is not None:
                        self._note([own_event(Kind.VM, now, aux=row, vm=vm, tgid=pid)])

    def _vms_of(self, pid: int) -> list[int]:
        """The KVM objects that a process made; forgets them."""
        table = self._probes.bpf[b"vms"]
        found = [int(key.value) for key, leaf in table.items() if leaf.value == pid]
        for vm in found:
            with contextlib.suppress(KeyError):
                del table[ct.c_uint64(vm)]
        with contextlib.suppress(KeyError):
            del self._probes.bpf[b"vm_of"][ct.c_uint32(pid)]
        return found

    def _take_bar_counts(self, now: int, *, last: bool) -> None:
        for key, total in self._probes.bpf[b"offsets"].items_lookup_batch():
            at = (key.tgid, key.device, key.region, key.number, key.offset)
            new = total - self._offsets.get(at, 0)
            if new:
                self._offsets[at] = total
                fields = {"tgid": key.tgid, "device": key.device, "link": key.region, "arg0": key.offset, "arg1": new}
                write, number = key.number >> 31, key.number & 0x7FFFFFFF
                self._note([own_event(Kind.QEMU_REGION_OFFSETS, now, value=write, aux=number, **fields)])
        if last:
            for key, leaf in self._probes.bpf[b"bars"].items():
                if leaf.reads or leaf.writes:
                    fields = {"tgid": key.tgid, "device": key.device, "arg0": leaf.reads, "arg1": leaf.writes}
                    self._note([own_event(Kind.QEMU_REGION_COUNT, now, **fields)])


_OF_A_PROCESS = [
    *(kind for kind in Kind if Kind.QEMU_INTERRUPT <= kind <= Kind.QEMU_RESAMPLE_NOTIFY),
    *(Kind.SET_IRQS_ENTRY, Kind.SET_IRQS_EXIT, Kind.KVM_IRQFD_ENTRY, Kind.KVM_IRQFD_EXIT, Kind.EVENTFD_READ),
]


def _by_process(events: Events) -> npt.NDArray[np.bool_]:
    """Whose current task is the VM's process, and not whoever an interrupt found running."""
    return np.isin(events["kind"], _OF_A_PROCESS)


def _identity(path: Path) -> tuple[int, int] | None:
    with contextlib.suppress(OSError):
        status = path.stat()
        return status.st_dev, status.st_ino
    return None
