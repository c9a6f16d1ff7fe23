"""One client's end of a stream: what is requested when, and what each outcome makes of it."""

from __future__ import annotations

from twisted.trial.unittest import SynchronousTestCase

from msglog import NackCode
from msglog._batch import STORED, Verdict
from msglog._jetstream import (
    MAX_LINES,
    MAX_PAYLOAD,
    Appended,
    AppendOutcome,
    StoredMessage,
)
from msglog._records import format_fragments, format_time, parse_line
from msglog._tail import Append, ClientTail, Confirm, ReadEarlier, ReadTail, Unsettled
from msglog.testing import make_batch

A = bytes(range(16))
TIME = format_time(10**15)
UNKNOWN = Appended(AppendOutcome.UNKNOWN, reason="no answer")


def stored(sequence: int) -> Appended:
    return Appended(AppendOutcome.STORED, sequence)


def message(sequence: int, previous: int, first: int, *bodies: bytes) -> StoredMessage:
    batch = make_batch(A, first, *bodies)
    last = first + len(bodies) - 1
    return StoredMessage(sequence, previous, first, last, batch.checksums)


class TailCase(SynchronousTestCase):
    def setUp(self) -> None:
        self.tail = ClientTail(A, 1024)
        self.said: list = []

    def append(self, first: int, *bodies: bytes) -> None:
        batch = make_batch(A, first, *bodies)
        self.tail.add(Unsettled(batch, self.hear, 0.0, fragments=format_fragments(batch)))

    def hear(self, answer) -> None:
        self.said.append(answer)

    def ask(self) -> None:
        self.tail.add(Unsettled(None, self.hear, 0.0))

    def proceed(self):
        return self.tail.proceed(TIME)

    def answers(self) -> list:
        for judged, answer in self.tail.answers():
            judged(answer)
        said, self.said = self.said, []
        return said

    def known(self, *bodies: bytes, sequence: int = 7) -> None:
        """Have the tail known, with these messages."""
        self.ask()
        self.assertEqual(self.proceed(), ReadTail())
        self.tail.tail_read(message(sequence, 0, 1, *bodies) if bodies else None, 0.0)
        self.confirm()
        self.proceed()
        self.assertEqual(self.answers(), [len(bodies)])

    def confirm(self) -> None:
        """Have it wanted and confirmed that the tail was read from who leads."""
        self.assertEqual(self.proceed(), Confirm())
        self.assertEqual(self.answers(), [])
        self.tail.confirmed(True)

    def refusal(self):
        (verdict,) = self.answers()
        self.assertIsInstance(verdict, Verdict)
        (refusal,) = verdict.refusals
        return refusal


class AppendTest(TailCase):
    def test_first(self) -> None:
        """A client that is new here has its tail read; then its batch is appended to nothing."""
        self.append(1, b"a", b"b")
        self.assertEqual(self.proceed(), ReadTail())
        self.assertIsNone(self.proceed())
        self.tail.tail_read(None, 0.0)
        request = self.proceed()
        self.assertEqual((request.previous, request.first, request.last), (0, 1, 2))
        records = [parse_line(line) for line in request.payload.splitlines(keepends=True)]
        self.assertEqual([(r.sequence, r.body) for r in records], [(1, b"a"), (2, b"b")])
        self.assertEqual(self.answers(), [])
        self.tail.appended(stored(5))
        self.assertEqual(self.answers(), [STORED])
        self.assertTrue(self.tail.idle)

    def test_one_in_flight(self) -> None:
        """What arrives meanwhile is the next append, which expects the one before."""
        self.known()
        self.append(1, b"a")
        self.proceed()
        self.append(2, b"b")
        self.append(3, b"c")
        self.assertIsNone(self.proceed())
        self.tail.appended(stored(5))
        request = self.proceed()
        self.assertEqual((request.previous, request.first, request.last), (5, 2, 3))
        self.tail.appended(stored(6))
        self.assertEqual(self.answers(), [STORED] * 3)

    def test_parts(self) -> None:
        """A message has no more lines than it may, and none is judged before its last is stored."""
        self.known()
        self.append(1, *[b"x"] * (MAX_LINES + 1))
        first = self.proceed()
        self.assertEqual((first.first, first.last), (1, MAX_LINES))
        self.tail.appended(stored(5))
        self.assertEqual(self.answers(), [])
        second = self.proceed()
        self.assertEqual((second.previous, second.first, second.last), (5, 1001, 1001))
        self.tail.appended(stored(6))
        self.assertEqual(self.answers(), [STORED])

    def test_bytes(self) -> None:
        """Nor more bytes; a line that is longer than that goes alone."""
        self.known()
        self.append(1, bytes(60_000), bytes(60_000), b"x")
        sizes = []
        for sequence in (5, 6):
            request = self.proceed()
            sizes.append((request.first, request.last, len(request.payload) > MAX_PAYLOAD))
            self.tail.appended(stored(sequence))
        self.assertEqual(sizes, [(1, 1, True), (2, 2, True)])
        self.assertEqual(self.proceed().last, 3)

    def test_small_window(self) -> None:
        """With a small window an append is no longer than that, or it could not be recognised."""
        self.tail = ClientTail(A, 2)
        self.known()
        self.append(1, b"a", b"b", b"c")
        self.assertEqual(self.proceed().last, 2)

    def test_no_room(self) -> None:
        """What was sent is refused, what was logged is acknowledged, and the next one is sent."""
        self.known(b"a")
        self.append(1, b"a", b"b")
        self.proceed()
        self.tail.appended(Appended(AppendOutcome.NO_ROOM, reason="full"))
        refusal = self.refusal()
        self.assertEqual(
            (refusal.start, refusal.stop, refusal.code, refusal.expected, refusal.reason),
            (1, 2, NackCode.NOT_STORED, 2, "full"),
        )
        self.append(2, b"b")
        self.assertEqual(self.proceed().previous, 7)


class UncertainTest(TailCase):
    def setUp(self) -> None:
        super().setUp()
        self.known(b"a")
        self.append(2, b"b", b"c")
        self.proceed()
        self.tail.appended(UNKNOWN)
        self.assertEqual(self.answers(), [])
        self.assertEqual(self.proceed(), ReadTail())

    def test_landed(self) -> None:
        """What was stored is acknowledged and not sent again."""
        self.tail.tail_read(message(9, 7, 2, b"b", b"c"), 0.0)
        self.assertIsNone(self.proceed())
        self.assertEqual(self.answers(), [STORED])
        self.append(4, b"d")
        self.assertEqual(self.proceed().previous, 9)

    def test_not_landed(self) -> None:
        """What was not is sent again on the same condition, with what came meanwhile."""
        self.append(4, b"d")
        self.tail.tail_read(message(7, 0, 1, b"a"), 0.0)
        request = self.proceed()
        self.assertEqual((request.previous, request.first, request.last), (7, 2, 4))

    def test_part_landed(self) -> None:
        """An earlier attempt may hold less: the rest is sent."""
        self.tail.tail_read(message(9, 7, 2, b"b"), 0.0)
        request = self.proceed()
        self.assertEqual((request.previous, request.first, request.last), (9, 3, 3))
        self.tail.appended(stored(10))
        self.assertEqual(self.answers(), [STORED])

    def test_somebody_else(self) -> None:
        """Other bytes at its sequence: a conflict, and what is behind them is appended."""
        self.tail.tail_read(message(9, 7, 2, b"other"), 0.0)
        self.proceed()
        self.tail.appended(stored(10))
        refusal = self.refusal()
        self.assertEqual((refusal.start, refusal.stop, refusal.code), (0, 1, NackCode.CONFLICT))

    def test_unread(self) -> None:
        """A tail that cannot be read is asked for again."""
        self.tail.unread()
        self.assertEqual(self.proceed(), ReadTail())

    def test_behind(self) -> None:
        """A tail below what was seen is not believed, and it is known since when."""
        self.assertFalse(self.tail.tail_read(None, 3.0))
        self.assertEqual(self.proceed(), ReadTail())
        self.assertFalse(self.tail.tail_read(None, 4.0))
        self.assertEqual(self.tail.behind_since, 3.0)
        self.assertEqual(self.proceed(), ReadTail())
        self.assertTrue(self.tail.tail_read(message(7, 0, 1, b"a"), 5.0))
        self.assertIsNone(self.tail.behind_since)

    def test_given_up(self) -> None:
        """Nothing waits for ever; what lands later is acknowledged when it is sent again."""
        self.tail.refuse_all(NackCode.UNAVAILABLE, "too long")
        self.assertEqual(self.refusal().code, NackCode.UNAVAILABLE)
        self.tail.tail_read(message(9, 7, 2, b"b", b"c"), 0.0)
        self.append(2, b"b", b"c")
        self.assertIsNone(self.proceed())
        self.assertEqual(self.answers(), [STORED])

    def test_given_up_in_flight(self) -> None:
        """The same while an append is under way, whose outcome nobody waits for any more."""
        self.tail.tail_read(message(7, 0, 1, b"a"), 0.0)
        self.proceed()
        self.tail.refuse_all(NackCode.UNAVAILABLE, "too long")
        self.assertEqual(len(self.answers()), 1)
        self.append(4, b"d")
        self.tail.appended(stored(9))
        self.assertEqual(self.answers(), [])
        self.assertEqual(self.proceed().previous, 9)

    def test_given_up_in_flight_without_room(self) -> None:
        """And what came later is not taken for what was in flight."""
        self.tail.tail_read(message(7, 0, 1, b"a"), 0.0)
        self.proceed()
        self.tail.refuse_all(NackCode.UNAVAILABLE, "too long")
        self.assertEqual(len(self.answers()), 1)
        self.append(2, b"b")
        self.tail.appended(Appended(AppendOutcome.NO_ROOM, reason="full"))
        self.assertEqual(self.answers(), [])
        self.assertEqual(self.proceed().first, 2)


class JudgeTest(TailCase):
    def test_order_is_asked_again(self) -> None:
        """That a batch is out of order is only said by a tail that was read after it came."""
        self.known(b"a")
        self.append(3, b"c")
        self.assertEqual(self.proceed(), ReadTail())
        self.tail.tail_read(message(7, 0, 1, b"a"), 0.0)
        self.confirm()
        self.assertIsNone(self.proceed())
        refusal = self.refusal()
        self.assertEqual((refusal.code, refusal.expected), (NackCode.OUT_OF_ORDER, 2))

    def test_not_from_who_leads(self) -> None:
        """What a leader says that is none any more is not passed on; the next one is asked."""
        self.ask()
        self.append(3, b"c")
        for _ in range(2):
            self.assertEqual(self.proceed(), ReadTail())
            self.tail.tail_read(message(7, 0, 1, b"a"), 0.0)
            self.assertEqual(self.proceed(), Confirm())
            self.tail.confirmed(False)
            self.assertEqual(self.answers(), [])
        self.assertEqual(self.proceed(), ReadTail())
        self.tail.tail_read(message(8, 7, 2, b"b"), 0.0)
        self.confirm()
        request = self.proceed()
        self.assertEqual(self.answers(), [2])
        self.assertEqual((request.previous, request.first), (8, 3))

    def test_came_while_it_was_confirmed(self) -> None:
        """What came after the tail was read is not answered by it."""
        self.ask()
        self.proceed()
        self.tail.tail_read(message(7, 0, 1, b"a"), 0.0)
        self.assertEqual(self.proceed(), Confirm())
        self.ask()
        self.tail.confirmed(True)
        self.assertEqual(self.proceed(), ReadTail())
        self.assertEqual(self.answers(), [1])

    def test_another_server_was_first(self) -> None:
        """What another server has stored meanwhile is seen, and the batch is the next."""
        self.known(b"a")
        self.append(3, b"c")
        self.proceed()
        self.tail.tail_read(message(8, 7, 2, b"b"), 0.0)
        request = self.proceed()
        self.assertEqual((request.previous, request.first), (8, 3))

    def test_last_is_asked_again(self) -> None:
        """So is a client's last sequence; and behind what came before it."""
        self.known(b"a")
        self.append(2, b"b")
        self.ask()
        self.proceed()
        self.tail.appended(stored(8))
        self.assertEqual(self.answers(), [STORED])
        self.assertEqual(self.proceed(), ReadTail())
        self.tail.tail_read(message(9, 8, 3, b"c"), 0.0)
        self.confirm()
        self.assertIsNone(self.proceed())
        self.assertEqual(self.answers(), [3])

    def test_looks_back(self) -> None:
        """A resend from before the tail is compared with the message before, and that before it."""
        self.ask()
        self.proceed()
        self.tail.tail_read(message(9, 6, 5, b"e"), 0.0)
        self.confirm()
        self.proceed()
        self.answers()
        self.append(2, b"b", b"c", b"d", b"e")
        self.assertEqual(self.proceed(), ReadEarlier(6))
        self.tail.earlier_read(message(6, 4, 3, b"c", b"d"))
        self.assertEqual(self.proceed(), ReadEarlier(4))
        self.tail.earlier_read(message(4, 0, 1, b"a", b"b"))
        self.assertIsNone(self.proceed())
        self.assertEqual(self.answers(), [STORED])

    def test_looks_back_no_further_than_the_window(self) -> None:
        """What is older than the window is a conflict, without looking."""
        self.tail = ClientTail(A, 2)
        self.ask()
        self.proceed()
        self.tail.tail_read(message(9, 6, 5, b"e", b"f"), 0.0)
        self.confirm()
        self.proceed()
        self.answers()
        self.append(4, b"d")
        self.assertIsNone(self.proceed())
        self.assertEqual(self.refusal().code, NackCode.CONFLICT)

    def test_looks_back_at_nothing(self) -> None:
        """What is not there any more cannot be compared."""
        self.ask()
        self.proceed()
        self.tail.tail_read(message(9, 6, 5, b"e"), 0.0)
        self.confirm()
        self.proceed()
        self.answers()
        self.append(4, b"d")
        self.proceed()
        self.tail.earlier_read(None)
        self.assertIsNone(self.proceed())
        self.assertEqual(self.refusal().code, NackCode.CONFLICT)

    def test_memory(self) -> None:
        """However many messages a client has, only so many checksums are held."""
        self.tail = ClientTail(A, 10)
        self.known()
        before = self.tail.memory
        for n in range(1, 101):
            self.append(n, b"x")
            self.assertIsInstance(self.proceed(), Append)
            self.tail.appended(stored(n))
        self.assertLessEqual(self.tail.memory - before, 4 * 12)
        self.append(91, b"x")
        self.assertIsNone(self.proceed())
        self.assertEqual(self.answers()[-1], STORED)
