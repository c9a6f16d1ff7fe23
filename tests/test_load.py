"""A load's parts: latencies counted, frames made by the block, and every receipt checked."""

from __future__ import annotations

import socket
from collections import deque
from itertools import pairwise

from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from msglog import NackCode
from msglog._frames import FrameDecoder, Run, encode_acks, encode_message, encode_nack, encode_terms
from msglog._load import sender as sender_module
from msglog._load.arrivals import Arrivals
from msglog._load.blocks import BLOCK_MESSAGES, Blocks, Steps
from msglog._load.connection import Connection
from msglog._load.histogram import Histogram
from msglog._load.loop import UNCOUNTED, Loop, Measurement, Plan, block_messages, body
from msglog._load.processes import _share
from msglog._load.sender import LoadError

A, B = bytes(range(16)), bytes(range(16, 32))
BODY = b"a body"
ADDRESS = (socket.AF_INET, ("127.0.0.1", 1))


class Histograms(SynchronousTestCase):
    @given(st.lists(st.integers(0, 2**45), min_size=1, max_size=50), st.floats(0.1, 100))
    def test_percentile(self, latencies: list[int], percent: float) -> None:
        """A percentile is the latency of that rank or at most 1/128 more, never above the most."""
        histogram = Histogram()
        for latency in latencies:
            histogram.record(latency, 1)
        rank = max(1, -int(-len(latencies) * percent // 100))
        exact = sorted(latencies)[rank - 1]
        found = histogram.percentile(percent)
        self.assertGreaterEqual(found, exact)
        self.assertLessEqual(found, exact * (1 + 1 / 128))
        self.assertLessEqual(found, max(latencies))

    @given(st.lists(st.integers(0, 2**45), min_size=1))
    def test_buckets(self, latencies: list[int]) -> None:
        """Each value is in the one bucket that says so, and buckets come in order."""
        histogram = Histogram()
        for latency in latencies:
            histogram.record(latency, 1)
        above = -1
        for low, high, count in histogram.buckets():
            self.assertGreater(low, above)
            self.assertEqual(count, sum(low <= latency <= high for latency in latencies))
            above = high

    def test_counts(self) -> None:
        """Many messages at once count as many; lowest and highest are exact."""
        histogram = Histogram()
        self.assertEqual((histogram.lowest, histogram.highest, histogram.total), (0, 0, 0))
        self.assertEqual(histogram.percentile(50), 0)
        histogram.record(1_000_001, 99)
        histogram.record(5_000_003, 1)
        self.assertEqual(histogram.total, 100)
        self.assertEqual((histogram.lowest, histogram.highest), (1_000_001, 5_000_003))
        self.assertLess(histogram.percentile(99), 1_010_000)
        self.assertEqual(histogram.percentile(99.9), 5_000_003)

    def test_too_long(self) -> None:
        """What is beyond the last bucket is counted in it."""
        histogram = Histogram()
        histogram.record(1 << 60, 1)
        self.assertEqual(histogram.total, 1)
        self.assertEqual(histogram.highest, 1 << 60)

    def test_add(self) -> None:
        """Two processes' histograms are one."""
        one, other, both = Histogram(), Histogram(), Histogram()
        for latency in (5, 700, 70_000):
            one.record(latency, 2)
            both.record(latency, 2)
        for latency in (3, 700, 900_000):
            other.record(latency, 1)
            both.record(latency, 1)
        one.add(other)
        self.assertEqual(list(one.buckets()), list(both.buckets()))
        self.assertEqual((one.lowest, one.highest, one.total), (3, 900_000, 9))

    def test_clear(self) -> None:
        """After a warm-up nothing is left of it, and who records need not be told."""
        histogram = Histogram()
        record = histogram.record
        record(10, 5)
        histogram.clear()
        self.assertEqual(
            (histogram.total, histogram.highest, list(histogram.buckets())), (0, 0, [])
        )
        record(20, 1)
        self.assertEqual((histogram.lowest, histogram.highest, histogram.total), (20, 20, 1))


class BlocksOfFrames(SynchronousTestCase):
    def assert_block(self, blocks: Blocks, first: int, count: int, body: bytes) -> None:
        """A block is what encoding each message by itself makes, and its receipts the server's."""
        frames = [encode_message(A, n, body) for n in range(first, first + count)]
        self.assertEqual(bytes(blocks.frames), b"".join(frames))
        self.assertEqual(blocks.receipts, encode_acks([frame[4:33] for frame in frames]))

    def test_frames(self) -> None:
        """Across carries of one and two bytes of the sequence, for every length of block."""
        for count in (1, 2, 16, 256):
            for size in (0, 1, 256):
                blocks = Blocks(A, bytes(range(256))[:size], Steps(count, size))
                for number in range(600 if count * size < 100 else 20):
                    self.assert_block(blocks, number * count, count, bytes(range(256))[:size])
                    blocks.next()

    def test_long_carry(self) -> None:
        """A byte of the sequence that goes back to 0 is written as 0."""
        steps = Steps(BLOCK_MESSAGES, len(BODY))
        blocks = Blocks(A, BODY, steps)
        blocks._number = 0xFFFF - 1
        blocks.next()
        blocks.next()
        self.assert_block(blocks, 0x1000000, BLOCK_MESSAGES, BODY)

    def test_server_takes_them(self) -> None:
        """The server's own decoder finds one run of good messages."""
        blocks = Blocks(A, BODY, Steps(16, len(BODY)))
        (run,) = FrameDecoder(256).feed(bytes(blocks.frames[blocks.stride :]))
        assert isinstance(run, Run)
        self.assertEqual((run.client, run.first, len(run)), (A, 1, 15))
        self.assertEqual(encode_acks(run.heads), blocks.receipts[33:])

    def test_not_a_power_of_two(self) -> None:
        """Only aligned blocks have sequences whose bits can be taken apart."""
        for count in (0, 3, 512):
            with self.assertRaises(ValueError):
                Steps(count, 1)

    def test_length(self) -> None:
        """A block holds a window if the memory allows, and at least a frame."""

        def messages(connections: int, window: int, size: int) -> int:
            address = (0, ("127.0.0.1", 1))
            return block_messages(Plan(address, connections, window, size, 0, 1))  # type: ignore[arg-type]

        self.assertEqual(messages(1, 1, 256), 32)
        self.assertEqual(messages(1, 100, 256), 128)
        self.assertEqual(messages(1, 1000, 256), 256)
        self.assertEqual(messages(10_000, 1000, 256), 32)
        self.assertEqual(messages(100, 1000, 16 << 20), 1)

    def test_body(self) -> None:
        """A body says whose it is, as far as it goes, at every length."""
        for size in (0, 1, 256, 10_000):
            self.assertEqual(len(body(size)), size)
        self.assertTrue(body(256).startswith(b"msglog bench: "))


class _Socket:
    """What a connection needs of a socket, with the peer's part played by the test."""

    def __init__(self) -> None:
        self.sent = b""
        self.room = 1 << 30
        self.arriving: deque[bytes | OSError] = deque()

    def send(self, data: memoryview) -> int:
        taken = min(len(data), self.room)
        if not taken:
            raise BlockingIOError
        self.room -= taken
        self.sent += data[:taken]
        return taken

    def recv(self, size: int) -> bytes:
        if not self.arriving:
            raise BlockingIOError
        data = self.arriving.popleft()
        if isinstance(data, OSError):
            raise data
        return data


class _Clock:
    def __init__(self) -> None:
        self.now = 0

    def monotonic_ns(self) -> int:
        return self.now


class Receipts(SynchronousTestCase):
    """A connection against every answer that a server may give."""

    def setUp(self) -> None:
        self.clock = _Clock()
        self.patch(sender_module, "time", self.clock)
        self.socket = _Socket()
        self.recorded: list[tuple[int, int]] = []
        self.connection = Connection(
            self.socket,  # type: ignore[arg-type]
            A,
            Blocks(A, BODY, Steps(16, len(BODY))),
            lambda nanoseconds, count: self.recorded.append((nanoseconds, count)),
        )

    def ack(self, first: int, stop: int) -> bytes:
        return encode_acks([encode_message(A, n, BODY)[4:33] for n in range(first, stop)])

    def receive(self, data: bytes | OSError) -> int:
        self.socket.arriving.append(data)
        return self.connection.receive()

    def assert_wrong(self, data: bytes | OSError, said: str) -> None:
        with self.assertRaises(LoadError) as caught:
            self.receive(data)
        self.assertIn(said, str(caught.exception))

    def test_frames(self) -> None:
        """What is sent is the client's messages from 1 on, across blocks."""
        self.assertTrue(self.connection.send(40, 0))
        self.assertTrue(self.connection.send(1, 0))
        expected = b"".join(encode_message(A, n, BODY) for n in range(1, 42))
        self.assertEqual(self.socket.sent, expected)
        self.assertEqual(self.connection.in_flight, 41)

    def test_full_buffer(self) -> None:
        """What the kernel does not take is sent later, from the byte where it stopped."""
        self.socket.room = 100
        self.assertFalse(self.connection.send(20, 0))
        self.assertFalse(self.connection.flush())
        self.socket.room = 1 << 30
        self.assertTrue(self.connection.flush())
        expected = b"".join(encode_message(A, n, BODY) for n in range(1, 21))
        self.assertEqual(self.socket.sent, expected)

    @settings(deadline=None)
    @given(st.integers(1, 50), st.lists(st.integers(1, 200)))
    def test_however_cut(self, count: int, cuts: list[int]) -> None:
        """Receipts are right however the stream is cut, and each message is counted once."""
        self.setUp()
        self.connection.send(count, 0)
        data, total = self.ack(1, count + 1), 0
        for cut in [*cuts, len(data)]:
            if data:
                total += self.receive(data[:cut])
                data = data[cut:]
        self.assertEqual(total, count)
        self.assertEqual(sum(number for _, number in self.recorded), count)
        self.assertEqual(self.connection.in_flight, 0)
        self.assertTrue(self.connection.going)

    def test_latency(self) -> None:
        """From the time that its window had room to the time of its receipt, for each message."""
        self.connection.send(3, 1000)
        self.connection.send(2, 3000)
        self.clock.now = 5000
        self.assertEqual(self.receive(self.ack(1, 5)), 4)
        self.assertEqual(self.recorded, [(4000, 3), (2000, 1)])
        self.clock.now = 9000
        self.receive(self.ack(5, 6))
        self.assertEqual(self.recorded[2:], [(6000, 1)])
        self.assertEqual(self.connection.heard, 9000)

    def test_not_sent_yet(self) -> None:
        """A receipt for what the kernel has not taken is no receipt, however right it looks."""
        self.connection.send(2, 0)
        self.assert_wrong(self.ack(1, 4), "acknowledged what was not sent yet")

    def test_not_taken_yet(self) -> None:
        """The same within the window: the second message was half sent."""
        self.socket.room = len(encode_message(A, 1, BODY)) + 5
        self.connection.send(2, 0)
        self.assert_wrong(self.ack(1, 3), "acknowledged what was not sent yet")

    def test_wrong_receipts(self) -> None:
        """Another checksum, another client, another sequence, one left out, one again."""
        good = self.ack(1, 4)
        other_client = encode_acks([encode_message(B, 2, BODY)[4:33]])
        other_body = encode_acks([encode_message(A, 2, b"other")[4:33]])
        for wrong in (
            good[:33] + other_body,
            good[:33] + other_client,
            good[:33] + good[66:],
            good[:33] + good[:33],
            good[:33] + encode_terms(A, 2, 1, 256, 1024),
        ):
            self.setUp()
            self.connection.send(3, 0)
            self.assert_wrong(wrong, "answered message 2 by ")
            self.assertEqual(self.recorded, [(0, 1)])

    def test_no_protocol(self) -> None:
        """What is no answer at all is told from a wrong one."""
        self.connection.send(1, 0)
        self.assert_wrong(
            b"HTTP/1.1 400 Bad Request\r\nServer: x\r\n\r\n", "is it a msglog server?"
        )

    def test_nacks(self) -> None:
        """Refusals are counted by code, among receipts and however cut; nothing is recorded."""
        self.connection.send(5, 0)
        data = (
            self.ack(1, 2)
            + encode_nack(A, 2, NackCode.NOT_STORED, 2, "the disk is full")
            + encode_nack(A, 3, NackCode.OUT_OF_ORDER, 2, "expected sequence 2")
            + encode_nack(A, 4, NackCode.OUT_OF_ORDER, 2, "expected sequence 2")
        )
        self.assertEqual(self.receive(data[:50]), 1)
        self.assertFalse(self.connection.going)
        for at in range(50, len(data), 40):
            self.assertEqual(self.receive(data[at : at + 40]), 0)
        self.assertEqual(self.connection.refused, {"NOT_STORED": 1, "OUT_OF_ORDER": 2})
        self.assertIn("message 2 of 00010203-", self.connection.refusal)
        self.assertIn("NOT_STORED: the disk is full", self.connection.refusal)
        self.assertEqual(self.connection.in_flight, 1)
        self.assertEqual(self.recorded, [(0, 1)])
        self.assertEqual(self.receive(self.ack(5, 6)), 1)
        self.assertEqual(self.connection.in_flight, 0)

    def test_nacks_across_blocks(self) -> None:
        """A refused stretch goes on into the next block's receipts."""
        self.connection.send(40, 0)
        self.receive(self.ack(1, 15))
        for n in range(15, 40):
            self.receive(encode_nack(A, n, NackCode.UNAVAILABLE, 15, "stopping"))
        self.assertEqual(self.receive(self.ack(40, 41)), 1)
        self.assertEqual(self.connection.refused, {"UNAVAILABLE": 25})

    def test_nack_of_another(self) -> None:
        """A refusal of what is not the next message is not taken for one of it."""
        self.connection.send(3, 0)
        self.assert_wrong(
            encode_nack(A, 2, NackCode.CORRUPT, 1, "no"), "not its turn (CORRUPT: no)"
        )

    def test_no_room(self) -> None:
        """A server with too many connections cannot say whom it refuses."""
        self.assert_wrong(
            encode_nack(bytes(16), 0, NackCode.UNAVAILABLE, 0, "too many connections"),
            "the server refused a connection: UNAVAILABLE: too many connections",
        )

    def test_closed(self) -> None:
        """The end of the connection, and how much had no answer."""
        self.connection.send(3, 0)
        self.receive(self.ack(1, 2))
        self.assert_wrong(b"", "closed the connection, with 2 messages of 00010203-")

    def test_cannot_send(self) -> None:
        """When sending fails, what the server said before is still read."""
        self.connection.send(1, 0)

        def broken(data: memoryview) -> int:
            raise BrokenPipeError

        self.connection._send = broken
        self.assertTrue(self.connection.send(1, 0))
        self.receive(encode_nack(A, 1, NackCode.UNAVAILABLE, 1, "stopping"))
        self.assertEqual(self.connection.refused, {"UNAVAILABLE": 1})

    def test_reset(self) -> None:
        """The system's own word for it."""
        self.assert_wrong(ConnectionResetError(104, "Connection reset by peer"), "reset by peer")


class OpenLoop(SynchronousTestCase):
    """Messages that come at a rate."""

    def test_arrivals(self) -> None:
        """So many a second on average, each asked for once, in order, and some close together."""
        arrivals = Arrivals(1000, 0)
        come = [
            at
            for now in range(0, 100_000_000_000, 10_000_000)
            for at in arrivals.until(now, 1 << 30)
        ]
        self.assertEqual(come, sorted(come))
        self.assertLess(abs(len(come) / 100_000 - 1), 0.03)
        gaps = sorted(b - a for a, b in pairwise(come))
        # Of a Poisson process, one gap in ten is shorter than 0.105 of the average.
        self.assertLess(abs(gaps[len(gaps) // 10] / 1e6 - 0.105), 0.01)

    def test_at_most(self) -> None:
        """What is not taken at once is not lost."""
        arrivals = Arrivals(1e6, 0)
        first = arrivals.until(1_000_000_000, 10)
        self.assertEqual(len(first), 10)
        rest = arrivals.until(1_000_000_000, 1 << 30)
        self.assertGreater(len(rest), 900_000)
        self.assertGreaterEqual(rest[0], first[-1])

    def loop(self, window: int, connections: int = 2) -> Loop:
        """A loop whose sockets are not connected to anything."""
        loop = Loop(Plan(ADDRESS, connections, window, len(BODY), 0, 1, rate=10), None, len)
        self.sockets = [_Socket() for _ in range(connections)]
        for sock in self.sockets:
            blocks = Blocks(A, BODY, Steps(16, len(BODY)))
            record = loop.measured.latencies.record
            loop._turns.append(Connection(sock, A, blocks, record))  # type: ignore[arg-type]
        return loop

    def test_turns(self) -> None:
        """Clients get them in turn, and what the bench is late by is noted of each."""
        loop = self.loop(window=10)
        loop._spread([1, 2, 3])
        self.assertEqual([c.in_flight for c in loop._turns], [2, 1])
        loop._spread([4])
        self.assertEqual([c.in_flight for c in loop._turns], [2, 2])
        self.assertEqual(loop.measured.late.total, 4)

    def test_no_omission(self) -> None:
        """A message that finds no room in the window is as old as if it had found some."""
        clock = _Clock()
        self.patch(sender_module, "time", clock)
        loop = self.loop(window=1, connections=1)
        (connection,), (sock,) = loop._turns, self.sockets
        loop._spread([100, 200, 300])
        self.assertEqual((connection.in_flight, len(connection.waiting)), (1, 2))
        self.assertEqual(loop._in_flight(), 3)
        for sequence in (1, 2, 3):
            clock.now = 1000
            sock.arriving.append(encode_acks([encode_message(A, sequence, BODY)[4:33]]))
            connection.receive()
            loop._catch_up(connection)
        self.assertEqual(loop._in_flight(), 0)
        latencies = [low for low, _, _ in loop.measured.latencies.buckets()]
        self.assertEqual(loop.measured.latencies.total, 3)
        self.assertEqual(latencies[0], 700)
        self.assertEqual(loop.measured.latencies.highest, 900)


class Measurements(SynchronousTestCase):
    def test_rate(self) -> None:
        """Of what was acknowledged until sending ended, in the slots in which it was."""
        measured = Measurement()
        measured.count(10, 0.05)
        measured.count(20, 0.25)
        measured.count(30, 0.5)
        self.assertEqual(measured.slots, [10, 0, 20, 0, 0, 30])
        self.assertEqual(measured.rate, 120)

    def test_add(self) -> None:
        """Processes that ran at the same time: what they did is added, the time is not."""
        both = Measurement()
        for slots, seconds, busy in (([1, 2], 0.2, 0.3), ([10], 0.1, 0.5)):
            measured = Measurement(slots=slots, seconds=seconds, busy=busy)
            measured.refused["CORRUPT"] += 1
            both.add(measured)
        both.add(Measurement(problem="first"))
        both.add(Measurement(problem="second"))
        self.assertEqual((both.slots, both.seconds, both.busy), ([11, 2], 0.2, 0.5))
        self.assertEqual(both.refused, {"CORRUPT": 2})
        self.assertEqual(both.problem, "first")

    def test_shares(self) -> None:
        """Nothing is lost by sharing."""
        self.assertEqual(_share(10, 3), [4, 3, 3])
        self.assertEqual(sum(_share(UNCOUNTED, 7)), UNCOUNTED)
