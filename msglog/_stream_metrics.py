"""
What C{/metrics} has besides, if the messages are kept in a stream.

Tables as those of L{_metrics<msglog._metrics>}: name, label, meaning, value.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from ._counts import Histogram
from ._stream_figures import EngineState, StreamFigures

__all__ = ["STREAM_COUNTERS", "STREAM_GAUGES", "STREAM_HISTOGRAMS"]

_Number = Callable[[StreamFigures], float | Mapping[str, float]]
_Table = tuple[tuple[str, str, str, _Number], ...]

STREAM_COUNTERS: _Table = (
    (
        "stream_read_bytes",
        "request",
        "Bytes of the answers to reads of clients' messages, by what was read.",
        lambda f: f.read_bytes,
    ),
    (
        "stream_appends_unknown",
        "cause",
        "Appends of which it was not known whether they were stored, by why.",
        lambda f: f.unknown,
    ),
    (
        "stream_appends_resolved",
        "found",
        "What became of those when the client's last message was read again.",
        lambda f: f.found,
    ),
    (
        "stream_conflicts",
        "origin",
        "Appends whose condition did not hold, by what had moved the client's last message.",
        lambda f: f.conflicts,
    ),
    (
        "stream_messages_refused",
        "reason",
        "Messages refused for the stream's sake, by why.",
        lambda f: f.refused,
    ),
    (
        "stream_reconnects",
        "",
        "Connections to NATS that took a lost one's place.",
        lambda f: f.reconnects,
    ),
    (
        "stream_leader_changes",
        "",
        "How often another leader of the stream was seen than before.",
        lambda f: f.leaders,
    ),
)
STREAM_GAUGES: _Table = (
    (
        "stream_state",
        "state",
        "What this server makes of NATS; 1 for the state that is so.",
        lambda f: {state.value: state.value == f.state for state in EngineState},
    ),
    (
        "stream_away_seconds",
        "",
        "Since when NATS has given no answer; 0 if its last one was one.",
        lambda f: f.away_seconds,
    ),
    (
        "stream_connection_info",
        "server",
        "Which server of NATS this one is connected to; always 1, and absent without one.",
        lambda f: {f.server: 1} if f.server else {},
    ),
    (
        "stream_disconnected_seconds",
        "",
        "Since when there is no connection to NATS; 0 with one.",
        lambda f: f.lost_seconds,
    ),
    (
        "stream_requests",
        "request",
        "Requests to NATS that are under way, by what for.",
        lambda f: f.under_way,
    ),
    (
        "stream_requests_limit",
        "",
        "Requests that may be (--store-requests).",
        lambda f: f.requests_limit,
    ),
    (
        "stream_appends_unresolved",
        "",
        "Appends of which it is not known now whether they are stored.",
        lambda f: f.unresolved,
    ),
    ("stream_replicas", "", "Replicas that the stream should have.", lambda f: f.replicas),
    (
        "stream_replicas_current",
        "",
        "Replicas that are there and up to date, the leader included.",
        lambda f: f.replicas_current,
    ),
    (
        "stream_replica_lag",
        "replica",
        "Operations that a replica is behind the leader.",
        lambda f: {one.name: one.lag for one in f.others},
    ),
)
STREAM_HISTOGRAMS: tuple[
    tuple[str, str, str, Callable[[StreamFigures], Histogram | Mapping[str, Histogram]]], ...
] = (
    (
        "stream_request_seconds",
        "request",
        "How long a request took that NATS answered, by what for.",
        lambda f: f.request_seconds,
    ),
    ("stream_append_batches", "", "Batches stored by one append.", lambda f: f.append_batches),
)
