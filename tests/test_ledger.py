"""The ledger, against a model that remembers everything."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from msglog import NackCode
from msglog._batch import STORED, Batch, Verdict
from msglog._ledger import CLIENT_BYTES, ClientState, Ledger, ReplayError, RowDamaged
from msglog._records import Record
from msglog.testing import make_batch

A = bytes(16)
WINDOW = 8

# A commit: does it succeed, and its batches: client, offset from what is expected, bodies.
batches = st.tuples(
    st.integers(0, 2), st.integers(-12, 2), st.lists(st.sampled_from([b"x", b"y"]), min_size=1)
)
commits = st.tuples(st.booleans(), st.lists(batches, max_size=5))


class ModelTest(SynchronousTestCase):
    @settings(deadline=None, max_examples=300)
    @given(st.lists(commits, max_size=20))
    def test_like_the_model(self, script: list) -> None:
        """Every verdict, through resends, conflicts, gaps and commits that fail."""
        saved: dict[bytes, ClientState] = {}
        ledger = Ledger(saved.get, WINDOW, 1 << 20)
        model: dict[bytes, list[bytes]] = {}
        for succeeds, many in script:
            trial = {client: list(bodies) for client, bodies in model.items()}
            for number, offset, bodies in many:
                client = bytes([number]) * 16
                logged = trial.setdefault(client, [])
                first = max(len(logged) + 1 + offset, 1)
                start, verdict = ledger.admit(make_batch(client, first, *bodies))
                refused = {i: r.code for r in verdict.refusals for i in range(r.start, r.stop)}
                new = len(bodies)
                before = len(logged)
                for index, body in enumerate(bodies):
                    sequence = first + index
                    if sequence <= before:
                        stale = sequence <= before - WINDOW
                        same = logged[sequence - 1] == body
                        expected = None if same and not stale else NackCode.CONFLICT
                    elif sequence == len(logged) + 1:
                        new = min(new, index)
                        logged.append(body)
                        expected = None
                    else:
                        expected = NackCode.OUT_OF_ORDER
                    self.assertEqual(refused.get(index), expected)
                self.assertEqual(start, new)
            if succeeds:
                ledger.settle()
                model = trial
            else:
                ledger.roll_back()
            for client in trial:
                self.assertEqual(ledger.last(client), len(model.get(client, [])))


class DamagedRow(SynchronousTestCase):
    """What the file has of one client is damaged."""

    def setUp(self) -> None:
        self.ledger = Ledger(self.load, WINDOW, 1 << 20)

    def load(self, client: bytes) -> ClientState | None:
        if client == A:
            raise RowDamaged(client, "its row has changed")
        return None

    def see_refused(self, batch: Batch, verdict: Verdict) -> None:
        (refusal,) = verdict.refusals
        self.assertEqual((refusal.start, refusal.stop), (0, len(batch)))
        self.assertEqual((refusal.code, refusal.expected), (NackCode.NOT_STORED, 0))
        self.assertIn("operator", refusal.reason)

    def test_messages(self) -> None:
        """Nothing of it is written or acknowledged; other clients' are."""
        batch = make_batch(A, 1, b"x", b"y")
        start, verdict = self.ledger.admit(batch)
        self.assertEqual(start, len(batch))
        self.see_refused(batch, verdict)
        self.assertEqual(self.ledger.admit(make_batch(bytes([1]) * 16, 1, b"x")), (0, STORED))
        self.ledger.settle()
        self.assertRaises(RowDamaged, self.ledger.last, A)
        self.assertEqual(self.ledger.last(bytes([1]) * 16), 1)

    def test_without_room(self) -> None:
        """Nor is it called logged while nothing can be stored."""
        batch = make_batch(A, 1, b"x", b"y")
        self.see_refused(batch, self.ledger.refuse(batch, "no room"))

    def test_said(self) -> None:
        """It is named with its client."""
        error = self.assertRaises(RowDamaged, self.load, A)
        self.assertEqual(error.client, A)
        said = "client 00000000-0000-0000-0000-000000000000 is damaged: its row has changed"
        self.assertIn(said, str(error))


class LedgerTest(SynchronousTestCase):
    def setUp(self) -> None:
        self.saved: dict[bytes, ClientState] = {}
        self.ledger = Ledger(self.saved.get, WINDOW, 100 * CLIENT_BYTES)

    def log(self, client: bytes, first: int, *bodies: bytes) -> None:
        _, verdict = self.ledger.admit(make_batch(client, first, *bodies))
        self.assertEqual(verdict.refusals, ())
        self.ledger.settle()

    def save(self) -> None:
        """A checkpoint."""
        states = {c: (s, s.last) for c, s in self.ledger.dirty.items()}
        for client, (state, last) in states.items():
            self.saved[client] = ClientState(last, state.checksums[:], last)
        self.ledger.saved(states)

    def test_asking_remembers_nothing(self) -> None:
        """Neither do refusals."""
        for number in range(1000):
            client = number.to_bytes(16, "big")
            self.assertEqual(self.ledger.last(client), 0)
            self.ledger.admit(make_batch(client, 2, b"x"))
            self.ledger.settle()
        self.assertEqual((len(self.ledger), self.ledger.memory, self.ledger.dirty), (0, 0, {}))

    def test_memory_is_bounded(self) -> None:
        """Many clients need a checkpoint now and then, not memory; nobody is forgotten."""
        for number in range(2000):
            self.log(number.to_bytes(16, "big"), 1, b"%d" % number)
            if self.ledger.overfull:
                self.save()
                self.assertFalse(self.ledger.overfull)
        self.assertLess(len(self.ledger), 102)
        self.assertEqual(
            {self.ledger.last(number.to_bytes(16, "big")) for number in range(2000)}, {1}
        )
        _, verdict = self.ledger.admit(make_batch(bytes(16), 1, b"other"))
        self.assertEqual(verdict.refusals[0].code, NackCode.CONFLICT)

    def test_active_clients_stay(self) -> None:
        """The least recently active is let go of first."""
        for number in range(99):
            self.log(number.to_bytes(16, "big"), 1, b"x")
        self.save()
        self.log(bytes(16), 2, b"y")
        for number in range(99, 110):
            self.log(number.to_bytes(16, "big"), 1, b"x")
            self.save()
        self.assertIn(bytes(16), self.ledger._clients)
        self.assertNotIn((1).to_bytes(16, "big"), self.ledger._clients)

    def test_exhausted(self) -> None:
        """If no checkpoint can be made, strangers are refused and those known are served."""
        number = 0
        while not self.ledger.exhausted:
            number += 1
            self.log(number.to_bytes(16, "big"), 1, b"x")
        _, verdict = self.ledger.admit(make_batch(bytes(16), 1, b"x"))
        self.assertEqual(verdict.refusals[0].code, NackCode.NOT_STORED)
        self.log((1).to_bytes(16, "big"), 2, b"y")

    def test_memory_counts_what_it_should(self) -> None:
        """What was rolled back or trimmed costs nothing."""
        self.log(A, 1, *[b"x"] * 100)
        state = self.ledger._clients[A]
        self.assertLess(len(state.checksums), 2 * WINDOW)
        count = self.ledger.memory
        self.ledger.admit(make_batch(A, 101, *[b"x"] * 50))
        self.ledger.admit(make_batch(b"B" * 16, 1, b"x"))
        self.ledger.roll_back()
        self.assertEqual(self.ledger.memory, count)
        self.assertEqual(count, CLIENT_BYTES + 4 * len(state.checksums))

    def test_who_comes_back_costs_what_it_should(self) -> None:
        """A client that the checkpoint has brings its checksums, and they count."""
        self.log(A, 1, *[b"x"] * WINDOW)
        self.save()
        self.ledger = Ledger(self.saved.get, WINDOW, 1 << 20)
        self.log(A, WINDOW + 1, b"y")
        self.assertEqual(self.ledger.memory, CLIENT_BYTES + 4 * (WINDOW + 1))

    def replay(self, sequence: int, body: bytes = b"x", joining: bool = False) -> None:
        checksum = make_batch(A, sequence, body).checksums[0]
        self.ledger.replay(Record(0, A, sequence, checksum, body), joining=joining)

    def test_replay(self) -> None:
        """Records follow each other; a gap or a repetition is found."""
        self.replay(1)
        self.replay(2)
        self.assertRaises(ReplayError, self.replay, 4)
        self.assertRaises(ReplayError, self.replay, 2)
        self.assertEqual(self.ledger.last(A), 2)

    def test_replay_behind_the_checkpoint(self) -> None:
        """What the checkpoint has already is passed over, unless it is something else."""
        self.replay(1)
        self.replay(2)
        self.save()
        self.ledger = Ledger(self.saved.get, WINDOW, 1 << 20)
        self.replay(1)
        self.replay(2)
        self.assertRaises(ReplayError, self.replay, 2, b"other")
        self.replay(3)
        self.assertEqual(self.ledger.last(A), 3)

    def test_replay_joining(self) -> None:
        """Only where files may be missing may a client begin above 1, and only once."""
        self.assertRaises(ReplayError, self.replay, 7)
        self.ledger = Ledger(self.saved.get, WINDOW, 1 << 20)
        self.replay(7, joining=True)
        self.assertRaises(ReplayError, self.replay, 9, joining=True)
        self.replay(8, joining=True)
        _, verdict = self.ledger.admit(make_batch(A, 6, b"x", b"x", b"x", b"x"))
        self.assertEqual([r.start for r in verdict.refusals], [0])

    def stored(self, count: int) -> None:
        self.log(A, 1, *[b"%d" % n for n in range(1, count + 1)])

    def refusals(self, first: int, *bodies: bytes) -> list[tuple[int, int, int, int]]:
        _, verdict = self.ledger.admit(make_batch(A, first, *bodies))
        self.ledger.settle()
        return [(r.start, r.stop, r.code, r.expected) for r in verdict.refusals]

    def test_what_refusals_say(self) -> None:
        """Which messages, why, what is expected, and in words that name the sequence."""
        self.stored(WINDOW + 2)
        next_one = WINDOW + 3
        self.assertEqual(
            self.refusals(next_one + 1, b"x", b"y"), [(0, 2, NackCode.OUT_OF_ORDER, next_one)]
        )
        self.assertEqual(
            self.refusals(2, b"2", b"3", b"other"),
            [(0, 1, NackCode.CONFLICT, next_one), (2, 3, NackCode.CONFLICT, next_one)],
        )
        for first, words in [
            (next_one + 1, f"expected sequence {next_one}"),
            (2, "sequence 2 is logged, but too long ago to compare"),
            (4, "sequence 4 is logged with other bytes"),
        ]:
            _, verdict = self.ledger.admit(make_batch(A, first, b"other"))
            self.assertEqual(verdict.refusals[0].reason, words)

    def test_refused_for_a_reason(self) -> None:
        """Without room what is new is NOT_STORED for that reason; the rest is judged as ever."""
        self.stored(3)
        for first, bodies, refused in [
            (1, [b"1", b"2", b"3"], []),
            (3, [b"3", b"4", b"5"], [(1, 3, NackCode.NOT_STORED)]),
            (4, [b"4"], [(0, 1, NackCode.NOT_STORED)]),
            (9, [b"9"], [(0, 1, NackCode.NOT_STORED)]),
            (2, [b"x", b"3", b"4"], [(0, 1, NackCode.CONFLICT), (2, 3, NackCode.NOT_STORED)]),
        ]:
            verdict = self.ledger.refuse(make_batch(A, first, *bodies), "no room")
            self.assertEqual([(r.start, r.stop, r.code) for r in verdict.refusals], refused)
            for refusal in verdict.refusals:
                self.assertEqual(refusal.expected, 4)
                if refusal.code is NackCode.NOT_STORED:
                    self.assertEqual(refusal.reason, "no room")
        self.assertEqual(self.ledger.last(A), 3)

    def test_memory_is_exact(self) -> None:
        """Memory is 450 bytes a client and 4 a checksum that is held, whatever happens."""
        other = b"B" * 16

        def right() -> None:
            clients = self.ledger._clients.values()
            self.assertEqual(self.ledger.memory, sum(450 + 4 * len(c.checksums) for c in clients))

        for n in range(60):
            self.log(A, n + 1, b"x")
            right()
        self.save()
        right()
        self.ledger.admit(make_batch(A, 61, b"x", b"y"))
        self.ledger.admit(make_batch(A, 63, b"z"))
        self.ledger.admit(make_batch(other, 1, b"x"))
        self.ledger.admit(make_batch(other, 2, b"x", b"x"))
        self.assertEqual(
            self.ledger.memory, 450 * 2 + 4 * (len(self.ledger._clients[A].checksums) + 3)
        )
        self.ledger.roll_back()
        right()
        self.assertEqual(
            (len(self.ledger), self.ledger.last(A), self.ledger.last(other)), (1, 60, 0)
        )
        self.ledger = Ledger(self.saved.get, WINDOW, 1 << 20)
        most = 0
        for sequence in range(61, 120):
            self.replay(sequence)
            right()
            held = len(self.ledger._clients[A].checksums)
            most = max(most, held)
            self.assertGreaterEqual(held, WINDOW)
        self.assertEqual(most, 2 * WINDOW)
        self.ledger.replay(Record(0, other, 1, 7, b""), joining=False)
        right()

    def test_limits_of_memory(self) -> None:
        """Overfull is over the limit, exhausted over twice the limit."""
        for over, overfull, exhausted in [
            (0, False, False),
            (1, True, False),
            (1000, True, False),
            (1001, True, True),
        ]:
            ledger = Ledger(self.saved.get, WINDOW, 1000)
            ledger.memory = 1000 + over
            self.assertEqual((ledger.overfull, ledger.exhausted), (overfull, exhausted))

    def test_refused_when_exhausted(self) -> None:
        """A stranger is refused whole, and told why; it leaves nothing."""
        ledger = Ledger(self.saved.get, WINDOW, 10)
        ledger.admit(make_batch(A, 1, b"x"))
        ledger.settle()
        self.assertTrue(ledger.exhausted)
        start, verdict = ledger.admit(make_batch(b"B" * 16, 1, b"x", b"y"))
        self.assertEqual(start, 2)
        (refusal,) = verdict.refusals
        self.assertEqual((refusal.start, refusal.stop, refusal.expected), (0, 2, 1))
        self.assertEqual(
            refusal.reason,
            "the ledger's memory has no room for more new clients until it is written to its file",
        )
        self.assertEqual(len(ledger), 1)

    def test_who_is_let_go_of(self) -> None:
        """Nobody before the limit is exceeded, and no more than it takes."""
        self.ledger = Ledger(self.saved.get, WINDOW, 3 * (CLIENT_BYTES + 4))
        ids = [bytes([n]) * 16 for n in range(1, 6)]
        for client in ids[:3]:
            self.log(client, 1, b"x")
        self.save()
        self.assertEqual(len(self.ledger), 3)
        self.log(ids[3], 1, b"x")
        self.assertEqual(list(self.ledger._clients), ids[1:4])
        # Those that no checkpoint has stay, and so do those behind them.
        self.log(ids[1], 2, b"y")
        self.log(ids[2], 2, b"y")
        self.log(ids[4], 1, b"x")
        self.assertEqual(len(self.ledger), 4)
        self.assertTrue(self.ledger.overfull)
        self.save()
        self.assertFalse(self.ledger.overfull)
        self.assertEqual([self.ledger.last(client) for client in ids], [1, 2, 2, 1, 1])

    def test_nobody_during_a_commit(self) -> None:
        """A checkpoint that ends while a commit is under way lets go of nobody."""
        self.ledger = Ledger(self.saved.get, WINDOW, 10)
        self.log(A, 1, b"x")
        self.ledger.admit(make_batch(A, 2, b"y"))
        self.save()
        self.assertEqual(len(self.ledger), 1)
        self.ledger.settle()
        self.assertEqual(self.ledger.last(A), 2)

    def test_saved_while_it_went_on(self) -> None:
        """A client that wrote more than the checkpoint has is not let go of."""
        self.ledger = Ledger(self.saved.get, WINDOW, 10)
        self.log(A, 1, b"x")
        state = self.ledger.dirty[A]
        self.log(A, 2, b"y")
        self.ledger.saved({A: (state, 1)})
        self.assertEqual((list(self.ledger.dirty), len(self.ledger), state.saved), ([A], 1, 1))
        self.ledger.saved({A: (state, 2)})
        self.assertEqual((self.ledger.dirty, len(self.ledger), self.ledger.memory), ({}, 0, 0))

    def test_trimmed(self) -> None:
        """Checksums beyond the window go when they are a quarter of it, and never within it."""
        for n in range(1, WINDOW + 3):
            self.log(A, n, b"%d" % n)
        self.assertEqual(len(self.ledger._clients[A].checksums), WINDOW + 2)
        self.log(A, WINDOW + 3, b"x")
        self.assertEqual(len(self.ledger._clients[A].checksums), WINDOW)
        self.assertEqual(self.refusals(4, *[b"%d" % n for n in range(4, WINDOW + 3)]), [])

    def test_replay_says_what_is_wrong(self) -> None:
        """The error names the sequence and what would be next."""
        self.replay(1)
        with self.assertRaises(ReplayError) as caught:
            self.replay(5)
        self.assertEqual(str(caught.exception), "sequence 5 of a client whose next is 2")
        self.assertRaises(ReplayError, self.replay, 0)

    def test_replay_behind_what_is_remembered(self) -> None:
        """A record older than all that is remembered is taken for the one that was saved."""
        for n in range(1, 4 * WINDOW):
            self.log(A, n, b"x")
        self.save()
        self.ledger = Ledger(self.saved.get, WINDOW, 1 << 20)
        self.replay(1, b"other")
        held = len(self.saved[A].checksums)
        oldest = 4 * WINDOW - held
        self.replay(oldest - 1, b"other")
        self.assertRaises(ReplayError, self.replay, oldest, b"other")
        self.replay(oldest)
        self.assertEqual(self.ledger.dirty, {})
        self.replay(4 * WINDOW)
        self.assertEqual(list(self.ledger.dirty), [A])
