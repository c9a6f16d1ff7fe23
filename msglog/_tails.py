"""
All clients' ends of one stream: their requests to the engine, and its answers.

Each client has a L{ClientTail}, which knows what to request next.  Here it is brought to the engine
and the answer back; so many are under way at a time, and none while the engine is away.  Who has
nothing to do is remembered as long as there is memory for it.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from typing import Any, Protocol

from twisted.internet.interfaces import IDelayedCall
from twisted.logger import Logger

from ._batch import NackCode
from ._jetstream import (
    AppendOutcome,
    EngineError,
    Reply,
    StreamDamaged,
    append_headers,
    get_request,
    get_subject,
    read_append,
    read_stored,
    tail_request,
)
from ._limits import Limits
from ._nats_link import ILink
from ._shards import StreamShard
from ._stream_counts import StreamCounts
from ._stream_health import StreamHealth
from ._tail import Append, ClientTail, Confirm, ReadEarlier, ReadTail, Request, Unsettled

__all__ = ["IAppender", "Tails"]

# Before a client's tail is read again when that makes sense only after a while.
_RETRY_SECONDS = 0.2


class IAppender(Protocol):
    """For whom appends are made."""

    def next_time(self) -> bytes:
        """What the lines that are appended now say."""

    def stored(self, request: Append, seconds: float) -> None:
        """An append is durable; it took so long."""

    def no_room(self) -> None:
        """An append was not taken for want of room."""

    def rested(self) -> None:
        """A client has nothing under way any more."""


class Tails:
    """
    @param reactor: for time.
    @param shard: which stream.
    @param link: what brings requests there.
    @param limits: see L{Limits}; of requests and memory, this stream has its share.
    @param health: what is known of the stream.
    @param counts: where to count requests, and what becomes of them.
    @param appender: for whom this is.
    @ivar memory: what the clients hold that are remembered, bytes.
    """

    _log = Logger()

    def __init__(
        self,
        reactor: Any,
        shard: StreamShard,
        link: ILink,
        limits: Limits,
        health: StreamHealth,
        counts: StreamCounts,
        appender: IAppender,
    ) -> None:
        self._reactor = reactor
        self._seconds: Callable[[], float] = reactor.seconds
        self._shard = shard
        self._stream = shard.name
        self._get_subject = get_subject(shard.name)
        self._most = max(limits.store_requests // shard.count, 1)
        self._most_memory = limits.ledger_memory // shard.count
        self._link = link
        self._limits = limits
        self._health = health
        self._counts = counts
        self._appender = appender
        self._tails: OrderedDict[bytes, ClientTail] = OrderedDict()
        self._busy: set[ClientTail] = set()
        self._ready: dict[ClientTail, None] = {}
        self._parked: list[ClientTail] = []
        self._in_flight = 0
        self._pumping: IDelayedCall | None = None
        self._unparking: IDelayedCall | None = None
        self.memory = 0

    def __len__(self) -> int:
        return len(self._tails)

    @property
    def busy(self) -> bool:
        """Whether anything is not judged."""
        return bool(self._busy)

    @property
    def waiting_since(self) -> float | None:
        """When what has waited longest came; L{None} if nothing waits."""
        waiting = [tail.waiting_since for tail in self._busy]
        return min((since for since in waiting if since is not None), default=None)

    def wait(self, client: bytes, entry: Unsettled) -> None:
        """Put a batch or a question at the end of its client's line."""
        tail = self._tails.get(client)
        if tail is None:
            tail = self._tails[client] = ClientTail(client, self._limits.window, self._counts)
            tail.subject = self._shard.subject_of(client)
        else:
            self._tails.move_to_end(client)
        tail.add(entry)
        self._busy.add(tail)
        if not tail.requested and not tail.parked:
            self._make_ready(tail)

    # --- requests --------------------------------------------------------------------------

    def go_on(self) -> None:
        """Send what waits, if it may be sent."""
        if self._ready and self._pumping is None and self._can_send():
            # At the end of this turn of the reactor, with what else arrives in it.
            self._pumping = self._reactor.callLater(0, self._pump)

    def _make_ready(self, tail: ClientTail) -> None:
        self._ready[tail] = None
        self.go_on()

    def _can_send(self) -> bool:
        return not self._health.away and self._in_flight < self._most

    def _pump(self) -> None:
        self._pumping = None
        while self._ready and self._can_send():
            tail = next(iter(self._ready))
            del self._ready[tail]
            self._advance(tail)

    def _advance(self, tail: ClientTail) -> None:
        request = tail.proceed(self._appender.next_time())
        if request is not None:
            self._in_flight += 1
            self._send(tail, request)
        self._answer(tail)
        if tail.idle:
            self._rest(tail)

    def _send(self, tail: ClientTail, request: Request) -> None:
        if isinstance(request, Confirm):
            self._health.confirm(lambda sure: self._confirmed(tail, sure))
            return
        sent = self._seconds()
        self._counts.begun[request.kind] += 1
        if isinstance(request, Append):
            self._link.request(
                tail.subject,
                request.payload,
                append_headers(self._stream, request.previous, request.first, request.last),
                lambda reply: self._appended(tail, request, sent, reply),
            )
            return
        if isinstance(request, ReadTail):
            body = tail_request(tail.subject)
        else:
            body = get_request(request.sequence)
        self._link.request(
            self._get_subject, body, None, lambda reply: self._read(tail, request, sent, reply)
        )

    # --- answers ---------------------------------------------------------------------------

    def _appended(self, tail: ClientTail, request: Append, sent: float, reply: Reply) -> None:
        result = read_append(reply, self._stream, request.previous)
        seconds = max(self._seconds() - sent, 0.0)
        self._counts.done(request.kind, seconds, reply.data)
        tail.appended(result)
        if result.answered:
            self._health.answered()
        else:
            self._health.silent(result.reason)
        if result.outcome is AppendOutcome.STORED:
            self._counts.batches.note(request.batches)
            self._health.stored()
            self._appender.stored(request, seconds)
        elif result.outcome is AppendOutcome.NO_ROOM:
            self._health.no_room(result.reason)
            self._appender.no_room()
        # Once at once, for it may only be that another server was first.
        self._answered(tail, later=not result.answered or tail.uncertain > 1)

    def _read(
        self, tail: ClientTail, request: ReadTail | ReadEarlier, sent: float, reply: Reply
    ) -> None:
        self._counts.done(request.kind, self._seconds() - sent, reply.data)
        later = False
        try:
            message = read_stored(reply, tail.client, tail.subject)
        except EngineError as e:
            tail.unread()
            self._health.silent(str(e))
            later = True
        except StreamDamaged as e:
            tail.unread()
            reason = self._health.damaged(e)
            self._counts.refused["damaged"] += tail.refuse_all(NackCode.NOT_STORED, reason)
        else:
            self._health.answered()
            if isinstance(request, ReadEarlier):
                tail.earlier_read(message)
            elif not tail.tail_read(message, self._seconds()):
                later = True
                since = tail.behind_since
                assert since is not None
                self._health.behind(since, tail.last, message.last if message else 0)
        self._answered(tail, later=later)

    def _confirmed(self, tail: ClientTail, sure: bool) -> None:
        tail.confirmed(sure)
        self._answered(tail, later=not sure)

    def _answered(self, tail: ClientTail, *, later: bool) -> None:
        """A request of a tail was answered."""
        self._in_flight -= 1
        if tail.idle:
            self._rest(tail)
        elif later:
            tail.parked = True
            self._parked.append(tail)
            if self._unparking is None:
                self._unparking = self._reactor.callLater(_RETRY_SECONDS, self._unpark)
        else:
            self._make_ready(tail)
        self.go_on()
        self._answer(tail)

    def _unpark(self) -> None:
        self._unparking = None
        parked, self._parked = self._parked, []
        for tail in parked:
            tail.parked = False
            self._make_ready(tail)

    def _answer(self, tail: ClientTail) -> None:
        for judged, answer in tail.answers():
            try:
                judged(answer)
            except Exception:
                self._log.failure("a verdict was not taken by what had asked for it")

    # --- the end of waiting ----------------------------------------------------------------

    def refuse_all(self, code: NackCode, why: str, reason: str) -> None:
        """Let nothing wait any longer; C{why} is a word to count it."""
        for tail in list(self._busy):
            self._refuse(tail, code, why, reason)

    def refuse_late(self) -> None:
        """Let nothing wait longer than C{store_wait_seconds}."""
        limit = self._limits.store_wait_seconds
        due = self._seconds() - limit
        for tail in list(self._busy):
            since = tail.waiting_since
            if since is not None and since <= due:
                reason = self._health.told or "it is slow"
                self._refuse(
                    tail,
                    NackCode.UNAVAILABLE,
                    "late",
                    f"not stored within {limit:g} s: {reason}; whether it will be is not known",
                )

    def _refuse(self, tail: ClientTail, code: NackCode, why: str, reason: str) -> None:
        self._counts.refused[why] += tail.refuse_all(code, reason)
        self._answer(tail)
        if tail.idle and not tail.parked:
            self._ready.pop(tail, None)
            self._rest(tail)

    def _rest(self, tail: ClientTail) -> None:
        """A tail has nothing to do; if memory is short, the least recently active are forgotten."""
        self._busy.discard(tail)
        if not tail.wrote:
            self._forget(tail)
        else:
            self.memory += tail.memory - tail.counted
            tail.counted = tail.memory
        while self.memory > self._most_memory and self._tails:
            oldest = next(iter(self._tails.values()))
            if oldest in self._busy:
                break
            self._forget(oldest)
        self._appender.rested()

    def _forget(self, tail: ClientTail) -> None:
        self.memory -= tail.counted
        tail.counted = 0
        if self._tails.get(tail.client) is tail:
            del self._tails[tail.client]

    def close(self) -> None:
        """Leave no timer; nothing may be under way."""
        for call in (self._pumping, self._unparking):
            if call is not None:
                call.cancel()
        self._pumping = self._unparking = None
        self._ready.clear()
        self._parked.clear()
