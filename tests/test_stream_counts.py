"""What a store on a stream counts, for each way in which an append may come to nothing or not."""

from __future__ import annotations

from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from msglog import NackCode
from msglog._batch import STORED
from msglog._jetstream import Unknown
from msglog._nats_store import NatsStore
from msglog._stream_counts import LinkCounts
from msglog._stream_figures import StreamFigures
from msglog.testing import MemoryStream

from .test_nats_store import ACCESS, B, NatsCase


def counted(numbers: dict[str, int]) -> dict[str, int]:
    return {name: n for name, n in numbers.items() if n}


class StreamCase(NatsCase):
    def figures(self, store: NatsStore) -> StreamFigures:
        figures = store.figures().stream
        assert figures is not None
        return figures

    def check(self, store: NatsStore, **expected: dict[str, int]) -> None:
        """These and no others of what is unknown, found, conflicting and refused."""
        figures = self.figures(store)
        for name in ("unknown", "found", "conflicts", "refused"):
            numbers = counted(getattr(figures, name))
            self.assertEqual(numbers, expected.get(name, {}), name)
        unresolved = sum(figures.unknown.values()) - sum(figures.found.values())
        self.assertEqual(figures.unresolved, unresolved)

    def other(self) -> NatsStore:
        store = NatsStore(
            self.clock, ACCESS, link=self.stream, ask=self.stream.ask, clock=lambda: 1e9
        )
        store.startService()
        self.addCleanup(lambda: store._ticks.running and store._ticks.stop())
        return store

    def begin(self, sequence: int, *bodies: bytes) -> NatsStore:
        """A store whose append of these is under way, behind one that is stored."""
        store = self.make_store()
        for n in range(1, sequence):
            self.append(store, n, b"%d" % n)
        self.settle(store)
        self.stream.automatic = False
        self.verdict = self.append(store, sequence, *bodies)
        self.clock.advance(0)
        return store

    def answer(self, store: NatsStore, kind: str) -> None:
        """The request that is under way is answered, after what was asked before it."""
        while self.figures(store).under_way[kind]:
            self.assertTrue(self.stream.step(), kind)

    def go_on(self) -> None:
        """Everything is answered from here on, and a little time passes."""
        self.stream.automatic = True
        while self.stream.step():
            pass
        self.advance(1)


class UnknownTest(StreamCase):
    def test_well(self) -> None:
        """While all is well, nothing of this is counted."""
        store = self.make_store()
        for n in range(1, 6):
            self.append(store, n, b"x")
            self.settle(store)
        self.check(store)

    def test_causes(self) -> None:
        """Whatever became of the answer is a cause, and the tail says that nothing was stored."""
        for cause in (
            *(Unknown.TIMEOUT, Unknown.DISCONNECTED, Unknown.NO_RESPONDERS, Unknown.OTHER),
        ):
            store = self.begin(2, b"b")
            self.stream.lose(cause)
            self.assertEqual(self.figures(store).unresolved, 1)
            self.go_on()
            self.assertEqual(self.successResultOf(self.verdict), STORED)
            self.check(store, unknown={cause.value: 1}, found={"not_landed": 1})

    def test_landed(self) -> None:
        store = self.begin(2, b"b")
        self.stream.land(Unknown.DISCONNECTED)
        self.go_on()
        self.assertEqual(self.successResultOf(self.verdict), STORED)
        self.check(store, unknown={"disconnected": 1}, found={"landed": 1})

    def test_partly(self) -> None:
        """Another front-end stored the first of its messages, and the rest is stored then."""
        store = self.begin(2, b"b", b"c", b"d")
        self.stream.lose()
        self.stream.automatic = True
        self.append(self.other(), 2, b"b", b"c")
        self.go_on()
        self.assertEqual(self.successResultOf(self.verdict), STORED)
        self.assertEqual([s for _, s, _ in self.stored(store)], [1, 2, 3, 4])
        self.check(store, unknown={"timeout": 1}, found={"partly": 1})

    def test_conflict_elsewhere(self) -> None:
        """Another front-end took the client's next message: this one's resend landed there."""
        one = self.make_store()
        two = self.other()
        self.append(one, 1, b"a")
        self.settle(one)
        self.append(two, 2, b"b")
        self.settle(two)
        verdict = self.append(one, 2, b"b")
        self.settle(one)
        self.assertEqual(self.successResultOf(verdict), STORED)
        self.check(
            one,
            unknown={"wrong_last_sequence": 1},
            found={"landed": 1},
            conflicts={"elsewhere": 1},
        )
        self.check(two)

    def test_conflict_late(self) -> None:
        """An append that was looked for lands after all, and the next attempt finds it there."""
        store = self.begin(2, b"b")
        subject, payload, headers, _ = self.stream._waiting[0]
        self.stream.lose()
        self.advance(1)
        self.stream.step()  # the engine is there
        self.clock.advance(0)
        self.assertEqual(self.figures(store).under_way["tail"], 1)
        self.answer(store, "tail")  # and the append is not there
        self.clock.advance(0)
        self.stream._append(subject, payload, headers)
        self.go_on()
        self.assertEqual(self.successResultOf(self.verdict), STORED)
        self.assertEqual([s for _, s, _ in self.stored(store)], [1, 2])
        self.check(
            store,
            unknown={"timeout": 1, "wrong_last_sequence": 1},
            found={"not_landed": 1, "landed": 1},
            conflicts={"late": 1},
        )

    def test_conflict_in_flight(self) -> None:
        """Another append is under way, and comes to nothing: the tail has not moved."""
        store = self.make_store()
        self.stream.busy = 1
        verdict = self.append(store, 1, b"a")
        self.settle(store)
        self.assertEqual(self.successResultOf(verdict), STORED)
        self.check(
            store,
            unknown={"in_flight": 1},
            found={"not_landed": 1},
            conflicts={"nothing": 1},
        )

    def test_gave_up(self) -> None:
        """The engine stays away, and nobody waits any longer; a resend is no part of that."""
        store = self.begin(2, b"b")
        self.stream.away = True
        self.go_on()
        self.check(store, unknown={"timeout": 1})
        self.advance(15)
        self.assertEqual(self.code(self.verdict), NackCode.UNAVAILABLE)
        lost = {"unknown": {"timeout": 1}, "found": {"gave_up": 1}}
        self.check(store, **lost, refused={"late": 1})
        self.append(store, 2, b"b", b"c")
        self.check(store, **lost, refused={"late": 1, "away": 2})

    def test_gave_up_under_way(self) -> None:
        """So it is when the answer comes after everybody has gone."""
        store = self.begin(2, b"b")
        self.advance(16)
        self.assertEqual(self.code(self.verdict), NackCode.UNAVAILABLE)
        self.check(store, refused={"late": 1})
        self.stream.lose()
        self.check(store, unknown={"timeout": 1}, found={"gave_up": 1}, refused={"late": 1})
        self.assertTrue(store.idle)


class RefusedTest(StreamCase):
    def test_full(self) -> None:
        """Messages that found no room; a resend among them is none."""
        store = self.make_store()
        self.append(store, 1, b"a")
        self.settle(store)
        self.stream.full = True
        self.append(store, 1, b"a", b"b", b"c")
        self.settle(store)
        self.check(store, refused={"full": 2})

    def test_damaged(self) -> None:
        store = self.make_store()
        self.stream.messages.append(("msglog.00010203-0405-0607-0809-0a0b0c0d0e0f", {}, b"hello"))
        self.append(store, 1, b"a", b"b")
        self.append(store, 1, b"a", client=B)
        self.settle(store)
        self.check(store, refused={"damaged": 2})

    def test_lost(self) -> None:
        store = self.make_store()
        self.stream.info["created"] = "later"
        self.advance(2)
        self.append(store, 1, b"a")
        self.check(store, refused={"lost": 1})
        self.assertEqual(self.figures(store).state, "lost")

    def test_unusable(self) -> None:
        store = self.make_store()
        self.stream.max_payload = 1000
        self.advance(2)
        self.append(store, 1, b"a")
        self.check(store, refused={"unusable": 1})
        self.assertEqual(self.figures(store).state, "unusable")

    def test_stopping(self) -> None:
        store = self.make_store()
        store.stopService()
        self.append(store, 1, b"a")
        self.check(store, refused={"stopping": 1})


class RequestsTest(StreamCase):
    def test_seconds_and_bytes(self) -> None:
        """How long each kind of request took, and what was read."""
        store = self.make_store()
        for n in range(1, 4):
            self.append(store, n, b"%d" % n)
            self.settle(store)
        two = self.other()
        self.stream.automatic = False
        resend = self.append(two, 1, b"1", b"2", b"3", b"4")
        for kind, seconds in (("tail", 0.2), ("earlier", 0.3), ("earlier", 0.3), ("append", 0.1)):
            self.clock.advance(0)
            under_way = {"append": 0, "tail": 0, "earlier": 0, kind: 1}
            self.assertEqual(self.figures(two).under_way, under_way)
            self.clock.advance(seconds)
            self.answer(two, kind)
        self.assertEqual(self.successResultOf(resend), STORED)
        figures = self.figures(two)
        self.assertEqual(set(figures.under_way.values()), {0})
        for kind, count, total in (("tail", 1, 0.2), ("earlier", 2, 0.6), ("append", 1, 0.1)):
            histogram = figures.request_seconds[kind]
            self.assertEqual(sum(histogram.buckets), count, kind)
            self.assertAlmostEqual(histogram.total, total, msg=kind)
        self.assertGreater(figures.read_bytes["tail"], 100)
        self.assertGreater(figures.read_bytes["earlier"], figures.read_bytes["tail"])

    def test_unanswered(self) -> None:
        """A request without an answer took no time that says anything."""
        store = self.begin(1, b"a")
        self.stream.lose()
        self.assertEqual(sum(self.figures(store).request_seconds["tail"].buckets), 0)
        self.assertEqual(self.figures(store).under_way["tail"], 0)

    def test_batches(self) -> None:
        """What arrives while an append is under way is the next one, however many batches."""
        store = self.begin(2, b"b")
        for n in (3, 4, 5):
            self.append(store, n, b"x")
        self.go_on()
        batches = self.figures(store).append_batches
        self.assertEqual((sum(batches.buckets), batches.total), (3, 5))
        self.assertEqual(store.figures().commit_messages.total, 5)


class EngineTest(StreamCase):
    def test_state(self) -> None:
        store = self.make_store()
        self.assertEqual(
            (self.figures(store).state, self.figures(store).away_seconds), ("answering", 0)
        )
        self.stream.away = True
        self.advance(5)
        self.assertEqual(self.figures(store).state, "away")
        self.assertTrue(3 < self.figures(store).away_seconds < 5)
        self.stream.away = False
        self.advance(1)
        self.assertEqual(
            (self.figures(store).state, self.figures(store).away_seconds), ("answering", 0)
        )

    def test_replicas(self) -> None:
        """The stream's servers, as its leader last said, and that there was another leader."""
        stream = MemoryStream()
        stream.info["cluster"] = cluster = {
            "leader": "n1",
            "replicas": [
                {"name": "n2", "current": True, "active": 2_000_000_000, "lag": 0},
                {"name": "n3", "current": True, "offline": True, "active": 0, "lag": 7},
            ],
        }
        store = self.make_store(stream)
        figures = self.figures(store)
        self.assertEqual((figures.leader, figures.leaders), ("n1", 0))
        self.assertEqual((figures.replicas, figures.replicas_current), (3, 2))
        two, three = figures.others
        self.assertEqual((two.name, two.current, two.lag, two.silent_seconds), ("n2", True, 0, 2))
        self.assertEqual((three.current, three.lag), (False, 7))
        for leader in ("", "n2", "n2", "n1"):
            stream.info["cluster"] = {**cluster, "leader": leader}
            self.advance(1.5)
        self.assertEqual((self.figures(store).leader, self.figures(store).leaders), ("n1", 2))

    def test_nothing_known(self) -> None:
        """Before the engine has said anything, nothing is claimed of it."""
        stream = MemoryStream()
        stream.away = True
        figures = self.figures(self.make_store(stream))
        self.assertEqual((figures.leader, figures.replicas, figures.others), ("", 0, ()))
        self.assertEqual(figures.server, "")


class LinkCountsTest(SynchronousTestCase):
    def test_connections(self) -> None:
        """The first connection is no reconnect."""
        clock = Clock()
        counts = LinkCounts(clock.seconds)
        clock.advance(3)
        counts.disconnected()
        self.assertEqual(counts.lost_seconds, 3)
        counts.connected("n1:4222")
        self.assertEqual((counts.server, counts.lost_seconds), ("n1:4222", 0))
        self.assertEqual(counts.reconnects, 0)
        counts.disconnected()
        clock.advance(2)
        counts.disconnected()
        clock.advance(2)
        self.assertEqual((counts.server, counts.lost_seconds), ("", 4))
        counts.connected("n2:4222")
        self.assertEqual(counts.reconnects, 1)
