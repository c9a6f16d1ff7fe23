"""
A worker process of C{--workers}: C{python -m msglog._front}, started by the writer's process.

It has connections, parses, checks and formats what they send, and hands it to the writer's process;
it opens no file.  Descriptor 3 is the pipe of frames (L{msglog._pipe_frames}).  Over descriptor 4
come connections: in each packet a C{u32} number, a C{u8} that says what is done with it, and the
socket itself.

Signals are for the writer's process, which says what to do.  When that is gone, so is the worker.
"""

from __future__ import annotations

import os
import signal
import socket
import sys
from base64 import b64decode
from pathlib import Path
from struct import Struct
from typing import TYPE_CHECKING, Any

import orjson
from twisted.internet import tcp, unix
from twisted.internet.address import UNIXAddress
from twisted.internet.interfaces import IAddress, IReadDescriptor
from twisted.internet.task import LoopingCall
from twisted.logger import ILogObserver, LogEvent, Logger, eventAsText, globalLogBeginner
from twisted.python.failure import Failure
from zope.interface import implementer, provider

from ._bundling import BundlingStore
from ._factory import MessageLogFactory
from ._garbage import collect_seldom
from ._limits import Limits
from ._pipe import Pipe
from ._pipe_frames import (
    GONE,
    HEAD,
    JUDGED,
    LAST,
    READY,
    RELOAD,
    SETTINGS,
    STOP,
    BadFrame,
    WorkerFigures,
    encode_figures,
    encode_frame,
)
from ._protocol import MessageLogProtocol
from ._quota import REFUSALS
from ._steady import steady

if TYPE_CHECKING:
    from ._tls import ServerTLS

__all__ = ["CONNECTION", "CONNECTIONS_FD", "FIGURES_SECONDS", "PIPE_FD", "SECURE", "main"]

PIPE_FD, CONNECTIONS_FD = 3, 4

CONNECTION = Struct("=IB")
# In that byte: 0, or 1 + the place in REFUSALS of why it is not taken; and this for TLS.
SECURE = 0x80

# How often figures are told: what the status page shows is at most as old.
FIGURES_SECONDS = 0.25

# How many connections are taken over in one turn: others have theirs in between.
_TAKEN_AT_ONCE = 32


class _Connections(MessageLogFactory):
    """The connections of this process; the writer's process decides which are taken."""

    def __init__(self, reactor: Any, store: BundlingStore, limits: Limits, pipe: Any) -> None:
        super().__init__(reactor, store, limits)
        self.pipe: Pipe = pipe
        self._numbers: dict[MessageLogProtocol, int] = {}
        self._next: tuple[int, str | None] = (0, None)
        self._gone: list[int] = []
        self._turn_begins = reactor.callLater

    def expect(self, number: int, refusal: str | None) -> None:
        """The next protocol is for this connection."""
        self._next = number, refusal

    def buildProtocol(self, addr: IAddress | None) -> MessageLogProtocol:  # type: ignore[override]
        """See L{MessageLogFactory.buildProtocol}."""
        protocol = super().buildProtocol(addr)
        self._numbers[protocol] = self._next[0]
        return protocol

    def refusal(self, peer: IAddress) -> tuple[str, str] | None:
        """See L{MessageLogFactory.refusal}."""
        kind = "stopping" if self.stopping else self._next[1]
        return None if kind is None else (kind, REFUSALS[kind])

    def remove(self, connection: MessageLogProtocol) -> None:
        """See L{MessageLogFactory.remove}."""
        self.forget(self._numbers.pop(connection, None))
        super().remove(connection)

    def forget(self, number: int | None) -> None:
        """Tell the writer's process that a connection is gone: many of a turn in one frame."""
        if number is not None:
            if not self._gone:
                self._turn_begins(0, self._tell_gone)
            self._gone.append(number)

    def _tell_gone(self) -> None:
        gone, self._gone = self._gone, []
        payload = b"".join(number.to_bytes(4, sys.byteorder) for number in gone)
        self.pipe.send(encode_frame(GONE, 0, payload))


class _Port:
    """What a transport wants to know of the port that it came from."""

    _realPortNumber = 0


@implementer(IReadDescriptor)
class _Receiver:
    """Takes connections over from the writer's process."""

    _log = Logger()

    def __init__(self, reactor: Any, factory: _Connections, tls: ServerTLS | None) -> None:
        self._reactor = reactor
        self._factory = factory
        self._secure: Any = None
        if tls is not None:
            from ._tls import TLSFactory

            self._secure = TLSFactory(tls, factory)
        self._socket = socket.socket(fileno=CONNECTIONS_FD)
        self._socket.setblocking(False)
        reactor.addReader(self)

    def doRead(self) -> None:
        """See L{IReadDescriptor}."""
        for _ in range(_TAKEN_AT_ONCE):
            try:
                data, fds, _, _ = socket.recv_fds(self._socket, CONNECTION.size, 1)
            except BlockingIOError:
                return
            if not self._take(data, fds):
                return

    def _take(self, data: bytes, fds: list[int]) -> bool:
        """Take one connection over; whether there may be more."""
        if not data:
            self._reactor.removeReader(self)  # the pipe ends too, and with it the process
            return False
        number, what = CONNECTION.unpack(data)
        if not fds:
            # No descriptor was left in this process for it.
            why = "too many open files"
            self._factory.note_of("could not be taken over", f"number {number}", why)
            self._factory.forget(number)
            return True
        sock = socket.socket(fileno=fds[0])
        place = what & ~SECURE
        self._factory.expect(number, list(REFUSALS)[place - 1] if place else None)
        try:
            self._adopt(sock, self._secure if what & SECURE else self._factory, number)
        except OSError:
            # It was gone before we had it.
            sock.close()
            self._factory.forget(number)
        except Exception:
            self._log.failure("a connection could not be taken over")
            sock.close()
            self._factory.forget(number)
        return True

    def _adopt(self, sock: socket.socket, factory: Any, number: int) -> None:
        sock.setblocking(False)
        server: Any = _Port()
        transport: Any
        if sock.family == socket.AF_UNIX:
            protocol = factory.buildProtocol(UNIXAddress(None))
            transport = unix.Server(sock, protocol, None, server, number, self._reactor)
        else:
            peer = sock.getpeername()
            protocol = factory.buildProtocol(None)
            client = peer if sock.family == socket.AF_INET6 else peer[:2]
            transport = tcp.Server(sock, protocol, client, server, number, self._reactor)
        protocol.makeConnection(transport)

    def fileno(self) -> int:
        """See L{IReadDescriptor}."""
        return self._socket.fileno()

    def connectionLost(self, reason: Failure) -> None:
        """The reactor ends."""

    def logPrefix(self) -> str:
        """See L{IReadDescriptor}."""
        return "msglog"


class _Front:
    """The process."""

    def __init__(self, reactor: Any, settings: dict[str, Any], pipe: socket.socket) -> None:
        self._reactor = reactor
        self._pipe = Pipe(reactor, pipe, self._received, self._writer_lost)
        self._store = BundlingStore(self._pipe.send, settings["window"])
        limits = Limits(**settings["limits"])
        self._factory = _Connections(reactor, self._store, limits, self._pipe)
        self._files: dict[str, bytes] = {}
        self._tls = self._make_tls(settings["tls"])
        _Receiver(reactor, self._factory, self._tls)
        self._telling = LoopingCall(self._tell)
        self._telling.clock = reactor
        self._telling.start(FIGURES_SECONDS, now=False)
        self._pipe.send(encode_frame(READY, 0))

    def _make_tls(self, told: dict[str, Any] | None) -> ServerTLS | None:
        if told is None:
            return None
        from ._tls import CertificatePermits, ServerTLS

        self._files = _files(told["files"])
        certificate, key, authority = told["names"]
        tls = ServerTLS(
            Path(certificate),
            Path(key),
            None if authority is None else Path(authority),
            lambda path: self._files[str(path)],
        )
        tls.load()
        if tls.asks_clients:
            self._factory.permits = CertificatePermits()
        return tls

    def _received(self, kind: int, number: int, payload: bytes) -> None:
        if kind == JUDGED:
            self._store.bundle_judged(number, payload)
        elif kind == LAST:
            self._store.answered(number, payload)
        elif kind == RELOAD:
            self._files = _files(orjson.loads(payload))
            if self._tls is not None:
                self._tls.load()
        elif kind == STOP:
            self._factory.stop().addCallback(lambda _: self._end())
        else:
            raise BadFrame(f"a frame of kind {kind} for a worker")

    def _tell(self) -> None:
        gauges = self._factory.gauges()
        figures = WorkerFigures(self._factory.counts, gauges.paused, gauges.undurable)
        self._pipe.send(encode_figures(figures))

    def _end(self) -> None:
        """Every connection is gone."""
        self._tell()
        self._pipe.flush()
        self._pipe.close()
        self._reactor.stop()

    def _writer_lost(self, why: str | None) -> None:
        # Nothing can be promised any more, and whoever has no answer asks the next server.
        if why is not None:
            print(f"critical the writer's process says what is no frame: {why}", flush=True)
        os._exit(1)


def _files(told: dict[str, str]) -> dict[str, bytes]:
    return {name: b64decode(data) for name, data in told.items()}


@provider(ILogObserver)
def _say(event: LogEvent) -> None:
    """One line for the writer's process, which has a log to put it in."""
    text = eventAsText(event, includeTimestamp=False, includeSystem=False)
    level = event.get("log_level")
    print(level.name if level is not None else "info", text.replace("\n", " | "), flush=True)


def _receive(sock: socket.socket, count: int) -> bytes:
    data = b""
    while len(data) < count:
        more = sock.recv(count - len(data))
        if not more:
            raise SystemExit(1)
        data += more
    return data


def main() -> None:
    """Run a worker process to its end."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    from twisted.internet import reactor

    steady(reactor)
    globalLogBeginner.beginLoggingTo([_say], redirectStandardIO=False, discardBuffer=True)
    pipe = socket.socket(fileno=PIPE_FD)
    length, kind, _ = HEAD.unpack(_receive(pipe, HEAD.size))
    if kind != SETTINGS:
        raise SystemExit("the first frame has no settings")
    _Front(reactor, orjson.loads(_receive(pipe, length)), pipe)
    collect_seldom()
    running: Any = reactor
    running.run(installSignalHandlers=False)


if __name__ == "__main__":
    main()
