"""Many more random traces on which the fast reconstructor must equal the reference: `make fuzz`."""

from __future__ import annotations

import os

import pytest

from tests.reference.test_reference import TRACES, check

CASES = int(os.environ.get("INTXTRACE_FUZZ", "0"))


@pytest.mark.timeout(24 * 3600)
def test_fast_equals_reference_on_many_traces() -> None:
    """Other seeds than those of `make test`."""
    assert [found for seed in range(TRACES, TRACES + (CASES or 20)) if (found := check(seed))] == []
