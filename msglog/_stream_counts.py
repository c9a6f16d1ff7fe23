"""
What a store on a stream counts of its requests, and its link of its connections.

Plain numbers, as in L{_counts<msglog._counts>}: an addition here and there, for metrics and the
status page.  What each means, docs/monitoring.md says.
"""

from __future__ import annotations

import enum
import time
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

from attrs import Factory, define

from ._counts import MESSAGES, SECONDS, Histogram, named
from ._jetstream import Unknown

__all__ = [
    "APPEND",
    "EARLIER",
    "REFUSALS",
    "REQUESTS",
    "TAIL",
    "Found",
    "LinkCounts",
    "Origin",
    "StreamCounts",
]


# What the engine is asked for a client: to append, for its last message, for one before that.
APPEND, TAIL, EARLIER = REQUESTS = ("append", "tail", "earlier")


class Found(enum.Enum):
    """
    What became of an append whose outcome was unknown, when its client's tail was read again.

    LANDED: all of its messages are stored, by it or by another front-end that was sent the same.
    PARTLY: some of them are, so another front-end stored those.  NOT_LANDED: none.  GAVE_UP: the
    tail was not read before everybody who waited had an answer.
    """

    LANDED = "landed"
    PARTLY = "partly"
    NOT_LANDED = "not_landed"
    GAVE_UP = "gave_up"


class Origin(enum.Enum):
    """
    What had moved a client's tail, so that an append's condition did not hold.

    LATE: an earlier append of this server, that was looked for and landed after that.  ELSEWHERE:
    another front-end.  NOTHING: the tail is where it was believed to be (two appends were under
    way, and neither was stored; or a leader had not caught up).
    """

    LATE = "late"
    ELSEWHERE = "elsewhere"
    NOTHING = "nothing"


# Why messages were refused for the engine's sake: four UNAVAILABLE, three NOT_STORED.
REFUSALS = ("away", "late", "stopping", "unusable", "damaged", "full", "lost")


@define(slots=True, eq=False)
class StreamCounts:
    """
    What a L{NatsStore<msglog._nats_store.NatsStore>} counts besides its commits.

    @ivar begun: requests that were handed to the link, by kind.
    @ivar ended: those of them that were answered, or given up.
    @ivar seconds: how long each took that the engine answered, by kind.
    @ivar read_bytes: what the answers to reads were, by kind.
    @ivar batches: batches for each append that was stored.
    @ivar unknown: appends whose outcome was unknown, by why.
    @ivar found: what became of those.
    @ivar conflicts: appends whose condition did not hold, by what had moved the tail.
    @ivar refused: messages that were refused for the engine's sake, by why.
    @ivar leaders: how often another leader than before was seen.
    """

    begun: Counter[str] = Factory(lambda: named(*REQUESTS))
    ended: Counter[str] = Factory(lambda: named(*REQUESTS))
    seconds: dict[str, Histogram] = Factory(lambda: {r: Histogram(SECONDS) for r in REQUESTS})
    read_bytes: Counter[str] = Factory(lambda: named(TAIL, EARLIER))
    batches: Histogram = Factory(lambda: Histogram(MESSAGES))
    unknown: Counter[Unknown] = Factory(lambda: Counter(dict.fromkeys(Unknown, 0)))
    found: Counter[Found] = Factory(lambda: Counter(dict.fromkeys(Found, 0)))
    conflicts: Counter[Origin] = Factory(lambda: Counter(dict.fromkeys(Origin, 0)))
    refused: Counter[str] = Factory(lambda: named(*REFUSALS))
    leaders: int = 0
    _leader: str = ""

    @classmethod
    def of_all(cls, parts: Sequence[StreamCounts]) -> StreamCounts:
        """The sums of several; of one, itself."""
        if len(parts) == 1:
            return parts[0]
        whole = cls()
        for part in parts:
            for name in (
                "begun",
                "ended",
                "read_bytes",
                "unknown",
                "found",
                "conflicts",
                "refused",
            ):
                getattr(whole, name).update(getattr(part, name))
            for request, histogram in part.seconds.items():
                whole.seconds[request].add(histogram)
            whole.batches.add(part.batches)
            whole.leaders += part.leaders
        return whole

    def see_leader(self, info: dict[str, Any]) -> None:
        """Count a new leader, if the stream's state names one."""
        leader = (info.get("cluster") or {}).get("leader") or ""
        if leader and leader != self._leader:
            self.leaders += bool(self._leader)
            self._leader = leader

    def done(self, request: str, seconds: float, data: bytes | None) -> None:
        """Count the end of a request; C{data} is the engine's answer, if it gave any."""
        self.ended[request] += 1
        if data is None:
            return
        self.seconds[request].note(max(seconds, 0.0))
        if request is not APPEND:
            self.read_bytes[request] += len(data)


@define(slots=True, eq=False)
class LinkCounts:
    """
    What a link counts of its connections.

    @ivar clock: seconds that only go forward.
    @ivar server: C{host:port} of the server that it is connected to; empty if it is to none.
    @ivar reconnects: how often another connection took a lost one's place.
    @ivar lost_at: when the connection was lost, or was begun to be made first.
    """

    clock: Callable[[], float] = time.monotonic
    server: str = ""
    reconnects: int = 0
    lost_at: float = Factory(lambda self: self.clock(), takes_self=True)
    _was: bool = False

    def connected(self, server: str) -> None:
        """There is a connection."""
        self.reconnects += self._was
        self._was = True
        self.server = server

    def disconnected(self) -> None:
        """It is lost; said again, it is still lost."""
        if self.server:
            self.server = ""
            self.lost_at = self.clock()

    @property
    def lost_seconds(self) -> float:
        """For how long there has been no connection; 0 if there is one."""
        return 0.0 if self.server else max(self.clock() - self.lost_at, 0.0)
