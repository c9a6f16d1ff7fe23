"""What one round of reads brings goes to the store as one piece, and each gets its own verdict."""

from __future__ import annotations

from attrs import define
from twisted.internet.defer import Deferred
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase
from zope.interface import implementer

from msglog import Limits, MessageLogFactory, NackCode
from msglog._batch import STORED, Refusal, Verdict
from msglog._busiest import Busiest
from msglog._counts import ConnectionCounts
from msglog._frames import Run, encode_enquiry, encode_message
from msglog._round import Round
from msglog.interfaces import IGatheringStore
from msglog.testing import MemoryTransport, make_batch

from .test_store import FileCase

A, B, C = bytes(range(16)), bytes(range(16, 32)), bytes(range(32, 48))

# Batches for one commit, when A has 1 and 2: new, again, partly new, other bytes, out of order, and
# partly the same as the one before; and what is stored in the end.
MIXED = [
    (B, 1, b"new"),
    (A, 1, b"a", b"b"),
    (A, 2, b"b", b"c", b"d"),
    (A, 1, b"X", b"b"),
    (B, 3, b"too", b"far"),
    (C, 1, b"c1", b"c2"),
    (C, 2, b"c2", b"c3"),
]
MIXED_STORED = [
    *((A, 1, b"a"), (A, 2, b"b"), (B, 1, b"new"), (A, 3, b"c"), (A, 4, b"d")),
    *((C, 1, b"c1"), (C, 2, b"c2"), (C, 3, b"c3")),
]


@define(eq=False, slots=False)
class Waiter:
    """What waits for a verdict; C{alone} says whether it takes the short one."""

    run: Run
    alone: bool = True
    verdict: Verdict | None = None

    def stored(self) -> bool:
        if self.alone:
            self.judged(STORED)
        return self.alone

    def judged(self, verdict: Verdict) -> None:
        assert self.verdict is None
        self.verdict = verdict


@implementer(IGatheringStore)
class Notes:
    """A store that notes what it is handed."""

    def __init__(self) -> None:
        self.handed: list = []
        self.judged: list = []

    def append_bundle(self, bundle, judged) -> None:
        self.handed.append(bundle)
        self.judged.append(judged)

    def commit(self) -> None:
        self.handed.append("commit")

    def last(self, client: bytes) -> Deferred:
        self.handed.append("last")
        return Deferred()


def waiter(client: bytes, first: int, *bodies: bytes) -> Waiter:
    batch = make_batch(client, first, *bodies)
    heads = [bytes(29)] * len(bodies)
    return Waiter(Run(client, first, batch.checksums, batch.bodies, heads))


def connect(case, store, **limits) -> tuple:
    """A factory of its own for a store, and a connection: protocol and transport."""
    factory = MessageLogFactory(case.clock, store, Limits(**limits))
    case.addCleanup(lambda: factory._sweep.running and factory._sweep.stop())
    protocol, transport = factory.buildProtocol(None), MemoryTransport()
    protocol.makeConnection(transport)
    return factory, protocol, transport


class RoundTest(SynchronousTestCase):
    def setUp(self) -> None:
        self.clock, self.store, self.counts = Clock(), Notes(), ConnectionCounts()
        self.round = Round(self.clock, self.store, self.counts)

    def add(self, *waiters: Waiter) -> None:
        for one in waiters:
            self.round.add(one.run, one)

    def test_without_messages(self) -> None:
        """A round that brought none hands over nothing, but what the store has is committed."""
        self.round.begin()
        self.round.hand_over()
        self.round.end()
        self.assertEqual(self.store.handed, ["commit"])

    def test_one_bundle(self) -> None:
        """All that comes between its beginning and its end is one bundle, and one commit."""
        self.round.begin()
        self.add(waiter(A, 1, b"x"), waiter(B, 5, b"y", b"z"))
        self.clock.advance(0)
        self.assertEqual(self.store.handed, [])
        self.round.end()
        bundle, commit = self.store.handed
        self.assertEqual(commit, "commit")
        self.assertEqual((bundle.clients, bundle.firsts, bundle.counts), ([A, B], [1, 5], [1, 2]))
        self.assertEqual(b"".join(bundle.lines).count(b"\n"), 3)
        self.assertEqual(bundle.size, sum(map(len, bundle.lines)))
        self.assertEqual([len(b.checksums) for b in bundle.batches()], [1, 2])

    def test_without_a_round(self) -> None:
        """What no round brought waits for the turn's end, with all else of this turn."""
        self.add(waiter(A, 1, b"x"), waiter(B, 1, b"x"))
        self.assertEqual(self.store.handed, [])
        self.clock.advance(0)
        bundle, commit = self.store.handed
        self.assertEqual((len(bundle), commit), (2, "commit"))
        self.add(waiter(A, 2, b"x"))
        self.clock.advance(0)
        self.assertEqual(len(self.store.handed), 4)
        # How long it took counts from when it came.
        self.add(waiter(A, 3, b"x"))
        self.clock.advance(0.5)
        self.store.judged[-1]([])
        self.assertEqual(self.counts.ack_seconds.total, 0.5)

    def test_a_question(self) -> None:
        """What came before a question is handed over before it; the rest at the round's end."""
        self.round.begin()
        self.add(waiter(A, 1, b"x"))
        self.round.hand_over()
        self.assertEqual(len(self.store.handed), 1)
        self.add(waiter(A, 2, b"x"))
        self.round.end()
        self.assertEqual([len(b) for b in self.store.handed[:2]], [1, 1])
        self.assertEqual(self.store.handed[2:], ["commit"])

    def test_a_question_of_a_connection(self) -> None:
        """The store is asked when it has what came before."""
        _, protocol, _ = connect(self, self.store)
        protocol.dataReceived(
            encode_message(A, 1, b"x") + encode_enquiry(A) + encode_message(A, 2, b"y")
        )
        self.clock.advance(0)
        first, last, second, commit = self.store.handed
        self.assertEqual((first.firsts, last, second.firsts, commit), ([1], "last", [2], "commit"))

    def test_cut(self) -> None:
        """A round that brought very much is several bundles, by batches and by bytes."""
        self.round.begin()
        self.add(*(waiter(n.to_bytes(16), 1, b"x") for n in range(1025)))
        self.round.end()
        self.assertEqual([len(b) for b in self.store.handed[:-1]], [1024, 1])
        self.store.handed.clear()
        self.round.begin()
        self.add(*(waiter(A, n, b"x" * 100_000) for n in range(1, 6)))
        self.round.end()
        self.assertEqual([len(b) for b in self.store.handed[:-1]], [3, 2])

    def test_each_its_own(self) -> None:
        """Whoever is refused hears it, whoever wants the long way gets it, and all are counted."""
        self.counts.busiest = Busiest()
        refused, short, long = waiter(A, 1, b"x"), waiter(B, 1, b"x", b"y"), waiter(C, 1, b"x")
        long.alone = False
        self.clock.advance(10)
        self.round.begin()
        self.add(refused, short, long)
        self.clock.advance(0.25)
        self.round.end()
        verdict = Verdict((Refusal(0, 1, NackCode.CONFLICT, 2, "no"),))
        self.clock.advance(0.25)
        self.store.judged[0]([(0, verdict)])
        self.assertEqual([one.verdict for one in (refused, short, long)], [verdict, STORED, STORED])
        # What goes the long way is counted there.
        self.assertEqual(self.counts.acked, 2)
        self.assertEqual(self.counts.ack_seconds.total, 2 * 0.5)
        self.assertEqual(self.counts.busiest.top(9), [(B, 2)])

    def test_a_store_with_a_defect(self) -> None:
        """What it was to judge is refused, and the next round is its own."""
        self.store.append_bundle = lambda bundle, judged: 1 // 0
        one = waiter(A, 1, b"x")
        self.add(one)
        self.clock.advance(0)
        (refusal,) = one.verdict.refusals
        self.assertEqual(refusal.code, NackCode.UNAVAILABLE)
        self.assertEqual(len(self.flushLoggedErrors(ZeroDivisionError)), 1)

    def test_not_taken(self) -> None:
        """A defect in what one connection does with a verdict costs the others nothing."""
        bad, good = waiter(A, 1, b"x"), waiter(B, 1, b"x")
        bad.stored = lambda: 1 // 0
        self.add(bad, good)
        self.clock.advance(0)
        self.store.judged[0]([])
        self.assertIs(good.verdict, STORED)
        self.assertEqual(len(self.flushLoggedErrors(ZeroDivisionError)), 1)


class FileRoundTest(FileCase):
    """The same with the store on a file, and with connections."""

    def test_verdicts(self) -> None:
        """In one bundle: new, again, partly new, other bytes, out of order, and the same twice."""
        store = self.make_store()
        rounds = Round(self.clock, store, ConnectionCounts())
        first = waiter(A, 1, b"a", b"b")
        rounds.add(first.run, first)
        self.settle(store)
        self.assertIs(first.verdict, STORED)
        waiters = [waiter(*batch) for batch in MIXED]
        rounds.begin()
        for one in waiters:
            rounds.add(one.run, one)
        self.disk.calls.clear()
        rounds.end()
        self.settle(store)
        self.assertEqual(self.disk.calls.count("sync"), 1)
        codes = [[(r.start, r.stop, r.code) for r in one.verdict.refusals] for one in waiters]
        self.assertEqual(
            codes,
            [
                *([], [], []),
                [(0, 1, NackCode.CONFLICT)],
                [(0, 2, NackCode.OUT_OF_ORDER)],
                *([], []),
            ],
        )
        self.assertEqual(self.stored(store), MIXED_STORED)

    def test_a_connection(self) -> None:
        """Messages and questions of one connection are answered in their order."""
        store = self.make_store()
        factory, protocol, transport = connect(self, store)
        protocol.dataReceived(
            encode_message(A, 1, b"x") + encode_enquiry(A) + encode_message(A, 2, b"y")
        )
        protocol.dataReceived(encode_message(B, 2, b"out of order"))
        self.settle(store)
        first, terms, second, refused = transport.answers()
        self.assertEqual([(a.client, a.sequence) for a in (first, second)], [(A, 1), (A, 2)])
        self.assertIn(terms.durable, (1, 2))
        self.assertEqual(refused.code, NackCode.OUT_OF_ORDER)
        self.assertEqual(factory.undurable, 0)
        protocol.dataReceived(encode_message(A, 3, b"z"))
        self.assertEqual(transport.answers(), [])
        self.settle(store)
        (third,) = transport.answers()
        self.assertEqual((third.sequence, factory.undurable, factory.counts.acked), (3, 0, 3))

    def test_who_does_not_read(self) -> None:
        """A peer that leaves its answers is not read; when it has taken them, it is again."""
        store = self.make_store()
        factory, protocol, transport = connect(self, store, max_unread_bytes=20)
        transport.stalled = True
        protocol.dataReceived(encode_message(A, 1, b"x"))
        self.settle(store)
        self.assertEqual(factory.gauges().paused["unread"], 1)
        transport.drain()
        self.assertEqual(factory.gauges().paused["unread"], 0)

    def test_who_is_gone(self) -> None:
        """What a connection that was lost had handed over is stored, and nothing stays owed."""
        store = self.make_store()
        factory, protocol, transport = connect(self, store)
        protocol.dataReceived(encode_message(A, 1, b"x"))
        protocol.connectionLost()
        self.settle(store)
        self.assertEqual(transport.answers(), [])
        self.assertEqual(self.stored(store), [(A, 1, b"x")])
        self.assertEqual(factory.undurable, 0)
