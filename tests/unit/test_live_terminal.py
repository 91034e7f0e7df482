"""The full screen on a real pseudo-terminal: it is left as it was found, whatever ends it."""

from __future__ import annotations

import json
import signal
from pathlib import Path

import pytest

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


def test_a_connection_that_breaks_ends_it() -> None:
    # SIGHUP has its default action: drawing on a terminal that is gone would wait for ever, with the probes attached.
    with Terminal(*COMMAND) as terminal:
        terminal.shows("the trace ended")
        terminal.hang_up()
        assert terminal.process.wait(60) == -signal.SIGHUP


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
