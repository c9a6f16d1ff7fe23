"""
A store on a NATS JetStream stream, which any number of servers share (docs/distributed.md).

What waits for the engine is held by its connections' bounds, and refused UNAVAILABLE when it has
waited for C{store_wait_seconds}.  What comes when the engine has been away for that long is refused
at once, so that clients who know another server need not wait here.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from itertools import chain
from typing import Any

from twisted.application.service import Service
from twisted.internet.defer import Deferred, succeed
from twisted.internet.task import LoopingCall
from twisted.logger import Logger
from zope.interface import implementer

from ._batch import Batch, NackCode, Verdict
from ._counts import CommitCounts
from ._errors import StartError
from ._jetstream import Reply, info_subject
from ._last_lines import LINES_SHOWN
from ._limits import Limits
from ._nats_access import DEFAULT_STREAM, NatsAccess
from ._nats_link import ILink, NatsLink
from ._records import format_fragments, format_time
from ._recovery import Recovered
from ._shards import StreamShard, shard_of, shards_of
from ._store_figures import StoreFigures, commit_figures
from ._stream_counts import StreamCounts
from ._stream_figures import EngineState, read_stream_figures
from ._stream_health import StreamHealth, room
from ._tail import Append, Unsettled
from ._tails import Tails
from .interfaces import IStoreService

__all__ = ["NatsStore"]

# How long a start waits for the engine's first word.  It can do without; but a wrong name or
# password, or a stream that is not there, should end the start and not look like an outage.
_START_SECONDS = 3.0

# How often deadlines are looked at.
_TICK_SECONDS = 0.25


class _Part:
    """One stream of the store: its health, and the clients in it."""

    def __init__(
        self,
        reactor: Any,
        access: NatsAccess,
        shard: StreamShard,
        link: ILink,
        limits: Limits,
        store: NatsStore,
    ) -> None:
        self.shard = shard
        self.counts = StreamCounts()
        self.health = StreamHealth(
            reactor.seconds,
            access,
            shard,
            link,
            limits,
            self.counts,
            store.leave,
            lambda: self.tails.go_on(),
            lambda reason: self.tails.refuse_all(NackCode.NOT_STORED, "lost", reason),
        )
        self.tails = Tails(reactor, shard, link, limits, self.health, self.counts, store)

    def stalled(self, now: float) -> float:
        """For how long something waits, or the engine is away; 0 if neither is so."""
        since = self.tails.waiting_since
        return max(now - since if since is not None else 0.0, self.health.away_seconds)


@implementer(IStoreService)
class NatsStore(Service):
    """
    One JetStream stream, or several that share the clients.

    @param reactor: for the connection and time.
    @param access: the cluster, and who this is to it.
    @param stream: the stream's name; with shards, what they are called together.
    @param limits: see L{Limits}.
    @param shards: over how many streams the clients are spread.
    @param link: what brings requests there, instead of a connection.
    @param ask: asks once and waits, before the reactor runs, instead of over a connection.
    @param clock: seconds since 1970, for the lines' times.
    """

    name = "msglog-store"
    _log = Logger()

    def __init__(
        self,
        reactor: Any,
        access: NatsAccess,
        stream: str = DEFAULT_STREAM,
        limits: Limits | None = None,
        *,
        shards: int = 1,
        link: ILink | None = None,
        ask: Callable[[NatsAccess, str, bytes, float], Reply] | None = None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._reactor = reactor
        self._access = access
        self._stream = stream
        self._limits = limits = limits or Limits()
        self.window = limits.window
        self._link = link or NatsLink(reactor, access, limits.store_answer_seconds)
        self._ask = ask or _ask_once
        self._clock = clock
        self._counts = CommitCounts()
        self._parts = [
            _Part(reactor, access, shard, self._link, limits, self)
            for shard in shards_of(stream, shards)
        ]
        self._ticks = LoopingCall(self._tick)
        self._ticks.clock = reactor
        self._stopped: Deferred[None] | None = None
        self._stop_deadline = 0.0
        self._last_time = 0
        self._durable_time = 0.0
        # With enough lines for L{last_lines}; to split each into lines would cost as much as to
        # make it.
        self._last_payloads: list[bytes] = []

    # --- IStore ----------------------------------------------------------------------------

    def append(self, batch: Batch, judged: Callable[[Verdict], None]) -> int:
        """See L{IStore.append<msglog.interfaces.IStore.append>}."""
        part = self._part_of(batch.client)
        refusal = self._refusal(part)
        if refusal is not None:
            code, why, reason = refusal
            part.counts.refused[why] += len(batch)
            judged(Verdict.refused(batch, code, 0, reason))
            return 0
        entry = Unsettled(batch, judged, self._reactor.seconds(), fragments=format_fragments(batch))
        part.tails.wait(batch.client, entry)
        return entry.size

    def last(self, client: bytes) -> Deferred[int | None]:
        """See L{IStore.last<msglog.interfaces.IStore.last>}."""
        part = self._part_of(client)
        if self._refusal(part) is not None:
            return succeed(None)
        answer: Deferred[int | None] = Deferred()
        part.tails.wait(client, Unsettled(None, answer.callback, self._reactor.seconds()))
        return answer

    def _part_of(self, client: bytes) -> _Part:
        parts = self._parts
        return parts[shard_of(client, len(parts))] if len(parts) > 1 else parts[0]

    def _refusal(self, part: _Part) -> tuple[NackCode, str, str] | None:
        if not self.running:
            return NackCode.UNAVAILABLE, "stopping", "the store is closed"
        return part.health.refusal()

    # --- what the tails and the stream's health say ----------------------------------------

    def next_time(self) -> bytes:
        """See L{IAppender<msglog._tails.IAppender>}; it rises, whatever the clock does."""
        self._last_time = max(int(self._clock() * 1e6), self._last_time + 1)
        return format_time(self._last_time)

    def stored(self, request: Append, seconds: float) -> None:
        """See L{IAppender<msglog._tails.IAppender>}."""
        count = request.last - request.first + 1
        self._counts.committed(count, len(request.payload), seconds)
        self._durable_time = self._clock()
        if count >= LINES_SHOWN:
            self._last_payloads.clear()
        self._last_payloads.append(request.payload)
        del self._last_payloads[:-LINES_SHOWN]

    def no_room(self) -> None:
        """See L{IAppender<msglog._tails.IAppender>}; that a stream is full, its health knows."""
        self._counts.no_room += 1

    def rested(self) -> None:
        """See L{IAppender<msglog._tails.IAppender>}."""
        if self._stopped is not None:
            self._close_if_done()

    def leave(self, reason: str) -> None:
        """Try another server of NATS, unless one of the streams answers by way of this one."""
        if all(part.health.away for part in self._parts):
            self._link.leave(reason)

    def _tick(self) -> None:
        for part in self._parts:
            part.tails.refuse_late()
            if self._stopped is not None and (
                part.health.away or self._reactor.seconds() >= self._stop_deadline
            ):
                part.tails.refuse_all(NackCode.UNAVAILABLE, "stopping", "shutting down")
            if self.running:
                part.health.tick()
        if self._stopped is not None:
            self._close_if_done()

    # --- what others may know --------------------------------------------------------------

    def figures(self) -> StoreFigures:
        """See L{IStoreService<msglog.interfaces.IStoreService.figures>}."""
        parts = self._parts
        now = self._reactor.seconds()
        rooms = [(free, most) for free, most in (room(part.health.info) for part in parts) if most]
        free, capacity = min(rooms, default=(None, 0))
        # Of several streams, the one that is worst says how they are.
        worst = max(parts, key=lambda part: (_WORSE.index(part.health.state), part.stalled(now)))
        # While the clients of one of several streams can be served, it is for them to be ready.
        each = [self._troubles(part, now) for part in parts]
        troubles = list(chain.from_iterable(each)) if all(each) else []
        warnings = [warning for part in parts for warning in part.health.warnings]
        if not troubles:
            warnings += [
                f"stream {part.shard.name} takes nothing: {trouble}"
                for part, found in zip(parts, each, strict=True)
                for trouble in found
            ]
        return StoreFigures(
            **commit_figures(self._counts),  # type: ignore[arg-type]
            log_size=sum(int(part.health.info.get("state", {}).get("bytes", 0)) for part in parts),
            durable_time=self._durable_time,
            busy_seconds=min(part.stalled(now) for part in parts),
            failed=False,
            disk_free=free,
            disk_size=capacity,
            disk_low=free is not None and free < self._limits.min_free_bytes,
            times_low=0,
            ledger_clients=sum(len(part.tails) for part in parts),
            ledger_bytes=sum(part.tails.memory for part in parts),
            ledger_dirty=0,
            recovered=_NOTHING_RECOVERED,
            recovery_seconds=0.0,
            keeper="NATS",
            room="in the stream",
            troubles=tuple(dict.fromkeys(troubles)),
            stream=read_stream_figures(
                StreamCounts.of_all([part.counts for part in parts]),
                self._link.counts,
                worst.health.info,
                worst.health.state,
                worst.health.away_seconds,
                self._limits.store_requests,
            ),
            store_warnings=tuple(dict.fromkeys(warnings)),
        )

    def _troubles(self, part: _Part, now: float) -> list[str]:
        """Why a stream takes nothing, or has not for long."""
        troubles = list(part.health.troubles)
        if part.stalled(now) >= self._limits.stalled_seconds and part.health.reason:
            troubles.append(part.health.reason)
        elif not troubles and not part.health.info:
            troubles.append("NATS has not answered for the stream yet")
        return troubles

    @property
    def title(self) -> str:
        """See L{IStoreService<msglog.interfaces.IStoreService>}."""
        parts = len(self._parts)
        return f"{self._access} stream {self._stream}" + (f", {parts} shards" if parts > 1 else "")

    @property
    def idle(self) -> bool:
        """Whether everything that was appended or asked is judged."""
        return not any(part.tails.busy for part in self._parts)

    def log_end(self) -> int:
        """See L{IStoreService<msglog.interfaces.IStoreService.log_end>}."""
        return self._counts.records

    def last_lines(self, end: int) -> list[bytes]:
        """Those that this server stored last; others may have stored more."""
        lines = chain.from_iterable(payload.splitlines() for payload in self._last_payloads)
        return list(lines)[-LINES_SHOWN:]

    # --- service ---------------------------------------------------------------------------

    def startService(self) -> None:
        """
        Begin to connect.

        @raise StartError: the engine is there and refuses, or the stream is not there or cannot
            keep what is acknowledged.  An engine that is not there is waited for.
        """
        for part in self._parts:
            subject = info_subject(part.shard.name)
            part.health.see_start(self._ask(self._access, subject, b"", _START_SECONDS))
            if part.health.away:
                break  # nor will it answer for the others
        self._link.start()
        super().startService()
        self._stopped = None
        self._ticks.start(_TICK_SECONDS, now=False)

    def reopen(self) -> Deferred[None]:
        """
        Look at the stream's state, and say so if what is shown to NATS cannot be read.

        There is nothing to reopen: it is read for each connection.
        """
        try:
            self._access.check()
        except StartError as e:
            self._log.error("{reason}; the next connection to NATS needs it", reason=str(e))
        for part in self._parts:
            part.health.look_soon()
        return succeed(None)

    def stopService(self) -> Deferred[None]:
        """
        Judge what was appended, for C{stop_seconds} at most, and close the connection.

        What is not judged by then, or while the engine is away, is refused UNAVAILABLE.
        """
        if not self.running:
            return succeed(None)
        super().stopService()
        self._stopped = Deferred()
        self._stop_deadline = self._reactor.seconds() + self._limits.stop_seconds
        done: Deferred[None] = Deferred()
        self._stopped.chainDeferred(done)
        self._close_if_done()
        return done

    def _close_if_done(self) -> None:
        if not self.idle or self._stopped is None:
            return
        stopped, self._stopped = self._stopped, None
        if self._ticks.running:
            self._ticks.stop()
        for part in self._parts:
            part.tails.close()
        self._link.stop().chainDeferred(stopped)


# How a stream may be, the worst last.
_WORSE = (
    EngineState.ANSWERING,
    EngineState.AWAY,
    EngineState.UNUSABLE,
    EngineState.LOST,
)


# A start reads nothing: what is durable is in the stream.
_NOTHING_RECOVERED = Recovered(0, 0, 0, None, False, 0)


def _ask_once(access: NatsAccess, subject: str, payload: bytes, seconds: float) -> Reply:
    # Here and not above, for a test's own needs no nats-py.
    from ._nats_admin import ask_once

    return ask_once(access, subject, payload, seconds)
