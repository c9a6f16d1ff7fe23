"""
A disk in memory that is filled, fails, and is cut from its power.

What a power cut leaves: each file as it was when it was last synced, and of what was written since,
any set of 512-byte sectors, the others zero, at any length; the folder with some first part of the
changes of names since it was synced; the ledger's SQLite file as after any transaction since the
last durable one.  What a kill leaves is what the page cache has, which is all.

The ledger's file alone is a real one, for SQLite.
"""

from __future__ import annotations

import errno
import os
import sqlite3
from collections.abc import Callable, Generator
from contextlib import suppress
from pathlib import Path
from random import Random
from typing import Any

from attrs import Factory, define
from zope.interface import implementer

from msglog._checkpoint import Checkpoint
from msglog._disk import IDisk

from .world import Killed, World

__all__ = ["SimDisk"]

_SECTOR = 512
_LEDGER = ("log.ledger", "log.ledger-wal")


@define(eq=False)
class _File:
    """
    A file by its content, whatever it is called.

    @ivar synced: what is on the disk for sure.
    @ivar content: what the page cache has.
    @ivar dropped: a stretch of it that a sync failed on: the kernel takes it for written from then
        on, and the disk does not have it.
    @ivar locked: by which descriptor.
    """

    number: int
    synced: bytearray = Factory(bytearray)
    content: bytearray = Factory(bytearray)
    dropped: tuple[int, int] | None = None
    locked: int = 0


@implementer(IDisk)
class SimDisk:
    """
    @param folder: where the ledger's file is.
    @param changed: called with the number of a file of the log and what of it is durable now.
    @param took: called when a sync begins, which takes a while.
    @param died: called when the process ends in a call.
    @ivar report_writes: whether to take for durable what is written (C{--sync SECONDS}).
    @ivar room: how many more bytes may be written; L{None}: no end.
    @ivar errors: by the name of a call, the C{errno} that it fails with the next time.
    @ivar die_in: after how many more calls that change something the process ends; L{None}: it
        does not.
    @ivar faults: how often a call has failed.
    @ivar rows_read: how many clients the ledger had to be asked for.
    @ivar grave_faults: how often one failed after which nothing is certain.
    """

    def __init__(
        self,
        world: World,
        folder: Path,
        changed: Callable[[int, bytes], object],
        took: Callable[[], object],
        died: Callable[[], object],
    ) -> None:
        self._world = world
        self._rng: Random = world.rng("disk")
        self._folder = folder
        self._changed = changed
        self._took = took
        self._died = died
        self._numbers = 0
        self._fds = 0
        self._open: dict[int, _File] = {}
        self._names: dict[str, _File] = {}  # as the page cache has them
        self._synced_names: dict[str, _File] = {}
        self._name_changes: list[dict[str, _File]] = []  # after each change, all names
        self._ledgers: list[dict[str, bytes]] = [{}]  # what a power cut may leave of it
        self._frozen: dict[str, bytes] | None = None
        self.report_writes = False
        self.room: int | None = None
        self.errors: dict[str, int] = {}
        self.die_in: int | None = None
        self.faults = 0
        self.grave_faults = 0
        self.rows_read = 0

    # --- faults ----------------------------------------------------------------------------

    def _call(self, name: str) -> None:
        """A call that changes something is made: it may be the last, or fail."""
        if self._frozen is not None:
            raise Killed
        if self.die_in is not None:
            self.die_in -= 1
            if self.die_in < 0:
                self._world.note(f"killed in {name}")
                self.freeze()
                self._died()
                raise Killed
        if name in self.errors:
            self._fail(name, self.errors.pop(name))

    def _fail(self, name: str, code: int) -> None:
        self.faults += 1
        if code == errno.EIO or name in ("sync", "sync_folder", "cut"):
            self.grave_faults += 1
        self._world.note(f"disk: {name} fails")
        raise OSError(code, os.strerror(code))

    def heal(self) -> None:
        """No more faults."""
        self.room, self.die_in = None, None
        self.errors.clear()

    # --- files -----------------------------------------------------------------------------

    def open(self, path: Path) -> int:
        self._call("open")
        if path.name not in self._names:
            self._make(path.name)
        return self._descriptor(path.name)

    def open_to_read(self, path: Path) -> int:
        if path.name not in self._names:
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(path))
        return self._descriptor(path.name)

    def _make(self, name: str) -> None:
        self._numbers += 1
        self._names[name] = _File(self._numbers)
        self._names_changed()

    def _descriptor(self, name: str) -> int:
        self._fds += 1
        self._open[self._fds] = self._names[name]
        return self._fds

    def close(self, fd: int) -> None:
        file = self._open.pop(fd)
        if file.locked == fd:
            file.locked = 0

    def lock(self, fd: int) -> bool:
        file = self._open[fd]
        if file.locked:
            return False
        file.locked = fd
        return True

    def size(self, fd: int) -> int:
        return len(self._open[fd].content)

    def read(self, fd: int, count: int, offset: int) -> bytes:
        return bytes(self._open[fd].content[offset : offset + count])

    def write(self, fd: int, data: bytes | memoryview) -> int:
        self._call("write")
        if self.room is not None:
            if not self.room:
                self._fail("write", errno.ENOSPC)
            data = memoryview(data)[: self.room]
            self.room -= len(data)
        elif len(data) > 1 and self._rng.random() < 0.02:
            data = memoryview(data)[: self._rng.randrange(1, len(data))]
        file = self._open[fd]
        file.content += data
        if self.report_writes:
            self._changed(file.number, bytes(file.content))
        return len(data)

    def sync(self, fd: int) -> None:
        file = self._open[fd]
        self._took()
        try:
            self._call("sync")
        except OSError:
            if self._rng.random() < 0.5:
                file.dropped = len(file.synced), len(file.content)
            raise
        file.synced = bytearray(file.content)
        if file.dropped is not None:
            first, last = file.dropped
            file.synced[first:last] = bytes(last - first)
        self._changed(file.number, bytes(file.synced))

    def forget(self, fd: int, offset: int) -> None:
        self._call("forget")
        file = self._open[fd]
        if file.dropped is not None and file.dropped[0] >= offset:
            first, last = file.dropped
            file.content[first:last] = bytes(last - first)
            file.dropped = None

    def reserve(self, fd: int, offset: int, count: int) -> None:
        self._call("reserve")

    def release(self, fd: int) -> None:
        self._call("release")

    def cut(self, fd: int, size: int) -> None:
        self._call("cut")
        file = self._open[fd]
        if self.room is not None:
            self.room += len(file.content) - size
        del file.content[size:]
        if file.dropped is not None:
            first, last = file.dropped
            file.dropped = (first, min(last, size)) if first < size else None
        self._changed(
            file.number, bytes(file.content if self.report_writes else file.synced)[:size]
        )

    # --- names -----------------------------------------------------------------------------

    def names(self, path: Path, fd: int) -> bool:
        return self._names.get(path.name) is self._open[fd]

    def named(self, fd: int) -> bool:
        return any(file is self._open[fd] for file in self._names.values())

    def beside(self, path: Path) -> list[Path]:
        names = [name for name in self._names if name.startswith(path.name) and name != path.name]
        self._rng.shuffle(names)
        return [path.with_name(name) for name in names]

    def take_name(self, path: Path) -> None:
        self._call("take_name")
        if path.name in self._names:
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(path))
        self._make(path.name)

    def rename(self, old: Path, new: Path) -> None:
        self._call("rename")
        self._names[new.name] = self._names.pop(old.name)
        self._names_changed()

    def remove(self, path: Path) -> None:
        self._call("remove")
        del self._names[path.name]
        self._names_changed()

    def _names_changed(self) -> None:
        self._name_changes.append(dict(self._names))

    def sync_folder(self, path: Path) -> None:
        self._call("sync_folder")
        self._synced_names = dict(self._names)
        self._name_changes = []

    def space(self, folder: Path) -> tuple[int, int]:
        return (1 << 40 if self.room is None else self.room), 1 << 40

    def doubt(self, folder: Path) -> str | None:
        return None

    # --- the ledger's file -----------------------------------------------------------------

    def open_checkpoint(self, path: Path, window: int) -> Checkpoint:
        """The ledger's file, on this disk."""
        return _Checkpoint(path, window, self)

    def ledger_step(self) -> None:
        """SQLite is about to write."""
        self._call("ledger")
        if self.room is not None and self.room < 4096:
            self.faults += 1
            raise sqlite3.OperationalError("database or disk is full")

    def ledger_written(self, *, durable: bool) -> None:
        """SQLite has done a transaction."""
        state = self._read_ledger()
        self._ledgers = [state] if durable else [*self._ledgers, state]

    def _read_ledger(self) -> dict[str, bytes]:
        paths = [self._folder / name for name in _LEDGER]
        return {path.name: path.read_bytes() for path in paths if path.exists()}

    def _put_ledger(self, files: dict[str, bytes]) -> None:
        for name in _LEDGER:
            (self._folder / name).unlink(missing_ok=True)
        for name, content in files.items():
            (self._folder / name).write_bytes(content)

    def lose_ledger(self) -> None:
        """Somebody deletes the ledger while no server runs."""
        self._put_ledger({})
        self._ledgers = [{}]

    # --- the ends of processes and machines ------------------------------------------------

    def freeze(self) -> None:
        """The process has ended: nothing changes any more, whatever it still seems to do."""
        if self._frozen is None:
            self._frozen = self._read_ledger()

    def thaw(self) -> None:
        """Another process may begin."""
        assert self._frozen is not None
        for fd in list(self._open):
            self.close(fd)
        self._put_ledger(self._frozen)
        self._frozen = None
        self.die_in = None

    def power_cut(self) -> None:
        """The machine ends and comes back, with what its disk has; no process may be alive."""
        rng = self._rng
        count = rng.randrange(len(self._name_changes) + 1)
        names = self._name_changes[count - 1] if count else self._synced_names
        for file in names.values():
            file.content = self._after_power_cut(file)
            file.synced = bytearray(file.content)
            file.dropped = None
        self._names, self._synced_names, self._name_changes = dict(names), dict(names), []
        ledger = rng.choice(self._ledgers)
        self._ledgers = [ledger]
        self._put_ledger(ledger)

    def _after_power_cut(self, file: _File) -> bytearray:
        rng, synced, content = self._rng, file.synced, file.content
        if len(content) < len(synced):
            return rng.choice([synced, content])
        at = len(synced)
        state = synced + content[at:]
        share = rng.choice([0.0, 0.2, 0.5, 0.8, 1.0])
        for begin in range(at - at % _SECTOR, len(content), _SECTOR):
            if rng.random() >= share:
                first, last = max(begin, at), min(begin + _SECTOR, len(content))
                state[first:last] = bytes(last - first)
        length = rng.choice([len(content), at, rng.randrange(at, len(content) + 1)])
        return state[:length]

    def log_files(self) -> list[tuple[int, bytes]]:
        """Every file of the log by its number, and what of it is durable."""
        return [
            (file.number, bytes(file.synced))
            for name, file in self._names.items()
            if not name.startswith("log.torn")
        ]

    @property
    def files(self) -> int:
        """How many files there ever were."""
        return self._numbers

    @property
    def open_files(self) -> int:
        """How many files the process has open."""
        return len(self._open)

    def move_log_away(self, name: str) -> None:
        """Somebody else rotates the log."""
        if "log" in self._names:
            self._names[name] = self._names.pop("log")
            self._names_changed()


class _Checkpoint(Checkpoint):
    def __init__(self, path: Path, window: int, disk: SimDisk) -> None:
        self._disk = disk
        super().__init__(path, window)

    def load(self, client: bytes) -> Any:
        state = super().load(client)
        self._disk.rows_read += state is not None
        return state

    def write(
        self, dirty: Any, coverage: Any, written: Any, *, durable: bool
    ) -> Generator[None, None, None]:
        steps = super().write(dirty, coverage, written, durable=durable)
        try:
            self._disk.ledger_step()
            for _ in steps:
                yield
                self._disk.ledger_step()
        finally:
            with suppress(sqlite3.ProgrammingError):  # closed: this life was killed
                steps.close()
        self._disk.ledger_written(durable=durable)
