"""
The way of a message through the server, walked a fixed number of times in one thread: what
L{benchmarks._cost} counts the instructions of.

Real: sockets, reactor, protocol, admission, lines, commit on a file, ledger, answers; with a store
on a stream, its requests and their answers as bytes.  Not real, so that two runs do the same: the
writer's thread is stepped, clocks stand still, the garbage collector is off, and clients are in
this process too (C{sendall} and C{recv} in C, a thousandth of the whole); and a stream is a
transport that acknowledges.  Unix sockets, because what is sent over them has arrived when C{send}
returns.

Prints the marks that it passes, one a line.  At each it calls C{getppid}, which nothing else does,
and valgrind begins a new count there.
"""

from __future__ import annotations

import gc
import os
import socket
import sys
from pathlib import Path
from struct import Struct
from typing import Any, cast

import orjson
from twisted.internet.defer import succeed

from msglog import FileStore, Limits, MessageLogFactory
from msglog._frames import FRAME_BYTES, encode_message
from msglog._jetstream import Reply
from msglog._nats_access import parse_nats
from msglog._nats_link import NatsLink
from msglog._nats_store import NatsStore
from msglog._stream_settings import stream_config
from msglog._writer import LogWriter
from msglog.testing import StepWorker

__all__ = ["SHAPES", "WALKS", "Shape"]

BODY = b"the quick brown fox jumps over the lazy dog. " * 6
SIZE = 256

# A moment for clocks that stand still: 2026-01-01.
_NOW = 1_767_225_600.0

# Walks before those that are counted: everything is imported, cached and specialised by then.
_FIRST_WALKS = 12


class Shape:
    """
    So many connections, each of which sends so many messages in one piece, and waits.

    @ivar stream: whether they are stored in a stream, and not in a file.
    """

    def __init__(
        self, connections: int, messages: int, walks: int, *, stream: bool = False
    ) -> None:
        self.connections, self.messages, self.walks = connections, messages, walks
        self.stream = stream

    @property
    def counted(self) -> int:
        """Messages that are counted."""
        return self.connections * self.messages * self.walks


SHAPES = {
    "1 message a read": Shape(1, 1, 300),
    "100 connections x 1": Shape(100, 1, 20),
    "200 messages a read": Shape(1, 200, 20),
    "stream, 100 x 1": Shape(100, 1, 20, stream=True),
    "stream, 200 a read": Shape(1, 200, 20, stream=True),
}

# What is marked, in order: the shapes, and work that has nothing to do with msglog.
WALKS = (*SHAPES, "reference")


class _Engine:
    """
    A connection to a nats-server, as a transport: what is published is acknowledged at each step.

    Also a Twisted endpoint that connects to it.
    """

    def __init__(self) -> None:
        self._published: list[bytes] = []
        self._sequence = 0
        self._protocol: Any = None

    def connect(self, factory: Any) -> Any:
        self._protocol = factory.buildProtocol(None)
        self._protocol.makeConnection(self)
        self._protocol.dataReceived(b'INFO {"version":"2.15.1","max_payload":1048576}\r\n')
        self._protocol.dataReceived(b"PONG\r\n")
        return succeed(self._protocol)

    def setTcpNoDelay(self, enabled: bool) -> None: ...

    def write(self, data: bytes) -> None: ...

    def writeSequence(self, pieces: list[bytes]) -> None:
        self._published.append(pieces[0])

    def step(self) -> None:
        """Acknowledge all, in one read; a client that is asked for has no message."""
        published, self._published = self._published, []
        answers = []
        for line in published:
            kind, _, inbox, _ = line.split(b" ", 3)
            if kind == b"HPUB":
                self._sequence += 1
                answer = b'{"stream":"MSGLOG","seq":%d}' % self._sequence
            else:
                answer = b'{"error":{"code":404,"err_code":10037,"description":""}}'
            answers.append(b"MSG %b 1 %d\r\n%b\r\n" % (inbox, len(answer), answer))
        if answers:
            self._protocol.dataReceived(b"".join(answers))


class _Server:
    """A server in this thread, and its clients."""

    def __init__(self, folder: Path, *, stream: bool = False) -> None:
        # Not above: whoever wants to know the shapes needs no reactor.
        from twisted.internet import reactor

        self._reactor = cast(Any, reactor)  # epoll's, which has no type of its own
        self._address = str(folder / ("stream" if stream else "file"))
        limits = Limits()
        self._reactor.seconds = lambda: _NOW
        self._workers: list[StepWorker | _Engine] = []
        store = self._in_stream(limits) if stream else self._in_file(folder, limits)
        store.startService()
        self._factory = MessageLogFactory(self._reactor, store, limits)
        self._reactor.listenUNIX(self._address, self._factory, backlog=128)

    def _in_file(self, folder: Path, limits: Limits) -> Any:
        path = folder / "messages.jsonl"
        writer = LogWriter(path, limits, clock=lambda: _NOW, monotonic=lambda: 0.0)
        return FileStore(self._reactor, path, limits, writer=writer, worker=self._worker)

    def _in_stream(self, limits: Limits) -> Any:
        engine = _Engine()
        self._workers.append(engine)
        access = parse_nats("nats://127.0.0.1")
        link = NatsLink(self._reactor, access, 1.0, endpoint=lambda *where: cast(Any, engine))
        info = Reply(orjson.dumps({"config": stream_config("MSGLOG"), "state": {}}))
        return NatsStore(
            self._reactor,
            access,
            limits=limits,
            link=link,
            ask=lambda *words: info,
            clock=lambda: _NOW,
        )

    def _worker(self, reactor: Any) -> StepWorker:
        worker = StepWorker()
        self._workers.append(worker)
        return worker

    def connect(self) -> socket.socket:
        client = socket.socket(socket.AF_UNIX)
        client.connect(self._address)
        return client

    def answer(self, messages: int) -> None:
        """Go on until so many more messages are acknowledged."""
        counts, iterate, worker = self._factory.counts, self._reactor.iterate, self._workers[0]
        due = counts.acked + messages
        while counts.acked < due:
            iterate(0)
            worker.step()
        iterate(0)  # answers that are gathered go out in the next turn


def _walk(server: _Server, name: str) -> None:
    """A shape's walks, with a mark before those that are counted and one after."""
    shape = SHAPES[name]
    walks = shape.walks + _FIRST_WALKS
    body = BODY[:SIZE]
    clients = []
    for number in range(shape.connections):
        client = bytes([len(name), number]) * 8
        pieces = [
            b"".join(
                encode_message(client, walk * shape.messages + n, body)
                for n in range(1, shape.messages + 1)
            )
            for walk in range(walks)
        ]
        clients.append((server.connect(), pieces))
    answers = FRAME_BYTES * shape.messages
    gc.collect()
    for walk in range(walks):
        if walk == _FIRST_WALKS:
            _mark(name)
        for connection, pieces in clients:
            connection.sendall(pieces[walk])
        server.answer(shape.connections * shape.messages)
        for connection, _ in clients:
            if len(connection.recv(answers, socket.MSG_WAITALL)) != answers:
                sys.exit("the server closed a connection")
    _mark("")
    for connection, _ in clients:
        connection.close()


class _Work:
    def __init__(self) -> None:
        self.done: dict[bytes, int] = {}

    def do(self, key: bytes, number: int) -> int:
        self.done[key] = self.done.get(key, 0) + number
        return len(key) + number


def reference() -> None:
    """
    What a Python program does in general: calls, attributes, dictionaries, bytes, a little C.

    Another build of Python needs more or fewer instructions for this as it does for everything.
    """
    pack, work, total = Struct(">IQ").pack, _Work(), 0
    for number in range(4000):
        key = pack(number % 100, number)[:6]
        total += work.do(key, number)
        parts = [b'{"n":%d}' % total, key, b"x" * (number % 7)]
        if len(b"".join(parts)) > 1000:
            raise AssertionError


def _mark(name: str) -> None:
    """Have a new count begun; an empty name ends one that is of interest."""
    if name:
        print(name, flush=True)
    os.getppid()


def main(folder: Path) -> None:
    gc.disable()
    servers = {stream: _Server(folder, stream=stream) for stream in (False, True)}
    for name, shape in SHAPES.items():
        _walk(servers[shape.stream], name)
    reference()
    _mark("reference")
    reference()
    _mark("")
    # Without a goodbye: nobody wants to wait for an interpreter's end at a fortieth of its speed.
    os._exit(0)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
