"""Who a node and a cloud are to each other: keys, the endpoint file of a node, and what each side signs."""

from __future__ import annotations

import base64
import binascii
import tomllib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import tomli_w
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.asymmetric.types import PrivateKeyTypes
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey

from slideway.core.errors import InvalidReceiptError, WrongUseError
from slideway.core.files import write_whole
from slideway.registry.keys import SigningKey
from slideway.registry.secret_file import keep_secret, read_secret

# A signature of one thing is never one of another: each begins with what it is.
_RECEIPT_AS = b"slideway-receipt/1\n"
_SESSION_AS = b"slideway-session/1\n"
_SIGNING_FILE, _RECEIVING_FILE = "signing-key.pem", "receiving-key.pem"
_VERSION = (1, 0)
Private = TypeVar("Private", Ed25519PrivateKey, X25519PrivateKey)


@dataclass(frozen=True)
class Keys:
    """The two private keys of a node or of a cloud; they never leave its computer.

    Attributes:
        signing: Signs bundles, receipts and sessions (Ed25519).
        receiving: Opens what others lock to it (X25519).
    """

    signing: SigningKey
    receiving: X25519PrivateKey

    @property
    def public_key(self) -> str:
        """The signing key's public half, as it is written in JSON and in the store."""
        return encode_key(self.signing.public_bytes)

    @property
    def receiving_key(self) -> str:
        """The receiving key's public half, as it is written in JSON."""
        return encode_key(self.receiving.public_key().public_bytes_raw())


@dataclass(frozen=True)
class Endpoint:
    """All that a node knows of its cloud, from its enrolment.

    Attributes:
        url: Root of the cloud's address, e.g. `https://cloud.example:8443`.
        tenant: Tenant that the node belongs to.
        node: Id of the node.
        cloud_key: (32 bytes) Ed25519 key that the cloud signs receipts with.
        cloud_receiving_key: (32 bytes) X25519 key that bundles are locked to.
        ca_pem: Certificate of the cloud's own authority, the only one that is believed; empty where the line is
            plain HTTP, on loopback only.
    """

    url: str
    tenant: str
    node: str
    cloud_key: bytes
    cloud_receiving_key: bytes
    ca_pem: str = ""

    @property
    def receiver(self) -> X25519PublicKey:
        """The key that bundles for this cloud are locked to."""
        return X25519PublicKey.from_public_bytes(self.cloud_receiving_key)


def make_keys() -> Keys:
    """Fresh keys, not written anywhere."""
    return Keys(SigningKey(Ed25519PrivateKey.generate()), X25519PrivateKey.generate())


def load_keys(folder: Path) -> Keys:
    """The keys of a folder, made there (mode 0600) when there are none yet.

    Raises:
        WrongUseError: A file is damaged, holds another kind of key, or others may read it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    signing = _load_key(folder / _SIGNING_FILE, Ed25519PrivateKey.generate)
    receiving = _load_key(folder / _RECEIVING_FILE, X25519PrivateKey.generate)
    if not isinstance(signing, Ed25519PrivateKey) or not isinstance(receiving, X25519PrivateKey):
        raise WrongUseError(f"{folder}: a key of another kind; bring the right ones back from a backup")
    return Keys(SigningKey(signing), receiving)


def _load_key(path: Path, generate: Callable[[], Private]) -> PrivateKeyTypes:
    content = read_secret(path, "key")
    if content is None:
        pem = generate().private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
        keep_secret(path, pem)
        content = read_secret(path, "key")  # another process may have been first
        assert content is not None
    try:
        return serialization.load_pem_private_key(content, None)
    except (ValueError, TypeError, UnsupportedAlgorithm) as error:
        raise WrongUseError(f"{path}: no private key in it; bring it back from a backup") from error


def encode_key(raw: bytes) -> str:
    """A key of 32 bytes as text (base64)."""
    return base64.b64encode(raw).decode("ascii")


def decode_key(text: str) -> bytes:
    """The 32 bytes of a key that was written as text.

    Raises:
        WrongUseError: It is none.
    """
    try:
        raw = base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError) as error:
        raise WrongUseError("a key is written as base64; this is not") from error
    if len(raw) != 32:
        raise WrongUseError(f"a key has 32 bytes; this has {len(raw)}")
    return raw


def write_endpoint(endpoint: Endpoint, path: Path) -> None:
    """Write the endpoint file of a node (TOML)."""
    content = {
        "slideway_endpoint": list(_VERSION),
        "url": endpoint.url,
        "tenant": endpoint.tenant,
        "node": endpoint.node,
        "cloud_key": encode_key(endpoint.cloud_key),
        "cloud_receiving_key": encode_key(endpoint.cloud_receiving_key),
        "ca_pem": endpoint.ca_pem,
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    write_whole(path, tomli_w.dumps(content, multiline_strings=True).encode("utf-8"))


def read_endpoint(path: Path) -> Endpoint:
    """Read the endpoint file of a node.

    Raises:
        WrongUseError: It is not there, or is not one.
    """
    try:
        content = tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise WrongUseError(f"{path.name}: not there; enrol this node first: slideway edge enrol URL CODE") from error
    except (OSError, ValueError) as error:
        raise WrongUseError(f"{path.name}: cannot be read ({error}); enrol this node again") from error
    try:
        major = content["slideway_endpoint"][0]
        texts = {name: str(content[name]) for name in ("url", "tenant", "node", "ca_pem")}
        cloud_key, receiving_key = content["cloud_key"], content["cloud_receiving_key"]
    except (KeyError, TypeError, IndexError) as error:
        raise WrongUseError(f"{path.name}: no endpoint file ({error} missing); enrol this node again") from error
    if major != _VERSION[0]:
        raise WrongUseError(f"{path.name}: of version {major}, this Slideway reads {_VERSION[0]}; update Slideway")
    return Endpoint(**texts, cloud_key=decode_key(cloud_key), cloud_receiving_key=decode_key(receiving_key))


def sign_receipt(signing: SigningKey, *, tenant: str, node: str, key: str, sha256: str) -> str:
    """What the cloud gives for content that it has durably; the same content always gives the same receipt."""
    return encode_key(signing.sign(_receipt_content(tenant, node, key, sha256)))


def check_receipt(receipt: str, *, cloud_key: bytes, tenant: str, node: str, key: str, sha256: str) -> None:
    """Accept a receipt only when the cloud signed it for exactly this.

    Raises:
        InvalidReceiptError: It did not.
    """
    content = _receipt_content(tenant, node, key, sha256)
    if not _has_signed(cloud_key, receipt, content):
        raise InvalidReceiptError(
            f"{key}: this receipt is not signed by the cloud that this node was enrolled with, so nothing counts as "
            "acknowledged; it is sent again"
        )


def sign_challenge(signing: SigningKey, challenge: str) -> str:
    """Prove to the cloud that this node holds its key."""
    return encode_key(signing.sign(_SESSION_AS + challenge.encode("utf-8")))


def has_answered(public_key: bytes, challenge: str, signature: str) -> bool:
    """Whether the owner of a public key signed this challenge."""
    return _has_signed(public_key, signature, _SESSION_AS + challenge.encode("utf-8"))


def _receipt_content(tenant: str, node: str, key: str, sha256: str) -> bytes:
    return _RECEIPT_AS + "\n".join([tenant, node, key, sha256]).encode("utf-8")


def _has_signed(public_key: bytes, signature: str, content: bytes) -> bool:
    try:
        raw = base64.b64decode(signature, validate=True)
        Ed25519PublicKey.from_public_bytes(public_key).verify(raw, content)
    except (InvalidSignature, ValueError):
        return False
    return True
