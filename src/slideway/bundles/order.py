"""In which order a slide's tiles travel: first those that tell most, then the rest in fair draws."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from slideway.core.bag import REASONS

RANDOM = REASONS.index("random")
_ATTENTION, _NOVELTY, _DIVERSITY = (REASONS.index(reason) for reason in ("attention", "novelty", "diversity"))
_FIRST_SHARE, _FEWEST_FIRST, _MOST_FIRST = 12, 48, 160  # tiles that travel with the thumbnail: a twelfth, within limits
_CHUNK_TILES, _MOST_CHUNK_TILES = 1_024, 8_192  # 110 kB to 900 kB with the default codec
_TELLING = 0.25  # share of each chunk that is taken by attention and novelty; the rest is drawn at random
_PER_GROUP = 3


@dataclass(frozen=True)
class TileOrder:
    """Tiles in the order in which they travel, and why each comes where it comes.

    Attributes:
        chunks: Tiles of the first tier's part, then of each further part, each ascending.
        reason: (n_tiles,) uint8, position in `core.bag.REASONS`; of all but random ones each stands for itself only.
    """

    chunks: tuple[NDArray[np.int64], ...]
    reason: NDArray[np.uint8]


def order_tiles(
    n_tiles: int,
    *,
    attention: NDArray[np.floating] | None,
    novelty: NDArray[np.floating] | None,
    representatives: Sequence[Sequence[int]],
    seed: int,
) -> TileOrder:
    """Put tiles in order: top of attention, most novel, representatives of every group, and fair random draws.

    Args:
        n_tiles: Tiles in the bag.
        attention: (n_tiles,) what the heads looked at, any scale; None when no head spoke.
        novelty: (n_tiles,) how unlike the reference, any scale; None without a reference.
        representatives: For each group of like tiles, those that show it best, best first.
        seed: From the slide's hash, so that the same slide always gives the same order.
    """
    reason = np.full(n_tiles, RANDOM, np.uint8)
    n_first = min(n_tiles, max(_FEWEST_FIRST, min(_MOST_FIRST, n_tiles // _FIRST_SHARE)))
    queues = [_rank(scores) for scores in (attention, novelty)]
    shown = [group[i] for i in range(_PER_GROUP) for group in representatives if i < len(group)]
    wanted = [(_ATTENTION, queues[0], n_first // 4), (_NOVELTY, queues[1], n_first // 4)]
    wanted += [(_DIVERSITY, np.array(shown, np.int64), n_first // 4)]
    drawn = np.random.default_rng(seed).permutation(n_tiles)
    is_taken = np.zeros(n_tiles, bool)
    chunks = [_take_chunk(n_first, wanted, drawn, is_taken, reason)]
    size = _CHUNK_TILES
    while not is_taken.all():
        n_telling = int(_TELLING * size / 2)
        wanted = [(_ATTENTION, queues[0], n_telling), (_NOVELTY, queues[1], n_telling)]
        chunks.append(_take_chunk(min(size, int((~is_taken).sum())), wanted, drawn, is_taken, reason))
        size = min(2 * size, _MOST_CHUNK_TILES)
    return TileOrder(tuple(chunks), reason)


def _rank(scores: NDArray[np.floating] | None) -> NDArray[np.int64]:
    """Tiles by falling score; none without scores."""
    if scores is None:
        return np.empty(0, np.int64)
    return np.argsort(-np.nan_to_num(scores, nan=-np.inf), kind="stable").astype(np.int64)


def _take_chunk(
    size: int,
    wanted: Sequence[tuple[int, NDArray[np.int64], int]],
    drawn: NDArray[np.int64],
    is_taken: NDArray[np.bool_],
    reason: NDArray[np.uint8],
) -> NDArray[np.int64]:
    """Up to `size` tiles not taken yet: so many of each queue, then random ones; marks them as taken."""
    before = is_taken.copy()
    for why, queue, n in wanted:
        best = queue[~is_taken[queue]][: min(n, size - int((is_taken ^ before).sum()))]
        is_taken[best] = True
        reason[best] = why
    rest = drawn[~is_taken[drawn]][: size - int((is_taken ^ before).sum())]
    is_taken[rest] = True
    return np.flatnonzero(is_taken ^ before)


def weigh_tiles(
    reason: NDArray[np.uint8], own_weight: NDArray[np.float32], *, total_weight: float
) -> NDArray[np.float32]:
    """How many tiles of the slide each of those at hand stands for, when some are missing.

    Tiles that were chosen stand for what they stood for on the edge; random ones share what is missing among them. So
    weighted means over any prefix are estimates of those over the whole slide.

    Args:
        reason: (n,) why each tile at hand was taken.
        own_weight: (n,) what each stood for on the edge; 1 when every tile was read there.
        total_weight: Sum of `own_weight` over all tiles of the slide.
    """
    is_random = reason == RANDOM
    missing = total_weight - float(own_weight.sum())
    share = float(own_weight[is_random].sum())
    if missing <= 0 or share <= 0:
        return own_weight
    weight: NDArray[np.float32] = np.where(is_random, own_weight * np.float32(1 + missing / share), own_weight)
    return weight
