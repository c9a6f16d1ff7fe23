"""
When the ledger goes to its checkpoint: in steps between commits, so that none waits for all of it.

The ledger's file must never know of a message that a power cut can take from the log, so each step
syncs the log first.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Generator
from contextlib import suppress

from twisted.logger import Logger

from ._checkpoint import Coverage, ICheckpoint
from ._errors import StoreFailed
from ._ledger import ClientState, Ledger, RowDamaged
from ._limits import Limits

__all__ = ["Checkpointer"]

# How often damage in the ledger's file is said at most: its clients come back again and again.
_SAY_AGAIN_SECONDS = 60.0

# How often the file is looked for by its name: 2 µs each time.
_LOOK_SECONDS = 5.0

_GONE = "was deleted, moved away or replaced"


class Checkpointer:
    """
    @param checkpoint: the ledger's file, open; closed with L{close} or L{abandon}.
    @param ledger: what goes there.
    @param limits: of which the two for checkpoints are used.
    @param coverage: what the log is now.
    @param sync: waits until what was written to the log is on the disk.
    @param monotonic: seconds, for intervals.
    @ivar damage: what was last found to be wrong with the file, after "the ledger"; L{None} if
        nothing was.  (May be read from another thread.)
    """

    _log = Logger()

    def __init__(
        self,
        checkpoint: ICheckpoint,
        ledger: Ledger,
        limits: Limits,
        coverage: Callable[[], Coverage],
        sync: Callable[[], None],
        monotonic: Callable[[], float],
    ) -> None:
        self._checkpoint = checkpoint
        self._ledger = ledger
        self._limits = limits
        self._coverage = coverage
        self._sync = sync
        self._monotonic = monotonic
        self._steps: Generator[None, None, None] | None = None
        self._covered = 0  # the log's offset that the last checkpoint covers
        self._began = monotonic()  # when the last checkpoint was begun
        self._retry_at = 0.0  # after one that failed
        self.damage: str | None = None
        self._say_at = monotonic()
        self._look_at = monotonic() + _LOOK_SECONDS

    def load(self, client: bytes) -> ClientState | None:
        """
        What the file has of a client.

        @raise RowDamaged: that is damaged.
        """
        try:
            return self._checkpoint.load(client)
        except RowDamaged as e:
            self.damage = f"is damaged: {e}"
            if self._may_say():
                self._log.error(
                    "the ledger {ledger} is damaged: {error}. Its messages are refused "
                    "(NOT_STORED), those of others are taken. Look at the disk, stop the server, "
                    "move the ledger away and start again: it is made anew from the log and the "
                    "files rotated from it, which must all be there",
                    ledger=str(self._checkpoint.path),
                    error=str(e),
                )
            raise

    def close(self) -> None:
        """Close the file after a L{save} that was durable."""
        self._checkpoint.close()

    def abandon(self) -> None:
        """Close the file as it is; a checkpoint that was begun is as if it was not."""
        if self._steps is not None:
            with suppress(sqlite3.Error, StoreFailed):
                self._steps.close()
            self._steps = None
        self._checkpoint.abandon()

    @property
    def begun(self) -> bool:
        """Whether a checkpoint is begun and not done."""
        return self._steps is not None

    def behind(self, size: int) -> bool:
        """Whether a step is due, with a log of this size.  (May be asked from another thread.)"""
        if self._steps is not None:
            return True
        ledger, now = self._ledger, self._monotonic()
        if not ledger.dirty or now < self._retry_at:
            return False
        return (
            ledger.overfull
            or size - self._covered >= self._limits.checkpoint_bytes
            or now - self._began >= self._limits.checkpoint_seconds
        )

    def advance(self, size: int) -> None:
        """
        Begin a checkpoint that is due; do one step of one that was begun; see that the file is
        still where it belongs.

        One that fails is said, and tried again later: it costs the next start time, and nothing
        else.

        @raise StoreFailed: what the disk has of the file is unknown from here on.
        """
        now = self._monotonic()
        if now >= self._look_at:
            self._look_at = now + _LOOK_SECONDS
            self._look()
        if not self.behind(size):
            return
        if self._steps is None:
            self._began = now
            self._steps = self._steps_of(self._coverage(), durable=False)
        try:
            if self._ledger.overfull:
                self._finish()
            elif next(self._steps, self) is self:
                self._steps = None
        except sqlite3.Error as e:
            self._steps = None
            self._retry_at = now + self._limits.checkpoint_seconds
            self._log.error(
                "the ledger {ledger} could not be brought up to date: {error}; it is tried again "
                "in {seconds} s, and until then a start reads more of the log",
                ledger=str(self._checkpoint.path),
                error=str(e),
                seconds=self._limits.checkpoint_seconds,
            )

    def _may_say(self) -> bool:
        """Whether it is time to say again what is wrong with the file."""
        now = self._monotonic()
        if now < self._say_at:
            return False
        self._say_at = now + _SAY_AGAIN_SECONDS
        return True

    def _look(self) -> None:
        """See whether somebody took the file away: it would be lost with the process."""
        if not self._checkpoint.gone():
            if self.damage == _GONE:
                self.damage = None
            return
        self.damage = _GONE
        if self._may_say():
            self._log.error(
                "the ledger {ledger} {damage}; messages are taken as before. Move it back, but put "
                "no copy there; or start the server again while all files rotated from the log are "
                "there: it is made anew from them, and where one is missing, what clients sent "
                "then may be logged again",
                ledger=str(self._checkpoint.path),
                damage=_GONE,
            )

    def save(self, coverage: Coverage, *, durable: bool) -> None:
        """
        A whole checkpoint now.

        @param coverage: what to note of the log.
        @param durable: whether to wait until it is on the disk.
        @raise sqlite3.Error: it could not be written; the last one still stands.
        @raise StoreFailed: as in L{advance}.
        """
        self._finish()
        self._steps = self._steps_of(coverage, durable=durable)
        self._finish()

    def spill(self) -> None:
        """
        Write what changed, and leave what is noted of the log: a start that is cut short begins
        again from the same place.
        """
        self._steps = self._steps_of(None, durable=False)
        self._finish()

    def file_begun(self) -> None:
        """The log is a new file, of which nothing is covered."""
        self._covered = 0

    def _finish(self) -> None:
        """Do all that is left of a checkpoint that was begun."""
        steps, self._steps = self._steps, None
        if steps is not None:
            for _ in steps:
                pass

    def _steps_of(self, coverage: Coverage | None, *, durable: bool) -> Generator[None, None, None]:
        written: dict[bytes, tuple[ClientState, int]] = {}
        dirty = dict(self._ledger.dirty)
        steps = self._checkpoint.write(dirty, coverage, written, durable=durable)
        while True:
            self._sync()
            if next(steps, steps) is steps:
                break
            yield
        if coverage is not None:
            self._covered = coverage.offset
        self._ledger.saved(written)
