"""
What the commands have in common: where systems write, what is kept of a run, and its options.

What is kept (C{--keep}) is a file of JSON in benchmarks/results for each command, from which the
charts and docs/benchmarks.md are made.
"""

from __future__ import annotations

import json
import shlex
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TypeVar

import click

from msglog.cli._console import fail

from ._machine import describe, not_a_disk
from ._measure import raise_limits
from ._systems import SYSTEMS, System

__all__ = [
    "RESULTS",
    "Bench",
    "bench",
    "options",
    "read_kept",
    "say",
    "server_options",
    "systems_option",
]

RESULTS = Path(__file__).parent / "results"

_Decorated = TypeVar("_Decorated", bound=Callable[..., Any])


def say(text: str) -> None:
    """Tell whoever waits how far it is."""
    click.echo(text, err=True)


class Bench:
    """
    One run of a command.

    @ivar folder: where systems write; deleted at the end.
    @ivar files: how many files a process may have open.
    """

    def __init__(self, name: str, folder: Path, stack: ExitStack, keep: bool) -> None:
        self.name, self.folder, self._keep = name, folder, keep
        self.enter = stack.enter_context
        self.files = raise_limits()
        self.about: dict[str, object] = {
            "date": datetime.now(UTC).isoformat(timespec="seconds"),
            "command": shlex.join(["python", "-m", "benchmarks", *_asked(sys.argv[1:])]),
            "machine": describe(folder),
        }

    def report(self, found: dict[str, Any], as_json: bool) -> None:
        """Keep what was found and print it, if that is asked for."""
        whole = {**self.about, **found}
        if self._keep:
            RESULTS.mkdir(exist_ok=True)
            (RESULTS / f"{self.name}.json").write_text(json.dumps(whole, indent=1) + "\n")
        if as_json:
            click.echo(json.dumps(whole, indent=1))


def _asked(words: Sequence[str]) -> Iterator[str]:
    """What was asked for, but for names that only this machine knows."""
    passed_over = False
    for word in words:
        if not passed_over and not word.startswith("--folder"):
            yield word
        passed_over = word == "--folder"


def read_kept(name: str) -> Any:
    """What was kept of a command; C{None} if nothing was."""
    path = RESULTS / f"{name}.json"
    return json.loads(path.read_text()) if path.exists() else None


@contextmanager
def bench(name: str, folder: Path | None, keep: bool) -> Iterator[Bench]:
    """
    A run, which ends every system that was started in it and deletes what they wrote.

    @param folder: on the disk that is to be measured; the system's folder for temporary files if
        not given.
    """
    with ExitStack() as stack:
        try:
            scratch = stack.enter_context(
                tempfile.TemporaryDirectory(prefix="msglog-benchmarks-", dir=folder)
            )
        except OSError as e:
            fail(f"nothing can be written to {folder}: {e.strerror}")
        kind = not_a_disk(Path(scratch))
        if kind is not None:
            say(
                f"msglog: {scratch} is {kind}, which syncs nothing: these are not the figures of "
                f"a disk; name a folder on one with --folder"
            )
        yield Bench(name, Path(scratch), stack, keep)


def _systems(ctx: click.Context, param: click.Parameter, value: str) -> list[System]:
    try:
        return [SYSTEMS[name] for name in value.split(",")]
    except KeyError as e:
        raise click.BadParameter(f"no system {e}; there are {', '.join(SYSTEMS)}") from None


def systems_option(default: Sequence[str]) -> Callable[[_Decorated], _Decorated]:
    return click.option(
        "--systems",
        metavar="NAMES",
        default=",".join(default),
        show_default=True,
        callback=_systems,
        help="Which to measure. What is not installed is left out, and named.",
    )


def _words(ctx: click.Context, param: click.Parameter, value: str) -> list[str]:
    try:
        return shlex.split(value)
    except ValueError as e:
        raise click.BadParameter(str(e)) from None


def server_options(command: _Decorated) -> _Decorated:
    return click.option(
        "--server-options",
        metavar="WORDS",
        default="",
        callback=_words,
        help="More options of twistd msglog, for msglog alone.",
    )(command)


def options(command: Callable[..., Any]) -> Callable[..., Any]:
    """The options of every command that measures."""
    for option in (
        click.option("--json", "as_json", is_flag=True, help="One JSON object, not a table."),
        click.option(
            "--keep",
            is_flag=True,
            help="Keep the figures in benchmarks/results, and make the charts and "
            "docs/benchmarks.md anew from all that is kept there.",
        ),
        click.option(
            "--folder",
            metavar="FOLDER",
            type=click.Path(exists=True, file_okay=False, path_type=Path),
            help="On the disk to measure; several GB, deleted afterwards.  [default: where "
            "temporary files go]",
        ),
        click.option("--quick", is_flag=True, help="A moment of everything, to see that it works."),
    ):
        command = option(command)
    return command
