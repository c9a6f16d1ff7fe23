"""Rotation by the server itself: what it leaves, when it cannot, and a kill in each step."""

from __future__ import annotations

import errno
import shutil
from pathlib import Path

from twisted.trial.unittest import SynchronousTestCase

from msglog import Limits, LogDamaged, NackCode, StoreFailed
from msglog._batch import STORED
from msglog._frames import message_checksum
from msglog._logfile import predecessors
from msglog._records import Record, format_line
from msglog._rotation_rule import RotationRule
from msglog._writer import Asking, LogWriter
from msglog.testing import FaultyDisk

from .test_writer import A, B, entry
from .test_writer import Case as WriterCase

DAY = 86400.0


class Case(WriterCase):
    rule = RotationRule(max_bytes=200)  # two records

    def make(self, sync: float = 0.0, **limits) -> LogWriter:
        writer = super().make(sync, **limits)
        writer._rotation = self.rule
        return writer

    def rotated(self) -> list[Path]:
        """The files that were rotated away, in the order of their names."""
        return sorted(self.folder.glob("log.[0-9]*"))

    def every(self) -> list[int]:
        """The sequences of all files in order; a reader finds the files in that order too."""
        files = [path for path in self.rotated() if path.stat().st_size]
        self.assertEqual(predecessors(self.log, lambda remark: None), files)
        return [n for path in [*files, self.log] for n in self.sequences(path)]


class BySize(Case):
    def test_goes_on(self) -> None:
        """Full files are left between two commits; order, ledger and restarts carry on."""
        writer = self.open()
        self.write(writer, 1, 9)
        self.assertEqual(len(self.rotated()), 4)
        self.assertEqual(self.every(), list(range(1, 10)))
        self.assertEqual(self.sequences(), [9])
        writer.close()
        writer = self.open()
        self.assertEqual(self.recovered.read, 0)
        self.assertEqual(writer.commit([entry(A, 9, b"9"), Asking(A)]), [STORED, 9])
        self.write(writer, 10, 3)
        self.assertEqual(self.every(), list(range(1, 13)))

    def test_a_long_commit_is_not_cut(self) -> None:
        """A commit is never in two files."""
        writer = self.open()
        writer.commit([entry(A, 1, *[b"x"] * 50)])
        writer.commit([entry(A, 51, b"x")])
        self.assertEqual(self.sequences(self.rotated()[0]), list(range(1, 51)))

    def test_names_sort_by_time_when_the_clock_goes_back(self) -> None:
        writer = self.open()
        for sequence in range(1, 20):
            self.write(writer, sequence, 1)
            self.now -= 1000
        self.assertEqual(self.every(), list(range(1, 20)))
        writer.close()

    def test_names_sort_by_time_when_it_goes_back_between_two(self) -> None:
        """Also if the first of the two files was left while nothing came."""
        writer = self.open()
        self.write(writer, 1, 2)
        self.now += 1000
        writer.tick()
        self.now -= 1000
        self.write(writer, 3, 3)
        self.assertEqual(self.every(), [1, 2, 3, 4, 5])

    def test_old_files_are_not_needed(self) -> None:
        """After a rotation the old file may go where it likes, whatever becomes of the server."""
        writer = self.open()
        self.write(writer, 1, 2)
        writer.tick()
        self.crash()
        (old,) = self.rotated()
        old.unlink()
        self.write(self.open(), 3, 1)

    def test_nothing_is_overwritten(self) -> None:
        """A name that is taken is left alone; the rotation is put off."""
        writer = self.open()
        self.write(writer, 1, 2)
        taken = self.folder / "log.1970-01-12T134640.000002Z"
        taken.write_bytes(b"precious")
        self.write(writer, 3, 1)
        self.assertEqual(taken.read_bytes(), b"precious")
        self.assertEqual(self.sequences(), [1, 2, 3])
        self.now += 61
        self.write(writer, 4, 1)
        self.assertEqual(self.sequences(), [4])

    def test_moved_by_somebody_else_meanwhile(self) -> None:
        """Rotation by logrotate goes on as without a rule."""
        writer = self.open()
        self.write(writer, 1, 2)
        self.log.rename(self.folder / "log.1")
        writer.tick()
        self.assertFalse(self.log.exists())
        self.write(writer, 3, 1)
        self.assertEqual(self.rotated(), [self.folder / "log.1"])
        self.assertEqual(self.sequences(), [3])

    def test_lost_ledger(self) -> None:
        """It is made again from all the files."""
        writer = self.open()
        self.write(writer, 1, 9)
        writer.close()
        self.ledger.unlink()
        writer = self.open()
        self.assertEqual(self.recovered.records, 9)
        self.assertEqual(writer.commit([Asking(A)]), [9])

    def test_older_ledger(self) -> None:
        """
        One that was put back from a copy is brought up to date from every file since, whatever has
        become of the log: nothing is logged twice.
        """
        writer = self.open()
        writer.close()
        copies = [self.ledger.read_bytes()]  # which knows no file
        self.write(self.open(), 1, 3)
        self.writers[-1].close()
        copies.append(self.ledger.read_bytes())
        self.write(self.open(), 4, 1)
        self.writers[-1].close()  # the file that this copy knows is full
        copies.append(self.ledger.read_bytes())
        self.write(self.open(), 5, 5)
        self.writers[-1].close()
        self.assertGreater(len(self.rotated()), 1)
        for emptied in (False, True):
            if emptied:
                self.log.rename(self.folder / "log.1")
            for copy in copies:
                self.ledger.write_bytes(copy)
                writer = self.open()
                last = [entry(A, n, str(n).encode()) for n in range(1, 10)]
                self.assertEqual(writer.commit([*last, Asking(A)]), [STORED] * 9 + [9])
                writer.close()
                self.assertEqual(self.every_once(), list(range(1, 10)))

    def test_older_ledger_and_others(self) -> None:
        """Another log whose name begins alike, and copies, are not taken for what came between."""
        self.write(self.open(), 1, 2)
        self.writers[-1].close()
        older = self.ledger.read_bytes()
        self.write(self.open(), 3, 7)
        self.writers[-1].close()
        for path in self.rotated():
            line = path.read_bytes().splitlines(keepends=True)[0]
            (self.folder / f"log-{path.name[4:]}").write_bytes(line)  # made when it was shorter
        self.a_log("log-other", 4, 1, 2)
        self.ledger.write_bytes(older)
        writer = self.open()
        self.assertEqual(writer.commit([Asking(A), Asking(B)]), [9, 0])

    def a_log(self, name: str, first: int, *sequences: int) -> None:
        """Another file of records of B, one a microsecond, the first so many after the start."""
        start = int(self.now * 1e6) + first
        records = [
            Record(start + at, B, n, message_checksum(B, n, b""), b"")
            for at, n in enumerate(sequences)
        ]
        (self.folder / name).write_bytes(b"".join(map(format_line, records)))

    def test_older_ledger_and_another_log(self) -> None:
        """One whose name begins alike, with a number: its ledger tells its files from ours."""
        self.open().close()  # a ledger that knows of nothing
        self.a_log("log-2", 5, 8, 9)
        self.a_log("log-2.1", 1, 1, 2)
        self.a_log("log-2.2026-11-24T000000.000000Z", 3, 3, 4)
        (self.folder / "log-2.ledger").touch()
        self.assertEqual(self.open().commit([Asking(B)]), [0])

    def test_archives_beside_an_empty_log(self) -> None:
        """A ledger that knows of no message is none: older files may have been deleted."""
        self.open().close()
        self.a_log("log-20261124", 1, 7, 8)
        self.assertEqual(self.open().commit([Asking(B)]), [8])

    def test_older_ledger_and_a_torn_first_commit(self) -> None:
        """What was rotated away counts also if nothing of the log itself is whole."""
        self.open().close()
        older = self.ledger.read_bytes()
        self.write(self.open(), 1, 2)
        self.writers[-1].close()
        self.log.rename(self.folder / "log.1")
        self.log.write_bytes(b'{"time":"20')
        self.ledger.write_bytes(older)
        self.assertEqual(self.open().commit([Asking(A)]), [2])

    def test_an_extract_beside_it(self) -> None:
        """What was copied out of the log is in it; no start stumbles over that."""
        writer = self.open()
        self.write(writer, 1, 1)
        writer._save(durable=True, complete=False)
        writer.commit([entry(A, 2, b"2")])
        last = self.log.read_bytes().splitlines(keepends=True)[-1]
        for name in ("log.last", "log-20261124"):
            (self.folder / name).write_bytes(last)
        self.crash()
        self.log.rename(self.folder / "log.1")
        self.assertEqual(self.open().commit([Asking(A)]), [2])

    def test_archived_and_protected(self) -> None:
        """A log that was moved away whole is not opened to be written, nor locked."""
        writer = self.open()
        self.write(writer, 1, 1)
        writer.close()
        self.log.rename(self.folder / "log.1")
        opened, paths = self.disk.open, []
        self.disk.open = lambda path: (paths.append(path), opened(path))[1]
        self.write(self.open(), 2, 1)
        self.assertEqual(paths, [self.log])

    def test_later_but_no_part(self) -> None:
        """What is taken for a later file and does not follow is named, with what to do."""
        writer = self.open()
        self.write(writer, 1, 1)
        writer.close()
        self.log.rename(self.folder / "log.1")
        self.a_log("log.2", 100, 5)
        with self.assertRaisesRegex(LogDamaged, "log.2 is later .* move it away from here"):
            self.open()

    def every_once(self) -> list[int]:
        files = [path for path in self.folder.glob("log*") if path.suffix != ".ledger"]
        return sorted(n for path in files for n in self.sequences(path))

    def test_lazy(self) -> None:
        """With --sync SECONDS the old file is synced before it is left."""
        writer = self.open(sync=1000)
        self.write(writer, 1, 2)
        self.disk.calls.clear()
        self.write(writer, 3, 1)
        self.assertEqual(self.disk.calls[0], "sync")
        self.assertEqual(self.sequences(), [3])


class ByTime(Case):
    rule = RotationRule(period="daily")

    def test_in_a_commit(self) -> None:
        """A file holds the records of one day, over a restart as well."""
        writer = self.open()
        self.write(writer, 1, 3)
        self.now += DAY
        self.write(writer, 4, 2)
        self.assertEqual(self.sequences(), [4, 5])
        writer.close()
        self.now += DAY
        self.write(self.open(), 6, 1)
        self.assertEqual(self.sequences(), [6])
        self.assertEqual(self.every(), [1, 2, 3, 4, 5, 6])

    def test_when_idle(self) -> None:
        """The day's file is finished when it is over, also if nothing comes; an empty one stays."""
        writer = self.open()
        self.write(writer, 1, 1)
        for _ in range(3):
            self.now += DAY
            writer.tick()
        self.assertEqual(self.log.read_bytes(), b"")
        self.assertEqual(len(self.rotated()), 1)


class Impossible(Case):
    """A rotation that cannot be done now is said once, and done later; the log goes on."""

    def go_on(self, writer: LogWriter, first: int) -> None:
        self.write(writer, first, 4)
        self.assertEqual(self.sequences(), list(range(1, first + 4)))
        self.assertEqual([p for p in self.rotated() if p.stat().st_size], [])

    def test_calls(self) -> None:
        for call, number in [
            ("take_name", errno.ENOSPC),
            ("take_name", errno.EACCES),
            ("rename", errno.EACCES),
            ("rename", errno.EIO),
        ]:
            self.setUp()
            said: list = []
            writer = self.open()
            self.patch(writer, "_log", Said(said))
            self.write(writer, 1, 2)
            self.disk.errors = {call: number}
            self.go_on(writer, 3)
            self.now += 61
            self.go_on(writer, 7)
            self.assertEqual(len(said), 1)
            self.disk.errors = {}
            self.now += 61
            self.write(writer, 11, 1)
            self.assertEqual(self.sequences(), [11])
            self.assertEqual(self.every(), list(range(1, 12)))

    def test_full_ledger(self) -> None:
        writer = self.open()
        self.write(writer, 1, 2)
        writer._checkpointer._checkpoint._db.execute("PRAGMA query_only=ON")
        self.go_on(writer, 3)
        writer._checkpointer._checkpoint._db.execute("PRAGMA query_only=OFF")
        self.now += 61
        self.write(writer, 7, 1)
        self.assertEqual(self.sequences(), [7])

    def test_no_new_file(self) -> None:
        """If no new log can be made, the old one gets its name back."""
        writer = self.open()
        self.write(writer, 1, 2)
        self.disk.errors = {"open": errno.ENOSPC}
        self.go_on(writer, 3)
        self.disk.errors = {}
        self.crash()
        self.assertEqual(self.open().commit([Asking(A)]), [6])

    def test_no_new_file_and_no_way_back(self) -> None:
        """Without a log nothing is taken, and it goes on when there can be one."""
        writer = self.open()
        self.write(writer, 1, 2)
        self.disk.errors = {"open": errno.ENOSPC}
        rename = self.disk.rename

        def once(old: Path, new: Path) -> None:
            rename(old, new)
            self.disk.errors["rename"] = errno.EIO

        self.disk.rename = once
        for _ in range(2):
            (verdict,) = writer.commit([entry(A, 3, b"3")])
            self.assertEqual(verdict.refusals[0].code, NackCode.NOT_STORED)
        self.disk.errors = {}
        self.write(writer, 3, 1)
        self.assertEqual(self.every(), [1, 2, 3])

    def test_failing_disk(self) -> None:
        """What is said of a folder's sync is fail-stop, as of any other; the next start has all."""
        writer = self.open()
        self.write(writer, 1, 2)
        self.disk.errors = {"sync_folder": errno.EIO}
        self.assertRaises(StoreFailed, writer.commit, [entry(A, 3, b"3")])
        self.assertRaises(StoreFailed, writer.commit, [entry(A, 3, b"3")])
        self.disk.errors = {}
        self.crash()
        self.write(self.open(), 3, 1)
        self.assertEqual(self.every(), [1, 2, 3])


class Said:
    """A logger that keeps errors."""

    def __init__(self, errors: list) -> None:
        self.errors = errors

    def error(self, format: str, **values: object) -> None:
        self.errors.append(format.format(**values))

    def info(self, format: str, **values: object) -> None:
        format.format(**values)


class Keep(Case):
    rule = RotationRule(max_bytes=200, keep=2)

    def test_deletes_the_oldest(self) -> None:
        writer = self.open()
        self.write(writer, 1, 5)
        other = self.folder / "log.1"
        other.write_bytes(self.rotated()[0].read_bytes())
        self.write(writer, 6, 6)
        own = [path for path in self.rotated() if path != other]
        self.assertEqual([self.sequences(path) for path in own], [[7, 8], [9, 10]])
        self.assertTrue(other.exists())
        self.assertEqual(writer.commit([Asking(A)]), [11])

    def test_not_what_the_ledger_has_not(self) -> None:
        """A file whose last record the ledger does not know, or that ends in none, stays."""
        writer = self.open()
        self.write(writer, 1, 3)
        unknown, broken = (self.folder / f"log.1970-01-0{n}T000000.000000Z" for n in (1, 2))
        elsewhere = self.folder / "elsewhere"
        with_b = LogWriter(elsewhere, Limits(), clock=lambda: 1.0)
        with_b.open()
        with_b.commit([entry(B, 1, b"b")])
        with_b.close()
        unknown.write_bytes(elsewhere.read_bytes())
        broken.write_bytes(elsewhere.read_bytes()[:-1])
        self.write(writer, 4, 8)
        self.assertTrue(unknown.exists())
        self.assertTrue(broken.exists())
        self.assertEqual(len(self.rotated()), 4)

    def test_cannot_delete(self) -> None:
        """That is said, and tried again."""
        said: list = []
        writer = self.open()
        self.patch(writer, "_log", Said(said))
        self.disk.errors = {"remove": errno.EACCES}
        self.write(writer, 1, 9)
        self.assertEqual(len(self.rotated()), 4)
        self.assertIn("cannot delete", said[0])
        self.disk.errors = {}
        self.write(writer, 10, 2)
        self.assertEqual(len(self.rotated()), 2)


class Killed(BaseException):
    """The process ends here."""


class KillingDisk(FaultyDisk):
    """
    Ends the process before or after its Nth call that changes or syncs anything.

    @ivar countdown: the number of such calls that are left; 0: never.
    """

    countdown = 0
    after = False

    def _call(self, name: str) -> None:
        super()._call(name)
        if self.countdown and not self.after:
            self._count()

    def _count(self) -> None:
        self.countdown -= 1
        if not self.countdown:
            raise Killed


def _counted_after(name: str):
    plain = getattr(FaultyDisk, name)

    def call(self, *arguments):
        result = plain(self, *arguments)
        if self.countdown and self.after:
            self._count()
        return result

    return call


for _name in ("write", "sync", "cut", "take_name", "rename", "remove", "sync_folder"):
    setattr(KillingDisk, _name, _counted_after(_name))


class KilledInEachStep(SynchronousTestCase):
    """
    A commit that rotates, ended in every place; the next start, and the same messages again.

    For every place the ledger's file is in one of two states: as it was left, or as it was when
    the server began, as a power cut may bring it back.
    """

    def test_every_step(self) -> None:
        for keep in (0, 1):
            for after in (False, True):
                steps = 0
                for number in range(1, 40):
                    if not self.kill(number, after, keep):
                        break
                    steps += 1
                else:
                    self.fail("a rotation of forty steps")
                # Name, rename, two syncs of the folder, three of the log, a write; a deletion.
                self.assertGreaterEqual(steps, 6 + bool(keep))

    def kill(self, number: int, after: bool, keep: int) -> bool:
        """Whether there was such a step."""
        folder = Path(self.mktemp())
        folder.mkdir()
        rule = RotationRule(max_bytes=200, keep=keep)
        disk = KillingDisk()
        disk.after = after
        now = 1_000_000.0
        writer = LogWriter(folder / "log", Limits(), rotation=rule, disk=disk, clock=lambda: now)
        writer.open()
        self.addCleanup(writer._abandon)
        for sequence in range(1, 9):  # four files
            self.assertEqual(writer.commit([entry(A, sequence, b"%d" % sequence)]), [STORED])
        before = self.ledger_files(folder)
        disk.countdown = number
        try:
            writer.commit([entry(A, 9, b"9"), entry(B, 1, b"1")])
            killed = False
        except Killed:
            killed = True
        for ledger in (self.ledger_files(folder), before):
            again = Path(self.mktemp())
            shutil.copytree(folder, again)
            for path in again.glob("log.ledger*"):
                path.unlink()
            for name, data in ledger.items():
                (again / name).write_bytes(data)
            self.recover(again, range(1, 8) if keep else range(1, 2))
        return killed

    def ledger_files(self, folder: Path) -> dict[str, bytes]:
        names = ("log.ledger", "log.ledger-wal")
        return {n: (folder / n).read_bytes() for n in names if (folder / n).exists()}

    def recover(self, folder: Path, oldest: range) -> None:
        rule = RotationRule(max_bytes=200)
        writer = LogWriter(folder / "log", Limits(), rotation=rule, clock=lambda: 1_000_000.0)
        writer.open()
        try:
            self.assertGreaterEqual(writer.commit([Asking(A)])[0], 8)
            for sequence in range(1, 12):  # some of it once more
                self.assertEqual(
                    writer.commit([entry(A, sequence, b"%d" % sequence)]), [STORED], sequence
                )
            self.assertEqual(writer.commit([entry(B, 1, b"1")]), [STORED])
        finally:
            writer.close()
        files = [*predecessors(folder / "log", lambda remark: None), folder / "log"]
        lines = b"".join(path.read_bytes() for path in files).splitlines()
        sequences = [int(line.split(b'"seq":')[1].split(b",")[0]) for line in lines]
        clients = [line.split(b'"client":"')[1][:36] for line in lines]
        of_a = [n for n, client in zip(sequences, clients, strict=True) if client == clients[0]]
        self.assertEqual(of_a, list(range(of_a[0], 12)))
        self.assertIn(of_a[0], oldest)
        self.assertEqual(len(sequences) - len(of_a), 1)
