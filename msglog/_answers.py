"""Writing a connection's answers, and knowing whether its peer reads them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from twisted.internet.interfaces import IPullProducer, IPushProducer
from zope.interface import implementer

__all__ = ["SocketAnswers", "TransportAnswers"]

# Answers handed to a transport at a time: when they are gone, the peer is reading.
_CHUNK_BYTES = 64 * 1024


@implementer(IPullProducer)
class SocketAnswers:
    """
    Writes answers to a plain socket, and knows whether the peer reads them.

    Twisted's C{transport.write} waits for the next turn of the reactor and costs two calls of
    epoll_ctl, which for one small answer is most of its price.  So while nothing is waiting to be
    written, answers go straight to the socket, and only what it does not take goes to the
    transport.  (What that gains is in docs/design.md.)  As a pull producer it hears when the
    transport has written everything.

    @ivar unread: bytes that the socket has not taken.
    @ivar since: when it last took some.
    """

    __slots__ = (
        "_drained",
        "_handed",
        "_queue",
        "_seconds",
        "_send",
        "_transport",
        "since",
        "unread",
    )

    def __init__(
        self, transport: Any, seconds: Callable[[], float], drained: Callable[[], None]
    ) -> None:
        self._transport = transport
        self._send = transport.getHandle().send
        self._seconds = seconds
        self._drained = drained
        self._queue: list[bytes] = []
        self._handed = 0
        self.unread = 0
        self.since = 0.0
        transport.registerProducer(self, False)

    def send(self, data: bytes) -> None:
        if not self.unread:
            try:
                sent = self._send(data)
            except OSError:
                # Full, or lost: the transport finds out which.
                sent = 0
            if sent == len(data):
                return
            data = data[sent:]
            self.since = self._seconds()
        self.unread += len(data)
        self._queue.append(data)
        if not self._handed:
            self._hand_over()

    def _hand_over(self) -> None:
        data = b"".join(self._queue)
        self._queue = [data[_CHUNK_BYTES:]] if len(data) > _CHUNK_BYTES else []
        data = data[:_CHUNK_BYTES]
        self._handed = len(data)
        self._transport.write(data)

    def resumeProducing(self) -> None:
        """The transport has written what it had."""
        self.unread -= self._handed
        self._handed = 0
        if self._queue:
            self.since = self._seconds()
            self._hand_over()
        self._drained()

    def stopProducing(self) -> None:
        """The connection is lost."""
        self._queue = []


@implementer(IPushProducer)
class TransportAnswers:
    """
    Writes answers to any other transport, TLS for one, which must see every byte.

    @ivar unread: bytes that were written when the transport was full, or wait until it is not.
    @ivar since: when it became full.
    """

    __slots__ = ("_drained", "_full", "_queue", "_seconds", "_transport", "since", "unread")

    def __init__(
        self, transport: Any, seconds: Callable[[], float], drained: Callable[[], None]
    ) -> None:
        self._transport = transport
        self._seconds = seconds
        self._drained = drained
        self._queue: list[bytes] = []
        self._full = False
        self.unread = 0
        self.since = 0.0
        transport.registerProducer(self, True)

    def send(self, data: bytes) -> None:
        if self._full:
            self._queue.append(data)
        else:
            self._transport.write(data)
        if self._full:
            self.unread += len(data)

    def pauseProducing(self) -> None:
        """The transport has as much as it takes."""
        self._full = True
        self.since = self._seconds()

    def resumeProducing(self) -> None:
        """The transport takes more."""
        self._full = False
        self.unread = 0
        queue, self._queue = self._queue, []
        if queue:
            self.send(b"".join(queue))
        self._drained()

    def stopProducing(self) -> None:
        """The connection is lost."""
        self._queue = []
