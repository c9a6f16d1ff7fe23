"""What only pytest needs: trial gives each run a folder of its own, pytest does not."""

from __future__ import annotations

import pytest


@pytest.fixture(autouse=True)
def _own_folder(tmp_path, monkeypatch):
    """Run each test in a folder of its own, for trial's C{mktemp} makes names relative to it."""
    monkeypatch.chdir(tmp_path)
