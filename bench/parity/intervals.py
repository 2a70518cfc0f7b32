"""What counts can show: exact intervals, cases drawn anew, and what a margin makes of them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from slideway.heads.metrics import exact_interval

Array = NDArray[Any]
DRAWS = 2_000
MET, NOT_MET, CANNOT_TELL = "met", "not met", "cannot tell"
LEAST_FLIPS = 10  # fewer say nothing about how they cluster


@dataclass(frozen=True)
class Agreement:
    """How many decisions stayed the same.

    Attributes:
        decisions: All that were made; those of one case hang together.
        differ: Those that came out otherwise.
        cases: Cases that they come from.
        cases_differ: Cases with at least one that came out otherwise.
        share: Of decisions that stayed.
        low: Of the exact (Clopper-Pearson) 95 % interval of the effective number of decisions.
        high: The same.
        drawn_low: Of the 95 % interval from cases drawn anew; with no flip it is 1 and says nothing.
        drawn_high: The same.
    """

    decisions: int
    differ: int
    cases: int
    cases_differ: int
    share: float
    low: float
    high: float
    drawn_low: float
    drawn_high: float

    def to_json(self) -> dict[str, Any]:
        return {key: round(value, 5) if isinstance(value, float) else value for key, value in asdict(self).items()}


def group_rows(cases: Sequence[Any]) -> list[Array]:
    """Rows of each case."""
    _, owner = np.unique(np.asarray(cases), return_inverse=True)
    order = np.argsort(owner, kind="stable")
    return np.split(order, np.cumsum(np.bincount(owner))[:-1])


def measure_agreement(is_same: Array, cases: Sequence[Any], *, design_effect: float = 1.0) -> Agreement:
    """Agreement with an exact interval that counts clustered decisions as fewer, and one from cases drawn anew.

    Args:
        is_same: (n,) bool.
        cases: Case of each decision.
        design_effect: How much larger the variance over cases is than that of as many independent decisions; numbers of
            decisions and of flips are both divided by it (Rao and Scott).
    """
    is_same = np.asarray(is_same, bool)
    n, differ = len(is_same), int((~is_same).sum())
    exact = exact_interval((n - differ) / design_effect, n / design_effect)
    parts = group_rows(cases)
    drawn = draw_cases([is_same[rows] for rows in parts])
    wrong = sum(bool((~is_same[rows]).any()) for rows in parts)
    return Agreement(n, differ, len(parts), wrong, 1 - differ / n, exact.low, exact.high, *quantiles(drawn))


def draw_cases(parts: Sequence[Array], draws: int = DRAWS) -> Array:
    """(draws,) means of values whose cases are drawn with replacement."""
    sums, counts = np.array([part.sum() for part in parts], float), np.array([len(part) for part in parts], float)
    picked = np.random.default_rng(0).integers(len(parts), size=(draws, len(parts)))
    means: Array = sums[picked].sum(axis=1) / counts[picked].sum(axis=1)
    return means


def quantiles(drawn: Array) -> tuple[float, float]:
    low, high = np.quantile(drawn, (0.025, 0.975))
    return float(low), float(high)


def measure_design_effect(of_ways: Sequence[tuple[Array, Sequence[Any]]]) -> tuple[float, int]:
    """Median over ways of the variance from cases drawn anew against that of independent decisions, at least 1.

    Only ways with flips enough count; returns also how many those were.
    """
    found = []
    for is_same, cases in of_ways:
        share = float(np.mean(is_same))
        if (~np.asarray(is_same, bool)).sum() < LEAST_FLIPS or share <= 0:
            continue
        drawn = draw_cases([np.asarray(is_same, float)[rows] for rows in group_rows(cases)])
        found.append(float(drawn.var() / (share * (1 - share) / len(is_same))))
    return max(1.0, float(np.median(found))) if found else 1.0, len(found)


def bound_difference(
    measure: Callable[[Array], float], cases: Sequence[Any], draws: int = 1_000
) -> tuple[float, float, float]:
    """A figure of rows, and its 95 % interval from cases drawn anew; draws in which it is not defined are left out."""
    parts = group_rows(cases)
    random = np.random.default_rng(0)
    values = []
    for _ in range(draws):
        rows = np.concatenate([parts[i] for i in random.integers(len(parts), size=len(parts))])
        values.append(measure(rows))
    return measure(np.arange(len(cases))), *quantiles(np.array(values)[np.isfinite(values)])


def bound_crossed(values: Array, first: Array, second: Array, draws: int = DRAWS) -> tuple[float, float, float]:
    """Mean of values of pairs (host, donor) and its interval when hosts and donors are both drawn anew."""
    names_first, of_first = np.unique(first, return_inverse=True)
    names_second, of_second = np.unique(second, return_inverse=True)
    random = np.random.default_rng(0)
    means = []
    for _ in range(draws):
        held = np.bincount(random.integers(len(names_first), size=len(names_first)), minlength=len(names_first))
        also = np.bincount(random.integers(len(names_second), size=len(names_second)), minlength=len(names_second))
        weight = held[of_first] * also[of_second]
        if weight.sum():
            means.append(np.average(values, weights=weight))
    return float(np.mean(values)), *quantiles(np.array(means))


def judge_floor(low: float, high: float, floor: float) -> str:
    """Whether a figure is at least so high."""
    return MET if low >= floor else NOT_MET if high < floor else CANNOT_TELL


def judge_loss(low: float, high: float, most: float) -> str:
    """Whether a loss is at most so large."""
    return MET if high <= most else NOT_MET if low > most else CANNOT_TELL


def count_needed(floor: float) -> int:
    """Independent decisions, all of them the same, after which a share of at least `floor` is shown at 97.5 %."""
    return int(np.ceil(np.log(0.025) / np.log(floor)))


def count_needed_at(flips: float, floor: float) -> float:
    """Independent decisions for four chances in five to show `floor`, if this share of them flips.

    Infinite where more flip than the floor allows.

    By the normal approximation, 97.5 % one-sided.
    """
    gap = 1 - floor - flips
    return float("inf") if gap <= 0 else float(np.ceil((1.96 + 0.84) ** 2 * flips * (1 - flips) / gap**2))


def expect_flips(margins: Array, changes: Array) -> float:
    """Share of decisions that changes of this size would flip, each margin paired with each change.

    Args:
        margins: (n,) how far the leading label is ahead, in log odds, without the codec.
        changes: (n,) by how much the codec moved that.

    A change counts half, since it may go either way. That margins and changes have nothing to do with each other is
    assumed; what it buys is a figure where few decisions or none happened to flip.
    """
    sizes = np.sort(np.abs(changes))
    larger = len(sizes) - np.searchsorted(sizes, margins, side="left")
    return float(larger.mean() / (2 * len(sizes)))
