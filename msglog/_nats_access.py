"""Where a NATS engine is, and who this is to it.  No network here; needs no nats-py but to read."""

from __future__ import annotations

import ssl
from pathlib import Path
from typing import Any
from urllib.parse import unquote

from attrs import evolve, frozen

from ._errors import StartError

__all__ = ["DEFAULT_STREAM", "INBOX_PREFIX", "NatsAccess", "TLSFiles", "parse_nats"]

DEFAULT_STREAM = "MSGLOG"
_DEFAULT_PORT = 4222

# What answers come to; a user's permissions name it.
INBOX_PREFIX = "_INBOX_msglog"

_SCHEMES = ("nats", "tls")


@frozen
class TLSFiles:
    """
    PEM files for TLS.

    @ivar authority: who issued the servers' certificates; L{None}: who the system trusts.
    @ivar certificate: this side's, if it shows one.
    @ivar key: its private key.
    """

    authority: Path | None = None
    certificate: Path | None = None
    key: Path | None = None

    def context(self) -> ssl.SSLContext:
        """
        Read the files.

        @raise StartError: one cannot be read.
        """
        try:
            context = ssl.create_default_context(cafile=self.authority)
        except (OSError, ssl.SSLError) as e:
            raise StartError(f"cannot use {self.authority} for TLS to NATS: {e}") from None
        if self.certificate is not None:
            try:
                # No password: a service cannot be asked for one, and OpenSSL would ask a terminal.
                context.load_cert_chain(self.certificate, self.key, password=lambda: "")
            except (OSError, ssl.SSLError) as e:
                raise StartError(
                    f"cannot use {self.certificate} and its key for TLS to NATS: {e}"
                ) from None
        return context


@frozen
class NatsAccess:
    """
    Servers of one NATS cluster, and what to show them.

    @ivar servers: C{host:port} of each; whichever answers says where the others are.
    @ivar credentials: a credentials file, as C{nsc} makes it.
    @ivar tls: L{None} for none.
    """

    servers: tuple[str, ...]
    user: str | None = None
    password: str | None = None
    token: str | None = None
    credentials: Path | None = None
    tls: TLSFiles | None = None

    def __str__(self) -> str:
        return f"{'tls' if self.tls else 'nats'}://{','.join(self.servers)}"

    def options(self) -> dict[str, Any]:
        """
        How C{nats.aio.client.Client.connect} is told this.

        @raise StartError: a file cannot be read.
        """
        scheme = "tls" if self.tls else "nats"
        options: dict[str, Any] = {"servers": [f"{scheme}://{server}" for server in self.servers]}
        if self.user is not None:
            options["user"], options["password"] = self.user, self.password
        if self.token is not None:
            options["token"] = self.token
        if self.credentials is not None:
            try:
                self.credentials.read_bytes()
            except OSError as e:
                raise StartError(f"cannot read {self.credentials}: {e.strerror}") from None
            options["user_credentials"] = str(self.credentials)
        if self.tls is not None:
            options["tls"] = self.tls.context()
        return options

    def with_tls(self, files: TLSFiles) -> NatsAccess:
        """The same with TLS by these files."""
        return evolve(self, tls=files)


def parse_nats(url: str) -> NatsAccess:
    """
    Read C{nats://[user:password@|token@]host[:port][,host[:port]…]}; C{tls://} for TLS with the
    authorities that the system trusts.

    @raise ValueError: it is none; the message repeats nothing of it that may be secret.
    """
    scheme, separator, rest = url.partition("://")
    if not separator or scheme not in _SCHEMES:
        raise ValueError("not nats://HOST:PORT[,HOST:PORT…] or tls://…")
    user = password = token = None
    userinfo, at, hosts = rest.rpartition("@")
    if at:
        name, colon, secret = userinfo.partition(":")
        if colon:
            user, password = unquote(name), unquote(secret)
        else:
            token = unquote(name)
    servers = tuple(_server(text) for text in hosts.rstrip("/").split(","))
    tls = TLSFiles() if scheme == "tls" else None
    return NatsAccess(servers, user, password, token, tls=tls)


def _server(text: str) -> str:
    host, port = text.strip(), ""
    if host.startswith("["):
        host, bracket, port = host.partition("]")
        host += bracket
        good = bool(bracket) and (not port or port.startswith(":"))
        port = port[1:]
    else:
        host, _, port = host.partition(":")
        good = True
    if not good or not host or "@" in host or "/" in host:
        raise ValueError("a server in it is not HOST:PORT")
    if port and not (port.isdecimal() and 0 < int(port) < 65536):
        raise ValueError(f"{port!r} is not a port")
    return f"{host}:{port or _DEFAULT_PORT}"
