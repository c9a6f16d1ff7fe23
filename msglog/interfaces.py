"""What a store is to the protocol: the one seam between taking messages and keeping them."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from twisted.internet.defer import Deferred
from zope.interface import Attribute, Interface

from ._batch import Batch, Verdict
from ._bundle import Bundle, Exceptions

if TYPE_CHECKING:
    from ._store_figures import StoreFigures

__all__ = ["IGatheringStore", "IStore", "IStoreService"]


class IStore(Interface):
    """
    Keeps messages, exactly once and in each client's order.

    C{msglog.testing.StoreContract} is this interface as tests, which every store must pass.
    """

    window: int = Attribute("""How many of a client's last messages a resend is compared with.""")

    def append(batch: Batch, judged: Callable[[Verdict], None]) -> int:
        """
        Log a batch.

        Batches of one client are judged in the order in which they are handed over, and each as
        if all before it had their verdicts.  A refused sequence is not consumed.

        The store does not bound what it is handed; whoever hands it over does.

        @param judged: called once, in the reactor's thread, when every message of the batch is
            durable or refused; perhaps before this returns.  Not a L{Deferred}, which would be
            the costliest thing there is on the way of a single message (2.6 µs of 35).
        @return: how many bytes the store holds for it until then, besides the batch.
        """

    def last(client: bytes) -> Deferred[int | None]:
        """
        A client's last durable sequence, 0 if it has none, as of when every batch that was
        appended before is judged.  Asking makes the store remember nothing.

        @return: fires with it, or with L{None} if the store cannot say; never fails.
        """


class IGatheringStore(IStore):
    """A store that takes what many connections bring at the same time as one piece."""

    def append_bundle(bundle: Bundle, judged: Callable[[Exceptions], None]) -> None:
        """
        C{append} for all batches of a bundle, in order; the next C{commit} begins with them.

        @param judged: called once, as that of C{append}, with those verdicts that are not STORED,
            each with the index of its batch.
        """

    def commit() -> None:
        """Nothing more comes at the moment: begin a commit with what was appended, now."""


class IStoreService(IStore):
    """A store that L{MessageLogService<msglog.MessageLogService>} starts, watches and stops."""

    title: str = Attribute("""What people call the place where the messages are.""")

    def startService() -> None:
        """
        Be ready for batches when this returns.

        @raise StartError: that is not possible; the error says why and what to do.
        """

    def stopService() -> Deferred[None]:
        """
        Judge what was appended, and let everything go.

        @return: fires when that is done; never fails.
        """

    def reopen() -> Deferred[None]:
        """
        The operator has changed something about where the messages are kept (SIGHUP).

        @return: fires when it is seen to.
        """

    def figures() -> StoreFigures:
        """What is so now, without waiting for anything."""

    def log_end() -> int:
        """A number that grows with whatever is stored."""

    def last_lines(end: int) -> list[bytes]:
        """
        The last lines of the log, oldest first; called in a thread.

        @param end: what C{log_end} was.
        @raise OSError: they cannot be read now.
        """
