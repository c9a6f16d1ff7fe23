"""
A connection to a NATS cluster for a Twisted program, on whatever reactor it runs.

nats-py wants an asyncio loop, and most reactors have none.  So it gets one in a thread of its own,
also where the reactor is asyncio's: one way to be right, and a slow turn of the reactor delays no
PING.  Requests cross to the thread, and answers back, in bunches: one wake-up for all that came
about meanwhile.

Whatever is asked is answered once: with the engine's words, or with why there are none.  That says
nothing about whether the engine has done what it was asked.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from concurrent.futures import Future
from concurrent.futures import TimeoutError as FutureTimeout
from itertools import count
from threading import Lock, Thread
from typing import Any

from attrs import define
from nats import errors
from nats.aio.client import Client
from nats.aio.msg import Msg
from twisted.internet.defer import Deferred
from twisted.logger import Logger

from ._jetstream import Reply, Unknown
from ._nats_access import INBOX_PREFIX, NatsAccess
from ._stream_counts import LinkCounts

__all__ = ["Done", "NatsLink"]

Done = Callable[[Reply], object]

_log = Logger()

# A server that neither answers nor closes is left after two PINGs without an answer.
_PING_SECONDS = 2

# Between two attempts at one server.
_RECONNECT_SECONDS = 0.2

# How often it is looked which requests had no answer in time.
_SWEEP_SECONDS = 0.05

# How many different complaints are logged before there is a connection again.
_MOST_SAID = 10

# How long a stop waits for the connection to be closed in good order.
_CLOSE_SECONDS = 2.0


@define(slots=True, eq=False)
class _Asked:
    subject: str
    payload: bytes
    headers: dict[str, str] | None
    done: Done
    deadline: float = 0.0


class NatsLink:
    """
    @param reactor: whose thread calls C{request}, and is called back.
    @param access: which cluster.
    @param seconds: how long an answer is waited for.
    @ivar trouble: why there is no connection, or what the engine last complained about.
    @ivar counts: of its connections.
    @ivar version: the connected server's; L{None} before.
    @ivar max_payload: the longest message that the connected server takes; L{None} before.
    """

    def __init__(self, reactor: Any, access: NatsAccess, seconds: float) -> None:
        self._from_thread = reactor.callFromThread
        self._access = access
        self._seconds = seconds
        self._options: dict[str, Any] = {}
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread: Thread | None = None
        self._stopping: asyncio.Event | None = None
        self._client: Client | None = None
        self._lock = Lock()
        self._outbox: list[_Asked] = []
        self._inbox: list[tuple[Done, Reply]] = []
        self._unanswered: dict[str, _Asked] = {}
        self._tokens = count()
        self._reply_to = ""
        self._sending: set[asyncio.Task[None]] = set()  # a loop itself keeps no task alive
        self._ready: asyncio.Event | None = None
        self._said: set[str] = set()
        self.trouble = "not connected yet"
        self.counts = LinkCounts()
        self.max_payload: int | None = None
        self.version: tuple[int, int] | None = None

    # --- the reactor's side ----------------------------------------------------------------

    def start(self) -> None:
        """
        Begin to connect, and go on trying until C{stop}.

        @raise StartError: a file that it needs cannot be read.
        """
        self._options = self._access.options()
        self._loop = asyncio.new_event_loop()
        self._stopping = asyncio.Event()
        self._ready = asyncio.Event()
        self._thread = Thread(target=self._run, args=(self._loop,), name="msglog NATS", daemon=True)
        self._thread.start()

    def request(
        self, subject: str, payload: bytes, headers: dict[str, str] | None, done: Done
    ) -> None:
        """Ask; C{done} is called in the reactor's thread."""
        with self._lock:
            first = not self._outbox
            self._outbox.append(_Asked(subject, payload, headers, done))
        if first:
            assert self._loop is not None
            self._loop.call_soon_threadsafe(self._wake)

    def ask(self, subject: str, payload: bytes, seconds: float) -> Reply:
        """Ask, and wait for a connection and the answer: for a start, before the reactor runs."""
        assert self._loop is not None
        asked: Future[Reply] = asyncio.run_coroutine_threadsafe(
            self._ask(subject, payload), self._loop
        )
        try:
            return asked.result(seconds)
        except FutureTimeout:
            asked.cancel()
            return Reply(None, self.trouble or "it did not answer")

    def stop(self) -> Deferred[None]:
        """Close the connection; fires when the thread has ended."""
        stopped: Deferred[None] = Deferred()
        loop, stopping, thread = self._loop, self._stopping, self._thread
        if loop is None or stopping is None or thread is None:
            stopped.callback(None)
            return stopped
        self._loop = self._thread = None

        def wait() -> None:
            thread.join()
            self._from_thread(stopped.callback, None)

        loop.call_soon_threadsafe(stopping.set)
        Thread(target=wait, name="msglog NATS stop", daemon=True).start()
        return stopped

    def _deliver(self) -> None:
        with self._lock:
            inbox, self._inbox = self._inbox, []
        for done, reply in inbox:
            try:
                done(reply)
            except Exception:
                _log.failure("an answer of NATS was not taken by what had asked for it")

    # --- the thread's side -----------------------------------------------------------------

    def _run(self, loop: asyncio.AbstractEventLoop) -> None:
        asyncio.set_event_loop(loop)
        try:
            loop.run_until_complete(self._main())
        except Exception:
            self._from_thread(_log.failure, "the connection to NATS ended by a defect")
        finally:
            loop.close()

    async def _main(self) -> None:
        assert self._stopping is not None
        sweeping = asyncio.create_task(self._sweep())
        connecting = asyncio.create_task(self._stay_connected())
        await self._stopping.wait()
        for task in (sweeping, connecting):
            task.cancel()
        await asyncio.gather(sweeping, connecting, return_exceptions=True)
        if self._client is not None:
            with contextlib.suppress(Exception):
                await asyncio.wait_for(self._client.close(), _CLOSE_SECONDS)
        self._fail_all("the connection is closed")
        left = asyncio.all_tasks() - {asyncio.current_task()}
        for task in left:
            task.cancel()
        await asyncio.gather(*left, return_exceptions=True)

    async def _stay_connected(self) -> None:
        """Hold a connection; one that nats-py closes for good is followed by a new one."""
        while True:
            closed = asyncio.Event()
            client = Client()
            try:
                # With this it goes on trying; it returns when there is a connection.
                await client.connect(
                    **self._options,
                    name="msglog",
                    max_reconnect_attempts=-1,
                    reconnect_time_wait=_RECONNECT_SECONDS,  # type: ignore[arg-type] # it sleeps so
                    ping_interval=_PING_SECONDS,
                    # What cannot be sent now is never sent later, behind the back of who asked.
                    pending_size=0,
                    inbox_prefix=INBOX_PREFIX,
                    error_cb=self._complained,
                    disconnected_cb=self._disconnected,
                    reconnected_cb=self._connected,
                    closed_cb=_setter(closed),
                )
                self._client = client
                self._reply_to = client.new_inbox() + "."
                await client.subscribe(self._reply_to + "*", cb=self._answered)
                await self._connected()
                await closed.wait()
                self.counts.closed()
            except asyncio.CancelledError:
                self._client = self._client or client
                raise
            except Exception as e:  # whatever nats-py raises; the next attempt may go better
                self.trouble = _words(e)
            await self._disconnected()
            await asyncio.sleep(_RECONNECT_SECONDS)

    async def _connected(self) -> None:
        assert self._client is not None
        assert self._ready is not None
        self.max_payload = self._client.max_payload
        version = self._client.connected_server_version
        self.version = (version.major, version.minor)
        url = self._client.connected_url
        self.counts.connected(f"{url.hostname}:{url.port}" if url else "?")
        self.trouble = ""
        self._said.clear()
        self._ready.set()

    async def _disconnected(self) -> None:
        assert self._ready is not None
        self._ready.clear()
        self.counts.disconnected()
        self.trouble = self.trouble or "the connection is lost"
        self._fail_all("the connection was lost")

    async def _complained(self, error: Exception) -> None:
        self.trouble = _words(error)
        # Several servers that are away would take turns for hours.
        if self.trouble not in self._said and len(self._said) < _MOST_SAID:
            self._said.add(self.trouble)
            self._from_thread(_log.warn, "NATS: {words}", words=self.trouble)

    def _wake(self) -> None:
        task = asyncio.ensure_future(self._send())
        self._sending.add(task)
        task.add_done_callback(self._sending.discard)

    async def _send(self) -> None:
        with self._lock:
            outbox, self._outbox = self._outbox, []
        for asked in outbox:
            await self._send_one(asked)

    async def _send_one(self, asked: _Asked) -> None:
        client = self._client
        if client is None or not client.is_connected:
            self._answer(asked.done, Reply(None, self.trouble or "not connected"))
            return
        token = str(next(self._tokens))
        asked.deadline = asyncio.get_running_loop().time() + self._seconds
        self._unanswered[token] = asked
        try:
            await client.publish(
                asked.subject, asked.payload, reply=self._reply_to + token, headers=asked.headers
            )
        except Exception as e:  # not connected any more, or longer than the server takes
            if self._unanswered.pop(token, None) is not None:
                cause = Unknown.OTHER if client.is_connected else Unknown.DISCONNECTED
                self._answer(asked.done, Reply(None, _words(e), cause))

    async def _ask(self, subject: str, payload: bytes) -> Reply:
        assert self._ready is not None
        loop = asyncio.get_running_loop()
        while True:
            await self._ready.wait()
            answered: asyncio.Future[Reply] = loop.create_future()
            await self._send_one(_Asked(subject, payload, None, _Direct(answered)))
            reply = await answered
            if reply.data is not None:
                return reply
            self.trouble = reply.trouble
            await asyncio.sleep(_RECONNECT_SECONDS)

    async def _answered(self, message: Msg) -> None:
        asked = self._unanswered.pop(message.subject[len(self._reply_to) :], None)
        if asked is None:
            return  # too late
        if message.headers and message.headers.get("Status") == "503":
            reply = Reply(
                None,
                "nobody answers for the stream: it has no leader, or is not there",
                Unknown.NO_RESPONDERS,
            )
        else:
            reply = Reply(message.data)
        self._answer(asked.done, reply)

    async def _sweep(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            await asyncio.sleep(_SWEEP_SECONDS)
            now = loop.time()
            # All wait equally long, so those that came first are due first.
            while self._unanswered:
                token, asked = next(iter(self._unanswered.items()))
                if asked.deadline > now:
                    break
                del self._unanswered[token]
                late = f"no answer within {self._seconds:g} s"
                self._answer(asked.done, Reply(None, late, Unknown.TIMEOUT))

    def _fail_all(self, why: str) -> None:
        unanswered, self._unanswered = self._unanswered, {}
        for asked in unanswered.values():
            self._answer(asked.done, Reply(None, why))
        with self._lock:
            outbox, self._outbox = self._outbox, []
        for asked in outbox:
            self._answer(asked.done, Reply(None, why))

    def _answer(self, done: Done, reply: Reply) -> None:
        if isinstance(done, _Direct):
            done(reply)
            return
        with self._lock:
            first = not self._inbox
            self._inbox.append((done, reply))
        if first:
            self._from_thread(self._deliver)


class _Direct:
    """Takes an answer in the thread itself."""

    def __init__(self, future: asyncio.Future[Reply]) -> None:
        self._future = future

    def __call__(self, reply: Reply) -> None:
        if not self._future.done():
            self._future.set_result(reply)


def _setter(event: asyncio.Event) -> Callable[[], Any]:
    async def set_event() -> None:
        event.set()

    return set_event


def _words(error: BaseException) -> str:
    """An error of nats-py in words; some have none of their own."""
    if isinstance(error, errors.OutboundBufferLimitError | errors.ConnectionClosedError):
        return "not connected"
    if isinstance(error, errors.NoServersError):
        return "no server answers"
    return str(error).removeprefix("nats: ") or type(error).__name__
