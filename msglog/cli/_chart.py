"""The chart of C{msglog bench --plot}: latencies by percentile, and the rate over time."""

from __future__ import annotations

from math import log10
from pathlib import Path
from typing import Any

from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from .._load.loop import SLOT_SECONDS, Measurement
from ._bench_report import PERCENTILES, Report, milliseconds

__all__ = ["STYLE", "save"]

# The same on every machine, whatever its own matplotlibrc says.
STYLE: dict[Any, Any] = {
    "axes.axisbelow": True,
    "axes.edgecolor": "#888888",
    "axes.grid": True,
    "axes.labelcolor": "#333333",
    "axes.spines.right": False,
    "axes.spines.top": False,
    "font.family": "sans-serif",
    "font.sans-serif": ["DejaVu Sans"],
    "font.size": 10,
    "grid.color": "#e4e4e4",
    "savefig.facecolor": "white",  # readable on a dark page too
    "svg.fonttype": "path",  # looks the same where that font is not
    "svg.hashsalt": "msglog bench",
    "text.color": "#222222",
    "xtick.color": "#555555",
    "ytick.color": "#555555",
}
_LATENCY = "#1f5fa8"
_RATE = "#2a7f4f"

# Inches, and dots in each for a PNG: 1350 x 900 pixels.
_SIZE = (9.0, 6.0)
_DPI = 150

# Percentiles are drawn by how many messages are slower: each step to the right is one in ten.
_TICKS = (0.0, 90.0, 99.0, 99.9, 99.99, 99.999)

# Marks nearer than this, in nines, would be written over each other.
_APART = 0.3


def save(report: Report, path: Path) -> None:
    """
    Draw the chart into a file; its suffix says in which format.

    @raise OSError: the file cannot be written.
    """
    with rc_context(STYLE):
        figure = Figure(figsize=_SIZE, dpi=_DPI, layout="constrained")
        latencies, rate = figure.subplots(2, 1, height_ratios=(3, 2))
        latencies.set_title(
            f"msglog bench: {report.measured.rate:,.0f} messages/s",
            fontsize=14,
            fontweight="bold",
            loc="left",
            pad=24,
        )
        latencies.annotate(
            f"{report.parameters()}; {report.started:%Y-%m-%d %H:%M} UTC",
            (0, 1),
            xycoords="axes fraction",
            xytext=(0, 8),
            textcoords="offset points",
            color="#555555",
        )
        _draw_latencies(latencies, report.measured)
        _draw_rate(rate, report.measured)
        metadata = {"Date": None} if path.suffix.lower() == ".svg" else {}
        figure.savefig(path, metadata=metadata)


def _place(percent: float) -> float:
    """Where a percentile is: 0, and one further for each nine."""
    return -log10(1 - percent / 100)


def _draw_latencies(axes: Axes, measured: Measurement) -> None:
    latencies = measured.latencies
    # At least a nanosecond: a logarithm has no place for nothing.
    places, values, seen = [0.0], [max(1, latencies.lowest) / 1e6], 0
    for _low, high, count in latencies.buckets():
        # Up to the bucket before the last message: the slowest one is 100 %, and has no place.
        seen += count
        if seen < latencies.total:
            places.append(_place(100 * seen / latencies.total))
            values.append(max(1, min(high, latencies.highest)) / 1e6)
    last = _place(100 * (1 - 1 / latencies.total)) if latencies.total > 1 else 1.0
    places.append(max(last, places[-1]))
    values.append(max(1, latencies.highest) / 1e6)
    axes.step(places, values, where="pre", color=_LATENCY, linewidth=1.8)
    axes.set_yscale("log")
    axes.set_ylim(min(values) / 1.5, max(values) * 2)
    width = max(places[-1], 1)
    axes.set_xlim(-0.05 * width, 1.08 * width)  # on the left, room for the first mark's text
    for percent in PERCENTILES:
        if _place(percent) < places[-1] - _APART:
            _mark(axes, _place(percent), latencies.percentile(percent), f"p{percent:g}")
    _mark(axes, places[-1], latencies.highest, "max")
    ticks = [tick for tick in _TICKS if _place(tick) <= places[-1]]
    axes.set_xticks([_place(tick) for tick in ticks], [f"{tick:g} %" for tick in ticks])
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,g}"))
    axes.yaxis.set_minor_formatter(NullFormatter())
    axes.set_xlabel("of all messages were acknowledged within")
    axes.set_ylabel("milliseconds")


def _mark(axes: Axes, place: float, nanoseconds: int, name: str) -> None:
    axes.plot([place], [nanoseconds / 1e6], "o", color=_LATENCY, markersize=4)
    axes.annotate(
        f"{name}\n{milliseconds(nanoseconds)}",
        (place, nanoseconds / 1e6),
        xytext=(3, 6),
        textcoords="offset points",
        ha="right",  # the curve rises to the right, so there is room on the left
        fontsize=8.5,
    )


def _draw_rate(axes: Axes, measured: Measurement) -> None:
    places: list[float] = []
    rates: list[float] = []
    for number, count in enumerate(measured.slots):
        begin = number * SLOT_SECONDS
        length = min(SLOT_SECONDS, measured.seconds - begin)
        # The last slot is a piece of one, and of a small piece the rate is an accident.
        if length > SLOT_SECONDS / 2 or not rates:
            places.append(begin + length / 2)
            rates.append(count / length)
    axes.fill_between(places, rates, color=_RATE, alpha=0.15, linewidth=0)
    axes.plot(places, rates, color=_RATE, linewidth=1.5, marker="o" if len(rates) == 1 else "")
    axes.set_xlim(0, measured.seconds)
    axes.set_ylim(0, max(rates) * 1.15)
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
    axes.set_xlabel("seconds")
    axes.set_ylabel("messages/s")
