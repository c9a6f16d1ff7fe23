"""Places in a log: found by time and from the end, with few reads."""

from __future__ import annotations

import gzip
from pathlib import Path

from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from msglog import _seeking as seeking
from msglog._logfile import LogFile, open_log
from msglog._seeking import last_offset, offset_of_time
from msglog._torn import said_time
from tests.logs import SECOND, TEN, A, commit, minutes


class Case(SynchronousTestCase):
    def setUp(self) -> None:
        # Small, so that a small log is bisected.
        self.patch(seeking, "_NEAR_BYTES", 300)
        self.patch(seeking, "_LOOK_BYTES", 200)
        self.patch(seeking, "_BACK_BYTES", 150)
        self.folder = Path(self.mktemp())
        self.folder.mkdir()

    def open(self, data: bytes, name: str = "log") -> LogFile:
        path = self.folder / name
        path.write_bytes(data)
        return open_log(path)


def first_not_before(data: bytes, time: int) -> int:
    """What is to be found, by reading everything."""
    offset = 0
    for line in data.splitlines(keepends=True):
        said = said_time(line)
        if said is not None and said >= time:
            return offset
        offset += len(line)
    return len(data)


class ByTime(Case):
    @settings(deadline=None)
    @given(
        st.lists(st.tuples(st.integers(0, 3), st.integers(0, 500), st.integers(1, 4)), max_size=40),
        st.lists(st.tuples(st.integers(0, 40), st.integers(0, 900)), max_size=3),
        st.booleans(),
    )
    def test_any(
        self,
        commits: list[tuple[int, int, int]],
        damages: list[tuple[int, int]],
        unfinished: bool,
    ) -> None:
        """As reading all of it finds it, with lines of any length and damaged ones between."""
        time, sequence = TEN, 1
        parts = []
        for step, size, count in commits:
            time += step
            parts.append(commit(time, (A, sequence, [b"x" * size] * count)))
            sequence += count
        for at, size in damages:
            parts.insert(min(at, len(parts)), b"?" * size + b"\n")
        data = b"".join(parts)
        if unfinished:
            data += b'{"ti'
        with self.open(data) as file:
            for moment in {TEN - 1, time + 1, *range(TEN, time + 1, max(1, (time - TEN) // 9))}:
                self.assertEqual(offset_of_time(file, moment), first_not_before(data, moment))

    def test_few_reads(self) -> None:
        """The logarithm of its size, not its size."""
        with self.open(minutes(20_000)) as file:
            reads: list[int] = []
            read = file.read
            self.patch(file, "read", lambda count, at: reads.append(count) or read(count, at))
            offset = offset_of_time(file, TEN + 12_345 * 60 * SECOND)
            self.assertTrue(read(1000, offset).split(b"\n")[0].endswith(b'"12346"}'))
            self.assertLess(sum(reads), 20_000)

    def test_nothing(self) -> None:
        with self.open(b"") as file:
            self.assertEqual(offset_of_time(file, TEN), 0)
        with self.open(bytes(5000)) as file:
            self.assertEqual(offset_of_time(file, TEN), 5000)


class FromTheEnd(Case):
    def all_lines(self, line: bytes) -> bool:
        return True

    @settings(deadline=None)
    @given(
        st.lists(st.integers(0, 400), max_size=12), st.integers(1, 14), st.integers(0, 5), st.data()
    )
    def test_any(self, sizes: list[int], count: int, torn: int, data: st.DataObject) -> None:
        """The last lines, plain and compressed, from any line on; half a line does not count."""
        lines = [b"x" * size + b"\n" for size in sizes]
        content = b"".join(lines) + b"y" * torn
        skipped = data.draw(st.integers(0, len(lines)))
        floor = len(b"".join(lines[:skipped]))
        wanted = lines[skipped:][-count:]
        expected = (len(content) - torn - len(b"".join(wanted)), len(wanted))
        with self.open(content) as file:
            self.assertEqual(last_offset(file, count, self.all_lines, floor), expected)
        with self.open(gzip.compress(content), "log.gz") as file:
            self.assertEqual(last_offset(file, count, self.all_lines, floor), expected)

    def test_wanted(self) -> None:
        """Only those that count are counted."""
        data = minutes(100)
        with self.open(data) as file:
            offset, found = last_offset(file, 3, lambda line: line.endswith(b'0"}\n'))
            self.assertEqual((data[offset:].count(b"\n"), found), (21, 3))
            self.assertEqual(last_offset(file, 11, lambda line: line.endswith(b'0"}\n')), (0, 10))

    def test_longer_than_any_record(self) -> None:
        """A stretch without newline is passed with bounded memory."""
        self.patch(seeking, "MAX_LINE_BYTES", 1000)
        data = minutes(3) + bytes(5000) + b"\n" + minutes(2, first=4)
        with self.open(data) as file:
            lengths: list[int] = []

            def wanted(line: bytes) -> bool:
                lengths.append(len(line))
                return said_time(line) is not None

            self.assertEqual(last_offset(file, 5, wanted), (0, 5))
            self.assertLess(max(lengths), 1000 + 2 * 150)
