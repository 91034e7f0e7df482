"""The full-screen view, driven by textual's pilot: what is on the screen after which key."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from textual.pilot import Pilot
from textual.widgets import DataTable, Input, Static

import intxtrace
from intxtrace.analysis.live import LiveModel
from intxtrace.cli.live_app import Close, Help, LiveApp
from intxtrace.events import RECORD
from intxtrace.live import Events, Watch
from intxtrace.trace.metadata import Metadata
from intxtrace.trace.tables import Tables, Vm
from tests.dsl import Trace

MS = 1_000_000
SECOND = 1_000_000_000
HOSTILE = "</script><img src=x onerror=alert(1)>"
MARKUP = "[bold]x"


class Script:
    """A source that hands out what a test pushes."""

    def __init__(self, tables: Tables) -> None:
        self.metadata = Metadata(hostname="[red]host")
        self.tables = tables
        self.ended = False
        self.problem = ""
        self.waiting: list[Events] = []
        self.at: int | None = None
        self.rest = np.empty(0, RECORD)
        self.stopped = False
        self.fails = ""

    def push(self, events: Events) -> None:
        self.at = int(events["ts"][-1])
        self.waiting.append(events)

    def take(self) -> Events:
        if self.fails:
            raise RuntimeError(self.fails)
        return self.waiting.pop(0) if self.waiting else np.empty(0, RECORD)

    def now(self) -> int | None:
        return self.at

    def stop(self) -> Events:
        self.stopped = True
        return self.rest


def two_vms() -> tuple[Trace, Events]:
    """A busy device on the userspace path and a quiet one on the kernel path."""
    trace = Trace()
    busy = trace.device(trace.vm(MARKUP), bdf="0000:02:00.0")
    quiet = trace.device(trace.vm(HOSTILE), bdf="0000:01:00.0")
    for at in range(100):
        trace.userspace_interrupt(busy, at=(at + 1) * 10 * MS)
        if at % 10 == 0:
            trace.kernel_interrupt(quiet, at=(at + 1) * 10 * MS + 5 * MS)
    return trace, trace.records()


class Screen:
    """The app on a screen, and what is to be read on it."""

    def __init__(self, app: LiveApp, pilot: Pilot[None], script: Script) -> None:
        self.app, self.pilot, self.script = app, pilot, script

    async def press(self, *keys: str) -> None:
        await self.pilot.press(*keys)
        await self.pilot.pause()

    async def until(self, seen: Callable[[], bool]) -> None:
        for _ in range(500):
            await self.pilot.pause(0.02)
            if seen():
                return
        raise AssertionError(f"never seen; on the screen:\n{self.text()}")

    def text(self) -> str:
        """The screen as characters."""
        size = self.app.size
        lines = self.app.screen._compositor.render_strips(size)
        return "\n".join("".join(segment.text for segment in strip) for strip in lines)

    def lines(self) -> list[str]:
        return self.text().splitlines()

    def head(self) -> str:
        return self.lines()[0]

    def rows(self) -> list[str]:
        """The rows of the table."""
        table = self.app.screen_stack[0].query_one(DataTable)
        return [" ".join(str(cell).strip() for cell in table.get_row_at(i)) for i in range(table.row_count)]

    def devices(self) -> list[str]:
        return [row.split()[0] for row in self.rows()] if self.table_is_shown() else []

    def table_is_shown(self) -> bool:
        return bool(self.app.screen_stack[0].query_one(DataTable).display)

    def said(self) -> str:
        return str(self.app.screen_stack[0].query_one("#said", Static).content)


def drive(
    steps: Callable[[Screen], Awaitable[None]],
    tables: Tables,
    *pushed: Events,
    size: tuple[int, int] = (80, 24),
    **options: Any,
) -> LiveApp:
    """Run the app, and the steps on it."""
    script = Script(tables)
    for events in pushed:
        script.push(events)
    watch = Watch(script, LiveModel(tables, window_ns=10 * SECOND), 1 << 24)
    app = LiveApp(watch, 10 * SECOND, name=script.metadata.hostname, refresh=0.1, **options)

    async def run() -> None:
        async with app.run_test(size=size) as pilot:
            await steps(Screen(app, pilot, script))

    try:
        asyncio.run(run())
    finally:
        app.join()
    return app


def test_rows_at_80_by_24() -> None:
    trace, events = two_vms()

    async def steps(screen: Screen) -> None:
        await screen.until(lambda: len(screen.rows()) == 2 and "q Quit" in screen.lines()[23])
        lines = screen.lines()
        assert len(lines) == 24
        assert all(len(line) <= 80 for line in lines)
        assert "intxtrace live · last 10.0 s · 109 interrupts · 0 lost" in lines[0]
        assert "· [red]" in lines[0]
        assert lines[1].split() == ["device", "VM", "state", "path", "int/s▼", "p50", "p99", "max", "flood", "lost"]
        assert lines[2].startswith("02:00.0 [bold]x   userspace userspace")
        assert lines[3].startswith("01:00.0 </script… ")
        assert "kernel" in lines[3]
        assert "Enter looks closely at a device; ? explains" in lines[22]

    drive(steps, trace.tables, events)


def test_it_says_what_it_waits_for() -> None:
    tables = Tables()

    async def steps(screen: Screen) -> None:
        await screen.until(lambda: "no VM with a passed-through device runs: waiting" in screen.text())
        tables.vms.append(Vm(0, pid=7, name=MARKUP))
        await screen.until(lambda: f"no INTx interrupt was seen yet from 1 VM: {MARKUP}" in screen.text())

    drive(steps, tables)


def test_sorting() -> None:
    trace, events = two_vms()

    async def steps(screen: Screen) -> None:
        await screen.until(lambda: screen.devices() == ["02:00.0", "01:00.0"])
        await screen.press("r")
        await screen.until(lambda: screen.devices() == ["01:00.0", "02:00.0"])
        await screen.until(lambda: "int/s▲" in screen.lines()[1])
        await screen.press("less_than_sign")  # path, upwards
        await screen.until(lambda: "path▲" in screen.lines()[1])
        await screen.until(lambda: screen.devices() == ["01:00.0", "02:00.0"])
        await screen.press("r")
        await screen.until(lambda: screen.devices() == ["02:00.0", "01:00.0"])
        await screen.press("greater_than_sign", "greater_than_sign")
        await screen.until(lambda: "p50▼" in screen.lines()[1])
        # the quiet one takes longer in `Trace`
        await screen.until(lambda: screen.devices() == ["01:00.0", "02:00.0"])
        await screen.pilot.click(DataTable, offset=(2, 0))
        await screen.pilot.pause()
        await screen.until(lambda: "device▲" in screen.lines()[1])
        await screen.until(lambda: screen.devices() == ["01:00.0", "02:00.0"])
        await screen.pilot.click(DataTable, offset=(2, 0))
        await screen.pilot.pause()
        await screen.until(lambda: screen.devices() == ["02:00.0", "01:00.0"])

    drive(steps, trace.tables, events)


def test_filtering() -> None:
    trace, events = two_vms()

    async def steps(screen: Screen) -> None:
        await screen.until(lambda: len(screen.devices()) == 2)
        await screen.press("slash", *"USER q", "enter")  # q is a letter here
        await screen.until(lambda: screen.devices() == [])
        await screen.until(lambda: "no device has all of these words: USER q; / changes them" in screen.text())
        await screen.press("slash", *"USER", "enter")
        await screen.until(lambda: screen.devices() == ["02:00.0"])
        await screen.until(lambda: "/USER" in screen.head())
        await screen.press("slash", *"x", "escape")
        await screen.until(lambda: screen.devices() == ["02:00.0"])
        await screen.until(lambda: not screen.app.screen.query_one(Input).display)
        await screen.press("slash", "backspace", "enter")
        await screen.until(lambda: len(screen.devices()) == 2)

    drive(steps, trace.tables, events)


def test_a_device_looked_at_closely() -> None:
    trace, events = two_vms()

    async def steps(screen: Screen) -> None:
        await screen.until(lambda: len(screen.devices()) == 2)
        await screen.press("down", "enter")
        await screen.until(lambda: isinstance(screen.app.screen, Close))
        text = screen.text()
        assert f"0000:01:00.0 · host IRQ 20 · GSI 21 · process 1100 · VM {HOSTILE}"[:78] in text
        assert "10 interrupts: 100 % kernel" in text
        assert "masked time of the window (10 interrupts)" in text
        assert "█" in text
        assert "last 10 interrupts, latest first" in text
        await screen.until(lambda: all(len(line) <= 80 for line in screen.lines()))
        assert "Filter" not in text
        await screen.press("slash", "s")  # keys of the table
        await screen.until(lambda: not screen.app.screen_stack[0].query_one(Input).display)
        await screen.press("escape")
        await screen.until(lambda: not isinstance(screen.app.screen, Close))
        await screen.press("up", "enter")
        await screen.until(lambda: f"process 1000 · VM {MARKUP}" in screen.text())

    drive(steps, trace.tables, events)


def test_the_cursor_stays_on_its_device() -> None:
    trace, events = two_vms()
    half = len(events) // 2

    async def steps(screen: Screen) -> None:
        await screen.until(lambda: len(screen.devices()) == 2)
        await screen.press("down")
        await screen.press("r")
        await screen.until(lambda: screen.devices() == ["01:00.0", "02:00.0"])
        await screen.press("enter")
        await screen.until(lambda: "0000:01:00.0 · host IRQ" in screen.text())
        before = screen.text()
        screen.script.push(events[half:])
        await screen.until(lambda: screen.text() != before)  # it is drawn anew while it is looked at

    drive(steps, trace.tables, events[:half])


def test_a_held_picture_stays_and_nothing_is_lost_meanwhile() -> None:
    trace, events = two_vms()
    half = len(events) // 2

    async def steps(screen: Screen) -> None:
        await screen.until(lambda: len(screen.rows()) == 2)
        await screen.press("p")
        await screen.until(lambda: "PAUSED" in screen.head())
        before = screen.rows()
        screen.script.push(events[half:])
        await screen.until(lambda: screen.app._latest.interrupts == 109)  # type: ignore[union-attr]
        assert screen.rows() == before
        await screen.press("enter")
        await screen.until(lambda: "last 20 interrupts" in screen.text())
        await screen.until(lambda: screen.head().startswith("PAUSED"))
        held = screen.text()
        await screen.pilot.pause(0.1)
        assert screen.text() == held
        await screen.press("escape", "p")
        await screen.until(lambda: "109 interrupts" in screen.head())
        await screen.until(lambda: "PAUSED" not in screen.head())

    drive(steps, trace.tables, events[:half])


def test_saving(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.intx").symlink_to("/etc/passwd")
    trace, events = two_vms()

    async def steps(screen: Screen) -> None:
        await screen.until(lambda: len(screen.rows()) == 2)
        await screen.press("s")
        await screen.until(lambda: screen.app.screen.query_one(Input).value.startswith("intxtrace-20"))
        await screen.until(lambda: "trace file to save what was seen to; Escape leaves" in screen.said())
        screen.app.screen.query_one(Input).value = "seen.intx"
        await screen.press("enter")
        await screen.until(lambda: f"saved {len(events):,} events to seen.intx" in screen.said())
        await screen.press("s")
        screen.app.screen.query_one(Input).value = "mine.intx"
        await screen.press("enter")
        await screen.until(lambda: screen.said() == "mine.intx exists; choose another name")
        await screen.press("s")
        screen.app.screen.query_one(Input).value = "no/where.intx"
        await screen.press("enter")
        await screen.until(lambda: "the folder no does not exist" in screen.said())

    drive(steps, trace.tables, events)
    found = intxtrace.open_trace(tmp_path / "seen.intx")
    assert np.array_equal(np.concatenate(list(found.iter_events())), events)
    assert (tmp_path / "seen.intx").stat().st_mode & 0o777 == 0o600


def test_the_window_becomes_small_and_large() -> None:
    trace, events = two_vms()

    async def steps(screen: Screen) -> None:
        await screen.until(lambda: len(screen.rows()) == 2)
        await screen.until(lambda: HOSTILE in screen.rows()[1])
        await screen.until(lambda: all(len(line) <= 140 for line in screen.lines()))
        await screen.pilot.resize_terminal(80, 24)
        await screen.pilot.pause()
        await screen.until(lambda: len(screen.lines()) == 24)
        await screen.until(lambda: all(len(line) <= 80 for line in screen.lines()))
        await screen.until(lambda: screen.lines()[2].rstrip().endswith("µs") or "RE" in screen.lines()[2])
        await screen.press("enter")
        await screen.until(lambda: all(len(line) <= 80 for line in screen.lines()))
        for size in ((20, 5), (1, 1), (200, 60)):
            await screen.pilot.resize_terminal(*size)
            await screen.pilot.pause()
        await screen.press("escape")
        await screen.until(lambda: HOSTILE in screen.rows()[1])

    drive(steps, trace.tables, events, size=(140, 40))


def test_help_explains_the_columns() -> None:
    async def steps(screen: Screen) -> None:
        await screen.press("question_mark")
        await screen.until(lambda: isinstance(screen.app.screen, Help))
        text = screen.text()
        for word in ("masked time: from raised to unmasked", "R resignals", "quit (Ctrl-C too)", "hold the picture"):
            assert word in text
        await screen.press("escape")
        await screen.until(lambda: not isinstance(screen.app.screen, Help))

    drive(steps, Tables())


@pytest.mark.parametrize("keys", [["q"], ["ctrl+c"], ["ctrl+q"], ["enter", "q"], ["s", "ctrl+c"]])
def test_the_end_counts_what_is_in_flight_and_stops_the_source(keys: list[str]) -> None:
    trace, events = two_vms()
    sources = []

    async def steps(screen: Screen) -> None:
        await screen.until(lambda: len(screen.rows()) == 2)
        sources.append(screen.script)
        screen.script.rest = events[-20:]
        await screen.press(*keys)
        await screen.until(lambda: screen.app.last is not None)

    app = drive(steps, trace.tables, events[:-20])
    assert app.last is not None
    assert (app.last.interrupts, app.last.events) == (110, len(events))
    assert sources[0].stopped
    assert app.return_code == 0


def test_a_signal_ends_it() -> None:
    wanted: list[bool] = []

    async def steps(screen: Screen) -> None:
        await screen.pilot.pause()
        wanted.append(True)
        await screen.until(lambda: screen.app.last is not None)

    assert drive(steps, Tables(), stopped=lambda: bool(wanted)).return_code == 0


def test_what_goes_wrong_in_the_thread_ends_it() -> None:
    async def steps(screen: Screen) -> None:
        screen.script.fails = "the ring is gone"
        await screen.until(lambda: screen.app.error is not None)

    app = drive(steps, Tables())
    assert str(app.error) == "the ring is gone"
    assert app.last is None


def test_notes_are_shown_as_text() -> None:
    async def steps(screen: Screen) -> None:
        screen.app.say(f"QEMU's functions are not traced: {MARKUP}\x1b[2J")
        await screen.until(lambda: MARKUP in screen.said())
        assert "\x1b" not in screen.text()

    drive(steps, Tables())
