"""All that Slideway says of a bag: every head's findings, maps, groups, novelty and the cases it looks like."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import numpy as np
from material import CASE_FOLDS, Atlas, Slide
from numpy.typing import NDArray

from slideway.core.bag import EmbeddingBag
from slideway.core.findings import Novelty, TissueGroups
from slideway.core.opinion import TaskQuestion
from slideway.heads.abmil import Abmil, to_probabilities
from slideway.heads.diagnose import SlideFacts, form_opinion
from slideway.heads.fit import Training, fit_abmil
from slideway.heads.groups import group_tiles
from slideway.heads.head import Head, load_head
from slideway.heads.hierarchy import join_questions
from slideway.heads.instance import score_tiles
from slideway.heads.novelty import find_novelty
from slideway.heads.similar import find_similar
from slideway.learning.baselines import judge_by_mean, judge_by_neighbours, pool_mean
from slideway.registry.head_records import HeadCard
from slideway.registry.heads import find_head

Array = NDArray[Any]
SHIPPED = ("slideway-atlas", "slideway-nodes", "slideway-oral")
ABMIL, MEAN, NEAREST = "gated attention, unseen case", "mean-pool, unseen case", "nearest cases, unseen case"
UNSEEN = (ABMIL, MEAN, NEAREST)
# Pinned as in bench/heads/torchmil_folds.py: 120 steps a fold, a second and a half.
TRAINING = Training(more_steps=(), epochs=40, batch=32)
FACTS = SlideFacts(stain="H&E")


@dataclass(frozen=True)
class Answered:
    """One decision about one slide.

    Attributes:
        probabilities: (n_labels,).
        kind: `answer`, `set` or `refer`; empty of methods that do not say.
        labels: The conformal set or what could not be told apart.
    """

    probabilities: Array
    kind: str = ""
    labels: tuple[str, ...] = ()

    @property
    def leading(self) -> int:
        return int(self.probabilities.argmax())


@dataclass
class Told:
    """All that is said of one bag.

    Attributes:
        decisions: By method and task.
        attention: (n_tiles,) of the shipped atlas head.
        tile_logits: By shipped tile head (n_tiles,).
        groups: The groups of its tiles.
        novelty: How unlike the reference each tile is.
        mean: (width,) mean tile.
        nearest: Name of the most similar slide of another case; empty until the library was searched.
        cosine: Score of that slide.
    """

    decisions: dict[tuple[str, str], Answered]
    attention: Array
    tile_logits: dict[str, Array]
    groups: TissueGroups
    novelty: Novelty
    mean: Array
    nearest: str = ""
    score: float = 0.0
    ranking: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Judges:
    """What was learnt without the cases that it judges, fold by fold."""

    atlas: Atlas
    networks: tuple[Abmil, ...]
    means: Array


@cache
def load_shipped() -> tuple[tuple[HeadCard, Head], ...]:
    cards = [find_head(name) for name in SHIPPED]
    return tuple((card, load_head(card)) for card in cards)


def describe_tissue(bag: EmbeddingBag) -> tuple[TissueGroups, Novelty]:
    novelty = find_novelty(bag)
    assert novelty is not None
    return group_tiles(bag), novelty


def learn(atlas: Atlas) -> Judges:
    """Gated attention for each fold of cases; the simple methods learn when they are asked."""
    networks = []
    vectors = [np.asarray(part.bag.vectors, np.float32) for part in atlas.parts]
    for fold in range(CASE_FOLDS):
        known = [i for i, part in enumerate(atlas.parts) if part.fold != fold]
        labels = {task: own[known] for task, own in atlas.labels.items()}
        networks.append(fit_abmil([vectors[i] for i in known], labels, atlas.questions, TRAINING))
    return Judges(atlas, tuple(networks), np.stack([pool_mean(part.bag) for part in atlas.parts]))


def tell(slide: Slide, bag: EmbeddingBag, judges: Judges) -> Told:
    """Everything but what `judge_means` and `search` add, which work on many bags at once."""
    decisions: dict[tuple[str, str], Answered] = {}
    attention, tile_logits = np.empty(0), {}
    for card, head in load_shipped():
        opinion = form_opinion(card, head, bag, FACTS, explain=False)
        for finding in opinion.findings:
            if not finding.probabilities:
                continue
            shares = np.array([finding.probabilities[label] for label in finding.task.labels])
            found = Answered(shares, finding.answer.value, tuple(sorted(finding.labels)))
            decisions[card.id, finding.task.id] = found
        if card.weights.form == "instance":
            tile_logits[card.id] = score_tiles(head.network, bag.vectors, card.tasks[0].question.id)
        elif opinion.attention is not None:
            attention = opinion.attention.weight
    for task, shares in judge_by_network(judges.networks[slide.fold], bag).items():
        decisions[ABMIL, task] = Answered(shares)
    groups, novelty = describe_tissue(bag)
    return Told(decisions, attention, tile_logits, groups, novelty, pool_mean(bag))


def judge_by_network(network: Abmil, bag: EmbeddingBag) -> dict[str, Array]:
    from slideway.heads.abmil import score_bag

    weights = None if bag.sampling is None else bag.sampling.weight
    logits = score_bag(network, bag.vectors, weights).logits
    joined = join_questions(network.questions, {task: own[None] for task, own in logits.items()})
    return {task: np.exp(own[0]) for task, own in joined.items()}


def judge_means(judges: Judges, slides: Sequence[Slide], told: Sequence[Told]) -> None:
    """Add what the mean tile says, by regression and by the nearest cases that are of another fold."""
    atlas = judges.atlas
    fold_of = np.array([part.fold for part in atlas.parts])
    for fold in range(CASE_FOLDS):
        asked = [i for i, slide in enumerate(slides) if slide.fold == fold]
        if not asked:
            continue
        means, is_known = np.stack([told[i].mean for i in asked]), fold_of != fold
        for question in atlas.questions:
            labels = atlas.labels[question.id][is_known]
            for name, judge in ((MEAN, judge_by_mean), (NEAREST, judge_by_neighbours)):
                shares = as_shares(question, judge(question, judges.means[is_known], labels, means))
                for i, own in zip(asked, shares, strict=True):
                    told[i].decisions[name, question.id] = Answered(own)


def as_shares(question: TaskQuestion, logits: Array) -> Array:
    return to_probabilities(question, logits)


def search(slide: Slide, bag: EmbeddingBag, told: Told, library: Sequence[tuple[Slide, EmbeddingBag]]) -> None:
    """Add which slides of other cases it looks like; all that is searched has travelled in the same way."""
    others = [(other, held) for other, held in library if other.case != slide.case]
    found = find_similar(bag, told.groups, [held for _, held in others], novelty=told.novelty)
    told.ranking = [others[case.slide][0].name for case in found.cases]
    told.nearest, told.score = told.ranking[0], found.cases[0].score
