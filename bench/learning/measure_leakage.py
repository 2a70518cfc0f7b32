"""Figures of docs/cohorts.md: which second scans and exports of a slide are found in another case, and what else is.

    python bench/learning/measure_leakage.py ATLAS_FOLDER [--slides 6]

Tiles: of each of the atlas's slides up to 48 tiles, against the same tiles spoilt (`Likeness.share`).
Slides: the smallest slides of ATLAS/slides, against themselves moved by half a tile, softened, recoloured and written
again as JPEG. Pairs of different cases are the controls of both. Speed: 500 made-up slides of 500 tiles.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Callable
from itertools import combinations
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import openslide
from numpy.typing import NDArray

import slideway
from slideway.bundles import read_bag
from slideway.core.bag import EmbeddingBag
from slideway.core.tissue import TileGrid
from slideway.encoders import load_encoder
from slideway.learning.leakage import MIN_ALIGNED, MIN_SHARE, Prepared, compare, find_leaks, prepare
from slideway.registry.store import DEFAULT_ENCODER, find_encoder
from slideway.testing.slides import make_levels, write_pyramid

sys.path.insert(0, str(Path(__file__).parents[2] / "training"))
from atlas import read_stored_tiles

Array = NDArray[Any]
PER_SLIDE, CUT_PX, TILE_PX = 48, 192, 224


def cut(tile: Array, right: int = 0, down: int = 0) -> Array:
    """A square of 192 of the stored 256 px, moved, at the encoder's 224 px."""
    start = (256 - CUT_PX) // 2
    square = tile[start + down : start + down + CUT_PX, start + right : start + right + CUT_PX]
    return np.ascontiguousarray(cv2.resize(square, (TILE_PX, TILE_PX), interpolation=cv2.INTER_LINEAR))


def jpeg(tile: Array, quality: int) -> Array:
    _, stored = cv2.imencode(".jpg", cv2.cvtColor(tile, cv2.COLOR_RGB2BGR), [cv2.IMWRITE_JPEG_QUALITY, quality])
    return cv2.cvtColor(cv2.imdecode(stored, cv2.IMREAD_COLOR), cv2.COLOR_BGR2RGB)


def recolour(tile: Array) -> Array:
    return np.clip(np.rint(tile * np.array([0.94, 1.03, 1.05]) - 6), 0, 255).astype(np.uint8)


def scan_again(tile: Array) -> Array:
    return recolour(jpeg(cut(cv2.GaussianBlur(tile, (0, 0), 0.6), 5, 4), 70))


SPOILT: dict[str, Callable[[Array], Array]] = {
    "JPEG quality 70": lambda tile: cut(jpeg(tile, 70)),
    "JPEG quality 40": lambda tile: cut(jpeg(tile, 40)),
    "moved by 5 px": lambda tile: cut(tile, 4, 3),
    "moved by 20 px": lambda tile: cut(tile, 16, 12),
    "moved by 45 px": lambda tile: cut(tile, 32, -32),
    "recoloured": lambda tile: recolour(cut(tile)),
    "turned by 180°": lambda tile: np.ascontiguousarray(cut(tile)[::-1, ::-1]),
    "moved, soft, JPEG 70, recoloured": scan_again,
}


def lay(vectors: Array, index: int) -> EmbeddingBag:
    n = len(vectors)
    places = np.stack([np.arange(n), np.zeros(n)], 1).astype(np.int32)
    ones = np.ones(n, np.float32)
    return EmbeddingBag(
        vectors.astype(np.float16), TileGrid(places, 224, 0.5, 0.5), ones, "e", "f" * 64, f"{index:064d}"
    )


def measure_tiles(atlas: Path) -> None:
    encoder = load_encoder(find_encoder(DEFAULT_ENCODER))
    random = np.random.default_rng(0)
    whole: list[EmbeddingBag] = []
    spoilt: dict[str, list[Array]] = {name: [] for name in SPOILT}
    cases = []

    def encode(tiles: list[Array]) -> Array:
        return np.concatenate([encoder.encode(np.stack(tiles[i : i + 8])) for i in range(0, len(tiles), 8)])

    for slide in read_stored_tiles(atlas):
        picked = np.sort(random.choice(len(slide.tiles), min(PER_SLIDE, len(slide.tiles)), replace=False))
        cases.append(slide.case)
        whole.append(lay(encode([cut(slide.tiles[i]) for i in picked]), len(whole)))
        for name, spoil in SPOILT.items():
            spoilt[name].append(encode([spoil(slide.tiles[i]) for i in picked]))
    slides = prepare(whole)
    others = [
        compare(slides[i], slides[j]).share for i, j in combinations(range(len(slides)), 2) if cases[i] != cases[j]
    ]
    print(f"{len(whole)} slides, {len(others)} pairs of different cases: share at most {max(others):.2f}, "
          f"{sum(share >= MIN_SHARE for share in others)} found")  # fmt: skip
    centre = np.mean([np.asarray(bag.vectors, np.float32).mean(0) for bag in whole], 0)
    for name, vectors in spoilt.items():
        shares = []
        for slide, each in zip(slides, vectors, strict=True):
            moved = each - centre
            moved /= np.linalg.norm(moved, axis=1, keepdims=True)
            shares.append(compare(slide, Prepared(-1, moved.astype(np.float32), slide.column_row)).share)
        found = np.mean([share >= MIN_SHARE for share in shares])
        print(f"  {name:<34} share {np.median(shares):.2f} (least {min(shares):.2f}), {100 * found:.0f} % found")


def write_again(path: Path, out: Path) -> Path:
    """The slide with its grid half a tile beside, softened, recoloured, as JPEG again."""
    slide = openslide.OpenSlide(str(path))
    mpp = float(slide.properties["openslide.mpp-x"])
    pixels = np.array(slide.read_region((0, 0), 0, slide.dimensions).convert("RGB"))
    half = round(TILE_PX / 2 * 0.5 / mpp)
    pixels = np.ascontiguousarray(pixels[half:, half:])
    for i in range(0, len(pixels), 2048):
        soft = cv2.GaussianBlur(pixels[i : i + 2048], (0, 0), 0.5) * np.array([1.04, 0.98, 1.02], np.float32)
        pixels[i : i + 2048] = np.clip(soft, 0, 255).astype(np.uint8)
    write_pyramid(out / path.name, make_levels(pixels), mpp=mpp)
    return out / path.name


def measure_slides(folder: Path, count: int) -> None:
    paths = sorted(folder.glob("*.tif"), key=lambda path: path.stat().st_size)[:count]
    with tempfile.TemporaryDirectory() as scratch:
        out = Path(scratch)
        for path in paths:
            slideway.read_slide(path, out=out / "first")
            again = write_again(path, out)
            slideway.read_slide(again, out=out / "second")
            again.unlink()
        places = sorted(out.glob("first/*/bag.safetensors")) + sorted(out.glob("second/*/bag.safetensors"))
        bags = [read_bag(place) for place in places]
        slides = prepare(bags)
        reported = {(leak.first, leak.second) for leak in find_leaks(bags, [str(i) for i in range(len(bags))])}
        pairs = {(i, j): compare(slides[i], slides[j]) for i, j in combinations(range(len(slides)), 2)}
        twice = {pair for pair in pairs if pair[1] - pair[0] == len(paths)}
        for i, j in sorted(twice):
            one, found = pairs[i, j], "found" if (i, j) in reported else "missed"
            print(f"  {places[i].parent.name:<42} {len(bags[i]):5d} tiles", end="")
            print(f"  share {one.share:.2f}  aligned {one.aligned:.2f}  {found}")
        others = [likeness for pair, likeness in pairs.items() if pair not in twice]
        share, aligned = max(one.share for one in others), max(one.aligned for one in others)
        print(f"  {len(others)} pairs of different slides: share at most {share:.2f}, aligned at most {aligned:.2f}, "
              f"{len(reported - twice)} found (from {MIN_SHARE} or {MIN_ALIGNED})")  # fmt: skip
        del bags


def measure_speed() -> None:
    random = np.random.default_rng(0)
    prototypes = random.standard_normal((200, 512))
    bags = [lay(prototypes[random.choice(200, 500)] + 0.6 * random.standard_normal((500, 512)), i) for i in range(500)]
    began = time.perf_counter()
    find_leaks(bags, [str(i) for i in range(500)])
    print(f"500 slides of 500 tiles: {time.perf_counter() - began:.1f} s")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("atlas", type=Path, help="folder with slides.csv, tiles/ and slides/")
    parser.add_argument("--slides", type=int, default=6)
    options = parser.parse_args()
    measure_speed()
    measure_tiles(options.atlas)
    measure_slides(options.atlas / "slides", options.slides)


if __name__ == "__main__":
    main()
