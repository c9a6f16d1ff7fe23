"""
nats-py's client as the C{msglog} command uses it, with two things mended.

It goes on without TLS where the server, or whoever is in between, says that it has none, and then
shows it a password in plain: here that is an error.  And what is shown to the servers is read from
its files at each connection, so that one that comes back shows what is there by then.
"""

from __future__ import annotations

import ssl

from nats import errors
from nats.aio.client import Client

from ._errors import StartError
from ._nats_access import NatsAccess

__all__ = ["NatsClient"]


class NatsClient(Client):
    """
    @param access: the cluster, and who this is to it; its C{options} are for C{connect}.
    """

    def __init__(self, access: NatsAccess) -> None:
        super().__init__()
        self._access = access

    @property
    def ssl_context(self) -> ssl.SSLContext:
        """What TLS is begun with, now."""
        if self._access.tls is None:
            return super().ssl_context
        try:
            return self._access.tls.context()
        except StartError as e:
            raise _error(e) from None

    def _connect_command(self) -> bytes:
        """The first line to a server, and the first that has anything secret."""
        if self._access.tls is not None and not self._server_info.get("tls_required"):
            raise errors.Error("nats: the server asks for no TLS, and this connection must have it")
        try:
            login = self._access.login("")
            for option, word in (("user", "user"), ("password", "pass"), ("token", "auth_token")):
                self.options[option] = login.get(word)
            return super()._connect_command()
        except StartError as e:
            raise _error(e) from None


def _error(error: StartError) -> errors.Error:
    """The same as one after which nats-py tries again."""
    return errors.Error(f"nats: {error}")
