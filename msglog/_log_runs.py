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


def log_runs(files: Iterable[tuple[LogFile, int | None]]) -> Iterator[LogRun]:
    """
    The runs of logs that were checked: every line is a good record, no client has a gap.

    A line that something else than msglog wrote, with spaces say, comes as msglog would write it.

    @param files: each with the length that was checked; L{None} where that is not known before.
    """
    middle = b""
    lines: list[bytes] = []
    run = LogRun(b"", 0, lines, 0, 0, 0)
    for index, (file, end) in enumerate(files):
        for offset, line in file.lines(0, end):
            if (
                line[_MIDDLE] == middle
                and len(lines) < MAX_LINES
                and run.size + len(line) <= MAX_PAYLOAD
            ):
                lines.append(line)
                run.size += len(line)
                continue
            if lines:
                run.file, run.read = index, file.consumed or offset
                yield run
            line, middle = _as_written(line)
            lines = [line]
            client = bytes.fromhex(line[_CLIENT].decode().replace("-", ""))
            first = int(line[_SEQUENCE : line.index(b",", _SEQUENCE)])
            run = LogRun(client, first, lines, len(line), index, 0)
    if lines:
        run.file, run.read = index, file.consumed or file.size or 0
        yield run


def _as_written(line: bytes) -> tuple[bytes, bytes]:
    """A line as msglog writes it, and how such lines of its client go on behind their time."""
    middle = line[_MIDDLE]
    if middle.startswith(_BEFORE_CLIENT) and middle.endswith(_BEHIND_CLIENT):
        return line, middle
    line = format_line(parse_line(line))
    return line, line[_MIDDLE]
