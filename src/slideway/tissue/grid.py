"""The squares of a slide that an encoder reads: exact spacing, rounded last, tissue only."""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import NDArray

from slideway.core.tissue import TileGrid, TissueMask

Floats = NDArray[np.float64]


def lay_grid(
    mask: TissueMask,
    *,
    slide_width_px: int,
    slide_height_px: int,
    slide_mpp: float,
    tile_px: int = 224,
    tile_mpp: float = 0.5,
    min_tissue_share: float = 0.15,
    max_pen_share: float = 0.5,
) -> TileGrid:
    """Choose the tiles that hold enough tissue, row by row.

    A piece of tissue too small to fill any tile still gets the one tile that holds most of it, so that a
    biopsy fragment never vanishes. A tile that reaches over the slide's edge by more than half is left out.

    Args:
        mask: Tissue and pen on a thumbnail of the whole slide, its top-left corner at the slide's.
        slide_width_px: Width of level 0.
        slide_height_px: Height of level 0.
        slide_mpp: µm/px of level 0.
        tile_px: Edge of a tile as the encoder sees it.
        tile_mpp: µm/px of a tile as the encoder sees it.
        min_tissue_share: Share of a tile's area that must be tissue, in (0, 1]; docs/quality.md says why 0.15.
        max_pen_share: A tile with a larger share of marker ink is left out.

    Returns:
        `column_row` (n, 2), row-major; (0, 2) when nothing is worth reading.

    Source:
        Area sums by summed-area table: Crow, SIGGRAPH 1984.

    Example:
        >>> blank = np.zeros((10, 10), dtype=bool)
        >>> tissue = blank.copy(); tissue[2:6, 2:6] = True
        >>> mask = TissueMask(tissue, mpp=50.0, pen=blank, fold=blank)
        >>> grid = lay_grid(mask, slide_width_px=1000, slide_height_px=1000, slide_mpp=0.5, tile_px=200)
        >>> grid.xy_level0_px.tolist()
        [[200, 200], [400, 200], [200, 400], [400, 400]]
    """
    if min(slide_mpp, tile_mpp, tile_px) <= 0 or not 0 < min_tissue_share <= 1:
        raise ValueError("slide_mpp, tile_mpp and tile_px are positive, min_tissue_share lies in (0, 1]")
    edge_level0_px = tile_px * tile_mpp / slide_mpp
    columns, rows = (_tiles_along(length_px, edge_level0_px) for length_px in (slide_width_px, slide_height_px))
    edge_mask_px = tile_px * tile_mpp / mask.mpp
    tissue_share = _share_in_tiles(mask.pixels, columns, rows, edge_mask_px)
    pen_share = _share_in_tiles(mask.pen, columns, rows, edge_mask_px)
    keep = tissue_share >= min_tissue_share
    keep |= _best_tiles_of_lost_pieces(mask.pixels, keep, tissue_share, edge_mask_px)
    keep &= pen_share <= max_pen_share
    row, column = np.nonzero(keep)
    return TileGrid(np.stack([column, row], axis=1).astype(np.int32), tile_px, tile_mpp, slide_mpp)


def _tiles_along(length_px: int, edge_px: float) -> int:
    """Tiles from 0 that start inside and reach over the end by at most half."""
    return int(np.floor(length_px / edge_px + 0.5))


def _share_in_tiles(pixels: NDArray[np.bool_], columns: int, rows: int, edge_mask_px: float) -> Floats:
    """(rows, columns) share of each tile's area that is True; exact also where a tile cuts a mask pixel."""
    table: Floats = cv2.integral(pixels.astype(np.uint8), sdepth=cv2.CV_64F)
    for axis, tiles in ((0, rows), (1, columns)):
        edges = np.clip(np.arange(tiles + 1) * edge_mask_px, 0, pixels.shape[axis])
        table = np.diff(_interpolate(table, edges, axis), axis=axis)
    return np.clip(table / edge_mask_px**2, 0.0, 1.0)


def _interpolate(table: Floats, at: Floats, axis: int) -> Floats:
    below = np.minimum(at.astype(np.int64), table.shape[axis] - 1)
    above = np.minimum(below + 1, table.shape[axis] - 1)
    weight = np.expand_dims(at - below, 1 - axis)
    return np.asarray(np.take(table, below, axis) * (1 - weight) + np.take(table, above, axis) * weight)


def _best_tiles_of_lost_pieces(
    pixels: NDArray[np.bool_], keep: NDArray[np.bool_], tissue_share: Floats, edge_mask_px: float
) -> NDArray[np.bool_]:
    """For each connected piece of tissue that no kept tile touches: the tile that holds most of it."""
    best = np.zeros_like(keep)
    if not keep.size:
        return best
    pieces, labels = cv2.connectedComponents(pixels.astype(np.uint8), connectivity=8)
    y, x = np.nonzero(labels)
    row, column = ((at / edge_mask_px).astype(np.int64) for at in (y + 0.5, x + 0.5))
    inside = (row < keep.shape[0]) & (column < keep.shape[1])
    row, column, piece = row[inside], column[inside], labels[y, x][inside]
    read = np.zeros(pieces, dtype=bool)
    read[piece[keep[row, column]]] = True
    lost = ~read[piece]
    order = np.argsort(tissue_share[row[lost], column[lost]], kind="stable")
    # a later assignment wins, so each piece ends with its fullest tile
    winner = np.full(pieces, -1, dtype=np.int64)
    winner[piece[lost][order]] = (row[lost] * keep.shape[1] + column[lost])[order]
    best.flat[winner[winner >= 0]] = True
    return best
