"""
The worst load: many connections with windows, which are cut, resend more than they have to, and
carry several clients, who move to others.
"""

from __future__ import annotations

import asyncio
import random
import struct
from collections.abc import Callable

import wire

from .promise import Told

__all__ = ["WINDOW", "Load", "groups"]

WINDOW = 60


class _CutByUs(Exception):
    """The client has had enough of this connection; the server has not ended."""


def groups(rng: random.Random, connections: int, each: int) -> list[list[Told]]:
    """Clients for so many connections."""
    return [[Told(rng) for _ in range(each)] for _ in range(connections)]


class Load:
    """
    The traffic of one life of a server, until that ends.

    @param strike_at: after so many ACKs it is struck.
    @param strike: how; it may set L{strike_in} for another time.
    @ivar refusals: NACK codes that are no fault of the server's; what comes behind is sent again.
    """

    def __init__(
        self, port: int, rng: random.Random, strike_at: int, strike: Callable[[], None]
    ) -> None:
        self.port = port
        self.rng = rng
        self.strike_in = strike_at
        self.strike = strike
        self.refusals: frozenset[int] = frozenset()

    async def run(self, groups: list[list[Told]]) -> None:
        await asyncio.gather(*(self._work(group) for group in groups))

    async def _work(self, clients: list[Told]) -> None:
        while True:
            try:
                reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
            except OSError:
                return
            try:
                await self._connection(clients, reader, writer)
            except _CutByUs:
                pass
            except (ConnectionError, asyncio.IncompleteReadError):
                return
            finally:
                writer.close()

    async def _connection(self, clients: list[Told], reader, writer) -> None:
        """Talk until this connection has had enough; another one goes on."""
        for client in clients:
            writer.write(wire.enquiry(client.id))
            kind, _, who, durable, _ = await self._answer(reader)
            assert (kind, who) == (wire.TERMS, client.id)
            assert client.acked <= durable <= len(client.bodies), "an acknowledged message is gone"
            # Some of what is durable already is sent again, for its receipts.
            client.acked = max(durable - self.rng.randrange(WINDOW), client.acked, 0)
        for _ in range(self.rng.randrange(5, 40)):
            await self._burst(clients, reader, writer)

    async def _burst(self, clients: list[Told], reader, writer) -> None:
        """A window of messages of several clients, mixed; then the answers, in that order."""
        sent: list[tuple[Told, int, bytes]] = []
        following = {id(c): c.acked + 1 for c in clients}
        for _ in range(self.rng.randrange(1, WINDOW)):
            client = self.rng.choice(clients)
            sequence = following[id(client)]
            if sequence > 1 and self.rng.random() < 0.1:
                sequence -= 1  # once more
            else:
                following[id(client)] += 1
            data = client.message(sequence)
            sent.append((client, sequence, data))
        writer.write(b"".join(data for _, _, data in sent))
        if self.rng.random() < 0.02:
            raise _CutByUs  # answers unread
        for client, sequence, data in sent:
            kind, checksum, who, answered, body = await self._answer(reader)
            assert (who, answered) == (client.id, sequence)
            if kind == wire.NACK and body[0] in self.refusals:
                continue
            assert kind == wire.ACK, (kind, body)
            assert struct.pack(">I", checksum) == data[4:8], "not a receipt for these bytes"
            client.acked = max(client.acked, sequence)
            self.strike_in -= 1
            if self.strike_in == 0:
                self.strike()

    async def _answer(self, reader):
        head = await reader.readexactly(4)
        (length,) = struct.unpack(">I", head)
        (answer,), rest = wire.split(head + await reader.readexactly(length))
        assert not rest
        return answer
