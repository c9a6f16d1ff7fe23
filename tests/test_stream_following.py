"""A stream read on and on, and places found in it: on a stream in memory, whose answers fail."""

from __future__ import annotations

import asyncio

from twisted.trial.unittest import SynchronousTestCase

from msglog._jetstream import EngineError, StreamDamaged
from msglog._records import parse_line, parse_time
from msglog._retiming import retimed
from msglog._stream_following import StreamChanged, StreamFollower
from msglog._stream_seeking import message_of_last, message_of_time
from msglog.testing import MemoryStream

from .logs import SECOND, TEN, A, B, commit
from .streams import MemoryReader


class StreamCase(SynchronousTestCase):
    def setUp(self) -> None:
        self.stream = MemoryStream()
        self.reader = MemoryReader(self.stream)
        self.said: list[str] = []
        self.now = 0.0

    def fill(self, count: int, first: int = 1) -> None:
        """So many messages of one line, one each minute."""
        for n in range(first, first + count):
            data = commit(TEN + n * 60 * SECOND, (A, n, [b"%d" % n]))
            self.stream.messages.append(("", {}, data))

    def follower(self, **options) -> StreamFollower:
        def clock() -> float:
            self.now += 0.5
            return self.now

        info = asyncio.run(self.reader.info())
        options = {"clock": clock, "retry_seconds": 0.0, **options}
        return StreamFollower(self.reader, "MSGLOG", info, self.said.append, **options)

    def poll(self, follower: StreamFollower, times: int = 1) -> list[int]:
        """The sequences that so many polls give."""

        async def go() -> list[int]:
            return [sequence for _ in range(times) for sequence, _ in await follower.poll()]

        return asyncio.run(asyncio.wait_for(go(), 20))

    def changed(self, follower: StreamFollower) -> str:
        with self.assertRaises(StreamChanged) as caught:
            self.poll(follower, 100)
        return str(caught.exception)


class FollowerTest(StreamCase):
    def test_goes_on(self) -> None:
        """Each message once, in order, as they come."""
        self.fill(7)
        follower = self.follower()
        self.assertEqual(self.poll(follower, 5), [1, 2, 3, 4, 5, 6, 7])
        self.fill(2, first=8)
        self.assertEqual(self.poll(follower, 2), [8, 9])

    def test_silence(self) -> None:
        """Nothing is lost while nobody answers, and that is said once, as is that it is over."""
        self.fill(3)
        follower = self.follower()
        self.reader.silent = 12
        self.assertEqual(self.poll(follower, 20), [1, 2, 3])
        self.assertEqual(
            self.said, ["NATS does not answer: no answer; waiting", "NATS answers again"]
        )

    def test_short_silence(self) -> None:
        """One server that dies while others answer is not worth a word."""
        self.fill(3)
        follower = self.follower()
        self.reader.silent = 1
        self.assertEqual(self.poll(follower, 3), [1, 2, 3])
        self.assertEqual(self.said, [])

    def test_patience(self) -> None:
        """Without end only if that is wanted."""
        follower = self.follower(patience=10.0)
        self.stream.away = True
        self.assertRaises(EngineError, self.poll, follower, 100)

    def test_made_anew(self) -> None:
        """What comes from a stream of the same name that was made anew is not given out."""
        self.fill(3)
        follower = self.follower()
        self.assertEqual(self.poll(follower), [1, 2, 3])
        self.fill(3)
        self.stream.info["created"] = "later"
        self.assertIn("made anew", self.changed(follower))
        self.assertEqual(follower.position, 3)

    def test_gone(self) -> None:
        """A stream that is deleted is an error, though nobody answers for it."""
        follower = self.follower()
        self.reader.silent = 1000

        async def info() -> dict:
            raise EngineError("stream not found (10059)", missing=True)

        self.reader.info = info
        self.assertIn("not there any more", self.changed(follower))

    def test_lost(self) -> None:
        """So is one that ends before what was read, or lacks a message, or never shows it."""
        self.fill(5)
        follower = self.follower()
        self.poll(follower, 2)
        del self.stream.messages[2:]
        self.assertIn("ends at message 2, and had 5", self.changed(follower))
        follower = self.follower()
        real = self.reader.fetch

        async def without_first(sequence: int, most: int) -> list:
            return (await real(sequence, most))[1:]

        self.reader.fetch = without_first
        self.assertIn("message 1 of the stream is missing", self.changed(follower))

        async def nothing(sequence: int, most: int) -> list:
            return []

        self.reader.fetch = nothing
        self.assertIn("no replica has message 1", self.changed(follower))


class SeekingTest(StreamCase):
    def last(self, count: int, wanted=lambda line: True, floor: int = 1) -> int:
        return asyncio.run(message_of_last(self.follower(), count, wanted, floor))

    def test_last(self) -> None:
        """From the message that is found on there are so many lines; and little more is read."""
        self.fill(1000)
        self.reader.bunch = 500
        read = []
        real = self.reader.fetch

        async def fetch(sequence: int, most: int) -> list:
            found = await real(sequence, most)
            read.extend(sequence for sequence, _ in found)
            return found

        self.reader.fetch = fetch
        self.assertEqual(self.last(10), 991)
        self.assertEqual(len(read), 10)
        self.assertEqual(self.last(10, lambda line: parse_line(line).sequence <= 900), 851)
        self.assertEqual(self.last(2000), 1)
        self.assertEqual(self.last(20, floor=990), 990)
        self.stream.messages.clear()
        self.assertEqual(self.last(10), 1)

    def test_time(self) -> None:
        """A time is found by bisection, and a little before it, for clocks differ."""
        self.fill(1000)
        for n in (1, 2, 500, 1000):
            found = asyncio.run(message_of_time(self.follower(), TEN + n * 60 * SECOND))
            self.assertEqual(found, max(n - 1, 1))
        after = asyncio.run(message_of_time(self.follower(), TEN + 2000 * 60 * SECOND))
        self.assertEqual(after, 1001)

    def test_time_among_others(self) -> None:
        """What msglog has not written is passed over on the way to a time, wherever it is."""
        self.fill(100)
        messages = self.stream.messages
        for n, data in enumerate((b"", b"hello", b"hello\n", b"\n") * 10):
            messages.insert(2 * n, ("", {}, data))
        for n in (1, 2, 7, 41, 100):
            found = asyncio.run(message_of_time(self.follower(), TEN + n * 60 * SECOND))
            ours = [
                parse_line(data).sequence
                for _, _, data in messages[found - 1 :]
                if data[2:6] == b"time"
            ]
            self.assertIn(min(ours), (n - 1, n))
            self.assertEqual(ours[-1], 100)
        messages[:] = [("", {}, b"")] * 5
        self.assertEqual(asyncio.run(message_of_time(self.follower(), TEN)), 1)


class RetimedTest(SynchronousTestCase):
    def test_as_it_is(self) -> None:
        """Lines whose times do not go back stay as they are, of one time or several."""
        one = commit(TEN, (A, 1, [b"a"]))
        two = one + commit(TEN + 5, (A, 2, [b"b", b"c"]))
        self.assertEqual(retimed(1, one, TEN), (TEN, one))
        self.assertEqual(retimed(1, two, TEN - 1), (TEN + 5, two))

    def test_moved(self) -> None:
        """Times that would go back are moved, those of one time together, and no others."""
        lines = commit(TEN, (A, 1, [b"a", b"b"])) + commit(TEN + 5, (A, 3, [b"c"]))
        time, moved = retimed(1, lines + commit(TEN + 50, (A, 4, [b"d"])), TEN + 10)
        records = [parse_line(line) for line in moved.splitlines()]
        self.assertEqual([r.time - TEN for r in records], [11, 11, 12, 50])
        self.assertEqual([r.sequence for r in records], [1, 2, 3, 4])
        self.assertEqual(time, TEN + 50)

    def test_same_time(self) -> None:
        """A time that is the one before is no step back, on whatever follows it."""
        lines = commit(TEN, (A, 1, [b"a"])) + commit(TEN - 5, (A, 2, [b"b"]))
        _, moved = retimed(1, lines, TEN)
        self.assertEqual([parse_line(line).time - TEN for line in moved.splitlines()], [0, 1])

    def test_not_msglogs(self) -> None:
        """What is no line of a log is named."""
        good = commit(TEN, (B, 1, [b"b"]))
        for data in (
            b"",
            b"x\n",
            good[:-1],
            good + b"x",
            good.replace(b'"b"', b'"c"'),
            good.replace(b"\n", b"\r") + commit(TEN, (B, 2, [b"c"])),
            b" " + good,
            good.replace(b'","client"', b'" ,"client"'),
            good + commit(TEN, (A, 2, [b"another's"])),
            good + commit(TEN, (B, 3, [b"not the next"])),
            good + good,
        ):
            for after in (0, 2 * TEN):
                with self.assertRaises(StreamDamaged) as caught:
                    retimed(7, data, after)
                self.assertIn("message 7 of the stream is not msglog's", str(caught.exception))

    def test_end_of_time(self) -> None:
        """Behind the last time that can be written there is none to move a line to."""
        last = parse_time("9999-12-31T23:59:59.999999Z")
        with self.assertRaises(StreamDamaged):
            retimed(7, commit(TEN, (B, 1, [b"b"])), last)
