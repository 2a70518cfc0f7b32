"""The same tissue as another laboratory, scanner or archive would show it: one fixed change each."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

Tile = NDArray[Any]
# Haematoxylin, eosin and what is left, as directions of optical density. Source: Ruifrok and Johnston 2001.
STAINS = np.array([[0.65, 0.70, 0.29], [0.07, 0.99, 0.11], [0.27, 0.57, 0.78]])
STAINS /= np.linalg.norm(STAINS, axis=1, keepdims=True)


def restain(haematoxylin: float, eosin: float) -> Callable[[Tile], Tile]:
    """Multiply the amounts of both stains."""
    change = np.linalg.inv(STAINS) @ np.diag([haematoxylin, eosin, 1.0]) @ STAINS

    def apply(tile: Tile) -> Tile:
        density = -np.log((tile.astype(np.float64) + 1) / 256) @ change
        return np.clip(256 * np.exp(-density) - 1, 0, 255).astype(np.uint8)

    return apply


def rescan(tile: Tile) -> Tile:
    """Another scanner's white balance and gamma."""
    light = np.power(tile / 255.0, (1.10, 0.95, 0.90)) * (0.97, 1.0, 0.94)
    return np.clip(255 * light, 0, 255).astype(np.uint8)


def compress(tile: Tile) -> Tile:
    """JPEG at quality 40."""
    return cv2.imdecode(cv2.imencode(".jpg", tile, [cv2.IMWRITE_JPEG_QUALITY, 40])[1], cv2.IMREAD_COLOR)


def blur(tile: Tile) -> Tile:
    """Out of focus by σ 0.6 µm."""
    return cv2.GaussianBlur(tile, (0, 0), 1.2)


def enlarge(tile: Tile) -> Tile:
    """A pixel size stated 20 % too large: the middle of the tile, enlarged."""
    edge = tile.shape[0]
    start = round(edge * (1 - 1 / 1.2) / 2)
    return cv2.resize(tile[start : edge - start, start : edge - start], (edge, edge), interpolation=cv2.INTER_LINEAR)


def shrink(tile: Tile) -> Tile:
    """A pixel size stated 20 % too small: the tile made smaller, its surroundings mirrored (they are not stored)."""
    edge = tile.shape[0]
    small = cv2.resize(tile, (round(edge / 1.2), round(edge / 1.2)), interpolation=cv2.INTER_AREA)
    before = (edge - small.shape[0]) // 2
    after = edge - small.shape[0] - before
    return cv2.copyMakeBorder(small, before, after, before, after, cv2.BORDER_REFLECT)


PERTURBATIONS: dict[str, Callable[[Tile], Tile]] = {
    "stain: H × 1.4, E × 0.7": restain(1.4, 0.7),
    "stain: H × 0.7, E × 1.4": restain(0.7, 1.4),
    "scanner: white balance, gamma": rescan,
    "JPEG quality 40": compress,
    "blur σ 0.6 µm": blur,
    "pixel size +20 %": enlarge,
    "pixel size −20 %": shrink,
}
