"""
What a client has on hand, without I/O: what its callers handed over, and whoever waits for it.

::

    put ──> line ──> Session ──> receipts, to whoever waits for them

The three clients (Twisted, blocking, asyncio) are shells around this: they connect, read, write,
and watch the clock.  Where there is a spool, the line goes through it (L{SpooledOutbox}), and the
shells do its steps in a thread too.
"""

from __future__ import annotations

from copy import copy
from typing import Any
from uuid import UUID

from attrs import Factory, define
from uuid_utils.compat import uuid7

from ._batch import Receipt
from ._counted import counted
from ._errors import NotLogged, QueueFull, SpoolError, Unanswered
from ._limits import ClientLimits
from ._session import Delivered, Message, Session
from ._spool import Marks, Step

__all__ = ["MESSAGE_COST", "Outbox", "Outcomes", "Result"]

# What whoever waits is told: a receipt or why there is none; of the spool, None when it has it.
Result = Receipt | NotLogged | SpoolError | None

# What holding a message costs besides twice its body (once here, once in a transport): 350 bytes
# with a Deferred or an asyncio Future, 1900 with a concurrent Future (resident, on CPython 3.11).
MESSAGE_COST = 2048


@define(slots=True, eq=False)
class Outcomes:
    """
    Who is to be told what, each at the same place of two lists (a pair of each would be one more
    thing for the garbage collector to look through).  The shell tells them when its state is in
    order and no lock is held.

    @ivar unheard: refusals of messages that nobody waits for; the shell has them in its log.
    """

    waiters: list[Any] = Factory(list)
    results: list[Result] = Factory(list)
    unheard: list[NotLogged] = Factory(list)

    def tell(self, waiter: Any, result: Result) -> None:
        """Have somebody told, if there is anybody."""
        if waiter is not None:
            self.waiters.append(waiter)
            self.results.append(result)

    def tell_error(self, waiter: Any, error: NotLogged | SpoolError) -> None:
        """
        The same of an error that several are told: each has its own, for to raise an exception
        adds to its traceback, which keeps alive what it was raised through.
        """
        if waiter is not None:
            self.tell(waiter, copy(error))


class Outbox:
    """
    @param limits: see L{ClientLimits}.
    @param client: the client id; a new one if not given.
    @ivar session: the protocol's side.
    @ivar refused: how many messages the server did not take, for good.
    """

    def __init__(self, limits: ClientLimits, client: UUID | None = None) -> None:
        # A client id that was used before has a past that the server knows.
        first = 1 if client is None else None
        self._begin(limits, Session(client or uuid7(), first, limits.window), 0)

    def _begin(self, limits: ClientLimits, session: Session, handed_over: int) -> None:
        self._limits = limits
        self.session = session
        self._closed = False
        self._messages = 0  # held in memory, or waited for
        self._bytes = 0  # what these cost
        self._handed_over = handed_over  # how many messages ever were
        self._settled = 0  # how many of these are durable or refused
        self.refused = 0  # how many were refused

    # --- the callers' side -----------------------------------------------------------------

    def has_room(self, size: int = 0) -> bool:
        """Whether a message of this size would be taken now."""
        return self._messages < self._limits.pending_messages and (
            not self._messages
            or self._bytes + MESSAGE_COST + 2 * size <= self._limits.pending_bytes
        )

    def put(
        self,
        body: bytes,
        waiter: Any = None,
        spooled: Any = None,
        marks: Marks | None = None,
    ) -> None:
        """
        Take a message.

        @param waiter: is told what became of it, its receipt or L{NotLogged}.
        @param spooled: is told when it is in the spool (L{None}), or why it is not.
        @param marks: what the spool should remember together with it.
        @raise NotLogged: it is not taken: the client is closed or has failed, the message is
            longer than the server takes, or there is no room (L{QueueFull}).
        @raise TypeError: it is not bytes.
        @raise ValueError: a mark is a number that the spool cannot hold.
        """
        self._check(body)
        if self.session.failure is not None:
            raise copy(self.session.failure)
        self._hold(len(body))
        self.session.submit((Message(body, waiter),))

    def _hold(self, size: int) -> None:
        self._messages += 1
        self._bytes += MESSAGE_COST + 2 * size
        self._handed_over += 1

    def _check(self, body: bytes) -> None:
        if not isinstance(body, bytes):
            # Said here, where the caller is; text would come to grief in the connection's thread.
            raise TypeError(f"a message is bytes, not {type(body).__name__}")
        if self._closed:
            raise NotLogged("the client is closed", False)
        longest = self.session.max_body
        if longest is not None and len(body) > longest:
            raise NotLogged(
                f"its {len(body)} bytes are over the server's maximum of {longest}", False
            )
        if not self.has_room(len(body)):
            raise QueueFull(self._full(), True)

    def _full(self) -> str:
        trouble = self.session.trouble
        waiting = counted(
            self._messages,
            "message waits for its receipt and holds",
            "messages wait for their receipts and hold",
        )
        return (
            f"{waiting} {self._bytes} bytes, "
            f"which is the most that this client may{': ' + trouble if trouble else ''}"
        )

    @property
    def handed_over(self) -> int:
        """A point in the line: behind everything that was handed over so far."""
        return self._handed_over

    def settled_up_to(self, point: int) -> bool:
        """Whether everything up to a point in the line is settled."""
        return self._settled >= min(point, self._handed_over)

    @property
    def unsettled(self) -> int:
        """How many messages are not settled."""
        return self._handed_over - self._settled

    # --- the connection's side -------------------------------------------------------------

    def proceed(self) -> tuple[bytes, Outcomes]:
        """What is to be written to the connection, and who is to be told."""
        data, events = self.session.proceed()
        outcomes = Outcomes()
        for event in events:
            if isinstance(event, Delivered):
                self._deliver(event, outcomes)
                self._release(event.messages, len(event.messages))
            else:
                if event.message.waiter is None:
                    outcomes.unheard.append(event.error)
                outcomes.tell(event.message.waiter, event.error)
                self.refused += 1
                self._release([event.message], 0)
        if self.session.failure is not None:
            self._give_up(self.session.failure, outcomes)
        return data, outcomes

    def _deliver(self, event: Delivered, outcomes: Outcomes) -> None:
        client, sequence = self.session.client, event.first
        for message, checksum in zip(event.messages, event.checksums, strict=True):
            if message.waiter is not None:
                outcomes.tell(message.waiter, Receipt(client, sequence, checksum))
            sequence += 1

    def _release(self, messages: list[Message], sequences: int) -> None:
        """Messages are settled, of which so many are logged."""
        self._settled += len(messages)
        self._messages -= len(messages)
        self._bytes -= sum(MESSAGE_COST + 2 * len(message.body) for message in messages)

    def _give_up(self, error: NotLogged, outcomes: Outcomes) -> None:
        """Tell everybody who waits that there will be no receipt."""
        for message in self.session.abandon():
            outcomes.tell_error(message.waiter, error)
        self._messages = self._bytes = 0
        self._settled = self._handed_over

    def end(self) -> None:
        """Take nothing more; what was handed over goes on."""
        self._closed = True

    def close(self) -> Outcomes:
        """Take nothing more, and tell everybody who still waits.  No step may be under way."""
        self._closed = True
        outcomes = Outcomes()
        why = self.session.trouble or "there was no answer in time"
        self._give_up(Unanswered(f"the client was closed ({why}){self._rest()}", False), outcomes)
        return outcomes

    def _rest(self) -> str:
        """What becomes of messages without an answer."""
        return ", so it is not known whether it is logged"

    # --- the spool's side ------------------------------------------------------------------

    def step(self) -> Step | None:
        """The spool's next step, if there is anything to do and none is under way."""
        return None

    def try_again(self) -> bool:
        """Have a step done again after one that failed; whether there is a reason to."""
        return False

    def stepped(self, step: Step) -> Outcomes:
        """Take a step that was done; who is to be told."""
        return Outcomes()
