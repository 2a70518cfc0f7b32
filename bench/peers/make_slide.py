"""Make the benchmark's slides from a real one: the same file with a stated pixel size, and one with planted artefacts.

    python make_slide.py SLIDE OUT.svs --mpp 0.5                 # copy, pixel size stated, pixels untouched
    python make_slide.py SLIDE OUT.svs --mpp 0.5 --artefacts     # marker ink and a defocused block, re-encoded

A name that ends in `.svs` gets Aperio's description line: TIAToolbox opens that with OpenSlide, as the other peers do,
but reads a plain pyramidal `.tif` whole into memory. The second form also writes OUT.json (what was planted where) and
OUT.mask.png (one value per 32 x 32 level-0 pixels).
Needs numpy, opencv, tifffile and imagecodecs.
"""

from __future__ import annotations

import argparse
import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import cv2
import numpy as np
import tifffile

if TYPE_CHECKING:
    from numpy.typing import NDArray

STORED_TILE_PX = 256
JPEG_QUALITY = 85
MASK_CELL_PX = 32
LEVEL_STEP = 4
STROKE_WIDTH_MM = 0.5
STROKE_LENGTH_MM = 3.0
DEFOCUS_SIDE_MM = 1.25
DEFOCUS_RADIUS_UM = 2.5  # radius of the blur disk; a sharp nucleus is 6-8 um wide
# Fraction of red, green and blue light that one stroke of a felt pen lets through (semi-transparent).
INKS = {"blue": (0.22, 0.38, 0.80), "green": (0.20, 0.62, 0.38), "black": (0.17, 0.17, 0.20)}
# Where along the tissue's long axis each ink crosses it; the defocused block goes where most tissue is left.
INK_AT_QUANTILE = {"blue": 0.30, "green": 0.55, "black": 0.80}
# Values of the mask picture, by what was planted.
MASK_VALUES = {
    "ink_over_glass": {"blue": 1, "green": 2, "black": 3},
    "ink_over_tissue": {"blue": 4, "green": 5, "black": 6},
    "defocus_over_tissue": {"disk": 7},
}


@dataclass(frozen=True)
class Stroke:
    """One straight stroke of a felt pen, ends in level-0 pixels."""

    colour: str
    start: tuple[int, int]
    end: tuple[int, int]
    width_px: int


def describe(path: Path, mpp: float) -> str:
    """Return the description line that suits a file's suffix."""
    if path.suffix == ".svs":
        return f"Aperio Image Library (bench copy, not from a scanner)\r\n|AppMag = {10 / mpp:g}|MPP = {mpp:g}"
    return "bench copy; not for diagnosis"


def set_mpp(path: Path, mpp: float) -> None:
    """Write the pixel size into description and resolution tags of every level; level 0 gets `mpp`."""
    with tifffile.TiffFile(path, mode="r+") as tiff:
        width = tiff.pages[0].shape[1]
        tiff.pages[0].tags["ImageDescription"].overwrite(describe(path, mpp))
        for page in tiff.pages:
            pixels_per_cm = 10_000 / mpp * page.shape[1] / width
            value = (round(pixels_per_cm * 1000), 1000)
            page.tags["XResolution"].overwrite(value)
            page.tags["YResolution"].overwrite(value)
            page.tags["ResolutionUnit"].overwrite(3)  # centimetre


def find_tissue_cells(pixels: NDArray[np.uint8]) -> NDArray[np.bool_]:
    """Mark cells of 32 x 32 pixels that are stained: a plain Otsu on saturation, with holes closed.

    This only says where to plant and what the planted mark covers; no reader under test uses it.
    """
    height, width = pixels.shape[0] // MASK_CELL_PX, pixels.shape[1] // MASK_CELL_PX
    covered = pixels[: height * MASK_CELL_PX, : width * MASK_CELL_PX]
    small = cv2.resize(covered, (width, height), interpolation=cv2.INTER_AREA)
    saturation = cv2.medianBlur(cv2.cvtColor(small, cv2.COLOR_RGB2HSV)[:, :, 1], 5)
    _, mask = cv2.threshold(saturation, 0, 1, cv2.THRESH_BINARY + cv2.THRESH_OTSU)
    mask = cv2.morphologyEx(mask, cv2.MORPH_CLOSE, np.ones((7, 7), np.uint8))
    _, labels, statistics, _ = cv2.connectedComponentsWithStats(mask)
    large = statistics[:, cv2.CC_STAT_AREA] > 400  # specks of dust make no place to plant
    large[0] = False
    return large[labels]


def lay_strokes(tissue: NDArray[np.bool_], mpp: float) -> list[Stroke]:
    """Lay one stroke of each ink across the tissue's long axis, half of it over tissue and half over glass."""
    rows, columns = np.nonzero(tissue)
    points = np.stack([columns, rows], axis=1).astype(np.float64)
    centred = points - points.mean(axis=0)
    _, axes = np.linalg.eigh(np.cov(centred.T))
    across, along = axes[:, 0], axes[:, 1]
    length_cells = STROKE_LENGTH_MM * 1000 / mpp / MASK_CELL_PX
    strokes = []
    for colour, quantile in INK_AT_QUANTILE.items():
        place = np.quantile(centred @ along, quantile)
        near = centred[np.abs(centred @ along - place) < 8]
        middle = points.mean(axis=0) + place * along + np.median(near @ across) * across
        start, end = middle - across * length_cells * 0.2, middle + across * length_cells * 0.8
        strokes.append(
            Stroke(
                colour,
                tuple(int(value * MASK_CELL_PX) for value in start),
                tuple(int(value * MASK_CELL_PX) for value in end),
                round(STROKE_WIDTH_MM * 1000 / mpp),
            )
        )
    return strokes


def stroke_cells(stroke: Stroke, shape: tuple[int, int]) -> NDArray[np.bool_]:
    """Draw one stroke on the mask's cells."""
    canvas = np.zeros(shape, np.uint8)
    ends = [tuple(value // MASK_CELL_PX for value in point) for point in (stroke.start, stroke.end)]
    cv2.line(canvas, ends[0], ends[1], 1, thickness=max(1, stroke.width_px // MASK_CELL_PX))
    return canvas.astype(bool)


def place_defocus(free_tissue: NDArray[np.bool_], mpp: float) -> tuple[int, int, int]:
    """Return x, y and side in level-0 pixels of the square that holds the most tissue free of ink."""
    side = round(DEFOCUS_SIDE_MM * 1000 / mpp / MASK_CELL_PX)
    total = np.pad(np.cumsum(np.cumsum(free_tissue, axis=0), axis=1), ((1, 0), (1, 0)))
    inside = total[side:, side:] - total[:-side, side:] - total[side:, :-side] + total[:-side, :-side]
    row, column = np.unravel_index(int(inside.argmax()), inside.shape)
    return int(column) * MASK_CELL_PX, int(row) * MASK_CELL_PX, side * MASK_CELL_PX


def draw_ink(pixels: NDArray[np.uint8], stroke: Stroke, generator: np.random.Generator) -> None:
    """Darken the pixels under one stroke, by Beer-Lambert, with an uneven film and a soft edge."""
    half = stroke.width_px // 2 + 16
    (x0, y0), (x1, y1) = stroke.start, stroke.end
    left, top = max(0, min(x0, x1) - half), max(0, min(y0, y1) - half)
    right, bottom = min(pixels.shape[1], max(x0, x1) + half), min(pixels.shape[0], max(y0, y1) + half)
    film = np.zeros((bottom - top, right - left), np.float32)
    cv2.line(film, (x0 - left, y0 - top), (x1 - left, y1 - top), 1.0, thickness=stroke.width_px)
    film = cv2.GaussianBlur(film, (0, 0), 6)
    grain = generator.normal(1.0, 0.12, (film.shape[0] // 64 + 2, film.shape[1] // 64 + 2)).astype(np.float32)
    film *= cv2.resize(grain, film.shape[::-1], interpolation=cv2.INTER_CUBIC).clip(0.6, 1.4)
    region = pixels[top:bottom, left:right]
    for channel, transmitted in enumerate(INKS[stroke.colour]):
        region[:, :, channel] = (region[:, :, channel] * np.exp(film * np.log(transmitted))).round()


def defocus(pixels: NDArray[np.uint8], box: tuple[int, int, int], mpp: float) -> None:
    """Blur one square with a uniform disk, the point spread of a lens out of focus."""
    x, y, side = box
    radius_px = DEFOCUS_RADIUS_UM / mpp
    reach = int(np.ceil(radius_px))
    grid = np.arange(-reach, reach + 1)
    disk = (grid[:, None] ** 2 + grid[None, :] ** 2 <= radius_px**2).astype(np.float32)
    pad = reach  # blur with the true surroundings, then keep the square
    top, left = max(0, y - pad), max(0, x - pad)
    region = pixels[top : y + side + pad, left : x + side + pad]
    blurred = cv2.filter2D(region, -1, disk / disk.sum())
    pixels[y : y + side, x : x + side] = blurred[y - top : y - top + side, x - left : x - left + side]


def write_pyramid(path: Path, pixels: NDArray[np.uint8], mpp: float, n_levels: int) -> None:
    """Write a tiled JPEG pyramid with the pixel size in the resolution tags."""
    with tifffile.TiffWriter(path, bigtiff=False) as writer:
        for level in range(n_levels):
            if level:
                height, width = (-(-length // LEVEL_STEP) for length in pixels.shape[:2])
                pixels = cv2.resize(pixels, (width, height), interpolation=cv2.INTER_AREA)
            pixels_per_cm = 10_000 / (mpp * LEVEL_STEP**level)
            writer.write(
                pixels,
                photometric="rgb",
                tile=(STORED_TILE_PX, STORED_TILE_PX),
                compression="jpeg",
                compressionargs={"level": JPEG_QUALITY},
                subfiletype=1 if level else 0,
                resolution=(pixels_per_cm, pixels_per_cm),
                resolutionunit="CENTIMETER",
                metadata=None,
                description=describe(path, mpp) if level == 0 else None,
            )


def plant(source: Path, out: Path, mpp: float, seed: int) -> dict[str, Any]:
    """Write the artefact slide, its mask and its description; return the description."""
    with tifffile.TiffFile(source) as tiff:
        n_levels = len(tiff.pages)
        pixels = tiff.pages[0].asarray()
    generator = np.random.default_rng(seed)
    tissue = find_tissue_cells(pixels)
    strokes = lay_strokes(tissue, mpp)
    mask = np.zeros(tissue.shape, np.uint8)
    for stroke in strokes:
        inked = stroke_cells(stroke, tissue.shape)
        mask[inked & ~tissue] = MASK_VALUES["ink_over_glass"][stroke.colour]
        mask[inked & tissue] = MASK_VALUES["ink_over_tissue"][stroke.colour]
    box = place_defocus(tissue & (mask == 0), mpp)
    defocus(pixels, box, mpp)
    for stroke in strokes:
        draw_ink(pixels, stroke, generator)
    cells = tuple(slice(start // MASK_CELL_PX, (start + box[2]) // MASK_CELL_PX) for start in (box[1], box[0]))
    square = mask[cells]
    square[tissue[cells] & (square == 0)] = MASK_VALUES["defocus_over_tissue"]["disk"]
    write_pyramid(out, pixels, mpp, n_levels)
    mask_path = out.with_suffix(".mask.png")
    cv2.imwrite(str(mask_path), mask)
    return {
        "source": source.name,
        "mpp": mpp,
        "seed": seed,
        "mask": mask_path.name,
        "mask_cell_level0_px": MASK_CELL_PX,
        "mask_values": MASK_VALUES,
        "strokes": [
            {
                "colour": stroke.colour,
                "transmitted_rgb": INKS[stroke.colour],
                "start_level0": stroke.start,
                "end_level0": stroke.end,
                "width_level0_px": stroke.width_px,
            }
            for stroke in strokes
        ],
        "defocus": {"box_level0": [box[0], box[1], box[2], box[2]], "disk_radius_um": DEFOCUS_RADIUS_UM},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("slide", type=Path, help="tiled RGB pyramid as TIFF")
    parser.add_argument("out", type=Path)
    parser.add_argument("--mpp", type=float, required=True, help="pixel size to state for level 0")
    parser.add_argument("--artefacts", action="store_true")
    parser.add_argument("--seed", type=int, default=20)
    arguments = parser.parse_args()
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    if arguments.artefacts:
        planted = plant(arguments.slide, arguments.out, arguments.mpp, arguments.seed)
        arguments.out.with_suffix(".json").write_text(json.dumps(planted, indent=1), encoding="utf-8")
    else:
        shutil.copyfile(arguments.slide, arguments.out)
        set_mpp(arguments.out, arguments.mpp)


if __name__ == "__main__":
    main()
