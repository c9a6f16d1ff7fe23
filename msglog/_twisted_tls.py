"""TLS for the Twisted client, which needs pyOpenSSL and service-identity."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from cryptography import x509
from OpenSSL import crypto
from twisted.internet.defer import Deferred, fail
from twisted.internet.endpoints import wrapClientTLS
from twisted.internet.interfaces import IProtocolFactory, IStreamClientEndpoint
from twisted.internet.ssl import (
    Certificate,
    PrivateCertificate,
    TLSVersion,
    optionsForClientTLS,
    platformTrust,
    trustRootFromCertificates,
)
from zope.interface import implementer

if TYPE_CHECKING:
    from ._client_tls import TLS

__all__ = ["TLSClientEndpoint", "client_options"]


@implementer(IStreamClientEndpoint)
class TLSClientEndpoint:
    """
    An endpoint with TLS, whose files are read for each connection.

    @param host: the name that the endpoint connects by.
    """

    def __init__(self, endpoint: IStreamClientEndpoint, tls: TLS, host: str) -> None:
        self._endpoint = endpoint
        self._tls = tls
        self._host = host

    def connect(self, factory: IProtocolFactory) -> Deferred[Any]:
        """See L{IStreamClientEndpoint}."""
        try:
            tls = self._tls
            name = tls.server_name or self._host
            options = client_options(name, tls.ca, tls.certificate, tls.key)
        except (OSError, ValueError, crypto.Error):
            return fail()
        connecting: Deferred[Any] = wrapClientTLS(options, self._endpoint).connect(factory)
        return connecting


def client_options(
    name: str,
    ca: Path | str | None,
    certificate: Path | str | None,
    key: Path | str | None,
    *,
    lowest: str = "TLSv1_3",
) -> Any:
    """
    How a client speaks TLS.

    @param name: what the server must prove to be.
    @param ca: PEM file of the authorities to trust; those of the system if not given.
    @param certificate: PEM file of the client's own and what it was issued by, if it shows one.
    @param key: PEM file of its private key; not needed if that is in the same file.
    @param lowest: the oldest version to speak, as L{TLSVersion} names it.
    @raise OSError: a file cannot be read.
    """
    trust = platformTrust()
    if ca is not None:
        authorities = x509.load_pem_x509_certificates(Path(ca).read_bytes())
        trust = trustRootFromCertificates(
            [Certificate(crypto.X509.from_cryptography(one)) for one in authorities]
        )
    own, chain = None, {}
    if certificate is not None:
        pem = Path(certificate).read_bytes()
        private = pem if key is None else Path(key).read_bytes()
        own = PrivateCertificate.loadPEM(private + b"\n" + pem)
        issuers = x509.load_pem_x509_certificates(pem)[1:]
        chain = {"extraCertChain": [crypto.X509.from_cryptography(one) for one in issuers]}
    return optionsForClientTLS(
        name,
        trustRoot=trust,
        clientCertificate=own,
        extraCertificateOptions={
            "raiseMinimumTo": getattr(TLSVersion, lowest),
            **chain,
        },
    )
