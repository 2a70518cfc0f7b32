"""Small lesions: tiles of another real slide planted into whole slides, and whether they are found after each codec."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from answers import describe_tissue, load_shipped
from material import Atlas, LabelledTiles, Slide
from numpy.typing import NDArray
from scipy.stats import spearmanr
from ways import Way, send

from slideway.bundles.build import build_bundle
from slideway.bundles.read import read_bundle
from slideway.core.bag import EmbeddingBag
from slideway.heads.abmil import Projection, fit_projection
from slideway.heads.metrics import auroc
from slideway.heads.novelty import fit_cloud, measure_distance
from slideway.learning.tile_heads import fit_logistic

Array = NDArray[Any]
SHARES = (0.01, 0.002)
LOOKED_AT = 0.02  # a person looks at the hottest fiftieth of the tiles
DONORS, NODE_DRAWS = 6, 2
FOLDS = 5
TUMOUR, NOVELTY, ATTENTION, NODES = "tumour tile head", "novelty", "attention", "node tile head"
FINDERS = (TUMOUR, NOVELTY, ATTENTION, NODES)
# Much of these slides is benign although the slide is malignant, or it is a smear (the set's README).
MIXED = (
    "insidious-lymph-node-metastasis__HE",
    "PDAC-benign-vs-malignant__HE",
    "carcinogenesis__HE",
    "metastaticsarcoma__HE",
    "hodgkin__HE",
    "high-grade-glioma-squash__HE",
)
NODE_TILES = "PatchCamelyon"


@dataclass(frozen=True)
class Planting:
    """A whole slide with tiles of another one in it.

    Attributes:
        host: The slide.
        donor: Name of what the tiles come from.
        share: Of the tiles that were replaced.
        bag: What would be sent.
        places: Rows of the planted tiles, ascending.
        finders: Scores of a tile by name; none has learnt from host or donor, except attention (shipped).
    """

    host: Slide
    donor: str
    share: float
    bag: EmbeddingBag
    places: Array
    finders: dict[str, Any]


@dataclass(frozen=True)
class Found:
    """What one finder found.

    Attributes:
        recall: Share of planted tiles among the hottest fiftieth of the slide's tiles.
        auroc: Of planted tiles over the slide's own.
        came: Share of planted tiles that came at all.
    """

    recall: float
    auroc: float
    came: float = 1.0


@dataclass(frozen=True)
class TileJudge:
    projection: Projection
    weight: Array
    bias: Array

    def __call__(self, vectors: Array) -> Array:
        scores: Array = (self.projection(vectors) @ self.weight)[:, 0] + self.bias[0]
        return scores


@dataclass(frozen=True)
class Cloud:
    mean: Array
    whitening: Array

    def __call__(self, vectors: Array) -> Array:
        return measure_distance(vectors, self.mean, self.whitening)


def learn_tiles(vectors: Array, labels: Array) -> TileJudge:
    projection = fit_projection(vectors, rank=256)
    return TileJudge(projection, *fit_logistic(projection(vectors), labels))


def plant(atlas: Atlas, nodes: LabelledTiles) -> Iterator[Planting]:
    """Every host with every donor of another case, at each share."""
    learner = _Learner(atlas)
    (fold,) = nodes.folds
    node_head = learn_tiles(nodes.vectors[fold.train].astype(np.float32), nodes.labels[fold.train])
    lesion = nodes.vectors[fold.test[nodes.labels[fold.test] == 1]]
    donors = choose_donors(atlas)
    for number, host in enumerate(atlas.wholes):
        random = np.random.default_rng(number)
        for donor in (one for one in donors if one.case != host.case):
            judges = learner.without(host.fold % FOLDS, donor.fold % FOLDS)
            for share in SHARES:
                yield _plant_one(host, donor.name, share, donor.bag.vectors, random, judges)
        judges = {NOVELTY: learner.without(host.fold % FOLDS, host.fold % FOLDS)[NOVELTY], NODES: node_head}
        for _ in range(NODE_DRAWS):
            for share in SHARES:
                yield _plant_one(host, NODE_TILES, share, lesion, random, judges)


def choose_donors(atlas: Atlas) -> list[Slide]:
    """Malignant slides, one a case, without mixed ones, evenly spread over the set's order."""
    cases: dict[str, Slide] = {}
    for part, behaviour in zip(atlas.parts, atlas.behaviour, strict=True):
        if behaviour == "malignant" and part.name not in MIXED:
            cases.setdefault(part.case, part)
    every = list(cases.values())
    return [every[i] for i in np.linspace(0, len(every) - 1, min(DONORS, len(every))).astype(int)]


class _Learner:
    """A tumour tile head and a cloud of ordinary tissue, learnt without one or two fifths of the cases."""

    def __init__(self, atlas: Atlas) -> None:
        self.atlas = atlas
        self.known: dict[frozenset[int], dict[str, Any]] = {}

    def without(self, *folds: int) -> dict[str, Any]:
        key = frozenset(folds)
        if key not in self.known:
            kinds = {"malignant": 1, "non-neoplastic": 0}
            chosen = [
                (part.bag.vectors.astype(np.float32), kinds.get(behaviour, -1))
                for part, behaviour in zip(self.atlas.parts, self.atlas.behaviour, strict=True)
                if part.fold % FOLDS not in key and part.name not in MIXED
            ]
            told = [(vectors, label) for vectors, label in chosen if label >= 0]
            tiles = np.concatenate([vectors for vectors, _ in told])
            labels = np.repeat([label for _, label in told], [len(vectors) for vectors, _ in told])
            cloud = Cloud(*fit_cloud(np.concatenate([vectors for vectors, _ in chosen])))
            self.known[key] = {TUMOUR: learn_tiles(tiles, labels), NOVELTY: cloud}
        return self.known[key]


def _plant_one(
    host: Slide, donor: str, share: float, tiles: Array, random: np.random.Generator, judges: dict[str, Any]
) -> Planting:
    n = max(1, round(share * len(host.bag)))
    places = np.sort(random.choice(len(host.bag), n, replace=False))
    vectors = np.array(host.bag.vectors)
    vectors[places] = tiles[random.choice(len(tiles), n, replace=n > len(tiles))]
    bag = replace(host.bag, vectors=vectors)
    finders = dict(judges) if NODES in judges else {**judges, ATTENTION: None}
    return Planting(host, donor, share, bag, places, finders)


def score(planting: Planting, bag: EmbeddingBag) -> dict[str, Array]:
    """By finder, a score of each tile of a bag that came."""
    scores = {name: judge(bag.vectors) for name, judge in planting.finders.items() if judge is not None}
    if ATTENTION in planting.finders:
        scores[ATTENTION] = attend(bag)
    return scores


def attend(bag: EmbeddingBag) -> Array:
    (head,) = (head for card, head in load_shipped() if card.weights.form != "instance")
    looked_at: Array = head.score(bag).attention / bag.weights
    return looked_at


def find(scores: Array, is_planted: Array, n_tiles: int, n_planted: int) -> Found:
    """What a look at the hottest tiles finds; planted tiles that did not come are not found."""
    looked_at = max(1, round(LOOKED_AT * n_tiles))
    hottest = np.argsort(-scores, kind="stable")[:looked_at]
    came = int(is_planted.sum())
    apart = auroc(scores, is_planted) if 0 < came < len(scores) else float("nan")
    return Found(float(is_planted[hottest].sum()) / n_planted, float(apart), came / n_planted)


def find_all(planting: Planting, scores: dict[str, Array]) -> dict[str, Found]:
    is_planted = np.zeros(len(planting.bag), bool)
    is_planted[planting.places] = True
    return {name: find(own, is_planted, len(planting.bag), len(planting.places)) for name, own in scores.items()}


def send_planting(planting: Planting, way: Way) -> dict[str, Array]:
    return score(planting, replace(planting.bag, vectors=send(planting.bag.vectors, way)[0]))


def correlate(before: Array, after: Array) -> float:
    return float(spearmanr(before, after).statistic)


def follow_prefixes(planting: Planting, codec: str, *, by_attention: bool) -> list[tuple[int, int, dict[str, Found]]]:
    """(bytes, tiles) of each prefix of the planted slide's bundle and what is found in it."""
    assert planting.host.content is not None
    groups, novelty = describe_tissue(planting.bag)
    content = replace(
        planting.host.content,
        bag=planting.bag,
        attention=attend(planting.bag) if by_attention else None,
        novelty=novelty.percentile,
        representatives=groups.representatives,
    )
    built = build_bundle(content, codec=codec)
    steps = []
    for cut in cut_prefixes(built)[1:]:
        came = read_bundle(cut).bag()
        assert came is not None
        rows = match_rows(planting.bag, came)
        is_planted = np.isin(rows, planting.places)
        found = {
            name: find(own, is_planted, len(planting.bag), len(planting.places))
            for name, own in score(planting, came).items()
        }
        steps.append((len(cut), len(came), found))
    return steps


def cut_prefixes(built: Any) -> list[bytes]:
    """The bundle cut after its summary, after its first tier, and after each further part with tiles."""
    packed, sizes = built.pack(), [len(part.content) for part in built.parts]
    ends = len(packed) - sum(sizes) + np.cumsum(sizes)
    tiers = [part.tier for part in built.parts]
    cuts = [ends[0], ends[max(i for i, tier in enumerate(tiers) if tier < 2)]]
    cuts += [
        end for end, part in zip(ends, built.parts, strict=True) if part.tier == 2 and part.name.startswith("tiles-")
    ]
    return [packed[: int(end)] for end in cuts]


def match_rows(whole: EmbeddingBag, came: EmbeddingBag) -> Array:
    """Rows of the whole bag that the tiles of a part are."""
    place = {tuple(at): i for i, at in enumerate(whole.grid.column_row.tolist())}
    return np.array([place[tuple(at)] for at in came.grid.column_row.tolist()], np.int64)
