"""In which order a slide's tiles travel: first those that tell most, then the rest in fair draws."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from slideway.core.bag import REASONS

RANDOM = REASONS.index("random")
NEVER = 255  # of a tile that no part makes a chosen one
_ATTENTION, _NOVELTY, _DIVERSITY = (REASONS.index(reason) for reason in ("attention", "novelty", "diversity"))
_FIRST_SHARE, FEWEST_FIRST, _MOST_FIRST = 12, 48, 160  # tiles that travel with the thumbnail: a twelfth, within limits
_CHUNK_TILES, MOST_CHUNK_TILES = 1_024, 8_192  # 110 kB to 900 kB with the default codec
_MOST_FULL_CHUNKS = 8  # a slide of very many tiles has larger parts instead: each takes 51 bytes of tier 0
_TELLING = 0.25  # share of each chunk that is taken by attention and novelty; the rest is drawn at random
_PER_GROUP = 3


@dataclass(frozen=True)
class TileOrder:
    """Tiles in the order in which they travel, and why each comes where it comes.

    Attributes:
        chunks: Tiles of the first tier's part, then of each further part, each ascending.
        reason: (n_tiles,) uint8, position in `core.bag.REASONS`.
        since: (n_tiles,) uint8, number of the part from which on a tile counts as chosen and stands for itself only;
            `NEVER` for one that is only ever drawn at random. One that was drawn early and would have been chosen later
            counts as chosen from then on: else what is chosen would be counted twice.
    """

    chunks: tuple[NDArray[np.int64], ...]
    reason: NDArray[np.uint8]
    since: NDArray[np.uint8]


def count_first(n_tiles: int) -> int:
    """Tiles that the first tier holds, if there is room for them."""
    return min(n_tiles, max(FEWEST_FIRST, min(_MOST_FIRST, n_tiles // _FIRST_SHARE)))


def order_tiles(
    n_tiles: int,
    *,
    attention: NDArray[np.floating] | None,
    novelty: NDArray[np.floating] | None,
    representatives: Sequence[Sequence[int]],
    seed: int,
    first: int | None = None,
    most_chunk: int = MOST_CHUNK_TILES,
    limit: int | None = None,
) -> TileOrder:
    """Put tiles in order: top of attention, most novel, representatives of every group, and fair random draws.

    Args:
        n_tiles: Tiles in the bag.
        attention: (n_tiles,) what the heads looked at, any scale; None when no head spoke.
        novelty: (n_tiles,) how unlike the reference, any scale; None without a reference.
        representatives: For each group of like tiles, those that show it best, best first.
        seed: From the slide's hash, so that the same slide always gives the same order.
        first: Tiles of the first tier; `count_first` without it.
        most_chunk: Tiles of the largest part, unless there would be very many parts.
        limit: Tiles that travel at all; all without it.
    """
    draw = _Draw(n_tiles, np.random.default_rng(seed).permutation(n_tiles))
    n_first = count_first(n_tiles) if first is None else min(first, n_tiles)
    most = n_tiles if limit is None else min(limit, n_tiles)
    queues = [_rank(scores) for scores in (attention, novelty)]
    shown = [group[i] for i in range(_PER_GROUP) for group in representatives if i < len(group)]
    wanted = [(_ATTENTION, queues[0], n_first // 4), (_NOVELTY, queues[1], n_first // 4)]
    wanted += [(_DIVERSITY, np.array(shown, np.int64), n_first // 4)]
    chunks = [draw.take_chunk(n_first, wanted)]
    largest = max(most_chunk, -(-n_tiles // _MOST_FULL_CHUNKS))
    size = min(_CHUNK_TILES, largest)
    while (left := most - draw.n_taken) > 0:
        n_telling = int(_TELLING * min(size, left) / 2)
        wanted = [(_ATTENTION, queues[0], n_telling), (_NOVELTY, queues[1], n_telling)]
        chunks.append(draw.take_chunk(min(size, left), wanted))
        size = min(2 * size, largest)
    return TileOrder(tuple(chunks), draw.reason, draw.since)


def _rank(scores: NDArray[np.floating] | None) -> NDArray[np.int64]:
    """Tiles by falling score; none without scores."""
    if scores is None:
        return np.empty(0, np.int64)
    return np.argsort(-np.nan_to_num(scores, nan=-np.inf), kind="stable").astype(np.int64)


class _Draw:
    """What was taken so far.

    Which tiles are chosen follows from the scores alone, never from what was drawn at random: so those drawn are a fair
    sample of all that are not chosen, after every part.
    """

    def __init__(self, n_tiles: int, drawn: NDArray[np.int64]) -> None:
        self.reason = np.full(n_tiles, RANDOM, np.uint8)
        self.since = np.full(n_tiles, NEVER, np.uint8)
        self._is_taken = np.zeros(n_tiles, bool)
        self._drawn = drawn
        self._n_chunks = 0

    @property
    def n_taken(self) -> int:
        return int(self._is_taken.sum())

    def take_chunk(self, size: int, wanted: Sequence[tuple[int, NDArray[np.int64], int]]) -> NDArray[np.int64]:
        """Up to `size` tiles not taken yet: so many of each queue, then random ones."""
        before = self._is_taken.copy()
        for why, queue, n in wanted:
            best = queue[self.since[queue] == NEVER][:n]
            self.since[best] = self._n_chunks
            self.reason[best[~self._is_taken[best]]] = why
            self._is_taken[best] = True
        rest = self._drawn[~self._is_taken[self._drawn]]
        self._is_taken[rest[: max(0, size - int((self._is_taken ^ before).sum()))]] = True
        self._n_chunks += 1
        return np.flatnonzero(self._is_taken ^ before)


def weigh_tiles(
    is_chosen: NDArray[np.bool_], own_weight: NDArray[np.float32], *, total_weight: float
) -> NDArray[np.float32]:
    """How many tiles of the slide each of those at hand stands for, when some are missing.

    Chosen tiles stand for what they stood for on the edge; those drawn at random share what is missing among them. So
    weighted means over any prefix are estimates of those over the whole slide. Without one drawn at random, all share.

    Args:
        is_chosen: (n,) tiles that count as chosen, given the parts at hand.
        own_weight: (n,) what each stood for on the edge; 1 when every tile was read there.
        total_weight: Sum of `own_weight` over all tiles of the slide.
    """
    missing = total_weight - float(own_weight.sum(dtype=np.float64))
    shares = ~is_chosen if not is_chosen.all() else np.ones(len(is_chosen), bool)
    share = float(own_weight[shares].sum(dtype=np.float64))
    if missing <= 0 or share <= 0:
        return own_weight
    weight: NDArray[np.float32] = np.where(shares, own_weight * np.float32(1 + missing / share), own_weight)
    return weight
