"""The Twisted client on a clock, with endpoints in memory and the real server's protocol."""

from __future__ import annotations

import sqlite3
from pathlib import Path
from typing import Any

from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.endpoints import HostnameEndpoint, TCP4ClientEndpoint
from twisted.internet.error import (
    ConnectionAborted,
    ConnectionRefusedError,
    NotConnectingError,
)
from twisted.internet.interfaces import IStreamClientEndpoint
from twisted.internet.task import Clock
from twisted.internet.testing import EventLoggingObserver, MemoryReactorClock
from twisted.logger import globalLogPublisher
from twisted.python.failure import Failure
from twisted.trial.unittest import SynchronousTestCase
from zope.interface import implementer

from msglog import (
    ClientLimits,
    MessageLogClient,
    NotLogged,
    QueueFull,
    Receipt,
    SessionFailed,
    SpoolError,
    Unanswered,
)
from msglog._frames import FRAME_BYTES, message_checksum
from msglog.testing import MemoryTransport, StepWorker
from tests.peers import CLIENT, MAX_BODY, ServerSide


@implementer(IStreamClientEndpoint)
class MemoryEndpoint:
    """
    A server that is connected to when the test says so.

    @ivar attempts: how many connections were tried.
    """

    def __init__(self) -> None:
        self.attempts = 0
        self._factory: Any = None
        self._connecting: Deferred[Any] | None = None

    def connect(self, factory: Any) -> Deferred[Any]:
        self.attempts += 1
        self._factory = factory
        self._connecting = Deferred()
        return self._connecting

    def accept(self) -> MemoryTransport:
        """Let the connection be made; return the client's transport."""
        connecting, self._connecting = self._connecting, None
        protocol = self._factory.buildProtocol(None)
        transport = MemoryTransport()
        transport.protocol = protocol
        protocol.makeConnection(transport)
        connecting.callback(protocol)
        return transport

    def refuse(self) -> None:
        connecting, self._connecting = self._connecting, None
        connecting.errback(ConnectionRefusedError())


class ClientCase(SynchronousTestCase):
    def setUp(self) -> None:
        self.clock = Clock()
        self.server = ServerSide()
        self.addCleanup(lambda: self.server.end())
        self.endpoint = MemoryEndpoint()
        self.events = EventLoggingObserver.createWithCleanup(self, globalLogPublisher)
        self.transport: MemoryTransport | None = None

    def client(self, *endpoints: MemoryEndpoint, start: bool = True, **arguments: Any) -> Any:
        limits = ClientLimits(**arguments.pop("limits", {}))
        self.service = MessageLogClient(
            self.clock, endpoints or [self.endpoint], limits=limits, **arguments
        )
        if start:
            self.start()
        return self.service

    def start(self) -> None:
        self.service.startService()
        self.service._backoff._jitter = lambda: 1.0
        self.clock.advance(0)

    def accept(self, endpoint: MemoryEndpoint | None = None) -> None:
        self.transport = (endpoint or self.endpoint).accept()
        self.server.accept()

    def lose(self) -> None:
        """The connection is gone."""
        transport, self.transport = self.transport, None
        if self.server.transport is not None:
            self.server.lose()
        transport.protocol.connectionLost(Failure(ConnectionResetError("reset")))

    def turn(self) -> bool:
        """Bytes go up and down once; whether there were any."""
        self.clock.advance(0)
        if self.transport is None:
            return False
        sent = self.transport.value()
        self.transport.clear()
        if sent:
            self.server.take(sent)
        self.server.store.commit()
        answers = self.server.say()
        if answers:
            self.transport.protocol.dataReceived(answers)
        return bool(sent or answers)

    def run_dry(self) -> None:
        while self.turn():
            pass
        if self.transport is not None and self.transport.aborted:
            self.lose()

    def connect(self, **arguments: Any) -> Any:
        """A client that is connected and knows the server's terms."""
        service = self.client(**arguments)
        self.accept()
        self.run_dry()
        return service

    def receipt(self, sequence: int, body: bytes) -> Receipt:
        return Receipt(self.service.client, sequence, self.checksum(sequence, body))

    def checksum(self, sequence: int, body: bytes) -> int:
        return message_checksum(self.service.client.bytes, sequence, body)

    def logged(self) -> list[bytes]:
        return [body for _, _, body in self.server.store.messages]

    def said(self) -> list[str]:
        """What was logged by the client, as text."""
        return [
            event["log_format"].format(**event)
            for event in self.events
            if event.get("log_namespace") == "msglog._client.MessageLogClient"
        ]

    def stopped(self) -> None:
        """The client stops, and leaves nothing to be called later."""
        stopping = self.service.stopService()
        self.run_dry()
        self.run_dry()  # behind the loss of the connection
        self.assertIsNone(self.successResultOf(stopping))
        self.assertEqual(self.clock.getDelayedCalls(), [])


class Sending(ClientCase):
    def test_receipts(self) -> None:
        """Messages handed over before there is a connection are sent as soon as there is one."""
        service = self.client()
        first = service.send(b"a")
        self.assertNoResult(first)
        self.accept()
        self.run_dry()
        self.assertEqual(self.successResultOf(first), self.receipt(1, b"a"))
        second = service.send(b"b")
        self.run_dry()
        self.assertEqual(self.successResultOf(second), self.receipt(2, b"b"))
        self.assertEqual(self.logged(), [b"a", b"b"])
        self.assertEqual(service.unsettled, 0)
        self.assertEqual(service.trouble, "")
        self.stopped()

    def test_one_write_for_each_turn(self) -> None:
        """What is sent in one turn of the reactor goes out in one write."""
        service = self.connect()
        writes = []
        self.transport.write = writes.append
        for _ in range(5):
            service.send(b"a")
        self.clock.advance(0)
        self.assertEqual(len(writes), 1)

    def test_not_started(self) -> None:
        """A client that is not started takes nothing."""
        service = self.client(start=False, client=CLIENT)
        error = self.failureResultOf(service.send(b"a"), NotLogged).value
        self.assertTrue(error.retry)
        self.assertIn("not started", str(error))
        self.assertFalse(service.has_room)
        self.assertIsNone(self.successResultOf(service.flush()))
        self.assertIsNone(self.successResultOf(service.stopService()))
        self.assertEqual((service.unsettled, service.client, service.trouble), (0, CLIENT, ""))
        ready = service.ready()
        self.assertNoResult(ready)
        self.start()
        self.successResultOf(ready)

    def test_no_spool(self) -> None:
        """put() is for a spool."""
        service = self.client()
        self.assertIn("no spool", str(self.failureResultOf(service.put(b"a"), NotLogged).value))

    def test_text(self) -> None:
        """Text is a defect of the caller's."""
        self.assertRaises(TypeError, self.client().send, "text")

    def test_too_long(self) -> None:
        """That message alone fails."""
        service = self.client()
        results = [service.send(body) for body in (b"a", bytes(MAX_BODY + 1), b"b")]
        self.accept()
        self.run_dry()
        self.successResultOf(results[0])
        self.assertFalse(self.failureResultOf(results[1], NotLogged).value.retry)
        self.assertEqual(self.successResultOf(results[2]), self.receipt(2, b"b"))

    def test_cancel(self) -> None:
        """To cancel a wait disturbs nothing: the message is on its way all the same."""
        service = self.client()
        receipt = service.send(b"a")
        receipt.cancel()
        self.failureResultOf(receipt, CancelledError)
        self.accept()
        self.run_dry()
        self.assertEqual(self.logged(), [b"a"])

    def test_room(self) -> None:
        """More than can be held is refused at once; ready() fires in turn as there is room."""
        service = self.client(limits={"pending_messages": 2})
        self.assertIsNone(self.successResultOf(service.ready()))
        service.send(b"a")
        self.assertTrue(service.has_room)
        service.send(b"b")
        self.assertFalse(service.has_room)
        self.failureResultOf(service.send(b"c"), QueueFull)
        order = []
        for number in range(3):

            def send(_: None, number: int = number) -> None:
                order.append(number)
                service.send(b"%d" % number)

            service.ready().addCallback(send)
        self.accept()
        self.run_dry()
        self.assertEqual(order, [0, 1, 2])
        self.assertEqual(self.logged(), [b"a", b"b", b"0", b"1", b"2"])

    def test_room_for_a_size(self) -> None:
        """Room for a message of a size is more than room for any."""
        service = self.client(limits={"pending_bytes": 10_000})
        self.successResultOf(service.ready(3000))
        service.send(b"a")
        self.successResultOf(service.ready())
        ready, later = service.ready(3000), service.ready()
        self.clock.advance(0)
        self.assertNoResult(ready)
        self.assertNoResult(later)
        self.accept()
        self.run_dry()
        self.successResultOf(ready)
        self.successResultOf(later)

    def test_flush(self) -> None:
        """Fires when all that was sent before is settled, and not for what comes behind."""
        service = self.client(limits={"window": 1})
        self.accept()
        flushed = [service.flush()]
        for body in (b"a", bytes(MAX_BODY + 1), b"b"):
            service.send(body).addErrback(lambda f: None)
            flushed.append(service.flush())
        self.assertNoResult(flushed[0])
        fired = []
        for number, waiter in enumerate(flushed):
            waiter.addCallback(lambda _, number=number: fired.append((number, self.logged())))
        self.run_dry()
        self.assertEqual(fired, [(0, []), (1, [b"a"]), (2, [b"a"]), (3, [b"a", b"b"])])

    def test_used_client_id(self) -> None:
        """A client id goes on where it was, in another life and in another start."""
        service = self.connect(client=CLIENT)
        service.send(b"a")
        self.run_dry()
        self.lose()
        self.stopped()
        service.startService()
        self.clock.advance(0)
        receipt = service.send(b"b")
        self.accept()
        self.run_dry()
        self.assertEqual(self.successResultOf(receipt), self.receipt(2, b"b"))
        self.assertEqual(self.server.logged, [b"a", b"b"])

    def test_tunes_sockets(self) -> None:
        """A TCP connection has no delay, and is kept alive."""
        from twisted.internet.interfaces import ITCPTransport
        from zope.interface import directlyProvides

        self.client()
        called = []
        make = self.endpoint._factory.buildProtocol

        def build(address: object) -> Any:
            protocol = make(address)
            connect = protocol.makeConnection

            def with_tcp(transport: Any) -> None:
                transport.setTcpNoDelay = lambda on: called.append(("no delay", on))
                transport.setTcpKeepAlive = lambda on: called.append(("keep alive", on))
                directlyProvides(transport, ITCPTransport)
                connect(transport)

            protocol.makeConnection = with_tcp
            return protocol

        self.endpoint._factory.buildProtocol = build
        self.accept()
        self.assertEqual(called, [("no delay", True), ("keep alive", True)])


class Reconnecting(ClientCase):
    def test_lost(self) -> None:
        """What had no receipt when the connection was lost has it on the next, once."""
        service = self.connect(limits={"first_backoff_seconds": 1})
        receipt = service.send(b"a")
        self.clock.advance(0)
        self.server.take(self.transport.value())
        self.server.store.commit()
        self.lose()
        self.assertIn("the connection was lost: reset", service.trouble)
        self.clock.advance(0.9)
        self.assertEqual(self.endpoint.attempts, 1)
        self.clock.advance(0.1)
        self.assertEqual(self.endpoint.attempts, 2)
        self.accept()
        self.run_dry()
        self.assertEqual(self.successResultOf(receipt), self.receipt(1, b"a"))
        self.assertEqual(self.logged(), [b"a"])
        self.assertEqual(service.trouble, "")
        self.assertEqual(
            self.said(),
            ["messages wait: the connection was lost: reset", "messages are sent again"],
        )

    def test_failover(self) -> None:
        """Each attempt goes to the next server, and around again."""
        endpoints = [MemoryEndpoint() for _ in range(3)]
        service = self.client(*endpoints)
        tried = []
        for number in (0, 1, 2, 0):
            tried.append([endpoint.attempts for endpoint in endpoints])
            endpoints[number].refuse()
            self.clock.advance(10)
        self.assertEqual(tried, [[1, 0, 0], [1, 1, 0], [1, 1, 1], [2, 1, 1]])
        self.assertIn("no connection: Connection was refused", service.trouble)
        self.accept(endpoints[1])
        self.run_dry()
        self.assertEqual(service.trouble, "")
        self.lose()
        self.clock.advance(10)
        self.assertEqual([endpoint.attempts for endpoint in endpoints], [2, 2, 2])

    def test_backoff(self) -> None:
        """Waits double with each failure up to a limit, and begin anew after progress."""
        self.client(limits={"first_backoff_seconds": 1, "max_backoff_seconds": 4})
        for seconds in (1, 2, 4, 4):
            before = self.endpoint.attempts
            self.endpoint.refuse()
            self.clock.advance(seconds - 0.01)
            self.assertEqual(self.endpoint.attempts, before)
            self.clock.advance(0.01)
            self.assertEqual(self.endpoint.attempts, before + 1)
        # A connection alone is no progress: a server that closes each at once is not stormed.
        self.accept()
        self.lose()
        self.clock.advance(3.9)
        self.assertEqual(self.endpoint.attempts, 5)
        self.clock.advance(0.1)
        self.assertEqual(self.endpoint.attempts, 6)
        self.accept()
        self.run_dry()
        self.lose()
        self.clock.advance(1)
        self.assertEqual(self.endpoint.attempts, 7)

    def test_wrong_answers(self) -> None:
        """A server that speaks something else is left."""
        service = self.client()
        receipt = service.send(b"a")
        self.accept()
        self.transport.protocol.dataReceived(b"HTTP/1.1 400 Bad Request\r\n\r\n")
        self.assertTrue(self.transport.aborted)
        self.lose()
        self.assertIn("does not speak msglog's protocol", service.trouble)
        self.clock.advance(10)
        self.assertEqual(self.endpoint.attempts, 2)
        self.accept()
        self.run_dry()
        self.successResultOf(receipt)

    def test_no_terms(self) -> None:
        """A server that does not say its terms in time is left."""
        service = self.client(limits={"connect_seconds": 8, "answer_seconds": 100})
        self.clock.advance(1)
        self.accept()
        self.clock.pump([2, 2, 2])
        self.assertFalse(self.transport.aborted)
        self.clock.pump([2, 2])
        self.assertTrue(self.transport.aborted)
        self.lose()
        self.assertIn("did not answer within 8 s", service.trouble)

    def test_terms_after_a_long_silence(self) -> None:
        """A connection that is made after hours without one has the whole time for its terms."""
        self.connect(limits={"connect_seconds": 8})
        self.lose()
        self.clock.pump([10] * 10)
        self.accept()
        self.clock.pump([2, 2])
        self.assertFalse(self.transport.aborted)

    def test_no_receipts(self) -> None:
        """A server that owes a receipt for too long is left; one that owes nothing is not."""
        service = self.connect(limits={"answer_seconds": 8})
        self.clock.pump([5] * 10)
        self.assertFalse(self.transport.aborted)
        receipt = service.send(b"a")
        self.clock.pump([0, 2, 2, 2])
        self.assertFalse(self.transport.aborted)
        self.clock.pump([2, 2])
        self.assertTrue(self.transport.aborted)
        self.lose()
        self.assertIn("did not answer within 8 s", service.trouble)
        self.clock.advance(1)
        self.accept()
        self.run_dry()
        self.successResultOf(receipt)

    def test_slow_receipts(self) -> None:
        """As long as answers come, however few, the server is not left."""
        service = self.connect(limits={"answer_seconds": 8})
        receipts = [service.send(b"a") for _ in range(10)]
        self.clock.advance(0)
        self.server.take(self.transport.value())
        self.server.store.commit()
        answers = self.server.say()
        for number, receipt in enumerate(receipts):
            self.clock.pump([2, 2, 2])
            self.assertFalse(self.transport.aborted)
            at = number * FRAME_BYTES
            self.transport.protocol.dataReceived(answers[at : at + FRAME_BYTES])
            self.successResultOf(receipt)

    def test_not_stored(self) -> None:
        """A full store is tried again after a while, each time a longer one."""
        service = self.connect(limits={"first_backoff_seconds": 1, "max_backoff_seconds": 4})
        self.server.store.full = True
        receipt = service.send(b"a")
        self.run_dry()
        for seconds in (1, 2, 4, 4):
            self.clock.advance(seconds - 0.01)
            self.assertEqual(self.transport.value(), b"")
            self.clock.advance(0.01)
            self.assertNotEqual(self.transport.value(), b"")
            self.run_dry()
        self.assertIn("NOT_STORED", service.trouble)
        self.server.store.full = False
        self.clock.advance(4)
        self.run_dry()
        self.assertEqual(self.successResultOf(receipt), self.receipt(1, b"a"))
        self.assertEqual(service.trouble, "")
        self.assertEqual(self.endpoint.attempts, 1)

    def test_failure(self) -> None:
        """When nothing can be sent any more whoever waits is told, and no server is tried."""
        self.server.permitted = False
        service = self.client()
        receipts = [service.send(b"a"), service.send(b"b")]
        self.accept()
        self.run_dry()
        for receipt in (*receipts, service.send(b"c")):
            error = self.failureResultOf(receipt, SessionFailed).value
            self.assertIn("FORBIDDEN", str(error))
        flushed = service.flush()
        self.clock.pump([10] * 10)
        self.successResultOf(flushed)
        self.assertEqual(self.endpoint.attempts, 1)
        self.assertTrue(any("nothing more is sent" in line for line in self.said()))
        self.assertIn("FORBIDDEN", service.trouble)
        self.stopped()

    def test_stops_when_told_of_a_failure(self) -> None:
        """A program that stops its client because of the failure it is told of."""
        self.server.permitted = False
        service = self.client()
        stopping: list[Any] = []
        service.send(b"a").addErrback(lambda failure: stopping.append(service.stopService()))
        self.accept()
        self.run_dry()
        self.run_dry()
        self.successResultOf(stopping[0])
        self.assertEqual(self.clock.getDelayedCalls(), [])


class Stopping(ClientCase):
    def test_waits_for_receipts(self) -> None:
        """A stop takes nothing more, and waits for the receipts of what was sent."""
        service = self.connect()
        receipt = service.send(b"a")
        stopping = service.stopService()
        error = self.failureResultOf(service.send(b"b"), NotLogged).value
        self.assertIn("closed", str(error))
        self.assertNoResult(stopping)
        self.run_dry()
        self.assertEqual(self.successResultOf(receipt).sequence, 1)
        self.successResultOf(stopping)
        self.assertEqual(self.clock.getDelayedCalls(), [])
        self.failureResultOf(service.send(b"c"), NotLogged)
        self.successResultOf(service.flush())

    def test_while_a_connection_is_made(self) -> None:
        """A stop, and in the same turn of the reactor the connection is there."""
        reactor = MemoryReactorClock()
        service = MessageLogClient(reactor, [TCP4ClientEndpoint(reactor, "127.0.0.1", 7514)])
        service.startService()
        stopping = service.stopService()
        protocol = reactor.tcpClients[0][2].buildProtocol(None)

        def too_late() -> None:
            raise NotConnectingError

        # As Twisted's own connector does it.
        reactor.connectors[0].stopConnecting = too_late
        transport = MemoryTransport()
        protocol.makeConnection(transport)
        reactor.advance(0)
        self.assertTrue(transport.aborted)
        protocol.connectionLost(Failure(ConnectionAborted()))
        reactor.advance(0)
        self.successResultOf(stopping)
        self.assertEqual(reactor.getDelayedCalls(), [])

    def test_deadline(self) -> None:
        """What has no receipt in time fails, and it is said that nobody knows."""
        service = self.client(limits={"stop_seconds": 5})
        receipt, flushed = service.send(b"a"), service.flush()
        stopping = service.stopService()
        self.clock.advance(4.9)
        self.assertNoResult(stopping)
        self.clock.advance(0.1)
        self.successResultOf(stopping)
        error = self.failureResultOf(receipt, Unanswered).value
        self.assertIn("not known whether it is logged", str(error))
        self.successResultOf(flushed)
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_while_paused(self) -> None:
        """A stop ends the wait for room on the server's disk."""
        service = self.connect(limits={"stop_seconds": 0, "first_backoff_seconds": 10})
        self.server.store.full = True
        receipt = service.send(b"a")
        self.run_dry()
        self.stopped()
        error = self.failureResultOf(receipt, Unanswered).value
        self.assertIn("NOT_STORED", str(error))

    def test_twice(self) -> None:
        """Two who stop it wait for the same stop."""
        service = self.connect()
        service.send(b"a")
        stopping = [service.stopService(), service.stopService()]
        self.run_dry()
        for each in stopping:
            self.successResultOf(each)
        self.successResultOf(service.stopService())

    def test_who_waits_for_room(self) -> None:
        """There will be none."""
        service = self.client(limits={"pending_messages": 1, "stop_seconds": 0})
        service.send(b"a").addErrback(lambda failure: None)
        ready = service.ready()
        self.stopped()
        self.assertIn("stopped", str(self.failureResultOf(ready, NotLogged).value))

    def test_again(self) -> None:
        """A client that was stopped can be started; it is a new one."""
        service = self.connect()
        service.send(b"a")
        self.run_dry()
        first = service.client
        self.stopped()
        self.assertIsNone(service.client)
        self.start()
        self.assertNotEqual(service.client, first)
        receipt = service.send(b"b")
        self.accept()
        self.run_dry()
        self.assertEqual(self.successResultOf(receipt), self.receipt(1, b"b"))
        self.stopped()


class Spooling(ClientCase):
    def setUp(self) -> None:
        super().setUp()
        self.workers: list[StepWorker] = []
        folder = Path(self.mktemp())
        folder.mkdir()
        self.path = folder / "spool"

    def worker(self, reactor: object) -> StepWorker:
        self.workers.append(StepWorker(reactor))
        return self.workers[-1]

    def client(self, *endpoints: MemoryEndpoint, **arguments: Any) -> Any:
        return super().client(*endpoints, spool=self.path, worker=self.worker, **arguments)

    def run_dry(self) -> None:
        """Steps are done too."""
        while any([self.turn(), self.workers and self.workers[-1].step()]):
            pass
        super().run_dry()

    def stopped(self) -> None:
        super().stopped()
        self.assertTrue(self.workers[-1].stopped)

    def test_put(self) -> None:
        """put() fires when the spool has the message, send() when the log has it."""
        service = self.client()
        spooled, receipt = service.put(b"a"), service.send(b"b")
        self.clock.advance(0)
        self.assertNoResult(spooled)
        self.workers[0].step()
        self.assertIsNone(self.successResultOf(spooled))
        self.assertNoResult(receipt)
        self.accept()
        self.run_dry()
        self.assertEqual(self.successResultOf(receipt), self.receipt(2, b"b"))
        self.assertEqual(self.logged(), [b"a", b"b"])
        self.stopped()

    def test_another_start(self) -> None:
        """What the spool kept is sent after the next start, under the same client id."""
        service = self.client(limits={"stop_seconds": 0})
        service.put(b"a")
        receipt = service.send(b"b")
        client = service.client
        self.stopped()
        error = self.failureResultOf(receipt, Unanswered).value
        self.assertIn("keeps it", str(error))
        self.start()
        self.assertEqual(service.client, client)
        self.assertEqual(service.unsettled, 2)
        self.accept()
        self.run_dry()
        self.assertEqual(self.logged(), [b"a", b"b"])
        self.assertEqual(service.unsettled, 0)
        self.stopped()

    def test_last_step(self) -> None:
        """What is on its way into the spool when the client stops gets there."""
        service = self.client(limits={"stop_seconds": 0})
        service.put(b"a")
        self.clock.advance(0)  # its step is under way
        spooled = service.put(b"b")
        stopping = service.stopService()
        self.clock.advance(0)
        self.assertNoResult(stopping)
        while self.workers[0].step():
            pass
        self.successResultOf(stopping)
        self.assertEqual(self.clock.getDelayedCalls(), [])
        self.successResultOf(spooled)
        self.start()
        self.accept()
        self.run_dry()
        self.assertEqual(self.logged(), [b"a", b"b"])

    def test_refusals_are_said(self) -> None:
        """Of a message that nobody waits for the refusal is in the log."""
        service = self.client()
        service.put(bytes(MAX_BODY + 1))
        self.accept()
        self.run_dry()
        self.assertIn(
            f"a message is not logged: its {MAX_BODY + 1} bytes are over the server's maximum "
            f"of {MAX_BODY}",
            self.said(),
        )

    def test_disk_errors(self) -> None:
        """What the spool cannot take fails; what it cannot remove is removed later."""
        service = self.connect()
        db = service._spool._db
        full = sqlite3.OperationalError("database or disk is full")

        class Full:
            def execute(self, *arguments: Any) -> Any:
                raise full

            in_transaction = False

        service._spool._db = Full()
        receipt, spooled = service.send(b"a"), service.put(b"b")
        self.run_dry()
        self.assertTrue(self.failureResultOf(receipt, NotLogged).value.retry)
        self.failureResultOf(spooled, SpoolError)
        self.assertTrue(any("disk is full" in line for line in self.said()))
        service._spool._db = db
        receipt = service.send(b"c")
        self.clock.advance(0)
        self.workers[0].step()
        service._spool._db = Full()
        self.run_dry()
        self.successResultOf(receipt)
        self.assertEqual(service._spool.count, 1)
        service._spool._db = db
        self.run_dry()
        self.assertEqual(service._spool.count, 1)
        self.clock.advance(10)
        self.run_dry()
        self.assertEqual(service._spool.count, 0)
        self.stopped()

    def test_defect(self) -> None:
        """A step that fails with what is no error of a disk's is in the log with its traceback."""
        service = self.client()
        self.patch(service._spool, "do", lambda step: 1 / 0)
        service.put(b"a")
        self.run_dry()
        self.assertEqual(len(self.flushLoggedErrors(ZeroDivisionError)), 1)

    def test_not_to_be_used(self) -> None:
        """A spool that cannot be used fails the start, and is left in order."""
        self.client(start=False)
        self.path.mkdir()
        self.assertRaises(SpoolError, self.service.startService)
        self.assertIsNone(self.successResultOf(self.service.stopService()))
        self.path.rmdir()
        self.start()
        self.stopped()
        self.client(start=False, client=CLIENT)
        error = self.assertRaises(SpoolError, self.service.startService)
        self.assertIn(f"not {CLIENT}", str(error))
        self.client()  # it was closed
        self.stopped()

    def test_failed_and_kept(self) -> None:
        """A client that has failed still spools, for another client id to send."""
        self.server.permitted = False
        service = self.client()
        receipt = service.send(b"a")
        self.accept()
        self.run_dry()
        self.failureResultOf(receipt, SessionFailed)
        spooled = service.put(b"b")
        self.run_dry()
        self.successResultOf(spooled)
        self.assertEqual(service._spool.count, 2)
        self.stopped()


class Addresses(SynchronousTestCase):
    def test_servers(self) -> None:
        """Addresses, several in one, and endpoints, in any mixture."""
        endpoint = MemoryEndpoint()
        service = MessageLogClient(MemoryReactorClock(), ["a:1, b", endpoint, "c"])
        kinds = [type(each) for each in service._endpoints]
        self.assertEqual(
            kinds, [HostnameEndpoint, HostnameEndpoint, MemoryEndpoint, HostnameEndpoint]
        )
        self.assertIs(service._endpoints[2], endpoint)
        self.assertEqual(len(MessageLogClient(MemoryReactorClock(), "a,b")._endpoints), 2)

    def test_none(self) -> None:
        """No server, and what is no address."""
        self.assertRaises(ValueError, MessageLogClient, MemoryReactorClock(), [])
        self.assertRaises(ValueError, MessageLogClient, MemoryReactorClock(), "a:x")
