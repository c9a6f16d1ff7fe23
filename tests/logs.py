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


def sample() -> tuple[bytes, bytes, bytes]:
    """Three files of one log, oldest first: what docs/reading.md reads."""
    ids = ("019ab1c27b3c7d4e8f5061728394a5b6", "019ab1c27b3d7a108c11d00f5e6a7b21")
    ada, door = map(bytes.fromhex, ids)
    texts = ("login user=ada", "payment card=4711", "payment refused card=4711", "logout user=ada")
    commits = []
    for n in range(180):
        time = TEN + n * 20 * SECOND + n * 1234
        commits.append(commit(time, (ada, n + 1, [texts[n % 4].encode()])))
        if 60 <= n < 90:
            first = (n - 60) * 8 + 1
            commits.append(
                commit(time + 700, (door, first, [b"temperature %d" % (n + k) for k in range(8)]))
            )
    end = TEN + 3601 * SECOND
    commits.append(commit(end, (door, 241, ["door “west” open \x1b[2J".encode(), b"\xff\x00"])))
    return b"".join(commits[:50]), b"".join(commits[50:120]), b"".join(commits[120:])
