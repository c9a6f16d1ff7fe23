"""
One client's end of a stream, without I/O: what is stored of it, and what is to be stored next.

Theory of operation.  The end of a client's messages in the stream, its I{tail}, may be moved by
any front-end, and an append whose answer is lost may land later.  So a tail is only ever believed:
it was read, or is what the last append made it.  An append says which tail it believes in, and the
engine takes it only if that is so.  Therefore there is one append in flight for a client, what
arrives meanwhile is the next one, and whenever it is not certain what became of one, the tail is
read again and everything that has no verdict is judged anew: what is stored by then is a resend,
which is acknowledged by its checksum and not sent again.

What is believed may be too old, never wrong: stored messages do not change.  So a resend is
acknowledged, and a conflict refused, by what is known.  But that a sequence is out of order, and
which is a client's last, is only said by a tail that was read after the question came, and from
who, as asked after that, still leads the stream: one that does not any more may have a tail that
is older than what was acknowledged.

========  ==================  ===================================================================
from      what                to
========  ==================  ===================================================================
UNKNOWN   tail read           KNOWN; UNKNOWN if it is behind what was seen before (a leader that
                              is none any more, or the engine has lost messages)
KNOWN     append sent         APPENDING
KNOWN     too old to tell     UNKNOWN
APPENDING stored              KNOWN
APPENDING no room             KNOWN; what was sent is refused
APPENDING anything else       UNKNOWN
========  ==================  ===================================================================
"""

from __future__ import annotations

import enum
from array import array
from collections import deque
from collections.abc import Callable
from typing import Any, ClassVar

from attrs import Factory, define, evolve, frozen

from ._batch import STORED, Batch, NackCode, Refusal, Verdict
from ._jetstream import MAX_LINES, MAX_PAYLOAD, Appended, AppendOutcome, StoredMessage
from ._ledger import CHECKSUM_BYTES, ClientState, judge, judge_without_room
from ._records import opening
from ._stream_counts import APPEND, EARLIER, TAIL, Found, Origin, StreamCounts

__all__ = ["Append", "ClientTail", "Confirm", "ReadEarlier", "ReadTail", "Unsettled"]

# What a client costs besides its checksums (measured on CPython 3.11: 1,476 bytes, with its place
# in the store's dictionary; and 100 for its subject).
_TAIL_BYTES = 1600


@define(slots=True, eq=False)
class Unsettled:
    """
    A batch that has no verdict yet, or a question that has no answer.

    @ivar batch: L{None} for a question.
    @ivar judged: takes the verdict, or the answer.
    @ivar since: when it came.
    @ivar fragments: the batch's lines but for their time.
    @ivar size: what they take together, bytes.
    @ivar done: how many of the batch's messages are settled.
    @ivar refusals: those among them.
    @ivar fresh: whether the tail was read since it came.
    @ivar sure: whether it was read from who leads the stream.
    """

    batch: Batch | None
    judged: Callable[[Any], None]
    since: float
    fragments: list[bytes] = Factory(list)
    done: int = 0
    refusals: list[Refusal] = Factory(list)
    fresh: bool = False
    sure: bool = False
    size: int = Factory(lambda self: sum(map(len, self.fragments)), takes_self=True)

    @property
    def rest(self) -> Batch:
        """What is not settled of the batch."""
        batch, done = self.batch, self.done
        assert batch is not None
        if not done:
            return batch
        return Batch(batch.client, batch.first + done, batch.checksums[done:], batch.bodies[done:])

    def settle(self, count: int, refusals: Any) -> None:
        """So many more of the batch's messages are settled, all but these durable."""
        self.refusals += [
            evolve(refusal, start=refusal.start + self.done, stop=refusal.stop + self.done)
            for refusal in refusals
        ]
        self.done += count

    @property
    def verdict(self) -> Verdict:
        """On the whole of the batch, when all of it is settled."""
        return Verdict(tuple(self.refusals)) if self.refusals else STORED


@frozen(slots=True)
class ReadTail:
    """Request: the client's last message in the stream."""

    kind: ClassVar[str] = TAIL


@frozen(slots=True)
class ReadEarlier:
    """Request: an earlier message of the client, by its sequence in the stream."""

    kind: ClassVar[str] = EARLIER
    sequence: int


@frozen(slots=True)
class Confirm:
    """Request: whether the tail was read from who leads the stream."""


@define(slots=True)  # one for each append: to freeze it would take twice as long
class Append:
    """
    Request: a message with the client's messages C{first} to C{last}.

    @ivar previous: which the client's last message in the stream must be for it to be taken.
    @ivar batches: of how many batches these are.
    """

    kind: ClassVar[str] = APPEND
    previous: int
    first: int
    last: int
    payload: bytes
    batches: int = 1


Request = ReadTail | ReadEarlier | Confirm | Append


class _State(enum.Enum):
    UNKNOWN = enum.auto()
    KNOWN = enum.auto()
    APPENDING = enum.auto()


@define(slots=True, eq=False)
class _Taken:
    """How much of a batch is in the append in flight, and how that is judged if it is stored."""

    entry: Unsettled
    count: int
    refusals: Any


@frozen(slots=True)
class _Doubt:
    """An append whose outcome is unknown; conflicting: because its condition did not hold."""

    previous: int
    first: int
    last: int
    conflicting: bool


class ClientTail:
    """
    @param client: the client id.
    @param window: how many of its last messages a resend is compared with.
    @param counts: where to count what becomes of its appends.
    @ivar last: the client's last durable sequence, as far as that is known.
    @ivar behind_since: since when the engine has said less than was seen before.
    @ivar wrote: whether a batch was ever appended here; questions alone are not remembered.
    @ivar requested: whether a request is in flight.
    @ivar uncertain: how many appends since the last one stored had an unknown outcome.
    @ivar subject: for the owner: where its messages are published.
    @ivar parked: for the owner: whether it waits before the next request.
    @ivar counted: for the owner: how much of its memory is counted.
    """

    def __init__(self, client: bytes, window: int, counts: StreamCounts | None = None) -> None:
        self.client = client
        self._counts = counts or StreamCounts()
        self._window = window
        # An append must be within the window, or it could not be recognised when it is read again.
        self._most = min(MAX_LINES, window)
        self._state = _State.UNKNOWN
        self._known = ClientState()
        self._sequence = 0  # of the tail, in the stream
        self._earlier = 0  # of the message before the oldest whose checksums are known
        self._entries: deque[Unsettled] = deque()
        self._taken: list[_Taken] = []
        self._rollback = 0
        self._doubt: _Doubt | None = None  # until the tail is read again
        self._late: _Doubt | None = None  # had not landed when it was, and still may
        self._answers: list[tuple[Callable[[Any], None], Any]] = []
        self.behind_since: float | None = None
        self.wrote = False
        self.requested = False
        self.uncertain = 0
        self.subject = ""
        self.parked = False
        self.counted = 0

    # --- the caller's side -----------------------------------------------------------------

    def add(self, entry: Unsettled) -> None:
        """Put a batch or a question at the end of the line."""
        self._entries.append(entry)
        self.wrote = self.wrote or entry.batch is not None

    @property
    def idle(self) -> bool:
        """Whether there is nothing to do and nothing in flight."""
        return not self._entries and not self.requested

    @property
    def waiting_since(self) -> float | None:
        """When what has waited longest came; L{None} if nothing waits."""
        return self._entries[0].since if self._entries else None

    @property
    def last(self) -> int:
        """The client's last durable sequence, as far as that is known."""
        return self._rollback if self._taken else self._known.last

    @property
    def memory(self) -> int:
        """What this holds while it is idle, bytes."""
        return _TAIL_BYTES + CHECKSUM_BYTES * len(self._known.checksums)

    def answers(self) -> list[tuple[Callable[[Any], None], Any]]:
        """Take what is to be told: who is called, and with what."""
        answers, self._answers = self._answers, []
        return answers

    def refuse_all(self, code: NackCode, reason: str) -> int:
        """
        Let nothing wait any longer.

        What is in flight may still be stored; a resend then is acknowledged.

        @return: how many messages were refused.
        """
        refused = 0
        entries, self._entries = self._entries, deque()
        for taken in self._taken:
            taken.entry = Unsettled(None, _nobody, 0.0)
            taken.count = 0
        for entry in entries:
            if entry.batch is None:
                self._answers.append((entry.judged, None))
            else:
                rest = len(entry.batch) - entry.done
                entry.settle(rest, [Refusal(0, rest, code, 0, reason)])
                self._answers.append((entry.judged, entry.verdict))
                refused += rest
        self._give_up_doubt()
        return refused

    # --- what to ask of the engine ---------------------------------------------------------

    def proceed(self, time: bytes) -> Request | None:
        """
        What to request now, if anything; settles what needs no request.

        @param time: what the lines that are appended now say.
        """
        if self.requested:
            return None
        request = self._next(time)
        self.requested = request is not None
        return request

    def _next(self, time: bytes) -> Request | None:
        while self._entries:
            if self._state is _State.UNKNOWN:
                return self._read_tail()
            entry = self._entries[0]
            if entry.batch is None:
                if not entry.sure:
                    return self._make_sure(entry)
                self._answers.append((entry.judged, self._known.last))
                self._entries.popleft()
                continue
            rest = entry.rest
            if self._must_look_back(rest):
                return ReadEarlier(self._earlier)
            start, verdict = judge(self._known, rest, self._window)
            if start < len(rest):
                return self._append(time)
            if rest.first > self._known.last and not entry.sure:
                return self._make_sure(entry)  # out of order, if that is still so
            self._settle_first(entry, len(rest), verdict.refusals)
        return None

    def _settle_first(self, entry: Unsettled, count: int, refusals: Any) -> None:
        entry.settle(count, refusals)
        self._answers.append((entry.judged, entry.verdict))
        self._entries.popleft()

    def _read_tail(self) -> ReadTail:
        self._state = _State.UNKNOWN
        for entry in self._entries:
            entry.fresh = True
        return ReadTail()

    def _make_sure(self, entry: Unsettled) -> ReadTail | Confirm:
        return Confirm() if entry.fresh else self._read_tail()

    def _must_look_back(self, batch: Batch) -> bool:
        """Whether a resend has to be compared with messages that were not read yet."""
        known = self._known
        oldest = known.last - len(known.checksums) + 1
        in_window = known.last - self._window + 1
        return bool(self._earlier) and batch.first < oldest and oldest > in_window

    def _append(self, time: bytes) -> Append:
        """Take as much of what waits as one message holds."""
        known = self._known
        self._rollback = known.last
        head = opening(time, self.client)
        lines: list[bytes] = []
        size = 0
        for entry in self._entries:
            if entry.batch is None:
                break
            rest = entry.rest
            start, verdict = judge(known, rest, self._window)
            if rest.first > known.last + 1 or (lines and self._must_look_back(rest)):
                break  # judged when this is stored
            skip = entry.done + start
            fragments = entry.fragments[skip:] if skip else entry.fragments
            whole = size + len(head) * len(fragments) + entry.size
            if len(lines) + len(fragments) <= self._most and whole <= MAX_PAYLOAD:
                lines += fragments
                size = whole  # a little more than it is, if a part was skipped
                count = start + len(fragments)
            else:
                count = start
                for fragment in fragments:
                    size += len(head) + len(fragment)
                    if lines and (len(lines) == self._most or size > MAX_PAYLOAD):
                        break
                    lines.append(fragment)
                    count += 1
            known.last += count - start
            known.checksums.extend(rest.checksums[start:count])
            self._taken.append(_Taken(entry, count, verdict.refusals))
            if count < len(rest):
                break
        self._state = _State.APPENDING
        payload = head + head.join(lines)
        return Append(
            self._sequence, self._rollback + 1, known.last, payload, batches=len(self._taken)
        )

    # --- what the engine said --------------------------------------------------------------

    def appended(self, result: Appended) -> None:
        """What became of the append that was requested."""
        self.requested = False
        taken, self._taken = self._taken, []
        if result.outcome is AppendOutcome.STORED:
            self._state = _State.KNOWN
            self.uncertain = 0
            self._late = None
            self._sequence = result.sequence
            self._trim()
            for one in taken:
                self._settle_taken(one)
            return
        known = self._known
        first, last = self._rollback + 1, known.last
        del known.checksums[len(known.checksums) - (last - self._rollback) :]
        known.last = self._rollback
        if result.outcome is AppendOutcome.UNKNOWN:
            self._state = _State.UNKNOWN
            self.uncertain += 1
            self._counts.unknown[result.cause] += 1
            self._doubt = _Doubt(self._sequence, first, last, result.conflicting)
            if not self._entries:
                self._give_up_doubt()  # nobody waits for it any more
            return
        self._state = _State.KNOWN
        for one in taken:
            if one.entry.batch is not None:
                rest = one.entry.rest
                verdict = judge_without_room(known, rest, self._window, result.reason)
                self._counts.refused["full"] += sum(
                    refusal.stop - refusal.start
                    for refusal in verdict.refusals
                    if refusal.code is NackCode.NOT_STORED
                )
                self._settle_first(one.entry, len(rest), verdict.refusals)

    def _settle_taken(self, taken: _Taken) -> None:
        entry = taken.entry
        if entry.batch is None:
            return  # nobody waits for it any more
        if entry.done + taken.count == len(entry.batch):
            self._settle_first(entry, taken.count, taken.refusals)
        else:
            entry.settle(taken.count, taken.refusals)

    def _trim(self) -> None:
        known = self._known
        excess = len(known.checksums) - self._window
        if excess > self._window // 4:  # cutting an array moves all of it
            del known.checksums[:excess]

    def unread(self) -> None:
        """The engine could not say what was to be read."""
        self.requested = False
        for entry in self._entries:
            entry.fresh = False

    def confirmed(self, sure: bool) -> None:
        """Whether the tail was read from who leads the stream; if not, it is read again."""
        self.requested = False
        for entry in self._entries:
            entry.sure = sure and entry.fresh
            entry.fresh = entry.sure

    def tail_read(self, message: StoredMessage | None, now: float) -> bool:
        """
        The client's last message, or none.

        @return: whether it can be so; if not, the engine is behind what it said before.
        """
        self.requested = False
        known = self._known
        if (message.last if message else 0) < known.last:
            if self.behind_since is None:
                self.behind_since = now
            for entry in self._entries:
                entry.fresh = False
            return False
        self.behind_since = None
        self._state = _State.KNOWN
        if message is not None and message.sequence != self._sequence:
            self._move(message)
        if self._doubt is not None:
            self._resolve(self._doubt, message)
        return True

    def _move(self, message: StoredMessage) -> None:
        known = self._known
        if message.previous == self._sequence and message.first == known.last + 1:
            known.checksums.extend(message.checksums)
        else:
            known.checksums = array("I", message.checksums)
            self._earlier = message.previous
        known.last = message.last
        self._sequence = message.sequence
        self._trim()

    def earlier_read(self, message: StoredMessage | None) -> None:
        """An earlier message; if it is not there any more, a resend of it is too old to compare."""
        self.requested = False
        known = self._known
        oldest = known.last - len(known.checksums) + 1
        if message is None or message.last != oldest - 1:
            self._earlier = 0
            return
        known.checksums = array("I", message.checksums) + known.checksums
        self._earlier = message.previous

    # --- what is counted of appends whose outcome was unknown --------------------------------

    def _resolve(self, doubt: _Doubt, tail: StoredMessage | None) -> None:
        """The tail was read after such an append."""
        self._doubt = None
        last = self._known.last
        if last >= doubt.last:
            found = Found.LANDED
        elif last >= doubt.first:
            found = Found.PARTLY
        else:
            found = Found.NOT_LANDED
        self._counts.found[found] += 1
        if doubt.conflicting:
            self._counts.conflicts[self._moved_by(doubt, tail)] += 1
            self._late = None
        elif found is Found.NOT_LANDED:
            self._late = doubt

    def _moved_by(self, doubt: _Doubt, tail: StoredMessage | None) -> Origin:
        if tail is None or tail.sequence == doubt.previous:
            return Origin.NOTHING
        late = self._late
        if late is not None and (tail.previous, tail.first, tail.last) == (
            late.previous,
            late.first,
            late.last,
        ):
            return Origin.LATE
        return Origin.ELSEWHERE

    def _give_up_doubt(self) -> None:
        if self._doubt is not None:
            self._doubt = None
            self._counts.found[Found.GAVE_UP] += 1


def _nobody(result: object) -> None:
    """Take an answer that nobody waits for."""
