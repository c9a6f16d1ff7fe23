"""
What the status page is told once a second, as server-sent events.

Every event is whole: who misses some has lost nothing but a point of a chart.  So a watcher that
reads too slowly is simply passed over, and after a while let go.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any
from uuid import UUID

import orjson
from attrs import define
from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IPushProducer, IReactorTime
from twisted.internet.task import LoopingCall
from twisted.logger import Logger
from twisted.web.http import SERVICE_UNAVAILABLE
from twisted.web.resource import Resource
from twisted.web.server import NOT_DONE_YET, Request
from zope.interface import implementer

from ._busiest import Busiest
from ._counts import SECONDS, ConnectionCounts, quantile
from ._errors import RecordError
from ._last_lines import last_lines
from ._records import format_time, parse_line
from ._web import say

__all__ = ["Events", "Sampler", "last_records", "shown_records"]

# How far back the charts go: five minutes.
_HISTORY = 300

# Over how long the busiest clients are counted before it is begun anew.
_BUSIEST_SECONDS = 5
_BUSIEST_SHOWN = 10

# Of a message, characters.
_BODY_SHOWN = 200

# How long a watcher may not read before it is let go.
_SLOW_SECONDS = 30.0


def last_records(path: Path, size: int, *, bodies: bool) -> list[dict[str, Any]]:
    """
    The last records of a log, newest first, as far as they are in its last 64 KiB.

    @param size: how much of the log there is; what is behind it is not committed yet.
    @param bodies: whether to show the messages themselves.
    """
    return shown_records(last_lines(path, size), bodies=bodies)


def shown_records(lines: Sequence[bytes], *, bodies: bool) -> list[dict[str, Any]]:
    """What is shown of these lines of a log, the last first."""
    records = []
    for line in reversed(lines):
        try:
            record = parse_line(line + b"\n")
        except RecordError:
            continue  # damaged; or the first one, of which only the end was read
        shown = {
            "time": format_time(record.time).decode(),
            "client": str(UUID(bytes=record.client)),
            "sequence": record.sequence,
            "bytes": len(record.body),
        }
        if bodies:
            text = record.body[: 4 * _BODY_SHOWN].decode(errors="replace")
            shown["body"] = text[:_BODY_SHOWN] + ("…" if len(text) > _BODY_SHOWN else "")
        records.append(shown)
    return records


class Sampler:
    """
    The rate and the 99th percentile of each of the last seconds.

    @ivar history: for each, when it ended, messages a second, and the percentile in seconds, which
        is L{None} if there were no messages.
    """

    def __init__(self, counts: ConnectionCounts, seconds: Callable[[], float]) -> None:
        self._counts = counts
        self._seconds = seconds
        self.history: deque[tuple[float, float, float | None]] = deque(maxlen=_HISTORY)
        self._begin()

    def _begin(self) -> None:
        self._last = self._seconds()
        self._acked = self._counts.acked
        self._buckets = self._counts.ack_seconds.buckets[:]

    def sample(self) -> None:
        """A second is over."""
        now = self._seconds()
        passed = now - self._last
        if passed > 0:
            buckets = self._counts.ack_seconds.buckets
            new = [after - before for before, after in zip(self._buckets, buckets, strict=True)]
            rate = (self._counts.acked - self._acked) / passed
            self.history.append((now, rate, quantile(SECONDS, new, 0.99)))
        self._begin()


@implementer(IPushProducer)
@define(eq=False)
class _Watcher:
    """
    One who watches.

    @ivar full_since: since when what is written waits in the transport.
    """

    request: Request
    full_since: float | None
    seconds: Callable[[], float]

    def send(self, event: bytes) -> None:
        if self.full_since is None:
            self.request.write(event)
        elif self.seconds() - self.full_since >= _SLOW_SECONDS:
            # To close it would wait for what it does not read.
            transport: Any = self.request.channel.transport
            transport.abortConnection()

    def pauseProducing(self) -> None:
        if self.full_since is None:
            self.full_since = self.seconds()

    def resumeProducing(self) -> None:
        self.full_since = None

    def stopProducing(self) -> None:
        """The connection is lost, which the request says too."""


class Events(Resource):
    """
    C{/events}.

    @param reactor: for time.
    @param counts: of the connections.
    @param status: what is told besides the samples, the clients and the records.
    @param size: how long the log is.
    @param records: reads the last records of so much of the log, in a thread; fails with
        L{OSError} if it cannot.
    @param most: how many may watch.
    """

    isLeaf = True
    _log = Logger()

    def __init__(
        self,
        reactor: IReactorTime,
        counts: ConnectionCounts,
        status: Callable[[], dict[str, Any]],
        size: Callable[[], int],
        records: Callable[[int], Deferred[list[dict[str, Any]]]],
        most: int,
    ) -> None:
        super().__init__()
        self._seconds = reactor.seconds
        self._counts = counts
        self._status = status
        self._size = size
        self._read_records = records
        self._most = most
        self._watchers: set[_Watcher] = set()
        self._sampler = Sampler(counts, reactor.seconds)
        self._loop = LoopingCall(self._tick)
        self._loop.clock = reactor
        self._busiest_since = 0.0
        self._busiest: dict[str, Any] = {"seconds": 0, "clients": []}
        self._records: list[dict[str, Any]] = []
        self._records_size = -1
        self._reading = False

    def start(self) -> None:
        """Begin to take samples."""
        self._loop.start(1.0, now=False).addErrback(
            lambda failure: self._log.failure("the status page is told nothing more", failure)
        )

    def stop(self) -> None:
        """Let all watchers go."""
        if self._loop.running:
            self._loop.stop()
        for watcher in list(self._watchers):
            watcher.request.loseConnection()

    def render_GET(self, request: Request) -> bytes | int:
        """Tell one more."""
        if len(self._watchers) >= self._most:
            request.setHeader("Retry-After", "10")
            return say(request, SERVICE_UNAVAILABLE, f"{self._most} are watching already")
        request.setHeader("Content-Type", "text/event-stream")
        request.setHeader("X-Accel-Buffering", "no")  # for a proxy that would wait for more
        if request.method == b"HEAD":
            return b""
        watcher = _Watcher(request, None, self._seconds)
        if not self._watchers:
            self._begin_counting()
            self._refresh_records()
        self._watchers.add(watcher)
        request.notifyFinish().addBoth(self._gone, watcher)
        request.registerProducer(watcher, True)
        history = [_point(sample) for sample in self._sampler.history]
        watcher.send(b"retry: 3000\n\n" + self._event(history))
        return NOT_DONE_YET

    def _gone(self, _: object, watcher: _Watcher) -> None:
        self._watchers.discard(watcher)
        if not self._watchers:
            self._counts.busiest = None

    def _begin_counting(self) -> None:
        self._counts.busiest = Busiest()
        self._busiest_since = self._seconds()

    def _tick(self) -> None:
        self._sampler.sample()
        if not self._watchers:
            return
        self._count_busiest()
        self._refresh_records()
        event = self._event([_point(sample) for sample in list(self._sampler.history)[-1:]])
        for watcher in list(self._watchers):
            watcher.send(event)

    def _count_busiest(self) -> None:
        counted = self._counts.busiest
        passed = self._seconds() - self._busiest_since
        if counted is None or passed <= 0:
            return
        self._busiest = {
            "seconds": round(passed),
            "clients": [
                {"client": str(UUID(bytes=client)), "rate": round(count / passed, 1)}
                for client, count in counted.top(_BUSIEST_SHOWN)
            ],
        }
        if passed >= _BUSIEST_SECONDS - 0.5:
            self._begin_counting()

    def _refresh_records(self) -> None:
        """Have the last records read, if there are new ones; one read at a time."""
        size = self._size()
        if self._reading or size == self._records_size:
            return
        self._reading = True

        def read(records: list[dict[str, Any]]) -> None:
            self._records, self._records_size = records, size

        def done(_: object) -> None:
            self._reading = False

        reading: Deferred[Any] = self._read_records(size).addCallback(read)
        # Moved away in this moment, or not readable: the next second may do.
        reading.addErrback(lambda failure: failure.trap(OSError)).addBoth(done)

    def _event(self, samples: list[list[float | None]]) -> bytes:
        told = {
            **self._status(),
            "samples": samples,
            "busiest": self._busiest,
            "records": self._records,
        }
        return b"data: " + orjson.dumps(told) + b"\n\n"


def _point(sample: tuple[float, float, float | None]) -> list[float | None]:
    time, rate, wait = sample
    return [round(time, 1), round(rate, 1), None if wait is None else round(wait, 6)]
