"""The live view without a terminal: what it is fed with, what it keeps, and `live --once`."""

from __future__ import annotations

import json
import os
import stat
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest

import intxtrace
from intxtrace.__main__ import main
from intxtrace.analysis.live import DEVICES_SHOWN, LiveModel
from intxtrace.capture import host
from intxtrace.capture.session import Selection
from intxtrace.errors import IntxtraceError
from intxtrace.events import RECORD, Kind
from intxtrace.live import Events, Replay, Watch
from intxtrace.trace.kept import Kept
from intxtrace.trace.metadata import Metadata
from intxtrace.trace.tables import Probe, Tables, Vm
from intxtrace.trace.writer import TraceWriter
from tests.dsl import Trace
from tests.unit.test_live_model import RECORDED, events_of

RECORDING = next(path for path in RECORDED if path.stem == "pair-userspace-6.1")
MS = 1_000_000


class Clock:
    """A clock that goes when it is told to."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


# ---- the replay


def test_a_replay_hands_out_what_is_due() -> None:
    clock = Clock()
    replay = Replay(RECORDING, speed=2.0, clock=clock)
    events = events_of(RECORDING)
    assert replay.begin_at == events["ts"][0]
    assert replay.now() == replay.begin_at
    clock.now += 1.5
    first = replay.take()
    begin = int(events["ts"][0])
    clock.now += 0.1
    assert replay.now() == begin + 3 * 10**9  # up to there events were taken, and no further
    clock.now -= 0.1
    assert len(first) == int((events["ts"] <= begin + 3 * 10**9).sum()) > 0
    assert len(replay.take()) == 0
    assert not replay.ended
    clock.now += 1000
    rest = replay.take()
    assert replay.ended
    assert replay.now() == events["ts"][-1]
    assert np.array_equal(np.concatenate([first, rest]), events)
    assert len(replay.take()) == 0


def test_a_replay_that_is_behind_is_as_late_as_its_last_event(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("intxtrace.live._MOST_EVENTS", 100)
    clock = Clock()
    replay = Replay(RECORDING, speed=1e6, clock=clock)
    clock.now += 1
    events = replay.take()
    assert replay.now() == events["ts"][-1]


def test_a_replay_may_be_as_fast_as_one_likes() -> None:
    clock = Clock()
    replay = Replay(RECORDING, speed=1e300, clock=clock)
    clock.now += 1e6
    assert len(replay.take()) == len(events_of(RECORDING))
    assert replay.ended


def test_a_stopped_replay_shows_no_more() -> None:
    clock = Clock()
    replay = Replay(RECORDING, clock=clock)
    clock.now += 1
    assert 0 < len(replay.stop()) < len(events_of(RECORDING))
    clock.now += 1000
    assert len(replay.take()) == 0


def test_a_trace_without_a_clock_or_events(tmp_path: Path) -> None:
    with TraceWriter(tmp_path / "none.intx", Metadata(clock="none")):
        pass
    with pytest.raises(IntxtraceError, match="has no clock, so it cannot be played"):
        Replay(tmp_path / "none.intx")
    with TraceWriter(tmp_path / "empty.intx", Metadata()):
        pass
    replay = Replay(tmp_path / "empty.intx")
    assert replay.ended
    assert replay.now() is None
    watch = Watch(replay, LiveModel(replay.tables), 1 << 20)
    assert watch.run(lambda: replay.ended, lambda _: None).events == 0


# ---- what is kept


def test_what_is_kept_is_what_was_seen(tmp_path: Path) -> None:
    events = events_of(RECORDING)
    kept = Kept(1 << 30)
    tables = Tables()
    for piece in np.array_split(events, 5):
        tables.vms.append(Vm(len(tables.vms), pid=7))
        kept.add(piece, tables)
    saved = kept.save(tmp_path / "a.intx", Metadata(hostname="here"))
    assert (saved.events, saved.dropped, saved.size) == (len(events), 0, (tmp_path / "a.intx").stat().st_size - 8)
    trace = intxtrace.open_trace(tmp_path / "a.intx")
    assert np.array_equal(np.concatenate(list(trace.iter_events())), events)
    assert trace.metadata.hostname == "here"
    assert len(trace.tables.vms) == 5
    assert stat.S_IMODE((tmp_path / "a.intx").stat().st_mode) == 0o600


def test_what_was_too_much_is_a_loss_and_not_silence(tmp_path: Path) -> None:
    trace = Trace()
    device = trace.device(trace.vm("win10"))
    for at in range(1, 2001):
        trace.kernel_interrupt(device, at=at * MS)
    events = trace.records()
    kept = Kept(100_000)
    for piece in np.array_split(events, 20):
        kept.add(piece, trace.tables)
    saved = kept.save(tmp_path / "a.intx", Metadata())
    assert saved.dropped > 0
    found = np.concatenate(list(intxtrace.open_trace(tmp_path / "a.intx").iter_events()))
    (hole,) = found[found["kind"] == Kind.LOST]
    assert hole["arg1"] == saved.dropped == len(events) - (len(found) - 1)
    assert hole["arg0"] == events["ts"][0]
    interrupts = intxtrace.open_trace(tmp_path / "a.intx").interrupts
    # Who is who is still known, and no more than what the hole cut is not complete.
    assert set(interrupts["bdf"]) == {"0000:01:00.0"}
    assert set(interrupts["vm"]) == {"win10"}
    assert len(interrupts[interrupts["outcome"] != "complete"]) <= 1
    assert saved.events == len(found) - 1 - 2 - int((found["kind"] == Kind.PROBE).sum())


def test_many_small_batches_have_their_size_too(tmp_path: Path) -> None:
    kept = Kept(50 * 1024)
    events = np.zeros(1, RECORD)
    for _ in range(200):
        kept.add(events, Tables())
    assert kept.save(tmp_path / "a.intx", Metadata()).events < 50


def test_losses_that_are_dropped_stay_lost(tmp_path: Path) -> None:
    kept = Kept(1)
    for at in range(1, 4):
        events = np.zeros(10, RECORD)
        events["ts"], events["kind"] = np.arange(10) + at * 100, Kind.HANDLER_ENTRY
        events["kind"][3], events["arg1"][3] = Kind.LOST, 1000
        kept.add(events, Tables())
    saved = kept.save(tmp_path / "a.intx", Metadata())
    assert (saved.events, saved.dropped) == (10, 2 * 9 + 2 * 1000 + 2)


# ---- the command


def live(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    assert main(["live", *arguments]) == 0
    return capsys.readouterr().out


def document(text: str) -> dict[str, Any]:
    found = json.loads(text)
    assert (found["schema"], found["version"]) == ("intxtrace.live", 1)
    data: dict[str, Any] = found["data"]
    return data


@pytest.mark.parametrize("path", RECORDED, ids=lambda path: path.stem)
@pytest.mark.parametrize("filters", [(), ("--path", "userspace", "--origin", "resignal")], ids=["all", "some"])
def test_the_counts_shown_last_are_those_of_the_saved_trace(
    path: Path, filters: tuple[str, ...], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    saved = str(tmp_path / "seen.intx")
    trace = intxtrace.open_trace(path)
    # Cut in the middle: what is in flight then counts in both.
    window = int(trace.interrupts["signalled_at"].median()) - (trace.begin_at or 0)
    options = ("--once", "--json", "--replay", str(path), "--speed", "100", "--window", f"{window}ns", "-o", saved)
    shown = document(live(capsys, *options, *filters))
    assert main(["summary", "--json", saved, *filters]) == 0
    summary = json.loads(capsys.readouterr().out)["data"]
    assert shown["interrupts"] == summary["quality"]["interrupts"]
    assert shown["interrupts"] or filters
    assert shown["lost"] == summary["quality"]["lost"]
    expected = {(d["device"], d["vm"]): (d["bdf"], d["counts"], d["lost"]) for d in summary["devices"]}
    assert {(d["device"], d["vm"]): (d["bdf"], d["total"], d["lost"]) for d in shown["devices"]} == expected


def test_once_as_text(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    out = live(capsys, "--once", "--replay", str(RECORDING), "--speed", "100", "--window", "45s")
    assert "device  VM        state     path         int/s    p50    p99    max flood   lost" in out
    assert "00:06.0" in out
    assert "userspace" in out
    assert max(map(len, out.splitlines())) <= 80


def test_a_trace_that_was_cut_off_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "cut.intx").write_bytes(RECORDING.read_bytes()[:-1000])
    assert main(["live", "--once", "--replay", str(tmp_path / "cut.intx"), "--speed", "1000", "--window", "1h"]) == 0
    shown = capsys.readouterr()
    assert "it was cut off: its last" in shown.err
    assert "what is shown is everything before" in shown.err
    assert "00:06.0" in shown.out


def test_more_devices_than_any_host_has(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    trace = Trace()
    vm = trace.vm("win10")
    for number in range(DEVICES_SHOWN + 3):
        trace.device(vm, bdf=f"{number // 256:04x}:{number % 256:02x}:00.0")
    with TraceWriter(tmp_path / "a.intx", Metadata()) as writer:
        writer.write(trace.records(), trace.tables)
    out = live(capsys, "--once", "--replay", str(tmp_path / "a.intx"))
    assert "3 devices not shown" in out
    assert out.count(":00.0 win10: 0 interrupts") == DEVICES_SHOWN


def test_names_are_names(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "120")
    trace = Trace()
    for number, name in enumerate(("[bold]x", "</script><img src=x onerror=alert(1)>", "\x1b[2J\u202eevil"), 1):
        trace.kernel_interrupt(trace.device(trace.vm(name), bdf=f"0000:0{number}:00.0"), at=number * MS)
    with TraceWriter(tmp_path / "a.intx", Metadata()) as writer:
        writer.write(trace.records(), trace.tables)
    out = live(capsys, "--once", "--replay", str(tmp_path / "a.intx"))
    assert "[bold]x" in out
    assert "</script><img src=x onerror=alert(1)>" in out
    assert "\\x1b[2J\\u202eevil" in out
    assert "\x1b" not in out


class FakeSession:
    """A session of a host with one VM, whose device interrupts all the time."""

    made: ClassVar[list[FakeSession]] = []

    def __init__(self, selection: Selection, *, bar: str, ring_bytes: int, wait: bool, say: Callable[[str], None]):
        self.selection, self.wait, self.bar, self.ring_bytes = selection, wait, bar, ring_bytes
        self.trace = Trace()
        self.nic = self.trace.device(self.trace.vm("win10"))
        self.tables = self.trace.tables
        self.tables.probes.append(
            Probe(99, name="kvm_eoi", state="missing", reason="this kernel has no such tracepoint")
        )
        self.given = 0
        self.open = True
        say("QEMU's functions are not traced: it is a script")
        FakeSession.made.append(self)

    def take(self) -> Events:
        self.trace.userspace_interrupt(self.nic)
        events = self.trace.records()
        new, self.given = events[self.given :], len(events)
        new["ts"] += np.uint64(time.monotonic_ns() - int(new["ts"].max()))
        return new

    def stop(self) -> Events:
        return self.take()

    def __enter__(self) -> FakeSession:
        return self

    def __exit__(self, *_: object) -> None:
        self.open = False


@pytest.fixture
def fake_session(monkeypatch: pytest.MonkeyPatch) -> list[FakeSession]:
    monkeypatch.setattr("intxtrace.capture.session.Session", FakeSession)
    monkeypatch.setattr("intxtrace.capture.recording.prefer", lambda: None)
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    monkeypatch.setattr("intxtrace.cli.live._prepare", lambda: None)
    FakeSession.made.clear()
    return FakeSession.made


def test_this_host_for_one_window(
    fake_session: list[FakeSession], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    saved = tmp_path / "seen.intx"
    assert main(["live", "--once", "--json", "--window", "1s", "-o", str(saved)]) == 0
    out, err = capsys.readouterr()
    (session,) = fake_session
    assert session.selection.everything
    assert (session.wait, session.bar, session.ring_bytes, session.open) == (True, "count", 1 << 24, False)
    assert "QEMU's functions are not traced: it is a script" in err
    assert "not traced: kvm_eoi: this kernel has no such tracepoint" in err
    assert f"events to {saved}" in err
    shown = document(out)
    (device,) = shown["devices"]
    assert (device["vm"], device["bdf"], device["path"]) == ("win10", "0000:01:00.0", "userspace")
    assert shown["end_at"] > shown["begin_at"]
    assert main(["summary", "--json", str(saved)]) == 0
    (summary,) = json.loads(capsys.readouterr().out)["data"]["devices"]
    assert device["total"] == summary["counts"]
    metadata = intxtrace.open_trace(saved).metadata
    assert metadata.command_line[0] == "intxtrace"
    assert metadata.realtime_anchor_ns


def test_what_is_chosen_is_chosen_in_the_kernel(
    fake_session: list[FakeSession], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    one = host.Process(4711, 1, "2024", Path("/proc/4711/exe"), ("qemu",), ("0000:01:00.0",))
    monkeypatch.setattr(host, "processes", lambda: [one])
    chosen = ("--vm", "2024", "--vm", "win10", "--vm", "77", "--pid", "88", "--device", "1:0.0", "--path", "kernel")
    shown = document(live(capsys, "--once", "--json", "--window", "1s", "--bar", "none", *chosen))
    (session,) = fake_session
    assert session.selection.vms == {"2024", "win10"}
    assert session.selection.pids == {77, 88}
    assert session.selection.devices == {"0000:01:00.0"}
    assert (session.wait, session.bar) == (False, "none")
    assert shown["interrupts"] == 0  # all took the userspace path
    assert [device["vm"] for device in shown["devices"]] == ["win10"]


def fails(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    assert main(["live", *arguments]) == 1
    out, err = capsys.readouterr()
    assert out == ""
    assert err.count("\n") == 1
    return str(err)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--window", "soon"), "--window soon is not a duration"),
        (("--window", "10ms"), "--window takes a time from 1s to 1h, not 10ms"),
        (("--keep", "much"), "--keep takes a size from 1M, such as 256M or 2G, not much"),
        (("--ring-size", "3M"), "--ring-size takes a power of two"),
        (("--bar", "some"), "--bar takes count, all or none"),
        (("--device", "nonsense"), "'nonsense' is not a PCI address such as 0000:01:00.0"),
        (("--path", "fast"), "--path fast is not known"),
        (("--from", "1"), "--from and --to choose a part of a recorded trace"),
        (("--speed", "2"), "--speed is that of a recorded trace"),
        (("--replay", str(RECORDING), "--speed", "0"), "--speed takes a number above 0"),
        (("--replay", str(RECORDING), "--speed", "nan"), "--speed takes a number above 0"),
        (("--replay", str(RECORDING), "--vm", "win7"), "there is no VM win7 in this trace"),
        (("--replay", "/nowhere.intx"), "no such file or folder: /nowhere.intx"),
    ],
)
def test_wrong_options(capsys: pytest.CaptureFixture[str], arguments: tuple[str, ...], said: str) -> None:
    assert said in fails(capsys, "--once", *arguments)


def test_without_a_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    assert "the full screen needs a terminal: run this in one, or give --once" in fails(capsys)


def test_without_root(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    assert "needs root: run this with sudo" in fails(capsys, "--once")


def test_it_refuses_what_record_refuses(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    one = host.Process(4711, 1, "win10", Path("/proc/4711/exe"), ("qemu",), ("0000:01:00.0",))
    monkeypatch.setattr(host, "processes", lambda: [one])
    assert "no VM named win7 is running (running: win10 (pid 4711))" in fails(capsys, "--once", "--vm", "win7")
    assert "process 12 runs no KVM virtual machine" in fails(capsys, "--once", "--vm", "12")
    assert "process 13 runs no KVM virtual machine" in fails(capsys, "--once", "--pid", "13")
    assert "this host has no PCI device 0000:fe:1f.7: `lspci -D`" in fails(capsys, "--once", "--device", "fe:1f.7")


@pytest.mark.parametrize("make", [lambda p: p.write_text("mine"), lambda p: p.symlink_to("/etc/passwd")])
def test_the_output_exists(
    make: Callable[[Path], object], tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    make(tmp_path / "a.intx")
    options = ("--once", "--replay", str(RECORDING), "-o", "a.intx")
    assert "a.intx exists: give another -o, or --force" in fails(capsys, *options)
    assert main(["live", *options, "--force", "--speed", "100"]) == 0
    assert not (tmp_path / "a.intx").is_symlink()
    assert intxtrace.open_trace(tmp_path / "a.intx").event_count
