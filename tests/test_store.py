"""The stores, against the contract; and what the file store does besides."""

from __future__ import annotations

import errno
import sqlite3
from contextlib import closing
from pathlib import Path
from uuid import UUID

from twisted.internet.defer import Deferred
from twisted.internet.task import Clock
from twisted.internet.testing import EventLoggingObserver
from twisted.logger import LogLevel, formatEvent, globalLogPublisher
from twisted.trial.unittest import SynchronousTestCase

from msglog import FileStore, Limits, NackCode, StoreFailed, parse_line
from msglog._batch import STORED
from msglog._bundle import Bundle, Exceptions
from msglog._records import format_lines
from msglog._rotation_rule import RotationRule
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
    def make_store(
        self, sync: float = 0.0, rotation: RotationRule | None = None, **limits
    ) -> FileStore:
        self.path = Path(self.mktemp())
        self.clock = Clock()
        self.clock.advance(1000.0)
        self.disk = FaultyDisk()
        self.worker = StepWorker()
        self.failures: list[StoreFailed] = []
        made = Limits(**limits)
        store = FileStore(
            self.clock,
            self.path,
            made,
            sync,
            on_failure=self.failures.append,
            writer=LogWriter(
                self.path,
                made,
                sync,
                rotation=rotation,
                disk=self.disk,
                clock=lambda: 1e6,
                monotonic=lambda: 0.0,
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
        steps = 0
        while self.worker.step():
            self.clock.advance(0)
            steps += 1
            self.assertLess(steps, 1000, "a store that never comes to rest")


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
        """One slow sync, and it is the thread's again until the disk has been quick again."""
        store = self.make_store()
        be_quick(store)
        self.successResultOf(self.append(store, 1, b"x"))
        store.writer.quickness.note(0.006)
        verdict = self.append(store, 2, b"x")
        self.assertNoResult(verdict)
        self.worker.step()
        self.assertEqual(self.successResultOf(verdict), STORED)

    def test_quick_again(self) -> None:
        """
        A thread waits for the interpreter besides, so that it takes longer is not the disk's
        fault; but in the reactor's own thread nothing else excuses it.
        """
        quickness = self.make_store().writer.quickness
        for _ in range(15):
            quickness.note(0.014)
        self.assertFalse(quickness.lately)
        quickness.note(0.016)
        for _ in range(15):
            quickness.note(0.014)
        self.assertFalse(quickness.lately)
        quickness.note(0.014)
        self.assertTrue(quickness.lately)
        quickness.note(0.004)
        self.assertTrue(quickness.lately)
        quickness.note(0.006)
        self.assertFalse(quickness.lately)

    def test_the_writer_measures(self) -> None:
        """It notes how long the disk takes, by the clock that it was given, and nothing else."""
        store = self.make_store()
        be_quick(store)
        clock = Clock()
        store.writer._monotonic = clock.seconds

        def slow(owner: object, name: str, seconds: float) -> None:
            call = getattr(owner, name)
            self.patch(owner, name, lambda *args: clock.advance(seconds) or call(*args))

        slow(store.writer.ledger, "admit", 1.0)
        self.append(store, 1, b"x")
        self.assertTrue(store.writer.quickness.lately)
        slow(self.disk, "write", 0.003)
        self.append(store, 2, b"x")
        self.assertTrue(store.writer.quickness.lately)
        slow(self.disk, "sync", 0.003)
        self.append(store, 3, b"x")
        self.assertFalse(store.writer.quickness.lately)

    def test_another_thread_sees_a_stall(self) -> None:
        """While the reactor waits for the disk itself, others may know for how long."""
        store = self.make_store()
        be_quick(store)
        sync, seen = self.disk.sync, []

        def hang(fd: int) -> None:
            self.clock.rightNow += 7
            seen.append(store.in_place_seconds)
            sync(fd)

        self.patch(self.disk, "sync", hang)
        self.assertEqual(store.in_place_seconds, 0)
        self.successResultOf(self.append(store, 1, b"x"))
        self.assertEqual((seen[0], store.in_place_seconds), (7, 0))

    def test_a_slow_ledger(self) -> None:
        """What a commit waits for is the ledger's file too, be it for questions alone."""
        store = self.make_store()
        be_quick(store)
        clock = Clock()
        writer = store.writer
        writer._monotonic = clock.seconds
        load = writer._checkpointer.load
        self.patch(
            writer._checkpointer, "load", lambda client: clock.advance(0.002) or load(client)
        )

        def ask(count: int) -> bool:
            for n in range(count):
                store.last(n.to_bytes(16, "big"))
            self.clock.advance(0)
            return writer.quickness.lately

        self.assertTrue(ask(2))
        self.assertTrue(ask(2))
        self.assertFalse(ask(3))
        for _ in range(20):
            self.worker.step()
            self.assertFalse(ask(1))  # and that this took no longer is no reason

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

    def test_many_questions(self) -> None:
        """Each may be for a client that has to be read from the disk: many are the thread's."""
        store = self.make_store()
        be_quick(store)
        for count, works in ((2048, 0), (2049, 1)):
            answers = [store.last(n.to_bytes(16, "big")) for n in range(count)]
            self.clock.advance(0)
            self.assertEqual(len(self.worker._work), works)
            self.settle(store)
            self.assertEqual([self.successResultOf(answer) for answer in answers], [0] * count)

    def test_together_over_the_limit(self) -> None:
        """Batches that are under the limit each, and together over it, are the thread's."""
        store = self.make_store(in_place_bytes=1000)
        be_quick(store)
        for n in (1, 2):
            store.append(make_batch(A, n, b"x" * 600), lambda _: None)
        verdict = self.append(store, 3, b"x" * 600)
        self.assertNoResult(verdict)
        self.worker.step()
        self.assertEqual(self.successResultOf(verdict), STORED)

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

    def test_not_a_sync_of_many(self) -> None:
        """With --sync SECONDS the sync of all that was written meanwhile is the thread's."""
        store = self.make_store(sync=10.0)
        be_quick(store)
        clock = Clock()
        store.writer._monotonic = clock.seconds
        self.successResultOf(self.append(store, 1, b"x"))
        for n in (2, 3):  # the first of a file is synced with it
            self.successResultOf(self.append(store, n, b"x"))
        clock.advance(6)
        verdict = self.append(store, 4, b"x")
        self.assertNoResult(verdict)
        self.settle(store)
        self.assertEqual(self.successResultOf(verdict), STORED)
        self.assertEqual(self.disk.calls[-2:], ["write", "sync"])
        self.successResultOf(self.append(store, 5, b"x"))

    def test_not_a_rotation(self) -> None:
        """A new file waits for the whole ledger, which is the thread's, until it has failed."""
        store = self.make_store(rotation=RotationRule(max_bytes=200))
        be_quick(store)
        for n in (1, 2):
            self.successResultOf(self.append(store, n, b"x"))
        verdict = self.append(store, 3, b"x")
        self.assertNoResult(verdict)
        self.settle(store)
        self.assertEqual(self.successResultOf(verdict), STORED)
        self.assertEqual(len(self.stored(store)), 1)
        self.disk.errors["rename"] = errno.EIO
        self.successResultOf(self.append(store, 4, b"x"))
        self.append(store, 5, b"x")
        self.settle(store)
        self.successResultOf(self.append(store, 6, b"x"))

    def test_verdicts_come_in_order(self) -> None:
        """What gathered behind a commit of the thread's is judged after it, in place or not."""
        store = self.make_store()
        seen: list[int] = []
        store.append(make_batch(A, 1, b"x"), lambda _: seen.append(1))
        self.clock.advance(0)
        be_quick(store)
        store.append(make_batch(A, 2, b"x"), lambda _: seen.append(2))
        self.worker.step()
        self.clock.advance(0)
        self.assertEqual(seen, [1, 2])

    def test_one_after_the_other(self) -> None:
        """However many commits it takes for what waits, each is made by itself."""
        store = self.make_store(max_commit_bytes=1)
        be_quick(store)
        verdicts = [appended(store, make_batch(A, n, b"x")) for n in range(1, 501)]
        self.settle(store)
        self.assertEqual([self.successResultOf(verdict) for verdict in verdicts], [STORED] * 500)

    def test_stopped_by_a_verdict(self) -> None:
        """Who stops the store on a verdict changes nothing of the order of the others."""
        store = self.make_store()
        be_quick(store)
        seen: list[int] = []

        def first(_: object) -> None:
            seen.append(1)
            store.append(make_batch(A, 3, b"x"), lambda _: seen.append(3))
            store.stopService()

        store.append(make_batch(A, 1, b"x"), first)
        store.append(make_batch(A, 2, b"x"), lambda _: seen.append(2))
        self.settle(store)
        self.assertEqual(seen, [1, 2, 3])
        self.assertTrue(self.worker.stopped)

    def test_asked_for_more_by_a_verdict(self) -> None:
        """Who hears a verdict may ask for more: it is done in its turn, and all is answered."""
        store = self.make_store()
        reopened = []
        store.append(make_batch(A, 1, b"x"), lambda _: reopened.append(store.reopen()))
        self.clock.advance(0)
        be_quick(store)
        second = appended(store, make_batch(A, 2, b"x"))
        self.worker.step()
        self.assertNoResult(second)
        self.assertEqual(len(self.worker._work), 1)
        self.settle(store)
        self.successResultOf(reopened[0])
        self.assertEqual(self.successResultOf(second), STORED)

    def test_what_waited_for_a_failure(self) -> None:
        """After a failure and a start nothing waits, so what just fits is made in place."""
        batch = make_batch(A, 1, b"x" * 100)
        size = self.make_store().append(batch, lambda _: None)
        store = self.make_store(in_place_bytes=size)
        self.disk.errors = {"write": errno.EIO}
        store.append(batch, lambda _: None)
        self.clock.advance(0)
        store.append(make_batch(A, 2, b"y"), lambda _: None)
        store.stopService()
        self.settle(store)
        self.disk.errors = {}
        store.startService()
        be_quick(store)
        self.assertEqual(self.successResultOf(self.append(store, 1, b"x" * 100)), STORED)

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

    def test_one_call_a_turn(self) -> None:
        """What arrives costs the reactor one call in a turn, and none while a commit is written."""
        store = self.make_store()
        idle = len(self.clock.getDelayedCalls())
        for n in (1, 2, 3):
            self.append(store, n, b"x")
        self.assertEqual(len(self.clock.getDelayedCalls()), idle + 1)
        self.clock.advance(0)
        store.last(A)
        self.assertEqual(len(self.clock.getDelayedCalls()), idle)

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

    def test_a_tick_goes_on_while_more_is_due(self) -> None:
        """What is due is done in steps, one after the other, while there is nothing to commit."""
        store = self.make_store()
        results = iter([True, True, False])
        ticks = []
        self.patch(store.writer, "tick", lambda: (ticks.append(1), next(results))[1])
        self.clock.advance(1)
        self.assertEqual(len(ticks), 0)
        self.settle(store)
        self.assertEqual(len(ticks), 3)

    def test_a_commit_comes_before_the_next_step(self) -> None:
        """What was appended during a step is written before another is begun."""
        store = self.make_store()
        self.patch(store.writer, "tick", lambda: True)
        self.clock.advance(1)
        verdict = self.append(store, 1, b"x")
        self.clock.advance(0)
        self.assertEqual(len(self.worker._work), 1)
        self.worker.step()
        self.worker.step()
        self.assertEqual(self.successResultOf(verdict), STORED)
        self.assertEqual(self.worker._work, [])

    def test_an_idle_tick_that_fails(self) -> None:
        """A failed step is fail-stop, with the reason; no further step is begun."""
        store = self.make_store()

        def tick() -> bool:
            raise StoreFailed("the disk is gone")

        stored = self.append(store, 1, b"x")
        self.settle(store)
        self.assertEqual(self.successResultOf(stored), STORED)
        self.patch(store.writer, "tick", tick)
        self.clock.advance(1)
        self.settle(store)
        self.assertEqual([str(failure) for failure in self.failures], ["the disk is gone"])
        self.assertIs(store.failed, self.failures[0])
        self.assertEqual(self.worker._work, [])
        (refusal,) = self.successResultOf(self.append(store, 2, b"x")).refusals
        self.assertEqual(refusal.code, NackCode.NOT_STORED)
        self.assertEqual(refusal.reason, "the log has failed and waits for a restart")
        self.assertEqual(refusal.expected, 0)

    def test_a_stop_behind_a_failure(self) -> None:
        """A stop that waits for a commit ends when that has failed, too."""
        store = self.make_store()
        self.disk.errors = {"sync": errno.EIO}
        verdict = self.append(store, 1, b"x")
        self.clock.advance(0)
        stopped = store.stopService()
        self.assertNoResult(stopped)
        self.settle(store)
        self.successResultOf(stopped)
        self.assertEqual(self.successResultOf(verdict).refusals[0].code, NackCode.NOT_STORED)
        self.assertTrue(self.worker.stopped)

    def test_a_failure_is_said(self) -> None:
        """The log has one line for people with the reason, and of a defect the traceback."""
        store = self.make_store()
        said = EventLoggingObserver()
        globalLogPublisher.addObserver(said)
        self.addCleanup(globalLogPublisher.removeObserver, said)
        store._writer._write = lambda data: 1 / 0
        self.append(store, 1, b"x")
        self.settle(store)
        lines = [(event["log_level"], formatEvent(event)) for event in said]
        self.assertEqual(
            lines,
            [
                (LogLevel.critical, "the log's writer failed"),
                (LogLevel.critical, f"{self.failures[0]}; the log takes nothing more"),
            ],
        )
        self.assertEqual(len(self.flushLoggedErrors(ZeroDivisionError)), 1)

    def test_how_often_ticks_come(self) -> None:
        """Each second, and four times within the seconds of C{sync} if those are fewer."""
        for sync, every in ((0.0, 1.0), (2.0, 0.5), (60.0, 1.0)):
            store = self.make_store(sync=sync)
            self.clock.advance(every - 0.01)
            self.assertEqual(len(self.worker._work), 0)
            self.clock.advance(0.02)
            self.assertEqual(len(self.worker._work), 1)
            store._ticks.stop()

    def test_no_one_to_tell(self) -> None:
        """A store may fail without C{on_failure}."""
        store = self.make_store()
        store._on_failure = None
        self.disk.errors = {"sync": errno.EIO}
        verdict = self.append(store, 1, b"x")
        self.settle(store)
        self.assertEqual(self.successResultOf(verdict).refusals[0].code, NackCode.NOT_STORED)

    def test_a_defect_is_told(self) -> None:
        """The reason of a failure that nobody thought of names the error."""
        store = self.make_store()
        store._writer._write = lambda data: 1 / 0
        self.append(store, 1, b"x")
        self.settle(store)
        self.assertIn("ZeroDivisionError", str(self.failures[0]))
        self.assertEqual(len(self.flushLoggedErrors(ZeroDivisionError)), 1)

    def test_a_verdict_that_is_not_taken(self) -> None:
        """A defect of one who asked is logged, and the others have their answers."""
        store = self.make_store()

        def judged(verdict: object) -> None:
            raise LookupError("a defect")

        said = EventLoggingObserver()
        globalLogPublisher.addObserver(said)
        self.addCleanup(globalLogPublisher.removeObserver, said)
        store.append(make_batch(A, 1, b"x"), judged)
        verdict = self.append(store, 2, b"y")
        self.settle(store)
        self.assertEqual(self.successResultOf(verdict), STORED)
        self.assertEqual(
            [formatEvent(event) for event in said],
            ["a verdict was not taken by what had asked for it"],
        )
        self.assertEqual(len(self.flushLoggedErrors(LookupError)), 1)
        verdict = self.append(store, 3, b"z")
        self.settle(store)
        self.assertEqual(self.successResultOf(verdict), STORED)

    def test_judged_in_part(self) -> None:
        """A writer that does not judge all that it was given is a defect that is heard of."""
        store = self.make_store()
        commit = store.writer.commit
        self.patch(store.writer, "commit", lambda entries: commit(entries)[:-1])
        first, second = self.append(store, 1, b"x"), self.append(store, 2, b"y")
        self.clock.advance(0)
        self.assertRaises(ValueError, self.worker.step)
        self.assertEqual(self.successResultOf(first), STORED)
        self.assertNoResult(second)

    def test_closed(self) -> None:
        """A store that is not started, or stopped, takes nothing and knows nothing."""
        store = self.make_store()
        self.successResultOf(self.stop(store))
        (refusal,) = self.successResultOf(self.append(store, 1, b"x", b"y")).refusals
        self.assertEqual(
            (refusal.start, refusal.stop, refusal.code, refusal.expected),
            (0, 2, NackCode.UNAVAILABLE, 0),
        )
        self.assertEqual(refusal.reason, "the log is closed")
        self.assertIsNone(self.successResultOf(store.last(A)))
        self.assertEqual(store.append(make_batch(A, 1, b"x"), lambda verdict: None), 0)
        self.assertEqual((self.worker._work, self.clock.getDelayedCalls()), ([], []))

    def stop(self, store: FileStore):
        stopped = store.stopService()
        self.settle(store)
        return stopped

    def test_stopped_twice(self) -> None:
        """Whoever stops it is told when it is stopped, also if it is already."""
        store = self.make_store()
        self.append(store, 1, b"x")
        self.clock.advance(0)
        first, second = store.stopService(), store.stopService()
        self.assertNoResult(first)
        self.settle(store)
        self.successResultOf(first)
        self.successResultOf(second)
        self.successResultOf(store.stopService())
        store.reopen()
        store._tick()
        self.assertEqual(self.worker._work, [])

    def test_a_stop_that_fails(self) -> None:
        """If the disk fails in the end, that is said, and the stop ends all the same."""
        store = self.make_store()

        def close() -> None:
            raise StoreFailed("no")

        close_really = store.writer.close
        self.patch(store.writer, "close", close)
        self.successResultOf(self.stop(store))
        self.assertEqual([str(failure) for failure in self.failures], ["no"])
        self.assertTrue(self.worker.stopped)
        close_really()

    def test_reopened(self) -> None:
        """Everyone who asked is told when it is done, in the order of asking; and not before."""
        store = self.make_store()
        verdict = self.append(store, 1, b"x")
        self.clock.advance(0)
        first, second = store.reopen(), store.reopen()
        self.worker.step()
        self.successResultOf(verdict)
        self.assertNoResult(first)
        self.worker.step()
        self.successResultOf(first)
        self.successResultOf(second)
        self.assertEqual(self.worker._work, [])

    def test_reopening_fails(self) -> None:
        """Nobody is told that it is done if the disk failed, and nobody after that."""
        store = self.make_store()
        self.path.rename(self.path.with_name("moved"))
        self.disk.errors = {"open": errno.EIO}
        done = store.reopen()
        self.settle(store)
        self.assertNoResult(done)
        self.assertEqual(len(self.failures), 1)
        self.assertNoResult(store.reopen())
        self.assertEqual(self.worker._work, [])

    def test_asking(self) -> None:
        """What is asked is answered when all that was appended before is judged."""
        store = self.make_store()
        self.append(store, 1, b"x", b"y")
        after = store.last(A)
        self.assertNoResult(after)
        self.settle(store)
        self.assertEqual(self.successResultOf(after), 2)
        alone = store.last(A)
        self.settle(store)
        self.assertEqual(self.successResultOf(alone), 2)


class GatheringTest(FileCase):
    def bundle(self, client: bytes, first: int, body: bytes) -> Bundle:
        batch = make_batch(client, first, body)
        lines = format_lines(batch)
        return Bundle([client], [first], [1], batch.checksums, [lines], len(lines))

    def test_waits_until_told(self) -> None:
        """Bundles are one commit, begun when it is said that these were all."""
        store = self.make_store()
        self.disk.calls.clear()
        judged: list[Exceptions] = []
        store.append_bundle(self.bundle(A, 1, b"x"), judged.append)
        store.append_bundle(self.bundle(B, 1, b"y"), judged.append)
        self.clock.advance(0)
        self.assertEqual(self.worker._work, [])
        store.commit()
        last = store.last(A)
        self.assertEqual(len(self.worker._work), 1)
        self.worker.step()
        self.assertEqual(self.disk.calls.count("sync"), 1)
        self.assertEqual(list(map(list, judged)), [[], []])
        self.assertEqual(self.stored(store), [(A, 1, b"x"), (B, 1, b"y")])
        self.settle(store)
        self.assertEqual(self.successResultOf(last), 1)

    def test_nothing_gathered(self) -> None:
        """A round that brought nothing is no commit."""
        store = self.make_store()
        be_quick(store)
        self.disk.calls.clear()
        store.commit()
        self.assertEqual((self.worker._work, self.disk.calls), ([], []))

    def test_beside_a_commit(self) -> None:
        """What is handed over while a commit is in the thread follows it."""
        store = self.make_store()
        first = appended(store, make_batch(A, 1, b"x"))
        self.clock.advance(0)
        judged: list[Exceptions] = []
        store.append_bundle(self.bundle(A, 2, b"y"), judged.append)
        store.commit()
        self.assertEqual(len(self.worker._work), 1)
        self.settle(store)
        self.assertEqual(self.successResultOf(first), STORED)
        self.assertEqual(list(map(list, judged)), [[]])

    def test_told_sooner(self) -> None:
        """A commit that was due at the end of the turn is begun at once, and only once."""
        store = self.make_store()
        self.disk.calls.clear()
        verdict = appended(store, make_batch(A, 1, b"x"))
        store.commit()
        self.settle(store)
        self.assertEqual(self.successResultOf(verdict), STORED)
        self.assertEqual(self.disk.calls.count("sync"), 1)
        later = appended(store, make_batch(A, 2, b"y"))
        self.settle(store)
        self.assertEqual(self.successResultOf(later), STORED)


class BoundsTest(FileCase):
    def commits(self, lines: int, limit: int) -> list[int]:
        """How many entries each commit had, of batches whose lines are of a length."""
        store = self.make_store(max_commit_bytes=limit)
        many: list[int] = []
        commit = store.writer.commit
        self.patch(store.writer, "commit", lambda e: (many.append(len(e)), commit(e))[1])
        verdicts = []
        size = 0
        for n in range(1, 8):
            batch = make_batch(A, n, b"x" * lines)
            verdict = Deferred()
            size = store.append(batch, verdict.callback)
            verdicts.append(verdict)
        self.size = size
        self.settle(store)
        self.assertEqual([self.successResultOf(verdict) for verdict in verdicts], [STORED] * 7)
        return many

    def test_by_bytes(self) -> None:
        """A commit ends with the entry that reaches the limit; each counts 1 KiB besides."""
        self.commits(300, 1 << 20)
        each = self.size + 1024
        self.assertEqual(self.commits(300, 3 * each), [3, 3, 1])
        self.assertEqual(self.commits(300, 3 * each + 1), [4, 3])
        self.assertEqual(self.commits(300, 7 * each + 1), [7])
        self.assertEqual(self.commits(300, 7 * each), [7])
        self.assertEqual(self.commits(300, 2 * each), [2, 2, 2, 1])

    def test_what_waits_counts(self) -> None:
        """What is left for the next commit decides whether that one is small."""
        store = self.make_store(in_place_bytes=700)
        self.assertGreater(store.append(make_batch(A, 1, b"x" * 300), lambda _: None), 350)
        store.append(make_batch(A, 2, b"x" * 300), lambda _: None)
        self.clock.advance(0)
        be_quick(store)
        verdict = appended(store, make_batch(A, 3, b"x" * 100))
        self.worker.step()
        self.clock.advance(0)
        self.assertEqual(self.successResultOf(verdict), STORED)
        self.assertEqual(self.worker._work, [])


class FiguresTest(FileCase):
    def test_how_long_the_disk_is_busy(self) -> None:
        """While it works the time since it began, and else 0, also if the clock is set back."""
        store = self.make_store()
        self.assertEqual(store.busy_seconds, 0.0)
        self.clock.advance(7)
        self.settle(store)
        appended(store, make_batch(A, 1, b"x"))
        self.clock.advance(0)
        self.clock.rightNow += 3
        self.assertEqual(store.busy_seconds, 3.0)
        self.assertEqual(store.figures().busy_seconds, 3.0)
        self.clock.rightNow -= 100
        self.assertEqual(store.busy_seconds, 0.0)
        self.clock.rightNow += 100
        self.settle(store)
        self.assertEqual(store.busy_seconds, 0.0)

    def test_what_it_says_of_itself(self) -> None:
        """Its figures are those of the log, its commits, its disk and its ledger."""
        store = self.make_store()
        self.disk.free = 123_456_789
        appended(store, make_batch(A, 1, b"x", b"y"))
        appended(store, make_batch(B, 1, b"z"))
        self.settle(store)
        figures = store.figures()
        size = self.path.stat().st_size
        self.assertEqual((figures.records, figures.log_bytes, figures.log_size), (3, size, size))
        self.assertEqual(figures.commit_messages.total, 3)
        self.assertEqual(figures.durable_time, 1e6)
        self.assertEqual((figures.ledger_clients, figures.ledger_dirty), (2, 2))
        self.assertEqual(figures.ledger_bytes, store.writer.ledger.memory)
        self.assertFalse(figures.failed)
        self.assertEqual(figures.recovered.records, 0)
        self.assertEqual(figures.disk_size, store.writer.space.size)
        self.assertEqual(figures.disk_free, store.writer.space.free)
        self.assertEqual((figures.disk_low, figures.times_low), (False, 0))
        self.disk.errors = {"sync": errno.EIO}
        appended(store, make_batch(A, 3, b"x"))
        self.settle(store)
        self.assertTrue(store.figures().failed)

    def test_where_and_what(self) -> None:
        """It names its file and gives the last lines, up to an end that is no torn record."""
        store = self.make_store()
        self.assertEqual((store.title, store.log_end()), (str(self.path), 0))
        self.assertEqual(store.last_lines(0), [])
        appended(store, make_batch(A, 1, b"x", b"y"))
        self.settle(store)
        end = store.log_end()
        self.assertEqual(end, self.path.stat().st_size)
        with self.path.open("ab") as file:
            file.write(b"more")
        self.assertEqual([parse_line(line).body for line in store.last_lines(end)], [b"x", b"y"])

    def test_recovery_is_timed_and_told(self) -> None:
        """A start says what it found, and how long that took."""
        store = self.make_store()
        appended(store, make_batch(A, 1, b"x", b"y"))
        self.settle(store)
        store.stopService()
        self.settle(store)
        for ledger in self.path.parent.glob(self.path.name + ".ledger*"):
            ledger.unlink()
        open_really = store.writer.open

        def slowly():
            self.clock.rightNow += 5
            return open_really()

        self.patch(store.writer, "open", slowly)
        said = EventLoggingObserver()
        globalLogPublisher.addObserver(said)
        self.addCleanup(globalLogPublisher.removeObserver, said)
        self.assertEqual(store.running, 0)
        store.startService()
        self.assertEqual(store.running, 1)
        self.assertEqual(store.recovery_seconds, 5.0)
        self.assertEqual(store.recovered.records, 2)
        self.assertEqual(store.figures().recovery_seconds, 5.0)
        self.assertIs(store.figures().recovered, store.recovered)
        size = self.path.stat().st_size
        self.assertIn(
            f"writing {self.path}: {size} bytes, of which 2 records ({size} bytes) were read to "
            "bring the ledger up to date",
            [formatEvent(event) for event in said],
        )
        store.stopService()
        self.settle(store)
        self.assertEqual(store.running, 0)

    def test_a_doubtful_disk(self) -> None:
        """A file system that keeps nothing is warned of at the start, and known ever after."""
        store = self.make_store()
        store.stopService()
        self.settle(store)
        self.patch(self.disk, "doubt", lambda folder: f"in memory, {folder.name}")
        said = EventLoggingObserver()
        globalLogPublisher.addObserver(said)
        self.addCleanup(globalLogPublisher.removeObserver, said)
        store.startService()
        doubt = f"in memory, {self.path.parent.name}"
        (line,) = [formatEvent(event) for event in said if "doubt" in event]
        self.assertEqual(line, f"the log is {doubt} ('msglog probe' tries a disk)")
        self.assertIn(doubt, str(store.figures().store_warnings))
        store.stopService()
        self.settle(store)

    def test_a_damaged_row(self) -> None:
        """
        A client of whom the ledger is damaged has nothing taken, others have; and it is known ever
        after.
        """
        store = self.make_store()
        for client in (A, B):
            appended(store, make_batch(client, 1, b"x"))
        store.stopService()
        self.settle(store)
        with closing(sqlite3.connect(f"{self.path}.ledger")) as ledger:
            ledger.execute("UPDATE clients SET last = 0 WHERE client = ?", (A,))
            ledger.commit()
        store.startService()
        self.settle(store)
        self.assertEqual(store.figures().store_warnings, ())
        verdicts = [appended(store, make_batch(client, 1, b"x", b"y")) for client in (A, B)]
        self.settle(store)
        (refusal,) = self.successResultOf(verdicts[0]).refusals
        self.assertEqual((refusal.start, refusal.stop), (0, 2))
        self.assertEqual(refusal.code, NackCode.NOT_STORED)
        self.assertEqual(self.successResultOf(verdicts[1]), STORED)
        self.assertEqual(len(self.stored(store)), 3)
        (warning,) = store.figures().store_warnings
        self.assertIn(f"the ledger is damaged: what it has of client {UUID(bytes=A)}", warning)
        store.stopService()
        self.settle(store)

    def test_a_ledger_that_is_gone(self) -> None:
        """That it was moved away is said, once in a while, and is over when it is back."""
        store = self.make_store()
        clock = Clock()
        store.writer._checkpointer._monotonic = clock.seconds
        said = EventLoggingObserver()
        globalLogPublisher.addObserver(said)
        self.addCleanup(globalLogPublisher.removeObserver, said)
        ledger = Path(f"{self.path}.ledger")
        aside = ledger.rename(f"{ledger}.aside")

        def look_for(seconds: float) -> int:
            before = len([event for event in said if event.get("ledger") == str(ledger)])
            for _ in range(round(seconds)):
                clock.advance(1)
                store.writer.tick()
            return len([event for event in said if event.get("ledger") == str(ledger)]) - before

        self.assertEqual(look_for(120), 2)
        self.assertEqual(
            store.figures().store_warnings, ("the ledger was deleted, moved away or replaced",)
        )
        aside.rename(ledger)
        self.assertEqual(look_for(120), 0)
        self.assertEqual(store.figures().store_warnings, ())
        # Other damage is not over for that.
        store.writer._checkpointer.damage = "is damaged: page 7"
        look_for(10)
        self.assertEqual(store.figures().store_warnings, ("the ledger is damaged: page 7",))
        ledger.rename(aside)
        ledger.write_bytes(b"")
        look_for(10)
        self.assertTrue(store.figures().store_warnings)
        # What took its place has nothing to do with this one any more, nor this one with the log.
        aside.rename(ledger)
        look_for(10)
        self.assertTrue(store.figures().store_warnings)
        store.stopService()
        self.settle(store)

    def test_window(self) -> None:
        """It compares resends with as many messages as its limits say."""
        self.assertEqual(self.make_store(window=7).window, 7)

    def test_by_itself(self) -> None:
        """With nothing but a path it has its own writer and thread, and the default limits."""
        reactor = Clock()
        told = []
        store = FileStore(
            reactor, Path(self.mktemp()), worker=lambda r: told.append(r) or StepWorker()
        )
        self.assertEqual(store.window, Limits().window)
        store.startService()
        self.assertEqual(told, [reactor])
        self.addCleanup(store._writer._abandon)
        self.addCleanup(store._ticks.stop)
        self.assertEqual(store.title, str(store.writer.path))

    def test_its_own_writer(self) -> None:
        """It waits for the disk before each answer unless told otherwise, and rotates by rule."""
        for told, waits, rotated in (
            ({}, [1, 2, 3], 0),
            ({"sync": 60.0}, [1], 0),  # a new file is waited for
            ({"rotation": RotationRule(max_bytes=1)}, [1, 2, 3], 2),
        ):
            path = Path(self.mktemp())
            clock = Clock()
            syncs, waited = [], []
            store = FileStore(clock, path, worker=StepWorker, **told)
            store.startService()
            self.addCleanup(store.writer._abandon)
            self.addCleanup(store._ticks.stop)
            self.patch(store.writer._disk, "sync", syncs.append)
            for n in (1, 2, 3):
                verdict = appended(store, make_batch(A, n, b"x"))
                clock.advance(0)
                store._worker.step()
                self.assertEqual(self.successResultOf(verdict), STORED)
                if syncs:
                    waited.append(n)
                syncs.clear()
            self.assertEqual(waited, waits)
            self.assertEqual(len(list(path.parent.glob(path.name + ".2*Z"))), rotated)

    def test_before_its_start(self) -> None:
        """A store that was never started takes nothing, has not failed and has found nothing."""
        store = FileStore(Clock(), Path(self.mktemp()))
        (refusal,) = self.successResultOf(appended(store, make_batch(A, 1, b"x"))).refusals
        self.assertEqual(refusal.code, NackCode.UNAVAILABLE)
        self.assertIsNone(store.failed)
        self.assertIsNone(store.recovered)
        self.assertEqual((store.recovery_seconds, store.busy_seconds), (0.0, 0.0))
        self.assertEqual(store.figures().store_warnings, ())
        self.assertNoResult(store.reopen())
        self.successResultOf(store.stopService())
