"""Folds inside tissue: narrow bands where two layers absorb twice as much light of the same colour."""

from __future__ import annotations

import cv2
import numpy as np

from slideway.tissue.shapes import Bools, Floats, open_, smooth, smooth_over, touching


def find_folds(density: Floats, tissue: Bools, *, mpp: float) -> Bools:
    """(h, w) True where tissue lies folded on itself.

    A fold holds the section twice, so its density is about twice its neighbourhood's and its colour the same; cellular
    bands are darker too, but bluer. What is wide or short (glands, follicles, crusts) is not a fold.

    Args:
        density: (3, h, w) optical density, RGB.
        tissue: (h, w) where tissue is.
        mpp: µm per pixel of `density`.
    """
    if mpp > 20 or not tissue.any():  # folds are 20–150 µm wide
        return np.zeros_like(tissue)
    total = density.sum(axis=0)
    solid = tissue & (total > 0.5 * float(np.median(total[tissue])))
    near = np.stack([smooth(plane, 10 / mpp) for plane in density])
    around = np.stack([smooth_over(plane, solid, 200 / mpp) for plane in density])
    near_total, around_total = near.sum(axis=0), np.maximum(around.sum(axis=0), 1e-3)
    alike = (near * around).sum(axis=0)
    alike /= np.maximum(np.sqrt(np.square(near).sum(axis=0) * np.square(around).sum(axis=0)), 1e-6)
    denser = np.where(solid & (near_total > 0.35) & (alike > 0.98), near_total / around_total, np.float32(0))
    twice = touching(denser > 1.35, denser > 1.6)
    narrow = twice & ~open_(twice, 200 / mpp)
    return _keep_long(narrow, mpp=mpp)


def _keep_long(narrow: Bools, *, mpp: float) -> Bools:
    _, labels, stats, _ = cv2.connectedComponentsWithStats(narrow.astype(np.uint8), connectivity=8)
    length_um = np.hypot(stats[:, cv2.CC_STAT_WIDTH], stats[:, cv2.CC_STAT_HEIGHT]) * mpp
    width_um = stats[:, cv2.CC_STAT_AREA] * mpp**2 / np.maximum(length_um, 1)
    keep = (length_um > 300) & (length_um > 4 * width_um) & (width_um > 10)
    keep[0] = False
    return np.asarray(keep[labels])
