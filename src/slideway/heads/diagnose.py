"""Form an opinion: run a head over a bag, judge how far its answers may go, and say what speaks for and against."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from slideway.core.bag import EmbeddingBag
from slideway.core.opinion import Answer, AttentionMap, Evidence, Finding, Kind, KnownCase, Opinion, TaskQuestion
from slideway.core.tissue import QualityGrade, Reason
from slideway.heads.abmil import BagScores, Floats
from slideway.heads.conformal import p_values
from slideway.heads.head import Head, require_bag_fits, score_network
from slideway.heads.hierarchy import calibrate_questions, join_questions
from slideway.heads.referral import Certainty, Circumstances, Decision, ReferralPolicy, decide, find_unreadable
from slideway.heads.typicality import score_typicality
from slideway.registry.head_records import HeadCard, HeadTask

INSTANCE = "instance"
SHOWN_TILES = 6
SHOWN_CASES = 3
_CROWD = 40  # candidates for each shown tile, from which neighbours are left out
# Shares of the tiles that speak most for the answer which are left out in turn, to see what the answer rests on.
_LEFT_OUT = (0.002, 0.01, 0.05, 0.25)


@dataclass(frozen=True)
class SlideFacts:
    """What is known of a slide besides its bag.

    Attributes:
        quality: Verdict on its pixels; None when it was not graded.
        stain: Its stain; empty when nobody says.
        site: Id of the catalogue's site it comes from; empty when nobody says.
        is_resolution_estimated: Its microns per pixel were estimated.
        resolution_doubt: Why the stated microns per pixel are doubtful; empty when they are not.
    """

    quality: QualityGrade | None = None
    stain: str = ""
    site: str = ""
    is_resolution_estimated: bool = False
    resolution_doubt: str = ""


def form_opinion(
    card: HeadCard,
    head: Head,
    bag: EmbeddingBag,
    facts: SlideFacts,
    *,
    policy: ReferralPolicy | None = None,
    explain: bool = True,
) -> Opinion:
    """What a head says of a slide.

    Args:
        card: The head's card.
        head: The head, loaded.
        bag: The slide's bag; an empty one is not readable.
        facts: What else is known of the slide.
        policy: How sure to be; None takes the usual.
        explain: Also say what speaks for and against; it costs several times the answer (docs/hard.md).

    Raises:
        FingerprintMismatchError: The head learnt from another encoder's bags.
    """
    require_bag_fits(card, bag)
    policy = policy or ReferralPolicy()
    asked = Circumstances(
        tiles=len(bag),
        min_tiles=card.input.min_tiles,
        quality=facts.quality,
        stain=facts.stain,
        head_stain=card.input.stain,
        is_resolution_estimated=facts.is_resolution_estimated,
        resolution_doubt=facts.resolution_doubt,
        site=facts.site,
        tiles_only=card.weights.form == INSTANCE,
    )
    if unreadable := tuple(find_unreadable(asked)):
        return _leave_unread(card, unreadable)
    return _read(card, head, bag, asked, policy, explain=explain)


def answer_bag(head: Head, bag: EmbeddingBag) -> dict[str, NDArray[np.float64]]:
    """For each task (n_labels,) calibrated probabilities of a bag that holds at least one tile."""
    return _answer(head, head.score(bag))


def _leave_unread(card: HeadCard, reasons: tuple[Reason, ...]) -> Opinion:
    nothing = tuple(
        Finding(task.question, Answer.NOT_READABLE, (), {}, reasons, in_force=card.is_in_force(task))
        for task in card.tasks
    )
    return _sum_up(card, nothing, None, None)


def _read(
    card: HeadCard, head: Head, bag: EmbeddingBag, asked: Circumstances, policy: ReferralPolicy, *, explain: bool
) -> Opinion:
    scores = head.score(bag)
    is_whole = scores.projected.any(axis=1)  # the input layer puts a tile at 0 whose vector is not finite
    if unreadable := tuple(find_unreadable(replace(asked, tiles=int(is_whole.sum())))):
        return _leave_unread(card, unreadable)
    probabilities = _answer(head, scores)
    strangeness = None
    if head.typicality is not None:
        strange = score_typicality(head.typicality, scores.projected[is_whole], bag.weights[is_whole])
        strangeness = strange.strangeness
        asked = replace(asked, strangeness=strangeness, p_value=strange.p_value, known_cases=strange.cases)
    explainer = _Explainer(head, bag, scores, probabilities) if explain else None
    findings: list[Finding] = []
    for task in card.tasks:
        question = task.question
        if not _is_asked(question, findings):
            continue
        conformal = head.certainty[question.id].conformal
        own = probabilities[question.id]
        certainty = Certainty(own, p_values(conformal, own[None])[0], conformal.cases)
        decision = decide(question, certainty, asked, policy)
        evidence = explainer(question) if explainer is not None else Evidence()
        findings.append(_write(card, task, decision, own, evidence))
    first = card.tasks[0].question
    attention = AttentionMap(scores.attention, _towards(first, scores, int(probabilities[first.id].argmax())))
    return _sum_up(card, tuple(findings), attention, strangeness)


def _answer(head: Head, scores: BagScores) -> dict[str, NDArray[np.float64]]:
    joined = join_questions(head.questions, {task: logits[None] for task, logits in scores.logits.items()})
    scalings = {task: certainty.scaling for task, certainty in head.certainty.items()}
    return {task: own[0] for task, own in calibrate_questions(head.questions, joined, scalings).items()}


def _is_asked(question: TaskQuestion, findings: list[Finding]) -> bool:
    """Whether a question makes sense after its parent's answer: no grade for what is not malignant."""
    parent = next((finding for finding in findings if finding.task.id == question.parent), None)
    if question.kind is Kind.BINARY or not question.parent:
        return True
    return parent is not None and parent.leading == parent.task.labels[-1]


def _write(card: HeadCard, task: HeadTask, decision: Decision, own: NDArray[np.float64], evidence: Evidence) -> Finding:
    labels = task.question.labels
    return Finding(
        task.question,
        decision.answer,
        decision.labels,
        {label: float(share) for label, share in zip(labels, own, strict=True)},
        decision.reasons,
        evidence,
        card.is_in_force(task),
        decision.cautions,
    )


def _sum_up(
    card: HeadCard, findings: tuple[Finding, ...], attention: AttentionMap | None, strangeness: float | None
) -> Opinion:
    return Opinion(
        card.id,
        card.title,
        card.version,
        card.weights.sha256,
        card.input.encoder_fingerprint,
        findings,
        attention,
        strangeness,
        card.limits,
        say_evidence(card),
    )


def say_evidence(card: HeadCard) -> str:
    """What a head's figures rest on, in a sentence."""
    parts = []
    for task in card.tasks:
        evidence = task.evidence
        if evidence is None:
            parts.append(f"{task.question.title} was not evaluated on unseen cases")
            continue
        figure = {"auroc": "AUROC", "accuracy": "mean accuracy over classes"}[evidence.measure]
        parts.append(
            f"{task.question.title} {figure} {evidence.value.value:.2f} ({evidence.value.low:.2f}–"
            f"{evidence.value.high:.2f}) on {evidence.cases} unseen cases, best baseline "
            f"{evidence.baseline_value.value:.2f}"
        )
    return "; ".join(parts) + "."


def _towards(question: TaskQuestion, scores: BagScores, leading: int) -> Floats:
    """(n_tiles,) how much each tile pushes towards the leading label."""
    push = scores.push[question.id]
    if question.kind is Kind.CLASSES:
        others = (push.sum(axis=1) - push[:, leading]) / (push.shape[1] - 1)
        return np.asarray(push[:, leading] - others, np.float32)
    is_high = 2 * leading >= len(question.labels) - 1
    total: Floats = push.sum(axis=1, dtype=np.float32)
    return total if is_high else -total


class _Explainer:
    """Evidence of each question on one slide."""

    def __init__(
        self, head: Head, bag: EmbeddingBag, scores: BagScores, probabilities: dict[str, NDArray[np.float64]]
    ) -> None:
        self.head, self.bag, self.scores, self.probabilities = head, bag, scores, probabilities
        self.known = _find_nearest(head, scores.projected, bag.weights)

    def __call__(self, question: TaskQuestion) -> Evidence:
        leading = int(self.probabilities[question.id].argmax())
        towards = _towards(question, self.scores, leading)
        known = tuple(
            KnownCase(self.head.known.names[i], self.head.known.labels.get(question.id, ())[i], cosine)
            for i, cosine in self.known
        )
        return Evidence(
            _pick_apart(towards, self.bag.grid.column_row),
            _pick_apart(-towards, self.bag.grid.column_row),
            known,
            self._find_change(question, leading, towards),
        )

    def _find_change(self, question: TaskQuestion, leading: int, towards: Floats) -> str:
        """How few of the tiles that speak for the leading label it rests on."""
        order = np.argsort(-towards, kind="stable")
        count, weights = len(order), self.bag.weights
        for share in _LEFT_OUT:
            left_out = max(1, round(share * count))
            if left_out >= count:
                break
            rest = np.sort(order[left_out:])
            scores = score_network(self.head.network, self.scores.projected[rest], weights[rest])
            changed = int(_answer(self.head, scores)[question.id].argmax())
            if changed != leading:
                tiles = "its most telling tile" if left_out == 1 else f"its {left_out:,} most telling tiles"
                return f"Without {tiles} (of {count:,}) it would be {question.labels[changed]}."
        return (
            f"It rests on much of the slide: without the quarter of the tiles that speak most for it, "
            f"{question.labels[leading]} would still lead."
        )


def _find_nearest(head: Head, projected: Floats, weights: Floats) -> list[tuple[int, float]]:
    """Known cases whose mean tile is most like the slide's, seen from the centre of the known cases."""
    if not head.known.names:
        return []
    centre = head.known.means.mean(axis=0)
    own = np.average(projected, axis=0, weights=weights) - centre
    others = head.known.means - centre
    length = np.linalg.norm(others, axis=1) * np.linalg.norm(own)
    cosine = others @ own / np.maximum(length, 1e-12)
    return [(int(i), float(cosine[i])) for i in np.argsort(-cosine, kind="stable")[:SHOWN_CASES]]


def _pick_apart(towards: Floats, column_row: NDArray[np.int32]) -> tuple[int, ...]:
    """The tiles that push most, none beside another, and none that pushes the other way."""
    candidates = np.argsort(-towards, kind="stable")[: SHOWN_TILES * _CROWD]
    taken: list[int] = []
    for tile in candidates:
        if len(taken) == SHOWN_TILES or not towards[tile] > 0:
            break
        gaps = np.abs(column_row[taken] - column_row[tile]).max(axis=1)
        if (gaps > 1).all():
            taken.append(int(tile))
    return tuple(taken)
