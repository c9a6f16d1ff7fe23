"""
Moments as a person writes them on a command line.

Without a zone they are UTC, as in the log and in what C{tail} and C{cat} show: what is copied from
there means the same here, on every machine.
"""

from __future__ import annotations

import re
import time
from datetime import UTC, datetime, timedelta

import click

__all__ = ["MOMENT", "MOMENT_HELP", "moment_text", "parse_moment"]

MOMENT_HELP = """\b
Times are UTC, as in the log, unless they name a zone:
  10:00, 10:00:05, 10:00+01:00             today
  2026-11-24                               from 00:00 on
  2026-11-24T10:00, "2026-11-24 10:00:05"  also with fractions and Z or +01:00
  90s, 15m, 2h, 3d, 1w                     so long ago
  today, yesterday                         from 00:00 on"""

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND = timedelta(microseconds=1)

_CLOCK = r"(?P<clock>\d\d:\d\d(:\d\d(\.\d{1,6})?)?)(?P<zone>Z|[+-]\d\d:?\d\d)?"
_TIME_OF_DAY = re.compile(_CLOCK, re.IGNORECASE)
_DATE = re.compile(rf"(?P<date>\d{{4}}-\d\d-\d\d)([T ]{_CLOCK})?", re.IGNORECASE)
_AGO = re.compile(r"(?P<count>\d{1,9})(?P<unit>[smhdw])")
_SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86400, "w": 7 * 86400}


def parse_moment(text: str, now: datetime) -> int:
    """
    The microseconds since 1970 of a moment.

    @param now: aware of its zone, UTC.
    @raise ValueError: it is not written in any of the ways that there are.
    """
    midnight = now.replace(hour=0, minute=0, second=0, microsecond=0)
    try:
        if text in ("today", "yesterday"):
            moment = midnight - timedelta(days=text == "yesterday")
        elif ago := _AGO.fullmatch(text):
            moment = now - timedelta(seconds=int(ago["count"]) * _SECONDS[ago["unit"]])
        elif written := _DATE.fullmatch(text) or _TIME_OF_DAY.fullmatch(text):
            date = written.groupdict().get("date") or now.strftime("%Y-%m-%d")
            clock, zone = written["clock"] or "00:00", (written["zone"] or "Z").upper()
            moment = datetime.fromisoformat(f"{date}T{clock}{zone}")
        else:
            raise ValueError("it is not written as a time")
    except OverflowError:
        raise ValueError("it is before the year 1") from None
    return (moment - _EPOCH) // _MICROSECOND


def moment_text(microseconds: int) -> str:
    """A moment for a person, with no more decimals than it has."""
    moment = _EPOCH + _MICROSECOND * microseconds
    return moment.isoformat().replace("+00:00", "Z")


class _Moment(click.ParamType[int]):
    name = "TIME"

    def convert(
        self, value: object, param: click.Parameter | None, ctx: click.Context | None
    ) -> int:
        if isinstance(value, int):
            return value
        try:
            return parse_moment(str(value), datetime.fromtimestamp(time.time(), UTC))
        except ValueError as e:
            self.fail(
                f"{value!r} is no time that is understood ({e}); write 10:00, 2026-11-24T10:00 "
                f"or 15m (ago)",
                param,
                ctx,
            )


MOMENT = _Moment()
