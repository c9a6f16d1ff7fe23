"""
Simulated time, chance and processes: everything that happens in a simulation is an event here.

Theory of operation.  A L{World} has a heap of events, each a function to be called at a moment.
What may happen in any order in reality (bytes that arrive, a disk that has written, a turn of a
process's reactor) is put there with a delay drawn at random, so the order of the moments is the
order of chance, and the same seed gives the same order.  Nothing here knows msglog.

A process is a L{SimReactor}: Twisted's own transports and delayed calls on simulated sockets and
time.  To kill a process is to stop turning its reactor.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable
from hashlib import blake2b
from random import Random
from typing import Any

from attrs import define
from twisted.internet.base import DelayedCall
from twisted.internet.interfaces import IReactorFDSet, IReactorTime
from twisted.internet.posixbase import _DisconnectSelectableMixin, _PollLikeMixin
from zope.interface import implementer

from msglog._worker import result_of

__all__ = ["Killed", "Machine", "SimReactor", "SimWorker", "Violation", "World"]

# Any moment will do whose seconds look like a real clock's.
_BEGIN = 1_800_000_000.0

# Far above what any recipe needs: what goes on for longer goes in circles.
_MAX_EVENTS = 400_000

# How often it is asked whether what is waited for is so: it takes as long as an event.
_LOOK_EVERY = 8


class Violation(AssertionError):
    """A promise is broken."""


class Killed(BaseException):
    """The process that did this has ended here."""


class World:
    """
    @param seed: of every choice.
    @param keep: whether to keep the trace's lines, and not just their hash.
    @ivar now: the moment, seconds.
    @ivar violation: the first promise that was seen broken.
    """

    def __init__(self, seed: str, *, keep: bool = False) -> None:
        self.now = _BEGIN
        self.violation: Violation | None = None
        self.lines: list[str] = []
        self.events = 0
        self._seed = seed
        self._keep = keep
        self._hash = blake2b(digest_size=8)
        self._heap: list[tuple[float, int, Callable[..., object], tuple[Any, ...]]] = []
        self._count = 0

    def rng(self, name: str) -> Random:
        """A source of chance of its own, so that what one draws does not change what others do."""
        return Random(f"{self._seed}/{name}")

    def after(self, delay: float, call: Callable[..., object], *args: Any) -> None:
        """Have something happen later."""
        self._count += 1
        heapq.heappush(self._heap, (self.now + delay, self._count, call, args))

    def note(self, text: str) -> None:
        """Something happened that the trace tells."""
        line = f"{self.now - _BEGIN:.6f} {text}"
        self._hash.update(line.encode())
        if self._keep:
            self.lines.append(line)

    def violate(self, reason: str) -> None:
        """
        A promise is broken.

        @raise Violation: always; whoever swallows it, the simulation has ended.
        """
        if self.violation is None:
            self.violation = Violation(reason)
            self.note(f"VIOLATION {reason}")
        raise self.violation

    @property
    def trace(self) -> str:
        """A hash of all that happened so far."""
        return self._hash.hexdigest()

    def run(self, until: Callable[[], bool], seconds: float) -> bool:
        """
        Let things happen until something is so, for at most so long.

        @return: whether it became so.
        @raise Violation: a promise was seen broken.
        """
        deadline = self.now + seconds
        heap = self._heap
        while self.events % _LOOK_EVERY or not until():
            if not heap or heap[0][0] > deadline:
                self.now = deadline
                return until()
            self.now, _, call, args = heapq.heappop(heap)
            self.events += 1
            if self.events > _MAX_EVENTS:
                self.violate(f"after {_MAX_EVENTS} events it still goes on")
            call(*args)
            if self.violation is not None:
                raise self.violation
        return True


@define(eq=False)
class Machine:
    """
    What processes on one machine share.

    @ivar skew: how far its clock is ahead.
    @ivar spent: what calls took that had to be simulated as if they took no time.
    """

    world: World
    skew: float = 0.0
    spent: float = 0.0

    def clock(self) -> float:
        """The system's clock, which can be set."""
        return self.world.now + self.skew

    def monotonic(self) -> float:
        """What no one can set."""
        return self.world.now + self.spent


@implementer(IReactorTime, IReactorFDSet)
class SimReactor(_PollLikeMixin, _DisconnectSelectableMixin):
    """
    One process.

    Delayed calls and the dispatch of descriptors are as in Twisted's epoll reactor, time by the
    system's clock included: one turn is what came from threads, the delayed calls that were due
    when it began, and then each descriptor that is ready, in any order.
    """

    _POLL_IN, _POLL_OUT, _POLL_DISCONNECTED = 1, 4, 16

    def __init__(self, machine: Machine, name: str) -> None:
        self.machine = machine
        self.world = machine.world
        self.name = name
        self.seconds = machine.clock
        self.alive = True
        self.sockets: dict[Any, None] = {}
        self.paused_until = 0.0
        self._rng = self.world.rng(f"reactor {name}")
        self._pending: list[DelayedCall] = []
        self._new: list[DelayedCall] = []
        self._from_threads: list[tuple[Callable[..., object], tuple[Any, ...]]] = []
        self._reads: dict[int, Any] = {}
        self._writes: dict[int, Any] = {}
        self._turn_waits = False
        self._alarm = float("inf")

    # --- time ------------------------------------------------------------------------------

    def callLater(self, delay: float, call: Callable[..., Any], *args: Any, **kw: Any) -> Any:
        delayed = DelayedCall(
            self.seconds() + delay,
            call,
            args,
            kw,
            lambda call: None,
            lambda call: heapq.heapify(self._pending),
            self.seconds,
        )
        self._new.append(delayed)
        self._set_alarm()
        return delayed

    def getDelayedCalls(self) -> list[DelayedCall]:
        return [call for call in self._pending + self._new if not call.cancelled]

    def callFromThread(self, call: Callable[..., object], *args: Any) -> None:
        self._from_threads.append((call, args))
        self.wake()

    def _set_alarm(self) -> None:
        moments = [call.getTime() for call in self._new]
        moments += [call.getTime() for call in self._pending[:1]]
        if not moments:
            return
        wait = max(min(moments) - self.seconds(), 0.0)
        if self.world.now + wait < self._alarm:
            self._alarm = self.world.now + wait
            self.world.after(wait, self._ring, self._alarm)

    def _ring(self, moment: float) -> None:
        if moment == self._alarm:
            self._alarm = float("inf")
            self.wake()

    def clock_was_set(self) -> None:
        """The system's clock was set: what waits for a moment waits for another time now."""
        self._alarm = float("inf")
        self._set_alarm()

    # --- turns -----------------------------------------------------------------------------

    def wake(self) -> None:
        """There may be something to do."""
        if self._turn_waits or not self.alive:
            return
        self._turn_waits = True
        delay = self._rng.random() * 0.0002
        if self._rng.random() < 0.01:
            delay += self._rng.random() * 0.05
        self.world.after(max(delay, self.paused_until - self.world.now), self._turn)

    def _turn(self) -> None:
        self._turn_waits = False
        if not self.alive:
            return
        calls, self._from_threads = self._from_threads, []
        for call, args in calls:
            call(*args)
        for call in self._new:
            heapq.heappush(self._pending, call)
        self._new = []
        now = self.seconds()
        while self._pending and self._pending[0].time <= now and self.alive:
            call = heapq.heappop(self._pending)
            if call.cancelled:
                continue
            if call.delayed_time > 0.0:
                call.activate_delay()
                heapq.heappush(self._pending, call)
                continue
            call.called = 1
            call.func(*call.args, **call.kw)
        for fd in self._ready():
            if not self.alive:
                return
            selectable = self._reads.get(fd) or self._writes.get(fd)
            if selectable is not None and (events := self._events(fd)):
                self._doReadOrWrite(selectable, fd, events)
        if not self.alive:
            return
        while self._pending and self._pending[0].cancelled:
            heapq.heappop(self._pending)
        self._set_alarm()
        if self._from_threads or any(map(self._events, {**self._reads, **self._writes})):
            self.wake()

    def _ready(self) -> list[int]:
        fds = [fd for fd in {**self._reads, **self._writes} if self._events(fd)]
        if len(fds) > 1:
            self._rng.shuffle(fds)
        return fds

    def _events(self, fd: int) -> int:
        handle = self._handle(self._reads.get(fd) or self._writes.get(fd))
        events = 0
        if handle.broken:
            events |= self._POLL_DISCONNECTED
        if fd in self._reads and handle.readable:
            events |= self._POLL_IN
        if fd in self._writes and handle.writable:
            events |= self._POLL_OUT
        return events

    @staticmethod
    def _handle(selectable: Any) -> Any:
        """What a descriptor reads from: a socket, or the epoll of a L{SocketReader}."""
        return selectable.getHandle() if hasattr(selectable, "getHandle") else selectable._epoll

    # --- descriptors -----------------------------------------------------------------------

    def addReader(self, selectable: Any) -> None:
        self._reads[selectable.fileno()] = selectable
        self.wake()

    def addWriter(self, selectable: Any) -> None:
        self._writes[selectable.fileno()] = selectable
        self.wake()

    def removeReader(self, selectable: Any) -> None:
        self._remove(self._reads, selectable)

    def removeWriter(self, selectable: Any) -> None:
        self._remove(self._writes, selectable)

    @staticmethod
    def _remove(descriptors: dict[int, Any], selectable: Any) -> None:
        for fd, known in list(descriptors.items()):
            if known is selectable:
                del descriptors[fd]

    def getReaders(self) -> list[Any]:
        return list(self._reads.values())

    def getWriters(self) -> list[Any]:
        return list(self._writes.values())

    # --- the end ---------------------------------------------------------------------------

    def kill(self) -> None:
        """End the process; the kernel closes what it had."""
        self.alive = False
        for socket in list(self.sockets):
            socket.drop()
        self._reads, self._writes = {}, {}

    def left(self) -> list[str]:
        """What is still there of a process that should have nothing more to do."""
        calls = [f"a delayed call: {call.func!r}" for call in self.getDelayedCalls()]
        descriptors = [f"a descriptor: {s!r}" for s in {**self._reads, **self._writes}.values()]
        return calls + descriptors + [f"a socket: {socket}" for socket in self.sockets]


class SimWorker:
    """
    A thread that does one piece of work after the other (L{msglog._worker.IWorker}).

    The work happens at one moment, and its result is seen in a turn of the reactor after that, so
    the process can end between the two.

    @param seconds: draws how long a piece of work takes.
    @ivar working: whether a piece of work is being done.
    """

    def __init__(self, reactor: SimReactor, seconds: Callable[[], float]) -> None:
        self._reactor = reactor
        self._seconds = seconds
        self.working = False
        self._queue: list[tuple[Callable[[], Any], Callable[[Any], object]]] = []
        self._stopped = False

    def do(self, work: Callable[[], Any], done: Callable[[Any], object]) -> None:
        assert not self._stopped, "work for a thread that has ended"
        self._queue.append((work, done))
        if len(self._queue) == 1:
            self._begin()

    def stop(self) -> None:
        assert not self._queue, "a thread is told to end while there is work for it"
        self._stopped = True

    def _begin(self) -> None:
        self._reactor.world.after(self._seconds(), self._work)

    def _work(self) -> None:
        reactor = self._reactor
        if not reactor.alive:
            return
        work, done = self._queue[0]
        self.working = True
        result = result_of(work)
        self.working = False
        if not reactor.alive:
            return
        reactor.world.note(f"{reactor.name} worked")
        reactor.world.after(0.00001, self._seen, done, result)

    def _seen(self, done: Callable[[Any], object], result: Any) -> None:
        if not self._reactor.alive:
            return
        self._queue.pop(0)
        self._reactor.callFromThread(done, result)
        if self._queue:
            self._begin()
