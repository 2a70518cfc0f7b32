"""Tiles of the Histopathology Atlas development set, resampled to the encoder's pixel size."""

from __future__ import annotations

import csv
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

CREDIT = (
    "Patoloji Atlasi / Histopathology Atlas, Serdar Balci and contributors, https://www.patolojiatlasi.com, "
    "MIT / CC BY 4.0; BS cases: collection of Burcu Saka MD; ovarian case: Ilknur Turkmen MD; "
    "hacettepe cases: Hacettepe case of the month"
)
STORED_TILE_PX = 256
# A squash smear among sections: cells spread on glass. It trains and is measured like the others, but what is ordinary
# for a section must not be learnt from it (docs/heads.md).
SMEARS = ("high-grade-glioma-squash__HE",)


@dataclass(frozen=True)
class AtlasSlide:
    """One slide's tiles.

    Attributes:
        name: Slide within the atlas, e.g. `giardia__HE`.
        case: Case it belongs to; everything is split by it.
        organ: Organ the tissue comes from, as the atlas states it, first word group only.
        tiles: (n, tile_px, tile_px, 3) uint8 RGB.
        xy_level0_px: (n, 2) int64, top-left corner of each tile as stored.
    """

    name: str
    case: str
    organ: str
    tiles: NDArray[np.uint8]
    xy_level0_px: NDArray[np.int64]


def read_rows(folder: Path) -> list[dict[str, str]]:
    """Rows of the set's table, one a slide."""
    with (folder / "slides.csv").open(newline="", encoding="utf-8") as table:
        return list(csv.DictReader(table))


def read_atlas(folder: Path, *, tile_px: int = 224, mpp: float = 0.5) -> Iterator[AtlasSlide]:
    """Yield every slide of the development set, its tiles at `mpp` as far as the stored pixels reach.

    The set's pixel sizes are estimates. A stored tile that covers less than `tile_px * mpp` µm is used whole, which
    leaves it up to 12 % finer than asked for; a coarser one is enlarged and is softer than a real tile at `mpp`.
    """
    for row in read_rows(folder):
        edge_px = min(STORED_TILE_PX, round(tile_px * mpp / float(row["tile_mpp_estimated"])))
        tiles, corners = read_tiles(folder / row["tiles_file"], edge_px, tile_px)
        yield AtlasSlide(Path(row["tiles_file"]).stem, row["patient_group"], name_organ(row), tiles, corners)


@dataclass(frozen=True)
class StoredSlide:
    """One slide's tiles as the set stores them: `tiles` (n, 256, 256, 3) uint8 RGB at `mpp` (an estimate)."""

    name: str
    case: str
    mpp: float
    tiles: NDArray[np.uint8]


def read_stored_tiles(folder: Path) -> Iterator[StoredSlide]:
    """Yield every slide's tiles without resampling, for training."""
    for row in read_rows(folder):
        tiles, _ = read_tiles(folder / row["tiles_file"], STORED_TILE_PX, STORED_TILE_PX)
        yield StoredSlide(Path(row["tiles_file"]).stem, row["patient_group"], float(row["tile_mpp_estimated"]), tiles)


def name_organ(row: dict[str, str]) -> str:
    """Organ shown on the slide (the atlas writes `Pancreas (slide: adrenal gland)` for invasion of another)."""
    return "Adrenal gland" if "slide: adrenal" in row["organ"] else row["organ"].split(",")[0]


def read_tiles(path: Path, edge_px: int, tile_px: int) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """Centre of every JPEG in a tar, resized, in the order of their names; and the corners in their names."""
    tiles, corners = [], []
    with tarfile.open(path) as archive:
        for member in sorted(archive.getmembers(), key=lambda m: m.name):
            stored = archive.extractfile(member) if member.name.endswith(".jpg") else None
            if stored is not None:
                tiles.append(fit_tile(decode(stored.read()), edge_px, tile_px))
                corners.append([int(number) for number in Path(member.name).stem.split("-")])
    return np.stack(tiles), np.array(corners, dtype=np.int64)


def decode(jpeg: bytes) -> NDArray[Any]:
    return cv2.cvtColor(cv2.imdecode(np.frombuffer(jpeg, np.uint8), cv2.IMREAD_COLOR), cv2.COLOR_BGR2RGB)


def fit_tile(pixels: NDArray[Any], edge_px: int, tile_px: int) -> NDArray[Any]:
    """Cut a centred square of `edge_px` and resize it: by area when shrinking, linearly when enlarging."""
    start = (pixels.shape[0] - edge_px) // 2
    square = pixels[start : start + edge_px, start : start + edge_px]
    method = cv2.INTER_AREA if edge_px >= tile_px else cv2.INTER_LINEAR
    return cv2.resize(square, (tile_px, tile_px), interpolation=method)
