"""
The one owner of the log file: commits, rotation, and when the ledger goes to its checkpoint.

Everything here is synchronous and knows no Twisted: L{FileStore} runs it, one call at a time, in a
thread of its own or where the reactor is.

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
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import ClassVar

from attrs import define
from twisted.logger import Logger

from ._batch import STORED, Batch, Verdict
from ._bundle import Bundle, Exceptions
from ._checkpoint import Checkpoint, Coverage, ICheckpoint, identify
from ._checkpointer import Checkpointer
from ._counts import CommitCounts
from ._disk import Disk, IDisk
from ._errors import (
    LedgerDamaged,
    LogLocked,
    StartError,
    StoreFailed,
)
from ._ledger import ClientState, Ledger, RowDamaged
from ._limits import Limits
from ._quickness import Quickness
from ._records import UNTIMED, format_time
from ._recovery import Recovered, Recovery, see_log
from ._rotating import NoLog, delete_old, move_aside
from ._rotation_rule import RotationRule, rotated_name
from ._space import FreeSpace
from ._torn import said_time

__all__ = ["Appending", "Asking", "Entry", "LogWriter", "Outcome"]

# After these the kernel has taken nothing that it did not say, and there may be room later.
_NO_ROOM = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})
# After these a new log file cannot be begun now, but perhaps later.
_NO_FILE = _NO_ROOM | {errno.EMFILE, errno.ENFILE, errno.EACCES, errno.EROFS, errno.ENOMEM}

# What a person can do about a start that the system refuses.
_REMEDIES = {
    errno.EACCES: "it must be the server's user's to read and write",
    errno.EPERM: "it must be the server's user's to read and write",
    errno.ENOENT: "its folder must be there, and be the server's user's",
    errno.EROFS: "its disk must be mounted for writing",
    errno.ENOSPC: "make room on its disk, and start again",
    errno.EDQUOT: "make room within the quota, and start again",
    errno.EMFILE: "let the server have more open files (ulimit -n, LimitNOFILE)",
}

# Room that is set aside at a time, so that the sync of a small commit need not note where its
# blocks are: 10 to 18 % less time for it (ext4, commits of 400 bytes to 40 KB).
_RESERVE_BYTES = 16 * 1024 * 1024

# What must be free on the disk for that: nobody should miss what is only set aside.
_RESERVE_IF_FREE_BYTES = 1024 * 1024 * 1024

# Before a rotation that failed is tried again: what is in its way is mended by a person, and each
# attempt brings the ledger up to date.
_ROTATE_AGAIN_SECONDS = 60.0


@define(slots=True, eq=False)
class Appending:
    """A batch to be written, and its lines, L{UNTIMED<msglog._records.UNTIMED>}."""

    batch: Batch
    lines: bytes


@define(slots=True, eq=False)
class Asking:
    """A question for a client's last durable sequence."""

    client: bytes
    lines: ClassVar[bytes] = b""


# What a commit is made of, and what becomes of each: a bundle's verdicts are its exceptions.
Entry = Appending | Asking | Bundle
Outcome = Verdict | int | Exceptions | None


class _State(enum.Enum):
    CLOSED = enum.auto()
    OPEN = enum.auto()
    FAILED = enum.auto()


_OPEN = _State.OPEN  # asked in every commit: an enum's attribute costs 0.13 µs on CPython 3.11


class _NoRoom(Exception):
    """The disk is full; the log is as it was."""


class LogWriter:
    """
    @param path: the log.
    @param limits: of which the ledger's, the checkpoint's and the window are used here.
    @param sync: 0 to wait for the disk in every commit; otherwise the seconds within which
        a commit that was already acknowledged reaches it.
    @param rotation: when to go on in a new file of its own accord.
    @param disk: where the files are.
    @param checkpoint: opens the ledger's file; takes its path and the window.
    @param clock: seconds since 1970.
    @param monotonic: seconds, for intervals.
    @ivar counts: see L{CommitCounts}; of this and the next, others read single numbers only.
    @ivar quickness: whether the disk is quick.
    @ivar space: the room on the log's disk.
    @ivar durable_time: the time of the last commit that is on the disk, microseconds since 1970;
        0 before any.
    """

    _log = Logger()

    def __init__(
        self,
        path: Path,
        limits: Limits,
        sync: float = 0.0,
        *,
        rotation: RotationRule | None = None,
        disk: IDisk | None = None,
        checkpoint: Callable[[Path, int], ICheckpoint] = Checkpoint,
        clock: Callable[[], float] = time.time,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self.path = path
        self.ledger_path = path.with_name(path.name + ".ledger")
        self._limits = limits
        self._lazy = sync
        self._rotation = rule = rotation or RotationRule()
        self._may_take_long = bool(sync or rule.max_bytes or rule.period)
        self._disk: IDisk = disk or Disk()
        self._open_checkpoint = checkpoint
        self._clock = clock
        self._monotonic = monotonic
        self._state = _State.CLOSED
        self._fd = -1
        self._size = 0  # of the log; all of it written by commits that succeeded
        self._reserved = 0  # up to where room is set aside
        self._file = b""  # which file the log is
        self._began = 0  # the time of its first record
        self._last_time = 0
        self._unsynced = False
        self._unsynced_since = 0.0
        self._refusing = False  # the last commit found no room
        self._checkpointer: Checkpointer | None = None
        self._rotate_at = 0.0  # after a rotation that failed
        self._rotation_failed = False
        self.counts = CommitCounts()
        self.quickness = Quickness()
        self._read_seconds = 0.0  # of this commit, for what it read of the ledger's file
        self.space = FreeSpace(path, limits.min_free_bytes, self._disk)
        self.durable_time = 0
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
            what = f"cannot use {e.filename or self.path}: {e.strerror}"
            remedy = _REMEDIES.get(e.errno or 0)
            raise StartError(f"{what}; {remedy}" if remedy else what) from e
        except sqlite3.Error as e:
            self._abandon()
            if "locked" in str(e):
                raise LogLocked(f"{self.ledger_path} is in use by another server") from e
            if isinstance(e, sqlite3.OperationalError):  # the surroundings, not its content
                raise StartError(
                    f"cannot use {self.ledger_path}: {e}; see that there is room on the disk and "
                    f"that the folder may be written to, and start again"
                ) from e
            raise self._damaged(e) from e
        except UnicodeDecodeError as e:  # what SQLite says of a damaged file quotes it
            self._abandon()
            raise self._damaged("database disk image is malformed") from e
        except RowDamaged as e:
            self._abandon()
            raise self._damaged(e) from e
        except StoreFailed as e:
            self._abandon()
            raise StartError(f"{e}; see what the system says of that disk, and start again") from e
        except BaseException:
            self._abandon()
            raise

    def _damaged(self, reason: object) -> LedgerDamaged:
        return LedgerDamaged(
            f"cannot use {self.ledger_path}: {reason}; if it is damaged, move it away and start "
            f"again: it is made anew from the log and the files rotated from it. If some of those "
            f"are gone or compressed, put them back beside the log first, or what clients sent "
            f"then may be logged again"
        )

    def _abandon(self) -> None:
        if self._checkpointer is not None:
            self._checkpointer.abandon()
            self._checkpointer = None
        if self._fd >= 0:
            self._disk.close(self._fd)
            self._fd = -1

    def _open(self) -> Recovered:
        # A log that was moved away has its new name for good before another gets its old one.
        self._disk.sync_folder(self.path.parent)
        self._fd = self._open_locked()
        see_log(self.path, self._disk, self._fd)  # before it has a ledger beside it
        # Not what an earlier life of this object had staged when its disk failed.
        self.ledger = self._new_ledger()
        checkpoint = self._open_checkpoint(self.ledger_path, self._limits.window)
        self._checkpointer = Checkpointer(
            checkpoint, self.ledger, self._limits, self._coverage, self._sync, self._monotonic
        )
        recovery = Recovery(
            self.path,
            self.ledger_path,
            self._disk,
            self.ledger,
            self._clock,
            self._checkpointer.spill,
        )
        recovered = recovery.run(self._fd, checkpoint.coverage())
        self._size = recovered.size
        self._reserved = 0
        self._release()  # what a life that was killed had set aside
        self._file, self._last_time = recovery.file, recovery.last_time
        self._began = recovery.began
        self._disk.sync_folder(self.path.parent)
        self._unsynced = False
        self._note_durable()
        self.space.look(self._monotonic())
        self._save(durable=True, complete=False)
        self._state = _State.OPEN
        return recovered

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

    @property
    def size(self) -> int:
        """The length of the log in bytes, as far as commits have succeeded."""
        return self._size

    @property
    def ledger_damage(self) -> str | None:
        """
        What was last found to be wrong with the ledger's file, after "the ledger"; L{None} if
        nothing was.  (May be read from another thread.)
        """
        checkpointer = self._checkpointer
        return None if checkpointer is None else checkpointer.damage

    def doubt(self) -> str | None:
        """What there is against keeping a log on this disk, after "it is"; L{None} if nothing."""
        return self._disk.doubt(self.path.parent)

    # --- commits ---------------------------------------------------------------------------

    def commit(self, entries: Sequence[Entry]) -> list[Outcome]:
        """
        Write a commit.

        @return: for each entry, in order, its verdict, a bundle's exceptions, or the last durable
            sequence of the client asked for, L{None} if nobody knows that any more.  Verdicts are
            true when this returns: what they call stored is durable.
        @raise StoreFailed: fail-stop; nothing of this commit may be acknowledged.
        """
        if self._state is not _OPEN:
            raise StoreFailed("the log is closed")
        began = self._monotonic()
        self._read_seconds = 0.0
        try:
            results = self._commit(entries, began)
            for index, entry in enumerate(entries):
                if isinstance(entry, Asking):
                    results[index] = self._last(entry.client)
        except sqlite3.Error as e:
            raise self._fail(f"the ledger {self.ledger_path} cannot be read: {e}") from e
        except BaseException:
            # What was staged is neither settled nor rolled back, so nothing may be saved again.
            self._state = _State.FAILED
            raise
        if self._read_seconds:
            self.quickness.note_reads(self._read_seconds)
        return results

    def _last(self, client: bytes) -> int | None:
        """A client's last durable sequence; L{None} if what is known of it is damaged."""
        try:
            return self.ledger.last(client)
        except RowDamaged:
            return None

    def _commit(self, entries: Sequence[Entry], began: float) -> list[Outcome]:
        ledger = self.ledger
        self.space.look(began)
        try:
            # Before anything is staged: a checkpoint must not see what is not written.
            self._follow_name()
            self._rotate_if_due()
        except _NoRoom as e:
            return self._refuse(entries, str(e))
        moment = self._moment()
        stamp = format_time(moment)
        parts: list[bytes] = []
        results: list[Outcome] = []
        messages = 0
        for entry in entries:
            if isinstance(entry, Appending):
                batch = entry.batch
                start, verdict = ledger.admit(batch)
                results.append(verdict)
                if start < len(batch.checksums):
                    messages += len(batch.checksums) - start
                    lines = entry.lines
                    if start:
                        lines = b"".join(lines.splitlines(keepends=True)[start:])
                    parts.append(lines)
            elif isinstance(entry, Bundle):
                others = ledger.admit_bundle(entry)
                messages += len(entry.checksums)
                if not others:
                    results.append(())
                    parts += entry.lines
                    continue
                results.append([(i, verdict) for i, _, verdict in others if verdict is not STORED])
                known = [(i, start) for i, start, _ in others if start]
                messages -= sum(start for _, start in known)
                parts.append(entry.without(known))
            else:
                results.append(0)  # asked when the commit is through
        if messages:
            data = b"".join(parts).replace(UNTIMED, stamp)
            try:
                self._write(data)
            except _NoRoom as e:
                ledger.roll_back()
                return self._refuse(entries, str(e))
            self._last_time = moment
            self._note_durable()
            ledger.settle()
            if self._refusing:
                self._refusing = False
                self._log.info("messages are taken again")
            self.counts.committed(messages, len(data), self._monotonic() - began)
        return results

    def _moment(self) -> int:
        """The time of a commit that is begun now."""
        return max(int(self._clock() * 1e6), self._last_time + 1)

    def _refuse(self, entries: Sequence[Entry], reason: str) -> list[Outcome]:
        """The outcome of a commit for which there is no room."""
        self.counts.refused(self._clock())
        if not self._refusing:
            self._refusing = True
            self._log.error("messages are refused: {reason}", reason=reason)
        return [self._refuse_one(entry, reason) for entry in entries]

    def _refuse_one(self, entry: Entry, reason: str) -> Outcome:
        if isinstance(entry, Appending):
            return self.ledger.refuse(entry.batch, reason)
        if isinstance(entry, Asking):
            return 0
        verdicts = (self.ledger.refuse(batch, reason) for batch in entry.batches())
        return [(i, verdict) for i, verdict in enumerate(verdicts) if verdict is not STORED]

    def _write(self, data: bytes) -> None:
        disk, fd = self._disk, self._fd
        began = self._monotonic()
        try:
            if disk.size(fd) != self._size:
                raise self._changed(disk.size(fd))
            self._reserve(len(data))
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
        self._note_pace(self._monotonic() - began)
        if not self._size:
            self._begin_file(data)
        self._size += len(data)

    def _note_pace(self, seconds: float) -> None:
        self.quickness.note(seconds)
        if seconds >= self._limits.stalled_seconds:
            # It may have been in place, when nobody else could have said so.
            self._log.warn(
                "the disk did not answer for {seconds:.1f} s, and messages waited as long; see "
                "what the system says of it (dmesg, iostat -x 1)",
                seconds=seconds,
            )

    def _changed(self, found: int) -> StoreFailed:
        """
        Another program cut the log or wrote to it.

        The ledger notes what the log had: the next start must not take a cut for the torn end of
        a crash, and go on without what was acknowledged.
        """
        self.ledger.roll_back()
        with suppress(sqlite3.Error):
            self._save(durable=True, complete=False)
        return self._fail(
            f"{self.path} has {found} bytes where {self._size} were written: another program "
            f"changed it (logrotate with copytruncate does); find it and stop it, and start again: "
            f"the start says what is missing, and changes nothing"
        )

    def _reserve(self, count: int) -> None:
        """Have room set aside for what is written next, if there is plenty."""
        end = self._size + count
        if end <= self._reserved:
            return
        self._reserved = end + _RESERVE_BYTES
        free = self.space.free
        if free is None or free < _RESERVE_IF_FREE_BYTES:
            return
        try:
            self._disk.reserve(self._fd, self._size, self._reserved - self._size)
        except OSError:
            # Whatever is wrong, the write will say.  It needs no room of this kind.
            self._release()

    def _release(self) -> None:
        with suppress(OSError):
            self._disk.release(self._fd)

    def _cut_back(self) -> None:
        """Take back what was written of a commit that failed."""
        try:
            self._disk.cut(self._fd, self._size)
            # Before anything is written there again, or a power cut could leave of this commit
            # what the next one does not reach to, and records of two times behind damage.
            self._disk.sync(self._fd)
        except OSError as e:
            raise self._fail(f"cannot cut {self.path}: {e.strerror}") from e

    def _begin_file(self, data: bytes) -> None:
        """
        Have the ledger know a file by its first line before anything in it is acknowledged.

        Otherwise a file that is moved away while the server is dead could not be told from none.
        """
        self._file = identify(data[: data.index(b"\n") + 1])
        self._began = said_time(data) or 0
        try:
            self._save(durable=True, complete=False)
        except sqlite3.Error as e:
            self._file = b""
            self._cut_back()
            raise _NoRoom(f"cannot write the ledger: {e}") from e

    def _sync(self) -> None:
        if self._unsynced:
            try:
                self._disk.sync(self._fd)
            except OSError as e:
                raise self._fail(f"cannot sync {self.path}: {e.strerror}") from e
            self._unsynced = False

    def _note_durable(self) -> None:
        if not self._unsynced:
            self.durable_time = self._last_time

    def _sync_is_due(self) -> bool:
        """Whether to sync now so that no write waits for longer than C{--sync}."""
        return self._unsynced and self._monotonic() - self._unsynced_since >= self._lazy / 2

    def _fail(self, reason: str) -> StoreFailed:
        self._state = _State.FAILED
        return StoreFailed(reason)

    def tick(self) -> bool:
        """
        What is due by time or by volume: the sync of C{--sync}, a step of the checkpoint, a
        new file.

        @return: whether there is more to do at once.
        @raise StoreFailed: fail-stop.
        """
        if self._state is not _State.OPEN:
            return False
        try:
            return self._tick()
        except sqlite3.Error as e:
            raise self._fail(f"the ledger {self.ledger_path} cannot be read: {e}") from e
        except BaseException:
            self._state = _State.FAILED
            raise

    def _tick(self) -> bool:
        self.space.look(self._monotonic())
        if self._lazy and self._sync_is_due():
            self._sync()
            self._note_durable()
        assert self._checkpointer is not None
        self._checkpointer.advance(self._size)
        try:
            # One that somebody else has moved away is for a commit to leave.
            if self._disk.names(self.path, self._fd):
                self._rotate_if_due()
        except _NoRoom as e:
            self._log.error("{reason}; the next commit tries again", reason=str(e))
        except OSError as e:
            raise self._fail(f"cannot look at {self.path}: {e.strerror}") from e
        return self._checkpointer.begun

    @property
    def behind(self) -> bool:
        """
        Whether a step of the checkpoint is due.  (May be asked from another thread: a commit's
        verdicts need not wait for it.)
        """
        checkpointer = self._checkpointer
        return checkpointer is not None and checkpointer.behind(self._size)

    @property
    def takes_long(self) -> bool:
        """
        Whether the next commit has more to wait for than its own bytes: the sync of all that
        C{--sync} has left, or a new file.  (May be asked from another thread.)
        """
        if not self._may_take_long:  # nearly always: asked before each commit
            return False
        if self._lazy and self._sync_is_due():
            return True
        return self._rotation_is_due(self._moment())

    # --- rotation --------------------------------------------------------------------------

    def reopen(self) -> None:
        """
        Go on in the file that the log's name leads to now, made if there is none.

        If that is not possible now, the next commit tries again.

        @raise StoreFailed: fail-stop.
        """
        if self._state is not _State.OPEN:
            return
        try:
            self._follow_name()
        except _NoRoom as e:
            self._log.error("{reason}; the next commit tries again", reason=str(e))
        except BaseException:
            self._state = _State.FAILED
            raise

    def _follow_name(self) -> None:
        """See that the log's name still leads to the file that is written."""
        try:
            if not self._disk.names(self.path, self._fd):
                self._reopen()
        except OSError as e:
            if e.errno not in _NO_FILE:
                raise self._fail(f"cannot reopen {self.path}: {e.strerror}") from e
            raise _NoRoom(f"cannot begin a new log file: {e.strerror}") from e

    def _open_new(self) -> int:
        """Open and lock what the log's name leads to, made if there is nothing: an empty file."""
        try:
            fd = self._open_locked()
        except LogLocked as e:
            raise self._fail(str(e)) from e
        if self._disk.size(fd):
            self._disk.close(fd)
            raise self._fail(f"{self.path} was replaced by a file that is not empty")
        return fd

    def _reopen(self) -> None:
        self._sync()
        # The old file has its new name for good before another gets its old one.
        self._sync_folder()
        new = self._open_new()
        lost = 0 if self._disk.named(self._fd) else self._size
        self._go_on_in(new)
        if lost:
            self._log.warn(
                "the log was deleted, with {lost} bytes of acknowledged messages; going on in a "
                "new {log}. They are lost, unless somebody has a copy (of one that was moved, "
                "compressed and then deleted, say)",
                lost=lost,
                log=str(self.path),
            )
        else:
            self._log.info("the log was moved away; going on in a new {log}", log=str(self.path))

    def _go_on_in(self, fd: int) -> None:
        """Leave the file for a new one."""
        try:
            self._sync_folder()
            # What the ledger does not have of the old file would have to be looked for there.
            # The last step: after it nothing more may be written to the old file.
            self._save(durable=True, complete=True)
        except sqlite3.Error as e:
            self._disk.close(fd)
            raise _NoRoom(f"cannot bring the ledger up to date for a new log file: {e}") from e
        except BaseException:
            self._disk.close(fd)
            raise
        self._release()
        self._disk.close(self._fd)
        self._fd = fd
        self._size = 0
        self._reserved = 0
        assert self._checkpointer is not None
        self._checkpointer.file_begun()
        self._file = b""

    def _rotate_if_due(self) -> None:
        moment = self._moment()
        if self._rotation_is_due(moment):
            self._rotate(moment)

    def _rotation_is_due(self, moment: int) -> bool:
        due = self._rotation.due(self._began, self._size, moment)
        return due and self._monotonic() >= self._rotate_at

    def _rotate(self, moment: int) -> None:
        """
        Go on in a new file, or in the same if that cannot be done now.

        @raise _NoRoom: the log has its new name, but a new one cannot be begun; the next commit
            tries again, as after a rotation by somebody else.
        """
        rotated, size = rotated_name(self.path, moment), self._size
        try:
            # If this goes well, it most likely will again when there is no way back.
            self._save(durable=False, complete=False)
            fd = move_aside(self._disk, self.path, rotated, self._sync_folder, self._open_new)
        except NoLog as e:
            raise _NoRoom(str(e)) from e
        except (OSError, sqlite3.Error) as e:
            self._postpone_rotation(e)
            return
        self._go_on_in(fd)
        # Names sort by time whatever the clock does: no later one may be before this one.
        self._last_time = moment - 1
        self._rotation_failed = False
        self._log.info(
            "rotated {log}: its {size} bytes are in {rotated} now",
            log=str(self.path),
            size=size,
            rotated=str(rotated),
        )
        if self._rotation.keep:
            self._delete_old(self._rotation.keep)

    def _delete_old(self, keep: int) -> None:
        try:
            for path in delete_old(self._disk, self.path, keep, self._last):
                self._log.info("deleted {path}, as --rotate-keep says", path=str(path))
        except OSError as e:
            self._log.error(
                "cannot delete what is older than the newest {keep} rotated files: {error}; this "
                "is tried again with the next rotation",
                keep=keep,
                error=str(e),
            )

    def _sync_folder(self) -> None:
        try:
            self._disk.sync_folder(self.path.parent)
        except OSError as e:
            raise self._fail(f"cannot sync {self.path.parent}: {e.strerror}") from e

    def _postpone_rotation(self, error: Exception) -> None:
        self._rotate_at = self._monotonic() + _ROTATE_AGAIN_SECONDS
        if not self._rotation_failed:
            self._rotation_failed = True
            self._log.error(
                "{log} could not be rotated: {error}; it goes on in the same file, and this is "
                "tried again every {seconds:g} s",
                log=str(self.path),
                error=str(error),
                seconds=_ROTATE_AGAIN_SECONDS,
            )

    # --- checkpoint ------------------------------------------------------------------------

    def _load(self, client: bytes) -> ClientState | None:
        assert self._checkpointer is not None
        began = self._monotonic()
        try:
            return self._checkpointer.load(client)
        finally:
            self._read_seconds += self._monotonic() - began

    def _coverage(self, *, complete: bool = False) -> Coverage:
        return Coverage(self._file, self._size, self._last_time, complete, bool(self._lazy))

    def _save(self, *, durable: bool, complete: bool) -> None:
        """A whole checkpoint now."""
        assert self._checkpointer is not None
        self._checkpointer.save(self._coverage(complete=complete), durable=durable)

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
                self._release()
                self._state = _State.CLOSED
                try:
                    self._save(durable=True, complete=True)
                    assert self._checkpointer is not None
                    self._checkpointer.close()
                    self._checkpointer = None
                except sqlite3.Error as e:
                    self._log.error(
                        "the ledger {ledger} could not be brought up to date: {error}; the next "
                        "start reads more of the log",
                        ledger=str(self.ledger_path),
                        error=str(e),
                    )
        finally:
            self._abandon()
