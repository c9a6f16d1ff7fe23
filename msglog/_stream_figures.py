"""The figures of a store on a stream at one moment, for metrics and the status page."""

from __future__ import annotations

import enum
from typing import Any

from attrs import frozen

from ._counts import Histogram
from ._stream_counts import LinkCounts, StreamCounts

__all__ = ["EngineState", "Replica", "StreamFigures", "read_stream_figures"]


class EngineState(enum.Enum):
    """
    What a store makes of its engine.

    ANSWERING: its last answer was one.  AWAY: it was none.  UNUSABLE: the stream's settings, or the
    server's, would break the promise.  LOST: it has lost what was acknowledged; that stays.
    """

    ANSWERING = "answering"
    AWAY = "away"
    UNUSABLE = "unusable"
    LOST = "lost"


@frozen(slots=True)
class Replica:
    """
    One of a stream's replicas besides its leader, as the leader sees it.

    @ivar current: whether it is there and up to date.
    @ivar lag: how many operations it is behind.
    @ivar silent_seconds: since when the leader has heard nothing of it.
    """

    name: str
    current: bool
    lag: int
    silent_seconds: float


@frozen(slots=True, kw_only=True)
class StreamFigures:
    """Plain numbers, in bytes and seconds; docs/monitoring.md says what each means."""

    state: str
    away_seconds: float

    # The connection.
    server: str
    lost_seconds: float
    reconnects: int

    # The stream, by its leader's last word; a stream of one server names no replicas.
    leader: str
    leaders: int
    replicas: int
    replicas_current: int
    others: tuple[Replica, ...]

    # Requests and what became of them.
    under_way: dict[str, int]
    requests_limit: int
    request_seconds: dict[str, Histogram]
    read_bytes: dict[str, int]
    append_batches: Histogram
    unknown: dict[str, int]
    unresolved: int
    found: dict[str, int]
    conflicts: dict[str, int]
    refused: dict[str, int]


def read_stream_figures(
    counts: StreamCounts,
    link: LinkCounts,
    info: dict[str, Any],
    state: EngineState,
    away_seconds: float,
    requests_limit: int,
) -> StreamFigures:
    """
    What is so now.

    @param info: the stream's configuration and state, as JetStream gave it; empty before it did.
    """
    cluster = info.get("cluster") or {}
    others = tuple(_replica(one) for one in cluster.get("replicas") or ())
    leader = str(cluster.get("leader") or "")
    unknown, found = sum(counts.unknown.values()), sum(counts.found.values())
    return StreamFigures(
        state=state.value,
        away_seconds=away_seconds,
        server=link.server,
        lost_seconds=link.lost_seconds,
        reconnects=link.reconnects,
        leader=leader,
        leaders=counts.leaders,
        replicas=int(info.get("config", {}).get("num_replicas", 0)),
        # A server that is none of a cluster names no leader, and is there, for it answers.
        replicas_current=bool(leader or (info and not cluster))
        + sum(one.current for one in others),
        others=others,
        under_way={kind: counts.begun[kind] - counts.ended[kind] for kind in counts.begun},
        requests_limit=requests_limit,
        request_seconds={kind: one.copy() for kind, one in counts.seconds.items()},
        read_bytes=dict(counts.read_bytes),
        append_batches=counts.batches.copy(),
        unknown={cause.value: n for cause, n in counts.unknown.items()},
        unresolved=unknown - found,
        found={found.value: n for found, n in counts.found.items()},
        conflicts={origin.value: n for origin, n in counts.conflicts.items()},
        refused=dict(counts.refused),
    )


def _replica(told: dict[str, Any]) -> Replica:
    return Replica(
        str(told.get("name", "?")),
        bool(told.get("current")) and not told.get("offline"),
        int(told.get("lag", 0)),
        int(told.get("active", 0)) / 1e9,
    )
