"""When a log is rotated, what it is called then, and what may be deleted."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

from twisted.trial.unittest import SynchronousTestCase

from msglog._rotation_rule import RotationRule, expendable, rotated_name

LOG = Path("/logs/messages.jsonl")


def moment(text: str) -> int:
    return int(datetime.fromisoformat(text).replace(tzinfo=UTC).timestamp()) * 1_000_000


class RuleTest(SynchronousTestCase):
    def test_parse(self) -> None:
        for text, size, period in [
            ("never", 0, ""),
            ("64KiB", 65536, ""),
            ("500MiB", 500 << 20, ""),
            ("1GiB", 1 << 30, ""),
            ("2TiB", 2 << 40, ""),
            ("daily", 0, "daily"),
            ("1GiB,hourly", 1 << 30, "hourly"),
            ("monthly,1GiB", 1 << 30, "monthly"),
        ]:
            self.assertEqual(
                RotationRule.parse(text, 3), RotationRule(max_bytes=size, period=period, keep=3)
            )

    def test_parse_nonsense(self) -> None:
        for text in (
            *("", "sometimes", "1", "1GB", "1gib", "-1GiB", "1.5GiB", "daily,weekly", "daily,"),
            *("1GiB,2GiB", "never,daily", "63KiB", "0GiB", "1GiB daily", "9999999GiB"),
        ):
            self.assertRaises(ValueError, RotationRule.parse, text)

    def test_never(self) -> None:
        self.assertFalse(RotationRule().due(0, 1 << 60, moment("2100-01-01")))

    def test_by_size(self) -> None:
        rule = RotationRule(max_bytes=1000)
        self.assertFalse(rule.due(0, 999, 0))
        self.assertTrue(rule.due(0, 1000, 0))

    def test_by_time(self) -> None:
        """A period ends where the calendar says, in UTC; a week with its Sunday."""
        for period, last, following in [
            ("hourly", "2026-11-25T13:59:59", "2026-11-25T14:00:00"),
            ("daily", "2026-11-25T23:59:59", "2026-11-26T00:00:00"),
            ("weekly", "2026-11-29T23:59:59", "2026-11-30T00:00:00"),
            ("monthly", "2026-12-31T23:59:59", "2027-01-01T00:00:00"),
        ]:
            rule = RotationRule(period=period)
            self.assertFalse(rule.due(moment(last) - 1, 1, moment(last)))
            self.assertTrue(rule.due(moment(last), 1, moment(following)))
            # A clock that was set back is no new period.
            self.assertFalse(rule.due(moment(following), 1, moment(last)))
            # Nothing is rotated where nothing is.
            self.assertFalse(rule.due(0, 0, moment(following)))

    def test_names(self) -> None:
        """They begin with the log's and sort by time."""
        first = rotated_name(LOG, moment("2026-11-25T00:00:00"))
        self.assertEqual(first.name, "messages.jsonl.2026-11-25T000000.000000Z")
        times = [moment("2026-11-25T00:00:00") + n * 99_999_999_999 for n in range(50)]
        names = [rotated_name(LOG, time) for time in times]
        self.assertEqual(names, sorted(names))

    def test_expendable(self) -> None:
        """Only the server's own files, only the oldest; none if nothing says how many to keep."""
        # Which is older is for what is in them to say, and not for their names.
        own = [rotated_name(LOG, moment(f"2026-11-{day}T00:00:00")) for day in range(20, 25)]
        others = [
            own[0].with_name(own[0].name + suffix) for suffix in (".gz", ".bak", "x", ".torn-1")
        ]
        named = ("messages.jsonl.1", "messages.jsonl-20261120", "messages.jsonl.2026-11-20")
        others += [LOG.with_name(name) for name in named]
        beside = [*others, *own]
        self.assertEqual(expendable(LOG, beside, 2), own[:3])
        self.assertEqual(expendable(LOG, beside[::-1], 2), own[:1:-1])
        self.assertEqual(expendable(LOG, beside, 5), [])
        self.assertEqual(expendable(LOG, beside, 0), [])
