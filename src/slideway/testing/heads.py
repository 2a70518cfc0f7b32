"""Small heads and cohorts for everyone's tests: a head whose answers can be foreseen, bags with a planted lesion."""

from __future__ import annotations

import csv
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from slideway.bundles import BagWriter
from slideway.core.bag import EmbeddingBag, Sampling
from slideway.core.opinion import Kind, TaskQuestion
from slideway.core.tissue import TileGrid
from slideway.heads.abmil import Abmil, Floats, Member, Projection, outputs_of
from slideway.heads.calibration import Scaling
from slideway.heads.conformal import ConformalCalibration, calibrate
from slideway.heads.head import Head, KnownCases, Network, TaskCertainty, save_head
from slideway.heads.instance import InstanceScorer
from slideway.heads.typicality import fit_typicality
from slideway.registry.blobs import hash_file
from slideway.registry.head_card import write_head_card
from slideway.registry.head_records import (
    HEAD_FILE,
    Bounds,
    HeadCard,
    HeadInput,
    HeadTask,
    HeadWeights,
    TaskEvidence,
)
from slideway.registry.records import CardLicence, CardTraining, CardUse

TOY_FINGERPRINT = "f" * 64
TOY_QUESTIONS = (
    TaskQuestion("neoplastic", "Neoplastic?", Kind.BINARY, ("no", "yes")),
    TaskQuestion("malignant", "Malignant?", Kind.BINARY, ("no", "yes"), parent="neoplastic"),
    TaskQuestion("grade", "Grade", Kind.ORDINAL, ("G1", "G2", "G3"), parent="malignant"),
    TaskQuestion("organ", "Organ or tissue", Kind.CLASSES, ("colon", "kidney", "liver")),
)
_LIT = 6.0  # how far a planted tile lies from the noise, in its standard deviations
_KNOWN_CASES = 24  # enough for strangeness to be told at a level of 0.05
_CASE_TILES, _LIT_TILES = 40, 4


@dataclass(frozen=True)
class ToyCohort:
    """A cohort file with a bag for each slide.

    Attributes:
        path: The cohort file; its columns are slide, case, site and `task`.
        task: Name of the label column.
        bags: Bag of each slide.
        cases: Case of each slide.
        labels: Label of each slide.
        planted: For each slide the tiles in which its label was planted; none for a `no`.
    """

    path: Path
    task: str
    bags: tuple[Path, ...]
    cases: tuple[str, ...]
    labels: tuple[str, ...]
    planted: tuple[NDArray[np.int64], ...]


def write_toy_head(
    folder: Path,
    *,
    head_id: str = "toy-head",
    questions: Sequence[TaskQuestion] = TOY_QUESTIONS,
    width: int = 8,
    form: str = "abmil",
    state: str = "active",
    in_force: bool = True,
    encoder_id: str = "toy",
    encoder_fingerprint: str = TOY_FINGERPRINT,
    min_tiles: int = 1,
    head: Head | None = None,
) -> HeadCard:
    """Write a complete head's folder in which everything agrees; returns its card.

    Its answers can be foreseen: see `light`. Attention lies on tiles far from 0.

    Args:
        folder: Where; made when missing.
        head_id: Id on the card.
        questions: What it answers; binary ones alone for the form `instance`.
        width: Length of a vector, at least the number of labels.
        form: `abmil` or `instance`.
        state: State on the card.
        in_force: Whether its tasks are switched on.
        encoder_id: Encoder on the card.
        encoder_fingerprint: Fingerprint of the bags that it reads.
        min_tiles: With fewer it does not read.
        head: Another head than `make_toy_head` makes of the questions, of the same width and form.
    """
    folder.mkdir(parents=True, exist_ok=True)
    head = head or make_toy_head(questions, width=width, form=form)
    save_head(folder / HEAD_FILE, head, encoder_fingerprint=encoder_fingerprint)
    (folder / "LICENSE").write_text("Made for tests; use it as you like.\n", encoding="utf-8")
    weights = folder / HEAD_FILE
    card = HeadCard(
        folder=folder,
        id=head_id,
        title="Toy head for tests",
        version="1.0.0",
        state=state,
        input=HeadInput(encoder_id, encoder_fingerprint, width, "H&E", min_tiles),
        tasks=tuple(
            HeadTask(question, in_force, "" if in_force else "Off in this test.", make_toy_evidence(question))
            for question in questions
        ),
        weights=HeadWeights(hash_file(weights), weights.stat().st_size, head.network.parameters, form),
        licence=CardLicence("CC0-1.0", "LICENSE", "Made for tests.", ("use", "redistribute")),
        use=CardUse("Tests.", "Any diagnosis."),
        training=CardTraining("None.", "Numbers set by hand."),
        limits=("It knows nothing.",),
        metrics={"command": "none"},
    )
    write_head_card(card)
    return card


def make_toy_evidence(question: TaskQuestion) -> TaskEvidence:
    """Figures as good as they are made up."""
    is_binary = question.kind is Kind.BINARY
    share = Bounds(0.9, 0.8, 0.95)
    return TaskEvidence(
        split="leave-one-case-out",
        cases=_KNOWN_CASES,
        positives=_KNOWN_CASES // 2 if is_binary else 0,
        measure="auroc" if is_binary else "accuracy",
        value=Bounds(0.95, 0.9, 0.99),
        baseline="mean-pool + logistic regression",
        baseline_value=Bounds(0.7, 0.6, 0.8),
        sensitivity=share if is_binary else None,
        specificity=share if is_binary else None,
        ece=0.05,
        answered=0.8,
        sites=2,
    )


def make_toy_head(questions: Sequence[TaskQuestion] = TOY_QUESTIONS, *, width: int = 8, form: str = "abmil") -> Head:
    """The same head without its files."""
    eye = np.eye(width, dtype=np.float32)
    projection = Projection(np.zeros(width, np.float32), eye)
    tasks = {question.id: _weigh(question, number, width) for number, question in enumerate(questions)}
    network: Network
    if form == "instance":
        network = InstanceScorer(projection, tasks, tuple(questions))
    else:
        zeros = np.zeros(width, np.float32)
        look = (eye / np.float32(3), zeros)
        member = Member((eye, zeros), look, look, np.full(width, 2, np.float32), tasks)
        network = Abmil(projection, (member,), tuple(questions))
    random = np.random.default_rng(0)
    known = [_imagine_case(questions, number, width, random) for number in range(_KNOWN_CASES)]
    names = tuple(f"case-{i:02d}" for i in range(_KNOWN_CASES))
    labels = {q.id: tuple(q.labels[i % len(q.labels)] for i in range(_KNOWN_CASES)) for q in questions}
    return Head(
        network,
        {question.id: TaskCertainty(Scaling(), _calibrate(question)) for question in questions},
        fit_typicality(known),
        KnownCases(names, np.stack([tiles.mean(axis=0) for tiles in known]), labels),
        random.normal(size=(16, width)).astype(np.float16),
    )


def light(questions: Sequence[TaskQuestion], task: str, label: str, *, width: int = 8) -> Floats:
    """(width,) what to add to a tile so that a toy head sees a label in it; nothing for a `no` and the lowest step."""
    number, question = next((i, q) for i, q in enumerate(questions) if q.id == task)
    added, place = np.zeros(width, np.float32), question.labels.index(label)
    if question.kind is Kind.CLASSES:
        added[(number + place) % width] = _LIT
    else:
        added[number % width] = _LIT * place / (len(question.labels) - 1)
    return added


def make_toy_bag(
    vectors: NDArray[np.floating], *, fingerprint: str = TOY_FINGERPRINT, sampling: Sampling | None = None
) -> EmbeddingBag:
    """A bag of (n_tiles, width) vectors, laid out on a square."""
    stored = vectors.astype(np.float16)
    count, side = len(stored), max(1, int(np.ceil(np.sqrt(len(stored)))))
    places = np.stack([np.arange(count) % side, np.arange(count) // side], axis=1).astype(np.int32)
    sha256 = hashlib.sha256(stored.tobytes()).hexdigest()
    grid = TileGrid(places, 224, 0.5, 0.5)
    return EmbeddingBag(stored, grid, np.ones(count, np.float32), "toy", fingerprint, sha256, sampling)


def write_toy_bag(path: Path, bag: EmbeddingBag) -> Path:
    """Write a bag as a file; returns its path."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with BagWriter(path, bag.grid, bag.width) as writer:
        writer.write(np.arange(len(bag)), bag.vectors.astype(np.float32), bag.focus)
        writer.finish(
            encoder_id=bag.encoder_id,
            fingerprint=bag.fingerprint,
            slide_sha256=bag.slide_sha256,
            sampling=bag.sampling,
        )
    return path


def write_toy_cohort(
    folder: Path,
    *,
    cases: int = 12,
    classes: int = 2,
    slides: int = 1,
    tiles: int = 30,
    width: int = 16,
    planted: int = 4,
    strength: float = _LIT,
    sites: int = 2,
    seed: int = 0,
    fingerprint: str = TOY_FINGERPRINT,
) -> ToyCohort:
    """Write bags of noise with a planted signal, and the cohort file that says what was planted.

    Of two classes, `no` is noise alone and `yes` has planted tiles. Of more, each has its own direction. Cases take
    the labels in turn; sites say nothing of them.

    Args:
        folder: Where; made when missing.
        cases: Cases.
        classes: Labels, at most `width`.
        slides: Slides of each case.
        tiles: Tiles of each slide.
        width: Length of a vector.
        planted: Tiles of a slide in which its label is planted.
        strength: How far a planted tile lies from the noise, in its standard deviations; 0 plants nothing.
        sites: Hospitals.
        seed: Of the noise.
        fingerprint: Of the encoder that made the bags.
    """
    random = np.random.default_rng(seed)
    names = ("no", "yes") if classes == 2 else tuple(f"kind-{chr(97 + i)}" for i in range(classes))
    task = "malignant" if classes == 2 else "organ"
    rows, bags, labels, owners, places = [], [], [], [], []
    for number in range(cases * slides):
        case, one = number // slides, number // slides % classes
        vectors = random.normal(size=(tiles, width))
        held = np.sort(random.permutation(tiles)[:planted]) if classes > 2 or one else np.empty(0, np.int64)
        vectors[held, one] += strength
        name = f"slide-{number:03d}.safetensors"
        bags.append(write_toy_bag(folder / name, make_toy_bag(vectors, fingerprint=fingerprint)))
        rows.append((name, f"case-{case:03d}", f"site-{case // classes % sites}", names[one]))
        owners.append(f"case-{case:03d}")
        labels.append(names[one])
        places.append(held)
    path = folder / "cohort.csv"
    with path.open("w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows([("slide", "case", "site", task), *rows])
    return ToyCohort(path, task, tuple(bags), tuple(owners), tuple(labels), tuple(places))


def _imagine_case(questions: Sequence[TaskQuestion], number: int, width: int, random: np.random.Generator) -> Floats:
    """(n_tiles, width) noise, some of it lit for the labels of a known case."""
    tiles = random.normal(size=(_CASE_TILES, width)).astype(np.float32)
    for question in questions:
        tiles[:_LIT_TILES] += light(questions, question.id, question.labels[number % len(question.labels)], width=width)
    return tiles


def _weigh(question: TaskQuestion, number: int, width: int) -> tuple[Floats, Floats]:
    """Task number i looks at axis i; of several classes each at its own, from there on."""
    count = outputs_of(question)
    matrix, bias = np.zeros((width, count), np.float32), np.zeros(count, np.float32)
    if question.kind is Kind.CLASSES:
        matrix[(number + np.arange(count)) % width, np.arange(count)] = 2
    else:
        matrix[number % width] = 2
        bias[:] = -2 * _LIT * (np.arange(count) + 0.5) / count * 0.8  # attention leaves some of the weight on noise
    return matrix, bias


def _calibrate(question: TaskQuestion) -> ConformalCalibration:
    """Twelve cases of each label, whose true label got from 0.6 to 0.98."""
    count = len(question.labels)
    labels = np.repeat(np.arange(count), 12)
    right = np.tile(np.linspace(0.6, 0.98, 12), count)
    shares = np.repeat(((1 - right) / (count - 1))[:, None], count, axis=1)
    shares[np.arange(len(labels)), labels] = right
    return calibrate(shares, labels)
