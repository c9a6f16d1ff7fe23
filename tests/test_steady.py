"""A reactor's time that does not follow the system's clock."""

from __future__ import annotations

import time
from unittest.mock import patch

from twisted.internet.base import ReactorBase
from twisted.trial.unittest import SynchronousTestCase

from msglog._steady import steady


class Reactor(ReactorBase):
    """One that nothing wakes up."""

    def installWaker(self) -> None:
        pass


class SteadyTest(SynchronousTestCase):
    def setUp(self) -> None:
        self.now, self.passed = 1_795_000_000.0, 50.0
        for name in ("time", "monotonic"):
            ours = {"time": lambda: self.now, "monotonic": lambda: self.passed}[name]
            patcher = patch.object(time, name, ours)
            patcher.start()
            self.addCleanup(patcher.stop)
        self.reactor = Reactor()
        self.done: list[str] = []

    def after(self, passed: float, clock: float) -> list[str]:
        """What has been done when so much time has passed, and the clock says something else."""
        self.passed += passed
        self.now += clock
        self.reactor.runUntilCurrent()
        return self.done

    def test_set_back_and_forward(self) -> None:
        """What is scheduled is due after its seconds, whatever the clock is set to."""
        steady(self.reactor)
        self.reactor.callLater(10, self.done.append, "a")
        self.assertEqual(self.after(9, 3600), [])
        self.assertEqual(self.after(1, -7200), ["a"])
        self.assertEqual(self.reactor.seconds(), 1_795_000_010.0)

    def test_scheduled_before(self) -> None:
        """What somebody scheduled before is due when it was to be; and twice changes nothing."""
        # By the clock, as a reactor does that was left as it is.
        self.reactor.seconds = lambda: self.now
        self.reactor.callLater(10, self.done.append, "a")
        steady(self.reactor)
        self.now += 5000
        steady(self.reactor)
        self.assertEqual(self.after(9, 9), [])
        self.assertEqual(self.after(1, 1), ["a"])
