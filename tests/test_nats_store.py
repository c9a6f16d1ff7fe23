"""The store on a stream, with a stream in memory: the contract, and an engine that misbehaves."""

from __future__ import annotations

from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from msglog import Limits, NackCode, StartError, parse_line
from msglog._batch import STORED
from msglog._factory import MessageLogFactory
from msglog._figures import read_figures
from msglog._health import judge
from msglog._jetstream import Reply
from msglog._memory_stream import _error
from msglog._nats_access import parse_nats
from msglog._nats_store import NatsStore
from msglog._shards import shard_of, shards_of
from msglog._stream_health import StreamHealth
from msglog._stream_settings import stream_config
from msglog.testing import MemoryStream, StoreContract, appended, make_batch

MISSING = _error(404, 10059, "stream not found")
A, B = bytes(range(16)), bytes(range(16, 32))
ACCESS = parse_nats("nats://engine")


class _Log:
    def __init__(self, said: list[str]) -> None:
        self.info = self.warn = lambda text, **_: said.append(text)


class NatsCase(SynchronousTestCase):
    def make_store(self, stream: MemoryStream | None = None, **limits) -> NatsStore:
        self.clock = Clock()
        self.clock.advance(1000.0)
        self.stream = stream or MemoryStream()
        self.limits = Limits(**limits)
        return self.start(self.stream, limits=self.limits)

    def start(self, link: MemoryStream, **options) -> NatsStore:
        store = NatsStore(self.clock, ACCESS, link=link, ask=link.ask, clock=lambda: 1e9, **options)
        store.startService()
        self.addCleanup(lambda: store._ticks.running and store._ticks.stop())
        return store

    def settle(self, store: NatsStore) -> None:
        for _ in range(100):
            self.clock.advance(0)

    def stored(self, store: NatsStore) -> list:
        lines = b"".join(data for *_, data in self.stream.messages).splitlines()
        return [(r.client, r.sequence, r.body) for r in map(parse_line, lines)]

    def fill_up(self, store: NatsStore, full: bool) -> None:
        self.stream.full = full

    def append(self, store: NatsStore, first: int, *bodies: bytes, client: bytes = A):
        return appended(store, make_batch(client, first, *bodies))

    def advance(self, seconds: float) -> None:
        self.clock.pump([0.05] * round(seconds / 0.05))

    def health(self, store: NatsStore):
        factory = MessageLogFactory(self.clock, store, self.limits)
        figures = read_figures(store, factory)
        return judge(figures, self.limits, listening=True, now=self.clock.seconds())

    def cut_off(self, cut: bool) -> None:
        """Have the leader hear nothing of the others, or hear them."""
        for other in self.stream.info["cluster"]["replicas"]:
            other["active"] = 3_100_000_000 if cut else 500_000_000

    def code(self, verdict) -> NackCode:
        (refusal,) = self.successResultOf(verdict).refusals
        return refusal.code


class NatsStoreContract(NatsCase, StoreContract):
    """It keeps the promises of every store."""

    make_store = NatsCase.make_store
    stored = NatsCase.stored
    settle = NatsCase.settle
    fill_up = NatsCase.fill_up


class TwoServersTest(NatsCase):
    def other(self) -> NatsStore:
        return self.start(self.stream)

    def test_resend_elsewhere(self) -> None:
        """A resend is acknowledged, and other bytes refused, on whichever server it arrives."""
        one = self.make_store()
        two = self.other()
        for n in range(1, 6):
            self.append(one, n, b"%d" % n)
            self.settle(one)
        again = self.append(two, 2, b"2", b"3", b"4", b"5", b"6")
        wrong = self.append(two, 3, b"three")
        self.settle(two)
        self.assertEqual(self.successResultOf(again), STORED)
        self.assertEqual(self.code(wrong), NackCode.CONFLICT)
        self.assertEqual([s for _, s, _ in self.stored(one)], [1, 2, 3, 4, 5, 6])

    def test_leader_that_is_none(self) -> None:
        """What a leader that hears nobody says of a client is not passed on: it may be old."""
        one = self.make_store()
        self.append(one, 1, b"a")
        self.settle(one)
        other = self.other()
        self.stream.hidden = 1
        self.cut_off(True)
        last = other.last(A)
        verdict = self.append(other, 3, b"c")
        self.advance(11)
        self.assertNoResult(last)
        self.assertNoResult(verdict)
        self.assertIn("does not hear the other servers", self.health(other).word)
        self.stream.hidden = 0
        self.cut_off(False)
        self.advance(2)
        self.assertEqual(self.successResultOf(last), 1)
        self.assertEqual(self.code(verdict), NackCode.OUT_OF_ORDER)

    def test_to_and_fro(self) -> None:
        """A server whose memory of a client is old notices that, and stores once, in order."""
        one = self.make_store()
        two = self.other()
        verdicts = []
        for n in range(1, 11):
            verdicts.append(self.append((one, two)[n % 2], n, b"%d" % n))
            self.settle(one)
        self.assertEqual([self.successResultOf(v) for v in verdicts], [STORED] * 10)
        self.assertEqual([s for _, s, _ in self.stored(one)], list(range(1, 11)))
        last = one.last(A)
        self.settle(one)
        self.assertEqual(self.successResultOf(last), 10)


class TroubleTest(NatsCase):
    def test_lost_answers(self) -> None:
        """An append whose answer was lost is looked for, acknowledged, and not repeated."""
        store = self.make_store()
        self.stream.mute = 1
        verdict = self.append(store, 1, b"a")
        self.settle(store)
        self.assertNoResult(verdict)
        self.advance(1)
        self.assertEqual(self.successResultOf(verdict), STORED)
        self.assertEqual(len(self.stream.messages), 1)

    def test_late(self) -> None:
        """An append that lands after the tail was read again is not repeated either."""
        store = self.make_store()
        self.append(store, 1, b"a")
        self.settle(store)
        self.stream.automatic = False
        verdict = self.append(store, 2, b"b")
        self.clock.advance(0)
        subject, payload, headers, _ = self.stream._waiting[0]
        self.stream.lose()
        self.stream.automatic = True
        landed = []
        real = self.stream._get

        def read_then_land(asked):
            reply = real(asked)
            if not landed:
                landed.append(self.stream._append(subject, payload, headers))
            return reply

        self.stream._get = read_then_land
        self.advance(2)
        self.assertEqual(self.successResultOf(verdict), STORED)
        self.assertEqual([s for _, s, _ in self.stored(store)], [1, 2])
        self.assertEqual(len(landed), 1)

    def test_away(self) -> None:
        """
        While the engine is away batches wait for so long and are refused; new ones are refused at
        once; readiness says why, and clients are told without addresses; and everything goes on by
        itself.
        """
        store = self.make_store()
        self.stream.away = True
        self.stream.trouble = "10.1.2.3:4222: connection refused"
        verdict = self.append(store, 1, b"a")
        self.advance(14)
        self.assertNoResult(verdict)
        (first, second) = self.health(store).not_ready
        self.assertIn("NATS has not answered for 1", first)
        self.assertIn("10.1.2.3:4222: connection refused", second)
        self.advance(2)
        for refused, why in (
            (verdict, "not stored within 15 s: no answer within 1 s; whether"),
            (self.append(store, 1, b"a"), "the engine is away: no answer within 1 s"),
        ):
            (refusal,) = self.successResultOf(refused).refusals
            self.assertEqual(refusal.code, NackCode.UNAVAILABLE)
            self.assertIn(why, refusal.reason)
            self.assertNotIn("10.1.2.3", refusal.reason)
        self.assertIsNone(self.successResultOf(store.last(A)))
        asked = len(self.stream.requests)
        self.advance(60)
        self.assertLess(len(self.stream.requests) - asked, 60 * 5)
        self.stream.away = False
        self.stream.trouble = ""
        self.advance(1)
        self.assertTrue(self.health(store).ready)
        verdict = self.append(store, 1, b"a")
        self.advance(1)
        self.assertEqual(self.successResultOf(verdict), STORED)

    def test_away_is_said_once(self) -> None:
        """That the engine is away, and that it is back, is one line each, whatever it says."""
        said = []
        self.make_store()
        self.patch(StreamHealth, "_log", _Log(said))
        self.stream.away = True
        for n in range(100):
            self.stream.trouble = f"server {n % 3}"
            self.advance(0.3)
        self.stream.away = False
        self.advance(1)
        self.assertEqual(
            said, ["NATS does not answer: {reason}", "NATS answers again, after {n:.0f} s"]
        )

    def test_away_is_left_alone(self) -> None:
        """However many clients wait, an engine that is away is only asked whether it is back."""
        store = self.make_store()
        self.stream.away = True
        for n in range(50):
            self.append(store, 1, b"a", client=bytes([n] * 16))
        self.advance(1)
        asked = len(self.stream.requests)
        self.advance(10)
        self.assertLess(len(self.stream.requests) - asked, 60)

    def test_away_for_a_moment(self) -> None:
        """What waits is stored when the engine is back in time."""
        store = self.make_store()
        self.stream.away = True
        verdicts = [self.append(store, n, b"x") for n in (1, 2, 3)]
        self.advance(10)
        self.stream.away = False
        self.advance(1)
        self.assertEqual([self.successResultOf(v) for v in verdicts], [STORED] * 3)

    def test_not_ready_before_it_has_answered(self) -> None:
        """A store that has never heard of its stream does not say that it is ready."""
        stream = MemoryStream()
        stream.away = True
        store = self.make_store(stream)
        self.assertIn("has not answered", self.health(store).not_ready[0])
        stream.away = False
        self.advance(10)
        self.assertEqual(self.health(store).not_ready, ())

    def test_away_at_the_start(self) -> None:
        """A server starts without its engine, and serves when that is there."""
        stream = MemoryStream()
        stream.away = True
        store = self.make_store(stream)
        verdict = self.append(store, 1, b"a")
        self.advance(3)
        self.assertNoResult(verdict)
        stream.away = False
        self.advance(1)
        self.assertEqual(self.successResultOf(verdict), STORED)

    def test_full(self) -> None:
        """A full stream is not ready, and is again when something was stored."""
        store = self.make_store()
        self.stream.full = True
        verdict = self.append(store, 1, b"a")
        self.settle(store)
        self.assertEqual(self.code(verdict), NackCode.NOT_STORED)
        self.assertEqual(
            self.health(store).not_ready, ("the last commit found no room in the stream MSGLOG",)
        )
        self.stream.full = False
        verdict = self.append(store, 1, b"a")
        self.settle(store)
        self.assertEqual(self.successResultOf(verdict), STORED)
        self.assertTrue(self.health(store).ready)

    def test_behind_for_a_moment(self) -> None:
        """A leader that shows less than was acknowledged is not believed at once."""
        store = self.make_store()
        self.append(store, 1, b"a")
        self.settle(store)
        self.stream.hidden = 1
        last = store.last(A)
        self.advance(5)
        self.assertNoResult(last)
        self.stream.hidden = 0
        self.advance(1)
        self.assertEqual(self.successResultOf(last), 1)

    def test_leaves_a_server(self) -> None:
        """
        One that is there, while the stream does not answer through it, may be cut off from the
        others: it is left for another, and the longer that helps nothing, the more rarely.
        """
        store = self.make_store()
        self.advance(60)
        self.assertEqual(self.stream.left, 0)
        self.stream.away = True
        self.advance(4)
        self.assertEqual(self.stream.left, 0)
        self.advance(2)
        self.assertEqual(self.stream.left, 1)
        self.advance(600)
        self.assertLess(self.stream.left, 16)
        self.stream.away = False
        self.advance(1)
        left = self.stream.left
        self.cut_off(True)
        self.advance(7)
        self.assertEqual(self.stream.left, left + 1)
        self.assertIn("does not hear", self.health(store).word)

    def test_lost(self) -> None:
        """If it stays so, the engine has lost data: nothing more is taken, and that is said."""
        store = self.make_store()
        self.append(store, 1, b"a")
        self.settle(store)
        self.stream.messages.clear()
        verdict = self.append(store, 2, b"b")
        self.advance(40)
        self.assertIn(self.code(verdict), (NackCode.UNAVAILABLE, NackCode.NOT_STORED))
        self.assertEqual(self.code(self.append(store, 2, b"b")), NackCode.NOT_STORED)
        self.assertIn("lost acknowledged messages", self.health(store).word)

    def test_made_again(self) -> None:
        """So it is when the stream is not the one that it was."""
        store = self.make_store()
        self.stream.info["created"] = "later"
        self.advance(2)
        self.assertEqual(self.code(self.append(store, 1, b"a")), NackCode.NOT_STORED)
        self.assertIn("made again", self.health(store).word)

    def test_damaged(self) -> None:
        """What somebody else wrote there costs that client, and no other."""
        store = self.make_store()
        subject = "msglog.00010203-0405-0607-0809-0a0b0c0d0e0f"
        self.stream.messages.append((subject, {}, b"hello"))
        refused = self.append(store, 1, b"a")
        good = self.append(store, 1, b"a", client=B)
        self.settle(store)
        self.assertEqual(self.code(refused), NackCode.NOT_STORED)
        self.assertEqual(self.successResultOf(good), STORED)
        self.assertIn("is no batch", self.health(store).word)

    def test_stop(self) -> None:
        """A stop waits for what is under way, and takes no more."""
        store = self.make_store()
        self.stream.automatic = False
        verdict = self.append(store, 1, b"a")
        stopped = store.stopService()
        self.assertEqual(self.code(self.append(store, 2, b"b")), NackCode.UNAVAILABLE)
        self.clock.advance(0)
        self.stream.step()
        self.clock.advance(0)
        self.assertNoResult(stopped)
        self.stream.step()
        self.assertEqual(self.successResultOf(verdict), STORED)
        self.successResultOf(stopped)
        self.assertFalse(self.stream.started)
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_stop_without_the_engine(self) -> None:
        """Nor does it wait for an engine that is away."""
        store = self.make_store()
        self.stream.away = True
        verdict = self.append(store, 1, b"a")
        self.advance(1)
        stopped = store.stopService()
        self.advance(1)
        self.assertEqual(self.code(verdict), NackCode.UNAVAILABLE)
        self.successResultOf(stopped)


class BoundsTest(NatsCase):
    def test_requests(self) -> None:
        """No more requests are under way than may be; those that wait have their turn."""
        store = self.make_store(store_requests=3)
        self.stream.automatic = False
        verdicts = [self.append(store, 1, b"x", client=bytes([n] * 16)) for n in range(10)]
        self.clock.advance(0)
        self.assertEqual(len(self.stream._waiting), 3)
        while self.stream.step():
            self.clock.advance(0)
            self.assertLessEqual(len(self.stream._waiting), 3)
        self.assertEqual([self.successResultOf(v) for v in verdicts], [STORED] * 10)

    def test_memory(self) -> None:
        """The least recently active clients are forgotten, and read when they come back."""
        store = self.make_store(ledger_memory=1 << 20)
        clients = [n.to_bytes(16, "big") for n in range(1500)]
        for client in clients:
            self.append(store, 1, b"a", client=client)
            self.clock.advance(0)
        self.assertLessEqual(store.figures().ledger_bytes, 1 << 20)
        self.assertLess(store.figures().ledger_clients, 900)
        again = self.append(store, 1, b"a", b"b", client=clients[0])
        self.settle(store)
        self.assertEqual(self.successResultOf(again), STORED)
        self.assertEqual(self.stored(store)[-1][1:], (2, b"b"))

    def test_questions(self) -> None:
        """Who only asks is not remembered."""
        store = self.make_store()
        last = store.last(A)
        self.settle(store)
        self.assertEqual(self.successResultOf(last), 0)
        self.assertEqual(store.figures().ledger_clients, 0)

    def test_times(self) -> None:
        """The lines' times rise, whatever the clock does."""
        store = self.make_store()
        for n in range(1, 4):
            self.append(store, n, b"x")
            self.settle(store)
        times = [parse_line(data).time for *_, data in self.stream.messages]
        self.assertEqual(times, sorted(set(times)))


class StartTest(NatsCase):
    def refused(self, stream: MemoryStream, reply=None, **limits) -> str:
        if reply is not None:
            stream.ask = lambda *_: reply
        with self.assertRaises(StartError) as caught:
            self.make_store(stream, **limits)
        self.assertFalse(stream.started)
        return str(caught.exception)

    def test_no_stream(self) -> None:
        """The error names the command that makes it."""
        text = self.refused(MemoryStream(), MISSING)
        self.assertIn("msglog stream create nats://engine:4222 --stream MSGLOG", text)

    def test_not_let_in(self) -> None:
        """A wrong password is no outage."""
        text = self.refused(MemoryStream(), Reply(None, "'Authorization Violation'"))
        self.assertIn("does not let this server in", text)

    def test_settings(self) -> None:
        """A stream that removes what was acknowledged is not used."""
        stream = MemoryStream()
        stream.info["config"]["max_age"] = 10**9
        self.assertIn("max_age", self.refused(stream))

    def test_small_payload(self) -> None:
        """Nor a server that does not take what a batch may be."""
        stream = MemoryStream()
        stream.max_payload = 64 * 1024
        self.assertIn("max_payload", self.refused(stream))

    def test_weak(self) -> None:
        """What is only weak is warned of."""
        stream = MemoryStream()
        stream.info["config"]["num_replicas"] = 1
        stream.info["cluster"] = {"replicas": [{"name": "n2", "current": False}]}
        stream.version = (2, 9)
        health = self.health(self.make_store(stream))
        self.assertTrue(health.ready)
        first, second, third = health.warnings
        self.assertIn("num_replicas: 1", first)
        self.assertIn("nats-server 2.9 is older than 2.12", second)
        self.assertIn("n2", third)


class _Streams(MemoryStream):
    """Several streams of one cluster, and the link to all of them."""

    def __init__(self, *names: str) -> None:
        super().__init__()
        self.streams = {name: MemoryStream() for name in names}
        for name, stream in self.streams.items():
            stream.info["config"] = stream_config(name)
            stream.info["cluster"] = {"leader": f"n-{name}"}

    def _stream(self, subject: str, headers) -> MemoryStream | None:
        name = headers["Nats-Expected-Stream"] if headers else subject.rpartition(".")[2]
        return self.streams.get(name)

    def ask(self, access, subject, payload, seconds) -> Reply:
        stream = self._stream(subject, None)
        return stream.ask(access, subject, payload, seconds) if stream else MISSING

    def request(self, subject, payload, headers, done) -> None:
        stream = self._stream(subject, headers)
        stream.request(subject, payload, headers, done)


class ShardsTest(NatsCase):
    COUNT = 3

    def setUp(self) -> None:
        self.names = [shard.name for shard in shards_of("MSGLOG", self.COUNT)]
        self.clock = Clock()
        self.streams = _Streams(*self.names)
        self.limits = Limits(store_requests=6)
        self.store = self.start(self.streams, limits=self.limits, shards=self.COUNT)
        self.clients = [bytes([n]) * 16 for n in range(30)]

    def begin(self) -> list:
        verdicts = [self.append(self.store, 1, b"a", b"b", client=one) for one in self.clients]
        self.settle(self.store)
        return verdicts

    def test_spread(self) -> None:
        """Each client is in one stream, always the same, with what belongs to it alone."""
        self.assertEqual([self.successResultOf(v) for v in self.begin()], [STORED] * 30)
        again = self.start(self.streams, shards=self.COUNT)
        verdicts = [self.append(again, 2, b"b", b"c", client=one) for one in self.clients]
        lasts = [again.last(one) for one in self.clients]
        self.settle(again)
        self.assertEqual([self.successResultOf(v) for v in verdicts], [STORED] * 30)
        self.assertEqual([self.successResultOf(last) for last in lasts], [3] * 30)
        for number, name in enumerate(self.names):
            stream = self.streams.streams[name]
            lines = b"".join(data for *_, data in stream.messages).splitlines()
            there = {parse_line(line).client for line in lines}
            here = {one for one in self.clients if shard_of(one, self.COUNT) == number}
            self.assertEqual(there, here)
            self.assertGreater(len(here), 3)
            self.assertEqual(len(lines), 3 * len(here))
            prefix = f"msglog.{number + 1}of3."
            self.assertTrue(all(subject.startswith(prefix) for subject, *_ in stream.messages))

    def test_one_away(self) -> None:
        """While one stream has no leader, the clients of the others notice nothing."""
        self.begin()
        self.streams.streams[self.names[1]].away = True
        verdicts = [self.append(self.store, 3, b"c", client=one) for one in self.clients]
        self.settle(self.store)
        self.advance(16)
        for one, verdict in zip(self.clients, verdicts, strict=True):
            if shard_of(one, self.COUNT) == 1:
                self.assertEqual(self.code(verdict), NackCode.UNAVAILABLE)
            else:
                self.assertEqual(self.successResultOf(verdict), STORED)
        self.assertEqual(self.store.figures().stream.state, "away")
        health = self.health(self.store)
        self.assertTrue(health.ready)
        (warning,) = health.warnings
        self.assertIn("stream MSGLOG-2of3 takes nothing: no answer within 1 s", warning)
        self.assertEqual(self.streams.left, 0)  # the others do answer by way of this server
        for stream in self.streams.streams.values():
            stream.away = True
        self.advance(30)
        self.assertGreater(self.streams.left, 0)
        self.assertFalse(self.health(self.store).ready)

    def test_one_full(self) -> None:
        """So it is with one that is full, of which the room is shown."""
        self.streams.streams[self.names[2]].full = True
        for one, verdict in zip(self.clients, self.begin(), strict=True):
            if shard_of(one, self.COUNT) == 2:
                self.assertEqual(self.code(verdict), NackCode.NOT_STORED)
            else:
                self.assertEqual(self.successResultOf(verdict), STORED)
        for name, most in zip(self.names, (-1, 5000, 3000), strict=True):
            info = self.streams.streams[name].info
            info["config"] = {**info["config"], "max_bytes": most}
            info["state"] = {"bytes": 1000, "messages": 1}
        self.advance(2)
        figures = self.store.figures()
        self.assertEqual((figures.log_size, figures.disk_free), (3000, 2000))

    def test_full_ones_are_named(self) -> None:
        """It is ready while one stream takes anything, and says of each that is full that it is."""
        for name in self.names[1:]:
            self.streams.streams[name].full = True
        self.begin()  # the last to be answered may be of any of them
        full = [f"the last commit found no room in the stream {name}" for name in self.names]
        for _ in range(2):
            health = self.health(self.store)
            self.assertTrue(health.ready)
            self.assertEqual(
                [one for one in health.warnings if "no room" in one],
                [f"stream {self.names[n]} takes nothing: {full[n]}" for n in (1, 2)],
            )
            some = next(one for one in self.clients if shard_of(one, self.COUNT) == 0)
            self.append(self.store, 3, b"c", client=some)
            self.settle(self.store)
        self.streams.streams[self.names[0]].full = True
        self.append(self.store, 4, b"d", client=some)
        self.settle(self.store)
        self.assertEqual(self.health(self.store).not_ready, tuple(full))
        refused = sum(shard_of(one, self.COUNT) != 0 for one in self.clients) + 1
        self.assertEqual(self.store.figures().commits_without_room, refused)
        self.advance(31)  # something other than a stream's own limit may have room again
        self.assertTrue(self.health(self.store).ready)

    def test_requests(self) -> None:
        """The streams share the requests that may be under way."""
        for stream in self.streams.streams.values():
            stream.automatic = False
        self.begin()
        waiting = [len(stream._waiting) for stream in self.streams.streams.values()]
        self.assertEqual(waiting, [2] * 3)
        for stream in self.streams.streams.values():
            while stream.step():
                self.settle(self.store)
        self.assertEqual(self.store.figures().stream.under_way["append"], 0)
        self.assertEqual(sum(self.store.figures().stream.append_batches.buckets), 30)

    def test_stop(self) -> None:
        """A stop waits for all of them."""
        for stream in self.streams.streams.values():
            stream.automatic = False
        self.begin()
        stopped = self.store.stopService()
        for name in self.names:
            self.assertNoResult(stopped)
            while self.streams.streams[name].step():
                self.clock.advance(0)
        self.successResultOf(stopped)

    def test_other_number(self) -> None:
        """A server that spreads clients otherwise does not start, nor on one that is set up so."""
        for count, missing in ((1, "MSGLOG"), (2, "MSGLOG-1of2"), (4, "MSGLOG-1of4")):
            with self.assertRaises(StartError) as caught:
                self.start(self.streams, shards=count)
            self.assertIn(f"there is no stream {missing}: ", str(caught.exception))
            self.assertEqual("--shards" in str(caught.exception), count > 1)
        first = self.streams.streams[self.names[0]]
        first.info["config"]["subjects"].remove("msglog.sharded")
        with self.assertRaises(StartError) as caught:
            self.start(self.streams, shards=self.COUNT)
        self.assertIn("without msglog.sharded", str(caught.exception))
