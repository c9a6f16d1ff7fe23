"""Checked logs cut into runs: neighbouring lines of one client, as one message of a stream."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from attrs import define

from ._jetstream import MAX_LINES, MAX_PAYLOAD
from ._logfile import LogFile
from ._records import format_line, parse_line

__all__ = ["LogRun", "log_runs"]

# How msglog begins a line, in offsets: {"time":"…","client":"…","seq":
_MIDDLE, _CLIENT = slice(36, 92), slice(48, 84)
_BEFORE_CLIENT, _BEHIND_CLIENT = b'","client":"', b'","seq":'
_SEQUENCE = 92


@define(slots=True, eq=False)
class LogRun:
    """
    Lines of one client with consecutive sequences, which stand one after the other in the log.

    @ivar first: the sequence of the first one.
    @ivar lines: each with its newline.
    @ivar size: of all of them, bytes.
    @ivar file: the index of the file that the last one is in.
    @ivar read: how much of that file was read by then, as it lies on the disk.
    """

    client: bytes
    first: int
    lines: list[bytes]
    size: int
    file: int
    read: int

    @property
    def last(self) -> int:
        """The sequence of the last line."""
        return self.first + len(self.lines) - 1

    @property
    def checksums(self) -> list[int]:
        """Those of the lines."""
        return [parse_line(line).checksum for line in self.lines]

    def behind(self, sequence: int) -> LogRun:
        """What of it comes after a sequence."""
        lines = self.lines[sequence - self.first + 1 :]
        size = sum(map(len, lines))
        return LogRun(self.client, sequence + 1, lines, size, self.file, self.read)


def log_runs(files: Iterable[tuple[LogFile, int | None]], gathered: int = 0) -> Iterator[LogRun]:
    """
    The runs of logs that were checked: every line is a good record, no client has a gap.

    A line that something else than msglog wrote, with spaces say, comes as msglog would write it.

    @param files: each with the length that was checked; L{None} where that is not known before.
    @param gathered: over how many bytes of the log a client's lines are brought together that do
        not stand one after the other.  If there are any, the order of different clients changes.
    """
    held: dict[bytes, LogRun] = {}  # by how their lines go on behind their time
    size = 0
    for index, (file, end) in enumerate(files):
        for offset, line in file.lines(0, end):
            run = held.get(line[_MIDDLE])
            if run is not None and _has_room(run, line):
                run.lines.append(line)
                run.size += len(line)
                size += len(line)
                if size > gathered and len(held) > 1:
                    yield from _released(held, index, file.consumed or offset)
                    size = 0
                continue
            line, middle = _as_written(line)
            if size + len(line) > gathered:
                yield from _released(held, index, file.consumed or offset)
                size = 0
            elif middle in held:
                size -= held[middle].size
                yield from _released({middle: held.pop(middle)}, index, file.consumed or offset)
            client = bytes.fromhex(line[_CLIENT].decode().replace("-", ""))
            first = int(line[_SEQUENCE : line.index(b",", _SEQUENCE)])
            held[middle] = LogRun(client, first, [line], len(line), index, 0)
            size += len(line)
        yield from _released(held, index, file.consumed or file.size or 0)
        size = 0


def _has_room(run: LogRun, line: bytes) -> bool:
    return len(run.lines) < MAX_LINES and run.size + len(line) <= MAX_PAYLOAD


def _released(held: dict[bytes, LogRun], file: int, read: int) -> Iterator[LogRun]:
    """What was held, in the order of its first lines, with how far reading has come."""
    runs = list(held.values())
    held.clear()
    for run in runs:
        run.file, run.read = file, read
        yield run


def _as_written(line: bytes) -> tuple[bytes, bytes]:
    """A line as msglog writes it, and how such lines of its client go on behind their time."""
    middle = line[_MIDDLE]
    if middle.startswith(_BEFORE_CLIENT) and middle.endswith(_BEHIND_CLIENT):
        return line, middle
    line = format_line(parse_line(line))
    return line, line[_MIDDLE]
