"""Make a head that scores single tiles, from a table of labelled tiles, and judge it on tiles it has not seen."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.linear_model import LogisticRegression

from slideway.core.errors import CohortError
from slideway.core.opinion import Kind, TaskQuestion
from slideway.heads.abmil import Floats, fit_projection
from slideway.heads.calibration import fit_scaling
from slideway.heads.conformal import calibrate, p_values
from slideway.heads.head import Head, KnownCases, TaskCertainty, save_head
from slideway.heads.hierarchy import calibrate_questions, join_questions
from slideway.heads.instance import InstanceScorer
from slideway.heads.referral import Certainty, Circumstances, decide
from slideway.learning.baselines import judge_by_neighbours
from slideway.learning.evaluation import TaskJudgement, measure_task
from slideway.learning.questions import UNKNOWN, index_labels
from slideway.learning.sample import Sample
from slideway.learning.splits import CASE_FOLDS, OWN_SPLIT, TILES, Fold, case_folds, own_split, tile_folds
from slideway.learning.tile_table import TileTable
from slideway.learning.train import (
    EVALUATION,
    LICENCE_FILE,
    VERSION,
    EncoderFacts,
    Plan,
    Tell,
    TrainedHead,
    describe_head,
    make_golden,
)
from slideway.registry.head_card import write_head_card
from slideway.registry.head_records import HEAD_FILE

TILE_SCORE = "tile logistic regression"
NEAREST_TILES = "nearest tiles"
PROTOTYPES = "class means"
_RANK = 256
_STRENGTH = 0.01
_FOLDS = 5


def train_tile_head(
    table: TileTable,
    vectors: NDArray[np.float16],
    question: TaskQuestion,
    encoder: EncoderFacts,
    plan: Plan,
    folder: Path,
    *,
    tell: Tell | None = None,
) -> TrainedHead:
    """Judge a tile scorer on unseen tiles, train it on all, and write head and card into a folder.

    Args:
        table: Tiles, cases as far as known, labels.
        vectors: (n_tiles, width) their embeddings.
        question: A binary task of the table.
        encoder: The encoder that made the vectors.
        plan: Id, title, licence and policy.
        folder: Where to; exists.
        tell: Told a step's name, how much of it is done, and how much it has.

    Raises:
        CohortError: The task is not yes or no.
    """
    require_learnable_tiles(table, question, plan.seed)
    labels = index_labels(table, question)
    split, folds = make_tile_folds(table, labels, plan.seed)
    logits = _judge(vectors, labels, question, folds, tell or (lambda *_: None))
    sample = _as_sample(table, question, labels)
    judged = _judge_task(question, labels, logits, folds, sample.cases, plan)
    figures = measure_task(sample, judged, plan.policy)
    evaluation = {
        "head": plan.head_id,
        "slideway": VERSION,
        "command": plan.command,
        "of": "tiles",
        "split": split,
        "folds": len(folds),
        "slides": 0,
        "tiles": int((labels != UNKNOWN).sum()),
        "cases": figures["cases"],
        "sites": 0,
        "policy": dict(plan.policy.__dict__),
        "training": {"rank": _RANK, "strength": _STRENGTH},
        "leave_site_out": None,
        "tasks": [figures],
    }
    head = _fit_all(vectors, labels, question, logits[TILE_SCORE], folds)
    save_head(folder / HEAD_FILE, head, encoder_fingerprint=encoder.fingerprint)
    (folder / LICENCE_FILE).write_text(plan.licence[2], encoding="utf-8")
    card = describe_head(folder, plan, encoder, head, (question,), evaluation)
    write_head_card(card)
    (folder / EVALUATION).write_text(json.dumps(evaluation, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    return TrainedHead(card, sample, evaluation, (judged,))


def require_learnable_tiles(table: TileTable, question: TaskQuestion, seed: int = 0) -> None:
    """Refuse, before any tile is encoded, a table whose folds show one label only.

    Raises:
        CohortError: They do, or the task is not yes or no.
    """
    if question.kind is not Kind.BINARY:
        raise CohortError(f"{question.id}: a head of single tiles answers yes or no; its labels are {question.labels}")
    labels = index_labels(table, question)
    _, folds = make_tile_folds(table, labels, seed)
    for side in (*(fold.train for fold in folds), np.concatenate([fold.test for fold in folds])):
        if len(set(labels[side].tolist()) - {UNKNOWN}) < 2:
            raise CohortError(
                f"{table.path.name}: {question.id}: tiles to learn from or to be judged show one label only; mend the "
                "column fold, or add tiles"
            )


def make_tile_folds(table: TileTable, labels: NDArray[np.int64], seed: int) -> tuple[str, tuple[Fold, ...]]:
    """The set's own split; else folds by case; else, where no cases are named, folds of single tiles (optimistic)."""
    if all(table.folds):
        return (TILES if table.is_optimistic else OWN_SPLIT), own_split(table.folds, table.cases)
    if table.is_optimistic:
        return TILES, tile_folds(labels, _FOLDS, seed)
    return CASE_FOLDS, case_folds(table.cases, labels, min(_FOLDS, len(set(table.cases))), seed)


def _judge(
    vectors: NDArray[Any], labels: NDArray[np.int64], question: TaskQuestion, folds: Sequence[Fold], tell: Tell
) -> dict[str, NDArray[np.float64]]:
    """(n_tiles, 1) logits of each method on tiles that were not learnt from; not a number where none was asked."""
    logits = {name: np.full((len(labels), 1), np.nan) for name in (TILE_SCORE, NEAREST_TILES, PROTOTYPES)}
    for number, fold in enumerate(folds):
        known = fold.train[labels[fold.train] != UNKNOWN]
        train, own, test = vectors[known].astype(np.float32), labels[known], vectors[fold.test].astype(np.float32)
        projection = fit_projection(train, rank=min(_RANK, train.shape[1]))
        weight, bias = fit_logistic(projection(train), own)
        logits[TILE_SCORE][fold.test] = projection(test) @ weight + bias
        logits[NEAREST_TILES][fold.test] = judge_by_neighbours(question, train, own, test)
        logits[PROTOTYPES][fold.test] = _compare_means(projection(train), own, projection(test))
        tell("judging", number + 1, len(folds))
    return logits


def fit_logistic(projected: Floats, labels: NDArray[np.int64]) -> tuple[Floats, Floats]:
    """(rank, 1) and (1,) of a class-balanced logistic regression on standardised axes."""
    shift, scale = projected.mean(axis=0), projected.std(axis=0) + 1e-6
    model = LogisticRegression(C=_STRENGTH, class_weight="balanced", max_iter=5_000)
    model.fit((projected - shift) / scale, labels)
    weight = (model.coef_[0] / scale).astype(np.float32)
    bias = np.array([model.intercept_[0] - shift @ weight], np.float32)
    return weight[:, None], bias


def _compare_means(train: Floats, labels: NDArray[np.int64], test: Floats) -> NDArray[np.float64]:
    """Logits that grow with how much nearer a tile is to the mean of the yes tiles than to that of the no tiles."""
    no, yes = (train[labels == one].mean(axis=0) for one in (0, 1))
    nearer = ((test - no) ** 2).sum(axis=1) - ((test - yes) ** 2).sum(axis=1)
    spread = float(((train - train.mean(axis=0)) ** 2).sum(axis=1).mean())
    logits: NDArray[np.float64] = (4 * nearer / spread)[:, None].astype(np.float64)
    return logits


def _judge_task(
    question: TaskQuestion,
    labels: NDArray[np.int64],
    logits: Mapping[str, NDArray[np.float64]],
    folds: Sequence[Fold],
    cases: Sequence[str],
    plan: Plan,
) -> TaskJudgement:
    """Calibrated and refereed answers about tiles, each half of the cases calibrated on the other."""
    judged = np.concatenate([fold.test for fold in folds])
    rows = np.sort(judged[labels[judged] != UNKNOWN])
    half = np.zeros(len(rows), np.int64)
    half[case_folds([cases[i] for i in rows], labels[rows], 2, plan.seed)[1].test] = 1
    probabilities = {name: np.empty((len(rows), 2)) for name in logits}
    values = np.empty((len(rows), 2))
    decisions: list[Any] = [None] * len(rows)
    for one in (0, 1):
        known, asked = rows[half != one], half == one
        for name, own in logits.items():
            joined = {question.id: join_questions([question], {question.id: own[rows]})[question.id]}
            scaling = {question.id: fit_scaling(joined[question.id][half != one], labels[known])}
            probabilities[name][asked] = calibrate_questions([question], joined, scaling)[question.id][asked]
            if name == TILE_SCORE:
                calibrated = calibrate_questions([question], joined, scaling)[question.id]
                conformal = calibrate(calibrated[half != one], labels[known])
                values[asked] = p_values(conformal, calibrated[asked])
                for i in np.flatnonzero(asked):
                    around = Circumstances(tiles=1, min_tiles=1, strangeness=0.0, p_value=1.0, known_cases=10**6)
                    certainty = Certainty(calibrated[i], values[i], conformal.cases)
                    decisions[i] = decide(question, certainty, around, plan.policy)
    return TaskJudgement(
        question,
        rows,
        labels[rows],
        probabilities,
        values,
        tuple(decision.answer for decision in decisions),
        tuple(decision.labels for decision in decisions),
    )


def _as_sample(table: TileTable, question: TaskQuestion, labels: NDArray[np.int64]) -> Sample:
    count = len(table.tiles)
    return Sample((Path(),) * count, table.cases, (question,), {question.id: labels}, {}, table.folds, table.tiles)


def _fit_all(
    vectors: NDArray[Any],
    labels: NDArray[np.int64],
    question: TaskQuestion,
    held: NDArray[np.float64],
    folds: Sequence[Fold],
) -> Head:
    known = np.flatnonzero(labels != UNKNOWN)
    train = vectors[known].astype(np.float32)
    projection = fit_projection(train, rank=min(_RANK, train.shape[1]))
    scorer = InstanceScorer(projection, {question.id: fit_logistic(projection(train), labels[known])}, (question,))
    rows = np.concatenate([fold.test for fold in folds])
    rows = rows[labels[rows] != UNKNOWN]
    joined = join_questions([question], {question.id: held[rows]})
    scaling = fit_scaling(joined[question.id], labels[rows])
    calibrated = calibrate_questions([question], joined, {question.id: scaling})[question.id]
    means = np.stack([projection(train[labels[known] == one]).mean(axis=0) for one in (0, 1)])
    kinds = tuple(f"mean of the tiles labelled {label}" for label in question.labels)
    return Head(
        scorer,
        {question.id: TaskCertainty(scaling, calibrate(calibrated, labels[rows]))},
        None,
        KnownCases(kinds, means, {question.id: question.labels}),
        make_golden(projection),
    )
