"""
As many simulations as wanted::

    python -m tests.faults.simulate --seeds 100000
    python -m tests.faults.simulate --replay 4711 --trace
    python -m tests.faults.simulate --recipe recipe.json

A failing seed is made smaller, and what is left of it is printed.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from multiprocessing import get_context
from pathlib import Path

import click
from twisted.logger import globalLogBeginner

from .simulation.course import Outcome, simulate
from .simulation.recipe import Recipe, make_recipe
from .simulation.reduce import reduce_recipe

# Seeds that a process takes at a time: about a second's work.
_BUNCH = 20


def _begin() -> None:
    """In each process: what the simulated say goes to the trace alone."""
    globalLogBeginner.beginLoggingTo([], redirectStandardIO=False, discardBuffer=True)


def _run(seeds: range) -> tuple[Counter[str], list[tuple[int, str]]]:
    """Run seeds; what happened in all, and which failed how."""
    counts: Counter[str] = Counter()
    failed = []
    for seed in seeds:
        outcome = simulate(make_recipe(seed))
        counts.update(outcome.counts)
        if outcome.violation:
            failed.append((seed, outcome.violation))
    return counts, failed


def _bunches(first: int, count: int) -> Iterator[range]:
    for begin in range(first, first + count, _BUNCH):
        yield range(begin, min(begin + _BUNCH, first + count))


def _run_all(
    first: int, count: int, jobs: int, most_failed: int
) -> tuple[Counter[str], list[tuple[int, str]], int]:
    """Run seeds on several processors; stop when enough have failed."""
    counts: Counter[str] = Counter()
    failed: list[tuple[int, str]] = []
    bunches = _bunches(first, count)
    done = 0
    began = said = time.monotonic()
    running: dict[Future[tuple[Counter[str], list[tuple[int, str]]]], int] = {}
    with ProcessPoolExecutor(jobs, get_context("forkserver"), _begin) as pool:
        while True:
            while len(running) < 2 * jobs and len(failed) < most_failed:
                bunch = next(bunches, None)
                if bunch is None:
                    break
                running[pool.submit(_run, bunch)] = len(bunch)
            if not running:
                return counts, sorted(failed), done
            finished, _ = wait(running, timeout=5, return_when=FIRST_COMPLETED)
            for future in finished:
                done += running.pop(future)
                some, failures = future.result()
                counts.update(some)
                failed += failures
                for seed, violation in failures:
                    click.echo(f"seed {seed}: {violation}")
            if time.monotonic() - said > 5:
                said = time.monotonic()
                rate = done / (said - began)
                click.echo(f"{done} of {count} seeds, {rate:.0f} a second", err=True)


def _show(outcome: Outcome, *, trace: bool) -> None:
    if trace:
        click.echo("\n".join(outcome.lines))
    click.echo(str(outcome.recipe))
    click.echo(f"trace {outcome.trace}, {dict(outcome.counts)}")
    click.echo(f"BROKEN: {outcome.violation}" if outcome.violation else "all promises kept")


def _reduced(recipe: Recipe) -> None:
    click.echo(f"\nseed {recipe.seed} is made smaller …", err=True)
    smallest = reduce_recipe(recipe, lambda text: click.echo(text, err=True))
    click.echo("\nThe smallest recipe that does the same:")
    _show(simulate(smallest.recipe, keep=True), trace=False)
    click.echo("As a file for --recipe:\n" + smallest.recipe.to_json())


@click.command(help=__doc__)
@click.option("--seeds", default=2000, help="How many.", show_default=True)
@click.option("--from", "first", default=0, help="The first of them.", show_default=True)
@click.option("--jobs", default=os.cpu_count() or 1, help="Processes.", show_default=True)
@click.option("--replay", type=int, help="Run this seed alone.")
@click.option("--recipe", "file", type=click.Path(exists=True, path_type=Path),
              help="Run the recipe in a file.")  # fmt: skip
@click.option("--report", type=click.Path(path_type=Path), help="A file for all numbers, JSON.")
@click.option("--trace", is_flag=True, help="Print everything that happens (of one run).")
@click.option("--reduce/--no-reduce", default=True, help="Make the first failure smaller.")
def main(
    seeds: int, first: int, jobs: int, replay: int | None, file: Path | None, trace: bool,
    reduce: bool, report: Path | None,
) -> None:  # fmt: skip
    if replay is not None or file is not None:
        globalLogBeginner.beginLoggingTo([], redirectStandardIO=False, discardBuffer=True)
        recipe = make_recipe(replay or 0) if file is None else Recipe.from_json(file.read_text())
        outcome = simulate(recipe, keep=True)
        _show(outcome, trace=trace)
        if outcome.violation and reduce and file is None:
            _reduced(recipe)
        sys.exit(bool(outcome.violation))
    began = time.monotonic()
    counts, failed, done = _run_all(first, seeds, jobs, most_failed=5)
    seconds = time.monotonic() - began
    happened = ", ".join(f"{count:,} {what}" for what, count in counts.items())
    click.echo(f"{done} seeds from {first} in {seconds:.0f} s: {len(failed)} failed; {happened}")
    if report is not None:
        numbers = {"seeds": done, "seconds": round(seconds), "counts": counts, "broken": failed}
        report.write_text(json.dumps(numbers, indent=1) + "\n")
    if failed and reduce:
        globalLogBeginner.beginLoggingTo([], redirectStandardIO=False, discardBuffer=True)
        _reduced(make_recipe(failed[0][0]))
    sys.exit(bool(failed))


if __name__ == "__main__":
    main()
