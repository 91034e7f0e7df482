"""The fast reconstructor equals the reference on random traces, however they are cut.

`make test` takes a thousand of them, `make fuzz` many more (`tests.fuzz.jobs`).
"""

from __future__ import annotations

import random
from collections import Counter

import pytest

from tests.random_traces import make
from tests.reference.compare import difference, of_fast, of_reference
from tests.reference.reconstructor import Reference

TRACES = 1000
PART = 100


def check(seed: int) -> str:
    """Return where the reconstructors differ on the trace of a seed, or where cutting it changes something."""
    case = make(seed)
    expected = of_reference(case.records, case.tables)
    dice = random.Random(~seed)
    cuts = tuple(dice.randrange(len(case.records) + 1) for _ in range(dice.randrange(1, 6)))
    in_order = case.records[case.records["ts"].argsort(kind="stable")]
    found = difference(expected, of_fast(case.records, case.tables))
    if not found:
        found = difference(expected, of_fast(in_order, case.tables, cuts))
        found = found and f"cut at {cuts}: {found}"
    return found and f"seed {seed}: {found}"


@pytest.mark.parametrize("first", range(0, TRACES, PART))
def test_fast_equals_reference(first: int) -> None:
    assert [found for seed in range(first, first + PART) if (found := check(seed))] == []


def test_compiled_equals_reference() -> None:
    for seed in range(50):
        case = make(seed)
        expected = of_reference(case.records, case.tables)
        assert not difference(expected, of_fast(case.records, case.tables, compile_from=0)), seed


def test_clean_traces_give_what_truly_happened() -> None:
    """Where nothing is lost or missing, the claimed, refused and kicked interrupts are those of the world."""
    paths: Counter[str] = Counter()
    for seed in range(300):
        case = make(seed, clean=True)
        rows = Reference(case.records, case.tables).interrupts
        truth = Counter((device, origin, raised) for device, origin, raised, _ in case.truth if origin == "hardware")
        assert truth == Counter(
            (row["device"], row["origin"], row["raised_at"]) for row in rows if row["origin"] == "hardware"
        ), seed
        paths.update(row["path"] for row in rows)
        for origin, words in (("unmask", ("resignal", "pending")), ("software", ("software",))):
            true = Counter(device for device, its, *_ in case.truth if its == origin)
            assert true == Counter(row["device"] for row in rows if row["origin"] in words), (seed, origin)
        assert not [row for row in rows if row["outcome"] in ("lossy", "headless")], seed
    assert set(paths) >= {"kernel", "hybrid", "userspace"}
