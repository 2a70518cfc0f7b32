"""What a head is, what it was trained on, how well it did on cases it had not seen, and whether it is in force."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from slideway.core.opinion import TaskQuestion
from slideway.registry.records import CARD_FILE, CardLicence, CardTraining, CardUse

HEAD_FILE = "head.safetensors"


@dataclass(frozen=True)
class Bounds:
    """A figure in [0, 1] with its 95 % interval, over cases."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class TaskEvidence:
    """How well a head answered one question about cases it had not seen.

    Attributes:
        split: How unseen cases were kept apart: `leave-one-case-out`, `case-folds`, `leave-site-out`, `own-split`, or
            `tiles` where a set names no cases (optimistic).
        cases: Independent cases judged.
        positives: Of a binary task, cases that are positive; else 0.
        measure: What `value` is: `auroc` (binary) or `accuracy` (classes, ordinal; mean over classes).
        value: The head's figure.
        baseline: Name of the best baseline on the same folds.
        baseline_value: Its figure.
        sensitivity: At the point of operation; None for tasks of several classes.
        specificity: At the same point; None for tasks of several classes.
        ece: Expected calibration error after calibration, in [0, 1].
        answered: Share of cases that got an answer or a set, in [0, 1].
        sites: Independent hospitals or laboratories; 0 when unknown.
    """

    split: str
    cases: int
    positives: int
    measure: str
    value: Bounds
    baseline: str
    baseline_value: Bounds
    sensitivity: Bounds | None
    specificity: Bounds | None
    ece: float
    answered: float
    sites: int = 0

    @property
    def beats_baseline(self) -> bool:
        """Whether the lower bound of the head's figure is above the best baseline's figure."""
        return self.value.low > self.baseline_value.value


@dataclass(frozen=True)
class HeadTask:
    """One question of a head, with its evidence.

    Attributes:
        question: The question.
        in_force: It is answered by default. Off unless the evidence allows it, or a person switched it on.
        off_because: Why it is off, in words; empty when it is in force.
        evidence: Figures on unseen cases; None for a head that was not evaluated.
    """

    question: TaskQuestion
    in_force: bool
    off_because: str
    evidence: TaskEvidence | None


@dataclass(frozen=True)
class HeadInput:
    """The bags that a head reads.

    Attributes:
        encoder_id: Id of the encoder that made the bags it learnt from.
        encoder_fingerprint: Its fingerprint; bags of another are refused (invariant I7).
        width: Length of a vector.
        stain: Stain it learnt from, e.g. `H&E`.
        min_tiles: With fewer tiles a slide is not readable for it.
    """

    encoder_id: str
    encoder_fingerprint: str
    width: int
    stain: str
    min_tiles: int


@dataclass(frozen=True)
class HeadWeights:
    """The file of weights, `head.safetensors`.

    Attributes:
        sha256: Its hash.
        bytes: Its size.
        parameters: How many numbers were learnt.
        form: `abmil` (gated attention over a slide) or `instance` (a score of each tile).
    """

    sha256: str
    bytes: int
    parameters: int
    form: str


@dataclass(frozen=True)
class HeadCard:
    """The card beside a head's weights.

    Attributes:
        folder: Where card and weights are.
        id: Id it is chosen by.
        title: Its name in words.
        version: Its version.
        state: `candidate`, `shadow`, `active` or `retired`; only an active head's tasks are ever in force.
        input: The bags it reads.
        tasks: Its questions, parents before children.
        weights: The file of weights.
        licence: What the licence permits; `file` is the name of its text.
        use: What it is for.
        training: Where its knowledge comes from.
        limits: Plain sentences about what it cannot do.
        metrics: All that was measured, with the command that measured it.
    """

    folder: Path
    id: str
    title: str
    version: str
    state: str
    input: HeadInput
    tasks: tuple[HeadTask, ...]
    weights: HeadWeights
    licence: CardLicence
    use: CardUse
    training: CardTraining
    limits: tuple[str, ...]
    metrics: Mapping[str, Any]

    @property
    def weights_path(self) -> Path:
        """File of weights."""
        return self.folder / HEAD_FILE

    @property
    def file_names(self) -> tuple[str, ...]:
        """Names of all files of the head, the card first."""
        return (CARD_FILE, self.licence.file, HEAD_FILE)

    @property
    def fingerprint(self) -> str:
        """Sha256 in hex of weights, encoder and questions: what decides the meaning of its numbers."""
        facts = {
            "weights": self.weights.sha256,
            "encoder": self.input.encoder_fingerprint,
            "tasks": [[task.question.id, *task.question.labels] for task in self.tasks],
        }
        return hashlib.sha256(json.dumps(facts, sort_keys=True, separators=(",", ":")).encode()).hexdigest()

    def is_in_force(self, task: HeadTask) -> bool:
        """Whether a question is answered by default: the head is active and the task switched on."""
        return self.state == "active" and task.in_force
