"""The whole server as a Twisted service: a store, a factory, and where it listens."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from twisted.application.service import Service
from twisted.internet import tcp
from twisted.internet.defer import Deferred, gatherResults, maybeDeferred
from twisted.internet.error import CannotListenError
from twisted.internet.interfaces import IListeningPort, IStreamServerEndpoint
from twisted.logger import Logger
from twisted.python.failure import Failure

from ._errors import StartError
from ._factory import MessageLogFactory
from ._store import FileStore

__all__ = ["MessageLogService"]


class MessageLogService(Service):
    """
    Starts the store, then listens; on stop unlistens, answers, and only then closes the store.

    (A C{MultiService} would stop all of them at once.)

    @param store: the store.
    @param factory: the factory, over the same store.
    @param endpoints: where to listen, each with the words to name it by.
    """

    name = "msglog"
    _log = Logger()

    def __init__(
        self,
        store: FileStore,
        factory: MessageLogFactory,
        endpoints: Sequence[tuple[str, IStreamServerEndpoint]],
    ) -> None:
        self.store = store
        self.factory = factory
        self._endpoints = endpoints
        self._ports: list[IListeningPort] | None = None

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
                if isinstance(error, CannotListenError):
                    error = error.socketError
                raise StartError(f"cannot listen on {name}: {error}")
        for port in self._ports:
            if isinstance(port, tcp.Port):
                # Twisted has room for 50 connections that wait to be accepted.  Clients come back
                # all at once after a restart, and one for which there is no room tries again
                # a second later at best.  (The system has a limit of its own, 4096 by default.)
                waiting = max(port.backlog, self.factory.limits.max_connections)
                port.socket.listen(waiting)

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
