"""Whether the disk is so quick that waiting for it in the reactor's thread is short."""

from __future__ import annotations

__all__ = ["Quickness"]

# What any thread may take from the reactor at a time anyhow: CPython's switch interval.
_QUICK_SECONDS = 0.005

# So many commits in a row must have been quick.  A disk that hangs now and then takes the reactor
# along once each time, and not again before it has been itself for a while.
_COMMITS = 16


class Quickness:
    """
    Takes note of how long commits take.

    @ivar lately: whether all of the last commits were quick.
    """

    __slots__ = ("_quick", "lately")

    def __init__(self) -> None:
        self._quick = 0
        self.lately = False

    def note(self, seconds: float) -> None:
        """A commit took so long."""
        if seconds > _QUICK_SECONDS:
            self._quick = 0
            self.lately = False
        elif not self.lately:
            self._quick += 1
            self.lately = self._quick >= _COMMITS
