"""
Giving a log another name so that nothing is ever replaced or without a name, and deleting what was
rotated long ago.

Theory of operation.  The new name is taken first, by an empty file that must not have been there;
then the log is renamed over that; then a new log is made.  A kill leaves one of these:

=======================  ======================================================================
name taken               the log as it was, and beside it an empty file, which readers pass over
renamed                  no log; the old one is beside it, where a start looks for it
new log made             as after a rotation
=======================  ======================================================================
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from ._disk import IDisk
from ._errors import RecordError
from ._records import Record
from ._rotation import rotated_files
from ._rotation_rule import expendable
from ._torn import first_line, last_line, read_record

__all__ = ["NoLog", "delete_old", "first_line_of", "move_aside"]


class NoLog(Exception):
    """The log has its new name, and under its own there is nothing: it cannot be made now."""


def move_aside(
    disk: IDisk,
    log: Path,
    rotated: Path,
    sync_folder: Callable[[], None],
    open_new: Callable[[], int],
) -> int:
    """
    Give a log another name, and make a new one.

    @param sync_folder: waits until the names are on the disk.
    @param open_new: makes and opens the new log.
    @return: the new log, open.
    @raise OSError: that cannot be done; everything is as it was.
    @raise NoLog: it cannot be done, and the old log could not be given its name again.
    """
    disk.take_name(rotated)
    try:
        disk.rename(log, rotated)
    except OSError:
        with suppress(OSError):  # then an empty file is left
            disk.remove(rotated)
        raise
    # The old file has its new name for good before its old one is given to another.
    sync_folder()
    try:
        return open_new()
    except OSError as e:
        try:
            disk.rename(rotated, log)
        except OSError:
            raise NoLog(f"cannot begin a new log file: {e.strerror}") from e
        raise


def delete_old(
    disk: IDisk, log: Path, keep: int, last: Callable[[bytes], int | None]
) -> list[Path]:
    """
    Delete the files that a log was rotated into, but for the newest, if the ledger has them.

    @param last: the last sequence of a client in the ledger; L{None} if nobody knows.
    @return: what was deleted.
    @raise OSError: one could not be deleted.
    """
    deleted = []
    beside = rotated_files(
        log, disk.beside(log), lambda path: first_line_of(disk, path), lambda path: None
    )
    for path in expendable(log, (file.path for file in beside), keep):
        record = _last_record(disk, path)
        # Who knows a file's last record knows those before it.
        if record is not None and (last(record.client) or 0) >= record.sequence:
            disk.remove(path)
            # Or a power cut could bring it back, and not the one that is deleted next.
            disk.sync_folder(log.parent)
            deleted.append(path)
    return deleted


def first_line_of(disk: IDisk, path: Path) -> bytes:
    """The line that a file begins with; at most as long as a record can be."""
    fd = disk.open_to_read(path)
    try:
        return first_line(lambda count, at: disk.read(fd, count, at))
    finally:
        disk.close(fd)


def _last_record(disk: IDisk, path: Path) -> Record | None:
    fd = disk.open_to_read(path)
    try:
        size = disk.size(fd)
        if not size:
            return None
        return read_record(last_line(lambda count, at: disk.read(fd, count, at), size))
    except RecordError:
        return None
    finally:
        disk.close(fd)
