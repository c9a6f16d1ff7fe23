"""
What many connections bring at the same time, on its way to the store and back.

A batch of one message costs more than the message does if each is handed over, committed and
answered by itself.  So what one round of reads brings goes to the store as one bundle, and one
verdict on all of it comes back: nearly always that all is stored.
"""

from __future__ import annotations

from itertools import chain
from typing import TYPE_CHECKING, Protocol

from twisted.internet.interfaces import IReactorTime
from twisted.logger import Logger

from ._batch import STORED, NackCode, Verdict
from ._bundle import Bundle, Exceptions
from ._counts import ConnectionCounts
from ._records import format_lines

if TYPE_CHECKING:
    from ._frames import Run
    from .interfaces import IGatheringStore

__all__ = ["IAwaiting", "Round"]

# Where a bundle is cut: a commit takes whole ones, so it is too large by no more than this; and a
# worker's takes its turn among those of others.
_BUNDLE_BYTES = 256 * 1024
_BUNDLE_BATCHES = 1024


class IAwaiting(Protocol):
    """What waits for the verdict on a run."""

    run: Run | None

    def stored(self) -> bool:
        """All of it is stored: answer that, if nothing else is to be seen to; whether it was."""

    def judged(self, verdict: Verdict) -> None:
        """Take a verdict, whatever it is."""


class Round:
    """
    @param reactor: for time, and for the end of a turn.
    @param store: what takes the bundles.
    @param counts: where ACKs are counted, and how long they took.
    """

    _log = Logger()

    def __init__(
        self, reactor: IReactorTime, store: IGatheringStore, counts: ConnectionCounts
    ) -> None:
        self._reactor = reactor
        self._store = store
        self._counts = counts
        self._reading = False
        self._scheduled = False
        self._awaiting: list[IAwaiting] = []
        self._runs: list[Run] = []
        self._lines: list[bytes] = []
        self._bytes = 0
        self._began = 0.0  # when this round of reads did, or what comes without one

    def begin(self) -> None:
        """A round of reads begins: L{end} comes when it is over."""
        self._reading = True
        self._began = self._reactor.seconds()

    def end(self) -> None:
        """The round is over: a commit begins with what it brought."""
        self.hand_over()
        self._reading = False
        self._store.commit()

    def add(self, run: Run, awaiting: IAwaiting) -> int:
        """
        Have a run logged.

        Outside of a round of reads, as with TLS, it goes at the end of this turn of the reactor.

        @return: how many bytes are held for it besides, until it is judged.
        """
        lines = format_lines(run)
        self._awaiting.append(awaiting)
        self._runs.append(run)
        self._lines.append(lines)
        size = len(lines)
        self._bytes += size
        if not self._reading and not self._scheduled:
            self._scheduled = True
            self._began = self._reactor.seconds()
            self._reactor.callLater(0, self._turn_ended)
        if self._bytes >= _BUNDLE_BYTES or len(self._runs) >= _BUNDLE_BATCHES:
            self.hand_over()
        return size

    def _turn_ended(self) -> None:
        self._scheduled = False
        self.end()

    def hand_over(self) -> None:
        """Have what came so far judged before what the store is asked next."""
        runs, awaiting = self._runs, self._awaiting
        if not runs:
            return
        bundle = _bundle(runs, self._lines, self._bytes)
        began = self._began
        self._runs, self._awaiting, self._lines = [], [], []
        self._bytes = 0
        try:
            self._store.append_bundle(
                bundle, lambda exceptions: self._judged(awaiting, began, exceptions)
            )
        except Exception:
            # An application's own store; what waits must not wait for ever.
            self._log.failure("messages could not be judged")
            code, reason = NackCode.UNAVAILABLE, "the server has a defect"
            self._judged(awaiting, began, bundle.refused(code, 0, reason))

    def _judged(self, awaiting: list[IAwaiting], began: float, exceptions: Exceptions) -> None:
        others = dict(exceptions) if exceptions else None
        counts = self._counts
        busiest = counts.busiest
        acked = 0
        for index, one in enumerate(awaiting):
            try:
                if others and index in others:
                    one.judged(others[index])
                elif one.stored():
                    run = one.run
                    assert run is not None
                    count = len(run.heads)
                    acked += count
                    if busiest is not None:
                        busiest.count(run.client, count)
                else:
                    one.judged(STORED)
            except Exception:
                # Or the others would wait for ever.
                self._log.failure("a verdict was not taken by what had asked for it")
        if acked:
            counts.acked += acked
            counts.ack_seconds.note(max(self._reactor.seconds() - began, 0.0), acked)


def _bundle(runs: list[Run], lines: list[bytes], size: int) -> Bundle:
    if len(runs) == 1:  # 0.3 µs and not 1.1
        (run,) = runs
        checksums = run.checksums
        return Bundle([run.client], [run.first], [len(checksums)], checksums, lines, size)
    columns = [run.checksums for run in runs]
    return Bundle(
        [run.client for run in runs],
        [run.first for run in runs],
        list(map(len, columns)),
        list(chain.from_iterable(columns)),
        lines,
        size,
    )
