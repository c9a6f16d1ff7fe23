"""The ledger on disk."""

from __future__ import annotations

import sqlite3
from array import array
from pathlib import Path

from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from msglog._checkpoint import Checkpoint, Coverage
from msglog._errors import StoreFailed
from msglog._ledger import ClientState, Ledger, RowDamaged
from msglog.testing import make_batch

A, B = bytes(16), bytes(range(16))
COVERAGE = Coverage(b"first\n", 5, 7, False, False)


class CheckpointTest(SynchronousTestCase):
    def setUp(self) -> None:
        self.path = Path(self.mktemp())
        self.opened: list[Checkpoint] = []
        self.addCleanup(lambda: [c.close() for c in self.opened])

    def open(self, window: int = 1024) -> Checkpoint:
        checkpoint = Checkpoint(self.path, window)
        self.opened.append(checkpoint)
        return checkpoint

    def save(self, checkpoint: Checkpoint, ledger: Ledger, coverage: Coverage = COVERAGE) -> int:
        written: dict = {}
        steps = sum(
            1 for _ in checkpoint.write(dict(ledger.dirty), coverage, written, durable=False)
        )
        ledger.saved(written)
        return steps

    def test_gone(self) -> None:
        """Its file is gone if it has another name, but not if the system cannot tell."""
        checkpoint = self.open()
        self.assertFalse(checkpoint.gone())
        aside = self.path.rename(f"{self.path}.aside")
        self.assertTrue(checkpoint.gone())
        self.path.symlink_to(self.path.name)
        self.assertFalse(checkpoint.gone())
        self.path.unlink()
        aside.rename(self.path)

    @settings(deadline=None, max_examples=60)
    @given(
        st.integers(1, 300),
        st.lists(st.tuples(st.integers(1, 700), st.booleans()), max_size=8),
        st.integers(0, 500),
    )
    def test_any_history(self, window: int, history: list, joined: int) -> None:
        """Whenever it is saved, the last window of checksums comes back."""
        checkpoint = Checkpoint(Path(self.mktemp()), window)
        ledger = Ledger(checkpoint.load, window, 1 << 30)
        total = joined
        if joined:  # a client of which older files are gone
            ledger._clients[A] = ClientState(joined, array("I"), 0)
        checksums: list[int] = []
        for count, save in history:
            batch = make_batch(A, total + 1, *[b"%d" % n for n in range(count)])
            start, _ = ledger.admit(batch)
            self.assertEqual(start, 0)
            ledger.settle()
            checksums += batch.checksums
            total += count
            if save:
                self.save(checkpoint, ledger)
                state = checkpoint.load(A)
                assert state is not None
                self.assertEqual((state.last, state.saved), (total, total))
                known = min(window, len(checksums))
                self.assertEqual(list(state.checksums[-known:]), checksums[-known:])
                self.assertLessEqual(len(state.checksums), window + 64 + 64)
        checkpoint.close()

    def test_rows_stay_small(self) -> None:
        """What is older than the window is deleted."""
        checkpoint = self.open(100)
        ledger = Ledger(checkpoint.load, 100, 1 << 30)
        for n in range(50):
            ledger.admit(make_batch(A, 1 + 90 * n, *[b"x"] * 90))
            ledger.settle()
            self.save(checkpoint, ledger)
        (blocks,) = checkpoint._db.execute("SELECT count(*) FROM blocks").fetchone()
        self.assertLessEqual(blocks, 3)

    def test_coverage(self) -> None:
        """It says what it covers, and nothing before it ever did."""
        checkpoint = self.open()
        self.assertIsNone(checkpoint.coverage())
        self.save(checkpoint, Ledger(checkpoint.load, 8, 1))
        self.assertEqual(checkpoint.coverage(), COVERAGE)
        checkpoint.close()
        self.assertEqual(self.open().coverage(), COVERAGE)

    def test_steps(self) -> None:
        """Many clients are written in steps; before the last, nothing is seen by another start."""
        checkpoint = self.open()
        ledger = Ledger(checkpoint.load, 8, 1 << 30)
        self.save(checkpoint, ledger)
        for number in range(1000):
            ledger.admit(make_batch(number.to_bytes(16, "big"), 1, b"x"))
        ledger.settle()
        later = Coverage(b"first\n", 50, 70, True, True)
        steps = checkpoint.write(dict(ledger.dirty), later, {}, durable=False)
        self.assertEqual([next(steps) for _ in range(3)], [None] * 3)
        steps.close()
        self.assertEqual(checkpoint.coverage(), COVERAGE)
        self.assertEqual(checkpoint.clients(), 0)
        self.assertEqual(self.save(checkpoint, ledger, later), 4)
        self.assertEqual(checkpoint.coverage(), later)
        self.assertEqual(checkpoint.clients(), 1000)

    def test_failed_write(self) -> None:
        """One that cannot be written leaves the last one, and the clients dirty."""
        checkpoint = self.open()
        ledger = Ledger(checkpoint.load, 8, 1 << 30)
        ledger.admit(make_batch(A, 1, b"x"))
        ledger.settle()
        self.save(checkpoint, ledger)
        ledger.admit(make_batch(A, 2, b"x"))
        ledger.admit(make_batch(B, 1, b"x"))
        ledger.settle()
        checkpoint._db.execute("PRAGMA query_only=ON")
        later = Coverage(b"first\n", 50, 70, False, False)
        self.assertRaises(sqlite3.Error, self.save, checkpoint, ledger, later)
        self.assertEqual(checkpoint.coverage(), COVERAGE)
        self.assertEqual(set(ledger.dirty), {A, B})
        checkpoint._db.execute("PRAGMA query_only=OFF")
        self.save(checkpoint, ledger, later)
        self.assertEqual(checkpoint.coverage(), later)
        self.assertEqual(ledger.dirty, {})

    def test_one_server(self) -> None:
        """A second one is refused while the first has it."""
        self.save(self.open(), Ledger(lambda client: None, 8, 1))
        self.assertRaises(sqlite3.Error, self.open)

    def test_unknown_version(self) -> None:
        """A ledger of another version is not touched."""
        checkpoint = self.open()
        self.save(checkpoint, Ledger(checkpoint.load, 8, 1))
        checkpoint._db.execute("UPDATE meta SET value = 99 WHERE key = 'version'")
        checkpoint.close()
        error = self.assertRaises(sqlite3.Error, self.open)
        self.assertIn("99", str(error))

    def test_not_for_everybody(self) -> None:
        """It is not readable by others."""
        self.open()
        self.assertEqual(self.path.stat().st_mode & 0o007, 0)

    def test_abandoned(self) -> None:
        """What is abandoned is not brought into the database, and is there at the next start."""
        checkpoint = self.open()
        ledger = Ledger(checkpoint.load, 8, 1 << 30)
        ledger.admit(make_batch(A, 1, b"x"))
        ledger.settle()
        self.save(checkpoint, ledger)
        before = self.path.read_bytes()
        checkpoint.abandon()
        self.assertEqual(self.path.read_bytes(), before)
        again = self.open()
        self.assertEqual(again.coverage(), COVERAGE)
        self.assertEqual(again.load(A).last, 1)

    def test_failed_sync(self) -> None:
        """After one nothing is certain; what found no room can be tried again."""
        checkpoint = self.open()
        for name, fatal in (
            ("SQLITE_IOERR_FSYNC", True),
            ("SQLITE_IOERR_READ", True),
            ("SQLITE_IOERR_WRITE", False),
            ("SQLITE_FULL", False),
        ):
            error = sqlite3.OperationalError("it failed")
            error.sqlite_errorname = name
            if fatal:
                said = str(self.assertRaises(StoreFailed, checkpoint._see, error))
                self.assertIn(str(self.path), said)
                self.assertIn(name, said)
            else:
                checkpoint._see(error)

    def test_damaged_rows(self) -> None:
        """What was changed, or is gone, is not believed; nobody else is touched."""
        checkpoint = self.open(128)
        ledger = Ledger(checkpoint.load, 128, 1 << 30)
        for client in (A, B):
            ledger.admit(make_batch(client, 1, *[b"x"] * 300))
        ledger.settle()
        self.save(checkpoint, ledger)
        db = checkpoint._db
        for command in (
            "UPDATE clients SET last = last + 1",
            "UPDATE clients SET last = NULL",
            "UPDATE clients SET held = held - 1",
            "UPDATE clients SET recent = zeroblob(length(recent))",
            "UPDATE clients SET crc = crc + 1",
            "UPDATE blocks SET checksums = zeroblob(256)",
            "UPDATE blocks SET crc = crc + 1",
            "DELETE FROM blocks",
        ):
            db.execute("BEGIN")
            try:
                db.execute(f"{command} WHERE client = ?", (A,))
            except sqlite3.IntegrityError:
                pass
            else:
                error = self.assertRaises(RowDamaged, checkpoint.load, A)
                self.assertEqual(error.client, A)
            self.assertEqual(checkpoint.load(B).last, 300)
            db.execute("ROLLBACK")
        for block in (2, 3):
            db.execute("BEGIN")
            db.execute("DELETE FROM blocks WHERE client = ? AND block = ?", (A, block))
            self.assertRaises(RowDamaged, checkpoint.load, A)
            db.execute("ROLLBACK")
        self.assertEqual(checkpoint.load(A).last, 300)
        self.assertIsNone(checkpoint.load(b"C" * 16))

    def test_missing_row(self) -> None:
        """A client that the index of names has and the table has not is no new one."""
        checkpoint = self.open()
        ledger = Ledger(checkpoint.load, 8, 1 << 30)
        for client in (A, B):
            ledger.admit(make_batch(client, 1, b"x"))
        ledger.settle()
        self.save(checkpoint, ledger)
        checkpoint.close()
        # The table's leaf and the index's both have the ids; the table's is longer.
        page = 4096
        data = bytearray(self.path.read_bytes())
        places = [n for n in range(0, len(data), page) if B in data[n : n + page]]
        self.assertEqual(len(places), 2)
        at = data.index(B, places[0])
        data[at + 15] ^= 1
        self.path.write_bytes(data)
        self.assertRaises(RowDamaged, self.open().load, B)

    def test_damaged_coverage(self) -> None:
        """What it says of the log is believed only as it was written."""
        checkpoint = self.open()
        self.save(checkpoint, Ledger(checkpoint.load, 8, 1))
        for key in ("file", "offset", "time", "complete", "lazy", "crc"):
            for command in ("UPDATE meta SET value = 9", "DELETE FROM meta"):
                checkpoint._db.execute("BEGIN")
                checkpoint._db.execute(f"{command} WHERE key = ?", (key,))
                self.assertRaises(sqlite3.DatabaseError, checkpoint.coverage)
                checkpoint._db.execute("ROLLBACK")
        self.assertEqual(checkpoint.coverage(), COVERAGE)

    def test_lost_tables(self) -> None:
        """A file that has had tables is not taken for a new one."""
        checkpoint = self.open()
        self.save(checkpoint, Ledger(checkpoint.load, 8, 1))
        checkpoint._db.execute("PRAGMA writable_schema=ON")
        checkpoint._db.execute("DELETE FROM sqlite_master")
        checkpoint.close()
        self.assertIn("gone", str(self.assertRaises(sqlite3.DatabaseError, self.open)))

    def test_version_before(self) -> None:
        """A ledger of version 2 is taken over, with all that it has."""
        old = sqlite3.connect(self.path, isolation_level=None)
        old.executescript(
            """
            CREATE TABLE IF NOT EXISTS meta (key TEXT PRIMARY KEY, value) WITHOUT ROWID;
            CREATE TABLE IF NOT EXISTS clients (
                client BLOB PRIMARY KEY, last INTEGER NOT NULL, recent BLOB NOT NULL
            ) WITHOUT ROWID;
            CREATE TABLE IF NOT EXISTS blocks (
                client BLOB NOT NULL, block INTEGER NOT NULL, checksums BLOB NOT NULL,
                PRIMARY KEY (client, block)
            ) WITHOUT ROWID;
            """
        )
        values = {"version": 2, "file": b"first\n", "offset": 5, "time": 7}
        old.executemany(
            "INSERT INTO meta VALUES (?, ?)",
            [*values.items(), ("complete", False), ("lazy", False)],
        )
        checksums = [*range(130)]
        raw = array("I", checksums).tobytes()
        old.execute("INSERT INTO clients VALUES (?, 130, ?)", (A, raw[512:]))
        old.execute("INSERT INTO clients VALUES (?, 1, ?)", (B, raw[:4]))
        old.execute("INSERT INTO blocks VALUES (?, 0, ?)", (A, raw[:256]))
        old.execute("INSERT INTO blocks VALUES (?, 1, ?)", (A, raw[256:512]))
        old.close()
        for _ in range(2):
            checkpoint = self.open()
            self.assertEqual(checkpoint.coverage(), COVERAGE)
            state = checkpoint.load(A)
            self.assertEqual((state.last, list(state.checksums)), (130, checksums))
            self.assertEqual(checkpoint.load(B).last, 1)
            checkpoint.close()
