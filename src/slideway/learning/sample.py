"""What a training works on: bags as files, whose they are, and what is known of them, as arrays."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from slideway.bundles import read_bag
from slideway.core.bag import EmbeddingBag, require_same_encoder
from slideway.core.errors import CohortError
from slideway.core.opinion import Kind, TaskQuestion
from slideway.learning.cohort import FACTS, Cohort
from slideway.learning.questions import index_labels

Labels = NDArray[np.int64]


@dataclass(frozen=True)
class Sample:
    """Slides to learn from or to judge; bags stay in their files.

    Attributes:
        bag_paths: Bag of each slide.
        cases: Case of each slide.
        questions: What is asked, parents before children.
        labels: For each task (n_slides,) positions in its labels, -1 where unknown. Of a binary child task every slide
            whose parent's answer is no is a no.
        facts: `site`, `scanner`, `stain`, `age_group`, `laboratory` of each slide; empty where unknown.
        folds: `train`, `validation` or `test` of a public cohort's own split; empty for none.
        names: Name of each slide, for lists that stay in the hospital.
    """

    bag_paths: tuple[Path, ...]
    cases: tuple[str, ...]
    questions: tuple[TaskQuestion, ...]
    labels: Mapping[str, Labels]
    facts: Mapping[str, tuple[str, ...]]
    folds: tuple[str, ...]
    names: tuple[str, ...]

    def __len__(self) -> int:
        """Number of slides."""
        return len(self.bag_paths)

    def bag(self, index: int) -> EmbeddingBag:
        """Bag of one slide; its vectors stay in the file."""
        return read_bag(self.bag_paths[index])

    def select(self, indices: Sequence[int] | NDArray[np.int64]) -> Sample:
        """Some of the slides."""
        picked = [int(i) for i in indices]
        return Sample(
            tuple(self.bag_paths[i] for i in picked),
            tuple(self.cases[i] for i in picked),
            self.questions,
            {task: labels[picked] for task, labels in self.labels.items()},
            {name: tuple(values[i] for i in picked) for name, values in self.facts.items()},
            tuple(self.folds[i] for i in picked),
            tuple(self.names[i] for i in picked),
        )


def gather_sample(cohort: Cohort, questions: Sequence[TaskQuestion], bag_paths: Sequence[Path]) -> Sample:
    """Bring a cohort and its bags together; slides without tiles are left out.

    Raises:
        CohortError: No slide has tiles.
        FingerprintMismatchError: The bags were made by different encoders.
        UnreadableBagError: A bag is damaged.
    """
    labels = {question.id: _label_all(cohort, question, questions) for question in questions}
    return gather_labelled(cohort, questions, labels, bag_paths)


def gather_labelled(
    cohort: Cohort, questions: Sequence[TaskQuestion], labels: Mapping[str, Labels], bag_paths: Sequence[Path]
) -> Sample:
    """The same with labels that are already positions; slides without tiles are left out.

    Raises:
        CohortError: No slide has tiles.
        FingerprintMismatchError: The bags were made by different encoders.
        UnreadableBagError: A bag is damaged.
    """
    bags = [read_bag(path) for path in bag_paths]
    require_same_encoder(*(bag.fingerprint for bag in bags))
    whole = Sample(
        tuple(bag_paths),
        cohort.cases,
        tuple(questions),
        labels,
        {name: cohort.values(name) for name in FACTS},
        tuple(row.fold for row in cohort.rows),
        tuple(row.name for row in cohort.rows),
    )
    kept = [i for i, bag in enumerate(bags) if len(bag)]
    if not kept:
        raise CohortError(f"{cohort.path.name}: no slide has a tile of tissue; nothing can be learnt")
    return whole.select(kept)


def _label_all(cohort: Cohort, question: TaskQuestion, questions: Sequence[TaskQuestion]) -> Labels:
    own = index_labels(cohort, question)
    if question.kind is not Kind.BINARY or not question.parent:
        return own
    parent = next(other for other in questions if other.id == question.parent)
    return np.where(_label_all(cohort, parent, questions) == 0, 0, own)
