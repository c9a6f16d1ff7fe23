"""The log's one writer, on real files whose disk fails on demand."""

from __future__ import annotations

import errno
import shutil
import sqlite3
from collections.abc import Sequence
from pathlib import Path

from twisted.logger import LogEvent, LogLevel, capturedLogs, formatEvent
from twisted.trial.unittest import SynchronousTestCase

from msglog import (
    LedgerDamaged,
    Limits,
    LogDamaged,
    LogLocked,
    NackCode,
    StartError,
    StoreFailed,
    _checkpoint,
)
from msglog._batch import STORED
from msglog._checkpoint import Checkpoint
from msglog._disk import Disk
from msglog._records import format_lines, parse_line
from msglog._writer import Appending, Asking, LogWriter
from msglog.testing import FaultyDisk, make_batch

A, B = bytes(16), bytes(range(16))


def entry(client: bytes, first: int, *bodies: bytes) -> Appending:
    batch = make_batch(client, first, *bodies)
    return Appending(batch, format_lines(batch))


class Case(SynchronousTestCase):
    now = 1_000_000.0

    def setUp(self) -> None:
        self.folder = Path(self.mktemp())
        self.folder.mkdir()
        self.log = self.folder / "log"
        self.ledger = self.folder / "log.ledger"
        self.disk = FaultyDisk()
        self.writers: list[LogWriter] = []
        self.addCleanup(lambda: [w._abandon() for w in self.writers])

    def make(self, sync: float = 0.0, **limits) -> LogWriter:
        def monotonic() -> float:
            return self.now

        writer = LogWriter(
            self.log,
            Limits(**limits),
            sync,
            disk=self.disk,
            clock=lambda: self.now,
            monotonic=monotonic,
        )
        self.writers.append(writer)
        return writer

    def open(self, sync: float = 0.0, **limits) -> LogWriter:
        writer = self.make(sync, **limits)
        self.recovered = writer.open()
        return writer

    def crash(self) -> None:
        """Go on in a copy of everything as it is, as after a kill."""
        old, self.folder = self.folder, Path(self.mktemp())
        shutil.copytree(old, self.folder)
        self.log, self.ledger = self.folder / "log", self.folder / "log.ledger"

    def write(self, writer: LogWriter, first: int, count: int, client: bytes = A) -> None:
        """Messages, a commit each, and after each what is due, as the store has it done."""
        for sequence in range(first, first + count):
            self.assertEqual(writer.commit([entry(client, sequence, b"%d" % sequence)]), [STORED])
            if writer.behind:
                writer.tick()

    def idle(self, writer: LogWriter) -> None:
        """Do everything that is due, as the store has it done when there is nothing to commit."""
        while writer.tick():
            pass

    def records(self, path: Path | None = None) -> list:
        data = (path or self.log).read_bytes()
        self.assertTrue(not data or data.endswith(b"\n"))
        return [parse_line(line) for line in data.splitlines()]

    def sequences(self, path: Path | None = None) -> list[int]:
        return [record.sequence for record in self.records(path)]

    def refuses(self, kind: type[StartError], *words: str) -> None:
        """A start fails with an error that says these words, and changes nothing in the log."""
        before = self.log.read_bytes() if self.log.exists() else b""
        error = self.assertRaises(kind, self.make().open)
        for word in words:
            self.assertIn(word, str(error))
        self.assertEqual(self.log.read_bytes(), before)


class Commits(Case):
    def test_one_write_and_one_sync(self) -> None:
        """However many batches: a commit is one write, one sync, and one time."""
        writer = self.open()
        writer.commit([entry(b"f" * 16, 1, b"first")])
        self.disk.calls.clear()
        results = writer.commit([entry(A, 1, b"a", b"b"), entry(B, 1, b"c"), entry(A, 3, b"d")])
        self.assertEqual(results, [STORED] * 3)
        self.assertEqual(self.disk.calls, ["write", "sync"])
        records = self.records()[1:]
        self.assertEqual([r.body for r in records], [b"a", b"b", b"c", b"d"])
        self.assertEqual(len({r.time for r in records}), 1)

    def test_a_stalled_disk_is_said(self) -> None:
        """How long messages had to wait for it, when it is over: nobody else may have seen it."""
        writer = self.open(stalled_seconds=5.0)
        sync = self.disk.sync

        def hang(seconds: float) -> list[str]:
            def slowly(fd: int) -> None:
                self.now += seconds
                sync(fd)

            self.patch(self.disk, "sync", slowly)
            with capturedLogs() as events:
                writer.commit([entry(A, writer.ledger.last(A) + 1, b"a")])
            return [formatEvent(e) for e in events if e["log_level"] is LogLevel.warn]

        self.assertEqual(hang(4.9), [])
        (line,) = hang(6.0)
        self.assertIn("the disk did not answer for 6.0 s", line)

    def test_nothing_new_nothing_written(self) -> None:
        """Resends and questions alone cost no write."""
        writer = self.open()
        self.write(writer, 1, 2)
        self.disk.calls.clear()
        self.assertEqual(writer.commit([entry(A, 1, b"1", b"2"), Asking(A)]), [STORED, 2])
        self.assertEqual(self.disk.calls, [])

    def test_part_of_a_batch(self) -> None:
        """Only what is new in a batch is written."""
        writer = self.open()
        self.write(writer, 1, 2)
        writer.commit([entry(A, 2, b"2", b"3")])
        self.assertEqual(self.sequences(), [1, 2, 3])

    def test_time_only_grows(self) -> None:
        """Each commit's time is above the one before, when the clock stands or goes back."""
        writer = self.open()
        self.write(writer, 1, 2)
        self.now -= 1000
        self.write(writer, 3, 1)
        writer.close()
        self.write(self.open(), 4, 1)
        times = [r.time for r in self.records()]
        self.assertEqual(times, sorted(set(times)))

    def test_questions_are_answered_after_the_commit(self) -> None:
        writer = self.open()
        self.assertEqual(writer.commit([Asking(A), entry(A, 1, b"1"), Asking(B)]), [1, STORED, 0])


class Faults(Case):
    def test_full_at_the_first_commit(self) -> None:
        """If the ledger cannot take a new file's name, the file takes nothing."""
        writer = self.open()
        writer._checkpointer._checkpoint._db.execute("PRAGMA query_only=ON")
        (verdict,) = writer.commit([entry(A, 1, b"1")])
        self.assertEqual(verdict.refusals[0].code, NackCode.NOT_STORED)
        self.assertEqual(self.log.read_bytes(), b"")
        writer._checkpointer._checkpoint._db.execute("PRAGMA query_only=OFF")
        self.write(writer, 1, 1)

    def test_full_disk(self) -> None:
        """A short write is cut off again; refused, nothing consumed; with room it goes on."""
        writer = self.open()
        self.write(writer, 1, 2)
        size = self.log.stat().st_size
        for room in (0, 1, 150):
            self.disk.room = room
            many = entry(A, 2, b"2", b"3", b"4")
            (verdict, other, last) = writer.commit([many, entry(B, 1, b"x"), Asking(A)])
            self.assertEqual(
                [(r.start, r.stop, r.code, r.expected) for r in verdict.refusals],
                [(1, 3, NackCode.NOT_STORED, 3)],
            )
            self.assertEqual(other.refusals[0].code, NackCode.NOT_STORED)
            self.assertEqual(last, 2)
            self.assertEqual(self.log.stat().st_size, size)
            # On the disk too, before anything else is written there.
            self.assertEqual(self.disk.calls[-2:], ["cut", "sync"])
        self.disk.room = None
        self.write(writer, 3, 1)
        self.assertEqual(self.sequences(), [1, 2, 3])

    def test_short_write(self) -> None:
        """A write that takes only part is gone on with."""
        writer = self.open()
        write = self.disk.write
        self.disk.write = lambda fd, data: write(fd, memoryview(data)[:7])
        self.write(writer, 1, 3)
        self.assertEqual(self.sequences(), [1, 2, 3])

    def test_fail_stop(self) -> None:
        """EIO of a write or a cut, and any error of a sync, ends it; nothing is taken after."""
        for call, number in [
            ("write", errno.EIO),
            ("sync", errno.EIO),
            ("sync", errno.ENOSPC),
            ("sync", errno.EDQUOT),
        ]:
            writer = self.open()
            self.write(writer, writer.ledger.last(A) + 1, 1)
            following = writer.ledger.last(A) + 1
            self.disk.errors = {call: number}
            self.assertRaises(StoreFailed, writer.commit, [entry(A, following, b"x")])
            self.disk.errors = {}
            self.assertRaises(StoreFailed, writer.commit, [entry(A, following, b"x")])
            writer.close()
        self.disk.errors = {"cut": errno.EIO}
        writer = self.open()
        self.disk.room = 5
        following = writer.ledger.last(A) + 1
        self.assertRaises(StoreFailed, writer.commit, [entry(A, following, b"x")])

    def test_changed_by_another(self) -> None:
        """A log that somebody cut or wrote to stops it before a commit goes to a wrong place."""
        for change in (b"x", None):
            writer = self.open()
            self.write(writer, writer.ledger.last(A) + 1, 1)
            if change is None:
                with self.log.open("r+b") as file:
                    file.truncate(10)
            else:
                with self.log.open("ab") as file:
                    file.write(change)
            error = self.assertRaises(
                StoreFailed, writer.commit, [entry(A, writer.ledger.last(A) + 1, b"x")]
            )
            self.assertIn("another program", str(error))
            writer.close()

    def test_cut_by_another(self) -> None:
        """
        What it had is noted when it stops, so that the next start takes no cut for a torn end.
        """
        writer = self.open()
        self.write(writer, 1, 5)
        whole = self.log.read_bytes()
        self.log.write_bytes(whole[:-3])
        self.assertRaises(StoreFailed, writer.commit, [entry(A, 6, b"x")])
        writer.close()
        self.refuses(LedgerDamaged, "acknowledged messages are missing")
        self.log.write_bytes(whole)
        self.write(self.open(), 6, 1)
        self.assertEqual(self.sequences(), [1, 2, 3, 4, 5, 6])

    def test_failed_checkpoint(self) -> None:
        """If the ledger cannot be written, the log goes on, and says it; later it is."""
        writer = self.open(checkpoint_seconds=10)
        self.write(writer, 1, 1)
        writer._checkpointer._checkpoint._db.execute("PRAGMA query_only=ON")
        self.now += 11
        self.write(writer, 2, 4)
        self.assertEqual(set(writer.ledger.dirty), {A})
        writer._checkpointer._checkpoint._db.execute("PRAGMA query_only=OFF")
        self.now += 11
        self.write(writer, 6, 1)
        self.idle(writer)
        self.assertEqual(writer.ledger.dirty, {})


class Restarts(Case):
    def test_clean(self) -> None:
        """After a clean stop nothing is read again, and all is known."""
        writer = self.open()
        self.write(writer, 1, 5)
        writer.close()
        writer = self.open()
        self.assertEqual((self.recovered.read, self.recovered.rebuilt), (0, False))
        self.write(writer, 6, 1)
        (verdict,) = writer.commit([entry(A, 3, b"other")])
        self.assertEqual(verdict.refusals[0].code, NackCode.CONFLICT)

    def test_syncs_before_it_promises(self) -> None:
        """What a killed server wrote is synced before the first answer, even with no commit."""
        self.write(self.open(), 1, 3)
        self.crash()
        self.disk.calls.clear()
        self.open()
        self.assertIn("sync", self.disk.calls)

    def test_reads_from_the_disk_what_a_sync_failed_on(self) -> None:
        """
        What cannot be sure to be on the disk is read from there at a start, when it is synced: the
        kernel may show what it dropped when a sync failed.
        """
        writer = self.open(checkpoint_bytes=1)
        self.write(writer, 1, 3)
        self.idle(writer)
        covered = self.log.stat().st_size
        self.disk.errors["sync"] = errno.EIO
        self.assertRaises(StoreFailed, writer.commit, [entry(A, 4, b"4")])
        self.crash()
        self.disk = FaultyDisk()
        forgotten: list[int] = []
        read_before: list[int] = []
        forget, read = self.disk.forget, self.disk.read

        def forgetting(fd: int, offset: int) -> None:
            self.assertEqual(self.disk.calls[-1], "sync")
            forgotten.append(offset)
            forget(fd, offset)

        def reading(fd: int, count: int, offset: int) -> bytes:
            if not forgotten:
                read_before.append(offset)
            return read(fd, count, offset)

        self.patch(self.disk, "forget", forgetting)
        self.patch(self.disk, "read", reading)
        writer = self.open()
        self.assertEqual(forgotten, [covered])
        self.assertLess(max(read_before), covered)
        self.write(writer, 5, 1)

    def test_crash(self) -> None:
        """After a kill, what the checkpoint does not cover is read, and no more."""
        writer = self.open(checkpoint_seconds=10)
        self.write(writer, 1, 50)
        self.now += 11
        self.idle(writer)
        covered = self.log.stat().st_size
        self.write(writer, 51, 5)
        self.crash()
        writer = self.open()
        self.assertEqual(self.recovered.read, self.log.stat().st_size - covered)
        self.assertEqual(self.recovered.records, 5)
        self.assertEqual(writer.commit([entry(A, 50, b"50", b"51"), Asking(A)]), [STORED, 55])
        self.write(writer, 56, 1)
        self.assertEqual(self.sequences(), list(range(1, 57)))

    def test_crash_while_the_checkpoint_is_written(self) -> None:
        """A checkpoint of many clients goes on with the log; a kill between its steps is safe."""
        writer = self.open(checkpoint_bytes=1, checkpoint_seconds=1000)
        clients = [n.to_bytes(16, "big") for n in range(1, 2001)]
        writer.commit([entry(client, 1, b"x") for client in clients])
        for sequence in range(2, 12):
            self.assertTrue(writer.behind)
            writer.tick()
            writer.commit([entry(client, sequence, b"y") for client in clients[::100]])
            kept, log, ledger, writers = self.folder, self.log, self.ledger, list(self.writers)
            self.crash()
            again = self.open()
            self.assertEqual(again.ledger.last(clients[0]), sequence)
            self.assertEqual(again.ledger.last(clients[1]), 1)
            again.close()
            self.folder, self.log, self.ledger, self.writers = kept, log, ledger, writers

    def test_lost_ledger(self) -> None:
        """It is made again from the log and from what was rotated away from it."""
        writer = self.open()
        self.write(writer, 1, 5)
        self.write(writer, 1, 5, B)
        self.log.rename(self.folder / "log.1")
        self.write(writer, 6, 5)
        writer.close()
        self.ledger.unlink()
        writer = self.open()
        self.assertTrue(self.recovered.rebuilt)
        self.assertEqual(self.recovered.records, 15)
        self.assertEqual(writer.commit([Asking(A), Asking(B)]), [10, 5])
        self.assertEqual(writer.commit([entry(B, 5, b"5")]), [STORED])

    def test_lost_ledger_and_files(self) -> None:
        """Clients of whom the older files are gone go on where the log ends."""
        writer = self.open()
        self.write(writer, 1, 5)
        self.log.unlink()
        self.write(writer, 6, 5)
        writer.close()
        self.ledger.unlink()
        self.write(self.open(), 11, 1)

    def test_an_older_ledger_is_put_in_its_place(self) -> None:
        """
        A copy that is put where a running server has its ledger, under its name or over what it
        has, is not mixed with what the server has written since, whether it is stopped or killed.
        """
        # So many that the first and the last are in different pages.
        clients = [n.to_bytes(16, "big") for n in range(1, 1001)]
        first, last = clients[0], clients[-1]
        for over in (False, True):
            for killed in (False, True):
                with self.subTest(over=over, killed=killed):
                    self.setUp()
                    writer = self.open(checkpoint_seconds=1)
                    writer.commit([entry(client, 1, b"1") for client in clients])
                    writer.close()
                    copy = self.folder / "copy"
                    shutil.copy(self.ledger, copy)
                    writer = self.open(checkpoint_seconds=1)
                    self.write(writer, 2, 2, first)
                    self.patch(_checkpoint, "_FOLD_BYTES", 0)
                    self.checkpoint(writer)
                    self.patch(_checkpoint, "_FOLD_BYTES", 1 << 30)
                    self.write(writer, 2, 1, last)
                    self.checkpoint(writer)
                    if over:
                        self.ledger.write_bytes(copy.read_bytes())
                    else:
                        copy.rename(self.ledger)
                    if killed:
                        self.checkpoint(writer)
                        self.crash()
                    else:
                        writer.close()
                    writer = self.open()
                    self.assertEqual(writer.commit([Asking(first), Asking(last)]), [3, 2])
                    self.write(writer, 4, 1, first)

    def checkpoint(self, writer: LogWriter) -> None:
        """Have the ledger brought up to date, and looked for."""
        self.now += 10
        self.idle(writer)

    def test_many_clients_in_little_memory(self) -> None:
        """A rebuild with more clients than fit in memory."""
        writer = self.open()
        clients = [n.to_bytes(16, "big") for n in range(1, 10_001)]
        for start in range(0, 10_000, 1000):
            writer.commit([entry(client, 1, b"x") for client in clients[start : start + 1000]])
        writer.close()
        self.ledger.unlink()
        writer = self.open(ledger_memory=1 << 20)
        self.assertLess(len(writer.ledger), 5000)
        self.assertLess(writer.ledger.memory, 3 << 20)
        self.assertEqual(writer.commit([Asking(c) for c in clients]), [1] * 10_000)

    def test_locked(self) -> None:
        """A second server on the same log is refused, also when the log was moved away."""
        self.open()
        self.refuses(LogLocked, "in use by another server")
        self.log.rename(self.folder / "log.1")
        self.assertRaises(LogLocked, self.make().open)

    def test_broken_ledger(self) -> None:
        """A ledger that is none is said with what to do, and doing that works."""
        self.open().close()
        self.ledger.write_bytes(b"not a database" * 1000)
        self.refuses(LedgerDamaged, str(self.ledger), "move it away")
        self.ledger.unlink()
        self.open()

    def test_ledger_with_damage(self) -> None:
        """
        So is damage of which SQLite says something that is no text, and that of what it has of
        the log.
        """
        self.write(self.open(), 1, 1)
        self.writers[-1].close()
        whole = self.ledger.read_bytes()
        for old, new in (
            (b"CREATE", b"CRE\xc1TE"),
            (b"offset", b"offse\xf4"),
            (b"time", b"tine"),
            (b"names", b"nanes"),
        ):
            self.assertIn(old, whole)
            self.ledger.write_bytes(whole.replace(old, new))
            self.refuses(LedgerDamaged, str(self.ledger), "move it away")
        self.ledger.write_bytes(whole)
        self.open()

    def test_full_disk_at_the_start(self) -> None:
        """That is no reason to throw the ledger away, and is not said to be."""
        writer = self.open()
        self.write(writer, 1, 1)
        writer.close()

        def full(*args, **kwargs):
            raise sqlite3.OperationalError("database or disk is full")

        self.patch(Checkpoint, "write", full)
        error = self.assertRaises(StartError, self.make().open)
        self.assertIn("room on the disk", str(error))
        self.assertNotIsInstance(error, LedgerDamaged)

    def test_no_folder(self) -> None:
        self.log = self.folder / "none" / "log"
        error = self.assertRaises(StartError, self.make().open)
        self.assertIn("No such file", str(error))

    def test_log_cut_shorter_than_its_ledger(self) -> None:
        writer = self.open()
        self.write(writer, 1, 5)
        writer.close()
        data = self.log.read_bytes()
        self.log.write_bytes(b"".join(data.splitlines(keepends=True)[:3]))
        self.refuses(LedgerDamaged, "acknowledged messages are missing")
        self.ledger.unlink()
        self.write(self.open(), 4, 1)

    def test_another_log(self) -> None:
        """A log with the same beginning that is not the one is noticed."""
        writer = self.open()
        self.write(writer, 1, 2)
        data = self.log.read_bytes()
        self.write(writer, 3, 3)
        writer.close()
        self.log.write_bytes(data + b"x" * 1000)
        self.refuses(LedgerDamaged, "not the log")


class Rotation(Case):
    def test_goes_on(self) -> None:
        """A log that was moved away gets no further commit; the ledger carries on."""
        writer = self.open()
        self.write(writer, 1, 3)
        self.log.rename(self.folder / "log.1")
        self.write(writer, 4, 3)
        self.assertEqual(self.sequences(self.folder / "log.1"), [1, 2, 3])
        self.assertEqual(self.sequences(), [4, 5, 6])
        writer.close()
        self.write(self.open(), 7, 1)
        self.assertEqual(self.recovered.read, 0)

    def test_reopen(self) -> None:
        """On SIGHUP it goes on in the new file at once; without a reason it stays."""
        writer = self.open()
        self.write(writer, 1, 3)
        writer.reopen()
        self.log.rename(self.folder / "log.1")
        writer.reopen()
        self.assertEqual(self.log.read_bytes(), b"")
        self.write(writer, 4, 1)
        self.assertEqual(self.sequences(), [4])

    def test_deleted(self) -> None:
        """It goes on, and says what is lost; of an empty log nothing is."""
        with capturedLogs() as said:
            writer = self.open()
            self.log.unlink()
            writer.reopen()
            self.write(writer, 1, 3)
            self.log.rename(self.folder / "log.1")
            self.write(writer, 4, 1)
            size = self.log.stat().st_size
            self.log.unlink()
            self.write(writer, 5, 1)
        self.assertEqual(self.sequences(), [5])
        (event,) = [e for e in said if e["log_level"] is LogLevel.warn]
        self.assertIn(f"was deleted, with {size} bytes", formatEvent(event) or "")

    def test_killed_after_the_move(self) -> None:
        """The rest of the ledger is found in the file that was moved away."""
        writer = self.open()
        self.write(writer, 1, 3)
        self.crash()
        self.log.rename(self.folder / "log-20261124")
        writer = self.open()
        self.write(writer, 4, 1)
        self.assertEqual(self.sequences(), [4])

    def test_killed_and_moved_out_of_sight(self) -> None:
        """If that file is nowhere, it does not start as if there had been nothing."""
        self.write(self.open(), 1, 3)
        self.crash()
        away = Path(self.mktemp())
        self.log.rename(away)
        self.refuses(LedgerDamaged, "begins with log")
        away.rename(self.folder / "log.1")
        self.write(self.open(), 4, 1)

    def test_stopped_and_moved_out_of_sight(self) -> None:
        """After a clean stop the log may go where it likes; out of sight, the start warns."""
        writer = self.open()
        self.write(writer, 1, 3)
        writer.close()
        self.log.unlink()
        with capturedLogs() as events:
            writer = self.open()
        self.write(writer, 4, 1)
        [warning] = self.warnings(events)
        self.assertIn("is not beside it", warning)
        self.assertIn("restore the log from a copy", warning)

    def test_stopped_and_moved_in_sight(self) -> None:
        """A log that was rotated after a clean stop is no reason to warn."""
        writer = self.open()
        self.write(writer, 1, 3)
        writer.close()
        self.log.rename(self.folder / "log.1")
        with capturedLogs() as events:
            self.write(self.open(), 4, 1)
        self.assertEqual(self.warnings(events), [])

    @staticmethod
    def warnings(events: Sequence[LogEvent]) -> list[str]:
        return [formatEvent(e) for e in events if e["log_level"] is LogLevel.warn]

    def test_replaced_by_something(self) -> None:
        """A file that is not empty under the log's name is not written to."""
        writer = self.open()
        self.write(writer, 1, 3)
        self.log.rename(self.folder / "log.1")
        self.log.write_bytes(b"precious\n")
        self.assertRaises(StoreFailed, writer.commit, [entry(A, 4, b"4")])
        self.assertEqual(self.log.read_bytes(), b"precious\n")


class Damage(Case):
    def fill(self, commits: int) -> list[bytes]:
        """Commits of three records each; the log's lines; then a kill."""
        writer = self.open()
        for n in range(commits):
            writer.commit([entry(A, 3 * n + 1, b"aaaa", b"bbbb", b"cccc")])
        self.crash()
        return self.log.read_bytes().splitlines(keepends=True)

    def torn(self, data: bytes, good: int) -> None:
        """A start cuts the log to a length, keeps the rest, and goes on."""
        self.crash()
        before = self.folder
        self.crash()  # so that the next one finds everything as this one did
        self.log.write_bytes(data)
        writer = self.open()
        self.assertEqual(self.log.read_bytes(), data[:good])
        assert self.recovered.kept is not None
        self.assertEqual(self.recovered.kept.read_bytes(), data[good:])
        last = writer.ledger.last(A)
        self.assertEqual(self.sequences(), list(range(1, last + 1)))
        self.write(writer, last + 1, 1)
        self.folder = before

    def test_torn(self) -> None:
        """Every way the last commit can be torn: cut, zeros at its end, beginning, middle."""
        lines = self.fill(3)
        whole, before = b"".join(lines), b"".join(lines[:6])
        last = lines[6:]
        at = len(before)
        first, second = len(last[0]), len(last[1])
        self.torn(whole[:-1], len(whole) - len(last[2]))
        self.torn(whole[: at + 10], at)
        self.torn(whole + bytes(5000), len(whole))
        self.torn(before + bytes(first) + last[1] + last[2], at)
        self.torn(before + last[0] + bytes(second) + last[2], at + first)
        self.torn(before + bytes(first + second) + last[2], at)

    def test_damage_in_the_middle(self) -> None:
        """Damage with two later commits behind it is not cut."""
        lines = self.fill(4)
        for number in (0, 4):
            damaged = lines[:]
            damaged[number] = bytes(len(lines[number]))
            self.log.write_bytes(b"".join(damaged))
            self.refuses(LogDamaged, f"byte {len(b''.join(lines[:number]))}", "Nothing was changed")

    def test_damage_before_the_last_commit(self) -> None:
        """A damaged line that names an earlier commit than the last one is no torn one."""
        lines = self.fill(3)
        for number in (3, 4, 5):
            damaged = lines[:]
            damaged[number] = lines[number].replace(b'"message":"', b'"message":"X')
            self.log.write_bytes(b"".join(damaged))
            self.refuses(LogDamaged)

    def test_missing_or_repeated_lines(self) -> None:
        """A log of good records that is not gapless, or goes back, was tampered with."""
        lines = self.fill(3)
        for damaged in (lines[:1] + lines[2:], lines[:2] + lines[1:], lines[3:6] + lines[:3]):
            self.log.write_bytes(b"".join(damaged))
            self.refuses(StartError)

    def test_torn_in_a_moved_file(self) -> None:
        """A torn end is also cut off in the file that was moved away while the server was dead."""
        self.fill(2)
        moved = self.folder / "log.1"
        self.log.rename(moved)
        data = moved.read_bytes()
        moved.write_bytes(data + b'{"time')
        writer = self.open()
        self.assertEqual(moved.read_bytes(), data)
        self.write(writer, 7, 1)

    def test_lazy(self) -> None:
        """With --sync SECONDS many commits may be torn, so damage is cut off wherever it is."""
        writer = self.open(sync=5)
        for n in range(4):
            writer.commit([entry(A, n + 1, b"x")])
        self.crash()
        lines = self.log.read_bytes().splitlines(keepends=True)
        self.torn(lines[0] + bytes(len(lines[1])) + lines[2] + lines[3], len(lines[0]))


class Lazy(Case):
    def test_syncs_in_time(self) -> None:
        """Commits do not wait for the disk; it is synced when the time is over, busy or idle."""
        writer = self.open(sync=5)
        self.write(writer, 1, 1, B)  # a new file's first commit is synced
        self.disk.calls.clear()
        self.write(writer, 1, 3)
        self.assertNotIn("sync", self.disk.calls)
        self.now += 5
        self.write(writer, 4, 1)
        self.assertEqual(self.disk.calls.count("sync"), 1)
        self.write(writer, 5, 1)
        self.now += 5
        writer.tick()
        self.assertEqual(self.disk.calls.count("sync"), 2)
        self.write(writer, 6, 1)
        writer.close()
        self.assertEqual(self.disk.calls.count("sync"), 3)

    def test_ledger_is_never_ahead_of_the_disk(self) -> None:
        """A checkpoint is made only of what was synced."""
        writer = self.open(sync=1000, checkpoint_bytes=1, checkpoint_seconds=1000)
        self.disk.calls.clear()
        self.write(writer, 1, 1)
        self.assertEqual(self.disk.calls, ["write", "sync"])


class ReserveTest(Case):
    """Room that is set aside behind the log's end."""

    def setUp(self) -> None:
        super().setUp()
        self.reserved = 0  # bytes behind the end, as the disk has them
        self.disk.free = 2 * 1024**3
        self.disk.reserve = self.reserve
        self.disk.release = self.release

    def reserve(self, fd: int, offset: int, count: int) -> None:
        self.reserved = offset + count
        self.disk._fail("reserve")

    def release(self, fd: int) -> None:
        self.reserved = 0

    def test_ahead_of_what_is_written(self) -> None:
        """There is always room ahead, and it is given back at the end."""
        writer = self.open()
        for n in range(1, 12):
            writer.commit([entry(A, n, b"x" * 2**21)])
            self.assertGreaterEqual(self.reserved, writer.size)
        self.assertGreater(writer.size, 16 * 2**20)
        writer.close()
        self.assertEqual(self.reserved, 0)

    def test_given_back_after_a_kill_and_at_a_rotation(self) -> None:
        """What a life had set aside that was killed, and what a file had that is left."""
        writer = self.open()
        self.write(writer, 1, 1)
        self.crash()
        writer = self.open()
        self.assertEqual(self.reserved, 0)
        self.write(writer, 2, 1)
        self.assertGreater(self.reserved, 0)
        self.log.rename(self.folder / "log.1")
        writer.reopen()
        self.assertEqual(self.reserved, 0)
        self.write(writer, 3, 1)
        self.assertGreater(self.reserved, 0)

    def test_not_where_there_is_little(self) -> None:
        """Others may need the room more."""
        self.disk.free = 1024**3 - 1
        self.write(self.open(), 1, 1)
        self.assertEqual(self.reserved, 0)

    def test_a_system_that_cannot(self) -> None:
        """The commit does not need it, and what was set aside of it goes back."""
        self.disk.errors["reserve"] = errno.ENOSPC
        self.write(self.open(), 1, 3)
        self.assertEqual(self.reserved, 0)

    def test_nothing_of_it_can_be_read(self) -> None:
        """On a real disk: neither the length nor the content of a file changes."""
        disk = Disk()
        fd = disk.open(self.log)
        self.addCleanup(disk.close, fd)
        disk.write(fd, b"all")
        disk.reserve(fd, 3, 2**20)
        self.assertEqual((disk.size(fd), self.log.read_bytes()), (3, b"all"))
        disk.write(fd, b" of it")
        disk.release(fd)
        self.assertEqual((disk.size(fd), self.log.read_bytes()), (9, b"all of it"))
