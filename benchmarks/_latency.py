"""C{python -m benchmarks latency}: latencies while messages come at their own pace."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path

import click
from attrs import evolve

from msglog._load.sender import LoadError
from msglog.cli._console import fail

from . import _runs as runs
from ._measure import Load, Results, load, start_all
from ._runs import bench, say, systems_option
from ._systems import MSGLOG, Running, System

__all__ = ["SAME", "command"]

# Of the highest rate of each system; at half of it a server has time, and above three quarters
# every queue is long.
PARTS = (0.1, 0.25, 0.5, 0.75)

# The same rate for all: half of the highest one of the slowest.
SAME = "the same rate"

# Enough for every system to gather what it can, and few enough for the load to need little of the
# machine: what it sends on one connection at a time costs one system call.
CONNECTIONS = 20
# A closed loop this wide finds the highest rate; with an open one the window is the server's own.
_HIGHEST = Load(CONNECTIONS, 500)
_OPEN = Load(CONNECTIONS, 1024)

ROUNDS = 3
SECONDS = 2.0
_QUICK_SECONDS = 0.3
_OVERHEAD_SECONDS = 0.5

_HELP = f"""
Measure latencies while messages come at their own pace, whether or not the server keeps up.

First each system's highest rate is found, with {_HIGHEST.name} in a closed loop. Then messages come
at parts of that, at random moments (a Poisson process), over {CONNECTIONS} connections; and at one
rate for all, half the highest of the slowest system. A message's latency is counted from the
moment it came, so a server that stands still is charged for all that came meanwhile.

\b
Exit status:
  0    measured; what is not installed is left out
  1    something failed that should not; what was measured is printed
  2    the command line is wrong
"""


def _name(part: float) -> str:
    return f"{part:g} of its highest rate"


@click.command("latency", help=_HELP, short_help="While messages come at their own pace.")
@systems_option(("msglog", "redis"))
@click.option("--rounds", type=click.IntRange(1), default=ROUNDS, show_default=True)
@click.option(
    "--seconds",
    type=click.FloatRange(0.05),
    default=SECONDS,
    show_default=True,
    help="Of each measurement.",
)
@runs.server_options
@runs.options
def command(
    systems: list[System],
    rounds: int,
    seconds: float,
    folder: Path | None,
    server_options: list[str],
    quick: bool,
    keep: bool,
    as_json: bool,
) -> int:
    if quick:
        rounds, seconds = 1, min(seconds, _QUICK_SECONDS)
    chosen = (0.5,) if quick else PARTS
    estimate = len(systems) * (1 + rounds * (len(chosen) + 1)) * (seconds + _OVERHEAD_SECONDS)
    say(f"about {estimate / 60:.1f} min")
    with bench("latency", folder, keep) as run:
        more = {MSGLOG.name: server_options}
        running, left_out = start_all(systems, run.folder, run.enter, more)
        for reason in left_out.values():
            say(f"left out: {reason}")
        if not running:
            fail("there is nothing to measure")
        results, highest = _measure(running, chosen, rounds, seconds)
        found = {
            "seconds": seconds,
            "versions": {s.system.name: s.system.version() for s in running},
            "left_out": left_out,
            "highest": highest,
            "parts": list(chosen),
            **results.as_json(),
        }
        run.report(found, as_json)
    if keep:
        from ._page import write

        write()
    if not as_json:
        for line in _table(results, [system.system for system in running]):
            click.echo(line)
    for failure in results.failures:
        say(f"failed: {failure}")
    return 1 if results.failures else 0


def _measure(
    running: Sequence[Running], chosen: Sequence[float], rounds: int, seconds: float
) -> tuple[Results, dict[str, float]]:
    """All systems at all rates in turn; and the highest rate of each."""
    results = Results()
    highest: dict[str, float] = {}
    for system in running:
        try:
            highest[system.system.name] = load(system, _HIGHEST, seconds).rate
        except LoadError as e:
            results.failures.append(f"{system.system.name}, its highest rate: {e}")
    if not highest:
        return results, highest
    say("highest rates: " + ", ".join(f"{name} {rate:,.0f}" for name, rate in highest.items()))
    same = min(highest.values()) / 2
    for number in range(rounds):
        for part in (*chosen, None):
            said = []
            for system in running:
                name = system.system.name
                if name not in highest:
                    continue
                rate = same if part is None else part * highest[name]
                what = SAME if part is None else _name(part)
                try:
                    found = load(system, evolve(_OPEN, rate=rate), seconds)
                except LoadError as e:
                    results.failures.append(f"{name}, {what}, round {number + 1}: {e}")
                else:
                    results.add(what, name, number, found)
                    said.append(f"{name} p99 {found.p99_ms:.2f} ms at {found.rate:,.0f}/s")
                time.sleep(0.1)
            say(f"round {number + 1} of {rounds}, {what}: {', '.join(said)}")
    return results, highest


def _table(results: Results, systems: Sequence[System]) -> list[str]:
    lines = []
    for name in results.rounds:
        lines += ["", name]
        for system in systems:
            median = results.median(name, system.name)
            if median is not None:
                lines.append(
                    f"  {system.title:<18}{median.rate:>9,.0f}/s  p50 {median.p50_ms:>8,.2f} ms"
                    f"  p99 {median.p99_ms:>8,.2f} ms  p99.9 {median.p999_ms:>8,.2f} ms"
                    f"   (the load itself was late by p99 {median.late_p99_ms:,.2f} ms)"
                )
    return lines
