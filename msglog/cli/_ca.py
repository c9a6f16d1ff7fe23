"""C{msglog ca}: certificates for a server and its clients, from a small authority in a folder."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar
from uuid import UUID

import click

from ._console import fail

__all__ = ["command"]

_Function = TypeVar("_Function", bound=Callable[..., Any])

_FOLDER = click.argument("folder", type=click.Path(path_type=Path, file_okay=False))


def _days(default: int) -> Callable[[_Function], _Function]:
    return click.option(
        "--days",
        type=click.IntRange(1, 36500),
        default=default,
        show_default=True,
        help="How long it is good for.",
    )


@click.group(name="ca")
def command() -> None:
    """
    Make certificates for a server and its clients.

    For a test, or for the few machines of one installation. Whoever has the folder can make more:
    keep it where the server is not.

    \b
    Examples:
      msglog ca init certs
      msglog ca server certs log.example.org 192.0.2.7
      msglog ca client certs billing
      msglog ca client certs gateway --relay

    \b
    Exit status: 0, it was made; 1, it was not; 2, the command line is wrong.
    """
    try:
        import cryptography  # noqa: F401 - to see whether it is there
    except ImportError:
        fail("certificates need more than the server: pip install 'msglog[tls]'")


@command.command()
@_FOLDER
@_days(3650)
def init(folder: Path, days: int) -> None:
    """Make an authority: FOLDER/ca.pem, which servers and clients get, and FOLDER/ca-key.pem."""
    from .._authority import AuthorityError, init_authority

    try:
        path = init_authority(folder, days)
    except AuthorityError as e:
        fail(str(e))
    click.echo(f"{path}: give it to the server (--tls-client-ca) and to clients (--tls-ca)")
    click.echo(f"{path.with_name('ca-key.pem')}: give it to nobody")


@command.command()
@_FOLDER
@click.argument("hosts", nargs=-1, required=True, metavar="HOST...")
@_days(365)
def server(folder: Path, hosts: tuple[str, ...], days: int) -> None:
    """Make a certificate for a server, for every name and address that clients know it by."""
    from .._authority import AuthorityError, issue_server

    try:
        path = issue_server(folder, hosts, days)
    except (AuthorityError, ValueError) as e:
        fail(str(e))
    click.echo(f"{path}: --tls-certificate of the server")
    click.echo(f"{path.with_name(path.stem + '-key.pem')}: its --tls-key")


@command.command()
@_FOLDER
@click.argument("name")
@click.option(
    "--id",
    "ids",
    type=click.UUID,
    multiple=True,
    help="A client id that it may write; repeat it for more. A new one if not given.",
)
@click.option("--relay", is_flag=True, help="It may write any client id, for those behind it.")
@_days(365)
def client(folder: Path, name: str, ids: tuple[UUID, ...], relay: bool, days: int) -> None:
    """Make a certificate for a client, for the client ids that it may write."""
    from uuid_utils.compat import uuid7

    from .._authority import AuthorityError, issue_client

    clients = ids or (() if relay else (uuid7(),))
    try:
        path = issue_client(folder, name, clients, relay, days)
    except AuthorityError as e:
        fail(str(e))
    click.echo(f"{path}: --tls-certificate of the client")
    click.echo(f"{path.with_name(path.stem + '-key.pem')}: its --tls-key")
    for one in clients:
        click.echo(f"{one}: a client id that it may write (--client)")
    if relay:
        click.echo("it may write any client id")
