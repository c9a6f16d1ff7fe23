"""
Crash states by the million: histories, every state that a crash may leave of them, and a start of
the real server from each.

A I{unit} is a history (a kind and a seed) and all that is looked at of it:

1. a power cut at every point between two operations;
2. a kill before, and in the middle of, each operation; a start from the page cache; and then a
   power cut at every point that follows;
3. for some of the states above, a power cut at every point of the start from it, and of the
   resends after that.

States are counted that differ in a byte of a file, in the ledger's transaction, or in what was
promised and sent.  What differs in nothing of this is looked at, and counted, once in a unit; two
units never have the same, for every unit's clients are others.

    python -m tests.faults.crash_states --states 100000000 --seed 1
"""

from __future__ import annotations

import argparse
import gc
import json
import multiprocessing
import random
import signal
import sys
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import chain, count, islice
from pathlib import Path
from typing import Any

from attrs import Factory, define, evolve, frozen
from rich import progress
from rich.console import Console

from .crash_checker import Checker, Outcome, Said, silence, still_kept
from .histories import HISTORIES, Mark, Run, Violation, history
from .memory_disk import State
from .power_cut import SECTOR, Choice, PowerCut

__all__ = ["Effort", "Recipe", "Tally", "explore", "replay", "search", "units"]

# In the place of a point: the history itself broke a promise; its end was damaged.
_HISTORY, _DAMAGE = -1, -2


@frozen
class Effort:
    """
    How much of a unit is looked at.

    @ivar every: up to how many choices of a power cut all are; of more, the small ones (all, or
        nothing, but for one or two parts) and some others.
    @ivar others: how many others.
    @ivar after_kill: how many at each point after a kill.
    @ivar again: of how many states, one is crashed again.
    @ivar crashes_again: and how many choices are tried at each of its points.
    @ivar damages: how often a whole log is damaged in one place.
    """

    every: int = 1500
    others: int = 400
    after_kill: int = 12
    again: int = 60
    crashes_again: int = 6
    damages: int = 40


@frozen
class Recipe:
    """How to have a state again."""

    kind: str
    seed: int
    kill: int | None
    half: bool
    point: int
    choice: Choice
    then_point: int = 0
    then_choice: Choice | None = None

    def __str__(self) -> str:
        fields = {name: getattr(self, name) for name in self.__slots__ if name[0] != "_"}
        return json.dumps(fields, separators=(",", ":"))

    @classmethod
    def parse(cls, text: str) -> Recipe:
        fields = json.loads(text)
        for name in ("choice", "then_choice"):
            fields[name] = fields[name] and tuple(fields[name])
        return cls(**fields)


@define
class Tally:
    """
    What was looked at.

    @ivar states: distinct states, by what led there.
    @ivar complete: points of which every choice was looked at.
    @ivar sampled: the other points.
    @ivar damaged: states besides, in which what was synced is damaged.
    @ivar refused: how many of these a start refused.
    @ivar failure: the first state that broke a promise, and how.
    """

    states: Counter[str] = Factory(Counter)
    complete: int = 0
    sampled: int = 0
    damaged: int = 0
    refused: int = 0
    failure: tuple[Recipe, str] | None = None

    @property
    def total(self) -> int:
        return self.states.total()

    def add(self, other: Tally) -> None:
        self.states += other.states
        self.complete += other.complete
        self.sampled += other.sampled
        self.damaged += other.damaged
        self.refused += other.refused
        self.failure = self.failure or other.failure

    def told(self) -> str:
        """For people."""
        kinds = ", ".join(f"{count:,} after {name}" for name, count in self.states.items())
        return (
            f"{self.total:,} distinct states ({kinds}); every choice at {self.complete:,} points, "
            f"the small ones and a sample at {self.sampled:,}; besides, {self.damaged:,} states "
            f"with damage, of which a start refused {self.refused:,}"
        )


class _Unit:
    def __init__(self, kind: str, seed: int, effort: Effort, said: Said) -> None:
        self.kind = kind
        self.seed = seed
        self.effort = effort
        self.tally = Tally()
        self._said = said
        self._rng = random.Random(f"{kind} {seed} states")
        self._seen: set[int] = set()

    def explore(self) -> None:
        """All of the unit, or up to the first failure."""
        run = self._history(None, False)
        if run is None:
            return
        self._power_cuts(run, None, False, self.effort.every, self.effort.others, "a power cut")
        self._damage(run)
        for kill, note in enumerate(run.disk.notes):
            for half in (False, True) if note[0] == "write" else (False,):
                if self.tally.failure is not None:
                    return
                killed = self._history(kill, half)
                if killed is None:
                    return
                few = self.effort.after_kill
                self._power_cuts(killed, kill, half, 2 * few, few, "a kill and a power cut")

    def _history(self, kill: int | None, half: bool) -> Run | None:
        try:
            return history(self.kind, self.seed, kill, half)
        except Exception as e:
            recipe = Recipe(self.kind, self.seed, kill, half, _HISTORY, ())
            self.tally.failure = recipe, f"{type(e).__name__}: {e}"
            return None

    def _power_cuts(
        self, run: Run, kill: int | None, half: bool, every: int, others: int, name: str
    ) -> None:
        checker = Checker(run, self._said)
        for point in range(run.first, len(run.disk.notes) + 1):
            cut = PowerCut(run.disk, point, run.settings.deletable)
            mark = run.mark(point)
            for choice in self._choices(cut, every, others, kill is None):
                state = cut.state(choice)
                if not self._is_new(mark, state):
                    continue
                self.tally.states[name] += 1
                try:
                    outcome = checker.check(mark, state, run.now + run.later)
                except Exception as e:
                    recipe = Recipe(self.kind, self.seed, kill, half, point, choice)
                    self._fail(recipe, e)
                    return
                if self._rng.random() * self.effort.again < 1:
                    self._again(run, checker, state, outcome, (kill, half, point, choice))
                    if self.tally.failure is not None:
                        return

    def _damage(self, run: Run) -> None:
        """Damage to what was synced: it is never cut off for a torn commit, nor silently."""
        checker = Checker(run, self._said)
        for number, state in enumerate(damages(run, self.seed, self.effort.damages), 1):
            self.tally.damaged += 1
            try:
                self.tally.refused += checker.check_damaged(state, run.now + run.later)
            except Exception as e:
                recipe = Recipe(self.kind, self.seed, None, False, _DAMAGE, (number,))
                self.tally.failure = recipe, f"{type(e).__name__}: {e}"
                return

    def _choices(self, cut: PowerCut, every: int, others: int, small: bool) -> Iterator[Choice]:
        if cut.size <= every:
            self.tally.complete += 1
            return cut.every()
        self.tally.sampled += 1
        sampled = (cut.sample(self._rng) for _ in range(others))
        return chain(cut.small(), sampled) if small else sampled

    def _again(
        self, run: Run, checker: Checker, first: State, outcome: Outcome, place: tuple[Any, ...]
    ) -> None:
        for point in range(1, len(outcome.disk.notes) + 1):
            cut = PowerCut(outcome.disk, point)
            mark = outcome.mark(point)
            few = self.effort.crashes_again
            for choice in self._choices(cut, few, few, False):
                state = cut.state(choice)
                if not self._is_new(mark, state):
                    continue
                self.tally.states["a crash in or after a start"] += 1
                try:
                    check_again(run, checker, first, outcome, mark, state)
                except Exception as e:
                    self._fail(Recipe(self.kind, self.seed, *place, point, choice), e)
                    return

    def _is_new(self, mark: Mark, state: State) -> bool:
        key = hash(
            (
                frozenset(state.files.items()),
                state.ledger and state.ledger.key,
                *mark.promised.values(),
                *mark.sent.values(),
            )
        )
        if key in self._seen:
            return False
        self._seen.add(key)
        return True

    def _fail(self, recipe: Recipe, error: Exception) -> None:
        recipe = _smallest(recipe, self._said)
        self.tally.failure = recipe, f"{type(error).__name__}: {error}"


def damages(run: Run, seed: int, count: int) -> Iterator[State]:
    """A history's end, whole but for damage in one place; with one of its ledgers, or none."""
    rng = random.Random(f"{seed} damage")
    files = {name: data for name, data in run.disk.look().files.items() if data}
    ledgers = [note[1] for note in run.disk.notes if note[0] == "commit"]
    for _ in range(count if files else 0):
        name = rng.choice(list(files))
        ledger = rng.choice((None, ledgers[-1], rng.choice(ledgers)))
        yield State({**files, name: damage(files[name], rng)}, ledger)


def damage(data: bytes, rng: random.Random) -> bytes:
    """A file with a bit turned, zeros, or a line too few or twice."""
    kind, at = rng.randrange(5), rng.randrange(len(data))
    if kind == 0:
        return data[:at] + bytes([data[at] ^ 1 << rng.randrange(8)]) + data[at + 1 :]
    if kind < 3:
        size = rng.choice((SECTOR, 8 * SECTOR))
        begin = at // size * size
        return data[:begin] + bytes(len(data[begin : begin + size])) + data[begin + size :]
    lines = data.splitlines(keepends=True)
    at = rng.randrange(len(lines))
    return b"".join([*lines[:at], *lines[at : at + 1] * (2 * (kind - 3)), *lines[at + 1 :]])


def check_again(
    run: Run, checker: Checker, first: State, outcome: Outcome, mark: Mark, state: State
) -> None:
    """Check a state that another crash left in or after a start."""
    if not still_kept(first, outcome.cut, state):
        raise Violation(f"what was cut off, down to {outcome.cut}, is gone after a second crash")
    checker.check(mark, state, run.now + run.later + 1)


def explore(kind: str, seed: int, effort: Effort) -> Tally:
    """Look at a unit; what the server says meanwhile is not shown."""
    with silence() as said:
        unit = _Unit(kind, seed, effort, said)
        unit.explore()
    return unit.tally


def replay(recipe: Recipe, said: Said | None = None) -> None:
    """
    Have a state again, and start from it.

    @raise Violation: a promise is broken.
    """
    if said is None:
        with silence() as said:
            replay(recipe, said)
        return
    run = history(recipe.kind, recipe.seed, recipe.kill, recipe.half)
    checker = Checker(run, said)
    if recipe.point == _DAMAGE:
        (number,) = recipe.choice
        *_, damaged = damages(run, recipe.seed, number)
        checker.check_damaged(damaged, run.now + run.later)
    elif recipe.point != _HISTORY:
        first = PowerCut(run.disk, recipe.point, run.settings.deletable).state(recipe.choice)
        outcome = checker.check(run.mark(recipe.point), first, run.now + run.later)
        if recipe.then_choice is not None:
            state = PowerCut(outcome.disk, recipe.then_point).state(recipe.then_choice)
            check_again(run, checker, first, outcome, outcome.mark(recipe.then_point), state)


def _smallest(recipe: Recipe, said: Said) -> Recipe:
    """The same failure with as little undone as possible."""

    def fails(changed: Recipe) -> bool:
        try:
            replay(changed, said)
        except Exception:
            return True
        return False

    name = "choice" if recipe.then_choice is None else "then_choice"
    for part in range(len(getattr(recipe, name))):
        choice = list(getattr(recipe, name))
        if choice[part]:
            choice[part] = 0
            changed = evolve(recipe, **{name: tuple(choice)})
            if fails(changed):
                recipe = changed
    return recipe


def units(seed: int, start: int = 0) -> Iterator[tuple[str, int]]:
    """Kinds and seeds of histories, one after the other, without an end."""
    kinds = list(HISTORIES)
    for number in count(start):
        yield kinds[number % len(kinds)], (seed << 32) + number // len(kinds)


def _prepare() -> None:
    """Make a worker of a process."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the one that has them
    # What a start leaves is in cycles, but little: to search for it all the time costs a tenth.
    gc.set_threshold(200_000, 2, 2)


def _explore(unit: tuple[str, int, Effort]) -> Tally:
    return explore(*unit)


def search(
    states: int,
    seed: int,
    *,
    start: int = 0,
    workers: int | None = None,
    effort: Effort | None = None,
) -> Iterator[Tally]:
    """
    Look at units until there were so many states, or a failure: a tally of each unit.

    @param start: the number of the first unit.
    @param workers: how many processes; L{None}: one for each processor.
    """
    effort = effort or Effort()
    todo = ((kind, number, effort) for kind, number in units(seed, start))
    total = 0
    with multiprocessing.get_context("spawn").Pool(workers, _prepare) as pool:
        # Not all at once: imap takes from an iterator without an end for ever.
        while batch := list(islice(todo, 8 * len(HISTORIES))):
            for tally in pool.imap(_explore, batch):
                yield tally
                total += tally.total
                if total >= states or tally.failure is not None:
                    return


def main(arguments: Sequence[str] | None = None) -> int:
    """The command."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.faults.crash_states", description=__doc__
    )
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    add = parser.add_argument
    add("--states", type=int, default=1_000_000, help="how many to look at (%(default)s)")
    add("--seed", type=int, default=1, help="of the histories (%(default)s)")
    add("--start", type=int, default=0, help="the unit to begin with: where a run was left")
    add("--workers", type=int, help="processes; one for each processor if not given")
    add("--replay", metavar="RECIPE", help="start from one state alone, as a failure names it")
    add("--report", type=Path, metavar="FILE", help="a file for all numbers, JSON")
    options = parser.parse_args(arguments)
    if options.replay:
        try:
            replay(Recipe.parse(options.replay))
        except Violation as e:
            print(f"broken: {e}")
            return 1
        print("every promise is kept")
        return 0
    # It is ignored in what a shell began in the background, but somebody may want the figures.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    tally, done = Tally(), options.start
    columns = (
        progress.TextColumn("{task.completed:,.0f} states"),
        progress.BarColumn(),
        progress.TextColumn("{task.fields[speed]}/s"),
        progress.TimeElapsedColumn(),
        progress.TimeRemainingColumn(),
    )
    began = time.monotonic()
    try:
        with progress.Progress(*columns, console=Console(stderr=True)) as bar:
            task = bar.add_task("", total=options.states, speed="0")
            found = search(
                options.states, options.seed, start=options.start, workers=options.workers
            )
            for unit in found:
                tally.add(unit)
                done += 1
                speed = tally.total / (time.monotonic() - began)
                bar.update(task, completed=tally.total, speed=f"{speed:,.0f}")
    except KeyboardInterrupt:
        print("stopped")
    print(tally.told())
    if options.report:
        numbers = {
            "states": tally.total,
            "damaged": tally.damaged,
            "refused": tally.refused,
            "broken": tally.failure and [str(each) for each in tally.failure],
        }
        options.report.write_text(json.dumps(numbers, indent=1) + "\n")
    if tally.failure is not None:
        recipe, what = tally.failure
        print(f"broken: {what}\n\nHave it again with\n  --replay '{recipe}'")
        return 1
    print(f"no promise was broken; go on with --seed {options.seed} --start {done}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
