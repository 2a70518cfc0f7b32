"""Group the tiles of one slide by likeness alone."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from slideway.core.bag import EmbeddingBag
from slideway.core.findings import TissueGroups

MAX_GROUPS = 8  # as many as a reader can tell apart by colour
REPRESENTATIVES = 16
_TILES_PER_GROUP = 16  # with fewer, two or three odd tiles would pass for a tissue
_FITTED_TILES = 2_000  # groups are found on this many tiles, evenly spaced over the slide, then given to all
_JUDGED_TILES = 800  # silhouettes cost tiles squared
_AXES = 16
# More groups are kept as long as they separate nearly as well as the best number: a missed tissue is worse than one
# shown in two shades. Figures in docs/heads.md.
_NEARLY_AS_GOOD = 0.8
_LEAST_SILHOUETTE = 0.08  # one even cloud of tiles, cut in two, stays below this
_CANDIDATES = 500  # for representatives of one group
_ROWS = 8_192  # vectors turned into float32 at a time

Floats = NDArray[np.float32]
Labels = NDArray[np.int64]


def group_tiles(bag: EmbeddingBag) -> TissueGroups:
    """Group a slide's tiles by likeness; their number follows from the tiles, 1 to 8.

    The vectors are turned onto their 16 main axes and split step by step, always the widest group along its longest
    axis, with k-means after each split: no random start, so the same bag always gives the same groups.

    Args:
        bag: Embeddings of one slide; may be empty.

    Returns:
        Group 0 is the largest. Up to 16 representatives a group: nearest to its centre, but not next to each other.
    """
    weight = None if bag.sampling is None else bag.sampling.weight
    if len(bag) == 0:
        return TissueGroups(np.empty(0, np.int16), (), weight)
    points = project_tiles(bag.vectors)
    fitted = points[np.linspace(0, len(points) - 1, min(len(points), _FITTED_TILES)).astype(np.int64)]
    centres = choose_centres(fitted)
    group = order_by_size(assign(points, centres), weight)
    return TissueGroups(group.astype(np.int16), pick_representatives(points, group, bag.grid.column_row), weight)


def project_tiles(vectors: NDArray[np.float16]) -> Floats:
    """Turn vectors onto their main axes: (n, up to 16), not whitened, since that blurs the tissues into each other."""
    sample = as_finite(vectors[:: max(1, len(vectors) // _FITTED_TILES)])
    mean = sample.mean(axis=0)
    _, axes = np.linalg.eigh((sample - mean).T @ (sample - mean))
    main = axes[:, ::-1][:, :_AXES]
    return np.concatenate([(as_finite(vectors[i : i + _ROWS]) - mean) @ main for i in range(0, len(vectors), _ROWS)])


def as_finite(vectors: NDArray[np.float16]) -> Floats:
    """Vectors as float32, with 0 for what is not a finite number."""
    rows = vectors.astype(np.float32)
    if not np.isfinite(rows.sum()):  # one pass over the numbers; any that is not finite shows in the sum
        rows = np.nan_to_num(rows, posinf=0, neginf=0)
    return rows


def choose_centres(points: Floats) -> Floats:
    """Centres of 1 to 8 groups: the largest number that separates nearly as well as the best."""
    splits = split_step_by_step(points, min(MAX_GROUPS, len(points) // _TILES_PER_GROUP))
    judged = points[:: max(1, -(-len(points) // _JUDGED_TILES))]
    distance = np.sqrt(squared_distances(judged, judged))
    silhouettes = [mean_silhouette(distance, assign(judged, centres)) for centres in splits[1:]]
    best = max(silhouettes, default=0.0)
    if best < _LEAST_SILHOUETTE:
        return splits[0]
    good = [i for i, silhouette in enumerate(silhouettes) if silhouette >= _NEARLY_AS_GOOD * best]
    return splits[1 + good[-1]]


def split_step_by_step(points: Floats, most: int) -> list[Floats]:
    """Centres of one group, of two, … of `most`; fewer when tiles are all alike."""
    centres: Floats = points.mean(axis=0, keepdims=True)
    steps = [centres]
    while len(centres) < most:
        label = assign(points, centres)
        spread = [float(((points[label == g] - centres[g]) ** 2).sum()) for g in range(len(centres))]
        widest = int(np.argmax(spread))
        if spread[widest] < 1e-6:
            break
        offset = longest_axis(points[label == widest] - centres[widest])
        halves = np.stack([centres[widest] + offset, centres[widest] - offset])
        centres = settle(points, np.concatenate([np.delete(centres, widest, axis=0), halves]))
        steps.append(centres)
    return steps


def longest_axis(centred: Floats) -> Floats:
    """Direction in which centred points spread most, one standard deviation long; its sign fixed."""
    variances, axes = np.linalg.eigh(centred.T @ centred / len(centred))
    sign = np.sign(axes[np.abs(axes[:, -1]).argmax(), -1])
    axis: Floats = axes[:, -1] * (sign * np.sqrt(variances[-1]))
    return axis


def settle(points: Floats, centres: Floats) -> Floats:
    """K-means from the given centres, until they rest or 50 rounds are over."""
    for _ in range(50):
        label = assign(points, centres)
        held = np.bincount(label, minlength=len(centres))
        sums = np.stack([points[label == g].sum(axis=0) for g in range(len(centres))])
        moved = np.where(held[:, None] > 0, sums / np.maximum(held, 1)[:, None], centres).astype(np.float32)
        if np.allclose(moved, centres, atol=1e-4):
            break
        centres = moved
    return centres


def assign(points: Floats, centres: Floats) -> Labels:
    """Index of the nearest centre of each point."""
    nearest: Labels = squared_distances(points, centres).argmin(axis=1)
    return nearest


def squared_distances(a: Floats, b: Floats) -> Floats:
    """(len(a), len(b)) squared Euclidean distances."""
    squares: Floats = (a * a).sum(axis=1)[:, None] + (b * b).sum(axis=1)[None] - 2 * a @ b.T
    return np.maximum(squares, 0)


def mean_silhouette(distance: Floats, label: Labels) -> float:
    """Mean silhouette, -1 to 1: how much nearer a point is to its own group than to the next one."""
    groups = np.unique(label)
    if len(groups) < 2:
        return 0.0
    members = (label[:, None] == groups[None]).astype(np.float32)
    held = members.sum(axis=0)
    to_group = distance @ members / held
    own_size = members @ held
    own = (to_group * members).sum(axis=1) * own_size / np.maximum(own_size - 1, 1)
    other = np.where(members > 0, np.inf, to_group).min(axis=1)
    width = (other - own) / np.maximum(np.maximum(own, other), 1e-9)
    return float(np.where(own_size > 1, width, 0).mean())


def order_by_size(label: Labels, weight: Floats | None = None) -> Labels:
    """Rename groups so that 0 is the largest; empty ones vanish; of equal ones the first on the slide leads."""
    names, first, held = np.unique(label, return_index=True, return_counts=True)
    if weight is not None:
        held = np.bincount(label, weight)[names]
    rank = np.empty(int(label.max()) + 1, np.int64)
    rank[names[np.lexsort((first, -held))]] = np.arange(len(names))
    return rank[label]


def pick_representatives(points: Floats, group: Labels, column_row: NDArray[np.int32]) -> tuple[tuple[int, ...], ...]:
    """For each group the tiles nearest to its centre, best first, no two close together on the slide."""
    picks = []
    for g in range(int(group.max()) + 1):
        members = np.flatnonzero(group == g)
        centre = points[members].mean(axis=0, keepdims=True)
        order = squared_distances(points[members], centre)[:, 0].argsort(kind="stable")
        typical = members[order][: min(max(REPRESENTATIVES, len(members) // 2), _CANDIDATES)]
        picks.append(spread_out(typical, column_row[typical].astype(np.float64)))
    return tuple(picks)


def spread_out(candidates: Labels, column_row: NDArray[np.float64]) -> tuple[int, ...]:
    """Take candidates in order if they keep their distance from those taken; the distance halves until enough are."""
    distance, taken = float(np.ptp(column_row, axis=0).max()) / 4, [0]
    gap = np.abs(column_row - column_row[0]).max(axis=1)
    free = np.arange(len(candidates)) > 0
    while len(taken) < min(REPRESENTATIVES, len(candidates)):
        far = np.flatnonzero(free & (gap >= distance))
        if len(far) == 0:
            distance = distance / 2 if distance > 1 else 0.0
            continue
        taken.append(int(far[0]))
        free[far[0]] = False
        gap = np.minimum(gap, np.abs(column_row - column_row[far[0]]).max(axis=1))
    return tuple(int(candidates[i]) for i in taken)
