"""The grid does not drift, overlap, leave the slide, or lose small fragments."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from slideway.core.tissue import TileGrid, TissueMask
from slideway.tissue import lay_grid


def mask_of(tissue: np.ndarray, *, mpp: float = 8.0, pen: np.ndarray | None = None) -> TissueMask:
    blank = np.zeros_like(tissue)
    return TissueMask(tissue, mpp=mpp, pen=blank if pen is None else pen, fold=blank)


def grid_over_everything(width_px: int, height_px: int, slide_mpp: float, tile_px: int, tile_mpp: float) -> TileGrid:
    mask_mpp = max(slide_mpp * max(width_px, height_px) / 400, slide_mpp)
    shape = (int(np.ceil(height_px * slide_mpp / mask_mpp)) + 1, int(np.ceil(width_px * slide_mpp / mask_mpp)) + 1)
    mask = mask_of(np.ones(shape, dtype=bool), mpp=mask_mpp)
    return lay_grid(
        mask,
        slide_width_px=width_px,
        slide_height_px=height_px,
        slide_mpp=slide_mpp,
        tile_px=tile_px,
        tile_mpp=tile_mpp,
    )


slide_sizes = st.integers(1, 200_000)
resolutions = st.floats(0.1, 2.0)


@settings(max_examples=150, deadline=None)
@given(slide_sizes, st.integers(1, 20_000), resolutions, st.sampled_from([224, 256, 512]), st.sampled_from([0.5, 1.0]))
def test_tiles_start_inside_and_reach_over_the_edge_by_half_at_most(
    width_px: int, height_px: int, slide_mpp: float, tile_px: int, tile_mpp: float
) -> None:
    grid = grid_over_everything(width_px, height_px, slide_mpp, tile_px, tile_mpp)
    edge = grid.tile_level0_px
    xy = grid.xy_level0_px
    assert (xy >= 0).all()
    assert (xy < (width_px, height_px)).all()
    assert (grid.column_row * edge + edge / 2 <= np.array([width_px, height_px]) * (1 + 1e-9)).all()


@settings(max_examples=100, deadline=None)
@given(slide_sizes, resolutions)
def test_positions_never_drift_from_exact_multiples(width_px: int, slide_mpp: float) -> None:
    grid = grid_over_everything(width_px, 3000, slide_mpp, 224, 0.5)
    exact = grid.column_row * (224 * 0.5 / slide_mpp)
    assert np.abs(grid.xy_level0_px - exact).max(initial=0) <= 0.5


@settings(max_examples=100, deadline=None)
@given(slide_sizes, st.integers(1, 5000), resolutions)
def test_tiles_do_not_overlap_and_leave_no_gap(width_px: int, height_px: int, slide_mpp: float) -> None:
    grid = grid_over_everything(width_px, height_px, slide_mpp, 256, 0.5)
    assert len(np.unique(grid.column_row, axis=0)) == len(grid)
    edge = grid.tile_level0_px
    columns = np.unique(grid.xy_level0_px[:, 0])
    assert (np.abs(np.diff(columns) - edge) <= 1).all()


def test_last_tile_of_a_slide_200_000_px_wide_lies_where_it_should() -> None:
    grid = grid_over_everything(200_000, 1000, 0.2527, 224, 0.5)
    column = grid.column_row[:, 0].max()
    assert grid.xy_level0_px[:, 0].max() == round(column * 224 * 0.5 / 0.2527)
    assert column == int(np.floor(200_000 / (224 * 0.5 / 0.2527) + 0.5)) - 1


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**32 - 1), st.floats(0.2, 1.5), st.floats(0.05, 0.9))
def test_order_is_row_major_and_the_same_every_time(seed: int, slide_mpp: float, share: float) -> None:
    tissue = np.random.default_rng(seed).random((60, 80)) < 0.5
    arguments = {"slide_width_px": 1280, "slide_height_px": 960, "slide_mpp": slide_mpp, "tile_px": 64}
    grids = [lay_grid(mask_of(tissue), **arguments, min_tissue_share=share) for _ in range(2)]
    assert np.array_equal(grids[0].column_row, grids[1].column_row)
    rank = grids[0].column_row[:, 1].astype(np.int64) * 100_000 + grids[0].column_row[:, 0]
    assert (np.diff(rank) > 0).all()
    assert grids[0].column_row.dtype == np.int32


@settings(max_examples=80, deadline=None)
@given(st.integers(0, 2**32 - 1))
def test_every_piece_of_tissue_is_touched_by_a_tile(seed: int) -> None:
    rng = np.random.default_rng(seed)
    tissue = np.zeros((100, 120), dtype=bool)
    for _ in range(rng.integers(1, 12)):
        y, x = rng.integers(0, 95), rng.integers(0, 115)
        tissue[y : y + rng.integers(1, 5), x : x + rng.integers(1, 5)] = True
    grid = lay_grid(mask_of(tissue), slide_width_px=1920, slide_height_px=1600, slide_mpp=0.5)
    seen = np.zeros_like(tissue)
    for column, row in grid.column_row:
        seen[row * 14 : (row + 1) * 14, column * 14 : (column + 1) * 14] = True
    from cv2 import connectedComponents

    pieces, labels = connectedComponents(tissue.astype(np.uint8), connectivity=8)
    # a piece that lies wholly in the strip that half a tile cannot reach has no tile to be in
    reachable = np.zeros_like(tissue)
    reachable[: 14 * 7, : 14 * 9] = True
    for piece in range(1, pieces):
        here = (labels == piece) & reachable
        assert not here.any() or seen[here].any()


def test_share_counts_parts_of_mask_pixels_exactly() -> None:
    tissue = np.zeros((4, 4), dtype=bool)
    tissue[0, 0] = True  # 64 µm square in the corner of a tile of 112 µm
    share = (64 / 112) ** 2
    arguments = {"slide_width_px": 512, "slide_height_px": 512, "slide_mpp": 0.5}
    tissue[2:, 2:] = True  # so that the corner is not the only piece
    mask = mask_of(tissue, mpp=64.0)
    just = lay_grid(mask, **arguments, min_tissue_share=share - 1e-9)
    assert [0, 0] in just.column_row.tolist()


def test_tile_mostly_covered_by_ink_is_left_out() -> None:
    tissue = np.ones((56, 56), dtype=bool)
    pen = np.zeros_like(tissue)
    pen[:14, :10] = True
    grid = lay_grid(mask_of(tissue & ~pen, pen=pen), slide_width_px=896, slide_height_px=896, slide_mpp=0.5)
    assert [0, 0] not in grid.column_row.tolist()
    assert len(grid) == 15


def test_no_tissue_gives_an_empty_grid_of_two_columns() -> None:
    grid = lay_grid(mask_of(np.zeros((10, 10), dtype=bool)), slide_width_px=160, slide_height_px=160, slide_mpp=0.5)
    assert grid.column_row.shape == (0, 2)
    assert grid.xy_level0_px.shape == (0, 2)


def test_slide_smaller_than_half_a_tile_gives_an_empty_grid() -> None:
    grid = lay_grid(mask_of(np.ones((5, 5), dtype=bool)), slide_width_px=80, slide_height_px=80, slide_mpp=0.5)
    assert len(grid) == 0


@pytest.mark.parametrize("wrong", [{"slide_mpp": 0.0}, {"min_tissue_share": 0.0}, {"tile_px": 0}])
def test_impossible_arguments_are_refused(wrong: dict[str, float]) -> None:
    arguments = {"slide_width_px": 100, "slide_height_px": 100, "slide_mpp": 0.5} | wrong
    with pytest.raises(ValueError, match="positive"):
        lay_grid(mask_of(np.ones((5, 5), dtype=bool)), **arguments)
