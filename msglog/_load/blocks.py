"""
A client's MESSAGE frames, and the ACKs they must get, made a block at a time and without I/O.

All frames of a block have the same body, so only two of their fields differ: the sequence, and
with it the checksum.  A block is a template with those written over, each byte of a field for all
frames by one strided assignment::

    | length | checksum | type | client id  | sequence | body |
    | length | checksum | type | client id  | sequence | body |
               ^^^^^^^^                       ^^^^^^^^           are written again for each block

The checksums need no look at the body.  A CRC is affine: with messages of one length, what a
change of some bits does to the CRC depends on those bits alone, not on the rest.  So

    checksum(base + i) = checksum(base) XOR step(i)

if base and i have no bit in common, where step(i) = checksum(i) XOR checksum(0) is the same for
every client and body.  Blocks are powers of two long, and therefore aligned: base has the high
bits, i the low ones, and the steps are computed once.

That makes 0.03 µs a frame, against 0.55 µs for encoding each by itself: a load that costs next to
nothing leaves the machine to the server.
"""

from __future__ import annotations

from typing import Protocol

from .._frames import FRAME_BYTES, encode_acks, encode_message, message_checksum
from .sender import IFrames

__all__ = ["BLOCK_MESSAGES", "Blocks", "IBlocks", "Steps"]

# Longest block, in messages: at 256 the few Python operations for each block are 0.01 µs a message,
# and more would only be memory.  A power of two, and no more than one byte of the sequence.
BLOCK_MESSAGES = 256

_CHECKSUM = range(4, 8)  # where the fields are in a frame
_SEQUENCE = range(25, 33)


class IBlocks(IFrames, Protocol):
    """What is sent, and the ACKs that it must get."""

    @property
    def receipts(self) -> bytes:
        """The ACKs of the block that C{frames} has, one after the other."""


class Steps:
    """
    What the checksums within a block differ by: the same for all clients, made once.

    @param count: messages in a block; a power of two, at most L{BLOCK_MESSAGES}.
    @param size: bytes of each body.
    """

    __slots__ = ("_columns", "count", "sequences")

    def __init__(self, count: int, size: int) -> None:
        if not 1 <= count <= BLOCK_MESSAGES or count & (count - 1):
            raise ValueError(f"a block has a power of two up to {BLOCK_MESSAGES}, not {count}")
        self.count = count
        self.sequences = bytes(range(count))
        client, body = bytes(16), bytes(size)
        zero = message_checksum(client, 0, body)
        steps = [message_checksum(client, i, body) ^ zero for i in range(count)]
        self._columns = [
            int.from_bytes(bytes(step >> shift & 0xFF for step in steps), "big")
            for shift in (24, 16, 8, 0)
        ]

    def checksums(self, base: int) -> list[bytes]:
        """
        The four columns of a block's checksums: every first byte, every second one, …

        @param base: the checksum of the block's first message.
        """
        count = self.count
        return [
            (column ^ int.from_bytes(bytes([byte]) * count, "big")).to_bytes(count, "big")
            for column, byte in zip(self._columns, base.to_bytes(4, "big"), strict=True)
        ]


class Blocks:
    """
    The frames of one client, of which one block is there at a time.

    Block number n has the sequences n * count … n * count + count - 1.  The very first frame has
    sequence 0 and is none of the protocol's: whoever sends begins after it.

    @param client: the client id, 16 bytes.
    @param body: what every message says.
    @ivar frames: the block's frames, one after the other.  Written over by L{next}.
    @ivar receipts: the ACKs that these frames must get, one after the other.
    """

    __slots__ = ("_acks", "_body", "_client", "_number", "_steps", "frames", "stride")

    def __init__(self, client: bytes, body: bytes, steps: Steps) -> None:
        self._client, self._body, self._steps = client, body, steps
        self._number = 0
        frame = encode_message(client, 0, body)
        self.stride = len(frame)
        self.frames = bytearray(frame * steps.count)
        self._acks = bytearray(encode_acks([frame[4:FRAME_BYTES]] * steps.count))
        self._write()

    @property
    def receipts(self) -> bytes:
        return bytes(self._acks)

    def next(self) -> None:
        """Go on to the next block."""
        self._number += 1
        self._write()

    def _write(self) -> None:
        frames, acks, stride, steps = self.frames, self._acks, self.stride, self._steps
        count = steps.count
        base = self._number * count
        checksum = message_checksum(self._client, base, self._body)
        for place, column in zip(_CHECKSUM, steps.checksums(checksum), strict=True):
            frames[place::stride] = column
            acks[place::FRAME_BYTES] = column
        before = max(0, base - count).to_bytes(8, "big")
        for place, byte, old in zip(_SEQUENCE[:7], base.to_bytes(8, "big"), before, strict=False):
            if byte != old:
                column = bytes([byte]) * count
                frames[place::stride] = column
                acks[place::FRAME_BYTES] = column
        low = base & 0xFF
        column = bytes(range(low, low + count))
        frames[_SEQUENCE[-1] :: stride] = column
        acks[_SEQUENCE[-1] :: FRAME_BYTES] = column
