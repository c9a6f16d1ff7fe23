"""
One connection to a NATS server.

::

    GREETED ──INFO──> LOGGING_IN ──PONG──> READY ──> LOST

GREETED     TCP is there, and the server's INFO is not.  Where TLS is wanted, by either side, it
            begins after that.
LOGGING_IN  CONNECT, the subscription for answers and a PING are sent.  A server that lets us in
            answers the PING.
READY       requests are taken.
"""

from __future__ import annotations

import enum
from ipaddress import ip_address
from typing import Any, Protocol

from twisted.internet.error import ConnectionDone
from twisted.internet.interfaces import IDelayedCall
from twisted.internet.protocol import Protocol as TwistedProtocol
from twisted.internet.protocol import connectionDone
from twisted.python.failure import Failure

from ._errors import StartError
from ._nats_access import NatsAccess, TLSFiles
from ._nats_frames import (
    PING,
    PONG,
    Complaint,
    Frame,
    Info,
    Message,
    NatsFault,
    NatsFrames,
    Ping,
    connect,
    publish,
    subscribe,
)

__all__ = ["NatsConnection", "Owner"]

# From TCP's connection to the server letting us in.
_LOGIN_SECONDS = 2.0

# So many PINGs without an answer, and the server is left.
_MOST_PINGS = 2


class Owner(Protocol):
    """Whose connection it is."""

    def ready(self, connection: NatsConnection) -> None: ...

    def informed(self, connection: NatsConnection) -> None: ...

    def answered(self, message: Message) -> None: ...

    def complained(self, text: str) -> None: ...

    def lost(self, connection: NatsConnection, reason: str) -> None: ...


class _State(enum.Enum):
    GREETED = enum.auto()
    LOGGING_IN = enum.auto()
    READY = enum.auto()
    LOST = enum.auto()


class NatsConnection(TwistedProtocol):
    """
    @param reactor: for time.
    @param access: who this is to the cluster.
    @param server: which one it is, C{host:port}.
    @param host: the name that the server must prove, if it speaks TLS.
    @param inbox: the subject under which answers come.
    @param owner: who is told.
    @ivar info: what the server said of itself.
    """

    transport: Any

    def __init__(
        self,
        reactor: Any,
        access: NatsAccess,
        server: str,
        host: str,
        inbox: str,
        owner: Owner,
    ) -> None:
        self.server = server
        self._reactor = reactor
        self._access = access
        self._host = host
        self._inbox = inbox
        self._owner = owner
        self._state = _State.GREETED
        self._frames = NatsFrames()
        self._login: IDelayedCall | None = None
        self._pings = 0
        self._said_more = False  # than its INFO, in the clear
        self._why = ""
        self._complaint = ""
        self.info: dict[str, Any] = {}

    # --- what the owner does ---------------------------------------------------------------

    def send(
        self, subject: str, reply_to: str, payload: bytes, headers: dict[str, str] | None
    ) -> None:
        """Publish; what is published in one turn of the reactor goes out at its end."""
        self.transport.writeSequence(publish(subject, reply_to, payload, headers))

    def ping(self) -> None:
        """See whether the server is still there; if it was not the last times, leave it."""
        if self._state is not _State.READY:
            return
        if self._pings >= _MOST_PINGS:
            self.leave("the server answers no PING")
            return
        self._pings += 1
        self.transport.write(PING)

    def close(self) -> None:
        """End the connection; what was sent goes out before that."""
        if self._state is _State.READY:
            self.transport.loseConnection()
        else:
            self.transport.abortConnection()

    def abort(self) -> None:
        """End the connection at once."""
        self.transport.abortConnection()

    # --- what the server does --------------------------------------------------------------

    def connectionMade(self) -> None:
        """Wait for the server's first words."""
        self.transport.setTcpNoDelay(True)
        self._login = self._reactor.callLater(
            _LOGIN_SECONDS, self.leave, f"no login within {_LOGIN_SECONDS:g} s"
        )

    def dataReceived(self, data: bytes) -> None:
        """Take what one read brought."""
        if self._why:
            return
        try:
            frames = self._frames.feed(data)
        except NatsFault as e:
            self.leave(str(e))
            return
        if self._state is _State.GREETED:
            self._said_more = len(frames) > 1 or self._frames.held > 0
        answered = self._owner.answered
        for frame in frames:
            if type(frame) is Message:
                answered(frame)
            else:
                self._take(frame)
                if self._why:
                    return

    def _take(self, frame: Frame) -> None:
        if isinstance(frame, Ping):
            self.transport.write(PONG)
        elif isinstance(frame, Info):
            self.info = frame.fields
            if self._state is _State.GREETED:
                self._log_in()
            elif self._state is _State.READY:
                self._owner.informed(self)
        elif isinstance(frame, Complaint):
            # A permission is missed by one request, anything else ends the connection.
            if not frame.text.startswith("Permissions Violation"):
                self._complaint = frame.text
            self._owner.complained(frame.text)
        else:
            self._pings = 0
            if self._state is _State.LOGGING_IN:
                self._state = _State.READY
                self._stop_waiting()
                self._owner.ready(self)

    def _log_in(self) -> None:
        try:
            secure = self._start_tls()
            login = self._access.login(str(self.info.get("nonce", "")))
        except StartError as e:
            self.leave(str(e))
            return
        self._state = _State.LOGGING_IN
        options = {
            "verbose": False,
            "pedantic": False,
            "tls_required": secure,
            "name": "msglog",
            "lang": "python-msglog",
            "version": "1",
            "protocol": 1,  # to be told of changes by INFO
            "echo": False,
            "headers": True,
            "no_responders": True,
            **login,
        }
        self.transport.write(connect(options) + subscribe(self._inbox + "*") + PING)

    def _start_tls(self) -> bool:
        files = self._access.tls
        if files is None and not self.info.get("tls_required"):
            return False
        if not (self.info.get("tls_required") or self.info.get("tls_available")):
            raise StartError("the server has no TLS")
        if self._said_more:
            # It would be taken for what came by TLS, and anybody on the way can have put it there.
            raise StartError("the server said more than its INFO before TLS")
        self.transport.startTLS((files or TLSFiles()).client_options(self._host))
        return True

    def leave(self, why: str) -> None:
        """End the connection at once."""
        self._why = self._why or why
        self.transport.abortConnection()

    def _stop_waiting(self) -> None:
        if self._login is not None and self._login.active():
            self._login.cancel()
        self._login = None

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        """Tell the owner."""
        self._state = _State.LOST
        self._stop_waiting()
        self._owner.lost(self, self._why or self._complaint or say_failure(reason))

    def tls_name(self, server: str) -> str:
        """
        The name that another server of the cluster must prove, of which this one has told.

        An address is that of a server whose certificate names the cluster, as this one's does.
        """
        host = host_of(server)
        try:
            ip_address(host)
        except ValueError:
            return host
        return self._host


def host_of(server: str) -> str:
    """The host of C{host:port}, without an IPv6 address's brackets."""
    return server.rpartition(":")[0].strip("[]")


def say_failure(reason: Failure) -> str:
    """Why a connection was not made, or was lost."""
    error = reason.value
    if isinstance(error, ConnectionDone):
        return "the server closed the connection"
    details = getattr(error, "args", None) or [""]
    if isinstance(details[0], list):  # OpenSSL's: (library, function, reason) of each
        return "TLS: " + ", ".join(text for *_, text in details[0])
    return str(error) or type(error).__name__
