"""Gated attention over a bag (ABMIL), computed in numpy: the weights, and what they make of a slide's tiles."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from slideway.core.opinion import Kind, TaskQuestion

Floats = NDArray[np.float32]
_ROWS = 4_096  # tiles a pass: their activations stay in the processor's cache


@dataclass(frozen=True)
class Projection:
    """The low-rank input layer: vectors seen from the centre of the training tiles, on their main axes.

    Attributes:
        mean: (width,) centre.
        axes: (width, rank) main axes, scaled so that the training tiles have a mean variance of 1.
    """

    mean: Floats
    axes: Floats

    def __call__(self, vectors: NDArray[Any]) -> Floats:
        """(n, rank) float32; a vector that is not finite is put into the centre, at exactly 0."""
        shift = self.mean @ self.axes
        parts = [np.empty((0, self.axes.shape[1]), np.float32)]
        for start in range(0, len(vectors), _ROWS):
            rows = vectors[start : start + _ROWS].astype(np.float32)
            with np.errstate(invalid="ignore"):  # +inf and -inf in one sum
                is_whole = np.isfinite(rows.sum())  # one pass over the numbers: any that is not finite shows
            if not is_whole:
                is_broken = ~np.isfinite(rows).all(axis=1)
                rows[is_broken] = self.mean
            parts.append(rows @ self.axes - shift)
            if not is_whole:
                parts[-1][is_broken] = 0
        return np.concatenate(parts)


@dataclass(frozen=True)
class Member:
    """One trained network; several, trained from different seeds, make a head.

    Attributes:
        hidden: (rank, hidden) and (hidden,).
        tanh: (hidden, attention) and (attention,): what a tile shows.
        gate: (hidden, attention) and (attention,): whether that counts.
        score: (attention,) towards the tile's attention.
        tasks: For each task its (hidden, outputs) and (outputs,).
    """

    hidden: tuple[Floats, Floats]
    tanh: tuple[Floats, Floats]
    gate: tuple[Floats, Floats]
    score: Floats
    tasks: Mapping[str, tuple[Floats, Floats]]


@dataclass(frozen=True)
class Abmil:
    """The networks of one head.

    Attributes:
        projection: Input layer, the same for all members.
        members: Networks whose outputs are averaged.
        questions: What is asked, parents before children.
    """

    projection: Projection
    members: tuple[Member, ...]
    questions: tuple[TaskQuestion, ...]

    @property
    def parameters(self) -> int:
        """How many numbers the head holds."""
        fields = [self.projection.mean, self.projection.axes]
        for member in self.members:
            fields += [*member.hidden, *member.tanh, *member.gate, member.score]
            fields += [part for pair in member.tasks.values() for part in pair]
        return int(sum(field.size for field in fields))


@dataclass(frozen=True)
class BagScores:
    """What the networks make of one bag.

    Attributes:
        projected: (n_tiles, rank) the tiles behind the input layer.
        logits: For each task (outputs,), averaged over members.
        attention: (n_tiles,) averaged over members, summing to 1.
        push: For each task (n_tiles, outputs): what each tile adds to the logits, against the bag's plain mean tile:
            attention times difference. The columns sum to what attention changes, beside pooling by the mean. Against
            the pooled tile, tiles of one lesion would share out zero among themselves, some with the wrong sign.
    """

    projected: Floats
    logits: Mapping[str, Floats]
    attention: Floats
    push: Mapping[str, Floats]


def score_bag(abmil: Abmil, vectors: NDArray[Any], weights: Floats | None = None) -> BagScores:
    """Run all members over a bag of (n_tiles, width) vectors, n_tiles at least 1."""
    return score_tiles_together(abmil, abmil.projection(vectors), weights)


def score_tiles_together(abmil: Abmil, projected: Floats, weights: Floats | None = None) -> BagScores:
    """Run all members over the tiles of a bag.

    Args:
        abmil: The networks.
        projected: (n_tiles, rank) tiles behind the input layer, n_tiles at least 1.
        weights: (n_tiles,) how many tiles of the tissue each stands for; None means 1 each.
    """
    log_weights = None if weights is None else np.log(weights.astype(np.float32))
    stands_for = np.ones(len(projected), np.float32) if weights is None else weights.astype(np.float32)
    stands_for = stands_for / stands_for.sum(dtype=np.float64).astype(np.float32)
    attention = np.zeros(len(projected), np.float32)
    logits = {q.id: np.zeros(outputs_of(q), np.float32) for q in abmil.questions}
    push = {q.id: np.zeros((len(projected), outputs_of(q)), np.float32) for q in abmil.questions}
    for member in abmil.members:
        hidden, raw = _look(member, projected)
        share = _softmax(raw if log_weights is None else raw + log_weights)
        attention += share / len(abmil.members)
        pooled, mean_tile = share @ hidden, stands_for @ hidden
        for question in abmil.questions:
            matrix, bias = member.tasks[question.id]
            logits[question.id] += (pooled @ matrix + bias) / len(abmil.members)
            away = hidden @ matrix - mean_tile @ matrix
            push[question.id] += share[:, None] * away / len(abmil.members)
    return BagScores(projected, logits, attention, push)


def outputs_of(question: TaskQuestion) -> int:
    """How many numbers a network gives for a task: one for a binary one, the steps between for an ordered one."""
    if question.kind is Kind.BINARY:
        return 1
    return len(question.labels) - (question.kind is Kind.ORDINAL)


def to_probabilities(question: TaskQuestion, logits: NDArray[Any], temperature: float = 1.0) -> NDArray[np.float64]:
    """(..., n_labels) probabilities of the labels, from (..., outputs) logits.

    Of an ordered task, logit j is that of "above step j".
    """
    scaled = np.asarray(logits, np.float64) / temperature
    if question.kind is Kind.CLASSES:
        raised = np.exp(scaled - scaled.max(axis=-1, keepdims=True))
        shares: NDArray[np.float64] = raised / raised.sum(axis=-1, keepdims=True)
        return shares
    above = 1 / (1 + np.exp(-np.clip(scaled, -60, 60)))
    steps = np.concatenate([np.ones_like(above[..., :1]), above, np.zeros_like(above[..., :1])], axis=-1)
    between: NDArray[np.float64] = np.clip(steps[..., :-1] - steps[..., 1:], 0, 1)
    return between


def _look(member: Member, projected: Floats) -> tuple[Floats, Floats]:
    """Hidden activations and raw attention of every tile."""
    hidden = np.empty((len(projected), len(member.hidden[1])), np.float32)
    raw = np.empty(len(projected), np.float32)
    for start in range(0, len(projected), _ROWS):
        rows = slice(start, start + _ROWS)
        hidden[rows] = np.maximum(projected[rows] @ member.hidden[0] + member.hidden[1], 0)
        shown = np.tanh(hidden[rows] @ member.tanh[0] + member.tanh[1])
        # sigmoid(x) = (1 + tanh(x / 2)) / 2: numpy's tanh is vectorised and cannot overflow
        counts = np.tanh((hidden[rows] @ member.gate[0] + member.gate[1]) / 2)
        raw[rows] = (shown * (1 + counts)) @ (member.score / 2)
    return hidden, raw


def _softmax(raw: Floats) -> Floats:
    raised = np.exp(raw - raw.max())
    share: Floats = raised / raised.sum(dtype=np.float64).astype(np.float32)
    return share


def fit_projection(vectors: NDArray[Any], *, rank: int) -> Projection:
    """Main axes of training tiles; the axes' signs are fixed, so that the same tiles give the same layer."""
    mean = vectors.mean(axis=0, dtype=np.float64)
    centred = vectors.astype(np.float64) - mean
    variances, axes = np.linalg.eigh(centred.T @ centred / len(centred))
    main, held = axes[:, ::-1][:, :rank], variances[::-1][:rank]
    main = main * np.sign(main[np.abs(main).argmax(axis=0), np.arange(main.shape[1])])
    scale = np.sqrt(max(float(held.mean()), 1e-12))
    return Projection(mean.astype(np.float32), (main / scale).astype(np.float32))
