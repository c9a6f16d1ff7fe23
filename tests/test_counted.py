"""Numbers of things, in words for people."""

from __future__ import annotations

from twisted.trial.unittest import SynchronousTestCase

from msglog._counted import counted


class CountedTest(SynchronousTestCase):
    def test_words(self) -> None:
        """One is one, and nothing is none of many."""
        words = [counted(n, "client") for n in (0, 1, 2, 12345)]
        self.assertEqual(words, ["0 clients", "1 client", "2 clients", "12,345 clients"])
        self.assertEqual(counted(1, "message was", "messages were"), "1 message was")
        self.assertEqual(counted(1000, "message was", "messages were"), "1,000 messages were")
