"""A small made-up slide: a purple ellipse on glass, eight groups, one pen stroke, one fold, four blurred tiles."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime

import numpy as np
import pytest

from slideway.core.findings import Novelty, TissueGroups
from slideway.core.slide import Level, Resolution, ResolutionSource, Slide
from slideway.core.tissue import QualityGrade, Reason, TileGrid, TissueMask, Verdict
from slideway.reports import EncoderSummary, FocusSummary, ReportContent, ShownTile, SlideMaps

TILE_PX, TILE_MPP, SLIDE_MPP, THUMBNAIL_MPP = 224, 0.5, 0.5, 8.0


def lay_out_maps(
    width_px: int = 300,
    height_px: int = 200,
    *,
    groups: int = 8,
    has_tissue: bool = True,
    source: ResolutionSource = ResolutionSource.METADATA,
    seed: int = 0,
) -> SlideMaps:
    """Maps of a slide whose thumbnail has the given size at 8 µm/px."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:height_px, :width_px]
    inside = ((x / width_px - 0.5) ** 2 + (y / height_px - 0.5) ** 2 < 0.16) & has_tissue
    noise = rng.integers(0, 20, (height_px, width_px, 3))
    thumbnail = np.where(inside[:, :, None], [150, 90, 160], 235) + noise
    pen, fold = np.zeros_like(inside), np.zeros_like(inside)
    pen[: height_px // 10, : width_px // 10] = has_tissue
    fold[height_px // 2 : height_px // 2 + height_px // 10] = True
    tile_thumbnail_px = TILE_PX * TILE_MPP / THUMBNAIL_MPP
    rows, columns = int(height_px / tile_thumbnail_px), int(width_px / tile_thumbnail_px)
    centres = [(c, r) for r in range(rows) for c in range(columns)]
    kept = [(c, r) for c, r in centres if inside[int((r + 0.5) * 14), int((c + 0.5) * 14)]]
    grid = TileGrid(np.array(kept, np.int32).reshape(-1, 2), TILE_PX, TILE_MPP, SLIDE_MPP)
    read, excluded = grid.select(np.arange(4, len(grid))), grid.select(np.arange(min(4, len(grid))))
    count = min(groups, len(read))
    group = np.sort(np.arange(len(read)) % max(1, count)).astype(np.int16)
    best = tuple(tuple(int(i) for i in np.flatnonzero(group == g)[:6]) for g in range(count))
    percentile = np.linspace(0, 100, len(read), dtype=np.float32)
    return SlideMaps(
        thumbnail=thumbnail.astype(np.uint8),
        thumbnail_mpp=THUMBNAIL_MPP,
        mask=TissueMask(inside, THUMBNAIL_MPP, pen, fold & inside),
        grid=read,
        groups=TissueGroups(group, best),
        novelty=Novelty(percentile, "reference-one", float((percentile > 99).mean()) if count else 0.0),
        excluded=excluded,
        resolution=Resolution(SLIDE_MPP, source, "aperio.MPP"),
    )


def fill_content(maps: SlideMaps, *, name: str = "slide.svs", seed: int = 0) -> ReportContent:
    """A full report on those maps."""
    rng = np.random.default_rng(seed)

    def show(index: int) -> ShownTile:
        pixels = np.clip(rng.normal([180, 120, 170], 25, (64, 64, 3)), 0, 255).astype(np.uint8)
        x, y = maps.grid.xy_level0_px[index]
        return ShownTile(pixels, index, int(x), int(y), float(maps.novelty.percentile[index]) if maps.novelty else None)

    has_tiles = len(maps.grid) > 0
    width_px, height_px = maps.thumbnail.shape[1] * 16, maps.thumbnail.shape[0] * 16
    return ReportContent(
        slide=Slide(name, "aperio", "openslide", (Level(width_px, height_px, 1.0),), maps.resolution, "Scan Co 7"),
        slide_sha256="ed92d5a9f2e86df6" * 4,
        slide_bytes=1_938_955,
        quality=QualityGrade(Verdict.LIMITED, (Reason("blurred", "4.0 % of the tiles are blurred."),))
        if has_tiles
        else QualityGrade(Verdict.NO_TISSUE, (Reason("no-tissue", "No tissue was found."),)),
        maps=maps,
        encoder=EncoderSummary(
            "small-net", "Small net", "3f" * 32, "BSD-3-Clause", "Photographs.", ("Never saw tissue.",), 1280, "CPU"
        )
        if has_tiles
        else None,
        focus=FocusSummary(maps.grid, np.linspace(10, 60, len(maps.grid), dtype=np.float32), 9.0)
        if has_tiles
        else None,
        group_tiles=tuple(tuple(show(i) for i in best) for best in maps.groups.representatives),
        novel_tiles=tuple(show(i) for i in range(len(maps.grid))[-12:]),
        seconds_by_step={"open": 0.1, "encode": 12.3},
        bytes_by_output={"bag": 81_000},
        notes=("The scanner profile is new.",),
        made_at=datetime(2026, 1, 2, 3, 4, tzinfo=UTC),
        slideway_version="9.9.9",
    )


@pytest.fixture(scope="session")
def make_maps() -> Callable[..., SlideMaps]:
    """Makes slides of any size."""
    return lay_out_maps


@pytest.fixture(scope="session")
def make_content() -> Callable[..., ReportContent]:
    """Makes a full report on given maps."""
    return fill_content


@pytest.fixture(scope="session")
def maps() -> SlideMaps:
    """A slide with everything on it."""
    return lay_out_maps()


@pytest.fixture(scope="session")
def empty_maps() -> SlideMaps:
    """A slide without tissue."""
    bare = lay_out_maps(has_tissue=False)
    return replace(bare, novelty=None, excluded=None)


@pytest.fixture(scope="session")
def content(maps: SlideMaps) -> ReportContent:
    """A full report."""
    return fill_content(maps)
