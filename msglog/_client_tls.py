"""TLS for the clients: whom they trust, and the certificate that they show."""

from __future__ import annotations

import socket
import ssl
from pathlib import Path
from typing import TYPE_CHECKING

from attrs import frozen

if TYPE_CHECKING:
    from twisted.internet.interfaces import IStreamClientEndpoint

from ._errors import TLSError

__all__ = ["TLS"]


@frozen(kw_only=True)
class TLS:
    """
    How a client speaks TLS: version 1.3, and only with a server that proves its name.

    The files are read for each connection, so that a certificate that was renewed is used from the
    next one on.

    @param ca: PEM file of the authorities that servers' certificates must come from; those that
        the system trusts if not given.
    @param certificate: PEM file: the client's certificate and what it was issued by, for servers
        that ask for one.
    @param key: PEM file of its private key; not needed if that is in the same file.
    @param server_name: the name that the server must prove; the one it is connected by if not
        given.
    """

    ca: Path | str | None = None
    certificate: Path | str | None = None
    key: Path | str | None = None
    server_name: str | None = None

    def context(self) -> ssl.SSLContext:
        """
        These settings for the standard library's C{ssl}.

        @raise TLSError: a file cannot be used.
        """
        try:
            context = ssl.create_default_context(ssl.Purpose.SERVER_AUTH, cafile=self.ca)
        except (OSError, ValueError) as e:
            raise TLSError(f"cannot use the authorities in {self.ca}: {_say(e)}") from None
        context.minimum_version = ssl.TLSVersion.TLSv1_3
        if self.certificate is not None:
            try:
                context.load_cert_chain(self.certificate, self.key, _no_password)
            except (OSError, ValueError) as e:
                files = f"{self.certificate} and {self.key}" if self.key else self.certificate
                raise TLSError(
                    f"cannot use the certificate and key in {files}: {_say(e)}"
                ) from None
        return context

    def wrap(self, connection: socket.socket, host: str) -> ssl.SSLSocket:
        """
        Speak TLS over a connected socket, within its timeout.  It is closed if that fails.

        @param host: the name that it was connected by.
        @raise TLSError: a file cannot be used.
        @raise OSError: the handshake failed (C{ssl.SSLError}), or the connection was lost.
        """
        try:
            name = self.server_name or host
            return self.context().wrap_socket(connection, server_hostname=name)
        except (TLSError, OSError):
            connection.close()
            raise

    def endpoint(self, endpoint: IStreamClientEndpoint, host: str) -> IStreamClientEndpoint:
        """
        A Twisted endpoint, with TLS.

        @param host: the name that it connects by.
        @raise TLSError: a file cannot be used, or Twisted has no TLS.
        """
        try:
            from ._twisted_tls import TLSClientEndpoint
        except ImportError:
            raise TLSError(
                "TLS in Twisted needs more than msglog: pip install 'msglog[tls]'"
            ) from None
        self.context()  # the same files, and what is wrong with them said in the same words
        wrapped: IStreamClientEndpoint = TLSClientEndpoint(endpoint, self, host)
        return wrapped


def _no_password() -> str:
    """For an encrypted key: to ask on a terminal would stop a service that has none."""
    raise ValueError("the key is encrypted")


def _say(error: Exception) -> str:
    if isinstance(error, ssl.SSLError):
        return error.reason or "it is not in PEM format, or they do not fit each other"
    return getattr(error, "strerror", None) or str(error)
