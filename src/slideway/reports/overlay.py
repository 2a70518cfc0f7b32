"""Draw one picture of a slide: tissue, groups, novelty and attention on its thumbnail, with legend and scale bar."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from slideway.reports.content import SlideMaps
from slideway.reports.lettering import measure_text, shorten, wrap, write_text
from slideway.reports.palette import Colour, LegendEntry, Pattern
from slideway.reports.panels import Panel, draw_panels
from slideway.reports.scale import draw_scale_bar

_GROUND: Colour = (0x10, 0x12, 0x14)
_TEXT: Colour = (0xE6, 0xE8, 0xEB)
_QUIET: Colour = (0xA9, 0xB0, 0xBA)
_AMBER: Colour = (0xE0, 0xA5, 0x26)

# The type is 24 px: legible when the picture is fitted to a screen half as wide as it is.
_FULL_WIDTH_PX = 2600
_GAP_PX, _MARGIN_PX = 32, 40
_LEGEND_PX = 600
_TITLE_PX, _HEADING_PX, _BODY_PX, _NOTE_PX = 36, 27, 24, 21
_ENTRY_PX, _SWATCH_PX = 36, 28

_MEANING = (
    "Groups hold tiles that look alike; nobody has named them. Novelty says how unlike the reference set a tile is. "
    "Neither is a diagnosis."
)
_MEANING_OF_ATTENTION = (
    "Attention says which tiles weighed most in what a head found. It does not say where disease is, and a finding is "
    "no diagnosis."
)


@dataclass(frozen=True)
class _Layout:
    """Where the panels stand.

    Attributes:
        columns: Panels beside each other.
        picture_px: Width of each picture.
        has_legend_beside: The legend stands right of its picture, not below.
    """

    columns: int
    picture_px: int
    has_legend_beside: bool

    @property
    def cell_px(self) -> int:
        if self.has_legend_beside:
            return self.picture_px + _GAP_PX + _LEGEND_PX
        return max(self.picture_px, _LEGEND_PX)

    @property
    def legend_px(self) -> int:
        return _LEGEND_PX if self.has_legend_beside else self.cell_px

    @property
    def inner_px(self) -> int:
        return self.columns * self.cell_px + (self.columns - 1) * _GAP_PX


def draw_overlay(maps: SlideMaps, *, title_lines: Sequence[str] = (), notes: Sequence[str] = ()) -> NDArray[np.uint8]:
    """Draw tissue, groups, novelty and attention of one slide as one picture.

    The maps stand side by side, or one above the other where that draws them larger. Lettering is ASCII with µ and ²:
    other scripts in `title_lines` are spelt out or become an ellipsis.

    Args:
        maps: What is drawn.
        title_lines: First line large, further lines small, above the maps.
        notes: Small lines below the maps.

    Returns:
        (height, width, 3) uint8 RGB, 3000 px at most on the long side; the same input gives the same pixels.
    """
    aspect = maps.thumbnail.shape[1] / maps.thumbnail.shape[0]
    layout = _lay_out(_count_panels(maps), aspect)
    panels = draw_panels(maps, width_px=layout.picture_px)
    head = _draw_head(maps, title_lines, layout.inner_px)
    rows = [panels[i : i + layout.columns] for i in range(0, len(panels), layout.columns)]
    body = [_beside([_draw_cell(panel, maps, layout) for panel in row]) for row in rows]
    foot = _draw_foot(maps, notes, layout.inner_px)
    return _frame_picture(_below([head, *body, foot], gap_px=_GAP_PX))


def _count_panels(maps: SlideMaps) -> int:
    return 2 + (maps.novelty is not None) + (maps.attention is not None) if len(maps.grid) else 1


def _lay_out(panels: int, aspect: float) -> _Layout:
    """Choose what draws the pictures largest: tall ones stand beside each other, wide ones are stacked."""
    if panels > 3 and 1.6 < aspect <= 5:
        # Two by two: the fitted pictures grow by a fifth and more against four in a row, and more than when stacked.
        return _Layout(2, (_FULL_WIDTH_PX - _GAP_PX) // 2, has_legend_beside=False)
    beside_px = (_FULL_WIDTH_PX - (panels - 1) * _GAP_PX) / panels
    # 1200 px is what a 16:9 screen leaves of the full width's height: stack when the fitted pictures grow by it.
    if panels > 1 and 1200 / panels * aspect > beside_px:
        if aspect > 5:
            return _Layout(1, _FULL_WIDTH_PX, has_legend_beside=False)
        widest_px = _FULL_WIDTH_PX - _GAP_PX - _LEGEND_PX
        return _Layout(1, round(min(widest_px, 2400 / panels * aspect)), has_legend_beside=True)
    picture_px = max(1, round(min(beside_px, (1500 if panels > 1 else 1000) * aspect)))
    if picture_px < _LEGEND_PX / 2 and panels > 3:  # no room for legends beside four
        return _Layout(panels, max(1, round(min(beside_px, 2000 * aspect))), has_legend_beside=False)
    if picture_px < _LEGEND_PX / 2:
        strip_px = min(2200 * aspect, beside_px - _GAP_PX - _LEGEND_PX)
        return _Layout(panels, max(1, round(strip_px)), has_legend_beside=True)
    return _Layout(panels, picture_px, has_legend_beside=False)


def _sheet(width_px: int, height_px: int) -> tuple[Image.Image, ImageDraw.ImageDraw]:
    image = Image.new("RGB", (width_px, max(1, height_px)), _GROUND)
    return image, ImageDraw.Draw(image)


def _beside(images: Sequence[Image.Image]) -> Image.Image:
    width_px = sum(i.width for i in images) + _GAP_PX * (len(images) - 1)
    sheet, _ = _sheet(width_px, max(i.height for i in images))
    x_px = 0
    for image in images:
        sheet.paste(image, (x_px, 0))
        x_px += image.width + _GAP_PX
    return sheet


def _below(images: Sequence[Image.Image], *, gap_px: int) -> Image.Image:
    sheet, _ = _sheet(max(i.width for i in images), sum(i.height for i in images) + gap_px * (len(images) - 1))
    y_px = 0
    for image in images:
        sheet.paste(image, (0, y_px))
        y_px += image.height + gap_px
    return sheet


def _frame_picture(image: Image.Image) -> NDArray[np.uint8]:
    sheet, _ = _sheet(image.width + 2 * _MARGIN_PX, image.height + 2 * _MARGIN_PX)
    sheet.paste(image, (_MARGIN_PX, _MARGIN_PX))
    if max(sheet.size) > 3000:
        # Many notes or a very long legend: shrink rather than break the promise to the caller.
        sheet.thumbnail((3000, 3000), Image.Resampling.LANCZOS)
    return np.asarray(sheet)


def _draw_head(maps: SlideMaps, title_lines: Sequence[str], width_px: int) -> Image.Image:
    """Title, small lines, and the amber mark of an estimated resolution."""
    title, *small = title_lines or ("",)
    lines = [(shorten(title, _TITLE_PX, width_px), _TITLE_PX, _TEXT)] if title else []
    lines += [(line, _BODY_PX, _QUIET) for text in small for line in wrap(text, _BODY_PX, width_px)]
    if maps.is_estimated:
        mpp = f"{maps.resolution.mpp:.3g} µm/px" if maps.resolution.mpp is not None else ""
        warning = f"ESTIMATED RESOLUTION {mpp}: lengths and areas are approximate"
        lines += [(line, _BODY_PX, _AMBER) for line in wrap(warning, _BODY_PX, width_px)]
    return _draw_lines(lines, width_px)


def _draw_foot(maps: SlideMaps, notes: Sequence[str], width_px: int) -> Image.Image:
    """What the maps mean, the reference set, and the caller's notes."""
    texts = [_MEANING] if len(maps.grid) else []
    if len(maps.grid) and maps.attention is not None:
        texts.append(_MEANING_OF_ATTENTION)
    if len(maps.grid) and maps.novelty is None:
        texts.append("No novelty map: this encoder has no reference set.")
    elif maps.novelty is not None and len(maps.grid):
        texts.append(f"Reference set: {maps.novelty.reference}.")
    wrapped = [line for text in (*texts, *notes) for line in wrap(text, _NOTE_PX, width_px)]
    return _draw_lines([(line, _NOTE_PX, _QUIET) for line in wrapped], width_px)


def _draw_lines(lines: Sequence[tuple[str, int, Colour]], width_px: int) -> Image.Image:
    sheet, draw = _sheet(width_px, sum(round(size_px * 1.45) for _, size_px, _ in lines))
    y_px = 0
    for text, size_px, colour in lines:
        write_text(draw, 0, y_px, text, size_px, colour)
        y_px += round(size_px * 1.45)
    return sheet


def _draw_cell(panel: Panel, maps: SlideMaps, layout: _Layout) -> Image.Image:
    """Heading, picture, scale bar and legend of one panel."""
    heading = _draw_lines([(shorten(panel.name, _HEADING_PX, layout.legend_px), _HEADING_PX, _TEXT)], layout.legend_px)
    picture = Image.fromarray(panel.picture)
    words = _empty_words(maps)
    if words:
        _write_over(picture, words)
    bar, legend = _draw_scale_bar(panel, maps), _draw_legend(panel.legend, layout.legend_px)
    if layout.has_legend_beside:
        return _beside([picture, _below([heading, bar, legend], gap_px=10)])
    cell, _ = _sheet(layout.cell_px, 1)
    return _below([heading, picture, bar, legend, cell], gap_px=10)


def _empty_words(maps: SlideMaps) -> str:
    """What a person must be told when there is nothing to map."""
    if len(maps.grid):
        return ""
    if maps.excluded is not None and len(maps.excluded):
        return "No tile could be read: blurred"
    return "Tissue too small to read" if maps.mask.pixels.any() else "No tissue found"


def _write_over(picture: Image.Image, words: str) -> None:
    """Write words on a dark plate in the middle of a picture."""
    draw = ImageDraw.Draw(picture)
    size_px = next((s for s in (48, 36, 28, 22, 18) if measure_text(words, s) + 64 <= picture.width), 14)
    lines = wrap(words, size_px, max(1, picture.width - 16))
    line_px = round(size_px * 1.35)
    widest_px = max(measure_text(line, size_px) for line in lines)
    left_px, top_px = (picture.width - widest_px) // 2, (picture.height - line_px * len(lines)) // 2
    plate = (left_px - 24, top_px - 14, left_px + widest_px + 24, top_px + line_px * len(lines) + 14)
    draw.rounded_rectangle(plate, radius=12, fill=_GROUND)
    for i, line in enumerate(lines):
        x_px = (picture.width - measure_text(line, size_px)) / 2
        write_text(draw, x_px, top_px + i * line_px, line, size_px, _TEXT)


def _draw_scale_bar(panel: Panel, maps: SlideMaps) -> Image.Image:
    """A bar beside the picture, not over it: it covers no tissue."""
    # A narrow strip is measured by its legend, else its bar would be a few pixels long; a wide one too, else too long.
    within_px = min(max(panel.picture.shape[1], _LEGEND_PX), 1000)
    ink = _AMBER if maps.is_estimated else _TEXT
    return draw_scale_bar(
        panel.um_per_px, within_px=within_px, is_estimated=maps.is_estimated, text_px=_BODY_PX, ink=ink, ground=_GROUND
    )


def _draw_legend(entries: Sequence[LegendEntry], width_px: int) -> Image.Image:
    """Swatches with words, flowing over as many lines as they need."""
    placed: list[tuple[LegendEntry, int, int]] = []
    x_px, y_px = 0, 0
    for entry in entries:
        entry_px = _SWATCH_PX + 12 + measure_text(entry.text, _BODY_PX) + 36
        if x_px and x_px + entry_px - 36 > width_px:
            x_px, y_px = 0, y_px + _ENTRY_PX
        placed.append((entry, x_px, y_px))
        x_px += entry_px
    sheet, draw = _sheet(width_px, y_px + _ENTRY_PX)
    for entry, left_px, top_px in placed:
        sheet.paste(_draw_swatch(entry, _SWATCH_PX), (left_px, top_px + 3))
        text = shorten(entry.text, _BODY_PX, width_px - _SWATCH_PX - 12)
        write_text(draw, left_px + _SWATCH_PX + 12, top_px + 2, text, _BODY_PX, _TEXT)
    return sheet


def _draw_swatch(entry: LegendEntry, size_px: int) -> Image.Image:
    """A little square that shows a colour and its pattern on white."""
    swatch = Image.new("RGB", (size_px, size_px), (255, 255, 255))
    draw = ImageDraw.Draw(swatch)
    if entry.pattern is Pattern.FILL:
        draw.rectangle((0, 0, size_px, size_px), fill=entry.colour)
    if entry.pattern is Pattern.LINE:
        draw.rectangle((4, 4, size_px - 5, size_px - 5), outline=entry.colour, width=4)
    if entry.pattern in {Pattern.PLUS, Pattern.MINUS}:
        middle_px = size_px // 2
        draw.line((6, middle_px, size_px - 7, middle_px), fill=entry.colour, width=4)
        if entry.pattern is Pattern.PLUS:
            draw.line((middle_px, 6, middle_px, size_px - 7), fill=entry.colour, width=4)
    for offset_px in range(-size_px, 2 * size_px, 9):
        if entry.pattern in {Pattern.HATCH, Pattern.CROSS_HATCH}:
            draw.line((offset_px, size_px, offset_px + size_px, 0), fill=entry.colour, width=3)
        if entry.pattern in {Pattern.BACK_HATCH, Pattern.CROSS_HATCH}:
            draw.line((offset_px, 0, offset_px + size_px, size_px), fill=entry.colour, width=3)
    return swatch
