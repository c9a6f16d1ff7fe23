"""
Reading a log back: its lines, and whether damage at its end is a torn commit.

Theory of operation.  Only one commit is ever in flight, and a commit is begun only after the one
before it is on the disk.  So what a crash can tear is the last commit alone, and everything before
it was acknowledged.  One write's pages reach the disk in any order: a torn commit may be good
records, then zeros, then good records again.  The time tells commits apart: a record that follows
the damage and has a later time than another one that also follows it, or than what the damaged
line itself says, proves that the damage is not in the last commit.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

from attrs import define, frozen

from ._errors import RecordError
from ._records import MAX_LINE_BYTES, Record, parse_line, parse_time

__all__ = [
    "Damage",
    "Lines",
    "first_line",
    "judge_damage",
    "last_line",
    "may_begin",
    "read_record",
    "said_time",
]

_CHUNK = 4 * 1024 * 1024
# Most lines are shorter; a longer one takes another read.
_LINE_CHUNK = 65536
_TIME_PREFIX = b'{"time":"'

Read = Callable[[int, int], bytes]


@define
class Lines:
    """
    The lines of a file from an offset on, each with the offset where it begins.

    The last one lacks its newline if the file ends without one.  A stretch longer than any record
    can be comes in pieces, so that a file of zeros does not fill the memory.

    @ivar read: takes a count and an offset and returns bytes, none at the end.
    @ivar offset: where to begin.
    """

    read: Read
    offset: int

    def __iter__(self) -> Iterator[tuple[int, bytes]]:
        begin = position = self.offset
        rest: list[bytes] = []
        held = 0
        while chunk := self.read(_CHUNK, position):
            position += len(chunk)
            *whole, tail = chunk.split(b"\n")
            for line in whole:
                if rest:
                    line = b"".join([*rest, line])
                    rest, held = [], 0
                yield begin, line + b"\n"
                begin += len(line) + 1
            if tail:
                rest.append(tail)
                held += len(tail)
            if held > MAX_LINE_BYTES:
                yield begin, b"".join(rest)
                begin += held
                rest, held = [], 0
        if rest:
            yield begin, b"".join(rest)


def first_line(read: Read) -> bytes:
    """The line that a file begins with, or as much of it as a record can be long."""
    for _, line in Lines(lambda count, at: read(min(count, _LINE_CHUNK), at), 0):
        return line
    return b""


def last_line(read: Read, end: int) -> bytes:
    """The line that ends at an offset above 0, or as much of it as a record can be long."""
    back = min(end, MAX_LINE_BYTES)
    step = _LINE_CHUNK
    while True:
        step = min(step, back)
        tail = read(step, end - step)
        begin = tail.rfind(b"\n", 0, -1) + 1
        if begin or step == back:
            return tail[begin:]
        step *= 4


@frozen(slots=True)
class Damage:
    """A place in the log where a record should be and is not."""

    offset: int
    line: bytes
    reason: str


def read_record(line: bytes) -> Record:
    """
    The record of a line that must end in a newline.

    @raise RecordError: it does not, or is no record.
    """
    if not line.endswith(b"\n"):
        raise RecordError("the last line has no end")
    return parse_line(line)


def judge_damage(damage: Damage, last_time: int, following: Lines) -> str | None:
    """
    Why damage cannot be a torn last commit; L{None} if it can.

    @param last_time: the time of the last good record before the damage.
    @param following: what comes after the damaged line.
    """
    times: set[int] = set()
    for offset, line in following:
        try:
            record = read_record(line)
        except RecordError:
            continue
        times.add(record.time)
        if len(times) > 1:
            return f"records of later commits follow it, the latest at byte {offset}"
    if not times:
        return None
    (time,) = times
    if time < last_time:
        return "a record of an earlier commit follows it"
    said = said_time(damage.line)
    if said is not None and said < time:
        return "a record of a later commit follows it"
    return None


def may_begin(read: Read) -> bool:
    """
    Whether a log may begin as a file does: as a record, with the zeros that a crash left of its
    first commit, or with nothing.

    A disk writes a sector wholly or not at all, so a crash cannot leave anything else there.
    """
    begin = read(len(_TIME_PREFIX), 0)
    return _TIME_PREFIX.startswith(begin) or not any(begin)


def said_time(line: bytes) -> int | None:
    """The time that a line says, which may be damaged; L{None} if it says none."""
    if not line.startswith(_TIME_PREFIX):
        return None
    try:
        return parse_time(line[9:36].decode())
    except ValueError:
        return None
