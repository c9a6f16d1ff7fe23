"""What the status page is told of a stream, beside the figures themselves."""

from __future__ import annotations

from msglog._factory import MessageLogFactory
from msglog._figures import Figures, read_figures
from msglog._stream_status import StreamStatus

from .test_health import Bench
from .test_nats_store import NatsCase


class StreamStatusTest(NatsCase):
    def setUp(self) -> None:
        self.store = self.make_store()
        self.factory = MessageLogFactory(self.clock, self.store, self.limits)
        self.status = StreamStatus(self.clock.seconds)
        self.next = 1

    def figures(self) -> Figures:
        return read_figures(self.store, self.factory)

    def under_way(self) -> int:
        stream = self.figures().stream
        assert stream is not None
        return stream.under_way["append"]

    def log(self, seconds: float, *bodies: bytes) -> None:
        """One append that takes so long."""
        self.stream.automatic = False
        self.append(self.store, self.next, *bodies)
        self.next += len(bodies)
        while not self.under_way():
            self.clock.advance(0)
            if not self.under_way():
                self.assertTrue(self.stream.step(), "an append")
        self.clock.advance(seconds)
        while self.under_way():
            self.assertTrue(self.stream.step(), "an answer")
        self.stream.automatic = True

    def told(self) -> dict:
        told = self.status.told(self.figures())
        assert told is not None
        return told

    def appends(self) -> dict:
        return self.told()["appends"]

    def test_no_appends(self) -> None:
        """Nothing is claimed of appends that there are none of."""
        appends = self.appends()
        self.assertEqual(appends["count"], 0)
        for name in ("p50", "p99", "messages", "batches"):
            self.assertIsNone(appends[name], name)

    def test_last_minute(self) -> None:
        """First of all since the start; then only of the last minute."""
        self.log(0.01, b"a")
        first = self.appends()
        self.assertEqual((first["count"], first["messages"], first["batches"]), (1, 1, 1))
        self.assertTrue(0.007 <= first["p99"] <= 0.01)
        for second in range(61):
            self.clock.advance(1)
            if second == 30:
                self.log(0.5, b"b", b"c", b"d")
            last = self.appends()
        self.assertEqual((last["count"], last["messages"]), (1, 3))
        self.assertTrue(0.3 <= last["p50"] <= last["p99"] <= 0.5)
        self.assertAlmostEqual(last["seconds"], 60, 0)

    def test_watched_again(self) -> None:
        """Who watches after hours is told what was since it was last looked, and for how long."""
        self.appends()
        self.clock.advance(5)
        self.appends()
        self.clock.advance(3600)
        self.log(0.01, b"a")
        self.assertGreaterEqual(self.appends()["seconds"], 3600)
        self.clock.advance(1)
        self.appends()
        self.assertLessEqual(len(self.status._past), 62)

    def test_no_stream(self) -> None:
        """A file has no such section."""
        bench = Bench(self)
        bench.store.startService()
        self.assertIsNone(self.status.told(bench.figures()))
