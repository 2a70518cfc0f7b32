"""Planted lesions: does a head find 10 or 2 tumour tiles among 1,000, also after each codec? Figures of docs/hard.md.

    python bench/heads/lesions.py DATA [--keep FOLDER] [--splits 3] [--codec-splits 1]

DATA as for `training/heads/train_starters.py`. A bag holds 1,000 tiles of three non-neoplastic cases in uneven shares
(drawn with replacement: a slide has 96 tiles); a positive one has 1 % or 0.2 % of them replaced by tiles of one
malignant case. Cases learnt from and cases tested on are disjoint, for background and lesion. Half of the negative bags
that are learnt from, and a kind of bag of their own in the test, hold as many tiles of a further non-neoplastic case
instead: who finds those has only noticed another case. Done on the tiles as scanned, and again with every slide's
colours matched. A second set are PatchCamelyon's tiles, by their own split. Everything is seeded.
"""

from __future__ import annotations

import argparse
import csv
import multiprocessing
import pickle
import resource
import sys
import tarfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray
from threadpoolctl import threadpool_limits

sys.path.insert(0, str(Path(__file__).parents[2] / "training"))
sys.path.insert(0, str(Path(__file__).parents[2] / "training/heads"))
from atlas import SMEARS, decode, read_atlas, read_rows
from train_starters import THREADS, write_atlas_cohort

from slideway.bundles.codecs import CODECS, FeatureBasis, encode, fit_basis
from slideway.bundles.codecs import decode as decode_vectors
from slideway.cli.progress import Steps
from slideway.core.opinion import NEGATIVE, POSITIVE, Kind, TaskQuestion
from slideway.encoders import Encoder, load_encoder
from slideway.heads.abmil import Abmil, fit_projection, score_bag
from slideway.heads.fit import Training, fit_abmil
from slideway.heads.instance import InstanceScorer, score_instances, score_tiles
from slideway.heads.metrics import auroc
from slideway.heads.novelty import Reference, fit_cloud, load_reference, measure_distance
from slideway.learning.baselines import judge_by_mean, judge_by_neighbours
from slideway.learning.cohort import read_cohort
from slideway.learning.questions import select_tasks
from slideway.learning.sample import Sample, gather_sample
from slideway.learning.tile_heads import fit_logistic
from slideway.registry.store import DEFAULT_ENCODER, find_encoder

Array = NDArray[Any]
Random = np.random.Generator
TILES, PLANTED = 1_000, (10, 2)
MIXED_CASES = 3
TRAIN_BAGS = 24  # of each kind: plain, with another case's tiles, with 10 and with 2 planted tiles
TEST_BAGS = 20
TEST_SHARE = 0.4  # of cases
DRAWS = 500
QUESTION = TaskQuestion("lesion", "Lesion?", Kind.BINARY, (NEGATIVE, POSITIVE))
# Slides of which the set's README says that much is benign, a smear among sections, and one soft in focus.
MIXED_SLIDES = ("insidious-lymph-node-metastasis", "PDAC-benign-vs-malignant", "carcinogenesis", "metastaticsarcoma",
                "hodgkin")  # fmt: skip
REFERENCES = Path(__file__).parents[2] / "src/slideway/heads/references"
# Pinned, so that tables can be made again when the defaults change: 120 and 600 steps.
HEADS = {
    "ABMIL, 40 passes of 32 bags": Training(more_steps=(), epochs=40, batch=32),
    "ABMIL, 200 passes of 32 bags": Training(more_steps=(), epochs=200, batch=32),
}
INSTANCE, PACKAGED, OWN = "instance head, trained on tiles", "novelty, packaged reference", "novelty, from background"
POOLED = {"mean-pool + logistic regression": judge_by_mean, "nearest cases": judge_by_neighbours}
LABELLED = (*HEADS, INSTANCE, *POOLED)
METHODS = (*LABELLED, PACKAGED, OWN)


@dataclass(frozen=True)
class Bag:
    """(1000, width) vectors and the places of planted tiles in it."""

    vectors: Array
    planted: Array


@dataclass(frozen=True)
class Side:
    """What one side of a split is made of: tiles of each case."""

    background: list[Array]
    lesion: list[Array]


@dataclass(frozen=True)
class Split:
    """Cases to learn from and cases to be tested on."""

    train: Side
    test: Side
    seed: int
    has_cases: bool


@dataclass(frozen=True)
class Judged:
    """What one method says of a bag: its score, and one for each tile where it has any, by name."""

    score: float
    tiles: dict[str, Array]


Judge = Callable[[Array], Judged]


def gather_atlas(atlas: Path, bags: Path, tasks: list[str]) -> Sample:
    """The atlas's slides as bags, encoded into `bags` unless they are there, with labels of some tasks."""
    bags.mkdir(parents=True, exist_ok=True)
    with Steps() as steps:
        cohort = read_cohort(write_atlas_cohort(atlas, load(), bags, steps))
    return gather_sample(cohort, select_tasks(cohort, tasks), [row.path for row in cohort.rows])


def load() -> Encoder:
    return load_encoder(find_encoder(DEFAULT_ENCODER), threads=THREADS)


def keep(folder: Path | None, name: str, work: Callable[[], Any]) -> Any:
    """What `work` gives, or what it gave last time if a folder was named."""
    path = None if folder is None else folder / f"{name}.pickle"
    if path is not None and path.exists():
        return pickle.loads(path.read_bytes())
    made = work()
    if path is not None:
        folder.mkdir(parents=True, exist_ok=True)
        path.write_bytes(pickle.dumps(made))
    return made


def encode_all(encoder: Encoder, tiles: Array) -> Array:
    parts = [encoder.encode(np.ascontiguousarray(tiles[i : i + 16])) for i in range(0, len(tiles), 16)]
    return np.concatenate(parts).astype(np.float16)


# What bags are made of


def read_pools(atlas: Path, encoder: Encoder) -> dict[str, dict[str, list[Array]]]:
    """Tiles of non-neoplastic and of malignant cases, as scanned and with matched colours."""
    behaviour = {Path(row["tiles_file"]).stem: row["behaviour"] for row in read_rows(atlas)}
    chosen = {"non-neoplastic": "background", "malignant": "lesion"}
    slides = [
        slide
        for slide in read_atlas(atlas, tile_px=encoder.card.input.tile_px, mpp=encoder.card.input.mpp)
        if behaviour[slide.name] in chosen
        and slide.name not in SMEARS
        and slide.case.rpartition("/")[2] not in MIXED_SLIDES
    ]
    pools: dict[str, dict[str, list[Array]]] = {}
    target = np.mean([measure_colour(slide.tiles) for slide in slides], axis=0)
    for name, change in (("as scanned", lambda tiles: tiles), ("colours matched", lambda t: match_colour(t, target))):
        cases: dict[str, dict[str, list[Array]]] = {"background": {}, "lesion": {}}
        for slide in slides:
            vectors = encode_all(encoder, change(slide.tiles))
            cases[chosen[behaviour[slide.name]]].setdefault(slide.case, []).append(vectors)
        pools[name] = {kind: [np.concatenate(those) for those in held.values()] for kind, held in cases.items()}
    return pools


def measure_colour(tiles: Array) -> Array:
    """(2, 3) mean and deviation of a slide's optical density."""
    density = to_density(tiles[:, ::4, ::4]).reshape(-1, 3)
    return np.stack([density.mean(axis=0), density.std(axis=0)])


def match_colour(tiles: Array, target: Array) -> Array:
    """Give a slide's optical density, channel by channel, the mean and deviation that all slides have on average."""
    own = measure_colour(tiles)
    matched = np.empty_like(tiles)
    for i, tile in enumerate(tiles):
        density = (to_density(tile) - own[0]) / own[1] * target[1] + target[0]
        matched[i] = np.clip(256 * np.exp(-density) - 1, 0, 255).astype(np.uint8)
    return matched


def to_density(tiles: Array) -> Array:
    return -np.log((tiles.astype(np.float32) + 1) / 256)


def read_nodes(labelled: Path, encoder: Encoder) -> tuple[Side, Side]:
    """PatchCamelyon's tiles: those to learn from, and those of its validation and test. No patients are named."""
    tile_px = encoder.card.input.tile_px
    with (labelled / "labels.csv").open(newline="", encoding="utf-8") as table:
        rows = [row for row in csv.DictReader(table) if row["set"] == "pcam1000"]
    with tarfile.open(labelled / "pcam1000.tar") as archive:
        stored = [decode(archive.extractfile(row["file"]).read()) for row in rows]
    tiles = np.stack([cv2.resize(tile, (tile_px, tile_px), interpolation=cv2.INTER_LINEAR) for tile in stored])
    vectors = encode_all(encoder, tiles)
    is_lesion = np.array([row["label"] == "1" for row in rows])
    is_train = np.array([row["split"] == "train" for row in rows])

    def gather(of: Array) -> Side:
        # Parts without a meaning, so that bags differ from one another as far as tiles of one set do.
        parts = [np.array_split(vectors[of & kind], 5) for kind in (~is_lesion, is_lesion)]
        return Side(*parts)

    return gather(is_train), gather(~is_train)


def part_cases(pools: dict[str, list[Array]], seed: int) -> Split:
    random = np.random.default_rng(seed)
    sides: list[dict[str, list[Array]]] = [{}, {}]
    for kind, cases in pools.items():
        order = random.permutation(len(cases))
        tested = round(TEST_SHARE * len(cases))
        sides[0][kind], sides[1][kind] = [cases[i] for i in order[tested:]], [cases[i] for i in order[:tested]]
    return Split(Side(**sides[0]), Side(**sides[1]), seed, has_cases=True)


def draw_bag(side: Side, planted: int, kind: str, random: Random) -> Bag:
    """A bag: `plain`, with `another` case's ordinary tiles planted, or with those of a `lesion`."""
    chosen = random.permutation(len(side.background))
    shares = random.dirichlet(np.ones(MIXED_CASES))
    of_tile = random.choice(chosen[:MIXED_CASES], TILES, p=shares)
    vectors = np.stack([side.background[i][random.integers(len(side.background[i]))] for i in of_tile])
    if kind == "plain":
        return Bag(vectors, np.empty(0, np.int64))
    source = side.lesion if kind == "lesion" else [side.background[i] for i in chosen[MIXED_CASES:]]
    tiles = source[random.integers(len(source))]
    places = random.choice(TILES, planted, replace=False)
    vectors[places] = tiles[random.choice(len(tiles), planted, replace=False)]
    return Bag(vectors, places)


# Methods


def learn(split: Split, packaged: Reference) -> dict[str, Judge]:
    """All methods, learnt from one side of a split."""
    random = np.random.default_rng(100 + split.seed)
    kinds = [("plain", 0)] * TRAIN_BAGS + [
        ("another" if split.has_cases else "plain", PLANTED[i % 2]) for i in range(TRAIN_BAGS)
    ]
    kinds += [("lesion", planted) for planted in PLANTED for _ in range(TRAIN_BAGS)]
    bags = [draw_bag(split.train, planted, kind, random).vectors for kind, planted in kinds]
    labels = np.array([int(kind == "lesion") for kind, _ in kinds])
    judges: dict[str, Judge] = {}
    for name, training in HEADS.items():
        judges[name] = judge_with(fit_abmil(bags, {QUESTION.id: labels}, (QUESTION,), training))
    judges[INSTANCE] = learn_tiles(split.train)
    means = np.stack([average(bag) for bag in bags])
    for name, judge in POOLED.items():
        judges[name] = lambda v, judge=judge: Judged(float(judge(QUESTION, means, labels, average(v)[None])[0, 0]), {})
    judges[PACKAGED] = judge_novelty(packaged.mean, packaged.whitening)
    judges[OWN] = judge_novelty(*fit_cloud(np.concatenate(split.train.background)))
    return judges


def judge_with(head: Abmil) -> Judge:
    def judge(vectors: Array) -> Judged:
        scores = score_bag(head, vectors)
        tiles = {"attention": scores.attention, "push": scores.push[QUESTION.id][:, 0]}
        return Judged(float(scores.logits[QUESTION.id][0]), tiles)

    return judge


def learn_tiles(side: Side) -> Judge:
    """The instance head as `slideway train` makes it, from the tiles of the background and of the lesion cases."""
    tiles = np.concatenate([*side.background, *side.lesion]).astype(np.float32)
    labels = np.repeat([0, 1], [sum(map(len, side.background)), sum(map(len, side.lesion))])
    projection = fit_projection(tiles, rank=256)
    head = InstanceScorer(projection, {QUESTION.id: fit_logistic(projection(tiles), labels)}, (QUESTION,))

    def judge(vectors: Array) -> Judged:
        scores = score_instances(head, projection(vectors))
        return Judged(float(scores.logits[QUESTION.id][0]), {"score": score_tiles(head, vectors, QUESTION.id)})

    return judge


def judge_novelty(mean: Array, whitening: Array) -> Judge:
    """The mean distance of the farthest hundredth of a bag's tiles, as the instance head sums up its scores."""

    def judge(vectors: Array) -> Judged:
        distance = measure_distance(vectors, mean, whitening)
        return Judged(float(np.sort(distance)[-TILES // 100 :].mean()), {"score": distance})

    return judge


def average(vectors: Array) -> Array:
    return vectors.mean(axis=0, dtype=np.float64)


# One split


@dataclass(frozen=True)
class Told:
    """What the methods said of a split's test bags.

    Attributes:
        scores: By codec (`""` for none), method and kind of bag (plain 0, lesion 10, …): a score for each bag.
        found: By method, tile score and number planted: share of planted tiles among as many hottest, and share of bags
            whose hottest tile is a planted one.
        bytes_a_tile: By codec.
    """

    scores: dict[str, dict[str, dict[tuple[str, int], Array]]]
    found: dict[tuple[str, str, int], tuple[float, float]]
    bytes_a_tile: dict[str, float]


def judge_split(split: Split, packaged: Reference, with_codecs: bool) -> Told:
    judges = learn(split, packaged)
    random = np.random.default_rng(200 + split.seed)
    kinds = [("plain", 0), *(("lesion", n) for n in PLANTED), *(("another", n) for n in PLANTED if split.has_cases)]
    bags = {kind: [draw_bag(split.test, kind[1], kind[0], random) for _ in range(TEST_BAGS)] for kind in kinds}
    told = {kind: {name: [judge(bag.vectors) for bag in those] for name, judge in judges.items()}
            for kind, those in bags.items()}  # fmt: skip
    scores = {"": {name: {kind: scores_of(told[kind][name]) for kind in kinds} for name in judges}}
    found = {}
    for planted in PLANTED:
        for name in judges:
            for by in told["lesion", planted][name][0].tiles:
                both = zip(told["lesion", planted][name], bags["lesion", planted], strict=True)
                found[name, by, planted] = find_share([(one.tiles[by], bag.planted) for one, bag in both])
    sizes: dict[str, float] = {}
    if with_codecs:
        cases = [*split.train.background, *split.train.lesion]
        of_case = np.repeat(np.arange(len(cases)), [len(tiles) for tiles in cases])
        basis = fit_basis(np.concatenate(cases), of_case, fingerprint=packaged.fingerprint)
        kept = {kind: bags[kind] for kind in kinds if kind[0] != "another"}
        for codec, given in list_codecs(basis):
            name = f"{codec}, basis given" if given is not None else codec
            scores[name], sizes[name] = judge_decoded(judges, kept, codec, given)
    return Told(scores, found, sizes)


def scores_of(judged: Sequence[Judged]) -> Array:
    return np.array([one.score for one in judged])


def find_share(pairs: list[tuple[Array, Array]]) -> tuple[float, float]:
    top = [np.isin(np.argsort(-tiles, kind="stable")[: len(planted)], planted) for tiles, planted in pairs]
    return float(np.mean(top)), float(np.mean([own[0] for own in top]))


def list_codecs(basis: FeatureBasis) -> list[tuple[str, FeatureBasis | None]]:
    return [*((name, None) for name in CODECS), *((n, basis) for n in ("pca-int8", "pca-int4", "pq", "steps"))]


def judge_decoded(
    judges: dict[str, Judge], bags: dict[tuple[str, int], list[Bag]], codec: str, basis: FeatureBasis | None
) -> tuple[dict[str, dict[tuple[str, int], Array]], float]:
    sizes, scores = [], {name: {kind: [] for kind in bags} for name in judges}
    for kind, those in bags.items():
        for bag in those:
            sent = encode(bag.vectors, codec, basis=basis)
            sizes.append(len(sent.payload) / TILES)
            vectors = decode_vectors(sent, basis=basis)
            for name, judge in judges.items():
                scores[name][kind].append(judge(vectors).score)
    return {name: {kind: np.array(own) for kind, own in held.items()} for name, held in scores.items()}, np.mean(sizes)


# Reports


def measure_contrast(told: Sequence[Told], codec: str, method: str, first: Any, second: Any) -> Array:
    """Mean over splits of the AUROC of `first` bags over `second` ones, and a 95 % interval from bags drawn anew."""
    pairs = [(one.scores[codec][method][first], one.scores[codec][method][second]) for one in told]
    random = np.random.default_rng(0)
    drawn = [np.mean([tell_apart(random.choice(a, len(a)), random.choice(b, len(b))) for a, b in pairs])
             for _ in range(DRAWS)]  # fmt: skip
    return np.array([np.mean([tell_apart(*pair) for pair in pairs]), *np.quantile(drawn, (0.025, 0.975))])


def tell_apart(high: Array, low: Array) -> float:
    return auroc(np.r_[high, low], np.r_[np.ones(len(high)), np.zeros(len(low))])


def report_methods(name: str, told: Sequence[Told]) -> None:
    has_control = ("another", PLANTED[0]) in told[0].scores[""][METHODS[0]]
    print(f"\n## {name}: {len(told)} splits, {TEST_BAGS} test bags of each kind\n")
    head = [f"{planted} of {TILES:,} against none" for planted in PLANTED]
    if has_control:
        head += [f"{n} lesion against {n} of another ordinary case" for n in PLANTED]
        head += [f"control: {n} of another ordinary case against none" for n in PLANTED]
    print("| method | " + " | ".join(head) + " |\n|---" * 1 + "|---" * len(head) + "|")
    for method in METHODS:
        contrasts = [(("lesion", n), ("plain", 0)) for n in PLANTED]
        if has_control:
            contrasts += [(("lesion", n), ("another", n)) for n in PLANTED]
            contrasts += [(("another", n), ("plain", 0)) for n in PLANTED]
        cells = [measure_contrast(told, "", method, *pair) for pair in contrasts]
        print(f"| {method} | " + " | ".join(f"{c[0]:.2f} ({c[1]:.2f}–{c[2]:.2f})" for c in cells) + " |")
    print("\n| method, by | planted among as many hottest, 10 / 2 planted | hottest tile is a planted one, 10 / 2 |")
    print("|---|---|---|")
    for method, by, _ in [key for key in told[0].found if key[2] == PLANTED[0]]:
        both = [np.mean([one.found[method, by, n] for one in told], axis=0) for n in PLANTED]
        print(f"| {method}, {by} | {both[0][0]:.0%} / {both[1][0]:.0%} | {both[0][1]:.0%} / {both[1][1]:.0%} |")
    sys.stdout.flush()


def report_codecs(name: str, told: Sequence[Told]) -> None:
    shown = [*HEADS, INSTANCE, *POOLED, PACKAGED]
    print(f"\n## Codecs, {name}: {len(told)} splits; AUROC against plain bags, 10 / 2 planted\n")
    print("| codec | bytes a tile | " + " | ".join(shown) + " |\n|---|---" + "|---" * len(shown) + "|")
    for codec in told[0].scores:
        cells = []
        for method in shown:
            both = [measure_contrast(told, codec, method, ("lesion", n), ("plain", 0))[0] for n in PLANTED]
            cells.append(f"{both[0]:.3f} / {both[1]:.3f}")
        size = f"{np.mean([one.bytes_a_tile[codec] for one in told]):.0f}" if codec else "1024"
        print(f"| {codec or 'none'} | {size} | {' | '.join(cells)} |")
    sys.stdout.flush()


def judge_here(work: tuple[Split, Reference, bool]) -> Told:
    with threadpool_limits(1):
        return judge_split(*work)


def judge_all(splits: Sequence[Split], packaged: Reference, with_codecs: int) -> list[Told]:
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(2, context) as pool:
        return list(pool.map(judge_here, [(split, packaged, i < with_codecs) for i, split in enumerate(splits)]))


def count_cpu_seconds() -> float:
    return sum(sum(resource.getrusage(who)[:2]) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--keep", type=Path, help="folder where vectors are kept for another run")
    parser.add_argument("--splits", type=int, default=3)
    parser.add_argument("--codec-splits", type=int, default=1)
    options = parser.parse_args()
    began, encoder = time.perf_counter(), load()
    packaged = load_reference(REFERENCES / f"{encoder.card.id}.safetensors")
    for name, pools in keep(options.keep, "pools", lambda: read_pools(options.data / "atlas", encoder)).items():
        print(f"\n{name}: {', '.join(f'{len(cases)} {kind} cases' for kind, cases in pools.items())}")
        splits = [part_cases(pools, seed) for seed in range(options.splits)]
        with_codecs = options.codec_splits if name == "as scanned" else 0
        told = judge_all(splits, packaged, with_codecs)
        report_methods(name, told)
        if with_codecs:
            report_codecs(name, told[:with_codecs])
    train, test = keep(options.keep, "nodes", lambda: read_nodes(options.data / "labelled", encoder))
    told = judge_all([Split(train, test, seed, has_cases=False) for seed in range(2)], packaged, 1)
    report_methods("lymph nodes, PatchCamelyon", told)
    report_codecs("lymph nodes, PatchCamelyon", told[:1])
    print(f"\n{time.perf_counter() - began:.0f} s, {count_cpu_seconds():.0f} s of CPU", file=sys.stderr)


if __name__ == "__main__":
    main()
