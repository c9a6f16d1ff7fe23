"""Where a NATS engine is, and who this is to it.  No network here; needs no nats-py but to read."""

from __future__ import annotations

import re
import ssl
from base64 import urlsafe_b64encode
from pathlib import Path
from typing import Any
from urllib.parse import unquote

from attrs import evolve, frozen

from ._errors import StartError
from ._jetstream import API

__all__ = ["DEFAULT_STREAM", "INBOX_PREFIX", "NatsAccess", "TLSFiles", "is_nats", "parse_nats"]

DEFAULT_STREAM = "MSGLOG"
_DEFAULT_PORT = 4222

# What answers come to; a user's permissions name it.
INBOX_PREFIX = "_INBOX_msglog"

_SCHEMES = ("nats", "tls")

# The two parts of a credentials file.
_JWT = re.compile(r"-BEGIN NATS USER JWT-+\s+(\S+)\s+-+END")
_SEED = re.compile(r"-BEGIN USER NKEY SEED-+\s+(\S+)\s+-+END")


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

    def client_options(self, name: str) -> Any:
        """
        The same for Twisted's C{startTLS}.

        @param name: what the server must prove to be.
        @raise StartError: a file cannot be used, or Twisted has no TLS.
        """
        try:
            from ._twisted_tls import client_options
        except ImportError:
            raise StartError(
                "TLS to NATS needs more than msglog: pip install 'msglog[nats,tls]'"
            ) from None
        self.context()  # the same files, and what is wrong with them said in words
        return client_options(name, self.authority, self.certificate, self.key, lowest="TLSv1_2")


@frozen
class NatsAccess:
    """
    Servers of one NATS cluster, and what to show them.

    What is in a file is read for each connection, so that it can be replaced there.

    @ivar servers: C{host:port} of each; whichever answers says where the others are.
    @ivar password_file: one with the password, instead of it.
    @ivar token_file: one with the token, instead of it.
    @ivar credentials: a credentials file, as C{nsc} makes it.
    @ivar tls: L{None} for none.
    @ivar api: the subjects that JetStream is asked by begin so, for a command that reads.
    """

    servers: tuple[str, ...]
    user: str | None = None
    password: str | None = None
    token: str | None = None
    credentials: Path | None = None
    tls: TLSFiles | None = None
    password_file: Path | None = None
    token_file: Path | None = None
    api: str = API

    def __str__(self) -> str:
        return f"{'tls' if self.tls else 'nats'}://{','.join(self.servers)}"

    def options(self) -> dict[str, Any]:
        """
        How a L{NatsClient<msglog._nats_client.NatsClient>} is told to connect.

        @raise StartError: a file cannot be used.
        """
        scheme = "tls" if self.tls else "nats"
        options: dict[str, Any] = {"servers": [f"{scheme}://{server}" for server in self.servers]}
        if self.tls is not None:
            self.tls.context()
        login = self.login("")
        if self.credentials is not None:
            options["user_jwt_cb"] = lambda: self.login("")["jwt"].encode()
            options["signature_cb"] = lambda nonce: self.login(nonce)["sig"].encode()
        for option, word in (("user", "user"), ("password", "pass"), ("token", "auth_token")):
            if word in login:
                options[option] = login[word]
        return options

    def check(self) -> None:
        """
        See whether a connection can be begun.

        @raise StartError: a file cannot be used, or TLS is wanted and Twisted has none.
        """
        if self.tls is not None:
            self.tls.client_options("localhost")
        self.login("")

    def login(self, nonce: str) -> dict[str, str]:
        """
        What CONNECT says of who this is.

        @param nonce: what the server wants to have signed.
        @raise StartError: a file with a secret cannot be used.
        """
        if self.credentials is not None:
            return _signed(self.credentials, nonce)
        if self.user is not None:
            return {"user": self.user, "pass": _secret(self.password_file, self.password) or ""}
        token = _secret(self.token_file, self.token)
        return {"auth_token": token} if token is not None else {}

    def with_tls(self, files: TLSFiles) -> NatsAccess:
        """The same with TLS by these files."""
        return evolve(self, tls=files)


def read_secret(path: Path) -> str:
    """
    A password or a token, from a file that has nothing else.

    @raise StartError: there is none; the error shows nothing of the file.
    """
    secret = _read(path).strip("\r\n")
    if not secret:
        raise StartError(f"{path} is empty, and a secret should be in it")
    if "\n" in secret:
        raise StartError(f"{path} has several lines, and a secret is one")
    return secret


def _secret(path: Path | None, secret: str | None) -> str | None:
    return secret if path is None else read_secret(path)


def _read(path: Path) -> str:
    try:
        return path.read_text()
    except OSError as e:
        raise StartError(f"cannot read {path}: {e.strerror}") from None
    except ValueError:
        raise StartError(f"cannot read {path}: it is no text") from None


def _signed(path: Path, nonce: str) -> dict[str, str]:
    import nkeys

    text = _read(path)
    jwt, seed = _JWT.search(text), _SEED.search(text)
    if jwt is None or seed is None:
        raise StartError(f"{path} is no credentials file: it has no NATS user JWT and nkey seed")
    try:
        signature = nkeys.from_seed(seed[1].encode()).sign(nonce.encode())
    except Exception:  # whatever nkeys and PyNaCl raise; their words may show the seed
        raise StartError(f"{path}: its nkey seed is not valid") from None
    return {"jwt": jwt[1], "sig": urlsafe_b64encode(signature).rstrip(b"=").decode()}


def is_nats(text: str) -> bool:
    """Whether a text is meant to say where NATS is."""
    return text.startswith(tuple(f"{scheme}://" for scheme in _SCHEMES))


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
