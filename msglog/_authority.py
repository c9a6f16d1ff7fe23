"""
A small certificate authority in a folder: for a test, or for the few machines of one installation.

::

    ca.pem  ca-key.pem                  the authority: the certificate is public, the key is not
    NAME.pem  NAME-key.pem              a server's or a client's

Keys are for ECDSA over P-256, readable by their owner alone.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address
from pathlib import Path
from uuid import UUID

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from ._errors import MsglogError
from ._tls import RELAY

__all__ = ["AuthorityError", "init_authority", "issue_client", "issue_server"]

# Clocks differ; a certificate that was made now must be good now on every machine.
_EARLIER = timedelta(minutes=5)


class AuthorityError(MsglogError):
    """A certificate could not be made; the text says why and what to do."""


def init_authority(folder: Path, days: int) -> Path:
    """
    Make an authority.

    @param days: how long its certificate is good for.
    @return: the path of its certificate.
    @raise AuthorityError: there is one already, or the folder cannot be written.
    """
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as e:
        raise AuthorityError(f"cannot make {folder}: {e.strerror}") from None
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, f"msglog CA {folder.name}")])
    certificate = (
        _builder(name, name, key.public_key(), days)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_usage(certificates=True), critical=True)
        .sign(key, hashes.SHA256())
    )
    return _write(folder, "ca", [certificate], key)


def issue_server(folder: Path, hosts: Sequence[str], days: int) -> Path:
    """
    A certificate for a server.

    @param hosts: the names and addresses by which clients connect to it.
    @return: its path; it is named by the first of them.
    @raise AuthorityError: there is no authority in the folder, or one with this name already.
    """
    names: list[x509.GeneralName] = []
    for host in hosts:
        try:
            names.append(x509.IPAddress(ip_address(host)))
        except ValueError:
            names.append(x509.DNSName(host))
    return _issue(folder, hosts[0], names, ExtendedKeyUsageOID.SERVER_AUTH, days)


def issue_client(folder: Path, name: str, clients: Iterable[UUID], relay: bool, days: int) -> Path:
    """
    A certificate for a client.

    @param clients: the client ids that it may write.
    @param relay: whether it may write any.
    @return: its path.
    @raise AuthorityError: there is no authority in the folder, or one with this name already.
    """
    names: list[x509.GeneralName] = [
        x509.UniformResourceIdentifier(client.urn) for client in clients
    ]
    if relay:
        names.append(x509.UniformResourceIdentifier(RELAY))
    return _issue(folder, name, names, ExtendedKeyUsageOID.CLIENT_AUTH, days)


def _issue(
    folder: Path,
    name: str,
    names: Sequence[x509.GeneralName],
    purpose: x509.ObjectIdentifier,
    days: int,
) -> Path:
    try:
        authority = x509.load_pem_x509_certificate((folder / "ca.pem").read_bytes())
        ca_key = serialization.load_pem_private_key((folder / "ca-key.pem").read_bytes(), None)
    except OSError as e:
        raise AuthorityError(
            f"no authority in {folder} ({e.strerror}): make one with 'msglog ca init {folder}'"
        ) from None
    except ValueError as e:
        raise AuthorityError(f"the authority in {folder} is damaged: {e}") from None
    assert isinstance(ca_key, ec.EllipticCurvePrivateKey)
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name[:64])])
    certificate = (
        _builder(subject, authority.subject, key.public_key(), days)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_usage(certificates=False), critical=True)
        .add_extension(x509.ExtendedKeyUsage([purpose]), critical=False)
        .add_extension(x509.SubjectAlternativeName(names), critical=False)
        .add_extension(
            x509.AuthorityKeyIdentifier.from_issuer_public_key(ca_key.public_key()), critical=False
        )
        .sign(ca_key, hashes.SHA256())
    )
    return _write(folder, re.sub(r"[^\w.-]", "_", name), [certificate], key)


def _builder(
    subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePublicKey, days: int
) -> x509.CertificateBuilder:
    now = datetime.now(UTC)
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - _EARLIER)
        .not_valid_after(now + timedelta(days=days))
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key), critical=False)
    )


def _usage(*, certificates: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not certificates,
        key_cert_sign=certificates,
        crl_sign=certificates,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )


def _write(
    folder: Path,
    name: str,
    certificates: Iterable[x509.Certificate],
    key: ec.EllipticCurvePrivateKey,
) -> Path:
    path = folder / f"{name}.pem"
    pem = key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )
    chain = b"".join(c.public_bytes(serialization.Encoding.PEM) for c in certificates)
    for file, data, mode in ((folder / f"{name}-key.pem", pem, 0o600), (path, chain, 0o644)):
        try:
            fd = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, mode)
        except FileExistsError:
            raise AuthorityError(f"{file} is there already: move it away first") from None
        except OSError as e:
            raise AuthorityError(f"cannot write {file}: {e.strerror}") from None
        with os.fdopen(fd, "wb") as out:
            out.write(data)
    return path
