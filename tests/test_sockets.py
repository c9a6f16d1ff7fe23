"""Rounds of reads over plain sockets, which are fakes, and so is what watches them."""

from __future__ import annotations

from collections.abc import Callable

from twisted.internet.testing import MemoryReactor
from twisted.trial.unittest import SynchronousTestCase

from msglog import _sockets
from msglog._sockets import SocketReader

KIB = 1024


class Connection:
    """A connection, its transport, and its socket, which has some bytes to read."""

    def __init__(self, number: int, has: int, log: list[tuple[int, int]]) -> None:
        self.number = number
        self.has = has
        self.reset = False
        self.spurious = False  # said to be ready when it is not
        self.takes: Callable[[], object] = lambda: None
        self.forget: Callable[[], object] = lambda: None
        self.asked = 0
        self.ended = 0
        self.aborted = False
        self._log = log
        self.transport = self

    @property
    def ready(self) -> bool:
        return self.has > 0 or self.reset or self.spurious

    def stopReading(self) -> None: ...

    def fileno(self) -> int:
        return self.number

    def getHandle(self) -> Connection:
        return self

    def recv(self, count: int) -> bytes:
        self.asked += 1
        if not self.has:
            raise ConnectionResetError if self.reset else BlockingIOError
        count = min(count, self.has)
        self.has -= count
        return bytes(count)

    def dataReceived(self, data: bytes) -> None:
        self._log.append((self.number, len(data) // KIB))
        self.takes()

    def read_by_transport(self) -> None:
        self.ended += 1
        self.reset = False
        self.forget()

    def abortConnection(self) -> None:
        self.aborted = True


class Epoll:
    """Finds every socket ready that is watched and has something, be it an end."""

    EPOLLIN = 1

    def __init__(self) -> None:
        self.watched: list[int] = []
        self.polls = 0
        self.connections: dict[int, Connection] = {}

    def epoll(self) -> Epoll:
        return self

    def register(self, fd: int, events: int) -> None:
        self.watched.append(fd)

    def unregister(self, fd: int) -> None:
        if fd not in self.watched:
            raise FileNotFoundError
        self.watched.remove(fd)

    def poll(self, timeout: float, most: int) -> list[tuple[int, int]]:
        if most < 1:
            raise ValueError("maxevents must be greater than 0")
        self.polls += 1
        ready = [fd for fd in self.watched if self.connections[fd].ready]
        return [(fd, self.EPOLLIN) for fd in ready[:most]]


class Rounds(SynchronousTestCase):
    def setUp(self) -> None:
        self.epoll = Epoll()
        self.patch(_sockets, "select", self.epoll)
        self.log: list[tuple[int, int]] = []
        self.reader = SocketReader(MemoryReactor(), lambda: None, lambda: None)

    def connect(self, *has: int) -> list[Connection]:
        made = [Connection(number, kib * KIB, self.log) for number, kib in enumerate(has, 1)]
        for connection in made:
            self.epoll.connections[connection.number] = connection
            self.reader.add(connection)
        return made

    def round(self) -> list[tuple[int, int]]:
        self.log.clear()
        self.reader.doRead()
        return list(self.log)

    def test_one_with_much(self) -> None:
        """What one socket has beyond a read comes along, as one piece, up to 256 KiB."""
        self.connect(300)
        self.assertEqual(self.round(), [(1, 256)])
        self.assertEqual(self.round(), [(1, 44)])

    def test_alone(self) -> None:
        """Where there is no other socket, what arrives meanwhile is the next round's."""
        (connection,) = self.connect(63)
        connection.takes = lambda: setattr(connection, "has", KIB)
        self.assertEqual(self.round(), [(1, 63)])
        self.assertEqual((connection.asked, self.epoll.polls), (1, 1))
        self.assertEqual(self.round(), [(1, 1)])

    def test_what_arrives_meanwhile(self) -> None:
        """It is the same round, whoever sent it, until that has brought 256 KiB."""
        first, second, _ = self.connect(10, 0, 0)
        first.takes = lambda: setattr(second, "has", 20 * KIB)
        self.assertEqual(self.round(), [(1, 10), (2, 20)])
        second.takes = lambda: setattr(first, "has", 226 * KIB)
        first.has = 10 * KIB
        self.assertEqual(self.round(), [(1, 10), (2, 20), (1, 226)])

    def test_byte_by_byte(self) -> None:
        """Who sends it so does not keep a round up."""
        first, _ = self.connect(1, 0)
        first.takes = lambda: setattr(first, "has", KIB)
        self.assertEqual(self.round(), [(1, 1)] * 4)

    def test_ready_without_anything(self) -> None:
        """A round ends when it brings nothing, whatever the system says."""
        first, _ = self.connect(1, 0)
        first.spurious = True
        self.assertEqual(self.round(), [(1, 1)])
        self.assertEqual(self.epoll.polls, 2)
        self.assertEqual(self.round(), [])
        self.assertEqual(self.epoll.polls, 3)
        self.assertEqual(first.ended, 0)

    def test_one_with_as_much_as_a_read(self) -> None:
        """That there is nothing more is neither an end nor an error."""
        (connection,) = self.connect(64)
        self.assertEqual(self.round(), [(1, 64)])
        self.assertEqual(self.round(), [])
        self.assertEqual(connection.ended, 0)

    def test_an_error_behind_a_full_read(self) -> None:
        """What was read counts, and the next round finds the error."""
        (connection,) = self.connect(64)
        connection.reset = True
        self.assertEqual(self.round(), [(1, 64)])
        self.assertEqual(connection.ended, 0)
        self.assertEqual(self.round(), [])
        self.assertEqual(connection.ended, 1)

    def test_many_with_much(self) -> None:
        """A round is not longer for it: it goes on with the first alone, and reads all once."""
        self.connect(300, 300, 1, 300)
        self.assertEqual(self.round(), [(1, 256), (2, 64), (3, 1), (4, 64)])
        self.assertEqual(self.round(), [(1, 44), (2, 212), (4, 64)])

    def test_some_with_a_little_more(self) -> None:
        """Together they bring no more than one with much would, and a read each."""
        self.connect(100, 100, 100, 100)
        self.assertEqual(self.round(), [(1, 100), (2, 100), (3, 64), (4, 64)])

    def test_closed_by_another(self) -> None:
        """A socket that is forgotten within a round is not read in it."""
        first, _ = self.connect(1, 1)
        first.takes = lambda: self.reader.remove(2)
        self.assertEqual(self.round(), [(1, 1)])

    def test_a_defect(self) -> None:
        """A connection that fails is aborted, and what it has is not read any more."""
        first, second, _ = self.connect(1, 0, 0)
        first.forget = lambda: self.reader.remove(1)

        def fail() -> None:
            first.has = second.has = KIB
            raise ZeroDivisionError

        first.takes = fail
        self.assertEqual(self.round(), [(1, 1), (2, 1)])
        self.assertEqual((first.aborted, second.aborted), (True, False))
        self.assertEqual(len(self.flushLoggedErrors(ZeroDivisionError)), 1)

    def test_a_defect_of_the_last(self) -> None:
        """When no connection is left the round is over."""
        (connection,) = self.connect(1)
        connection.forget = lambda: self.reader.remove(1)
        connection.takes = lambda: 1 // 0
        self.assertEqual(self.round(), [(1, 1)])
        self.assertEqual(len(self.flushLoggedErrors(ZeroDivisionError)), 1)

    def test_paused_by_another(self) -> None:
        """What one brings can be enough for all: a socket that is paused for it is not read."""
        first, *_ = self.connect(1, 1, 1)
        first.takes = lambda: self.reader.pause(2)
        self.assertEqual(self.round(), [(1, 1), (3, 1)])
        self.reader.resume(2)
        self.assertEqual(self.round(), [(2, 1)])

    def test_closed_while_paused(self) -> None:
        """Then another one may have its number."""
        self.connect(1, 1)
        self.reader.pause(2)
        self.reader.remove(2)
        self.assertEqual(self.round(), [(1, 1)])
        self.reader.add(self.epoll.connections[2])
        self.assertEqual(self.round(), [(2, 1)])

    def test_brief(self) -> None:
        """All have their turn in a round that is brief; the next one is as ever."""
        self.connect(300, 300, 1, 300)
        self.reader.be_brief()
        self.assertEqual(self.round()[:4], [(1, 8), (2, 8), (3, 1), (4, 8)])
        self.assertEqual(self.round()[0], (1, 256))
