"""Find tissue that looks alike in slides that are already read: exactly, region by region, then case by case."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from slideway.core.bag import EmbeddingBag, require_same_encoder
from slideway.core.findings import Novelty, TissueGroups
from slideway.heads.novelty import NOVEL_PERCENTILE

TOP = 5
NOVEL_REGIONS = 2
PER_SLIDE = 2  # places of one slide among the likes of one region: more would crowd out the other slides
_SHOWN_TILES = 6  # regions are shared out by the groups' shares; every group has one
_ASKED_PER_GROUP = 8  # representatives that speak for a group in a case's score; one alone may be an odd tile
_APART_TILES = 2  # two matches on one slide lie farther apart than this, or they would show the same place twice
_CROWD = (2 * _APART_TILES + 1) ** 2  # tiles that one match can push aside
_ROWS = 8_192  # vectors turned into float32 at a time

Floats = NDArray[np.float32]


@dataclass(frozen=True)
class QueryRegion:
    """A place of the query slide that similar places are asked for.

    Attributes:
        tile: Tile of the query's bag that shows it.
        group: Group it stands for; None for a tile that is asked because it is novel.
        share: Share of the tissue that its group makes up; 0 for a novel tile.
    """

    tile: int
    group: int | None
    share: float


@dataclass(frozen=True)
class SimilarRegion:
    """A place of another slide that looks like a query region.

    Attributes:
        slide: Position in the library.
        tile: Tile of that slide's bag.
        cosine: Of the two vectors after the library's centre was taken off, -1 to 1.
    """

    slide: int
    tile: int
    cosine: float


@dataclass(frozen=True)
class SimilarCase:
    """How much one slide of the library holds of what the query slide consists of.

    Attributes:
        slide: Position in the library.
        score: Mean best cosine over the query's groups, weighted by their share, -1 to 1.
        best: For each query region the most similar place of this slide.
    """

    slide: int
    score: float
    best: tuple[SimilarRegion, ...]


@dataclass(frozen=True)
class Similarity:
    """What a library holds that looks like one slide.

    Attributes:
        regions: What was asked: groups, largest first, then novel tiles, most novel first.
        matches: For each region the most similar places, best first, at most two of one slide.
        cases: Every slide of the library that has tiles, most similar first.
        itself: Positions in the library that hold the query slide itself; they were left out.
        repeated: Positions that hold a slide which came before; they were left out.
    """

    regions: tuple[QueryRegion, ...]
    matches: tuple[tuple[SimilarRegion, ...], ...]
    cases: tuple[SimilarCase, ...]
    itself: tuple[int, ...]
    repeated: tuple[int, ...]


def choose_regions(bag: EmbeddingBag, groups: TissueGroups, novelty: Novelty | None) -> tuple[QueryRegion, ...]:
    """Choose what to ask for: tiles that show the groups, more of them for a large group, and up to two novel tiles.

    Tiles inside the tissue are asked first; a group that lies only at the rim is asked once: glass is like glass.
    """
    is_inside = _lies_inside(bag)
    regions = [
        QueryRegion(tile, group, share)
        for group, (tiles, share) in enumerate(zip(groups.representatives, groups.shares, strict=True))
        for tile in ([t for t in tiles if is_inside[t]] or tiles[:1])[: max(1, round(share * _SHOWN_TILES))]
    ]
    if novelty is None:
        return tuple(regions)
    order = np.argsort(-novelty.percentile, kind="stable")
    wanted = (novelty.percentile > NOVEL_PERCENTILE) & is_inside
    wanted[[region.tile for region in regions]] = False
    novel = order[wanted[order]][:NOVEL_REGIONS]
    return (*regions, *(QueryRegion(int(tile), None, 0.0) for tile in novel))


def _lies_inside(bag: EmbeddingBag) -> NDArray[np.bool_]:
    """True where most neighbours of a tile were read too: at the rim of tissue a tile is novel for its glass alone."""
    if bag.sampling is not None:
        return np.ones(len(bag), bool)  # neighbours may be missing because they were not read
    places = {(column, row) for column, row in bag.grid.column_row.tolist()}
    around = [(x, y) for x in (-1, 0, 1) for y in (-1, 0, 1) if x or y]
    held = [sum((column + x, row + y) in places for x, y in around) for column, row in bag.grid.column_row.tolist()]
    return np.asarray(held, np.int64) >= 6


def find_similar(
    query: EmbeddingBag,
    groups: TissueGroups,
    library: Sequence[EmbeddingBag],
    *,
    novelty: Novelty | None = None,
    top: int = TOP,
) -> Similarity:
    """Find the regions and slides of a library that look most like one slide.

    Every tile of the library is compared: the answer is exact and the same every time. From all vectors the library's
    centre is taken off first. Encoders give all tissue a large part in common, and beside it the cosine of any two
    tiles is near 1; what is left tells tissue from tissue. Each slide counts once in the centre, however large it is.

    The vectors are read from their files 8,192 at a time; memory does not grow with the library.

    Args:
        query: Bag of the slide that is asked about; empty gives no regions and no cases.
        groups: Its groups.
        library: Bags to search. The query slide itself (same content) and repeated slides are left out.
        novelty: Novelty of the query's tiles; its two most novel ones are asked too.
        top: Similar regions to return for each region asked.

    Raises:
        FingerprintMismatchError: The bags were not all made by the encoder of the query.
    """
    require_same_encoder(query.fingerprint, *(bag.fingerprint for bag in library))
    itself, repeated = _find_repeats(query, library)
    left_out = {*itself, *repeated}
    searched = [i for i, bag in enumerate(library) if i not in left_out and len(bag)]
    regions = choose_regions(query, groups, novelty)
    if not regions or not searched:
        return Similarity(regions, tuple(() for _ in regions), (), itself, repeated)
    centre = find_centre([library[i] for i in searched])
    asked = [region.tile for region in regions]
    voices = [tile for tiles in groups.representatives for tile in tiles[:_ASKED_PER_GROUP]]
    directions = _direct(query.vectors[asked + voices], centre)
    weight = _weigh_voices(groups)
    found: list[list[SimilarRegion]] = [[] for _ in regions]
    cases = []
    for i in searched:
        best, places = _search(library[i], directions, centre, asked=len(asked), kept=PER_SLIDE * _CROWD)
        for matches, tiles in zip(found, places, strict=True):
            matches.extend(_keep_apart(i, tiles, library[i].grid.column_row))
        score = float(np.average(best[len(asked) :], weights=weight))
        nearest = tuple(SimilarRegion(i, tiles[0][1], tiles[0][0]) for tiles in places)
        cases.append(SimilarCase(i, score, nearest))
    ranked = tuple(tuple(sorted(matches, key=_by_cosine)[:top]) for matches in found)
    return Similarity(regions, ranked, tuple(sorted(cases, key=lambda c: (-c.score, c.slide))), itself, repeated)


def find_centre(bags: Sequence[EmbeddingBag]) -> Floats:
    """(width,) mean of the slides' mean vectors: a large slide counts no more than a small one.

    Raises:
        FingerprintMismatchError: The bags were made by different encoders.
    """
    require_same_encoder(*(bag.fingerprint for bag in bags))
    means = []
    for bag in bags:
        total = np.zeros(bag.width)
        weights = bag.weights.astype(np.float64)
        for start in range(0, len(bag), _ROWS):
            total += weights[start : start + _ROWS] @ _as_finite(bag.vectors[start : start + _ROWS])
        means.append(total / weights.sum())
    centre: Floats = np.mean(means, axis=0).astype(np.float32)
    return centre


def _find_repeats(query: EmbeddingBag, library: Sequence[EmbeddingBag]) -> tuple[tuple[int, ...], tuple[int, ...]]:
    itself, repeated, seen = [], [], set[str]()
    for i, bag in enumerate(library):
        if bag.slide_sha256 == query.slide_sha256:
            itself.append(i)
        elif bag.slide_sha256 in seen:
            repeated.append(i)
        seen.add(bag.slide_sha256)
    return tuple(itself), tuple(repeated)


def _weigh_voices(groups: TissueGroups) -> Floats:
    """Weight of each representative asked: those of one group share the group's share."""
    counts = [min(len(tiles), _ASKED_PER_GROUP) for tiles in groups.representatives]
    return np.repeat(np.divide(groups.shares, counts), counts).astype(np.float32)


def _search(
    bag: EmbeddingBag, directions: Floats, centre: Floats, *, asked: int, kept: int
) -> tuple[Floats, list[list[tuple[float, int]]]]:
    """Best cosine of each direction on one slide, and for the first `asked` the best (cosine, tile) pairs."""
    best = np.full(len(directions), -1.0, np.float32)
    tops = [(np.empty(0, np.float32), np.empty(0, np.int64)) for _ in range(asked)]
    for start in range(0, len(bag), _ROWS):
        cosine = directions @ _direct(bag.vectors[start : start + _ROWS], centre).T
        best = np.maximum(best, cosine.max(axis=1))
        for row, (held, tiles) in enumerate(tops):
            values = np.concatenate([held, cosine[row]])
            places = np.concatenate([tiles, np.arange(start, start + cosine.shape[1])])
            order = np.lexsort((places, -values))[:kept]
            tops[row] = values[order], places[order]
    return best, [list(zip(held.tolist(), tiles.tolist(), strict=True)) for held, tiles in tops]


def _keep_apart(slide: int, places: list[tuple[float, int]], column_row: NDArray[np.int32]) -> list[SimilarRegion]:
    """The best places of one slide that do not touch each other."""
    taken: list[SimilarRegion] = []
    for cosine, tile in places:
        if len(taken) == PER_SLIDE:
            break
        gaps = [int(np.abs(column_row[tile] - column_row[other.tile]).max()) for other in taken]
        if all(gap > _APART_TILES for gap in gaps):
            taken.append(SimilarRegion(slide, tile, cosine))
    return taken


def _by_cosine(region: SimilarRegion) -> tuple[float, int, int]:
    return -region.cosine, region.slide, region.tile


def _direct(vectors: NDArray[np.float16], centre: Floats) -> Floats:
    """Vectors seen from the centre, each of length 1; a vector that is not finite points nowhere."""
    is_finite = np.isfinite(vectors).all(axis=1)
    away = _as_finite(vectors) - centre
    away[~is_finite] = 0
    directed: Floats = away / np.maximum(np.linalg.norm(away, axis=1, keepdims=True), 1e-12)
    return directed


def _as_finite(vectors: NDArray[np.float16]) -> Floats:
    return np.nan_to_num(vectors.astype(np.float32), nan=0.0, posinf=0.0, neginf=0.0)
