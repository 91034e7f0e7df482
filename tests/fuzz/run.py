"""Damages and reads as much as is asked for, with all processors.

`python -m tests.fuzz.run [CASES [NAME ...]]`: of each job, or of those named, so many cases (`jobs.Job.share` of them).
`python -m tests.fuzz.run only NAME NUMBER`: one case again.

Exit status 1 if anything gave neither a result nor a sentence, or took more than `damage.bounded` allows.
"""

from __future__ import annotations

import faulthandler
import os
import sys
import time
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, field
from multiprocessing import get_context

from tests.fuzz.jobs import JOBS, Tally, run
from tests.fuzz.recordings import SMALL

CASES = 100_000
PART = 250
"""Cases that a process runs before it tells."""
PATIENCE = 600
"""Seconds that they may take: what compiled code holds up, only the end of its process ends."""


@dataclass
class Progress:
    """What is known of one job."""

    left: int
    seconds: float = 0.0
    tally: Tally = field(default_factory=Tally)


def prepare() -> None:
    """Begin a process."""
    for module, name, size in SMALL:
        setattr(module, name, size)


def part(name: str, numbers: range) -> tuple[Tally, float]:
    """Run some cases; return how long they took too."""
    faulthandler.dump_traceback_later(PATIENCE, exit=True)
    begin = time.monotonic()
    tally = run(name, numbers)
    faulthandler.cancel_dump_traceback_later()
    return tally, time.monotonic() - begin


def fuzz(cases: int, names: list[str]) -> int:
    """Run cases of jobs, and print what came of them."""
    progress = {name: Progress(max(1, round(cases * JOBS[name].share))) for name in names}
    begin = time.monotonic()
    with ProcessPoolExecutor(os.cpu_count(), get_context("spawn"), prepare) as pool:
        parts: dict[Future[tuple[Tally, float]], tuple[str, range]] = {}
        for name, job in progress.items():
            for first in range(0, job.left, PART):
                numbers = range(first, min(first + PART, job.left))
                parts[pool.submit(part, name, numbers)] = name, numbers
        for future in as_completed([*parts]):
            name, numbers = parts[future]
            job = progress[name]
            try:
                tally, seconds = future.result()
            except BrokenProcessPool:
                begun = ", ".join(f"{name!r} {at.start} to {at.stop - 1}" for name, at in parts.values())[:400]
                print(f"a process ended in the midst of its cases; first of those not done: {begun}")
                return 1
            for failure in tally.failures:
                print(failure, flush=True)
            job.tally += tally
            job.seconds += seconds
            job.left -= len(numbers)
            del parts[future]
            if not job.left:
                tell(name, job, time.monotonic() - begin)
    return 1 if any(job.tally.failures for job in progress.values()) else 0


def tell(name: str, job: Progress, elapsed: float) -> None:
    """Print what came of a job."""
    tally = job.tally
    cases = tally.results + tally.nothing + tally.sentences + len(tally.failures)
    print(
        f"{elapsed:6.0f} s  {name}: {cases:,} cases, {1000 * job.seconds / cases:.2f} ms each: "
        f"{tally.results:,} results, {tally.nothing:,} empty, {tally.sentences:,} sentences, "
        f"{len(tally.failures):,} failures",
        flush=True,
    )


def main(arguments: list[str]) -> int:
    """Do what is asked for."""
    if arguments[:1] == ["only"]:
        prepare()
        tally = run(arguments[1], range(int(arguments[2]), int(arguments[2]) + 1))
        print("\n".join(tally.failures) or tally)
        return 1 if tally.failures else 0
    return fuzz(int(arguments[0]) if arguments else CASES, arguments[1:] or list(JOBS))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
