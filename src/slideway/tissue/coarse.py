"""What the parts of a coarsely read tile look like: stain and texture, without any encoder."""

from __future__ import annotations

from itertools import pairwise

import cv2
import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]

# Optical density of haematoxylin, eosin and what is left, in red, green, blue; each of length 1.
# Source: Ruifrok and Johnston, Anal Quant Cytol Histol 23:291 (2001).
_STAINS = np.array([[0.650, 0.704, 0.286], [0.072, 0.990, 0.105], [0.268, 0.570, 0.776]])
_HAEMATOXYLIN = np.linalg.inv(_STAINS)[:, 0].astype(np.float32)
_DARKEST_SHARE = 0.125  # an eighth of a part: nuclei in loose tissue count as much as in dense tissue
_FINEST_PX = (0.0, 1.0, 2.0, 4.0, 8.0)  # bounds of four bands of detail: chromatin and noise up to groups of cells
LOOKS = 16
CELLULARITY = 0  # column of `describe_parts`


def describe_parts(tiles: NDArray[np.uint8], *, glass: Floats, parts: int) -> Floats:
    """Describe the parts of coarse tiles, each tile cut into `parts` × `parts` squares.

    Args:
        tiles: (n, t, t, 3) RGB, at about 2 µm/px: a nucleus is three or four pixels wide.
        glass: (3,) colour of this slide's empty glass, RGB in 0–255.
        parts: Squares along a tile's edge, at most t; pixels left over at the right and lower edge are not looked at.

    Returns:
        (n, parts, parts, 16), in optical density unless said otherwise: haematoxylin of the darkest eighth (how
        cellular it is); mean and spread of red, green, blue; how red and blue go together (-1–1); four bands of detail
        of the grey and two of the colour; strength of the edges and how much they run one way (0–1).
    """
    edge = tiles.shape[1] // parts * parts
    levels = np.log10(np.maximum(glass, 1)[None] / np.maximum(np.arange(256, dtype=np.float32), 1)[:, None])
    looks = np.empty((len(tiles), parts, parts, LOOKS), np.float32)
    for i, tile in enumerate(tiles):
        density = np.stack([levels[:, c][tile[:edge, :edge, c]] for c in range(3)]).astype(np.float32)
        looks[i] = np.concatenate([_describe_stain(density, parts), _describe_texture(density, parts)], axis=-1)
    return looks


def _describe_stain(density: Floats, parts: int) -> Floats:
    """(parts, parts, 8) of (3, h, w) densities."""
    cut = np.stack([_cut(plane, parts) for plane in density])
    haematoxylin = np.tensordot(_HAEMATOXYLIN, cut, axes=1)
    kept = max(1, round(haematoxylin.shape[-1] * _DARKEST_SHARE))
    darkest = np.partition(haematoxylin, -kept, axis=-1)[..., -kept:].mean(axis=-1)
    mean, spread = cut.mean(axis=-1), cut.std(axis=-1)
    together = ((cut[0] * cut[2]).mean(axis=-1) - mean[0] * mean[2]) / (spread[0] * spread[2] + 1e-6)
    return np.stack([darkest, *mean, *spread, together], axis=-1).astype(np.float32)


def _describe_texture(density: Floats, parts: int) -> Floats:
    """(parts, parts, 8) of (3, h, w) densities: detail, edges, and how much they run one way."""
    grey = [_blur(density.mean(axis=0), sigma_px) for sigma_px in _FINEST_PX]
    colour = [_blur(density[0] - density[2], sigma_px) for sigma_px in _FINEST_PX[1:4]]
    bands = [np.abs(a - b) for planes in (grey, colour) for a, b in pairwise(planes)]
    across, down = cv2.spatialGradient(np.clip(grey[1] * 200, 0, 255).astype(np.uint8))
    x, y = (slope.astype(np.float32) / 200 for slope in (across, down))
    straight, slanted, steep = (_cut(plane, parts).mean(axis=-1) for plane in (x * x - y * y, 2 * x * y, x * x + y * y))
    one_way = np.hypot(straight, slanted) / (steep + 1e-6)
    detail = [_cut(band, parts).mean(axis=-1) for band in bands]
    return np.stack([*detail, np.log1p(50 * steep), one_way], axis=-1).astype(np.float32)


def _blur(plane: Floats, sigma_px: float) -> Floats:
    return np.asarray(cv2.GaussianBlur(plane, (0, 0), sigma_px), dtype=np.float32) if sigma_px else plane


def _cut(plane: Floats, parts: int) -> Floats:
    """(parts, parts, pixels of one part)."""
    edge = plane.shape[0] // parts
    return np.asarray(plane.reshape(parts, edge, parts, edge).swapaxes(1, 2).reshape(parts, parts, -1))
