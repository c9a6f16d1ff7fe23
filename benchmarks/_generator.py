"""C{python -m benchmarks generator}: the load itself, beside another one of the same system."""

from __future__ import annotations

import csv
import statistics
import subprocess
from pathlib import Path

import click

from msglog._load.loop import body
from msglog._load.sender import LoadError
from msglog.cli._console import fail

from ._measure import SIZE, Load, load, start_all
from ._runs import bench, options, say
from ._systems import SYSTEMS, program

__all__ = ["command"]

LOADS = ("1x1", "100x1", "100x100", "1000x1")

ROUNDS = 3
SECONDS = 1.0
_QUICK_SECONDS = 0.3

_HELP = """
See whether it is the systems that are measured, and not what loads them: load Redis as the other
commands do, and with its own redis-benchmark, which is written in C, in turn.

\b
Exit status:
  0    measured
  1    not measured: redis-server or redis-benchmark is not installed, or something failed
  2    the command line is wrong
"""


def _redis_benchmark(path: str, port: int, what: Load, messages: int) -> float:
    """Messages a second, as redis-benchmark says."""
    xadd = ("XADD", "msglog", "*", "c", "x" * 16, "s", "0" * 12, "m", body(SIZE).decode())
    done = subprocess.run(
        [
            *(path, "-p", str(port), "-c", str(what.connections), "-P", str(what.window)),
            *("-n", str(messages), "--csv", *xadd),
        ],
        capture_output=True,
        text=True,
        timeout=120,
    )
    try:
        return float(list(csv.reader(done.stdout.splitlines()))[-1][1])
    except (IndexError, ValueError):
        fail(f"redis-benchmark said: {done.stdout[-500:]}{done.stderr[-500:]}")


@click.command("generator", help=_HELP, short_help="The load itself, beside redis-benchmark.")
@click.option("--rounds", type=click.IntRange(1), default=ROUNDS, show_default=True)
@click.option(
    "--seconds",
    type=click.FloatRange(0.05),
    default=SECONDS,
    show_default=True,
    help="Of each measurement, about.",
)
@options
def command(
    rounds: int,
    seconds: float,
    folder: Path | None,
    quick: bool,
    keep: bool,
    as_json: bool,
) -> int:
    if quick:
        rounds, seconds = 1, min(seconds, _QUICK_SECONDS)
    path = program("redis-benchmark")
    if path is None:
        fail("redis-benchmark is not installed (Debian: redis-tools)")
    with bench("generator", folder, keep) as run:
        running, left_out = start_all([SYSTEMS["redis"]], run.folder, run.enter, {})
        for reason in left_out.values():
            fail(reason)
        found = []
        for name in LOADS:
            what, ours, theirs, ratios = Load.parse(name), [], [], []
            for _ in range(rounds):
                try:
                    ours.append(load(running[0], what, seconds).rate)
                except LoadError as e:
                    fail(f"{name}: {e}")
                messages = max(int(ours[-1] * seconds), 2 * what.connections * what.window)
                theirs.append(_redis_benchmark(path, running[0].port, what, messages))
                ratios.append(ours[-1] / theirs[-1])
            found.append(
                {
                    "load": name,
                    "ours": statistics.median(ours),
                    "redis_benchmark": statistics.median(theirs),
                    "ratio": statistics.median(ratios),
                }
            )
            say(f"{name}: {ours} beside {theirs}")
        run.report({"rounds": rounds, "seconds": seconds, "loads": found}, as_json)
    if keep:
        from ._page import write

        write()
    if not as_json:
        for row in found:
            click.echo(
                f"{row['load']:>8}  this load {row['ours']:>9,.0f}/s  "
                f"redis-benchmark {row['redis_benchmark']:>9,.0f}/s  ratio {row['ratio']:.2f}"
            )
    return 0
