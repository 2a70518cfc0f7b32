"""Render a slide's report as one HTML page that needs nothing but itself."""

from __future__ import annotations

import base64
import hashlib
import io
import re
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
from jinja2 import Environment, PackageLoader, StrictUndefined
from numpy.typing import NDArray
from PIL import Image

from slideway.core.opinion import Finding, Opinion
from slideway.core.slide import ResolutionSource
from slideway.core.tissue import TileGrid, Verdict
from slideway.reports.content import FocusSummary, ReportContent, ShownFinding, ShownOpinion, ShownTile
from slideway.reports.findings import (
    OFF_BUT_ASKED,
    Badge,
    Chance,
    badge_of,
    chances_of,
    say_certainty,
    say_condition,
    say_strangeness,
)
from slideway.reports.palette import LegendEntry, colour_of_group, hex_of, label_of_group, share_text
from slideway.reports.panels import Panel, draw_focus_panel, draw_panels
from slideway.reports.scale import draw_scale_bar

LARGEST_PAGE_BYTES = 5_000_000  # what every mail gateway and hospital archive takes

_TILE_PX = 224
_TILES_A_GROUP, _GROUP_TILES, _NOVEL_TILES = 6, 64, 12
_TILES_A_SIDE, _FINDING_TILES = 6, 72
# Tried in this order until the page is small enough; real tissue passes at the first.
_JPEG_QUALITIES = (88, 75, 55, 35, 15)

_VERDICTS = {
    Verdict.READABLE: ("✓", "Readable", "good"),
    Verdict.LIMITED: ("!", "Readable with limits", "look"),
    Verdict.RESCAN: ("↻", "Rescan this slide", "look"),
    Verdict.NO_TISSUE: ("○", "No tissue found", "none"),
}
_SOURCES = {
    ResolutionSource.METADATA: "stated by the file",
    ResolutionSource.GIVEN: "given by the person who had it read",
    ResolutionSource.SCANNER_PROFILE: "taken from the scanner's profile",
    ResolutionSource.ESTIMATED: "ESTIMATED, not measured",
    ResolutionSource.UNKNOWN: "unknown",
}


@dataclass(frozen=True)
class _Figure:
    """A picture as the page holds it."""

    anchor: str
    data_uri: str
    width_px: int
    height_px: int
    alt: str
    caption: str
    place: str = ""
    legend: tuple[LegendEntry, ...] = ()


@dataclass(frozen=True)
class _Group:
    """One group as the page shows it."""

    label: str
    colour: str
    share: float
    share_text: str
    tiles: tuple[_Figure, ...]


@dataclass(frozen=True)
class _Finding:
    """One finding as the page shows it."""

    anchor: str
    said: Finding
    badge: Badge
    off: str
    condition: str
    certainty: str
    chances: tuple[Chance, ...]
    sides: tuple[tuple[str, tuple[_Figure, ...]], ...]


@dataclass(frozen=True)
class _Opinion:
    """What one head says, as the page shows it."""

    anchor: str
    said: Opinion
    strangeness: str
    findings: tuple[_Finding, ...]


def render_report(content: ReportContent) -> str:
    """Render the report of one slide as a self-contained HTML page.

    The page holds no script, fetches nothing, and forbids both by its content security policy. Every text of the
    input is escaped; what UTF-8 cannot hold is replaced. The same content gives the same page.

    Args:
        content: What the page shows; of its tiles the first 6 of each group (fewer when there are more than 10 groups),
            the first 6 for and against each finding (fewer when there are more than 6 findings) and the first 12 novel
            ones.

    Returns:
        HTML, below `LARGEST_PAGE_BYTES` as UTF-8: pictures lose quality, never presence, to stay below.
    """
    panels = _draw_all_panels(content)
    page = ""
    for quality in _JPEG_QUALITIES:
        page = _render(content, panels, quality)
        if len(page.encode()) < LARGEST_PAGE_BYTES:
            break
    return page


@lru_cache(maxsize=1)
def templates() -> Environment:
    """The pages' templates; every text they are given is escaped."""
    environment = Environment(
        loader=PackageLoader("slideway.reports", "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "share": share_text,
        "size": size_text,
        "seconds": seconds_text,
        "hex": hex_of,
        "digits": digits_text,
    }
    return environment


def _render(content: ReportContent, panels: tuple[Panel, ...], quality: int) -> str:
    short_id, style, style_hash = render_style(content.slide_sha256)
    template = templates().get_template("report.html.j2")
    page = template.render(
        content=content,
        style=style,
        style_hash=style_hash,
        short_id=short_id,
        verdict=_VERDICTS[content.quality.verdict],
        source=_SOURCES[content.maps.resolution.source],
        approx="≈ " if content.maps.is_estimated else "",
        shape=_shape(content),
        figures=[_panel_figure(panel, content.maps.is_estimated, quality) for panel in panels],
        opinions=_opinions(content.opinions, quality),
        groups=_groups(content, quality),
        novel_tiles=[_tile_figure(t, f"novel-{i}", quality) for i, t in enumerate(content.novel_tiles[:_NOVEL_TILES])],
        focus=_focus_facts(content.focus, content.maps.excluded),
    )
    return clean(page)


def render_style(slide_sha256: str) -> tuple[str, str, str]:
    """Short identity of a slide, the style sheet that prints it, and its hash for the content security policy."""
    # Only hexadecimal digits may reach the style sheet, which no escaping protects.
    short_id = re.sub(r"[^0-9a-f]", "", slide_sha256.lower())[:12]
    style = templates().get_template("report.css.j2").render(short_id=short_id)
    return short_id, style, base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()


def clean(page: str) -> str:
    """Replace what HTML in UTF-8 cannot hold: a file name may carry control signs and broken bytes."""
    whole = page.encode("utf-8", "replace").decode()
    return re.sub(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\ufffe\uffff]", "\ufffd", whole)


def _draw_all_panels(content: ReportContent) -> tuple[Panel, ...]:
    height_px, width_px = content.maps.thumbnail.shape[:2]
    aspect = width_px / height_px
    # At least 160 px wide, so that a core on end is seen, but never taller than a JPEG of sensible size.
    drawn_px = max(1, round(max(min(160, 4000 * aspect), min(1400, 1100 * aspect))))
    panels = draw_panels(content.maps, width_px=drawn_px)
    if content.focus is not None and len(content.focus.grid):
        panels = (*panels, draw_focus_panel(content.maps, content.focus, width_px=drawn_px))
    return panels


def _shape(content: ReportContent) -> str:
    """How the maps stand: tall ones in one row, wide ones one above the other."""
    height_px, width_px = content.maps.thumbnail.shape[:2]
    return "wide" if width_px > 2.2 * height_px else "tall" if width_px < 0.5 * height_px else "even"


def _panel_figure(panel: Panel, is_estimated: bool, quality: int) -> _Figure:
    """A map with its scale bar below it, as one picture: they cannot be torn apart."""
    picture = Image.fromarray(panel.picture)
    text_px = max(22, picture.width // (60 if picture.width > 2.2 * picture.height else 42))
    bar = draw_scale_bar(
        panel.um_per_px,
        within_px=max(picture.width, 400),
        is_estimated=is_estimated,
        text_px=text_px,
        ink=(0x1B, 0x1F, 0x24),
        ground=(255, 255, 255),
    )
    sheet = Image.new("RGB", (max(picture.width, bar.width + 16), picture.height + bar.height + 8), (255, 255, 255))
    sheet.paste(picture, (0, 0))
    sheet.paste(bar, (8, picture.height + 4))
    anchor = "map-" + re.sub(r"[^a-z]+", "-", panel.name.lower())
    uri = jpeg_uri(np.asarray(sheet), quality)
    return _Figure(anchor, uri, sheet.width, sheet.height, panel.description, panel.name, legend=panel.legend)


def _opinions(opinions: tuple[ShownOpinion, ...], quality: int) -> list[_Opinion]:
    """Every finding; with many of them fewer tiles of each, so that the page stays small."""
    count = sum(len(opinion.findings) for opinion in opinions)
    per_side = min(_TILES_A_SIDE, max(1, _FINDING_TILES // max(1, 2 * count)))
    return [
        _Opinion(
            f"head-{o}",
            shown.opinion,
            "" if shown.opinion.strangeness is None else say_strangeness(shown.opinion.strangeness),
            tuple(
                _finding(finding, shown.opinion, f"finding-{o}-{f}", per_side, quality)
                for f, finding in enumerate(shown.findings)
            ),
        )
        for o, shown in enumerate(opinions)
    ]


def _finding(shown: ShownFinding, opinion: Opinion, anchor: str, per_side: int, quality: int) -> _Finding:
    finding = shown.finding
    sides = (("for", shown.for_tiles), ("against", shown.against_tiles))
    return _Finding(
        anchor=anchor,
        said=finding,
        badge=badge_of(finding),
        off="" if finding.in_force else OFF_BUT_ASKED,
        condition=say_condition(finding, opinion),
        certainty=say_certainty(finding),
        chances=chances_of(finding),
        sides=tuple(
            (side, tuple(_tile_figure(t, f"{anchor}-{side}-{i}", quality) for i, t in enumerate(tiles[:per_side])))
            for side, tiles in sides
            if tiles
        ),
    )


def _groups(content: ReportContent, quality: int) -> list[_Group]:
    """Every group with its share; with many groups fewer tiles of each, so that the page stays small."""
    groups = content.maps.groups
    per_group = min(_TILES_A_GROUP, max(1, _GROUP_TILES // max(1, groups.count)))
    shown = (*content.group_tiles, *[()] * groups.count)
    return [
        _Group(
            label_of_group(g),
            hex_of(colour_of_group(g)),
            share,
            share_text(share),
            tuple(_tile_figure(t, f"group-{g}-{i}", quality) for i, t in enumerate(shown[g][:per_group])),
        )
        for g, share in enumerate(groups.shares)
    ]


def _tile_figure(tile: ShownTile, anchor: str, quality: int) -> _Figure:
    image = Image.fromarray(np.ascontiguousarray(tile.pixels))
    if max(image.size) > _TILE_PX:
        image.thumbnail((_TILE_PX, _TILE_PX), Image.Resampling.LANCZOS)
    place = f"tile {tile.index}, at x {tile.x_level0_px}, y {tile.y_level0_px} px of level 0"
    novelty = "" if tile.novelty_percentile is None else f"novelty {percentile_text(tile.novelty_percentile)}"
    alt = ", ".join(part for part in (place.capitalize(), novelty) if part)
    return _Figure(anchor, jpeg_uri(np.asarray(image), quality), image.width, image.height, alt, novelty, place)


def jpeg_uri(picture: NDArray[np.uint8], quality: int) -> str:
    """A picture as a page holds it."""
    # 4:4:4: halved colour would smear hatching and the borders of tiles. Not optimize=True: Pillow guesses the size of
    # its buffer then, and fails on pictures that hold more detail than it guessed.
    buffer = io.BytesIO()
    Image.fromarray(picture).save(buffer, "JPEG", quality=quality, subsampling=0)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")


def _focus_facts(focus: FocusSummary | None, excluded: TileGrid | None) -> dict[str, Any] | None:
    """How many tiles were left out as blurred, and how far the others stand above the limit."""
    if focus is None or not np.isfinite(focus.sharpness).any():
        return None
    ratio = focus.sharpness[np.isfinite(focus.sharpness)].astype(np.float64) / focus.blurred_below
    return {
        "tiles": len(focus.grid),
        "untold": len(focus.grid) - len(ratio),
        "left_out": len(excluded) if excluded is not None else 0,
        "median": f"{float(np.median(ratio)):.1f}",
        "fifth": f"{float(np.percentile(ratio, 5)):.1f}",
    }


def percentile_text(percentile: float) -> str:
    """A percentile without a false hundred.

    Example:
        >>> percentile_text(99.97), percentile_text(42.0)
        ('> 99.9', '42.0')
    """
    return "> 99.9" if percentile > 99.9 else f"{percentile:.1f}"


def digits_text(value: float, digits: int) -> str:
    """A number with so many significant digits, without an exponent for what a slide measures.

    Example:
        >>> digits_text(1234.5, 3), digits_text(0.24987, 3)
        ('1234', '0.25')
    """
    return f"{value:.0f}" if abs(value) >= 10**digits else f"{value:.{digits}g}"


def size_text(size_bytes: int) -> str:
    """A size in decimal units, as file managers and network bills count.

    Example:
        >>> size_text(1938955), size_text(812)
        ('1.9 MB', '812 B')
    """
    size, units = float(size_bytes), ["B", "kB", "MB", "GB", "TB"]
    while size >= 999.5 and len(units) > 1:
        size /= 1000
        units.pop(0)
    return f"{size:.0f} {units[0]}" if units[0] == "B" or size >= 99.5 else f"{size:.1f} {units[0]}"


def seconds_text(seconds: float) -> str:
    """A duration as a person reads it.

    Example:
        >>> seconds_text(0.034), seconds_text(12.3), seconds_text(187)
        ('0.03 s', '12.3 s', '3 min 7 s')
    """
    if seconds >= 60:
        return f"{int(seconds + 0.5) // 60} min {int(seconds + 0.5) % 60} s"
    return f"{seconds:.2f} s" if seconds < 1 else f"{seconds:.1f} s"
