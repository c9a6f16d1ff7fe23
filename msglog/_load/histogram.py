"""Latencies, counted in buckets whose width grows with the value, as in HdrHistogram."""

from __future__ import annotations

from collections.abc import Iterator
from math import ceil

__all__ = ["Histogram"]

# A bucket is at most 1/128 of its value wide, so a percentile is right to 0.8 %.  That is finer
# than two runs agree, and makes 5,504 buckets of what a run may see.
_BITS = 7
_EXACT = 1 << (_BITS + 1)  # values below have a bucket each

# 39 hours in nanoseconds.  No run is that long; what were longer is counted as this.
_LONGEST = (1 << 47) - 1


def _index(value: int) -> int:
    if value < _EXACT:
        return value
    shift = value.bit_length() - _BITS - 1
    return (shift << _BITS) + (value >> shift)


def _edge(index: int) -> int:
    """The lowest value that this bucket counts."""
    if index < _EXACT:
        return index
    shift = (index >> _BITS) - 1
    return (index - (shift << _BITS)) << shift


class Histogram:
    """
    How many messages had which latency.

    @ivar total: how many are counted.
    @ivar lowest: the least latency in nanoseconds, exactly; 0 if nothing is counted.
    @ivar highest: the greatest, exactly.
    """

    __slots__ = ("_counts", "_lowest", "highest", "total")

    def __init__(self) -> None:
        self._counts = [0] * (_index(_LONGEST) + 1)
        self._lowest = _LONGEST
        self.highest = 0
        self.total = 0

    @property
    def lowest(self) -> int:
        return self._lowest if self.total else 0

    def record(self, nanoseconds: int, count: int) -> None:
        """Count messages that all had this latency."""
        if nanoseconds < self._lowest:
            self._lowest = nanoseconds
        if nanoseconds > self.highest:
            self.highest = nanoseconds
        # Not min(): this is called for each message where windows are narrow.
        self._counts[_index(nanoseconds if nanoseconds < _LONGEST else _LONGEST)] += count
        self.total += count

    def clear(self) -> None:
        """Forget everything: what follows is to be measured alone."""
        # In place, for whoever records has hold of this very object.
        self.__init__()  # type: ignore[misc]

    def add(self, other: Histogram) -> None:
        """Count what another one has counted as well."""
        self._counts = [a + b for a, b in zip(self._counts, other._counts, strict=True)]
        self._lowest = min(self._lowest, other._lowest)
        self.highest = max(self.highest, other.highest)
        self.total += other.total

    def percentile(self, percent: float) -> int:
        """
        The latency in nanoseconds that this part of all messages did not exceed.

        It is the upper end of the bucket, so it errs, if at all, against the server.
        """
        rank = max(1, ceil(self.total * percent / 100))
        seen = 0
        for _low, high, count in self.buckets():
            seen += count
            if seen >= rank:
                return min(high, self.highest)
        return self.highest

    def buckets(self) -> Iterator[tuple[int, int, int]]:
        """Each bucket that counts anything: its lowest and highest value, and its count."""
        for index, count in enumerate(self._counts):
            if count:
                yield _edge(index), _edge(index + 1) - 1, count
