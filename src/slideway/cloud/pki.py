"""The cloud's own small authority: one certificate that nodes pin, and the server's certificate under it.

Both are valid from 2000 to 2099: a node whose clock is wrong must still reach its cloud, and a node believes this one
authority only, so that a certificate ends by being replaced (`slideway cloud init --renew`), not by a date.
"""

from __future__ import annotations

import ipaddress
import ssl
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from slideway.core.errors import WrongUseError
from slideway.sync.invitation import pin_content

LOOPBACK = ("localhost", "127.0.0.1")
_FROM, _UNTIL = datetime(2000, 1, 1, tzinfo=UTC), datetime(2099, 12, 31, tzinfo=UTC)


@dataclass(frozen=True)
class Certificate:
    """A certificate and its private key, both PEM."""

    pem: bytes
    key_pem: bytes


def make_authority() -> Certificate:
    """A fresh authority (ECDSA P-256) that may sign server certificates and nothing below them."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = _name("Slideway cloud authority")
    built = (
        _begin(name, name, key.public_key())
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_usage(signs_certificates=True), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .sign(key, hashes.SHA256())
    )
    return Certificate(built.public_bytes(serialization.Encoding.PEM), _private_pem(key))


def make_server_certificate(authority: Certificate, hosts: Sequence[str]) -> Certificate:
    """A certificate for the server's names and addresses.

    Args:
        authority: Signs it.
        hosts: Names and IP addresses under which nodes reach the cloud.

    Raises:
        WrongUseError: No host, or one that is neither a name nor an address.
    """
    if not hosts:
        raise WrongUseError("a server certificate needs at least one host name or address: --host NAME")
    issuer = x509.load_pem_x509_certificate(authority.pem)
    issuer_key = serialization.load_pem_private_key(authority.key_pem, None)
    assert isinstance(issuer_key, ec.EllipticCurvePrivateKey)  # made above, never another
    key = ec.generate_private_key(ec.SECP256R1())
    try:
        names = x509.SubjectAlternativeName([_general_name(host) for host in hosts])
    except ValueError as error:
        raise WrongUseError(
            f"--host: {error}; give names such as cloud.example or addresses such as 10.0.0.5"
        ) from error
    built = (
        _begin(_name(hosts[0][:64]), issuer.subject, key.public_key())
        .add_extension(names, critical=False)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_usage(signs_certificates=False), critical=True)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(issuer_key.public_key()), critical=False)
        .sign(issuer_key, hashes.SHA256())
    )
    return Certificate(built.public_bytes(serialization.Encoding.PEM), _private_pem(key))


def read_hosts(certificate_pem: bytes) -> tuple[str, ...]:
    """Names and addresses that a server certificate is for."""
    certificate = x509.load_pem_x509_certificate(certificate_pem)
    names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    return tuple(str(name.value) for name in names)


def choose_host(hosts: Sequence[str]) -> str:
    """Of the names that a certificate is for, the one to give to others: the first that is not this computer only."""
    return next((host for host in hosts if host not in LOOPBACK), hosts[0] if hosts else LOOPBACK[0])


def pin_of(authority_pem: bytes) -> str:
    """First 20 hex digits of sha256 over the authority's certificate (DER): what an enrolment code carries."""
    return pin_content(ssl.PEM_cert_to_DER_cert(authority_pem.decode("ascii")))


def _begin(subject: x509.Name, issuer: x509.Name, public: ec.EllipticCurvePublicKey) -> x509.CertificateBuilder:
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(public)
        .serial_number(x509.random_serial_number())
        .not_valid_before(_FROM)
        .not_valid_after(_UNTIL)
    )


def _name(common: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common)])


def _usage(*, signs_certificates: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not signs_certificates,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=signs_certificates,
        crl_sign=signs_certificates,
        encipher_only=False,
        decipher_only=False,
    )


def _general_name(host: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(host))
    except ValueError:
        if not host or not host.isascii() or any(sign in host for sign in " /:@"):
            raise ValueError(f"{host!r} is neither a name nor an address") from None
        return x509.DNSName(host)


def _private_pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
