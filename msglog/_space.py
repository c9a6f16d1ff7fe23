"""How much room the log's disk has, looked at now and then, and said before there is none."""

from __future__ import annotations

from pathlib import Path

from twisted.logger import Logger

from ._disk import IDisk

__all__ = ["FreeSpace"]

# How old what is known of the disk may be: at the fastest load measured, 150 MB.
_LOOK_SECONDS = 1.0


class FreeSpace:
    """
    The free space of a log's disk.

    @param path: the log.
    @param least: how many bytes should be free (C{min_free_bytes}).
    @ivar free: bytes that the server's user may still write; L{None} if that is not known.
    @ivar size: bytes that the disk has.
    @ivar low: whether fewer than C{least} are free.
    @ivar times_low: how often that became so.
    """

    _log = Logger()

    def __init__(self, path: Path, least: int, disk: IDisk) -> None:
        self._path = path
        self.least = least
        self._disk = disk
        self._due = float("-inf")
        self.free: int | None = None
        self.size = 0
        self.low = False
        self.times_low = 0

    def look(self, now: float) -> None:
        """Look, if the last time is long enough ago."""
        if now < self._due:
            return
        self._due = now + _LOOK_SECONDS
        try:
            self.free, self.size = self._disk.space(self._path.parent)
        except OSError:
            self.free = None  # what is wrong there, the next commit says
            return
        # Once it is low it has to rise by a tenth, or it would be said with every rotation.
        if not self.low and self.free < self.least:
            self.low = True
            self.times_low += 1
            self._log.warn(
                "{free} bytes are free on the disk of {log}, fewer than --min-free-bytes "
                "{least}: make room; when there is none, messages are refused NOT_STORED",
                free=self.free,
                log=str(self._path),
                least=self.least,
            )
        elif self.low and self.free >= 1.1 * self.least:
            self.low = False
            self._log.info(
                "{free} bytes are free on the disk of {log} again",
                free=self.free,
                log=str(self._path),
            )
