"""
Bringing the ledger up to date from the log files at a start: a checkpoint says how far it is.

Nothing is changed here but one thing: what a crash tore at the end is kept aside and cut off.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from attrs import define, frozen
from twisted.logger import Logger

from ._checkpoint import Coverage, identify
from ._disk import IDisk
from ._errors import LedgerDamaged, LogDamaged, LogLocked, RecordError
from ._ledger import Ledger, ReplayError
from ._records import format_time
from ._rotating import first_line_of
from ._rotation import RotatedFile, rotated_files
from ._torn import (
    Damage,
    Lines,
    first_line,
    judge_damage,
    last_line,
    may_begin,
    read_record,
    said_time,
)

__all__ = ["Recovered", "Recovery", "see_log"]

# How often a long recovery says how far it is, in bytes read.
_PROGRESS_BYTES = 256 * 1024 * 1024

# What a sync that failed can have been about: the last commit, of which the bytes are bounded
# (C{max_commit_bytes}, 32 MiB at most, and one bundle); nearly twice that.
_UNSURE_BYTES = 64 * 1024 * 1024


@frozen(slots=True)
class Recovered:
    """
    What a start found.

    @ivar size: the log's length, bytes.
    @ivar read: how many bytes of it (and of rotated files) had to be read.
    @ivar records: how many records those held.
    @ivar kept: where a torn end was put; L{None} if the end was clean.
    @ivar rebuilt: whether there was no ledger to begin from.
    @ivar torn: how many bytes were cut off as torn.
    """

    size: int
    read: int
    records: int
    kept: Path | None
    rebuilt: bool
    torn: int


def see_log(path: Path, disk: IDisk, fd: int) -> None:
    """
    See that nobody named another file by mistake: it would be taken for a torn log.

    @param fd: the file, open.
    @raise LogDamaged: so it is, or the log's first bytes are damaged.
    """
    if not may_begin(lambda count, at: disk.read(fd, count, at)):
        raise LogDamaged(
            f"{path} is damaged at byte 0, or is no log at all: it does not begin as a record "
            f"does. Nothing was changed. If it is something else, give the log another name; if "
            f"it is the log, restore it from a copy"
        )


class Recovery:
    """
    One start's reading of the log.

    @param path: the log.
    @param ledger_path: its ledger's file, to name it in errors.
    @param ledger: what is brought up to date.
    @param spill: called when more clients are in memory than may be and most of them have changed;
        it must write the changed ones to the ledger's file.
    @ivar file: which file the log is, if it begins with a record.
    @ivar began: the time of its first record, microseconds since 1970; 0 if there is none.
    @ivar last_time: the time of the last commit, microseconds since 1970; 0 before any.
    """

    _log = Logger()

    def __init__(
        self,
        path: Path,
        ledger_path: Path,
        disk: IDisk,
        ledger: Ledger,
        clock: Callable[[], float],
        spill: Callable[[], None],
    ) -> None:
        self._path = path
        self._ledger_path = ledger_path
        self._disk = disk
        self._ledger = ledger
        self._clock = clock
        self._spill = spill
        self._progress = _Progress(self._log)
        self._torn = 0
        self.file = b""
        self.began = 0
        self.last_time = 0

    def run(self, fd: int, coverage: Coverage | None) -> Recovered:
        """
        Read what the ledger has not seen.

        @param fd: the log, open and locked.
        @param coverage: what its ledger's file has of it; L{None} if there was no such file.
        @raise StartError: the log or its ledger is damaged, or one of the two is missing.
        """
        size = self._disk.size(fd)
        first = self._first_line(fd)
        self.file = identify(first)
        self.began = said_time(first) or 0
        offset, lazy = 0, False
        if coverage is None:
            if size:
                self._log.info(
                    "no ledger beside {log}: making it from the log, {size} bytes",
                    log=str(self._path),
                    size=size,
                )
            for rotated in self._rotated():
                self._replay_rotated(rotated.path, 0, joining=True, lazy=False)
        else:
            self.last_time, lazy = coverage.time, coverage.lazy
            if coverage.file == b"" or coverage.file == self.file:
                offset = coverage.offset
                self._check_coverage(fd, size, coverage)
            else:
                if size and not self.file and not self._may_be_begun_anew(fd, size, coverage):
                    raise LogDamaged(
                        f"{self._path} is damaged at byte 0: its first line is no record, and its "
                        f"ledger knows another. Nothing was changed. Restore the log from a copy, "
                        f"or move it and its ledger away"
                    )
                self._finish_rotated(coverage)
            if not size and coverage.complete and coverage.file:
                self._say_if_lost(coverage)
            if coverage.file != self.file or not self.file:
                self._replay_later(coverage)
        size, kept = self._replay(fd, self._path, offset, joining=coverage is None, lazy=lazy)
        if not size:
            self.file = b""
        progress = self._progress
        return Recovered(size, progress.read, progress.records, kept, coverage is None, self._torn)

    def _first_line(self, fd: int) -> bytes:
        """The first line of a file, if it is a record."""
        line = first_line(lambda count, at: self._disk.read(fd, count, at))
        try:
            read_record(line)
        except RecordError:
            return b""
        return line

    def _may_be_begun_anew(self, fd: int, size: int, coverage: Coverage) -> bool:
        """
        Whether a log with a damaged first line can be one that was begun after that which the
        ledger knows was completed, torn in its first commit.
        """
        if not coverage.complete:
            return False
        for _, line in Lines(lambda count, at: self._disk.read(fd, count, at), 0):
            try:
                return read_record(line).time > coverage.time
            except RecordError:
                continue
        said = said_time(self._disk.read(fd, 64, 0))
        if said is not None:
            return said > coverage.time
        # Nothing in it says anything; but the log that the ledger knows is longer, or another one.
        return size < coverage.offset or self._whole_rotated(coverage) is not None

    def _check_coverage(self, fd: int, size: int, coverage: Coverage) -> None:
        """See that the log still holds what its ledger says it does."""
        if coverage.offset > size:
            raise LedgerDamaged(
                f"{self._path} has {size} bytes, but its ledger has seen {coverage.offset}: "
                f"acknowledged messages are missing. Put the whole log back; or, if it is lost, "
                f"move {self._ledger_path} away to go on from what the log still has"
            )
        if not self._ends_commit(fd, coverage):
            self._look_for_damage(fd, coverage.offset)
            raise LedgerDamaged(
                f"{self._path} is not the log that its ledger belongs to: at byte "
                f"{coverage.offset} no commit ends that the ledger knows. Put the right log back, "
                f"or move {self._ledger_path} away to have it made anew from this log"
            )

    def _look_for_damage(self, fd: int, end: int) -> None:
        """
        Say where a log is damaged in what its ledger has seen, if it is.

        @raise LogDamaged: there.
        """
        for offset, line in Lines(lambda count, at: self._disk.read(fd, count, at), 0):
            if offset >= end or not line.endswith(b"\n"):
                return
            try:
                read_record(line)
            except RecordError as e:
                raise LogDamaged(
                    f"{self._path} is damaged at byte {offset} ({e.reason}), among acknowledged "
                    f"messages: its ledger has seen {end} bytes. Nothing was changed. Restore the "
                    f"log from a copy; without its ledger a start would take this for the torn "
                    f"end of a crash and cut off what follows"
                ) from None

    def _ends_commit(self, fd: int, coverage: Coverage) -> bool:
        """Whether the commit that the ledger knows ends where it says."""
        if not coverage.offset:
            return True
        line = last_line(lambda count, at: self._disk.read(fd, count, at), coverage.offset)
        try:
            return read_record(line).time == coverage.time
        except RecordError:
            return False

    def _rotated(self) -> list[RotatedFile]:
        """Files beside the log that were rotated away from it, oldest first."""
        disk, log = self._disk, self._path
        return rotated_files(
            log, disk.beside(log), lambda path: first_line_of(disk, path), self._pass_over
        )

    def _pass_over(self, path: Path) -> None:
        if path.suffix in {".gz", ".xz", ".bz2", ".zst"}:
            self._log.warn("{path} is compressed and was not read", path=str(path))

    def _finish_rotated(self, coverage: Coverage) -> None:
        """
        Read the rest of the log that was rotated away before the ledger had all of it.

        One that the ledger calls complete may have grown all the same, if the ledger is older.
        """
        found = self._whole_rotated(coverage)
        if found is not None:
            size, path = found
            if size > coverage.offset or not coverage.complete:
                self._replay_rotated(path, coverage.offset, joining=False, lazy=coverage.lazy)
            return
        if coverage.complete:
            return
        raise LedgerDamaged(
            f"the server was killed before its ledger had all of the log, and that log is neither "
            f"{self._path} nor whole beside it under a name that begins with {self._path.name}. "
            f"Put it there (not compressed) and start again; or, if it is lost, move "
            f"{self._ledger_path} away to go on without it"
        )

    def _say_if_lost(self, coverage: Coverage) -> None:
        """
        Warn that the log that the ledger has all of is gone.  That is no error, for whoever rotates
        may have taken it elsewhere; but if nobody did, this is the only time that anybody is told.
        """
        if self._whole_rotated(coverage) is None:
            self._log.warn(
                "{log} is new or empty, and the log that its ledger knows, of {size} bytes, is not "
                "beside it: its clients are known, and go on in a new log. If nobody has rotated "
                "it away, it is lost: stop the server, move log and ledger away, and restore the "
                "log from a copy",
                log=str(self._path),
                size=coverage.offset,
            )

    def _replay_later(self, coverage: Coverage) -> None:
        """
        Read the logs that were begun after all that the ledger knows, and moved away.

        There are some if the ledger is an older one that was put back; or one, of a single commit,
        if the server was killed in a log's first commit, before it told the ledger of it.  Nothing
        of that was acknowledged, but it would be there twice.
        """
        later: dict[bytes, tuple[int, RotatedFile]] = {}
        others = self._other_logs()
        for file in self._rotated():
            if file.time <= self.last_time or 0 < self.began <= file.time:
                continue
            name = identify(file.first)
            # What is named in another way may be another log, whose clients are not ours.
            if (
                name not in (coverage.file, self.file)
                and not file.path.name.startswith(others)
                and (file.is_dated(self._path) or self._is_one_commit(file))
            ):
                # A copy that was made earlier begins with the same line; the longest is the log.
                length = self._length(file)
                if name not in later or length > later[name][0]:
                    later[name] = length, file
        if later and (self.file or len(later) > 1):
            self._log.warn(
                "the ledger is older than {log}: it is brought up to date from {count} files that "
                "were rotated away since. If there were more, stop the server, put them beside the "
                "log, and this ledger back: what is in them alone may be logged again",
                log=str(self._path),
                count=len(later),
            )
        for _, file in later.values():
            if file.time <= self.last_time:
                continue  # a part of the one before
            try:
                # A ledger that knows of no message is none: files may have been deleted already.
                joining = not coverage.time
                self._replay_rotated(file.path, 0, joining=joining, lazy=coverage.lazy)
            except LogLocked:
                pass  # another server's
            except LogDamaged as e:
                raise LogDamaged(
                    f"{file.path} is later than all that the ledger knows, but does not follow it: "
                    f"{e}. If it is no part of this log, move it away from here"
                ) from None

    def _other_logs(self) -> tuple[str, ...]:
        """The names of other servers' logs that begin as this one's does: a ledger tells them."""
        suffix = ".ledger"
        return tuple(
            path.name.removesuffix(suffix)
            for path in self._disk.beside(self._path)
            if path.name.endswith(suffix) and path.name != self._ledger_path.name
        )

    def _length(self, file: RotatedFile) -> int:
        fd = self._disk.open_to_read(file.path)
        try:
            return self._disk.size(fd)
        finally:
            self._disk.close(fd)

    def _is_one_commit(self, file: RotatedFile) -> bool:
        fd = self._disk.open_to_read(file.path)
        try:
            for _, line in Lines(lambda count, at: self._disk.read(fd, count, at), 0):
                try:
                    if read_record(line).time != file.time:
                        return False
                except RecordError:
                    pass
        finally:
            self._disk.close(fd)
        return True

    def _whole_rotated(self, coverage: Coverage) -> tuple[int, Path] | None:
        """
        The file beside the log that the ledger knows, with all of it that the ledger covers: its
        length and its name.
        """
        # A copy that was made earlier begins with the same line; the longest one is the log.
        found = []
        for file in self._rotated():
            if identify(file.first) == coverage.file:
                fd = self._disk.open_to_read(file.path)
                try:
                    if self._ends_commit(fd, coverage):
                        found.append((self._disk.size(fd), file.path))
                finally:
                    self._disk.close(fd)
        return max(found) if found else None

    def _replay_rotated(self, path: Path, offset: int, *, joining: bool, lazy: bool) -> None:
        fd = self._disk.open(path)
        try:
            if not self._disk.lock(fd):
                raise LogLocked(
                    f"{path}, which begins with the name of {self._path}, is in use by another "
                    f"server: give one of the two logs another name or another folder"
                )
            self._replay(fd, path, offset, joining=joining, lazy=lazy)
        finally:
            self._disk.close(fd)

    def _replay(
        self, fd: int, path: Path, offset: int, *, joining: bool, lazy: bool
    ) -> tuple[int, Path | None]:
        """
        Bring the ledger up to date from a file's offset on; keep aside and cut off a torn end.

        @param lazy: whether more than one commit may have been in flight.
        @return: the file's length then, and where its torn end was put, if it had one.
        """

        def read(count: int, at: int) -> bytes:
            return self._disk.read(fd, count, at)

        self._make_durable(fd, offset)
        good = offset
        for at, line in Lines(read, offset):
            try:
                self._replay_line(path, at, line, joining)
            except RecordError as e:
                damage = Damage(at, line, e.reason)
                break
            good = at + len(line)
        else:
            return good, None
        why_not = judge_damage(damage, self.last_time, Lines(read, at + len(line)))
        if why_not is not None and not lazy:
            raise LogDamaged(
                f"{path} is damaged at byte {good} ({damage.reason}), and {why_not}: this is not "
                f"the torn end of a crash but damage to acknowledged messages. Nothing was "
                f"changed. Restore the log from a copy, or move it and its ledger away"
            )
        torn = self._disk.size(fd) - good
        self._torn += torn
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
                else "without a ledger nobody knows whether they were acknowledged"
                if joining
                else "they were never acknowledged"
            ),
            kept=str(kept),
        )
        return good, kept

    def _make_durable(self, fd: int, offset: int) -> None:
        """
        Have on the disk what can be read of a file from an offset on.

        What a killed server wrote may be readable without being on the disk, and neither a resend
        of it may be acknowledged nor the ledger's file know of it (C{spill}) on the page cache's
        word.  If it ended because a sync failed, another sync is not enough: what is read has to
        come from the disk.
        """
        self._disk.sync(fd)
        self._disk.forget(fd, max(offset, self._disk.size(fd) - _UNSURE_BYTES))

    def _keep_torn(self, fd: int, path: Path, offset: int) -> Path:
        stamp = format_time(int(self._clock() * 1e6)).decode().replace(":", "")
        kept = path.with_name(f"{path.name}.torn-{stamp}")
        try:
            self._copy(fd, offset, kept)
        except OSError:
            # Each start on a full disk would leave another one.
            with suppress(FileNotFoundError):
                self._disk.remove(kept)
            raise
        self._disk.sync_folder(self._path.parent)
        return kept

    def _copy(self, fd: int, offset: int, path: Path) -> None:
        """Copy what a file has from an offset on, and wait until it is on the disk."""
        disk = self._disk
        copy = disk.open(path)
        try:
            while chunk := disk.read(fd, 1 << 22, offset):
                offset += len(chunk)
                while chunk:
                    chunk = chunk[disk.write(copy, chunk) :]
            disk.sync(copy)
        finally:
            disk.close(copy)

    def _replay_line(self, path: Path, offset: int, line: bytes, joining: bool) -> None:
        record = read_record(line)
        if record.time < self.last_time:
            raise LogDamaged(
                f"{path} is damaged at byte {offset}: its time is before that of the record "
                f"before it. Nothing was changed. If it is an older log or a copy, move it away "
                f"from here; if it is the log, restore it"
            )
        try:
            self._ledger.replay(record, joining=joining)
        except ReplayError as e:
            raise LogDamaged(
                f"{path} is damaged at byte {offset}: {e}. Nothing was changed. Restore the log "
                f"from a copy, or move it and its ledger away"
            ) from None
        self.last_time = record.time
        self._progress.count(len(line), path)
        if self._ledger.overfull and len(self._ledger.dirty) > len(self._ledger) // 2:
            self._spill()


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
