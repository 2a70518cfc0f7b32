"""Measure the figures of docs/quality.md and docs/resolution.md on a folder of real slides and tiles.

    python bench/tissue/measure.py DATA [--known SLIDE.svs=0.499] [--only mask,grid,ink,focus,resolution] [--step 1]

DATA holds `slides/*.tif` (pyramids with resolution tags), `tiles/*.tar` (JPEG tiles of one slide each) and
`slides.csv` with the columns tiles_file, tile_mpp_estimated, mpp_confidence and patient_group. Tables go to stdout.
"""

from __future__ import annotations

import argparse
import csv
import sys
import tarfile
import time
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import openslide
import plant
import tifffile
from plant import Bools, Image

from slideway.core.errors import UnknownResolutionError
from slideway.core.tissue import TissueMask
from slideway.tissue import BLURRED_BELOW, estimate_mpp, find_tissue, is_blurred, lay_grid, measure_focus
from slideway.tissue.absorbance import measure_absorbance
from slideway.tissue.shapes import local_spread, smooth

THUMBNAIL_MPP = 8.0


@dataclass(frozen=True)
class TileSet:
    name: str
    case: str
    mpp: float
    confidence: str
    tiles: list[Image]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--known", action="append", default=[], help="a further slide of known size, FILE=MPP")
    parser.add_argument("--only", default="mask,grid,ink,focus,resolution")
    parser.add_argument("--step", type=int, default=1, help="take every n-th tile only")
    args = parser.parse_args()
    known = {Path(name): float(mpp) for name, mpp in (item.rsplit("=", 1) for item in args.known)}
    parts = args.only.split(",")
    if "mask" in parts or "grid" in parts:
        thumbnails = {path.stem: read_thumbnail(path, known.get(path)) for path in [*slides_of(args.data), *known]}
        if "mask" in parts:
            report_mask(thumbnails)
        if "grid" in parts:
            report_grid(thumbnails)
    if "ink" in parts:
        report_ink(args.data, args.step)
    if "focus" in parts:
        report_focus(args.data, args.step)
        report_focus_of_slides([*slides_of(args.data), *known], known)
    if "resolution" in parts:
        report_resolution(args.data, known, args.step)


def slides_of(data: Path) -> list[Path]:
    return sorted((data / "slides").glob("*.tif"))


def read_thumbnail(path: Path, mpp: float | None) -> Image:
    """The slide at 8 µm/px."""
    with tifffile.TiffFile(path) as file:
        pages = [page for page in file.pages if page.is_tiled]
        if mpp is None:
            numerator, denominator = pages[0].tags["XResolution"].value
            mpp = 10_000 * denominator / numerator
        fine = [page for page in pages if mpp * pages[0].shape[1] / page.shape[1] <= THUMBNAIL_MPP]
        page = fine[-1]
        factor = mpp * pages[0].shape[1] / page.shape[1] / THUMBNAIL_MPP
        return np.ascontiguousarray(
            cv2.resize(page.asarray(), None, fx=factor, fy=factor, interpolation=cv2.INTER_AREA)
        )


def tile_sets(data: Path, step: int) -> Iterator[TileSet]:
    with (data / "slides.csv").open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    for row in rows:
        with tarfile.open(data / row["tiles_file"]) as tar:
            names = [name for name in tar.getnames() if name.endswith(".jpg")][::step]
            tiles = [decode(tar.extractfile(name).read()) for name in names]
        name = Path(row["tiles_file"]).stem
        confidence = row["mpp_confidence"].split()[0]
        yield TileSet(name, row["repo"], float(row["tile_mpp_estimated"]), confidence, tiles)


def decode(jpeg: bytes) -> Image:
    return np.ascontiguousarray(cv2.imdecode(np.frombuffer(jpeg, np.uint8), cv2.IMREAD_COLOR)[..., ::-1])


# --- mask ---------------------------------------------------------------------------------------------------------


def report_mask(thumbnails: dict[str, Image]) -> None:
    print("\n## Mask: planted faults\n")
    print("Median and worst over slides. kept: tissue outside the fault still found; taken: fault on glass taken for")
    print("tissue; pen: ink found; under: tissue under the fault still called tissue.\n")
    print("| fault | kept | added | taken | pen | under |\n|---|---|---|---|---|---|")
    rows: dict[str, list[tuple[float, ...]]] = defaultdict(list)
    seconds, textures, fold_rows = [], [], []
    for seed, image in enumerate(thumbnails.values()):
        started = time.process_time()
        clean = find_tissue(image, mpp=THUMBNAIL_MPP)
        seconds.append((time.process_time() - started) / image.shape[0] / image.shape[1] * 1e6)
        for name, planted, where in faults(image, seed):
            rows[name].append(compare(clean, find_tissue(planted, mpp=THUMBNAIL_MPP), where))
        textures.append(texture_of(image, clean))
        folded, where = plant.fold(image, clean.pixels, mpp=THUMBNAIL_MPP, seed=seed)
        found = find_tissue(folded, mpp=THUMBNAIL_MPP).fold
        fold_rows.append((clean.fold.sum() / clean.pixels.sum(), (found & where).sum() / where.sum()))
    worst = (np.min, np.max, np.max, np.min, np.max)
    for name, values in rows.items():
        columns = np.array(values).T
        cells = [f"{np.median(c):.3f} / {pick(c):.3f}" for c, pick in zip(columns, worst, strict=True)]
        print(f"| {name} | {' | '.join(cells)} |")
    print(f"\nCPU seconds per megapixel at 8 µm/px: median {np.median(seconds):.2f}")
    print(f"Texture of tissue as a share of its density, 0.1th percentile per slide: lowest {min(textures):.3f}")
    print(f"Folds: share of clean slides median {np.median([a for a, _ in fold_rows]):.4f}, highest", end=" ")
    print(f"{max(a for a, _ in fold_rows):.4f}; planted folds found: median {np.median([b for _, b in fold_rows]):.2f}")


def faults(image: Image, seed: int) -> Iterator[tuple[str, Image, Bools]]:
    mpp, nowhere = THUMBNAIL_MPP, np.zeros(image.shape[:2], dtype=bool)
    for ink in plant.INKS:
        yield f"pen, {ink}", *plant.draw_pen(image, ink, mpp=mpp, seed=seed)
    yield "dust and hairs", *plant.strew_dust(image, mpp=mpp, seed=seed)
    yield "bubbles", *plant.blow_bubbles(image, mpp=mpp, seed=seed)
    yield "coverslip edges", *plant.lay_coverslip_edge(image, mpp=mpp, seed=seed)
    yield "printed strip", *plant.lay_control_strip(image, mpp=mpp, seed=seed)
    for name, tint in (("yellow", (1, 0.93, 0.78)), ("blue", (0.85, 0.92, 1)), ("green", (0.9, 1, 0.88))):
        yield f"{name} glass", plant.relight(image, tint), nowhere
    yield "grey glass (60 % light)", plant.relight(image, (0.6, 0.6, 0.6)), nowhere
    yield "dark scan (35 % light)", plant.relight(image, (0.35, 0.35, 0.35)), nowhere
    for strength in (0.5, 2.0):
        yield f"stain × {strength}", plant.restain(image, strength), nowhere
    yield "noise σ 4, JPEG q75", plant.shoot(image, seed=seed, noise=4), nowhere
    for level in (0, 128, 255):
        yield f"padding of level {level}", *plant.pad(image, level)


def compare(clean: TissueMask, mask: TissueMask, where: Bools) -> tuple[float, ...]:
    before = clean.pixels
    if before.shape != where.shape:  # padded
        ys, xs = np.nonzero(~where)
        padded = np.zeros(where.shape, dtype=bool)
        padded[ys.min() : ys.max() + 1, xs.min() : xs.max() + 1] = before
        before = padded

    def share(part: Bools, whole: Bools) -> float:
        return float((part & whole).sum() / max(1, whole.sum()))

    added = float((mask.pixels & ~before & ~where).sum() / max(1, before.sum()))
    return (
        share(mask.pixels, before & ~where),
        added,
        share(mask.pixels, where & ~before),
        share(mask.pen, where),
        share(mask.pixels, where & before),
    )


def texture_of(image: Image, mask: TissueMask) -> float:
    density = measure_absorbance(image).density
    relative = smooth(local_spread(density.mean(axis=0)), 5) / np.maximum(smooth(density.sum(axis=0), 5), 1e-3)
    inside = cv2.erode(mask.pixels.astype(np.uint8), np.ones((9, 9), np.uint8)) > 0
    return float(np.percentile(relative[inside], 0.1)) if inside.any() else float("inf")


# --- grid ---------------------------------------------------------------------------------------------------------


def report_grid(thumbnails: dict[str, Image]) -> None:
    print("\n## Grid: least share of tissue in a tile (224 px at 0.5 µm/px)\n")
    print("| share | tiles over all slides | tissue left out, mean | worst slide |\n|---|---|---|---|")
    masks = [find_tissue(image, mpp=THUMBNAIL_MPP) for image in thumbnails.values()]
    for share in (0.02, 0.05, 0.10, 0.15, 0.25, 0.50):
        tiles, left_out = 0, []
        for mask in masks:
            height, width = mask.pixels.shape
            grid = lay_grid(
                mask, slide_width_px=width * 16, slide_height_px=height * 16, slide_mpp=0.5, min_tissue_share=share
            )
            tiles += len(grid)
            left_out.append(1 - covered(mask, grid.column_row, grid.tile_um) / mask.pixels.sum())
        print(f"| {share:.2f} | {tiles:,} | {np.mean(left_out):.2%} | {max(left_out):.2%} |")


def covered(mask: TissueMask, column_row: np.ndarray, tile_um: float) -> float:
    edge = round(tile_um / mask.mpp)
    seen = np.zeros_like(mask.pixels)
    for column, row in column_row:
        seen[row * edge : (row + 1) * edge, column * edge : (column + 1) * edge] = True
    return float((seen & mask.pixels).sum())


# --- ink ----------------------------------------------------------------------------------------------------------


def report_ink(data: Path, step: int) -> None:
    print("\n## Ink: how near H&E tissue comes to the limits (8 µm pixels of density above 0.5)\n")
    kept: dict[str, list[float]] = defaultdict(list)
    pixels = 0
    for tiles in tile_sets(data, step):
        edge = round(256 * tiles.mpp / THUMBNAIL_MPP)
        colours = np.concatenate([cv2.resize(t, (edge, edge), interpolation=cv2.INTER_AREA) for t in tiles.tiles])
        colours = colours.reshape(-1, 3).astype(np.float64)
        glass = np.minimum(np.percentile(colours, 99.8, axis=0), 250)
        density = -np.log10(np.maximum(colours, 1) / glass)
        density = density[density.sum(axis=1) > 0.5]
        pixels += len(density)
        red, green, blue = density.T
        total = density.sum(axis=1)
        if len(density) < 1000:
            continue
        kept["red beyond green (blue and green ink: > 0.10)"].append(np.percentile((red - green) / total, 99.9))
        kept["blue beyond green (green ink: > 0.10)"].append(np.percentile((blue - green) / total, 99.9))
        even = (density.min(axis=1) / density.max(axis=1))[total > 1.2]
        if len(even) > 200:
            kept["evenness of dense pixels (black ink: > 0.80)"].append(np.percentile(even, 99.9))
        eosin = (red < 0.2 * green) & (total > 0.5)
        kept["share that looks like red ink"].append(float((eosin & (blue > 0.7 * green)).mean()))
    print(
        f"{pixels:,} pixels. 99.9th percentile per slide:\n\n| measure | median slide | 90 % of slides | worst slide |"
    )
    print("|---|---|---|---|")
    for name, values in kept.items():
        print(f"| {name} | {np.median(values):.3f} | {np.percentile(values, 90):.3f} | {max(values):.3f} |")


# --- focus --------------------------------------------------------------------------------------------------------

BLURS = {
    "as scanned": (0, 0, 0),
    "as scanned, JPEG q30": (0, 1, 30),
    "1 µm": (1, 0, 80),
    "1.5 µm": (1.5, 0, 80),
    "2 µm": (2, 0, 80),
    "2 µm, noise σ 4": (2, 4, 80),
    "3 µm": (3, 0, 80),
    "3 µm, noise σ 4": (3, 4, 80),
    "6 µm": (6, 1, 80),
}
SOFT = "hodgkin"


def report_focus(data: Path, step: int) -> None:
    print("\n## Focus\n")
    focus: dict[str, list[float]] = defaultdict(list)
    cases, soft, milliseconds = [], [], []
    for tiles in tile_sets(data, step):
        for seed, tile in enumerate(tiles.tiles):
            if SOFT in tiles.name:
                soft.append(judge(tile, tiles.mpp))
                continue
            cases.append(tiles.case)
            for name, (radius_um, noise, quality) in BLURS.items():
                spoilt = plant.defocus(tile, radius_um / tiles.mpp) if radius_um else tile
                if quality:
                    spoilt = plant.shoot(spoilt, seed=seed, noise=noise, quality=quality)
                focus[name].append(judge(spoilt, tiles.mpp))
        batch = np.stack([tile[:224, :224] for tile in tiles.tiles])
        started = time.thread_time()
        measure_focus(batch, mpp=0.5)
        milliseconds.append((time.thread_time() - started) / len(batch) * 1e3)
    print_focus({name: np.array(values) for name, values in focus.items()}, np.array(cases))
    print(f"\nSlide known to be soft: {is_blurred(np.array(soft, dtype=np.float32)).mean():.1%} called blurred")
    print(f"CPU ms per 224 px tile: median {np.median(milliseconds):.2f}, least {min(milliseconds):.2f}")


def report_focus_of_slides(paths: list[Path], known: dict[Path, float]) -> None:
    print("\nWhole slides, up to 300 tiles each of 224 px at 0.5 µm/px, as they are and defocused by 3 µm:\n")
    print("| slide | µm/px | called blurred | not judged | without stored_mpp | defocused by 3 µm |")
    print("|---|---|---|---|---|---|")
    for path in paths:
        tiles, mpp = read_tiles(path, known.get(path))
        given = measure_focus(tiles, mpp=0.5, stored_mpp=mpp)
        naive = measure_focus(tiles, mpp=0.5)
        blurred = np.stack([plant.press(plant.defocus(tile, 6.0), 80) for tile in tiles])
        spoilt = measure_focus(blurred, mpp=0.5, stored_mpp=mpp)
        shares = (is_blurred(given), np.isnan(given), is_blurred(naive), is_blurred(spoilt))
        print(f"| {path.stem} | {mpp:.3f} | {' | '.join(f'{share.mean():.1%}' for share in shares)} |")


def read_tiles(path: Path, mpp: float | None, most: int = 300) -> tuple[np.ndarray, float]:
    mask = find_tissue(read_thumbnail(path, mpp), mpp=THUMBNAIL_MPP)
    with openslide.OpenSlide(path) as slide:
        mpp = mpp or float(slide.properties["openslide.mpp-x"])
        width, height = slide.dimensions
        grid = lay_grid(mask, slide_width_px=width, slide_height_px=height, slide_mpp=mpp, min_tissue_share=0.5)
        grid = grid.select(np.unique(np.linspace(0, len(grid) - 1, most).astype(np.int64)))
        edge = round(grid.tile_level0_px)
        regions = [slide.read_region((int(x), int(y)), 0, (edge, edge)) for x, y in grid.xy_level0_px]
    how = cv2.INTER_AREA if mpp < 0.5 else cv2.INTER_LINEAR
    return np.stack([cv2.resize(np.array(r)[..., :3], (224, 224), interpolation=how) for r in regions]), mpp


def judge(tile: Image, mpp: float) -> float:
    if mpp < 0.495:
        tile = np.asarray(cv2.resize(tile, None, fx=mpp / 0.5, fy=mpp / 0.5, interpolation=cv2.INTER_AREA))
        mpp = 0.5
    return float(measure_focus(tile[None], mpp=mpp)[0])


def print_focus(focus: dict[str, np.ndarray], cases: np.ndarray) -> None:
    sharp = focus["as scanned"]
    print(f"{len(sharp):,} tiles of {len(set(cases))} cases, threshold {BLURRED_BELOW}\n")
    print("| defocus, radius | AUC against as scanned | 1st | median | 99th percentile | called blurred | not judged |")
    print("|---|---|---|---|---|---|---|")
    for name, values in focus.items():
        judged = values[~np.isnan(values)]
        auc = np.searchsorted(np.sort(judged), sharp[~np.isnan(sharp)]).mean() / len(judged)
        low, middle, high = np.percentile(judged, [1, 50, 99])
        called, lost = (values < BLURRED_BELOW).mean(), np.isnan(values).mean()
        print(f"| {name} | {auc:.5f} | {low:.3f} | {middle:.3f} | {high:.3f} | {called:.2%} | {lost:.2%} |")
    halves = np.array([sum(map(ord, case)) % 2 for case in cases])
    print("\nSplit by case: the threshold that loses 0.1 % in one half, tried on the other:\n")
    print("| chosen on half | threshold | lost in the other | 2 µm found in the other | 3 µm |\n|---|---|---|---|---|")
    for half in (0, 1):
        cut = np.nanpercentile(sharp[halves == half], 0.1)
        other = halves != half
        rates = [float((focus[name][other] < cut).mean()) for name in ("as scanned", "2 µm", "3 µm")]
        print(f"| {half} | {cut:.3f} | {rates[0]:.2%} | {rates[1]:.2%} | {rates[2]:.2%} |")


# --- resolution ---------------------------------------------------------------------------------------------------


def report_resolution(data: Path, known: dict[Path, float], step: int) -> None:
    print("\n## Resolution estimated from nuclei\n")
    print("| slide | stated µm/px | how known | estimate | error | nuclei | at 0.5–2 × the scale |")
    print("|---|---|---|---|---|---|---|")
    errors: dict[str, list[float]] = defaultdict(list)
    sets = [TileSet(path.stem, path.stem, mpp, "high", cut_crops(path)) for path, mpp in known.items()]
    for tiles in [*sets, *tile_sets(data, 2 * step)]:
        try:
            found = estimate_mpp(tiles.tiles)
        except UnknownResolutionError:
            print(f"| {tiles.name} | {tiles.mpp} | {tiles.confidence} | refused | | | |")
            errors[tiles.confidence].append(float("nan"))
            continue
        error = found.mpp / tiles.mpp - 1
        errors[tiles.confidence].append(error)
        drift = "" if tiles.confidence == "low" else scale_drift(tiles.tiles, found.mpp)
        print(f"| {tiles.name} | {tiles.mpp} | {tiles.confidence}", end=" | ")
        print(f"{found.mpp:.3f} | {error:+.0%} | {found.nuclei} | {drift} |")
    for confidence, values in errors.items():
        known_errors = np.abs([v for v in values if not np.isnan(v)])
        within = (known_errors < 0.3).mean()
        print(f"\n{confidence}: {len(values)} slides, {sum(map(np.isnan, values))} refused, median error", end=" ")
        print(f"{np.median(known_errors):.1%}, largest {max(known_errors):.1%}, within 30 %: {within:.0%}")


def cut_crops(path: Path, edge_px: int = 512) -> list[Image]:
    image = tifffile.imread(path, key=0)
    mask = find_tissue(np.ascontiguousarray(image[::16, ::16]), mpp=8.0).pixels
    corners = [(y, x) for y in range(0, image.shape[0], edge_px) for x in range(0, image.shape[1], edge_px)]
    reach = edge_px // 16
    return [
        np.ascontiguousarray(image[y : y + edge_px, x : x + edge_px])
        for y, x in corners
        if mask[y // 16 : y // 16 + reach, x // 16 : x // 16 + reach].mean() > 0.3
    ]


def scale_drift(tiles: list[Image], mpp: float) -> str:
    """Largest deviation of the estimate when the same tiles are resampled."""
    worst = 0.0
    for factor in (0.5, 0.71, 1.41, 2.0):
        how = cv2.INTER_AREA if factor < 1 else cv2.INTER_CUBIC
        try:
            found = estimate_mpp([cv2.resize(t, None, fx=factor, fy=factor, interpolation=how) for t in tiles])
        except UnknownResolutionError:
            return "refused at some"
        worst = max(worst, abs(found.mpp * factor / mpp - 1))
    return f"±{worst:.1%}"


if __name__ == "__main__":
    sys.exit(main())
