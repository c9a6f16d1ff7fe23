"""
The server's side of a connection: frames in, batches to the store, answers out in order.

A connection's states::

    OPEN ──────> ENDING ──────> LINGERING ──────> LOST
      └─────────────┴──────────────────────────────^

OPEN       messages are taken.
ENDING     nothing more is taken: the peer has half-closed, or sent what is no frame, or was idle
           for too long, or the server stops (then what still arrives is told UNAVAILABLE).  What
           was taken before is still answered.
LINGERING  every answer is written and our half of the connection is closed.  What arrives is
           dropped, until the peer closes its half or C{LINGER_SECONDS} are over.  (To close
           a socket with bytes unread resets it, which can cost the peer the last answers.)
LOST       over.  What is still in the store will be judged and the answer dropped; the client
           asks for it again on its next connection.

Reading stops, and nothing is dropped, while there is a reason to hold: too much unanswered on this
connection, too many answers that the peer has not read, or too much undurable in the whole server.
"""

from __future__ import annotations

import enum
import socket
from bisect import bisect_left
from collections import deque
from collections.abc import Callable
from typing import Any

from attrs import define
from twisted.internet import tcp
from twisted.internet.defer import Deferred
from twisted.internet.interfaces import (
    IAddress,
    IHalfCloseableProtocol,
    IReactorTime,
    ITransport,
)
from twisted.internet.protocol import Factory, connectionDone
from twisted.internet.task import LoopingCall
from twisted.logger import Logger
from twisted.protocols.basic import Int32StringReceiver
from twisted.python.failure import Failure
from zope.interface import implementer

from ._batch import STORED, NackCode, Refusal, Verdict
from ._counts import SECONDS, ConnectionCounts
from ._frames import (
    PROTOCOL_VERSION,
    Enquiry,
    Event,
    Fault,
    FrameDecoder,
    Run,
    encode_acks,
    encode_nack,
    encode_terms,
)
from ._limits import Limits
from ._sockets import SocketAnswers, SocketReader, TransportAnswers
from .interfaces import IStore

__all__ = ["HOLDS", "MessageLogFactory", "MessageLogProtocol"]

# How long a connection that we ended waits for its peer to end it too.
LINGER_SECONDS = 2.0

# What holding a message costs besides twice its body (as a body and in a line of the log): its
# header, checksum, formatted fields and places in lists.  Measured on CPython 3.11: 295 bytes, and
# a tenth of the whole more for what no message owns.
_MESSAGE_COST = 384

_NOBODY = bytes(16)


class _State(enum.Enum):
    OPEN = enum.auto()
    ENDING = enum.auto()
    LINGERING = enum.auto()
    LOST = enum.auto()


_READING = (_State.OPEN, _State.ENDING)

# Why a connection is not read, as bits.  (Plain numbers: an enum's "&" costs 0.4 µs.)
_UNANSWERED = 1
_UNREAD = 2
_UNDURABLE = 4
HOLDS = {"unanswered": _UNANSWERED, "unread": _UNREAD, "undurable": _UNDURABLE}
_HOLD_NAMES = {reason: name for name, reason in HOLDS.items()}


@define(slots=True, eq=False)
class _Owed:
    """
    An answer that a connection owes its peer.

    @ivar cost: what it holds in memory, bytes.
    @ivar since: when what it answers was read.
    @ivar run: what it is an answer to, if that was messages.
    @ivar acked: how many of those have an ACK.
    @ivar answer: its frames, once they are known.
    """

    connection: MessageLogProtocol
    cost: int
    since: float
    run: Run | None = None
    acked: int = 0
    answer: bytes | None = None

    def judged(self, verdict: Verdict) -> None:
        """Take the store's verdict on the run."""
        run = self.run
        assert run is not None
        counts = self.connection.factory.counts
        self.acked = acked = len(run.heads)
        if verdict is not STORED:
            for refusal in verdict.refusals:
                refused = refusal.stop - refusal.start
                counts.nacked[refusal.code] += refused
                self.acked = acked = acked - refused
        counts.acked += acked
        if counts.busiest is not None:
            counts.busiest.count(run.client, acked)
        if verdict is STORED:
            self.settle(encode_acks(run.heads))
        else:
            self.settle(_encode_verdict(run, verdict.refusals))

    def refuse(self, code: NackCode, reason: str) -> None:
        """Refuse the whole run."""
        assert self.run is not None
        self.judged(Verdict.refused(self.run, code, 0, reason))

    def settle(self, answer: bytes) -> None:
        """The answer is known."""
        self.answer = answer
        self.connection.settled()


@implementer(IHalfCloseableProtocol)
class MessageLogProtocol(Int32StringReceiver):
    """
    One connection.

    Its strings are parsed by a L{FrameDecoder} and not one by one: the messages of one read become
    few batches, and a string that is too long is dropped as it arrives.
    """

    factory: MessageLogFactory
    transport: Any

    def connectionMade(self) -> None:
        """Begin, unless there are too many connections."""
        factory, transport = self.factory, self.transport
        self._state = _State.OPEN
        self._peer_done = False
        self._held = 0
        self._owed: deque[_Owed] = deque()
        self._unanswered = 0
        self._flushing = False
        self._reader: SocketReader | None = None
        self._partial_since: float | None = None
        self._heard = factory.seconds()
        if len(factory.connections) >= factory.limits.max_connections or factory.stopping:
            reason = "shutting down" if factory.stopping else "too many connections"
            transport.write(encode_nack(_NOBODY, 0, NackCode.UNAVAILABLE, 0, reason))
            transport.loseConnection()
            self._state = _State.LOST
            factory.counts.refused["stopping" if factory.stopping else "full"] += 1
            factory.note("were turned away", self, reason)
            return
        factory.counts.accepted += 1
        factory.connections.add(self)
        self._decoder = FrameDecoder(factory.limits.max_message_bytes)
        plain = isinstance(transport, tcp.Connection) and not transport.TLS
        answers = SocketAnswers if plain else TransportAnswers
        self._answers = answers(transport, factory.seconds, self._drained)
        factory.tune(transport)
        if plain:
            self._reader = factory.reader_for(transport)
            self._fd = self._reader.add(self)
        if factory.holding:
            self.hold(_UNDURABLE)

    # --- in --------------------------------------------------------------------------------

    def dataReceived(self, data: bytes) -> None:
        """Take what one read brought."""
        if self._state is _State.LINGERING or self._state is _State.LOST:
            return
        factory = self.factory
        decoder = self._decoder
        events = decoder.feed(data)
        if data:
            self._heard = factory.seconds()
            factory.counts.received_bytes += len(data)
        if not decoder.partial:
            self._partial_since = None
        elif events or self._partial_since is None:
            self._partial_since = self._heard
        if not events:
            return
        for event in events:
            if type(event) is Run:
                self._take(event)
            else:
                self._answer_rare(event)
        if self._unanswered > factory.limits.max_unanswered_bytes and self._state is _State.OPEN:
            self.hold(_UNANSWERED)
        if factory.undurable > factory.limits.max_undurable_bytes:
            factory.hold_all()

    def _take(self, run: Run) -> None:
        factory = self.factory
        messages = len(run.heads)
        batches = factory.counts.batches
        batches.buckets[bisect_left(batches.bounds, messages)] += 1
        batches.total += messages
        owed = self._owe(_MESSAGE_COST * messages + 2 * sum(map(len, run.bodies)), run)
        if self._state is not _State.OPEN:
            owed.refuse(NackCode.UNAVAILABLE, "shutting down")
        elif factory.permits is not None and not factory.permits(run.client, self.transport):
            owed.refuse(NackCode.FORBIDDEN, "not a client id for this connection")
        else:
            factory.store.append(run, owed.judged)

    def _answer_rare(self, event: Event) -> None:
        owed = self._owe(_MESSAGE_COST)
        if isinstance(event, Enquiry):
            client, limits, store = (
                event.client,
                self.factory.limits,
                self.factory.store,
            )

            def answer(last: int | None) -> None:
                if last is None:
                    code, reason = NackCode.UNAVAILABLE, "the store cannot say"
                    owed.settle(encode_nack(client, 0, code, 0, reason))
                    return
                version, longest = min(event.version, PROTOCOL_VERSION), limits.max_message_bytes
                owed.settle(encode_terms(client, last, version, longest, store.window))

            store.last(client).addCallback(answer)
        elif isinstance(event, Fault):
            nack = encode_nack(event.client, event.sequence, event.code, 0, event.reason)
            self.factory.counts.nacked[event.code] += 1
            owed.settle(nack)
            if event.code is NackCode.MALFORMED:
                self.factory.counts.closed["malformed"] += 1
                self.factory.note("sent what is no frame of this protocol", self, event.reason)
                self.end()

    def _owe(self, cost: int, run: Run | None = None) -> _Owed:
        owed = _Owed(self, cost, self._heard, run)
        self._owed.append(owed)
        self._unanswered += cost
        self.factory.undurable += cost
        return owed

    # --- answers ---------------------------------------------------------------------------

    def settled(self) -> None:
        """An answer became known."""
        if self._flushing:
            return
        if len(self._owed) == 1 and not self.factory.holding:
            # Nothing to gather it with.
            self.flush()
        else:
            self._flushing = True
            self.factory.flush_soon(self)

    def flush(self) -> None:
        """Send the answers that are known, up to the first that is not."""
        self._flushing = False
        ready = []
        owed = self._owed
        freed = 0
        lost = self._state is _State.LOST or self._state is _State.LINGERING
        now = self.factory.seconds()
        waited = self.factory.counts.ack_seconds
        while owed and owed[0].answer is not None:
            first = owed.popleft()
            freed += first.cost
            ready.append(first.answer)
            if first.acked and not lost:
                seconds = now - first.since
                if seconds < 0:
                    seconds = 0.0  # the clock was set back
                waited.buckets[bisect_left(SECONDS, seconds)] += first.acked
                waited.total += seconds * first.acked
        self._unanswered -= freed
        self.factory.undurable -= freed
        if lost:
            return
        limits = self.factory.limits
        if ready:
            self._answers.send(b"".join(ready) if len(ready) > 1 else ready[0])  # type: ignore[arg-type]
            if self._answers.unread > limits.max_unread_bytes:
                self.hold(_UNREAD)
        if self._held & _UNANSWERED and self._unanswered <= limits.max_unanswered_bytes // 2:
            self.release(_UNANSWERED)
        if self._state is _State.ENDING:
            self._finish()

    def _drained(self) -> None:
        """The transport has taken answers that it could not take before."""
        if (
            self._held & _UNREAD
            and self._answers.unread <= self.factory.limits.max_unread_bytes // 2
        ):
            self.release(_UNREAD)
        if self._state is _State.ENDING:
            self._finish()

    # --- holding ---------------------------------------------------------------------------

    def hold(self, reason: int) -> None:
        """Do not read, for a reason."""
        if not self._held & reason:
            self.factory.counts.pauses[_HOLD_NAMES[reason]] += 1
        if not self._held and not self._peer_done and self._state in _READING:
            if self._reader is not None:
                self._reader.pause(self._fd)
            else:
                self.pauseProducing()
        self._held |= reason

    def held(self, reason: int) -> bool:
        """Whether there is this reason not to read."""
        return bool(self._held & reason)

    @property
    def takes_messages(self) -> bool:
        """Whether messages that arrive now go to the store."""
        return self._state is _State.OPEN

    def release(self, reason: int) -> None:
        """A reason not to read is gone."""
        if not self._held & reason:
            return
        self._held &= ~reason
        if not self._held and not self._peer_done and self._state in _READING:
            self._partial_since = None
            if self._reader is not None:
                self._reader.resume(self._fd)
            else:
                self.resumeProducing()

    def read_by_transport(self) -> None:
        """Have the transport read from now on: what comes is an end or an error."""
        self._stop_reader()
        self.transport.startReading()

    def _stop_reader(self) -> None:
        if self._reader is not None:
            self._reader.remove(self._fd)
            self._reader = None

    # --- the end ---------------------------------------------------------------------------

    def end(self) -> None:
        """Take nothing more; close when everything is answered."""
        if self._state is not _State.OPEN:
            return
        self._state = _State.ENDING
        # What comes is cheap from now on, and has to be read for the answers to arrive.
        self.release(_UNANSWERED | _UNDURABLE)
        self._finish()

    def _finish(self) -> None:
        if self._owed or self._answers.unread:
            return
        self.transport.unregisterProducer()
        if self._peer_done or not isinstance(self._answers, SocketAnswers):
            self._state = _State.LOST
            self.transport.loseConnection()
        else:
            self._state = _State.LINGERING
            self._heard = self.factory.seconds()
            self.transport.loseWriteConnection()

    def readConnectionLost(self) -> None:
        """The peer has half-closed: it has no more messages, and waits for its answers."""
        self._peer_done = True
        if self._state is _State.LINGERING:
            self._state = _State.LOST
            self.transport.loseConnection()
        else:
            self.end()

    def writeConnectionLost(self) -> None:
        """Our own half is closed."""

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        """Forget the connection; what is in the store stays there."""
        self._state = _State.LOST
        self._stop_reader()
        self.factory.connections.discard(self)
        self.factory.connection_ended()

    def check(self, now: float) -> None:
        """Do what is due by time."""
        limits = self.factory.limits
        if self._state is _State.LINGERING:
            if now - self._heard >= LINGER_SECONDS:
                self.transport.abortConnection()
        elif self._answers.unread:
            if now - self._answers.since >= limits.unread_seconds:
                self._abort("unread", "does not read its answers", limits.unread_seconds)
        elif self._owed or self._held or self._state is not _State.OPEN:
            pass  # it waits for us
        elif self._partial_since is not None:
            if now - self._partial_since >= limits.frame_seconds:
                self._abort("frame", "stopped in the middle of a frame", limits.frame_seconds)
        elif limits.idle_seconds and now - self._heard >= limits.idle_seconds:
            self.factory.counts.closed["idle"] += 1
            self.end()

    def _abort(self, reason: str, why: str, seconds: float) -> None:
        self.factory.counts.closed[reason] += 1
        self.factory.note("were aborted", self, f"it {why} ({seconds:g} s)")
        self.transport.abortConnection()


def _encode_verdict(run: Run, refusals: Any) -> bytes:
    """The answers to a batch of which something was refused."""
    at = 0
    answers = []
    refusal: Refusal
    for refusal in refusals:
        if refusal.start > at:
            answers.append(encode_acks(run.heads[at : refusal.start]))
        for index in range(refusal.start, refusal.stop):
            answers.append(
                encode_nack(
                    run.client,
                    run.first + index,
                    refusal.code,
                    refusal.expected,
                    refusal.reason,
                )
            )
        at = refusal.stop
    if at < len(run.heads):
        answers.append(encode_acks(run.heads[at:]))
    return b"".join(answers)


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
        self.counts = ConnectionCounts()
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

    def reader_for(self, transport: Any) -> SocketReader:
        """What reads a plain socket."""
        if self._reader is None:
            self._reader = SocketReader(transport.reactor)
        return self._reader

    def tune(self, transport: Any) -> None:
        """Set a connection's TCP options, where it has any."""
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

    def flush_soon(self, connection: MessageLogProtocol) -> None:
        """Have a connection flush once, after everything that becomes known in this turn."""
        if not self._to_flush:
            self._reactor.callLater(0, self._flush)
        self._to_flush.append(connection)

    def _flush(self) -> None:
        flushing, self._to_flush = self._to_flush, []
        for connection in flushing:
            connection.flush()
        if self.holding and self.undurable <= self.limits.max_undurable_bytes // 2:
            self.holding = False
            for connection in list(self.connections):
                connection.release(_UNDURABLE)

    def hold_all(self) -> None:
        """Stop reading everywhere: too much is undurable."""
        if not self.holding:
            self.holding = True
            for connection in self.connections:
                if connection.takes_messages:
                    connection.hold(_UNDURABLE)

    def note(self, what: str, connection: MessageLogProtocol, reason: str) -> None:
        """Have it said that something became of a connection, in one line for all in a while."""
        count, _, _ = self._notes.get(what, (0, "", ""))
        peer = connection.transport.getPeer()
        host, port = getattr(peer, "host", None), getattr(peer, "port", None)
        self._notes[what] = count + 1, f"{host}:{port}" if host else str(peer), reason

    def _check(self) -> None:
        now = self.seconds()
        for connection in list(self.connections):
            connection.check(now)
        notes, self._notes = self._notes, {}
        for what, (count, peer, reason) in notes.items():
            self.log.warn(
                "connections that {what}: {count}; the last, {peer}: {reason}",
                count=count,
                what=what,
                peer=peer,
                reason=reason,
            )

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

        def stopped(result: None) -> None:
            if deadline.active():
                deadline.cancel()
            if self._sweep.running:
                self._sweep.stop()

        done.addCallback(stopped)
        self.connection_ended()
        return done

    def _abort_all(self) -> None:
        self.log.warn(
            "{count} connections did not end in time and are aborted",
            count=len(self.connections),
        )
        self.counts.closed["stop"] += len(self.connections)
        for connection in list(self.connections):
            connection.transport.abortConnection()
        self.connections.clear()
        self.connection_ended()

    def connection_ended(self) -> None:
        """See whether the last connection is gone."""
        if self._stopped is not None and not self.connections:
            stopped, self._stopped = self._stopped, None
            stopped.callback(None)
