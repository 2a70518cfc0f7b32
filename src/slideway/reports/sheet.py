"""Draw what looks like a slide as one contact sheet: a row for each place asked, its likes beside it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from slideway.reports.lettering import shorten, wrap, write_text
from slideway.reports.palette import Colour, share_text
from slideway.reports.scale import draw_scale_bar

Picture = NDArray[np.uint8]

WARNING = (
    "Alike means alike to the encoder: colour, texture and cells. It does not mean the same diagnosis, and nothing "
    "here is clinically validated."
)
HOW_TO_READ = (
    "Cosine: 1 the same direction from the library's centre, 0 unrelated, below 0 opposite. Positions are mm from the "
    "slide's top-left corner to the middle of the tile."
)

_TILE_PX, _GAP_PX, _MARGIN_PX, _TEXT_PX, _LINE_PX = 200, 16, 28, 15, 20
_INK: Colour = (0x1B, 0x1F, 0x24)
_QUIET: Colour = (0x54, 0x5D, 0x68)
_LINE: Colour = (0xD9, 0xDE, 0xE3)
_EMPTY: Colour = (0xE4, 0xE8, 0xEC)
_ACCENT: Colour = (0x0B, 0x6E, 0x63)
_GROUND: Colour = (255, 255, 255)


@dataclass(frozen=True)
class SheetTile:
    """One tile on the sheet.

    Attributes:
        pixels: (height, width, 3) uint8 RGB; None when they are not at hand.
        missing: Why they are not; empty otherwise.
        title: Slide, or what the tile stands for.
        middle_mm: Its middle, from the slide's top-left corner.
        cosine: Likeness to the tile asked; None for that tile itself.
    """

    pixels: Picture | None
    missing: str
    title: str
    middle_mm: tuple[float, float]
    cosine: float | None = None


@dataclass(frozen=True)
class SheetRow:
    """A place of the slide and its likes.

    Attributes:
        asked: The tile that shows the place.
        found: Tiles of other slides, most similar first.
        share: Share of the slide's tissue that it stands for; None for a single novel tile.
    """

    asked: SheetTile
    found: tuple[SheetTile, ...]
    share: float | None


@dataclass(frozen=True)
class ContactSheet:
    """All that a contact sheet shows.

    Attributes:
        slide_name: The slide that was asked about.
        slide_sha256: Identity of its content.
        facts: What was searched and what was left out, in sentences.
        cases: Name and score of the most similar slides, best first.
        rows: Places asked.
        columns: Likes in a row, at most.
        tile_um: Edge of a tile in micrometres.
        is_estimated: Whether that rests on an estimated resolution.
    """

    slide_name: str
    slide_sha256: str
    facts: tuple[str, ...]
    cases: tuple[tuple[str, float], ...]
    rows: tuple[SheetRow, ...]
    columns: int
    tile_um: float
    is_estimated: bool


def say_tile(tile: SheetTile, share: float | None = None) -> tuple[str, ...]:
    """Lines under a tile: how alike or how much, and where."""
    x_mm, y_mm = tile.middle_mm
    first = "" if tile.cosine is None else f"cosine {tile.cosine:.2f}"
    if share is not None:
        first = f"{share_text(share)} of tissue"
    return tuple(line for line in (first, f"x {x_mm:.1f}, y {y_mm:.1f} mm") if line)


def draw_contact_sheet(sheet: ContactSheet) -> Picture:
    """Draw the sheet: head, most similar slides, then a row for each place asked. Returns (height, width, 3) RGB."""
    columns = max(2, max((len(row.found) for row in sheet.rows), default=0))
    width_px = 2 * _MARGIN_PX + (columns + 1) * _TILE_PX + columns * _GAP_PX + _GAP_PX
    row_px = _TILE_PX + 3 * _LINE_PX + 26
    head = _head_lines(sheet, width_px - 2 * _MARGIN_PX)
    head_px = _MARGIN_PX + sum(round(size * 1.4) for _, size, _ in head) + 12
    foot = [line for text in (HOW_TO_READ, WARNING) for line in wrap(text, _TEXT_PX, width_px - 2 * _MARGIN_PX)]
    height_px = head_px + _LINE_PX + 14 + row_px * len(sheet.rows) + 40 + _LINE_PX * len(foot) + _MARGIN_PX
    image = Image.new("RGB", (width_px, height_px), _GROUND)
    draw = ImageDraw.Draw(image)
    y_px = float(_MARGIN_PX)
    for text, size_px, colour in head:
        write_text(draw, _MARGIN_PX, y_px, text, size_px, colour)
        y_px += round(size_px * 1.4)
    y_px = head_px
    if sheet.rows:
        write_text(draw, _MARGIN_PX, y_px, "This slide", _TEXT_PX, _QUIET)
        write_text(draw, _left_px(1), y_px, "Most similar places of other slides, best first", _TEXT_PX, _QUIET)
    y_px += _LINE_PX + 14
    for row in sheet.rows:
        draw.line((_MARGIN_PX, y_px - 8, width_px - _MARGIN_PX, y_px - 8), fill=_LINE)
        _draw_row(image, draw, row, round(y_px))
        y_px += row_px
    _draw_foot(image, draw, sheet, foot, round(y_px))
    return np.asarray(image, dtype=np.uint8)


def _head_lines(sheet: ContactSheet, width_px: int) -> list[tuple[str, int, Colour]]:
    lines = [(shorten(f"Tissue that looks like {sheet.slide_name}", 26, width_px), 26, _INK)]
    lines += [(line, _TEXT_PX, _QUIET) for fact in sheet.facts for line in wrap(fact, _TEXT_PX, width_px)]
    if sheet.cases:
        lines.append(("Most similar slides (score: mean cosine over this slide's groups, by share)", _TEXT_PX, _INK))
    for rank, (name, score) in enumerate(sheet.cases, start=1):
        lines.append((shorten(f"{rank}.  {score:.2f}  {name}", 17, width_px), 17, _ACCENT if rank == 1 else _INK))
    return lines


def _left_px(column: int) -> int:
    return _MARGIN_PX + column * (_TILE_PX + _GAP_PX) + (_GAP_PX if column else 0)


def _draw_row(image: Image.Image, draw: ImageDraw.ImageDraw, row: SheetRow, top_px: int) -> None:
    line_px = _left_px(1) - _GAP_PX
    draw.line((line_px, top_px, line_px, top_px + _TILE_PX + 3 * _LINE_PX), fill=_LINE, width=2)
    for column, tile in enumerate((row.asked, *row.found)):
        left_px = _left_px(column)
        _draw_tile(image, draw, tile, left_px, top_px)
        lines = (tile.title, *say_tile(tile, row.share if column == 0 else None))
        for i, text in enumerate(lines):
            colour = _INK if i == 0 else _QUIET
            y_px = top_px + _TILE_PX + 4 + i * _LINE_PX
            write_text(draw, left_px, y_px, shorten(text, _TEXT_PX, _TILE_PX), _TEXT_PX, colour)
    if not row.found:
        write_text(draw, _left_px(1), top_px + 4, "nothing to compare with", _TEXT_PX, _QUIET)


def _draw_tile(image: Image.Image, draw: ImageDraw.ImageDraw, tile: SheetTile, left_px: int, top_px: int) -> None:
    if tile.pixels is None:
        draw.rectangle((left_px, top_px, left_px + _TILE_PX - 1, top_px + _TILE_PX - 1), fill=_EMPTY)
        lines = wrap(tile.missing, _TEXT_PX, _TILE_PX - 24)
        for i, line in enumerate(lines):
            y_px = top_px + (_TILE_PX - _LINE_PX * len(lines)) // 2 + i * _LINE_PX
            write_text(draw, left_px + 12, y_px, line, _TEXT_PX, _QUIET)
        return
    picture = Image.fromarray(np.ascontiguousarray(tile.pixels))
    image.paste(picture.resize((_TILE_PX, _TILE_PX), Image.Resampling.LANCZOS), (left_px, top_px))


def _draw_foot(
    image: Image.Image, draw: ImageDraw.ImageDraw, sheet: ContactSheet, foot: list[str], top_px: int
) -> None:
    if sheet.rows:
        um_per_px = sheet.tile_um / _TILE_PX
        bar = draw_scale_bar(um_per_px, within_px=4 * _TILE_PX // 2, is_estimated=sheet.is_estimated,
                             text_px=_TEXT_PX, ink=_INK, ground=_GROUND)  # fmt: skip
        image.paste(bar, (_MARGIN_PX, top_px))
    for i, line in enumerate(foot):
        write_text(draw, _MARGIN_PX, top_px + 40 + i * _LINE_PX, line, _TEXT_PX, _QUIET)
