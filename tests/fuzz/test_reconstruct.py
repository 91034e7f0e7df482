"""More random traces on which the fast reconstructor must equal the reference; `make fuzz` takes many more."""

from __future__ import annotations

from tests.fuzz.jobs import run


def test_fast_equals_reference_on_other_traces() -> None:
    assert run("reconstruct", range(20)).failures == []
