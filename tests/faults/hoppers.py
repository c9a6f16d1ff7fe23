"""
Clients that never stay: they hop between servers, cut connections with answers unread, and resend.

Written from the protocol's page alone (L{wire}): what msglog gets wrong, this must not.
"""

from __future__ import annotations

import asyncio
import random
import struct
import uuid

import wire

from .record import Record, body_of

WINDOW = 40

# NACK codes.
OUT_OF_ORDER, NOT_STORED, UNAVAILABLE = 4, 5, 6

# A visit that takes longer is given up, as a person would who waits for it.
_VISIT_SECONDS = 30


class Hopper:
    """
    One client id.

    @param addresses: of the servers, each a host and a port.
    @ivar refused: how often a message was refused, by the code.
    """

    def __init__(self, addresses: list[tuple[str, int]], seed: int) -> None:
        self.addresses = addresses
        self.rng = random.Random(seed)
        self.record = Record(uuid.UUID(int=self.rng.getrandbits(128), version=4).bytes)
        self.refused: dict[int, int] = {}
        self.left: list[asyncio.StreamWriter] = []  # half-open, as after a client's crash

    @property
    def records(self) -> list[Record]:
        return [self.record]

    def _message(self, sequence: int) -> bytes:
        self.record.sent = max(self.record.sent, sequence)
        return wire.message(self.record.id, sequence, body_of(self.record.id, sequence))

    async def run(self, ended: asyncio.Event) -> None:
        while not ended.is_set():
            await self._hop(self._visit)
            await asyncio.sleep(self.rng.random() * 0.1)
        while self.record.acked < self.record.sent:  # what was sent is to have its receipt
            await self._hop(self._finish)
            await asyncio.sleep(0.1)
        for writer in self.left:
            writer.transport.abort()

    async def _hop(self, visit) -> None:
        writer = None
        try:
            address = self.rng.choice(self.addresses)
            reader, writer = await asyncio.wait_for(asyncio.open_connection(*address), 5)
            await asyncio.wait_for(visit(reader, writer), _VISIT_SECONDS)
        except (TimeoutError, OSError, EOFError):
            pass
        if writer is not None:
            if self.rng.random() < 0.5:
                self.left.append(writer)
                if len(self.left) > 20:
                    self.left.pop(0).transport.abort()
            else:
                writer.transport.abort()

    async def _visit(self, reader, writer) -> None:
        record, rng = self.record, self.rng
        if rng.random() < 0.3:
            durable = record.acked  # it remembers, and does not ask
        else:
            durable = await self._ask(reader, writer)
        if durable is None:
            return
        # Some of what is durable is sent again, for its receipts.
        first = max(durable - rng.randrange(WINDOW), 0) + 1
        for _ in range(rng.randrange(1, 12)):
            last = first + rng.randrange(1, WINDOW)
            unread = rng.random() < 0.15
            if not await self._burst(reader, writer, first, last, unread):
                return
            first = last + 1

    async def _finish(self, reader, writer) -> None:
        if await self._ask(reader, writer) is not None:
            first = self.record.acked + 1
            await self._burst(reader, writer, first, min(first + 500, self.record.sent))

    async def _ask(self, reader, writer) -> int | None:
        """What its last durable message is; None if nobody can say."""
        record = self.record
        acked = record.acked
        writer.write(wire.enquiry(record.id))
        kind, _, _, durable, _ = await self._answer(reader)
        if kind != wire.TERMS:
            return None
        if durable < acked:
            record.set_back += 1
        if durable > record.sent:
            record.wrong.append(f"terms say {durable}, {record.sent} were sent")
        return durable

    async def _burst(self, reader, writer, first: int, last: int, unread: bool = False) -> bool:
        """Send messages, and take the answers, or leave them; whether all are acknowledged."""
        record = self.record
        sent = [self._message(sequence) for sequence in range(first, last + 1)]
        writer.write(b"".join(sent))
        if unread:
            await writer.drain()
            return False
        for sequence, data in enumerate(sent, first):
            acked = record.acked
            kind, checksum, who, answered, body = await self._answer(reader)
            if kind == wire.NACK:
                self._note_refusal(sequence, acked, body)
                return False
            if (who, answered, struct.pack(">I", checksum)) != (record.id, sequence, data[4:8]):
                record.wrong.append(f"no receipt for {sequence}")
            record.acknowledged(sequence)
        return True

    def _note_refusal(self, sequence: int, acked: int, body: bytes) -> None:
        code, expected = struct.unpack_from(">BQ", body)
        self.refused[code] = self.refused.get(code, 0) + 1
        if code == OUT_OF_ORDER and 0 < expected <= acked:
            self.record.set_back += 1
        elif code not in (NOT_STORED, UNAVAILABLE):
            self.record.wrong.append(f"{sequence} was refused: {body!r}")

    async def _answer(self, reader):
        head = await reader.readexactly(4)
        (length,) = struct.unpack(">I", head)
        (answer,), _ = wire.split(head + await reader.readexactly(length))
        return answer
