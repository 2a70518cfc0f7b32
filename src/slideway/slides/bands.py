"""Read a grid's tiles so that every stored tile is decoded once and memory stays bounded.

A grid row needs the stored tiles it touches; the next row needs the lower ones again. Kept over the slide's whole
width they may not fit in memory, so the slide is read in vertical bands, row by row inside each band.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import cv2
import numpy as np
from numpy.typing import NDArray

from slideway.core.errors import BrokenSlideError
from slideway.core.slide import Slide
from slideway.slides.reader import PARSER_ERRORS, SlideReader

BAND_BYTES = 48_000_000  # three quarters of the stored-tile cache: the rest is slack at the band's edges
_TYPICAL_STORED_PX = 512  # no reader tells all stored tile sizes; larger than most, so bands come out safely narrow


@dataclass(frozen=True)
class TileRead:
    """How a grid's tiles are cut out of one level.

    Attributes:
        level: Level that is read.
        region_px: Edge of the square read, in pixels of that level.
        tile_px: Edge of the tile after resizing.
        xy_level_px: (n, 2) int64, top-left corners in pixels of that level.
    """

    level: int
    region_px: int
    tile_px: int
    xy_level_px: NDArray[np.int64]


def plan_read(slide: Slide, xy_level0_px: NDArray[np.int32], tile_level0_px: float, tile_px: int) -> TileRead:
    """Choose the level and the squares for tiles of `tile_level0_px` level-0 pixels shown at `tile_px`."""
    level = slide.level_for_downsample(tile_level0_px / tile_px)
    downsample = slide.levels[level].downsample
    xy = np.rint(xy_level0_px.astype(np.float64) / downsample).astype(np.int64)
    return TileRead(level, max(1, round(tile_level0_px / downsample)), tile_px, xy)


def order_in_bands(read: TileRead, *, band_bytes: int = BAND_BYTES) -> NDArray[np.int64]:
    """Order tiles by band, then row, then column."""
    rows_held = read.region_px + 2 * _TYPICAL_STORED_PX
    band_px = max(4 * read.region_px, band_bytes // (3 * rows_held))
    x, y = read.xy_level_px[:, 0], read.xy_level_px[:, 1]
    return np.lexsort((x, y, x // band_px)).astype(np.int64)


def read_tiles(
    reader: SlideReader, read: TileRead, *, batch: int
) -> Iterator[tuple[NDArray[np.int64], NDArray[np.uint8], list[int]]]:
    """Read tiles in bands; yields (indices, tiles (b, tile_px, tile_px, 3), indices of unreadable tiles)."""
    order = order_in_bands(read)
    for start in range(0, len(order), batch):
        indices = order[start : start + batch]
        tiles = np.empty((len(indices), read.tile_px, read.tile_px, 3), np.uint8)
        good: list[np.int64] = []
        lost: list[int] = []
        for index in indices:
            x, y = (int(v) for v in read.xy_level_px[index])
            try:
                region = reader.read_region(read.level, x, y, read.region_px, read.region_px)
            except (*PARSER_ERRORS, BrokenSlideError):
                lost.append(int(index))
                continue
            fit_tile(region, tiles[len(good)])
            good.append(index)
        yield np.asarray(good, np.int64), tiles[: len(good)], lost


def fit_tile(region: NDArray[np.uint8], out: NDArray[np.uint8]) -> None:
    """Resize a square region into `out`: exact area average when it shrinks, bicubic when it must grow."""
    if region.shape == out.shape:
        out[:] = region
        return
    shrinks = region.shape[0] > out.shape[0]
    cv2.resize(region, out.shape[1::-1], dst=out, interpolation=cv2.INTER_AREA if shrinks else cv2.INTER_CUBIC)


@runtime_checkable
class CoarseReader(Protocol):
    """A reader that can decode a level directly at an eighth of its size: other pixels, for triage only."""

    def stored_tile_height(self, level: int) -> int:
        """Height of a stored tile of `level` in pixels."""
        ...

    def read_coarse_row(self, level: int, row: int) -> NDArray[np.uint8]:
        """Read one row of stored tiles at an eighth of its size, (≈ height/8, ≈ width/8, 3) RGB."""
        ...


def read_thumbnail(reader: SlideReader, slide: Slide, downsample: float) -> NDArray[np.uint8]:
    """Read the whole slide at `downsample` level-0 pixels per pixel, strip by strip in bounded memory.

    Where the pyramid has no level near the wanted one, a `CoarseReader` decodes at an eighth of the size.
    """
    out_w = max(1, round(slide.width_px / downsample))
    out_h = max(1, round(slide.height_px / downsample))
    index = slide.level_for_downsample(downsample)
    level = slide.levels[index]
    thumbnail = np.full((out_h, out_w, 3), 255, np.uint8)
    is_coarse = level.downsample * 8 <= downsample and isinstance(reader, CoarseReader)
    strip_px = max(1, BAND_BYTES // 3 // level.width_px)
    if is_coarse:
        strip_px = reader.stored_tile_height(index)  # type: ignore[attr-defined]
    scale = out_h / level.height_px
    for row, y0 in enumerate(range(0, level.height_px, strip_px)):
        y1 = min(y0 + strip_px, level.height_px)
        top, bottom = round(y0 * scale), round(y1 * scale)
        if bottom == top:
            continue
        if is_coarse:
            strip = reader.read_coarse_row(index, row)  # type: ignore[attr-defined]
        else:
            strip = reader.read_region(index, 0, y0, level.width_px, y1 - y0)
        shrinks = strip.shape[1] >= out_w and strip.shape[0] >= bottom - top
        method = cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR
        thumbnail[top:bottom] = cv2.resize(strip, (out_w, bottom - top), interpolation=method)
    return thumbnail
