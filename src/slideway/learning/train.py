"""Make a head of a cohort: judge it on unseen cases first, then train it on all, and write its card."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from slideway.core.errors import CohortError, WrongUseError
from slideway.core.opinion import TaskQuestion
from slideway.heads.abmil import Floats, Projection
from slideway.heads.conformal import calibrate
from slideway.heads.fit import Training, fit_abmil, mask_children
from slideway.heads.head import Head, KnownCases, TaskCertainty, save_head
from slideway.heads.hierarchy import calibrate_questions, join_questions
from slideway.heads.instance import InstanceScorer
from slideway.heads.referral import ReferralPolicy
from slideway.heads.typicality import MIN_CASES, fit_typicality
from slideway.learning.crossval import cross_validate, group_by_case
from slideway.learning.evaluation import TaskJudgement, draw_evidence, fit_scalings, judge_tasks, measure_task
from slideway.learning.held_out import ABMIL, HeldOut
from slideway.learning.questions import UNKNOWN
from slideway.learning.sample import Sample
from slideway.learning.splits import (
    CASE_FOLDS,
    LEAVE_ONE_CASE_OUT,
    LEAVE_SITE_OUT,
    OWN_SPLIT,
    TILES,
    Fold,
    case_folds,
    leave_one_case_out,
    leave_site_out,
    own_split,
)
from slideway.registry.blobs import hash_file
from slideway.registry.head_card import require_writable, write_head_card
from slideway.registry.head_records import HEAD_FILE, HeadCard, HeadInput, HeadTask, HeadWeights, TaskEvidence
from slideway.registry.records import CardLicence, CardTraining, CardUse

VERSION = version("slideway")
SPLITS = (LEAVE_ONE_CASE_OUT, CASE_FOLDS, LEAVE_SITE_OUT, OWN_SPLIT)
EVALUATION = "evaluation.json"
LICENCE_FILE = "LICENSE"
_LEAVE_ONE_OUT_CASES = 60  # up to here one case is left out at a time; beyond, five folds say as much in less time
_FOLDS = 5
_CURVE = (0.25, 0.5, 0.75, 1.0)
_CURVE_TRAINING_SEEDS = 1
_GOLDEN_TILES = 32


Tell = Callable[[str, int, int], object]


@dataclass(frozen=True)
class Plan:
    """How a head is made.

    Attributes:
        head_id: Id on its card.
        title: Its name in words.
        split: One of `SPLITS`; empty takes leave-one-case-out up to 60 cases, five case folds beyond.
        training: How networks are trained.
        policy: How sure its findings must be.
        stain: Stain of the cohort.
        min_tiles: With fewer tiles a slide is not readable for it.
        curve: Whether a learning curve is measured.
        processes: Processes to use.
        seed: Of folds.
        command: The command that made it, for its card.
        data: Where the cohort comes from, in a sentence.
        licence: SPDX id, note and text of the head's licence.
        limits: Further sentences for its card.
    """

    head_id: str
    title: str
    split: str = ""
    training: Training = field(default_factory=Training)
    policy: ReferralPolicy = field(default_factory=ReferralPolicy)
    stain: str = "H&E"
    min_tiles: int = 20
    curve: bool = True
    processes: int = 1
    seed: int = 0
    command: str = "slideway train"
    data: str = "A cohort of the user's."
    licence: tuple[str, str, str] = ("LicenseRef-private", "Whoever trained it decides.", "Private: not licensed.\n")
    limits: tuple[str, ...] = ()


@dataclass(frozen=True)
class EncoderFacts:
    """The encoder that made the bags.

    Attributes:
        encoder_id: Its id.
        fingerprint: Its fingerprint.
        width: Length of a vector.
    """

    encoder_id: str
    fingerprint: str
    width: int


@dataclass(frozen=True)
class TrainedHead:
    """What a training gives.

    Attributes:
        card: Card of the head, its files in `card.folder`.
        sample: What it learnt from.
        evaluation: All figures, as in evaluation.json.
        judged: What was said of every unseen slide.
        held: The numbers behind it; None for a head of single tiles.
    """

    card: HeadCard
    sample: Sample
    evaluation: dict[str, Any]
    judged: tuple[TaskJudgement, ...]
    held: HeldOut | None = None


def train_head(sample: Sample, plan: Plan, folder: Path, *, tell: Tell | None = None) -> TrainedHead:
    """Evaluate on unseen cases, train on all cases, and write head and card into a folder.

    Args:
        sample: Slides with labels, of one encoder.
        plan: How.
        folder: Where to; exists.
        tell: Told a step's name, how much of it is done, and how much it has.

    Returns:
        The head; every task whose lower bound does not beat the best baseline is off.

    Raises:
        CohortError: The cohort does not allow the split, or a fold would have nothing to learn from.
        LeakageError: A case would stand on both sides.
        WrongUseError: The plan's words cannot stand on a card.
    """
    say = tell or (lambda *_: None)
    encoder = _name_encoder(sample)
    split = plan.split or choose_split(sample)
    folds = make_folds(sample, split, plan.seed)
    require_learnable(sample, folds)
    _require_writable_card(folder, plan, encoder, sample.questions)
    held = cross_validate(
        sample, folds, plan.training, processes=plan.processes, tell=lambda done, of: say("judging", done, of)
    )
    judged = judge_tasks(sample, held, plan.policy)
    evaluation = _evaluate(sample, plan, judged, split, len(folds))
    if plan.curve:
        evaluation["learning_curve"] = measure_curve(sample, plan, say)
    evaluation["leave_site_out"] = _measure_sites(sample, plan, say) if split != LEAVE_SITE_OUT else None
    head = _fit_all(sample, plan, held, say)
    save_head(folder / HEAD_FILE, head, encoder_fingerprint=encoder.fingerprint)
    (folder / LICENCE_FILE).write_text(plan.licence[2], encoding="utf-8")
    card = describe_head(folder, plan, encoder, head, sample.questions, evaluation)
    write_head_card(card)
    text = json.dumps(evaluation, indent=1, ensure_ascii=False)
    (folder / EVALUATION).write_text(text + "\n", encoding="utf-8")
    return TrainedHead(card, sample, evaluation, judged, held)


def choose_split(sample: Sample) -> str:
    """The split of a cohort that names none: its own if it has one, else by its number of cases."""
    if all(sample.folds):
        return OWN_SPLIT
    return LEAVE_ONE_CASE_OUT if len(set(sample.cases)) <= _LEAVE_ONE_OUT_CASES else CASE_FOLDS


def make_folds(sample: Sample, split: str, seed: int) -> tuple[Fold, ...]:
    """Folds of a split; no case is ever on both sides.

    Raises:
        CohortError: The cohort does not allow it.
    """
    if split == LEAVE_ONE_CASE_OUT:
        return leave_one_case_out(sample.cases)
    if split == LEAVE_SITE_OUT:
        return leave_site_out(sample.facts["site"], sample.cases)
    if split == OWN_SPLIT:
        return own_split(sample.folds, sample.cases)
    if split == CASE_FOLDS:
        labels = np.stack([sample.labels[question.id] for question in sample.questions], axis=1)
        return case_folds(sample.cases, labels, min(_FOLDS, len(set(sample.cases))), seed)
    raise ValueError(f"{split!r} is none of {', '.join(SPLITS)}")


def require_learnable(sample: Sample, folds: Sequence[Fold]) -> None:
    """Refuse, before anything is trained, folds in which a task shows one label only.

    Raises:
        CohortError: A fold's cases teach one label only, or all that is judged has one label.
    """
    judged = np.concatenate([fold.test for fold in folds])
    for question in sample.questions:
        labels = sample.labels[question.id]
        if _count_labels(labels[judged]) < 2:
            raise CohortError(f"{question.id}: the slides to be judged show one label only; choose another split")
        for fold in folds:
            asked = mask_children(sample.select(fold.train).labels, sample.questions)[question.id]
            if _count_labels(labels[fold.train]) < 2 or _count_labels(asked) < 1:
                raise CohortError(
                    f"{question.id}: with {fold.name} left out, the other slides show one label only, or none whose "
                    f"{question.parent or question.id} is yes; add cases, or choose another split"
                )


def _count_labels(labels: NDArray[np.int64]) -> int:
    return len(np.unique(labels[labels != UNKNOWN]))


def _require_writable_card(folder: Path, plan: Plan, encoder: EncoderFacts, questions: Sequence[TaskQuestion]) -> None:
    """Find out before an hour of training that an id or a title cannot stand on a card."""
    spdx, note, _ = plan.licence
    card = HeadCard(
        folder=folder,
        id=plan.head_id,
        title=plan.title,
        version="1.0.0",
        state="candidate",
        input=HeadInput(encoder.encoder_id, encoder.fingerprint, encoder.width, plan.stain, plan.min_tiles),
        tasks=tuple(HeadTask(question, False, "Not evaluated yet.", None) for question in questions),
        weights=HeadWeights("0" * 64, 1, 1, "abmil"),
        licence=CardLicence(spdx, LICENCE_FILE, note),
        use=CardUse("None yet.", "None yet."),
        training=CardTraining(plan.data, "None yet."),
        limits=("None yet.", *plan.limits),
        metrics={"command": plan.command},
    )
    try:
        require_writable(card)
    except ValueError as error:
        raise WrongUseError(f"{plan.head_id}: nothing was trained, since {error}") from error


def measure_curve(sample: Sample, plan: Plan, say: Tell) -> list[dict[str, Any]]:
    """The head's figure when it learns from a quarter, half, three quarters and all of the cases, five folds each."""
    folds = make_folds(sample, CASE_FOLDS, plan.seed)
    training = _with_seeds(plan.training, _CURVE_TRAINING_SEEDS)
    rows = []
    for step, share in enumerate(_CURVE):
        thinned = [_thin(sample, fold, share, plan.seed) for fold in folds]
        if any(not _can_learn(sample, fold) for fold in thinned):
            continue
        held = cross_validate(sample, thinned, training, processes=plan.processes)
        for judged in judge_tasks(sample, held, plan.policy):
            figures = measure_task(sample, judged, plan.policy)
            measured = {name: own[figures["measure"]] for name, own in figures["methods"].items()}
            cases = int(np.mean([len({sample.cases[i] for i in fold.train}) for fold in thinned]))
            rows.append({"task": figures["task"], "cases": cases, "measure": figures["measure"], "methods": measured})
        say("learning curve", step + 1, len(_CURVE))
    return rows


def _thin(sample: Sample, fold: Fold, share: float, seed: int) -> Fold:
    """The same test, learnt from some of the cases only."""
    cases = sorted({sample.cases[i] for i in fold.train})
    kept = set(np.random.default_rng(seed).permutation(cases)[: max(2, round(share * len(cases)))].tolist())
    return Fold(fold.name, np.array([i for i in fold.train if sample.cases[i] in kept]), fold.test)


def _can_learn(sample: Sample, fold: Fold) -> bool:
    """Whether the cases of a fold show two labels of every task, below its parent's yes."""
    for question in sample.questions:
        labels = sample.labels[question.id][fold.train]
        if question.parent in sample.labels:
            labels = labels[sample.labels[question.parent][fold.train] == 1]
        if _count_labels(labels) < 2:
            return False
    return True


def _measure_sites(sample: Sample, plan: Plan, say: Tell) -> list[dict[str, Any]] | None:
    """Figures when each hospital is left out in turn; None where the cohort does not allow it."""
    sites = sample.facts.get("site", ())
    if len(set(sites)) < 2 or "" in sites:
        return None
    try:
        folds = make_folds(sample, LEAVE_SITE_OUT, plan.seed)
    except CohortError:  # a case of two sites: a note of the cohort, and no reason to lose what was trained
        return None
    if not all(_can_learn(sample, fold) for fold in folds):
        return None
    held = cross_validate(sample, folds, plan.training, processes=plan.processes)
    say("leaving sites out", 1, 1)
    return [measure_task(sample, judged, plan.policy) for judged in judge_tasks(sample, held, plan.policy)]


def _with_seeds(training: Training, count: int) -> Training:
    return Training(**{**training.__dict__, "seeds": training.seeds[:count]})


def _name_encoder(sample: Sample) -> EncoderFacts:
    bag = sample.bag(0)
    return EncoderFacts(bag.encoder_id, bag.fingerprint, bag.width)


def _evaluate(sample: Sample, plan: Plan, judged: Sequence[TaskJudgement], split: str, folds: int) -> dict[str, Any]:
    return {
        "head": plan.head_id,
        "slideway": VERSION,
        "command": plan.command,
        "of": "slides",
        "split": split,
        "folds": folds,
        "slides": len(sample),
        "cases": len(set(sample.cases)),
        "sites": len(set(sample.facts.get("site", ())) - {""}),
        "policy": dict(plan.policy.__dict__),
        "training": {**plan.training.__dict__, "seeds": list(plan.training.seeds)},
        "tasks": [measure_task(sample, one, plan.policy) for one in judged],
    }


def _fit_all(sample: Sample, plan: Plan, held: HeldOut, say: Tell) -> Head:
    """Train on all cases; calibrate with what was said of each while it was unseen."""
    bags = [sample.bag(i) for i in range(len(sample))]
    network = fit_abmil(
        [bag.vectors for bag in bags],
        sample.labels,
        sample.questions,
        plan.training,
        weights=[bag.weights for bag in bags],
        groups=sample.cases,
        tell=lambda done, of: say("training", done, of),
    )
    projected = [network.projection(bag.vectors) for bag in bags]
    by_case = group_by_case(projected, sample.cases)
    return Head(
        network,
        make_certain(sample, held),
        fit_typicality(by_case) if len(by_case) >= MIN_CASES else None,
        _know_cases(sample, _average_cases(by_case, group_by_case([bag.weights for bag in bags], sample.cases))),
        make_golden(network.projection),
    )


def _average_cases(tiles: Sequence[Floats], weights: Sequence[Floats]) -> list[Floats]:
    """(rank,) mean tile of each case; tiles that stand for several count for them, as they do in a slide's own mean."""
    return [
        np.average(own, axis=0, weights=stands_for).astype(np.float32)
        for own, stands_for in zip(tiles, weights, strict=True)
    ]


def make_certain(sample: Sample, held: HeldOut) -> dict[str, TaskCertainty]:
    """Temperature and conformal scores of each task from held-out cases of all sites together."""
    joined = join_questions(sample.questions, held.logits[ABMIL])
    scalings = fit_scalings(sample, joined, held.judged)
    rows = np.flatnonzero(held.judged)
    calibrated = calibrate_questions(sample.questions, {t: own[rows] for t, own in joined.items()}, scalings)
    sites = [sample.facts["site"][i] for i in rows] if any(sample.facts.get("site", ())) else None
    return {
        question.id: TaskCertainty(
            scalings[question.id], calibrate(calibrated[question.id], sample.labels[question.id][rows], sites)
        )
        for question in sample.questions
    }


def _know_cases(sample: Sample, means: Sequence[NDArray[np.float32]]) -> KnownCases:
    names = tuple(dict.fromkeys(sample.cases))
    labels: dict[str, tuple[str, ...]] = {}
    for question in sample.questions:
        by_case: dict[str, list[str]] = {name: [] for name in names}
        for case, label in zip(sample.cases, sample.labels[question.id], strict=True):
            if label != UNKNOWN and question.labels[label] not in by_case[case]:
                by_case[case].append(question.labels[label])
        labels[question.id] = tuple(" and ".join(by_case[name]) for name in names)
    return KnownCases(names, np.stack(means).astype(np.float32), labels)


def make_golden(projection: Projection) -> NDArray[np.float16]:
    """A bag that belongs to no patient: normal numbers around the training tiles' centre, along their axes."""
    steps = np.random.default_rng(0).normal(size=(_GOLDEN_TILES, projection.axes.shape[1]))
    back = np.linalg.pinv(projection.axes.astype(np.float64))
    return (projection.mean + steps @ back).astype(np.float16)


def describe_head(
    folder: Path,
    plan: Plan,
    encoder: EncoderFacts,
    head: Head,
    questions: Sequence[TaskQuestion],
    evaluation: dict[str, Any],
) -> HeadCard:
    """The card of a head whose weights lie in a folder; says in `evaluation` why each task is off."""
    tasks = []
    for question, figures in zip(questions, evaluation["tasks"], strict=True):
        evidence = draw_evidence(figures, split=evaluation["split"], sites=evaluation["sites"])
        off = figures["off_because"] = say_why_off(evidence)
        tasks.append(HeadTask(question, not off, off, evidence))
    weights = folder / HEAD_FILE
    spdx, note, _ = plan.licence
    return HeadCard(
        folder=folder,
        id=plan.head_id,
        title=plan.title,
        version="1.0.0",
        state="candidate",
        input=HeadInput(encoder.encoder_id, encoder.fingerprint, encoder.width, plan.stain, plan.min_tiles),
        tasks=tuple(tasks),
        weights=HeadWeights(hash_file(weights), weights.stat().st_size, head.network.parameters, form_of(head)),
        licence=CardLicence(spdx, LICENCE_FILE, note),
        use=CardUse(
            "A second look at slides like those it learnt from, by people who judge the slide themselves.",
            "Any diagnosis, grading or exclusion of disease by itself; other stains, cytology, other encoders' bags.",
        ),
        training=CardTraining(
            f"{plan.data} {evaluation[evaluation['of']]} {evaluation['of']} of {evaluation['cases']} cases.",
            f"{_say_network(head, plan)}; calibrated and judged by {evaluation['split']}.",
        ),
        limits=(*_say_limits(evaluation), *plan.limits),
        metrics=_as_metrics(evaluation),
    )


def form_of(head: Head) -> str:
    """The form of a head's network, as its card names it."""
    return "instance" if isinstance(head.network, InstanceScorer) else "abmil"


def _say_network(head: Head, plan: Plan) -> str:
    rank = head.network.projection.axes.shape[1]
    if isinstance(head.network, InstanceScorer):
        return f"Class-balanced logistic regression of single tiles on {rank} axes"
    training = plan.training
    more = " or ".join(str(steps) for steps in training.more_steps)
    effort = f"{training.epochs} passes" + (f", or {more} steps where held-out cases ask for them" if more else "")
    return f"Gated attention, {len(training.seeds)} networks averaged, {effort}; input layer of rank {rank}"


def say_why_off(evidence: TaskEvidence) -> str:
    """Why a task is not in force by default; empty when its evidence allows it."""
    if evidence.split == TILES:
        return "Judged on single tiles of a set that names no cases: that is optimistic and says little of slides."
    if evidence.beats_baseline:
        return ""
    return (
        f"The lower 95 % bound of its {evidence.measure} ({evidence.value.low:.3f}) is not above the best baseline's "
        f"figure ({evidence.baseline}: {evidence.baseline_value.value:.3f}) on the same {evidence.cases} unseen cases."
    )


def _say_limits(evaluation: Mapping[str, Any]) -> tuple[str, ...]:
    sites = evaluation["sites"]
    if evaluation["of"] == "tiles":
        return (
            "Research starter: trained and judged on single tiles. For a whole slide it only points at tiles.",
            "Where a set names no cases, tiles of one patient may have been learnt from and judged: optimistic.",
        )
    places = "an unknown number of hospitals" if not sites else f"{sites} hospital{'' if sites == 1 else 's'}"
    said = [
        f"Research starter: {evaluation['cases']} cases of {places}; not validated on cases from elsewhere.",
        "Its certainty holds for slides like those it learnt from; a referral is an answer, and so is 'cannot tell'.",
    ]
    for figures in evaluation["tasks"]:
        rare = [
            f"{label} ({count})"
            for label, count in zip(figures["labels"], figures["slides_by_label"], strict=True)
            if count < 1 / (1 - figures["sets"]["promised"])
        ]
        if rare:
            said.append(f"{figures['title']}: too few slides to ever exclude {', '.join(rare)}.")
    return tuple(said)


def _as_metrics(evaluation: Mapping[str, Any]) -> dict[str, Any]:
    """Figures for the card: those of each task, without the tables that evaluation.json keeps."""
    left_out = ("subgroups", "labels", "kind")
    tasks = {
        figures["task"]: {k: v for k, v in figures.items() if k not in (*left_out, "task", "title")}
        for figures in evaluation["tasks"]
    }
    facts = {key: evaluation[key] for key in ("command", "split", "folds", evaluation["of"], "cases")}
    return _without_none({**facts, "tasks": tasks})


def _without_none(entries: Mapping[str, Any]) -> dict[str, Any]:
    """TOML knows no null: what was not measured is left out."""
    return {
        key: _without_none(value) if isinstance(value, dict) else value
        for key, value in entries.items()
        if value is not None
    }
