"""Where on a slide tissue is, and where marker ink and folds are."""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import NDArray

from slideway.core.tissue import TissueMask
from slideway.tissue.absorbance import measure_absorbance
from slideway.tissue.fold import find_folds
from slideway.tissue.ink import find_ink
from slideway.tissue.shapes import Bools, Floats, close, dilate, fill_holes, local_spread, open_, smooth, smooth_over

WORK_MPP = 8.0  # coarse enough for a fraction of a second a slide, fine enough for the outline of one fat cell
WORK_MAX_PX = 2_000_000


def find_tissue(thumbnail: NDArray[np.uint8], *, mpp: float) -> TissueMask:
    """Find tissue, marker ink and folds on a thumbnail of the whole slide.

    Args:
        thumbnail: (h, w, 3) RGB, padding allowed.
        mpp: µm per thumbnail pixel, about 8; 2–64 work.

    Returns:
        A mask on the thumbnail's own pixels; `pixels` holds no ink and no padding.
    """
    if thumbnail.ndim != 3 or thumbnail.shape[2] != 3 or thumbnail.dtype != np.uint8:
        raise ValueError(f"thumbnail must be (h, w, 3) uint8 RGB, not {thumbnail.shape} {thumbnail.dtype}")
    height, width = thumbnail.shape[:2]
    work_mpp = max(mpp, WORK_MPP, mpp * (height * width / WORK_MAX_PX) ** 0.5)
    light = measure_absorbance(_shrink(thumbnail, mpp / work_mpp))
    pen = find_ink(light.density, mpp=work_mpp)
    tissue = _find_stained(light.density, light.scanned & ~pen, mpp=work_mpp)
    fold = find_folds(light.density, tissue, mpp=work_mpp)
    pixels, pen, fold, scanned = (_enlarge(found, (width, height)) for found in (tissue, pen, fold, light.scanned))
    return TissueMask(pixels, mpp=mpp, pen=pen, fold=fold, scanned=scanned)


def _shrink(image: NDArray[np.uint8], factor: float) -> NDArray[np.uint8]:
    if factor >= 1:
        return image
    edges = [max(1, round(length * factor)) for length in image.shape[1::-1]]
    return np.asarray(cv2.resize(image, edges, interpolation=cv2.INTER_AREA), dtype=np.uint8)


def _enlarge(pixels: Bools, width_height: tuple[int, int]) -> Bools:
    if pixels.shape == width_height[::-1]:
        return pixels
    return np.asarray(cv2.resize(pixels.astype(np.uint8), width_height, interpolation=cv2.INTER_NEAREST_EXACT) > 0)


def _find_stained(density: Floats, allowed: Bools, *, mpp: float) -> Bools:
    """Tissue by its colour, and pale net-like tissue (fat, oedema) by its colour and its texture together.

    Glass, dust, bubbles, coverslip edges and shadows absorb all colours alike, so they show in the sum of the
    density but hardly in the difference between channels.
    """
    density = density * allowed
    spread = local_spread(density.mean(axis=0))
    allowed = allowed & ~_find_print(density.sum(axis=0), spread, mpp=mpp)
    near = np.stack([smooth(plane, 16 / mpp) for plane in density])
    strong = allowed & _is_stained(near, at_least=0.014)
    dense = _is_stained(near, at_least=0.022)
    beside = allowed & ~dilate(dense, 50 / mpp)  # so that dense tissue lends none of its colour to the glass around
    texture = smooth_over(spread, beside, 50 / mpp)
    wide = np.stack([smooth_over(plane, beside, 40 / mpp) for plane in density])
    faint = beside & (texture > 0.006) & _is_stained(wide, at_least=0.0035)
    tissue = close(strong | faint, 60 / mpp) & allowed
    tissue = fill_holes(tissue, largest_px=50_000 / mpp**2) & allowed  # 0.05 mm²: a few fat cells, a gland's lumen
    return _drop_foreign(tissue, density, mpp=mpp)


def _is_stained(density: Floats, *, at_least: float) -> Bools:
    """True where green is absorbed beyond the least absorbed colour, and not much less than the most absorbed one.

    Eosin and haematoxylin absorb green most, DAB leaves it in the middle; yellow mountant, bluish glass and grey
    dirt fail.
    """
    green = density[1]
    stain = green - density.min(axis=0) - (density.max(axis=0) - green)
    return np.asarray((stain > at_least) & (stain > 0.08 * density.sum(axis=0)))


def _find_print(total: Floats, spread: Floats, *, mpp: float) -> Bools:
    """Patches of one even colour: a printed strip, a label's edge."""
    texture = smooth(spread, 40 / mpp)  # on the slides of docs/quality.md 0.033 of the density and more on tissue
    even = (total > 0.06) & (texture < 0.015 * smooth(total, 40 / mpp))
    core = open_(even, 200 / mpp)
    return dilate(core, 250 / mpp) if core.any() else core


def _drop_foreign(tissue: Bools, density: Floats, *, mpp: float) -> Bools:
    """Without specks too small to read, lines, and small pieces of a foreign colour."""
    _, labels, stats, _ = cv2.connectedComponentsWithStats(tissue.astype(np.uint8), connectivity=8)
    area_px = np.maximum(stats[:, cv2.CC_STAT_AREA], 1)
    labels_inside = labels[tissue]

    def mean_over_pieces(plane: NDArray[np.generic]) -> NDArray[np.float64]:
        return np.asarray(np.bincount(labels_inside, weights=plane[tissue], minlength=len(stats)) / area_px)

    red, green, blue = (mean_over_pieces(plane) for plane in density)
    total = np.maximum(red + green + blue, 1e-3)
    area_um2 = area_px * mpp**2
    length_um = np.hypot(stats[:, cv2.CC_STAT_WIDTH], stats[:, cv2.CC_STAT_HEIGHT]) * mpp
    is_speck = area_um2 < 4000  # a square of 63 µm: smaller than that is dust or a gland's debris
    is_line = (length_um > 500) & (mean_over_pieces(open_(tissue, 90 / mpp)) < 0.1)  # hairs, edges, rims of bubbles
    is_foreign = (np.maximum(red, blue) - green > 0.05 * total) & (area_um2 < 200_000)  # coloured fibres and dust
    keep = ~(is_speck | is_line | is_foreign)
    keep[0] = False
    return np.asarray(keep[labels])
