"""Fill the overlay and the report of one reading."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

import slideway
from slideway.core.tissue import TileGrid
from slideway.encoders import Encoder
from slideway.pipeline.profile import say_plan
from slideway.pipeline.reading import SlideReading
from slideway.pipeline.survey import Survey
from slideway.registry.card import ModelCard
from slideway.reports import (
    EncoderSummary,
    FocusSummary,
    ReportContent,
    ShownTile,
    SlideMaps,
    draw_overlay,
    render_report,
)
from slideway.reports.content import ShownFinding, ShownOpinion
from slideway.reports.findings import say_finding
from slideway.slides import OpenedSlide
from slideway.tissue import BLURRED_BELOW

TILES_PER_GROUP = 6
NOVEL_TILES = 8
PICTURE_PX = 1400  # long side of the slide as drawn; 8 µm/px would show a biopsy as a stamp


def draw_reading(
    opened: OpenedSlide,
    survey: Survey,
    reading: SlideReading,
    encoder: Encoder,
    seconds: Mapping[str, float],
) -> dict[str, bytes]:
    """Draw overlay.png and report.html; returns contents by file name."""
    picture = _picture(opened, survey)
    slide_bytes: int = reading.result["slide"]["bytes"]
    maps = SlideMaps(
        thumbnail=picture,
        thumbnail_mpp=survey.slide.mpp * survey.slide.width_px / picture.shape[1],
        mask=survey.mask,
        grid=reading.bag.grid,
        groups=reading.groups,
        novelty=reading.novelty,
        excluded=reading.blurred if len(reading.blurred) else None,
        resolution=survey.slide.resolution,
        **_attend(reading),
    )
    verdict = reading.quality.verdict.value
    lines = [survey.slide.name, f"{verdict} · {survey.mask.area_mm2:.1f} mm² tissue · {len(reading.bag):,} tiles"]
    said = say_plan(reading.result["profile"])
    lines += [say_finding(finding) for opinion in reading.opinions for finding in opinion.findings]
    warnings = [*(reason.text for reason in reading.quality.reasons), *said]
    overlay = draw_overlay(maps, title_lines=lines, notes=warnings)
    content = ReportContent(
        slide=survey.slide,
        slide_sha256=reading.slide_sha256,
        slide_bytes=slide_bytes,
        quality=reading.quality,
        maps=maps,
        encoder=_summarise(reading.card, encoder),
        focus=_focus_of(reading),
        group_tiles=_show_groups(opened, reading),
        novel_tiles=_show_novel(opened, reading),
        seconds_by_step=seconds,
        bytes_by_output={"slide file": slide_bytes, "bag (embeddings)": 2 * reading.bag.width * len(reading.bag)},
        notes=said,
        opinions=_show_opinions(opened, reading),
        heads_off=reading.heads_off,
        made_at=datetime.now(UTC),
        slideway_version=slideway.__version__,
    )
    return {"overlay.png": _encode_png(overlay), "report.html": render_report(content).encode("utf-8")}


def _attend(reading: SlideReading) -> dict[str, Any]:
    """Where the first head that read the slide looked."""
    for opinion in reading.opinions:
        if opinion.attention is not None and opinion.findings:
            return {"attention": opinion.attention, "attention_title": f"{opinion.head_title}"}
    return {}


def _show_opinions(opened: OpenedSlide, reading: SlideReading) -> tuple[ShownOpinion, ...]:
    """Every opinion with the tiles that speak for and against it."""
    findings = [finding for opinion in reading.opinions for finding in opinion.findings]
    wanted = [tile for f in findings for tile in (*f.evidence.for_tiles, *f.evidence.against_tiles)]
    distinct = list(dict.fromkeys(wanted))
    pixels = dict(zip(distinct, _show(opened, reading, distinct), strict=True))

    def show(tiles: Sequence[int]) -> tuple[ShownTile, ...]:
        return tuple(pixels[tile] for tile in tiles)

    return tuple(
        ShownOpinion(
            opinion,
            tuple(
                ShownFinding(f, show(f.evidence.for_tiles), show(f.evidence.against_tiles)) for f in opinion.findings
            ),
        )
        for opinion in reading.opinions
    )


def _picture(opened: OpenedSlide, survey: Survey) -> NDArray[np.uint8]:
    """The thumbnail, or a finer one where that is too small to look at."""
    height, width = survey.thumbnail.shape[:2]
    slide = survey.slide
    if max(height, width) < PICTURE_PX:
        return opened.read_thumbnail(max(1.0, max(slide.width_px, slide.height_px) / PICTURE_PX), as_seen=True)
    if slide.has_icc_profile:
        return opened.read_thumbnail(slide.width_px / width, as_seen=True)
    return survey.thumbnail


def _summarise(card: ModelCard, encoder: Encoder) -> EncoderSummary:
    return EncoderSummary(
        encoder_id=card.id,
        title=card.title,
        fingerprint=card.fingerprint,
        licence=card.licence.id,
        trained_on=card.training.data,
        limits=card.limits,
        width=card.output.width,
        engine=encoder.engine.words,
    )


def _focus_of(reading: SlideReading) -> FocusSummary | None:
    if not len(reading.bag):
        return None
    return FocusSummary(reading.bag.grid, np.asarray(reading.bag.focus), BLURRED_BELOW)


def _show_groups(opened: OpenedSlide, reading: SlideReading) -> tuple[tuple[ShownTile, ...], ...]:
    picks = [group[:TILES_PER_GROUP] for group in reading.groups.representatives]
    shown = iter(_show(opened, reading, [index for group in picks for index in group]))
    return tuple(tuple(next(shown) for _ in group) for group in picks)


def _show_novel(opened: OpenedSlide, reading: SlideReading) -> tuple[ShownTile, ...]:
    if reading.novelty is None:
        return ()
    order = np.argsort(-reading.novelty.percentile, kind="stable")[:NOVEL_TILES]
    return _show(opened, reading, order.tolist())


def _show(opened: OpenedSlide, reading: SlideReading, indices: Sequence[int]) -> tuple[ShownTile, ...]:
    """Read the tiles of `indices` again, as a person sees them, in that order."""
    if not indices:
        return ()
    grid = reading.bag.grid.select(np.asarray(indices, np.int64))
    pixels = _read_all(opened, grid)
    xy = grid.xy_level0_px
    return tuple(
        ShownTile(
            pixels=pixels[i],
            index=int(index),
            x_level0_px=int(xy[i, 0]),
            y_level0_px=int(xy[i, 1]),
            novelty_percentile=None if reading.novelty is None else float(reading.novelty.percentile[index]),
        )
        for i, index in enumerate(indices)
    )


def _read_all(opened: OpenedSlide, grid: TileGrid) -> NDArray[np.uint8]:
    pixels = np.full((len(grid), grid.tile_px, grid.tile_px, 3), 255, np.uint8)
    for batch in opened.read_tiles(grid, as_seen=True):
        pixels[batch.indices] = batch.tiles
    return pixels


def _encode_png(picture: NDArray[np.uint8]) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(picture).save(buffer, "PNG", optimize=False, compress_level=6)
    return buffer.getvalue()
