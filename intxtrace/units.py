"""Numbers in words, the same in the terminal, on the page and in verdicts."""

from __future__ import annotations

UNKNOWN = "–"
"""Stands for a value that is not known."""

_NS_UNITS = ((1_000_000_000, "s"), (1_000_000, "ms"), (1_000, "µs"), (1, "ns"))


def duration(ns: float | None) -> str:
    """Write a duration in ns with three significant digits: `1.90 ms`, `43.2 µs`, `2 h 05 min`."""
    if ns is None:
        return UNKNOWN
    if ns >= 3_600_000_000_000:
        minutes = round(ns / 60e9)
        return f"{minutes // 60:,} h {minutes % 60:02} min"
    if ns >= 60_000_000_000:
        seconds = round(ns / 1e9)
        return f"{seconds // 60} min {seconds % 60:02} s"
    for scale, unit in _NS_UNITS:
        # 999.6 µs is 1.00 ms, not 1000 µs.
        if ns >= scale * 0.9995:
            return f"{_three_digits(ns / scale)} {unit}" if scale > 1 else f"{ns:.0f} ns"
    return f"{ns:.0f} ns" if ns == round(ns) else f"{ns:.1f} ns"


def _three_digits(value: float) -> str:
    if value >= 99.95:
        return f"{value:.0f}"
    return f"{value:.1f}" if value >= 9.995 else f"{value:.2f}"


def count(value: int | None) -> str:
    """Write a count with thousands separated: `41,210`."""
    return UNKNOWN if value is None else f"{value:,}"


def short_count(value: int | None) -> str:
    """Write a count in at most six characters where 100,000 and more need not be exact: `41,210`, `1.23 M`."""
    if value is None or value < 100_000:
        return count(value)
    for scale, unit in ((1_000_000_000_000, "T"), (1_000_000_000, "G"), (1_000_000, "M"), (1_000, "k")):
        if value >= scale * 0.9995:
            return f"{_three_digits(value / scale)} {unit}"
    raise AssertionError(value)


def rate(per_second: float | None) -> str:
    """Write a rate: `1,234/s`, `0.52/s`."""
    if per_second is None:
        return UNKNOWN
    return f"{per_second:,.0f}/s" if per_second >= 100 else f"{per_second:.3g}/s"


def share(part: int, whole: int) -> str:
    """Write a share in percent; only nothing is 0 %, and only all is 100 %."""
    if whole == 0:
        return UNKNOWN
    percent = 100 * part / whole
    if part == 0 or part == whole:
        return f"{percent:.0f} %"
    return f"{min(max(percent, 0.1), 99.9):.1f} %"


def plural(number: int, one: str, many: str | None = None) -> str:
    """Write a count with its noun: `1 burst`, `2,000 bursts`."""
    return f"{number:,} {one if number == 1 else many or one + 's'}"


def printable(text: str, most: int = 200) -> str:
    """Make text from a guest or a trace safe to show: control and direction characters as escapes, cut at `most`."""
    shown = "".join(char if char.isprintable() else char.encode("unicode_escape").decode() for char in text[: most + 1])
    return shown if len(shown) <= most else shown[: most - 1] + "…"
