"""Take sharp tissue tiles from slides, or whole pictures from a folder, as a sample to measure an encoder on."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from slideway.core.errors import WrongUseError
from slideway.pipeline.survey import settle_resolution, survey_slide
from slideway.slides import open_slide
from slideway.slides.resolution import ScannerProfile
from slideway.tissue import is_blurred, measure_focus

PICTURES = (".png", ".jpg", ".jpeg", ".tif", ".tiff")
# So many more tiles are read than wanted: those out of focus are left out.
_SPARE = 1.25

Progress = Callable[[str], None]


@dataclass(frozen=True)
class TileSample:
    """Tiles and where they come from.

    Attributes:
        tiles: (n, tile_px, tile_px, 3) uint8 RGB as stored.
        sources: (n,) int64, number of the slide that each comes from; all 0 for a folder of pictures.
    """

    tiles: NDArray[np.uint8]
    sources: NDArray[np.int64]


def sample_slides(
    slides: Sequence[Path],
    *,
    tile_px: int,
    mpp: float,
    count: int,
    slide_mpp: float | None = None,
    profiles: Sequence[ScannerProfile] = (),
    progress: Progress | None = None,
) -> TileSample:
    """Take about `count` tiles, evenly from all slides and spread over the tissue of each.

    Args:
        slides: Slide files or folders of DICOM slides.
        tile_px: Edge of a tile.
        mpp: Microns per pixel of a tile.
        count: Tiles in all.
        slide_mpp: Microns per pixel at level 0; overrides what the files state.
        profiles: Scanner profiles.
        progress: Told which slide is read.

    Raises:
        UnreadableSlideError: A slide cannot be read.
        UnknownResolutionError: Nothing states a slide's microns per pixel.
    """
    share = -(-count // max(1, len(slides)))
    taken = []
    for path in slides:
        if progress is not None:
            progress(f"reading tiles of {path.name}")
        taken.append(_sample_slide(path, tile_px, mpp, share, slide_mpp, profiles))
    sources = [np.full(len(tiles), number, np.int64) for number, tiles in enumerate(taken)]
    return TileSample(np.concatenate(taken), np.concatenate(sources))


def _sample_slide(
    path: Path, tile_px: int, mpp: float, count: int, slide_mpp: float | None, profiles: Sequence[ScannerProfile]
) -> NDArray[np.uint8]:
    with open_slide(path) as opened:
        slide = settle_resolution(opened, path, given=slide_mpp, estimate=False, profiles=profiles)
        grid = survey_slide(opened, slide, tile_px=tile_px, tile_mpp=mpp).grid
        wanted = np.zeros(len(grid), bool)
        wanted[np.linspace(0, len(grid) - 1, min(len(grid), int(_SPARE * count))).astype(int)] = True
        chosen = grid.select(wanted)
        if not len(chosen):
            return np.empty((0, tile_px, tile_px, 3), np.uint8)
        tiles = np.concatenate([batch.tiles for batch in opened.read_tiles(chosen)])
    sharp = tiles[~is_blurred(measure_focus(tiles, mpp=mpp, stored_mpp=mpp))]
    picks = np.linspace(0, len(sharp) - 1, min(len(sharp), count)).astype(int)
    return np.ascontiguousarray(sharp[picks])


def sample_pictures(folder: Path, *, tile_px: int, count: int) -> TileSample:
    """Take up to `count` pictures of a folder as tiles, each opened in a sandbox like a slide.

    They are taken to be at the encoder's pixel size; a larger one is cut to its middle.

    Raises:
        WrongUseError: No picture is there, or one is smaller than a tile.
        UnreadableSlideError: A picture cannot be read.
    """
    if not folder.is_dir():
        raise WrongUseError(f"{folder.name}: no such folder of pictures; give slides with --slide")
    pictures = sorted(path for path in folder.rglob("*") if path.suffix.lower() in PICTURES)
    if not pictures:
        raise WrongUseError(f"{folder.name}: no picture in there ({', '.join(PICTURES)})")
    picks = np.linspace(0, len(pictures) - 1, min(len(pictures), count)).astype(int)
    tiles = np.stack([_read_picture(pictures[pick], tile_px) for pick in picks])
    return TileSample(tiles, np.zeros(len(tiles), np.int64))


def _read_picture(path: Path, tile_px: int) -> NDArray[np.uint8]:
    with open_slide(path) as opened:
        wide, high = opened.slide.width_px, opened.slide.height_px
        if min(wide, high) < tile_px:
            raise WrongUseError(
                f"{path.name} is {wide} x {high} px and a tile {tile_px}: give pictures of that size or larger, "
                "at the encoder's pixel size"
            )
        return opened.read_region(0, (wide - tile_px) // 2, (high - tile_px) // 2, tile_px, tile_px)
