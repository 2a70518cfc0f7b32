"""Grid coordinates of tiles as few bytes, and near-identical neighbours merged with a count.

Two ways to write coordinates, the shorter is taken: steps from tile to tile as varints, columns and rows apart, in any
order; or, for tiles in row-major order, one bit for each cell of the rectangle that they lie in. Then zstd.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from slideway.bundles.codec_bytes import PLANE_LEVEL, SectionReader, SectionWriter
from slideway.core.errors import UnreadableBagError

Places = NDArray[np.int32]

MAX_TILES = 2**24
_STEPS, _BITMAP = 0, 1
_VARINT_BYTES = 5  # a step between two int32, folded, has 33 bits
# A rectangle with fewer than one tile in 64 cells is smaller as steps; it also bounds what a reader sets aside.
_CELLS_PER_TILE = 64


def encode_places(column_row: NDArray[Any]) -> bytes:
    """Write (n_tiles, 2) int32 coordinates; their order is kept.

    Raises:
        ValueError: They are not (n, 2) whole numbers within int32.
    """
    places = np.asarray(column_row)
    if places.ndim != 2 or places.shape[1] != 2 or places.dtype.kind not in "iu" or len(places) > MAX_TILES:
        raise ValueError(f"coordinates are (n_tiles, 2) whole numbers, not {places.shape} {places.dtype}")
    wide = places.astype(np.int64)
    if not np.array_equal(wide, wide.astype(np.int32)):
        raise ValueError("coordinates do not fit into int32")
    if not len(wide):
        return b""
    steps = _write_steps(wide)
    bitmap = _write_bitmap(wide)
    return steps if bitmap is None or len(steps) <= len(bitmap) else bitmap


def decode_places(data: bytes, n_tiles: int) -> Places:
    """Read the coordinates of `n_tiles` tiles, in the order in which they were written.

    Raises:
        UnreadableBagError: Cut off, damaged, or of another number of tiles.
    """
    if not 0 <= n_tiles <= MAX_TILES:
        raise UnreadableBagError(f"declares {n_tiles} tiles, beyond what a slide has; ask for the bundle again")
    reader = SectionReader(data)
    if n_tiles == 0:
        reader.finish()
        return np.empty((0, 2), np.int32)
    method, n_bytes = struct.unpack("<BI", reader.take(5))
    if method == _STEPS:
        places = _read_steps(reader, n_tiles, n_bytes)
    elif method == _BITMAP:
        places = _read_bitmap(reader, n_tiles)
    else:
        raise UnreadableBagError(f"coordinates written in way {method}, unknown to this Slideway; update Slideway")
    reader.finish()
    if len(places) and not np.array_equal(places, places.astype(np.int32)):
        raise UnreadableBagError("a coordinate leaves int32; the bundle is damaged: ask for it again")
    return places.astype(np.int32)


def _write_steps(places: NDArray[np.int64]) -> bytes:
    steps = np.diff(places, axis=0, prepend=0).T.ravel()
    folded = ((steps << 1) ^ (steps >> 63)).astype(np.uint64)
    shifted = folded[:, None] >> np.arange(0, 7 * _VARINT_BYTES, 7, dtype=np.uint64)
    is_used = shifted > 0
    is_used[:, 0] = True
    goes_on = np.zeros_like(is_used)
    goes_on[:, :-1] = is_used[:, 1:]
    stream = ((shifted & 127).astype(np.uint8) | (goes_on.astype(np.uint8) << 7))[is_used].tobytes()
    writer = SectionWriter()
    writer.add(struct.pack("<BI", _STEPS, len(stream)))
    writer.add(stream, level=PLANE_LEVEL)
    return writer.join()


def _read_steps(reader: SectionReader, n_tiles: int, n_bytes: int) -> NDArray[np.int64]:
    if not 2 * n_tiles <= n_bytes <= 2 * n_tiles * _VARINT_BYTES:
        raise UnreadableBagError(f"{n_bytes} bytes of steps cannot lead to {n_tiles} tiles; ask for the bundle again")
    stream = reader.take_array(np.uint8, n_bytes)
    ends = np.flatnonzero(stream < 128)
    starts = np.concatenate([[0], ends[:-1] + 1])
    if len(ends) != 2 * n_tiles or stream[-1] >= 128 or (ends - starts).max() >= _VARINT_BYTES:
        raise UnreadableBagError("steps between tiles are damaged; ask for the bundle again")
    position = np.arange(n_bytes) - np.repeat(starts, ends - starts + 1)
    folded = np.add.reduceat((stream & 127).astype(np.int64) << (7 * position), starts)
    steps = (folded >> 1) ^ -(folded & 1)
    return np.cumsum(steps.reshape(2, n_tiles), axis=1).T


def _write_bitmap(places: NDArray[np.int64]) -> bytes | None:
    """None where the order is not row-major, a place occurs twice, or the rectangle is too empty."""
    first = places.min(axis=0)
    width, height = (int(number) for number in places.max(axis=0) - first + 1)
    if width * height > _CELLS_PER_TILE * len(places):
        return None
    cell = (places[:, 1] - first[1]) * width + places[:, 0] - first[0]
    if not (np.diff(cell) > 0).all():
        return None
    is_tile = np.zeros(width * height, bool)
    is_tile[cell] = True
    writer = SectionWriter()
    writer.add(struct.pack("<BI", _BITMAP, 0))
    writer.add(struct.pack("<iiII", int(first[0]), int(first[1]), width, height))
    writer.add(np.packbits(is_tile), level=PLANE_LEVEL)
    return writer.join()


def _read_bitmap(reader: SectionReader, n_tiles: int) -> NDArray[np.int64]:
    column, row, width, height = struct.unpack("<iiII", reader.take(16))
    if not n_tiles <= width * height <= _CELLS_PER_TILE * n_tiles:
        raise UnreadableBagError(f"a map of {width} × {height} cells does not fit {n_tiles} tiles; ask for it again")
    packed = reader.take_array(np.uint8, -(-width * height // 8))
    cells = np.flatnonzero(np.unpackbits(packed, count=width * height))
    if len(cells) != n_tiles:
        raise UnreadableBagError(f"the map shows {len(cells)} tiles instead of {n_tiles}; ask for the bundle again")
    return np.stack([column + cells % width, row + cells // width], axis=1)


@dataclass(frozen=True)
class MergedTiles:
    """Tiles that stand for themselves and for near-identical neighbours.

    Attributes:
        kept: (n_kept,) int64, ascending, tiles that stay.
        count: (n_kept,) int64, tiles each stands for, itself included; they sum to all tiles.
        stands_in: (n_tiles,) int64, position in `kept` of the tile that stands for each.
    """

    kept: NDArray[np.int64]
    count: NDArray[np.int64]
    stands_in: NDArray[np.int64]


def merge_near_identical(vectors: NDArray[Any], column_row: NDArray[Any], *, threshold: float) -> MergedTiles:
    """Merge tiles with the left or upper neighbour they hardly differ from; none is lost, each is counted.

    Tiles are taken in row-major order, whatever order they are given in. Each is compared with the tiles that stand for
    its neighbours to the left and above, not with the neighbours, so that small differences do not add up across the
    tissue; it joins the more similar if that is similar enough. Vectors that are not finite stay alone.

    Args:
        vectors: (n_tiles, width) embeddings.
        column_row: (n_tiles, 2) grid coordinates, no place twice.
        threshold: Least cosine, after the slide's mean is taken off, in (0, 1].

    Raises:
        ValueError: Numbers of vectors and coordinates differ, a place occurs twice, or the threshold is out of range.
    """
    if len(vectors) != len(column_row) or not 0 < threshold <= 1:
        raise ValueError("merging takes one place for each vector and a threshold in (0, 1]")
    places = [(int(column), int(row)) for column, row in column_row]
    if len(set(places)) != len(places):
        raise ValueError("two tiles lie at one place of the grid")
    directions, is_usable = _centre_and_scale(vectors)
    keeper: dict[tuple[int, int], int] = {}
    stands_for = np.arange(len(places))
    for tile in sorted(range(len(places)), key=lambda i: (places[i][1], places[i][0])):
        if not is_usable[tile]:
            continue
        column, row = places[tile]
        best, best_cosine = tile, threshold
        for neighbour in ((column - 1, row), (column, row - 1)):
            other = keeper.get(neighbour)
            if other is not None:
                cosine = float(directions[tile] @ directions[other])
                if cosine > best_cosine or (best == tile and cosine >= threshold):
                    best, best_cosine = other, cosine
        keeper[(column, row)] = best
        stands_for[tile] = best
    kept, stands_in, count = np.unique(stands_for, return_inverse=True, return_counts=True)
    return MergedTiles(kept.astype(np.int64), count.astype(np.int64), stands_in.astype(np.int64))


def _centre_and_scale(vectors: NDArray[Any]) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
    """Unit vectors from the slide's mean, and which tiles have one."""
    numbers = np.asarray(vectors, np.float32)
    is_finite = np.asarray(np.isfinite(numbers).all(axis=1))
    mean = numbers[is_finite].mean(axis=0, dtype=np.float64) if is_finite.any() else np.zeros(numbers.shape[1])
    centred = np.where(is_finite[:, None], numbers - mean.astype(np.float32), np.float32(0))
    length = np.linalg.norm(centred, axis=1)
    is_usable = np.asarray(is_finite & (length > 0))
    directions: NDArray[np.float32] = centred / np.maximum(length, np.float32(1e-12))[:, None]
    return directions, is_usable
