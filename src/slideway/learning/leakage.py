"""Find the same tissue in two cases: copies of a slide, and scans or exports of it that differ in every byte."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

import numpy as np
from numpy.typing import NDArray

from slideway.core.bag import EmbeddingBag, require_same_encoder
from slideway.core.errors import LeakageError
from slideway.learning.table import SHOWN

# Measured with slideway-small (docs/cohorts.md, bench/learning/measure_leakage.py).
MIN_COSINE = 0.9  # of two tiles that show the same, on the same grid
MIN_SHARE = 0.2  # of such tiles: between different slides at most .10, between re-exports on one grid at least .60
MIN_ALIGNED = 0.1  # of tiles matched at one shift: .20 and more for scans half a tile beside, five of six of them
MIN_TILES = 8  # that match; with fewer a share says nothing: in a small slide some lie at one shift by chance
_LIKE_COSINE = 0.6  # of two tiles that may overlap, on grids beside each other
_SCREEN_COSINE = 0.75  # of landmarks
_AXES = 64  # main directions of the cohort; the outermost tiles of each slide along them are its landmarks
_PARTNERS = 4  # slides that each slide is looked at closely with
_SAMPLED = 128  # tiles of the smaller slide that are looked for in the other
_FITTED = 64  # tiles of each slide that the directions are fitted on

Floats = NDArray[np.float32]


class LeakKind(StrEnum):
    """How two slides are the same."""

    COPY = "copy"  # same content, byte for byte
    NEAR = "near-duplicate"  # the same tissue scanned or exported again


@dataclass(frozen=True)
class Likeness:
    """How much of the smaller of two slides is in the other.

    Attributes:
        share: Share of its tiles whose best match shows the same, in [0, 1]; high when both grids begin alike.
        aligned: Share of its tiles that find their like at one and the same shift, in [0, 1]; also high when the grids
            lie beside each other, as in two scans of one glass slide (upright, or turned by 180°).
    """

    share: float
    aligned: float


@dataclass(frozen=True)
class Leak:
    """The same tissue in two cases.

    Attributes:
        first: Position of one slide.
        second: Position of the other, which comes later.
        kind: How they are the same.
        likeness: How much of the smaller slide is in the other.
    """

    first: int
    second: int
    kind: LeakKind
    likeness: Likeness


@dataclass(frozen=True)
class Prepared:
    """A slide made ready to be compared.

    Attributes:
        index: Its position in the cohort.
        vectors: (n_tiles, width) float32, centred, of length 1.
        column_row: (n_tiles, 2) int32, places of its tiles.
    """

    index: int
    vectors: Floats
    column_row: NDArray[np.int32]


def find_leaks(
    bags: Sequence[EmbeddingBag],
    cases: Sequence[str],
    *,
    min_share: float = MIN_SHARE,
    min_aligned: float = MIN_ALIGNED,
) -> tuple[Leak, ...]:
    """Pairs of slides of different cases that show the same tissue.

    Only slides whose landmarks agree are compared tile by tile, so that a large cohort takes seconds.

    Args:
        bags: Bags of the slides, all of one encoder; empty ones match nothing.
        cases: Case of each.
        min_share: `Likeness.share` from which a pair is reported.
        min_aligned: `Likeness.aligned` from which a pair is reported.

    Raises:
        FingerprintMismatchError: The bags were made by different encoders.
    """
    if len(bags) != len(cases):
        raise ValueError("each bag has exactly one case")
    require_same_encoder(*(bag.fingerprint for bag in bags))
    copies = _find_copies(bags, cases)
    known = {(leak.first, leak.second) for leak in copies}
    found = list(copies)
    for one, other in _choose_pairs(prepare(bags), cases):
        pair = (one.index, other.index)
        if pair not in known:
            likeness = compare(one, other)
            if likeness.share >= min_share or likeness.aligned >= min_aligned:
                found.append(Leak(*pair, LeakKind.NEAR, likeness))
    return tuple(sorted(found, key=lambda leak: (leak.first, leak.second)))


def require_no_leaks(leaks: Sequence[Leak], names: Sequence[str], cases: Sequence[str]) -> None:
    """Refuse a cohort in which the same tissue stands in two cases.

    Args:
        leaks: What was found.
        names: Name of each slide.
        cases: Case of each slide.

    Raises:
        LeakageError: Something was found.
    """
    if not leaks:
        return
    shown = "; ".join(
        f"{names[leak.first]} (case {cases[leak.first]}) and {names[leak.second]} (case {cases[leak.second]}), "
        f"{leak.kind.value}: {100 * max(leak.likeness.share, leak.likeness.aligned):.0f} % of tiles"
        for leak in leaks[:SHOWN]
    )
    more = f" … ({len(leaks)} pairs in all)" if len(leaks) > SHOWN else ""
    raise LeakageError(
        f"the same tissue stands in two cases: {shown}{more}. Find out whose slide it is: give both lines one case, or "
        "delete one"
    )


def compare(one: Prepared, other: Prepared) -> Likeness:
    """How much of the smaller slide is in the other; both must come out of one call of `prepare`."""
    small, large = (one, other) if len(one.vectors) <= len(other.vectors) else (other, one)
    asked = np.unique(
        np.linspace(0, len(small.vectors) - 1, min(_SAMPLED, len(small.vectors))).round().astype(np.int64)
    )
    cosine = small.vectors[asked] @ large.vectors.T
    near = cosine.argmax(axis=1)
    best = cosine[np.arange(len(asked)), near]
    back = (large.vectors[near] @ small.vectors.T).argmax(axis=1)
    same = int(((back == asked) & (best > MIN_COSINE)).sum())
    is_beside = np.abs(small.column_row[back] - small.column_row[asked]).max(axis=1) <= 1
    like = is_beside & (best > _LIKE_COSINE)
    aligned = _count_aligned(small.column_row[asked[like]], large.column_row[near[like]])
    return Likeness(*(count / len(asked) if count >= MIN_TILES else 0.0 for count in (same, aligned)))


def _count_aligned(from_places: NDArray[np.int32], to_places: NDArray[np.int32]) -> int:
    """The most matches that lie at one shift, give or take a tile, upright or turned by 180°."""
    most = 0
    for turn in (1, -1):
        shift = to_places.astype(np.int64) - turn * from_places
        is_near = np.abs(shift[:, None] - shift[None, :]).max(axis=2, initial=0) <= 1
        most = max(most, int(is_near.sum(axis=1).max(initial=0)))
    return most


def _find_copies(bags: Sequence[EmbeddingBag], cases: Sequence[str]) -> list[Leak]:
    first: dict[str, int] = {}
    leaks = []
    for i, bag in enumerate(bags):
        before = first.setdefault(bag.slide_sha256, i)
        if before != i and cases[before] != cases[i]:
            leaks.append(Leak(before, i, LeakKind.COPY, Likeness(1.0, 1.0)))
    return leaks


def prepare(bags: Sequence[EmbeddingBag]) -> tuple[Prepared, ...]:
    """Slides that have tiles, ready to be compared: the cohort's mean is taken off, in which each slide counts once.

    Tissue has a large part in common to an encoder; what is left tells tissue from tissue.
    """
    finite = [_keep_finite(bag) for bag in bags]
    held = [(i, *each) for i, each in enumerate(finite) if len(each[0])]
    if not held:
        return ()
    centre = np.mean([vectors.mean(axis=0) for _, vectors, _ in held], axis=0)
    return tuple(Prepared(i, _turn_to_length_one(vectors - centre), places) for i, vectors, places in held)


def _turn_to_length_one(vectors: Floats) -> Floats:
    lengths = np.sqrt(np.einsum("nw,nw->n", vectors, vectors))
    vectors /= np.maximum(lengths, 1e-6)[:, None]
    return vectors


def _keep_finite(bag: EmbeddingBag) -> tuple[Floats, NDArray[np.int32]]:
    vectors = np.array(bag.vectors, np.float32)
    kept = np.isfinite(vectors).all(axis=1)
    return vectors[kept], bag.grid.column_row[kept]


def _choose_pairs(slides: Sequence[Prepared], cases: Sequence[str]) -> list[tuple[Prepared, Prepared]]:
    """Pairs of different cases with agreeing landmarks, for each slide the few that agree best.

    Landmarks are a slide's outermost tiles along the cohort's main directions. A second scan has much the same ones,
    wherever its grid begins and whatever the order of its tiles.
    """
    if len(slides) < 2:
        return []
    fitted = np.concatenate([slide.vectors[:: -(-len(slide.vectors) // _FITTED)] for slide in slides])
    _, directions = np.linalg.eigh(fitted.T @ fitted)
    axes = np.ascontiguousarray(directions[:, ::-1][:, :_AXES])
    marks = np.stack([_find_landmarks(slide, axes) for slide in slides])  # (slides, landmarks, width)
    agreeing = np.zeros((len(slides), len(slides)), np.int32)
    for landmark in range(marks.shape[1]):
        agreeing += (marks[:, landmark] @ marks[:, landmark].T) > _SCREEN_COSINE
    case = np.array([cases[slide.index] for slide in slides])
    agreeing[case[:, None] == case[None, :]] = 0
    chosen: dict[tuple[int, int], None] = {}
    for i in range(len(slides)):
        for j in np.argsort(-agreeing[i], kind="stable")[:_PARTNERS]:
            if agreeing[i, j]:
                chosen[min(i, int(j)), max(i, int(j))] = None
    return [(slides[i], slides[j]) for i, j in chosen]


def _find_landmarks(slide: Prepared, axes: Floats) -> Floats:
    along = slide.vectors @ axes
    marks: Floats = slide.vectors[np.concatenate([along.argmax(axis=0), along.argmin(axis=0)])]
    return marks
