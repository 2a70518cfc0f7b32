"""Figures of docs/privacy.md: how much of the picture, and of whose slide it is, can be drawn back from features.

    python bench/privacy/measure.py DATA_FOLDER [--cache FOLDER] [--write]

DATA_FOLDER holds `atlas/` (slides.csv, tiles/). Needs torch; half an hour on one core. Trained decoders stay in the
cache. With `--write`, evidence.json, the tables of docs/privacy.md and its picture are written anew.
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
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "training"))
from atlas import AtlasSlide, read_atlas  # noqa: E402
from build_reference import encode_tiles, repeat  # noqa: E402
from decoder import (  # noqa: E402
    BASE_RATE,
    PICTURE_PX,
    Decoder,
    continue_training,
    draw,
    draw_linearly,
    make_decoder,
    train,
)
from linkage import RANDOM_SPLITS, SCORES, link_halves, normalise, rank_siblings, split_at_random, split_in_space  # noqa: E402
from pictures import (  # noqa: E402
    DESCRIPTORS,
    find_own_tile,
    find_same_slide,
    measure_error,
    measure_ssim,
    save_sheet,
    shrink,
)
from report import write_tables  # noqa: E402

from slideway.bundles.codec_basis import FeatureBasis, fit_basis  # noqa: E402
from slideway.bundles.codecs import decode, encode  # noqa: E402
from slideway.registry.store import DEFAULT_ENCODER, find_encoder  # noqa: E402

Array = NDArray[Any]
EVIDENCE = Path(__file__).parent / "evidence.json"
PICTURE = ROOT / "docs/pictures/privacy.webp"
SLIDE_MEAN = "slide mean"
WAYS = ("fp16", "int8", "int4", "steps-fine", "steps", "steps-coarse", "pca-int4", "binary", SLIDE_MEAN)
GIVEN_BASIS = ("pca-int4",)  # with axes of its own, 96 tiles lie in their first 128 axes whole
RETRAINED = ("steps", "binary", SLIDE_MEAN)
FOLDS, SEED = 3, 0
BASE_STEPS, FURTHER_STEPS = 1100, 120
RESAMPLES = 2000
SHEET_TILES = 12
VIEWS = {
    "as it is": lambda tiles: tiles,
    "mirrored": lambda tiles: tiles[:, :, ::-1],
    "turned round": lambda tiles: tiles[:, ::-1, ::-1],
    "transposed": lambda tiles: tiles.transpose(0, 2, 1, 3),
}


@dataclass
class Tiles:
    """All tiles of the set, slide after slide.

    Attributes:
        slides: Names, cases and places; tiles at the encoder's size.
        slide: (n,) number of the slide.
        case: (n,) name of the case.
        fold: (n,) fold in which the tile's case is held out.
        pictures: (n, 64, 64, 3) uint8, what is to be drawn.
        views: (views, n, width) float16 vectors of the tile as it is, mirrored and turned.
        bases: Axes fitted without the fold's cases.
    """

    slides: list[AtlasSlide]
    slide: Array
    case: Array
    fold: Array
    pictures: Array
    views: Array
    fingerprint: str
    bases: list[FeatureBasis] = field(default_factory=list)

    @property
    def vectors(self) -> Array:
        return np.asarray(self.views[0])

    def __post_init__(self) -> None:
        for fold in range(FOLDS):
            known = self.fold != fold
            basis = fit_basis(self.vectors[known], self.slide[known], fingerprint=self.fingerprint, codebooks=False)
            self.bases.append(basis)

    def recode(self, slide: int, vectors: Array, way: str) -> Array:
        """What the receiver has of some vectors of a slide, sent alone."""
        if way == SLIDE_MEAN:
            return np.repeat(vectors.mean(axis=0, dtype=np.float64, keepdims=True), len(vectors), axis=0)
        fold = self.fold[self.slide == slide][0]
        basis = self.bases[fold] if way in GIVEN_BASIS else None
        return decode(encode(vectors, way, basis=basis), basis=basis)

    def recode_all(self, way: str, view: int = 0) -> Array:
        vectors = self.views[view]
        parts = [self.recode(i, vectors[self.slide == i], way) for i in range(len(self.slides))]
        return np.concatenate(parts).astype(np.float32)


def load_tiles(folder: Path, cache: Path) -> Tiles:
    card = find_encoder(DEFAULT_ENCODER)
    slides = list(read_atlas(folder, tile_px=card.input.tile_px, mpp=card.input.mpp))
    path = cache / f"views-{card.fingerprint[-12:]}.npz"
    if not path.exists():
        every = np.concatenate([slide.tiles for slide in slides])
        views = [encode_tiles(card, np.ascontiguousarray(turn(every))) for turn in VIEWS.values()]
        np.savez(path, views=np.stack(views))
    with np.load(path) as stored:
        views = stored["views"]
    case = repeat(slides, "case")
    cases = np.random.default_rng(SEED).permutation(np.unique(case))
    fold_of = {one: i % FOLDS for i, one in enumerate(cases.tolist())}
    return Tiles(
        slides=slides,
        slide=np.repeat(np.arange(len(slides)), [len(slide.tiles) for slide in slides]),
        case=case,
        fold=np.array([fold_of[one] for one in case.tolist()]),
        pictures=np.concatenate([shrink(slide.tiles, PICTURE_PX) for slide in slides]),
        views=views,
        fingerprint=card.fingerprint,
    )


def load_decoders(tiles: Tiles, cache: Path) -> dict[tuple[int, str], Decoder]:
    """The attackers, by fold and by what they were trained on; all have had as many steps."""
    decoders = {}
    key = hashlib.sha256(Path(__file__).with_name("decoder.py").read_bytes() + tiles.fingerprint.encode()).hexdigest()
    turned = np.concatenate([turn(tiles.pictures) for turn in VIEWS.values()])
    lossless = np.concatenate(list(tiles.views))
    for fold in range(FOLDS):
        known = np.tile(tiles.fold != fold, len(VIEWS))
        base = make_decoder(lossless[known], turned[known], SEED)
        path = cache / f"base-{fold}-{BASE_STEPS}-{key[:12]}.pt"
        if not restore(base, path):
            start = time.time()
            train(base, lossless[known], turned[known], steps=BASE_STEPS, seed=SEED, rates=(BASE_RATE, BASE_RATE / 2))
            torch.save(base.state_dict(), path)
            report_progress(f"fold {fold}, lossless: {time.time() - start:.0f} s")
        decoders[fold, "base"] = base
    for way in ("fp16", *RETRAINED):
        received = np.concatenate([tiles.recode_all(way, view) for view in range(len(VIEWS))])
        for fold in range(FOLDS):
            known = np.tile(tiles.fold != fold, len(VIEWS))
            path = cache / f"{way.replace(' ', '-')}-{fold}-{BASE_STEPS}-{FURTHER_STEPS}-{key[:12]}.pt"
            further = make_decoder(lossless[known], turned[known], SEED)
            if not restore(further, path):
                start = time.time()
                further = continue_training(
                    decoders[fold, "base"], received[known], turned[known], steps=FURTHER_STEPS, seed=SEED + 1
                )
                torch.save(further.state_dict(), path)
                report_progress(f"fold {fold}, {way}: {time.time() - start:.0f} s")
            decoders[fold, way] = further
    return decoders


def restore(decoder: Decoder, path: Path) -> bool:
    if path.exists():
        decoder.load_state_dict(torch.load(path, weights_only=True))
    return path.exists()


def report_progress(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def draw_all(tiles: Tiles, decoders: dict[tuple[int, str], Decoder]) -> Iterator[tuple[str, str, Array]]:
    """Attack, what was received, and the picture of every tile, drawn without having seen its case."""
    yield "none", "the tile itself", tiles.pictures
    yield "floor", "mean tile of the other cases", by_fold(tiles, lambda fold: mean_tile(tiles, fold))
    mean_colour = tiles.pictures.mean(axis=(1, 2), keepdims=True).round().astype(np.uint8)
    yield "floor", "mean colour of the tile", np.broadcast_to(mean_colour, tiles.pictures.shape)
    for attack, trained_on, way in [
        *(("lossless", "fp16", way) for way in WAYS),
        *(("retrained", w, w) for w in RETRAINED),
    ]:
        yield attack, way, draw_received(tiles, [decoders[fold, trained_on] for fold in range(FOLDS)], way)
    yield "linear", "fp16", by_fold(tiles, lambda fold: draw_by_line(tiles, fold))


def draw_received(tiles: Tiles, decoders: list[Decoder], way: str) -> Array:
    received = tiles.recode_all(way)
    return by_fold(tiles, lambda fold: draw(decoders[fold], received[tiles.fold == fold]))


def by_fold(tiles: Tiles, draw_fold: Any) -> Array:
    drawn = np.empty_like(tiles.pictures)
    for fold in range(FOLDS):
        drawn[tiles.fold == fold] = draw_fold(fold)
    return drawn


def mean_tile(tiles: Tiles, fold: int) -> Array:
    return tiles.pictures[tiles.fold != fold].mean(axis=0).round().astype(np.uint8)


def draw_by_line(tiles: Tiles, fold: int) -> Array:
    known = tiles.fold != fold
    return draw_linearly(tiles.vectors[known], tiles.pictures[known], tiles.vectors[~known].astype(np.float64))


def judge(tiles: Tiles, drawn: Array) -> dict[str, Any]:
    error = measure_error(drawn, tiles.pictures)
    found: dict[str, Array] = {"ssim": measure_ssim(drawn, tiles.pictures), "mse": error}
    found["psnr"] = -10 * np.log10(np.maximum(error, 1e-6))
    for name, describe in DESCRIPTORS.items():
        queries, gallery = describe(drawn), describe(tiles.pictures)
        found[f"own_tile_{name}"] = find_own_tile(queries, gallery, tiles.slide)
        found[f"same_slide_{name}"] = find_same_slide(queries, gallery, tiles.slide)
    return {name: estimate(values, tiles.case) for name, values in found.items()}


def estimate(values: Array, case: Array) -> dict[str, float]:
    """Mean over cases and its 95 % interval, cases drawn with replacement."""
    means = np.array([values[case == one].mean() for one in np.unique(case)])
    draws = np.random.default_rng(SEED).integers(len(means), size=(RESAMPLES, len(means)))
    low, high = np.quantile(means[draws].mean(axis=1), (0.025, 0.975))
    return {"value": round(float(means.mean()), 5), "low": round(float(low), 5), "high": round(float(high), 5)}


def link(tiles: Tiles, way: str) -> dict[str, Any]:
    """Whether vectors lead to their slide, without any picture."""
    random = np.random.default_rng(SEED)
    vectors = [tiles.vectors[tiles.slide == i] for i in range(len(tiles.slides))]
    case = np.array([slide.case for slide in tiles.slides])
    splits = {
        "random": [[split_at_random(len(one), random) for one in vectors] for _ in range(RANDOM_SPLITS)],
        "space": [[split_in_space(slide.xy_level0_px) for slide in tiles.slides]],
    }
    found: dict[str, Any] = {}
    for name, halves in splits.items():
        hits = link_halves(vectors, lambda i, some: tiles.recode(i, some, way), halves)
        found |= {f"{name}_{score}": estimate(values, case) for score, values in hits.items()}
    recoded = [tiles.recode(i, one, way) for i, one in enumerate(vectors)]
    found |= {f"sibling_ranks_{score}": rank_siblings(vectors, recoded, case, score) for score in SCORES}
    received, centre = tiles.recode_all(way), tiles.vectors.mean(axis=0, dtype=np.float64).astype(np.float32)
    queries, gallery = normalise(received, centre), normalise(tiles.vectors, centre)
    own = (queries @ gallery.T).argmax(axis=1) == np.arange(len(gallery))
    found["own_vector"] = estimate(own, tiles.case)
    found["same_slide"] = estimate(find_same_slide(queries, gallery, tiles.slide), tiles.case)
    return found


def choose_examples(tiles: Tiles) -> Array:
    """One tile of each of twelve cases, cases and tiles drawn by lot."""
    random = np.random.default_rng(SEED)
    cases = random.permutation(np.unique(tiles.case))[:SHEET_TILES]
    return np.array([random.choice(np.flatnonzero(tiles.case == one)) for one in cases])


def name_machine() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text(encoding="utf-8").splitlines() if info.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return f"one core of {names[0] if names else platform.processor()}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, help="folder with atlas/")
    parser.add_argument("--cache", type=Path, default=Path(tempfile.gettempdir()) / "slideway-bench-privacy")
    parser.add_argument("--write", action="store_true", help="renew evidence.json and docs/privacy.md")
    options = parser.parse_args()
    options.cache.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(1)
    tiles = load_tiles(options.data / "atlas", options.cache)
    decoders = load_decoders(tiles, options.cache)
    pictures, examples, sheet = [], choose_examples(tiles), {}
    for attack, way, drawn in draw_all(tiles, decoders):
        pictures.append({"attack": attack, "received": way, **judge(tiles, drawn)})
        sheet[attack, way] = drawn[examples]
        report_progress(f"{attack}, {way}: SSIM {pictures[-1]['ssim']['value']:.3f}")
    evidence = {
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "machine": name_machine(),
        "versions": {"python": platform.python_version(), "torch": torch.__version__, "numpy": np.__version__},
        "encoder": {"id": DEFAULT_ENCODER, "fingerprint": tiles.fingerprint},
        "tiles": len(tiles.slide),
        "slides": len(tiles.slides),
        "cases": len(np.unique(tiles.case)),
        "folds": FOLDS,
        "seed": SEED,
        "views": len(VIEWS),
        "steps": {"lossless": BASE_STEPS, "further": FURTHER_STEPS},
        "parameters": sum(p.numel() for p in decoders[0, "fp16"].parameters()),
        "examples": [f"{tiles.slides[tiles.slide[i]].name}" for i in examples],
        "pictures": pictures,
        "linkage": [{"received": way, **link(tiles, way)} for way in WAYS],
    }
    write_tables(evidence, ROOT / "docs/privacy.md" if options.write else None)
    if options.write:
        EVIDENCE.write_text(json.dumps(evidence, indent=1) + "\n", encoding="utf-8")
        save_sheet(
            PICTURE,
            {
                "true": sheet["none", "the tile itself"],
                "fp16 (lossless)": sheet["lossless", "fp16"],
                "steps": sheet["retrained", "steps"],
                "binary": sheet["retrained", "binary"],
                "mean vector of\nthe slide only": sheet["retrained", SLIDE_MEAN],
            },
        )


if __name__ == "__main__":
    main()
