"""Who is alive, who is ready, and telling systemd so."""

from __future__ import annotations

import os
from pathlib import Path
from threading import Event

from attrs import evolve
from twisted.internet.task import Clock
from twisted.logger import LogLevel, formatEvent, globalLogPublisher
from twisted.trial.unittest import SynchronousTestCase

from msglog import FileStore, Limits, MessageLogFactory, MessageLogService
from msglog._figures import Figures, read_figures
from msglog._health import Health, judge, judge_waiting
from msglog._notify import Supervision
from msglog._writer import LogWriter
from msglog.testing import FaultyDisk, StepWorker, appended, make_batch

A = bytes(range(16))


class Bench:
    """A store and a factory without threads or sockets."""

    def __init__(self, case: SynchronousTestCase, **limits) -> None:
        self.clock = Clock()
        self.clock.advance(1_000_000)
        self.disk = FaultyDisk()
        self.worker = StepWorker()
        self.limits = Limits(**limits)
        self.path = Path(case.mktemp())
        self.store = FileStore(
            self.clock,
            self.path,
            self.limits,
            writer=LogWriter(
                self.path,
                self.limits,
                disk=self.disk,
                clock=self.clock.seconds,
                monotonic=self.clock.seconds,
            ),
            worker=lambda reactor: self.worker,
        )
        self.factory = MessageLogFactory(self.clock, self.store, self.limits)
        case.addCleanup(self.store._writer._abandon)
        case.addCleanup(lambda: self.store._ticks.running and self.store._ticks.stop())

    def settle(self) -> None:
        self.clock.advance(0)
        while self.worker.step():
            self.clock.advance(0)

    def figures(self) -> Figures:
        return read_figures(self.store, self.factory)

    def health(self, listening: bool = True) -> Health:
        now = self.clock.seconds()
        return judge(self.figures(), self.limits, listening=listening, now=now)


class JudgeTest(SynchronousTestCase):
    def started(self, **limits) -> Bench:
        bench = Bench(self, **limits)
        bench.store.startService()
        return bench

    def test_ready(self) -> None:
        """Recovered and listening is ready, without warnings."""
        health = self.started(min_free_bytes=0).health()
        self.assertEqual(health, Health((), (), ()))
        self.assertTrue(health.live and health.ready)
        self.assertEqual(health.word, "ready")

    def test_doubtful_disk(self) -> None:
        """A log on what may not keep it is ready, and warned of, in the server's own log too."""
        bench = Bench(self, min_free_bytes=0)
        bench.disk.against = "on tmpfs, which is memory"
        told = []
        globalLogPublisher.addObserver(told.append)
        self.addCleanup(globalLogPublisher.removeObserver, told.append)
        bench.store.startService()
        self.assertEqual(bench.health().word, "ready; the log is on tmpfs, which is memory")
        warned = [formatEvent(e) for e in told if e["log_level"] is LogLevel.warn]
        self.assertEqual(len(warned), 1)
        self.assertIn("the log is on tmpfs, which is memory", warned[0])

    def test_not_recovered(self) -> None:
        """Before the log is recovered it is alive and not ready."""
        health = Bench(self).health()
        self.assertEqual((health.live, health.ready), (True, False))
        self.assertIn("not recovered", health.word)

    def test_not_listening(self) -> None:
        """Without a port it is not ready."""
        health = self.started().health(listening=False)
        self.assertEqual((health.live, health.ready), (True, False))

    def test_stalled_disk(self) -> None:
        """A commit that takes too long makes it not ready, and never not alive."""
        bench = self.started(stalled_seconds=5)
        appended(bench.store, make_batch(A, 1, b"x"))
        bench.clock.advance(0)
        bench.clock.advance(4.9)
        self.assertTrue(bench.health().ready)
        bench.clock.advance(0.1)
        health = bench.health()
        self.assertIn("has not answered for 5 s", health.word)
        bench.clock.advance(86400)
        self.assertEqual((bench.health().live, bench.health().ready), (True, False))
        bench.settle()
        self.assertTrue(bench.health().ready)

    def test_fail_stop(self) -> None:
        """After a fail-stop it is neither."""
        bench = self.started()
        bench.disk.errors["sync"] = 5
        appended(bench.store, make_batch(A, 1, b"x"))
        bench.settle()
        health = bench.health()
        self.assertEqual((health.live, health.ready), (False, False))
        self.assertIn("disk has failed", health.word)

    def test_no_room(self) -> None:
        """Without room it is not ready, until a commit succeeds."""
        bench = self.started(min_free_bytes=1000)
        bench.disk.room, bench.disk.free = 0, 10
        bench.clock.advance(1)
        appended(bench.store, make_batch(A, 1, b"x"))
        bench.settle()
        bench.clock.advance(600)
        self.assertIn("no room", bench.health().not_ready[0])
        bench.disk.room, bench.disk.free = None, 5000
        bench.clock.advance(1)
        appended(bench.store, make_batch(A, 1, b"x"))
        bench.settle()
        self.assertEqual(bench.health(), Health((), (), ()))

    def test_room_again_without_traffic(self) -> None:
        """
        Who is sent nothing because it is not ready would never find out: with space free again, an
        old refusal is forgiven.
        """
        bench = self.started(min_free_bytes=1000)
        bench.disk.room, bench.disk.free = 0, 5000  # as a quota: nothing is seen of it
        appended(bench.store, make_batch(A, 1, b"x"))
        bench.settle()
        self.assertFalse(bench.health().ready)
        bench.clock.advance(30)
        self.assertTrue(bench.health().ready)

    def test_warnings(self) -> None:
        """Little space, no room for connections and a slow disk are warned of, and still ready."""
        bench = self.started(min_free_bytes=1000, max_connections=1)
        bench.disk.free = 999
        bench.clock.advance(1)
        bench.settle()
        figures = evolve(bench.figures(), connections=1, paused={"undurable": 1})
        health = judge(figures, bench.limits, listening=True, now=bench.clock.seconds())
        self.assertTrue(health.ready)
        self.assertEqual(len(health.warnings), 3)
        self.assertIn("999 bytes are free", health.warnings[0])

    def test_certificate(self) -> None:
        """A certificate is warned of for two weeks before its end, and after it."""
        bench = self.started(min_free_bytes=0)
        now = bench.clock.seconds()
        for left, warnings in (
            (14 * 86400, ()),
            (13.5 * 86400, ("the server's certificate expires on 1970-01-26",)),
            (-86400, ("the server's certificate has expired on 1970-01-11",)),
        ):
            figures = evolve(bench.figures(), certificate_expires=now + left)
            health = judge(figures, bench.limits, listening=True, now=now)
            self.assertEqual((health.ready, health.warnings), (True, warnings))

    def test_service(self) -> None:
        """A service judges itself: it does not listen when it does not run."""
        bench = self.started()
        service = MessageLogService(bench.store, bench.factory, [])
        self.assertEqual(service.health().not_ready, ("no connections are accepted",))
        self.assertEqual(service.figures().records, 0)


class Recorder:
    def __init__(self) -> None:
        self.sent: list[dict] = []
        self.closed = False

    def send(self, **lines) -> None:
        self.sent.append(lines)

    def close(self) -> None:
        self.closed = True


class SupervisionTest(SynchronousTestCase):
    def setUp(self) -> None:
        self.clock = Clock()
        self.notifier = Recorder()
        self.health = Health((), (), ())

    def make(self, watchdog: float = 0.0) -> Supervision:
        supervision = Supervision(self.clock, self.notifier, lambda: self.health, watchdog)
        self.addCleanup(supervision.stop)
        return supervision

    def sent(self) -> list[dict]:
        sent, self.notifier.sent = self.notifier.sent, []
        return sent

    def test_a_life(self) -> None:
        """What systemd is told from the start to the end."""
        supervision = self.make()
        supervision.recovering()
        supervision.ready()
        self.assertEqual(self.sent(), [{"STATUS": "recovering the log"}, {"READY": 1}, READY])
        supervision.reloading()
        supervision.reloaded()
        reloading, reloaded = self.sent()
        self.assertEqual((reloading["RELOADING"], reloaded), (1, {"READY": 1}))
        self.assertGreater(reloading["MONOTONIC_USEC"], 0)
        supervision.stopping()
        self.assertEqual(self.sent()[0]["STOPPING"], 1)
        supervision.stop()
        self.assertTrue(self.notifier.closed)
        self.clock.advance(100)
        self.assertEqual(self.sent(), [])

    def test_status_when_it_changes(self) -> None:
        """The status is told when it is another one."""
        supervision = self.make()
        supervision.ready()
        self.sent()
        self.clock.advance(5)
        self.assertEqual(self.sent(), [])
        self.health = Health((), ("the disk has not answered for 7 s",), ())
        self.clock.advance(5)
        self.assertEqual(self.sent(), [{"STATUS": "not ready: the disk has not answered for 7 s"}])

    def test_watchdog(self) -> None:
        """Twice within its time it is told that we are alive, and not if we are not."""
        supervision = self.make(watchdog=4.0)
        supervision.ready()
        self.sent()
        self.clock.advance(2)
        self.assertEqual(self.sent(), [{"WATCHDOG": 1}])
        self.health = Health((), ("a stalled disk",), ())
        self.clock.advance(2)
        self.assertIn({"WATCHDOG": 1}, self.sent())
        self.health = Health(("the disk has failed",), ("the disk has failed",), ())
        self.clock.advance(2)
        self.assertNotIn({"WATCHDOG": 1}, self.sent())

    def test_the_reactor_waits_for_the_disk(self) -> None:
        """While it can say nothing, another thread says that it lives, and after a while why."""
        waited = [0.0]
        self.health = Health((), (), ())
        supervision = Supervision(
            self.clock,
            self.notifier,
            lambda: self.health,
            4.0,
            lambda: judge_waiting(waited[0], Limits(stalled_seconds=5.0)),
        )
        self.addCleanup(supervision.stop)
        supervision._beat()
        self.sent()
        supervision._beat_while_waiting()
        self.assertEqual(self.sent(), [])
        waited[0] = 4.9
        supervision._beat_while_waiting()
        self.assertEqual(self.sent(), [{"WATCHDOG": 1}])
        waited[0] = 5.0
        supervision._beat_while_waiting()
        stalled = {"STATUS": "not ready: the disk has not answered for 5 s"}
        self.assertEqual(self.sent(), [{"WATCHDOG": 1}, stalled])
        supervision._beat()
        self.assertEqual(self.sent(), [{"WATCHDOG": 1}, READY])

    def test_another_thread_stands_by(self) -> None:
        """It looks often enough from the start to the end, and only if there is a watchdog."""
        looked = Event()

        def waiting() -> None:
            looked.set()

        without = self.make()
        without.ready()
        self.assertIsNone(without._stand_in)
        supervision = Supervision(self.clock, self.notifier, lambda: self.health, 0.02, waiting)
        supervision.ready()
        thread = supervision._stand_in
        self.assertTrue(looked.wait(30))
        supervision.stop()
        self.assertFalse(thread.is_alive())

    def test_environment(self) -> None:
        """Nothing is told without a socket, and no watchdog is fed that is somebody else's."""

        def of(**environment) -> Supervision | None:
            made = Supervision.of_environment(
                self.clock, lambda: self.health, environment=environment
            )
            if made is not None:
                self.addCleanup(made.stop)
            return made

        self.assertIsNone(of())
        self.assertIsNone(of(NOTIFY_SOCKET="vsock:2:1234"))
        made = of(NOTIFY_SOCKET="@name", WATCHDOG_USEC="3000000", WATCHDOG_PID=str(os.getpid()))
        self.assertEqual((made._watchdog, made._notifier._address), (3.0, "\0name"))
        made = of(NOTIFY_SOCKET="/run/x", WATCHDOG_USEC="3000000", WATCHDOG_PID="1")
        self.assertEqual((made._watchdog, made._notifier._address), (0.0, "/run/x"))


READY = {"STATUS": "ready"}
