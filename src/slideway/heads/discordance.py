"""Say how two opinions of one slide differ, what may be said of both, and which tiles a second one should see."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from slideway.core.opinion import Answer, Finding
from slideway.core.tissue import Reason

SAME, NARROWED, RESOLVED, ONE_UNSURE, CONTRADICTION = "same", "narrowed", "resolved", "one-unsure", "contradiction"
# Doubts that lie in the slide, not in a head: a larger head does not lift them.
SLIDE_DOUBTS = ("other-stain", "scale-estimated", "scale-doubtful", "site-unknown", "other-site")
WHY = ("attention", "novelty", "random")
# Of every four tiles asked for, two where the edge looked, one that is unlike known tissue, one by chance: only the
# last can show what neither of the others points at.
_TURNS = (0, 1, 0, 2)
_APART = 2  # tiles of one kind are asked for at least this many places apart, as long as there are such


@dataclass(frozen=True)
class Discordance:
    """How two opinions differ on one question.

    Attributes:
        agreement: `same`, `narrowed` (together they exclude more than one of them), `resolved` (the second answers
            what the first left open), `one-unsure`, or `contradiction`.
        combined: What may be said of both; its numbers and evidence are the second opinion's.
        reasons: How they differ, in sentences; empty only for the same answer.
    """

    agreement: str
    combined: Finding
    reasons: tuple[Reason, ...]


@dataclass(frozen=True)
class AskedTiles:
    """Tiles that a second opinion should see at full resolution.

    Attributes:
        tiles: (n,) int64, positions in the bag, each once; any first part is a useful choice by itself.
        why: (n,) uint8, position in `WHY`.
    """

    tiles: NDArray[np.int64]
    why: NDArray[np.uint8]


def compare_findings(edge: Finding, cloud: Finding) -> Discordance:
    """Compare the opinion of the edge with a second one, by a head that saw more.

    - Both answer the same: that is the answer.
    - Only the second answers: its answer counts, unless the first had excluded that label (a contradiction), could not
      read the slide, or doubts the slide itself (stain, scale, site), which no head can lift.
    - Only the first answers: the second's set or referral counts, unless it excludes the answer.
    - Neither answers: labels that both keep stay as a set; if there are none they contradict each other. If one of
      them refers for a reason other than the labels, the slide is referred.
    - A contradiction always goes to a person.

    Args:
        edge: By the head at the edge.
        cloud: By the head in the cloud, to the same question.

    Raises:
        ValueError: The questions differ.
    """
    if (edge.task.id, edge.task.labels) != (cloud.task.id, cloud.task.labels):
        raise ValueError(f"findings to two questions cannot be compared: {edge.task.id} and {cloud.task.id}")
    if edge.answer is cloud.answer is Answer.NOT_READABLE:
        return _conclude(SAME, edge, cloud, Answer.NOT_READABLE, (), cloud.reasons)
    if _is_contradiction(edge, cloud):
        text = f"The two opinions contradict each other: the first {_tell(edge)}, the second {_tell(cloud)}."
        labels = tuple(dict.fromkeys((*edge.labels, *cloud.labels)))
        return _conclude(CONTRADICTION, edge, cloud, Answer.REFER, labels, (Reason("opinions-contradict", text),))
    if edge.answer is cloud.answer is Answer.ANSWER:
        return _conclude(SAME, edge, cloud, Answer.ANSWER, cloud.labels, ())
    if cloud.answer is Answer.ANSWER:
        return _resolve(edge, cloud)
    if edge.answer is Answer.ANSWER:
        return _keep_open(edge, cloud)
    return _narrow(edge, cloud)


def _is_contradiction(edge: Finding, cloud: Finding) -> bool:
    """Whether each names labels, and they share none."""
    return bool(edge.labels) and bool(cloud.labels) and not set(edge.labels) & set(cloud.labels)


def _resolve(edge: Finding, cloud: Finding) -> Discordance:
    """The second answers what the first left open, unless what it left open is the slide itself."""
    doubts = tuple(reason for reason in edge.reasons if reason.code in SLIDE_DOUBTS)
    if edge.answer is Answer.NOT_READABLE or doubts:
        why = "could not read the slide" if edge.answer is Answer.NOT_READABLE else "doubts the slide itself"
        text = f"The second opinion {_tell(cloud)}, but the first {why}, which another head cannot lift."
        reasons = (Reason("doubt-in-slide", text), *(doubts or edge.reasons))
        return _conclude(ONE_UNSURE, edge, cloud, Answer.REFER, (), reasons)
    text = f"The first opinion {_tell(edge)}; the second, by a head that saw more, {_tell(cloud)}."
    return _conclude(RESOLVED, edge, cloud, Answer.ANSWER, cloud.labels, (Reason("opinion-resolved", text),))


def _keep_open(edge: Finding, cloud: Finding) -> Discordance:
    """The first answers, the second, which saw more, does not."""
    text = f"The first opinion {_tell(edge)}; the second, by a head that saw more, {_tell(cloud)}."
    answer = Answer.SET if cloud.answer is Answer.SET else Answer.REFER
    reasons = (Reason("one-opinion-unsure", text), *cloud.reasons)
    return _conclude(ONE_UNSURE, edge, cloud, answer, cloud.labels, reasons)


def _narrow(edge: Finding, cloud: Finding) -> Discordance:
    """Neither answers."""
    shared = tuple(label for label in cloud.labels if label in edge.labels)
    if cloud.answer is not Answer.SET or not shared:
        reason = Reason(
            "both-opinions-unsure", f"Neither opinion answers: the first {_tell(edge)}, the second {_tell(cloud)}."
        )
        agreement = SAME if edge.answer is cloud.answer else ONE_UNSURE
        return _conclude(agreement, edge, cloud, Answer.REFER, shared, (reason, *cloud.reasons))
    if set(edge.labels) == set(cloud.labels):
        return _conclude(SAME, edge, cloud, Answer.SET, cloud.labels, cloud.reasons)
    text = f"Both opinions keep {' and '.join(shared)}; the first {_tell(edge)}, the second {_tell(cloud)}."
    # one shared label is no answer: that both sets miss the truth is up to twice as likely as that one does
    labels = shared if len(shared) > 1 else cloud.labels
    return _conclude(NARROWED, edge, cloud, Answer.SET, labels, (Reason("opinions-narrow", text),))


def _conclude(
    agreement: str, edge: Finding, cloud: Finding, answer: Answer, labels: tuple[str, ...], reasons: tuple[Reason, ...]
) -> Discordance:
    combined = replace(
        cloud,
        answer=answer,
        labels=labels,
        reasons=() if answer is Answer.ANSWER else reasons,
        in_force=edge.in_force and cloud.in_force,
    )
    return Discordance(agreement, combined, reasons)


def _tell(finding: Finding) -> str:
    if finding.answer is Answer.NOT_READABLE:
        return "cannot read the slide"
    if not finding.labels:
        return "refers it to a person"
    joined = " or ".join(finding.labels)
    return f"says {joined}" if finding.answer is Answer.ANSWER else f"cannot exclude {joined}"


def choose_tiles_to_ask(
    attention: NDArray[Any],
    novelty_percentile: NDArray[Any] | None,
    column_row: NDArray[Any],
    *,
    count: int,
    seed: int,
) -> AskedTiles:
    """Choose the tiles that a second opinion should see at full resolution.

    Two of four are those with most attention, one of four the most novel, one drawn at random; of each kind no two are
    neighbours as long as the slide has others.

    Args:
        attention: (n_tiles,) weight of each tile; not finite counts as none.
        novelty_percentile: (n_tiles,) 0–100; None where there is no reference set, and attention takes its turn.
        column_row: (n_tiles, 2) place of each tile in the grid.
        count: Tiles to ask for; all of them when the bag has no more.
        seed: Decides the draw; taken from the slide's content, so that the same slide asks for the same tiles.
    """
    total = len(column_row)
    if len(attention) != total or (novelty_percentile is not None and len(novelty_percentile) != total):
        raise ValueError(f"attention and novelty are one value for each of {total} tiles")
    novelty = attention if novelty_percentile is None else novelty_percentile
    orders = [
        np.argsort(-np.nan_to_num(np.asarray(attention, np.float64), nan=-np.inf), kind="stable"),
        np.argsort(-np.nan_to_num(np.asarray(novelty, np.float64), nan=-np.inf), kind="stable"),
        np.random.default_rng(seed).permutation(total),
    ]
    queues = [_spread(order, np.asarray(column_row, np.int64), count) for order in orders]
    taken: dict[int, int] = {}
    turn = 0
    while len(taken) < min(count, total):
        kind = _TURNS[turn % len(_TURNS)]
        kind = 0 if kind == 1 and novelty_percentile is None else kind
        tile = next((tile for tile in queues[kind] if tile not in taken), None)
        if tile is not None:
            taken[tile] = kind
        turn += 1
    return AskedTiles(np.array(list(taken), np.int64), np.array(list(taken.values()), np.uint8))


def _spread(order: NDArray[np.int64], column_row: NDArray[np.int64], count: int) -> list[int]:
    """An order with those first that are no neighbours of earlier ones; the rest follow as they were."""
    chosen: list[int] = []
    blocked: set[tuple[int, int]] = set()
    reach = range(1 - _APART, _APART)
    for tile in order.tolist():
        if len(chosen) >= count:
            break
        column, row = (int(x) for x in column_row[tile])
        if (column, row) not in blocked:
            chosen.append(tile)
            blocked.update((column + dx, row + dy) for dx in reach for dy in reach)
    first = set(chosen)
    return chosen + [tile for tile in order.tolist() if tile not in first]
