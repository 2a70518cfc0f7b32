"""Which heads speak of a slide, and what they say: those in force, or those that were asked for by name."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from slideway.core.bag import EmbeddingBag
from slideway.core.errors import FingerprintMismatchError, UnknownResolutionError
from slideway.core.opinion import Finding, Opinion
from slideway.core.slide import ResolutionSource
from slideway.core.tissue import QualityGrade
from slideway.heads.diagnose import SlideFacts, form_opinion
from slideway.heads.head import Head, load_head
from slideway.pipeline.survey import Survey, cut_tissue
from slideway.registry.card import ModelCard
from slideway.registry.head_records import HeadCard
from slideway.registry.heads import find_head, list_heads
from slideway.slides import OpenedSlide
from slideway.tissue import estimate_mpp, judge_stain

# Nuclei put a slide's pixel size within 30 % in 19 of 20 slides (docs/resolution.md): beyond this factor, either way,
# rather the file is wrong.
_DOUBTFUL_FACTOR = 1.6


@dataclass(frozen=True)
class HeadChoice:
    """The heads that are to speak of a slide.

    Attributes:
        cards: Their cards.
        asked: They were named; then all their questions are answered, else only those in force.
        silent: One sentence for each question that an installed head of this encoder could answer and does not.
    """

    cards: tuple[HeadCard, ...]
    asked: bool
    silent: tuple[str, ...]

    @property
    def stamps(self) -> list[dict[str, str]]:
        """What result.json keeps of each: id, version and fingerprint."""
        return [{"id": card.id, "version": card.version, "fingerprint": card.fingerprint} for card in self.cards]


def choose_heads(encoder: ModelCard, names: Sequence[str | Path] | None) -> HeadChoice:
    """Heads by name, or, with None, every head of this encoder that has a question in force.

    Raises:
        UnknownHeadError: A head that was named is not there.
        UntrustedHeadError: Its card cannot be read.
        FingerprintMismatchError: It learnt from another encoder's bags.
    """
    own = [card for card in list_heads() if card.input.encoder_fingerprint == encoder.fingerprint]
    if names is None:
        chosen = tuple(card for card in own if any(card.is_in_force(task) for task in card.tasks))
    else:
        chosen = tuple(find_head(name) for name in names)
    for card in chosen:
        if card.input.encoder_fingerprint != encoder.fingerprint:
            raise FingerprintMismatchError(
                f"head {card.id} reads bags of {card.input.encoder_id} ({card.input.encoder_fingerprint[:12]}), the "
                f"slide is read with {encoder.id} ({encoder.fingerprint[:12]}); give --encoder {card.input.encoder_id}"
            )
    spoken = {card.id for card in chosen} if names is not None else set()
    silent = tuple(
        f"{task.question.title} ({card.id}): off. {task.off_because or f'The head is {card.state}.'}"
        for card in own
        if card.id not in spoken
        for task in card.tasks
        if not card.is_in_force(task)
    )
    return HeadChoice(chosen, names is not None, silent)


def load_heads(choice: HeadChoice) -> tuple[Head, ...]:
    """Load and prove the heads.

    Raises:
        UntrustedHeadError: One is not what its card says.
    """
    return tuple(load_head(card) for card in choice.cards)


def gather_facts(opened: OpenedSlide, survey: Survey, quality: QualityGrade, *, site: str = "") -> SlideFacts:
    """What bears on trusting a head on this slide: quality, stain by its look, and whether its scale is credible."""
    resolution = survey.slide.resolution
    return SlideFacts(
        quality=quality,
        site=site,
        stain=judge_stain(survey.thumbnail, survey.mask).stain,
        is_resolution_estimated=resolution.source is ResolutionSource.ESTIMATED,
        resolution_doubt=_doubt_resolution(opened, survey),
    )


def _doubt_resolution(opened: OpenedSlide, survey: Survey) -> str:
    """In a few words why the stated pixel size is doubtful; empty when nuclei agree or are too few to ask."""
    slide = survey.slide
    if slide.resolution.source is ResolutionSource.ESTIMATED:
        return ""
    try:
        found = estimate_mpp(cut_tissue(opened, slide))
    except UnknownResolutionError:
        return ""
    if 1 / _DOUBTFUL_FACTOR < found.mpp / slide.mpp < _DOUBTFUL_FACTOR:
        return ""
    return f"{slide.mpp:.3g} µm are stated, its nuclei would be of ordinary size at {found.mpp:.2g} µm"


def give_opinions(
    choice: HeadChoice, heads: Sequence[Head], bag: EmbeddingBag, facts: SlideFacts
) -> tuple[Opinion, ...]:
    """What the heads say of a slide."""
    opinions = []
    for card, head in zip(choice.cards, heads, strict=True):
        opinion = form_opinion(card, head, bag, facts)
        if not choice.asked:
            opinion = replace(opinion, findings=tuple(f for f in opinion.findings if f.in_force))
        opinions.append(opinion)
    return tuple(opinions)


def describe_opinions(opinions: Sequence[Opinion], bag: EmbeddingBag) -> list[dict[str, Any]]:
    """The `findings` array of result.json."""
    xy = bag.grid.xy_level0_px
    return [_describe(opinion, finding, xy) for opinion in opinions for finding in opinion.findings]


def _describe(opinion: Opinion, finding: Finding, xy_level0_px: NDArray[np.int32]) -> dict[str, Any]:
    def places(tiles: Sequence[int]) -> list[dict[str, int]]:
        corners = [(tile, *xy_level0_px[tile].tolist()) for tile in tiles]
        return [{"tile": tile, "x_level0_px": x, "y_level0_px": y} for tile, x, y in corners]

    evidence = finding.evidence
    return {
        "task": finding.task.id,
        "title": finding.task.title,
        "kind": finding.task.kind.value,
        "answer": finding.answer.value,
        "labels": list(finding.labels),
        "probabilities": {label: round(share, 4) for label, share in finding.probabilities.items()},
        "reasons": [{"code": reason.code, "text": reason.text} for reason in finding.reasons],
        "cautions": [{"code": reason.code, "text": reason.text} for reason in finding.cautions],
        "in_force": finding.in_force,
        "validated": False,
        "head": {
            "id": opinion.head_id,
            "version": opinion.head_version,
            "sha256": opinion.head_sha256,
            "strangeness": None if opinion.strangeness is None else round(opinion.strangeness, 4),
            "evidence": opinion.evidence_words,
        },
        "evidence": {
            "for": places(evidence.for_tiles),
            "against": places(evidence.against_tiles),
            "nearest_cases": [
                {"case": known.case, "label": known.label, "cosine": round(known.cosine, 4)} for known in evidence.known
            ],
            "change": evidence.change,
        },
    }
