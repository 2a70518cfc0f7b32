"""Write on pictures with the font that comes with Pillow, so that every machine draws the same pixels."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterator
from functools import lru_cache
from itertools import groupby

from PIL import Image, ImageDraw, ImageFont

from slideway.reports.palette import Colour

# Pillow's built-in font holds ASCII and a few signs only; what it lacks is spelt out here. µ and ² are drawn.
_SPELT = {"–": "-", "—": "-", "×": "x", "≈": "~", "≥": ">=", "≤": "<=", "\u03bc": "µ", "\u00a0": " ", "\u202f": " "}
_SPELT |= {"ä": "ae", "ö": "oe", "ü": "ue", "Ä": "Ae", "Ö": "Oe", "Ü": "Ue", "ß": "ss", "ø": "o", "æ": "ae", "…": "…"}
_DRAWN = "µ²…·°±"


@lru_cache(maxsize=16)
def load_font(size_px: int) -> ImageFont.FreeTypeFont:
    """The built-in font, laid out without system libraries."""
    font = ImageFont.load_default(size_px)
    if not isinstance(font, ImageFont.FreeTypeFont):
        raise RuntimeError("Pillow was built without FreeType: install the Pillow wheel from PyPI")
    return font.font_variant(layout_engine=ImageFont.Layout.BASIC)


def spell(text: str) -> str:
    """Write a text with the signs that the built-in font has; a run of others becomes one ellipsis.

    Example:
        >>> spell("Größe 5 × 3 µm²"), spell("张三 stomach.svs")
        ('Groesse 5 x 3 µm²', '… stomach.svs')
    """
    spelt = "".join(_SPELT.get(c, c) for c in unicodedata.normalize("NFC", text))
    # Not NFKD throughout: it would turn ² into 2 and µ into a Greek letter.
    parts = (c if c in _DRAWN else unicodedata.normalize("NFKD", c) for c in spelt)
    bare = "".join(c for part in parts for c in part if not unicodedata.combining(c))
    writable = [c if c in _DRAWN or " " <= c <= "~" else "…" for c in bare]
    return "".join("…" if c == "…" else "".join(run) for c, run in groupby(writable))


def _runs(text: str) -> Iterator[tuple[str, str]]:
    """Split into plain runs and the drawn signs µ and ²."""
    for sign, letters in groupby(spell(text), key=lambda c: c if c in "µ²" else ""):
        run = "".join(letters)
        yield from ((sign, sign) for _ in run) if sign else (("", run),)


def _run_width(sign: str, run: str, size_px: int) -> float:
    if sign == "µ":
        return float(load_font(size_px).getlength("u"))
    if sign == "²":
        return float(load_font(_raised_px(size_px)).getlength("2"))
    return float(load_font(size_px).getlength(run))


def _raised_px(size_px: int) -> int:
    return max(6, round(size_px * 0.62))


def measure_text(text: str, size_px: int) -> int:
    """Width of a text in pixels, rounded up."""
    return int(sum(_run_width(sign, run, size_px) for sign, run in _runs(text)) + 0.999)


def write_text(draw: ImageDraw.ImageDraw, x_px: float, y_px: float, text: str, size_px: int, colour: Colour) -> None:
    """Write one line; (`x_px`, `y_px`) is its top left corner, the line is `size_px * 1.3` high."""
    baseline_px = round(y_px + size_px)
    x_px = float(round(x_px))
    for sign, run in _runs(text):
        font = load_font(size_px)
        if sign == "µ":
            draw.text((x_px, baseline_px), "u", font=font, fill=colour, anchor="ls")
            _draw_tail(draw, x_px, baseline_px, size_px, colour)
        elif sign == "²":
            raised = load_font(_raised_px(size_px))
            draw.text((x_px, baseline_px - round(size_px * 0.33)), "2", font=raised, fill=colour, anchor="ls")
        else:
            draw.text((x_px, baseline_px), run, font=font, fill=colour, anchor="ls")
        x_px += round(_run_width(sign, run, size_px))


@lru_cache(maxsize=16)
def _left_stem(size_px: int) -> tuple[int, int]:
    """First column and width of the left stem of a u, measured where it stands upright: at its middle."""
    image = Image.new("L", (size_px * 2, size_px * 2), 0)
    ImageDraw.Draw(image).text((0, size_px), "u", font=load_font(size_px), fill=255, anchor="ls")
    middle_px = size_px - round(size_px * 0.35)
    inked = [x for x in range(size_px) if int(image.getpixel((x, middle_px)) or 0) > 100]  # type: ignore[arg-type]
    width_px = next((i for i, x in enumerate(inked) if x != inked[0] + i), len(inked))
    return (inked[0] if inked else 0), max(1, width_px)


def _draw_tail(draw: ImageDraw.ImageDraw, x_px: float, baseline_px: int, size_px: int, colour: Colour) -> None:
    """Lengthen the left stem of a u below the line: it becomes a µ."""
    offset_px, stem_px = _left_stem(size_px)
    left_px = int(x_px) + offset_px
    top_px = baseline_px - round(size_px * 0.3)
    draw.rectangle((left_px, top_px, left_px + stem_px - 1, baseline_px + round(size_px * 0.22)), colour)


def shorten(text: str, size_px: int, width_px: int) -> str:
    """The text, or its beginning and end around an ellipsis when it is too long for `width_px`."""
    spelt = spell(text)
    if measure_text(spelt, size_px) <= width_px:
        return spelt
    for kept in range(len(spelt) - 1, 1, -1):
        tail = kept // 3
        short = f"{spelt[: kept - tail].rstrip()}…{spelt[len(spelt) - tail :].lstrip()}"
        if measure_text(short, size_px) <= width_px:
            return short
    return "…"


def wrap(text: str, size_px: int, width_px: int) -> list[str]:
    """Break a text into lines of at most `width_px` at its spaces; a longer word is shortened."""
    lines: list[str] = []
    for word in spell(text).split():
        joined = f"{lines[-1]} {word}" if lines else word
        if lines and measure_text(joined, size_px) <= width_px:
            lines[-1] = joined
        else:
            lines.append(shorten(word, size_px, width_px))
    return lines
