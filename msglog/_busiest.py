"""
Which clients most messages are from, in bounded memory.

The sketch of Misra and Gries ("Finding repeated elements", 1982), shed in bulk: every client has a
counter until there are too many, and then the median is taken from all and who has nothing left
goes.  So a counter is too low by at most what was taken, C{error}, and whoever sent more than that
is here.  A batch costs one look-up; the sort comes once for hundreds of new clients.
"""

from __future__ import annotations

__all__ = ["Busiest"]

# Counters: a hundred times the clients that are shown, so that those are right; 150 KiB.
_COUNTERS = 1024


class Busiest:
    """
    @ivar error: how many messages at most a client has more than is counted.
    """

    def __init__(self, counters: int = _COUNTERS) -> None:
        self._counters = counters
        self._counts: dict[bytes, int] = {}
        self.error = 0

    def __len__(self) -> int:
        return len(self._counts)

    def count(self, client: bytes, messages: int) -> None:
        """Count messages of a client."""
        counts = self._counts
        counts[client] = counts.get(client, 0) + messages
        if len(counts) > self._counters:
            self._shed()

    def _shed(self) -> None:
        median = sorted(self._counts.values())[len(self._counts) // 2]
        self._counts = {c: n - median for c, n in self._counts.items() if n > median}
        self.error += median

    def top(self, most: int) -> list[tuple[bytes, int]]:
        """The busiest clients and what is counted of them, busiest first."""
        found = sorted(self._counts.items(), key=lambda item: (-item[1], item[0]))
        return found[:most]
