"""A scan of logs: how many processes do it, and a bar on stderr, if anybody looks there."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from typing import Any, TypeVar

import click
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn

from .._logfile import LogFile
from .._parallel_scan import Scanned, scan_files, usable_processors
from ._console import printable, terminal

# From one look of the bar to the next, seconds: it moves, and drawing takes 1 % of the time.
REFRESH_SECONDS = 0.1

__all__ = ["jobs_option", "scanned_with_progress"]

_Decorated = TypeVar("_Decorated", bound=Callable[..., Any])


def jobs_option(help_text: str) -> Callable[[_Decorated], _Decorated]:
    """The option C{jobs}; C{help_text} says what the processes do."""
    return click.option(
        "-j",
        "--jobs",
        metavar="N",
        type=click.IntRange(1, 256),
        default=usable_processors,
        show_default="processors",
        help=help_text,
    )


def scanned_with_progress(
    files: Sequence[LogFile], sizes: Sequence[int], jobs: int
) -> Iterator[Scanned]:
    """
    The results of a scan.

    @param sizes: of the files on the disk; 0 where that is not known.
    """
    console = terminal()
    results = scan_files(files, jobs)
    if not console.is_terminal:
        with closing(results):
            yield from results
        return
    progress = Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        DownloadColumn(binary_units=True),
        TimeRemainingColumn(),
        console=console,
        transient=True,
        auto_refresh=False,  # which would take a thread, and the scan forks
    )
    refreshed = 0.0
    with closing(results), progress:
        task = progress.add_task("", total=sum(sizes) or None)
        for result in results:
            if result.consumed is not None:
                progress.update(
                    task,
                    completed=sum(sizes[: result.file]) + result.consumed,
                    description=printable(files[result.file].path.name),
                )
                if time.monotonic() - refreshed >= REFRESH_SECONDS:
                    refreshed = time.monotonic()
                    progress.refresh()
            yield result
