"""
Finding a place in a stream without reading all of it: by time, or so many lines from the end.

A stream is sorted by time only as far as the clocks of its front-ends agree; so what is found by
time is looked for a little before it.
"""

from __future__ import annotations

from collections.abc import Callable

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

    @raise RecordError: a message on the way is not msglog's.
    @raise StreamChanged: see L{StreamFollower.messages}; and its EngineError.
    """
    low, high = stream.first, stream.end + 1
    while low < high:
        middle = (low + high) // 2
        async for _, data in stream.messages(middle, middle + 1):
            if parse_line(data[: data.index(b"\n")]).time < time - _APART:
                low = middle + 1
            else:
                high = middle
    return low


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
