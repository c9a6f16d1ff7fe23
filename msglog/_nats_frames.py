"""
The client's side of the NATS protocol, as far as the store needs it, without I/O.

::

    server: INFO {"server_id":…,"version":"2.15.1","max_payload":1048576,…}
    client: CONNECT {"verbose":false,"headers":true,…}
    client: SUB <subject> <sid>
    client: PING                                          server: PONG, and the other way round
    client: PUB  <subject> <reply-to> <bytes>             and a line with so many bytes
    client: HPUB <subject> <reply-to> <header bytes> <bytes of both>
    server: MSG  <subject> <sid> <bytes>
    server: HMSG <subject> <sid> <header bytes> <bytes of both>
    server: -ERR '<why>'

Every line ends with CR LF (https://docs.nats.io/reference/reference-protocols/nats-protocol).

It is spoken here and not by nats-py, which the C{msglog} command uses: that needs an asyncio loop,
so beside most reactors a thread, and each append then passed two (82 µs of a front-end's processor
for one message, against 50; docs/distributed.md).
"""

from __future__ import annotations

from typing import Any

import orjson
from attrs import define, frozen

__all__ = [
    "PING",
    "PONG",
    "Complaint",
    "Info",
    "Message",
    "NatsFault",
    "NatsFrames",
    "Ping",
    "Pong",
    "connect",
    "publish",
    "subscribe",
]

PING = b"PING\r\n"
PONG = b"PONG\r\n"

_VERSION_LINE = b"NATS/1.0"

# The longest line: an INFO that names some thousand servers.
_LINE_BYTES = 256 * 1024

# The longest message; a server can not be told to take more.
_MESSAGE_BYTES = 64 * 1024 * 1024


class NatsFault(Exception):
    """The server sent what is not the NATS protocol."""


@frozen(slots=True)
class Info:
    """What a server says of itself, at first and when that changes."""

    fields: dict[str, Any]


@define(slots=True)  # one for each append: to freeze it would take twice as long
class Message:
    """
    @ivar subject: where it was sent to.
    @ivar data: what was sent, without headers.
    @ivar status: of the headers; 0 if there is none.  503: nobody listens where it was asked.
    """

    subject: bytes
    data: bytes
    status: int = 0


@frozen(slots=True)
class Ping:
    """The server wants to be answered PONG."""


@frozen(slots=True)
class Pong:
    """The server has read what was sent before a PING."""


@frozen(slots=True)
class Complaint:
    """What the server did not like; it may close the connection after it."""

    text: str


Frame = Info | Message | Ping | Pong | Complaint

_PING, _PONG = Ping(), Pong()


class NatsFrames:
    """Frames out of what a connection brings."""

    def __init__(self) -> None:
        self._chunks: list[bytes] = []
        self._held = 0
        self._needed = 0

    @property
    def held(self) -> int:
        """How many bytes of a frame that is not complete have come."""
        return self._held

    def feed(self, data: bytes) -> list[Frame]:
        """
        Take bytes, and give the frames that they complete.

        @raise NatsFault: they are none.
        """
        if self._held:
            self._chunks.append(data)
            self._held += len(data)
            if self._held < self._needed:
                return []
            data = b"".join(self._chunks)
        frames: list[Frame] = []
        at, size = 0, len(data)
        needed = 0
        while at < size:
            end = data.find(b"\r\n", at)
            if end < 0:
                if size - at > _LINE_BYTES:
                    raise NatsFault("a line without an end")
                needed = size - at + 1
                break
            first = data[at]
            if first == 77 or first == 72:  # M, H: nearly all
                stop = self._body_end(data, at, end)
                if stop + 2 > size:
                    needed = stop + 2 - at
                    break
                frames.append(_read_message(data, at, end, stop))
                at = stop + 2
            else:
                frame = _read_line(data[at:end])
                if frame is not None:
                    frames.append(frame)
                at = end + 2
        self._chunks = [data[at:]] if at < size else []
        self._held = size - at
        self._needed = needed
        return frames

    @staticmethod
    def _body_end(data: bytes, at: int, end: int) -> int:
        try:
            length = int(data[data.rindex(b" ", at, end) + 1 : end])
        except ValueError:
            raise NatsFault(f"no message: {data[at:end][:80]!r}") from None
        if not 0 <= length <= _MESSAGE_BYTES:
            raise NatsFault(f"a message of {length} bytes")
        return end + 2 + length


def _read_message(data: bytes, at: int, end: int, stop: int) -> Message:
    words = data[at:end].split()
    kind = words[0]
    if data[stop : stop + 2] != b"\r\n":
        raise NatsFault("a message that does not end where it should")
    try:
        if kind == b"MSG" and 4 <= len(words) <= 5:
            return Message(words[1], data[end + 2 : stop])
        if kind == b"HMSG" and 5 <= len(words) <= 6:
            body = end + 2 + int(words[-2])
            version, _, rest = data[end + 2 : body].partition(b"\r\n")[0].partition(b" ")
            if version == _VERSION_LINE and end + 2 < body <= stop:
                return Message(words[1], data[body:stop], int(rest[:3]) if rest else 0)
    except ValueError:
        pass
    raise NatsFault(f"no message: {data[at:end][:80]!r}")


def _read_line(line: bytes) -> Frame | None:
    word, _, rest = line.partition(b" ")
    if word == b"PING":
        return _PING
    if word == b"PONG":
        return _PONG
    if word == b"INFO":
        try:
            fields = orjson.loads(rest)
        except orjson.JSONDecodeError:
            fields = None
        if isinstance(fields, dict):
            return Info(fields)
    elif word == b"-ERR":
        return Complaint(rest.decode(errors="replace").strip().strip("'"))
    elif word == b"+OK":
        return None
    raise NatsFault(f"not a NATS server's words: {line[:80]!r}")


def connect(options: dict[str, Any]) -> bytes:
    """The first words of a client."""
    return b"CONNECT %b\r\n" % orjson.dumps(options)


def subscribe(subject: str) -> bytes:
    """Have what is sent there sent here."""
    return b"SUB %b 1\r\n" % subject.encode()


def publish(
    subject: str, reply_to: str, payload: bytes, headers: dict[str, str] | None
) -> list[bytes]:
    """Send, in pieces so that the payload is not copied."""
    if headers is None:
        line = f"PUB {subject} {reply_to} {len(payload)}\r\n"
    else:
        block = "".join([f"{name}: {value}\r\n" for name, value in headers.items()])
        size = len(block) + 12  # with the version, and the empty line; all of it is ASCII
        line = f"HPUB {subject} {reply_to} {size} {size + len(payload)}\r\nNATS/1.0\r\n{block}\r\n"
    return [line.encode("ascii"), payload, b"\r\n"]
