"""
The one owner of the log file: recovery, commits, rotation, and the checkpoint.

Everything here is synchronous and knows no Twisted: L{FileStore} runs it in a thread of its own,
one call at a time.

States:

=========  =====================================================================================
OPEN       commits are taken.  A commit that finds no room on the disk is cut off again and
           refused; the log is as it was before, and the next commit may find room.
FAILED     the disk said something after which nothing is certain (EIO, any error of fdatasync,
           a file changed by somebody else).  No way leads out of here but a restart, which
           recovers from what is really on the disk.
CLOSED     before C{open} and after C{close}.
=========  =====================================================================================
"""

from __future__ import annotations

import enum
import errno
import sqlite3
import time
from collections.abc import Callable, Generator, Sequence
from pathlib import Path

from attrs import define, frozen
from twisted.logger import Logger

from ._batch import Batch, Verdict
from ._checkpoint import Checkpoint, Coverage
from ._disk import Disk
from ._errors import (
    LedgerDamaged,
    LogDamaged,
    LogLocked,
    RecordError,
    StartError,
    StoreFailed,
)
from ._ledger import ClientState, Ledger, ReplayError
from ._limits import Limits
from ._records import MAX_LINE_BYTES, format_time, opening
from ._recovery import Damage, Lines, judge_damage, read_record

__all__ = ["Appending", "Asking", "LogWriter", "Recovered"]

# After these the kernel has taken nothing that it did not say, and there may be room later.
_NO_ROOM = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})

# How often a long recovery says how far it is, in bytes read.
_PROGRESS_BYTES = 256 * 1024 * 1024


@define(slots=True, eq=False)
class Appending:
    """
    A batch to be written, with its lines formatted but for their time.

    @ivar size: the bytes of its bodies.
    """

    batch: Batch
    fragments: list[bytes]
    size: int = 0


@define(slots=True, eq=False)
class Asking:
    """A question for a client's last durable sequence."""

    client: bytes


@frozen(slots=True)
class Recovered:
    """
    What a start found.

    @ivar size: the log's length, bytes.
    @ivar read: how many bytes of it (and of rotated files) had to be read.
    @ivar records: how many records those held.
    @ivar kept: where a torn end was put; L{None} if the end was clean.
    @ivar rebuilt: whether there was no ledger to begin from.
    """

    size: int
    read: int
    records: int
    kept: Path | None
    rebuilt: bool


class _State(enum.Enum):
    CLOSED = enum.auto()
    OPEN = enum.auto()
    FAILED = enum.auto()


class _NoRoom(Exception):
    """The disk is full; the log is as it was."""


class LogWriter:
    """
    @param path: the log.
    @param limits: of which the ledger's, the checkpoint's and the window are used here.
    @param sync: 0 to wait for the disk in every commit; otherwise the seconds within which
        a commit that was already acknowledged reaches it.
    @param clock: seconds since 1970.
    @param monotonic: seconds, for intervals.
    """

    _log = Logger()

    def __init__(
        self,
        path: Path,
        limits: Limits,
        sync: float = 0.0,
        *,
        disk: Disk | None = None,
        clock: Callable[[], float] = time.time,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self.path = path
        self.ledger_path = path.with_name(path.name + ".ledger")
        self._limits = limits
        self._lazy = sync
        self._disk = disk or Disk()
        self._clock = clock
        self._monotonic = monotonic
        self._state = _State.CLOSED
        self._fd = -1
        self._size = 0  # of the log; all of it written by commits that succeeded
        self._first = b""  # the log's first line
        self._last_time = 0
        self._unsynced = False
        self._unsynced_since = 0.0
        self._checkpoint: Checkpoint | None = None
        self._steps: Generator[None, None, None] | None = None
        self._covered = 0  # the offset of the last checkpoint
        self._checkpointed_at = 0.0
        self._retry_at = 0.0  # after a checkpoint that failed
        self.ledger = self._new_ledger()

    def _new_ledger(self) -> Ledger:
        return Ledger(self._load, self._limits.window, self._limits.ledger_memory)

    # --- start -----------------------------------------------------------------------------

    def open(self) -> Recovered:
        """
        Lock the log, recover it and its ledger, and wait until all of it is on the disk.

        @raise StartError: it cannot be used; the error says why and what to do.
        """
        try:
            return self._open()
        except OSError as e:
            self._abandon()
            raise StartError(f"cannot use {e.filename or self.path}: {e.strerror}") from e
        except sqlite3.Error as e:
            self._abandon()
            if "locked" in str(e):
                raise LogLocked(f"{self.ledger_path} is in use by another server") from e
            if isinstance(e, sqlite3.OperationalError):  # the surroundings, not its content
                raise StartError(
                    f"cannot use {self.ledger_path}: {e}; see that there is room on the disk and "
                    f"that the folder may be written to, and start again"
                ) from e
            raise LedgerDamaged(
                f"cannot use {self.ledger_path}: {e}; if it is damaged, move it away and start "
                f"again: it is made anew from the log"
            ) from e
        except BaseException:
            self._abandon()
            raise

    def _abandon(self) -> None:
        if self._steps is not None:
            self._steps.close()
            self._steps = None
        if self._checkpoint is not None:
            self._checkpoint.close()
            self._checkpoint = None
        if self._fd >= 0:
            self._disk.close(self._fd)
            self._fd = -1

    def _open(self) -> Recovered:
        self._fd = self._open_locked()
        # Not what an earlier life of this object had staged when its disk failed.
        self.ledger = self._new_ledger()
        self._last_time = 0
        self._checkpoint = Checkpoint(self.ledger_path, self._limits.window)
        coverage = self._checkpoint.coverage()
        self._size = self._disk.size(self._fd)
        self._first = self._first_line(self._fd)
        progress = _Progress(self._log)
        offset, lazy = 0, False
        if coverage is None:
            if self._size:
                self._log.info(
                    "no ledger beside {log}: making it from the log, {size} bytes",
                    log=str(self.path),
                    size=self._size,
                )
            for path in self._rotated():
                self._replay_rotated(path, 0, progress, joining=True, lazy=False)
        else:
            self._last_time, lazy = coverage.time, coverage.lazy
            if coverage.first == b"" or coverage.first == self._first:
                offset = coverage.offset
                self._check_coverage(coverage)
            elif not coverage.complete:
                if self._size and not self._first:
                    raise LogDamaged(
                        f"{self.path} is damaged at byte 0: its first line is no record, and its "
                        f"ledger knows another. Nothing was changed. Restore the log from a copy, "
                        f"or move it and its ledger away"
                    )
                self._finish_rotated(coverage, progress)
        self._size, kept = self._replay(
            self._fd, self.path, offset, progress, joining=coverage is None, lazy=lazy
        )
        if not self._size:
            self._first = b""
        # What a killed server wrote may be readable without being on the disk, and a resend of
        # it must not be acknowledged on the page cache's word.
        self._disk.sync(self._fd)
        self._disk.sync_folder(self.path.parent)
        self._unsynced = False
        self._checkpointed_at = self._monotonic()
        self._save(durable=True, complete=False)
        self._state = _State.OPEN
        return Recovered(self._size, progress.read, progress.records, kept, coverage is None)

    def _open_locked(self) -> int:
        """Open the log by its name and lock it."""
        while True:
            fd = self._disk.open(self.path)
            if not self._disk.lock(fd):
                self._disk.close(fd)
                raise LogLocked(f"{self.path} is in use by another server")
            # Between opening and locking, another server may have moved it away.
            if self._disk.names(self.path, fd):
                return fd
            self._disk.close(fd)

    def _first_line(self, fd: int) -> bytes:
        """The first line of a file, if it is a record."""
        for _, line in Lines(lambda count, at: self._disk.read(fd, min(count, 65536), at), 0):
            try:
                read_record(line)
            except RecordError:
                break
            return line
        return b""

    def _check_coverage(self, coverage: Coverage) -> None:
        """See that the log still holds what its ledger says it does."""
        if coverage.offset > self._size:
            raise LedgerDamaged(
                f"{self.path} has {self._size} bytes, but its ledger has seen {coverage.offset}: "
                f"acknowledged messages are missing. Put the whole log back; or, if it is lost, "
                f"move {self.ledger_path} away to go on from what the log still has"
            )
        if not coverage.offset:
            return
        back = min(coverage.offset, MAX_LINE_BYTES)
        step = 65536
        while True:
            step = min(step, back)
            tail = self._disk.read(self._fd, step, coverage.offset - step)
            begin = tail.rfind(b"\n", 0, -1) + 1
            if begin or step == back:
                break
            step *= 4
        try:
            good = read_record(tail[begin:]).time == coverage.time
        except RecordError:
            good = False
        if not good:
            raise LedgerDamaged(
                f"{self.path} is not the log that its ledger belongs to: at byte "
                f"{coverage.offset} no commit ends that the ledger knows. Put the right log back, "
                f"or move {self.ledger_path} away to have it made anew from this log"
            )

    def _rotated(self) -> list[Path]:
        """Files beside the log that were rotated away from it, oldest first."""
        found = []
        for path in self.path.parent.glob(f"{_escape_glob(self.path.name)}?*"):
            if path.name.startswith((f"{self.path.name}.ledger", f"{self.path.name}.torn-")):
                continue
            with path.open("rb") as file:
                line = file.readline(MAX_LINE_BYTES)
            try:
                record = read_record(line)
            except RecordError:
                if path.suffix in {".gz", ".xz", ".bz2", ".zst"}:
                    self._log.warn("{path} is compressed and was not read", path=str(path))
                continue
            found.append((record.time, path))
        return [path for _, path in sorted(found)]

    def _finish_rotated(self, coverage: Coverage, progress: _Progress) -> None:
        """Read the rest of the log that was rotated away before the ledger had all of it."""
        for path in self._rotated():
            with path.open("rb") as file:
                if file.readline(MAX_LINE_BYTES) != coverage.first:
                    continue
            self._replay_rotated(path, coverage.offset, progress, joining=False, lazy=coverage.lazy)
            return
        raise LedgerDamaged(
            f"the server was killed before its ledger had all of the log, and that log is neither "
            f"{self.path} nor beside it under a name that begins with {self.path.name}. Put it "
            f"there (not compressed) and start again; or, if it is lost, move {self.ledger_path} "
            f"away to go on without it"
        )

    def _replay_rotated(
        self, path: Path, offset: int, progress: _Progress, *, joining: bool, lazy: bool
    ) -> None:
        fd = self._disk.open(path)
        try:
            self._replay(fd, path, offset, progress, joining=joining, lazy=lazy)
        finally:
            self._disk.close(fd)

    def _replay(
        self,
        fd: int,
        path: Path,
        offset: int,
        progress: _Progress,
        *,
        joining: bool,
        lazy: bool,
    ) -> tuple[int, Path | None]:
        """
        Bring the ledger up to date from a file's offset on; keep aside and cut off a torn end.

        @param lazy: whether more than one commit may have been in flight.
        @return: the file's length then, and where its torn end was put, if it had one.
        """

        def read(count: int, at: int) -> bytes:
            return self._disk.read(fd, count, at)

        good = offset
        for at, line in Lines(read, offset):
            try:
                self._replay_line(path, at, line, progress, joining)
            except RecordError as e:
                damage = Damage(at, line, e.reason)
                break
            good = at + len(line)
        else:
            return good, None
        why_not = judge_damage(damage, self._last_time, Lines(read, at + len(line)))
        if why_not is not None and not lazy:
            raise LogDamaged(
                f"{path} is damaged at byte {good} ({damage.reason}), and {why_not}: this is not "
                f"the torn end of a crash but damage to acknowledged messages. Nothing was "
                f"changed. Restore the log from a copy, or move it and its ledger away"
            )
        torn = self._disk.size(fd) - good
        kept = self._keep_torn(fd, path, good)
        self._disk.cut(fd, good)
        self._disk.sync(fd)
        self._log.warn(
            "cut off {torn} bytes that a crash tore at the end of {log}, at byte {offset} "
            "({reason}); {promise}, and are kept in {kept}",
            torn=torn,
            log=str(path),
            offset=good,
            reason=damage.reason,
            promise=(
                "with --sync SECONDS some of them may have been acknowledged"
                if lazy
                else "they were never acknowledged"
            ),
            kept=str(kept),
        )
        return good, kept

    def _keep_torn(self, fd: int, path: Path, offset: int) -> Path:
        stamp = format_time(int(self._clock() * 1e6)).decode().replace(":", "")
        kept = path.with_name(f"{path.name}.torn-{stamp}")
        while chunk := self._disk.read(fd, 1 << 22, offset):
            self._disk.keep(kept, chunk)
            offset += len(chunk)
        self._disk.sync_folder(self.path.parent)
        return kept

    def _replay_line(
        self, path: Path, offset: int, line: bytes, progress: _Progress, joining: bool
    ) -> None:
        record = read_record(line)
        if record.time < self._last_time:
            raise LogDamaged(
                f"{path} is damaged at byte {offset}: its time is before that of the record "
                f"before it. Nothing was changed"
            )
        try:
            self.ledger.replay(record, joining=joining)
        except ReplayError as e:
            raise LogDamaged(
                f"{path} is damaged at byte {offset}: {e}. Nothing was changed. Restore the log "
                f"from a copy, or move it and its ledger away"
            ) from None
        self._last_time = record.time
        progress.count(len(line), path)
        if self.ledger.overfull and len(self.ledger.dirty) > len(self.ledger) // 2:
            # Only rows, no coverage: a start that is cut short begins again from the same place.
            self._drain(self._steps_of(None, durable=False))

    # --- commits ---------------------------------------------------------------------------

    def commit(self, entries: Sequence[Appending | Asking]) -> list[Verdict | int]:
        """
        Write a commit.

        @return: for each entry, in order, its verdict, or the last durable sequence of the client
            asked for.  Verdicts are true when this returns: what they call stored is durable.
        @raise StoreFailed: fail-stop; nothing of this commit may be acknowledged.
        """
        if self._state is not _State.OPEN:
            raise StoreFailed("the log is closed")
        try:
            results = self._commit(entries)
            for index, entry in enumerate(entries):
                if isinstance(entry, Asking):
                    results[index] = self.ledger.last(entry.client)
        except sqlite3.Error as e:
            raise self._fail(f"the ledger {self.ledger_path} cannot be read: {e}") from e
        self._advance_checkpoint()
        return results

    def _commit(self, entries: Sequence[Appending | Asking]) -> list[Verdict | int]:
        ledger = self.ledger
        moment = max(int(self._clock() * 1e6), self._last_time + 1)
        stamp = format_time(moment)
        parts: list[bytes] = []
        results: list[Verdict | int] = []
        for entry in entries:
            if isinstance(entry, Asking):
                results.append(0)  # asked when the commit is through
                continue
            batch = entry.batch
            start, verdict = ledger.admit(batch)
            results.append(verdict)
            if start < len(batch.checksums):
                prefix = opening(stamp, batch.client)
                parts.append(prefix)
                parts.append(prefix.join(entry.fragments[start:] if start else entry.fragments))
        if parts:
            try:
                self._write(b"".join(parts))
            except _NoRoom as e:
                ledger.roll_back()
                return [
                    ledger.refuse(entry.batch, str(e)) if isinstance(entry, Appending) else 0
                    for entry in entries
                ]
            self._last_time = moment
            ledger.settle()
        return results

    def _write(self, data: bytes) -> None:
        disk, fd = self._disk, self._fd
        try:
            if not disk.names(self.path, fd):
                self._reopen()
                fd = self._fd
            if disk.size(fd) != self._size:
                raise self._fail(
                    f"{self.path} has {disk.size(fd)} bytes where {self._size} were written: "
                    f"another program changed it"
                )
            written = disk.write(fd, data)
            while written < len(data):
                written += disk.write(fd, memoryview(data)[written:])
        except OSError as e:
            if e.errno not in _NO_ROOM:
                raise self._fail(f"cannot write {self.path}: {e.strerror}") from e
            self._cut_back()
            raise _NoRoom(f"cannot write the log: {e.strerror}") from e
        if not self._unsynced:
            self._unsynced = True
            self._unsynced_since = self._monotonic()
        if not self._lazy or not self._size or self._sync_is_due():
            self._sync()
        if not self._size:
            self._begin_file(data)
        self._size += len(data)

    def _cut_back(self) -> None:
        """Take back what was written of a commit that failed."""
        try:
            self._disk.cut(self._fd, self._size)
        except OSError as e:
            raise self._fail(f"cannot cut {self.path}: {e.strerror}") from e

    def _begin_file(self, data: bytes) -> None:
        """
        Have the ledger know a file by its first line before anything in it is acknowledged.

        Otherwise a file that is moved away while the server is dead could not be told from none.
        """
        self._first = data[: data.index(b"\n") + 1]
        try:
            self._save(durable=True, complete=False)
        except sqlite3.Error as e:
            self._first = b""
            self._cut_back()
            raise _NoRoom(f"cannot write the ledger: {e}") from e

    def _sync(self) -> None:
        if self._unsynced:
            try:
                self._disk.sync(self._fd)
            except OSError as e:
                raise self._fail(f"cannot sync {self.path}: {e.strerror}") from e
            self._unsynced = False

    def _sync_is_due(self) -> bool:
        """Whether to sync now so that no write waits for longer than C{--sync}."""
        return self._unsynced and self._monotonic() - self._unsynced_since >= self._lazy / 2

    def _fail(self, reason: str) -> StoreFailed:
        self._state = _State.FAILED
        self._steps = None
        return StoreFailed(reason)

    def tick(self) -> None:
        """
        What is due by time, when there are no commits: the sync of C{--sync}, the checkpoint.

        @raise StoreFailed: fail-stop.
        """
        if self._state is not _State.OPEN:
            return
        if self._lazy and self._sync_is_due():
            self._sync()
        self._advance_checkpoint(all_of_it=True)

    # --- rotation --------------------------------------------------------------------------

    def reopen(self) -> None:
        """
        Go on in the file that the log's name leads to now, made if there is none.

        @raise StoreFailed: fail-stop.
        """
        if self._state is not _State.OPEN:
            return
        try:
            if not self._disk.names(self.path, self._fd):
                self._reopen()
        except OSError as e:
            raise self._fail(f"cannot reopen {self.path}: {e.strerror}") from e

    def _reopen(self) -> None:
        self._sync()
        # What the ledger does not have of the old file would have to be looked for there.
        try:
            self._save(durable=True, complete=True)
        except sqlite3.Error as e:
            raise _NoRoom(f"cannot bring the ledger up to date for a new log file: {e}") from e
        try:
            fd = self._open_locked()
        except LogLocked as e:
            raise self._fail(str(e)) from e
        if self._disk.size(fd):
            self._disk.close(fd)
            raise self._fail(f"{self.path} was replaced by a file that is not empty")
        self._disk.sync_folder(self.path.parent)
        self._disk.close(self._fd)
        self._log.info(
            "the log was moved away after {size} bytes; going on in a new {log}",
            size=self._size,
            log=str(self.path),
        )
        self._fd = fd
        self._size = self._covered = 0
        self._first = b""

    # --- checkpoint ------------------------------------------------------------------------

    def _load(self, client: bytes) -> ClientState | None:
        assert self._checkpoint is not None
        return self._checkpoint.load(client)

    def _advance_checkpoint(self, *, all_of_it: bool = False) -> None:
        """Begin a checkpoint that is due; do one step of one that was begun, or all of it."""
        ledger, now = self.ledger, self._monotonic()
        if self._steps is None:
            waited = now - self._checkpointed_at
            if not ledger.dirty or now < self._retry_at:
                return
            if not (
                ledger.overfull
                or self._size - self._covered >= self._limits.checkpoint_bytes
                or waited >= self._limits.checkpoint_seconds
            ):
                return
            self._checkpointed_at = now
            if self._lazy:
                self._sync()
            self._steps = self._steps_of(self._coverage(complete=False), durable=False)
        try:
            if all_of_it or ledger.overfull:
                self._drain(self._steps)
                self._steps = None
            elif next(self._steps, self) is self:
                self._steps = None
        except sqlite3.Error as e:
            self._steps = None
            self._retry_at = now + self._limits.checkpoint_seconds
            self._log.error(
                "the ledger {ledger} could not be brought up to date: {error}; it is tried again "
                "in {seconds} s, and until then a start reads more of the log",
                ledger=str(self.ledger_path),
                error=str(e),
                seconds=self._limits.checkpoint_seconds,
            )

    def _coverage(self, *, complete: bool) -> Coverage:
        return Coverage(self._first, self._size, self._last_time, complete, bool(self._lazy))

    def _steps_of(self, coverage: Coverage | None, *, durable: bool) -> Generator[None, None, None]:
        assert self._checkpoint is not None
        written: dict[bytes, tuple[ClientState, int]] = {}
        dirty = dict(self.ledger.dirty)
        yield from self._checkpoint.write(dirty, coverage, written, durable=durable)
        if coverage is not None:
            self._covered = coverage.offset
        self.ledger.saved(written)

    def _drain(self, steps: Generator[None, None, None]) -> None:
        for _ in steps:
            pass

    def _save(self, *, durable: bool, complete: bool) -> None:
        """A whole checkpoint now."""
        if self._steps is not None:
            self._drain(self._steps)
            self._steps = None
        self._drain(self._steps_of(self._coverage(complete=complete), durable=durable))

    # --- end -------------------------------------------------------------------------------

    def close(self) -> None:
        """
        Sync, bring the ledger up to date, and let the log go.

        @raise StoreFailed: the last sync failed.
        """
        if self._state is _State.CLOSED:
            return
        state, self._state = self._state, _State.CLOSED
        try:
            if state is _State.OPEN:
                self._sync()
                self._state = _State.CLOSED
                try:
                    self._save(durable=True, complete=True)
                except sqlite3.Error as e:
                    self._log.error(
                        "the ledger {ledger} could not be brought up to date: {error}; the next "
                        "start reads more of the log",
                        ledger=str(self.ledger_path),
                        error=str(e),
                    )
        finally:
            self._abandon()


@define
class _Progress:
    """How far a recovery is."""

    log: Logger
    read: int = 0
    records: int = 0
    _said: int = 0

    def count(self, length: int, path: Path) -> None:
        self.read += length
        self.records += 1
        if self.read - self._said >= _PROGRESS_BYTES:
            self._said = self.read
            self.log.info(
                "recovering: {records} records, {read} bytes read, now in {path}",
                records=self.records,
                read=self.read,
                path=str(path),
            )


def _escape_glob(name: str) -> str:
    return "".join(f"[{c}]" if c in "*?[" else c for c in name)
