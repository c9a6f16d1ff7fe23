"""The client for Twisted applications: a service that sends messages and has their receipts."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from typing import Any
from uuid import UUID

from twisted.application.internet import ClientService
from twisted.application.service import Service
from twisted.internet.defer import CancelledError, Deferred, fail, succeed
from twisted.internet.endpoints import HostnameEndpoint
from twisted.internet.interfaces import (
    IDelayedCall,
    IProtocolFactory,
    IStreamClientEndpoint,
    ITCPTransport,
)
from twisted.internet.protocol import Factory, Protocol, connectionDone
from twisted.internet.task import LoopingCall
from twisted.logger import Logger
from twisted.python.failure import Failure
from uuid_utils.compat import uuid7
from zope.interface import implementer

from ._batch import Receipt
from ._client_tls import TLS
from ._errors import NotLogged, SpoolError
from ._limits import ClientLimits
from ._outbox import Outbox, Outcomes
from ._servers import Backoff, parse_servers
from ._session import State
from ._spool import Spool, Step
from ._spooled import SpooledOutbox
from ._worker import IWorker, WorkThread

__all__ = ["MessageLogClient"]


@implementer(IStreamClientEndpoint)
class Failover:
    """Several endpoints as one: each attempt goes to the next of them."""

    def __init__(
        self, endpoints: list[IStreamClientEndpoint], failed: Callable[[Failure], None]
    ) -> None:
        self._endpoints = deque(endpoints)
        self._failed = failed

    def connect(self, factory: IProtocolFactory) -> Deferred[Any]:
        """See L{IStreamClientEndpoint}."""
        endpoint = self._endpoints[0]
        self._endpoints.rotate(-1)
        connecting: Deferred[Any] = endpoint.connect(factory)
        return connecting.addErrback(self._note)

    def _note(self, reason: Failure) -> Failure:
        self._failed(reason)
        return reason


class _Connection(Protocol):
    """A connection to a server; everything is its client's to decide."""

    transport: Any

    def __init__(self, client: MessageLogClient) -> None:
        self._client = client
        self.dataReceived = client.received  # type: ignore[method-assign]

    def connectionMade(self) -> None:
        """Begin."""
        if ITCPTransport.providedBy(self.transport):
            self.transport.setTcpNoDelay(True)
            self.transport.setTcpKeepAlive(True)
        self._client.connected(self)

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        """End."""
        self._client.disconnected(reason)


class MessageLogClient(Service):
    """
    Sends messages to a msglog server, and has their receipts.

    It connects when it is started, to the next server whenever one is lost, and sends again what
    has no receipt; only what would be in vain is reported.

    @param reactor: the reactor.
    @param servers: C{"host:port"}, several with commas between or as a list; or endpoints.  They
        must be servers of one log.
    @param client: the client id; a new one if not given.  One that was used before goes on with
        its next sequence, and nobody else may write under it at the same time.
    @param spool: a file through which messages go, so that a kill of this process loses none.  It
        has its own client id.
    @param tls: how to speak TLS with those servers that are named and are no endpoints.
    @param limits: see L{ClientLimits}.
    @ivar trouble: why there is no progress at the moment, for people; empty if there is.
    """

    name = "msglog-client"
    _log = Logger()

    def __init__(
        self,
        reactor: Any,
        servers: str | Iterable[str | IStreamClientEndpoint],
        *,
        client: UUID | None = None,
        spool: Path | str | None = None,
        tls: TLS | None = None,
        limits: ClientLimits | None = None,
        worker: Callable[[Any], IWorker] = WorkThread.of,
    ) -> None:
        self._reactor = reactor
        self._limits = limits or ClientLimits()
        self._endpoints = _endpoints(reactor, servers, self._limits, tls)
        self._client = client
        self._spool_path = spool
        self._make_worker = worker
        self._outbox: Outbox | None = None
        self._spool: Spool | None = None
        self._worker: IWorker | None = None
        self._connector: ClientService | None = None
        self._connection: _Connection | None = None
        self._backoff = Backoff(self._limits)
        self._retry: IDelayedCall | None = None
        self._scheduled = False
        self._closing = False
        self._stopping: Deferred[None] | None = None
        self._since = 0.0  # when something was last heard, or the first answer became due
        self._was_in_trouble = False
        self._watch = LoopingCall(self._check)
        self._watch.clock = reactor
        self._room_waiters: deque[tuple[int, Deferred[None]]] = deque()
        self._flush_waiters: deque[tuple[int, Deferred[None]]] = deque()

    # --- sending ---------------------------------------------------------------------------

    def send(self, body: bytes) -> Deferred[Receipt]:
        """
        Send a message.

        Retrying is this client's job: the result comes when there is one, however long the
        servers are away.

        @return: fires with the receipt when the message is durable; fails with L{NotLogged}, which
            says why and whether to try again: L{QueueFull} at once if no more can be held (wait
            for L{ready}), L{SessionFailed} if this client can do nothing more, L{Unanswered} if
            it was stopped before.
        """
        receipt: Deferred[Receipt] = Deferred()
        return self._put(body, receipt, receipt, None)

    def put(self, body: bytes) -> Deferred[None]:
        """
        Put a message into the spool, and do not wait for its receipt.

        @return: fires when the message is in the spool, from where it is sent whatever happens;
            fails with L{NotLogged}, or L{SpoolError} if the spool cannot take it.
        """
        spooled: Deferred[None] = Deferred()
        if self._spool_path is None:
            return fail(NotLogged("this client has no spool", False))
        return self._put(body, spooled, None, spooled)

    def _put(
        self,
        body: bytes,
        result: Deferred[Any],
        receipt: Deferred[Any] | None,
        spooled: Deferred[Any] | None,
    ) -> Deferred[Any]:
        if self._outbox is None:
            return fail(NotLogged("the client is not started", True))
        try:
            self._outbox.put(body, receipt, spooled)
        except NotLogged as e:
            return fail(e)
        self._soon()
        return result

    @property
    def has_room(self) -> bool:
        """Whether one more message can be held."""
        return self._outbox is not None and self._outbox.has_room()

    def ready(self, size: int = 0) -> Deferred[None]:
        """
        Wait until one more message can be held.

        @param size: the message's.
        @return: fires then, in the order of asking; fails with L{NotLogged} if the client is
            stopped.
        """
        if not self._room_waiters and self._outbox is not None and self._outbox.has_room(size):
            return succeed(None)
        waiter: Deferred[None] = Deferred()
        self._room_waiters.append((size, waiter))
        return waiter

    def flush(self) -> Deferred[None]:
        """
        Wait until everything that was sent so far has its receipt or was refused.

        @return: fires then, or when the client is stopped.
        """
        if self._outbox is None:
            return succeed(None)
        waiter: Deferred[None] = Deferred()
        self._flush_waiters.append((self._outbox.handed_over, waiter))
        self._soon()
        return waiter

    @property
    def unsettled(self) -> int:
        """How many messages have neither a receipt nor an error, in the spool and out of it."""
        return self._outbox.unsettled if self._outbox is not None else 0

    @property
    def client(self) -> UUID | None:
        """The client id; L{None} before the start if it is a new one or the spool's."""
        return self._outbox.session.client if self._outbox is not None else self._client

    @property
    def refused(self) -> int:
        """How many messages the server did not take, for good, since the start."""
        return self._outbox.refused if self._outbox is not None else 0

    @property
    def max_body(self) -> int | None:
        """The longest body that the server takes, bytes; L{None} before it has said so."""
        return self._outbox.session.max_body if self._outbox is not None else None

    @property
    def spool(self) -> Path | str | None:
        """The spool's file, if there is one."""
        return self._spool_path

    @property
    def trouble(self) -> str:
        """Why there is no progress at the moment, for people; empty if there is."""
        return self._outbox.session.trouble if self._outbox is not None else ""

    # --- what goes out, and what came of it --------------------------------------------------

    def _soon(self) -> None:
        """Go on at the end of this turn of the reactor, with what else is sent in it."""
        if not self._scheduled:
            self._scheduled = True
            self._reactor.callLater(0, self._proceed)

    def _proceed(self) -> None:
        self._scheduled = False
        outbox = self._outbox
        if outbox is None:
            return
        session, connection = outbox.session, self._connection
        awaiting = session.awaiting
        data, outcomes = outbox.proceed()
        if data and connection is not None:
            connection.transport.write(data)
        if not awaiting and session.awaiting:
            self._since = self._reactor.seconds()
        self._next_step()
        self._tell(outcomes)
        self._react()

    def _next_step(self) -> None:
        step = self._outbox.step() if self._outbox is not None and not self._closing else None
        if step is not None:
            assert self._spool is not None
            assert self._worker is not None
            self._worker.do(partial(self._spool.do, step), self._stepped)

    def _stepped(self, step: Step | Failure) -> None:
        assert self._outbox is not None
        if isinstance(step, Failure):  # a defect: whatever a disk says is in the step
            self._log.failure("the spool failed", step)
            return
        if step.error is not None:
            self._log.error("{reason}", reason=str(step.error))
        self._tell(self._outbox.stepped(step))
        self._next_step()
        if not self._closing:  # a stopped client leaves no call to come
            self._soon()

    def _tell(self, outcomes: Outcomes) -> None:
        for waiter, result in zip(outcomes.waiters, outcomes.results, strict=True):
            if isinstance(result, Exception):
                waiter.errback(result)
            else:
                waiter.callback(result)
        for error in outcomes.unheard:
            self._log.error("a message is not logged: {reason}", reason=str(error))
        outbox = self._outbox
        while (
            outbox is not None and self._room_waiters and outbox.has_room(self._room_waiters[0][0])
        ):
            self._room_waiters.popleft()[1].callback(None)
        while self._flush_waiters and (
            outbox is None or outbox.settled_up_to(self._flush_waiters[0][0])
        ):
            self._flush_waiters.popleft()[1].callback(None)

    def _react(self) -> None:
        """Do what the session's state asks for."""
        if self._outbox is None:
            return  # whoever was just told has stopped the client
        session = self._outbox.session
        if session.state is State.LEAVING or session.state is State.FAILED:
            if self._connection is not None:
                self._connection.transport.abortConnection()
            if session.state is State.FAILED and self._connector is not None:
                connector, self._connector = self._connector, None
                self._log.critical("{reason}; nothing more is sent", reason=session.trouble)
                connector.stopService()
        elif session.state is State.PAUSED and self._retry is None:
            self._retry = self._reactor.callLater(self._backoff.failed(), self._try_again)
        if session.trouble and not self._was_in_trouble:
            self._was_in_trouble = True
            self._log.warn("messages wait: {trouble}", trouble=session.trouble)
        elif not session.trouble and session.online:
            self._backoff.succeeded()
            if self._was_in_trouble:
                self._was_in_trouble = False
                self._log.info("messages are sent again")

    def _try_again(self) -> None:
        self._retry = None
        if self._outbox is not None:
            self._outbox.session.retry()
            self._proceed()

    # --- the connection ----------------------------------------------------------------------

    def connected(self, connection: _Connection) -> None:
        """A connection is made."""
        assert self._outbox is not None
        self._connection = connection
        self._since = self._reactor.seconds()
        self._outbox.session.connected()
        # Not now: whoever waits might stop this client, which cannot be while its endpoint is in
        # the middle of making the connection.
        self._soon()

    def received(self, data: bytes) -> None:
        """The server has answered."""
        assert self._outbox is not None
        if self._outbox.session.receive(data):
            self._since = self._reactor.seconds()
        self._proceed()

    def disconnected(self, reason: Failure) -> None:
        """The connection is gone."""
        self._connection = None
        if self._outbox is not None:
            session = self._outbox.session
            session.disconnected(f"the connection was lost: {reason.getErrorMessage()}")
            self._react()

    def _not_connected(self, reason: Failure) -> None:
        """No connection could be made."""
        if self._outbox is not None and not reason.check(CancelledError):
            self._outbox.session.disconnected(f"no connection: {reason.getErrorMessage()}")
            self._react()

    def _delay(self, attempt: int) -> float:
        """Before the next connection.  (ClientService's own count begins anew with each one.)"""
        return self._backoff.failed()

    def _check(self) -> None:
        """See whether an answer is overdue, and whether the spool can be used again."""
        assert self._outbox is not None
        if self._outbox.try_again():
            self._soon()
        session, limits = self._outbox.session, self._limits
        asking = session.state is State.ASKING
        seconds = limits.connect_seconds if asking else limits.answer_seconds
        waited = self._reactor.seconds() - self._since
        if self._connection is not None and session.awaiting and waited >= seconds:
            session.trouble = f"the server did not answer within {seconds:g} s"
            self._connection.transport.abortConnection()

    # --- service -----------------------------------------------------------------------------

    def startService(self) -> None:
        """
        Open the spool, if there is one, and connect.

        @raise SpoolError: the spool cannot be used.
        """
        if self._spool_path is None:
            self._outbox = Outbox(self._limits, self._client)
        else:
            self._spool = Spool(self._spool_path, lambda: self._client or uuid7())
            try:
                self._outbox = SpooledOutbox(self._limits, self._spool, self._client)
            except SpoolError:
                self._spool.close()
                raise
            self._worker = self._make_worker(self._reactor)
        super().startService()
        self._closing, self._stopping = False, None
        factory = Factory.forProtocol(partial(_Connection, self))
        factory.noisy = False
        self._connector = ClientService(
            Failover(self._endpoints, self._not_connected),
            factory,
            self._delay,
            self._reactor,
            None,
        )
        self._connector.startService()
        self._watch.start(min(self._limits.connect_seconds, self._limits.answer_seconds) / 4)
        self._soon()  # who waits for room has it

    def stopService(self) -> Deferred[None]:
        """
        Take no more messages, wait for the receipts of those that were sent, for C{stop_seconds}
        at most, and close the connection.

        @return: fires when that is done; what has no receipt then fails with L{Unanswered}.
        """
        super().stopService()
        if self._outbox is None:
            return succeed(None)
        if self._stopping is None:
            self._stopping = self._stop(self._outbox)
        # Whoever asks for a stop that is under way waits for that one.
        stopped: Deferred[None] = Deferred()
        self._stopping.addBoth(stopped.callback)
        return stopped

    def _stop(self, outbox: Outbox) -> Deferred[None]:
        outbox.end()
        flushed = self.flush()
        deadline = self._reactor.callLater(self._limits.stop_seconds, flushed.callback, None)

        def reached(_: object) -> Deferred[None]:
            if deadline.active():
                deadline.cancel()
            self._flush_waiters = deque(w for w in self._flush_waiters if w[1] is not flushed)
            return self._disconnect()

        return flushed.addCallback(reached).addCallback(self._close)

    def _disconnect(self) -> Deferred[None]:
        if self._watch.running:
            self._watch.stop()
        if self._retry is not None:
            self._retry.cancel()
            self._retry = None
        connector, self._connector = self._connector, None
        if self._connection is not None:
            self._connection.transport.abortConnection()
        return succeed(None) if connector is None else connector.stopService()

    def _close(self, _: object) -> Deferred[None]:
        closed: Deferred[None] = Deferred()
        self._closing = True
        if self._worker is None:
            self._closed(closed, None)
        else:
            # Behind the step that may be under way.
            self._worker.do(lambda: None, partial(self._close_spool, closed))
        return closed

    def _close_spool(self, closed: Deferred[None], _: object) -> None:
        """A last step for what is not in the spool yet, and the end."""
        assert self._outbox is not None
        assert self._spool is not None
        assert self._worker is not None
        spool, step = self._spool, self._outbox.step()

        def work() -> None:
            if step is not None:
                spool.do(step)
            spool.close()

        def done(_: object) -> None:
            if step is not None:
                self._stepped(step)
            self._closed(closed, None)

        self._worker.do(work, done)

    def _closed(self, closed: Deferred[None], _: object) -> None:
        outbox, self._outbox = self._outbox, None
        assert outbox is not None
        if self._worker is not None:
            self._worker.stop()
            self._worker = None
        self._tell(outbox.close())
        waiters, self._room_waiters = self._room_waiters, deque()
        for _, waiter in waiters:
            waiter.errback(NotLogged("the client is stopped", False))
        closed.callback(None)


def _endpoints(
    reactor: Any,
    servers: str | Iterable[str | IStreamClientEndpoint],
    limits: ClientLimits,
    tls: TLS | None,
) -> list[IStreamClientEndpoint]:
    endpoints: list[IStreamClientEndpoint] = []
    for server in [servers] if isinstance(servers, str) else servers:
        if isinstance(server, str):
            for host, port in parse_servers(server):
                seconds = limits.connect_seconds
                plain = HostnameEndpoint(reactor, host, port, timeout=seconds)
                endpoints.append(plain if tls is None else tls.endpoint(plain, host))
        else:
            endpoints.append(server)
    if not endpoints:
        raise ValueError("no server is named: HOST:PORT, or an endpoint")
    return endpoints
