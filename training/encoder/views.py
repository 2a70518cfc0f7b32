"""Two views of one tile that a pathologist would call the same tissue: other cut, stain, scanner and compression."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

Pixels = NDArray[np.uint8]
Array = NDArray[Any]

# Haematoxylin, eosin and what is left, as directions of optical density. Source: Ruifrok and Johnston 2001.
STAINS = np.array([[0.65, 0.70, 0.29], [0.07, 0.99, 0.11], [0.27, 0.57, 0.78]], np.float32)
STAINS /= np.linalg.norm(STAINS, axis=1, keepdims=True)
UNMIX = np.linalg.inv(STAINS).astype(np.float32)
DENSITY = -np.log((np.arange(256, dtype=np.float32) + 1) / 256)  # optical density of every grey level


@dataclass(frozen=True)
class Strength:
    """How far a view may go from its tile.

    Attributes:
        zoom: Largest factor of the pixel size, either way.
        stain: Deviation of the logarithm of each stain's amount.
        tint: Deviation of the optical density added to each channel.
        swap: Share of views that wear the colours of another slide.
        blur_px: Largest deviation of a blur.
        jpeg: Share of views that are compressed once more.
        grey: Share of views without colour.
    """

    zoom: float = 1.3
    stain: float = 0.25
    tint: float = 0.03
    swap: float = 0.5
    blur_px: float = 1.2
    jpeg: float = 0.3
    grey: float = 0.1


def measure_colours(tiles: Pixels) -> Array:
    """Second moment of a slide's optical density, (3, 3): what its stain and scanner make of tissue.

    Not centred, so that white stays white when colours are swapped.
    """
    density = DENSITY[tiles[:, ::4, ::4]].reshape(-1, 3)
    tissue = density[density.sum(1) > 0.3]
    return (tissue.T @ tissue / max(len(tissue), 1) + 1e-4 * np.eye(3)).astype(np.float32)


def swap_colours(mine: Array, theirs: Array) -> Array:
    """Linear map of optical density that gives one slide's second moment to another's pixels."""
    return _power(mine, -0.5) @ _power(theirs, 0.5)


def _power(matrix: Array, exponent: float) -> Array:
    values, axes = np.linalg.eigh(matrix)
    return ((axes * np.maximum(values, 1e-6) ** exponent) @ axes.T).astype(np.float32)


def make_view(
    tile: Pixels, mpp: float, colours: Array, wardrobe: Array, edge_px: int, how: Strength, rng: np.random.Generator
) -> Pixels:
    """One view of `edge_px` at about 0.5 microns per pixel.

    Args:
        tile: (h, w, 3) RGB as stored.
        mpp: Microns per pixel of the tile.
        colours: (3, 3) second moment of its slide.
        wardrobe: (n, 3, 3) second moments of all slides.
        edge_px: Edge of the view.
        how: Strength of every change.
        rng: Source of chance.
    """
    view = _cut(tile, 0.5 / mpp, edge_px, how, rng)
    change = _stain_change(colours, wardrobe, how, rng)
    tint = rng.normal(0, how.tint, 3).astype(np.float32)
    density = DENSITY[view] @ change + tint
    if rng.random() < how.grey:
        density[:] = density.mean(2, keepdims=True)
    light = 256 * np.exp(-density) - 1
    sigma = rng.uniform(0, how.blur_px)
    if sigma > 0.4:
        light = cv2.GaussianBlur(light, (0, 0), sigma)
    pixels: Pixels = np.clip(light, 0, 255).astype(np.uint8)
    if rng.random() < how.jpeg:
        _, written = cv2.imencode(".jpg", pixels, [cv2.IMWRITE_JPEG_QUALITY, int(rng.integers(30, 90))])
        pixels = np.asarray(cv2.imdecode(written, cv2.IMREAD_COLOR), np.uint8)
    return pixels


def _cut(tile: Pixels, step: float, edge_px: int, how: Strength, rng: np.random.Generator) -> Pixels:
    """A square somewhere in the tile, zoomed, turned by quarters and mirrored."""
    height, width = tile.shape[:2]
    zoom = np.exp(rng.uniform(-1, 1) * np.log(how.zoom))
    field = min(round(edge_px * step * zoom), height, width)
    top, left = rng.integers(0, height - field + 1), rng.integers(0, width - field + 1)
    square = tile[top : top + field, left : left + field]
    method = cv2.INTER_AREA if field > edge_px else cv2.INTER_LINEAR
    view = np.rot90(cv2.resize(square, (edge_px, edge_px), interpolation=method), rng.integers(4))
    return np.ascontiguousarray(view[:, ::-1] if rng.random() < 0.5 else view)


def _stain_change(colours: Array, wardrobe: Array, how: Strength, rng: np.random.Generator) -> Array:
    amounts = np.exp(rng.normal(0, how.stain, 3)).astype(np.float32)
    change = UNMIX @ np.diag(amounts) @ STAINS
    if rng.random() < how.swap:
        change = swap_colours(colours, wardrobe[rng.integers(len(wardrobe))]) @ change
    return change.astype(np.float32)
