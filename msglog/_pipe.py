"""A local socket between a worker process and the writer's, as frames both ways."""

from __future__ import annotations

import socket
from collections import deque
from collections.abc import Callable
from typing import Any

from twisted.internet.interfaces import IReadWriteDescriptor
from twisted.python.failure import Failure
from zope.interface import implementer

from ._pipe_frames import HEAD, MAX_PAYLOAD_BYTES, BadFrame

__all__ = ["Pipe"]

# What is read at a time: about as much as the kernel lets wait in a local socket by default.
_READ_BYTES = 256 * 1024

# What the kernel is asked to let wait, so that a bundle goes in one call.  (It has a limit of its
# own, 208 KiB by default, and doubles what it grants.)
_WAITING_BYTES = 4 * 1024 * 1024


@implementer(IReadWriteDescriptor)
class Pipe:
    """
    One end.

    What is sent and not taken by the kernel waits without a bound: whoever sends bounds it (a
    worker by what has no verdict, the writer by what it was handed).

    @param sock: this end; it is closed with the pipe.
    @param received: called with kind, number and payload of each frame; may raise L{BadFrame}.
    @param lost: called once, with what was wrong or L{None}, when the other end is gone.
    """

    def __init__(
        self,
        reactor: Any,
        sock: socket.socket,
        received: Callable[[int, int, bytes], None],
        lost: Callable[[str | None], None],
    ) -> None:
        self._reactor = reactor
        self._socket = sock
        self._received = received
        self._lost = lost
        self._pieces: list[bytes] = []  # of a frame that is not whole yet
        self._missing = 0  # of it, at least
        self._unsent: deque[bytes | memoryview] = deque()
        self._closed = False
        sock.setblocking(False)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _WAITING_BYTES)
        reactor.addReader(self)

    def send(self, frame: bytes) -> None:
        """Send a frame; dropped if the other end is gone."""
        if self._closed:
            return
        if self._unsent:
            self._unsent.append(frame)
            return
        sent = self._send(frame)
        if sent < len(frame):
            self._unsent.append(memoryview(frame)[sent:])
            self._reactor.addWriter(self)

    def _send(self, data: bytes | memoryview) -> int:
        try:
            return self._socket.send(data)
        except OSError:
            return 0  # full, or lost: reading finds out which

    def flush(self) -> None:
        """Wait until everything is sent; for the end of a process."""
        self._socket.setblocking(True)
        try:
            self._socket.sendall(b"".join(self._unsent))
        except OSError:
            pass  # nobody is there to miss it
        self._unsent.clear()

    def close(self) -> None:
        """Let go of the socket, and hear no more of it."""
        if not self._closed:
            self._closed = True
            self._reactor.removeReader(self)
            self._reactor.removeWriter(self)
            self._socket.close()
            self._unsent.clear()
            self._pieces.clear()

    def doRead(self) -> None:
        """See L{IReadDescriptor}."""
        try:
            data = self._socket.recv(_READ_BYTES)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if not data:
            self._end(None)
            return
        if self._pieces:
            self._pieces.append(data)
            self._missing -= len(data)
            if self._missing > 0:
                return
            data = b"".join(self._pieces)
            self._pieces.clear()
        try:
            self._take(data)
        except BadFrame as e:
            self._end(str(e))

    def _take(self, data: bytes) -> None:
        at, have = 0, len(data)
        while have - at >= HEAD.size:
            length, kind, number = HEAD.unpack_from(data, at)
            if length > MAX_PAYLOAD_BYTES:
                raise BadFrame(f"a frame of {length} bytes")
            end = at + HEAD.size + length
            if end > have:
                self._missing = end - have
                break
            self._received(kind, number, data[at + HEAD.size : end])
            if self._closed:
                return
            at = end
        else:
            self._missing = HEAD.size - (have - at)
        if at < have:
            self._pieces.append(data[at:])

    def _end(self, why: str | None) -> None:
        self.close()
        self._lost(why)

    def doWrite(self) -> None:
        """See L{IWriteDescriptor}."""
        unsent = self._unsent
        while unsent:
            frame = unsent[0]
            sent = self._send(frame)
            if sent < len(frame):
                # Not cut: what waits may be long, and the kernel takes little of it at a time.
                unsent[0] = memoryview(frame)[sent:]
                return
            unsent.popleft()
        self._reactor.removeWriter(self)

    def fileno(self) -> int:
        """See L{IFileDescriptor}."""
        return self._socket.fileno()

    def connectionLost(self, reason: Failure) -> None:
        """The reactor ends, or found the other end gone."""
        if not self._closed:
            self._end(None)

    def logPrefix(self) -> str:
        """See L{ILoggingContext}."""
        return "msglog"
