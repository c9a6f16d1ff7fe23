"""
TLS for the server: its certificate, and which client ids a client's certificate may write.

A certificate names the client ids that it may use as subject alternative names of the type URI:
C{urn:uuid:} and the id (RFC 9562, section 4, and RFC 4122, section 3).  A relay, which writes for
whoever is behind it, has C{urn:msglog:relay} instead, and may use any.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from uuid import UUID
from weakref import ReferenceType, WeakKeyDictionary, ref

from attrs import define
from cryptography import x509
from OpenSSL import SSL, crypto
from twisted.internet.defer import Deferred
from twisted.internet.interfaces import (
    IListeningPort,
    IOpenSSLServerConnectionCreator,
    IStreamServerEndpoint,
    ITransport,
)
from twisted.internet.ssl import (
    Certificate,
    CertificateOptions,
    TLSVersion,
    trustRootFromCertificates,
)
from twisted.logger import Logger
from twisted.protocols.tls import TLSMemoryBIOFactory, TLSMemoryBIOProtocol
from zope.interface import implementer

from ._errors import StartError
from ._health import EXPIRY_WARNING

__all__ = ["RELAY", "CertificatePermits", "ServerTLS", "TLSFactory", "allowed_ids"]

RELAY = "urn:msglog:relay"
_UUID = "urn:uuid:"

# Of a connection: 17 steps of its handshake, and 5 for each change of keys.  OpenSSL answers
# these by itself, and what a peer does not read of that would fill the memory, for it is no answer
# of ours.  Nobody needs so many: keys are good for 16 million records and more, and who reconnects
# loses nothing.
_MAX_TLS_STEPS = 5000

# What extensions raise that are not there, there twice, or not as they should be.
_UNREADABLE = (
    x509.ExtensionNotFound,
    x509.DuplicateExtension,
    x509.UnsupportedGeneralNameType,
    ValueError,
)


@define(eq=False)
class _Peer:
    """
    Who is at the other end of a connection.

    @ivar steps: that OpenSSL has taken for TLS's own messages from it.
    """

    # TLSMemoryBIOProtocol, whose attributes have no types.  It knows the connection, too.
    protocol: ReferenceType[Any]
    steps: int = 0


@implementer(IOpenSSLServerConnectionCreator)
class ServerTLS:
    """
    What a server needs for TLS, read from files, and read again when it is told to.

    TLS 1.3 only: everything that speaks this protocol is newer than that, and there is nothing to
    choose wrongly.  No sessions are resumed, so that each connection shows its certificate.

    @param certificate: PEM file: the server's certificate and what it was issued by.
    @param key: PEM file of its private key.
    @param client_ca: PEM file of the authorities whose clients are let in; L{None} to let in all.
    @param read: reads a file.
    @ivar expires: when the server's certificate does.
    @ivar files: what the files had that are in use, by name.
    """

    _log = Logger()

    def __init__(
        self,
        certificate: Path,
        key: Path,
        client_ca: Path | None,
        read: Callable[[Path], bytes] = Path.read_bytes,
    ) -> None:
        self._certificate = certificate
        self._key = key
        self._client_ca = client_ca
        self._context: SSL.Context | None = None
        self._peers: WeakKeyDictionary[SSL.Connection, _Peer] = WeakKeyDictionary()
        self._read_bytes = read
        self._reading: dict[str, bytes] = {}
        self.files: dict[str, bytes] = {}
        self.expires: datetime | None = None

    @property
    def asks_clients(self) -> bool:
        """Whether only clients with a certificate are let in."""
        return self._client_ca is not None

    def endpoint(self, endpoint: IStreamServerEndpoint) -> IStreamServerEndpoint:
        """
        Another endpoint, with this TLS.

        The files are read when it is listened on, while the process may still have the privileges
        that reading a key needs.
        """
        wrapped: IStreamServerEndpoint = _TLSEndpoint(endpoint, self)
        return wrapped

    def load(self) -> None:
        """
        Read the files.  Connections that are made from now on get what they say.

        @raise StartError: one cannot be read, or they do not fit each other.
        """
        self._reading = {}
        chain = self._read_certificates(self._certificate)
        key = self._read_key()
        options = {}
        if self._client_ca is not None:
            authorities = self._read_certificates(self._client_ca)
            options["trustRoot"] = trustRootFromCertificates(
                [Certificate(crypto.X509.from_cryptography(ca)) for ca in authorities]
            )
        try:
            context = CertificateOptions(
                privateKey=key,
                certificate=crypto.X509.from_cryptography(chain[0]),
                extraCertChain=[crypto.X509.from_cryptography(ca) for ca in chain[1:]],
                raiseMinimumTo=TLSVersion.TLSv1_3,
                **options,
            ).getContext()
            context.check_privatekey()
        except (SSL.Error, ValueError) as e:
            raise StartError(
                f"the key {self._key} does not fit the certificate {self._certificate}: {e}"
            ) from None
        context.set_session_cache_mode(SSL.SESS_CACHE_OFF)
        context.set_info_callback(self._count_step)
        self._context, self.files = context, self._reading
        self.expires = chain[0].not_valid_after_utc
        self._say_expiry()

    def _say_expiry(self) -> None:
        assert self.expires is not None
        left = self.expires - datetime.now(UTC)
        if left < EXPIRY_WARNING:
            self._log.warn(
                "the certificate {path} {expires} on {day}: replace it, then send SIGHUP",
                path=str(self._certificate),
                expires="has expired" if left < timedelta() else "expires",
                day=f"{self.expires:%Y-%m-%d}",
            )

    @property
    def names(self) -> tuple[Path, Path, Path | None]:
        """The files' names: certificate, key, and the clients' authorities."""
        return self._certificate, self._key, self._client_ca

    def reload(self) -> None:
        """Read the files again; what was read before stays if they cannot be used."""
        try:
            self.load()
        except StartError as e:
            self._log.error("{reason}; the certificates are as they were", reason=str(e))
        else:
            self._log.info("certificates read again")

    def _read(self, path: Path) -> bytes:
        try:
            data = self._reading[str(path)] = self._read_bytes(path)
        except OSError as e:
            raise StartError(f"cannot read {path}: {e.strerror}") from None
        return data

    def _read_certificates(self, path: Path) -> list[x509.Certificate]:
        try:
            return x509.load_pem_x509_certificates(self._read(path))
        except ValueError as e:
            raise StartError(f"{path} has no certificates in PEM format: {e}") from None

    def _read_key(self) -> crypto.PKey:
        try:
            return crypto.load_privatekey(crypto.FILETYPE_PEM, self._read(self._key), b"")
        except (crypto.Error, ValueError, TypeError):
            raise StartError(
                f"{self._key} has no private key in PEM format, or an encrypted one: "
                f"the server cannot ask for its password"
            ) from None

    def serverConnectionForTLS(self, protocol: TLSMemoryBIOProtocol) -> SSL.Connection:
        """See L{IOpenSSLServerConnectionCreator}."""
        assert self._context is not None
        connection = SSL.Connection(self._context, None)
        self._peers[connection] = _Peer(ref(protocol))
        return connection

    def _count_step(self, connection: SSL.Connection, where: int, _: int) -> None:
        """OpenSSL takes another step of a handshake, or of a change of keys."""
        if where != SSL.SSL_CB_ACCEPT_LOOP:
            return
        peer = self._peers[connection]
        peer.steps += 1
        protocol = peer.protocol()
        if peer.steps == _MAX_TLS_STEPS and protocol is not None:
            # Not TLS's own end: OpenSSL is in the middle of reading.
            protocol.transport.abortConnection()
            ours = protocol.wrappedProtocol
            ours.factory.counts.closed["tls"] += 1
            ours.factory.note("were aborted", ours, "it changed its TLS keys again and again")


class TLSFactory(TLSMemoryBIOFactory):
    """
    Another factory, with this TLS.

    @ivar tls: which that is; a port of Twisted's own C{ssl:} has none of ours.
    """

    noisy = False

    def __init__(self, tls: ServerTLS, factory: Any) -> None:
        super().__init__(tls, False, factory)
        self.tls = tls


@implementer(IStreamServerEndpoint)
class _TLSEndpoint:
    """See L{ServerTLS.endpoint}."""

    def __init__(self, endpoint: IStreamServerEndpoint, tls: ServerTLS) -> None:
        self._endpoint = endpoint
        self._tls = tls

    def listen(self, factory: Any) -> Deferred[IListeningPort]:
        """See L{IStreamServerEndpoint}; raises L{StartError} too."""
        self._tls.load()
        wrapped = TLSFactory(self._tls, factory)
        listening: Deferred[IListeningPort] = self._endpoint.listen(wrapped)
        return listening


def allowed_ids(certificate: x509.Certificate) -> frozenset[bytes] | None:
    """
    The client ids that a certificate may write, 16 bytes each; L{None} if it may write any.

    A name that is none of ours allows nothing.
    """
    try:
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except _UNREADABLE:
        return frozenset()
    uris = names.get_values_for_type(x509.UniformResourceIdentifier)
    if RELAY in uris:
        return None
    allowed = set()
    for uri in uris:
        if uri.lower().startswith(_UUID):
            try:
                client = UUID(uri[len(_UUID) :])
            except ValueError:
                continue
            # UUID() also reads braces, "0x" and digits with "_" between them.
            if str(client) == uri[len(_UUID) :].lower():
                allowed.add(client.bytes)
    return frozenset(allowed)


class CertificatePermits:
    """
    Whether a connection may write for a client id, by the certificate that it showed.

    A connection without TLS may write for any: to listen without TLS is to trust who can connect.
    """

    def __init__(self) -> None:
        self._allowed: WeakKeyDictionary[ITransport, frozenset[bytes] | None] = WeakKeyDictionary()

    def __call__(self, client: bytes, transport: ITransport) -> bool:
        if not isinstance(transport, TLSMemoryBIOProtocol):
            return True
        try:
            allowed = self._allowed[transport]
        except KeyError:
            certificate = transport.getPeerCertificate()
            assert certificate is not None, "a handshake without the certificate it must have"
            allowed = self._allowed[transport] = allowed_ids(certificate.to_cryptography())
        return allowed is None or client in allowed
