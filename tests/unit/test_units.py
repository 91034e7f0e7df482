"""Numbers in words."""

from __future__ import annotations

import pytest

from intxtrace import units


@pytest.mark.parametrize(
    ("ns", "text"),
    [
        (None, "–"), (0, "0 ns"), (7, "7 ns"), (999, "999 ns"), (1_000, "1.00 µs"), (9_999, "10.0 µs"),
        (43_210, "43.2 µs"), (99_960, "100 µs"), (999_400, "999 µs"), (999_600, "1.00 ms"), (1_900_000, "1.90 ms"),
        (59_990_000_000, "60.0 s"), (125_000_000_000, "2 min 05 s"), (7_500_000_000_000, "2 h 05 min"), (12.5, "12 ns"),
    ],
)  # fmt: skip
def test_duration(ns: float | None, text: str) -> None:
    assert units.duration(ns) == text


def test_share_is_whole_only_of_nothing_and_all() -> None:
    assert [units.share(part, 100_000) for part in (0, 1, 98_700, 99_999, 100_000)] == [
        "0 %", "0.1 %", "98.7 %", "99.9 %", "100 %",
    ]  # fmt: skip
    assert units.share(0, 0) == "–"


def test_short_count() -> None:
    assert [units.short_count(n) for n in (None, 99_999, 100_000, 999_700, 1_234_567)] == [
        "–", "99,999", "100 k", "1.00 M", "1.23 M",
    ]  # fmt: skip


def test_printable_takes_the_teeth_out_of_names() -> None:
    assert units.printable("a\x1b[31mb\n\u202ec") == "a\\x1b[31mb\\n\\u202ec"
    assert units.printable("x" * 300) == "x" * 199 + "…"
    assert len(units.printable("\x00" * 5, 4)) <= 4 * 4
