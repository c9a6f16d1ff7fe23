"""
The figures of a server at one moment: what metrics, health and the status page are made of.

Read in the reactor's thread.  What belongs to the writer's thread is read one number at a time, so
two of its numbers may be a commit apart.
"""

from __future__ import annotations

from attrs import frozen

from ._counts import Histogram
from ._factory import MessageLogFactory
from ._protocol import HOLDS
from ._recovery import Recovered
from ._store import FileStore

__all__ = ["Figures", "read_figures"]

_ANY = sum(HOLDS.values())


@frozen(slots=True, kw_only=True)
class Figures:
    """Plain numbers, in bytes and seconds; docs/monitoring.md says what each means."""

    # Connections and their messages.
    acked: int
    nacked: dict[str, int]
    received_bytes: int
    batches: Histogram
    ack_seconds: Histogram
    connections: int
    accepted: int
    refused: dict[str, int]
    closed: dict[str, int]
    paused: dict[str, int]
    pauses: dict[str, int]
    undurable_bytes: int
    max_undurable_bytes: int

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

    # When the server's certificate does, seconds since 1970; L{None} without TLS.
    certificate_expires: float | None


def read_figures(
    store: FileStore, factory: MessageLogFactory, certificate_expires: float | None = None
) -> Figures:
    """What is so now."""
    counts, writer = factory.counts, store.writer
    commits, ledger, space = writer.counts, writer.ledger, writer.space
    paused = dict.fromkeys(HOLDS, 0)
    for connection in factory.connections:
        if connection.held(_ANY):
            for name, reason in HOLDS.items():
                paused[name] += connection.held(reason)
    return Figures(
        acked=counts.acked,
        nacked={code.name: count for code, count in counts.nacked.items()},
        received_bytes=counts.received_bytes,
        batches=counts.batches.copy(),
        ack_seconds=counts.ack_seconds.copy(),
        connections=len(factory.connections),
        accepted=counts.accepted,
        refused=dict(counts.refused),
        closed=dict(counts.closed),
        paused=paused,
        pauses=dict(counts.pauses),
        undurable_bytes=factory.undurable,
        max_undurable_bytes=factory.limits.max_undurable_bytes,
        records=commits.records,
        log_bytes=commits.log_bytes,
        log_size=writer.size,
        commit_messages=commits.messages.copy(),
        commit_bytes=commits.sizes.copy(),
        commit_seconds=commits.seconds.copy(),
        commits_without_room=commits.no_room,
        no_room=commits.no_room_last,
        no_room_time=commits.no_room_time,
        durable_time=writer.durable_time / 1e6,
        busy_seconds=store.busy_seconds,
        failed=store.failed is not None,
        disk_free=space.free,
        disk_size=space.size,
        disk_low=space.low,
        times_low=space.times_low,
        ledger_clients=len(ledger),
        ledger_bytes=ledger.memory,
        ledger_dirty=len(ledger.dirty),
        recovered=store.recovered,
        recovery_seconds=store.recovery_seconds,
        certificate_expires=certificate_expires,
    )
