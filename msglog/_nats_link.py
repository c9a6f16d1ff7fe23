"""
What brings a store's requests to a NATS cluster, and the answers back, over one connection.

A connection that is lost is followed by one to the next server, and servers that the cluster itself
names are tried too.  Answers come to one inbox, and a token in their subject says what they answer.

Whatever is asked is answered once: with the engine's words, or with why there are none.  That says
nothing about whether the engine has done what it was asked.  What cannot be sent now is never sent
later, behind the back of who asked.  Such a why may be told to clients, so it names no server; what
does is the link's C{trouble}.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from itertools import count
from random import random, shuffle
from typing import Any, Protocol
from uuid import uuid4

from attrs import define
from twisted.internet.abstract import isIPAddress
from twisted.internet.defer import Deferred, succeed
from twisted.internet.endpoints import HostnameEndpoint, TCP4ClientEndpoint
from twisted.internet.interfaces import IDelayedCall, IStreamClientEndpoint
from twisted.internet.protocol import Factory
from twisted.internet.task import LoopingCall
from twisted.logger import Logger
from twisted.python.failure import Failure

from ._jetstream import NOT_CONNECTED, Reply, Unknown
from ._nats_access import INBOX_PREFIX, NatsAccess
from ._nats_connection import NatsConnection, host_of, say_failure
from ._nats_frames import Message
from ._printable import printable
from ._stream_counts import LinkCounts

__all__ = ["Done", "ILink", "NatsLink"]

Done = Callable[[Reply], object]

_log = Logger()

# For TCP's connection to one server, before the next is tried.
_CONNECT_SECONDS = 2.0

# A server that neither answers nor closes is left after two PINGs without an answer.
_PING_SECONDS = 2.0

# Between two attempts, up to twice as long by chance: many front-ends lose a server at once.
_RECONNECT_SECONDS = 0.1

# How often, at most, it is looked which requests had no answer in time.
_SWEEP_SECONDS = 0.05

# How many different complaints are logged before there is a connection again.
_MOST_SAID = 10

# How many servers are tried, those that the cluster itself named included.
_MOST_SERVERS = 100

# C{host:port}, C{address:port} or C{[address]:port}.
_SERVER = re.compile(r"(?:[A-Za-z0-9_.-]{1,253}|\[[0-9A-Fa-f:.]{2,45}\]):([0-9]{1,5})")

# What a message has besides its payload, at most.
_HEADERS_BYTES = 512

_NOBODY = "nobody answers for the stream: it has no leader, or is not there"

# How long a stop waits for what was sent to go out.
_CLOSE_SECONDS = 2.0


class ILink(Protocol):
    """What brings requests to an engine: a L{NatsLink}."""

    trouble: str
    counts: LinkCounts
    max_payload: int | None
    version: tuple[int, int] | None

    def start(self) -> None: ...

    def request(
        self,
        subject: str,
        payload: bytes,
        headers: dict[str, str] | None,
        done: Done,
    ) -> None: ...

    def leave(self, reason: str) -> None: ...

    def stop(self) -> Deferred[None]: ...


@define(slots=True, eq=False)
class _Asked:
    done: Done
    deadline: float


class NatsLink:
    """
    @param reactor: for connections and time.
    @param access: which cluster.
    @param seconds: how long an answer is waited for.
    @param endpoint: where connections come from, by host and port; TCP if not given.
    @ivar trouble: why there is no connection, or what the engine last complained about; empty if
        neither is known.
    @ivar counts: of its connections.
    @ivar version: the connected server's; L{None} before.
    @ivar max_payload: the longest message that the connected server takes; L{None} before.
    """

    def __init__(
        self,
        reactor: Any,
        access: NatsAccess,
        seconds: float,
        *,
        endpoint: Callable[[str, int], IStreamClientEndpoint] | None = None,
    ) -> None:
        self._reactor = reactor
        self._access = access
        self._seconds = seconds
        self._endpoint = endpoint or self._tcp
        self._inbox = f"{INBOX_PREFIX}.{uuid4().hex}."
        self._token_at = len(self._inbox)
        self._tokens = count()
        self._unanswered: dict[bytes, _Asked] = {}
        self._sweeping: IDelayedCall | None = None
        # The servers to try, the next one first, and the names that they must prove by TLS.
        self._servers: list[str] = []
        self._tls_names: dict[str, str] = {}
        self._connecting: Deferred[Any] | None = None
        self._waiting: IDelayedCall | None = None
        self._connection: NatsConnection | None = None
        self._ready = False
        self._pings = LoopingCall(self._ping)
        self._pings.clock = reactor
        self._stopped: Deferred[None] | None = None
        self._closing: IDelayedCall | None = None
        self._said: set[str] = set()
        self.trouble = ""
        self.counts = LinkCounts(clock=reactor.seconds)
        self.max_payload: int | None = None
        self.version: tuple[int, int] | None = None

    def _tcp(self, host: str, port: int) -> IStreamClientEndpoint:
        # A name is looked up in a thread, which there is only when the reactor runs.
        kind = TCP4ClientEndpoint if isIPAddress(host) else HostnameEndpoint
        return kind(self._reactor, host, port, timeout=_CONNECT_SECONDS)

    # --- what the store does ---------------------------------------------------------------

    def start(self) -> None:
        """
        Begin to connect, and go on trying until C{stop}.

        @raise StartError: a file that it needs cannot be read.
        """
        self._access.check()
        self._servers = list(self._access.servers)
        shuffle(self._servers)
        self._tls_names = {server: host_of(server) for server in self._servers}
        self._stopped = None
        self._pings.start(_PING_SECONDS, now=False)
        self._connect()

    def request(
        self, subject: str, payload: bytes, headers: dict[str, str] | None, done: Done
    ) -> None:
        """Ask; C{done} is called with the answer, or with why there is none."""
        connection = self._connection
        if not self._ready or connection is None:
            done(Reply(None, NOT_CONNECTED))
            return
        if self.max_payload is not None and len(payload) + _HEADERS_BYTES > self.max_payload:
            # The server would close the connection, which is everybody's.
            done(Reply(None, f"longer than the server takes ({self.max_payload})", Unknown.OTHER))
            return
        token = str(next(self._tokens))
        self._unanswered[token.encode()] = _Asked(done, self._reactor.seconds() + self._seconds)
        if self._sweeping is None:
            self._sweeping = self._reactor.callLater(self._seconds, self._sweep)
        connection.send(subject, self._inbox + token, payload, headers)

    def leave(self, reason: str) -> None:
        """Go to another server, if there is a connection: this one answers nothing."""
        if self._ready and self._connection is not None and self._stopped is None:
            self._connection.leave(f"{self._connection.server} is left: {reason}")

    def stop(self) -> Deferred[None]:
        """Close the connection; fires when that is done."""
        if self._pings.running:
            self._pings.stop()
        if self._waiting is not None:
            self._waiting.cancel()
            self._waiting = None
        if self._connecting is not None:
            self._connecting.cancel()
        connection = self._connection
        if connection is None:
            self._stop_sweeping()
            return succeed(None)
        self._stopped = Deferred()
        self._closing = self._reactor.callLater(_CLOSE_SECONDS, connection.abort)
        connection.close()
        return self._stopped

    # --- connections -----------------------------------------------------------------------

    def _connect(self) -> None:
        self._waiting = None
        server = self._servers[0]
        self._servers.append(self._servers.pop(0))
        host, port = host_of(server), int(server.rpartition(":")[2])
        connection = NatsConnection(
            self._reactor, self._access, server, self._tls_names[server], self._inbox, self
        )
        factory = Factory.forProtocol(lambda: connection)
        factory.noisy = False
        self._connecting = self._endpoint(host, port).connect(factory)
        self._connecting.addCallbacks(self._connected, self._failed, errbackArgs=(server,))

    def _connected(self, connection: NatsConnection) -> None:
        self._connecting = None
        self._connection = connection

    def _failed(self, failure: Failure, server: str) -> None:
        self._connecting = None
        if self._pings.running:  # it was not stopped
            self._complain(f"{server}: {say_failure(failure)}")
            self._connect_later()

    def _connect_later(self) -> None:
        if self._pings.running:
            pause = _RECONNECT_SECONDS * (1 + random())
            self._waiting = self._reactor.callLater(pause, self._connect)

    def _ping(self) -> None:
        if self._connection is not None:
            self._connection.ping()

    # --- what a connection says ------------------------------------------------------------

    def ready(self, connection: NatsConnection) -> None:
        """Requests can be sent."""
        info = connection.info
        self._ready = True
        most = info.get("max_payload")
        self.max_payload = most if isinstance(most, int) and most > 0 else None
        self.version = _read_version(str(info.get("version", "")))
        self.counts.connected(connection.server)
        self.trouble = ""
        self._said.clear()
        self.informed(connection)

    def informed(self, connection: NatsConnection) -> None:
        """The server has told of the cluster's others."""
        named = connection.info.get("connect_urls")
        for server in named if isinstance(named, list) else ():
            # A server may say anything: what is no place to connect to would end the attempts.
            place = _SERVER.fullmatch(server) if isinstance(server, str) else None
            if place is None or not 0 < int(place[1]) < 65536:
                continue
            if server not in self._tls_names and len(self._tls_names) < _MOST_SERVERS:
                self._servers.append(server)
                self._tls_names[server] = connection.tls_name(server)

    def answered(self, message: Message) -> None:
        """An answer came."""
        asked = self._unanswered.pop(message.subject[self._token_at :], None)
        if asked is None:
            return  # too late
        if message.status == 503:
            reply = Reply(None, _NOBODY, Unknown.NO_RESPONDERS)
        else:
            reply = Reply(message.data)
        self._answer(asked, reply)

    def complained(self, text: str) -> None:
        """The server did not like something."""
        self._complain(text)

    def lost(self, connection: NatsConnection, reason: str) -> None:
        """There is no connection any more."""
        self._ready = False
        self._connection = None
        self.counts.disconnected()
        if self._stopped is None:
            self._complain(reason)
        unanswered, self._unanswered = self._unanswered, {}
        self._stop_sweeping()
        for asked in unanswered.values():
            self._answer(asked, Reply(None, "the connection was lost"))
        if self._stopped is not None:
            stopped, self._stopped = self._stopped, None
            if self._closing is not None and self._closing.active():
                self._closing.cancel()
            stopped.callback(None)
        else:
            self._connect_later()

    def _complain(self, text: str) -> None:
        text = self.trouble = printable(text)  # a server may say anything
        # Several servers that are away would take turns for hours.
        if text not in self._said and len(self._said) < _MOST_SAID:
            self._said.add(text)
            _log.warn("NATS: {words}", words=text)

    # --- answers ---------------------------------------------------------------------------

    def _answer(self, asked: _Asked, reply: Reply) -> None:
        try:
            asked.done(reply)
        except Exception:
            _log.failure("an answer of NATS was not taken by what had asked for it")

    def _sweep(self) -> None:
        self._sweeping = None
        now = self._reactor.seconds()
        late = []
        # All wait equally long, so those that came first are due first.
        while self._unanswered:
            token, asked = next(iter(self._unanswered.items()))
            if asked.deadline > now:
                pause = max(asked.deadline - now, _SWEEP_SECONDS)
                self._sweeping = self._reactor.callLater(pause, self._sweep)
                break
            late.append(self._unanswered.pop(token))
        why = f"no answer within {self._seconds:g} s"
        for asked in late:
            self._answer(asked, Reply(None, why, Unknown.TIMEOUT))

    def _stop_sweeping(self) -> None:
        if self._sweeping is not None:
            self._sweeping.cancel()
            self._sweeping = None


def _read_version(text: str) -> tuple[int, int] | None:
    words = text.split(".")
    try:
        return int(words[0]), int(words[1])
    except (ValueError, IndexError):
        return None
