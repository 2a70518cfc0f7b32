"""A bag as one file: safetensors, written row by row in bounded memory, read without loading it.

`docs/bag-format.md` describes it. Tensors: `vectors` (n, width) float16, `column_row` (n, 2) int32, `focus` (n,)
float32, row-major; metadata: format version, encoder, grid and slide identity. Any safetensors library reads it.
Where not every tile was read (1.1): also `weight` (n,) float32 and `reason` (n,) uint8.
"""

from __future__ import annotations

import json
import os
import struct
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from slideway.core.bag import EmbeddingBag, Sampling
from slideway.core.errors import UnreadableBagError
from slideway.core.tissue import TileGrid

FORMAT = "slideway-bag"
VERSION = (1, 1)
_HEADER_BYTES = 2048  # reserved; safetensors allows a header padded with spaces, so it can be written last
_DTYPES = {"F16": np.float16, "I32": np.int32, "F32": np.float32, "U8": np.uint8}
_COPY_ROWS = 4096


class BagWriter:
    """Writes one bag while its tiles are encoded. Rows may come in any order; rows that never come are left out.

    Each candidate tile has its place in the file; `finish` moves the rows that came together, in place, so that neither
    memory nor disk ever holds more than the candidates' vectors once.
    """

    def __init__(self, path: Path, grid: TileGrid, width: int) -> None:
        self._grid = grid
        self._row_bytes = 2 * width
        self._width = width
        self._is_written = np.zeros(len(grid), bool)
        self._focus = np.full(len(grid), np.nan, np.float32)
        self._path = path
        self._file = path.open("w+b")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()
        if kind is not None:
            self._path.unlink(missing_ok=True)

    def write(self, indices: NDArray[np.int64], vectors: NDArray[np.float32], focus: NDArray[np.float32]) -> None:
        """Write the vectors of some tiles of the grid."""
        rows = np.ascontiguousarray(vectors, np.float16)
        for index, row in zip(indices, rows, strict=True):
            self._file.seek(_HEADER_BYTES + int(index) * self._row_bytes)
            self._file.write(row.tobytes())
        self._is_written[indices] = True
        self._focus[indices] = focus

    def finish(self, *, encoder_id: str, fingerprint: str, slide_sha256: str, sampling: Sampling | None = None) -> None:
        """Close the gaps, write positions and header, and make the file durable.

        A bag of all tiles stays of version 1.0, to the byte. `sampling` speaks of the whole grid, row by row.
        """
        kept = np.flatnonzero(self._is_written)
        self._close_gaps(kept)
        self._file.seek(_HEADER_BYTES + len(kept) * self._row_bytes)
        self._file.truncate()
        grid = self._grid.select(kept)
        self._file.write(np.ascontiguousarray(grid.column_row, "<i4").tobytes())
        self._file.write(np.ascontiguousarray(self._focus[kept], "<f4").tobytes())
        if sampling is not None:
            self._file.write(np.ascontiguousarray(sampling.weight[kept], "<f4").tobytes())
            self._file.write(np.ascontiguousarray(sampling.reason[kept], np.uint8).tobytes())
        metadata = {
            "format": FORMAT,
            "version": "1.0" if sampling is None else f"{VERSION[0]}.{VERSION[1]}",
            "encoder_id": encoder_id,
            "fingerprint": fingerprint,
            "slide_sha256": slide_sha256,
            "tile_px": str(grid.tile_px),
            "tile_mpp": repr(grid.tile_mpp),
            "slide_mpp": repr(grid.slide_mpp),
        }
        self._file.seek(0)
        self._file.write(_make_header(len(kept), self._width, metadata, is_sampled=sampling is not None))
        self._file.flush()
        os.fsync(self._file.fileno())

    def _close_gaps(self, kept: NDArray[np.int64]) -> None:
        """Move row `kept[i]` to row i; every move goes towards the start, so nothing unread is overwritten."""
        for start in range(0, len(kept), _COPY_ROWS):
            rows = kept[start : start + _COPY_ROWS]
            if rows[-1] == start + len(rows) - 1:
                continue  # no gap so far
            first, last = int(rows[0]), int(rows[-1])
            self._file.seek(_HEADER_BYTES + first * self._row_bytes)
            block = np.frombuffer(self._file.read((last - first + 1) * self._row_bytes), np.uint8)
            moved = block.reshape(-1, self._row_bytes)[rows - first]
            self._file.seek(_HEADER_BYTES + start * self._row_bytes)
            self._file.write(moved.tobytes())


def _make_header(n: int, width: int, metadata: dict[str, str], *, is_sampled: bool) -> bytes:
    tensors = [("vectors", "F16", [n, width], 2 * n * width), ("column_row", "I32", [n, 2], 8 * n)]
    tensors += [("focus", "F32", [n], 4 * n)]
    if is_sampled:
        tensors += [("weight", "F32", [n], 4 * n), ("reason", "U8", [n], n)]
    header: dict[str, Any] = {"__metadata__": metadata}
    at = 0
    for name, dtype, shape, n_bytes in tensors:
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [at, at + n_bytes]}
        at += n_bytes
    text = json.dumps(header, separators=(",", ":")).encode()
    if len(text) > _HEADER_BYTES - 8:
        raise ValueError(f"bag header of {len(text)} bytes does not fit; the encoder's id is too long")
    return struct.pack("<Q", _HEADER_BYTES - 8) + text.ljust(_HEADER_BYTES - 8)


def read_bag(path: Path) -> EmbeddingBag:
    """Read a bag; its vectors stay in the file and are paged in when used.

    Raises:
        UnreadableBagError: Not a bag, cut off, or of a newer major version.
    """
    try:
        with path.open("rb") as file:
            (header_bytes,) = struct.unpack("<Q", file.read(8))
            if header_bytes > 1_000_000:
                raise ValueError("header too long")
            header = json.loads(file.read(header_bytes))
            metadata = header["__metadata__"]
            if metadata["format"] != FORMAT:
                raise ValueError(f"format {metadata['format']!r}")
    except (OSError, ValueError, KeyError, TypeError, struct.error) as error:
        raise UnreadableBagError(f"{path.name}: not a Slideway bag ({error}); read the slide again") from error
    if int(metadata["version"].split(".")[0]) != VERSION[0]:
        raise UnreadableBagError(
            f"{path.name}: bag version {metadata['version']}, this Slideway knows {VERSION[0]}.x; update it"
        )
    return _bag_from(path, header, 8 + header_bytes)


def _bag_from(path: Path, header: dict[str, Any], data_at: int) -> EmbeddingBag:
    metadata = header["__metadata__"]
    end = data_at + max(entry["data_offsets"][1] for name, entry in header.items() if name != "__metadata__")
    if path.stat().st_size != end:
        raise UnreadableBagError(
            f"{path.name}: {path.stat().st_size} bytes, its header promises {end}; it was cut off: read the slide again"
        )
    grid = TileGrid(
        np.asarray(_map_tensor(path, header["column_row"], data_at)),
        int(metadata["tile_px"]),
        float(metadata["tile_mpp"]),
        float(metadata["slide_mpp"]),
    )
    return EmbeddingBag(
        _map_tensor(path, header["vectors"], data_at),
        grid,
        np.asarray(_map_tensor(path, header["focus"], data_at)),
        metadata["encoder_id"],
        metadata["fingerprint"],
        metadata["slide_sha256"],
        _sampling_from(path, header, data_at),
    )


def _sampling_from(path: Path, header: dict[str, Any], data_at: int) -> Sampling | None:
    if "weight" not in header:
        return None
    reason, weight = (np.asarray(_map_tensor(path, header[name], data_at)) for name in ("reason", "weight"))
    try:
        return Sampling(reason, weight)
    except ValueError as error:
        raise UnreadableBagError(f"{path.name}: {error}; it is damaged: read the slide again") from error


def _map_tensor(path: Path, entry: dict[str, Any], data_at: int) -> NDArray[Any]:
    dtype, shape, offset = _DTYPES[entry["dtype"]], tuple(entry["shape"]), data_at + entry["data_offsets"][0]
    if 0 in shape:
        return np.empty(shape, dtype)
    return np.memmap(path, dtype, "r", offset, shape)
