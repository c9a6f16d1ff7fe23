"""What all subcommands have in common: where they write, and how they name a server."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import IO, Any, NoReturn, TypeVar

import click
from rich.console import Console

__all__ = ["DEFAULT_SERVER", "fail", "printable", "server_option", "servers_option", "terminal"]

DEFAULT_SERVER = "127.0.0.1:7514"

_Decorated = TypeVar("_Decorated", bound=Callable[..., Any])


def terminal(stream: IO[str] | None = None) -> Console:
    """
    A console that writes text as it is: no markup, no emoji, no colours of its own choice.

    @param stream: stderr if not given, where progress and remarks go, so that stdout has results.
    """
    return Console(file=stream or sys.stderr, markup=False, emoji=False, highlight=False)


class _Failure(click.ClickException):
    def show(self, file: IO[Any] | None = None) -> None:
        click.echo(f"msglog: {printable(self.message)}", file=file, err=file is None)


def fail(reason: str) -> NoReturn:
    """End with status 1 and one line on stderr that says what is wrong and what to do."""
    raise _Failure(reason)


def printable(text: str) -> str:
    """Text without what could steer a terminal: each such character as an escape, C{\\x1b}."""
    if text.isprintable():
        return text
    return "".join(
        c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in text
    )


def servers_option(help_text: str) -> Callable[[_Decorated], _Decorated]:
    """The option that names servers; C{help_text} says what becomes of several."""
    return click.option(
        "-s",
        "--server",
        "servers",
        metavar="HOST:PORT",
        multiple=True,
        default=(DEFAULT_SERVER,),
        envvar="MSGLOG_SERVER",
        show_default=True,
        show_envvar=True,
        help=help_text,
    )


server_option = servers_option(
    "Where the server is; repeat it for others to go to when it is away."
)
