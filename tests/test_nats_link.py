"""The store's connection to NATS, with servers in memory."""

from __future__ import annotations

import os
from base64 import urlsafe_b64decode
from pathlib import Path

import nkeys
import orjson
from twisted.internet.defer import Deferred, fail
from twisted.internet.error import ConnectionDone, ConnectionLost, ConnectionRefusedError
from twisted.internet.task import Clock
from twisted.internet.testing import StringTransport
from twisted.python.failure import Failure
from twisted.trial.unittest import SynchronousTestCase

from msglog import StartError
from msglog._nats_access import NatsAccess, TLSFiles, parse_nats
from msglog._nats_link import NatsLink

INFO = {"version": "2.15.1", "max_payload": 1048576}


class _Transport(StringTransport):
    """One that says when it is aborted, and takes what a connection asks of it."""

    secured = None
    aborted = False

    def setTcpNoDelay(self, enabled: bool) -> None:
        pass

    def startTLS(self, options: object) -> None:
        self.secured = options

    def abortConnection(self) -> None:
        self.aborted = True


class _Server:
    """One end of one connection."""

    def __init__(self, where: tuple[str, int], protocol) -> None:
        self.where = where
        self.protocol = protocol
        self.transport = _Transport()
        protocol.makeConnection(self.transport)

    def say(self, data: bytes) -> None:
        self.protocol.dataReceived(data)

    def heard(self) -> bytes:
        data = self.transport.value()
        self.transport.clear()
        return data

    def greet(self, **info) -> dict:
        """Greet and let in; what CONNECT said."""
        self.say(b"INFO %b\r\n" % orjson.dumps({**INFO, **info}))
        heard = self.heard().split(b"\r\n")
        self.say(b"PONG\r\n")
        return orjson.loads(heard[0].removeprefix(b"CONNECT "))

    def lose(self, reason: type[Exception] = ConnectionLost) -> None:
        self.protocol.connectionLost(Failure(reason()))


class _Endpoint:
    def __init__(self, case: LinkCase, where: tuple[str, int]) -> None:
        self.case, self.where = case, where

    def connect(self, factory) -> Deferred:
        self.case.tried.append(self.where)
        if self.where in self.case.away:
            return fail(ConnectionRefusedError())
        made = Deferred()
        server = _Server(self.where, factory.buildProtocol(None))
        self.case.servers.append(server)
        made.callback(server.protocol)
        return made


class LinkCase(SynchronousTestCase):
    def setUp(self) -> None:
        self.clock = Clock()
        self.tried: list[tuple[str, int]] = []
        self.away: set[tuple[str, int]] = set()
        self.servers: list[_Server] = []
        self.replies: list[tuple[str, object]] = []

    def make(self, access: NatsAccess | str = "nats://a") -> NatsLink:
        if isinstance(access, str):
            access = parse_nats(access)
        link = NatsLink(self.clock, access, 1.0, endpoint=lambda *where: _Endpoint(self, where))
        link.start()
        return link

    def ask(self, link: NatsLink, name: str) -> None:
        link.request("subject", name.encode(), None, lambda r: self.replies.append((name, r)))

    def heard_inboxes(self, server: _Server) -> list[bytes]:
        lines = server.heard().split(b"\r\n")
        return [line.split()[2] for line in lines if line.startswith((b"PUB", b"HPUB"))]


class LinkTest(LinkCase):
    def test_requests(self) -> None:
        """Answers find what they answer, in whatever order they come; each is given once."""
        link = self.make()
        (server,) = self.servers
        self.assertEqual(server.where, ("a", 4222))
        self.assertEqual(server.greet()["headers"], True)
        self.assertEqual((link.trouble, link.max_payload, link.version), ("", 1048576, (2, 15)))
        for name in "abc":
            self.ask(link, name)
        first, second, third = self.heard_inboxes(server)
        server.say(b"MSG %b 1 1\r\nB\r\nMSG %b 1 1\r\nA\r\n" % (second, first))
        server.say(b"MSG %b 1 1\r\nA\r\n" % first)
        server.say(b"HMSG %b 1 16 16\r\nNATS/1.0 503\r\n\r\n\r\n" % third)
        self.assertEqual(
            [(n, r.data) for n, r in self.replies], [("b", b"B"), ("a", b"A"), ("c", None)]
        )
        self.assertIn("nobody answers", self.replies[-1][1].trouble)
        self.clock.advance(5)
        self.assertEqual(len(self.replies), 3)

    def test_no_answer(self) -> None:
        """A request that has no answer in time is told so; later ones have their time."""
        link = self.make()
        (server,) = self.servers
        server.greet()
        self.ask(link, "a")
        self.clock.advance(0.5)
        self.ask(link, "b")
        self.clock.advance(0.5)
        self.assertEqual([name for name, _ in self.replies], ["a"])
        self.assertIn("no answer within 1 s", self.replies[0][1].trouble)
        self.clock.advance(0.5)
        self.assertEqual([name for name, _ in self.replies], ["a", "b"])
        for inbox in self.heard_inboxes(server):
            server.say(b"MSG %b 1 1\r\nx\r\n" % inbox)
        self.assertEqual(len(self.replies), 2)

    def test_not_connected(self) -> None:
        """What cannot be sent is answered at once, and not sent when it can be."""
        link = self.make()
        self.ask(link, "a")
        self.assertEqual(self.replies[0][1].trouble, "not connected")
        (server,) = self.servers
        server.say(b"INFO {}\r\n")
        self.ask(link, "b")  # the server has not let us in
        server.say(b"PONG\r\n")
        self.assertEqual(len(self.replies), 2)
        self.assertEqual(self.heard_inboxes(server), [])

    def test_lost(self) -> None:
        """A lost connection answers what was asked over it, and another server is tried."""
        link = self.make("nats://a,b")
        (server,) = self.servers
        server.greet()
        self.ask(link, "a")
        server.lose()
        self.assertEqual(self.replies[0][1].trouble, "the connection was lost")
        self.assertEqual(link.counts.server, "")
        self.ask(link, "b")
        self.assertEqual(len(self.replies), 2)
        self.clock.advance(0.2)
        self.assertEqual({where[0] for where in self.tried}, {"a", "b"})
        self.servers[1].greet()
        self.ask(link, "c")
        self.assertEqual(len(self.heard_inboxes(self.servers[1])), 1)
        self.assertEqual(link.trouble, "")
        self.assertEqual(link.counts.server, ":".join(map(str, self.servers[1].where)))
        self.assertEqual(link.counts.reconnects, 1)

    def test_left(self) -> None:
        """A server is left for another when it is asked to, and that is said."""
        link = self.make("nats://a,b")
        link.leave("not connected yet")
        self.servers[0].greet()
        self.ask(link, "a")
        link.leave("nobody answers")
        self.servers[0].lose()
        self.assertIn("is left: nobody answers", link.trouble)
        self.assertIsNone(self.replies[0][1].data)
        self.clock.advance(0.2)
        self.assertEqual({where[0] for where in self.tried}, {"a", "b"})

    def test_away(self) -> None:
        """Servers that are away are tried in turn for ever, not too often, and said once each."""
        self.away = {("a", 4222), ("b", 4222)}
        link = self.make("nats://a,b")
        self.clock.pump([0.01] * 1000)
        self.assertIn("refused", link.trouble)
        self.assertEqual(
            abs(self.tried.count(("a", 4222)) - self.tried.count(("b", 4222))) <= 1, True
        )
        self.assertTrue(45 <= len(self.tried) <= 101, len(self.tried))
        self.away = set()
        self.clock.advance(0.2)
        self.servers[0].greet()
        self.assertEqual(link.trouble, "")

    def test_discovered(self) -> None:
        """A server that only the cluster has named is tried too."""
        self.make("nats://a")
        self.servers[0].greet(connect_urls=["10.0.0.2:4223", "a:4222"])
        self.away = {("a", 4222)}
        self.servers[0].lose()
        self.clock.pump([0.1] * 10)
        self.assertEqual(self.servers[1].where, ("10.0.0.2", 4223))
        self.servers[1].greet()
        told = {**INFO, "connect_urls": ["[::1]:4224"]}  # it joins later
        self.servers[1].say(b"INFO %b\r\n" % orjson.dumps(told))
        self.away.add(("10.0.0.2", 4223))
        self.servers[1].lose()
        self.clock.pump([0.1] * 10)
        self.assertEqual(self.servers[2].where, ("::1", 4224))

    def test_too_long(self) -> None:
        """What the server would close the connection for is not sent."""
        link = self.make()
        (server,) = self.servers
        server.greet(max_payload=10_000)
        for size in (9_000, 10_000):
            link.request("s", bytes(size), {"A": "1"}, lambda r: self.replies.append(("", r)))
        self.assertEqual(len(self.heard_inboxes(server)), 1)
        self.assertEqual(len(self.replies), 1)
        self.assertIn("longer than the server takes", self.replies[0][1].trouble)

    def test_complaints(self) -> None:
        """Why a server lets nobody in is what is said, not that it closed the connection."""
        link = self.make()
        (server,) = self.servers
        server.say(b"INFO {}\r\n-ERR 'Authorization Violation'\r\n")
        server.lose(ConnectionDone)
        self.assertEqual(link.trouble, "Authorization Violation")

    def test_permissions(self) -> None:
        """A right that is missing ends no connection."""
        link = self.make()
        (server,) = self.servers
        server.greet()
        server.say(b"-ERR 'Permissions Violation for Publish to \"x\"'\r\n")
        self.assertIn("Permissions Violation", link.trouble)
        self.ask(link, "a")
        self.assertEqual(len(self.heard_inboxes(server)), 1)
        server.lose(ConnectionDone)
        self.assertEqual(link.trouble, "the server closed the connection")


class SilenceTest(LinkCase):
    def test_pings(self) -> None:
        """A server that answers no PING is left; one that does is not."""
        link = self.make()
        (server,) = self.servers
        server.greet()
        for _ in range(5):
            self.clock.advance(2)
            self.assertEqual(server.heard(), b"PING\r\n")
            server.say(b"PONG\r\n")
        self.clock.pump([2] * 2)
        self.assertFalse(server.transport.aborted)
        self.clock.advance(2)
        self.assertTrue(server.transport.aborted)
        server.lose()
        self.assertIn("no PING", link.trouble)

    def test_answered(self) -> None:
        """A server's PING is answered."""
        self.make()
        (server,) = self.servers
        server.greet()
        server.say(b"PING\r\n")
        self.assertEqual(server.heard(), b"PONG\r\n")

    def test_no_login(self) -> None:
        """A server that says nothing is left, and one that does not let in."""
        link = self.make()
        self.clock.advance(2)
        self.assertTrue(self.servers[0].transport.aborted)
        self.servers[0].lose()
        self.assertIn("no login", link.trouble)
        self.clock.advance(0.2)
        self.servers[1].say(b"INFO {}\r\n")
        self.clock.advance(2)
        self.assertTrue(self.servers[1].transport.aborted)

    def test_no_nats(self) -> None:
        """What is no NATS server is left, and that is said."""
        link = self.make()
        (server,) = self.servers
        server.say(b"220 mail.example ESMTP\r\n")
        self.assertTrue(server.transport.aborted)
        server.lose()
        self.assertIn("not a NATS server's words", link.trouble)


class StopTest(LinkCase):
    def test_stop(self) -> None:
        """A stop ends the connection, leaves no timer, and tries no more."""
        link = self.make()
        (server,) = self.servers
        server.greet()
        self.ask(link, "a")
        stopped = link.stop()
        self.assertTrue(server.transport.disconnecting)
        self.assertNoResult(stopped)
        server.lose(ConnectionDone)
        self.successResultOf(stopped)
        self.assertEqual(len(self.replies), 1)
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_stop_in_vain(self) -> None:
        """It waits for no server that hangs."""
        link = self.make()
        (server,) = self.servers
        server.greet()
        link.stop()
        self.clock.advance(2)
        self.assertTrue(server.transport.aborted)

    def test_stop_while_away(self) -> None:
        """Nor for one that is not there."""
        self.away = {("a", 4222)}
        link = self.make()
        self.successResultOf(link.stop())
        self.assertEqual(self.clock.getDelayedCalls(), [])


class WhoTest(LinkCase):
    def test_login(self) -> None:
        """Names, passwords and tokens are said as the server wants them."""
        for url, said in (
            ("nats://a", {}),
            ("nats://me:secret@a", {"user": "me", "pass": "secret"}),
            ("nats://token@a", {"auth_token": "token"}),
        ):
            self.make(url)
            options = self.servers[-1].greet()
            names = ("user", "pass", "auth_token")
            self.assertEqual({name: options[name] for name in names if name in options}, said)

    def test_credentials(self) -> None:
        """A credentials file signs what the server wants signed."""
        seed = nkeys.encode_seed(os.urandom(32), nkeys.PREFIX_BYTE_USER)
        path = Path(self.mktemp())
        path.write_text(
            "-----BEGIN NATS USER JWT-----\neyJ0.e30.c2ln\n------END NATS USER JWT------\n\n"
            f"-----BEGIN USER NKEY SEED-----\n{seed.decode()}\n------END USER NKEY SEED------\n"
        )
        self.make(NatsAccess(("a:4222",), credentials=path))
        options = self.servers[-1].greet(nonce="sign me")
        self.assertEqual(options["jwt"], "eyJ0.e30.c2ln")
        key = nkeys.from_seed(seed)
        self.assertTrue(key.verify(b"sign me", urlsafe_b64decode(options["sig"] + "==")))

    def test_bad_credentials(self) -> None:
        """A file that is none is an error of the start, which shows nothing of it."""
        path = Path(self.mktemp())
        for text in (
            None,
            "SECRET",
            "-BEGIN NATS USER JWT-\na\n-END\n-BEGIN USER NKEY SEED-\nSECRET\n-END",
        ):
            if text is not None:
                path.write_text(text)
            with self.assertRaises(StartError) as caught:
                self.make(NatsAccess(("a:4222",), credentials=path))
            self.assertIn(str(path), str(caught.exception))
            self.assertNotIn("SECRET", str(caught.exception))

    def test_tls(self) -> None:
        """TLS begins before anything is said, where either side wants it."""
        for access, info, secure in (
            ("nats://a", {}, False),
            ("nats://a", {"tls_available": True}, False),
            ("nats://a", {"tls_required": True}, True),
            ("tls://a", {"tls_available": True}, True),
        ):
            self.make(access)
            server = self.servers[-1]
            server.say(b"INFO %b\r\n" % orjson.dumps({**INFO, **info}))
            self.assertEqual(server.transport.secured is not None, secure, (access, info))
            self.assertIn(b'"tls_required":%b' % (b"true" if secure else b"false"), server.heard())

    def test_no_tls(self) -> None:
        """A server without TLS is told no password by who wants TLS."""
        link = self.make(parse_nats("nats://me:secret@a").with_tls(TLSFiles()))
        (server,) = self.servers
        server.say(b"INFO {}\r\n")
        self.assertEqual(server.heard(), b"")
        self.assertTrue(server.transport.aborted)
        server.lose()
        self.assertIn("has no TLS", link.trouble)
