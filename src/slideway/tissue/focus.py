"""How sharp the tiles of a slide are: whether what lies in focus has edges as steep as the pixels allow."""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]

FINEST_MPP = 0.5  # judged no finer: below that the optics, not the focus, decide how steep an edge can be
BLURRED_BELOW = 1.42  # docs/quality.md, "Focus": between tiles in focus and tiles defocused by 2 µm
LEAST_CONTRAST = 1.0  # grey levels per px; below it noise and JPEG make most of the gradient


def measure_focus(tiles: NDArray[np.uint8], *, mpp: float, stored_mpp: float | None = None) -> Floats:
    """Measure the sharpness of tiles as the ratio of fine to twice coarser gradients along their strongest edges.

    An edge in focus is steeper at the finer scale, a blurred one is equally steep at both, whatever the edge belongs
    to: the ratio hardly depends on stain and content. It is 2 for an ideal edge and falls towards 1 with defocus.

    Args:
        tiles: (n, t, t, 3) RGB.
        mpp: µm per pixel of `tiles`.
        stored_mpp: µm per pixel of the scan that `tiles` were read from. A scan coarser than `mpp` was magnified, not
            defocused: its tiles are judged at the scale it holds. None means at least as fine as `mpp`.

    Returns:
        (n,) ratio; NaN where a tile holds too little contrast to tell.

    Source:
        Blur from the ratio of gradients at two scales: Zhuo and Sim, Pattern Recognition 44:1852 (2011).
    """
    if tiles.ndim != 4 or tiles.shape[3] != 3 or tiles.dtype != np.uint8:
        raise ValueError(f"tiles must be (n, t, t, 3) uint8 RGB, not {tiles.shape} {tiles.dtype}")
    judged_mpp = max(FINEST_MPP, mpp, stored_mpp or 0.0)
    edge_px = max(1, round(tiles.shape[1] * mpp / judged_mpp))
    return np.array([_sharpness(tile, edge_px) for tile in tiles], dtype=np.float32)


def is_blurred(focus: Floats) -> NDArray[np.bool_]:
    """True where a tile is out of focus; a tile that cannot be judged (NaN) is not."""
    return np.asarray(focus < BLURRED_BELOW)


def _sharpness(tile: NDArray[np.uint8], edge_px: int) -> float:
    # green: eosin and haematoxylin both absorb it most, and a colour sensor samples it twice as densely
    green = np.asarray(cv2.extractChannel(tile, 1))
    if edge_px != green.shape[0]:
        green = np.asarray(cv2.resize(green, (edge_px, edge_px), interpolation=cv2.INTER_AREA))
    if min(green.shape) < 16:
        return float("nan")
    fine = _steepness(green)
    halved = cv2.resize(green, (green.shape[1] // 2, green.shape[0] // 2), interpolation=cv2.INTER_AREA)
    coarse = _steepness(np.asarray(halved)) / 2
    return fine / coarse if coarse >= LEAST_CONTRAST else float("nan")


def _steepness(plane: NDArray[np.uint8]) -> float:
    """Fourth-power mean of the gradient, in grey levels per px: led by the steepest edges, not by one lone speck."""
    total = 0.0
    for slope in cv2.spatialGradient(plane):
        squared = np.square(slope, dtype=np.float32).ravel()
        total += float(np.dot(squared, squared))
    return float((total / plane.size) ** 0.25) / 8  # Sobel's kernel adds up eight differences over one px
