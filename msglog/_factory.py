"""
The factory of a server's connections: what bounds all of them together, and ends them in time.
"""

from __future__ import annotations

import socket
from collections.abc import Callable
from operator import attrgetter
from typing import Any

from attrs import frozen
from twisted.internet import tcp
from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IAddress, IReactorTime, ISSLTransport, ITransport
from twisted.internet.protocol import Factory
from twisted.internet.task import LoopingCall
from twisted.logger import Logger

from ._counts import ConnectionCounts
from ._limits import Limits
from ._protocol import HOLDS, LINGER_SECONDS, STOP_LINGER_SECONDS, UNDURABLE, MessageLogProtocol
from ._quota import REFUSALS, ConnectionQuota, host_of, origin_of
from ._round import Round
from ._sockets import SocketReader
from .interfaces import IGatheringStore, IStore

__all__ = ["ConnectionGauges", "MessageLogFactory"]

_ANY_HOLD = sum(HOLDS.values())
_heard = attrgetter("heard")


@frozen(slots=True)
class ConnectionGauges:
    """
    What is so with all connections now.

    @ivar connections: how many there are.
    @ivar paused: how many of them are not read, by why.
    @ivar undurable: bytes that have no verdict, as the connections count them.
    @ivar workers: how many worker processes there should be, and how many serve; L{None} without.
    """

    connections: int
    paused: dict[str, int]
    undurable: int
    workers: tuple[int, int] | None = None


class MessageLogFactory(Factory):
    """
    Makes a L{MessageLogProtocol} for each connection, and bounds what all of them hold.

    Listen with it on any stream endpoint.

    @param reactor: for time.
    @param store: an L{IStore} that is started before the first connection, and stopped after
        L{stop} has fired.
    @param limits: see L{Limits}.
    @param permits: whether a client id (16 bytes) may be written on a connection (its transport);
        all may if there is none.  Called once for each batch, so it must be quick.
    """

    log = Logger()

    def __init__(
        self,
        reactor: IReactorTime,
        store: IStore,
        limits: Limits | None = None,
        permits: Callable[[bytes, ITransport], bool] | None = None,
    ) -> None:
        self._reactor = reactor
        self.seconds = reactor.seconds
        self.store = store
        self.limits = limits or Limits()
        self.permits = permits
        self.connections: set[MessageLogProtocol] = set()
        self.turned_away: set[MessageLogProtocol] = set()  # and not gone yet
        self._quota = ConnectionQuota()
        self.counts = ConnectionCounts()
        self.round: Round | None = None
        if IGatheringStore.providedBy(store):
            self.round = Round(reactor, store, self.counts)
        self.undurable = 0  # bytes, as the connections count them
        self.holding = False
        self.stopping = False
        self._stopped: Deferred[None] | None = None
        self._to_flush: list[MessageLogProtocol] = []
        self._notes: dict[str, tuple[int, str, str]] = {}
        self._reader: SocketReader | None = None
        self._sweep = LoopingCall(self._check)
        self._sweep.clock = reactor

    noisy = False  # no line of the log for each port

    def startFactory(self) -> None:
        """Begin to watch the connections' deadlines."""
        self.stopping = False
        if self._sweep.running:
            return
        limits = self.limits
        shortest = min(limits.unread_seconds, limits.frame_seconds, LINGER_SECONDS)
        # Often enough to be at most a quarter late: 10,000 connections take 3 ms a round.
        self._sweep.start(shortest / 4, now=False)

    def stopFactory(self) -> None:
        """The last port is closed; connections may go on."""

    def buildProtocol(self, addr: IAddress | None) -> MessageLogProtocol:  # type: ignore[override]
        """A protocol for a new connection."""
        if not self._sweep.running:
            self.startFactory()
        protocol = MessageLogProtocol()
        protocol.factory = self
        return protocol

    def refusal(self, peer: IAddress) -> tuple[str, str] | None:
        """Why a connection from an address is not taken, as a word and for people, if it is not."""
        if self.stopping:
            return "stopping", REFUSALS["stopping"]
        kind = self._quota.refusal(origin_of(peer), self.limits)
        return None if kind is None else (kind, REFUSALS[kind])

    def gauges(self) -> ConnectionGauges:
        """What is so now."""
        paused = dict.fromkeys(HOLDS, 0)
        for connection in self.connections:
            if connection.held(_ANY_HOLD):
                for name, reason in HOLDS.items():
                    paused[name] += connection.held(reason)
        return ConnectionGauges(len(self.connections), paused, self.undurable)

    def add(self, connection: MessageLogProtocol) -> None:
        """Take note of a connection."""
        self.connections.add(connection)
        self._quota.add(origin_of(connection.transport.getPeer()))

    def remove(self, connection: MessageLogProtocol) -> None:
        """Forget a connection that is gone."""
        self.turned_away.discard(connection)
        if connection in self.connections:
            self.connections.remove(connection)
            self._quota.remove(origin_of(connection.transport.getPeer()))
        self._see_the_last_gone()

    def reader_for(self, transport: Any) -> SocketReader:
        """What reads a plain socket."""
        if self._reader is None:
            gathers = self.round
            began, ended = (gathers.begin, gathers.end) if gathers else (_nothing, _nothing)
            self._reader = SocketReader(transport.reactor, began, ended)
        return self._reader

    def tune(self, transport: Any) -> None:
        """Set a connection's TCP options, where it has any."""
        if ISSLTransport.providedBy(transport):
            transport = getattr(transport, "transport", transport)
        handle = getattr(transport, "getHandle", None)
        if not isinstance(transport, tcp.Connection) or handle is None:
            return
        sock = handle()
        if sock.family not in (socket.AF_INET, socket.AF_INET6):
            return
        seconds = self.limits.keepalive_seconds
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, seconds)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, max(seconds // 4, 1))
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT, 4)
        timeout = 1000 * self.limits.user_timeout_seconds
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, timeout)

    def turn_soon(self, turn: Callable[[], None]) -> None:
        """Have a connection go on behind what the others have for the store in this turn."""
        self._reactor.callLater(0, turn)

    def flush_soon(self, connection: MessageLogProtocol) -> None:
        """Have a connection flush once, after everything that becomes known in this turn."""
        if not self._to_flush:
            self._reactor.callLater(0, self._flush)
        self._to_flush.append(connection)

    def _flush(self) -> None:
        flushing, self._to_flush = self._to_flush, []
        for connection in flushing:
            connection.flush()

    def less_undurable(self) -> None:
        """
        Read everywhere again, if enough has gone of what was undurable.

        To be called wherever any has gone while all are held: what they wait for comes from nobody
        else.  Those that were not heard for the longest are read first, or a few could bring too
        much again and again before it is the others' turn.
        """
        if self.undurable <= self.limits.max_undurable_bytes // 2:
            self.holding = False
            if self._reader is not None:
                self._reader.be_brief()
            for connection in sorted(self.connections, key=_heard):
                connection.release(UNDURABLE)

    def hold_all(self) -> None:
        """Stop reading everywhere: too much is undurable."""
        if not self.holding:
            self.holding = True
            for connection in self.connections:
                if connection.takes_messages:
                    connection.hold(UNDURABLE)

    def note(self, what: str, connection: MessageLogProtocol, reason: str) -> None:
        """Have it said that something became of a connection, in one line for all in a while."""
        peer = connection.transport.getPeer()
        port = getattr(peer, "port", None)
        self.note_of(what, f"{host_of(peer)}:{port}" if port else host_of(peer), reason)

    def note_of(self, what: str, who: str, reason: str) -> None:
        """The same of a connection that is none yet."""
        count, _, _ = self._notes.get(what, (0, "", ""))
        self._notes[what] = count + 1, who, reason

    def _check(self) -> None:
        now = self.seconds()
        for connection in [*self.connections, *self.turned_away]:
            connection.check(now)
        self._bound_unread()
        notes, self._notes = self._notes, {}
        for what, (count, peer, reason) in notes.items():
            self.log.warn(
                "connections that {what}: {count}; the last, {peer}: {reason}",
                count=count,
                what=what,
                peer=peer,
                reason=reason,
            )

    def _bound_unread(self) -> None:
        """Abort the connections that leave most unread, if all together leave too much."""
        slow = [connection for connection in self.connections if connection.unread]
        unread = sum(connection.unread for connection in slow)
        slow.sort(key=lambda connection: connection.unread)
        while unread > self.limits.max_total_unread_bytes:
            worst = slow.pop()
            unread -= worst.unread
            worst.abort_unread()

    def stop(self) -> Deferred[None]:
        """
        Answer what has arrived, tell what still arrives UNAVAILABLE, and close.

        Stop listening first, and stop the store after.

        @return: fires when the last connection is gone, after C{stop_seconds} at the latest.
        """
        self.stopping = True
        done: Deferred[None] = Deferred()
        self._stopped = done
        deadline = self._reactor.callLater(self.limits.stop_seconds, self._abort_all)
        for connection in list(self.connections):
            connection.end()
        if unread := sum(connection.unread > 0 for connection in self.connections):
            self.log.info(
                "connections that have answers to read yet: {count}; they get {seconds:g} s",
                count=unread,
                seconds=self.limits.stop_seconds,
            )
        if self._sweep.running:
            self._sweep.stop()
            self._sweep.start(STOP_LINGER_SECONDS / 4, now=False)

        def stopped(result: None) -> None:
            if deadline.active():
                deadline.cancel()
            if self._sweep.running:
                self._sweep.stop()

        done.addCallback(stopped)
        self._see_the_last_gone()
        return done

    def _abort_all(self) -> None:
        self.log.warn(
            "connections that did not end in time and are aborted: {count}",
            count=len(self.connections),
        )
        self.counts.closed["stop"] += len(self.connections)
        for connection in list(self.connections):
            connection.transport.abortConnection()
        self.connections.clear()
        self._quota = ConnectionQuota()
        self._see_the_last_gone()

    def _see_the_last_gone(self) -> None:
        if self._stopped is not None and not self.connections:
            stopped, self._stopped = self._stopped, None
            stopped.callback(None)


def _nothing() -> None:
    """What a store is told that does not want to know."""
