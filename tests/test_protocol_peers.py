"""Bounds that hold against peers, and applications, that do what they should not."""

from __future__ import annotations

from twisted.internet.address import IPv4Address
from twisted.internet.interfaces import ISSLTransport
from zope.interface import directlyProvides

from msglog import NackCode
from msglog._frames import Ack, encode_enquiry
from msglog._protocol import LINGER_SECONDS
from msglog.testing import MemoryTransport

from .test_protocol import A, messages
from .test_protocol import Case as ProtocolCase


class Case(ProtocolCase):
    def connect_from(self, host: str, *provided: object) -> MemoryTransport:
        transport = MemoryTransport(peerAddress=IPv4Address("TCP", host, 1))
        if provided:
            directlyProvides(transport, *provided)
        transport.protocol = self.factory.buildProtocol(None)
        transport.protocol.makeConnection(transport)
        return transport

    def pass_time(self, seconds: float) -> None:
        for _ in range(int(seconds * 4)):
            self.clock.advance(0.25)


class Connections(Case):
    def test_cap_per_address(self) -> None:
        """One address takes no more than its share; a place that it gives up is its again."""
        self.serve(max_connections_per_address=2)
        first, _, third = (self.connect_from("10.0.0.1") for _ in range(3))
        (nack,) = third.answers()
        self.assertEqual(nack.code, NackCode.UNAVAILABLE)
        self.assertIn("this address", nack.reason)
        other = self.connect_from("10.0.0.2")
        self.assertEqual(len(self.say(other, messages(A, 1, b"a"))), 1)
        third.protocol.connectionLost()
        first.protocol.connectionLost()
        self.assertFalse(self.connect_from("10.0.0.1").disconnecting)
        self.assertTrue(self.connect_from("10.0.0.1").disconnecting)

    def test_turned_away_and_stays(self) -> None:
        """Who is turned away and does not go is aborted."""
        self.serve(max_connections=1)
        self.connect()
        second = self.connect()
        self.pass_time(LINGER_SECONDS - 0.5)
        self.assertFalse(second.aborted)
        self.pass_time(1)
        self.assertTrue(second.aborted)
        second.protocol.connectionLost()
        self.assertEqual(self.factory.turned_away, set())

    def test_closed_and_stays(self) -> None:
        """So is a peer that does not answer our close, as TLS lets it."""
        self.serve()
        transport = self.connect()
        self.say(transport, b"GET / HTTP/1.1\r\n\r\n")
        self.assertTrue(transport.disconnecting)
        self.pass_time(LINGER_SECONDS + 1)
        self.assertTrue(transport.aborted)

    def test_handshake(self) -> None:
        """A TLS handshake has a deadline of its own; one that is done is not aborted by it."""
        self.serve(handshake_seconds=5, idle_seconds=0)
        slow = self.connect_from("10.0.0.1", ISSLTransport)
        quick = self.connect_from("10.0.0.1", ISSLTransport)
        self.pass_time(3)
        quick.protocol.handshakeCompleted()
        self.assertFalse(slow.aborted)
        self.pass_time(3)
        self.assertTrue(slow.aborted)
        self.assertFalse(quick.aborted)


class Memory(Case):
    def test_all_that_is_unread(self) -> None:
        """When all peers together leave too much unread, those who leave most are aborted."""
        self.serve(max_total_unread_bytes=33 * 30)
        slow, slower = self.connect(), self.connect()
        slow.stalled = slower.stalled = True
        for n in range(1, 12):
            self.say(slow, messages(A, n, b"x"))
        for n in range(1, 32):
            self.say(slower, messages(bytes(16), n, b"x"))
        self.pass_time(1)
        self.assertTrue(slower.aborted)
        self.assertFalse(slow.aborted)

    def test_what_the_store_holds(self) -> None:
        """What the store holds for a batch counts until it is judged."""
        self.serve()
        append = self.store.append
        self.patch(self.store, "append", lambda batch, judged: append(batch, judged) + 5000)
        transport = self.connect()
        transport.protocol.dataReceived(messages(A, 1, b"a"))
        self.assertGreater(self.factory.undurable, 5000)
        self.turn()
        self.assertEqual(self.factory.undurable, 0)

    def test_what_is_judged_at_once(self) -> None:
        """It does not count for a batch that was judged at once."""
        self.serve()
        self.store.automatic = True
        append = self.store.append
        self.patch(self.store, "append", lambda batch, judged: append(batch, judged) + 5000)
        self.say(self.connect(), messages(A, 1, b"a") + messages(bytes(16), 1, b"b"))
        self.assertEqual(self.factory.undurable, 0)

    def test_enquiries_and_small_runs(self) -> None:
        """Questions, and runs of one message, count what they cost and not what they carry."""
        self.serve(max_unanswered_bytes=20_000)
        curious, many = self.connect(), self.connect()
        curious.protocol.dataReceived(b"".join(encode_enquiry(bytes([n]) * 16) for n in range(20)))
        self.assertEqual(curious.producerState, "paused")
        runs = b"".join(messages(bytes([n]) * 16, 1, b"") for n in range(20))
        many.protocol.dataReceived(runs)
        self.assertEqual(many.producerState, "paused")


class Applications(Case):
    def test_permits_that_raises(self) -> None:
        """A defect in an application's permits refuses the message and leaks nothing."""

        def permits(client: bytes, transport: object) -> bool:
            raise AttributeError("no host")

        self.serve(permits)
        transport = self.connect()
        (answer,) = self.say(transport, messages(A, 1, b"a"))
        self.assertEqual(answer.code, NackCode.UNAVAILABLE)
        self.assertEqual(self.factory.undurable, 0)
        self.assertTrue(transport.disconnecting)
        self.assertEqual(len(self.flushLoggedErrors(AttributeError)), 1)

    def test_store_that_raises(self) -> None:
        """So does one in a store; what was taken before is answered."""
        self.serve()
        append = self.store.append

        def broken(batch: object, judged: object) -> int:
            if batch.first == 2:
                raise RuntimeError("a defect")
            return append(batch, judged)

        self.patch(self.store, "append", broken)
        transport = self.connect()
        transport.protocol.dataReceived(messages(A, 1, b"a"))
        answers = self.say(transport, messages(A, 2, b"b"))
        self.assertEqual(type(answers[0]), Ack)
        self.assertEqual(answers[1].code, NackCode.UNAVAILABLE)
        self.assertEqual(self.factory.undurable, 0)
        self.assertEqual(len(self.flushLoggedErrors(RuntimeError)), 1)
