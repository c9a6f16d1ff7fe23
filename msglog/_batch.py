"""
The unit that travels between protocol and store: a run of consecutive messages of one client.

A batch is admitted, written and answered as one, so that what happens per message is only
parsing and formatting.
"""

from __future__ import annotations

import enum
from collections.abc import Sequence
from uuid import UUID

from attrs import define, field, frozen

__all__ = ["MAX_SEQUENCE", "STORED", "Batch", "NackCode", "Receipt", "Refusal", "Verdict"]

# 2**53 - 1, the highest integer that every JSON reader gets back exactly.
MAX_SEQUENCE = 2**53 - 1


class NackCode(enum.IntEnum):
    """Why a message was not stored; the numbers are the wire's (docs/protocol.md)."""

    MALFORMED = 1
    CORRUPT = 2
    TOO_LONG = 3
    OUT_OF_ORDER = 4
    NOT_STORED = 5
    UNAVAILABLE = 6
    FORBIDDEN = 7
    CONFLICT = 8


@define(slots=True, eq=False)
class Batch:
    """
    Messages C{first}, C{first + 1}, … of one client.

    @ivar client: the client id, 16 bytes.
    @ivar first: the sequence of the first message, 1 to L{MAX_SEQUENCE}.
    @ivar checksums: each message's CRC-32C as it was on the wire.
    @ivar bodies: each message's body; as many as C{checksums}, at least one.
    """

    client: bytes
    first: int
    checksums: list[int]
    bodies: list[bytes]

    def __len__(self) -> int:
        return len(self.checksums)


@frozen(slots=True)
class Receipt:
    """
    Proof that a message is durable.

    @ivar client: the client id it was logged under.
    @ivar sequence: its sequence there.
    @ivar checksum: its CRC-32C, as the log's record of it has it.
    """

    client: UUID
    sequence: int
    checksum: int


@frozen(slots=True)
class Refusal:
    """
    Messages of a batch that were not stored.

    @ivar start: index in the batch of the first message this is about.
    @ivar stop: index after the last one.
    @ivar code: why.
    @ivar expected: the sequence that is expected next from this client; 0 if unknown.
    @ivar reason: for a person to read.
    """

    start: int
    stop: int
    code: NackCode
    expected: int
    reason: str


@frozen(slots=True)
class Verdict:
    """
    What became of a batch: every message is durable but those that C{refusals} name.

    @ivar refusals: in order of C{start}, not overlapping; empty if all is stored.
    """

    refusals: Sequence[Refusal] = field(default=())

    @classmethod
    def refused(cls, batch: Batch, code: NackCode, expected: int, reason: str) -> Verdict:
        """A verdict that refuses the whole of a batch."""
        return cls((Refusal(0, len(batch), code, expected, reason),))


# The verdict of nearly every batch, made once.
STORED = Verdict()
