"""Fit a finished head's certainty to one site's own labelled cases; what it has learnt stays as it is."""

from __future__ import annotations

import re
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from slideway.core.errors import CohortError, WrongUseError
from slideway.core.opinion import TaskQuestion
from slideway.heads.calibration import Recalibration, Scaling, recalibrate
from slideway.heads.conformal import ConformalCalibration
from slideway.heads.diagnose import INSTANCE
from slideway.heads.head import Head, TaskCertainty, load_head, require_bag_fits, save_head
from slideway.heads.hierarchy import calibrate_questions, join_questions
from slideway.learning.questions import UNKNOWN
from slideway.learning.sample import Sample
from slideway.registry.blobs import hash_file
from slideway.registry.head_card import HEAD_ID, write_head_card
from slideway.registry.head_records import HEAD_FILE, HeadCard, HeadWeights

_FOLDS = 5  # a local case's conformal score comes from a scaling fitted without its fifth

Floats = NDArray[np.float64]
Labels = NDArray[np.int64]


@dataclass(frozen=True)
class RecalibratedTask:
    """What a site's cases made of one question.

    Attributes:
        question: The question.
        fitted: The scaling, and in words why it is as it is.
        conformal: Scores of the head's own cases and the site's together; the head's own where nothing was changed.
        cases_by_label: The site's cases of each label.
    """

    question: TaskQuestion
    fitted: Recalibration
    conformal: ConformalCalibration
    cases_by_label: tuple[int, ...]


def require_recalibratable(card: HeadCard, new_id: str) -> None:
    """Refuse at once what cannot end in a new head.

    Raises:
        WrongUseError: The id cannot be one or is the old head's, or the head scores single tiles.
    """
    if not re.fullmatch(HEAD_ID, new_id):
        raise WrongUseError(f"{new_id!r} cannot be an id: small letters, digits, dots, - and _, at most 64")
    if new_id == card.id:
        raise WrongUseError(f"{new_id!r} is the head itself, which stays as it is; give the new one another id")
    if card.weights.form == INSTANCE:
        raise WrongUseError(
            f"{card.id} was calibrated on single tiles and only points at tiles; slides cannot recalibrate it"
        )


def choose_site(site_of_slides: Sequence[str], asked: str | None, cohort_name: str) -> tuple[str, list[int]]:
    """The site's name, and which slides are its own.

    Raises:
        CohortError: The cohort has several sites and none was named, or has none of that name.
    """
    sites = sorted(set(site_of_slides) - {""})
    every = list(range(len(site_of_slides)))
    if not sites:
        return asked or cohort_name, every
    if asked is None and len(sites) > 1:
        raise CohortError(
            f"{cohort_name}: slides of {len(sites)} sites ({', '.join(sites[:4])}); a head is recalibrated to one: "
            "name it with --site"
        )
    name = asked or sites[0]
    if name not in sites:
        raise CohortError(f"{cohort_name}: no slide of site {name!r}; there are {', '.join(sites[:8])}")
    return name, [i for i in every if site_of_slides[i] == name]


def recalibrate_tasks(card: HeadCard, head: Head, sample: Sample) -> tuple[RecalibratedTask, ...]:
    """Fit the scaling of each question of the sample to its cases, as far as they allow.

    Of each case one slide counts for each label, the first: guards count cases, not slides.

    Args:
        card: The head's card.
        head: The head.
        sample: Slides of one site that the head has not learnt from (`learning.external.require_unseen`).

    Raises:
        FingerprintMismatchError: The bags are another encoder's.
    """
    logits: dict[str, list[Any]] = {question.id: [] for question in head.questions}
    for i in range(len(sample)):
        bag = sample.bag(i)
        require_bag_fits(card, bag)
        for task, own in head.score(bag).logits.items():
            logits[task].append(own)
    joined = join_questions(head.questions, {task: np.stack(own) for task, own in logits.items()})
    fitted: dict[str, Recalibration] = {}
    rows_of: dict[str, Labels] = {}
    for question in sample.questions:
        rows = rows_of[question.id] = _one_a_case(sample, question)
        labels = sample.labels[question.id][rows]
        base = head.certainty[question.id].scaling
        fitted[question.id] = recalibrate(joined[question.id][rows], labels, base=base, names=question.labels)
    scalings = {task: certainty.scaling for task, certainty in head.certainty.items()}
    scalings |= {task: one.scaling for task, one in fitted.items()}
    scores = {
        q.id: _score_locally(head, q, joined, sample.labels[q.id], rows_of[q.id], scalings) for q in sample.questions
    }
    return tuple(
        _finish(head.certainty[q.id], q, fitted[q.id], sample.labels[q.id][rows_of[q.id]], scores[q.id])
        for q in sample.questions
    )


def _one_a_case(sample: Sample, question: TaskQuestion) -> Labels:
    """Positions of the slides that count for a question."""
    first: dict[tuple[str, int], int] = {}
    for i, (case, label) in enumerate(zip(sample.cases, sample.labels[question.id].tolist(), strict=True)):
        if label != UNKNOWN:
            first.setdefault((case, label), i)
    return np.array(sorted(first.values()), np.int64)


def _score_locally(
    head: Head,
    question: TaskQuestion,
    joined: Mapping[str, Floats],
    labels: Labels,
    rows: Labels,
    scalings: Mapping[str, Scaling],
) -> Floats:
    """(n,) nonconformity of each local case, by a scaling fitted without its fifth; its parents have their new ones."""
    base = head.certainty[question.id].scaling
    fold = _deal(labels[rows])
    scores = np.empty(len(rows))
    for one in range(_FOLDS):
        inside, outside = rows[fold == one], rows[fold != one]
        if not len(inside):
            continue
        scaling = (
            recalibrate(joined[question.id][outside], labels[outside], base=base).scaling if len(outside) else base
        )
        told = calibrate_questions(
            head.questions, {task: own[inside] for task, own in joined.items()}, {**scalings, question.id: scaling}
        )
        scores[fold == one] = 1 - told[question.id][np.arange(len(inside)), labels[inside]]
    return scores


def _deal(labels: Labels) -> Labels:
    """(n,) fold of each case, every label dealt out evenly."""
    fold = np.empty(len(labels), np.int64)
    for one in np.unique(labels):
        of_label = np.flatnonzero(labels == one)
        fold[of_label] = np.arange(len(of_label)) % _FOLDS
    return fold


def _finish(
    certainty: TaskCertainty, question: TaskQuestion, fitted: Recalibration, labels: Labels, scores: Floats
) -> RecalibratedTask:
    counts = tuple(np.bincount(labels, minlength=len(question.labels)).tolist())
    if not fitted.is_changed:
        return RecalibratedTask(question, fitted, certainty.conformal, counts)
    pooled, sites = [], []
    for one, (own, of_sites) in enumerate(zip(certainty.conformal.scores, certainty.conformal.sites, strict=True)):
        # Each case is scored with the scaling of its own site: what a recalibration brings together are those.
        pooled.append(np.sort(np.concatenate([own, scores[labels == one]])))
        sites.append(of_sites + (1 if of_sites and counts[one] else 0))
    return RecalibratedTask(question, fitted, ConformalCalibration(tuple(pooled), tuple(sites)), counts)


def require_change(tasks: Sequence[RecalibratedTask], site: str) -> None:
    """Refuse to make a head that would be the old one under another name.

    Raises:
        CohortError: No question could be fitted.
    """
    if not any(task.fitted.is_changed for task in tasks):
        said = " ".join(f"{task.question.title} {task.fitted.reason}" for task in tasks)
        raise CohortError(f"nothing was recalibrated for {site}, and nothing was written. {said}")


def write_recalibrated(
    folder: Path,
    card: HeadCard,
    head: Head,
    tasks: Sequence[RecalibratedTask],
    *,
    new_id: str,
    site: str,
    command: str,
    cohort_sha256: str,
) -> HeadCard:
    """Write the new head into a folder and prove that it loads; returns its card.

    Args:
        folder: Where to; exists.
        card: The old head's card.
        head: The old head.
        tasks: As `recalibrate_tasks` gives them, at least one changed.
        new_id: Id of the new head.
        site: Name of the site.
        command: The command that makes it, for the card.
        cohort_sha256: Hash of the cohort file.

    Raises:
        WrongUseError: The site's name cannot stand on a card.
    """
    changed = {t.question.id: TaskCertainty(t.fitted.scaling, t.conformal) for t in tasks if t.fitted.is_changed}
    new = replace(head, certainty={**head.certainty, **changed})
    save_head(folder / HEAD_FILE, new, encoder_fingerprint=card.input.encoder_fingerprint)
    shutil.copyfile(card.folder / card.licence.file, folder / card.licence.file)
    weights = folder / HEAD_FILE
    told = replace(
        card,
        folder=folder,
        id=new_id,
        title=f"{card.title}, recalibrated for {site}",
        version=bump_version(card.version),
        state="candidate",
        weights=HeadWeights(hash_file(weights), weights.stat().st_size, card.weights.parameters, card.weights.form),
        limits=(*card.limits, *_say_limits(card, tasks, site)),
        metrics={**card.metrics, "recalibration": _as_metrics(card, tasks, site, command, cohort_sha256)},
    )
    try:
        write_head_card(told)
    except ValueError as error:
        raise WrongUseError(f"nothing was written, since {error}") from error
    load_head(told)
    return told


def bump_version(version: str) -> str:
    """The next minor version: `1.0.3` becomes `1.1.0`; anything else gets `+site`."""
    parts = version.split(".")
    if len(parts) == 3 and all(part.isdecimal() for part in parts):
        return f"{parts[0]}.{int(parts[1]) + 1}.0"
    return f"{version}+site"


def _say_limits(card: HeadCard, tasks: Sequence[RecalibratedTask], site: str) -> tuple[str, ...]:
    fitted = [task for task in tasks if task.fitted.is_changed]
    names = ", ".join(f"{task.question.id} ({task.fitted.cases} cases)" for task in fitted)
    return (
        f"Recalibrated for {site} from {card.id} {card.version}: {names}. For slides of that site only; network and "
        "strangeness are unchanged.",
        "All figures of its tasks on this card were measured before the recalibration.",
        f"Which labels cannot be excluded rests on the cases it was made with and those of {site} together: 90 % "
        "coverage is promised on average over all these sites, not for one alone.",
        "It must not be evaluated on the cases it was recalibrated with.",
    )


def _as_metrics(
    card: HeadCard, tasks: Sequence[RecalibratedTask], site: str, command: str, cohort_sha256: str
) -> dict[str, Any]:
    return {
        "from": card.id,
        "from_version": card.version,
        "from_sha256": card.weights.sha256,
        "site": site,
        "command": command,
        "cohort_sha256": cohort_sha256,
        "tasks": {task.question.id: describe_task(task) for task in tasks},
    }


def describe_task(task: RecalibratedTask) -> dict[str, Any]:
    """One question's recalibration as plain numbers and words, for the card and for JSON."""
    return {
        "changed": task.fitted.is_changed,
        "cases": task.fitted.cases,
        "cases_by_label": dict(zip(task.question.labels, task.cases_by_label, strict=True)),
        "temperature": round(task.fitted.scaling.temperature, 4),
        "bias": [round(value, 4) for value in task.fitted.scaling.bias],
        "gain": round(task.fitted.gain, 4),
        "reason": task.fitted.reason,
        "conformal_cases": list(task.conformal.cases),
    }
