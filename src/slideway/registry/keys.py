"""Whose model packages are believed: this node's signing key, and the public keys of others."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import platformdirs
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from slideway.core.errors import UntrustedPackageError, WrongUseError
from slideway.core.files import write_whole
from slideway.registry.secret_file import keep_secret, read_secret
from slideway.registry.staging import write_fence
from slideway.registry.store import TRUSTED, models_folder

_KEY_FILE = "signing-key.pem"
_MAX_KEY_BYTES = 10_000


@dataclass(frozen=True)
class TrustedKey:
    """A public key (Ed25519) and who it belongs to.

    Attributes:
        name: Name of its file, without suffix: whoever put it there chose it.
        raw: (32 bytes) the key itself.
    """

    name: str
    raw: bytes

    @property
    def fingerprint(self) -> str:
        """Sha256 of the key in hex: what two people compare by telephone."""
        return hashlib.sha256(self.raw).hexdigest()

    @property
    def pem(self) -> bytes:
        """The key as a PEM file (SubjectPublicKeyInfo), as `openssl` reads it."""
        return Ed25519PublicKey.from_public_bytes(self.raw).public_bytes(
            serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
        )

    def has_signed(self, signature: bytes, content: bytes) -> bool:
        """Whether this key's owner signed exactly that content."""
        try:
            Ed25519PublicKey.from_public_bytes(self.raw).verify(signature, content)
        except InvalidSignature:
            return False
        return True


@dataclass(frozen=True)
class SigningKey:
    """The private key of this node.

    Attributes:
        private: Never leaves this computer.
    """

    private: Ed25519PrivateKey

    @property
    def public(self) -> TrustedKey:
        """What others need to trust packages of this node."""
        return TrustedKey("this node", self.private.public_key().public_bytes_raw())

    @property
    def public_bytes(self) -> bytes:
        """(32 bytes) the public key itself."""
        return self.public.raw

    def sign(self, content: bytes) -> bytes:
        """Ed25519 signature, 64 bytes."""
        return self.private.sign(content)


def keys_folder() -> Path:
    """Where this node's signing key lies; SLIDEWAY_KEYS moves it."""
    given = os.environ.get("SLIDEWAY_KEYS")
    return Path(given) if given else Path(platformdirs.user_data_dir("slideway", appauthor=False)) / "keys"


def signing_key_path() -> Path:
    """File of this node's signing key."""
    return keys_folder() / _KEY_FILE


def trusted_folder() -> Path:
    """Folder of the public keys that are trusted, one PEM file each."""
    return models_folder() / TRUSTED


def load_signing_key() -> SigningKey | None:
    """This node's signing key; None before one is made.

    Raises:
        WrongUseError: The file is damaged, is no Ed25519 key, or others may read it.
    """
    path = signing_key_path()
    content = read_secret(path, "signing key")
    if content is None:
        return None
    try:
        key = serialization.load_pem_private_key(content, None)
    except (ValueError, TypeError, UnsupportedAlgorithm) as error:
        raise WrongUseError(
            f"{path}: no signing key in it ({error}); bring it back from a backup, or remove it"
        ) from error
    if not isinstance(key, Ed25519PrivateKey):
        raise WrongUseError(f"{path}: not an Ed25519 key; bring the right one back from a backup, or remove it")
    return SigningKey(key)


def make_signing_key() -> SigningKey:
    """This node's signing key, made and kept (mode 0600) when there is none yet.

    Raises:
        WrongUseError: There is one and it is damaged.
        OutputError: It cannot be written.
    """
    if (key := load_signing_key()) is not None:
        return key
    content = Ed25519PrivateKey.generate().private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    keep_secret(signing_key_path(), content)
    made = load_signing_key()
    assert made is not None
    return made


def read_public_key(path: Path) -> TrustedKey:
    """Read a public key file.

    Raises:
        WrongUseError: It cannot be read or holds no Ed25519 public key.
    """
    try:
        with path.open("rb") as file:
            content = file.read(_MAX_KEY_BYTES)
    except OSError as error:
        raise WrongUseError(f"{path.name}: this key cannot be read ({error.strerror}); check the path") from error
    return TrustedKey(path.stem, parse_public_key(content, path.name))


def parse_public_key(pem: bytes, name: str) -> bytes:
    """The 32 bytes of an Ed25519 public key in PEM.

    Raises:
        WrongUseError: There is none in it.
    """
    try:
        key = serialization.load_pem_public_key(pem)
    except (ValueError, UnsupportedAlgorithm) as error:
        raise WrongUseError(f"{name}: no public key in PEM form in it; ask the sender for theirs") from error
    if not isinstance(key, Ed25519PublicKey):
        raise WrongUseError(f"{name}: a public key, but not Ed25519; ask the sender for `slideway models key --public`")
    return key.public_bytes_raw()


def list_trusted(*further: Path) -> tuple[TrustedKey, ...]:
    """All keys whose packages are believed: this node's own, those in `trusted_folder()`, and further files.

    Raises:
        WrongUseError: A file in the folder is no public key: a folder that decides on trust holds nothing else.
    """
    folder = trusted_folder()
    files: Iterable[Path] = sorted(folder.glob("*.pub")) if folder.is_dir() else ()
    own = load_signing_key()
    return (*([own.public] if own else []), *(read_public_key(file) for file in [*files, *further]))


def trust_key(path: Path, *, name: str | None = None) -> TrustedKey:
    """Put a public key among the trusted ones.

    Raises:
        WrongUseError: It is no public key, or another key of this name is trusted already.
        OutputError: It cannot be written.
    """
    key = read_public_key(path)
    key = TrustedKey(name or key.name, key.raw)
    target = trusted_folder() / f"{key.name}.pub"
    if Path(key.name).name != key.name or key.name.startswith("."):
        raise WrongUseError(f"{key.name!r} is no name for a key; give one with --name, e.g. --name county-hospital")
    if target.exists() and read_public_key(target).raw != key.raw:
        raise WrongUseError(
            f"another key is trusted as {key.name!r}; compare fingerprints with its owner, then remove {target} first, "
            "or give this one another --name"
        )
    with write_fence(target.parent):
        target.parent.mkdir(parents=True, exist_ok=True)
        write_whole(target, key.pem)
    return key


def require_trusted(name: str, signer: TrustedKey, trusted: Iterable[TrustedKey]) -> TrustedKey:
    """The trusted key that a package was signed with.

    Raises:
        UntrustedPackageError: It is not among the trusted ones.
    """
    for key in trusted:
        if key.raw == signer.raw:
            return key
    raise UntrustedPackageError(
        f"{name}: signed with key {in_groups(signer.fingerprint)}, which is not trusted here. Ask the sender, by "
        "telephone, to read out their key's fingerprint (`slideway models key`); if it is the same, save their public "
        "key and run `slideway models key --trust FILE`, then import again"
    )


def in_groups(fingerprint: str) -> str:
    """A fingerprint as people read it out: groups of eight."""
    return " ".join(fingerprint[i : i + 8] for i in range(0, len(fingerprint), 8))
