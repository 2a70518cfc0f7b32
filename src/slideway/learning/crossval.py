"""Judge every slide by a head that has not seen its case, and by the baselines, on the same folds."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from threadpoolctl import threadpool_limits

from slideway.heads.abmil import Floats, outputs_of, score_bag
from slideway.heads.fit import Training, fit_abmil
from slideway.heads.typicality import MIN_CASES, Typicality, fit_typicality, score_typicality
from slideway.learning.baselines import judge_by_mean, judge_by_neighbours, pool_mean
from slideway.learning.held_out import ABMIL, MEAN_POOL, METHODS, NEIGHBOURS, HeldOut, Logits
from slideway.learning.sample import Sample
from slideway.learning.splits import Fold

Tell = Callable[[int, int], object]


def cross_validate(
    sample: Sample, folds: Sequence[Fold], training: Training, *, processes: int = 1, tell: Tell | None = None
) -> HeldOut:
    """Train on each fold's cases and judge its others.

    Folds are worked on by `processes` processes; their number changes nothing in the figures.

    Args:
        sample: Slides with labels.
        folds: No case on both sides of any (`slideway.learning.splits`).
        training: How heads are trained.
        processes: Processes to use.
        tell: Told folds done and folds in all.
    """
    count = len(sample)
    logits = {m: {q.id: np.full((count, outputs_of(q)), np.nan) for q in sample.questions} for m in METHODS}
    p_value, strangeness = np.full(count, np.nan), np.full(count, np.nan)
    for done, (fold, told) in enumerate(_work(sample, folds, training, processes), start=1):
        for method, tasks in told.logits.items():
            for task, values in tasks.items():
                logits[method][task][fold.test] = values
        p_value[fold.test], strangeness[fold.test] = told.p_value, told.strangeness
        if tell is not None:
            tell(done, len(folds))
    judged = ~np.isnan(logits[ABMIL][sample.questions[0].id]).any(axis=1)
    return HeldOut(judged, logits, p_value, strangeness)


@dataclass(frozen=True)
class _Told:
    logits: Mapping[str, Logits]
    p_value: NDArray[np.float64]
    strangeness: NDArray[np.float64]


def _work(sample: Sample, folds: Sequence[Fold], training: Training, processes: int) -> Any:
    if processes == 1 or len(folds) == 1:
        with threadpool_limits(1):  # as in a worker process: sums by several threads differ in their last bits
            means = _pool_all(sample)
            for fold in folds:
                yield fold, _judge_fold(sample, means, fold, training)
        return
    # Spawned, as on Windows: a forked process inherits the state of libraries' threads.
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(processes, context, _settle, (sample, training)) as pool:
        yield from zip(folds, pool.map(_judge_in_process, folds), strict=True)


_SETTLED: dict[str, Any] = {}  # of a worker process: its sample, training and mean tiles


def _settle(sample: Sample, training: Training) -> None:
    threadpool_limits(1)  # each process has a core; its libraries must not ask for all of them
    _SETTLED.update(sample=sample, training=training, means=_pool_all(sample))


def _judge_in_process(fold: Fold) -> _Told:
    return _judge_fold(_SETTLED["sample"], _SETTLED["means"], fold, _SETTLED["training"])


def _pool_all(sample: Sample) -> NDArray[np.float64]:
    return np.stack([pool_mean(sample.bag(i)) for i in range(len(sample))])


def _judge_fold(sample: Sample, means: NDArray[np.float64], fold: Fold, training: Training) -> _Told:
    known = sample.select(fold.train)
    bags = [known.bag(i) for i in range(len(known))]
    weights = [bag.weights for bag in bags]
    abmil = fit_abmil(
        [bag.vectors for bag in bags], known.labels, sample.questions, training, weights=weights, groups=known.cases
    )
    typicality = _fit_typicality([abmil.projection(bag.vectors) for bag in bags], known.cases)
    logits: dict[str, dict[str, NDArray[Any]]] = {method: {} for method in METHODS}
    p_value, strangeness, own = [], [], []
    for i in fold.test:
        bag = sample.bag(int(i))
        scores = score_bag(abmil, bag.vectors, None if bag.sampling is None else bag.sampling.weight)
        own.append(scores.logits)
        score = None if typicality is None else score_typicality(typicality, scores.projected, bag.weights)
        p_value.append(np.nan if score is None else score.p_value)
        strangeness.append(np.nan if score is None else score.strangeness)
    for question in sample.questions:
        logits[ABMIL][question.id] = np.stack([scored[question.id] for scored in own])
        labels = known.labels[question.id]
        logits[MEAN_POOL][question.id] = judge_by_mean(question, means[fold.train], labels, means[fold.test])
        logits[NEIGHBOURS][question.id] = judge_by_neighbours(question, means[fold.train], labels, means[fold.test])
    return _Told(logits, np.array(p_value), np.array(strangeness))


def _fit_typicality(projected: Sequence[Floats], cases: Sequence[str]) -> Typicality | None:
    """What the cases look like; None when they are too few to know a strange one."""
    by_case = group_by_case(projected, cases)
    return fit_typicality(by_case) if len(by_case) >= MIN_CASES else None


def group_by_case(tiles: Sequence[Floats], cases: Sequence[str]) -> list[Floats]:
    """Tiles of all slides of each case together, cases in the order in which they come."""
    held: dict[str, list[Floats]] = {}
    for case, those in zip(cases, tiles, strict=True):
        held.setdefault(case, []).append(those)
    return [np.concatenate(those) for those in held.values()]
