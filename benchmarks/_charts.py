"""
The charts of docs/benchmarks.md, drawn from what was kept: one look for all, that of
C{msglog bench --plot}, on white so that they can be read on a dark page too.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter

from msglog.cli._chart import STYLE

from ._measure import Results
from ._systems import SYSTEMS

__all__ = ["draw_compare", "draw_growth", "draw_latency"]

# msglog stands out; systems of their own have a colour each; ways to build it are grey.
_COLOURS = {
    "msglog": "#1f5fa8",
    "msglog-workers": "#7fb0e6",
    "redis": "#b5482a",
    "jetstream": "#6b4f9e",
    "jetstream-lazy": "#c3b5e0",
}
_OPTION = "#9aa0a8"

# Of the lines in a chart, in turn.
_LINES = ("#1f5fa8", "#7fb0e6", "#b5482a", "#e0a48f", "#2a7f4f", "#6b4f9e")

_SMALL = 8.5
_DPI = 150


@contextmanager
def _figure(path: Path, title: str, below: str, size: tuple[float, float]) -> Iterator[Figure]:
    """A figure that is saved at the end, the same for the same figures."""
    with rc_context(STYLE):
        figure = Figure(figsize=size, dpi=_DPI, layout="constrained")
        figure.suptitle(title, fontsize=14, fontweight="bold", x=0.01, ha="left")
        yield figure
        figure.supxlabel(below, fontsize=_SMALL, color="#555555", x=0.01, ha="left")
        figure.savefig(path, metadata={"Date": None})


def _about(kept: Any) -> str:
    machine = kept["machine"]
    return (
        f"{machine['cores']} cores, which systems and load share; a sync takes "
        f"{machine['sync_ms']:.2f} ms; {kept['date'][:10]}"
    )


def _number(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:,.3g}"


def draw_compare(kept: Any, rates: Path, latencies: Path) -> None:
    """Two charts: a panel for each load, a bar for each system."""
    results = Results.of_json(kept)
    number = max(len(r) for found in results.rounds.values() for r in found.values())
    about = f"medians of {number} rounds; " if number > 1 else "one round; "
    for path, title, name in (
        (rates, "Messages acknowledged a second (longer is better)", "rate"),
        (
            latencies,
            "99 in 100 are acknowledged within … ms (shorter is better; each line: ten times)",
            "p99_ms",
        ),
    ):
        loads = list(results.rounds)
        rows = -(-len(loads) // 3)
        with _figure(path, title, about + _about(kept), (10.5, 0.7 + 2.3 * rows)) as figure:
            panels = figure.subplots(rows, min(3, len(loads)), sharey=True, squeeze=False)
            for axes, load_name in zip(panels.flat, loads, strict=False):
                _bars(axes, results, load_name, name)
            for axes in list(panels.flat)[len(loads) :]:
                axes.set_visible(False)


def _bars(axes: Axes, results: Results, load_name: str, name: str) -> None:
    systems = [s for s in SYSTEMS if any(s in found for found in results.rounds.values())]
    medians = [results.median(load_name, system) for system in systems]
    values = [0.0 if median is None else getattr(median, name) for median in medians]
    places = range(len(systems))
    axes.barh(places, values, color=[_COLOURS.get(system, _OPTION) for system in systems])
    axes.set_yticks(places, [SYSTEMS[system].title for system in systems])
    for label, system in zip(axes.get_yticklabels(), systems, strict=False):  # some have none
        label.set_fontweight("bold" if system == "msglog" else "normal")
    axes.set_ylim(len(systems) - 0.5, -0.5)
    axes.grid(visible=False)
    if name == "rate":
        axes.set_xlim(0, (max(values) or 1) * 1.3)
    else:
        # Of latencies one is often a thousand times another.
        known = [value for value in values if value]
        axes.set_xscale("log")
        axes.set_xlim(min(known) / 3, max(known) * 6)
        axes.grid(visible=True, axis="x")
    axes.tick_params(axis="x", which="both", length=0, labelbottom=False)
    connections, _, window = load_name.partition("x")
    axes.set_title(f"{int(connections):,} × {int(window):,}", fontsize=11, loc="left")
    for place, value in zip(places, values, strict=True):
        text = f" {_number(value)}" if value else " –"
        axes.annotate(text, (value, place), va="center", fontsize=_SMALL)


def _tick(value: float) -> str:
    return f"{value / 1e6:g} M" if value >= 1e6 else f"{value:,.6g}"


def _log_axis(axes: Axes, label: str, *, of_x: bool = True) -> None:
    axis = axes.xaxis if of_x else axes.yaxis
    if axis.get_scale() == "log" and not of_x:
        axis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axis.set_major_formatter(FuncFormatter(lambda value, _: _tick(value)))
    axis.set_minor_formatter(NullFormatter())
    (axes.set_xlabel if of_x else axes.set_ylabel)(label)


def draw_growth(kept: Any, path: Path, title: str, unit: str, scale: str) -> None:
    """
    Rate and p99 as one thing grows.

    @param scale: of that thing's axis: C{log}, or C{symlog} if it begins at 0, or C{linear}.
    """
    points = kept["points"]
    series = list(dict.fromkeys(point["series"] for point in points))
    with _figure(path, title, _about(kept), (10.5, 3.8)) as figure:
        rate, p99 = figure.subplots(1, 2)
        for colour, name in zip(_LINES, series, strict=False):
            mine = [point for point in points if point["series"] == name]
            for axes, figure_name in ((rate, "rate"), (p99, "p99_ms")):
                axes.plot(
                    [point["value"] for point in mine],
                    [point["figures"][figure_name] for point in mine],
                    marker="o",
                    markersize=4,
                    color=colour,
                    label=name,
                )
        for axes in (rate, p99):
            if scale == "symlog":
                axes.set_xscale("symlog", linthresh=16)
            else:
                axes.set_xscale(scale)
            _log_axis(axes, unit)
        rate.set_ylim(bottom=0)
        rate.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
        rate.set_ylabel("messages/s")
        p99.set_yscale("log")
        _log_axis(p99, "p99, milliseconds", of_x=False)
        rate.legend(fontsize=_SMALL, frameon=False)


def draw_latency(kept: Any, path: Path) -> None:
    """p50, p99 and p99.9 by the rate at which messages come, a panel for each system."""
    results = Results.of_json(kept)
    names = [f"{part:g} of its highest rate" for part in kept["parts"]]
    systems = list(kept["highest"])
    title = "Latency while messages come at their own pace"
    with _figure(path, title, _about(kept), (10.5, 3.8)) as figure:
        panels = figure.subplots(1, len(systems), sharey=True, sharex=True, squeeze=False)
        for axes, system in zip(panels.flat, systems, strict=True):
            found = [m for name in names if (m := results.median(name, system)) is not None]
            lines: Sequence[tuple[str, str, Callable[[Any], float]]] = (
                ("p50", "#7fb0e6", lambda f: f.p50_ms),
                ("p99", "#1f5fa8", lambda f: f.p99_ms),
                ("p99.9", "#b5482a", lambda f: f.p999_ms),
            )
            for name, colour, figure_of in lines:
                axes.plot(
                    [f.rate for f in found],
                    [figure_of(f) for f in found],
                    marker="o",
                    markersize=4,
                    color=colour,
                    label=name,
                )
            axes.set_title(SYSTEMS[system].title, fontsize=11, loc="left")
            axes.set_yscale("log")
            axes.set_xlim(left=0)
            axes.xaxis.set_major_locator(MaxNLocator(5))
            _log_axis(axes, "messages that come a second")
        _log_axis(panels[0][0], "milliseconds", of_x=False)
        panels[0][0].legend(fontsize=_SMALL, frameon=False)
