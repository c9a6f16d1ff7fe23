"""
Every limit of the server and of the clients: its name, default, unit and reason.

The plugin's options, the manuals' tables and the code all read these two.
"""

from __future__ import annotations

from typing import Any

from attrs import Attribute, field, fields, frozen

__all__ = ["STORE_MAX_MESSAGE_BYTES", "ClientLimits", "Limits", "limits_table"]

KIB = 1024
MIB = 1024 * KIB

# The longest message body with --store: six times as long as a line, it still is a message that a
# NATS server takes by default (1 MiB).
STORE_MAX_MESSAGE_BYTES = 160 * KIB


def _limit(
    default: float,
    unit: str,
    meaning: str,
    reason: str,
    minimum: float = 1,
    maximum: float = 2**53,
) -> Any:
    def in_range(instance: object, attribute: Attribute[Any], value: float) -> None:
        if not minimum <= value <= maximum:
            raise ValueError(
                f"{attribute.name}: {value} is not between {minimum} and {maximum} {unit}"
            )

    def to_number(value: Any) -> float:
        try:
            return type(default)(value)
        except (ValueError, OverflowError):
            kind = "a whole number" if isinstance(default, int) else "a number"
            raise ValueError(f"not {kind} of {unit}") from None

    return field(
        default=default,
        converter=to_number,
        validator=in_range,
        metadata={"unit": unit, "meaning": meaning, "reason": reason},
    )


@frozen(kw_only=True)
class Limits:
    """What the server bounds; a C{ValueError} says which value is out of its range."""

    max_message_bytes: int = _limit(
        256,
        "bytes",
        "longest message body taken",
        "a line of an audit trail; 16 MiB is the most that the protocol allows",
        0,
        16 * MIB,
    )
    window: int = _limit(
        1024,
        "messages",
        "how many of a client's last messages a resend is compared with",
        "a client keeps at most this many unacknowledged; costs 4 bytes each per client",
        maximum=1_000_000,  # 4 MB a client
    )
    max_connections: int = _limit(
        10_000,
        "connections",
        "connections at a time; one more is told UNAVAILABLE and closed",
        "5 KiB each when idle, so 50 MiB; a system often allows fewer descriptors",
    )
    max_connections_per_address: int = _limit(
        5_000,
        "connections",
        "connections at a time from one address; one more is told UNAVAILABLE and closed",
        "half of all, so that no host alone can keep the others out",
    )
    max_unanswered_bytes: int = _limit(
        1 * MIB,
        "bytes",
        "held for one connection before it is no longer read",
        "a window of 1024 messages of 256 bytes, with what holding them costs",
    )
    max_undurable_bytes: int = _limit(
        128 * MIB,
        "bytes",
        "held for all connections before none is read",
        "a second of the fastest load measured; what the process takes above its idle size",
    )
    max_unread_bytes: int = _limit(
        256 * KIB,
        "bytes",
        "of answers that a peer has not read before its connection is no longer read",
        "the answers to seven windows; the kernel's own buffers come first",
    )
    max_total_unread_bytes: int = _limit(
        64 * MIB,
        "bytes",
        "of unread answers of all peers before those that leave most unread are aborted",
        "250 peers that stopped reading; they resend and lose nothing",
    )
    unread_seconds: float = _limit(
        60.0,
        "seconds",
        "that a peer may not read its answers before its connection is aborted",
        "longer than a short outage of the network; its client resends and loses nothing",
        0.1,
    )
    handshake_seconds: float = _limit(
        10.0,
        "seconds",
        "for a TLS handshake before the connection is aborted",
        "many times what a slow network needs; Twisted alone would wait for ever",
        0.1,
    )
    frame_seconds: float = _limit(
        30.0,
        "seconds",
        "from a frame's first byte to its last before the connection is aborted",
        "a frame is small, and a peer that stops in its middle is broken or means harm",
        0.1,
    )
    idle_seconds: float = _limit(
        3600.0,
        "seconds",
        "without a byte before a connection is closed; 0: never",
        "a client reconnects when it has something to say; a forgotten one frees its place",
        0,
    )
    keepalive_seconds: int = _limit(
        60,
        "seconds",
        "without traffic before TCP asks whether the peer is there, and then 4 times at a quarter",
        "finds peers that vanished within two minutes",
        maximum=32767,  # the kernel's
    )
    user_timeout_seconds: int = _limit(
        60,
        "seconds",
        "that sent answers may stay unacknowledged by the peer's TCP (TCP_USER_TIMEOUT)",
        "otherwise the kernel tries for a quarter of an hour",
        maximum=2_000_000,  # the kernel counts milliseconds in 32 bits
    )
    max_commit_bytes: int = _limit(
        16 * MIB,
        "bytes",
        "of lines that one commit writes, and at most a bundle (256 KiB) more",
        "larger ones gain nothing and let the first message wait for the last",
        maximum=32 * MIB,  # a start takes note of what one may have left: _recovery
    )
    in_place_bytes: int = _limit(
        1 * MIB,
        "bytes",
        "of a commit that is written in the reactor's thread while the disk is quick (5 ms for a "
        "write and its sync, and for what it reads of the ledger); 0: none",
        "to wait for another thread costs more than the disk does; more than this takes it long",
        minimum=0,
    )
    ledger_memory: int = _limit(
        64 * MIB,
        "bytes",
        "for clients in memory before the least recently active live on disk alone",
        "140,000 clients with few messages or 13,000 with a full window",
        1 * MIB,
    )
    checkpoint_bytes: int = _limit(
        64 * MIB,
        "bytes",
        "of log between two updates of the ledger on disk",
        "a start after a crash reads no more than this again, which takes about a second",
    )
    checkpoint_seconds: float = _limit(
        30.0,
        "seconds",
        "between two updates of the ledger on disk, if there was any message",
        "a slow log is as soon ready after a crash as a fast one",
        0.1,
    )
    min_free_bytes: int = _limit(
        1024 * MIB,
        "bytes",
        "free on the log's disk before it is warned of; 0: never",
        "two hours of 500 messages a second of 256 bytes, to make room in",
        0,
    )
    stalled_seconds: float = _limit(
        5.0,
        "seconds",
        "that a commit may take before the server says that it is not ready",
        "far above any healthy disk; senders wait longer before they try another server",
        0.1,
    )
    store_wait_seconds: float = _limit(
        15.0,
        "seconds",
        "that a batch waits for the engine of --store before it is answered UNAVAILABLE",
        "longer than the slowest election of a leader measured, 14.7 s; shorter than the 30 s "
        "after which a client leaves by itself",
        0.1,
    )
    store_answer_seconds: float = _limit(
        1.0,
        "seconds",
        "for the engine of --store to answer one request before it is asked what became of it",
        "a hundred times what it takes; asking once too often costs one small request",
        0.05,
    )
    store_requests: int = _limit(
        256,
        "requests",
        "to the engine of --store at a time; what comes meanwhile makes larger batches",
        "30 ms of what one process can send, so that none is late for want of its turn",
    )
    max_http_connections: int = _limit(
        64,
        "connections",
        "at a time to --http; one more takes the place of the oldest that asks nothing",
        "a few scrapers and browsers; they share the process with the messages",
    )
    max_watchers: int = _limit(
        16,
        "watchers",
        "of the status page at a time; one more is told to come back",
        "each is sent 3 KiB a second; a server's operators fit in one room",
    )
    stop_seconds: float = _limit(
        10.0,
        "seconds",
        "for a stop to answer what has arrived and let clients read the answers",
        "well inside the 90 s after which systemd kills",
        0.1,
    )


@frozen(kw_only=True)
class ClientLimits:
    """What a client bounds; a C{ValueError} says which value is out of its range."""

    window: int = _limit(
        1024,
        "messages",
        "sent and not acknowledged; never more than the server's window",
        "the most that a server compares resends with by default",
    )
    pending_messages: int = _limit(
        4096,
        "messages",
        "handed over and without a receipt before a further one waits or fails",
        "four windows: there is always one to send, and more would not be sooner done",
    )
    pending_bytes: int = _limit(
        64 * MIB,
        "bytes",
        "held for messages without a receipt before a further one waits or fails",
        "what a program can spare for its log; counts twice each body and 2 KiB",
    )
    spool_bytes: int = _limit(
        1024 * MIB,
        "bytes",
        "of messages in the spool before a further one waits or fails",
        "a day of 45 messages a second of 256 bytes",
    )
    connect_seconds: float = _limit(
        10.0,
        "seconds",
        "for a connection to be made and the server to say its terms",
        "longer than any healthy network takes, short enough to try the next server",
        0.1,
    )
    answer_seconds: float = _limit(
        30.0,
        "seconds",
        "without any answer, while one is owed, before another connection is tried",
        "a disk that stalls for longer is as good as away; resends cost nothing",
        0.1,
    )
    first_backoff_seconds: float = _limit(
        0.1,
        "seconds",
        "before the second attempt to connect or to have stored; doubled each time, with jitter",
        "a restart of the server takes about as long",
        0.001,
    )
    max_backoff_seconds: float = _limit(
        10.0,
        "seconds",
        "between two attempts at most",
        "how late a client may notice that its server is back",
        0.001,
    )
    stop_seconds: float = _limit(
        10.0,
        "seconds",
        "for a stop to wait for what has no receipt yet",
        "a service that stops is killed after 90 s by systemd, and by others after 10",
        0,
    )


def limits_table(limits: type = Limits) -> list[tuple[str, Any, str, str, str]]:
    """Each limit: name, default, unit, meaning, reason."""
    return [
        (
            f.name,
            f.default,
            f.metadata["unit"],
            f.metadata["meaning"],
            f.metadata["reason"],
        )
        for f in fields(limits)
    ]
