"""
The lines of a stream's messages with times that never go back.  No I/O.

A log is sorted by time (docs/log-format.md), and a stream is in the order in which its messages
were taken: front-ends have clocks of their own.  So lines of one time that would go back get the
time one microsecond after the line before, which depends on nothing but the messages before them.
What an import put there is in order, and stays as it is.
"""

from __future__ import annotations

from ._errors import RecordError
from ._jetstream import StreamDamaged
from ._records import format_time, parse_line

__all__ = ["retimed"]

_TIME = slice(len('{"time":"'), len('{"time":"') + 27)


def retimed(sequence: int, data: bytes, after: int) -> tuple[int, bytes]:
    """
    A message's lines.

    @param sequence: its own in the stream, to be named.
    @param after: the time of the line before, microseconds since 1970.
    @return: the time of the last line, and the lines.
    @raise StreamDamaged: it is none that msglog has written.
    """
    lines = data.splitlines(keepends=True)
    try:
        said = [parse_line(line).time for line in lines]
    except RecordError as e:
        raise StreamDamaged(f"message {sequence} of the stream is not msglog's: {e}") from None
    if not data.endswith(b"\n"):
        raise StreamDamaged(f"message {sequence} of the stream is not msglog's: it has no end")
    if said[0] >= after and said == sorted(said):
        return said[-1], data
    time, before = after, -1
    parts = []
    for line, own in zip(lines, said, strict=True):
        if own != before:
            before, time = own, own if own >= time else time + 1
        parts.append(line[: _TIME.start] + format_time(time) + line[_TIME.stop :])
    return time, b"".join(parts)
