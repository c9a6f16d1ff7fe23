"""Log files of every kind, and those that were rotated away from a log."""

from __future__ import annotations

import bz2
import gzip
import lzma
import os
import subprocess
from pathlib import Path

from twisted.trial.unittest import SynchronousTestCase

from msglog._errors import LogUnreadable
from msglog._logfile import LogFile, open_log, predecessors
from tests.logs import TEN, A, commit, minutes

COMPRESSED = {"gz": gzip.compress, "xz": lzma.compress, "bz2": bz2.compress}


class Case(SynchronousTestCase):
    def setUp(self) -> None:
        self.folder = Path(self.mktemp())
        self.folder.mkdir()

    def write(self, name: str, data: bytes) -> Path:
        path = self.folder / name
        path.write_bytes(data)
        return path

    def open(self, path: Path) -> LogFile:
        file = open_log(path)
        self.addCleanup(file.close)
        return file


class Kinds(Case):
    def kinds(self, data: bytes) -> list[Path]:
        paths = [self.write("log", data)]
        for suffix, compress in COMPRESSED.items():
            paths.append(self.write(f"log.{suffix}", compress(data)))
            # In two members, as after cat a.gz b.gz.
            paths.append(self.write(f"two.{suffix}", compress(data[:1000]) + compress(data[1000:])))
        return paths

    def test_lines(self) -> None:
        """The same lines at the same offsets, whatever the compression."""
        data = minutes(200)
        expected = [(data.index(line), line) for line in data.splitlines(keepends=True)]
        for path in self.kinds(data):
            file = self.open(path)
            record = file.first_record()
            assert record is not None
            self.assertEqual(record.sequence, 1)
            self.assertEqual(list(file.lines()), expected)

    def test_from_an_offset(self) -> None:
        """And from any line on, up to any other."""
        data = minutes(3000)  # several of the blocks that are read at a time
        lines = data.splitlines(keepends=True)
        begin, end = len(b"".join(lines[:2000])), len(b"".join(lines[:2003]))
        for path in self.kinds(data):
            found = self.open(path).lines(begin, end)
            self.assertEqual([line for _, line in found], lines[2000:2003])

    def test_again_from_the_last_read_on(self) -> None:
        """What is read in order can be read again from where the last read began."""
        data = minutes(50)
        for path in self.kinds(data):
            file = self.open(path)
            for offset in (0, 0, 100, 350, 350, len(data) - 5, len(data), len(data) + 5):
                self.assertEqual(file.read(200, offset), data[offset : offset + 200])
        for path in self.kinds(data)[1:]:
            file = self.open(path)
            file.read(10, 100)
            self.assertRaises(ValueError, file.read, 10, 99)

    def test_cut_and_damaged(self) -> None:
        """A compressed file that is cut off gives what it has, and then says so."""
        data = minutes(5000)
        for suffix, compress in COMPRESSED.items():
            path = self.write(f"cut.{suffix}", compress(data)[:-20])
            file, found = self.open(path), []
            error = None
            try:
                for _, line in file.lines():
                    found.append(line)
            except LogUnreadable as e:
                error = str(e)
            self.assertEqual(b"".join(found), data[: len(b"".join(found))])
            assert error is not None
            self.assertIn(f"cut.{suffix}", error)
            if suffix != "bz2":  # all of it is one block, which is good or not
                self.assertGreater(len(found), 1000)

    def test_no_log(self) -> None:
        """What cannot be opened is said in one line with its name and what to do."""
        for path, word in (
            (self.folder / "none", "No such file"),
            (self.folder, "directory"),
            (self.write("z", b"\x28\xb5\x2f\xfd\x00"), "zstdcat"),
        ):
            error = self.assertRaises(LogUnreadable, open_log, path)
            self.assertIn(str(path), str(error))
            self.assertIn(word, str(error))

    def test_pipe(self) -> None:
        """A pipe is read in order, and compressed ones are recognised."""
        data = minutes(10)
        for content in (data, gzip.compress(data)):
            path = self.folder / "pipe"
            os.mkfifo(path)
            with subprocess.Popen(["tee", str(path)], stdin=-1, stdout=-3) as writer:
                assert writer.stdin is not None
                writer.stdin.write(content)
                writer.stdin.close()
                file = self.open(path)
                self.assertEqual((file.size, file.consumed), (None, None))
                self.assertEqual(b"".join(line for _, line in file.lines()), data)
            path.unlink()


class Rotated(Case):
    def setUp(self) -> None:
        super().setUp()
        self.said: list[str] = []
        self.log = self.write("log", minutes(2, first=7))

    def names(self) -> list[str]:
        return [path.name for path in predecessors(self.log, self.said.append)]

    def test_order(self) -> None:
        """Oldest first, whatever their names; not the ledger, nor what was torn, nor folders."""
        self.write("log.1", minutes(2, first=5))
        self.write("log.2.gz", gzip.compress(minutes(2, first=3)))
        self.write("log-20261124.xz", lzma.compress(minutes(2, first=1)))
        self.write("log.ledger", b"SQLite")
        self.write("log.torn-2026", minutes(1, first=4))
        self.write("another", minutes(1))
        (self.folder / "log.d").mkdir()
        self.assertEqual(self.names(), ["log-20261124.xz", "log.2.gz", "log.1"])
        self.assertEqual(self.said, [])

    def test_one_of_each(self) -> None:
        """While a file is compressed, both are there; and a copy of the log is the log."""
        self.write("log.1", minutes(2, first=5))
        self.write("log.1.gz", gzip.compress(minutes(2, first=5))[:-9])
        self.write("log.0.gz", gzip.compress(minutes(2, first=5)))
        self.write("log.copy", self.log.read_bytes())
        self.assertEqual(self.names(), ["log.1"])

    def test_passed_over(self) -> None:
        """What looks like a rotated file and is none is passed over, and said."""
        self.write("log.1", b"no record\n")
        self.write("log.2.gz", gzip.compress(minutes(9))[:15])
        self.write("log.3", b"")
        self.assertEqual(self.names(), [])
        self.assertEqual(len(self.said), 2)
        self.assertIn("log.1 is passed over: its first line is no record", "".join(self.said))

    def test_no_log_yet(self) -> None:
        """Just after a rotation there may be no log of the name."""
        self.log.rename(self.folder / "log.1")
        self.assertEqual(self.names(), ["log.1"])

    def test_name_with_stars(self) -> None:
        """A log's name is no pattern."""
        self.log = self.write("l[o]g*", commit(TEN + 1, (A, 2, [b""])))
        self.write("l[o]g*.1", commit(TEN, (A, 1, [b""])))
        self.assertEqual(self.names(), ["l[o]g*.1"])
