"""Lines on their way through a client: handed over, waited for, and counted."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from typing import Any

from attrs import define

from .._batch import Receipt
from .._blocking import BlockingClient
from .._errors import MsglogError, NotLogged, SessionFailed
from .._spool import Marks

__all__ = ["Delivery", "Stalled"]

# Seconds from one look at what came back to the next: receipts, Ctrl-C, and the bar.
_LOOK_SECONDS = 0.1


@define(eq=False)
class Stalled(MsglogError):
    """Nothing was acknowledged for too long.  C{reason} says why."""

    reason: str

    def __str__(self) -> str:
        return self.reason


class Delivery:
    """
    @param client: the client.
    @param spooled: whether messages go through a spool.
    @param timeout: seconds without any progress before it is given up.
    @param receipt: takes each receipt, in order; with a spool there may be none for the taking.
    @param refused: takes the place of each line that the server refused, and why.
    @param look: called now and then.

    @ivar handed_over: how many lines were, this time.
    @ivar acknowledged: how many messages, those that were left in the spool among them.
    @ivar left: how many of those there were.
    @ivar last: the place of the last line that has its receipt, or was refused; empty if there is
        none, or none is waited for.
    @ivar waiting: how many have no receipt and were not refused.
    """

    def __init__(
        self,
        client: BlockingClient,
        spooled: bool,
        timeout: float,
        receipt: Callable[[Receipt], None] | None,
        refused: Callable[[str, NotLogged], None],
        look: Callable[[], None],
    ) -> None:
        self._client = client
        self._spooled = _Spooled() if spooled else None
        self._timeout = timeout
        self._receipt = receipt
        self._refused = refused
        self._look = look
        self._told: deque[_Sent] = deque()
        self._sent: deque[_Sent] = deque()  # what has no receipt
        self.left = client.unsettled
        self._refused_before = client.refused
        self.handed_over = 0
        self.acknowledged = 0
        self.last = ""
        self.waiting = self.left
        self._progress = (0, 0)
        self._progressed = self._looked = time.monotonic()

    def await_terms(self) -> None:
        """
        Wait until the server has said its terms.  With a spool there is no need to, but it helps
        to find a line that is too long before it is in there.

        @raise SessionFailed: nothing can be sent under this client id.
        @raise Stalled: there was no answer in time.
        """
        deadline = time.monotonic() + self._timeout
        while self._client.max_body is None and not (self._spooled and self._client.trouble):
            self.look()
            if time.monotonic() >= deadline:
                if self._spooled:
                    return
                self._stall()
            time.sleep(_LOOK_SECONDS / 10)

    def hand_over(self, place: str, body: bytes, marks: Marks | None = None) -> None:
        """
        Hand over a line.

        @param marks: what the spool is to remember with it.
        @raise NotLogged: it cannot be sent.
        @raise SpoolError: the spool takes no more.
        @raise Stalled: there was no room for too long.
        """
        # With a spool, a line is safe when it is in there, and to wait for its receipt too would
        # hold it in memory.
        sent = None
        if self._receipt is not None or self._spooled is None:
            sent = _Sent(place, self._told)
            self._sent.append(sent)
        while True:
            try:
                self._client.hand_over(
                    body, sent, self._spooled, timeout=_LOOK_SECONDS, marks=marks
                )
                break
            except TimeoutError:
                self.look()
            except NotLogged:
                if sent is not None:
                    self._sent.pop()
                raise
        self.handed_over += 1
        if time.monotonic() - self._looked >= _LOOK_SECONDS:
            self.look()

    def finish(self, seconds: float | None = None) -> None:
        """
        Wait for what has no receipt.

        @param seconds: for so long at most, and then it is no error.
        """
        deadline = None if seconds is None else time.monotonic() + seconds
        while True:
            try:
                self._client.flush(_LOOK_SECONDS)
            except TimeoutError:
                if deadline is not None and time.monotonic() >= deadline:
                    break
                self.look()
            else:
                break
        self.look()

    def look(self) -> None:
        """
        Take what came back.

        @raise SessionFailed: the client can do nothing more.
        @raise SpoolError: nor can the spool.
        @raise Stalled: nothing came back for too long.
        """
        self._looked = time.monotonic()
        # In this order: a client that has failed counts everything as settled.
        unsettled, refused = self._client.unsettled, self._client.refused
        failure = self._client.failure
        if failure is None:
            self.waiting = unsettled
            self.acknowledged = (
                self.left + self.handed_over - unsettled - refused + self._refused_before
            )
        while self._told:
            self._take(self._told.popleft())
        while self._sent and self._sent[0].settled:
            self.last = self._sent.popleft().place
        self._look()
        if failure is not None:
            raise failure
        if self._spooled is not None and self._spooled.error is not None:
            raise self._spooled.error
        # What is in a spool is progress.
        progress = (unsettled, self.handed_over if self._spooled else 0)
        if progress != self._progress or not unsettled:
            self._progress, self._progressed = progress, self._looked
        elif self._looked - self._progressed >= self._timeout:
            self._stall()

    def _take(self, sent: _Sent) -> None:
        if isinstance(sent.result, Receipt):
            if self._receipt is not None:
                self._receipt(sent.result)
        elif sent.settled:
            self._refused(sent.place, sent.result)

    def _stall(self) -> None:
        why = self._client.trouble or "the server does not answer"
        raise Stalled(f"{why}; given up after {self._timeout:g} s without progress")


class _Sent:
    """A line that waits for its receipt."""

    __slots__ = ("_told", "place", "result")

    def __init__(self, place: str, told: deque[_Sent]) -> None:
        self.place = place
        self.result: Any = None
        self._told = told

    def set_result(self, result: Receipt, /) -> None:
        """It is logged."""
        self.result = result
        self._told.append(self)

    set_exception = set_result

    @property
    def settled(self) -> bool:
        """Whether it is logged or refused; what failed with the client or the spool is neither."""
        if isinstance(self.result, SessionFailed):
            return False
        return isinstance(self.result, Receipt) or (
            isinstance(self.result, NotLogged) and not self.result.retry
        )


class _Spooled:
    """Sees whether the spool takes everything."""

    def __init__(self) -> None:
        self.error: Exception | None = None

    def set_result(self, result: None, /) -> None:
        """One more message is in the spool."""

    def set_exception(self, exception: Exception, /) -> None:
        """It is not."""
        self.error = self.error or exception
