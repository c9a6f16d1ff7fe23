"""An outbox whose line goes through a spool."""

from __future__ import annotations

from copy import copy
from typing import Any
from uuid import UUID

from attrs import define

from ._errors import NotLogged, SpoolError
from ._limits import ClientLimits
from ._outbox import MESSAGE_COST, Outbox, Outcomes
from ._session import Message, Session
from ._spool import Marks, Spool, Step

__all__ = ["SpooledOutbox"]


@define(slots=True, eq=False)
class _Entry:
    """A message on its way into the spool."""

    body: bytes
    waiter: Any
    spooled: Any
    marks: Marks


class SpooledOutbox(Outbox):
    """
    ::

        put ──> adding ──> the spool's step ──> in the spool ──> the spool's step ──> Session

    Messages are held in memory while they are on their way into the spool and, a window of them,
    when they are on their way to the server.  In between there is only who waits for them.

    @param client: must be the spool's, if given.
    @raise SpoolError: it is not.
    """

    def __init__(self, limits: ClientLimits, spool: Spool, client: UUID | None = None) -> None:
        if client is not None and client != spool.client:
            raise SpoolError(
                f"the spool {spool.path} belongs to client {spool.client}, not {client}"
            )
        highest = spool.first + spool.count - 1
        session = Session(spool.client, spool.first, limits.window, highest, kept=True)
        self._begin(limits, session, spool.count)
        self._spool = spool
        self._adding: list[_Entry] = []
        self._adding_size = 0
        self._entries: list[_Entry] = []  # of the step under way
        self._step: Step | None = None
        self._stuck = False  # the last step failed
        self._waiting: dict[int, Any] = {}  # for messages in the spool, by their place
        self._size = spool.size  # of what is in the spool, when the last step was done
        self._last = spool.last  # the place of the last message in it
        self._read = 0  # the place of the last message that was read from it
        self._through = 0  # the place of the last message that it need not keep
        self._refused = 0  # the place of the last message that was refused and is not removed
        self._sequences = 0  # how many sequences those used up
        # Before there is a connection: what an earlier life had in flight must be known by then.
        self._take_rows(spool.do(Step(read=limits.window)))

    # --- the callers' side -----------------------------------------------------------------

    def has_room(self, size: int = 0) -> bool:
        """See L{Outbox.has_room}; the spool must have room too."""
        spooled = self._size + self._adding_size
        return (not spooled or spooled + size <= self._limits.spool_bytes) and super().has_room(
            size
        )

    def put(
        self,
        body: bytes,
        waiter: Any = None,
        spooled: Any = None,
        marks: Marks | None = None,
    ) -> None:
        """
        See L{Outbox.put}.

        A client that has failed still takes what nobody waits for: the spool keeps it for another
        client id.
        """
        self._check(body)
        for key, value in (marks or {}).items():
            if value is not None and not -(2**63) <= value < 2**63:
                raise ValueError(f"the mark {key} is not a number of 64 bits: {value}")
        if self.session.failure is not None and waiter is not None:
            raise copy(self.session.failure)
        self._hold(len(body))
        self._adding.append(_Entry(body, waiter, spooled, marks or {}))
        self._adding_size += len(body)

    def _full(self) -> str:
        if super().has_room():
            trouble = self.session.trouble
            return (
                f"the spool {self._spool.path} holds {self._size} bytes of messages, which is the "
                f"most that it may{': ' + trouble if trouble else ''}"
            )
        return super()._full()

    def _rest(self) -> str:
        return f"; the spool {self._spool.path} keeps it, and the next client with it sends it"

    # --- settling --------------------------------------------------------------------------

    def _release(self, messages: list[Message], sequences: int) -> None:
        self._settled += len(messages)
        self._forget(sum(message.waiter is not None for message in messages))
        self._through = messages[-1].place
        self._sequences += sequences
        if not sequences:
            self._refused = self._through

    def _forget(self, waiting: int) -> None:
        """So many are waited for no more."""
        self._messages -= waiting
        self._bytes -= MESSAGE_COST * waiting

    def _give_up(self, error: NotLogged, outcomes: Outcomes) -> None:
        waiting = [m.waiter for m in self.session.abandon() if m.waiter is not None]
        waiting += self._waiting.values()
        self._waiting.clear()
        for waiter in waiting:
            outcomes.tell_error(waiter, error)
        self._forget(len(waiting))
        self._settled = self._handed_over

    # --- the spool's side ------------------------------------------------------------------

    def step(self) -> Step | None:
        """See L{Outbox.step}."""
        if self._step is not None:
            return None
        read = self._to_read()
        if not self._adding and (self._stuck or not (self._through or read)):
            return None
        self._entries, self._adding = self._adding, []
        self._adding_size = 0
        step = Step(
            add=[entry.body for entry in self._entries],
            marks={key: entry.marks[key] for entry in self._entries for key in entry.marks},
            settled=self._sequences,
            through=self._through,
            durable=bool(self._refused),
            after=self._read,
            read=read,
        )
        self._size += sum(map(len, step.add))
        self._through = self._sequences = 0
        self._step = step
        return step

    def _to_read(self) -> int:
        if self.session.failure is not None or not (self._adding or self._last > self._read):
            return 0
        room = self.session.room
        # To read every few would cost a step for every few.
        return room if self._adding or room >= self.session.window // 4 else 0

    def try_again(self) -> bool:
        """See L{Outbox.try_again}."""
        stuck, self._stuck = self._stuck, False
        return stuck

    def stepped(self, step: Step) -> Outcomes:
        """See L{Outbox.stepped}."""
        self._step = None
        entries, self._entries = self._entries, []
        outcomes = Outcomes()
        self._size, self._last = self._spool.size, self._spool.last
        self._stuck = step.error is not None
        if step.error is not None:
            self.session.trouble = step.error.reason
        if len(step.added) == len(entries):
            self._added(step.added, entries, outcomes)
        else:
            assert step.error is not None
            self._not_added(step.error, entries, outcomes)
        if not step.removed:
            self._through = max(self._through, step.through)
            self._sequences += step.settled
        elif self._refused and step.through >= self._refused:
            self._refused = 0
            self.session.removed()
        self._take_rows(step)
        return outcomes

    def _added(self, places: range, entries: list[_Entry], outcomes: Outcomes) -> None:
        for place, entry in zip(places, entries, strict=True):
            self._bytes -= 2 * len(entry.body)
            if entry.waiter is None:
                self._forget(1)
            elif self.session.failure is not None:
                self._forget(1)
                outcomes.tell_error(entry.waiter, self.session.failure)
            else:
                self._waiting[place] = entry.waiter
            outcomes.tell(entry.spooled, None)

    def _not_added(self, error: SpoolError, entries: list[_Entry], outcomes: Outcomes) -> None:
        for entry in entries:
            self._bytes -= 2 * len(entry.body)
            outcomes.tell(entry.waiter, NotLogged(error.reason, True))
            outcomes.tell_error(entry.spooled, error)
        self._forget(len(entries))
        self._handed_over -= len(entries)

    def _take_rows(self, step: Step) -> None:
        if step.rows:
            self._read = step.rows[-1][0]
            self.session.submit(
                Message(body, self._waiting.pop(place, None), place) for place, body in step.rows
            )
        elif step.read and step.error is None:
            # All there was is gone, or it would be looked for again and again.
            self._read = self._spool.last
