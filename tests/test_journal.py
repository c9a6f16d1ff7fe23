"""Logging an application's own messages."""

from __future__ import annotations

from uuid import UUID

from twisted.trial.unittest import SynchronousTestCase

from msglog import Journal, NotLogged
from msglog._frames import message_checksum
from msglog.testing import MemoryStore, appended, make_batch

CLIENT = UUID(int=7)


class JournalTest(SynchronousTestCase):
    def setUp(self) -> None:
        self.store = MemoryStore(automatic=False)
        self.journal = Journal(self.store, CLIENT, max_pending_bytes=100)

    def settle(self) -> None:
        while self.store._waiting:
            self.store.commit()

    def bodies(self) -> list[bytes]:
        return [body for *_, body in self.store.messages]

    def test_receipts(self) -> None:
        """Each message gets the receipt for itself, in order, when it is durable."""
        receipts = [self.journal.log(body) for body in (b"a", b"b", b"c")]
        self.assertNoResult(receipts[0])
        self.settle()
        self.assertEqual(self.bodies(), [b"a", b"b", b"c"])
        for sequence, (receipt, body) in enumerate(
            zip(receipts, (b"a", b"b", b"c"), strict=True), 1
        ):
            got = self.successResultOf(receipt)
            self.assertEqual((got.client, got.sequence), (CLIENT, sequence))
            self.assertEqual(got.checksum, message_checksum(CLIENT.bytes, sequence, body))
        self.assertEqual(self.journal.pending_bytes, 0)

    def test_carries_on(self) -> None:
        """A journal of a client that has logged before goes on after that."""
        appended(self.store, make_batch(CLIENT.bytes, 1, b"old", b"old"))
        self.settle()
        receipt = self.journal.log(b"new")
        self.settle()
        self.assertEqual(self.successResultOf(receipt).sequence, 3)

    def test_refused(self) -> None:
        """What is refused says so, may be logged again, and leaves no gap."""
        self.store.full = True
        receipt = self.journal.log(b"a")
        self.settle()
        error = self.failureResultOf(receipt, NotLogged).value
        self.assertTrue(error.retry)
        self.store.full = False
        again = self.journal.log(b"a")
        self.settle()
        self.assertEqual(self.successResultOf(again).sequence, 1)
        self.assertEqual(self.bodies(), [b"a"])

    def test_bounded(self) -> None:
        """It holds no more than its limit; a single larger message is still taken."""
        first = self.journal.log(bytes(150))
        error = self.failureResultOf(self.journal.log(b"x"), NotLogged).value
        self.assertTrue(error.retry)
        self.settle()
        self.successResultOf(first)
        last = self.journal.log(b"x")
        self.settle()
        self.assertEqual(self.successResultOf(last).sequence, 2)

    def test_too_long(self) -> None:
        """A message that no record may hold is refused for good."""
        error = self.failureResultOf(self.journal.log(bytes((16 << 20) + 1)), NotLogged).value
        self.assertFalse(error.retry)

    def test_logged_when_a_receipt_fires(self) -> None:
        """It is with the store before anything that follows, such as a stop."""
        self.journal.log(b"a").addCallback(lambda _: self.journal.log(b"b"))
        self.store.commit()
        self.store.commit()
        self.assertEqual(self.bodies(), [b"a"])
        self.assertEqual(len(self.store._waiting), 1)
