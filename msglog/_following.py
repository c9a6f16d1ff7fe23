"""
Following a log as it grows, through rotation, without missing, repeating or halving a line.

Theory of operation.  The server moves on to a new file only between two commits, after the old one
was renamed; and it never writes to the old one again.  So once the log's name leads to another
file, one more look at the old one gets all that is left of it.  While the name leads nowhere, the
old one may still grow.

========  =======================================================================================
ABSENT    there is no file of that name, and none is open
OPEN      a file is read; the name leads to it, or nowhere
========  =======================================================================================
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path

from ._logfile import LogFile, open_log, predecessors
from ._seeking import TIME_BYTES, last_offset, offset_of_time
from ._torn import said_time

__all__ = ["Follower"]


class Follower:
    """
    @param path: the log.
    @param remark: told what a person should know: that the log is not there, was rotated, was cut.
    """

    def __init__(self, path: Path, remark: Callable[[str], None]) -> None:
        self._path = path
        self._remark = remark
        self._file: LogFile | None = None
        self._offset = 0
        self._size = -1  # the file's at the last look
        self._time = -1  # of the last line
        self._said_absent = False

    def start(self, file: LogFile, offset: int) -> None:
        """
        Go on in a file that was opened already; it is closed in time.

        @param offset: where its first line begins that was not seen.
        """
        self._file, self._offset, self._size = file, offset, -1
        if offset:
            at, found = last_offset(file, 1, lambda line: said_time(line) is not None)
            if found:
                self._time = said_time(file.read(TIME_BYTES, at)) or 0

    def close(self) -> None:
        """Follow no more."""
        if self._file is not None:
            self._file.close()
            self._file = None

    def poll(self) -> Iterator[tuple[Path, int, bytes]]:
        """
        What has come since the last time: whole lines, each with its file and offset.

        @raise LogUnreadable: the file cannot be read.
        """
        if self._file is None and not self._open():
            return
        while True:
            following = self._successor()
            yield from self._grown()
            if not following:
                return
            self._note_half_line()
            # Opened first: a file that is begun and moved away between the two is found by either.
            opened = self._open()
            yield from self._between(opened)
            if not opened:
                return

    def _open(self) -> bool:
        """Open the file that the name leads to, if it does."""
        if not self._path.exists():
            if not self._said_absent:
                self._said_absent = True
                self._remark(f"{self._path} is not there; waiting for it")
            return False
        self.close()
        self.start(open_log(self._path), 0)
        if self._said_absent:
            self._said_absent = False
            self._remark(f"{self._path} is there")
        return True

    def _successor(self) -> bool:
        """Whether the name leads to another file than the open one."""
        assert self._file is not None
        try:
            named = os.stat(self._path)
        except FileNotFoundError:
            if not self._said_absent:
                self._said_absent = True
                self._remark(f"{self._path} was moved away; waiting for the next")
            return False
        if os.path.samestat(named, os.fstat(self._file.fileno())):
            self._said_absent = False
            return False
        self._said_absent = False
        return True

    def _grown(self) -> Iterator[tuple[Path, int, bytes]]:
        """The whole lines that the open file has more than at the last look."""
        file = self._file
        assert file is not None
        size = file.size
        if size is not None:
            if size == self._size:
                return
            self._size = size
            if size < self._offset:
                self._remark(
                    f"{file.path} was cut from {self._offset} bytes to {size}: some of what was "
                    f"shown is not in it any more"
                )
                self._offset = offset_of_time(file, self._time + 1)
        for offset, line in file.lines(self._offset):
            if not line.endswith(b"\n"):
                return
            self._offset = offset + len(line)
            time = said_time(line)
            if time is not None:
                self._time = time
            yield file.path, offset, line

    def _note_half_line(self) -> None:
        assert self._file is not None
        if (self._file.size or 0) > self._offset:
            self._remark(f"{self._file.path}, now moved away, ends in the middle of a line")

    def _between(self, opened: bool) -> Iterator[tuple[Path, int, bytes]]:
        """Files that were begun and moved away since the last look, before the open one."""
        if self._time < 0:
            return  # nothing says what is older and what is newer
        assert self._file is not None
        begins = self._file.first_record() if opened else None
        for path in predecessors(self._path, self._remark):
            with open_log(path) as file:
                first = file.first_record()
                if first is None or first.time <= self._time:
                    continue
                if begins is not None and first.time >= begins.time:
                    continue  # the open one by its new name, or newer: a later look's
                for offset, line in file.lines():
                    if line.endswith(b"\n"):
                        self._time = said_time(line) or self._time
                        yield path, offset, line
