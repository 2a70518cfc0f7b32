"""Choose which tiles of a screened slide are worth an encoder's time, and draw some of the rest at random."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from slideway.core.bag import REASONS, Sampling
from slideway.heads.groups import MAX_GROUPS, Floats, Labels, assign, split_step_by_step, squared_distances

NOVELTY, CELLULARITY, DIVERSITY, RANDOM = (
    REASONS.index(reason) for reason in ("novelty", "cellularity", "diversity", "random")
)
# A tile is as novel as its nearest few others are unlike it. Against 1,000 others, 5 neighbours let a lesion of 0.5 %
# of the slide stand out that would hide itself among more.
_NEIGHBOURS = 5
_COMPARED_TILES = 1_000
_GROUPED_TILES = 2_000
_ROWS = 4_096


@dataclass(frozen=True)
class Screening:
    """What a coarse look at a slide says of each tile of its grid.

    Attributes:
        looks: (n_tiles, k) float32, stain and texture, any units; not a number where the pixels could not be read.
        cellularity: (n_tiles,) float32, any unit, higher with more nuclei.
        wide_tiles: Tiles that were read for it.
    """

    looks: NDArray[np.float32]
    cellularity: NDArray[np.float32]
    wide_tiles: int


@dataclass(frozen=True)
class Shares:
    """How much of a slide is read, each in [0, 1].

    Attributes:
        novelty: Share of all tiles that is read because nothing else on the slide looks like them.
        cellularity: Share that is read because they hold most nuclei.
        diversity: Share that is read so that every kind of tissue is there, the same number of each kind.
        random: Share of all other tiles that is drawn at random, above 0.
    """

    novelty: float = 0.20
    cellularity: float = 0.04
    diversity: float = 0.04
    random: float = 0.10


THRIFTY = Shares()


@dataclass(frozen=True)
class Selection:
    """The tiles to read.

    Attributes:
        tiles: (n,) int64, positions in the grid, ascending.
        sampling: Reason and weight of each.
    """

    tiles: NDArray[np.int64]
    sampling: Sampling


def select_tiles(screening: Screening, *, seed: int, shares: Shares = THRIFTY) -> Selection:
    """Choose tiles by novelty, then cellularity, then diversity, and draw some of the rest at random.

    What is chosen is chosen for being special, so its mean is not the slide's mean. Each tile drawn stands for all
    tiles that were neither chosen nor drawn: weighted with `sampling.weight`, sums over the tiles read are unbiased
    estimates of sums over all tiles. A tile that could not be screened is read, as the most novel.

    Args:
        screening: Of a slide's whole grid.
        seed: Decides the draw alone; taken from the slide's content, so that the same slide gives the same tiles.
        shares: How much is read.
    """
    count = len(screening.cellularity)
    reason = np.full(count, -1, np.int64)
    points = whiten(screening.looks)
    _take(reason, np.argsort(-find_lonely(points), kind="stable"), NOVELTY, shares.novelty)
    cellularity = np.nan_to_num(screening.cellularity, nan=-np.inf)
    _take(reason, np.argsort(-cellularity, kind="stable"), CELLULARITY, shares.cellularity)
    _take(reason, _alternate_groups(points, reason >= 0), DIVERSITY, shares.diversity)
    rest = np.flatnonzero(reason < 0)
    drawn = np.random.default_rng(seed).permutation(rest)[: int(np.ceil(shares.random * len(rest)))]
    reason[drawn] = RANDOM
    tiles = np.flatnonzero(reason >= 0)
    weight = np.ones(count, np.float32)
    weight[drawn] = len(rest) / max(1, len(drawn))
    return Selection(tiles, Sampling(reason[tiles].astype(np.uint8), weight[tiles]))


def _take(reason: Labels, order: Labels, name: int, share: float) -> None:
    """Give the first free tiles of `order` a reason, as many as `share` of all tiles."""
    free = order[reason[order] < 0]
    reason[free[: int(np.ceil(share * len(reason)))]] = name


def whiten(looks: NDArray[np.float32]) -> Floats:
    """Looks in standard deviations along their own axes, so that no unit and no pair of like measures decides alone.

    A hundredth of the mean variance is added to every axis. Rows that are not numbers stay so.
    """
    is_known = np.isfinite(looks).all(axis=1)
    known = looks[is_known].astype(np.float64)
    if len(known) < 2:
        return np.zeros_like(looks)
    scaled = (known - known.mean(axis=0)) / (known.std(axis=0) + 1e-9)
    covariance = scaled.T @ scaled / len(scaled)
    regular = covariance + (0.01 * np.trace(covariance) / len(covariance) + 1e-9) * np.eye(len(covariance))
    points = np.full(looks.shape, np.nan, np.float32)
    points[is_known] = scaled @ np.linalg.cholesky(np.linalg.inv(regular))
    return points


def find_lonely(points: Floats) -> Floats:
    """(n,) mean distance of each point to its 5 nearest others among 1,000 spread evenly; inf where it is unknown."""
    known = np.flatnonzero(np.isfinite(points).all(axis=1))
    lonely = np.full(len(points), np.inf, np.float32)
    if len(known) < 2:
        return lonely
    compared = known[np.linspace(0, len(known) - 1, min(len(known), _COMPARED_TILES)).astype(np.int64)]
    near = min(_NEIGHBOURS, len(compared) - 1)
    for start in range(0, len(known), _ROWS):
        rows = known[start : start + _ROWS]
        distance = np.sqrt(squared_distances(points[rows], points[compared]))
        distance[rows[:, None] == compared[None]] = np.inf  # not its own neighbour
        lonely[rows] = np.partition(distance, near - 1, axis=1)[:, :near].mean(axis=1)
    return lonely


def _alternate_groups(points: Floats, is_taken: NDArray[np.bool_]) -> Labels:
    """Free tiles, one of each group in turn, those of one group spread evenly over the slide."""
    free = np.flatnonzero(~is_taken & np.isfinite(points).all(axis=1))
    if not len(free):
        return free
    fitted = free[np.linspace(0, len(free) - 1, min(len(free), _GROUPED_TILES)).astype(np.int64)]
    group = assign(points[free], split_step_by_step(points[fitted], MAX_GROUPS)[-1])
    turn = np.empty(len(free), np.float64)
    for g in np.unique(group):
        members = np.flatnonzero(group == g)
        turn[members[_spread_evenly(len(members))]] = np.arange(len(members))
    return free[np.lexsort((group, turn))]


def _spread_evenly(count: int) -> Labels:
    """0 … count-1 in an order whose every beginning is spread evenly (van der Corput's)."""
    bits = max(1, int(count - 1).bit_length())
    order = np.array([int(f"{i:0{bits}b}"[::-1], 2) for i in range(1 << bits)], np.int64)
    return order[order < count]
