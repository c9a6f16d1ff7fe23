"""
Finding a place in a log without reading all of it: by time, or so many records from the end.

A log is sorted by time, so a time is found by bisection: some 20 reads in 10 GB.  What can only be
read in order, a compressed file or a pipe, is read in order.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator

from ._logfile import LogFile
from ._records import MAX_LINE_BYTES
from ._torn import said_time

__all__ = ["TIME_BYTES", "last_offset", "offset_of_time"]

# When this much is left, bytes, it is read in order: as fast as to bisect on.
_NEAR_BYTES = 64 * 1024

# What a look at one place takes at a time, bytes: some lines.  And how many of a line it needs.
_LOOK_BYTES = 8 * 1024
TIME_BYTES = 36

# What is read at a time on the way back from the end, bytes.
_BACK_BYTES = 1024 * 1024


def offset_of_time(file: LogFile, time: int) -> int:
    """
    Where the first line begins that is not before a time; the length of the file if there is none.

    @param file: one that can be read anywhere.
    """
    size = file.size
    assert size is not None
    low, high = 0, size  # lines that begin before low are earlier; from high on, none is
    while high - low > _NEAR_BYTES:
        middle = (low + high) // 2
        found = _first_time(file, middle, high)
        if found is not None and found[1] < time:
            low = found[0]
        else:
            high = middle
    offset = low
    while (found := _first_time(file, offset, size)) is not None:
        if found[1] >= time:
            return found[0]
        offset = found[0] + 1
    return size


def _first_time(file: LogFile, begin: int, end: int) -> tuple[int, int] | None:
    """The first line that begins in a part of a file and has a time: its offset, and the time."""
    # A line begins behind a newline, which may be the last byte before this part.
    position = begin - 1 if begin else 0
    at_line = not begin
    while position < end:
        block = file.read(_LOOK_BYTES, position)
        if not block:
            return None
        at = 0 if at_line else block.find(b"\n") + 1
        while at or at_line:
            if position + at >= end:
                return None
            if at + TIME_BYTES > len(block) and len(block) == _LOOK_BYTES:
                break  # the time is cut: read again from this line on
            time = said_time(block[at : at + TIME_BYTES])
            if time is not None:
                return position + at, time
            at_line = False
            at = block.find(b"\n", at) + 1
        if at:
            position, at_line = position + at, True
        else:
            position, at_line = position + len(block), False
    return None


def last_offset(
    file: LogFile, count: int, wanted: Callable[[bytes], bool], floor: int = 0
) -> tuple[int, int]:
    """
    Where to begin reading to get the last so many lines.

    @param count: how many, at least 1.
    @param wanted: whether a line counts.
    @param floor: the offset of a line; what is before it does not count.
    @return: an offset, and how many wanted lines there are from it on: fewer than asked for if the
        file has no more, and then the offset is C{floor}.
    """
    size = file.size
    if size is None:
        offsets = deque(
            (at for at, line in file.lines(floor) if line.endswith(b"\n") and wanted(line)),
            maxlen=count,
        )
        return (offsets[0] if len(offsets) == count else floor), len(offsets)
    found = 0
    for offset, line in _lines_backwards(file, floor, size):
        if wanted(line):
            found += 1
            if found == count:
                return offset, found
    return floor, found


def _lines_backwards(file: LogFile, begin: int, end: int) -> Iterator[tuple[int, bytes]]:
    """
    The lines of a part of a file from the last to the first.

    What stands behind the last newline is no line yet.  Of a stretch longer than any record can be
    only the end comes.
    """
    position = end
    rest = b""  # from position to the end of the line there, once that was found
    at_line_end = False
    while position > begin:
        size = min(_BACK_BYTES, position - begin)
        position -= size
        block = file.read(size, position) + rest
        if not at_line_end:
            block = block[: block.rfind(b"\n") + 1]
            if not block:
                continue
            at_line_end = True
        offset = position + len(block)
        first, *lines, _ = block.split(b"\n")
        for line in reversed(lines):
            offset -= len(line) + 1
            yield offset, line + b"\n"
        rest = first + b"\n"
        if len(rest) > MAX_LINE_BYTES:
            yield position, rest
            rest, at_line_end = b"", False
    if rest:
        yield begin, rest
