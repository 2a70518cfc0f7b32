"""Say which labels cannot be excluded, so that each class's true label is kept as often as promised."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]
Floats = NDArray[np.float64]
_EQUAL = 1e-9  # 1 / 20 against 0.05 written in two ways: far finer than any p-value's step


@dataclass(frozen=True)
class ConformalCalibration:
    """Nonconformity (1 - probability of the true label) of calibration cases, apart for each class (Mondrian).

    Attributes:
        scores: For each class (n_class_cases,) float64, ascending, of all sites together.
        sites: For each class, how many sites its cases come from; 0 where that is not known.
    """

    scores: tuple[Floats, ...]
    sites: tuple[int, ...]

    def __post_init__(self) -> None:
        if len(self.scores) != len(self.sites) or len(self.scores) < 2:
            raise ValueError(
                "a conformal calibration has scores and a number of sites for each of at least two classes"
            )

    @property
    def cases(self) -> tuple[int, ...]:
        """Calibration cases of each class."""
        return tuple(len(of_class) for of_class in self.scores)

    def is_certifiable(self, alpha: float) -> NDArray[np.bool_]:
        """(n_classes,) whether a class has enough cases to be excluded at all at an error rate.

        With fewer than `ceil(1 / alpha) - 1` cases no p-value can fall to `alpha`: the class is in every set.
        """
        return np.array([count >= count_needed(alpha) for count in self.cases])

    def to_arrays(self) -> dict[str, Array]:
        """As named arrays, to be stored."""
        return {
            "scores": np.concatenate(self.scores),
            "cases": np.array(self.cases, np.int64),
            "sites": np.array(self.sites, np.int64),
        }

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, Array]) -> ConformalCalibration:
        """From what `to_arrays` gave.

        Raises:
            KeyError: An array is missing.
            ValueError: The arrays do not belong together.
        """
        scores, cases = np.asarray(arrays["scores"], np.float64), np.asarray(arrays["cases"], np.int64)
        if cases.sum() != len(scores):
            raise ValueError(f"{len(scores)} scores cannot be shared out as {cases.tolist()}")
        parts = np.split(scores, np.cumsum(cases)[:-1])
        return cls(tuple(np.sort(part) for part in parts), tuple(int(count) for count in arrays["sites"]))


def count_needed(alpha: float) -> int:
    """Calibration cases that a class needs before it can be excluded at an error rate in (0, 1)."""
    return math.ceil(1 / alpha - _EQUAL) - 1


def calibrate(probabilities: Array, labels: Array, sites: Sequence[Any] | None = None) -> ConformalCalibration:
    """Calibrate on held-out cases of all sites together.

    Args:
        probabilities: (n, n_classes) of cases the head has not learnt from.
        labels: (n,) position of the true label; below 0 where it is unknown, which is left out.
        sites: (n,) site of each case, only counted; None where it is not known.
    """
    scores, known = _score(probabilities, labels)
    classes = range(np.asarray(probabilities).shape[1])
    own = scores[np.arange(len(known)), known]
    names = None if sites is None else np.asarray(sites)[np.asarray(labels, np.int64) >= 0]
    return ConformalCalibration(
        tuple(np.sort(own[known == one]) for one in classes),
        tuple(0 if names is None else len(set(names[known == one].tolist())) for one in classes),
    )


def calibrate_marginal(probabilities: Array, labels: Array) -> ConformalCalibration:
    """Calibrate with all classes in one: coverage then holds on average only, and a rare class may be missed."""
    scores, known = _score(probabilities, labels)
    own = np.sort(scores[np.arange(len(known)), known])
    classes = np.asarray(probabilities).shape[1]
    return ConformalCalibration((own,) * classes, (0,) * classes)


def p_values(calibration: ConformalCalibration, probabilities: Array) -> Floats:
    """(n, n_classes): how usual a case would be among the calibration cases of each class, were it one of them.

    Not smoothed: equal scores count fully, so the promise holds without a random number. A class without a calibration
    case has 1 throughout.

    Args:
        calibration: Of the head.
        probabilities: (n, n_classes).

    Source:
        Vovk, Gammerman and Shafer, Algorithmic Learning in a Random World, label-conditional Mondrian predictor; the
        tests hold it against the package `crepes`.
    """
    scores = 1 - _as_table(probabilities, len(calibration.scores))
    found = np.empty(scores.shape)
    for one, known in enumerate(calibration.scores):
        at_least = len(known) - np.searchsorted(known, scores[:, one], side="left")
        found[:, one] = (at_least + 1) / (len(known) + 1)
    return found


def prediction_sets(values: Array, alpha: float) -> NDArray[np.bool_]:
    """(n, n_classes) bool, True where a label cannot be excluded at error rate `alpha`: its p-value is above it."""
    if not 0 < alpha < 1:
        raise ValueError(f"an error rate is between 0 and 1, not {alpha}")
    return np.asarray(np.asarray(values) > alpha + _EQUAL)


def _score(probabilities: Array, labels: Array) -> tuple[Floats, NDArray[np.int64]]:
    positions = np.asarray(labels, np.int64)
    table = _as_table(probabilities, None)
    if len(table) != len(positions) or positions.max(initial=-1) >= table.shape[1]:
        raise ValueError("each case has one label, a position among the classes")
    return 1 - table[positions >= 0], positions[positions >= 0]


def _as_table(probabilities: Array, classes: int | None) -> Floats:
    table = np.asarray(probabilities, np.float64)
    if table.ndim != 2 or table.shape[1] != (classes or table.shape[1]):
        raise ValueError(f"probabilities are (n, {classes or 'n_classes'}), not {table.shape}")
    if not ((table >= 0) & (table <= 1)).all():
        raise ValueError("probabilities are finite and within 0 and 1")
    return table
