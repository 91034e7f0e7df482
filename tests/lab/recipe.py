"""L1: `intxtrace recipe KIND` made on this host and run as its first lines say; SIGINT ends it.

In the folder afterwards: `recipe.sh`, what it wrote, and `left`: what of its probes is there still, which is nothing.
"""

from __future__ import annotations

import shutil
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

from intxtrace.recipes.probes import GROUPS

TRACEFS = Path("/sys/kernel/tracing")
WORK = Path("/tmp")
TEXT = "trace.txt"


def record(kind: str, qemu: Path, out: Path) -> int:
    made = subprocess.run(
        [sys.executable, "-m", "intxtrace", "recipe", kind, "--qemu", str(qemu)], stdout=subprocess.PIPE, check=True
    )
    (out / "recipe.sh").write_bytes(made.stdout)
    before = set(WORK.glob("intxtrace.*"))
    ended = []
    signal.signal(signal.SIGINT, lambda number, _frame: ended.append(number))
    with tempfile.TemporaryDirectory(prefix="intxtrace-recipe-") as work:  # in memory: the share is slow
        process = subprocess.Popen(["bash", str(out / "recipe.sh"), TEXT], cwd=work, stdin=subprocess.DEVNULL)
        while process.poll() is None:
            if ended:
                process.send_signal(ended.pop())
            try:
                process.wait(0.2)
            except subprocess.TimeoutExpired:
                continue
        for path in Path(work).iterdir():
            shutil.move(path, out / path.name)
    # Recorders that began later have ended already (scenario.play), so what is new is this one's.
    left = [str(path) for path in set(WORK.glob("intxtrace.*")) - before]
    (out / "left").write_text("\n".join([*left, *left_behind(kind)]))
    return process.returncode


def left_behind(kind: str) -> list[str]:
    """What of a recipe's probes is on this host."""
    group = GROUPS.get(kind)
    left = []
    if group is not None:
        left += [str(path) for path in (TRACEFS / "events").iterdir() if path.name in (group, f"{group}qemu0")]
    if kind == "tracefs":
        left += [str(path) for path in (TRACEFS / "instances").iterdir()]
    return left


if __name__ == "__main__":
    sys.exit(record(sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3])))
