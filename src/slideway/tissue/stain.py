"""Say whether a slide looks stained with haematoxylin and eosin, from which light its tissue absorbs."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from slideway.core.tissue import TissueMask
from slideway.tissue.absorbance import measure_absorbance

HE = "H&E"
# Haematoxylin and eosin both absorb green most. Of 53 H&E slides of one laboratory and two sets of others none reaches
# these limits; DAB, photographs and grey pictures do (docs/certainty.md).
_LEAST_DENSITY = 0.12
_MOST_BLUE = 0.4
_MOST_RED = 0.9
_LEAST_COLOUR = 0.2


@dataclass(frozen=True)
class StainLook:
    """What light a slide's tissue absorbs.

    Attributes:
        blue_share: Share of stained pixels that absorb blue more than green, in [0, 1]: brown and yellow.
        red_share: Share that absorb red more than green: blue and green.
        colour: Mean of 1 - least / most absorbed channel over stained pixels; 0 for grey.
        stain: `H&E`, or in words what it looks like instead; empty when nothing is stained.
    """

    blue_share: float
    red_share: float
    colour: float
    stain: str


def judge_stain(thumbnail: NDArray[np.uint8], mask: TissueMask) -> StainLook:
    """Judge the stain of a slide's tissue on its thumbnail.

    Args:
        thumbnail: (h, w, 3) RGB as stored, of the mask's size.
        mask: Tissue on it.
    """
    density = measure_absorbance(thumbnail).density[:, mask.pixels]
    density = np.maximum(density[:, density.mean(axis=0) > _LEAST_DENSITY], 0)
    if density.shape[1] == 0:
        return StainLook(0.0, 0.0, 0.0, "")
    red, green, blue = density
    blue_share, red_share = float((blue > green).mean()), float((red > green).mean())
    colour = float((1 - density.min(axis=0) / density.max(axis=0)).mean())
    return StainLook(blue_share, red_share, colour, _name(blue_share, red_share, colour))


def _name(blue_share: float, red_share: float, colour: float) -> str:
    if colour < _LEAST_COLOUR:
        return "grey, unlike H&E"
    if blue_share > _MOST_BLUE:
        return "brown or yellow, unlike H&E"
    if red_share > _MOST_RED:
        return "blue or green, unlike H&E"
    return HE
