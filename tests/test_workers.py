"""What a worker process and the writer's say to each other, and what becomes of it."""

from __future__ import annotations

import errno
import random
import socket
import sys
from array import array
from collections import deque
from pathlib import Path
from types import SimpleNamespace

from hypothesis import given
from hypothesis import strategies as st
from twisted.internet import tcp
from twisted.internet.error import ProcessTerminated
from twisted.internet.protocol import Factory
from twisted.internet.task import Clock
from twisted.logger import LogLevel
from twisted.protocols.tls import TLSMemoryBIOFactory
from twisted.python.failure import Failure
from twisted.trial.unittest import SynchronousTestCase

from msglog import FileStore, Limits, NackCode
from msglog._batch import MAX_SEQUENCE, STORED, Batch, Refusal, Verdict
from msglog._bundle import Bundle, Exceptions
from msglog._bundling import BundlingStore
from msglog._busiest import Busiest
from msglog._counts import ConnectionCounts
from msglog._errors import StartError
from msglog._front import CONNECTION
from msglog._ledger import Ledger
from msglog._pipe import Pipe
from msglog._pipe_frames import (
    ASK,
    BUNDLE,
    FIGURES,
    GONE,
    HEAD,
    JUDGED,
    LAST,
    MAX_PAYLOAD_BYTES,
    READY,
    SETTINGS,
    BadFrame,
    WorkerFigures,
    decode_bundle,
    decode_exceptions,
    decode_figures,
    decode_gone,
    decode_last,
    encode_bundle,
    encode_exceptions,
    encode_figures,
    encode_frame,
    encode_last,
)
from msglog._quota import REFUSALS
from msglog._records import format_lines
from msglog._tls import ServerTLS, TLSFactory
from msglog._workers import Worker, WorkerPool
from msglog.testing import StoreContract, appended, make_batch

from .test_round import MIXED, MIXED_STORED
from .test_store import FileCase

A, B, C = bytes(range(16)), bytes(range(16, 32)), bytes(range(32, 48))


def split(data: bytes) -> list[tuple[int, int, bytes]]:
    """Whole frames: kind, number, payload."""
    frames = []
    while data:
        length, kind, number = HEAD.unpack_from(data)
        frames.append((kind, number, data[HEAD.size : HEAD.size + length]))
        data = data[HEAD.size + length :]
    return frames


class Wire:
    """A pipe's end whose frames wait until they are carried over."""

    def __init__(self) -> None:
        self.frames: deque[tuple[int, int, bytes]] = deque()

    def send(self, frame: bytes) -> None:
        self.frames.extend(split(frame))


class Pair:
    """A worker's store, and the writer's process with the file's, without any process."""

    def __init__(self, clock: Clock, store: FileStore) -> None:
        self.up, self.down = Wire(), Wire()
        self.pool = WorkerPool(clock, store, Limits(), 1, None)
        self.worker = Worker(0, 0.0, pipe=self.down)
        self.bundling = BundlingStore(self.up.send, store.window)

    def carry(self) -> bool:
        """Bring everything that was said to who should hear it; whether there was anything."""
        said = bool(self.up.frames or self.down.frames)
        while self.up.frames:
            self.pool.received(self.worker, *self.up.frames.popleft())
        while self.down.frames:
            kind, number, payload = self.down.frames.popleft()
            take = {JUDGED: self.bundling.bundle_judged, LAST: self.bundling.answered}[kind]
            take(number, payload)
        return said


class PairCase(FileCase):
    def make_pair(self, **limits) -> Pair:
        self.file_store = FileCase.make_store(self, **limits)
        self.pair = Pair(self.clock, self.file_store)
        return self.pair

    def settle(self, store: object = None) -> None:
        self.clock.advance(0)
        while self.pair.carry():
            FileCase.settle(self, self.file_store)


class BundlingStoreContract(PairCase, StoreContract):
    """What a worker's connections see keeps every promise of a store."""

    def make_store(self, **limits) -> BundlingStore:
        return self.make_pair(**limits).bundling

    def stored(self, store: object) -> list:
        return FileCase.stored(self, self.file_store)

    def settle(self, store: object) -> None:
        PairCase.settle(self)

    def fill_up(self, store: object, full: bool) -> None:
        self.disk.room = 0 if full else None


class BundlingTest(PairCase):
    def test_one_commit(self) -> None:
        """What workers hand over in one turn is one commit, in the order in which it came."""
        pair = self.make_pair()
        store = pair.bundling
        verdicts = [appended(store, make_batch(client, 1, b"x")) for client in (A, B, C)]
        question = store.last(A)
        self.settle()
        self.assertEqual([self.successResultOf(verdict) for verdict in verdicts], [STORED] * 3)
        self.assertEqual(self.successResultOf(question), 1)
        self.assertEqual(sum(self.file_store.writer.counts.messages.buckets), 1)

    def test_each_has_its_own_verdict(self) -> None:
        """In one bundle: new, again, partly new, other bytes, out of order, and the same twice."""
        pair = self.make_pair()
        store = pair.bundling
        first = appended(store, make_batch(A, 1, b"a", b"b"))
        self.settle()
        self.assertIs(self.successResultOf(first), STORED)
        batches = [make_batch(*batch) for batch in MIXED]
        said: list[Exceptions] = []
        store.append_bundle(bundle_of(batches), said.append)
        self.settle()
        found = {index: verdict.refusals for index, verdict in said[0]}
        codes = {n: [(r.start, r.stop, r.code, r.expected) for r in found[n]] for n in found}
        self.assertEqual(
            codes,
            {3: [(0, 1, NackCode.CONFLICT, 5)], 4: [(0, 2, NackCode.OUT_OF_ORDER, 2)]},
        )
        self.assertEqual(self.stored(self.file_store), MIXED_STORED)

    def test_nothing_new(self) -> None:
        """A bundle of resends writes nothing."""
        pair = self.make_pair()
        for _ in range(2):
            verdict = appended(pair.bundling, make_batch(A, 1, b"a"))
            self.settle()
            self.assertIs(self.successResultOf(verdict), STORED)
        self.assertEqual(self.file_store.writer.counts.records, 1)

    def test_fail_stop(self) -> None:
        """When the disk fails, everything that was handed over is refused, and what comes later."""
        pair = self.make_pair()
        self.disk.errors["sync"] = errno.EIO
        verdict = appended(pair.bundling, make_batch(A, 1, b"a"))
        question = pair.bundling.last(A)
        self.settle()
        (refusal,) = self.successResultOf(verdict).refusals
        self.assertEqual(refusal.code, NackCode.NOT_STORED)
        self.assertIsNone(self.successResultOf(question))
        later = appended(pair.bundling, make_batch(B, 1, b"b", b"c"))
        self.settle()
        (refusal,) = self.successResultOf(later).refusals
        self.assertEqual((refusal.start, refusal.stop), (0, 2))
        self.assertEqual(len(self.failures), 1)

    def test_the_busiest(self) -> None:
        """While somebody wants to know, the writer's process counts what is acknowledged."""
        pair = self.make_pair()
        pair.pool.counts.busiest = Busiest()
        appended(pair.bundling, make_batch(A, 1, b"a", b"b"))
        appended(pair.bundling, make_batch(B, 7, b"out of order"))
        self.settle()
        self.assertEqual(pair.pool.counts.busiest.top(9), [(A, 2), (B, 0)])

    def test_verdicts_on_nothing(self) -> None:
        """An answer to what was not said is a broken process, and not taken for another's."""
        bundling = self.make_pair().bundling
        self.assertRaises(BadFrame, bundling.bundle_judged, 7, b"")
        self.assertRaises(BadFrame, bundling.answered, 7, bytes(8))


def bundle_of(batches: list[Batch]) -> Bundle:
    bundle = Bundle(
        [batch.client for batch in batches],
        [batch.first for batch in batches],
        [len(batch) for batch in batches],
        [checksum for batch in batches for checksum in batch.checksums],
        lines := [format_lines(batch) for batch in batches],
        sum(map(len, lines)),
    )
    ((_, _, payload),) = split(encode_bundle(1, bundle))
    return decode_bundle(payload)


BATCHES = st.lists(
    st.tuples(st.sampled_from((A, B, C)), st.integers(1, 6), st.integers(1, 4), st.booleans()),
    min_size=1,
    max_size=20,
)


class LedgerTest(SynchronousTestCase):
    @given(BATCHES, BATCHES, st.booleans())
    def test_a_bundle_is_its_batches(self, before: list, told: list, settles: bool) -> None:
        """The ledger says and remembers the same of a bundle as of its batches one by one."""
        one, other = (Ledger(lambda client: None, 4, 10**9) for _ in range(2))

        def made(what: list) -> list[Batch]:
            return [
                make_batch(client, first, *(b"%d" % (n if same else -n) for n in range(count)))
                for client, first, count, same in what
            ]

        for batches in (made(before), made(told)):
            apart = [one.admit(batch) for batch in batches]
            together = other.admit_bundle(bundle_of(batches))
            self.assertEqual(
                together,
                [(i, *said) for i, said in enumerate(apart) if said != (0, STORED)],
            )
            for ledger in (one, other):
                (ledger.settle if settles else ledger.roll_back)()
        for client in (A, B, C):
            self.assertEqual(one.last(client), other.last(client))
        self.assertEqual(one.memory, other.memory)

    @given(BATCHES, st.data())
    def test_lines_without_what_is_known(self, told: list, data: st.DataObject) -> None:
        """Of each batch, the lines of its first so many messages are left out, and no others."""
        batches = [make_batch(c, first, *[b"x"] * count) for c, first, count, _ in told]
        bundle = bundle_of(batches)
        known = [
            (index, data.draw(st.integers(1, len(batch))))
            for index, batch in enumerate(batches)
            if data.draw(st.booleans())
        ]
        left_out = dict(known)
        expected = [
            line
            for index, batch in enumerate(batches)
            for line in format_lines(batch).splitlines(keepends=True)[left_out.get(index, 0) :]
        ]
        self.assertEqual(bundle.without(known), b"".join(expected))
        self.assertEqual(
            [(b.client, b.first, b.checksums) for b in bundle.batches()],
            [(b.client, b.first, b.checksums) for b in batches],
        )


class FramesTest(SynchronousTestCase):
    def test_bad_bundles(self) -> None:
        """A bundle whose numbers do not fit each other is said to be one."""
        good = ([A, B], [1, 5], [1, 2], [7, 8, 9], [b"a\n", b"b\nc\n"], 6)
        bundle = decode_bundle(split(encode_bundle(1, Bundle(*good)))[0][2])
        self.assertEqual((bundle.clients, bundle.lines), ([A, B], [b"a\nb\nc\n"]))
        self.assertEqual(bundle.size, 6)
        for place, wrong in (
            (1, [0, 5]),
            (1, [1, MAX_SEQUENCE + 1]),
            (2, [0, 3]),
            (2, [1, 1]),
            (3, [7, 8]),
            (4, [b"a\nb\nc"]),
        ):
            bad = [*good[:place], wrong, *good[place + 1 :]]
            payload = split(encode_bundle(1, Bundle(*bad)))[0][2]
            self.assertRaises(BadFrame, decode_bundle, payload)
        self.assertRaises(
            BadFrame, decode_bundle, split(encode_bundle(1, Bundle([], [], [], [], [], 0)))[0][2]
        )

    def test_any_bytes(self) -> None:
        """Whatever a worker says, its frames are taken or said to be bad, and nothing else."""
        chance = random.Random(7)
        good = split(encode_bundle(1, Bundle([A], [1], [2], [7, 8], [b"a\nb\n"], 4)))[0][2]
        refusal = Verdict((Refusal(0, 1, NackCode.CONFLICT, 2, "why"),))
        verdicts = split(encode_exceptions(1, [(0, refusal)]))[0][2]
        figures = split(encode_figures(WorkerFigures(ConnectionCounts(), {}, 0)))[0][2]
        for decode, payload in (
            (decode_bundle, good),
            (decode_exceptions, verdicts),
            (decode_figures, figures),
            (decode_gone, bytes(8)),
            (decode_last, bytes(8)),
        ):
            for _ in range(300):
                data = bytearray(payload)
                for _ in range(chance.randrange(4)):
                    data[chance.randrange(len(data))] = chance.randrange(256)
                try:
                    decode(bytes(data[: chance.randrange(len(data) + 1)]))
                except BadFrame:
                    pass

    def test_verdicts_come_back(self) -> None:
        """Exceptions are read as they were written, several refusals of a batch included."""
        exceptions = [
            (3, Verdict((Refusal(0, 2, NackCode.CONFLICT, 9, "é"), Refusal(4, 5, 5, 9, "")))),
            (4, Verdict((Refusal(0, 1, NackCode.OUT_OF_ORDER, MAX_SEQUENCE, "x" * 70_000),))),
        ]
        ((kind, number, payload),) = split(encode_exceptions(9, exceptions))
        self.assertEqual((kind, number), (JUDGED, 9))
        found = decode_exceptions(payload)
        self.assertEqual(found[0], exceptions[0])
        self.assertEqual(len(found[1][1].refusals[0].reason), 0xFFFF)

    def test_figures_come_back(self) -> None:
        """What a worker counts is read as it was written."""
        counts = ConnectionCounts(accepted=1, received_bytes=2, acked=3)
        counts.refused["full"] = 4
        counts.nacked[NackCode.CORRUPT] = 5
        counts.batches.note(6)
        counts.ack_seconds.note(0.25)
        told = WorkerFigures(counts, {"unread": 7}, 8)
        figures = decode_figures(split(encode_figures(told))[0][2])
        self.assertEqual((figures.paused, figures.undurable), ({"unread": 7}, 8))
        self.assertEqual(figures.counts.nacked, counts.nacked)
        self.assertEqual(figures.counts.refused, counts.refused)
        self.assertEqual(figures.counts.ack_seconds.buckets, counts.ack_seconds.buckets)

    def test_last(self) -> None:
        for last in (None, 0, MAX_SEQUENCE):
            self.assertEqual(decode_last(split(encode_last(1, last))[0][2]), last)


class PoolTest(PairCase):
    def test_sums(self) -> None:
        """Counts are those of all workers, and of those that are gone; the object stays."""
        pool = self.make_pair().pool
        counts = pool.counts
        workers = [Worker(place, 0.0, pipe=Wire()) for place in range(2)]
        pool._workers = dict(enumerate(workers))
        for acked, worker in enumerate(workers, 1):
            told = WorkerFigures(ConnectionCounts(acked=acked), {"unread": 1}, 10)
            pool.received(worker, *split(encode_figures(told))[0])
        self.assertIs(pool.counts, counts)
        self.assertEqual((counts.acked, pool.gauges().undurable), (3, 20))
        self.assertEqual(pool.gauges().paused["unread"], 2)

    def test_one_that_ends(self) -> None:
        """Its counts stay, its connections do not; others are started, later each time."""
        pair = self.make_pair()
        pool = pair.pool
        delays = []
        for _ in range(3):
            worker = Worker(0, self.clock.seconds(), pipe=StubSocket(), handing=StubSocket())
            pool._workers[0] = worker
            worker.connections[7] = "here"
            pool._quota.add("here")
            told = WorkerFigures(ConnectionCounts(acked=5), {"unread": 1}, 10)
            pool.received(worker, *split(encode_figures(told))[0])
            pool.ended(worker, Failure(ProcessTerminated(1)))
            self.assertTrue(worker.pipe.closed and worker.handing.closed)
            (call,) = pool._restarts
            delays.append(call.getTime() - self.clock.seconds())
            call.cancel()
            pool._restarts.clear()
        self.assertEqual([round(delay, 3) for delay in delays], [0.2, 0.4, 0.8])
        self.assertEqual(pool.counts.acked, 15)
        gauges = pool.gauges()
        self.assertEqual((gauges.connections, gauges.undurable), (0, 0))
        self.assertEqual(gauges.paused["unread"], 0)

    def test_share_of_an_address(self) -> None:
        """Whoever has too many is told so by a worker; each that is gone makes room."""
        pool = self.make_pair().pool
        pool.limits = Limits(max_connections_per_address=1)
        worker = Worker(0, 0.0, pipe=Wire())
        pool._workers = {0: worker}
        pool.received(worker, READY, 0, b"")
        told: list[tuple[int, int]] = []
        self.patch(socket, "send_fds", lambda _, data, fds: told.append(CONNECTION.unpack(*data)))
        sock = SimpleNamespace(family=socket.AF_INET, fileno=lambda: 5)
        for host in ("192.0.2.1", "192.0.2.1", "192.0.2.2"):
            self.assertTrue(pool._accepted(sock, (host, 1000), False))
        refused = 1 + list(REFUSALS).index("address")
        self.assertEqual([what for _, what in told], [0, refused, 0])
        for number, _ in told:  # that of the refused one too
            pool.received(worker, GONE, 0, number.to_bytes(4, sys.byteorder))
        self.assertEqual(pool.gauges().connections, 0)
        pool._accepted(sock, ("192.0.2.1", 1001), False)
        self.assertEqual((told[-1][1], pool.gauges().connections), (0, 1))

    def test_one_that_cannot_be_started(self) -> None:
        """A system without room for a process is said so, and asked again; others go on."""
        pool = self.make_pair().pool
        heard = []
        pool._log = SimpleNamespace(error=lambda format, **more: heard.append(more))

        def spawn(*args: object, **more: object) -> None:
            raise OSError(errno.EAGAIN, "no more processes")

        pool._reactor = SimpleNamespace(
            spawnProcess=spawn, callLater=self.clock.callLater, seconds=self.clock.seconds
        )
        pool._look.clock = self.clock
        started = pool.start()
        self.successResultOf(started)
        self.clock.advance(0.2)
        self.assertEqual([more["delay"] for more in heard], [0.2, 0.4])
        self.assertEqual((heard[0]["why"], pool._workers), ("no more processes", {}))
        self.successResultOf(pool.stop())
        self.assertEqual(pool._restarts, set())

    def test_tls_of_somebody_else(self) -> None:
        """A port with other TLS than what workers have would be served with theirs: it is not."""
        clock = Clock()
        ours, other = (ServerTLS(Path("c"), Path("k"), None) for _ in range(2))
        for tls in (None, ours):
            pool = WorkerPool(clock, FileStore(clock, "log"), Limits(), 1, tls)
            for factory in (
                TLSMemoryBIOFactory(other, False, pool),  # what Twisted's ssl: makes
                TLSFactory(other, pool),
                Factory(),
            ):
                port = tcp.Port(0, factory, reactor=clock)
                with self.assertRaisesRegex(StartError, "of ssl:1: .* there is --listen-tls"):
                    pool.accept_from("ssl:1", port)

    def test_serves_again(self) -> None:
        """One in the place of one that ended is said to serve, and gauged; not the first."""
        pool, heard = self.make_pair().pool, []
        pool._log = SimpleNamespace(info=lambda format, **more: heard.append(more))
        for said in ([], [{"place": 0}]):
            pool._workers[0] = Worker(0, 0.0, pipe=Wire())
            self.assertEqual(pool.gauges().workers, (1, 0))
            pool.received(pool._workers[0], READY, 0, b"")
            self.assertEqual(heard, said)
            self.assertEqual(pool.gauges().workers, (1, 1))

    def test_one_that_is_silent(self) -> None:
        """A worker that says nothing for half a minute is killed; a word is enough."""
        pool = self.make_pair().pool
        kills: list[str] = []
        process = SimpleNamespace(signalProcess=kills.append)
        worker = pool._workers[0] = Worker(0, 0.0, pipe=Wire(), process=process)
        for _ in range(30):
            pool._look_for_silence()
        pool.received(worker, GONE, 0, b"")
        for _ in range(30):
            pool._look_for_silence()
        self.assertEqual(kills, [])
        pool._look_for_silence()
        self.assertEqual(kills, ["KILL"])

    def test_what_it_says(self) -> None:
        """A worker's words go to the log at their level, with nothing that steers a terminal."""
        pool, heard = self.make_pair().pool, []
        pool._log = SimpleNamespace(emit=lambda level, format, **more: heard.append((level, more)))
        worker = Worker(3, 0.0)
        pool.said(worker, b"warn something \x1b[31m is odd")
        pool.said(worker, b"Traceback (most recent call last):")
        (level, more), (other, _) = heard
        self.assertEqual((level, other), (LogLevel.warn, LogLevel.error))
        self.assertEqual(more["place"], 3)
        self.assertNotIn("\x1b", more["text"])
        self.flushLoggedErrors()

    def test_wrong_frames(self) -> None:
        """What no worker says is said to be wrong."""
        pair = self.make_pair()
        for kind, payload in (
            *((SETTINGS, b""), (JUDGED, b""), (99, b"")),
            *((ASK, bytes(15)), (GONE, bytes(3)), (BUNDLE, b""), (FIGURES, b"[]")),
        ):
            self.assertRaises(BadFrame, pair.pool.received, pair.worker, kind, 1, payload)
        pair.pool.received(pair.worker, GONE, 0, array("I", [7]).tobytes())  # was turned away
        pair.pool.received(pair.worker, READY, 0, b"")
        self.assertEqual(pair.pool.gauges().connections, 0)


class StubSocket:
    """A socket that gives and takes what it is told."""

    def __init__(self) -> None:
        self.incoming: deque[bytes] = deque()
        self.room = 10**9
        self.sent = b""
        self.closed = False

    def recv(self, most: int) -> bytes:
        if not self.incoming:
            raise BlockingIOError
        return self.incoming.popleft()

    def send(self, data: bytes) -> int:
        if not self.room:
            raise BlockingIOError
        taken = data[: self.room]
        self.room -= len(taken)
        self.sent += taken
        return len(taken)

    def close(self) -> None:
        self.closed = True

    def setblocking(self, flag: bool) -> None: ...
    def setsockopt(self, *args: object) -> None: ...
    def fileno(self) -> int:
        return -1


class StubReactor:
    def __init__(self) -> None:
        self.readers: set = set()
        self.writers: set = set()
        self.addReader, self.removeReader = self.readers.add, self.readers.discard
        self.addWriter, self.removeWriter = self.writers.add, self.writers.discard


class PipeTest(SynchronousTestCase):
    def setUp(self) -> None:
        self.socket = StubSocket()
        self.reactor = StubReactor()
        self.frames: list[tuple[int, int, bytes]] = []
        self.lost: list[str | None] = []
        self.pipe = Pipe(
            self.reactor,
            self.socket,  # type: ignore[arg-type]
            lambda *frame: self.frames.append(frame),
            self.lost.append,
        )

    @given(st.lists(st.binary(max_size=30), max_size=5), st.lists(st.integers(1, 40)))
    def test_however_it_is_cut(self, payloads: list[bytes], cuts: list[int]) -> None:
        """Frames arrive whole and in order, however the bytes come."""
        self.setUp()
        told = [(n % 7, n, payload) for n, payload in enumerate(payloads)]
        data = b"".join(encode_frame(*frame) for frame in told)
        for cut in cuts:
            self.socket.incoming.append(data[:cut])
            data = data[cut:]
        self.socket.incoming.append(data)
        self.socket.incoming = deque(filter(None, self.socket.incoming))
        for _ in range(len(self.socket.incoming)):
            self.pipe.doRead()
        self.assertEqual(self.frames, told)

    def test_what_is_not_taken_waits(self) -> None:
        """Frames go out whole and in order though the socket is full in the middle of one."""
        self.socket.room = 5
        frames = [encode_frame(1, n, b"x" * 20) for n in range(3)]
        for frame in frames:
            self.pipe.send(frame)
        self.assertEqual(self.reactor.writers, {self.pipe})
        while self.reactor.writers:
            self.socket.room = 11
            self.pipe.doWrite()
        self.assertEqual(self.socket.sent, b"".join(frames))

    def test_the_end(self) -> None:
        """That the other side is gone is heard once; what is sent then is dropped."""
        self.socket.incoming.append(b"")
        self.pipe.doRead()
        self.pipe.send(encode_frame(1, 1))
        self.pipe.close()
        self.assertEqual((self.lost, self.socket.sent), ([None], b""))
        self.assertTrue(self.socket.closed)
        self.assertEqual(self.reactor.readers, set())

    def test_a_frame_that_is_too_long(self) -> None:
        """Nobody waits for a frame that cannot be."""
        self.socket.incoming.append(HEAD.pack(MAX_PAYLOAD_BYTES + 1, 1, 1))
        self.pipe.doRead()
        self.assertIn("a frame of", str(self.lost[0]))
