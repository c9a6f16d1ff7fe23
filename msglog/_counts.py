"""
What a server counts of itself: plain numbers with their owners, read by whoever shows them.

Counting is on the way of every batch, so it is an addition here and there: nothing of this knows
what a metric or a page is, and nothing is computed before somebody asks.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter
from collections.abc import Sequence

from attrs import Factory, define

from ._batch import NackCode
from ._busiest import Busiest

__all__ = [
    "MESSAGES",
    "SECONDS",
    "CommitCounts",
    "ConnectionCounts",
    "Histogram",
    "named",
    "quantile",
]

# The bounds of durations: five a decade, so that a quantile is off by no more than half of it,
# from below the fastest disk's sync to where every client has given up.
SECONDS = (
    *(0.0001, 0.0002, 0.0003, 0.0005, 0.0007),
    *(0.001, 0.002, 0.003, 0.005, 0.007),
    *(0.01, 0.02, 0.03, 0.05, 0.07),
    *(0.1, 0.2, 0.3, 0.5, 0.7),
    *(1.0, 2.0, 3.0, 5.0, 7.0),
    10.0,
)

MESSAGES = tuple(float(4**n) for n in range(10))  # 1 to 262,144: a commit of 16 MiB has as many
_BYTES = tuple(float(4**n) for n in range(4, 14))  # 256 to 64 MiB


class Histogram:
    """
    How often a value was in which range.

    @ivar bounds: the highest value of each bucket but the last, which has none.
    @ivar buckets: how many values were in each bucket.
    @ivar total: the sum of all values.
    """

    __slots__ = ("bounds", "buckets", "total")

    def __init__(self, bounds: Sequence[float]) -> None:
        self.bounds = bounds
        self.buckets = [0] * (len(bounds) + 1)
        self.total = 0.0

    def note(self, value: float, times: int = 1) -> None:
        """Count a value, once or so many times."""
        self.buckets[bisect_left(self.bounds, value)] += times
        self.total += value * times

    def add(self, other: Histogram) -> None:
        """Count what another one of the same ranges has counted."""
        self.buckets = [a + b for a, b in zip(self.buckets, other.buckets, strict=True)]
        self.total += other.total

    def copy(self) -> Histogram:
        """The same numbers, which stay as they are."""
        copy = Histogram(self.bounds)
        copy.buckets = self.buckets[:]
        copy.total = self.total
        return copy


def quantile(bounds: Sequence[float], buckets: Sequence[int], share: float) -> float | None:
    """
    The value below which a share of all values lies, as if each bucket's were evenly spread.

    @return: L{None} if there are no values; the highest bound if it is above all of them.
    """
    count = sum(buckets)
    if not count:
        return None
    rank = share * count
    below = 0.0
    for bound, inside in zip(bounds, buckets, strict=False):
        if inside >= rank:
            return below + (bound - below) * rank / inside
        rank -= inside
        below = bound
    return below


def named(*reasons: str) -> Counter[str]:
    """Counters that are there from the beginning, so that what was never counted is seen as 0."""
    return Counter(dict.fromkeys(reasons, 0))


@define(slots=True, eq=False)
class ConnectionCounts:
    """
    What a factory counts of its connections.

    @ivar accepted: connections that messages were taken from.
    @ivar refused: connections that were turned away, by why.  Whatever else turns connections
        away, before they are any (a failed handshake, a certificate), adds a reason of its own.
    @ivar closed: connections that this side ended, by why.
    @ivar pauses: how often it was begun not to read a connection, by why.
    @ivar received_bytes: what was read of connections.
    @ivar acked: messages whose verdict was ACK.
    @ivar nacked: messages and other frames whose verdict was NACK, by code.
    @ivar batches: messages a batch.
    @ivar ack_seconds: for each message, from when the round of reads that brought it began to when
        its ACK was written.
    @ivar busiest: which clients most messages are from; only while somebody wants to know.
    """

    accepted: int = 0
    refused: Counter[str] = Factory(lambda: named("address", "full", "stopping", "tls"))
    closed: Counter[str] = Factory(
        lambda: named("frame", "handshake", "idle", "malformed", "stop", "tls", "unread")
    )
    pauses: Counter[str] = Factory(lambda: named("unanswered", "undurable", "unread"))
    received_bytes: int = 0
    acked: int = 0
    nacked: dict[NackCode, int] = Factory(lambda: dict.fromkeys(NackCode, 0))
    batches: Histogram = Factory(lambda: Histogram(MESSAGES))
    ack_seconds: Histogram = Factory(lambda: Histogram(SECONDS))
    busiest: Busiest | None = None

    def add(self, other: ConnectionCounts) -> None:
        """Count what another one has counted, but for its busiest clients."""
        self.accepted += other.accepted
        self.refused.update(other.refused)
        self.closed.update(other.closed)
        self.pauses.update(other.pauses)
        self.received_bytes += other.received_bytes
        self.acked += other.acked
        for code, count in other.nacked.items():
            self.nacked[code] += count
        self.batches.add(other.batches)
        self.ack_seconds.add(other.ack_seconds)


@define(slots=True, eq=False)
class CommitCounts:
    """
    What a log's writer counts of its commits.

    @ivar records: messages that were written.
    @ivar log_bytes: what was written to the log.
    @ivar messages: messages a commit.
    @ivar sizes: bytes a commit.
    @ivar seconds: how long each commit took, the disk included.
    @ivar no_room: commits that were refused because the disk had no room.
    @ivar no_room_last: whether the last commit was.
    @ivar no_room_time: when one last was, seconds since 1970.
    """

    records: int = 0
    log_bytes: int = 0
    messages: Histogram = Factory(lambda: Histogram(MESSAGES))
    sizes: Histogram = Factory(lambda: Histogram(_BYTES))
    seconds: Histogram = Factory(lambda: Histogram(SECONDS))
    no_room: int = 0
    no_room_last: bool = False
    no_room_time: float = 0.0

    def committed(self, messages: int, size: int, seconds: float) -> None:
        """Count a commit that wrote something."""
        self.records += messages
        self.log_bytes += size
        self.messages.note(messages)
        self.sizes.note(size)
        self.seconds.note(seconds)
        self.no_room_last = False

    def refused(self, now: float) -> None:
        """Count a commit for which there was no room."""
        self.no_room += 1
        self.no_room_last = True
        self.no_room_time = now
