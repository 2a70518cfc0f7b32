"""How alike two pictures are, how a picture is found again by plain means, and the sheet of examples."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import cv2
import numpy as np
import PIL.Image
import PIL.ImageDraw
from numpy.typing import NDArray

Array = NDArray[Any]
SSIM_SIGMA = 1.5
SSIM_WINDOW_PX = 11
HISTOGRAM_BINS = 6
THUMBNAIL_PX = 16
SHEET_TILE_PX = 88
SHEET_LABEL_PX = 150


def shrink(tiles: Array, edge_px: int) -> Array:
    return np.stack([cv2.resize(tile, (edge_px, edge_px), interpolation=cv2.INTER_AREA) for tile in tiles])


def measure_ssim(a: Array, b: Array) -> Array:
    """(n,) mean structural similarity of the brightness of pictures (n, h, w, 3) uint8.

    Source: Wang et al. 2004, with its constants, an 11 px Gaussian window of sigma 1.5, its border left out.
    """
    return np.array([_ssim_of_one(grey(one), grey(other)) for one, other in zip(a, b, strict=True)])


def grey(picture: Array) -> Array:
    return cv2.cvtColor(picture, cv2.COLOR_RGB2GRAY).astype(np.float64)


def _ssim_of_one(a: Array, b: Array) -> float:
    mean_a, mean_b = blur(a), blur(b)
    variance_a, variance_b = blur(a * a) - mean_a**2, blur(b * b) - mean_b**2
    covariance = blur(a * b) - mean_a * mean_b
    c1, c2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
    above = (2 * mean_a * mean_b + c1) * (2 * covariance + c2)
    below = (mean_a**2 + mean_b**2 + c1) * (variance_a + variance_b + c2)
    border = SSIM_WINDOW_PX // 2
    return float((above / below)[border:-border, border:-border].mean())


def blur(picture: Array) -> Array:
    return cv2.GaussianBlur(picture, (SSIM_WINDOW_PX, SSIM_WINDOW_PX), SSIM_SIGMA)


def measure_error(a: Array, b: Array) -> Array:
    """(n,) mean squared error, 1 is white."""
    return (((a.astype(np.float32) - b) / 255) ** 2).mean(axis=(1, 2, 3))


def describe_colours(pictures: Array) -> Array:
    """Colour histogram without places, as square roots, so that a product of two is their Bhattacharyya coefficient."""
    bins = pictures.astype(np.int64) * HISTOGRAM_BINS // 256
    codes = (bins[..., 0] * HISTOGRAM_BINS + bins[..., 1]) * HISTOGRAM_BINS + bins[..., 2]
    counts = np.stack([np.bincount(one.ravel(), minlength=HISTOGRAM_BINS**3) for one in codes])
    return np.sqrt(counts / counts.sum(axis=1, keepdims=True)).astype(np.float32)


def describe_pixels(pictures: Array) -> Array:
    """The pixels of a thumbnail, as unit vectors about mid-grey."""
    flat = shrink(pictures, THUMBNAIL_PX).reshape(len(pictures), -1).astype(np.float32) - 128
    return flat / np.maximum(np.linalg.norm(flat, axis=1, keepdims=True), 1e-6)


DESCRIPTORS = {"colours": describe_colours, "pixels": describe_pixels}


def find_same_slide(queries: Array, gallery: Array, slide: Array) -> Array:
    """(n,) whether the nearest other picture of the gallery is of the same slide; own picture left out."""
    alike = queries @ gallery.T
    np.fill_diagonal(alike, -np.inf)
    return slide[alike.argmax(axis=1)] == slide


def find_own_tile(queries: Array, gallery: Array, slide: Array) -> Array:
    """(n,) whether the nearest true picture of its own slide is the very tile; ties count as a guess among them."""
    found = np.zeros(len(queries))
    for one in np.unique(slide):
        mine = np.flatnonzero(slide == one)
        alike = queries[mine] @ gallery[mine].T
        is_best = alike >= alike.max(axis=1, keepdims=True) - 1e-6
        found[mine] = is_best.diagonal() / is_best.sum(axis=1)
    return found


def save_sheet(path: Path, rows: dict[str, Array]) -> None:
    """One row a kind of picture, one column a tile."""
    n = len(next(iter(rows.values())))
    sheet = PIL.Image.new("RGB", (SHEET_LABEL_PX + n * SHEET_TILE_PX, len(rows) * SHEET_TILE_PX), "white")
    pen = PIL.ImageDraw.Draw(sheet)
    for row, (name, pictures) in enumerate(rows.items()):
        pen.multiline_text((6, row * SHEET_TILE_PX + 28), name, fill="black", font_size=14)
        for column, picture in enumerate(pictures):
            edge = SHEET_TILE_PX - 2
            large = cv2.resize(picture, (edge, edge), interpolation=cv2.INTER_CUBIC)
            sheet.paste(PIL.Image.fromarray(large), (SHEET_LABEL_PX + column * SHEET_TILE_PX, row * SHEET_TILE_PX))
    path.parent.mkdir(parents=True, exist_ok=True)
    sheet.save(path, quality=82, method=6)
