"""Small moves on masks and planes that mask, ink and folds have in common; lengths in pixels of the plane."""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]
Bools = NDArray[np.bool_]


def smooth(plane: Floats, sigma_px: float) -> Floats:
    """Gaussian mean of one plane; wide ones by three box means, which no longer cost more with width."""
    if sigma_px < 4:
        return np.asarray(cv2.GaussianBlur(plane, (0, 0), max(sigma_px, 0.5)), dtype=np.float32)
    edge = round(2 * sigma_px) | 1  # three boxes of edge 2σ have σ's variance
    for _ in range(3):
        plane = cv2.blur(plane, (edge, edge))
    return np.asarray(plane, dtype=np.float32)


def smooth_over(plane: Floats, where: Bools, sigma_px: float) -> Floats:
    """Gaussian mean of the pixels in `where` alone."""
    weight = where.astype(np.float32)
    return np.asarray(smooth(plane * weight, sigma_px) / np.maximum(smooth(weight, sigma_px), 1e-3), dtype=np.float32)


def local_spread(plane: Floats) -> Floats:
    """Standard deviation in a 5 px square."""
    mean = cv2.blur(plane, (5, 5))
    return np.asarray(np.sqrt(np.maximum(cv2.blur(plane * plane, (5, 5)) - mean * mean, 0)), dtype=np.float32)


def dilate(pixels: Bools, diameter_px: float) -> Bools:
    """Grown by half a diameter on every side."""
    return _morph(cv2.MORPH_DILATE, pixels, diameter_px)


def open_(pixels: Bools, diameter_px: float) -> Bools:
    """Without what a disk of this diameter does not fit into."""
    return _morph(cv2.MORPH_OPEN, pixels, diameter_px)


def close(pixels: Bools, diameter_px: float) -> Bools:
    """With gaps closed that a disk of this diameter does not fit into."""
    return _morph(cv2.MORPH_CLOSE, pixels, diameter_px)


def fill_holes(pixels: Bools, *, largest_px: float) -> Bools:
    """With holes filled up to an area."""
    _, labels, stats, _ = cv2.connectedComponentsWithStats((~pixels).astype(np.uint8), connectivity=4)
    small = stats[:, cv2.CC_STAT_AREA] <= largest_px
    small[0] = False
    return np.asarray(pixels | small[labels])


def touching(allowed: Bools, core: Bools) -> Bools:
    """Pieces of `allowed` and `core` together that hold some of `core`."""
    count, labels = cv2.connectedComponents((allowed | core).astype(np.uint8), connectivity=8)
    is_touched = np.zeros(count, dtype=bool)
    is_touched[labels[core]] = True
    is_touched[0] = False
    return np.asarray(is_touched[labels])


def _morph(operation: int, pixels: Bools, diameter_px: float) -> Bools:
    edge = max(3, round(diameter_px) | 1)
    disk = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (edge, edge))
    return np.asarray(cv2.morphologyEx(pixels.astype(np.uint8), operation, disk) > 0)
