"""The protocol on a plain socket, which is read for it; the socket and what reads it are fakes."""

from __future__ import annotations

import socket

from twisted.internet import tcp
from twisted.internet.address import IPv4Address
from twisted.internet.error import ConnectionLost
from twisted.internet.interfaces import ISSLTransport
from twisted.internet.testing import EventLoggingObserver
from twisted.logger import formatEvent, globalLogPublisher
from twisted.python.failure import Failure
from zope.interface import directlyProvides

from msglog import Limits, NackCode
from msglog._busiest import Busiest
from msglog._counts import MESSAGES, Histogram
from msglog._frames import Ack, encode_enquiry
from msglog._protocol import LINGER_SECONDS, STOP_LINGER_SECONDS
from msglog._sockets import SocketAnswers
from msglog.testing import MemoryTransport

from .test_protocol import A, B, Case, messages


class Reader:
    """What reads sockets, as far as the protocol knows: which it has, and which it reads."""

    def __init__(self) -> None:
        self.known: set[int] = set()
        self.reading: set[int] = set()

    def add(self, connection: object) -> int:
        fd: int = connection.transport.number
        self.known.add(fd)
        self.reading.add(fd)
        return fd

    def pause(self, fd: int) -> None:
        self.reading.remove(fd)

    def resume(self, fd: int) -> None:
        assert fd in self.known
        assert fd not in self.reading
        self.reading.add(fd)

    def remove(self, fd: int) -> None:
        self.known.remove(fd)
        self.reading.discard(fd)


class Plain(MemoryTransport, tcp.Connection):
    """A transport of a plain socket, whose peer takes C{takes} bytes; without end if L{None}."""

    TLS = False
    family = socket.AF_UNIX

    def __init__(self, number: int) -> None:
        MemoryTransport.__init__(self, peerAddress=IPv4Address("TCP", "10.0.0.1", number))
        self.number = number
        self.takes: int | None = None
        self.read_by_itself = False

    def getHandle(self) -> Plain:
        return self

    def send(self, data: bytes) -> int:
        taken = data if self.takes is None else data[: self.takes]
        self.io.write(taken)
        return len(taken)

    def startReading(self) -> None:
        self.read_by_itself = True

    def registerProducer(self, producer: object, streaming: bool) -> None:
        MemoryTransport.registerProducer(self, producer, streaming)
        if not streaming:
            producer.resumeProducing()  # as Twisted does: while the connection is made


class SocketCase(Case):
    def serve(self, permits=None, **limits) -> None:
        super().serve(permits, **limits)
        self.reader = Reader()
        self.tuned: list[object] = []
        self.read: list[object] = []
        self.patch(self.factory, "tune", self.tuned.append)
        self.patch(self.factory, "reader_for", lambda t: self.read.append(t) or self.reader)
        self.connected = 0

    def connect(self) -> Plain:
        self.connected += 1
        transport = Plain(self.connected)
        transport.protocol = self.factory.buildProtocol(None)
        transport.protocol.makeConnection(transport)
        return transport

    def gone(self, transport: Plain) -> None:
        transport.protocol.connectionLost()

    def pass_time(self, seconds: float) -> None:
        for _ in range(round(seconds * 80)):
            self.clock.advance(1 / 80)


class Reading(SocketCase):
    def test_from_begin_to_end(self) -> None:
        """A socket is read while its connection is there, and answered straight."""
        self.serve()
        transport = self.connect()
        self.assertEqual(self.reader.reading, {1})
        self.assertEqual((self.tuned, self.read), ([transport], [transport]))
        self.assertIsInstance(transport.protocol._answers, SocketAnswers)
        self.assertEqual([type(a) for a in self.say(transport, messages(A, 1, b"a"))], [Ack])
        self.connect()
        self.assertEqual(self.factory.counts.accepted, 2)
        self.gone(transport)
        self.assertEqual(self.reader.known, {2})

    def test_too_much_unanswered(self) -> None:
        """A socket that is too far ahead is not read until half of it is answered, others are."""
        self.serve(max_unanswered_bytes=8000)
        ahead, other = self.connect(), self.connect()
        for n in range(1, 7):
            ahead.protocol.dataReceived(messages(A, n, b"x"))
        self.assertEqual(self.reader.reading, {2})
        self.assertTrue(ahead.protocol.held(1))
        self.assertFalse(other.protocol.held(1))
        self.assertEqual(self.factory.counts.pauses["unanswered"], 1)
        self.turn()
        self.assertEqual(self.reader.reading, {1, 2})
        self.assertFalse(ahead.protocol.held(1))
        self.assertFalse(ahead.protocol.held(1))

    def test_two_reasons(self) -> None:
        """A socket is read again when the last reason not to is gone, and not before."""
        self.serve()
        protocol = self.connect().protocol
        protocol.hold(1)
        protocol.hold(4)
        protocol.hold(4)
        self.assertEqual(self.reader.reading, set())
        self.assertEqual(
            dict(self.factory.counts.pauses), {"unanswered": 1, "undurable": 1, "unread": 0}
        )
        protocol.release(2)
        protocol.release(4)
        protocol.release(4)
        self.assertEqual(self.reader.reading, set())
        protocol.release(1)
        self.assertEqual(self.reader.reading, {1})
        protocol.hold(1)
        self.assertEqual(self.factory.counts.pauses["unanswered"], 2)

    def test_joins_while_all_are_held(self) -> None:
        """A connection that comes while too much is undurable waits with the others."""
        self.serve(max_undurable_bytes=3000)
        first = self.connect()
        first.protocol.dataReceived(messages(A, 1, b"x") + messages(B, 1, b"x"))
        self.assertEqual(self.reader.reading, set())
        self.connect()
        self.assertEqual(self.reader.reading, set())
        self.turn()
        self.assertEqual(self.reader.reading, {1, 2})

    def test_an_end_is_the_transports(self) -> None:
        """When there is an end or an error to read, the transport reads it."""
        self.serve()
        transport = self.connect()
        transport.protocol.read_by_transport()
        self.assertTrue(transport.read_by_itself)
        self.assertEqual(self.reader.known, set())
        transport.protocol.hold(1)
        self.assertEqual(transport.producerState, "paused")
        transport.protocol.release(1)
        self.assertEqual(transport.producerState, "producing")
        self.gone(transport)

    def test_half_closed_is_not_read_again(self) -> None:
        """After its peer has half-closed there is nothing more to read."""
        self.serve()
        transport = self.connect()
        transport.protocol.dataReceived(messages(A, 1, b"x"))
        transport.protocol.hold(4)
        transport.protocol.readConnectionLost()
        transport.protocol.release(4)
        transport.protocol.hold(4)
        self.assertEqual(self.reader.reading, set())
        self.turn()
        self.assertEqual(len(transport.answers()), 1)
        self.assertTrue(transport.disconnecting)

    def test_a_peer_that_reads_nothing(self) -> None:
        """The socket takes what it can; the rest follows when it takes more, then it is read."""
        self.serve(max_unread_bytes=1000)
        transport = self.connect()
        transport.takes = 10
        transport.protocol.dataReceived(messages(A, 1, *[b"x"] * 40))
        self.turn()
        self.assertEqual(transport.protocol.unread, 40 * 33 - 10)
        self.assertEqual(self.reader.reading, set())
        self.assertEqual(self.factory.counts.pauses["unread"], 1)
        transport.producer.resumeProducing()
        self.assertEqual(transport.protocol.unread, 0)
        self.assertEqual(self.reader.reading, {1})
        self.assertEqual(len(transport.answers()), 40)

    def test_until_half_is_read(self) -> None:
        """A peer is read again when it has read all but half of what it may leave unread."""
        answers = 3900 * 33
        rest = answers - 64 * 1024  # the transport has taken one piece
        for bound, reading in ((2 * rest - 1, set()), (2 * rest, {1}), (2 * rest + 1, {1})):
            self.setUp()
            self.serve(max_unread_bytes=bound, max_unanswered_bytes=1 << 30)
            transport = self.connect()
            transport.takes = 0
            transport.protocol.dataReceived(messages(A, 1, *[b""] * 3900))
            self.turn()
            self.assertEqual(self.reader.reading, set())
            transport.producer.resumeProducing()
            self.assertEqual(transport.protocol.unread, rest)
            self.assertEqual(self.reader.reading, reading)
            transport.producer.resumeProducing()
            self.assertEqual(self.reader.reading, {1})

    def test_unread_may_reach_its_bound(self) -> None:
        """What a peer leaves unread is too much over the bound, not at it."""
        for bound, reading in ((40 * 33 - 1, set()), (40 * 33, {1})):
            self.setUp()
            self.serve(max_unread_bytes=bound)
            transport = self.connect()
            transport.takes = 0
            transport.protocol.dataReceived(messages(A, 1, *[b""] * 40))
            self.turn()
            self.assertEqual(self.reader.reading, reading)

    def test_until_half_is_answered(self) -> None:
        """One that is ahead is read again when no more than half of its bound is unanswered."""
        cost = 1200 + 320
        for bound, reading in ((4 * cost - 1, set()), (4 * cost, {1})):
            self.setUp()
            self.serve(max_unanswered_bytes=bound)
            transport = self.connect()
            for n in range(1, 6):
                transport.protocol.dataReceived(messages(A, n, b""))
            self.assertEqual(self.reader.reading, set())
            waiting, self.store._waiting = self.store._waiting[3:], self.store._waiting[:3]
            self.turn()
            self.assertEqual(len(transport.answers()), 3)
            self.assertEqual(self.reader.reading, reading)
            self.store._waiting = waiting
            self.turn()
            self.assertEqual(self.reader.reading, {1})

    def test_bounds_may_be_reached(self) -> None:
        """What is exactly at a bound is not over it."""
        cost = 1200 + 320
        self.serve(max_unanswered_bytes=4 * cost, max_undurable_bytes=5 * cost)
        first, second = self.connect(), self.connect()
        for n in range(1, 5):
            first.protocol.dataReceived(messages(A, n, b""))
        second.protocol.dataReceived(messages(B, 1, b""))
        self.assertEqual(self.reader.reading, {1, 2})
        second.protocol.dataReceived(messages(B, 2, b""))
        self.assertEqual(self.reader.reading, set())

    def test_an_end_is_read_again(self) -> None:
        """When nothing more is taken, too much that is undurable is no reason not to read."""
        self.serve(max_undurable_bytes=8000)
        transport = self.connect()
        for n in range(1, 7):
            transport.protocol.dataReceived(messages(A, n, b"x"))
        self.assertEqual(self.reader.reading, set())
        self.factory.stop()
        self.assertEqual(self.reader.reading, {1})
        transport.protocol.dataReceived(messages(A, 7, b"x"))
        self.assertEqual(self.reader.reading, {1})
        self.turn()
        self.assertEqual(len(transport.answers()), 7)

    def test_ahead_of_an_end(self) -> None:
        """One that is too far ahead of its answers stays unread, or gets so, while it ends."""
        for before in (1, 6):
            self.setUp()
            self.serve(max_unanswered_bytes=8000)
            transport = self.connect()
            for n in range(1, 1 + before):
                transport.protocol.dataReceived(messages(A, n, b"x"))
            self.factory.stop()
            count = before
            while 1 in self.reader.reading and count < 100:
                count += 1
                transport.protocol.dataReceived(messages(A, count, b"x"))
            self.assertEqual(count, 6)
            self.turn()
            self.assertEqual(len(transport.answers()), count)
            self.assertTrue(transport.half_closed)
            self.assertEqual(self.reader.reading, {1})


class Lingering(SocketCase):
    def test_nothing_is_taken_any_more(self) -> None:
        """What comes after we have closed our half is dropped, and so after both are closed."""
        self.serve(idle_seconds=5)
        transport = self.connect()
        self.pass_time(6)
        self.assertTrue(transport.half_closed)
        self.assertEqual(self.say(transport, messages(A, 1, b"x")), [])
        transport.protocol.readConnectionLost()
        self.assertTrue(transport.disconnecting)
        self.assertEqual(self.say(transport, messages(A, 1, b"x")), [])
        self.assertEqual(self.store.messages, [])

    def ended(self) -> Plain:
        transport = self.connect()
        (nack,) = self.say(transport, b"GET / HTTP/1.1\r\n\r\n")
        self.assertEqual(nack.code, NackCode.MALFORMED)
        self.assertTrue(transport.half_closed)
        self.assertFalse(transport.disconnecting)
        return transport

    def test_our_half_first(self) -> None:
        """We close our half and wait for the peer's: so no answer is lost by a reset."""
        self.serve()
        transport = self.ended()
        self.assertIsNone(transport.producer)
        transport.protocol.writeConnectionLost()
        self.assertEqual(self.say(transport, messages(A, 1, b"x")), [])
        self.assertEqual(self.store.messages, [])
        transport.protocol.readConnectionLost()
        self.assertTrue(transport.disconnecting)
        self.assertEqual(self.say(transport, messages(A, 1, b"x")), [])
        self.assertEqual(self.store.messages, [])

    def test_sends_on_and_on(self) -> None:
        """What is dropped does not put the end off, before the peer's half is closed or after."""
        for close in (False, True):
            self.setUp()
            self.serve()
            transport = self.ended()
            if close:
                transport.protocol.readConnectionLost()
            for _ in range(12):
                self.pass_time(0.25)
                transport.protocol.dataReceived(messages(A, 1, b"x"))
            self.assertTrue(transport.aborted)

    def test_stays(self) -> None:
        """A peer that does not close its half is aborted after a while, and not sooner."""
        self.serve()
        transport = self.ended()
        self.pass_time(LINGER_SECONDS - 0.1)
        self.assertFalse(transport.aborted)
        self.pass_time(LINGER_SECONDS / 4 + 0.2)
        self.assertTrue(transport.aborted)
        transport = self.ended()
        transport.protocol.check(self.clock.seconds() + LINGER_SECONDS)
        self.assertTrue(transport.aborted)

    def test_stays_while_the_server_stops(self) -> None:
        """A stop waits less, closes in a way that still delivers, and aborts in the end."""
        self.serve()
        transport = self.connect()
        self.say(transport, messages(A, 1, b"x"))
        self.factory.stop()
        self.turn()
        self.assertTrue(transport.half_closed)
        self.pass_time(STOP_LINGER_SECONDS - 0.02)
        self.assertFalse(transport.disconnecting or transport.aborted)
        self.pass_time(STOP_LINGER_SECONDS / 2)
        self.assertTrue(transport.disconnecting)
        self.assertFalse(transport.aborted)
        self.pass_time(2 * STOP_LINGER_SECONDS)
        self.assertTrue(transport.aborted)
        self.gone(transport)

    def test_says_what_a_stop_waits_for(self) -> None:
        """Peers that have answers to read yet are why it is not over at once."""
        self.serve(stop_seconds=7)
        slow, _ = self.connect(), self.connect()
        slow.takes = 0
        slow.protocol.dataReceived(messages(A, 1, b"x"))
        self.turn()
        said = EventLoggingObserver()
        globalLogPublisher.addObserver(said)
        self.addCleanup(globalLogPublisher.removeObserver, said)
        self.factory.stop()
        (line,) = [formatEvent(event) for event in said]
        self.assertEqual(line, "connections that have answers to read yet: 1; they get 7 s")

    def test_goes_on_to_answer(self) -> None:
        """It ends when everything is answered and read, not before."""
        self.serve()
        transport = self.connect()
        transport.takes = 0
        transport.protocol.dataReceived(messages(A, 1, b"x") + b"GET / HTTP/1.1\r\n\r\n")
        self.assertFalse(transport.half_closed)
        self.turn()
        self.assertFalse(transport.half_closed)
        transport.producer.resumeProducing()
        self.assertTrue(transport.half_closed)
        self.assertEqual(len(transport.answers()), 2)

    def test_half_closed_meanwhile(self) -> None:
        """A peer that half-closes while its last answers wait has them, and then the end."""
        self.serve()
        transport = self.connect()
        transport.protocol.dataReceived(messages(A, 1, b"x") + b"GET / HTTP/1.1\r\n\r\n")
        transport.protocol.readConnectionLost()
        self.assertFalse(transport.disconnecting or transport.half_closed)
        self.turn()
        self.assertEqual(len(transport.answers()), 2)
        self.assertTrue(transport.disconnecting)


class Handshakes(Case):
    def connect_secure(self) -> MemoryTransport:
        transport = MemoryTransport(peerAddress=IPv4Address("TCP", "10.0.0.1", 7))
        directlyProvides(transport, ISSLTransport)
        transport.protocol = self.factory.buildProtocol(None)
        transport.protocol.makeConnection(transport)
        return transport

    def said(self, transport: MemoryTransport, error: Exception) -> list[tuple[str, str]]:
        transport.protocol.connectionLost(Failure(error))
        return [(what, reason) for what, (_, _, reason) in self.factory._notes.items()]

    def test_refused(self) -> None:
        """A handshake that fails is counted, and its reason said in OpenSSL's words or others'."""
        openssl = Exception([("SSL routines", "", "no certificate"), ("", "", "alert")])
        for error, words in [
            (openssl, "no certificate, alert"),
            (Exception("bad"), "bad"),
            (ConnectionLost(), ConnectionLost().__str__()),
        ]:
            self.serve()
            said = self.said(self.connect_secure(), error)
            self.assertEqual(said, [("were refused by TLS", words)])
            self.assertEqual(self.factory.counts.refused["tls"], 1)
            self.said(self.connect_secure(), error)
            self.assertEqual(self.factory.counts.refused["tls"], 2)
            self.assertEqual(len(self.factory.connections), 0)

    def test_done(self) -> None:
        """A connection that is lost after its handshake was not refused by it."""
        self.serve()
        transport = self.connect_secure()
        transport.protocol.handshakeCompleted()
        self.assertEqual(self.said(transport, Exception("bad")), [])
        self.assertEqual(self.factory.counts.refused["tls"], 0)

    def test_turned_away(self) -> None:
        """Neither was one that was turned away for another reason."""
        self.serve(max_connections=1)
        self.connect_secure()
        transport = self.connect_secure()
        said = self.said(transport, Exception("bad"))
        self.assertEqual([what for what, _ in said], ["were turned away"])
        self.assertEqual(self.factory.counts.refused["tls"], 0)

    def test_late(self) -> None:
        """A handshake has until its deadline exactly; who exceeds it is counted and named."""
        self.serve(handshake_seconds=5)
        transport = self.connect_secure()
        now = self.clock.seconds()
        transport.protocol.check(now + 4.9)
        self.assertFalse(transport.aborted)
        transport.protocol.check(now + 5.0)
        self.assertTrue(transport.aborted)
        self.assertEqual(self.factory.counts.closed["handshake"], 1)
        (note,) = self.factory._notes.values()
        self.assertEqual(note, (1, "10.0.0.1:7", "it did not end its TLS handshake (5 s)"))


class Counting(Case):
    def test_busiest(self) -> None:
        """While somebody wants to know, messages are counted by client as they are acknowledged."""
        self.serve()
        self.factory.counts.busiest = Busiest(10)
        transport = self.connect()
        self.say(transport, messages(A, 1, b"a", b"b") + messages(B, 1, b"c"))
        self.say(transport, messages(A, 2, b"other", b"d"))
        self.assertEqual(self.factory.counts.busiest.top(9), [(A, 3), (B, 1)])

    def test_what_is_answered(self) -> None:
        """ACKs, refusals by code, bytes, batches, and how long an ACK took."""
        self.serve()
        transport = self.connect()
        data = messages(A, 1, b"a", b"b") + messages(B, 3, b"c") + encode_enquiry(A)
        transport.protocol.dataReceived(data)
        self.clock.advance(3)
        self.turn()
        counts = self.factory.counts
        self.assertEqual((counts.accepted, counts.acked, counts.received_bytes), (1, 2, len(data)))
        self.assertEqual(counts.nacked[NackCode.OUT_OF_ORDER], 1)
        self.assertEqual((counts.batches.total, sum(counts.batches.buckets)), (3, 2))
        self.assertEqual((counts.ack_seconds.total, sum(counts.ack_seconds.buckets)), (6.0, 2))
        transport.protocol.dataReceived(messages(A, 3, b"c"))
        self.clock.rightNow -= 100
        self.turn()
        self.assertEqual((counts.ack_seconds.total, sum(counts.ack_seconds.buckets)), (6.0, 3))

    def test_refusals_are_counted_by_message(self) -> None:
        """Of a batch that is stored in part, each message counts as what it was answered."""
        self.serve()
        transport = self.connect()
        self.say(transport, messages(A, 1, b"a"))
        self.store.full = True
        for times in (1, 2):
            self.say(transport, messages(A, 1, b"a", b"b", b"c"))
            self.assertEqual(self.factory.counts.nacked[NackCode.NOT_STORED], 2 * times)
            self.assertEqual(self.factory.counts.acked, 1 + times)

    def test_reads_and_batches(self) -> None:
        """Bytes count as they are read, and batches by how many messages they have."""
        self.serve()
        transport = self.connect()
        counts = self.factory.counts
        one, two = messages(A, 1, b""), messages(A, 2, b"", b"")
        for data in (one, two, messages(B, 1, b""), messages(B, 2, b"", b"", b"")):
            transport.protocol.dataReceived(data)
        self.assertEqual(counts.received_bytes, 7 * len(one))
        expected = Histogram(MESSAGES)
        for size in (1, 2, 1, 3):
            expected.note(size)
        self.assertEqual(counts.batches.buckets, expected.buckets)
        self.assertEqual(counts.batches.total, 7)

    def test_what_a_store_holds(self) -> None:
        """What it says it holds for a batch is unanswered and undurable until it is judged."""
        self.serve()
        append = self.store.append
        self.patch(self.store, "append", lambda batch, judged: append(batch, judged) + 5000)
        transport = self.connect()
        transport.protocol.dataReceived(messages(A, 1, b""))
        self.assertEqual(self.factory.undurable, 1520 + 5000)
        self.assertEqual(transport.protocol._unanswered, 1520 + 5000)
        self.turn()
        self.assertEqual((transport.protocol._unanswered, self.factory.undurable), (0, 0))

    def test_whose_right_is_asked(self) -> None:
        """An application's permits are asked with the client's id and the transport."""
        asked = []
        self.serve(lambda client, transport: asked.append((client, transport)) or True)
        transport = self.connect()
        self.say(transport, messages(A, 1, b"x"))
        self.assertEqual(asked, [(A, transport)])

    def test_a_defect_is_said(self) -> None:
        """A defect in what judges is in the log, and the peer is told that there is one."""

        def permits(client: bytes, transport: object) -> bool:
            raise LookupError("a defect")

        said = EventLoggingObserver()
        globalLogPublisher.addObserver(said)
        self.addCleanup(globalLogPublisher.removeObserver, said)
        self.serve(permits)
        (nack,) = self.say(self.connect(), messages(A, 1, b"x"))
        self.assertEqual((nack.reason, nack.expected), ("the server has a defect", 0))
        self.assertEqual([formatEvent(e) for e in said], ["a message could not be judged"])
        self.assertEqual(len(self.flushLoggedErrors(LookupError)), 1)

    def test_how_long_an_ack_took(self) -> None:
        """From its read to its write, also if that is short; and only if there was a write."""
        self.serve()
        transport = self.connect()
        waited = self.factory.counts.ack_seconds
        for n in (1, 2):
            transport.protocol.dataReceived(messages(A, n, b"x"))
            self.clock.advance(0.25)
            self.turn()
            self.assertEqual((waited.total, max(waited.buckets)), (0.25 * n, n))
        transport.protocol.dataReceived(messages(A, 3, b"x"))
        transport.protocol.connectionLost()
        self.turn()
        self.assertEqual((self.factory.counts.acked, sum(waited.buckets)), (3, 2))

    def test_when_answers_leave(self) -> None:
        """One that nothing can be gathered with leaves at once, several in one write a turn."""
        self.serve()
        transport = self.connect()
        transport.protocol.dataReceived(messages(A, 1, b"x"))
        self.store.commit()
        self.assertEqual(len(transport.answers()), 1)
        for count in (2, 5):
            for n in range(count):
                transport.protocol.dataReceived(messages(bytes([count]) * 16, n + 1, b"x"))
            self.store.commit()
            self.assertEqual(transport.answers(), [])
            self.assertEqual(self.factory._to_flush, [transport.protocol])
            self.clock.advance(0)
            self.assertEqual(len(transport.answers()), count)

    def test_answers_of_one_batch(self) -> None:
        """What is stored of a batch is acknowledged before, between and behind what is refused."""
        self.serve()
        transport = self.connect()
        self.say(transport, messages(A, 1, b"a", b"b", b"c"))
        for bodies, codes in [
            ((b"a", b"B", b"c", b"d"), [None, NackCode.CONFLICT, None, None]),
            ((b"A", b"b", b"C"), [NackCode.CONFLICT, None, NackCode.CONFLICT]),
            ((b"a", b"b", b"C"), [None, None, NackCode.CONFLICT]),
        ]:
            answers = self.say(transport, messages(A, 1, *bodies))
            self.assertEqual([getattr(a, "code", None) for a in answers], codes)
            self.assertEqual([a.sequence for a in answers], list(range(1, len(codes) + 1)))
            self.assertEqual({a.client for a in answers}, {A})

    def test_turned_away(self) -> None:
        """It is counted by why, told why, and named."""
        self.serve(max_connections=1)
        self.connect()
        transport = self.connect()
        (nack,) = transport.answers()
        self.assertEqual((nack.client, nack.sequence, nack.expected), (bytes(16), 0, 0))
        self.assertEqual(nack.reason, "too many connections")
        self.assertEqual(self.factory.counts.refused["full"], 1)
        self.assertEqual(self.factory.counts.accepted, 1)
        self.assertEqual([note[2] for note in self.factory._notes.values()], [nack.reason])
        self.connect()
        self.assertEqual(self.factory.counts.refused["full"], 2)


class Deadlines(Case):
    def test_each(self) -> None:
        """Who exceeds a deadline is aborted at it, counted by why, and named with the seconds."""
        limits = Limits(frame_seconds=3, unread_seconds=4, idle_seconds=5)
        for kind, seconds, words in [
            ("frame", 3, "it stopped in the middle of a frame (3 s)"),
            ("unread", 4, "it does not read its answers (4 s)"),
        ]:
            self.serve(frame_seconds=3, unread_seconds=4, idle_seconds=limits.idle_seconds)
            transport = self.connect()
            if kind == "frame":
                transport.protocol.dataReceived(b"\0\0")
            else:
                transport.stalled = True
                self.say(transport, messages(A, 1, b"x"))
            now = self.clock.seconds()
            transport.protocol.check(now + seconds - 0.1)
            self.assertFalse(transport.aborted)
            transport.protocol.check(now + seconds)
            self.assertTrue(transport.aborted)
            self.assertEqual(self.factory.counts.closed[kind], 1)
            self.assertEqual([note[2] for note in self.factory._notes.values()], [words])
            self.assertEqual(list(self.factory._notes), ["were aborted"])
            transport.protocol.check(now + seconds)
            self.assertEqual(self.factory.counts.closed[kind], 2)
            self.setUp()

    def test_waiting_for_us(self) -> None:
        """A connection that we do not read is not idle, nor does a frame of it take too long."""
        self.serve(idle_seconds=5, frame_seconds=3)
        transport = self.connect()
        transport.protocol.dataReceived(b"\0\0")
        transport.protocol.hold(4)
        now = self.clock.seconds()
        transport.protocol.check(now + 100)
        self.assertFalse(transport.disconnecting or transport.aborted)
        self.clock.rightNow += 4
        transport.protocol.release(4)
        transport.protocol.check(now + 4)
        self.assertFalse(transport.disconnecting or transport.aborted)
        transport.protocol.dataReceived(b"\0")
        transport.protocol.check(now + 6.9)
        self.assertFalse(transport.disconnecting or transport.aborted)
        transport.protocol.check(now + 7)
        self.assertTrue(transport.aborted)

    def test_idle(self) -> None:
        """A quiet connection is closed at its deadline, without a word in the log; 0 is never."""
        self.serve(idle_seconds=5)
        transport = self.connect()
        other = self.connect()
        now = self.clock.seconds()
        transport.protocol.check(now + 4.9)
        self.assertFalse(transport.disconnecting)
        transport.protocol.check(now + 5.0)
        self.assertTrue(transport.disconnecting)
        self.assertEqual(self.factory.counts.closed["idle"], 1)
        other.protocol.check(now + 5.0)
        self.assertEqual(self.factory.counts.closed["idle"], 2)
        self.assertEqual(self.factory._notes, {})
        self.serve(idle_seconds=0)
        transport = self.connect()
        transport.protocol.check(1e9)
        self.assertFalse(transport.disconnecting or transport.aborted)

    def test_most_unread(self) -> None:
        """Who is aborted for the sake of the others is named with how much it leaves unread."""
        self.serve()
        transport = self.connect()
        transport.stalled = True
        self.say(transport, messages(A, 1, b"x"))
        transport.protocol.abort_unread()
        self.assertEqual(self.factory.counts.closed["unread"], 1)
        self.assertEqual(
            [note[2] for note in self.factory._notes.values()],
            ["it leaves 33 bytes unread, most of all"],
        )

    def test_malformed_is_said(self) -> None:
        """Who sends what is no frame is counted and named, with the reason that it was told."""
        self.serve()
        (nack,) = self.say(self.connect(), b"GET / HTTP/1.1\r\n\r\n")
        self.assertEqual(nack.expected, 0)
        self.assertEqual(self.factory.counts.closed["malformed"], 1)
        self.assertEqual(self.factory.counts.nacked[NackCode.MALFORMED], 1)
        ((what, (count, _, reason)),) = self.factory._notes.items()
        self.assertEqual(what, "sent what is no frame of this protocol")
        self.assertEqual((count, reason), (1, nack.reason))
        self.say(self.connect(), b"GET / HTTP/1.1\r\n\r\n")
        self.assertEqual(self.factory.counts.closed["malformed"], 2)
        self.assertEqual(self.factory.counts.nacked[NackCode.MALFORMED], 2)

    def test_what_refusals_say(self) -> None:
        """Reasons of our own are for people, and expect nothing."""
        self.serve(lambda client, transport: client == A)
        transport = self.connect()
        (nack,) = self.say(transport, messages(B, 1, b"x"))
        self.assertEqual(nack.reason, "not a client id for this connection")
        self.assertEqual(nack.expected, 0)
        transport.protocol.dataReceived(messages(A, 1, b"x"))
        self.factory.stop()
        _, nack = self.say(transport, messages(A, 2, b"x"))
        self.assertEqual((nack.reason, nack.expected), ("shutting down", 0))

    def test_bytes_that_are_held(self) -> None:
        """A message costs 320 bytes and its body, a run or an enquiry 1200 besides."""
        self.serve()
        transport = self.connect()
        transport.protocol.dataReceived(messages(A, 1, b"x" * 10))
        self.assertEqual(self.factory.undurable, 1530)
        transport.protocol.dataReceived(messages(A, 2, b"x" * 10, b"", b"y"))
        self.assertEqual(self.factory.undurable, 1530 + 1200 + 3 * 320 + 11)
        transport.protocol.dataReceived(encode_enquiry(B))
        self.assertEqual(self.factory.undurable, 1530 + 1200 + 3 * 320 + 11 + 1200)
        self.assertEqual(transport.protocol._unanswered, self.factory.undurable)
        self.turn()
        self.assertEqual((transport.protocol._unanswered, self.factory.undurable), (0, 0))
