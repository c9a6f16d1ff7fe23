"""
What must never be the other way round: the ledger's file knows only what is on the disk, a start
takes only what is whole, and a log that cannot be begun now is begun later.
"""

from __future__ import annotations

import errno
import os
import shutil
import sqlite3
from contextlib import closing

from msglog import LedgerDamaged, LogDamaged, LogLocked, NackCode, StoreFailed
from msglog._batch import STORED
from msglog._frames import message_checksum
from msglog._records import Record, format_line
from msglog._writer import Asking, LogWriter
from msglog.testing import FaultyDisk

from .test_writer import A, B, entry
from .test_writer import Case as WriterCase


class Killed(BaseException):
    """The process ends here."""


def clients(count: int) -> list[bytes]:
    return [number.to_bytes(16, "big") for number in range(1, count + 1)]


class Case(WriterCase):
    def refused(self, results: list, expected: int) -> None:
        ((refusal,),) = [verdict.refusals for verdict in results]
        self.assertEqual((refusal.code, refusal.expected), (NackCode.NOT_STORED, expected))

    def rotate(self, name: str = "log.1") -> None:
        self.log.rename(self.folder / name)

    def log_again(self, writer: LogWriter, first: int, last: int, client: bytes = A) -> None:
        """A resend is acknowledged, and is in the files just once."""
        bodies = [b"%d" % sequence for sequence in range(first, last + 1)]
        self.assertEqual(writer.commit([entry(client, first, *bodies)]), [STORED])
        beside = self.folder.glob("log*")
        files = [p for p in beside if ".ledger" not in p.name and ".torn-" not in p.name]
        logged = sorted(
            record.sequence
            for path in files
            for record in self.records(path)
            if record.client == client
        )
        self.assertEqual(logged, list(range(1, last + 1)))


class RotationInACommit(Case):
    """The log was moved away, and the commit that notices it fails or is killed."""

    def test_full_disk(self) -> None:
        """What was refused is not in the ledger, whatever else is written there."""
        writer = self.open()
        self.write(writer, 1, 3)
        self.rotate()
        self.disk.room = 0
        self.refused(writer.commit([entry(A, 4, b"4")]), 4)
        self.disk.room = None
        writer.close()
        writer = self.open()
        self.assertEqual(writer.commit([Asking(A)]), [3])
        self.log_again(writer, 4, 4)

    def test_killed_before_the_write(self) -> None:
        """The same if there is no time to refuse it."""
        writer = self.open()
        self.write(writer, 1, 3)
        self.rotate()

        def write(fd: int, data: bytes) -> int:
            raise Killed

        self.patch(self.disk, "write", write)
        self.assertRaises(Killed, writer.commit, [entry(A, 4, b"4")])
        self.disk = FaultyDisk()
        self.crash()
        writer = self.open()
        self.assertEqual(writer.commit([Asking(A)]), [3])
        self.log_again(writer, 4, 4)

    def test_no_new_file(self) -> None:
        """A new log that cannot be begun is no reason to stop: it is tried again."""
        for number in (errno.ENOSPC, errno.EMFILE, errno.EACCES):
            writer = self.open()
            first = writer.commit([Asking(A)])[0] + 1
            self.write(writer, first, 1)
            self.rotate(f"log.{number}")
            self.disk.errors["open"] = number
            self.refused(writer.commit([entry(A, first + 1, b"no")]), first + 1)
            writer.reopen()  # SIGHUP does not stop it either
            del self.disk.errors["open"]
            self.write(writer, first + 1, 1)
            self.assertEqual(self.sequences(), [first + 1])
            writer.close()

    def test_ledger_full(self) -> None:
        """Nor is a ledger that cannot be written."""
        writer = self.open()
        self.write(writer, 1, 1)
        self.rotate()
        writer._checkpointer._checkpoint._db.execute("PRAGMA query_only=ON")
        self.refused(writer.commit([entry(A, 2, b"2")]), 2)
        writer.reopen()
        writer._checkpointer._checkpoint._db.execute("PRAGMA query_only=OFF")
        self.write(writer, 2, 1)
        self.assertEqual(self.sequences(), [2])

    def test_folder_does_not_sync(self) -> None:
        """An error of the disk is fail-stop; the file that was begun is let go of."""
        writer = self.open()
        self.write(writer, 1, 1)
        self.rotate()
        self.disk.errors["sync_folder"] = errno.EIO
        with self.assertRaises(Exception):  # noqa: B017 - StoreFailed, see the writer's tests
            writer.reopen()
        writer.close()
        self.disk.errors.clear()
        self.assertEqual(self.open().commit([Asking(A)]), [1])

    def test_moved_back(self) -> None:
        """A log that is put back goes on, and a start looks for its rest as before."""
        writer = self.open()
        self.write(writer, 1, 3)
        self.rotate()
        self.disk.errors["open"] = errno.ENOSPC
        self.refused(writer.commit([entry(A, 4, b"4")]), 4)
        del self.disk.errors["open"]
        (self.folder / "log.1").rename(self.log)
        self.write(writer, 4, 3)
        self.crash()
        self.rotate()
        writer = self.open()
        self.assertEqual(writer.commit([Asking(A)]), [6])
        self.log_again(writer, 4, 6)

    def test_names_reach_the_disk_in_order(self) -> None:
        """The moved log has its new name for good before another file gets its old one."""
        plain = self.disk.open
        made = []

        def open(path) -> int:
            if not path.exists():
                made.append(self.disk.calls[-1])
            return plain(path)

        self.patch(self.disk, "open", open)
        writer = self.open()
        self.write(writer, 1, 1)
        self.rotate()
        self.write(writer, 2, 1)
        self.crash()
        self.rotate("log.2")
        self.open()
        self.assertEqual(made, ["sync_folder"] * 3)

    def test_killed_in_the_first_commit(self) -> None:
        """A file that the ledger was not told of, moved away: its messages are not there twice."""
        writer = self.open()
        self.disk.errors["sync"] = errno.EIO
        self.assertRaises(StoreFailed, writer.commit, [entry(A, 1, b"1", b"2", b"3")])
        self.disk.errors.clear()
        self.crash()
        with self.log.open("rb+") as log:
            log.truncate(self.log.stat().st_size - 5)
        self.rotate()
        # Neither an older file of it nor another server's is taken for it.
        (self.folder / "log-other").write_bytes(
            b"".join(format_line(Record(n, B, n, message_checksum(B, n, b""), b"")) for n in (1, 2))
        )
        writer = self.open()
        self.assertEqual(writer.commit([Asking(A), Asking(B)]), [2, 0])
        self.log_again(writer, 1, 3)


class LedgerAndDisk(Case):
    def test_many_clients_in_the_first_commit(self) -> None:
        """More than the ledger may have in memory, when a file is begun: each is remembered."""
        writer = self.open(ledger_memory=1 << 20)
        every = clients(3000)
        for _ in range(2):
            self.assertEqual(writer.commit([entry(c, 1, b"1") for c in every]), [STORED] * 3000)
        self.assertEqual(len(self.records()), 3000)
        writer.close()
        self.assertEqual(self.open().commit([Asking(c) for c in every]), [1] * 3000)

    def test_many_clients_and_a_rotation(self) -> None:
        """The same when the ledger is full and the file changes."""
        writer = self.open(ledger_memory=1 << 20)
        every = clients(2500)
        for start in range(0, 2200, 100):
            writer.commit([entry(c, 1, b"1") for c in every[start : start + 100]])
        self.rotate()
        new = [entry(c, 2, b"2") for c in every[:200]] + [entry(c, 1, b"1") for c in every[2200:]]
        self.assertEqual(writer.commit(new), [STORED] * len(new))
        writer.close()
        lasts = self.open().commit([Asking(c) for c in every])
        self.assertEqual(lasts, [2] * 200 + [1] * 2300)

    def test_a_defect_in_a_commit(self) -> None:
        """What was staged when a commit broke off is saved by nothing that follows."""
        writer = self.open()
        self.write(writer, 1, 3)

        def write(data: bytes) -> None:
            raise MemoryError

        writer._write = write
        self.assertRaises(MemoryError, writer.commit, [entry(A, 4, b"4")])
        writer.close()
        writer = self.open()
        self.assertEqual(writer.commit([Asking(A)]), [3])
        self.log_again(writer, 4, 4)

    def test_lazy_rows_are_never_ahead(self) -> None:
        """With --sync SECONDS: what a step of a checkpoint writes is synced before."""
        writer = self.open(sync=1000.0, checkpoint_seconds=10)
        every = clients(600)
        writer.commit([entry(c, 1, b"1") for c in every])
        self.now += 11
        last = every[-1]
        synced = []
        sync = self.disk.sync
        self.patch(self.disk, "sync", lambda fd: (sync(fd), synced.append(self.log.stat().st_size)))
        for sequence in range(2, 5):
            writer.tick()
            writer.commit([entry(last, sequence, b"%d" % sequence)])
        self.idle(writer)
        # A power cut takes what was not synced.
        self.crash()
        os.truncate(self.log, synced[-1])
        writer = self.open(sync=1000.0)
        self.assertEqual(
            writer.commit([Asking(last)]), [sum(r.client == last for r in self.records())]
        )


class Starts(Case):
    def test_a_copy_beside_the_rotated_log(self) -> None:
        """The rest of the log is read from the log, not from a copy made earlier."""
        writer = self.open(checkpoint_seconds=1e6)
        self.write(writer, 1, 3)
        writer._save(durable=True, complete=False)
        shutil.copy(self.log, self.folder / "log-backup")
        self.write(writer, 4, 3)
        self.crash()
        self.rotate()
        writer = self.open()
        self.assertEqual(writer.commit([Asking(A)]), [6])

    def test_a_cut_rotated_log(self) -> None:
        """One that lacks what the ledger knows of is not taken for the log."""
        writer = self.open(checkpoint_seconds=1e6)
        self.write(writer, 1, 3)
        writer._save(durable=True, complete=False)
        self.write(writer, 4, 3)
        self.crash()
        data = self.log.read_bytes()
        self.log.unlink()
        (self.folder / "log.1").write_bytes(data[: len(data) // 3])
        self.refuses(LedgerDamaged, "nor whole beside it")
        (self.folder / "log.1").write_bytes(data)
        self.assertEqual(self.open().commit([Asking(A)]), [6])

    def test_rotated_files_are_synced(self) -> None:
        """What a killed server wrote to a file that was then moved is on the disk first, too."""
        self.write(self.open(), 1, 3)
        self.crash()
        self.rotate()
        synced = []
        sync = self.disk.sync

        def note(fd: int) -> None:
            synced.append(os.path.basename(os.readlink(f"/proc/self/fd/{fd}")))
            sync(fd)

        self.patch(self.disk, "sync", note)
        self.assertEqual(self.open().commit([Asking(A)]), [3])
        self.assertIn("log.1", synced)

    def test_damage_after_a_clean_stop(self) -> None:
        """A log of one commit whose first line was damaged later is refused, and not cut."""
        writer = self.open()
        self.assertEqual(writer.commit([entry(A, 1, *[b"x"] * 100)]), [STORED])
        writer.close()
        whole = self.log.read_bytes()
        for at in (0, 20, 50, 118):
            data = bytearray(whole)
            data[at] ^= 1
            self.log.write_bytes(data)
            self.refuses(LogDamaged, "damaged at byte 0")
        # Nor is one that is gone altogether, whatever copy of its beginning is beside it.
        (self.folder / "log-copy").write_bytes(whole[: len(whole) // 2])
        self.log.write_bytes(bytes(len(whole)))
        self.refuses(LogDamaged, "damaged at byte 0")
        self.log.write_bytes(whole)
        self.assertEqual(self.open().commit([Asking(A)]), [100])

    def test_torn_first_commit_of_a_new_file(self) -> None:
        """A new file that a crash tore in its first commit is no damage."""
        writer = self.open()
        self.write(writer, 1, 50)
        writer.close()
        line = self.log.read_bytes().splitlines(keepends=True)[-1]
        size = self.log.stat().st_size
        self.rotate()
        later = line.replace(line[9:36], b"2030-01-01T00:00:00.000000Z")
        # The beginning is not there, the end of the commit is; or only its length is.
        for torn in (later[:60], bytes(100), bytes(512) + b"\n" + later, bytes(2 * size)):
            self.log.write_bytes(torn)
            writer = self.open()
            self.assertIsNotNone(self.recovered.kept)
            self.assertEqual(writer.commit([Asking(A)]), [50])
            writer.close()
            self.now += 1

    def test_another_server_beside(self) -> None:
        """A start without a ledger does not touch a log that another server is writing."""
        self.now += 1000
        writer = self.open()
        self.write(writer, 1, 2)
        writer.close()
        ours, self.log = self.log, self.folder / "log.2"
        self.now -= 1000
        self.write(self.open(), 1, 2, B)
        with self.log.open("ab") as other:
            other.write(b'{"time":"2026-')
        size = self.log.stat().st_size
        self.log = ours
        self.ledger.unlink()
        self.refuses(LogLocked, "log.2", "another name")
        self.assertEqual((self.folder / "log.2").stat().st_size, size)

    def test_torn_end_on_a_full_disk(self) -> None:
        """A start that cannot keep a torn end aside leaves no part of it, however often."""
        self.write(self.open(), 1, 3)
        self.crash()
        with self.log.open("ab") as log:
            log.write(b'{"time":"2026-' * 3)
        for _ in range(3):
            self.disk.room = 5
            self.now += 1
            with self.assertRaises(Exception) as caught:
                self.open()
            self.assertIn("No space left", str(caught.exception))
        self.assertEqual([p for p in self.folder.iterdir() if "torn" in p.name], [])


class Checkpoints(Case):
    def test_the_ledger_does_not_keep_long_lines(self) -> None:
        """However long the first message is, the ledger names the file by a few bytes."""
        writer = self.open(max_message_bytes=1 << 20)
        writer.commit([entry(A, 1, bytes(1 << 20))])
        self.write(writer, 2, 1)
        writer.close()
        self.assertLess(self.ledger.stat().st_size, 64 * 1024)
        with closing(sqlite3.connect(self.ledger)) as db:
            (file,) = db.execute("SELECT value FROM meta WHERE key = 'file'").fetchone()
        self.assertEqual(len(file), 32)
        self.assertEqual(self.open().commit([Asking(A)]), [2])

    def test_steps_are_short(self) -> None:
        """A checkpoint of many clients is done in steps also when there is nothing to commit."""
        writer = self.open(checkpoint_seconds=10)
        writer.commit([entry(c, 1, b"1") for c in clients(2000)])
        self.now += 11
        steps = 1
        while writer.tick():
            steps += 1
        self.assertEqual(steps, 9)
        self.assertEqual(writer.ledger.dirty, {})
