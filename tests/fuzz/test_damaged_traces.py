"""Whatever happens to the bytes of a trace: a result or a sentence, never a traceback.

`make test` damages a few hundred copies; `make fuzz` sets INTXTRACE_FUZZ to damage many more.
"""

from __future__ import annotations

import os
import random
from pathlib import Path

import pytest

from intxtrace.analysis import Analysis
from intxtrace.api import open_trace
from intxtrace.errors import IntxtraceError
from intxtrace.render.json import summary

CASES = int(os.environ.get("INTXTRACE_FUZZ", "300"))
TRACES = sorted((Path(__file__).parents[1] / "traces").glob("*.intx"))


def damage(data: bytes, dice: random.Random) -> bytes:
    """Flip, overwrite, cut out, repeat or drop some bytes."""
    changed = bytearray(data)
    for _ in range(dice.randint(1, 8)):
        at = dice.randrange(len(changed))
        match dice.randrange(5):
            case 0:
                changed[at] ^= 1 << dice.randrange(8)
            case 1:
                changed[at : at + 8] = dice.choice([b"\xff" * 8, b"\0" * 8, (1 << 40).to_bytes(8, "little")])
            case 2:
                del changed[at : at + dice.randint(1, 64)]
            case 3:
                changed[at:at] = changed[at : at + dice.randint(1, 512)]
            case 4:
                del changed[at:]
        if not changed:
            return bytes(changed)
    return bytes(changed)


@pytest.mark.timeout(24 * 3600)
@pytest.mark.parametrize("path", TRACES, ids=lambda path: path.stem)
def test_a_damaged_trace_gives_a_result_or_a_sentence(path: Path, tmp_path: Path) -> None:
    whole = path.read_bytes()
    dice = random.Random(path.stem)
    results = 0
    sentences: list[str] = []
    for _ in range(CASES // len(TRACES)):
        damaged = tmp_path / "damaged.intx"
        damaged.write_bytes(damage(whole, dice))
        try:
            trace = open_trace(damaged)
            analysis = Analysis(trace.metadata, trace.tables)
            for result in trace.iter_results():
                analysis.add(result.interrupts, result.states, result.counters)
            assert summary(analysis.finish(trace.first_at, trace.last_at))
            results += 1
        except IntxtraceError as error:
            sentences.append(str(error))
    assert results
    assert sentences
    assert not [sentence for sentence in sentences if "\n" in sentence]
