"""
What a worker process and the writer's process say to each other, without I/O.

::

    0        4      5        9
    | length | kind | number | payload …
    | u32    | u8   | u32    | length bytes

Numbers are in the machine's own order: both ends are on one machine, and of one installation.  The
socket between them is a pair that nobody else can open.  All the same nothing that arrives is more
than numbers and bytes, and is measured before it is used: a worker is the process that strangers
talk to.

=========  =========  ===========================================================================
kind       from       number, payload
=========  =========  ===========================================================================
SETTINGS   writer     the worker's; JSON; the first frame
RELOAD     writer     0; JSON: the TLS files as they are now
STOP       writer     0; answer what has arrived, and end
READY      worker     0; connections are taken
BUNDLE     worker     its own; ``u32`` batches, ``u32`` messages; client ids of 16 bytes; ``u64``
                      first sequences; ``u32`` counts; ``u32`` checksums; lines
JUDGED     writer     the bundle's; nothing if all is stored; otherwise for each refusal ``u32``
                      batch, ``u32`` start, ``u32`` stop, ``u8`` code, ``u64`` expected, ``u16``
                      length of the reason, and the reason in UTF-8
ASK        worker     its own; a client id: what is its last durable sequence?
LAST       writer     the question's; ``u64`` the sequence, or nothing if the store cannot say
GONE       worker     0; ``u32`` numbers of connections that are closed
FIGURES    worker     0; JSON, four times a second: what the worker counts, from its start on
=========  =========  ===========================================================================

JSON is for what comes seldom.
"""

from __future__ import annotations

from array import array
from collections import Counter
from collections.abc import Sequence
from itertools import groupby
from operator import itemgetter
from struct import Struct
from struct import error as StructError
from typing import Any

import orjson
from attrs import frozen

from ._batch import MAX_SEQUENCE, NackCode, Refusal, Verdict
from ._bundle import Bundle, Exceptions
from ._counts import ConnectionCounts, Histogram

__all__ = [
    "ASK",
    "BUNDLE",
    "FIGURES",
    "GONE",
    "HEAD",
    "JUDGED",
    "LAST",
    "MAX_PAYLOAD_BYTES",
    "READY",
    "RELOAD",
    "SETTINGS",
    "STOP",
    "BadFrame",
    "WorkerFigures",
    "decode_bundle",
    "decode_exceptions",
    "decode_figures",
    "decode_gone",
    "decode_last",
    "encode_bundle",
    "encode_exceptions",
    "encode_figures",
    "encode_frame",
    "encode_last",
]

SETTINGS, RELOAD, STOP, READY, BUNDLE, JUDGED, ASK, LAST, GONE, FIGURES = range(1, 11)

HEAD = Struct("=IBI")

# A worker cuts its bundles at 1 MiB, but one batch is never cut: a message of 16 MiB whose every
# byte takes six in its line, and what one read brought before it.
MAX_PAYLOAD_BYTES = 128 * 1024 * 1024

_BUNDLE = Struct("=II")
_REFUSAL = Struct("=IIIBQH")
_LAST = Struct("=Q")
_CLIENT_BYTES = 16

# A reason is a sentence of ours; the length's field has room for no more.
_MAX_REASON_BYTES = 0xFFFF


class BadFrame(Exception):
    """The process at the other end sent what it should not."""


def encode_frame(kind: int, number: int, payload: bytes = b"") -> bytes:
    """A frame."""
    return HEAD.pack(len(payload), kind, number) + payload


# --- bundles and verdicts ---------------------------------------------------------------------


def encode_bundle(number: int, bundle: Bundle) -> bytes:
    """A BUNDLE frame."""
    payload = b"".join(
        (
            _BUNDLE.pack(len(bundle.clients), len(bundle.checksums)),
            *bundle.clients,
            array("Q", bundle.firsts).tobytes(),
            array("I", bundle.counts).tobytes(),
            array("I", bundle.checksums).tobytes(),
            *bundle.lines,
        )
    )
    return HEAD.pack(len(payload), BUNDLE, number) + payload


def decode_bundle(payload: bytes) -> Bundle:
    """
    The bundle of a BUNDLE frame.

    @raise BadFrame: its numbers do not fit each other.
    """
    if len(payload) < _BUNDLE.size:
        raise BadFrame("a bundle without its numbers")
    batches, messages = _BUNDLE.unpack_from(payload)
    firsts_at = _BUNDLE.size + _CLIENT_BYTES * batches
    counts_at = firsts_at + 8 * batches
    checksums_at = counts_at + 4 * batches
    lines_at = checksums_at + 4 * messages
    if lines_at > len(payload) or not batches:
        raise BadFrame(f"a bundle of {len(payload)} bytes with {batches} batches")
    firsts = array("Q", payload[firsts_at:counts_at])
    counts = array("I", payload[counts_at:checksums_at])
    lines = payload[lines_at:]
    if (
        sum(counts) != messages
        or not min(counts)
        or min(firsts) < 1
        or max(firsts) > MAX_SEQUENCE
        or not lines.endswith(b"\n")
    ):
        raise BadFrame("a bundle whose numbers do not fit each other")
    ids = payload[_BUNDLE.size : firsts_at]
    clients = [ids[at : at + _CLIENT_BYTES] for at in range(0, len(ids), _CLIENT_BYTES)]
    return Bundle(
        clients, firsts, counts, array("I", payload[checksums_at:lines_at]), [lines], len(lines)
    )


def encode_exceptions(number: int, exceptions: Exceptions) -> bytes:
    """A JUDGED frame."""
    parts: list[bytes] = []
    for index, verdict in exceptions:
        for refusal in verdict.refusals:
            reason = refusal.reason.encode()[:_MAX_REASON_BYTES]
            start, stop, expected = refusal.start, refusal.stop, refusal.expected
            head = _REFUSAL.pack(index, start, stop, refusal.code, expected, len(reason))
            parts += (head, reason)
    return encode_frame(JUDGED, number, b"".join(parts))


def decode_exceptions(payload: bytes) -> Exceptions:
    """
    The verdicts of a JUDGED frame.

    @raise BadFrame: it is none.
    """
    found: list[tuple[int, Refusal]] = []
    at = 0
    try:
        while at < len(payload):
            index, start, stop, code, expected, length = _REFUSAL.unpack_from(payload, at)
            at += _REFUSAL.size
            reason = payload[at : at + length].decode(errors="replace")
            at += length
            found.append((index, Refusal(start, stop, NackCode(code), expected, reason)))
    except (StructError, ValueError) as e:
        raise BadFrame(f"no verdicts: {e}") from None
    return [
        (index, Verdict(tuple(refusal for _, refusal in refusals)))
        for index, refusals in groupby(found, itemgetter(0))
    ]


# --- what comes seldom ------------------------------------------------------------------------


def encode_last(number: int, last: int | None) -> bytes:
    """A LAST frame."""
    return encode_frame(LAST, number, b"" if last is None else _LAST.pack(last))


def decode_last(payload: bytes) -> int | None:
    """The sequence of a LAST frame."""
    if not payload:
        return None
    if len(payload) != _LAST.size:
        raise BadFrame("an answer of a wrong length")
    last: int = _LAST.unpack(payload)[0]
    return last


def decode_gone(payload: bytes) -> Sequence[int]:
    """The connections' numbers of a GONE frame."""
    if len(payload) % 4:
        raise BadFrame("connections' numbers of a wrong length")
    return array("I", payload)


@frozen
class WorkerFigures:
    """
    What a worker says of itself.

    @ivar counts: what it has counted since it started.
    @ivar paused: how many connections are not read now, by why.
    @ivar undurable: bytes that have no verdict.
    """

    counts: ConnectionCounts
    paused: dict[str, int]
    undurable: int


def encode_figures(figures: WorkerFigures) -> bytes:
    """A FIGURES frame."""
    counts = figures.counts
    told = {
        "paused": figures.paused,
        "undurable": figures.undurable,
        "accepted": counts.accepted,
        "refused": dict(counts.refused),
        "closed": dict(counts.closed),
        "pauses": dict(counts.pauses),
        "received_bytes": counts.received_bytes,
        "acked": counts.acked,
        "nacked": {code.name: count for code, count in counts.nacked.items()},
        "batches": [counts.batches.buckets, counts.batches.total],
        "ack_seconds": [counts.ack_seconds.buckets, counts.ack_seconds.total],
    }
    return encode_frame(FIGURES, 0, orjson.dumps(told))


def decode_figures(payload: bytes) -> WorkerFigures:
    """
    The figures of a FIGURES frame.

    @raise BadFrame: it has none.
    """
    try:
        told = orjson.loads(payload)
        counts = ConnectionCounts()
        counts.accepted = int(told["accepted"])
        counts.received_bytes = int(told["received_bytes"])
        counts.acked = int(told["acked"])
        for name, counter in (
            ("refused", counts.refused),
            ("closed", counts.closed),
            ("pauses", counts.pauses),
        ):
            counter.update(_numbers(told[name]))
        for name, count in _numbers(told["nacked"]).items():
            counts.nacked[NackCode[name]] = count
        _fill(counts.batches, told["batches"])
        _fill(counts.ack_seconds, told["ack_seconds"])
        return WorkerFigures(counts, dict(_numbers(told["paused"])), int(told["undurable"]))
    except (KeyError, TypeError, ValueError, AttributeError) as e:
        raise BadFrame(f"no figures: {e!r}") from None


def _numbers(told: dict[str, Any]) -> Counter[str]:
    return Counter({str(name): int(count) for name, count in told.items()})


def _fill(histogram: Histogram, told: Any) -> None:
    buckets, total = told
    if len(buckets) != len(histogram.buckets):
        raise ValueError("a histogram of other ranges")
    histogram.buckets = [int(count) for count in buckets]
    histogram.total = float(total)
