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
from ._records import Record, format_time, parse_line

__all__ = ["retimed"]

_OPENING = b'{"time":"'
_TIME = slice(len(_OPENING), len(_OPENING) + 27)
_BEHIND = b'","client":"'


def retimed(sequence: int, data: bytes, after: int) -> tuple[int, bytes]:
    """
    A message's lines.

    @param sequence: its own in the stream, to be named.
    @param after: the time of the line before, microseconds since 1970.
    @return: the time of the last line, and the lines.
    @raise StreamDamaged: it is none that msglog has written.
    """
    *lines, rest = data.split(b"\n")
    try:
        records = [parse_line(line) for line in lines]
        _see_run(lines, rest, records)
        said = [record.time for record in records]
        if said[0] >= after and said == sorted(said):
            return said[-1], data
        time, before = after, -1
        parts = []
        for line, own in zip(lines, said, strict=True):
            if own != before:
                before, time = own, own if own >= time else time + 1
            parts.append(line[: _TIME.start] + format_time(time) + line[_TIME.stop :])
    except RecordError as e:
        raise StreamDamaged(f"message {sequence} of the stream is not msglog's: {e}") from None
    except OverflowError:
        raise StreamDamaged(
            f"message {sequence} of the stream follows one of the end of the year 9999"
        ) from None
    return time, b"\n".join([*parts, b""])


def _see_run(lines: list[bytes], rest: bytes, records: list[Record]) -> None:
    """Lines that can be read are not yet a run of one client's, as msglog writes it."""
    if rest or not lines:
        raise RecordError("it has no end")
    client, first = records[0].client, records[0].sequence
    for n, (line, record) in enumerate(zip(lines, records, strict=True)):
        if not line.startswith(_OPENING) or not line.startswith(_BEHIND, _TIME.stop):
            raise RecordError("a line is not written as the log format has it")
        if record.client != client or record.sequence != first + n:
            raise RecordError("it is no run of one client's messages")
