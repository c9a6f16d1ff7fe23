"""What a program's log could not hand over: counted, and said in the log itself."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Any

from ._counted import counted
from ._log_event import event_time

__all__ = ["Drops", "remark"]

# Characters of a reason that a remark quotes: it must fit into a server's shortest messages.
_REASON = 80


def remark(text: str, **fields: Any) -> dict[str, Any]:
    """An event of our own, in the same log."""
    return {
        "time": event_time(time.time()),
        "level": "WARNING",
        "logger": "msglog.client",
        "message": text,
        "fields": fields,
    }


class Drops:
    """
    May be used by any thread, and none ever waits for another's I/O here.

    @ivar count: how many messages were dropped.
    @ivar unsaid: how many of them the log does not say yet.
    @ivar why: why the last of them was.
    """

    def __init__(self) -> None:
        # Reentrant: a finaliser that logs may come in the middle.
        self._lock = threading.RLock()
        self._saying = threading.Lock()
        self.count = 0
        self.unsaid = 0
        self.why = ""

    def add(self, why: str) -> None:
        """One more."""
        with self._lock:
            self.count += 1
            self.unsaid += 1
            self.why = why

    def say(self, take: Callable[[dict[str, Any]], bool]) -> None:
        """
        Say what was not said.

        @param take: takes an event, and returns whether it could be taken.
        """
        # Somebody else who says it, or we ourselves further up the stack, says enough.
        if not self.unsaid or not self._saying.acquire(blocking=False):
            return
        try:
            count = self.unsaid
            why = self.why if len(self.why) <= _REASON else f"{self.why[:_REASON]}…"
            dropped = counted(count, "message was", "messages were")
            if take(remark(f"{dropped} dropped: {why}", dropped=count)):
                with self._lock:
                    self.unsaid -= count
        finally:
            self._saying.release()

    def text(self) -> str:
        """What was not said, for people; empty if there is nothing."""
        if not self.unsaid:
            return ""
        unsaid = counted(self.unsaid, "message was", "messages were")
        return f"{unsaid} not logged, as far as is known: {self.why}"
