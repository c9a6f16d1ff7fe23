"""A small chart of a rate over time, in the characters of a terminal."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from datetime import UTC, datetime, timedelta

__all__ = ["rate_chart"]

# Rows of the chart: enough to tell a half from a third, and the whole of stats fits a small
# terminal's 24 lines.
HEIGHT = 6

# Eighths of a row; where the terminal's encoding has no such characters, whole rows.
_EIGHTHS = " ▁▂▃▄▅▆▇█"
_ASCII = " #"

# Columns, at most: wider ones only repeat what narrower ones show.
_MOST_COLUMNS = 120


_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
# The seconds that have a date, years 1 to 9999; a column may reach beyond its records.
_FIRST, _LAST = -62_135_596_800, 253_402_300_799


def rate_chart(
    spans: Mapping[int, int], span_seconds: int, width: int, blocks: bool
) -> tuple[list[str], int]:
    """
    The lines of a chart, and how many seconds a column stands for.

    @param spans: how many records each span has, by its number since 1970; not empty.
    @param width: columns of the terminal.
    @param blocks: whether its encoding has block characters.
    """
    begin, end = min(spans) * span_seconds, max(spans) * span_seconds
    for seconds in _column_seconds():
        columns = end // seconds - begin // seconds + 1
        if columns > _MOST_COLUMNS:
            continue
        first = begin // seconds
        sums = [0] * columns
        for span, records in spans.items():
            sums[span * span_seconds // seconds - first] += records
        rates = [records / seconds for records in sums]
        labels = len(_rate(max(rates)))
        # Two columns always fit; around 1970 no span of time makes one of them.
        if columns <= max(2, width - labels - 2):
            break
    top = max(rates)
    lines = []
    characters = _EIGHTHS if blocks else _ASCII
    for row in range(HEIGHT, 0, -1):
        label = _rate(top) if row == HEIGHT else "0" if row == 1 else ""
        bars = "".join(_piece(rate, top, row, characters) for rate in rates)
        lines.append(f"{label:>{labels}} {'┤' if blocks else '|'}{bars}".rstrip())
    axis = _axis(first * seconds, (first + columns) * seconds, columns)
    lines.append(" " * (labels + 2) + axis)
    return lines, seconds


def _column_seconds() -> Iterator[int]:
    """What a column may stand for: spans of time that a person counts in, and then any."""
    for unit, counts in ((1, (1, 2, 5, 10, 15, 30)), (60, (1, 2, 5, 10, 15, 30))):
        yield from (unit * count for count in counts)
    yield from (3600 * count for count in (1, 2, 3, 6, 12))
    days = 1
    while True:
        yield 86400 * days
        days *= 2


def _piece(rate: float, top: float, row: int, characters: str) -> str:
    """What a column shows in a row: a rate above 0 shows at least something."""
    full = len(characters) - 1
    height = max(1, round(rate / top * HEIGHT * full)) if rate else 0
    return characters[max(0, min(full, height - (row - 1) * full))]


def _rate(rate: float) -> str:
    return f"{rate:,.0f}" if rate >= 10 else f"{rate:.2g}"


def _axis(begin: int, end: int, columns: int) -> str:
    """The first and the last moment, the date only where it is needed."""
    first, last = (_EPOCH + timedelta(seconds=min(max(t, _FIRST), _LAST)) for t in (begin, end))
    left = first.strftime("%Y-%m-%d %H:%M:%S")
    right = last.strftime("%H:%M:%S" if first.date() == last.date() else "%Y-%m-%d %H:%M:%S")
    return left + right.rjust(columns - len(left)) if columns > len(left + right) else left
