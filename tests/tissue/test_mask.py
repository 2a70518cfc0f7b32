"""Tissue is found, and nothing else is taken for it."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest
import tifffile
from numpy.typing import NDArray

from slideway.core.tissue import TissueMask
from slideway.tissue import find_tissue

Image = NDArray[np.uint8]
Bools = NDArray[np.bool_]
INKS = {"blue": (0.15, 0.25, 0.75), "green": (0.1, 0.5, 0.3), "black": (0.1, 0.1, 0.11), "red": (0.9, 0.12, 0.22)}


def share(found: Bools, truth: Bools) -> float:
    return float((found & truth).sum() / truth.sum())


def overlap(found: Bools, truth: Bools) -> float:
    return float((found & truth).sum() / (found | truth).sum())


def test_tissue_on_glass_is_found_and_nothing_else(two_pieces: tuple[Image, Bools]) -> None:
    image, where = two_pieces
    mask = find_tissue(image, mpp=8.0)
    assert overlap(mask.pixels, where) > 0.93
    assert not mask.pen.any()
    assert mask.pixels.shape == where.shape and mask.mpp == 8.0


@pytest.mark.parametrize("mpp", [2.0, 4.0, 16.0, 32.0])
def test_thumbnail_of_any_scale_gives_the_same_area(two_pieces: tuple[Image, Bools], mpp: float) -> None:
    image, where = two_pieces
    how = cv2.INTER_AREA if mpp > 8 else cv2.INTER_CUBIC
    scaled = cv2.resize(image, None, fx=8 / mpp, fy=8 / mpp, interpolation=how)
    mask = find_tissue(scaled, mpp=mpp)
    assert mask.pixels.shape == scaled.shape[:2]
    assert mask.area_mm2 == pytest.approx(where.sum() * 0.008**2, rel=0.1)


def test_glass_alone_holds_no_tissue() -> None:
    noise = np.random.default_rng(0).normal(0, 1.5, (300, 400, 3))
    glass = np.rint(np.array([236, 238, 240]) + noise).astype(np.uint8)
    assert not find_tissue(glass, mpp=8.0).pixels.any()


@pytest.mark.parametrize("level", [0, 128, 255])
def test_flat_picture_holds_no_tissue(level: int) -> None:
    assert not find_tissue(np.full((64, 64, 3), level, dtype=np.uint8), mpp=8.0).pixels.any()


@pytest.mark.parametrize("shape", [(1, 1), (1, 50), (3, 2)])
def test_tiniest_thumbnails_are_answered(shape: tuple[int, int]) -> None:
    assert find_tissue(np.full((*shape, 3), 200, dtype=np.uint8), mpp=64.0).pixels.shape == shape


def test_pale_tissue_is_found(paint: Callable[..., Image], two_pieces: tuple[Image, Bools]) -> None:
    where = two_pieces[1]
    assert share(find_tissue(paint(where, strength=0.25), mpp=8.0).pixels, where) > 0.95


def test_fat_is_kept_by_its_faint_outlines(fat: tuple[Image, Bools]) -> None:
    image, where = fat
    mask = find_tissue(image, mpp=8.0)
    assert share(mask.pixels, where) > 0.9
    assert share(mask.pixels, ~where) < 0.05


def test_dark_tissue_filling_the_scan_is_tissue_and_not_black_ink(paint: Callable[..., Image]) -> None:
    everywhere = np.ones((300, 400), dtype=bool)
    mask = find_tissue(paint(everywhere, strength=2.5), mpp=8.0)
    assert mask.pixels.mean() > 0.98
    assert not mask.pen.any()


@pytest.mark.parametrize(
    "light", [(0.4, 0.4, 0.4), (0.65, 0.65, 0.65), (1.0, 0.93, 0.8), (0.85, 0.92, 1.0), (0.9, 1.0, 0.9)]
)
def test_grey_dark_or_tinted_light_changes_nothing(
    two_pieces: tuple[Image, Bools], light: tuple[float, float, float]
) -> None:
    image, where = two_pieces
    mask = find_tissue(np.rint(image * np.array(light)).astype(np.uint8), mpp=8.0)
    assert overlap(mask.pixels, where) > 0.92
    assert not mask.pen.any()


@pytest.mark.parametrize("level", [0, 90, 255])
def test_padding_is_neither_tissue_nor_scanned(two_pieces: tuple[Image, Bools], level: int) -> None:
    image, where = two_pieces
    padded = np.full((700, 900, 3), level, dtype=np.uint8)
    padded[100:600, 200:800] = np.rint(image * 0.9).astype(np.uint8)
    mask = find_tissue(padded, mpp=8.0)
    inside = np.zeros((700, 900), dtype=bool)
    inside[100:600, 200:800] = True
    assert not mask.pixels[~inside].any()
    assert overlap(mask.pixels[100:600, 200:800], where) > 0.9
    assert mask.scanned is not None
    assert overlap(mask.scanned, inside) > 0.93
    assert mask.fraction == pytest.approx(where.mean(), rel=0.15)


@pytest.mark.parametrize("ink", INKS)
def test_pen_over_glass_is_ink_and_not_tissue(
    two_pieces: tuple[Image, Bools], draw_ink: Callable[..., Image], ink: str
) -> None:
    image, where = two_pieces
    line = [(20, 450), (560, 440)]
    mask = find_tissue(draw_ink(image, INKS[ink], line), mpp=8.0)
    stroke = np.zeros(where.shape, dtype=np.uint8)
    cv2.polylines(stroke, [np.array(line)], False, 1, 52)
    assert share(mask.pen, stroke > 0) > 0.95
    assert not mask.pixels[400:].any()
    assert share(mask.pixels, where) > 0.95


@pytest.mark.parametrize("ink", INKS)
def test_pen_across_tissue_is_ink_also_where_tissue_shows_through(
    two_pieces: tuple[Image, Bools], draw_ink: Callable[..., Image], ink: str
) -> None:
    image, where = two_pieces
    line = [(20, 220), (590, 240)]
    mask = find_tissue(draw_ink(image, INKS[ink], line), mpp=8.0)
    stroke = np.zeros(where.shape, dtype=np.uint8)
    cv2.polylines(stroke, [np.array(line)], False, 1, 52)
    under = (stroke > 0) & where
    assert share(mask.pen, under) > 0.85
    assert share(mask.pixels, under) < 0.1
    far = where & (cv2.dilate(stroke, np.ones((25, 25), np.uint8)) == 0)
    assert share(mask.pixels, far) > 0.95


def test_dense_haematoxylin_is_not_taken_for_ink() -> None:
    grain = np.random.default_rng(3).normal(0, 0.05, (300, 300))
    density = (0.75 + grain)[..., None] * np.array([0.60, 0.66, 0.30])
    image = np.full((400, 500, 3), 243.0)
    image[50:350, 100:400] *= 10.0**-density
    mask = find_tissue(np.rint(image).astype(np.uint8), mpp=8.0)
    assert not mask.pen.any()
    assert mask.pixels[60:340, 110:390].mean() > 0.99


def test_dust_hairs_and_coverslip_edge_are_not_tissue(two_pieces: tuple[Image, Bools]) -> None:
    image, where = two_pieces
    cover = np.zeros(where.shape, dtype=np.float32)
    rng = np.random.default_rng(1)
    for _ in range(60):
        cv2.circle(cover, tuple(int(v) for v in rng.uniform(0, 500, 2)), int(rng.integers(1, 7)), 1.0, -1)
    cv2.polylines(cover, [np.array([(300, 30), (420, 60), (500, 40)])], False, 1.0, 2, cv2.LINE_AA)
    cv2.line(cover, (585, 0), (578, 499), 1.0, 3, cv2.LINE_AA)
    dirty = np.rint(image * np.power(np.array([0.40, 0.39, 0.38]), cover[..., None])).astype(np.uint8)
    mask = find_tissue(dirty, mpp=8.0)
    assert share(mask.pixels, (cover > 0.2) & ~cv2.dilate(where.astype(np.uint8), np.ones((9, 9))).astype(bool)) < 0.03
    assert share(mask.pixels, where) > 0.97


def test_stained_thread_is_not_tissue(two_pieces: tuple[Image, Bools]) -> None:
    image, where = two_pieces
    cover = np.zeros(where.shape, dtype=np.float32)
    cv2.polylines(cover, [np.array([(310, 20), (420, 60), (520, 40), (580, 120)])], False, 1.0, 2, cv2.LINE_AA)
    threaded = np.rint(image * np.power(np.array([0.9, 0.5, 0.85]), cover[..., None])).astype(np.uint8)
    mask = find_tissue(threaded, mpp=8.0)
    assert not mask.pixels[:160, 320:].any()
    assert overlap(mask.pixels, where) > 0.92


def test_bubbles_are_not_tissue(two_pieces: tuple[Image, Bools]) -> None:
    image, where = two_pieces
    ys, xs = np.mgrid[:500, :600]
    gap = np.hypot(xs - 480, ys - 90) - 70
    light = 1 - 0.6 * np.exp(-((gap / 1.8) ** 2)) + 0.04 * np.exp(-(((gap + 4) / 2) ** 2))
    mask = find_tissue(np.clip(np.rint(image * light[..., None]), 0, 255).astype(np.uint8), mpp=8.0)
    assert not mask.pixels[:200, 380:].any()
    assert overlap(mask.pixels, where) > 0.9


def test_printed_control_strip_is_not_tissue_whatever_its_colour(two_pieces: tuple[Image, Bools]) -> None:
    image, where = two_pieces
    strip = image.astype(np.float64)
    noise = np.random.default_rng(2).normal(0, 1, (110, 60, 3))
    colours = ((225, 160, 200), (150, 90, 160), (90, 140, 200), (120, 120, 120))
    for row, colour in enumerate(colours):
        strip[10 + row * 120 : 120 + row * 120, 530:590] = np.array(colour) + noise
    mask = find_tissue(np.rint(strip).astype(np.uint8), mpp=8.0)
    assert mask.pixels[:, 528:].mean() < 0.02
    assert share(mask.pixels[:, :520], where[:, :520]) > 0.97


def test_fold_inside_tissue_is_found(paint: Callable[..., Image]) -> None:
    where = np.zeros((300, 400), dtype=bool)
    where[30:270, 30:370] = True
    image = paint(where, seed=5)
    glass = np.array([243.0, 242.0, 243.0])
    band = np.zeros(where.shape, dtype=np.float32)
    cv2.line(band, (120, 60), (280, 220), 1.0, 9, cv2.LINE_AA)
    above = np.roll(image, (17, 11), axis=(0, 1)) / glass
    folded = np.rint(image * np.power(np.minimum(above, 1), band[..., None])).astype(np.uint8)
    assert not find_tissue(image, mpp=8.0).fold.any()
    mask = find_tissue(folded, mpp=8.0)
    assert share(mask.fold, band > 0.5) > 0.5
    assert mask.fold[cv2.dilate(band, np.ones((9, 9))) < 0.1].mean() < 0.005


@pytest.mark.skipif("SLIDEWAY_TEST_SLIDES" not in os.environ, reason="SLIDEWAY_TEST_SLIDES names no folder")
def test_real_slides_hold_tissue_and_no_ink() -> None:
    for path in sorted(Path(os.environ["SLIDEWAY_TEST_SLIDES"]).glob("*.tif")):
        with tifffile.TiffFile(path) as file:
            pages = [page for page in file.pages if page.is_tiled]
            numerator, denominator = pages[0].tags["XResolution"].value
            coarsest = pages[-1].asarray()
            mpp = 10_000 * denominator / numerator * pages[0].shape[1] / coarsest.shape[1]
        mask = find_tissue(coarsest, mpp=mpp)
        assert mask.area_mm2 > 1, path.name
        assert mask.fraction < 0.95, path.name
        assert not mask.pen.any(), path.name


def test_same_thumbnail_gives_the_same_mask(two_pieces: tuple[Image, Bools]) -> None:
    first, second = (find_tissue(two_pieces[0], mpp=8.0) for _ in range(2))
    assert all(np.array_equal(getattr(first, name), getattr(second, name)) for name in ("pixels", "pen", "fold"))


def test_thumbnail_is_left_as_it_was(two_pieces: tuple[Image, Bools]) -> None:
    before = two_pieces[0].copy()
    find_tissue(two_pieces[0], mpp=8.0)
    assert np.array_equal(before, two_pieces[0])


def test_picture_that_is_not_rgb_bytes_is_refused() -> None:
    with pytest.raises(ValueError, match="uint8 RGB"):
        find_tissue(np.zeros((5, 5), dtype=np.uint8), mpp=8.0)


def test_scanned_share_counts_the_scanned_area_only() -> None:
    tissue = np.zeros((10, 10), dtype=bool)
    tissue[:5, :5] = True
    scanned = np.zeros((10, 10), dtype=bool)
    scanned[:5] = True
    blank = np.zeros_like(tissue)
    assert TissueMask(tissue, 8.0, blank, blank, scanned).fraction == pytest.approx(0.5)
    assert TissueMask(tissue, 8.0, blank, blank).fraction == pytest.approx(0.25)
