"""What one connection of a load does in any protocol: births, sending by the block, latencies."""

from __future__ import annotations

import socket
import ssl
import time
from collections import Counter, deque
from collections.abc import Callable
from typing import Protocol
from uuid import UUID

from attrs import define

from .._errors import MsglogError

__all__ = ["NOT_NOW", "READ_BYTES", "IFrames", "LoadError", "Sender"]

# Bytes read at a time: 1,985 receipts.  A server's answer to a window comes in one piece or a few.
READ_BYTES = 64 * 1024

# What a socket, with TLS or without, says when there is nothing to read or no room to write.
NOT_NOW = (BlockingIOError, ssl.SSLWantReadError, ssl.SSLWantWriteError)


@define(eq=False)
class LoadError(MsglogError):
    """The load cannot go on as it was asked for.  C{reason} says what happened, and where."""

    reason: str

    def __str__(self) -> str:
        return self.reason


class IFrames(Protocol):
    """
    What is sent, a block at a time.

    @ivar frames: the block's frames, one after the other.  Written over by C{next}.
    @ivar stride: bytes of each.
    """

    frames: bytearray
    stride: int

    def next(self) -> None:
        """Go on to the next block."""


class Sender:
    """
    A connection: sends what it is told to, and says when it was answered.

    A message is born when its client could send it: that the kernel may not take it at once is
    part of its latency.

    @param client: its id, a UUID's 16 bytes, for errors.
    @param record: called with the latency in nanoseconds, and how many messages had it.
    @ivar in_flight: how many messages are born and not answered.
    @ivar refused: how many messages were answered by a refusal, by its name.
    @ivar refusal: the first refusal, for a person to read; empty if there was none.
    @ivar heard: when the last answer came, by L{time.monotonic_ns}.
    @ivar waiting: births of messages for which the window has no room yet.
    """

    __slots__ = (
        "_births",
        "_blocks",
        "_client",
        "_frames",
        "_left",
        "_record",
        "_recv",
        "_send",
        "_sent",
        "_socket",
        "heard",
        "in_flight",
        "refusal",
        "refused",
        "waiting",
    )

    def __init__(
        self,
        sock: socket.socket,
        client: bytes,
        blocks: IFrames,
        record: Callable[[int, int], None],
    ) -> None:
        self._socket, self._client = sock, client
        self._blocks, self._record = blocks, record
        self._recv, self._send = sock.recv, sock.send
        self._frames = memoryview(blocks.frames)
        self._sent = 0
        self._left = 0
        self._births: deque[list[int]] = deque()
        self.in_flight = 0
        self.refused: Counter[str] = Counter()
        self.refusal = ""
        self.heard = 0
        self.waiting: deque[int] = deque()

    @property
    def going(self) -> bool:
        """Whether every answer so far was as it should be."""
        return True

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
        self.add(count, now)
        return self.flush()

    def add(self, count: int, now: int) -> None:
        """Have so many more messages to send, without sending anything yet."""
        self._births.append([count, now])
        self.in_flight += count
        self._left += count * self._blocks.stride

    def flush(self) -> bool:
        """Send what is left; return whether all is sent."""
        frames = self._frames
        size = len(frames)
        while self._left:
            end = self._sent + self._left
            if end > size:
                end = size
            try:
                sent = self._send(frames[self._sent : end])
            except NOT_NOW:
                return False
            except OSError:
                # A reason may still wait to be read, and if none does, reading says what happened.
                self._left = 0
                break
            self._left -= sent
            self._sent += sent
            if self._sent == size:
                self._blocks.next()
                self._sent = 0
                self._block_begun()
        return True

    def _block_begun(self) -> None:
        """The next block is being sent."""

    def receive(self) -> int:
        """
        Read once, and check what came.

        @return: how many messages were acknowledged.
        @raise LoadError: this connection is of no more use.
        """
        try:
            data = self._recv(READ_BYTES)
        except NOT_NOW:
            return 0
        except OSError as e:
            raise self._lost(e.strerror or str(e)) from e
        now = self.heard = time.monotonic_ns()
        if not data:
            raise self._lost("the server closed the connection")
        return self._take(data, now)

    def _take(self, data: bytes, now: int) -> int:
        """Check what came; return how many messages it acknowledges."""
        raise NotImplementedError

    def _settle(self, count: int, now: int) -> None:
        """The next messages are answered: record their latencies."""
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
