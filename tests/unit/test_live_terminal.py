"""The full screen on a real pseudo-terminal: it is left as it was found, whatever ends it."""

from __future__ import annotations

import json
import shlex
import signal
import sys
from pathlib import Path

import pytest

import intxtrace
from tests.terminal import Terminal
from tests.unit.test_live import RECORDING

COMMAND = ("-m", "intxtrace", "live", "--replay", str(RECORDING), "--speed", "100", "--json")


@pytest.mark.parametrize("how", ["q", "Ctrl-C", "SIGINT", "SIGTERM"])
def test_it_ends_and_prints_what_it_showed(how: str, tmp_path: Path) -> None:
    saved = tmp_path / "seen.intx"
    with Terminal(*COMMAND, "-o", str(saved)) as terminal:
        terminal.shows("the trace ended")
        terminal.shows("lab-pair")
        assert not terminal.as_before
        if how.startswith("SIG"):
            terminal.send(signal.Signals[how])
        else:
            terminal.press({"q": b"q", "Ctrl-C": b"\x03"}[how])
        status, out = terminal.end()
        assert status == 0
        assert terminal.left_clean
        shown = json.loads(out)
        assert shown["schema"] == "intxtrace.live"
        assert shown["data"]["interrupts"] == 45
        assert f"events to {saved}".encode() in terminal.drawn
    assert saved.stat().st_mode & 0o777 == 0o600


def test_a_connection_that_breaks_ends_it_and_saves(tmp_path: Path) -> None:
    saved = tmp_path / "seen.intx"
    with Terminal(*COMMAND, "-o", str(saved)) as terminal:
        terminal.shows("the trace ended")
        terminal.hang_up()
        terminal.send(signal.SIGHUP)  # as the shell does, once it hears of it
        assert terminal.process.wait(60) == 0
        assert terminal.process.stdout is not None
        assert json.load(terminal.process.stdout)["data"]["interrupts"] == 45
    assert len(intxtrace.open_trace(saved).interrupts) == 45


def test_a_connection_that_breaks_ends_what_a_shell_runs(tmp_path: Path) -> None:
    """The kernel tells the shell alone: until that passes it on, drawing fails."""
    saved = tmp_path / "seen.intx"
    with Terminal("--norc", "--noprofile", "-i", program="bash") as terminal:
        terminal.press(shlex.join([sys.executable, *COMMAND, "-o", str(saved)]).encode() + b"\r")
        terminal.shows("the trace ended")
        terminal.hang_up()
        assert terminal.process.stdout is not None
        assert json.load(terminal.process.stdout)["data"]["interrupts"] == 45  # read to its end: both have ended
    assert len(intxtrace.open_trace(saved).interrupts) == 45


def test_a_terminal_that_goes_ends_it_also_where_the_signal_is_ignored(tmp_path: Path) -> None:
    saved = tmp_path / "seen.intx"
    ignoring = ("-c", "trap '' HUP; exec \"$@\"", "sh", sys.executable)
    with Terminal(*ignoring, *COMMAND, "-o", str(saved), program="sh") as terminal:
        terminal.shows("the trace ended")
        terminal.hang_up()
        assert terminal.process.wait(60) == 0
        assert terminal.process.stdout is not None
        assert json.load(terminal.process.stdout)["data"]["interrupts"] == 45
    assert len(intxtrace.open_trace(saved).interrupts) == 45


def test_a_hang_up_on_a_terminal_that_stays_leaves_it_clean(tmp_path: Path) -> None:
    saved = tmp_path / "seen.intx"
    with Terminal(*COMMAND, "-o", str(saved)) as terminal:
        terminal.shows("the trace ended")
        terminal.send(signal.SIGHUP)
        assert terminal.end()[0] == 0
        assert terminal.left_clean
        assert f"events to {saved}".encode() in terminal.drawn


def test_what_goes_on_without_having_been_suspended_starts_nothing() -> None:
    with Terminal(*COMMAND) as terminal:
        terminal.shows("the trace ended")
        before = terminal.threads
        for _ in range(5):
            terminal.send(signal.SIGCONT)
            terminal.read(0.1)
        assert terminal.threads == before
        terminal.press(b"q")
        assert terminal.end()[0] == 0
        assert terminal.left_clean


def test_what_was_suspended_goes_on() -> None:
    with Terminal(*COMMAND) as terminal:
        terminal.shows("the trace ended")
        before = terminal.threads
        terminal.send(signal.SIGTSTP)
        terminal.until(lambda: terminal.state == "T")
        assert terminal.left_clean
        drawn = len(terminal.drawn)
        terminal.send(signal.SIGCONT)
        terminal.until(lambda: b"the trace ended" in terminal.drawn[drawn:])
        assert terminal.threads == before
        terminal.press(b"q")
        assert terminal.end()[0] == 0
        assert terminal.left_clean


RECORD = """
import sys
from unittest import mock
from intxtrace.__main__ import main
from tests.unit.sessions import FakeSession

with (
    mock.patch("intxtrace.capture.session.Session", lambda *_, **__: FakeSession()),
    mock.patch("os.geteuid", lambda: 0),
    mock.patch("intxtrace.capture.recording._BATCH_SECONDS", 0.0),  # it writes on the terminal all the time
    mock.patch("intxtrace.capture.recording.POLL_SECONDS", 0.0),
):
    sys.exit(main(sys.argv[1:]))
"""


@pytest.mark.parametrize("keep", [(), ("--keep", "1h")])
@pytest.mark.parametrize("shell", [False, True])
def test_a_connection_that_breaks_loses_nothing_of_a_recording(
    shell: bool, keep: tuple[str, ...], tmp_path: Path
) -> None:
    path = tmp_path / "a.intx"
    words = ("-c", RECORD, "record", "--wait", "-o", str(path), *keep)
    begun = ("--norc", "--noprofile", "-i") if shell else words
    folder = Path(__file__).parents[2]
    with Terminal(*begun, program="bash" if shell else sys.executable, folder=folder) as terminal:
        if shell:
            terminal.press(shlex.join([sys.executable, *words]).replace("\n", "\x16\n").encode() + b"\r")
        terminal.shows(" events  0 lost")  # the line that counts
        terminal.hang_up()
        if not shell:
            terminal.send(signal.SIGHUP)
            assert terminal.process.wait(60) == 0
        assert terminal.process.stdout is not None
        assert terminal.process.stdout.read() == b""
    trace = intxtrace.open_trace(path)
    seen = trace.events
    seen = seen[seen["kind_name"] == "HANDLER_ENTRY"]
    assert seen["ts"].tolist() == list(range(len(seen)))
    assert len(seen) % 10 == 3  # the last ones, which came when the session was stopped
    assert trace.problem == ""


@pytest.mark.parametrize("where", ["intxtrace.render.live.cells", "intxtrace.analysis.live.LiveModel.view"])
def test_a_crash_leaves_the_terminal_clean(where: str) -> None:
    program = (
        "import sys\n"
        "from unittest import mock\n"
        "from intxtrace.__main__ import main\n"
        f"with mock.patch({where!r}, side_effect=RuntimeError('broken on purpose')):\n"
        "    sys.exit(main(sys.argv[1:]))\n"
    )
    with Terminal("-c", program, *COMMAND[2:]) as terminal:
        status, out = terminal.end()
        assert status == 1
        assert out == b""
        assert terminal.left_clean
        assert b"broken on purpose" in terminal.drawn
