"""A head that scores each tile by itself and lets the highest tiles speak for the slide."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from slideway.core.opinion import TaskQuestion
from slideway.heads.abmil import BagScores, Floats, Projection

# The slide's logit is the mean of its highest tiles: of 1 %, so that a lesion of that size decides, but of no fewer
# than five, so that one odd tile does not.
TOP_SHARE = 0.01
LEAST_TOP = 5


@dataclass(frozen=True)
class InstanceScorer:
    """Logistic scores of single tiles.

    Attributes:
        projection: Input layer.
        tasks: For each binary task its (rank, 1) and (1,).
        questions: What is asked.
    """

    projection: Projection
    tasks: Mapping[str, tuple[Floats, Floats]]
    questions: tuple[TaskQuestion, ...]

    @property
    def parameters(self) -> int:
        """How many numbers the head holds."""
        learnt = [part for pair in self.tasks.values() for part in pair]
        return int(sum(field.size for field in (self.projection.mean, self.projection.axes, *learnt)))


def score_tiles(scorer: InstanceScorer, vectors: NDArray[Any], task: str) -> Floats:
    """(n_tiles,) logit of each tile."""
    matrix, bias = scorer.tasks[task]
    logits: Floats = (scorer.projection(vectors) @ matrix)[:, 0] + bias[0]
    return logits


def score_instances(scorer: InstanceScorer, projected: Floats, weights: Floats | None = None) -> BagScores:
    """Score a bag; its attention lies evenly on the highest tiles of the first task.

    Args:
        scorer: The head.
        projected: (n_tiles, rank) tiles behind the input layer, n_tiles at least 1.
        weights: (n_tiles,) how many tiles of the tissue each stands for; None means 1 each.
    """
    logits, push, looked_at = {}, {}, {}
    stands_for = np.ones(len(projected)) if weights is None else weights.astype(np.float64)
    share = stands_for / stands_for.sum()
    for question in scorer.questions:
        matrix, bias = scorer.tasks[question.id]
        each = (projected @ matrix)[:, 0] + bias[0]
        attention = _look_at_highest(each, stands_for)
        logits[question.id] = np.array([attention @ each], np.float32)
        push[question.id] = (share * (each - share @ each))[:, None].astype(np.float32)
        looked_at[question.id] = attention.astype(np.float32)
    return BagScores(projected, logits, looked_at[scorer.questions[0].id], push)


def _look_at_highest(each: Floats, stands_for: NDArray[np.float64]) -> NDArray[np.float64]:
    """(n_tiles,) summing to 1: evenly on the tissue's highest tiles; of a tile that stands for several, what fits."""
    total = stands_for.sum()
    wanted = min(total, max(LEAST_TOP, round(TOP_SHARE * total)))
    order = np.argsort(-each, kind="stable")
    before = np.cumsum(stands_for[order]) - stands_for[order]
    attention = np.zeros(len(each))
    attention[order] = np.clip(wanted - before, 0, stands_for[order]) / wanted
    return attention
