"""Lock a bundle's parts to one receiver: HPKE (RFC 9180) carries a fresh key, ChaCha20-Poly1305 every part.

The list of parts stays readable, so a relay without the key can check hashes, meter tiers and stop after any part.
"""

from __future__ import annotations

import hashlib
import os
import re
import struct
from collections.abc import Sequence
from typing import Any

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305
from cryptography.hazmat.primitives.hpke import AEAD, KDF, KEM, Suite

from slideway.bundles.container import Part
from slideway.core.errors import BrokenBundleError, LockedBundleError

SUITE = "hpke-x25519-sha256-chacha20poly1305"
TAG_BYTES = 16
_RECEIVER = re.compile(r"[0-9a-f]{16}")
_INFO = b"slideway-bundle/1"
_HPKE = Suite(KEM.X25519, KDF.HKDF_SHA256, AEAD.CHACHA20_POLY1305)


def name_receiver(public: X25519PublicKey) -> str:
    """First 16 hex digits of the sha256 of a receiver's key: which key opens a bundle."""
    return hashlib.sha256(public.public_bytes_raw()).hexdigest()[:16]


def lock_parts(parts: Sequence[Part], receiver: X25519PublicKey) -> tuple[list[Part], dict[str, Any]]:
    """Encrypt every part; returns them and what the list says of the lock. Two calls never give the same bytes."""
    key = os.urandom(32)
    cipher = ChaCha20Poly1305(key)
    locked = [
        Part(part.name, part.tier, cipher.encrypt(_nonce(i), part.content, _bind(part)), part.is_optional)
        for i, part in enumerate(parts)
    ]
    wrapped = _HPKE.encrypt(key, receiver, info=_INFO)
    return locked, {"suite": SUITE, "receiver": name_receiver(receiver), "key": wrapped}


class Unlocker:
    """Decrypts the parts of one bundle, in their order."""

    def __init__(self, lock: dict[str, Any], private: X25519PrivateKey | None, name: str) -> None:
        suite, receiver, wrapped = lock.get("suite"), lock.get("receiver"), lock.get("key")
        if suite != SUITE:
            raise BrokenBundleError(
                f"{name}: locked in a way unknown to this Slideway ({suite!r:.40}); update Slideway"
            )
        if type(receiver) is not str or not _RECEIVER.fullmatch(receiver) or type(wrapped) is not bytes:
            raise BrokenBundleError(f"{name}: its lock is of another form; the sender's program is at fault: tell them")
        if private is None or name_receiver(private.public_key()) != receiver:
            raise LockedBundleError(
                f"{name}: locked to the receiver {receiver}; open it where that private key lies, or ask the "
                "sender to lock it to yours (`slideway bundle key`)"
            )
        try:
            key = _HPKE.decrypt(wrapped, private, info=_INFO)
            self._cipher = ChaCha20Poly1305(key)
        except (InvalidTag, ValueError) as error:
            raise BrokenBundleError(f"{name}: its lock is damaged or forged; ask for it again") from error
        self._name = name

    def unlock(self, index: int, part: Part) -> Part:
        """The part at this place of the list as it was before.

        Raises:
            BrokenBundleError: It was changed, or moved to another place.
        """
        try:
            content = self._cipher.decrypt(_nonce(index), part.content, _bind(part))
        except InvalidTag as error:
            raise BrokenBundleError(
                f"{self._name}: its part {part.name!r} does not open with this key: changed or forged; ask for it again"
            ) from error
        return Part(part.name, part.tier, content, part.is_optional)


def _nonce(index: int) -> bytes:
    return struct.pack(">4xQ", index)  # the key is fresh for every bundle, so counting never repeats a nonce


def _bind(part: Part) -> bytes:
    return f"{part.name}\n{part.tier}\n{int(part.is_optional)}".encode()
