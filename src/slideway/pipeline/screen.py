"""Look over a slide coarsely before it is read: few wide tiles, each standing for many of the encoder's."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from slideway.core.tissue import TileGrid
from slideway.heads import Screening
from slideway.pipeline.survey import Survey
from slideway.slides import OpenedSlide
from slideway.tissue import CELLULARITY, LOOKS, describe_parts, measure_absorbance

SCREEN_MPP = 2.0  # a nucleus is still three pixels wide, and a tile covers sixteen of those at 0.5 µm/px
# With fewer tiles, the least that is read of each kind says little, and reading them all takes seconds.
LEAST_TILES = 200


def lay_screen(grid: TileGrid) -> tuple[TileGrid, NDArray[np.int64], int]:
    """Lay wide tiles over a grid, each covering `parts` × `parts` of its tiles exactly.

    Returns:
        The wide tiles, at `parts` times the µm/px of the grid; for each tile of the grid the wide one it lies in;
        `parts`, 1 where the grid is as coarse as a screening already.
    """
    parts = max(1, math.ceil(SCREEN_MPP / grid.tile_mpp - 1e-9))
    row_column = grid.column_row[:, ::-1] // parts  # row first, so that unique() sorts row by row
    wide, lies_in = np.unique(row_column, axis=0, return_inverse=True)
    column_row = np.ascontiguousarray(wide[:, ::-1], np.int32).reshape(-1, 2)
    return TileGrid(column_row, grid.tile_px, grid.tile_mpp * parts, grid.slide_mpp), lies_in.reshape(-1), parts


def is_worth_screening(grid: TileGrid) -> bool:
    """Whether choosing tiles can save anything: not on a small slide, nor for an encoder that reads coarsely."""
    return len(grid) >= LEAST_TILES and lay_screen(grid)[2] > 1


def screen_slide(opened: OpenedSlide, survey: Survey) -> Screening:
    """Measure the looks of every tile of the survey's grid at about 2 µm/px; no encoder runs."""
    wide, lies_in, parts = lay_screen(survey.grid)
    glass = measure_absorbance(survey.thumbnail).glass
    looks = np.full((len(wide), parts, parts, LOOKS), np.nan, np.float32)
    for batch in opened.read_tiles(wide) if len(wide) else ():
        looks[batch.indices] = describe_parts(batch.tiles, glass=glass, parts=parts)
    column, row = (survey.grid.column_row % parts).T
    of_tiles = looks[lies_in, row, column]
    return Screening(of_tiles, of_tiles[:, CELLULARITY], len(wide))
