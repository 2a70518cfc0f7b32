"""Let a bundle leave: the one place where a policy is enforced, and where what travels is signed and locked.

Nothing is removed from a bundle here; a new one is made of what the receiver's level names. What the list does not
know, a part or a word of the opinion, stays behind. Then the new bundle is read again and checked before it is given.
"""

from __future__ import annotations

import io
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import imagecodecs
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PublicKey

from slideway.bundles.build import OPINION, THUMBNAIL
from slideway.bundles.container import BundleHead, Part, Signer, iterate_parts, pack_container, read_head
from slideway.bundles.lock import TAG_BYTES, lock_parts, name_receiver
from slideway.bundles.policy import Level, Policy, ReceiverRule, fingerprint_of
from slideway.bundles.read import REGION, CaseBundle, read_bundle
from slideway.bundles.summary_part import MAX_TIER0_BYTES, dump_summary
from slideway.bundles.summary_part import NAME as SUMMARY
from slideway.bundles.tiles_part import AXES, load_shared_axes, load_tiles
from slideway.core.catalogue import load_catalogue
from slideway.core.errors import BrokenBundleError, PolicyError
from slideway.core.pseudonym import is_pseudonym

_TILES = re.compile(r"tiles-\d{1,3}")
_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+-]{0,63}")
_MADE = "what was made for release"

# Every word that an object in the opinion may have; one that is not here stays behind. By the objects they stand in.
_WORDS = {
    "quality": "quality verdict reasons code text measures",
    "tissue": "tissue area_mm2 fraction",
    "grid": "grid tiles tile_px mpp blurred_tiles lost_tiles",
    "groups": "groups count shares",
    "novelty": "novelty reference novel_share",
    "profile": "profile name candidate_tiles screened_tiles read_tiles saved_tiles_percent reasons blurred_kept",
    "heads": "heads id version fingerprint",
    "findings": "findings task title kind answer labels probabilities reasons cautions in_force validated",
    "head": "head id version sha256 strangeness evidence",
    "evidence": "for against change tile x_level0_px y_level0_px",
}
OPINION_KEYS = frozenset(word for words in _WORDS.values() for word in words.split())
_TABLES = frozenset({"probabilities", "measures"})  # from labels or names of measures to numbers


@dataclass(frozen=True)
class ReleaseReport:
    """What left, or is ready to: for the person, the audit and the byte log.

    Attributes:
        receiver: Whom it is for.
        level: What the policy lets them have.
        reason: Why, in the policy's words.
        id: Of the bundle that leaves.
        source_id: Of the bundle that it was made of.
        slide_sha256: Of the slide.
        parts: Names of the parts that leave.
        left_behind: Names of the parts, and `opinion.WORD` of the opinion's entries, that do not.
        n_bytes: Size.
        tier_bytes: Of tiers 0, 1 and 2; what stands before the parts counts to tier 0.
        signer: Fingerprint of the key that vouches for it.
        locked_to: Fingerprint of the key that opens it; empty when it is not locked.
    """

    receiver: str
    level: str
    reason: str
    id: str
    source_id: str
    slide_sha256: str
    parts: tuple[str, ...]
    left_behind: tuple[str, ...]
    n_bytes: int
    tier_bytes: tuple[int, int, int]
    signer: str
    locked_to: str


def release_bundle(
    bundle: CaseBundle | Path | bytes,
    policy: Policy,
    receiver: str,
    *,
    signer: Signer,
    receiver_key: X25519PublicKey | None = None,
) -> tuple[bytes, ReleaseReport]:
    """Make the bundle that may leave for a receiver.

    Args:
        bundle: As `slideway read` wrote it.
        policy: What may leave.
        receiver: Name of the receiver in it.
        signer: Key of this node.
        receiver_key: Key of the receiver; the policy must pin it. None only where the policy asks for no encryption.

    Returns:
        The bytes to send, and what is in them. Two calls never give the same bytes where they are locked: the key in it
        is fresh.

    Raises:
        PolicyError: A rule does not let it leave; nothing was made.
        BrokenBundleError: The bundle is damaged or not whole.
    """
    rule = policy.require(receiver, Level.OPINIONS)
    lock_to = _choose_lock(rule, receiver_key, policy.source)
    case = bundle if isinstance(bundle, CaseBundle) else read_bundle(bundle)
    _require_releasable(case, rule, policy.source)
    parts, left_behind = _take_allowed(case, rule)
    made = pack_container(parts, signer=signer)
    _check_open(made, case, rule)
    if lock_to is not None:
        locked, lock = lock_parts(parts, lock_to)
        made = pack_container(locked, lock=lock, signer=signer)
    head = _check_sealed(made, parts, signer, lock_to)
    _require_size(made, rule, policy.source, "bundle")
    return made, ReleaseReport(
        receiver=receiver,
        level=rule.level.word,
        reason=rule.reason,
        id=head.id,
        source_id=case.head.id,
        slide_sha256=case.summary.slide_sha256,
        parts=tuple(part.name for part in parts),
        left_behind=left_behind,
        n_bytes=len(made),
        tier_bytes=(head.bytes_of_tier(0), head.bytes_of_tier(1), head.bytes_of_tier(2)),
        signer=fingerprint_of(signer.public_bytes),
        locked_to="" if lock_to is None else rule.key,
    )


def release_region(
    picture: bytes,
    *,
    slide_sha256: str,
    rectangle: Sequence[int],
    site: str,
    policy: Policy,
    receiver: str,
    signer: Signer,
    receiver_key: X25519PublicKey | None,
) -> bytes:
    """Make the container in which one region of a slide may leave as pixels: parts `place` and `region.webp`.

    Writing on the glass in that place leaves with it: nobody looked.

    Args:
        picture: WebP without metadata.
        slide_sha256: Of the slide, in hex.
        rectangle: x, y, width, height in level-0 pixels.
        site: Of the slide, as its summary says; empty when not given.
        policy: What may leave.
        receiver: Name of the receiver in it.
        signer: Key of this node.
        receiver_key: Key of the receiver; the policy must pin it.

    Raises:
        PolicyError: A rule does not let it leave; nothing was made.
    """
    rule = policy.require(receiver, Level.REGIONS)
    lock_to = _choose_lock(rule, receiver_key, policy.source)
    _require_site(site, rule, policy.source)
    _require_bare_picture(picture, "a region")
    place = json.dumps({"slide": slide_sha256, "rectangle": [int(number) for number in rectangle]}).encode()
    parts = [Part("place", 3, place), Part(REGION, 3, picture)]
    made = pack_container(parts, signer=signer)
    if lock_to is not None:
        locked, lock = lock_parts(parts, lock_to)
        made = pack_container(locked, lock=lock, signer=signer)
    _check_sealed(made, parts, signer, lock_to)
    _require_size(made, rule, policy.source, "region")
    return made


def _require_size(made: bytes, rule: ReceiverRule, source: str, what: str) -> None:
    if rule.max_bytes is not None and len(made) > rule.max_bytes:
        raise PolicyError(
            f"{source}: [receiver.{rule.name}] max_bytes = {rule.max_bytes}, and this {what} has {len(made):,} "
            "bytes; raise max_bytes, or let them have opinions only"
        )


def _choose_lock(rule: ReceiverRule, key: X25519PublicKey | None, source: str) -> X25519PublicKey | None:
    """The key to lock to: the one that the policy pins, and no other."""
    if key is None:
        if rule.must_encrypt:
            raise PolicyError(
                f"{source}: [receiver.{rule.name}] must_encrypt, and no key of theirs is here; ask them for the file "
                f"of `slideway bundle key --public FILE`, then `slideway bundle receivers add {rule.name} FILE`"
            )
        return None
    found = fingerprint_of(key.public_bytes_raw())
    if not rule.key:
        raise PolicyError(f'{source}: [receiver.{rule.name}] pins no key; write key = "{found}" after comparing it')
    if found != rule.key:
        raise PolicyError(
            f"{source}: [receiver.{rule.name}] pins the key {rule.key[:16]}, and the one that is here is {found[:16]}; "
            "somebody may have exchanged it: compare fingerprints with the receiver by telephone"
        )
    return key


def _require_releasable(case: CaseBundle, rule: ReceiverRule, source: str) -> None:
    """Refuse what no receiver should get: half a bundle, or a word where only a pseudonym or an id belongs."""
    summary = case.summary
    if not case.is_whole:
        raise BrokenBundleError(f"{case.name}: not whole ({len(case.missing)} parts missing); read the slide again")
    if summary.case and not is_pseudonym(summary.case):
        raise PolicyError(
            f"{case.name}: what stands for the case in it is no pseudonym and could be an accession number; read the "
            "slide again with `slideway read --case NUMBER`, which makes one"
        )
    if summary.site and summary.site not in {site.id for site in load_catalogue().sites}:
        raise PolicyError(f"{case.name}: its site is none of the catalogue; read the slide again with --site ID")
    ids = [summary.verdict, summary.codec, summary.encoder_id, *summary.reasons]
    if not all(_ID.fullmatch(word) for word in ids):
        raise PolicyError(f"{case.name}: a word in its summary is not of the form of an id; read the slide again")
    _require_site(summary.site, rule, source)


def _require_site(site: str, rule: ReceiverRule, source: str) -> None:
    if rule.sites and site not in rule.sites:
        told = f"from {site}" if site else "of no stated site (`slideway read --site ID` states it)"
        raise PolicyError(
            f"{source}: [receiver.{rule.name}] sites = {', '.join(rule.sites)}, and this slide is {told}; it stays"
        )


def _is_allowed(name: str, rule: ReceiverRule) -> bool:
    """Whether a part may leave: the list of what may, and nothing else."""
    if name in {SUMMARY, OPINION}:
        return rule.level >= Level.OPINIONS
    if name == AXES or _TILES.fullmatch(name):
        return rule.level >= Level.FEATURES
    return name == THUMBNAIL and rule.thumbnail and rule.level >= Level.OPINIONS


def _take_allowed(case: CaseBundle, rule: ReceiverRule) -> tuple[list[Part], tuple[str, ...]]:
    parts: list[Part] = []
    left_behind: list[str] = []
    for entry in case.head.entries:
        if not _is_allowed(entry.name, rule):
            left_behind.append(entry.name)
            continue
        content = case.contents[entry.name]
        if entry.name == SUMMARY:
            content = dump_summary(case.summary, room=MAX_TIER0_BYTES)  # of the fields that are known
        elif entry.name == OPINION:
            content, dropped = _rewrite_opinion(case.opinion or {})
            left_behind += [f"{OPINION}.{word}" for word in dropped]
        elif entry.name == THUMBNAIL:
            _require_bare_picture(content, case.name)
        parts.append(Part(entry.name, entry.tier, content, entry.is_optional))
    return parts, tuple(left_behind)


def _rewrite_opinion(opinion: Mapping[str, Any]) -> tuple[bytes, tuple[str, ...]]:
    """The opinion of known words only, packed anew; and the words that stay behind."""
    dropped: set[str] = set()
    kept = _keep_known(opinion, dropped)
    packed = imagecodecs.zstd_encode(json.dumps(kept, ensure_ascii=False).encode(), 19)
    return bytes(packed), tuple(sorted(dropped))


def find_unknown_words(opinion: Mapping[str, Any]) -> tuple[str, ...]:
    """Entries of an opinion that would stay behind at a release."""
    return _rewrite_opinion(opinion)[1]


def _keep_known(value: Any, dropped: set[str], *, is_table: bool = False) -> Any:
    if isinstance(value, dict):
        if is_table:
            return {key: number for key, number in value.items() if isinstance(number, int | float | None)}
        dropped |= value.keys() - OPINION_KEYS
        return {
            key: _keep_known(item, dropped, is_table=key in _TABLES or _counts_reasons(key, item))
            for key, item in value.items()
            if key in OPINION_KEYS
        }
    return [_keep_known(item, dropped) for item in value] if isinstance(value, list) else value


def _counts_reasons(key: str, item: Any) -> bool:
    """Whether these are the counts of a profile's reasons, not a list of reasons in words."""
    return key == "reasons" and isinstance(item, dict)


def _require_bare_picture(webp: bytes, name: str) -> None:
    """Refuse a WebP file with more in it than one picture: EXIF and XMP are further chunks.

    Source: WebP container specification (RFC 9649), section 2: the simple formats are one VP8 or VP8L chunk.
    """
    riff_bytes, chunk_bytes = (int.from_bytes(webp[at : at + 4], "little") for at in (4, 16))
    is_bare = webp[:4] == b"RIFF" and webp[8:12] == b"WEBP" and webp[12:16] in {b"VP8 ", b"VP8L"}
    if not is_bare or riff_bytes + 8 != len(webp) or 20 + chunk_bytes + chunk_bytes % 2 != len(webp):
        raise PolicyError(f"{name}: its picture carries more than pixels; read the slide again")


def _check_open(made: bytes, case: CaseBundle, rule: ReceiverRule) -> None:
    """Read what was made, before it is locked, as its receiver will: only what is allowed, and all of it usable."""
    again = read_bundle(made)
    names = {entry.name for entry in again.head.entries}
    if not all(_is_allowed(name, rule) for name in names) or not again.is_whole:
        raise PolicyError(f"{_MADE}: holds a part that may not leave; a bug in Slideway: please report it")
    if again.summary != case.summary:
        raise PolicyError(f"{_MADE}: says something else than the bundle here; a bug in Slideway: please report it")
    _ = again.opinion  # refused when it is none
    axes = again.contents.get(AXES)
    basis = None if axes is None else load_shared_axes(axes, again.summary.fingerprint, case.name)
    for name in names:
        if _TILES.fullmatch(name):
            load_tiles(again.contents[name], basis, case.name)  # one at a time: a large slide's vectors fill a memory


def _check_sealed(made: bytes, parts: list[Part], signer: Signer, lock_to: X25519PublicKey | None) -> BundleHead:
    """Check the final bytes: signed by this node, locked to the receiver, every part hashed."""
    file = io.BytesIO(made)
    head = read_head(file, _MADE)
    sent = list(iterate_parts(file, head, _MADE))
    more = 0 if lock_to is None else TAG_BYTES
    is_right = (
        head.signer == signer.public_bytes
        and (head.lock or {}).get("receiver") == (None if lock_to is None else name_receiver(lock_to))
        and [(p.name, p.tier, len(p.content)) for p in sent] == [(p.name, p.tier, len(p.content) + more) for p in parts]
        and all((a.content == b.content) is (lock_to is None) for a, b in zip(sent, parts, strict=True))
    )
    if not is_right:
        raise PolicyError(f"{_MADE}: not signed or locked as it should be; a bug in Slideway: please report it")
    return head
