"""Figures of docs/codecs.md: what each codec costs and keeps on real slides.

    python bench/bundles/codecs.py DATA_FOLDER [--cache FOLDER]

DATA_FOLDER holds `atlas/` (slides.csv, tiles/, slides/). Whole slides are read with the packaged encoder as `slideway
read` reads them; a given basis is fitted on atlas tiles of all other cases. Bags and vectors stay in the cache.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import imagecodecs
import numpy as np
from numpy.typing import NDArray

sys.path.insert(0, str(Path(__file__).parents[2] / "training"))
from atlas import read_atlas
from build_reference import encode_slides

from slideway.bundles import codec_steps, read_bag
from slideway.bundles.codec_basis import FeatureBasis, fit_basis
from slideway.bundles.codec_bytes import SectionWriter, fold_signs, pack_nibbles
from slideway.bundles.codec_scalar import fit_range, quantise
from slideway.bundles.codecs import CODECS, EncodedVectors, decode, encode
from slideway.bundles.places import encode_places, merge_near_identical
from slideway.core.bag import EmbeddingBag
from slideway.heads.novelty import find_reference, measure_distance
from slideway.registry.store import DEFAULT_ENCODER, find_encoder

Array = NDArray[Any]
PLANTED_SHARE = 0.002
TIMED_TILES = 10_000


@dataclass(frozen=True)
class Atlas:
    vectors: Array
    slide: Array
    case: Array


@dataclass(frozen=True)
class Sample:
    """One whole slide: its bag, tiles of another case to plant, and the basis fitted without its case."""

    name: str
    bag: EmbeddingBag
    planted: Array
    basis: FeatureBasis

    @property
    def vectors(self) -> Array:
        return np.asarray(self.bag.vectors)


def load_atlas(folder: Path, cache: Path) -> Atlas:
    path = cache / "atlas.npz"
    if not path.exists():
        slides = list(read_atlas(folder))
        counts = [len(slide.tiles) for slide in slides]
        vectors = encode_slides(find_encoder(DEFAULT_ENCODER), slides)
        names, cases = [slide.name for slide in slides], [slide.case for slide in slides]
        np.savez(path, vectors=vectors, slide=np.repeat(names, counts), case=np.repeat(cases, counts))
    with np.load(path) as stored:
        return Atlas(stored["vectors"], stored["slide"], stored["case"])


def load_samples(folder: Path, cache: Path, atlas: Atlas) -> list[Sample]:
    out = cache / "slides"
    command = [sys.executable, "-m", "slideway", "read", str(folder / "slides"), "--out", str(out), "--json"]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    random = np.random.default_rng(0)
    samples = []
    for path in sorted(out.glob("*/bag.safetensors")):
        name = path.parent.name.rsplit(".", 1)[0]
        bag = read_bag(path)
        case = atlas.case[atlas.slide == name][0]
        others = atlas.case != case
        basis = fit_basis(atlas.vectors[others], atlas.slide[others], fingerprint=bag.fingerprint)
        n_planted = max(1, round(PLANTED_SHARE * len(bag)))
        donor = random.choice(np.unique(atlas.slide[others]))
        planted = random.permutation(atlas.vectors[atlas.slide == donor])[:n_planted]
        samples.append(Sample(name, bag, planted, basis))
    return samples


def centre(vectors: Array, mean: Array) -> Array:
    centred = vectors.astype(np.float32) - mean
    return centred / np.linalg.norm(centred, axis=1, keepdims=True)


def find_neighbours(directions: Array) -> Array:
    cosine = directions @ directions.T
    np.fill_diagonal(cosine, -2)
    return cosine.argmax(axis=1)


def rank_correlation(a: Array, b: Array) -> float:
    return float(np.corrcoef(a.argsort().argsort(), b.argsort().argsort())[0, 1])


def measure(sample: Sample, codec: str, basis: FeatureBasis | None) -> dict[str, float]:
    """What one codec costs and keeps on one slide into which tiles of another case were planted."""
    vectors = np.concatenate([sample.vectors, sample.planted])
    encoded = encode(vectors, codec, basis=basis)
    decoded = decode(encoded, basis=basis)
    mean = vectors.mean(axis=0, dtype=np.float64).astype(np.float32)
    before, after = centre(vectors, mean), centre(decoded, mean)
    cosine = (before * after).sum(axis=1)
    reference = find_reference(sample.bag)
    assert reference is not None
    distances = [measure_distance(one, reference.mean, reference.whitening) for one in (vectors, decoded)]
    return {
        "bytes": len(encoded.payload),
        "tiles": len(vectors),
        "cosine": float(cosine.mean()),
        "low": float(np.quantile(cosine, 0.01)),
        "planted": float(cosine[-len(sample.planted) :].min()),
        "neighbours": float((find_neighbours(before) == find_neighbours(after)).mean()),
        "novelty": rank_correlation(*distances),
    }


def time_codec(vectors: Array, codec: str, basis: FeatureBasis | None) -> tuple[float, float]:
    """CPU seconds to encode and decode, best of two."""
    times = []
    for _ in range(2):
        start = time.process_time()
        encoded = encode(vectors, codec, basis=basis)
        middle = time.process_time()
        decode(encoded, basis=basis)
        times.append((middle - start, time.process_time() - middle))
    return min(t[0] for t in times), min(t[1] for t in times)


def list_ways() -> list[tuple[str, bool]]:
    return [(name, is_given) for name, codec in CODECS.items() for is_given in ([False, True][: 1 + codec.wants_basis])]


def report_codecs(samples: list[Sample]) -> None:
    print("\n| codec | basis | bytes a tile | cosine | its 1 % quantile | planted, worst | same neighbour ", end="")
    print("| novelty ranks | encode s | decode s |")
    print("|---|---|---|---|---|---|---|---|---|---|")
    timed = np.concatenate([sample.vectors for sample in samples])[:TIMED_TILES]
    for codec, is_given in list_ways():
        rows = [measure(sample, codec, sample.basis if is_given else None) for sample in samples]
        tiles = sum(row["tiles"] for row in rows)
        mean = {key: float(np.mean([row[key] for row in rows])) for key in rows[0]}
        seconds = time_codec(timed, codec, samples[0].basis if is_given else None)
        print(
            f"| {codec} | {'given' if is_given else '–'} | {sum(row['bytes'] for row in rows) / tiles:.0f} "
            f"| {mean['cosine']:.4f} | {mean['low']:.4f} | {min(row['planted'] for row in rows):.4f} "
            f"| {mean['neighbours']:.1%} | {mean['novelty']:.4f} "
            f"| {seconds[0] * TIMED_TILES / len(timed):.2f} | {seconds[1] * TIMED_TILES / len(timed):.2f} |",
            flush=True,
        )


def report_prefixes(samples: list[Sample]) -> None:
    print("\n| codec | first part, bytes a tile | its cosine | whole, bytes a tile | whole equals int8 |")
    print("|---|---|---|---|---|")
    for codec in (name for name in CODECS if "+" in name):
        rows = []
        for sample in samples:
            encoded, vectors = encode(sample.vectors, codec), sample.vectors
            mean = vectors.mean(axis=0, dtype=np.float64).astype(np.float32)
            cosine = (centre(vectors, mean) * centre(decode(encoded.prefix), mean)).sum(axis=1).mean()
            is_same = np.array_equal(decode(encoded), decode(encode(vectors, "int8")))
            rows.append((len(encoded.prefix.payload), len(encoded.payload), len(vectors), cosine, is_same))
        first, whole, tiles, cosines, same = zip(*rows, strict=True)
        print(
            f"| {codec} | {sum(first) / sum(tiles):.0f} | {np.mean(cosines):.4f} | {sum(whole) / sum(tiles):.0f} "
            f"| {sum(same)} of {len(same)} slides |"
        )


def report_sizes(samples: list[Sample]) -> None:
    """Bytes a tile against the number of tiles, since scales, axes and codebooks weigh more in a small bag."""
    largest = max(samples, key=lambda sample: len(sample.bag))
    counts = [100, 300, 1_000, 3_000, len(largest.bag)]
    print(f"\n| codec | basis | {' | '.join(f'{count:,} tiles' for count in counts)} |")
    print("|---|---|" + "---|" * len(counts))
    order = np.random.default_rng(0).permutation(len(largest.bag))
    for codec, is_given in list_ways():
        basis = largest.basis if is_given else None
        sizes = [encode(largest.vectors[np.sort(order[:count])], codec, basis=basis) for count in counts]
        cells = [f"{len(one.payload) / one.shape[0]:.0f}" + mark(one, codec) for one in sizes]
        print(f"| {codec} | {'given' if is_given else '–'} | {' | '.join(cells)} |", flush=True)


def mark(encoded: EncodedVectors, codec: str) -> str:
    """What was chosen: int4 instead of PQ, axes of the slide's own, or none."""
    if encoded.codec != codec:
        return f" ({encoded.codec})"
    return f" ({encoded.header['axes']} own axes)" if encoded.header.get("axes_inside") else ""


def report_axes(samples: list[Sample]) -> None:
    """Steps with axes down to different shares of a step."""
    print("\n| least spread of an axis, in steps | bytes a tile | cosine |")
    print("|---|---|---|")
    chosen = codec_steps.AXIS_STEPS
    for share in (0.3, 0.5, 0.65, 0.8, 1.0):
        codec_steps.AXIS_STEPS = share
        rows = [measure(sample, "steps", None) for sample in samples]
        n_bytes, tiles = (sum(row[key] for row in rows) for key in ("bytes", "tiles"))
        print(f"| {share} | {n_bytes / tiles:.0f} | {np.mean([row['cosine'] for row in rows]):.4f} |", flush=True)
    codec_steps.AXIS_STEPS = chosen


def report_layouts(samples: list[Sample]) -> None:
    """int8 and int4 codes in three orders and other packings, and steps as bytes against bit planes."""
    print("\n| codes | layout | bytes a tile |")
    print("|---|---|---|")
    layouts: dict[tuple[str, str], Callable[[Array], bytes]] = {
        ("fp16", "row-major"): lambda v: zstd(v, 3),
        ("fp16", "column-major"): lambda v: zstd(v.T, 3),
        ("fp16", "column-major, byte planes"): lambda v: encode(v, "fp16").payload,
        ("int8", "row-major"): lambda v: zstd(codes(v, 256).T, 3),
        ("int8", "column-major"): lambda v: zstd(codes(v, 256), 3),
        ("int8", "column-major, level 9"): lambda v: zstd(codes(v, 256), 9),
        ("int8", "column-major, nibble planes"): lambda v: nibble_planes(codes(v, 256)),
        ("int8", "bit planes"): lambda v: planes(codes(v, 256)),
        ("int4", "row-major, two numbers a byte"): lambda v: zstd(pack_nibbles(codes(v, 16).T), 3),
        ("int4", "column-major, two tiles a byte"): lambda v: zstd(pack_nibbles(codes(v, 16)), 3),
        ("int4", "column-major, one a byte, level 9"): lambda v: zstd(codes(v, 16), 9),
        ("int4", "bit planes"): lambda v: planes(codes(v, 16)),
        ("steps, own dimensions", "bytes, level 9"): lambda v: zstd(fold_signs(steps(v)).astype(np.uint8), 9),
        ("steps, own dimensions", "bit planes, level 3"): lambda v: planes(fold_signs(steps(v)), 3),
        ("steps, own dimensions", "bit planes, level 9"): lambda v: planes(fold_signs(steps(v))),
    }
    for (what, layout), pack in layouts.items():
        n_bytes = sum(len(pack(sample.vectors)) for sample in samples)
        print(f"| {what} | {layout} | {n_bytes / sum(len(sample.bag) for sample in samples):.0f} |")


def codes(vectors: Array, levels: int) -> Array:
    exact = vectors.astype(np.float32)
    return quantise(exact, *fit_range(exact, levels), levels)


def steps(vectors: Array) -> Array:
    centred = vectors.astype(np.float32) - np.median(vectors.astype(np.float32), axis=0)
    step = 0.5 * np.sqrt(np.median((centred**2).mean(axis=1)))
    return np.rint(centred / step).astype(np.int32).T


def zstd(values: Array, level: int) -> bytes:
    return bytes(imagecodecs.zstd_encode(np.ascontiguousarray(values), level))


def nibble_planes(values: Array) -> bytes:
    return zstd(pack_nibbles(values >> np.uint8(4)), 3) + zstd(pack_nibbles(values & np.uint8(15)), 3)


def planes(values: Array, level: int = 9) -> bytes:
    if level == 9:
        writer = SectionWriter()
        writer.add_planes(values.astype(np.uint32))
        return writer.join()
    bits = [np.packbits((values >> plane) & 1 != 0, axis=1) for plane in range(int(values.max()).bit_length())]
    return zstd(np.stack(bits), level)


def report_places(samples: list[Sample]) -> None:
    thresholds = (0.99, 0.98, 0.95, 0.9)
    print("\n| slide | tiles | places, bits a tile | in random order | kept at cosine ", end="")
    print(" | ".join(f"≥ {threshold}" for threshold in thresholds) + " | s per 10,000 tiles |")
    print("|---|---|---|---|" + "---|" * len(thresholds) + "---|")
    for sample in samples:
        places = sample.bag.grid.column_row
        n = len(places)
        shuffled = places[np.random.default_rng(0).permutation(n)]
        bits = [8 * len(encode_places(one)) / n for one in (places, shuffled)]
        start = time.process_time()
        kept = [len(merge_near_identical(sample.vectors, places, threshold=one).kept) / n for one in thresholds]
        seconds = (time.process_time() - start) / len(thresholds) * 10_000 / n
        shares = " | ".join(f"{share:.1%}" for share in kept)
        print(f"| {sample.name} | {n} | {bits[0]:.1f} | {bits[1]:.1f} | {shares} | {seconds:.2f} |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, help="folder with atlas/")
    parser.add_argument("--cache", type=Path, default=Path(tempfile.gettempdir()) / "slideway-bench-codecs")
    options = parser.parse_args()
    options.cache.mkdir(parents=True, exist_ok=True)
    atlas = load_atlas(options.data / "atlas", options.cache)
    samples = load_samples(options.data / "atlas", options.cache, atlas)
    print(
        f"{len(samples)} slides, {sum(len(sample.bag) for sample in samples)} tiles of {samples[0].bag.width} numbers"
    )
    report_codecs(samples)
    report_prefixes(samples)
    report_sizes(samples)
    report_axes(samples)
    report_layouts(samples)
    report_places(samples)


if __name__ == "__main__":
    main()
