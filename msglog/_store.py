"""
The embedded store: a L{LogWriter}, fed by group commit.

A commit that is not large is made I{in place}, in the reactor's thread, while the disk is quick: a
second thread that waits for the interpreter costs more than the disk does (docs/design.md).  All
else that waits for the disk is done in a thread of its own: larger commits and those that take
long, steps of the checkpoint, the end.  While a commit is there, everything that arrives gathers
for the next one, so that one commit is one hand-over, one write, one fdatasync and one wake-up of
the reactor.

The writer is in one thread at a time: nothing is done in place while C{_busy_since} says that the
thread has work, or C{_ticking} that a step of the checkpoint is there besides.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from twisted.application.service import Service
from twisted.internet.defer import Deferred, succeed
from twisted.internet.interfaces import IReactorTime
from twisted.internet.task import LoopingCall
from twisted.logger import Logger
from twisted.python.failure import Failure
from zope.interface import implementer

from ._batch import Batch, NackCode, Verdict
from ._bundle import Bundle, Exceptions
from ._errors import StoreFailed
from ._last_lines import last_lines
from ._limits import Limits
from ._records import format_lines
from ._recovery import Recovered
from ._rotation_rule import RotationRule
from ._store_figures import StoreFigures, commit_figures
from ._worker import Done, IWorker, Work, WorkThread, result_of
from ._writer import Appending, Asking, Entry, LogWriter, Outcome
from .interfaces import IGatheringStore, IStoreService

__all__ = ["FileStore"]

# How often the writer is asked whether something is due while there are no commits.
_TICK_SECONDS = 1.0

# What a batch in a commit counts besides its lines: 10 to 20 µs, the time that 1 KiB takes.  So a
# commit of the smallest messages of thousands of clients takes 0.3 s at most.
_BATCH_COST = 1024

# How many batches and questions a commit in place has at most: for each its client may have to be
# read from the ledger's file, 8 µs if that is in memory.
_IN_PLACE_BATCHES = 2048


@implementer(IStoreService, IGatheringStore)
class FileStore(Service):
    """
    One log file and its ledger (docs/log-format.md), as a service.

    C{startService} locks and recovers the log before it returns, so nothing that fails there fails
    later.  C{stopService} commits and answers what was appended, syncs, and lets the log go.

    @param reactor: for time, and for getting back from the writer's thread.
    @param path: the log file.
    @param limits: see L{Limits}.
    @param sync: 0 to answer only what is on the disk; otherwise the number of seconds within which
        what was answered reaches it.  A power cut then loses up to that many seconds of
        acknowledged messages; a crash of the process loses none.
    @param on_failure: called once with the reason when the disk failed in a way after which
        nothing more can be promised.  Everything is refused from then on; end the process, so that
        its supervisor restarts it into recovery.
    @param rotation: when to go on in a new file of its own accord; never if not given.
    @ivar recovered: what the last start found.
    @ivar recovery_seconds: how long that took.
    """

    name = "msglog-store"
    _log = Logger()

    def __init__(
        self,
        reactor: Any,
        path: Path | str,
        limits: Limits | None = None,
        sync: float = 0.0,
        on_failure: Callable[[StoreFailed], None] | None = None,
        *,
        rotation: RotationRule | None = None,
        writer: LogWriter | None = None,
        worker: Callable[[Any], IWorker] = WorkThread.of,
    ) -> None:
        self._limits = limits or Limits()
        self._sync = sync
        self._reactor: IReactorTime = reactor
        self._writer = writer or LogWriter(Path(path), self._limits, sync, rotation=rotation)
        self._make_worker = worker
        self._worker: IWorker | None = None
        self._on_failure = on_failure
        # What waits for the next commit and what is in this one: entries, and in the same order
        # what is called with their outcomes.
        self._waiting: list[Entry] = []
        self._answers: list[Callable[[Any], None]] = []
        self._waiting_bytes = 0  # of lines
        self._waiting_batches = 0
        self._takes = False  # whether what is appended is taken
        self._writing: list[Entry] = []
        self._writing_answers: list[Callable[[Any], None]] = []
        self._busy_since: float | None = None  # since when the writer's thread has work
        self._in_place_since: float | None = None  # since when the reactor's has, itself
        self._scheduled = False
        self._ticking = False
        self._reopenings: list[Deferred[None]] = []
        self._stopped: Deferred[None] | None = None
        self._ticks = LoopingCall(self._tick)
        self._ticks.clock = self._reactor
        self.failed: StoreFailed | None = None
        self.recovered: Recovered | None = None
        self.recovery_seconds = 0.0
        self._doubt: str | None = None  # what there is against its disk
        self.window = self._limits.window

    # --- IStore ----------------------------------------------------------------------------

    def append(self, batch: Batch, judged: Callable[[Verdict], None]) -> int:
        """See L{IStore.append}."""
        if not self._takes:
            judged(Verdict.refused(batch, *self._refusal()))
            return 0
        lines = format_lines(batch)
        size = len(lines)
        self._waiting_bytes += size
        self._waiting_batches += 1
        self._waiting.append(Appending(batch, lines))
        self._answers.append(judged)
        self._schedule()
        return size

    def append_bundle(self, bundle: Bundle, judged: Callable[[Exceptions], None]) -> None:
        """See L{IGatheringStore.append_bundle}."""
        if not self._takes:
            judged(bundle.refused(*self._refusal()))
            return
        self._waiting_bytes += bundle.size
        self._waiting_batches += len(bundle)
        self._waiting.append(bundle)
        self._answers.append(judged)

    def last(self, client: bytes) -> Deferred[int | None]:
        """See L{IStore.last}."""
        if not self._takes:
            return succeed(None)
        answer: Deferred[int | None] = Deferred()
        self._waiting.append(Asking(client))
        self._waiting_batches += 1
        self._answers.append(answer.callback)
        self._schedule()
        return answer

    def _refusal(self) -> tuple[NackCode, int, str]:
        """Why nothing is taken."""
        if self.failed is not None:
            return NackCode.NOT_STORED, 0, "the log has failed and waits for a restart"
        return NackCode.UNAVAILABLE, 0, "the log is closed"

    def _schedule(self) -> None:
        """Begin a commit at the end of this turn of the reactor, with what else arrives in it."""
        if self._busy_since is None and not self._scheduled:
            self._scheduled = True
            self._reactor.callLater(0, self._start)

    def commit(self) -> None:
        """See L{IGatheringStore.commit}."""
        if self._waiting:
            self._start()

    # --- group commit ----------------------------------------------------------------------

    def _start(self) -> None:
        self._scheduled = False
        if self._busy_since is None:
            self._next()

    def _next(self) -> None:
        """Hand the writer what there is to do, if anything; it must be idle."""
        if self._worker is None:
            return
        if self._reopenings and self.failed is None:
            waiting, self._reopenings = self._reopenings, []
            self._hand_over(self._writer.reopen, lambda result: self._reopened(result, waiting))
        elif self._waiting:
            in_place = self._in_place
            taken = self._commit_length()
            entries, self._waiting = self._waiting[:taken], self._waiting[taken:]
            self._waiting_bytes = sum(map(_size, self._waiting))
            self._waiting_batches = sum(map(_batches, self._waiting))
            self._writing = entries
            self._writing_answers = self._answers[:taken]
            self._answers = self._answers[taken:]
            if in_place:
                self._in_place_since = self._reactor.seconds()
                self._committed(result_of(lambda: self._writer.commit(entries)))
            else:
                self._hand_over(lambda: self._writer.commit(entries), self._committed)
        elif self._stopped is not None:
            self._hand_over(self._writer.close, self._closed)

    @property
    def _in_place(self) -> bool:
        """Whether the next commit is so small, and the disk so quick, that it needs no thread."""
        writer = self._writer
        if self._ticking or not writer.quickness.lately:
            return False
        limit = self._limits.in_place_bytes
        if not limit or self._waiting_bytes > limit or self._waiting_batches > _IN_PLACE_BATCHES:
            return False
        return not writer.takes_long

    def _commit_length(self) -> int:
        """How many of the waiting entries the next commit takes."""
        count = len(self._waiting)
        cost = self._waiting_bytes + _BATCH_COST * self._waiting_batches
        if cost < self._limits.max_commit_bytes:
            return count
        # All of them reach the limit, so some of them do.
        taken = size = 0
        while size < self._limits.max_commit_bytes:
            entry = self._waiting[taken]
            size += _size(entry) + _BATCH_COST * _batches(entry)
            taken += 1
        return taken

    def _hand_over(self, work: Work, done: Done) -> None:
        assert self._worker is not None
        self._busy_since = self._reactor.seconds()
        self._worker.do(work, done)

    def _committed(self, result: list[Outcome] | Failure) -> None:
        self._busy_since = self._in_place_since = None
        if isinstance(result, Failure):
            self._fail(result)
            return
        answers, self._writing_answers = self._writing_answers, []
        self._writing = []
        if self._writer.behind:
            # Between two commits, and not before the verdicts of the one that is durable.
            assert self._worker is not None
            self._ticking = True
            self._worker.do(self._writer.tick, self._ticked)
        outcomes = zip(answers, result, strict=True)
        if self._waiting and self._in_place:
            self._answer(outcomes)
            self._schedule()  # not from here: a thousand in a row would be calls in calls
        else:
            # The disk works while the answers are given.
            self._next()
            self._answer(outcomes)

    def _answer(self, outcomes: Iterable[tuple[Callable[[Any], None], Any]]) -> None:
        for answer, outcome in outcomes:
            try:
                answer(outcome)
            except Exception:
                self._log.failure("a verdict was not taken by what had asked for it")

    def _fail(self, failure: Failure) -> None:
        """Fail-stop: refuse everything, and say so."""
        entries = self._writing + self._waiting
        answers = self._writing_answers + self._answers
        self._writing, self._waiting = [], []
        self._writing_answers, self._answers = [], []
        self._waiting_bytes = self._waiting_batches = 0
        self._takes = False
        if self.failed is None:
            error = failure.value
            if not isinstance(error, StoreFailed):
                self._log.failure("the log's writer failed", failure)
                error = StoreFailed(f"the log's writer failed: {error!r}")
            self.failed = error
            self._log.critical("{reason}; the log takes nothing more", reason=str(error))
        refusal = self._refusal()
        self._answer(
            (answer, _refused(entry, refusal))
            for entry, answer in zip(entries, answers, strict=True)
        )
        if self._on_failure is not None:
            on_failure, self._on_failure = self._on_failure, None
            on_failure(self.failed)
        if self._busy_since is None:
            self._next()

    def _done(self, result: Any) -> None:
        """The writer did something that nobody waits for."""
        self._busy_since = None
        if isinstance(result, Failure):
            self._fail(result)
        else:
            self._next()

    def _reopened(self, result: Any, waiting: list[Deferred[None]]) -> None:
        self._done(result)
        if not isinstance(result, Failure):
            for done in waiting:
                done.callback(None)

    def _tick(self) -> None:
        if self._busy_since is None and not self._scheduled and self._worker is not None:
            self._hand_over(self._writer.tick, self._idle_ticked)

    def _ticked(self, result: bool | Failure) -> None:
        """The writer did what was due between two commits."""
        self._ticking = False
        if isinstance(result, Failure):
            self._fail(result)

    def _idle_ticked(self, result: bool | Failure) -> None:
        """The writer did what was due while there was nothing to commit."""
        self._done(result)
        if result is True and self._busy_since is None:
            self._tick()

    def reopen(self) -> Deferred[None]:
        """
        Go on in the file that the log's name leads to, between two commits.

        For SIGHUP after the log was moved away.  A log that was moved is noticed without this
        too, before the next commit.

        @return: fires when that is done; never, if the disk fails.
        """
        done: Deferred[None] = Deferred()
        self._reopenings.append(done)
        if self._busy_since is None:
            self._next()
        return done

    # --- what others may know --------------------------------------------------------------

    @property
    def writer(self) -> LogWriter:
        """The log's writer, to read single numbers of: it may be at work in another thread."""
        return self._writer

    @property
    def busy_seconds(self) -> float:
        """How long the disk has been working at what it was last given; 0 if it is done."""
        since = self._busy_since
        return max(self._reactor.seconds() - since, 0.0) if since is not None else 0.0

    @property
    def in_place_seconds(self) -> float:
        """
        How long the reactor has been waiting for a commit itself; 0 if it is not.  (For another
        thread: the reactor's finds 0.)
        """
        since = self._in_place_since
        return max(self._reactor.seconds() - since, 0.0) if since is not None else 0.0

    def figures(self) -> StoreFigures:
        """See L{IStoreService<msglog.interfaces.IStoreService>}."""
        writer = self._writer
        ledger, space = writer.ledger, writer.space
        return StoreFigures(
            **commit_figures(writer.counts),  # type: ignore[arg-type]
            log_size=writer.size,
            durable_time=writer.durable_time / 1e6,
            busy_seconds=self.busy_seconds,
            failed=self.failed is not None,
            disk_free=space.free,
            disk_size=space.size,
            disk_low=space.low,
            times_low=space.times_low,
            ledger_clients=len(ledger),
            ledger_bytes=ledger.memory,
            ledger_dirty=len(ledger.dirty),
            recovered=self.recovered,
            recovery_seconds=self.recovery_seconds,
            store_warnings=tuple(self._warnings()),
        )

    def _warnings(self) -> Iterator[str]:
        if self._doubt is not None:
            yield f"the log is {self._doubt}"
        if (damage := self._writer.ledger_damage) is not None:
            yield f"the ledger {damage}"

    @property
    def title(self) -> str:
        """See L{IStoreService<msglog.interfaces.IStoreService>}."""
        return str(self._writer.path)

    def log_end(self) -> int:
        """See L{IStoreService<msglog.interfaces.IStoreService>}."""
        return self._writer.size

    def last_lines(self, end: int) -> list[bytes]:
        """See L{IStoreService<msglog.interfaces.IStoreService>}."""
        return last_lines(self._writer.path, end)

    # --- service ---------------------------------------------------------------------------

    def startService(self) -> None:
        """
        Recover the log.

        @raise StartError: it cannot be used; the error says why and what to do.
        """
        began = self._reactor.seconds()
        recovered = self._writer.open()
        self.recovered = recovered
        self.recovery_seconds = self._reactor.seconds() - began
        self.failed = None
        super().startService()
        self._worker = self._make_worker(self._reactor)
        self._takes = True
        self._ticks.start(min(_TICK_SECONDS, self._sync / 4 or _TICK_SECONDS), now=False)
        self._say(recovered)
        self._doubt = self._writer.doubt()
        if self._doubt is not None:
            self._log.warn(
                "the log is {doubt} ('msglog probe' tries a disk)",
                doubt=self._doubt,
            )

    def _say(self, recovered: Recovered) -> None:
        self._log.info(
            "writing {log}: {size} bytes, of which {records} records ({read} bytes) were read to "
            "bring the ledger up to date",
            log=str(self._writer.path),
            size=recovered.size,
            read=recovered.read,
            records=recovered.records,
        )

    def stopService(self) -> Deferred[None]:
        """
        Commit and answer what was appended, sync, and let the log go.

        @return: fires when that is done, even if the disk failed on the way.
        """
        super().stopService()
        self._takes = False
        if self._ticks.running:
            self._ticks.stop()
        if self._worker is None:
            return succeed(None)
        if self._stopped is None:
            self._stopped = Deferred()
            self._schedule()  # not from here: this may be the first of many verdicts
        done: Deferred[None] = Deferred()
        self._stopped.chainDeferred(done)
        return done

    def _closed(self, result: Failure | None) -> None:
        self._busy_since = None
        assert self._worker is not None
        assert self._stopped is not None
        self._worker.stop()
        self._worker = None
        if isinstance(result, Failure):
            self._fail(result)
        stopped, self._stopped = self._stopped, None
        stopped.callback(None)


def _size(entry: Entry) -> int:
    """How many bytes an entry's lines have."""
    return entry.size if isinstance(entry, Bundle) else len(entry.lines)


def _batches(entry: Entry) -> int:
    """How many batches an entry counts as."""
    return len(entry) if isinstance(entry, Bundle) else 1


def _refused(entry: Entry, refusal: tuple[NackCode, int, str]) -> Any:
    """What whoever handed an entry over is told if nothing came of it."""
    if isinstance(entry, Asking):
        return None
    if isinstance(entry, Bundle):
        return entry.refused(*refusal)
    return Verdict.refused(entry.batch, *refusal)
