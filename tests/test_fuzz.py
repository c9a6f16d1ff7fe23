"""What is fuzzed for as long as wanted by tests/faults/fuzz, for some seconds."""

from __future__ import annotations

import time

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from tests.faults.fuzz.targets import CORPUS, TARGETS, attempt

# Quick ones, and those that write files: in three seconds each.
_EXAMPLES = {"answers": 300, "frames": 250, "http": 150, "line": 300, "nats": 250}
_FEW = 12

# For all that is kept; a machine that is busy leaves some out.
_CORPUS_SECONDS = 20.0


class Corpus(SynchronousTestCase):
    def test_kept(self) -> None:
        """What broke a promise once, and what reaches most code."""
        end = time.monotonic() + _CORPUS_SECONDS
        tried = 0
        for target in sorted(TARGETS):
            for path in sorted((CORPUS / target).iterdir()):
                if time.monotonic() < end:
                    attempt(target, path.read_bytes())
                    tried += 1
        self.assertGreater(tried, 0)


class Some(SynchronousTestCase):
    def look(self, target: str) -> None:
        bounded = settings(
            max_examples=_EXAMPLES.get(target, _FEW),
            deadline=None,
            database=None,
            suppress_health_check=list(HealthCheck),
        )
        bounded(given(st.binary(max_size=300))(lambda data: attempt(target, data)))()


def _test(target: str):
    def test(self: Some) -> None:
        self.look(target)

    test.__doc__ = TARGETS[target].__doc__
    return test


for _target in TARGETS:
    setattr(Some, f"test_{_target}", _test(_target))
