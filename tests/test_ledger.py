"""The ledger, against a model that remembers everything."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from msglog import NackCode
from msglog._ledger import CLIENT_BYTES, ClientState, Ledger, ReplayError
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
