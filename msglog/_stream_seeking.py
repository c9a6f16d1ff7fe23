"""
Finding a place in a stream without reading all of it: by time, or so many lines from the end.

A stream is sorted by time only as far as the clocks of its front-ends agree; so what is found by
time is looked for a little before it.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress

from ._errors import RecordError
from ._records import parse_line
from ._stream_following import StreamFollower

__all__ = ["message_of_last", "message_of_time"]

# How far the clocks of front-ends may be apart, microseconds: with any synchronisation far less.
_APART = 60 * 1_000_000

# How many messages are read at a time on the way back from the end.
_MOST_BACK = 500


async def message_of_time(stream: StreamFollower, time: int) -> int:
    """
    A message before which there is none of a time or after it, by clocks that nearly agree.

    What is not msglog's has no time, and is passed over.

    @raise StreamChanged: see L{StreamFollower.messages}; and its EngineError.
    """
    low, high = stream.first, stream.end + 1
    while low < high:
        middle = (low + high) // 2
        found = await _next_with_time(stream, middle, high)
        if found is not None and found[1] < time - _APART:
            low = found[0] + 1
        else:
            high = middle
    return low


async def _next_with_time(stream: StreamFollower, begin: int, end: int) -> tuple[int, int] | None:
    """The first message in a stretch that has a time, and that."""
    for one in range(begin, end):
        async for sequence, data in stream.messages(one, one + 1):
            with suppress(RecordError):
                return sequence, parse_line(data.partition(b"\n")[0]).time
    return None


async def message_of_last(
    stream: StreamFollower, count: int, wanted: Callable[[bytes], bool], floor: int
) -> int:
    """
    A message from which on there are so many lines, or C{floor} if there are fewer.

    @param count: how many, at least 1.
    @param wanted: whether a line counts.
    @raise StreamChanged: see L{StreamFollower.messages}; and its EngineError.
    """
    begin, span, found = stream.end + 1, min(count, _MOST_BACK), 0
    while begin > floor and found < count:
        end, begin = begin, max(begin - span, floor)
        async for _, data in stream.messages(begin, end):
            found += sum(map(wanted, data.splitlines(keepends=True)))
        span = min(2 * span, _MOST_BACK)
    return begin
