"""
A disk in memory that notes every operation, in order: what L{LogWriter<msglog._writer.LogWriter>}
does to files and to the ledger's database, and when it waits for the disk.

What is read back is what a program sees: the page cache.  What a power cut would leave is for
L{tests.faults.power_cut} to say, from the notes.
"""

from __future__ import annotations

import errno
import os
from array import array
from collections.abc import Generator, Mapping
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

from attrs import field, frozen
from zope.interface import implementer

from msglog._checkpoint import Coverage, ICheckpoint
from msglog._disk import IDisk
from msglog._ledger import ClientState

__all__ = ["EMPTY", "FOLDER", "LEDGER", "LOG", "Inode", "Killed", "MemoryDisk", "Snapshot", "State"]

FOLDER = Path("/disk")
LOG = FOLDER / "log"
LEDGER = "log.ledger"

# As many clients as the real checkpoint writes in a step.
_SLICE = 256


class Killed(BaseException):
    """The process ends here."""


@frozen(slots=True, eq=False)
class Snapshot:
    """
    The ledger's database as one of its transactions left it.

    @ivar coverage: what it covers of which log; L{None} if it never covered anything.
    @ivar rows: of each client its last sequence, and the checksums of its last messages.
    @ivar key: the same for those with the same content.
    """

    coverage: Coverage | None
    rows: Mapping[bytes, tuple[int, bytes]]
    key: int = field(init=False)

    @key.default
    def _key(self) -> int:
        return hash((self.coverage, frozenset(self.rows.items())))


EMPTY = Snapshot(None, {})


class State(NamedTuple):
    """
    What a disk holds when a machine starts.

    @ivar files: the content of each file but the ledger's, by its name.
    @ivar ledger: the ledger's database; L{None} if there is no such file.
    """

    files: dict[str, bytes]
    ledger: Snapshot | None


class Inode:
    """
    A file, whatever its names.

    @ivar base: its content when the notes began.
    @ivar data: its content now.
    """

    __slots__ = ("base", "data")

    def __init__(self, base: bytes) -> None:
        self.base = self.data = base


@implementer(IDisk)
class MemoryDisk:
    """
    @param state: what it holds, all of it synced.
    @ivar notes: what was done: tuples of the operation's name and its operands.
    @ivar folder: its names, without that of the ledger's database.
    @ivar base: the folder when the notes began, and C{ledger_base} the database then.
    @ivar room: how many bytes can be written before there is no room; L{None}: no end.
    @ivar failing: whether syncs fail.
    @ivar die_at: the process is killed when it begins the operation of this number.
    @ivar die_half: whether that operation, if it is a write, is done for its first half.
    """

    def __init__(self, state: State = State({}, None)) -> None:  # noqa: B008 - immutable
        self.folder = {name: Inode(data) for name, data in state.files.items()}
        self.ledger = state.ledger
        self.base = dict(self.folder)
        self.ledger_base = state.ledger
        self.notes: list[tuple[Any, ...]] = []
        self.room: int | None = None
        self.failing = False
        self.die_at = -1
        self.die_half = False
        self._open: list[Inode | None] = []
        self._locked: dict[int, Inode] = {}
        self._synced: dict[Inode, int] = {}  # how much of each file
        self._dropped: dict[Inode, int] = {}  # from where on a sync failed

    def kill(self) -> None:
        """The process is gone; what it wrote is in the page cache."""
        self._open.clear()
        self._locked.clear()

    def look(self) -> State:
        """What a program sees."""
        return State({name: inode.data for name, inode in self.folder.items()}, self.ledger)

    def _begin(self) -> None:
        if len(self.notes) == self.die_at:
            raise Killed

    def _inode(self, fd: int) -> Inode:
        inode = self._open[fd]
        assert inode is not None, "a closed file is used"
        return inode

    # --- IDisk -----------------------------------------------------------------------------

    def open(self, path: Path) -> int:
        if path.name not in self.folder:
            self._begin()
            self._make(path.name)
        return self.open_to_read(path)

    def _make(self, name: str) -> None:
        inode = self.folder[name] = Inode(b"")
        self.notes.append(("make", name, inode))

    def open_to_read(self, path: Path) -> int:
        inode = self.folder.get(path.name)
        if inode is None:
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(path))
        self._open.append(inode)
        return len(self._open) - 1

    def close(self, fd: int) -> None:
        self._inode(fd)
        self._open[fd] = None
        self._locked.pop(fd, None)

    def lock(self, fd: int) -> bool:
        inode = self._inode(fd)
        if inode in self._locked.values():
            return False
        self._locked[fd] = inode
        return True

    def size(self, fd: int) -> int:
        return len(self._inode(fd).data)

    def names(self, path: Path, fd: int) -> bool:
        return self.folder.get(path.name) is self._inode(fd)

    def named(self, fd: int) -> bool:
        return any(inode is self._inode(fd) for inode in self.folder.values())

    def beside(self, path: Path) -> list[Path]:
        return [
            path.parent / name
            for name in self.folder
            if name.startswith(path.name) and name != path.name
        ]

    def space(self, folder: Path) -> tuple[int, int]:
        return 1 << 40, 1 << 41

    def doubt(self, folder: Path) -> str | None:
        return None

    def read(self, fd: int, count: int, offset: int) -> bytes:
        return self._inode(fd).data[offset : offset + count]

    def write(self, fd: int, data: bytes | memoryview) -> int:
        inode, killed = self._inode(fd), False
        if len(self.notes) == self.die_at:
            if not self.die_half:
                raise Killed
            data, killed = data[: len(data) // 2], True
        if self.room is not None:
            if not self.room:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            data = data[: self.room]
            self.room -= len(data)
        data = bytes(data)
        inode.data += data
        self.notes.append(("write", inode, data))
        if killed:
            raise Killed
        return len(data)

    def sync(self, fd: int) -> None:
        self._begin()
        inode = self._inode(fd)
        if self.failing:
            self._dropped.setdefault(inode, self._synced.get(inode, len(inode.base)))
            self.notes.append(("failed sync", inode))
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        self._synced[inode] = len(inode.data)
        self.notes.append(("sync", inode))

    def forget(self, fd: int, offset: int) -> None:
        inode = self._inode(fd)
        if (synced := self._dropped.get(inode, -1)) < offset:
            return
        self._begin()
        # What a sync failed on is not on the disk; its length may be.
        del self._dropped[inode]
        inode.data = inode.data[:synced].ljust(len(inode.data), b"\0")
        self.notes.append(("forget", inode, inode.data))

    def reserve(self, fd: int, offset: int, count: int) -> None:
        pass  # neither content nor length changes

    def release(self, fd: int) -> None:
        pass

    def cut(self, fd: int, size: int) -> None:
        self._begin()
        inode = self._inode(fd)
        inode.data = inode.data[:size].ljust(size, b"\0")
        self.notes.append(("cut", inode, size))

    def take_name(self, path: Path) -> None:
        self._begin()
        if path.name in self.folder:
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(path))
        self._make(path.name)

    def rename(self, old: Path, new: Path) -> None:
        self._begin()
        self.folder[new.name] = self.folder.pop(old.name)
        self.notes.append(("rename", old.name, new.name))

    def remove(self, path: Path) -> None:
        self._begin()
        if path.name not in self.folder:
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(path))
        del self.folder[path.name]
        self.notes.append(("remove", path.name))

    def sync_folder(self, path: Path) -> None:
        self._begin()
        self.notes.append(("sync folder",))

    # --- the ledger's database -------------------------------------------------------------

    def checkpoint(self, path: Path, window: int) -> MemoryCheckpoint:
        """Open the database, made if there is none: what C{LogWriter} wants for its ledger."""
        if self.ledger is None:
            self._begin()
            self.ledger = EMPTY
            self.notes.append(("make", LEDGER, None))
        return MemoryCheckpoint(self, path, window)

    def commit(self, snapshot: Snapshot, durable: bool) -> None:
        """A transaction of the database."""
        self._begin()
        self.ledger = snapshot
        self.notes.append(("commit", snapshot, durable))


@implementer(ICheckpoint)
class MemoryCheckpoint:
    """The database of a L{MemoryDisk}; see L{Checkpoint<msglog._checkpoint.Checkpoint>}."""

    def __init__(self, disk: MemoryDisk, path: Path, window: int) -> None:
        self.path = path
        self._disk = disk
        self._window = window

    def _now(self) -> Snapshot:
        assert self._disk.ledger is not None
        return self._disk.ledger

    def gone(self) -> bool:
        return False

    def coverage(self) -> Coverage | None:
        return self._now().coverage

    def load(self, client: bytes) -> ClientState | None:
        row = self._now().rows.get(client)
        if row is None:
            return None
        last, raw = row
        return ClientState(last, array("I", raw), last)

    def write(
        self,
        dirty: dict[bytes, ClientState],
        coverage: Coverage | None,
        written: dict[bytes, tuple[ClientState, int]],
        *,
        durable: bool,
    ) -> Generator[None, None, None]:
        rows: dict[bytes, tuple[int, bytes]] = {}
        states = iter(dirty.items())
        while part := list(islice(states, _SLICE)):
            for client, state in part:
                rows[client] = state.last, state.checksums[-self._window :].tobytes()
                written[client] = state, state.last
            yield
        before = self._now()
        self._disk.commit(
            Snapshot(before.coverage if coverage is None else coverage, {**before.rows, **rows}),
            durable,
        )

    def close(self) -> None:
        pass

    def abandon(self) -> None:
        pass
