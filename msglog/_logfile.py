"""
Log files opened for reading: plain ones, compressed ones, and pipes.

A plain file can be read anywhere.  What is compressed, or comes through a pipe, can only be read
from its beginning on, in order: L{LogFile.size} is L{None} then.  Offsets are always those of
the uncompressed bytes.
"""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import os
import stat
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path

from ._disk import Disk
from ._errors import LogUnreadable, RecordError
from ._records import MAX_LINE_BYTES, Record, parse_line
from ._rotation import RotatedFile, rotated_files
from ._torn import Lines

__all__ = ["STDIN", "LogFile", "open_log", "predecessors"]

# The name that stands for the standard input.
STDIN = Path("-")

# How compressed files begin, and what opens them.
_GZIP, _XZ, _BZIP2, _ZSTD = b"\x1f\x8b", b"\xfd7zXZ\0", b"BZh", b"\x28\xb5\x2f\xfd"
_MAGIC_BYTES = 6

# What a first look at a file that can only be read in order takes at a time, bytes.
_LOOK_BYTES = 64 * 1024


class LogFile:
    """
    A log that can be read anywhere.

    @ivar path: its name.
    """

    def __init__(self, path: Path, raw: io.BufferedReader) -> None:
        self.path = path
        self._raw = raw
        self._fd = raw.fileno()

    def fileno(self) -> int:
        """The descriptor, for as long as this is open."""
        return self._fd

    @property
    def size(self) -> int | None:
        """Its length now, bytes; L{None} if that is not known before it was read."""
        return os.fstat(self._fd).st_size

    @property
    def consumed(self) -> int | None:
        """How much of the file on the disk was read, where reading it in order is all one can."""
        return None

    def read(self, count: int, offset: int) -> bytes:
        """
        At most C{count} bytes from an offset; empty at the end.

        @raise LogUnreadable: there is more, but it cannot be read.
        """
        try:
            return os.pread(self._fd, count, offset)
        except OSError as e:
            raise LogUnreadable(f"cannot read {self.path} at byte {offset}: {e.strerror}") from e

    def lines(self, offset: int = 0, end: int | None = None) -> Iterator[tuple[int, bytes]]:
        """Its lines, each with its offset, from that of a line on, and up to that of another."""
        for found in Lines(self.read, offset):
            if end is not None and found[0] >= end:
                return
            yield found

    def first_line(self) -> bytes:
        """Its first line, newline included if it has one."""
        size = _LOOK_BYTES
        while True:
            begin = self.read(size, 0)
            if b"\n" in begin:
                return begin[: begin.index(b"\n") + 1]
            if len(begin) < size or size > MAX_LINE_BYTES:
                return begin
            size *= 2

    def first_record(self) -> Record | None:
        """What its first line holds, if that is a record."""
        line = self.first_line()
        try:
            return parse_line(line) if line.endswith(b"\n") else None
        except RecordError:
            return None

    def close(self) -> None:
        """Close it."""
        self._raw.close()

    def __enter__(self) -> LogFile:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


class _Stream(LogFile):
    """
    A log that can only be read in order.

    What the last read returned can be read again, so that a first line can be looked at and the
    last line of a block begun with once more.
    """

    def __init__(self, path: Path, raw: io.BufferedReader, content: io.BufferedIOBase) -> None:
        super().__init__(path, raw)
        self._content = content
        self._held = b""
        self._at = 0  # the offset where what is held begins
        self._error: LogUnreadable | None = None

    @property
    def size(self) -> int | None:
        """Not known before it was read."""
        return None

    @property
    def consumed(self) -> int | None:
        """How much of the file on the disk was read; L{None} if it is a pipe."""
        return self._raw.tell() if self._raw.seekable() else None

    def read(self, count: int, offset: int) -> bytes:
        """
        At most C{count} bytes; empty at the end.

        @param offset: not less than that of the last read.
        @raise LogUnreadable: there is more, but it cannot be read.
        """
        if offset < self._at:
            raise ValueError(f"{self.path} cannot be read backwards")
        while (beyond := offset - self._at - len(self._held)) > 0:
            more = self._more(min(beyond, _LOOK_BYTES))
            if not more:
                break
            self._at += len(self._held)
            self._held = more
        parts = [self._held[offset - self._at :]]
        self._at = offset
        length = len(parts[0])
        while length < count and (more := self._more(count - length)):
            parts.append(more)
            length += len(more)
        self._held = b"".join(parts)
        if not self._held and self._error is not None:
            raise self._error
        return self._held[:count]

    def _more(self, count: int) -> bytes:
        """Some bytes; none at the end, or where reading fails, which is kept to be raised."""
        if self._error is not None:
            return b""
        try:
            # read1, since read would lose with an error what it had decompressed before.
            return self._content.read1(count)
        except (OSError, EOFError, zlib.error, lzma.LZMAError) as e:
            self._error = LogUnreadable(f"cannot read {self.path} any further: {e}")
            return b""

    def close(self) -> None:
        """Close it."""
        self._content.close()
        self._raw.close()


def open_log(path: Path) -> LogFile:
    """
    Open a log for reading.

    @param path: a plain file, one compressed by gzip, xz or bzip2 (which its content says, not its
        name), a named pipe, or C{-} for the standard input.
    @raise LogUnreadable: it cannot be opened.
    """
    try:
        raw = os.fdopen(os.dup(0), "rb") if path == STDIN else path.open("rb")
        magic = raw.peek(_MAGIC_BYTES)[:_MAGIC_BYTES]
    except OSError as e:
        raise LogUnreadable(f"cannot open {path}: {e.strerror}") from e
    if magic.startswith(_GZIP):
        return _Stream(path, raw, gzip.GzipFile(fileobj=raw))
    if magic.startswith(_BZIP2):
        return _Stream(path, raw, bz2.BZ2File(raw))
    if magic.startswith(_XZ):
        return _Stream(path, raw, lzma.LZMAFile(raw))
    if magic.startswith(_ZSTD):
        raw.close()
        raise LogUnreadable(
            f"cannot read {path}: it is compressed with zstd, which is not known here; pipe it in: "
            f"zstdcat {path} | msglog … -"
        )
    if stat.S_ISREG(os.fstat(raw.fileno()).st_mode):
        return LogFile(path, raw)
    return _Stream(path, raw, raw)


def predecessors(log: Path, remark: Callable[[str], None]) -> list[Path]:
    """
    The files that were rotated away from a log, plain or compressed, oldest first.

    Of several that begin with the same line there is one: while a file is being compressed both are
    there, and somebody may have made a copy.

    @param remark: told of each file that looks like one by its name and is passed over.
    """

    def first_line(path: Path) -> bytes:
        try:
            with open_log(path) as file:
                line = file.first_line()
        except LogUnreadable as e:
            reasons[path] = str(e)
            return b""
        if line:  # an empty file is a name that a rotation takes, or a log without records
            reasons[path] = "its first line is no record"
        return line

    def pass_over(path: Path) -> None:
        if path in reasons:
            remark(f"{path} is passed over: {reasons[path]}")

    reasons: dict[Path, str] = {}
    own = first_line(log)
    found: dict[bytes, RotatedFile] = {}
    for file in rotated_files(log, Disk().beside(log), first_line, pass_over):
        if file.first != own and (file.first not in found or not _is_compressed(file.path)):
            found[file.first] = file
    return [file.path for file in sorted(found.values(), key=lambda file: file.time)]


def _is_compressed(path: Path) -> bool:
    with open_log(path) as file:
        return file.size is None
