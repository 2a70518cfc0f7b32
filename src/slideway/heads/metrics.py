"""Say how well a head does, each figure with its interval over cases."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from slideway.registry.head_records import Bounds

DRAWS = 2_000  # of a bootstrap: the ends of a 95 % interval then rest on 50 draws each
ECE_BINS = 10
Array = NDArray[Any]
Floats = NDArray[np.float64]


@dataclass(frozen=True)
class OperatingPoint:
    """Sensitivity where a chosen specificity is reached.

    Attributes:
        threshold: A case with this score or more is called positive.
        sensitivity: Share of positive cases called positive; its interval includes the choice of the threshold.
        specificity: Share of negative cases not called positive, at this threshold.
    """

    threshold: float
    sensitivity: Bounds
    specificity: Bounds


@dataclass(frozen=True)
class SetFigures:
    """What prediction sets hold.

    Attributes:
        coverage: Share of cases whose true label is in their set, by class.
        size: (n_classes,) mean number of labels in the sets of each class's cases; not a number without cases.
        overall_coverage: The same over all cases.
        mean_size: Mean number of labels over all cases.
        empty: Share of empty sets, in [0, 1].
        single: Share of sets of one label, in [0, 1].
    """

    coverage: tuple[Bounds, ...]
    size: Floats
    overall_coverage: Bounds
    mean_size: float
    empty: float
    single: float


@dataclass(frozen=True)
class MissedFigures:
    """Malignant cases that got through: not referred, and not called malignant.

    Attributes:
        missed: How many.
        of_unreferred: Share of all cases that were not referred, with its exact interval.
        of_positive: Share of the malignant cases that were not referred, with its exact interval.
        of_unreferred_below: With 95 % confidence the share of all unreferred cases is below this (one-sided).
        of_positive_below: The same of the malignant ones.
        referred: Share of all cases that were referred.
    """

    missed: int
    of_unreferred: Bounds
    of_positive: Bounds
    of_unreferred_below: float
    of_positive_below: float
    referred: Bounds


def wilson_interval(hits: float, total: float, *, confidence: float = 0.95) -> Bounds:
    """Wilson's score interval of a share; of nothing it is 0 to 1."""
    if total <= 0:
        return Bounds(0.0, 0.0, 1.0)
    z = _normal_quantile((1 + confidence) / 2)
    share = hits / total
    centre = (share + z * z / (2 * total)) / (1 + z * z / total)
    half = z / (1 + z * z / total) * math.sqrt(share * (1 - share) / total + z * z / (4 * total * total))
    return Bounds(share, max(0.0, centre - half) if hits else 0.0, min(1.0, centre + half) if hits < total else 1.0)


def exact_interval(hits: float, total: float, *, confidence: float = 0.95) -> Bounds:
    """Clopper and Pearson's interval of a share; of nothing it is 0 to 1, around a share of 0."""
    if total <= 0:
        return Bounds(0.0, 0.0, 1.0)
    tail = (1 - confidence) / 2
    low = beta_quantile(tail, hits, total - hits + 1) if hits > 0 else 0.0
    return Bounds(hits / total, low, bound_share(hits, total, confidence=1 - tail))


def bound_share(hits: float, total: float, *, confidence: float = 0.95) -> float:
    """Clopper and Pearson's one-sided upper bound of a share; 1 when there is nothing to rest it on."""
    return beta_quantile(confidence, hits + 1, total - hits) if hits < total else 1.0


def beta_quantile(probability: float, a: float, b: float) -> float:
    """Where the cumulative beta distribution of parameters `a`, `b` (above 0) reaches a probability, by bisection."""
    low, high = 0.0, 1.0
    for _ in range(100):
        middle = (low + high) / 2
        if middle in (low, high):
            break
        if incomplete_beta(middle, a, b) < probability:
            low = middle
        else:
            high = middle
    return (low + high) / 2


def incomplete_beta(x: float, a: float, b: float) -> float:
    """Regularised incomplete beta function, the cumulative beta distribution at `x` in [0, 1].

    Source:
        Continued fraction of DLMF 8.17.22, evaluated by Lentz's method.
    """
    if x <= 0 or x >= 1:
        return 0.0 if x <= 0 else 1.0
    if x > (a + 1) / (a + b + 2):  # the fraction converges fast only below the mean
        return 1 - incomplete_beta(1 - x, b, a)
    log_front = math.lgamma(a + b) - math.lgamma(a) - math.lgamma(b) + a * math.log(x) + b * math.log1p(-x)
    return math.exp(log_front) * _beta_fraction(x, a, b) / a


def _beta_fraction(x: float, a: float, b: float) -> float:
    tiny = 1e-300
    c, d = 1.0, 1 / _away_from_zero(1 - (a + b) * x / (a + 1), tiny)
    value = d
    for m in range(1, 100_000):
        even = m * (b - m) * x / ((a + 2 * m - 1) * (a + 2 * m))
        odd = -(a + m) * (a + b + m) * x / ((a + 2 * m) * (a + 2 * m + 1))
        for term in (even, odd):
            d = 1 / _away_from_zero(1 + term * d, tiny)
            c = _away_from_zero(1 + term / c, tiny)
            value *= c * d
        if abs(c * d - 1) < 1e-15:
            break
    return value


def _away_from_zero(x: float, tiny: float) -> float:
    return x if abs(x) > tiny else tiny


def _normal_quantile(probability: float) -> float:
    low, high = -40.0, 40.0
    for _ in range(200):
        middle = (low + high) / 2
        low, high = (middle, high) if 0.5 * math.erfc(-middle / math.sqrt(2)) < probability else (low, middle)
    return (low + high) / 2


def auroc(scores: Array, positive: Array) -> float:
    """Chance that a positive case scores higher than a negative one; ties count half.

    Raises:
        ValueError: All cases are positive, or all negative.
    """
    scores, positive = np.asarray(scores, np.float64), np.asarray(positive, bool)
    _require_both(scores, positive)
    negatives = np.sort(scores[~positive])
    below = np.searchsorted(negatives, scores[positive], "left") + np.searchsorted(negatives, scores[positive], "right")
    return float(below.mean() / 2 / len(negatives))


def measure_auroc(
    scores: Array, positive: Array, *, cases: Sequence[Any] | None = None, draws: int = DRAWS, seed: int = 0
) -> Bounds:
    """AUROC with its 95 % interval.

    The interval is the wider, at either end, of a bootstrap over cases (positive and negative ones drawn apart) and
    of a score interval: a bootstrap alone says 1 to 1 when a handful of cases happens to be told apart without error.

    Args:
        scores: (n,) higher for positive.
        positive: (n,) bool.
        cases: (n,) case of each row, drawn as a whole; None when each row is a case of its own.
        draws: Draws of the bootstrap.
        seed: Decides the draws.

    Source:
        Newcombe, Statistics in Medicine 25 (2006) 559–573, method 5, for the score interval (from memory; the tests
        hold its coverage against simulated data).
    """
    scores, positive = np.asarray(scores, np.float64), np.asarray(positive, bool)
    value = auroc(scores, positive)
    drawn = _bootstrap(lambda rows: auroc(scores[rows], positive[rows]), positive, cases, draws, seed)
    n_positive, n_negative = _count_cases(positive, cases)
    low, high = _score_auroc(value, n_positive, n_negative)
    return Bounds(value, min(low, float(np.quantile(drawn, 0.025))), max(high, float(np.quantile(drawn, 0.975))))


def _score_auroc(value: float, n_positive: int, n_negative: int) -> tuple[float, float]:
    z, half = _normal_quantile(0.975), (n_positive + n_negative) / 2 - 1

    def is_inside(theta: float) -> bool:
        spread = 1 + half * ((1 - theta) / (2 - theta) + theta / (1 + theta))
        return abs(theta - value) <= z * math.sqrt(max(0.0, theta * (1 - theta) * spread / (n_positive * n_negative)))

    ends = []
    for outside in (0.0, 1.0):
        far, near = outside, value
        for _ in range(60):
            middle = (far + near) / 2
            far, near = (far, middle) if is_inside(middle) else (middle, near)
        ends.append(near if not math.isclose(near, outside, abs_tol=1e-12) else outside)
    return ends[0], ends[1]


def measure_sensitivity(
    scores: Array,
    positive: Array,
    *,
    specificity: float,
    cases: Sequence[Any] | None = None,
    draws: int = DRAWS,
    seed: int = 0,
) -> OperatingPoint:
    """Sensitivity at the lowest threshold that reaches a specificity, with 95 % intervals.

    Both intervals are exact ones for that many cases; that of the sensitivity is widened to a bootstrap that chooses
    the threshold anew in every draw.

    Args:
        scores: (n,) higher for positive.
        positive: (n,) bool.
        specificity: To be reached on these very cases, in (0, 1].
        cases: (n,) case of each row; None when each row is a case of its own.
        draws: Draws of the bootstrap.
        seed: Decides the draws.
    """
    scores, positive = np.asarray(scores, np.float64), np.asarray(positive, bool)
    _require_both(scores, positive)

    def find_sensitivity(rows: Array) -> float:
        chosen, truth = scores[rows], positive[rows]
        return float((chosen[truth] >= _find_threshold(chosen[~truth], specificity)).mean())

    threshold = _find_threshold(scores[~positive], specificity)
    n_positive, n_negative = _count_cases(positive, cases)
    drawn = _bootstrap(find_sensitivity, positive, cases, draws, seed)
    exact = exact_interval(float((scores[positive] >= threshold).mean()) * n_positive, n_positive)
    sensitivity = Bounds(
        exact.value,
        min(exact.low, float(np.quantile(drawn, 0.025))),
        max(exact.high, float(np.quantile(drawn, 0.975))),
    )
    reached = exact_interval(float((scores[~positive] < threshold).mean()) * n_negative, n_negative)
    return OperatingPoint(threshold, sensitivity, reached)


def _find_threshold(negatives: Floats, specificity: float) -> float:
    """Lowest threshold below which at least that share of the negatives lies."""
    ordered = np.sort(negatives)
    needed = math.ceil(specificity * len(ordered) - 1e-9)
    return float(np.nextafter(ordered[needed - 1], np.inf)) if needed else -math.inf


def calibration_error(probabilities: Array, labels: Array, *, bins: int = ECE_BINS, equal_width: bool = False) -> float:
    """Expected calibration error of the leading label, in [0, 1].

    Args:
        probabilities: (n, n_classes), summing to 1.
        labels: (n,) position of the true label.
        bins: Number of bins.
        equal_width: Bins of equal width in [0, 1]; else of equally many cases, which a hundred cases fill better.
    """
    probabilities, labels = _as_table(probabilities, labels)
    confidence, is_right = probabilities.max(axis=1), probabilities.argmax(axis=1) == labels
    if equal_width:
        of_bin = np.minimum((confidence * bins).astype(int), bins - 1)
        parts = [np.flatnonzero(of_bin == one) for one in range(bins)]
    else:
        parts = np.array_split(np.argsort(confidence, kind="stable"), bins)
    gaps = [len(part) * abs(confidence[part].mean() - is_right[part].mean()) for part in parts if len(part)]
    return float(sum(gaps) / len(labels))


def brier_score(probabilities: Array, labels: Array) -> float:
    """Mean squared distance of probabilities from the truth, in [0, 2]; of two classes that of one, in [0, 1]."""
    probabilities, labels = _as_table(probabilities, labels)
    truth = np.eye(probabilities.shape[1])[labels]
    distance = float(((probabilities - truth) ** 2).sum(axis=1).mean())
    return distance / 2 if probabilities.shape[1] == 2 else distance


def negative_log_likelihood(probabilities: Array, labels: Array) -> float:
    """Mean of minus the logarithm of the true label's probability; probabilities below 1e-12 count as that."""
    probabilities, labels = _as_table(probabilities, labels)
    return float(-np.log(np.maximum(probabilities[np.arange(len(labels)), labels], 1e-12)).mean())


def measure_sets(sets: Array, labels: Array) -> SetFigures:
    """Coverage and size of prediction sets, over all cases and by class.

    Args:
        sets: (n, n_classes) bool, True where a label is in the set.
        labels: (n,) position of the true label.
    """
    sets, labels = np.asarray(sets, bool), np.asarray(labels, np.int64)
    if sets.ndim != 2 or len(sets) != len(labels) or not len(labels):
        raise ValueError("sets are (n, n_classes), with one label for each and at least one case")
    is_covered, size = sets[np.arange(len(labels)), labels], sets.sum(axis=1)
    classes = [labels == one for one in range(sets.shape[1])]
    return SetFigures(
        coverage=tuple(exact_interval(int(is_covered[of].sum()), int(of.sum())) for of in classes),
        size=np.array([size[of].mean() if of.any() else math.nan for of in classes]),
        overall_coverage=exact_interval(int(is_covered.sum()), len(labels)),
        mean_size=float(size.mean()),
        empty=float((size == 0).mean()),
        single=float((size == 1).mean()),
    )


def trace_risk(confidence: Array, is_wrong: Array) -> tuple[Floats, Floats]:
    """Share answered and share wrong of the answered, as ever less certain cases are answered.

    Cases of equal confidence are answered in every order at once: their errors are spread evenly over them.

    Args:
        confidence: (n,) higher is more certain.
        is_wrong: (n,) bool.
    """
    confidence, is_wrong = np.asarray(confidence, np.float64), np.asarray(is_wrong, np.float64)
    _, group = np.unique(-confidence, return_inverse=True)
    mean_wrong = np.bincount(group, is_wrong) / np.bincount(group)
    errors = np.cumsum(mean_wrong[np.sort(group)])
    answered = np.arange(1, len(confidence) + 1)
    return answered / len(confidence), errors / answered


def measure_aurc(confidence: Array, is_wrong: Array) -> float:
    """Area under the risk-coverage curve, in [0, 1]: the mean share of errors over all shares answered."""
    return float(trace_risk(confidence, is_wrong)[1].mean())


def measure_missed(positive: Array, referred: Array, called_positive: Array) -> MissedFigures:
    """Malignant cases that were neither referred nor called malignant, with Clopper–Pearson bounds.

    Args:
        positive: (n,) bool, the truth.
        referred: (n,) bool, sent to a person, or not readable.
        called_positive: (n,) bool, the answer is malignant, or a set that holds a malignant label.
    """
    positive, referred, called = (np.asarray(part, bool) for part in (positive, referred, called_positive))
    unreferred = int((~referred).sum())
    unreferred_positive = int((positive & ~referred).sum())
    missed = int((positive & ~referred & ~called).sum())
    return MissedFigures(
        missed,
        exact_interval(missed, unreferred),
        exact_interval(missed, unreferred_positive),
        bound_share(missed, unreferred),
        bound_share(missed, unreferred_positive),
        exact_interval(int(referred.sum()), len(referred)),
    )


def macro_accuracy(predicted: Array, labels: Array) -> float:
    """Mean over the true classes of the share of their cases that is right."""
    predicted, labels = np.asarray(predicted), np.asarray(labels)
    return float(np.mean([(predicted[labels == one] == one).mean() for one in np.unique(labels)]))


def measure_macro_accuracy(
    predicted: Array, labels: Array, *, cases: Sequence[Any] | None = None, draws: int = DRAWS, seed: int = 0
) -> Bounds:
    """Mean accuracy over classes with its 95 % interval.

    The interval is the wider of a bootstrap over cases, each class drawn apart, and of Wilson's intervals of the
    classes brought together (MOVER), since a bootstrap of classes without an error says 1 to 1.

    Args:
        predicted: (n,) label given.
        labels: (n,) true label.
        cases: (n,) case of each row, drawn as a whole; None when each row is a case of its own.
        draws: Draws of the bootstrap.
        seed: Decides the draws.

    Source:
        Zou and Donner, Statistics in Medicine 27 (2008) 1693–1702, for bringing the intervals together (from memory;
        the tests hold its coverage against simulated data).
    """
    predicted, labels = np.asarray(predicted), np.asarray(labels)
    value = macro_accuracy(predicted, labels)
    classes, stratum = np.unique(labels, return_inverse=True)
    drawn = _bootstrap(lambda rows: macro_accuracy(predicted[rows], labels[rows]), stratum, cases, draws, seed)
    owner = np.arange(len(labels)) if cases is None else np.unique(np.asarray(cases), return_inverse=True)[1]
    below = above = 0.0
    for one in classes:
        count, share = len(np.unique(owner[labels == one])), float((predicted[labels == one] == one).mean())
        wilson = wilson_interval(share * count, count)
        below += (share - wilson.low) ** 2
        above += (wilson.high - share) ** 2
    low, high = value - math.sqrt(below) / len(classes), value + math.sqrt(above) / len(classes)
    return Bounds(
        value,
        max(0.0, min(low, float(np.quantile(drawn, 0.025)))),
        min(1.0, max(high, float(np.quantile(drawn, 0.975)))),
    )


def weighted_kappa(predicted: Array, labels: Array, *, classes: int) -> float:
    """Agreement on an ordered scale beyond chance, disagreements weighted by their square; 1 is full agreement.

    Where chance alone already agrees fully (all cases of one grade), it is 0: nothing was shown.
    """
    table = np.zeros((classes, classes))
    np.add.at(table, (np.asarray(labels, np.int64), np.asarray(predicted, np.int64)), 1)
    weight = np.subtract.outer(np.arange(classes), np.arange(classes)) ** 2.0
    by_chance = (weight * np.outer(table.sum(axis=1), table.sum(axis=0))).sum() / table.sum()
    return float(1 - (weight * table).sum() / by_chance) if by_chance > 0 else 0.0


def _bootstrap(
    measure: Callable[[Array], float], stratum: Array, cases: Sequence[Any] | None, draws: int, seed: int
) -> Floats:
    """A figure of cases drawn with replacement, as many of each stratum as there are; a case is drawn with its rows."""
    rows = [np.array([row]) for row in range(len(stratum))] if cases is None else _rows_of_cases(cases)
    # a case with slides of two strata counts with its last one: of positive and negative, with positive
    of_case = np.array([stratum[of].max() for of in rows])
    strata = [np.flatnonzero(of_case == one) for one in np.unique(of_case)]
    random = np.random.default_rng(seed)
    values = []
    for _ in range(draws):
        drawn = np.concatenate([random.choice(part, len(part)) for part in strata])
        chosen = np.concatenate([rows[case] for case in drawn]) if cases is not None else drawn
        values.append(measure(chosen))
    return np.array(values)


def _rows_of_cases(cases: Sequence[Any]) -> list[Array]:
    _, owner = np.unique(np.asarray(cases), return_inverse=True)
    return [np.flatnonzero(owner == one) for one in range(int(owner.max()) + 1)]


def _count_cases(positive: Array, cases: Sequence[Any] | None) -> tuple[int, int]:
    """Positive and negative cases; one with rows of both counts in both."""
    owner = np.arange(len(positive)) if cases is None else np.unique(np.asarray(cases), return_inverse=True)[1]
    return len(np.unique(owner[positive])), len(np.unique(owner[~positive]))


def _require_both(scores: Floats, positive: Array) -> None:
    if scores.shape != positive.shape or scores.ndim != 1:
        raise ValueError(f"scores {scores.shape} and truth {positive.shape} are not one row a case")
    if not np.isfinite(scores).all():
        raise ValueError(f"{int((~np.isfinite(scores)).sum())} scores are not finite")
    if positive.all() or not positive.any():
        raise ValueError("at least one positive and one negative case are needed")


def _as_table(probabilities: Array, labels: Array) -> tuple[Floats, NDArray[np.int64]]:
    probabilities, labels = np.asarray(probabilities, np.float64), np.asarray(labels, np.int64)
    if probabilities.ndim != 2 or len(probabilities) != len(labels) or not len(labels):
        raise ValueError("probabilities are (n, n_classes), with one label for each and at least one case")
    return probabilities, labels
