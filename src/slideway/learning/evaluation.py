"""All figures of a head and its baselines on slides whose case was not learnt from, and what the card says of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from slideway.core.opinion import Answer, Kind, TaskQuestion
from slideway.heads.calibration import Scaling, fit_scaling
from slideway.heads.conformal import ConformalCalibration, calibrate, p_values, prediction_sets
from slideway.heads.hierarchy import calibrate_questions, join_questions
from slideway.heads.metrics import (
    brier_score,
    calibration_error,
    exact_interval,
    measure_aurc,
    measure_auroc,
    measure_macro_accuracy,
    measure_missed,
    measure_sensitivity,
    measure_sets,
    weighted_kappa,
)
from slideway.heads.referral import Certainty, Circumstances, ReferralPolicy, decide
from slideway.learning.held_out import ABMIL, METHODS, HeldOut
from slideway.learning.questions import UNKNOWN
from slideway.learning.sample import Sample
from slideway.registry.head_records import Bounds, TaskEvidence

SPECIFICITY = 0.9  # at which sensitivity is also given
SUBGROUPS = ("site", "scanner", "stain", "laboratory", "age_group")
_PARTS = 5  # of the cases, for calibrating without the cases that are judged
_LEAST_SUBGROUP = 5

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class TaskJudgement:
    """What was said to one question about unseen slides, calibrated without the case that is judged.

    Attributes:
        question: The question.
        rows: (n,) positions in the sample of the slides with a label.
        labels: (n,) position of the true label.
        probabilities: For each method (n, n_labels).
        p_values: (n, n_labels) of the head, conformal, calibrated on the other cases.
        answers: (n,) how far the head's finding goes.
        answered: For each slide the labels it names.
    """

    question: TaskQuestion
    rows: NDArray[np.int64]
    labels: NDArray[np.int64]
    probabilities: Mapping[str, Floats]
    p_values: Floats
    answers: tuple[Answer, ...]
    answered: tuple[tuple[str, ...], ...]

    @property
    def method(self) -> str:
        """The head's own method: the first; the others are baselines."""
        return next(iter(self.probabilities))


def judge_tasks(sample: Sample, held: HeldOut, policy: ReferralPolicy) -> tuple[TaskJudgement, ...]:
    """Turn held-out numbers into calibrated, conformal and refereed answers, task by task."""
    joined = {method: _join(sample.questions, method, held.logits[method]) for method in METHODS}
    part = _deal_cases(sample.cases)
    calibrated = {method: _calibrate_apart(sample, held, method, joined[method], part) for method in METHODS}
    return tuple(_judge_task(sample, held, question, calibrated, policy) for question in sample.questions)


def _join(questions: Sequence[TaskQuestion], method: str, logits: Mapping[str, Any]) -> dict[str, Floats]:
    """Baselines are asked each question directly: only the head has learnt it below its parent."""
    asked = questions if method == ABMIL else [replace(question, parent="") for question in questions]
    return join_questions(asked, logits)


def _deal_cases(cases: Sequence[str]) -> NDArray[np.int64]:
    names = {case: i for i, case in enumerate(dict.fromkeys(cases))}
    return np.array([names[case] % _PARTS for case in cases])


def _calibrate_apart(
    sample: Sample, held: HeldOut, method: str, joined: Mapping[str, Floats], part: NDArray[np.int64]
) -> dict[str, Floats]:
    """Probabilities of every slide, with temperatures fitted on the other parts of the cases."""
    asked = sample.questions if method == ABMIL else tuple(replace(q, parent="") for q in sample.questions)
    found = {question.id: np.full(joined[question.id].shape, np.nan) for question in asked}
    for one in range(_PARTS):
        scalings = fit_scalings(sample, joined, held.judged & (part != one))
        rows = np.flatnonzero(held.judged & (part == one))
        if not len(rows):
            continue
        some = calibrate_questions(asked, {task: own[rows] for task, own in joined.items()}, scalings)
        for task, own in some.items():
            found[task][rows] = own
    return found


def fit_scalings(sample: Sample, joined: Mapping[str, Floats], chosen: NDArray[np.bool_]) -> dict[str, Scaling]:
    """A scaling for each task from some of the slides; none where they know fewer than two labels."""
    scalings = {}
    for question in sample.questions:
        known = chosen & (sample.labels[question.id] != UNKNOWN)
        labels = sample.labels[question.id][known]
        enough = len(np.unique(labels)) > 1
        scalings[question.id] = fit_scaling(joined[question.id][known], labels) if enough else Scaling()
    return scalings


def _judge_task(
    sample: Sample,
    held: HeldOut,
    question: TaskQuestion,
    calibrated: Mapping[str, Mapping[str, Floats]],
    policy: ReferralPolicy,
) -> TaskJudgement:
    labels = sample.labels[question.id]
    rows = np.flatnonzero(held.judged & (labels != UNKNOWN))
    own = calibrated[ABMIL][question.id][rows]
    cases = np.array(sample.cases)[rows]
    values = np.empty(own.shape)
    answers, answered = [], []
    for i, row in enumerate(rows):
        others = cases != cases[i]
        conformal = calibrate(own[others], labels[rows][others])
        values[i] = p_values(conformal, own[i : i + 1])[0]
        decision = _decide(question, own[i], values[i], conformal, held, int(row), len(set(sample.cases)) - 1, policy)
        answers.append(decision[0])
        answered.append(decision[1])
    return TaskJudgement(
        question,
        rows,
        labels[rows],
        {method: calibrated[method][question.id][rows] for method in METHODS},
        values,
        tuple(answers),
        tuple(answered),
    )


def _decide(
    question: TaskQuestion,
    probabilities: Floats,
    values: Floats,
    conformal: ConformalCalibration,
    held: HeldOut,
    row: int,
    known_cases: int,
    policy: ReferralPolicy,
) -> tuple[Answer, tuple[str, ...]]:
    """As a slide would be judged whose pixels, stain and scale are in order."""
    strange = held.p_value[row]
    around = Circumstances(
        tiles=1,
        min_tiles=1,
        strangeness=None if np.isnan(strange) else float(held.strangeness[row]),
        p_value=None if np.isnan(strange) else float(strange),
        known_cases=known_cases,
        site=question.sites[0] if question.sites else "",
    )
    decision = decide(question, Certainty(probabilities, values, conformal.cases), around, policy)
    return decision.answer, decision.labels


def measure_task(sample: Sample, judged: TaskJudgement, policy: ReferralPolicy) -> dict[str, Any]:
    """Figures of one task as plain numbers, lists and tables, for JSON, the card and the report."""
    question, cases = judged.question, [sample.cases[i] for i in judged.rows]
    owner = np.array(cases)
    methods = {name: _measure_method(question, own, judged.labels, cases) for name, own in judged.probabilities.items()}
    sets = measure_sets(prediction_sets(judged.p_values, policy.alpha), judged.labels)
    figures: dict[str, Any] = {
        "task": question.id,
        "title": question.title,
        "kind": question.kind.value,
        "labels": list(question.labels),
        "slides": len(judged.rows),
        "cases": len(set(cases)),
        "cases_by_label": [len(set(owner[judged.labels == one])) for one in range(len(question.labels))],
        "slides_by_label": np.bincount(judged.labels, minlength=len(question.labels)).tolist(),
        "measure": name_measure(question),
        "method": judged.method,
        "methods": methods,
        "sets": {
            "promised": 1 - policy.alpha,
            "coverage": _plain(sets.overall_coverage),
            "coverage_by_label": {n: _plain(b) for n, b in zip(question.labels, sets.coverage, strict=True)},
            "size_by_label": {n: _number(s) for n, s in zip(question.labels, sets.size, strict=True)},
            "mean_size": _number(sets.mean_size),
            "single": _number(sets.single),
            "empty": _number(sets.empty),
        },
        "answers": {kind.value: sum(a is kind for a in judged.answers) for kind in Answer},
    }
    figures["answered"] = round(sum(a in (Answer.ANSWER, Answer.SET) for a in judged.answers) / len(judged.rows), 4)
    if question.kind is Kind.BINARY:
        figures["missed"] = _measure_missed(judged)
    figures["subgroups"] = list(_measure_subgroups(sample, judged))
    return figures


def name_measure(question: TaskQuestion) -> str:
    """The figure that a task is judged by."""
    return "auroc" if question.kind is Kind.BINARY else "accuracy"


def _measure_method(
    question: TaskQuestion, own: Floats, labels: NDArray[np.int64], cases: Sequence[str]
) -> dict[str, Any]:
    predicted = own.argmax(axis=1)
    figures: dict[str, Any] = {
        "ece": _number(calibration_error(own, labels)),
        "brier": _number(brier_score(own, labels)),
        "aurc": _number(measure_aurc(own.max(axis=1), predicted != labels)),
    }
    if question.kind is not Kind.BINARY:
        figures["accuracy"] = _plain(measure_macro_accuracy(predicted, labels, cases=cases))
        figures["plain_accuracy"] = _plain(_share_right(predicted == labels, cases))
        if question.kind is Kind.ORDINAL:
            figures["weighted_kappa"] = _number(weighted_kappa(predicted, labels, classes=len(question.labels)))
        return figures
    scores, positive = own[:, 1], labels == 1
    point = measure_sensitivity(scores, positive, specificity=SPECIFICITY, cases=cases)
    figures["auroc"] = _plain(measure_auroc(scores, positive, cases=cases))
    figures["sensitivity_at_specificity_90"] = _plain(point.sensitivity)
    owner = np.array(cases)
    figures["sensitivity"] = _plain(_share_right(predicted[positive] == 1, owner[positive]))
    figures["specificity"] = _plain(_share_right(predicted[~positive] == 0, owner[~positive]))
    return figures


def _share_right(is_right: NDArray[np.bool_], cases: Sequence[str] | NDArray[Any]) -> Bounds:
    """Share of slides that is right, with the interval of as many cases: slides of one case are no independent ones."""
    count = len(set(cases))
    return exact_interval(float(is_right.mean()) * count, count)


def _measure_missed(judged: TaskJudgement) -> dict[str, Any]:
    yes = judged.question.labels[1]
    unread = (Answer.REFER, Answer.NOT_READABLE)
    referred = np.array([answer in unread for answer in judged.answers])
    called = np.array([yes in labels for labels in judged.answered])
    missed = measure_missed(judged.labels == 1, referred, called)
    return {
        name: _plain(value) if isinstance(value, Bounds) else round(float(value), 4)
        for name, value in ((name, getattr(missed, name)) for name in missed.__dataclass_fields__)
    }


def _measure_subgroups(sample: Sample, judged: TaskJudgement) -> Any:
    """The head's figure in each group of slides that a column names; groups too small for one are counted only."""
    question, own = judged.question, judged.probabilities[judged.method]
    for column in SUBGROUPS:
        values = np.array(sample.facts.get(column, ("",) * len(sample)))[judged.rows]
        names = sorted(set(values.tolist()))
        if len(names) < 2:
            continue
        for name in names:
            rows = values == name
            labels = judged.labels[rows]
            row: dict[str, Any] = {"by": column, "group": name or "unknown", "slides": int(rows.sum())}
            row["referred"] = _number(
                np.mean(
                    [a in (Answer.REFER, Answer.NOT_READABLE) for a, r in zip(judged.answers, rows, strict=True) if r]
                )
            )
            if len(labels) >= _LEAST_SUBGROUP and len(np.unique(labels)) > 1:
                cases = [sample.cases[i] for i in judged.rows[rows]]
                measured = (
                    measure_auroc(own[rows, 1], labels == 1, cases=cases)
                    if question.kind is Kind.BINARY
                    else measure_macro_accuracy(own[rows].argmax(axis=1), labels, cases=cases)
                )
                row |= {name_measure(question): _plain(measured)}
            yield row


def draw_evidence(figures: Mapping[str, Any], *, split: str, sites: int) -> TaskEvidence:
    """What a card says of a task's figures."""
    measure, methods = figures["measure"], figures["methods"]
    own = methods[figures["method"]]
    baseline = max(methods.keys() - {figures["method"]}, key=lambda name: (methods[name][measure]["value"], name))
    return TaskEvidence(
        split=split,
        cases=figures["cases"],
        positives=figures["cases_by_label"][1] if figures["kind"] == Kind.BINARY else 0,
        measure=measure,
        value=Bounds(**own[measure]),
        baseline=baseline,
        baseline_value=Bounds(**methods[baseline][measure]),
        sensitivity=Bounds(**own["sensitivity"]) if "sensitivity" in own else None,
        specificity=Bounds(**own["specificity"]) if "specificity" in own else None,
        ece=own["ece"],
        answered=figures["answered"],
        sites=sites,
    )


def _plain(bounds: Bounds) -> dict[str, float]:
    return {name: round(float(value), 4) for name, value in asdict(bounds).items()}


def _number(value: Any) -> float | None:
    return None if value is None or not np.isfinite(value) else round(float(value), 4)
