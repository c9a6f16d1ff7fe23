"""
Listening on a socket that was passed to the process by systemd, or by whatever starts services as
it does: C{--listen systemd:domain=INET:name=…}.

Such a socket outlives the process.  What connects while there is none waits in its queue; so it is
never shut down here, and the file of a UNIX socket is neither removed nor changed.
"""

from __future__ import annotations

import os
import socket
from typing import Any

from twisted.internet import fdesc, tcp, unix
from twisted.internet.defer import Deferred, execute
from twisted.internet.endpoints import serverFromString
from twisted.internet.interfaces import IListeningPort, IProtocolFactory, IStreamServerEndpoint
from twisted.python.failure import Failure
from zope.interface import implementer

__all__ = ["endpoint_of"]


def endpoint_of(reactor: Any, words: str) -> Any:
    """
    The endpoint of a Twisted endpoint string.

    @raise Exception: it is none, or names a socket that was not passed.
    """
    if not words.startswith("systemd:"):
        return serverFromString(reactor, words)
    try:
        endpoint: Any = serverFromString(reactor, words)
    except (IndexError, KeyError):
        raise ValueError(_why_not()) from None
    if endpoint.addressFamily == socket.AF_UNIX:
        return _PassedUnixEndpoint(reactor, endpoint.fileno)
    return endpoint


def _why_not() -> str:
    # Twisted removes the count when it reads it, but not the names.
    names = os.environ.get("LISTEN_FDNAMES", "").split(":")
    if names == [""]:
        return (
            "no socket with a name was passed to this process (LISTEN_PID, LISTEN_FDS, "
            "LISTEN_FDNAMES): start it by its systemd socket unit, or by "
            "systemd-socket-activate --fdname=NAME"
        )
    return f"no such socket was passed to this process; what was passed has the names {names}"


@implementer(IStreamServerEndpoint)
class _PassedUnixEndpoint:
    """
    Twisted's own would change the mode of the socket's file, which belongs to another user, and
    remove it at the end.
    """

    def __init__(self, reactor: Any, fd: int) -> None:
        self._reactor = reactor
        self._fd = fd

    def listen(self, factory: IProtocolFactory) -> Deferred[IListeningPort]:
        """See L{IStreamServerEndpoint.listen}."""
        return execute(self._listen, factory)

    def _listen(self, factory: IProtocolFactory) -> IListeningPort:
        fdesc.setNonBlocking(self._fd)
        port: Any = _PassedUnixPort._fromListeningDescriptor(self._reactor, self._fd, factory)
        port.startListening()
        os.close(self._fd)
        return port  # type: ignore[no-any-return]


class _PassedUnixPort(unix.Port):
    """A UNIX port that leaves its file alone."""

    def startListening(self) -> None:
        """Listen on the socket as it was passed."""
        tcp.Port.startListening(self)

    def connectionLost(self, reason: Failure) -> None:
        """Close our own descriptor, and no more."""
        tcp.Port.connectionLost(self, reason)
