"""
What keeps an outbox connected to a server, on asyncio: the common part of the asyncio client, which
lives in its caller's event loop, and the blocking one, which has a loop in a thread.
"""

from __future__ import annotations

import asyncio
import logging
import os
import socket
import ssl
from collections import deque
from collections.abc import Callable, Iterable
from concurrent.futures import InvalidStateError
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from pathlib import Path
from time import monotonic
from typing import Any
from uuid import UUID

from uuid_utils.compat import uuid7

from ._client_tls import TLS
from ._errors import SpoolError, TLSError
from ._limits import ClientLimits
from ._outbox import Outbox, Outcomes
from ._servers import Backoff, parse_servers
from ._session import State
from ._spool import Spool, Step
from ._spooled import SpooledOutbox
from ._worker import IWorker, Work, WorkThread

__all__ = ["Link", "tell"]

_log = logging.getLogger("msglog.client")


def tell(outcomes: Outcomes) -> None:
    """Tell futures what they wait for, but those that were cancelled."""
    for error in outcomes.unheard:
        _log.error("a message is not logged: %s", error)
    for waiter, result in zip(outcomes.waiters, outcomes.results, strict=True):
        try:
            if isinstance(result, Exception):
                waiter.set_exception(result)
            else:
                waiter.set_result(result)
        except (asyncio.InvalidStateError, InvalidStateError):
            pass


class _Connection(asyncio.Protocol):
    def __init__(self, link: Link) -> None:
        self._link = link
        self.data_received = link.received  # type: ignore[method-assign]

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._link.connected(transport)

    def connection_lost(self, exc: Exception | None) -> None:
        self._link.disconnected(exc)


class Link:
    """
    @param servers: see L{parse_servers}.
    @param client: the client id, a new one if not given; a spool has its own.
    @param spool: the file of the spool, if there is to be one.
    @param tls: how to speak TLS, if at all.
    @param told: called after anything happened that somebody may wait for, in the loop's thread.
    @param lock: held whenever the outbox is used, if other threads use it too.
    @raise SpoolError: the spool cannot be used.
    @raise TLSError: the TLS settings cannot be used.
    @raise ValueError: a server's address is none.
    """

    def __init__(
        self,
        servers: str | Iterable[str],
        client: UUID | None,
        spool: Path | str | None,
        limits: ClientLimits,
        tls: TLS | None,
        told: Callable[[], None],
        lock: AbstractContextManager[Any] | None = None,
    ) -> None:
        self.servers = parse_servers(servers)
        self._tls = tls
        if tls is not None:
            tls.context()  # what is wrong with it is said now
        self._next_servers = deque(self.servers)
        self._limits = limits
        self.spool: Spool | None = None
        self.outbox: Outbox
        if spool is None:
            self.outbox = Outbox(limits, client)
        else:
            self.spool = Spool(spool, lambda: client or uuid7())
            try:
                self.outbox = SpooledOutbox(limits, self.spool, client)
            except SpoolError:
                self.spool.close()
                raise
        self.session = self.outbox.session
        self._told = told
        self._lock = lock or nullcontext()
        self._backoff = Backoff(limits)
        self._loop: asyncio.AbstractEventLoop | None = None
        self._stopping = asyncio.Event()
        self._transport: Any = None
        self._lost = asyncio.Event()
        self._worker: IWorker | None = None
        self._scheduled = False
        self._retry: asyncio.TimerHandle | None = None
        self._since = 0.0  # when something was last heard, or the first answer became due
        self._was_in_trouble = False

    async def run(self) -> None:
        """Keep connected until L{stop}, and tell whoever still waits then."""
        self._loop = asyncio.get_running_loop()
        if self.spool is not None:
            self._worker = WorkThread(self._loop.call_soon_threadsafe)
        tasks = [asyncio.create_task(self._keep_connected()), asyncio.create_task(self._watch())]
        try:
            await self._stopping.wait()
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.wait(tasks)
            await self._end()

    def stop(self) -> None:
        """Have L{run} return."""
        self._stopping.set()

    async def _keep_connected(self) -> None:
        try:
            self.proceed()
            while self.session.failure is None:
                await self._attempt()
                await asyncio.sleep(self._backoff.failed())
        except Exception:
            _log.exception("the client has a defect and sends nothing more")
            self.stop()
        finally:
            if self._retry is not None:
                self._retry.cancel()
            if self._transport is not None:
                self._transport.abort()

    async def _attempt(self) -> None:
        """Connect to the next server, and stay until that connection is lost."""
        host, port = self._next_servers[0]
        self._next_servers.rotate(-1)
        self._lost.clear()
        try:
            async with asyncio.timeout(self._limits.connect_seconds):
                await self._connect(host, port)
        except TimeoutError:
            seconds = self._limits.connect_seconds
            self._trouble(f"no connection to {host}:{port} within {seconds:g} s")
        except TLSError as e:
            self._trouble(str(e))
        except OSError as e:
            self._trouble(f"no connection to {host}:{port}: {_said(e)}")
        else:
            await self._lost.wait()

    async def _connect(self, host: str, port: int) -> None:
        tls, name = None, None
        if self._tls is not None:
            tls, name = self._tls.context(), self._tls.server_name or host
        connect = partial(
            asyncio.get_running_loop().create_connection,
            partial(_Connection, self),
            port=port,
            ssl=tls,
            server_hostname=name,
        )
        try:
            await connect(host=host)
        except RuntimeError:
            # Python ends, and starts no more threads for names to be looked up in; but what a
            # program says last is to be sent too, and nobody minds if this thread waits.
            found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
            await self._connect_to_any(connect, [address[0] for *_, address in found])

    async def _connect_to_any(self, connect: Any, hosts: list[Any]) -> None:
        for host in hosts:
            try:
                await connect(host=host)
                return
            except OSError:
                if host == hosts[-1]:
                    raise

    # --- the connection --------------------------------------------------------------------

    def connected(self, transport: Any) -> None:
        """A connection is made."""
        self._transport = transport
        sock = transport.get_extra_info("socket")
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        self._since = monotonic()
        with self._lock:
            self.session.connected()
        self.proceed()

    def received(self, data: bytes) -> None:
        """The server has answered."""
        with self._lock:
            if self.session.receive(data):
                self._since = monotonic()
        self.proceed()

    def disconnected(self, error: Exception | None) -> None:
        """The connection is gone."""
        self._transport = None
        self._trouble(f"the connection was lost: {error or 'the server has closed it'}")
        self._lost.set()

    def _trouble(self, why: str) -> None:
        with self._lock:
            self.session.disconnected(why)
        self._react()
        self._told()

    # --- what goes out, and what came of it --------------------------------------------------

    def soon(self) -> None:
        """Go on at the end of this turn of the loop, with what else is sent in it."""
        if not self._scheduled and self._loop is not None:
            self._scheduled = True
            self._loop.call_soon(self.proceed)

    def proceed(self) -> None:
        """Go on now."""
        self._scheduled = False
        session = self.session
        awaiting = session.awaiting
        with self._lock:
            data, outcomes = self.outbox.proceed()
            step = None if self._worker is None else self.outbox.step()
        if data and self._transport is not None:
            self._transport.write(data)
        if not awaiting and session.awaiting:
            self._since = monotonic()
        if step is not None:
            self._do(step, self._stepped)
        tell(outcomes)
        self._react()
        self._told()

    def _do(self, step: Step, done: Callable[[Any], object]) -> None:
        assert self.spool is not None
        assert self._worker is not None
        self._worker.do(partial(self.spool.do, step), done)

    def _stepped(self, step: Any) -> None:
        if step.error is not None:
            _log.error("%s", step.error)
        with self._lock:
            outcomes = self.outbox.stepped(step)
        tell(outcomes)
        self.proceed()

    def _react(self) -> None:
        """Do what the session's state asks for."""
        if self._stopping.is_set():
            return
        session = self.session
        if session.state is State.LEAVING or session.state is State.FAILED:
            if self._transport is not None:
                self._transport.abort()
        elif session.state is State.PAUSED and self._retry is None:
            loop = asyncio.get_running_loop()
            self._retry = loop.call_later(self._backoff.failed(), self._try_again)
        if session.failure is not None and not self._was_in_trouble:
            self._was_in_trouble = True
            _log.critical("%s; nothing more is sent", session.failure)
        elif session.trouble and not self._was_in_trouble:
            self._was_in_trouble = True
            _log.warning("messages wait: %s", session.trouble)
        elif not session.trouble and session.online:
            self._backoff.succeeded()
            if self._was_in_trouble:
                self._was_in_trouble = False
                _log.info("messages are sent again")

    def _try_again(self) -> None:
        self._retry = None
        with self._lock:
            self.session.retry()
        self.proceed()

    async def _watch(self) -> None:
        """See whether an answer is overdue, and whether the spool can be used again."""
        limits, session = self._limits, self.session
        while True:
            await asyncio.sleep(min(limits.connect_seconds, limits.answer_seconds) / 4)
            with self._lock:
                again = self.outbox.try_again()
            if again:
                self.proceed()
            asking = session.state is State.ASKING
            seconds = limits.connect_seconds if asking else limits.answer_seconds
            waited = monotonic() - self._since
            if self._transport is not None and session.awaiting and waited >= seconds:
                session.trouble = f"the server did not answer within {seconds:g} s"
                self._transport.abort()

    # --- the end ---------------------------------------------------------------------------

    async def _end(self) -> None:
        """Put the last messages into the spool, close it, and tell who still waits."""
        worker, self._worker = self._worker, None
        if worker is not None:
            assert self.spool is not None
            await self._after(worker, lambda: None)  # behind the step that may be under way
            with self._lock:
                step = self.outbox.step()
            if step is not None:
                await self._after(worker, partial(self.spool.do, step))
                with self._lock:
                    outcomes = self.outbox.stepped(step)
                tell(outcomes)
            await self._after(worker, self.spool.close)
            worker.stop()
        with self._lock:
            outcomes = self.outbox.close()
        tell(outcomes)
        self._told()

    async def _after(self, worker: IWorker, work: Work) -> None:
        done = asyncio.Event()
        worker.do(work, lambda _: done.set())
        await done.wait()


def _said(error: OSError) -> str:
    """Why there is no connection, without where to, which asyncio says once more."""
    if isinstance(error, ssl.SSLError) or error.errno is None:
        return str(error)
    # The numbers of a name that was not found are none of the system's.
    return os.strerror(error.errno) if error.errno > 0 else error.strerror or str(error)
