"""What --http answers, and to whom; in memory."""

from __future__ import annotations

import json
import re
import uuid
from pathlib import Path

from twisted.internet.address import IPv4Address, IPv6Address, UNIXAddress
from twisted.internet.defer import Deferred
from twisted.internet.error import ConnectionDone
from twisted.internet.task import Clock
from twisted.python.failure import Failure
from twisted.trial.unittest import SynchronousTestCase

import msglog
from msglog._counts import ConnectionCounts
from msglog._events import Events, Sampler, last_records
from msglog._health import Health
from msglog._records import format_fragments, format_time, opening
from msglog._service import is_local
from msglog._web import Page, Probe, answers_to, make_site
from msglog.testing import MemoryTransport, make_batch

A = bytes(range(16))


class Answer:
    """A response, taken apart."""

    def __init__(self, data: bytes) -> None:
        head, _, self.body = data.partition(b"\r\n\r\n")
        status, *lines = head.decode().split("\r\n")
        self.code = int(status.split()[1])
        self.headers = dict(line.lower().split(": ", 1) for line in lines)


class SiteCase(SynchronousTestCase):
    def setUp(self) -> None:
        self.clock = Clock()
        self.health = Health((), (), ())
        self.counts = ConnectionCounts()
        self.size = 0
        self.records: list[Deferred] = []
        self.events = Events(
            self.clock,
            self.counts,
            lambda: {"told": True},
            lambda: self.size,
            self.read_records,
            2,
        )
        self.site = make_site(
            self.clock,
            {
                b"": Page(),
                b"events": self.events,
                b"livez": Probe(lambda: self.health, lambda h: h.not_live, "live"),
                b"readyz": Probe(lambda: self.health, lambda h: h.not_ready, "ready"),
            },
            ["Log.Example"],
            3,
        )
        self.events.start()
        self.addCleanup(self.events.stop)

    def read_records(self, size: int) -> Deferred:
        reading: Deferred = Deferred()
        self.records.append(reading)
        return reading

    def connect(self) -> MemoryTransport | None:
        protocol = self.site.buildProtocol(IPv4Address("TCP", "127.0.0.1", 1))
        if protocol is None:
            return None
        transport = MemoryTransport()
        transport.protocol = protocol
        protocol.makeConnection(transport)
        self.addCleanup(self.lose, transport)
        return transport

    def lose(self, transport: MemoryTransport) -> None:
        if transport.protocol is not None:
            transport.protocol.connectionLost(Failure(ConnectionDone()))
            transport.protocol = None

    def send(self, request: str, **headers: str) -> MemoryTransport:
        transport = self.connect()
        lines = [f"{request} HTTP/1.1", *(f"{k}: {v}" for k, v in headers.items())]
        transport.protocol.dataReceived("\r\n".join([*lines, "", ""]).encode())
        return transport

    def get(self, path: str, **headers: str) -> Answer:
        transport = self.send(f"GET {path}", **{"Host": "localhost:7515", **headers})
        answer = Answer(transport.value())
        self.lose(transport)
        return answer


class SiteTest(SiteCase):
    def test_probes(self) -> None:
        """200 or 503, with the reasons and the warnings."""
        answer = self.get("/readyz")
        self.assertEqual((answer.code, answer.body), (200, b"ready\n"))
        self.health = Health((), ("a", "b"), ("w",))
        answer = self.get("/readyz")
        self.assertEqual(answer.code, 503)
        self.assertEqual(answer.body, b"not ready: a\nnot ready: b\nwarning: w\n")
        self.assertEqual(self.get("/livez").code, 200)
        self.health = Health(("dead",), ("dead",), ())
        self.assertEqual(self.get("/livez").code, 503)

    def test_probes_as_json(self) -> None:
        """The same for programs."""
        self.health = Health((), ("a",), ("w",))
        answer = self.get("/readyz", Accept="application/json")
        self.assertEqual(answer.code, 503)
        self.assertEqual(
            json.loads(answer.body), {"ok": False, "reasons": ["a"], "warnings": ["w"]}
        )
        self.assertEqual(answer.headers["content-type"], "application/json")

    def test_headers(self) -> None:
        """Every answer says that it is for nobody else and for no later time."""
        for path in ("/", "/readyz", "/nothing", "/%2e%2e/etc/passwd", "//x"):
            headers = self.get(path).headers
            self.assertIn("default-src 'none'", headers["content-security-policy"], path)
            self.assertEqual(headers["x-content-type-options"], "nosniff")
            self.assertEqual(headers["referrer-policy"], "no-referrer")
            self.assertEqual(headers["cache-control"], "no-store")
            self.assertNotIn("access-control-allow-origin", headers)
            self.assertEqual(headers["server"], "msglog")

    def test_nothing_else(self) -> None:
        """There are no other paths, and what was asked for is not repeated."""
        answer = self.get("/<script>")
        self.assertEqual(answer.code, 404)
        self.assertNotIn(b"<", answer.body)

    def test_read_only(self) -> None:
        """Only GET and HEAD are known, and HEAD has no body."""
        for method in ("POST", "PUT", "DELETE", "OPTIONS", "TRACE", "BREW"):
            answer = Answer(self.send(f"{method} /", Host="localhost").value())
            self.assertEqual((answer.code, answer.headers["allow"]), (405, "get, head"))
            self.doCleanups()
            self.setUp()
        answer = Answer(self.send("HEAD /", Host="localhost").value())
        self.assertEqual((answer.code, answer.body), (200, b""))

    def test_bodies_are_not_kept(self) -> None:
        """However long a request's body is, nothing of it is held."""
        transport = self.connect()
        head = "GET /readyz HTTP/1.1\r\nHost: localhost\r\nContent-Length: 10000000\r\n\r\n"
        transport.protocol.dataReceived(head.encode())
        (request,) = transport.protocol.wrappedProtocol._channel.requests
        transport.protocol.dataReceived(bytes(5_000_000))
        self.assertEqual(request.content.getvalue(), b"")
        transport.protocol.dataReceived(bytes(5_000_000))
        self.assertEqual(Answer(transport.value()).code, 200)

    def test_host(self) -> None:
        """Addresses, localhost and given names are answered, as a Host header has them."""
        for host, answered in (
            ("127.0.0.1", True),
            ("127.0.0.1:7515", True),
            ("[::1]:7515", True),
            ("192.0.2.7:80", True),
            ("localhost", True),
            ("LOCALHOST:1", True),
            ("log.example", True),
            ("log.example.:7515", True),
            ("evil.example", False),
            ("evil.example:7515", False),
            ("127.0.0.1.evil.example", False),
            ("localhost.evil.example", False),
            ("log.example@evil.example", False),
            ("", False),
            ("::1", False),
        ):
            self.assertEqual(answers_to(host, {"log.example"}), answered, host)
            answer = Answer(self.send("GET /readyz", Host=host).value())
            self.assertEqual(answer.code, 200 if answered else 421, host)
            self.doCleanups()
            self.setUp()

    def test_connections_are_bounded(self) -> None:
        """One more than there may be takes the place of the oldest that asks nothing whole."""
        first, second, third = self.connect(), self.connect(), self.connect()
        first.protocol.dataReceived(b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 9\r\n\r\n1")
        fourth = self.send("GET /livez", Host="localhost")
        self.assertEqual(Answer(fourth.value()).code, 200)
        self.assertEqual([each.aborted for each in (first, second, third)], [True, False, False])

    def test_who_is_answered_stays(self) -> None:
        """A watcher keeps its place; when everybody is being answered, one more is not taken."""
        watchers = [self.send("GET /events", Host="localhost") for _ in range(2)]
        idle = self.connect()
        self.assertIsNotNone(self.connect())
        self.assertTrue(idle.aborted)
        self.assertEqual([each.aborted for each in watchers], [False, False])
        self.lose(idle)
        for connection in self.site.protocols:
            connection.answering = True
        self.assertIsNone(self.connect())

    def test_silent_connections_end(self) -> None:
        """A connection without a request is closed."""
        transport = self.connect()
        self.clock.advance(30)
        self.assertTrue(transport.disconnecting)


class PageTest(SiteCase):
    def test_policy(self) -> None:
        """The page's own style and script are allowed by their hashes, and nothing else is."""
        answer = self.get("/")
        self.assertEqual(answer.headers["content-type"], "text/html; charset=utf-8")
        policy = answer.headers["content-security-policy"]
        self.assertEqual(len(re.findall(r"(?:style|script)-src 'sha256-[^']+'", policy)), 2)
        self.assertNotIn("unsafe", policy)

    def test_self_contained(self) -> None:
        """It needs nothing from elsewhere, and has no code that a policy of hashes would block."""
        html = (Path(msglog.__file__).parent / "status.html").read_text()
        links = set(re.findall(r"\b(?:src|href)=(\S+?)[ >]", html))
        icon = '"data:image/svg+xml,%3Csvg'
        self.assertEqual(links, {icon, '"metrics"', '"readyz"', '"livez"'})
        namespaces = set(re.findall(r"https?://[^\"' ]+", html))
        self.assertEqual(namespaces, {"http://www.w3.org/2000/svg"})
        self.assertEqual(re.findall(r"\son[a-z]+=|\sstyle=|innerHTML|\.write\(|eval\(", html), [])


class EventsTest(SiteCase):
    def watch(self) -> MemoryTransport:
        return self.send("GET /events", Host="localhost")

    def told(self, transport: MemoryTransport) -> list[dict]:
        data = transport.value()
        transport.clear()
        return [json.loads(line) for line in re.findall(rb"^data: (.*)\n", data, re.M)]

    def test_once_a_second(self) -> None:
        """A watcher is told the past at once, and then each second."""
        self.clock.advance(1)
        self.clock.advance(1)
        transport = self.watch()
        self.assertIn(b"text/event-stream", transport.value())
        (first,) = self.told(transport)
        self.assertTrue(first["told"])
        self.assertEqual([sample[0] for sample in first["samples"]], [1, 2])
        self.counts.acked += 500
        self.counts.ack_seconds.buckets[5] += 500
        self.clock.advance(1)
        (second,) = self.told(transport)
        self.assertEqual(second["samples"], [[3, 500, 0.000997]])
        self.clock.pump([1.0] * 100)  # longer than a connection may be silent
        self.assertEqual(len(self.told(transport)), 100)
        self.assertFalse(transport.disconnecting)

    def test_bounded(self) -> None:
        """One watcher too many is told to come back, and may when one has gone."""
        first, _ = self.watch(), self.watch()
        third = self.watch()
        self.assertEqual(Answer(third.value()).code, 503)
        self.assertEqual(Answer(third.value()).headers["retry-after"], "10")
        self.lose(first)
        third.clear()
        third.protocol.dataReceived(b"GET /events HTTP/1.1\r\nHost: localhost\r\n\r\n")
        self.assertEqual(Answer(third.value()).code, 200)

    def test_slow_watchers(self) -> None:
        """One who does not read is passed over, and after a while let go."""
        transport = self.watch()
        self.told(transport)
        transport.producer.pauseProducing()
        self.clock.advance(1)
        self.assertEqual(self.told(transport), [])
        transport.producer.resumeProducing()
        self.clock.advance(1)
        self.assertEqual(len(self.told(transport)), 1)
        transport.producer.pauseProducing()
        self.clock.pump([1.0] * 29)
        self.assertFalse(transport.aborted)
        self.clock.advance(1)
        self.assertEqual(self.told(transport), [])
        self.assertTrue(transport.aborted)

    def test_busiest(self) -> None:
        """Clients are counted while somebody watches, by windows."""
        self.assertIsNone(self.counts.busiest)
        transport = self.watch()
        self.counts.busiest.count(A, 300)
        self.clock.pump([1.0] * 3)
        busiest = self.told(transport)[-1]["busiest"]
        client = str(uuid.UUID(bytes=A))
        self.assertEqual(busiest, {"seconds": 3, "clients": [{"client": client, "rate": 100.0}]})
        self.clock.pump([1.0] * 3)
        self.assertEqual(self.told(transport)[-1]["busiest"]["clients"], [])
        self.lose(transport)
        self.assertIsNone(self.counts.busiest)

    def test_records(self) -> None:
        """The last records are read when there are new ones, one read at a time."""
        transport = self.watch()
        (reading,) = self.records
        self.size = 100
        self.clock.pump([1.0] * 3)
        self.assertEqual(self.told(transport)[-1]["records"], [])
        self.assertEqual(len(self.records), 1)
        reading.callback([{"sequence": 1}])
        self.clock.advance(1)
        self.assertEqual(self.told(transport)[-1]["records"], [{"sequence": 1}])
        self.records[1].errback(FileNotFoundError())  # moved away just now
        self.clock.advance(1)
        self.assertEqual(len(self.records), 3)
        self.records[2].callback([{"sequence": 2}])
        self.clock.pump([1.0] * 3)
        self.assertEqual(self.told(transport)[-1]["records"], [{"sequence": 2}])
        self.assertEqual(len(self.records), 3)

    def test_stop(self) -> None:
        """At the end all watchers are let go."""
        transport = self.watch()
        self.events.stop()
        self.assertTrue(transport.disconnecting)

    def test_history_is_bounded(self) -> None:
        """Only the last five minutes are kept."""
        sampler = Sampler(self.counts, self.clock.seconds)
        for _ in range(400):
            self.clock.rightNow += 1
            sampler.sample()
        self.assertEqual(len(sampler.history), 300)


class LastRecordsTest(SynchronousTestCase):
    def write(self, *bodies: bytes) -> int:
        self.path = Path(self.mktemp())
        batch = make_batch(A, 1, *bodies)
        prefix = opening(format_time(1_700_000_000_000_000), A)
        lines = b"".join(prefix + fragment for fragment in format_fragments(batch))
        self.path.write_bytes(lines)
        return len(lines)

    def test_newest_first(self) -> None:
        """The last ten, without their messages."""
        size = self.write(*(b"%d" % n for n in range(1, 21)))
        records = last_records(self.path, size, bodies=False)
        self.assertEqual([record["sequence"] for record in records], list(range(20, 10, -1)))
        self.assertEqual(set(records[0]), {"time", "client", "sequence", "bytes"})

    def test_bodies(self) -> None:
        """On request with their messages: as text, and cut."""
        size = self.write(b"<b>", b"\xff\x00", b"x" * 500)
        records = last_records(self.path, size, bodies=True)
        self.assertEqual([r["body"] for r in records], ["x" * 200 + "…", "�\x00", "<b>"])

    def test_only_what_is_committed(self) -> None:
        """What is behind the last commit, or cut, is not shown."""
        size = self.write(b"a", b"b", b"c")
        self.assertEqual(len(last_records(self.path, size - 1, bodies=False)), 2)
        self.assertEqual(last_records(self.path, 0, bodies=False), [])

    def test_only_the_end_is_read(self) -> None:
        """Of a long log only the end is looked at."""
        size = self.write(*(b"x" * 200 for _ in range(1000)))
        records = last_records(self.path, size, bodies=False)
        self.assertEqual([r["sequence"] for r in records], list(range(1000, 990, -1)))

    def test_damage(self) -> None:
        """A damaged line is left out."""
        size = self.write(b"a", b"b", b"c")
        data = self.path.read_bytes().replace(b'"b"', b'"B"')
        self.path.write_bytes(data)
        records = last_records(self.path, size, bodies=False)
        self.assertEqual([record["sequence"] for record in records], [3, 1])


class LocalTest(SynchronousTestCase):
    def test_addresses(self) -> None:
        """Which addresses only this machine can connect to."""
        for address, local in (
            (IPv4Address("TCP", "127.0.0.1", 1), True),
            (IPv4Address("TCP", "127.9.9.9", 1), True),
            (IPv6Address("TCP", "::1", 1), True),
            (UNIXAddress(b"/run/x"), True),
            (IPv4Address("TCP", "0.0.0.0", 1), False),
            (IPv6Address("TCP", "::", 1), False),
            (IPv4Address("TCP", "192.0.2.1", 1), False),
        ):
            self.assertEqual(is_local(address), local, address)
