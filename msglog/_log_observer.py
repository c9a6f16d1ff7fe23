"""Twisted's log, C{twisted.logger}, into a msglog server."""

from __future__ import annotations

import os
import threading
from collections import deque
from typing import Any

from twisted.internet.defer import Deferred
from twisted.logger import ILogObserver, LogEvent, LogLevel, formatEvent
from twisted.python import threadable
from twisted.python.failure import Failure
from zope.interface import implementer

from ._client import Failover, MessageLogClient
from ._errors import NotLogged
from ._log_drops import Drops
from ._log_event import DEFAULT_MAX_BODY, encode, event_time

__all__ = ["LogObserver"]

# Events held from before the client was started, and from other threads until the reactor has a
# turn: a second of a very talkative program.
HELD_EVENTS = 4096

# What an event of twisted.python.log has besides its own keys; Twisted adds it to others' events
# too, where there is an observer of that kind.
_LEGACY = frozenset(("isError", "message", "time", "system", "format", "failure", "why", "printed"))

_LEVELS = {LogLevel.warn: "WARNING"}


@implementer(ILogObserver)
class LogObserver:
    """
    An observer that makes a message of every event: a JSON object (docs/twisted-logging.md).

    It may be called in any thread, and before the client is started.  What cannot be taken is
    counted, and the log says so as soon as there is room again.

    @param reactor: the reactor.
    @param client: sends the messages; to be started and stopped by the application.
    @param max_body: how long a message may be, in bytes, before the server has said how long it
        may be.
    """

    def __init__(
        self, reactor: Any, client: MessageLogClient, *, max_body: int = DEFAULT_MAX_BODY
    ) -> None:
        self._reactor = reactor
        self._client = client
        self._max_body = max_body
        self._drops = Drops()
        # Reentrant: a finaliser that logs may come in the middle.
        self._lock = threading.RLock()
        self._held: deque[tuple[LogEvent, dict[str, Any]]] = deque()
        self._scheduled = False
        self._awaiting_room = False

    @property
    def dropped(self) -> int:
        """How many messages could not be handed over, or were not logged."""
        return self._drops.count + (self._client.refused if self._client.spool is not None else 0)

    def __call__(self, event: LogEvent) -> None:
        """See L{ILogObserver}."""
        if _is_our_own(event):
            return
        made = self.to_event(event)
        with self._lock:
            # Twisted tells an early observer everything again when its own log begins.
            if not self._client.running and any(event is known for known, _ in list(self._held)):
                return
            full = len(self._held) >= HELD_EVENTS
            if not full:
                self._held.append((event, made))
            scheduled, self._scheduled = self._scheduled, True
        if full:
            self._drops.add(f"{HELD_EVENTS} events wait for the reactor, or for the client")
        if _in_the_reactors_thread():
            self._hand_over()
        elif not scheduled:
            self._reactor.callFromThread(self._hand_over)

    def to_event(self, event: LogEvent) -> dict[str, Any]:
        """
        What becomes of an event; docs/twisted-logging.md has the keys.

        To be overridden by those who want others.  What JSON does not have becomes text.
        """
        level = event.get("log_level") or LogLevel.info
        failure, text = event.get("log_failure"), None
        if failure is None and isinstance(event.get("failure"), Failure):
            # Of twisted.python.log, whose text has the traceback in it.
            failure, text = event["failure"], event.get("why") or "Unhandled Error"
        made: dict[str, Any] = {
            "time": event_time(event["log_time"]),
            "level": _LEVELS.get(level, level.name.upper()),
            "logger": event.get("log_namespace") or "",
            "message": text or formatEvent(event),
        }
        legacy = _LEGACY if "isError" in event else frozenset()
        fields = {
            key: value
            for key, value in event.items()
            if not key.startswith("log_") and key not in legacy
        }
        if fields:
            made["fields"] = fields
        if failure is not None:
            made["exception"] = failure.getTraceback()
        made["process"] = os.getpid()
        thread = threading.current_thread()
        if thread is not threading.main_thread():
            made["thread"] = thread.name
        return made

    # --- the reactor's side ------------------------------------------------------------------

    def _hand_over(self) -> None:
        """Hand over what is held, if the client is started; until then, the next event does."""
        with self._lock:
            self._scheduled = False
            if not self._client.running:
                return
            held, self._held = self._held, deque()
        if self._drops.unsaid:
            self._say_when_there_is_room()
        for _, made in held:
            error = self._send(made)
            if error is not None:
                self._drops.add(str(error))
                self._say_when_there_is_room()

    def _send(self, made: dict[str, Any]) -> BaseException | None:
        """Send an event; why it cannot be sent at all.  What becomes of it later is counted."""
        client, longest = self._client, self._longest()
        body = encode(made, longest)
        if body is None:
            return NotLogged(f"nothing of it fits into the {longest} bytes of a message", False)
        sent: Deferred[Any] = client.send(body) if client.spool is None else client.put(body)
        if sent.called and isinstance(sent.result, Failure):
            error = sent.result.value
            sent.addErrback(lambda _: None)
            return error
        sent.addErrback(lambda failure: self._drops.add(failure.getErrorMessage()))
        return None

    def _longest(self) -> int:
        return self._max_body if self._client.max_body is None else self._client.max_body

    def _say_when_there_is_room(self) -> None:
        if not self._awaiting_room:
            self._awaiting_room = True
            self._client.ready(self._longest()).addBoth(self._say)

    def _say(self, _: object) -> None:
        """There is room, or the client was stopped; then it takes no remark either."""
        self._awaiting_room = False
        self._drops.say(lambda made: self._send(made) is None)


def _in_the_reactors_thread() -> bool:
    if threadable.ioThread is None:  # it does not run yet
        return threading.current_thread() is threading.main_thread()
    return threadable.isInIOThread()


def _is_our_own(event: LogEvent) -> bool:
    """Whether an event is about msglog's own work, which then must not make more work for it."""
    # Twisted speaks of the client's attempts to connect, and there are more the longer it takes.
    connecting = isinstance(event.get("endpoint"), Failover)
    return connecting or f"{event.get('log_namespace')}.".startswith("msglog.")
