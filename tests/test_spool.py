"""A client's spool: what is in the file after every step, every kill, and every error."""

from __future__ import annotations

import random
import shutil
import sqlite3
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any
from uuid import UUID

from twisted.trial.unittest import SynchronousTestCase

from msglog import SpoolError
from msglog._spool import _READ_BYTES, Spool, Step

CLIENT, OTHER = UUID(int=1), UUID(int=2)


def never() -> UUID:
    raise AssertionError("a new client id is made")


def copied(path: Path) -> Path:
    """The files of a spool as a kill would leave them now, in another folder."""
    folder = path.with_name(f"{path.name}-copied-{len(list(path.parent.iterdir()))}")
    folder.mkdir()
    for file in path.parent.glob(f"{path.name}*"):
        if file.is_file():
            shutil.copy(file, folder)
    return folder / path.name


class Watched:
    """A spool's connection whose statements are seen before they are executed, and may fail."""

    def __init__(self, db: sqlite3.Connection, before: Callable[[str], object]) -> None:
        self._db = db
        self._before = before

    def execute(self, statement: str, *values: Any) -> sqlite3.Cursor:
        self._before(statement)
        return self._db.execute(statement, *values)

    def executemany(self, statement: str, rows: Any) -> sqlite3.Cursor:
        self._before(statement)
        return self._db.executemany(statement, rows)

    @property
    def in_transaction(self) -> bool:
        return self._db.in_transaction

    def close(self) -> None:
        self._db.close()


class SpoolCase(SynchronousTestCase):
    def setUp(self) -> None:
        folder = Path(self.mktemp())
        folder.mkdir()
        self.path = folder / "spool"

    def open(self, path: Path | None = None, make: Callable[[], UUID] = never) -> Spool:
        spool = Spool(path or self.path, make)
        self.addCleanup(spool.close)
        return spool

    def new(self, *bodies: bytes) -> Spool:
        spool = self.open(make=lambda: CLIENT)
        if bodies:
            self.do(spool, add=list(bodies))
        return spool

    def do(self, spool: Spool, **step: Any) -> Step:
        done = spool.do(Step(**step))
        self.assertIsNone(done.error)
        return done

    def bodies(self, spool: Spool) -> list[bytes]:
        return [body for _, body in self.do(spool, read=1 << 20).rows]

    def state(self, spool: Spool) -> tuple:
        return spool.client, spool.first, spool.count, spool.size, spool.last, self.bodies(spool)


class Steps(SpoolCase):
    def test_new(self) -> None:
        """A new spool has a new client id, no messages, and is its owner's alone."""
        spool = self.new()
        self.assertEqual(self.state(spool), (CLIENT, 1, 0, 0, 0, []))
        self.assertEqual(spool.marks, {})
        for file in self.path.parent.iterdir():
            self.assertEqual(file.stat().st_mode & 0o777, 0o600, file)

    def test_add_and_read(self) -> None:
        """What is added can be read in the same step, in order, by its place."""
        spool = self.new()
        step = self.do(spool, add=[b"a", b"", b"\x00\xff"], read=2)
        self.assertEqual(list(step.added), [1, 2, 3])
        self.assertEqual(step.rows, [(1, b"a"), (2, b"")])
        self.assertEqual(self.do(spool, after=2, read=10).rows, [(3, b"\x00\xff")])
        self.assertEqual(self.do(spool, after=3, read=10).rows, [])
        self.assertEqual((spool.count, spool.size, spool.last), (3, 3, 3))

    def test_settle(self) -> None:
        """What is settled is removed, and what was logged moves the first sequence on."""
        spool = self.new(b"a", b"bb", b"ccc", b"dddd")
        step = self.do(spool, through=3, settled=2)  # one of three was refused
        self.assertTrue(step.removed)
        self.assertEqual(self.state(spool), (CLIENT, 3, 1, 4, 4, [b"dddd"]))

    def test_everything_at_once(self) -> None:
        """One step adds, removes and reads."""
        spool = self.new(b"a", b"b")
        step = self.do(spool, add=[b"c"], through=1, settled=1, after=1, read=9)
        self.assertEqual(list(step.added), [3])
        self.assertEqual(step.rows, [(2, b"b"), (3, b"c")])
        self.assertEqual(spool.first, 2)

    def test_reads_a_bounded_amount(self) -> None:
        """One step does not read a whole backlog of long messages."""
        long = bytes(_READ_BYTES // 2)
        spool = self.new(long, long, b"c")
        self.assertEqual([place for place, _ in self.do(spool, read=10).rows], [1, 2])
        self.assertEqual(self.do(spool, after=2, read=10).rows, [(3, b"c")])

    def test_marks(self) -> None:
        """A mark is remembered with its message, replaced, and forgotten."""
        spool = self.new()
        self.do(spool, add=[b"a"], marks={"x": 1, "y": -(2**63)})
        self.do(spool, marks={"x": 2**63 - 1})
        spool.close()
        spool = self.open()
        self.assertEqual(spool.marks, {"x": 2**63 - 1, "y": -(2**63)})
        self.do(spool, marks={"x": None, "z": None})
        spool.close()
        self.assertEqual(self.open().marks, {"y": -(2**63)})

    def test_again(self) -> None:
        """A spool that is opened again is as it was; places are not used twice."""
        spool = self.new(b"a", b"b", b"c")
        self.do(spool, through=2, settled=2)
        spool.close()
        self.assertEqual([file.name for file in self.path.parent.iterdir()], ["spool"])
        spool = self.open()
        self.assertEqual(self.state(spool), (CLIENT, 3, 1, 1, 3, [b"c"]))
        self.do(spool, through=3, settled=1)
        spool.close()
        spool = self.open()
        self.assertEqual(self.state(spool), (CLIENT, 4, 0, 0, 3, []))
        self.assertEqual(list(self.do(spool, add=[b"d"]).added), [4])

    def test_renew(self) -> None:
        """Another client id begins at 1, with everything that there is."""
        spool = self.new(b"a", b"b")
        self.do(spool, through=1, settled=1)
        spool.renew(OTHER)
        self.assertEqual((spool.client, spool.first), (OTHER, 1))
        spool.close()
        self.assertEqual(self.state(self.open()), (OTHER, 1, 1, 1, 2, [b"b"]))

    def test_waits_for_the_disk(self) -> None:
        """A step waits for the disk if something would be lost otherwise, and only then."""
        spool = self.new(b"a", b"b")
        statements: list[str] = []
        spool._db = Watched(spool._db, statements.append)
        for step, mode in (
            ({"add": [b"c"], "through": 1, "settled": 1}, "FULL"),
            ({"marks": {"x": 1}}, "FULL"),
            ({"through": 2, "settled": 1}, "NORMAL"),
        ):
            statements.clear()
            self.do(spool, **step)
            self.assertEqual(statements[0], f"PRAGMA synchronous={mode}")

    def test_nothing_to_do(self) -> None:
        """An empty step changes nothing."""
        spool = self.new(b"a")
        step = self.do(spool)
        self.assertEqual((step.rows, len(step.added), step.removed), ([], 0, False))


class Kills(SpoolCase):
    """Killed before each statement of a step: all of it is done, or nothing."""

    def test_a_step(self) -> None:
        spool = self.new(b"a", b"b", b"c")
        copies: list[Path] = []
        spool._db = Watched(spool._db, lambda statement: copies.append(copied(self.path)))
        self.do(spool, add=[b"d", b"e"], marks={"x": 7}, through=2, settled=2, after=2, read=9)
        copies.append(copied(self.path))
        before = (CLIENT, 1, 3, 3, 3, [b"a", b"b", b"c"])
        after = (CLIENT, 3, 3, 3, 5, [b"c", b"d", b"e"])
        found = []
        for path in copies:
            killed = self.open(path)
            found.append(self.state(killed))
            self.assertEqual(killed.marks, {"x": 7} if found[-1] == after else {})
        self.assertEqual(found[-1], after)
        committed = found.index(after)
        self.assertGreater(committed, 5)
        self.assertEqual(found, [before] * committed + [after] * (len(found) - committed))

    def test_the_first_opening(self) -> None:
        """A spool whose making was cut short is made by the next opening."""
        for schema in ("", "CREATE TABLE meta (key TEXT PRIMARY KEY, value) WITHOUT ROWID"):
            self.path.unlink(missing_ok=True)
            db = sqlite3.connect(self.path)
            db.execute("PRAGMA journal_mode=WAL")
            db.execute(schema)
            db.close()
            spool = self.new(b"a")
            self.assertEqual(self.state(spool), (CLIENT, 1, 1, 1, 1, [b"a"]))
            spool.close()


class Errors(SpoolCase):
    def fails(self, spool: Spool, at: str, **step: Any) -> Step:
        """Do a step whose first statement that begins so fails as on a full disk."""
        db = spool._db

        def before(statement: str) -> None:
            if statement.startswith(at):
                raise sqlite3.OperationalError("database or disk is full")

        spool._db = Watched(db, before)
        try:
            done = spool.do(Step(**step))
        finally:
            spool._db = db
        self.assertIsInstance(done.error, SpoolError)
        self.assertIn(f"the spool {self.path}: database or disk is full", str(done.error))
        return done

    def test_write(self) -> None:
        """An error anywhere in the writing leaves everything as it was, and can be tried again."""
        step = {"add": [b"c"], "marks": {"x": 1, "y": None}, "through": 1, "settled": 1}
        for at in ("PRAGMA", "BEGIN", "SELECT count", "DELETE", "UPDATE", "INSERT", "REPLACE",
                   "DELETE FROM marks", "COMMIT"):  # fmt: skip
            with self.subTest(at=at):
                self.path = self.path.with_name(at)
                spool = self.new(b"a", b"b")
                before = self.state(spool)
                done = self.fails(spool, at, **step)
                self.assertIn("cannot write", str(done.error))
                self.assertEqual((len(done.added), done.removed), (0, False))
                self.assertEqual(self.state(spool), before)
                self.assertFalse(spool._db.in_transaction)
                self.assertEqual(list(self.do(spool, **step).added), [3])
                self.assertEqual(self.state(spool), (CLIENT, 2, 2, 2, 3, [b"b", b"c"]))
                spool.close()
                self.assertEqual(self.open().marks, {"x": 1})

    def test_rolled_back(self) -> None:
        """After some errors SQLite has rolled back already."""
        spool = self.new(b"a")
        db = spool._db

        def before(statement: str) -> None:
            if statement == "COMMIT":
                db.execute("ROLLBACK")
                raise sqlite3.OperationalError("disk I/O error")

        spool._db = Watched(db, before)
        self.assertIn("disk I/O error", str(spool.do(Step(add=[b"b"])).error))
        spool._db = db
        self.assertEqual(self.bodies(spool), [b"a"])

    def test_read(self) -> None:
        """An error in the reading undoes no writing."""
        spool = self.new()
        done = self.fails(spool, "SELECT place", add=[b"a"], read=5)
        self.assertIn("cannot read", str(done.error))
        self.assertEqual((list(done.added), done.removed, done.rows), ([1], True, []))
        self.assertEqual(self.bodies(spool), [b"a"])

    def test_reads_what_it_cannot_write(self) -> None:
        """Without room for more it still gives what it has."""
        spool = self.new(b"a")
        done = self.fails(spool, "INSERT", add=[b"b"], read=5)
        self.assertEqual(done.rows, [(1, b"a")])

    def test_renew(self) -> None:
        """A new client id that cannot be written is not taken."""
        spool = self.new(b"a")
        db = spool._db

        def before(statement: str) -> None:
            if statement == "COMMIT":
                raise sqlite3.OperationalError("disk I/O error")

        spool._db = Watched(db, before)
        self.assertRaises(SpoolError, spool.renew, OTHER)
        spool._db = db
        self.assertEqual((spool.client, spool.first), (CLIENT, 1))
        spool.renew(OTHER)
        self.assertEqual(spool.client, OTHER)

    def test_in_use(self) -> None:
        """A spool that is open elsewhere is not opened."""
        connect = sqlite3.connect
        self.patch(sqlite3, "connect", lambda *a, **k: connect(*a, **{**k, "timeout": 0}))
        spool = self.new(b"a")
        error = self.assertRaises(SpoolError, Spool, self.path, never)
        self.assertIn("in use by another process", str(error))
        self.assertEqual(self.bodies(spool), [b"a"])
        spool.close()
        self.open()

    def test_no_place(self) -> None:
        """A spool in a folder that is not there, or that is one."""
        for path in (self.path.parent / "nowhere" / "spool", self.path.parent):
            error = self.assertRaises(SpoolError, Spool, path, never)
            self.assertIn(f"cannot use the spool {path}", str(error))

    def test_no_database(self) -> None:
        """A file that is something else is left as it is."""
        self.path.write_bytes(b"a line of a log\n" * 1000)
        error = self.assertRaises(SpoolError, Spool, self.path, lambda: CLIENT)
        self.assertIn("file is not a database", str(error))
        self.assertIn("keep it", str(error))
        self.assertEqual(self.path.read_bytes(), b"a line of a log\n" * 1000)

    def test_another_version(self) -> None:
        """A spool of a later msglog is not touched."""
        self.new(b"a").close()
        db = sqlite3.connect(self.path)
        db.execute("UPDATE meta SET value = 2 WHERE key = 'version'")
        db.commit()
        db.close()
        error = self.assertRaises(SpoolError, Spool, self.path, never)
        self.assertIn("version 2, not 1", str(error))

    def test_senseless(self) -> None:
        """A database in good order whose values are not a spool's."""
        for table, column, value in (
            ("meta", "value", None),
            ("meta", "value", "text"),
            ("messages", "body", "text"),
        ):
            self.path = self.path.with_name(f"{table}-{value}")
            self.new(b"a", b"b").close()
            db = sqlite3.connect(self.path)
            where = " WHERE key <> 'version'" if table == "meta" else " WHERE place = 2"
            db.execute(f"UPDATE {table} SET {column} = ?{where}", (value,))
            db.commit()
            db.close()
            if table == "meta":
                error = self.assertRaises(SpoolError, Spool, self.path, never)
                self.assertIn("does not say whose it is", str(error))
            else:
                step = self.open().do(Step(read=5))
                self.assertIn("the message at place 2 is damaged", str(step.error))
                self.assertEqual(step.rows, [(1, b"a")])

    def test_damaged(self) -> None:
        """Wherever the file is damaged: it is opened, or it is an error of the spool's."""
        self.new(*(b"%d" % n * 50 for n in range(500))).close()
        whole = self.path.read_bytes()
        rng, opened = random.Random(7), 0
        for at in range(0, len(whole), len(whole) // 60):
            self.path.write_bytes(whole[:at] + rng.randbytes(300) + whole[at + 300 :])
            try:
                spool = Spool(self.path, lambda: CLIENT)
            except SpoolError:
                continue
            opened += 1
            spool.do(Step(read=1000))
            spool.do(Step(add=[b"x"], through=10, settled=10))
            spool.close()
            for extra in self.path.parent.glob("spool-*"):
                extra.unlink()
        self.assertGreater(opened, 0)
        for size in (100, len(whole) // 2):
            self.path.write_bytes(whole[:size])
            self.assertRaises(SpoolError, Spool, self.path, lambda: CLIENT)
        # Of which SQLite's complaint is no text.
        broken = whole.replace(b"tablemarks", b"table\xcfarks").replace(
            b"TABLE marks", b"TABLX marks"
        )
        self.path.write_bytes(broken)
        self.assertRaises(SpoolError, Spool, self.path, lambda: CLIENT)


FORKING = """
import os, sys, uuid
from msglog._spool import Spool, Step

spool = Spool("spool", uuid.uuid4)
spool.do(Step(add=[b"a"]))
if os.fork() == 0:
    if sys.argv[1] == "drops":
        del spool
    sys.exit()
os.wait()
spool.do(Step(add=[b"b"]))
os._exit(0)  # as a kill ends it
"""


class Forks(SpoolCase):
    def test_child(self) -> None:
        """A forked child that drops its parent's spool, or ends with it, takes nothing away."""
        for child in ("drops", "ends"):
            self.path = self.path.with_name(child) / "spool"
            self.path.parent.mkdir()
            command = [sys.executable, "-c", FORKING, child]
            subprocess.run(command, cwd=self.path.parent, check=True, timeout=30)
            self.assertEqual(self.bodies(self.open()), [b"a", b"b"], child)
