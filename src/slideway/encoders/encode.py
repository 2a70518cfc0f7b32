"""Encode a stream of tiles on all cores while the reader decodes the next ones."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from slideway.encoders.encoder import Encoder
from slideway.slides import TileBatch

# Batches in flight for each thread: one computed, one waiting. More only costs memory.
BATCHES_PER_THREAD = 2

Judge = Callable[[NDArray[np.uint8]], tuple[NDArray[np.float32], NDArray[np.bool_]]]


@dataclass(frozen=True)
class EncodedTiles:
    """One batch after encoding.

    Attributes:
        indices: (b,) int64, positions in the grid of all tiles that were read.
        focus: (b,) float32, what the judge measured of each.
        kept: (b,) bool, True where the tile was encoded.
        vectors: (kept.sum(), width) float32.
        lost: Positions whose pixels could not be read.
    """

    indices: NDArray[np.int64]
    focus: NDArray[np.float32]
    kept: NDArray[np.bool_]
    vectors: NDArray[np.float32]
    lost: tuple[int, ...]


def encode_tiles(
    batches: Iterable[TileBatch], encoder: Encoder, *, judge: Judge, threads: int
) -> Iterator[EncodedTiles]:
    """Judge and encode batches on `threads` threads; yields them in reading order.

    Memory is bounded by `BATCHES_PER_THREAD * threads` batches, whatever the slide's size. The engine computes on the
    calling thread and releases the interpreter lock, so threads are enough.

    Args:
        batches: As `OpenedSlide.read_tiles` yields them.
        encoder: A loaded encoder.
        judge: Measures (b, t, t, 3) tiles: focus of each, and whether it is worth encoding.
        threads: Cores to use.
    """

    def encode(batch: TileBatch) -> EncodedTiles:
        focus, kept = judge(batch.tiles)
        tiles = batch.tiles if kept.all() else np.ascontiguousarray(batch.tiles[kept])
        vectors = encoder.encode(tiles) if len(tiles) else np.empty((0, encoder.width), np.float32)
        return EncodedTiles(batch.indices, focus, kept, vectors, batch.lost)

    in_flight: deque[Future[EncodedTiles]] = deque()
    with ThreadPoolExecutor(threads, thread_name_prefix="encode") as pool:
        try:
            for batch in batches:
                in_flight.append(pool.submit(encode, batch))
                if len(in_flight) >= BATCHES_PER_THREAD * threads:
                    yield in_flight.popleft().result()
            while in_flight:
                yield in_flight.popleft().result()
        finally:
            for future in in_flight:
                future.cancel()
