"""Whom bundles are locked to: this node's receiving key (X25519), and the public keys of others."""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from pathlib import Path

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey

from slideway.core.errors import WrongUseError
from slideway.core.files import write_whole
from slideway.registry.keys import keys_folder
from slideway.registry.secret_file import keep_secret, read_secret
from slideway.registry.staging import write_fence

_KEY_FILE, _FOLDER = "receiving-key.pem", "receivers"
_MAX_KEY_BYTES = 10_000
_NAME = re.compile(r"[a-z0-9][a-z0-9-]{0,62}")


@dataclass(frozen=True)
class ReceiverKey:
    """The public key of somebody who receives bundles.

    Attributes:
        name: As the policy file calls them.
        public: The key (X25519).
    """

    name: str
    public: X25519PublicKey

    @property
    def fingerprint(self) -> str:
        """Sha256 of the key in hex: what the policy pins and two people compare by telephone."""
        return hashlib.sha256(self.public.public_bytes_raw()).hexdigest()

    @property
    def pem(self) -> bytes:
        """The key as a PEM file (SubjectPublicKeyInfo), as `openssl` reads it."""
        return self.public.public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)


def receiving_key_path() -> Path:
    """File of this node's receiving key."""
    return keys_folder() / _KEY_FILE


def receivers_folder() -> Path:
    """Folder of the receivers' public keys, one PEM file each."""
    return keys_folder() / _FOLDER


def load_receiving_key(path: Path | None = None) -> X25519PrivateKey | None:
    """This node's receiving key, or the one in a file; None before one is made.

    Raises:
        WrongUseError: The file is damaged, is no X25519 key, others may read it, or it was named and is not there.
    """
    file = path or receiving_key_path()
    content = read_secret(file, "receiving key")
    if content is None:
        if path is not None:
            raise WrongUseError(f"{path.name}: no such file; give the private key that the bundle is locked to")
        return None
    try:
        key = serialization.load_pem_private_key(content, None)
    except (ValueError, TypeError, UnsupportedAlgorithm) as error:
        raise WrongUseError(
            f"{file}: no receiving key in it ({error}); bring it back from a backup, or remove it"
        ) from error
    if not isinstance(key, X25519PrivateKey):
        raise WrongUseError(f"{file}: not an X25519 key; bring the right one back from a backup, or remove it")
    return key


def make_receiving_key() -> X25519PrivateKey:
    """This node's receiving key, made and kept (mode 0600) when there is none yet.

    Raises:
        WrongUseError: There is one and it is damaged.
        OutputError: It cannot be written.
    """
    if (key := load_receiving_key()) is not None:
        return key
    content = X25519PrivateKey.generate().private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    keep_secret(receiving_key_path(), content)
    made = load_receiving_key()
    assert made is not None
    return made


def read_receiver_key(path: Path) -> ReceiverKey:
    """Read a receiver's public key file.

    Raises:
        WrongUseError: It cannot be read or holds no X25519 public key.
    """
    try:
        with path.open("rb") as file:
            key = serialization.load_pem_public_key(file.read(_MAX_KEY_BYTES))
    except OSError as error:
        raise WrongUseError(f"{path.name}: this key cannot be read ({error.strerror}); check the path") from error
    except (ValueError, UnsupportedAlgorithm) as error:
        raise WrongUseError(f"{path.name}: no public key in PEM form in it; ask the receiver for theirs") from error
    if not isinstance(key, X25519PublicKey):
        raise WrongUseError(
            f"{path.name}: a public key, but not one to lock to (X25519); ask the receiver for the file that "
            "`slideway bundle key --public` writes there"
        )
    return ReceiverKey(path.stem, key)


def add_receiver(name: str, path: Path) -> ReceiverKey:
    """Keep a receiver's public key under a name. The policy decides what they get, and pins this key.

    Raises:
        WrongUseError: It is no such key, the name is none, or another key has this name.
        OutputError: It cannot be written.
    """
    if not _NAME.fullmatch(name):
        raise WrongUseError(f"{name!r} is no name for a receiver; use small letters, digits and hyphens")
    key = ReceiverKey(name, read_receiver_key(path).public)
    target = receivers_folder() / f"{name}.pub"
    if target.exists() and read_receiver_key(target).fingerprint != key.fingerprint:
        raise WrongUseError(
            f"another key is kept for {name!r}; compare fingerprints with the receiver, then remove {target} first"
        )
    with write_fence(target.parent):
        target.parent.mkdir(parents=True, exist_ok=True)
        write_whole(target, key.pem)
    return key


def find_receiver(name: str) -> ReceiverKey | None:
    """The public key kept for a receiver; None when there is none.

    Raises:
        WrongUseError: The file is damaged.
    """
    path = receivers_folder() / f"{name}.pub"
    return read_receiver_key(path) if _NAME.fullmatch(name) and path.is_file() else None


def list_receivers() -> tuple[ReceiverKey, ...]:
    """All receivers whose public keys are kept here.

    Raises:
        WrongUseError: A file in the folder is no such key.
    """
    folder = receivers_folder()
    return tuple(read_receiver_key(path) for path in sorted(folder.glob("*.pub"))) if folder.is_dir() else ()
