"""What a case bundle says at once: the summary that travels first and is never larger than two kilobytes."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class BriefFinding:
    """A finding in as few words as it can be told; never a diagnosis.

    Attributes:
        task: Id of the question.
        answer: `answer`, `set`, `refer` or `not-readable`.
        labels: The first few labels it names, most probable first.
        probability: Of the most probable label, in [0, 1]; None when nothing was read.
        in_force: The head's question is switched on; otherwise a research opinion.
    """

    task: str
    answer: str
    labels: tuple[str, ...]
    probability: float | None
    in_force: bool


@dataclass(frozen=True)
class BundleSummary:
    """The first part of a bundle: which slide, how good, what the edge thinks of it, and how to read the rest.

    Attributes:
        slide_sha256: Identity of the slide's content, in hex.
        case: Pseudonym of the case, the same for all its slides at one site; empty when none was given.
        site: Where in the body the tissue comes from, as an id of the catalogue; empty when not given.
        width_px: Width of level 0.
        height_px: Height of level 0.
        mpp: Microns per pixel at level 0.
        is_mpp_estimated: Nothing stated it; it was estimated and accepted.
        tissue_mm2: Tissue area.
        verdict: Quality: `readable`, `limited`, `rescan` or `no-tissue`.
        reasons: Codes of its reasons.
        tile_px: Edge of a tile as the encoder saw it.
        tile_mpp: Microns per pixel of a tile.
        tiles: Tiles that were encoded on the edge.
        tiles_left_out: Of these, tiles that a size budget left no room for; the others stand for them.
        tissue_tiles: Tiles of the tissue that these stand for; more than `tiles` when only a part was encoded.
        is_sampled: The edge encoded a part of the tissue's tiles only (profile `thrifty`).
        novel_share: Share of the tissue unlike the encoder's reference set, in [0, 1]; None without a reference.
        encoder_id: Encoder of the vectors.
        fingerprint: Its fingerprint, in hex.
        codec: How vectors are coded, see `docs/codecs.md`.
        findings: What the heads on the edge say, in brief.
        findings_left_out: Findings that found no room here; the part `opinion` has them all.
    """

    slide_sha256: str
    case: str
    site: str
    width_px: int
    height_px: int
    mpp: float
    is_mpp_estimated: bool
    tissue_mm2: float
    verdict: str
    reasons: tuple[str, ...]
    tile_px: int
    tile_mpp: float
    tiles: int
    tiles_left_out: int
    tissue_tiles: int
    is_sampled: bool
    novel_share: float | None
    encoder_id: str
    fingerprint: str
    codec: str
    findings: tuple[BriefFinding, ...] = ()
    findings_left_out: int = 0
