"""Render what looks like a slide as one HTML page that needs nothing but itself."""

from __future__ import annotations

from dataclasses import dataclass

from slideway.reports.page import clean, jpeg_uri, render_style, templates
from slideway.reports.sheet import HOW_TO_READ, WARNING, ContactSheet, SheetTile, say_tile

_JPEG_QUALITY = 85


@dataclass(frozen=True)
class _Shown:
    """A tile as the page holds it."""

    title: str
    lines: tuple[str, ...]
    alt: str
    data_uri: str
    width_px: int
    height_px: int
    missing: str


@dataclass(frozen=True)
class _Row:
    asked: _Shown
    found: tuple[_Shown, ...]


def render_similar_page(sheet: ContactSheet) -> str:
    """Render a contact sheet as a self-contained HTML page: no script, nothing fetched, every text escaped."""
    short_id, style, style_hash = render_style(sheet.slide_sha256)
    rows = [_Row(_show(row.asked, row.share), tuple(_show(tile) for tile in row.found)) for row in sheet.rows]
    page = (
        templates()
        .get_template("similar.html.j2")
        .render(
            sheet=sheet,
            rows=rows,
            style=style,
            style_hash=style_hash,
            short_id=short_id,
            warning=WARNING,
            how_to_read=HOW_TO_READ,
        )
    )
    return clean(page)


def _show(tile: SheetTile, share: float | None = None) -> _Shown:
    lines = say_tile(tile, share)
    alt = ", ".join((tile.title, *lines))
    if tile.pixels is None:
        return _Shown(tile.title, lines, alt, "", 0, 0, tile.missing)
    height_px, width_px = tile.pixels.shape[:2]
    return _Shown(tile.title, lines, alt, jpeg_uri(tile.pixels, _JPEG_QUALITY), width_px, height_px, "")
