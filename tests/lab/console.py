"""A guest's serial port, which is its QEMU's standard input and output: "@@" lines are for L1."""

from __future__ import annotations

import os
import re
import select
import subprocess
import time
from typing import Any

from tests.lab.packages import LabError

POWEROFF_SECONDS = 60.0


class Console:
    """The guest's serial port, over QEMU's standard input and output."""

    def __init__(self, process: subprocess.Popen[bytes], log: Any) -> None:
        assert process.stdin is not None
        assert process.stdout is not None
        self._process, self._log = process, log
        self._stdin, self._stdout = process.stdin, process.stdout
        self.text = ""

    def _read(self, seconds: float) -> bool:
        """Read what comes within `seconds`; False when the port is closed."""
        if not select.select([self._stdout], [], [], seconds)[0]:
            return True
        data = os.read(self._stdout.fileno(), 65536)
        self._log.write(data)
        self._log.flush()
        self.text += data.decode(errors="replace").replace("\r", "")
        return bool(data)

    def wait(self, marker: str, seconds: float) -> None:
        """Read until a line `marker` came."""
        deadline = time.monotonic() + seconds
        while f"\n{marker}\n" not in f"\n{self.text}":
            if not self._read(0.5):
                status = self._process.wait(POWEROFF_SECONDS)  # 0: reset or shut down, a triple fault included
                raise LabError(f"The guest ended before {marker!r}, QEMU with status {status}. {self._tail()}")
            if time.monotonic() > deadline:
                raise LabError(f"No {marker!r} from the guest in {seconds:.0f} s. {self._tail()}")

    def find(self, pattern: str) -> tuple[str, ...]:
        """The groups of the one line "@@ pattern"."""
        match = re.search(rf"^@@ {pattern}$", self.text, re.M)
        if not match:
            raise LabError(f"The guest did not say {pattern!r}. {self._tail()}")
        return match.groups()

    def _tail(self) -> str:
        return f"Its console:\n{self.text[-2000:]}"

    def write(self, data: bytes) -> None:
        self._stdin.write(data)
        self._stdin.flush()

    def wait_end(self, seconds: float) -> None:
        """Read until QEMU ended."""
        deadline = time.monotonic() + seconds
        while self._read(0.5):
            if time.monotonic() > deadline:
                raise LabError(f"The guest did not power off in {seconds:.0f} s.")
        self._process.wait(max(1.0, deadline - time.monotonic()))
