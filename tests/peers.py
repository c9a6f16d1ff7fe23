"""The other side of a client in memory: the real server's protocol, and what it has logged."""

from __future__ import annotations

from uuid import UUID

from twisted.internet.task import Clock
from twisted.python.failure import Failure

from msglog import Limits, MessageLogFactory
from msglog.testing import MemoryStore, MemoryTransport

CLIENT = UUID(bytes=bytes(range(16)))
ID = CLIENT.bytes
MAX_BODY = 20


class ServerSide:
    """A real server in memory, and one connection to it at a time."""

    def __init__(self, window: int = 1024) -> None:
        self.clock = Clock()
        self.store = MemoryStore(window, automatic=False)
        self.permitted = True
        self.serve(MAX_BODY)
        self.transport: MemoryTransport | None = None

    def serve(self, max_body: int) -> None:
        """Serve the same store with other limits."""
        limits = Limits(max_message_bytes=max_body, window=self.store.window)
        permits = lambda client, transport: self.permitted  # noqa: E731 - one line says it
        self.factory = MessageLogFactory(self.clock, self.store, limits, permits)

    def end(self) -> None:
        if self.factory._sweep.running:
            self.factory._sweep.stop()

    def accept(self) -> None:
        self.transport = MemoryTransport()
        self.transport.protocol = self.factory.buildProtocol(None)
        self.transport.protocol.makeConnection(self.transport)

    def take(self, data: bytes) -> None:
        self.transport.protocol.dataReceived(data)

    def say(self) -> bytes:
        """What has been answered since the last time."""
        self.clock.advance(0)
        data = self.transport.value()
        self.transport.clear()
        return data

    def lose(self) -> None:
        transport, self.transport = self.transport, None
        transport.protocol.connectionLost(Failure(ConnectionError()))

    @property
    def logged(self) -> list[bytes]:
        """The client's bodies in the log, which must have the sequences from 1."""
        assert {m[0] for m in self.store.messages} <= {ID}
        assert [m[1] for m in self.store.messages] == list(range(1, len(self.store.messages) + 1))
        return [m[2] for m in self.store.messages]
