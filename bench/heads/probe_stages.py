"""Which stages of MobileNetV2 to pool: nearest neighbours across cases of the atlas set, for several choices.

    python training/mobilenet_graph.py CHECKPOINT /tmp
    python bench/heads/probe_stages.py ATLAS_FOLDER /tmp/probe.onnx

`organ`: share of a tile's 5 nearest neighbours, other cases only, that are of its organ (organs with ≥ 2 cases; mean
over tiles, then mean over organs). `other slide`: the two cases with two slides; share of the 5 nearest neighbours,
own slide left out, that are of the own case. `beside`: rank (1 = nearest) of the tile that lay nearest on the slide.
Organ, stain and laboratory are confounded in this set: the figures compare encoders and promise nothing about tissue.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

sys.path.insert(0, str(Path(__file__).parents[2] / "training"))
from atlas import AtlasSlide, read_atlas

Array = NDArray[Any]
NEIGHBOURS = 5
CHOICES = (
    ("top",), ("block17",), ("block14",), ("block13", "block17"), ("block7", "block10", "block13"),
    ("block6", "block10", "block13", "block16"), ("block10", "block13", "block17"), ("block7", "block14", "block17"),
    ("block6", "block10", "block13", "block17"), ("block3", "block6", "block10", "block13", "block16", "block17"),
)  # fmt: skip
SCALINGS = ("as is", "unit blocks", "standardised")


def pool_stages(model: Path, slides: list[AtlasSlide]) -> dict[str, Array]:
    session = ort.InferenceSession(str(model), providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    tiles = np.concatenate([slide.tiles for slide in slides])
    runs = [session.run(None, {"tiles": tiles[i : i + 8]}) for i in range(0, len(tiles), 8)]
    return {name.removesuffix(".pool"): np.concatenate([run[i] for run in runs]) for i, name in enumerate(names)}


def to_unit(vectors: Array) -> Array:
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True).clip(1e-9)


def join(pools: dict[str, Array], stages: tuple[str, ...], scaling: str) -> Array:
    blocks = [pools[stage] for stage in stages]
    if scaling == "unit blocks":
        blocks = [to_unit(block) for block in blocks]
    if scaling == "standardised":
        blocks = [(block - block.mean(0)) / block.std(0) for block in blocks]
    return to_unit(np.concatenate(blocks, axis=1))


def nearest(similarity: Array, excluded: Array) -> Array:
    return np.argpartition(-np.where(excluded, -9, similarity), NEIGHBOURS, axis=1)[:, :NEIGHBOURS]


def measure(vectors: Array, slide: Array, case: Array, organ: Array, xy: Array) -> tuple[float, float, float, float]:
    similarity = vectors @ vectors.T
    same_case = case[:, None] == case[None]
    hits = (organ[nearest(similarity, same_case)] == organ[:, None]).mean(1)
    eligible = np.array([len(set(case[organ == name])) > 1 for name in organ])
    by_organ = np.mean([hits[organ == name].mean() for name in set(organ[eligible])])
    paired = np.array([len(set(slide[case == name])) > 1 for name in case])
    found = nearest(similarity[paired], slide[paired][:, None] == slide[None])
    beside = [rank_neighbour(vectors[slide == name], xy[slide == name]) for name in set(slide)]
    return (
        float(hits[eligible].mean()),
        float(by_organ),
        float((case[found] == case[paired][:, None]).mean()),
        float(np.mean(beside)),
    )


def rank_neighbour(vectors: Array, xy: Array) -> float:
    distance = np.linalg.norm(xy[:, None] - xy[None], axis=2).astype(float)
    np.fill_diagonal(distance, np.inf)
    similarity = vectors @ vectors.T
    np.fill_diagonal(similarity, -9)
    beside = np.take_along_axis(similarity, distance.argmin(1)[:, None], 1)
    return float(((similarity < beside).sum(1) / (len(xy) - 2)).clip(0, 1).mean())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("atlas", type=Path)
    parser.add_argument("probe", type=Path)
    options = parser.parse_args()
    slides = list(read_atlas(options.atlas))
    pools = pool_stages(options.probe, slides)
    sizes = [len(slide.tiles) for slide in slides]
    labels = [np.repeat([getattr(s, name) for s in slides], sizes) for name in ("name", "case", "organ")]
    xy = np.concatenate([slide.xy_level0_px for slide in slides])
    print("| stages | scaling | width | organ | by organ | other slide | beside |\n|---|---|---|---|---|---|---|")
    for stages in CHOICES:
        for scaling in SCALINGS:
            vectors = join(pools, stages, scaling)
            figures = " | ".join(f"{figure:.3f}" for figure in measure(vectors, *labels, xy))
            print(f"| {', '.join(stages)} | {scaling} | {vectors.shape[1]} | {figures} |", flush=True)


if __name__ == "__main__":
    main()
