"""How much light each pixel of a thumbnail absorbs, measured against the glass beside the tissue."""

from __future__ import annotations

import functools
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from slideway.tissue.shapes import Bools, Floats, local_spread

DEFAULT_GLASS = (242.0, 242.0, 242.0)  # about the median of the slides in docs/quality.md; used where none is seen


@dataclass(frozen=True)
class Absorbance:
    """Optical density of a thumbnail and where it was scanned at all.

    Attributes:
        density: (3, h, w) float32, −log10 of the transmitted share of light, red, green, blue; 0 on glass.
        scanned: (h, w) bool, False on padding beside the scanned area.
        glass: (3,) colour of the empty glass, RGB in 0–255.
    """

    density: Floats
    scanned: Bools
    glass: Floats


def measure_absorbance(thumbnail: NDArray[np.uint8]) -> Absorbance:
    """Turn RGB into optical density against the colour of this slide's own empty glass.

    Source:
        Beer–Lambert law for stains: Ruifrok and Johnston, Anal Quant Cytol Histol 23:291 (2001).
    """
    grey = np.asarray(cv2.transform(thumbnail, np.full((1, 3), 1 / 3, dtype=np.float32)), dtype=np.uint8)
    is_flat = _is_flat(thumbnail)
    is_smooth = _is_smooth(grey)
    glass = _glass_colour(thumbnail, grey, is_smooth & ~is_flat)
    if glass is None:
        glass = _glass_colour(thumbnail, grey, is_smooth)
    glass = np.asarray(DEFAULT_GLASS if glass is None else glass, dtype=np.float32)
    padding = _find_padding(thumbnail, is_flat, is_smooth, glass)
    levels = np.maximum(np.arange(256, dtype=np.float32), 1)
    planes = [np.asarray(-np.log10(levels / glass[i]), dtype=np.float32)[thumbnail[..., i]] for i in range(3)]
    density = np.stack(planes)
    density[:, padding] = 0
    return Absorbance(density, ~padding, glass)


def _is_flat(thumbnail: NDArray[np.uint8]) -> Bools:
    """True where a 3 px square has one and the same colour: padding, or light beyond the sensor's range."""
    square = np.ones((3, 3), dtype=np.uint8)
    span = cv2.subtract(cv2.dilate(thumbnail, square), cv2.erode(thumbnail, square))
    return np.asarray(cv2.transform(span, np.ones((1, 3), dtype=np.float32)) == 0)


def _is_smooth(grey: NDArray[np.uint8]) -> Bools:
    """True where nothing but a sensor's noise and JPEG's loss makes neighbouring pixels differ."""
    spread = local_spread(grey.astype(np.float32))
    noise = float(np.percentile(spread[::4, ::4], 5))
    bright = float(np.percentile(grey[::4, ::4], 95))
    return np.asarray(spread < max(bright / 96, 1.3 * noise))  # 2.5 of 240 grey levels on a clean scan


def _glass_colour(thumbnail: NDArray[np.uint8], grey: NDArray[np.uint8], candidates: Bools) -> Floats | None:
    """Colour of the brightest large smooth area that is not pink or purple; None when there is none."""
    count = np.bincount(grey[candidates], minlength=256)
    mass = np.convolve(count, np.ones(9, dtype=np.int64), mode="same")
    least_px = 0.005 * grey.size
    for peak in range(255, 60, -1):  # glass darker than 60 of 255 is a scan that nobody can read
        is_summit = count[peak] > 0 and count[peak] == count[max(0, peak - 4) : peak + 5].max()
        if is_summit and mass[peak] >= least_px:
            # its brighter half, since fat lies just below; the mean, since half a grey level matters there
            near = candidates & (grey >= peak) & (grey <= peak + 4)
            colour = thumbnail[near].mean(axis=0)
            if _may_be_glass(colour):
                return np.asarray(np.maximum(colour, 1), dtype=np.float32)
    return None


def _may_be_glass(colour: NDArray[np.floating]) -> bool:
    """Grey or tinted, but not in the direction of eosin and haematoxylin (green lowest)."""
    red, green, blue = (float(level) for level in colour)
    is_pink = min(red, blue) - green > 10
    return not is_pink and max(red, green, blue) - min(red, green, blue) <= 70


def _find_padding(thumbnail: NDArray[np.uint8], is_flat: Bools, is_smooth: Bools, glass: Floats) -> Bools:
    """Large areas at the border in which no light was measured: one flat colour unlike the glass, or darkness."""
    channels = cv2.split(thumbnail)
    brightest, darkest = (functools.reduce(pick, channels) for pick in (cv2.max, cv2.min))
    levels = np.arange(256, dtype=np.float32)
    away = [np.abs(levels - glass[i]).astype(np.uint8)[channel] for i, channel in enumerate(channels)]
    farthest = functools.reduce(cv2.max, away)
    is_white = (darkest >= 254) & (farthest > 4)
    suspect = (is_flat & (is_white | (farthest > 15))) | (is_smooth & (brightest < 0.15 * glass.max()))
    _, labels, stats, _ = cv2.connectedComponentsWithStats(suspect.astype(np.uint8), connectivity=4)
    wanted = np.zeros(len(stats), dtype=bool)
    for side in (labels[0], labels[-1], labels[:, 0], labels[:, -1]):
        # a tenth of a side at least: a black pen stroke that runs off the slide is narrower
        wanted |= np.bincount(side, minlength=len(stats)) > 0.1 * len(side)
    wanted[0] = False
    if not wanted.any():
        return np.zeros_like(suspect)
    # the squares that found it stop short of its rim, and JPEG lets it ring for a few pixels more
    return np.asarray(cv2.dilate(wanted[labels].astype(np.uint8), np.ones((7, 7), dtype=np.uint8)) > 0)
