"""One process of a load: all its connections, one epoll, one clock."""

from __future__ import annotations

import select
import socket
import time
from collections import Counter
from collections.abc import Callable
from typing import Any

from attrs import Factory, define, frozen
from uuid_utils.compat import uuid7

from .._client_tls import TLS
from .._errors import TLSError
from .arrivals import Arrivals
from .blocks import BLOCK_MESSAGES, Blocks, Steps
from .connection import Connection
from .histogram import Histogram
from .sender import LoadError, Sender

__all__ = ["SLOT_SECONDS", "UNCOUNTED", "Loop", "Measurement", "Plan", "ServerAddress"]

# The rate over time is counted in slots of this length: 50 points in a run of 5 s, and each has
# some commits of the server in it.
SLOT_SECONDS = 0.1

# How long the server may answer nothing before it is given up: far above the slowest commit seen
# (0.3 s), and above what a full disk or a rotation takes.
SILENCE_SECONDS = 30.0

# For a TCP connection to be made; as long as a person waits before looking elsewhere.
CONNECT_SECONDS = 10.0

# How often a process says how far it is, for a progress bar that looks alive.
PROGRESS_SECONDS = 0.2

# How long to wait for the server before looking at the clock.
_POLL_SECONDS = 0.02

# What the blocks of one process's connections may take together.  Shorter blocks cost a little
# more work, so it is more than nearly every load needs (1,000 connections of 256-byte messages and
# wide windows: 82 MB) and little enough for any machine.
_BLOCKS_BYTES = 128 * 1024 * 1024

# Blocks are not shorter than this for narrow windows: writing one is 6 µs of work, and with this
# length 0.2 µs a message.
_SHORTEST_BLOCK = 32

# As many messages as nobody sends: where only the time is a limit.
UNCOUNTED = 1 << 62

# What a body says first, for whoever finds it in the log.
_MARK = b"msglog bench: this is load, not a message. "

# Messages that came at a rate and are sent before answers are looked at again: 5 ms of work.
_MOST_AT_ONCE = 1024

# Has the kernel choose a port when it knows both ends, so that each address has all of them.
_BIND_ADDRESS_NO_PORT = 24  # linux/in.h; Python has no name for it

ServerAddress = tuple[socket.AddressFamily, Any]

# Makes what sends on a new connection of another protocol, or in another way: given its socket, its
# number in this process, and what takes note of latencies.  It may greet the server, and wait.
Make = Callable[[socket.socket, int, Callable[[int, int], None]], Sender]


def body(size: int) -> bytes:
    """What a load's messages say."""
    return (_MARK + b"the quick brown fox jumps over the lazy dog. " * (size // 45 + 1))[:size]


@frozen
class Plan:
    """
    What one process does.

    @ivar address: the server, resolved: a name server's time is none of the load's.
    @ivar host: the name that the server has to prove with TLS.
    @ivar tls: how to speak TLS, if at all.
    @ivar connections: how many, each with its own client id.
    @ivar window: messages that each keeps unacknowledged.
    @ivar size: bytes of each body.
    @ivar warm_up: seconds of load before the measurement.
    @ivar seconds: how long to measure at most.
    @ivar messages: how many to send at most while measuring.
    @ivar rate: how many messages come each second, whether or not others are acknowledged; 0: each
        connection sends the next one when it has room in its window.
    @ivar sources: addresses of ours to connect from, in turn; what the system chooses if there are
        none.  (From one address to another there are about 28,000 ports.)
    @ivar make: what sends; a L{Connection} of its own client if not given.
    """

    address: ServerAddress
    connections: int
    window: int
    size: int
    warm_up: float
    seconds: float
    messages: int = UNCOUNTED
    host: str = ""
    tls: TLS | None = None
    rate: float = 0.0
    sources: tuple[str, ...] = ()
    make: Make | None = None


@define
class Measurement:
    """
    What was measured: by one process, or by several together (L{add}).

    @ivar latencies: of all messages that were acknowledged after the warm-up.
    @ivar slots: how many of them were acknowledged in each L{SLOT_SECONDS}, until sending ended.
    @ivar seconds: how long that was.
    @ivar refused: how many messages got a NACK, by its code.
    @ivar problem: why it ended early; empty if it did not.
    @ivar late: how long after they came messages were sent, or told to wait for their window, at
        most, if they came at a rate: what the load's own process added to latencies.
    @ivar busy: the most that one process used of its processor core: at 1 it was the bottleneck.
    """

    latencies: Histogram = Factory(Histogram)
    slots: list[int] = Factory(list)
    seconds: float = 0.0
    refused: Counter[str] = Factory(Counter)
    problem: str = ""
    late: Histogram = Factory(Histogram)
    busy: float = 0.0

    @property
    def rate(self) -> float:
        """Messages acknowledged a second, while there was load."""
        return sum(self.slots) / self.seconds if self.seconds else 0.0

    def count(self, acked: int, seconds: float) -> None:
        """Note messages acknowledged, so many seconds after the measurement began."""
        self.seconds = seconds
        slot = int(seconds / SLOT_SECONDS)
        self.slots += [0] * (slot + 1 - len(self.slots))
        self.slots[slot] += acked

    def add(self, other: Measurement) -> None:
        """Take in what another process measured at the same time."""
        self.latencies.add(other.latencies)
        self.late.add(other.late)
        longer, shorter = sorted((self.slots, other.slots), key=len, reverse=True)
        self.slots = [n + m for n, m in zip(longer, shorter + [0] * len(longer), strict=False)]
        self.seconds = max(self.seconds, other.seconds)
        self.refused += other.refused
        self.problem = self.problem or other.problem
        self.busy = max(self.busy, other.busy)


def block_messages(plan: Plan) -> int:
    """How long blocks are: to hold a window, if there is room."""
    count = _SHORTEST_BLOCK
    while count < min(plan.window, BLOCK_MESSAGES):
        count *= 2
    while count > 1 and count * plan.size * plan.connections > _BLOCKS_BYTES:
        count //= 2
    return count


class Loop:
    """
    The connections of one process, and the time that they are under load.

    @param asked: what becomes readable when somebody asks to end.
    @param progress: told now and then how many messages were acknowledged, warm-up included.
    """

    def __init__(self, plan: Plan, asked: Any, progress: Callable[[int], object]) -> None:
        self._plan, self._asked, self._progress = plan, asked, progress
        self.measured = Measurement()
        self._poller = select.epoll()
        self._connections: dict[int, Sender] = {}
        self._arrivals: Arrivals | None = None  # if messages come at a rate
        self._turns: list[Sender] = []  # and who gets the next one
        self._turn = 0
        self._acked = 0
        self._budget = UNCOUNTED  # how many may still be sent
        self._going = True
        self._heard = self._next_progress = 0

    def connect(self) -> None:
        """
        Make all connections, and everything else that is to be ready before the clock starts.

        @raise LoadError: one cannot be made.
        """
        plan = self._plan
        make = plan.make or _own(plan)
        for number in range(plan.connections):
            sock = self._socket(number)
            connection = make(sock, number, self.measured.latencies.record)
            sock.setblocking(False)
            self._connections[sock.fileno()] = connection
            self._poller.register(sock, select.EPOLLIN)
        self._turns = list(self._connections.values())
        self._poller.register(self._asked, select.EPOLLIN)

    def _socket(self, number: int) -> socket.socket:
        plan = self._plan
        family, address = plan.address
        sock = socket.socket(family, socket.SOCK_STREAM)
        try:
            if plan.sources:
                sock.setsockopt(socket.IPPROTO_IP, _BIND_ADDRESS_NO_PORT, 1)
                sock.bind((plan.sources[number % len(plan.sources)], 0))
            sock.settimeout(CONNECT_SECONDS)
            sock.connect(address)
            if plan.tls is not None:
                sock = plan.tls.wrap(sock, plan.host)
        except (OSError, TLSError) as e:
            why = getattr(e, "strerror", None) or e
            raise LoadError(
                f"connection {number + 1} of {plan.connections} cannot be made: {why}"
            ) from e
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return sock

    def run(self) -> None:
        """Load, measure, and await the last answers; what came of it is C{measured}."""
        try:
            self._load()
        except LoadError as e:
            self.measured.problem = str(e)
        for connection in self._connections.values():
            self.measured.refused += connection.refused
            self.measured.problem = self.measured.problem or connection.refusal
            connection.close()

    def _load(self) -> None:
        plan, clock = self._plan, time.monotonic_ns
        self._poll(0)  # a server that had no room for a connection has said so by now
        begin = now = clock()
        if plan.warm_up:
            self._open(now)
            while self._going and now < begin + plan.warm_up * 1e9:
                self._step(now)
                now = clock()
        if plan.messages != UNCOUNTED:  # what is in flight already will be counted
            self._budget = max(0, plan.messages - self._in_flight())
        measured = self.measured
        measured.latencies.clear()
        measured.late.clear()
        used, begin, acked = time.process_time(), now, self._acked
        if not plan.warm_up:
            self._open(now)
        try:
            while self._going and now < begin + plan.seconds * 1e9:
                self._step(now)
                now = clock()
                measured.count(self._acked - acked, (now - begin) / 1e9)
                acked = self._acked
                if not self._budget and not self._in_flight():
                    break
        finally:
            measured.count(self._acked - acked, (clock() - begin) / 1e9)
            measured.busy = (time.process_time() - used) / measured.seconds
        self._budget = 0
        while self._in_flight():
            self._poll(_POLL_SECONDS)

    def _in_flight(self) -> int:
        return sum(connection.in_flight + len(connection.waiting) for connection in self._turns)

    def _open(self, now: int) -> None:
        """Let messages come, or every connection fill its window."""
        self._heard = now
        if self._plan.rate:
            self._arrivals = Arrivals(self._plan.rate, now)
            return
        for connection in self._connections.values():
            self._send(connection, self._plan.window, now)

    def _send(self, connection: Sender, count: int, now: int) -> None:
        if count > self._budget:
            count = self._budget
        self._budget -= count
        if count and not connection.send(count, now):
            self._poller.modify(connection, select.EPOLLIN | select.EPOLLOUT)

    def _step(self, now: int) -> None:
        """Send what has come by now, if messages come at a rate; then wait, and poll."""
        if self._arrivals is None:
            self._poll(_POLL_SECONDS)
            return
        come = self._arrivals.until(now, min(self._budget, _MOST_AT_ONCE))
        self._budget -= len(come)
        self._spread(come)
        wait = (self._arrivals.next - time.monotonic_ns()) / 1e9
        if wait > 0:
            # epoll waits for whole milliseconds, which would be most of a latency.
            select.select([self._poller], [], [], min(wait, _POLL_SECONDS))
        self._poll(0)

    def _spread(self, come: list[int]) -> None:
        """Give messages to the connections in turn; those without room have them wait."""
        window, turns = self._plan.window, self._turns
        writable: dict[Sender, None] = {}  # a set, in order
        for born in come:
            connection = turns[self._turn]
            self._turn = (self._turn + 1) % len(turns)
            if connection.in_flight < window:
                connection.add(1, born)
                writable[connection] = None
            else:
                connection.waiting.append(born)
        for connection in writable:
            self._flush(connection)
        if come:
            # Of all that are sent together as much as of the oldest: one by one it would cost more.
            self.measured.late.record(time.monotonic_ns() - come[0], len(come))

    def _flush(self, connection: Sender) -> None:
        if not connection.flush():
            self._poller.modify(connection, select.EPOLLIN | select.EPOLLOUT)

    def _catch_up(self, connection: Sender) -> None:
        """Send what had to wait for the window."""
        waiting = connection.waiting
        for _ in range(min(len(waiting), self._plan.window - connection.in_flight)):
            connection.add(1, waiting.popleft())
        self._flush(connection)

    def _poll(self, seconds: float) -> None:
        """Take what has arrived, and send as much again."""
        connections = self._connections
        events = self._poller.poll(seconds)
        for fd, mask in events:
            connection = connections.get(fd)
            if connection is None:
                self._poller.unregister(fd)
                self._end()
                continue
            if mask & select.EPOLLOUT and connection.flush():
                self._poller.modify(fd, select.EPOLLIN)
            if mask & ~select.EPOLLOUT:
                count = connection.receive()
                self._acked += count
                if not connection.going:
                    self._end()
                elif connection.waiting:
                    self._catch_up(connection)
                elif count and self._budget and self._arrivals is None:
                    self._send(connection, count, connection.heard)
        now = time.monotonic_ns()
        if events:
            self._heard = now
        elif now - self._heard > SILENCE_SECONDS * 1e9 and self._in_flight():
            raise LoadError(
                f"the server answered nothing for {SILENCE_SECONDS:g} s, with "
                f"{self._in_flight()} messages unanswered"
            )
        if now >= self._next_progress:
            self._next_progress = now + int(PROGRESS_SECONDS * 1e9)
            self._progress(self._acked)

    def _end(self) -> None:
        """Send no more."""
        self._going = False
        self._budget = 0
        for connection in self._turns:
            connection.waiting.clear()


def _own(plan: Plan) -> Make:
    """What makes connections of our own protocol, each with a client id of its own."""
    steps, text = Steps(block_messages(plan), plan.size), body(plan.size)

    def make(sock: socket.socket, number: int, record: Callable[[int, int], None]) -> Sender:
        client = uuid7().bytes
        return Connection(sock, client, Blocks(client, text, steps), record)

    return make
