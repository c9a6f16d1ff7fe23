"""The stores, against the contract; and what the file store does besides."""

from __future__ import annotations

import errno
from pathlib import Path

from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from msglog import FileStore, Limits, NackCode, StoreFailed, parse_line
from msglog._batch import STORED
from msglog._writer import LogWriter
from msglog.testing import FaultyDisk, MemoryStore, StepWorker, StoreContract, appended, make_batch

A, B = bytes(range(16)), bytes(range(16, 32))


class MemoryStoreTest(StoreContract, SynchronousTestCase):
    """The store for tests keeps the promises too."""

    def make_store(self) -> MemoryStore:
        return MemoryStore()

    def stored(self, store: MemoryStore) -> list:
        return store.messages

    def fill_up(self, store: MemoryStore, full: bool) -> None:
        store.full = full


class FileCase(SynchronousTestCase):
    def make_store(self, **limits) -> FileStore:
        self.path = Path(self.mktemp())
        self.clock = Clock()
        self.disk = FaultyDisk()
        self.worker = StepWorker()
        self.failures: list[StoreFailed] = []
        made = Limits(**limits)
        store = FileStore(
            self.clock,
            self.path,
            made,
            on_failure=self.failures.append,
            writer=LogWriter(
                self.path, made, disk=self.disk, clock=lambda: 1e6, monotonic=lambda: 0.0
            ),
            worker=lambda reactor: self.worker,
        )
        store.startService()
        self.addCleanup(store._writer._abandon)
        self.addCleanup(lambda: store._ticks.running and store._ticks.stop())
        return store

    def stored(self, store: FileStore) -> list:
        records = map(parse_line, self.path.read_bytes().splitlines())
        return [(record.client, record.sequence, record.body) for record in records]

    def settle(self, store: FileStore) -> None:
        self.clock.advance(0)
        while self.worker.step():
            self.clock.advance(0)


class FileStoreContract(FileCase, StoreContract):
    """The embedded store."""

    make_store = FileCase.make_store
    stored = FileCase.stored
    settle = FileCase.settle

    def fill_up(self, store: FileStore, full: bool) -> None:
        self.disk.room = 0 if full else None


class FileStoreInPlaceContract(FileStoreContract):
    """The embedded store while every commit is made in the reactor's thread."""

    def make_store(self, **limits) -> FileStore:
        store = FileCase.make_store(self, **limits)
        be_quick(store)
        return store


def be_quick(store: FileStore) -> None:
    """Have a store believe that its disk is quick."""
    while not store.writer.quickness.lately:
        store.writer.quickness.note(0.0)


class InPlaceTest(FileCase):
    def append(self, store: FileStore, first: int, *bodies: bytes):
        verdict = appended(store, make_batch(A, first, *bodies))
        self.clock.advance(0)
        return verdict

    def test_a_quick_disk_needs_no_thread(self) -> None:
        """After some quick commits, small ones are made where they are appended."""
        store = self.make_store()
        in_thread = 0
        for n in range(1, 100):
            verdict = self.append(store, n, b"x")
            in_thread += self.worker.step()
            self.assertEqual(self.successResultOf(verdict), STORED)
        self.assertEqual(in_thread, 16)
        self.assertEqual(self.disk.calls[-4:], ["write", "sync"] * 2)

    def test_not_with_a_slow_disk(self) -> None:
        """One slow commit, and it is the thread's again until the disk has been quick again."""
        store = self.make_store()
        be_quick(store)
        self.successResultOf(self.append(store, 1, b"x"))
        store.writer.quickness.note(0.006)
        verdict = self.append(store, 2, b"x")
        self.assertNoResult(verdict)
        self.worker.step()
        self.assertEqual(self.successResultOf(verdict), STORED)

    def test_the_writer_measures(self) -> None:
        """It notes how long commits take, by the clock that it was given."""
        store = self.make_store()
        be_quick(store)
        times = iter([0.0, 1.0, 1.0, 1.0])
        store.writer._monotonic = lambda: next(times, 1.0)
        self.append(store, 1, b"x")
        self.assertFalse(store.writer.quickness.lately)

    def test_only_small_ones(self) -> None:
        """A commit over the limit is the thread's; with a limit of 0, every one."""
        store = self.make_store(in_place_bytes=1000)
        be_quick(store)
        verdict = self.append(store, 1, *[b"x" * 250] * 4)
        self.assertNoResult(verdict)
        self.worker.step()
        self.successResultOf(verdict)
        self.successResultOf(self.append(store, 5, b"x" * 250))
        store = self.make_store(in_place_bytes=0)
        be_quick(store)
        self.assertNoResult(self.append(store, 1, b"x"))

    def test_not_beside_a_checkpoint(self) -> None:
        """While the thread has the writer for a checkpoint's step, commits wait their turn."""
        store = self.make_store(checkpoint_bytes=500)
        be_quick(store)
        self.successResultOf(self.append(store, 1, b"x" * 200))
        self.successResultOf(self.append(store, 2, b"x" * 200))
        self.assertEqual(len(self.worker._work), 1)
        verdict = self.append(store, 3, b"x")
        self.assertNoResult(verdict)
        self.settle(store)
        self.successResultOf(verdict)
        self.successResultOf(self.append(store, 4, b"x"))

    def test_verdicts_come_in_order(self) -> None:
        """What gathered behind a commit of the thread's is judged after it, in place or not."""
        store = self.make_store()
        seen: list[int] = []
        store.append(make_batch(A, 1, b"x"), lambda _: seen.append(1))
        self.clock.advance(0)
        be_quick(store)
        store.append(make_batch(A, 2, b"x"), lambda _: seen.append(2))
        self.worker.step()
        self.assertEqual(seen, [1, 2])

    def test_a_failure_is_fail_stop(self) -> None:
        store = self.make_store()
        be_quick(store)
        self.disk.errors["sync"] = errno.EIO
        verdict = self.successResultOf(self.append(store, 1, b"x"))
        self.assertEqual(verdict.refusals[0].code, NackCode.NOT_STORED)
        self.assertEqual(len(self.failures), 1)
        again = self.successResultOf(self.append(store, 1, b"x"))
        self.assertEqual(again.refusals[0].code, NackCode.NOT_STORED)


class FileStoreTest(FileCase):
    def append(self, store: FileStore, first: int, *bodies: bytes, client: bytes = A):
        return appended(store, make_batch(client, first, *bodies))

    def test_group_commit(self) -> None:
        """What arrives in one turn is one commit; what arrives meanwhile is the next one."""
        store = self.make_store()
        self.append(store, 1, b"first", client=B)
        self.settle(store)
        self.disk.calls.clear()
        first = [self.append(store, n, b"x") for n in (1, 2, 3)]
        self.clock.advance(0)
        second = [self.append(store, n, b"x") for n in (4, 5, 6, 7)]
        self.clock.advance(0)
        self.worker.step()
        self.assertEqual([self.successResultOf(v) for v in first], [STORED] * 3)
        for verdict in second:
            self.assertNoResult(verdict)
        self.settle(store)
        self.assertEqual([self.successResultOf(v) for v in second], [STORED] * 4)
        self.assertEqual(self.disk.calls, ["write", "sync"] * 2)

    def test_the_disk_works_while_answers_are_given(self) -> None:
        """The next commit is handed over before the verdicts of the last one."""
        store = self.make_store()
        seen = []
        verdict = self.append(store, 1, b"x")
        verdict.addCallback(lambda _: seen.append(len(self.worker._work)))
        self.clock.advance(0)
        self.append(store, 2, b"x")
        self.worker.step()
        self.assertEqual(seen, [1])

    def test_commits_are_bounded(self) -> None:
        """One commit takes no more than its limit, and the rest follows in order."""
        store = self.make_store(max_commit_bytes=10_000)
        self.disk.calls.clear()
        verdicts = [self.append(store, n, b"x" * 300) for n in range(1, 11)]
        self.settle(store)
        self.assertEqual([self.successResultOf(v) for v in verdicts], [STORED] * 10)
        self.assertEqual(self.disk.calls.count("write"), 2)

    def test_a_tick_that_fails(self) -> None:
        """What was handed over behind it is refused, and is not written."""
        store = self.make_store()
        self.append(store, 1, b"x")
        self.settle(store)

        def look(now: float) -> None:
            raise ZeroDivisionError

        self.patch(store._writer.space, "look", look)
        store._worker.do(store._writer.tick, store._ticked)
        verdict = self.append(store, 2, b"y")
        self.settle(store)
        (refusal,) = self.successResultOf(verdict).refusals
        self.assertEqual(refusal.code, NackCode.NOT_STORED)
        self.assertEqual([sequence for _, sequence, _ in self.stored(store)], [1])
        self.assertEqual(len(self.failures), 1)
        self.flushLoggedErrors(ZeroDivisionError)

    def test_says_what_it_holds(self) -> None:
        """What a store holds for a batch is its lines, however long they became."""
        store = self.make_store()
        plain = store.append(make_batch(A, 1, b"x" * 100), lambda verdict: None)
        escaped = store.append(make_batch(A, 2, bytes(100)), lambda verdict: None)
        self.assertEqual(escaped - plain, 500)

    def test_fail_stop(self) -> None:
        """After a failed sync everything is refused, and it is said once."""
        store = self.make_store()
        self.append(store, 1, b"x")
        self.settle(store)
        self.disk.errors = {"sync": errno.EIO}
        written = self.append(store, 2, b"y")
        self.clock.advance(0)
        waiting, asked = self.append(store, 3, b"z"), store.last(A)
        self.settle(store)
        for verdict in (written, waiting, self.append(store, 4, b"later")):
            (refusal,) = self.successResultOf(verdict).refusals
            self.assertEqual(refusal.code, NackCode.NOT_STORED)
        self.assertIsNone(self.successResultOf(asked))
        self.assertEqual(len(self.failures), 1)
        stopped = store.stopService()
        self.settle(store)
        self.successResultOf(stopped)
        self.assertEqual(len(self.failures), 1)

    def test_started_again_after_a_failure(self) -> None:
        """A start after fail-stop knows what is on the disk, and not what was hoped."""
        store = self.make_store()
        self.append(store, 1, b"x")
        self.settle(store)
        self.disk.errors = {"write": errno.EIO}
        self.append(store, 2, b"y")
        self.settle(store)
        store.stopService()
        self.settle(store)
        self.disk.errors = {}
        store.startService()
        last = store.last(A)
        self.settle(store)
        self.assertEqual(self.successResultOf(last), 1)
        verdict = self.append(store, 2, b"z")
        self.settle(store)
        self.assertEqual(self.successResultOf(verdict), STORED)

    def test_a_defect_is_fail_stop(self) -> None:
        """An error that nobody thought of acknowledges nothing."""
        store = self.make_store()
        store._writer._write = lambda data: 1 / 0
        verdict = self.append(store, 1, b"x")
        self.settle(store)
        (refusal,) = self.successResultOf(verdict).refusals
        self.assertEqual(refusal.code, NackCode.NOT_STORED)
        self.assertEqual(len(self.failures), 1)
        self.assertEqual(len(self.flushLoggedErrors(ZeroDivisionError)), 1)

    def test_stop(self) -> None:
        """A stop commits what was appended, and refuses what comes after."""
        store = self.make_store()
        verdicts = [self.append(store, 1, b"a")]
        self.clock.advance(0)
        verdicts.append(self.append(store, 2, b"b"))
        stopped = store.stopService()
        (refusal,) = self.successResultOf(self.append(store, 3, b"c")).refusals
        self.assertEqual(refusal.code, NackCode.UNAVAILABLE)
        self.assertNoResult(stopped)
        self.settle(store)
        self.successResultOf(stopped)
        self.assertEqual([self.successResultOf(v) for v in verdicts], [STORED] * 2)
        self.assertTrue(self.worker.stopped)
        self.assertEqual(self.clock.getDelayedCalls(), [])
        again = LogWriter(self.path, Limits())
        self.assertEqual(again.open().read, 0)
        again.close()

    def test_reopen(self) -> None:
        """It goes on in a new file between two commits."""
        store = self.make_store()
        verdict = self.append(store, 1, b"a")
        self.clock.advance(0)
        store.reopen()
        self.settle(store)
        self.assertEqual(self.successResultOf(verdict), STORED)
        self.path.rename(self.path.with_name("old"))
        store.reopen()
        self.settle(store)
        self.assertEqual(self.path.read_bytes(), b"")
        self.append(store, 2, b"b")
        self.settle(store)
        self.assertEqual([body for *_, body in self.stored(store)], [b"b"])

    def test_ticks(self) -> None:
        """The writer is asked now and then what is due, but not in the middle of a commit."""
        store = self.make_store()
        self.clock.advance(1)
        self.assertEqual(len(self.worker._work), 1)
        self.settle(store)
        self.append(store, 1, b"a")
        self.clock.advance(0)
        self.clock.advance(5)
        self.assertEqual(len(self.worker._work), 1)
        self.settle(store)
        self.assertEqual(len(self.stored(store)), 1)
