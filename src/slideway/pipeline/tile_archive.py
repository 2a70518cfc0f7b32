"""Turn a slide that is there only as tile images, a tar or folder of `x-y.jpg`, into a bag."""

from __future__ import annotations

import hashlib
import io
import lzma
import re
import tarfile
import zlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import cv2
import numpy as np
import PIL.Image
from numpy.typing import NDArray

from slideway.bundles import BagWriter, read_bag
from slideway.core.errors import BrokenSlideError, UnreadableBagError
from slideway.core.tissue import TileGrid
from slideway.encoders import Encoder
from slideway.pipeline.output import OutputFolder, folder_name
from slideway.registry.card import ModelCard
from slideway.slides.reader import PARSER_ERRORS
from slideway.tissue import measure_focus

BAG = "bag.safetensors"
_NAME = re.compile(r"([0-9]{1,9})-([0-9]{1,9})\.(jpe?g|png)", re.IGNORECASE)
_LARGEST_TILE_PX = 4096
_LARGEST_TILE_BYTES = 64 << 20
_LARGEST_SLIDE_BYTES = 4 << 30  # of all its images, which are held in memory; beyond, an archive is hostile
_TOGETHER = 16
# What tarfile, and what it decompresses with, run into when an archive is cut off, damaged or made to do harm.
_DAMAGED = (tarfile.TarError, OSError, EOFError, ValueError, OverflowError, zlib.error, lzma.LZMAError)


Image = tuple[int, int, bytes]  # corner x and y, encoded pixels


def encode_tile_archive(path: Path, *, mpp: float, encoder: Encoder, out: Path, threads: int = 1) -> Path:
    """Encode the tiles of one slide into `out/NAME/bag.safetensors`; what is already there and right is kept.

    Of each image the middle square is taken that covers what the encoder sees; an image that covers less is taken
    whole and enlarged. The corners in the names order the tiles; where they stand on the slide is kept only in steps
    of whole tiles.

    Args:
        path: A `.tar` or folder of images named `x-y.jpg`, x and y the corner in level-0 pixels.
        mpp: Microns per pixel of the images.
        encoder: A loaded encoder.
        out: Parent of the bag's folder.
        threads: Cores to use.

    Returns:
        Path of the bag.

    Raises:
        BrokenSlideError: An image cannot be decoded, two lie at one place, or there is none.
        OutputError: The folder cannot be written; nothing half-written stays.
    """
    images = _gather_images(path)
    sha256 = _hash_images(images, mpp)
    name = folder_name(path)
    final = out / name / BAG
    if _is_kept(final, encoder, sha256):
        return final
    card = encoder.card
    grid = _lay_places([(x, y) for x, y, _ in images], card.input.tile_px, card.input.mpp)

    def encode(start: int) -> tuple[int, NDArray[np.float32], NDArray[np.float32]]:
        some = images[start : start + _TOGETHER]
        tiles = np.stack([fit_tile(_decode(content, path), mpp, card) for _, _, content in some])
        return start, encoder.encode(tiles), measure_focus(tiles, mpp=card.input.mpp, stored_mpp=mpp)

    with OutputFolder(out, name) as output:
        # The writer closes its file before the folder is renamed: Windows asks for it.
        with BagWriter(output.path / BAG, grid, encoder.width) as writer, ThreadPoolExecutor(threads) as pool:
            for start, vectors, focus in pool.map(encode, range(0, len(images), _TOGETHER)):
                writer.write(np.arange(start, start + len(vectors)), vectors, focus)
            writer.finish(encoder_id=card.id, fingerprint=card.fingerprint, slide_sha256=sha256)
        return output.commit() / BAG


def _is_kept(path: Path, encoder: Encoder, sha256: str) -> bool:
    try:
        bag = read_bag(path)
    except UnreadableBagError:
        return False
    return bag.slide_sha256 == sha256 and bag.fingerprint == encoder.card.fingerprint


def _gather_images(path: Path) -> list[Image]:
    """All images of a slide, row by row."""
    images: dict[tuple[int, int], Image] = {}
    total_bytes = 0
    for x, y, content in _read_images(path):
        total_bytes += len(content)
        if (y, x) in images:
            raise BrokenSlideError(f"{path.name}: two images at the place {x}-{y}; one archive holds one slide, once")
        if total_bytes > _LARGEST_SLIDE_BYTES:
            raise BrokenSlideError(f"{path.name}: more than {_LARGEST_SLIDE_BYTES >> 30} GB of tile images; split it")
        images[y, x] = (x, y, content)
    if not images:
        raise BrokenSlideError(f"{path.name}: no tile image named x-y.jpg in it")
    return [images[place] for place in sorted(images)]


def _read_images(path: Path) -> Iterator[Image]:
    """Corner and bytes of each image, none larger than a tile can be; nothing is ever extracted to the disk."""
    try:
        if path.is_dir():
            yield from _read_folder(path)
        else:
            with tarfile.open(path) as archive:
                yield from _read_tar(archive)
    except _DAMAGED as error:
        words = getattr(error, "strerror", None) or error  # the text of an OSError holds the whole path
        kind = "folder" if path.is_dir() else "tar"
        raise BrokenSlideError(f"{path.name}: cannot be read as a {kind} of tiles ({words}); pack it again") from error


def _read_folder(folder: Path) -> Iterator[Image]:
    for file in folder.iterdir():
        name = _NAME.fullmatch(file.name)
        if name and file.is_file() and file.stat().st_size <= _LARGEST_TILE_BYTES:
            yield int(name[1]), int(name[2]), file.read_bytes()


def _read_tar(archive: tarfile.TarFile) -> Iterator[Image]:
    for member in archive:
        if member.size < 0:  # it would lead back to its own header, for ever
            raise tarfile.ReadError(f"a member of {member.size} bytes")
        name = _NAME.fullmatch(member.name.rpartition("/")[2])
        if name is None or not member.isreg() or member.issparse() or member.size > _LARGEST_TILE_BYTES:
            continue
        stored = archive.extractfile(member)
        assert stored is not None
        yield int(name[1]), int(name[2]), stored.read()


def _hash_images(images: list[Image], mpp: float) -> str:
    digest = hashlib.sha256(f"tiles at {mpp!r}".encode())
    for x, y, content in images:
        digest.update(f"{x}-{y}:{len(content)}:".encode())
        digest.update(content)
    return digest.hexdigest()


def _lay_places(corners: list[tuple[int, int]], tile_px: int, tile_mpp: float) -> TileGrid:
    """Columns and rows in the order of the corners; two tiles never share a place."""
    columns = {x: i for i, x in enumerate(sorted({x for x, _ in corners}))}
    rows = {y: i for i, y in enumerate(sorted({y for _, y in corners}))}
    places = np.array([(columns[x], rows[y]) for x, y in corners], np.int32).reshape(-1, 2)
    return TileGrid(places, tile_px, tile_mpp, tile_mpp)


def _decode(content: bytes, path: Path) -> NDArray[np.uint8]:
    # Pillow, since OpenCV fills up an image that was cut off, and decodes a huge one before its size can be asked.
    try:
        with PIL.Image.open(io.BytesIO(content), formats=("JPEG", "PNG")) as picture:
            if max(picture.size) > _LARGEST_TILE_PX:
                raise ValueError(f"{picture.size[0]} × {picture.size[1]} px, more than {_LARGEST_TILE_PX}")
            return np.asarray(picture.convert("RGB"), np.uint8)
    except (*PARSER_ERRORS, PIL.Image.DecompressionBombError, PIL.Image.DecompressionBombWarning) as error:
        raise BrokenSlideError(
            f"{path.name}: holds an image that is damaged or too large ({error}); export its tiles again"
        ) from error


def fit_tile(pixels: NDArray[np.uint8], mpp: float, card: ModelCard) -> NDArray[np.uint8]:
    """The middle square of an image that covers what the encoder sees, as far as it reaches, brought to its size."""
    tile_px = card.input.tile_px
    edge = max(1, min(round(tile_px * card.input.mpp / mpp), *pixels.shape[:2]))
    y, x = (pixels.shape[0] - edge) // 2, (pixels.shape[1] - edge) // 2
    method = cv2.INTER_AREA if edge >= tile_px else cv2.INTER_LINEAR
    square = np.ascontiguousarray(pixels[y : y + edge, x : x + edge])
    return np.asarray(cv2.resize(square, (tile_px, tile_px), interpolation=method), np.uint8)
