"""Draw the coverage of new cancers as bars, as SVG or as a picture; tones differ by pattern, not by colour alone."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from slideway.core.coverage import MIN_CASES, Coverage, SiteCoverage
from slideway.reports.lettering import measure_text, shorten, wrap, write_text
from slideway.reports.page import clean, templates
from slideway.reports.palette import Colour, Pattern

WIDTH_PX = 1080
_MARGIN_PX = 30
_BAR_LEFT_PX = 350  # names of sites end left of it
_BAR_RIGHT_PX = 720  # shares and stages stand right of the longest bar
_ROW_PX, _BAR_PX = 26, 16
_TEXT_PX, _TITLE_PX, _HEAD_PX, _SMALL_PX = 14, 22, 16, 12
_INK: Colour = (0x22, 0x26, 0x2B)
_QUIET: Colour = (0x55, 0x5C, 0x66)
_EDGE: Colour = (0x6B, 0x74, 0x80)
HATCH_PX = 6
_FIT = 0.84  # of the room: a viewer of the SVG may have a font up to a sixth wider than the picture's
_TITLE = "How much of new cancer Slideway covers"
ABOUT = (
    "Trained: a head learnt on that very site whether tissue is neoplastic or malignant. Validated: such a head is in "
    f"force for malignancy and its card shows at least {MIN_CASES} independent cases, split by case, with lower 95 % "
    "bounds of sensitivity and specificity above Slideway's own bar, which is not a regulator's."
)


@dataclass(frozen=True)
class Tone:
    """How a stage is drawn.

    Attributes:
        text: What it means.
        fill: Colour of the area.
        pattern: `fill` plain, `hatch` with slanted lines in the colour of the lines.
        line: Colour of edge and lines.
    """

    text: str
    fill: Colour
    pattern: Pattern
    line: Colour


TONES: Mapping[str, Tone] = {
    "validated": Tone("validated", (0x14, 0x18, 0x5C), Pattern.FILL, (0x14, 0x18, 0x5C)),
    "trained": Tone("trained", (0xFF, 0xFF, 0xFF), Pattern.HATCH, (0x1F, 0x5F, 0xD0)),
    "catalogued": Tone("catalogued", (0xD5, 0xDE, 0xE6), Pattern.FILL, _EDGE),
    "listed": Tone("not in the catalogue, or not read on slides", (0xFF, 0xFF, 0xFF), Pattern.LINE, _EDGE),
}


@dataclass(frozen=True)
class ChartBar:
    """One bar, in pixels from the top left corner."""

    x_px: float
    y_px: float
    width_px: float
    height_px: float
    stage: str


@dataclass(frozen=True)
class ChartText:
    """One line; (`x_px`, `y_px`) is its top left corner, or its top right one when it ends there."""

    x_px: float
    y_px: float
    text: str
    size_px: int
    colour: Colour
    ends_there: bool = False


@dataclass(frozen=True)
class CoverageChart:
    """All that is drawn, where."""

    width_px: int
    height_px: int
    bars: tuple[ChartBar, ...]
    texts: tuple[ChartText, ...]
    description: str


def lay_out_coverage(coverage: Coverage) -> CoverageChart:
    """Place totals, sites (most frequent first), legend and source."""
    bars: list[ChartBar] = []
    texts = [ChartText(_MARGIN_PX, 22, _TITLE, _TITLE_PX, _INK)]
    texts.append(
        ChartText(_MARGIN_PX, 56, f"Share of all {coverage.catalogue.population}, in percent", _TEXT_PX, _QUIET)
    )
    y_px = _lay_out_legend(92, bars, texts)
    y_px = _lay_out_totals(coverage, y_px + 18, bars, texts)
    y_px = _lay_out_sites(coverage, y_px + 22, bars, texts)
    y_px += 12
    for line in _foot(coverage):
        texts.append(ChartText(_MARGIN_PX, y_px, line, _SMALL_PX, _QUIET))
        y_px += 18
    return CoverageChart(WIDTH_PX, y_px + 18, tuple(bars), tuple(texts), _describe(coverage))


def render_coverage_svg(coverage: Coverage) -> str:
    """The chart as an SVG file that needs nothing but itself."""
    return render_svg(lay_out_coverage(coverage), TONES)


def render_svg(chart: CoverageChart, tones: Mapping[str, Tone]) -> str:
    """Any chart of bars and texts as an SVG file."""
    page = templates().get_template("coverage.svg.j2")
    return clean(page.render(chart=chart, tones=tones, hatch_px=HATCH_PX, hatch=Pattern.HATCH, line=Pattern.LINE))


def draw_coverage(coverage: Coverage) -> NDArray[np.uint8]:
    """The chart as a picture, (height, width, 3)."""
    chart = lay_out_coverage(coverage)
    image = Image.new("RGB", (chart.width_px, chart.height_px), (255, 255, 255))
    for bar in chart.bars:
        _draw_bar(image, bar)
    write_texts(image, chart.texts)
    return np.asarray(image)


def write_texts(image: Image.Image, texts: Iterable[ChartText]) -> None:
    """Write a chart's texts into its picture."""
    draw = ImageDraw.Draw(image)
    for text in texts:
        width_px = measure_text(text.text, text.size_px) if text.ends_there else 0
        write_text(draw, text.x_px - width_px, text.y_px, text.text, text.size_px, text.colour)


def _lay_out_legend(y_px: int, bars: list[ChartBar], texts: list[ChartText]) -> int:
    x_px = float(_MARGIN_PX)
    for stage, tone in TONES.items():
        bars.append(ChartBar(x_px, y_px, 34, _BAR_PX, stage))
        texts.append(ChartText(x_px + 42, y_px - 1, tone.text, _TEXT_PX, _INK))
        x_px += 42 + measure_text(tone.text, _TEXT_PX) + 34
    return y_px + _ROW_PX


def _lay_out_totals(coverage: Coverage, y_px: int, bars: list[ChartBar], texts: list[ChartText]) -> int:
    texts.append(ChartText(_MARGIN_PX, y_px, "Together (the bar's full length is 100 %)", _HEAD_PX, _INK))
    y_px += 30
    totals = {
        "catalogued": coverage.catalogued_percent,
        "trained": coverage.trained_percent,
        "validated": coverage.validated_percent,
    }
    full_px = _BAR_RIGHT_PX - _BAR_LEFT_PX
    for stage, percent in totals.items():
        texts.append(ChartText(_BAR_LEFT_PX - 14, y_px - 1, stage, _TEXT_PX, _INK, ends_there=True))
        filled_px = full_px * percent / 100
        bars.append(ChartBar(_BAR_LEFT_PX + filled_px, y_px, full_px - filled_px, _BAR_PX, "listed"))
        if percent:
            bars.append(ChartBar(_BAR_LEFT_PX, y_px, filled_px, _BAR_PX, stage))
        texts.append(ChartText(_BAR_RIGHT_PX + 12, y_px - 1, f"{percent:.2f} %", _TEXT_PX, _INK))
        y_px += _ROW_PX
    return y_px


def _lay_out_sites(coverage: Coverage, y_px: int, bars: list[ChartBar], texts: list[ChartText]) -> int:
    texts.append(ChartText(_MARGIN_PX, y_px, "Site by site (longer scale)", _HEAD_PX, _INK))
    y_px += 30
    rows = [*_site_rows(coverage), ("all other cancers", _other(coverage), "listed", "outside the catalogue")]
    px_per_percent = (_BAR_RIGHT_PX - _BAR_LEFT_PX) / max(percent for _, percent, _, _ in rows)
    for name, percent, stage, words in rows:
        name_px = round((_BAR_LEFT_PX - 14 - _MARGIN_PX) * _FIT)
        texts.append(
            ChartText(_BAR_LEFT_PX - 14, y_px - 1, shorten(name, _TEXT_PX, name_px), _TEXT_PX, _INK, ends_there=True)
        )
        width_px = max(2.0, percent * px_per_percent)
        bars.append(ChartBar(_BAR_LEFT_PX, y_px, width_px, _BAR_PX, stage))
        room_px = round((WIDTH_PX - _MARGIN_PX - _BAR_LEFT_PX - 12 - width_px) * _FIT)
        said = shorten(f"{percent:.2f} %  {words}", _TEXT_PX, room_px)
        texts.append(ChartText(_BAR_LEFT_PX + width_px + 12, y_px - 1, said, _TEXT_PX, _INK))
        y_px += _ROW_PX
    return y_px


def _site_rows(coverage: Coverage) -> Iterator[tuple[str, float, str, str]]:
    for covered in coverage.sites:
        mark = "" if covered.site.incidence.is_checked else " *"
        yield f"{covered.site.title}{mark}", covered.site.incidence.share_percent, covered.stage, _say_stage(covered)


def _say_stage(covered: SiteCoverage) -> str:
    heads = ", ".join(covered.validated_by or covered.trained_by)
    if heads:
        return f"{covered.stage}: {heads}"
    return covered.stage if covered.is_catalogued else "not read on slides"


def _other(coverage: Coverage) -> float:
    return round(max(0.0, 100 - coverage.listed_percent), 2)


def _foot(coverage: Coverage) -> list[str]:
    width_px = round((WIDTH_PX - 2 * _MARGIN_PX) * _FIT)
    said = [f"Incidence: {coverage.catalogue.population_source}.", ABOUT]
    if not all(covered.site.incidence.is_checked for covered in coverage.sites):
        said[0] += " * figure from memory, not compared with that source."
    return [line for text in said for line in wrap(text, _SMALL_PX, width_px)]


def _describe(coverage: Coverage) -> str:
    return (
        f"Of all {coverage.catalogue.population}, {coverage.catalogued_percent:.2f} % are catalogued, "
        f"{coverage.trained_percent:.2f} % have a trained head and {coverage.validated_percent:.2f} % a validated one."
    )


def _draw_bar(image: Image.Image, bar: ChartBar) -> None:
    tone = TONES[bar.stage]
    width_px, height_px = max(2, round(bar.width_px)), round(bar.height_px)
    area = Image.new("RGB", (width_px, height_px), tone.fill)
    draw = ImageDraw.Draw(area)
    if tone.pattern is Pattern.HATCH:
        for x_px in range(-height_px, width_px, HATCH_PX):
            draw.line((x_px, height_px, x_px + height_px, 0), tone.line, 2)
    draw.rectangle((0, 0, width_px - 1, height_px - 1), outline=tone.line)
    if tone.pattern is Pattern.LINE:
        for x_px in range(3, width_px - 1, HATCH_PX):  # a broken edge
            draw.line((x_px, 0, x_px + 2, 0), tone.fill)
            draw.line((x_px, height_px - 1, x_px + 2, height_px - 1), tone.fill)
    image.paste(area, (round(bar.x_px), round(bar.y_px)))
