"""Colours and patterns that keep their meaning for every eye, and the words that stand beside them."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

Colour = tuple[int, int, int]

# Chosen by exchange from 400 random starts among Okabe–Ito, Tol and IBM colours. Blended at 70 % over pale grey, any
# two stay 19 Lab units (CIE 1976) apart for normal, protan, deutan and tritan sight (Machado 2009), 17 over the darkest
# and lightest tissue; no signal red. Most distinct first.
GROUP_COLOURS: tuple[Colour, ...] = (
    (0x88, 0xCC, 0xEE),
    (0xD5, 0x5E, 0x00),
    (0x33, 0x22, 0x88),
    (0xDD, 0xCC, 0x77),
    (0x88, 0x22, 0x55),
    (0xFF, 0xB0, 0x00),
    (0x11, 0x77, 0x33),
    (0x75, 0x70, 0xB3),
)

TISSUE_COLOUR: Colour = (0x00, 0x79, 0x6B)
PEN_COLOUR: Colour = (0xC2, 0x7C, 0x00)
FOLD_COLOUR: Colour = (0x1F, 0x5F, 0xD0)
LEFT_OUT_COLOUR: Colour = (0x4A, 0x4F, 0x57)
MOST_NOVEL_COLOUR: Colour = (0x14, 0x18, 0x5C)
MOST_ATTENDED_COLOUR: Colour = (0x2A, 0x0A, 0x52)
PUSH_COLOUR: Colour = (0x10, 0x12, 0x14)


class Pattern(StrEnum):
    """How a thing is drawn, so that colour is never its only mark."""

    FILL = "fill"
    LINE = "line"
    HATCH = "hatch"
    BACK_HATCH = "back-hatch"
    CROSS_HATCH = "cross-hatch"
    PLUS = "plus"
    MINUS = "minus"


@dataclass(frozen=True)
class LegendEntry:
    """One line of a legend.

    Attributes:
        text: What it means.
        colour: As drawn, before blending.
        pattern: As drawn.
    """

    text: str
    colour: Colour
    pattern: Pattern = Pattern.FILL


@dataclass(frozen=True)
class Band:
    """One step of an ordered scale.

    Attributes:
        from_value: Where it begins; it ends where the next begins.
        text: What it means.
        colour: Darker means further along the scale.
    """

    from_value: float
    text: str
    colour: Colour


# Lightness falls with every band for all four kinds of sight. The words say "unlike", never what it might be.
NOVELTY_BANDS: tuple[Band, ...] = (
    Band(0.0, "below the 50th percentile: ordinary", (0xFF, 0xF7, 0xBC)),
    Band(50.0, "50th to 90th", (0x7F, 0xCD, 0xBB)),
    Band(90.0, "90th to 95th", (0x41, 0xB6, 0xC4)),
    Band(95.0, "95th to 99th", (0x2C, 0x7F, 0xB8)),
    Band(99.0, "above the 99th: most unlike", (0x25, 0x34, 0x94)),
)

# In multiples of the sharpness below which a tile counts as blurred (1.42, docs/quality.md): darker is blurrier.
# Real slides in focus lie between 1.06 and 1.4 times the limit, an ideal edge at 1.41.
FOCUS_BANDS: tuple[Band, ...] = (
    Band(0.0, "below the blur limit", (0x7F, 0x3B, 0x08)),
    Band(1.0, "just above the blur limit: soft", (0xE0, 0x82, 0x14)),
    Band(1.06, "1.06 to 1.13 × the limit: sharp", (0xFD, 0xB8, 0x63)),
    Band(1.13, "1.13 × and above: very sharp", (0xFE, 0xE6, 0xC2)),
)

# By rank among the slide's tiles, 100 for the tile looked at most: weights differ by orders of magnitude, so that a
# scale of weights would show one tile and nothing else. Violet is the colour of what a model says.
ATTENTION_BANDS: tuple[Band, ...] = (
    Band(0.0, "other 80 %", (0xEA, 0xE7, 0xF6)),
    Band(80.0, "next 15 %", (0xC2, 0xB8, 0xF0)),
    Band(95.0, "next 4 %", (0x8F, 0x7A, 0xE5)),
    Band(99.0, "top 1 % of tiles", (0x4A, 0x14, 0x86)),
)


def hex_of(colour: Colour) -> str:
    """A colour as HTML and SVG write it.

    Example:
        >>> hex_of((0, 121, 107))
        '#00796b'
    """
    return "#{:02x}{:02x}{:02x}".format(*colour)


def colour_of_group(group: int) -> Colour:
    """Colour of a group; colours return after eight, the number on the map tells such groups apart."""
    return GROUP_COLOURS[group % len(GROUP_COLOURS)]


def label_of_group(group: int) -> str:
    """What a person calls a group: its number counted from 1, since a group has no name.

    Example:
        >>> label_of_group(0)
        'Group 1'
    """
    return f"Group {group + 1}"


def share_text(share: float) -> str:
    """A share as a person reads it: never "0 %" for something that is there, never "100 %" when something is missing.

    Example:
        >>> share_text(0.0004), share_text(0.123), share_text(0.9999)
        ('< 0.1 %', '12.3 %', '> 99.9 %')
    """
    if 0 < share < 0.001:
        return "< 0.1 %"
    if 0.999 < share < 1:
        return "> 99.9 %"
    return "0 %" if share == 0 else "100 %" if share == 1 else f"{share * 100:.1f} %"
