"""What a head must beat: logistic regression on the mean tile, and the nearest known cases."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler

from slideway.core.bag import EmbeddingBag
from slideway.core.opinion import Kind, TaskQuestion
from slideway.heads.abmil import outputs_of
from slideway.learning.questions import UNKNOWN

_STRENGTH = 0.01  # of the regression: hundreds of numbers a case, and few cases
_NEAREST = 5
_ROWS = 8_192
_NEVER = -30.0  # logit of a label that no training case has

Array = NDArray[Any]
Floats = NDArray[np.float64]


def pool_mean(bag: EmbeddingBag) -> Floats:
    """(width,) mean tile of a bag; tiles that stand for several count for them, those that are no numbers for none."""
    total, weights = np.zeros(bag.width), bag.weights.astype(np.float64)
    for start in range(0, len(bag), _ROWS):
        rows, own = bag.vectors[start : start + _ROWS].astype(np.float32), weights[start : start + _ROWS]
        is_broken = ~np.isfinite(rows).all(axis=1)
        rows[is_broken], own[is_broken] = 0, 0
        total += own @ rows
    mean: Floats = total / max(weights.sum(), 1e-12)
    return mean


def judge_by_mean(question: TaskQuestion, known: Array, labels: Array, asked: Array) -> Floats:
    """(n_asked, outputs) logits of a class-balanced logistic regression on mean tiles.

    Args:
        question: What is asked.
        known: (n, width) mean tiles to learn from.
        labels: (n,) their labels, -1 where unknown.
        asked: (n_asked, width) mean tiles to judge.
    """
    is_known = labels != UNKNOWN
    scaler = StandardScaler().fit(known[is_known])
    model = LogisticRegression(C=_STRENGTH, class_weight="balanced", max_iter=5_000)
    model.fit(scaler.transform(known[is_known]), labels[is_known])
    shares = model.predict_proba(scaler.transform(asked))  # of an extreme case exactly 0, whose logarithm is none
    return _as_logits(question, np.log(np.maximum(shares, np.exp(_NEVER))), model.classes_)


def judge_by_neighbours(question: TaskQuestion, known: Array, labels: Array, asked: Array) -> Floats:
    """(n_asked, outputs) logits from the labels of the five nearest mean tiles (cosine from the known cases' centre).

    Each neighbour votes by its likeness, divided by how common its label is.
    """
    is_known = labels != UNKNOWN
    centre, spread = known[is_known].mean(axis=0), known[is_known].std(axis=0) + 1e-6
    cosine = _unit((asked - centre) / spread) @ _unit((known[is_known] - centre) / spread).T
    classes, held = np.unique(labels[is_known], return_counts=True)
    votes = np.full((len(asked), len(classes)), 0.05)  # nothing is excluded by five neighbours
    for row, likeness in zip(votes, cosine, strict=True):
        for i in np.argsort(-likeness, kind="stable")[:_NEAREST]:
            place = int(np.searchsorted(classes, labels[is_known][i]))
            row[place] += (1 + likeness[i]) / held[place] * held.mean()
    return _as_logits(question, np.log(votes / votes.sum(axis=1, keepdims=True)), classes)


def _unit(vectors: Array) -> Array:
    directions: Array = vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)
    return directions


def _as_logits(question: TaskQuestion, log_shares: Array, classes: Array) -> Floats:
    """Logits in the form that a head gives, from log-probabilities of those labels that the training cases have."""
    every = np.full((len(log_shares), len(question.labels)), _NEVER)
    every[:, classes] = np.maximum(log_shares, _NEVER)
    if question.kind is Kind.CLASSES:
        return every
    shares = np.exp(every)
    above = np.cumsum(shares[:, ::-1], axis=1)[:, ::-1][:, 1:]
    logits: Floats = np.log(np.maximum(above, 1e-12)) - np.log(
        np.maximum(shares.sum(axis=1, keepdims=True) - above, 1e-12)
    )
    assert logits.shape[1] == outputs_of(question)
    return logits
