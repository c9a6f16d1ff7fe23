"""
A disk tried the way a log uses it: appends of several sizes, each synced; the lock; names.

All is done in a folder of its own, which is deleted at the end, however that comes.
"""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from attrs import frozen

from ._disk import IDisk

__all__ = ["SIZES", "DiskTrial", "Syncs"]

# What is appended at a time, bytes: one message's line, a page, a commit of some hundred messages,
# and one of some thousand.
SIZES = (400, 4096, 64 * 1024, 1024 * 1024)

# The room that is set aside at a time, as the writer does it; and no longer gets the file.
_FILE_BYTES = 16 * 1024 * 1024

# However slow it is: fewer say nothing.
_LEAST_SYNCS = 3

_PREFIX = ".msglog-probe-"


@frozen
class Syncs:
    """
    How long appends and their syncs took, seconds.

    @ivar size: bytes of each.
    @ivar count: how many.
    """

    size: int
    count: int
    p50: float
    p99: float
    worst: float


class DiskTrial:
    """
    Context manager, in which a folder's disk can be tried.

    @raise OSError: a file cannot be made there, or written.
    """

    def __init__(
        self, folder: Path, disk: IDisk, seconds: Callable[[], float] = time.perf_counter
    ) -> None:
        self._folder = folder
        self._disk = disk
        self._seconds = seconds
        self._sets_aside = False

    def __enter__(self) -> DiskTrial:
        self._own = tempfile.TemporaryDirectory(prefix=_PREFIX, dir=self._folder)
        self._path = Path(self._own.name, "log")
        self._fd: int | None = None
        try:
            self._fd = self._disk.open(self._path)
        except BaseException:
            self._own.cleanup()
            raise
        return self

    def __exit__(self, *exc: object) -> None:
        if self._fd is not None:
            self._disk.close(self._fd)
            self._fd = None
        self._own.cleanup()

    @property
    def _open(self) -> int:
        assert self._fd is not None, "outside of the context"
        return self._fd

    def excludes(self) -> bool:
        """
        Whether the lock keeps another process out.

        @raise OSError: there are no locks.
        """
        if not self._disk.lock(self._open):
            return False  # nobody else can have it: it is refused to everybody
        # Not in this process: where locks are another machine's, they may be the process's.
        child = os.fork()
        if not child:
            status = 1
            try:
                status = 1 if self._disk.lock(self._disk.open(self._path)) else 0
            finally:
                os._exit(status)
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0

    def renames(self) -> bool:
        """
        Whether a rotation works: the open file gets a name that is taken, and the folder is synced.

        @raise OSError: one of that fails.
        """
        other = self._path.with_name("log.rotated")
        self._disk.take_name(other)
        self._disk.rename(self._path, other)
        self._disk.sync_folder(other.parent)
        moved = self._disk.names(other, self._open) and not self._disk.names(self._path, self._open)
        self._disk.rename(other, self._path)
        return moved

    def reserves(self) -> bool:
        """
        Whether room can be set aside behind the file's end.

        @raise OSError: there is none, or that fails.
        """
        before = os.fstat(self._open).st_blocks
        self._disk.reserve(self._open, 0, _FILE_BYTES)
        after = os.fstat(self._open)
        self._sets_aside = after.st_size == 0 and after.st_blocks > before
        return self._sets_aside

    def measure(self, size: int, seconds: float, tick: Callable[[], None]) -> Syncs:
        """
        Append and sync for some time, in room set aside if L{reserves} found that this works.

        @param tick: called after each.
        @raise OSError: that fails.
        """
        data = b"x" * (size - 1) + b"\n"
        taken: list[float] = []
        length = _FILE_BYTES
        now = self._seconds()
        end = now + seconds
        while now < end or len(taken) < _LEAST_SYNCS:
            if length + size > _FILE_BYTES:
                self._disk.cut(self._open, 0)
                if self._sets_aside:
                    self._disk.reserve(self._open, 0, _FILE_BYTES)
                self._disk.sync(self._open)
                length = 0
            began = self._seconds()
            done = 0
            while done < size:
                done += self._disk.write(self._open, memoryview(data)[done:])
            self._disk.sync(self._open)
            now = self._seconds()
            taken.append(now - began)
            length += size
            tick()
        taken.sort()
        count = len(taken)
        return Syncs(size, count, taken[count // 2], taken[count * 99 // 100], taken[-1])
