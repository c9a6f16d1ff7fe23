"""Which files the reading subcommands read: arguments, and what was rotated away before them."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from itertools import pairwise
from pathlib import Path
from typing import Any, TypeVar

import click

from .._errors import LogUnreadable
from .._logfile import STDIN, LogFile, open_log, predecessors
from .._records import format_time
from ._console import fail, printable

__all__ = [
    "DEFAULT_LOG",
    "logs_argument",
    "opened",
    "rotated_option",
    "see_to_order",
    "sizes_on_disk",
    "with_predecessors",
]

# Where the server writes if it is not told otherwise.
DEFAULT_LOG = Path("messages.jsonl")

_Decorated = TypeVar("_Decorated", bound=Callable[..., Any])


def logs_argument(command: _Decorated) -> _Decorated:
    """The argument that names logs, C{files}; the default log if there is none."""
    return click.argument(
        "files",
        metavar="[FILE]...",
        nargs=-1,
        type=click.Path(path_type=Path),
        callback=_see_to_files,
    )(command)


def _see_to_files(ctx: Any, param: Any, files: tuple[Path, ...]) -> tuple[Path, ...]:
    for file in files:
        if str(file).startswith(("nats:/", "tls:/")):
            raise click.BadParameter("this reads files: make one of the stream with msglog export")
    return files


def rotated_option(command: _Decorated) -> _Decorated:
    """The option C{rotated}."""
    return click.option(
        "-a",
        "--rotated",
        is_flag=True,
        help="First the files that were rotated away from FILE and lie beside it, oldest first, "
        "compressed or not.",
    )(command)


def with_predecessors(
    files: Sequence[Path], rotated: bool, remark: Callable[[str], None]
) -> list[Path]:
    """The files to be read, in order, each once."""
    found: dict[Path, None] = {}
    for file in files or (DEFAULT_LOG,):
        if rotated and file != STDIN:
            found |= dict.fromkeys(predecessors(file, remark))
        found[file] = None
    return list(found)


def sizes_on_disk(files: Sequence[LogFile]) -> list[int]:
    """How long the files are as they lie there, compressed or not; 0 for a pipe."""
    return [os.fstat(file.fileno()).st_size for file in files]


@contextmanager
def opened(paths: Sequence[Path]) -> Iterator[list[LogFile]]:
    """All files opened at once, so that a rotation meanwhile changes nothing."""
    with ExitStack() as stack:
        try:
            files = [stack.enter_context(open_log(path)) for path in paths]
        except LogUnreadable as e:
            fail(str(e))
        yield files


def see_to_order(logs: Sequence[LogFile]) -> None:
    """Refuse files that are not given oldest first: everything in them would seem wrong."""
    times = [record.time if (record := log.first_record()) else None for log in logs]
    known = [(time, str(log.path)) for time, log in zip(times, logs, strict=True) if time]
    for (before, first), (after, second) in pairwise(known):
        if after < before:
            right = " ".join(name for _, name in sorted(known))
            raise click.UsageError(
                f"the files are not given oldest first: {printable(second)} begins at "
                f"{format_time(after).decode()}, before {printable(first)}, which begins at "
                f"{format_time(before).decode()}. Their order is: {printable(right)}"
            )
