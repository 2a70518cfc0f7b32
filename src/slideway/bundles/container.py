"""The bundle's container: a signed list of parts, then the parts, most urgent first; every prefix can be read.

```
magic (8) · major, minor (uint16 each) · length of the list (uint32) · list of parts (msgpack)
sha256 of all that (32): the bundle's id · seal: 0, or 1 and Ed25519 key (32) and signature of the id (64)
the parts, one after the other, nothing between and nothing after
```

The list names every part with its tier, size and sha256, so the id covers the whole content, and one flipped bit
anywhere is refused. `docs/bundle-format.md` is the specification.
"""

from __future__ import annotations

import hashlib
import re
import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, BinaryIO, Protocol

import msgpack

from slideway.core.errors import BrokenBundleError

MAGIC = b"\x89SWB\r\n\x1a\n"
VERSION = (1, 0)
MAX_PARTS = 256
MAX_PART_BYTES = 2**30
MAX_LIST_BYTES = 2**16
_HEAD = struct.Struct("<8sHHI")
_SIGNED_AS = b"slideway-bundle/1\n"  # so that a signature of a bundle is never one of anything else
_NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,31}")
_UNSEALED, _ED25519 = 0, 1
_KEY_BYTES, _SIGNATURE_BYTES = 32, 64
_BLOCK_BYTES = 2**20  # a part is read in blocks, so that a short file never gets the memory that its list asks for


class Signer(Protocol):
    """Whoever signs bundles; `slideway.registry.keys.SigningKey` is one."""

    @property
    def public_bytes(self) -> bytes:
        """(32 bytes) the Ed25519 public key."""
        ...

    def sign(self, content: bytes) -> bytes:
        """(64 bytes) the signature."""
        ...


@dataclass(frozen=True)
class Part:
    """One part of a bundle, with its content.

    Attributes:
        name: Lower-case word; each once in a bundle.
        tier: 0 to 3; tiers never go down along the bundle.
        content: The bytes as they travel.
        is_optional: A reader that does not know this part may pass over it.
    """

    name: str
    tier: int
    content: bytes
    is_optional: bool = False


@dataclass(frozen=True)
class PartEntry:
    """One line of the list of parts.

    Attributes:
        name: Its name.
        tier: Its tier.
        is_optional: A reader that does not know it may pass over it.
        n_bytes: Its size.
        sha256: (32 bytes) hash of its bytes as they travel.
    """

    name: str
    tier: int
    is_optional: bool
    n_bytes: int
    sha256: bytes


@dataclass(frozen=True)
class BundleHead:
    """What stands before the parts, checked.

    Attributes:
        id: (64 hex digits) content address: hash of the version and the list of parts.
        minor: Minor version of the format.
        entries: The parts in order.
        lock: How the parts are encrypted; None when they are not.
        signer: (32 bytes) Ed25519 key whose signature of the id is good; None when unsigned. Whether that key is
            trusted is the receiver's decision.
        n_bytes: Bytes before the first part.
    """

    id: str
    minor: int
    entries: tuple[PartEntry, ...]
    lock: dict[str, Any] | None
    signer: bytes | None
    n_bytes: int

    @property
    def total_bytes(self) -> int:
        """Size of the whole bundle."""
        return self.n_bytes + sum(entry.n_bytes for entry in self.entries)

    def bytes_of_tier(self, tier: int) -> int:
        """Bytes of one tier; what stands before the parts counts to tier 0."""
        own = sum(entry.n_bytes for entry in self.entries if entry.tier == tier)
        return own + (self.n_bytes if tier == 0 else 0)


def pack_container(parts: Sequence[Part], *, lock: dict[str, Any] | None = None, signer: Signer | None = None) -> bytes:
    """The bytes of a bundle; the same parts and signer always give the same bytes.

    Args:
        parts: In order, tiers never going down.
        lock: How the parts were encrypted, see `slideway.bundles.lock`.
        signer: Key of the node that vouches for the content.

    Raises:
        ValueError: No parts, a name twice, tiers going down, or sizes beyond the format's limits.
    """
    listing = _pack_list(parts, lock)
    head = _HEAD.pack(MAGIC, *VERSION, len(listing)) + listing
    id_ = hashlib.sha256(head).digest()
    seal = bytes([_UNSEALED])
    if signer is not None:
        seal = bytes([_ED25519]) + signer.public_bytes + signer.sign(_SIGNED_AS + id_)
    return b"".join([head, id_, seal, *(part.content for part in parts)])


def _pack_list(parts: Sequence[Part], lock: dict[str, Any] | None) -> bytes:
    rows = [
        [part.name, part.tier, part.is_optional, len(part.content), hashlib.sha256(part.content).digest()]
        for part in parts
    ]
    content: dict[str, Any] = {"parts": rows} if lock is None else {"parts": rows, "lock": lock}
    listing: bytes = msgpack.packb(content)
    _parse_list(listing, "this bundle", ValueError)
    return listing


def read_head(file: BinaryIO, name: str) -> BundleHead:
    """Read and check what stands before the parts; the file then stands at the first part.

    Args:
        file: At its start.
        name: For messages.

    Raises:
        BrokenBundleError: Not a bundle, cut off before the first part, damaged, or of a newer major version.
    """
    head = _take(file, _HEAD.size, name)
    magic, major, minor, n_bytes = _HEAD.unpack(head)
    if magic != MAGIC:
        raise BrokenBundleError(f"{name}: not a case bundle, or damaged in its first bytes; ask for it again")
    if major != VERSION[0]:
        raise BrokenBundleError(
            f"{name}: bundle version {major}.{minor}, this Slideway reads {VERSION[0]}.x; update Slideway"
        )
    if n_bytes > MAX_LIST_BYTES:
        raise BrokenBundleError(f"{name}: its list of parts is {n_bytes:,} bytes long, which none is; damaged")
    listing = _take(file, n_bytes, name)
    id_ = _take(file, 32, name)
    if hashlib.sha256(head + listing).digest() != id_:
        raise BrokenBundleError(f"{name}: its list of parts was changed or damaged on the way; ask for it again")
    signer, seal_bytes = _read_seal(file, id_, name)
    entries, lock = _parse_list(listing, name, BrokenBundleError)
    return BundleHead(id_.hex(), minor, entries, lock, signer, _HEAD.size + n_bytes + 32 + seal_bytes)


def _read_seal(file: BinaryIO, id_: bytes, name: str) -> tuple[bytes | None, int]:
    kind = _take(file, 1, name)[0]
    if kind == _UNSEALED:
        return None, 1
    if kind != _ED25519:
        raise BrokenBundleError(f"{name}: sealed in way {kind}, unknown to this Slideway, or damaged; update Slideway")
    from cryptography.exceptions import InvalidSignature  # noqa: PLC0415  # reading a slide signs nothing
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey  # noqa: PLC0415

    key, signature = _take(file, _KEY_BYTES, name), _take(file, _SIGNATURE_BYTES, name)
    try:
        Ed25519PublicKey.from_public_bytes(key).verify(signature, _SIGNED_AS + id_)
    except (InvalidSignature, ValueError) as error:
        raise BrokenBundleError(
            f"{name}: its signature does not fit its content: changed after it was signed, or damaged; ask for it again"
        ) from error
    return key, 1 + _KEY_BYTES + _SIGNATURE_BYTES


def iterate_parts(file: BinaryIO, head: BundleHead, name: str) -> Iterator[Part]:
    """Give each whole part, its hash checked; end early, without an error, where the file was cut off.

    One part is held in memory at a time.

    Raises:
        BrokenBundleError: A part is not what the list says, or something follows the last one.
    """
    for entry in head.entries:
        content = _read_up_to(file, entry.n_bytes)
        if len(content) < entry.n_bytes:
            return
        if hashlib.sha256(content).digest() != entry.sha256:
            raise BrokenBundleError(f"{name}: its part {entry.name!r} was changed or damaged; ask for it again")
        yield Part(entry.name, entry.tier, content, entry.is_optional)
    if file.read(1):
        raise BrokenBundleError(f"{name}: something follows its last part; damaged or hostile: ask for it again")


def _read_up_to(file: BinaryIO, n_bytes: int) -> bytes:
    blocks, missing = [], n_bytes
    while missing and (block := file.read(min(missing, _BLOCK_BYTES))):
        blocks.append(block)
        missing -= len(block)
    return b"".join(blocks)


def _parse_list(
    listing: bytes, name: str, error: type[ValueError] | type[BrokenBundleError]
) -> tuple[tuple[PartEntry, ...], dict[str, Any] | None]:
    try:
        content = msgpack.unpackb(listing, strict_map_key=True, max_ext_len=0)
        entries = tuple(_read_entry(row) for row in content["parts"])
        lock = content.get("lock")
        if lock is not None and not isinstance(lock, dict):
            raise ValueError("the lock is not a map")
    except (ValueError, KeyError, TypeError, AttributeError, msgpack.UnpackException) as cause:
        raise error(f"{name}: its list of parts cannot be read ({cause}); ask for it again") from cause
    names, tiers = [entry.name for entry in entries], [entry.tier for entry in entries]
    if not 0 < len(entries) <= MAX_PARTS or len(set(names)) < len(names) or tiers != sorted(tiers):
        raise error(f"{name}: its list has no parts, too many, one twice, or tiers out of order; ask for it again")
    return entries, lock


def _read_entry(row: Any) -> PartEntry:
    name, tier, is_optional, n_bytes, sha256 = row
    types = [type(value) for value in row]
    if types != [str, int, bool, int, bytes] or not _NAME.fullmatch(name) or len(sha256) != 32:
        raise ValueError("an entry of another form")
    if not 0 <= tier <= 3 or not 0 < n_bytes <= MAX_PART_BYTES:
        raise ValueError(f"{name} of tier {tier} and {n_bytes} bytes")
    return PartEntry(name, tier, is_optional, n_bytes, sha256)


def _take(file: BinaryIO, n_bytes: int, name: str) -> bytes:
    content = _read_up_to(file, n_bytes)
    if len(content) < n_bytes:
        raise BrokenBundleError(f"{name}: cut off before its first part; nothing of it can be used: ask for it again")
    return content
