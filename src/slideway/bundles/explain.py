"""Say in words what a bundle holds and what it does not, also where the key that opens it is not here."""

from __future__ import annotations

import io
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from slideway.bundles.build import OPINION, THUMBNAIL
from slideway.bundles.container import BundleHead, iterate_parts, read_head
from slideway.bundles.lock import name_receiver
from slideway.bundles.policy import fingerprint_of
from slideway.bundles.read import CaseBundle, read_bundle
from slideway.bundles.release import find_unknown_words
from slideway.bundles.summary_part import NAME as SUMMARY
from slideway.bundles.tiles_part import AXES, peek_tiles
from slideway.core.bundle import BriefFinding, BundleSummary
from slideway.core.errors import WrongUseError
from slideway.core.pseudonym import is_pseudonym

_TILES = "tiles-"
_TIERS = ("at once", "the essentials", "every tile")
NEVER = (
    "no label image and no macro (overview) image of the glass",
    "no name, no date, no number of a patient or a case",
    "no file name, no folder, no field of the slide's metadata",
)
NO_DIAGNOSIS = "Findings are provisional opinions of research software; none of them is a diagnosis."


@dataclass(frozen=True)
class PartLine:
    """One part of a bundle, as its list says.

    Attributes:
        name: Its name.
        tier: Its tier.
        n_bytes: Its size as it travels.
        is_here: It came whole.
        words: What it is.
    """

    name: str
    tier: int
    n_bytes: int
    is_here: bool
    words: str


@dataclass(frozen=True)
class Explanation:
    """What can be said of a bundle.

    Attributes:
        id: Its content address.
        version: Of its format.
        n_bytes: Bytes that came.
        total_bytes: Bytes of the whole bundle.
        parts: All its parts.
        signer: Fingerprint of the key that signed it; empty when nobody did.
        signer_name: Whose key that is, when it is trusted here; else empty.
        locked_to: First 16 hex digits of the fingerprint of the key that opens it; empty when it is not locked.
        is_open: Its content could be read here.
        summary: What its summary says; None when it could not be read.
        holds: Sentences on what it holds.
        lacks: Sentences on what it does not hold.
        findings: One sentence each.
        warnings: What a person should look at before passing it on or relying on it.
    """

    id: str
    version: str
    n_bytes: int
    total_bytes: int
    parts: tuple[PartLine, ...]
    signer: str
    signer_name: str
    locked_to: str
    is_open: bool
    summary: BundleSummary | None
    holds: tuple[str, ...]
    lacks: tuple[str, ...]
    findings: tuple[str, ...]
    warnings: tuple[str, ...]

    @property
    def is_whole(self) -> bool:
        """Whether every part came."""
        return all(part.is_here for part in self.parts)

    @property
    def tier_bytes(self) -> tuple[int, ...]:
        """Bytes of tiers 0 to 3, whole; what stands before the parts counts to tier 0."""
        own = [sum(part.n_bytes for part in self.parts if part.tier == tier) for tier in range(4)]
        own[0] += self.total_bytes - sum(own)
        return tuple(own)


def explain_bundle(
    source: Path | bytes, *, trusted: Mapping[bytes, str] | None = None, key: X25519PrivateKey | None = None
) -> Explanation:
    """Say what a bundle holds; one that is locked to another key is told by its list alone.

    Args:
        source: A file, or the bytes themselves.
        trusted: Public keys (32 bytes) that are trusted, and whose they are.
        key: The receiver's private key, for a bundle that is locked to it.

    Raises:
        BrokenBundleError: Not a bundle, cut off before the end of its summary, changed, or of a newer major version.
        WrongUseError: The file cannot be opened.
    """
    content, name = _load(source)
    file = io.BytesIO(content)
    head = read_head(file, name)
    came = {part.name for part in iterate_parts(file, head, name)}
    lock = head.lock or {}
    locked_to = str(lock.get("receiver", "")) if head.lock is not None else ""
    is_open = head.lock is None or (key is not None and name_receiver(key.public_key()) == locked_to)
    case = read_bundle(content, key=key) if is_open else None
    signer_name = (trusted or {}).get(head.signer, "") if head.signer else ""
    return Explanation(
        id=head.id,
        version=f"1.{head.minor}",
        n_bytes=len(content),
        total_bytes=head.total_bytes,
        parts=tuple(
            PartLine(entry.name, entry.tier, entry.n_bytes, entry.name in came, _name_part(entry.name))
            for entry in head.entries
        ),
        signer=fingerprint_of(head.signer) if head.signer else "",
        signer_name=signer_name,
        locked_to=locked_to,
        is_open=case is not None,
        summary=None if case is None else case.summary,
        holds=_say_holds(head, case),
        lacks=_say_lacks(head),
        findings=() if case is None else _say_findings(case.summary),
        warnings=(*_warn_of_way(head, came, signer_name), *(() if case is None else _warn_of_content(case))),
    )


def _load(source: Path | bytes) -> tuple[bytes, str]:
    if isinstance(source, bytes):
        return source, "the bundle"
    try:
        return source.read_bytes(), source.name
    except OSError as error:
        raise WrongUseError(f"{source.name}: this bundle cannot be read ({error.strerror}); check the path") from error


def _name_part(name: str) -> str:
    words = {
        SUMMARY: "which slide, how good, what heads say in brief",
        OPINION: "findings and quality in full",
        THUMBNAIL: "a picture of the tissue, without glass and pen",
        AXES: "axes that the further tiles' vectors share",
    }
    if name.startswith(_TILES):
        return "vectors of the most telling tiles" if name == f"{_TILES}0" else "vectors of further tiles"
    return words.get(name, "unknown to this Slideway")


def tell_tier(tier: int) -> str:
    """What a tier is for, in a word or two."""
    return _TIERS[tier] if tier < len(_TIERS) else "regions as pixels"


def _say_holds(head: BundleHead, case: CaseBundle | None) -> tuple[str, ...]:
    names = {entry.name for entry in head.entries}
    said = [_say_summary(None if case is None else case.summary)]
    if OPINION in names:
        said.append("the heads' findings in full, with places on the slide, and the measures of its quality")
    if THUMBNAIL in names:
        said.append("a small picture of the tissue; glass beside it and pen are blanked")
    if any(name.startswith(_TILES) for name in names):
        said.append(_say_vectors(case))
    return tuple(said)


def _say_summary(summary: BundleSummary | None) -> str:
    always = (
        "the hash of the slide file (whoever has that file can recognise it), sizes, quality, and findings in brief"
    )
    if summary is None:
        return f"{always}; possibly a case pseudonym and a site of the body"
    more = ["a case pseudonym, the same for all slides of the case" if summary.case else "no case pseudonym"]
    more.append(f"the site {summary.site}" if summary.site else "no site of the body")
    return f"{always}; {' and '.join(more)}"


def _say_vectors(case: CaseBundle | None) -> str:
    risk = (
        "tissue can be approximated from them, and slides of the same patient linked, so they are to be guarded like "
        "images of the patient"
    )
    if case is None:
        return f"vectors of tiles: {risk}"
    came = sum(
        peek_tiles(content, case.name).tiles for name, content in case.contents.items() if name.startswith(_TILES)
    )
    if came == 0:
        return "vectors of tiles stand in its list, and none of them came"
    told = "all" if came == case.summary.tiles else f"{came:,} of"
    return f"vectors of {told} {case.summary.tiles:,} tiles with their places ({case.summary.codec}): {risk}"


def _say_lacks(head: BundleHead) -> tuple[str, ...]:
    names = {entry.name for entry in head.entries}
    said = [*NEVER, "no region or tile of the slide as pixels"]
    if OPINION not in names:
        said.append("no findings in full, only the summary's")
    if THUMBNAIL not in names:
        said.append("no thumbnail: no picture at all")
    if not any(name.startswith(_TILES) for name in names):
        said.append("no vectors of tiles: no head can be asked again, nothing similar be found")
    return tuple(said)


def _say_findings(summary: BundleSummary) -> tuple[str, ...]:
    said = [_say_finding(finding) for finding in summary.findings]
    if summary.findings_left_out:
        said.append(f"and {summary.findings_left_out} more, in the part {OPINION}")
    return tuple(said)


def _say_finding(finding: BriefFinding) -> str:
    answers = {
        "answer": ", ".join(finding.labels[:1]),
        "set": " or ".join(finding.labels),
        "refer": "refer to an expert",
        "not-readable": "not readable",
    }
    sure = "" if finding.probability is None else f" ({finding.probability:.2f})"
    off = "" if finding.in_force else ", research only: not in force"
    return f"{finding.task}: {answers.get(finding.answer, finding.answer)}{sure}{off}"


def _warn_of_way(head: BundleHead, came: set[str], signer_name: str) -> list[str]:
    said = []
    if head.signer is None:
        said.append("nobody signed it: as a reading writes it, not as it may travel (`slideway bundle release`)")
    elif not signer_name:
        said.append(
            "the key that signed it is not trusted here, and what is said above is what Slideway writes: compare the "
            "key's fingerprint with the sender by telephone"
        )
    missing = [entry.name for entry in head.entries if entry.name not in came]
    if missing:
        said.append(f"cut off: {', '.join(missing)} did not come; {_say_usable(came)}")
    if head.lock is None:
        said.append("not locked: whoever gets hold of it can read it")
    return said


def _say_usable(came: set[str]) -> str:
    if any(name.startswith(_TILES) for name in came):
        return "the tiles that came stand for the others, and what follows from them is provisional"
    usable = [words for name, words in ((SUMMARY, "the summary"), (OPINION, "the findings"), (THUMBNAIL, "the picture"))
              if name in came]  # fmt: skip
    return f"{', '.join(usable)} can be used" if usable else "nothing of it can be used: ask for it again"


def _warn_of_content(case: CaseBundle) -> list[str]:
    """What a program other than Slideway may have put in, against the sentences of `NEVER`."""
    said = []
    if case.summary.case and not is_pseudonym(case.summary.case):
        said.append("what stands for the case is no pseudonym of Slideway's: it may be an accession number")
    if words := find_unknown_words(case.opinion or {}):
        told = ", ".join(ascii(word)[:40] for word in words[:10])
        said.append(f"its findings have entries that Slideway does not write, and may identify: {told}")
    if unknown := [e.name for e in case.head.entries if _name_part(e.name) == "unknown to this Slideway"]:
        said.append(f"parts that this Slideway does not know, and may identify: {', '.join(unknown)}")
    return said
