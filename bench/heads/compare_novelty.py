"""Why novelty is a Mahalanobis distance: the ways that were tried, on the same real and spoilt tiles.

    python bench/heads/compare_novelty.py DATA_FOLDER

Each way is fitted without the case it judges. AUROC of spoilt tiles (and of foreign sets) against ordinary ones.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from measure import SPOILT_PER_SLIDE, auroc, encode, read_others
from numpy.typing import NDArray
from spoil import SPOILT

from slideway.encoders import load_encoder
from slideway.registry.store import DEFAULT_ENCODER, find_encoder

Array = NDArray[Any]
Distance = Callable[[Array], Array]
Way = Callable[[Array], Distance]
SHOWN = (
    "pen over tissue",
    "blurred, σ 1 µm",
    "grey picture",
    "hue turned by 30°",
    "enlarged twofold",
    "JPEG quality 5",
)


def mahalanobis(added: float) -> Way:
    def fit(vectors: Array) -> Distance:
        mean, covariance = vectors.mean(0), np.cov(vectors, rowvar=False)
        regular = covariance + added * np.trace(covariance) / len(mean) * np.eye(len(mean))
        whitening = np.linalg.cholesky(np.linalg.inv(regular))
        return lambda queries: np.linalg.norm((queries - mean) @ whitening, axis=1)

    return fit


def main_axes(vectors: Array, axes: int, power: float) -> Array:
    variance, directions = np.linalg.eigh(np.cov(vectors, rowvar=False))
    return directions[:, ::-1][:, :axes] * variance[::-1][:axes] ** (-power / 2)


def truncated(axes: int) -> Way:
    def fit(vectors: Array) -> Distance:
        mean, main = vectors.mean(0), main_axes(vectors, axes, 1)
        return lambda queries: np.linalg.norm((queries - mean) @ main, axis=1)

    return fit


def neighbours(axes: int, power: float, count: int) -> Way:
    def fit(vectors: Array) -> Distance:
        mean, main = vectors.mean(0), main_axes(vectors, axes, power)
        known = (vectors - mean) @ main

        def distance(queries: Array) -> Array:
            turned = (queries - mean) @ main
            squares = (turned**2).sum(1)[:, None] + (known**2).sum(1)[None] - 2 * turned @ known.T
            return np.sqrt(np.partition(squares.clip(0), count - 1, axis=1)[:, :count]).mean(1)

        return distance

    return fit


WAYS: dict[str, Way] = {
    "Mahalanobis, nothing added": mahalanobis(0),
    "Mahalanobis, 1 % added (taken)": mahalanobis(0.01),
    "Mahalanobis, 5 % added": mahalanobis(0.05),
    "Mahalanobis on 64 axes": truncated(64),
    "Mahalanobis on 256 axes": truncated(256),
    "5 neighbours, 64 whitened axes": neighbours(64, 1, 5),
    "5 neighbours, 256 whitened axes": neighbours(256, 1, 5),
    "nearest neighbour, 256 half-whitened axes": neighbours(256, 0.5, 1),
}


def main() -> None:
    from atlas import read_atlas
    from build_reference import encode_slides, repeat

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    options = parser.parse_args()
    card = find_encoder(DEFAULT_ENCODER)
    encoder, slides = load_encoder(card), list(read_atlas(options.data / "atlas"))
    vectors, case = encode_slides(card, slides).astype(np.float64), repeat(slides, "case")
    random = np.random.default_rng(7)
    picks = [random.choice(len(slide.tiles), SPOILT_PER_SLIDE, replace=False) for slide in slides]
    tiles = np.concatenate([slide.tiles[pick] for slide, pick in zip(slides, picks, strict=True)])
    spoilt_case = np.repeat([slide.case for slide in slides], SPOILT_PER_SLIDE)
    spoilt = {name: encode(encoder, np.stack([SPOILT[name](tile, random) for tile in tiles])) for name in SHOWN}
    others = {name: encode(encoder, other) for name, other in read_others(options.data, []).items()}
    print(f"| way | {' | '.join([*spoilt, *others])} |\n|---|{'---|' * (len(spoilt) + len(others))}")
    for way_name, way in WAYS.items():
        ordinary, far = np.empty(len(case)), {name: np.empty(len(spoilt_case)) for name in spoilt}
        for one in set(case):
            distance = way(vectors[case != one])
            ordinary[case == one] = distance(vectors[case == one])
            for name, vectors_spoilt in spoilt.items():
                far[name][spoilt_case == one] = distance(vectors_spoilt[spoilt_case == one].astype(np.float64))
        distance = way(vectors)
        far |= {name: distance(other.astype(np.float64)) for name, other in others.items()}
        print(f"| {way_name} | {' | '.join(f'{auroc(ordinary, d):.3f}' for d in far.values())} |", flush=True)


if __name__ == "__main__":
    main()
