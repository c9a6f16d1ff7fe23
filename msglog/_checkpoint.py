"""
The checkpoint: the ledger's memory on disk, C{<log>.ledger}, an SQLite database beside the log.

It bounds how much log a start has to read, and how much memory clients who are away cost.  It is
brought up to date now and then, without a wait for the disk on the way to an ACK, and may be
behind the log: a start reads the log from the offset that it covers.  Lost, it is made again from
the log.

A client's row has its last sequence and the checksums since the last multiple of 64; those before
are kept 64 to a row, each written once.  So a checkpoint costs 4 bytes a message and one row of at
most 256 bytes of checksums a client, however long the window is.

Nothing in it is believed on SQLite's word, whose pages have no checksums.  Each row is sealed with
the CRC-32C of all that it says, its key included.  A client's row says how many checksums there
are, so none of them can be missing unseen.  And that a client has no row is believed only if the
index of names does not have it either, which is in other pages.  A row that is not as it was
written is L{RowDamaged}: it costs its client the service, and nobody else.

After a sync that failed nothing here is certain, as with the log: the kernel may have forgotten
what it could not write, and the next sync may say that all is well.  So SQLite is left to sync
nothing where its error would be lost (its automatic checkpoints ignore them, and closing would be
another attempt); a failed sync is L{StoreFailed}, after which nothing more is written; and after
any end but a clean one a start has what there is read from the disk, not from memory.
"""

from __future__ import annotations

import os
import sqlite3
import struct
import sys
from array import array
from collections.abc import Generator
from contextlib import suppress
from hashlib import sha256
from itertools import islice
from pathlib import Path
from struct import Struct
from typing import Any

from attrs import asdict, frozen
from google_crc32c import value as crc32c
from zope.interface import Attribute, Interface, implementer

from ._batch import MAX_SEQUENCE
from ._disk import Disk, see_file
from ._errors import StoreFailed
from ._ledger import ClientState, RowDamaged

__all__ = ["Checkpoint", "Coverage", "ICheckpoint", "identify"]

_VERSION = 3
_BLOCK = 64
# Clients written between two commits while a checkpoint is being made (1.4 ms), so that no
# commit waits for the whole of one.
_SLICE = 256

_IS_LITTLE = sys.byteorder == "little"

_PAGE_BYTES = 4096
# How much SQLite's write-ahead log grows before it is folded into the database: its own value.
_FOLD_BYTES = 1000 * _PAGE_BYTES
# Pages that SQLite holds while it writes.  With its own 2 MB a checkpoint of many clients whose ids
# are in no order takes a half longer.
_CACHE_KIB = 8192

# Each statement is what C{sqlite_master} must have word for word: a damaged one is no other layout.
_SCHEMA = {
    "meta": "CREATE TABLE meta (key TEXT PRIMARY KEY, value) WITHOUT ROWID",
    "clients": (
        "CREATE TABLE clients (client BLOB PRIMARY KEY, last INTEGER NOT NULL, "
        "held INTEGER NOT NULL, recent BLOB NOT NULL, crc INTEGER NOT NULL) WITHOUT ROWID"
    ),
    "names": "CREATE INDEX names ON clients (client)",
    "blocks": (
        "CREATE TABLE blocks (client BLOB NOT NULL, block INTEGER NOT NULL, "
        "checksums BLOB NOT NULL, crc INTEGER NOT NULL, PRIMARY KEY (client, block)) WITHOUT ROWID"
    ),
}

# What is sealed: client, last, held, and then C{recent}; client, block, and then C{checksums}.
_CLIENT = Struct(">16sQQ")
_CHECKSUMS = Struct(">16sQ")

# This one had no seals and no index; what it has is taken as it is.
_OLD_VERSION = 2
_OLD_TABLES = {"meta", "clients", "blocks"}
_TAKE_OVER = """
ALTER TABLE clients RENAME TO old_clients;
ALTER TABLE blocks RENAME TO old_blocks;
{clients};
{blocks};
INSERT INTO blocks SELECT client, block, checksums, seal_block(client, block, checksums)
    FROM old_blocks ORDER BY client, block;
INSERT INTO clients SELECT client, last, held, recent, seal_client(client, last, held, recent)
    FROM (SELECT c.client, last, recent, (length(recent) + coalesce(sum(length(checksums)), 0)) / 4
            AS held FROM old_clients c LEFT JOIN old_blocks b ON b.client = c.client
            GROUP BY c.client ORDER BY c.client);
{names};
DROP TABLE old_clients;
DROP TABLE old_blocks;
"""


def identify(first_line: bytes) -> bytes:
    """
    Which file it is that begins with a line: 32 bytes, or none if there is no line.

    A line is never changed and names its commit, so it names the file, wherever that is moved to.
    """
    return sha256(first_line).digest() if first_line else b""


@frozen(slots=True)
class Coverage:
    """
    How much of which log a checkpoint covers.

    @ivar file: which file the log is, see L{identify}; empty if the log was empty.
    @ivar offset: the log's bytes that are covered.
    @ivar time: the time of the last commit that is covered, microseconds since 1970; 0 if none.
    @ivar complete: whether the server was stopped after this, so that the log has nothing more.
    @ivar lazy: whether the log was written with C{--sync SECONDS}, so that more than one commit
        may be torn after a power cut.
    """

    file: bytes
    offset: int
    time: int
    complete: bool
    lazy: bool


class ICheckpoint(Interface):
    """All that the writer and its start do with the ledger's file."""

    path: Path = Attribute("""Where it is, to name it in errors.""")

    def gone() -> bool:
        """
        Whether its name leads to it no more: somebody deleted it, moved it away, or put another
        file there, which no later start may take for this one.
        """

    def coverage() -> Coverage | None:
        """What the checkpoint covers; L{None} if it never covered anything."""

    def load(client: bytes) -> ClientState | None:
        """
        A client's state; L{None} if the checkpoint does not know it.

        @raise RowDamaged: what it has of this client is not what was written.
        """

    def write(
        dirty: dict[bytes, ClientState],
        coverage: Coverage | None,
        written: dict[bytes, tuple[ClientState, int]],
        *,
        durable: bool,
    ) -> Generator[None, None, None]:
        """
        Bring the checkpoint up to date, in steps between which the log may go on.

        Nothing of it is seen by a later start before the last step is done.

        @param dirty: every client that changed since the last checkpoint.  Clients may go on
            while this is written: their rows are then ahead of the coverage, never behind.
        @param coverage: what the log was when this began; L{None} to leave it as it is, which
            only frees memory.
        @param written: filled with what was written of each client.
        @param durable: whether the last step waits until all is on the disk.
        @raise sqlite3.Error: it could not be written; the last complete one still stands.
        @raise StoreFailed: what is on the disk is unknown from here on; only L{abandon} it.
        """

    def close() -> None:
        """Let the file go, after a last write that was complete and durable."""

    def abandon() -> None:
        """Let the file go as it is: nothing more is written."""


@implementer(ICheckpoint)
class Checkpoint:
    """
    @raise sqlite3.Error: the file is no database, or is damaged, or locked by another process.
    @raise OSError: it cannot be opened, or is no file, be it by a symbolic link.
    """

    def __init__(self, path: Path, window: int) -> None:
        self.path = path
        self._wal = path.with_name(path.name + "-wal")
        self._window = window
        # Nobody has a reason for a link here, but to have a server write where the link leads.
        see_file(path, follow=False)
        # SQLite would make it readable by all; it has client ids.
        os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o640))
        self._disowned = False
        if self._wal.exists():  # the last end was no clean one
            for file in (self._wal, path):
                _read_anew(file)
        # The writer is the only user, and in one thread at a time, but not always in the same.
        self._db = sqlite3.connect(path, isolation_level=None, check_same_thread=False, timeout=1.0)
        try:
            self._open()
            self._wal_file = _state_of(self._wal)[:2]
            self._note_state()
        except BaseException:
            self.abandon()
            raise

    def _open(self) -> None:
        db = self._db
        db.text_factory = bytes  # what is damaged may be no text
        # Locked for as long as it is open: it belongs to one server.
        db.execute("PRAGMA locking_mode=EXCLUSIVE")
        db.execute(f"PRAGMA page_size={_PAGE_BYTES}")
        db.execute("PRAGMA journal_mode=WAL")
        # A power cut may bring back an older checkpoint, which only means to read more log;
        # where that is not enough, write() is told to be durable.
        db.execute("PRAGMA synchronous=NORMAL")
        db.execute("PRAGMA wal_autocheckpoint=0")
        db.execute(f"PRAGMA cache_size=-{_CACHE_KIB}")
        schema = db.execute("SELECT name, sql FROM sqlite_master")
        found = {_text(name): _text(sql) for name, sql in schema}
        if not found:
            if self.path.stat().st_size > _PAGE_BYTES:
                raise sqlite3.DatabaseError("its tables are gone")
            self._begin()
            return
        if found.get("meta") != _SCHEMA["meta"]:
            raise sqlite3.DatabaseError("its tables are not as they were made")
        version = self._meta().get("version")
        if version == _OLD_VERSION and set(found) == _OLD_TABLES:
            self._take_over()
        elif version != _VERSION:
            raise sqlite3.DatabaseError(f"its version is {version}, not {_VERSION}")
        elif found != _SCHEMA:
            raise sqlite3.DatabaseError("its tables are not as they were made")

    def _begin(self) -> None:
        """Make the tables, all or none."""
        db = self._db
        db.execute("BEGIN IMMEDIATE")
        for statement in _SCHEMA.values():
            db.execute(statement)
        self._write_meta(None)
        db.execute("COMMIT")
        # From here on a file without tables is one that has lost them.
        self._fold()

    def _take_over(self) -> None:
        """Bring a ledger of the version before to this one, all or nothing (2 µs a client)."""
        db = self._db
        coverage = _old_coverage(self._meta())
        db.create_function("seal_client", 4, _seal_client, deterministic=True)
        db.create_function("seal_block", 3, _seal_block, deterministic=True)
        db.execute("BEGIN IMMEDIATE")
        for statement in _TAKE_OVER.format(**_SCHEMA).split(";"):
            db.execute(statement)
        db.execute("DELETE FROM meta")
        self._write_meta(coverage)
        db.execute("COMMIT")
        self._fold()

    def close(self) -> None:
        """Close the database, which makes one file of it again, unless that is another's."""
        if self.gone() and self._disowned:
            self.abandon()
        else:
            self._db.close()

    def abandon(self) -> None:
        """See L{ICheckpoint.abandon}."""
        # SQLite would bring its write-ahead log into the database when it closes that.  Python 3.11
        # has no other way to tell it not to; when it is interrupted, it gives that up.
        with suppress(sqlite3.ProgrammingError):  # it is closed
            self._db.interrupt()
        self._db.close()

    def _fold(self) -> None:
        """
        Bring the write-ahead log into the database, so that it begins anew.

        @raise StoreFailed: a sync failed.
        """
        try:
            self._db.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
        except sqlite3.Error as e:
            self._see(e)
            # No room: all is in the write-ahead log still, and the next write tries again.

    def _see(self, error: sqlite3.Error) -> None:
        """
        See whether an error leaves things as they were.

        @raise StoreFailed: it does not.
        """
        name = getattr(error, "sqlite_errorname", "")
        # What could not be written is not there, and is written again from its beginning.
        if name.startswith("SQLITE_IOERR") and name != "SQLITE_IOERR_WRITE":
            raise StoreFailed(f"the disk failed under {self.path}: {error} ({name})") from error

    def _meta(self) -> dict[str, Any]:
        return {_text(key): value for key, value in self._db.execute("SELECT key, value FROM meta")}

    def _write_meta(self, coverage: Coverage | None) -> None:
        values: dict[str, Any] = {"version": _VERSION}
        if coverage is not None:
            values |= asdict(coverage)
            values |= {key: int(values[key]) for key in ("complete", "lazy")}
        values["crc"] = _seal_meta(values)
        self._db.executemany("REPLACE INTO meta VALUES (?, ?)", values.items())

    def gone(self) -> bool:
        """See L{ICheckpoint.gone}."""
        try:
            if _state_of(self.path) == self._state:
                return self._disowned
        except FileNotFoundError:
            return True
        except OSError:
            return self._disowned  # nobody knows; the log is beside it, and what it meets is said
        self._disown()
        return True

    def _note_state(self) -> None:
        """After each time that the file itself is written to, and not its write-ahead log."""
        self._state = _state_of(self.path)

    def _disown(self) -> None:
        """
        Have nothing more to do with what is under the name now.

        SQLite would bring our write-ahead log into it, at the next start after a kill, or when it
        closes this one.  If it is an older copy, clients' rows would be older than what is noted
        of the log, and what they send again would be logged again.
        """
        # For good: if ours is moved back, it has no write-ahead log any more.
        self._disowned = True
        with suppress(OSError):
            if _state_of(self._wal)[:2] == self._wal_file:
                self._wal.unlink()
                Disk().sync_folder(self.path.parent)

    def coverage(self) -> Coverage | None:
        """See L{ICheckpoint.coverage}."""
        values = self._meta()
        if values.pop("crc", None) != _seal_meta(values) or values.pop("version") != _VERSION:
            raise sqlite3.DatabaseError("what it covers of the log is damaged")
        if not values:
            return None
        values.update((key, bool(values[key])) for key in ("complete", "lazy"))
        return Coverage(**values)

    def load(self, client: bytes) -> ClientState | None:
        """See L{ICheckpoint.load} (8 µs)."""
        try:
            return self._load(client)
        except sqlite3.OperationalError as e:  # the surroundings, not its content
            self._see(e)
            raise
        except (sqlite3.DatabaseError, UnicodeDecodeError) as e:
            # What SQLite says of a damaged file may quote it.
            said = str(e) if isinstance(e, sqlite3.Error) else "it is malformed"
            raise RowDamaged(client, said) from e

    def _load(self, client: bytes) -> ClientState | None:
        row = self._db.execute(
            "SELECT last, held, recent, crc FROM clients WHERE client = ?", (client,)
        ).fetchone()
        if row is None:
            named = self._db.execute(
                "SELECT 1 FROM clients INDEXED BY names WHERE client = ?", (client,)
            ).fetchone()
            if named is not None:
                raise RowDamaged(client, "its row is gone")
            return None
        last, held, recent, crc = row
        if crc is None or crc != _seal_client(client, last, held, recent):
            raise RowDamaged(client, "its row has changed")
        first, full = _first_block(last, self._window), last // _BLOCK
        checksums = array("I")
        if full > first and held > last - _BLOCK * full:
            checksums.frombytes(self._load_blocks(client, first, full))
        checksums.frombytes(recent)
        if len(checksums) < min(held, last - _BLOCK * first):
            raise RowDamaged(client, "checksums of it are gone")
        return ClientState(last, _little_endian(checksums), last)

    def _load_blocks(self, client: bytes, first: int, full: int) -> bytes:
        """The checksums from one block, or the first that there is, up to before another."""
        blocks = []
        for block, checksums, crc in self._db.execute(
            "SELECT block, checksums, crc FROM blocks WHERE client = ? AND block >= ? "
            "ORDER BY block DESC",
            (client, first),
        ):
            full -= 1
            if block != full or crc is None or crc != _seal_block(client, block, checksums):
                raise RowDamaged(client, "its checksums have changed")
            blocks.append(checksums)
        return b"".join(reversed(blocks))

    def clients(self) -> int:
        """How many clients the checkpoint knows."""
        return int(self._db.execute("SELECT count(*) FROM clients").fetchone()[0])

    def write(
        self,
        dirty: dict[bytes, ClientState],
        coverage: Coverage | None,
        written: dict[bytes, tuple[ClientState, int]],
        *,
        durable: bool,
    ) -> Generator[None, None, None]:
        """See L{ICheckpoint.write}."""
        db = self._db
        db.execute(f"PRAGMA synchronous={'FULL' if durable else 'NORMAL'}")
        db.execute("BEGIN IMMEDIATE")
        try:
            states = iter(dirty.items())
            while part := list(islice(states, _SLICE)):
                self._write_clients(part)
                written.update((client, (state, state.last)) for client, state in part)
                yield
            if coverage is not None:
                self._write_meta(coverage)
            db.execute("COMMIT")
        except sqlite3.Error as e:
            self._see(e)
            self._roll_back()
            raise
        except BaseException:
            self._roll_back()
            raise
        # If somebody deleted it, SQLite goes on with what it has open.  One that is moved aside is
        # left as it is, so that it can be told when it is back.
        with suppress(FileNotFoundError):
            if self._wal.stat().st_size > _FOLD_BYTES and not self.gone():
                self._fold()
                self._note_state()

    def _roll_back(self) -> None:
        if self._db.in_transaction:
            self._db.execute("ROLLBACK")

    def _write_clients(self, states: list[tuple[bytes, ClientState]]) -> None:
        window, pack = self._window, _CLIENT.pack
        rows, blocks, old = [], [], []
        for client, state in states:
            last, checksums = state.last, state.checksums
            recent = raw = (checksums if _IS_LITTLE else _little_endian(checksums)).tobytes()
            held = len(checksums)
            if last >= _BLOCK:
                full, first = last // _BLOCK, _first_block(last, window)
                # The offset in bytes of a sequence's checksum is 4 * (sequence - 1) - start.
                start = 4 * (last - held)
                recent = raw[max(4 * _BLOCK * full - start, 0) :]
                held = min(held, last - _BLOCK * first)
                saved = state.saved // _BLOCK
                if full > saved:
                    old.append((client, first))
                for block in range(max(saved, first), full):
                    begin, end = 4 * _BLOCK * block - start, 4 * _BLOCK * (block + 1) - start
                    if end > 0:
                        # One that begins before what is known is kept without that part.
                        part = raw[max(begin, 0) : end]
                        blocks.append((client, block, part, _seal_block(client, block, part)))
            rows.append((client, last, held, recent, crc32c(pack(client, last, held) + recent)))
        # (REPLACE would write the index of names again.)
        self._db.executemany(
            "INSERT INTO clients VALUES (?, ?, ?, ?, ?) ON CONFLICT (client) DO UPDATE SET "
            "last = excluded.last, held = excluded.held, recent = excluded.recent, "
            "crc = excluded.crc",
            rows,
        )
        self._db.executemany("REPLACE INTO blocks VALUES (?, ?, ?, ?)", blocks)
        self._db.executemany("DELETE FROM blocks WHERE client = ? AND block < ?", old)


def _state_of(path: Path) -> tuple[int, int, int, int]:
    """Which file it is, and what changes when it is written to."""
    found = os.stat(path)
    return found.st_dev, found.st_ino, found.st_mtime_ns, found.st_size


def _read_anew(path: Path) -> None:
    """
    Have a file read from the disk: what a life that did not end well has written may be in memory
    without being there.

    @raise OSError: it cannot be synced.
    """
    disk = Disk()
    fd = disk.open_to_read(path)
    try:
        disk.sync(fd)
        disk.forget(fd, 0)
    except OSError as e:
        raise OSError(e.errno, e.strerror, str(path)) from e
    finally:
        disk.close(fd)


def _text(value: Any) -> str:
    return value.decode("latin-1") if isinstance(value, bytes) else ""


def _seal_meta(values: dict[str, Any]) -> int:
    return int(crc32c(repr(sorted(values.items())).encode()))


def _seal_client(client: Any, last: Any, held: Any, recent: Any) -> int | None:
    """The seal of a client's row; L{None} if that cannot be one."""
    try:
        if len(recent) % 4 or not len(recent) // 4 <= held <= last <= MAX_SEQUENCE:
            return None
        return int(crc32c(_CLIENT.pack(client, last, held) + recent))
    except (TypeError, struct.error):
        return None


def _seal_block(client: Any, block: Any, checksums: Any) -> int | None:
    """The seal of a row of checksums; L{None} if that cannot be one."""
    try:
        return int(crc32c(_CHECKSUMS.pack(client, block) + checksums)) if checksums else None
    except (TypeError, struct.error):
        return None


def _old_coverage(values: dict[str, Any]) -> Coverage | None:
    """What a ledger of version 2 covers."""
    file, offset, time = (values.get(key) for key in ("file", "offset", "time"))
    if (
        not isinstance(file, bytes)
        or not isinstance(offset, int)
        or not isinstance(time, int)
        or min(offset, time) < 0
    ):
        raise sqlite3.DatabaseError("what it covers of the log cannot be read")
    return Coverage(file, offset, time, bool(values.get("complete")), bool(values.get("lazy")))


def _first_block(last: int, window: int) -> int:
    """The first block that has something of the window."""
    return max(last - window, 0) // _BLOCK


def _little_endian(checksums: array[int]) -> array[int]:
    if not _IS_LITTLE:
        checksums = checksums[:]
        checksums.byteswap()
    return checksums
