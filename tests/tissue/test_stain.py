"""The look of a stain: H&E, and what only looks as if it were tissue."""

import cv2
import numpy as np
import pytest

from slideway.core.tissue import TissueMask
from slideway.testing.slides import paint_tissue
from slideway.tissue import find_tissue, judge_stain
from slideway.tissue.stain import HE


def look(picture: np.ndarray, pixels: np.ndarray | None = None):
    """The stain of a picture, on all of it or on some of its pixels."""
    empty = np.zeros(picture.shape[:2], bool)
    return judge_stain(picture, TissueMask(~empty if pixels is None else pixels, 8.0, empty, empty))


def photo(name: str) -> np.ndarray:
    data = pytest.importorskip("skimage.data", reason="photographs come with scikit-image")
    picture = getattr(data, name)()
    return np.ascontiguousarray(np.stack([picture] * 3, axis=2) if picture.ndim == 2 else picture[..., :3])


def on_glass(picture: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """A picture with glass around it, and where it lies."""
    canvas = np.full((picture.shape[0] + 200, picture.shape[1] + 200, 3), 243, np.uint8)
    canvas[100:-100, 100:-100] = picture
    inside = np.zeros(canvas.shape[:2], bool)
    inside[100:-100, 100:-100] = True
    return canvas, inside


def test_painted_haematoxylin_and_eosin_looks_like_it():
    picture = cv2.resize(paint_tissue(4000, 3000, mpp=0.5), None, fx=1 / 16, fy=1 / 16, interpolation=cv2.INTER_AREA)
    mask = find_tissue(picture, mpp=8.0)
    assert mask.pixels.any()
    assert judge_stain(picture, mask).stain == HE


@pytest.mark.parametrize(
    ("name", "word"),
    [("immunohistochemistry", "brown"), ("cat", "brown"), ("coffee", "brown"), ("brick", "grey"), ("grass", "grey")],
)
def test_what_is_not_stained_so_is_told_apart(name, word):
    assert look(*on_glass(photo(name))).stain.startswith(word)


def test_blue_is_told_apart():
    picture = np.full((100, 100, 3), (60, 110, 220), np.uint8)
    assert look(*on_glass(picture)).stain.startswith("blue")


def test_nothing_stained_has_no_stain():
    assert look(np.full((50, 50, 3), 243, np.uint8)).stain == ""


def test_more_eosin_or_more_haematoxylin_is_still_the_same_stain():
    random = np.random.default_rng(0)
    for haematoxylin, eosin in ((1.0, 0.2), (0.3, 1.0), (0.6, 0.6)):
        density = haematoxylin * np.array([0.65, 0.70, 0.29]) + eosin * np.array([0.07, 0.99, 0.11])
        pixels = 243 * 10 ** (-density * random.uniform(0.3, 1.0, (80, 80, 1)))
        assert look(*on_glass(np.rint(pixels).astype(np.uint8))).stain == HE
