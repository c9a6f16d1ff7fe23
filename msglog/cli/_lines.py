"""Where messages come from: files, pipes and terminals in lines, or words of the command line."""

from __future__ import annotations

import os
import select
import stat
from collections.abc import Callable, Iterable, Iterator

from attrs import define
from google_crc32c import value as crc32c

from .._frames import ABSURD_BODY_BYTES

__all__ = ["Input", "Line", "TextInput", "split"]

# Bytes of one read: a disk's read-ahead, and a few hundred lines.
_BLOCK_BYTES = 128 * 1024

# Seconds from one look at other things to the next while there is nothing to read: nobody sees that
# a receipt was printed so much later, and to look costs some microseconds.
_IDLE_SECONDS = 0.1

# How much of a file's first record tells it from others: enough for a line with its date.
_FINGERPRINT_BYTES = 4096


@define(slots=True, eq=False)
class Line:
    """
    A message to be.

    @ivar place: where it stands, for people: C{access.log:17}.
    @ivar body: what is between the separators; empty if it is longer than any server takes.
    @ivar size: how long it is.
    @ivar end: the offset behind it, separator included.
    """

    place: str
    body: bytes
    size: int
    end: int


class TextInput:
    """Messages of the command line."""

    name = ""
    key = size = None
    is_terminal = False

    def __init__(self, texts: Iterable[bytes]) -> None:
        self._texts = texts

    def lines(self, idle: Callable[[], None]) -> Iterator[Line]:
        """See L{Input.lines}."""
        for number, text in enumerate(self._texts, 1):
            yield Line(f"message {number}", text, len(text), 0)

    def close(self) -> None:
        """There is nothing to close."""


class Input:
    """
    A file, a pipe or a terminal.

    @param path: C{-} for the standard input.
    @param separator: one byte.

    @ivar name: for people.
    @ivar key: what a spool remembers its place by; L{None} if it cannot be begun in the middle.
    @ivar size: how many bytes it has; L{None} if nobody knows.
    @raise OSError: it cannot be read.
    """

    def __init__(self, path: str, separator: bytes) -> None:
        self.name = "standard input" if path == "-" else path
        self._separator = separator
        self._file = os.dup(0) if path == "-" else os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        self._start = self._number = 0
        try:
            found = os.fstat(self._file)
            self.is_terminal = os.isatty(self._file)
            self.size: int | None = None
            self.key: str | None = None
            if stat.S_ISDIR(found.st_mode):
                raise IsADirectoryError(0, "it is a folder")
            # The standard input may have been read from already, by another program.
            if stat.S_ISREG(found.st_mode) and path != "-":
                self.size = found.st_size
                # Not its name, which rotation changes, and not its inode alone, which the next
                # file gets when this one is deleted.
                first = os.pread(self._file, _FINGERPRINT_BYTES, 0).split(separator, 1)[0]
                self.key = f"send {found.st_ino} {crc32c(first):08x}"
        except BaseException:
            self.close()
            raise

    def begin_at(self, offset: int) -> bool:
        """
        Begin behind a record instead of at the start.

        @return: whether a record ends there.
        """
        size = self.size or 0
        if offset > size or (
            offset < size and os.pread(self._file, 1, offset - 1) != self._separator
        ):
            return False
        # How many records there are before it is for the messages about those behind it.
        counted = 0
        while counted < offset:
            block = os.pread(self._file, min(_BLOCK_BYTES, offset - counted), counted)
            if not block:
                return False
            self._number += block.count(self._separator)
            counted += len(block)
        self._start = os.lseek(self._file, offset, os.SEEK_SET)
        return True

    def lines(self, idle: Callable[[], None]) -> Iterator[Line]:
        """
        Read it to its end.

        @param idle: called now and then while there is nothing to read.
        @raise OSError: it cannot be read any more.
        """
        pieces = split(self._blocks(idle), self._separator, self._start)
        for number, (body, size, end) in enumerate(pieces, self._number + 1):
            yield Line(f"{self.name}:{number}", body, size, end)

    def _blocks(self, idle: Callable[[], None]) -> Iterator[bytes]:
        while True:
            while not select.select([self._file], [], [], _IDLE_SECONDS)[0]:
                idle()
            block = os.read(self._file, _BLOCK_BYTES)
            if not block:
                return
            yield block

    def close(self) -> None:
        """Close it."""
        os.close(self._file)


def split(
    blocks: Iterable[bytes], separator: bytes, offset: int
) -> Iterator[tuple[bytes, int, int]]:
    """
    Records, and not more of them in memory than a block and one record.

    @param offset: where the first block begins.
    @return: for each record what is in it (nothing, if it is longer than any server takes), its
        size, and the offset behind its separator.  One without a separator at the end counts too.
    """
    parts: list[bytes] = []
    size = 0
    for block in blocks:
        *whole, rest = block.split(separator)
        for piece in whole:
            size += len(piece)
            body = b"".join((*parts, piece)) if parts else piece
            offset += size + 1
            yield (body if size <= ABSURD_BODY_BYTES else b""), size, offset
            parts, size = [], 0
        size += len(rest)
        if size > ABSURD_BODY_BYTES:
            parts = []
        elif rest:
            parts.append(rest)
    if size:
        yield b"".join(parts), size, offset + size
