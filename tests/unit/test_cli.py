"""The command line: what it prints, and that wrong input gives one sentence, exit status 1 and no traceback."""

from __future__ import annotations

import io
import itertools
import json
import os
import re
import signal
import stat
import subprocess
import sys
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple, cast

import numpy as np
import pandas as pd
import pytest
import typer

import intxtrace
from intxtrace import api, frames
from intxtrace.__main__ import main
from intxtrace.cli import app, output
from intxtrace.cli.interrupts import first_rows
from intxtrace.events import Kind
from intxtrace.reconstruct.state import Events
from intxtrace.trace.tables import Tables
from intxtrace.units import printable
from tests.unit.traces import METADATA, some_events, some_tables, write_trace


class Result(NamedTuple):
    interrupts: pd.DataFrame
    states: pd.DataFrame
    counters: pd.DataFrame


class StandIn:
    """A reconstructor that makes one interrupt of each event, so that this room's tests need no other room."""

    def __init__(self, tables: Tables, *, clock_orders_only: bool, expected: int) -> None:
        assert not clock_orders_only
        assert expected
        self.tables, self.count, self.instants = tables, 0, np.empty(0, np.int64)

    def take(self, events: Events) -> None:
        self.instants = np.concatenate([self.instants, events["ts"].astype("i8")])

    def closed(self) -> Result:
        instants, self.instants = self.instants, self.instants[:0]
        rows = frames.empty(frames.INTERRUPTS).reindex(range(len(instants)))
        rows["id"] = pd.array(np.arange(len(instants)) + self.count + 1, "Int64")
        rows["raised_at"] = pd.array(instants, "Int64")
        rows["masked_ns"] = pd.array(instants % 7919, "Int64")
        rows["bdf"] = pd.array([self.tables.devices[0].bdf] * len(instants), "string")
        rows["path"] = pd.array(["kernel"] * len(instants), "string")
        self.count += len(instants)
        return Result(rows, frames.empty(frames.DEVICE_STATES), frames.empty(frames.COUNTERS))

    def finish(self) -> Result:
        self.take(some_events(1, first_ts=10**12))
        return self.closed()


@pytest.fixture
def stand_in(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("intxtrace.reconstruct.Reconstructor", StandIn, raising=False)


@pytest.fixture
def renders(monkeypatch: pytest.MonkeyPatch, stand_in: None) -> None:
    """Stand-ins for the analysis and render rooms: they count."""

    class Analysis:
        def __init__(self, metadata: Any, tables: Tables, options: Any = None) -> None:
            self.found = {"interrupts": 0, "devices": len(tables.devices)}
            self.witness = types.SimpleNamespace(take=lambda columns: None)

        def add(self, interrupts: pd.DataFrame, states: pd.DataFrame, counters: pd.DataFrame) -> None:
            self.found["interrupts"] += len(interrupts)

        def finish(self, begin_at: int, end_at: int) -> dict[str, int]:
            return {**self.found, "ns": end_at - begin_at}

    def module(**functions: Any) -> types.SimpleNamespace:
        return types.SimpleNamespace(**functions)

    monkeypatch.setattr("intxtrace.analysis.Analysis", Analysis, raising=False)
    monkeypatch.setattr("intxtrace.analysis.interrupt_rows", lambda rows: rows["id"].tolist(), raising=False)
    rooms = {
        "json": module(summary=lambda found: json.dumps(found) + "\n", interrupts=lambda rows: json.dumps(rows) + "\n"),
        "html": module(WINDOWS=8, write_report=lambda found: f"<html>{found['interrupts']}</html>"),
        "text": module(
            print_summary=lambda found, console: console.print(found["interrupts"]),
            print_interrupts=lambda rows, console, begin_at: console.print(len(rows)),
        ),
    }
    for name, room in rooms.items():
        monkeypatch.setattr(f"intxtrace.render.{name}", room, raising=False)
        monkeypatch.setitem(sys.modules, f"intxtrace.render.{name}", room)


@pytest.fixture
def trace(tmp_path: Path) -> Path:
    return write_trace(tmp_path / "a.intx", some_events(30), some_events(20, first_ts=2_000_000_000, seed=1))


def fails(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """Run a command that must fail, and return its sentence."""
    assert main(arguments) == 1
    shown = capsys.readouterr()
    assert shown.out == ""
    lines = shown.err.splitlines()
    assert len(lines) == 1
    assert lines[0].startswith("intxtrace: ")
    return lines[0].removeprefix("intxtrace: ")


def run(*arguments: str, **options: Any) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "intxtrace", *arguments]
    return subprocess.run(command, text=True, capture_output=True, check=False, timeout=60, **options)


READERS = ("info", "summary", "interrupts", "report")


# --- wrong input


@pytest.mark.parametrize("command", READERS)
@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda path: None, "no such file or folder: {}; check the name"),
        (lambda path: path.write_bytes(b""), "{} is empty; record again"),
        (lambda path: path.write_text("# tracer: nop\n" * 50), "{} is not an intxtrace trace; name a file that"),
        (lambda path: path.mkdir(), "{} is a folder; name a file"),
        (lambda path: os.mkfifo(path), "{} is not a regular file; name a trace file"),
        (lambda path: path.symlink_to(path), "cannot use {}: Too many levels of symbolic links"),
        (lambda path: (path / "x").symlink_to("y") if path.exists() else None, "no such file or folder: {}"),
    ],
    ids=["none", "empty", "text", "folder", "fifo", "loop", "nothing"],
)
def test_input_that_is_no_trace(
    command: str, make: Callable[[Path], Any], says: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "b.intx"
    make(path)
    assert fails(capsys, command, str(path)).startswith(says.format(path).replace("folder:  ", "folder: "))


@pytest.mark.parametrize("command", READERS)
def test_newer_major_version(command: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from dataclasses import replace

    path = write_trace(tmp_path / "b.intx", some_events(1), metadata=replace(METADATA, format_version="2.0"))
    sentence = fails(capsys, command, str(path))
    assert "has format version 2.0" in sentence
    assert sentence.endswith("upgrade intxtrace")


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["summary", "{}", "--device", "09:00.0"], "there is no device 0000:09:00.0 in this trace; choose from"),
        (["report", "{}", "--vm", "nobody"], "there is no VM nobody in this trace; choose from"),
        (["interrupts", "{}", "--min", "fast"], "--min fast is not a duration"),
        (["interrupts", "{}", "--from", "later"], "--from later is not an instant"),
        (["interrupts", "{}", "--path", "fast"], "--path fast is not known; choose from kernel"),
        (["interrupts", "{}", "--by", "name"], "--by name is not known; choose from masked, time, id"),
        (["interrupts", "{}", "--limit", "-1"], "--limit -1 is less than nothing"),
        (["interrupts", "{}", "--limit", "x"], "Invalid value for '--limit'"),
        (["info", "{}", "--repair", "{}"], "{} is the trace itself"),
        (["report", "{}", "-o", "{}", "--force"], "{} is the trace itself"),
        (["report", "{}", "-o", "/nowhere/x.html"], "the folder /nowhere does not exist"),
        (["info", "{}", "--bogus"], "No such option: --bogus; see intxtrace info --help"),
        (["info"], "Missing argument 'TRACE'; see intxtrace info --help"),
        (["fly"], "No such command 'fly'"),
    ],
)
def test_options_that_cannot_be_met(
    arguments: list[str], says: str, trace: Path, renders: None, capsys: pytest.CaptureFixture[str]
) -> None:
    before = trace.read_bytes()
    assert fails(capsys, *(argument.format(trace) for argument in arguments)).startswith(says.format(trace))
    assert trace.read_bytes() == before


def test_nothing_is_overwritten_unasked(
    trace: Path, renders: None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    out.write_text("precious")
    assert "exists; choose another name" in fails(capsys, "report", str(trace), "-o", str(out))
    assert "exists; choose another name" in fails(capsys, "info", str(trace), "--repair", str(out))
    assert out.read_text() == "precious"
    assert main(["report", str(trace), "-o", str(out), "--force"]) == 0
    assert out.read_text() == "<html>51</html>"


def test_names_cannot_steer_the_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    assert "\\x1b[2J\\n" in fails(capsys, "info", "/nowhere/\x1b[2J\n.intx")
    assert printable("a\u202eb\x07ü") == "a\\u202eb\\x07ü"


def test_unreadable_file_is_a_sentence(trace: Path, capsys: pytest.CaptureFixture[str], monkeypatch: Any) -> None:
    def refuse(*_: Any, **__: Any) -> int:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("intxtrace.trace.reader.os.open", refuse)  # root may read anything
    assert fails(capsys, "info", str(trace)) == f"no permission for {trace}; run as its owner or as root"


def test_full_disk_at_the_output(trace: Path) -> None:
    with Path("/dev/full").open("w") as full:
        command = [sys.executable, "-m", "intxtrace", "info", str(trace)]
        done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True, check=False)
    assert done.returncode == 1
    assert done.stderr == "intxtrace: no space left to write; free some space, or write to another disk\n"


def test_reader_of_the_output_goes_away(trace: Path) -> None:
    read, write = os.pipe()
    os.close(read)
    try:
        command = [sys.executable, "-m", "intxtrace", "info", str(trace)]
        done = subprocess.run(command, stdout=write, stderr=subprocess.PIPE, text=True, check=False)
    finally:
        os.close(write)
    assert (done.returncode, done.stderr) == (141, "")


def test_interrupting_ends_quietly(trace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("intxtrace.analysis.inventory.inventory", lambda *_: signal.raise_signal(signal.SIGINT))
    assert main(["info", str(trace)]) == 130


def test_memory_error_is_a_sentence(trace: Path, capsys: pytest.CaptureFixture[str], monkeypatch: Any) -> None:
    def gather(*_: Any) -> None:
        raise MemoryError

    monkeypatch.setattr("intxtrace.analysis.inventory.inventory", gather)
    assert fails(capsys, "info", str(trace)).startswith("out of memory; ")


# --- what commands do


def test_info(trace: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["info", str(trace), "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert (document["schema"], document["version"]) == ("intxtrace.info", 1)
    data = document["data"]
    assert data["events"] == 50
    assert sum(data["kinds"].values()) == 50
    assert (data["begin_at"], data["end_at"]) == (1_000_000_000, 2_000_019_000)
    assert (data["truncated"], data["lost_bytes"], data["problem"]) == (False, 0, "")
    assert data["metadata"] == METADATA.to_values()
    assert [row["bdf"] for row in data["devices"]] == ["0000:01:00.0", "0000:02:00.0"]
    assert main(["info", str(trace)]) == 0
    text = capsys.readouterr().out
    for expected in ("host 6.1.0 x86_64", "missing  no such function", "guest1", "1.00 s"):
        assert expected in text


def test_info_counts_what_was_lost_and_names_unknown_kinds(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    events = some_events(3)
    events["kind"] = [Kind.LOST, Kind.LOST, 999]
    events["arg1"] = [5, 7, 11]
    assert main(["info", str(write_trace(tmp_path / "a.intx", events)), "--json"]) == 0
    data = json.loads(capsys.readouterr().out)["data"]
    assert data["lost"] == 12
    assert data["kinds"] == {"LOST": 2, "kind 999": 1}


def test_info_repairs(trace: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    trace.write_bytes(trace.read_bytes()[:-20])
    assert main(["info", str(trace), "--repair", str(tmp_path / "b.intx")]) == 0
    assert "was cut off: its last" in capsys.readouterr().out
    assert main(["info", str(tmp_path / "b.intx")]) == 0
    assert re.search(r"^end +whole *", capsys.readouterr().out, re.MULTILINE)


def test_a_cut_trace_is_read_and_said_to_be_cut(
    trace: Path, renders: None, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    trace.write_bytes(trace.read_bytes()[:-20])
    for command in (
        ["summary", str(trace)],
        ["interrupts", str(trace)],
        ["report", str(trace), "-o", str(tmp_path / "r")],
    ):
        assert main(command) == 0
        assert "was cut off" in capsys.readouterr().err


def test_summary(trace: Path, renders: None, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["summary", str(trace)]) == 0
    assert capsys.readouterr().out == "51\n"
    assert main(["summary", str(trace), "--json", "--to", "1", "--device", "1:0.0"]) == 0
    assert json.loads(capsys.readouterr().out) == {"interrupts": 30, "devices": 1, "ns": 10**9}


def test_interrupts(trace: Path, renders: None, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["interrupts", str(trace)]) == 0
    assert capsys.readouterr().out == "20\n20 of 51 interrupts; --limit 0 lists all\n"
    assert main(["interrupts", str(trace), "--json", "--by", "id", "--limit", "3"]) == 0
    assert json.loads(capsys.readouterr().out) == [1, 2, 3]
    assert main(["interrupts", str(trace), "--json", "--by", "time", "--limit", "0", "--from", "1"]) == 0
    assert json.loads(capsys.readouterr().out) == list(range(31, 52))


def test_slowest_first_in_bounded_memory() -> None:
    random = np.random.default_rng(0)
    whole = frames.empty(frames.INTERRUPTS).reindex(range(60_000))
    whole["id"] = pd.array(np.arange(60_000), "Int64")
    masked = pd.array(random.integers(0, 1000, 60_000), "Int64")
    masked[::7] = pd.NA
    whole["masked_ns"] = masked
    whole["acknowledged_at"] = pd.array(random.integers(0, 1000, 60_000), "Int64")
    parts = [whole.iloc[i : i + 7_000] for i in range(0, 60_000, 7_000)]
    for by, column, ascending in (
        ("masked", "masked_ns", False),
        ("time", "acknowledged_at", True),
        ("id", "id", True),
    ):
        expected = whole.sort_values([column, "id"], ascending=[ascending, True])["id"].tolist()
        rows, total = first_rows(parts, by, 100)
        assert (rows["id"].tolist(), total) == (expected[:100], 60_000)
        assert first_rows(parts, by, 0)[0]["id"].tolist() == expected
    rows, total = first_rows([], "masked", 5)
    assert (len(rows), total, list(rows.columns)) == (0, 0, list(frames.INTERRUPTS))


def test_report_is_named_after_the_trace_and_private(
    trace: Path, renders: None, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    folder = tmp_path / "here"
    folder.mkdir()
    monkeypatch.chdir(folder)
    assert main(["report", str(trace)]) == 0
    assert capsys.readouterr().out == "wrote a.html (15 bytes)\n"
    assert (folder / "a.html").read_text() == "<html>51</html>"
    assert stat.S_IMODE((folder / "a.html").stat().st_mode) == 0o600


@pytest.mark.parametrize("found", [True, False])
def test_report_opens_in_the_browser(
    trace: Path, renders: None, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, found: bool
) -> None:
    monkeypatch.chdir(trace.parent)
    asked: list[str] = []

    def browser(address: str) -> bool:
        asked.append(address)
        return found

    monkeypatch.setattr("webbrowser.open", browser)
    assert main(["report", str(trace), "--open"]) == 0
    assert asked == [(trace.parent / "a.html").as_uri()]
    assert ("found no web browser" in capsys.readouterr().err) == (not found)
    assert main(["report", str(trace), "--force"]) == 0
    assert len(asked) == 1


@pytest.mark.parametrize("where", ["os.write", "intxtrace.render.html.write_report"])
def test_an_interrupted_report_leaves_no_half_file(
    trace: Path,
    renders: None,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    where: str,
) -> None:
    def interrupt(*_: Any) -> None:
        raise KeyboardInterrupt

    target = tmp_path / "r.html"
    with monkeypatch.context() as patch:
        patch.setattr(where, interrupt)
        assert main(["report", str(trace), "-o", str(target)]) == 130
    assert not target.exists()
    assert capsys.readouterr() == ("", "")


def test_a_terminal_without_utf8_gets_other_characters(tmp_path: Path) -> None:
    trace = Path(__file__).parents[1] / "traces" / "userspace-6.1.intx"
    shown = run("summary", str(trace), env={**os.environ, "PYTHONIOENCODING": "ascii"})
    assert (shown.returncode, shown.stderr) == (0, "")
    assert shown.stdout.isascii()
    assert "us/" in shown.stdout
    assert "#" in shown.stdout


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize("terminal", [True, False])
@pytest.mark.parametrize("slow", [True, False])
def test_progress_shows_on_a_terminal_after_a_second(
    monkeypatch: pytest.MonkeyPatch, terminal: bool, slow: bool
) -> None:
    screen = Terminal() if terminal else io.StringIO()
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setattr(sys, "stderr", screen)
    clock = itertools.count(step=2 if slow else 0)
    monkeypatch.setattr(output, "time", types.SimpleNamespace(monotonic=lambda: next(clock)))
    positions = iter((7, 107, 607))
    for _ in output.progress("abc", lambda: next(positions), 1_000):
        assert ("/1.0 kB" in screen.getvalue()) == (terminal and slow)
    shown = screen.getvalue()
    if terminal and slow:
        assert shown.index("0.0/1.0 kB") < shown.index("0.1/1.0 kB") < shown.index("0.6/1.0 kB")
        assert shown.endswith("\x1b[2K")  # the line is wiped
    else:
        assert shown == ""


def test_version() -> None:
    assert run("--version").stdout == f"intxtrace {intxtrace.__version__}\n"


COMMANDS = list(cast(Any, typer.main.get_command(app)).commands)


@pytest.mark.parametrize("command", ["", *COMMANDS])
def test_help_of_every_command(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    """It ends with examples of this command, no line of which was broken, and each option names its value."""
    assert main([*command.split(), "--help"]) == 0
    shown, _, examples = capsys.readouterr().out.partition("Examples:\n")
    assert f"Usage: intxtrace {command}".strip() in shown
    assert max(map(len, shown.splitlines())) <= 80
    assert not re.search(r"^ +(-o, )?--[a-z-]+ <", shown, re.M)
    assert len(examples.splitlines()) >= 2
    assert f"intxtrace {command}" in examples.splitlines()[0]
    for example in examples.splitlines():
        assert "intxtrace " in example
        assert len(example) <= 84


def test_help_says_what_each_command_does_in_a_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--help"]) == 0
    shown = capsys.readouterr().out.partition("Commands:\n")[2].partition("Examples:")[0].rstrip()
    assert [line.split()[0] for line in shown.splitlines()] == COMMANDS
    assert all(line.endswith(".") and not line.endswith("...") for line in shown.splitlines())


def test_help_loads_nothing_heavy() -> None:
    code = "import sys; from intxtrace.__main__ import main; main(['--help']); print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], text=True, capture_output=True, check=True)
    loaded = {name.partition(".")[0] for name in done.stdout.splitlines()[-1].split()}
    assert not loaded & {"numpy", "pandas", "pyarrow", "numba", "plotly", "rich", "jinja2", "elftools", "bcc"}


# --- the API


def test_open_trace(trace: Path, stand_in: None) -> None:
    opened = intxtrace.open_trace(trace)
    assert opened.metadata == METADATA
    assert opened.tables == some_tables()
    assert (opened.event_count, opened.begin_at, opened.problem) == (50, 1_000_000_000, "")
    whole = np.concatenate([some_events(30), some_events(20, first_ts=2_000_000_000, seed=1)])
    events = opened.events
    assert np.array_equal(events["arg1"].to_numpy(), whole["arg1"])
    assert events["kind_name"].dtype == "category"
    assert events["kind_name"].tolist() == [Kind(kind).name for kind in whole["kind"]]
    assert opened.interrupts["id"].tolist() == list(range(1, 52))
    assert list(opened.states.columns) == list(frames.DEVICE_STATES)
    assert list(opened.counters.columns) == list(frames.COUNTERS)
    parts = list(opened.iter_interrupts())
    assert [len(part) for part in parts] == [51]
    assert opened.position > 0


def test_open_trace_of_an_empty_recording(tmp_path: Path) -> None:
    opened = api.open_trace(write_trace(tmp_path / "a.intx"))
    assert (opened.event_count, opened.begin_at) == (0, None)
    assert len(opened.events) == 0


def test_unknown_kinds_have_no_name(tmp_path: Path) -> None:
    events = some_events(2)
    events["kind"] = [1, 999]
    frame = api.open_trace(write_trace(tmp_path / "a.intx", events)).events
    assert frame["kind"].tolist() == [1, 999]
    assert frame["kind_name"].isna().tolist() == [False, True]
