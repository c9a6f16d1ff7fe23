"""
When a log is to be rotated by the server itself, what the file that it leaves is called, and which
of those files may go.  No I/O.

By time, the first record decides: a file holds records of one hour, day, week or month alone, in
UTC.  So nothing has to be remembered over a restart.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path
from time import gmtime

from attrs import frozen

from ._records import format_time

__all__ = ["PERIODS", "RotationRule", "expendable", "rotated_name"]

PERIODS = ("hourly", "daily", "weekly", "monthly")

_UNITS = {"KiB": 1 << 10, "MiB": 1 << 20, "GiB": 1 << 30, "TiB": 1 << 40}
_SIZE = re.compile(r"(\d{1,6})(KiB|MiB|GiB|TiB)\Z")

# A rotation brings the whole ledger up to date and waits for the disk a few times: below this, a
# busy server would do little else.
_LEAST_BYTES = 64 << 10

_HOUR = 3600 * 1_000_000
_DAY = 24 * _HOUR

# As rotated_name makes it, and nothing longer: what somebody compressed or renamed is theirs.
_OWN_NAME = re.compile(r"\.\d{4}-\d\d-\d\dT\d{6}\.\d{6}Z\Z")


@frozen(kw_only=True)
class RotationRule:
    """
    When to rotate.  Without anything it says never.

    @ivar max_bytes: the length at which a file gets no further commit; 0: any.
    @ivar period: one of C{PERIODS}, of which a file holds no two; empty: any time.
    @ivar keep: how many of the files that the server rotated it leaves; 0: all.
    """

    max_bytes: int = 0
    period: str = ""
    keep: int = 0

    @classmethod
    def parse(cls, text: str, keep: int = 0) -> RotationRule:
        """
        The rule of C{never}, a size, a period, or both with a comma between.

        @raise ValueError: it is none of these; the text says what is wrong.
        """
        if text == "never":
            return cls(keep=keep)
        size, period = 0, ""
        for word in text.split(","):
            match = _SIZE.match(word)
            if word in PERIODS and not period:
                period = word
            elif match is not None and not size:
                size = int(match[1]) * _UNITS[match[2]]
                if size < _LEAST_BYTES:
                    raise ValueError(f"{word} is less than {_LEAST_BYTES >> 10}KiB")
            else:
                raise ValueError(
                    f"'never', a size such as 500MiB or 1GiB, one of {', '.join(PERIODS)}, or "
                    f"a size and one of these with a comma between"
                )
        return cls(max_bytes=size, period=period, keep=keep)

    def due(self, began: int, size: int, moment: int) -> bool:
        """
        Whether a file is to be left before anything is added to it.

        @param began: the time of its first record, microseconds since 1970.
        @param size: its length, bytes.
        @param moment: the time now.
        """
        if not size:
            return False
        if self.max_bytes and size >= self.max_bytes:
            return True
        return bool(self.period) and _period(self.period, began) < _period(self.period, moment)


def _period(kind: str, moment: int) -> int:
    """The number of the hour, day, week (of Monday) or month that a moment is in."""
    if kind == "hourly":
        return moment // _HOUR
    days = moment // _DAY
    if kind == "daily":
        return days
    if kind == "weekly":
        return (days + 3) // 7  # 1970 began on a Thursday
    then = gmtime(moment // 1_000_000)
    return then.tm_year * 12 + then.tm_mon


def rotated_name(log: Path, moment: int) -> Path:
    """What a file is called that is rotated away from a log; names sort by time."""
    return log.with_name(f"{log.name}.{format_time(moment).decode().replace(':', '')}")


def expendable(log: Path, beside: Iterable[Path], keep: int) -> list[Path]:
    """
    Of files beside a log those that it was rotated into by the server, but for the newest.

    @param beside: oldest first, by what is in them: a clock that was set back before a restart
        gives a newer file an older name.
    """
    own = [path for path in beside if _OWN_NAME.match(path.name.removeprefix(log.name))]
    return own[:-keep] if keep else []
