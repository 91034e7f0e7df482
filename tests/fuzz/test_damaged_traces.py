"""Whatever happens to the bytes of a trace: a result or a sentence, never a traceback.

`make test` damages a few hundred copies; `make fuzz` a hundred thousand, others.
"""

from __future__ import annotations

import pytest

from tests.fuzz.jobs import TRACES, run

CASES = 300


@pytest.mark.parametrize("name", [path.stem for path in TRACES])
def test_a_damaged_trace_gives_a_result_or_a_sentence(name: str) -> None:
    tally = run(f"trace {name}", range(CASES // len(TRACES)))
    assert tally.failures == []
    assert tally.results
    assert tally.sentences
