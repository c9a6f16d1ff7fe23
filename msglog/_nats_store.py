"""
A store on a NATS JetStream stream, which any number of servers share (docs/distributed.md).

Each client has a L{ClientTail}, which knows what to request next; this brings the requests to the
engine and the answers back, bounds how many are under way, and judges the engine by its answers.

While the engine is I{away} (its last answer was none) nothing is sent but a question for the
stream's state, several times a second; when that is answered, everything goes on.  What waits
meanwhile is held by its connections' bounds, and refused UNAVAILABLE when it has waited for
C{store_wait_seconds}.  What comes when the engine has been away for that long is refused at once,
so that clients who know another server need not wait here.
"""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable
from typing import Any, Protocol

from twisted.application.service import Service
from twisted.internet.defer import Deferred, succeed
from twisted.internet.interfaces import IDelayedCall
from twisted.internet.task import LoopingCall
from twisted.logger import Logger
from zope.interface import implementer

from ._batch import Batch, NackCode, Verdict
from ._counts import CommitCounts
from ._errors import StartError
from ._jetstream import (
    MAX_PAYLOAD,
    AppendOutcome,
    EngineError,
    Reply,
    StreamDamaged,
    append_headers,
    get_request,
    get_subject,
    info_subject,
    read_append,
    read_info,
    read_stored,
    subject_of,
    tail_request,
)
from ._last_lines import LINES_SHOWN
from ._limits import Limits
from ._nats_access import DEFAULT_STREAM, NatsAccess
from ._nats_link import NatsLink
from ._records import format_fragments, format_time
from ._recovery import Recovered
from ._store_figures import StoreFigures, commit_figures
from ._stream_counts import APPEND, EARLIER, TAIL, LinkCounts, StreamCounts
from ._stream_figures import EngineState, read_stream_figures
from ._stream_settings import find_weaknesses
from ._tail import Append, ClientTail, ReadEarlier, ReadTail, Unsettled
from .interfaces import IStoreService

__all__ = ["ILink", "NatsStore"]

# How long a start waits for the engine's first word.  It can do without; but a wrong name or
# password, or a stream that is not there, should end the start and not look like an outage.
_START_SECONDS = 3.0

# How often deadlines are looked at.
_TICK_SECONDS = 0.25

# How often the stream's state is asked for: while all is well, and while the engine is away.
_LOOK_SECONDS = 1.0
_LOOK_AWAY_SECONDS = 0.25

# Before a client's tail is read again when that makes sense only after a while.
_RETRY_SECONDS = 0.2

# How long the engine may have less of a client than it had before: a leader that has lost its
# followers notices that within 10 s, and steps down.
_BEHIND_SECONDS = 12.0

# Older servers were not tried, and some took two appends on one condition (2.9.15 to 2.9.20).
_OLDEST_SERVER = (2, 12)

# What a message takes besides its payload: subject, headers, and what a front-end's lines may be
# longer than what is gathered.
_OVERHEAD = 1024

# A line is at most six times its body, and this (docs/log-format.md).
_LINE_BYTES = 256


class ILink(Protocol):
    """What brings requests to an engine: a L{NatsLink<msglog._nats_link.NatsLink>}."""

    trouble: str
    counts: LinkCounts
    max_payload: int | None
    version: tuple[int, int] | None

    def start(self) -> None: ...

    def request(
        self,
        subject: str,
        payload: bytes,
        headers: dict[str, str] | None,
        done: Callable[[Reply], object],
    ) -> None: ...

    def stop(self) -> Deferred[None]: ...


@implementer(IStoreService)
class NatsStore(Service):
    """
    One JetStream stream.

    @param reactor: for time, and for getting back from the connection's thread.
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
        self._limits = limits or Limits()
        self.window = self._limits.window
        self._link = link or _make_link(reactor, access, self._limits.store_answer_seconds)
        self._ask = ask or _ask_once
        self._clock = clock
        self._tails: OrderedDict[bytes, ClientTail] = OrderedDict()
        self._busy: set[ClientTail] = set()
        self._ready: dict[ClientTail, None] = {}
        self._parked: list[ClientTail] = []
        self._in_flight = 0
        self._memory = 0
        self._pumping: IDelayedCall | None = None
        self._unparking: IDelayedCall | None = None
        self._ticks = LoopingCall(self._tick)
        self._ticks.clock = reactor
        self._looking = False
        self._look_due = 0.0
        self._stopped: Deferred[None] | None = None
        self._stop_deadline = 0.0
        self._last_time = 0
        self._last_lines: list[bytes] = []
        self._counts = CommitCounts()
        self._stream_counts = StreamCounts()
        self._durable_time = 0.0
        # What is known of the engine.
        self._away_since: float | None = None
        self._away_reason = ""
        self._away_said = False
        self._lost = ""
        self._broken = ""
        self._unusable = ""
        self._damaged = ""
        self._created = ""
        self._info: dict[str, Any] = {}
        self._config: Any = None
        self._weaknesses: tuple[str, ...] = ()

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
        self._wait(
            batch.client, Unsettled(batch, judged, self._reactor.seconds(), fragments=fragments)
        )
        return sum(map(len, fragments))

    def last(self, client: bytes) -> Deferred[int | None]:
        """See L{IStore.last<msglog.interfaces.IStore.last>}."""
        if self._refusal() is not None:
            return succeed(None)
        answer: Deferred[int | None] = Deferred()
        self._wait(client, Unsettled(None, answer.callback, self._reactor.seconds()))
        return answer

    def _refusal(self) -> tuple[NackCode, str, str] | None:
        """With what code to refuse what comes, and why, in a word to count it and in words."""
        if not self.running:
            return NackCode.UNAVAILABLE, "stopping", "the store is closed"
        if self._lost:
            return NackCode.NOT_STORED, "lost", self._lost
        if self._unusable:
            return NackCode.UNAVAILABLE, "unusable", self._unusable
        if self._away_seconds >= self._limits.store_wait_seconds:
            return NackCode.UNAVAILABLE, "away", f"the engine is away: {self._away_reason}"
        return None

    def _wait(self, client: bytes, entry: Unsettled) -> None:
        tail = self._tails.get(client)
        if tail is None:
            tail = self._tails[client] = ClientTail(client, self.window, self._stream_counts)
        else:
            self._tails.move_to_end(client)
        tail.add(entry)
        self._busy.add(tail)
        if not tail.requested and not tail.parked:
            self._make_ready(tail)

    # --- requests --------------------------------------------------------------------------

    def _make_ready(self, tail: ClientTail) -> None:
        self._ready[tail] = None
        self._pump_soon()

    def _pump_soon(self) -> None:
        if self._ready and self._pumping is None and self._can_send():
            # At the end of this turn of the reactor, with what else arrives in it.
            self._pumping = self._reactor.callLater(0, self._pump)

    def _can_send(self) -> bool:
        return self._away_since is None and self._in_flight < self._limits.store_requests

    def _pump(self) -> None:
        self._pumping = None
        while self._ready and self._can_send():
            tail = next(iter(self._ready))
            del self._ready[tail]
            self._advance(tail)

    def _advance(self, tail: ClientTail) -> None:
        request = tail.proceed(self._time())
        if request is not None:
            self._in_flight += 1
            self._send(tail, request)
        self._answer(tail)
        if tail.idle:
            self._rest(tail)

    def _send(self, tail: ClientTail, request: Append | ReadTail | ReadEarlier) -> None:
        stream = self._stream
        sent = self._reactor.seconds()
        self._stream_counts.begun[request.kind] += 1
        if isinstance(request, Append):
            self._link.request(
                subject_of(tail.client),
                request.payload,
                append_headers(stream, request.previous, request.first, request.last),
                lambda reply: self._appended(tail, request, sent, reply),
            )
        elif isinstance(request, ReadTail):
            self._link.request(
                get_subject(stream),
                tail_request(tail.client),
                None,
                lambda reply: self._tail_read(tail, sent, reply),
            )
        else:
            self._link.request(
                get_subject(stream),
                get_request(request.sequence),
                None,
                lambda reply: self._earlier_read(tail, sent, reply),
            )

    def _time(self) -> bytes:
        """A commit's time, later than the one before whatever the clock does."""
        self._last_time = max(int(self._clock() * 1e6), self._last_time + 1)
        return format_time(self._last_time)

    def _appended(self, tail: ClientTail, request: Append, sent: float, reply: Reply) -> None:
        result = read_append(reply, self._stream, request.previous)
        now = self._reactor.seconds()
        self._stream_counts.done(APPEND, now - sent, reply.data)
        tail.appended(result)
        if result.answered:
            self._engine_answered()
        else:
            self._engine_silent(result.reason)
        if result.outcome is AppendOutcome.STORED:
            count = request.last - request.first + 1
            self._counts.committed(count, len(request.payload), max(now - sent, 0.0))
            self._stream_counts.batches.note(request.batches)
            self._durable_time = now
            self._last_lines = [
                *self._last_lines,
                *request.payload.splitlines()[-LINES_SHOWN:],
            ][-LINES_SHOWN:]
        elif result.outcome is AppendOutcome.NO_ROOM:
            if not self._counts.no_room_last:
                self._log.warn("nothing is stored: {reason}", reason=result.reason)
            self._counts.refused(now)
        # Once at once, for it may only be that another server was first.
        self._go_on(tail, later=not result.answered or tail.uncertain > 1)

    def _tail_read(self, tail: ClientTail, sent: float, reply: Reply) -> None:
        self._stream_counts.done(TAIL, self._reactor.seconds() - sent, reply.data)
        later = False
        try:
            message = read_stored(reply, tail.client)
        except EngineError as e:
            tail.tail_unread()
            self._engine_silent(str(e))
            later = True
        except StreamDamaged as e:
            tail.tail_unread()
            self._see_damaged(tail, e)
        else:
            self._engine_answered()
            if not tail.tail_read(message, self._reactor.seconds()):
                later = True
                self._see_behind(tail, message.last if message else 0)
        self._go_on(tail, later=later)

    def _earlier_read(self, tail: ClientTail, sent: float, reply: Reply) -> None:
        self._stream_counts.done(EARLIER, self._reactor.seconds() - sent, reply.data)
        later = False
        try:
            message = read_stored(reply, tail.client)
        except EngineError as e:
            tail.earlier_unread()
            self._engine_silent(str(e))
            later = True
        except StreamDamaged as e:
            tail.earlier_unread()
            self._see_damaged(tail, e)
        else:
            self._engine_answered()
            tail.earlier_read(message)
        self._go_on(tail, later=later)

    def _go_on(self, tail: ClientTail, *, later: bool) -> None:
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
        self._pump_soon()
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

    def _rest(self, tail: ClientTail) -> None:
        """A tail has nothing to do; if memory is short, the least recently active are forgotten."""
        self._busy.discard(tail)
        if not tail.wrote:
            self._forget(tail)
        else:
            self._memory += tail.memory - tail.counted
            tail.counted = tail.memory
        while self._memory > self._limits.ledger_memory and self._tails:
            oldest = next(iter(self._tails.values()))
            if oldest in self._busy:
                break
            self._forget(oldest)
        if self._stopped is not None:
            self._close_if_done()

    def _forget(self, tail: ClientTail) -> None:
        self._memory -= tail.counted
        tail.counted = 0
        if self._tails.get(tail.client) is tail:
            del self._tails[tail.client]

    # --- how the engine is -----------------------------------------------------------------

    @property
    def _away_seconds(self) -> float:
        if self._away_since is None:
            return 0.0
        return max(float(self._reactor.seconds()) - self._away_since, 0.0)

    @property
    def _state(self) -> EngineState:
        if self._lost:
            return EngineState.LOST
        if self._unusable:
            return EngineState.UNUSABLE
        return EngineState.ANSWERING if self._away_since is None else EngineState.AWAY

    def _engine_answered(self) -> None:
        if self._away_since is not None:
            if self._away_said:
                self._log.info("NATS answers again, after {n:.0f} s", n=self._away_seconds)
            self._away_since = None
            self._away_said = False
            self._pump_soon()

    def _engine_silent(self, reason: str) -> None:
        trouble = self._link.trouble
        if trouble and trouble != reason:
            reason = f"{reason} ({trouble})"
        if self._away_since is None:
            self._away_since = self._reactor.seconds()
            self._look_due = 0.0
        self._away_reason = reason

    def _say_away(self) -> None:
        """Say that the engine is away, once, and not for a request that is late."""
        if self._away_seconds >= self._limits.store_answer_seconds and not self._away_said:
            self._away_said = True
            self._log.warn("NATS does not answer: {reason}", reason=self._away_reason)

    def _see_behind(self, tail: ClientTail, last: int) -> None:
        """The engine has less of a client than it had before."""
        since = tail.behind_since
        assert since is not None
        if self._reactor.seconds() - since >= _BEHIND_SECONDS:
            self._lose(
                f"the stream has lost acknowledged messages: of a client {tail.last} were stored, "
                f"and {last} are there"
            )

    def _lose(self, reason: str) -> None:
        """What was acknowledged is gone: nothing more is promised until a person has looked."""
        if not self._lost:
            self._lost = reason
            self._log.critical("{reason}; nothing more is taken", reason=reason)
        self._refuse_all(NackCode.NOT_STORED, "lost", reason)

    def _see_damaged(self, tail: ClientTail, error: StreamDamaged) -> None:
        self._damaged = str(error)
        self._log.error("{reason}; this client is refused", reason=self._damaged)
        self._stream_counts.refused["damaged"] += tail.refuse_all(
            NackCode.NOT_STORED, self._damaged
        )

    def _refuse_all(self, code: NackCode, why: str, reason: str) -> None:
        for tail in list(self._busy):
            self._refuse(tail, code, why, reason)

    def _refuse(self, tail: ClientTail, code: NackCode, why: str, reason: str) -> None:
        self._stream_counts.refused[why] += tail.refuse_all(code, reason)
        self._answer(tail)
        if tail.idle and not tail.parked:
            self._ready.pop(tail, None)
            self._rest(tail)

    def _look(self) -> None:
        """Ask for the stream's state."""
        self._looking = True
        self._look_due = self._reactor.seconds() + _LOOK_SECONDS
        self._link.request(info_subject(self._stream), b"", None, self._looked)

    def _looked(self, reply: Reply) -> None:
        self._looking = False
        try:
            self._take_info(read_info(reply))
        except EngineError as e:
            self._engine_silent(self._missing() if e.missing else str(e))
            self._look_due = self._reactor.seconds() + _LOOK_AWAY_SECONDS
        else:
            self._engine_answered()

    def _missing(self) -> str:
        return (
            f"there is no stream {self._stream}: msglog stream create {self._access} "
            f"--stream {self._stream}"
        )

    def _take_info(self, info: dict[str, Any]) -> None:
        created = str(info.get("created", ""))
        if self._created and created != self._created:
            self._lose(f"the stream {self._stream} was deleted and made again")
            return
        self._created = created
        self._stream_counts.see_leader(info)
        self._info = info
        config = info.get("config", {})
        if config != self._config:
            self._config = config
            self._see_settings(config)
        self._unusable = self._broken
        longest = max(MAX_PAYLOAD, 6 * self._limits.max_message_bytes + _LINE_BYTES) + _OVERHEAD
        if self._link.max_payload is not None and self._link.max_payload < longest:
            self._unusable = (
                f"the server's max_payload is {self._link.max_payload}, and a batch may take "
                f"{longest} bytes: raise it, or lower --max-message-bytes"
            )

    def _see_settings(self, config: Any) -> None:
        # Whether servers sync at once is not seen from here; msglog stream check asks them.
        weaknesses = list(find_weaknesses(config, sync_always=True))
        for weakness in weaknesses:
            self._log.warn("stream {stream}: {weakness}", stream=self._stream, weakness=weakness)
        self._weaknesses = tuple(f"stream {self._stream}: {one}" for one in weaknesses)
        broken = [str(weakness) for weakness in weaknesses if weakness.breaks]
        self._broken = (
            f"the stream {self._stream} cannot keep what is acknowledged: {'; '.join(broken)}"
            if broken
            else ""
        )

    def _tick(self) -> None:
        now = self._reactor.seconds()
        limit = self._limits.store_wait_seconds
        self._say_away()
        for tail in list(self._busy):
            since = tail.waiting_since
            if since is not None and now - since >= limit:
                reason = self._away_reason or "it is slow"
                self._refuse(
                    tail,
                    NackCode.UNAVAILABLE,
                    "late",
                    f"not stored within {limit:g} s: {reason}; whether it will be is not known",
                )
        if self._stopped is not None:
            if self._away_since is not None or now >= self._stop_deadline:
                self._refuse_all(NackCode.UNAVAILABLE, "stopping", "shutting down")
            self._close_if_done()
        if not self._looking and now >= self._look_due and self.running:
            self._look()

    # --- what others may know --------------------------------------------------------------

    def figures(self) -> StoreFigures:
        """See L{IStoreService<msglog.interfaces.IStoreService.figures>}."""
        now = self._reactor.seconds()
        waiting = [tail.waiting_since for tail in self._busy]
        oldest = min((since for since in waiting if since is not None), default=now)
        state, config = self._info.get("state", {}), self._info.get("config", {})
        size, most = int(state.get("bytes", 0)), int(config.get("max_bytes", -1))
        free = max(most - size, 0) if most > 0 else None
        troubles = [t for t in (self._lost, self._unusable) if t]
        stalled = max(now - oldest, self._away_seconds)
        if stalled >= self._limits.stalled_seconds and self._away_reason:
            troubles.append(self._away_reason)
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
            ledger_bytes=self._memory,
            ledger_dirty=0,
            recovered=_NOTHING_RECOVERED,
            recovery_seconds=0.0,
            keeper="NATS",
            place="in the stream",
            room="in the stream",
            troubles=tuple(troubles),
            stream=read_stream_figures(
                self._stream_counts,
                self._link.counts,
                self._info,
                self._state,
                self._away_seconds,
                self._limits.store_requests,
            ),
            store_warnings=(
                *self._weaknesses,
                *self._old_server(),
                *_of_replicas(self._info.get("cluster") or {}),
                *([self._damaged] if self._damaged else []),
            ),
        )

    def _old_server(self) -> list[str]:
        version = self._link.version
        if version is None or version >= _OLDEST_SERVER:
            return []
        return [
            f"nats-server {version[0]}.{version[1]} is older than {_OLDEST_SERVER[0]}."
            f"{_OLDEST_SERVER[1]}, and may store twice: replace it"
        ]

    @property
    def title(self) -> str:
        """See L{IStoreService<msglog.interfaces.IStoreService>}."""
        return f"{self._access} stream {self._stream}"

    @property
    def idle(self) -> bool:
        """Whether everything that was appended or asked is judged."""
        return not self._busy

    def log_end(self) -> int:
        """See L{IStoreService<msglog.interfaces.IStoreService.log_end>}."""
        return self._counts.records

    def last_lines(self, end: int) -> list[bytes]:
        """Those that this server stored last; others may have stored more."""
        return self._last_lines

    # --- service ---------------------------------------------------------------------------

    def startService(self) -> None:
        """
        Begin to connect.

        @raise StartError: the engine is there and refuses, or the stream is not there or cannot
            keep what is acknowledged.  An engine that is not there is waited for.
        """
        self._see_start(self._ask(self._access, info_subject(self._stream), b"", _START_SECONDS))
        self._link.start()
        super().startService()
        self._stopped = None
        self._ticks.start(_TICK_SECONDS, now=False)

    def _see_start(self, reply: Reply) -> None:
        try:
            info = read_info(reply)
        except EngineError as e:
            if e.missing:
                raise StartError(self._missing()) from None
            if "authorization" in str(e).lower() or "authentication" in str(e).lower():
                raise StartError(f"{self._access} does not let this server in: {e}") from None
            self._engine_silent(str(e))
            return
        self._take_info(info)
        if self._unusable:
            raise StartError(f"{self._unusable} (msglog stream check {self._access})")
        self._log.info(
            "storing in {title}: {bytes} bytes, {messages} batches",
            title=self.title,
            bytes=info.get("state", {}).get("bytes"),
            messages=info.get("state", {}).get("messages"),
        )

    def reopen(self) -> Deferred[None]:
        """There is nothing to reopen; the stream's state is looked at."""
        self._look_due = 0.0
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
        if self._busy or self._stopped is None:
            return
        stopped, self._stopped = self._stopped, None
        if self._ticks.running:
            self._ticks.stop()
        for call in (self._pumping, self._unparking):
            if call is not None:
                call.cancel()
        self._pumping = self._unparking = None
        self._ready.clear()
        self._parked.clear()
        self._link.stop().chainDeferred(stopped)


# A start reads nothing: what is durable is in the stream.
_NOTHING_RECOVERED = Recovered(0, 0, 0, None, False, 0)


def _of_replicas(cluster: dict[str, Any]) -> list[str]:
    """What is to be said of the replicas of a stream."""
    missing = [
        replica.get("name", "?")
        for replica in cluster.get("replicas") or ()
        if replica.get("offline") or not replica.get("current")
    ]
    return [f"replicas that are away or behind: {', '.join(missing)}"] if missing else []


def _make_link(reactor: Any, access: NatsAccess, seconds: float) -> ILink:
    return NatsLink(reactor, access, seconds)


def _ask_once(access: NatsAccess, subject: str, payload: bytes, seconds: float) -> Reply:
    # Here and not above, for a test's own needs no nats-py.
    from ._nats_admin import ask_once

    return ask_once(access, subject, payload, seconds)
