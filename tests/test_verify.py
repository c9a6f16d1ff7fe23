"""C{msglog verify} and C{stats}."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

from click.testing import CliRunner, Result
from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from msglog import _parallel_scan as parallel
from msglog import _verification as verification
from msglog._logfile import open_log
from msglog._parallel_scan import scan_files
from msglog._records import client_text
from msglog._scan import FaultKind, Summary
from msglog._verification import Statistics
from msglog.cli import _stats, _verify
from msglog.cli._rate_chart import HEIGHT, rate_chart
from tests.logs import SECOND, TEN, A, B, commit, minutes

COMMANDS = {"verify": _verify.command, "stats": _stats.command}


class Case(SynchronousTestCase):
    def setUp(self) -> None:
        self.folder = Path(self.mktemp())
        self.folder.mkdir()

    def write(self, name: str, data: bytes) -> Path:
        path = self.folder / name
        path.write_bytes(data)
        return path

    def run_it(self, name: str, *args: object, status: int = 0) -> Result:
        result = CliRunner().invoke(
            COMMANDS[name], ["--jobs", "1", *map(str, args)], standalone_mode=False
        )
        if result.exception is None:
            self.assertEqual(result.return_value, status, result.output)
        else:
            self.assertEqual(getattr(result.exception, "exit_code", None), status, result)
        return result


class Stretches(Case):
    def test_same_result(self) -> None:
        """However many stretches, plain or compressed, in this process or in several."""
        data = minutes(500)
        plain = self.write("log", data)
        paths = [plain, self.write("log.gz", gzip.compress(data))]
        self.patch(parallel, "STRETCH_BYTES", 1000)
        for processes in (1, 3):
            files = [open_log(path) for path in paths]
            seen: list[list[Summary]] = [[], []]
            for scanned in scan_files(files, processes):
                seen[scanned.file].append(scanned.summary)
            for summaries in seen:
                self.assertGreater(len(summaries), 50)
                self.assertEqual(sum(s.records for s in summaries), 500)
                begins, ends = [s.begin for s in summaries], [s.end for s in summaries]
                self.assertEqual((begins, ends[-1]), ([0, *ends[:-1]], len(data)))
            for file in files:
                file.close()

    def test_given_up(self) -> None:
        """The processes end when nobody wants more."""
        self.patch(parallel, "STRETCH_BYTES", 1000)
        with open_log(self.write("log", minutes(500))) as file:
            results = scan_files([file], 3)
            next(results)
            results.close()


class Verify(Case):
    def test_whole(self) -> None:
        result = self.run_it("verify", self.write("log", minutes(5)))
        self.assertIn("5 records, 5 commits, 1 client;", result.stdout)
        self.assertIn("whole: nothing is damaged", result.stdout)
        self.assertEqual(result.stderr, "")

    def test_damage(self) -> None:
        """Each place, with its offset and reason."""
        data = minutes(5)
        lines = data.splitlines(keepends=True)
        log = self.write("log", data.replace(b'"message":"3"', b'"message":"4"'))
        result = self.run_it("verify", log, status=1)
        at = len(lines[0]) * 2
        self.assertEqual(
            result.stdout.splitlines()[:2],
            [
                f"{log}: byte {at}: the checksum is not that of the content",
                f"{log}: byte {at + len(lines[2])}: sequence 4 of client {client_text(A)} comes "
                f"after 2: 3 is missing",
            ],
        )
        self.assertIn("NOT whole: 1 damaged, 1 out of sequence", result.stdout)

    def test_bounded_list(self) -> None:
        log = self.write("log", b"x\n" * 500)
        result = self.run_it("verify", "--show", 3, log, status=1)
        self.assertEqual(result.stdout.count("byte "), 3)
        self.assertIn("and 497 more, not listed", result.stdout)
        self.assertIn("500 damaged", result.stdout)

    def test_rotated(self) -> None:
        """Older files are named, found beside the log, or declared to be gone."""
        log = self.write("log", minutes(5, first=11))
        one = self.write("log.1", minutes(5, first=6))
        two = self.write("log.2.gz", gzip.compress(minutes(5)))
        alone = self.run_it("verify", log, status=1)
        self.assertIn("begins with sequence 11, not 1", alone.stdout)
        self.assertIn("--rotated", alone.stderr)
        self.assertIn("--partial", alone.stderr)
        self.run_it("verify", "--partial", log)
        self.assertIn("in 3 files", self.run_it("verify", two, one, log).stdout)
        self.run_it("verify", "--rotated", log)
        missing = self.run_it("verify", two, log, status=1)
        self.assertIn(f"is there a file between it and {two}?", missing.stderr)

    def test_wrong_order(self) -> None:
        """Files in a wrong order are told apart from damage, with the right one."""
        log = self.write("log", minutes(5, first=6))
        one = self.write("log.1", minutes(5))
        result = self.run_it("verify", log, one, status=2)
        self.assertIn("not given oldest first", str(result.exception))
        self.assertIn(f"Their order is: {one} {log}", str(result.exception))

    def test_no_end(self) -> None:
        """A line that is being written is no damage."""
        log = self.write("log", minutes(3)[:-8])
        result = self.run_it("verify", log)
        self.assertIn("ends in the middle of a line", result.stdout)
        self.assertIn("whole", result.stdout)

    def test_unreadable(self) -> None:
        """A compressed file that is cut is damage, and the files after it are read."""
        cut = self.write("log.1.gz", gzip.compress(minutes(9000))[:-20])
        log = self.write("log", minutes(5, first=9001))
        result = self.run_it("verify", cut, log, status=1)
        self.assertIn("cannot read", result.stdout)
        self.assertIn("1 unreadable", result.stdout)

    def test_json(self) -> None:
        """The same for a program."""
        data = minutes(4)
        good = json.loads(self.run_it("verify", "--json", self.write("log", data)).stdout)
        self.assertEqual(
            (good["whole"], good["records"], good["commits"], good["clients"], good["faults"]),
            (True, 4, 4, 1, []),
        )
        self.assertEqual(good["first"], "2026-11-24T10:00:00.000000Z")
        log = self.write("log", b"x\n" + data[:-1])
        bad = json.loads(self.run_it("verify", "--json", log, status=1).stdout)
        self.assertFalse(bad["whole"])
        self.assertEqual(
            [(f["file"], f["offset"], f["kind"]) for f in bad["faults"]], [(str(log), 0, "damaged")]
        )
        self.assertEqual(bad["counts"]["damaged"], 1)
        self.assertEqual(bad["unfinished"]["size"], len(data) // 4 - 1)

    def test_empty(self) -> None:
        self.assertIn("0 records", self.run_it("verify", self.write("log", b"")).stdout)
        result = self.run_it("verify", self.folder / "none", status=1)
        self.assertIn("cannot open", str(result.exception))


class Stats(Case):
    def test_counts(self) -> None:
        log = self.write("log", minutes(9) + commit(TEN + 9 * 60 * SECOND, (B, 1, [b"x"])))
        lines = self.run_it("stats", log).stdout.splitlines()
        self.assertEqual(
            lines[:6],
            [
                "records  10 in 10 commits",
                "bytes    1.2 KiB",
                "clients  2",
                "from     2026-11-24T10:00:00.000000Z",
                "to       2026-11-24T10:09:00.000000Z, 9 min",
                "rate     0.019 records a second on average",
            ],
        )
        self.assertIn(f"{client_text(A)}        9  90.0%", lines[-2])

    def test_json(self) -> None:
        log = self.write("log", minutes(3) + commit(TEN + 3 * 60 * SECOND, (B, 1, [b"x"])))
        found = json.loads(self.run_it("stats", "--json", "--top", 1, log).stdout)
        self.assertEqual(found["bytes"], log.stat().st_size)
        self.assertEqual((found["records"], found["clients"], found["seconds"]), (4, 2, 180.0))
        self.assertEqual([c["client"] for c in found["busiest"]], [client_text(A)])
        self.assertEqual(found["busiest"][0]["bytes"], len(minutes(3)))
        self.assertEqual(sum(s["records"] for s in found["rate"]["spans"]), 4)

    def test_damaged(self) -> None:
        """What is damaged is not counted, and said."""
        result = self.run_it("stats", self.write("log", minutes(2) + b"x\n"), status=1)
        self.assertIn("records  2 ", result.stdout)
        self.assertIn("not counted, since damaged: 1", result.stderr)

    def test_empty(self) -> None:
        self.assertIn("records  0", self.run_it("stats", self.write("log", b"")).stdout)

    @settings(deadline=None)
    @given(st.lists(st.integers(0, 10**9), min_size=1, max_size=50))
    def test_spans_are_bounded(self, seconds: list[int]) -> None:
        """Years of seconds become few spans; no record is lost."""
        self.patch(verification, "_SPANS", 8)
        statistics = Statistics()
        for second in sorted(seconds):
            summary = Summary(0, 0, records=1, commits=1, first_time=second * SECOND)
            summary.seconds[second] = 1
            statistics.add(summary)
        self.assertLessEqual(len(statistics.spans), 8)
        self.assertEqual(statistics.spans.total(), len(seconds))
        for second in seconds:
            self.assertIn(second // statistics.span_seconds, statistics.spans)

    @settings(deadline=None)
    @given(
        st.dictionaries(
            st.integers(0, 10**9) | st.integers(-62_135_596_800, 253_402_300_799),
            st.integers(1, 10**6),
            min_size=1,
            max_size=30,
        ),
        st.integers(1, 300),
        st.booleans(),
    )
    def test_chart(self, spans: dict[int, int], width: int, blocks: bool) -> None:
        """It fits the terminal, has a top, and shows whatever there is."""
        lines, seconds = rate_chart(spans, 1, width, blocks)
        self.assertEqual(len(lines), HEIGHT + 1)
        bars = [line.partition("┤" if blocks else "|")[2] for line in lines[:-1]]
        self.assertIn("█" if blocks else "#", bars[0])
        columns = max(map(len, bars))
        if width > 30:
            self.assertLessEqual(max(map(len, lines[:-1])), width)
        first = min(spans) // seconds
        shown = {n // seconds - first for n in spans}
        self.assertEqual({n for n in range(columns) if bars[-1][n : n + 1].strip()}, shown)

    def test_kinds_have_names(self) -> None:
        self.assertEqual(set(_verify._NAMES), set(FaultKind))
