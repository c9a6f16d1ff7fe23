"""Which records C{tail} and C{cat} show: the options that say so, and what they let through."""

from __future__ import annotations

import functools
import os
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

import click
from attrs import field, frozen

from .._errors import RecordError
from .._logfile import LogFile
from .._records import Record, client_text, format_time, parse_line
from ._moments import MOMENT
from ._remarks import Remarks

__all__ = ["Selection", "selection_options"]

# Fewer characters of a client id say nothing: one client in 65,536 fits by chance.
_LEAST_OF_CLIENT = 4

_UUID = re.compile(r"[0-9a-f]{32}")

_Decorated = TypeVar("_Decorated", bound=Callable[..., Any])


@frozen(slots=True)
class Selection:
    """
    What is to be shown.

    @ivar clients: beginnings or ends of client ids, any of which will do; none: all clients.
    @ivar since: no record before this time, microseconds since 1970.
    @ivar until: only records before this time.
    @ivar text: bytes that the body must have in it.
    """

    clients: tuple[bytes, ...] = ()
    since: int | None = None
    until: int | None = None
    text: bytes = b""
    # As the log has them, to be compared without parsing; ~ is above every time.
    _since_text: bytes = field(init=False)
    _until_text: bytes = field(init=False)

    @_since_text.default
    def _make_since_text(self) -> bytes:
        return b"" if self.since is None else format_time(self.since)

    @_until_text.default
    def _make_until_text(self) -> bytes:
        return b"~" if self.until is None else format_time(self.until)

    @property
    def everything(self) -> bool:
        """Whether there is no record that it leaves out."""
        return self == Selection()

    def record_of(self, line: bytes) -> Record | None:
        """
        The record of a line; L{None} if it is not to be shown.

        A line that visibly is of another client or time is not parsed: nobody asked for it, and
        whether it is whole is for C{verify} to say.

        @raise RecordError: it is damaged.
        """
        if line.startswith(b'{"time":"'):
            if self.clients and line[36:48] == b'","client":"' and not self._of_client(line[48:84]):
                return None
            if not self._since_text <= line[9:36] < self._until_text:
                return None
        record = parse_line(line)
        if self.clients and not self._of_client(client_text(record.client).encode()):
            return None
        if self.text not in record.body:
            return None
        return record

    def _of_client(self, text: bytes) -> bool:
        return text.startswith(self.clients) or text.endswith(self.clients)

    def files_within(self, files: Sequence[LogFile]) -> list[LogFile]:
        """Those of several files, oldest first, that can hold records of the times wanted."""
        firsts = [record.time if (record := file.first_record()) else None for file in files]
        within = []
        for file, first, following in zip(files, firsts, [*firsts[1:], None], strict=True):
            if (
                self.since is not None
                and first is not None
                and following is not None
                and first <= following <= self.since
            ):
                continue  # it ends before what follows it begins
            if self.until is not None and first is not None and first >= self.until:
                continue
            within.append(file)
        return within

    def shown(
        self, path: Path, lines: Iterable[tuple[int, bytes]], remarks: Remarks
    ) -> Iterator[tuple[bytes, Record]]:
        """The lines to be shown and their records; what is damaged is remarked on."""
        for offset, line in lines:
            if not line.endswith(b"\n"):
                remarks.unfinished(path, offset, len(line))
                continue
            try:
                record = self.record_of(line)
            except RecordError as e:
                remarks.damage(path, offset, e.reason)
                continue
            if record is not None:
                yield line, record


def _part_of_client(ctx: click.Context, param: click.Parameter, values: tuple[str, ...]) -> Any:
    parts = []
    for value in values:
        text = value.strip().lower()
        if _UUID.fullmatch(text):
            text = client_text(bytes.fromhex(text))
        if len(text) < _LEAST_OF_CLIENT or not set(text) <= set("0123456789abcdef-"):
            raise click.BadParameter(
                f"{value!r} is no client id, nor {_LEAST_OF_CLIENT} or more characters of one"
            )
        parts.append(text.encode())
    return tuple(parts)


def selection_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """The options; the command gets them as C{selection}, a L{Selection}."""

    @functools.wraps(command)
    def with_selection(
        *args: Any,
        clients: tuple[bytes, ...],
        since: int | None,
        until: int | None,
        text: str,
        **others: Any,
    ) -> Any:
        return command(
            *args, selection=Selection(clients, since, until, os.fsencode(text)), **others
        )

    for option in reversed(
        [
            click.option(
                "-c",
                "--client",
                "clients",
                metavar="ID",
                multiple=True,
                callback=_part_of_client,
                help="Only this client: its id, or how that begins or ends. May be repeated.",
            ),
            click.option(
                "-S",
                "--since",
                metavar="TIME",
                type=MOMENT,
                help="Only records of this time and after it.",
            ),
            click.option(
                "-U", "--until", metavar="TIME", type=MOMENT, help="Only records before this time."
            ),
            click.option(
                "-g",
                "--grep",
                "text",
                metavar="TEXT",
                default="",
                help="Only messages that have this text in them, as it is written.",
            ),
        ]
    ):
        with_selection = option(with_selection)
    return with_selection
