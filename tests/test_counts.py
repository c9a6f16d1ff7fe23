"""What a server counts of itself."""

from __future__ import annotations

import errno
import random
from collections import Counter
from itertools import pairwise
from pathlib import Path

from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from msglog import Limits, MessageLogFactory, NackCode
from msglog._busiest import Busiest
from msglog._counts import SECONDS, Histogram, quantile
from msglog._frames import encode_message
from msglog._records import format_lines
from msglog._space import FreeSpace
from msglog._writer import Appending, LogWriter
from msglog.testing import FaultyDisk, MemoryStore, MemoryTransport, make_batch

A, B = bytes(range(16)), bytes(range(16, 32))


class HistogramTest(SynchronousTestCase):
    def test_bounds_are_inclusive(self) -> None:
        """A value at a bound is in the bucket below it, as Prometheus has it."""
        histogram = Histogram((1.0, 2.0))
        for value in (0.5, 1.0, 1.5, 2.0, 3.0):
            histogram.note(value)
        self.assertEqual((histogram.buckets, histogram.total), ([2, 2, 1], 8.0))

    def test_copy(self) -> None:
        """A copy stays as it is."""
        histogram = Histogram((1.0,))
        histogram.note(1)
        copy = histogram.copy()
        histogram.note(2)
        self.assertEqual((copy.buckets, copy.total), ([1, 0], 1))

    def test_quantile(self) -> None:
        """A quantile is between the bounds of its bucket, as far in as its rank."""
        bounds = (1.0, 2.0, 4.0)
        self.assertIsNone(quantile(bounds, [0, 0, 0, 0], 0.99))
        self.assertEqual(quantile(bounds, [0, 10, 0, 0], 0.5), 1.5)
        self.assertEqual(quantile(bounds, [50, 0, 50, 0], 0.75), 3.0)
        self.assertEqual(quantile(bounds, [0, 0, 0, 5], 0.5), 4.0)

    def test_seconds_are_dense(self) -> None:
        """No bucket of durations is wider than the one below it twice over."""
        self.assertEqual(list(SECONDS), sorted(set(SECONDS)))
        self.assertTrue(all(b <= 2.001 * a for a, b in pairwise(SECONDS)))


class BusiestTest(SynchronousTestCase):
    def test_exact_while_there_is_room(self) -> None:
        """Few clients are counted exactly, busiest first."""
        busiest = Busiest(10)
        for client, messages in ((b"a", 3), (b"b", 5), (b"a", 4), (b"c", 1)):
            busiest.count(client, messages)
        self.assertEqual(busiest.top(2), [(b"a", 7), (b"b", 5)])
        self.assertEqual(busiest.error, 0)

    def test_bounded_and_nearly_right(self) -> None:
        """With far more clients than counters, the busy ones are found, with a known error."""
        source = random.Random(1)
        busiest = Busiest(64)
        truth: Counter[bytes] = Counter()
        for _ in range(30_000):
            rank = min(int(source.paretovariate(0.6)), 20_000)
            client = rank.to_bytes(16, "big")
            messages = source.randint(1, 50)
            truth[client] += messages
            busiest.count(client, messages)
            self.assertLessEqual(len(busiest), 64)
        found = dict(busiest.top(64))
        for client, count in truth.items():
            counted = found.get(client, 0)
            self.assertLessEqual(counted, count)
            self.assertGreaterEqual(counted, count - busiest.error)
        expected = [client for client, _ in truth.most_common(5)]
        self.assertEqual([client for client, _ in busiest.top(5)], expected)


class ConnectionCountsTest(SynchronousTestCase):
    def setUp(self) -> None:
        self.clock = Clock()
        self.store = MemoryStore(automatic=False)
        self.factory = MessageLogFactory(self.clock, self.store, Limits(max_connections=2))
        self.counts = self.factory.counts
        self.addCleanup(self.factory._sweep.stop)

    def connect(self):
        protocol = self.factory.buildProtocol(None)
        protocol.makeConnection(MemoryTransport())
        return protocol

    def answer(self) -> None:
        self.store.commit()
        self.clock.advance(0)

    def test_verdicts(self) -> None:
        """Each message is counted by its verdict, a batch's refusals one by one."""
        protocol = self.connect()
        data = b"".join(encode_message(A, n, b"x") for n in (1, 2, 3))
        protocol.dataReceived(data)
        protocol.dataReceived(encode_message(A, 8, b"x") + encode_message(A, 9, b"x"))
        self.answer()
        protocol.dataReceived(encode_message(A, 2, b"other") + encode_message(A, 3, b"x"))
        self.answer()
        self.assertEqual(self.counts.acked, 4)
        nacked = {code: n for code, n in self.counts.nacked.items() if n}
        self.assertEqual(nacked, {NackCode.OUT_OF_ORDER: 2, NackCode.CONFLICT: 1})
        self.assertEqual(self.counts.batches.buckets[:2], [0, 3])
        self.assertEqual(self.counts.batches.total, 7)

    def test_faults_and_bytes(self) -> None:
        """What is no message is counted by its NACK, and all that is read by its length."""
        protocol = self.connect()
        data = encode_message(A, 1, bytes(300))
        protocol.dataReceived(data)
        protocol.dataReceived(b"GET / HTTP/1.1\r\n")
        self.clock.advance(0)
        self.assertEqual(self.counts.nacked[NackCode.TOO_LONG], 1)
        self.assertEqual(self.counts.nacked[NackCode.MALFORMED], 1)
        self.assertEqual(self.counts.closed["malformed"], 1)
        self.assertEqual(self.counts.received_bytes, len(data) + 16)

    def test_time_to_ack(self) -> None:
        """Each message is timed from when it was read to when its ACK is written."""
        protocol = self.connect()
        protocol.dataReceived(encode_message(A, 1, b"x") + encode_message(A, 2, b"x"))
        self.clock.advance(0.25)
        protocol.dataReceived(encode_message(A, 4, b"refused"))
        self.clock.advance(0.25)
        self.answer()
        waited = self.counts.ack_seconds
        self.assertEqual(waited.buckets[SECONDS.index(0.5)], 2)
        self.assertEqual((sum(waited.buckets), waited.total), (2, 1.0))

    def test_a_clock_that_is_set_back(self) -> None:
        """The sum of durations never falls."""
        protocol = self.connect()
        protocol.dataReceived(encode_message(A, 1, b"x"))
        self.clock.rightNow -= 3600
        self.answer()
        self.assertEqual(self.counts.ack_seconds.total, 0)
        self.assertEqual(sum(self.counts.ack_seconds.buckets), 1)

    def test_lost_connections_have_no_ack(self) -> None:
        """A verdict that nobody hears counts, but is not timed."""
        protocol = self.connect()
        protocol.dataReceived(encode_message(A, 1, b"x"))
        protocol.connectionLost()
        self.answer()
        self.assertEqual((self.counts.acked, sum(self.counts.ack_seconds.buckets)), (1, 0))

    def test_connections(self) -> None:
        """Connections are counted as taken or turned away, and ends by their reason."""
        first, _, _ = self.connect(), self.connect(), self.connect()
        self.assertEqual((self.counts.accepted, self.counts.refused["full"]), (2, 1))
        first.dataReceived(encode_message(A, 1, b"x")[:10])
        while not first.transport.aborted:
            self.clock.advance(0.5)
        first.connectionLost()
        self.assertEqual(self.counts.closed["frame"], 1)
        self.clock.pump([600.0] * 7)
        self.assertEqual(self.counts.closed["idle"], 1)

    def test_pauses(self) -> None:
        """Each time that a connection is begun not to be read counts once."""
        protocol = self.connect()
        protocol.hold(1)
        protocol.hold(1)
        protocol.hold(2)
        protocol.release(1)
        protocol.hold(1)
        pauses = {name: n for name, n in self.counts.pauses.items() if n}
        self.assertEqual(pauses, {"unanswered": 2, "unread": 1})

    def test_busiest_only_on_request(self) -> None:
        """Clients are counted while somebody wants to know, and then by what was stored."""
        protocol = self.connect()
        protocol.dataReceived(encode_message(A, 1, b"x"))
        self.answer()
        self.counts.busiest = Busiest()
        protocol.dataReceived(encode_message(A, 2, b"x") + encode_message(A, 3, b"x"))
        protocol.dataReceived(encode_message(B, 7, b"out of order"))
        self.answer()
        self.assertEqual(self.counts.busiest.top(1), [(A, 2)])


class CommitCountsTest(SynchronousTestCase):
    def setUp(self) -> None:
        folder = Path(self.mktemp())
        folder.mkdir()
        self.path = folder / "log"
        self.disk = FaultyDisk()
        self.now = 1_000_000.0
        self.writer = LogWriter(
            self.path,
            Limits(),
            disk=self.disk,
            clock=lambda: self.now,
            monotonic=lambda: self.now,
        )
        self.writer.open()
        self.addCleanup(self.writer._abandon)
        self.counts = self.writer.counts

    def commit(self, *batches) -> None:
        self.writer.commit([Appending(batch, format_lines(batch)) for batch in batches])

    def test_only_what_is_written(self) -> None:
        """Records and bytes are those in the log; a resend is no record."""
        batch = make_batch(A, 1, b"a", b"b")
        self.commit(batch, make_batch(B, 1, b"x"))
        self.commit(batch)
        self.commit(make_batch(A, 2, b"b", b"c"))
        self.assertEqual(self.counts.records, 4)
        self.assertEqual(self.counts.log_bytes, self.path.stat().st_size)
        self.assertEqual(self.writer.size, self.path.stat().st_size)
        self.assertEqual(sum(self.counts.messages.buckets), 2)
        self.assertEqual(self.counts.messages.total, 4)
        self.assertEqual(self.counts.sizes.total, self.path.stat().st_size)

    def test_no_room(self) -> None:
        """A commit without room is counted, and remembered until one succeeds."""
        self.commit(make_batch(A, 1, b"a"))
        self.disk.room = 0
        self.now += 5
        self.commit(make_batch(A, 2, b"b"))
        self.assertEqual((self.counts.no_room, self.counts.no_room_last), (1, True))
        self.assertEqual((self.counts.no_room_time, self.counts.records), (self.now, 1))
        self.disk.room = None
        self.commit(make_batch(A, 2, b"b"))
        self.assertEqual((self.counts.no_room, self.counts.no_room_last), (1, False))

    def test_durable_time(self) -> None:
        """The time of the last commit that is on the disk, found again at a start."""
        self.commit(make_batch(A, 1, b"a"))
        self.assertEqual(self.writer.durable_time, int(self.now * 1e6))
        self.writer.close()
        self.writer.open()
        self.assertEqual(self.writer.durable_time, int(self.now * 1e6))

    def test_durable_time_lags_a_lazy_sync(self) -> None:
        """With C{--sync SECONDS}, what is only written is not durable."""
        self.writer.close()
        lazy = LogWriter(
            self.path, Limits(), 1.0, clock=lambda: self.now, monotonic=lambda: self.now
        )
        lazy.open()
        self.addCleanup(lazy._abandon)
        self.writer = lazy
        self.commit(make_batch(A, 1, b"a"))  # the first of a file is synced
        first = lazy.durable_time
        self.now += 0.1
        self.commit(make_batch(A, 2, b"a"))
        self.assertEqual(lazy.durable_time, first)
        self.now += 1
        lazy.tick()
        self.assertEqual(lazy.durable_time, first + 100_000)


class FreeSpaceTest(SynchronousTestCase):
    def setUp(self) -> None:
        self.disk = FaultyDisk()
        self.space = FreeSpace(Path(self.mktemp()).parent / "log", 1000, self.disk)

    def look(self, now: float, free: int) -> None:
        self.disk.free = free
        self.space.look(now)

    def test_looks_once_a_second(self) -> None:
        """It does not ask the disk for each commit."""
        self.look(10.0, 5000)
        self.look(10.5, 4000)
        self.assertEqual(self.space.free, 5000)
        self.look(11.0, 4000)
        self.assertEqual(self.space.free, 4000)

    def test_warns_once(self) -> None:
        """It is low once, until it has clearly risen."""
        for now, free, low in (
            (1, 1000, False),
            (2, 999, True),
            (3, 500, True),
            (4, 1050, True),
            (5, 900, True),
            (6, 1100, False),
            (7, 900, True),
        ):
            self.look(now, free)
            self.assertEqual(self.space.low, low)
        self.assertEqual(self.space.times_low, 2)

    def test_unknown(self) -> None:
        """A disk that cannot be asked is neither full nor empty."""
        self.disk.errors["space"] = errno.EIO
        self.space.look(1.0)
        self.assertIsNone(self.space.free)
        self.assertFalse(self.space.low)
