"""
A stream read on and on: whatever becomes of single servers, and whether it still is that stream.

What is read comes from any replica.  After each bunch the leader is asked which stream this is, so
that what comes from one of the same name that was made anew is never given out.
"""

from __future__ import annotations

import time
from asyncio import sleep
from collections.abc import AsyncIterator, Callable
from contextlib import suppress
from math import inf
from typing import Any, Protocol

from ._errors import MsglogError
from ._jetstream import EngineError
from ._stream_reader import BUNCH

__all__ = ["IReader", "StreamChanged", "StreamFollower"]

# How often the stream's state is asked for while nothing new is there.
_LOOK_SECONDS = 1.0

# Between two attempts that were not answered.
_RETRY_SECONDS = 0.2

# Before it is said that nobody answers: another server usually does by then.
_SAY_SECONDS = 2.0

# How long leader and replicas may differ about where the stream ends.
_BEHIND_SECONDS = 15.0


class StreamChanged(MsglogError):
    """This is not the stream that it was, or it lacks messages; the text says how."""


class IReader(Protocol):
    """A L{StreamReader<msglog._stream_reader.StreamReader>}."""

    async def info(self) -> dict[str, Any]: ...

    async def fetch(self, sequence: int, most: int) -> list[tuple[int, bytes]]: ...


class StreamFollower:
    """
    @param reader: reads the stream.
    @param stream: its name.
    @param info: its state, from the reader.
    @param say: told that nobody answers, and that somebody does again.
    @param patience: seconds without an answer that are an error.
    @ivar position: the last message that was given out by L{poll}.
    @ivar first: the first message of the stream.
    @ivar end: the last one, as far as is known.
    """

    def __init__(
        self,
        reader: IReader,
        stream: str,
        info: dict[str, Any],
        say: Callable[[str], None],
        *,
        patience: float = inf,
        clock: Callable[[], float] = time.monotonic,
        retry_seconds: float = _RETRY_SECONDS,
    ) -> None:
        self._reader = reader
        self._stream = stream
        self._created = str(info["created"])
        self._say = say
        self._patience = patience
        self._clock = clock
        self._retry_seconds = retry_seconds
        self._look_due = 0.0
        self._silent_since: float | None = None
        self._silence_said = False
        self._behind_since: float | None = None
        self.first = max(int(info["state"].get("first_seq", 1)), 1)
        self.end = int(info["state"]["last_seq"])
        self.position = 0

    async def poll(self) -> list[tuple[int, bytes]]:
        """
        The next messages behind the position; none if there is none now.

        @raise StreamChanged: the stream has no such message any more, or is another one.
        @raise EngineError: nobody has answered for too long.
        """
        found = await self._next(self.position + 1)
        if found:
            self.position = found[-1][0]
        return found

    async def messages(self, begin: int, end: int) -> AsyncIterator[tuple[int, bytes]]:
        """
        Those from one sequence on and before another, which must be there.

        @raise StreamChanged: they are not.
        @raise EngineError: nobody has answered for too long.
        """
        while begin < end:
            found = await self._next(begin, end - begin)
            for message in found:
                yield message
            if found:
                begin = found[-1][0] + 1
            else:
                await sleep(self._retry_seconds)

    async def _next(self, sequence: int, most: int = BUNCH) -> list[tuple[int, bytes]]:
        try:
            found = await self._reader.fetch(sequence, min(most, BUNCH))
            if found or self._clock() >= self._look_due:
                await self._look()
        except EngineError as e:
            await self._see_silence(str(e))
            return []
        if self._silence_said:
            self._say("NATS answers again")
        self._silent_since, self._silence_said = None, False
        self._see_end(sequence, bool(found))
        for expected, (one, _) in enumerate(found, sequence):
            if one != expected:
                raise StreamChanged(
                    f"message {expected} of the stream is missing, the next is {one}: somebody "
                    f"has deleted from it"
                )
        return found

    async def _look(self) -> None:
        """See that it still is the same stream, and where it ends."""
        self._look_due = self._clock() + _LOOK_SECONDS
        try:
            info = await self._reader.info()
        except EngineError as e:
            if e.missing:
                raise StreamChanged(f"the stream {self._stream} is not there any more") from None
            raise
        if str(info["created"]) != self._created:
            raise StreamChanged(
                f"the stream {self._stream} was deleted and made anew: what is read now is of "
                f"another one; begin again"
            )
        self.end = int(info["state"]["last_seq"])

    def _see_end(self, sequence: int, found: bool) -> None:
        """Leader and replicas may differ about the end, but not for long."""
        if found or self.end == sequence - 1:
            self._behind_since = None
            return
        now = self._clock()
        if self._behind_since is None:
            self._behind_since = now
        if now - self._behind_since < _BEHIND_SECONDS:
            return
        if self.end < sequence:
            raise StreamChanged(
                f"the stream ends at message {self.end}, and had {sequence - 1}: it has lost "
                f"messages"
            )
        raise StreamChanged(
            f"no replica has message {sequence} of the stream, which ends at {self.end}"
        )

    async def _see_silence(self, reason: str) -> None:
        now = self._clock()
        if self._silent_since is None:
            self._silent_since = now
        silent = now - self._silent_since
        if silent > self._patience:
            raise EngineError(reason)
        if silent >= _SAY_SECONDS and not self._silence_said:
            self._silence_said = True
            self._say(f"NATS does not answer: {reason}; waiting")
        if now >= self._look_due:  # only this question says that the stream is gone
            with suppress(EngineError):
                await self._look()
        await sleep(self._retry_seconds)
