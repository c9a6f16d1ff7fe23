"""C{python -m benchmarks compare}: msglog beside other systems, under the same loads."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import click

from msglog.cli._console import fail

from . import _runs as runs
from ._measure import SIZE, Load, Results, in_turn, start_all
from ._runs import bench, say, systems_option
from ._systems import MSGLOG, SYSTEMS, System

__all__ = ["command"]

# One at a time and in a stream; alone, a hundred, a thousand.
LOADS = ("1x1", "1x1000", "100x1", "100x100", "1000x1", "1000x10")

ROUNDS = 5
SECONDS = 1.0
_QUICK_SECONDS = 0.3

# For a connection of a load to be made and loaded, beside the measurement.
_OVERHEAD_SECONDS = 0.5

# One process of a load that uses more of its core may have been what was measured.
_BUSY = 0.8

_HELP = """
Measure msglog beside other systems, and beside other ways to build it.

Each system is started once on 127.0.0.1, with a log in a folder of its own, and stays up. Each
load, CONNECTIONSxWINDOW, is measured on each system in turn, and all of it again in several rounds,
so that a machine whose speed drifts slows all alike; medians are printed, and the ratio to msglog
within a round.

Nothing is installed. What is not there is left out, and named.

\b
Exit status:
  0    measured; what is not installed is left out
  1    something failed that should not; what was measured is printed
  2    the command line is wrong
"""


def _loads(ctx: click.Context, param: click.Parameter, value: str) -> list[Load]:
    try:
        return [Load.parse(name) for name in value.split(",")]
    except ValueError as e:
        raise click.BadParameter(str(e)) from None


@click.command("compare", help=_HELP, short_help="Beside other systems, under the same loads.")
@systems_option(list(SYSTEMS))
@click.option(
    "--loads",
    metavar="LOADS",
    default=",".join(LOADS),
    show_default=True,
    callback=_loads,
    help="CONNECTIONSxWINDOW, several with commas between.",
)
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
    loads: list[Load],
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
    estimate = len(systems) * len(loads) * rounds * (seconds + _OVERHEAD_SECONDS)
    say(f"about {estimate / 60:.1f} min; more if a system is slow to answer what is in flight")
    with bench("compare", folder, keep) as run:
        more = {MSGLOG.name: server_options}
        running, left_out = start_all(systems, run.folder, run.enter, more)
        for reason in left_out.values():
            say(f"left out: {reason}")
        if not running:
            fail("there is nothing to measure")
        results = in_turn(running, loads, rounds, seconds, say)
        found = {
            "seconds": seconds,
            "size": SIZE,
            "versions": {s.system.name: s.system.version() for s in running},
            "left_out": left_out,
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


def _table(results: Results, systems: Sequence[System]) -> list[str]:
    """The figures, for a terminal."""
    lines = []
    for name in results.rounds:
        lines += ["", f"{name}  (connections x window)"]
        for system in systems:
            median = results.median(name, system.name)
            if median is None:
                continue
            ratio = results.ratio(name, "msglog", system.name)
            beside = f"   msglog has {ratio:.2f} times its rate" if ratio and ratio != 1 else ""
            lines.append(
                f"  {system.title:<18}{median.rate:>9,.0f}/s  p50 {median.p50_ms:>8,.2f} ms"
                f"  p99 {median.p99_ms:>8,.2f} ms{beside}"
            )
            if median.generator > _BUSY:
                lines.append(f"    (the load itself used {median.generator:.0%} of a core)")
    return lines
