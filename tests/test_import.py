"""A log brought into a stream in memory: whole, once, in order, whatever fails; what is refused."""

from __future__ import annotations

import asyncio
import random
from itertools import count
from pathlib import Path

from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from msglog import NackCode
from msglog._batch import STORED
from msglog._export import Export
from msglog._import import MAX_UNDER_WAY, Extent, Import, ImportFailed, ImportRefused
from msglog._jetstream import MAX_LINES, MAX_PAYLOAD, Reply
from msglog._log_runs import log_runs
from msglog._logfile import open_log
from msglog._nats_access import parse_nats
from msglog._nats_store import NatsStore
from msglog._records import parse_line
from msglog.testing import MemoryStream, appended, make_batch

from .logs import TEN, A, B, C, commit, minutes
from .streams import MemoryReader


def busy(commits: int, seed: int = 1) -> bytes:
    """A log of three clients who come in turns and together."""
    rng, last = random.Random(seed), dict.fromkeys((A, B, C), 0)
    parts = []
    for n in range(commits):
        chosen = rng.sample((A, B, C), rng.randint(1, 3))
        runs = []
        for client in chosen:
            bodies = [b"%d" % n] * rng.randint(1, 4)
            runs.append((client, last[client] + 1, bodies))
            last[client] += len(bodies)
        parts.append(commit(TEN + n * 1000, *runs))
    return b"".join(parts)


class ImportCase(SynchronousTestCase):
    def setUp(self) -> None:
        self.stream = MemoryStream()
        self.reader = MemoryReader(self.stream)

    def runs(self, *logs: bytes, gathered: int = 0):
        files = []
        for data in logs:
            path = Path(self.mktemp())
            path.write_bytes(data)
            files.append((open_log(path), len(data)))
            self.addCleanup(files[-1][0].close)
        return log_runs(files, gathered)

    def make(self, *logs: bytes, **options) -> Import:
        clients: dict[bytes, Extent] = {}
        for line in b"".join(logs).splitlines():
            record = parse_line(line)
            first = clients.get(record.client, Extent(record.sequence, 0)).first
            clients[record.client] = Extent(first, record.sequence)
        ticks = count()
        return Import(
            self.reader,
            "MSGLOG",
            clients,
            retry_seconds=0.0,
            clock=lambda: float(next(ticks)),
            **options,
        )

    def bring(self, *logs: bytes, gathered: int = 0, **options) -> Import:
        """Import logs, as the command does."""
        importing = self.make(*logs, **options)

        async def go() -> None:
            await importing.begin(empty=not self.stream.messages)
            for run in self.runs(*logs, gathered=gathered):
                await importing.put(run)
            await importing.finish()

        asyncio.run(asyncio.wait_for(go(), 30))
        return importing

    def stored(self) -> bytes:
        return b"".join(data for *_, data in self.stream.messages)

    def refused(self, *logs: bytes, **options) -> str:
        before = list(self.stream.messages)
        with self.assertRaises(ImportRefused) as caught:
            self.bring(*logs, **options)
        self.assertEqual(self.stream.messages, before)
        return str(caught.exception)


class RunsTest(ImportCase):
    def test_runs(self) -> None:
        """Neighbours of one client in a file are one message, on through commits."""
        one = commit(TEN, (A, 1, [b"a", b"b"])) + commit(TEN + 1, (A, 3, [b"c"]), (B, 1, [b"x"]))
        two = commit(TEN + 2, (B, 2, [b"y"]), (A, 4, [b"d"]))
        found = [(run.client, run.first, run.last) for run in self.runs(one, two)]
        self.assertEqual(found, [(A, 1, 3), (B, 1, 1), (B, 2, 2), (A, 4, 4)])
        lines = b"".join(b"".join(run.lines) for run in self.runs(one, two))
        self.assertEqual(lines, one + two)

    def test_bounds(self) -> None:
        """No message has more than so many lines or bytes, but for a line that alone is longer."""
        many = commit(TEN, (A, 1, [b""] * 2500))
        self.assertEqual([len(run.lines) for run in self.runs(many)], [MAX_LINES, MAX_LINES, 500])
        third = MAX_PAYLOAD // 3
        bodies = [*[b"x" * size for size in (third, third, third, MAX_PAYLOAD)], b"z"]
        runs = list(self.runs(commit(TEN, (A, 1, bodies))))
        self.assertEqual([run.first for run in runs], [1, 3, 4, 5])
        self.assertTrue(all(run.size == len(b"".join(run.lines)) for run in runs))

    def test_gathered(self) -> None:
        """
        What clients have in a part of the log can be brought together: all of it, each client's in
        order, in messages that are as long as others, and no more of it held than was said.
        """
        log = busy(2000)
        for gathered, most in ((len(log), 20), (3000, len(log) // 600)):
            runs = list(self.runs(log, gathered=gathered))
            self.assertLess(len(runs), most)
            lines = [line for run in runs for line in run.lines]
            self.assertEqual(sorted(lines), sorted(log.splitlines(keepends=True)))
            last = dict.fromkeys((A, B, C), 0)
            for run in runs:
                self.assertEqual(run.first, last[run.client] + 1)
                self.assertEqual(run.size, sum(map(len, run.lines)))
                last[run.client] = run.last
                self.assertLessEqual(len(run.lines), MAX_LINES)
        self.assertGreater(len(runs), len(log) // 3000)
        self.bring(log)
        self.assertEqual(self.bring(log, gathered=5000).stored, 0)

    def test_written_by_others(self) -> None:
        """A line with spaces comes as msglog writes it."""
        log = commit(TEN, (A, 1, [b"a", b"b"]))
        spaced = log.replace(b'","client":"', b'", "client":"').replace(b'"seq":', b'"seq": ')
        lines = b"".join(b"".join(run.lines) for run in self.runs(spaced))
        self.assertEqual(lines, log)


class WholeTest(ImportCase):
    def test_exported(self) -> None:
        """The export of an imported log is the log, byte for byte."""
        log = busy(300)
        importing = self.bring(log[: log.index(b"\n", 5000) + 1], log[log.index(b"\n", 5000) + 1 :])
        self.assertEqual(importing.stored, log.count(b"\n"))
        path = Path(self.mktemp())
        export = Export(path, "MSGLOG", "then")
        self.addCleanup(export.close)
        export.append([(n, data) for n, (*_, data) in enumerate(self.stream.messages, 1)])
        self.assertEqual(path.read_bytes(), log)

    def test_one_of_a_client(self) -> None:
        """Many are under way at a time, and one of a client; nothing waits for an answer else."""
        self.stream.automatic = False
        log = commit(
            TEN, *[(bytes([n]) * 16, 1, [b"a"]) for n in range(200)], *[(B, 1, [b"b"])]
        ) + commit(TEN + 1, (bytes(16), 2, [b"c"]))

        async def go() -> list[int]:
            importing = self.make(log)
            await importing.begin(empty=True)
            waiting = self.stream._waiting
            seen = []
            putting = asyncio.ensure_future(self._put_all(importing, log))
            while not putting.done():
                await asyncio.sleep(0)
                clients = [subject for subject, *_ in waiting]
                assert len(clients) == len(set(clients))
                assert len(clients) <= MAX_UNDER_WAY
                seen.append(len(clients))
                if len(seen) % 5 == 0:  # what is asked waits a while
                    self.stream.step()
            await putting
            return seen

        self.assertGreater(max(asyncio.run(asyncio.wait_for(go(), 30))), 190)
        self.assertEqual(self.stored(), log)

    async def _put_all(self, importing: Import, log: bytes) -> None:
        for run in self.runs(log):
            await importing.put(run)
        await importing.finish()

    def test_clients_go_on(self) -> None:
        """A server over the stream knows each client's place, gives receipts, sees conflicts."""
        log = b"".join(commit(TEN + n, (A, n, [b"%d" % n])) for n in range(1, 21))
        self.bring(log)
        clock = Clock()
        store = NatsStore(
            clock,
            parse_nats("nats://engine"),
            link=self.stream,
            ask=self.stream.ask,
            clock=lambda: 1e9,
        )
        store.startService()
        self.addCleanup(lambda: store._ticks.running and store._ticks.stop())
        last, again = store.last(A), appended(store, make_batch(A, 15, b"15", b"16"))
        other = appended(store, make_batch(A, 20, b"other"))
        following = appended(store, make_batch(A, 21, b"new"))
        clock.pump([0.0] * 50)
        self.assertEqual(self.successResultOf(last), 20)
        self.assertEqual(self.successResultOf(again), STORED)
        (refusal,) = self.successResultOf(other).refusals
        self.assertEqual(refusal.code, NackCode.CONFLICT)
        self.assertEqual(self.successResultOf(following), STORED)


class AgainTest(ImportCase):
    def test_killed(self) -> None:
        """Whatever part is there, run again it completes it: nothing twice, nothing lost."""
        log = busy(60)
        self.bring(log)
        whole = list(self.stream.messages)
        for part in range(0, len(whole) + 1, 7):
            self.stream.messages = whole[:part]
            importing = self.bring(log)
            self.assertEqual(self.stored(), log)
            there = sum(data.count(b"\n") for *_, data in whole[:part])
            self.assertEqual((importing.found, importing.stored + there), (there, log.count(b"\n")))

    def test_in_another_order(self) -> None:
        """So it does if clients' messages stand in another order there."""
        log = busy(60)
        of_a = b"".join(x for x in log.splitlines(True) if parse_line(x).client == A)
        self.bring(of_a)
        self.bring(log)
        lines = self.stored().splitlines(keepends=True)
        self.assertEqual(sorted(lines), sorted(log.splitlines(keepends=True)))
        for client in (A, B, C):
            sequences = [r.sequence for r in map(parse_line, lines) if r.client == client]
            self.assertEqual(sequences, list(range(1, len(sequences) + 1)))

    def test_next_file(self) -> None:
        """Files may come one after the other; of a file that goes on, nothing is read back."""
        one, two = minutes(5), minutes(5, first=6)
        self.bring(one)
        self.reader.silent = 1000
        self.assertEqual(self.bring(two).found, 0)
        self.assertEqual(self.stored(), one + two)

    def test_carried_on(self) -> None:
        """A client may have gone on in the stream, if what it has in common with the log agrees."""
        log = minutes(10)
        self.bring(log)
        importing = self.bring(minutes(7) + commit(TEN + 10**9, (B, 1, [b"b"])))
        self.assertEqual((importing.carried_on, importing.found, importing.stored), (1, 7, 1))

    def test_other_bytes(self) -> None:
        """A stream with other bytes at a sequence is refused, and which is said."""
        self.bring(minutes(5))
        log = minutes(3) + commit(TEN + 10**9, (A, 4, [b"other"]))
        self.assertIn("another message 4 of aaaaaaaa-", self.refused(log))


class BeginningTest(ImportCase):
    def test_not_from_one(self) -> None:
        """A log without its first files is refused, unless that is asked for."""
        log = minutes(5, first=101)
        self.assertIn("--partial lets clients begin above 1", self.refused(log))
        self.bring(log, partial=True)
        self.assertEqual(self.stored(), log)
        self.bring(minutes(5, first=106))  # which goes on
        self.assertEqual(self.bring(minutes(20, first=101)).found, 10)

    def test_gap(self) -> None:
        """A gap between the stream and the log is refused in any case."""
        self.bring(minutes(5))
        for partial in (False, True):
            said = self.refused(minutes(5, first=7), partial=partial)
            self.assertIn("up to 5, and the log has it from 7 on", said)

    def test_begun_later(self) -> None:
        """A stream that was begun without the first files does not take them afterwards."""
        self.bring(minutes(5, first=101), partial=True)
        self.assertIn("begins with 101", self.refused(minutes(105)))

    def test_partial_client_goes_on(self) -> None:
        """A server takes a client that began above 1 as any other."""
        self.bring(minutes(5, first=101), partial=True)
        clock = Clock()
        store = NatsStore(
            clock,
            parse_nats("nats://engine"),
            link=self.stream,
            ask=self.stream.ask,
            clock=lambda: 1e9,
        )
        store.startService()
        self.addCleanup(lambda: store._ticks.running and store._ticks.stop())
        again = appended(store, make_batch(A, 101, b"101"))
        older = appended(store, make_batch(A, 100, b"100"))
        following = appended(store, make_batch(A, 106, b"106"))
        clock.pump([0.0] * 50)
        self.assertEqual(self.successResultOf(again), STORED)
        (refusal,) = self.successResultOf(older).refusals
        self.assertEqual(refusal.code, NackCode.CONFLICT)
        self.assertEqual(self.successResultOf(following), STORED)


class TroubleTest(ImportCase):
    def test_answers_lost(self) -> None:
        """Appends whose answers are lost, done or not, are there once, in order."""
        rng, log = random.Random(3), busy(200)
        real, lost = self.stream._do, [0, 0]

        def do(subject, payload, headers):
            if headers is None or rng.random() < 0.8:
                return real(subject, payload, headers)
            if rng.random() < 0.5:
                lost[0] += 1
                real(subject, payload, headers)
            else:
                lost[1] += 1
            return Reply(None, "no answer")

        self.stream._do = do
        self.bring(log)
        self.assertGreater(min(lost), 5)
        lines = self.stored().splitlines(keepends=True)
        self.assertEqual(sorted(lines), sorted(log.splitlines(keepends=True)))
        for client in (A, B, C):
            sequences = [r.sequence for r in map(parse_line, lines) if r.client == client]
            self.assertEqual(sequences, list(range(1, len(sequences) + 1)))

    def test_all_lost(self) -> None:
        """Of several that are lost together, each is put where it was in the log."""
        log = commit(TEN, *[(bytes([n]) * 16, 1, [b"a"]) for n in range(50, 10, -1)])
        importing = self.make(log)
        self.stream.automatic = False

        async def go() -> None:
            await importing.begin(empty=True)
            for run in self.runs(log):
                await importing.put(run)
            for _ in range(40):  # the last first
                self.stream._waiting.rotate(1)
                self.stream.lose()
                await asyncio.sleep(0)
            self.stream.automatic = True
            await importing.finish()

        asyncio.run(asyncio.wait_for(go(), 30))
        self.assertEqual(self.stored(), log)

    def test_full(self) -> None:
        """A full stream ends it; with room again it goes on."""
        log = busy(20)
        self.stream.full = True
        with self.assertRaises(ImportFailed) as caught:
            self.bring(log)
        self.assertIn("takes no more: maximum bytes exceeded", str(caught.exception))
        self.stream.full = False
        self.bring(log)
        self.assertEqual(self.stored(), log)

    def test_away(self) -> None:
        """An engine that stays away ends it, with its last words."""
        self.stream.away = True
        with self.assertRaises(ImportFailed) as caught:
            self.bring(minutes(3), patience=50.0)
        self.assertIn("nothing went on for 50 s: no answer", str(caught.exception))

    def test_somebody_else(self) -> None:
        """A client that goes on in the stream meanwhile ends it, and nothing is put behind that."""
        log = minutes(4)
        importing = self.make(log)

        async def go() -> None:
            await importing.begin(empty=True)
            for run in self.runs(log):
                foreign = run.behind(0)
                foreign.lines = foreign.lines[:2]
                other = self.make(log)
                await other.begin(empty=True)
                await other.put(foreign)
                await importing.put(run)
            await importing.finish()

        with self.assertRaises(ImportFailed) as caught:
            asyncio.run(asyncio.wait_for(go(), 30))
        self.assertIn("somebody else writes", str(caught.exception))
        self.bring(log)
        self.assertEqual(self.stored(), log)

    def test_lost_by_the_stream(self) -> None:
        """A stream that has less than it had is not filled from there."""
        self.lost(left=0)
        self.stream.messages.clear()
        self.lost(left=3)

    def lost(self, left: int) -> None:
        log = busy(20)
        importing = self.make(log, patience=50.0)

        async def go() -> None:
            await importing.begin(empty=True)
            for run in self.runs(log):
                await importing.put(run)
                await asyncio.sleep(0)
                if importing.stored > 20:
                    del self.stream.messages[left:]
            await importing.finish()

        with self.assertRaises(ImportFailed) as caught:
            asyncio.run(asyncio.wait_for(go(), 30))
        self.assertIn("than it had", str(caught.exception))

    def test_too_long(self) -> None:
        """A line longer than the servers take is named; what is before it is there."""
        self.stream.max_payload = 10_000
        log = minutes(2) + commit(TEN + 10**9, (B, 1, [b"x" * 9000]))
        with self.assertRaises(ImportRefused) as caught:
            self.bring(log)
        self.assertIn("raise their max_payload", str(caught.exception))
        self.assertEqual(self.stored(), minutes(2))
