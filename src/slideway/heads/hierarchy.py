"""From a network's numbers to probabilities: parents first, and a child's yes only as likely as its parent's."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from slideway.core.opinion import Kind, TaskQuestion
from slideway.heads.abmil import to_probabilities
from slideway.heads.calibration import Scaling, apply_scaling

Probabilities = NDArray[np.float64]
_LEAST = 1e-9  # probability that a logarithm is taken of


def join_questions(questions: Sequence[TaskQuestion], logits: Mapping[str, NDArray[Any]]) -> dict[str, Probabilities]:
    """Logarithms of the probabilities of all labels of all tasks, before calibration.

    A binary child ("malignant?", asked of what is neoplastic) is learnt from bags whose parent's answer is yes, so its
    yes is multiplied with the parent's. Classes and grades are given as they are: they hold if the parent's answer is
    yes.

    Args:
        questions: Parents before children.
        logits: For each task (n, outputs).

    Returns:
        For each task (n, n_labels); what is calibrated.
    """
    answers: dict[str, Probabilities] = {}
    for question in questions:
        own = to_probabilities(question, logits[question.id])
        if question.kind is Kind.BINARY and question.parent in answers:
            yes = own[..., 1] * answers[question.parent][..., 1]
            own = np.stack([1 - yes, yes], axis=-1)
        answers[question.id] = own
    return {task: np.log(np.maximum(own, _LEAST)) for task, own in answers.items()}


def calibrate_questions(
    questions: Sequence[TaskQuestion], joined: Mapping[str, Probabilities], scalings: Mapping[str, Scaling]
) -> dict[str, Probabilities]:
    """Calibrated probabilities of all tasks; a child's yes stays at most as likely as its parent's.

    Args:
        questions: Parents before children.
        joined: As `join_questions` gives it.
        scalings: For each task; left as it is where none is given.

    Returns:
        For each task (n, n_labels).
    """
    answers: dict[str, Probabilities] = {}
    for question in questions:
        own = apply_scaling(joined[question.id], scalings.get(question.id, Scaling()))
        if question.kind is Kind.BINARY and question.parent in answers:
            yes = np.minimum(own[:, 1], answers[question.parent][:, 1])
            own = np.stack([1 - yes, yes], axis=1)
        answers[question.id] = own
    return answers
