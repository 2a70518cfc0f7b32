"""Folds in which no case stands on both sides: by case, by site, or as a public cohort gives them."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from slideway.core.errors import CohortError, LeakageError
from slideway.learning.cohort import TEST, TRAIN, VALIDATION
from slideway.learning.table import name_some

LEAVE_ONE_CASE_OUT = "leave-one-case-out"
CASE_FOLDS = "case-folds"
LEAVE_SITE_OUT = "leave-site-out"
OWN_SPLIT = "own-split"
TILES = "tiles"  # of sets that name no cases: optimistic

Indices = NDArray[np.int64]


@dataclass(frozen=True)
class Fold:
    """One way to part slides into those to learn from and those to be judged on.

    Attributes:
        name: What stands in the test: a case, `fold 2 of 5`, a site, or `own-split`.
        train: (n_train,) int64, ascending positions of the slides to learn from.
        test: (n_test,) int64, ascending positions of the slides to judge.
        validation: (n_validation,) int64, of a public cohort's own split; empty in all others.
    """

    name: str
    train: Indices
    test: Indices
    validation: Indices = field(default_factory=lambda: np.empty(0, np.int64))

    def __post_init__(self) -> None:
        if not len(self.train) or not len(self.test):
            raise ValueError(f"{self.name}: a fold has something to learn from and something to judge")
        every = np.concatenate([self.train, self.test, self.validation])
        if len(np.unique(every)) < len(every):
            raise ValueError(f"{self.name}: a slide stands on two sides")


def leave_one_case_out(cases: Sequence[str]) -> tuple[Fold, ...]:
    """One fold for each case, in the order in which they come.

    Raises:
        CohortError: There is one case only.
    """
    _require_two("case", cases)
    return tuple(_part(case, np.array([c == case for c in cases]), cases) for case in dict.fromkeys(cases))


def case_folds(cases: Sequence[str], labels: NDArray[np.int64], k: int, seed: int) -> tuple[Fold, ...]:
    """Whole cases dealt into k folds, each with its share of every label; the same seed gives the same folds.

    Folds differ by at most one case, and so does each label's number of cases.

    Args:
        cases: Case of each slide.
        labels: (n_slides,) label of each slide, or (n_slides, n_tasks); below 0 for unknown. A case counts for the
            commonest label of its slides, of two equally common the greater.
        k: Number of folds, at least 2.
        seed: Of the order of cases within a label.

    Raises:
        CohortError: There are fewer cases than folds.
    """
    if k < 2:
        raise ValueError("there are at least two folds")
    names = list(dict.fromkeys(cases))
    if len(names) < k:
        raise CohortError(f"{len(names)} cases cannot be dealt into {k} folds; use fewer, or leave one case out")
    random = np.random.default_rng(seed)
    strata = _sum_up(cases, np.atleast_2d(labels.T).T)
    dealt: list[str] = []
    for stratum in sorted(set(strata.values())):
        members = [name for name in names if strata[name] == stratum]
        dealt += [members[i] for i in random.permutation(len(members))]
    fold_of = {name: i % k for i, name in enumerate(dealt)}
    fold = np.array([fold_of[case] for case in cases])
    return tuple(_part(f"fold {i + 1} of {k}", fold == i, cases) for i in range(k))


def leave_site_out(sites: Sequence[str], cases: Sequence[str]) -> tuple[Fold, ...]:
    """One fold for each hospital or laboratory: learnt at the others, judged there.

    Raises:
        CohortError: A site is unknown, or there is one only.
        LeakageError: A case comes from two sites.
    """
    if "" in sites:
        raise CohortError(f"{sites.count('')} slides have no site; fill in the column to leave sites out")
    where: dict[str, set[str]] = defaultdict(set)
    for case, site in zip(cases, sites, strict=True):
        where[case].add(site)
    torn = [case for case, those in where.items() if len(those) > 1]
    if torn:
        raise LeakageError(
            f"{len(torn)} cases come from two sites ({name_some(torn)}): leaving one site out would test on cases that "
            "were learnt; give each case one site"
        )
    _require_two("site", sites)
    return tuple(_part(site, np.array([s == site for s in sites]), cases) for site in sorted(set(sites)))


def own_split(folds: Sequence[str], cases: Sequence[str]) -> tuple[Fold, ...]:
    """The one fold that a public cohort gives; without a `test` its `validation` is judged.

    Raises:
        CohortError: A slide is in none, or there is nothing to learn from or to judge.
        LeakageError: A case stands in two.
    """
    given = np.array(folds)
    judged = TEST if TEST in folds else VALIDATION
    if "" in folds or TRAIN not in folds or judged not in folds:
        counted = ", ".join(f"{name or 'none'}: {count}" for name, count in Counter(folds).items())
        raise CohortError(f"an own split names train and test for every slide ({counted}); fill in the column fold")
    aside = given == VALIDATION if judged == TEST else np.zeros(len(given), bool)
    fold = Fold(OWN_SPLIT, *(np.flatnonzero(side) for side in (given == TRAIN, given == judged, aside)))
    require_disjoint(fold, cases)
    return (fold,)


def tile_folds(labels: NDArray[np.int64], k: int, seed: int) -> tuple[Fold, ...]:
    """Single tiles dealt into k folds, where no cases are named; optimistic: a patient's tiles are on both sides."""
    return case_folds([str(i) for i in range(len(labels))], labels, k, seed)


def require_disjoint(fold: Fold, cases: Sequence[str]) -> None:
    """Refuse a fold in which a case stands on two sides.

    Raises:
        LeakageError: One does.
    """
    sides = [{cases[i] for i in side} for side in (fold.train, fold.test, fold.validation)]
    torn = sorted((sides[0] & sides[1]) | (sides[0] & sides[2]) | (sides[1] & sides[2]))
    if torn:
        raise LeakageError(
            f"{fold.name}: {len(torn)} cases stand on two sides ({name_some(torn)}); a split is by case, never by slide"
        )


def _part(name: str, is_test: NDArray[np.bool_], cases: Sequence[str]) -> Fold:
    fold = Fold(name, np.flatnonzero(~is_test), np.flatnonzero(is_test))
    require_disjoint(fold, cases)
    return fold


def _require_two(what: str, values: Sequence[str]) -> None:
    if len(set(values)) < 2:
        raise CohortError(f"there is one {what} only; nothing would be left to learn from: add another")


def _sum_up(cases: Sequence[str], labels: NDArray[np.int64]) -> dict[str, tuple[int, ...]]:
    """Commonest known label of each case, by task."""
    rows: dict[str, list[int]] = defaultdict(list)
    for i, case in enumerate(cases):
        rows[case].append(i)
    return {case: tuple(_find_commonest(labels[those, task]) for task in range(labels.shape[1]))
            for case, those in rows.items()}  # fmt: skip


def _find_commonest(labels: NDArray[np.int64]) -> int:
    known, counts = np.unique(labels[labels >= 0], return_counts=True)
    return int(known[counts == counts.max()].max()) if len(known) else -1
