"""What is damaged and read, each case by its number, so that one that fails can be run again alone."""

from __future__ import annotations

import random
import tempfile
import traceback
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path

from intxtrace.analysis import Analysis
from intxtrace.api import open_trace
from intxtrace.errors import IntxtraceError
from intxtrace.render.json import summary
from tests.fuzz import recordings
from tests.fuzz.damage import bounded, damage
from tests.reference.test_reference import TRACES as SEEDS
from tests.reference.test_reference import check

TRACES = sorted((Path(__file__).parents[1] / "traces").glob("*.intx"))


@dataclass(frozen=True)
class Job:
    """Something to read, and how."""

    case: Callable[[random.Random, int], object]
    """Damages as the dice say (or makes the case of that number) and reads; raises what should not be."""
    share: float = 1.0
    """Of the cases that are asked for, how many it gets."""


@dataclass
class Tally:
    """What came of some cases."""

    results: int = 0
    nothing: int = 0
    """Readable, but without events."""
    sentences: int = 0
    failures: list[str] = field(default_factory=list)
    """Tracebacks, each with the case that it is of."""

    def __iadd__(self, other: Tally) -> Tally:
        self.results += other.results
        self.nothing += other.nothing
        self.sentences += other.sentences
        self.failures += other.failures
        return self


def _recording(name: str) -> Callable[[random.Random, int], object]:
    return lambda dice, _: recordings.read(damage(recordings.whole(name), dice))


def _binary(name: str) -> Callable[[random.Random, int], object]:
    def case(dice: random.Random, _: int) -> object:
        data = recordings.binary(name)
        begin = dice.choice([0, dice.randrange(len(data))])  # The header every other time: all else depends on it.
        end = begin + dice.choice([64, 512, 4096])
        some = damage(data[begin:end], dice)
        if dice.random() < 0.8:  # What follows keeps its place.
            some = some[: len(data[begin:end])].ljust(len(data[begin:end]), b"\0")
        return recordings.read_file(data[:begin] + some + data[end:])

    return case


def _merged(dice: random.Random, _: int) -> object:
    datas = list(recordings.both())
    for place in dice.choice([(0,), (1,), (0, 1)]):
        datas[place] = damage(datas[place], dice)
    return recordings.merge(datas)


def _trace(path: Path) -> Callable[[random.Random, int], object]:
    whole = path.read_bytes()

    def case(dice: random.Random, _: int) -> object:
        with tempfile.NamedTemporaryFile(suffix=".intx") as file:
            file.write(damage(whole, dice))
            file.flush()
            trace = open_trace(file.name)
            analysis = Analysis(trace.metadata, trace.tables)
            for result in trace.iter_results():
                analysis.add(result.interrupts, result.states, result.counters)
            found = summary(analysis.finish(trace.first_at, trace.last_at))
        assert found
        return found

    return case


def _reconstructed(_: random.Random, number: int) -> object:
    """Compare the fast reconstructor with the reference, on other traces than those of `make test`."""
    found = check(SEEDS + number)
    assert not found, found
    return True


SLOW = 0.2
"""Traces and reconstructors take ten times as long as a text."""

PROGRAM = 0.02
"""Programs that are started take longer still."""

JOBS = {
    **{
        name: Job(_recording(name), share=0.5 if name in recordings.VARIANTS else 1.0) for name in recordings.RECORDINGS
    },
    **{name: Job(_binary(name), share=PROGRAM) for name in recordings.BINARY},
    "merged": Job(_merged),
    **{f"trace {path.stem}": Job(_trace(path), share=SLOW / len(TRACES)) for path in TRACES},
    "reconstruct": Job(_reconstructed, share=SLOW),
}


def run(name: str, numbers: Iterable[int]) -> Tally:
    """Run cases of a job."""
    tally = Tally()
    for number in numbers:
        try:
            with bounded():
                found = JOBS[name].case(random.Random(f"{name} {number}"), number)
            tally.results += bool(found)
            tally.nothing += not found
        except IntxtraceError as error:
            tally.sentences += 1
            if "\n" in str(error):
                tally.failures.append(f"{name!r} {number}: {str(error)!r} is no sentence")
        except KeyboardInterrupt:
            raise
        except BaseException:
            tally.failures.append(f"{name!r} {number}: {traceback.format_exc()}")
    return tally
