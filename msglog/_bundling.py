"""A worker process's store: what it is handed goes to the writer's process, in bundles."""

from __future__ import annotations

from collections.abc import Callable

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IReactorTime
from twisted.logger import Logger
from zope.interface import implementer

from ._batch import STORED, Batch, Verdict
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

# Where a bundle is cut: the writer goes on with others in between.  A few of these are a commit.
_BUNDLE_BYTES = 1024 * 1024
_BUNDLE_BATCHES = 1024

_NUMBERS = 2**32


@implementer(IGatheringStore)
class BundlingStore:
    """
    See the module.

    What one round of reads brought is one bundle.  Any number of them may be on their way: the
    protocol bounds what is handed over.

    @param reactor: for the end of a turn.
    @param send: sends a frame to the writer.
    @param window: the store's own.
    """

    _log = Logger()

    def __init__(self, reactor: IReactorTime, send: Callable[[bytes], None], window: int) -> None:
        self._reactor = reactor
        self._send = send
        self.window = window
        self._number = 0
        self._gathering = False
        self._scheduled = False
        # The bundle that is gathered, as columns.
        self._clients: list[bytes] = []
        self._firsts: list[int] = []
        self._counts: list[int] = []
        self._checksums: list[int] = []
        self._lines: list[bytes] = []
        self._bytes = 0
        self._judged: list[Callable[[Verdict], None]] = []
        # What is on its way, by number.
        self._bundles: dict[int, list[Callable[[Verdict], None]]] = {}
        self._questions: dict[int, Deferred[int | None]] = {}

    # --- IGatheringStore -------------------------------------------------------------------

    def append(self, batch: Batch, judged: Callable[[Verdict], None]) -> int:
        """See L{IStore.append}."""
        lines = format_lines(batch)
        checksums = batch.checksums
        self._clients.append(batch.client)
        self._firsts.append(batch.first)
        self._counts.append(len(checksums))
        self._checksums += checksums
        self._lines.append(lines)
        self._judged.append(judged)
        size = len(lines)
        self._bytes += size
        if self._bytes >= _BUNDLE_BYTES or len(self._judged) >= _BUNDLE_BATCHES:
            self._hand_over()
        elif not self._gathering and not self._scheduled:
            self._scheduled = True
            self._reactor.callLater(0, self._turn_ended)
        return size

    def last(self, client: bytes) -> Deferred[int | None]:
        """See L{IStore.last}."""
        self._hand_over()
        answer: Deferred[int | None] = Deferred()
        number = self._next_number()
        self._questions[number] = answer
        self._send(encode_frame(ASK, number, client))
        return answer

    def gather(self) -> None:
        """See L{IGatheringStore.gather}."""
        self._gathering = True

    def commit(self) -> None:
        """See L{IGatheringStore.commit}."""
        self._gathering = False
        self._hand_over()

    def _turn_ended(self) -> None:
        self._scheduled = False
        self._hand_over()

    def _hand_over(self) -> None:
        if not self._judged:
            return
        number = self._next_number()
        self._bundles[number] = self._judged
        frame = encode_bundle(
            number, self._clients, self._firsts, self._counts, self._checksums, self._lines
        )
        self._clients, self._firsts, self._counts = [], [], []
        self._checksums, self._lines, self._judged = [], [], []
        self._bytes = 0
        self._send(frame)

    def _next_number(self) -> int:
        self._number = (self._number + 1) % _NUMBERS
        return self._number

    # --- what the writer says --------------------------------------------------------------

    def bundle_judged(self, number: int, payload: bytes) -> None:
        """
        Take a JUDGED frame.

        @raise BadFrame: it is none, or answers nothing.
        """
        answers = self._bundles.pop(number, None)
        if answers is None:
            raise BadFrame(f"verdicts on bundle {number}, which was not handed over")
        exceptions = dict(decode_exceptions(payload)) if payload else {}
        for index, judged in enumerate(answers):
            try:
                judged(exceptions.get(index, STORED))
            except Exception:
                # Or the pipe would end, and with it the process and everybody's connections.
                self._log.failure("a verdict was not taken by what had asked for it")

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
