"""Spoil good tiles, and make tiles that are none: what a novelty measure should notice."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

Tile = NDArray[Any]
Random = np.random.Generator
# Share of red, green and blue light that one layer of felt pen lets through.
INKS = ((0.15, 0.25, 0.75), (0.10, 0.50, 0.30), (0.10, 0.10, 0.11), (0.90, 0.12, 0.22))


def draw_ink(tile: Tile, random: Random) -> Tile:
    """Cover a whole tile with one layer of ink, unevenly."""
    noise = cv2.GaussianBlur(random.normal(0, 1, tile.shape[:2]), (0, 0), 40)
    cover = np.clip(0.9 + 0.3 * noise / noise.std(), 0.2, 1.4)[..., None]
    return (tile * np.power(np.array(INKS[random.integers(len(INKS))]), cover)).astype(np.uint8)


def make_glass(tile: Tile, random: Random) -> Tile:
    """Empty glass: near white, with a faint tint and sensor noise."""
    tint = random.uniform(225, 250) + random.normal(0, 2, 3)
    return np.clip(tint + random.normal(0, random.uniform(0.5, 2.5), tile.shape), 0, 255).astype(np.uint8)


def blur(sigma_px: float) -> Callable[[Tile, Random], Tile]:
    return lambda tile, _: cv2.GaussianBlur(tile, (0, 0), sigma_px)


def shift_hue(tile: Tile, _: Random) -> Tile:
    """Turn every hue by 30°, as a strange stain would."""
    hsv = cv2.cvtColor(tile, cv2.COLOR_RGB2HSV)
    hsv[..., 0] = (hsv[..., 0].astype(int) + 15) % 180
    return cv2.cvtColor(hsv, cv2.COLOR_HSV2RGB)


def enlarge(tile: Tile, _: Random) -> Tile:
    """The middle at twice the size: a pixel size stated wrong by a factor of two."""
    quarter = tile.shape[0] // 4
    middle = tile[quarter:-quarter, quarter:-quarter]
    return cv2.resize(middle, tile.shape[:2], interpolation=cv2.INTER_LINEAR)


def compress(tile: Tile, _: Random) -> Tile:
    return cv2.imdecode(cv2.imencode(".jpg", tile, [cv2.IMWRITE_JPEG_QUALITY, 5])[1], cv2.IMREAD_COLOR)


def remove_colour(tile: Tile, _: Random) -> Tile:
    return np.repeat(cv2.cvtColor(tile, cv2.COLOR_RGB2GRAY)[..., None], 3, axis=2)


SPOILT: dict[str, Callable[[Tile, Random], Tile]] = {
    "empty glass": make_glass,
    "pen on glass": lambda tile, random: draw_ink(make_glass(tile, random), random),
    "pen over tissue": draw_ink,
    "blurred, σ 1 µm": blur(2),
    "blurred, σ 2 µm": blur(4),
    "blurred, σ 4 µm": blur(8),
    "random noise": lambda tile, random: random.integers(0, 256, tile.shape, np.uint8),
    "black": lambda tile, random: np.clip(random.normal(6, 3, tile.shape), 0, 255).astype(np.uint8),
    "grey picture": remove_colour,
    "red and blue exchanged": lambda tile, _: tile[..., ::-1],
    "hue turned by 30°": shift_hue,
    "enlarged twofold": enlarge,
    "JPEG quality 5": compress,
}
