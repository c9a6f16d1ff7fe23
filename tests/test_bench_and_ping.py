"""C{msglog bench} and C{msglog ping}: what they say, without a server."""

from __future__ import annotations

import importlib.util
import socket
from datetime import UTC, datetime
from io import StringIO
from itertools import pairwise
from pathlib import Path
from xml.etree import ElementTree

import orjson
from click.testing import CliRunner, Result
from rich.console import Console
from twisted.trial.unittest import SynchronousTestCase

from msglog._enquiry import Answer, EnquiryFailed
from msglog._frames import Terms
from msglog._load.loop import Measurement, Plan
from msglog.cli import _bench, _chart, _ping
from msglog.cli._bench_report import Report, bars, draw, milliseconds, rows

TERMS = Terms(bytes(16), 0, 1, 256, 1024)
ADDRESS = (socket.AF_INET, ("192.0.2.1", 7514))


def report(*latencies_ms: float, slots: tuple[int, ...] = (500, 300)) -> Report:
    measured = Measurement(slots=list(slots), seconds=0.1 * len(slots) - 0.01)
    for latency in latencies_ms:
        measured.latencies.record(int(latency * 1e6), 1)
    plan = Plan(ADDRESS, 100, 10, 256, 1.0, 5.0)
    started = datetime(2026, 11, 24, 12, 0, tzinfo=UTC)
    return Report("log.example:7514", plan, 1, TERMS, started, measured)


SPREAD = tuple(0.4 + n * n / 1e5 for n in range(1000))


class Options(SynchronousTestCase):
    """What is wrong is said before any load, in one line, with the right status."""

    def assert_refused(self, status: int, said: str, *arguments: str) -> None:
        result = CliRunner().invoke(_bench.command, arguments)
        self.assertEqual(result.exit_code, status, result.output)
        self.assertIn(said, result.output)
        self.assertNotIn("Traceback", result.output)

    def test_suffix(self) -> None:
        self.assert_refused(2, "does not end in .svg or .png", "--plot", "chart.pdf")

    def test_folder(self) -> None:
        """A chart that could not be written is known before the load."""
        self.assert_refused(1, "cannot be written", "--plot", "no-such-folder/chart.svg")

    def test_no_matplotlib(self) -> None:
        """Without the library there is one line that says how to get it."""
        self.patch(importlib.util, "find_spec", lambda name: None)
        self.assert_refused(1, "pip install 'msglog[plot]'", "--plot", "chart.svg")

    def test_servers(self) -> None:
        self.assert_refused(2, "one server", "-s", "a:1", "-s", "b:2")
        self.assert_refused(2, "not a server: 'nowhere:x'", "-s", "nowhere:x")

    def test_ranges(self) -> None:
        for option in ("--connections", "--window", "--messages", "--processes", "--seconds"):
            self.assert_refused(2, option, option, "0")

    def test_help(self) -> None:
        """It says that messages are logged, with examples and every status."""
        said = CliRunner().invoke(_bench.command, ["--help"]).output
        for part in ("THE MESSAGES ARE REALLY LOGGED", "Examples:", "Exit status:", "130"):
            self.assertIn(part, said)

    def asked(self, answer: Answer | EnquiryFailed) -> None:
        self.patch(_bench, "Enquirer", lambda server, tls: _Enquirer(iter([answer])))

    def test_terms(self) -> None:
        """The server's terms are asked before the load is made."""
        self.asked(Answer(TERMS, ADDRESS, 1, 1))
        self.assert_refused(1, "up to 256 bytes, not 257: use --size 256", "--size", "257")
        self.asked(Answer(TERMS, ADDRESS, 1, 1))
        self.assert_refused(1, "window is 1024 messages, not 1025", "--window", "1025")
        self.asked(EnquiryFailed("connection refused"))
        self.assert_refused(1, "127.0.0.1:7514: connection refused")

    def test_memory(self) -> None:
        """A load that no machine has room for is not begun."""
        terms = Terms(bytes(16), 0, 1, 16 << 20, 1024)
        self.asked(Answer(terms, ADDRESS, 1, 1))
        self.assert_refused(1, "more than 1024 MiB", "--size", str(16 << 20), "-c", "1000")

    def test_files(self) -> None:
        """So is one with more connections than the system allows files."""
        self.patch(_bench.resource, "getrlimit", lambda which: (100, 200))
        self.asked(Answer(TERMS, ADDRESS, 1, 1))
        self.assert_refused(1, "this system allows 200", "-c", "500")


class _Enquirer:
    """Answers as it was told, instead of a server."""

    def __init__(self, answers: object) -> None:
        self._answers = answers

    def ask(self, timeout: float) -> Answer:
        answer = next(self._answers)  # type: ignore[call-overload]
        if isinstance(answer, EnquiryFailed):
            raise answer
        assert isinstance(answer, Answer)
        return answer

    def close(self) -> None:
        pass


class Ping(SynchronousTestCase):
    def ping(self, answers: list[Answer | EnquiryFailed], *arguments: str) -> Result:
        self.patch(_ping, "Enquirer", lambda server, tls: _Enquirer(iter(answers)))
        return CliRunner().invoke(
            _ping.command, ["--interval", "0", *arguments], standalone_mode=False
        )

    good = Answer(TERMS, ADDRESS, 200_000, 412_345)
    bad = EnquiryFailed("no answer within 5 s")

    def test_answered(self) -> None:
        result = self.ping([self.good])
        self.assertEqual(
            result.output,
            "127.0.0.1:7514: 0.412 ms, version 1, bodies up to 256 bytes, window 1024\n",
        )
        self.assertEqual(result.return_value, 0)

    def test_not_answered(self) -> None:
        result = self.ping([self.bad])
        self.assertEqual(result.stdout, "")
        self.assertEqual(result.stderr, "msglog: 127.0.0.1:7514: no answer within 5 s\n")
        self.assertEqual(result.return_value, 1)

    def test_count(self) -> None:
        """One that is not answered among those that are is not health."""
        result = self.ping([self.good, self.bad, self.good], "--count", "3")
        self.assertTrue(
            result.stdout.endswith(
                "2 of 3 answered: least 0.412 ms, median 0.412 ms, most 0.412 ms\n"
            )
        )
        self.assertEqual(result.return_value, 1)

    def test_interval(self) -> None:
        """From one time to the next, and not before the first or after the last."""
        slept: list[float] = []
        self.patch(_ping.time, "sleep", slept.append)
        self.ping([self.good] * 3, "--count", "3", "--interval", "0.25")
        self.assertEqual(slept, [0.25, 0.25])

    def test_quiet(self) -> None:
        """Not a word when it is well; the status alone when it is not."""
        for answer, status in ((self.good, 0), (self.bad, 1)):
            result = self.ping([answer, answer], "--quiet", "--count", "2")
            self.assertEqual((result.output, result.return_value), ("", status))

    def test_json(self) -> None:
        """An object a line, for failures too."""
        result = self.ping([self.good, self.bad], "--json", "--count", "2")
        good, bad = (orjson.loads(line) for line in result.stdout.splitlines())
        self.assertEqual(
            good,
            {
                "server": "127.0.0.1:7514",
                "version": 1,
                "longest_body": 256,
                "window": 1024,
                "connect_ms": 0.2,
                "round_trip_ms": 0.412345,
            },
        )
        self.assertEqual(bad, {"server": "127.0.0.1:7514", "error": "no answer within 5 s"})
        self.assertEqual(result.stderr, "")

    def test_several(self) -> None:
        """Each server that is named is asked."""
        result = self.ping([self.good], "-s", "a.example:1", "-s", "b.example:2")
        self.assertEqual(
            [line.split(": ")[0] for line in result.stdout.splitlines()],
            ["a.example:1", "b.example:2", "2 of 2 answered"],
        )

    def test_no_server(self) -> None:
        result = CliRunner().invoke(_ping.command, ["--server", "log.example:port"])
        self.assertEqual(result.exit_code, 2)
        self.assertIn("not a server: 'log.example:port'", result.output)


class Figures(SynchronousTestCase):
    """What the terminal and other programs get."""

    def drawn(self, width: int, *, terminal: bool, of: Report | None = None) -> str:
        out = StringIO()
        console = Console(file=out, width=width, force_terminal=terminal, color_system=None)
        draw(of or report(*SPREAD), console)
        return out.getvalue()

    def test_figures(self) -> None:
        said = self.drawn(80, terminal=False)
        self.assertIn("4,211 messages/s (1.1 MB/s of bodies)", said)
        self.assertIn("100 connections, window 10, 256-byte bodies, 1 process\n", said)
        self.assertIn("p50 2.9", said)
        self.assertIn("max 10.4 ms", said)

    def test_widths(self) -> None:
        """The histogram uses the columns that there are, and no more."""
        for width in (60, 80, 200):
            lines = self.drawn(width, terminal=True).split("\n\n")[1].splitlines()
            self.assertLessEqual(max(map(len, lines)), width)
            self.assertGreater(max(map(len, lines)), width - 5)

    def test_plain(self) -> None:
        """Where nobody looks at a terminal there are no escapes and no drawn characters."""
        said = self.drawn(80, terminal=False)
        self.assertTrue(said.isascii(), said)
        self.assertNotIn("\x1b", said)
        self.assertIn("####", said)

    def test_refused(self) -> None:
        refused = report(1.0)
        refused.measured.refused["NOT_STORED"] += 1200
        self.assertIn("refused  NOT_STORED 1,200\n", self.drawn(80, terminal=False, of=refused))

    def test_rows(self) -> None:
        """Rows are few, hold every message once, and cover from the least to the most."""
        for latencies in (
            SPREAD,
            (1.0,),
            (0.0,),
            (0.001, 90_000.0),
            tuple(10 + n / 100 for n in range(100)),
        ):
            latencies_of = report(*latencies).measured.latencies
            found = rows(latencies_of)
            self.assertLessEqual(len(found), 20)
            self.assertEqual(sum(count for _, _, count in found), len(latencies))
            self.assertLessEqual(found[0][0], latencies_of.lowest)
            self.assertGreater(found[-1][1], latencies_of.highest)
            for before, after in pairwise(found):
                self.assertEqual(before[1], after[0])

    def test_bars(self) -> None:
        """The longest bar fills the room; what is there at all is seen; nothing draws nothing."""
        measured = report(*[1.0] * 100_000, 3.0).measured
        lines = [str(line[2]).rstrip() for line in bars(measured.latencies, 80, "#")]
        self.assertEqual(lines[-1], "#")
        self.assertGreater(len(lines[0]), 35)
        self.assertEqual(set(lines[1:-1]), {""})
        self.assertEqual(bars(report().measured.latencies, 80, "#"), [])

    def test_milliseconds(self) -> None:
        self.assertEqual(
            [milliseconds(ns) for ns in (412_345, 4_123_456, 41_234_567, 4_123_456_789)],
            ["0.412 ms", "4.12 ms", "41.2 ms", "4,123 ms"],
        )

    def test_json(self) -> None:
        """Everything is there, by names and in units that they say, and it is JSON."""
        found = orjson.loads(orjson.dumps(report(*SPREAD).as_json()))
        self.assertEqual(found["acknowledged"], 1000)
        self.assertEqual(list(found["latency_ms"]), ["min", "p50", "p90", "p99", "p99.9", "max"])
        self.assertEqual(found["latency_ms"]["min"], 0.4)
        self.assertAlmostEqual(found["latency_ms"]["p50"], 2.9, places=1)
        self.assertEqual(sum(row["acknowledged"] for row in found["histogram"]), 1000)
        self.assertEqual(
            found["acknowledged_over_time"], {"slot_seconds": 0.1, "slots": [500, 300]}
        )
        self.assertIsNone(found["problem"])


class Page(SynchronousTestCase):
    def test_bench_page(self) -> None:
        """docs/bench.md has every option's and every figure's name."""
        page = (Path(__file__).parent.parent / "docs" / "bench.md").read_text()
        for command in (_bench.command, _ping.command):
            for option in command.params:
                name = max(option.opts, key=len)
                if not name.startswith("--tls"):
                    self.assertIn(name, page)
        for name in report(1.0).as_json():
            if name != "msglog":
                self.assertIn(f"`{name}`", page)


class Chart(SynchronousTestCase):
    def saved(self, name: str, of: Report) -> bytes:
        path = Path(self.mktemp())
        path.mkdir()
        _chart.save(of, path / name)
        return (path / name).read_bytes()

    def test_svg(self) -> None:
        """An SVG is one, and the same for the same figures: it can be kept in a repository."""
        data = self.saved("chart.svg", report(*SPREAD))
        self.assertEqual(ElementTree.fromstring(data).tag, "{http://www.w3.org/2000/svg}svg")
        self.assertEqual(self.saved("again.SVG", report(*SPREAD)), data)

    def test_png(self) -> None:
        data = self.saved("chart.png", report(*SPREAD))
        self.assertTrue(data.startswith(b"\x89PNG\r\n\x1a\n"))

    def test_little(self) -> None:
        """One message, in less than a slot, is a chart too."""
        self.saved("chart.svg", report(1.0, slots=(1,)))
        self.saved("chart.svg", report(0.0, 0.0, slots=(1, 1)))
