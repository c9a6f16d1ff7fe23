"""
A log brought into a stream, so that its clients go on there.

Theory of operation.  Each run of the log (L{LogRun<msglog._log_runs.LogRun>}) becomes a message of
the stream, on the same condition as a front-end's: that the client's last message is still the one
it is believed to be.  So nothing can be there twice, and what is there says by itself how far an
import has come, whatever ended it: nothing else is kept anywhere.

Runs are sent in the order of the log over one connection, many at a time but one of a client, and a
stream keeps that order.  When one fails, or its answer is lost, no more are sent; when all those
under way are answered, the failed ones are looked for and sent again in their order, alone.  Only
then it goes on.  So no client's messages ever change places, and of different clients only some
that were under way at the same moment when a server died.

What of the log is in the stream before the first run is sent, from an earlier attempt or because
clients went on there already, is compared with it, message by message: the checksums that say
that a message is the same one are read in the order of the stream, and kept until the log comes to
them.  That order is the log's own, so there are few at a time.
"""

from __future__ import annotations

import asyncio
import time
from array import array
from collections.abc import Awaitable, Callable, Iterator, Mapping
from typing import Protocol

from attrs import Factory, define, frozen

from ._counted import counted
from ._errors import MsglogError, RecordError
from ._jetstream import (
    Appended,
    AppendOutcome,
    EngineError,
    Reply,
    StoredMessage,
    StreamDamaged,
    append_headers,
    get_subject,
    read_append,
    read_stored,
    tail_request,
)
from ._log_runs import LogRun
from ._records import client_text, parse_line
from ._shards import StreamShard

__all__ = ["Extent", "IEngine", "Import", "ImportFailed", "ImportRefused"]

# Requests under way at a time: a server with a disk that syncs in 5 ms is kept busy by fewer.
MAX_UNDER_WAY = 256

# Bytes under way at a time, so that the last of them is answered in time by a slow disk.
MAX_BYTES_UNDER_WAY = 8 * 1024 * 1024

# What a message takes besides its lines: subject and headers.
_OVERHEAD = 1024

# Between two questions that were not answered.
_RETRY_SECONDS = 0.2


class ImportRefused(MsglogError):
    """The log cannot be brought into this stream; the text says why, and what to do."""


class ImportFailed(MsglogError):
    """The import cannot go on now; run again it goes on where it was."""


class IEngine(Protocol):
    """What an import asks: a L{StreamReader<msglog._stream_reader.StreamReader>}."""

    @property
    def max_payload(self) -> int: ...

    async def send(
        self, subject: str, payload: bytes, headers: dict[str, str] | None = None
    ) -> Awaitable[Reply]: ...

    async def fetch(self, sequence: int) -> list[tuple[int, bytes]]: ...


@frozen(slots=True)
class Extent:
    """A client's first and last sequence in the log."""

    first: int
    last: int


@define(slots=True, eq=False)
class _End:
    """
    What the stream has of a client.

    @ivar sequence: of its last message in the stream; 0 if there is none.
    @ivar last: the client's last sequence there.
    """

    sequence: int = 0
    last: int = 0


@define(slots=True, eq=False)
class _UnderWay:
    """A run that was sent."""

    number: int
    run: LogRun
    end: _End


class Import:
    """
    @param engine: where the stream is.
    @param stream: its name.
    @param clients: what the log has of each client.
    @param partial: whether a client that is not in the stream may begin above 1.
    @param patience: seconds without an answer that is of use, after which it is given up.
    @param retry_seconds: between two questions that were not answered.
    @ivar stored: how many messages of clients were put into the stream.
    @ivar found: how many of the log were in it.
    @ivar carried_on: how many clients have later messages in the stream than in the log.
    """

    def __init__(
        self,
        engine: IEngine,
        stream: str,
        clients: Mapping[bytes, Extent],
        *,
        partial: bool = False,
        patience: float = 30.0,
        retry_seconds: float = _RETRY_SECONDS,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._engine = engine
        self._stream = stream
        self._subject_of = StreamShard.of_name(stream).subject_of
        self._clients = clients
        self._partial = partial
        self._patience = patience
        self._retry_seconds = retry_seconds
        self._clock = clock
        self._progress = clock()
        self._ends: dict[bytes, _End] = {}
        self._before: dict[bytes, int] = {}  # the last sequences that were there at the start
        self._overlap: _Overlap | None = None
        self._under_way: dict[bytes, _UnderWay] = {}
        self._bytes = 0
        self._failed: list[_UnderWay] = []
        self._number = 0
        self._settled = asyncio.Event()
        self.stored = 0
        self.found = 0
        self.carried_on = 0

    async def begin(self, *, empty: bool) -> None:
        """
        See what the stream has of the log's clients, before anything is put there.

        @param empty: whether the stream has no messages at all.
        @raise ImportRefused: the log does not go on where the stream ends.
        @raise ImportFailed: the engine does not say.
        """
        if empty:
            self._ends = {client: _End() for client in self._clients}
        else:
            waiting = iter(self._clients)
            await asyncio.gather(*(self._read_ends(waiting) for _ in range(MAX_UNDER_WAY)))
        self._see_beginnings()
        wanted = {}
        for client, extent in self._clients.items():
            end = self._ends[client]
            self.carried_on += end.last > extent.last
            if end.last >= extent.first:
                self._before[client] = end.last
                wanted[client] = Extent(extent.first, min(end.last, extent.last))
        if wanted:
            up_to = max(self._ends[client].sequence for client in wanted)
            self._overlap = _Overlap(self._fetch, wanted, up_to)

    async def _read_ends(self, clients: Iterator[bytes]) -> None:
        for client in clients:
            message = await self._read_tail(client)
            self._ends[client] = _End(message.sequence, message.last) if message else _End()

    def _see_beginnings(self) -> None:
        new, gaps = [], []
        for client, extent in self._clients.items():
            last = self._ends[client].last
            if last and extent.first > last + 1:
                gaps.append(
                    f"the stream has {client_text(client)} up to {last}, and the log has it from "
                    f"{extent.first} on"
                )
            elif not last and extent.first > 1 and not self._partial:
                new.append(f"{client_text(client)} begins with {extent.first}")
        if gaps:
            raise ImportRefused(
                f"{_first_of(gaps)}: what is between is in older files; name these before, or use "
                f"--rotated, which finds those that lie beside the log"
            )
        if new:
            raise ImportRefused(
                f"{_first_of(new)}: what is before is in older files; name these before, or use "
                f"--rotated, which finds those that lie beside the log. Where they are gone for "
                f"good, --partial lets clients begin above 1"
            )

    async def put(self, run: LogRun) -> None:
        """
        The next run of the log; it is in the stream when L{finish} has returned.

        @raise ImportRefused: the stream has something else in its place.
        @raise ImportFailed: it cannot go on now.
        """
        before = self._before.get(run.client, 0)
        if run.first <= before:
            await self._compare(run, min(run.last, before))
            self.found += min(run.last, before) - run.first + 1
            if run.last <= before:
                return
            run = run.behind(before)
        if run.size + _OVERHEAD > self._engine.max_payload:
            raise ImportRefused(
                f"message {run.first} of {client_text(run.client)} takes {run.size} bytes as a "
                f"line, and the servers take {self._engine.max_payload}: raise their max_payload; "
                f"what comes before it is in the stream"
            )
        while run.client in self._under_way or not self._has_room(run):
            await self._wait()
        if self._failed:
            await self._settle_all()
        self._number += 1
        sent = _UnderWay(self._number, run, self._ends[run.client])
        self._under_way[run.client] = sent
        self._bytes += run.size
        answer = await self._send(sent)
        asyncio.ensure_future(answer).add_done_callback(
            lambda done: None if done.cancelled() else self._answered(sent, done.result())
        )

    async def finish(self) -> None:
        """
        Wait until all runs are in the stream.

        @raise ImportRefused: the stream has something else in the place of one.
        @raise ImportFailed: it cannot go on now.
        """
        await self._settle_all()

    def _has_room(self, run: LogRun) -> bool:
        return not self._under_way or (
            len(self._under_way) < MAX_UNDER_WAY and self._bytes + run.size <= MAX_BYTES_UNDER_WAY
        )

    async def _wait(self) -> None:
        self._settled.clear()
        await self._settled.wait()

    async def _send(self, sent: _UnderWay) -> Awaitable[Reply]:
        run = sent.run
        headers = append_headers(self._stream, sent.end.sequence, run.first, run.last)
        return await self._engine.send(self._subject_of(run.client), b"".join(run.lines), headers)

    def _answered(self, sent: _UnderWay, reply: Reply) -> None:
        del self._under_way[sent.run.client]
        self._bytes -= sent.run.size
        result = read_append(reply, self._stream, sent.end.sequence)
        if result.outcome is AppendOutcome.STORED:
            self._note(sent, result.sequence)
        else:
            self._failed.append(sent)
        self._settled.set()

    def _note(self, sent: _UnderWay, sequence: int) -> None:
        sent.end.sequence, sent.end.last = sequence, sent.run.last
        self.stored += len(sent.run.lines)
        self._progress = self._clock()

    # --- when something failed -------------------------------------------------------------

    async def _settle_all(self) -> None:
        """Wait for all that are under way, and see to those that failed, in their order."""
        while self._under_way:
            await self._wait()
        failed, self._failed = sorted(self._failed, key=lambda sent: sent.number), []
        for sent in failed:
            while not await self._has_landed(sent):
                result = read_append(
                    await (await self._send(sent)), self._stream, sent.end.sequence
                )
                if result.outcome is AppendOutcome.STORED:
                    self._note(sent, result.sequence)
                    break
                await self._see_refused(result)

    async def _see_refused(self, result: Appended) -> None:
        if result.outcome is AppendOutcome.NO_ROOM:
            raise ImportFailed(
                f"the stream takes no more: {result.reason}. Make room, and run this again: it "
                f"goes on where it was"
            )
        await self._pause(result.reason)

    async def _has_landed(self, sent: _UnderWay) -> bool:
        """Whether a run is in the stream whose answer was none, or none of use."""
        run, end = sent.run, sent.end
        while True:
            message = await self._read_tail(run.client)
            if (message.sequence if message else 0) == end.sequence:
                return False
            if message is not None and message.last > end.last:
                break
            await self._pause(
                f"the stream has less of {client_text(run.client)} than it had: those "
                f"up to {end.last} were there"
            )
        same = (message.first, message.last, list(message.checksums))
        if message.previous != end.sequence or same != (run.first, run.last, run.checksums):
            raise ImportFailed(
                f"somebody else writes messages of {client_text(run.client)} into the stream: run "
                f"this again, to see whether they are those of the log"
            )
        self._note(sent, message.sequence)
        return True

    async def _read_tail(self, client: bytes) -> StoredMessage | None:
        subject = self._subject_of(client)
        while True:
            answer = await self._engine.send(get_subject(self._stream), tail_request(subject))
            try:
                message = read_stored(await answer, client, subject)
            except EngineError as e:
                await self._pause(str(e))
            except StreamDamaged as e:
                raise ImportRefused(str(e)) from None
            else:
                return message

    async def _fetch(self, sequence: int) -> list[tuple[int, bytes]]:
        """Messages of the stream from a sequence on, at least one."""
        while True:
            reason = "no replica has it"
            try:
                found = await self._engine.fetch(sequence)
            except EngineError as e:
                found, reason = [], str(e)
            if found:
                self._progress = self._clock()
                return found
            await self._pause(f"message {sequence} of the stream cannot be read: {reason}")

    async def _pause(self, reason: str) -> None:
        """Before another attempt; there is none if nothing has gone on for too long."""
        if self._clock() - self._progress > self._patience:
            raise ImportFailed(
                f"nothing went on for {self._patience:g} s: {reason}. Run this again: it goes on "
                f"where it was"
            )
        await asyncio.sleep(self._retry_seconds)

    # --- what is there already -------------------------------------------------------------

    async def _compare(self, run: LogRun, last: int) -> None:
        """See that the stream has the messages of a run, up to one."""
        assert self._overlap is not None
        count = last - run.first + 1
        stored = await self._overlap.take(run.client, run.first, count)
        for sequence, line, checksum in zip(
            range(run.first, last + 1), run.lines, stored, strict=False
        ):
            if parse_line(line).checksum != checksum:
                raise ImportRefused(
                    f"the stream has another message {sequence} of {client_text(run.client)} than "
                    f"the log: its id was used twice, and one stream cannot have both"
                )


@define(slots=True, eq=False)
class _Overlap:
    """
    The checksums of what is both in the log and in the stream, read as the log asks for them.

    @ivar fetch: gives messages of the stream from a sequence on.
    @ivar wanted: which sequences of which clients.
    @ivar up_to: the last message of the stream that has one of them.
    """

    fetch: Callable[[int], Awaitable[list[tuple[int, bytes]]]]
    wanted: Mapping[bytes, Extent]
    up_to: int
    _position: int = 0
    _read: dict[bytes, array[int]] = Factory(dict)
    _next: dict[bytes, int] = Factory(dict)

    async def take(self, client: bytes, first: int, count: int) -> list[int]:
        """The next so many checksums of a client, of its messages from C{first} on."""
        while len(self._read.get(client, ())) < count:
            if self._position >= self.up_to:
                raise ImportRefused(
                    f"the stream does not have message {first} of {client_text(client)}, though it "
                    f"has later ones: messages were deleted from it"
                )
            for sequence, data in await self.fetch(self._position + 1):
                self._take_in(sequence, data)
        read = self._read[client]
        taken = read[:count].tolist()
        del read[:count]
        return taken

    def _take_in(self, sequence: int, data: bytes) -> None:
        if sequence != self._position + 1:
            raise ImportRefused(
                f"message {self._position + 1} of the stream is missing, the next is {sequence}: "
                f"somebody has deleted from it"
            )
        self._position = sequence
        for line in data.splitlines():
            try:
                record = parse_line(line)
            except RecordError as e:
                raise ImportRefused(
                    f"message {sequence} of the stream is not msglog's: {e}"
                ) from None
            extent = self.wanted.get(record.client)
            if extent is None or not extent.first <= record.sequence <= extent.last:
                continue
            expected = self._next.get(record.client, extent.first)
            if record.sequence > expected == extent.first:
                raise ImportRefused(
                    f"the stream begins with {record.sequence} of {client_text(record.client)}, "
                    f"and the log with {expected}: the stream was begun without the first files "
                    f"of the log (--partial). They cannot be put before it: import all files into "
                    f"a new stream"
                )
            if record.sequence != expected:
                raise ImportRefused(
                    f"message {sequence} of the stream has {record.sequence} of "
                    f"{client_text(record.client)}, and not {expected}"
                )
            self._next[record.client] = expected + 1
            self._read.setdefault(record.client, array("I")).append(record.checksum)


def _first_of(texts: list[str]) -> str:
    others = len(texts) - 1
    if not others:
        return texts[0]
    return f"{texts[0]} (and so {counted(others, 'other client is', 'other clients are')})"
