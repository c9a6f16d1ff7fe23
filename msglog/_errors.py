"""What can go wrong, by who is at fault: us being misconfigured, the log, the disk, or a peer."""

from __future__ import annotations

from attrs import define

__all__ = [
    "LedgerDamaged",
    "LogDamaged",
    "LogLocked",
    "LogUnreadable",
    "MsglogError",
    "NotConnected",
    "NotLogged",
    "QueueFull",
    "RecordError",
    "ScanFailed",
    "SessionFailed",
    "SpoolError",
    "StartError",
    "StoreFailed",
    "TLSError",
    "Unanswered",
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
    A message was not logged: refused by the server or the store, or never handed to it.

    C{retry}: whether to log the same message again makes sense.
    """

    reason: str
    retry: bool

    def __str__(self) -> str:
        return self.reason


class QueueFull(NotLogged):
    """As much waits for its receipt as a client may hold; wait for room, or slow down."""


class Unanswered(NotLogged):
    """
    A client was closed before a message had its answer: whether it is logged is not known.

    To send it again from a new client may log it twice.  A spool keeps it, and knows.
    """


class SessionFailed(NotLogged):
    """
    Server and client disagree in a way that sending again cannot mend, so the client sends no
    more: its id is used by somebody else, or may not be used, or the server has lost messages
    that it had acknowledged.
    """


@define(eq=False)
class NotConnected(MsglogError):
    """No server could be reached in time.  C{reason} says which were tried and what happened."""

    reason: str

    def __str__(self) -> str:
        return self.reason


@define(eq=False)
class TLSError(MsglogError):
    """A client's TLS settings cannot be used.  C{reason} says which file, and why."""

    reason: str

    def __str__(self) -> str:
        return self.reason


@define(eq=False)
class SpoolError(MsglogError):
    """A spool cannot be used: another process has it, it is damaged, or its disk is full."""

    reason: str

    def __str__(self) -> str:
        return self.reason


@define(eq=False)
class LogUnreadable(MsglogError):
    """A log cannot be read, or not any further.  C{reason} says which, where, and why."""

    reason: str

    def __str__(self) -> str:
        return self.reason


@define(eq=False)
class ScanFailed(MsglogError):
    """A process that was scanning logs was killed.  C{reason} says what to try."""

    reason: str

    def __str__(self) -> str:
        return self.reason
