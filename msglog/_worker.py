"""A thread for what waits for the disk, so that the reactor does not."""

from __future__ import annotations

from collections.abc import Callable
from queue import SimpleQueue
from threading import Thread
from typing import Any, Protocol

from twisted.python.failure import Failure

__all__ = ["Done", "IWorker", "Work", "WorkThread", "result_of"]

Work = Callable[[], Any]
Done = Callable[[Any], object]


def result_of(work: Work) -> Any:
    """Do work now; its result, or the L{Failure} that it ended in."""
    try:
        return work()
    except BaseException:
        return Failure()


class IWorker(Protocol):
    """Does one piece of work after the other, somewhere."""

    def do(self, work: Work, done: Done) -> None:
        """Do work, then call C{done} in the waiting thread with its result or L{Failure}."""

    def stop(self) -> None:
        """Do no more work after what was handed over."""


class WorkThread:
    """
    A thread that does one piece of work after the other.

    @param from_thread: calls a function in the thread that waits for the results: a reactor's
        C{callFromThread}, an event loop's C{call_soon_threadsafe}.
    """

    def __init__(self, from_thread: Callable[..., object]) -> None:
        self._from_thread = from_thread
        self._queue: SimpleQueue[tuple[Work, Done] | None] = SimpleQueue()
        self._thread = Thread(target=self._run, name="msglog disk", daemon=True)
        self._thread.start()

    @classmethod
    def of(cls, reactor: Any) -> WorkThread:
        """A thread for a reactor."""
        return cls(reactor.callFromThread)

    def do(self, work: Work, done: Done) -> None:
        """See L{IWorker}."""
        self._queue.put((work, done))

    def stop(self) -> None:
        """See L{IWorker}; returns when the thread has ended."""
        self._queue.put(None)
        self._thread.join()

    def _run(self) -> None:
        while (item := self._queue.get()) is not None:
            work, done = item
            self._from_thread(done, result_of(work))
