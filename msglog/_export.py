"""
One log file out of a stream: exact after any kill, for only what is on the disk is counted.

Beside the file stands C{<file>.export}, which says how far it goes::

    {"stream":"MSGLOG","created":"2026-…","sequence":4711,"size":1048576,"time":1764032400000000}

Messages are appended to the file and synced; then that small file is replaced by rename.  So the
file is at least as long as it says, and what is behind that is cut off at the next start and
fetched again.  C{sequence} is the last message of the stream in the file, C{time} the last line's.

The lines are the stream's, but for times that would go back (L{msglog._retiming}), and so the same
whenever they are exported.
"""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Iterable
from pathlib import Path

from attrs import asdict, evolve, frozen

from ._errors import MsglogError
from ._jetstream import StreamDamaged
from ._retiming import retimed

__all__ = ["Export", "ExportError", "Position"]


class ExportError(MsglogError):
    """The export cannot go on; the text says why, and nothing that was exported has changed."""


@frozen
class Position:
    """
    How far an export has come.

    @ivar stream: the stream's name.
    @ivar created: when it was made, as it says itself: another one of that name is another stream.
    @ivar sequence: of the last message of the stream that is in the file.
    @ivar size: the file's length.
    @ivar time: the last line's, microseconds since 1970.
    """

    stream: str
    created: str
    sequence: int = 0
    size: int = 0
    time: int = 0


class Export:
    """
    A file that a stream is exported to; close it after use.

    @param path: the file.
    @param stream: the stream's name.
    @param created: when it was made.
    @raise ExportError: the file is not an export of this stream, or cannot be used.
    @ivar position: how far it has come, on the disk.
    """

    def __init__(self, path: Path, stream: str, created: str) -> None:
        self._path = path
        self._state = path.with_name(f"{path.name}.export")
        self.position = self._read_position() or Position(stream, created)
        if (self.position.stream, self.position.created) != (stream, created):
            raise ExportError(
                f"{path} is of the stream {self.position.stream} made {self.position.created}, and "
                f"this is {stream} made {created}: export it to another file"
            )
        try:
            self._fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o640)
        except OSError as e:
            raise ExportError(f"cannot use {path}: {e.strerror}") from None
        try:
            self._begin()
        except BaseException:
            os.close(self._fd)
            raise

    def _read_position(self) -> Position | None:
        try:
            return Position(**json.loads(self._state.read_bytes()))
        except FileNotFoundError:
            return None
        except (OSError, ValueError, TypeError) as e:
            raise ExportError(
                f"{self._state} does not say how far {self._path} goes ({e}): export anew to "
                f"another file"
            ) from None

    def _begin(self) -> None:
        try:
            fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ExportError(f"{self._path} is in use by another process") from None
        size = os.fstat(self._fd).st_size
        known = self.position.size
        if size < known:
            raise ExportError(
                f"{self._path} has {size} bytes, of {known} that were exported: somebody has cut "
                f"it; export anew to another file"
            )
        if size and not self._state.exists():
            raise ExportError(
                f"{self._path} is there, and {self._state} is not: it is no export; name a new file"
            )
        os.ftruncate(self._fd, known)  # what a kill left there that is not counted
        if not self._state.exists():
            self._keep(self.position)

    def close(self) -> None:
        """Let the file go."""
        os.close(self._fd)

    def append(self, messages: Iterable[tuple[int, bytes]]) -> int:
        """
        Append messages of the stream, and count them when they are on the disk.

        @param messages: their sequences and data, in order.
        @return: how many lines they were.
        @raise ExportError: one is missing between them, or is none that msglog has written; those
            before it are appended.
        """
        position, parts, lines = self.position, [], 0
        failure: ExportError | None = None
        for sequence, data in messages:
            try:
                time, text = _following(sequence, data, position)
            except ExportError as e:
                failure = e
                break
            parts.append(text)
            lines += text.count(b"\n")
            position = evolve(
                position, sequence=sequence, time=time, size=position.size + len(text)
            )
        if parts:
            _write(self._fd, b"".join(parts))
            os.fdatasync(self._fd)
            self._keep(position)
        if failure is not None:
            raise failure
        return lines

    def _keep(self, position: Position) -> None:
        new = self._state.with_name(f"{self._state.name}.new")
        with new.open("w") as file:
            json.dump(asdict(position), file)
            file.flush()
            os.fsync(file.fileno())
        new.replace(self._state)
        folder = os.open(self._path.parent, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
        self.position = position


def _following(sequence: int, data: bytes, after: Position) -> tuple[int, bytes]:
    """A message's time and lines, if it is the one that follows."""
    if sequence != after.sequence + 1:
        raise ExportError(
            f"message {after.sequence + 1} of the stream is missing, the next is {sequence}: "
            f"somebody has deleted from it"
        )
    try:
        return retimed(sequence, data, after.time)
    except StreamDamaged as e:
        raise ExportError(str(e)) from None


def _write(fd: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(fd, view) :]
