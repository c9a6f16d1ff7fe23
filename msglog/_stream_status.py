"""What the status page is told of a stream: the present figures, and appends of the last minute."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Any

from attrs import asdict, frozen

from ._counts import SECONDS, quantile
from ._figures import Figures
from ._stream_counts import APPEND

__all__ = ["StreamStatus"]

# Long enough that the 99th percentile is one of many, short enough to be of now.
_RECENT_SECONDS = 60.0


@frozen(slots=True)
class _Appends:
    """Those since the start, at a time."""

    time: float
    buckets: list[int]
    stored: int
    messages: float
    batches: float


class StreamStatus:
    """
    @param seconds: the time.
    """

    def __init__(self, seconds: Callable[[], float]) -> None:
        self._seconds = seconds
        nothing = [0] * (len(SECONDS) + 1)
        self._past = deque([_Appends(seconds(), nothing, 0, 0.0, 0.0)])

    def told(self, figures: Figures) -> dict[str, Any] | None:
        """What is so now; L{None} without a stream."""
        stream = figures.stream
        if stream is None:
            return None
        now = _Appends(
            self._seconds(),
            stream.request_seconds[APPEND].buckets,
            sum(figures.commit_messages.buckets),
            figures.commit_messages.total,
            stream.append_batches.total,
        )
        return {
            "state": stream.state,
            "away": stream.away_seconds,
            "server": stream.server,
            "lost": stream.lost_seconds,
            "reconnects": stream.reconnects,
            "leader": stream.leader,
            "leaders": stream.leaders,
            "replicas": stream.replicas,
            "current": stream.replicas_current,
            "others": [asdict(one) for one in stream.others],
            "under_way": stream.under_way,
            "requests_limit": stream.requests_limit,
            "unknown": stream.unknown,
            "unresolved": stream.unresolved,
            "found": stream.found,
            "conflicts": stream.conflicts,
            "refused": stream.refused,
            "appends": self._recent(now),
        }

    def _recent(self, now: _Appends) -> dict[str, Any]:
        past = self._past
        while len(past) > 1 and past[1].time <= now.time - _RECENT_SECONDS:
            past.popleft()
        then = past[0]
        if now.time - past[-1].time >= 1:
            past.append(now)
        new = [after - before for before, after in zip(then.buckets, now.buckets, strict=True)]
        stored = now.stored - then.stored
        return {
            "seconds": now.time - then.time,
            "count": sum(new),
            "p50": quantile(SECONDS, new, 0.5),
            "p99": quantile(SECONDS, new, 0.99),
            "messages": (now.messages - then.messages) / stored if stored else None,
            "batches": (now.batches - then.batches) / stored if stored else None,
        }
