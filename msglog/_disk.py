"""
The system calls that the log is written with, in one place: a test can make each fail, or keep
what was written and synced in memory, and see what a power cut leaves of it.

What fails is raised as the C{OSError} it is; what that means is the writer's to say.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import stat
from pathlib import Path

from zope.interface import Interface, implementer

from ._mounts import mount_of

__all__ = ["Disk", "IDisk", "see_file"]

# Linux's fallocate(2).  Python has posix_fallocate, which makes the file longer: there would be
# zeros at the end of the log for whoever reads it.
_KEEP_SIZE = 0x01  # FALLOC_FL_KEEP_SIZE
_fallocate = getattr(ctypes.CDLL(None, use_errno=True), "fallocate64", None)
if _fallocate is not None:
    _fallocate.argtypes = (ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64)

# What may be one page of a file's cache, which is forgotten wholly or not at all: 2 MiB at the most
# on common machines.
_CACHE_BYTES = 4 << 20

# The log may hold what not everybody on the machine should read.
_MODE = 0o640

_KINDS = {
    stat.S_IFBLK: "a device",
    stat.S_IFCHR: "a device",
    stat.S_IFDIR: "a folder",
    stat.S_IFIFO: "a FIFO",
    stat.S_IFLNK: "a symbolic link",
    stat.S_IFSOCK: "a socket",
}


def see_file(path: Path, *, follow: bool) -> None:
    """
    See that a name is free or a file's, before it is opened: to open a device may do something.

    @param follow: whether a symbolic link to a file will do.
    @raise OSError: something else has the name.
    """
    try:
        mode = os.stat(path, follow_symlinks=follow).st_mode
    except FileNotFoundError:
        return
    if not stat.S_ISREG(mode):
        kind = _KINDS.get(stat.S_IFMT(mode), "something else")
        raise OSError(errno.EINVAL, f"it is {kind}, and must be a file", str(path))


class IDisk(Interface):
    """
    All that the writer, its rotation and its start do with files, but for the ledger's database
    (L{ICheckpoint<msglog._checkpoint.ICheckpoint>}).

    What is not synced may be lost in a power cut, wholly or in parts, in any order.
    """

    def open(path: Path) -> int:
        """
        Open a file for reading and appending, made if it does not exist.

        @raise OSError: that is not possible, or what has the name is no file.
        """

    def open_to_read(path: Path) -> int:
        """Open a file that exists, for reading."""

    def close(fd: int) -> None:
        """Close a file, and so give up its lock."""

    def lock(fd: int) -> bool:
        """Take the exclusive lock of a file; whether it was free."""

    def size(fd: int) -> int:
        """The length of an open file in bytes."""

    def names(path: Path, fd: int) -> bool:
        """Whether a name leads to this open file."""

    def named(fd: int) -> bool:
        """Whether any name leads to this open file, or it is gone when it is closed."""

    def beside(path: Path) -> list[Path]:
        """The regular files whose names begin with that of C{path} and are longer."""

    def space(folder: Path) -> tuple[int, int]:
        """Bytes of a folder's disk: those that this user may still write, and all."""

    def doubt(folder: Path) -> str | None:
        """
        What there is against keeping a log on a folder's file system, after "it is"; L{None} if
        nothing is known.
        """

    def read(fd: int, count: int, offset: int) -> bytes:
        """At most C{count} bytes from C{offset}; empty at the end."""

    def write(fd: int, data: bytes | memoryview) -> int:
        """Append; how many bytes were taken, which may be fewer."""

    def sync(fd: int) -> None:
        """Wait until what was written to a file, and its length, is on the disk."""

    def reserve(fd: int, offset: int, count: int) -> None:
        """
        Set room aside behind a file's end, from C{offset}: the sync of a write to it is quicker.

        Nothing changes of what can be read, or in the file's length.  Where the system has no
        such thing, nothing happens.
        """

    def release(fd: int) -> None:
        """Give back what was set aside behind a file's end."""

    def forget(fd: int, offset: int) -> None:
        """
        Have what a synced file has from an offset on read from the disk, not from memory.

        After a sync that failed the kernel may show what the disk does not have, and say of the
        next sync that all is well.
        """

    def cut(fd: int, size: int) -> None:
        """Cut a file to a length."""

    def take_name(path: Path) -> None:
        """Make an empty file under a name that must be free, so that nothing there is replaced."""

    def rename(old: Path, new: Path) -> None:
        """Give a file another name, and take that from whatever has it."""

    def remove(path: Path) -> None:
        """Delete a file."""

    def sync_folder(path: Path) -> None:
        """Wait until a folder's names are on the disk."""


@implementer(IDisk)
class Disk:
    """Files, for real.  Stateless."""

    def open(self, path: Path) -> int:
        """See L{IDisk.open}."""
        see_file(path, follow=True)
        return os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, _MODE)

    def open_to_read(self, path: Path) -> int:
        """See L{IDisk.open_to_read}."""
        return os.open(path, os.O_RDONLY | os.O_CLOEXEC)

    def close(self, fd: int) -> None:
        """See L{IDisk.close}."""
        os.close(fd)

    def lock(self, fd: int) -> bool:
        """See L{IDisk.lock}."""
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        return True

    def size(self, fd: int) -> int:
        """See L{IDisk.size}."""
        return os.fstat(fd).st_size

    def names(self, path: Path, fd: int) -> bool:
        """See L{IDisk.names}."""
        try:
            named = os.stat(path)
        except FileNotFoundError:
            return False
        return os.path.samestat(named, os.fstat(fd))

    def named(self, fd: int) -> bool:
        """See L{IDisk.named}."""
        return os.fstat(fd).st_nlink > 0

    def beside(self, path: Path) -> list[Path]:
        """See L{IDisk.beside}."""
        with os.scandir(path.parent) as entries:
            return [
                path.parent / entry.name
                for entry in entries
                if entry.name.startswith(path.name) and entry.name != path.name and entry.is_file()
            ]

    def space(self, folder: Path) -> tuple[int, int]:
        """See L{IDisk.space}."""
        found = os.statvfs(folder)
        return found.f_bavail * found.f_frsize, found.f_blocks * found.f_frsize

    def doubt(self, folder: Path) -> str | None:
        """See L{IDisk.doubt}."""
        mount = mount_of(folder)
        return mount.doubt if mount is not None else None

    def read(self, fd: int, count: int, offset: int) -> bytes:
        """See L{IDisk.read}."""
        return os.pread(fd, count, offset)

    def write(self, fd: int, data: bytes | memoryview) -> int:
        """See L{IDisk.write}."""
        return os.write(fd, data)

    def sync(self, fd: int) -> None:
        """See L{IDisk.sync}."""
        os.fdatasync(fd)

    def reserve(self, fd: int, offset: int, count: int) -> None:
        """See L{IDisk.reserve}."""
        if _fallocate is not None and _fallocate(fd, _KEEP_SIZE, offset, count):
            code = ctypes.get_errno()
            if code not in (errno.EOPNOTSUPP, errno.ENOSYS, errno.EINTR):
                raise OSError(code, os.strerror(code))

    def release(self, fd: int) -> None:
        """See L{IDisk.release}."""
        os.ftruncate(fd, os.fstat(fd).st_size)

    def forget(self, fd: int, offset: int) -> None:
        """See L{IDisk.forget}."""
        # (To write it once more does not help: ext4 knows the blocks as never written for good.)
        os.posix_fadvise(fd, offset - offset % _CACHE_BYTES, 0, os.POSIX_FADV_DONTNEED)

    def cut(self, fd: int, size: int) -> None:
        """See L{IDisk.cut}."""
        os.ftruncate(fd, size)

    def take_name(self, path: Path) -> None:
        """See L{IDisk.take_name}."""
        os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, _MODE))

    def rename(self, old: Path, new: Path) -> None:
        """See L{IDisk.rename}."""
        os.rename(old, new)

    def remove(self, path: Path) -> None:
        """See L{IDisk.remove}."""
        os.unlink(path)

    def sync_folder(self, path: Path) -> None:
        """See L{IDisk.sync_folder}."""
        fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)
