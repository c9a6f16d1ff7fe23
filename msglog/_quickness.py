"""Whether the disk is so quick that waiting for it in the reactor's thread is short."""

from __future__ import annotations

__all__ = ["Quickness"]

# What any thread may take from the reactor at a time anyhow: CPython's switch interval.
_QUICK_SECONDS = 0.005

# The same while commits are made in a thread of their own: it waits for the interpreter besides,
# after the write and after the sync, up to a switch interval each.
_QUICK_SECONDS_APART = 0.015

# So many writes in a row must have been quick.  A disk that hangs now and then takes the reactor
# along once each time, and not again before it has been itself for a while.
_WRITES = 16


class Quickness:
    """
    Takes note of how long the disk takes for what it is given.

    @ivar lately: whether it was quick each time of late.
    """

    __slots__ = ("_quick", "lately")

    def __init__(self) -> None:
        self._quick = 0
        self.lately = False

    def note(self, seconds: float) -> None:
        """A write and its sync took so long."""
        if self._is_slow(seconds):
            self._quick = 0
            self.lately = False
        elif not self.lately:
            self._quick += 1
            self.lately = self._quick >= _WRITES

    def note_reads(self, seconds: float) -> None:
        """
        What a commit had to read of the ledger took so long.

        That it took less says nothing: nearly all commits read nothing.
        """
        if self._is_slow(seconds):
            self._quick = 0
            self.lately = False

    def _is_slow(self, seconds: float) -> bool:
        return seconds > (_QUICK_SECONDS if self.lately else _QUICK_SECONDS_APART)
