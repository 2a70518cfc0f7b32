"""Say how unlike the cases a head learnt from a whole slide is, and each of its tiles."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from slideway.heads.novelty import measure_distance

Floats = NDArray[np.float32]
MIN_CASES = 5  # fewer leave nothing to compare a case with once it is left out
BANK_TILES = 2_000
NEIGHBOURS = 5
# Neighbours of 50,000 tiles among 2,000 take a core a third of a second; of 1,000 tiles spread evenly, 15 ms, and their
# median moves by less than that of two halves of a slide.
_ASKED_TILES = 1_000
_CASE_TILES = 400  # of a case at most in the cloud, so that a few large resections do not decide what is ordinary
_FOLDS = 50  # beyond that many cases, several are left out together
# The mean variance is added to every direction. With a hundredth of it, as novelty of a tile uses, directions in which
# a few dozen cases hardly vary decide alone: docs/certainty.md has the figures.
_SHRINKAGE = 1.0
_ARRAYS = ("mean", "whitening", "bank", "case_means", "tile_distances", "centre_spread", "reference")


@dataclass(frozen=True)
class Typicality:
    """What the cases that a head learnt from look like.

    Attributes:
        mean: (r,) float32, centre of their tiles.
        whitening: (r, r) float32; `|(vector - mean) @ whitening|` is a tile's distance.
        bank: (n, r) float32, whitened tiles that neighbours are sought among.
        case_means: (n_cases, r) float32, whitened mean tile of each case.
        tile_distances: (n,) float32, ascending: distance of tiles from the cloud of other cases.
        centre_spread: (2, 2) float32, median and interquartile range of the logarithms of the two distances that a
            slide's score is made of, over the cases.
        reference: (n_cases,) float32, ascending: score of each case against the others.
    """

    mean: Floats
    whitening: Floats
    bank: Floats
    case_means: Floats
    tile_distances: Floats
    centre_spread: Floats
    reference: Floats

    def __post_init__(self) -> None:
        width = len(self.mean)
        widths = {self.whitening.shape[0], self.bank.shape[1], self.case_means.shape[1]}
        if widths != {width} or self.centre_spread.shape != (2, 2) or len(self.reference) < MIN_CASES:
            raise ValueError(f"a typicality is of one width ({width}) throughout and of at least {MIN_CASES} cases")

    @property
    def cases(self) -> int:
        """Number of cases it rests on."""
        return len(self.reference)

    def can_tell(self, alpha: float) -> bool:
        """Whether there are enough cases for any slide to be called strange at a level."""
        return 1 / (self.cases + 1) < alpha

    def to_arrays(self) -> dict[str, NDArray[Any]]:
        """As named arrays, to be stored."""
        return {name: getattr(self, name) for name in _ARRAYS}

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, NDArray[Any]]) -> Typicality:
        """From what `to_arrays` gave.

        Raises:
            KeyError: An array is missing.
            ValueError: The arrays do not belong together.
        """
        return cls(**{name: np.asarray(arrays[name], np.float32) for name in _ARRAYS})


@dataclass(frozen=True)
class TypicalityScore:
    """How unlike the known cases a slide is.

    Attributes:
        strangeness: Share of the known cases that are less unlike the others than this slide, in [0, 1].
        p_value: Chance of a slide at least as strange, if it were one more of these cases; at least 1 / (cases + 1).
        tile_strangeness: (n_tiles,) float32, the same of each tile by its distance from the cloud, in [0, 1]; 1 where
            a vector is not finite.
        cases: Number of known cases.
    """

    strangeness: float
    p_value: float
    tile_strangeness: Floats
    cases: int


def fit_typicality(vectors_by_case: Sequence[NDArray[Any]], *, seed: int = 0) -> Typicality:
    """Learn what the cases look like, each measured against the others.

    Args:
        vectors_by_case: (n_tiles, r) projected tiles of each case, all its slides together; vectors that are not
            finite are left out.
        seed: Decides which tiles stand for a case that has many, and which are kept for neighbours.
    """
    random = np.random.default_rng(seed)
    tiles = [_draw(vectors[np.isfinite(vectors).all(axis=1)], _CASE_TILES, random) for vectors in vectors_by_case]
    if len(tiles) < MIN_CASES or not all(len(of_case) for of_case in tiles):
        raise ValueError(f"{len(tiles)} cases, each with a tile: at least {MIN_CASES} are needed to know a strange one")
    folds = min(len(tiles), _FOLDS)
    distances, parts = [np.empty(0, np.float32)] * len(tiles), np.empty((len(tiles), 2))
    for fold in range(folds):
        others = _lay_out([of_case for i, of_case in enumerate(tiles) if i % folds != fold], random)
        for i in range(fold, len(tiles), folds):
            distances[i] = measure_distance(tiles[i], *others[:2])
            parts[i] = _measure_parts(tiles[i], np.ones(len(tiles[i])), *others)
    low, centre, high = np.quantile(parts, (0.25, 0.5, 0.75), axis=0)
    centre_spread = np.stack([centre, np.maximum(high - low, 1e-6)])
    every = np.sort(np.concatenate(distances))
    kept = np.linspace(0, len(every) - 1, min(len(every), BANK_TILES)).round().astype(int)
    return Typicality(
        *_lay_out(tiles, random),
        tile_distances=every[kept],
        centre_spread=centre_spread.astype(np.float32),
        reference=np.sort(_join(parts, centre_spread)).astype(np.float32),
    )


def score_typicality(
    typicality: Typicality, vectors: NDArray[Any], weights: NDArray[Any] | None = None
) -> TypicalityScore:
    """How unlike the known cases a slide and its tiles are.

    Args:
        typicality: Of the head's own cases.
        vectors: (n_tiles, r) projected tiles of one slide. A slide without a finite vector is as strange as can be.
        weights: (n_tiles,) how many tiles each stands for, above 0; None when all were read.
    """
    distance = measure_distance(vectors, typicality.mean, typicality.whitening)
    below = np.searchsorted(typicality.tile_distances, distance, side="left")
    tile_strangeness = (below / len(typicality.tile_distances)).astype(np.float32)
    score, is_finite = math.inf, np.isfinite(distance)
    if is_finite.any():
        kept = vectors if is_finite.all() else vectors[is_finite]
        weight = np.ones(len(kept)) if weights is None else np.asarray(weights, np.float64)[is_finite]
        parts = _measure_parts(
            kept, weight, typicality.mean, typicality.whitening, typicality.bank, typicality.case_means
        )
        score = float(_join(parts, typicality.centre_spread).astype(np.float32))
    less = int(np.searchsorted(typicality.reference, score, side="left"))
    p_value = (1 + typicality.cases - less) / (typicality.cases + 1)
    return TypicalityScore(less / typicality.cases, p_value, tile_strangeness, typicality.cases)


def _draw(vectors: NDArray[Any], count: int, random: np.random.Generator) -> Floats:
    chosen = vectors if len(vectors) <= count else vectors[np.sort(random.permutation(len(vectors))[:count])]
    return np.asarray(chosen, np.float32)


def _lay_out(tiles: Sequence[Floats], random: np.random.Generator) -> tuple[Floats, Floats, Floats, Floats]:
    """Mean, whitening, bank and case means of some cases."""
    every = np.concatenate(tiles)
    mean = every.mean(axis=0, dtype=np.float64)
    centred = every.astype(np.float64) - mean
    covariance = centred.T @ centred / len(centred)
    width = len(mean)
    regular = covariance + (_SHRINKAGE * np.trace(covariance) / width + 1e-12) * np.eye(width)
    whitening = np.linalg.cholesky(np.linalg.inv(regular))
    case_means = np.stack([(of_case.mean(axis=0, dtype=np.float64) - mean) @ whitening for of_case in tiles])
    bank = (_draw(centred, BANK_TILES, random) @ whitening).astype(np.float32)
    return mean.astype(np.float32), whitening.astype(np.float32), bank, case_means.astype(np.float32)


def _measure_parts(
    vectors: NDArray[Any],
    weight: NDArray[np.float64],
    mean: Floats,
    whitening: Floats,
    bank: Floats,
    case_means: Floats,
) -> NDArray[np.float64]:
    """(2,) logarithms of a slide's two distances: its middle tile's from like tiles, its mean's from a case's mean."""
    asked = np.linspace(0, len(vectors) - 1, min(len(vectors), _ASKED_TILES)).round().astype(int)
    tile_far = _middle(_find_far(_whiten(vectors[asked], mean, whitening), bank, NEIGHBOURS), weight[asked])
    slide_mean = weight.astype(np.float32) @ np.asarray(vectors, np.float32) / np.float32(weight.sum())
    case_far = _find_far(_whiten(slide_mean[None], mean, whitening), case_means, 1)[0]
    return np.log(np.maximum([tile_far, case_far], 1e-6))


def _whiten(vectors: NDArray[Any], mean: Floats, whitening: Floats) -> Floats:
    return np.asarray((vectors.astype(np.float32) - mean) @ whitening, np.float32)


def _find_far(queries: Floats, bank: Floats, neighbours: int) -> NDArray[np.float64]:
    """(n,) mean distance of each query to its nearest few in the bank."""
    few = min(neighbours, len(bank))
    squares = (queries**2).sum(axis=1)[:, None] + (bank**2).sum(axis=1) - 2 * queries @ bank.T
    nearest = np.partition(squares, few - 1, axis=1)[:, :few]
    return np.asarray(np.sqrt(np.maximum(nearest, 0)).mean(axis=1), np.float64)


def _middle(values: NDArray[np.float64], weight: NDArray[np.float64]) -> float:
    """Median, each value counting by its weight."""
    order = np.argsort(values, kind="stable")
    total = np.cumsum(weight[order])
    return float(values[order[np.searchsorted(total, total[-1] / 2)]])


def _join(parts: NDArray[Any], centre_spread: NDArray[Any]) -> NDArray[np.float64]:
    """One score of the two distances, each in interquartile ranges from the known cases' median."""
    return np.asarray(((parts - centre_spread[0]) / centre_spread[1]).mean(axis=-1), np.float64)
