"""A client's session, against the real server's protocol and against one that keeps to nothing."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from msglog import NackCode, NotLogged, SessionFailed
from msglog._batch import MAX_SEQUENCE
from msglog._frames import (
    FRAME_BYTES,
    PROTOCOL_VERSION,
    FrameDecoder,
    encode_acks,
    encode_enquiry,
    encode_message,
    encode_nack,
    encode_terms,
    message_checksum,
)
from msglog._session import Delivered, Message, Refused, Session, State
from msglog.testing import MemoryStore, make_batch
from tests.peers import CLIENT, ID, MAX_BODY, ServerSide

OTHER = bytes(range(16, 32))


class Caller:
    """Who hands messages to a session, and takes note of what it says became of them."""

    def __init__(self, session: Session) -> None:
        self.session = session
        self.receipts: list[tuple[int, bytes, int]] = []  # sequence, body, checksum
        self.refused: list[bytes] = []
        self.settled: list[Message] = []  # in the order of settling

    def submit(self, *bodies: bytes) -> None:
        self.session.submit(Message(body) for body in bodies)

    def proceed(self) -> bytes:
        data, events = self.session.proceed()
        for event in events:
            if isinstance(event, Delivered):
                assert len(event.messages) == len(event.checksums) > 0
                for sequence, message in enumerate(event.messages, event.first):
                    checksum = event.checksums[sequence - event.first]
                    assert checksum == message_checksum(ID, sequence, message.body)
                    self.receipts.append((sequence, message.body, checksum))
                self.settled += event.messages
            else:
                assert isinstance(event, Refused)
                assert isinstance(event.error, NotLogged)
                assert not event.error.retry
                self.refused.append(event.message.body)
                self.settled.append(event.message)
        return data

    @property
    def delivered(self) -> list[bytes]:
        """The bodies that have receipts, which must have the sequences from 1."""
        assert [r[0] for r in self.receipts] == list(range(1, len(self.receipts) + 1))
        return [r[1] for r in self.receipts]


class PeersCase(SynchronousTestCase):
    """A session and a real server."""

    def begin(self, window: int = 1024, own: int = 1024, first: int | None = 1) -> None:
        """A server with a window, and a client with one of its own."""
        self.server = ServerSide(window)
        self.addCleanup(lambda: self.server.end())
        self.session = Session(CLIENT, first, own)
        self.caller = Caller(self.session)

    def connect(self) -> None:
        self.server.accept()
        self.session.connected()

    def cut(self, why: str = "cut") -> None:
        self.server.lose()
        self.session.disconnected(why)

    def turn(self) -> int:
        """Everything that is on its way arrives, and is answered; how many bytes that were."""
        sent = self.caller.proceed()
        if sent:
            self.server.take(sent)
        self.server.store.commit()
        answers = self.server.say()
        self.session.receive(answers)
        return len(sent) + len(answers)

    def run_dry(self) -> None:
        while self.turn():
            pass


class WithServer(PeersCase):
    """The session and the server agree on everything."""

    def test_sends_in_order(self) -> None:
        """Messages are logged in order, and each has its receipt, in order."""
        self.begin()
        self.caller.submit(b"a", b"", b"\xff\x00")
        self.assertEqual(self.caller.proceed(), b"")  # nothing before there is a connection
        self.assertEqual(self.session.state, State.OFFLINE)
        self.connect()
        self.assertEqual(self.session.state, State.ASKING)
        self.assertEqual(self.caller.proceed(), encode_enquiry(ID))  # and nothing before TERMS
        self.assertTrue(self.session.awaiting)
        self.assertFalse(self.session.online)
        self.server.take(encode_enquiry(ID))
        self.run_dry()
        self.assertEqual(self.session.state, State.SENDING)
        self.assertTrue(self.session.online)
        self.assertFalse(self.session.awaiting)
        self.assertEqual(self.session.max_body, MAX_BODY)
        self.caller.submit(b"later")
        self.run_dry()
        self.assertEqual(self.server.logged, [b"a", b"", b"\xff\x00", b"later"])
        self.assertEqual(self.caller.delivered, self.server.logged)
        self.assertEqual(len(self.session), 0)

    def test_window(self) -> None:
        """No more are in flight than the smaller of both windows."""
        for own, servers in ((3, 1024), (1024, 3)):
            self.begin(servers, own=own)
            self.caller.submit(*(b"%d" % n for n in range(10)))
            self.connect()
            self.turn()
            self.assertEqual(self.session.window, 3)
            sizes = []
            while data := self.caller.proceed():
                sizes.append(len(data) // (FRAME_BYTES + 1))
                self.server.take(data)
                self.server.store.commit()
                self.session.receive(self.server.say())
            self.assertEqual(sizes, [3, 3, 3, 1])
            self.assertEqual(len(self.caller.delivered), 10)

    def test_room(self) -> None:
        """What waits takes room as what is in flight does."""
        self.begin(own=4)
        self.assertEqual(self.session.room, 4)
        self.caller.submit(b"a", b"b", b"c")
        self.assertEqual(self.session.room, 1)
        self.caller.submit(b"d", b"e")
        self.assertEqual(self.session.room, 0)
        self.assertEqual(len(self.session), 5)

    def test_too_long_in_the_middle(self) -> None:
        """Exactly that message fails, the next ones take its sequence, and all settle in order."""
        self.begin()
        long = b"x" * (MAX_BODY + 1)
        bodies = [long, b"a", long + b"1", long + b"2", b"b", b"c", long + b"3"]
        self.caller.submit(*bodies)
        self.connect()
        self.run_dry()
        self.assertEqual(self.caller.delivered, [b"a", b"b", b"c"])
        self.assertEqual(self.caller.refused, [long, long + b"1", long + b"2", long + b"3"])
        self.assertEqual([m.body for m in self.caller.settled], bodies)
        self.assertEqual(self.server.logged, [b"a", b"b", b"c"])
        self.assertEqual(self.session.trouble, "")

    def test_too_long_by_a_shorter_maximum(self) -> None:
        """A server that takes less than its TERMS said refuses the message, and only that."""
        self.begin()
        self.connect()
        self.run_dry()
        self.session.max_body = 2 * MAX_BODY
        long = b"x" * (MAX_BODY + 1)
        self.caller.submit(b"a", long, b"b", b"c")
        self.turn()
        self.run_dry()
        self.assertEqual(self.caller.delivered, [b"a", b"b", b"c"])
        self.assertEqual(self.caller.refused, [long])
        self.assertEqual(self.server.logged, [b"a", b"b", b"c"])
        self.assertEqual(self.session.trouble, "")

    def test_not_stored(self) -> None:
        """A full store pauses the session, which goes on at C{retry} and loses nothing."""
        self.begin()
        self.connect()
        self.caller.submit(b"a")
        self.run_dry()
        self.server.store.full = True
        self.caller.submit(b"b", b"c")
        self.run_dry()
        self.assertEqual(self.session.state, State.PAUSED)
        self.assertTrue(self.session.online)
        self.assertIn("NOT_STORED: the store is full", self.session.trouble)
        self.caller.submit(b"d")
        self.assertEqual(self.caller.proceed(), b"")
        self.session.retry()
        self.run_dry()
        self.assertEqual(self.session.state, State.PAUSED)
        self.server.store.full = False
        self.session.retry()
        self.run_dry()
        self.assertEqual(self.caller.delivered, [b"a", b"b", b"c", b"d"])
        self.assertEqual(self.session.trouble, "")
        self.session.retry()  # too late: there is nothing to retry
        self.assertEqual(self.session.state, State.SENDING)

    def test_cut_while_paused(self) -> None:
        """A new connection is a new attempt."""
        self.begin()
        self.connect()
        self.server.store.full = True
        self.caller.submit(b"a")
        self.run_dry()
        self.cut()
        self.session.retry()  # of the last connection
        self.assertEqual(self.session.state, State.OFFLINE)
        self.server.store.full = False
        self.connect()
        self.run_dry()
        self.assertEqual(self.caller.delivered, [b"a"])

    def test_corrupt(self) -> None:
        """A message that arrives damaged is sent again, with what came behind it."""
        self.begin()
        self.connect()
        self.run_dry()
        self.caller.submit(b"a", b"b", b"c")
        data = bytearray(self.caller.proceed())
        data[FRAME_BYTES + 1 + 20] ^= 0x40  # the second one's client id
        self.server.take(bytes(data))
        self.run_dry()
        self.assertEqual(self.caller.delivered, [b"a", b"b", b"c"])
        self.assertEqual(self.server.logged, [b"a", b"b", b"c"])

    def test_corrupt_again_and_again(self) -> None:
        """After three times in a row another connection is tried; progress begins a new count."""
        self.begin(own=1)
        self.connect()
        self.run_dry()
        for round_ in range(2):
            self.caller.submit(b"a")
            for attempt in range(3):
                self.assertEqual(self.session.state, State.SENDING, (round_, attempt))
                data = bytearray(self.caller.proceed())
                data[-1] ^= 1
                self.server.take(bytes(data))
                self.turn() if attempt == 2 else self.session.receive(self.server.say())
            self.assertEqual(self.session.state, State.LEAVING)
            self.assertIn("damaged", self.session.trouble)
            self.cut()
            self.connect()
            self.run_dry()
            self.assertEqual(len(self.caller.delivered), round_ + 1)
            self.assertEqual(self.session._corrupt, 0)

    def test_corrupt_now_and_then(self) -> None:
        """A count of damaged messages ends with the next receipt."""
        self.begin(own=1)
        self.connect()
        self.run_dry()
        for _ in range(5):
            self.caller.submit(b"a")
            for _ in range(2):
                data = bytearray(self.caller.proceed())
                data[-1] ^= 1
                self.server.take(bytes(data))
                self.session.receive(self.server.say())
                self.assertEqual(self.session.state, State.SENDING)
            self.run_dry()
        self.assertEqual(len(self.caller.delivered), 5)

    def test_unavailable(self) -> None:
        """A server that stops is left, and nothing is lost."""
        self.begin()
        self.connect()
        self.run_dry()
        self.caller.submit(b"a")
        self.server.take(self.caller.proceed())
        self.server.factory.stop()
        self.caller.submit(b"b", b"c")
        self.turn()
        self.assertEqual(self.session.state, State.LEAVING)
        self.assertIn("UNAVAILABLE: shutting down", self.session.trouble)
        self.assertEqual(self.caller.proceed(), b"")
        self.session.disconnected("closed")
        self.assertIn("UNAVAILABLE", self.session.trouble)  # the cause, and not its consequence
        self.server.end()
        self.server.serve(MAX_BODY)
        self.connect()
        self.run_dry()
        self.assertEqual(self.caller.delivered, [b"a", b"b", b"c"])
        self.assertEqual(self.session.trouble, "")

    def test_forbidden(self) -> None:
        """An id that may not be used is the end."""
        self.begin()
        self.server.permitted = False
        self.connect()
        self.caller.submit(b"a", b"b")
        self.run_dry()
        self.assertEqual(self.session.state, State.FAILED)
        self.assertIn("FORBIDDEN", str(self.session.failure))
        self.assertIn("operator", str(self.session.failure))
        self.assertEqual(self.server.logged, [])

    def test_resends_within_the_window(self) -> None:
        """After a cut everything in flight is sent again: receipts for all, nothing twice."""
        self.begin()
        self.connect()
        self.run_dry()
        self.caller.submit(*(b"%d" % n for n in range(100)))
        self.server.take(self.caller.proceed())
        self.server.store.commit()
        answers = self.server.say()
        self.session.receive(answers[: 10 * FRAME_BYTES + 5])
        self.cut()
        self.assertEqual(self.session.state, State.OFFLINE)
        self.assertEqual(self.session.trouble, "cut")
        self.connect()
        self.run_dry()
        self.assertEqual(self.caller.delivered, [b"%d" % n for n in range(100)])
        self.assertEqual(self.server.logged, self.caller.delivered)
        self.assertEqual(self.session.trouble, "")

    def _lose_receipts(self, *bodies: bytes) -> None:
        """Have messages logged, and lose every receipt."""
        self.connect()
        self.run_dry()
        self.caller.submit(*bodies)
        self.server.take(self.caller.proceed())
        self.server.store.commit()
        self.cut()

    def _serve_with_window(self, window: int) -> None:
        """The same log, served with a smaller window."""
        old = self.server.store
        self.server.store = MemoryStore(window, automatic=False)
        batch = make_batch(ID, 1, *(m[2] for m in old.messages))
        self.server.store.append(batch, lambda verdict: None)
        self.server.store.commit()
        self.server.end()
        self.server.serve(MAX_BODY)

    def test_older_than_the_window(self) -> None:
        """
        What is too old to be compared has the TERMS for a receipt, but not before the server has
        acknowledged the message behind it.
        """
        self.begin()
        bodies = [b"%d" % n for n in range(20)]
        self._lose_receipts(*bodies)
        self._serve_with_window(8)
        self.connect()
        self.turn()
        self.assertEqual(self.session.window, 8)
        sent = self.caller.proceed()
        (run,) = FrameDecoder(MAX_BODY).feed(sent)
        self.assertEqual((run.first, run.bodies), (13, bodies[12:]))
        self.assertEqual(self.caller.receipts, [])
        self.server.take(sent)
        self.run_dry()
        self.caller.submit(b"new")
        self.run_dry()
        self.assertEqual(self.caller.delivered, [*bodies, b"new"])
        self.assertEqual(self.server.logged, self.caller.delivered)

    def test_somebody_elses_past(self) -> None:
        """What another client logged under the same id is no receipt for what is on trust."""
        self.begin()
        self._lose_receipts(*(b"%d" % n for n in range(20)))
        self.server.store.messages = [(ID, n, b"another's") for n in range(1, 21)]
        self._serve_with_window(8)
        self.connect()
        self.run_dry()
        self.assertEqual(self.session.state, State.FAILED)
        self.assertIn("CONFLICT", str(self.session.failure))
        self.assertIn("sequence 13", str(self.session.failure))
        self.assertEqual(self.caller.receipts, [])
        self.assertEqual(len(self.session), 20)

    def test_on_trust_and_cut(self) -> None:
        """What is on trust when the connection is lost is so again on the next."""
        self.begin()
        bodies = [b"%d" % n for n in range(20)]
        self._lose_receipts(*bodies)
        self._serve_with_window(8)
        for _ in range(2):
            self.connect()
            self.turn()
            self.assertTrue(self.caller.proceed())
            self.cut()
        self.assertEqual(self.caller.receipts, [])
        self.connect()
        self.run_dry()
        self.assertEqual(self.caller.delivered, bodies)

    def test_on_trust_by_the_piece(self) -> None:
        """Those on trust take no room, so that the messages that can be compared get there."""
        self.begin()
        self._lose_receipts(*(b"%d" % n for n in range(20)))
        self._serve_with_window(4)
        # Another life, that knows 3 of them at a time.
        self.session = Session(CLIENT, 1, 3, 20)
        self.caller = Caller(self.session)
        self.connect()
        at, lost = 0, False
        while at < 20 or self.turn():
            count = min(self.session.room, 20 - at)
            self.caller.submit(*(b"%d" % n for n in range(at, at + count)))
            at += count
            self.turn()
            if at == 6 and not lost:
                lost = True
                self.cut()
                self.assertEqual(self.session.room, 0)
                self.connect()
        self.assertEqual(self.caller.delivered, [b"%d" % n for n in range(20)])

    def test_durable_and_too_long_by_now(self) -> None:
        """What was logged when the server took longer ones is not refused, nor sent again."""
        self.begin()
        long = b"x" * MAX_BODY
        self._lose_receipts(b"a", long, b"b", long)
        self.server.end()
        self.server.serve(MAX_BODY - 1)
        self.caller.submit(long, b"c")
        self.connect()
        self.run_dry()
        self.assertEqual(self.caller.delivered, [b"a", long, b"b", long, b"c"])
        self.assertEqual(self.caller.refused, [long])
        self.assertEqual(self.server.logged, self.caller.delivered)

    def test_too_long_behind_what_is_on_trust(self) -> None:
        """Without a message that can be compared the TERMS alone are the receipt."""
        self.begin()
        long = b"x" * MAX_BODY
        self._lose_receipts(b"a", b"b", b"c", long)
        self._serve_with_window(1)
        self.server.end()
        self.server.serve(MAX_BODY - 1)
        self.connect()
        self.run_dry()
        self.assertEqual(self.caller.delivered, [b"a", b"b", b"c", long])

    def test_used_client_id(self) -> None:
        """A client id with a past that the server alone knows goes on with its next sequence."""
        self.begin()
        self.connect()
        self.caller.submit(b"a", b"b")
        self.run_dry()
        self.cut()
        self.session = Session(CLIENT, None)
        self.caller = Caller(self.session)
        self.caller.submit(b"c")
        self.connect()
        self.run_dry()
        self.caller.submit(b"d")
        self.run_dry()
        self.assertEqual([r[:2] for r in self.caller.receipts], [(3, b"c"), (4, b"d")])
        self.assertEqual(self.server.logged, [b"a", b"b", b"c", b"d"])

    def test_used_client_id_without_a_past(self) -> None:
        """One that the server has never seen begins at 1."""
        self.begin(first=None)
        self.caller.submit(b"a")
        self.connect()
        self.run_dry()
        self.assertEqual(self.caller.delivered, [b"a"])

    def test_two_with_one_id(self) -> None:
        """Two clients with one id: the second one's messages are a conflict, and it says so."""
        self.begin()
        self.connect()
        self.run_dry()
        self.server.take(encode_message(ID, 1, b"somebody else's"))
        self.server.store.commit()
        self.server.say()
        self.caller.submit(b"mine")
        self.run_dry()
        self.assertEqual(self.session.state, State.FAILED)
        self.assertIn("CONFLICT", str(self.session.failure))
        self.assertIn("take a new client id", str(self.session.failure))
        self.assertEqual(self.caller.receipts, [])

    def test_ahead_of_us(self) -> None:
        """The server has more of this client than it ever sent."""
        self.begin()
        self._lose_receipts(b"a", b"b")
        self.connect()
        self.server.take(encode_message(ID, 3, b"c") + encode_enquiry(OTHER))
        self.server.store.commit()
        self.server.say()
        self.caller.submit(*(b"never sent" for _ in range(5)))
        self.run_dry()
        self.assertEqual(self.session.state, State.FAILED)
        self.assertIn("has sent 2 messages at most, and the server has 3", self.session.trouble)
        self.assertEqual(self.caller.receipts, [])

    def test_ahead_of_what_was_refused(self) -> None:
        """A refused message's sequence was sent and not used: a server that has it is wrong."""
        self.begin()
        self.connect()
        self.run_dry()
        self.session.max_body = 2 * MAX_BODY
        self.caller.submit(b"x" * (MAX_BODY + 1))
        self.run_dry()
        self.cut()
        self.server.store.messages = [(ID, 1, b"another's")]
        self._serve_with_window(8)
        self.connect()
        self.run_dry()
        self.assertEqual(self.session.state, State.FAILED)
        self.assertIn("has sent 0 messages at most", self.session.trouble)

    def test_log_set_back(self) -> None:
        """A server that has lost what it acknowledged: nothing is sent, and the text says why."""
        self.begin()
        self.connect()
        self.caller.submit(b"a", b"b")
        self.run_dry()
        self.cut()
        self.server.store.messages = [(ID, 1, b"a")]
        self._serve_with_window(8)
        self.caller.submit(b"c")
        self.connect()
        self.run_dry()
        self.assertEqual(self.session.state, State.FAILED)
        text = str(self.session.failure)
        self.assertIn("has acknowledged sequence 2, and now its last is 1", text)
        self.assertIn("set back or lost", text)
        self.assertEqual(self.server.logged, [b"a"])

    def test_log_set_back_in_the_middle(self) -> None:
        """The same on a connection that stays."""
        self.begin()
        self.connect()
        self.caller.submit(b"a", b"b", b"c")
        self.run_dry()
        self.server.store._ledger._clients.clear()
        self.caller.submit(b"d")
        self.run_dry()
        self.assertEqual(self.session.state, State.FAILED)
        self.assertIn("acknowledged sequence 3, and now its last is 0", str(self.session.failure))

    def test_failed_for_good(self) -> None:
        """A session that has failed stays so, and gives back what it holds."""
        self.begin()
        self.server.permitted = False
        self.connect()
        self.caller.submit(b"a", b"b")
        self.run_dry()
        self.caller.submit(b"c")
        why = self.session.trouble
        self.session.disconnected("closed")
        self.session.connected()
        self.session.retry()
        self.session.receive(encode_terms(ID, 0, 1, MAX_BODY, 8))
        self.assertEqual(self.session.state, State.FAILED)
        self.assertEqual(self.caller.proceed(), b"")
        self.assertEqual(self.session.trouble, why)
        self.assertEqual([m.body for m in self.session.abandon()], [b"a", b"b", b"c"])
        self.assertEqual(len(self.session), 0)


class ScriptCase(SynchronousTestCase):
    """A session whose peer says what a good server never does."""

    def begin(self, *bodies: bytes, window: int = 1024, **session) -> Session:
        """A session with messages, which are sent if there are any."""
        self.session = Session(CLIENT, **session)
        self.caller = Caller(self.session)
        self.caller.submit(*bodies)
        self.session.connected()
        self.caller.proceed()
        self.terms(0, window)
        self.sent = self.caller.proceed()
        return self.session

    def terms(self, durable: int, window: int = 1024) -> None:
        self.session.receive(encode_terms(ID, durable, PROTOCOL_VERSION, MAX_BODY, window))

    def heads(self, first: int, *bodies: bytes) -> list[bytes]:
        return [encode_message(ID, n, body)[4:FRAME_BYTES] for n, body in enumerate(bodies, first)]

    def nack(self, sequence: int, code: int, expected: int = 0, reason: str = "why") -> None:
        self.session.receive(encode_nack(ID, sequence, code, expected, reason))

    def leaves(self, why: str) -> None:
        """The connection is left, nothing has a receipt, and all is sent again on the next."""
        self.assertEqual(self.session.state, State.LEAVING)
        self.assertIn(why, self.session.trouble)
        self.assertIsNone(self.session.failure)
        held = len(self.session)
        self.assertEqual(self.caller.proceed(), b"")
        self.assertEqual(self.caller.settled, [])
        self.session.disconnected("closed")
        self.assertEqual(self.session.state, State.OFFLINE)
        self.assertEqual(len(self.session), held)
        self.session.connected()
        self.caller.proceed()
        self.terms(0)
        self.assertEqual(self.caller.proceed(), self.sent)


class WrongAnswers(ScriptCase):
    """The session never takes for a receipt what is none."""

    def test_another_checksum(self) -> None:
        """An ACK with another checksum."""
        self.begin(b"a", b"b")
        self.session.receive(encode_acks(self.heads(1, b"x", b"b")))
        self.leaves("receipt 1 is not for the message that was sent")

    def test_another_sequence(self) -> None:
        """An ACK of another message."""
        self.begin(b"a", b"b")
        self.session.receive(encode_acks(self.heads(1, b"a", b"b")[1:]))
        self.leaves("receipt 2 is not for the message that was sent")

    def test_another_client(self) -> None:
        """An ACK for somebody else."""
        self.begin(b"a")
        self.session.receive(encode_acks([encode_message(OTHER, 1, b"a")[4:FRAME_BYTES]]))
        self.leaves("is not for the message that was sent")

    def test_the_second_is_wrong(self) -> None:
        """The first of two receipts stands; from the second one on all is sent again."""
        self.begin(b"a", b"b", b"c")
        self.session.receive(encode_acks(self.heads(1, b"a", b"x", b"c")))
        self.assertEqual(self.session.state, State.LEAVING)
        self.caller.proceed()
        self.assertEqual(self.caller.delivered, [b"a"])
        self.session.receive(encode_acks(self.heads(2, b"b")))  # of no interest any more
        self.session.disconnected("closed")
        self.session.connected()
        self.caller.proceed()
        self.terms(1)
        self.assertEqual(
            self.caller.proceed(), encode_message(ID, 2, b"b") + encode_message(ID, 3, b"c")
        )

    def test_more_than_was_asked(self) -> None:
        """A receipt when nothing is in flight, and one more than is."""
        self.begin()
        self.session.receive(encode_acks(self.heads(1, b"a")))
        self.leaves("answered what was not asked")
        self.begin(b"a")
        self.session.receive(encode_acks(self.heads(1, b"a", b"b")))
        self.assertEqual(self.session.state, State.LEAVING)
        self.caller.proceed()
        self.assertEqual(self.caller.delivered, [b"a"])

    def test_terms_for_a_message(self) -> None:
        """TERMS are no answer to a message."""
        self.begin(b"a")
        self.terms(1)
        self.leaves("answered a message with its terms")

    def test_garbage(self) -> None:
        """What is no frame of the protocol, whole or not, asked or not."""
        for garbage in (
            b"HTTP/1.1 400 Bad Request\r\n",
            b"\x15\x03\x01\x00\x02\x02\x28",
            bytes(40),
            encode_nack(ID, 1, 99, 0, "a code that there is not"),
            encode_message(ID, 1, b"a"),
            encode_acks(self.heads(1, b"a"))[:3]
            + b"\x1e"
            + encode_acks(self.heads(1, b"a"))[4:]
            + b"!",
            encode_terms(ID, 0, 1, 2, 3)[:-1] + b"\xff",
        ):
            with self.subTest(garbage=garbage):
                self.begin(b"a")
                self.session.receive(garbage)
                self.leaves("does not speak msglog's protocol")
                self.session = Session(CLIENT)
                self.session.connected()
                self.session.receive(garbage)
                self.assertEqual(self.session.state, State.LEAVING)

    def test_a_piece_at_a_time(self) -> None:
        """Answers that arrive byte by byte are answers."""
        self.begin(b"a", b"b")
        for byte in encode_acks(self.heads(1, b"a", b"b")):
            self.session.receive(bytes([byte]))
        self.caller.proceed()
        self.assertEqual(self.caller.delivered, [b"a", b"b"])

    def test_pieces_do_not_survive_the_connection(self) -> None:
        """The beginning of an answer on one connection is not continued on the next."""
        self.begin(b"a")
        self.session.receive(encode_acks(self.heads(1, b"a"))[:20])
        self.session.disconnected("cut")
        self.session.connected()
        self.terms(0)
        self.assertEqual(self.session.state, State.SENDING)

    def test_while_offline(self) -> None:
        """What still comes from a connection that is lost is nothing."""
        self.begin(b"a")
        self.session.disconnected("cut")
        self.session.receive(encode_acks(self.heads(1, b"a")))
        self.caller.proceed()
        self.assertEqual(self.caller.receipts, [])
        self.assertFalse(self.session.awaiting)

    def test_out_of_turn(self) -> None:
        """A NACK of a message that is not the next to be answered."""
        self.begin(b"a", b"b")
        self.nack(2, NackCode.TOO_LONG)
        self.leaves("refused sequence 2 out of turn")

    def test_out_of_order_in_order(self) -> None:
        """OUT_OF_ORDER for the very message that the server says it expects, or has."""
        for expected in (0, 1, 2, 9):
            self.begin(b"a", b"b")
            self.nack(1, NackCode.OUT_OF_ORDER, expected)
            self.nack(2, NackCode.OUT_OF_ORDER, expected)
            self.leaves(f"refused sequence 1 and expects {expected}")

    def test_too_long_and_logged(self) -> None:
        """TOO_LONG for a message that is durable by the TERMS."""
        self.session = Session(CLIENT, 1, 1024, 5)
        self.caller = Caller(self.session)
        self.caller.submit(*b"abcde".split())
        self.session.connected()
        self.terms(1, window=1)
        self.caller.proceed()
        self.nack(1, NackCode.TOO_LONG)
        self.assertEqual(self.session.state, State.LEAVING)
        self.assertIn("sequence 1 is logged and too long", self.session.trouble)
        self.caller.proceed()
        self.assertEqual(self.caller.settled, [])

    def test_a_window_of_nothing(self) -> None:
        """A server whose window is 0 is sent one message at a time."""
        self.begin(b"a", b"b", window=0)
        self.assertEqual(self.sent, encode_message(ID, 1, b"a"))
        self.session.receive(encode_acks(self.heads(1, b"a")))
        self.assertEqual(self.caller.proceed(), encode_message(ID, 2, b"b"))


class Refusals(ScriptCase):
    """Each NACK, in the middle of what is in flight."""

    def drain(self, code: NackCode, expected: int = 2) -> None:
        """Refuse 2 of 1 … 4; the answers behind it come piece by piece."""
        self.begin(b"a", b"b", b"c", b"d")
        refusal = encode_nack(ID, 2, code, expected, "why")
        self.session.receive(encode_acks(self.heads(1, b"a")) + refusal)
        self.caller.proceed()
        self.assertEqual(self.caller.delivered, [b"a"])
        if code not in (NackCode.CORRUPT, NackCode.TOO_LONG, NackCode.NOT_STORED):
            return  # nothing is sent here any more, so what is behind these matters to nobody
        self.assertEqual(self.session.state, State.DRAINING)
        self.assertEqual(self.session.trouble, f"{code.name}: why")
        self.assertTrue(self.session.online)
        self.assertTrue(self.session.awaiting)
        self.caller.submit(b"e")
        self.assertEqual(self.caller.proceed(), b"")
        self.session.receive(encode_nack(ID, 3, NackCode.OUT_OF_ORDER, 2, "expected 2"))
        self.assertEqual(self.session.state, State.DRAINING)
        self.assertEqual(self.caller.proceed(), b"")
        self.session.receive(encode_nack(ID, 4, NackCode.OUT_OF_ORDER, 2, "expected 2"))
        self.assertFalse(self.session.awaiting)

    def test_back_to_sending(self) -> None:
        """CORRUPT: from the damaged one on all is sent again."""
        self.drain(NackCode.CORRUPT)
        self.assertEqual(self.session.state, State.SENDING)
        (run,) = FrameDecoder(MAX_BODY).feed(self.caller.proceed())
        self.assertEqual((run.first, run.bodies), (2, [b"b", b"c", b"d", b"e"]))

    def test_too_long(self) -> None:
        """TOO_LONG: that message is refused, and the next one takes its sequence."""
        self.drain(NackCode.TOO_LONG)
        self.assertEqual(self.session.state, State.SENDING)
        (run,) = FrameDecoder(MAX_BODY).feed(self.caller.proceed())
        self.assertEqual((run.first, run.bodies), (2, [b"c", b"d", b"e"]))
        self.assertEqual(self.caller.refused, [b"b"])

    def test_not_stored(self) -> None:
        """NOT_STORED: a pause."""
        self.drain(NackCode.NOT_STORED)
        self.assertEqual(self.session.state, State.PAUSED)
        self.assertFalse(self.session.awaiting)
        self.session.receive(encode_acks(self.heads(2, b"b")))
        self.assertEqual(self.session.state, State.LEAVING)  # nobody asked

    def test_unavailable(self) -> None:
        """UNAVAILABLE: the connection is left at once."""
        self.drain(NackCode.UNAVAILABLE)
        self.assertEqual(self.session.state, State.LEAVING)
        self.assertFalse(self.session.awaiting)

    def test_malformed(self) -> None:
        """MALFORMED: the end at once, for the server has closed the connection."""
        self.drain(NackCode.MALFORMED)
        self.assertEqual(self.session.state, State.FAILED)
        self.assertIn("MALFORMED", str(self.session.failure))
        self.assertIn("defect", str(self.session.failure))

    def test_the_end(self) -> None:
        """CONFLICT, FORBIDDEN, OUT_OF_ORDER: the end at once; a cut does not change that."""
        for code, text in (
            (NackCode.CONFLICT, "Somebody else writes under this client id"),
            (NackCode.FORBIDDEN, "Ask the operator"),
            (NackCode.OUT_OF_ORDER, "acknowledged sequence 1, and now its last is 0"),
        ):
            self.drain(code, 1)
            self.session.disconnected("cut")
            self.session.connected()
            self.assertEqual(self.caller.proceed(), b"")
            self.assertEqual(self.session.state, State.FAILED)
            self.assertIsInstance(self.session.failure, SessionFailed)
            self.assertFalse(self.session.failure.retry)
            self.assertIn(text, str(self.session.failure))
            self.assertEqual([m.body for m in self.session.abandon()], [b"b", b"c", b"d"])

    def test_nobodys(self) -> None:
        """A refusal with zeros where the server could not tell is about the next message."""
        self.begin(b"a")
        self.session.receive(encode_nack(bytes(16), 0, NackCode.MALFORMED, 0, "no frame"))
        self.assertEqual(self.session.state, State.FAILED)

    def test_receipts_among_what_is_drained(self) -> None:
        """A resend behind a refusal may be acknowledged; it has its receipt when sent again."""
        self.begin(b"a", b"b", b"c")
        self.nack(1, NackCode.CORRUPT)
        self.session.receive(encode_acks(self.heads(2, b"b", b"c")))
        self.assertEqual(self.session.state, State.SENDING)
        self.assertEqual(self.caller.proceed(), self.sent)
        self.assertEqual(self.caller.receipts, [])
        self.session.receive(encode_acks(self.heads(1, b"a", b"b", b"c")))
        self.caller.proceed()
        self.assertEqual(self.caller.delivered, [b"a", b"b", b"c"])

    def test_cut_while_draining(self) -> None:
        """The answers behind a refusal on one connection are not awaited on the next."""
        self.begin(b"a", b"b")
        self.nack(1, NackCode.NOT_STORED)
        self.assertEqual(self.session.state, State.DRAINING)
        self.session.disconnected("cut")
        self.session.connected()
        self.caller.proceed()
        self.terms(0)
        self.assertEqual(self.session.state, State.SENDING)
        self.assertEqual(self.caller.proceed(), self.sent)

    def test_refused_when_asked(self) -> None:
        """The answer to the ENQUIRY may be a refusal too."""
        for code in NackCode:
            self.session = Session(CLIENT)
            self.session.connected()
            self.nack(0, code)
            fatal = code is NackCode.MALFORMED
            self.assertEqual(self.session.state, State.FAILED if fatal else State.LEAVING)
            self.assertIn(f"{code.name}", self.session.trouble)


class Terms(ScriptCase):
    """What the server's terms may contradict."""

    def ask(self, answer: bytes, *bodies: bytes, **session) -> None:
        self.session = Session(CLIENT, **session)
        self.caller = Caller(self.session)
        self.caller.submit(*bodies)
        self.session.connected()
        self.caller.proceed()
        self.session.receive(answer)

    def test_version(self) -> None:
        """Another version of the protocol."""
        self.ask(encode_terms(ID, 0, PROTOCOL_VERSION + 1, 1, 1))
        self.assertEqual(self.session.state, State.FAILED)
        self.assertIn("version 2", str(self.session.failure))

    def test_somebody_elses(self) -> None:
        """TERMS for another client id, and no TERMS at all."""
        for answer in (
            encode_terms(OTHER, 0, PROTOCOL_VERSION, 1, 1),
            encode_acks(self.heads(1, b"a")),
        ):
            self.ask(answer)
            self.assertEqual(self.session.state, State.LEAVING)
            self.assertIn("something else than it was asked", self.session.trouble)

    def test_ahead(self) -> None:
        """More than an earlier life may have sent."""
        self.ask(encode_terms(ID, 6, 1, MAX_BODY, 8), b"a", b"b", highest=5)
        self.assertEqual(self.session.state, State.FAILED)
        self.assertIn("has sent 5 messages at most, and the server has 6", self.session.trouble)

    def test_what_only_waits_was_never_sent(self) -> None:
        """Messages that were handed over while offline are no reason to believe the server."""
        self.ask(encode_terms(ID, 2000, 1, MAX_BODY, 8), *[b"x"] * 3000)
        self.assertEqual(self.session.state, State.FAILED)
        self.assertEqual(self.caller.proceed(), b"")
        self.assertEqual(self.caller.receipts, [])

    def test_behind(self) -> None:
        """Less than was acknowledged."""
        self.ask(encode_terms(ID, 5, 1, MAX_BODY, 8), first=7)
        self.assertEqual(self.session.state, State.FAILED)
        self.assertIn("acknowledged sequence 6, and now its last is 5", self.session.trouble)

    def test_trouble_is_over(self) -> None:
        """With nothing to send, TERMS are the end of a trouble; otherwise a receipt is."""
        for bodies, expected in (((), ""), ((b"a",), "cut")):
            self.session = Session(CLIENT)
            self.caller = Caller(self.session)
            self.caller.submit(*bodies)
            self.session.disconnected("cut")
            self.session.connected()
            self.terms(0)
            self.assertEqual(self.session.trouble, expected)

    def test_the_last_sequence(self) -> None:
        """The last sequence that there is can be used, and none behind it."""
        self.ask(encode_terms(ID, MAX_SEQUENCE - 1, 1, MAX_BODY, 8), b"last", first=MAX_SEQUENCE)
        self.assertEqual(self.caller.proceed(), encode_message(ID, MAX_SEQUENCE, b"last"))
        self.session.receive(encode_acks(self.heads(MAX_SEQUENCE, b"last")))
        self.caller.submit(b"one more")
        self.assertEqual(self.caller.proceed(), b"")
        self.assertEqual(self.session.state, State.FAILED)
        self.assertIn("has used all its sequences", str(self.session.failure))
        self.assertEqual(len(self.caller.receipts), 1)


sizes = st.integers(0, 120)
actions = st.one_of(
    st.tuples(st.just("submit"), st.lists(st.integers(0, MAX_BODY + 3), min_size=1, max_size=12)),
    st.tuples(st.just("up"), sizes),
    st.tuples(st.just("down"), sizes),
    st.tuples(st.sampled_from(["up", "down"]), st.just(1 << 20)),
    st.tuples(st.sampled_from(["commit", "cut", "connect", "retry", "damage"]), st.none()),
    st.tuples(st.just("full"), st.booleans()),
)


class Schedules(SynchronousTestCase):
    """Whatever happens in between, and in whatever order."""

    @settings(deadline=None, max_examples=400)
    @given(st.integers(1, 6), st.sampled_from([1, 3, 1024]), st.lists(actions, max_size=60))
    def test_like_the_model(self, own: int, window: int, script: list) -> None:
        """
        Receipts exactly once and in order; the log is what was submitted but what was too long;
        until there is a receipt the session holds the message.
        """
        server = ServerSide(window)
        session = Session(CLIENT, window=own)
        caller = Caller(session)
        submitted: list[bytes] = []
        up = down = b""
        damage = False

        def proceed() -> None:
            nonlocal up, damage
            data = caller.proceed()
            if data and damage:
                data, damage = data[:-1] + bytes([data[-1] ^ 1]), False
            up += data
            held = len(session)
            assert [m.body for m in caller.settled] == submitted[: len(submitted) - held]
            assert caller.delivered == server.logged[: len(caller.receipts)]

        def cut() -> None:
            nonlocal up, down
            up = down = b""
            if server.transport is not None:
                server.lose()
                session.disconnected("cut")

        def connect() -> None:
            if server.transport is None:
                server.accept()
                session.connected()

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
                session.receive(piece)
            if session.state is State.LEAVING:
                cut()

        try:
            for action, value in script:
                if action == "submit":
                    bodies = [b"%d" % len(submitted) + b"." * size for size in value]
                    submitted += bodies
                    caller.submit(*bodies)
                elif action == "up":
                    move(value, 0)
                elif action == "down":
                    move(0, value)
                elif action == "damage":
                    damage = True
                elif action == "full":
                    server.store.full = value
                elif action == "commit":
                    server.store.commit()
                elif action == "cut":
                    cut()
                elif action == "connect":
                    connect()
                else:
                    session.retry()
                proceed()
            # Everything is well again, and all that was begun comes to its end.
            server.store.full = False
            for _ in range(10 * len(submitted) + 20):
                connect()
                session.retry()
                proceed()
                move(1 << 20, 1 << 20)
                server.store.commit()
            assert session.failure is None, session.failure
            proceed()
            assert len(session) == 0
            assert caller.refused == [body for body in submitted if len(body) > MAX_BODY]
            assert caller.delivered == [body for body in submitted if len(body) <= MAX_BODY]
            assert server.logged == caller.delivered
            assert session.trouble == ""
        finally:
            server.end()
