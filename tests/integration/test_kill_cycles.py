"""
The promise, under the worst load: kill -9 in the middle of everything, a hundred times.

Clients write through many connections with windows, cut connections, resend more than they have
to, and move to other connections; the log is moved away and the ledger deleted now and then.
Whatever was acknowledged must be in the log exactly once, in order, whatever happened.
"""

from __future__ import annotations

import asyncio
import os
import random
import struct
import uuid

import wire
from conftest import wait_until

CYCLES = 100
CONNECTIONS = 12
CLIENTS_EACH = 3
WINDOW = 60


class Client:
    """One client id: what it has sent, and how much of that was acknowledged."""

    def __init__(self, rng: random.Random) -> None:
        self.id = uuid.UUID(int=rng.getrandbits(128), version=4).bytes
        self.bodies: list[bytes] = []
        self.acked = 0
        self._rng = rng

    def body(self, sequence: int) -> bytes:
        """The message of a sequence, made when it is first wanted, and the same ever after."""
        while len(self.bodies) < sequence:
            kind = self._rng.random()
            size = self._rng.randrange(200)
            if kind < 0.1:
                self.bodies.append(self._rng.randbytes(size))
            elif kind < 0.2:
                self.bodies.append('äß\n"\\\u2028\x7f€'.encode() * (size // 20))
            else:
                self.bodies.append(b"message %d " % (len(self.bodies) + 1) + b"x" * size)
        return self.bodies[sequence - 1]


class Load:
    """The traffic of one cycle, until the server dies."""

    def __init__(self, port: int, rng: random.Random, kill_at: int, kill) -> None:
        self.port = port
        self.rng = rng
        self.acks_until_kill = kill_at
        self.kill = kill

    async def run(self, groups: list[list[Client]]) -> None:
        await asyncio.gather(*(self._work(group) for group in groups))

    async def _work(self, clients: list[Client]) -> None:
        while True:
            try:
                reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
            except OSError:
                return
            try:
                await self._connection(clients, reader, writer)
            except (ConnectionError, asyncio.IncompleteReadError):
                return
            finally:
                writer.close()

    async def _connection(self, clients: list[Client], reader, writer) -> None:
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

    async def _burst(self, clients: list[Client], reader, writer) -> None:
        """A window of messages of several clients, mixed; then the answers, in that order."""
        sent: list[tuple[Client, int, bytes]] = []
        following = {id(c): c.acked + 1 for c in clients}
        for _ in range(self.rng.randrange(1, WINDOW)):
            client = self.rng.choice(clients)
            sequence = following[id(client)]
            if sequence > 1 and self.rng.random() < 0.1:
                sequence -= 1  # once more
            else:
                following[id(client)] += 1
            data = wire.message(client.id, sequence, client.body(sequence))
            sent.append((client, sequence, data))
        writer.write(b"".join(data for _, _, data in sent))
        if self.rng.random() < 0.02:
            raise asyncio.IncompleteReadError(b"", None)  # cut the connection, answers unread
        for client, sequence, data in sent:
            kind, checksum, who, answered, body = await self._answer(reader)
            assert kind == wire.ACK, (kind, body)
            assert (who, answered) == (client.id, sequence)
            assert struct.pack(">I", checksum) == data[4:8], "not a receipt for these bytes"
            client.acked = max(client.acked, sequence)
            self.acks_until_kill -= 1
            if self.acks_until_kill == 0:
                self.kill()

    async def _answer(self, reader):
        head = await reader.readexactly(4)
        (length,) = struct.unpack(">I", head)
        (answer,), rest = wire.split(head + await reader.readexactly(length))
        assert not rest
        return answer


def test_kill_cycles(make_server) -> None:
    seed = int.from_bytes(os.urandom(4), "big")
    print(f"seed {seed}")
    rng = random.Random(seed)
    server = make_server("--checkpoint-bytes", "200000", "--ledger-memory", "1048576")
    groups = [[Client(rng) for _ in range(CLIENTS_EACH)] for _ in range(CONNECTIONS)]
    rotated = []
    for cycle in range(CYCLES):
        server.start()
        load = Load(server.port, rng, rng.randrange(1, 3000), server.kill)
        asyncio.run(asyncio.wait_for(load.run(groups), 60))
        if load.acks_until_kill > 0:  # every connection was cut before
            server.kill()
        if rng.random() < 0.1:
            server.log.with_name("messages.jsonl.ledger").unlink()
            for extra in server.folder.glob("messages.jsonl.ledger-*"):
                extra.unlink()
        if rng.random() < 0.1:
            old = server.folder / f"messages.jsonl.{cycle}"
            server.log.rename(old)
            rotated.append(old)
    server.start()
    for group in groups:
        for client in group:
            with wire.Connection(server.port) as connection:
                durable, *_ = connection.terms(client.id)
                assert durable >= client.acked
                for sequence in range(durable + 1, len(client.bodies) + 1):
                    connection.log(client.id, sequence, client.body(sequence))
    server.stop()
    logged = wire.read_logs(*rotated, server.log)
    assert {c.id: c.bodies for g in groups for c in g if c.bodies} == logged
    print(f"{sum(map(len, logged.values()))} messages, {len(rotated)} rotations")


def test_rotation_under_load(make_server) -> None:
    """The log is renamed again and again while clients write, with SIGHUP and without."""
    rng = random.Random(1)
    server = make_server().start()
    groups = [[Client(rng)] for _ in range(4)]
    rotated = []

    def rotate() -> None:
        old = server.folder / f"messages.jsonl.{len(rotated)}"
        server.log.rename(old)
        rotated.append(old)
        if len(rotated) % 2:
            server.hang_up()
            wait_until(server.log.exists, "a new log")
        load.acks_until_kill = 500

    load = Load(server.port, rng, 500, rotate)

    async def traffic() -> None:
        work = asyncio.ensure_future(load.run(groups))
        while len(rotated) < 6 or not server.log.exists():
            await asyncio.sleep(0.01)
        work.cancel()
        try:
            await work
        except asyncio.CancelledError:
            pass

    asyncio.run(asyncio.wait_for(traffic(), 60))
    server.stop()
    logged = wire.read_logs(*rotated, server.log)
    for (client,) in groups:
        bodies = logged[client.id]
        assert len(bodies) >= client.acked > 0
        assert client.bodies[: len(bodies)] == bodies
