"""Draw bytes as bars on a logarithmic axis, as SVG or as a picture; kinds differ by pattern, not by colour alone."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from slideway.reports.coverage_chart import HATCH_PX, ChartBar, ChartText, CoverageChart, Tone, render_svg, write_texts
from slideway.reports.lettering import measure_text, shorten, wrap
from slideway.reports.page import size_text
from slideway.reports.palette import Colour, Pattern

WIDTH_PX = 1080
_MARGIN_PX, _LEFT_PX, _RIGHT_PX = 30, 470, 960
_ROW_PX, _BAR_PX = 24, 15
_TEXT_PX, _TITLE_PX, _HEAD_PX, _SMALL_PX = 14, 22, 16, 12
_FIT = 0.84  # of the room: a viewer of the SVG may have a font up to a sixth wider than the picture's
_INK: Colour = (0x22, 0x26, 0x2B)
_QUIET: Colour = (0x55, 0x5C, 0x66)
_RULE: Colour = (0xD5, 0xDA, 0xE0)
_TITLE = "Bytes to send, slide by slide"
_UNITS = ("B", "kB", "MB", "GB", "TB")

TONES: Mapping[str, Tone] = {
    "file": Tone("the slide's file", (0xFF, 0xFF, 0xFF), Pattern.LINE, (0x6B, 0x74, 0x80)),
    "other": Tone("its tissue, sent in another way", (0xD5, 0xDE, 0xE6), Pattern.FILL, (0x6B, 0x74, 0x80)),
    "bundle": Tone("the whole bundle", (0x14, 0x18, 0x5C), Pattern.FILL, (0x14, 0x18, 0x5C)),
    "part": Tone("its first tiers, usable alone", (0xFF, 0xFF, 0xFF), Pattern.HATCH, (0x1F, 0x5F, 0xD0)),
    "rule": Tone("", _RULE, Pattern.FILL, _RULE),
}


@dataclass(frozen=True)
class ByteBar:
    """One bar: what is sent, how much that is, and its kind, a key of `TONES`."""

    title: str
    n_bytes: int
    kind: str


@dataclass(frozen=True)
class ByteGroup:
    """The bars of one slide, under its name."""

    title: str
    bars: tuple[ByteBar, ...]


def lay_out_bytes(groups: Sequence[ByteGroup], *, note: str = "") -> CoverageChart:
    """Place legend, axis, slides and their bars.

    Args:
        groups: Slides from top to bottom; every bar above 0 bytes.
        note: Stands under the bars.
    """
    sizes = [bar.n_bytes for group in groups for bar in group.bars]
    first = math.floor(math.log10(max(1, min(sizes, default=1))))
    last = max(first + 1, math.ceil(math.log10(max(1, max(sizes, default=10)))))
    per_decade = (_RIGHT_PX - _LEFT_PX) / (last - first)
    bars: list[ChartBar] = []
    texts = [ChartText(_MARGIN_PX, 22, _TITLE, _TITLE_PX, _INK)]
    texts.append(ChartText(_MARGIN_PX, 56, "Logarithmic: each line is ten times the one before", _TEXT_PX, _QUIET))
    axis_px = _lay_out_legend(90, bars, texts) + 8
    y_px = axis_px + 26
    rows: list[ChartBar] = []
    for group in groups:
        name = shorten(group.title, _HEAD_PX, round((WIDTH_PX - 2 * _MARGIN_PX) * _FIT))
        texts.append(ChartText(_MARGIN_PX, y_px, name, _HEAD_PX, _INK))
        y_px += 26
        for bar in group.bars:
            width_px = max(2.0, (math.log10(max(1, bar.n_bytes)) - first) * per_decade)
            rows.append(ChartBar(_LEFT_PX, y_px, width_px, _BAR_PX, bar.kind))
            title = shorten(bar.title, _TEXT_PX, round((_LEFT_PX - 14 - _MARGIN_PX) * _FIT))
            texts.append(ChartText(_LEFT_PX - 14, y_px - 1, title, _TEXT_PX, _INK, ends_there=True))
            texts.append(ChartText(_LEFT_PX + width_px + 8, y_px - 1, size_text(bar.n_bytes), _TEXT_PX, _INK))
            y_px += _ROW_PX
        y_px += 14
    for decade in range(first, last + 1):
        x_px = _LEFT_PX + (decade - first) * per_decade
        bars.append(ChartBar(x_px, axis_px + 20, 1, y_px - axis_px - 26, "rule"))
        said = f"{10 ** (decade % 3)} {_UNITS[min(decade // 3, len(_UNITS) - 1)]}"
        texts.append(ChartText(x_px - measure_text(said, _SMALL_PX) / 2, axis_px, said, _SMALL_PX, _QUIET))
    for line in wrap(note, _SMALL_PX, round((WIDTH_PX - 2 * _MARGIN_PX) * _FIT)):
        texts.append(ChartText(_MARGIN_PX, y_px, line, _SMALL_PX, _QUIET))
        y_px += 18
    return CoverageChart(WIDTH_PX, y_px + 14, (*bars, *rows), tuple(texts), _describe(groups))


def render_bytes_svg(groups: Sequence[ByteGroup], *, note: str = "") -> str:
    """The chart as an SVG file that needs nothing but itself."""
    return render_svg(lay_out_bytes(groups, note=note), TONES)


def draw_bytes(groups: Sequence[ByteGroup], *, note: str = "") -> NDArray[np.uint8]:
    """The chart as a picture, (height, width, 3)."""
    chart = lay_out_bytes(groups, note=note)
    image = Image.new("RGB", (chart.width_px, chart.height_px), (255, 255, 255))
    for bar in chart.bars:
        image.paste(_draw_bar(bar), (round(bar.x_px), round(bar.y_px)))
    write_texts(image, chart.texts)
    return np.asarray(image)


def _draw_bar(bar: ChartBar) -> Image.Image:
    tone = TONES[bar.stage]
    width_px, height_px = max(1, round(bar.width_px)), max(1, round(bar.height_px))
    area = Image.new("RGB", (width_px, height_px), tone.fill)
    draw = ImageDraw.Draw(area)
    if tone.pattern is Pattern.HATCH:
        for x_px in range(-height_px, width_px, HATCH_PX):
            draw.line((x_px, height_px, x_px + height_px, 0), tone.line, 2)
    draw.rectangle((0, 0, width_px - 1, height_px - 1), outline=tone.line)
    return area


def _lay_out_legend(y_px: int, bars: list[ChartBar], texts: list[ChartText]) -> int:
    x_px = float(_MARGIN_PX)
    for kind, tone in TONES.items():
        if not tone.text:
            continue
        bars.append(ChartBar(x_px, y_px, 30, _BAR_PX, kind))
        texts.append(ChartText(x_px + 38, y_px - 1, tone.text, _TEXT_PX, _INK))
        x_px += 38 + measure_text(tone.text, _TEXT_PX) + 28
    return y_px + _ROW_PX


def _describe(groups: Sequence[ByteGroup]) -> str:
    said = [f"{group.title}: {', '.join(f'{b.title} {size_text(b.n_bytes)}' for b in group.bars)}" for group in groups]
    return ". ".join(said) + "."
