"""
The figures of a server as Prometheus's metrics.  docs/monitoring.md says what to do about each.

Metrics are made when somebody scrapes, of numbers that are there anyway.  Needs prometheus-client
(the extra C{msglog[http]}), and nothing else does.
"""

from __future__ import annotations

import platform
from collections.abc import Callable, Iterable, Iterator, Mapping

from attrs import frozen
from prometheus_client import CollectorRegistry, ProcessCollector
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    Metric,
)
from prometheus_client.registry import Collector
from prometheus_client.twisted import MetricsResource
from twisted.web.resource import Resource
from twisted.web.server import Request

from . import __version__
from ._counts import Histogram
from ._figures import Figures
from ._health import Health
from ._limits import Limits
from ._stream_metrics import STREAM_COUNTERS, STREAM_GAUGES, STREAM_HISTOGRAMS

__all__ = ["Metrics", "Scrape", "metrics_of", "registry_of"]


@frozen(slots=True)
class Scrape:
    """What one scrape is answered from."""

    figures: Figures
    health: Health
    limits: Limits


Value = float | Mapping[str, float] | None
Number = Callable[[Scrape], Value]


def _recovered(name: str) -> Number:
    def value(scrape: Scrape) -> float | None:
        recovered = scrape.figures.recovered
        return None if recovered is None else float(getattr(recovered, name))

    return value


def _workers(workers: tuple[int, int] | None) -> Mapping[str, float] | None:
    if workers is None:
        return None
    count, serving = workers
    return {"serving": serving, "away": count - serving}


# Name, label, meaning, value.  A value of several has one for each value of its label; one of None
# is not known, and not there.
_COUNTERS: tuple[tuple[str, str, str, Number], ...] = (
    ("messages_acked", "", "Messages answered ACK.", lambda s: s.figures.acked),
    (
        "messages_refused",
        "code",
        "Messages and other frames answered NACK, by its code.",
        lambda s: s.figures.nacked,
    ),
    ("received_bytes", "", "Bytes read from connections.", lambda s: s.figures.received_bytes),
    ("records_written", "", "Messages written to the log.", lambda s: s.figures.records),
    ("log_written_bytes", "", "Bytes written to the log.", lambda s: s.figures.log_bytes),
    (
        "connections_accepted",
        "",
        "Connections that messages were taken from.",
        lambda s: s.figures.accepted,
    ),
    (
        "connections_refused",
        "reason",
        "Connections that were turned away, by why.",
        lambda s: s.figures.refused,
    ),
    (
        "connections_closed",
        "reason",
        "Connections that the server closed or aborted, by why.",
        lambda s: s.figures.closed,
    ),
    (
        "connection_pauses",
        "reason",
        "How often the server stopped reading a connection, by why.",
        lambda s: s.figures.pauses,
    ),
    (
        "commits_without_room",
        "",
        "Commits that were refused because the disk had no room.",
        lambda s: s.figures.commits_without_room,
    ),
    (
        "disk_low",
        "",
        "How often the free space fell below --min-free-bytes.",
        lambda s: s.figures.times_low,
    ),
)
_GAUGES: tuple[tuple[str, str, str, Number], ...] = (
    ("ready", "", "Whether /readyz says yes.", lambda s: s.health.ready),
    ("failed", "", "Whether the disk failed, and the log is closed.", lambda s: s.figures.failed),
    ("connections", "", "Connections now.", lambda s: s.figures.connections),
    (
        "connections_limit",
        "",
        "Connections that there may be (--max-connections).",
        lambda s: s.limits.max_connections,
    ),
    (
        "connections_paused",
        "reason",
        "Connections that are not read now, by why.",
        lambda s: s.figures.paused,
    ),
    (
        "undurable_bytes",
        "",
        "Held for messages that have no answer yet.",
        lambda s: s.figures.undurable_bytes,
    ),
    (
        "undurable_limit_bytes",
        "",
        "Held before nothing is read (--max-undurable-bytes).",
        lambda s: s.figures.max_undurable_bytes,
    ),
    (
        "workers",
        "state",
        "Worker processes (--workers): those that serve, and those that do not.",
        lambda s: _workers(s.figures.workers),
    ),
    (
        "disk_busy_seconds",
        "",
        "How long the commit that is being written has taken so far.",
        lambda s: s.figures.busy_seconds,
    ),
    (
        "last_durable_commit_timestamp_seconds",
        "",
        "When the last commit was on the disk, since 1970.",
        lambda s: s.figures.durable_time or None,
    ),
    ("log_size_bytes", "", "Length of the log file.", lambda s: s.figures.log_size),
    (
        "disk_free_bytes",
        "",
        "Free on the log's disk for the server's user.",
        lambda s: s.figures.disk_free,
    ),
    (
        "disk_size_bytes",
        "",
        "Size of the log's disk.",
        lambda s: None if s.figures.disk_free is None else s.figures.disk_size,
    ),
    (
        "disk_free_limit_bytes",
        "",
        "Free space below which is warned (--min-free-bytes).",
        lambda s: s.limits.min_free_bytes,
    ),
    ("ledger_clients", "", "Clients in memory.", lambda s: s.figures.ledger_clients),
    ("ledger_bytes", "", "What they take.", lambda s: s.figures.ledger_bytes),
    (
        "ledger_limit_bytes",
        "",
        "What they may take (--ledger-memory).",
        lambda s: s.limits.ledger_memory,
    ),
    (
        "ledger_dirty_clients",
        "",
        "Clients that the ledger on disk does not have as they are.",
        lambda s: s.figures.ledger_dirty,
    ),
    (
        "recovery_seconds",
        "",
        "How long the last start took to recover.",
        lambda s: None if s.figures.recovered is None else s.figures.recovery_seconds,
    ),
    ("recovery_records", "", "Records that it had to read.", _recovered("records")),
    ("recovery_read_bytes", "", "Bytes that it had to read.", _recovered("read")),
    (
        "recovery_torn_bytes",
        "",
        "Bytes that it cut off because a crash had torn them.",
        _recovered("torn"),
    ),
    (
        "certificate_expiry_timestamp_seconds",
        "",
        "When the server's certificate expires, since 1970.",
        lambda s: s.figures.certificate_expires,
    ),
)
_HISTOGRAMS: tuple[tuple[str, str, Callable[[Figures], Histogram]], ...] = (
    (
        "ack_seconds",
        "For each message, from when it was read to when its ACK was written.",
        lambda f: f.ack_seconds,
    ),
    ("batch_messages", "Messages of one client taken at once.", lambda f: f.batches),
    ("commit_seconds", "How long a commit took, the disk included.", lambda f: f.commit_seconds),
    ("commit_messages", "Messages written in one commit.", lambda f: f.commit_messages),
    ("commit_bytes", "Bytes written in one commit.", lambda f: f.commit_bytes),
)


def metrics_of(scrape: Scrape) -> Iterator[Metric]:
    """Every metric of msglog's own; those of a stream have no values without one."""
    stream = scrape.figures.stream
    for kind, table, of_stream in (
        (CounterMetricFamily, _COUNTERS, STREAM_COUNTERS),
        (GaugeMetricFamily, _GAUGES, STREAM_GAUGES),
    ):
        for name, label, meaning, number in table:
            yield _family(kind, name, label, meaning, number(scrape))
        for name, label, meaning, value in of_stream:
            yield _family(kind, name, label, meaning, value(stream) if stream else None)
    for name, meaning, histogram in _HISTOGRAMS:
        yield _histograms(name, "", meaning, histogram(scrape.figures))
    for name, label, meaning, several in STREAM_HISTOGRAMS:
        yield _histograms(name, label, meaning, several(stream) if stream else {})
    info = GaugeMetricFamily(
        "msglog_build_info", "Which msglog this is; always 1.", labels=["python", "version"]
    )
    info.add_metric([platform.python_version(), __version__], 1)
    yield info


def _family(
    kind: type[CounterMetricFamily | GaugeMetricFamily],
    name: str,
    label: str,
    meaning: str,
    value: Value,
) -> Metric:
    family = kind(f"msglog_{name}", meaning, labels=[label] if label else [])
    if isinstance(value, Mapping):
        for key, one in sorted(value.items()):
            family.add_metric([key], one)
    elif value is not None:
        family.add_metric([], value)
    return family


def _histograms(
    name: str, label: str, meaning: str, value: Histogram | Mapping[str, Histogram]
) -> Metric:
    """One, or one for each value of a label."""
    family = HistogramMetricFamily(f"msglog_{name}", meaning, labels=[label] if label else [])
    several = value if isinstance(value, Mapping) else {"": value}
    for key, histogram in several.items():
        family.add_metric([key] if label else [], _buckets(histogram), histogram.total)
    return family


def _buckets(histogram: Histogram) -> list[tuple[str, float]]:
    below = 0
    buckets: list[tuple[str, float]] = []
    bounds = [f"{bound:g}" if bound < 1e6 else f"{bound:.0f}" for bound in histogram.bounds]
    for bound, inside in zip([*bounds, "+Inf"], histogram.buckets, strict=True):
        below += inside
        buckets.append((bound, below))
    return buckets


class _Given(Collector):
    def __init__(self, metrics: Iterable[Metric]) -> None:
        self._metrics = list(metrics)

    def collect(self) -> Iterable[Metric]:
        return self._metrics


def registry_of(scrape: Scrape) -> CollectorRegistry:
    """What prometheus-client formats: msglog's own metrics, and those of the process."""
    registry = CollectorRegistry()
    registry.register(_Given(metrics_of(scrape)))
    ProcessCollector(registry=registry)
    return registry


class Metrics(Resource):
    """
    C{/metrics}.

    The figures are read here, in the reactor's thread, so that they are of one moment;
    prometheus-client's resource then formats them in a thread of the pool.
    """

    isLeaf = True

    def __init__(self, scrape: Callable[[], Scrape]) -> None:
        super().__init__()
        self._scrape = scrape

    def render_GET(self, request: Request) -> int:
        """Answer a scrape."""
        answer: int = MetricsResource(registry_of(self._scrape())).render(request)
        return answer
