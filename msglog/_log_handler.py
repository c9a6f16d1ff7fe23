"""The standard library's C{logging}, into a msglog server."""

from __future__ import annotations

import logging
import os
import sys
import threading
import time
import weakref
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from pathlib import Path
from typing import Any
from uuid import UUID

from ._blocking import BlockingClient
from ._client_tls import TLS
from ._errors import NotConnected, NotLogged, SessionFailed
from ._limits import ClientLimits
from ._log_drops import Drops, remark
from ._log_event import DEFAULT_MAX_BODY, encode, event_time

__all__ = ["LogHandler"]

# Seconds that a flush, and with it the end of a program, waits for receipts: while a log server is
# away for an hour, no program takes an hour to end.
FLUSH_SECONDS = 5.0

# Seconds that the making of a handler waits for the server's terms, if nothing else says how long a
# message may be: many times what a network needs, and nobody sees a program start so much later.
_GREETING_SECONDS = 0.25

# How often a flush looks whether there is still a point in waiting.
_LOOK_SECONDS = 0.1

# Seconds from one new client to the next one: a server that takes none is not to be asked once for
# every record.
_RENEW_SECONDS = 10.0

# What every record has, and what formatters leave behind; anything else came with C{extra}.
_OWN = {*vars(logging.makeLogRecord({})), "message", "asctime", "taskName"}

_CLIENT_THREADS = ("msglog client", "msglog disk")

_handlers: weakref.WeakSet[LogHandler] = weakref.WeakSet()


class LogHandler(logging.Handler):
    """
    A C{logging.Handler} whose every record becomes a message: a JSON object (docs/logging.md).

    To log never waits: not for the server, not for the disk, not for another thread that logs.
    What cannot be taken is counted, and the log says so as soon as there is room again.

    @param servers: C{"host:port"}, several with commas between, or a list of such; of one log.
    @param client: the client id, as a UUID or its text; a new one if not given.
    @param spool: a file through which messages go, so that a kill of this process loses none.
    @param tls: how to speak TLS, or a mapping with its parameters.
    @param limits: see L{ClientLimits}, or a mapping with some of them.
    @param max_body: how long a message may be, in bytes, before the server has said how long it
        may be.  Without it, a new handler waits a moment for the server to say so, and takes the
        server's default if that says nothing.
    @param flush_seconds: how long a flush, and the end of the program, waits for receipts.
    @param level: see L{logging.Handler}.
    @raise SpoolError: the spool cannot be used.
    @raise TLSError: the TLS settings cannot be used.
    @raise ValueError: an address, a client id or a limit is none.
    """

    def __init__(
        self,
        servers: str | Iterable[str] = "127.0.0.1",
        *,
        client: UUID | str | None = None,
        spool: Path | str | None = None,
        tls: TLS | Mapping[str, Any] | None = None,
        limits: ClientLimits | Mapping[str, Any] | None = None,
        max_body: int | None = None,
        flush_seconds: float = FLUSH_SECONDS,
        level: int | str = logging.NOTSET,
    ) -> None:
        super().__init__(level)
        self.flush_seconds = flush_seconds
        self._max_body = DEFAULT_MAX_BODY if max_body is None else max_body
        self._spool = spool
        self._connect: Callable[..., BlockingClient] = partial(
            BlockingClient,
            servers if isinstance(servers, str) else list(servers),
            tls=TLS(**tls) if isinstance(tls, Mapping) else tls,
            limits=ClientLimits(**limits) if isinstance(limits, Mapping) else limits,
            # logging.shutdown flushes and closes, after whoever logs in the program's last moment.
            close_at_exit=False,
        )
        self._closed = False
        self._in_vain = False  # the last flush was, and nothing came since
        self._renewed = -_RENEW_SECONDS
        self._begin()
        self._client: BlockingClient | None = self._connect(
            client=UUID(client) if isinstance(client, str) else client, spool=spool
        )
        _handlers.add(self)
        self._flush_with_worker()
        if max_body is None:
            self._await_terms(self._client)

    def _await_terms(self, client: BlockingClient) -> None:
        deadline = time.monotonic() + _GREETING_SECONDS
        while client.max_body is None and not client.trouble and time.monotonic() < deadline:
            try:
                client.wait_connected(_GREETING_SECONDS / 10)
            except (NotConnected, SessionFailed):
                pass  # a program starts all the same, and its log says what became of it

    def _begin(self) -> None:
        """What a forked child begins with too."""
        self._drops = Drops()
        self._replacing = threading.Lock()

    # --- records ---------------------------------------------------------------------------

    def filter(self, record: logging.LogRecord) -> Any:
        """See L{logging.Filterer}; what a client says about its work makes no work for it."""
        if f"{record.name}.".startswith("msglog."):
            return False
        if threading.current_thread().name in _CLIENT_THREADS:
            return False
        return super().filter(record)

    def handle(self, record: logging.LogRecord) -> Any:
        """See L{logging.Handler}; without its lock, for one who logs waits for none who flushes."""
        passed = self.filter(record)
        if passed:
            self.emit(passed if isinstance(passed, logging.LogRecord) else record)
        return passed

    def emit(self, record: logging.LogRecord) -> None:
        """Hand a record over.  It never waits, and never raises."""
        try:
            event = self.to_event(record)
            client = self._client or self._in_child()
            if client is None:
                self._drops.add("the handler is closed")
            else:
                self._drops.say(partial(self._take, client))
                self._in_vain = False
                self._take_or_drop(client, event)
        except Exception as e:
            self._drops.add(f"it could not be made a message: {e}")
            self.handleError(record)

    def to_event(self, record: logging.LogRecord) -> dict[str, Any]:
        """
        What becomes of a record; docs/logging.md has the keys.

        To be overridden by those who want others.  What JSON does not have becomes text.
        """
        event: dict[str, Any] = {
            "time": event_time(record.created),
            "level": record.levelname,
            "logger": record.name,
            "message": record.getMessage(),
        }
        fields = {key: value for key, value in vars(record).items() if key not in _OWN}
        if fields:
            event["fields"] = fields
        formatter = self.formatter or _PLAIN
        if record.exc_info:
            event["exception"] = formatter.formatException(record.exc_info)
        elif record.exc_text:
            event["exception"] = record.exc_text
        if record.stack_info:
            event["stack"] = formatter.formatStack(record.stack_info)
        event["where"] = f"{record.filename}:{record.lineno}"
        event["process"] = record.process
        if record.threadName != "MainThread":
            event["thread"] = record.threadName
        event["task"] = getattr(record, "taskName", None)  # since Python 3.12
        return {key: value for key, value in event.items() if value is not None}

    def _take_or_drop(self, client: BlockingClient, event: dict[str, Any]) -> None:
        try:
            self._hand_over(client, event)
        except SessionFailed as e:
            self._renew(client, e, event)
        except NotLogged as e:
            self._drops.add(e.reason)

    def _take(self, client: BlockingClient, event: dict[str, Any]) -> bool:
        try:
            self._hand_over(client, event)
        except NotLogged:
            return False
        return True

    def _hand_over(self, client: BlockingClient, event: dict[str, Any]) -> None:
        # What the server has said last holds also for the next client.
        self._max_body = longest = client.max_body or self._max_body
        body = encode(event, longest)
        if body is None:
            raise NotLogged(f"nothing of it fits into the {longest} bytes of a message", False)
        watch = _Watch(self._drops, partial(self._take, client))
        if self._spool is None:
            client.hand_over(body, watch, block=False)
        else:
            client.hand_over(body, None, watch, block=False)

    @property
    def dropped(self) -> int:
        """How many messages this process could not hand over, or will not see in the log."""
        client = self._client
        refused = client.refused if client is not None and self._spool is not None else 0
        return self._drops.count + refused

    # --- other clients ---------------------------------------------------------------------

    def _renew(self, failed: BlockingClient, why: SessionFailed, event: dict[str, Any]) -> None:
        """Go on under another client id, since nothing more can be sent under this one."""
        if self._maker == threading.get_ident():
            self._drops.add(why.reason)
            return
        with self._replacing:
            if self._client is failed and time.monotonic() >= self._renewed + _RENEW_SECONDS:
                self._renewed = time.monotonic()
                # Closing waits for its thread, which nobody who logs may have to.
                threading.Thread(target=failed.close, args=(0,), daemon=True).start()
                self._client = self._make()
                self._take(
                    self._client,
                    remark(f"going on as client {self._client.client}: {why}", was=failed.client),
                )
        client = self._client
        if client is None or client is failed or not self._take(client, event):
            self._drops.add(why.reason)

    def _in_child(self) -> BlockingClient | None:
        """The client of a forked child, made when it first logs."""
        if self._maker == threading.get_ident():
            return None
        with self._replacing:
            if self._client is None and not self._closed:
                self._client = self._make()
                self._flush_with_worker()
                if self._spooled_by_parent:
                    self._take(
                        self._client,
                        remark(
                            f"process {os.getpid()} was forked from one that has the spool "
                            f"{self._spooled_by_parent}, and logs without it"
                        ),
                    )
        return self._client

    def _make(self) -> BlockingClient:
        """A client; what is logged while it is made, by asyncio for one, is not for it."""
        self._maker = threading.get_ident()
        try:
            return self._connect()
        finally:
            self._maker = 0

    _maker = 0  # the thread that makes a client at the moment

    _spooled_by_parent: Path | str | None = None

    def _forked(self) -> None:
        """
        In a forked child: forget the parent's client, whose thread is not here, and whose messages
        are the parent's to send.
        """
        self._begin()
        # It is kept, since to collect it would close what both processes have open.
        self._inherited, self._client = self._client, None
        self._spooled_by_parent, self._spool = self._spool or self._spooled_by_parent, None

    # --- the end ---------------------------------------------------------------------------

    def _flush_with_worker(self) -> None:
        """
        Flush when a process of C{multiprocessing} ends: that is not how Python ends, and nobody
        calls C{logging.shutdown}.
        """
        process = sys.modules.get("multiprocessing.process")
        util = sys.modules.get("multiprocessing.util")
        if process is not None and util is not None and process.parent_process() is not None:
            util.Finalize(None, self.flush, exitpriority=0)

    def flush(self) -> None:
        """
        Wait until everything has its receipt, for C{flush_seconds} at most.

        With a spool there is no waiting for a server that is away: the spool has it all.
        """
        client = self._client
        if client is None:
            return
        deadline = time.monotonic() + self.flush_seconds
        self._drops.say(partial(self._take, client))
        self._in_vain = True
        while (left := deadline - time.monotonic()) > 0:
            try:
                client.flush(min(left, _LOOK_SECONDS))
            except TimeoutError:
                if self._spool is not None and client.trouble:
                    break
            else:
                self._in_vain = False
                break

    def close(self) -> None:
        """Flush, if that was not just done in vain, and close the connection."""
        if not self._in_vain:
            self.flush()
        with self._replacing:
            client, self._client, self._closed = self._client, None, True
        if client is not None:
            client.close(0)
            said = self._drops.text()
            if said and logging.raiseExceptions and sys.stderr is not None:
                print(f"msglog: {said}", file=sys.stderr)
        super().close()


class _Watch:
    """Is told what became of a message."""

    __slots__ = ("_drops", "_take")

    def __init__(self, drops: Drops, take: Callable[[dict[str, Any]], bool]) -> None:
        self._drops = drops
        self._take = take

    def set_result(self, result: Any, /) -> None:
        """It is logged, or in the spool; so there is room again."""
        if self._drops.unsaid:
            self._drops.say(self._take)

    def set_exception(self, exception: NotLogged, /) -> None:
        """It is not."""
        self._drops.add(str(exception))


_PLAIN = logging.Formatter()


def _after_fork() -> None:
    for handler in _handlers:
        handler._forked()


os.register_at_fork(after_in_child=_after_fork)
