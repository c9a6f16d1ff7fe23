"""What C{msglog bench} says: its figures by name, as JSON and in a terminal."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime

from attrs import frozen
from rich.console import Console
from rich.text import Text

from .. import __version__
from .._counted import counted
from .._frames import Terms
from .._load.histogram import Histogram
from .._load.loop import SLOT_SECONDS, Measurement, Plan

__all__ = ["PERCENTILES", "Report", "bars", "draw", "milliseconds", "rows"]

PERCENTILES = (50.0, 90.0, 99.0, 99.9)

# A histogram of more rows is no longer seen at a glance, and scrolls the figures away.
_MOST_ROWS = 20

# Preferred numbers (ISO 3): round, and each row of a histogram is as wide as the one before in
# proportion.  The finest that does with the rows above is taken.
_SERIES: tuple[tuple[float, ...], ...] = (
    (1, 1.12, 1.25, 1.4, 1.6, 1.8, 2, 2.24, 2.5, 2.8, 3.15, 3.55, 4, 4.5, 5, 5.6, 6.3, 7.1, 8, 9),
    (1, 1.25, 1.6, 2, 2.5, 3.15, 4, 5, 6.3, 8),
    (1, 1.6, 2.5, 4, 6.3),
    (1, 2.5),
    (1,),
)

_EIGHTHS = "▏▎▍▌▋▊▉█"


@frozen
class Report:
    """
    @ivar server: as it was named.
    @ivar started: when the run began.
    """

    server: str
    plan: Plan
    processes: int
    terms: Terms
    started: datetime
    measured: Measurement

    def parameters(self) -> str:
        """The load, in a line."""
        plan = self.plan
        come = f"{plan.rate:,.10g} messages/s come, " if plan.rate else ""
        return (
            f"{come}{counted(plan.connections, 'connection')}, window {plan.window:,}, "
            f"{plan.size:,}-byte bodies, {counted(self.processes, 'process', 'processes')}"
        )

    def as_json(self) -> dict[str, object]:
        plan, measured, latencies = self.plan, self.measured, self.measured.latencies
        return {
            "msglog": __version__,
            "server": self.server,
            "started": self.started.isoformat(timespec="seconds"),
            "terms": {
                "version": self.terms.version,
                "longest_body": self.terms.max_body,
                "window": self.terms.window,
            },
            "connections": plan.connections,
            "window": plan.window,
            "size": plan.size,
            "processes": self.processes,
            "asked_rate": plan.rate or None,
            "warm_up_seconds": plan.warm_up,
            "seconds": measured.seconds,
            "acknowledged": latencies.total,
            "rate": measured.rate,
            "latency_ms": {
                "min": latencies.lowest / 1e6,
                **{f"p{p:g}": latencies.percentile(p) / 1e6 for p in PERCENTILES},
                "max": latencies.highest / 1e6,
            },
            "late_ms": {
                **{f"p{p:g}": measured.late.percentile(p) / 1e6 for p in PERCENTILES},
                "max": measured.late.highest / 1e6,
            }
            if plan.rate
            else None,
            "histogram": [
                {"from_ms": low / 1e6, "to_ms": high / 1e6, "acknowledged": count}
                for low, high, count in latencies.buckets()
            ],
            "acknowledged_over_time": {"slot_seconds": SLOT_SECONDS, "slots": measured.slots},
            "refused": dict(measured.refused),
            "problem": measured.problem or None,
            "bench_busy": measured.busy,
        }


def milliseconds(nanoseconds: float) -> str:
    """A latency with three digits that matter."""
    ms = nanoseconds / 1e6
    return f"{ms:,.{3 if ms < 1 else 2 if ms < 10 else 1 if ms < 100 else 0}f} ms"


def draw(report: Report, console: Console) -> None:
    """Write the figures and the histogram, as wide as the console is."""
    measured, latencies = report.measured, report.measured.latencies
    body_rate = measured.rate * report.plan.size
    latency = _percentiles(latencies)
    lines = [
        ("server", report.server),
        ("load", report.parameters()),
        ("rate", f"{measured.rate:,.0f} messages/s ({body_rate / 1e6:,.1f} MB/s of bodies)"),
        (
            "receipts",
            f"{latencies.total:,} in {measured.seconds:,.3g} s, each checked and right",
        ),
    ]
    if measured.refused:
        refused = ", ".join(f"{name} {n:,}" for name, n in measured.refused.items())
        lines.append(("refused", refused))
    lines.append(("latency", latency))
    if report.plan.rate:
        lines.append(
            ("late", f"{_percentiles(measured.late)} (of it, at most, by the bench itself)")
        )
    for name, text in lines:
        _line(console, Text(f"{name:<9}", "bold"), Text(text))
    console.print()
    for line in bars(latencies, console.width, _blocks(console)):
        _line(console, *line)


def _percentiles(latencies: Histogram) -> str:
    found = [(f"p{p:g}", latencies.percentile(p)) for p in PERCENTILES]
    found.append(("max", latencies.highest))
    return "  ".join(f"{name} {milliseconds(ns)}" for name, ns in found)


def _line(console: Console, *parts: Text) -> None:
    # Not folded: what is too long for a terminal is folded by it, and a file has no width.
    console.print(Text.assemble(*parts), soft_wrap=True)


def _blocks(console: Console) -> str:
    """What bars are made of: eighths of a character where there are such."""
    terminal = console.is_terminal and (console.encoding or "").lower().startswith("utf")
    return _EIGHTHS if terminal else "#"


def rows(latencies: Histogram) -> list[tuple[float, float, int]]:
    """The histogram in few rows: from and to in nanoseconds, and how many messages."""
    for series in _SERIES:
        edges = _edges(series, latencies.lowest, latencies.highest)
        if len(edges) - 1 <= _MOST_ROWS:
            break
    counts = [0] * (len(edges) - 1)
    row = 0
    for low, high, count in latencies.buckets():
        middle = (low + high) / 2
        while row < len(counts) - 1 and middle >= edges[row + 1]:
            row += 1
        counts[row] += count
    return list(zip(edges, edges[1:], counts, strict=False))


def _edges(series: Sequence[float], lowest: float, highest: float) -> list[float]:
    edges = [0.0]
    decade = 1.0
    while edges[-1] <= highest:
        edges += [step * decade for step in series]
        decade *= 10
    first = max(i for i, edge in enumerate(edges) if edge <= lowest)
    last = min(i for i, edge in enumerate(edges) if edge > highest)
    return edges[first : last + 1]


def bars(latencies: Histogram, width: int, blocks: str) -> list[tuple[Text, ...]]:
    """
    The histogram, drawn: range, bar, part of all, and the percentiles that are in this row.

    @param width: columns that there are.
    @param blocks: what a bar is made of: one character, or several that fill it more and more.
    """
    if not latencies.total:
        return []
    marks = [(f"p{p:g}", latencies.percentile(p)) for p in PERCENTILES]
    drawn = []
    for low, high, count in rows(latencies):
        here = [name for name, ns in marks if low <= ns < high]
        drawn.append(
            (
                f"{_plain(low)} - {_plain(high)} ms",
                here[0] if len(here) == 1 else f"{here[0]}-{here[-1][1:]}" if here else "",
                f"{count / latencies.total:.1%}" if count else "",
                f"{count:,}",
                count,
            )
        )
    widths = [max(len(row[column]) for row in drawn) for column in range(4)]  # type: ignore[arg-type]
    room = max(10, width - sum(widths) - 9)
    most = max(row[4] for row in drawn)
    return [
        (
            Text(f"{label:>{widths[0]}}  "),
            Text(f"{mark:<{widths[1]}} ", "bold"),
            Text(f"{_bar(count / most * room, blocks):<{room}}  ", "cyan"),
            Text(f"{part:>{widths[2]}}  {number:>{widths[3]}}"),
        )
        for label, mark, part, number, count in drawn
    ]


def _plain(nanoseconds: float) -> str:
    return f"{nanoseconds / 1e6:,.6g}"


def _bar(length: float, blocks: str) -> str:
    """A bar so many characters long; never none for what is there."""
    parts = round(length * len(blocks))
    if length and not parts:
        parts = 1
    whole, rest = divmod(parts, len(blocks))
    return blocks[-1] * whole + (blocks[rest - 1] if rest else "")
