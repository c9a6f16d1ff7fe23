"""What C{tail} and C{cat} show of a stream: the same of it as of a file."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Iterable
from math import inf
from pathlib import Path
from typing import Any

import click

from .._errors import MsglogError, RecordError
from .._jetstream import API, EngineError, StreamDamaged
from .._nats_access import DEFAULT_STREAM, NatsAccess, is_nats, parse_nats
from .._records import Record
from .._retiming import retimed
from ._console import fail
from ._display import Display
from ._nats_options import no_stream, see_to_nats
from ._selection import Selection
from ._stdout import wait_while_read

__all__ = ["LogOrStream", "see_no_stream", "show_stream"]

# How often a followed stream is asked for more, seconds: at once for a person, and little work.
_POLL_SECONDS = 0.2

# How long nobody may answer before that is an error, where nothing is followed.
_PATIENCE_SECONDS = 30.0


class LogOrStream(click.ParamType):  # type: ignore[type-arg] # generic in newer versions only
    """A file, or where a stream is."""

    name = "file"

    def convert(self, value: Any, param: Any, ctx: Any) -> Path | NatsAccess:
        if isinstance(value, Path | NatsAccess):
            return value
        if not is_nats(value):
            return Path(value)
        try:
            return parse_nats(value)
        except ValueError as e:
            self.fail(str(e), param, ctx)


def see_no_stream(stream: str, api: str, **files: Path | None) -> None:
    """Refuse options that are for a stream where a file is read."""
    if stream != DEFAULT_STREAM or api != API or any(files.values()):
        raise click.UsageError(
            "--stream, --api, --credentials, --…-file and --tls-… are for nats://…"
        )


def show_stream(
    access: NatsAccess,
    stream: str,
    count: int | None,
    selection: Selection,
    display: Display,
    *,
    follow: bool = False,
) -> int:
    """
    Show the records of a stream.

    @param count: only so many of the last ones; L{None}: all.
    @param follow: go on with what comes.
    @return: the exit status.
    """
    see_to_nats()
    try:
        asyncio.run(_Shown(access, stream, selection, display).show(count, follow))
    except EngineError as e:
        display.flush()
        fail(no_stream(access, stream) if e.missing else f"{access}: {e}")
    except MsglogError as e:
        display.flush()
        fail(str(e))
    except KeyboardInterrupt:
        display.flush()
        return 130
    display.flush()
    display.remarks.summary()
    return 1 if display.remarks.damaged else 0


class _Shown:
    """
    The way of a stream's messages to the display.

    Times that would go back are moved as C{msglog export} does it.
    """

    def __init__(
        self, access: NatsAccess, stream: str, selection: Selection, display: Display
    ) -> None:
        self._access = access
        self._stream = stream
        self._selection = selection
        self._display = display
        self._time = 0

    async def show(self, count: int | None, follow: bool) -> None:
        """Show what is there, and what comes."""
        from .._stream_following import StreamFollower
        from .._stream_reader import StreamReader
        from .._stream_seeking import message_of_last, message_of_time

        remarks, selection = self._display.remarks, self._selection
        patience = inf if follow else _PATIENCE_SECONDS
        async with StreamReader(self._access, self._stream, "msglog tail") as reader:
            info = await reader.info()
            source = StreamFollower(reader, self._stream, info, remarks.say, patience=patience)
            begin, end = source.first, source.end + 1
            if selection.since is not None:
                begin = await message_of_time(source, selection.since)
            if count == 0:
                begin = end
            elif count is not None:
                begin = await message_of_last(source, count, self._is_wanted, begin)
            last: deque[tuple[bytes, Record]] = deque(maxlen=count)
            async for sequence, data in source.messages(begin, end):
                if count is None:
                    self._write(self._records(sequence, data))
                else:
                    last.extend(self._records(sequence, data))
                if selection.until is not None and self._time >= selection.until:
                    break
            self._write(last)
            self._display.flush()
            source.position = end - 1
            while follow and wait_while_read(0):
                found = await source.poll()
                before = self._display.count
                for sequence, data in found:
                    self._write(self._records(sequence, data))
                if self._display.count != before:
                    self._display.flush()
                if not found:
                    await asyncio.sleep(_POLL_SECONDS)

    def _is_wanted(self, line: bytes) -> bool:
        try:
            return self._selection.everything or self._selection.record_of(line) is not None
        except RecordError:
            return False

    def _records(self, sequence: int, data: bytes) -> Iterable[tuple[bytes, Record]]:
        try:
            self._time, text = retimed(sequence, data, self._time)
        except StreamDamaged as e:
            self._display.remarks.unreadable(f"{e}; it is left out")
            return ()
        lines = enumerate(text.splitlines(keepends=True))
        return self._selection.shown(Path(self._stream), lines, self._display.remarks)

    def _write(self, records: Iterable[tuple[bytes, Record]]) -> None:
        for line, record in records:
            self._display.write(line, record)
