"""
The client for asyncio::

    async with msglog.aio.connect("host:7514") as log:
        receipt = await log.send(b"a message")
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Generator, Iterable
from copy import copy
from pathlib import Path
from types import TracebackType
from typing import Any
from uuid import UUID

from attrs import define

from ._batch import Receipt
from ._client_tls import TLS
from ._errors import NotConnected, NotLogged
from ._limits import ClientLimits
from ._link import Link

__all__ = ["AsyncClient", "connect"]


class _Connecting:
    """What C{async with} and C{await} make a client of."""

    def __init__(self, client: AsyncClient, timeout: float | None) -> None:
        self._client = client
        self._timeout = timeout

    async def _connect(self) -> AsyncClient:
        await self._client._start(self._timeout)
        return self._client

    def __await__(self) -> Generator[Any, None, AsyncClient]:
        return self._connect().__await__()

    async def __aenter__(self) -> AsyncClient:
        return await self._connect()

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self._client.close()


def connect(
    servers: str | Iterable[str] = "127.0.0.1",
    *,
    client: UUID | None = None,
    spool: Path | str | None = None,
    tls: TLS | None = None,
    limits: ClientLimits | None = None,
    timeout: float | None = 10.0,
) -> _Connecting:
    """
    A client for asyncio: C{async with connect(…) as log}, or C{log = await connect(…)}.

    The parameters and errors are those of L{msglog.connect}; the errors come when it is entered or
    awaited.
    """
    limits = limits or ClientLimits()
    return _Connecting(AsyncClient(servers, client, spool, tls, limits), timeout)


@define(slots=True, eq=False)
class _Waiting:
    """A message that waits for room, and who waits for its receipt or for the spool to have it."""

    body: bytes
    size: int
    waiter: asyncio.Future[Any]
    receipt: asyncio.Future[Receipt] | None
    spooled: asyncio.Future[None] | None


class AsyncClient:
    """See L{connect}, which makes one.  To be used in one event loop."""

    def __init__(
        self,
        servers: str | Iterable[str],
        client: UUID | None,
        spool: Path | str | None,
        tls: TLS | None,
        limits: ClientLimits,
    ) -> None:
        self._limits = limits
        self._make_link = lambda: Link(servers, client, spool, limits, tls, self._told)
        self._link: Link
        self._running: asyncio.Task[None]
        self._queue: deque[_Waiting] = deque()
        # Who waits for what: fired when it is so.
        self._waiters: deque[tuple[Any, asyncio.Future[None]]] = deque()

    async def _start(self, timeout: float | None) -> None:
        self._link = self._make_link()
        self._outbox = self._link.outbox
        self._running = asyncio.create_task(self._link.run())
        if timeout is not None and self._link.spool is None:
            try:
                await self._wait_connected(timeout)
            except BaseException:
                await self.close(0)
                raise

    async def _wait_connected(self, timeout: float) -> None:
        session = self._link.session
        try:
            async with asyncio.timeout(timeout):
                await self._until(lambda: session.online or session.failure is not None)
        except TimeoutError:
            servers = ", ".join(f"{host}:{port}" for host, port in self._link.servers)
            why = session.trouble or "no answer"
            raise NotConnected(f"no server at {servers} within {timeout:g} s: {why}") from None
        if session.failure is not None:
            raise copy(session.failure)

    # --- sending ---------------------------------------------------------------------------

    async def send(self, body: bytes) -> Receipt:
        """
        Send a message and wait for its receipt; before that, for room.

        A message whose C{send} is cancelled while it waits for the receipt is on its way all the
        same.

        @raise NotLogged: it is not logged; C{retry} says whether to try again.
        """
        receipt: asyncio.Future[Receipt] = asyncio.get_running_loop().create_future()
        self._in_turn(body, receipt, receipt, None)
        return await receipt

    def _in_turn(
        self,
        body: bytes,
        waiter: asyncio.Future[Any],
        receipt: asyncio.Future[Receipt] | None,
        spooled: asyncio.Future[None] | None,
    ) -> None:
        """Hand over a message, now or when there is room, behind those that wait for that."""
        self._queue.append(_Waiting(body, len(body), waiter, receipt, spooled))
        if len(self._queue) == 1:
            self._admit()

    def _admit(self) -> None:
        # To wake who waits, for it to look for room itself, would wake all for the room of a few.
        while self._queue and self._has_room(self._queue[0].size):
            first = self._queue.popleft()
            if first.waiter.done():
                continue  # cancelled
            try:
                self._outbox.put(first.body, first.receipt, first.spooled)
            except Exception as e:
                first.waiter.set_exception(e)
            else:
                self._link.soon()

    def _has_room(self, size: int) -> bool:
        """Whether there is no point in waiting: there is room, or never will be."""
        return self._outbox.has_room(size) or self._link.session.failure is not None

    def send_nowait(self, body: bytes) -> asyncio.Future[Receipt]:
        """
        Hand over a message.

        @return: its receipt in time, or its L{NotLogged}.
        @raise QueueFull: no more can be held.
        @raise NotLogged: it cannot be sent at all.
        """
        receipt: asyncio.Future[Receipt] = asyncio.get_running_loop().create_future()
        self._outbox.put(body, receipt)
        self._link.soon()
        return receipt

    async def put(self, body: bytes) -> None:
        """
        Put a message into the spool, from where it is sent whatever happens.

        @raise NotLogged: it cannot be sent at all, or this client has no spool.
        @raise SpoolError: the spool cannot take it.
        """
        if self._link.spool is None:
            raise NotLogged("this client has no spool", False)
        spooled: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._in_turn(body, spooled, None, spooled)
        await spooled

    async def flush(self) -> None:
        """Wait until everything that was handed over so far has its receipt or was refused."""
        point = self._outbox.handed_over
        await self._until(lambda: self._outbox.settled_up_to(point))

    async def _until(self, condition: Callable[[], bool]) -> None:
        while not condition():
            waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            self._waiters.append((condition, waiter))
            await waiter

    def _told(self) -> None:
        self._admit()
        for _ in range(len(self._waiters)):
            condition, waiter = self._waiters.popleft()
            if waiter.done():
                continue
            if condition():
                waiter.set_result(None)
            else:
                self._waiters.append((condition, waiter))

    @property
    def client(self) -> UUID:
        """The client id."""
        return self._link.session.client

    @property
    def unsettled(self) -> int:
        """How many messages have neither a receipt nor an error, in the spool and out of it."""
        return self._outbox.unsettled

    @property
    def trouble(self) -> str:
        """Why there is no progress at the moment, for people; empty if there is."""
        return self._link.session.trouble

    # --- the end ---------------------------------------------------------------------------

    async def close(self, timeout: float | None = None) -> None:
        """
        Take no more messages, wait for the receipts of those that were handed over, and close.

        @param timeout: how many seconds to wait; C{stop_seconds} if not given.  What has no
            receipt then fails with L{Unanswered}.
        """
        self._outbox.end()
        try:
            async with asyncio.timeout(self._limits.stop_seconds if timeout is None else timeout):
                await self.flush()
        except TimeoutError:
            pass
        self._link.stop()
        await asyncio.wait([self._running])
