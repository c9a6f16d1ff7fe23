"""What a client has on hand, with a spool and without, against the real server's protocol."""

from __future__ import annotations

import shutil
import sqlite3
import tempfile
from pathlib import Path
from typing import Any
from uuid import UUID

from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from msglog import (
    ClientLimits,
    NotLogged,
    QueueFull,
    Receipt,
    SessionFailed,
    SpoolError,
    Unanswered,
)
from msglog._frames import FRAME_BYTES, message_checksum
from msglog._outbox import MESSAGE_COST, Outbox, Outcomes
from msglog._session import State
from msglog._spool import Spool, Step
from msglog._spooled import SpooledOutbox
from tests.peers import CLIENT, ID, MAX_BODY, ServerSide

LONG = b"x" * (MAX_BODY + 1)


class Shell:
    """
    What a client does around an outbox, without a clock: it connects, moves bytes and does steps.

    @ivar told: for each waiter that was told, what it was told, in order.
    """

    def __init__(self, outbox: Outbox, server: ServerSide, spool: Spool | None = None) -> None:
        self.outbox = outbox
        self.server = server
        self.spool = spool
        self.told: dict[Any, list[Any]] = {}
        self.unheard: list[NotLogged] = []

    def tell(self, outcomes: Outcomes) -> None:
        assert len(outcomes.waiters) == len(outcomes.results)
        for waiter, result in zip(outcomes.waiters, outcomes.results, strict=True):
            assert waiter is not None
            self.told.setdefault(waiter, []).append(result)
        self.unheard += outcomes.unheard

    def connect(self) -> None:
        self.server.accept()
        self.outbox.session.connected()

    def cut(self) -> None:
        self.server.lose()
        self.outbox.session.disconnected("cut")

    def step(self) -> bool:
        """Do a step of the spool, if there is one to do."""
        step = self.outbox.step()
        if step is not None:
            assert self.spool is not None
            self.tell(self.outbox.stepped(self.spool.do(step)))
        return step is not None

    def turn(self) -> bool:
        """Everything moves once; whether anything did."""
        data, outcomes = self.outbox.proceed()
        self.tell(outcomes)
        stepped = self.step()
        if self.server.transport is None:
            return stepped
        if data:
            self.server.take(data)
        self.server.store.commit()
        answers = self.server.say()
        self.outbox.session.receive(answers)
        return stepped or bool(data) or bool(answers)

    def run_dry(self) -> None:
        while self.turn():
            pass


class OutboxCase(SynchronousTestCase):
    def begin(self, server_window: int = 1024, **limits: Any) -> Shell:
        server = ServerSide(server_window)
        self.addCleanup(server.end)
        self.limits = ClientLimits(**limits)
        self.outbox = Outbox(self.limits, CLIENT)
        # As a new client is: nothing under this id before.
        self.outbox.session._first = 1
        self.shell = Shell(self.outbox, server)
        return self.shell

    def receipt(self, sequence: int, body: bytes) -> Receipt:
        return Receipt(CLIENT, sequence, message_checksum(ID, sequence, body))

    def holds_nothing(self) -> None:
        self.assertEqual((self.outbox._messages, self.outbox._bytes), (0, 0))
        self.assertEqual(self.outbox.unsettled, 0)


class WithoutSpool(OutboxCase):
    def test_receipts(self) -> None:
        """Each waiter has the receipt of its message; a message may have none."""
        shell = self.begin()
        shell.connect()
        self.outbox.put(b"a", "a")
        self.outbox.put(b"b")
        self.outbox.put(b"c", "c")
        self.assertEqual(self.outbox.unsettled, 3)
        shell.run_dry()
        self.assertEqual(shell.told, {"a": [self.receipt(1, b"a")], "c": [self.receipt(3, b"c")]})
        self.holds_nothing()

    def test_client_ids(self) -> None:
        """A new client begins at 1; one that was used before asks."""
        new = Outbox(ClientLimits())
        self.assertEqual(new.session.client.version, 7)
        self.assertNotEqual(new.session.client, Outbox(ClientLimits()).session.client)
        self.assertEqual(new.session._first, 1)
        self.assertEqual(Outbox(ClientLimits(), CLIENT).session._first, 0)

    def test_messages_are_bytes(self) -> None:
        """What is no bytes is refused where it is handed over."""
        self.begin()
        for body in ("text", bytearray(b"a"), memoryview(b"a"), None, 5):
            error = self.assertRaises(TypeError, self.outbox.put, body)
            self.assertIn(f"bytes, not {type(body).__name__}", str(error))
        self.holds_nothing()

    def test_room_for_messages(self) -> None:
        """No more messages are held than the limit says."""
        shell = self.begin(pending_messages=2)
        self.outbox.put(b"a", "a")
        self.assertTrue(self.outbox.has_room())
        self.outbox.put(b"b", "b")
        self.assertFalse(self.outbox.has_room())
        error = self.assertRaises(QueueFull, self.outbox.put, b"c", "c")
        self.assertTrue(error.retry)
        self.assertIn("2 messages wait for their receipts", str(error))
        self.outbox.session.disconnected("no connection")
        self.assertIn("no connection", str(self.assertRaises(QueueFull, self.outbox.put, b"c")))
        shell.connect()
        shell.run_dry()
        self.outbox.put(b"c", "c")
        shell.run_dry()
        self.assertEqual(set(shell.told), {"a", "b", "c"})

    def test_room_for_bytes(self) -> None:
        """No more bytes are held than the limit says, but one message always can be."""
        cost = MESSAGE_COST + 2 * 10
        self.begin(pending_bytes=2 * cost)
        self.outbox.put(bytes(10))
        self.assertTrue(self.outbox.has_room(10))
        self.assertFalse(self.outbox.has_room(11))
        self.assertRaises(QueueFull, self.outbox.put, bytes(11))
        self.outbox.put(bytes(10))
        self.assertFalse(self.outbox.has_room())
        self.begin(pending_bytes=1)
        self.outbox.put(bytes(10))
        self.assertFalse(self.outbox.has_room())

    def test_too_long(self) -> None:
        """When the server's maximum is known, at once; otherwise as soon as it is."""
        shell = self.begin()
        self.outbox.put(LONG, "early")
        self.outbox.put(LONG)
        self.outbox.put(b"a", "a")
        shell.connect()
        shell.run_dry()
        (error,) = shell.told["early"]
        self.assertIsInstance(error, NotLogged)
        self.assertIn("21 bytes are over the server's maximum of 20", str(error))
        self.assertEqual([str(e) for e in shell.unheard], [str(error)])
        self.assertEqual(shell.told["a"], [self.receipt(1, b"a")])
        error = self.assertRaises(NotLogged, self.outbox.put, LONG, "late")
        self.assertFalse(error.retry)
        self.assertIn("21 bytes are over", str(error))
        self.holds_nothing()

    def test_points(self) -> None:
        """A point in the line is settled when all before it is, by a receipt or a refusal."""
        shell = self.begin()
        self.assertTrue(self.outbox.settled_up_to(self.outbox.handed_over))
        self.outbox.put(b"a", "a")
        self.outbox.put(LONG, "b")
        point = self.outbox.handed_over
        self.assertFalse(self.outbox.settled_up_to(point))
        shell.connect()
        shell.run_dry()
        self.assertTrue(self.outbox.settled_up_to(point))
        self.outbox.put(b"c")
        self.assertTrue(self.outbox.settled_up_to(point))
        self.assertFalse(self.outbox.settled_up_to(self.outbox.handed_over))

    def fail(self, shell: Shell) -> None:
        """The server forbids the client id."""
        shell.server.permitted = False
        shell.connect()
        shell.run_dry()
        shell.turn()

    def test_failure(self) -> None:
        """When the session fails everybody is told, each with an error of its own."""
        shell = self.begin()
        self.outbox.put(b"a", "a")
        self.outbox.put(b"b", "b")
        self.outbox.put(b"nobody waits")
        self.fail(shell)
        errors = [*shell.told["a"], *shell.told["b"]]
        errors.append(self.assertRaises(SessionFailed, self.outbox.put, b"c", "c"))
        errors.append(self.assertRaises(SessionFailed, self.outbox.put, b"d", "d"))
        self.assertEqual({str(error) for error in errors}, {str(self.outbox.session.failure)})
        self.assertEqual(len({id(error) for error in errors}), 4)
        self.holds_nothing()

    def test_close(self) -> None:
        """What has no answer when the client closes is not known, and nothing more is taken."""
        shell = self.begin()
        shell.connect()
        shell.run_dry()
        self.outbox.put(b"a", "a")
        self.outbox.put(b"b", "b")
        self.outbox.end()
        error = self.assertRaises(NotLogged, self.outbox.put, b"c", "c")
        self.assertIn("the client is closed", str(error))
        self.outbox.session.disconnected("the connection was lost")
        shell.tell(self.outbox.close())
        (error,) = shell.told["a"]
        self.assertIsInstance(error, Unanswered)
        self.assertFalse(error.retry)
        self.assertIn("closed (the connection was lost), so it is not known", str(error))
        self.assertIsNot(error, shell.told["b"][0])
        self.holds_nothing()

    def test_close_in_peace(self) -> None:
        """Without trouble the text says so."""
        shell = self.begin()
        self.outbox.put(b"a", "a")
        shell.tell(self.outbox.close())
        self.assertIn("there was no answer in time", str(shell.told["a"][0]))

    def test_no_steps(self) -> None:
        """Without a spool there is nothing to do for it."""
        self.begin()
        self.outbox.put(b"a", "a")
        self.assertIsNone(self.outbox.step())
        self.assertFalse(self.outbox.try_again())
        self.assertEqual(self.outbox.stepped(Step()).waiters, [])


class FullDisk:
    """A spool's connection on a disk that may be full, which is noticed as messages are added."""

    def __init__(self, db: sqlite3.Connection) -> None:
        self._db = db
        self.full: str = ""  # what the statements begin with that fail

    def execute(self, statement: str, *values: Any) -> sqlite3.Cursor:
        if self.full and statement.startswith(self.full):
            raise sqlite3.OperationalError("database or disk is full")
        return self._db.execute(statement, *values)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._db, name)


class SpooledCase(OutboxCase):
    def begin(self, server_window: int = 1024, **limits: Any) -> Shell:
        folder = Path(self.mktemp())
        folder.mkdir()
        self.path = folder / "spool"
        self.limits = ClientLimits(**limits)
        self.server = ServerSide(server_window)
        self.addCleanup(lambda: self.server.end())
        return self.live()

    def live(self, client: UUID | None = None) -> Shell:
        """Another life of the client, on the same spool and server."""
        self.spool = Spool(self.path, lambda: CLIENT)
        self.addCleanup(self.spool.close)
        self.disk = FullDisk(self.spool._db)
        self.spool._db = self.disk
        self.outbox = SpooledOutbox(self.limits, self.spool, client)
        self.shell = Shell(self.outbox, self.server, self.spool)
        return self.shell

    def kill(self) -> None:
        """End this life without a word; what is in the files stays."""
        folder = self.path.with_name("next" + self.path.parent.name)
        shutil.copytree(self.path.parent, folder)
        self.path = folder / self.path.name
        if self.server.transport is not None:
            self.server.lose()
        self.spool.close()

    def holds_nothing(self) -> None:
        super().holds_nothing()
        self.assertEqual((self.spool.count, self.spool.size), (0, 0))
        self.assertEqual(self.outbox._waiting, {})


class WithSpool(SpooledCase):
    def test_through_the_spool(self) -> None:
        """Messages are in the spool first, then sent, and gone when they have their receipts."""
        shell = self.begin()
        shell.connect()
        shell.run_dry()
        self.outbox.put(b"a", "a", "a is spooled")
        self.outbox.put(b"b", None, "b is spooled")
        self.outbox.put(b"c", "c")
        self.assertEqual(self.outbox.proceed()[0], b"")
        shell.step()
        self.assertEqual(shell.told, {"a is spooled": [None], "b is spooled": [None]})
        self.assertEqual(self.spool.count, 3)
        shell.run_dry()
        self.assertEqual(shell.told["a"], [self.receipt(1, b"a")])
        self.assertEqual(shell.told["c"], [self.receipt(3, b"c")])
        self.assertEqual(self.server.logged, [b"a", b"b", b"c"])
        self.assertEqual(self.spool.first, 4)
        self.holds_nothing()

    def test_one_step_at_a_time(self) -> None:
        """While a step is under way there is no other; what comes meanwhile is in the next."""
        shell = self.begin()
        self.outbox.put(b"a", None, "a")
        step = self.outbox.step()
        self.outbox.put(b"b", None, "b")
        self.assertIsNone(self.outbox.step())
        shell.tell(self.outbox.stepped(self.spool.do(step)))
        self.assertEqual(list(shell.told), ["a"])
        shell.step()
        self.assertEqual(list(shell.told), ["a", "b"])
        self.assertIsNone(self.outbox.step())

    def test_an_emptied_spool_is_left_alone(self) -> None:
        """A life that begins with a spool whose messages are all gone does no step for nothing."""
        shell = self.begin()
        shell.connect()
        self.outbox.put(b"a", "a")
        shell.run_dry()
        self.kill()
        shell = self.live()
        self.assertIsNone(self.outbox.step())
        shell.connect()
        self.outbox.put(b"b", "b")
        shell.run_dry()
        self.assertEqual(shell.told["b"], [self.receipt(2, b"b")])
        self.holds_nothing()

    def test_another_life(self) -> None:
        """What was in the spool goes out in order, before what comes, by the same client."""
        shell = self.begin()
        shell.connect()
        self.outbox.put(b"before", "before")
        shell.run_dry()
        for body in (b"a", b"b", b"c"):
            self.outbox.put(body)
        shell.step()
        self.kill()
        self.limits = ClientLimits(window=2)
        shell = self.live(CLIENT)
        self.assertEqual(self.outbox.unsettled, 3)
        self.outbox.put(b"d", "d")
        shell.connect()
        shell.run_dry()
        self.assertEqual(self.server.logged, [b"before", b"a", b"b", b"c", b"d"])
        self.assertEqual(shell.told["d"], [self.receipt(5, b"d")])
        self.holds_nothing()

    def test_logged_and_not_removed(self) -> None:
        """What was logged in an earlier life is sent again, and logged once."""
        shell = self.begin()
        shell.connect()
        for number in range(10):
            self.outbox.put(b"%d" % number)
        while len(self.server.logged) < 10:
            shell.turn()
        self.assertEqual(self.spool.count, 10)
        self.kill()
        shell = self.live()
        self.outbox.put(b"new", "new")
        shell.connect()
        shell.run_dry()
        self.assertEqual(self.server.logged, [*(b"%d" % n for n in range(10)), b"new"])
        self.assertEqual(shell.told["new"], [self.receipt(11, b"new")])
        self.holds_nothing()

    def test_somebody_elses_spool(self) -> None:
        """A client id that is not the spool's is not taken."""
        self.begin()
        self.kill()
        error = self.assertRaises(SpoolError, self.live, UUID(int=9))
        self.assertIn(f"belongs to client {CLIENT}, not {UUID(int=9)}", str(error))

    def test_a_window_smaller_than_ours(self) -> None:
        """A backlog goes out through any window of the server's."""
        shell = self.begin(2)
        bodies = [b"%d" % n for n in range(3000)]
        for body in bodies:
            self.outbox.put(body)
        shell.step()
        self.kill()
        shell = self.live()
        shell.connect()
        shell.run_dry()
        self.assertEqual(self.server.logged, bodies)
        self.holds_nothing()

    def test_a_backlog_longer_than_both_windows(self) -> None:
        """What was logged long ago and never removed, read bit by bit, needs no comparing."""
        shell = self.begin(8)
        shell.connect()
        bodies = [b"%d" % n for n in range(50)]
        for body in bodies:
            self.outbox.put(body)
        self.disk.full = "DELETE"
        # Each step fails to remove what is settled, so nothing ever is.
        shell.step()
        self.disk.full = ""
        shell.step()
        self.disk.full = "DELETE"
        while len(self.server.logged) < 50:
            shell.turn()
            self.outbox.try_again()
        self.assertEqual(self.spool.count, 50)
        self.kill()
        self.limits = ClientLimits(window=4)
        shell = self.live()
        shell.connect()
        shell.run_dry()
        self.assertIsNone(self.outbox.session.failure)
        self.assertEqual(self.server.logged, bodies)
        self.holds_nothing()

    def test_reads_in_stretches(self) -> None:
        """A backlog is read when a quarter of the window is free, not for every receipt."""
        shell = self.begin(window=8)
        for number in range(20):
            self.outbox.put(b"%d" % number)
        shell.step()
        shell.connect()
        shell.turn()
        self.server.take(self.outbox.proceed()[0])
        self.server.store.commit()
        answers = self.server.say()
        reads = []
        for at in range(0, len(answers), FRAME_BYTES):
            self.outbox.session.receive(answers[at : at + FRAME_BYTES])
            self.outbox.proceed()
            reads.append(self.outbox._to_read())
        self.assertEqual(reads, [0, 2, 3, 4, 5, 6, 7, 8])

    def test_long_backlog_in_little_memory(self) -> None:
        """Of a backlog only a window is in memory."""
        shell = self.begin(pending_messages=10)
        for number in range(100):
            self.outbox.put(b"%d" % number, None, number)
            shell.step()
        self.assertEqual(len(shell.told), 100)
        self.kill()
        self.limits = ClientLimits(window=7)
        shell = self.live()
        self.assertEqual(len(self.outbox.session), 7)

    def test_no_room_in_the_spool(self) -> None:
        """No more is put into the spool than the limit says, and the error names it."""
        shell = self.begin(spool_bytes=10)
        self.outbox.put(bytes(6))
        step = self.outbox.step()
        for done in (False, True):
            self.assertTrue(self.outbox.has_room(4))
            self.assertFalse(self.outbox.has_room(5))
            if not done:
                shell.tell(self.outbox.stepped(self.spool.do(step)))
        error = self.assertRaises(QueueFull, self.outbox.put, bytes(5), "a")
        self.assertIn(f"the spool {self.path} holds 6 bytes of messages, which is", str(error))
        self.outbox.session.disconnected("no connection")
        error = self.assertRaises(QueueFull, self.outbox.put, bytes(5), "a")
        self.assertIn(": no connection", str(error))
        shell.connect()
        shell.run_dry()
        self.outbox.put(bytes(11))  # one always can be
        self.assertFalse(self.outbox.has_room())
        shell.run_dry()
        self.holds_nothing()

    def test_no_room_in_memory(self) -> None:
        """What is on its way into the spool, and who waits for a receipt, is held in memory."""
        shell = self.begin(pending_messages=2)
        self.outbox.put(b"a", "a")
        self.outbox.put(b"b")
        error = self.assertRaises(QueueFull, self.outbox.put, b"c")
        self.assertIn("2 messages wait for their receipts", str(error))
        shell.step()
        self.outbox.put(b"c")  # nobody waits for b any more
        shell.step()
        self.outbox.put(b"d", "d")
        self.assertRaises(QueueFull, self.outbox.put, b"e")
        shell.connect()
        shell.run_dry()
        self.assertEqual(set(shell.told), {"a", "d"})
        self.holds_nothing()

    def test_disk_full(self) -> None:
        """What the spool cannot take is not logged; it may be tried again when there is room."""
        shell = self.begin()
        self.outbox.put(b"a", "a", "a is spooled")
        self.disk.full = "BEGIN"
        point = self.outbox.handed_over
        shell.step()
        (error,) = shell.told["a"]
        self.assertTrue(error.retry)
        self.assertIn("database or disk is full", str(error))
        self.assertIsInstance(shell.told["a is spooled"][0], SpoolError)
        self.assertIn("database or disk is full", self.outbox.session.trouble)
        self.assertTrue(self.outbox.settled_up_to(point))
        self.holds_nothing()
        self.disk.full = ""
        self.outbox.put(b"a", "again")
        shell.connect()
        shell.run_dry()
        self.assertEqual(shell.told["again"], [self.receipt(1, b"a")])
        self.assertEqual(self.outbox.session.trouble, "")
        self.holds_nothing()

    def test_removed_when_there_is_room_again(self) -> None:
        """A step that failed is not done again and again, but when it is asked for."""
        shell = self.begin(window=8)
        for number in range(30):
            self.outbox.put(b"%d" % number)
        shell.step()
        self.disk.full = "DELETE"
        shell.connect()
        shell.run_dry()
        self.assertLess(len(self.server.logged), 30)
        self.assertIsNone(self.outbox.step())
        self.disk.full = ""
        self.assertIsNone(self.outbox.step())
        self.assertTrue(self.outbox.try_again())
        self.assertFalse(self.outbox.try_again())
        shell.run_dry()
        self.assertEqual(len(self.server.logged), 30)
        self.assertEqual(self.spool.first, 31)
        self.holds_nothing()
        self.outbox.put(b"last")
        shell.step()
        self.disk.full = "DELETE"
        shell.run_dry()
        self.assertEqual(self.spool.count, 1)
        self.disk.full = ""
        self.outbox.try_again()
        shell.run_dry()
        self.assertEqual(self.spool.first, 32)
        self.holds_nothing()

    def test_cannot_be_read(self) -> None:
        """What cannot be read now is read later, and nothing is left out."""
        shell = self.begin()
        shell.connect()
        shell.run_dry()
        self.disk.full = "SELECT place"
        self.outbox.put(b"a", "a")
        shell.run_dry()
        self.assertEqual(self.server.store.messages, [])
        self.assertIn("cannot read the spool", self.outbox.session.trouble)
        self.disk.full = ""
        self.outbox.try_again()
        shell.run_dry()
        self.assertEqual(shell.told["a"], [self.receipt(1, b"a")])
        self.holds_nothing()

    def test_refused(self) -> None:
        """A message that is too long leaves the spool, and uses up no sequence."""
        shell = self.begin()
        for body in (b"a", LONG, b"b"):
            self.outbox.put(body, None, body)
        shell.step()
        shell.connect()
        shell.run_dry()
        self.assertEqual(self.server.logged, [b"a", b"b"])
        self.assertEqual(len(shell.unheard), 1)
        self.assertIn("21 bytes are over", str(shell.unheard[0]))
        self.assertEqual(self.spool.first, 3)
        self.holds_nothing()

    def test_marks(self) -> None:
        """A mark is in the spool with its message; the last one of a key counts."""
        shell = self.begin()
        self.outbox.put(b"a", marks={"file": 1})
        self.outbox.put(b"b", marks={"file": 2**63 - 1})
        self.outbox.put(b"c", marks={"other": -(2**63)})
        for value in (2**63, -(2**63) - 1):
            self.assertRaises(ValueError, self.outbox.put, b"d", marks={"file": value})
        shell.step()
        self.kill()
        self.live()
        self.assertEqual(self.spool.marks, {"file": 2**63 - 1, "other": -(2**63)})
        self.outbox.put(b"d", marks={"file": None})
        self.shell.step()
        self.kill()
        self.live()
        self.assertEqual(self.spool.marks, {"other": -(2**63)})

    def test_failure(self) -> None:
        """
        When the session fails whoever waits is told, wherever the message is; the spool keeps
        everything, takes more, and another client id sends it.
        """
        shell = self.begin()
        self.outbox.put(b"a", "in flight")
        self.outbox.put(b"b", None)
        shell.step()
        self.server.permitted = False
        shell.connect()
        shell.turn()
        self.outbox.put(b"c", "under way")
        step = self.outbox.step()
        self.outbox.put(b"d", "waits for a step", "d is spooled")
        for _ in range(3):
            data, outcomes = self.outbox.proceed()
            self.server.take(data)
            self.server.store.commit()
            self.outbox.session.receive(self.server.say())
            shell.tell(outcomes)
        self.assertEqual(self.outbox.session.state, State.FAILED)
        self.assertIsInstance(shell.told["in flight"][0], SessionFailed)
        self.assertNotIn("under way", shell.told)
        shell.tell(self.outbox.stepped(self.spool.do(step)))
        self.assertIsInstance(shell.told["under way"][0], SessionFailed)
        shell.tell(self.outbox.proceed()[1])
        self.assertRaises(SessionFailed, self.outbox.put, b"x", "waits")
        self.outbox.put(b"e", None, "e is spooled")
        shell.step()
        self.assertEqual(len(self.outbox.session), 0)  # what cannot be sent is not read
        self.assertIsInstance(shell.told["waits for a step"][0], SessionFailed)
        self.assertEqual(shell.told["d is spooled"] + shell.told["e is spooled"], [None, None])
        self.assertEqual(self.outbox._messages, 0)
        self.assertEqual(self.outbox._bytes, 0)
        self.assertIsNone(self.outbox.step())
        self.server.lose()
        self.spool.renew(CLIENT)
        self.kill()
        self.server.permitted = True
        shell = self.live()
        shell.connect()
        shell.run_dry()
        self.assertEqual(self.server.logged, [b"a", b"b", b"c", b"d", b"e"])

    def test_close(self) -> None:
        """What has no receipt when the client closes is kept, and whoever waits is told so."""
        shell = self.begin(window=1)
        for waiter in ("a", "b", "c"):
            self.outbox.put(waiter.encode(), waiter)
        shell.step()
        shell.tell(self.outbox.close())
        for waiter in ("a", "b", "c"):
            (error,) = shell.told[waiter]
            self.assertIsInstance(error, Unanswered)
            self.assertIn(f"the spool {self.path} keeps it", str(error))
        self.assertEqual(self.spool.count, 3)

    def test_a_copy_of_a_spool(self) -> None:
        """
        Two lives from one spool are each other's conflict, and what the second one holds stays in
        its spool, however long it was.
        """
        shell = self.begin(8)
        self.outbox.put(b"first")
        shell.step()
        original = self.path.parent
        self.kill()
        shutil.copytree(original, original.with_name("clone"))
        shell = self.live()
        shell.connect()
        for number in range(100):
            self.outbox.put(b"original %d" % number)
        shell.run_dry()
        self.kill()
        logged = self.server.logged
        self.path = original.with_name("clone") / "spool"
        shell = self.live()
        for number in range(200):
            self.outbox.put(b"clone %d" % number)
        shell.step()
        self.kill()
        shell = self.live()
        shell.connect()
        shell.run_dry()
        self.assertIn("CONFLICT", str(self.outbox.session.failure))
        self.assertEqual(self.server.logged, logged)
        self.assertEqual(self.spool.count, 201)


moves = st.one_of(
    st.tuples(st.just("put"), st.lists(st.integers(0, MAX_BODY + 2), min_size=1, max_size=8)),
    st.tuples(st.sampled_from(["up", "down"]), st.integers(0, 150)),
    st.tuples(st.sampled_from(["up", "down"]), st.just(1 << 20)),
    st.tuples(st.sampled_from(["commit", "cut", "connect", "retry"]), st.none()),
    st.tuples(st.sampled_from(["begin step", "do step", "end step"]), st.none()),
    st.tuples(st.sampled_from(["begin step", "do step", "end step", "kill"]), st.none()),
    st.tuples(st.just("store full"), st.booleans()),
    st.tuples(st.just("disk full"), st.sampled_from(["", "BEGIN", "COMMIT", "SELECT place"])),
)


class Schedules(SynchronousTestCase):
    """A client with a spool that is killed again and again, and everything else that happens."""

    def setUp(self) -> None:
        self.folder = Path(self.mktemp())
        self.folder.mkdir()

    @settings(deadline=None, max_examples=150)
    @given(st.sampled_from([2, 5, 1024]), st.integers(1, 6), st.lists(moves, max_size=70))
    def test_like_the_model(self, window: int, own: int, script: list) -> None:
        """
        What the spool has is logged exactly once and in order, but what is too long; a receipt
        is only for what is logged, and is there once.
        """
        server = ServerSide(window)
        limits = ClientLimits(window=own)
        life = Path(tempfile.mkdtemp(dir=self.folder))
        put: list[bytes] = []
        spooled: list[bytes] = []
        receipts: list[bytes] = []
        up = down = b""
        step: Step | None = None
        done = False

        def live() -> None:
            nonlocal outbox, spool, disk
            spool = Spool(life / "spool", lambda: CLIENT)
            disk = FullDisk(spool._db)
            spool._db = disk
            outbox = SpooledOutbox(limits, spool)

        def tell(outcomes: Outcomes) -> None:
            for (what, body), result in zip(outcomes.waiters, outcomes.results, strict=True):
                if what == "spooled" and result is None:
                    spooled.append(body)
                elif what == "receipt" and isinstance(result, Receipt):
                    assert server.logged[result.sequence - 1] == body
                    assert result.checksum == message_checksum(ID, result.sequence, body)
                    receipts.append(body)
                elif what == "receipt" and len(body) <= MAX_BODY:
                    assert "full" in str(result), result

        def proceed() -> None:
            nonlocal up
            data, outcomes = outbox.proceed()
            up += data
            tell(outcomes)

        def cut() -> None:
            nonlocal up, down
            up = down = b""
            if server.transport is not None:
                server.lose()
                outbox.session.disconnected("cut")

        def connect() -> None:
            if server.transport is None:
                server.accept()
                outbox.session.connected()

        def move(sending: int, receiving: int) -> None:
            nonlocal up, down
            if server.transport is None:
                return
            if sending and up:
                piece, up = up[:sending], up[sending:]
                server.take(piece)
            down += server.say()
            if receiving and down:
                piece, down = down[:receiving], down[receiving:]
                outbox.session.receive(piece)
            if outbox.session.state is State.LEAVING:
                cut()

        def do_step(what: str) -> None:
            nonlocal step, done
            if what == "begin step" and step is None:
                step, done = outbox.step(), False
            elif what == "do step" and step is not None and not done:
                spool.do(step)
                done = True
            elif what == "end step" and done and step is not None:
                finished, step, done = step, None, False
                tell(outbox.stepped(finished))

        def kill() -> None:
            nonlocal life, step, done
            cut()
            step, done = None, False
            after = Path(tempfile.mkdtemp(dir=self.folder))
            shutil.copytree(life, after, dirs_exist_ok=True)
            spool.close()
            shutil.rmtree(life)
            life = after
            live()

        outbox: SpooledOutbox
        spool: Spool
        disk: FullDisk
        live()
        try:
            for action, value in script:
                if action == "put":
                    for size in value:
                        body = b"%d" % len(put) + b"." * size
                        try:
                            outbox.put(body, ("receipt", body), ("spooled", body))
                        except NotLogged:
                            assert len(body) > MAX_BODY
                            continue
                        put.append(body)
                elif action == "up":
                    move(value, 0)
                elif action == "down":
                    move(0, value)
                elif action == "commit":
                    server.store.commit()
                elif action == "cut":
                    cut()
                elif action == "connect":
                    connect()
                elif action == "retry":
                    outbox.session.retry()
                elif action == "store full":
                    server.store.full = value
                elif action == "disk full":
                    disk.full = value
                elif action == "kill":
                    kill()
                else:
                    do_step(action)
                proceed()
            server.store.full, disk.full = False, ""
            for _ in range(10 * len(put) + 30):
                connect()
                outbox.session.retry()
                outbox.try_again()
                proceed()
                move(1 << 20, 1 << 20)
                server.store.commit()
                for what in ("do step", "end step", "begin step"):
                    do_step(what)
            assert outbox.session.failure is None, outbox.session.failure
            logged = server.logged
            assert len(set(logged)) == len(logged)
            assert logged == [body for body in put if body in logged], "not in order"
            assert {body for body in spooled if len(body) <= MAX_BODY} <= set(logged)
            assert len(set(receipts)) == len(receipts)
            assert (spool.count, spool.size, outbox.unsettled) == (0, 0, 0)
            assert spool.first == len(logged) + 1
            assert (outbox._messages, outbox._bytes, outbox._waiting) == (0, 0, {})
        finally:
            server.end()
            spool.close()
            shutil.rmtree(life)


class BehindARefusal(SpooledCase):
    """What follows a refused message waits until the spool has removed that for good."""

    def test_nothing_is_sent_before(self) -> None:
        shell = self.begin()
        for body in (LONG, b"b", b"c"):
            self.outbox.put(body)
        shell.step()
        shell.connect()
        sent = b""
        for _ in range(5):  # all but the steps of the spool
            data, outcomes = self.outbox.proceed()
            shell.tell(outcomes)
            sent += data
            if data:
                self.server.take(data)
            self.server.store.commit()
            self.outbox.session.receive(self.server.say())
        self.assertNotIn(b"b", [body for _, _, body in self.server.store.messages])
        # Killed here, and begun again: each is logged once, under the sequence that it had.
        self.kill()
        shell = self.live()
        shell.connect()
        shell.run_dry()
        self.assertEqual(self.server.logged, [b"b", b"c"])
        self.holds_nothing()

    def test_the_removal_waits_for_the_disk(self) -> None:
        shell = self.begin()
        self.outbox.put(LONG)
        self.outbox.put(b"b")
        shell.step()
        shell.connect()
        steps = []
        do = self.spool.do
        self.patch(self.spool, "do", lambda step: (steps.append(step.durable), do(step))[1])
        shell.run_dry()
        self.assertIn(True, steps)
        self.assertFalse(steps[-1])
        self.assertEqual(self.server.logged, [b"b"])
