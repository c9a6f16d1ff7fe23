"""
The figures of a server at one moment: what metrics, health and the status page are made of.

Read in the reactor's thread.  What belongs to the writer's thread is read one number at a time, so
two of its numbers may be a commit apart.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from attrs import asdict, frozen

from ._counts import Histogram
from ._factory import MessageLogFactory
from ._store_figures import StoreFigures
from .interfaces import IStoreService

if TYPE_CHECKING:
    from ._workers import WorkerPool

__all__ = ["Figures", "read_figures"]


@frozen(slots=True, kw_only=True)
class Figures(StoreFigures):
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
    # Worker processes: how many there should be, and how many serve; L{None} without.
    workers: tuple[int, int] | None

    # When the server's certificate does, seconds since 1970; L{None} without TLS.
    certificate_expires: float | None


def read_figures(
    store: IStoreService,
    factory: MessageLogFactory | WorkerPool,
    certificate_expires: float | None = None,
) -> Figures:
    """What is so now."""
    counts = factory.counts
    gauges = factory.gauges()
    return Figures(
        **asdict(store.figures(), recurse=False),
        acked=counts.acked,
        nacked={code.name: count for code, count in counts.nacked.items()},
        received_bytes=counts.received_bytes,
        batches=counts.batches.copy(),
        ack_seconds=counts.ack_seconds.copy(),
        connections=gauges.connections,
        accepted=counts.accepted,
        refused=dict(counts.refused),
        closed=dict(counts.closed),
        paused=gauges.paused,
        pauses=dict(counts.pauses),
        undurable_bytes=gauges.undurable,
        max_undurable_bytes=factory.limits.max_undurable_bytes,
        workers=gauges.workers,
        certificate_expires=certificate_expires,
    )
