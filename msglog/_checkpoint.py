"""
The checkpoint: the ledger's memory on disk, C{<log>.ledger}, an SQLite database beside the log.

It bounds how much log a start has to read, and how much memory clients who are away cost.  It is
brought up to date now and then, without a wait for the disk on the way to an ACK, and may be
behind the log: a start reads the log from the offset that it covers.  Lost, it is made again from
the log.

A client's row has its last sequence and the checksums since the last multiple of 64; those before
are kept 64 to a row, each written once.  So a checkpoint costs 4 bytes a message and one row of at
most 256 bytes of checksums a client, however long the window is.
"""

from __future__ import annotations

import os
import sqlite3
import sys
from array import array
from collections.abc import Generator
from hashlib import sha256
from itertools import islice
from pathlib import Path
from typing import Any

from attrs import asdict, frozen
from zope.interface import Attribute, Interface, implementer

from ._batch import MAX_SEQUENCE
from ._disk import see_file
from ._ledger import ClientState

__all__ = ["Checkpoint", "Coverage", "ICheckpoint", "identify"]

_VERSION = 2
_BLOCK = 64
# Clients written between two commits while a checkpoint is being made (1.4 ms), so that no
# commit waits for the whole of one.
_SLICE = 256

_SCHEMA = """
CREATE TABLE IF NOT EXISTS meta (key TEXT PRIMARY KEY, value) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS clients (
    client BLOB PRIMARY KEY, last INTEGER NOT NULL, recent BLOB NOT NULL
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS blocks (
    client BLOB NOT NULL, block INTEGER NOT NULL, checksums BLOB NOT NULL,
    PRIMARY KEY (client, block)
) WITHOUT ROWID;
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

    def coverage() -> Coverage | None:
        """What the checkpoint covers; L{None} if it never covered anything."""

    def load(client: bytes) -> ClientState | None:
        """A client's state; L{None} if the checkpoint does not know it."""

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
        """

    def close() -> None:
        """Let the file go."""


@implementer(ICheckpoint)
class Checkpoint:
    """
    @raise sqlite3.Error: the file is no database, or is damaged, or locked by another process.
    @raise OSError: it cannot be opened, or is no file, be it by a symbolic link.
    """

    def __init__(self, path: Path, window: int) -> None:
        self.path = path
        self._window = window
        # Nobody has a reason for a link here, but to have a server write where the link leads.
        see_file(path, follow=False)
        # SQLite would make it readable by all; it has client ids.
        os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o640))
        # The writer's thread is the only user after the start, which is not in that thread.
        self._db = sqlite3.connect(path, isolation_level=None, check_same_thread=False, timeout=1.0)
        try:
            # Locked for as long as it is open: it belongs to one server.
            self._db.execute("PRAGMA locking_mode=EXCLUSIVE")
            self._db.execute("PRAGMA journal_mode=WAL")
            # A power cut may bring back an older checkpoint, which only means to read more log;
            # where that is not enough, write() is told to be durable.
            self._db.execute("PRAGMA synchronous=NORMAL")
            self._db.executescript(_SCHEMA)
            version = self._meta("version")
            if version not in (None, _VERSION):
                raise sqlite3.DatabaseError(f"its version is {version}, not {_VERSION}")
        except BaseException:
            self._db.close()
            raise

    def close(self) -> None:
        """Close the database, which makes one file of it again."""
        self._db.close()

    def _meta(self, key: str) -> Any:
        row = self._db.execute("SELECT value FROM meta WHERE key = ?", (key,)).fetchone()
        return row and row[0]

    def coverage(self) -> Coverage | None:
        """See L{ICheckpoint.coverage}."""
        if self._meta("version") is None:
            return None
        file, offset, time = (self._meta(key) for key in ("file", "offset", "time"))
        # SQLite's pages have no checksums.
        if (
            [type(value) for value in (file, offset, time)] != [bytes, int, int]
            or offset < 0
            or time < 0
        ):
            raise sqlite3.DatabaseError("what it covers of the log cannot be read")
        return Coverage(file, offset, time, bool(self._meta("complete")), bool(self._meta("lazy")))

    def load(self, client: bytes) -> ClientState | None:
        """See L{ICheckpoint.load} (8 µs)."""
        row = self._db.execute(
            "SELECT last, recent FROM clients WHERE client = ?", (client,)
        ).fetchone()
        if row is None:
            return None
        last, recent = row
        checksums = array("I")
        try:
            blocks = self._db.execute(
                "SELECT checksums FROM blocks WHERE client = ? AND block >= ? ORDER BY block",
                (client, _first_block(last, self._window)),
            )
            checksums.frombytes(b"".join([block for (block,) in blocks] + [recent]))
        except (TypeError, ValueError):
            last = -1
        if type(last) is not int or not len(checksums) <= last <= MAX_SEQUENCE:
            raise sqlite3.DatabaseError(f"what it says of client {client.hex()} is damaged")
        return ClientState(last, _little_endian(checksums), last)

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
                values = {"version": _VERSION, **asdict(coverage)}
                db.executemany("REPLACE INTO meta VALUES (?, ?)", values.items())
            db.execute("COMMIT")
        except BaseException:
            if db.in_transaction:
                db.execute("ROLLBACK")
            raise

    def _write_clients(self, states: list[tuple[bytes, ClientState]]) -> None:
        rows, blocks, old = [], [], []
        for client, state in states:
            checksums = _little_endian(state.checksums)
            # The offset in bytes of a sequence's checksum is 4 * (sequence - 1) - start.
            start = 4 * (state.last - len(checksums))
            raw = checksums.tobytes()
            full = state.last // _BLOCK
            rows.append((client, state.last, raw[max(4 * _BLOCK * full - start, 0) :]))
            first = _first_block(state.last, self._window)
            for block in range(max(state.saved // _BLOCK, first), full):
                begin, end = (
                    4 * _BLOCK * block - start,
                    4 * _BLOCK * (block + 1) - start,
                )
                if end > 0:
                    # One that begins before what is known is kept without that part.
                    blocks.append((client, block, raw[max(begin, 0) : end]))
            if full > state.saved // _BLOCK:
                old.append((client, first))
        self._db.executemany("REPLACE INTO clients VALUES (?, ?, ?)", rows)
        self._db.executemany("REPLACE INTO blocks VALUES (?, ?, ?)", blocks)
        self._db.executemany("DELETE FROM blocks WHERE client = ? AND block < ?", old)


def _first_block(last: int, window: int) -> int:
    """The first block that has something of the window."""
    return max(last - window, 0) // _BLOCK


def _little_endian(checksums: array[int]) -> array[int]:
    if sys.byteorder == "big":
        checksums = checksums[:]
        checksums.byteswap()
    return checksums
