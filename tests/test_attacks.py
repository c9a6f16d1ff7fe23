"""What was tried against it, and got through once; docs/security.md has the whole list."""

from __future__ import annotations

import json
import sqlite3
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace
from uuid import UUID

import orjson
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from twisted.internet.address import IPv6Address
from twisted.internet.error import ConnectionDone
from twisted.internet.task import Clock
from twisted.python.failure import Failure
from twisted.trial.unittest import SynchronousTestCase

from msglog import Limits, MessageLogFactory
from msglog._batch import STORED
from msglog._errors import LedgerDamaged, RecordError
from msglog._frames import Ack, Nack, Terms, encode_enquiry, encode_message
from msglog._nats_access import TLSFiles, parse_nats
from msglog._protocol import _TURN
from msglog._records import Record, format_line, parse_line
from msglog._scan import FaultKind, scan
from msglog._tls import allowed_ids
from msglog._writer import Appending, LogWriter
from msglog.testing import MemoryStore, MemoryTransport, make_batch
from tests.test_nats_link import LinkCase
from tests.test_web import SiteCase

A, B = bytes(range(16)), bytes(range(16, 32))


def line_of(body: bytes) -> bytes:
    return format_line(Record(10**15, A, 1, make_batch(A, 1, body).checksums[0], body))


class Floods(SynchronousTestCase):
    def setUp(self) -> None:
        self.clock = Clock()
        self.store = MemoryStore(automatic=False)
        self.factory = MessageLogFactory(self.clock, self.store, Limits())
        self.addCleanup(lambda: self.factory._sweep.running and self.factory._sweep.stop())

    def connect(self, address: IPv6Address | None = None) -> MemoryTransport:
        transport = MemoryTransport(peerAddress=address)
        transport.protocol = self.factory.buildProtocol(None)
        transport.protocol.makeConnection(transport)
        return transport

    def commit(self) -> int:
        """Have all judged that waits; how much that was."""
        waiting = len(self.store._waiting)
        self.store.commit()
        self.clock.advance(0)
        return waiting

    def flood(self, count: int) -> bytes:
        half = [encode_enquiry(n.to_bytes(16, "big")) for n in range(count // 2)]
        return b"".join(half) + b"".join(
            encode_message(n.to_bytes(16, "big"), 1, b"") for n in range(count // 2)
        )

    def test_turns(self) -> None:
        """Of one read's enquiries and new ids, a turn takes some, and others come in between."""
        flooding, honest = self.connect(), self.connect()
        flooding.protocol.dataReceived(self.flood(6 * _TURN))
        honest.protocol.dataReceived(encode_message(A, 1, b"x"))
        self.assertEqual(self.commit(), _TURN + 1)
        self.assertIsInstance(honest.answers()[0], Ack)
        self.assertEqual(flooding.producerState, "paused")
        turns = [self.commit() for _ in range(5)]
        self.assertEqual(turns, [_TURN] * 5)
        answers = flooding.answers()
        ids = [n.to_bytes(16, "big") for n in range(3 * _TURN)]
        self.assertEqual([answer.client for answer in answers], ids * 2)
        kinds = [type(answer) for answer in answers]
        self.assertEqual(kinds, [Terms] * len(ids) + [Ack] * len(ids))
        self.assertEqual(flooding.producerState, "producing")
        self.assertEqual(self.factory.undurable, 0)

    def test_one_turn_at_a_time(self) -> None:
        """However often something is answered before it, the next turn is one."""
        flooding = self.connect()
        flooding.protocol.dataReceived(self.flood(4 * _TURN))
        self.store.commit()
        flooding.protocol.flush()
        flooding.protocol.flush()
        self.clock.advance(0)
        self.assertEqual(self.commit(), _TURN)

    def test_more_while_put_off(self) -> None:
        """What a transport that was told to pause still brings comes behind what waits."""
        flooding = self.connect()
        flooding.protocol.dataReceived(self.flood(2 * _TURN))
        flooding.protocol.dataReceived(encode_message(A, 1, b"x"))
        self.assertEqual([self.commit() for _ in range(3)], [_TURN, _TURN, 1])
        self.assertEqual(flooding.answers()[-1].client, A)

    def test_what_is_put_off_counts(self) -> None:
        """It is undurable and unanswered until it is answered, beside what was so before."""
        flooding, honest = self.connect(), self.connect()
        honest.protocol.dataReceived(encode_message(A, 1, b"x"))
        of_honest = self.factory.undurable
        flooding.protocol.dataReceived(encode_message(B, 1, b"x"))
        self.assertEqual(flooding.protocol._unanswered, of_honest)
        flooding.protocol.dataReceived(self.flood(4 * _TURN))
        held = []
        while self.factory.undurable:
            self.assertEqual(
                self.factory.undurable,
                flooding.protocol._unanswered + honest.protocol._unanswered,
            )
            held.append(flooding.protocol._unanswered)
            self.commit()
        # What a run or a question costs is known before its turn, what a message does is not.
        self.assertGreater(held[0], 1200 * 4 * _TURN)
        self.assertEqual(held, sorted(held, reverse=True))
        self.assertEqual(len(held), 4)
        self.assertEqual(flooding.protocol._unanswered, 0)

    def test_held_while_put_off(self) -> None:
        """Who has something put off is not read, however much else it may have unanswered."""
        self.factory.limits = Limits(max_unanswered_bytes=1 << 30)
        flooding = self.connect()
        flooding.protocol.dataReceived(self.flood(2 * _TURN))
        self.assertEqual(flooding.producerState, "paused")
        self.commit()
        self.commit()
        self.assertEqual(flooding.producerState, "producing")
        honest = self.connect()
        honest.protocol.dataReceived(self.flood(_TURN))
        self.assertEqual(honest.producerState, "producing")

    def test_a_flood_while_the_server_stops(self) -> None:
        """It is not read faster than it is told that it is too late, and then has its end."""
        flooding = self.connect()
        flooding.protocol.dataReceived(encode_message(A, 1, b"x"))
        self.factory.stop()
        self.assertEqual(flooding.producerState, "producing")
        flooding.protocol.dataReceived(self.flood(4 * _TURN))
        self.assertEqual(flooding.producerState, "paused")
        for _ in range(4):
            self.commit()
        self.assertEqual(len(flooding.answers()), 1 + 4 * _TURN)
        self.assertTrue(flooding.disconnecting)

    def test_a_stop_answers_what_was_put_off(self) -> None:
        """What no turn came for is told so, and then the connection ends."""
        flooding = self.connect()
        flooding.protocol.dataReceived(self.flood(4 * _TURN))
        self.factory.stop()
        for _ in range(8):
            self.commit()
        answers = flooding.answers()
        self.assertEqual(len(answers), 4 * _TURN)
        self.assertIsInstance(answers[-1], Nack)
        self.assertTrue(flooding.disconnecting)

    def test_lost_while_put_off(self) -> None:
        """A connection that is lost leaves nothing behind."""
        flooding = self.connect()
        flooding.protocol.dataReceived(self.flood(4 * _TURN))
        flooding.protocol.connectionLost(Failure(ConnectionDone()))
        self.assertEqual(self.commit(), _TURN)
        self.assertEqual(self.commit(), 0)
        self.assertEqual(self.factory.undurable, 0)

    def hold_all(self, flood: bytes) -> tuple[MemoryTransport, MemoryTransport]:
        """Bring so much that nobody is read; a connection that did so, and another one."""
        self.factory.limits = Limits(max_undurable_bytes=1200 * 2 * _TURN)
        flooding, honest = self.connect(), self.connect()
        flooding.protocol.dataReceived(flood)
        self.assertEqual(honest.producerState, "paused")
        return flooding, honest

    def test_faults_alone(self) -> None:
        """What needs no store ends the wait of all others too, when it is answered."""
        damaged = bytearray(encode_message(A, 1, b""))
        damaged[-1] ^= 1
        flooding, honest = self.hold_all(bytes(damaged) * (4 * _TURN))
        while self.factory.undurable:
            self.clock.advance(0)
        self.assertEqual(len(flooding.answers()), 4 * _TURN)
        self.assertEqual(honest.producerState, "producing")
        self.assertEqual(self.connect().producerState, "producing")

    def test_lost_after_all_were_held(self) -> None:
        """A connection that is lost between two turns leaves nobody waiting."""
        flooding, honest = self.hold_all(self.flood(4 * _TURN))
        self.store.commit()
        self.factory._flush()  # all that had a turn is answered, and the next one has not begun
        self.assertEqual(honest.producerState, "paused")
        flooding.protocol.connectionLost(Failure(ConnectionDone()))
        self.assertEqual(self.factory.undurable, 0)
        self.assertEqual(honest.producerState, "producing")

    def test_who_is_read_first(self) -> None:
        """After all were held, whoever was not heard for the longest is read before the others."""
        order: list[MemoryTransport] = []
        connections = [self.connect() for _ in range(3)]
        for transport in connections:
            resume = transport.protocol.release
            transport.protocol.release = lambda reason, t=transport, r=resume: (
                order.append(t),
                r(reason),
            )
        self.factory.limits = Limits(max_undurable_bytes=1)
        brief: list[str] = []
        reader = SimpleNamespace(be_brief=lambda: brief.append("brief"))
        self.patch(self.factory, "_reader", reader)
        for index in (1, 2, 0):
            self.clock.advance(0.001)
            connections[index].protocol.dataReceived(encode_message(A, index + 1, b""))
        self.store.commit()
        self.clock.advance(0)
        self.assertEqual([connections.index(transport) for transport in order], [1, 2, 0])
        self.assertEqual(brief, ["brief"])

    def test_addresses_of_one_host(self) -> None:
        """Who has a network of IPv6 has the share of one address; IPv4 in IPv6 is told apart."""
        self.factory.limits = Limits(max_connections_per_address=2)
        peers = ["2001:db8::1", "2001:db8::2", "2001:db8::3", "2001:db8:0:1::1"]
        peers += ["::ffff:192.0.2.1", "::ffff:192.0.2.2", "::ffff:192.0.2.3"]
        refused = [
            peer for peer in peers if self.connect(IPv6Address("TCP", peer, 1)).disconnecting
        ]
        self.assertEqual(refused, ["2001:db8::3"])


class Lines(SynchronousTestCase):
    def refused(self, line: bytes) -> None:
        with self.assertRaises(RecordError):
            parse_line(line)
        summary = scan(lambda count, at: line[at : at + count], 0, len(line))
        self.assertEqual(summary.fault_counts[FaultKind.DAMAGED], 1)

    def test_forged_styles(self) -> None:
        """What looks like a record and is not quite written as one."""
        good = line_of(b"hello")
        fields = json.loads(good)
        parse_line(good)
        crc = fields["crc"].encode()
        for forged in (b"0x" + crc[2:], b"+" + crc[1:], b" " + crc[1:], crc[:1] + b"_" + crc[2:]):
            self.refused(good.replace(crc, forged))
        self.refused(good.replace(crc, crc.upper()))
        time = fields["time"].encode()
        self.refused(good.replace(time, b"2001-W36-7" + time[10:]))

    def test_terminals(self) -> None:
        """A line with a raw control character is no record, so --json can show what is one."""
        for raw in ("\x9b31m", "\x7f", "\u2028", "\x85"):
            line = line_of(b"a" + raw.encode() + b"b")
            parse_line(line)
            escaped = f"\\u{ord(raw[0]):04x}".encode()
            self.assertIn(escaped, line)
            self.refused(line.replace(escaped, raw[0].encode()))
        line = line_of(b"a")
        self.refused(line.replace(b',"message"', b',\r"message"'))


class Ledgers(SynchronousTestCase):
    def test_damaged_values(self) -> None:
        """A database that is whole and says what cannot be is refused, and not believed."""
        for number, command in enumerate(
            (
                "UPDATE meta SET value = NULL WHERE key = 'offset'",
                "UPDATE meta SET value = 'x' WHERE key = 'time'",
                "UPDATE meta SET value = -1 WHERE key = 'offset'",
                "UPDATE meta SET value = 7 WHERE key = 'file'",
            )
        ):
            path = Path(self.mktemp())
            path.mkdir()
            writer = LogWriter(path / "log", Limits())
            writer.open()
            batch = make_batch(A, 1, b"x")
            self.assertEqual(writer.commit([Appending(batch, line_of(b"x"))]), [STORED])
            writer.close()
            db = sqlite3.connect(path / "log.ledger")
            db.execute(command)
            db.commit()
            db.close()
            with self.assertRaises(LedgerDamaged, msg=f"{number}"):
                LogWriter(path / "log", Limits()).open()


class HostileNats(LinkCase):
    def test_servers_that_are_none(self) -> None:
        """Names that no connection can be made to are left out, and it goes on to be tried."""
        link = self.make()
        names = [
            "",
            "nohost",
            "h:0",
            "h:65536",
            "h:1x",
            "a b:1",
            "\x1b:1",
            5,
            None,
            "h:" + "9" * 5000,
        ]
        self.servers[0].greet(connect_urls=[*names, "b:4222", *(f"h{n}:1" for n in range(1000))])
        self.assertEqual(link._servers[:2], ["a:4222", "b:4222"])
        self.assertEqual(len(link._servers), 100)
        for told in ("x:1", {"x:1": 1}, 7):
            self.servers[0].say(b"INFO %b\r\n" % orjson.dumps({"connect_urls": told}))
        self.servers[0].lose()
        self.clock.advance(1)
        self.assertEqual(self.tried[:2], [("a", 4222), ("a", 4222)])
        link.stop()

    def test_fields_that_are_none(self) -> None:
        """Numbers that are none are as if they were not said."""
        for most in (None, [], "x", -1, 1.5):
            link = self.make()
            self.servers[-1].greet(max_payload=most, version=["x"], connect_urls=None)
            self.assertEqual((link.max_payload, link.version), (None, None))
            link.stop()

    def test_words_before_tls(self) -> None:
        """What comes in the clear before TLS begins is not taken for what came by TLS."""
        for more in (b"PONG\r\n", b"PONG\r\nMSG x 1 9\r\n", b"MSG "):
            link = self.make(parse_nats("nats://a").with_tls(TLSFiles()))
            server = self.servers[-1]
            server.say(b'INFO {"tls_required":true}\r\n' + more)
            self.assertEqual((server.transport.secured, server.transport.aborted), (None, True))
            self.assertFalse(link._ready)
            link.stop()

    def test_steering_words(self) -> None:
        """What a server complains of steers no terminal, in the log or on the status page."""
        link = self.make()
        self.servers[0].greet()
        self.servers[0].say("-ERR 'Permissions Violation \x1b]0;x\x07\u202e'\r\n".encode())
        self.assertEqual(link.trouble, "Permissions Violation \\x1b]0;x\\x07\\u202e")
        link.stop()


class Pages(SiteCase):
    def test_hosts(self) -> None:
        """Headers that are no text, and a good name beside a bad one."""
        for headers, code in (
            (b"Host: \xff\xfe", b"421"),
            (b"Host: localhost\r\nHost: evil.example", b"421"),
            (b"Host: evil.example\r\nHost: localhost", b"421"),
            (b"Accept: \xff", b"200"),
            (b"Host: localhost", b"200"),
        ):
            transport = self.connect()
            transport.protocol.dataReceived(b"GET /livez HTTP/1.1\r\n%b\r\n\r\n" % headers)
            self.assertEqual(transport.value().split()[1], code, headers)
            self.lose(transport)


class Certificates(SynchronousTestCase):
    def allowed(self, *names: str) -> frozenset[bytes] | None:
        key = ec.generate_private_key(ec.SECP256R1())
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "x\x1b[31m")])
        now = datetime.now(UTC)
        uris = [x509.UniformResourceIdentifier(name) for name in names]
        builder = x509.CertificateBuilder().subject_name(subject).issuer_name(subject)
        return allowed_ids(
            builder.public_key(key.public_key())
            .serial_number(1)
            .not_valid_before(now)
            .not_valid_after(now + timedelta(days=1))
            .add_extension(x509.SubjectAlternativeName(uris), critical=False)
            .sign(key, hashes.SHA256())
        )

    def test_names(self) -> None:
        """Only an id as it is written, in either case, is one."""
        text = str(UUID(bytes=A))
        for uri in (f"urn:uuid:{text}", f"URN:UUID:{text.upper()}"):
            self.assertEqual(self.allowed(uri), {A})
        for uri in (
            f"urn:uuid:{{{text}}}",
            f"urn:uuid:{A.hex()}",
            f"urn:uuid:urn:uuid:{text}",
            f"urn:uuid:0x{A.hex()[2:]}",
            f"urn:uuid:{'1_' * 15}11",
            f"urn:uuid:{text}\0",
            f"urn:uuid:{text}%00",
            f"urn:uuid%3a{text}",
            "urn:uuid:*",
            "urn:msglog:relay\0",
            "URN:MSGLOG:RELAY",
            "urn:msglog:rel%61y",
        ):
            self.assertEqual(self.allowed(uri), frozenset(), uri)
