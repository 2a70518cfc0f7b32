"""A small made-up slide: a purple ellipse on glass, eight groups, one pen stroke, one fold, four blurred tiles."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime

import numpy as np
import pytest

from slideway.core.findings import Novelty, TissueGroups
from slideway.core.opinion import (
    Answer,
    AttentionMap,
    Evidence,
    Finding,
    Kind,
    KnownCase,
    Opinion,
    TaskQuestion,
)
from slideway.core.slide import Level, Resolution, ResolutionSource, Slide
from slideway.core.tissue import QualityGrade, Reason, TileGrid, TissueMask, Verdict
from slideway.reports import EncoderSummary, FocusSummary, ReportContent, ShownTile, SlideMaps
from slideway.reports.content import ShownFinding, ShownOpinion

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


NEOPLASTIC = TaskQuestion("neoplastic", "Neoplastic?", Kind.BINARY, ("no", "yes"))
MALIGNANT = TaskQuestion("malignant", "Malignant?", Kind.BINARY, ("no", "yes"), "neoplastic")
ORGAN = TaskQuestion("organ", "Organ", Kind.CLASSES, ("colon", "duodenum", "liver"))
GRADE = TaskQuestion("colon.grade", "Grade", Kind.ORDINAL, ("low", "middle", "high"), "neoplastic")

FINDINGS = (
    Finding(
        NEOPLASTIC,
        Answer.ANSWER,
        ("yes",),
        {"no": 0.17, "yes": 0.83},
        evidence=Evidence(
            (), (), (KnownCase("case-0017", "no", 0.91), KnownCase("case-0008", "", 0.84)), "Fewer tiles."
        ),
        in_force=True,
    ),
    Finding(
        MALIGNANT,
        Answer.REFER,
        ("no", "yes"),
        {"no": 0.55, "yes": 0.45},
        (Reason("unlike", "Unlike the cases it learnt from."), Reason("undecided", "Neither answer is ruled out.")),
        in_force=True,
    ),
    Finding(
        ORGAN,
        Answer.SET,
        ("colon", "duodenum"),
        {"colon": 0.48, "duodenum": 0.49, "liver": 0.03},
        (Reason("set", "Two organs cannot be told apart."),),
        in_force=True,
    ),
    Finding(GRADE, Answer.ANSWER, ("middle",), {"low": 0.2, "middle": 0.7, "high": 0.1}),
)


def voice_opinion(findings: tuple[Finding, ...] = FINDINGS, *, head: str = "atlas", tiles: int = 0) -> ShownOpinion:
    """What a head says, with so many noisy tiles for and against each finding."""
    rng = np.random.default_rng(7)

    def show(count: int) -> tuple[ShownTile, ...]:
        return tuple(ShownTile(rng.integers(0, 255, (224, 224, 3), np.uint8), i, 5, 9, 42.0) for i in range(count))

    opinion = Opinion(
        head_id=f"slideway-{head}",
        head_title=f"Starter of {head}",
        head_version="0.3.1",
        head_sha256="ab" * 32,
        encoder_fingerprint="3f" * 32,
        findings=findings,
        attention=None,
        strangeness=0.92,
        limits=("Learnt from one atlas.",),
        evidence_words="Judged on 51 cases it had not seen.",
    )
    return ShownOpinion(opinion, tuple(ShownFinding(finding, show(tiles), show(tiles)) for finding in findings))


def attend(maps: SlideMaps, weight: np.ndarray | None = None, push: np.ndarray | None = None) -> SlideMaps:
    """The maps with attention; by default each tile gets more than the one before, and every other is pushed away."""
    count = len(maps.grid)
    weight = np.exp(np.linspace(0, 8, count)) if weight is None else weight
    push = np.where(np.arange(count) % 2, 1.0, -1.0) if push is None else push
    attention = AttentionMap((weight / max(weight.sum(), 1e-9)).astype(np.float32), push.astype(np.float32))
    return replace(maps, attention=attention, attention_title="Neoplastic?")


@pytest.fixture(scope="session")
def make_opinion() -> Callable[..., ShownOpinion]:
    """Makes opinions."""
    return voice_opinion


@pytest.fixture(scope="session")
def make_attention() -> Callable[..., SlideMaps]:
    """Adds attention to maps."""
    return attend


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
