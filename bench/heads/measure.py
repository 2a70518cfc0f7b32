"""Figures of docs/heads.md: what novelty notices, and what grouping finds, on real tiles.

    python bench/heads/measure.py DATA_FOLDER [--other "photographs=FOLDER"] [--other "IHC=ihc.png"]

DATA_FOLDER holds `atlas/` (slides.csv, tiles/) and may hold `labelled/*.tar` of JPEG tiles. Ordinary distances are
those of each atlas tile from all other cases; a spoilt tile, too, is compared with the other cases only.
"""

from __future__ import annotations

import argparse
import sys
import tarfile
import time
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

sys.path.insert(0, str(Path(__file__).parents[2] / "training"))
from atlas import AtlasSlide, decode
from build_reference import encode_slides, encode_tiles, lay_at_edge, read_sections, repeat
from spoil import SPOILT

from slideway.core.bag import EmbeddingBag
from slideway.core.tissue import TileGrid
from slideway.encoders import Encoder, load_encoder
from slideway.heads import group_tiles
from slideway.heads.novelty import NOVEL_PERCENTILE, find_reference, fit_cloud, measure_distance, score_novelty
from slideway.registry.store import DEFAULT_ENCODER, find_encoder

Array = NDArray[Any]
SPOILT_PER_SLIDE = 6
OTHERS = 300


def encode(encoder: Encoder, tiles: Array) -> Array:
    parts = [encoder.encode(np.ascontiguousarray(tiles[i : i + 4])) for i in range(0, len(tiles), 4)]
    return np.concatenate(parts).astype(np.float16)


def auroc(ordinary: Array, strange: Array) -> float:
    """Chance that a strange tile lies farther off than an ordinary one; ties count half."""
    ordinary = np.sort(ordinary)
    below = np.searchsorted(ordinary, strange, "left") + np.searchsorted(ordinary, strange, "right")
    return float(below.mean() / 2 / len(ordinary))


def leave_out(vectors: Array, label: Array, queries: Array, query_label: Array) -> Array:
    """Distance of each query from the cloud of all tiles whose label is another."""
    distance = np.empty(len(queries), np.float32)
    for one in dict.fromkeys(query_label.tolist()):
        mine = query_label == one
        distance[mine] = measure_distance(queries[mine], *fit_cloud(vectors[label != one]))
    return distance


def report_novelty(
    encoder: Encoder, slides: list[AtlasSlide], vectors: Array, at_edges: Array, others: dict[str, Array]
) -> None:
    case, organ = repeat(slides, "case"), repeat(slides, "organ")
    cloud_vectors, cloud_case = np.concatenate([vectors, at_edges]), np.concatenate([case, case])
    ordinary = leave_out(cloud_vectors, cloud_case, vectors, case)
    edges = leave_out(cloud_vectors, cloud_case, at_edges, case)
    limit = np.quantile(np.concatenate([ordinary, edges]), NOVEL_PERCENTILE / 100)
    flagged = np.array([(ordinary[case == one] > limit).mean() for one in set(case)])
    print(f"unseen case: {(flagged > 0.05).sum()} of {len(flagged)} above 5 % novel tiles, highest {flagged.max():.0%}")
    print("\n| tiles | n | AUROC | called novel |\n|---|---|---|---|")

    def row(name: str, distance: Array, against: Array = ordinary) -> None:
        print(
            f"| {name} | {len(distance)} | {auroc(against, distance):.3f} | {(distance > limit).mean():.0%} |",
            flush=True,
        )

    several = np.array([len(set(case[organ == one])) > 1 for one in organ])
    row("ordinary tissue of an unseen case", ordinary)
    row("the same, laid at an edge of glass", edges)
    unseen_organ = leave_out(cloud_vectors, np.concatenate([organ, organ]), vectors, organ)
    row("ordinary tissue of an unseen organ", unseen_organ[several], ordinary[several])
    random = np.random.default_rng(7)
    picks = [random.choice(len(slide.tiles), SPOILT_PER_SLIDE, replace=False) for slide in slides]
    tiles = np.concatenate([slide.tiles[pick] for slide, pick in zip(slides, picks, strict=True)])
    of_case = np.repeat([slide.case for slide in slides], SPOILT_PER_SLIDE)
    for name, spoil in SPOILT.items():
        spoilt = np.stack([spoil(tile, random) for tile in tiles])
        row(name, leave_out(cloud_vectors, cloud_case, encode(encoder, spoilt), of_case))
    cloud = fit_cloud(cloud_vectors)
    for name, other in others.items():
        row(name, measure_distance(encode(encoder, other), *cloud))


def adjusted_rand(a: Array, b: Array) -> float:
    """Agreement of two groupings: 0 by chance, 1 the same."""
    table = np.zeros((a.max() + 1, b.max() + 1))
    np.add.at(table, (a, b), 1)
    pairs, rows, columns = ((x * (x - 1) / 2).sum() for x in (table, table.sum(1), table.sum(0)))
    expected = rows * columns / (len(a) * (len(a) - 1) / 2)
    return float((pairs - expected) / ((rows + columns) / 2 - expected))


def lay_bag(vectors: Array, fingerprint: str) -> EmbeddingBag:
    places = np.stack([np.arange(len(vectors)) % 200, np.arange(len(vectors)) // 200], axis=1).astype(np.int32)
    grid = TileGrid(places, 224, 0.5, 0.5)
    return EmbeddingBag(vectors, grid, np.ones(len(vectors), np.float32), DEFAULT_ENCODER, fingerprint, "0" * 64)


def report_groups(slides: list[AtlasSlide], vectors: Array) -> None:
    name, random = repeat(slides, "name"), np.random.default_rng(0)
    print(
        "\n| slides mixed into one bag | groups found, mean | adjusted Rand index against slides, mean |\n|---|---|---|"
    )
    for mixed in (1, 2, 3, 4, 6):
        counts, agreement = [], []
        for _ in range(30):
            chosen = np.isin(name, random.choice([slide.name for slide in slides], mixed, replace=False))
            groups = group_tiles(lay_bag(vectors[chosen], ""))
            counts.append(groups.count)
            agreement.append(
                adjusted_rand(groups.group, np.unique(name[chosen], return_inverse=True)[1]) if mixed > 1 else 0
            )
        print(
            f"| {mixed} | {np.mean(counts):.1f} | {np.mean(agreement):.2f} |"
            if mixed > 1
            else f"| 1 | {np.mean(counts):.1f} | |"
        )


def report_speed(vectors: Array, fingerprint: str) -> None:
    bag = lay_bag(np.tile(vectors, (10, 1))[:50_000], fingerprint)
    reference = find_reference(bag)
    assert reference is not None
    for head, work in (
        ("group_tiles", lambda: group_tiles(bag)),
        ("score_novelty", lambda: score_novelty(bag, reference)),
    ):
        began, cpu = time.perf_counter(), time.process_time()
        work()
        print(f"{head}: 50,000 tiles in {time.perf_counter() - began:.2f} s, {time.process_time() - cpu:.2f} s of CPU")


def read_others(folder: Path, wanted: list[str]) -> dict[str, Array]:
    """Tiles of other origin: labelled sets beside the atlas, and pictures named on the command line."""
    others = {path.stem: read_tar(path) for path in sorted((folder / "labelled").glob("*.tar"))}
    random = np.random.default_rng(1)
    for name, path in (text.split("=", 1) for text in wanted):
        files = sorted(Path(path).iterdir()) if Path(path).is_dir() else [Path(path)]
        pictures = [
            picture
            for file in files
            if (picture := cv2.imread(str(file))) is not None and min(picture.shape[:2]) >= 224
        ]
        others[name] = np.stack(
            [cut(picture[..., ::-1], random) for picture in pictures for _ in range(OTHERS // len(pictures))]
        )
    return others


def read_tar(path: Path) -> Array:
    """Up to 300 of a tar's JPEG tiles, evenly spaced over their names, enlarged to 224 px."""
    with tarfile.open(path) as archive:
        members = sorted((m for m in archive.getmembers() if m.name.endswith(".jpg")), key=lambda m: m.name)
        stored = [archive.extractfile(m).read() for m in members[:: max(1, len(members) // OTHERS)]]
    return np.stack([cv2.resize(decode(jpeg), (224, 224), interpolation=cv2.INTER_LINEAR) for jpeg in stored])


def cut(picture: Array, random: np.random.Generator) -> Array:
    edge = int(random.integers(224, min(picture.shape[:2]) + 1))
    y, x = (int(random.integers(0, length - edge + 1)) for length in picture.shape[:2])
    square = np.ascontiguousarray(picture[y : y + edge, x : x + edge])
    return cv2.resize(square, (224, 224), interpolation=cv2.INTER_AREA)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--other", action="append", default=[], metavar="NAME=PATH")
    options = parser.parse_args()
    card = find_encoder(DEFAULT_ENCODER)
    slides = read_sections(options.data / "atlas", card)
    vectors = encode_slides(card, slides)
    random = np.random.default_rng(0)
    at_edges = encode_tiles(card, np.stack([lay_at_edge(tile, random) for slide in slides for tile in slide.tiles]))
    report_novelty(load_encoder(card), slides, vectors, at_edges, read_others(options.data, options.other))
    report_groups(slides, vectors)
    report_speed(vectors, card.fingerprint)


if __name__ == "__main__":
    main()
