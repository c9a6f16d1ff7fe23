"""The server's protocol over a transport in memory and a store in memory."""

from __future__ import annotations

import gc
import weakref

from twisted.internet.task import Clock
from twisted.internet.testing import EventLoggingObserver
from twisted.logger import globalLogPublisher
from twisted.trial.unittest import SynchronousTestCase

from msglog import Limits, MessageLogFactory, NackCode
from msglog._frames import Ack, Nack, Terms, encode_enquiry, encode_message, message_checksum
from msglog._protocol import LINGER_SECONDS, STOP_LINGER_SECONDS
from msglog.testing import MemoryStore, MemoryTransport

A, B = bytes(range(16)), bytes(range(16, 32))
NOBODY = bytes(16)


def messages(client: bytes, first: int, *bodies: bytes) -> bytes:
    return b"".join(encode_message(client, first + i, body) for i, body in enumerate(bodies))


class Case(SynchronousTestCase):
    def setUp(self) -> None:
        self.clock = Clock()
        self.clock.advance(1000.0)  # no clock of a server begins with it
        self.store = MemoryStore(automatic=False)

    def serve(self, permits=None, **limits) -> None:
        self.factory = MessageLogFactory(self.clock, self.store, Limits(**limits), permits)
        self.addCleanup(lambda: self.factory._sweep.running and self.factory._sweep.stop())

    def connect(self) -> MemoryTransport:
        protocol = self.factory.buildProtocol(None)
        transport = MemoryTransport()
        transport.protocol = protocol
        protocol.makeConnection(transport)
        return transport

    def turn(self) -> None:
        """Let the store judge, and the reactor turn."""
        self.store.commit()
        self.clock.advance(0)

    def say(self, transport: MemoryTransport, data: bytes) -> list:
        """Send data, let it be judged, and take the answers."""
        transport.protocol.dataReceived(data)
        self.turn()
        return transport.answers()


class Answers(Case):
    """What is answered, and in what order."""

    def test_ack_is_a_receipt(self) -> None:
        """Each message is answered by an ACK with its own client, sequence and checksum."""
        self.serve()
        answers = self.say(self.connect(), messages(A, 1, b"a", b"", b"\xff\x00"))
        self.assertEqual(
            answers,
            [
                Ack(A, n, message_checksum(A, n, body))
                for n, body in enumerate([b"a", b"", b"\xff\x00"], 1)
            ],
        )
        self.assertEqual([m[2] for m in self.store.messages], [b"a", b"", b"\xff\x00"])

    def test_nothing_is_said_before_it_is_durable(self) -> None:
        """No ACK leaves before the store has judged."""
        self.serve()
        transport = self.connect()
        transport.protocol.dataReceived(messages(A, 1, b"a"))
        self.clock.advance(1)
        self.assertEqual(transport.answers(), [])
        self.turn()
        self.assertEqual(len(transport.answers()), 1)

    def test_order(self) -> None:
        """A refusal that is known at once waits for the answers before it."""
        self.serve(max_message_bytes=4)
        transport = self.connect()
        corrupt = bytearray(messages(A, 2, b"b"))
        corrupt[-1] ^= 1
        data = messages(A, 1, b"a") + corrupt + encode_message(A, 2, b"too long")
        transport.protocol.dataReceived(data + messages(A, 2, b"c") + encode_enquiry(A))
        self.clock.advance(0)
        self.assertEqual(transport.answers(), [])
        self.turn()
        kinds = [getattr(a, "code", type(a)) for a in transport.answers()]
        self.assertEqual(kinds, [Ack, NackCode.CORRUPT, NackCode.TOO_LONG, Ack, Terms])

    def test_one_write_for_each_turn(self) -> None:
        """The answers to several reads go out in one write."""
        self.serve()
        transport = self.connect()
        writes = []
        write = transport.write
        transport.write = lambda data: (writes.append(data), write(data))
        for n in range(1, 6):
            transport.protocol.dataReceived(messages(A, n, b"x"))
        self.turn()
        self.assertEqual(len(writes), 1)
        self.assertEqual(len(transport.answers()), 5)

    def test_terms(self) -> None:
        """ENQUIRY is answered by what is durable and by the limits; 0 for a stranger."""
        self.serve(max_message_bytes=100)
        transport = self.connect()
        self.say(transport, messages(A, 1, b"a", b"b"))
        self.assertEqual(
            self.say(transport, encode_enquiry(A, 200) + encode_enquiry(B)),
            [Terms(A, 2, 1, 100, 1024), Terms(B, 0, 1, 100, 1024)],
        )

    def test_every_refusal_of_the_store(self) -> None:
        """OUT_OF_ORDER, CONFLICT and NOT_STORED are answered in their places, with expected."""
        self.serve()
        transport = self.connect()
        self.say(transport, messages(A, 1, b"a", b"b"))
        answers = self.say(
            transport, messages(A, 2, b"B", b"c") + messages(A, 5, b"e") + messages(B, 2, b"x")
        )
        self.assertEqual(
            [(a.sequence, getattr(a, "code", None), getattr(a, "expected", None)) for a in answers],
            [
                (2, NackCode.CONFLICT, 3),
                (3, None, None),
                (5, NackCode.OUT_OF_ORDER, 4),
                (2, NackCode.OUT_OF_ORDER, 1),
            ],
        )
        self.store.full = True
        (nack,) = self.say(transport, messages(A, 4, b"d"))
        self.assertEqual((nack.code, nack.expected), (NackCode.NOT_STORED, 4))

    def test_forbidden(self) -> None:
        """A client id that the connection may not use is refused; another is taken."""
        self.serve(permits=lambda client, transport: client == A)
        answers = self.say(self.connect(), messages(A, 1, b"a") + messages(B, 1, b"b"))
        self.assertEqual(type(answers[0]), Ack)
        self.assertEqual((answers[1].client, answers[1].code), (B, NackCode.FORBIDDEN))
        self.assertEqual([client for client, _, _ in self.store.messages], [A])

    def test_a_store_that_cannot_say(self) -> None:
        """An ENQUIRY that cannot be answered is refused, and what follows it is answered."""
        self.serve()
        transport = self.connect()
        transport.protocol.dataReceived(encode_enquiry(A) + messages(A, 1, b"a"))
        (_, last), _ = self.store._waiting
        del self.store._waiting[0]
        last(None)
        nack, ack = self.say(transport, b"")
        self.assertEqual(nack, Nack(A, 0, NackCode.UNAVAILABLE, 0, "the store cannot say"))
        self.assertEqual(type(ack), Ack)

    def test_listening_again(self) -> None:
        """A factory may be listened with, stopped, and listened with again."""
        self.serve()
        self.factory.doStart()
        self.factory.doStop()
        self.factory.doStart()
        self.successResultOf(self.factory.stop())
        self.factory.doStop()
        self.factory.doStart()
        self.assertEqual(len(self.say(self.connect(), messages(A, 1, b"a"))), 1)

    def test_lost_connection(self) -> None:
        """What a lost connection sent is stored all the same, and costs nothing afterwards."""
        self.serve()
        transport = self.connect()
        transport.protocol.dataReceived(messages(A, 1, b"a"))
        transport.protocol.connectionLost()
        self.turn()
        self.assertEqual(len(self.store.messages), 1)
        self.assertEqual((self.factory.undurable, len(self.factory.connections)), (0, 0))
        self.assertEqual(transport.answers(), [])


class Endings(Case):
    """How connections end."""

    def test_garbage(self) -> None:
        """An HTTP request and a TLS hello are told MALFORMED, the connection is closed."""
        tls = bytes.fromhex("16030100c8010000c40303") + bytes(190)
        for garbage in (b"GET / HTTP/1.1\r\nHost: x\r\n\r\n", tls):
            self.serve()
            transport = self.connect()
            (nack,) = self.say(transport, garbage)
            self.assertEqual(
                (nack.code, nack.client, nack.sequence), (NackCode.MALFORMED, NOBODY, 0)
            )
            self.assertTrue(transport.disconnecting or transport.half_closed)

    def test_garbage_waits_its_turn(self) -> None:
        """What was taken before the garbage is answered before it; what follows is not taken."""
        self.serve()
        transport = self.connect()
        transport.protocol.dataReceived(messages(A, 1, b"a") + b"GET / HTTP/1.1\r\n\r\n")
        transport.protocol.dataReceived(messages(A, 2, b"b"))
        self.assertFalse(transport.disconnecting)
        answers = self.say(transport, messages(A, 2, b"b"))
        self.assertEqual([type(a) for a in answers], [Ack, Nack])
        self.assertTrue(transport.disconnecting)
        self.assertEqual(len(self.store.messages), 1)

    def test_half_close(self) -> None:
        """A client that half-closes gets every answer, and then the end."""
        self.serve()
        transport = self.connect()
        transport.protocol.dataReceived(messages(A, 1, b"a", b"b"))
        transport.protocol.readConnectionLost()
        self.assertFalse(transport.disconnecting)
        self.turn()
        self.assertEqual(len(transport.answers()), 2)
        self.assertTrue(transport.disconnecting)

    def test_half_close_with_slow_reader(self) -> None:
        """The connection is not closed while answers are unread."""
        self.serve()
        transport = self.connect()
        transport.stalled = True
        transport.protocol.dataReceived(messages(A, 1, b"a"))
        transport.protocol.readConnectionLost()
        self.turn()
        self.assertFalse(transport.disconnecting)
        transport.drain()
        self.assertTrue(transport.disconnecting)

    def test_cap(self) -> None:
        """One connection too many is told UNAVAILABLE and closed; a place that is free is used."""
        self.serve(max_connections=1)
        first, second = self.connect(), self.connect()
        (nack,) = second.answers()
        self.assertEqual(nack.code, NackCode.UNAVAILABLE)
        self.assertTrue(second.disconnecting)
        second.protocol.connectionLost()
        self.assertEqual(len(self.say(first, messages(A, 1, b"a"))), 1)
        first.protocol.connectionLost()
        (ack,) = self.say(self.connect(), messages(A, 2, b"b"))
        self.assertEqual(type(ack), Ack)

    def test_stop(self) -> None:
        """A stop answers what was taken, refuses what still comes, and fires when all are gone."""
        self.serve()
        transport = self.connect()
        transport.protocol.dataReceived(messages(A, 1, b"a"))
        stopped = self.factory.stop()
        transport.protocol.dataReceived(messages(A, 2, b"b"))
        self.turn()
        answers = transport.answers()
        self.assertEqual(type(answers[0]), Ack)
        self.assertEqual(answers[1].code, NackCode.UNAVAILABLE)
        self.assertTrue(transport.disconnecting)
        self.assertNoResult(stopped)
        transport.protocol.connectionLost()
        self.successResultOf(stopped)
        self.assertEqual(len(self.store.messages), 1)
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_stop_does_not_wait_for_the_silent(self) -> None:
        """Peers that have nothing to say and do not go do not keep the next server waiting."""
        self.serve()
        transport = self.connect()
        self.assertEqual(len(self.say(transport, messages(A, 1, b"a"))), 1)
        stopped = self.factory.stop()
        self.turn()
        self.clock.pump([STOP_LINGER_SECONDS / 8] * 7)
        self.assertFalse(transport.aborted)
        self.clock.pump([STOP_LINGER_SECONDS / 8] * 4)
        self.assertTrue(transport.aborted)
        transport.protocol.connectionLost()
        self.successResultOf(stopped)
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_stop_has_a_deadline(self) -> None:
        """A stop aborts connections whose peers do not go."""
        self.serve(stop_seconds=5)
        transport = self.connect()
        transport.stalled = True
        transport.protocol.dataReceived(messages(A, 1, b"a"))
        stopped = self.factory.stop()
        self.turn()
        self.clock.advance(4.9)
        self.assertNoResult(stopped)
        self.clock.advance(0.2)
        self.successResultOf(stopped)
        self.assertTrue(transport.aborted)

    def test_all_places_after_a_stop(self) -> None:
        """One that was aborted leaves its place at once, and once."""
        self.serve(stop_seconds=5, max_connections=1)
        old = self.connect()
        old.stalled = True
        old.protocol.dataReceived(messages(A, 1, b"a"))
        self.factory.stop()
        self.clock.advance(5)
        self.factory.startFactory()
        new = self.connect()
        self.assertFalse(new.disconnecting)
        old.protocol.connectionLost()
        self.assertTrue(self.connect().disconnecting)


class Bounds(Case):
    """What the server holds is bounded; nothing is dropped for it."""

    def test_unanswered(self) -> None:
        """A connection that is too far ahead of its answers is not read until they are out."""
        self.serve(max_unanswered_bytes=8000)
        transport = self.connect()
        transport.protocol.dataReceived(messages(A, 1, *[b"x"] * 10))
        self.assertEqual(transport.producerState, "producing")
        transport.protocol.dataReceived(messages(A, 11, *[b"x"] * 10))
        self.assertEqual(transport.producerState, "paused")
        other = self.connect()
        self.assertEqual(other.producerState, "producing")
        self.turn()
        self.assertEqual(transport.producerState, "producing")
        self.assertEqual(len(transport.answers()), 20)

    def test_undurable(self) -> None:
        """All connections pause when too much is undurable in all, and go on when it is not."""
        self.serve(max_undurable_bytes=12_000)
        transports = [self.connect() for _ in range(10)]
        for n, transport in enumerate(transports):
            if transport.producerState == "producing":
                transport.protocol.dataReceived(messages(bytes([n]) * 16, 1, *[b"x"] * 5))
        self.assertLess(self.factory.undurable, 12_000 + 1200 + 5 * 400)
        late = self.connect()
        self.assertEqual({t.producerState for t in [*transports, late]}, {"paused"})
        self.turn()
        self.assertEqual({t.producerState for t in [*transports, late]}, {"producing"})
        self.assertEqual(self.factory.undurable, 0)

    def test_unread(self) -> None:
        """A peer that does not read its answers is not read; when it reads, all goes on."""
        self.serve(max_unread_bytes=1000)
        transport = self.connect()
        transport.stalled = True
        protocol = transport.protocol
        protocol.dataReceived(messages(A, 1, *[b"x"] * 20))
        self.turn()
        self.assertEqual(transport.producerState, "producing")
        protocol.dataReceived(messages(A, 21, *[b"x"] * 20))
        self.turn()
        self.assertEqual(transport.producerState, "paused")
        transport.drain()
        self.assertEqual(transport.producerState, "producing")
        self.assertEqual(len(transport.answers()), 40)

    def test_unread_while_stopping(self) -> None:
        """A peer that sends and does not read is not read for ever during a stop either."""
        self.serve(max_unread_bytes=1000)
        transport = self.connect()
        transport.stalled = True
        self.say(transport, messages(A, 1, b"a"))
        self.factory.stop()
        for n in range(2, 20):
            if transport.producerState == "producing":
                self.say(transport, messages(A, n, b"x"))
        self.assertEqual(transport.producerState, "paused")
        transport.drain()
        self.assertEqual(transport.producerState, "producing")

    def test_never_reads(self) -> None:
        """A peer that never reads its answers is aborted after a time."""
        self.serve(unread_seconds=10)
        transport = self.connect()
        transport.stalled = True
        transport.protocol.dataReceived(messages(A, 1, b"a"))
        self.turn()
        self.pass_time(9)
        self.assertFalse(transport.aborted)
        self.pass_time(4)
        self.assertTrue(transport.aborted)

    def pass_time(self, seconds: float) -> None:
        self.clock.pump([0.25] * int(4 * seconds))

    def test_partial_frame(self) -> None:
        """A peer that stops in a frame is aborted; a trickle does not help; a whole frame does."""
        self.serve(frame_seconds=10)
        transport = self.connect()
        data = messages(A, 1, b"x" * 100)
        for byte in data[:9]:
            transport.protocol.dataReceived(bytes([byte]))
            self.pass_time(1)
        self.assertFalse(transport.aborted)
        transport.protocol.dataReceived(data[9:])
        self.turn()
        self.pass_time(20)
        self.assertFalse(transport.aborted)
        transport.protocol.dataReceived(data[:50])
        self.pass_time(9)
        self.assertFalse(transport.aborted)
        transport.protocol.dataReceived(data[50:60])
        self.pass_time(4)
        self.assertTrue(transport.aborted)

    def test_waiting_for_us_is_not_idle(self) -> None:
        """A peer is not punished for a slow disk."""
        self.serve(frame_seconds=1, idle_seconds=1)
        transport = self.connect()
        transport.protocol.dataReceived(messages(A, 1, b"a") + messages(A, 2, b"b")[:10])
        self.pass_time(100)
        self.assertFalse(transport.aborted or transport.disconnecting)

    def test_idle(self) -> None:
        """A connection without a byte for too long is closed; one with bytes is not."""
        self.serve(idle_seconds=100)
        quiet, busy = self.connect(), self.connect()
        for n in range(1, 4):
            self.pass_time(50)
            self.say(busy, messages(A, n, b"x"))
        self.assertTrue(quiet.disconnecting or quiet.half_closed)
        self.assertFalse(busy.disconnecting or busy.half_closed)

    def test_too_long_is_not_held(self) -> None:
        """An over-long body is dropped as it arrives and the next message is taken."""
        self.serve(max_message_bytes=10)
        transport = self.connect()
        data = encode_message(A, 1, bytes(1 << 20)) + messages(A, 1, b"a")
        held = []
        for at in range(0, len(data), 1000):
            transport.protocol.dataReceived(data[at : at + 1000])
            held.append(sum(map(len, transport.protocol._decoder._pieces)))
        self.turn()
        self.assertLess(max(held), 1000)
        answers = transport.answers()
        self.assertEqual([type(a) for a in answers], [Nack, Ack])
        self.assertEqual(answers[0].code, NackCode.TOO_LONG)

    def test_connections_leave_nothing(self) -> None:
        """A connection that is gone is freed."""
        self.serve()
        seen = weakref.WeakSet()
        for _ in range(10):
            transport = self.connect()
            seen.add(transport.protocol)
            self.say(transport, messages(A, 1, b"a"))
            transport.protocol.connectionLost()
        self.assertTrue(seen)
        del transport
        gc.collect()
        self.assertEqual(len(seen), 0)


class OwnLog(Case):
    """What the server says of itself."""

    def test_one_line_for_many(self) -> None:
        """Many malformed connections make one line in a while, not one each, and no traceback."""
        observer = EventLoggingObserver()
        globalLogPublisher.addObserver(observer)
        self.addCleanup(globalLogPublisher.removeObserver, observer)
        self.serve(max_connections=60)
        for _ in range(50):
            self.say(self.connect(), b"GET / HTTP/1.0\r\n\r\n")
        for _ in range(20):
            self.connect()
        self.clock.advance(LINGER_SECONDS)
        said = {e["what"]: e["count"] for e in observer if "what" in e}
        self.assertEqual(
            said, {"sent what is no frame of this protocol": 50, "were turned away": 10}
        )
        self.assertEqual(self.flushLoggedErrors(), [])
