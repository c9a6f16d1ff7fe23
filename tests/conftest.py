"""What only pytest needs: trial gives each run a folder of its own, pytest does not."""

from __future__ import annotations

import os

import pytest
from hypothesis import HealthCheck, Phase, settings

if "MUTANT_UNDER_TEST" in os.environ:
    # mutmut runs the tests once for each mutant, in forks of one process that has run them before
    # (which a health check takes for a defect).  The same examples each time, and one that fails
    # is enough.
    settings.register_profile(
        "mutants",
        derandomize=True,
        database=None,
        deadline=None,
        max_examples=40,
        phases=[Phase.explicit, Phase.generate],
        suppress_health_check=[HealthCheck.differing_executors, HealthCheck.too_slow],
    )
    settings.load_profile("mutants")


@pytest.fixture(autouse=True)
def _own_folder(tmp_path, monkeypatch):
    """Run each test in a folder of its own, for trial's C{mktemp} makes names relative to it."""
    monkeypatch.chdir(tmp_path)
