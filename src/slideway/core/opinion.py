"""What a head says of a slide: findings with certainty, reasons and evidence, and where it looked."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum

import numpy as np
from numpy.typing import NDArray

from slideway.core.tissue import Reason

NEGATIVE, POSITIVE = "no", "yes"  # labels of a yes-or-no task, in this order


class Kind(StrEnum):
    """What a task asks for."""

    BINARY = "binary"
    CLASSES = "classes"
    ORDINAL = "ordinal"


class Answer(StrEnum):
    """How far a finding goes; each is an answer, none is an error."""

    ANSWER = "answer"
    SET = "set"
    REFER = "refer"
    NOT_READABLE = "not-readable"


@dataclass(frozen=True)
class TaskQuestion:
    """One question that a head answers.

    Attributes:
        id: Stable word, e.g. `neoplastic`, or `subtype` with a site in front: `kidney.subtype`.
        title: The question as a person reads it.
        kind: Yes-or-no, one of several classes, or a class on an ordered scale.
        labels: Labels it may get, in the order of the head's numbers; of a binary task `no`, `yes`.
        parent: Task whose answer must be yes before this one is asked; empty for none.
        sites: Ids of the catalogue's sites it was trained on; empty when it is not tied to any.
    """

    id: str
    title: str
    kind: Kind
    labels: tuple[str, ...]
    parent: str = ""
    sites: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if len(self.labels) < 2 or len(set(self.labels)) < len(self.labels):
            raise ValueError(f"{self.id}: a task has at least two labels, each once")
        if self.kind is Kind.BINARY and self.labels != (NEGATIVE, POSITIVE):
            raise ValueError(f"{self.id}: the labels of a binary task are {NEGATIVE}, {POSITIVE}")


@dataclass(frozen=True)
class KnownCase:
    """A case that the head learnt from and that looks like this slide.

    Attributes:
        case: Its pseudonym in the head's file.
        label: Its label for the task; empty when it has none.
        cosine: Likeness in [-1, 1].
    """

    case: str
    label: str
    cosine: float


@dataclass(frozen=True)
class Evidence:
    """What speaks for and against a finding.

    Attributes:
        for_tiles: Tiles of the bag that speak most for the leading label, most telling first.
        against_tiles: Tiles that speak most against it.
        known: Nearest cases that the head learnt from, nearest first.
        change: What would change the answer, in a sentence; empty when nothing simple would.
    """

    for_tiles: tuple[int, ...] = ()
    against_tiles: tuple[int, ...] = ()
    known: tuple[KnownCase, ...] = ()
    change: str = ""


@dataclass(frozen=True)
class Finding:
    """What a head says to one question about one slide; never a diagnosis.

    Attributes:
        task: The question.
        answer: How far it goes.
        labels: One label for `answer`, several for `set`, and those that could not be told apart for `refer`;
            empty when nothing was read.
        probabilities: Calibrated, by label, summing to 1; empty when nothing was read.
        reasons: Why it does not go further, in words; empty only for `answer`.
        evidence: What speaks for and against.
        in_force: The head's task is switched on; a research starter that is off is shown as such.
        cautions: What to keep in mind whatever the answer.
    """

    task: TaskQuestion
    answer: Answer
    labels: tuple[str, ...]
    probabilities: Mapping[str, float]
    reasons: tuple[Reason, ...] = ()
    evidence: Evidence = field(default_factory=Evidence)
    in_force: bool = False
    cautions: tuple[Reason, ...] = ()

    def __post_init__(self) -> None:
        if (self.answer is Answer.ANSWER) != (not self.reasons):
            raise ValueError(f"{self.task.id}: a finding has reasons exactly when it is not a plain answer")
        if self.answer is Answer.ANSWER and len(self.labels) != 1:
            raise ValueError(f"{self.task.id}: an answer is exactly one label")

    @property
    def leading(self) -> str:
        """The most probable label; empty when nothing was read."""
        return max(self.probabilities, key=lambda label: self.probabilities[label], default="")


@dataclass(frozen=True)
class AttentionMap:
    """Where a head looked.

    Attributes:
        weight: (n_tiles,) float32, at least 0, summing to 1; empty for an empty bag.
        push: (n_tiles,) float32, how much each tile pushes towards (above 0) or away from the leading label of the
            head's first task.
    """

    weight: NDArray[np.float32]
    push: NDArray[np.float32]

    def __post_init__(self) -> None:
        if self.weight.shape != self.push.shape or self.weight.ndim != 1:
            raise ValueError("an attention map holds one weight and one push for each tile")


@dataclass(frozen=True)
class Opinion:
    """All that one head says of one slide.

    Attributes:
        head_id: Id on the head's card.
        head_title: Its name in words.
        head_version: Version on the card.
        head_sha256: Hash of the head's weights.
        encoder_fingerprint: Fingerprint of the encoder whose bag it read.
        findings: One for each question, parents before children.
        attention: Where it looked; None when nothing was read.
        strangeness: Share of the head's own training cases, each judged by a head that had not seen it, that are less
            unlike the rest than this slide, in [0, 1]; None when nothing was read.
        limits: Plain sentences from the card.
        evidence_words: What its figures rest on, in a sentence, from the card.
    """

    head_id: str
    head_title: str
    head_version: str
    head_sha256: str
    encoder_fingerprint: str
    findings: tuple[Finding, ...]
    attention: AttentionMap | None
    strangeness: float | None
    limits: tuple[str, ...] = ()
    evidence_words: str = ""
