"""How a command is told where NATS is, and who it is to it."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click
from attrs import evolve

from .._jetstream import API
from .._nats_access import DEFAULT_STREAM, NatsAccess, TLSFiles, parse_nats
from ._console import fail

__all__ = [
    "NATS_URL",
    "complete_access",
    "nats_access",
    "nats_options",
    "no_stream",
    "reading_options",
    "see_to_nats",
]

_Function = TypeVar("_Function", bound=Callable[..., Any])

# Words with dots between them, and no wildcards.
_SUBJECT = re.compile(r"[^\s.*>]+(\.[^\s.*>]+)*")

_FILE = click.Path(path_type=Path, dir_okay=False)


class _Url(click.ParamType):  # type: ignore[type-arg] # generic in newer versions only
    name = "url"

    def convert(self, value: Any, param: Any, ctx: Any) -> NatsAccess:
        try:
            return parse_nats(value)
        except ValueError as e:
            self.fail(str(e), param, ctx)


NATS_URL = _Url()


def nats_options(function: _Function) -> _Function:
    """Add the options beside a URL; C{complete_access} takes them."""
    for decorate in (
        click.option("--tls-key", type=_FILE, help="PEM file: its private key."),
        click.option("--tls-certificate", type=_FILE, help="PEM file: what to show the servers."),
        click.option("--tls-ca", type=_FILE, help="PEM file: who issued their certificates."),
        click.option(
            "--password-file",
            type=_FILE,
            help="A file with the password of the user USER in nats://USER@HOST:PORT.",
        ),
        click.option("--token-file", type=_FILE, help="A file with a token."),
        click.option("--credentials", type=_FILE, help="A credentials file (.creds)."),
        click.option(
            "--stream",
            default=DEFAULT_STREAM,
            show_default=True,
            help="A stream's name; to read one of a log's shards: MSGLOG-1of4.",
        ),
    ):
        function = decorate(function)
    return function


def _see_api(context: Any, parameter: Any, value: str) -> str:
    if not _SUBJECT.fullmatch(value):
        raise click.BadParameter(f"{value!r} does not begin a subject, as logs.api does")
    return value


def reading_options(function: _Function) -> _Function:
    """Add those, and what only readers need."""
    return click.option(
        "--api",
        metavar="SUBJECT",
        default=API,
        show_default=True,
        callback=_see_api,
        help="Where JetStream is asked, if this user's account has another name for it.",
    )(nats_options(function))


def nats_access(function: _Function) -> _Function:
    """Add the argument URL and the options beside it."""
    return click.argument("url", type=NATS_URL)(nats_options(function))


def see_to_nats() -> None:
    """End the command if what streams need is not installed."""
    try:
        import nats  # noqa: F401 - to see whether it is there
    except ImportError:
        fail("streams need more than the server: pip install 'msglog[nats]'")


def no_stream(access: NatsAccess, stream: str) -> str:
    """That a stream to be read is not there."""
    return (
        f"there is no stream {stream} at {access} (--stream names another; of shards, each alone)"
    )


def complete_access(
    url: NatsAccess,
    credentials: Path | None,
    password_file: Path | None,
    token_file: Path | None,
    tls_ca: Path | None,
    tls_certificate: Path | None,
    tls_key: Path | None,
) -> NatsAccess:
    """
    The URL with what the options say.

    @raise click.UsageError: they do not go together.
    """
    named = url.user is not None or url.token is not None
    if password_file is not None:
        # What stands alone before the @ is a token, unless there is a password to it.
        if url.token is None:
            raise click.UsageError("--password-file is for nats://USER@HOST:PORT")
        url = evolve(url, user=url.token, token=None, password_file=password_file)
    if named + (credentials is not None) + (token_file is not None) > 1:
        raise click.UsageError("a user, a token and a credentials file exclude each other")
    if tls_ca or tls_certificate or tls_key:
        url = url.with_tls(TLSFiles(tls_ca, tls_certificate, tls_key))
    return evolve(url, credentials=credentials, token_file=token_file)
