"""The verdict on a slide's pixels: readable, limited, rescan or no tissue, and why."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from slideway.core.slide import ResolutionSource
from slideway.core.tissue import QualityGrade, Reason, TissueMask, Verdict
from slideway.tissue.focus import is_blurred
from slideway.tissue.shapes import Bools, smooth

Finding = tuple[Verdict, Reason]


def grade_quality(
    mask: TissueMask,
    *,
    slide_mpp: float,
    tile_mpp: float,
    resolution_source: ResolutionSource,
    thumbnail: NDArray[np.uint8] | None = None,
    focus: NDArray[np.float32] | None = None,
) -> QualityGrade:
    """Say what a slide's pixels allow, and why, in sentences with the measured figures.

    The worst reason decides. Every code, its limit and the reason for the limit stand in docs/quality.md.

    Args:
        mask: Tissue, ink and folds on a thumbnail of the whole slide.
        slide_mpp: µm/px of level 0.
        tile_mpp: µm/px that the encoder reads.
        resolution_source: How `slide_mpp` is known.
        thumbnail: (h, w, 3) RGB that `mask` was found on; without it exposure is not judged.
        focus: What `measure_focus` gave for the tiles that were read; without it focus is not judged.
    """
    if mask.area_mm2 < 0.02:
        reason = Reason("no-tissue", f"Only {mask.area_mm2:.3f} mm² of tissue were found; nothing was read.")
        return QualityGrade(Verdict.NO_TISSUE, (reason,), {"tissue_mm2": mask.area_mm2})
    measures = {"tissue_mm2": mask.area_mm2, "slide_mpp": slide_mpp, **_measure_mask(mask)}
    if thumbnail is not None:
        measures |= _measure_light(mask, thumbnail)
    if focus is not None and focus.size:
        judged = ~np.isnan(focus)
        measures["judged_share"] = float(judged.mean())
        measures["blurred_share"] = float(is_blurred(focus[judged]).mean()) if judged.any() else 0.0
    found = (
        *_judge_mask(measures),
        *_judge_light(measures),
        *_judge_focus(measures),
        *_judge_resolution(slide_mpp, tile_mpp, resolution_source),
    )
    verdict = Verdict.READABLE
    if found:
        is_lost = any(severity is Verdict.RESCAN for severity, _ in found)
        verdict = Verdict.RESCAN if is_lost else Verdict.LIMITED
    return QualityGrade(verdict, tuple(reason for _, reason in found), measures)


def _measure_mask(mask: TissueMask) -> dict[str, float]:
    marked = mask.pen & _lies_in_tissue(mask)
    tissue_px = int(mask.pixels.sum())
    rim_mm = float(_scan_rim(mask)[mask.pixels].sum()) * mask.mpp / 1000
    return {
        "pen_share": float(marked.sum() / (marked.sum() + tissue_px)),
        "folded_share": float(mask.fold.sum() / tissue_px),
        "cut_mm": rim_mm,
    }


def _lies_in_tissue(mask: TissueMask) -> Bools:
    """True where most of what is not ink within half a millimetre is tissue."""
    tissue, glass = (part.astype(np.float32) for part in (mask.pixels, ~mask.pixels & ~mask.pen))
    sigma_px = max(250 / mask.mpp, 1.0)
    return np.asarray(smooth(tissue, sigma_px) > smooth(glass, sigma_px))


def _scan_rim(mask: TissueMask) -> Bools:
    """The outermost pixels of the scanned area."""
    scanned = np.ones(mask.pixels.shape, dtype=bool) if mask.scanned is None else mask.scanned
    inner = np.pad(scanned, 1, constant_values=False)
    surrounded = inner[:-2, 1:-1] & inner[2:, 1:-1] & inner[1:-1, :-2] & inner[1:-1, 2:]
    return np.asarray(scanned & ~surrounded)


def _measure_light(mask: TissueMask, thumbnail: NDArray[np.uint8]) -> dict[str, float]:
    if thumbnail.shape[:2] != mask.pixels.shape:
        raise ValueError(f"thumbnail {thumbnail.shape[:2]} and mask {mask.pixels.shape} differ in size")
    red, green, blue = (thumbnail[..., channel][mask.pixels] for channel in range(3))
    clipped = (red >= 254) & (blue >= 254) & (green < 250)  # green still shows stain that red and blue have lost
    scanned = thumbnail if mask.scanned is None else thumbnail[mask.scanned]
    return {
        "overexposed_share": float(clipped.mean()),
        "brightness": float(np.percentile(scanned, 95) / 255),
    }


def _judge_mask(measures: dict[str, float]) -> Iterator[Finding]:
    area_mm2, pen, folded, cut_mm = (measures[name] for name in ("tissue_mm2", "pen_share", "folded_share", "cut_mm"))
    if area_mm2 < 0.25:
        yield Verdict.LIMITED, Reason("little-tissue", f"Only {area_mm2:.2f} mm² of tissue were found.")
    if pen > 0.5:
        yield Verdict.RESCAN, Reason("pen-on-tissue", f"Marker ink covers {pen:.0%} of the tissue: clean and rescan.")
    elif pen > 0.05:
        yield Verdict.LIMITED, Reason("pen-on-tissue", f"Marker ink covers {pen:.0%} of the tissue; it was not read.")
    if folded > 0.10:  # up to 8 % was seen where there is no fold (docs/quality.md)
        yield Verdict.LIMITED, Reason("folded", f"{folded:.0%} of the tissue looks folded.")
    if cut_mm > 1.0:
        text = f"Tissue touches the border of the scanned area over {cut_mm:.1f} mm: part of it may not be scanned."
        yield Verdict.LIMITED, Reason("cut-off", text)


def _judge_light(measures: dict[str, float]) -> Iterator[Finding]:
    overexposed, brightness = measures.get("overexposed_share", 0.0), measures.get("brightness", 1.0)
    if overexposed > 0.1:
        severity = Verdict.RESCAN if overexposed > 0.3 else Verdict.LIMITED
        yield severity, Reason("over-exposed", f"{overexposed:.0%} of the tissue is brighter than the scanner records.")
    if brightness < 0.4:
        text = f"The brightest parts of the scan reach {brightness:.0%} of full light."
        yield Verdict.LIMITED, Reason("under-exposed", text)


def _judge_focus(measures: dict[str, float]) -> Iterator[Finding]:
    if "blurred_share" not in measures:
        return
    blurred, judged = measures["blurred_share"], measures["judged_share"]
    if judged < 0.2:
        text = f"Only {judged:.0%} of the tiles hold enough contrast to judge their focus."
        yield Verdict.LIMITED, Reason("focus-unknown", text)
    elif blurred > 0.5:
        yield Verdict.RESCAN, Reason("blurred", f"{blurred:.0%} of the tiles are out of focus: rescan.")
    elif blurred > 0.1:
        yield Verdict.LIMITED, Reason("blurred", f"{blurred:.0%} of the tiles are out of focus.")


def _judge_resolution(slide_mpp: float, tile_mpp: float, source: ResolutionSource) -> Iterator[Finding]:
    if slide_mpp > 2.0:
        text = f"The scan has {slide_mpp:.2f} µm/px; single nuclei do not show beyond 2 µm/px: scan at 20x or more."
        yield Verdict.RESCAN, Reason("coarse-scan", text)
    elif slide_mpp > 1.1 * tile_mpp:
        text = f"The scan has {slide_mpp:.2f} µm/px and was magnified to the encoder's {tile_mpp:.2f} µm/px."
        yield Verdict.LIMITED, Reason("coarse-scan", text)
    if source is ResolutionSource.ESTIMATED:
        text = f"The file states no resolution; {slide_mpp:.2f} µm/px were estimated from the size of nuclei."
        yield Verdict.LIMITED, Reason("resolution-estimated", text)
