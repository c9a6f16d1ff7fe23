"""
Other systems' protocols on the load's own core: the same connections, windows and clock, and as
little work for a message, so that it is the systems that are compared.

Frames are made a block at a time, as L{msglog._load.blocks} does it: a template in which only the
message's number is written over.  Both protocols answer a message by two lines, and what is counted
are lines; an answer that is an error is noticed and ends the load.
"""

from __future__ import annotations

import json
import socket
from collections.abc import Callable
from uuid import UUID, uuid4

from msglog._load.loop import Make, body
from msglog._load.sender import LoadError, Sender

__all__ = ["NumberedFrames", "make_stream", "nats", "redis", "see_redis"]

# Digits of a number.  A block has the last two of them, each once, or the last one where frames are
# so long that a hundred for each connection are too much.
_DIGITS = 12
_LONG_BYTES = 4096

_LINES_AN_ANSWER = 2

Record = Callable[[int, int], None]


class NumberedFrames:
    """
    Frames that differ by their number alone, 12 digits.

    @param before: what a frame has before its number.
    @param after: what it has after it.
    """

    def __init__(self, before: bytes, after: bytes) -> None:
        self._at = len(before)
        self._number = 0
        self.stride = len(before) + _DIGITS + len(after)
        self._block = 100 if self.stride < _LONG_BYTES else 10
        self._high = _DIGITS - len(str(self._block)) + 1  # digits that a block has in common
        self.frames = bytearray(
            b"".join(b"%b%012d%b" % (before, number, after) for number in range(self._block))
        )

    def next(self) -> None:
        """See L{IFrames<msglog._load.sender.IFrames>}."""
        before = b"%0*d" % (self._high, self._number)
        self._number += 1
        after = b"%0*d" % (self._high, self._number)
        for place, (old, new) in enumerate(zip(before, after, strict=True)):
            if old != new:
                self.frames[self._at + place :: self.stride] = bytes([new]) * self._block


class _Rival(Sender):
    """
    @param errors: what an answer has in it that is none.
    """

    __slots__ = ("_errors", "_lines", "_rest")

    def __init__(
        self,
        sock: socket.socket,
        client: bytes,
        frames: NumberedFrames,
        record: Record,
        errors: tuple[bytes, ...],
    ) -> None:
        super().__init__(sock, client, frames, record)
        self._errors = errors
        self._rest = b""  # of a line that is not whole
        self._lines = 0  # of an answer that is not whole

    def _take(self, data: bytes, now: int) -> int:
        data = self._rest + data
        end = data.rfind(b"\n") + 1
        self._rest, whole = data[end:], b"\n" + data[:end]
        for error in self._errors:
            if error in whole:
                at = whole.index(error)
                raise LoadError(f"the server answered {whole[at : at + 200]!r}")
        lines = self._lines + whole.count(b"\n") - 1 - self._asides(whole)
        answers, self._lines = divmod(lines, _LINES_AN_ANSWER)
        if answers:
            self._settle(answers, now)
        return answers

    def _asides(self, whole: bytes) -> int:
        """How many lines are no part of an answer."""
        return 0


class _Nats(_Rival):
    __slots__ = ()

    def _asides(self, whole: bytes) -> int:
        pings = whole.count(b"\nPING\r\n")
        if pings:
            # A few bytes in minutes; that there is no room for them cannot be.
            self._send(b"PONG\r\n" * pings)
        return pings


def redis(size: int) -> Make:
    """XADD to one stream: what has the client, its number, and the body, in fields of their own."""
    text = body(size)

    def make(sock: socket.socket, number: int, record: Record) -> Sender:
        client = uuid4().bytes
        before = (
            b"*9\r\n$4\r\nXADD\r\n$6\r\nmsglog\r\n$1\r\n*\r\n"
            b"$1\r\nc\r\n$16\r\n%b\r\n$1\r\ns\r\n$%d\r\n" % (client, _DIGITS)
        )
        after = b"\r\n$1\r\nm\r\n$%d\r\n%b\r\n" % (size, text)
        return _Rival(sock, client, NumberedFrames(before, after), record, (b"\n-",))

    return make


def see_redis(port: int) -> None:
    """
    See that Redis answers.

    @raise OSError: nobody does.
    @raise LoadError: it is something else.
    """
    with socket.create_connection(("127.0.0.1", port), timeout=10) as sock:
        sock.sendall(b"PING\r\n")
        said = sock.recv(64)
        if said != b"+PONG\r\n":
            raise LoadError(f"Redis answered {said!r}")


def nats(size: int) -> Make:
    """
    A publish to the stream, answered on a subject of the connection's own.  The client is in the
    subject; the number stands where the body begins (so a body has 12 bytes at least).
    """
    text = body(size)[_DIGITS:]

    def make(sock: socket.socket, number: int, record: Record) -> Sender:
        client = uuid4()
        inbox = b"_INBOX." + client.hex.encode()
        sock.recv(64 * 1024)  # its INFO
        sock.sendall(b'CONNECT {"verbose":false,"pedantic":false}\r\nSUB %b 1\r\nPING\r\n' % inbox)
        said = b""
        while not said.endswith(b"PONG\r\n"):
            more = sock.recv(4096)
            if not more or b"-ERR" in said:
                raise LoadError(f"NATS ended the greeting: {said!r}")
            said += more
        before = b"PUB msglog.%b %b %d\r\n" % (
            client.hex.encode(),
            inbox,
            _DIGITS + len(text),
        )
        frames = NumberedFrames(before, text + b"\r\n")
        return _Nats(sock, client.bytes, frames, record, (b'"error"', b"\n-ERR"))

    return make


def make_stream(port: int) -> None:
    """
    Make the stream that the load goes to.

    @raise OSError: nobody answers.
    @raise LoadError: it cannot be made.
    """
    config = json.dumps({"name": "msglog", "subjects": ["msglog.*"], "storage": "file"}).encode()
    reply = b"_INBOX." + UUID(int=0).hex.encode()
    with socket.create_connection(("127.0.0.1", port), timeout=10) as sock:
        sock.recv(64 * 1024)
        sock.sendall(
            b'CONNECT {"verbose":false}\r\nSUB %b 1\r\nPUB $JS.API.STREAM.CREATE.msglog %b %d\r\n'
            b"%b\r\n" % (reply, reply, len(config), config)
        )
        said = b""
        while b"MSG " not in said or not said.endswith(b"}\r\n"):
            more = sock.recv(64 * 1024)
            if not more:
                raise LoadError(f"JetStream made no stream: {said!r}")
            said += more
        if b'"error"' in said:
            raise LoadError(f"JetStream made no stream: {said!r}")
