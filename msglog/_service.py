"""The whole server as a Twisted service: a store, a factory, and where it listens."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from ipaddress import ip_address
from typing import TYPE_CHECKING, Any

from twisted.application.service import Service
from twisted.internet import tcp
from twisted.internet.address import IPv4Address, IPv6Address
from twisted.internet.defer import Deferred, gatherResults, maybeDeferred
from twisted.internet.error import CannotListenError
from twisted.internet.interfaces import IAddress, IListeningPort, IStreamServerEndpoint
from twisted.logger import Logger
from twisted.python.failure import Failure

from ._errors import StartError
from ._factory import MessageLogFactory
from ._figures import Figures, read_figures
from ._health import Health, judge
from .interfaces import IStoreService

if TYPE_CHECKING:
    from ._workers import WorkerPool

__all__ = ["MessageLogService", "is_local"]


class MessageLogService(Service):
    """
    Starts the store, then listens; on stop unlistens, answers, and only then closes the store.

    (A C{MultiService} would stop all of them at once.)

    @param store: the store.
    @param factory: the factory, over the same store, or processes that have one each.
    @param endpoints: where to listen, each with the words to name it by.
    @param allow_plain: whether to listen without TLS beyond this machine's own addresses, where
        everybody in between can read along, and whoever connects can write.
    """

    name = "msglog"
    _log = Logger()

    def __init__(
        self,
        store: IStoreService,
        factory: MessageLogFactory | WorkerPool,
        endpoints: Sequence[tuple[str, IStreamServerEndpoint]],
        *,
        allow_plain: bool = False,
    ) -> None:
        self.store = store
        self.factory = factory
        self._endpoints = endpoints
        self._allow_plain = allow_plain
        self._ports: list[IListeningPort] | None = None

    def figures(self) -> Figures:
        """What the server has counted of itself."""
        return read_figures(self.store, self.factory, self.certificate_expires())

    def certificate_expires(self) -> float | None:
        """When the server's certificate does, seconds since 1970, if there is one."""
        return None

    def health(self) -> Health:
        """Whether it is alive, and ready for messages."""
        listening = bool(self.running and self._ports)
        # A date, so the system's clock: not the reactor's, which may go its own way.
        now = time.time()
        return judge(self.figures(), self.factory.limits, listening=listening, now=now)

    def privilegedStartService(self) -> None:
        """
        Listen while the process may still have privileges that a port needs.

        Nothing is accepted before the reactor runs, which is after the log was recovered.

        @raise StartError: a port cannot be listened on.
        """
        super().privilegedStartService()
        self._listen()

    def startService(self) -> None:
        """
        Recover the log, and listen if that is not done yet.

        @raise StartError: the log cannot be used, or a port cannot be listened on.
        """
        self.store.startService()
        super().startService()
        try:
            self._listen()
        except StartError:
            self.store.stopService()
            raise
        for port in self._ports or []:
            self._log.info("listening on {address}", address=str(port.getHost()))

    def _listen(self) -> None:
        if self._ports is not None:
            return
        self._ports = []
        for name, endpoint in self._endpoints:
            failures: list[Failure] = []
            listening: Deferred[Any] = maybeDeferred(endpoint.listen, self.factory)
            listening.addCallbacks(self._ports.append, failures.append)
            if failures:
                error = failures[0].value
                if isinstance(error, StartError):
                    raise error
                if isinstance(error, CannotListenError):
                    error = error.socketError
                raise StartError(f"cannot listen on {name}: {error}")
            self._listening(name, self._ports[-1])
        for port in self._ports:
            if _is_plain(port) and not is_local(port.getHost()):
                self._see_plain(port)
            if isinstance(port, tcp.Port):
                # Twisted has room for 50 connections that wait to be accepted.  Clients come back
                # all at once after a restart, and one for which there is no room tries again
                # a second later at best.  (The system has a limit of its own, 4096 by default.)
                waiting = max(port.backlog or 0, self.factory.limits.max_connections)
                port.socket.listen(waiting)

    def _listening(self, name: str, port: IListeningPort) -> None:
        """A port listens, and has not accepted anything."""

    def _see_plain(self, port: IListeningPort) -> None:
        host = port.getHost()
        if not self._allow_plain:
            raise StartError(
                f"{host} is beyond this machine, and would be without TLS: anybody who can reach "
                f"it could read along and write. Use TLS (--listen-tls), name an address of the "
                f"machine's own (interface=127.0.0.1), or say --allow-plain"
            )
        self._log.warn(
            "listening without TLS on {host}: whoever can reach it can write, and everybody in "
            "between can read along",
            host=str(host),
        )

    def stopService(self) -> Deferred[None]:
        """
        Accept no more, answer what has arrived, and close the log.

        @return: fires when all that is done.
        """
        super().stopService()
        ports, self._ports = self._ports or [], None
        unlistened = gatherResults(
            [maybeDeferred(port.stopListening) for port in ports], consumeErrors=True
        )

        def answer(_: Any) -> Deferred[None]:
            return self.factory.stop()

        def close(_: Any) -> Deferred[None]:
            return self.store.stopService()

        def say(_: Any) -> None:
            self._log.info("the log is closed")

        unlistened.addErrback(lambda f: self._log.failure("a port did not close", f))
        stopped: Deferred[Any] = unlistened.addCallback(answer)
        return stopped.addCallback(close).addCallback(say)


def _is_plain(port: Any) -> bool:
    """Whether a port speaks no TLS."""
    tls = sys.modules.get("twisted.protocols.tls")  # not imported: nobody speaks it
    return tls is None or not isinstance(getattr(port, "factory", None), tls.TLSMemoryBIOFactory)


def is_local(host: IAddress) -> bool:
    """Whether only this machine can connect to an address."""
    if not isinstance(host, IPv4Address | IPv6Address):
        return True
    return ip_address(host.host.partition("%")[0]).is_loopback
