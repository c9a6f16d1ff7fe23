"""What all subcommands have in common: where they write, and how they name a server."""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, NoReturn, TypeVar

import click

if TYPE_CHECKING:
    from rich.console import Console

from .._printable import printable

__all__ = [
    "DEFAULT_SERVER",
    "fail",
    "printable",
    "remark",
    "server_option",
    "servers_option",
    "terminal",
    "tls_options",
]

DEFAULT_SERVER = "127.0.0.1:7514"

_Decorated = TypeVar("_Decorated", bound=Callable[..., Any])


def terminal(stream: IO[str] | None = None) -> Console:
    """
    A console for text as it is; see L{Terminal<msglog.cli._terminal.Terminal>}.

    @param stream: stderr if not given, where progress and remarks go, so that stdout has results.
    """
    # Not above: 20 ms that a ping need not wait for.
    from ._terminal import Terminal

    return Terminal(stream or sys.stderr)


class _Failure(click.ClickException):
    def show(self, file: IO[Any] | None = None) -> None:
        click.echo(f"msglog: {printable(self.message)}", file=file, err=file is None)


def fail(reason: str) -> NoReturn:
    """End with status 1 and one line on stderr that says what is wrong and what to do."""
    raise _Failure(reason)


def remark(text: str) -> None:
    """Say something on stderr; that it cannot be written changes nothing about what is done."""
    with suppress(OSError):
        click.echo(f"msglog: {printable(text)}", err=True)


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


def tls_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """The options that say how to speak TLS; the command gets them as C{tls}, L{TLS} or C{None}."""
    file = click.Path(dir_okay=False, path_type=Path)
    options = [
        click.option(
            "--tls",
            "use",
            is_flag=True,
            envvar="MSGLOG_TLS",
            help="Speak TLS with the server; each of the following says so too.",
        ),
        click.option(
            "--tls-ca",
            "ca",
            type=file,
            envvar="MSGLOG_TLS_CA",
            help="PEM file of the authorities to trust, if not those of the system.",
        ),
        click.option(
            "--tls-certificate",
            "certificate",
            type=file,
            envvar="MSGLOG_TLS_CERTIFICATE",
            help="PEM file of our own certificate, for a server that asks for one.",
        ),
        click.option(
            "--tls-key",
            "key",
            type=file,
            envvar="MSGLOG_TLS_KEY",
            help="PEM file of its private key.",
        ),
        click.option(
            "--tls-server-name",
            "name",
            envvar="MSGLOG_TLS_SERVER_NAME",
            help="The name that the server must prove, if not the one it is connected by.",
        ),
    ]

    @functools.wraps(command)
    def with_tls(
        *args: Any,
        use: bool,
        ca: Path | None,
        certificate: Path | None,
        key: Path | None,
        name: str | None,
        **others: Any,
    ) -> Any:
        tls = None
        if use or ca or certificate or key or name:
            from .._client_tls import TLS

            tls = TLS(ca=ca, certificate=certificate, key=key, server_name=name)
        return command(*args, tls=tls, **others)

    for option in reversed(options):
        with_tls = option(with_tls)
    return with_tls
