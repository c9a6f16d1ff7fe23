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
from ._store_figures import StoreFigures, commit_figures
from ._stream_counts import StreamCounts
from ._stream_figures import read_stream_figures
from ._stream_health import StreamHealth
from ._tail import Append, Unsettled
from ._tails import Tails
from .interfaces import IStoreService

__all__ = ["NatsStore"]

# How long a start waits for the engine's first word.  It can do without; but a wrong name or
# password, or a stream that is not there, should end the start and not look like an outage.
_START_SECONDS = 3.0

# How often deadlines are looked at.
_TICK_SECONDS = 0.25


@implementer(IStoreService)
class NatsStore(Service):
    """
    One JetStream stream.

    @param reactor: for the connection and time.
    @param access: the cluster, and who this is to it.
    @param stream: the stream's name.
    @param limits: see L{Limits}.
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
        self._stream_counts = counts = StreamCounts()
        self._health = StreamHealth(
            reactor.seconds, access, stream, self._link, limits, counts, self._back, self._lost
        )
        self._tails = Tails(reactor, stream, self._link, limits, self._health, counts, self)
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
        refusal = self._refusal()
        if refusal is not None:
            code, why, reason = refusal
            self._stream_counts.refused[why] += len(batch)
            judged(Verdict.refused(batch, code, 0, reason))
            return 0
        fragments = format_fragments(batch)
        self._tails.wait(
            batch.client, Unsettled(batch, judged, self._reactor.seconds(), fragments=fragments)
        )
        return sum(map(len, fragments))

    def last(self, client: bytes) -> Deferred[int | None]:
        """See L{IStore.last<msglog.interfaces.IStore.last>}."""
        if self._refusal() is not None:
            return succeed(None)
        answer: Deferred[int | None] = Deferred()
        self._tails.wait(client, Unsettled(None, answer.callback, self._reactor.seconds()))
        return answer

    def _refusal(self) -> tuple[NackCode, str, str] | None:
        if not self.running:
            return NackCode.UNAVAILABLE, "stopping", "the store is closed"
        return self._health.refusal()

    # --- what the tails and the stream's health say ----------------------------------------

    def next_time(self) -> bytes:
        """See L{IAppender<msglog._tails.IAppender>}; it rises, whatever the clock does."""
        self._last_time = max(int(self._clock() * 1e6), self._last_time + 1)
        return format_time(self._last_time)

    def stored(self, request: Append, seconds: float) -> None:
        """See L{IAppender<msglog._tails.IAppender>}."""
        count = request.last - request.first + 1
        self._counts.committed(count, len(request.payload), seconds)
        self._durable_time = self._reactor.seconds()
        if count >= LINES_SHOWN:
            self._last_payloads.clear()
        self._last_payloads.append(request.payload)
        del self._last_payloads[:-LINES_SHOWN]

    def no_room(self, reason: str) -> None:
        """See L{IAppender<msglog._tails.IAppender>}."""
        if not self._counts.no_room_last:
            self._log.warn("nothing is stored: {reason}", reason=reason)
        self._counts.refused(self._reactor.seconds())

    def rested(self) -> None:
        """See L{IAppender<msglog._tails.IAppender>}."""
        if self._stopped is not None:
            self._close_if_done()

    def _back(self) -> None:
        self._tails.go_on()

    def _lost(self, reason: str) -> None:
        self._tails.refuse_all(NackCode.NOT_STORED, "lost", reason)

    def _tick(self) -> None:
        self._tails.refuse_late()
        if self._stopped is not None:
            if self._health.away or self._reactor.seconds() >= self._stop_deadline:
                self._tails.refuse_all(NackCode.UNAVAILABLE, "stopping", "shutting down")
            self._close_if_done()
        if self.running:
            self._health.tick()

    # --- what others may know --------------------------------------------------------------

    def figures(self) -> StoreFigures:
        """See L{IStoreService<msglog.interfaces.IStoreService.figures>}."""
        now = self._reactor.seconds()
        health = self._health
        since = self._tails.waiting_since
        state, config = health.info.get("state", {}), health.info.get("config", {})
        size, most = int(state.get("bytes", 0)), int(config.get("max_bytes", -1))
        free = max(most - size, 0) if most > 0 else None
        troubles = health.troubles
        stalled = max(now - since if since is not None else 0.0, health.away_seconds)
        if stalled >= self._limits.stalled_seconds and health.reason:
            troubles = (*troubles, health.reason)
        return StoreFigures(
            **commit_figures(self._counts),  # type: ignore[arg-type]
            log_size=size,
            durable_time=self._durable_time,
            busy_seconds=stalled,
            failed=False,
            disk_free=free,
            disk_size=max(most, 0),
            disk_low=free is not None and free < self._limits.min_free_bytes,
            times_low=0,
            ledger_clients=len(self._tails),
            ledger_bytes=self._tails.memory,
            ledger_dirty=0,
            recovered=_NOTHING_RECOVERED,
            recovery_seconds=0.0,
            keeper="NATS",
            place="in the stream",
            room="in the stream",
            troubles=troubles,
            stream=read_stream_figures(
                self._stream_counts,
                self._link.counts,
                health.info,
                health.state,
                health.away_seconds,
                self._limits.store_requests,
            ),
            store_warnings=health.warnings,
        )

    @property
    def title(self) -> str:
        """See L{IStoreService<msglog.interfaces.IStoreService>}."""
        return f"{self._access} stream {self._stream}"

    @property
    def idle(self) -> bool:
        """Whether everything that was appended or asked is judged."""
        return not self._tails.busy

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
        self._health.see_start(
            self._ask(self._access, info_subject(self._stream), b"", _START_SECONDS)
        )
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
        self._health.look_soon()
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
        if self._tails.busy or self._stopped is None:
            return
        stopped, self._stopped = self._stopped, None
        if self._ticks.running:
            self._ticks.stop()
        self._tails.close()
        self._link.stop().chainDeferred(stopped)


# A start reads nothing: what is durable is in the stream.
_NOTHING_RECOVERED = Recovered(0, 0, 0, None, False, 0)


def _ask_once(access: NatsAccess, subject: str, payload: bytes, seconds: float) -> Reply:
    # Here and not above, for a test's own needs no nats-py.
    from ._nats_admin import ask_once

    return ask_once(access, subject, payload, seconds)
