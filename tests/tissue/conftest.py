"""Synthetic H&E thumbnails and tiles, and the faults to plant into them."""

from __future__ import annotations

from collections.abc import Callable

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray

Image = NDArray[np.uint8]
Bools = NDArray[np.bool_]

EOSIN = np.array([0.07, 0.99, 0.11])
HAEMATOXYLIN = np.array([0.55, 0.70, 0.29])
GLASS = np.array([243.0, 242.0, 243.0])


def stain(eosin: NDArray[np.float64], haematoxylin: NDArray[np.float64], *, seed: int = 0) -> Image:
    """Light through two stains, with a sensor's noise."""
    density = eosin[..., None] * EOSIN + haematoxylin[..., None] * HAEMATOXYLIN
    noise = np.random.default_rng(seed).normal(0, 0.7, density.shape)
    return np.clip(np.rint(GLASS * 10.0**-density + noise), 0, 255).astype(np.uint8)


def texture(shape: tuple[int, int], *, sigma_px: float, seed: int) -> NDArray[np.float64]:
    values = cv2.GaussianBlur(np.random.default_rng(seed).normal(0, 1, shape), (0, 0), sigma_px)
    return np.asarray(values / values.std())


def blob(shape: tuple[int, int], centre: tuple[float, float], axes: tuple[float, float]) -> Bools:
    ys, xs = np.mgrid[: shape[0], : shape[1]]
    return np.asarray(((xs - centre[0]) / axes[0]) ** 2 + ((ys - centre[1]) / axes[1]) ** 2 <= 1)


def paint_tissue(where: Bools, *, strength: float = 1.0, seed: int = 0) -> Image:
    """Glass with tissue in `where`, textured as tissue is at 8 µm/px."""
    mottle = texture(where.shape, sigma_px=1.2, seed=seed) + texture(where.shape, sigma_px=6, seed=seed + 1)
    eosin = np.clip(0.22 + 0.05 * mottle, 0.02, None) * strength * where
    haematoxylin = np.clip(0.16 + 0.06 * texture(where.shape, sigma_px=2, seed=seed + 2), 0, None) * strength * where
    return stain(eosin, haematoxylin, seed=seed)


@pytest.fixture(scope="session")
def two_pieces() -> tuple[Image, Bools]:
    """A thumbnail of 600 × 500 px at 8 µm/px with two pieces of tissue, and where they are."""
    where = blob((500, 600), (180, 220), (110, 140)) | blob((500, 600), (430, 300), (90, 60))
    return paint_tissue(where), where


@pytest.fixture(scope="session")
def paint() -> Callable[..., Image]:
    return paint_tissue


@pytest.fixture(scope="session")
def fat() -> tuple[Image, Bools]:
    """A field of fat cells: empty but for outlines one or two pixels wide and pale."""
    where = blob((400, 400), (200, 200), (130, 130))
    cover = np.zeros(where.shape, dtype=np.float32)
    for row, y in enumerate(range(60, 340, 9)):
        for x in range(60 + 5 * (row % 2), 340, 11):
            cv2.circle(cover, (x, y), 5, 1.0, 1, cv2.LINE_AA)
    eosin = 0.04 * cover.astype(np.float64) * where
    return stain(eosin, eosin * 0.1), where


def inked(
    image: Image, through: tuple[float, float, float], line: list[tuple[int, int]], *, width_px: int = 60
) -> Image:
    """A felt pen's stroke: ink that lets a share of red, green and blue light through."""
    cover = np.zeros(image.shape[:2], dtype=np.float32)
    cv2.polylines(cover, [np.array(line, dtype=np.int32)], False, 1.0, width_px, cv2.LINE_AA)
    cover = cv2.GaussianBlur(cover, (0, 0), 2)
    return np.rint(image * np.power(np.array(through), cover[..., None])).astype(np.uint8)


@pytest.fixture(scope="session")
def draw_ink() -> Callable[..., Image]:
    return inked


def cells(edge_px: int, *, px_per_um: float, seed: int, pale: float = 1.0) -> Image:
    """Nuclei of 4–7 µm on fibrous stroma."""
    rng = np.random.default_rng(seed)
    grain = texture((edge_px, edge_px), sigma_px=1.0, seed=seed)
    eosin = np.clip(0.2 + 0.04 * grain, 0, None) * pale
    nuclei = np.zeros((edge_px, edge_px), dtype=np.float32)
    count = round(0.004 * (edge_px / px_per_um) ** 2)
    for _ in range(count):
        centre = rng.uniform(0, edge_px, 2)
        radius = rng.normal(2.75, 0.25) * px_per_um
        axes = (radius * rng.uniform(1, 1.15), radius * rng.uniform(0.87, 1))
        scaled = tuple(int(v * 16) for v in centre), tuple(int(v * 16) for v in axes)
        cv2.ellipse(nuclei, scaled[0], scaled[1], rng.uniform(0, 180), 0, 360, 1.0, -1, cv2.LINE_AA, 4)
    chromatin = np.clip(0.55 + 0.08 * grain, 0, None) * pale
    return stain(eosin, nuclei.astype(np.float64) * chromatin, seed=seed)


@pytest.fixture(scope="session")
def paint_cells() -> Callable[..., Image]:
    return cells


def defocused(image: Image, radius_px: float) -> Image:
    """A disk of confusion."""
    reach = int(np.ceil(radius_px)) + 1
    ys, xs = np.mgrid[-reach : reach + 1, -reach : reach + 1]
    disk = np.clip(radius_px + 0.5 - np.hypot(xs, ys), 0, 1)
    return np.asarray(cv2.filter2D(image, -1, disk / disk.sum(), borderType=cv2.BORDER_REFLECT), dtype=np.uint8)


@pytest.fixture(scope="session")
def defocus() -> Callable[..., Image]:
    return defocused
