"""Draw each map of a slide as a picture of its own: tissue, groups, novelty, attention, focus."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from slideway.core.findings import Novelty, TissueGroups
from slideway.core.opinion import AttentionMap
from slideway.core.tissue import TileGrid
from slideway.reports.content import FocusSummary, SlideMaps
from slideway.reports.lettering import measure_text, write_text
from slideway.reports.palette import (
    ATTENTION_BANDS,
    FOCUS_BANDS,
    FOLD_COLOUR,
    LEFT_OUT_COLOUR,
    MOST_ATTENDED_COLOUR,
    MOST_NOVEL_COLOUR,
    NOVELTY_BANDS,
    PEN_COLOUR,
    PUSH_COLOUR,
    TISSUE_COLOUR,
    Band,
    Colour,
    LegendEntry,
    Pattern,
    colour_of_group,
    label_of_group,
    share_text,
)

Picture = NDArray[np.uint8]
Box = tuple[int, int, int, int]  # left, top, right, bottom in picture pixels

_TINT = 0.7  # the palette's distances hold at this strength; more would hide the tissue
_HATCH_STEP_PX = 10
_LEAST_HOLE_PX2 = 150  # smaller holes would fill the tissue panel with rings
_WHITE: Colour = (255, 255, 255)
# A finer tile shows no hatch: a sign beside the tiles looked at most says then which way they push.
_LEAST_HATCHED_PX = 14
_SIGNS_A_WAY = 3
_TOWARDS, _AGAINST = "towards its likeliest answer", "against it"
_LEFT_OUT = LegendEntry("blurred: left out", LEFT_OUT_COLOUR, Pattern.HATCH)


@dataclass(frozen=True)
class Panel:
    """One map with its words.

    Attributes:
        name: Its heading.
        picture: (height, width, 3) uint8 RGB.
        um_per_px: Micrometres per pixel of `picture`, across.
        legend: What its colours and patterns mean.
        description: The picture in words, for those who cannot see it.
    """

    name: str
    picture: Picture
    um_per_px: float
    legend: tuple[LegendEntry, ...]
    description: str


@dataclass(frozen=True)
class _Frame:
    """Size of a picture that shows the whole slide, and what a pixel of it covers."""

    width_px: int
    height_px: int
    um_per_px_x: float
    um_per_px_y: float


def draw_panels(maps: SlideMaps, *, width_px: int) -> tuple[Panel, ...]:
    """Draw the maps that the slide has: tissue always, groups with tiles, novelty with a reference set, attention.

    Args:
        maps: What is drawn.
        width_px: Width of each picture; the height follows from the thumbnail.
    """
    frame = _frame(maps, width_px)
    base = _resize(maps.thumbnail, frame)
    panels = [_tissue_panel(maps, base, frame)]
    if len(maps.grid):
        ghost = _ghost(base)
        panels.append(_groups_panel(maps, ghost, frame))
        if maps.novelty is not None:
            panels.append(_novelty_panel(maps, maps.novelty, ghost, frame))
        if maps.attention is not None:
            panels.append(_attention_panel(maps, maps.attention, ghost, frame))
    return tuple(panels)


def draw_focus_panel(maps: SlideMaps, focus: FocusSummary, *, width_px: int) -> Panel:
    """Draw how sharp each tile is, in multiples of the limit below which a tile counts as blurred."""
    frame = _frame(maps, width_px)
    band = _bands(focus.sharpness.astype(np.float64) / focus.blurred_below, FOCUS_BANDS, side="right")
    picture = _tint(_ghost(_resize(maps.thumbnail, frame)), _cells(focus.grid, band, frame), _colours(FOCUS_BANDS))
    left_out = _mark_excluded(picture, maps, frame)
    shares = _shares(band, FOCUS_BANDS)
    # Whoever measures only the tiles that were read has none below the limit: the legend then has no such band.
    legend = _band_legend(FOCUS_BANDS, shares)[0 if shares[0] else 1 :]
    words = ", ".join(entry.text for entry in (*legend, *left_out))
    description = f"Sharpness map of {len(band)} tiles: {words}."
    return Panel("Focus", picture, frame.um_per_px_x, legend + left_out, description)


def _frame(maps: SlideMaps, width_px: int) -> _Frame:
    thumbnail_height_px, thumbnail_width_px = maps.thumbnail.shape[:2]
    height_px = max(1, round(thumbnail_height_px * width_px / thumbnail_width_px))
    return _Frame(
        width_px,
        height_px,
        maps.thumbnail_mpp * thumbnail_width_px / width_px,
        maps.thumbnail_mpp * thumbnail_height_px / height_px,
    )


def _resize(picture: Picture, frame: _Frame) -> Picture:
    method = cv2.INTER_AREA if picture.shape[1] > frame.width_px else cv2.INTER_CUBIC
    size_px = (frame.width_px, frame.height_px)
    resized: Picture = cv2.resize(np.ascontiguousarray(picture), size_px, interpolation=method)
    return resized


def _ghost(picture: Picture) -> Picture:
    """Grey and pale, so that a tint over it keeps its own colour."""
    grey = picture.astype(np.float32) @ np.array([0.299, 0.587, 0.114], np.float32)
    pale = np.rint(255 - (255 - grey) * 0.7).clip(0, 255).astype(np.uint8)
    return np.repeat(pale[:, :, None], 3, axis=2)


def _cover(mask: NDArray[np.bool_], frame: _Frame, *, least: float) -> NDArray[np.bool_]:
    """A mask at the picture's size: True where it covers at least `least` of a pixel."""
    if not mask.size or not mask.any():
        return np.zeros((frame.height_px, frame.width_px), np.bool_)
    method = cv2.INTER_AREA if mask.shape[1] > frame.width_px else cv2.INTER_LINEAR
    cover = cv2.resize(mask.astype(np.float32), (frame.width_px, frame.height_px), interpolation=method)
    return np.asarray(cover >= least)


def _cells(grid: TileGrid, values: NDArray[np.int64], frame: _Frame) -> NDArray[np.int64]:
    """The value of the tile under each pixel, -1 where there is none; exact at every size, since it asks per pixel."""
    columns = ((np.arange(frame.width_px) + 0.5) * frame.um_per_px_x / grid.tile_um).astype(np.int64)
    rows = ((np.arange(frame.height_px) + 0.5) * frame.um_per_px_y / grid.tile_um).astype(np.int64)
    last = grid.column_row.max(axis=0) if len(grid) else np.zeros(2, np.int32)
    table = np.full((max(int(last[1]), int(rows[-1])) + 1, max(int(last[0]), int(columns[-1])) + 1), -1, np.int64)
    if len(grid):
        table[grid.column_row[:, 1], grid.column_row[:, 0]] = values
    return np.asarray(table[rows[:, None], columns[None, :]])


def _tint(picture: Picture, cells: NDArray[np.int64], colours: Sequence[Colour]) -> Picture:
    """Lay the colour of each cell over the picture."""
    tinted, covered = picture.copy(), cells >= 0
    if covered.any():
        colour = np.array(colours, np.float32)[cells[covered]]
        tinted[covered] = np.rint(_TINT * colour + (1 - _TINT) * picture[covered]).astype(np.uint8)
    return tinted


def _hatch(
    picture: Picture,
    where: NDArray[np.bool_],
    colour: Colour,
    pattern: Pattern,
    *,
    line_px: int = 3,
    step_px: int = _HATCH_STEP_PX,
) -> None:
    """Draw diagonal lines in place."""
    y_px, x_px = np.nonzero(where)
    across, back = (x_px + y_px) % step_px, (x_px - y_px) % step_px
    for colour_of_line, from_px, to_px in ((_WHITE, line_px, line_px + 2), (colour, 0, line_px)):
        # A white line beside each coloured one: the hatch is seen on dark tissue and on glass.
        on_line = np.zeros(len(x_px), np.bool_)
        if pattern is not Pattern.BACK_HATCH:
            on_line |= (across >= from_px) & (across < to_px)
        if pattern is not Pattern.HATCH:
            on_line |= (back >= from_px) & (back < to_px)
        picture[y_px[on_line], x_px[on_line]] = colour_of_line


def _outline(picture: Picture, where: NDArray[np.bool_], colour: Colour, *, line_px: int, halo_px: int = 0) -> None:
    """Draw the border of an area in place, with a white halo where the ground is dark."""
    if not where.any():
        return
    found, tree = cv2.findContours(where.astype(np.uint8), cv2.RETR_CCOMP, cv2.CHAIN_APPROX_NONE)
    is_hole = tree[0][:, 3] >= 0
    contours = [c for c, hole in zip(found, is_hole, strict=True) if not hole or cv2.contourArea(c) >= _LEAST_HOLE_PX2]
    if halo_px:
        cv2.drawContours(picture, contours, -1, _WHITE, line_px + 2 * halo_px, cv2.LINE_AA)
    cv2.drawContours(picture, contours, -1, colour, line_px, cv2.LINE_AA)


def _excluded(maps: SlideMaps, frame: _Frame) -> NDArray[np.bool_]:
    if maps.excluded is None or not len(maps.excluded):
        return np.zeros((frame.height_px, frame.width_px), np.bool_)
    return np.asarray(_cells(maps.excluded, np.zeros(len(maps.excluded), np.int64), frame) == 0)


def _mark_excluded(picture: Picture, maps: SlideMaps, frame: _Frame) -> tuple[LegendEntry, ...]:
    """Hatch the tiles that were left out; the legend names them only when there are any."""
    where = _excluded(maps, frame)
    _hatch(picture, where, LEFT_OUT_COLOUR, Pattern.HATCH)
    _outline(picture, where, LEFT_OUT_COLOUR, line_px=1)
    return (_LEFT_OUT,) if where.any() else ()


def _tissue_panel(maps: SlideMaps, base: Picture, frame: _Frame) -> Panel:
    picture = base.copy()
    left_out = _mark_excluded(picture, maps, frame)
    _outline(picture, _cover(maps.mask.pixels, frame, least=0.5), TISSUE_COLOUR, line_px=2, halo_px=1)
    legend = [LegendEntry(f"tissue {_area_text(maps)}", TISSUE_COLOUR, Pattern.LINE)]
    marks = (
        (maps.mask.fold, "fold?", FOLD_COLOUR, Pattern.BACK_HATCH),
        (maps.mask.pen, "pen", PEN_COLOUR, Pattern.CROSS_HATCH),
    )
    for mask, name, colour, pattern in marks:
        where = _cover(mask, frame, least=0.25)
        if where.any():
            _hatch(picture, where, colour, pattern)
            _outline(picture, where, colour, line_px=2, halo_px=1)
            legend.append(LegendEntry(name, colour, pattern))
    found = ", ".join(entry.text for entry in (*legend, *left_out)) if maps.mask.pixels.any() else "no tissue found"
    return Panel("Tissue", picture, frame.um_per_px_x, (*legend, *left_out), f"Thumbnail of the slide: {found}.")


def _area_text(maps: SlideMaps) -> str:
    sign = "≈ " if maps.is_estimated else ""
    return f"{sign}{maps.mask.area_mm2:.3g} mm²"


def _groups_panel(maps: SlideMaps, ghost: Picture, frame: _Frame) -> Panel:
    groups = maps.groups
    colours = [colour_of_group(g) for g in range(groups.count)]
    cells = _cells(maps.grid, groups.group.astype(np.int64), frame)
    picture = _tint(ghost, cells, colours)
    _outline(picture, _cover(maps.mask.pixels, frame, least=0.5), LEFT_OUT_COLOUR, line_px=1)
    left_out = _mark_excluded(picture, maps, frame)
    picture = _number_groups(picture, maps.grid, groups, frame)
    texts = [f"{label_of_group(g)}  {share_text(share)}" for g, share in enumerate(groups.shares)]
    legend = tuple(LegendEntry(text, colour) for text, colour in zip(texts, colours, strict=True))
    description = f"Map of {groups.count} groups of like tiles: {', '.join(texts)} of {len(maps.grid)} tiles."
    return Panel("Groups of like tiles", picture, frame.um_per_px_x, legend + left_out, description)


def _number_groups(picture: Picture, grid: TileGrid, groups: TissueGroups, frame: _Frame) -> Picture:
    """Write each group's number at a tile that shows it well, where no other number stands."""
    image = Image.fromarray(picture)
    draw = ImageDraw.Draw(image)
    taken: list[Box] = []
    for group, tiles in enumerate(groups.representatives):
        boxes = [_number_box(grid, tile, group, frame) for tile in tiles]
        free = [box for box in boxes if not any(_overlap(box, other) for other in taken)]
        for box in free[:1] or boxes[:1]:
            draw.rounded_rectangle(box, radius=6, fill=(16, 18, 20), outline=_WHITE, width=2)
            write_text(draw, box[0] + 8, box[1] + 2, str(group + 1), _number_px(frame), _WHITE)
            taken.append(box)
    return np.asarray(image)


def _number_px(frame: _Frame) -> int:
    """Height of a group's number: legible when the picture is shown at half its size."""
    return min(max(frame.width_px // 40, 20), 32)


def _number_box(grid: TileGrid, tile: int, group: int, frame: _Frame) -> Box:
    """Where a group's number would stand: over the middle of the tile, inside the picture."""
    width_px, height_px = measure_text(str(group + 1), _number_px(frame)) + 16, round(_number_px(frame) * 1.3) + 4
    x_px, y_px = (grid.column_row[tile] + 0.5) * grid.tile_um / np.array([frame.um_per_px_x, frame.um_per_px_y])
    left_px = int(np.clip(x_px - width_px / 2, 0, max(0, frame.width_px - width_px - 1)))
    top_px = int(np.clip(y_px - height_px / 2, 0, max(0, frame.height_px - height_px - 1)))
    return left_px, top_px, left_px + width_px, top_px + height_px


def _overlap(box: Box, other: Box) -> bool:
    return box[0] < other[2] and other[0] < box[2] and box[1] < other[3] and other[1] < box[3]


def _novelty_panel(maps: SlideMaps, novelty: Novelty, ghost: Picture, frame: _Frame) -> Panel:
    band = _bands(novelty.percentile.astype(np.float64), NOVELTY_BANDS, side="left")
    cells = _cells(maps.grid, band, frame)
    picture = _tint(ghost, cells, _colours(NOVELTY_BANDS))
    left_out = _mark_excluded(picture, maps, frame)
    # A single tile may be two pixels wide here: its border makes it seen.
    _outline(picture, cells == len(NOVELTY_BANDS) - 1, MOST_NOVEL_COLOUR, line_px=2, halo_px=1)
    shares = _shares(band, NOVELTY_BANDS, maps.groups.weight)
    description = (
        f"Novelty map: {share_text(novelty.novel_share)} of {len(maps.grid)} tiles are above the 99th percentile "
        f"of the reference set {novelty.reference}."
    )
    name = "Novelty: how unlike the reference set"
    return Panel(name, picture, frame.um_per_px_x, _band_legend(NOVELTY_BANDS, shares) + left_out, description)


def _attention_panel(maps: SlideMaps, attention: AttentionMap, ghost: Picture, frame: _Frame) -> Panel:
    band = _bands(_ranks(attention.weight), ATTENTION_BANDS, side="left")
    picture = _tint(ghost, _cells(maps.grid, band, frame), _colours(ATTENTION_BANDS))
    left_out = _mark_excluded(picture, maps, frame)
    pushing = np.where(band >= len(ATTENTION_BANDS) - 2, np.sign(attention.push), 0).astype(np.int64)
    ways = _cells(maps.grid, pushing + 1, frame)  # 0 against, 1 neither or not among the top 5 %, 2 towards
    is_fine = maps.grid.tile_um / frame.um_per_px_x < _LEAST_HATCHED_PX
    if not is_fine:
        # Sparse: the tissue of the very tiles to look at must be seen.
        for way, pattern in ((2, Pattern.HATCH), (0, Pattern.BACK_HATCH)):
            _hatch(picture, ways == way, PUSH_COLOUR, pattern, line_px=2, step_px=_LEAST_HATCHED_PX)
    _outline(picture, _cells(maps.grid, band, frame) == len(ATTENTION_BANDS) - 1, MOST_ATTENDED_COLOUR, line_px=2,
             halo_px=1)  # fmt: skip
    if is_fine:
        picture = _sign_tiles(picture, maps.grid, attention.weight, pushing, frame)
    shares = _shares(band, ATTENTION_BANDS, attention.weight)
    legend = _attention_legend(shares, pushing, is_fine=is_fine)
    title = f"Attention: {maps.attention_title}" if maps.attention_title else "Attention"
    description = (
        f"Attention map of {len(band)} tiles, {maps.attention_title or 'one head'}: the 1 % looked at most hold "
        f"{share_text(shares[-1])} of the attention. Of the top 5 %, {int((pushing > 0).sum())} tiles push {_TOWARDS} "
        f"and {int((pushing < 0).sum())} {_AGAINST}."
    )
    return Panel(title, picture, frame.um_per_px_x, legend + left_out, description)


def _ranks(weight: NDArray[np.float32]) -> NDArray[np.float64]:
    """Rank of each tile in (0, 100], 100 for the tile looked at most; tiles of equal weight share the lowest rank."""
    below = np.searchsorted(np.sort(weight), weight, side="left")
    return np.asarray((below + 1) * 100 / max(1, len(weight)), np.float64)


def _attention_legend(shares: Sequence[float], pushing: NDArray[np.int64], *, is_fine: bool) -> tuple[LegendEntry, ...]:
    """Bands from the most looked at, each with its share of the attention, then the patterns that occur."""
    bands = [
        LegendEntry(f"{band.text}: {share_text(share)}", band.colour)
        for band, share in zip(ATTENTION_BANDS[::-1], shares[::-1], strict=True)
    ]
    bands[0] = LegendEntry(f"{bands[0].text} of the attention", bands[0].colour)
    marks = (Pattern.PLUS, Pattern.MINUS) if is_fine else (Pattern.HATCH, Pattern.BACK_HATCH)
    ways = ((pushing > 0, f"pushes {_TOWARDS}", marks[0]), (pushing < 0, f"pushes {_AGAINST}", marks[1]))
    return (*bands, *(LegendEntry(text, PUSH_COLOUR, mark) for where, text, mark in ways if where.any()))


def _sign_tiles(
    picture: Picture, grid: TileGrid, weight: NDArray[np.float32], pushing: NDArray[np.int64], frame: _Frame
) -> Picture:
    """Set + or - beside the tiles looked at most, a sign for each place: beside, so that the tile stays seen."""
    image = Image.fromarray(picture)
    draw = ImageDraw.Draw(image)
    hot = _cells(grid, pushing, frame)
    taken: list[Box] = []
    order = np.argsort(-weight, kind="stable")
    for way, sign in ((1, "+"), (-1, "-")):
        mine: list[Box] = []
        for tile in order[pushing[order] == way]:
            box = _sign_box(grid, int(tile), np.abs(hot) == 1, frame)
            if not any(_overlap(_widen(box), other) for other in mine) and not any(_overlap(box, o) for o in taken):
                _draw_sign(draw, box, sign)
                mine.append(box)
                taken.append(box)
            if len(mine) == _SIGNS_A_WAY:
                break
    return np.asarray(image)


def _sign_box(grid: TileGrid, tile: int, hot: NDArray[np.bool_], frame: _Frame) -> Box:
    """Where a tile's sign would stand: at the corner of the tile where it covers least of what was looked at most."""
    size_px = _number_px(frame)
    tile_px = grid.tile_um / np.array([frame.um_per_px_x, frame.um_per_px_y])
    x_px, y_px = grid.column_row[tile] * tile_px
    boxes = []
    for left, top in (
        (x_px + tile_px[0] + 1, y_px - size_px - 1),
        (x_px - size_px - 1, y_px - size_px - 1),
        (x_px + tile_px[0] + 1, y_px + tile_px[1] + 1),
        (x_px - size_px - 1, y_px + tile_px[1] + 1),
    ):
        left_px = int(np.clip(left, 0, max(0, frame.width_px - size_px - 1)))
        top_px = int(np.clip(top, 0, max(0, frame.height_px - size_px - 1)))
        boxes.append((left_px, top_px, left_px + size_px, top_px + size_px))
    return min(boxes, key=lambda box: int(hot[box[1] : box[3], box[0] : box[2]].sum()))


def _widen(box: Box) -> Box:
    """The room around a sign in which another of its kind would say nothing new."""
    room_px = 3 * (box[2] - box[0])
    return box[0] - room_px, box[1] - room_px, box[2] + room_px, box[3] + room_px


def _draw_sign(draw: ImageDraw.ImageDraw, box: Box, sign: str) -> None:
    draw.ellipse(box, fill=PUSH_COLOUR, outline=_WHITE, width=2)
    x_px, y_px, arm_px = (box[0] + box[2]) // 2, (box[1] + box[3]) // 2, (box[2] - box[0]) // 4
    draw.line((x_px - arm_px, y_px, x_px + arm_px, y_px), fill=_WHITE, width=3)
    if sign == "+":
        draw.line((x_px, y_px - arm_px, x_px, y_px + arm_px), fill=_WHITE, width=3)


def _bands(values: NDArray[np.float64], bands: Sequence[Band], *, side: Literal["left", "right"]) -> NDArray[np.int64]:
    """Index of the band of each value, -1 for what is no number; `left` leaves a limit itself in the band below."""
    index = np.searchsorted([b.from_value for b in bands], values, side=side) - 1
    return np.where(np.isfinite(values), np.maximum(index, 0), -1).astype(np.int64)


def _shares(band: NDArray[np.int64], bands: Sequence[Band], weight: NDArray[np.float32] | None = None) -> list[float]:
    """Share of the values in each band; what is no number counts among all, in none."""
    if not len(band):
        return [0.0] * len(bands)
    return [float(np.average(band == i, weights=weight)) for i in range(len(bands))]


def _colours(bands: Sequence[Band]) -> list[Colour]:
    return [band.colour for band in bands]


def _band_legend(bands: Sequence[Band], shares: Sequence[float]) -> tuple[LegendEntry, ...]:
    return tuple(
        LegendEntry(f"{band.text}  ({share_text(share)} of tiles)", band.colour)
        for band, share in zip(bands, shares, strict=True)
    )
