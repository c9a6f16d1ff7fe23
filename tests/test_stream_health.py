"""What is made of a stream's leader that hears nothing of the other servers."""

from __future__ import annotations

from twisted.internet.task import Clock
from twisted.logger import LogLevel, capturedLogs, formatEvent
from twisted.trial.unittest import SynchronousTestCase

from msglog import Limits
from msglog._nats_access import parse_nats
from msglog._shards import StreamShard
from msglog._stream_counts import StreamCounts
from msglog._stream_figures import EngineState
from msglog._stream_health import StreamHealth
from msglog.testing import MemoryStream


class CutOffTest(SynchronousTestCase):
    def setUp(self) -> None:
        self.clock = Clock()
        self.stream = MemoryStream()
        self.lost: list[str] = []
        self.told: list[bool] = []
        self.health = StreamHealth(
            self.clock.seconds,
            parse_nats("nats://n1"),
            StreamShard("MSGLOG"),
            self.stream,
            Limits(),
            StreamCounts(),
            self.stream.leave,
            lambda: None,
            self.lost.append,
        )
        self.advance(1)

    def hears(self, *seconds: float) -> None:
        """When the leader has heard of the others, each so many seconds ago."""
        for other, ago in zip(self.stream.info["cluster"]["replicas"], seconds, strict=True):
            other["active"] = int(ago * 1e9)

    def advance(self, seconds: float) -> None:
        for _ in range(round(seconds / 0.25)):
            self.clock.advance(0.25)
            self.health.tick()

    def test_answers_that_are_none(self) -> None:
        """However often it answers reads, it is away, and another server is tried."""
        self.hears(3.5, 3.5)
        self.advance(1)
        for _ in range(24):
            self.health.answered()
            self.assertTrue(self.health.away)
            self.advance(0.25)
        self.assertEqual(self.stream.left, 1)
        self.hears(0.5, 3.5)
        self.advance(1)
        self.assertFalse(self.health.away)

    def test_majority(self) -> None:
        """One of two others is enough; one never heard of, or no leader, is not."""
        for seconds, leads in (
            ((0.5, 9), True),
            ((2.9, 9), True),
            ((3.1, 9), False),
            ((0, 0), False),
        ):
            self.hears(*seconds)
            self.health.confirm(self.told.append)
            self.assertEqual(self.told.pop(), leads, seconds)
        self.hears(0.5, 0.5)
        self.stream.info["cluster"]["leader"] = ""
        self.health.confirm(self.told.append)
        self.assertEqual(self.told.pop(), False)
        self.stream.info["cluster"] = {"leader": "n1"}
        self.health.confirm(self.told.append)
        self.assertEqual(self.told.pop(), True)

    def test_asked_too_late(self) -> None:
        """Who asks while an answer is on its way is told by the next one."""
        self.stream.automatic = False
        self.health.confirm(self.told.append)
        self.health.confirm(lambda leads: self.told.append(leads))
        self.assertTrue(self.stream.step())
        self.assertEqual(self.told, [True])
        self.hears(9, 9)
        self.assertTrue(self.stream.step())
        self.assertEqual(self.told, [True, False])

    def test_behind(self) -> None:
        """That messages are lost is not believed of one that does not lead."""
        self.hears(9, 9)
        self.advance(20)
        self.health.behind(0.0, 5, 3)
        self.assertEqual(self.lost, [])
        self.hears(0.5, 0.5)
        self.advance(1)
        self.health.behind(0.0, 5, 3)
        self.assertIn("of a client it had those up to 5, and has those up to 3", self.lost[0])

    def test_gone(self) -> None:
        """Of a stream that was there nobody is told to make a new one: that would hide the loss."""
        self.stream.info = {"error": {"code": 404, "err_code": 10059, "description": "not found"}}
        self.advance(2)
        self.assertTrue(self.health.away)
        self.assertIn("is not there any more", self.health.reason)
        self.assertNotIn("stream create", self.health.reason)

    def test_settings_said(self) -> None:
        """That a setting has everything refused is said once, and that it is over."""
        config = self.stream.info["config"]
        with capturedLogs() as events:
            self.stream.info["config"] = {**config, "max_age": 90 * 10**9}
            self.advance(3)
            self.assertEqual(self.health.state, EngineState.UNUSABLE)
            self.stream.info["config"] = config
            self.advance(3)
        said = [formatEvent(event) for event in events if event["log_level"] is not LogLevel.warn]
        self.assertEqual(len(said), 2, said)
        self.assertIn("max_age: 90 s: what is older is removed; take the limit away", said[0])
        self.assertIn("everything is refused meanwhile", said[0])
        self.assertIn("can keep what is acknowledged again", said[1])
