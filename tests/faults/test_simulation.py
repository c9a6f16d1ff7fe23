"""
The simulator: that it is deterministic, that msglog keeps its promises in it, and that it finds
defects and makes small what finds them.

Many more seeds: C{python -m tests.faults.simulate --seeds 100000}.
"""

from __future__ import annotations

import subprocess
import sys
from collections import Counter
from pathlib import Path

from twisted.trial.unittest import SynchronousTestCase

from tests.faults.simulation.course import Outcome, simulate
from tests.faults.simulation.defects import DEFECTS
from tests.faults.simulation.recipe import Event, Recipe, Settings, make_recipe
from tests.faults.simulation.reduce import reduce_recipe

# A planted defect is found within so many seeds.
_SEEDS = 150

# What happens at least now and then: what never happened would not be tested.
_HAPPENS = (
    *("ACK", "TERMS", "MALFORMED", "CORRUPT", "TOO_LONG", "OUT_OF_ORDER"),
    *("NOT_STORED", "UNAVAILABLE", "FORBIDDEN", "CONFLICT"),
    *("starts", "kills", "power cuts", "fail-stops", "torn ends", "syncs in place"),
    *("records read at starts", "clients read from the ledger", "failed calls"),
)

_ROOT = Path(__file__).resolve().parents[2]


class Case(SynchronousTestCase):
    def run_recipe(self, recipe: Recipe) -> Outcome:
        outcome = simulate(recipe)
        # What msglog says there is not this test's; a defect among it is the outcome's violation.
        self.flushLoggedErrors()
        return outcome

    def run_seed(self, seed: int) -> Outcome:
        return self.run_recipe(make_recipe(seed))


class Promises(Case):
    def test_are_kept(self) -> None:
        """Some seeds, of which much happens in each."""
        happened: Counter[str] = Counter()
        for seed in range(40):
            outcome = self.run_seed(seed)
            self.assertEqual(outcome.violation, "", f"seed {seed}")
            happened.update(outcome.counts)
        for what in _HAPPENS:
            self.assertGreater(happened[what], 0, f"{what} in {happened}")


class Determinism(Case):
    def test_a_seed_is_a_course_of_events(self) -> None:
        """The same seed gives the same trace, and another one another."""
        first = [self.run_seed(seed).trace for seed in range(8)]
        again = [self.run_seed(seed).trace for seed in reversed(range(8))]
        self.assertEqual(first, again[::-1])
        self.assertEqual(len(set(first)), 8)

    def test_in_any_process(self) -> None:
        """Neither the order of sets nor the time nor where objects are changes anything."""
        code = (
            "from tests.faults.simulation.recipe import make_recipe\n"
            "from tests.faults.simulation.course import simulate\n"
            "print(*[simulate(make_recipe(seed)).trace for seed in range(5)])"
        )
        traces = {
            subprocess.run(
                [sys.executable, "-c", code],
                cwd=_ROOT,
                env={"PYTHONHASHSEED": seed},
                check=True,
                capture_output=True,
                timeout=120,
            ).stdout
            for seed in ("1", "2")
        }
        self.assertEqual(len(traces), 1)
        here = " ".join(self.run_seed(seed).trace for seed in range(5))
        self.assertEqual(traces, {f"{here}\n".encode()})

    def test_a_recipe_is_text(self) -> None:
        """A recipe that was written down does the same."""
        recipe = make_recipe(11)
        again = Recipe.from_json(recipe.to_json())
        self.assertEqual(self.run_recipe(again).trace, self.run_recipe(recipe).trace)


class Finds(Case):
    """Each planted defect is found; without it, the same seed breaks nothing."""

    def finds(self, name: str) -> None:
        for seed in range(_SEEDS):
            with DEFECTS[name]():
                outcome = self.run_seed(seed)
            if outcome.violation:
                self.assertEqual(self.run_seed(seed).violation, "")
                return
        self.fail(f"{name} is not found in {_SEEDS} seeds")


for _name in DEFECTS:
    setattr(Finds, f"test_{_name}", lambda self, name=_name: self.finds(name))


class Reducing(Case):
    def test_makes_small(self) -> None:
        """Of many events those are left that break the promise, and it is the same promise."""
        with DEFECTS["conflict_is_missed"]():
            recipe = next(
                recipe
                for recipe in map(make_recipe, range(_SEEDS))
                if "logged with other bytes" in self.run_recipe(recipe).violation
            )
            smallest = reduce_recipe(recipe, lambda text: None, most=100)
            again = self.run_recipe(Recipe.from_json(smallest.recipe.to_json()))
        self.flushLoggedErrors()
        self.assertIn("logged with other bytes", smallest.violation)
        self.assertEqual(again.violation, smallest.violation)
        self.assertLess(len(smallest.recipe.events), len(recipe.events) / 2)

    def test_nothing_to_reduce(self) -> None:
        """A recipe that breaks nothing is given back."""
        recipe = Recipe(0, Settings(), [Event(0.1, "send", {"client": 0, "count": 2})])
        outcome = reduce_recipe(recipe, lambda text: None)
        self.assertEqual((outcome.recipe, outcome.violation), (recipe, ""))
