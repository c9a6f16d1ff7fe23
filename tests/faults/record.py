"""What one client has sent, and what came of it as far as it was told."""

from __future__ import annotations

import hashlib
import time

from attrs import define, field


def body_of(client: bytes, sequence: int) -> bytes:
    """What a client sends under a sequence: none is like another, and none need be kept."""
    digest = hashlib.blake2b(client + b"%d" % sequence, digest_size=20).hexdigest()
    return b"%d %b" % (sequence, digest.encode())


@define(eq=False)
class Record:
    """
    @ivar id: the client id.
    @ivar sent: the highest sequence that was sent.
    @ivar acked: the highest that was acknowledged.
    @ivar receipts: how many were acknowledged, those again that were sent again.
    @ivar set_back: how often a server knew of less than was acknowledged.
    @ivar wrong: what no server may say.
    @ivar longest: the longest time without progress, seconds, since it was last set to zero.
    """

    id: bytes
    sent: int = 0
    acked: int = 0
    receipts: int = 0
    set_back: int = 0
    wrong: list[str] = field(factory=list)
    longest: float = 0.0
    since: float = field(factory=time.monotonic)

    def acknowledged(self, sequence: int) -> None:
        """There is a receipt."""
        self.receipts += 1
        if sequence > self.acked:
            self.acked = sequence
            now = time.monotonic()
            self.longest = max(self.longest, now - self.since)
            self.since = now
