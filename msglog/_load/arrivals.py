"""When messages come that do not wait for receipts: an open loop."""

from __future__ import annotations

from random import Random

__all__ = ["Arrivals"]


class Arrivals:
    """
    The moments at which messages come: a Poisson process, which is what many senders that know
    nothing of each other are together.  So sometimes none comes for a while, and sometimes several
    come at once.

    @param rate: how many a second on average.
    @param begin: nanoseconds, by the clock that is asked for later.
    @ivar next: when the next one comes.
    """

    __slots__ = ("_gap", "_rate", "next")

    def __init__(self, rate: float, begin: int) -> None:
        # Without a seed: two processes of a load must not send at the same moments.
        self._gap = Random().expovariate
        self._rate = rate / 1e9
        self.next: float = begin + self._gap(self._rate)

    def until(self, now: int, most: int) -> list[int]:
        """Those that have come by now and were not asked for yet, at most so many."""
        at, gap, rate = self.next, self._gap, self._rate
        come: list[int] = []
        while at <= now and len(come) < most:
            come.append(int(at))
            at += gap(rate)
        self.next = at
        return come
