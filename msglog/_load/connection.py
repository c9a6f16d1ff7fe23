"""One connection of a load: a client that sends within its window and checks every receipt."""

from __future__ import annotations

import socket
import ssl
import time
from collections import Counter, deque
from collections.abc import Callable
from uuid import UUID

from attrs import define

from .._errors import MsglogError
from .._frames import FRAME_BYTES, MAX_ANSWER_BYTES, Ack, Nack, Terms, decode_answers
from .blocks import Blocks

__all__ = ["Connection", "LoadError"]

# Bytes read at a time: 1,985 receipts.  A server's answer to a window comes in one piece or a few.
_READ_BYTES = 64 * 1024

# What a socket, with TLS or without, says when there is nothing to read or no room to write.
_NOT_NOW = (BlockingIOError, ssl.SSLWantReadError, ssl.SSLWantWriteError)


@define(eq=False)
class LoadError(MsglogError):
    """The load cannot go on as it was asked for.  C{reason} says what happened, and where."""

    reason: str

    def __str__(self) -> str:
        return self.reason


class Connection:
    """
    A client with its own id.

    The receipts that it must get are known beforehand, byte for byte (L{Blocks.receipts}), so what
    arrives is checked by comparing it as it is, however it is cut: C{_checked} bytes of the first
    of C{_receipts} have come.  Only what differs is decoded; from there on this connection sends
    nothing and takes each answer by itself (C{_odd}), to count what the server refused.

    A message is born when the window has room for it, which is when a client with something to
    say would say it: that the kernel may not take it at once is part of its latency.

    @param record: called with the latency in nanoseconds, and how many messages had it.
    @ivar in_flight: how many messages are born and not answered.
    @ivar refused: how many messages were answered by a NACK, by its code.
    @ivar refusal: the first NACK, for a person to read; empty if there was none.
    @ivar heard: when the last answer came, by L{time.monotonic_ns}.
    """

    __slots__ = (
        "_births",
        "_blocks",
        "_checked",
        "_client",
        "_frames",
        "_left",
        "_odd",
        "_receipts",
        "_record",
        "_recv",
        "_send",
        "_sent",
        "_sequence",
        "_socket",
        "heard",
        "in_flight",
        "refusal",
        "refused",
    )

    def __init__(
        self,
        sock: socket.socket,
        client: bytes,
        blocks: Blocks,
        record: Callable[[int, int], None],
    ) -> None:
        self._socket, self._client, self._blocks, self._record = sock, client, blocks, record
        self._recv, self._send = sock.recv, sock.send
        self._frames = memoryview(blocks.frames)
        # Sequence 0 is skipped: its frame and its receipt.
        self._sent = blocks.stride
        self._checked = FRAME_BYTES
        self._left = 0
        self._receipts = deque([blocks.receipts])
        self._births: deque[list[int]] = deque()
        self._odd: bytes | None = None
        self._sequence = 0  # of the last answer taken; kept only while _odd
        self.in_flight = 0
        self.refused: Counter[str] = Counter()
        self.refusal = ""
        self.heard = 0

    @property
    def going(self) -> bool:
        """Whether every answer so far was the receipt expected."""
        return self._odd is None

    def fileno(self) -> int:
        return self._socket.fileno()

    def close(self) -> None:
        self._socket.close()

    def send(self, count: int, now: int) -> bool:
        """
        Send so many messages more.

        @param now: the time of their birth.
        @return: whether all is sent; if not, call L{flush} when the socket can be written.
        """
        self._births.append([count, now])
        self.in_flight += count
        self._left += count * self._blocks.stride
        return self.flush()

    def flush(self) -> bool:
        """Send what is left; return whether all is sent."""
        blocks, frames = self._blocks, self._frames
        size = len(frames)
        while self._left:
            end = self._sent + self._left
            if end > size:
                end = size
            try:
                sent = self._send(frames[self._sent : end])
            except _NOT_NOW:
                return False
            except OSError:
                # A reason may still wait to be read, and if none does, reading says what happened.
                self._left = 0
                break
            self._left -= sent
            self._sent += sent
            if self._sent == size:
                blocks.next()
                self._sent = 0
                self._receipts.append(blocks.receipts)
        return True

    def receive(self) -> int:
        """
        Read once, and check what came.

        @return: how many messages were acknowledged.
        @raise LoadError: this connection is of no more use.
        """
        try:
            data = self._recv(_READ_BYTES)
        except _NOT_NOW:
            return 0
        except OSError as e:
            raise self._lost(e.strerror or str(e)) from e
        now = self.heard = time.monotonic_ns()
        if not data:
            raise self._lost("the server closed the connection")
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
                self._sequence = int.from_bytes(receipts[whole + 25 : whole + 33], "big") - 1
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
        if isinstance(answer, Nack):
            said = f"{answer.code.name}: {answer.reason}"
            if answer.client == bytes(16):
                raise LoadError(f"the server refused a connection: {said}")
            if answer.client != self._client or answer.sequence != self._sequence + 1:
                raise self._wrong(f"refused a message that was not its turn ({said})")
            self.refused[answer.code.name] += 1
            self.refusal = self.refusal or (
                f"the server refused message {answer.sequence} of {UUID(bytes=self._client)}: "
                f"{said}"
            )
        elif data != receipt:
            raise self._wrong(
                f"answered message {self._sequence + 1} by {data.hex()} where its receipt is "
                f"{receipt.hex()}"
            )
        self._sequence += 1
        self._checked += FRAME_BYTES
        if self._checked == len(self._receipts[0]):
            self._next_receipts()

    def _settle(self, count: int, now: int) -> None:
        births = self._births
        if births and births[0][0] == count and not self._left:
            # All born together and all sent: nearly always so where a message costs the most, with
            # narrow windows.
            self.in_flight -= count
            self._record(now - births.popleft()[1], count)
            return
        for number, born in self._births_of(count):
            self._record(now - born, number)

    def _births_of(self, count: int) -> list[tuple[int, int]]:
        """Take the next messages' births, each with how many messages were born together."""
        if count > self.in_flight - -(-self._left // self._blocks.stride):
            raise self._wrong("acknowledged what was not sent yet")
        self.in_flight -= count
        taken = []
        while count:
            births = self._births[0]
            number, born = births
            if number <= count:
                self._births.popleft()
            else:
                births[0] = number - count
                number = count
            count -= number
            taken.append((number, born))
        return taken

    def _lost(self, why: str) -> LoadError:
        return LoadError(
            f"{why}, with {self.in_flight} messages of {UUID(bytes=self._client)} unanswered"
        )

    def _wrong(self, what: str) -> LoadError:
        return LoadError(f"the server {what}; the client is {UUID(bytes=self._client)}")
