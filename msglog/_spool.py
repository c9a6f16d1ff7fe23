"""
A client's spool: its messages in an SQLite file, from when they are handed over to their receipt.

So a client that is killed, or whose server is away for a day, goes on where it was: the file has
the client id, the messages in order, and the sequence of the first of them.  What was removed too
late (after a kill, or a power cut) is sent again, and the server, which compares, takes nothing
twice.

All of it is done in I{steps}, each one transaction: what was handed over meanwhile is added, what
was acknowledged meanwhile is removed, and the next messages to send are read.  A step waits for the
disk only if it adds something.
"""

from __future__ import annotations

import ctypes
import os
import sqlite3
import weakref
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from uuid import UUID

from attrs import Factory, define

from ._errors import SpoolError

__all__ = ["Marks", "Spool", "Step"]

# What to remember, by key: a number, or None to forget it.
Marks = Mapping[str, int | None]

# What SQLite says of a damaged schema quotes it, and then is no text.
_FAILURES = (sqlite3.Error, UnicodeDecodeError)

_VERSION = 1

# Bytes of bodies that one step reads: a window of long lines, and not the memory of the program.
_READ_BYTES = 4 * 1024 * 1024

# Those that are open, for L{_leave_to_parent}.
_open_spools: weakref.WeakSet[Spool] = weakref.WeakSet()

_SCHEMA = """
CREATE TABLE IF NOT EXISTS meta (key TEXT PRIMARY KEY, value) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS messages (place INTEGER PRIMARY KEY AUTOINCREMENT, body BLOB NOT NULL);
CREATE TABLE IF NOT EXISTS marks (key TEXT PRIMARY KEY, value INTEGER NOT NULL) WITHOUT ROWID;
"""


@define(slots=True, eq=False)
class Step:
    """
    One transaction.

    @ivar add: bodies to add.
    @ivar marks: what to remember with them, by key; L{None} to forget it.
    @ivar settled: how many sequences were used up by messages that are durable now.
    @ivar through: the place of the last message that needs no more keeping.
    @ivar durable: whether to wait for the disk even if nothing is added.
    @ivar after: the place after which to read.
    @ivar read: how many messages to read.
    @ivar added: set when it is done: the places of what was added.
    @ivar removed: set when it is done: whether what is settled is gone.
    @ivar rows: set when it is done: what was read, (place, body).
    @ivar error: set if something of it could not be done.
    """

    add: list[bytes] = Factory(list)
    marks: dict[str, int | None] = Factory(dict)
    settled: int = 0
    through: int = 0
    durable: bool = False
    after: int = 0
    read: int = 0
    added: range = range(0)
    removed: bool = False
    rows: list[tuple[int, bytes]] = Factory(list)
    error: SpoolError | None = None


def _leave_to_parent() -> None:
    """
    In a forked child: never close a spool of the parent's.

    A connection that is closed, if only by the garbage collector or the end of the child, takes
    SQLite's write-ahead log away from under the parent, with every message in it: SQLite knows
    nothing of forks.  One reference that nobody gives back keeps it open until the child is gone.
    """
    for spool in _open_spools:
        ctypes.pythonapi.Py_IncRef(ctypes.py_object(spool._db))


os.register_at_fork(after_in_child=_leave_to_parent)


class Spool:
    """
    @param path: the file, made if there is none, readable by its owner alone.
    @param make_client: makes the client id of a new spool.

    @ivar client: the client id.
    @ivar first: the sequence of the first message.
    @ivar count: how many messages it holds.
    @ivar size: how many bytes their bodies have.
    @ivar last: the place of the last message that was ever added.
    @ivar marks: what was remembered when it was opened, by key.
    @raise SpoolError: it cannot be used.
    """

    def __init__(self, path: Path | str, make_client: Callable[[], UUID]) -> None:
        self.path = Path(path)
        try:
            os.close(os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600))
            # One thread at a time uses it, which need not be the one that opened it.
            self._db = sqlite3.connect(
                self.path, isolation_level=None, check_same_thread=False, timeout=1.0
            )
        except (OSError, *_FAILURES) as e:
            raise SpoolError(f"cannot use the spool {self.path}: {e}") from e
        try:
            self._open(make_client)
        except _FAILURES as e:
            self._db.close()
            if "locked" in str(e):
                raise SpoolError(f"the spool {self.path} is in use by another process") from e
            raise SpoolError(
                f"cannot use the spool {self.path}: {e}. If it is damaged, keep it for what can be "
                f"read of it, and begin with another"
            ) from e
        except BaseException:
            self._db.close()
            raise
        _open_spools.add(self)

    def _open(self, make_client: Callable[[], UUID]) -> None:
        db = self._db
        # Two processes with one client id and one sequence would be each other's conflict.
        db.execute("PRAGMA locking_mode=EXCLUSIVE")
        db.execute("PRAGMA journal_mode=WAL")
        db.executescript(_SCHEMA)
        db.execute("BEGIN EXCLUSIVE")
        version = self._meta("version")
        if version is None:
            values = {"version": _VERSION, "client": make_client().bytes, "first": 1}
            db.executemany("INSERT INTO meta VALUES (?, ?)", values.items())
        db.execute("COMMIT")
        if version not in (None, _VERSION):
            raise SpoolError(f"the spool {self.path} is of version {version}, not {_VERSION}")
        client, first = self._meta("client"), self._meta("first")
        if not isinstance(client, bytes) or len(client) != 16 or not isinstance(first, int):
            raise sqlite3.DatabaseError("it does not say whose it is")
        self.client = UUID(bytes=client)
        self.first = first
        self.count, self.size, last = db.execute(
            "SELECT count(*), ifnull(sum(length(body)), 0), max(place) FROM messages"
        ).fetchone()
        self.marks: dict[str, int] = dict(db.execute("SELECT key, value FROM marks"))
        sequence = db.execute("SELECT seq FROM sqlite_sequence WHERE name = 'messages'").fetchone()
        self.last: int = last or (sequence[0] if sequence else 0)

    def _meta(self, key: str) -> Any:
        row = self._db.execute("SELECT value FROM meta WHERE key = ?", (key,)).fetchone()
        return row and row[0]

    def renew(self, client: UUID) -> None:
        """
        Go on under another client id, from sequence 1, because the old one cannot be used any
        more.  What was in flight under the old one may be logged under both.

        @raise SpoolError: it could not be written.
        """
        values = {"client": client.bytes, "first": 1}
        try:
            with self._transaction():
                self._db.executemany("REPLACE INTO meta VALUES (?, ?)", values.items())
        except _FAILURES as e:
            raise SpoolError(f"cannot write the spool {self.path}: {e}") from e
        self.client, self.first = client, 1

    def close(self) -> None:
        """Close the file, which makes one of it again."""
        _open_spools.discard(self)
        self._db.close()

    def do(self, step: Step) -> Step:
        """Do a step, and return it with what came of it; all of the writing is done or none."""
        try:
            if step.add or step.through or step.marks:
                self._write(step)
        except _FAILURES as e:
            step.error = SpoolError(f"cannot write the spool {self.path}: {e}")
        try:
            self._read(step)
        except _FAILURES as e:
            step.error = SpoolError(f"cannot read the spool {self.path}: {e}")
        return step

    @contextmanager
    def _transaction(self) -> Iterator[None]:
        self._db.execute("BEGIN IMMEDIATE")
        try:
            yield
            self._db.execute("COMMIT")
        except BaseException:
            if self._db.in_transaction:
                self._db.execute("ROLLBACK")
            raise

    def _write(self, step: Step) -> None:
        db = self._db
        # What was added must not be lost; what was removed in vain is only sent again.
        durable = step.add or step.marks or step.durable
        db.execute(f"PRAGMA synchronous={'FULL' if durable else 'NORMAL'}")
        with self._transaction():
            removed = removed_size = 0
            if step.through:
                removed, removed_size = db.execute(
                    "SELECT count(*), ifnull(sum(length(body)), 0) FROM messages WHERE place <= ?",
                    (step.through,),
                ).fetchone()
                db.execute("DELETE FROM messages WHERE place <= ?", (step.through,))
                db.execute("UPDATE meta SET value = value + ? WHERE key = 'first'", (step.settled,))
            db.executemany("INSERT INTO messages (body) VALUES (?)", ((b,) for b in step.add))
            for key, value in step.marks.items():
                if value is None:
                    db.execute("DELETE FROM marks WHERE key = ?", (key,))
                else:
                    db.execute("REPLACE INTO marks VALUES (?, ?)", (key, value))
        step.removed = True
        step.added = range(self.last + 1, self.last + 1 + len(step.add))
        self.last += len(step.add)
        self.first += step.settled
        self.count += len(step.add) - removed
        self.size += sum(map(len, step.add)) - removed_size

    def _read(self, step: Step) -> None:
        if not step.read:
            return
        size = 0
        rows = self._db.execute(
            "SELECT place, body FROM messages WHERE place > ? ORDER BY place LIMIT ?",
            (step.after, step.read),
        )
        for place, body in rows:
            if not isinstance(body, bytes):
                raise sqlite3.DatabaseError(f"the message at place {place} is damaged")
            step.rows.append((place, body))
            size += len(body)
            if size >= _READ_BYTES:
                break
        rows.close()
