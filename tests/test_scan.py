"""Checking stretches: fast, and never of another opinion than L{parse_line}."""

from __future__ import annotations

import io
import itertools
import json

from hypothesis import example, given, settings
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from msglog import RecordError, parse_line
from msglog import _scan as scan_module
from msglog._batch import MAX_SEQUENCE
from msglog._records import Record, client_text, format_line
from msglog._scan import Fault, FaultKind, Summary, scan
from msglog._verification import Verification
from msglog.testing import make_batch
from tests.logs import SECOND, TEN, A, B, C, commit

bodies = st.lists(
    st.one_of(
        st.binary(max_size=12),
        st.text(max_size=12).map(lambda t: t.encode("utf-8", "surrogatepass")),
        st.sampled_from([b'"', b"\\", b"\n", b"}", b'"}\n{"time":"', b"\xc2\x85", b"\xff"]),
    ),
    min_size=1,
    max_size=5,
)


def scanned(data: bytes, begin: int = 0, end: int | None = None) -> Summary:
    file = io.BytesIO(data)

    def read(count: int, at: int) -> bytes:
        file.seek(at)
        return file.read(count)

    return scan(read, begin, len(data) if end is None else end)


def plainly(data: bytes) -> tuple[list[Record], list[int]]:
    """The records that L{parse_line} finds in a log, and the offsets of what it refuses."""
    records, damaged, offset = [], [], 0
    for line in data.split(b"\n")[:-1]:
        try:
            records.append(parse_line(line))
        except RecordError:
            damaged.append(offset)
        offset += len(line) + 1
    rest = data[offset:]
    if rest and (b"\0" in rest or not (rest + b'{"time":"'[len(rest) :]).startswith(b'{"time":"')):
        damaged.append(offset)  # no record that is being written, nor one that was cut short
    return records, damaged


class Agreement(SynchronousTestCase):
    def agree(self, data: bytes) -> None:
        """A scan finds what a plain loop finds with the same rules."""
        records, damaged = plainly(data)
        summary = scanned(data)
        self.assertEqual([f.offset for f in summary.faults if f.kind is FaultKind.DAMAGED], damaged)
        self.assertEqual(summary.records, len(records))
        runs: dict[bytes, list[int]] = {}
        for record in records:
            runs.setdefault(record.client, []).append(record.sequence)
        self.assertEqual(
            {c: (run.first, run.last, run.records) for c, run in summary.clients.items()},
            {c: (of[0], of[-1], len(of)) for c, of in runs.items()},
        )
        leaps = sum(b != a + 1 for of in runs.values() for a, b in itertools.pairwise(of))
        self.assertEqual(summary.fault_counts[FaultKind.SEQUENCE], leaps)
        times = [r.time for r in records]
        pairs = list(itertools.pairwise(times))
        self.assertEqual(summary.fault_counts[FaultKind.TIME], sum(b < a for a, b in pairs))
        self.assertEqual(summary.commits, bool(times) + sum(a != b for a, b in pairs))
        self.assertEqual(sum(summary.seconds.values()), len(times))
        seconds = {t // SECOND for t in times}
        self.assertEqual(set(summary.seconds), seconds)
        if times:
            self.assertEqual((summary.first_time, summary.last_time), (times[0], times[-1]))

    def small_log(self) -> bytes:
        return (
            commit(TEN, (A, 1, [b"a1", b"a2", "é\u2028".encode()]), (B, 9, [b"\xff", b"b10"]))
            + commit(TEN + 1, (B, 11, [b"", b'"', b"x"]), (A, 4, [b"a4"]), (C, 1, [b"c"]))
            + commit(TEN + SECOND, (A, 5, [b"a5", b"a6"]))
        )

    def test_every_byte_flipped(self) -> None:
        """Whichever byte of a log is changed, each bit alone and into what means something."""
        data = self.small_log()
        for at in range(len(data)):
            for value in {*(data[at] ^ (1 << bit) for bit in range(8)), *b'\n\r\0"\\ ,}0Aa\xff'}:
                self.agree(data[:at] + bytes([value]) + data[at + 1 :])

    def test_every_byte_missing_or_twice(self) -> None:
        data = self.small_log()
        for at in range(len(data)):
            self.agree(data[:at] + data[at + 1 :])
            self.agree(data[:at] + data[at : at + 1] + data[at:])

    @settings(deadline=None)
    @given(
        st.lists(
            st.tuples(st.integers(0, 2), st.sampled_from([A, B, C]), st.integers(1, 4), bodies),
            max_size=8,
        ),
        st.data(),
    )
    def test_any_log(
        self, commits: list[tuple[int, bytes, int, list[bytes]]], data: st.DataObject
    ) -> None:
        """Records of any body, in any order, and some damage."""
        time, log = TEN, bytearray()
        for step, client, first, parts in commits:
            time += step - 1 if step else 0
            log += commit(time, (client, first, parts))
        for _ in range(data.draw(st.integers(0, 3))):
            if log:
                log[data.draw(st.integers(0, len(log) - 1))] = data.draw(st.integers(0, 255))
        self.agree(bytes(log))

    @settings(deadline=None)
    @given(st.lists(st.sampled_from([1, 2, 3, 4]), min_size=1, max_size=6))
    @example([1, 2, 3, 4])
    def test_written_otherwise(self, styles: list[int]) -> None:
        """Lines that another program wrote, with other white space or order, are records too."""
        log = b""
        for sequence, style in enumerate(styles, 1):
            line = commit(TEN, (A, sequence, [b"\xc3\xa9 body"]))
            fields = json.loads(line)
            log += {
                1: line,
                2: json.dumps(fields).encode() + b"\n",
                3: json.dumps(dict(reversed(fields.items()))).encode() + b"\n",
                4: line.replace(b'"message":', b'"message" : '),
            }[style]
        self.assertEqual(plainly(log)[1], [])
        self.agree(log)

    def test_highest_sequence(self) -> None:
        """No sequence above the highest, however well its checksum fits."""
        log = b""
        for sequence in range(MAX_SEQUENCE - 2, MAX_SEQUENCE + 2):
            checksum = make_batch(A, sequence, b"x").checksums[0]
            log += format_line(Record(TEN, A, sequence, checksum, b"x"))
        self.assertEqual(len(plainly(log)[1]), 1)
        self.agree(log)


class Stretches(SynchronousTestCase):
    def test_short_reads_and_long_lines(self) -> None:
        """Lines longer than a block, and blocks that end anywhere."""
        log = commit(TEN, (A, 1, [b"x" * n for n in (0, 5, 3000, 1, 700)]))
        for size in (1, 7, 100, 1000, 1 << 20):
            self.patch(scan_module, "_BLOCK_BYTES", size)
            summary = scanned(log)
            self.assertEqual((summary.records, summary.faults), (5, []))
            self.assertEqual(summary.clients[A].size, len(log))

    def test_longer_than_any_record(self) -> None:
        """A stretch of zeros is one damage, whatever its length, and what follows is read."""
        self.patch(scan_module, "_BLOCK_BYTES", 64)
        self.patch(scan_module, "MAX_LINE_BYTES", 500)
        before, after = commit(TEN, (A, 1, [b"1"])), commit(TEN, (A, 2, [b"2", b"3"]))
        summary = scanned(before + bytes(5000) + b"\n" + after)
        self.assertEqual([f.offset for f in summary.faults], [len(before)])
        self.assertEqual((summary.records, summary.unfinished), (3, None))
        summary = scanned(before + bytes(5000))
        self.assertEqual([f.offset for f in summary.faults], [len(before)])
        self.assertEqual(summary.unfinished, None)

    def test_no_end(self) -> None:
        """A last line without newline is no record and no damage, whole or not."""
        log = commit(TEN, (A, 1, [b"1", b"2"]))
        second = log.index(b"\n") + 1
        for length in range(second + 1, len(log)):
            summary = scanned(log[:length])
            self.assertEqual((summary.records, summary.faults), (1, []))
            self.assertEqual(summary.unfinished, second)

    def test_cut_while_read(self) -> None:
        """A file that became shorter ends where it ends."""
        log = commit(TEN, (A, 1, [b"1", b"2"]))
        self.assertEqual(scanned(log[:-3], 0, len(log) + 500).records, 1)

    def test_faults_are_bounded(self) -> None:
        self.patch(scan_module, "MAX_FAULTS", 10)
        summary = scanned(b"x\n" * 1000)
        self.assertEqual(len(summary.faults), 10)
        self.assertEqual(summary.fault_counts[FaultKind.DAMAGED], 1000)


class Whole(SynchronousTestCase):
    """Stretches put together."""

    def verified(
        self, *files: bytes, partial: bool = False, cut: int = 1 << 30
    ) -> tuple[list[tuple[int, Fault]], Verification]:
        found: list[tuple[int, Fault]] = []
        verification = Verification(partial, lambda file, fault: found.append((file, fault)))
        for index, data in enumerate(files):
            begin = 0
            while begin < len(data):
                end = data.find(b"\n", min(begin + cut, len(data)) - 1) + 1 or len(data)
                verification.add(index, scanned(data, begin, end))
                begin = end
        return found, verification

    def kinds(self, *files: bytes, partial: bool = False) -> list[tuple[int, FaultKind]]:
        return [(n, fault.kind) for n, fault in self.verified(*files, partial=partial)[0]]

    @settings(deadline=None)
    @given(
        st.lists(
            st.tuples(st.integers(-1, 2), st.sampled_from([A, B]), st.integers(1, 6)), max_size=20
        ),
        st.integers(1, 2000),
        st.integers(0, 19),
    )
    def test_cuts_change_nothing(
        self, records: list[tuple[int, bytes, int]], cut: int, file_at: int
    ) -> None:
        """The result is the same wherever stretches and files are cut."""
        time, lines = TEN, []
        for step, client, sequence in records:
            time += step
            lines.append(commit(time, (client, sequence, [b"x"])))

        def seen(
            found: tuple[list[tuple[int, Fault]], Verification], *bases: int
        ) -> tuple[object, ...]:
            faults, v = found
            return (
                sorted((bases[n] + f.offset, f.kind.value, f.reason) for n, f in faults),
                (v.records, v.commits, v.clients, v.faults, v.first_time, v.last_time),
            )

        whole, head = b"".join(lines), b"".join(lines[:file_at])
        once = seen(self.verified(whole), 0)
        self.assertEqual(seen(self.verified(whole, cut=cut), 0), once)
        two = self.verified(head, whole[len(head) :], cut=cut)
        self.assertEqual(seen(two, 0, len(head)), once)

    def test_rotated(self) -> None:
        """Sequences go on from file to file."""
        first = commit(TEN, (A, 1, [b"1", b"2"]), (B, 1, [b"x"]))
        second = commit(TEN + 1, (A, 3, [b"3"]), (C, 1, [b"y"]))
        self.assertEqual(self.kinds(first, second), [])
        self.assertEqual(self.kinds(second), [(0, FaultKind.BEGINNING)])
        self.assertEqual(self.kinds(second, partial=True), [])
        self.assertEqual(
            self.kinds(second, first),
            [(0, FaultKind.BEGINNING), (1, FaultKind.TIME), (1, FaultKind.SEQUENCE)],
        )

    def test_file_missing_between(self) -> None:
        """That many clients go on too late with a file is told apart."""
        files = [commit(TEN + n, (A, n, [b"x"]), (B, n, [b"y"])) for n in (1, 2, 3)]
        _, verification = self.verified(files[0], files[2])
        self.assertEqual(dict(verification.beginnings), {1: 2})
        gap = commit(TEN + 3, (A, 2, [b"x"]), (B, 2, [b"y"]), (A, 5, [b"x"]))
        _, verification = self.verified(files[0], gap, cut=1)
        self.assertEqual((verification.faults, dict(verification.beginnings)), (1, {}))
        self.assertIn("2 is missing", self.verified(files[0], files[2])[0][0][1].reason)

    def test_unfinished(self) -> None:
        """Only the last file may end in the middle of a line."""
        log = commit(TEN, (A, 1, [b"1", b"2"]))
        after = commit(TEN + 1, (A, 2, [b"2"]))
        found, verification = self.verified(log[:-5])
        self.assertEqual(found, [])
        assert verification.unfinished is not None
        self.assertEqual(verification.unfinished.offset, log.index(b"\n") + 1)
        later = commit(TEN + 2, (A, 3, [b"3"]))
        self.assertEqual(self.kinds(log[:-5], after, later), [(0, FaultKind.DAMAGED)])

    def test_reasons(self) -> None:
        """Each fault says which client and which sequences."""
        log = commit(TEN, (A, 1, [b"1"])) + commit(TEN + 1, (A, 5, [b"5"]), (A, 5, [b"5"]))
        reasons = [fault.reason for _, fault in self.verified(log)[0]]
        self.assertEqual(
            reasons,
            [
                f"sequence 5 of client {client_text(A)} comes after 1: 2 to 4 are missing",
                f"sequence 5 of client {client_text(A)} comes after 5: out of order, or there "
                f"twice",
            ],
        )
