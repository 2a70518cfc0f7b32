"""Figures of docs/decisions/0005: exact search with numpy beside an approximate index (usearch).

    python -m venv scratch && scratch/bin/pip install . usearch
    scratch/bin/python bench/heads/compare_search.py [--tiles 100000 1000000] [--width 512] [--asked 70]

Vectors are drawn as tissue is: 2,000 centres with unequal weights, and scatter around them. Both searches get float32
vectors of length 1 in memory, on one thread each; exact search also reads its vectors from a float16 file, as Slideway
does. Recall is the share of the exact ten nearest that the index finds.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

for name in ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ.setdefault(name, "1")  # before numpy is imported

import numpy as np  # noqa: E402
from numpy.typing import NDArray  # noqa: E402

Array = NDArray[Any]
TOP, ROWS = 10, 8_192


def draw_tiles(count: int, width: int, random: np.random.Generator) -> Array:
    centres = random.standard_normal((2_000, width), np.float32)
    weight = random.pareto(1.5, len(centres)) + 0.1
    tiles = np.empty((count, width), np.float32)
    for start in range(0, count, 50_000):
        rows = tiles[start : start + 50_000]
        rows[:] = centres[random.choice(len(centres), len(rows), p=weight / weight.sum())]
        rows += random.standard_normal(rows.shape, np.float32)
        rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    return tiles


def search_exactly(tiles: Array, asked: Array) -> Array:
    """(asked, TOP) positions of the nearest tiles; a block of tiles at a time, as heads/similar.py."""
    held = np.full((len(asked), 0), -1.0, np.float32), np.empty((len(asked), 0), np.int64)
    for start in range(0, len(tiles), ROWS):
        cosine = asked @ tiles[start : start + ROWS].astype(np.float32, copy=False).T
        near = np.argpartition(-cosine, min(TOP, cosine.shape[1]) - 1, axis=1)[:, :TOP]
        values = np.concatenate([held[0], np.take_along_axis(cosine, near, 1)], axis=1)
        places = np.concatenate([held[1], near + start], axis=1)
        order = np.argsort(-values, axis=1, kind="stable")[:, :TOP]
        held = np.take_along_axis(values, order, 1), np.take_along_axis(places, order, 1)
    return held[1]


def measure(work: Callable[[], Any]) -> tuple[Any, float, float]:
    began, cpu = time.perf_counter(), time.process_time()
    answer = work()
    return answer, time.perf_counter() - began, time.process_time() - cpu


def report(name: str, build: tuple[float, float] | None, seconds: tuple[float, float], recall: float) -> None:
    built = "–" if build is None else f"{build[0]:.1f} ({build[1]:.1f})"
    print(f"| {name} | {built} | {seconds[0]:.2f} ({seconds[1]:.2f}) | {recall:.3f} |", flush=True)


def compare(count: int, width: int, asked: int) -> None:
    random = np.random.default_rng(0)
    tiles = draw_tiles(count, width, random)
    noise = 0.02 * random.standard_normal((asked, width), np.float32)
    queries = tiles[random.choice(count, asked, replace=False)] + noise
    queries /= np.linalg.norm(queries, axis=1, keepdims=True)
    print(f"\n{count:,} tiles × {width}, {asked} asked\n")
    print("| search | build, s (CPU) | all queries, s (CPU) | recall@10 |\n|---|---|---|---|")
    exact, *seconds = measure(lambda: search_exactly(tiles, queries))
    report("exact, float32 in memory", None, (seconds[0], seconds[1]), 1.0)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "tiles.f16"
        tiles.astype(np.float16).tofile(path)
        found, *seconds = measure(lambda: search_exactly(np.memmap(path, np.float16, "r", shape=tiles.shape), queries))
        report("exact, float16 from a file", None, (seconds[0], seconds[1]), recall_of(found, exact))
    compare_index(tiles, queries, exact)


def compare_index(tiles: Array, queries: Array, exact: Array) -> None:
    try:
        from usearch.index import Index
    except ImportError:
        print("usearch is not installed: its rows are left out (pip install usearch in a scratch environment)")
        return
    index = Index(ndim=tiles.shape[1], metric="cos", dtype="f16")
    keys = np.arange(len(tiles))
    _, *build = measure(lambda: index.add(keys, tiles, threads=1))
    for breadth in (64, 256, 1024):
        index.expansion_search = breadth
        matches, *seconds = measure(lambda: index.search(queries, TOP, threads=1))
        recall = recall_of(np.asarray(matches.keys), exact)
        report(f"usearch, float16, breadth {breadth}", (build[0], build[1]), (seconds[0], seconds[1]), recall)


def recall_of(found: Array, exact: Array) -> float:
    return float(np.mean([len(set(a) & set(b)) / TOP for a, b in zip(found.tolist(), exact.tolist(), strict=True)]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tiles", type=int, nargs="+", default=[100_000, 1_000_000])
    parser.add_argument("--width", type=int, default=512)
    parser.add_argument("--asked", type=int, default=70)
    options = parser.parse_args()
    for count in options.tiles:
        compare(count, options.width, options.asked)


if __name__ == "__main__":
    main()
