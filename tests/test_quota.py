"""How many connections there may be."""

from __future__ import annotations

from twisted.trial.unittest import SynchronousTestCase

from msglog import Limits
from msglog._quota import ConnectionQuota

LIMITS = Limits(max_connections=3, max_connections_per_address=2)


class QuotaTest(SynchronousTestCase):
    def test_places(self) -> None:
        """Each connection takes one of all, and one of its address, until it is gone."""
        quota = ConnectionQuota()
        self.assertIsNone(quota.refusal("a", LIMITS))
        quota.add("a")
        self.assertIsNone(quota.refusal("a", LIMITS))
        quota.add("a")
        self.assertEqual(quota.refusal("a", LIMITS), "address")
        self.assertIsNone(quota.refusal("b", LIMITS))
        quota.add("b")
        self.assertEqual((quota.refusal("c", LIMITS), quota.connections), ("full", 3))
        quota.remove("a")
        self.assertIsNone(quota.refusal("a", LIMITS))
        quota.remove("b")
        self.assertEqual(quota.connections, 1)

    def test_forgets(self) -> None:
        """Nothing is kept of an address that nobody is connected from, nor for asking."""
        quota = ConnectionQuota()
        for origin in map(str, range(100)):
            quota.refusal(origin, LIMITS)
            quota.add(origin)
            quota.add("other")
            quota.remove(origin)
        self.assertEqual(list(quota._origins), ["other"])
