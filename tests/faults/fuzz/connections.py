"""Targets that are spoken to: the server, a client, the store's NATS connection, --http."""

from __future__ import annotations

from uuid import UUID

import orjson
from google_crc32c import value as crc32c
from twisted.internet.address import IPv4Address
from twisted.internet.defer import Deferred
from twisted.internet.error import ConnectionDone
from twisted.internet.task import Clock
from twisted.internet.testing import StringTransport
from twisted.python.failure import Failure

from msglog import Limits, MessageLogFactory, NackCode
from msglog._batch import MAX_SEQUENCE
from msglog._counts import ConnectionCounts
from msglog._events import Events
from msglog._frames import (
    Ack,
    FrameDecoder,
    Nack,
    Run,
    _encode,
    decode_answers,
    encode_enquiry,
    encode_message,
    encode_nack,
    encode_terms,
)
from msglog._health import Health
from msglog._nats_access import parse_nats
from msglog._nats_frames import NatsFault, NatsFrames
from msglog._nats_link import NatsLink
from msglog._session import Delivered, Message, Session
from msglog._web import Page, Probe, make_site
from msglog.testing import MemoryStore, MemoryTransport

from .choices import Choices, mutated, pieces

__all__ = ["answers", "frames", "http", "nats"]

_IDS = [bytes([n]) * 16 for n in range(3)]
_MAX_BODY = 40
_NUMBERS = [0, 1, 2, 28, 29, 30, 2**16, MAX_SEQUENCE, MAX_SEQUENCE + 1, 2**64 - 1]
_FOREIGN = [
    b"GET / HTTP/1.1\r\nHost: x\r\n\r\n",
    bytes.fromhex("16030100f4010000f00303"),
    b"SSH-2.0-OpenSSH_9\r\n",
    bytes(40),
]


def _stream(choices: Choices) -> bytes:
    """What a client may send, or somebody who is none."""
    data = b""
    following = dict.fromkeys(_IDS, 1)
    while choices and len(data) < 4000:
        kind, client = choices.number(16), choices.one_of(_IDS)
        if kind < 8:
            frame = encode_message(client, following[client], choices.some(_MAX_BODY))
            following[client] += 1
        elif kind == 8:
            sequence = max(following[client] - 1 - choices.number(4), 0)
            frame = encode_message(client, sequence, choices.some(_MAX_BODY + 9))
        elif kind == 9:
            frame = encode_enquiry(client, 1 + choices.number(255))
        elif kind == 10:
            sequence = choices.one_of(_NUMBERS)
            frame = _encode(choices.number(256), client, sequence, choices.some(_MAX_BODY + 9))
        elif kind == 11:
            frame = choices.one_of(_FOREIGN)
        elif kind == 12:
            frame = choices.take(40)
        elif kind == 13:
            frame = choices.one_of(_NUMBERS).to_bytes(8, "big")[4:] + choices.take(40)
        else:
            frame = mutated(choices, encode_message(client, following[client], choices.some(30)))
        data += frame
    return data


def _plainly(data: bytes) -> list[tuple[int, bytes, int, int]]:
    """
    What a server answers, read off docs/protocol.md with no thought for speed: for each answer a
    code (0: ACK, -1: TERMS), the client, the sequence, and the checksum of an ACK.
    """
    said: list[tuple[int, bytes, int, int]] = []
    logged: dict[bytes, list[int]] = {}
    while len(data) >= 4:
        length = int.from_bytes(data[:4], "big")
        if length < 29 or length > 29 + 16 * 1024 * 1024:
            return [*said, (NackCode.MALFORMED, bytes(16), 0, 0)]
        if len(data) < 33:
            break
        checksum = int.from_bytes(data[4:8], "big")
        kind, client = data[8], data[9:25]
        sequence = int.from_bytes(data[25:33], "big")
        fits = 0 < sequence <= MAX_SEQUENCE
        if length > 29 + _MAX_BODY:
            if kind != 1 or not fits:
                return [*said, (NackCode.MALFORMED, client, sequence, 0)]
            said.append((NackCode.TOO_LONG, client, sequence, 0))
            data = data[4 + length :]
            continue
        if len(data) < 4 + length:
            break
        frame, data = data[: 4 + length], data[4 + length :]
        known = logged.get(client, [])
        if crc32c(frame[8:]) != checksum:
            said.append((NackCode.CORRUPT, client, sequence, 0))
        elif kind == 5 and sequence == 0 and length == 30 and frame[33]:
            said.append((-1, client, len(known), 0))
        elif kind != 1 or not fits:
            return [*said, (NackCode.MALFORMED, client, sequence, 0)]
        elif sequence > len(known) + 1:
            said.append((NackCode.OUT_OF_ORDER, client, sequence, 0))
        elif sequence <= len(known) and known[sequence - 1] != checksum:
            said.append((NackCode.CONFLICT, client, sequence, 0))
        else:
            if sequence == len(known) + 1:
                logged.setdefault(client, []).append(checksum)
            said.append((0, client, sequence, checksum))
    return said


def _flat(events: list) -> list:
    flat: list = []
    for event in events:
        if isinstance(event, Run):
            flat += zip(event.heads, event.checksums, event.bodies, strict=True)
        else:
            flat.append(event)
    return flat


class _Server:
    def __init__(self) -> None:
        self.clock = Clock()
        self.store = MemoryStore(automatic=False)
        limits = Limits(max_message_bytes=_MAX_BODY)
        self.factory = MessageLogFactory(self.clock, self.store, limits)

    def connect(self) -> MemoryTransport:
        transport = MemoryTransport()
        transport.protocol = self.factory.buildProtocol(None)
        transport.protocol.makeConnection(transport)
        return transport

    def settle(self) -> None:
        # What one commit answers may let the next bytes be looked at.
        while self.store._waiting:
            self.store.commit()
            self.clock.advance(0)
        self.clock.advance(0)

    def stop(self) -> None:
        self.factory._sweep.stop()


def frames(data: bytes) -> None:
    """
    A connection of the server: whatever comes, and however it is cut, it is answered as
    docs/protocol.md says; and who comes after it is served.
    """
    choices = Choices(data)
    reads = choices.take(8)
    stream = _stream(choices)
    cut = pieces(Choices(reads), stream)
    whole, parts = FrameDecoder(_MAX_BODY), FrameDecoder(_MAX_BODY)
    assert _flat(whole.feed(stream)) == _flat([e for piece in cut for e in parts.feed(piece)])
    server = _Server()
    transport = server.connect()
    for index, piece in enumerate(cut):
        transport.protocol.dataReceived(piece)
        if index % 2:
            server.settle()
    server.settle()
    said = []
    for answer, _ in decode_answers(transport.value()):
        if isinstance(answer, Ack):
            said.append((0, answer.client, answer.sequence, answer.checksum))
        elif isinstance(answer, Nack):
            said.append((answer.code, answer.client, answer.sequence, 0))
        else:
            said.append((-1, answer.client, answer.durable, 0))
    assert said == _plainly(stream), (said, _plainly(stream))
    transport.protocol.connectionLost(Failure(ConnectionDone()))
    honest = server.connect()
    honest.protocol.dataReceived(encode_message(b"honest".ljust(16), 1, b"x"))
    server.settle()
    assert isinstance(honest.answers()[0], Ack)
    honest.protocol.connectionLost(Failure(ConnectionDone()))
    assert not server.factory.undurable
    assert not server.factory.connections
    server.stop()


def answers(data: bytes) -> None:
    """
    A client whose server says anything: what is called delivered has the receipts of just those
    messages, in order, and nothing is told twice.
    """
    choices = Choices(data)
    first = choices.one_of([1, None])
    session = Session(UUID(bytes=_IDS[0]), first, choices.one_of([1, 3, 1024]))
    bodies = [b"%d" % n for n in range(choices.number(9))]
    session.submit([Message(body) for body in bodies])
    told: list[bytes] = []
    sent: dict[tuple[int, int], bytes] = {}
    while choices and session.failure is None:
        choices.number(2)
        session.connected()
        for _ in range(40):
            out, events = session.proceed()
            while out:
                length = int.from_bytes(out[:4], "big") + 4
                if out[8] == 1:
                    key = int.from_bytes(out[25:33], "big"), int.from_bytes(out[4:8], "big")
                    sent[key] = out[33:length]
                out = out[length:]
            for event in events:
                if isinstance(event, Delivered):
                    for index, (message, checksum) in enumerate(
                        zip(event.messages, event.checksums, strict=True)
                    ):
                        assert sent[event.first + index, checksum] == message.body
                        told.append(message.body)
                else:
                    told.append(event.message.body)
            if not choices or not session._listening:
                break
            said = _answer(choices, sorted(sent))
            if choices.number(8) == 0:
                said = mutated(choices, said)
            for piece in pieces(choices, said):
                session.receive(piece)
            if choices.number(8) == 0:
                session.retry()
        session.disconnected("the end")
    assert told == bodies[: len(told)]


def _answer(choices: Choices, sent: list[tuple[int, int]]) -> bytes:
    kind, client = choices.number(8), choices.one_of([_IDS[0], _IDS[0], _IDS[0], _IDS[1]])
    if kind < 3 and sent:
        sequence, checksum = choices.one_of(sent)
        head = checksum.to_bytes(4, "big") + b"\x06" + client + sequence.to_bytes(8, "big")
        return b"\0\0\0\x1d" + head
    if kind < 5:
        numbers = [*range(12), *_NUMBERS]
        terms = choices.one_of(numbers), choices.one_of([1, 1, 1, 0, 2]), choices.one_of([0, 1, 99])
        return encode_terms(client, *terms, choices.one_of([0, 1, 2, 1024, 2**32 - 1]))
    if kind < 7:
        sequence, code, expected = choices.number(12), choices.number(12), choices.number(12)
        return encode_nack(client, sequence, code, expected, "r")
    return _encode(choices.number(256), client, choices.number(9), choices.some(20))


class _Wire(StringTransport):
    aborted = False

    def setTcpNoDelay(self, enabled: bool) -> None:
        pass

    def startTLS(self, options: object) -> None:
        self.secured = True

    def abortConnection(self) -> None:
        self.aborted = True


class _Endpoint:
    """Connects at once."""

    def __init__(self, wires: list) -> None:
        self._wires = wires

    def connect(self, factory) -> Deferred:
        protocol, wire = factory.buildProtocol(None), _Wire()
        connected: Deferred = Deferred()
        connected.callback(protocol)
        wire.protocol = protocol
        protocol.makeConnection(wire)
        self._wires.append(wire)
        return connected


_VALUES = [
    *(0, -1, 1 << 70, 1.5, True, None, "", "4222", "x:y", "a:1", "[::1]:4222", [], {}),
    *(["a:1", "b"], [1, None], ["h:99999999999"], {"a": 1}, "\x1b[31m\u202e"),
]
_FIELDS = [
    *("max_payload", "version", "connect_urls", "nonce", "tls_required", "tls_available"),
    *("server_id", "headers"),
]


def nats(data: bytes) -> None:
    """
    The store's connection to NATS, whose server says anything: frames are the same however they
    are cut, nothing fails, and it is tried again when the connection is lost.
    """
    choices = Choices(data)
    stream = b""
    if choices.number(4):
        stream = b'INFO {"max_payload":1048576}\r\nPONG\r\n'
    while choices and len(stream) < 4000:
        kind = choices.number(8)
        body = choices.some(30)
        stream += (
            b"PING\r\n",
            b"PONG\r\n",
            b"MSG a 1 %d\r\n%b\r\n" % (len(body), body),
            b"HMSG a 1 12 %d\r\nNATS/1.0 503\r\n\r\n%b\r\n" % (len(body) + 12, body),
            b"-ERR '%b'\r\n" % body.replace(b"\r", b"").replace(b"\n", b""),
            b"INFO %b\r\n"
            % orjson.dumps({choices.one_of(_FIELDS): choices.one_of(_VALUES[:2] + _VALUES[3:])}),
            body,
            mutated(choices, b"MSG inbox.x 1 3\r\nabc\r\nHMSG b 1 r 12 12\r\nNATS/1.0 x\r\n\r\n"),
        )[kind]
    cut = pieces(choices, stream)
    assert _fed([stream]) == _fed(cut)
    clock = Clock()
    wires: list[_Wire] = []
    link = NatsLink(
        clock, parse_nats("nats://x:4222"), 2.0, endpoint=lambda host, port: _Endpoint(wires)
    )
    link.start()
    replies: list = []
    for piece in cut:
        wires[-1].protocol.dataReceived(piece)
        if link._ready:
            link.request("subject", b"x", None, replies.append)
        if wires[-1].aborted:
            break
    for _ in range(8):
        wires[-1].protocol.connectionLost(Failure(ConnectionDone()))
        made = len(wires)
        clock.advance(0.5)
        assert len(wires) == made + 1, "it is not tried again"
    for _ in range(3):
        # The one that was given is there again, whatever others were named.
        wires[-1].protocol.dataReceived(b'INFO {"max_payload":1048576}\r\nPONG\r\n')
        assert link._ready
    assert link.trouble.isprintable()
    wires[-1].protocol.connectionLost(Failure(ConnectionDone()))
    link.stop()


def _fed(cut: list[bytes]) -> list:
    decoder, found = NatsFrames(), []
    try:
        for piece in cut:
            found += decoder.feed(piece)
    except NatsFault:
        # What came before it in the same read is lost with the connection.
        return ["fault"]
    return found


def http(data: bytes) -> None:
    """--http: whatever comes, the next one who asks is answered."""
    choices = Choices(data)
    clock = Clock()
    counts = ConnectionCounts()
    events = Events(clock, counts, dict, lambda: 0, lambda size: Deferred(), 2)
    healthy = Health((), (), ())
    resources = {
        b"": Page(),
        b"events": events,
        b"livez": Probe(lambda: healthy, lambda health: health.not_live, "live"),
    }
    site = make_site(clock, resources, ["Log.Example"], 3)
    request = b"".join(
        (
            choices.one_of([b"GET", b"HEAD", b"POST", b"TRACE", b"OPTIONS", b"PRI", b"\xff"]),
            b" ",
            choices.one_of(
                [b"/", b"/livez", b"/events", b"/../../etc/passwd", b"*", b"//x", b"a:"]
            ),
            choices.one_of([b"", b"?a=%ff", b"/%2e%2e/", b"\x1b]8;;", b"\xc3\xa9"]),
            choices.one_of([b" HTTP/1.1\r\n", b" HTTP/1.0\r\n", b" HTTP/2.0\r\n", b"\r\n"]),
        )
    )
    names = [b"Host", b"Accept", b"Content-Length", b"Transfer-Encoding", b"Expect", b"Connection"]
    values = [
        *(b"localhost", b"evil.example", b"127.0.0.1:80", b"[::1]", b"\xff\xfe", b"chunked", b"5"),
        *(b"-1", b"99999999999", b"100-continue", b"close", b"application/json", b"Upgrade", b""),
    ]
    while choices.number(4):
        request += b"%b: %b\r\n" % (choices.one_of(names), choices.one_of(values))
    request += b"\r\n" + choices.some(40)
    if choices.number(2):
        request = mutated(choices, request)
    request += choices.rest()

    def connect() -> MemoryTransport:
        protocol = site.buildProtocol(IPv4Address("TCP", "127.0.0.1", 1))
        transport = MemoryTransport()
        transport.protocol = protocol
        protocol.makeConnection(transport)
        return transport

    bad = connect()
    for piece in pieces(choices, request):
        if not bad.disconnecting and not bad.aborted:
            bad.protocol.dataReceived(piece)
        clock.advance(0)
    assert b"Traceback" not in bad.value()
    assert b"500 Internal" not in bad.value()
    bad.protocol.connectionLost(Failure(ConnectionDone()))
    good = connect()
    good.protocol.dataReceived(b"GET /livez HTTP/1.1\r\nHost: localhost\r\n\r\n")
    assert good.value().startswith(b"HTTP/1.1 200 OK\r\n"), good.value()
    good.protocol.connectionLost(Failure(ConnectionDone()))
    clock.advance(60)
