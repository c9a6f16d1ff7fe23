"""Logging an application's own messages, without a socket, into the store that it embeds."""

from __future__ import annotations

from functools import partial
from uuid import UUID

from attrs import define
from twisted.internet.defer import Deferred, fail

from ._batch import Batch, Receipt, Verdict
from ._errors import NotLogged
from ._frames import ABSURD_BODY_BYTES, message_checksum
from .interfaces import IStore

__all__ = ["Journal"]


@define(slots=True, eq=False)
class _Entry:
    body: bytes
    receipt: Deferred[Receipt]


class Journal:
    """
    A client of a store in the same process.

    One batch is with the store at a time; what is logged meanwhile becomes the next one.

    @param store: a started L{IStore}.
    @param client: this journal's client id, made once (C{uuid4()}) and kept with the
        application's configuration.  Nobody else may log under it.
    @param max_pending_bytes: how many bytes of bodies may wait to become durable before C{log}
        refuses: 16 MiB by default, one commit's worth.
    """

    def __init__(
        self, store: IStore, client: UUID, max_pending_bytes: int = 16 * 1024 * 1024
    ) -> None:
        self._store = store
        self.client = client
        self._max_pending = max_pending_bytes
        self.pending_bytes = 0
        self._waiting: list[_Entry] = []
        self._busy = False
        self._next = 0  # 0: not known, ask the store

    def log(self, body: bytes) -> Deferred[Receipt]:
        """
        Log a message.

        @param body: at most 16 MiB.
        @return: fires when the message is durable; fails with L{NotLogged} if it is not, and may
            be logged again.  (Only after a failure of the disk, which ends the process, it may be
            found in the log all the same.)
        """
        if len(body) > ABSURD_BODY_BYTES:
            return fail(
                NotLogged(f"a body of {len(body)} bytes is over {ABSURD_BODY_BYTES}", False)
            )
        if self.pending_bytes + len(body) > self._max_pending and self.pending_bytes:
            return fail(
                NotLogged(
                    f"{self.pending_bytes} bytes wait to become durable, which is the most that "
                    f"this journal holds; wait for receipts before logging more",
                    True,
                )
            )
        entry = _Entry(body, Deferred())
        self._waiting.append(entry)
        self.pending_bytes += len(body)
        if not self._busy:
            self._go_on()
        return entry.receipt

    def _go_on(self) -> None:
        if not self._waiting:
            self._busy = False
            return
        self._busy = True
        if self._next:
            self._append()
        else:
            self._store.last(self.client.bytes).addCallback(self._know)

    def _know(self, last: int | None) -> None:
        # A store that cannot say will refuse any sequence, and say why.
        self._next = (last or 0) + 1
        self._append()

    def _append(self) -> None:
        entries, self._waiting = self._waiting, []
        client, first = self.client.bytes, self._next
        checksums = [
            message_checksum(client, sequence, entry.body)
            for sequence, entry in enumerate(entries, first)
        ]
        batch = Batch(client, first, checksums, [entry.body for entry in entries])
        self._store.append(batch, partial(self._judged, batch, entries))

    def _judged(self, batch: Batch, entries: list[_Entry], verdict: Verdict) -> None:
        self.pending_bytes -= sum(map(len, batch.bodies))
        self._next = 0 if verdict.refusals else batch.first + len(entries)
        # Before the receipts fire: what is logged when they do goes to the store at once, and so
        # before a stop that follows.
        self._go_on()
        refused = {
            index: refusal
            for refusal in verdict.refusals
            for index in range(refusal.start, refusal.stop)
        }
        for index, entry in enumerate(entries):
            if index in refused:
                entry.receipt.errback(NotLogged(refused[index].reason, True))
            else:
                entry.receipt.callback(
                    Receipt(self.client, batch.first + index, batch.checksums[index])
                )
