"""A real pseudo-terminal with a command in it."""

from __future__ import annotations

import contextlib
import fcntl
import os
import pty
import select
import signal
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any, Self

_FULL, _LEFT = b"\x1b[?1049h", b"\x1b[?1049l"
_CURSOR_SHOWN, _CURSOR_HIDDEN = b"\x1b[?25h", b"\x1b[?25l"
_MOUSE, _NO_MOUSE = b"\x1b[?1000h", b"\x1b[?1000l"


def _begin() -> None:
    fcntl.ioctl(0, termios.TIOCSCTTY, 0)
    signal.signal(signal.SIGHUP, signal.SIG_DFL)  # nohup may run the tests


class Terminal:
    """Runs a program, Python by default, with these arguments on a terminal of its own; its standard output goes to
    a pipe.

    Use as a context manager: leaving it kills what still runs.
    """

    def __init__(
        self,
        *arguments: str,
        program: str = sys.executable,
        rows: int = 24,
        columns: int = 80,
        folder: Path | None = None,
        variables: dict[str, str] | None = None,
    ) -> None:
        self._master, self._slave = pty.openpty()
        fcntl.ioctl(self._slave, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))
        self._before = self.settings()
        environment = {**os.environ, "TERM": "xterm-256color", **(variables or {})}
        for name in ("COLUMNS", "LINES", "NO_COLOR"):
            environment.pop(name, None)
        self.process = subprocess.Popen(
            [program, *arguments],
            cwd=folder,
            stdin=self._slave,
            stdout=subprocess.PIPE,
            stderr=self._slave,
            start_new_session=True,
            env=environment,
            preexec_fn=_begin,
        )
        self.drawn = b""
        """All that was written to the terminal."""

    def settings(self) -> list[Any]:
        return termios.tcgetattr(self._slave)

    @property
    def as_before(self) -> bool:
        """Whether the terminal's settings are those of the beginning."""
        return self.settings() == self._before

    @property
    def threads(self) -> int:
        """How many threads the program has now."""
        return len(list(Path(f"/proc/{self.process.pid}/task").iterdir()))

    @property
    def state(self) -> str:
        """The program's state as proc(5) has it: T where it is stopped."""
        return Path(f"/proc/{self.process.pid}/stat").read_text().rpartition(")")[2].split()[0]

    @property
    def left_clean(self) -> bool:
        """Whether there was a full screen, and all that it changed was put back."""
        pairs = ((_FULL, _LEFT), (_CURSOR_HIDDEN, _CURSOR_SHOWN), (_MOUSE, _NO_MOUSE))
        return self.as_before and all(-1 < self.drawn.rfind(on) < self.drawn.rfind(off) for on, off in pairs)

    def read(self, seconds: float = 0.05) -> None:
        """Take what is drawn meanwhile."""
        until = time.monotonic() + seconds
        while (left := until - time.monotonic()) > 0:
            if select.select([self._master], [], [], left)[0]:
                self.drawn += os.read(self._master, 1 << 16)

    def until(self, seen: Callable[[], bool], seconds: float = 60) -> None:
        end = time.monotonic() + seconds
        while not seen():
            if time.monotonic() > end:
                raise AssertionError(f"never seen; drawn: {self.drawn[-3000:]!r}")
            self.read()

    def shows(self, text: str) -> None:
        """Wait until a text was drawn."""
        self.until(lambda: text.encode() in self.drawn)

    def press(self, keys: bytes) -> None:
        os.write(self._master, keys)

    def hang_up(self) -> None:
        """Take the terminal away, as a connection that breaks does."""
        os.close(self._master)
        self._master = -1

    def send(self, number: signal.Signals) -> None:
        self.process.send_signal(number)

    def end(self, seconds: float = 60) -> tuple[int, bytes]:
        """Wait for the end; return status and standard output (short: what a pipe holds)."""
        self.until(lambda: self.process.poll() is not None, seconds)
        self.read()
        assert self.process.stdout is not None
        return self.process.returncode, self.process.stdout.read()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with contextlib.suppress(ProcessLookupError):
            self.process.kill()
        self.process.wait()
        if self.process.stdout is not None:
            self.process.stdout.close()
        if self._master >= 0:
            os.close(self._master)
        os.close(self._slave)
