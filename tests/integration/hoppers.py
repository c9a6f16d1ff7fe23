"""
Clients that never stay: they hop between servers, cut connections with answers unread, and resend.

Written from the protocol's page alone (L{wire}), as the reader of the stream here is from the log
format's and the page about distributed stores: what msglog gets wrong, this must not.
"""

from __future__ import annotations

import asyncio
import base64
import json
import random
import struct
import uuid

import nats
import wire
from nats.js.api import ConsumerConfig, DeliverPolicy

WINDOW = 40


class Hopper:
    """One client id; what it has sent, what was acknowledged, and what it found wrong."""

    def __init__(self, ports: list[int], seed: int) -> None:
        self.ports = ports
        self.rng = random.Random(seed)
        self.id = uuid.UUID(int=self.rng.getrandbits(128), version=4).bytes
        self.bodies: list[bytes] = []
        self.acked = 0
        self.refused: dict[int, int] = {}
        self.wrong: list[str] = []
        self.left: list[asyncio.StreamWriter] = []  # half-open, as after a client's crash

    def message(self, sequence: int) -> bytes:
        while len(self.bodies) < sequence:
            self.bodies.append(b"%d " % sequence + self.rng.randbytes(20).hex().encode())
        return wire.message(self.id, sequence, self.bodies[sequence - 1])

    async def run(self, ended: asyncio.Event) -> None:
        while not ended.is_set():
            try:
                reader, writer = await asyncio.open_connection(
                    "127.0.0.1", self.rng.choice(self.ports)
                )
                await asyncio.wait_for(self._visit(reader, writer, ended), 30)
            except (TimeoutError, OSError, EOFError):
                pass
            else:
                if self.rng.random() < 0.5:
                    self.left.append(writer)
                else:
                    writer.transport.abort()
            await asyncio.sleep(self.rng.random() * 0.02)
        for writer in self.left:
            writer.transport.abort()

    async def _visit(self, reader, writer, ended: asyncio.Event) -> None:
        writer.write(wire.enquiry(self.id))
        kind, _, _, durable, _ = await self._answer(reader)
        if kind != wire.TERMS:
            return
        if not self.acked <= durable <= len(self.bodies):
            self.wrong.append(f"terms say {durable}, {self.acked} were acknowledged")
        # Some of what is durable is sent again, for its receipts.
        first = max(durable - self.rng.randrange(WINDOW), 0) + 1
        for _ in range(self.rng.randrange(1, 12)):
            last = first + self.rng.randrange(1, WINDOW)
            sent = [self.message(sequence) for sequence in range(first, last + 1)]
            writer.write(b"".join(sent))
            if ended.is_set() or self.rng.random() < 0.15:
                return  # and never read the answers
            for sequence, data in enumerate(sent, first):
                kind, checksum, who, answered, body = await self._answer(reader)
                if kind == wire.NACK:
                    self.refused[body[0]] = self.refused.get(body[0], 0) + 1
                    if body[0] not in (5, 6):  # NOT_STORED, UNAVAILABLE
                        self.wrong.append(f"{sequence} was refused: {body!r}")
                    return
                if (who, answered, struct.pack(">I", checksum)) != (self.id, sequence, data[4:8]):
                    self.wrong.append(f"no receipt for {sequence}")
                self.acked = max(self.acked, sequence)
            first = last + 1

    async def _answer(self, reader):
        head = await reader.readexactly(4)
        (length,) = struct.unpack(">I", head)
        (answer,), _ = wire.split(head + await reader.readexactly(length))
        return answer


async def read_stream(url: str) -> list[dict]:
    """Every line of a stream in its order, read by a consumer of JetStream's own."""
    connection = await nats.connect(url.split(","))
    try:
        stream = connection.jetstream()
        total = (await stream.stream_info("MSGLOG")).state.messages
        if not total:
            return []
        subscription = await stream.subscribe(
            "msglog.*",
            ordered_consumer=True,
            config=ConsumerConfig(deliver_policy=DeliverPolicy.ALL),
        )
        lines = []
        for _ in range(total):
            message = await subscription.next_msg(timeout=20)
            found = [json.loads(line) for line in message.data.splitlines()]
            subject = message.subject.removeprefix("msglog.")
            assert all(line["client"] == subject for line in found), message.subject
            lines += found
        return lines
    finally:
        await connection.close()


def find_wrong(lines: list[dict], bodies: dict[bytes, list[bytes]]) -> list[str]:
    """
    What in a stream's lines is not as it should be: each client's messages 1, 2, 3 … once.

    @param bodies: each client's messages, by its id.
    """
    wrong, seen = [], dict.fromkeys(bodies, 0)
    for line in lines:
        client = bytes.fromhex(line["client"].replace("-", ""))
        sequence = line["seq"]
        body = line["message"].encode() if "message" in line else base64.b64decode(line["base64"])
        if client not in bodies:
            wrong.append(f"a client that is none of ours: {line}")
            continue
        if sequence != seen[client] + 1:
            wrong.append(f"{sequence} stands behind {seen[client]} of {line['client']}")
        if sequence > len(bodies[client]) or body != bodies[client][sequence - 1]:
            wrong.append(f"{sequence} of {line['client']} is not what was sent")
        seen[client] = sequence
    return wrong
