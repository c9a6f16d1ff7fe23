"""The NATS protocol as the store speaks it."""

from __future__ import annotations

from twisted.trial.unittest import SynchronousTestCase

from msglog._nats_frames import (
    Complaint,
    Info,
    Message,
    NatsFault,
    NatsFrames,
    Ping,
    Pong,
    connect,
    publish,
    subscribe,
)

SAID = (
    b'INFO {"version":"2.15.1","max_payload":1048576}\r\n'
    b"PING\r\n"
    b"+OK\r\n"
    b'MSG _INBOX.a.1 1 29\r\n{"stream":"MSGLOG","seq":123}\r\n'
    b"MSG _INBOX.a.2 1 reply.to 4\r\n\r\n\r\n\r\n"
    b"HMSG _INBOX.a.3 1 16 16\r\nNATS/1.0 503\r\n\r\n\r\n"
    b"HMSG _INBOX.a.4 1 21 26\r\nNATS/1.0\r\nName: v\r\n\r\nhello\r\n"
    b"-ERR 'Permissions Violation for Publish to \"x\"'\r\n"
    b"PONG\r\n"
)

FRAMES = [
    Info({"version": "2.15.1", "max_payload": 1048576}),
    Ping(),
    Message(b"_INBOX.a.1", b'{"stream":"MSGLOG","seq":123}'),
    Message(b"_INBOX.a.2", b"\r\n\r\n"),
    Message(b"_INBOX.a.3", b"", 503),
    Message(b"_INBOX.a.4", b"hello"),
    Complaint('Permissions Violation for Publish to "x"'),
    Pong(),
]


class Reading(SynchronousTestCase):
    def test_all(self) -> None:
        """Everything that a server says."""
        self.assertEqual(NatsFrames().feed(SAID), FRAMES)

    def test_pieces(self) -> None:
        """However it is cut."""
        for size in (1, 2, 3, 7, 50):
            frames = NatsFrames()
            found = []
            for at in range(0, len(SAID), size):
                found += frames.feed(SAID[at : at + size])
            self.assertEqual(found, FRAMES, size)
        for at in range(len(SAID)):
            frames = NatsFrames()
            self.assertEqual(frames.feed(SAID[:at]) + frames.feed(SAID[at:]), FRAMES, at)

    def test_long(self) -> None:
        """A long message is not joined again with each read."""
        frames = NatsFrames()
        body = bytes(1 << 20)
        data = b"MSG a 1 %d\r\n%b\r\nPING\r\n" % (len(body), body)
        found, held = [], 0
        for at in range(0, len(data), 65536):
            found += frames.feed(data[at : at + 65536])
            held = max(held, len(frames._chunks))
        self.assertEqual(held, 16)
        self.assertEqual(found, [Message(b"a", body), Ping()])

    def test_faults(self) -> None:
        """What is none is said to be none, and not waited for."""
        for data in (
            b"HTTP/1.1 400 Bad Request\r\n",
            b"INFO no JSON\r\n",
            b"INFO []\r\n",
            b"MSG a 1 x\r\n",
            b"MSG a 1 -5\r\n",
            b"MSG a 5\r\nhello\r\n",
            b"MSGS a 1 5\r\nhello\r\n",
            b"MSG a 1 5\r\nhello, you\r\n",
            b"MSG a 1 99999999999\r\n",
            b"HMSG a 1 x 5\r\nhello\r\n",
            b"HMSG a 1 9 5\r\nhello\r\n",
            b"HMSG a 1 5 5\r\nhello\r\n",
            b"x" * 300_000,
        ):
            self.assertRaises(NatsFault, NatsFrames().feed, data)


class Writing(SynchronousTestCase):
    def test_words(self) -> None:
        """The lines are those of the protocol."""
        self.assertEqual(connect({"verbose": False}), b'CONNECT {"verbose":false}\r\n')
        self.assertEqual(subscribe("_INBOX.a.*"), b"SUB _INBOX.a.* 1\r\n")
        self.assertEqual(b"".join(publish("a", "b.1", b"hi", None)), b"PUB a b.1 2\r\nhi\r\n")
        block = b"NATS/1.0\r\nA: 1\r\nB: x\r\n\r\n"
        self.assertEqual(
            b"".join(publish("a", "b.1", b"hi", {"A": "1", "B": "x"})),
            b"HPUB a b.1 %d %d\r\n%bhi\r\n" % (len(block), len(block) + 2, block),
        )
