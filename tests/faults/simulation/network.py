"""
Simulated TCP: sockets for Twisted's own transports, and a network between them that does its worst.

Bytes that are sent are in flight for a while, and arrive in pieces of any length.  Both ends have
buffers of bounded size.  Closing is as Linux does it: to close a socket with bytes unread, or to
send to one that is closed, resets the connection.
"""

from __future__ import annotations

import errno
import socket
from collections.abc import Callable
from typing import Any

from attrs import define
from google_crc32c import value as crc32c
from twisted.internet import tcp
from twisted.internet.address import IPv4Address
from twisted.internet.defer import Deferred, succeed
from twisted.internet.error import ConnectionRefusedError
from twisted.internet.interfaces import IListeningPort, IStreamClientEndpoint, IStreamServerEndpoint
from zope.interface import implementer

from .world import SimReactor, World

__all__ = ["Endpoint", "FakeSelect", "Listening", "Network", "Socket"]

# A peer that vanished is noticed by keepalive, or by what it does not acknowledge.
_VANISHED_SECONDS = 100.0


class Pipe:
    """
    One direction of a connection.

    @ivar ready: what has arrived.
    @ivar ended: whether all has arrived that ever will.
    """

    def __init__(self, network: Network, name: str, reader: Socket, writer: Socket) -> None:
        self._network = network
        self._world = network.world
        self._reader, self._writer = reader, writer
        self._rng = self._world.rng(name)
        rng = self._rng
        self.latency = network.latency * (0.2 + rng.random())
        self.capacity = rng.choice(network.capacities)
        self.blocked_until = 0.0
        self.flight = bytearray()
        self.ready = bytearray()
        self._moving = False
        self._turn = 0
        self._ending = False
        self.ended = False
        self.cut = False

    @property
    def room(self) -> int:
        return self.capacity - len(self.flight) - len(self.ready)

    def put(self, data: bytes) -> None:
        self.flight += data
        self._move_later()

    def end(self) -> None:
        """After what is in flight there is an end."""
        self._ending = True
        self._move_later()

    def _move_later(self) -> None:
        if not self._moving:
            self._moving = True
            wait = self.latency * (0.1 + self._rng.random())
            self._turn += 1
            wait = max(wait, self.blocked_until - self._world.now)
            self._world.after(wait, self._move, self._turn)

    def go_on(self) -> None:
        """Nothing stalls any more."""
        self.blocked_until = 0.0
        if self._moving:
            self._moving = False
            self._move_later()

    def _move(self, turn: int) -> None:
        if turn != self._turn:
            return
        self._moving = False
        if self.cut:
            return
        if self.blocked_until > self._world.now:
            self._move_later()
            return
        count = len(self.flight)
        if count > 1 and self._rng.random() < self._network.splitting:
            count = self._rng.randrange(1, min(count, 200))
        if count:
            if self._reader.closed:
                self._writer.fail_later()
                return
            self.ready += self.flight[:count]
            del self.flight[:count]
            self._reader.changed()
        if self.flight:
            self._move_later()
        elif self._ending and not self.ended:
            self.ended = True
            self._reader.changed()

    def take(self, count: int) -> bytes:
        count = min(count, len(self.ready))
        if count > 1 and self._rng.random() < self._network.splitting:
            count = self._rng.randrange(1, count + 1)
        data = bytes(self.ready[:count])
        del self.ready[:count]
        self._writer.changed()
        return data

    def break_off(self) -> None:
        """Nothing more arrives but the beginning of what is in flight, perhaps."""
        if not self.cut:
            self.cut = True
            if not self._reader.closed:
                self.ready += self.flight[: self._rng.randrange(len(self.flight) + 1)]
            self.flight.clear()


class Socket:
    """
    What Twisted takes for a non-blocking socket.

    @ivar transport: Twisted's, which writes to it.
    @ivar received: called with what each C{recv} returned.
    @ivar sent: called with what each C{send} took.
    @ivar ended: called when this end is closed for writing; with whether that is a reset.
    """

    family = socket.AF_INET

    def __init__(self, network: Network, reactor: SimReactor, name: str, fd: int) -> None:
        self.network = network
        self.reactor = reactor
        self.name = name
        self._fd = fd
        self.closed = False
        self.reset = False
        self._shut = False
        self._linger_off = False
        self.transport: Any = None
        self.incoming: Pipe
        self.outgoing: Pipe
        self.peer: Socket
        self.received: Callable[[bytes], object] = lambda data: None
        self.sent: Callable[[bytes], object] = lambda data: None
        self.ended: Callable[[bool], object] = lambda reset: None
        reactor.sockets[self] = None

    def __repr__(self) -> str:
        return self.name

    @property
    def waiting(self) -> int:
        """How many bytes wait in the process to be written."""
        transport = self.transport
        if transport is None:
            return 0
        return len(transport.dataBuffer) - transport.offset + transport._tempDataLen

    # --- what a poll says ------------------------------------------------------------------

    @property
    def readable(self) -> bool:
        return self.reset or bool(self.incoming.ready) or self.incoming.ended

    @property
    def writable(self) -> bool:
        # As in Linux, not for every byte: otherwise a slow reader would be a reader of bytes.
        return self.reset or self._shut or self.outgoing.room * 3 >= self.outgoing.capacity

    @property
    def broken(self) -> bool:
        return self.reset

    def changed(self) -> None:
        """Something about this end is not as it was."""
        self.reactor.wake()

    # --- system calls ----------------------------------------------------------------------

    def recv(self, count: int) -> bytes:
        if self.incoming.ready:
            data = self.incoming.take(count)
            self.network.note(f"{self.name} recv {len(data)} {crc32c(data):08x}")
            self.received(data)
            return data
        if self.reset:
            raise ConnectionResetError(errno.ECONNRESET, "reset")
        if self.incoming.ended:
            return b""
        raise BlockingIOError(errno.EAGAIN, "nothing there")

    def send(self, data: Any, flags: int = 0) -> int:
        if self.reset or self._shut:
            raise BrokenPipeError(errno.EPIPE, "broken")
        room = self.outgoing.room
        if room <= 0:
            raise BlockingIOError(errno.EAGAIN, "full")
        taken = bytes(data[:room])
        self.network.note(f"{self.name} send {len(taken)} of {len(data)} {crc32c(taken):08x}")
        self.sent(taken)
        self.outgoing.put(taken)
        return len(taken)

    def shutdown(self, how: int) -> None:
        if self.reset:
            raise OSError(errno.ENOTCONN, "not connected")
        if not self._shut:
            self._shut = True
            self.network.note(f"{self.name} shut")
            self.ended(False)
            self.outgoing.end()

    def close(self) -> None:
        if self.closed:
            return
        self.closed = True
        self.reactor.sockets.pop(self, None)
        self.network.note(f"{self.name} closed")
        if self.reset:
            self.ended(True)
        elif self._linger_off or self.incoming.ready:
            self.ended(self._linger_off)
            self.outgoing.break_off()
            self.peer.fail_later()
        elif not self._shut:
            self.ended(False)
            self.outgoing.end()
        self._shut = True
        self._fd = -1

    def drop(self) -> None:
        """The process is gone, and so is whoever cares for how the connection ends."""
        self.received = self.sent = lambda data: None
        self.ended = lambda reset: None
        self.close()

    def lose_power(self, seconds: float) -> None:
        """The machine is gone: the peer is told when it tries, once the machine is back."""
        self._fd, self.closed = -1, True
        self.reset = True
        self.ended = lambda reset: None
        self.reactor.sockets.pop(self, None)
        self.incoming.break_off()
        self.outgoing.break_off()
        self.network.world.after(seconds, self.peer.fail)

    def fail_later(self) -> None:
        """A reset is on its way here."""
        self.network.world.after(self.incoming.latency, self.fail)

    def fail(self) -> None:
        """A reset has arrived."""
        if not self.reset:
            self.reset = True
            self.incoming.break_off()
            if self.incoming._rng.random() < 0.5:
                self.incoming.ready.clear()
            self.outgoing.break_off()
            if not self.closed:
                self.network.note(f"{self.name} reset")
                self.changed()

    def fileno(self) -> int:
        return self._fd

    def setblocking(self, blocking: bool) -> None:
        pass

    def setsockopt(self, level: int, name: int, value: object) -> None:
        if (level, name) == (socket.SOL_SOCKET, socket.SO_LINGER):
            self._linger_off = True

    def getsockopt(self, level: int, name: int) -> int:
        return 0


class FakeEpoll:
    """The epoll that L{msglog._sockets.SocketReader} has inside the reactor's."""

    writable = False
    broken = False

    def __init__(self, network: Network) -> None:
        self._network = network
        self._rng = network.world.rng(f"epoll {network.next_fd}")
        self._fd = network.new_fd()
        self._watched: dict[int, Socket] = {}

    @property
    def readable(self) -> bool:
        return any(s.readable for s in self._watched.values())

    def register(self, fd: int, events: int) -> None:
        assert fd not in self._watched, "registered twice"
        sock = self._network.sockets[fd]
        self._watched[fd] = sock
        sock.changed()

    def unregister(self, fd: int) -> None:
        if self._watched.pop(fd, None) is None:
            raise FileNotFoundError(errno.ENOENT, "not registered")

    def poll(self, timeout: float, most: int) -> list[tuple[int, int]]:
        ready = []
        for fd, sock in list(self._watched.items()):
            if sock.closed:
                del self._watched[fd]
            elif sock.readable:
                ready.append((fd, 1))
        self._rng.shuffle(ready)
        return ready[:most]

    def fileno(self) -> int:
        return self._fd

    def close(self) -> None:
        self._watched.clear()


class FakeSelect:
    """In place of the module C{select} where L{SocketReader} uses it."""

    EPOLLIN = 1

    def __init__(self, network: Network) -> None:
        self._network = network

    def epoll(self) -> FakeEpoll:
        return FakeEpoll(self._network)


class Network:
    """
    @ivar latency: how long bytes are in flight, about, seconds.
    @ivar splitting: how often what is sent together arrives in pieces.
    @ivar capacities: what a connection's buffers may hold in one direction, bytes.
    """

    def __init__(
        self, world: World, latency: float, splitting: float, capacities: list[int]
    ) -> None:
        self.world = world
        self.latency = latency
        self.splitting = splitting
        self.capacities = capacities
        self.port: Port | None = None
        self.sockets: dict[int, Socket] = {}
        self.clients: list[Socket] = []
        self.next_fd = 100
        self._connections = 0

    def note(self, text: str) -> None:
        self.world.note(text)

    def new_fd(self) -> int:
        self.next_fd += 1
        return self.next_fd

    def pair(self, client: SimReactor, server: SimReactor) -> tuple[Socket, Socket]:
        """Two ends of a new connection."""
        self._connections += 1
        name = f"connection {self._connections}"
        near = Socket(self, client, f"{name} of {client.name}", self.new_fd())
        far = Socket(self, server, f"{name} at {server.name}", self.new_fd())
        near.peer, far.peer = far, near
        near.outgoing = far.incoming = Pipe(self, f"{name} up", far, near)
        far.outgoing = near.incoming = Pipe(self, f"{name} down", near, far)
        self.sockets[near.fileno()], self.sockets[far.fileno()] = near, far
        self.clients.append(near)
        return near, far

    def connect(self, client: SimReactor) -> Socket | None:
        """A connection to the server, if it listens."""
        if self.port is None or not self.port.reactor.alive:
            return None
        near, far = self.pair(client, self.port.reactor)
        self.note(f"{near.name} connected")
        self.port.arrived(far)
        return near

    def calm(self) -> None:
        """What is stalled goes on."""
        for near in self.open_connections():
            for pipe in (near.outgoing, near.incoming):
                if pipe.blocked_until < float("inf"):
                    pipe.go_on()

    def open_connections(self) -> list[Socket]:
        """The clients' ends of what is connected."""
        self.clients = [s for s in self.clients if not s.closed and not s.reset]
        return self.clients

    def cut(self, near: Socket) -> None:
        """Reset a connection at both ends."""
        near.fail_later()
        near.peer.fail_later()

    def vanish(self, near: Socket) -> None:
        """Nothing arrives on a connection any more, and its ends are not told for long."""
        for end in (near, near.peer):
            end.incoming.blocked_until = float("inf")
            self.world.after(_VANISHED_SECONDS, end.fail)

    def stall(self, near: Socket, up: float, down: float) -> None:
        """Nothing arrives for so many seconds, in each direction."""
        near.outgoing.blocked_until = self.world.now + up
        near.incoming.blocked_until = self.world.now + down


@implementer(IListeningPort)
@define(eq=False)
class Port:
    """Where the server listens."""

    network: Network
    reactor: SimReactor
    factory: Any
    accepted: Callable[[Socket], object]
    wrap: Callable[[Any], Any]

    def getHost(self) -> IPv4Address:
        return IPv4Address("TCP", "127.0.0.1", 7514)

    def startListening(self) -> None:
        self.network.port = self

    def stopListening(self) -> Deferred[None]:
        self.network.port = None
        return succeed(None)

    def arrived(self, sock: Socket) -> None:
        self.reactor.callFromThread(self._accept, sock)

    def _accept(self, sock: Socket) -> None:
        # A connection that waits to be accepted when the port is closed is reset by the kernel.
        if self.network.port is not self:
            sock._linger_off = True
            sock.close()
            return
        self.accepted(sock)
        protocol = self.wrap(self.factory).buildProtocol(None)
        transport_of(sock, protocol, self.reactor)


def transport_of(sock: Socket, protocol: Any, reactor: SimReactor) -> tcp.Server:
    """Twisted's own transport over a socket, and its protocol begun."""
    peer = ("127.0.0.1", sock.fileno())
    transport = tcp.Server(sock, protocol, peer, None, sock.fileno(), reactor)
    sock.transport = transport
    protocol.makeConnection(transport)
    return transport


@implementer(IStreamServerEndpoint)
@define(eq=False)
class Listening:
    """The server's endpoint."""

    network: Network
    reactor: SimReactor
    accepted: Callable[[Socket], object]
    wrap: Callable[[Any], Any]

    def listen(self, factory: Any) -> Deferred[Port]:
        port = Port(self.network, self.reactor, factory, self.accepted, self.wrap)
        port.startListening()
        return succeed(port)


@implementer(IStreamClientEndpoint)
@define(eq=False)
class Endpoint:
    """A client's way to the server."""

    network: Network
    reactor: SimReactor
    connected: Callable[[Socket], object]

    def connect(self, factory: Any) -> Deferred[Any]:
        connecting: Deferred[Any] = Deferred(lambda d: None)
        latency = self.network.latency
        self.network.world.after(latency, self._arrive, factory, connecting)
        return connecting

    def _arrive(self, factory: Any, connecting: Deferred[Any]) -> None:
        if self.reactor.alive and not connecting.called:
            sock = self.network.connect(self.reactor)
            self.reactor.callFromThread(self._done, factory, connecting, sock)

    def _done(self, factory: Any, connecting: Deferred[Any], sock: Socket | None) -> None:
        if connecting.called:
            if sock is not None:
                sock.close()
        elif sock is None:
            connecting.errback(ConnectionRefusedError())
        else:
            self.connected(sock)
            protocol = factory.buildProtocol(None)
            transport_of(sock, protocol, self.reactor)
            connecting.callback(protocol)
