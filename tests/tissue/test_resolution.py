"""The scale is found from nuclei, or refused in words."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from numpy.typing import NDArray

from slideway.core.errors import UnknownResolutionError
from slideway.tissue import estimate_mpp

Image = NDArray[np.uint8]


@pytest.mark.parametrize("mpp", [0.25, 0.5, 1.0])
def test_scale_of_cells_of_known_size_is_found(paint_cells: Callable[..., Image], mpp: float) -> None:
    edge_px = round(320 / mpp)
    crops = [paint_cells(edge_px, px_per_um=1 / mpp, seed=seed) for seed in range(6)]
    found = estimate_mpp(crops)
    assert found.mpp == pytest.approx(mpp, rel=0.2)
    assert found.nuclei >= 200
    assert 0.3 <= found.spread < 0.6
    assert f"{found.nuclei} nuclei" in found.detail


def test_halving_the_pixels_doubles_the_estimate(paint_cells: Callable[..., Image]) -> None:
    fine, coarse = (
        estimate_mpp([paint_cells(round(320 / mpp), px_per_um=1 / mpp, seed=seed) for seed in range(6)]).mpp
        for mpp in (0.3, 0.6)
    )
    assert coarse / fine == pytest.approx(2, rel=0.1)


def test_tissue_without_nuclei_is_refused_with_advice() -> None:
    noise = np.random.default_rng(0).normal(0, 2, (3, 400, 400, 3))
    stroma = np.clip(np.rint(np.array([225, 170, 205]) + noise), 0, 255).astype(np.uint8)
    with pytest.raises(UnknownResolutionError, match=r"nuclei.*--mpp"):
        estimate_mpp(list(stroma))


def test_no_crops_at_all_are_refused_likewise() -> None:
    with pytest.raises(UnknownResolutionError, match="0 crops"):
        estimate_mpp([])


def test_few_nuclei_are_refused(paint_cells: Callable[..., Image]) -> None:
    with pytest.raises(UnknownResolutionError):
        estimate_mpp([paint_cells(200, px_per_um=2.0, seed=0)])
