"""A log that grows, is rotated, cut and replaced, followed without missing or halving a line."""

from __future__ import annotations

from pathlib import Path

from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from msglog._following import Follower
from msglog._logfile import open_log
from msglog._records import parse_line
from tests.logs import minutes


class Case(SynchronousTestCase):
    def setUp(self) -> None:
        self.begin_again()

    def begin_again(self) -> None:
        self.folder = Path(self.mktemp())
        self.folder.mkdir()
        self.log = self.folder / "log"
        self.said: list[str] = []
        self.follower = Follower(self.log, self.said.append)
        self.addCleanup(self.follower.close)

    def add(self, data: bytes) -> None:
        with self.log.open("ab") as file:
            file.write(data)

    def seen(self) -> list[int]:
        """The sequences of the records that have come."""
        return [parse_line(line).sequence for _, _, line in self.follower.poll()]


class Growing(Case):
    def test_waits_for_it(self) -> None:
        """A log that is not there is waited for, and that is said once."""
        self.assertEqual(self.seen(), [])
        self.assertEqual(self.seen(), [])
        self.assertEqual(self.said, [f"{self.log} is not there; waiting for it"])
        self.add(minutes(2))
        self.assertEqual(self.seen(), [1, 2])
        self.assertEqual(self.said[1:], [f"{self.log} is there"])

    def test_whole_lines_only(self) -> None:
        """However the bytes come."""
        seen = []
        for byte in minutes(3):
            self.add(bytes([byte]))
            seen.append(self.seen())
        self.assertEqual([s for s in seen if s], [[1], [2], [3]])
        self.assertEqual(seen[-1], [3])

    def test_from_an_offset(self) -> None:
        """It goes on where it is told to, and says where each line is."""
        data = minutes(5)
        self.add(data)
        place = data.index(b"\n", data.index(b'"seq":4')) + 1
        self.follower.start(open_log(self.log), place)
        (found,) = self.follower.poll()
        self.assertEqual(found, (self.log, place, data[place:]))


class Rotating(Case):
    def rotate(self, name: str) -> None:
        self.log.rename(self.folder / name)

    def test_old_file_first(self) -> None:
        """What came to the old file before the new one was made comes first."""
        self.add(minutes(2))
        self.assertEqual(self.seen(), [1, 2])
        self.add(minutes(2, first=3))
        self.rotate("log.1")
        self.add(minutes(2, first=5))
        self.assertEqual(self.seen(), [3, 4, 5, 6])
        self.assertEqual(self.said, [])

    def test_between(self) -> None:
        """Until there is a new file, the old one may still grow."""
        self.add(minutes(1))
        self.assertEqual(self.seen(), [1])
        self.rotate("log.1")
        self.assertEqual(self.seen(), [])
        with (self.folder / "log.1").open("ab") as file:
            file.write(minutes(1, first=2))
        self.assertEqual(self.seen(), [2])
        self.assertEqual(self.said, [f"{self.log} was moved away; waiting for the next"])
        self.add(minutes(1, first=3))
        self.assertEqual(self.seen(), [3])

    def test_several_at_once(self) -> None:
        """Files that were begun and rotated away between two looks are not missed."""
        self.add(minutes(2))
        self.assertEqual(self.seen(), [1, 2])
        for n in range(3, 9, 2):
            self.rotate(f"log.{n}")
            self.add(minutes(2, first=n))
        self.assertEqual(self.seen(), list(range(3, 9)))
        self.assertEqual(self.seen(), [])

    def test_from_the_end(self) -> None:
        """The same when nothing of the old file was shown."""
        self.add(minutes(2))
        self.follower.start(open_log(self.log), self.log.stat().st_size)
        for n in (3, 4, 5):
            self.rotate(f"log.{n}")
            self.add(minutes(1, first=n))
        self.assertEqual(self.seen(), [3, 4, 5])

    def test_half_a_line_is_left(self) -> None:
        """An old file that ends in the middle of a line is said to."""
        self.add(minutes(2)[:-9])
        self.assertEqual(self.seen(), [1])
        self.rotate("log.1")
        self.add(minutes(1, first=3))
        self.assertEqual(self.seen(), [3])
        self.assertEqual(len(self.said), 1)
        self.assertIn("ends in the middle of a line", self.said[0])

    @settings(deadline=None, max_examples=30)
    @given(st.lists(st.sampled_from(["add", "half", "rotate", "look"]), max_size=25))
    def test_anything(self, steps: list[str]) -> None:
        """Every record once and in order, whatever happens between two looks."""
        self.begin_again()
        seen: list[int] = []
        next_one, rest = 1, b""
        for number, step in enumerate(steps):
            if step == "look":
                seen += self.seen()
            elif step == "rotate" and not rest:
                if self.log.exists() and self.log.stat().st_size:
                    self.rotate(f"log.{number}")
            elif step == "half" and not rest:
                line = minutes(1, first=next_one)
                self.add(line[:40])
                rest = line[40:]
            elif step in ("add", "half"):
                self.add(rest or minutes(1, first=next_one))
                next_one, rest = next_one + 1, b""
        # What was moved away when there was no log comes when there is one again.
        self.add(rest or minutes(1, first=next_one))
        next_one += 1
        seen += self.seen()
        # Before the first look there was nothing to follow; from then on all of it comes.
        self.assertEqual(seen, list(range(next_one - len(seen), next_one)))


class Cut(Case):
    def test_cut_back(self) -> None:
        """After a failed commit the log is cut; what follows is shown, and nothing again."""
        self.add(minutes(5))
        self.assertEqual(self.seen(), [1, 2, 3, 4, 5])
        with self.log.open("r+b") as file:
            file.truncate(len(minutes(3)))
        self.assertEqual(self.seen(), [])
        self.assertIn("was cut from", self.said[0])
        self.add(minutes(2, first=6))
        self.assertEqual(self.seen(), [6, 7])

    def test_begun_again(self) -> None:
        """A log that was emptied and written anew is shown from its beginning."""
        self.add(minutes(5))
        self.assertEqual(self.seen(), [1, 2, 3, 4, 5])
        self.log.write_bytes(b"")
        self.add(minutes(2, first=6))
        self.assertEqual(self.seen(), [6, 7])
        self.assertEqual(len(self.said), 1)
