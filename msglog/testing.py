"""
Fakes for tests of what is built on msglog, and the contract that every store must pass.

Nothing here opens a socket or sleeps.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.testing import StringTransport
from zope.interface import implementer
from zope.interface.verify import verifyObject

from ._batch import STORED, Batch, NackCode, Verdict
from ._disk import Disk
from ._frames import Ack, Nack, Terms, decode_answers, message_checksum
from ._ledger import Ledger
from ._memory_stream import MemoryStream
from ._worker import result_of
from .interfaces import IStore

__all__ = [
    "FaultyDisk",
    "MemoryStore",
    "MemoryStream",
    "MemoryTransport",
    "StepWorker",
    "StoreContract",
    "appended",
    "make_batch",
]


def make_batch(client: bytes, first: int, *bodies: bytes) -> Batch:
    """A batch with the right checksums."""
    checksums = [message_checksum(client, first + i, body) for i, body in enumerate(bodies)]
    return Batch(client, first, checksums, list(bodies))


def appended(store: IStore, batch: Batch) -> Deferred[Verdict]:
    """Append a batch; a L{Deferred} of its verdict."""
    verdict: Deferred[Verdict] = Deferred()
    store.append(batch, verdict.callback)
    return verdict


@implementer(IStore)
class MemoryStore:
    """
    A store that keeps messages in a list, and commits when it is told to.

    @param automatic: whether each batch is committed as soon as it is appended.
    @ivar messages: what is stored: (client, sequence, body), in order.
    @ivar full: while true, commits are refused NOT_STORED.
    """

    def __init__(self, window: int = 1024, *, automatic: bool = True) -> None:
        self.window = window
        self.automatic = automatic
        self.full = False
        self.messages: list[tuple[bytes, int, bytes]] = []
        self._ledger = Ledger(lambda client: None, window, 1 << 62)
        self._waiting: list[tuple[Batch | bytes, Callable[[Any], None]]] = []

    def append(self, batch: Batch, judged: Callable[[Verdict], None]) -> int:
        """See L{IStore.append}."""
        self._wait(batch, judged)
        return 0

    def last(self, client: bytes) -> Deferred[int | None]:
        """See L{IStore.last}."""
        answer: Deferred[int | None] = Deferred()
        self._wait(client, answer.callback)
        return answer

    def _wait(self, what: Batch | bytes, answer: Callable[[Any], None]) -> None:
        self._waiting.append((what, answer))
        if self.automatic:
            self.commit()

    def commit(self) -> None:
        """Judge everything that waits."""
        waiting, self._waiting = self._waiting, []
        for what, answer in waiting:
            if isinstance(what, bytes):
                answer(self._ledger.last(what))
            elif self.full:
                answer(self._ledger.refuse(what, "the store is full"))
            else:
                start, verdict = self._ledger.admit(what)
                for index in range(start, len(what)):
                    self.messages.append((what.client, what.first + index, what.bodies[index]))
                self._ledger.settle()
                answer(verdict)


class MemoryTransport(StringTransport):
    """
    A transport in memory that takes what is written, or not.

    @ivar stalled: while true, the peer reads nothing.
    @ivar aborted: whether C{abortConnection} was called.
    @ivar half_closed: whether C{loseWriteConnection} was called.
    """

    stalled = False
    aborted = False
    half_closed = False
    _full = False

    def write(self, data: bytes) -> None:
        """Take data; pause the producer if the peer reads nothing."""
        super().write(data)
        if self.stalled and not self._full and self.producer is not None:
            self._full = True
            self.producer.pauseProducing()

    def drain(self) -> None:
        """Let the peer read everything."""
        self.stalled = False
        if self._full and self.producer is not None:
            self._full = False
            self.producer.resumeProducing()

    def abortConnection(self) -> None:
        """See L{ITCPTransport}."""
        self.aborted = True
        super().abortConnection()

    def loseWriteConnection(self) -> None:
        """See L{IHalfCloseableProtocol}'s transports."""
        self.half_closed = True

    def answers(self) -> list[Ack | Nack | Terms]:
        """Take the answers that were written."""
        data = self.value()
        answers, end = [], 0
        for answer, after in decode_answers(data):
            answers.append(answer)
            end = after
        assert end == len(data), "the server wrote part of a frame"
        self.clear()
        return answers


class StepWorker:
    """A writer's thread that is none: work waits until C{step} is called."""

    def __init__(self, reactor: object = None) -> None:
        self._work: list[tuple[Callable[[], Any], Callable[[Any], object]]] = []
        self.stopped = False

    def do(self, work: Callable[[], Any], done: Callable[[Any], object]) -> None:
        """Keep work for a later step."""
        self._work.append((work, done))

    def stop(self) -> None:
        """Note that no more comes."""
        self.stopped = True

    def step(self) -> bool:
        """Do one piece of work; whether there was any."""
        if not self._work:
            return False
        work, done = self._work.pop(0)
        done(result_of(work))
        return True


class FaultyDisk(Disk):
    """
    A real disk whose calls fail when they are told to.

    @ivar room: how many more bytes may be written before the disk is full; L{None}: no end.
    @ivar free: how many bytes it says are free; L{None}: as it is.
    @ivar against: what there is against keeping a log there; L{None}: nothing.
    @ivar errors: by the name of a call, the C{errno} that it fails with from now on.
    @ivar calls: the names of the calls that change something or wait, in order.
    """

    def __init__(self) -> None:
        self.room: int | None = None
        self.free: int | None = None
        self.against: str | None = None
        self.errors: dict[str, int] = {}
        self.calls: list[str] = []

    def _call(self, name: str) -> None:
        self.calls.append(name)
        self._fail(name)

    def _fail(self, name: str) -> None:
        if name in self.errors:
            raise OSError(self.errors[name], os.strerror(self.errors[name]))

    def space(self, folder: Path) -> tuple[int, int]:
        """Say how much is free, or fail."""
        self._fail("space")
        free, size = super().space(folder)
        return (free if self.free is None else self.free), size

    def doubt(self, folder: Path) -> str | None:
        """Say what it was told to, wherever the tests run."""
        return self.against

    def write(self, fd: int, data: bytes | memoryview) -> int:
        """Write as much as there is room for."""
        self._call("write")
        if self.room is not None:
            if not self.room:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            data = memoryview(data)[: self.room]
            self.room -= len(data)
        return super().write(fd, data)

    def sync(self, fd: int) -> None:
        """Sync, or fail."""
        self._call("sync")
        super().sync(fd)

    def forget(self, fd: int, offset: int) -> None:
        """Forget, or fail."""
        self._call("forget")
        super().forget(fd, offset)

    def cut(self, fd: int, size: int) -> None:
        """Cut, or fail."""
        self._call("cut")
        super().cut(fd, size)

    def open(self, path: Path) -> int:
        """Open, or fail."""
        self._fail("open")
        return super().open(path)

    def sync_folder(self, path: Path) -> None:
        """Sync a folder, or fail."""
        self._call("sync_folder")
        super().sync_folder(path)

    def take_name(self, path: Path) -> None:
        """Take a name, or fail."""
        self._call("take_name")
        super().take_name(path)

    def rename(self, old: Path, new: Path) -> None:
        """Rename, or fail."""
        self._call("rename")
        super().rename(old, new)

    def remove(self, path: Path) -> None:
        """Delete, or fail."""
        self._call("remove")
        super().remove(path)


class StoreContract:
    """
    The promises of L{IStore} as tests.

    Mix it into a C{twisted.trial.unittest.SynchronousTestCase} that defines C{make_store}, and
    C{settle} if verdicts need something to happen first.
    """

    # What the mixed-in test case has.
    assertEqual: Callable[..., None]
    assertTrue: Callable[..., None]
    successResultOf: Callable[[Deferred[Any]], Any]

    CLIENT = bytes(range(16))
    OTHER = bytes(range(16, 32))

    def make_store(self) -> Any:
        """A started store with nothing in it."""
        raise AssertionError("define make_store")

    def stored(self, store: Any) -> list[tuple[bytes, int, bytes]]:
        """Everything that a store holds: (client, sequence, body), in order."""
        raise AssertionError("define stored")

    def fill_up(self, store: Any, full: bool) -> None:
        """Make a store refuse for want of room, or not any more."""
        raise AssertionError("define fill_up")

    def settle(self, store: Any) -> None:
        """Let everything that was appended be judged."""

    def _append(self, store: Any, client: bytes, first: int, *bodies: bytes) -> Verdict:
        verdict = appended(store, make_batch(client, first, *bodies))
        self.settle(store)
        result = self.successResultOf(verdict)
        assert isinstance(result, Verdict)
        return result

    def _last(self, store: Any, client: bytes) -> Any:
        last = store.last(client)
        self.settle(store)
        return self.successResultOf(last)

    def test_interface(self) -> None:
        """It provides L{IStore}."""
        self.assertTrue(verifyObject(IStore, self.make_store()))

    def test_stores_in_order(self) -> None:
        """New messages of several clients are stored, once, in order."""
        store = self.make_store()
        self.assertEqual(self._append(store, self.CLIENT, 1, b"a", b"b"), STORED)
        self.assertEqual(self._append(store, self.OTHER, 1, b"x"), STORED)
        self.assertEqual(self._append(store, self.CLIENT, 3, b"c"), STORED)
        self.assertEqual(
            self.stored(store),
            [
                (self.CLIENT, 1, b"a"),
                (self.CLIENT, 2, b"b"),
                (self.OTHER, 1, b"x"),
                (self.CLIENT, 3, b"c"),
            ],
        )

    def test_last(self) -> None:
        """It knows each client's last sequence, and remembers nothing for being asked."""
        store = self.make_store()
        self.assertEqual(self._last(store, self.CLIENT), 0)
        self._append(store, self.CLIENT, 1, b"a", b"b")
        self.assertEqual(self._last(store, self.CLIENT), 2)
        self.assertEqual(self._last(store, self.OTHER), 0)

    def test_pipelined(self) -> None:
        """Batches that are appended together are judged in that order."""
        store = self.make_store()
        batches = [make_batch(self.CLIENT, n, b"%d" % n) for n in range(1, 6)]
        verdicts = [appended(store, batch) for batch in batches]
        last = store.last(self.CLIENT)
        self.settle(store)
        self.assertEqual([self.successResultOf(v) for v in verdicts], [STORED] * 5)
        self.assertEqual(self.successResultOf(last), 5)
        self.assertEqual([sequence for _, sequence, _ in self.stored(store)], [1, 2, 3, 4, 5])

    def test_resend(self) -> None:
        """The same again is acknowledged again and not stored again, in part or in whole."""
        store = self.make_store()
        self._append(store, self.CLIENT, 1, b"a", b"b")
        self.assertEqual(self._append(store, self.CLIENT, 1, b"a", b"b"), STORED)
        self.assertEqual(self._append(store, self.CLIENT, 2, b"b", b"c"), STORED)
        self.assertEqual([body for _, _, body in self.stored(store)], [b"a", b"b", b"c"])

    def test_resend_in_flight(self) -> None:
        """A resend of what is not judged yet is answered as it is."""
        store = self.make_store()
        verdicts = [appended(store, make_batch(self.CLIENT, 1, b"a")) for _ in range(3)]
        self.settle(store)
        self.assertEqual([self.successResultOf(v) for v in verdicts], [STORED] * 3)
        self.assertEqual(len(self.stored(store)), 1)

    def test_conflict(self) -> None:
        """The same sequence with other bytes is a conflict; what follows it is judged alone."""
        store = self.make_store()
        self._append(store, self.CLIENT, 1, b"a", b"b")
        (refusal,) = self._append(store, self.CLIENT, 1, b"a", b"B", b"c").refusals
        self.assertEqual((refusal.start, refusal.stop, refusal.code), (1, 2, NackCode.CONFLICT))
        self.assertEqual([body for _, _, body in self.stored(store)], [b"a", b"b", b"c"])

    def test_older_than_window(self) -> None:
        """A resend from within the window is acknowledged; an older one is a conflict."""
        store = self.make_store()
        window = store.window
        bodies = [b"%d" % n for n in range(1, 2 * window + 2)]
        self._append(store, self.CLIENT, 1, *bodies)
        oldest = len(bodies) - window + 1
        self.assertEqual(self._append(store, self.CLIENT, oldest, *bodies[oldest - 1 :]), STORED)
        (refusal,) = self._append(store, self.CLIENT, oldest - 1, bodies[oldest - 2]).refusals
        self.assertEqual(refusal.code, NackCode.CONFLICT)

    def test_out_of_order(self) -> None:
        """A gap is refused with what is expected, and consumes nothing."""
        store = self.make_store()
        self._append(store, self.CLIENT, 1, b"a")
        (refusal,) = self._append(store, self.CLIENT, 3, b"c", b"d").refusals
        self.assertEqual(
            (refusal.start, refusal.stop, refusal.code, refusal.expected),
            (0, 2, NackCode.OUT_OF_ORDER, 2),
        )
        self.assertEqual(self._append(store, self.CLIENT, 2, b"b"), STORED)

    def test_full(self) -> None:
        """
        Without room nothing new is stored, what is stored is still acknowledged, and the same
        sequence is taken when there is room again.
        """
        store = self.make_store()
        self._append(store, self.CLIENT, 1, b"a")
        self.fill_up(store, True)
        (refusal,) = self._append(store, self.CLIENT, 1, b"a", b"b", b"c").refusals
        self.assertEqual(
            (refusal.start, refusal.stop, refusal.code, refusal.expected),
            (1, 3, NackCode.NOT_STORED, 2),
        )
        self.fill_up(store, False)
        self.assertEqual(self._append(store, self.CLIENT, 2, b"b", b"c"), STORED)
        self.assertEqual([body for _, _, body in self.stored(store)], [b"a", b"b", b"c"])
