"""A small chart of a rate over time, in the characters of a terminal."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime

__all__ = ["rate_chart"]

# Rows of the chart: enough to tell a half from a third, and the whole of stats fits a small
# terminal's 24 lines.
HEIGHT = 6

# Eighths of a row; where the terminal's encoding has no such characters, whole rows.
_EIGHTHS = " ▁▂▃▄▅▆▇█"
_ASCII = " #"

# Columns, at most: wider ones only repeat what narrower ones show.
_MOST_COLUMNS = 120


def rate_chart(
    spans: Mapping[int, int], span_seconds: int, width: int, blocks: bool
) -> tuple[list[str], int]:
    """
    The lines of a chart, and how many seconds a column stands for.

    @param spans: how many records each span has, by its number since 1970; not empty.
    @param width: columns of the terminal.
    @param blocks: whether its encoding has block characters.
    """
    first, last = min(spans), max(spans)
    per_column = max(1, (last - first) // _MOST_COLUMNS)  # spans
    while True:  # a wider column makes the labels narrower
        columns = last // per_column - first // per_column + 1
        sums: dict[int, int] = {}
        for span, records in spans.items():
            column = span // per_column - first // per_column
            sums[column] = sums.get(column, 0) + records
        seconds = span_seconds * per_column
        rates = [sums.get(column, 0) / seconds for column in range(columns)]
        labels = len(_rate(max(rates)))
        if columns <= max(1, min(width - labels - 2, _MOST_COLUMNS)):
            break
        per_column += 1 + per_column // 16
    top = max(rates)
    lines = []
    characters = _EIGHTHS if blocks else _ASCII
    for row in range(HEIGHT, 0, -1):
        label = _rate(top) if row == HEIGHT else "0" if row == 1 else ""
        bars = "".join(_piece(rate, top, row, characters) for rate in rates)
        lines.append(f"{label:>{labels}} {'┤' if blocks else '|'}{bars}".rstrip())
    begin = first // per_column * seconds
    lines.append(" " * (labels + 2) + _axis(begin, begin + columns * seconds, columns))
    return lines, seconds


def _piece(rate: float, top: float, row: int, characters: str) -> str:
    """What a column shows in a row: a rate above 0 shows at least something."""
    full = len(characters) - 1
    height = max(1, round(rate / top * HEIGHT * full)) if rate else 0
    return characters[max(0, min(full, height - (row - 1) * full))]


def _rate(rate: float) -> str:
    return f"{rate:,.0f}" if rate >= 10 else f"{rate:.2g}"


def _axis(begin: int, end: int, columns: int) -> str:
    """The first and the last moment, the date only where it is needed."""
    first, last = (datetime.fromtimestamp(t, UTC) for t in (begin, end))
    left = first.strftime("%Y-%m-%d %H:%M:%S")
    right = last.strftime("%H:%M:%S" if first.date() == last.date() else "%Y-%m-%d %H:%M:%S")
    return left + right.rjust(columns - len(left)) if columns > len(left + right) else left
