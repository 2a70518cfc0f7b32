"""Bytes against answer: what each codec and each prefix of a bundle costs and changes, on all real slides at hand.

    python bench/parity/measure.py DATA [--cache FOLDER] [--write]

DATA holds `atlas/` (slides.csv, tiles/, slides/) and `labelled/` (labels.csv, pcam1000.tar, oscc.tar). Bags, bundles
and vectors that the cache lacks are made; then it takes about ten minutes on one core. With `--write`, evidence.json,
the tables of docs/parity.md and its picture are written anew; with `--again`, tables and picture from evidence.json.
Margins are fixed below, before anything is measured.
"""

from __future__ import annotations

import argparse
import datetime
import hashlib
import json
import platform
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from answers import ABMIL, MEAN, NEAREST, SHIPPED, UNSEEN, Judges, Told, judge_means, learn, load_shipped, search, tell
from intervals import (
    bound_crossed,
    bound_difference,
    count_needed,
    count_needed_at,
    draw_cases,
    expect_flips,
    group_rows,
    judge_floor,
    judge_loss,
    measure_agreement,
    measure_design_effect,
    quantiles,
)
from material import CASE_FOLDS, Atlas, LabelledTiles, Slide, read_atlas_set, read_labelled
from numpy.typing import NDArray
from planted import (
    FINDERS,
    NODES,
    SHARES,
    Found,
    Planting,
    correlate,
    cut_prefixes,
    find_all,
    follow_prefixes,
    learn_tiles,
    match_rows,
    plant,
    send_planting,
)
from report import write_report
from scipy.special import expit
from sklearn.metrics import adjusted_rand_score
from ways import LOSSLESS, NEEDS_BASIS, WAYS, Way, send, send_bag

from slideway.bundles.build import DEFAULT_CODEC, build_bundle
from slideway.bundles.codec_basis import FeatureBasis, fit_basis
from slideway.bundles.read import read_bundle
from slideway.core.bag import EmbeddingBag
from slideway.core.opinion import TaskQuestion
from slideway.encoders import load_encoder
from slideway.heads.conformal import ConformalCalibration, calibrate, p_values
from slideway.heads.instance import score_tiles
from slideway.heads.metrics import auroc
from slideway.heads.referral import Certainty, Circumstances, Decision, ReferralPolicy, decide
from slideway.registry.store import DEFAULT_ENCODER, find_encoder

Array = NDArray[Any]
EVIDENCE = Path(__file__).parent / "evidence.json"
# The margins: what a codec may lose and still be called as good as lossless vectors.
LEAST_AGREEMENT = 0.995  # of top-1 answers
MOST_AUROC_LOSS = 0.01
MOST_RECALL_LOSS = 0.02  # of planted tiles, on average over finders
BASIS_FOLDS = 5
LABELLED = ("pcam1000", "oscc")
FOLLOWED_DONORS = 2  # of each host, through the prefixes
PREFIXES = ("T0", "T0 + T1", "+ 1 chunk", "+ 2 chunks", "whole")


@dataclass
class Sent:
    """Everything after one way: bags as the receiver has them, and what is said of them."""

    way: Way
    bags: list[EmbeddingBag]
    n_bytes: list[int]
    bundle_bytes: list[int]
    told: list[Told]
    digest: str


def log(words: str) -> None:
    print(f"{time.perf_counter() - BEGAN:6.0f} s  {words}", file=sys.stderr, flush=True)


BEGAN = time.perf_counter()


# Slides


def fit_bases(atlas: Atlas) -> list[FeatureBasis]:
    """Axes and codebooks from the cases of all other folds, for bags too small for axes of their own."""
    bases = []
    for fold in range(BASIS_FOLDS):
        others = [part for part in atlas.parts if part.fold % BASIS_FOLDS != fold]
        vectors = np.concatenate([part.bag.vectors for part in others])
        names = np.repeat([part.name for part in others], [len(part.bag) for part in others])
        bases.append(fit_basis(vectors, names, fingerprint=others[0].bag.fingerprint))
    return bases


def send_all(atlas: Atlas, way: Way, bases: Sequence[FeatureBasis]) -> Sent:
    """Small bags by the codec alone; whole slides as a bundle that is written and read back, where it can be."""
    bags, n_bytes, bundle_bytes = [], [], []
    digest = hashlib.sha256()  # of what the codec alone gives: in a bundle each part has a scale of its own
    for part in atlas.parts:
        basis = bases[part.fold % BASIS_FOLDS] if way.codec in NEEDS_BASIS else None
        bag, size = send_bag(part.bag, way, basis)
        digest.update(bag.vectors.tobytes())
        bags.append(bag)
        n_bytes.append(size)
    for whole in atlas.wholes:
        bag, size = send_bag(whole.bag, way)
        digest.update(bag.vectors.tobytes())
        n_bytes.append(size)
        if way.is_shipped:
            assert whole.content is not None
            packed = build_bundle(whole.content, codec=way.codec).pack()
            came = read_bundle(packed).bag()
            assert came is not None and np.array_equal(came.grid.column_row, whole.bag.grid.column_row)
            bag = came
            bundle_bytes.append(len(packed))
        bags.append(bag)
    return Sent(way, bags, n_bytes, bundle_bytes, [], digest.hexdigest())


def answer_all(atlas: Atlas, judges: Judges, bags: Sequence[EmbeddingBag]) -> list[Told]:
    slides = [*atlas.parts, *atlas.wholes]
    told = [tell(slide, bag, judges) for slide, bag in zip(slides, bags, strict=True)]
    judge_means(judges, slides, told)
    library = list(zip(atlas.parts, bags[: len(atlas.parts)], strict=True))
    for slide, bag, one in zip(slides, bags, told, strict=True):
        search(slide, bag, one, library)
    return told


@dataclass(frozen=True)
class Compared:
    """Decisions before and after, one row each."""

    case: Array
    method: Array
    task: Array
    is_same: Array
    change: Array
    margin: Array
    margin_change: Array
    same_kind: Array
    same_set: Array

    def select(self, keep: Array) -> Compared:
        return Compared(*(getattr(self, name)[keep] for name in self.__dataclass_fields__))


def compare(slides: Sequence[Slide], before: Sequence[Told], after: Sequence[Told]) -> Compared:
    rows = []
    for slide, old, new in zip(slides, before, after, strict=True):
        for (method, task), first in old.decisions.items():
            second = new.decisions.get((method, task))
            if second is None:
                rows.append((slide.case, method, task, False, 1.0, 0.0, 0.0, False, False))
                continue
            order = np.argsort(-first.probabilities, kind="stable")[:2]
            logs = [np.log(np.maximum(one.probabilities[order], 1e-9)) for one in (first, second)]
            ahead = [float(own[0] - own[1]) for own in logs]
            change = float(np.abs(first.probabilities - second.probabilities).max())
            kind = first.kind == second.kind if first.kind else True
            rows.append(
                (
                    slide.case,
                    method,
                    task,
                    first.leading == second.leading,
                    change,
                    ahead[0],
                    ahead[1] - ahead[0],
                    kind,
                    first.labels == second.labels,
                )
            )
    return Compared(*(np.array(column) for column in zip(*rows, strict=True)))


def predict_flips(rows: Compared) -> float:
    """Share of decisions expected to flip, from margins and changes of each method and question."""
    total, expected = 0, 0.0
    for method in np.unique(rows.method):
        for task in np.unique(rows.task[rows.method == method]):
            own = rows.select((rows.method == method) & (rows.task == task))
            expected += len(own.case) * expect_flips(own.margin, own.margin_change)
            total += len(own.case)
    return expected / total


def bound_prediction(rows: Compared, draws: int = 200) -> tuple[float, float, float]:
    parts, random, values = group_rows(rows.case), np.random.default_rng(0), []
    for _ in range(draws):
        keep = np.concatenate([parts[i] for i in random.integers(len(parts), size=len(parts))])
        values.append(predict_flips(rows.select(keep)))
    return predict_flips(rows), *quantiles(np.array(values))


def measure_sets(atlas: Atlas, before: Sequence[Told], after: Sequence[Told]) -> dict[str, Any]:
    """Conformal sets and kinds of answer of the methods that had not learnt from the case.

    Calibrated on the lossless answers about cases of other folds, judged by the rule that `slideway read` follows. The
    shipped heads refer every one of these slides, so that their kinds cannot differ.
    """
    slides = [*atlas.parts, *atlas.wholes]
    fold_of = np.array([part.fold for part in atlas.parts])
    kinds, sets, cases, counts = [], [], [], dict.fromkeys(("answer", "set", "refer"), 0)
    for method in UNSEEN:
        for question in atlas.questions:
            shares = np.stack([told.decisions[method, question.id].probabilities for told in before[: len(fold_of)]])
            conformal = [
                calibrate(shares[fold_of != fold], atlas.labels[question.id][fold_of != fold])
                for fold in range(CASE_FOLDS)
            ]
            for slide, old, new in zip(slides, before, after, strict=True):
                first, second = (
                    decide_alone(question, told.decisions[method, question.id].probabilities, conformal[slide.fold])
                    for told in (old, new)
                )
                counts[first.answer.value] += 1
                kinds.append(first.answer is second.answer)
                sets.append(set(first.labels) == set(second.labels))
                cases.append(slide.case)
    return {
        "kinds": measure_agreement(np.array(kinds), cases).to_json(),
        "sets": measure_agreement(np.array(sets), cases).to_json(),
        "lossless_kinds": counts,
    }


def decide_alone(question: TaskQuestion, shares: Array, conformal: ConformalCalibration) -> Decision:
    """What follows from a head's numbers alone, on an ordinary slide."""
    around = Circumstances(tiles=96, min_tiles=1, strangeness=0.0, p_value=1.0, known_cases=10**6)
    certainty = Certainty(shares, p_values(conformal, shares[None])[0], conformal.cases)
    return decide(question, certainty, around, ReferralPolicy())


def measure_auroc_loss(atlas: Atlas, before: Sequence[Told], after: Sequence[Told]) -> tuple[float, float, float]:
    """Mean loss over methods that did not learn from the case and over both yes-no questions."""
    tasks, cases = ("neoplastic", "malignant"), [part.case for part in atlas.parts]
    keys = [(method, task) for method in UNSEEN for task in tasks]
    count = len(atlas.parts)
    scores = {
        (i, key): np.array([told[n].decisions[key].probabilities[1] for n in range(count)])
        for i, told in enumerate((before, after))
        for key in keys
    }

    def lose(rows: Array) -> float:
        losses = []
        for key in keys:
            labels = atlas.labels[key[1]][rows] == 1
            if labels.all() or not labels.any():
                return float("nan")
            losses.append(auroc(scores[0, key][rows], labels) - auroc(scores[1, key][rows], labels))
        return float(np.mean(losses))

    return bound_difference(lose, cases, draws=400)


def measure_slides(atlas: Atlas, base: Sent, sent: Sent, design_effect: float) -> dict[str, Any]:
    slides = [*atlas.parts, *atlas.wholes]
    n_parts = len(atlas.parts)
    rows = compare(slides, base.told, sent.told)
    shipped = rows.select(np.isin(rows.method, SHIPPED))
    # The mean of many tiles hardly moves whatever the codec: answers from it alone say little of a codec.
    by_tiles = rows.select(~np.isin(rows.method, (MEAN, NEAREST)))
    organ = np.array(atlas.labels["organ"])
    place = {part.name: i for i, part in enumerate(atlas.parts)}
    asked = [i for i in range(n_parts) if organ[i] >= 0]
    right = np.array([organ[place[sent.told[i].nearest]] == organ[i] for i in asked])
    same_nearest = np.array([a.nearest == b.nearest for a, b in zip(base.told, sent.told, strict=True)])
    wholes = list(zip(base.told[n_parts:], sent.told[n_parts:], strict=True))
    calls = [
        np.concatenate([(told.tile_logits[head] > 0) for told in own.told[n_parts:]])
        for own in (base, sent)
        for head in SHIPPED[1:]
    ]
    same_call = np.concatenate([calls[0] == calls[2], calls[1] == calls[3]])
    of_call = np.tile(np.repeat([whole.case for whole in atlas.wholes], [len(w.bag) for w in atlas.wholes]), 2)
    cosines = [measure_cosine(a, b) for a, b in zip(base.bags, sent.bags, strict=True)]
    return {
        "agreement": measure_agreement(rows.is_same, rows.case, design_effect=design_effect).to_json(),
        "by_method": {
            method: {
                "agreement": measure_agreement(own.is_same, own.case).to_json(),
                "change": describe_changes(own),
                "median_margin": round(float(np.median(own.margin)), 3),
            }
            for method in (*SHIPPED, *UNSEEN)
            for own in [rows.select(rows.method == method)]
        },
        "wholes_differ": [int((~rows.is_same[-count_wholes(rows, atlas) :]).sum()), count_wholes(rows, atlas)],
        "change": describe_changes(rows),
        "expected_flips": round_all(bound_prediction(rows)),
        "by_tiles": measure_agreement(by_tiles.is_same, by_tiles.case, design_effect=design_effect).to_json(),
        "shipped_kinds": measure_agreement(shipped.same_kind, shipped.case).to_json(),
        "unseen_sets": measure_sets(atlas, base.told, sent.told),
        "auroc_loss": round_all(measure_auroc_loss(atlas, base.told, sent.told)),
        "nearest": measure_agreement(same_nearest, [slide.case for slide in slides]).to_json(),
        "recall_at_1": [int(right.sum()), len(right)],
        "tile_calls": measure_agreement(same_call, of_call).to_json(),
        "attention": describe([correlate(a.attention, b.attention) for a, b in wholes]),
        "tile_scores": describe(
            [correlate(a.tile_logits[head], b.tile_logits[head]) for a, b in wholes for head in SHIPPED[1:]]
        ),
        "groups": describe([adjusted_rand_score(a.groups.group, b.groups.group) for a, b in wholes]),
        "novelty": describe([correlate(a.novelty.percentile, b.novelty.percentile) for a, b in wholes]),
        "novel_share": describe([abs(a.novelty.novel_share - b.novelty.novel_share) for a, b in wholes]),
        "cosine": describe(cosines[n_parts:]),
        "cosine_small": describe(cosines[:n_parts]),
    }


def count_wholes(rows: Compared, atlas: Atlas) -> int:
    return len(rows.case) * len(atlas.wholes) // (len(atlas.parts) + len(atlas.wholes))


def measure_cosine(before: EmbeddingBag, after: EmbeddingBag) -> float:
    """Mean cosine of a slide's tiles after its mean was taken off."""
    first, second = before.vectors.astype(np.float32), after.vectors.astype(np.float32)
    mean = first.mean(axis=0)
    first, second = first - mean, second - mean
    length = np.linalg.norm(first, axis=1) * np.linalg.norm(second, axis=1)
    return float(((first * second).sum(axis=1) / np.maximum(length, 1e-9)).mean())


def describe_changes(rows: Compared) -> dict[str, float]:
    return {
        "mean": round(float(rows.change.mean()), 5),
        "q99": round(float(np.quantile(rows.change, 0.99)), 5),
        "max": round(float(rows.change.max()), 5),
    }


def describe(values: Sequence[float]) -> dict[str, float]:
    """Mean and range over slides, and the interval of the mean from slides drawn anew."""
    own = np.array(values, float)
    low, high = quantiles(draw_cases([np.array([value]) for value in own]))
    found = {"mean": own.mean(), "low": low, "high": high, "min": own.min(), "max": own.max()}
    return {key: round(float(value), 5) for key, value in found.items()}


def round_all(values: Sequence[float]) -> list[float]:
    return [round(float(value), 5) for value in values]


def measure_bytes(atlas: Atlas, sent: Sent) -> dict[str, Any]:
    n_parts = len(atlas.parts)
    tiles = [len(slide.bag) for slide in (*atlas.parts, *atlas.wholes)]
    own: dict[str, Any] = {
        "small_bytes_per_tile": round(sum(sent.n_bytes[:n_parts]) / sum(tiles[:n_parts]), 1),
        "bytes_per_tile": round(sum(sent.n_bytes[n_parts:]) / sum(tiles[n_parts:]), 1),
    }
    if sent.bundle_bytes:
        files = [whole.file_bytes for whole in atlas.wholes]
        own["bundle_bytes"] = sent.bundle_bytes
        own["bundle_bytes_per_tile"] = round(sum(sent.bundle_bytes) / sum(tiles[n_parts:]), 1)
        own["share_of_file"] = [round(size / file, 5) for size, file in zip(sent.bundle_bytes, files, strict=True)]
    return own


# Labelled tiles


def judge_tiles(sets: Sequence[LabelledTiles], way: Way) -> dict[str, dict[str, Array]]:
    """Logits of each set's judged tiles: by a head that has not learnt from them, and of all by the shipped one."""
    told = {}
    shipped = {card.id: (card, head) for card, head in load_shipped()}
    for tiles, name in zip(sets, SHIPPED[1:], strict=True):
        came, _ = send(tiles.vectors, way)
        unseen = np.full(len(tiles.labels), np.nan)
        for fold in tiles.folds:
            judge = learn_tiles(tiles.vectors[fold.train].astype(np.float32), tiles.labels[fold.train])
            unseen[fold.test] = judge(came[fold.test])
        card, head = shipped[name]
        told[tiles.name] = {
            "unseen": unseen[tiles.judged],
            "shipped": score_tiles(head.network, came, card.tasks[0].question.id),
            "labels": tiles.labels[tiles.judged],
        }
    return told


def compare_tiles(before: dict[str, dict[str, Array]], after: dict[str, dict[str, Array]]) -> dict[str, Any]:
    def both(key: str) -> tuple[Array, Array]:
        return (
            np.concatenate([own[key] for own in before.values()]),
            np.concatenate([own[key] for own in after.values()]),
        )

    found: dict[str, Any] = {}
    for key in ("unseen", "shipped"):
        first, second = both(key)
        found[key] = {
            "agreement": measure_agreement((first > 0) == (second > 0), np.arange(len(first))).to_json(),
            "change": {
                "mean": round(float(np.abs(expit(first) - expit(second)).mean()), 5),
                "q99": round(float(np.quantile(np.abs(expit(first) - expit(second)), 0.99)), 5),
                "max": round(float(np.abs(expit(first) - expit(second)).max()), 5),
            },
            "expected_flips": round(expect_flips(np.abs(first), np.sign(first) * (second - first)), 5),
        }
    losses = {}
    for name, own in before.items():
        labels = own["labels"] == 1

        def lose(rows: Array, own: Any = own, new: Any = after[name], labels: Array = labels) -> float:
            return auroc(own["unseen"][rows], labels[rows]) - auroc(new["unseen"][rows], labels[rows])

        losses[name] = round_all(bound_difference(lose, np.arange(len(labels)), draws=400))
        losses[f"{name}, lossless"] = round(auroc(own["unseen"], labels), 4)
    return {**found, "auroc_loss": losses}


# Planted tiles

Planted = list[tuple[Planting, dict[str, Found]]]


def plant_all(plantings: Sequence[Planting], way: Way) -> list[dict[str, Found]]:
    return [find_all(planting, send_planting(planting, way)) for planting in plantings]


def compare_planted(
    plantings: Sequence[Planting], before: Sequence[dict[str, Found]], after: Sequence[dict[str, Found]]
) -> dict[str, Any]:
    found: dict[str, Any] = {}
    pooled: dict[float, list[tuple[float, float, str, str]]] = {share: [] for share in SHARES}
    for share in SHARES:
        for name in FINDERS:
            rows = [
                (old[name], new[name], planting)
                for planting, old, new in zip(plantings, before, after, strict=True)
                if planting.share == share and name in old
            ]
            hosts = np.array([planting.host.case for *_, planting in rows])
            donors = np.array([planting.donor for *_, planting in rows])
            loss = np.array([old.recall - new.recall for old, new, _ in rows])
            lost = np.array([old.auroc - new.auroc for old, new, _ in rows])
            pooled[share] += list(zip(loss, lost, hosts, donors, strict=True))
            found[f"{name} {share}"] = {
                "plantings": len(rows),
                "tiles": int(sum(len(planting.places) for *_, planting in rows)),
                "recall": round(float(np.mean([new.recall for _, new, _ in rows])), 4),
                "auroc": round(float(np.mean([new.auroc for _, new, _ in rows])), 4),
                "recall_loss": round_all(bound_crossed(loss, hosts, donors)),
                "auroc_loss": round_all(bound_crossed(lost, hosts, donors)),
            }
    for share in SHARES:
        loss, lost, hosts, donors = (np.array(column) for column in zip(*pooled[share], strict=True))
        found[f"all {share}"] = {
            "recall_loss": round_all(bound_crossed(loss, hosts, donors)),
            "auroc_loss": round_all(bound_crossed(lost, hosts, donors)),
        }
    return found


# Prefixes


def measure_prefixes(atlas: Atlas, judges: Judges, base: Sent, codec: str) -> dict[str, Any]:
    """Each prefix of the whole slides' bundles, as a receiver would read it."""
    n_parts = len(atlas.parts)
    library = list(zip(atlas.parts, base.bags[:n_parts], strict=True))
    steps: dict[str, list[tuple[Slide, int, EmbeddingBag | None, Told | None, Told]]] = {p: [] for p in PREFIXES}
    for number, whole in enumerate(atlas.wholes):
        assert whole.content is not None
        cuts = cut_prefixes(build_bundle(whole.content, codec=codec))
        reference = base.told[n_parts + number]
        for name, cut in name_prefixes(cuts):
            bag = read_bundle(cut).bag()
            told = None
            if bag is not None:
                told = tell(whole, bag, judges)
                judge_means(judges, [whole], [told])
                search(whole, bag, told, library)
            steps[name].append((whole, len(cut), bag, told, reference))
    return {name: describe_prefix(rows) for name, rows in steps.items()}


def name_prefixes(cuts: Sequence[bytes]) -> list[tuple[str, bytes]]:
    """A slide that is whole after fewer chunks stays whole."""
    named = [(PREFIXES[0], cuts[0]), (PREFIXES[1], cuts[1])]
    named += [(PREFIXES[1 + i], cuts[min(1 + i, len(cuts) - 1)]) for i in (1, 2)]
    return [*named, (PREFIXES[-1], cuts[-1])]


def describe_prefix(rows: Sequence[tuple[Slide, int, EmbeddingBag | None, Told | None, Told]]) -> dict[str, Any]:
    sizes = [size for _, size, *_ in rows]
    own: dict[str, Any] = {
        "bytes": sizes,
        "tiles": [0 if bag is None else len(bag) for _, _, bag, *_ in rows],
        "of_tiles": [len(slide.bag) for slide, *_ in rows],
    }
    if any(told is None for *_, told, _ in rows):
        return own
    slides = [slide for slide, *_ in rows]
    after, before = [told for *_, told, _ in rows if told is not None], [told for *_, told in rows]
    compared = compare(slides, before, after)
    by_tiles = compared.select(~np.isin(compared.method, (MEAN, NEAREST)))
    places = [match_rows(slide.bag, bag) for slide, _, bag, *_ in rows if bag is not None]
    own |= {
        "agreement": measure_agreement(compared.is_same, compared.case).to_json(),
        "change": describe_changes(compared),
        "by_tiles": measure_agreement(by_tiles.is_same, by_tiles.case).to_json(),
        "attention": describe(
            [correlate(a.attention[at], b.attention) for a, b, at in zip(before, after, places, strict=True)]
        ),
        "groups": describe(
            [
                adjusted_rand_score(a.groups.group[at], b.groups.group)
                for a, b, at in zip(before, after, places, strict=True)
            ]
        ),
        "novel_share": describe(
            [abs(a.novelty.novel_share - b.novelty.novel_share) for a, b in zip(before, after, strict=True)]
        ),
        "nearest_same": [sum(a.nearest == b.nearest for a, b in zip(before, after, strict=True)), len(rows)],
    }
    return own


def measure_planted_prefixes(plantings: Sequence[Planting], codec: str, *, by_attention: bool) -> dict[str, Any]:
    """What of planted tiles has come, and is found, at each prefix.

    As shipped no head is in force, and novelty and groups alone order the tiles; `by_attention` orders them as if the
    atlas head were.
    """
    followed: dict[tuple[str, float], int] = {}
    rows: dict[tuple[str, float, str], list[Found]] = {}
    for planting in plantings:
        key = (planting.host.name, planting.share)
        if NODES in planting.finders or followed.get(key, 0) == FOLLOWED_DONORS:
            continue
        followed[key] = followed.get(key, 0) + 1
        for name, prefix in name_steps(follow_prefixes(planting, codec, by_attention=by_attention)):
            for finder, found in prefix.items():
                rows.setdefault((name, planting.share, finder), []).append(found)
    return {
        f"{name} | {finder} {share}": {
            "plantings": len(found),
            "came": round(float(np.mean([one.came for one in found])), 4),
            "recall": round(float(np.mean([one.recall for one in found])), 4),
        }
        for (name, share, finder), found in rows.items()
    }


def name_steps(steps: Sequence[tuple[int, int, dict[str, Found]]]) -> list[tuple[str, dict[str, Found]]]:
    return [(name, steps[min(i, len(steps) - 1)][2]) for i, name in enumerate(PREFIXES[1:-1])] + [
        (PREFIXES[-1], steps[-1][2])
    ]


# The whole


def judge_way(figures: dict[str, Any]) -> dict[str, Any]:
    slides, tiles, planted = figures["slides"], figures["tiles"], figures["planted"]
    own = slides["agreement"]
    unseen = tiles["unseen"]["agreement"]
    verdicts = {
        "slide answers": judge_floor(own["low"], own["high"], LEAST_AGREEMENT),
        "by tiles": judge_floor(slides["by_tiles"]["low"], slides["by_tiles"]["high"], LEAST_AGREEMENT),
        "tile answers": judge_floor(unseen["low"], unseen["high"], LEAST_AGREEMENT),
        "AUROC, slides": judge_loss(*slides["auroc_loss"][1:], MOST_AUROC_LOSS),
    }
    lost = [tiles["auroc_loss"][name] for name in LABELLED]
    verdicts["AUROC, tiles"] = judge_loss(max(one[1] for one in lost), max(one[2] for one in lost), MOST_AUROC_LOSS)
    for share in SHARES:
        verdicts[f"planted {share}"] = judge_loss(*planted[f"all {share}"]["recall_loss"][1:], MOST_RECALL_LOSS)
    return verdicts


@dataclass
class Gathered:
    """Everything that was said, before it is compared."""

    atlas: Atlas
    sets: tuple[LabelledTiles, ...]
    judges: Judges
    plantings: list[Planting]
    sent: dict[str, Sent]
    tiles: dict[str, dict[str, dict[str, Array]]]
    planted: dict[str, list[dict[str, Found]]]
    same_as: dict[str, str]


def gather(data: Path, cache: Path) -> Gathered:
    encoder = load_encoder(find_encoder(DEFAULT_ENCODER), engine="onnxruntime", threads=1)
    atlas = read_atlas_set(data, cache, encoder)
    sets = read_labelled(data, cache, encoder)
    log(f"{len(atlas.parts)} slides, {len(atlas.wholes)} whole; {[len(one.labels) for one in sets]} labelled tiles")
    judges, bases = learn(atlas), fit_bases(atlas)
    plantings = list(plant(atlas, sets[0]))
    log(f"learnt; {len(plantings)} plantings")
    all_of = Gathered(atlas, sets, judges, plantings, {}, {}, {}, {})
    by_digest: dict[str, str] = {}
    for way in WAYS:
        own = send_all(atlas, way, bases)
        twin = by_digest.setdefault(own.digest, way.name)
        if twin == way.name:
            own.told = answer_all(atlas, judges, own.bags)
            all_of.tiles[way.name] = judge_tiles(sets, way)
            all_of.planted[way.name] = plant_all(plantings, way)
        else:
            all_of.same_as[way.name] = twin
        all_of.sent[way.name] = own
        log(f"{way.name}{f': the same vectors as {twin}' if twin != way.name else ''}")
    return all_of


def evaluate(of: Gathered) -> dict[str, Any]:
    """Compare each way with lossless vectors."""
    base = of.sent[LOSSLESS]
    slides = [*of.atlas.parts, *of.atlas.wholes]
    compared = {name: compare(slides, base.told, own.told) for name, own in of.sent.items() if own.told}
    effect, rests_on = measure_design_effect([(rows.is_same, rows.case) for rows in compared.values()])
    ways: dict[str, Any] = {}
    for name, own in of.sent.items():
        if (twin := of.same_as.get(name)) is not None:
            ways[name] = {"bytes": measure_bytes(of.atlas, own), "same_as": twin}
            continue
        ways[name] = {
            "bytes": measure_bytes(of.atlas, own),
            "slides": measure_slides(of.atlas, base, own, effect),
            "tiles": compare_tiles(of.tiles[LOSSLESS], of.tiles[name]),
            "planted": compare_planted(of.plantings, of.planted[LOSSLESS], of.planted[name]),
        }
        ways[name]["verdicts"] = judge_way(ways[name])
    log("compared")
    facts = describe_material(of.atlas, of.sets, of.plantings, compared[LOSSLESS], base.told)
    rate = ways[DEFAULT_CODEC]["slides"]["expected_flips"][0]
    facts["needed_at_expected_flips"] = count_needed_at(rate, LEAST_AGREEMENT)
    evidence = {
        "facts": {**facts, "design_effect": round(effect, 2), "design_effect_rests_on": rests_on},
        "margins": {"agreement": LEAST_AGREEMENT, "auroc_loss": MOST_AUROC_LOSS, "recall_loss": MOST_RECALL_LOSS},
        "ways": ways,
        "prefixes": measure_prefixes(of.atlas, of.judges, base, DEFAULT_CODEC),
        "planted_prefixes": measure_planted_prefixes(of.plantings, DEFAULT_CODEC, by_attention=False),
        "planted_prefixes_by_attention": measure_planted_prefixes(of.plantings, DEFAULT_CODEC, by_attention=True),
        "prefix_codec": DEFAULT_CODEC,
    }
    log("prefixes")
    return evidence


def describe_material(
    atlas: Atlas, sets: Sequence[LabelledTiles], plantings: Sequence[Planting], rows: Compared, base: Sequence[Told]
) -> dict[str, Any]:
    return {
        "date": datetime.datetime.now(tz=datetime.UTC).date().isoformat(),
        "machine": platform.processor() or platform.machine(),
        "encoder": atlas.parts[0].bag.encoder_id,
        "slides": len(atlas.parts),
        "cases": len({part.case for part in atlas.parts}),
        "wholes": [
            {"name": w.name, "tiles": len(w.bag), "file_bytes": w.file_bytes, "is_reduced": w.is_reduced}
            for w in atlas.wholes
        ],
        "case_folds": CASE_FOLDS,
        "decisions": {method: int((rows.method == method).sum()) for method in (*SHIPPED, ABMIL, MEAN, NEAREST)},
        "slide_decisions": len(rows.case),
        "shipped_kinds": {
            kind: sum(
                one.kind == kind for told in base for (method, _), one in told.decisions.items() if method in SHIPPED
            )
            for kind in ("answer", "set", "refer")
        },
        "near_border": int((rows.margin < np.log(0.6 / 0.4)).sum()),
        "tile_decisions": {tiles.name: len(tiles.judged) for tiles in sets},
        "labelled_tiles": {tiles.name: len(tiles.labels) for tiles in sets},
        "plantings": len(plantings),
        "planted_tiles": int(sum(len(one.places) for one in plantings)),
        "hosts": len({one.host.case for one in plantings}),
        "donors": sorted({one.donor for one in plantings}),
        "needed_without_flips": count_needed(LEAST_AGREEMENT),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--cache", type=Path, help="where bags, bundles and vectors are kept; default: nowhere")
    parser.add_argument("--write", action="store_true", help="write evidence.json, docs/parity.md and its picture")
    parser.add_argument("--again", action="store_true", help="only write the tables again, from evidence.json")
    options = parser.parse_args()
    if options.again:
        write_report(json.loads(EVIDENCE.read_text(encoding="utf-8")))
        return
    with tempfile.TemporaryDirectory() as scratch:
        evidence = evaluate(gather(options.data, options.cache or Path(scratch)))
    evidence["facts"]["cpu_seconds"] = round(time.process_time())
    if options.write:
        EVIDENCE.write_text(json.dumps(evidence, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
        write_report(evidence)
    else:
        print(json.dumps(evidence, indent=1, ensure_ascii=False))


if __name__ == "__main__":
    main()
