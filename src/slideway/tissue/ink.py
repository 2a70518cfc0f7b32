"""Marker ink on the glass, told from stained tissue by its colour and the width of its stroke."""

from __future__ import annotations

import numpy as np

from slideway.tissue.shapes import Bools, Floats, dilate, open_, smooth, touching


def find_ink(density: Floats, *, mpp: float) -> Bools:
    """(h, w) True where felt-pen ink lies, over glass or over tissue.

    Haematoxylin and eosin both absorb green most, so ink that absorbs red most (blue, green), blue and green
    alike (red) or all three alike (black) lies outside the colours that tissue can have. Pigment, surgical margin
    ink and fibres have such colours too, but in strokes thinner than a pen's.

    Args:
        density: (3, h, w) optical density, RGB.
        mpp: µm per pixel of `density`.
    """
    even = np.stack([smooth(plane, 12 / mpp) for plane in density])
    ink = np.zeros(density.shape[1:], dtype=bool)
    for surely, perhaps in (_cold(even, mpp=mpp), _black(even, mpp=mpp), _red(even)):
        core = _stroke(surely, mpp=mpp)
        if core.any():
            ink |= touching(perhaps & dilate(core, 600 / mpp), core)
    return dilate(ink, 70 / mpp) if ink.any() else ink


def _stroke(pixels: Bools, *, mpp: float) -> Bools:
    """What is wide enough for a felt pen (300 µm and more); margin ink and pigment stay below 120 µm."""
    return open_(pixels, 120 / mpp) if pixels.any() else pixels


# Each pair: pixels that can be nothing but ink, and pixels that are ink when they touch those. The limits stand
# outside what 5,085 H&E tiles of 51 cases reach (docs/quality.md, "Marker ink"). Ink over dense tissue moves its
# colour less than ink over glass; so where a slide's own tissue keeps well away from a limit, the limit comes nearer.


def _cold(density: Floats, *, mpp: float) -> tuple[Bools, Bools]:
    """Blue and green: red or blue light is absorbed more than green."""
    red, green, blue = density
    total = red + green + blue
    beyond_green = np.divide(np.maximum(red, blue) - green, total, out=np.zeros_like(total), where=total > 0.04)
    dense = total > 0.3
    strict = dense & (beyond_green > 0.10)
    is_proven = bool(_stroke(strict, mpp=mpp).any())
    limit = _nearer_limit(beyond_green[dense & ~strict], is_proven, margins=(0.15, 0.08), bounds=(-0.04, 0.10))
    return dense & (beyond_green > limit), (total > 0.04) & (beyond_green > min(0.0, limit))


def _black(density: Floats, *, mpp: float) -> tuple[Bools, Bools]:
    """All three colours are absorbed alike, and strongly."""
    total, most = density.sum(axis=0), density.max(axis=0)
    evenness = np.divide(density.min(axis=0), most, out=np.zeros_like(total), where=most > 0.1)
    dense = total > 1.2
    strict = dense & (evenness > 0.80)
    is_proven = bool(_stroke(strict, mpp=mpp).any())
    limit = _nearer_limit(evenness[(total > 0.3) & ~strict], is_proven, margins=(0.20, 0.15), bounds=(0.68, 0.80))
    return dense & (evenness > limit), (total > 0.5) & (evenness > min(0.70, limit))


def _red(density: Floats) -> tuple[Bools, Bools]:
    """Blue is absorbed nearly as much as green, and red hardly."""
    red, green, blue = density
    total = red + green + blue
    over_glass = (total > 0.5) & (red < 0.20 * green) & (blue > 0.70 * green)
    over_tissue = (total > 1.3) & (red < 0.30 * green) & (blue > 0.55 * green)
    return over_glass | over_tissue, over_tissue | ((total > 0.10) & (red < 0.35 * green) & (blue > 0.65 * green))


def _nearer_limit(
    tissue: Floats, is_proven: bool, *, margins: tuple[float, float], bounds: tuple[float, float]
) -> float:
    """How far from this slide's own tissue a colour must be to count as ink.

    Once a stroke over glass proves that the slide was marked, the distance is taken from the median of the tissue,
    which ink over tissue moves little; before that, from its far tail.
    """
    if tissue.size < 1000:
        return bounds[1]
    start = np.percentile(tissue, 50 if is_proven else 97)
    return float(np.clip(start + margins[0 if is_proven else 1], *bounds))
