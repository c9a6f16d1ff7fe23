"""A worker process's store: the bundles it is handed go to the writer's process."""

from __future__ import annotations

from collections.abc import Callable

from twisted.internet.defer import Deferred
from zope.interface import implementer

from ._batch import STORED, Batch, Verdict
from ._bundle import Bundle, Exceptions
from ._pipe_frames import (
    ASK,
    BadFrame,
    decode_exceptions,
    decode_last,
    encode_bundle,
    encode_frame,
)
from ._records import format_lines
from .interfaces import IGatheringStore

__all__ = ["BundlingStore"]

_NUMBERS = 2**32


@implementer(IGatheringStore)
class BundlingStore:
    """
    See the module.

    Any number of bundles may be on their way: the protocol bounds what is handed over.

    @param send: sends a frame to the writer.
    @param window: the store's own.
    """

    def __init__(self, send: Callable[[bytes], None], window: int) -> None:
        self._send = send
        self.window = window
        self._number = 0
        # What is on its way, by number.
        self._bundles: dict[int, Callable[[Exceptions], None]] = {}
        self._questions: dict[int, Deferred[int | None]] = {}

    # --- IGatheringStore -------------------------------------------------------------------

    def append(self, batch: Batch, judged: Callable[[Verdict], None]) -> int:
        """See L{IStore.append}."""
        lines, checksums = format_lines(batch), batch.checksums
        size = len(lines)
        bundle = Bundle([batch.client], [batch.first], [len(checksums)], checksums, [lines], size)
        self.append_bundle(
            bundle, lambda exceptions: judged(exceptions[0][1] if exceptions else STORED)
        )
        return size

    def append_bundle(self, bundle: Bundle, judged: Callable[[Exceptions], None]) -> None:
        """See L{IGatheringStore.append_bundle}."""
        number = self._next_number()
        self._bundles[number] = judged
        self._send(encode_bundle(number, bundle))

    def commit(self) -> None:
        """See L{IGatheringStore.commit}: the writer begins one with what all workers have."""

    def last(self, client: bytes) -> Deferred[int | None]:
        """See L{IStore.last}."""
        answer: Deferred[int | None] = Deferred()
        number = self._next_number()
        self._questions[number] = answer
        self._send(encode_frame(ASK, number, client))
        return answer

    def _next_number(self) -> int:
        self._number = (self._number + 1) % _NUMBERS
        return self._number

    # --- what the writer says --------------------------------------------------------------

    def bundle_judged(self, number: int, payload: bytes) -> None:
        """
        Take a JUDGED frame.

        @raise BadFrame: it is none, or answers nothing.
        """
        judged = self._bundles.pop(number, None)
        if judged is None:
            raise BadFrame(f"verdicts on bundle {number}, which was not handed over")
        judged(decode_exceptions(payload) if payload else ())

    def answered(self, number: int, payload: bytes) -> None:
        """
        Take a LAST frame.

        @raise BadFrame: it is none, or answers nothing.
        """
        last = decode_last(payload)
        question = self._questions.pop(number, None)
        if question is None:
            raise BadFrame(f"an answer to question {number}, which was not asked")
        question.callback(last)
