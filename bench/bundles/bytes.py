"""Figures of docs/bytes.md: what the bundles of real slides take, against baselines measured on those very slides.

    python bench/bundles/bytes.py DATA_FOLDER [--work FOLDER] [--sample TILES | --all] [--chart FILE]

DATA_FOLDER holds slides, at any depth. They are read as `slideway read` reads them; readings stay in the work folder
and are not made twice.
"""

from __future__ import annotations

import argparse
import datetime
import platform
import subprocess
import sys
import time
from pathlib import Path

import numpy as np

from slideway.encoders.engines import describe_processor
from slideway.pipeline.baselines import (
    DEFAULT_SAMPLE,
    Baselines,
    Estimate,
    StillCodecs,
    at_own_resolution,
    count_jpeg,
    count_jpeg2000,
    count_jpegxl,
    measure_baselines,
)
from slideway.pipeline.folder import find_slides
from slideway.pipeline.machine import count_cores
from slideway.pipeline.meter import (
    BundleBytes,
    SlidePlaces,
    compare,
    count_bundle,
    find_reading_of,
    find_readings,
)
from slideway.reports.page import size_text
from slideway.slides import open_slide

BASELINES = {
    "jpeg": "JPEG q80 tiles",
    "jpeg2000": "JPEG 2000 20:1",
    "jpeg2000-limit": "JPEG 2000 32:1",
    "jpegxl": "JPEG XL d1",
    "viewing": "viewing",
}
# What the shares that nobody measured (20x and 40x) would do to the model.
SHARE_FACTORS = (0.5, 1.0, 2.0)
BLOCK, BLOCKS = 4, 6

Row = tuple[BundleBytes, Baselines]


def read_all(data: Path, out: Path) -> None:
    command = [sys.executable, "-m", "slideway", "read", str(data), "--out", str(out), "--json"]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)


def measure_all(data: Path, out: Path, *, sample: int | None) -> list[Row]:
    slides, places, readings = find_slides([data]), SlidePlaces([data]), find_readings([out])
    rows = []
    for slide in slides:
        bundle = count_bundle(find_reading_of(slide, readings))
        path = places.find(bundle)
        assert path is not None
        began = time.perf_counter()
        rows.append((bundle, measure_baselines(path, bundle.bag(), sample=sample)))
        print(f"{bundle.name}: {time.perf_counter() - began:.0f} s", file=sys.stderr)
    return sorted(rows, key=lambda row: -row[0].width_px * row[0].height_px)


def print_table(head: list[str], rows: list[list[str]]) -> None:
    print("| " + " | ".join(head) + " |")
    print("|---" * len(head) + "|")
    for row in rows:
        print("| " + " | ".join(row) + " |")
    print()


def with_interval(n_bytes: Estimate) -> str:
    if n_bytes.is_exact:
        return size_text(n_bytes.n_bytes)
    half = 100 * (n_bytes.high - n_bytes.n_bytes) / n_bytes.n_bytes
    return f"{size_text(n_bytes.n_bytes)} ± {half:.1f} %"


def print_bundles(rows: list[Row]) -> None:
    table = []
    for bundle, _ in rows:
        table.append(
            [
                bundle.name,
                f"{bundle.width_px:,} × {bundle.height_px:,}",
                f"{bundle.mpp:.2f}",
                f"{bundle.tiles:,}",
                size_text(bundle.file_bytes),
                f"{bundle.file_bits_per_px:.2f}",
                f"{bundle.file_mb_per_cm2:.1f}",
                *(size_text(n) for n in (*bundle.tiers, bundle.bundle_bytes)),
                bundle.codec,
                f"{bundle.percent_of_file:.3f} %",
                "over" if bundle.is_over_budget else "kept",
            ]
        )
    head = ["slide", "px", "µm/px", "tiles", "file", "bit/px", "MB/cm²"]
    print_table([*head, "T0", "T1", "T2", "bundle", "codec", "of file", "budget"], table)


def print_baselines(rows: list[Row]) -> None:
    sizes, percents = [], []
    for bundle, baselines in rows:
        compared = {one.id: one for one in compare(bundle, baselines)}
        sizes.append([bundle.name, *(with_interval(compared[id_].n_bytes) for id_ in BASELINES)])
        sizes[-1] += [f"{baselines.psnr_db[name]:.1f}" for name in ("jpeg2000", "jpeg2000_limit", "jpegxl")]
        percents.append([bundle.name, f"{bundle.percent_of_file:.3f}"])
        percents[-1] += [f"{compared[id_].percent:.2f}" for id_ in BASELINES]
    packed, file = (sum(getattr(b, name) for b, _ in rows) for name in ("bundle_bytes", "file_bytes"))
    totals = [sum(compare(*row)[1 + k].n_bytes.n_bytes for row in rows) for k in range(len(BASELINES))]
    percents.append(["all", f"{100 * packed / file:.3f}", *(f"{100 * packed / total:.2f}" for total in totals)])
    psnr = ["dB at 20:1", "dB at 32:1", "dB of JPEG XL"]
    print("Bytes of the baselines, ± half of the 95 % interval where a sample was drawn:\n")
    print_table(["slide", *BASELINES.values(), *psnr], sizes)
    print("The bundle in percent of each:\n")
    print_table(["slide", "file", *BASELINES.values()], percents)


def print_viewing(row: Row) -> None:
    bundle, baselines = row
    print(f"Streamed viewing of {bundle.name}, by magnification:\n")
    table = []
    for viewed in baselines.viewed:
        share = f"{100 * viewed.level.share:.0f} %"
        tiles = f"{viewed.all_tiles.tiles:,}"
        sizes = [with_interval(viewed.all_tiles), size_text(round(viewed.n_bytes))]
        table.append([viewed.level.objective, f"{viewed.mpp:.2f}", tiles, share, *sizes])
    print_table(["magnification", "µm/px", "tiles", "looked at", "all of them", "streamed"], table)
    said = []
    for factor in SHARE_FACTORS:
        streamed = sum(
            one.n_bytes * (factor if one.level.objective in ("20x", "40x") else 1) for one in baselines.viewed
        )
        said.append(
            f"× {factor:g}: {size_text(round(streamed))}, bundle {100 * bundle.bundle_bytes / streamed:.2f} % of it"
        )
    print(f"With the assumed shares at 20x and 40x {'; '.join(said)}.\n")


def print_cost_of_tiles(row: Row, data: Path) -> None:
    """What compressing tile by tile costs against whole regions of BLOCK × BLOCK tiles."""
    grid, path = row[0].bag().grid, SlidePlaces([data]).find(row[0])
    assert path is not None
    tile_px, step = at_own_resolution(grid).tile_px, grid.tile_level0_px
    places = {(int(x), int(y)) for x, y in grid.column_row}
    inside = sorted(p for p in places if all((p[0] + i % BLOCK, p[1] + i // BLOCK) in places for i in range(BLOCK**2)))
    picks = np.random.default_rng(0).permutation(len(inside))[:BLOCKS]
    codecs, totals = StillCodecs(), np.zeros((2, 3))
    with open_slide(path) as opened:
        for x, y in (inside[pick] for pick in picks):
            region = opened.read_region(0, round(x * step), round(y * step), BLOCK * tile_px, BLOCK * tile_px)
            rows = [part for half in np.split(region, BLOCK) for part in np.split(half, BLOCK, axis=1)]
            for k, pictures in enumerate((rows, [region])):
                for picture in map(np.ascontiguousarray, pictures):
                    j2k, jxl = count_jpeg2000(picture, codecs.jpeg2000_ratio), count_jpegxl(picture, codecs)
                    totals[k] += count_jpeg(picture, codecs.jpeg_quality), j2k[0], jxl[0]
    more = 100 * (totals[0] / totals[1] - 1)
    print(
        f"Tile by tile against regions of {BLOCK * tile_px} px ({len(picks)} of {row[0].name}): JPEG {more[0]:+.1f} %, "
        f"JPEG 2000 {more[1]:+.1f} %, JPEG XL {more[2]:+.1f} % bytes.\n"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--work", type=Path, default=Path("bytes-work"))
    parser.add_argument("--sample", type=int, default=DEFAULT_SAMPLE)
    parser.add_argument("--all", action="store_true", help="every tile: exact")
    parser.add_argument("--chart", type=Path, help="also draw bars: FILE.svg or FILE.png")
    arguments = parser.parse_args()
    read_all(arguments.data, arguments.work)
    sample = None if arguments.all else arguments.sample
    rows = measure_all(arguments.data, arguments.work, sample=sample)
    drawn = "every tile" if sample is None else f"at most {sample} tiles a figure, seed 0"
    today = datetime.datetime.now(datetime.UTC).date()
    print(f"{count_cores()} cores {describe_processor()} ({platform.system()}), {today}; {drawn}\n")
    print_bundles(rows)
    print_baselines(rows)
    print_viewing(rows[0])
    print_cost_of_tiles(rows[0], arguments.data)
    if arguments.chart is not None:
        command = [sys.executable, "-m", "slideway", "bytes", str(arguments.work), "--baselines", str(arguments.data)]
        subprocess.run(
            [*command, "--sample", str(arguments.sample), "--chart", str(arguments.chart)],
            check=True,
            stdout=subprocess.DEVNULL,
        )


if __name__ == "__main__":
    main()
