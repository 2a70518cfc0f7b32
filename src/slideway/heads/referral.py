"""One rule for how far a finding goes: answer, set of labels, refer to a person, or not readable; and why, in words."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from slideway.core.opinion import Answer, Kind, TaskQuestion
from slideway.core.tissue import QualityGrade, Reason, Verdict
from slideway.heads.conformal import count_needed, prediction_sets

_SET_CODES = ("several-labels", "too-few-known")  # these alone still leave a set worth telling


@dataclass(frozen=True)
class ReferralPolicy:
    """How sure a finding must be. The limits are judgement, not validated clinically.

    Attributes:
        alpha: Share of cases, of each class, whose true label a set may miss. 0.1 can be promised from 9 calibration
            cases of a class on; 0.05 needs 19, which rare entities do not have.
        alpha_ood: Share of ordinary slides that may be referred as strange. 0.05 costs one slide in twenty, and can be
            told from 20 known cases on.
        max_set: Labels that a set may hold. A person can hold three possibilities against a slide; more say little.
    """

    alpha: float = 0.1
    alpha_ood: float = 0.05
    max_set: int = 3

    def __post_init__(self) -> None:
        if not (0 < self.alpha < 0.5 and 0 < self.alpha_ood < 0.5 and self.max_set >= 2):
            raise ValueError("alpha and alpha_ood lie between 0 and 0.5, and a set may hold at least 2 labels")


@dataclass(frozen=True)
class Circumstances:
    """All that bears on trusting a head on one slide, besides the head's numbers.

    Attributes:
        quality: Verdict on the slide's pixels; None when it was not graded.
        tiles: Tiles in the bag.
        min_tiles: With fewer the head does not read.
        strangeness: Share of the head's known cases less strange than this slide, in [0, 1]; None when not measured.
        p_value: Chance of a slide at least as strange among the known cases; None when not measured.
        known_cases: Cases that strangeness rests on.
        stain: Of the slide; empty when nobody says.
        head_stain: That the head learnt from.
        is_resolution_estimated: The microns per pixel were estimated, not stated.
        resolution_doubt: Why the stated microns per pixel are doubtful, in a few words; empty when they are not.
        site: Id of the site the tissue comes from; empty when nobody says.
        tiles_only: The head was trained and judged on single tiles.
        discordance: Reason of another opinion that contradicts; None without.
    """

    tiles: int
    min_tiles: int
    quality: QualityGrade | None = None
    strangeness: float | None = None
    p_value: float | None = None
    known_cases: int = 0
    stain: str = ""
    head_stain: str = ""
    is_resolution_estimated: bool = False
    resolution_doubt: str = ""
    site: str = ""
    tiles_only: bool = False
    discordance: Reason | None = None


@dataclass(frozen=True)
class Certainty:
    """What a head's numbers say of one question.

    Attributes:
        probabilities: (n_labels,) calibrated, summing to 1.
        p_values: (n_labels,) from conformal calibration.
        calibration_cases: Calibration cases of each label.
    """

    probabilities: NDArray[Any]
    p_values: NDArray[Any]
    calibration_cases: Sequence[int]


@dataclass(frozen=True)
class Decision:
    """How far a finding goes.

    Attributes:
        answer: Answer, set, refer, or not readable.
        labels: One for an answer, several for a set, those that could not be told apart for a referral; empty when
            something other than the labels speaks against trusting the head.
        reasons: Why it goes no further; empty exactly for an answer.
        cautions: What to keep in mind whatever the answer.
    """

    answer: Answer
    labels: tuple[str, ...]
    reasons: tuple[Reason, ...] = ()
    cautions: tuple[Reason, ...] = ()


def decide(
    question: TaskQuestion, certainty: Certainty, circumstances: Circumstances, policy: ReferralPolicy
) -> Decision:
    """How far the finding goes, and why.

    What cannot be read comes first, then what speaks against trusting the head on this slide, then the labels. All
    reasons of a stage are told. Every code stands in docs/certainty.md.

    Args:
        question: What was asked.
        certainty: The head's numbers.
        circumstances: Of the slide.
        policy: How sure to be.
    """
    parts = (certainty.probabilities, certainty.p_values, certainty.calibration_cases)
    if {len(part) for part in parts} != {len(question.labels)}:
        raise ValueError(
            f"{question.id}: one probability, p-value and number of cases for each of its {len(question.labels)} labels"
        )
    cautions = tuple(_find_cautions(circumstances))
    unreadable = tuple(find_unreadable(circumstances))
    if unreadable:
        return Decision(Answer.NOT_READABLE, (), unreadable, cautions)
    kept = _keep_labels(question, certainty, policy)
    doubts = tuple(find_doubts(question, circumstances, policy))
    labels = tuple(question.labels[i] for i in kept)
    speak = tuple(_judge_labels(question, certainty, kept, policy))
    if doubts:
        return Decision(Answer.REFER, (), doubts, cautions)
    if not speak:
        return Decision(Answer.ANSWER, labels, (), cautions)
    is_set = len(kept) > 1 and all(reason.code in _SET_CODES for reason in speak)
    return Decision(Answer.SET if is_set else Answer.REFER, labels, speak, cautions)


def find_unreadable(circumstances: Circumstances) -> Iterator[Reason]:
    """Reasons for which nothing is read of a slide."""
    quality = circumstances.quality
    if quality is not None and quality.verdict is Verdict.NO_TISSUE:
        yield Reason("slide-without-tissue", f"There is no tissue to read. {_tell(quality)}".strip())
    elif quality is not None and quality.verdict is Verdict.RESCAN:
        yield Reason("slide-to-rescan", f"The slide should be scanned again first. {_tell(quality)}".strip())
    if circumstances.tiles < circumstances.min_tiles:
        text = f"{circumstances.tiles} tiles of tissue were read; this head needs at least {circumstances.min_tiles}."
        yield Reason("too-few-tiles", text)


def find_doubts(question: TaskQuestion, circumstances: Circumstances, policy: ReferralPolicy) -> Iterator[Reason]:
    """Reasons for which a head is not to be trusted on a slide, whatever its numbers say."""
    yield from _judge_strangeness(circumstances, policy)
    if circumstances.stain and circumstances.head_stain and circumstances.stain != circumstances.head_stain:
        text = f"The slide is stained {circumstances.stain}; the head learnt from {circumstances.head_stain} only."
        yield Reason("other-stain", text)
    if circumstances.is_resolution_estimated:
        text = "The slide does not state its microns per pixel; they were estimated, and sizes may be wrong by a third."
        yield Reason("scale-estimated", text)
    if circumstances.resolution_doubt:
        text = f"The slide's microns per pixel are doubtful: {circumstances.resolution_doubt}."
        yield Reason("scale-doubtful", text)
    if circumstances.tiles_only:
        text = "The head was trained and judged on single tiles; for a whole slide it only points at tiles."
        yield Reason("tiles-only", text)
    if question.sites and not circumstances.site:
        text = f"Nobody says where the tissue comes from; the head knows {_list(question.sites, 'and')} only."
        yield Reason("site-unknown", text)
    elif question.sites and circumstances.site not in question.sites:
        text = f"The tissue comes from {circumstances.site}; the head knows {_list(question.sites, 'and')} only."
        yield Reason("other-site", text)
    if circumstances.discordance is not None:
        yield circumstances.discordance


def _judge_strangeness(circumstances: Circumstances, policy: ReferralPolicy) -> Iterator[Reason]:
    if circumstances.p_value is None or circumstances.strangeness is None:
        yield Reason(
            "strangeness-unknown", "It was not measured whether the slide looks like those the head learnt from."
        )
    elif 1 / (circumstances.known_cases + 1) >= policy.alpha_ood:
        needed = int(np.floor(1 / policy.alpha_ood + 1e-9))
        text = (
            f"The head learnt from {circumstances.known_cases} cases; at least {needed} are needed to tell a strange "
            f"slide from an ordinary one."
        )
        yield Reason("strangeness-unknown", text)
    elif circumstances.p_value < policy.alpha_ood:
        text = (
            f"The slide is unlike anything the head learnt from: stranger than {circumstances.strangeness:.0%} of its "
            f"{circumstances.known_cases} cases, each measured against the others."
        )
        yield Reason("unlike-training", text)


def _find_cautions(circumstances: Circumstances) -> Iterator[Reason]:
    quality = circumstances.quality
    if quality is not None and quality.verdict is Verdict.LIMITED:
        yield Reason("quality-limited", f"The slide is readable with limits. {_tell(quality)}".strip())
    if quality is None:
        yield Reason("quality-unknown", "The slide's quality was not graded.")
    if circumstances.head_stain and not circumstances.stain:
        yield Reason("stain-unknown", f"Nobody says how the slide is stained; {circumstances.head_stain} is presumed.")


def _keep_labels(question: TaskQuestion, certainty: Certainty, policy: ReferralPolicy) -> list[int]:
    """Labels that cannot be excluded, most probable first; on an ordered scale without gaps."""
    kept = np.flatnonzero(prediction_sets(certainty.p_values, policy.alpha))
    if question.kind is Kind.ORDINAL and len(kept):
        kept = np.arange(kept[0], kept[-1] + 1)
    return sorted(kept.tolist(), key=lambda i: (-float(certainty.probabilities[i]), i))


def _judge_labels(
    question: TaskQuestion, certainty: Certainty, kept: list[int], policy: ReferralPolicy
) -> Iterator[Reason]:
    """Reasons that lie in the labels themselves; none for exactly one label."""
    sure, leading = f"{1 - policy.alpha:.0%}", int(np.argmax(certainty.probabilities))
    names = [_name(question, certainty, i) for i in kept]
    if not kept:
        text = f"No label fits at {sure} certainty: the slide is unlike the known cases of every label."
        yield Reason("fits-no-label", text)
    elif leading not in kept:
        text = (
            f"{_name(question, certainty, leading)} leads, but is less clear than {sure} of its known cases, while "
            f"{_list(names, 'and')} cannot be excluded."
        )
        yield Reason("leading-excluded", text)
    if len(kept) == len(question.labels):
        none = f"Neither {_list(names, 'nor')}" if len(names) == 2 else f"None of {_list(names, 'and')}"
        yield Reason("cannot-tell", f"{none} can be excluded at {sure} certainty.")
    elif len(kept) > policy.max_set:
        share = f"{len(kept)} of {len(question.labels)} labels"
        text = f"{share} cannot be excluded at {sure} certainty: {_list(names, 'and')}."
        yield Reason("too-many-labels", text)
    elif len(kept) > 1:
        yield Reason("several-labels", f"{_list(names, 'and')} cannot be told apart at {sure} certainty.")
    yield from _tell_unknown(question, certainty, kept, policy)


def _tell_unknown(
    question: TaskQuestion, certainty: Certainty, kept: list[int], policy: ReferralPolicy
) -> Iterator[Reason]:
    """Labels that are in the set for want of known cases alone."""
    needed = count_needed(policy.alpha)
    for i in kept:
        count = int(certainty.calibration_cases[i])
        if count < needed:
            label = question.labels[i]
            text = f"Too few cases of {label} to exclude it: {count} are known, {needed} are needed."
            yield Reason("too-few-known", text)


def _name(question: TaskQuestion, certainty: Certainty, i: int) -> str:
    return f"{question.labels[i]} ({float(certainty.probabilities[i]):.0%})"


def _list(words: Sequence[str], last: str) -> str:
    return f"{', '.join(words[:-1])} {last} {words[-1]}" if len(words) > 1 else "".join(words)


def _tell(quality: QualityGrade) -> str:
    return " ".join(reason.text for reason in quality.reasons)
