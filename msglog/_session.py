"""
One client's side of the protocol, without I/O.

Theory of operation.  A client's messages stand in one line.  Those at its front were sent and are
not acknowledged (I{in flight}, at most a window of them), the others I{wait}.  A message has no
sequence of its own: it is the client's next after the last acknowledged one, so that when a
message is refused for good, the next one takes its sequence, as the protocol wants it.  Every frame
sent on a connection has one answer there, and in order; so the next answer is always about the
first message that was sent there, and a stretch of acknowledgements is checked by comparing its
bytes with the receipts expected.

After a NACK nothing is sent until the answers to what was sent behind it have come (they say
OUT_OF_ORDER); then the session goes back to the first message in flight.  After a reconnect it asks
(ENQUIRY), and sends everything in flight again: that gets each its receipt, and the server, which
compares, takes nothing twice.  What is too old for the server to compare is not sent again but
taken I{on trust}: the TERMS, which say that it is durable, are its receipt as soon as the server
has acknowledged the message behind it, for then it was this client who wrote there, and not another
one under the same id.

============  ==========================================================================
OFFLINE       no connection
ASKING        an ENQUIRY is sent, its TERMS are not there
SENDING       messages go out and receipts come in
DRAINING      a message was refused; the answers behind it are awaited and dropped
PAUSED        the server cannot store at the moment; C{retry} goes on
LEAVING       this connection is of no more use; the shell closes it
FAILED        nothing can be sent any more, on any connection; C{failure} says why
============  ==========================================================================

========  =========================  ==========================================================
from      what                       to
========  =========================  ==========================================================
OFFLINE   connected                  ASKING
ASKING    TERMS                      SENDING; FAILED if they contradict what we know
SENDING   a NACK                     DRAINING (CORRUPT, TOO_LONG, NOT_STORED), LEAVING
                                     (UNAVAILABLE), FAILED (others)
DRAINING  the last answer behind it  by the NACK: SENDING (CORRUPT, TOO_LONG), PAUSED
PAUSED    retry                      SENDING
any       no answer of the protocol  LEAVING
any       disconnected               OFFLINE; FAILED stays
========  =========================  ==========================================================
"""

from __future__ import annotations

import enum
from collections import deque
from collections.abc import Iterable
from typing import Any
from uuid import UUID

from attrs import define, frozen

from ._batch import MAX_SEQUENCE, NackCode
from ._counted import counted
from ._errors import NotLogged, SessionFailed
from ._frames import (
    FRAME_BYTES,
    MESSAGE,
    PROTOCOL_VERSION,
    Ack,
    Nack,
    Terms,
    decode_answers,
    encode_acks,
    encode_enquiry,
    encode_messages,
)

__all__ = ["Delivered", "Message", "Refused", "Session", "State"]

# How often a message may arrive damaged before another connection is tried: once is an accident,
# three times in a row is a broken network card.
_MAX_CORRUPT = 3


@define(slots=True, eq=False)
class Message:
    """
    A message on its way.

    @ivar body: the message.
    @ivar waiter: who waits for its receipt, if anybody does.
    @ivar place: where it is kept, for the one who keeps it.
    """

    body: bytes
    waiter: Any = None
    place: int = 0


@frozen(slots=True)
class Delivered:
    """
    Event: messages are durable.

    @ivar first: the sequence of the first of them.
    @ivar checksums: their receipts'.
    """

    first: int
    messages: list[Message]
    checksums: list[int]


@frozen(slots=True)
class Refused:
    """Event: a message will not be logged; those behind it go on."""

    message: Message
    error: NotLogged


Event = Delivered | Refused


class State(enum.Enum):
    OFFLINE = enum.auto()
    ASKING = enum.auto()
    SENDING = enum.auto()
    DRAINING = enum.auto()
    PAUSED = enum.auto()
    LEAVING = enum.auto()
    FAILED = enum.auto()


# What becomes of a session when all the answers behind a NACK have come.
_AFTER_NACK = {
    NackCode.CORRUPT: State.SENDING,
    NackCode.TOO_LONG: State.SENDING,
    NackCode.NOT_STORED: State.PAUSED,
    NackCode.UNAVAILABLE: State.LEAVING,
    NackCode.MALFORMED: State.FAILED,
    NackCode.OUT_OF_ORDER: State.FAILED,
    NackCode.FORBIDDEN: State.FAILED,
    NackCode.CONFLICT: State.FAILED,
}


class Session:
    """
    @param client: the client id.
    @param first: the sequence of the first message to come; L{None} if that is known to the server
        alone, which is asked then.
    @param window: how many messages may be in flight, if the server's window is not smaller.
    @param highest: the highest sequence that may have been sent under this id before.
    @param kept: whether messages are kept somewhere by their order.  Nothing is sent behind one
        that was refused, then, until L{removed} says that it is gone from there: found again after
        a kill, it would shift the sequences of all that follow.

    @ivar window: how many messages may be in flight, by what is known of the server.
    @ivar state: see above.
    @ivar failure: why nothing can be sent any more.
    @ivar trouble: why there is no progress at the moment, for people; empty if there is.
    @ivar max_body: the longest body that the server takes; L{None} before its first TERMS.
    """

    def __init__(
        self,
        client: UUID,
        first: int | None = 1,
        window: int = 1024,
        highest: int = 0,
        *,
        kept: bool = False,
    ) -> None:
        self.client = client
        self._id = client.bytes
        self._first = first or 0
        self._highest = highest
        self._own_window = window
        self.window = window
        self.max_body: int | None = None
        self._kept = kept
        self._removing = False  # what was refused is not gone yet
        self.state = State.OFFLINE
        self.failure: SessionFailed | None = None
        self.trouble = ""
        self._waiting: deque[Message] = deque()
        self._in_flight: list[Message] = []
        self._trusted = 0  # how many at the front of those in flight are taken on trust
        self._heads: list[bytes] = []  # of those behind them that were sent on this connection
        self._durable = 0  # the last durable sequence, by the TERMS of this connection
        self._oldest = 0  # the oldest sequence that the server can compare, by the same
        self._nack: Nack | None = None  # the refusal behind which answers are drained
        self._stale = 0  # answers still to come behind it
        self._corrupt = 0  # refusals for damage since the last progress
        self._rest = b""
        self._enquiry = b""
        self._events: list[Event] = []

    # --- the caller's side -----------------------------------------------------------------

    def submit(self, messages: Iterable[Message]) -> None:
        """Put messages at the end of the line."""
        self._waiting.extend(messages)

    def __len__(self) -> int:
        """How many messages are in flight or wait."""
        return len(self._in_flight) + len(self._waiting)

    @property
    def room(self) -> int:
        """How many more messages could be sent at once, if they were there."""
        return max(self._trusted + self.window - len(self), 0)

    @property
    def online(self) -> bool:
        """Whether the server has said its terms on this connection."""
        return self.state in (State.SENDING, State.DRAINING, State.PAUSED)

    @property
    def awaiting(self) -> bool:
        """Whether the server owes an answer."""
        return self.state is State.ASKING or bool(self._heads)

    @property
    def _next(self) -> int:
        """The sequence that the next answer is about."""
        return self._first + self._trusted

    @property
    def _listening(self) -> bool:
        return self.online or self.state is State.ASKING

    def abandon(self) -> list[Message]:
        """Take out everything that has no answer: the client is closed."""
        messages = self._in_flight + list(self._waiting)
        self._in_flight, self._heads, self._trusted = [], [], 0
        self._waiting.clear()
        return messages

    # --- the connection's side -------------------------------------------------------------

    def connected(self) -> None:
        """There is a new connection."""
        if self.state is not State.FAILED:
            self.state = State.ASKING
            self._enquiry = encode_enquiry(self._id)

    def disconnected(self, why: str) -> None:
        """The connection is gone, or there was none to be had."""
        self.trouble = self.trouble or why
        self._rest = self._enquiry = b""
        self._heads = []
        self._trusted = 0
        if self.state is not State.FAILED:
            self.state = State.OFFLINE

    def retry(self) -> None:
        """Try again to have stored what the server could not store."""
        if self.state is State.PAUSED:
            self.state = State.SENDING

    def receive(self, data: bytes) -> bool:
        """
        Take what the server sent.

        @return: whether there was a whole answer in it.
        """
        if not self._listening:
            return False
        if self._rest:
            data = self._rest + data
        at = self._take_acks(data) if self.state is State.SENDING else 0
        if at < len(data):
            rest = data[at:] if at else data
            end = 0
            try:
                for answer, after in decode_answers(rest):
                    end = after
                    self._take(answer)
                    if not self._listening:
                        break
            except ValueError as e:
                self._leave(f"what answers there does not speak msglog's protocol: {e}")
            at += end
        self._rest = data[at:]
        return at > 0

    def proceed(self) -> tuple[bytes, list[Event]]:
        """What is to be written now, and what became of messages since the last call."""
        data, self._enquiry = self._enquiry, b""
        if self.state is State.SENDING:
            data += self._send()
        events, self._events = self._events, []
        return data, events

    # --- sending ---------------------------------------------------------------------------

    def _send(self) -> bytes:
        """The frames of what may be in flight and was not sent on this connection yet."""
        self._line_up()
        if self._removing:
            return b""
        at, longest = self._trusted + len(self._heads), self.max_body or 0
        bodies: list[bytes] = []
        for message in self._in_flight[at : self._trusted + self.window]:
            if len(message.body) > longest:
                break  # settled when it is at the front, so that all are settled in order
            bodies.append(message.body)
        if not bodies:
            return b""
        first = self._first + at
        last = first + len(bodies) - 1
        if last > MAX_SEQUENCE:
            self._fail(f"client {self.client} has used all its sequences: take a new client id")
            return b""
        data, heads = encode_messages(self._id, first, bodies)
        self._heads += heads
        self._highest = max(self._highest, last)
        return data

    def _line_up(self) -> None:
        """Bring into flight what may be, and settle at its front what cannot be sent."""
        while not self._removing:
            if not self._heads:
                self._trusted = min(max(self._oldest - self._first, 0), len(self))
            room = self._trusted + self.window - len(self._in_flight)
            for _ in range(min(room, len(self._waiting))):
                self._in_flight.append(self._waiting.popleft())
            if self._heads or len(self._in_flight) == self._trusted:
                return
            size, longest = len(self._in_flight[self._trusted].body), self.max_body or 0
            if size <= longest:
                return
            if self._first + self._trusted <= self._durable:
                # The server took it when it took longer ones, and cannot be asked to compare it.
                self._deliver_by_terms(self._trusted + 1)
            else:
                self._refuse(f"its {size} bytes are over the server's maximum of {longest}")

    def _refuse(self, reason: str) -> None:
        """What is at the front of the line is not logged: the next message takes its sequence."""
        self._events.append(Refused(self._in_flight.pop(0), NotLogged(reason, False)))
        self._highest = self._first - 1
        self.trouble = ""
        self._removing = self._kept

    def removed(self) -> None:
        """A message that was refused is gone for good from where it was kept."""
        self._removing = False

    # --- answers ---------------------------------------------------------------------------

    def _take_acks(self, data: bytes) -> int:
        """Take the receipts at the front of what came, if they are just those expected."""
        count = min(len(data) // FRAME_BYTES, len(self._heads))
        if not count or not data.startswith(encode_acks(self._heads[:count])):
            return 0
        self._deliver(count)
        return count * FRAME_BYTES

    def _deliver(self, count: int) -> None:
        """So many of the messages sent have their receipts, and what was on trust has proof."""
        if self._trusted:
            self._deliver_by_terms(self._trusted)
        heads = self._heads[:count]
        del self._heads[:count]
        self._take_out(heads)

    def _deliver_by_terms(self, count: int) -> None:
        """So many messages at the front have the TERMS for a receipt."""
        bodies = [message.body for message in self._in_flight[:count]]
        _, heads = encode_messages(self._id, self._first, bodies)
        self._trusted = 0
        self._take_out(heads)

    def _take_out(self, heads: list[bytes]) -> None:
        count = len(heads)
        checksums = [int.from_bytes(head[:4], "big") for head in heads]
        self._events.append(Delivered(self._first, self._in_flight[:count], checksums))
        del self._in_flight[:count]
        self._first += count
        self._corrupt = 0
        self.trouble = ""

    def _take(self, answer: Ack | Nack | Terms) -> None:
        if self.state is State.ASKING:
            self._take_first(answer)
        elif self.state is State.DRAINING:
            # Whatever it says is about a message that is sent again.
            self._stale -= 1
            self._end_draining()
        elif not self._heads:
            self._leave("the server answered what was not asked")
        elif isinstance(answer, Ack):
            if self._heads[0] != _head(answer):
                self._leave(
                    f"the server's receipt {answer.sequence} is not for the message that was sent"
                )
            else:
                self._deliver(1)
        elif isinstance(answer, Nack):
            named = answer.sequence in (0, self._next) or answer.code is NackCode.CORRUPT
            if not named:
                self._leave(f"the server refused sequence {answer.sequence} out of turn")
                return
            self._nack = answer
            self._stale = len(self._heads) - 1
            self.state = State.DRAINING
            self.trouble = f"{answer.code.name}: {answer.reason}"
            self._end_draining()
        else:
            self._leave("the server answered a message with its terms")

    def _end_draining(self) -> None:
        """Do what the NACK asks for, when no more answers are to come."""
        nack = self._nack
        assert nack is not None
        # Where nothing is sent on this connection any more, what it still says matters to nobody;
        # and a CONFLICT must not be forgotten if the connection is lost before all of that came.
        if self._stale and _AFTER_NACK[nack.code] in (State.SENDING, State.PAUSED):
            return
        self._nack = None
        self._heads = []
        self.state = _AFTER_NACK[nack.code]
        if nack.code is NackCode.OUT_OF_ORDER and not 0 < nack.expected < self._next:
            self._leave(f"the server refused sequence {self._next} and expects {nack.expected}")
        elif self.state is State.FAILED:
            self._fail(self._explain(nack))
        elif nack.code is NackCode.TOO_LONG:
            if self._next <= self._durable:
                self._leave(f"the server says that sequence {self._next} is logged and too long")
            else:
                self._refuse(nack.reason)
        elif nack.code is NackCode.CORRUPT:
            self._corrupt += 1
            if self._corrupt >= _MAX_CORRUPT:
                self._corrupt = 0
                self._leave(f"{_MAX_CORRUPT} times in a row a message arrived damaged")

    def _explain(self, nack: Nack) -> str:
        who = f"client {self.client}, sequence {self._next}"
        said = f'the server said {nack.code.name}: "{nack.reason}"'
        if nack.code is NackCode.CONFLICT:
            return (
                f"{who}: {said}. Somebody else writes under this client id, or its counter was "
                f"reset: take a new client id"
            )
        if nack.code is NackCode.OUT_OF_ORDER:
            return self._lost(nack.expected - 1)
        if nack.code is NackCode.FORBIDDEN:
            return f"{who}: {said}. Ask the operator who may write under this id"
        return f"{who}: {said}. This is a defect of the client, or the server is none of msglog's"

    def _lost(self, durable: int) -> str:
        return (
            f"client {self.client}: the server has acknowledged sequence {self._first - 1}, and "
            f"now its last is {durable}. Its log was set back or lost, or this is another server "
            f"with a log of its own: look into that, then take a new client id"
        )

    # --- terms -----------------------------------------------------------------------------

    def _take_first(self, answer: Ack | Nack | Terms) -> None:
        """The answer to the ENQUIRY."""
        if isinstance(answer, Nack):
            if answer.code is NackCode.MALFORMED:
                self._fail(self._explain(answer))
            else:
                self._leave(f"{answer.code.name}: {answer.reason}")
        elif not isinstance(answer, Terms) or answer.client != self._id:
            self._leave("the server answered something else than it was asked")
        elif answer.version != PROTOCOL_VERSION:
            self._fail(f"the server wants to speak version {answer.version} of the protocol")
        else:
            self._agree(answer)

    def _agree(self, terms: Terms) -> None:
        if not self._first:
            self._first = terms.durable + 1
        if terms.durable < self._first - 1:
            self._fail(self._lost(terms.durable))
            return
        last = max(self._first - 1, self._highest)
        if terms.durable > last:
            self._fail(
                f"client {self.client} has sent {counted(last, 'message')} at most, and the server "
                f"has {terms.durable}: somebody else writes under this id. Take a new client id"
            )
            return
        self.max_body = terms.max_body
        self.window = max(min(self._own_window, terms.window), 1)
        self._durable = terms.durable
        self._oldest = terms.durable - max(terms.window, 1) + 1
        self.state = State.SENDING
        if not len(self):
            self.trouble = ""

    # --- ends ------------------------------------------------------------------------------

    def _leave(self, reason: str) -> None:
        self.state = State.LEAVING
        self.trouble = reason

    def _fail(self, reason: str) -> None:
        self.state = State.FAILED
        self.failure = SessionFailed(reason, False)
        self.trouble = reason


def _head(answer: Ack) -> bytes:
    """The header of the message that an ACK is a receipt for."""
    checksum, sequence = answer.checksum.to_bytes(4, "big"), answer.sequence.to_bytes(8, "big")
    return b"%b%c%b%b" % (checksum, MESSAGE, answer.client, sequence)
