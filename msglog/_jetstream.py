"""
What is said to NATS JetStream and what it answers, without I/O.

::

    subject   msglog.019ac1f2-…                      one for each client (with shards: _shards)
    headers   Nats-Expected-Stream: MSGLOG
              Nats-Expected-Last-Subject-Sequence: 4711
              Msglog-Range: 101-200                  the sequences in it
              Msglog-Previous: 4711                  the client's message before this one; 0: none
    data      100 lines of log format version 1, newlines included

C{Msglog-Begins: 101} stands in a client's first message if that does not begin with sequence 1: it
was imported from a log whose oldest files were gone.

One JetStream message is one batch.  It is taken only if the client's last message in the stream is
still the one that the sender believes it to be, so whatever is sent twice, or from two front-ends,
is stored once.  C{Msglog-Previous} chains a client's messages backwards: the engine finds a
subject's last message by itself, but not the one before.

Never C{Nats-Msg-Id}: the same id with other bytes is answered like a success.  Never
C{Nats-Expected-Last-Msg-Id}: one mismatch stopped a replicated stream for good, on all nodes
(nats-server 2.15.1).
"""

from __future__ import annotations

import binascii
import enum
from typing import Any

import orjson
from attrs import define, frozen

from ._errors import RecordError
from ._records import client_text, parse_line

__all__ = [
    "API",
    "MAX_LINES",
    "MAX_PAYLOAD",
    "NOT_CONNECTED",
    "AppendOutcome",
    "Appended",
    "EngineError",
    "Reply",
    "StoredMessage",
    "StreamDamaged",
    "Unknown",
    "append_headers",
    "direct_subject",
    "get_request",
    "get_subject",
    "info_subject",
    "leads",
    "read_append",
    "read_info",
    "read_stored",
    "tail_request",
]

# Where JetStream is asked, unless an account has imported that under another name.
API = "$JS.API"

# One JetStream message takes no more than this: 1,000 messages of 256 bytes that one client has
# under way are two, so that one gathers while the other is stored.  Half of it made three round
# trips of that (49,000 to 57,000 a second and not 84,000 to 105,000), and more gained nothing.  It
# stays far below what a server takes by default (1 MiB).
MAX_LINES = 1000
MAX_PAYLOAD = 256 * 1024

# Followers of nats-server stand for election when they have heard nothing of their leader for 4 to
# 9 s, and it asks them every second.  Seen: another was elected 4.4 s after a cut, while the one
# that was cut off answered for 15 s.
_HEARD_SECONDS = 3.0

_NO_RESPONDERS = "503"
_NOT_FOUND = 10037

# Error codes of nats-server (server/errors.json) after which it is certain that nothing was stored
# and will not be before somebody makes room: limits of the account (10002, 10028), of the server
# (10023, 10047) and of the stream (10077), and a sealed stream (10109).
_NO_ROOM = frozenset({10002, 10023, 10028, 10047, 10077, 10109})

_MISSING = 10059


# A client's last message was not the expected one; another append for the client was under way.
_WRONG_LAST = 10071
_IN_FLIGHT = frozenset({10163, 10164})


# Why a request was not made, where it does not matter which servers were tried.
NOT_CONNECTED = "not connected"


class Unknown(enum.Enum):
    """
    Why it is unknown what became of an append.

    TIMEOUT: no answer in time.  DISCONNECTED: the connection was lost, or there was none.
    NO_RESPONDERS: no server answers for the stream, as while it has no leader.
    WRONG_LAST_SEQUENCE: the client's last message was another than expected.  IN_FLIGHT: an append
    for the same client was under way.  OTHER: any other error, or an answer that fits nothing.
    """

    TIMEOUT = "timeout"
    DISCONNECTED = "disconnected"
    NO_RESPONDERS = "no_responders"
    WRONG_LAST_SEQUENCE = "wrong_last_sequence"
    IN_FLIGHT = "in_flight"
    OTHER = "other"


@define(slots=True)  # one for each append: to freeze it would take twice as long
class Reply:
    """
    What came of a request.

    @ivar data: the answer; L{None} if there was none.
    @ivar trouble: why there was none, for people; from a link, without the servers' addresses.
    @ivar cause: the same, to count it.
    """

    data: bytes | None
    trouble: str = ""
    cause: Unknown = Unknown.DISCONNECTED


class EngineError(Exception):
    """
    The engine could not answer, or not what was asked.

    @ivar missing: whether that is because there is no such stream.
    """

    def __init__(self, reason: str, *, missing: bool = False) -> None:
        super().__init__(reason)
        self.missing = missing


class StreamDamaged(Exception):
    """The stream holds something that no front-end can have written there."""


class AppendOutcome(enum.Enum):
    """
    What became of an append.

    STORED: it is durable.  NO_ROOM: it was not taken, for certain.  UNKNOWN: it may or may not be
    stored, now or in a moment; the client's tail has to be read again.
    """

    STORED = enum.auto()
    NO_ROOM = enum.auto()
    UNKNOWN = enum.auto()


_CONFLICTS = frozenset({Unknown.WRONG_LAST_SEQUENCE, Unknown.IN_FLIGHT})


@define(slots=True)  # one for each append: to freeze it would take twice as long
class Appended:
    """
    @ivar sequence: of the message in the stream, if it is stored.
    @ivar reason: why not, for people.
    @ivar answered: whether the engine said so itself; L{False} if it did not answer, or could not.
    @ivar cause: why the outcome is unknown, if it is.
    """

    outcome: AppendOutcome
    sequence: int = 0
    reason: str = ""
    answered: bool = True
    cause: Unknown = Unknown.OTHER

    @property
    def conflicting(self) -> bool:
        """Whether the engine said that its condition did not hold."""
        return self.outcome is AppendOutcome.UNKNOWN and self.cause in _CONFLICTS


@frozen(slots=True)
class StoredMessage:
    """
    One message of the stream: a run of one client's messages.

    @ivar sequence: its own in the stream.
    @ivar previous: that of the client's message before it; 0 if there is none.
    @ivar first: the client's sequence of the first line.
    @ivar last: the same of the last one.
    @ivar checksums: those of the lines.
    """

    sequence: int
    previous: int
    first: int
    last: int
    checksums: list[int]


def append_headers(stream: str, previous: int, first: int, last: int) -> dict[str, str]:
    """The headers of a message with a client's messages C{first} to C{last}."""
    begins = {"Msglog-Begins": str(first)} if not previous and first > 1 else {}
    return {
        "Nats-Expected-Stream": stream,
        "Nats-Expected-Last-Subject-Sequence": str(previous),
        "Msglog-Range": f"{first}-{last}",
        "Msglog-Previous": str(previous),
        **begins,
    }


def read_append(reply: Reply, stream: str, previous: int) -> Appended:
    """
    What became of an append, by its answer.

    Only the right stream's own word, with a sequence above the one expected, says that it is
    stored.  Everything that is not understood leaves it unknown.
    """
    if reply.data is None:
        return Appended(
            AppendOutcome.UNKNOWN, reason=reply.trouble, answered=False, cause=reply.cause
        )
    try:
        answer = orjson.loads(reply.data)
        error = answer.get("error")
        if error:
            return _refused(error)
        sequence, name = answer["seq"], answer["stream"]
    except (orjson.JSONDecodeError, AttributeError, KeyError, TypeError, ValueError):
        return Appended(AppendOutcome.UNKNOWN, reason="an answer that is none of JetStream's")
    fits = name == stream and type(sequence) is int and sequence > previous
    if fits and not answer.get("duplicate"):
        return Appended(AppendOutcome.STORED, sequence)
    return Appended(AppendOutcome.UNKNOWN, reason="an answer that does not fit what was sent")


def _refused(error: dict[str, Any]) -> Appended:
    code = int(error.get("err_code", 0))
    reason = _described(error)
    if code in _NO_ROOM:
        return Appended(AppendOutcome.NO_ROOM, reason=reason)
    # Below 500 the engine has judged what was sent (10071, 10164: another append came first).
    cause = Unknown.OTHER
    if code == _WRONG_LAST:
        cause = Unknown.WRONG_LAST_SEQUENCE
    elif code in _IN_FLIGHT:
        cause = Unknown.IN_FLIGHT
    return Appended(
        AppendOutcome.UNKNOWN,
        reason=reason,
        answered=int(error.get("code", 500)) < 500,
        cause=cause,
    )


def _described(error: dict[str, Any]) -> str:
    return f"{error.get('description', 'an error')} ({error.get('err_code', 0)})"


def tail_request(subject: str) -> bytes:
    """
    The body of a request for a subject's last message.

    It goes to the stream's leader (C{STREAM.MSG.GET}); a direct get may be answered by a replica
    that is behind.
    """
    return orjson.dumps({"last_by_subj": subject})


def get_subject(stream: str) -> str:
    """Where one message of a stream is asked for."""
    return f"$JS.API.STREAM.MSG.GET.{stream}"


def get_request(sequence: int) -> bytes:
    """The body of a request for the message with a sequence."""
    return orjson.dumps({"seq": sequence})


def info_subject(stream: str, api: str = API) -> str:
    """Where a stream's state is asked for."""
    return f"{api}.STREAM.INFO.{stream}"


def direct_subject(stream: str, api: str = API) -> str:
    """Where messages of a stream are asked of any replica."""
    return f"{api}.DIRECT.GET.{stream}"


def _answer(reply: Reply) -> dict[str, Any]:
    """
    An answer of JetStream's API, which may be an error.

    @raise EngineError: there is none.
    """
    if reply.data is None:
        raise EngineError(reply.trouble)
    try:
        answer = orjson.loads(reply.data)
    except orjson.JSONDecodeError:
        raise EngineError("an answer that is none of JetStream's") from None
    if not isinstance(answer, dict):
        raise EngineError("an answer that is none of JetStream's")
    return answer


def leads(info: dict[str, Any]) -> bool:
    """
    Whether a stream's state comes from who leads it.

    A leader that is cut off, or was stopped, does not know that another one was elected meanwhile
    and answers reads for 10 s and more.  But it says when it last heard of the others: one that
    has heard of a majority, itself included, within the time that no follower stands for election
    in, is the leader.  A stream of one server names no others.
    """
    cluster = info.get("cluster") or {}
    others = cluster.get("replicas") or ()
    if not others:
        return True
    heard = sum(0 < int(other.get("active", 0)) < _HEARD_SECONDS * 1e9 for other in others)
    return bool(cluster.get("leader")) and 2 * (1 + heard) > 1 + len(others)


def read_info(reply: Reply) -> dict[str, Any]:
    """
    A stream's configuration and state.

    @raise EngineError: the engine could not say.
    """
    answer = _answer(reply)
    error = answer.get("error")
    if error:
        raise EngineError(_described(error), missing=error.get("err_code") == _MISSING)
    return answer


def read_stored(reply: Reply, client: bytes, subject: str) -> StoredMessage | None:
    """
    A message of a client, or L{None} if there is no such message.

    @param subject: where the client's messages are.
    @raise EngineError: the engine could not say.
    @raise StreamDamaged: it is none that a front-end has written.
    """
    answer = _answer(reply)
    error = answer.get("error")
    if error:
        if error.get("err_code") == _NOT_FOUND:
            return None
        raise EngineError(_described(error), missing=error.get("err_code") == _MISSING)
    try:
        message = answer["message"]
        sequence = message["seq"]
        headers = _read_headers(binascii.a2b_base64(message["hdrs"]))
        first, last = map(int, headers["Msglog-Range"].split("-"))
        previous = int(headers["Msglog-Previous"])
        begins = int(headers.get("Msglog-Begins", "1"))
        *lines, rest = binascii.a2b_base64(message["data"]).split(b"\n")
        records = [parse_line(line) for line in lines]
    except (KeyError, TypeError, ValueError, AttributeError, RecordError) as e:
        raise StreamDamaged(f"a message of {client_text(client)} is no batch: {e!r}") from None
    expected = list(range(first, first + len(records)))  # the headers may name any number
    if (
        message["subject"] != subject
        or rest
        or last - first + 1 != len(records)
        or [record.sequence for record in records] != expected
        or any(record.client != client for record in records)
        or (previous == 0) != (first == begins)
        or not 0 <= previous < sequence
        or not expected
    ):
        raise StreamDamaged(
            f"message {sequence} of the stream is not what its headers say: {first} to {last} of "
            f"{client_text(client)}"
        )
    return StoredMessage(sequence, previous, first, last, [record.checksum for record in records])


def _read_headers(block: bytes) -> dict[str, str]:
    """The headers of a message, without the line of the version."""
    lines = block.decode().split("\r\n")[1:]
    return dict(line.split(": ", 1) for line in lines if line)
