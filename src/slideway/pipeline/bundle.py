"""Make the case bundle of a reading: what may travel is taken from it by name, never by leaving things out."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from slideway.bundles.build import BuiltBundle, BundleContent, build_bundle
from slideway.core.bundle import BriefFinding, BundleSummary
from slideway.core.opinion import Finding, Opinion
from slideway.core.tissue import TissueMask
from slideway.pipeline.reading import SlideReading
from slideway.tissue.shapes import close

# The mission's bound; a slide whose tissue needs more at the coarsest useful precision goes above it, and says so.
BUDGET_SHARE = 0.005
_BLOT_GAP_UM = 2_000  # letters on a slide are some 2 to 4 mm high
_BLOT_PX_UM = 100


def bundle_reading(reading: SlideReading, thumbnail: NDArray[np.uint8], *, case: str = "") -> BuiltBundle:
    """Build the bundle of a slide that was read.

    Args:
        reading: With its opinions.
        thumbnail: (height, width, 3) uint8, on the tissue mask's pixels; only tissue of it travels, since beside it
            and in ink somebody may have written on the glass.
        case: Pseudonym of the case; empty when there is none.
    """
    novelty = None if reading.novelty is None else reading.novelty.percentile
    content = BundleContent(
        bag=reading.bag,
        summary=_summarise(reading, case),
        opinion=_tell(reading),
        thumbnail=_show_tissue(thumbnail, reading.mask),
        attention=_attend(reading.opinions),
        novelty=novelty,
        representatives=reading.groups.representatives,
    )
    return build_bundle(content, budget_bytes=int(BUDGET_SHARE * reading.result["slide"]["bytes"]))


def describe_bytes(built: BuiltBundle, packed: int, slide_bytes: int) -> dict[str, Any]:
    """The `bytes` object of result.json; of the `packed` bytes, what stands before the parts counts to tier 0."""
    tier = [sum(len(part.content) for part in built.parts if part.tier == t) for t in range(3)]
    tier[0] += packed - sum(tier)
    return {
        "slide": slide_bytes,
        "bundle": packed,
        "t0": tier[0],
        "t1": tier[1],
        "t2": tier[2],
        "saved_percent": round(100 * (1 - packed / slide_bytes), 3),
        "codec": built.summary.codec,
        "over_budget": built.is_over_budget,
    }


def _summarise(reading: SlideReading, case: str) -> BundleSummary:
    slide, bag = reading.slide, reading.bag
    findings = [finding for opinion in reading.opinions for finding in opinion.findings]
    return BundleSummary(
        slide_sha256=reading.slide_sha256,
        case=case,
        site=reading.result["site"],
        width_px=slide.width_px,
        height_px=slide.height_px,
        mpp=float(slide.mpp),
        is_mpp_estimated=bool(reading.result["estimated"]),
        tissue_mm2=round(reading.mask.area_mm2, 3),
        verdict=reading.quality.verdict.value,
        reasons=tuple(reason.code for reason in reading.quality.reasons),
        tile_px=bag.grid.tile_px,
        tile_mpp=float(bag.grid.tile_mpp),
        tiles=len(bag),
        tiles_left_out=0,
        tissue_tiles=max(len(bag), round(float(bag.weights.sum(dtype=np.float64)))),
        is_sampled=bag.sampling is not None,
        novel_share=None if reading.novelty is None else round(reading.novelty.novel_share, 4),
        encoder_id=bag.encoder_id,
        fingerprint=bag.fingerprint,
        codec="",
        findings=tuple(_shorten(finding) for finding in findings),
    )


def _shorten(finding: Finding) -> BriefFinding:
    labels = sorted(finding.labels, key=lambda label: -finding.probabilities.get(label, 0))
    probability = finding.probabilities.get(finding.leading)
    return BriefFinding(finding.task.id, finding.answer.value, tuple(labels), probability, finding.in_force)


def _tell(reading: SlideReading) -> dict[str, Any]:
    """Findings and quality as in result.json, less the known cases of a head: their pseudonyms are another's."""
    result = reading.result
    findings = [
        {**finding, "evidence": {key: value for key, value in finding["evidence"].items() if key != "nearest_cases"}}
        for finding in result["findings"]
    ]
    named = ("quality", "tissue", "grid", "groups", "novelty", "profile", "heads")
    return {**{name: result[name] for name in named}, "findings": findings}


def _show_tissue(thumbnail: NDArray[np.uint8], mask: TissueMask) -> NDArray[np.uint8]:
    is_shown = mask.pixels & ~_blot(mask.pen, mask.mpp)
    shown: NDArray[np.uint8] = np.where(is_shown[..., None], thumbnail, np.uint8(255))
    return shown


def _blot(pen: NDArray[np.bool_], mpp: float) -> NDArray[np.bool_]:
    """Ink with the gaps in and between letters filled: of strokes alone left blank, what they spell could be read.

    A circle around a finding is wider than a gap in a letter; what lies inside it stays.
    """
    if not pen.any():
        return pen
    step = max(1, round(_BLOT_PX_UM / mpp))
    height, width = pen.shape
    rows, columns = -(-height // step), -(-width // step)
    padded = np.zeros((rows * step, columns * step), bool)
    padded[:height, :width] = pen
    coarse = padded.reshape(rows, step, columns, step).any(axis=(1, 3))
    around = round(_BLOT_GAP_UM / (mpp * step))
    filled = close(np.pad(coarse, around), around)[around:-around, around:-around]
    blotted: NDArray[np.bool_] = np.repeat(np.repeat(filled | coarse, step, axis=0), step, axis=1)[:height, :width]
    return blotted


def _attend(opinions: tuple[Opinion, ...]) -> NDArray[np.float32] | None:
    """(n_tiles,) the most that any head looked at each tile, each head's map scaled to its mean."""
    maps = [o.attention.weight for o in opinions if o.attention is not None and len(o.attention.weight)]
    return np.max([m / max(float(m.mean()), 1e-12) for m in maps], axis=0).astype(np.float32) if maps else None
