"""How C{tail} and C{cat} show a record: the options that say so, and the bytes that come of it."""

from __future__ import annotations

import functools
import os
import sys
from collections.abc import Callable
from typing import Any, TypeVar
from zlib import crc32

import click

from .._records import Record, client_text, format_time
from ._remarks import Remarks

__all__ = ["Display", "display_options"]

_RESET, _DIM, _REVERSE = "\x1b[0m", "\x1b[2m", "\x1b[7m"
# Clients differ in colour: green, yellow, magenta, cyan, light blue.  Red is for what is wrong, and
# blue is not to be read on black.
_CLIENT_COLOURS = tuple(f"\x1b[{code}m" for code in (32, 33, 35, 36, 94))

_Decorated = TypeVar("_Decorated", bound=Callable[..., Any])


class Display:
    """
    Writes records to stdout.

    @param as_json: as the log has them.
    @param raw: their bodies alone, exactly.
    @param null: end each body with a NUL and not a newline.
    @param full_ids: show client ids in full.
    @param colours: whether to use them; L{None}: on a terminal, unless NO_COLOR says otherwise.
    @ivar count: how many were written.
    """

    def __init__(
        self, as_json: bool, raw: bool, null: bool, full_ids: bool, colours: bool | None
    ) -> None:
        if null and not raw:
            raise click.UsageError("--null is for --raw: other output has a record a line anyway")
        if as_json and raw:
            raise click.UsageError("--json and --raw exclude each other")
        self._stdout = sys.stdout.buffer
        self._encoding = sys.stdout.encoding or "utf-8"
        self._full_ids = full_ids
        self._coloured = _is_for_eyes() if colours is None else colours
        self._end = b"\0" if null else b"\n"
        self.count = 0
        self._format: Callable[[bytes, Record], bytes] = self._readable
        if as_json:
            self._format = self._as_it_is
        elif raw:
            self._format = self._body
        self.remarks = Remarks(self.flush)
        # A commit's records follow each other, and clients come again: 4 µs saved of 10.
        self._time_shown = functools.lru_cache(maxsize=1)(self._show_time)
        self._client_shown = functools.lru_cache(maxsize=1024)(self._show_client)

    def write(self, line: bytes, record: Record) -> None:
        """Show a record."""
        self._stdout.write(self._format(line, record))
        self.count += 1

    def flush(self) -> None:
        """Bring out what was written."""
        self._stdout.flush()

    def _as_it_is(self, line: bytes, record: Record) -> bytes:
        return line

    def _body(self, line: bytes, record: Record) -> bytes:
        return record.body + self._end

    def _readable(self, line: bytes, record: Record) -> bytes:
        time, client = self._time_shown(record.time), self._client_shown(record.client)
        text = f"{time} {client} {record.sequence} {self._harmless(record.body)}\n"
        return text.encode(self._encoding, "backslashreplace")

    def _show_time(self, time: int) -> str:
        text = format_time(time).decode()
        return f"{_DIM}{text}{_RESET}" if self._coloured else text

    def _show_client(self, client: bytes) -> str:
        text = client_text(client)
        if not self._full_ids:
            # The last group tells clients apart; ids of version 7 begin with the time, so that
            # those of clients that were started together begin alike.
            text = text[-12:]
        if self._coloured:
            return f"{_CLIENT_COLOURS[crc32(client) % len(_CLIENT_COLOURS)]}{text}{_RESET}"
        return text

    def _harmless(self, body: bytes) -> str:
        """A body with escapes for what could steer a terminal, mislead a reader, or is no text."""
        text = body.decode("utf-8", "surrogateescape")
        if text.isprintable():
            return text
        mark, unmark = (_REVERSE, _RESET) if self._coloured else ("", "")
        return "".join(c if c.isprintable() else f"{mark}{_escaped(c)}{unmark}" for c in text)


def _escaped(character: str) -> str:
    if "\udc80" <= character <= "\udcff":  # a byte that is not UTF-8
        return f"\\x{ord(character) - 0xDC00:02x}"
    return character.encode("unicode_escape").decode("ascii")


def _is_for_eyes() -> bool:
    return (
        sys.stdout.isatty()
        and not os.environ.get("NO_COLOR")
        and os.environ.get("TERM", "dumb") != "dumb"
    )


def _colours(ctx: click.Context, param: click.Parameter, value: str) -> bool | None:
    return {"auto": None, "always": True, "never": False}[value]


def display_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """The options; the command gets them as C{display}, a L{Display}."""

    @functools.wraps(command)
    def with_display(
        *args: Any,
        as_json: bool,
        raw: bool,
        null: bool,
        full_ids: bool,
        colours: bool | None,
        **others: Any,
    ) -> Any:
        return command(*args, display=Display(as_json, raw, null, full_ids, colours), **others)

    for option in reversed(
        [
            click.option("--json", "as_json", is_flag=True, help="The log's own lines."),
            click.option(
                "-r",
                "--raw",
                is_flag=True,
                help="Only the messages, byte for byte (and so not harmless to a terminal), each "
                "followed by a newline.",
            ),
            click.option(
                "-0",
                "--null",
                is_flag=True,
                help="With --raw: each followed by a NUL, since messages may have newlines.",
            ),
            click.option("-i", "--full-ids", is_flag=True, help="Client ids in full."),
            click.option(
                "--color",
                "--colour",
                "colours",
                type=click.Choice(["auto", "always", "never"]),
                callback=_colours,
                default="auto",
                show_default=True,
                help="auto: on a terminal, unless NO_COLOR is set.",
            ),
        ]
    ):
        with_display = option(with_display)
    return with_display
