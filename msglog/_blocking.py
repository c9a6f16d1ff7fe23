"""
The client for scripts and threads: plain calls that block, over a thread that talks to the server.

The thread alone owns the connection.  What is on hand (L{Outbox}) is shared under one lock, which
is never held while anybody waits for the network, for the disk, or for a caller's code.
"""

from __future__ import annotations

import asyncio
import atexit
import os
import threading
import time
import weakref
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future
from copy import copy
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol
from uuid import UUID

from ._batch import Receipt
from ._client_tls import TLS
from ._errors import NotConnected, NotLogged, QueueFull, SessionFailed
from ._limits import ClientLimits
from ._link import Link, tell
from ._outbox import Outcomes
from ._spool import Marks

__all__ = ["BlockingClient", "Waiter", "connect"]


def connect(
    servers: str | Iterable[str] = "127.0.0.1",
    *,
    client: UUID | None = None,
    spool: Path | str | None = None,
    tls: TLS | None = None,
    limits: ClientLimits | None = None,
    timeout: float | None = 10.0,
) -> BlockingClient:
    """
    A client for scripts and threads::

        with msglog.connect("host:7514") as log:
            receipt = log.send(b"a message")

    @param servers: C{"host:port"}, several with commas between, or a list of such; of one log.
    @param client: the client id; a new one if not given.  One that was used before goes on with
        its next sequence, and nobody else may write under it at the same time.
    @param spool: a file through which messages go, so that a kill of this process loses none.  It
        has its own client id.
    @param tls: how to speak TLS; without it, none is spoken.
    @param limits: see L{ClientLimits}.
    @param timeout: how many seconds to wait for a server; L{None} not to wait.  With a spool there
        is no need to, and nobody waits.
    @raise NotConnected: no server has answered in time.
    @raise SessionFailed: one has, but nothing can be sent under this client id.
    @raise SpoolError: the spool cannot be used.
    @raise TLSError: the TLS settings cannot be used.
    @raise ValueError: an address is none.
    """
    made = BlockingClient(servers, client=client, spool=spool, tls=tls, limits=limits)
    if timeout is not None and spool is None:
        try:
            made.wait_connected(timeout)
        except BaseException:
            made.close(0)
            raise
    return made


class Waiter(Protocol):
    """
    Who is told what became of messages: a L{Future}, or anything with these two methods of its.

    They are called in the client's thread, and must neither wait nor raise.
    """

    def set_result(self, result: Any, /) -> object:
        """It is done."""

    def set_exception(self, exception: Any, /) -> object:
        """It is not."""


class _Results(deque[Receipt | Exception]):
    """What many messages have in common that wait for their receipts: these come in order."""

    set_result = set_exception = deque.append

    def take(self) -> Receipt:
        """The next one's receipt."""
        result = self.popleft()
        if isinstance(result, Exception):
            raise result
        return result


class BlockingClient:
    """
    See L{connect}, which makes one.  Its methods may be called from any thread.

    It does not survive a fork: connect in the process that sends.

    @param close_at_exit: whether it is closed when Python ends, if it is not by then.
    """

    def __init__(
        self,
        servers: str | Iterable[str],
        *,
        client: UUID | None = None,
        spool: Path | str | None = None,
        tls: TLS | None = None,
        limits: ClientLimits | None = None,
        close_at_exit: bool = True,
    ) -> None:
        self._limits = limits or ClientLimits()
        self._lock = threading.RLock()
        self._parked: deque[tuple[Any, ...]] = deque()  # what came while its thread had the lock
        # Something happened that a caller may wait for: room, receipts, a connection.
        self._happened = threading.Condition(self._lock)
        self._waiting = 0  # callers who wait for that
        self._link = Link(servers, client, spool, self._limits, tls, self._told, self._lock)
        self._outbox = self._link.outbox
        self._woken = False  # whether the thread will look at the outbox anyway
        self._closing = False
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._run, name="msglog client", daemon=True)
        self._thread.start()
        self._at_exit = partial(_close_at_exit, weakref.ref(self), os.getpid())
        if close_at_exit:
            atexit.register(self._at_exit)

    # --- sending ---------------------------------------------------------------------------

    def send(self, body: bytes, timeout: float | None = None) -> Receipt:
        """
        Send a message and wait for its receipt.

        @param timeout: how many seconds to wait at most.  A message that takes longer is on its
            way all the same.
        @raise NotLogged: it is not logged; C{retry} says whether to try again.
        @raise TimeoutError: there was no room, or no receipt, in time.
        """
        deadline = None if timeout is None else time.monotonic() + timeout
        receipt = self.submit(body, timeout=timeout)
        return receipt.result(None if deadline is None else max(deadline - time.monotonic(), 0))

    def send_all(self, bodies: Iterable[bytes]) -> Iterator[Receipt]:
        """
        Send messages one after the other without waiting for each, and yield their receipts in
        order.  It takes as many bodies ahead as can be on their way.

        @raise NotLogged: one of them is not logged.  Those before it are.
        """
        results = _Results()
        pending = 0
        refused: NotLogged | None = None
        for body in bodies:
            while results:
                pending -= 1
                yield results.take()
            try:
                self.hand_over(body, results)
            except NotLogged as e:
                refused = e  # but those before it are on their way
                break
            pending += 1
        while pending:
            self._wait(lambda: bool(results), None)
            pending -= 1
            yield results.take()
        if refused is not None:
            raise refused

    def submit(
        self, body: bytes, block: bool = True, timeout: float | None = None
    ) -> Future[Receipt]:
        """
        Hand over a message, and wait only if no more can be held.

        @param block: whether to wait for room.
        @param timeout: for how many seconds.
        @return: its receipt in time, or its L{NotLogged}.
        @raise QueueFull: there is no room and C{block} is false.
        @raise TimeoutError: there was none in time.
        @raise NotLogged: it cannot be sent at all.
        """
        receipt: Future[Receipt] = Future()
        self.hand_over(body, receipt, None, block, timeout)
        return receipt

    def put(
        self,
        body: bytes,
        block: bool = True,
        timeout: float | None = None,
        *,
        marks: Marks | None = None,
    ) -> Future[None]:
        """
        Hand a message to the spool.  See L{submit}.

        @param marks: numbers to remember, by key, together with the message or not at all (how far
            a file was read, say); L{None} to forget a key.  L{marked} finds them.
        @return: done when the message is in the spool, from where it is sent whatever happens;
            L{SpoolError} if the spool cannot take it.
        """
        if self._link.spool is None:
            raise NotLogged("this client has no spool", False)
        spooled: Future[None] = Future()
        self.hand_over(body, None, spooled, block, timeout, marks)
        return spooled

    def hand_over(
        self,
        body: bytes,
        receipt: Waiter | None,
        spooled: Waiter | None = None,
        block: bool = True,
        timeout: float | None = None,
        marks: Marks | None = None,
    ) -> None:
        """
        Hand over a message for those to whom a future for each is too much.  See L{submit} and
        L{put} for the other parameters.

        @param receipt: is told the message's receipt, or its L{NotLogged}; nobody, if L{None}.
        @param spooled: is told when the message is in the spool (L{None}), or L{SpoolError}.
        """
        if self._lock._is_owned():  # type: ignore[attr-defined]  # a Condition asks it too
            # A finaliser or a signal handler, in the middle of what this very thread does with
            # the outbox: it is taken when that is done.
            self._parked.append((body, receipt, spooled, marks))
            self._wake()
            return
        with self._lock:
            try:
                self._outbox.put(body, receipt, spooled, marks)
            except QueueFull:
                if not block:
                    raise
                if not self._wait_locked(lambda: self._no_longer_full(len(body)), timeout):
                    raise TimeoutError(f"there was no room within {timeout} s") from None
                self._outbox.put(body, receipt, spooled, marks)
            if not self._woken:
                # In this order: an exception of a signal handler in between wakes it twice.
                self._wake()
                self._woken = True

    def _wake(self) -> None:
        try:
            self._loop.call_soon_threadsafe(self._go_on)
        except RuntimeError:
            pass  # another thread has closed the client, which told whoever waits

    def _no_longer_full(self, size: int) -> bool:
        """Whether waiting for room is over, because there is some or never will be."""
        failed = self._outbox.session.failure is not None
        return self._closing or failed or self._outbox.has_room(size)

    def flush(self, timeout: float | None = None) -> None:
        """
        Wait until everything that was handed over so far has its receipt or was refused.

        @raise TimeoutError: it was not in time.
        """
        with self._lock:
            point = self._outbox.handed_over
            done = self._wait_locked(lambda: self._outbox.settled_up_to(point), timeout)
        if not done:
            raise TimeoutError(f"not everything was answered within {timeout} s: {self.trouble}")

    def wait_connected(self, timeout: float) -> None:
        """
        Wait until a server has said its terms.

        @raise NotConnected: none has in time.
        @raise SessionFailed: it has, but nothing can be sent under this client id.
        """
        session = self._outbox.session
        with self._lock:
            self._wait_locked(lambda: session.online or session.failure is not None, timeout)
            if session.failure is not None:
                raise copy(session.failure)
            if not session.online:
                servers = ", ".join(f"{host}:{port}" for host, port in self._link.servers)
                why = session.trouble or "no answer"
                raise NotConnected(f"no server at {servers} within {timeout:g} s: {why}")

    def _wait(self, condition: Callable[[], bool], timeout: float | None) -> bool:
        with self._lock:
            return self._wait_locked(condition, timeout)

    def _wait_locked(self, condition: Callable[[], bool], timeout: float | None) -> bool:
        self._waiting += 1
        try:
            return self._happened.wait_for(condition, timeout)
        finally:
            self._waiting -= 1

    @property
    def client(self) -> UUID:
        """The client id."""
        return self._outbox.session.client

    @property
    def unsettled(self) -> int:
        """How many messages have neither a receipt nor an error, in the spool and out of it."""
        return self._outbox.unsettled

    @property
    def refused(self) -> int:
        """How many messages the server did not take, for good, while this client was open."""
        return self._outbox.refused

    @property
    def failure(self) -> SessionFailed | None:
        """Why nothing can be sent any more under this client id; L{None} if it can."""
        return self._outbox.session.failure

    @property
    def trouble(self) -> str:
        """Why there is no progress at the moment, for people; empty if there is."""
        return self._outbox.session.trouble

    @property
    def max_body(self) -> int | None:
        """The longest body that the server takes, bytes; L{None} before it has said so."""
        return self._outbox.session.max_body

    def marked(self, key: str) -> int | None:
        """What the spool remembered under a key (see L{put}) when it was opened."""
        return None if self._link.spool is None else self._link.spool.marks.get(key)

    # --- the end ---------------------------------------------------------------------------

    def close(self, timeout: float | None = None) -> None:
        """
        Take no more messages, wait for the receipts of those that were handed over, and close.

        @param timeout: how many seconds to wait; C{stop_seconds} if not given.  What has no
            receipt then fails with L{Unanswered}.
        """
        seconds = self._limits.stop_seconds if timeout is None else timeout
        with self._lock:
            self._outbox.end()
            point = self._outbox.handed_over
            self._wait_locked(lambda: self._closing or self._outbox.settled_up_to(point), seconds)
            first, self._closing = not self._closing, True
        if first:
            self._loop.call_soon_threadsafe(self._link.stop)
        self._thread.join()
        atexit.unregister(self._at_exit)

    def __enter__(self) -> BlockingClient:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    # --- the thread ------------------------------------------------------------------------

    def _run(self) -> None:
        try:
            with asyncio.Runner(loop_factory=lambda: self._loop) as runner:
                runner.run(self._link.run())
        finally:
            # Whatever ended it, nobody waits for ever.
            with self._lock:
                self._closing = True
                outcomes = self._outbox.close()
                self._happened.notify_all()
            tell(outcomes)

    def _go_on(self) -> None:
        outcomes = Outcomes()
        with self._lock:
            self._woken = False
            while self._parked:
                body, receipt, spooled, marks = self._parked.popleft()
                try:
                    self._outbox.put(body, receipt, spooled, marks)
                except NotLogged as e:
                    outcomes.tell_error(receipt, e)
                    outcomes.tell_error(spooled, e)
        tell(outcomes)
        self._link.proceed()

    def _told(self) -> None:
        if self._waiting:
            with self._lock:
                self._happened.notify_all()


def _close_at_exit(client: weakref.ref[BlockingClient], process: int) -> None:
    """A script that ends without closing its client has sent its messages all the same."""
    alive = client()
    # In a forked child there is no thread that could send them: they are the parent's.
    if alive is not None and os.getpid() == process:
        alive.close()
