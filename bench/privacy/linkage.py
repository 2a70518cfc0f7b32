"""Which slide the vectors of a few tiles belong to: whether a bundle can be traced without any picture."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]
Recode = Callable[[int, Array], Array]
RANDOM_SPLITS = 2


def split_at_random(n: int, random: np.random.Generator) -> Array:
    half = np.zeros(n, bool)
    half[random.permutation(n)[: n // 2]] = True
    return half


def split_in_space(places: Array) -> Array:
    """The lower-lying half along the slide's longer axis: two halves that touch along one line only."""
    axis = int(np.ptp(places, axis=0).argmax())
    half = np.zeros(len(places), bool)
    half[places[:, axis].argsort(kind="stable")[: len(places) // 2]] = True
    return half


def normalise(vectors: Array, centre: Array) -> Array:
    centred = vectors.astype(np.float32) - centre
    return centred / np.maximum(np.linalg.norm(centred, axis=-1, keepdims=True), 1e-6)


def score_by_mean(queries: list[Array], gallery: list[Array], centre: Array) -> Array:
    """(queries, gallery) cosine of mean vectors."""
    means = [normalise(np.stack([one.mean(axis=0) for one in group]), centre) for group in (queries, gallery)]
    return means[0] @ means[1].T


def score_by_tiles(queries: list[Array], gallery: list[Array], centre: Array) -> Array:
    """(queries, gallery) cosine of each tile to the nearest tile of a slide, mean over the query's tiles."""
    against, starts = normalise(np.concatenate(gallery), centre), np.cumsum([0, *map(len, gallery)])[:-1]
    rows = [np.maximum.reduceat(normalise(one, centre) @ against.T, starts, axis=1).mean(axis=0) for one in queries]
    return np.stack(rows)


SCORES = {"mean": score_by_mean, "tiles": score_by_tiles}


def link_halves(vectors: list[Array], recode: Recode, splits: list[list[Array]]) -> dict[str, Array]:
    """By score, (slides,) share of splits and directions in which half a slide finds its other half among all slides.

    Args:
        vectors: Lossless vectors of each slide; the receiver holds the other halves like this.
        recode: What a codec gives back for some vectors of a slide (its number, the vectors).
        splits: For each split, which tiles of each slide are in its first half.
    """
    centre = np.mean([one.mean(axis=0, dtype=np.float64) for one in vectors], axis=0).astype(np.float32)
    hits: dict[str, list[Array]] = {name: [] for name in SCORES}
    for split in splits:
        for halves in (split, [~half for half in split]):
            queries = [recode(i, one[half]) for i, (one, half) in enumerate(zip(vectors, halves, strict=True))]
            others = [one[~half].astype(np.float32) for one, half in zip(vectors, halves, strict=True)]
            for name, score in SCORES.items():
                hits[name].append(score(queries, others, centre).argmax(axis=1) == np.arange(len(vectors)))
    return {name: np.mean(found, axis=0) for name, found in hits.items()}


def rank_siblings(vectors: list[Array], recoded: list[Array], case: Array, score: str) -> list[int]:
    """Rank of the other slide of the case among all other slides, for each slide whose case has two; 1 is first."""
    centre = np.mean([one.mean(axis=0, dtype=np.float64) for one in vectors], axis=0).astype(np.float32)
    chosen = [i for i in range(len(case)) if (case == case[i]).sum() == 2]
    scores = SCORES[score]([recoded[i] for i in chosen], vectors, centre)
    ranks = []
    for i, row in zip(chosen, scores, strict=True):
        others = np.delete(row, i)
        sibling = row[(case == case[i]) & (np.arange(len(case)) != i)][0]
        ranks.append(int((others > sibling).sum()) + 1)
    return ranks
