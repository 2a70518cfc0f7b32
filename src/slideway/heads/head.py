"""A head ready to run: verified card, weights from one safetensors file, its golden bag reproduced."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from slideway.core.bag import EmbeddingBag, require_same_encoder
from slideway.core.errors import UntrustedHeadError
from slideway.core.opinion import TaskQuestion
from slideway.heads.abmil import Abmil, BagScores, Floats, Member, Projection, outputs_of, score_tiles_together
from slideway.heads.calibration import Scaling
from slideway.heads.conformal import ConformalCalibration
from slideway.heads.instance import InstanceScorer, score_instances
from slideway.heads.typicality import Typicality
from slideway.registry.head_records import HeadCard
from slideway.registry.heads import verify_head_files

FORMAT = "slideway-head"
VERSION_MAJOR = 1
# Engines of matrix products differ in the last bits; a hundredth of a logit moves no probability by more than .0025.
GOLDEN_TOLERANCE = 0.01
# What reading facts and tensors can run into when somebody else made them.
_DAMAGED = (LookupError, ValueError, TypeError, AttributeError, RecursionError)
Network = Abmil | InstanceScorer
Arrays = dict[str, NDArray[Any]]


@dataclass(frozen=True)
class KnownCases:
    """The cases that a head learnt from, as one vector each.

    Attributes:
        names: (n_cases,) pseudonyms.
        means: (n_cases, rank) float32, mean tile of each behind the input layer.
        labels: For each task the label of each case; empty where unknown.
    """

    names: tuple[str, ...]
    means: Floats
    labels: Mapping[str, tuple[str, ...]]

    def __post_init__(self) -> None:
        lengths = {len(self.names), len(self.means), *map(len, self.labels.values())}
        if len(lengths) > 1 or self.means.ndim != 2:
            raise ValueError("each known case has one name, one vector and one label for each task")


@dataclass(frozen=True)
class TaskCertainty:
    """How the numbers of one task become a calibrated answer.

    Attributes:
        scaling: From logits to probabilities.
        conformal: Which labels cannot be excluded.
    """

    scaling: Scaling
    conformal: ConformalCalibration


@dataclass(frozen=True)
class Head:
    """A network with all that makes its answers honest.

    Attributes:
        network: What scores a bag.
        certainty: For each task.
        typicality: What the cases it learnt from look like; None when they were too few to say.
        known: Those cases.
        golden: (n_tiles, width) float16, a bag whose logits must be reproduced before it is used.
    """

    network: Network
    certainty: Mapping[str, TaskCertainty]
    typicality: Typicality | None
    known: KnownCases
    golden: NDArray[np.float16]

    @property
    def questions(self) -> tuple[TaskQuestion, ...]:
        """What it is asked, parents before children."""
        return self.network.questions

    def score(self, bag: EmbeddingBag) -> BagScores:
        """Run the network over a bag that holds at least one tile."""
        weights = None if bag.sampling is None else bag.sampling.weight
        return score_network(self.network, self.network.projection(bag.vectors), weights)


def score_network(network: Network, projected: Floats, weights: Floats | None = None) -> BagScores:
    """Run a network over (n_tiles, rank) vectors behind its input layer."""
    if isinstance(network, InstanceScorer):
        return score_instances(network, projected, weights)
    return score_tiles_together(network, projected, weights)


def save_head(path: Path, head: Head, *, encoder_fingerprint: str = "") -> None:
    """Write a head as one safetensors file.

    Args:
        path: Where to.
        head: The head.
        encoder_fingerprint: Of the encoder whose bags it learnt from; then a card that names another is refused.
    """
    network = head.network
    arrays: Arrays = {"projection.mean": network.projection.mean, "projection.axes": network.projection.axes}
    arrays |= dict(_list_instance(network) if isinstance(network, InstanceScorer) else _list_members(network))
    for task, certainty in head.certainty.items():
        arrays |= {f"conformal.{task}.{name}": part for name, part in certainty.conformal.to_arrays().items()}
    if head.typicality is not None:
        arrays |= {f"typicality.{name}": part for name, part in head.typicality.to_arrays().items()}
    arrays |= {"known.means": head.known.means, "golden.vectors": head.golden}
    golden = score_network(network, network.projection(head.golden))
    arrays |= {f"golden.{task}": logits for task, logits in golden.logits.items()}
    facts = {
        "encoder": encoder_fingerprint,
        "questions": _describe_questions(head.questions),
        "scalings": {task: certainty.scaling.to_json() for task, certainty in head.certainty.items()},
        "known": {"names": list(head.known.names), "labels": {t: list(v) for t, v in head.known.labels.items()}},
    }
    # One entry alone: safetensors writes several in another order each time, and the same head would hash differently.
    metadata = {FORMAT: json.dumps({"version": f"{VERSION_MAJOR}.0", **facts}, ensure_ascii=False)}
    save_file({name: np.ascontiguousarray(part) for name, part in arrays.items()}, path, metadata=metadata)


def _describe_questions(questions: Sequence[TaskQuestion]) -> list[list[Any]]:
    """What decides the meaning of a head's numbers; titles and sites are the card's."""
    return [[question.id, question.kind.value, list(question.labels), question.parent] for question in questions]


def _list_members(network: Abmil) -> Iterator[tuple[str, NDArray[Any]]]:
    for number, member in enumerate(network.members):
        for name in ("hidden", "tanh", "gate"):
            weight, bias = getattr(member, name)
            yield f"member.{number}.{name}.weight", weight
            yield f"member.{number}.{name}.bias", bias
        yield f"member.{number}.score", member.score
        for task, (weight, bias) in member.tasks.items():
            yield f"member.{number}.task.{task}.weight", weight
            yield f"member.{number}.task.{task}.bias", bias


def _list_instance(network: InstanceScorer) -> Iterator[tuple[str, NDArray[Any]]]:
    for task, (weight, bias) in network.tasks.items():
        yield f"instance.task.{task}.weight", weight
        yield f"instance.task.{task}.bias", bias


def load_head(card: HeadCard) -> Head:
    """Load a head and prove that it computes here what it computed when it was made.

    Raises:
        UntrustedHeadError: A file does not match its hash or its card, or its golden bag gives other numbers.
    """
    verify_head_files(card)
    try:
        with safe_open(card.weights_path, "numpy") as file:
            metadata = file.metadata() or {}
            arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (no mapping)
        head = _build_head(card, metadata, arrays)
    except (OSError, SafetensorError, *_DAMAGED) as error:
        raise UntrustedHeadError(
            f"{card.id}: {card.weights_path.name} does not hold what its card promises ({type(error).__name__}: "
            f"{error}); install the head again"
        ) from error
    _require_golden(card, head, arrays)
    return head


def require_bag_fits(card: HeadCard, bag: EmbeddingBag) -> None:
    """Refuse a bag of another encoder (invariant I7).

    Raises:
        FingerprintMismatchError: The head learnt from another encoder's bags.
    """
    require_same_encoder(card.input.encoder_fingerprint, bag.fingerprint)


def _build_head(card: HeadCard, metadata: Mapping[str, str], arrays: Arrays) -> Head:
    if FORMAT not in metadata:
        raise ValueError("not a head's file")
    facts = json.loads(metadata[FORMAT])
    if int(facts["version"].split(".")[0]) != VERSION_MAJOR:
        raise ValueError(f"version {facts['version']}, this Slideway knows {VERSION_MAJOR}.x: update it")
    questions = tuple(task.question for task in card.tasks)
    _require_own_card(card, questions, facts)
    network = _build_network(card, questions, arrays)
    certainty = {
        question.id: TaskCertainty(
            Scaling.from_json(facts["scalings"][question.id]),
            ConformalCalibration.from_arrays(_below(arrays, f"conformal.{question.id}.")),
        )
        for question in questions
    }
    strange = _below(arrays, "typicality.")
    typicality = Typicality.from_arrays(strange) if strange else None
    known = facts["known"]
    labels = {question.id: tuple(map(str, known["labels"][question.id])) for question in questions}
    cases = KnownCases(tuple(map(str, known["names"])), arrays["known.means"], labels)
    head = Head(network, certainty, typicality, cases, arrays["golden.vectors"])
    _require_one_size(head)
    return head


def _require_own_card(card: HeadCard, questions: Sequence[TaskQuestion], facts: Mapping[str, Any]) -> None:
    """Refuse a card whose labels, order of tasks or encoder are not those that the numbers were learnt for."""
    if facts["questions"] != _describe_questions(questions):
        raise ValueError("made for other tasks, labels, or another order of them, than the card's")
    if facts["encoder"] and facts["encoder"] != card.input.encoder_fingerprint:
        raise ValueError(f"made for bags of encoder {facts['encoder'][:12]}, which is not the card's")


def _require_one_size(head: Head) -> None:
    """Refuse parts that would only meet, and fail, when a slide is read."""
    rank = head.network.projection.axes.shape[1]
    if head.known.means.shape[1] != rank or (head.typicality is not None and len(head.typicality.mean) != rank):
        raise ValueError("known cases of another width than the input layer's")
    for question in head.questions:
        certainty, count = head.certainty[question.id], len(question.labels)
        if len(certainty.conformal.scores) != count or len(certainty.scaling.bias) not in (0, count):
            raise ValueError(f"{question.id}: certainty for another number of labels than the card's")


def _build_network(card: HeadCard, questions: Sequence[TaskQuestion], arrays: Arrays) -> Network:
    projection = Projection(arrays["projection.mean"], arrays["projection.axes"])
    if projection.axes.shape[0] != card.input.width or projection.mean.shape != (card.input.width,):
        raise ValueError(f"an input layer for vectors of {projection.axes.shape[0]} instead of {card.input.width}")

    def pair(prefix: str) -> tuple[Floats, Floats]:
        return arrays[f"{prefix}.weight"], arrays[f"{prefix}.bias"]

    def tasks(prefix: str) -> dict[str, tuple[Floats, Floats]]:
        found = {question.id: pair(f"{prefix}.task.{question.id}") for question in questions}
        if any(len(found[q.id][1]) != outputs_of(q) for q in questions):
            raise ValueError("a task with another number of labels than the card's")
        return found

    if card.weights.form == "instance":
        return InstanceScorer(projection, tasks("instance"), tuple(questions))
    count = len({name.split(".")[1] for name in arrays if name.startswith("member.")})
    if not count:
        raise ValueError("no network in it")
    members = []
    for number in range(count):
        name = f"member.{number}"
        hidden, tanh, gate = (pair(f"{name}.{part}") for part in ("hidden", "tanh", "gate"))
        members.append(Member(hidden, tanh, gate, arrays[f"{name}.score"], tasks(name)))
    return Abmil(projection, tuple(members), tuple(questions))


def _below(arrays: Arrays, prefix: str) -> Arrays:
    return {name.removeprefix(prefix): part for name, part in arrays.items() if name.startswith(prefix)}


def _require_golden(card: HeadCard, head: Head, arrays: Arrays) -> None:
    try:
        found = score_network(head.network, head.network.projection(head.golden)).logits
        # numpy's largest of numbers with one that is not a number is none; Python's max would pass it over
        largest = float(np.max([np.abs(found[q.id] - arrays[f"golden.{q.id}"]).max() for q in head.questions]))
    except _DAMAGED as error:
        raise UntrustedHeadError(
            f"{card.id}: its golden bag does not fit it ({error}); install the head again"
        ) from error
    if not largest <= GOLDEN_TOLERANCE:
        raise UntrustedHeadError(
            f"{card.id}: its golden bag gives other numbers here (by {largest:.3g} of a logit, {GOLDEN_TOLERANCE} is "
            "allowed); card and weights do not belong together: install the head again"
        )
