"""Before any tile is encoded: resolution, thumbnail, tissue, grid."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from slideway.core.slide import Resolution, ResolutionSource, Slide
from slideway.core.tissue import TileGrid, TissueMask
from slideway.slides import OpenedSlide
from slideway.slides.resolution import ScannerProfile, decide_resolution
from slideway.tissue import estimate_mpp, find_tissue, lay_grid

THUMBNAIL_MPP = 8.0  # pen strokes, folds and small biopsies are several pixels wide, a whole slide a few megapixels
MAX_THUMBNAIL_PX = 4_000_000  # more shows no more tissue: masks are computed on 2 megapixels at most
_CROP_PX = 512
_CROPS = 24  # about 3,000 nuclei on cellular tissue; docs/resolution.md says what fewer cost


@dataclass(frozen=True)
class Survey:
    """What is known of a slide before encoding.

    Attributes:
        slide: With its resolution decided.
        thumbnail: (h, w, 3) RGB as stored.
        mask: Tissue on the thumbnail.
        grid: Tiles worth reading.
    """

    slide: Slide
    thumbnail: NDArray[np.uint8]
    mask: TissueMask
    grid: TileGrid

    @property
    def thumbnail_mpp(self) -> float:
        """Microns per thumbnail pixel."""
        return self.mask.mpp


def survey_slide(
    opened: OpenedSlide, slide: Slide, *, tile_px: int, tile_mpp: float, min_tissue_share: float = 0.15
) -> Survey:
    """Find tissue on the thumbnail and lay the tile grid over it."""
    downsample = near_level(slide, max(1.0, THUMBNAIL_MPP / slide.mpp, thumbnail_floor(slide)))
    thumbnail = opened.read_thumbnail(downsample)
    mask = find_tissue(thumbnail, mpp=slide.mpp * slide.width_px / thumbnail.shape[1])
    grid = lay_grid(
        mask,
        slide_width_px=slide.width_px,
        slide_height_px=slide.height_px,
        slide_mpp=slide.mpp,
        tile_px=tile_px,
        tile_mpp=tile_mpp,
        min_tissue_share=min_tissue_share,
    )
    return Survey(slide, thumbnail, mask, grid)


def near_level(slide: Slide, downsample: float) -> float:
    """The downsample of a level close to the wanted one, where there is one: it is read as it is, 16 times faster."""
    near = [level.downsample for level in slide.levels if 0.7 <= level.downsample / downsample <= 1.4]
    return min(near, key=lambda stored: abs(stored / downsample - 1), default=downsample)


def thumbnail_floor(slide: Slide) -> float:
    """Smallest downsample at which the thumbnail stays within its pixel budget."""
    return float(np.sqrt(slide.width_px * slide.height_px / MAX_THUMBNAIL_PX))


def settle_resolution(
    opened: OpenedSlide, path: Path, *, given: float | None, estimate: bool, profiles: Sequence[ScannerProfile]
) -> Slide:
    """Decide the slide's resolution: given, stated, by profile, or, only when asked, estimated.

    Raises:
        UnknownResolutionError: None of these, or too few nuclei for an estimate.
    """
    slide = decide_resolution(opened.slide, given=given, profiles=profiles, path=path)
    if slide.resolution.mpp is None and estimate:
        found = estimate_mpp(cut_tissue(opened, slide))
        resolution = Resolution(found.mpp, ResolutionSource.ESTIMATED, found.detail)
        slide = dataclasses.replace(slide, resolution=resolution)
    _ = slide.mpp  # raises when nothing states it
    return slide


def cut_tissue(opened: OpenedSlide, slide: Slide) -> list[NDArray[np.uint8]]:
    """Level-0 crops spread over the tissue, found without knowing the scale."""
    downsample = max(1.0, thumbnail_floor(slide) * 2)
    thumbnail = opened.read_thumbnail(downsample)
    mask = find_tissue(thumbnail, mpp=THUMBNAIL_MPP).pixels
    ys, xs = np.nonzero(mask)
    if not len(ys):
        return []
    picks = np.linspace(0, len(ys) - 1, min(_CROPS, len(ys))).astype(int)
    scale = slide.width_px / thumbnail.shape[1]
    crops = []
    for x, y in zip(xs[picks] * scale, ys[picks] * scale, strict=True):
        left = int(min(max(0, x - _CROP_PX / 2), max(0, slide.width_px - _CROP_PX)))
        top = int(min(max(0, y - _CROP_PX / 2), max(0, slide.height_px - _CROP_PX)))
        crops.append(opened.read_region(0, left, top, _CROP_PX, _CROP_PX))
    return crops
