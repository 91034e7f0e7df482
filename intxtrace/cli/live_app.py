"""The full-screen live view. It draws what `Watch` hands out; a thread of its own takes the events meanwhile."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, TextIO, cast

from rich.text import Text
from textual import on
from textual.app import App, ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import VerticalScroll
from textual.drivers.linux_driver import LinuxDriver
from textual.events import Resize
from textual.message import Message
from textual.screen import ModalScreen, Screen
from textual.widgets import DataTable, Footer, Input, Static

from intxtrace.errors import IntxtraceError
from intxtrace.live import REFRESH_SECONDS, Watch
from intxtrace.render import live as render
from intxtrace.units import plural, printable

if TYPE_CHECKING:
    from intxtrace.analysis.live_results import Key, LiveDevice, LiveView

INTERRUPTED = 130
_LOOK_SECONDS = 0.1
"""How long a signal waits for its effect, at most."""


class _Screen:
    """A terminal that may go while it is drawn on: what cannot be drawn any more is of no account.

    An error would end textual's thread that draws, and then its queue fills up, and to end the app waits for ever.
    """

    def __init__(self, file: TextIO) -> None:
        self._file = file

    def write(self, text: str) -> None:
        with suppress(OSError):
            self._file.write(text)

    def flush(self) -> None:
        with suppress(OSError):
            self._file.flush()

    def fileno(self) -> int:
        return self._file.fileno()


class _Driver(LinuxDriver):
    """Textual's own, on such a terminal."""

    def __init__(self, app: App[object], **options: Any) -> None:
        super().__init__(app, **options)
        self._file = cast(Any, _Screen(cast(TextIO, self._file)))

    def _sigcont_application(self, *arguments: object) -> None:
        """Resume what was suspended, and nothing else.

        A connection that breaks sends SIGCONT with its SIGHUP (tty_signal_session_leader, drivers/tty/tty_jobctrl.c):
        textual would start its threads once more, and end only those.
        """
        if self._must_signal_resume:
            super()._sigcont_application(*arguments)


class Viewed(Message):
    """The thread has a new view."""

    def __init__(self, view: LiveView) -> None:
        super().__init__()
        self.view = view


class Ended(Message):
    """The thread is over: with the last view, or with an error."""

    def __init__(self, view: LiveView | None, error: BaseException | None) -> None:
        super().__init__()
        self.view, self.error = view, error


class Said(Message):
    """Something is to be shown in the line below the table."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.text = text


class Help(ModalScreen[None]):
    """What the columns and keys mean."""

    BINDINGS: ClassVar[list[BindingType]] = [("escape,question_mark,q,enter", "dismiss", "Close")]

    def compose(self) -> ComposeResult:
        """Make its one text."""
        with VerticalScroll():
            yield Static(Text(render.HELP), markup=False)


class Close(Screen[None]):
    """One device, looked at closely."""

    BINDINGS: ClassVar[list[BindingType]] = [
        ("escape,enter", "dismiss", "Back"),
        Binding("question_mark", "app.help", "Help", key_display="?"),
        ("p", "app.hold", "Pause"),
        ("q", "app.quit", "Quit"),
    ]

    def __init__(self, key: Key, view: LiveView, held: bool) -> None:
        super().__init__()
        self._key, self._view, self._held = key, view, held

    def compose(self) -> ComposeResult:
        """Make a text that scrolls."""
        with VerticalScroll():
            yield Static(id="detail", markup=False)
        yield Footer()

    def on_mount(self) -> None:
        """Draw what was chosen."""
        self.show(self._view, self._held)

    def show(self, view: LiveView, held: bool) -> None:
        """Draw the device as of this view."""
        self._view, self._held = view, held
        make = view.details.get(self._key)
        width = self.app.size.width - 2
        text = render.detail(make(), width, view.end_at) if make else Text("this device is not known any more")
        if held:
            text = Text.assemble(("PAUSED", "reverse"), "\n", text)
        for detail in self.query(Static).filter("#detail"):  # not there before it is mounted
            detail.update(text)

    def on_resize(self) -> None:
        """Draw it as wide as there is room."""
        self.show(self._view, self._held)


class LiveApp(App[None]):
    """The table of devices."""

    ENABLE_COMMAND_PALETTE = False
    CSS = """
    #head { height: 1; background: $primary-background; }
    #head, #said { text-wrap: nowrap; text-overflow: ellipsis; }
    #nothing { height: 1fr; padding: 1; display: none; }
    DataTable { height: 1fr; scrollbar-size-vertical: 1; overflow-x: hidden; }
    #said { height: 1; color: $text-muted; }
    #ask { display: none; border: none; height: 1; padding: 0; }
    Help { align: center middle; }
    Help VerticalScroll { width: 76; height: 22; border: solid $primary; background: $surface; padding: 0 1; }
    """
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("ctrl+c", "quit", show=False, priority=True),
        Binding("question_mark", "help", "Help", key_display="?"),
        Binding("slash", "filter", "Filter", key_display="/"),
        Binding("less_than_sign", "sort(-1)", "Sort", key_display="<"),
        Binding("greater_than_sign", "sort(1)", "Sort", key_display=">"),
        Binding("r", "reverse", "Reverse"),
        Binding("p", "hold", "Pause"),
        Binding("s", "save", "Save"),
        Binding("q", "quit", "Quit"),
        Binding("escape", "unask", show=False),
    ]

    def __init__(
        self,
        watch: Watch,
        window_ns: int,
        *,
        name: str = "",
        stopped: Callable[[], bool] = lambda: False,
        refresh: float = REFRESH_SECONDS,
    ) -> None:
        """Show what `watch` sees.

        Args:
            watch: the source and the model; a thread of this app drives them, and ends them.
            window_ns: that of the model.
            name: what is watched, in a word.
            stopped: whether a signal wants the end.
            refresh: seconds between two pictures.
        """
        super().__init__(driver_class=_Driver)
        self.animation_level = "none"
        self.last: LiveView | None = None
        """The last view, once the app has ended."""
        self.error: BaseException | None = None
        """What ended it, if nobody asked."""
        self._watch = watch
        self._window_ns = window_ns
        self._name = printable(name, 40)
        self._stopped = stopped
        self._refresh = refresh
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._run_watch, name="watch")
        self._view: LiveView | None = None
        """The view on the screen …"""
        self._latest: LiveView | None = None
        """… and the latest one: another while the picture is held."""
        self._held = False
        self._by, self._descending = render.RATE, True
        self._words = ""
        self._asking = ""
        self._drawn: tuple[object, ...] = ()
        self._keys: list[Key] = []

    def compose(self) -> ComposeResult:
        """Make the table, and a line above and below it."""
        yield Static(id="head", markup=False)
        yield DataTable(cursor_type="row", cell_padding=0, zebra_stripes=False)
        yield Static(id="nothing", markup=False)
        yield Static("Enter looks closely at a device; ? explains", id="said", markup=False)
        yield Input(id="ask")
        yield Footer()

    def on_mount(self) -> None:
        """Begin to take events."""
        self._thread.start()
        self.set_interval(_LOOK_SECONDS, self._look)

    # ---- the thread

    def _run_watch(self) -> None:
        view, error = None, None
        try:
            view = self._watch.run(
                self._end.is_set, self._end.wait, lambda seen: self._tell(Viewed(seen)), self._refresh
            )
        except BaseException as found:
            error = found
        self._tell(Ended(view, error))

    def _tell(self, message: Message) -> None:
        with suppress(RuntimeError):  # the app has ended, and its loop is closed
            self.post_message(message)

    def join(self) -> None:
        """End the thread, if the app could not."""
        self._end.set()
        if self._thread.ident is not None:
            self._thread.join()

    def _look(self) -> None:
        if self._stopped() and not self._end.is_set():
            self.run_worker(self.action_quit())

    # ---- what comes

    @on(Viewed)
    def _on_viewed(self, message: Viewed) -> None:
        self._latest = message.view
        if not self._held:
            self._show()

    @on(Ended)
    def _on_ended(self, message: Ended) -> None:
        self.last, self.error = message.view, message.error
        self.exit()

    @on(Said)
    def _on_said(self, message: Said) -> None:
        self.query_one("#said", Static).update(Text(printable(message.text, 400)))

    def say(self, text: str) -> None:
        """Show a sentence; from any thread."""
        self._tell(Said(text))

    # ---- drawing

    def _show(self) -> None:
        self._view = self._latest
        self._draw()

    def _main(self) -> Screen[object]:
        return self.screen_stack[0]

    def _draw(self) -> None:
        view = self._view
        if view is None or not (self.screen_stack and self._main().query("#head")):
            return  # There is nothing to draw yet, or nothing to draw on any more.
        for screen in self.screen_stack:
            if isinstance(screen, Close):
                screen.show(view, self._held)
        self._draw_head(view)
        devices = [
            one for one in render.sort(view.devices, self._by, self._descending) if render.matches(one, self._words)
        ]
        table, nothing = self._main().query_one(DataTable), self._main().query_one("#nothing", Static)
        table.display, nothing.display = bool(devices), not devices
        if devices:
            self._fill(table, devices)
        elif view.devices:
            nothing.update(Text(f"no device has all of these words: {printable(self._words, 60)}; / changes them"))
        else:
            nothing.update(Text(render.nothing(view)))

    def _draw_head(self, view: LiveView) -> None:
        head = Text("intxtrace live · ")
        if self._held:
            head.append("PAUSED", style="reverse")
            head.append(" · ")
        if self._watch.source.ended:
            head.append("the trace ended", style="bold")
            head.append(" · ")
        if self._words:
            head.append(f"/{printable(self._words, 30)} · ", style="yellow")
        head.append_text(render.totals(view, self._window_ns))
        head.append(f" · {self._name}" if self._name else "")
        self._main().query_one("#head", Static).update(head)

    def _fill(self, table: DataTable[Text], devices: list[LiveDevice]) -> None:
        wide = render.widths(self.size.width, tuple(devices))
        drawn = (wide, self._by, self._descending)
        keys = [one.key for one in devices]
        rows = [render.cells(one, wide) for one in devices]
        if drawn == self._drawn and keys == self._keys:
            for index, row in enumerate(rows):
                for column, cell in enumerate(row):
                    if table.get_cell_at((index, column)) != cell:  # type: ignore[arg-type]
                        table.update_cell_at((index, column), cell)  # type: ignore[arg-type]
            return
        chosen = self._chosen(table)
        table.clear(columns=True)
        for title, width in zip(render.titles(wide, self._by, self._descending), wide, strict=True):
            table.add_column(title, width=width)
        for row in rows:
            table.add_row(*row)
        if chosen in keys:
            table.move_cursor(row=keys.index(chosen), animate=False)
        self._drawn, self._keys = drawn, keys

    def _chosen(self, table: DataTable[Text]) -> Key | None:
        return self._keys[table.cursor_row] if 0 <= table.cursor_row < len(self._keys) else None

    def on_resize(self, _: Resize) -> None:
        """Draw the table as wide as there is room."""
        self._draw()

    # ---- keys

    async def action_quit(self) -> None:
        """End the watch; asked again, leave without waiting for the last view."""
        if self._end.is_set():
            self.exit(return_code=INTERRUPTED)
        self._end.set()

    def check_action(self, action: str, parameters: tuple[object, ...]) -> bool | None:
        """Keys of the table do nothing on another screen."""
        return action not in ("filter", "sort", "reverse", "save") or len(self.screen_stack) == 1

    def action_help(self) -> None:
        """Say what the columns and keys mean."""
        self.push_screen(Help())

    def action_hold(self) -> None:
        """Hold the picture, or let it go on."""
        self._held = not self._held
        self._draw() if self._held else self._show()

    def action_sort(self, step: int) -> None:
        """Sort by the next column."""
        self._sort((self._by + step) % len(render.COLUMNS))

    def action_reverse(self) -> None:
        """Turn the order round."""
        self._descending = not self._descending
        self._draw()

    def _sort(self, by: int) -> None:
        if by == self._by:
            self._descending = not self._descending
        else:
            self._by, self._descending = by, render.COLUMNS[by].descending
        self._draw()

    @on(DataTable.HeaderSelected)
    def _on_title(self, event: DataTable.HeaderSelected) -> None:
        self._sort(event.column_index)

    @on(DataTable.RowSelected)
    def _on_row(self, event: DataTable.RowSelected) -> None:
        key = self._chosen(event.data_table)
        if key is not None and self._view is not None:
            self.push_screen(Close(key, self._view, self._held))

    # ---- asking

    def _ask(self, what: str, prompt: str, value: str) -> None:
        self._asking = what
        asked = self._main().query_one(Input)
        asked.value, asked.display = value, True
        asked.focus()
        self.say(f"{prompt}; Escape leaves it as it is")

    def action_filter(self) -> None:
        """Ask for words."""
        self._ask("filter", "words that a row must have (address, VM, state, path)", self._words)

    def action_save(self) -> None:
        """Ask for a file."""
        self._ask("save", "trace file to save what was seen to", time.strftime("intxtrace-%Y%m%d-%H%M%S.intx"))

    def action_unask(self) -> None:
        """Ask no more."""
        asked = self._main().query_one(Input)
        asked.display = False
        self.say("")
        self._main().query_one(DataTable).focus()

    @on(Input.Submitted)
    def _on_answer(self, event: Input.Submitted) -> None:
        self.action_unask()
        if self._asking == "filter":
            self._words = event.value.strip()
            self._draw()
        elif event.value.strip():
            path = Path(event.value.strip()).expanduser()
            self.say(f"saving to {path} …")
            self.run_worker(lambda: self._save(path), thread=True)

    def _save(self, path: Path) -> None:
        try:
            saved = self._watch.save(path)
        except IntxtraceError as error:
            self.say(str(error).replace(", or overwrite it with --force", ""))
            return
        older = f"; {saved.dropped:,} older ones were not kept (--keep)" if saved.dropped else ""
        self.say(f"saved {plural(saved.events, 'event')} to {saved.path}{older}")
