"""
Defects to plant in msglog, to see that the simulator finds them.

Each is a context in which one thing is wrong, as somebody might get it wrong.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import msglog._ledger
import msglog._protocol
import msglog._session
from msglog._batch import STORED, NackCode
from msglog._frames import FrameDecoder
from msglog._ledger import Ledger
from msglog._protocol import MessageLogProtocol
from msglog._recovery import Recovery
from msglog._session import Delivered, Session, State
from msglog._spooled import SpooledOutbox
from msglog._writer import LogWriter

__all__ = ["DEFECTS"]

Defect = Callable[[], AbstractContextManager[None]]
DEFECTS: dict[str, Defect] = {}


def _planted(owner: Any, name: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Make of a function, whose first argument is what it replaces, a defect."""

    def decorate(wrong: Callable[..., Any]) -> Callable[..., Any]:
        @contextmanager
        def plant() -> Iterator[None]:
            right = getattr(owner, name)
            setattr(owner, name, lambda *args, **kwargs: wrong(right, *args, **kwargs))
            try:
                yield
            finally:
                setattr(owner, name, right)

        DEFECTS[wrong.__name__] = plant
        return wrong

    return decorate


# --- the writer and its files --------------------------------------------------------------


@_planted(LogWriter, "_sync")
def ack_before_sync(right: Any, writer: LogWriter) -> None:
    writer._unsynced = False


@_planted(Recovery, "_make_durable")
def start_trusts_the_page_cache(right: Any, recovery: Recovery, fd: int, offset: int) -> None:
    pass


@_planted(Recovery, "_make_durable")
def start_syncs_and_does_not_look_at_the_disk(
    right: Any, recovery: Recovery, fd: int, offset: int
) -> None:
    recovery._disk.sync(fd)


@_planted(LogWriter, "_cut_back")
def what_found_no_room_stays_in_the_log(right: Any, writer: LogWriter) -> None:
    pass


@_planted(LogWriter, "_begin_file")
def a_new_file_is_not_noted_in_the_ledger(right: Any, writer: LogWriter, *args: Any) -> None:
    pass


@_planted(Recovery, "_finish_rotated")
def what_was_moved_away_is_not_read(right: Any, recovery: Recovery, coverage: Any) -> None:
    pass


@_planted(LogWriter, "_moment")
def time_goes_back_with_the_clock(right: Any, writer: LogWriter) -> int:
    return int(writer._clock() * 1e6)


# --- the ledger ----------------------------------------------------------------------------


@_planted(msglog._ledger, "judge")
def a_resend_is_written_twice(right: Any, state: Any, batch: Any, window: int) -> Any:
    if batch.first == state.last > 0:
        return 0, STORED
    return right(state, batch, window)


@_planted(msglog._ledger, "_compare")
def window_is_one_too_small(right: Any, state: Any, batch: Any, known: int, window: int) -> Any:
    return right(state, batch, known, window - 1)


@_planted(msglog._ledger, "_compare")
def window_is_one_too_large(right: Any, state: Any, batch: Any, known: int, window: int) -> Any:
    return right(state, batch, known, window + 1)


@_planted(msglog._ledger, "_compare")
def conflict_is_missed(right: Any, state: Any, batch: Any, known: int, window: int) -> Any:
    return [refusal for refusal in right(state, batch, known, window) if known == 1]


@_planted(Ledger, "_let_go")
def a_changed_row_is_forgotten(right: Any, ledger: Ledger) -> None:
    while ledger.memory > ledger._memory_limit and len(ledger._clients) > 1 and not ledger._staged:
        ledger.dirty.pop(next(iter(ledger._clients)), None)
        _, state = ledger._clients.popitem(last=False)
        ledger.memory -= msglog._ledger.CLIENT_BYTES + 4 * len(state.checksums)


@_planted(Ledger, "roll_back")
def a_nack_uses_up_a_sequence(right: Any, ledger: Ledger) -> None:
    ledger._staged.clear()


# --- connections ---------------------------------------------------------------------------


@_planted(MessageLogProtocol, "flush")
def answers_out_of_order(right: Any, connection: MessageLogProtocol) -> None:
    owed = sorted(connection._owed, key=lambda one: one.answer is None)
    connection._owed.clear()
    connection._owed.extend(owed)
    right(connection)


@_planted(FrameDecoder, "feed")
def a_piece_of_a_frame_is_lost(right: Any, decoder: FrameDecoder, data: bytes) -> Any:
    if decoder._pieces and len(data) < 3:
        decoder._pieces.clear()
    return right(decoder, data)


@_planted(msglog._protocol, "encode_terms")
def terms_are_one_ahead(right: Any, client: bytes, durable: int, *args: Any) -> bytes:
    return right(client, durable + 1, *args)


@_planted(MessageLogProtocol, "readConnectionLost")
def half_close_ends_all(right: Any, connection: MessageLogProtocol) -> None:
    connection._owed.clear()
    right(connection)


@_planted(MessageLogProtocol, "release")
def reading_does_not_go_on(right: Any, connection: MessageLogProtocol, reason: int) -> None:
    if reason != 1:  # what is unanswered
        right(connection, reason)


@_planted(msglog._protocol, "encode_acks")
def a_receipt_is_for_other_bytes(right: Any, heads: list[bytes]) -> bytes:
    if len(heads) > 3:
        heads = [*heads[:-1], heads[-2][:4] + heads[-1][4:]]
    answer: bytes = right(heads)
    return answer


# --- clients -------------------------------------------------------------------------------


@_planted(Session, "_take_out")
def client_drops_a_receipt(right: Any, session: Session, heads: list[bytes]) -> None:
    right(session, heads)
    event = session._events[-1]
    if isinstance(event, Delivered) and len(event.messages) > 2:
        del event.messages[-1], event.checksums[-1]


@_planted(Session, "_end_draining")
def client_sends_again_after_conflict(right: Any, session: Session) -> None:
    nack = session._nack
    if nack is not None and nack.code is NackCode.CONFLICT:
        session._nack, session._heads = None, []
        session.state = State.SENDING
    else:
        right(session)


@_planted(Session, "_agree")
def client_goes_on_from_the_terms(right: Any, session: Session, terms: Any) -> None:
    right(session, terms)
    if terms.durable >= session._first and session._in_flight:
        session._in_flight.pop(0)
        session._first += 1


@_planted(SpooledOutbox, "_added")
def spool_forgets_who_waits(right: Any, outbox: SpooledOutbox, places: Any, *args: Any) -> None:
    right(outbox, places, *args)
    if len(places) > 1:
        outbox._waiting.pop(places[-1], None)


@_planted(Session, "retry")
def client_stays_paused(right: Any, session: Session) -> None:
    pass
