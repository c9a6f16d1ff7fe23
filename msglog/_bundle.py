"""
Batches of many clients as one piece: what a round of reads brings, here or in a worker process.

A batch of one message costs the writer more than the message does, if it arrives as objects of its
own.  So it travels as a row of columns, and its line among all the lines: as long as every batch is
its client's next, the writer looks at a few numbers of each and at no line at all.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from attrs import define

from ._batch import Batch, NackCode, Verdict

__all__ = ["Bundle", "Exceptions"]

# The verdicts on a bundle: those that are not STORED, each with the batch's index, in order.
Exceptions = Sequence[tuple[int, Verdict]]


@define(slots=True, eq=False)
class Bundle:
    """
    Batches, in the order in which they are to be judged.

    @ivar clients: each batch's client id, 16 bytes.
    @ivar firsts: the sequence of its first message.
    @ivar counts: how many messages it has, at least one.
    @ivar checksums: those of all messages, batch after batch.
    @ivar lines: the lines of all messages, L{UNTIMED<msglog._records.UNTIMED>}, in the same order,
        as pieces of whole lines.
    @ivar size: their length, bytes.
    """

    clients: list[bytes]
    firsts: Sequence[int]
    counts: Sequence[int]
    checksums: Sequence[int]
    lines: list[bytes]
    size: int

    def __len__(self) -> int:
        """How many batches there are."""
        return len(self.clients)

    def batches(self) -> Iterator[Batch]:
        """Each batch, without its bodies."""
        place = 0
        for client, first, count in zip(self.clients, self.firsts, self.counts, strict=True):
            yield Batch(client, first, list(self.checksums[place : place + count]), [])
            place += count

    def refused(self, code: NackCode, expected: int, reason: str) -> Exceptions:
        """The verdicts if all of it is refused."""
        return [
            (index, Verdict.refused(batch, code, expected, reason))
            for index, batch in enumerate(self.batches())
        ]

    def without(self, known: Sequence[tuple[int, int]]) -> bytes:
        """
        The lines without those of some batches' first messages.

        @param known: the batch's index and how many of its messages, in order of the index.
        """
        lines = b"".join(self.lines).splitlines(keepends=True)
        kept: list[bytes] = []
        at = begun = 0  # the batch, and the message that it begins with
        copied = 0
        for index, count in known:
            begun += sum(self.counts[at:index])
            at = index
            kept += lines[copied:begun]
            copied = begun + count
        kept += lines[copied:]
        return b"".join(kept)
