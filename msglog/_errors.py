"""What can go wrong, by who is at fault: us being misconfigured, the log on disk, or the disk."""

from __future__ import annotations

from attrs import define

__all__ = [
    "LedgerDamaged",
    "LogDamaged",
    "LogLocked",
    "MsglogError",
    "NotLogged",
    "RecordError",
    "StartError",
    "StoreFailed",
]


class MsglogError(Exception):
    """Every error that msglog raises on purpose; its text says what to do next."""


@define(eq=False)
class StartError(MsglogError):
    """The server cannot start as it was asked to.  C{reason} says why and what to do."""

    reason: str

    def __str__(self) -> str:
        return self.reason


class LogLocked(StartError):
    """Another server has this log open."""


class LogDamaged(StartError):
    """
    The log holds something that msglog did not write, where only acknowledged records can be.

    Nothing was changed: acknowledged data is never cut.
    """


class LedgerDamaged(StartError):
    """The ledger beside the log does not belong to this log, or cannot be read."""


@define(eq=False)
class StoreFailed(MsglogError):
    """
    The disk failed in a way after which nothing more can be promised (fail-stop).

    What the page cache holds is unknown from here on, so the store takes nothing more; a restart
    recovers from what is really on the disk.
    """

    reason: str

    def __str__(self) -> str:
        return self.reason


@define(eq=False)
class RecordError(MsglogError):
    """A line is not a record of the log format.  C{reason} says what is wrong with it."""

    reason: str

    def __str__(self) -> str:
        return self.reason


@define(eq=False)
class NotLogged(MsglogError):
    """
    A message of this process's own L{Journal} was refused by the store, or never handed to it.

    C{retry}: whether logging the same message again makes sense.
    """

    reason: str
    retry: bool

    def __str__(self) -> str:
        return self.reason
