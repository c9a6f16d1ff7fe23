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

__all__ = ["TLSClientEndpoint"]


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
            options = self._options()
        except (OSError, ValueError, crypto.Error):
            return fail()
        connecting: Deferred[Any] = wrapClientTLS(options, self._endpoint).connect(factory)
        return connecting

    def _options(self) -> Any:
        tls = self._tls
        trust = platformTrust()
        if tls.ca is not None:
            authorities = x509.load_pem_x509_certificates(Path(tls.ca).read_bytes())
            trust = trustRootFromCertificates(
                [Certificate(crypto.X509.from_cryptography(ca)) for ca in authorities]
            )
        own, chain = None, {}
        if tls.certificate is not None:
            pem = Path(tls.certificate).read_bytes()
            key = pem if tls.key is None else Path(tls.key).read_bytes()
            own = PrivateCertificate.loadPEM(key + b"\n" + pem)
            issuers = x509.load_pem_x509_certificates(pem)[1:]
            chain = {"extraCertChain": [crypto.X509.from_cryptography(ca) for ca in issuers]}
        return optionsForClientTLS(
            tls.server_name or self._host,
            trustRoot=trust,
            clientCertificate=own,
            extraCertificateOptions={"raiseMinimumTo": TLSVersion.TLSv1_3, **chain},
        )
