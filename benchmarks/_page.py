"""docs/benchmarks.md and its charts, made of what was kept: the prose of page.md with figures."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from string import Template
from typing import Any

import click

from msglog.cli._console import fail

from ._latency import SAME
from ._measure import Figures, Results
from ._runs import read_kept, say
from ._systems import OURS, SYSTEMS

__all__ = ["command", "page", "write"]

DOCS = Path(__file__).parent.parent / "docs"
PAGE = DOCS / "benchmarks.md"
TEMPLATE = Path(__file__).with_name("page.md")

_MADE = "<!-- Made by python -m benchmarks page, from benchmarks/page.md: change that. -->\n\n"

# A growth's chart: its title, what its axis says, and its scale.
_GROWTHS = {
    "connections": ("As connections grow", "connections", "log"),
    "sizes": ("As messages grow", "bytes of each message", "symlog"),
    "log": ("As the log grows", "GiB of log", "linear"),
    "clients": ("As known clients grow", "clients that the ledger knows", "log"),
    "workers": ("As worker processes grow", "worker processes", "linear"),
}


@click.command("page", short_help="Make docs/benchmarks.md and its charts of what was kept.")
def command() -> int:
    """Make docs/benchmarks.md and its charts anew of what was kept in benchmarks/results."""
    write()
    return 0


def write() -> None:
    """Write the page, and every chart of which there are figures."""
    try:
        _draw()
    except ImportError:
        fail("charts need matplotlib: pip install 'msglog[plot]'")
    PAGE.write_text(page({name: read_kept(name) for name in _names()}))
    say(f"wrote {PAGE}")


def _names() -> list[str]:
    return ["compare", "generator", "latency", *(f"growth-{what}" for what in _GROWTHS)]


def _draw() -> None:
    # Not above: it is half a second, and threads that would be in the way of a load's forks.
    from . import _charts

    kept = read_kept("compare")
    if kept and kept["rounds"]:
        _charts.draw_compare(kept, DOCS / "benchmarks-rate.svg", DOCS / "benchmarks-p99.svg")
    kept = read_kept("latency")
    if kept and kept["rounds"]:
        _charts.draw_latency(kept, DOCS / "benchmarks-latency.svg")
    for what, (title, unit, scale) in _GROWTHS.items():
        kept = read_kept(f"growth-{what}")
        if kept and kept["points"]:
            path = DOCS / f"benchmarks-{what}.svg"
            _charts.draw_growth(kept, path, title, unit, scale)


def page(kept: dict[str, Any]) -> str:
    """
    The page.

    @param kept: by the name of its file, what was kept of each; C{None} where nothing was.
    """
    parts = {
        "compare": _compare(kept["compare"]),
        "generator": _generator(kept["compare"], kept["generator"]),
        "latency": _latency(kept["latency"]),
        **{what: _growth(what, kept[f"growth-{what}"]) for what in _GROWTHS},
    }
    return _MADE + Template(TEMPLATE.read_text()).substitute(parts)


def _missing(command: str) -> str:
    return f"(Not measured yet: `python -m benchmarks {command} --keep`.)"


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = ["| " + " | ".join(head) + " |", "|---" + "|---:" * (len(head) - 1) + "|"]
    lines += ["| " + " | ".join(row) + " |" for row in rows]
    return "\n".join(lines)


def _about(kept: Any) -> str:
    machine = kept["machine"]
    return (
        f"{kept['date'][:10]}, `{kept['command']}`, {kept['seconds']:g} s each. "
        f"{machine['processor']}, {machine['cores']} cores, which systems and load share; "
        f"{machine['memory_gib']:g} GiB; Linux {machine['kernel']}; Python {machine['python']}; "
        f"{machine['file_system']}, on which an append and its sync take "
        f"{machine['sync_ms']:.2f} ms; load average before: {machine['load_before']:g}."
    )


def _ms(value: float) -> str:
    return f"{value:,.2f}" if value < 10 else f"{value:,.1f}" if value < 100 else f"{value:,.0f}"


def _load_name(name: str) -> str:
    connections, _, window = name.partition("x")
    return f"{int(connections):,} × {int(window):,}"


def _compare(kept: Any) -> str:
    if not kept or not kept["rounds"]:
        return _missing("compare")
    results = Results.of_json(kept)
    names = [s for s in SYSTEMS if any(s in found for found in results.rounds.values())]
    head = ["connections × window", *(SYSTEMS[name].title for name in names)]

    def rate(load: str, name: str) -> str:
        median = results.median(load, name)
        if median is None:
            return "failed"
        low, high = results.spread(load, name)
        beside = f" ({low:,.0f}–{high:,.0f})" if low != high else ""
        return f"{median.rate:,.0f}{beside}"

    def latency(load: str, name: str) -> str:
        median = results.median(load, name)
        return "failed" if median is None else f"{_ms(median.p50_ms)} / {_ms(median.p99_ms)}"

    def ratio(load: str, name: str) -> str:
        found = [results.ratio(load, own, name) for own in ours]
        return " / ".join("" if r is None else f"{r:.2f}" for r in found)

    def rows(cell: Any, systems: Sequence[str]) -> list[list[str]]:
        return [
            [_load_name(load), *(cell(load, name) for name in systems)] for load in results.rounds
        ]

    ours = [name for name in names if name in OURS]
    others = [name for name in names if name not in OURS]
    about = [
        f"- **{SYSTEMS[name].title}**: {SYSTEMS[name].what} ({kept['versions'].get(name, '')})"
        for name in names
    ]
    about += [f"- Left out: {reason}" for reason in kept["left_out"].values()]
    about += [f"- Failed: {reason}" for reason in kept["failures"]]
    parts = [
        "![Rates by load and system](benchmarks-rate.svg)",
        "![p99 by load and system](benchmarks-p99.svg)",
        "\n".join(about),
        "Messages acknowledged a second: the median of all rounds (the worst and the best).",
        _table(head, rows(rate, names)),
        "Latency in milliseconds, p50 / p99: medians of all rounds.",
        _table(head, rows(latency, names)),
    ]
    if ours and others:
        parts += [
            "How many times the rate of each other system that of "
            f"{' / '.join(SYSTEMS[n].title for n in ours)} is (the median of the ratios within a "
            "round; below 1, the other is faster):",
            _table(["", *(SYSTEMS[n].title for n in others)], rows(ratio, others)),
        ]
    return "\n\n".join([*parts, _about(kept)])


def _generator(compare: Any, kept: Any) -> str:
    parts = []
    if compare and compare["rounds"]:
        results = Results.of_json(compare)
        rows = []
        for load in results.rounds:
            found = [(m, s) for s in results.rounds[load] if (m := results.median(load, s))]
            worst, system = max(found, key=lambda pair: pair[0].generator)
            rows.append([_load_name(load), f"{worst.generator:.0%}", SYSTEMS[system].title])
        parts += [
            "The part of a core that the load used where it used most:",
            _table(["connections × window", "of a core", "against"], rows),
        ]
    if kept:
        rows = [
            [
                _load_name(found["load"]),
                f"{found['ours']:,.0f}",
                f"{found['redis_benchmark']:,.0f}",
                f"{found['ratio']:.2f}",
            ]
            for found in kept["loads"]
        ]
        parts += [
            "The same Redis under this load and under its own `redis-benchmark`, in turn; medians "
            f"of rounds, of which there were {kept['rounds']} "
            f"({kept['date'][:10]}, `{kept['command']}`). "
            "`redis-benchmark` fills its window, waits for all answers, and fills it again:",
            _table(
                ["connections × window", "this load", "redis-benchmark", "ratio"],
                rows,
            ),
        ]
    return "\n\n".join(parts) or _missing("generator")


def _latency(kept: Any) -> str:
    if not kept or not kept["rounds"]:
        return _missing("latency")
    results = Results.of_json(kept)
    rows = []
    for name in results.rounds:
        for system in results.rounds[name]:
            median = results.median(name, system)
            assert median is not None
            worst = max(f.p999_ms for f in results.rounds[name][system].values())
            rows.append(
                [
                    name if name != SAME else f"{SAME}: half the highest of the slowest",
                    SYSTEMS[system].title,
                    f"{median.rate:,.0f}",
                    _ms(median.p50_ms),
                    _ms(median.p99_ms),
                    f"{_ms(median.p999_ms)} ({_ms(worst)})",
                    _ms(median.late_p99_ms),
                ]
            )
    highest = ", ".join(f"{SYSTEMS[n].title} {rate:,.0f}" for n, rate in kept["highest"].items())
    return "\n\n".join(
        [
            "![Latency by rate](benchmarks-latency.svg)",
            f"Highest rates, 20 × 500 in a closed loop: {highest} a second. Then, in ms, "
            "medians of all rounds (of p99.9 the worst too); *late* is the part of a latency that "
            "is the load's own, at most:",
            _table(["messages come at", "", "a second", "p50", "p99", "p99.9", "late p99"], rows),
            _about(kept),
        ]
    )


def _growth(what: str, kept: Any) -> str:
    if not kept or not kept["points"]:
        return _missing(f"growth {what}")
    rows = []
    for point in kept["points"]:
        figures = Figures(**point["figures"])
        rows.append(
            [
                f"{point['value']:,}",
                point["series"],
                f"{figures.rate:,.0f}",
                _ms(figures.p50_ms),
                _ms(figures.p99_ms),
                f"{figures.memory / 2**20:,.0f}",
                f"{point['start_seconds']:.2f}",
            ]
        )
    _, unit, _ = _GROWTHS[what]
    return "\n\n".join(
        [
            f"![Rate and p99](benchmarks-{what}.svg)",
            _table([unit, "", "messages/s", "p50 ms", "p99 ms", "MiB after", "start, s"], rows),
            *(f"- Failed: {reason}" for reason in kept["failures"]),
            _about(kept),
        ]
    )
