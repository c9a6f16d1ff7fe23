"""What a store says of itself, in plain numbers, whatever it keeps its messages in."""

from __future__ import annotations

from attrs import frozen

from ._counts import CommitCounts, Histogram
from ._recovery import Recovered
from ._stream_figures import StreamFigures

__all__ = ["StoreFigures", "commit_figures"]


@frozen(slots=True, kw_only=True)
class StoreFigures:
    """The part of L{Figures<msglog._figures.Figures>} that is a store's."""

    # The log.
    records: int
    log_bytes: int
    log_size: int
    commit_messages: Histogram
    commit_bytes: Histogram
    commit_seconds: Histogram
    commits_without_room: int
    no_room: bool
    no_room_time: float
    durable_time: float
    busy_seconds: float
    failed: bool
    disk_free: int | None
    disk_size: int
    disk_low: bool
    times_low: int

    # The ledger and the last start.
    ledger_clients: int
    ledger_bytes: int
    ledger_dirty: int
    recovered: Recovered | None
    recovery_seconds: float

    # What keeps the messages, and where its room is, for people; why it is not ready, and
    # what is well but will not be for long, besides what follows from the numbers.
    keeper: str = "the disk"
    room: str = "on the log's disk"
    troubles: tuple[str, ...] = ()
    store_warnings: tuple[str, ...] = ()

    # What there is besides, if they are kept in a stream.
    stream: StreamFigures | None = None


def commit_figures(counts: CommitCounts) -> dict[str, object]:
    """Those of them that are a store's L{CommitCounts}."""
    return {
        "records": counts.records,
        "log_bytes": counts.log_bytes,
        "commit_messages": counts.messages.copy(),
        "commit_bytes": counts.sizes.copy(),
        "commit_seconds": counts.seconds.copy(),
        "commits_without_room": counts.no_room,
        "no_room": counts.no_room_last,
        "no_room_time": counts.no_room_time,
    }
