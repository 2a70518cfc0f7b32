"""Measure, on one slide, what sending its tissue in other ways would cost: JPEG, JPEG 2000, JPEG XL, streamed viewing.

Pixels come through the sandboxed reader. The tissue is exactly that of the reading, its bag's grid: blurred tiles and
glass, which a bundle does not hold either, make no baseline larger.
"""

from __future__ import annotations

import io
import math
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import imagecodecs
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from slideway.core.bag import EmbeddingBag
from slideway.core.errors import BrokenSlideError, WrongUseError
from slideway.core.slide import Slide
from slideway.core.tissue import TileGrid
from slideway.pipeline.machine import count_cores
from slideway.slides import OpenedSlide, open_slide
from slideway.slides.files import files_of_slide, hash_slide

DEFAULT_SAMPLE = 300
_Z_95 = 1.959964  # quantile of the normal distribution for a two-sided interval of 95 %
_BATCH = 8

Tile = NDArray[np.uint8]
Progress = Callable[[str, int, int], None]


@dataclass(frozen=True)
class StillCodecs:
    """How still tissue is compressed: where there is a choice, the smaller file.

    Tiles are compressed one by one, which costs JPEG XL a little more than a whole region would (docs/bytes.md).

    Attributes:
        jpeg_quality: libjpeg quality of the encoder's own tiles, chroma halved, Huffman tables fitted to each tile.
        jpeg2000_ratio: Raw to compressed. Above 20:1, artefacts can be recognised in virtual slides (Kalinski et al.,
            Hum Pathol 2009;40:998); Johnson et al. (IEEE Trans Med Imaging 2011;30:306) measured visually lossless
            thresholds at 5 to 12 times the reduction of reversible coding, on top of its 2:1 or so.
        jpeg2000_limit_ratio: The strongest that pathologists bore without a loss of accuracy: constant up to 32:1,
            worse at 64:1 (Krupinski et al., J Pathol Inform 2012;3:17). Artefacts are visible.
        jpegxl_distance: 1.0 is "visually lossless" in the words of libjxl's `JxlEncoderSetFrameDistance`.
        jpegxl_effort: libjxl's default.
    """

    jpeg_quality: int = 80
    jpeg2000_ratio: float = 20.0
    jpeg2000_limit_ratio: float = 32.0
    jpegxl_distance: float = 1.0
    jpegxl_effort: int = 7


@dataclass(frozen=True)
class ViewedLevel:
    """How much of a slide is looked at, at one magnification.

    Attributes:
        objective: What it corresponds to on a microscope with a camera of 10 µm pixels, e.g. `20x`.
        mpp: Microns per pixel of that magnification.
        share: Share of the tissue that is looked at, in [0, 1].
        source: Where the share comes from; "assumed" when nothing measured it.
        is_whole_slide: The glass beside the tissue is shown, too.
    """

    objective: str
    mpp: float
    share: float
    source: str
    is_whole_slide: bool = False


@dataclass(frozen=True)
class ViewingModel:
    """What a doctor's viewer fetches during one ordinary reading: a model, not a measurement.

    Nothing is fetched twice, nothing ahead, and no request has a header: an actual viewer fetches more. A slide is
    never shown finer than it was scanned, so levels below its own resolution drop out.

    Attributes:
        levels: Coarse to fine.
        tile_px: Edge of a viewer's tile.
        jpeg_quality: As the server sends it.
    """

    levels: tuple[ViewedLevel, ...]
    tile_px: int = 256
    jpeg_quality: int = 80


# Four pathologists together visited 44 to 91 %, on average 66 %, of a slide's tissue (Roa-Peña et al., Diagn Pathol
# 2010;5:71, table 1). How that divides over magnifications is not published in a form that could be used here.
ORDINARY_READING = ViewingModel(
    (
        ViewedLevel("1.25x", 8.0, 1.0, "assumed: the overview", is_whole_slide=True),
        ViewedLevel("2.5x", 4.0, 1.0, "assumed: all tissue is scanned once"),
        ViewedLevel("5x", 2.0, 1.0, "assumed: all tissue is scanned once"),
        ViewedLevel("10x", 1.0, 0.66, "Roa-Peña 2010: mean share of the tissue that was visited"),
        ViewedLevel("20x", 0.5, 0.20, "assumed"),
        ViewedLevel("40x", 0.25, 0.05, "assumed"),
    )
)


@dataclass(frozen=True)
class Estimate:
    """A number of bytes, counted or estimated from a random sample of tiles.

    Attributes:
        n_bytes: The total.
        low: Lower end of its 95 % interval; the total itself when all tiles were counted.
        high: Upper end.
        tiles: Tiles that it stands for.
        counted: Tiles that were compressed.
    """

    n_bytes: int
    low: int
    high: int
    tiles: int
    counted: int

    @property
    def is_exact(self) -> bool:
        """Whether every tile was compressed."""
        return self.counted == self.tiles


@dataclass(frozen=True)
class ViewedBytes:
    """What one magnification adds to streamed viewing.

    Attributes:
        level: Which, and the share that is looked at.
        mpp: Microns per pixel of the pyramid's level that is shown.
        all_tiles: All tiles of that level on tissue, as if all were looked at.
    """

    level: ViewedLevel
    mpp: float
    all_tiles: Estimate

    @property
    def n_bytes(self) -> float:
        """Bytes of the share that is looked at."""
        return self.level.share * self.all_tiles.n_bytes


@dataclass(frozen=True)
class Baselines:
    """What sending this slide, or its tissue, would cost without Slideway.

    Attributes:
        slide_sha256: Which slide.
        file_bytes: Its file, or files, as they are.
        jpeg: Tissue tiles as the encoder reads them, as JPEG.
        jpeg2000: Tissue at the slide's own resolution as JPEG 2000, visually lossless.
        jpeg2000_limit: The same as strongly compressed as a diagnosis bears.
        jpegxl: Tissue at the slide's own resolution as JPEG XL, visually lossless.
        viewing: Tiles that a doctor would stream during an ordinary reading; a model.
        viewed: The same by magnification.
        psnr_db: Mean peak signal-to-noise ratio of the tiles, by `jpeg2000`, `jpeg2000_limit` and `jpegxl`.
        seed: Of the random sample.
        sample: Tiles drawn at most; None when all were counted.
        codecs: How they were compressed.
        model: What is looked at.
    """

    slide_sha256: str
    file_bytes: int
    jpeg: Estimate
    jpeg2000: Estimate
    jpeg2000_limit: Estimate
    jpegxl: Estimate
    viewing: Estimate
    viewed: tuple[ViewedBytes, ...]
    psnr_db: dict[str, float]
    seed: int
    sample: int | None
    codecs: StillCodecs = field(default_factory=StillCodecs)
    model: ViewingModel = ORDINARY_READING


def measure_baselines(
    path: Path,
    bag: EmbeddingBag,
    *,
    sample: int | None = DEFAULT_SAMPLE,
    seed: int = 0,
    codecs: StillCodecs | None = None,
    model: ViewingModel = ORDINARY_READING,
    progress: Progress | None = None,
) -> Baselines:
    """Compress a slide's tissue in other ways, and count the bytes.

    Of a slide read in profile `thrifty`, tiles count as often as they stand for others; streamed viewing then counts
    the tiles read only, which is too little.

    Args:
        path: The slide, the very one that `bag` was read from.
        bag: Of its reading; says where tissue is and at what resolution the slide was read.
        sample: Tiles to compress at most, at least 2; None takes all, which takes long.
        seed: Of the random sample.
        codecs: How to compress; None takes what docs/bytes.md gives sources for.
        model: What a doctor looks at.
        progress: Told what is compressed, how many tiles are done, and of how many.

    Raises:
        WrongUseError: The file is not the slide of the bag.
        UnreadableSlideError: Its pixels cannot be read.
    """
    if sample is not None and sample < 2:
        raise ValueError(f"a sample of {sample} tile has no interval; take 2 or more, or None for all")
    if hash_slide(path) != bag.slide_sha256:
        raise WrongUseError(f"{path.name}: this is not the slide that was read, its sha256 differs; give the right one")
    with open_slide(path) as opened, ThreadPoolExecutor(count_cores()) as beside:
        meter = _Meter(opened, beside, sample, seed, progress or _ignore)
        return meter.measure(path, bag, codecs or StillCodecs(), model)


@dataclass
class _Meter:
    """One slide's measurement."""

    opened: OpenedSlide
    beside: ThreadPoolExecutor
    sample: int | None
    seed: int
    progress: Progress

    def measure(self, path: Path, bag: EmbeddingBag, codecs: StillCodecs, model: ViewingModel) -> Baselines:
        grid, weights = bag.grid, bag.weights
        picks = self._draw(len(grid))
        as_jpeg = self._compress(
            "JPEG", grid.select(picks), [lambda tile: (count_jpeg(tile, codecs.jpeg_quality), 0.0)]
        )
        own = self._compress(
            "JPEG 2000 and JPEG XL",
            at_own_resolution(grid).select(picks),
            [
                lambda tile: count_jpeg2000(tile, codecs.jpeg2000_ratio),
                lambda tile: count_jpeg2000(tile, codecs.jpeg2000_limit_ratio),
                lambda tile: count_jpegxl(tile, codecs),
            ],
        )
        still = [
            estimate_total(measured[:, k, 0] * weights[picks][kept], len(grid))
            for measured, kept in (as_jpeg, own)
            for k in range(measured.shape[1])
        ]
        viewed = tuple(self._view(grid, model))
        psnr = own[0][:, :, 1].mean(axis=0) if len(own[0]) else np.zeros(3)
        return Baselines(
            slide_sha256=bag.slide_sha256,
            file_bytes=sum(file.stat().st_size for file in files_of_slide(path)),
            jpeg=still[0],
            jpeg2000=still[1],
            jpeg2000_limit=still[2],
            jpegxl=still[3],
            viewing=_add_up(viewed),
            viewed=viewed,
            psnr_db={
                name: round(float(db), 2)
                for name, db in zip(("jpeg2000", "jpeg2000_limit", "jpegxl"), psnr, strict=True)
            },
            seed=self.seed,
            sample=self.sample,
            codecs=codecs,
            model=model,
        )

    def _draw(self, count: int) -> NDArray[np.int64]:
        """Positions of a simple random sample without replacement, in order."""
        if self.sample is None or self.sample >= count:
            return np.arange(count)
        return np.sort(np.random.default_rng(self.seed).choice(count, self.sample, replace=False))

    def _compress(
        self, words: str, grid: TileGrid, ways: Sequence[Callable[[Tile], tuple[int, float]]]
    ) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
        """((n, ways, 2) bytes and PSNR of each tile that could be read, (n,) its position in `grid`)."""
        measured: list[Any] = []
        kept: list[NDArray[np.int64]] = []
        for batch in self.opened.read_tiles(grid, batch=_BATCH) if len(grid) else ():
            measured += self.beside.map(lambda tile: [way(tile) for way in ways], list(batch.tiles))
            kept.append(batch.indices)
            self.progress(words, len(measured), len(grid))
        if len(grid) and not measured:
            raise BrokenSlideError(f"{self.opened.slide.name}: no tile of its tissue can be read; copy it again")
        return (
            np.asarray(measured, np.float64).reshape(-1, len(ways), 2),
            np.concatenate(kept) if kept else np.empty(0, np.int64),
        )

    def _view(self, grid: TileGrid, model: ViewingModel) -> list[ViewedBytes]:
        viewed = []
        for level in model.levels:
            halvings = round(math.log2(level.mpp / grid.slide_mpp))
            if halvings < 0 or not len(grid):  # finer than the slide was scanned
                continue
            shown = lay_viewer_tiles(self.opened.slide, grid, halvings, model.tile_px, whole=level.is_whole_slide)
            measured, _ = self._compress(
                f"viewing at {level.objective}",
                shown.select(self._draw(len(shown))),
                [lambda tile: (count_jpeg(tile, model.jpeg_quality), 0.0)],
            )
            viewed.append(ViewedBytes(level, shown.tile_mpp, estimate_total(measured[:, 0, 0], len(shown))))
        return viewed


def at_own_resolution(grid: TileGrid) -> TileGrid:
    """The same squares at the slide's own resolution: as many pixels as level 0 has there, none resized."""
    edge = max(1, round(grid.tile_level0_px))
    return TileGrid(grid.column_row, edge, grid.tile_level0_px * grid.slide_mpp / edge, grid.slide_mpp)


def lay_viewer_tiles(slide: Slide, grid: TileGrid, halvings: int, tile_px: int, *, whole: bool) -> TileGrid:
    """Tiles of a viewer's pyramid that a grid touches.

    Args:
        slide: For its size.
        grid: Where tissue is.
        halvings: How often level 0 is halved; 0 is level 0 itself.
        tile_px: Edge of a viewer's tile.
        whole: All tiles of the slide, not only those on tissue.
    """
    edge = float(tile_px * 2**halvings)  # in level-0 pixels
    across, down = math.ceil(slide.width_px / edge), math.ceil(slide.height_px / edge)
    if whole:
        places = np.stack(np.meshgrid(np.arange(across), np.arange(down)), axis=-1).reshape(-1, 2)
    else:
        corner = grid.column_row.astype(np.float64) * grid.tile_level0_px
        first = np.floor(corner / edge).astype(np.int64)
        last = np.ceil((corner + grid.tile_level0_px) / edge).astype(np.int64) - 1
        reach = np.arange(int((last - first).max()) + 1)
        steps = np.stack(np.meshgrid(reach, reach), axis=-1).reshape(-1, 2)
        places = (first[:, None] + steps)[((first[:, None] + steps) <= last[:, None]).all(axis=-1)]
        places = np.unique(places[(places < (across, down)).all(axis=1)], axis=0)
    order = np.lexsort((places[:, 0], places[:, 1]))
    return TileGrid(places[order].astype(np.int32), tile_px, grid.slide_mpp * 2**halvings, grid.slide_mpp)


def estimate_total(sizes: NDArray[np.float64], tiles: int) -> Estimate:
    """Total of `tiles` tiles of which some, drawn at random without replacement, have these sizes.

    Source:
        Simple random sampling with the finite population correction: Cochran, Sampling Techniques, 3rd ed. 1977, ch. 2.

    Example:
        >>> estimate_total(np.array([10.0, 20.0]), 2)
        Estimate(n_bytes=30, low=30, high=30, tiles=2, counted=2)
        >>> estimate_total(np.array([10.0, 20.0]), 100)
        Estimate(n_bytes=1500, low=530, high=2470, tiles=100, counted=2)
    """
    if not tiles:
        return Estimate(0, 0, 0, 0, 0)
    total, counted = tiles * float(sizes.mean()), len(sizes)
    spread = float(sizes.var(ddof=1)) if counted > 1 else 0.0
    half = _Z_95 * tiles * math.sqrt((1 - counted / tiles) * spread / counted)
    return Estimate(round(total), max(0, round(total - half)), round(total + half), tiles, counted)


def _add_up(viewed: Sequence[ViewedBytes]) -> Estimate:
    """The shares together; samples of different magnifications are independent."""
    total = sum(one.n_bytes for one in viewed)
    half = math.sqrt(sum((one.level.share * (one.all_tiles.high - one.all_tiles.n_bytes)) ** 2 for one in viewed))
    tiles = sum(one.all_tiles.tiles for one in viewed)
    counted = sum(one.all_tiles.counted for one in viewed)
    return Estimate(round(total), max(0, round(total - half)), round(total + half), tiles, counted)


def count_jpeg(tile: Tile, quality: int) -> int:
    """Bytes of a picture as a JPEG file."""
    file = io.BytesIO()
    Image.fromarray(tile).save(file, "JPEG", quality=quality, subsampling="4:2:0", optimize=True)
    return file.tell()


def count_jpeg2000(tile: Tile, ratio: float) -> tuple[int, float]:
    """Bytes and PSNR of the bare codestream; `mct`, the colour transform, is worth much and not Pillow's default."""
    file = io.BytesIO()
    Image.fromarray(tile).save(
        file, "JPEG2000", quality_mode="rates", quality_layers=[ratio], irreversible=True, mct=1, no_jp2=True
    )
    return file.tell(), _psnr(tile, imagecodecs.jpeg2k_decode(file.getvalue()))


def count_jpegxl(tile: Tile, codecs: StillCodecs) -> tuple[int, float]:
    """Bytes and PSNR of a picture as JPEG XL."""
    content = imagecodecs.jpegxl_encode(tile, distance=codecs.jpegxl_distance, effort=codecs.jpegxl_effort)
    return len(content), _psnr(tile, imagecodecs.jpegxl_decode(content))


def _psnr(before: Tile, after: Tile) -> float:
    error = float(np.mean((before.astype(np.float32) - after) ** 2))
    return 99.0 if not error else 10 * math.log10(255**2 / error)


def _ignore(words: str, done: int, total: int) -> None:
    """Nobody watches."""
