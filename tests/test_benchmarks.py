"""C{python -m benchmarks}: what it makes of what was measured."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from attrs import evolve
from click.testing import CliRunner, Result
from twisted.trial.unittest import SynchronousTestCase

from benchmarks import _cost
from benchmarks._cost import TOLERANCE, Cost, compare
from benchmarks._hot_path import SHAPES

COST = Cost(dict.fromkeys(SHAPES, 1000.0), 500_000, {"twisted": "25.5.0"})


class Costs(SynchronousTestCase):
    """Instructions compared with those on record."""

    def setUp(self) -> None:
        self.figures = Path(self.mktemp())
        self.figures.write_text("{}")
        self.patch(_cost, "FIGURES", self.figures)
        self.patch(shutil, "which", lambda name: name)
        self.patch(_cost, "_totals", dict)
        self.counts(COST)
        self.ci = ""

    def counts(self, cost: Cost) -> None:
        self.patch(_cost, "counted", lambda totals: cost)

    def cost(self, *arguments: str) -> Result:
        return CliRunner().invoke(
            _cost.command, arguments, standalone_mode=True, env={"CI": self.ci}
        )

    def test_scaled(self) -> None:
        """Another build of Python that needs more for everything is no slowdown."""
        dearer = Cost(dict.fromkeys(SHAPES, 1100.0), 550_000, {})
        for ratio in compare(dearer, COST).values():
            self.assertAlmostEqual(ratio, 1.0)

    def test_more(self) -> None:
        """One shape over the tolerance fails, and says which and what to do."""
        self.cost("--update")
        first, *_, last = SHAPES
        within = {**COST.messages, first: 1000 * (1 + 0.9 * TOLERANCE)}
        self.counts(evolve(COST, messages=within))
        self.assertEqual(self.cost().exit_code, 0)
        over = {**COST.messages, last: 1000 * (1 + 1.1 * TOLERANCE)}
        self.counts(evolve(COST, messages=over, libraries={"twisted": "26.1.0"}))
        result = self.cost()
        self.assertEqual(result.exit_code, 1)
        for part in (last, "3.3% more", "--update", "twisted 25.5.0 -> 26.1.0"):
            self.assertIn(part, result.output)

    def test_less(self) -> None:
        """What became cheaper is told, so that it can be kept."""
        self.cost("--update")
        self.counts(evolve(COST, messages=dict.fromkeys(SHAPES, 900.0)))
        result = self.cost()
        self.assertEqual(result.exit_code, 0)
        self.assertIn("cheaper than on record", result.output)

    def test_not_compared(self) -> None:
        """Without figures for this Python, or valgrind, it says so; in CI that is a failure."""
        for said in ("has no figures for Python 3", "valgrind is not installed"):
            for self.ci, status in (("", 0), ("true", 1)):
                result = self.cost()
                self.assertEqual(result.exit_code, status, result.output)
                self.assertIn(said, result.output)
            self.patch(shutil, "which", lambda name: None)

    def test_json(self) -> None:
        found = json.loads(self.cost("--json", "--update").stdout)
        self.assertEqual(found["messages"], COST.messages)
        self.assertEqual(list(json.loads(self.figures.read_text())), [found["python"]])

    def test_on_record(self) -> None:
        """What is on record is of the shapes that there are."""
        for record in json.loads(Path(_cost.__file__).with_name("cost.json").read_text()).values():
            self.assertEqual(list(Cost(**record).messages), list(SHAPES))
