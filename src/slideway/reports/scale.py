"""Choose and draw a scale bar: a round length that fits beside a picture."""

from __future__ import annotations

import math
from dataclasses import dataclass

from PIL import Image, ImageDraw

from slideway.reports.lettering import measure_text, write_text
from slideway.reports.palette import Colour


@dataclass(frozen=True)
class ScaleBar:
    """A round length and how it is written.

    Attributes:
        length_um: Length of the bar in micrometres: 1, 2 or 5 times a power of ten.
        text: The length in the unit a person would say, e.g. `200 µm`, `5 mm`.
    """

    length_um: float
    text: str


def choose_scale_bar(width_um: float, *, share: float = 0.25) -> ScaleBar:
    """Choose the longest round bar of at most `share` of a picture's width.

    Args:
        width_um: Width that the picture shows, in micrometres, above 0.
        share: Largest share of the width that the bar may take, in (0, 1].

    Example:
        >>> choose_scale_bar(1000).text, choose_scale_bar(50_000).text
        ('200 µm', '10 mm')
    """
    if not (width_um > 0 and math.isfinite(width_um)):
        raise ValueError(f"width_um must be above 0 and finite, not {width_um}")
    longest_um = width_um * share
    decade = 10.0 ** math.floor(math.log10(longest_um))
    # 1e-9: 0.25 * 40 must give 10, not 5, whatever the last bit of the logarithm was.
    length_um = max((f * decade for f in (1, 2, 5, 10) if f * decade <= longest_um * (1 + 1e-9)), default=decade)
    return ScaleBar(length_um, f"{length_um / 1000:g} mm" if length_um >= 1000 else f"{length_um:g} µm")


def draw_scale_bar(
    um_per_px: float, *, within_px: int, is_estimated: bool, text_px: int, ink: Colour, ground: Colour
) -> Image.Image:
    """Draw a scale bar with its length beside it, for a place under a picture.

    Args:
        um_per_px: Micrometres per pixel of that picture.
        within_px: The bar takes a quarter of this width at most.
        is_estimated: The resolution is an estimate: the length is marked as one.
        text_px: Height of the lettering.
        ink: Colour of bar and text.
        ground: Colour around them.
    """
    bar = choose_scale_bar(um_per_px * within_px)
    bar_px = max(2, round(bar.length_um / um_per_px))
    text = f"~ {bar.text} (estimated)" if is_estimated else bar.text
    height_px, line_px = round(text_px * 1.7), max(2, text_px // 6)
    sheet = Image.new("RGB", (bar_px + text_px + measure_text(text, text_px), height_px), ground)
    draw = ImageDraw.Draw(sheet)
    middle_px, end_px = height_px // 2, round(text_px * 0.42)
    draw.rectangle((0, middle_px - line_px // 2, bar_px - 1, middle_px - line_px // 2 + line_px - 1), fill=ink)
    for left_px in (0, bar_px - line_px):
        draw.rectangle((left_px, middle_px - end_px, left_px + line_px - 1, middle_px + end_px), fill=ink)
    write_text(draw, bar_px + text_px * 0.7, middle_px - text_px * 0.66, text, text_px, ink)
    return sheet
