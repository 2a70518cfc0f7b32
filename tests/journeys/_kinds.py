"""Slides whose end can be foreseen, and the head that is in force in these tests: it asks how red the tissue is.

The toy encoder's vectors are a linear image of a tile's mean colour, so a linear head can read the colour back: its
weights are computed from the encoder's, nothing is learnt. What it says means nothing; that it is in force, sure of
some slides and not of others is all that a journey needs.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from slideway.core.opinion import Kind, TaskQuestion
from slideway.heads.abmil import Abmil, Member, Projection
from slideway.heads.head import Head
from slideway.heads.typicality import fit_typicality
from slideway.registry.card import read_card
from slideway.registry.head_records import HeadCard
from slideway.testing.encoders import ToyGraph
from slideway.testing.heads import make_toy_head, write_toy_head
from slideway.testing.slides import make_levels, paint_tissue, write_pyramid

QUESTION = TaskQuestion("malignant", "Malignant?", Kind.BINARY, ("no", "yes"))
GRAPH = ToyGraph(tile_px=224)
# Mean red of the tissue's tiles, as a share of 1: of the kind `sure-no` and of `sure-yes`; between them it cannot tell.
_RED_NO, _RED_YES = 0.904, 0.817
_LOGIT = 3.5  # of a sure answer: 97 %


@dataclass(frozen=True)
class Expected:
    """How a slide may end.

    Attributes:
        states: One of these states.
        reasons: For one of these reasons; empty for any.
        is_hopeless: The cloud sees from tier 0 that nothing can be read of it, and wants no more.
    """

    states: tuple[str, ...]
    reasons: tuple[str, ...] = ()
    is_hopeless: bool = False

    @property
    def is_readable(self) -> bool:
        """It is a slide: it is encoded, and a bundle leaves."""
        return "rejected" not in self.states


ANY_END = Expected(("reported", "referred"))
BROKEN = Expected(("rejected",), ("slide-format-unknown", "slide-broken"))
TOO_LARGE = Expected(("rejected",), ("slide-too-large",))
"""A file that claims to be larger than anything that is read."""


def write_head(models: Path, encoder: Path) -> HeadCard:
    """Put the head among the heads of a folder that SLIDEWAY_MODELS names; it is active, its question in force."""
    fingerprint = read_card(encoder).fingerprint
    head = make_head()
    return write_toy_head(
        models / "heads" / "redness",
        head_id="redness",
        questions=(QUESTION,),
        width=GRAPH.width,
        encoder_fingerprint=fingerprint,
        head=head,
    )


def make_head() -> Head:
    """The head: mean red of the tiles against two thresholds; whatever colour a slide has is ordinary to it."""
    width = GRAPH.width
    back = np.linalg.pinv(GRAPH.weights)  # (width, 3): from a vector to (colour - 0.5) / 0.5
    red, middle = back[:, 0] / 2, (_RED_NO + _RED_YES) / 2 - 0.5
    slope = -2 * _LOGIT / (_RED_NO - _RED_YES)
    # max(x, 0) and max(-x, 0) of each axis: their difference is x, whatever its sign.
    both = np.concatenate([np.eye(width), -np.eye(width)], axis=1).astype(np.float32)
    weights = (np.concatenate([red, -red]) * slope).astype(np.float32)[:, None]
    none = np.zeros((2 * width, 1), np.float32), np.zeros(1, np.float32)
    member = Member(
        (both, np.zeros(2 * width, np.float32)),
        none,
        none,
        np.zeros(1, np.float32),
        {QUESTION.id: (weights, np.array([-middle * slope], np.float32))},
    )
    projection = Projection(np.zeros(width, np.float32), np.eye(width, dtype=np.float32))
    toy = make_toy_head((QUESTION,), width=width)
    typicality = fit_typicality(_imagine_cases())
    return Head(Abmil(projection, (member,), (QUESTION,)), toy.certainty, typicality, toy.known, toy.golden)


def _imagine_cases(count: int = 24, tiles: int = 40) -> list[NDArray[np.float32]]:
    """(tiles, width) vectors of each case: colours from pale to dark, as wide apart as tiles of a case are."""
    random = np.random.default_rng(0)
    colours = random.uniform(0.6, 1.0, (count, 1, 3)) + random.normal(0, 0.1, (count, tiles, 3))
    return [((of_case - 0.5) / 0.5 @ GRAPH.weights).astype(np.float32) for of_case in colours]


@dataclass(frozen=True)
class SlideKind:
    """A kind of file that a scanner may leave.

    Attributes:
        name: Of the kind.
        content: The file's bytes.
        suffix: Of the file's name.
        expected: How it must end.
    """

    name: str
    content: bytes
    suffix: str
    expected: Expected


def make_kinds(folder: Path) -> dict[str, SlideKind]:
    """Every kind by name: what a head is sure of, what it is not, glass alone, and files that are no slide."""
    folder.mkdir(parents=True, exist_ok=True)
    reported, unsure = Expected(("reported",)), Expected(("referred",), ("not-sure",))
    no_tissue = Expected(("referred",), ("no-tissue",), is_hopeless=True)
    kinds = [
        _write(folder, "sure-no", _paint(0, 1.0), reported),
        _write(folder, "sure-yes", _paint(1, 0.77), reported),
        _write(folder, "unsure", _paint(2, 0.89), unsure),
        _write(folder, "glass", np.full((1200, 1600, 3), 244, np.uint8), no_tissue),
    ]
    whole = kinds[0].content
    kinds += [
        SlideKind("text", b"<html>502 Bad Gateway</html>", ".svs", BROKEN),
        SlideKind("cut", whole[: len(whole) // 2], ".tif", BROKEN),
        SlideKind("huge", _claim_size(whole, 1_000_000), ".tif", TOO_LARGE),
        SlideKind("loop", _let_directories_loop(whole), ".tif", BROKEN),
    ]
    return {kind.name: kind for kind in kinds}


def _paint(seed: int, red: float) -> NDArray[np.uint8]:
    """Tissue on glass, the tissue's red dimmed."""
    picture = paint_tissue(512, 384, seed=seed)
    is_tissue = picture.min(axis=2) < 225
    dimmed = picture * np.array([red, 1, 1])
    return np.where(is_tissue[..., None], dimmed, picture).astype(np.uint8)


def _write(folder: Path, name: str, picture: NDArray[np.uint8], expected: Expected) -> SlideKind:
    path = write_pyramid(folder / f"{name}.tif", make_levels(picture), mpp=0.5)
    return SlideKind(name, path.read_bytes(), ".tif", expected)


def _claim_size(content: bytes, side_px: int) -> bytes:
    """The TIFF, its first picture claiming so many pixels a side."""
    changed = bytearray(content)
    (first,) = struct.unpack_from("<I", content, 4)
    for at in _entries(content, first):
        if struct.unpack_from("<H", content, at)[0] in (256, 257):  # ImageWidth, ImageLength
            struct.pack_into("<HII", changed, at + 2, 4, 1, side_px)
    return bytes(changed)


def _let_directories_loop(content: bytes) -> bytes:
    """The TIFF, its second directory followed by its first."""
    changed = bytearray(content)
    (first,) = struct.unpack_from("<I", content, 4)
    (second,) = struct.unpack_from("<I", content, _entries(content, first)[-1] + 12)
    struct.pack_into("<I", changed, _entries(content, second)[-1] + 12, first)
    return bytes(changed)


def _entries(content: bytes, directory: int) -> Sequence[int]:
    """Where the entries of a classic little-endian TIFF directory begin (TIFF 6.0, section 2)."""
    (count,) = struct.unpack_from("<H", content, directory)
    return range(directory + 2, directory + 2 + 12 * count, 12)
