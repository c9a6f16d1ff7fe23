"""
The ledger: which messages of each client are logged.  No I/O.

Theory of operation.  Each client's messages in the log are 1…n with no gap, so one number, C{last},
says which are logged.  A sequence of ``last + 1`` is new; above it is out of order; at or below it
is a resend.  An ACK is a receipt for exact bytes, so a resend is answered from the checksums of the
client's last C{window} messages: the same checksum is acknowledged again, another one (or one too
old to tell) is a conflict.

The writer admits all the batches of a commit (which I{stages} their messages), writes them, and
then either L{settles<Ledger.settle>} or L{rolls back<Ledger.roll_back>} the whole commit.  Nothing
else changes a ledger, and between two commits it says exactly what is durable.

Memory.  Only recently active clients are held; the others are in the checkpoint (L{Checkpoint}),
from which C{load} brings one back.  A client whose state the checkpoint does not have yet is
I{dirty} and cannot be let go of.
"""

from __future__ import annotations

from array import array
from collections import OrderedDict
from collections.abc import Callable
from uuid import UUID

from attrs import Factory, define

from ._batch import STORED, Batch, NackCode, Refusal, Verdict
from ._bundle import Bundle
from ._records import Record

__all__ = [
    "CHECKSUM_BYTES",
    "ClientState",
    "Ledger",
    "ReplayError",
    "RowDamaged",
    "judge",
    "judge_without_room",
]

# What one client costs in memory besides its checksums: the state, its array, the id, and the
# entries in two dictionaries (measured: 412 bytes on CPython 3.11).
CLIENT_BYTES = 450
CHECKSUM_BYTES = 4

# Of new clients alone, so nothing is wrong but that there are many at once, or that the checkpoint
# cannot be written, which the server's log says.
_NO_ROOM = "the ledger's memory has no room for more new clients until it is written to its file"


@define(slots=True, eq=False)
class ClientState:
    """
    What is known of one client.

    @ivar last: the sequence of its last logged message; 0 if there is none.
    @ivar checksums: those of its last messages, up to C{last}; at least C{window} of them, unless
        there are fewer.
    @ivar saved: the C{last} that the checkpoint has.
    """

    last: int = 0
    checksums: array[int] = Factory(lambda: array("I"))
    saved: int = 0


def judge(state: ClientState, batch: Batch, window: int) -> tuple[int, Verdict]:
    """
    Compare a batch with what is logged of its client.

    @return: the index of the first message that is new (C{len(batch)} if none is), and the verdict
        if what is new is stored.
    """
    count = len(batch.checksums)
    ahead = batch.first - state.last - 1
    if ahead == 0:
        return 0, STORED
    if ahead > 0:
        expected = state.last + 1
        reason = f"expected sequence {expected}"
        return count, Verdict.refused(batch, NackCode.OUT_OF_ORDER, expected, reason)
    known = min(-ahead, count)
    refusals = _compare(state, batch, known, window)
    return known, Verdict(tuple(refusals)) if refusals else STORED


def judge_without_room(state: ClientState, batch: Batch, window: int, reason: str) -> Verdict:
    """The verdict on a batch of which nothing new can be stored, for a reason."""
    known = min(max(state.last + 1 - batch.first, 0), len(batch))
    refusals = _compare(state, batch, known, window)
    if known < len(batch):
        refusals.append(Refusal(known, len(batch), NackCode.NOT_STORED, state.last + 1, reason))
    return Verdict(tuple(refusals)) if refusals else STORED


def _damaged(batch: Batch) -> Verdict:
    """The verdict on a batch of a client of whom nobody knows what is logged."""
    reason = "what the server's ledger has of this client is damaged; its operator has to mend that"
    return Verdict.refused(batch, NackCode.NOT_STORED, 0, reason)


def _compare(state: ClientState, batch: Batch, known: int, window: int) -> list[Refusal]:
    """Refusals for those of the first C{known} messages that are not what was logged."""
    checksums = state.checksums
    oldest = state.last - min(len(checksums), window) + 1
    skip = len(checksums) - 1 - state.last
    refusals = []
    for index in range(known):
        sequence = batch.first + index
        if sequence < oldest:
            reason = f"sequence {sequence} is logged, but too long ago to compare"
        elif checksums[skip + sequence] != batch.checksums[index]:
            reason = f"sequence {sequence} is logged with other bytes"
        else:
            continue
        refusals.append(Refusal(index, index + 1, NackCode.CONFLICT, state.last + 1, reason))
    return refusals


class ReplayError(Exception):
    """A record does not follow from those before it."""


class RowDamaged(Exception):
    """
    What the checkpoint has of a client is not what was written there, so nobody knows what is
    logged of that client.

    @ivar client: the client id.
    """

    def __init__(self, client: bytes, reason: str) -> None:
        super().__init__(f"what it has of client {UUID(bytes=client)} is damaged: {reason}")
        self.client = client


class Ledger:
    """
    @param load: finds the state of a client that is not in memory; L{None} if it has none.  What
        raises L{RowDamaged} there is NOT_STORED, whatever it is.
    @param window: how many of a client's last messages a resend is compared with.
    @param memory: how many bytes the clients in memory may take before the least recently active
        are let go of.
    """

    def __init__(
        self, load: Callable[[bytes], ClientState | None], window: int, memory: int
    ) -> None:
        self._load = load
        self.window = window
        self._memory_limit = memory
        self._clients: OrderedDict[bytes, ClientState] = OrderedDict()
        self._staged: list[tuple[bytes, ClientState, int]] = []
        self.dirty: dict[bytes, ClientState] = {}
        self.memory = 0

    def __len__(self) -> int:
        """How many clients are in memory."""
        return len(self._clients)

    @property
    def overfull(self) -> bool:
        """Whether only a checkpoint can bring the memory back under its limit."""
        return self.memory > self._memory_limit

    @property
    def exhausted(self) -> bool:
        """Whether the memory is so far over its limit that no further client fits."""
        return self.memory > 2 * self._memory_limit

    def last(self, client: bytes) -> int:
        """
        A client's last logged sequence.  Asking makes the ledger remember nothing.

        @raise RowDamaged: nobody knows.
        """
        return self._find(client).last

    def _find(self, client: bytes) -> ClientState:
        return self._clients.get(client) or self._load(client) or ClientState()

    def admit(self, batch: Batch) -> tuple[int, Verdict]:
        """
        Stage what is new in a batch.

        @return: the index of the first message that is to be written (C{len(batch)} if none is),
            and the verdict if the commit succeeds.
        """
        known = self._clients.get(batch.client)
        if known is not None and batch.first == known.last + 1:
            # Nearly every batch is this, and judged in half the time.
            checksums = batch.checksums
            self._staged.append((batch.client, known, known.last))
            known.last += len(checksums)
            known.checksums.extend(checksums)
            self.memory += CHECKSUM_BYTES * len(checksums)
            return 0, STORED
        try:
            state = known or self._find(batch.client)
        except RowDamaged:
            return len(batch), _damaged(batch)
        if known is None and self.exhausted:
            return len(batch), judge_without_room(state, batch, self.window, _NO_ROOM)
        start, verdict = judge(state, batch, self.window)
        if start < len(batch.checksums):
            new = batch.checksums[start:] if start else batch.checksums
            self._stage(batch.client, state, new)
        return start, verdict

    def admit_bundle(self, bundle: Bundle) -> list[tuple[int, int, Verdict]]:
        """
        Stage what is new in each batch of a bundle, in order.

        @return: for each batch that is not its client's next, its index, and what L{admit} says.
        """
        clients, staged, checksums = self._clients, self._staged, bundle.checksums
        others: list[tuple[int, int, Verdict]] = []
        place = 0
        for index, (client, first, count) in enumerate(
            zip(bundle.clients, bundle.firsts, bundle.counts, strict=True)
        ):
            state = clients.get(client)
            if state is not None and first == state.last + 1:
                staged.append((client, state, state.last))
                state.last += count
                if count == 1:
                    state.checksums.append(checksums[place])
                else:
                    state.checksums.extend(checksums[place : place + count])
                self.memory += CHECKSUM_BYTES * count
            else:
                batch = Batch(client, first, list(checksums[place : place + count]), [])
                start, verdict = self.admit(batch)
                if start or verdict is not STORED:
                    others.append((index, start, verdict))
            place += count
        return others

    def refuse(self, batch: Batch, reason: str) -> Verdict:
        """
        The verdict on a batch while nothing can be stored.

        What is logged already is still acknowledged; everything else is NOT_STORED.
        """
        try:
            state = self._find(batch.client)
        except RowDamaged:
            return _damaged(batch)
        return judge_without_room(state, batch, self.window, reason)

    def _stage(self, client: bytes, state: ClientState, checksums: list[int]) -> None:
        if client not in self._clients:
            self._clients[client] = state
            self.memory += CLIENT_BYTES + CHECKSUM_BYTES * len(state.checksums)
        self._staged.append((client, state, state.last))
        state.last += len(checksums)
        state.checksums.extend(checksums)
        self.memory += CHECKSUM_BYTES * len(checksums)

    def settle(self) -> None:
        """What was staged is durable."""
        clients, dirty, window = self._clients, self.dirty, self.window
        spare = window // 4
        for client, state, _ in self._staged:
            dirty[client] = state
            clients.move_to_end(client)
            excess = len(state.checksums) - window
            # Cutting an array moves all of it, so not for every few messages.
            if excess > spare:
                del state.checksums[:excess]
                self.memory -= CHECKSUM_BYTES * excess
        self._staged.clear()
        if self.memory > self._memory_limit:
            self._let_go()

    def roll_back(self) -> None:
        """What was staged did not become durable."""
        for client, state, last in reversed(self._staged):
            count = state.last - last
            state.last = last
            del state.checksums[len(state.checksums) - count :]
            self.memory -= CHECKSUM_BYTES * count
            if last == 0:
                del self._clients[client]
                self.memory -= CLIENT_BYTES
        self._staged.clear()

    def saved(self, states: dict[bytes, tuple[ClientState, int]]) -> None:
        """
        A checkpoint is complete.

        @param states: for each client that it wrote, the state and the C{last} it wrote.
        """
        for client, (state, last) in states.items():
            state.saved = last
            if state.last == last:
                self.dirty.pop(client, None)
        self._let_go()

    def _let_go(self) -> None:
        """Forget the least recently active clients, as far as the checkpoint has them."""
        if self._staged:
            return  # the commit has hold of their states
        while self.memory > self._memory_limit and self._clients:
            client, state = next(iter(self._clients.items()))
            if client in self.dirty:
                return
            del self._clients[client]
            self.memory -= CLIENT_BYTES + CHECKSUM_BYTES * len(state.checksums)

    def replay(self, record: Record, *, joining: bool) -> None:
        """
        Take note of a record that is in the log after what the checkpoint covers.

        A client's state in the checkpoint may be ahead of the place in the log that it covers,
        since clients are written while the log goes on; so a record that its state has already is
        passed over, if it is the same.

        @param joining: whether a client that was never seen may begin above 1, because files that
            were rotated away may have had the rest.
        @raise ReplayError: the record is not the client's next one.
        @raise RowDamaged: nobody knows which that is.
        """
        client, sequence, checksum = record.client, record.sequence, record.checksum
        state = self._clients.get(client)
        if state is None:
            state = self._load(client) or ClientState()
            if joining and state.last == 0:
                state.last = sequence - 1
            self._clients[client] = state
            self.memory += CLIENT_BYTES + CHECKSUM_BYTES * len(state.checksums)
        checksums = state.checksums
        if sequence == state.last + 1:
            state.last = sequence
            checksums.append(checksum)
            self.memory += CHECKSUM_BYTES
            self.dirty[client] = state
            if len(checksums) > 2 * self.window:
                excess = len(checksums) - self.window
                del checksums[:excess]
                self.memory -= CHECKSUM_BYTES * excess
            return
        if 0 < sequence <= state.saved:
            place = len(checksums) - 1 - state.last + sequence
            if place < 0 or checksums[place] == checksum:
                return
        raise ReplayError(f"sequence {sequence} of a client whose next is {state.last + 1}")
