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
from bisect import bisect_left
from collections import deque
from typing import TYPE_CHECKING, Any

from attrs import define
from twisted.internet import tcp
from twisted.internet.interfaces import (
    IHalfCloseableProtocol,
    IHandshakeListener,
    ISSLTransport,
)
from twisted.internet.protocol import connectionDone
from twisted.protocols.basic import Int32StringReceiver
from twisted.python.failure import Failure
from zope.interface import implementer

from ._batch import STORED, NackCode, Refusal, Verdict
from ._counts import SECONDS
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
from ._sockets import SocketAnswers, SocketReader, TransportAnswers

if TYPE_CHECKING:
    from ._factory import MessageLogFactory

__all__ = ["HOLDS", "LINGER_SECONDS", "STOP_LINGER_SECONDS", "UNDURABLE", "MessageLogProtocol"]

# How long a connection that we ended waits for its peer to end it too.
LINGER_SECONDS = 2.0

# The same while the server stops, and the next one waits for this one to end.
STOP_LINGER_SECONDS = 0.05

# What things cost in memory, measured on CPython 3.11 with a tenth more for what none of them owns.
# A message, besides its body and its line: its header, checksum, and places in lists.
_MESSAGE_COST = 320
# A run of messages, or an enquiry: the objects between the protocol and the store's writer.
_RUN_COST = 1200

# How many runs and enquiries of one connection one turn takes; the others' come in between.  One
# read can bring 1,900, some 50 ms of work, so that 50 connections made everybody wait for seconds.
# What is taken in 256 is still a commit worth its sync.
_TURN = 256

_NOBODY = bytes(16)


class _State(enum.Enum):
    OPEN = enum.auto()
    ENDING = enum.auto()
    LINGERING = enum.auto()
    LOST = enum.auto()


# As globals: an enum's attribute costs 0.13 µs each time on CPython 3.11, and a global 0.01.
_OPEN, _ENDING, _LINGERING, _LOST = _State
_READING = (_OPEN, _ENDING)

# Why a connection is not read, as bits.  (Plain numbers: an enum's "&" costs 0.4 µs.)
_UNANSWERED = 1
_UNREAD = 2
UNDURABLE = 4
HOLDS = {"unanswered": _UNANSWERED, "unread": _UNREAD, "undurable": UNDURABLE}
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
        connection = self.connection
        counts = connection.factory.counts
        acked = len(run.heads)
        if verdict is STORED:
            self.answer = encode_acks(run.heads)
        else:
            self.answer = _encode_verdict(run, verdict.refusals)
            for refusal in verdict.refusals:
                refused = refusal.stop - refusal.start
                counts.nacked[refusal.code] += refused
                acked -= refused
        self.acked = acked
        counts.acked += acked
        if counts.busiest is not None:
            counts.busiest.count(run.client, acked)
        connection.settled()

    def stored(self) -> bool:
        """Take the store's verdict that all is stored, if the connection owes nothing else."""
        return self.connection.acknowledge_alone(self)

    def refuse(self, code: NackCode, reason: str) -> None:
        """Refuse the whole run."""
        assert self.run is not None
        self.judged(Verdict.refused(self.run, code, 0, reason))

    def settle(self, answer: bytes) -> None:
        """The answer is known."""
        self.answer = answer
        self.connection.settled()


@implementer(IHalfCloseableProtocol, IHandshakeListener)
class MessageLogProtocol(Int32StringReceiver):
    """
    One connection.

    Its strings are parsed by a L{FrameDecoder} and not one by one: the messages of one read become
    few batches, and a string that is too long is dropped as it arrives.

    @ivar heard: when something last arrived.
    """

    factory: MessageLogFactory
    transport: Any

    def connectionMade(self) -> None:
        """Begin, unless there are too many connections."""
        factory, transport = self.factory, self.transport
        self._state = _OPEN
        self._peer_done = False
        self._held = 0
        self._owed: deque[_Owed] = deque()
        self._unanswered = 0
        self._later: deque[Event] = deque()
        self._turn_due = False
        self._flushing = False
        self._reader: SocketReader | None = None
        self._partial_since: float | None = None
        self.heard = factory.seconds()
        secure = ISSLTransport.providedBy(transport)
        self._handshake_since: float | None = self.heard if secure else None
        refusal = factory.refusal(transport.getPeer())
        if refusal is not None:
            kind, reason = refusal
            transport.write(encode_nack(_NOBODY, 0, NackCode.UNAVAILABLE, 0, reason))
            transport.loseConnection()
            self._state = _LOST
            factory.turned_away.add(self)
            factory.counts.refused[kind] += 1
            factory.note("were turned away", self, reason)
            return
        factory.counts.accepted += 1
        factory.add(self)
        self._decoder = FrameDecoder(factory.limits.max_message_bytes)
        plain = isinstance(transport, tcp.Connection) and not transport.TLS
        answers = SocketAnswers if plain else TransportAnswers
        self._answers = answers(transport, factory.seconds, self._drained)
        factory.tune(transport)
        if plain:
            self._reader = factory.reader_for(transport)
            self._fd = self._reader.add(self)
        if factory.holding:
            self.hold(UNDURABLE)

    def handshakeCompleted(self) -> None:
        """The TLS handshake is done, and what it asks of the peer's certificate is so."""
        self._handshake_since = None

    # --- in --------------------------------------------------------------------------------

    def dataReceived(self, data: bytes) -> None:
        """Take what one read brought."""
        state = self._state
        if state is _LINGERING or state is _LOST:
            return
        factory = self.factory
        decoder = self._decoder
        events = decoder.feed(data)
        self.heard = factory.seconds()
        factory.counts.received_bytes += len(data)
        if not decoder.partial:
            self._partial_since = None
        elif events or self._partial_since is None:
            self._partial_since = self.heard
        if self._later or len(events) > _TURN:
            self._put_off(events)
        else:
            for event in events:
                if type(event) is Run:
                    self._take(event)
                else:
                    self._answer_rare(event)
        limits = factory.limits
        if self._unanswered > limits.max_unanswered_bytes:
            self.hold(_UNANSWERED)
        if factory.undurable > limits.max_undurable_bytes:
            factory.hold_all()

    def _put_off(self, events: list[Event]) -> None:
        """Take what one turn may have, and leave the rest for turns to come."""
        cost = _RUN_COST * len(events)
        self._unanswered += cost
        self.factory.undurable += cost
        idle = not self._later
        self._later.extend(events)
        self.hold(_UNANSWERED)
        if idle:
            self._take_turn()

    def _take_turn(self) -> None:
        """Take some of what was put off; the next turn comes when something is answered."""
        later = self._later
        self._turn_due = False
        count = min(_TURN, len(later))
        self._unanswered -= _RUN_COST * count
        self.factory.undurable -= _RUN_COST * count
        self._flushing = True  # at the end, so that an ending connection does not end in between
        for event in [later.popleft() for _ in range(count)]:
            if type(event) is Run:
                self._take(event)
            else:
                self._answer_rare(event)
        self._flushing = False
        if not self._owed or self._owed[0].answer is not None:
            self.flush()

    def _take(self, run: Run) -> None:
        factory = self.factory
        messages = len(run.heads)
        batches = factory.counts.batches
        batches.buckets[0 if messages == 1 else bisect_left(batches.bounds, messages)] += 1
        batches.total += messages
        size = len(run.bodies[0]) if messages == 1 else sum(map(len, run.bodies))
        owed = self._owe(_RUN_COST + _MESSAGE_COST * messages + size, run)
        if self._state is not _OPEN:
            owed.refuse(NackCode.UNAVAILABLE, "shutting down")
            return
        try:
            if factory.permits is not None and not factory.permits(run.client, self.transport):
                owed.refuse(NackCode.FORBIDDEN, "not a client id for this connection")
                return
            if factory.round is not None:
                held = factory.round.add(run, owed)
            else:
                held = factory.store.append(run, owed.judged)
        except Exception:
            # An application's own permits or store; what is owed must not stay owed for ever.
            factory.log.failure("a message could not be judged")
            owed.refuse(NackCode.UNAVAILABLE, "the server has a defect")
            self.end()
            return
        if owed.answer is None:
            owed.cost += held
            self._unanswered += held
            factory.undurable += held

    def _answer_rare(self, event: Event) -> None:
        owed = self._owe(_RUN_COST)
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

            if self.factory.round is not None:
                self.factory.round.hand_over()
            store.last(client).addCallback(answer)
        else:
            assert isinstance(event, Fault)
            nack = encode_nack(event.client, event.sequence, event.code, 0, event.reason)
            self.factory.counts.nacked[event.code] += 1
            owed.settle(nack)
            if event.code is NackCode.MALFORMED:
                self.factory.counts.closed["malformed"] += 1
                self.factory.note("sent what is no frame of this protocol", self, event.reason)
                self.end()

    def _owe(self, cost: int, run: Run | None = None) -> _Owed:
        owed = _Owed(self, cost, self.heard, run)
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

    def acknowledge_alone(self, one: _Owed) -> bool:
        """
        Answer that all is stored, if nothing else is owed or to be seen to; whether it was.

        Nearly every answer of a client that waits for each is this, in a third of the time.
        """
        owed = self._owed
        if len(owed) != 1 or owed[0] is not one or self._held or self._state is not _OPEN:
            return False
        owed.clear()
        self._unanswered -= one.cost
        factory = self.factory
        factory.undurable -= one.cost
        answers = self._answers
        assert one.run is not None
        answers.send(encode_acks(one.run.heads))
        if answers.unread and answers.unread > factory.limits.max_unread_bytes:
            self.hold(_UNREAD)
        return True

    def flush(self) -> None:
        """Send the answers that are known, up to the first that is not."""
        self._flushing = False
        ready: list[bytes] = []
        owed = self._owed
        freed = 0
        factory = self.factory
        state = self._state
        lost = state is _LOST or state is _LINGERING
        now = factory.seconds()
        waited = factory.counts.ack_seconds
        while owed and (answer := owed[0].answer) is not None:
            first = owed.popleft()
            freed += first.cost
            ready.append(answer)
            if (acked := first.acked) and not lost:
                seconds = now - first.since
                if seconds < 0:
                    seconds = 0.0  # the clock was set back
                waited.buckets[bisect_left(SECONDS, seconds)] += acked
                waited.total += seconds * acked
        self._unanswered -= freed
        factory.undurable -= freed
        if factory.holding:
            factory.less_undurable()
        if lost:
            return
        if ready:
            answers = self._answers
            answers.send(b"".join(ready) if len(ready) > 1 else ready[0])
            if answers.unread and answers.unread > factory.limits.max_unread_bytes:
                self.hold(_UNREAD)
        if self._later:
            if not self._turn_due:
                self._turn_due = True
                factory.turn_soon(self._take_turn)
        elif (
            self._held & _UNANSWERED
            and self._unanswered <= factory.limits.max_unanswered_bytes // 2
        ):
            self.release(_UNANSWERED)
        if state is _ENDING:
            self._finish()

    def _drained(self) -> None:
        """The transport has taken answers that it could not take before."""
        if (
            self._held & _UNREAD
            and self._answers.unread <= self.factory.limits.max_unread_bytes // 2
        ):
            self.release(_UNREAD)
        if self._state is _ENDING:
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
        return self._state is _OPEN

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
        if self._state is not _OPEN:
            return
        self._state = _ENDING
        # What comes is refused from now on, and waits for no disk.  But the answers still wait for
        # those before them: a peer that is too far ahead of them is held as before.
        self.release(UNDURABLE)
        self._finish()

    def _finish(self) -> None:
        if self._owed or self._later or self._answers.unread:
            return
        self.transport.unregisterProducer()
        if self._peer_done or not isinstance(self._answers, SocketAnswers):
            self._state = _LOST
            self.transport.loseConnection()
        else:
            self._state = _LINGERING
            self.transport.loseWriteConnection()
        self.heard = self.factory.seconds()

    def readConnectionLost(self) -> None:
        """The peer has half-closed: it has no more messages, and waits for its answers."""
        self._peer_done = True
        if self._state is _LINGERING:
            self._state = _LOST
            self.transport.loseConnection()
        else:
            self.end()

    def writeConnectionLost(self) -> None:
        """Our own half is closed."""

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        """Forget the connection; what is in the store stays there."""
        if self._handshake_since is not None and self._state is _OPEN:
            self._refused_by_tls(reason)
        self._state = _LOST
        self.factory.undurable -= _RUN_COST * len(self._later)
        self._later.clear()
        self._stop_reader()
        self.factory.remove(self)
        if self.factory.holding:
            self.factory.less_undurable()

    def _refused_by_tls(self, reason: Failure) -> None:
        """The handshake failed: a certificate that will not do, or no TLS at all."""
        factory = self.factory
        factory.counts.refused["tls"] += 1
        error = reason.value
        assert error is not None
        detail, *_ = error.args or [""]
        if isinstance(detail, list):  # OpenSSL's: (library, function, reason) of each
            detail = ", ".join(text for *_, text in detail)
        factory.note("were refused by TLS", self, str(detail) or reason.getErrorMessage())

    def check(self, now: float) -> None:
        """Do what is due by time."""
        limits = self.factory.limits
        if self._state is _LINGERING or self._state is _LOST:
            # A peer that does not close its half, or does not answer a TLS close.
            stopping = self.factory.stopping
            if now - self.heard < (STOP_LINGER_SECONDS if stopping else LINGER_SECONDS):
                pass
            elif stopping and self._state is _LINGERING:
                # The kernel goes on to deliver what it has, whether we are there or not.
                self._state = _LOST
                self.heard = now
                self.transport.loseConnection()
            else:
                self.transport.abortConnection()
        elif self._handshake_since is not None:
            if now - self._handshake_since >= limits.handshake_seconds:
                self._abort("handshake", "did not end its TLS handshake", limits.handshake_seconds)
        elif self._answers.unread:
            if now - self._answers.since >= limits.unread_seconds:
                self._abort("unread", "does not read its answers", limits.unread_seconds)
        elif self._owed or self._held or self._state is not _OPEN:
            pass  # it waits for us
        elif self._partial_since is not None:
            if now - self._partial_since >= limits.frame_seconds:
                self._abort("frame", "stopped in the middle of a frame", limits.frame_seconds)
        elif limits.idle_seconds and now - self.heard >= limits.idle_seconds:
            self.factory.counts.closed["idle"] += 1
            self.end()

    @property
    def unread(self) -> int:
        """Bytes of answers that the peer has not read."""
        return self._answers.unread

    def abort_unread(self) -> None:
        """Abort, for the sake of the others: all peers together leave too much unread."""
        self._abort("unread", f"leaves {self.unread} bytes unread, most of all")

    def _abort(self, reason: str, why: str, seconds: float = 0.0) -> None:
        self.factory.counts.closed[reason] += 1
        after = f" ({seconds:g} s)" if seconds else ""
        self.factory.note("were aborted", self, f"it {why}{after}")
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
