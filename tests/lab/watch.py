"""L1: `intxtrace live` on a real terminal of 80 by 24, as a recorder: SIGINT presses q.

In the folder afterwards: `live.intx`, which it saved; `shown.json`, what it printed of what it had shown; `screen`,
all that it drew.
"""

from __future__ import annotations

import signal
import sys
from pathlib import Path

from tests.terminal import Terminal

FULL_SCREEN = b"\x1b[?1049h"
START_SECONDS, END_SECONDS = 180, 90


def watch(out: Path) -> int:
    ending: list[int] = []
    signal.signal(signal.SIGINT, lambda number, _frame: ending.append(number))
    with Terminal("-m", "intxtrace", "live", "--json", "-o", str(out / "live.intx")) as terminal:
        terminal.until(lambda: FULL_SCREEN in terminal.drawn, START_SECONDS)
        print("watching", flush=True)
        while not ending and terminal.process.poll() is None:
            terminal.read(0.2)
        if terminal.process.poll() is None:
            terminal.press(b"q")
        status, printed = terminal.end(END_SECONDS)
        (out / "screen").write_bytes(terminal.drawn)
        (out / "shown.json").write_bytes(printed)
        if not terminal.left_clean:
            print("the terminal was not left as it was found", file=sys.stderr)
            return 1
    return status


if __name__ == "__main__":
    sys.exit(watch(Path(sys.argv[1])))
