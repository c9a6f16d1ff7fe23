"""The ledger on disk."""

from __future__ import annotations

import sqlite3
from array import array
from pathlib import Path

from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from msglog._checkpoint import Checkpoint, Coverage
from msglog._ledger import ClientState, Ledger
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
