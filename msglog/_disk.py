"""
The system calls that the log is written with, in one place, so that a test can make each fail.

What fails is raised as the C{OSError} it is; what that means is the writer's to say.
"""

from __future__ import annotations

import fcntl
import os
from pathlib import Path

__all__ = ["Disk"]

# The log may hold what not everybody on the machine should read.
_MODE = 0o640


class Disk:
    """Files, for real.  Stateless."""

    def open(self, path: Path) -> int:
        """Open a file for reading and appending, made if it does not exist."""
        return os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, _MODE)

    def close(self, fd: int) -> None:
        """Close a file, and so give up its lock."""
        os.close(fd)

    def lock(self, fd: int) -> bool:
        """Take the exclusive lock of a file; whether it was free."""
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        return True

    def size(self, fd: int) -> int:
        """The length of an open file in bytes."""
        return os.fstat(fd).st_size

    def names(self, path: Path, fd: int) -> bool:
        """Whether a name leads to this open file."""
        try:
            named = os.stat(path)
        except FileNotFoundError:
            return False
        return os.path.samestat(named, os.fstat(fd))

    def space(self, folder: Path) -> tuple[int, int]:
        """Bytes of a folder's disk: those that this user may still write, and all."""
        found = os.statvfs(folder)
        return found.f_bavail * found.f_frsize, found.f_blocks * found.f_frsize

    def read(self, fd: int, count: int, offset: int) -> bytes:
        """At most C{count} bytes from C{offset}; empty at the end."""
        return os.pread(fd, count, offset)

    def write(self, fd: int, data: bytes | memoryview) -> int:
        """Append; how many bytes were taken, which may be fewer."""
        return os.write(fd, data)

    def sync(self, fd: int) -> None:
        """Wait until what was written is on the disk."""
        os.fdatasync(fd)

    def cut(self, fd: int, size: int) -> None:
        """Cut a file to a length."""
        os.ftruncate(fd, size)

    def take_name(self, path: Path) -> None:
        """Make an empty file under a name that must be free, so that nothing there is replaced."""
        os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, _MODE))

    def rename(self, old: Path, new: Path) -> None:
        """Give a file another name, and take that from whatever has it."""
        os.rename(old, new)

    def remove(self, path: Path) -> None:
        """Delete a file."""
        os.unlink(path)

    def sync_folder(self, path: Path) -> None:
        """Wait until a folder's names are on the disk."""
        fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)

    def keep(self, path: Path, data: bytes) -> None:
        """Add to a file that something is kept aside in, and wait until it is on the disk."""
        fd = self.open(path)
        try:
            while data:
                data = data[os.write(fd, data) :]
            os.fsync(fd)
        finally:
            os.close(fd)
