"""Turn a head's logits into probabilities that mean what they say, and fit them to a site."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]
Floats = NDArray[np.float64]
# A head twenty times too sure or too unsure is broken, not miscalibrated: beyond, temperature hides the fault.
COLDEST, HOTTEST = 0.05, 20.0
MIN_CASES = 20  # with fewer, a site's temperature is uncertain by more than a factor of two
MIN_CLASS_CASES = 5  # with fewer, a class's bias says how those patients were chosen
BASE_WORTH = 50  # the base counts as much as this many of the site's cases
_FOLDS = 5
_RIDGE = 1e-3  # keeps the steps of a site's fit finite where classes are told apart without an error


@dataclass(frozen=True)
class Scaling:
    """How logits become probabilities: `softmax(logits / temperature + bias)`.

    Attributes:
        temperature: Above 1 makes less sure, below 1 surer; within [0.05, 20].
        bias: One for each class, summing to 0; empty for none.
    """

    temperature: float = 1.0
    bias: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        if not COLDEST <= self.temperature <= HOTTEST or not all(map(math.isfinite, self.bias)):
            raise ValueError(f"a temperature is within {COLDEST} and {HOTTEST}, a bias is finite; not {self}")

    def to_json(self) -> dict[str, Any]:
        """As a JSON object."""
        return {"temperature": self.temperature, "bias": list(self.bias)}

    @classmethod
    def from_json(cls, facts: Mapping[str, Any]) -> Scaling:
        """From what `to_json` gave."""
        return cls(float(facts["temperature"]), tuple(float(value) for value in facts["bias"]))


def fit_scaling(logits: Array, labels: Array) -> Scaling:
    """Temperature and, of a binary task, a bias that fit held-out cases best.

    A class-balanced training makes both answers equally likely beforehand, and a child's yes is multiplied with its
    parent's: a temperature alone can mend neither. Of several classes a bias each would rest on too few cases.

    Args:
        logits: (n, n_classes) of cases the head has not learnt from.
        labels: (n,) position of the true label; below 0 where it is unknown, which is left out.
    """
    if np.asarray(logits).shape[-1] > 2:
        return Scaling(fit_temperature(logits, labels))
    table, known = _keep_known(logits, labels)
    slope, bias = _fit_scaling(table, _lay_targets(known, 2, smooth=True), 1.0, np.zeros(2))
    temperature = float(np.clip(1 / slope, COLDEST, HOTTEST)) if slope > 0 else HOTTEST
    return Scaling(temperature, tuple((bias - bias.mean()).tolist()))


@dataclass(frozen=True)
class Recalibration:
    """What a site's own cases made of a head's scaling.

    Attributes:
        scaling: To be used at the site; the base itself where it was kept.
        is_changed: Whether it differs from the base.
        cases: The site's cases with a known label.
        gain: By how much it lowers the negative log-likelihood of the site's cases when each fifth is left out; 0
            where that was not tried.
        reason: What was done and why, in a sentence.
    """

    scaling: Scaling
    is_changed: bool
    cases: int
    gain: float
    reason: str


def apply_temperature(logits: Array, temperature: float) -> Floats:
    """(n, n_classes) probabilities.

    Args:
        logits: (n, n_classes), or (n,) of a binary task: the logit of yes.
        temperature: As `fit_temperature` gives it.
    """
    return apply_scaling(logits, Scaling(temperature))


def apply_scaling(logits: Array, scaling: Scaling) -> Floats:
    """(n, n_classes) probabilities of logits that are (n, n_classes), or (n,) of a binary task: the logit of yes."""
    table = _as_table(logits)
    return _softmax(table / scaling.temperature + np.asarray(scaling.bias or 0.0))


def fit_temperature(logits: Array, labels: Array, *, smooth_targets: bool = True) -> float:
    """The temperature that minimises the negative log-likelihood of held-out cases, within [0.05, 20].

    The likelihood is convex in 1 / temperature, so its slope is followed to zero by bisection: no start, no step size.

    Args:
        logits: (n, n_classes), or (n,) of a binary task: the logit of yes. Of cases the head has not learnt from.
        labels: (n,) position of the true label; below 0 where it is unknown, which is left out.
        smooth_targets: Of a class with m cases, aim at (m + 1) / (m + 2) instead of 1, the rest being shared. Without
            it a handful of cases that happen to be told apart without an error make the head sure of everything.

    Raises:
        ValueError: A logit is not finite, or no label is known.

    Source:
        Guo et al. 2017 for one temperature; Platt 1999 for the targets.
    """
    table, known = _keep_known(logits, labels)
    targets = _lay_targets(known, table.shape[1], smooth_targets)
    low, high = 1 / HOTTEST, 1 / COLDEST
    for _ in range(60):
        middle = math.sqrt(low * high)
        slope = float(((_softmax(middle * table) - targets) * table).sum())
        low, high = (middle, high) if slope < 0 else (low, middle)
    return float(np.clip(1 / math.sqrt(low * high), COLDEST, HOTTEST))


def recalibrate(
    logits: Array, labels: Array, *, base: Scaling, names: Sequence[str] = (), seed: int = 0
) -> Recalibration:
    """Fit a head's scaling to the cases of one site, as far as they allow.

    With fewer than 20 cases, or fewer than 5 of a class, the base is kept. Otherwise temperature (its logarithm) and
    biases move from the base towards the site's own by n / (n + 50). The move is tried on each fifth of the cases with
    the rest, and undone unless it lowers their negative log-likelihood.

    Args:
        logits: (n, n_classes), or (n,) of a binary task, of the site's cases; none of them learnt from.
        labels: (n,) position of the true label; below 0 where it is unknown.
        base: The head's own scaling.
        names: Labels, for the reason in words.
        seed: Decides the fifths.

    Raises:
        ValueError: A logit is not finite, or no label is known.
    """
    table, known = _keep_known(logits, labels)
    classes, count = table.shape[1], len(known)
    lacking = _say_what_is_lacking(known, classes, names)
    if lacking:
        return Recalibration(base, False, count, 0.0, f"The head's own scaling is kept: {lacking}.")
    of_fold = _deal_folds(known, seed)
    before = _losses(table, known, base)
    after = np.empty(count)
    for fold in range(_FOLDS):
        out = of_fold == fold
        after[out] = _losses(table[out], known[out], _move(base, table[~out], known[~out]))
    gain = float((before - after).mean())
    if gain <= 0:
        reason = (
            f"The head's own scaling is kept: fitted to four fifths of the {count} cases of this site, "
            f"another describes the last fifth no better."
        )
        return Recalibration(base, False, count, gain, reason)
    scaling = _move(base, table, known)
    reason = (
        f"Fitted to {count} cases of this site, which count for {count / (count + BASE_WORTH):.0%}: "
        f"temperature {base.temperature:.2f} became {scaling.temperature:.2f}."
    )
    return Recalibration(scaling, True, count, gain, reason)


def _say_what_is_lacking(labels: Array, classes: int, names: Sequence[str]) -> str:
    if len(labels) < MIN_CASES:
        return f"this site has {len(labels)} cases with a known label, {MIN_CASES} are needed"
    rarest = int(np.bincount(labels, minlength=classes).argmin())
    rare_cases = int((labels == rarest).sum())
    if rare_cases < MIN_CLASS_CASES:
        name = names[rarest] if names else f"class {rarest}"
        return f"this site has {rare_cases} cases of {name}, {MIN_CLASS_CASES} of each label are needed"
    return ""


def _move(base: Scaling, logits: Floats, labels: Array) -> Scaling:
    """From the base towards the scaling that fits these cases best, by the weight of their number."""
    classes = logits.shape[1]
    start = np.asarray(base.bias or np.zeros(classes))
    slope, bias = _fit_scaling(logits, _lay_targets(labels, classes, smooth=True), 1 / base.temperature, start)
    own = float(np.clip(1 / slope, COLDEST, HOTTEST)) if slope > 0 else HOTTEST
    weight = len(labels) / (len(labels) + BASE_WORTH)
    temperature = math.exp(weight * math.log(own) + (1 - weight) * math.log(base.temperature))
    moved = weight * bias + (1 - weight) * start
    return Scaling(float(np.clip(temperature, COLDEST, HOTTEST)), tuple((moved - moved.mean()).tolist()))


def _fit_scaling(logits: Floats, targets: Floats, slope: float, bias: Floats) -> tuple[float, Floats]:
    """Slope (1 / temperature) and biases that fit best, by Newton's steps, each halved until it helps."""
    classes = logits.shape[1]
    # one column of ones for each bias beside the logits: (n, n_classes, 1 + n_classes)
    design = np.concatenate([logits[:, :, None], np.broadcast_to(np.eye(classes), (*logits.shape, classes))], axis=2)
    start = np.concatenate([[slope], bias])

    def measure(point: Floats) -> float:
        logarithm = _log_softmax(design @ point)
        return float(-(targets * logarithm).sum(axis=1).mean() + _RIDGE / 2 * ((point - start) ** 2).sum())

    point, value = start, measure(start)
    for _ in range(50):
        said = _softmax(design @ point)
        gradient = np.einsum("nk,nkp->p", said - targets, design) / len(logits) + _RIDGE * (point - start)
        mean = np.einsum("nk,nkp->np", said, design)
        curvature = np.einsum("nk,nkp,nkq->pq", said, design, design, optimize=True) - mean.T @ mean
        step = np.linalg.solve(curvature / len(logits) + _RIDGE * np.eye(len(point)), gradient)
        for _ in range(30):
            tried = measure(point - step)
            if tried <= value:
                break
            step /= 2
        else:
            break
        point, value = point - step, tried
        if float(np.abs(step).max()) < 1e-9:
            break
    return float(point[0]), np.asarray(point[1:])


def _deal_folds(labels: Array, seed: int) -> Array:
    """(n,) fold of each case, every class dealt out evenly."""
    random, of_fold = np.random.default_rng(seed), np.empty(len(labels), np.int64)
    for one in np.unique(labels):
        rows = random.permutation(np.flatnonzero(labels == one))
        of_fold[rows] = (np.arange(len(rows)) + random.integers(_FOLDS)) % _FOLDS
    return of_fold


def _lay_targets(labels: Array, classes: int, smooth: bool) -> Floats:
    truth = np.eye(classes)[labels]
    if not smooth:
        return truth
    count = np.bincount(labels, minlength=classes)[labels][:, None]
    return np.asarray(np.where(truth > 0, (count + 1) / (count + 2), 1 / (count + 2) / (classes - 1)))


def _losses(logits: Floats, labels: Array, scaling: Scaling) -> Floats:
    said = apply_scaling(logits, scaling)[np.arange(len(labels)), labels]
    return np.asarray(-np.log(np.maximum(said, 1e-12)))


def _softmax(logits: Floats) -> Floats:
    return np.asarray(np.exp(_log_softmax(logits)))


def _log_softmax(logits: Floats) -> Floats:
    lowered = logits - logits.max(axis=1, keepdims=True)
    return np.asarray(lowered - np.log(np.exp(lowered).sum(axis=1, keepdims=True)))


def _as_table(logits: Array) -> Floats:
    table = np.asarray(logits, np.float64)
    if table.ndim == 1:
        table = np.stack([np.zeros_like(table), table], axis=1)
    if table.ndim != 2 or table.shape[1] < 2:
        raise ValueError(f"logits are (n, n_classes), or (n,) of a binary task; not {table.shape}")
    if not np.isfinite(table).all():
        raise ValueError(
            f"logits of {int((~np.isfinite(table)).any(axis=1).sum())} of {len(table)} cases are not finite"
        )
    return table


def _keep_known(logits: Array, labels: Array) -> tuple[Floats, NDArray[np.int64]]:
    table, positions = _as_table(logits), np.asarray(labels, np.int64)
    if len(table) != len(positions) or positions.max(initial=-1) >= table.shape[1]:
        raise ValueError("each case has one label, a position among the classes")
    if not (positions >= 0).any():
        raise ValueError("no case has a known label")
    return table[positions >= 0], positions[positions >= 0]
