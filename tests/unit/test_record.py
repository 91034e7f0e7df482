"""`record`: when it ends, what it keeps, and what it says to wrong input."""

from __future__ import annotations

import os
import resource
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from types import FrameType
from typing import Any, cast

import pytest

import intxtrace
from intxtrace.__main__ import main
from intxtrace.capture import bcc_import, recording
from intxtrace.capture.recording import Limits, Stop, record
from intxtrace.capture.ring import Events
from intxtrace.capture.session import Selection, Session
from intxtrace.cli.capturing import Capture
from intxtrace.errors import IntxtraceError
from intxtrace.stalls import Trigger, parse
from intxtrace.trace.kept import Kept
from intxtrace.trace.metadata import Metadata
from intxtrace.trace.writer import TraceWriter
from tests.dsl import Trace
from tests.unit.sessions import FakeSession


def recorded(path: Path, session: FakeSession, limits: Limits, stop: Stop | None = None) -> str:
    with (stop or Stop()).listening() as listening, TraceWriter(path, Metadata()) as writer:
        return record(cast(Session, session), writer, limits, listening, lambda _: None)


def test_it_ends_after_so_many_interrupts_and_keeps_the_rest(tmp_path: Path) -> None:
    session = FakeSession()
    reason = recorded(tmp_path / "a.intx", session, Limits(interrupts=35))
    trace = intxtrace.open_trace(tmp_path / "a.intx")
    assert reason == "40 interrupts were seen"
    assert session.stopped
    assert trace.events["ts"].tolist() == list(range(43))
    assert trace.tables.vms[0].name == "guest"


def test_it_ends_after_a_time(tmp_path: Path) -> None:
    assert recorded(tmp_path / "a.intx", FakeSession(), Limits(seconds=0.05)) == "--duration of 0.05 s is over"


def test_it_ends_at_a_size(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recording, "_BATCH_SECONDS", 0.0)
    reason = recorded(tmp_path / "a.intx", FakeSession(), Limits(size=8_000))
    assert reason == "--max-size of 8,000 bytes is reached"
    assert 8_000 <= (tmp_path / "a.intx").stat().st_size < 16_000


def test_it_ends_a_moment_after_its_condition(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recording, "AFTERMATH_SECONDS", 0.05)
    seen: list[tuple[int, int]] = []

    def condition(events: Events, safe_at: int) -> str:
        seen.append((len(events), safe_at))
        return "masked>5 ms was met" if len(seen) == 3 else ""

    session = FakeSession()
    assert recorded(tmp_path / "a.intx", session, Limits(condition=condition)) == "masked>5 ms was met"
    assert seen == [(10, 10), (10, 20), (10, 30)]
    assert session.looks > 3


@pytest.mark.parametrize("age_ns", [5_000, 50_000])
def test_a_window_keeps_the_last_events_and_who_is_who(tmp_path: Path, age_ns: int) -> None:
    t = Trace()
    vm = t.vm("guest")
    nic = t.device(vm)
    t.enable(nic)
    t.enable_kvm(nic)
    for _ in range(50):
        t.kernel_interrupt(nic)
    records = t.records()
    kept = Kept(1 << 20, age_ns)
    for begin in range(0, len(records), 5):
        kept.add(records[begin : begin + 5], t.tables)
    saved = kept.save(tmp_path / "a.intx", Metadata())
    trace = intxtrace.open_trace(tmp_path / "a.intx")
    events = trace.events
    ours = events[~events["kind_name"].isin(["VM", "DEVICE", "LOST"])]
    latest = int(records["ts"].max())
    assert latest - int(ours["ts"].min()) >= age_ns
    assert latest - int(ours["ts"].min()) <= age_ns + 10 * Trace.STEP
    assert saved.dropped == len(records) - len(ours) - 2
    assert int(events[events["kind_name"] == "LOST"]["arg1"].sum()) == saved.dropped
    assert {vm.name for vm in trace.tables.vms} == {"guest"}
    assert set(trace.interrupts["bdf"]) == {"0000:01:00.0"}


@pytest.fixture
def any_session(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    monkeypatch.setattr("intxtrace.capture.session.Session", lambda *_, **__: FakeSession())
    monkeypatch.setattr("intxtrace.cli.capturing.prepare", lambda: None)


@pytest.mark.usefixtures("any_session")
def test_the_command_keeps_a_window_and_writes_it_at_the_end(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["record", "--keep", "1s", "--max-size", "1M", "-o", "a.intx", "--max-interrupts", "40"]) == 0
    said = capsys.readouterr().err
    assert "40 interrupts were seen: 43 interrupts in 43 events, 0 lost; wrote a.intx (" in said
    assert len(intxtrace.open_trace(here / "a.intx").events) == 43
    assert (here / "a.intx").stat().st_mode & 0o777 == 0o600


@pytest.mark.usefixtures("any_session")
def test_a_window_that_could_not_be_written_is_refused_at_once(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "nowhere is no folder that can be written" in fails(capsys, "--keep", "1s", "-o", "nowhere/a.intx")


@pytest.mark.parametrize("compile_from", [None, 0])
def test_a_trigger_sees_the_first_that_takes_too_long(compile_from: int | None) -> None:
    t = Trace()
    nic = t.device(t.vm())
    t.enable(nic)
    t.enable_kvm(nic)
    for _ in range(20):
        t.kernel_interrupt(nic)
        t.wait(1_000_000)
    quick = len(t.records())
    t.handler(nic, irqfd="resample")
    t.wait(30_000_000)
    t.inject(nic)
    t.guest_eoi(nic)
    t.resample_unmask(nic)
    t.wait(200_000_000)
    t.kernel_interrupt(nic)
    records = t.records()
    for text, met in (
        ("masked>29ms", True),
        ("masked>40ms", False),
        ("inject>29ms", True),
        ("guest>1ms", False),
    ):
        trigger = Trigger(parse(text), t.tables, compile_from=compile_from)
        assert trigger.see(records[:quick], int(records["ts"][quick])) == ""
        rest = records[quick:]
        said = [trigger.see(rest[at : at + 1], int(rest["ts"][at])) for at in range(len(rest))]
        said.append(trigger.see(rest[:0], t.now + 100_000_000))
        assert any(said) == met, text
        if met:
            assert "30.0 ms" in next(one for one in said if one)


def test_a_trigger_sees_a_device_that_stays_masked() -> None:
    t = Trace()
    nic = t.device(t.vm())
    t.enable(nic)
    t.enable_kvm(nic)
    t.handler(nic, irqfd="resample")
    t.inject(nic)
    trigger = Trigger(parse("masked > 5ms"), t.tables, compile_from=None)
    assert trigger.see(t.records(), t.now + 4_000_000) == ""
    assert trigger.see(t.records()[:0], t.now + 90_000_000) == ""  # it looks ten times a second
    assert trigger.see(t.records()[:0], t.now + 300_000_000).startswith("masked>5.00 ms was met: 300 ms")


def test_it_ends_with_its_command(tmp_path: Path) -> None:
    with subprocess.Popen([sys.executable, "-c", ""]) as child:
        assert recorded(tmp_path / "a.intx", FakeSession(), Limits(command=child)) == "the command ended"


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
@pytest.mark.usefixtures("handlers")
def test_it_ends_at_a_signal_and_keeps_everything(tmp_path: Path, number: signal.Signals) -> None:
    session = FakeSession(lambda look: signal.raise_signal(number) if look == 3 else None)
    assert recorded(tmp_path / "a.intx", session, Limits()) == number.name
    assert session.looks == 3
    assert len(intxtrace.open_trace(tmp_path / "a.intx").events) == 33


SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


@pytest.fixture
def handlers() -> Iterator[list[Any]]:
    """The handlers as they were, and are again."""
    before = [signal.getsignal(number) for number in SIGNALS]
    yield before
    for number, handler in zip(SIGNALS, before, strict=True):
        signal.signal(number, handler)


def test_the_handlers_are_put_back(handlers: list[Any]) -> None:
    with Stop().listening():
        assert not {signal.getsignal(number) for number in SIGNALS} & set(handlers)
    assert [signal.getsignal(number) for number in SIGNALS] == handlers


@pytest.mark.parametrize("raised", SIGNALS)
def test_a_connection_that_breaks_at_the_end_breaks_nothing(raised: signal.Signals, handlers: list[Any]) -> None:
    with Stop().listening() as stop:
        signal.raise_signal(raised)
        signal.raise_signal(signal.SIGHUP)
    signal.raise_signal(signal.SIGHUP)
    assert stop.reason == raised.name
    assert [signal.getsignal(number) for number in SIGNALS[:2]] == handlers[:2]


def test_what_nohup_runs_does_not_end() -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with Stop().listening() as stop:
            signal.raise_signal(signal.SIGHUP)
            assert not stop
    finally:
        signal.signal(signal.SIGHUP, before)


@pytest.mark.usefixtures("handlers")
def test_a_second_signal_is_not_held_back() -> None:
    with Stop().listening() as stop:
        signal.raise_signal(signal.SIGINT)
        assert stop
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)


@pytest.mark.usefixtures("handlers")
@pytest.mark.timeout(60)
def test_a_signal_ends_it_at_whatever_line_it_comes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recording, "POLL_SECONDS", 0.001)
    looks = []

    def at_line(number: int) -> str:
        left = number
        session = FakeSession()

        def count(_frame: FrameType, what: str, _argument: object) -> Any:
            nonlocal left
            left -= what == "line"
            if left == 0:
                left = -1
                signal.raise_signal(signal.SIGINT)
            return count

        before = sys.gettrace()
        with Stop().listening() as stop, TraceWriter(tmp_path / f"{number}.intx", Metadata()) as writer:
            sys.settrace(count)
            try:
                return record(cast(Session, session), writer, Limits(seconds=10), stop, lambda _: None)
            finally:
                sys.settrace(before)
                looks.append(session.looks)

    assert {at_line(number) for number in range(1, 100)} == {"SIGINT"}
    assert max(looks) > 2  # so it came at each line of a look and of the sleep after it


def test_a_full_disk_ends_it_with_what_was_recorded(tmp_path: Path) -> None:
    path = tmp_path / "a.intx"
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)

    def fill(_: int) -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (path.stat().st_size + 10, hard))

    ignored = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        with pytest.raises(IntxtraceError, match="its first 0 events are kept"):
            recorded(path, FakeSession(fill), Limits(interrupts=1))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, ignored)
    assert len(intxtrace.open_trace(path).events) == 0


def fails(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    assert main(["record", *arguments]) == 1
    out, err = capsys.readouterr()
    assert out == ""
    assert err.count("\n") == 1
    assert err.startswith("intxtrace: ")
    return err


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_without_root(here: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    assert "needs root: run this with sudo" in fails(capsys)
    assert list(here.iterdir()) == []


@pytest.mark.usefixtures("no_vm", "no_bcc")
def test_without_bcc(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "apt install python3-bpfcc" in fails(capsys, "--wait")
    assert list(here.iterdir()) == []


@pytest.mark.usefixtures("no_vm")
def test_without_headers(here: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BCC_KERNEL_SOURCE", "/nowhere")
    assert "apt install linux-headers-" in fails(capsys, "--wait")
    assert list(here.iterdir()) == []


@pytest.mark.usefixtures("no_vm")
def test_without_a_vm(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "no KVM virtual machine is running on this host: start one, or give --wait" in fails(capsys)
    assert list(here.iterdir()) == []


@pytest.mark.usefixtures("one_vm")
def test_with_another_vm(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "no VM named win7 is running (running: win10 (pid 4711))" in fails(capsys, "--vm", "win7")
    assert "process 12 runs no KVM virtual machine" in fails(capsys, "--pid", "12")


@pytest.mark.usefixtures("one_vm")
@pytest.mark.parametrize(
    ("text", "wait", "names", "pids"),
    [
        ("4711", False, set(), {4711}),
        ("4711", True, set(), {4711}),
        ("100", True, {"100"}, set()),
        ("12", False, set(), {12}),
    ],
)
def test_digits_are_a_pid_but_for_a_vm_that_may_come(
    text: str, wait: bool, names: set[str], pids: set[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    chosen = Capture([text], [], [], "count", "16M", wait)
    (selection,) = cast("partial[object]", chosen.session_maker(wait=wait)).args
    assert (selection.vms, selection.pids) == (names, pids)


@pytest.mark.usefixtures("one_vm")
def test_with_a_device_that_is_not_there(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "this host has no PCI device 0000:fe:1f.7: `lspci -D`" in fails(capsys, "--device", "fe:1f.7")
    assert "'nonsense' is not a PCI address such as 0000:01:00.0" in fails(capsys, "--device", "nonsense")


@pytest.mark.usefixtures("no_vm")
@pytest.mark.parametrize("make", [lambda p: p.write_text("mine"), lambda p: p.symlink_to("/etc/passwd")])
def test_the_output_exists(here: Path, capsys: pytest.CaptureFixture[str], make: Callable[[Path], object]) -> None:
    make(here / "a.intx")
    assert "exists: give another -o, or --force" in fails(capsys, "-o", "a.intx", "--wait")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--duration", "soon"), "--duration takes a time such as 500ms"),
        (("--duration", "0s"), "--duration takes a time such as 500ms"),
        (("--ring-size", "3M"), "--ring-size takes a power of two"),
        (("--bar", "some"), "--bar takes count, all or none"),
        (("--max-interrupts", "0"), "greater than or equal to 1"),
        (("--keep", "long"), "--keep takes a time such as 500ms"),
        (("--max-size", "12"), "--max-size takes a size from 1M"),
        (("--stop-when", "masked<5ms"), "--stop-when takes a stage (masked, signal, inject, guest, unmask) and a time"),
        (("--stop-when", "lunch>5ms"), "--stop-when takes a stage"),
        (("--stop-when", "masked>5"), "--stop-when takes a stage"),
    ],
)
def test_wrong_options(here: Path, capsys: pytest.CaptureFixture[str], arguments: tuple[str, ...], said: str) -> None:
    assert said in fails(capsys, *arguments)


def test_a_selection_takes_what_was_asked_for() -> None:
    assert Selection().everything
    assert Selection().takes_vm(1, "a")
    chosen = Selection(vms=frozenset({"a"}), pids=frozenset({7}), devices=frozenset({"0000:01:00.0"}))
    assert chosen.takes_vm(7, "other")
    assert chosen.takes_vm(9, "a")
    assert not chosen.takes_vm(9, "other")
    assert chosen.takes_device("0000:01:00.0")
    assert not chosen.takes_device("0000:02:00.0")


def test_bcc_is_found_in_the_systems_folder() -> None:
    module = bcc_import.import_bcc()
    assert module.__file__
    assert "packages/bcc" in module.__file__
    assert hasattr(module, "BPF")
