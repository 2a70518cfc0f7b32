"""Estimate a slide's microns per pixel from the size of its nuclei."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from slideway.core.errors import UnknownResolutionError

Floats = NDArray[np.float32]

NOMINAL_MPP = 0.5
NUCLEUS_PX = 11.2  # 75th percentile of compact nuclear diameters at 0.5 µm/px: docs/resolution.md, "The reference"
LIKELY_ERROR = 0.30  # holds 19 of 20 slides in docs/resolution.md: nuclei differ between tissues
HYPOTHESES = np.geomspace(0.10, 1.6, 21)  # µm/px, in steps of 15 %; tried from fine to coarse

# One pixel's optical density in haematoxylin, eosin and a remainder: Ruifrok and Johnston 2001, table 2.
_STAINS = np.array([[0.650, 0.704, 0.286], [0.072, 0.990, 0.105], [0.268, 0.570, 0.776]])
_TO_HAEMATOXYLIN = np.linalg.inv(_STAINS / np.linalg.norm(_STAINS, axis=1, keepdims=True))[:, 0]


@dataclass(frozen=True)
class MppEstimate:
    """An estimate of a slide's level-0 resolution; never to be used without a person's consent.

    Attributes:
        mpp: µm/px at level 0.
        spread: Half-width of the likely range as a share of `mpp`.
        nuclei: Nuclei it rests on.
        detail: The method and its figures in words, for `Resolution.detail`.
    """

    mpp: float
    spread: float
    nuclei: int
    detail: str


def estimate_mpp(crops: Sequence[NDArray[np.uint8]], *, min_nuclei: int = 200) -> MppEstimate:
    """Estimate µm/px at level 0: the one under which the nuclei have the size that nuclei have.

    Crops are resampled to 0.5 µm/px under one hypothesis after the other; the first is taken under which the 75th
    percentile of compact nuclear diameters reaches its reference.

    Args:
        crops: (h, w, 3) RGB at level-0 resolution, H&E, spread over the tissue; about 5 Mpx in all serve well.
        min_nuclei: Fewer compact nuclei than this at the hypothesis taken is no ground for an estimate.

    Raises:
        UnknownResolutionError: Too few nuclei, or no hypothesis fits.

    Source:
        Colour deconvolution: Ruifrok and Johnston, Anal Quant Cytol Histol 23:291 (2001).
    """
    planes = [_haematoxylin(crop) for crop in crops]
    cut = _threshold(planes) if planes else 0.0
    finer: tuple[float, float] | None = None
    most = 0
    for mpp in HYPOTHESES:
        diameters = _all_diameters(planes, mpp / NOMINAL_MPP, cut)
        most = max(most, len(diameters))
        if len(diameters) < min_nuclei / 4:
            finer = None
            continue
        size_px = float(np.percentile(diameters, 75))
        if finer is not None and finer[1] < NUCLEUS_PX <= size_px and len(diameters) >= min_nuclei:
            return _estimate(finer, (float(mpp), size_px), diameters)
        finer = (float(mpp), size_px)
    raise UnknownResolutionError(
        f"the resolution cannot be estimated: {most} compact nuclei in {len(planes)} crops, {min_nuclei} needed at a "
        "plausible size; give the microns per pixel yourself with --mpp"
    )


def _estimate(finer: tuple[float, float], coarser: tuple[float, float], diameters: Floats) -> MppEstimate:
    """Between two hypotheses on either side of the reference size."""
    (mpp, size_px), (coarser_mpp, coarser_size_px) = finer, coarser
    slope = np.log(coarser_size_px / size_px) / np.log(coarser_mpp / mpp)
    found = mpp * (NUCLEUS_PX / size_px) ** (1 / slope)
    around = 1.25 * float(diameters.std()) / NUCLEUS_PX / len(diameters) ** 0.5  # standard error of an upper quartile
    spread = float(np.hypot(LIKELY_ERROR, 2 * around / slope))
    detail = f"estimated from {len(diameters)} nuclei, {found:.3f} µm/px, likely within {spread:.0%}"
    return MppEstimate(float(found), spread, len(diameters), detail)


def _haematoxylin(crop: NDArray[np.uint8]) -> Floats:
    """Density of haematoxylin alone, by colour deconvolution."""
    levels = np.maximum(np.arange(256, dtype=np.float32), 1)
    density = -np.log10(levels / 245)
    return np.asarray(
        sum(np.float32(weight) * density[crop[..., i]] for i, weight in enumerate(_TO_HAEMATOXYLIN)), dtype=np.float32
    )


def _threshold(planes: Sequence[Floats]) -> float:
    """Density that divides nuclei from the rest over all crops; one for all, or crops without nuclei invent some."""
    values = np.concatenate([plane.ravel()[::7] for plane in planes])
    scaled = np.clip(values * 128, 0, 255).astype(np.uint8)
    cut, _ = cv2.threshold(scaled, 0, 255, cv2.THRESH_BINARY + cv2.THRESH_OTSU)
    return float(cut) / 128


def _all_diameters(planes: Sequence[Floats], factor: float, cut: float) -> Floats:
    found = [_diameters(plane, factor, cut) for plane in planes]
    return np.concatenate(found) if found else np.zeros(0, dtype=np.float32)


def _diameters(plane: Floats, factor: float, cut: float) -> Floats:
    """Diameters in px of the compact nuclei of one crop, resampled by `factor`."""
    how = cv2.INTER_AREA if factor < 1 else cv2.INTER_CUBIC
    width, height = (max(1, round(length * factor)) for length in plane.shape[::-1])
    scaled = cv2.resize(plane, (width, height), interpolation=how)
    dark = (cv2.GaussianBlur(scaled, (0, 0), 1.5) > cut).astype(np.uint8)
    dark = cv2.morphologyEx(dark, cv2.MORPH_OPEN, cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (3, 3)))
    contours, _ = cv2.findContours(dark, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
    found = []
    for contour in contours:
        # a contour runs through the centres of its pixels: half a pixel is missing on every side
        length_px = cv2.arcLength(contour, True)
        area_px = cv2.contourArea(contour) + length_px / 2 + 1
        diameter_px = 2 * (area_px / np.pi) ** 0.5
        if 5 <= diameter_px <= 24 and 4 * np.pi * area_px > 0.8 * (length_px + np.pi) ** 2:
            found.append(diameter_px)
    return np.array(found, dtype=np.float32)
