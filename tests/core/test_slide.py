"""The nouns: levels, resolution, grid, bag."""

import numpy as np
import pytest

from slideway.core.bag import EmbeddingBag, require_same_encoder
from slideway.core.errors import FingerprintMismatchError, UnknownResolutionError
from slideway.core.slide import Level, Resolution, ResolutionSource, Slide
from slideway.core.tissue import TileGrid


def slide_of(mpp: float | None) -> Slide:
    source = ResolutionSource.GIVEN if mpp else ResolutionSource.UNKNOWN
    levels = (Level(40_000, 30_000, 1.0), Level(10_000, 7_500, 4.0), Level(2_500, 1_875, 16.0))
    return Slide("a.svs", "aperio", "tiff", levels, Resolution(mpp, source))


def test_missing_resolution_is_an_error_that_says_what_to_do():
    with pytest.raises(UnknownResolutionError, match=r"--mpp .* scanner profile .* --estimate-mpp"):
        _ = slide_of(None).mpp


@pytest.mark.parametrize(
    ("mpp", "level"), [(0.25, 0), (0.5, 0), (0.99, 1), (1.0, 1), (3.9, 1), (3.95, 2), (64.0, 2), (0.1, 0)]
)
def test_level_for_is_the_coarsest_that_is_fine_enough(mpp, level):
    assert slide_of(0.25).level_for(mpp) == level


@pytest.mark.parametrize("mpp", [0.0, -1.0, 0.001, 500.0])
def test_impossible_resolutions_are_refused(mpp):
    with pytest.raises(ValueError, match="no scanner"):
        Resolution(mpp, ResolutionSource.GIVEN)


def test_grid_positions_do_not_drift_across_a_wide_slide():
    grid = TileGrid(np.array([[0, 0], [1, 0], [1000, 0]], np.int32), 224, 0.5, 0.2431)
    exact = 224 * 0.5 / 0.2431
    assert grid.xy_level0_px[:, 0].tolist() == [0, round(exact), round(1000 * exact)]


def test_bag_refuses_a_vector_too_many():
    grid = TileGrid(np.zeros((2, 2), np.int32), 224, 0.5, 0.5)
    with pytest.raises(ValueError, match="exactly one vector"):
        EmbeddingBag(np.zeros((3, 4), np.float16), grid, np.zeros(3, np.float32), "e", "f", "s")


def test_embeddings_of_different_encoders_never_meet():
    require_same_encoder("a" * 64, "a" * 64)
    with pytest.raises(FingerprintMismatchError, match="different encoders"):
        require_same_encoder("a" * 64, "b" * 64)
