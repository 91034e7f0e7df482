"""`python -m tests.benchmarks`: every benchmark, one after the other, each in a process of its own."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from tests.packages import native_headers


def main() -> int:
    environment = dict(os.environ)
    if "BCC_KERNEL_SOURCE" not in environment and (headers := native_headers()):
        environment["BCC_KERNEL_SOURCE"] = str(headers)
    failed = 0
    for path in sorted(Path(__file__).parent.glob("bench_*.py")):
        print(f"--- {path.stem}", flush=True)
        failed += (
            subprocess.run([sys.executable, "-m", f"tests.benchmarks.{path.stem}"], env=environment).returncode != 0
        )
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
