"""Small synthetic H&E slides in many file formats, written in milliseconds, for tests and benchmarks.

They look like tissue to the mask and the quality check; nothing may be claimed about diagnosis from them.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import cv2
import imagecodecs
import numpy as np
import tifffile
from numpy.typing import NDArray
from PIL import Image

Pixels = NDArray[np.uint8]

_GLASS, _EOSIN, _NUCLEUS = (244, 243, 245), (226, 166, 196), (96, 58, 130)
# How tifffile is told to store JPEG: as YCbCr with halved chroma, or as RGB (PhotometricInterpretation 2).
JPEG_YCBCR: dict[str, Any] = {"compression": "jpeg", "compressionargs": {"level": 90}, "subsampling": (2, 2)}
JPEG_RGB: dict[str, Any] = {
    "compression": "jpeg",
    "compressionargs": {"level": 90, "outcolorspace": "rgb"},
    "subsampling": (1, 1),
}
PATIENT = "Doe^Synthetic"  # stands in identifying fields, so that a test can look for it where it must not appear


def paint_tissue(
    width_px: int = 1500, height_px: int = 1100, *, mpp: float = 0.5, seed: int = 0, fills_all: bool = False
) -> Pixels:
    """Paint eosin-pink tissue with nuclei of 7 µm, (height, width, 3) RGB: an island on glass, or edge to edge."""
    random = np.random.default_rng(seed)
    is_tissue = np.full((height_px, width_px), fills_all)
    if not fills_all:
        mask = np.zeros((height_px, width_px), np.uint8)
        axes = (max(1, round(width_px * 0.38)), max(1, round(height_px * 0.36)))
        cv2.ellipse(mask, (width_px // 2, height_px // 2), axes, 12, 0, 360, 1, -1)
        is_tissue = mask.astype(bool)
    coarse = random.normal(0, 1, (height_px // 24 + 2, width_px // 24 + 2)).astype(np.float32)
    waves = cv2.resize(coarse, (width_px, height_px), interpolation=cv2.INTER_CUBIC)
    shade = np.where(is_tissue, waves * 12, waves * 0.5) + random.normal(0, 3, (height_px, width_px))
    colour = np.where(is_tissue[..., None], np.array(_EOSIN, np.float32), np.array(_GLASS, np.float32))
    picture = np.clip(colour + shade[..., None], 0, 255).astype(np.uint8)
    _paint_nuclei(picture, np.argwhere(is_tissue), max(1, round(3.5 / mpp)), random)
    return np.ascontiguousarray(cv2.GaussianBlur(picture, (3, 3), 0.6), np.uint8)


def _paint_nuclei(picture: Pixels, tissue_yx: NDArray[np.intp], radius_px: int, random: np.random.Generator) -> None:
    n_nuclei = round(len(tissue_yx) / (20 * radius_px**2))
    for y, x in tissue_yx[random.integers(0, max(1, len(tissue_yx)), n_nuclei)]:
        size = (radius_px, max(1, round(radius_px * random.uniform(0.6, 1))))
        cv2.ellipse(picture, (int(x), int(y)), size, float(random.uniform(0, 180)), 0, 360, _NUCLEUS, -1)


def make_levels(pixels: Pixels, *, factor: int = 4, count: int = 3) -> list[Pixels]:
    """Shrink a picture `count` - 1 times by `factor`, area-averaged, finest first."""
    levels = [pixels]
    for _ in range(count - 1):
        height, width = levels[-1].shape[:2]
        size = (max(1, width // factor), max(1, height // factor))
        levels.append(np.asarray(cv2.resize(levels[-1], size, interpolation=cv2.INTER_AREA), np.uint8))
    return levels


def write_pyramid(
    path: Path,
    levels: Sequence[Pixels] | None = None,
    *,
    width_px: int = 1500,
    height_px: int = 1100,
    mpp: float | None = 0.5,
    is_bigtiff: bool = False,
    **options: Any,
) -> Path:
    """Write a generic tiled pyramid; `options` go to `tifffile` (compression, predictor, tile …).

    JPEG YCbCr 4:2:0 unless told otherwise: what most converters write. Without `levels`, painted tissue of the size
    given. `mpp` None leaves the resolution tags out.
    """
    levels = levels or make_levels(paint_tissue(width_px, height_px, mpp=mpp or 0.5))
    options = {"tile": (256, 256), "photometric": "rgb", **(options or JPEG_YCBCR)}
    with tifffile.TiffWriter(path, bigtiff=is_bigtiff) as writer:
        for index, level in enumerate(levels):
            writer.write(level, subfiletype=int(index > 0), metadata=None, **options, **_tags(mpp, 4**index))
    return path


def write_svs(path: Path, levels: Sequence[Pixels], *, mpp: float = 0.499, with_label: bool = True) -> Path:
    """Write a slide as Aperio does: JPEG RGB tiles, description, thumbnail, label, macro and a patient in it."""
    height, width = levels[0].shape[:2]
    head = "Aperio Image Library v12.0.15\r\n"
    stated = f"|AppMag = 20|MPP = {mpp}|ScanScope ID = SS1234|Filename = {PATIENT}|User = {PATIENT}|Date = 11/23/26"
    tiled: dict[str, Any] = {"tile": (240, 240), "photometric": "rgb", **JPEG_RGB}
    plain: dict[str, Any] = {"photometric": "rgb", "metadata": None, "rowsperstrip": 16}
    with tifffile.TiffWriter(path) as writer:
        writer.write(
            levels[0], description=f"{head}{width}x{height} (240x240) JPEG/RGB Q=70{stated}", metadata=None, **tiled
        )
        thumbnail = levels[-1]
        size = f"{width}x{height} -> {thumbnail.shape[1]}x{thumbnail.shape[0]} - "
        writer.write(thumbnail, compression="jpeg", description=f"{head}{size}{stated}", **plain)
        for level in levels[1:]:
            words = f"{head}{width}x{height} (240x240) -> {level.shape[1]}x{level.shape[0]} JPEG/RGB Q=70{stated}"
            writer.write(level, description=words, metadata=None, **tiled)
        if with_label:
            label = _write_on_label(PATIENT)
            writer.write(label, compression="lzw", subfiletype=1, description=f"{head}label 200x200", **plain)
        writer.write(levels[-1], compression="jpeg", subfiletype=9, description=f"{head}macro 300x200", **plain)
    return path


def write_ome_tiff(path: Path, levels: Sequence[Pixels], *, mpp: float = 0.5) -> Path:
    """Write an OME-TIFF whose coarser levels are sub-IFDs of the first."""
    options: dict[str, Any] = {"tile": (256, 256), "photometric": "rgb", **JPEG_YCBCR}
    sizes = {"PhysicalSizeX": mpp, "PhysicalSizeXUnit": "µm", "PhysicalSizeY": mpp, "PhysicalSizeYUnit": "µm"}
    with tifffile.TiffWriter(path, ome=True) as writer:
        writer.write(levels[0], subifds=len(levels) - 1, metadata={"axes": "YXS", **sizes}, **options)
        for level in levels[1:]:
            writer.write(level, subfiletype=1, **options)
    return path


def write_jpeg2000(path: Path, levels: Sequence[Pixels], *, as_ycbcr: bool, mpp: float = 0.5) -> Path:
    """Write Aperio's JPEG 2000: compression 33003 stores YCbCr without saying so in the stream, 33005 stores RGB."""
    words = f"Aperio Image Library v12.0.15\r\nJ2K/{'YUV16' if as_ycbcr else 'KDU'}|AppMag = 20|MPP = {mpp}"
    with tifffile.TiffWriter(path) as writer:
        for index, level in enumerate(levels):
            writer.write(
                (_encode_jpeg2000(tile, as_ycbcr=as_ycbcr) for tile in cut_tiles(level, 256)),
                shape=level.shape,
                dtype=np.uint8,
                tile=(256, 256),
                photometric="rgb",
                compression=33003 if as_ycbcr else 33005,
                description=words,
                metadata=None,
            )
            if index == 0:  # the second page of an SVS is its thumbnail
                writer.write(levels[-1], photometric="rgb", rowsperstrip=16, description=words, metadata=None)
    return path


def write_sparse(path: Path, level: Pixels, *, mpp: float = 0.5) -> Path:
    """Write one level whose tiles of bare glass are left out, as scanners do (byte count 0)."""
    tiles = (_encode_jpeg(tile) if tile[..., 1].min() < 200 else b"" for tile in cut_tiles(level, 128))
    with tifffile.TiffWriter(path) as writer:
        writer.write(
            tiles,
            shape=level.shape,
            dtype=np.uint8,
            tile=(128, 128),
            photometric="ycbcr",
            subsampling=(2, 2),
            compression="jpeg",
            metadata=None,
            **_tags(mpp, 1),
        )
    return path


def write_picture(path: Path, pixels: Pixels, **options: Any) -> Path:
    """Write a plain picture; the suffix chooses PNG, JPEG, BMP or flat TIFF."""
    Image.fromarray(pixels).save(path, **options)
    return path


def _tags(mpp: float | None, downsample: int) -> dict[str, Any]:
    if mpp is None:
        return {}
    per_cm = 10_000 / (mpp * downsample)
    return {"resolution": (per_cm, per_cm), "resolutionunit": "CENTIMETER"}


def cut_tiles(level: Pixels, tile_px: int) -> Iterator[Pixels]:
    """Cut a level into full tiles, row by row, padded with white at the right and lower edge."""
    height, width = level.shape[:2]
    for y in range(0, height, tile_px):
        for x in range(0, width, tile_px):
            tile = np.full((tile_px, tile_px, 3), 255, np.uint8)
            part = level[y : y + tile_px, x : x + tile_px]
            tile[: part.shape[0], : part.shape[1]] = part
            yield tile


def _encode_jpeg2000(tile: Pixels, *, as_ycbcr: bool) -> bytes:
    stored = np.asarray(Image.fromarray(tile).convert("YCbCr")) if as_ycbcr else tile
    return bytes(imagecodecs.jpeg2k_encode(stored, level=0, codecformat="j2k", mct=not as_ycbcr))


def _write_on_label(words: str) -> Pixels:
    label = np.full((200, 200, 3), 255, np.uint8)
    cv2.putText(label, words, (4, 100), cv2.FONT_HERSHEY_SIMPLEX, 0.7, (0, 0, 0), 2)
    return label


# --- a slide of scanner size -----------------------------------------------------------------------------------

_CELL_TILES = 16  # tissue comes in cells of 16 × 16 finest tiles: one tile of the level shrunk 16 times


def write_huge_pyramid(path: Path, side_px: int = 100_000, *, tile_px: int = 256, mpp: float = 0.25) -> Path:
    """Write a square pyramid (1, 4, 16, 64 times shrunk) of scanner size in a few megabytes.

    A few JPEG streams are stored once and listed as many tiles; tiles of glass are left out. All levels agree.
    """
    mosaic = paint_tissue(4 * tile_px, 4 * tile_px, mpp=mpp, seed=1, fills_all=True)
    n_cells = -(-side_px // (_CELL_TILES * tile_px))
    y, x = np.mgrid[:n_cells, :n_cells] / n_cells - 0.5
    is_tissue = (x / 0.42) ** 2 + (y / 0.3) ** 2 < 1
    with path.open("wb") as file:
        file.write(b"\0" * 16)  # the header comes last, when the first directory's place is known
        directories = []
        for power, downsample in enumerate((1, 4, 16, 64)):
            level_px = -(-side_px // downsample)
            streams, listed = _lay_tiles(mosaic, is_tissue, power, level_px, tile_px)
            places = []
            for stream in streams:
                places.append((file.tell(), len(stream)))
                file.write(stream)
            tiles = np.array([(0, 0), *places], np.uint64)[np.asarray(listed) + 1]
            directories.append((level_px, tiles, mpp * downsample))
        _write_directories(file, directories, tile_px)
    return path


def _lay_tiles(
    mosaic: Pixels, is_tissue: NDArray[np.bool_], power: int, level_px: int, tile_px: int
) -> tuple[list[bytes], list[int]]:
    """Return the JPEG streams of one level and, row by row, which of them each tile is; -1 is glass."""
    across = -(-level_px // tile_px)
    if power == 3:  # coarse enough to be drawn whole
        return _draw_coarsest(mosaic, is_tissue, across, tile_px)
    shrunk = cv2.resize(mosaic, (4 * tile_px >> 2 * power,) * 2, interpolation=cv2.INTER_AREA)
    tiled = np.tile(shrunk, (max(1, tile_px // shrunk.shape[0]),) * 2 + (1,))
    distinct = list(cut_tiles(np.asarray(tiled, np.uint8), tile_px))
    repeat = 4 if power == 0 else 1
    per_cell = _CELL_TILES >> 2 * power
    row, column = np.mgrid[:across, :across]
    kind = row % repeat * repeat + column % repeat
    listed = np.where(is_tissue[row // per_cell, column // per_cell], kind, -1)
    return [_encode_jpeg(tile) for tile in distinct], listed.ravel().tolist()


def _draw_coarsest(
    mosaic: Pixels, is_tissue: NDArray[np.bool_], across: int, tile_px: int
) -> tuple[list[bytes], list[int]]:
    cell_px = tile_px // 4
    texture = cv2.resize(mosaic, (tile_px // 16,) * 2, interpolation=cv2.INTER_AREA)
    texture = np.tile(texture, (4, 4, 1))
    picture = np.full((across * tile_px, across * tile_px, 3), 255, np.uint8)
    for row, column in np.argwhere(is_tissue):
        picture[row * cell_px : (row + 1) * cell_px, column * cell_px : (column + 1) * cell_px] = texture
    return [_encode_jpeg(tile) for tile in cut_tiles(picture, tile_px)], list(range(across**2))


def _encode_jpeg(tile: Pixels) -> bytes:
    return bytes(imagecodecs.jpeg8_encode(tile, level=90, colorspace="RGB", outcolorspace="YCBCR", subsampling="420"))


def _write_directories(file: Any, directories: list[tuple[int, NDArray[np.uint64], float]], tile_px: int) -> None:
    """Write BigTIFF directories by hand: tifffile stores every tile anew, here many entries share one.

    Source: TIFF 6.0 sections 2 and 15; BigTIFF: https://www.awaresystems.be/imaging/tiff/bigtiff.html.
    """
    next_pointer = 8
    for index, (level_px, tiles, mpp) in enumerate(directories):
        offsets_at = file.tell()
        file.write(tiles[:, 0].astype("<u8").tobytes())
        counts_at = file.tell()
        file.write(tiles[:, 1].astype("<u8").tobytes())
        resolution = struct.unpack("<Q", struct.pack("<II", round(1e7 / mpp), 1000))[0]
        entries = [
            (254, 4, 1, int(index > 0)),
            (256, 4, 1, level_px),
            (257, 4, 1, level_px),
            (258, 3, 3, 8 | 8 << 16 | 8 << 32),
            (259, 3, 1, 7),
            (262, 3, 1, 6),
            (277, 3, 1, 3),
            (282, 5, 1, resolution),
            (283, 5, 1, resolution),
            (284, 3, 1, 1),
            (296, 3, 1, 3),
            (322, 4, 1, tile_px),
            (323, 4, 1, tile_px),
            (324, 16, len(tiles), offsets_at),
            (325, 16, len(tiles), counts_at),
            (530, 3, 2, 2 | 2 << 16),
        ]
        directory_at = file.tell()
        file.write(struct.pack("<Q", len(entries)) + b"".join(struct.pack("<HHQQ", *entry) for entry in entries))
        end = file.tell()
        file.write(b"\0" * 8)
        file.seek(next_pointer)
        file.write(struct.pack("<Q", directory_at))
        next_pointer = end
        file.seek(0, 2)
    file.seek(0)
    file.write(struct.pack("<2sHHH", b"II", 43, 8, 0))
