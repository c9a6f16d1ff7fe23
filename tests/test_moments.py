"""Moments as they are written on a command line."""

from __future__ import annotations

from datetime import UTC, datetime

from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from msglog._records import format_time
from msglog.cli._moments import moment_text, parse_moment

NOW = datetime(2026, 11, 24, 15, 30, 45, 123456, tzinfo=UTC)


class Moments(SynchronousTestCase):
    def test_written(self) -> None:
        """Every way to write a moment that the help names."""
        for text, expected in {
            "10:00": "2026-11-24T10:00:00Z",
            "10:00:05": "2026-11-24T10:00:05Z",
            "10:00:05.25": "2026-11-24T10:00:05.250000Z",
            "10:00+01:00": "2026-11-24T09:00:00Z",
            "10:00Z": "2026-11-24T10:00:00Z",
            "2026-11-24": "2026-11-24T00:00:00Z",
            "2026-11-20T10:00": "2026-11-20T10:00:00Z",
            "2026-11-20 10:00:05": "2026-11-20T10:00:05Z",
            "2026-11-20T10:00:05.123456Z": "2026-11-20T10:00:05.123456Z",
            "2026-11-20t10:00:05z": "2026-11-20T10:00:05Z",
            "2026-11-20T10:00-0530": "2026-11-20T15:30:00Z",
            "90s": "2026-11-24T15:29:15.123456Z",
            "15m": "2026-11-24T15:15:45.123456Z",
            "2h": "2026-11-24T13:30:45.123456Z",
            "3d": "2026-11-21T15:30:45.123456Z",
            "1w": "2026-11-17T15:30:45.123456Z",
            "today": "2026-11-24T00:00:00Z",
            "yesterday": "2026-11-23T00:00:00Z",
        }.items():
            self.assertEqual(moment_text(parse_moment(text, NOW)), expected, text)

    def test_not_understood(self) -> None:
        """Anything else is refused, and not taken for something."""
        for text in (
            *("", " ", "10", "10:0", "25:00", "10:61", "2026-13-01", "2026-11-24T", "20261124"),
            *("2026-W48-2", "-5m", "5 m", "5", "m", "tomorrow", "10:00 2026-11-24"),
            *("999999999w", "10:00:05.1234567", "2026-11-24T10:00 +01:00", "2026-11-2410:00"),
        ):
            self.assertRaises(ValueError, parse_moment, text, NOW)

    @given(st.integers(0, 253402300799999999))
    def test_copied_from_the_log(self, time: int) -> None:
        """A time that is shown means itself."""
        self.assertEqual(parse_moment(format_time(time).decode(), NOW), time)
