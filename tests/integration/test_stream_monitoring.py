"""What a front-end says of its stream, while a real NATS server is stopped, killed and started."""

from __future__ import annotations

import signal
import uuid

import wire
from conftest import wait_until
from front_ends import FrontEnd


def counted(front_end: FrontEnd, name: str) -> dict[str, float]:
    """The samples of a counter that are not 0."""
    metrics = front_end.metrics()
    return {label: n for (found, label), n in metrics.items() if found == name and n}


def test_metrics_agree_with_what_happened(make_cluster, make_front_end) -> None:
    """
    Two front-ends of one server: appends, a conflict, an append whose answer is late, and a server
    that goes and comes back are counted for what they were, where they were.
    """
    cluster = make_cluster(1)
    cluster.create_stream()
    (node,) = cluster.nodes
    one = make_front_end(cluster.url, "--store-answer-seconds", "2")
    two = make_front_end(cluster.url, "--store-wait-seconds", "3")
    client = uuid.uuid4().bytes
    unknown = "msglog_stream_appends_unknown_total"
    resolved = "msglog_stream_appends_resolved_total"
    refused = "msglog_stream_messages_refused_total"
    with wire.Connection(one.port) as first, wire.Connection(two.port) as second:
        for sequence in (1, 2, 3):
            first.log(client, sequence, b"x")
        metrics = one.metrics()
        for name, label, value in (
            ("request_seconds_count", "append", 3),
            ("append_batches_sum", "", 3),
            ("request_seconds_count", "tail", 1),
            ("state", "answering", 1),
            ("connection_info", node.server, 1),
            ("disconnected_seconds", "", 0),
            ("replicas", "", 1),
            ("replicas_current", "", 1),
        ):
            assert metrics["msglog_stream_" + name, label] == value, (name, label)
        assert metrics["msglog_commit_messages_sum", ""] == 3

        # The client's next message goes elsewhere, and is sent again here.
        second.log(client, 4, b"x")
        first.log(client, 4, b"x")
        assert counted(one, "msglog_stream_conflicts_total") == {"elsewhere": 1}
        assert counted(one, unknown) == {"wrong_last_sequence": 1}
        assert counted(one, resolved) == {"landed": 1}
        assert counted(two, unknown) == {}

        # The server takes an append and is too slow to say so.
        node.send(signal.SIGSTOP)
        first.send(wire.message(client, 5, b"x"))
        wait_until(lambda: counted(one, unknown).get("timeout") == 1, "a time-out")
        metrics = one.metrics()
        assert metrics["msglog_stream_appends_unresolved", ""] == 1
        assert metrics["msglog_stream_state", "away"] == 1
        node.send(signal.SIGCONT)
        assert first.receive()[0] == wire.ACK
        assert counted(one, resolved) == {"landed": 2}
        assert one.metrics()["msglog_stream_appends_unresolved", ""] == 0

        # It goes, and clients are told so: those who waited, and those who come then.
        node.kill()
        gone = "msglog_stream_disconnected_seconds"
        wait_until(lambda: two.metrics()[gone, ""] > 0, "the loss of the connection")
        assert counted(two, "msglog_stream_connection_info") == {}
        wait_until(lambda: two.metrics()["msglog_stream_state", "away"] == 1, "noticing")
        for reason in ("late", "away"):
            second.send(wire.message(client, 6, b"x"))
            assert second.nack()[0] == 6
            assert counted(two, refused)[reason] == 1
        node.start()
        wait_until(
            lambda: counted(two, "msglog_stream_reconnects_total") == {"": 1}, "a connection"
        )
        wait_until(lambda: two.metrics()["msglog_stream_state", "answering"] == 1, "an answer")
        second.log(client, 6, b"x")
        assert two.metrics()[gone, ""] == 0
        assert two.metrics()["msglog_stream_connection_info", node.server] == 1
        assert counted(two, refused) == {"late": 1, "away": 1}
    metrics = one.metrics()
    assert metrics["msglog_records_written_total", ""] == 3  # 4 was the other's, 5 was looked for
    assert two.metrics()["msglog_records_written_total", ""] == 2
