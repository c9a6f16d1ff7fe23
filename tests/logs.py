"""Logs for tests of what reads them."""

from __future__ import annotations

from msglog._records import format_fragments, format_time, opening
from msglog.testing import make_batch

A, B, C = (bytes([n]) * 16 for n in (0xAA, 0xBB, 0xCC))
# 2026-11-24T10:00:00Z
TEN = 1_795_514_400_000_000
SECOND = 1_000_000


def commit(time: int, *parts: tuple[bytes, int, list[bytes]]) -> bytes:
    """The lines of a commit: of each part the client, the first sequence, and the bodies."""
    lines = []
    for client, first, bodies in parts:
        prefix = opening(format_time(time), client)
        lines += [prefix + f for f in format_fragments(make_batch(client, first, *bodies))]
    return b"".join(lines)


def minutes(count: int, first: int = 1, client: bytes = A) -> bytes:
    """A log of a record each minute from ten o'clock on, whose body is its sequence."""
    return b"".join(
        commit(TEN + (n - 1) * 60 * SECOND, (client, n, [b"%d" % n]))
        for n in range(first, first + count)
    )
