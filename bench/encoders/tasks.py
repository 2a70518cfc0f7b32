"""What the evidence of an encoder is: retrieval and linear probes, split by case, with intervals over cases.

Nothing here knows a model: every function takes vectors and labels. Retrieval never finds a tile of its own case, a
probe never sees the case it is asked about, and every interval is a bootstrap over cases (over tiles where a set names
no patients, which is then said).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.stats import rankdata
from sklearn.linear_model import LogisticRegression, RidgeClassifier
from sklearn.model_selection import StratifiedKFold

Vectors = NDArray[np.float32]
Labels = NDArray[Any]
DRAWS = 1000
PENALTY = 1000.0  # of ridge probes on standardised channels and thousands of tiles; the same for every encoder


@dataclass(frozen=True)
class Figure:
    """A figure with its 95 % interval; `by_unit` holds the value of each case (or tile) it was drawn from."""

    value: float
    low: float
    high: float
    by_unit: NDArray[np.float64]


def standardise(vectors: Vectors) -> Vectors:
    """Each channel centred and divided by its deviation: scale is no merit of an encoder."""
    deviation = vectors.std(0)
    return ((vectors - vectors.mean(0)) / np.where(deviation > 1e-6, deviation, 1.0)).astype(np.float32)


def unit(vectors: Vectors) -> Vectors:
    """Length one each, so that a product is a cosine."""
    return vectors / (np.linalg.norm(vectors, axis=1, keepdims=True) + 1e-12)


def over_cases(values: NDArray[np.float64], cases: Labels, seed: int = 0) -> Figure:
    """Mean over cases of the mean within a case, with a bootstrap over cases."""
    names = np.unique(cases)
    by_case = np.array([values[cases == name].mean() for name in names])
    draws = np.random.default_rng(seed).integers(0, len(names), (DRAWS, len(names)))
    low, high = np.percentile(by_case[draws].mean(1), (2.5, 97.5))
    return Figure(float(by_case.mean()), float(low), float(high), by_case)


def retrieve(
    vectors: Vectors,
    labels: Labels,
    cases: Labels,
    searched: tuple[Vectors, Labels, Labels] | None = None,
) -> dict[str, Figure]:
    """R@1, R@5 and mean average precision among tiles of other cases; only labels that another case shares are asked.

    Args:
        vectors: (n, width), already on the scale they are compared in; the queries.
        labels: (n,) what should be found again.
        cases: (n,) the case of each tile.
        searched: Vectors, labels and cases of what is searched; None searches the queries themselves.
    """
    found, found_labels, found_cases = searched or (vectors, labels, cases)
    queries, found = unit(vectors), unit(found)
    shared = [label for label in np.unique(labels) if len(np.unique(found_cases[found_labels == label])) > 1]
    asked = np.flatnonzero(np.isin(labels, shared))
    first, five, precision = (np.zeros(len(asked)) for _ in range(3))
    for start in range(0, len(asked), 512):
        block = asked[start : start + 512]
        cosine = queries[block] @ found.T
        cosine[cases[block][:, None] == found_cases[None, :]] = -np.inf
        order = np.argsort(-cosine, axis=1, kind="stable")
        is_hit = found_labels[order] == labels[block][:, None]
        is_hit &= np.isfinite(np.take_along_axis(cosine, order, 1))
        first[start : start + 512], five[start : start + 512] = is_hit[:, 0], is_hit[:, :5].any(1)
        ranks = np.cumsum(is_hit, 1)
        at = ranks / np.arange(1, is_hit.shape[1] + 1)
        precision[start : start + 512] = (at * is_hit).sum(1) / is_hit.sum(1)
    return {
        "r1": over_cases(first, cases[asked]),
        "r5": over_cases(five, cases[asked]),
        "map": over_cases(precision, cases[asked]),
    }


def probe_leaving_cases_out(vectors: Vectors, is_positive: Labels, cases: Labels) -> dict[str, Figure]:
    """AUC of a ridge probe that never saw the case it scores: of tiles, and of cases by their mean score."""
    scores = np.zeros(len(vectors))
    for name in np.unique(cases):
        held = cases == name
        scale, shift = vectors[~held].std(0) + 1e-6, vectors[~held].mean(0)
        probe = RidgeClassifier(PENALTY, class_weight="balanced", solver="cholesky")
        probe.fit((vectors[~held] - shift) / scale, is_positive[~held])
        scores[held] = probe.decision_function((vectors[held] - shift) / scale)
    names = np.unique(cases)
    by_case = np.array([scores[cases == name].mean() for name in names])
    truth = np.array([is_positive[cases == name][0] for name in names])
    return {
        "case_auc": auc_over_units(by_case, truth),
        "tile_auc": auc_over_cases(scores, is_positive, cases),
    }


def auc_over_units(scores: NDArray[np.float64], truth: Labels, seed: int = 0) -> Figure:
    """AUC with a bootstrap over its units."""
    return _auc(scores, truth, [np.array([i]) for i in range(len(scores))], seed)


def auc_over_cases(scores: NDArray[np.float64], truth: Labels, cases: Labels, seed: int = 0) -> Figure:
    """AUC of tiles with a bootstrap over cases."""
    return _auc(scores, truth, [np.flatnonzero(cases == name) for name in np.unique(cases)], seed)


def _rank_auc(scores: NDArray[np.float64], truth: Labels) -> float:
    ranks = rankdata(scores)
    n_positive = int(truth.sum())
    below = ranks[truth.astype(bool)].sum() - n_positive * (n_positive + 1) / 2
    return float(below / (n_positive * (len(truth) - n_positive)))


def _auc(scores: NDArray[np.float64], truth: Labels, groups: list[NDArray[np.int64]], seed: int) -> Figure:
    rng, drawn = np.random.default_rng(seed), []
    for _ in range(DRAWS // 2):
        chosen = np.concatenate([groups[i] for i in rng.integers(0, len(groups), len(groups))])
        if 0 < truth[chosen].sum() < len(chosen):
            drawn.append(_rank_auc(scores[chosen], truth[chosen]))
    low, high = np.percentile(drawn, (2.5, 97.5))
    return Figure(_rank_auc(scores, truth), float(low), float(high), scores)


def probe_split(vectors: Vectors, is_positive: Labels, is_train: Labels) -> Figure:
    """AUC of a logistic probe on a set's own split; tiles without patients, so the interval is over tiles."""
    return auc_over_units(_fit(vectors, is_positive, is_train)[~is_train], is_positive[~is_train])


def probe_folds(vectors: Vectors, is_positive: Labels, folds: int = 5) -> Figure:
    """AUC of a logistic probe over stratified folds; without patients it is optimistic, for every encoder alike."""
    scores = np.zeros(len(vectors))
    for train, test in StratifiedKFold(folds, shuffle=True, random_state=0).split(vectors, is_positive):
        is_train = np.zeros(len(vectors), bool)
        is_train[train] = True
        scores[test] = _fit(vectors, is_positive, is_train)[test]
    return auc_over_units(scores, is_positive)


def _fit(vectors: Vectors, is_positive: Labels, is_train: Labels) -> NDArray[np.float64]:
    shift, scale = vectors[is_train].mean(0), vectors[is_train].std(0) + 1e-6
    scaled = ((vectors - shift) / scale).astype(np.float64)
    probe = LogisticRegression(C=0.01, max_iter=2000).fit(scaled[is_train], is_positive[is_train])
    scores: NDArray[np.float64] = probe.decision_function(scaled)
    return scores


def guess_slide(vectors: Vectors, slides: Labels, seed: int = 0) -> dict[str, float]:
    """How well a tile betrays its slide: nearest neighbour and linear probe, half of each slide's tiles held out."""
    rng = np.random.default_rng(seed)
    is_train = np.zeros(len(vectors), bool)
    for name in np.unique(slides):
        here = rng.permutation(np.flatnonzero(slides == name))
        is_train[here[: len(here) // 2]] = True
    known, asked = unit(vectors[is_train]), unit(vectors[~is_train])
    nearest = slides[is_train][np.argmax(asked @ known.T, axis=1)]
    probe = RidgeClassifier(PENALTY, solver="cholesky").fit(vectors[is_train], slides[is_train])
    return {
        "nearest": float((nearest == slides[~is_train]).mean()),
        "probe": float((probe.predict(vectors[~is_train]) == slides[~is_train]).mean()),
    }


def compare_perturbed(clean: Vectors, perturbed: Vectors) -> NDArray[np.float64]:
    """(n,) cosine between a tile's vector and that of its perturbed self, both centred on the clean mean."""
    mean = clean.mean(0)
    cosine: NDArray[np.float64] = np.sum(unit(clean - mean) * unit(perturbed - mean), axis=1, dtype=np.float64)
    return cosine
