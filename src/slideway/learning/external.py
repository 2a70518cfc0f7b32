"""Judge a finished head on a cohort it has not learnt from."""

from __future__ import annotations

from collections.abc import Callable
from importlib.metadata import version
from typing import Any

import numpy as np

from slideway.core.errors import CohortError, LeakageError
from slideway.core.opinion import NEGATIVE, POSITIVE, Answer, Kind, TaskQuestion
from slideway.heads.conformal import p_values
from slideway.heads.diagnose import SlideFacts, answer_bag, form_opinion
from slideway.heads.head import Head
from slideway.heads.referral import ReferralPolicy
from slideway.learning.cohort import Cohort
from slideway.learning.evaluation import TaskJudgement, measure_task
from slideway.learning.questions import NO_WORDS, UNKNOWN, YES_WORDS
from slideway.learning.sample import Sample
from slideway.registry.head_records import HeadCard

THIS_HEAD = "this head"
EXTERNAL = "external"
VERSION = version("slideway")
_SAME = 0.9999  # cosine of two mean tiles from which two slides are the same one

Tell = Callable[[int, int], object]


def match_labels(cohort: Cohort, question: TaskQuestion) -> np.ndarray[Any, np.dtype[np.int64]]:
    """(n_slides,) position of each slide's label among the head's own labels; -1 where unknown or another.

    Raises:
        CohortError: The cohort has no column for the task, or none of its labels is one of the head's.
    """
    if question.id not in cohort.tasks:
        raise CohortError(
            f"{cohort.path.name}: no column {question.id!r}, which the head answers; name the tasks that are there "
            "with --task"
        )
    places = {label.lower(): i for i, label in enumerate(question.labels)}
    if question.kind is Kind.BINARY:
        places |= dict.fromkeys(YES_WORDS, question.labels.index(POSITIVE))
        places |= dict.fromkeys(NO_WORDS, question.labels.index(NEGATIVE))
    labels = np.array([places.get(label.lower(), UNKNOWN) for label in cohort.raw_labels(question.id)], np.int64)
    if not (labels != UNKNOWN).any():
        raise CohortError(
            f"{cohort.path.name}: no label of {question.id} is one of the head's ({', '.join(question.labels)})"
        )
    return labels


def require_judgeable(sample: Sample) -> None:
    """Refuse a cohort in which a task shows one label only: nothing can be measured on it.

    Raises:
        CohortError: It does.
    """
    for question in sample.questions:
        labels = sample.labels[question.id]
        if len(set(labels[labels != UNKNOWN].tolist())) < 2:
            raise CohortError(f"{question.id}: the cohort shows one label only; add cases of another, or leave it out")


def require_unseen(head: Head, sample: Sample) -> None:
    """Refuse cases that the head learnt from: by pseudonym, and by mean tile.

    Raises:
        LeakageError: There is one.
    """
    known = set(head.known.names)
    if shared := sorted(known & set(sample.cases)):
        raise LeakageError(
            f"{len(shared)} cases have the name of a case that the head learnt from ({', '.join(shared[:3])}); leave "
            "them out, or give other pseudonyms if they are other patients"
        )
    centre = head.known.means.mean(axis=0)
    means = head.known.means - centre
    means /= np.maximum(np.linalg.norm(means, axis=1, keepdims=True), 1e-12)
    for i in range(len(sample)):
        bag = sample.bag(i)
        own = np.average(head.network.projection(bag.vectors), axis=0, weights=bag.weights) - centre
        cosine = means @ own / max(float(np.linalg.norm(own)), 1e-12)
        if cosine.max() > _SAME:
            raise LeakageError(
                f"{sample.names[i]}: its mean tile is that of case {head.known.names[int(cosine.argmax())]}, which "
                "the head learnt from; leave it out"
            )


def evaluate_head(
    card: HeadCard, head: Head, sample: Sample, *, policy: ReferralPolicy | None = None, tell: Tell | None = None
) -> tuple[dict[str, Any], tuple[TaskJudgement, ...]]:
    """All figures of a head on a cohort it has not seen, as in evaluation.json, and what it said of every slide.

    Raises:
        FingerprintMismatchError: The bags are another encoder's.
    """
    policy = policy or ReferralPolicy()
    site = next(
        (question.sites[0] for question in sample.questions if question.sites), ""
    )  # as the cohort is said to be
    answers: dict[str, list[Answer]] = {q.id: [] for q in sample.questions}
    answered: dict[str, list[tuple[str, ...]]] = {q.id: [] for q in sample.questions}
    own: dict[str, list[Any]] = {q.id: [] for q in sample.questions}
    for i in range(len(sample)):
        bag = sample.bag(i)
        facts = SlideFacts(stain=card.input.stain, site=site)
        opinion = form_opinion(card, head, bag, facts, policy=policy, explain=False)
        found = {finding.task.id: finding for finding in opinion.findings}
        probabilities = answer_bag(head, bag)
        for question in sample.questions:
            finding = found.get(question.id)
            answers[question.id].append(Answer.REFER if finding is None else finding.answer)
            answered[question.id].append(() if finding is None else finding.labels)
            own[question.id].append(probabilities[question.id])
        if tell is not None:
            tell(i + 1, len(sample))
    judged = []
    for question in sample.questions:
        labels = sample.labels[question.id]
        rows = np.flatnonzero(labels != UNKNOWN)
        every = np.stack(own[question.id])[rows]
        judged.append(
            TaskJudgement(
                question,
                rows,
                labels[rows],
                {THIS_HEAD: every},
                p_values(head.certainty[question.id].conformal, every),
                tuple(answers[question.id][r] for r in rows),
                tuple(answered[question.id][r] for r in rows),
            )
        )
    figures = [measure_task(sample, one, policy) for one in judged]
    evaluation = {
        "head": card.id,
        "slideway": VERSION,
        "command": "slideway evaluate",
        "of": "slides",
        "split": EXTERNAL,
        "folds": 1,
        "slides": len(sample),
        "cases": len(set(sample.cases)),
        "sites": len(set(sample.facts.get("site", ())) - {""}),
        "policy": dict(policy.__dict__),
        "training": {},
        "leave_site_out": None,
        "tasks": figures,
    }
    return evaluation, tuple(judged)
