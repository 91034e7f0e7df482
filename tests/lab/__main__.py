"""`python -m tests.lab`: see the package's docstring."""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from pathlib import Path

from tests.lab.host import run_host
from tests.lab.packages import KERNELS, LabError

BEGUN = time.monotonic()


def progress(text: str) -> None:
    """Print lines with the seconds since the start before each."""
    for line in text.splitlines():
        print(f"[{time.monotonic() - BEGUN:6.1f}] {line}", flush=True)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.lab")
    commands = parser.add_subparsers(dest="command", required=True)
    script = commands.add_parser("shell-script", help="boot L1 and run a script in it")
    script.add_argument("file", type=Path)
    script.add_argument("--kernel", choices=KERNELS, default="6.1")
    script.add_argument("--share", type=Path, help="the folder that is $SHARE in L1 (default: one that is deleted)")
    script.add_argument("--timeout", type=float, default=600.0)
    arguments = parser.parse_args()
    try:
        with tempfile.TemporaryDirectory(prefix="intxtrace-lab-") as temporary:
            result = run_host(
                arguments.file,
                arguments.share or Path(temporary),
                arguments.kernel,
                arguments.timeout,
                on_output=progress,
            )
        progress(f"exit status {result.status}; L1 booted in {result.boot_seconds:.1f} s")
        return result.status
    except LabError as error:
        print(error, file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main())
