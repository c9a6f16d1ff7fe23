"""
Logs and ledgers as they are after years, made in seconds; and load from all clients of such a one.

They are made of the parts that the server itself writes with.  A log has its first and its last
record and a hole between: a start reads no more of it when the ledger is up to date, and a server
that runs only appends.
"""

from __future__ import annotations

import os
import socket
from array import array
from collections.abc import Callable, Iterator
from pathlib import Path

from msglog import Limits, Record
from msglog._checkpoint import Checkpoint, Coverage, identify
from msglog._frames import FRAME_BYTES, encode_acks, encode_message, message_checksum
from msglog._ledger import ClientState
from msglog._load.blocks import BLOCK_MESSAGES
from msglog._load.connection import Connection
from msglog._load.loop import Make, body
from msglog._load.sender import Sender
from msglog._records import format_line

__all__ = ["Crowd", "client_id", "crowd", "make_ledger", "make_log"]

# 2026-01-01, in microseconds, and a moment later.
_FIRST_TIME = 1_767_225_600_000_000
_LAST_TIME = _FIRST_TIME + 1

# Clients of a ledger that are made at a time.
_MANY = 100_000

# Further from one client to the next than anything keeps close together, and prime: so every client
# has its turn before the first one has its next.
_STRIDE = 1_000_003

# What each client has logged in a ledger that was made: one message.
_LOGGED = 1


def client_id(number: int) -> bytes:
    """The id of a client of a ledger that was made: UUIDs of version 7, in order of time."""
    return ((0x019AC1F2 << 96) + (0x7 << 76) + (0x2 << 62) + number).to_bytes(16, "big")


def _line(sequence: int, time: int) -> bytes:
    client, text = client_id(1 << 40), b"made, not sent"
    checksum = message_checksum(client, sequence, text)
    return format_line(Record(time, client, sequence, checksum, text))


def make_log(path: Path, size: int) -> Coverage:
    """
    A log of so many bytes; none if it is 0.

    @return: what its ledger has to say of it.
    """
    if not size:
        return Coverage(b"", 0, 0, True, False)
    first, last = _line(1, _FIRST_TIME), _line(2, _LAST_TIME)
    fd = os.open(path, os.O_WRONLY | os.O_CREAT, 0o640)
    try:
        os.pwrite(fd, first, 0)
        os.pwrite(fd, b"\n" + last, size - len(last) - 1)
        os.fsync(fd)
    finally:
        os.close(fd)
    return Coverage(identify(first), size, _LAST_TIME, True, False)


def make_ledger(log: Path, coverage: Coverage, clients: int = 0) -> None:
    """The ledger of a log, with so many clients, each of which has logged one message."""
    checkpoint = Checkpoint(log.with_name(log.name + ".ledger"), Limits().window)
    try:
        state = ClientState(_LOGGED, array("I", [0]))
        for begin in range(0, clients, _MANY):
            some = dict.fromkeys(map(client_id, range(begin, min(begin + _MANY, clients))), state)
            _finish(checkpoint.write(some, None, {}, durable=False))
        _finish(checkpoint.write({}, coverage, {}, durable=True))
    finally:
        checkpoint.close()


def _finish(steps: Iterator[None]) -> None:
    for _ in steps:
        pass


class Crowd:
    """
    Frames of many clients, each message by another one.

    @param clients: all that there are, of which every so many are this connection's.
    """

    def __init__(self, clients: range, text: bytes) -> None:
        self._clients, self._text = clients, text
        self._logged = array("Q", [_LOGGED]) * len(clients)
        self._turn = 0
        # The very first frame is none, as in all blocks.
        frames = [encode_message(bytes(16), 0, text)]
        self.stride = len(frames[0])
        frames += [self._frame() for _ in range(BLOCK_MESSAGES - 1)]
        self.frames = bytearray(b"".join(frames))

    def _frame(self) -> bytes:
        self._turn += 1
        index = self._turn * _STRIDE % len(self._clients)
        self._logged[index] += 1
        return encode_message(client_id(self._clients[index]), self._logged[index], self._text)

    def next(self) -> None:
        """See L{IFrames<msglog._load.sender.IFrames>}."""
        self.frames[:] = b"".join(self._frame() for _ in range(BLOCK_MESSAGES))

    @property
    def receipts(self) -> bytes:
        """See L{IBlocks<msglog._load.blocks.IBlocks>}."""
        frames, stride = self.frames, self.stride
        return encode_acks(
            [bytes(frames[at + 4 : at + FRAME_BYTES]) for at in range(0, len(frames), stride)]
        )


def crowd(clients: int, connections: int, size: int) -> Make:
    """Load from all clients of a ledger that was made."""
    text = body(size)

    def make(sock: socket.socket, number: int, record: Callable[[int, int], None]) -> Sender:
        mine = range(number, clients, connections)
        return Connection(sock, client_id(mine[0]), Crowd(mine, text), record)

    return make
