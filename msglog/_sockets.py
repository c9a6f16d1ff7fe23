"""
Reading and writing plain sockets without what Twisted costs for each event, and writing answers to
any transport while knowing whether the peer reads them.
"""

from __future__ import annotations

import select
from collections.abc import Callable
from typing import Any, Protocol

from twisted.internet.interfaces import IPullProducer, IPushProducer, IReadDescriptor
from twisted.logger import Logger
from twisted.python.failure import Failure
from zope.interface import implementer

__all__ = ["SocketAnswers", "SocketReader", "TransportAnswers"]

# What is read of a socket at a time, as Twisted does it.
_READ_BYTES = 64 * 1024

# A round goes on with what arrives meanwhile, and with more than one read of a socket, until it has
# brought so much.  It is one commit, and fewer and larger ones are cheaper: a quarter off the p99
# of 10 to 100 connections with a message each, and 1.2 times the rate of one with 1,000.
_ROUND_BYTES = 256 * 1024

# How often it looks for more at most: a peer that sends byte by byte must not keep it up.
_ROUND_LOOKS = 4

# What is read of a socket in the first round after too much was undurable: that is one turn of the
# smallest frames (L{msglog._protocol}), and all have theirs before it is too much again.
_BRIEF_BYTES = 8 * 1024

# Answers handed to a transport at a time: when they are gone, the peer is reading.
_CHUNK_BYTES = 64 * 1024


class _IReads(Protocol):
    """A connection whose socket is read for it."""

    transport: Any

    def dataReceived(self, data: bytes) -> None:
        """Take what was read."""

    def read_by_transport(self) -> None:
        """Have the transport read from now on: it knows what an end and an error are."""


# How a socket is read, and whose it is.
_Watched = tuple[Callable[[int], bytes], _IReads]


@implementer(IReadDescriptor)
class SocketReader:
    """
    Reads many plain sockets as one descriptor of the reactor: an epoll inside the reactor's own.

    Twisted dispatches each event of each connection through a logging context and three calls.
    Here one event of the reactor is a round over all sockets that have something to read.  (What
    that gains is in docs/design.md.)

    @param began: called before each round.
    @param ended: called after it.
    """

    _log = Logger()

    def __init__(
        self, reactor: Any, began: Callable[[], object], ended: Callable[[], object]
    ) -> None:
        self._reactor = reactor
        self._began = began
        self._ended = ended
        self._epoll = select.epoll()
        self._sockets: dict[int, _Watched] = {}
        self._unpaused: dict[int, _Watched] = {}
        self._most = _READ_BYTES

    def add(self, connection: _IReads) -> int:
        """Read a connection's socket from now on; returns its descriptor."""
        transport = connection.transport
        transport.stopReading()
        fd: int = transport.fileno()
        if not self._sockets:
            self._reactor.addReader(self)
        self._sockets[fd] = transport.getHandle().recv, connection
        self.resume(fd)
        return fd

    def pause(self, fd: int) -> None:
        """Do not read a socket for a while; not in this round either, if there is one."""
        del self._unpaused[fd]
        self._epoll.unregister(fd)

    def resume(self, fd: int) -> None:
        """Read a socket again."""
        self._unpaused[fd] = self._sockets[fd]
        self._epoll.register(fd, select.EPOLLIN)

    def remove(self, fd: int) -> None:
        """Forget a socket, which may be closed."""
        del self._sockets[fd]
        self._unpaused.pop(fd, None)
        try:
            self._epoll.unregister(fd)
        except OSError:
            pass  # paused, or closed
        if not self._sockets:
            # Nothing is left in the reactor by a server that has stopped.
            self._reactor.removeReader(self)

    def be_brief(self) -> None:
        """Read little of each socket in the next round, so that many with much are soon read."""
        self._most = _BRIEF_BYTES

    def fileno(self) -> int:
        """See L{IReadDescriptor}."""
        return self._epoll.fileno()

    def doRead(self) -> None:
        """See L{IReadDescriptor}: read once each socket that has something."""
        self._began()
        try:
            self._round()
        finally:
            self._most = _READ_BYTES
            self._ended()

    def _round(self) -> None:
        brought = 0
        for _ in range(_ROUND_LOOKS):
            before = brought
            ready = self._epoll.poll(0, len(self._sockets))
            brought = self._read(ready, brought)
            if brought == before or brought >= _ROUND_BYTES or len(ready) >= len(self._sockets):
                break

    def _read(self, ready: list[tuple[int, int]], brought: int) -> int:
        """Read sockets once each; how much a round has brought now, if it was C{brought} before."""
        sockets = self._unpaused
        for fd, _ in ready:
            found = sockets.get(fd)
            if found is None:
                continue  # what another one of this round brought has paused or closed it
            recv, connection = found
            try:
                data = recv(self._most)
            except BlockingIOError:
                continue
            except OSError:
                data = b""
            brought += len(data)
            if len(data) == _READ_BYTES and brought < _ROUND_BYTES:
                rest = _rest(recv, _ROUND_BYTES - brought)
                brought += len(rest)
                data += rest
            try:
                if data:
                    connection.dataReceived(data)
                else:
                    connection.read_by_transport()
            except Exception:
                self._log.failure("a connection failed")
                connection.read_by_transport()  # and not in this round again
                connection.transport.abortConnection()
        return brought

    def connectionLost(self, reason: Failure) -> None:
        """The reactor ends, and tells every descriptor that it knows."""
        for _, connection in list(self._sockets.values()):
            connection.transport.connectionLost(reason)

    def logPrefix(self) -> str:
        """See L{IReadDescriptor}."""
        return "msglog"


def _rest(recv: Callable[[int], bytes], count: int) -> bytes:
    """What more a socket has, at most so many bytes."""
    try:
        return recv(count)
    except OSError:
        return b""  # nothing, or an error that the next round finds too


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
