"""What C{--http} serves, put together from a server's parts; it listens first and stops last."""

from __future__ import annotations

import os
import time
from collections.abc import Collection
from typing import Any, cast

from twisted.internet.defer import Deferred, maybeDeferred, succeed
from twisted.internet.error import CannotListenError
from twisted.internet.interfaces import IListeningPort, IStreamServerEndpoint
from twisted.internet.threads import deferToThreadPool
from twisted.logger import Logger
from twisted.python.failure import Failure

from . import __version__
from ._counted import counted
from ._errors import StartError
from ._events import Events, shown_records
from ._figures import Figures
from ._records import format_time
from ._service import MessageLogService, is_local
from ._stream_status import StreamStatus
from ._web import Page, Probe, make_site

__all__ = ["StatusServer"]


class StatusServer:
    """
    Metrics, health and the status page of a server.

    @param reactor: for time, and for its threads.
    @param service: the server.
    @param endpoint: where to listen, with the words to name it by.
    @param names: what the page may be called besides an address and C{localhost}.
    @param anyone: whether it may listen where others than this machine can connect.
    @param bodies: whether the page shows the messages themselves.
    """

    _log = Logger()

    def __init__(
        self,
        reactor: Any,
        service: MessageLogService,
        endpoint: tuple[str, IStreamServerEndpoint],
        names: Collection[str] = (),
        *,
        anyone: bool = False,
        bodies: bool = False,
    ) -> None:
        # Here and not above, for nothing else needs what this imports.
        try:
            from ._metrics import Metrics, Scrape
        except ImportError as e:
            raise StartError(
                f"--http needs what is not installed ({e}): pip install 'msglog[http]'"
            ) from e
        self._reactor = reactor
        self._service = service
        self._name, self._endpoint = endpoint
        self._anyone = anyone
        self._bodies = bodies
        self._port: IListeningPort | None = None
        self._began = 0.0
        self._stream = StreamStatus(reactor.seconds)
        limits = service.factory.limits
        store = service.store

        def read(end: int) -> list[dict[str, Any]]:
            return shown_records(store.last_lines(end), bodies=bodies)

        def records(end: int) -> Deferred[list[dict[str, Any]]]:
            return deferToThreadPool(reactor, reactor.getThreadPool(), read, end)

        self._events = Events(
            reactor,
            service.factory.counts,
            self.status,
            store.log_end,
            records,
            limits.max_watchers,
        )
        self._site = make_site(
            reactor,
            {
                b"": Page(),
                b"events": self._events,
                b"livez": Probe(service.health, lambda health: health.not_live, "live"),
                b"metrics": Metrics(
                    lambda: Scrape(service.figures(), service.health(), service.factory.limits)
                ),
                b"readyz": Probe(service.health, lambda health: health.not_ready, "ready"),
            },
            names,
            limits.max_http_connections,
        )

    def status(self) -> dict[str, Any]:
        """What the page is told of the server, but for its samples, clients and records."""
        service = self._service
        figures, health, limits = service.figures(), service.health(), service.factory.limits
        return {
            "now": time.time(),
            "ready": health.ready,
            "not_ready": health.not_ready,
            "warnings": health.warnings,
            "log": service.store.title,
            "log_size": figures.log_size,
            "records_written": figures.records,
            "durable_time": figures.durable_time,
            "disk_free": figures.disk_free,
            "disk_size": figures.disk_size,
            "disk_low": figures.disk_low,
            "acked": figures.acked,
            "nacked": figures.nacked,
            "connections": figures.connections,
            "max_connections": limits.max_connections,
            "accepted": figures.accepted,
            "refused": figures.refused,
            "closed": figures.closed,
            "paused": figures.paused,
            "undurable": figures.undurable_bytes,
            "max_undurable": limits.max_undurable_bytes,
            "keeper": figures.keeper,
            "stream": self._stream.told(figures),
            "bodies": self._bodies,
            "facts": [*_start_facts(figures, self._began), *_ledger_facts(figures)],
        }

    def listen(self) -> None:
        """
        Listen, if that is not done yet.

        @raise StartError: that is not possible, or others could connect and should not.
        """
        if self._port is not None:
            return
        ports: list[IListeningPort] = []
        failures: list[Failure] = []
        maybeDeferred(self._endpoint.listen, self._site).addCallbacks(ports.append, failures.append)
        if failures:
            error = failures[0].value
            if isinstance(error, CannotListenError):
                error = error.socketError
            raise StartError(f"cannot listen on --http {self._name}: {error}")
        (self._port,) = ports
        address = self._port.getHost()
        if not self._anyone and not is_local(address):
            raise StartError(
                f"--http {self._name} would answer others than this machine, and whoever connects "
                f"may read: add interface=127.0.0.1, or say --http-anyone"
            )

    def start(self) -> None:
        """Begin to take samples, and say where this listens."""
        assert self._port is not None
        self._began = time.time()
        self._events.start()
        self._log.info("status on {address}", address=str(self._port.getHost()))

    def stop(self) -> Deferred[None]:
        """Let all go, and listen no more."""
        self._events.stop()
        port, self._port = self._port, None
        if port is None:
            return succeed(None)
        stopped: Deferred[Any] = maybeDeferred(cast(Any, port.stopListening))
        return stopped


def _start_facts(figures: Figures, began: float) -> list[tuple[str, str]]:
    recovered = figures.recovered
    facts = [
        ("Version", f"msglog {__version__}"),
        ("Running since", _moment(began)),
        ("Process", f"{os.getpid()}"),
    ]
    expires = figures.certificate_expires
    if expires is not None:
        facts.append(("Certificate expires", _moment(expires)))
    if recovered is None or figures.stream is not None:
        return facts  # who keeps messages elsewhere recovers nothing
    read = f"{counted(recovered.records, 'record')} ({recovered.read:,} bytes) read again"
    if recovered.rebuilt and recovered.read:
        read += ", for there was no ledger"
    torn = f"{recovered.torn:,} bytes, kept in {recovered.kept}" if recovered.torn else "nothing"
    return [
        *facts,
        ("Recovery took", f"{figures.recovery_seconds:.3f} s"),
        ("Recovery found", read),
        ("Torn by a crash", torn),
    ]


def _moment(seconds: float) -> str:
    return format_time(int(seconds * 1e6)).decode()[:19].replace("T", " ") + " UTC"


def _ledger_facts(figures: Figures) -> list[tuple[str, str]]:
    clients = f"{counted(figures.ledger_clients, 'client')}, {figures.ledger_bytes:,} bytes"
    if figures.stream is not None:
        return [("Clients in memory", clients)]
    return [
        ("Ledger in memory", clients),
        ("Not yet in its file", counted(figures.ledger_dirty, "client")),
    ]
