"""
File systems of a test's own: a small tmpfs, and ext4 in a file, whose power can be cut.

Root's, on Linux.  Elsewhere their tests are left out, but in CI as root they must run.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import struct
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

__all__ = ["Ext4", "need", "small_memory"]

# ioctl(2) of a folder of ext4 or XFS: nothing more goes to its disk, not even its journal.
_SHUTDOWN = 0x8004587D  # FS_IOC_SHUTDOWN
_NO_LOG_FLUSH = 2  # FS_SHUTDOWN_FLAGS_NOLOGFLUSH

_MIB = 1 << 20
_SOLID_MIB = 8


def _run(*words: str | Path) -> None:
    done = subprocess.run(words, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, f"{' '.join(map(str, words))}: {done.stderr}"


def need(*tools: str) -> None:
    """Leave the test out where it cannot be, but not in CI."""
    must = bool(os.environ.get("CI")) and os.geteuid() == 0
    lacking = [tool for tool in tools if shutil.which(tool) is None]
    reason = f"needs {', '.join(lacking)}" if lacking else ""
    if os.geteuid() != 0:
        reason = "needs root, who alone may mount"
    if reason:
        assert not must, reason
        pytest.skip(reason)


@contextmanager
def small_memory(folder: Path, mib: int) -> Iterator[Path]:
    """A tmpfs of so many MiB."""
    need("mount")
    folder.mkdir()
    _run("mount", "-t", "tmpfs", "-o", f"size={mib}m", "tmpfs", folder)
    try:
        yield folder
    finally:
        _run("umount", "--lazy", folder)


class Ext4:
    """
    A file system in a file; a context, in which it is mounted.

    @param image: the file.
    @param folder: where it is mounted; made.
    @ivar folder: a folder in it, for logs.
    """

    def __init__(self, image: Path, folder: Path, mib: int = 32) -> None:
        need("mount", "mkfs.ext4", "losetup")
        self._image = image
        self._mount = folder
        self.folder = folder / "logs"
        folder.mkdir()
        with image.open("wb") as file:
            file.truncate(mib * _MIB)  # sparse
        layout = "packed_meta_blocks=1,lazy_itable_init=1,nodiscard"
        _run("mkfs.ext4", "-q", "-J", "size=4", "-E", layout, image)
        # What the file system itself needs, its journal included, has room of its own.
        with image.open("r+b") as file:
            begin = file.read(_SOLID_MIB * _MIB)
            file.seek(0)
            file.write(begin)

    def __enter__(self) -> Ext4:
        self.mount()
        self.folder.mkdir()
        return self

    def __exit__(self, *_: object) -> None:
        _run("umount", "--lazy", self._mount)

    def mount(self) -> None:
        _run("mount", "-o", "loop,nodiscard", self._image, self._mount)

    def unmount(self) -> None:
        _run("umount", self._mount)

    def cut_power(self) -> None:
        """From now on nothing reaches the disk; what was synced before is there."""
        fd = os.open(self._mount, os.O_RDONLY | os.O_DIRECTORY)
        try:
            fcntl.ioctl(fd, _SHUTDOWN, struct.pack("I", _NO_LOG_FLUSH))
        finally:
            os.close(fd)

    def power_again(self) -> None:
        """The machine comes up; the page cache is empty."""
        self.unmount()
        self.mount()
