"""One connection of a load: a client that sends within its window and checks every receipt."""

from __future__ import annotations

import socket
from collections import deque
from collections.abc import Callable
from uuid import UUID

from .._frames import FRAME_BYTES, MAX_ANSWER_BYTES, Ack, Nack, Terms, decode_answers
from .blocks import IBlocks
from .sender import LoadError, Sender

__all__ = ["Connection"]


class Connection(Sender):
    """
    A client with its own id.

    The receipts that it must get are known beforehand, byte for byte (L{Blocks.receipts}), so what
    arrives is checked by comparing it as it is, however it is cut: C{_checked} bytes of the first
    of C{_receipts} have come.  Only what differs is decoded; from there on this connection sends
    nothing and takes each answer by itself (C{_odd}), to count what the server refused.

    @param client: its id, for a person to read: the frames have it, and with it their receipts.
    """

    __slots__ = ("_checked", "_odd", "_receipts")

    _blocks: IBlocks

    def __init__(
        self,
        sock: socket.socket,
        client: bytes,
        blocks: IBlocks,
        record: Callable[[int, int], None],
    ) -> None:
        super().__init__(sock, client, blocks, record)
        # Sequence 0 is skipped: its frame and its receipt.
        self._sent = blocks.stride
        self._checked = FRAME_BYTES
        self._receipts = deque([blocks.receipts])
        self._odd: bytes | None = None

    @property
    def going(self) -> bool:
        """Whether every answer so far was the receipt expected."""
        return self._odd is None

    def _block_begun(self) -> None:
        self._receipts.append(self._blocks.receipts)

    def _take(self, data: bytes, now: int) -> int:
        if self._odd is not None:
            return self._take_odd(self._odd + data, now)
        receipts, begin = self._receipts[0], self._checked
        end = begin + len(data)
        if end < len(receipts) and receipts.startswith(data, begin):
            self._checked = end
            count = end // FRAME_BYTES - begin // FRAME_BYTES
        else:
            count = self._check(data)
        if count:
            self._settle(count, now)
        return count if self._odd is None else count + self._take_odd(self._odd, now)

    def _check(self, data: bytes) -> int:
        """Compare what goes to the end of a block, beyond it, or differs."""
        count = at = 0
        while at < len(data):
            receipts, begin = self._receipts[0], self._checked
            piece = data[at : at + len(receipts) - begin]
            if not receipts.startswith(piece, begin):
                whole = begin // FRAME_BYTES * FRAME_BYTES
                self._checked = whole
                self._odd = receipts[whole:begin] + data[at:]
                break
            at += len(piece)
            end = begin + len(piece)
            count += end // FRAME_BYTES - begin // FRAME_BYTES
            self._checked = end
            if end == len(receipts):
                self._next_receipts()
        return count

    def _next_receipts(self) -> None:
        if len(self._receipts) == 1:
            raise self._wrong("acknowledged what was not sent yet")
        self._receipts.popleft()
        self._checked = 0

    def _take_odd(self, data: bytes, now: int) -> int:
        """Take answers one by one, some of which are not the receipts expected."""
        acked = at = 0
        try:
            for answer, end in decode_answers(data):
                self._judge(answer, data[at:end])
                at = end
                if isinstance(answer, Ack):
                    self._settle(1, now)
                    acked += 1
                else:
                    self._births_of(1)
        except ValueError as e:
            raise self._wrong(f"{e}: is it a msglog server?") from e
        if len(data) - at > MAX_ANSWER_BYTES:
            raise self._wrong("sent what is no answer")
        self._odd = data[at:]
        return acked

    def _judge(self, answer: Ack | Nack | Terms, data: bytes) -> None:
        """See whether this is an answer that the next message may get, and count a refusal."""
        receipt = self._receipts[0][self._checked : self._checked + FRAME_BYTES]
        client, sequence = receipt[9:25], int.from_bytes(receipt[25:], "big")
        if isinstance(answer, Nack):
            said = f"{answer.code.name}: {answer.reason}"
            if answer.client == bytes(16):
                raise LoadError(f"the server refused a connection: {said}")
            if answer.client != client or answer.sequence != sequence:
                raise self._wrong(f"refused a message that was not its turn ({said})")
            self.refused[answer.code.name] += 1
            self.refusal = self.refusal or (
                f"the server refused message {sequence} of {UUID(bytes=client)}: {said}"
            )
        elif data != receipt:
            raise self._wrong(
                f"answered message {sequence} by {data.hex()} where its receipt is {receipt.hex()}"
            )
        self._checked += FRAME_BYTES
        if self._checked == len(self._receipts[0]):
            self._next_receipts()
